"""Scores of attributions against the truth, each with an interval.

Intervals are the central 95 % of a bootstrap over queries, over retrained subsets and
over truth draws (training seeds) at once.
"""

import numpy as np
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from benchmarks.leaderboard._work import FRACTIONS

N_RESAMPLES = 300


def correlations(truth, predicted):
    """Return rank correlations (seeds, q) over the middle axis of (seeds, m, q)."""
    ranks = []
    for values in (truth, predicted):
        r = rankdata(values, axis=1)
        r -= r.mean(axis=1, keepdims=True)
        norm = np.sqrt((r**2).sum(axis=1, keepdims=True))
        # what says the same of everything ranks nothing
        ranks.append(np.divide(r, norm, out=np.zeros_like(r), where=norm > 0))
    return (ranks[0] * ranks[1]).sum(axis=1)


def interval(point, resample):
    """Return (point, low, high) of a function of a random generator."""
    rng = np.random.default_rng(0)
    draws = [resample(rng) for _ in range(N_RESAMPLES)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(point), float(low), float(high)


def drawn(rng, *sizes):
    return [rng.integers(size, size=size) for size in sizes]


def lds(truth, predicted):
    """LDS of each seed against its own retrainings, the mean over seeds."""

    def resample(rng):
        seeds, subsets, queries = drawn(rng, *truth.shape)
        chosen = np.ix_(seeds, subsets, queries)
        return correlations(truth[chosen], predicted[chosen]).mean()

    return interval(correlations(truth, predicted).mean(), resample)


def ensemble_lds(truth, predicted):
    """LDS of means over seeds."""
    return lds(truth.mean(axis=0)[None], predicted.mean(axis=0)[None])


def loo(without_one, attributions):
    """Rank correlation with the effects of leaving out, of each seed, the mean.

    Parameters
    ----------
    without_one : ndarray of shape (seeds, n, q)
    attributions : ndarray of shape (seeds, q, n)
    """
    by_query = correlations(-without_one, np.swapaxes(attributions, 1, 2))

    def resample(rng):
        return by_query[np.ix_(*drawn(rng, *by_query.shape))].mean()

    return interval(by_query.mean(), resample)


def removal_area(random, without_best):
    """Mean fall below random removal over removed shares, outcomes' unit.

    Parameters
    ----------
    random, without_best : ndarray of shape (seeds, fractions, q)
    """
    gap = random - without_best
    gap = np.concatenate([np.zeros_like(gap[:, :1]), gap], axis=1)
    shares = np.append(0, FRACTIONS)
    area = np.trapezoid(gap, shares, axis=1) / shares[-1]

    def resample(rng):
        return area[np.ix_(*drawn(rng, *area.shape))].mean()

    return interval(area.mean(), resample)


def mislabel_auc(wrong, attributions):
    """Area under the ROC curve of finding the wrong labels by low attributions."""
    suspicion = -attributions.mean(axis=0)

    def resample(rng):
        (rows,) = drawn(rng, len(wrong))
        return roc_auc_score(wrong[rows], suspicion[rows])

    return interval(roc_auc_score(wrong, suspicion), resample)


def ceiling(subsets):
    """How well one seed's outcomes rank another's: mean LDS of pairs, (3, m, q)."""
    return lds(subsets, np.roll(subsets, 1, axis=0))


def loo_ceiling(without_one):
    other = np.swapaxes(np.roll(-without_one, 1, axis=0), 1, 2)
    return loo(without_one, other)
