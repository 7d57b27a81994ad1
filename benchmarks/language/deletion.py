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

from collections import defaultdict

import numpy as np
import torch

from benchmarks._data import lds_interval
from benchmarks._finding import HIDDEN, bm25, interval, joined, measure
from benchmarks._table import Table, write
from benchmarks.language._smollm2 import Resetting, rise_scores, smollm2, tune
from benchmarks.language.planted import N_PLANTED, TUNING, columns, planted, problem
from skattrib.evaluation import make_weightings

N_LEFT_OUT, N_SEEDS, N_RANDOM, N_HALVES = 20, 3, 2, 24
SETTINGS = {
    "RISE": {},
    "RISE, temperature 1": {"temperature": 1.0},
    "RISE, temperature 1, rh + gh + h": {
        "channels": ("rh", "gh", "h"),
        "n_components": 1024,
        "temperature": 1.0,
    },
    HIDDEN: {"channels": ("h",), "n_components": 1024},
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
    return found | {
        name: rise_scores(lm, rows, queries, random_state=seed, **options)
        for name, options in SETTINGS.items()
    }


def left_out(scores, n_rows, seed):
    """Yield names and the rows to leave out."""
    yield "the 20 planted rows", np.arange(N_PLANTED)
    for name, own in scores.items():
        yield f"20 first by {name}", np.argsort(-own.mean(axis=0))[:N_LEFT_OUT]
    rng = np.random.default_rng(seed)
    for _ in range(N_RANDOM):
        yield "20 random rows", rng.choice(n_rows, N_LEFT_OUT, replace=False)


def deletions(teach):
    """Write what leaving rows out changes; return the scores for the first order."""
    changes, planted_rows, first = defaultdict(list), defaultdict(list), None
    for seed in range(N_SEEDS):
        full = teach(np.ones(teach.n_rows, dtype=bool), seed)
        found = scores(teach.lm, teach.rows, teach.queries, seed)
        first = first or found
        for name, rows in left_out(found, teach.n_rows, seed):
            changes[name].append(teach.without(rows, seed) - full)
            planted_rows[name].append((rows < N_PLANTED).sum())
            print(seed, name, *changes[name][-1].mean(axis=1), flush=True)

    table = Table(
        "Tuned again without 20 rows of 120",
        "rows left out | planted among them | change of the log-likelihood | and "
        "against small letters",
    )
    for name, own in changes.items():
        cells = [interval(np.array(own)[:, k], digits=2) for k in range(2)]
        table.add(name, f"{np.mean(planted_rows[name]):.1f}", *cells)
    write("smollm2_deletion", table)
    return first


def halves(teach, found):
    """Write the LDS of scores, with intervals over halves and queries."""
    W = make_weightings(teach.n_rows, N_HALVES, size=0.5, random_state=0)
    truth = np.stack([teach(row > 0, 0) for row in W])
    relevant = np.arange(teach.n_rows) < N_PLANTED
    found = {"planted or not": np.tile(1.0 * relevant, (truth.shape[2], 1))} | found
    table = Table(
        f"Tuned on {N_HALVES} halves of the rows: rank correlation with added scores",
        ["score", "log-likelihood", "against small letters", "average precision"],
    )
    for name, own in found.items():
        cells = [lds_interval(truth[:, k], W @ own.T) for k in range(2)]
        table.add(name, *cells, f"{measure(own, relevant)[1]:.3f}")
    write("smollm2_deletion_lds", table)


def main():
    lm = smollm2()
    rows, queries = problem(lm.tokenizer_)
    shouted = columns([planted(*pair) for pair in queries])
    teach = Teacher(lm, columns(rows), shouted, columns(queries)[1])
    halves(teach, deletions(teach))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
