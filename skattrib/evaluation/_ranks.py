"""Mean Spearman correlation of many queries, with a two-way bootstrap."""

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import Bunch, check_random_state

from skattrib.exceptions import ConstantOutcomeWarning

FloatArray = NDArray[np.float64]

# Entries of one block of resampled ranks: 16 MiB of float64.
_BLOCK_SIZE = 2**21


def _resampled_ranks(values: FloatArray, multiplicity: FloatArray) -> FloatArray:
    """Return average ranks of `values` if value i occurs `multiplicity[b, i]` times.

    Resampling with replacement only changes how often a value occurs, so one sort
    serves every resample.
    """
    order = np.argsort(values)
    n_up_to = np.zeros((multiplicity.shape[0], values.size + 1))
    np.cumsum(multiplicity[:, order], axis=1, out=n_up_to[:, 1:])
    n_below = n_up_to[:, np.searchsorted(values[order], values, side="left")]
    n_not_above = n_up_to[:, np.searchsorted(values[order], values, side="right")]
    return (n_below + n_not_above + 1) / 2


def _spearman(
    outcomes: FloatArray, predicted: FloatArray, multiplicity: FloatArray
) -> FloatArray:
    """Return Spearman correlations, NaN where `outcomes` is constant.

    Parameters
    ----------
    outcomes, predicted : ndarray of shape (n_weightings, n_queries)
    multiplicity : ndarray of shape (n_resamples, n_weightings)
        How often each weighting occurs in each resample.

    Returns
    -------
    correlation : ndarray of shape (n_resamples, n_queries)
    """
    n_resamples, n_weightings = multiplicity.shape
    correlation = np.empty((n_resamples, outcomes.shape[1]))
    mean_rank = (n_weightings + 1) / 2
    step = max(1, _BLOCK_SIZE // n_weightings)

    for start in range(0, n_resamples, step):
        rows = slice(start, start + step)
        times = multiplicity[rows]
        for query, (truth, guess) in enumerate(zip(outcomes.T, predicted.T)):
            x = _resampled_ranks(truth, times) - mean_rank
            y = _resampled_ranks(guess, times) - mean_rank
            xx = np.einsum("bi,bi,bi->b", times, x, x)
            yy = np.einsum("bi,bi,bi->b", times, y, y)
            xy = np.einsum("bi,bi,bi->b", times, x, y)
            # Where a resample leaves one distinct prediction, nothing is ranked: 0.
            norm = np.sqrt(xx * np.where(yy > 0, yy, 1))
            correlation[rows, query] = np.divide(
                xy, norm, out=np.full_like(xy, np.nan), where=xx > 0
            )

    return np.clip(correlation, -1, 1)


def _bootstrap(
    outcomes: FloatArray,
    predicted: FloatArray,
    n_resamples: int,
    rng: np.random.RandomState,
) -> FloatArray:
    """Return mean correlations in resamples of the weightings and the queries."""
    n_weightings, n_queries = outcomes.shape

    def resample(n: int) -> FloatArray:
        return rng.multinomial(n, np.full(n, 1 / n), size=n_resamples).astype(float)

    correlation = _spearman(outcomes, predicted, resample(n_weightings))
    query_weight = resample(n_queries) * ~np.isnan(correlation)
    total = query_weight.sum(axis=1)
    defined = total > 0
    means = (query_weight * np.nan_to_num(correlation)).sum(axis=1)[defined]
    return means / total[defined]


def rank_agreement(
    outcomes: FloatArray,
    predicted: FloatArray,
    *,
    confidence: float | None,
    n_resamples: int,
    random_state: int | np.random.RandomState | None,
) -> float | Bunch:
    """Return the mean Spearman correlation over queries, with an interval or alone.

    `outcomes` and `predicted` are checked arrays of shape (n_weightings, n_queries).
    To be called directly by public, validated functions: the warning about constant
    outcomes points to the line that called those.
    """
    varies = np.ptp(outcomes, axis=0) > 0
    if not varies.any():
        raise ValueError(
            f"outcomes are equal over all {outcomes.shape[0]} weightings for each of "
            f"the {outcomes.shape[1]} queries, so there is no ranking to compare with. "
            "Check that the weightings differ and that retraining uses them: weights "
            "have no effect on a frozen estimator, or with batch_size=1."
        )

    if not varies.all():
        warnings.warn(
            f"{varies.size - varies.sum()} of {varies.size} queries have the same "
            "outcome under every weighting: their rank correlation is undefined and "
            "they are left out of the mean.",
            ConstantOutcomeWarning,
            stacklevel=4,
        )
        outcomes, predicted = outcomes[:, varies], predicted[:, varies]

    once = np.ones((1, outcomes.shape[0]))
    score = float(_spearman(outcomes, predicted, once).mean())
    if confidence is None:
        return score

    rng = check_random_state(random_state)
    means = _bootstrap(outcomes, predicted, n_resamples, rng)
    if means.size < 2:
        raise ValueError(
            f"n_resamples={n_resamples} gave {means.size} resample(s) in which an "
            "outcome varies: pass more resamples or outcomes of more weightings."
        )

    # A resample has fewer different weightings, and ranks of fewer agree less: of many
    # queries and few weightings all resamples may be below the score.
    means += score - np.median(means)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.clip(np.quantile(means, tails), -1, 1)
    return Bunch(
        score=score,
        low=float(low),
        high=float(high),
        standard_error=float(means.std(ddof=1)),
    )
