"""Class weights of libraries that count rows, whatever these weigh."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from skattrib.engine._row_weights import RowWeighting


@dataclass(frozen=True)
class PresentWeighting(RowWeighting):
    """Balances classes by the number of their rows that are present.

    Parameters
    ----------
    own : Tensor of shape (n,) or None
        Weights of the rows when all are present; None is 1. What a row's weight is of
        its own is how far it is present.
    """

    own: Tensor | None = None

    def __call__(self, weights: Tensor) -> Tensor:
        """Return the weights (k, n) in the loss, from sample weights."""
        if self.own is None:
            return super().__call__(weights)
        own = self.own.to(weights)
        present = weights / own.masked_fill(own == 0, 1.0)
        return own * super().__call__(present)
