"""removal_curve: additive outcomes have closed forms; one retraining call in all."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skattrib.evaluation import removal_curve

EFFECTS = np.array([2.0, 5.0, 1.0, 4.0, 3.0, 0.0, 7.0, 6.0, 9.0, 8.0])


def additive(weights):
    return weights @ EFFECTS


def test_curves_of_an_additive_outcome():
    curve = removal_curve(additive, EFFECTS, fractions=(0.1, 0.3), random_state=0)
    assert_array_equal(curve.fractions, [0.1, 0.3])
    assert curve.full_outcome == 45
    assert_array_equal(curve.outcome, [45 - 9, 45 - 9 - 8 - 7])
    assert_array_equal(curve.outcome_bottom, [45, 45 - 0 - 1 - 2])
    assert set(curve) == {
        "area",
        "fractions",
        "full_outcome",
        "outcome",
        "outcome_bottom",
        "random_mean",
        "random_std",
    }


def test_random_band():
    curve = removal_curve(
        additive, EFFECTS, fractions=(0.2, 0.5), n_random=2000, random_state=0
    )
    # Sums of 8 and 5 of the 10 effects 0..9, drawn without replacement.
    std = np.sqrt([variance_of_sum(8), variance_of_sum(5)])
    assert_allclose(curve.random_mean, [36, 22.5], atol=6 * std.max() / np.sqrt(2000))
    assert_allclose(curve.random_std, std, rtol=0.1)


def variance_of_sum(n_kept):
    """Of n_kept of 0..9 without replacement: n * s^2 * (1 - n / 10)."""
    return n_kept * np.var(EFFECTS, ddof=1) * (1 - n_kept / 10)


def test_std_of_two_random_orders():
    outcomes = np.array([9.0, 5.0, 6.0, 1.0, 4.0])
    curve = removal_curve(
        lambda weights: outcomes, EFFECTS, fractions=[0.5], n_random=2, random_state=0
    )
    assert_allclose(curve.random_mean, [2.5])
    assert_allclose(curve.random_std, [3 / np.sqrt(2)])
    assert_array_equal(curve.outcome, [5.0])
    assert_array_equal(curve.outcome_bottom, [6.0])


def test_area_is_the_mean_gap():
    curve = removal_curve(additive, EFFECTS, fractions=(0.1, 0.3), random_state=0)
    gap = curve.random_mean - curve.outcome
    by_hand = (0.1 * gap[0] / 2 + 0.2 * (gap[0] + gap[1]) / 2) / 0.3
    assert curve.area == pytest.approx(by_hand, rel=1e-12)


def test_area_has_the_sign_of_the_attributions():
    right, wrong = (
        removal_curve(additive, sign * EFFECTS, random_state=0) for sign in (1, -1)
    )
    assert right.area > 0 > wrong.area
    assert_array_equal(right.outcome, wrong.outcome_bottom)
    assert_array_equal(right.outcome_bottom, wrong.outcome)


def test_one_call_with_nested_removals():
    calls = []

    def outcome_of(weights):
        calls.append(weights)
        return weights.sum(axis=1)

    removal_curve(outcome_of, EFFECTS, fractions=(0.2, 0.4), n_random=3, random_state=0)
    (weights,) = calls
    assert weights.shape == (1 + 2 * (2 + 3), 10)
    assert weights.dtype == np.float64
    assert_array_equal(weights[0], np.ones(10))
    assert_array_equal(weights[1:].sum(axis=1), [8, 6] * 5)
    assert (weights[2::2] <= weights[1::2]).all()


def test_queries_are_averaged():
    twice, once = (
        removal_curve(outcome_of, EFFECTS, random_state=0)
        for outcome_of in (
            lambda weights: additive(weights)[:, None] * [0.5, 1.5],
            additive,
        )
    )
    for name in twice:
        assert_allclose(twice[name], once[name], rtol=1e-14)


def test_fractions_that_round_alike_are_merged():
    curve = removal_curve(
        additive, EFFECTS, fractions=(0.32, 0.01, 0.28, 0.11, 0.99), random_state=0
    )
    assert_array_equal(curve.fractions, [0.1, 0.3])


def test_ties_are_broken_at_random():
    first = {
        removal_curve(
            additive, np.zeros(10), fractions=[0.1], random_state=seed
        ).outcome[0]
        for seed in range(10)
    }
    assert len(first) > 2


def test_reproducible():
    first, again, other = (
        removal_curve(additive, EFFECTS, random_state=seed) for seed in (0, 0, 1)
    )
    assert_array_equal(first.random_mean, again.random_mean)
    assert (first.random_mean != other.random_mean).any()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"outcome_of": 3}, "'outcome_of' parameter"),
        ({"attributions": np.ones((2, 3))}, r"attributions has shape \(2, 3\).*mean"),
        ({"attributions": [1.0, np.nan]}, "attributions contains NaN"),
        ({"fractions": [0.5, 1.0]}, "fractions=.*between 0 and 1"),
        ({"fractions": [0.0]}, "fractions=.*between 0 and 1"),
        ({"fractions": [0.01]}, "fractions=.* of 10 units round to none.*0.1"),
        ({"fractions": [0.99]}, "fractions=.* of 10 units round to none or all"),
        ({"n_random": 1}, "'n_random' parameter"),
        ({"outcome_of": lambda w: w[:3]}, r"outcome_of returned shape \(3, 10\)"),
        ({"outcome_of": lambda w: w[..., None]}, "dim 3"),
        ({"outcome_of": lambda w: w[:, 0] * np.nan}, "outcomes contains NaN"),
    ],
)
def test_errors(kwargs, message):
    kwargs = {"outcome_of": additive, "attributions": EFFECTS, **kwargs}
    with pytest.raises(ValueError, match=message):
        removal_curve(**kwargs, random_state=0)
