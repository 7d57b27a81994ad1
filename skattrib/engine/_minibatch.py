"""The gradient of a minibatch's loss: one function for training and derivatives.

    G(parameters, buffers, shares; rows, seed, step) → (gradient, new buffers)

with shares w / Σ w of the rows. Training, replay, the reverse sweep and the forward
sweep all use it. So far no layer changes its buffers, and rows are independent; layers
that draw random numbers or share statistics between rows would be handled in `losses`.
A faster implementation, such as second derivatives in closed form, states what it
assumes and is compared with this function.
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
    determine the random numbers of a module.
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
            minibatch = Minibatch(
                self.model, self.loss, self.X[rows], self.targets[rows]
            )
            return minibatch.stacked_losses(params, buffers, shares, None, seed, step)
        if len(params) == 1:
            values, after = self.losses(
                params[0], _first(buffers), shares[0], None, seed, step
            )
            return values[None], {name: value[None] for name, value in after.items()}

        def losses_of_model(
            vector: Tensor, own_buffers: Buffers, share: Tensor
        ) -> tuple[Tensor, Buffers]:
            return self.losses(vector, own_buffers, share, None, seed, step)

        losses_and_buffers: tuple[Tensor, Buffers] = vmap(losses_of_model)(
            params, dict(buffers), shares
        )
        return losses_and_buffers

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

        gradient: Tensor = grad(mean_loss)(params)
        return gradient

    def plain_gradient(
        self,
        params: Tensor,
        buffers: Buffers,
        shares: Tensor,
        rows: Tensor | None,
        seed: int = 0,
        step: int = 0,
    ) -> Tensor:
        """Return the same with its graph, where torch.func cannot go."""
        with torch.enable_grad():
            if not params.requires_grad:
                params = params.detach().requires_grad_()
            values, _ = self.losses(params, buffers, shares, rows, seed, step)
            return torch.autograd.grad(values @ shares, params, create_graph=True)[0]


def _first(buffers: Buffers) -> Buffers:
    return {name: value[0] for name, value in buffers.items()}
