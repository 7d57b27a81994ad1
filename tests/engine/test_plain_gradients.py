"""Plain autograd takes the place of transforms that fail or are wrong."""

import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import EfficiencyWarning
from torch import nn

from skattrib.engine import _plain_gradients
from skattrib.engine._functional import FunctionalModule, run_module
from skattrib.engine._gradients import row_gradients
from skattrib.engine._plain_gradients import (
    agree,
    finite,
    row_jacobians,
    summary,
    transposed_products,
    vector_jacobian,
)
from tests.cases import randn
from tests.plain_cases import FAST, SLOW, Padded, build, plain_jacobians


@pytest.mark.parametrize("name", SLOW | FAST)
def test_row_jacobians(name):
    module, X = build(name), randn(4, 8)
    names = [k for k, _ in module.named_parameters()]
    found = row_jacobians(module, X, names)
    joined = torch.cat([found[k] for k in names], dim=-1)
    assert_allclose(joined, plain_jacobians(module, X), rtol=0, atol=1e-14)


def test_sparse_gradients():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(randn(5, 3))

        def forward(self, x):
            rows = (x > 0).long().sum(1)
            return nn.functional.embedding(rows, self.table, sparse=True)

    module, X = Words(), randn(6, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EfficiencyWarning)
        _, gradients = row_gradients(FunctionalModule(module), X)
    counts = (X > 0).sum(1)
    expected = (
        nn.functional.one_hot(counts, 5)[:, None, :, None] * torch.eye(3)[:, None]
    )
    assert_array_equal(gradients.jacobian(), expected.reshape(18, 15))


def test_a_transform_that_is_wrong_is_found(monkeypatch):
    def jacrev(function):
        return lambda vector: 1.01 * torch.func.jacrev(function)(vector)

    def function(vector):
        return vector**3

    vector, model = randn(5), FunctionalModule(nn.Identity())
    expected = torch.diag(3 * vector**2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_allclose(vector_jacobian(model, function, vector), expected)
    monkeypatch.setattr(_plain_gradients, "jacrev", jacrev)
    with pytest.warns(EfficiencyWarning, match=r"Identity: .* differs .* one by one"):
        assert_allclose(vector_jacobian(model, function, vector), expected)


@pytest.mark.parametrize("one_by_one", [False, True])
def test_transposed_products(one_by_one):
    a, b = (x.requires_grad_() for x in (randn(3), randn(3, seed=1)))
    u = randn(4, 3, seed=2)
    found = transposed_products(a * b, (a, b), u, one_by_one=one_by_one)
    assert_allclose(found[0], (u * b).detach())
    assert_allclose(found[1], (u * a).detach())


def test_comparison():
    a = randn(5)
    assert agree(a, a * (1 + 1e-12))
    assert agree(0 * a, 0 * a)
    assert not agree(a, 1.001 * a)
    assert not agree(a * 1e-13, -a * 1e-13)
    assert agree(a * 1e-13, -a * 1e-13, usual=10.0)
    assert not agree(a, a * torch.nan)
    assert finite([a])
    assert not finite([a, a * torch.inf])


def test_summary_of_an_error():
    assert summary(ValueError("one.\ntwo")) == "one"
    assert len(summary("a" * 1000)) < 200


# ------------------------------------------------------------- switches of torch's
def test_fast_attention_is_off_and_on_again():
    seen = []

    class Looks(nn.Module):
        def forward(self, x):
            seen.append(torch.backends.mha.get_fastpath_enabled())
            if x.ndim == 1:
                raise ValueError("one axis")
            return run_module(self, x[0]) if x.ndim == 3 else x

    run_module(Looks(), torch.zeros(1, 1, 1))
    with pytest.raises(ValueError, match="one axis"):
        run_module(Looks(), torch.zeros(1))
    assert seen == [False] * 3
    assert torch.backends.mha.get_fastpath_enabled()


def test_an_encoder_is_the_same_without_its_fast_attention():
    with torch.random.fork_rng():
        module, X = Padded().double().eval(), randn(9, 8)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's nested tensors
        assert_allclose(run_module(module, X), module(X), atol=1e-14)


# ------------------------------------------------------------------- checkpoints
@pytest.mark.parametrize("name", ["checkpoint", "lstm", "custom", "padded"])
def test_parameters_stay_for_a_backward_pass_that_runs_layers_again(name):
    module, X = build(name), randn(4, 8)
    model = FunctionalModule(module)
    model.look(X)
    assert model.recomputes == (name == "checkpoint")
    assert model.apart().recomputes == model.recomputes

    vector = (1.3 * model.flatten()).requires_grad_()
    (found,) = torch.autograd.grad(model.outputs(vector, X).sum(), vector)
    model.load(vector.detach())
    expected = plain_jacobians(module, X).sum((0, 1))
    assert_allclose(found, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


def test_tied_parameters_stay_tied():
    class Tied(type(build("checkpoint"))):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(8, 4, bias=False)
            self.inner = nn.Linear(4, 4, bias=False)
            self.other = nn.Linear(4, 4, bias=False)
            self.other.weight = self.inner.weight

        def _block(self, x):
            return self.other(super()._block(x))

    with torch.random.fork_rng():
        module, X = Tied().double(), randn(4, 8)
    model = FunctionalModule(module)
    model.look(X)
    assert model.recomputes
    vector = (1.3 * model.flatten()).requires_grad_()
    (found,) = torch.autograd.grad(model.outputs(vector, X).sum(), vector)
    model.load(vector.detach())
    assert_allclose(found, plain_jacobians(module, X).sum((0, 1)), rtol=1e-10)
