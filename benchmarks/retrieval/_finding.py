"""How well scores find planted rows, and settings of RISE that are compared."""

import numpy as np

from skattrib.evaluation import retrieval_score

TEMPERATURES = {f"RISE, temperature {t:g}": {"temperature": t} for t in (0.1, 0.3, 1.0)}


def components(tensor, factor):
    """Return settings with so many numbers a row, by both sketches."""
    settings = {f"RISE, {m} components": {"n_components": m} for m in tensor}
    return settings | {
        f"RISE, factors, {m} components": {"sketch": "factor", "n_components": m}
        for m in factor
    }


def measure(scores, planted):
    """Return area under the ROC curve and average precision, means over queries."""
    relevance = np.tile(planted, (len(scores), 1))
    return [
        retrieval_score(scores, relevance, metric=metric)
        for metric in ("roc_auc", "average_precision")
    ]
