"""Figures of a diagnosis, and the sentence that they come to."""

import warnings

import numpy as np
from sklearn.utils import Bunch

from skattrib.exceptions import FaithfulnessWarning


def calibration_slope(predicted, truth):
    """Return the slope of real outcomes (m, q) on predicted ones, within queries."""
    with np.errstate(all="ignore"):  # NaN if they are not finite
        p, t = predicted - predicted.mean(axis=0), truth - truth.mean(axis=0)
        return float((p * t).sum() / max((p * p).sum(), np.finfo(float).tiny))


#: where nothing has been retrained, which alone could show that it is right
UNTRIED = "Nothing speaks against it, but no model was retrained"
SIZE_WRONG = "Trust the order, not the size"
SIZE_WRONG_UNTRIED = (
    "The size is wrong, and no model was retrained to see whether the order is right"
)


#: root mean square of the largest feature over that of the median one
_SPREAD_LIMIT = 100


def scale_hint(X):
    """Return a sentence on features (n, d) whose scales hamper training, or ""."""
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


def judged(figures, bad, good, trust="Trust", hint=""):
    """Add ``trustworthy`` and ``verdict`` to figures; warn the caller's caller if bad.

    Parameters
    ----------
    figures : dict
        Its "lds" is None where no model was retrained.
    bad, good : list of str
        What speaks against trust, and for it.
    hint : str
        Added to the sentence.
    """
    if bad:
        sentence = f"Do not trust: {'; '.join(bad)}.{hint}"
        warnings.warn(sentence, FaithfulnessWarning, stacklevel=4)
    else:
        if figures["lds"] is None:
            trust = UNTRIED if trust == "Trust" else SIZE_WRONG_UNTRIED
        sentence = f"{trust}: {'; '.join(good)}.{hint}"
    return Bunch(**figures, trustworthy=not bad, verdict=sentence)
