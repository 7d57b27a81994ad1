"""Identities of refits: plain autograd, optimality, and three spaces that agree."""

import numpy as np
import pytest
import torch
from scipy import sparse

from skattrib.engine._convex import ConvexRefits, Objective, plan_convex, rows_of
from skattrib.engine._convex._lasso import minimize_quadratic
from skattrib.engine._losses import CrossEntropy, SquaredError
from skattrib.engine._losses._generalized import (
    HalfDeviance,
    LogLinkDeviance,
    SquaredHinge,
    SquaredSigns,
    SquaredTube,
)
from skattrib.engine._losses._labels import BinaryCrossEntropies, BinaryCrossEntropy
from skattrib.engine._row_weights import RowWeighting
from skattrib.engine._solvers import PencilFactor, ScaledFactor

N, P = 30, 4
RNG = np.random.RandomState(0)
X = RNG.randn(N, P)
CODES = torch.tensor(RNG.randint(3, size=N))
NUMBERS = torch.tensor(RNG.uniform(0.5, 3, (N, 2)))
# loss, targets, number of outputs
LOSSES = {
    "squared": (SquaredError(), NUMBERS, 2),
    "logistic": (BinaryCrossEntropy(), CODES.clamp(max=1), 1),
    "softmax": (CrossEntropy(), CODES, 3),
    "labels": (BinaryCrossEntropies(), torch.eye(3).double()[CODES], 3),
    "poisson": (LogLinkDeviance(1.0), NUMBERS, 2),
    "tweedie": (LogLinkDeviance(1.5), NUMBERS, 2),
    "gamma": (LogLinkDeviance(2.0), NUMBERS, 2),
    "signs": (SquaredSigns(), CODES, 3),
    "hinge": (SquaredHinge(), CODES, 3),
    "tube": (SquaredTube(0.2), NUMBERS, 2),
}


def objective(name, *, regularization="fixed", l1=0.0, balanced=False, weights=None):
    loss, targets, n_outputs = LOSSES[name]
    params = torch.tensor(np.random.RandomState(1).randn(P + 1, n_outputs) / 3)
    l2 = torch.full_like(params, 1.5)
    strength = torch.full_like(params, l1)
    l2[-1], strength[-1] = 0, 0
    weights = torch.ones(N).double() if weights is None else torch.tensor(weights)
    weighting = RowWeighting(balanced=CODES if balanced else None)
    return Objective(
        rows_of(X, 1.0),
        loss,
        targets,
        weights,
        params,
        l2,
        strength,
        regularization=regularization,
        weighting=weighting,
    )


def refits(made, solver="primal"):
    return ConvexRefits(made, plan_convex(made, 2.0**30, solver), 2.0**30)


def value(made, params, weights, left):
    """The objective that is refitted, by plain autograd."""
    design = torch.cat([torch.tensor(X), torch.ones(N, 1).double()], dim=1)
    losses = made.loss.values(design @ params, made.targets)
    scale = made.scale(weights[None])[0]
    penalty = (made.l2 * params**2 / 2 + made.l1 * params.abs()).sum()
    row_weights = made.weighting(weights)
    return row_weights @ losses + scale * (penalty - (left * params).sum())


@pytest.mark.parametrize("name", LOSSES)
def test_losses_have_the_derivatives_that_they_say(name):
    loss, targets, n_outputs = LOSSES[name]
    outputs = torch.tensor(np.random.RandomState(2).randn(N, n_outputs))
    slope = torch.func.grad(lambda f: loss.values(f, targets).sum())(outputs)
    torch.testing.assert_close(loss.residuals(outputs, targets), slope)
    bend = torch.func.jacrev(torch.func.grad(lambda f: loss.values(f, targets).sum()))(
        outputs
    )
    bend = torch.einsum("ncnd->ncd", bend)
    torch.testing.assert_close(loss.hessian(outputs, targets), bend)
    torch.testing.assert_close(
        loss.curvature(outputs, targets), bend.diagonal(dim1=1, dim2=2)
    )
    off_diagonal = bend - torch.diag_embed(bend.diagonal(dim1=1, dim2=2))
    assert loss.separable == bool(off_diagonal.abs().max() == 0) or n_outputs == 1


