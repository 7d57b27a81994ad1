"""SIGKILL at any moment: what is started again ends as if nothing had happened."""

import shutil
import time

import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.faults.jobs import JOBS
from tests.faults.processes import call, killed


def timed(job, folder):
    begin = time.perf_counter()
    JOBS[job](folder)
    return time.perf_counter() - begin


def kill_often(job, n_kills, tmp_path):
    """Kill a job at random moments, and finish it each time."""
    expected = call(JOBS[job], tmp_path)
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    seconds = call(timed, job, tmp_path)
    rng = np.random.RandomState(n_kills)
    n_done = n_tried = 0
    while n_done < n_kills:
        n_tried += 1
        assert n_tried < 4 * n_kills, "it ends before it can be killed"
        # every third time again, on what the last kill left
        if n_done % 3 != 1:
            shutil.rmtree(tmp_path)
            tmp_path.mkdir()
        if not killed(rng.uniform(0, seconds), JOBS[job], tmp_path):
            continue
        n_done += 1
        if n_done % 3 != 1:
            for _ in range(2):  # the second time from what is finished
                assert_allclose(JOBS[job](tmp_path), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("job", JOBS)
def test_three_kills(job, tmp_path):
    kill_often(job, 3, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_twenty_kills(job, tmp_path):
    kill_often(job, 20, tmp_path)
