"""Flat parameters, losses and outcomes against autograd and NumPy."""

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch.func import jacrev, vmap

from skattrib.engine._functional import (
    FunctionalModule,
    Loss,
    chunks,
    cross_log_odds,
    outcome_function,
    spread,
)
from tests.cases import MODULES, Tied, build, build_case, frozen, mlp, randn, trainable

TARGETS = {
    "classification": torch.tensor([0, 2, 1, 1, 0]),
    "regression": randn(5, 3, seed=8),
}


# ------------------------------------------------------------------ parameters
@pytest.mark.parametrize("name", MODULES)
def test_flat_parameters_round_trip(name):
    module, X = build_case(name)
    model = FunctionalModule(module)
    flat = model.flatten()
    assert flat.shape == (model.n_params,)
    assert model.n_params == sum(p.numel() for p in trainable(module))
    pieces = model.unflatten(flat)
    for name, p in zip(model.names, trainable(module), strict=True):
        assert torch.equal(pieces[name], p)
    with torch.no_grad():
        expected = module(X)
        assert_array_equal(model.outputs(flat, X), expected.reshape(len(X), -1))


def test_outputs_elsewhere_leave_the_module_alone_and_load_moves_it():
    module, X = build_case("layer_norm")
    model, before = FunctionalModule(module), copy.deepcopy(module.state_dict())
    there = model.flatten() + randn(model.n_params, seed=2)
    with torch.no_grad():
        elsewhere = model.outputs(there, X)
        here = module(X)
    assert not torch.allclose(elsewhere, here)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    model.load(there)
    assert torch.equal(model.flatten(), there)
    with torch.no_grad():
        assert torch.equal(module(X), elsewhere)


def test_flatten_is_a_copy():
    model = FunctionalModule(build(lambda: mlp(2, 2)))
    flat = model.flatten()
    before = flat.clone()
    model.load(torch.zeros_like(flat))
    assert torch.equal(flat, before)
    flat += 1
    assert not model.flatten().any()


def test_tied_parameters_appear_once_and_stay_tied():
    module = build(Tied)
    model = FunctionalModule(module)
    assert model.names == ["first.weight", "first.bias", "second.bias"]
    there = randn(model.n_params, seed=2)
    X = randn(3, 4, seed=3)
    elsewhere = model.outputs(there, X)
    model.load(there)
    assert module.second.weight is module.first.weight
    assert torch.equal(elsewhere, module(X))


def test_frozen_parameters_stay():
    module = build(lambda: frozen("0.weight", "2.bias"))
    model = FunctionalModule(module)
    assert model.names == ["0.bias", "2.weight"]
    before = copy.deepcopy(module.state_dict())
    model.load(torch.zeros(model.n_params))
    after = module.state_dict()
    assert torch.equal(after["0.weight"], before["0.weight"])
    assert torch.equal(after["2.bias"], before["2.bias"])
    assert not after["0.bias"].any()


def test_deep_copy_has_a_module_of_its_own():
    model = FunctionalModule(build(lambda: mlp(3, 2)))
    before, other = model.flatten(), copy.deepcopy(model)
    other.load(torch.zeros(model.n_params))
    assert torch.equal(model.flatten(), before)


# ---------------------------------------------------------------------- losses
@pytest.mark.parametrize("task", TARGETS)
def test_residuals_and_hessian_root_are_derivatives(task):
    loss, targets, outputs = Loss(task), TARGETS[task], 3 * randn(5, 3)

    def one(output, target):
        return loss.values(output[None], target[None])[0]

    gradient = vmap(jacrev(one))(outputs, targets)
    assert_allclose(loss.residuals(outputs, targets), gradient, rtol=0, atol=1e-12)
    root = loss.hessian_root(outputs)
    second = vmap(jacrev(jacrev(one)))(outputs, targets)
    assert_allclose(root @ root.mT, second, rtol=0, atol=1e-12)


def test_loss_values():
    outputs = randn(5, 3)
    f, y = outputs.numpy(), TARGETS["classification"].numpy()
    expected = np.log(np.exp(f).sum(axis=1)) - f[np.arange(5), y]
    values = Loss("classification").values(outputs, TARGETS["classification"])
    assert_allclose(values, expected, rtol=1e-12)
    target = TARGETS["regression"]
    expected = 0.5 * ((f - target.numpy()) ** 2).sum(axis=1)
    assert_allclose(Loss("regression").values(outputs, target), expected, rtol=1e-12)


# -------------------------------------------------------------------- outcomes
def test_margin_is_the_log_odds():
    outputs, y = 2 * randn(4, 5, 3), torch.tensor([0, 2, 1, 1, 0]).expand(4, 5)
    p = outputs.softmax(-1).gather(-1, y[..., None])[..., 0]
    assert_allclose(cross_log_odds(outputs, y), (p / (1 - p)).log(), rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_margin_at_saturation(dtype):
    outputs = torch.tensor([[2e3, 0.0, 0.0], [-2e3, 0.0, 0.0]], dtype=dtype)
    y = torch.tensor([0, 0])
    p = outputs.softmax(-1)[:, 0]
    assert p.tolist() == [1.0, 0.0]  # the odds themselves are 1/0 and 0
    expected = np.array([2e3, -2e3]) - np.log(2)
    assert_allclose(cross_log_odds(outputs, y), expected, rtol=1e-6)
    outputs.requires_grad_()
    (gradient,) = torch.autograd.grad(cross_log_odds(outputs, y).sum(), outputs)
    assert_allclose(gradient, [[1, -0.5, -0.5]] * 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("outcome", "task", "expected"),
    [
        ("auto", "classification", lambda f, y: -Loss("classification").values(f, y)),
        ("log_likelihood", "regression", lambda f, y: -Loss("regression").values(f, y)),
        ("auto", "regression", lambda f, y: -Loss("regression").values(f, y)),
        ("margin", "classification", cross_log_odds),
        ("prediction", "regression", lambda f, y: f[:, 0]),
        (lambda f, y: f.sum(-1) + 1, "regression", lambda f, y: f.sum(-1) + 1),
    ],
)
def test_outcomes(outcome, task, expected):
    outputs, targets = randn(2, 5, 3), TARGETS[task]
    found = outcome_function(outcome, task)(outputs, torch.stack([targets] * 2))
    assert found.shape == (2, 5)
    for some, one in zip(found, outputs, strict=True):
        assert_allclose(some, expected(one, targets), rtol=1e-12)


@pytest.mark.parametrize(
    ("n", "size", "pieces"),
    [
        (5, 2, [(0, 2), (2, 4), (4, 5)]),
        (4, 4, [(0, 4)]),
        (3, 9, [(0, 3)]),
        (2, 0, [(0, 1), (1, 2)]),
        (0, 3, []),
    ],
)
def test_chunks(n, size, pieces):
    assert [(s.start, s.stop) for s in chunks(n, size)] == pieces


@pytest.mark.parametrize(
    ("n", "n_wanted", "expected"),
    [(9, 3, [0, 4, 8]), (3, 8, [0, 1, 2]), (5, 1, [0]), (1, 4, [0])],
)
def test_spread(n, n_wanted, expected):
    assert spread(n, n_wanted).tolist() == expected
