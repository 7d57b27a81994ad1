"""Coordinates in which the Hessian is diagonal, against the spaces they come from."""

import pytest
import torch
from numpy.testing import assert_allclose

from skattrib.engine._functional import FunctionalModule
from skattrib.engine._linearized import LinearizedModel
from skattrib.engine._projection import LandmarkProjector
from tests.cases import LOSSES, build, mlp, randn

PLENTY = 2.0**30
N = 24
TASKS = {"classification": 3, "regression": 2}


def linearize(task, solver, dtype=torch.float64, steep=1.0, **options):
    module = build(lambda: mlp(3, 4, TASKS[task]), dtype=dtype)
    X = randn(N, 3, seed=1).to(dtype)
    targets = torch.arange(N) % 3
    if task == "regression":
        targets = randn(N, 2, seed=2).to(dtype)
    with torch.no_grad():
        for p in list(module.parameters())[-2:]:
            p.mul_(steep)
        if steep > 1:
            # right, and sure of it
            targets = module(X).argmax(dim=1)
    weights = (randn(N, seed=6).abs() + 0.3).to(dtype)
    weights[11] = 0
    n_params = sum(p.numel() for p in module.parameters())
    options = {"memory_bytes": PLENTY, **options}
    return LinearizedModel(
        FunctionalModule(module),
        LOSSES[task],
        X,
        targets,
        weights,
        scale=(randn(n_params, seed=3).abs() + 0.3).to(dtype),
        ridge=lambda fraction: 0.05 + 0.2 * fraction,
        regularization="per_sample",
        solver=solver,
        **options,
    )


def removals(weights):
    """Single rows in and out of order, parts of rows, groups, and nothing."""
    single = torch.diag(weights)
    groups = torch.zeros(4, N).to(weights)
    groups[0, [1, 5]] = groups[1, :6] = groups[2, [11, 3]] = 1
    return weights - torch.cat(
        [single, single[[7, 3, 20]], single[[4, 2]] * 0.3, groups * weights]
    )


def changes(model, removal):
    query = model.query(randn(5, 3, seed=9).to(model.outputs))[1]
    steps = getattr(model, f"{removal}_steps")(removals(model.weights))
    return model.output_change(steps, query)


def assert_same(model, tolerance):
    spectral = model.for_many_ridges(few_rows=True)
    for value in (1e-3, 0.05, 2.0):
        model.ridge = spectral.ridge = lambda fraction, v=value: v * (1 + fraction)
        for removal in ("newton", "influence"):
            found, expected = changes(spectral, removal), changes(model, removal)
            size = expected.abs().amax(dim=(1, 2), keepdim=True)
            error = (found - expected).abs() / size.clamp(min=1e-30)
            assert float(error.max()) <= tolerance


@pytest.mark.parametrize("memory_bytes", [PLENTY, 2e3])
@pytest.mark.parametrize("solver", ["primal", "dual"])
@pytest.mark.parametrize("task", TASKS)
def test_every_damping_gives_the_same_changes(task, solver, memory_bytes):
    assert_same(linearize(task, solver, memory_bytes=memory_bytes), 1e-8)


@pytest.mark.parametrize("solver", ["primal", "dual"])
def test_float32(solver):
    assert_same(linearize("classification", solver, torch.float32), 2e-3)


@pytest.mark.parametrize("solver", ["primal", "dual"])
def test_rows_that_the_model_is_sure_of(solver):
    """Their gradients have a part that the curvature cannot reach."""
    model = linearize("classification", solver, steep=60.0)
    if solver == "dual":
        assert len(model.space.spectral(model.residuals)._outside)
    assert_same(model, 1e-8)


def test_a_subspace_has_coordinates_of_its_own():
    model = linearize("classification", "nystroem", landmarks=torch.tensor([2, 9, 17]))
    assert isinstance(model.projector, LandmarkProjector)
    assert_same(model, 1e-8)


def test_a_space_that_factors_nothing_stays_as_it_is():
    model = linearize("classification", "cg")
    assert model.for_many_ridges(few_rows=True).space is model.space


@pytest.mark.parametrize("solver", ["primal", "dual"])
def test_outputs_of_training_rows(solver):
    model = linearize("classification", solver)
    spectral = model.for_many_ridges(few_rows=True)
    W = removals(model.weights)
    found, expected = (
        m.space.train_outputs(m.newton_steps(W)) for m in (spectral, model)
    )
    assert_allclose(found, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))
