"""Refits of a tangent model: iterations to the minimum for other weights of the rows.

The iterations and the stopping rule of a refit belong here; the objective, and a single
Newton step, are in `_linearized`.
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
# At first, a Newton step is solved for to this relative accuracy only.
_INEXACT = 0.1
# Steps this short relative to the total that do not shrink are rounding errors.
_STUCK = 1e-3


class Tangent(Protocol):
    """The part of `LinearizedModel` that a refit uses."""

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

    Damped Newton iterations with step halving, until a step is below 1e-7 of the
    total change. Removals of few rows keep the Hessian of the trained outputs (a chord
    iteration), so that one factorisation serves all of them.
    """
    shifts = model.shifts(weights)
    removes_few = (model.weights != weights).sum(dim=1) <= len(model.weights) // 20
    # its factors serve every step of the iteration
    systems = model.space.full_systems(shifts)
    gradients = model.gradients_at(weights)
    steps = model.frozen_newton(weights, gradients, shifts, systems)
    chord = removes_few.clone()
    active = torch.ones_like(removes_few)
    previous = torch.full_like(shifts, torch.inf)
    unfinished = torch.zeros_like(removes_few)

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
        proposed, length, total = (
            model.space.squared_norm(z).clamp(min=0).sqrt()
            for z in (moves, moved, steps[index] + moved)
        )
        steps[index] += moved
        tol = max(_REFIT_TOL, 10 * torch.finfo(length.dtype).eps)
        slow = (length > 0.5 * previous[index]) | ~accepted
        # at the end of the precision, exact steps no longer get shorter
        tiny = proposed <= _STUCK * total
        last = slow & ~chord[index] & (accuracy == EXACT)
        done = (accepted & (length <= tol * total)) | (last & (tiny | ~accepted))
        unfinished[index] = done & ~tiny
        # a chord iteration that contracts slowly, or not at all, is replaced by Newton,
        # and an inexact step by an exact one
        if bool((slow & ~chord[index]).any()):
            accuracy = EXACT
        chord[index] &= ~slow
        previous[index] = length
        active[index] = ~done

    _warn_unless_arrived(active | unfinished)
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
        full_outputs, targets = outputs[full], model.targets
        targets = targets.repeat(len(full_outputs), *[1] * (targets.ndim - 1))
        roots = model.loss.hessian_root(full_outputs.reshape(-1, C), targets)
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
    """Shorten moves that raise the objective; return them and which lower it."""
    w, z, lam = weights[index], steps[index], shifts[index]
    start = model.objective(w, z, lam)
    slack = 100 * torch.finfo(start.dtype).eps * start.abs()
    factor = torch.ones_like(start)
    for _ in range(_MAX_HALVINGS):
        raised = model.objective(w, z + factor[:, None] * moves, lam) > start + slack
        if not bool(raised.any()):
            break
        factor = torch.where(raised, factor / 2, factor)
    factor = torch.where(raised, torch.zeros_like(factor), factor)
    return factor[:, None] * moves, ~raised


def _warn_unless_arrived(unfinished: Tensor) -> None:
    n_unfinished = int(unfinished.sum())
    if n_unfinished:
        warnings.warn(
            f"{n_unfinished} of {len(unfinished)} refits of the linearised model did "
            "not reach their minimum: the damping is too small for the curvature. "
            "Increase it: `ridge` of an influence, `damping` of a surrogate.",
            ConvergenceWarning,
            stacklevel=5,
        )
