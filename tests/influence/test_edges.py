"""Numbers at the edge: right, compared with brute force, or said.

The brute force is one Newton step without each row, in double precision, with row
Jacobians by plain autograd.
"""

import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.frozen import FrozenEstimator
from torch import nn

from skattrib import DualInfluence, TorchClassifier, TorchRegressor
from skattrib.exceptions import FaithfulnessWarning

RNG = np.random.RandomState(0)
X, X_QUERY = RNG.randn(40, 8), RNG.randn(4, 8)
CLASSES, VALUES = np.arange(40) % 3, RNG.randn(40)
Y_QUERY = np.array([0, 1, 2, 0])


def linear(n_outputs, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    layer = nn.utils.skip_init(nn.Linear, 8, n_outputs)
    with torch.no_grad():
        weight = torch.randn(n_outputs, 8, generator=generator)
        layer.weight.copy_(weight.mul(scale))
        layer.bias.zero_()
    return layer.double()


def network(n_outputs, scale=1.0):
    return nn.Sequential(
        linear(5), nn.Tanh(), nn.ZeroPad1d((0, 3)), linear(n_outputs, scale)
    )


def _row_jacobians(module, X):
    parameters = list(module.parameters())
    rows = []
    for row in torch.tensor(X):
        outputs = module(row[None]).reshape(-1)
        gradients = [
            torch.autograd.grad(output, parameters, retain_graph=True)
            for output in outputs
        ]
        rows.append([torch.cat([g.reshape(-1) for g in row]) for row in gradients])
    return np.array([[gradient.numpy() for gradient in row] for row in rows])


def _parts(outputs, y, is_class):
    """Residuals and Hessians in the outputs, and the outcomes."""
    if not is_class:
        residuals, ones = outputs - y[:, None], np.ones((len(y), 1, 1))
        return residuals, ones, lambda f, y: -0.5 * (f[:, 0] - y) ** 2
    p = torch.softmax(torch.tensor(outputs), 1).numpy()
    hessians = p[:, :, None] * np.eye(p.shape[1]) - p[:, :, None] * p[:, None]
    residuals = p - np.eye(p.shape[1])[y]

    def outcome(f, y):
        return torch.log_softmax(torch.tensor(f), 1).numpy()[np.arange(len(y)), y]

    return residuals, hessians, outcome


def brute_force(module, X, y, X_query, y_query, ridge, removal):
    is_class = y.dtype.kind == "i"
    J, J_query = _row_jacobians(module, X), _row_jacobians(module, X_query)
    with torch.no_grad():
        f, f_query = (module(torch.tensor(rows)).numpy() for rows in (X, X_query))
    residuals, hessians, outcome = _parts(f, y, is_class)
    gradients = np.einsum("ncp,nc->np", J, residuals)
    n = len(y)
    found = np.empty((len(X_query), n))

    def step(kept, without):
        H = np.einsum("ncp,ncd,ndq->pq", J[kept], hessians[kept], J[kept])
        H += ridge * len(J[kept]) * np.eye(H.shape[0])
        return -np.linalg.solve(H, without)

    for i in range(n):
        others = np.arange(n) != i
        # training left a gradient, which is spread over the rows
        pull = gradients[others].sum(0) - (n - 1) / n * gradients.sum(0)
        if removal == "newton":
            moved = f_query + J_query @ step(others, pull)
            found[:, i] = outcome(f_query, y_query) - outcome(moved, y_query)
        else:
            slopes = -_parts(f_query, y_query, is_class)[0]
            change = J_query @ step(slice(None), pull)
            found[:, i] = -(slopes * change).sum(1)
    return found


def _with_outlier():
    targets = VALUES.copy()
    targets[3] = 1e6
    return network(1), X, targets, X_QUERY, VALUES[:4], 0.1


def _with_large_row():
    rows = X.copy()
    rows[3] *= 1e6
    return network(3), rows, CLASSES, X_QUERY, Y_QUERY, 0.1


def _collinear(module, targets, targets_query, ridge):
    twice = np.hstack([X[:, :4], X[:, :4]]), np.hstack([X_QUERY[:, :4], X_QUERY[:, :4]])
    return module, twice[0], targets, twice[1], targets_query, ridge


def _constant_column():
    rows = X.copy()
    rows[:, 7] = 0
    return linear(3), rows, CLASSES, X_QUERY, Y_QUERY, 0.1


def _saturated(module):
    return module, X, CLASSES, X_QUERY, Y_QUERY, 0.1


CASES = {
    "target of 1e6": _with_outlier(),
    "row of 1e6": _with_large_row(),
    "collinear": _collinear(linear(3), CLASSES, Y_QUERY, 1e-6),
    "collinear, regression": _collinear(linear(1), VALUES, VALUES[:4], 1e-8),
    "constant column": _constant_column(),
    "saturated": _saturated(linear(3, 300.0)),
    "saturated network": _saturated(network(3, 500.0)),
}


def dual(module, ridge, dtype, **options):
    if dtype == np.float32:
        module = module.float()
    if module(torch.zeros(2, 8, dtype=next(module.parameters()).dtype)).shape[1] == 1:
        wrapped = TorchRegressor.from_module(module)
    else:
        wrapped = TorchClassifier.from_module(module, [0, 1, 2])
    module.double()
    options = {"metric": "identity", "ridge": ridge, "random_state": 0, **options}
    return DualInfluence(FrozenEstimator(wrapped), **options)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["single", "double"])
@pytest.mark.parametrize(
    ("solver", "removal"),
    [
        ("primal", "newton"),
        ("dual", "newton"),
        ("primal", "influence"),
        ("dual", "influence"),
        ("cg", "influence"),
    ],
)
@pytest.mark.parametrize("case", CASES)
def test_numbers_at_the_edge(case, solver, removal, dtype):
    module, rows, y, queries, y_query, ridge = CASES[case]
    expected = brute_force(module, rows, y, queries, y_query, ridge, removal)
    attributor = dual(module, ridge, dtype, solver=solver, removal=removal)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FaithfulnessWarning)
        found = attributor.fit(rows.astype(dtype), y).attribute(
            queries.astype(dtype), y_query
        )
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error < (2e-4 if dtype == np.float32 else 1e-6)


def test_a_regressor_that_fits_exactly_attributes_nothing():
    module = network(1)
    with torch.no_grad():
        y, y_query = (module(torch.tensor(rows))[:, 0].numpy() for rows in (X, X_QUERY))
    found = dual(module, 0.1, np.float64).fit(X, y).attribute(X_QUERY, y_query + 1)
    assert_allclose(found, 0, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["single", "double"])
@pytest.mark.parametrize("solver", ["primal", "dual", "cg"])
def test_a_column_of_another_scale_is_pointed_out(solver, dtype):
    scale = np.ones(8)
    scale[2] = 1e8
    module = linear(3)
    with torch.no_grad():
        module.weight[:, 2] *= 1e-8
    attributor = dual(module, 0.1, dtype, solver=solver, removal="influence")
    with pytest.warns(FaithfulnessWarning, match=r"ill-conditioned.*StandardScaler"):
        attributor.fit((X * scale).astype(dtype), CLASSES)
