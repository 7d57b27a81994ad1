"""Averages over runs, some of which are far too large."""

import warnings

import numpy as np

# Left out at either end; more where more runs explode, but never all.
_TRIM, _MOST = 0.25, 0.45
# Times the median norm.
_EXPLODING = 10.0


def exploding(each_run):
    """Return which runs (n_runs, q) are far larger than the median run.

    Parameters
    ----------
    each_run : ndarray of shape (n_runs, q, n_units)
        Attributions.
    """
    # in units of a query's largest number: squares of large ones may be infinite
    finite = np.isfinite(each_run).all(axis=2, keepdims=True)
    known, tiny = np.where(finite, each_run, 0.0), np.finfo(each_run.dtype).tiny
    largest = np.abs(known).max(axis=(0, 2), keepdims=True, initial=tiny)
    norms = np.linalg.norm(known / largest, axis=2)
    norms = np.where(finite[..., 0], norms, np.nan)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)
        usual = np.nanmedian(norms, axis=0)
    return ~(norms <= _EXPLODING * usual)


def finite_mean(values, axis):
    """Return the mean of what is finite; NaN where nothing is."""
    finite = np.isfinite(values)
    total, n_known = np.where(finite, values, 0).sum(axis), finite.sum(axis)
    return np.where(n_known > 0, total / np.maximum(n_known, 1), np.nan)


def _mean(each_run, exploded):
    error = each_run.std(axis=0, ddof=1) / len(each_run) ** 0.5
    return each_run.mean(axis=0), error


def _median(each_run, exploded):
    middle = np.median(each_run, axis=0)
    # of normal deviations: 1.4826 median deviations are one standard deviation, and
    # a median is 1.2533 times as uncertain as a mean
    deviation = 1.4826 * np.median(np.abs(each_run - middle), axis=0)
    return middle, 1.2533 * deviation / len(each_run) ** 0.5


def _trimmed_mean(each_run, exploded):
    """Trim by entry; each query by its own share of exploding runs."""
    share = np.maximum(_TRIM, 1.25 * exploded.mean(axis=0))
    n_runs = len(each_run)
    n_cut = np.floor(np.minimum(share, _MOST) * n_runs).astype(int)
    mean = np.empty(each_run.shape[1:])
    error = np.empty(each_run.shape[1:])
    ordered = np.sort(each_run, axis=0)

    for cut in np.unique(n_cut):
        has_cut = n_cut == cut
        middle = ordered[cut : n_runs - cut, has_cut]
        mean[has_cut] = middle.mean(axis=0)
        # those cut count as the nearest that is kept (winsorised)
        inside = ((middle - mean[has_cut]) ** 2).sum(axis=0)
        ends = (middle[0] - mean[has_cut]) ** 2 + (middle[-1] - mean[has_cut]) ** 2
        spread = np.sqrt((inside + cut * ends) / (n_runs - 1))
        error[has_cut] = spread / ((1 - 2 * cut / n_runs) * n_runs**0.5)
    return mean, error


AGGREGATIONS = {"trimmed_mean": _trimmed_mean, "median": _median, "mean": _mean}


def aggregate(each_run, how, exploded):
    """Return the average over runs and its standard error.

    Parameters
    ----------
    each_run : ndarray of shape (n_runs, q, n_units)
        A single run is returned as it is, with None. Of several, those that are not
        finite are left out, query by query.
    how : str
        One of `AGGREGATIONS`.
    exploded : ndarray of shape (n_runs, q)
        What `exploding` says of these runs.
    """
    if len(each_run) == 1:
        return each_run[0], None
    finite = np.isfinite(each_run).all(axis=2)
    mean, error = np.full((2, *each_run.shape[1:]), np.nan)
    with np.errstate(all="ignore"):  # errors that are not finite are named
        if finite.all():
            return AGGREGATIONS[how](each_run, exploded)
        for query in range(each_run.shape[1]):
            runs, one = finite[:, query], slice(query, query + 1)
            if runs.sum() > 1:
                mean[one], error[one] = AGGREGATIONS[how](
                    each_run[runs, one], exploded[runs, one]
                )
            elif runs.any():
                mean[query] = each_run[runs, query]
    return mean, error
