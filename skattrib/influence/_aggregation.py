"""Averages over runs, some of which are out of all proportion."""

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
    tiny = np.finfo(each_run.dtype).tiny
    largest = np.abs(each_run).max(axis=(0, 2), keepdims=True, initial=tiny)
    norms = np.linalg.norm(each_run / largest, axis=2)
    usual = np.median(norms, axis=0)
    return ~(norms <= _EXPLODING * usual)


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
        which = n_cut == cut
        middle = ordered[cut : n_runs - cut, which]
        mean[which] = middle.mean(axis=0)
        # those cut count as the nearest that is kept (winsorised)
        inside = ((middle - mean[which]) ** 2).sum(axis=0)
        ends = (middle[0] - mean[which]) ** 2 + (middle[-1] - mean[which]) ** 2
        spread = np.sqrt((inside + cut * ends) / (n_runs - 1))
        error[which] = spread / ((1 - 2 * cut / n_runs) * n_runs**0.5)
    return mean, error


AGGREGATIONS = {"trimmed_mean": _trimmed_mean, "median": _median, "mean": _mean}


def aggregate(each_run, how, exploded):
    """Return the average over runs and its standard error.

    Parameters
    ----------
    each_run : ndarray of shape (n_runs, q, n_units)
        A single run is returned as it is, with None.
    how : str
        One of `AGGREGATIONS`.
    exploded : ndarray of shape (n_runs, q)
        What `exploding` says of these runs.
    """
    if len(each_run) == 1:
        return each_run[0], None
    with np.errstate(all="ignore"):  # errors that are not finite are named
        return AGGREGATIONS[how](each_run, exploded)
