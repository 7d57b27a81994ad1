"""The gradient of a minibatch's loss: one function, whoever asks.

    G(parameters, buffers, shares; rows, seed, step) → (gradient, new buffers)

with shares w / Σ w of the rows. Training, replay, the reverse sweep and the forward one
call nothing else. Today no layer has buffers that move, and rows do not meet; what
draws random numbers or shares statistics between rows has its place in `losses`.
Anything faster, such as second derivatives written out, declares what it assumes and is
compared with this function.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, vmap

from skattrib.engine._functional import FunctionalModule
from skattrib.engine._losses import Loss

Buffers = Mapping[str, Tensor]

NO_BUFFERS: Buffers = {}


def row_shares(weights: Tensor) -> Tensor:
    """Return w / Σ w of the rows of a batch (M, n); zero where all weights are zero."""
    total = weights.sum(dim=1, keepdim=True)
    return weights / torch.where(total > 0, total, 1.0)


@dataclass(frozen=True)
class Minibatch:
    """G of one module, loss and set of training rows.

    ``rows`` of the methods are indices (B,) or None for all rows; ``seed`` and ``step``
    fix what a module draws.
    """

    model: FunctionalModule
    loss: Loss
    X: Tensor
    targets: Tensor

    def losses(
        self,
        params: Tensor,
        buffers: Buffers,
        shares: Tensor,
        rows: Tensor | None,
        seed: int = 0,
        step: int = 0,
    ) -> tuple[Tensor, Buffers]:
        """Return the losses (B,) of the rows of one model (P,), and its new buffers."""
        X, targets = self.X, self.targets
        if rows is not None:
            X, targets = X[rows], targets[rows]
        return self.loss.values(self.model.outputs(params, X), targets), buffers

    def stacked_losses(
        self,
        params: Tensor,
        buffers: Buffers,
        shares: Tensor,
        rows: Tensor | None,
        seed: int = 0,
        step: int = 0,
    ) -> tuple[Tensor, Buffers]:
        """Return the losses (M, B) of a stack of models (M, P), and new buffers."""
        if rows is not None:  # once, for all models
            part = Minibatch(self.model, self.loss, self.X[rows], self.targets[rows])
            return part.stacked_losses(params, buffers, shares, None, seed, step)
        if len(params) == 1:
            values, after = self.losses(
                params[0], _first(buffers), shares[0], None, seed, step
            )
            return values[None], {name: value[None] for name, value in after.items()}

        def one(vector: Tensor, own: Buffers, share: Tensor) -> tuple[Tensor, Buffers]:
            return self.losses(vector, own, share, None, seed, step)

        found: tuple[Tensor, Buffers] = vmap(one)(params, dict(buffers), shares)
        return found

    def __call__(
        self,
        params: Tensor,
        buffers: Buffers,
        shares: Tensor,
        rows: Tensor | None,
        seed: int = 0,
        step: int = 0,
    ) -> tuple[Tensor, Buffers, Tensor]:
        """Return gradients (M, P) of a stack, new buffers, and mean losses (M,).

        A model whose shares are all zero here has loss 0, hence a zero gradient.
        """
        params = params.detach().requires_grad_()
        values, buffers = self.stacked_losses(params, buffers, shares, rows, seed, step)
        mean = (values * shares).sum(dim=1)
        (gradient,) = torch.autograd.grad(mean.sum(), params)
        return gradient, buffers, mean.detach()

    def gradient(
        self,
        params: Tensor,
        buffers: Buffers,
        shares: Tensor,
        rows: Tensor | None,
        seed: int = 0,
        step: int = 0,
    ) -> Tensor:
        """Return the gradient (P,) of one model, for transforms of torch.func."""

        def mean_loss(vector: Tensor) -> Tensor:
            values, _ = self.losses(vector, buffers, shares, rows, seed, step)
            return values @ shares

        found: Tensor = grad(mean_loss)(params)
        return found


def _first(buffers: Buffers) -> Buffers:
    return {name: value[0] for name, value in buffers.items()}
