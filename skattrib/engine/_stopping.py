"""When runs stop: validation losses of a stack of models, epoch by epoch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from skattrib.engine._functional import FunctionalModule
from skattrib.engine._losses import Loss
from skattrib.engine._trajectory import TrainingState

# Copies of the outputs and activations of validation rows, one model at a time.
_MOST_ROWS = 8192


@dataclass(frozen=True)
class Validation:
    """What decides when a run stops.

    Attributes
    ----------
    X, targets : Tensor of shape (v, ...)
        Validation rows, as the module and its loss take them.
    epoch : int
        Steps of an epoch.
    patience : int
        Epochs without a smaller loss after which a run ends.
    min_delta : float
        How much smaller it must be.
    restore_best : bool
        Whether the epoch of the smallest loss is taken, or the last one.
    decay : float or None
        Of the exponential average of the states that answers queries, if one does.
    """

    X: Tensor
    targets: Tensor
    epoch: int
    patience: int
    min_delta: float
    restore_best: bool
    decay: float | None = None


class Watch:
    """Follows the validation losses of M models, and keeps where each stops.

    Attributes
    ----------
    curves : list of Tensor of shape (M,)
        Validation loss after each epoch.
    stops : int64 Tensor of shape (M,)
        Number of steps of each model.
    vectors : Tensor of shape (M, P + B)
        What answers queries then.
    state : TrainingState or None
        That of the first model's stop, with all models.
    """

    def __init__(
        self, model: FunctionalModule, loss: Loss, validation: Validation, n_models: int
    ) -> None:
        self._model, self._loss, self._validation = model, loss, validation
        device = validation.X.device
        self._best = torch.full((n_models,), torch.inf, device=device)
        self._waiting = torch.zeros(n_models, dtype=torch.int64, device=device)
        self._running = torch.ones(n_models, dtype=torch.bool, device=device)
        self._average: Tensor | None = None
        self.curves: list[Tensor] = []
        self.stops = torch.zeros(n_models, dtype=torch.int64, device=device)
        self.vectors: Tensor | None = None
        self.state: TrainingState | None = None

    def __call__(self, t: int, state: TrainingState) -> bool:
        """Look at the state after t steps; return whether all models have stopped."""
        decay = self._validation.decay
        vectors = state.params
        if decay is not None:
            if self._average is not None:
                vectors = decay * self._average + (1.0 - decay) * vectors
            self._average = vectors
        if t % self._validation.epoch:
            return False

        losses = self.losses(vectors)
        self.curves.append(losses.cpu())
        better = losses < self._best - self._validation.min_delta
        better &= self._running
        self._best = torch.where(better, losses, self._best)
        taken = better if self._validation.restore_best else self._running
        if self.vectors is None:
            taken = torch.ones_like(taken)
            self.vectors = vectors
        self.vectors = torch.where(taken[:, None], vectors, self.vectors)
        self.stops = torch.where(taken, t, self.stops)
        if taken[0]:
            self.state = state
        self._waiting = torch.where(better, 0, self._waiting + 1)
        self._running &= self._waiting < self._validation.patience
        return not bool(self._running.any())

    @torch.no_grad()
    def losses(self, vectors: Tensor) -> Tensor:
        """Return the mean loss (M,) of the validation rows."""
        X, targets = self._validation.X, self._validation.targets
        totals = []
        for vector in vectors:
            parts = zip(X.split(_MOST_ROWS), targets.split(_MOST_ROWS), strict=True)
            found = [
                self._loss.values(self._model.outputs(vector, rows), of_rows).sum()
                for rows, of_rows in parts
            ]
            totals.append(torch.stack(found).sum() / len(X))
        return torch.stack(totals)
