"""Attributions and interactions of a Gaussian kernel on weightings, in closed form.

A function g of weightings is extended from the corners of the cube to its inside by
drawing every unit with probability t. For g = Σ_a θ_a k(·, s_a) and a kernel that is a
product over units, so is the extension of each term:

    E g = Σ_a θ_a Π_j u_aj ,   u_aj = t k(1, s_aj) + (1 − t) k(0, s_aj) ,

and a difference in a unit replaces its factor by k(1, s_aj) − k(0, s_aj). Every
attribution is such a difference at a point t, or its mean over t.
"""

from numbers import Real

import numpy as np

#: Points t by name.
POINTS = {"loo": 1.0, "banzhaf": 0.5}

_MOST_POINTS = 64


def check_at(at):
    """Return ``at`` as a valid name or a float; raise ValueError otherwise."""
    if isinstance(at, str) and at in {*POINTS, "shapley"}:
        return at
    if isinstance(at, Real) and not isinstance(at, bool) and 0 <= at <= 1:
        return float(at)
    raise ValueError(
        "at must be 'loo', 'shapley', 'banzhaf' or the probability in [0, 1] that "
        f"another unit is present; got {at!r}."
    )


def quadrature(at, degree):
    """Return points t and weights whose weighted sum is the average for ``at``."""
    at = check_at(at)
    if at != "shapley":
        return np.array([POINTS.get(at, at)]), np.ones(1)
    # exact up to rounding: products of many factors are smooth in t
    n_points = min(degree // 2 + 1, _MOST_POINTS)
    x, w = np.polynomial.legendre.leggauss(n_points)
    return (x + 1) / 2, w / 2


class _Factors:
    """Logarithms of the factors (m, n) of all terms and units, at one point t."""

    def __init__(self, weightings, gamma, t):
        self.present = -gamma * (1 - weightings) ** 2
        self.absent = -gamma * weightings**2
        with np.errstate(divide="ignore"):
            inside = np.log(t) + self.present, np.log1p(-t) + self.absent
        self.mixed = np.logaddexp(*inside)
        self.total = self.mixed.sum(axis=1)

    def differences(self, total):
        """Return the terms with one factor replaced by its difference, (m, n)."""
        rest = total[:, None] - self.mixed
        return np.exp(rest + self.present) - np.exp(rest + self.absent)


def kernel_differences(weightings, gamma, at):
    """Return D (m, n_units): Dᵀθ are the attributions of Σ_a θ_a k(·, s_a)."""
    n = weightings.shape[1]
    return sum(
        w * (factors := _Factors(weightings, gamma, t)).differences(factors.total)
        for t, w in zip(*quadrature(at, n - 1))
    )


def kernel_interactions(coef, weightings, gamma, at):
    """Return second differences (n_outputs, n_units, n_units), 0 on the diagonal.

    Parameters
    ----------
    coef : ndarray of shape (m, n_outputs)
    weightings : ndarray of shape (m, n_units)
    gamma : float
    at : str or float
    """
    n = weightings.shape[1]
    out = np.zeros((coef.shape[1], n, n))
    for t, w in zip(*quadrature(at, max(n - 2, 0))):
        factors = _Factors(weightings, gamma, t)
        for i in range(n):
            terms = factors.differences(factors.total - factors.mixed[:, i])
            unit_difference = np.exp(factors.present[:, i]) - np.exp(
                factors.absent[:, i]
            )
            out[:, i] += w * (coef * unit_difference[:, None]).T @ terms

    diagonal = np.arange(n)
    out[:, diagonal, diagonal] = 0
    return out


def prior_variance(n_units, gamma, at):
    """Return the variance of an attribution if g is a Gaussian process of variance 1.

    The kernel of two extended functions is again a product over units.
    """
    t, w = quadrature(at, n_units - 1)
    q = np.exp(-gamma)
    alike = np.outer(t, t) + np.outer(1 - t, 1 - t)
    factor = alike + (1 - alike) * q
    return float(2 * (1 - q) * (w @ factor ** (n_units - 1) @ w))
