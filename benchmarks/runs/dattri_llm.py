"""Derivatives of AdamW runs against those of the package dattri-llm 0.1.0.

dattri-llm implements the paper's AdamW-influence with the empirical Fisher. It is run
in an environment of its own, see benchmarks/peers/README.md; PEER_PYTHON names the
interpreter:

    PEER_PYTHON=/somewhere/peer/bin/python python -m benchmarks.runs.dattri_llm

Both differentiate the same run in the weight of every row at every single step: 512
digits, one hidden layer of 16, minibatches of 32, 2 epochs, 20 queries, float64. The
score of dattri-llm is the derivative of the query's loss, ours that of its outcome.
dattri-llm divides a minibatch's loss by the number of rows, this package by the sum of
weights, so that its scores of a step are ours after subtracting their mean.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from sklearn.frozen import FrozenEstimator

from benchmarks._data import load, network
from benchmarks._table import Table, write
from skattrib import AdamWInfluence

N_QUERIES = 20
ADAPTER = Path(__file__).parents[1] / "peers" / "run_dattri_llm.py"
#: activation, learning rate, clip_norm: all steps are clipped
SETTINGS = [
    ("relu", 1e-2, None),
    ("relu", 1e-3, None),
    ("tanh", 1e-2, None),
    ("tanh", 1e-3, None),
    ("tanh", 1e-2, 0.3),
]


def peer(net, X, y, X_query, y_query):
    """Return what dattri-llm finds, its rows from the last step to the first."""
    adamw = {k: getattr(net, k) for k in ("weight_decay", "betas", "eps")}
    options = {
        "activation": net.activation,
        "clip_norm": net.clip_norm,
        "adamw": {"lr": net.learning_rate, **adamw},
    }
    recipe, state = net.trajectory_.recipe, {}
    # the parameters that the run started from
    start = recipe.initial.split([p.numel() for p in net.module_.parameters()])
    for (name, p), value in zip(net.module_.named_parameters(), start, strict=True):
        state[f"state/{name}"] = value.view_as(p).numpy()

    with tempfile.TemporaryDirectory() as folder:
        source, target = f"{folder}/problem.npz", f"{folder}/scores.npz"
        np.savez(
            source,
            X=X,
            y=y,
            X_query=X_query,
            y_query=y_query,
            rows=np.concatenate(recipe.batches),
            batch_sizes=[len(rows) for rows in recipe.batches],
            options=json.dumps(options),
            **state,
        )
        subprocess.run(
            [os.environ["PEER_PYTHON"], str(ADAPTER), source, target],
            check=True,
            env=os.environ | {"PYTHONPATH": ""},
        )
        return dict(np.load(target))


def by_step(net, X, y, queries, hessian):
    """Return our attributions to rows at single steps, (q, entries), step by step."""
    influence = AdamWInfluence(FrozenEstimator(net), inclusion=1.0, hessian=hessian)
    return influence.fit(X, y).step_attribution(*queries)


def error(found, expected):
    """Return the norm of all differences relative to what is expected."""
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def rank_correlation(found, expected, rows):
    """Return that of sums over the steps of each row, the mean over queries."""
    sums = [
        [np.bincount(rows, of_query) for of_query in each] for each in (found, expected)
    ]
    return np.mean([spearmanr(*pair).statistic for pair in zip(*sums, strict=True)])


def compare(activation, rate, clip_norm):
    """Return the cells of a setting."""
    X, y, *queries = load("digits", dtype=np.float64)
    queries = [part[:N_QUERIES] for part in queries]
    options = {"activation": activation, "learning_rate": rate, "clip_norm": clip_norm}
    net = network(**options, max_epochs=2).fit(X, y)
    found = peer(net, X, y, *queries)
    for name, value in net.module_.state_dict().items():
        np.testing.assert_allclose(value, found[f"end/{name}"], rtol=0, atol=1e-10)

    ours = by_step(net, X, y, queries, "empirical_fisher")
    exact = by_step(net, X, y, queries, "exact").attributions
    fisher, steps = ours.attributions, ours.steps
    order = np.argsort(found["steps"], kind="stable")
    np.testing.assert_array_equal(found["rows"][order], ours.rows)
    theirs = -found["scores"][order].T.astype(float)

    centred = theirs.copy()
    for step in np.unique(steps):
        centred[:, steps == step] -= theirs[:, steps == step].mean(axis=1)[:, None]
    return [
        activation,
        f"{rate:g}",
        f"{clip_norm}",
        f"{error(centred, fisher):.1e}",
        f"{error(theirs, fisher):.2f}",
        f"{rank_correlation(theirs, fisher, ours.rows):.4f}",
        f"{error(fisher, exact):.2f}",
        f"{rank_correlation(fisher, exact, ours.rows):.4f}",
    ]


def main():
    table = Table(
        "Differences between dattri-llm 0.1.0 and AdamWInfluence",
        "activation | learning rate | clip_norm | theirs, centred | as they are | rank "
        "correlation | Fisher for Hessian | rank correlation",
    )
    for setting in SETTINGS:
        table.add(*compare(*setting))
    write("dattri_llm", table)


if __name__ == "__main__":
    main()
