"""Forward derivatives of a training run in the weights of its rows, to second order.

One pass through the run serves one direction of weights, so this is for a sample of
rows. It shows how far attributions, which are linear in the weights, can be trusted:
the second derivative is the effect of a removal beyond first order.
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

from skattrib._progress import tqdm
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
        Differentiate steps of plain SGD instead, at the same states.
    memory_bytes : float
        Determines how many directions are followed at a time.
    verbose : int
        Shows progress when above 0.

    Returns
    -------
    tuple of Tensor of shape (r, P)
        First derivatives of the parameters, and second ones.
    """
    _load_forward_mode()
    run = _Run(model, loss, recipe, X, targets, weights, order, plain_sgd)
    n_at_once = run.n_directions(memory_bytes)
    batches = list(chunks(len(directions), n_at_once))
    derivatives = []
    total = len(batches) * recipe.n_steps
    with tqdm(total=total, desc="following steps", disable=not verbose) as bar:
        for batch in batches:
            derivatives.append(run.follow(directions[batch].to(X), bar.update))
    return tuple(torch.cat(batches) for batches in zip(*derivatives, strict=True))


@functools.cache
def _load_forward_mode() -> None:
    """Make torch load its rules of forward mode, which warn of torch's own calls."""
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
        zeros = self.X.new_zeros(len(directions), self.model.n_params)
        state_zeros = map_state(torch.zeros_like, optimizer.initial_state(zeros))
        derivatives = [StepDerivative(zeros, state_zeros)] * self.order
        steps = train_steps(
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

        for t, after, _ in steps:
            gradient, *in_gradient = self._gradient(
                before, t, directions, [d.params for d in derivatives]
            )
            rate, _ = self.recipe.step(t, self.X.device)
            derivatives = optimizer.pushforward(
                before.params[0],
                gradient,
                map_state(lambda value: value[0], before.optimizer),
                self.recipe.n_before + t,
                rate,
                derivatives,
                in_gradient,
            )
            before = after
            on_step()

        return tuple(d.params for d in derivatives)

    def _gradient(
        self, before: TrainingState, t: int, directions: Tensor, paths: list[Tensor]
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

        params = before.params[0]
        zero = self.X.new_zeros(())
        one = torch.ones_like(zero)

        def derivatives(
            direction: Tensor, velocity: Tensor, *acceleration: Tensor
        ) -> tuple[Tensor, ...]:
            def at(s: Tensor) -> Tensor:
                moved = params + s * velocity
                for curvature in acceleration:
                    moved = moved + 0.5 * s**2 * curvature
                return clipped(moved, weights + s * direction)

            def slope(s: Tensor) -> Tensor:
                first_derivative: Tensor = jvp(at, (s,), (one,))[1]
                return first_derivative

            if not acceleration:
                return (slope(zero),)
            return tuple(jvp(slope, (zero,), (one,)))

        with sdpa_kernel(SDPBackend.MATH):
            return clipped(params, weights), *vmap(derivatives)(directions, *paths)
