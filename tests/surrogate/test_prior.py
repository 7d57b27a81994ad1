"""Surrogates around a prior: identities, and fewer retrainings for the same rank."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

import skattrib.models._network
from skattrib import (
    AdamWInfluence,
    DualInfluence,
    KernelSurrogate,
    KernelSurrogateAttributor,
    LinearSurrogate,
    LinearSurrogateAttributor,
    TorchClassifier,
    TorchRegressor,
)
from skattrib.evaluation import lds_score, make_weightings, retrain_outcomes
from skattrib.exceptions import FaithfulnessWarning
from skattrib.surrogate._prior import AroundPrior
from tests.surrogate.test_attributors import data, tasks_of

BOTH = [KernelSurrogateAttributor, LinearSurrogateAttributor]
SURROGATES = [KernelSurrogate(), LinearSurrogate()]


def net(**options):
    return TorchClassifier(max_epochs=15, random_state=0, **options)


def linear_outcomes(n_units=60, n_subsets=24, n_queries=4):
    rng = np.random.RandomState(0)
    weights = make_weightings(n_units, n_subsets, kind="bernoulli", random_state=0)
    A = rng.randn(n_queries, n_units)
    return weights, A, 3 + weights @ A.T


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("scale", [1.0, 2.5, 0.2])
def test_a_prior_that_is_right_up_to_its_scale_is_all_it_takes(surrogate, scale):
    weights, A, outcomes = linear_outcomes()
    found = AroundPrior(surrogate, scale * A, None).fit(weights, outcomes)
    assert_allclose(found._slopes, 1 / scale, rtol=0.02)
    assert_allclose(found.attribution("loo", False), A, atol=0.05)
    others = make_weightings(60, 10, random_state=3)
    assert_allclose(found.predict(others), 3 + others @ A.T, atol=0.3)
    assert not found._interactions("loo").any() or isinstance(
        surrogate, KernelSurrogate
    )


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_a_prior_of_nothing_is_no_prior(surrogate):
    weights, A, outcomes = linear_outcomes()
    outcomes = outcomes + np.random.RandomState(1).randn(*outcomes.shape)
    found = AroundPrior(surrogate, 0 * A, None).fit(weights, outcomes)
    assert_array_equal(found._slopes, 1)
    # another one: the prior's own would be compared with itself
    alone = clone(surrogate).fit(weights, outcomes)
    assert_allclose(found.attribution("loo", False), alone.attribution("loo"))
    assert_allclose(found.predict(weights), alone.predict(weights))


def test_slopes_are_drawn_towards_1_by_noise():
    weights, A, outcomes = linear_outcomes()
    noise = 1e3 * np.random.RandomState(1).randn(*outcomes.shape)
    found = AroundPrior(LinearSurrogate(), 0.3 * A, None).fit(weights, outcomes + noise)
    assert_allclose(found._slopes, 1, atol=0.2)


def test_a_query_without_a_prior_has_none():
    weights, A, outcomes = linear_outcomes()
    A[1, 3] = np.nan
    with pytest.warns(FaithfulnessWarning, match="of 1 queries are not finite"):
        found = AroundPrior(LinearSurrogate(), A, None)
    found = found.fit(weights, outcomes).attribution("loo", False)
    alone = LinearSurrogate().fit(weights, outcomes[:, 1]).attribution("loo")
    assert_allclose(found[1], alone)
    assert_allclose(found[[0, 2]], A[[0, 2]], atol=0.05)


def test_errors_add_up():
    weights, A, outcomes = linear_outcomes()
    outcomes = outcomes + np.random.RandomState(1).randn(*outcomes.shape)
    errors = np.full_like(A, 0.7)
    without = AroundPrior(LinearSurrogate(), A, None).fit(weights, outcomes)
    found = AroundPrior(LinearSurrogate(), A, errors).fit(weights, outcomes)
    _, alone = without.attribution("loo", True)
    _, both = found.attribution("loo", True)
    expected = alone**2 + (0.7 * found._slopes[:, None]) ** 2
    assert_allclose(both**2, expected)


@pytest.mark.parametrize("attributor", BOTH)
def test_attributions_and_predictions_agree(attributor):
    X, y, Xq, yq = data()
    surrogate = attributor(
        net(),
        n_subsets=24,
        estimation="retrain",
        prior=AdamWInfluence(n_trajectories=2),
        random_state=0,
    ).fit(X, y)
    whole = np.ones((1, 72))
    without = whole - np.eye(72)
    effects = surrogate.predict_outcomes(Xq, yq, whole) - surrogate.predict_outcomes(
        Xq, yq, without
    )
    found, std = surrogate.attribute(Xq, yq, return_std=True)
    assert_allclose(found, effects.T, atol=1e-8)
    assert (std > 0).all()
    prior = surrogate.prior_
    assert prior.estimator_.random_state == 0
    assert_array_equal(prior.X_train_, X)


def test_units_weights_and_outcome_reach_the_prior():
    X, y, Xq, yq = data()
    weights = np.random.RandomState(0).uniform(0.5, 2, 72)
    surrogate = LinearSurrogateAttributor(
        net(), n_subsets=16, outcome="margin", prior=DualInfluence(), random_state=0
    ).fit(X, y, tasks=tasks_of(), sample_weight=weights)
    prior = surrogate.prior_
    assert_array_equal(prior.unit_names_, surrogate.unit_names_)
    assert_array_equal(prior._row_weights, weights)
    assert prior.outcome == "margin"
    assert surrogate.prior.outcome == "auto"
    assert surrogate.attribute(Xq, yq).shape == (12, 8)


def test_a_prior_may_have_a_model_of_its_own():
    X, y, Xq, yq = data()
    surrogate = LinearSurrogateAttributor(
        LogisticRegression(), n_subsets=16, prior=DualInfluence(net()), random_state=0
    ).fit(X, y)
    assert isinstance(surrogate.prior_.estimator_, TorchClassifier)
    assert surrogate.attribute(Xq, yq).shape == (12, 72)


def test_subsets_that_a_prior_learnt_from_are_not_scored_on():
    X, y, *_ = data()
    inner = LinearSurrogateAttributor(n_subsets=16, random_state=7)
    surrogate = LinearSurrogateAttributor(
        net(), n_subsets=16, prior=inner, random_state=0
    ).fit(X, y, tasks=tasks_of())
    seen = surrogate._seen_weightings()
    assert len(seen) == len(surrogate.weights_) + len(surrogate.prior_.weights_)


def test_a_prior_saves_retrainings():
    X, y = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(y))
    X, y = X[order] / 16, y[order]
    X, y, Xq, yq = X[:120], y[:120], X[-15:], y[-15:]
    model = net(hidden_layer_sizes=(8,), batch_size=30)
    W = make_weightings(120, 40, random_state=1)
    truth = retrain_outcomes(model, X, y, W, Xq, yq, outcome="margin")
    found = {}
    for prior in (None, AdamWInfluence()):
        surrogate = LinearSurrogateAttributor(
            model,
            n_subsets=60,
            inclusion=0.5,
            estimation="retrain",
            outcome="margin",
            prior=prior,
            random_state=0,
        ).fit(X, y)
        found[prior is None] = lds_score(truth, surrogate.predict_outcomes(Xq, yq, W))
    assert found[False] > 0.7
    assert found[False] > found[True] + 0.2


ERRORS = {
    "no attributor": ({"prior": LogisticRegression()}, "'prior' parameter"),
    "its parameters": ({"prior": AdamWInfluence(inclusion=2)}, "'inclusion' parameter"),
    "no gradients": (
        {"estimator": LogisticRegression(), "prior": AdamWInfluence()},
        "AdamWInfluence needs gradients",
    ),
    "its own model": (
        {"prior": AdamWInfluence(net(batch_size=1))},
        "batch_size=1 makes weights inert",
    ),
    "a regressor for classes": (
        {"prior": DualInfluence(TorchRegressor())},
        "one is a classifier, the other is not",
    ),
    "a class": (
        {"prior": DualInfluence},
        r"'prior' parameter.* such as DualInfluence\(\), or None. Got <class",
    ),
    "one run only": (
        {"prior": AdamWInfluence(FrozenEstimator(net()), inclusion=0.5)},
        "inclusion=0.5 needs an estimator that can be trained",
    ),
}


@pytest.mark.parametrize(("change", "message"), ERRORS.values(), ids=list(ERRORS))
def test_bad_input(change, message, monkeypatch):
    def trained(*args, **options):
        raise AssertionError("trained before the error")

    monkeypatch.setattr(skattrib.models._network, "train", trained)
    X, y, *_ = data()
    surrogate = LinearSurrogateAttributor(
        **{"estimator": net(), "random_state": 0, **change}
    )
    with pytest.raises(ValueError, match=message):
        surrogate.fit(X, y)
    assert not hasattr(surrogate, "prior_")
