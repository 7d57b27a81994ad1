"""Disks that are full or read-only, and two writers: what was there stays."""

import importlib
import os
import resource
import warnings

import numpy as np
import pytest
from joblib.memory import CacheWarning
from numpy.testing import assert_allclose, assert_array_equal

from skattrib.engine._index import SignatureIndex
from skattrib.engine._trajectory import Trajectory
from tests.engine.test_trajectory import recorded
from tests.faults.jobs import JOBS
from tests.faults.processes import call, start, without_privileges


def files(folder):
    """The files of a folder and what they hold."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in found}


def read_only(folder):
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)


def outcome(job, folder):
    """Do a job; return its result or its error, and what it warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = JOBS[job](folder)
        except OSError as error:
            found = f"{type(error).__name__}: {error}"
    return found, [str(w.message) for w in caught if w.category is CacheWarning]


def on_a_full_disk(job, folder, n_bytes):
    # before torch 2.7 its first import writes a file
    importlib.import_module("torch._dynamo")

    # the kernel refuses what would make a file longer, as it does on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
    return outcome(job, folder)


def on_a_read_only_disk(job, folder):
    without_privileges()
    return outcome(job, folder)


# -------------------------------------------------------------------- full disk
@pytest.mark.slow
@pytest.mark.parametrize("job", ["truth", "runs"])
def test_a_full_disk_costs_no_results(job, tmp_path):
    """What cannot be kept is returned all the same; a warning says so."""
    (tmp_path / "whole").mkdir()
    expected = JOBS[job](tmp_path / "whole")
    whole = files(tmp_path / "whole")
    entries = sorted(path for path in whole if path.name == "output.pkl")
    for path in entries[::2]:
        (tmp_path / "whole" / path).unlink()
    left = {path: whole[path] for path in entries[1::2]}
    found, said = call(on_a_full_disk, job, tmp_path / "whole", 100)
    assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert said
    assert "File too large" in said[0]
    after = files(tmp_path / "whole")
    assert {path: after[path] for path in after if path in left} == left
    assert not any(path.name == "output.pkl" and path not in left for path in after)
    found, said = outcome(job, tmp_path / "whole")
    assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert not said


@pytest.mark.parametrize("n_bytes", [50, 5_000, 30_000])
@pytest.mark.parametrize("job", ["index", "append"])
def test_an_index_on_a_full_disk_keeps_its_rows(job, n_bytes, tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "part").mkdir()
    expected = JOBS[job](tmp_path / "whole")
    found, _ = call(on_a_full_disk, job, tmp_path / "part", n_bytes)
    assert isinstance(found, str)
    path = tmp_path / "part" / "index"
    if n_bytes > 50:
        assert str(path) in found
        whole = SignatureIndex.open(tmp_path / "whole" / "index")
        part = SignatureIndex.open(path)
        assert f"the index still has {len(part)} rows. Once it" in found
        assert len(part) < len(whole)
        assert_array_equal(part.norms, whole.norms[: len(part)])
    else:
        assert f"index={str(path)!r} cannot be created, and no files remain" in found
        assert not list((tmp_path / "part").iterdir())
    assert_array_equal(JOBS[job](tmp_path / "part"), expected)


def save_other(path):
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
    _, X, y = recorded()
    try:
        recorded("sgd")[0].save(path, X, y)
    except OSError as error:
        return str(error)


def test_a_record_on_a_full_disk_is_the_old_one(tmp_path):
    trajectory, X, y = recorded()
    path = tmp_path / "run"
    trajectory.save(path, X, y)
    before = files(tmp_path)
    assert "cannot be written" in call(save_other, path)
    assert files(tmp_path) == before
    Trajectory.load(path, X, y)


# -------------------------------------------------------------------- read-only
@pytest.mark.parametrize("job", JOBS)
def test_what_is_read_only_is_read(job, tmp_path):
    folder = tmp_path / "whole"
    folder.mkdir()
    expected = JOBS[job](folder)
    before = files(folder)
    read_only(folder)
    found, said = call(on_a_read_only_disk, job, folder)
    assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert not said
    assert files(folder) == before


@pytest.mark.parametrize("job", ["truth", "runs"])
def test_a_read_only_memory_takes_nothing_new(job, tmp_path):
    folder = tmp_path / "whole"
    folder.mkdir()
    expected = JOBS[job](folder)
    for path in sorted(folder.rglob("output.pkl"))[::2]:
        path.unlink()
    before = files(folder)
    read_only(folder)
    found, said = call(on_a_read_only_disk, job, folder)
    assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert said
    assert "Permission denied" in said[0]
    assert files(folder) == before


@pytest.mark.parametrize("job", JOBS)
def test_nothing_is_made_in_a_read_only_folder(job, tmp_path):
    folder = tmp_path / "whole"
    folder.mkdir()
    read_only(folder)
    found, _ = call(on_a_read_only_disk, job, folder)
    assert isinstance(found, str)
    assert found.startswith("PermissionError")
    assert str(folder) in found
    assert os.listdir(folder) == []


@pytest.mark.parametrize("job", ["index", "append"])
def test_nothing_is_added_to_a_read_only_index(job, tmp_path):
    folder = tmp_path / "whole"
    folder.mkdir()
    call(on_a_full_disk, job, folder, 30_000)  # stops on the way
    before = files(folder)
    read_only(folder)
    found, _ = call(on_a_read_only_disk, job, folder)
    assert isinstance(found, str)
    assert found.startswith("PermissionError")
    assert str(folder / "index") in found
    assert files(folder) == before


# ------------------------------------------------------------------ two writers
@pytest.mark.parametrize("job", JOBS)
def test_two_processes_at_once(job, tmp_path):
    """Both have the numbers, or one is told that another is writing."""
    (tmp_path / "alone").mkdir()
    expected = JOBS[job](tmp_path / "alone")
    folder = tmp_path / "both"
    folder.mkdir()
    pairs = [start(outcome, job, folder) for _ in range(2)]
    n_right = 0
    for process, connection in pairs:
        assert connection.poll(60)
        (found, _), error = connection.recv()
        assert error is None
        process.join()
        if isinstance(found, np.ndarray):
            assert_allclose(found, expected, rtol=0, atol=1e-12)
            n_right += 1
        else:
            assert found.startswith(("BlockingIOError", "FileExistsError"))
    assert n_right
    assert_array_equal(JOBS[job](folder), expected)
