"""How well scores find rows, what they are compared with, and settings of RISE."""

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer

from benchmarks._table import ranged
from skattrib.evaluation import retrieval_score

METRICS = ("average_precision", "roc_auc")
HIDDEN = "mean hidden state, less its mean"


def rise_settings(tensor, factor, top, layer):
    """Return settings by name: with so many numbers a row, by both sketches, words."""
    exact = {"sketch": None, "channels": ("rh",)}
    return {
        f"exact gradient of the {layer}, inner product": {**exact, "normalize": False},
        f"exact gradient of the {layer}, cosine": exact,
        "RISE": {},
        "RISE, rh": {"channels": ("rh",)},
        "RISE, gh": {"channels": ("gh",)},
        "RISE, rh + gh + h": {"channels": ("rh", "gh", "h")},
        **{f"RISE, {m} components": {"n_components": m} for m in tensor},
        **{
            f"RISE, factors, {m} components": {"sketch": "factor", "n_components": m}
            for m in factor
        },
        **{f"RISE, temperature {t:g}": {"temperature": t} for t in (0.1, 0.3, 1.0)},
        **{f"RISE, top {k}": {"top_k": k} for k in top},
    }


# ------------------------------------------------------------------------- texts
def joined(prompts, replies, between=" "):
    """Return prompts and replies as one text each."""
    pairs = zip(prompts, replies, strict=True)
    return [f"{prompt}{between}{reply}" for prompt, reply in pairs]


def bm25(queries, rows, k1=1.5, b=0.75):
    """Return Okapi BM25 scores (q, n) of texts by their words."""
    counter = CountVectorizer(token_pattern=r"\w+")
    counts = counter.fit_transform(rows).toarray()
    asked = counter.transform(queries).toarray()
    holds, lengths = (counts > 0).sum(axis=0), counts.sum(axis=1, keepdims=True)
    rare = np.log(1 + (len(rows) - holds + 0.5) / (holds + 0.5))
    size = k1 * (1 - b + b * lengths / lengths.mean())
    return asked @ (rare * counts * (k1 + 1) / (counts + size)).T


# ------------------------------------------------------------------------ scores
def measure(scores, planted):
    """Return area under the ROC curve and average precision, means over queries."""
    return [retrieval_score(scores, planted, metric=m) for m in METRICS[::-1]]


def by_query(scores, relevance, metric="average_precision"):
    """Return a metric of each query, means over the first axis of scores (k, q, n)."""
    return np.mean(
        [
            [
                retrieval_score(row[None], relevant[None], metric=metric)
                for row, relevant in zip(of_queries, relevance, strict=True)
            ]
            for of_queries in scores
        ],
        axis=0,
    )


def evaluate(scores, relevance):
    """Return mean AP and AUC with intervals over queries; scores (k, q, n)."""
    return [interval(by_query(scores, relevance, metric)) for metric in METRICS]


def interval(values, digits=3):
    """Return the mean of an array, with a 95 % interval over all of its axes."""
    values = np.asarray(values, dtype=float)
    rng, drawn = np.random.default_rng(0), []
    for axis, size in enumerate(values.shape):
        shape = np.ones(values.ndim, dtype=int)
        shape[axis] = size
        drawn.append(rng.integers(size, size=(10_000, *shape)))
    resampled = values[tuple(drawn)].reshape(10_000, -1).mean(axis=1)
    return ranged(values.mean(), *np.percentile(resampled, [2.5, 97.5]), digits)
