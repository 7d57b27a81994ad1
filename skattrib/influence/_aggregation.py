"""Averages over runs, some of which are out of all proportion."""

import numpy as np

# Left out at either end; more where more runs explode, but never all.
_TRIM, _MOST = 0.25, 0.45
# Times the median norm.
_EXPLODING = 10.0


def exploding(found):
    """Return which runs (n_runs, q) are far larger than the median run.

    Parameters
    ----------
    found : ndarray of shape (n_runs, q, n_units)
    """
    norms = np.linalg.norm(found, axis=2)
    usual = np.median(norms, axis=0)
    return ~(norms <= _EXPLODING * usual)


def _mean(found):
    return found.mean(axis=0), found.std(axis=0, ddof=1) / len(found) ** 0.5


def _median(found):
    middle = np.median(found, axis=0)
    # of normal deviations: 1.4826 median deviations are one standard deviation, and
    # a median is 1.2533 times as uncertain as a mean
    deviation = 1.4826 * np.median(np.abs(found - middle), axis=0)
    return middle, 1.2533 * deviation / len(found) ** 0.5


def _trimmed_mean(found):
    """Trim by entry; each query by its own share of exploding runs."""
    share = np.maximum(_TRIM, 1.25 * exploding(found).mean(axis=0))
    n_runs = len(found)
    n_cut = np.floor(np.minimum(share, _MOST) * n_runs).astype(int)
    mean, error = np.empty(found.shape[1:]), np.empty(found.shape[1:])
    ordered = np.sort(found, axis=0)
    for cut in np.unique(n_cut):
        which = n_cut == cut
        kept = ordered[cut : n_runs - cut, which]
        mean[which] = kept.mean(axis=0)
        # those cut count as the nearest that is kept (winsorised)
        inside = ((kept - mean[which]) ** 2).sum(axis=0)
        ends = (kept[0] - mean[which]) ** 2 + (kept[-1] - mean[which]) ** 2
        spread = np.sqrt((inside + cut * ends) / (n_runs - 1))
        error[which] = spread / ((1 - 2 * cut / n_runs) * n_runs**0.5)
    return mean, error


AGGREGATIONS = {"trimmed_mean": _trimmed_mean, "median": _median, "mean": _mean}


def aggregate(found, how):
    """Return the average over runs (n_runs, q, n_units) and its standard error.

    A single run is returned as it is, with None.
    """
    if len(found) == 1:
        return found[0], None
    return AGGREGATIONS[how](found)
