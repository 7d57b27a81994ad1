"""Do signatures find quotations of the same topic? Against BM25 and hidden states.

SmolLM2-135M-Instruct (4-bit weights, computed in float32) reads quotations of Debian's
`fortunes`, 80 of each of six topics in the index and 10 of each as queries; prompts are
empty. Relevant are rows of the query's topic. Hash tables are drawn three times from
one seed, and their scores averaged query by query.

How much of "h" it takes is asked of three draws of the quotations, at several sizes of
the sketches: 256, where the hidden state is sketched, too; 1,024, where it is whole;
16,384, which is close to no sketch. Differences are paired, query by query.

    apt-get install fortunes
    pip install -c constraints.txt -e ".[language]"
    python -m benchmarks.smollm2_topics
"""

import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks._smollm2 import TOPICS, sample, smollm2, write_table
from skattrib import RISEValuator
from skattrib.engine._similarity import Similarity
from skattrib.evaluation import retrieval_score
from skattrib.retrieval._settings import resolve
from skattrib.retrieval._signatures import Signer

N_ROWS, N_QUERIES, N_SKETCHES, N_DRAWS = 80, 10, 3, 3
NAME = Path(__file__).stem
MEASURED = Path(__file__).parents[1] / "doc" / "measured"
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


def bm25(queries, rows, k1=1.5, b=0.75):
    """Return Okapi BM25 scores (q, n) of texts by their words."""
    words = [re.findall(r"\w+", text.lower()) for text in rows]
    counts = [Counter(each) for each in words]
    mean = np.mean([len(each) for each in words])
    holds = Counter(word for count in counts for word in count)
    found = np.zeros((len(queries), len(rows)))
    for i, query in enumerate(queries):
        for word in re.findall(r"\w+", query.lower()):
            rare = math.log(1 + (len(rows) - holds[word] + 0.5) / (holds[word] + 0.5))
            for j, count in enumerate(counts):
                size = k1 * (1 - b + b * len(words[j]) / mean)
                found[i, j] += rare * count[word] * (k1 + 1) / (count[word] + size)
    return found


def signatures(lm, texts, n_components, sketch):
    """Return the channels of texts, of several sketches."""
    options = {"channels": ("rh", "gh", "h"), "n_sketches": N_SKETCHES}
    settings, _ = resolve(
        RISEValuator(lm, n_components=n_components, sketch=sketch, **options)
    )
    signer = Signer(lm, None, settings, seed=0)
    signer.use(signer.tables())
    X = np.full(len(texts), None, dtype=object)
    return signer(X, np.array(texts, dtype=object))[0]


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


def evaluate(scores, relevance):
    """Return mean AP and AUC with intervals over queries; scores (k, q, n)."""
    cells = []
    metrics = {"average_precision": average_precision_score, "roc_auc": roc_auc_score}
    for metric, own in metrics.items():
        mean = np.mean([retrieval_score(s, relevance, metric=metric) for s in scores])
        each = np.mean(
            [[own(r, q) for r, q in zip(relevance, s, strict=True)] for s in scores],
            axis=0,
        )
        cells.append(interval(each, mean))
    return cells


def interval(each, mean):
    """Return a mean with its interval over queries."""
    drawn = np.random.default_rng(0).integers(len(each), size=(10_000, len(each)))
    low, high = np.percentile(each[drawn].mean(axis=1), [2.5, 97.5])
    return f'"{mean:.3f} [{low:.3f}, {high:.3f}]"'


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


def precision(scores, relevance):
    """Return the average precision (q,) of each query, means over sketches."""
    found = [
        [average_precision_score(r, q) for r, q in zip(relevance, own, strict=True)]
        for own in scores
    ]
    return np.mean(found, axis=0)


def weights(lm):
    """Say what weight of "h" makes of the scores, over several draws of texts."""
    found = {(size, name): [] for size in SIZES for name in WEIGHTS}
    for seed in range(N_DRAWS):
        rows, queries, relevance = split(lm, seed)
        for size in SIZES:
            inside, outside = (
                signatures(lm, part, size, "tensor") for part in (rows, queries)
            )
            print(f"draw {seed}, read for {size}", flush=True)
            for name, own in WEIGHTS.items():
                scores = rise_scores(inside, outside, own)
                found[size, name].append(precision(scores, relevance))
    found = {key: np.concatenate(each) for key, each in found.items()}
    whole = found[1024, "h"]
    return [
        [
            name,
            f'"{size:,}"',
            interval(each, each.mean()),
            interval(each - whole, (each - whole).mean()),
        ]
        for (size, name), each in found.items()
    ]


def main():
    lm = smollm2()
    rows, queries, relevance = split(lm, 0)
    print(f"{len(rows)} rows, {len(queries)} queries, {relevance.mean():.3f} relevant")
    random = np.random.default_rng(0).random((20, *relevance.shape))
    table = [
        ["random", "", *evaluate(random, relevance)],
        ["BM25", "", *evaluate(bm25(queries, rows)[None], relevance)],
    ]
    for n_components, sketch in [(256, "tensor"), (1024, "tensor"), (1024, "factor")]:
        inside, outside = (
            signatures(lm, part, n_components, sketch) for part in (rows, queries)
        )
        print(f"read for {n_components}, {sketch}", flush=True)
        for name, channels in CHANNELS.items():
            if "h" in channels and (sketch, n_components) != ("tensor", 1024):
                continue  # there, the hidden state is whole
            scores = rise_scores(inside, outside, channels)
            label = f"{name} ({sketch})" if channels != ["h"] else name
            size = sum(inside[f"{channel}/0"].shape[1] for channel in channels)
            table.append([label, str(size), *evaluate(scores, relevance)])
        if (sketch, n_components) == ("tensor", 1024):
            scores = rise_scores(inside, outside, ["h"], centered=False)
            table.append(["h", str(size), *evaluate(scores, relevance)])
    write_table(
        MEASURED / f"{NAME}.inc",
        "Finding quotations of the same topic",
        ["score", "numbers a row", "average precision", "ROC area"],
        table,
    )
    write_table(
        MEASURED / f"{NAME}_weights.inc",
        "The weight of the hidden state, three draws of the quotations",
        ["score", "n_components", "average precision", '"less that of h, whole"'],
        weights(lm),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
