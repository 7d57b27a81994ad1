"""Resampled ranks and the two-way bootstrap, against the obvious way to do them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import rankdata, spearmanr

from skattrib.evaluation import _ranks


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 3)), min_size=2, max_size=12)
)
def test_ranks_of_repeated_values(pairs):
    values, times = np.array(pairs).T
    ranks = _ranks._resampled_ranks(values.astype(float), times[None].astype(float))
    assert_array_equal(np.repeat(ranks[0], times), rankdata(np.repeat(values, times)))


@pytest.mark.parametrize("block_size", [1, 100, 2**21])
def test_spearman_of_resamples(block_size, monkeypatch):
    monkeypatch.setattr(_ranks, "_BLOCK_SIZE", block_size)
    rng = np.random.default_rng(0)
    outcomes = rng.integers(5, size=(30, 4)).astype(float)
    predicted = outcomes + rng.integers(4, size=(30, 4))
    drawn = rng.integers(30, size=(7, 30))
    times = np.array([np.bincount(rows, minlength=30) for rows in drawn], dtype=float)
    expected = [
        [spearmanr(outcomes[rows, q], predicted[rows, q]).statistic for q in range(4)]
        for rows in drawn
    ]
    actual = _ranks._spearman(outcomes, predicted, times)
    assert_allclose(actual, expected, rtol=1e-12)


def test_resample_with_one_distinct_weighting():
    values = np.array([[1.0], [2.0], [3.0]])
    times = np.array([[3.0, 0.0, 0.0], [2.0, 0.0, 1.0]])
    with np.errstate(all="raise"):
        correlation = _ranks._spearman(values, values, times)
    assert_array_equal(correlation, [[np.nan], [1.0]])


def test_bootstrap_leaves_out_undefined_resamples():
    values = np.array([[1.0], [2.0]])
    means = _ranks._bootstrap(values, values, 200, np.random.RandomState(0))
    # Two weightings: about half of the resamples hold one of them twice.
    assert 60 < means.size < 140
    assert_array_equal(means, np.ones(means.size))
