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
import time
from unittest import mock

import numpy as np
import torch
from sklearn.frozen import FrozenEstimator

from benchmarks._data import shuffled_digits
from benchmarks._processes import seconds
from benchmarks._table import Table, write
from skattrib import DualInfluence, TorchClassifier
from skattrib.engine._plan import SolverChoice, plan_solver
from skattrib.influence import _linear_models
from skattrib.influence._linear_models import LeaveOneUnitOut, LinearModel

N_CLASSES, N_QUERIES, N_SAMPLED = 10, 50, 50
# rows, precision, with the exact matrix or not
SETTINGS = [(400, "float64", True), (1000, "float32", True), (1700, "float32", False)]
RIDGES = ["auto", 1e-4]
FRACTIONS = [16, 8, 4]
GRID = np.geomspace(1e-4, 1e1, 12)


def data(n, dtype):
    X, y, _ = shuffled_digits(0, dtype)
    return X[:n], y[:n], X[-N_QUERIES:], y[-N_QUERIES:]


def network(X, y, width=(64, 64)):
    net = TorchClassifier(
        hidden_layer_sizes=width, batch_size=32, max_epochs=15, random_state=0
    )
    return net.fit(X, y)


def attribute(net, ridge, X, y, queries, solver, n_landmarks, units):
    """Return attributions to some units, CPU seconds to build, and for all units."""
    plan = SolverChoice(solver, "", n_landmarks)
    ones = np.ones(len(X))
    with mock.patch.object(_linear_models, "plan_solver", return_value=plan):
        building, linear = seconds(LinearModel, net, X, y, ones, ridge=ridge)

    start = time.process_time()
    without = LeaveOneUnitOut(np.arange(len(X)), ones, len(X))
    steps = linear.steps(without[units])
    solving = (time.process_time() - start) * len(X) / len(units)

    batches = linear.ask(*queries, "log_likelihood", len(units))
    return batches.attributions(steps), building + solving


def measure(table, n, dtype, with_exact, ridge):
    """Add rows to the table."""
    X, y, *queries = data(n, dtype)
    net, all_units = network(X, y), np.arange(n)
    sampled = np.linspace(0, n - 1, N_SAMPLED).astype(int)
    n_params = sum(p.numel() for p in net.module_.parameters())
    itemsize = np.dtype(dtype).itemsize
    plan = plan_solver(n, N_CLASSES, n_params, itemsize, 2.0**30, "cg", n_steps=n)
    runs = [
        ("cg, plain", "cg", 0, sampled),
        ("cg", "cg", plan.n_landmarks, sampled),
        *[(f"nystroem, n/{f}", "nystroem", n // f, all_units) for f in FRACTIONS],
    ]
    if with_exact:
        runs.insert(0, ("dual", "dual", 0, all_units))
    found = {
        name: attribute(net, ridge, X, y, queries, solver, n_landmarks, units)
        for name, solver, n_landmarks, units in runs
    }
    reference, known = found[runs[0][0]][0], runs[0][-1]

    for name, _, n_landmarks, units in runs:
        both = np.intersect1d(units, known)
        own, took = found[name]
        ours, true = (
            a[:, np.searchsorted(u, both)]
            for a, u in [(own, units), (reference, known)]
        )
        error = np.linalg.norm(ours - true) / np.linalg.norm(true)
        correlation = np.corrcoef(ours.ravel(), true.ravel())[0, 1]
        ratios = [
            f"{took / found[other][1]:.2g}" if other in found else ""
            for other in ("dual", "cg, plain")
        ]
        cells = [n, dtype, ridge, name, n_landmarks or "", f"{correlation:.4f}"]
        table.add(*cells, f"{error:.1e}", *ratios, note=f"({took:.1f} s)")


def path_row(solver, removal, n, width):
    """Time a path of ridges against one fit, and against a fit for each."""
    X, y, *queries = data(n, "float32")
    net = FrozenEstimator(network(X, y, width))
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
