"""G, one function for training and differentiation, against plain autograd."""

import pytest
import torch
from numpy.testing import assert_allclose

from skattrib.engine import _adjoint
from skattrib.engine._adjoint import differentiate_run
from skattrib.engine._dense_hessian import DenseGradient
from skattrib.engine._functional import FunctionalModule
from skattrib.engine._losses import CrossEntropy
from skattrib.engine._minibatch import Minibatch, row_shares, same_seeds
from skattrib.engine._optimizers import SGD
from skattrib.engine._trajectory import Recipe
from tests.cases import build, mlp, randn

M, N = 3, 7


def problem():
    model = FunctionalModule(build(lambda: mlp(4, 5, 3)))
    params = randn(M, model.n_params, seed=1)
    minibatch = Minibatch(model, CrossEntropy(), randn(N, 4), torch.arange(N) % 3)
    return minibatch, params, row_shares(randn(M, N, seed=2).abs())


@pytest.mark.parametrize("rows", [None, torch.tensor([4, 0, 2])])
def test_one_function_three_ways(rows):
    minibatch, params, shares = problem()
    shares = shares if rows is None else shares[:, rows]
    seeds = same_seeds(M, 0, params)
    gradients, after, losses = minibatch(params, shares, rows, seeds)
    assert after.shape == (M, 0)
    taken = slice(None) if rows is None else rows
    for i in range(M):
        vector = params[i].clone().requires_grad_()
        outputs = minibatch.model.outputs(vector, minibatch.X[taken])
        values = minibatch.loss.values(outputs, minibatch.targets[taken])
        mean = (values * shares[i]).sum()
        (expected,) = torch.autograd.grad(mean, vector)
        assert_allclose(losses[i], mean.detach(), rtol=1e-14)
        assert_allclose(gradients[i], expected, rtol=0, atol=1e-14)
        alone = minibatch.moved(params[i], shares[i], rows, seeds[i])
        assert_allclose(alone, expected, rtol=0, atol=1e-14)
        one = slice(i, i + 1)
        single, *_ = minibatch(params[one], shares[one], rows, seeds[one])
        assert_allclose(single[0], expected, rtol=0, atol=1e-14)


class Wrong(DenseGradient):
    """Second derivatives that are not those of the gradient."""

    def products(self, cotangents):
        curved, dots = super().products(cotangents)
        return 1.01 * curved, dots


def test_a_fast_way_that_differs_is_not_taken(monkeypatch):
    minibatch, params, _ = problem()
    rates = torch.full((4,), 0.1, dtype=torch.float64)
    recipe = Recipe(SGD(), rates, params[0], None)
    arguments = (
        minibatch.model,
        minibatch.loss,
        recipe,
        minibatch.X,
        minibatch.targets,
    )
    cotangents = randn(1, 2, minibatch.model.n_params, seed=5)
    weights = torch.ones(1, N, dtype=torch.float64)
    expected = differentiate_run(*arguments, weights, cotangents, memory_bytes=2.0**30)
    monkeypatch.setattr(_adjoint, "DenseGradient", Wrong)
    with pytest.warns(UserWarning, match="differ from those of autograd"):
        found = differentiate_run(*arguments, weights, cotangents, memory_bytes=2.0**30)
    assert_allclose(found, expected, rtol=0, atol=1e-13)
