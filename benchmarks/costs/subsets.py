"""Outcomes of subsets: refitted tangent, stacked training, or one after the other?

Twelve tasks, 240 digits, networks of 1e3, 1e5 and 1e7 parameters trained for 60
epochs on the full batch, 128 subsets. Every way in a process of its own; training one
by one is timed on a few subsets in a plain torch loop, the stack of the largest net on
four. Times are per subset, on one thread; the tangent's include building it, and are
given in a subspace of 300 principal directions too.

Then, in minibatches: 64 models of 512 digits as a stack against one after the other, in
turns, five times.

    python -m benchmarks.costs.subsets
"""

import time

import numpy as np
import sklearn
import torch

from benchmarks._data import load, network
from benchmarks._processes import in_own_process, in_turns, wall_seconds
from benchmarks._table import Table, write
from benchmarks.costs._training import plain_loop
from benchmarks.surrogates._comparison import draw_subsets
from benchmarks.surrogates.tasks import draw
from skattrib import TorchClassifier
from skattrib.evaluation import retrain_outcomes

# The surrogates refit it to subsets, but do not take the time apart.
from skattrib.extension import as_model
from skattrib.influence._linear_models import LinearModel

WIDTHS = {"1e3": (16,), "1e5": (1300,), "1e7": (3000, 3200)}
N_SUBSETS, N_ALONE, EPOCHS = 128, {"1e3": 8, "1e5": 4, "1e7": 1}, 60
N_MODELS, N_ROUNDS = 64, 5
WAYS = ("one by one", "stack", "gradient", "projected")


def one_by_one(net, X, y, weights):
    """Train a network for each weighting, as one would by hand."""
    recipe = net.trajectory_.recipe
    batches = recipe.batches or [torch.arange(len(X))] * recipe.n_steps
    data = torch.tensor(X), torch.tensor(y)
    for w in torch.tensor(weights, dtype=data[0].dtype):
        plain_loop(net.module_, recipe.initial, batches, *data, w)


def tangent(net, X, y, rows, projection):
    ones = np.ones(len(X), dtype=np.float32)
    options = {"ridge": "auto", "removal": "refit", "projection": projection}
    return LinearModel(as_model(net), X, y, ones, **options).steps(rows)


@sklearn.config_context(working_memory=4096)
def measure(way, size):
    """Return seconds per subset."""
    X, y, tasks, *_ = draw(0)
    rows = draw_subsets(12, N_SUBSETS, 0.75, 0)[:, tasks].astype(np.float32)
    net = TorchClassifier(
        hidden_layer_sizes=WIDTHS[size], max_epochs=EPOCHS, random_state=0
    ).fit(X, y)
    if way == "one by one":
        each = [
            wall_seconds(one_by_one, net, X, y, w[None])[0]
            for w in rows[: N_ALONE[size]]
        ]
        return float(np.median(each))
    if way == "stack":
        few = rows[: 4 if size == "1e7" else N_SUBSETS]
        return wall_seconds(retrain_outcomes, net, X, y, few, X[:1], y[:1])[0] / len(
            few
        )
    projection = 300 if way == "projected" else None
    return wall_seconds(tangent, net, X, y, rows, projection)[0] / N_SUBSETS


def in_minibatches():
    X, y, Xq, yq = load("digits")
    net = network(max_epochs=5).fit(X, y)
    weights = np.random.RandomState(0).rand(N_MODELS, len(X)) < 0.5
    ways = [
        lambda: one_by_one(net, X, y, weights),
        lambda: retrain_outcomes(net, X, y, weights, Xq, yq),
    ]
    alone, stack = in_turns(ways, N_ROUNDS, clock=time.perf_counter).T
    faster = alone / stack
    print(
        f"{N_MODELS} models, MLP 64-16-10, batches of {net.batch_size}: the stack is "
        f"{np.median(faster):.1f} times faster than one by one ({min(faster):.1f} to "
        f"{max(faster):.1f})"
    )


def main():
    table = Table(
        "Time per subset, relative to training it alone",
        ["parameters", "alone", "stack", "tangent", "tangent, 300"],
    )
    for size in WIDTHS:
        alone, *others = (in_own_process(measure, way, size) for way in WAYS)
        ratios = [f"1/{alone / other:.1f}" for other in others]
        table.add(size, f"1 ({alone:.3f} s)", *ratios)
    write("subsets", table)


if __name__ == "__main__":
    in_minibatches()
    main()
