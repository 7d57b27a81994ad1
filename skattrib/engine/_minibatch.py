"""The gradient of a minibatch's loss: one function for training and derivatives.

    G(vector, shares; rows, seed, step) → (gradient, new statistics)

with shares w / Σ w of the rows, and the vector of parameters and running statistics.
Training, replay, the reverse sweep and the forward sweep all use it. Rows may draw
random numbers and meet in batch statistics: both are functions of these arguments, see
`skattrib.engine._row_context`. A faster implementation, such as second derivatives in
closed form, states what it assumes and is compared with this function.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, vmap

from skattrib.engine._functional import FunctionalModule
from skattrib.engine._losses import Loss


def row_shares(weights: Tensor) -> Tensor:
    """Return w / Σ w of the rows of a batch (M, n); zero where all weights are zero."""
    total = weights.sum(dim=1, keepdim=True)
    return weights / torch.where(total > 0, total, 1.0)


def same_seeds(n_models: int, seed: int, X: Tensor) -> Tensor:
    """Return the seeds (M,) of models that draw the same random numbers."""
    return torch.full((n_models,), seed, dtype=torch.int64, device=X.device)


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
        vector: Tensor,
        shares: Tensor,
        rows: Tensor | None,
        seed: Tensor,
        step: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Return losses (B,) of the rows of one model, and its new statistics."""
        return self._losses(vector, shares, *self._picked(rows), seed, step)

    def _picked(self, rows: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows, their targets and their numbers."""
        if rows is None:
            every = torch.arange(len(self.X), device=self.X.device)
            return self.X, self.targets, every
        return self.X[rows], self.targets[rows], rows

    def _losses(
        self,
        vector: Tensor,
        shares: Tensor,
        X: Tensor,
        targets: Tensor,
        ids: Tensor,
        seed: Tensor,
        step: int,
    ) -> tuple[Tensor, Tensor]:
        counted = self._in_statistics(shares, targets)
        outputs, statistics = self.model.training_outputs(
            vector, X, counted, ids, seed, step
        )
        return self.loss.values(outputs, targets), statistics

    def _in_statistics(self, shares: Tensor, targets: Tensor) -> Tensor:
        """Return the shares of rows in batch statistics.

        The classes' weights in a loss, as in torch's, do not count there.
        """
        factors = self.loss.row_weights(targets) if self.model.behaviour.mixes else None
        if factors is None:
            return shares
        factors = factors.to(shares)
        known = factors > 0
        counts = torch.where(known, shares / torch.where(known, factors, 1.0), 0.0)
        return row_shares(counts[None])[0]

    def stacked_losses(
        self,
        vectors: Tensor,
        shares: Tensor,
        rows: Tensor | None,
        seeds: Tensor,
        step: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Return losses (M, B) of a stack of models (M, P + B), and new statistics."""
        picked = self._picked(rows)  # once, for all models
        if len(vectors) == 1:
            values, statistics = self._losses(
                vectors[0], shares[0], *picked, seeds[0], step
            )
            return values[None], statistics[None]

        def of_model(
            vector: Tensor, share: Tensor, seed: Tensor
        ) -> tuple[Tensor, Tensor]:
            return self._losses(vector, share, *picked, seed, step)

        found: tuple[Tensor, Tensor] = vmap(of_model)(vectors, shares, seeds)
        return found

    def __call__(
        self,
        vectors: Tensor,
        shares: Tensor,
        rows: Tensor | None,
        seeds: Tensor,
        step: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return gradients (M, P) of a stack, new statistics, and mean losses (M,).

        A model whose shares are all zero here has loss 0, hence a zero gradient.
        """
        vectors = vectors.detach().requires_grad_()
        values, statistics = self.stacked_losses(vectors, shares, rows, seeds, step)
        mean = (values * shares).sum(dim=1)
        (gradient,) = torch.autograd.grad(mean.sum(), vectors)
        gradient = gradient[:, : self.model.n_params]
        return gradient, statistics.detach(), mean.detach()

    def moved(
        self,
        vector: Tensor,
        shares: Tensor,
        rows: Tensor | None,
        seed: Tensor,
        step: int = 0,
    ) -> Tensor:
        """Return gradient and new statistics (P + B,), for transforms of torch.func."""

        def mean_loss(vector: Tensor) -> tuple[Tensor, Tensor]:
            values, statistics = self.losses(vector, shares, rows, seed, step)
            return values @ shares, statistics

        gradient, statistics = grad(mean_loss, has_aux=True)(vector)
        return self._joined(gradient, statistics)

    def plainly_moved(
        self,
        vector: Tensor,
        shares: Tensor,
        rows: Tensor | None,
        seed: Tensor,
        step: int = 0,
    ) -> Tensor:
        """Return the same with its graph, where torch.func cannot go."""
        with torch.enable_grad():
            if not vector.requires_grad:
                vector = vector.detach().requires_grad_()
            values, statistics = self.losses(vector, shares, rows, seed, step)
            gradient = torch.autograd.grad(values @ shares, vector, create_graph=True)
            return self._joined(gradient[0], statistics)

    def _joined(self, gradient: Tensor, statistics: Tensor) -> Tensor:
        if not self.model.n_buffers:
            return gradient
        return torch.cat([gradient[: self.model.n_params], statistics])
