"""One page of evidence: what the README claims, the numbers, and what printed them.

The numbers of each sentence are read from the tables that benchmarks wrote. So are the
README's, which a test compares. ``--run`` runs the benchmarks that were not run with
these versions, one after another, or those that are named, each as a process of its
own, and notes how long they took, and for how many rows; what is killed is run again,
and nothing else. Where a benchmark keeps the rows that its table has, the minutes of
its pieces are added up, and if it measures none, nothing is noted: name its rows, or
take the table away. Tables that were written by hand since get the day.

    python -m benchmarks.evidence [--run [NAME ...]]
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date
from typing import Any

import sklearn
import torch

import skattrib
from benchmarks._table import DOC, MEASURED, Table, read

BOARDS = "wine", "diabetes", "breast_cancer", "digits", "insurance", "mnist"
#: What each benchmark writes that is read here, below doc/measured.
FILES = {
    "ranking.first_page": ["first_page.inc"],
    "leaderboard": [f"leaderboard_{name}.json" for name in BOARDS],
    "leaderboard.equal": ["equal_budgets.inc"],
    "posterior.coverage": ["posterior_coverage.inc"],
    "deep.board": ["deep_board.inc"],
    "language.fine_tuning": ["fine_tuning.inc"],
    "language.peers": ["fine_tuning.inc", "fine_tuning_peers.inc"],
}
PAGE, RECORD = DOC / "evidence.rst", MEASURED / "evidence.json"
ARROW = "→"


@dataclass(frozen=True)
class Claim:
    """A sentence with numbers.

    Attributes
    ----------
    sentence : str
        With a pair of braces for each number.
    numbers : callable
        Returns these, from the tables.
    module : str
        The benchmark that wrote them, below ``benchmarks``.
    """

    sentence: str
    numbers: Any
    module: str

    def __str__(self):
        return self.sentence.format(*self.numbers())


# ----------------------------------------------------------------------- numbers
def number(cell):
    """Return the last number of a cell, of "a → b" that is b; None if it has none."""
    found = re.findall(r"-?\d+\.?\d*", re.sub(r"[\[(].*", "", cell.split(ARROW)[-1]))
    return float(found[-1]) if found else None


def column(table, title):
    """Return the numbers of a column by the first cell of each row."""
    at = table.header.index(title)
    return {row[0]: number(row[at]) for row in table.rows}


def spread(values, digits=2):
    """Return the smallest and the largest number as text."""
    return [f"{f(values):.{digits}f}" for f in (min, max)]


def first_page(row):
    """Return a function of nothing that returns the numbers of a row."""

    def found():
        (table,) = read("first_page")
        (cells,) = [cells for cells in table.rows if cells[0] == row]
        return cells[1:]

    return found


def boards():
    """Return our LDS with 16 runs, their ratio to the best peer's, and the peers'."""
    ours, peers = [], []
    for name in BOARDS:
        rows = json.loads(MEASURED.joinpath(f"leaderboard_{name}.json").read_text())
        known = [row for row in rows["rows"] if row.get("lds")]
        ours += [
            row["lds"][0] for row in known if row["method"] == "skattrib AdamWInfluence"
        ]
        peers.append(max(r["lds"][0] for r in known if r["kind"] not in OWN))
    ratios = [mine / best for mine, best in zip(ours, peers, strict=True)]
    return *spread(ours), *spread(ratios, 1), *spread(peers)


# Rows of the leaderboard that are no other package's.
OWN = "skattrib", "baseline"


def equal_budgets():
    """Return LDS of 16 runs, of the best peer with up to 50 networks, and the ratio."""
    (table,) = read("equal_budgets")
    at, ours, peers = table.header.index("LDS of halves"), {}, {}
    for cells in table.rows:
        name, method, lds = cells[0], cells[1], number(cells[at])
        if method == "skattrib AdamWInfluence, 16 runs":
            ours[name] = lds
        elif not method.startswith("skattrib") and lds is not None:
            peers[name] = max(lds, peers.get(name, -1.0))
    ratios = [ours[name] / peers[name] for name in ours]
    return *spread(peers.values()), len(ours), *spread(ratios, 1)


def coverage():
    """Return shares of effects in their intervals, and slopes, over data sets."""
    sets = read("posterior_coverage")[0]
    inside, slopes = (
        [value for key, value in column(sets, title).items() if key != "mean"]
        for title in ("95 %", "slope")
    )
    percent = [f"{100 * float(value):.0f}" for value in spread(inside, 3)]
    return *percent, *spread(slopes)


def deep():
    """Return in how many settings of how many ours ranks best."""
    (board,) = read("deep_board")
    ours, last = (board.header.index(name) for name in ("chosen", "DualInfluence"))
    first = 0
    for row in board.rows:  # peers are behind what is ours
        best = max(number(cell) or -1 for cell in row[last + 1 :])
        first += number(row[ours]) > best
    return first, len(board.rows)


def of_adapters(row):
    """Whether a row is of the small language model, fine-tuned by adapters."""
    return row[0].startswith("small") and "all weights" not in row[0]


def texts(method):
    """Return the range of LDS of a method on the small language model."""

    def found():
        (table,) = read("fine_tuning")
        return spread(
            [
                number(row[table.header.index("LDS")])
                for row in table.rows
                if of_adapters(row) and row[1].startswith(method)
            ]
        )

    return found


def dual_of_texts():
    """Return the range of LDS of the tangent, and that of its cost in trainings."""
    (table,) = read("fine_tuning")
    name = "DualInfluence"
    rows = [r for r in table.rows if of_adapters(r) and r[1] == name]
    costs = [number(row[-1]) for row in rows]
    return *texts(name)(), *spread(costs, 1)


def other_packages():
    """Return the range, over settings, of LDS of the best of them at its best."""
    (table,) = read("fine_tuning")
    best = {}
    for setting, method, _, lds, *_ in table.rows:
        if method.startswith(("kronfluence", "bergson", "dattri-llm")):
            best[setting] = max(best.get(setting, -1.0), number(lds) or -1.0)
    return spread(best.values())


CLAIMS = [
    Claim(
        "| `LogisticRegression(tol=1e-8)` | `DualInfluence` | {} | {} |",
        first_page("LogisticRegression(tol=1e-8), DualInfluence"),
        "ranking.first_page",
    ),
    Claim(
        "| the same at scikit-learn's tolerance | | {} | {} |",
        first_page("the same at the default tol"),
        "ranking.first_page",
    ),
    Claim(
        "| `TorchClassifier`, 16 hidden units | `AdamWInfluence(n_halves=0)` | {} | {} "
        "|",
        first_page("TorchClassifier of 16 units, AdamWInfluence, 16 runs"),
        "ranking.first_page",
    ),
    Claim(
        '| the same | `DualInfluence(removal="influence")` | {} | {} |',
        first_page("the same, DualInfluence(removal='influence')"),
        "ranking.first_page",
    ),
    Claim(
        "| `HistGradientBoostingClassifier` | `TreeInfluence` | {} | {} |",
        first_page("the same, TreeInfluence"),
        "ranking.first_page",
    ),
    Claim(
        "| the same | `TreeInfluence(n_halves=0)` | {} | {} |",
        first_page("the same, TreeInfluence(n_halves=0)"),
        "ranking.first_page",
    ),
    Claim(
        "| the same | `KernelSurrogateAttributor` | {} | {} |",
        first_page("HistGradientBoosting, KernelSurrogateAttributor"),
        "ranking.first_page",
    ),
    Claim(
        "on six data sets 16 runs score {} to {} over one layer of ReLUs, {} to {} "
        "times the best of six other packages, tuned on the same retrained networks "
        "({} to {};",
        boards,
        "leaderboard",
    ),
    Claim(
        "With sixteen trained networks for each of them too, and fifty for TRAK, their "
        "best has {} to {} on these {}, and 16 runs are {} to {} times as good",
        equal_budgets,
        "leaderboard.equal",
    ),
    Claim(
        "64 are enough for 95 % intervals to hold {} to {} % of the true effects, and "
        "for slopes of {} to {}",
        coverage,
        "posterior.coverage",
    ),
    Claim(
        "In {} of {} settings of deeper networks, with dropout or normalisation too, "
        "what it makes of runs that disagree ranks better than each of its peers at "
        "its best",
        deep,
        "deep.board",
    ),
    Claim(
        "Of a small language model fine-tuned by adapters one differentiated run "
        "ranks repeated fine-tunings at {} to {},",
        texts("AdamWInfluence, one run on all"),
        "language.fine_tuning",
    ),
    Claim(
        "`DualInfluence` at {} to {} in the time of {} to {} trainings,",
        dual_of_texts,
        "language.fine_tuning",
    ),
    Claim(
        "similarities of gradients at {} to {}",
        texts("gradients"),
        "language.fine_tuning",
    ),
    Claim(
        "the best of three other packages at its best has {} to {}",
        other_packages,
        "language.peers",
    ),
]


# -------------------------------------------------------------------------- record
def versions():
    """Return what a benchmark's numbers may depend on."""
    return {
        "skattrib": skattrib.__version__,
        "scikit-learn": sklearn.__version__,
        "torch": torch.__version__,
    }


