"""The record of a training run: the recipe that replays it, and kept states."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from skattrib.engine._optim import Optimizer, OptimizerState

Record = Literal["recipe", "checkpoints", "states"]
#: (step from 0, number of steps) → factor on the learning rate.
Schedule = Callable[[int, int], float]

_WARM_UP = 0.1


def _constant(step: int, n_steps: int) -> float:
    return 1.0


def _cosine(step: int, n_steps: int) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * step / n_steps))


def _linear_warmup(step: int, n_steps: int) -> float:
    """Rise over the first tenth of the steps, then fall linearly to zero."""
    warm = max(1, round(_WARM_UP * n_steps))
    if step < warm:
        return (step + 1) / warm
    return (n_steps - step) / max(1, n_steps - warm)


SCHEDULES: dict[str, Schedule] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear_warmup": _linear_warmup,
}


@dataclass(frozen=True)
class Recipe:
    """Everything that fixes a run except the weights of the rows.

    Attributes
    ----------
    optimizer : Optimizer
    learning_rates : Tensor of shape (T,), float64, on the CPU
        One per step, the schedule applied.
    initial : Tensor of shape (P,)
        Parameters before the first step.
    batches : list of int arrays or None
        Ordered row indices of every step; None is the full batch each time.
    clip_norm : float or None
    """

    optimizer: Optimizer
    learning_rates: Tensor
    initial: Tensor
    batches: list[np.ndarray] | None = None
    clip_norm: float | None = None

    @property
    def n_steps(self) -> int:
        """Number of optimizer steps."""
        return len(self.learning_rates)

    @property
    def path_length(self) -> float:
        """Sum of the step sizes of the whole run."""
        return self.optimizer.path_length(self.learning_rates)

    def steps(self, device: torch.device) -> Iterator[tuple[int, float, Tensor | None]]:
        """Yield (t from 1, learning rate, row indices or None for all rows)."""
        for t, rate in enumerate(self.learning_rates.tolist(), start=1):
            rows = None
            if self.batches is not None:
                rows = torch.as_tensor(self.batches[t - 1], device=device)
            yield t, rate, rows


@dataclass(frozen=True)
class TrainingState:
    """Parameters (M, P) and optimizer state after a step."""

    params: Tensor
    optimizer: OptimizerState

    def cpu(self) -> TrainingState:
        """Return the state on the CPU."""
        moments = OptimizerState(*(moment.cpu() for moment in self.optimizer))
        return TrainingState(self.params.cpu(), moments)


@dataclass(frozen=True)
class Trajectory:
    """What a fitted wrapper remembers of its training.

    Attributes
    ----------
    recipe : Recipe
    row_weights : Tensor of shape (n,)
        The sample weights of the run.
    second_moment : Tensor of shape (P,) or None
        Bias-corrected second moment of the gradient at the end (Adam, AdamW).
    states : dict of int to TrainingState
        States after the steps kept by ``record``; 0 is the start.
    """

    recipe: Recipe
    row_weights: Tensor
    second_moment: Tensor | None = None
    states: dict[int, TrainingState] = field(default_factory=dict)


def steps_to_keep(record: Record, n_steps: int) -> set[int]:
    """Return the steps whose states ``record`` keeps."""
    if record == "states":
        return set(range(n_steps + 1))
    if record == "checkpoints":
        return set(range(0, n_steps + 1, max(1, round(n_steps**0.5))))
    return set()


def epoch_batches(
    n_rows: int, batch_size: int | None, n_epochs: int, seed: int
) -> list[np.ndarray] | None:
    """Draw the ordered minibatches of a run; None where every step takes all rows."""
    if batch_size is None or batch_size >= n_rows:
        return None
    rng = np.random.RandomState(seed)
    cuts = range(batch_size, n_rows, batch_size)
    return [
        rows
        for _ in range(n_epochs)
        for rows in np.split(rng.permutation(n_rows), cuts)
    ]
