"""Losses of boosting as functions of raw outputs: their derivatives, and constants."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

FloatArray = NDArray[np.float64]
# Shares of classes are at least this where their logarithm is taken.
_SMALLEST = 1e-12


def _sigmoid(outputs: FloatArray) -> FloatArray:
    """Return probabilities of logits."""
    found: FloatArray = np.negative(outputs)
    with np.errstate(over="ignore"):  # to infinity, and a probability of 0
        np.exp(found, out=found)
    found += 1
    return np.reciprocal(found, out=found)


@dataclass(frozen=True)
class Objective(ABC):
    """What the values of leaves minimise, one Newton step at a time.

    Arrays are (n_outputs, n, ...): outputs of rows come first.
    """

    n_outputs: int = 1

    #: Whether a tree is fitted to what those before it leave.
    follows = True
    #: Whether second derivatives are 1.
    quadratic = False

    @abstractmethod
    def targets(self, y: FloatArray) -> FloatArray:
        """Return targets (n_outputs, n) from codes or numbers (n,)."""

    @abstractmethod
    def gradients(
        self, outputs: FloatArray, targets: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Return first and second derivatives in each output."""

    @abstractmethod
    def slopes(
        self, outputs: FloatArray, targets: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Return how `gradients` change with outputs, (n_outputs, n_outputs, n).

        The first index is that of the gradient, the second that of the output.
        """

    @abstractmethod
    def constant(self, means: FloatArray) -> FloatArray:
        """Return the best constant outputs, from means (n_outputs, ...) of targets."""

    @abstractmethod
    def constant_slopes(self, means: FloatArray) -> FloatArray:
        """Return derivatives (n_outputs, n_outputs) of `constant` in means."""


@dataclass(frozen=True)
class SquaredLoss(Objective):
    """Half the squared error."""

    quadratic = True

    def targets(self, y: FloatArray) -> FloatArray:
        """Return the numbers."""
        return np.asarray(y, dtype=float)[None]

    def gradients(
        self, outputs: FloatArray, targets: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Return errors, and 1."""
        return outputs - targets, np.ones_like(outputs)

    def slopes(
        self, outputs: FloatArray, targets: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Return 1, and 0."""
        return np.ones_like(outputs)[None], np.zeros_like(outputs)[None]

    def constant(self, means: FloatArray) -> FloatArray:
        """Return the mean."""
        return means

    def constant_slopes(self, means: FloatArray) -> FloatArray:
        """Return 1."""
        return np.ones((1, 1))


@dataclass(frozen=True)
class LogLoss(SquaredLoss):
    """Log loss of two classes, of the logit of the second.

    Attributes
    ----------
    one_step : bool
        Whether the constant is that after one Newton step from 0.
    """

    one_step: bool = False
    quadratic = False

    def gradients(
        self, outputs: FloatArray, targets: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Return p - y, and p (1 - p)."""
        p = _sigmoid(outputs)
        return p - targets, p * (1 - p)

    def slopes(
        self, outputs: FloatArray, targets: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Return p (1 - p), and that times 1 - 2 p."""
        p = _sigmoid(outputs)
        variance = p * (1 - p)
        return variance[None], (variance * (1 - 2 * p))[None]

    def constant(self, means: FloatArray) -> FloatArray:
        """Return the logit of the mean."""
        if self.one_step:
            return 4 * means - 2
        means = np.clip(means, _SMALLEST, 1 - _SMALLEST)
        found: FloatArray = np.log(means / (1 - means))
        return found

    def constant_slopes(self, means: FloatArray) -> FloatArray:
        """Return its derivative."""
        if self.one_step:
            return np.full((1, 1), 4.0)
        return (1 / (means * (1 - means)).clip(_SMALLEST))[:, None]


@dataclass(frozen=True)
class PoissonLoss(SquaredLoss):
    """Half the Poisson deviance, of the logarithm of the mean.

    Attributes
    ----------
    damping : float
        Second derivatives are those at outputs larger by this.
    """

    damping: float = 0.0
    quadratic = False

    def gradients(
        self, outputs: FloatArray, targets: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Return m - y, and m."""
        mean = np.exp(outputs)
        return mean - targets, mean * np.exp(self.damping)

    def slopes(
        self, outputs: FloatArray, targets: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Return m twice."""
        mean = np.exp(outputs)[None]
        return mean, mean * np.exp(self.damping)

    def constant(self, means: FloatArray) -> FloatArray:
        """Return the logarithm of the mean."""
        found: FloatArray = np.log(means.clip(_SMALLEST))
        return found

    def constant_slopes(self, means: FloatArray) -> FloatArray:
        """Return its derivative."""
        return (1 / means.clip(_SMALLEST))[:, None]


@dataclass(frozen=True)
class SoftmaxLoss(Objective):
    """Log loss of more than two classes, of as many outputs.

    Attributes
    ----------
    factor : float
        Of second derivatives, which ignore those between outputs.
    centred : bool
        Whether the constants add up to 0.
    """

    factor: float = 1.0
    centred: bool = False

    def targets(self, y: FloatArray) -> FloatArray:
        """Return 1 at the class of each row, else 0."""
        classes = np.arange(self.n_outputs)[:, None]
        return (np.asarray(y) == classes).astype(float)

    def gradients(
        self, outputs: FloatArray, targets: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Return p - y, and p (1 - p) times the factor."""
        p = softmax(outputs, axis=0)
        return p - targets, self.factor * p * (1 - p)

    def slopes(
        self, outputs: FloatArray, targets: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Return p_k (δ - p_m), and that times (1 - 2 p_k) and the factor."""
        p = softmax(outputs, axis=0)
        same = np.eye(self.n_outputs)[:, :, None]
        of_p = p[:, None] * (same - p[None])
        return of_p, self.factor * (1 - 2 * p[:, None]) * of_p

    def constant(self, means: FloatArray) -> FloatArray:
        """Return logarithms of the shares."""
        logs: FloatArray = np.log(means.clip(_SMALLEST))
        return logs - logs.mean(axis=0) if self.centred else logs

    def constant_slopes(self, means: FloatArray) -> FloatArray:
        """Return their derivatives."""
        slopes = np.diag(1 / means.clip(_SMALLEST))
        return slopes - slopes.mean(axis=0) if self.centred else slopes


@dataclass(frozen=True)
class Means(Objective):
    """Values are means of targets, and trees know nothing of each other: a forest.

    Attributes
    ----------
    classes : bool
        Whether targets are codes of classes, of which values are shares.
    """

    classes: bool = False
    follows = False
    quadratic = True

    def targets(self, y: FloatArray) -> FloatArray:
        """Return 1 at the class of each row, else 0; or the numbers of each output."""
        y = np.asarray(y)
        if self.classes:
            return (y == np.arange(self.n_outputs)[:, None]).astype(float)
        return y.reshape(len(y), -1).T.astype(float)

    def gradients(
        self, outputs: FloatArray, targets: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Return minus the targets, and 1."""
        return -np.broadcast_to(targets, outputs.shape), np.ones_like(outputs)

    def slopes(
        self, outputs: FloatArray, targets: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Return 0: it is not asked for."""
        nothing = np.zeros((self.n_outputs, *outputs.shape))
        return nothing, nothing

    def constant(self, means: FloatArray) -> FloatArray:
        """Return 0."""
        return np.zeros_like(means)

    def constant_slopes(self, means: FloatArray) -> FloatArray:
        """Return 0."""
        return np.zeros((self.n_outputs, self.n_outputs))
