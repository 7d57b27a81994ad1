"""Newton steps without single rows, by their effect on queries, against the steps."""

import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from skattrib.engine import _parameter_space
from skattrib.engine._functional import FunctionalModule
from skattrib.engine._linearized import LinearizedModel
from skattrib.engine._row_removal import _used_outputs
from tests.cases import LOSSES, build, mlp, randn

N = 24


def convolutional():
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(4, 3)
    )


def linearized(task, module, n_outputs, weights, scaled=True, **options):
    module = build(module, dtype=torch.float64)
    X = randn(N, 6, seed=1)
    targets = torch.arange(N) % n_outputs
    if task == "regression":
        targets = randn(N, n_outputs, seed=2)
    n_params = sum(p.numel() for p in module.parameters())
    scale = randn(n_params, seed=3).abs() + 0.3 if scaled else None
    return LinearizedModel(
        FunctionalModule(module),
        LOSSES[task],
        X,
        targets,
        weights,
        scale=scale,
        solver="primal",
        **{
            "ridge": lambda fraction: 0.05 + 0.2 * fraction,
            "regularization": "per_sample",
            "memory_bytes": 2.0**30,
            **options,
        },
    )


def assert_same_changes(model):
    """Compare with the outputs' changes by steps of all parameters."""
    weights = model.weights.repeat(N, 1)
    weights.fill_diagonal_(0)
    _, query = model.query(randn(5, 6, seed=4))
    expected = model.output_change(model.newton_steps(weights), query)
    found = model.output_change(model.without_each_row(), query)
    removals = model.without_each_row()
    assert len(removals) == N
    few = removals[5:12]
    assert len(few) == 7
    assert_allclose(model.output_change(few, query), found[5:12], rtol=1e-10)
    assert_allclose(found, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))
    assert float(expected.abs().max()) > 1e-3
    steps, rows = model.newton_steps(weights), torch.arange(N)
    own = model.space.row_outputs(steps, rows)
    if not removals.has_all_outputs:  # a constant added to a softmax changes nothing
        own -= own.mean(dim=1, keepdim=True)
    assert_allclose(removals.own_changes, own, atol=1e-9 * float(own.abs().max()))


@pytest.mark.parametrize("regularization", ["per_sample", "fixed"])
@pytest.mark.parametrize(
    ("task", "n_outputs"),
    [("classification", 2), ("classification", 3), ("regression", 2)],
)
def test_changes_are_those_of_newton_steps(task, n_outputs, regularization):
    model = linearized(
        task,
        lambda: mlp(6, 4, n_outputs),
        n_outputs,
        torch.ones(N, dtype=torch.float64),
        regularization=regularization,
    )
    assert_same_changes(model)


@pytest.mark.parametrize("stationary", [True, False])
@pytest.mark.parametrize("memory_bytes", [2.0**30, 2e4])
def test_rows_of_different_weights(stationary, memory_bytes):
    weights = torch.ones(N, dtype=torch.float64)
    weights[3:9], weights[11] = 2.5, 0
    options = {"stationary": stationary, "memory_bytes": memory_bytes}
    model = linearized("classification", lambda: mlp(6, 4, 3), 3, weights, **options)
    assert_same_changes(model)
    assert_same_changes(model.for_many_ridges())  # factors shared by all λ


@pytest.mark.parametrize("scaled", [True, False])
def test_layers_with_several_positions(scaled):
    weights = torch.ones(N, dtype=torch.float64)
    model = linearized("classification", convolutional, 3, weights, scaled=scaled)
    assert_same_changes(model)


def test_the_inverse_where_rows_are_many(monkeypatch):
    weights = torch.ones(N, dtype=torch.float64)
    model = linearized("classification", lambda: nn.Linear(6, 5), 5, weights)
    expected = model.without_each_row().output_change(model.query(randn(5, 6))[1])
    pays = _parameter_space.PrimalSpace.inverse_pays
    asked = []
    monkeypatch.setattr(
        _parameter_space.PrimalSpace,
        "inverse_pays",
        lambda *args: asked.append(pays(*args)) or True,
    )
    found = model.without_each_row().output_change(model.query(randn(5, 6))[1])
    assert all(asked)  # 24 rows of 5 outputs, 35 parameters
    assert_allclose(found, expected, rtol=1e-9)


def test_a_softmax_uses_one_direction_less():
    softmax = linearized(
        "classification", lambda: mlp(6, 4, 3), 3, torch.ones(N, dtype=torch.float64)
    )
    basis = _used_outputs(softmax.residuals, softmax.output_hessian_roots)
    assert basis.shape == (3, 2)
    assert_allclose(basis.T @ basis, torch.eye(2), atol=1e-12)
    assert_allclose(basis.sum(dim=0), 0, atol=1e-12)
    squared = linearized(
        "regression", lambda: mlp(6, 4, 3), 3, torch.ones(N, dtype=torch.float64)
    )
    whole = _used_outputs(squared.residuals, squared.output_hessian_roots)
    assert_allclose(whole, torch.eye(3))
