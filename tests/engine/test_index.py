"""An index on disk: what is appended is there, what a kill left is not."""

import json
import multiprocessing
import os
import pickle
import shutil
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from skattrib.engine import _index
from skattrib.engine._index import Header, SignatureIndex
from skattrib.exceptions import IndexMismatchError
from tests.cases import randn

WIDTHS = {"rh/0": 5, "h/0": 3}
ROWS = ["signatures.bin", "norms.bin", "checksums.bin"]


def tables():
    return {"0:h": (torch.arange(4, dtype=torch.int32)[None], torch.ones(1, 4).char())}


def rows(n, seed=0):
    return {
        name: 3 * randn(n, width, seed=seed + i)
        for i, (name, width) in enumerate(WIDTHS.items())
    }


def header(**options):
    return Header(
        **{"widths": WIDTHS, "settings": {"top_k": 3}, "source": "abc", **options}
    )


def empty(path=None, **options):
    return SignatureIndex.create(path, header(**options), tables())


def contents(index):
    whole = slice(0, len(index))
    return np.hstack(list(index.channels(whole).values())), np.array(index.norms)


# ------------------------------------------------------------------- round trip
@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_rows_are_unit_vectors_and_their_norms(on_disk, dtype, tmp_path):
    index = empty(tmp_path / "index" if on_disk else None, dtype=dtype)
    assert len(index) == 0
    index = index.append(rows(4)).append(rows(3, seed=9), complete=True)
    assert len(index) == 7
    assert index.header.complete
    expected = {k: torch.cat([rows(4)[k], rows(3, seed=9)[k]]) for k in WIDTHS}
    tolerance = {"float16": 1e-3, "float32": 1e-6, "float64": 1e-12}[dtype]
    for i, (name, value) in enumerate(expected.items()):
        norms = value.norm(dim=1)
        assert_allclose(index.norms[:, i], norms, rtol=1e-6)
        found = index.channels(slice(0, 7))[name]
        assert found.dtype == dtype
        assert_allclose(found, value / norms[:, None], atol=tolerance)
    assert_allclose(index.channels(slice(2, 5))["h/0"], found[2:5])


def test_what_was_written_is_read(tmp_path):
    index = empty(tmp_path / "index").append(rows(4), complete=True)
    again = SignatureIndex.open(str(tmp_path / "index"))
    assert again.header == index.header
    for mine, theirs in zip(contents(index), contents(again), strict=True):
        assert_array_equal(mine, theirs)
    (indices, signs), (mine, own) = again.tables["0:h"], tables()["0:h"]
    assert_array_equal(indices, mine)
    assert_array_equal(signs, own)
    memory = empty().append(rows(4))
    assert_array_equal(contents(memory)[0], contents(index)[0])
    assert sorted(os.listdir(tmp_path)) == ["index"]


def test_rows_of_nothing_stay_nothing():
    index = empty().append({k: torch.zeros(2, w) for k, w in WIDTHS.items()})
    assert not contents(index)[0].any()
    assert not index.norms.any()


# ------------------------------------------------------------------------ faults
def test_a_kill_between_rows_and_count_loses_only_these_rows(tmp_path, monkeypatch):
    index = empty(tmp_path / "index").append(rows(4))
    before = contents(index)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_index, "write_header", killed)
        with pytest.raises(KeyboardInterrupt):
            index.append(rows(2, seed=5))
    again = SignatureIndex.open(tmp_path / "index")
    assert len(again) == 4
    for mine, theirs in zip(before, contents(again), strict=True):
        assert_array_equal(mine, theirs)
    # the next writer goes over what was left behind
    again = again.append(rows(3, seed=9))
    expected = empty().append(rows(4)).append(rows(3, seed=9))
    assert_array_equal(contents(again)[0], contents(expected)[0])
    size = (tmp_path / "index" / "signatures.bin").stat().st_size
    assert size == 7 * 8 * 2


