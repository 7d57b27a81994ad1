"""Refits by conjugate gradients."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from skattrib import DualInfluence
from skattrib.engine._convex import _problem
from skattrib.evaluation import make_weightings


@pytest.mark.parametrize("n_classes", [2, 3])
def test_they_take_few_products(n_classes, monkeypatch):
    rng = np.random.RandomState(0)
    X = sparse.random(90, 300, density=0.1, random_state=rng, format="csr")
    y = rng.randint(n_classes, size=90)
    halves = make_weightings(90, 2, stratify=y, random_state=0)
    products, solve = [], _problem.conjugate_gradient

    def counted(product, *args, **options):
        def counting(values):
            products.append(len(values))
            return product(values)

        return solve(counting, *args, **options)

    monkeypatch.setattr(_problem, "conjugate_gradient", counted)
    model = LogisticRegression(C=10.0, tol=1e-10, max_iter=10_000)
    found = [
        DualInfluence(model, solver=solver, random_state=0)
        .fit(X, y)
        .predict_outcomes(X, y, halves)
        for solver in ("cg", "dual")
    ]
    np.testing.assert_allclose(*found, atol=1e-8)
    assert len(products) < 1000
