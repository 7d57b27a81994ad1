"""Optimizer steps equal those of torch.optim, for one model and for a stack."""

import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from skattrib.engine._optim import (
    Optimizer,
    clip_gradient,
    initial_state,
    second_moment,
    step,
)
from tests.cases import OPTIMIZERS, randn, torch_optimizer

CLOSE = {"rtol": 0, "atol": 1e-12}


@pytest.mark.parametrize("n_models", [None, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_equal_torch(name, n_models):
    """50 steps on given gradients, one of them zero, with a rate that changes."""
    optimizer = OPTIMIZERS[name]
    shape = (7,) if n_models is None else (n_models, 7)
    params, theirs = randn(*shape), randn(*shape).requires_grad_()
    reference = torch_optimizer(optimizer, [theirs])
    state = initial_state(optimizer, params)
    for t in range(1, 51):
        rate = 0.1 / t**0.5
        gradient = randn(*shape, seed=t) * (t != 20)
        before = params.clone(), state.first.clone(), state.second.clone()
        moved, new = step(optimizer, params, gradient, state, t, rate)
        # a kept state must not change under the run
        for old, now in zip(before, (params, *state), strict=True):
            assert_array_equal(old, now)
        params, state = moved, new
        reference.param_groups[0]["lr"] = rate
        theirs.grad = gradient.clone()
        reference.step()
    assert_allclose(params, theirs.detach(), **CLOSE)
    found = second_moment(optimizer, state, 50)
    assert (found is not None) == optimizer.adaptive
    if optimizer.adaptive:
        expected = reference.state[theirs]["exp_avg_sq"]
        assert_allclose(found, expected / (1 - optimizer.betas[1] ** 50), **CLOSE)


@pytest.mark.parametrize(
    ("optimizer", "sizes"),
    [
        (Optimizer("adamw"), (6, 6)),
        (Optimizer("adam"), (6, 6)),
        (Optimizer("sgd"), (0, 0)),
        (Optimizer("sgd", momentum=0.9), (6, 0)),
    ],
)
def test_initial_state_keeps_what_the_optimizer_needs(optimizer, sizes):
    state = initial_state(optimizer, randn(2, 3))
    assert (state.first.numel(), state.second.numel()) == sizes
    assert not any(moment.any() for moment in state)


@pytest.mark.parametrize("max_norm", [None, 0.5, 1e3])
def test_clipping_equals_torch_for_each_model(max_norm):
    gradient = randn(4, 9) * torch.tensor([[0.0], [0.01], [1.0], [100.0]])
    expected = gradient.clone()
    if max_norm is not None:
        for row in expected:
            theirs = torch.zeros(9, dtype=row.dtype, requires_grad=True)
            theirs.grad = row.clone()
            torch.nn.utils.clip_grad_norm_([theirs], max_norm)
            row.copy_(theirs.grad)
    assert_allclose(clip_gradient(gradient, max_norm), expected, **CLOSE)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (Optimizer("adamw"), 0.6),
        (Optimizer("sgd"), 0.6),
        (Optimizer("sgd", momentum=0.75), 2.4),
    ],
)
def test_path_length(optimizer, expected):
    rates = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    assert optimizer.path_length(rates) == pytest.approx(expected, rel=1e-12)


def test_path_length_is_how_far_a_unit_gradient_carries():
    """SGD with momentum, of a run long against the memory of the momentum."""
    optimizer = Optimizer("sgd", momentum=0.8)
    params = torch.zeros(1, dtype=torch.float64)
    state = initial_state(optimizer, params)
    for t in range(1, 2001):
        params, state = step(optimizer, params, torch.ones_like(params), state, t, 0.01)
    length = optimizer.path_length(torch.full((2000,), 0.01))
    assert float(-params) == pytest.approx(length, rel=5e-3)
