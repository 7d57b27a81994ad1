"""Do signatures find quotations of the same topic? Against BM25 and hidden states.

SmolLM2-135M-Instruct (4-bit weights, computed in float32) reads quotations of Debian's
`fortunes`, 80 of each of six topics in the index and 10 of each as queries; prompts are
empty. Relevant are rows of the query's topic. Hash tables are drawn three times from
one seed, and their scores averaged query by query.

How much of "h" it takes is asked of three draws of the quotations, at several sizes of
the sketches: 256, where the hidden state is sketched, too; 1,024, where it is whole;
16,384, which is close to no sketch. Differences are paired, query by query.

    python -m benchmarks.language.topics
"""

import numpy as np
import torch

from benchmarks._finding import bm25, by_query, evaluate, interval
from benchmarks._table import Table, write
from benchmarks.language._smollm2 import TOPICS, sample, signatures, smollm2

N_ROWS, N_QUERIES, N_SKETCHES, N_DRAWS = 80, 10, 3, 3
CHANNELS = {
    "rh": {"rh": 1.0},
    "gh": {"gh": 1.0},
    "rh + gh": {"rh": 1.0, "gh": 1.0},
    "rh + gh + h": {"rh": 1.0, "gh": 1.0, "h": 1.0},
    "h less its mean": {"h": 1.0},
}
SIZES = (256, 1024, 16_384)
WEIGHTS = {"h": {"h": 1.0}, "rh + gh + h": CHANNELS["rh + gh + h"]} | {
    f"rh + gh + {weight:g} h": {"rh": 1.0, "gh": 1.0, "h": weight}
    for weight in (1.5, 2.0, 3.0)
}


def read(lm, texts, n_components, sketch="tensor"):
    """Return the channels of texts, of several sketches."""
    size = {"n_components": n_components, "sketch": sketch, "n_sketches": N_SKETCHES}
    return signatures(lm, texts, channels=("rh", "gh", "h"), **size)


def similarities(rows, queries, weights, centered=True):
    """Return weighted sums of the channels' cosines, (n_sketches, q, n)."""
    found = []
    for k in range(N_SKETCHES):
        total = 0.0
        for channel, weight in weights.items():
            sides = [side[f"{channel}/{k}"] for side in (queries, rows)]
            if channel == "h" and centered:
                sides = [side - sides[1].mean(dim=0) for side in sides]
            units = [torch.nn.functional.normalize(side) for side in sides]
            total = total + weight * (units[0] @ units[1].T)
        found.append(total.numpy())
    return np.stack(found)


def split(lm, seed):
    """Return rows, queries and which rows are relevant to each (q, n)."""
    texts, topics = sample(lm.tokenizer_, N_ROWS + N_QUERIES, seed=seed)
    topics = np.array(topics)
    # the first ones of each topic ask
    place = np.sum([np.cumsum(topics == t) * (topics == t) for t in TOPICS], axis=0)
    is_query = place <= N_QUERIES
    rows = [t for t, q in zip(texts, is_query, strict=True) if not q]
    queries = [t for t, q in zip(texts, is_query, strict=True) if q]
    return rows, queries, topics[is_query][:, None] == topics[~is_query]


def weights(lm):
    """Say what weight of "h" makes of the scores, over several draws of texts."""
    found = {(size, name): [] for size in SIZES for name in WEIGHTS}
    for seed in range(N_DRAWS):
        rows, queries, relevance = split(lm, seed)
        for size in SIZES:
            inside, outside = (read(lm, part, size) for part in (rows, queries))
            print(f"draw {seed}, read for {size}", flush=True)
            for name, own in WEIGHTS.items():
                scores = similarities(inside, outside, own)
                found[size, name].append(by_query(scores, relevance))

    found = {key: np.concatenate(each) for key, each in found.items()}
    whole = found[1024, "h"]
    table = Table(
        "The weight of the hidden state, three draws of the quotations",
        ["score", "n_components", "average precision", "less that of h, whole"],
    )

    for (size, name), each in found.items():
        table.add(name, f"{size:,}", interval(each), interval(each - whole))
    write("smollm2_topics_weights", table)


def topics(lm):
    """Say how well texts of the query's topic are found."""
    rows, queries, relevance = split(lm, 0)
    print(f"{len(rows)} rows, {len(queries)} queries, {relevance.mean():.3f} relevant")
    table = Table(
        "Finding quotations of the same topic",
        ["score", "numbers a row", "average precision", "ROC area"],
    )
    random = np.random.default_rng(0).random((20, *relevance.shape))
    table.add("random", "", *evaluate(random, relevance))
    table.add("BM25", "", *evaluate(bm25(queries, rows)[None], relevance))

    for setting in [(256, "tensor"), (1024, "tensor"), (1024, "factor")]:
        whole = setting == (1024, "tensor")  # there, the hidden state is
        inside, outside = (read(lm, part, *setting) for part in (rows, queries))
        for name, channels in CHANNELS.items():
            if "h" in channels and not whole:
                continue
            scores = similarities(inside, outside, channels)
            label = f"{name} ({setting[1]})" if name != "h less its mean" else name
            size = sum(inside[f"{channel}/0"].shape[1] for channel in channels)
            table.add(label, size, *evaluate(scores, relevance))
        if whole:
            scores = similarities(inside, outside, {"h": 1.0}, centered=False)
            table.add("h", size, *evaluate(scores, relevance))
    write("smollm2_topics", table)


if __name__ == "__main__":
    torch.set_num_threads(1)
    model = smollm2()
    topics(model)
    weights(model)
