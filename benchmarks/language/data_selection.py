"""Which texts to fine-tune on, so that a model knows a domain? Chosen, and tried.

A small Llama has read docstrings of installed packages. The pool: first lines of
docstrings of eight modules of the standard library, and as many texts again that are
noise, names with the lines of others. The domain is two of the modules, of which other
lines are to be foretold: some to choose by, others to judge by. Each method keeps 30 %
of the pool, and the model is fine-tuned anew on that, as many steps as on all of it.
Loss a token, of the lines to judge by; "gained" is how much lower it is than with rows
kept at random, in the same draw. Five draws of pool, noise and training, ± standard
error. `lookahead_training` chooses while it trains, 30 % of each minibatch. Draws are
kept in `doc/measured/data_selection.json`, and those that it has are not repeated.

    OMP_NUM_THREADS=1 python -m benchmarks.language.data_selection
"""

import json
import warnings
from types import SimpleNamespace

import numpy as np
from sklearn.base import clone

from benchmarks._table import MEASURED, Table, pm, write
from benchmarks.language._sentences import ENCODER, sentences
from benchmarks.language._small import columns, docstrings, small_llama
from benchmarks.language.fine_tuning import ours, similarities, small_lm
from skattrib import lookahead_training

N_EACH, N_ASKED, LONGEST, KEPT, N_DRAWS = 12, 16, 30, 0.3, 5
DRAWS = MEASURED / "data_selection.json"
DOMAIN = "asyncio", "logging"
RANDOM = "at random"
ONLINE = [(horizon, way) for way in ("recorded", "sgd") for horizon in (1, 5, 25)]


def case(model, tokenizer, seed):
    """Return a model fitted to the pool, and what to choose and to judge by."""
    rng = np.random.RandomState(seed)
    rows, others = docstrings(tokenizer, N_EACH, N_ASKED, LONGEST)
    sources, prompts, answers = columns(rows)
    # another module's line for each name
    noise = rng.permutation(answers)
    order = rng.permutation(2 * len(rows))
    clean = np.repeat([True, False], len(rows))[order]
    sources = np.tile(sources, 2)[order]
    texts = np.tile(prompts, 2)[order], np.r_[answers, noise][order]
    of_domain = [row for row in others if row[0] in DOMAIN]
    of_domain = [of_domain[i] for i in rng.permutation(len(of_domain))]
    half = len(of_domain) // 2
    lm = small_lm(model, tokenizer, random_state=seed)
    asked_of, *asked = columns(of_domain[:half])
    return SimpleNamespace(
        name="",
        lm=lm.fit(*texts),
        rows=texts,
        queries=asked,
        judged=columns(of_domain[half:])[1:],
        sources=sources,
        of_queries=asked_of,
        wanted=clean & np.isin(sources, DOMAIN),
        clean=clean,
        setting=SimpleNamespace(runs=()),
    )


def loss(lm, queries):
    """Return the mean loss of a token."""
    tokens = lm._tokenised(*queries)[1]
    return float(-lm.log_likelihood(*queries).sum() / tokens.sum())


class Kept:
    """Keeps rows of the pool, fine-tunes on them and notes what came of it."""

    def __init__(self, one, seed):
        self.one, self.found = one, {}
        self.n_epochs = round(one.lm.max_epochs / KEPT)
        self.rng = np.random.RandomState(100 + seed)

    def add(self, method, lm, wanted):
        """Note the loss of what is judged by, and the share of wanted rows."""
        self.found[method] = loss(lm, self.one.judged), float(wanted)
        print(method, *(f"{value:.3f}" for value in self.found[method]), flush=True)

    def first(self, method, scores):
        """Fine-tune on the rows of the highest scores."""
        n_kept = round(KEPT * len(scores))
        rows = np.sort(np.argsort(-scores, kind="stable")[:n_kept])
        lm = clone(self.one.lm).set_params(max_epochs=self.n_epochs)
        lm.fit(*(texts[rows] for texts in self.one.rows))
        self.add(method, lm, self.one.wanted[rows].mean())

    def beforehand(self):
        """Choose by what needs no attribution, and by attributions."""
        one, draws = self.one, self.rng.rand(2, len(self.one.wanted))
        still = clone(one.lm).set_params(learning_rate=1e-12, max_epochs=1)
        self.add("not fine-tuned", still.fit(*one.rows), np.nan)
        self.add("all of the pool", one.lm, one.wanted.mean())
        self.first(RANDOM, draws[0])
        self.first("the domain without noise, filled up", one.wanted + draws[1] / 2)
        sizes = one.lm._tokenised(*one.rows)[1]
        self.first("lowest loss", one.lm.log_likelihood(*one.rows) / sizes)
        for methods in (ours, similarities):
            for method, scores, _ in methods(one, ()):
                self.first(method, scores.mean(axis=0))
        scores = sentences(one.rows, one.queries)
        if scores is not None:
            self.first(ENCODER, scores.mean(axis=0))

    def meanwhile(self):
        """Choose while it trains: as many steps, and rows a step."""
        one = self.one
        lm = clone(one.lm).set_params(
            max_epochs=self.n_epochs,
            train_batch_size=round(one.lm.train_batch_size / KEPT),
        )
        for horizon, way in ONLINE:
            how = {"horizon": horizon, "drop": 1 - KEPT, "dynamics": way}
            steps = lookahead_training(lm, *one.rows, *one.queries, **how)
            name = f"lookahead_training, {horizon} steps ahead"
            name += ", SGD-style" if way == "sgd" else ""
            kept = one.wanted[steps.rows[steps.kept]].mean()
            self.add(name, steps.estimator, kept)


def main():
    draws = json.loads(DRAWS.read_text()) if DRAWS.exists() else {}
    model, tokenizer = small_llama()
    for seed in range(N_DRAWS):
        if str(seed) in draws:
            continue
        print(f"draw {seed}", flush=True)
        kept = Kept(case(model, tokenizer, seed), seed)
        kept.beforehand()
        kept.meanwhile()
        draws[str(seed)] = kept.found
        DRAWS.write_text(json.dumps(draws, indent=1) + "\n")
    report([*draws.values()])


def report(draws):
    """Write the table of all draws, of methods that each of them has."""
    table = Table(
        "Loss of a token of the domain, of a model fine-tuned on 30 % of a pool",
        ["chosen by", "loss", "gained", "of the domain, without noise"],
    )
    at_random = np.array([found[RANDOM][0] for found in draws])
    for method in (m for m in draws[0] if all(m in found for found in draws)):
        lost, wanted = np.array([found[method] for found in draws]).T
        share = "" if np.isnan(wanted).any() else f"{100 * wanted.mean():.0f} %"
        table.add(method, pm(lost), pm(at_random - lost), share)
    write("data_selection", table)


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main()
