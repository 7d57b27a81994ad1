"""Figures of a diagnosis, and the sentence that they come to."""

import warnings

import numpy as np
from sklearn.utils import Bunch

from skattrib.exceptions import FaithfulnessWarning


def calibration_slope(predicted, truth):
    """Return the slope of real outcomes (m, q) on predicted ones, within queries."""
    p, t = predicted - predicted.mean(axis=0), truth - truth.mean(axis=0)
    return float((p * t).sum() / max((p * p).sum(), np.finfo(float).tiny))


def judged(figures, bad, good, trust="Trust", hint=""):
    """Add ``trustworthy`` and ``verdict`` to figures; warn the caller's caller if bad.

    Parameters
    ----------
    bad, good : list of str
        What speaks against trust, and for it.
    hint : str
        Added where nothing is bad.
    """
    if bad:
        sentence = f"Do not trust: {'; '.join(bad)}."
        warnings.warn(sentence, FaithfulnessWarning, stacklevel=4)
    else:
        sentence = f"{trust}: {'; '.join(good)}.{hint}"
    return Bunch(**figures, trustworthy=not bad, verdict=sentence)
