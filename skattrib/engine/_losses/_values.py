"""Losses of numbers: predictions are functions of single outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from skattrib.engine._losses._protocol import Loss, OutcomeFunction


@dataclass(frozen=True, repr=False)
class SquaredError(Loss):
    """``scale`` times Σ_outputs error², by default ½ Σ error².

    The outcome is −½ Σ error² at any scale, a log-likelihood with unit variance.
    """

    scale: float = 0.5
    separable = quadratic = True

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses (n,)."""
        return self.scale * (outputs - targets).square().sum(-1)

    def outcomes(self) -> dict[str, OutcomeFunction]:
        """Return −½ Σ error² and the prediction."""
        return {**super().outcomes(), "log_likelihood": _gaussian_log_likelihood}

    def residuals(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return 2 · scale · error."""
        error = outputs - targets
        return error if self.scale == 0.5 else 2 * self.scale * error

    def hessian_product(
        self, outputs: Tensor, targets: Tensor, vectors: Tensor
    ) -> Tensor:
        """Return 2 · scale · v."""
        return vectors if self.scale == 0.5 else 2 * self.scale * vectors

    def hessian_root(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return √(2 · scale) times the identity (n, C, C)."""
        n, n_outputs = outputs.shape
        eye = torch.eye(n_outputs, dtype=outputs.dtype, device=outputs.device)
        return (eye * (2 * self.scale) ** 0.5).expand(n, n_outputs, n_outputs)

    def __repr__(self) -> str:
        return "SquaredError"


@dataclass(frozen=True, repr=False)
class PoissonError(Loss):
    """Negative log-likelihood of counts, as in ``torch.nn.PoissonNLLLoss``.

    Parameters
    ----------
    log_input : bool, default=True
        Whether outputs are logarithms of rates, or rates.
    eps : float, default=1e-8
        Added to rates before their logarithm is taken.
    """

    log_input: bool = True
    eps: float = 1e-8

    @classmethod
    def of(cls, module: nn.PoissonNLLLoss) -> PoissonError:
        """Return the loss of a torch module, without constant terms."""
        return cls(bool(module.log_input), float(module.eps))

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses (n,)."""
        losses = nn.functional.poisson_nll_loss(
            outputs, targets, self.log_input, eps=self.eps, reduction="none"
        )
        return losses.sum(-1)

    def predict(self, outputs: Tensor) -> Tensor:
        """Return the rates."""
        return outputs.exp() if self.log_input else outputs

    def __repr__(self) -> str:
        return "PoissonError"


@dataclass(frozen=True, repr=False)
class GaussianError(Loss):
    """Negative log-likelihood of a Gaussian whose variance is an output as well.

    For K targets there are 2 K outputs: the means, and the logarithms of the
    variances, which are at least `eps`.

    Parameters
    ----------
    eps : float, default=1e-6
        Smallest variance.
    """

    eps: float = 1e-6

    @classmethod
    def of(cls, module: nn.GaussianNLLLoss) -> GaussianError:
        """Return the loss of a torch module, without constant terms."""
        return cls(float(module.eps))

    def n_outputs(self, targets: Tensor) -> int:
        """Return two for each target."""
        return 2 * super().n_outputs(targets)

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses (n,)."""
        mean, log_variance = outputs.chunk(2, dim=-1)
        variance = log_variance.exp().clamp(min=self.eps)
        losses = variance.log() + (mean - targets).square() / variance
        return 0.5 * losses.sum(-1)

    def predict(self, outputs: Tensor) -> Tensor:
        """Return the means."""
        return outputs.chunk(2, dim=-1)[0]

    def __repr__(self) -> str:
        return "GaussianError"


def _gaussian_log_likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
    return -0.5 * (outputs - targets).square().sum(-1)