@pytest.mark.parametrize("power", [0.0, 1.0, 1.3, 2.0])
def test_half_deviances_are_those_of_scikit_learn(power):
    from sklearn.metrics import mean_tweedie_deviance

    y, mean = np.array([0.5, 2.0, 7.0]), np.array([1.0, 2.0, 3.0])
    targets, outputs = torch.tensor(y)[:, None], torch.tensor(mean)[:, None]
    found = HalfDeviance(power).values(
        torch.tensor(mean)[:, None], torch.tensor(y)[:, None]
    )
    expected = [
        mean_tweedie_deviance(y[i : i + 1], mean[i : i + 1], power=power) / 2
        for i in range(3)
    ]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    if power >= 1:  # the same but for a constant of each row
        loss = LogLinkDeviance(power)
        trained = loss.values(outputs.log(), targets)
        best = loss.values(targets.log(), targets)
        np.testing.assert_allclose((trained - best).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("regularization", ["fixed", "per_sample"])
@pytest.mark.parametrize("balanced", [False, True])
def test_newton_steps_are_those_of_plain_autograd(name, regularization, balanced):
    if balanced and name not in ("softmax", "signs", "hinge"):
        balanced = False
    weights = np.random.RandomState(3).uniform(0.5, 2, N)
    made = objective(
        name, regularization=regularization, balanced=balanced, weights=weights
    )
    model = refits(made)
    rows = torch.tensor([0, 4, 7])
    without = made.weights.repeat(3, 1)
    without[torch.arange(3), rows] = 0

    ours = model.newton_without(rows)
    torch.testing.assert_close(ours, model.newton_steps(without), rtol=1e-8, atol=1e-10)
    design = torch.cat([torch.tensor(X), torch.ones(N, 1).double()], dim=1)
    for step, left_over in zip(ours, without, strict=True):
        function = lambda p, w=left_over: value(made, p, w, model.left)
        gradient = torch.func.grad(function)(made.params)
        hessian = torch.func.jacrev(torch.func.grad(function))(made.params)
        size = gradient.numel()
        dense = np.linalg.pinv(hessian.reshape(size, size).numpy(), rcond=1e-12)
        expected = -(torch.tensor(dense) @ gradient.flatten()).view_as(gradient)
        changes = [design @ change for change in (step, expected)]
        if name == "softmax":  # a shift common to all outputs changes nothing
            changes = [change - change.mean(1, keepdim=True) for change in changes]
        torch.testing.assert_close(*changes, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("l1", [0.0, 0.8])
def test_refits_are_optimal(name, l1):
    made = objective(name, l1=l1, regularization="per_sample")
    model = refits(made)
    weights = torch.tensor(np.random.RandomState(5).randint(2, size=(3, N))).double()
    for step, row in zip(model.refit_steps(weights), weights, strict=True):
        params = made.params + step
        smooth = lambda p, w=row: (
            value(made, p, w, model.left)
            - made.scale(w[None])[0] * (made.l1 * p.abs()).sum()
        )
        gradient = torch.func.grad(smooth)(params)
        strength = made.scale(row[None])[0] * made.l1
        at_rest = (params == 0) & (made.l1 > 0)
        violation = torch.where(
            at_rest,
            (gradient.abs() - strength).clamp(min=0),
            (gradient + strength * params.sign()).abs(),
        )
        assert float(violation.max()) < 1e-7
    ones = torch.ones(1, N).double()
    assert float(model.refit_steps(ones).abs().max()) < 1e-9


@pytest.mark.parametrize("name", ["squared", "logistic", "softmax", "poisson", "hinge"])
def test_three_spaces_agree(name):
    made = objective(name)
    queries = rows_of(np.random.RandomState(8).randn(5, P), 1.0)
    halves = torch.tensor(np.random.RandomState(5).randint(2, size=(4, N))).double()
    ones = 1 - torch.eye(N).double()[:4]
    outputs = {}
    for solver in ("primal", "dual", "cg"):
        model = refits(made, solver)
        features = model.features(queries)
        dense = features if torch.is_tensor(features) else features.dense()
        steps = [
            model.refit_steps(halves),
            model.newton_steps(ones),
            model.influence_steps(ones),
        ]
        found = torch.stack([torch.einsum("qd,kdc->kqc", dense, s) for s in steps])
        if name == "softmax":
            found = found - found.mean(-1, keepdim=True)
        outputs[solver] = found
        lifted = model.parameters(steps[0])
        assert lifted.shape[1:] == made.params.shape
    for solver in ("dual", "cg"):
        torch.testing.assert_close(
            outputs[solver], outputs["primal"], rtol=1e-5, atol=1e-7
        )


def test_sparse_rows_are_dense_rows():
    dense = np.where(RNG.rand(20, 6) < 0.3, RNG.randn(20, 6), 0)
    ours, theirs = rows_of(sparse.csr_matrix(dense), 2.0), rows_of(dense, 2.0)
    weights = torch.tensor(RNG.rand(20))
    params = torch.tensor(RNG.randn(3, 7, 2))
    cotangents = torch.tensor(RNG.randn(3, 20, 2))
    index = torch.tensor([3, 1])
    for first, second in [
        (ours.outputs(params), theirs.outputs(params)),
        (ours.gradient(cotangents), theirs.gradient(cotangents)),
        (ours.gram(weights), theirs.gram(weights)),
        (ours.gram(weights * (weights > 0.8)), theirs.gram(weights * (weights > 0.8))),
        (ours.squared_sum(weights[:, None]), theirs.squared_sum(weights[:, None])),
        (ours.take(index).dense(), theirs.take(index).dense()),
        (ours.products(ours), theirs.products(theirs)),
        (ours.products(theirs), theirs.products(ours)),
    ]:
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("n_rows", [1, 2, 4, 7, 12])
@pytest.mark.parametrize("alike", ["none", "equal", "zero"])
def test_a_quadratic_with_l1_is_minimal(n_rows, alike):
    """Also where parameters are more than rows, and only signs bound it."""
    for seed in range(20):
        rng = np.random.RandomState(seed)
        half = torch.tensor(rng.randn(n_rows, 8))
        half[:, 0] = 1
        if alike != "none":
            half[:, 3] = 0 if alike == "zero" else half[:, 2]
        matrix, linear = half.T @ half, half.T @ torch.tensor(rng.randn(n_rows) * 4)
        strengths = torch.tensor(np.r_[0.0, rng.uniform(0.1, 4, 7)])
        start = torch.tensor(np.where(rng.rand(8) < 0.5, rng.randn(8), 0))
        x = minimize_quadratic(matrix, linear, strengths, start)
        gradient = matrix @ x + linear
        assert (gradient.abs() <= strengths + 1e-9)[x == 0].all()
        moved = x != 0
        residue = gradient[moved] + strengths[moved] * x[moved].sign()
        assert residue.abs().max() < 1e-9


def test_factors_solve_in_any_units():
    rng = np.random.RandomState(0)
    units = torch.tensor([1e-6, 1.0, 1e5, 3.0])
    half = torch.tensor(rng.randn(20, 4)) * units
    matrix, other = (
        half.T @ half,
        torch.diag(torch.tensor([0.0, 1.0, 2e8, 0.5]).double()),
    )
    rhs = matrix @ torch.tensor(rng.randn(4, 3))
    solved = ScaledFactor(matrix).solve(rhs)
    torch.testing.assert_close(matrix @ solved, rhs)
    kappa = torch.tensor([0.5, 1.0, 1.7]).double()
    pencil = PencilFactor(matrix + other, other)
    for column, factor in enumerate(kappa):
        found = pencil.solve(rhs, kappa)[:, column]
        torch.testing.assert_close((matrix + factor * other) @ found, rhs[:, column])
    twice = torch.cat([half, half[:, :1]], dim=1)
    singular = ScaledFactor(twice.T @ twice)
    assert singular.is_singular
    assert not ScaledFactor(matrix).is_singular
    image = twice.T @ torch.tensor(rng.randn(20, 2))
    torch.testing.assert_close(twice.T @ twice @ singular.solve(image), image)
