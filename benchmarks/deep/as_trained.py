"""Networks as people train them: dropout, normalisation, early stopping, averages.

512 digits, AdamW with weight decay 0.01, minibatches of 32, 15 epochs, ReLU, learning
rate 0.01 unless said, training seed 0. Margins of 25 queries, 12 of networks of two and
more layers. LDS on 200 halves, really retrained, of `AdamWInfluence` with its 16 runs
on halves and ``n_halves=0``: *exact*, their plain derivatives, and *chosen*, what it
makes of them by `agreement_`.

With dropout there are two truths: retrainings with the masks of the fitted network, and
the mean of 8 retrainings with other masks each. Early stopping: patience 3, 100 further
digits to decide by, at most 40 epochs; truth that stops where the fitted network did,
and where each retraining stops by itself. *Limit*: of LDS for sums over rows, from
outcomes of halves that share half of their rows. Networks that are named have their
rows replaced.

    OMP_NUM_THREADS=1 python -m benchmarks.deep.as_trained [network ...]
"""

import sys
import warnings
from dataclasses import replace

import numpy as np
import torch
from sklearn.base import clone

from benchmarks._data import digits
from benchmarks._table import reopen, write
from benchmarks.peers._networks import Network
from skattrib import AdamWInfluence, EarlyStopping, TorchClassifier
from skattrib.engine._training import stacked_outputs  # no public name
from skattrib.evaluation import lds_score, make_weightings
from skattrib.influence._prior_means import Weighed

N_ROWS, N_VALIDATION, N_SUBSETS, N_MASKS = 512, 100, 200, 8
TRAINED = {
    "optimizer": "adamw",
    "batch_size": 32,
    "max_epochs": 15,
    "learning_rate": 1e-2,
    "random_state": 0,
}
HEADER = [
    "network",
    "limit",
    "agreement",
    "exact",
    "chosen",
    "mean over masks: exact",
    "chosen",
    "own stops: exact",
    "chosen",
]


def layers(sizes, p=0.0, norm=None):
    """Return a factory of a multilayer perceptron with dropout or normalisation."""
    return Network("perceptron", {"sizes": sizes, "dropout": p, "norm": norm})


def stops(patience=3):
    X, y = shuffled()
    part = slice(600, 600 + N_VALIDATION)
    return EarlyStopping(patience=patience, validation_data=(X[part], y[part]))


def shuffled():
    X, y = digits()
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0)).numpy()
    return X[order].astype(np.float32), y[order]


EMA = {"average": "ema"}
#: name: (hidden layers, dropout, normalisation, other options)
NETWORKS = {
    "32": ((32,), 0.0, None, {}),
    "32, dropout .2": ((32,), 0.2, None, {}),
    "32, dropout .5": ((32,), 0.5, None, {}),
    "32, dropout .2, lr .003": ((32,), 0.2, None, {"learning_rate": 3e-3}),
    "32, layer norm": ((32,), 0.0, "layer", {}),
    "32, batch norm": ((32,), 0.0, "batch", {}),
    "64 x 64, batch norm, lr .003": (
        (64, 64),
        0.0,
        "batch",
        {"learning_rate": 3e-3},
    ),
    "32, early stopping": ((32,), 0.0, None, {"early_stopping": True}),
    "32, early stopping, lr .003": (
        (32,),
        0.0,
        None,
        {"early_stopping": True, "learning_rate": 3e-3},
    ),
    "64 x 64, EMA": ((64, 64), 0.0, None, EMA),
    "64 x 64, EMA, seed 1": ((64, 64), 0.0, None, EMA | {"random_state": 1}),
    "64 x 64 x 64, EMA": ((64, 64, 64), 0.0, None, EMA),
}


def swapped(present):
    """Return subsets that share half of their rows with those given."""
    other, rng = present.copy(), np.random.RandomState(5)
    for row in other:
        on, off = np.flatnonzero(row > 0), np.flatnonzero(row == 0)
        k = len(on) // 4
        row[rng.choice(on, k, replace=False)] = 0
        row[rng.choice(off, k, replace=False)] = 1
    return other


