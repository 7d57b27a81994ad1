"""make_weightings: what each kind promises, and that first rows never change."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from skattrib.evaluation import make_weightings

KINDS = ["fixed", "bernoulli", "antithetic", "uniform"]
LABELS = ["a"] * 2 + ["b"] * 3 + ["c"] * 7


def n_distinct(weightings):
    return np.unique(weightings, axis=0).shape[0]


def kept_per_label(weightings, labels):
    labels = np.asarray(labels)
    return np.stack(
        [weightings[:, labels == label].sum(axis=1) for label in np.unique(labels)],
        axis=1,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stratify", [None, LABELS])
def test_zeros_and_ones_all_distinct(kind, stratify):
    weightings = make_weightings(12, 40, kind=kind, stratify=stratify, random_state=0)
    assert weightings.shape == (40, 12)
    assert weightings.dtype == np.float64
    assert set(np.unique(weightings)) == {0.0, 1.0}
    assert n_distinct(weightings) == 40


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stratify", [None, LABELS])
def test_more_weightings_keep_the_first(kind, stratify):
    few, many = (
        make_weightings(12, n, kind=kind, stratify=stratify, random_state=0)
        for n in (8, 16)
    )
    assert_array_equal(few, many[:8])


@pytest.mark.parametrize(
    ("kind", "n_all"),
    [("fixed", 20), ("bernoulli", 63), ("antithetic", 20), ("uniform", 62)],
)
def test_prefix_holds_up_to_exhaustion(kind, n_all):
    """Also where draws repeat themselves and the rest is listed."""
    everything = make_weightings(6, n_all, kind=kind, random_state=0)
    assert n_distinct(everything) == n_all
    most = make_weightings(6, n_all - 2, kind=kind, random_state=0)
    assert_array_equal(most, everything[: n_all - 2])


@pytest.mark.slow
def test_prefix_where_draws_hardly_differ():
    kwargs = {"size": 0.99, "kind": "bernoulli", "random_state": 0}
    everything = make_weightings(6, 63, **kwargs)
    for n_weightings in range(1, 63):
        few = make_weightings(6, n_weightings, **kwargs)
        assert_array_equal(few, everything[:n_weightings])


def test_prefix_of_random_loo():
    few, many = (make_weightings(12, n, kind="loo", random_state=0) for n in (5, 12))
    assert_array_equal(few, many[:5])


@pytest.mark.parametrize("kind", [*KINDS, "loo"])
def test_reproducible_and_seeded(kind):
    first, again, other = (
        make_weightings(12, 8, kind=kind, random_state=seed) for seed in (0, 0, 1)
    )
    assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize(
    ("size", "n_kept"),
    [(0.5, 5), (0.25, 2), (0.01, 1), (0.99, 9), (3, 3), (np.int64(9), 9)],
)
def test_fixed_keeps_the_same_number(size, n_kept):
    weightings = make_weightings(10, 6, size=size, random_state=0)
    assert_array_equal(weightings.sum(axis=1), np.full(6, n_kept))


@pytest.mark.parametrize("stratify", [None, LABELS])
def test_fixed_keeps_units_equally_often(stratify):
    # Half of 12 is a whole number for labels of 2, not for labels of 3 and 7: the
    # rounding is random so that no unit is favoured. 6 standard errors are allowed.
    rows = np.vstack(
        [
            make_weightings(12, 20, stratify=stratify, random_state=seed)
            for seed in range(100)
        ]
    )
    assert_allclose(rows.mean(axis=0), 0.5, atol=6 * 0.5 / math.sqrt(len(rows)))


def test_fixed_shares_in_proportion():
    kept = kept_per_label(
        make_weightings(12, 100, stratify=LABELS, random_state=0), LABELS
    )
    assert_array_equal(kept.sum(axis=1), np.full(100, 6))
    assert_array_equal(np.unique(kept[:, 0]), [1])
    assert_array_equal(np.unique(kept[:, 1]), [1, 2])
    assert_array_equal(np.unique(kept[:, 2]), [3, 4])


def test_fixed_rounds_any_labels_up():
    labels = np.repeat(range(4), 5)
    kept = kept_per_label(
        make_weightings(20, 200, stratify=labels, random_state=0), labels
    )
    # Two of four labels keep 3, the others 2: all six choices occur.
    assert set(map(tuple, kept)) == {
        tuple(3 if label in up else 2 for label in range(4))
        for up in combinations(range(4), 2)
    }


def test_fixed_keeps_one_of_rare_labels():
    labels = [0] * 18 + [1, 2]
    kept = kept_per_label(
        make_weightings(20, 20, size=0.25, stratify=labels, random_state=0), labels
    )
    assert_array_equal(kept, np.tile([3, 1, 1], (20, 1)))


def test_fixed_one_unit_of_each_label():
    labels = [0, 0, 1, 1]
    weightings = make_weightings(4, 4, size=2, stratify=labels, random_state=0)
    assert_array_equal(kept_per_label(weightings, labels), np.ones((4, 2)))


def test_bernoulli_inclusion_probability():
    weightings = make_weightings(40, 500, size=0.3, kind="bernoulli", random_state=0)
    # 6 standard errors of a mean of 20000 coin flips.
    assert weightings.mean() == pytest.approx(0.3, abs=6 * math.sqrt(0.21 / 20000))
    assert n_distinct(weightings.sum(axis=1)[:, None]) > 1


def test_bernoulli_given_that_no_label_is_emptied():
    """The redrawn label follows the conditional distribution exactly."""
    labels = [0, 0, 0, 1]
    p = 0.2
    rows = np.array(
        [
            make_weightings(
                4, 1, size=p, kind="bernoulli", stratify=labels, random_state=seed
            )[0]
            for seed in range(3000)
        ]
    )
    assert_array_equal(rows[:, 3], np.ones(3000))
    expected = p / (1 - (1 - p) ** 3)
    error = 6 * math.sqrt(expected * (1 - expected) / 3000)
    assert_allclose(rows[:, :3].mean(axis=0), expected, atol=error)


def test_bernoulli_never_drops_everything():
    weightings = make_weightings(30, 30, size=1e-9, kind="bernoulli", random_state=0)
    assert_array_equal(weightings.sum(axis=1), np.ones(30))


@pytest.mark.parametrize("n_units", [2, 7, 8])
def test_antithetic_pairs(n_units):
    n_pairs = min(4, math.comb(n_units, n_units // 2) // 2)
    weightings = make_weightings(
        n_units, 2 * n_pairs, kind="antithetic", random_state=0
    )
    assert_array_equal(weightings[0::2] + weightings[1::2], np.ones((n_pairs, n_units)))
    assert_array_equal(weightings[0::2].sum(axis=1), np.full(n_pairs, n_units // 2))


@pytest.mark.parametrize("size", [4, 5])
def test_antithetic_size_may_be_a_half_as_a_count(size):
    assert_array_equal(
        make_weightings(9, 4, size=size, kind="antithetic", random_state=0),
        make_weightings(9, 4, kind="antithetic", random_state=0),
    )


def test_antithetic_halves_each_label():
    labels = [0] * 2 + [1] * 3 + [2] * 5
    weightings = make_weightings(
        10, 30, kind="antithetic", stratify=labels, random_state=0
    )
    kept = kept_per_label(weightings, labels)
    assert (np.abs(2 * kept - [2, 3, 5]) <= 1).all()
    assert_array_equal(kept.sum(axis=1), np.full(30, 5))


def test_loo_in_order():
    assert_array_equal(make_weightings(5, None, kind="loo"), 1 - np.eye(5))


def test_loo_of_some_units():
    removed = 1 - make_weightings(9, 4, kind="loo", random_state=0)
    assert_array_equal(removed.sum(axis=1), np.ones(4))
    assert removed.sum(axis=0).max() == 1


def brute_force_fixed(n_units, n_kept):
    return {
        tuple(float(unit in kept) for unit in range(n_units))
        for kept in combinations(range(n_units), n_kept)
    }


@pytest.mark.slow
@given(st.integers(2, 8), st.integers(1, 7), st.sampled_from(KINDS), st.integers(0, 99))
def test_all_weightings_that_exist_and_no_more(n_units, n_kept, kind, seed):
    assume(n_kept < n_units)
    if kind == "bernoulli":
        size = 1 - 10.0**-n_kept
        possible = set().union(
            *(brute_force_fixed(n_units, k) for k in range(1, n_units + 1))
        )
    elif kind == "uniform":
        size = 0.5
        possible = set().union(
            *(brute_force_fixed(n_units, k) for k in range(1, n_units))
        )
    elif kind == "antithetic":
        size = 0.5
        possible = brute_force_fixed(n_units, n_units // 2)
        possible |= brute_force_fixed(n_units, n_units - n_units // 2)
    else:
        size = n_kept
        possible = brute_force_fixed(n_units, n_kept)
    kwargs = {"size": size, "kind": kind, "random_state": seed}
    weightings = make_weightings(n_units, len(possible), **kwargs)
    assert set(map(tuple, weightings)) == possible
    with pytest.raises(ValueError, match=f"only {len(possible)} distinct"):
        make_weightings(n_units, len(possible) + 2, **kwargs)


@given(
    st.lists(st.integers(0, 3), min_size=4, max_size=9),
    st.floats(0.05, 0.95),
    st.sampled_from(KINDS),
)
def test_no_label_is_emptied(labels, size, kind):
    labels = np.array(labels)
    counts = np.unique(labels, return_counts=True)[1]
    if kind == "antithetic":
        size = 0.5
        assume(counts.min() > 1 or counts.size == 1)
    if kind == "fixed":
        assume(max(round(size * labels.size), 1) >= counts.size)
    if kind == "uniform":
        assume(counts.size < labels.size)
    weightings = make_weightings(
        labels.size,
        2 if kind == "antithetic" else 1,
        size=size,
        kind=kind,
        stratify=labels,
        random_state=0,
    )
    assert (kept_per_label(weightings, labels) >= 1).all()


@pytest.mark.parametrize(
    ("labels", "kwargs", "n_all"),
    [
        ([0, 0, 1, 1], {"size": 2}, 4),
        ([0, 0, 0, 1, 1, 1], {"size": 3}, 18),
        ([0, 0, 1, 1, 1], {"kind": "bernoulli"}, 21),
        ([0, 0, 1, 1, 1], {"kind": "antithetic"}, 12),
        ([0, 0, 0, 1, 1, 1], {"kind": "antithetic"}, 18),
    ],
)
def test_number_of_stratified_weightings(labels, kwargs, n_all):
    kwargs = {"stratify": labels, "random_state": 0, **kwargs}
    assert n_distinct(make_weightings(len(labels), n_all, **kwargs)) == n_all
    with pytest.raises(ValueError, match=f"only {n_all} distinct"):
        make_weightings(len(labels), n_all + 2, **kwargs)


def test_exhaustion_above_the_listing_limit():
    weightings = make_weightings(30, 30, size=29, random_state=0)
    assert n_distinct(weightings) == 30


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((1, 1), {}, "'n_units' parameter"),
        ((4, 0), {}, "'n_weightings' parameter"),
        ((4, 2), {"size": 0}, "'size' parameter"),
        ((4, 2), {"size": 1.0}, "'size' parameter"),
        ((4, 2), {"kind": "shapley"}, "'kind' parameter"),
        ((4, 2), {"random_state": "0"}, "'random_state' parameter"),
        ((4, None), {}, "n_weightings=None.*kind='fixed'.*kind='loo'"),
        ((4, 2), {"size": 4}, "size=4 keeps every.*at most 3"),
        ((4, 2), {"size": 2, "kind": "bernoulli"}, "size=2 is a count.*size=0.5"),
        ((4, 3), {"kind": "antithetic"}, "n_weightings=3 is odd.*pass 4"),
        ((4, 2), {"kind": "antithetic", "size": 0.3}, "size=0.3 cannot.*size=0.5"),
        ((4, 2), {"kind": "antithetic", "size": 1}, "size=1 cannot.*size=0.5"),
        ((4, 7), {}, "n_weightings=7, but only 6 distinct.*n_units=4, size=0.5"),
        ((4, 8), {"kind": "antithetic"}, "only 6 distinct"),
        ((4, 5), {"kind": "loo"}, "n_weightings=5, but only 4.*pass None"),
        ((4, 2), {"stratify": [0, 1]}, "stratify has 2 labels but n_units=4"),
        (
            (6, 2),
            {"stratify": [0, 0, 1, 1, 2, 2], "size": 0.3},
            "size=0.3 keeps 2 units, but stratify has 3 labels.*size=3 or more",
        ),
        (
            (4, 2),
            {"stratify": [0, 0, 0, 1], "kind": "antithetic"},
            "stratify has 1 label.*unit 3.*merge",
        ),
        (
            (4, None),
            {"stratify": [0, 0, 0, 1], "kind": "loo"},
            "stratify has 1 label.*kind='loo'",
        ),
        (
            (40, 500),
            {"size": 1 - 1e-9, "kind": "bernoulli"},
            "n_weightings=500: after .* nearer 0.5, kind='fixed' or fewer",
        ),
    ],
)
def test_errors(args, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_weightings(*args, **{"random_state": 0, **kwargs})


def test_stratified_message_mentions_the_labels():
    with pytest.raises(ValueError, match=r"only 4 .* and these stratify labels"):
        make_weightings(4, 5, size=2, stratify=list("aabb"), random_state=0)


def test_uniform_weightings_have_all_sizes_equally_often():
    weightings = make_weightings(20, 3800, kind="uniform", random_state=0)
    sizes = np.bincount(weightings.sum(axis=1).astype(int), minlength=21)
    assert sizes[0] == sizes[20] == 0
    # 20 subsets of one unit exist, and 20 without one: drawn until they are used up
    assert sizes[1] == sizes[19] == 20
    assert abs(sizes[3:18] - 217).max() < 6 * 217**0.5


def test_uniform_weightings_of_labels():
    labels = np.arange(9) % 3
    weightings = make_weightings(
        9, 200, kind="uniform", stratify=labels, random_state=0
    )
    assert set(weightings.sum(axis=1)) == set(range(3, 9))
    with pytest.raises(ValueError, match="kind='uniform'"):
        make_weightings(4, 2, kind="uniform", stratify=np.arange(4))
