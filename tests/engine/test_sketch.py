"""Sketches keep inner products as theory says; blocks of gradients are autograd's."""

import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from skattrib.engine._functional import FunctionalModule
from skattrib.engine._sketch import (
    draw_tables,
    numbers_per_row,
    outcome_gradients,
    sketch,
)
from tests.cases import LOSSES, MODULES, build_case, randn, trainable


def dense(indices, signs, n_components):
    """The projection as a matrix (P, n_components)."""
    matrix = torch.zeros(indices.shape[1], n_components, dtype=torch.float64)
    for index, sign in zip(indices, signs, strict=True):
        for feature, (i, s) in enumerate(zip(index, sign, strict=True)):
            matrix[feature, i] += s.item() / len(indices) ** 0.5
    return matrix


# --------------------------------------------------------------------- sketches
@pytest.mark.parametrize("n_hashes", [1, 3])
def test_tables(n_hashes):
    indices, signs = draw_tables(50, 6, n_hashes, seed=0)
    assert indices.shape == signs.shape == (n_hashes, 50)
    assert (indices.dtype, signs.dtype) == (torch.int32, torch.int8)
    for block, index in enumerate(indices // (6 // n_hashes)):
        assert set(index.tolist()) == {block}
    assert set(indices.flatten().tolist()) == set(range(6))
    assert set(signs.flatten().tolist()) == {-1, 1}
    again = draw_tables(50, 6, n_hashes, seed=0)
    assert torch.equal(indices, again[0])
    assert torch.equal(signs, again[1])
    assert not torch.equal(indices, draw_tables(50, 6, n_hashes, seed=1)[0])


@pytest.mark.parametrize("shape", [(7,), (4, 7), (2, 3, 7)])
@pytest.mark.parametrize("n_hashes", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sketch_is_a_product_with_the_matrix(shape, n_hashes, dtype):
    tables = draw_tables(7, 4, n_hashes, seed=3)
    X = randn(*shape, dtype=dtype)
    before = X.clone()
    found = sketch(X, *tables, 4)
    assert found.dtype == dtype
    expected = X.double() @ dense(*tables, 4)
    assert_allclose(
        found, expected, rtol=0, atol=1e-5 if dtype.itemsize == 4 else 1e-14
    )
    assert torch.equal(X, before)


def test_sketches_of_blocks_add_up():
    indices, signs = draw_tables(20, 6, 2, seed=0)
    X = randn(3, 20)
    parts = [
        sketch(X[:, part], indices[:, part], signs[:, part], 6)
        for part in (slice(0, 7), slice(7, 8), slice(8, 20))
    ]
    assert_allclose(sum(parts), sketch(X, indices, signs, 6), rtol=0, atol=1e-14)


@pytest.mark.parametrize("n_hashes", [1, 4])
def test_inner_products_have_the_mean_and_the_variance_of_theory(n_hashes):
    n_draws, m = 8000, 8
    x, y = randn(2, 10, seed=5)
    y = y + 0.5 * x
    pair = torch.stack([x, y])
    draws = torch.empty(n_draws, dtype=torch.float64)
    for seed in range(n_draws):
        sx, sy = sketch(pair, *draw_tables(10, m, n_hashes, seed), m)
        draws[seed] = sx @ sy
    own = (x**2).sum() * (y**2).sum() + (x @ y) ** 2 - 2 * (x**2 * y**2).sum()
    variance = own / m
    # the mean within 4 standard errors, the variance within 4 of its own
    assert abs(draws.mean() - x @ y) < 4 * (variance / n_draws) ** 0.5
    squares = (draws - x @ y) ** 2
    assert abs(squares.mean() - variance) < 4 * squares.std() / n_draws**0.5
    assert squares.std() / n_draws**0.5 < 0.05 * variance  # so that 4 can tell


# -------------------------------------------------------------------- gradients
def outcome_gradient(module, row, outcome, task):
    """The gradient (P,) of one row's outcome by plain autograd."""
    outputs = module(row[None]).reshape(1, -1)
    own = outputs.argmax(dim=1) if task == "classification" else outputs.detach()
    value = LOSSES[task].outcome(outcome)(outputs, own).sum()
    params = trainable(module)
    found = torch.autograd.grad(value, params, materialize_grads=True)
    return torch.cat([g.reshape(-1) for g in found])


def assembled(module, X, outcome, task, max_numbers):
    """The gradients (n, P), put together, and the sizes of the blocks."""
    model = FunctionalModule(module)
    function = LOSSES[task].outcome(outcome)
    found = torch.full((len(X), model.n_params), torch.nan, dtype=X.dtype)
    sizes = []
    for columns, block in outcome_gradients(
        model, X, function, LOSSES[task], max_numbers
    ):
        assert found[:, columns].isnan().all()
        found[:, columns] = block
        sizes.append(block.numel())
    return found, sizes


@pytest.mark.parametrize("max_numbers", [1, 20, 10**6])
@pytest.mark.parametrize("name", MODULES)
def test_gradients_of_outcomes_are_autograds(name, max_numbers):
    module, X = build_case(name)
    if name == "bare_parameter":
        outcome, task = "prediction", "regression"
    else:
        outcome, task = "log_likelihood", "classification"
    found, _ = assembled(module, X, outcome, task, max_numbers)
    expected = torch.stack([outcome_gradient(module, x, outcome, task) for x in X])
    assert expected.abs().max() > 1e-3
    assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("outcome", "task"),
    [
        ("margin", "classification"),
        (lambda f, y: (f * y.detach()).sum(dim=-1), "regression"),
        (lambda f, y: f.gather(-1, y[..., None])[..., 0], "classification"),
    ],
)
def test_other_outcomes(outcome, task):
    module, X = build_case("mlp", n_rows=5)
    found, _ = assembled(module, X, outcome, task, 30)
    expected = torch.stack([outcome_gradient(module, x, outcome, task) for x in X])
    assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_own_predictions_are_constants():
    module, X = build_case("mlp")
    found, _ = assembled(module, X, "log_likelihood", "regression", 100)
    assert_array_equal(found, torch.zeros_like(found))


def test_blocks_stay_below_the_limit():
    module, X = build_case("mlp", n_rows=3)  # layers of (5, 4 + 1) and (3, 5 + 1)
    _, sizes = assembled(module, X, "margin", "classification", 3 * 2 * 6)
    assert max(sizes) <= 3 * 2 * 6
    _, sizes = assembled(module, X, "margin", "classification", 10**9)
    assert len(sizes) == 4


def test_numbers_per_row():
    module, X = build_case("mlp")
    # inputs with a one, and 3 outputs' signals, of layers 4 - 5 - 3
    model = FunctionalModule(module)
    assert numbers_per_row(model, X[:1]) == (5 + 3 * 5) + (6 + 3 * 3)
    module, X = build_case("bare_parameter")
    # layer 4 - 3 and one output, the bare parameter of 3
    assert numbers_per_row(FunctionalModule(module), X[:1]) == (5 + 3) + 3


def test_an_outcome_of_another_shape_is_refused():
    module, X = build_case("mlp")
    with pytest.raises(ValueError, match="it must drop the last axis and keep"):
        assembled(module, X, lambda f, y: f, "classification", 10)
