"""Outcomes of subsets: refitted tangent, stacked training, or one after the other?

Twelve tasks, 240 digits, networks of 1e3, 1e5 and 1e7 parameters trained for 60
epochs on the full batch, 128 subsets. Every way in a process of its own; training one
by one is timed on a few subsets in a plain torch loop, the stack of the largest net on
four. Times are per subset, on one thread; the tangent's include building it, and are
given in a subspace of 300 principal directions too.

    python -m benchmarks.subsets
"""

import json
import subprocess
import sys
import time

import numpy as np
import sklearn
import torch

from benchmarks._surrogates import MEASURED, draw_subsets
from benchmarks.tasks import draw
from skattrib import TorchClassifier
from skattrib.influence._member import Member

WIDTHS = {"1e3": (16,), "1e5": (1300,), "1e7": (3000, 3200)}
N_SUBSETS, N_ALONE, EPOCHS = 128, {"1e3": 8, "1e5": 4, "1e7": 1}, 60


def one_by_one(net, X, y, weights):
    """Train a copy of a network for each weighting, as one would by hand."""
    X, y = torch.tensor(X), torch.tensor(y)
    start = net.trajectory_.recipe.initial
    times = []
    for w in torch.tensor(weights):
        began = time.perf_counter()
        module = net.module_
        torch.nn.utils.vector_to_parameters(start.clone(), module.parameters())
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=1e-2)
        for _ in range(EPOCHS):
            losses = torch.nn.functional.cross_entropy(module(X), y, reduction="none")
            optimizer.zero_grad()
            ((losses * w).sum() / w.sum()).backward()
            optimizer.step()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def run(way, size):
    """Return seconds per subset."""
    X, y, tasks, *_ = draw(0)
    rows = draw_subsets(12, N_SUBSETS, 0.75, 0)[:, tasks].astype(np.float32)
    net = TorchClassifier(
        hidden_layer_sizes=WIDTHS[size], max_epochs=EPOCHS, random_state=0
    )
    if way == "stack":
        net._learn_target(y)
        net.n_features_in_ = X.shape[1]
        few = rows[: 4 if size == "1e7" else N_SUBSETS]
        began = time.perf_counter()
        net._stack(X, y, few, random_state=0)
        return (time.perf_counter() - began) / len(few)
    net.fit(X, y)
    if way == "one by one":
        return one_by_one(net, X, y, rows[: N_ALONE[size]])
    began = time.perf_counter()
    member = Member(
        net,
        X,
        y,
        np.ones(len(X), dtype=np.float32),
        ridge="auto",
        projection=300 if way == "projected" else None,
    )
    member.steps("refit", rows)
    return (time.perf_counter() - began) / N_SUBSETS


def main():
    lines = [
        ".. csv-table:: Time per subset, relative to training it alone",
        '   :header: "parameters", "alone", "stack", "tangent", "tangent, 300"',
        "",
    ]
    for size in WIDTHS:
        found = {}
        for way in ("one by one", "stack", "gradient", "projected"):
            command = [sys.executable, "-m", "benchmarks.subsets", way, size]
            out = subprocess.run(command, check=True, capture_output=True, text=True)
            found[way] = json.loads(out.stdout.splitlines()[-1])
            print(size, way, f"{found[way]:.4f} s", flush=True)
        alone = found["one by one"]
        cells = ", ".join(
            f'"1/{alone / found[way]:.1f}"'
            for way in ("stack", "gradient", "projected")
        )
        lines.append(f'   "{size}", "1 ({alone:.3f} s)", {cells}')
        print(lines[-1])
    MEASURED.joinpath("subsets.inc").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        with sklearn.config_context(working_memory=4096):
            print(json.dumps(run(*sys.argv[1:])))
    else:
        main()
