"""Penalties against autograd, and their prox against a search."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.optimize import minimize_scalar

from skattrib.engine._penalties import ElasticNet, WeightDecay, l1, l2, scale_with

THETA = torch.tensor([[0.7, -1.3, 0.02, 0.4]], dtype=torch.float64)
BUT_THE_LAST = torch.tensor([1.0, 1, 1, 0], dtype=torch.float64)
CASES = {
    "l2": l2(0.3),
    "l1": l1(0.3),
    "elastic net": ElasticNet(0.2, 0.5),
    "no intercept": l2(0.3 * BUT_THE_LAST),
}


@pytest.mark.parametrize("penalty", CASES.values(), ids=CASES)
def test_diagonal_is_the_second_derivative(penalty):
    second = torch.func.jacrev(torch.func.jacrev(penalty.value))(THETA[0])
    assert_allclose(penalty.diagonal(THETA)[0], second.diagonal(), atol=1e-14)
    assert_allclose(second, torch.diag(second.diagonal()), atol=1e-14)


@pytest.mark.parametrize("penalty", CASES.values(), ids=CASES)
def test_prox_is_a_minimum(penalty):
    found = penalty.prox(THETA, 0.6)[0]
    for j, start in enumerate(THETA[0]):

        def objective(u, j=j, start=float(start)):
            moved = THETA[0].clone()
            moved[j] = u
            return float(penalty.value(moved)) + (u - start) ** 2 / 1.2

        best = minimize_scalar(objective, bounds=(-2, 2), method="bounded")
        assert_allclose(found[j], best.x, atol=1e-5)


def test_decay_is_that_of_adamw():
    theta = THETA[0].clone().requires_grad_()
    theta.grad = torch.zeros_like(theta)
    torch.optim.AdamW([theta], lr=0.1, weight_decay=0.2).step()
    penalty = WeightDecay(0.2)
    assert_allclose(penalty.prox(THETA[0], 0.1), theta.detach(), rtol=1e-14)
    assert (
        float(penalty.value(THETA)) == float(penalty.diagonal(THETA).abs().max()) == 0
    )


def test_scales():
    share = torch.tensor([1.0, 0.5, 0.0])
    assert_allclose(scale_with("fixed", share), np.ones(3))
    assert_allclose(scale_with("per_sample", share), [1, 0.5, 1])
    assert_allclose(l2(1.0, "fixed").scale(share), np.ones(3))
