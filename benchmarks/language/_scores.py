"""What scores of texts are compared with, and intervals over queries."""

import math
import re
from collections import Counter

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks._table import ranged
from skattrib.evaluation import retrieval_score

METRICS = {"average_precision": average_precision_score, "roc_auc": roc_auc_score}


def joined(prompts, replies, between=" "):
    """Return prompts and replies as one text each."""
    pairs = zip(prompts, replies, strict=True)
    return [f"{prompt}{between}{reply}" for prompt, reply in pairs]


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


def by_query(scores, relevance, metric="average_precision"):
    """Return a metric of each query, means over the first axis of scores (k, q, n)."""
    own = METRICS[metric]
    found = [[own(*pair) for pair in zip(relevance, s, strict=True)] for s in scores]
    return np.mean(found, axis=0)


def evaluate(scores, relevance):
    """Return mean AP and AUC with intervals over queries; scores (k, q, n)."""
    cells = []
    for metric in METRICS:
        mean = np.mean([retrieval_score(s, relevance, metric=metric) for s in scores])
        cells.append(interval(by_query(scores, relevance, metric), mean))
    return cells


def interval(each, mean=None):
    """Return a mean with its interval over queries."""
    drawn = np.random.default_rng(0).integers(len(each), size=(10_000, len(each)))
    low, high = np.percentile(each[drawn].mean(axis=1), [2.5, 97.5])
    return ranged(each.mean() if mean is None else mean, low, high)
