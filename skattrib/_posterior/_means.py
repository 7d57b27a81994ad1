"""Several prior means of the same attributions, of which retrained halves tell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

FloatArray = NDArray[np.float64]

# Sum of what true effects are expected to be on means whose weights sum to 1, and the
# deviation of that on each: chosen on three networks.
_GAIN, _SD = 0.9, 0.2
# Fits of the regression to its own noise.
_N_ROUNDS = 8


@dataclass(frozen=True)
class QueryMeans:
    """Prior means of the attributions of one query, all of about the same size.

    Attributes
    ----------
    means, errors : ndarray of shape (K, n_units)
        Centred, and their standard errors.
    correlations : ndarray of shape (K, K)
        Of these errors.
    weights : ndarray of shape (K,)
        How good each is beforehand; they sum to 1.
    """

    means: FloatArray
    errors: FloatArray
    correlations: FloatArray
    weights: FloatArray

    def mixed(self, slopes: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the sum of slopes (K,) times the means, and its standard errors."""
        scaled = slopes[:, None] * self.errors
        squares = np.einsum("kn,kl,ln->n", scaled, self.correlations, scaled)
        return slopes @ self.means, np.sqrt(np.maximum(squares, 0))

    def told(
        self, around: FloatArray, differences: FloatArray
    ) -> tuple[FloatArray, FloatArray, float]:
        """Return what halves make of the means, its errors, and the sum of slopes.

        A regression of the differences (P,) of halves on what each mean predicts of
        them, from weights (P, n_units) around 1/2, with slopes drawn to the weights.
        """
        X, before = around @ self.means.T, _GAIN * self.weights
        # slopes do not depend on the unit, and squares of large numbers are infinite
        unit = max(float(np.abs(X).max()), float(np.abs(differences).max()))
        unit = unit if 0 < unit < np.inf else 1.0
        X, differences = X / unit, differences / unit
        values, vectors = eigh(X.T @ X)
        values, told = np.maximum(values, 0), vectors.T @ (X.T @ differences)
        slopes, expected = before, vectors.T @ before
        squares = np.square(differences - X @ slopes).sum()
        n_left = float(len(differences))
        for _ in range(_N_ROUNDS):
            kept = squares / n_left / _SD**2
            total = values + kept
            total = np.where(total > 0, total, 1.0)
            found = np.where(
                values + kept > 0, (told + kept * expected) / total, expected
            )
            slopes = vectors @ found
            n_left = max(len(differences) - float((values / total).sum()), 1.0)
            squares = np.square(differences - X @ slopes).sum()
        return *self.mixed(slopes), float(slopes.sum())


@dataclass(frozen=True)
class PriorMeans:
    """`QueryMeans` of several queries: what a posterior begins with.

    Attributes
    ----------
    means, errors : ndarray of shape (n_queries, K, n_units)
    correlations : ndarray of shape (n_queries, K, K)
    weights : ndarray of shape (n_queries, K)
    """

    means: FloatArray
    errors: FloatArray
    correlations: FloatArray
    weights: FloatArray

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of queries and of units, as those of one mean."""
        return self.means.shape[0], self.means.shape[2]

    def __len__(self) -> int:
        return len(self.means)

    def __iter__(self) -> Iterator[QueryMeans]:
        rows = self.means, self.errors, self.correlations, self.weights
        return (QueryMeans(*row) for row in zip(*rows, strict=True))

    def mixture(self) -> tuple[FloatArray, FloatArray]:
        """Return the means (n_queries, n_units) by their weights, and errors."""
        found = [one.mixed(one.weights) for one in self]
        return np.array([mean for mean, _ in found]), np.array([e for _, e in found])
