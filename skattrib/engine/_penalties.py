"""Penalties: terms of the training objective that depend on the parameters alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Regularization = Literal["per_sample", "fixed"]


def scale_with(regularization: Regularization, share: Tensor) -> Tensor:
    """Return the factor on a penalty of the summed loss for a share of the weights.

    "per_sample": the penalty belongs to the mean loss of the rows that are left, so
    that removing a row removes its share of the penalty. Where no row is left, the
    penalty alone determines the minimum, at any strength. "fixed": the penalty does
    not depend on the rows, as in scikit-learn's linear models.
    """
    if regularization == "fixed":
        return torch.ones_like(share)
    return torch.where(share == 0, 1.0, share)


class Penalty(ABC):
    """A term of the training objective that depends on the parameters alone.

    A subclass implements `value`, `diagonal` and `prox`. A strength of 0 excludes
    parameters such as an intercept.

    Examples
    --------
    >>> import torch
    >>> from skattrib.extension import Penalty
    >>> class Quartic(Penalty):
    ...     def value(self, params):
    ...         return 0.25 * params.pow(4).sum(-1)
    ...     def diagonal(self, params):
    ...         return 3 * params.square()
    ...     def prox(self, params, step):
    ...         moved = params.clone()
    ...         for _ in range(50):  # Newton
    ...             slope = moved - params + step * moved.pow(3)
    ...             moved = moved - slope / (1 + 3 * step * moved.square())
    ...         return moved
    >>> Quartic().prox(torch.tensor([2.0]), 1.0)
    tensor([1.])
    """

    #: How the penalty depends on the sum of the rows' weights, see `scale_with`.
    regularization: Regularization = "per_sample"

    @abstractmethod
    def value(self, params: Tensor) -> Tensor:
        """Return the penalty.

        Parameters
        ----------
        params : Tensor of shape (..., P)
            Flat parameters.

        Returns
        -------
        Tensor of shape (...)
            One number for each model.
        """

    @abstractmethod
    def diagonal(self, params: Tensor) -> Tensor:
        """Return the second derivative in each parameter.

        Parameters
        ----------
        params : Tensor of shape (..., P)
            Flat parameters.

        Returns
        -------
        Tensor of shape (..., P)
            0 at a kink.
        """

    @abstractmethod
    def prox(self, params: Tensor, step: float) -> Tensor:
        """Return argmin_u penalty(u) + ‖u − params‖² / (2 step).

        Parameters
        ----------
        params : Tensor of shape (..., P)
            Flat parameters.
        step : float
            Length of the step; at 0 the parameters are unchanged.

        Returns
        -------
        Tensor of shape (..., P)
            Parameters after the step.
        """

    def scale(self, share: Tensor) -> Tensor:
        """Return the factor on the penalty for shares of the weights of all rows.

        Parameters
        ----------
        share : Tensor
            Sum of the weights that are left, over that of all rows.

        Returns
        -------
        Tensor
            Of the shape of ``share``.
        """
        return scale_with(self.regularization, share)


@dataclass(frozen=True)
class ElasticNet(Penalty):
    """Σ_j l1_j |θ_j| + ½ l2_j θ_j².

    Parameters
    ----------
    l1, l2 : float or Tensor of shape (P,), default=0.0
        Strengths, at least 0.
    regularization : {"per_sample", "fixed"}, default="per_sample"
    """

    l1: float | Tensor = 0.0
    l2: float | Tensor = 0.0
    regularization: Regularization = "per_sample"

    def value(self, params: Tensor) -> Tensor:
        """Return the penalty (...)."""
        return (self.l1 * params.abs() + 0.5 * self.l2 * params.square()).sum(-1)

    def diagonal(self, params: Tensor) -> Tensor:
        """Return l2."""
        return torch.zeros_like(params) + self.l2

    def prox(self, params: Tensor, step: float) -> Tensor:
        """Return the soft threshold, shrunk."""
        shrunk = (params.abs() - step * self.l1).clamp(min=0) * params.sign()
        return shrunk / (1 + step * self.l2)


def l2(
    strength: float | Tensor, regularization: Regularization = "per_sample"
) -> ElasticNet:
    """Return ½ Σ strength θ²."""
    return ElasticNet(0.0, strength, regularization)


def l1(
    strength: float | Tensor, regularization: Regularization = "per_sample"
) -> ElasticNet:
    """Return Σ strength |θ|."""
    return ElasticNet(strength, 0.0, regularization)


@dataclass(frozen=True)
class WeightDecay(Penalty):
    """Decoupled weight decay: parameters shrink in each step, apart from the loss.

    It is not a term of the objective, so that its value is 0. In a step it acts by its
    prox, θ (1 − strength · learning rate), independent of the rows.

    Parameters
    ----------
    strength : float or Tensor of shape (P,)
    """

    strength: float | Tensor
    regularization: Regularization = "per_sample"

    def value(self, params: Tensor) -> Tensor:
        """Return 0."""
        return torch.zeros_like(params[..., 0])

    def diagonal(self, params: Tensor) -> Tensor:
        """Return 0."""
        return torch.zeros_like(params)

    def prox(self, params: Tensor, step: float) -> Tensor:
        """Return θ (1 − strength · step)."""
        return params * (1.0 - step * self.strength)
