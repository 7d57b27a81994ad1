"""The linearised model against dense linear algebra in NumPy."""

import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from skattrib.engine import _parameter_space, _refits, _row_space, _solvers
from skattrib.engine._functional import FunctionalModule
from skattrib.engine._gradients import RowGradients
from skattrib.engine._linearized import LinearizedModel
from tests.cases import LOSSES, Tangent, build, dense_jacobian, mlp, randn

N, D = 24, 3
PLENTY = 2.0**30
TASKS = {"classification": 3, "regression": 2}
# conjugate gradients stop at a relative residual of 1e-10
TOLERANCE = {"primal": 1e-8, "dual": 1e-8, "cg": 1e-6}
SPACES = list(TOLERANCE)
REGULARIZATIONS = ["per_sample", "fixed"]


def ridge(fraction):
    """A damping that depends on the fraction of mass removed."""
    return 0.05 + 0.2 * fraction


def weightings(s):
    """Rows of weights relative to the run's weights s, by kind."""
    n = len(s)
    rng = np.random.RandomState(0)
    single, groups, fractions, more, half = (np.ones((4, n)) for _ in range(5))
    single[range(4), [0, 5, 6, n - 1]] = 0
    for row, members in zip(groups, [(0, 1), (2, 9, 4), range(6), (7, 3, 20, 22)]):
        row[list(members)] = 0
    fractions[range(4), [1, 2, 3, 4]] = [0.5, 0.9, 0.1, 0.25]
    fractions[3] = rng.uniform(0.2, 1, n)
    more[range(4), [1, 2, 3, 4]] = [2, 1.5, 3, 1.01]
    more[2, 5:9] = 0
    for row in half:
        row[rng.permutation(n)[: n // 2]] = 0
    few = np.zeros((2, n))
    few[0, 3] = few[1, [1, 8]] = 1
    kinds = {
        "all": np.ones((2, n)),
        "single": single,
        "groups": groups,
        "fractions": fractions,
        "more": more,
        "half": half,
        "few": few,
    }
    return {kind: torch.tensor(rows) * s for kind, rows in kinds.items()}


def run_weights(kind, dtype=torch.float64):
    weights = torch.ones(N, dtype=dtype)
    if kind == "weighted":
        weights = (randn(N, seed=6).abs() + 0.3).to(dtype)
        weights[11] = 0
    return weights


def problem(task, dtype=torch.float64):
    """A trained-looking MLP: nothing below needs it to be converged."""
    module = build(lambda: mlp(D, 4, TASKS[task]), dtype=dtype)
    X = randn(N, D, seed=1).to(dtype)
    if task == "classification":
        targets = torch.arange(N) % 3
    else:
        targets = randn(N, 2, seed=2).to(dtype)
    return module, X, targets


def linearize(
    task, space, weights="plain", scaled=True, dtype=torch.float64, **options
):
    """Return the engine's model and the dense reference."""
    module, X, targets = options.pop("problem", None) or problem(task, dtype)
    s = run_weights(weights, dtype)
    scale = None
    if scaled:
        n_params = sum(p.numel() for p in module.parameters())
        scale = (randn(n_params, seed=3).abs() + 0.3).to(dtype)
    options = {"ridge": ridge, "regularization": "per_sample", **options}
    options = {"memory_bytes": PLENTY, **options}
    ours = LinearizedModel(
        FunctionalModule(module),
        LOSSES[task],
        X,
        targets,
        s,
        scale=scale,
        solver=space,
        **options,
    )
    return ours, Tangent.of(module, X, targets, task, s, scale)


def relative_error(found, expected):
    expected = np.asarray(expected)
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


def assert_steps(ours, reference, steps, expected, tolerance):
    """Compare steps z of the reference with ours, which live in some space."""
    scale = 1.0 if ours.scale is None else ours.scale.numpy()
    expected = np.array(expected)
    assert relative_error(ours.parameter_change(steps), expected * scale) <= tolerance


# ------------------------------------------------------------------ two closed forms
@pytest.mark.parametrize("regularization", REGULARIZATIONS)
@pytest.mark.parametrize("weights", ["plain", "weighted"])
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("task", TASKS)
def test_influence_and_newton(task, space, weights, regularization):
    ours, reference = linearize(task, space, weights, regularization=regularization)
    for kind, W in weightings(ours.weights).items():
        for steps, formula in [
            (ours.newton_steps(W), reference.newton),
            (ours.influence_steps(W), reference.influence),
        ]:
            expected = [formula(w, ridge, regularization) for w in W.numpy()]
            if kind == "all":
                assert_array_equal(steps, torch.zeros_like(steps))
                assert not np.any(expected)
            else:
                assert_steps(ours, reference, steps, expected, TOLERANCE[space])


@pytest.mark.parametrize("space", SPACES)
def test_without_a_metric_and_with_next_to_no_memory(space):
    ours, reference = linearize("classification", space, scaled=False, memory_bytes=2e3)
    W = weightings(ours.weights)["half"]
    expected = [reference.newton(w, ridge, "per_sample") for w in W.numpy()]
    steps = ours.newton_steps(W)
    assert_steps(ours, reference, steps, expected, TOLERANCE[space])


@pytest.mark.parametrize("space", SPACES)
def test_influence_is_additive(space):
    ours, _ = linearize("classification", space, "weighted")
    s = ours.weights
    single = s - torch.diag(s)
    steps = ours.influence_steps(single)
    W = weightings(s)["half"]
    expected = (s - W) / torch.where(s > 0, s, 1.0) @ steps
    # in the dual, different coefficients can be the same step
    assert (
        relative_error(
            ours.parameter_change(ours.influence_steps(W)),
            ours.parameter_change(expected),
        )
        <= TOLERANCE[space]
    )


def full_system(ours, shift):
    ((_, system),) = ours.space.full_systems(shift).groups(shift)
    return system


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("space", ["primal", "dual"])
def test_block_formula_is_the_direct_solve(space, task):
    """Few rows are left out by blocks of the full Hessian's inverse."""
    ours, _ = linearize(task, space, "weighted")
    W = torch.cat([weightings(ours.weights)[k] for k in ("single", "groups")])
    shifts = ours.shifts(W)
    gradients = ours.gradients_at(W)
    direct = ours.space.solve_subsets(gradients, W, ours.output_hessian_roots, shifts)
    by_block = torch.cat(
        [
            ours._block_newton(
                gradients[i, None],
                (ours.weights - W[i])[None],
                full_system(ours, shifts[i, None]),
            )
            for i in range(len(W))
        ]
    )
    for steps in (by_block, ours.newton_steps(W)):
        assert (
            relative_error(ours.parameter_change(steps), ours.parameter_change(direct))
            <= 1e-8
        )


@pytest.mark.parametrize("space", ["primal", "dual"])
def test_many_shifts_take_one_eigendecomposition(space):
    """Rows of different weights leave different masses, hence dampings."""
    ours, _ = linearize("classification", space, "weighted")
    W = ours.weights - torch.diag(ours.weights)
    assert len(set(ours.shifts(W).tolist())) > 16
    together = ours.newton_steps(W)
    one_by_one = torch.cat([ours.newton_steps(w[None]) for w in W])
    assert (
        relative_error(
            ours.parameter_change(together), ours.parameter_change(one_by_one)
        )
        <= 1e-8
    )


@pytest.mark.parametrize("space", ["primal", "dual"])
def test_rows_of_any_weight_are_left_out_together(space, monkeypatch):
    ours, _ = linearize("classification", space, "weighted")
    W = ours.weights - torch.diag(ours.weights)
    calls = []
    inner = LinearizedModel._block_newton
    monkeypatch.setattr(
        LinearizedModel,
        "_block_newton",
        lambda self, gradients, *rest: (
            calls.append(len(gradients)) or inner(self, gradients, *rest)
        ),
    )
    ours.newton_steps(W)
    assert calls == [len(W)]


def reference_steps(reference, W):
    return [reference.newton(w, ridge, "per_sample") for w in W.numpy()]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("solver", ["primal", "dual"])
def test_much_of_the_data_is_solved_by_that_of_all(solver, own, monkeypatch):
    """Subsets share one factorisation, and fall back on one each."""
    ours, reference = linearize("classification", solver, "weighted")
    W = weightings(ours.weights)["half"]
    expected = reference_steps(reference, W)
    shifts = ours.shifts(W)
    gradients = ours.gradients_at(W)
    roots = (
        ours.output_hessian_roots.expand(len(W), -1, -1, -1)
        if own
        else ours.output_hessian_roots
    )
    n_factors = []

    class Counted(_solvers.Factor):
        def __init__(self, matrix):
            n_factors.append(matrix.shape)
            super().__init__(matrix)

    monkeypatch.setattr(_solvers, "Factor", Counted)
    module = _parameter_space if solver == "primal" else _row_space
    monkeypatch.setattr(module, "Factor", Counted)
    for fails, n_expected in [(False, 1), (True, 1 + len(W))]:
        if fails:
            monkeypatch.setattr(
                module,
                "preconditioned_gradient",
                lambda matvec, rhs, *_, **options: (rhs, torch.ones(len(rhs)).bool()),
            )
        n_factors.clear()
        steps = ours.space.solve_subsets(gradients, W, roots, shifts)
        assert len(n_factors) == n_expected
        assert_steps(ours, reference, steps, expected, 1e-8)


def test_conjugate_gradients_take_few_systems_at_once(monkeypatch):
    """What they hold for each is counted, and so are products with the Jacobian."""
    ours, _ = linearize("classification", "cg")
    W = torch.cat([weightings(ours.weights)[k] for k in ("half", "single")])
    sizes, products = [], []
    inner, vjp = _row_space.conjugate_gradient, RowGradients.vjp

    def recording(matvec, rhs, **options):
        sizes.append(len(rhs))
        return inner(matvec, rhs, **options)

    def recording_vjp(self, cotangents):
        products.append(len(cotangents))
        return vjp(self, cotangents)

    monkeypatch.setattr(_row_space, "conjugate_gradient", recording)
    monkeypatch.setattr(RowGradients, "vjp", recording_vjp)
    exact = ours.newton_steps(W)
    assert sizes == [8]
    assert max(products) == 8
    sizes.clear()
    products.clear()
    ours.space._memory = 4 * 8 * 16 * 3 * N * 3
    found = ours.newton_steps(W)
    assert sizes == [3, 3, 2]
    assert max(products) < 8
    assert relative_error(found, exact) <= 1e-8


@pytest.mark.parametrize("solver", ["dual", "cg"])
def test_refits_with_little_damping_are_the_same_in_every_space(solver):
    """Inexact steps must not pass for small ones."""
    ours, _ = linearize("classification", "primal", ridge=lambda fraction: 1e-3)
    other, _ = linearize("classification", solver, ridge=lambda fraction: 1e-3)
    W = weightings(ours.weights)["half"]
    expected = ours.parameter_change(ours.refit_steps(W))
    found = other.parameter_change(other.refit_steps(W))
    assert relative_error(found, expected) <= 1e-6


def test_refits_that_stop_short_are_pointed_out(monkeypatch):
    ours, _ = linearize("classification", "primal")
    monkeypatch.setattr(_refits, "_MAX_NEWTON", 1)
    with pytest.warns(ConvergenceWarning, match=r"of 4 refits .* Increase"):
        ours.refit_steps(weightings(ours.weights)["half"])


# --------------------------------------------------------------------- landmarks
def other_weightings(ours):
    kinds = weightings(ours.weights)
    return torch.cat([kinds[k] for k in ("single", "groups", "fractions", "half")])


@pytest.mark.parametrize("removal", ["influence", "newton", "refit"])
@pytest.mark.parametrize("weights", ["plain", "weighted"])
@pytest.mark.parametrize("task", TASKS)
def test_nystroem_with_every_row_is_exact(task, weights, removal):
    ours, _ = linearize(task, "nystroem", weights, landmarks=torch.arange(N))
    exact, _ = linearize(task, "primal", weights)
    W = other_weightings(ours)
    found, expected = (
        model.parameter_change(getattr(model, f"{removal}_steps")(W))
        for model in (ours, exact)
    )
    assert relative_error(found, expected) <= 1e-6


def test_nystroem_in_float32():
    ours, _ = linearize(
        "classification", "nystroem", dtype=torch.float32, landmarks=torch.arange(N)
    )
    exact, _ = linearize("classification", "primal")
    W = other_weightings(exact)
    found = ours.parameter_change(ours.newton_steps(W.float()))
    expected = exact.parameter_change(exact.newton_steps(W))
    assert found.dtype == torch.float32
    assert relative_error(found, expected) <= 1e-4


def test_nystroem_is_what_a_projection_onto_landmarks_gives():
    landmarks = torch.tensor([3, 8, 20])
    ours, reference = linearize("classification", "nystroem", landmarks=landmarks)
    jacobian = reference.J.reshape(N, -1, reference.J.shape[-1])
    some = jacobian[landmarks].reshape(9, -1)
    basis = np.linalg.svd(some, full_matrices=False)[2]
    inside = Tangent(**{**vars(reference), "J": reference.J @ basis.T})
    W = other_weightings(ours)
    expected = [inside.newton(w, ridge, "per_sample") @ basis for w in W.numpy()]
    assert_steps(ours, reference, ours.newton_steps(W), expected, 1e-6)


def test_a_model_in_a_span_knows_the_whole():
    ours, _ = linearize("classification", "nystroem", landmarks=torch.tensor([3, 8]))
    exact, reference = linearize("classification", "primal")
    assert ours.stationarity() == pytest.approx(exact.stationarity(), rel=1e-10)
    whole = ours.without_projection()
    W = weightings(ours.weights)["single"]
    expected = reference_steps(reference, W)
    assert_steps(whole, reference, whole.newton_steps(W), expected, 1e-6)
    assert exact.without_projection() is exact


@pytest.mark.parametrize("weights", ["plain", "weighted"])
def test_preconditioned_conjugate_gradients_are_exact(weights, monkeypatch):
    """Landmarks save products where most rows are kept, and change nothing."""
    little = lambda fraction: 1e-3
    plain, reference = linearize("classification", "cg", weights, ridge=little)
    ours, _ = linearize(
        "classification", "cg", weights, ridge=little, landmarks=torch.arange(0, N, 2)
    )
    n_products = []
    inner = _row_space.MatrixFreeSpace.kernel
    monkeypatch.setattr(
        _row_space.MatrixFreeSpace,
        "kernel",
        lambda self, rows: n_products.append(len(rows)) or inner(self, rows),
    )
    counts = {}
    for kind, W in weightings(plain.weights).items():
        expected = [reference.newton(w, little, "per_sample") for w in W.numpy()]
        for name, model in [("plain", plain), ("ours", ours)]:
            n_products.clear()
            steps = model.newton_steps(W)
            counts[kind, name] = len(n_products)
            if kind != "all":
                assert_steps(model, reference, steps, expected, 1e-6)
    assert counts["single", "ours"] < 0.8 * counts["single", "plain"]
    for kind in ("half", "few"):
        assert counts[kind, "ours"] == counts[kind, "plain"]


# ------------------------------------------------------------- several dampings
@pytest.mark.parametrize(
    "space", ["primal", "dual", pytest.param("cg", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("memory_bytes", [PLENTY, 2e3])
def test_a_decomposed_model_is_the_same_at_any_damping(space, memory_bytes):
    ours, _ = linearize("classification", space, "weighted", memory_bytes=memory_bytes)
    many = ours.for_many_ridges()
    W = other_weightings(ours)
    for value in (1e-3, 0.1, 3.0):
        many.ridge = lambda fraction, value=value: value * (1 + fraction)
        alone, _ = linearize("classification", space, "weighted", ridge=many.ridge)
        for removal in ("influence", "newton", "refit"):
            found, expected = (
                model.parameter_change(getattr(model, f"{removal}_steps")(W))
                for model in (many, alone)
            )
            assert relative_error(found, expected) <= (1e-6 if space == "cg" else 1e-8)
    assert ours.ridge is ridge


# ------------------------------------------------------------------------ refit
@pytest.mark.parametrize(("memory_bytes", "once"), [(PLENTY, True), (1.0, False)])
@pytest.mark.parametrize("space", ["primal", "dual"])
def test_factors_serve_all_steps_of_a_refit(space, memory_bytes, once, monkeypatch):
    ours, _ = linearize("classification", space)
    W = weightings(ours.weights)["single"][:2]
    shifts, inner = [], _solvers.ShiftedSystem.factor

    def recording(self, shift):
        shifts.append(shift)
        return inner(self, shift)

    monkeypatch.setattr(_solvers.ShiftedSystem, "factor", recording)
    expected = ours.refit_steps(W)
    assert len(shifts) == 1
    shifts.clear()
    ours.space._memory = memory_bytes
    found = ours.refit_steps(W)
    assert (len(shifts) == 1) == once
    assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("regularization", REGULARIZATIONS)
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("task", TASKS)
def test_refit_is_stationary(task, space, regularization):
    ours, reference = linearize(task, space, "weighted", regularization=regularization)
    zero = np.zeros(reference.J.shape[2])
    for kind, W in weightings(ours.weights).items():
        steps = ours.refit_steps(W)
        if kind == "all":
            assert_allclose(ours.parameter_change(steps), 0, atol=1e-9)
            continue
        changes = (ours.parameter_change(steps) / ours.scale).numpy()
        for w, z in zip(W.numpy(), changes, strict=True):
            start, end = (
                np.linalg.norm(reference.gradient(at, w, ridge, regularization))
                for at in (zero, z)
            )
            assert end <= 1e-6 * start


@pytest.mark.parametrize("regularization", REGULARIZATIONS)
@pytest.mark.parametrize("space", SPACES)
def test_refit_of_a_squared_loss_is_one_newton_step(space, regularization):
    """And both are the exact minimum of the linearised problem: least squares."""
    ours, reference = linearize(
        "regression", space, "weighted", regularization=regularization
    )
    n_params = reference.J.shape[2]
    for kind in ("single", "more", "half", "few"):
        W = weightings(ours.weights)[kind]
        refit, newton = ours.refit_steps(W), ours.newton_steps(W)
        assert_allclose(
            ours.parameter_change(refit), ours.parameter_change(newton), atol=1e-7
        )
        expected = []
        for w in W.numpy():
            # ½‖A z − b‖² − c·z of rows, with the damping as further rows
            damping = reference.damping(w, ridge, regularization)
            start = reference.s[:, None] * reference.residuals(reference.f)
            c = reference.kept(w, regularization) * np.einsum(
                "ncp,nc->p", reference.J, start
            )
            root = np.sqrt(w)[:, None]
            A = np.vstack(
                [
                    (root[..., None] * reference.J).reshape(-1, n_params),
                    np.sqrt(damping) * np.eye(n_params),
                ]
            )
            b = np.concatenate(
                [
                    (root * (reference.y - reference.f)).ravel(),
                    c / np.sqrt(damping),
                ]
            )
            expected.append(np.linalg.lstsq(A, b, rcond=None)[0])
        assert_steps(ours, reference, refit, expected, TOLERANCE[space])


@pytest.mark.parametrize("space", ["primal", "dual"])
def test_refit_of_hard_removals_goes_down(space):
    """A whole class removed with little damping: plain Newton steps overshoot."""
    ours, reference = linearize("classification", space, ridge=lambda fraction: 1e-4)
    W = torch.ones(2, N, dtype=torch.float64)
    W[0, ours.targets == 0] = 0
    W[1, 4:] = 0
    shifts = ours.shifts(W)
    newton, refit = ours.newton_steps(W), ours.refit_steps(W)
    assert (ours.objective(W, refit, shifts) < ours.objective(W, newton, shifts)).all()
    zero = np.zeros(reference.J.shape[2])
    changes = (ours.parameter_change(refit) / ours.scale).numpy()
    for w, z in zip(W.numpy(), changes, strict=True):
        start, end = (
            np.linalg.norm(
                reference.gradient(at, w, lambda fraction: 1e-4, "per_sample")
            )
            for at in (zero, z)
        )
        assert end <= 1e-6 * start


@pytest.mark.parametrize("space", SPACES)
def test_objective_is_the_integral_of_its_gradient(space):
    ours, reference = linearize("classification", space)
    W = weightings(ours.weights)["half"][:1]
    steps, shifts = ours.newton_steps(W), ours.shifts(W)
    z = (ours.parameter_change(steps) / ours.scale).numpy()[0]
    h = 1e-4
    ends = [
        float(ours.objective(W, (1 + sign * h) * steps, shifts)) for sign in (1, -1)
    ]
    slope = (ends[0] - ends[1]) / (2 * h)
    expected = reference.gradient(z, W[0].numpy(), ridge, "per_sample") @ z
    assert slope == pytest.approx(expected, rel=1e-5, abs=1e-7)


# ---------------------------------------------------------------- regularization
def test_meaning_of_the_regularization():
    for regularization in REGULARIZATIONS:
        ours, _ = linearize(
            "classification", "dual", "weighted", regularization=regularization
        )
        s = ours.weights
        for W in weightings(s).values():
            fractions = (1 - W.sum(dim=1) / s.sum()).clamp(min=0)
            mass = W.sum(dim=1) if regularization == "per_sample" else s.sum()
            expected = (0.05 + 0.2 * fractions) * mass
            assert_allclose(ours.shifts(W), expected, rtol=1e-10)


@pytest.mark.parametrize("regularization", REGULARIZATIONS)
@pytest.mark.parametrize("space", SPACES)
def test_nothing_kept(space, regularization):
    """The mean loss of no rows is 0: no step. A fixed penalty alone is solved."""
    ours, reference = linearize("classification", space, regularization=regularization)
    W = torch.zeros(1, N, dtype=torch.float64)
    for name in ("newton_steps", "influence_steps", "refit_steps"):
        found = ours.parameter_change(getattr(ours, name)(W))
        if regularization == "per_sample":
            assert_allclose(found, 0, atol=1e-12)
            continue
        formula = reference.influence if "influence" in name else reference.newton
        expected = formula(W[0].numpy(), ridge, "fixed") * ours.scale.numpy()
        assert relative_error(found[0], expected) <= TOLERANCE[space]


@pytest.mark.parametrize("regularization", REGULARIZATIONS)
def test_all_weights_halved(regularization):
    """The mean loss is the same, so that with its damping nothing happens."""
    ours, _ = linearize(
        "classification",
        "primal",
        ridge=lambda fraction: 0.1,
        regularization=regularization,
    )
    steps = ours.refit_steps(ours.weights[None] / 2)
    moved = float(steps.norm())
    assert (moved < 1e-9) == (regularization == "per_sample")


# ------------------------------------------------------------------ closed forms
def linear_problem(theta, X, y):
    layer = build(lambda: nn.Linear(X.shape[1], 1, bias=False))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(theta)[None])
    return layer, torch.tensor(X), torch.tensor(y)[:, None]


@pytest.mark.parametrize("damping", [1e-3, 3.0])
@pytest.mark.parametrize("space", SPACES)
def test_leave_one_out_of_ridge_regression(space, damping):
    """r / (1 − h), and what NumPy finds without the row."""
    X = np.column_stack([np.ones(N), randn(N, D, seed=1).numpy()])
    y = X @ np.arange(1.0, 5.0) + randn(N, seed=2).numpy()

    def solve(rows):
        H = X[rows].T @ X[rows] + damping * np.eye(4)
        return np.linalg.solve(H, X[rows].T @ y[rows])

    theta = solve(np.arange(N))
    # at the minimum of the damped problem, the constant gradient is that of the
    # penalty: the linearised problem is the ridge regression itself
    ours, _ = linearize(
        "regression",
        space,
        scaled=False,
        problem=linear_problem(theta, X, y),
        ridge=lambda fraction: damping / N,
        regularization="fixed",
    )
    steps = ours.newton_steps(torch.ones(N, N, dtype=torch.float64) - torch.eye(N))
    found = ours.parameter_change(steps).numpy()
    rows = np.arange(N)
    expected = [solve(np.delete(rows, i)) - theta for i in rows]
    assert relative_error(found, expected) <= 10 * TOLERANCE[space]
    leverage = np.diag(X @ np.linalg.solve(X.T @ X + damping * np.eye(4), X.T))
    residual = y - X @ theta
    left_out = residual - np.einsum("ij,ij->i", X, found)
    assert_allclose(left_out, residual / (1 - leverage), rtol=10 * TOLERANCE[space])
    if space != "cg":
        assert_allclose(ours.leverages(), leverage, rtol=1e-8)


@pytest.mark.parametrize("space", SPACES)
def test_stationarity_is_zero_at_the_minimum(space):
    X, y = randn(N, D, seed=1).numpy(), randn(N, seed=2).numpy()
    theta = np.linalg.lstsq(X, y, rcond=None)[0]
    values = [
        linearize("regression", space, problem=linear_problem(at, X, y))[0]
        for at in (theta, theta + 0.1)
    ]
    at_minimum, elsewhere = (ours.stationarity() for ours in values)
    # in rows, the norm is the root of a sum that cancels
    assert at_minimum < (1e-12 if space == "primal" else 1e-6)
    assert elsewhere > 0.01


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("task", TASKS)
def test_leverages_are_of_the_hat_matrix(task, space):
    ours, reference = linearize(task, space, "weighted")
    H = reference.hessian(reference.s, ridge(0.0) * reference.s.sum())
    expected = []
    for s, J, B in zip(reference.s, reference.J, reference.output_hessian()):
        # S̃ᵀGS̃ and G S S ᵀ have the same eigenvalues
        eigenvalues = np.linalg.eigvals(s * J @ np.linalg.solve(H, J.T) @ B)
        expected.append(eigenvalues.real.max())
    assert_allclose(ours.leverages(), expected, rtol=1e-6, atol=1e-9)
    assert 0 <= min(expected) < max(expected) < 1


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("space", SPACES)
def test_stationarity(space, task):
    ours, reference = linearize(task, space, "weighted")
    r = reference.s[:, None] * reference.residuals(reference.f)
    gradients = np.einsum("ncp,nc->np", reference.J / ours.scale.numpy(), r)
    norms = np.linalg.norm(gradients, axis=1)
    expected = np.linalg.norm(gradients.mean(axis=0)) / norms.mean()
    assert ours.stationarity() == pytest.approx(expected, rel=1e-6)
    assert expected > 0.01


# ----------------------------------------------------------------------- queries
@pytest.mark.parametrize("memory_bytes", [PLENTY, 2e3])
@pytest.mark.parametrize("space", SPACES)
def test_output_change_is_the_tangent(space, memory_bytes):
    ours, reference = linearize("classification", space, memory_bytes=memory_bytes)
    X = randn(5, D, seed=4)
    outputs, query = ours.query(X)
    with torch.no_grad():
        assert_array_equal(outputs, ours.model.module(X))
    W = weightings(ours.weights)["half"]
    J = dense_jacobian(ours.model.module, X) * ours.scale
    z = np.array([reference.newton(w, ridge, "per_sample") for w in W.numpy()])
    expected = np.einsum("qcp,kp->kqc", J.numpy(), z)
    found = ours.output_change(ours.newton_steps(W), query)
    assert relative_error(found, expected) <= TOLERANCE[space]


# --------------------------------------------------------------------- precision
@pytest.mark.parametrize("space", ["primal", "dual"])
def test_float32_is_good_to_four_digits(space):
    ours, _ = linearize("classification", space, dtype=torch.float32)
    exact, _ = linearize("classification", space)
    for kind in ("single", "groups", "half"):
        W = weightings(exact.weights)[kind]
        for name in ("influence_steps", "newton_steps", "refit_steps"):
            found = ours.parameter_change(getattr(ours, name)(W.float()))
            assert found.dtype == torch.float32
            expected = exact.parameter_change(getattr(exact, name)(W))
            assert relative_error(found, expected) <= 1e-4


def test_conjugate_gradients_are_quiet_when_they_converge():
    ours, _ = linearize("classification", "cg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.refit_steps(weightings(ours.weights)["half"])
