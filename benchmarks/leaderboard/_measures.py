"""Scores of attributions against the truth, each with an interval.

Intervals are the central 95 % of a bootstrap over queries, over retrained subsets and
over truth draws (training seeds) at once; `skattrib.evaluation` draws no seeds.
"""

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks.leaderboard._work import FRACTIONS

# One sort ranks all resamples; the public scores give no correlation of each query.
from skattrib.evaluation._ranks import _spearman

N_RESAMPLES = 300


def correlations(truth, predicted):
    """Return rank correlations (seeds, q) over the middle axis of (seeds, m, q)."""
    return _resampled(truth, predicted, np.ones((1, truth.shape[1])))[:, 0]


def _resampled(truth, predicted, times):
    """Return the same, (seeds, b, q), with subset i taken times[b, i] times."""
    pairs = zip(truth, predicted, strict=True)
    return np.stack([_spearman(*pair, times) for pair in pairs])


def interval(point, resample):
    """Return (point, low, high) of a function of a random generator and a number."""
    rng = np.random.default_rng(0)
    draws = np.array([resample(rng, b) for b in range(N_RESAMPLES)])
    # as in `skattrib.evaluation`: ranks of fewer different subsets agree less
    draws += point - np.median(draws)
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(point), float(low), float(high)


def drawn_mean(rng, values):
    """Return the mean of values (seeds, q) for seeds and queries drawn anew."""
    return values[np.ix_(*(rng.integers(n, size=n) for n in values.shape))].mean()


def mean_interval(values):
    """Return (point, low, high) of the mean of values (seeds, q)."""
    return interval(values.mean(), lambda rng, _: drawn_mean(rng, values))


def lds(truth, predicted):
    """LDS of each seed against its own retrainings, the mean over seeds."""
    m = truth.shape[1]
    times = np.random.default_rng(1).multinomial(m, np.full(m, 1 / m), N_RESAMPLES)
    each = _resampled(truth, predicted, times.astype(float))

    def resample(rng, b):
        return drawn_mean(rng, each[:, b])

    return interval(correlations(truth, predicted).mean(), resample)


def ensemble_lds(truth, predicted):
    """LDS of means over seeds."""
    return lds(truth.mean(axis=0)[None], predicted.mean(axis=0)[None])


def loo(without_one, attributions):
    """Rank correlation of effects (seeds, n, q) and attributions (seeds, q, n)."""
    return mean_interval(correlations(-without_one, np.swapaxes(attributions, 1, 2)))


def removal_area(random, without_best):
    """Mean fall below random removal over removed shares; (seeds, fractions, q)."""
    gap = random - without_best
    gap = np.concatenate([np.zeros_like(gap[:, :1]), gap], axis=1)
    shares = np.append(0, FRACTIONS)
    return mean_interval(np.trapezoid(gap, shares, axis=1) / shares[-1])


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
        rows = rng.integers(len(wrong), size=len(wrong))
        return roc_auc_score(wrong[rows], suspicion[rows])

    return interval(roc_auc_score(wrong, suspicion), resample)


def ceilings(work):
    """How well one seed's outcomes rank another's: LDS and leave-one-out."""
    effects = np.swapaxes(np.roll(-work.without_one, 1, axis=0), 1, 2)
    return {
        "lds": lds(work.subsets, np.roll(work.subsets, 1, axis=0)),
        "loo": loo(work.without_one, effects),
    }
