"""Forward derivatives of a training run in the weights of its rows, to second order.

One pass through the run serves one direction of weights, so this is for a sample of
rows. It tells how far the straight line that attributions draw can be trusted: the
second derivative is what removing a row does beyond it.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.func import jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from skattrib.engine._functional import FunctionalModule, chunks
from skattrib.engine._losses import Loss
from skattrib.engine._minibatch import NO_BUFFERS, Minibatch, row_shares
from skattrib.engine._modules import activation_size
from skattrib.engine._optimizers import (
    StepDerivative,
    clip_gradient,
    map_state,
    plain_sgd,
)
from skattrib.engine._training import start, train_steps
from skattrib.engine._trajectory import Recipe, TrainingState

# Numbers alive per direction and parameter, and per direction and activation.
_COPIES_PER_PARAM = 16
_COPIES_PER_ACTIVATION = 12


def tangents(
    model: FunctionalModule,
    loss: Loss,
    recipe: Recipe,
    X: Tensor,
    targets: Tensor,
    weights: Tensor,
    directions: Tensor,
    *,
    order: Literal[1, 2] = 2,
    plain_sgd: bool = False,
    memory_bytes: float,
    verbose: int = 0,
) -> tuple[Tensor, ...]:
    """Differentiate the end of a run along directions of its weights.

    Parameters
    ----------
    weights : Tensor of shape (n,)
        Of the rows.
    directions : Tensor of shape (r, n)
        How the weights move.
    order : {1, 2}
        2 differentiates twice.
    plain_sgd : bool
        Take the steps for those of plain SGD, at the same states.
    memory_bytes : float
        As many directions are followed at a time as fit it.
    verbose : int
        Shows progress when above 0.

    Returns
    -------
    tuple of Tensor of shape (r, P)
        First derivatives of the parameters, and second ones.
    """
    _load_forward_mode()
    run = _Run(model, loss, recipe, X, targets, weights, order, plain_sgd)
    size = run.n_directions(memory_bytes)
    parts, found = list(chunks(len(directions), size)), []
    total = len(parts) * recipe.n_steps
    with tqdm(total=total, desc="following steps", disable=not verbose) as bar:
        for part in parts:
            found.append(run.follow(directions[part].to(X), bar.update))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


@functools.cache
def _load_forward_mode() -> None:
    """Have torch load its rules of forward mode, which warns of what torch calls."""
    zero = torch.zeros(())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        jvp(torch.sin, (zero,), (zero,))


@dataclass(frozen=True)
class _Run:
    model: FunctionalModule
    loss: Loss
    recipe: Recipe
    X: Tensor
    targets: Tensor
    weights: Tensor
    order: int
    plain_sgd: bool

    def n_directions(self, memory_bytes: float) -> int:
        """Return how many directions fit the memory."""
        batches = self.recipe.batches
        batch = len(self.X) if batches is None else len(batches[0])
        numbers = (
            _COPIES_PER_PARAM * self.model.n_params
            + _COPIES_PER_ACTIVATION
            * batch
            * activation_size(self.model.module, self.X)
        )
        return max(1, int(memory_bytes / (numbers * self.X.element_size())))

    def follow(
        self, directions: Tensor, on_step: Callable[[], object]
    ) -> tuple[Tensor, ...]:
        """Return derivatives (r, P) of the parameters at the end, by order."""
        optimizer = self.recipe.optimizer_on(self.X)
        if self.plain_sgd:
            optimizer = plain_sgd(optimizer)
        before = start(self.recipe, self.X, 1)
        still = self.X.new_zeros(len(directions), self.model.n_params)
        nothing = map_state(torch.zeros_like, optimizer.initial_state(still))
        moving = [StepDerivative(still, nothing)] * self.order
        run = train_steps(
            self.model,
            self.loss,
            self.recipe,
            self.X,
            self.targets,
            self.weights[None],
            before,
            0,
            self.recipe.n_steps,
        )
        for t, after, _ in run:
            gradient, *in_gradient = self._gradient(
                before, t, directions, [d.params for d in moving]
            )
            rate, _ = self.recipe.step(t, self.X.device)
            moving = optimizer.pushforward(
                before.params[0],
                gradient,
                map_state(lambda value: value[0], before.optimizer),
                self.recipe.n_before + t,
                rate,
                moving,
                in_gradient,
            )
            before = after
            on_step()
        return tuple(d.params for d in moving)

    def _gradient(
        self, before: TrainingState, t: int, directions: Tensor, moving: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """Return a step's gradient (P,) and its derivatives (r, P) along the paths."""
        _, rows = self.recipe.step(t, self.X.device)
        weights = self.weights
        if rows is not None:
            weights, directions = weights[rows], directions[:, rows]
        minibatch = Minibatch(self.model, self.loss, self.X, self.targets)

        def clipped(params: Tensor, w: Tensor) -> Tensor:
            shares = row_shares(w[None])[0]
            gradient = minibatch.gradient(params, NO_BUFFERS, shares, rows, step=t)
            return clip_gradient(gradient, self.recipe.clip_norm)

        params, here = before.params[0], self.X.new_zeros(())
        one = torch.ones_like(here)

        def derivatives(
            direction: Tensor, velocity: Tensor, *acceleration: Tensor
        ) -> tuple[Tensor, ...]:
            def at(s: Tensor) -> Tensor:
                moved = params + s * velocity
                for bend in acceleration:
                    moved = moved + 0.5 * s**2 * bend
                return clipped(moved, weights + s * direction)

            def slope(s: Tensor) -> Tensor:
                found: Tensor = jvp(at, (s,), (one,))[1]
                return found

            if not acceleration:
                return (slope(here),)
            return tuple(jvp(slope, (here,), (one,)))

        with sdpa_kernel(SDPBackend.MATH):
            return clipped(params, weights), *vmap(derivatives)(directions, *moving)
