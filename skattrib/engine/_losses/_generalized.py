"""Losses of generalised linear models, and of linear classifiers without probabilities.

Terms that do not depend on the outputs are left out, except by `HalfDeviance`, which
is measured and not trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from skattrib.engine._losses._classes import ClassLoss
from skattrib.engine._losses._protocol import Loss, OutcomeFunction


@dataclass(frozen=True, repr=False)
class HalfDeviance(Loss):
    """Half the unit deviance of a Tweedie distribution; outputs are means.

    Parameters
    ----------
    power : float
        The variance is the mean to this power: 0 Gaussian, 1 Poisson, 2 gamma.
    """

    power: float

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses (n,)."""
        y, mean, p = targets, outputs, self.power
        if p == 0:
            deviance = (mean - y).square() / 2
        elif p == 1:
            # the derivative of 0 log 0 is NaN
            ratio = torch.where(y == 0, 1.0, y / mean)
            deviance = torch.xlogy(y, ratio) - y + mean
        elif p == 2:
            deviance = (mean / y).log() + y / mean - 1
        else:
            constant = y.clamp(min=0) ** (2 - p) / ((1 - p) * (2 - p))
            deviance = constant - y * mean ** (1 - p) / (1 - p)
            deviance = deviance + mean ** (2 - p) / (2 - p)
        return deviance.sum(-1)

    def __repr__(self) -> str:
        return f"HalfDeviance(power={self.power:g})"


