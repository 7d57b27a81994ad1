"""Beyond the memory: conjugate gradients, preconditioned or not, and Nystroem.

Leaves out each row of digits, MLP 64-64-10 (AdamW, 15 epochs), by a Newton step:
with the n·C x n·C matrix factored ("dual", exact), by conjugate gradients without and
with a Nystroem preconditioner, and in the span of the gradients of a few landmarks.
Attributions of 50 queries are compared with the exact ones, over the units measured.
CPU seconds are those of building and solving; conjugate gradients are timed on a
sample of the units, and multiplied. Then ``ridge_path`` against a fit for each ridge.

    python -m benchmarks.nystroem [solvers|path]
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator

import skattrib.influence._member as engine
from skattrib import DualInfluence, TorchClassifier
from skattrib.engine._plan import Plan, plan_solver
from skattrib.influence._member import Member, WithoutEach

N_CLASSES, N_QUERIES, N_SAMPLED = 10, 50, 50
# rows, precision, with the exact matrix or not
SETTINGS = [(400, "float64", True), (1000, "float32", True), (1700, "float32", False)]
RIDGES = ["auto", 1e-4]
FRACTIONS = [16, 8, 4]
GRID = np.geomspace(1e-4, 1e1, 12)
DOC = Path(__file__).resolve().parents[1] / "doc"


def data(n, dtype):
    X, y = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(y))
    X, y = (X / 16).astype(dtype)[order], y[order]
    return X[:n], y[:n], X[-N_QUERIES:], y[-N_QUERIES:]


def network(X, y, width=(64, 64)):
    net = TorchClassifier(
        hidden_layer_sizes=width, batch_size=32, max_epochs=15, random_state=0
    )
    return net.fit(X, y)


def attribute(net, ridge, X, y, queries, solver, n_landmarks, units):
    """Return attributions to some units, CPU seconds to build, and for all units."""
    inner = engine.plan_solver
    engine.plan_solver = lambda *_, **__: Plan(solver, "", n_landmarks)
    start = time.process_time()
    try:
        member = Member(net, X, y, np.ones(len(X)), ridge=ridge)
    finally:
        engine.plan_solver = inner
    built = time.process_time()
    without = WithoutEach(np.arange(len(X)), np.ones(len(X)), len(X))
    steps = member.steps("newton", without[units])
    solved = (time.process_time() - built) * len(X) / len(units)
    asked = member.ask(queries[0], len(units))
    found = member.attributions(
        steps, asked, queries[1], "log_likelihood", first_order=False
    )
    return found, built - start + solved


def measure(n, dtype, with_exact, ridge):
    """Return rows of the table."""
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
    reference, seconds, rows = None, {}, []
    for name, solver, n_landmarks, units in runs:
        found, seconds[name] = attribute(
            net, ridge, X, y, queries, solver, n_landmarks, units
        )
        if reference is None:
            reference, known = found, units
        both = np.intersect1d(units, known)
        ours, true = (
            a[:, np.searchsorted(u, both)]
            for a, u in [(found, units), (reference, known)]
        )
        error = np.linalg.norm(ours - true) / np.linalg.norm(true)
        correlation = np.corrcoef(ours.ravel(), true.ravel())[0, 1]
        ratios = [
            f"{seconds[name] / seconds[other]:.2g}" if other in seconds else '""'
            for other in ("dual", "cg, plain")
        ]
        kept = n_landmarks if n_landmarks else '""'
        cells = [n, dtype, ridge, f'"{name}"', kept, f"{correlation:.4f}"]
        rows.append(", ".join(map(str, [*cells, f"{error:.1e}", *ratios])))
        print(rows[-1], f"({seconds[name]:.1f} s)", flush=True)
    # dual comes before plain conjugate gradients
    if with_exact:
        rows[0] = rows[0][:-2] + f"{seconds['dual'] / seconds['cg, plain']:.2g}"
    return rows


def path_row(solver, removal, n, width):
    """Time a path of ridges against one fit, and against a fit for each."""
    X, y, *queries = data(n, "float32")
    net = FrozenEstimator(network(X, y, width))
    options = {"solver": solver, "removal": removal, "random_state": 0}
    fits, alone = [], []
    for ridge in GRID:
        start = time.process_time()
        dual = DualInfluence(net, ridge=float(ridge), **options).fit(X, y)
        alone.append(dual.attribute(*queries))
        fits.append(time.process_time() - start)
    start = time.process_time()
    path = dual.ridge_path(*queries, ridges=GRID)
    seconds = time.process_time() - start
    error = max(np.linalg.norm(p - a) / np.linalg.norm(a) for p, a in zip(path, alone))
    one = np.median(fits)
    row = (
        f"{solver}, {removal}, {seconds / one:.1f}, {sum(fits) / one:.1f}, {error:.0e}"
    )
    print(row, flush=True)
    return row


def solvers():
    lines = [
        ".. csv-table:: Leaving out each row of digits (C = 10, P = 8970); CPU seconds",
        "   :header: n, precision, ridge, solver, landmarks, correlation, "
        "relative error, time / dual, time / plain cg",
        "",
    ]
    for setting in SETTINGS:
        for ridge in RIDGES:
            lines += ["   " + row for row in measure(*setting, ridge)]
    (DOC / "measured" / "nystroem.inc").write_text("\n".join(lines) + "\n")


def path():
    lines = [
        f".. csv-table:: {len(GRID)} ridges, 0.0001 to 10, in CPU seconds of one fit",
        "   with its attributions; float32",
        "   :header: solver, removal, ridge_path, a fit for each, largest relative "
        "difference",
        "",
    ]
    for solver, n, width in [("primal", 512, (16,)), ("dual", 300, (64, 64))]:
        for removal in ("newton", "influence"):
            lines.append("   " + path_row(solver, removal, n, width))
    (DOC / "measured" / "ridge_path.inc").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or ["solvers", "path"]:
        {"solvers": solvers, "path": path}[name]()
