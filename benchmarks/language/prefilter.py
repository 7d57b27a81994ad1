"""Is it enough to attribute what an index finds? A signature in a pool of docstrings.

A small Llama learns all first lines of docstrings that there are, one in twenty of
which ends in a signature (as in `benchmarks.language.behaviour`), and is asked for it
after lines that it has not seen. RISE, of the model as it was before it learnt them,
needs no training: the first K texts of its ranking, in the mean over queries, are kept,
the model is fine-tuned on these alone, and this training is attributed; the other texts
follow in RISE's order. Average precision of the signed texts, and CPU seconds of all
that was done, over those of one fine-tuning on the whole pool. Two draws of the
signed texts, each with a training of its own, ± standard error.

    OMP_NUM_THREADS=1 python -m benchmarks.language.prefilter
"""

import copy
import warnings
from types import SimpleNamespace

import numpy as np
from sklearn.base import clone

from benchmarks._finding import by_query
from benchmarks._table import Table, pm, write
from benchmarks.language._small import small_llama
from benchmarks.language._smollm2 import rise_scores
from benchmarks.language.behaviour import case
from benchmarks.language.fine_tuning import DUAL, ONE_RUN, WAYS, attributed
from skattrib.language import CausalLanguageModel
from skattrib.models._costs import cpu_seconds  # no public name

#: Of each source; few have as many.
N_EACH, KEPT, SEEDS = 48, (30, 90), range(2)
BEFORE, AFTER = "RISE of the model before", "RISE of the model after"


def found_by_rise(model, one):
    """Return the scores (q, n) of the texts in a model, and CPU seconds."""
    found = []

    def search():
        frozen = CausalLanguageModel(model, one.lm.tokenizer)
        found.append(rise_scores(frozen, one.rows, one.queries))

    return cpu_seconds(search), found[-1]


def fine_tuned(lm):
    """Return the model with its adapters, as one of transformers."""
    model = copy.copy(lm.model)
    model._modules = {**model._modules, "model": lm.network_.module_.body}
    return model


def ranked_again(scores, kept, attributions):
    """Return scores (q, n) whose first are those kept, in the order of attributions."""
    ranks = scores.argsort(axis=1).argsort(axis=1).astype(float)
    own = attributions.argsort(axis=1).argsort(axis=1)
    ranks[:, kept] = scores.shape[1] + own
    return ranks


def measured(one, seed):
    """Yield method, texts attributed, share of the signed, precision and cost."""
    n = len(one.signed)
    relevance = np.tile(one.signed, (len(one.queries[1]), 1))
    whole = cpu_seconds(lambda: clone(one.lm).fit(*one.rows))

    def row(method, n_kept, kept, scores, seconds):
        precision = by_query(scores[None], relevance).mean()
        share = one.signed[kept].sum() / one.signed.sum()
        found = share, precision, seconds / whole
        print(f"{method}, {n_kept}:", *(f"{value:.3f}" for value in found), flush=True)
        return (method, n_kept), found

    everything = np.arange(n)
    seconds, after = found_by_rise(fine_tuned(one.lm), one)
    # it needs the model to have been trained
    yield row(AFTER, 0, everything[:0], after, seconds + whole)
    seconds, before = found_by_rise(one.lm.model, one)
    yield row(BEFORE, 0, everything[:0], before, seconds)
    for n_kept in KEPT:
        kept = np.sort(np.argsort(-before.mean(axis=0), kind="stable")[:n_kept])
        rows = tuple(texts[kept] for texts in one.rows)
        part = SimpleNamespace(lm=one.lm, rows=rows, queries=one.queries)
        for method in (DUAL, ONE_RUN):
            found, spent = attributed(part, *WAYS[method])
            scores = ranked_again(before, kept, found)
            yield row(method, n_kept, kept, scores, seconds + spent)
    for method in (DUAL, ONE_RUN):
        found, spent = attributed(one, *WAYS[method])
        yield row(method, n, everything, found, spent)


def main():
    model, tokenizer = small_llama()
    each = []
    for seed in SEEDS:
        one = case(model, tokenizer, seed, N_EACH)
        print(f"{len(one.signed)} texts, {one.signed.sum()} signed", flush=True)
        each.append(dict(measured(one, seed)))
    table = Table(
        "A signature in a pool, of which an index keeps a part",
        "method | texts attributed | signed among them | average precision | "
        "trainings' time",
    )
    for method, n_kept in each[0]:
        share, precision, cost = np.array([found[method, n_kept] for found in each]).T
        shares = pm(share, 2) if n_kept else ""
        table.add(method, n_kept or "", shares, pm(precision), pm(cost, 1))
    write("prefilter", table)


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main()