@dataclass(frozen=True, repr=False)
class LogLinkDeviance(Loss):
    """Half the unit deviance of a Tweedie distribution; outputs are logs of means.

    Parameters
    ----------
    power : float
        From 1 (Poisson) to 2 (gamma), where the loss is convex.
    """

    power: float
    separable = True

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses (n,)."""
        p = self.power
        if p == 1:
            losses = outputs.exp() - targets * outputs
        elif p == 2:
            losses = outputs + targets * (-outputs).exp()
        else:
            growing, falling = self._powers(outputs, targets)
            losses = growing / (2 - p) - falling / (1 - p)
        return losses.sum(-1)

    def residuals(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return μ^(2−p) − y μ^(1−p)."""
        growing, falling = self._powers(outputs, targets)
        return growing - falling

    def hessian_product(
        self, outputs: Tensor, targets: Tensor, vectors: Tensor
    ) -> Tensor:
        """Return the second derivatives, which are at least 0, times v."""
        growing, falling = self._powers(outputs, targets)
        return ((2 - self.power) * growing + (self.power - 1) * falling) * vectors

    def predict(self, outputs: Tensor) -> Tensor:
        """Return the means."""
        return outputs.exp()

    def _powers(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        p = self.power
        return ((2 - p) * outputs).exp(), targets * ((1 - p) * outputs).exp()

    def __repr__(self) -> str:
        return f"LogLinkDeviance(power={self.power:g})"


class DecisionLoss(ClassLoss):
    """A loss of signed decision values: of one against the other class, or the rest.

    There are no probabilities. Targets are codes; the outcome called log-likelihood is
    minus the loss, and the margin is the decision value, signed.
    """

    separable = True

    def n_outputs(self, targets: Tensor) -> int:
        """Return 1 for two classes, else one for each."""
        n_classes = super().n_outputs(targets)
        return 1 if n_classes == 2 else n_classes

    def predict(self, outputs: Tensor) -> Tensor:
        """Return codes."""
        if outputs.shape[-1] == 1:
            return (outputs[..., 0] > 0).long()
        return super().predict(outputs)

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        """Raise: there are none."""
        return Loss.log_probabilities(self, outputs)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Raise: there are none."""
        return Loss.probabilities(self, outputs)

    def outcomes(self) -> dict[str, OutcomeFunction]:
        """Return minus the loss, and the signed decision value."""
        return {"log_likelihood": self.minus, "margin": self.margin}

    def margin(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the decision value for the target's class."""
        if outputs.shape[-1] == 1:
            return signs(outputs, targets)[..., 0] * outputs[..., 0]
        return outputs.gather(-1, targets[..., None])[..., 0]


class DecisionValue(DecisionLoss):
    """Minus the margin, of a classifier that is retrained: its own loss is not known.

    The margin is the decision value, signed; of more than two classes that of the
    target's class less the largest other. It is the only outcome.
    """

    auto_outcome = "margin"
    separable = False

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return minus the margins (n,)."""
        return -self.margin(outputs, targets)

    def outcomes(self) -> dict[str, OutcomeFunction]:
        """Return the margin."""
        return {"margin": self.margin}

    def margin(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return by how much the target's class is ahead."""
        own = super().margin(outputs, targets)
        if outputs.shape[-1] == 1:
            return own
        others = outputs.masked_fill(signs(outputs, targets) > 0, -torch.inf)
        return own - others.amax(-1)


def signs(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return 1 for the outputs of the target's class and -1 for others, (..., C)."""
    if outputs.shape[-1] == 1:
        return 2 * targets[..., None].to(outputs) - 1
    classes = torch.arange(outputs.shape[-1], device=outputs.device)
    return 2 * (targets[..., None] == classes).to(outputs) - 1


@dataclass(frozen=True, repr=False)
class SquaredHinge(DecisionLoss):
    """Σ_outputs max(0, 1 ∓ f)², as of `sklearn.svm.LinearSVC`."""

    kinked = True

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses (n,)."""
        return self._short(outputs, targets).square().sum(-1)

    def residuals(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return −2 y max(0, 1 − y f)."""
        return -2 * signs(outputs, targets) * self._short(outputs, targets)

    def hessian_product(
        self, outputs: Tensor, targets: Tensor, vectors: Tensor
    ) -> Tensor:
        """Return 2 v where the margin is missed, else 0."""
        return 2 * (self._short(outputs, targets) > 0).to(outputs) * vectors

    def _short(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (1 - signs(outputs, targets) * outputs).clamp(min=0)

    def __repr__(self) -> str:
        return "SquaredHinge"


@dataclass(frozen=True, repr=False)
class Hinge(DecisionLoss):
    """Σ_outputs max(0, 1 ∓ f), which has no curvature."""

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses (n,)."""
        return (1 - signs(outputs, targets) * outputs).clamp(min=0).sum(-1)

    def __repr__(self) -> str:
        return "Hinge"


@dataclass(frozen=True, repr=False)
class SquaredSigns(DecisionLoss):
    """½ Σ_outputs (f ∓ 1)², as of `sklearn.linear_model.RidgeClassifier`."""

    quadratic = True

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses (n,)."""
        return 0.5 * (outputs - signs(outputs, targets)).square().sum(-1)

    def residuals(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the errors."""
        return outputs - signs(outputs, targets)

    def hessian_product(
        self, outputs: Tensor, targets: Tensor, vectors: Tensor
    ) -> Tensor:
        """Return v."""
        return vectors

    def __repr__(self) -> str:
        return "SquaredSigns"


@dataclass(frozen=True, repr=False)
class SquaredTube(Loss):
    """Σ_outputs max(0, |error| − ε)², as of `sklearn.svm.LinearSVR`.

    Parameters
    ----------
    epsilon : float
    """

    epsilon: float
    separable = kinked = True

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses (n,)."""
        return self._outside(outputs, targets).square().sum(-1)

    def residuals(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return 2 sign(error) max(0, |error| − ε)."""
        return 2 * (outputs - targets).sign() * self._outside(outputs, targets)

    def hessian_product(
        self, outputs: Tensor, targets: Tensor, vectors: Tensor
    ) -> Tensor:
        """Return 2 v outside the tube, else 0."""
        outside = (outputs - targets).abs() >= self.epsilon
        return 2 * outside.to(outputs) * vectors

    def _outside(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets).abs() - self.epsilon).clamp(min=0)

    def __repr__(self) -> str:
        return f"SquaredTube(epsilon={self.epsilon:g})"
