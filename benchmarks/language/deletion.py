"""Did the rows that signatures find teach SmolLM2 to shout? It is taught without them.

The planted behaviour of `benchmarks.language.planted`. For three orders of training,
every score is taken from the model that was tuned on all rows, the 20 rows with the
largest mean over the queries are left out, and the model is tuned on the others again;
so it is without 20 random rows. What changes is the mean log-likelihood of the queries'
replies, and by how much they are likelier than the same replies in small letters: most
of the first is which words are said, which no row taught. Then the model is tuned on 24
random halves of the rows: how well do the scores of the rows present, added up, rank
both (LDS)?

    python -m benchmarks.language.deletion
"""

import numpy as np
import torch
from sklearn.metrics import average_precision_score

from benchmarks._table import Table, ranged, write
from benchmarks.language._scores import bm25, joined
from benchmarks.language._smollm2 import Resetting, smollm2, tune
from benchmarks.language.planted import N_PLANTED, TUNING, columns, planted, problem
from skattrib import RISEValuator
from skattrib.evaluation import lds_score, make_weightings

N_LEFT_OUT, N_SEEDS, N_RANDOM, N_HALVES = 20, 3, 2, 24
SETTINGS = {
    "RISE": {},
    "RISE, temperature 1": {"temperature": 1.0},
    "RISE, temperature 1, rh + gh + h": {
        "channels": ("rh", "gh", "h"),
        "n_components": 1024,
        "temperature": 1.0,
    },
    "mean hidden state, less its mean": {"channels": ("h",), "n_components": 1024},
    "RISE, published settings": {"preset": "paper"},
}


class Teacher:
    """Tune the model on some rows, and see how likely the queries become.

    Outcomes (2, q) are log-likelihoods of the replies, and the same minus those of the
    replies as they were.
    """

    def __init__(self, lm, rows, queries, ordinary):
        self.lm, self.rows, self.queries = lm, rows, queries
        self._ordinary = queries[0], ordinary
        self.n_rows = len(self.rows[0])
        self._reset = Resetting(lm.model_)

    def __call__(self, kept, seed):
        self._reset()
        X, y = ([column[i] for i in np.flatnonzero(kept)] for column in self.rows)
        tune(self.lm, X, y, **TUNING, seed=seed)
        found = self.lm.log_likelihood(*self.queries)
        return np.stack([found, found - self.lm.log_likelihood(*self._ordinary)])

    def without(self, left_out, seed):
        kept = np.ones(self.n_rows, dtype=bool)
        kept[left_out] = False
        return self(kept, seed)


def scores(lm, rows, queries, seed):
    """Return scores (q, n) by name, of the model as it is."""
    found = {"BM25": bm25(*(joined(*pair, between="") for pair in (queries, rows)))}
    for name, options in SETTINGS.items():
        rise = RISEValuator(lm, random_state=seed, **options).fit(*rows)
        found[name] = rise.attribute(*queries)
    return found


def interval(values):
    """Return the mean of values (seeds, q), with an interval over seeds and queries."""
    values = np.asarray(values, dtype=float)
    rng = np.random.default_rng(0)
    n_seeds, n_queries = values.shape
    s = rng.integers(n_seeds, size=(10_000, n_seeds, 1))
    q = rng.integers(n_queries, size=(10_000, 1, n_queries))
    low, high = np.percentile(values[s, q].mean(axis=(1, 2)), [2.5, 97.5])
    return ranged(values.mean(), low, high, digits=2)


def deletions(teach):
    """Return changes (seeds, 2, q) and planted rows by name, and first scores."""
    changes, planted_rows, first = {}, {}, None
    for seed in range(N_SEEDS):
        full = teach(np.ones(teach.n_rows, dtype=bool), seed)
        found = scores(teach.lm, teach.rows, teach.queries, seed)
        first = first or found
        rng = np.random.default_rng(seed)
        arms = {"the 20 planted rows": np.arange(N_PLANTED)} | {
            f"20 first by {name}": np.argsort(-own.mean(axis=0))[:N_LEFT_OUT]
            for name, own in found.items()
        }
        for i in range(N_RANDOM):
            chosen = rng.choice(teach.n_rows, N_LEFT_OUT, replace=False)
            arms[f"20 random rows/{i}"] = chosen
        for arm, left_out in arms.items():
            change = teach.without(left_out, seed) - full
            name = arm.split("/")[0]
            changes.setdefault(name, []).append(change)
            planted_rows.setdefault(name, []).append((left_out < N_PLANTED).sum())
            print(seed, arm, planted_rows[name][-1], *change.mean(axis=1), flush=True)
    return changes, planted_rows, first


def halves(teach, found):
    """Write the LDS of scores, with intervals over halves and queries."""
    W = make_weightings(teach.n_rows, N_HALVES, size=0.5, random_state=0)
    truth = np.stack([teach(row > 0, 0) for row in W])
    relevant = np.arange(teach.n_rows) < N_PLANTED
    found = {"planted or not": np.tile(relevant, (truth.shape[2], 1))} | found
    table = Table(
        f"Tuned on {N_HALVES} halves of the rows: rank correlation with added scores",
        ["score", "log-likelihood", "against small letters", "average precision"],
    )
    for name, own in found.items():
        predicted = W @ np.asarray(own, dtype=float).T
        cells = [lds(truth[:, k], predicted) for k in range(2)]
        precision = np.mean([average_precision_score(relevant, row) for row in own])
        table.add(name, *cells, f"{precision:.3f}")
    write("smollm2_deletion_lds", table)


def lds(truth, predicted):
    """Return the LDS of outcomes (m, q), with an interval over both."""
    drawn, rng = [], np.random.default_rng(0)
    for _ in range(1_000):
        m = rng.integers(len(truth), size=len(truth))
        q = rng.integers(truth.shape[1], size=truth.shape[1])
        drawn.append(lds_score(truth[m][:, q], predicted[m][:, q]))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return ranged(lds_score(truth, predicted), low, high)


def main():
    lm = smollm2()
    rows, queries = problem(lm.tokenizer_)
    shouted = columns([planted(*pair) for pair in queries])
    teach = Teacher(lm, columns(rows), shouted, columns(queries)[1])
    changes, planted_rows, found = deletions(teach)
    table = Table(
        "Tuned again without 20 rows of 120",
        "rows left out | planted among them | change of the log-likelihood | and "
        "against small letters",
    )

    for name, own in changes.items():
        cells = [interval(np.array(own)[:, k]) for k in range(2)]
        table.add(name, f"{np.mean(planted_rows[name]):.1f}", *cells)

    write("smollm2_deletion", table)
    halves(teach, found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
