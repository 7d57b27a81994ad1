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

from benchmarks._table import Table, write
from benchmarks.language._scores import bm25, by_query, evaluate, interval
from benchmarks.language._smollm2 import TOPICS, sample, signatures, smollm2
from skattrib.engine._similarity import Similarity

N_ROWS, N_QUERIES, N_SKETCHES, N_DRAWS = 80, 10, 3, 3
CHANNELS = {
    "rh": ["rh"],
    "gh": ["gh"],
    "rh + gh": ["rh", "gh"],
    "rh + gh + h": ["rh", "gh", "h"],
    "h less its mean": ["h"],
}
SIZES = (256, 1024, 16_384)
WEIGHTS = {
    "h": {"h": 1.0},
    "rh + gh + h": {"rh": 1.0, "gh": 1.0, "h": 1.0},
    "rh + gh + 1.5 h": {"rh": 1.0, "gh": 1.0, "h": 1.5},
    "rh + gh + 2 h": {"rh": 1.0, "gh": 1.0, "h": 2.0},
    "rh + gh + 3 h": {"rh": 1.0, "gh": 1.0, "h": 3.0},
}


def read(lm, texts, n_components, sketch="tensor"):
    """Return the channels of texts, of several sketches."""
    size = {"n_components": n_components, "sketch": sketch}
    channels = ("rh", "gh", "h")
    return signatures(lm, texts, channels=channels, n_sketches=N_SKETCHES, **size)


def rise_scores(rows, queries, channels, centered=True):
    """Return the cosines (n_sketches, q, n) of some channels, maybe with weights."""
    if not isinstance(channels, dict):
        channels = dict.fromkeys(channels, 1.0)
    found = []
    for k in range(N_SKETCHES):
        names = {f"{channel}/{k}": weight for channel, weight in channels.items()}
        means = {n: rows[n].mean(dim=0) for n in names if n.startswith("h/")}
        similarity = Similarity(names, True, means if centered else {})
        left, right = (
            similarity.of_channels({n: side[n] for n in names})
            for side in (queries, rows)
        )
        found.append((left @ right.T).numpy())
    return np.stack(found)


def split(lm, seed):
    """Return rows, queries and which rows are relevant to each (q, n)."""
    texts, topics = sample(lm.tokenizer_, N_ROWS + N_QUERIES, seed=seed)
    seen, is_query = dict.fromkeys(TOPICS, 0), []
    for topic in topics:
        is_query.append(seen[topic] < N_QUERIES)
        seen[topic] += 1
    is_query, topics = np.array(is_query), np.array(topics)
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
                scores = rise_scores(inside, outside, own)
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
            scores = rise_scores(inside, outside, channels)
            label = f"{name} ({setting[1]})" if channels != ["h"] else name
            size = sum(inside[f"{channel}/0"].shape[1] for channel in channels)
            table.add(label, size, *evaluate(scores, relevance))
        if whole:
            scores = rise_scores(inside, outside, ["h"], centered=False)
            table.add("h", size, *evaluate(scores, relevance))
    write("smollm2_topics", table)


if __name__ == "__main__":
    torch.set_num_threads(1)
    model = smollm2()
    topics(model)
    weights(model)