def test_a_kill_while_it_is_made_leaves_nothing_by_its_name(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            empty(tmp_path / "index")
    assert os.listdir(tmp_path) == []
    assert len(empty(tmp_path / "index")) == 0
    with pytest.raises(FileExistsError):
        empty(tmp_path / "index")


def _append_for_ever(path, started):
    index = SignatureIndex.open(path)
    started.set()
    while True:
        n = len(index)
        index = index.append(
            {k: torch.full((3, w), 1.0 + n) for k, w in WIDTHS.items()}
        )


def test_killed_writers_leave_whole_appends(tmp_path):
    path = tmp_path / "index"
    empty(path)
    context = multiprocessing.get_context("fork")
    for delay in (0.0, 0.003, 0.011, 0.02, 0.037):
        started = context.Event()
        process = context.Process(target=_append_for_ever, args=(path, started))
        process.start()
        started.wait(10)
        if len(SignatureIndex.open(path)):
            time.sleep(delay)
        else:  # however busy the machine is, a first append is made
            deadline = time.monotonic() + 10
            while not len(SignatureIndex.open(path)) and time.monotonic() < deadline:
                time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        index = SignatureIndex.open(path)
        assert len(index) % 3 == 0
        # each append says how many rows there were
        begun = np.repeat(np.arange(0, len(index), 3), 3)
        assert_allclose(index.norms[:, 0], 5**0.5 * (1.0 + begun))
    assert len(index) > 0


def test_two_writers(tmp_path):
    path = tmp_path / "index"
    one, other = empty(path), SignatureIndex.open(path)
    with _index.locked(path):
        with pytest.raises(BlockingIOError, match="written by another process"):
            one.append(rows(1))
    one.append(rows(2))
    with pytest.raises(IndexMismatchError, match="has 2 rows on disk"):
        other.append(rows(1))
    assert len(SignatureIndex.open(path)) == 2


def test_a_full_disk_leaves_the_index_as_it_was(tmp_path, monkeypatch):
    index = empty(tmp_path / "index").append(rows(4))
    before = contents(index)

    def full(*_):
        raise OSError(28, "No space left on device")

    for name in ("append_rows", "write_header"):
        with monkeypatch.context() as patch:
            patch.setattr(_index, name, full)
            with pytest.raises(OSError, match="No space left"):
                index.append(rows(1))
        again = SignatureIndex.open(tmp_path / "index")
        for mine, theirs in zip(before, contents(again), strict=True):
            assert_array_equal(mine, theirs)


def test_an_index_made_again_is_another_one(tmp_path):
    one = empty(tmp_path / "index").append(rows(4))
    pickled = pickle.dumps(one)
    shutil.rmtree(tmp_path / "index")
    empty(tmp_path / "index").append(rows(4))
    with pytest.raises(IndexMismatchError, match="has been replaced"):
        one.append(rows(1))
    with pytest.raises(IndexMismatchError, match="no longer the one"):
        pickle.loads(pickled)


def test_tiny_vectors_have_norms_too():
    values = {k: 1e-30 * v.float() for k, v in rows(3).items()}
    index = empty().append(values)
    assert_allclose(
        np.linalg.norm(index.channels(slice(0, 3))["rh/0"].astype(float), axis=1),
        1,
        atol=2e-3,
    )
    assert_allclose(index.norms[:, 0], values["rh/0"].double().norm(dim=1), rtol=1e-5)


def test_readers_see_what_they_opened(tmp_path):
    index = empty(tmp_path / "index").append(rows(4))
    reader = SignatureIndex.open(tmp_path / "index")
    before = contents(reader)
    index.append(rows(50, seed=2))
    assert len(reader) == 4
    assert_array_equal(contents(reader)[0], before[0])


# --------------------------------------------------------------------- checksums
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("width", [4, 5, 6])
def test_a_flipped_bit_is_noticed_when_its_row_is_read(name, width, tmp_path):
    path = tmp_path / "index"
    index = SignatureIndex.create(path, header(widths={"rh/0": width}), tables())
    index = index.append({"rh/0": randn(4, width)})
    sound = (path / name).read_bytes()
    per_row = len(sound) // 4
    for at in range(len(sound)):
        spoilt = bytearray(sound)
        spoilt[at] ^= 1 << at % 8
        (path / name).write_bytes(spoilt)
        again, row = SignatureIndex.open(path), at // per_row
        changed = f"1 rows have changed .* row {row}\\."
        with pytest.raises(IndexMismatchError, match=changed):
            again.channels(slice(0, 4))
        others = slice(1, 4) if row == 0 else slice(0, row)
        assert_array_equal(again.signatures(others), index.signatures(others))


def test_an_index_without_checksums_is_read_and_added_to(tmp_path):
    path = tmp_path / "index"
    index = empty(path).append(rows(4))
    (path / "checksums.bin").unlink()  # as older versions left it
    again = SignatureIndex.open(path).append(rows(3, seed=9))
    assert not (path / "checksums.bin").exists()
    expected = empty().append(rows(4)).append(rows(3, seed=9))
    assert_array_equal(contents(again)[0], contents(expected)[0])
    assert_array_equal(contents(again.first(4))[0], contents(index)[0])


# --------------------------------------------------------------------- strangers
def _edit(path, **changes):
    found = json.loads((path / "header.json").read_text())
    found.update(changes)
    (path / "header.json").write_text(json.dumps(found))


def _cut(path, name, n):
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[:-n])


