"""What is not finite stays where it is, and is named."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.frozen import FrozenEstimator
from torch import nn

from skattrib import (
    AdamWInfluence,
    DualInfluence,
    GradientTransformer,
    KernelSurrogateAttributor,
    LinearSurrogateAttributor,
    RISEValuator,
    TorchClassifier,
    TorchRegressor,
)
from skattrib.exceptions import FaithfulnessWarning
from skattrib.influence._aggregation import AGGREGATIONS, aggregate, exploding

# modules of tests are initialised by torch's global generator
pytestmark = pytest.mark.touches_global_rng

RNG = np.random.RandomState(0)
X, y = RNG.randn(40, 8), np.arange(40) % 3
Y_QUERY = np.array([0, 1, 2, 0])
X_QUERY = RNG.randn(4, 8)
BAD = X_QUERY.copy()
BAD[1, 0] = 99
GOOD = [0, 2, 3]
NAMED = r"queries \[1\] are not finite"


class Overflows(nn.Module):
    """A layer that has no finite output for large rows."""

    def __init__(self, n_features, n_outputs, value=torch.nan):
        super().__init__()
        self.layer, self.value = nn.Linear(n_features, n_outputs), value

    def forward(self, X):
        return self.layer(torch.where(X[:, :1] > 50, self.value, X))


def net(kind=TorchClassifier, **options):
    return kind(Overflows, max_epochs=5, random_state=0, **options)


def surrogate(kind):
    return kind(net(), n_subsets=10, n_retrainings=8, random_state=0)


ATTRIBUTORS = {
    "newton": lambda: DualInfluence(net(), n_retrainings=8, random_state=0),
    "influence": lambda: DualInfluence(net(), removal="influence", random_state=0),
    "run": lambda: AdamWInfluence(net(), inclusion=1, random_state=0),
    "runs": lambda: AdamWInfluence(
        net(), n_trajectories=4, n_halves=16, n_retrainings=8, random_state=0
    ),
    "kernel": lambda: surrogate(KernelSurrogateAttributor),
    "linear": lambda: surrogate(LinearSurrogateAttributor),
    "rise": lambda: RISEValuator(net(), n_retrainings=8, random_state=0),
}


def fitted(name):
    return ATTRIBUTORS[name]().fit(X, y, tasks=np.arange(40) % 10)


@pytest.mark.parametrize("name", ATTRIBUTORS)
def test_a_query_that_is_not_finite_spoils_no_other(name):
    attributor = fitted(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FaithfulnessWarning)  # of few runs
        expected = attributor.attribute(X_QUERY, Y_QUERY)
    with pytest.warns(FaithfulnessWarning, match=NAMED) as caught:
        found = attributor.attribute(BAD, Y_QUERY)
    assert caught[0].filename == __file__
    assert np.isnan(found[1]).all()
    assert_allclose(found[GOOD], expected[GOOD], rtol=1e-6, atol=1e-12)
    with pytest.warns(FaithfulnessWarning, match=NAMED):
        alone = attributor.transform(BAD)
    assert_array_equal(np.isfinite(alone).all(axis=1), [True, False, True, True])


@pytest.mark.parametrize("name", sorted({*ATTRIBUTORS} - {"rise"}))
def test_nor_its_predicted_outcomes(name):
    attributor, weights = fitted(name), 1 - np.eye(10)[:3]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FaithfulnessWarning)
        expected = attributor.predict_outcomes(X_QUERY, Y_QUERY, weights)
    with pytest.warns(FaithfulnessWarning, match=NAMED) as caught:
        found = attributor.predict_outcomes(BAD, Y_QUERY, weights)
    assert caught[0].filename == __file__
    assert np.isnan(found[:, 1]).all()
    assert_allclose(found[:, GOOD], expected[:, GOOD], rtol=1e-6)


@pytest.mark.parametrize("name", ["newton", "runs", "kernel", "rise"])
def test_nor_the_score(name):
    attributor = fitted(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FaithfulnessWarning)
        expected = attributor.score(X_QUERY[GOOD], Y_QUERY[GOOD])
    with pytest.warns(FaithfulnessWarning, match=NAMED):
        assert attributor.score(BAD, Y_QUERY) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["newton", "run", "rise"])
def test_nor_the_diagnosis(name):
    with pytest.warns(FaithfulnessWarning, match=NAMED):
        figures = fitted(name).diagnose(BAD, Y_QUERY)
    numbers = [v for v in figures.values() if isinstance(v, float)]
    assert np.isfinite(numbers).all()


def test_all_queries_may_be_bad():
    attributor, bad = fitted("newton"), np.full_like(BAD, 99)
    with pytest.warns(FaithfulnessWarning, match="are not finite"):
        assert np.isnan(attributor.attribute(bad, Y_QUERY)).all()
    with (
        pytest.warns(FaithfulnessWarning, match="are not finite"),
        pytest.raises(ValueError, match="all of these queries are NaN or infinite"),
    ):
        attributor.score(bad, Y_QUERY)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_regression_too(value):
    network = TorchRegressor(
        lambda *sizes: Overflows(*sizes, value), max_epochs=5, random_state=0
    )
    attributor = DualInfluence(network, random_state=0).fit(X, X[:, 1])
    with pytest.warns(FaithfulnessWarning, match=NAMED):
        found = attributor.attribute(BAD)
    assert_allclose(found[GOOD], attributor.attribute(X_QUERY)[GOOD], rtol=1e-6)


@pytest.mark.parametrize(
    "attribute",
    [
        lambda frozen: DualInfluence(frozen, ridge=0.1),
        lambda frozen: DualInfluence(frozen, ridge=0.1, removal="influence"),
        RISEValuator,
        lambda frozen: KernelSurrogateAttributor(
            frozen, estimation="gradient", damping=0.1
        ),
    ],
)
def test_training_rows_without_gradients_are_named(attribute):
    """Never "increase ridge" for a NaN."""
    module = net().fit(X, y).module_
    frozen = FrozenEstimator(TorchClassifier.from_module(module, [0, 1, 2]))
    rows = X.copy()
    rows[[7, 20], 0] = 99
    with pytest.raises(
        ValueError, match=r"2 training rows, such as \[7, 20\], are NaN"
    ):
        attribute(frozen).fit(rows, y)


def test_gradients_of_a_bad_row_are_its_own():
    transformer = GradientTransformer(FrozenEstimator(net().fit(X, y)))
    rows = X.copy()
    rows[7, 0] = 99
    transformer.fit(rows, y)
    with pytest.warns(FaithfulnessWarning, match=r"1 rows, such as \[7\], are not"):
        found = transformer.transform(rows)
    assert_array_equal(np.flatnonzero(~np.isfinite(found).all(axis=1)), [7])
    good = np.arange(40) != 7
    assert_allclose(found[good], transformer.transform(X[good]), rtol=1e-6)


# ------------------------------------------------------------------ exploded runs
@pytest.mark.parametrize("how", AGGREGATIONS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_run_that_is_not_finite_is_left_out_of_its_queries(how, bad):
    each_run = np.random.RandomState(0).randn(8, 3, 5)
    one_bad = each_run.copy()
    one_bad[2, 1, 4] = bad
    rest = np.delete(each_run, 2, axis=0)
    found, error = aggregate(one_bad, how, exploding(one_bad))
    expected = aggregate(each_run, how, exploding(each_run))
    without = aggregate(rest, how, exploding(rest))
    for got, all_runs, seven in zip((found, error), expected, without, strict=True):
        assert_array_equal(got[[0, 2]], all_runs[[0, 2]])
        assert_array_equal(got[1], seven[1])


def test_exploding_runs_are_judged_by_those_that_are_finite():
    each_run = np.ones((4, 2, 3))
    each_run[0, 0], each_run[1, 0], each_run[2, 1] = np.nan, 1000, np.inf
    assert_array_equal(
        exploding(each_run),
        [[True, False], [True, False], [False, True], [False, False]],
    )


def test_a_run_whose_weights_are_lost_spoils_no_other():
    influence = AdamWInfluence(net(), n_trajectories=8, n_halves=0, random_state=0)
    influence.fit(X, y)
    runs = influence._runs[0]
    for lost in (runs.params, *runs.averages.values()):
        lost[2] = torch.nan
    kept = [0, 1, 3, 4, 5, 6, 7]
    weights = np.ones((1, 40))
    with pytest.warns(FaithfulnessWarning, match="1 of 8 runs are not finite"):
        found, errors = influence.attribute(X_QUERY, Y_QUERY, return_std=True)
    with pytest.warns(FaithfulnessWarning, match="1 of 8 runs are not finite"):
        assert np.isfinite(influence.predict_outcomes(X_QUERY, Y_QUERY, weights)).all()
    influence._runs[0] = replace(
        runs,
        weights=runs.weights[kept],
        params=runs.params[kept],
        averages={decay: params[kept] for decay, params in runs.averages.items()},
    )
    expected = influence.attribute(X_QUERY, Y_QUERY, return_std=True)
    assert_allclose(found, expected[0], rtol=1e-6, atol=1e-12)
    assert_allclose(errors, expected[1], rtol=1e-6, atol=1e-12)
