"""Subspaces spanned by gradients of some rows."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from skattrib.engine._functional import FunctionalModule
from skattrib.engine._gradients import row_gradients
from skattrib.engine._projection import LandmarkProjector
from tests.cases import Scaled, build, mlp, randn

PLENTY = 2.0**30
N = 12


def gradients_of(module, X, scaled=True):
    model = FunctionalModule(module)
    scale = (randn(model.n_params, seed=3).abs() + 0.3).to(X) if scaled else None
    return row_gradients(model, X, scale)[1]


def small(dtype=torch.float64):
    module = build(lambda: mlp(3, 4, 2), dtype=dtype)
    return module, randn(N, 3, seed=1).to(dtype)


def with_a_parameter_of_its_own():
    return build(Scaled), randn(N, 4, seed=1)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("make", [small, with_a_parameter_of_its_own])
@pytest.mark.parametrize("memory_bytes", [PLENTY, 1e3])
def test_all_rows_as_landmarks_lose_nothing(make, scaled, memory_bytes):
    gradients = gradients_of(*make(), scaled)
    projector = LandmarkProjector(gradients, torch.arange(N), memory_bytes)
    features = projector.project(gradients).jacobian()
    jacobian = gradients.jacobian()
    kernel = jacobian @ jacobian.T
    assert_allclose(features @ features.T, kernel, rtol=0, atol=1e-9 * kernel.max())
    # the step towards a row's gradient is that gradient, in the scaled parameters
    lifted = projector.lift(features)
    scale = 1.0 if gradients.scale is None else gradients.scale
    error = (lifted - jacobian * scale).abs().max() / jacobian.abs().max()
    assert error < 1e-6


def test_few_landmarks_project_onto_their_span():
    gradients = gradients_of(*small())
    rows = torch.tensor([7, 2, 5])
    found = LandmarkProjector(gradients, rows, PLENTY).project(gradients).jacobian()
    jacobian = gradients.jacobian()
    some = jacobian.view(N, 2, -1)[rows].flatten(0, 1).numpy()
    basis = np.linalg.svd(some, full_matrices=False)[2]
    expected = jacobian.numpy() @ basis.T
    assert found.shape == (N * 2, 6)
    assert_allclose(found @ found.T, expected @ expected.T, rtol=0, atol=1e-9)


def test_repeated_rows_in_float32_are_no_harm():
    """Their gradients are the same: the kernel of landmarks is singular."""
    module, X = small(torch.float32)
    X[6:] = X[:6] + 1e-6
    gradients = gradients_of(module, X)
    projector = LandmarkProjector(gradients, torch.arange(N), PLENTY)
    features = projector.project(gradients).jacobian()
    assert features.dtype == torch.float32
    jacobian = gradients.jacobian()
    kernel = jacobian @ jacobian.T
    assert_allclose(features @ features.T, kernel, rtol=0, atol=1e-5 * kernel.max())
    lifted = projector.lift(features)
    expected = jacobian * gradients.scale
    assert_allclose(lifted, expected, rtol=0, atol=1e-4 * expected.abs().max())


def test_products_are_the_same_as_of_a_plain_layer():
    layer = build(lambda: nn.Linear(3, 1))
    X = randn(N, 3, seed=1)
    gradients = gradients_of(layer, X, scaled=False)
    found = LandmarkProjector(gradients, torch.arange(8), PLENTY).project(gradients)
    inputs = torch.cat([X, torch.ones(N, 1).double()], dim=1)
    # they span all four parameters
    features = found.jacobian()
    assert_allclose(features @ features.T, inputs @ inputs.T, rtol=0, atol=1e-9)
