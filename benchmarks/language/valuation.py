"""Is a text worth training on? SmolLM2 is trained on what was valued most.

For each of two topics of Debian's `fortunes`, 400 candidates, 60 of them of the topic,
are valued for 30 target texts. The model is tuned, all weights, for one epoch on the
candidates valued most, as many as have together the tokens of 100 average ones, so that
no score gains by long texts; and on as many random ones. What counts is the likelihood
of 50 other texts of the topic. Random candidates are drawn five times; those of
the other scores are tuned on in three orders.

    python -m benchmarks.language.valuation
"""

import numpy as np
import torch

from benchmarks._finding import HIDDEN, bm25
from benchmarks._table import Table, ranged, write
from benchmarks.language._smollm2 import (
    TOPICS,
    Resetting,
    quotations,
    rise_scores,
    smollm2,
    tokens,
    tune,
)

VALUED = ("songs-poems", "computers")
N_CANDIDATES, N_OF_TOPIC, N_TARGETS, N_HELD_OUT, N_CHOSEN = 400, 60, 30, 50, 100
N_DRAWS, N_ORDERS, LEARNING_RATE = 5, 3, 5e-5
SETTINGS = {
    "RISE": {"n_components": 1024},
    "RISE, temperature 1": {"n_components": 1024, "temperature": 1.0},
    "RISE, rh + gh + h": {"n_components": 1024, "channels": ("rh", "gh", "h")},
    HIDDEN: {"n_components": 1024, "channels": ("h",)},
}


def problem(tokenizer, topic):
    """Return candidates, whether they are of the topic, targets, and held-out texts."""
    generator = torch.Generator().manual_seed(0)

    def drawn(texts):
        order = torch.randperm(len(texts), generator=generator)
        return [texts[i] for i in order]

    own = drawn(quotations(tokenizer, topic))
    first, last = N_TARGETS + N_HELD_OUT, N_TARGETS + N_HELD_OUT + N_OF_TOPIC
    if len(own) < last:
        raise ValueError(f"{topic} has {len(own)} quotations only.")
    elsewhere = [quotations(tokenizer, other) for other in TOPICS if other != topic]
    others = dict.fromkeys(t for texts in elsewhere for t in texts if t not in own)
    candidates = own[first:last] + drawn(list(others))[: N_CANDIDATES - N_OF_TOPIC]
    order = torch.randperm(N_CANDIDATES, generator=generator).numpy()
    shuffled = [candidates[i] for i in order]
    return shuffled, order < N_OF_TOPIC, own[:N_TARGETS], own[N_TARGETS:first]


def values(lm, candidates, targets):
    """Return values (n,) of the candidates by name."""
    found = {"BM25": bm25(targets, candidates)}
    for name, options in SETTINGS.items():
        # candidates are the index, and their hidden states have its mean subtracted
        found[name] = rise_scores(lm, (None, candidates), (None, targets), **options)
    return {name: own.mean(axis=0) for name, own in found.items()}


def first(order, sizes, budget):
    """Return the first rows of an order that have so many tokens together."""
    n = np.searchsorted(np.cumsum(sizes[order]), budget)
    return order[: max(1, n)]


def closed_loop(table, lm, reset, topic):
    """Add the rows of a topic to the table."""
    candidates, relevant, targets, held_out = problem(lm.tokenizer_, topic)
    sizes = np.array([len(t) for t in tokens(lm.tokenizer_, candidates)])
    n_tokens = np.array([len(t) - 1 for t in tokens(lm.tokenizer_, held_out)])
    budget = sizes.mean() * N_CHOSEN
    arms = [
        ("random", np.random.default_rng(draw).permutation(N_CANDIDATES), draw)
        for draw in range(N_DRAWS)
    ]
    ranked = {
        name: np.argsort(-own) for name, own in values(lm, candidates, targets).items()
    }
    ranked["the 60 of the topic, then random"] = np.argsort(~relevant, kind="stable")
    arms += [
        (name, order, s) for name, order in ranked.items() for s in range(N_ORDERS)
    ]
    before, found, share = lm.log_likelihood(None, held_out), {}, {}

    for name, order, seed in arms:
        chosen = first(order, sizes, budget)
        reset()
        y = [candidates[i] for i in chosen]
        tune(lm, [None] * len(y), y, lr=LEARNING_RATE, seed=seed)
        found.setdefault(name, []).append(lm.log_likelihood(None, held_out) - before)
        share[name] = f"{relevant[chosen].sum()} of {len(chosen)}"
        print(topic, name, found[name][-1].sum() / n_tokens.sum(), flush=True)

    reset()
    del share["random"]  # those of the last draw
    random = np.array(found["random"])
    for name, own in found.items():
        cells = gains(np.array(own), random, n_tokens)
        table.add(topic, name, share.get(name, ""), *cells)


def gains(own, random, n_tokens):
    """Return the mean gain a token, its range, and what it is more than at random.

    The interval is over runs (those of random draws, too) and held-out texts.
    """
    rng, drawn = np.random.default_rng(0), []
    for _ in range(10_000):
        q = rng.integers(len(n_tokens), size=len(n_tokens))
        a = own[rng.integers(len(own), size=len(own))][:, q].sum(axis=1).mean()
        b = random[rng.integers(len(random), size=len(random))][:, q].sum(axis=1).mean()
        drawn.append((a - b) / n_tokens[q].sum())
    each = own.sum(axis=1) / n_tokens.sum()
    cells = [f"{each.mean():.4f}", f"{each.min():.4f} to {each.max():.4f}"]
    if np.array_equal(own, random):
        return [*cells, ""]
    more = each.mean() - random.sum(axis=1).mean() / n_tokens.sum()
    low, high = np.percentile(drawn, [2.5, 97.5])
    return [*cells, ranged(more, low, high, digits=4)]


def main():
    lm = smollm2()
    reset = Resetting(lm.model_)
    table = Table(
        "Gain of held-out log-likelihood, nats a token, by tuning on chosen texts",
        ["topic", "chosen by", "of the topic", "gain", "range", "more than at random"],
    )
    for topic in VALUED:
        closed_loop(table, lm, reset, topic)
    write("smollm2_valuation", table)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
