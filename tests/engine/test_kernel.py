"""Kernel blocks equal the products of dense Jacobians, however little memory."""

import pytest
from numpy.testing import assert_allclose

from skattrib.engine import _kernel
from skattrib.engine._functional import FunctionalModule
from skattrib.engine._gradients import row_gradients
from skattrib.engine._kernel import kernel_block
from tests.cases import MODULES, build_case, dense_jacobian, randn

PLENTY, NEXT_TO_NOTHING = 2.0**30, 1.0


@pytest.mark.parametrize("memory_bytes", [PLENTY, NEXT_TO_NOTHING])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_block_is_the_product_of_jacobians(name, same, scaled, memory_bytes):
    module, X = build_case(name, n_rows=3)
    other = X if same else randn(4, X.shape[1], seed=7)
    one, two = dense_jacobian(module, X), dense_jacobian(module, other)
    n_params = one.shape[2]
    scale = randn(n_params, seed=3).abs() + 0.1 if scaled else None
    model = FunctionalModule(module)
    left, right = (row_gradients(model, rows, scale)[1] for rows in (X, other))
    right = left if same else right
    if scaled:
        one, two = one * scale, two * scale
    expected = one.flatten(0, 1) @ two.flatten(0, 1).T
    block = kernel_block(left, right, memory_bytes)
    assert_allclose(block, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", ["mlp", "conv", "sequence"])
def test_memory_cap_is_kept(name, scaled, monkeypatch):
    """With little memory, the work is really cut, to pieces that fit."""
    sizes = []
    chunks = _kernel.chunks

    def recording(n, size):
        pieces = list(chunks(n, size))
        sizes.append(len(pieces))
        return pieces

    monkeypatch.setattr(_kernel, "chunks", recording)
    module, X = build_case(name, n_rows=3)
    scale = None
    if scaled:
        n_params = dense_jacobian(module, X).shape[2]
        scale = randn(n_params).abs()
    _, gradients = row_gradients(FunctionalModule(module), X, scale)
    kernel_block(gradients, gradients, PLENTY)
    assert all(n == 1 for n in sizes)
    n_whole, sizes[:] = len(sizes), []
    kernel_block(gradients, gradients, NEXT_TO_NOTHING)
    assert len(sizes) == n_whole
    assert all(n > 1 for n in sizes)
    assert sizes
