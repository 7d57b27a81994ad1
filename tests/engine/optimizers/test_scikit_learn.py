"""The steps of scikit-learn's networks, their derivatives, and decay that differs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, SGDOptimizer

from skattrib.engine._optimizers import Optimizer, StepDerivative, map_state
from skattrib.engine._optimizers._scikit_learn import RawEpsAdam, VelocitySGD
from skattrib.engine._tangent import tangents
from skattrib.engine._training import train
from skattrib.engine._trajectory import Recipe, Trajectory
from skattrib.exceptions import TrajectoryError
from tests.cases import randn
from tests.engine.test_adjoint import PLENTY, error, problem, random_weights, scores

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated:DeprecationWarning"
)
RATES = [0.3, 0.1, 0.2, 0.05]
KINDS = {
    "adam": RawEpsAdam(betas=(0.8, 0.9), eps=1e-2),
    "sgd": VelocitySGD(),
    "momentum": VelocitySGD(momentum=0.7),
    "nesterov": VelocitySGD(momentum=0.7, nesterov=True),
    "all options": VelocitySGD(
        momentum=0.7, dampening=0.2, maximize=True, weight_decay=0.3
    ),
}


def theirs(optimizer, params):
    """The optimizer of scikit-learn with the same options."""
    if isinstance(optimizer, RawEpsAdam):
        return AdamOptimizer(params, RATES[0], *optimizer.betas, optimizer.eps)
    momentum, nesterov = optimizer.momentum, optimizer.nesterov
    return SGDOptimizer(params, RATES[0], momentum=momentum, nesterov=nesterov)


@pytest.mark.parametrize("name", ["adam", "sgd", "momentum", "nesterov"])
def test_steps_are_those_of_scikit_learn(name):
    optimizer, params = KINDS[name], randn(5)
    expected = [params.numpy().copy()]
    other = theirs(optimizer, expected)
    state = optimizer.initial_state(params)
    for t, rate in enumerate(RATES, start=1):
        if name == "adam":
            rate = RATES[0]  # its own rate is of the correction
        else:
            other.learning_rate = rate
        gradient = randn(5, seed=t)
        other.update_params(expected, [gradient.numpy()])
        params, state = optimizer.step(params, gradient, state, t, rate)
        assert_allclose(params, expected[0], rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", KINDS)
def test_pullbacks_are_those_of_autograd(name):
    optimizer, params = KINDS[name], randn(2, 5)
    empty = optimizer.initial_state(params)
    state = map_state(lambda zeros: randn(*zeros.shape, seed=3).abs(), empty)
    after = StepDerivative(
        randn(3, 2, 5, seed=4),
        map_state(lambda zeros: randn(3, *zeros.shape, seed=5), empty),
    )
    arguments = params, randn(2, 5, seed=6), state, 3, 0.2, after
    in_grad, before = optimizer.pullback(*arguments)
    expected_in_grad, expected = Optimizer.pullback(optimizer, *arguments)
    assert_allclose(in_grad, expected_in_grad, atol=1e-12)
    assert_allclose(before.params, expected.params, atol=1e-12)
    for found, part in zip(before.state, expected.state, strict=True):
        assert_allclose(found, part, atol=1e-12)


def with_factors(name, n_steps=9):
    """A run whose steps decay differently, some parameters not at all."""
    model, loss, recipe, X, y = problem(n_steps=n_steps)
    decay = randn(model.n_params, seed=7).clamp(min=0)
    recipe = replace(
        recipe,
        optimizer=replace(KINDS[name], weight_decay=0.0),
        decay=decay,
        decay_factors=torch.tensor(np.linspace(0.1, 0.9, n_steps)),
    )
    return model, loss, recipe, X, y


@pytest.mark.parametrize("name", ["adam", "nesterov"])
def test_runs_with_decay_by_step_are_differentiated(name):
    arguments = with_factors(name)
    model, X = arguments[0], arguments[3]
    weights, directions = random_weights(1) + 0.3, randn(3, len(X), seed=8)
    given = randn(1, 3, model.n_params, seed=11)
    found = scores(arguments, weights, given)[0]
    first, _ = tangents(*arguments, weights[0], directions, memory_bytes=PLENTY)
    assert error(given[0] @ first.T, found @ directions.T) < 1e-10
    ends = [train(*arguments, weights + s * 1e-5 * directions).params for s in (-1, 1)]
    assert error(first, (ends[1] - ends[0]) / 2e-5) < 1e-6
    plain = scores(arguments, weights, given, dynamics="sgd")
    (first,) = tangents(
        *arguments,
        weights[0],
        directions,
        order=1,
        plain_sgd=True,
        memory_bytes=PLENTY,
    )
    assert error(given[0] @ first.T, plain[0] @ directions.T) < 1e-10


def test_each_step_has_its_own_decay():
    model, loss, recipe, X, y = with_factors("sgd", n_steps=2)
    still = replace(recipe, learning_rates=0.1 * torch.ones(2, dtype=torch.float64))
    weights = torch.zeros(1, len(X), dtype=X.dtype)
    found = train(model, loss, still, X, y, weights).params[0]
    decay, factors = still.decay, still.decay_factors
    expected = still.initial * (1 - 0.1 * factors[0] * decay)
    assert_allclose(found, expected * (1 - 0.1 * factors[1] * decay), atol=1e-14)


def test_decay_by_step_is_part_of_a_file(tmp_path):
    _, _, recipe, X, y = with_factors("sgd")
    recipe = replace(recipe, optimizer=problem()[2].optimizer)
    trajectory = Trajectory(recipe, torch.ones(len(X)))
    trajectory.save(tmp_path / "run", X, y)
    loaded = Trajectory.load(tmp_path / "run", X, y).recipe
    assert_allclose(loaded.decay_factors, recipe.decay_factors)
    assert isinstance(loaded, Recipe)
    bad = replace(recipe, decay_factors=recipe.decay_factors[1:])
    Trajectory(bad, torch.ones(len(X))).save(tmp_path / "bad", X, y)
    with pytest.raises(TrajectoryError, match="a weight decay for each step"):
        Trajectory.load(tmp_path / "bad", X, y)
