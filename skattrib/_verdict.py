"""Figures of a diagnosis, and the sentence that they come to."""

import warnings

import numpy as np
from sklearn.utils import Bunch

from skattrib.exceptions import FaithfulnessWarning


def calibration_slope(predicted, truth):
    """Return the slope of true outcomes (m, q) on predicted ones, within queries.

    Models with an outcome that is not finite, or not known, are left out.
    """
    known = np.isfinite(truth).all(axis=1) & np.isfinite(predicted).all(axis=1)
    if not known.any():
        return float("nan")
    predicted, truth = predicted[known], truth[known]
    with np.errstate(all="ignore"):  # NaN if squares are not finite
        predicted = predicted - predicted.mean(axis=0)
        truth = truth - truth.mean(axis=0)
        squares = np.square(predicted).sum()
        return float((predicted * truth).sum() / max(squares, np.finfo(float).tiny))


# Where nothing was retrained to compare with: only that could show it to be right.
UNTRIED = "Nothing speaks against it, but retrained outcomes are unknown"
SIZE_WRONG = "Trust the order, not the size"
SIZE_WRONG_UNTRIED = (
    "Nothing speaks against the order, but against sizes, and retrained outcomes are "
    "unknown"
)

# Root mean square of the largest feature over that of the median one.
_SPREAD_LIMIT = 100


def scale_hint(X):
    """Return a sentence on features (n, d) whose scales disturb training, or ""."""
    if X.ndim != 2 or X.dtype.kind != "f":
        return ""
    # shares of the largest number, whose square may be infinite
    X = X / max(np.abs(X).max(initial=0.0), np.finfo(X.dtype).tiny)
    sizes = np.sqrt(np.square(X, dtype=np.float64).mean(axis=0))
    sizes = sizes[sizes > 0]
    if not len(sizes) or sizes.max() <= _SPREAD_LIMIT * np.median(sizes):
        return ""
    return (
        f" The largest feature of X is {sizes.max() / np.median(sizes):.0f} times the "
        "median one: gradients and their damping follow the large ones. Scale X first "
        "(sklearn.preprocessing.StandardScaler)."
    )


def few_units_hint(n_units, n_trainings):
    """Return a sentence if leaving each unit out takes no more trainings, or ""."""
    if n_units + 1 > n_trainings:
        return ""
    return (
        f" With {n_units} units, {n_units + 1} trainings give what leaving each out "
        "changes, without a surrogate or a derivative: "
        "KernelSurrogateAttributor(estimation='retrain', inclusion=1)."
    )


# Share of what retrained halves show that intervals have at least.
_LEAST_COVERAGE = 0.85


def halves_findings(figures, against):
    """Return what retrained halves say for trust; add what they say against it.

    Parameters
    ----------
    figures : dict
        With "coverage", "prior_slope" and "lds", None without retrained halves.
    against : list of str
    """
    coverage, slope = figures["coverage"], figures["prior_slope"]
    if coverage is None:
        return []
    if np.isnan(figures["lds"]):
        against.append("retrained outcomes do not differ: nothing can be attributed")
    if not slope > 0:
        against.append(
            "retrained halves move against the attributions, which are worthless here: "
            "only what the halves show is used"
        )
    found = f"95 % intervals have {coverage:.0%} of what halves held out show"
    if coverage < _LEAST_COVERAGE:
        against.append(found)
        return []
    return [found]


def judged(figures, against, in_favour, trust="Trust", hint=""):
    """Add ``trustworthy`` and ``verdict`` to figures; warn the caller's caller if bad.

    Parameters
    ----------
    figures : dict
        Its "lds" is None where no model was retrained.
    against, in_favour : list of str
        Findings against trust, and for it.
    hint : str
        Added to the sentence.
    """
    if against:
        sentence = f"Do not trust: {'; '.join(against)}.{hint}"
        warnings.warn(sentence, FaithfulnessWarning, stacklevel=4)
    else:
        if figures["lds"] is None:
            trust = SIZE_WRONG_UNTRIED if trust == SIZE_WRONG else UNTRIED
        sentence = f"{trust}: {'; '.join(in_favour)}.{hint}"
    return Bunch(**figures, trustworthy=not against, verdict=sentence)