DAMAGES = {
    "another version": (lambda p: _edit(p, version=99), "version 99.*build it again"),
    "an older version": (lambda p: _edit(p, version=0), "version 0.*build it again"),
    "no version": (lambda p: _edit(p, version="1"), "has no version"),
    "more rows than bytes": (lambda p: _edit(p, n_rows=10**9), "of 16000000000 bytes"),
    "negative rows": (lambda p: _edit(p, n_rows=-1), "impossible sizes"),
    "no id": (lambda p: _edit(p, id=3), "wrong fields"),
    "rows are no number": (lambda p: _edit(p, n_rows=True), "wrong fields"),
    "no widths": (lambda p: _edit(p, widths={}), "impossible sizes"),
    "wide": (lambda p: _edit(p, widths={"rh/0": 2**40}), "impossible sizes"),
    "dtype": (lambda p: _edit(p, dtype="O"), "impossible sizes"),
    "another field": (lambda p: _edit(p, code="import os"), "wrong fields"),
    "header is no JSON": (
        lambda p: (p / "header.json").write_bytes(b"\x80\x04K\x01."),
        r"is damaged: header\.json",
    ),
    "header is a list": (lambda p: (p / "header.json").write_text("[]"), "no version"),
    "no header": (lambda p: (p / "header.json").unlink(), "header.json is missing"),
    "no tables": (lambda p: (p / "tables.safetensors").unlink(), "tables.safetensors"),
    "cut tables": (lambda p: _cut(p, "tables.safetensors", 3), "tables.safetensors"),
    "cut rows": (lambda p: _cut(p, "signatures.bin", 1), "signatures.bin has"),
    "cut norms": (lambda p: _cut(p, "norms.bin", 1), "norms.bin has"),
    "cut sums": (lambda p: _cut(p, "checksums.bin", 1), "checksums.bin has"),
    "no rows": (lambda p: (p / "signatures.bin").unlink(), "signatures.bin"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=list(DAMAGES))
def test_damaged_indexes_are_refused(damage, message, tmp_path):
    path = tmp_path / "index"
    empty(path).append(rows(4))
    damage(path)
    with pytest.raises(IndexMismatchError, match=message):
        SignatureIndex.open(path)


def test_nothing_there(tmp_path):
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(IndexMismatchError, match=r"header\.json is missing"):
            SignatureIndex.open(path)


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_flipped_and_cut_files_are_refused_or_harmless(tmp_path, data):
    """Whatever is done to a file, opening reads it, or raises the one error."""
    path = tmp_path / "fuzzed"
    shutil.rmtree(path, ignore_errors=True)
    index = empty(path).append(rows(4), complete=True)
    name = data.draw(st.sampled_from(["header.json", "tables.safetensors", *ROWS]))
    content = bytearray((path / name).read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(content) - 1))
            content[at] = data.draw(st.integers(0, 255))
    (path / name).write_bytes(content)
    try:
        again = SignatureIndex.open(path)
        values, norms = contents(again)
    except IndexMismatchError:
        return
    assert values.shape == (len(again), again.header.width)
    assert norms.shape == (len(again), len(again.header.widths))
    if name in ROWS:
        assert again.header == replace(index.header)