def recorded():
    """Return what is known of each benchmark's last run."""
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def tables(module):
    """Return a digest of what a benchmark has written."""
    digest = hashlib.sha256()
    for name in FILES[module]:
        digest.update(MEASURED.joinpath(name).read_bytes())
    return digest.hexdigest()[:16]


def rows(module):
    """Return all rows of what a benchmark has written, as text."""
    found = set()
    for name in FILES[module]:
        if name.endswith(".json"):
            kept = json.loads(MEASURED.joinpath(name).read_text())["rows"]
            found |= {f"{name} {json.dumps(row)}" for row in kept}
        else:
            for table in read(name.removesuffix(".inc")):
                found |= {f"{name} {row}" for row in table.rows}
    return found


def note_changes():
    """Note today for tables that are others than those that are known, run by hand."""
    known = recorded()
    for module in FILES:
        old = known.get(module, {})
        if old.get("tables") != tables(module):
            # with the versions of a run goes that it was one
            spent = {k: old[k] for k in ("minutes", "rows") if k in old}
            known[module] = {"date": f"{date.today()}", "tables": tables(module)}
            known[module] |= spent
    put(RECORD, json.dumps(known, indent=1) + "\n")


def note_run(module, before, minutes, whole):
    """Note a run, or a piece of one, that took so long; ``before`` it had these rows.

    Without versions where it was not ``whole``, so that it is run again.
    """
    after, old = rows(module), recorded().get(module, {})
    # of the rows that were kept, an earlier piece has told
    n_rows, kept = len(after - before), before & after
    if kept and "minutes" in old:
        minutes, n_rows = minutes + old["minutes"], n_rows + old["rows"]
    note = {"date": f"{date.today()}", "minutes": round(minutes, 1)}
    note["rows"] = min(n_rows, len(after))
    note |= {"versions": versions()} if whole else {}
    note["tables"] = tables(module)
    put(RECORD, json.dumps({**recorded(), module: note}, indent=1) + "\n")
    put(PAGE, page())


