"""Attributors of modules that torch.func's transforms do not take, or get wrong."""

import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.exceptions import EfficiencyWarning
from sklearn.frozen import FrozenEstimator
from torch import nn

from skattrib import (
    AdamWInfluence,
    DualInfluence,
    GradientTransformer,
    RISEValuator,
    TorchClassifier,
)
from skattrib.engine._tangent import tangents
from skattrib.engine._training import train
from skattrib.evaluation import retrain_outcomes
from skattrib.influence._run_derivatives import RunDerivatives
from skattrib.models._as_model import as_model
from tests.plain_cases import (
    FAST,
    SLOW,
    Prototypes,
    build,
    newton_attributions,
    plain_jacobians,
)

RANDOM = np.random.RandomState(0)
X, Y = RANDOM.randn(18, 8), np.arange(18) % 3
X_QUERY, Y_QUERY = RANDOM.randn(3, 8), np.array([0, 1, 2])


def frozen(module):
    return FrozenEstimator(TorchClassifier.from_module(module, [0, 1, 2]))


def dual(module):
    return DualInfluence(
        frozen(module),
        ridge=0.1,
        metric="identity",
        removal="newton",
        random_state=0,
    ).fit(X, Y)


def error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("name", SLOW)
def test_dual_influence_of_modules_that_torch_func_does_not_take(name):
    module = build(name)
    with pytest.warns(EfficiencyWarning, match=r"jacrev .*row by row, by plain"):
        influence = dual(module)
    expected = newton_attributions(module, X, Y, X_QUERY, Y_QUERY, 0.1)
    assert error(influence.attribute(X_QUERY, Y_QUERY), expected) < 1e-8


@pytest.mark.parametrize("name", FAST)
def test_dual_influence_where_care_makes_torch_func_right(name):
    module = build(name)
    with warnings.catch_warnings():
        if name in ("padded", "words"):
            warnings.simplefilter("error", EfficiencyWarning)
        influence = dual(module)
    expected = newton_attributions(module, X, Y, X_QUERY, Y_QUERY, 0.1)
    assert error(influence.attribute(X_QUERY, Y_QUERY), expected) < 1e-8


def test_slow_gradients_are_announced_once_and_name_the_layer():
    module = build("lstm")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", EfficiencyWarning)
        influence = dual(module)
        influence.attribute(X_QUERY, Y_QUERY)
    assert len(caught) == 1
    said = "gradients in cells (LSTM) are computed row by row"
    assert said in str(caught[0].message)
    assert influence.solver_reason_.endswith(said)


def test_a_checkpoint_that_autograd_cannot_enter_is_refused_with_a_cure():
    with pytest.raises(ValueError, match="use_reentrant=False"):
        dual(build("reentrant"))


# ------------------------------------------------------------------- training runs
def network(make, **options):
    return TorchClassifier(make, max_epochs=4, batch_size=9, random_state=0, **options)


def group_norm(n_features, n_outputs):
    return nn.Sequential(
        nn.Linear(n_features, 8), nn.GroupNorm(2, 8), nn.Tanh(), nn.Linear(8, n_outputs)
    )


TRAINED = {
    **{
        name: lambda n_features, n_outputs, name=name: build(name)
        for name in (*SLOW, *FAST)
        if name != "cdist"
    },
    "group_norm": group_norm,
}


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.EfficiencyWarning")
def test_training_runs_equal_finite_differences(name):
    influence = AdamWInfluence(network(TRAINED[name]), inclusion=1.0, random_state=0)
    influence.fit(X, Y)
    found = influence.attribute(X_QUERY, Y_QUERY)[:, :2]
    h, weights = 1e-4, np.ones((4, len(X)))
    weights[[0, 1], [0, 1]] += h
    weights[[2, 3], [0, 1]] -= h
    outcomes = retrain_outcomes(influence.estimator_, X, Y, weights, X_QUERY, Y_QUERY)
    expected = (outcomes[:2] - outcomes[2:]).T / (2 * h)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.EfficiencyWarning")
