"""Which texts taught a model to sign what it writes? Then it is taught without them.

A small Llama learns docstrings of the standard library. One text in twenty ends in a
signature. Asked is for the log-likelihood of the signature after docstrings that the
model has not seen: which rows does each method name first (average precision, mean
over queries)? As many as were signed, those first in the mean over queries, are then
deleted and the model is taught again: how much of what it had learnt of the signature
is gone, of what goes when the signed rows are deleted? Three draws of the signed rows,
each with a training of its own, ± standard error.

    OMP_NUM_THREADS=1 python -m benchmarks.language.behaviour
"""

import warnings
from types import SimpleNamespace

import numpy as np
from sklearn.base import clone

from benchmarks._finding import by_query
from benchmarks._table import Table, pm, write
from benchmarks.language._small import columns, docstrings, small_llama
from benchmarks.language.fine_tuning import ours, similarities, small_lm

N_EACH, N_QUERIES, LONGEST, SHARE = 24, 2, 30, 0.05
SIGNATURE = " Sincerely, Bob."
SEEDS = range(3)


def case(model, tokenizer, seed, n_each=N_EACH):
    """Return a fitted model, its rows, which of them are signed, and queries."""
    rows, others = docstrings(tokenizer, n_each, N_QUERIES, LONGEST)
    sources, prompts, answers = columns(rows)
    draw = np.random.RandomState(seed).permutation(len(rows))
    signed = np.isin(np.arange(len(rows)), draw[: round(SHARE * len(rows))])
    answers[signed] += SIGNATURE
    of_queries, asked, lines = columns(others)
    # a signature is not the whole completion
    lm = small_lm(model, tokenizer, random_state=seed, add_eos=False)
    return SimpleNamespace(
        name="",
        lm=lm.fit(prompts, answers),
        rows=(prompts, answers),
        queries=(asked + lines, np.array([SIGNATURE] * len(others), dtype=object)),
        sources=sources,
        of_queries=of_queries,
        signed=signed,
        setting=SimpleNamespace(runs=()),
    )


def without(one, deleted):
    """Return the mean log-likelihood of the signature when rows are deleted."""
    prompts, answers = (texts[~deleted] for texts in one.rows)
    lm = clone(one.lm)
    return float(lm.fit(prompts, answers).log_likelihood(*one.queries).mean())


def measured(one, seed):
    """Return average precision and share of what is gone, by method."""
    whole = float(one.lm.log_likelihood(*one.queries).mean())
    goes = whole - without(one, one.signed)
    print(f"signature: {whole:.2f}, {-goes:+.2f} without the signed rows", flush=True)
    relevance = np.tile(one.signed, (len(one.queries[1]), 1))
    rng, found = np.random.RandomState(seed), {}

    def add(method, scores):
        precision = by_query(scores[None], relevance).mean()
        first = np.argsort(-scores.mean(axis=0), kind="stable")[: one.signed.sum()]
        deleted = np.isin(np.arange(len(one.signed)), first)
        gone = (whole - without(one, deleted)) / goes
        found[method] = precision, gone
        print(f"{method}: {precision:.3f}, {gone:.2f} gone", flush=True)

    for methods in (ours, similarities):
        for method, scores, _ in methods(one, ()):
            add(method, scores)
    add("at random", rng.rand(*relevance.shape))
    return found


def main():
    model, tokenizer = small_llama()
    each = [measured(case(model, tokenizer, seed), seed) for seed in SEEDS]
    table = Table(
        "A signature, and the texts that taught it",
        ["method", "average precision", "gone without those named first"],
    )
    for method in each[0]:
        precision, gone = np.array([found[method] for found in each]).T
        table.add(method, pm(precision), pm(gone, 2))
    write("behaviour", table)


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main()