def stacked(blank, rows, weights, masks=None):
    """Return a network as a function, and its vectors for weights of the rows.

    ``masks`` are seeds of its random numbers, one for all by default.
    """
    blank._learn_target(rows[1])
    seed = blank.random_state
    model, found = blank._stack(*rows, weights, random_state=seed, masks=masks)
    return model, found.params


def margins(blank, rows, queries, weights, masks=None):
    """Return margins (m, q) after retraining with weights of the rows."""
    model, params = stacked(blank, rows, weights, masks)
    outputs = stacked_outputs(model, params, torch.tensor(queries[0]), 2e8)
    targets = torch.tensor(queries[1]).expand(len(outputs), -1)
    return blank.loss_function_.margin(outputs, targets).numpy()


class Setting:
    """A network, its queries, and outcomes of retrained subsets."""

    def __init__(self, name):
        sizes, p, norm, options = NETWORKS[name]
        options = dict(options)
        self.stopping = options.pop("early_stopping", None) and stops()
        if self.stopping:
            options |= {"early_stopping": self.stopping, "max_epochs": 40}
        X, y = shuffled()
        n_queries = 25 if len(sizes) == 1 else 12
        asked = slice(1000, 1000 + n_queries)
        self.X, self.y = X[:N_ROWS], y[:N_ROWS]
        self.queries = X[asked], y[asked]
        self.draws = p > 0
        self.estimator = TorchClassifier(
            layers(sizes, p, norm), **{**TRAINED, **options}
        )
        self.fitted = clone(self.estimator).fit(self.X, self.y)

    def truth(self, present, masks=None, stopping=None):
        """Return margins (m, q) after retraining, all with the same masks."""
        blank = clone(self.fitted._kept_stopping())
        if stopping is not None:
            blank.set_params(early_stopping=stopping)
        seeds = None if masks is None else np.full(len(present), masks)
        return margins(blank, (self.X, self.y), self.queries, present, seeds)

    def attributed(self, *, exact, stopping=None):
        """Return attributions (q, n) and the agreement."""
        estimator = clone(self.estimator)
        if stopping is not None:
            estimator.set_params(early_stopping=stopping)
        influence = AdamWInfluence(
            estimator, n_halves=0, outcome="margin", random_state=0
        )
        influence.fit(self.X, self.y)
        if exact:
            influence._weighed = Weighed()
        return influence.attribute(*self.queries), influence.agreement_


def measure(name):
    """Return a row of the table."""
    setting = Setting(name)
    present = make_weightings(N_ROWS, N_SUBSETS, random_state=1).astype(float)
    outcomes = setting.truth(present)
    near = setting.truth(swapped(present))
    r = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(outcomes.T, near.T)])
    truths = {"same": outcomes}
    if setting.draws:
        truths["masks"] = np.mean(
            [setting.truth(present, masks=seed + 1) for seed in range(N_MASKS)], axis=0
        )
    exact, agreement = setting.attributed(exact=True)
    chosen, _ = setting.attributed(exact=False)
    cells = [f"{np.sqrt(max(0, 2 * r)):.2f}", f"{agreement:.2f}"]
    for truth in ("same", "masks"):
        known = truth in truths
        cells += [
            lds(a, present, truths[truth]) if known else "" for a in (exact, chosen)
        ]
    if not setting.stopping:
        return [name, *cells, "", ""]
    own = replace(setting.stopping, redecide=True)
    outcomes = setting.truth(present, stopping=own)
    for exact in (True, False):
        found, _ = setting.attributed(exact=exact, stopping=own)
        cells.append(lds(found, present, outcomes))
    return [name, *cells]


def lds(attributions, present, outcomes):
    return f"{lds_score(outcomes, present @ attributions.T):.3f}"


def main(names):
    table = reopen("deep_as_trained", "LDS of networks as people train them", HEADER)
    for name in names or NETWORKS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row = measure(name)
        table.put(*row)
        write("deep_as_trained", table)


if __name__ == "__main__":
    main(sys.argv[1:])
