"""Parameters or rows? Time and memory of both spaces as the net gets wider.

Builds the linearised model of a trained net and leaves out every row by a Newton
step, once in parameters (primal) and once in row coefficients (dual), each in a
process of its own. Writes a figure and a table into the manual.

    python -m benchmarks.costs.crossover
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator

from benchmarks._processes import in_own_process, resident_bytes, wall_seconds
from benchmarks._table import Table, axes, write
from skattrib import DualInfluence, TorchClassifier

N_ROWS, N_CLASSES = 150, 4
WIDTHS = [1, 2, 4, 8, 16, 32, 64, 128]
PRIMAL_UP_TO = 64


def measure(solver, width):
    """Return seconds and MiB of one solver on one net, and its parameters."""
    X, y = load_digits(n_class=N_CLASSES, return_X_y=True)
    X, y = (X[:N_ROWS] / 16).astype(np.float32), y[:N_ROWS]
    net = TorchClassifier(
        hidden_layer_sizes=(width,), max_epochs=50, random_state=0
    ).fit(X, y)
    dual = DualInfluence(FrozenEstimator(net), solver=solver, ridge=0.01)
    dual.set_params(random_state=0)
    before = resident_bytes(peak=True)
    times = [wall_seconds(dual.fit, X, y)[0] for _ in range(3)]
    mebibytes = (resident_bytes(peak=True) - before) / 2**20
    return min(times), mebibytes, sum(p.numel() for p in net.module_.parameters())


def main():
    table = Table(
        f"Leaving out each of {N_ROWS} rows (C = {N_CLASSES}), times relative to the "
        "dual space at the smallest net",
        ["P / nC", "P", "dual time", "primal time", "dual MiB", "primal MiB"],
    )
    unit, curves = None, {"dual": [], "primal": []}
    for width in WIDTHS:
        took, used = {}, {}
        for solver in curves if width <= PRIMAL_UP_TO else ["dual"]:
            found, mebibytes, n_params = in_own_process(measure, solver, width)
            unit = unit or found
            took[solver], used[solver] = f"{found / unit:.1f}", f"{mebibytes:.0f}"
            ratio = n_params / (N_ROWS * N_CLASSES)
            curves[solver].append((ratio, found / unit, max(mebibytes, 1e-3)))
        cells = [own.get(solver, "") for own in (took, used) for solver in curves]
        table.add(f"{ratio:.2g}", n_params, *cells)
    write("crossover", table)
    plot(curves)


def plot(curves):
    labels = ("time (smallest net, dual = 1)", "additional memory (MiB)")
    with axes("crossover", 2, (8, 3.2)) as shown:
        for i, (axis, label) in enumerate(zip(shown, labels, strict=True), start=1):
            for name, style in {"dual": "o-C0", "primal": "s--C1"}.items():
                points = np.array(curves[name])
                axis.loglog(points[:, 0], points[:, i], style, label=name)
            axis.axvline(1, color="0.7", zorder=0)
            axis.set(xlabel="P / nC: parameters per training output", ylabel=label)
            axis.legend(frameon=False)


if __name__ == "__main__":
    main()
