"""Refits of a tangent model: iterations to the minimum for other weights of the rows.

How a refit gets there, and when it has arrived, belongs here; what is minimised, and a
single Newton step, is in `_linearized`.
"""

from __future__ import annotations

import warnings
from typing import Protocol

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from skattrib.engine._losses import Loss
from skattrib.engine._parameter_space import EXACT, FullSystems, Space

_MAX_NEWTON = 25
_MAX_HALVINGS = 12
_REFIT_TOL = 1e-7
# At first, a Newton step need not be solved for better than it helps.
_INEXACT = 0.1
# Steps this short relative to the whole way that do not shrink are rounding.
_STUCK = 1e-3


class Tangent(Protocol):
    """What a refit asks of `LinearizedModel`."""

    weights: Tensor
    outputs: Tensor
    targets: Tensor
    loss: Loss
    space: Space

    def shifts(self, weights: Tensor) -> Tensor:
        """Return λ of the summed loss for weights (k, n)."""

    def gradients_at(self, weights: Tensor) -> Tensor:
        """Return the gradients where training stopped, in coordinates (k, D)."""

    def rho(self, weights: Tensor, outputs: Tensor) -> Tensor:
        """Return the gradient in the outputs, (k, n·C)."""

    def frozen_newton(
        self, weights: Tensor, gradients: Tensor, shifts: Tensor, systems: FullSystems
    ) -> Tensor:
        """Return −H(w)⁻¹g with the Hessian at the trained outputs."""

    def objective(self, weights: Tensor, steps: Tensor, shifts: Tensor) -> Tensor:
        """Return the linearised objective of each step, (k,)."""


def refit(model: Tangent, weights: Tensor) -> Tensor:
    """Refit the linearised model to the weighted rows, (k, D).

    Damped Newton with step halving until the step is below 1e-7 of the whole
    way. Removals of few rows keep the Hessian of the trained outputs (a chord
    iteration), which costs one factorisation for all of them.
    """
    shifts = model.shifts(weights)
    few = (model.weights != weights).sum(dim=1) <= len(model.weights) // 20
    # its factors serve every step of the iteration
    systems = model.space.full_systems(shifts)
    gradients = model.gradients_at(weights)
    steps = model.frozen_newton(weights, gradients, shifts, systems)
    chord = few.clone()
    active = torch.ones_like(few)
    previous = torch.full_like(shifts, torch.inf)
    short = torch.zeros_like(few)
    accuracy = _INEXACT
    for _ in range(_MAX_NEWTON):
        index = active.nonzero()[:, 0]
        if not len(index):
            break
        moves = _newton_move(
            model,
            weights[index],
            steps[index],
            shifts[index],
            chord[index],
            systems,
            accuracy,
        )
        moved, accepted = _halve(model, weights, steps, moves, shifts, index)
        wanted, size, whole = (
            model.space.squared_norm(z).clamp(min=0).sqrt()
            for z in (moves, moved, steps[index] + moved)
        )
        steps[index] += moved
        tol = max(_REFIT_TOL, 10 * torch.finfo(size.dtype).eps)
        slow = (size > 0.5 * previous[index]) | ~accepted
        # at the end of the precision, exact steps no longer get shorter
        tiny = wanted <= _STUCK * whole
        last = slow & ~chord[index] & (accuracy == EXACT)
        done = (accepted & (size <= tol * whole)) | (last & (tiny | ~accepted))
        short[index] = done & ~tiny
        # a chord that contracts slowly, or not at all, gives way to Newton, and an
        # inexact step to an exact one
        if bool((slow & ~chord[index]).any()):
            accuracy = EXACT
        chord[index] &= ~slow
        previous[index] = size
        active[index] = ~done
    _warn_unless_arrived(active | short)
    return steps


def _newton_move(
    model: Tangent,
    weights: Tensor,
    steps: Tensor,
    shifts: Tensor,
    chord: Tensor,
    systems: FullSystems,
    accuracy: float,
) -> Tensor:
    k, (n, C) = len(weights), model.outputs.shape
    outputs = model.outputs + model.space.train_outputs(steps).view(k, n, C)
    gradients = model.space.gradient(model.rho(weights, outputs), shifts, steps)
    moves = torch.zeros_like(steps)
    if bool(chord.any()):
        moves[chord] = model.frozen_newton(
            weights[chord], gradients[chord], shifts[chord], systems
        )
    full = ~chord
    if bool(full.any()):
        some, targets = outputs[full], model.targets
        targets = targets.repeat(len(some), *[1] * (targets.ndim - 1))
        roots = model.loss.hessian_root(some.reshape(-1, C), targets)
        moves[full] = model.space.solve_subsets(
            gradients[full],
            weights[full],
            roots.view(-1, n, C, C),
            shifts[full],
            accuracy,
        )
    return moves


def _halve(
    model: Tangent,
    weights: Tensor,
    steps: Tensor,
    moves: Tensor,
    shifts: Tensor,
    index: Tensor,
) -> tuple[Tensor, Tensor]:
    """Shorten moves that raise the objective; return them and which went down."""
    w, z, lam = weights[index], steps[index], shifts[index]
    start = model.objective(w, z, lam)
    slack = 100 * torch.finfo(start.dtype).eps * start.abs()
    factor = torch.ones_like(start)
    for _ in range(_MAX_HALVINGS):
        bad = model.objective(w, z + factor[:, None] * moves, lam) > start + slack
        if not bool(bad.any()):
            break
        factor = torch.where(bad, factor / 2, factor)
    factor = torch.where(bad, torch.zeros_like(factor), factor)
    return factor[:, None] * moves, ~bad


def _warn_unless_arrived(short: Tensor) -> None:
    n_short = int(short.sum())
    if n_short:
        warnings.warn(
            f"{n_short} of {len(short)} refits of the linearised model stopped short "
            "of their minimum: the damping is too small for the curvature. Increase "
            "it: `ridge` of an influence, `damping` of a surrogate.",
            ConvergenceWarning,
            stacklevel=5,
        )
