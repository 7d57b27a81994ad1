"""Beyond the memory: conjugate gradients, preconditioned or not, and Nystroem.

Leaves out each row of digits, MLP 64-64-10 (AdamW, 15 epochs), by a Newton step:
with the n·C x n·C matrix factored ("dual", exact), by conjugate gradients without and
with a Nystroem preconditioner, and in the span of the gradients of a few landmarks.
Attributions of 50 queries are compared with the exact ones, over the units measured.
CPU seconds are those of building and solving; conjugate gradients are timed on a
sample of the units, and multiplied. Then ``ridge_path`` against a fit for each ridge.

    python -m benchmarks.costs.nystroem [solvers|path]
"""

import sys
from unittest import mock

import numpy as np
import torch
from sklearn.frozen import FrozenEstimator

from benchmarks._data import shuffled_digits
from benchmarks._processes import seconds
from benchmarks._table import Table, write
from skattrib import DualInfluence, TorchClassifier

# `DualInfluence` chooses landmarks by itself, and always leaves every unit out.
from skattrib.engine._plan import SolverChoice, plan_solver
from skattrib.extension import as_model
from skattrib.influence import _linear_models
from skattrib.influence._linear_models import LeaveOneUnitOut, LinearModel

N_CLASSES, N_QUERIES, N_SAMPLED = 10, 50, 50
# rows, precision, with the exact matrix or not
SETTINGS = [(400, "float64", True), (1000, "float32", True), (1700, "float32", False)]
RIDGES = ["auto", 1e-4]
FRACTIONS = [16, 8, 4]
GRID = np.geomspace(1e-4, 1e1, 12)


def problem(n, dtype, width=(64, 64)):
    """Return a trained network, its rows, and queries."""
    X, y, _ = shuffled_digits(0, dtype)
    net = TorchClassifier(
        hidden_layer_sizes=width, batch_size=32, max_epochs=15, random_state=0
    ).fit(X[:n], y[:n])
    return net, X[:n], y[:n], (X[-N_QUERIES:], y[-N_QUERIES:])


def attribute(net, X, y, queries, ridge, solver, n_landmarks, units):
    """Return attributions to some units, CPU seconds to build, and for all units."""
    plan, ones = SolverChoice(solver, "", n_landmarks), np.ones(len(X))
    with mock.patch.object(_linear_models, "plan_solver", return_value=plan):
        building, linear = seconds(LinearModel, as_model(net), X, y, ones, ridge=ridge)

    without = LeaveOneUnitOut(np.arange(len(X)), ones, len(X))[units]
    solving, steps = seconds(linear.steps, without)
    found = linear.ask(*queries, "log_likelihood", len(units)).attributions(steps)
    return found, building + solving * len(X) / len(units)


def measure(table, n, dtype, with_exact, ridge):
    """Add rows to the table."""
    net, X, y, queries = problem(n, dtype)
    sampled, all_units = np.linspace(0, n - 1, N_SAMPLED).astype(int), np.arange(n)
    n_params = sum(p.numel() for p in net.module_.parameters())
    plan = plan_solver(n, N_CLASSES, n_params, X.itemsize, 2.0**30, "cg", n_steps=n)
    runs = {
        "dual": ("dual", 0, all_units),
        "cg, plain": ("cg", 0, sampled),
        "cg": ("cg", plan.n_landmarks, sampled),
        **{f"nystroem, n/{f}": ("nystroem", n // f, all_units) for f in FRACTIONS},
    }
    if not with_exact:
        del runs["dual"]
    found, took = {}, {}
    for name, run in runs.items():
        found[name], took[name] = attribute(net, X, y, queries, ridge, *run)

    reference = found["dual" if with_exact else "cg, plain"]
    for name, (_, n_landmarks, _) in runs.items():
        ours, true = found[name], reference
        if ours.shape != true.shape:  # one of them knows only the sampled units
            ours, true = (
                A if A.shape[1] == N_SAMPLED else A[:, sampled] for A in (ours, true)
            )
        error = np.linalg.norm(ours - true) / np.linalg.norm(true)
        correlation = np.corrcoef(ours.ravel(), true.ravel())[0, 1]
        ratios = [
            f"{took[name] / took[other]:.2g}" if other in took else ""
            for other in ("dual", "cg, plain")
        ]
        cells = [n, dtype, ridge, name, n_landmarks or "", f"{correlation:.4f}"]
        table.add(*cells, f"{error:.1e}", *ratios, note=f"({took[name]:.1f} s)")


def path_row(solver, removal, n, width):
    """Time a path of ridges against one fit, and against a fit for each."""
    net, X, y, queries = problem(n, "float32", width)
    net = FrozenEstimator(net)
    options = {"solver": solver, "removal": removal, "random_state": 0}

    def fit_each(ridge):
        dual = DualInfluence(net, ridge=float(ridge), **options).fit(X, y)
        return dual, dual.attribute(*queries)

    each = [seconds(fit_each, ridge) for ridge in GRID]
    dual = each[-1][1][0]
    took, path = seconds(dual.ridge_path, *queries, ridges=GRID)
    error = max(
        np.linalg.norm(p - a) / np.linalg.norm(a)
        for p, (_, (_, a)) in zip(path, each, strict=True)
    )
    fits = [spent for spent, _ in each]
    one = np.median(fits)
    ratios = f"{took / one:.1f}", f"{sum(fits) / one:.1f}"
    return solver, removal, *ratios, f"{error:.0e}"


def solvers():
    table = Table(
        "Leaving out each row of digits (C = 10, P = 8970); CPU seconds",
        "n | precision | ridge | solver | landmarks | correlation | relative error "
        "| time / dual | time / plain cg",
    )
    for setting in SETTINGS:
        for ridge in RIDGES:
            measure(table, *setting, ridge)
    write("nystroem", table)


def path():
    table = Table(
        f"{len(GRID)} ridges, 0.0001 to 10, in CPU seconds of one fit "
        "with its attributions; float32",
        "solver | removal | ridge_path | a fit for each | largest relative difference",
    )
    for solver, n, width in [("primal", 512, (16,)), ("dual", 300, (64, 64))]:
        for removal in ("newton", "influence"):
            table.add(*path_row(solver, removal, n, width))
    write("ridge_path", table)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or ["solvers", "path"]:
        {"solvers": solvers, "path": path}[name]()