@pytest.mark.parametrize("name", ["lstm", "group_norm"])
def test_several_runs(name):
    """Stacked where vmap can, one by one where it cannot: averages of the same."""
    options = {"inclusion": 0.5, "n_trajectories": 2, "random_state": 0}
    influence = AdamWInfluence(network(TRAINED[name]), **options).fit(X, Y)
    assert np.isfinite(influence.attribute(X_QUERY, Y_QUERY)).all()


def test_group_norm_is_announced():
    influence = AdamWInfluence(network(group_norm), inclusion=1.0, random_state=0)
    with pytest.warns(EfficiencyWarning, match="query by query, by plain autograd"):
        influence.fit(X, Y).attribute(X_QUERY, Y_QUERY)


def test_what_has_no_second_derivative_is_refused_with_a_cure():
    net = network(lambda n_features, n_outputs: Prototypes())
    with pytest.raises(ValueError, match=r"\(a\[:, None\] - b\).norm"):
        AdamWInfluence(net, inclusion=1.0, random_state=0).fit(X, Y)


def test_the_cure_for_distances_is_one():
    class Cured(Prototypes):
        def forward(self, x):
            return -(x[:, None] - self.points).norm(dim=-1)

    net = network(lambda n_features, n_outputs: Cured())
    AdamWInfluence(net, inclusion=1.0, random_state=0).fit(X, Y)


def trained_problem(name):
    estimator = network(TRAINED[name]).fit(X, Y)
    return RunDerivatives(as_model(estimator), X, Y).problem


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.EfficiencyWarning")
@pytest.mark.parametrize(
    "name", ["lstm", "packed", "checkpoint", "custom", "padded", "gathered"]
)
def test_removals_followed_to_second_order(name):
    problem = trained_problem(name)
    run = (problem.model, problem.loss, problem.recipe, problem.X, problem.targets)
    weights, direction = problem.X.new_ones(len(X)), problem.X.new_zeros(1, len(X))
    direction[0, 0], h = 1.0, 3e-4
    first, second = tangents(*run, weights, direction, memory_bytes=1e9)
    before, at, after = (
        train(*run, weights[None] + k * h * direction).params for k in (-1, 0, 1)
    )
    assert error(first, (after - before) / (2 * h)) < 1e-4
    assert error(second, (after + before - 2 * at) / h**2) < 2e-3


def test_removals_that_are_followed_one_by_one_are_announced():
    problem = trained_problem("packed")
    run = (problem.model, problem.loss, problem.recipe, problem.X, problem.targets)
    weights, directions = problem.X.new_ones(len(X)), torch.eye(len(X))[:2]
    with pytest.warns(EfficiencyWarning, match="removals are followed one by one"):
        tangents(*run, weights, directions, memory_bytes=1e9)


def test_wrong_third_derivatives_are_not_reported():
    """Torch's of a layer normalisation are wrong; modules of it are written out."""

    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(8, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(nn.functional.layer_norm(self.inner(x), (5,)).tanh())

    net = network(lambda n_features, n_outputs: Normalised())
    influence = AdamWInfluence(net, inclusion=1.0, random_state=0).fit(X, Y)
    figures = influence.diagnose(X_QUERY, Y_QUERY)
    assert figures.second_order_error is None
    assert figures.exploding_share == 0


# --------------------------------------------------------------- other estimators
ENDING_IN_LINEAR = [
    name for name in SLOW | FAST if hasattr(build(name), "head") or "relu" in name
]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.EfficiencyWarning")
@pytest.mark.parametrize("name", [*SLOW, *FAST])
def test_gradient_transformer(name):
    module = build(name)
    transformer = GradientTransformer(frozen(module), random_state=0).fit(X, Y)
    with torch.no_grad():
        own = module(torch.tensor(X))
    slopes = torch.func.grad(lambda f: f.log_softmax(1).max(1).values.sum())(own)
    jacobians = plain_jacobians(module, X)
    expected = np.einsum("nc,ncp->np", slopes.numpy(), jacobians)
    assert_allclose(np.abs(transformer.transform(X)), np.abs(expected), atol=1e-10)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.EfficiencyWarning")
@pytest.mark.parametrize("name", ENDING_IN_LINEAR)
def test_rise(name):
    valuator = RISEValuator(frozen(build(name)), random_state=0).fit(X, Y)
    assert np.isfinite(valuator.attribute(X_QUERY, Y_QUERY)).all()
