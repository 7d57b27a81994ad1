"""The README's numbers are those that benchmarks wrote to their tables."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import evidence

ROOT = Path(__file__).resolve().parents[1]


def words(text):
    return " ".join(text.split())


@pytest.mark.parametrize("claim", evidence.CLAIMS, ids=lambda claim: claim.sentence)
def test_the_readme_has_what_was_printed(claim):
    readme = words((ROOT / "README.md").read_text(encoding="utf-8"))
    assert words(str(claim)) in readme
    assert f"python -m benchmarks.{claim.module}" in readme


def test_the_page_is_what_the_tables_give():
    assert evidence.PAGE.read_text(encoding="utf-8") == evidence.page()


def test_each_benchmark_has_a_day():
    known = evidence.recorded()
    for claim in evidence.CLAIMS:
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", known[claim.module]["date"])
        # a table that was written since: python -m benchmarks.evidence
        assert known[claim.module]["tables"] == evidence.tables(claim.module)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "RECORD", tmp_path / "evidence.json")
    monkeypatch.setattr(evidence, "PAGE", tmp_path / "evidence.rst")
    return tmp_path


def test_minutes_that_were_not_noted_are_those_of_the_rows(monkeypatch):
    table = evidence.Table("", ["what", "CPU s"])
    table.rows = [["a", "90"], ["a", "40 (2)"], ["b", ""]]
    monkeypatch.setattr(evidence, "read", lambda name: [table])
    assert evidence.least("leaderboard.equal") == pytest.approx(130 / 60)
    assert evidence.spent("leaderboard.equal", {}) == "more than 2"
    assert evidence.least("leaderboard") is None
    table.header[1] = "trainings"
    assert evidence.spent("leaderboard.equal", {}) == ""


def test_what_was_killed_is_run_again_and_nothing_else(elsewhere, monkeypatch, capsys):
    modules = list(dict.fromkeys(claim.module for claim in evidence.CLAIMS))
    called, codes = [], iter([0, 1])

    def call(command, check):
        called.append(command)
        code = next(codes, None)
        # which writes its tables just if it comes so far
        ends = float("inf") if code == 0 else 0
        monkeypatch.setattr(evidence, "written", lambda name: ends)
        if code is None:
            raise KeyboardInterrupt
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(subprocess, "run", call)
    with pytest.raises(KeyboardInterrupt):
        evidence.run([])
    assert [command[-1] for command in called] == [
        f"benchmarks.{m}" for m in modules[:3]
    ]
    assert all(command[0] == sys.executable for command in called)
    assert list(json.loads(evidence.RECORD.read_text())) == modules[:1]
    assert f"benchmarks.{modules[1]} failed: 1" in capsys.readouterr().out
    assert evidence.PAGE.read_text() == evidence.page()
    assert sorted(path.name for path in elsewhere.iterdir()) == [
        "evidence.json",
        "evidence.rst",
    ]
    # the first is known
    called.clear()
    codes = iter([0] * len(modules))
    evidence.run([])
    assert [command[-1] for command in called] == [
        f"benchmarks.{m}" for m in modules[1:]
    ]


def test_what_measures_nothing_is_not_noted(elsewhere, monkeypatch, capsys):
    monkeypatch.setattr(
        subprocess, "run", lambda command, check: subprocess.CompletedProcess([], 0)
    )
    evidence.run(["deep.board"])
    assert evidence.recorded() == {}
    assert "deep.board had nothing to measure" in capsys.readouterr().out


def test_pieces_of_a_run_are_added_up(elsewhere, monkeypatch):
    """Each with the rows that it measured, and what was killed is not whole."""
    measured, clock = {"a": ["1"], "b": ["1", "2"], "c": ["1", "2", "3"]}, [0.0]
    monkeypatch.setattr(evidence, "written", lambda name: float("inf"))
    monkeypatch.setattr(evidence.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(evidence, "rows", lambda module: set(now))

    def call(command, check):
        now.update(measured[piece])
        clock[0] += 60 * minutes
        if piece == "b":
            raise KeyboardInterrupt
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", call)
    now, piece, minutes = set(), "a", 4.0
    evidence.run(["deep.board"])
    assert evidence.recorded()["deep.board"]["versions"] == evidence.versions()
    piece, minutes = "b", 3.0
    with pytest.raises(KeyboardInterrupt):
        evidence.run(["deep.board"])
    note = evidence.recorded()["deep.board"]
    assert (note["minutes"], note["rows"]) == (7.0, 2)
    assert "versions" not in note
    piece, minutes = "c", 1.5
    evidence.run(["deep.board"])
    note = evidence.recorded()["deep.board"]
    assert (note["minutes"], note["rows"]) == (8.5, 3)
    # a table that is written by hand has more rows than minutes are known of
    now.add("4")
    assert evidence.spent("deep.board", note) == "8.5 (3 of 4 rows)"
    monkeypatch.setattr(evidence, "tables", lambda module: "another")
    evidence.note_changes()
    assert evidence.recorded()["deep.board"]["minutes"] == 8.5


def test_a_table_made_anew_has_the_minutes_of_its_last_run(elsewhere, monkeypatch):
    monkeypatch.setattr(evidence, "written", lambda name: float("inf"))
    monkeypatch.setattr(evidence, "rows", lambda module: found[-1])
    found, clock = [{"old"}], [0.0]
    monkeypatch.setattr(evidence.time, "monotonic", lambda: clock[0])

    def call(command, check):
        found.append(made)
        clock[0] += 60 * len(made)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", call)
    for made in ({"one", "two"}, {"another", "third", "fourth"}):
        evidence.run(["ranking.first_page"])
        note = evidence.recorded()["ranking.first_page"]
        assert note["minutes"] == note["rows"] == len(made)


def test_a_table_written_by_hand_gets_the_day(elsewhere, monkeypatch):
    evidence.note_changes()
    first = evidence.recorded()
    assert set(first) == set(evidence.FILES)
    old = {**first, "deep.board": {**first["deep.board"], "date": "2020-01-01"}}
    evidence.RECORD.write_text(json.dumps(old))
    evidence.note_changes()
    assert evidence.recorded() == old
    monkeypatch.setattr(evidence, "tables", lambda module: "another")
    evidence.note_changes()
    assert evidence.recorded()["deep.board"]["date"] != "2020-01-01"


def test_other_versions_are_run_again(elsewhere, monkeypatch):
    called = []
    monkeypatch.setattr(evidence, "written", lambda name: float("inf"))

    def call(command, check):
        called.append(command[-1])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", call)
    evidence.run([])
    first = called.copy()
    evidence.run([])
    assert called == first
    monkeypatch.setattr(evidence, "versions", lambda: {"torch": "another"})
    evidence.run([])
    assert called == first * 2
    evidence.run(["deep.board"])
    assert called[-1] == "benchmarks.deep.board"


def test_numbers_of_cells():
    assert evidence.number("0.283 → 0.300") == 0.3
    assert evidence.number("0.823 (512)") == 0.823
    assert evidence.number("0.813 [0.742, 0.861]") == 0.813
    assert evidence.number("-0.005") == -0.005
    assert evidence.number("fails → 0.112") == 0.112
    assert evidence.number("ValueError: TRAKer has no task") is None
