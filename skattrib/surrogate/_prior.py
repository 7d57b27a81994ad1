"""A surrogate around the attributions of another attributor."""

import warnings

import numpy as np

from skattrib.exceptions import FaithfulnessWarning

# Standard deviation that a slope is expected to have around 1.
_SLOPE_SPREAD = 0.5


class AroundPrior:
    """A linear prior mean, and a surrogate of what it leaves.

    Attributions may be right in order and wrong in size: each query has a slope of
    its own, drawn towards 1 as far as the outcomes leave it open.

    Parameters
    ----------
    surrogate : KernelSurrogate or LinearSurrogate
        Not fitted.
    attributions : ndarray of shape (n_queries, n_units)
        Of the prior.
    errors : ndarray of the same shape, or None
        Their standard errors.
    """

    def __init__(self, surrogate, attributions, errors):
        self._surrogate = surrogate
        sound = np.isfinite(attributions).all(axis=1, keepdims=True)
        if not sound.all():
            warnings.warn(
                f"The prior's attributions of {(~sound).sum()} queries are not finite: "
                "they have none.",
                FaithfulnessWarning,
                stacklevel=5,
            )
            attributions = np.where(sound, attributions, 0.0)
        self._attributions, self._errors = attributions, errors

    def fit(self, weights, outcomes):
        """Fit weightings (m, n_units) and their outcomes (m, n_queries)."""
        self._middle = weights.mean(axis=0)
        expected = (weights - self._middle) @ self._attributions.T
        self._slopes = _slopes(expected, outcomes - outcomes.mean(axis=0))
        self._surrogate.fit(weights, outcomes - self._slopes * expected)
        return self

    def predict(self, weights):
        """Return outcomes (m, n_queries)."""
        expected = (weights - self._middle) @ self._attributions.T
        return self._slopes * expected + self._surrogate.predict(weights)

    def attribution(self, at, return_std):
        """Return attributions (n_queries, n_units) and their deviations or None."""
        found, std = self._surrogate.attribution(at, return_std=True)
        slopes = self._slopes[:, None]
        if std is not None and self._errors is not None:
            std = np.hypot(std, slopes * self._errors)
        found = found + slopes * self._attributions
        return (found, std) if return_std else found

    def _interactions(self, at, average=False):
        # the prior adds up
        return self._surrogate._interactions(at, average)


def _slopes(expected, outcomes):
    """Return slopes (q,) of centred outcomes (m, q), drawn towards 1."""
    size = (expected**2).sum(axis=0)
    free = (expected * outcomes).sum(axis=0) / np.maximum(size, np.finfo(float).tiny)
    noise = ((outcomes - free * expected) ** 2).mean(axis=0)
    drawn = size + noise / _SLOPE_SPREAD**2
    # nothing expected and nothing seen: 1
    certainty = np.divide(size, drawn, out=np.zeros_like(size), where=drawn > 0)
    return 1 + certainty * (free - 1)
