"""A surrogate with the attributions of another attributor as prior mean."""

import warnings

import numpy as np

from skattrib.exceptions import FaithfulnessWarning

# Prior standard deviation of a slope around 1.
_SLOPE_SPREAD = 0.5


class AroundPrior:
    """A linear prior mean, and a surrogate of the residual outcomes.

    Attributions may be right in order and wrong in size: each query has its own slope,
    shrunk towards 1 as far as the outcomes do not determine it.

    Parameters
    ----------
    surrogate : KernelSurrogate or LinearSurrogate
        Not fitted.
    attributions : ndarray of shape (n_queries, n_units)
        Attributions of the prior.
    errors : ndarray of the same shape, or None
        Standard errors of the attributions.
    """

    def __init__(self, surrogate, attributions, errors):
        self._surrogate = surrogate
        is_finite = np.isfinite(attributions).all(axis=1, keepdims=True)
        if not is_finite.all():
            warnings.warn(
                f"The prior's attributions of {(~is_finite).sum()} queries are not "
                "finite: these queries have no prior.",
                FaithfulnessWarning,
                stacklevel=7,
            )
            attributions = np.where(is_finite, attributions, 0.0)
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
        attributions, std = self._surrogate.attribution(at, return_std=True)
        slopes = self._slopes[:, None]
        if std is not None and self._errors is not None:
            std = np.hypot(std, slopes * self._errors)
        attributions = attributions + slopes * self._attributions
        return (attributions, std) if return_std else attributions

    def _noise(self):
        return self._surrogate._noise()

    def _interactions(self, at, average=False):
        # the prior is additive
        return self._surrogate._interactions(at, average)


def _slopes(expected, outcomes):
    """Return slopes (q,) of centred outcomes (m, q), shrunk towards 1."""
    squared_size = (expected**2).sum(axis=0)
    unshrunk = (expected * outcomes).sum(axis=0) / np.maximum(
        squared_size, np.finfo(float).tiny
    )
    noise = ((outcomes - unshrunk * expected) ** 2).mean(axis=0)
    shrunk_size = squared_size + noise / _SLOPE_SPREAD**2
    # 1 if all expected and observed outcomes are 0
    certainty = np.divide(
        squared_size,
        shrunk_size,
        out=np.zeros_like(squared_size),
        where=shrunk_size > 0,
    )

    return 1 + certainty * (unshrunk - 1)
