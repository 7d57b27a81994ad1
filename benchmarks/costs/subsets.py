"""Outcomes of subsets: refitted tangent, stacked training, or one after the other?

Twelve tasks, 240 digits, networks of 1e3, 1e5 and 1e7 parameters trained for 60
epochs on the full batch, 128 subsets. Every way in a process of its own; training one
by one is timed on a few subsets in a plain torch loop, the stack of the largest net on
four. Times are per subset, on one thread; the tangent's include building it, and are
given in a subspace of 300 principal directions too.

    python -m benchmarks.costs.subsets
"""

import json
import sys
import time

import numpy as np
import sklearn
import torch

from benchmarks._processes import in_own_process, seconds
from benchmarks._table import Table, write
from benchmarks.costs._training import plain_loop
from benchmarks.surrogates._comparison import draw_subsets
from benchmarks.surrogates.tasks import draw
from skattrib import TorchClassifier
from skattrib.evaluation import retrain_outcomes
from skattrib.influence._linear_models import LinearModel

WIDTHS = {"1e3": (16,), "1e5": (1300,), "1e7": (3000, 3200)}
N_SUBSETS, N_ALONE, EPOCHS = 128, {"1e3": 8, "1e5": 4, "1e7": 1}, 60
WAYS = ("one by one", "stack", "gradient", "projected")


def one_by_one(net, X, y, weights):
    """Train a network for each weighting, as one would by hand; seconds of each."""
    initial = net.trajectory_.recipe.initial
    whole, data = [torch.arange(len(X))] * EPOCHS, (torch.tensor(X), torch.tensor(y))
    return [
        seconds(
            plain_loop, net.module_, initial, whole, *data, w, clock=time.perf_counter
        )[0]
        for w in torch.tensor(weights)
    ]


def tangent(net, X, y, rows, projection):
    ones = np.ones(len(X), dtype=np.float32)
    options = {"ridge": "auto", "removal": "refit", "projection": projection}
    return LinearModel(net, X, y, ones, **options).steps(rows)


def run(way, size):
    """Return seconds per subset."""
    X, y, tasks, *_ = draw(0)
    rows = draw_subsets(12, N_SUBSETS, 0.75, 0)[:, tasks].astype(np.float32)
    net = TorchClassifier(
        hidden_layer_sizes=WIDTHS[size], max_epochs=EPOCHS, random_state=0
    )
    clock = time.perf_counter
    if way == "stack":
        few = rows[: 4 if size == "1e7" else N_SUBSETS]
        took, _ = seconds(retrain_outcomes, net, X, y, few, X[:1], y[:1], clock=clock)
        return took / len(few)
    net.fit(X, y)
    if way == "one by one":
        return float(np.median(one_by_one(net, X, y, rows[: N_ALONE[size]])))
    projection = 300 if way == "projected" else None
    return seconds(tangent, net, X, y, rows, projection, clock=clock)[0] / N_SUBSETS


def main():
    table = Table(
        "Time per subset, relative to training it alone",
        ["parameters", "alone", "stack", "tangent", "tangent, 300"],
    )
    for size in WIDTHS:
        alone, *others = (in_own_process(__spec__.name, way, size) for way in WAYS)
        ratios = [f"1/{alone / other:.1f}" for other in others]
        table.add(size, f"1 ({alone:.3f} s)", *ratios)
    write("subsets", table)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        with sklearn.config_context(working_memory=4096):
            print(json.dumps(run(*sys.argv[1:])))
    else:
        main()