def put(path, text):
    """Write a file beside, and then in the place of the old one."""
    new = path.with_suffix(f"{path.suffix}.part")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def written(name):
    """Return when a file was written."""
    return MEASURED.joinpath(name).stat().st_mtime


def run(names):
    """Run benchmarks; note when, how long and with which versions."""
    known, now = recorded(), versions()
    modules = dict.fromkeys(claim.module for claim in CLAIMS)
    wanted = names or [m for m in modules if known.get(m, {}).get("versions") != now]
    for number_of, module in enumerate(wanted, 1):
        print(f"{number_of} of {len(wanted)}: benchmarks.{module}", flush=True)
        begun, started, before = time.monotonic(), time.time(), rows(module)
        command, done = [sys.executable, "-m", f"benchmarks.{module}"], None
        try:
            done = subprocess.run(command, check=False)
        finally:  # what was measured before it was killed is kept, too
            whole = done is not None and not done.returncode
            if any(written(name) >= started for name in FILES[module]):
                note_run(module, before, (time.monotonic() - begun) / 60, whole)
            elif whole:
                print(
                    f"benchmarks.{module} had nothing to measure: its tables are whole"
                )
        if not whole:
            print(f"benchmarks.{module} failed: {done.returncode}", flush=True)


# ---------------------------------------------------------------------------- page
HEAD = """\
Evidence
========

.. currentmodule:: skattrib

What the README claims, with the benchmark that printed it, the day on which its table
was last written, and the minutes that its rows took on two cores, as far as they were
noted; *more than* adds up the seconds in the table, which leave out the truth. The
numbers of this page, and those of the README, are read from the tables under
:doc:`measurements` by ``make evidence``, which runs what was not run with the installed
versions first. :doc:`reproduced` has what did not come out as published.

"""


def as_text(claim):
    """Return a sentence, or a row of LDS and seconds, as the page has it."""
    if claim.startswith("|"):
        *what, lds, seconds = (
            cell.strip() for cell in claim.split("|") if cell.strip()
        )
        claim = f"{', '.join(what)}: LDS {lds}, {seconds} CPU s"
    claim = claim.rstrip(",;") + ")" * (claim.count("(") - claim.count(")"))
    return claim.replace("`", "``")


def least(module):
    """Return minutes that rows name themselves, as CPU s; None if they do not."""
    found = []
    for name in FILES[module]:
        for table in read(name.removesuffix(".inc")) if name.endswith(".inc") else ():
            if "CPU s" in table.header:
                at = table.header.index("CPU s")
                found += [number(row[at]) for row in table.rows]
    seconds = [value for value in found if value is not None]
    return sum(seconds) / 60 if seconds else None


def spent(module, note):
    """Return a cell: minutes, and of how many rows if not of all."""
    if "minutes" not in note:
        known = least(module)
        return "" if known is None else f"more than {known:.0f}"
    n_rows = len(rows(module))
    part = f" ({note['rows']} of {n_rows} rows)" if note["rows"] < n_rows else ""
    return f"{note['minutes']}{part}"


def page():
    """Return the text of the page."""
    known = recorded()
    table = Table("", ["claim", "printed by", "on", "minutes"])
    for claim in CLAIMS:
        note = known.get(claim.module, {})
        table.add(
            as_text(str(claim)),
            f"``benchmarks.{claim.module}``",
            note.get("date", ""),
            spent(claim.module, note),
            quiet=True,
        )
    return f"{HEAD}{table}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", nargs="*", metavar="NAME")
    names = parser.parse_args().run
    if names is not None:
        run(names)
    note_changes()
    put(PAGE, page())


if __name__ == "__main__":
    main()
