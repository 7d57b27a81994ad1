"""Factored gradients equal plain autograd, row by row and output by output."""

import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import EfficiencyWarning
from torch import nn

from skattrib.engine import _gradients
from skattrib.engine._functional import FunctionalModule
from skattrib.engine._gradients import gradient_size, row_gradients
from skattrib.engine._kernel import kernel_block
from tests.cases import (
    MODULES,
    TiedInForward,
    Twice,
    build,
    build_case,
    dense_jacobian,
    mlp,
    randn,
    trainable,
)


def column_scale(n_params, scaled):
    return randn(n_params, seed=3).abs() + 0.1 if scaled else None


@pytest.fixture(params=MODULES)
def case(request):
    """Module, rows, and the Jacobian (n, C, P) of autograd."""
    module, X = build_case(request.param)
    return module, X, dense_jacobian(module, X)


@pytest.mark.parametrize("scaled", [False, True])
def test_products_with_the_jacobian(case, scaled):
    module, X, J = case
    n, C, P = J.shape
    scale = column_scale(P, scaled)
    outputs, gradients = row_gradients(FunctionalModule(module), X, scale)
    assert gradients.shape == (n, C)
    assert gradients.n_params == P
    J = J if scale is None else J * scale
    u, v = randn(2, n, C, seed=4), randn(3, P, seed=5)
    with torch.no_grad():
        assert_array_equal(outputs, module(X).reshape(n, C))
    close = {"rtol": 0, "atol": 1e-12}
    assert_allclose(gradients.jacobian(), J.flatten(0, 1), **close)
    vjp = torch.einsum("mnc,ncp->mp", u, J)
    assert_allclose(gradients.vjp(u), vjp, **close)
    assert_allclose(gradients.jvp(v), torch.einsum("ncp,mp->mnc", J, v), **close)
    squares = torch.einsum("nc,ncp->np", u[0], J).square().sum(dim=0)
    assert_allclose(gradients.squared_sum(u[0]), squares, **close)


def test_module_is_left_as_it_was(case):
    module, X, _ = case
    before = {k: v.clone() for k, v in module.state_dict().items()}
    rows = X.clone()
    for p in trainable(module):
        p.grad = torch.ones_like(p)
    row_gradients(FunctionalModule(module), X)
    after = module.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert torch.equal(X, rows)
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in trainable(module))
    hooks = [list(layer._forward_hooks) for layer in module.modules()]
    assert not any(hooks)


@pytest.mark.parametrize(
    ("name", "factored"),
    [
        ("mlp", {"0.weight", "0.bias", "2.weight", "2.bias"}),
        ("layer_norm", {"0.weight", "0.bias", "3.weight", "3.bias"}),
        # at many positions factors are longer than the gradients that they make
        ("sequence", {"4.weight", "4.bias"}),
        ("conv", {"4.weight", "4.bias"}),
        ("conv_grouped", {"4.weight", "4.bias"}),
        ("in_place", {"0.weight", "0.bias", "2.weight", "2.bias"}),
        ("twice", {"head.weight", "head.bias"}),
        ("tied", set()),
        ("frozen_layer", {"2.weight", "2.bias"}),
        ("frozen_bias", {"2.weight", "2.bias"}),
    ],
)
def test_what_is_kept_factored(name, factored):
    """Explicit gradients cost n·C·P numbers: the usual layers must not fall back."""
    module, X = build_case(name)
    model = FunctionalModule(module)
    _, gradients = row_gradients(model, X)
    assert {k for layer in gradients.layers for k in layer.names} == factored
    assert set(gradients.rest) == set(model.names) - factored
    spelled = gradients.without_factors(model.names)
    assert not spelled.layers
    assert_allclose(spelled.jacobian(), gradients.jacobian(), atol=1e-6)
    block = kernel_block(gradients, gradients, 1e9)
    assert_allclose(kernel_block(spelled, gradients, 1e9), block, rtol=1e-4, atol=1e-6)


