"""Optimizer steps equal those of torch.optim, for one model and for a stack."""

import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from skattrib.engine._optim import (
    Optimizer,
    OptimizerState,
    StepDerivative,
    clip_gradient,
    initial_state,
    second_moment,
    step,
    step_adjoint,
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


# -------------------------------------------------------------------- adjoint
def cotangents_like(params, state, n_queries=4):
    """Random cotangents with a leading axis, where the optimizer keeps a state."""
    params, first, second = (
        randn(n_queries, *value.shape, seed=seed) if value.numel() else value
        for seed, value in enumerate((params, *state), start=20)
    )
    return StepDerivative(params, OptimizerState(first, second))


@pytest.mark.parametrize("t", [1, 2, 9])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_step_adjoint_equals_autograd(name, t):
    optimizer, params, gradient = OPTIMIZERS[name], randn(3, 7), randn(3, 7, seed=1)
    state = initial_state(optimizer, params)
    for earlier in range(1, t):
        params, state = step(
            optimizer, params, randn(3, 7, seed=10 + earlier), state, earlier, 0.1
        )
    after = cotangents_like(params, state)

    def flat(params, gradient, first, second):
        moved, new = step(
            optimizer, params, gradient, OptimizerState(first, second), t, 0.1
        )
        return moved, *new

    _, vjp = torch.func.vjp(flat, params, gradient, *state)
    found, before = step_adjoint(optimizer, params, gradient, state, t, 0.1, after)
    for q in range(4):
        given = [c[q] if c.numel() else c for c in (after.params, *after.state)]
        in_params, in_gradient, *in_state = vjp(tuple(given))
        assert_allclose(found[q], in_gradient, **CLOSE)
        assert_allclose(before.params[q], in_params, **CLOSE)
        for one, other in zip(before.state, in_state, strict=True):
            found_state = one[q] if one.numel() else one
            assert_allclose(found_state, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [1e-8, 1e-12])
@pytest.mark.parametrize("t", [1, 5])
def test_step_adjoint_is_finite_without_gradients_and_with_tiny_ones(t, eps, dtype):
    optimizer = Optimizer("adamw", weight_decay=0.1, eps=eps)
    gradient = torch.tensor([0.0, 1e-30, 1e-23, 1e-21, 1e-15, 1.0]).to(dtype)
    params = torch.ones_like(gradient)
    state = initial_state(optimizer, params)
    for earlier in range(1, t):
        params, state = step(optimizer, params, gradient, state, earlier, 0.1)
    after = StepDerivative(params[None], initial_state(optimizer, params[None]))
    found, before = step_adjoint(optimizer, params, gradient, state, t, 0.1, after)
    for value in (found, before.params, *before.state):
        assert torch.isfinite(value).all()
    assert before.state.second[0, 0] == 0


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_inert_parameters_pass_nothing_on(name):
    """Those of 0 always; those of 0.01 and less times the rms if asked."""
    optimizer = OPTIMIZERS[name]
    gradient = torch.tensor([[0.0, 1e-3, 0.1, 1.0], [0.0, 1e-6, 1e-4, 1e-3]]).double()
    params = torch.ones_like(gradient)
    state = initial_state(optimizer, params)
    after = StepDerivative(params[None], initial_state(optimizer, params[None]))
    arguments = optimizer, params, gradient, state, 1, 0.1, after
    exact, kept = step_adjoint(*arguments)
    assert_array_equal(exact[0] != 0, [[False, True, True, True]] * 2)
    found, before = step_adjoint(*arguments, inert=0.01)
    moves = torch.tensor([[False, False, True, True]] * 2)
    assert_array_equal(found[0], torch.where(moves, exact[0], 0.0))
    assert_array_equal(before.params, kept.params)
    for one, other in zip(before.state, kept.state, strict=True):
        assert_array_equal(one[0], torch.where(moves, other[0], 0.0))
