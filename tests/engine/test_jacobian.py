import pytest
import torch
from numpy.testing import assert_allclose

import skattrib.engine._jacobian
from skattrib.engine._functional import FunctionalModule
from skattrib.engine._gradients import gradient_size, row_gradients
from skattrib.engine._jacobian import (
    ExplicitJacobian,
    FactoredJacobian,
    jacobian_of,
)
from skattrib.engine._solvers import Factor, add_diagonal
from tests.cases import MODULES, build, dense_jacobian, mlp

N_ROWS = 40
#: room for everything, and for a few rows at a time
MEMORY = [2.0**30, 1.0]
#: networks all of whose parameters are in dense layers
DENSE = {
    "mlp": lambda: mlp(4, 5, 3),
    "no bias": lambda: mlp(4, 5, 2, bias=False),
    "one layer": lambda: mlp(4, 3),
    "one output": lambda: mlp(4, 6, 5, 1),
}


def randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.fixture(params=DENSE)
def gradients(request):
    """Gradients in a metric, and the dense Jacobian (n, C, P) by autograd."""
    module = build(DENSE[request.param])
    X = randn(N_ROWS, 4)
    model = FunctionalModule(module)
    scale = randn(model.n_params, seed=1).abs() + 0.5
    _, found = row_gradients(model, X, scale)
    return found, dense_jacobian(module, X) * scale


@pytest.mark.parametrize("memory_bytes", MEMORY)
@pytest.mark.parametrize("kind", [ExplicitJacobian, FactoredJacobian])
def test_products_are_those_of_the_dense_jacobian(kind, memory_bytes, gradients):
    found, J = gradients
    n, C, P = J.shape
    ours, flat = kind(found, memory_bytes), J.reshape(n * C, P)
    rows = torch.tensor([7, 3, 3, 21])
    u, v, U = randn(6, n * C), randn(6, P), randn(4, C)
    assert ours.n_params == P
    assert_allclose(ours.explicit(), flat, atol=1e-14)
    assert_allclose(ours.of_rows(rows), J[rows], atol=1e-14)
    assert_allclose(ours.vjp(u), u @ flat, atol=1e-12)
    assert_allclose(ours.jvp(v), v @ flat.T, atol=1e-12)
    expected = torch.einsum("mc,mcp->mp", U, J[rows])
    assert_allclose(ours.row_vjp(rows, U), expected, atol=1e-13)
    expected = torch.einsum("mcp,mp->mc", J[rows], v[:4])
    assert_allclose(ours.row_jvp(rows, v[:4]), expected, atol=1e-13)


@pytest.mark.parametrize("memory_bytes", MEMORY)
@pytest.mark.parametrize("kind", [ExplicitJacobian, FactoredJacobian])
@pytest.mark.parametrize("some", [False, True])
def test_gauss_newton_is_the_sum_over_rows(some, kind, memory_bytes, gradients):
    found, J = gradients
    n, C, _ = J.shape
    roots = randn(n, C, C, seed=2)
    rows = torch.tensor([1, 5, 5, 30]) if some else None
    half = torch.einsum("ncd,ncp->ndp", roots, J)
    half = (half if rows is None else half[rows]).flatten(0, 1)
    ours = kind(found, memory_bytes).gauss_newton(roots, rows)
    assert_allclose(ours, half.T @ half, atol=1e-12)


@pytest.mark.parametrize("memory_bytes", MEMORY)
@pytest.mark.parametrize("wide", [0, 4, 100])
def test_curvature_is_a_product_with_the_gauss_newton_matrix(
    memory_bytes, wide, gradients, monkeypatch
):
    found, J = gradients
    monkeypatch.setattr(skattrib.engine._jacobian, "_WIDE", wide)
    n, C, P = J.shape
    blocks, v = randn(n, C, C, seed=2), randn(20, P)
    blocks = blocks + blocks.mT
    matrix = torch.einsum("ncp,ncd,ndr->pr", J, blocks, J)
    ours = FactoredJacobian(found, memory_bytes).curvature(blocks)(v)
    assert_allclose(ours, v @ matrix, atol=1e-10)


@pytest.mark.parametrize("memory_bytes", MEMORY)
def test_leverages_are_quadratic_forms(memory_bytes, gradients):
    found, J = gradients
    matrix = randn(J.shape[2], J.shape[2], seed=3)
    matrix, before = matrix + matrix.T, found.scale.clone()
    rows = torch.tensor([0, 39, 4])
    ours = FactoredJacobian(found, memory_bytes).leverages(matrix, rows)
    assert_allclose(ours, J[rows] @ matrix @ J[rows].mT, atol=1e-12)
    assert_allclose(found.scale, before, rtol=0)


def test_leverages_are_as_precise_as_the_matrix():
    """Gradients in float32, an inverse with large entries that cancel in float64."""
    model, X = FunctionalModule(build(DENSE["mlp"]).float()), randn(N_ROWS, 4).float()
    _, found = row_gradients(model, X)
    J = found.double().jacobian()
    curvature = J.T @ J
    inverse = Factor(add_diagonal(curvature, 1e-7)).inverse()
    rows = torch.arange(N_ROWS)
    ours = FactoredJacobian(found, 2.0**30).leverages(inverse, rows)
    blocks = J.view(N_ROWS, 3, -1)
    assert ours.dtype == torch.float64
    assert_allclose(ours, blocks @ inverse @ blocks.mT, atol=1e-8)


@pytest.mark.parametrize("name", MODULES)
def test_factors_are_used_where_all_layers_are_dense(name):
    factory, width = MODULES[name]
    model, X = FunctionalModule(build(factory)), randn(6, width)
    _, found = row_gradients(model, X)
    dense = isinstance(jacobian_of(found, 2.0**30), FactoredJacobian)
    assert dense == gradient_size(model, X).dense
    dense_ones = {"mlp", "no_bias", "one_layer", "in_place", "frozen_layer", "keyword"}
    assert dense == (name in dense_ones)