def test_layer_without_influence_has_zero_gradient():
    """A layer that is called, but whose output is not used."""

    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x):
            self.idle(x)
            return self.used(x)

    module, X = build(Idle), randn(3, 4)
    _, gradients = row_gradients(FunctionalModule(module), X)
    expected = dense_jacobian(module, X).flatten(0, 1)
    assert_allclose(gradients.jacobian(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("factor", [1e-8, 1e-4, 1e4])
def test_gradients_of_any_size_are_right_in_float32(factor):
    """A weight used once more in forward() is noticed, however small its gradient."""

    class Small(TiedInForward):
        def forward(self, x):
            return factor * super().forward(x)

    module, X = build(Small, dtype=torch.float32), randn(3, 4, dtype=torch.float32)
    _, gradients = row_gradients(FunctionalModule(module), X)
    expected = dense_jacobian(module, X).flatten(0, 1)
    assert_allclose(gradients.jacobian(), expected, rtol=0, atol=1e-5 * factor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(dtype):
    module, X = build_case("layer_norm", dtype=dtype)
    outputs, gradients = row_gradients(FunctionalModule(module), X)
    assert outputs.dtype == gradients.jacobian().dtype == dtype


def test_callers_grad_mode_and_inference_do_not_matter():
    module, X = build_case("mlp")
    model = FunctionalModule(module)
    _, outside = row_gradients(model, X)
    with torch.no_grad():
        _, inside = row_gradients(model, X)
    assert_array_equal(inside.jacobian(), outside.jacobian())


class Item(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.factor = nn.Linear(4, 2), nn.Parameter(torch.ones(2))

    def forward(self, x):
        x = x if x.sum().item() > -1e9 else -x
        return self.layer(x) * self.factor


def test_module_that_torch_func_cannot_take():
    module, X = build(Item), randn(3, 4)
    model = FunctionalModule(module)
    with pytest.warns(EfficiencyWarning, match=r"Item: .*jacrev fails: .*row by row"):
        _, gradients = row_gradients(model, X)
    factor = module.layer(X)[:, :, None] * torch.eye(2)
    assert_allclose(gradients.rest["factor"], factor.detach(), rtol=0, atol=1e-14)
    with warnings.catch_warnings():  # said once
        warnings.simplefilter("error")
        row_gradients(model, X)


def test_rows_of_numbers_that_are_not_finite_prove_nothing():
    module, X = build(Item), randn(3, 4)
    module.forward = lambda x: module.layer(x) * module.factor
    X[0, 0] = torch.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, gradients = row_gradients(FunctionalModule(module), X)
    assert gradients.rest["factor"][1:].isfinite().all()


def test_threads_do_not_disturb_each_other():
    """Hooks of one call must not see the rows of another."""

    class Slow(Twice):
        def forward(self, x):
            time.sleep(1e-3)  # lets another thread in
            return super().forward(x)

    model = FunctionalModule(build(Slow))
    rows = [randn(5, 4, seed=i) for i in range(8)]
    alone = [row_gradients(model, X)[1].jacobian() for X in rows]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda X: row_gradients(model, X)[1].jacobian(), rows))
    assert all(map(np.array_equal, together, alone))


def test_gradients_follow_the_modules_present_weights():
    module, X = build(lambda: mlp(4, 5, 3)), randn(3, 4)
    model = FunctionalModule(module)
    _, first = row_gradients(model, X)
    model.load(model.flatten() + 0.1)
    _, second = row_gradients(model, X)
    expected = dense_jacobian(module, X).flatten(0, 1)
    assert_allclose(second.jacobian(), expected, rtol=0, atol=1e-12)
    assert not torch.allclose(first.jacobian(), second.jacobian())


# ------------------------------------------------------------------ under a cap
@pytest.mark.parametrize("memory_bytes", [1.0, 2.0**30])
def test_a_cap_changes_nothing(case, memory_bytes):
    module, X, J = case
    scale = column_scale(J.shape[2], scaled=True)
    outputs, gradients = row_gradients(FunctionalModule(module), X, scale, memory_bytes)
    assert gradients.shape == J.shape[:2]
    with torch.no_grad():
        assert_allclose(outputs, module(X).reshape(J.shape[:2]), rtol=1e-12)
    jacobian = (J * scale).flatten(0, 1)
    assert_allclose(gradients.jacobian(), jacobian, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["mlp", "layer_norm", "conv"])
def test_rows_are_taken_in_pieces_that_fit(name, monkeypatch):
    module, X = build_case(name, n_rows=24)
    model, sizes = FunctionalModule(module), []
    inner = _gradients._gradients_of_rows

    def recording(model, module, X, explicit):
        piece = inner(model, module, X, explicit)
        sizes.append((len(X), sum(t.nbytes for t in piece.tensors)))
        return piece

    monkeypatch.setattr(_gradients, "_gradients_of_rows", recording)
    _, whole = row_gradients(model, X)
    assert [n for n, _ in sizes] == [24]
    cap = sizes[0][1]
    sizes.clear()
    _, pieces = row_gradients(model, X, None, cap)
    (n_probed, _), *later = sizes
    assert n_probed == 2
    assert sum(n for n, _ in later) == 24
    assert len(later) > 4
    assert all(n_bytes <= cap / 4 for _, n_bytes in later)
    assert {k for layer in pieces.layers for k in layer.names} == {
        k for layer in whole.layers for k in layer.names
    }


def test_what_gradients_will_hold_is_known_before(case):
    module, X, _ = case
    model = FunctionalModule(module)
    _, gradients = row_gradients(model, X)
    outputs = X.shape[0] * gradients.shape[1]
    expected = (gradients.n_numbers + outputs) * X.element_size()
    assert gradient_size(model, X).n_bytes == expected


def test_layer_that_some_numbers_of_rows_do_not_call():
    """Pieces of 4 rows and one of 2, which has no factors for the first layer."""

    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x):
            if len(x) == 2:
                x = nn.functional.linear(x, self.first.weight, self.first.bias)
            else:
                x = self.first(x)
            return self.second(x.tanh())

    module, X = build(Sometimes), randn(10, 4)
    model = FunctionalModule(module)
    found = _gradients._by_pieces(model, module, X, 4)
    assert [layer.names for layer in found.layers] == [("second.weight", "second.bias")]
    assert set(found.rest) == {"first.weight", "first.bias"}
    gradients = _gradients.RowGradients(model, found.layers, found.rest, (10, 2))
    expected = dense_jacobian(module, X).flatten(0, 1)
    assert_allclose(gradients.jacobian(), expected, rtol=0, atol=1e-12)
