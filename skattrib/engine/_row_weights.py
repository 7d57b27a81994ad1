"""Class weights: factors on the weights of rows in training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowWeighting:
    """Class weights, as factors on the weights of rows.

    Parameters
    ----------
    factors : Tensor of shape (n,) or None
        Constants; None is 1.
    balanced : int64 Tensor of shape (n,) or None
        Class of each row; the weights of each class are scaled to the same sum. None
        does not balance classes. The factor is Σw / (K · Σw of the class), so it
        depends on every weight.
    """

    factors: Tensor | None = None
    balanced: Tensor | None = None

    @property
    def additive(self) -> bool:
        """Whether the weight of a row affects this row only."""
        return self.balanced is None

    def __call__(self, weights: Tensor) -> Tensor:
        """Return the weights (k, n) in minibatch losses, from sample weights."""
        if self.factors is not None:
            weights = weights * self.factors.to(weights)
        if self.balanced is None:
            return weights

        codes = self.balanced.to(weights.device)
        n_classes = int(codes.max()) + 1
        totals = weights.new_zeros(*weights.shape[:-1], n_classes)
        totals = totals.index_add(-1, codes, weights)
        # a class whose rows all have weight 0 needs no factor
        empty = totals == 0
        mean = totals.sum(dim=-1, keepdim=True) / n_classes
        factors = torch.where(empty, 0.0, mean / totals.masked_fill(empty, 1.0))

        return weights * factors[..., codes]

    def pullback(self, weights: Tensor, derivatives: Tensor) -> Tensor:
        """Turn derivatives (k, q, n) in the result into derivatives in weights."""
        if self.factors is None and self.balanced is None:
            return derivatives
        with torch.enable_grad():
            weights = weights.detach().requires_grad_()
            row_weights = self(weights)
        (in_weights,) = torch.autograd.grad(
            row_weights, weights, derivatives.transpose(0, 1), is_grads_batched=True
        )
        return in_weights.transpose(0, 1)
