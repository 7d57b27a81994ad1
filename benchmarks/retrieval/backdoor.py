"""A planted backdoor: which rows taught the network its trick, from how few bytes?

Digits, 1,000 rows; 50 of them have a bright corner and the label 0. Queries are 60
other digits with the corner, which the network takes for 0. Plain area under the ROC
curve and average precision of finding the 50, mean over queries, ± standard error over
seeds of poison, network and hashes. Then the rows ranked first are really left out of
training, against random ones with the label 0, and random ones of all.

    python -m benchmarks.retrieval.backdoor [number of seeds]
"""

import sys
from collections import defaultdict

import numpy as np
import torch
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import pairwise_distances

from benchmarks._data import network, shuffled_digits
from benchmarks._finding import measure, rise_settings
from benchmarks._table import Table, pm, write
from skattrib import AdamWInfluence, DualInfluence, RISEValuator
from skattrib.evaluation import retrain_outcomes

N_ROWS, N_BAD, N_QUERIES = 1000, 50, 60
SETTINGS = rise_settings(
    (16, 32, 64, 128), (16, 64, 256, 1024), (1, 2, 4), "last layer"
) | {"RISE, published settings": {"preset": "paper"}}


def problem(seed):
    """Return a trained network, its rows, which are bad, and queries."""
    X, y, rng = shuffled_digits(seed)
    candidates = np.flatnonzero(y[:N_ROWS] != 0)
    bad = np.zeros(N_ROWS, dtype=bool)
    bad[rng.choice(candidates, N_BAD, replace=False)] = True
    some = N_ROWS + np.flatnonzero(y[N_ROWS:] != 0)[:N_QUERIES]
    queries = patched(X[some])
    X, y = X[:N_ROWS].copy(), y[:N_ROWS].copy()
    X[bad], y[bad] = patched(X[bad]), 0
    net = network(activation="tanh", max_epochs=30, random_state=seed).fit(X, y)
    return net, X, y, bad, queries, np.zeros(N_QUERIES, dtype=y.dtype)


def patched(X):
    X = X.copy().reshape(-1, 8, 8)
    X[:, :2, :2] = 1.0
    return X.reshape(-1, 64)


def rankings(seed, net, X, y, Xq, yq):
    """Yield name, bytes a row and scores (q, n)."""
    frozen = FrozenEstimator(net)
    with torch.no_grad():
        hidden = [net.module_[:-1](torch.tensor(rows)).numpy() for rows in (Xq, X)]
    yield "random", "", np.random.RandomState(seed).rand(N_QUERIES, N_ROWS)
    yield "label", "", np.tile(1.0 * (y == 0), (N_QUERIES, 1))
    yield "nearest, pixels", "", -pairwise_distances(Xq, X)
    yield "nearest, hidden states", "", -pairwise_distances(*hidden)

    for name, options in SETTINGS.items():
        rise = RISEValuator(frozen, random_state=seed, **options).fit(X, y)
        yield name, rise.bytes_per_row_, rise.attribute(Xq, yq)

    dual = DualInfluence(frozen, random_state=seed).fit(X, y)
    yield "DualInfluence", "", dual.attribute(Xq, yq)
    run = AdamWInfluence(frozen, random_state=seed).fit(X, y)
    yield "AdamWInfluence, one run", "", run.attribute(Xq, yq)


def removals(seed, net, X, y, bad, Xq, yq, scores):
    """Return, by what is left out, how many are planted and what it changes.

    That is the mean log-likelihood of 0 for the queries.
    """
    order = np.argsort(-scores.mean(axis=0), kind="stable")
    rng = np.random.RandomState(seed)
    zeros = rng.permutation(np.flatnonzero(y == 0))
    left_out = {"the 50 planted rows": np.flatnonzero(bad)}

    for n in (50, 100):
        left_out[f"{n} ranked first"] = order[:n]
        left_out[f"{n} random rows labelled 0"] = zeros[:n]
        left_out[f"{n} random rows"] = rng.choice(N_ROWS, n, replace=False)

    weights = np.ones((1 + len(left_out), N_ROWS))
    for row, rows in zip(weights[1:], left_out.values(), strict=True):
        row[rows] = 0
    outcomes = retrain_outcomes(net, X, y, weights, Xq, yq).mean(axis=1)
    planted = [bad[rows].sum() for rows in left_out.values()]
    pairs = zip(planted, outcomes[1:] - outcomes[0], strict=True)
    return dict(zip(left_out, pairs, strict=True))


def main(n_seeds):
    found, changes, sizes = defaultdict(list), defaultdict(list), {}
    for seed in range(n_seeds):
        net, X, y, bad, Xq, yq = problem(seed)
        for name, size, scores in rankings(seed, net, X, y, Xq, yq):
            sizes[name] = size
            found[name].append(measure(scores, bad))
            if name == "RISE":
                by_rise = scores
        own = removals(seed, net, X, y, bad, Xq, yq, by_rise)
        for name, change in own.items():
            changes[name].append(change)
        print("seed", seed, flush=True)

    finding = Table(
        "Finding 50 planted rows of 1,000",
        ["scores", "bytes a row", "ROC AUC", "average precision"],
    )
    for name, pairs in found.items():
        finding.add(name, sizes[name], *map(pm, np.transpose(pairs)))

    leaving = Table(
        "Leaving rows out: change of the log-likelihood of the trick",
        ["rows left out", "planted among them", "change"],
    )
    for name, pairs in changes.items():
        planted, change = np.transpose(pairs)
        leaving.add(name, f"{planted.mean():.0f}", pm(change))
    write("backdoor", finding, leaving)


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 6)
