"""Selection during training on digits with wrong labels: does looking ahead pay?

1,000 training rows, of which 30 % have labels drawn anew (27 % get wrong ones), 200
validation rows and 597 test rows with right ones, all drawn anew for each of ten seeds.
MLP 64-16-10 ReLU, AdamW, minibatches of 50, ten epochs. Compared with no selection,
with no selection but the validation rows trained on as well, and with leaving out just
the wrong labels.

    python -m benchmarks.runs.lookahead
"""

from itertools import product

import numpy as np
from sklearn.base import clone

from benchmarks._data import network, shuffled_digits
from benchmarks._table import Table, pm, write
from skattrib import lookahead_training

N_SEEDS = 10
N_TRAIN, N_VAL = 1000, 200
NOISE = 0.3
RATES = [1e-2, 3e-3, 1e-3]
DROPS = [0.1, 0.3]
HORIZONS = [1, 2, 5, 10, 25, "run"]
SCORES = {"recorded": "AdamW's", "sgd": "SGD's"}
PLAIN = ["no selection", "no selection, validation rows too", "wrong labels left out"]


def draw(seed):
    """Return rows, true labels and training labels, some of them wrong."""
    X, y, rng = shuffled_digits(seed)
    labels = y[:N_TRAIN].copy()
    noisy = rng.rand(N_TRAIN) < NOISE
    labels[noisy] = rng.randint(10, size=noisy.sum())
    return X, y, labels


def measure(rate):
    """Return plain errors (seeds, 3), and errors and shares by (drop, dynamics)."""
    train, val = slice(N_TRAIN), slice(N_TRAIN, N_TRAIN + N_VAL)
    both, test = slice(N_TRAIN + N_VAL), slice(N_TRAIN + N_VAL, None)
    plain, found = [], {}

    for seed in range(N_SEEDS):
        X, y, labels = draw(seed)
        options = {"learning_rate": rate, "batch_size": 50, "max_epochs": 10}
        net = network(**options, random_state=seed)
        right = labels == y[train]

        def error(model, X=X, y=y):
            return 100 * (1 - model.score(X[test], y[test]))

        runs = [
            (X[train], labels, None),
            (X[both], np.concatenate([labels, y[val]]), None),
            (X[train], labels, right.astype(float)),
        ]
        plain.append([error(clone(net).fit(*run)) for run in runs])

        for drop, dynamics in product(DROPS, SCORES):
            own = []
            for horizon in HORIZONS:
                options = {"horizon": horizon, "drop": drop, "dynamics": dynamics}
                rows = X[train], labels, X[val], y[val]
                chosen = lookahead_training(net, *rows, **options)
                wrong = ~right[chosen.rows[~chosen.kept]]
                own.append([error(chosen.estimator), 100 * wrong.mean()])
            found.setdefault((drop, dynamics), []).append(own)
    return np.array(plain), {key: np.array(runs) for key, runs in found.items()}


def main():
    by_horizon = ["learning rate", "left out", "scores", *HORIZONS]
    errors = Table("Test error in %", ["learning rate", *PLAIN])
    gains = Table(
        "Change of the test error by selection, in points, for each horizon", by_horizon
    )
    shares = Table(
        "Wrong labels among the rows left out, in %, for each horizon", by_horizon
    )

    for rate in RATES:
        plain, found = measure(rate)
        errors.add(f"{rate:g}", *(pm(values, 1) for values in plain.T))
        for (drop, dynamics), runs in found.items():
            start = f"{rate:g}", drop, SCORES[dynamics]
            gained = (runs[..., 0] - plain[:, :1]).T
            gains.add(*start, *(pm(values, 1) for values in gained))
            wrong = runs[..., 1].mean(axis=0)
            shares.add(*start, *(f"{value:.0f}" for value in wrong))
    write("lookahead", errors, gains, shares)


if __name__ == "__main__":
    main()
