"""Scores of attributions against the truth, each with an interval.

Intervals are the central 95 % of a bootstrap over queries, over retrained subsets and
over truth draws (training seeds) at once.
"""

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks.leaderboard._work import FRACTIONS
from skattrib.evaluation._ranks import _spearman

N_RESAMPLES = 300


def correlations(truth, predicted):
    """Return rank correlations (seeds, q) over the middle axis of (seeds, m, q)."""
    once = np.ones((1, truth.shape[1]))
    return _resampled(truth, predicted, once)[:, 0]


def _resampled(truth, predicted, times):
    """Return the same, (seeds, b, q), with subset i taken times[b, i] times."""
    pairs = zip(truth, predicted, strict=True)
    return np.stack([_spearman(*pair, times) for pair in pairs])


def interval(point, resample):
    """Return (point, low, high) of a function of a random generator and a number."""
    rng = np.random.default_rng(0)
    draws = [resample(rng, b) for b in range(N_RESAMPLES)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(point), float(low), float(high)


def drawn(rng, *sizes):
    return [rng.integers(size, size=size) for size in sizes]


def lds(truth, predicted):
    """LDS of each seed against its own retrainings, the mean over seeds."""
    n_seeds, m, n_queries = truth.shape
    times = np.random.default_rng(1).multinomial(m, np.full(m, 1 / m), N_RESAMPLES)
    each = _resampled(truth, predicted, times.astype(float))

    def resample(rng, b):
        return each[:, b][np.ix_(*drawn(rng, n_seeds, n_queries))].mean()

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

    def resample(rng, _):
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

    def resample(rng, _):
        return area[np.ix_(*drawn(rng, *area.shape))].mean()

    return interval(area.mean(), resample)


def emptied(y, attributions, share):
    """How much of one class goes with the rows that help most, the mean over seeds.

    The largest share of a class among the first ``share`` of the rows; ``share``
    itself, or little more, where no class is preferred.
    """
    n_each = np.bincount(y)
    first = round(share * len(y))
    orders = np.argsort(-attributions.mean(axis=1), axis=1, kind="stable")[:, :first]
    gone = [np.bincount(y[o], minlength=len(n_each)) / n_each for o in orders]
    return float(np.mean([shares.max() for shares in gone]))


def mislabel_auc(wrong, attributions):
    """Area under the ROC curve of finding the wrong labels by low attributions."""
    suspicion = -attributions.mean(axis=0)

    def resample(rng, _):
        (rows,) = drawn(rng, len(wrong))
        return roc_auc_score(wrong[rows], suspicion[rows])

    return interval(roc_auc_score(wrong, suspicion), resample)


def ceiling(subsets):
    """How well one seed's outcomes rank another's: mean LDS of pairs, (3, m, q)."""
    return lds(subsets, np.roll(subsets, 1, axis=0))


def loo_ceiling(without_one):
    other = np.swapaxes(np.roll(-without_one, 1, axis=0), 1, 2)
    return loo(without_one, other)
