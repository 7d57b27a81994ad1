"""Parameters or rows? Time and memory of both spaces as the net gets wider.

Builds the linearised model of a trained net and leaves out every row by a Newton
step, once in parameters (primal) and once in row coefficients (dual), each in a
process of its own. Writes a figure and a table into the manual.

    python -m benchmarks.costs.crossover
"""

import json
import sys
import time

import numpy as np
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator

from benchmarks._processes import in_own_process, resident_bytes, seconds
from benchmarks._table import IMAGES, Table, write
from skattrib import DualInfluence, TorchClassifier

N_ROWS, N_CLASSES = 150, 4
WIDTHS = [1, 2, 4, 8, 16, 32, 64, 128]
PRIMAL_UP_TO = 64


def run(solver, width):
    """Time one solver on one net; called in a fresh process."""
    X, y = load_digits(n_class=N_CLASSES, return_X_y=True)
    X, y = (X[:N_ROWS] / 16).astype(np.float32), y[:N_ROWS]
    net = TorchClassifier(
        hidden_layer_sizes=(width,), max_epochs=50, random_state=0
    ).fit(X, y)
    dual = DualInfluence(FrozenEstimator(net), solver=solver, ridge=0.01)
    dual.set_params(random_state=0)
    before = resident_bytes(peak=True)
    clock = time.perf_counter
    times = [seconds(dual.fit, X, y, clock=clock)[0] for _ in range(3)]
    return {
        "seconds": min(times),
        "mib": (resident_bytes(peak=True) - before) / 2**20,
        "n_params": sum(p.numel() for p in net.module_.parameters()),
    }


def main():
    table = Table(
        f"Leaving out each of {N_ROWS} rows (C = {N_CLASSES}), times relative to the "
        "dual space at the smallest net",
        ["P / nC", "P", "dual time", "primal time", "dual MiB", "primal MiB"],
    )
    rows = []

    for width in WIDTHS:
        solvers = ("dual", "primal") if width <= PRIMAL_UP_TO else ("dual",)
        found = {s: in_own_process(__spec__.name, s, width) for s in solvers}
        ratio = found["dual"]["n_params"] / (N_ROWS * N_CLASSES)
        rows.append((ratio, found))
        unit = rows[0][1]["dual"]["seconds"]
        primal = found.get("primal")
        table.add(
            f"{ratio:.2g}",
            found["dual"]["n_params"],
            f"{found['dual']['seconds'] / unit:.1f}",
            f"{primal['seconds'] / unit:.1f}" if primal else "",
            f"{found['dual']['mib']:.0f}",
            f"{primal['mib']:.0f}" if primal else "",
        )

    write("crossover", table)
    plot(rows)


def plot(rows):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    unit = rows[0][1]["dual"]["seconds"]
    for axis, key, scale, label in zip(
        figure.subplots(1, 2),
        ("seconds", "mib"),
        (unit, 1),
        ("time (smallest net, dual = 1)", "additional memory (MiB)"),
        strict=True,
    ):
        for name, style in {"dual": "o-C0", "primal": "s--C1"}.items():
            kept = [(ratio, found[name]) for ratio, found in rows if name in found]
            axis.loglog(
                [ratio for ratio, _ in kept],
                [max(own[key], 1e-3) / scale for _, own in kept],
                style,
                label=name,
            )
        axis.axvline(1, color="0.7", zorder=0)
        axis.set(xlabel="P / nC: parameters per training output", ylabel=label)
        axis.legend(frameon=False)
    figure.savefig(IMAGES / "crossover.png", dpi=110)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(run(sys.argv[1], int(sys.argv[2]))))
    else:
        main()
