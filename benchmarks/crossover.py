"""Parameters or rows? Time and memory of both spaces as the net gets wider.

Builds the linearised model of a trained net and leaves out every row by a Newton
step, once in parameters (primal) and once in row coefficients (dual), each in a
process of its own. Writes a figure and a table into the manual.

    python -m benchmarks.crossover
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

N_ROWS, N_CLASSES, N_FEATURES = 150, 4, 64
WIDTHS = [1, 2, 4, 8, 16, 32, 64, 128]
PRIMAL_UP_TO = 64
DOC = Path(__file__).resolve().parents[1] / "doc"


def run(solver, width):
    """Time one solver on one net; called in a fresh process."""
    from sklearn.datasets import load_digits

    from skattrib import TorchClassifier
    from skattrib._validation import as_tensor
    from skattrib.engine._functional import FunctionalModule, Loss
    from skattrib.engine._linearized import LinearizedModel

    X, y = load_digits(n_class=N_CLASSES, return_X_y=True)
    X, y = (X[:N_ROWS] / 16).astype(np.float32), y[:N_ROWS]
    net = TorchClassifier(
        hidden_layer_sizes=(width,), max_epochs=50, random_state=0
    ).fit(X, y)
    X = as_tensor(X)
    model = FunctionalModule(net.module_)
    metric = net.trajectory_.denominator
    metric = metric.clamp(min=1e-3 * float(metric.mean())) / metric.mean()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(3):
        start = time.perf_counter()
        linearized = LinearizedModel(
            model,
            Loss("classification"),
            X,
            net._targets(y, X),
            X.new_ones(len(X)),
            scale=metric.rsqrt(),
            ridge=lambda fraction: 0.01,
            regularization="per_sample",
            solver=solver,
            memory_bytes=2**30,
        )
        linearized.newton_steps(1 - X.new_ones(len(X)).diag())
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {
        "seconds": min(times),
        "mib": (peak - before) / 2**10,
        "n_params": model.n_params,
    }
    print(json.dumps(found))


def measure(solver, width):
    command = [sys.executable, "-m", "benchmarks.crossover", solver, str(width)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main():
    size = N_ROWS * N_CLASSES
    rows = []
    for width in WIDTHS:
        dual = measure("dual", width)
        primal = measure("primal", width) if width <= PRIMAL_UP_TO else None
        rows.append((dual["n_params"] / size, dual, primal))
        print(rows[-1], flush=True)
    write_table(rows)
    plot(rows)


def write_table(rows):
    lines = [
        ".. csv-table:: Leaving out each of 150 rows (C = 4), times relative to the",
        "   dual space at the smallest net",
        "   :header: P / nC, P, dual time, primal time, dual MiB, primal MiB",
        "",
    ]
    unit = rows[0][1]["seconds"]
    for ratio, dual, primal in rows:
        cells = [f"{ratio:.2g}", f"{dual['n_params']}", f"{dual['seconds'] / unit:.1f}"]
        cells.append('""' if primal is None else f"{primal['seconds'] / unit:.1f}")
        cells.append(f"{dual['mib']:.0f}")
        cells.append('""' if primal is None else f"{primal['mib']:.0f}")
        lines.append("   " + ", ".join(cells))
    target = DOC / "measured" / "crossover.inc"
    target.parent.mkdir(exist_ok=True)
    target.write_text("\n".join(lines) + "\n")


def plot(rows):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    unit = rows[0][1]["seconds"]
    for axis, key, scale, label in [
        (axes[0], "seconds", unit, "time (smallest net, dual = 1)"),
        (axes[1], "mib", 1, "additional memory (MiB)"),
    ]:
        for position, name, style in [(1, "dual", "o-C0"), (2, "primal", "s--C1")]:
            kept = [row for row in rows if row[position] is not None]
            axis.loglog(
                [row[0] for row in kept],
                [max(row[position][key], 1e-3) / scale for row in kept],
                style,
                label=name,
            )
        axis.axvline(1, color="0.7", zorder=0)
        axis.set(xlabel="P / nC: parameters per training output", ylabel=label)
        axis.legend(frameon=False)
    images = DOC / "images"
    images.mkdir(exist_ok=True)
    figure.savefig(images / "crossover.png", dpi=110)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run(sys.argv[1], int(sys.argv[2]))
    else:
        main()
