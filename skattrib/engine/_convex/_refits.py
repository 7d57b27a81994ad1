"""Newton's method for a linear model on other weights of its rows.

Every weighting has its own Hessians. Where few rows are left out, that of all rows
serves (a chord iteration), as long as it contracts. An l1 penalty makes each step a
quadratic problem with l1 terms, which is solved exactly.
"""

from __future__ import annotations

import warnings
from typing import Protocol

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from skattrib.engine._convex._blocks import Blocks
from skattrib.engine._convex._lasso import minimize_quadratic
from skattrib.engine._convex._objective import Objective
from skattrib.engine._convex._plan import ConvexPlan
from skattrib.exceptions import FaithfulnessWarning

_MAX_NEWTON, _MAX_CHORD, _MAX_HALVINGS = 50, 25, 30
# Outputs have arrived when they change by less than this, relative to the largest.
_TOLERANCE = 1e-10
# Relative accuracy of conjugate gradients where one move is all, and where others
# follow: near the minimum gradients are rounding, and cannot be solved for exactly.
_ACCURACY, _ACCURACY_OF_MOVES = 1e-9, 1e-3
# Share of the rows that may be missing for a chord iteration to be tried.
_FEW = 20
# A chord iteration that contracts by less than this gives way to Newton.
_CONTRACTION = 0.5
# Curvature, relative to that of the fit, of a loss that has run to infinity.
_FLAT = 1e-9


class Refitted(Protocol):
    """The part of `ConvexRefits` that a refit uses."""

    objective: Objective
    blocks: Blocks
    plan: ConvexPlan
    outputs: Tensor
    left: Tensor
    row_weights: Tensor
    curvature: Tensor
    is_singular: bool

    def solve_without_factor(
        self,
        rhs: Tensor,
        row_weights: Tensor,
        scale: float,
        curvature: Tensor | None = None,
        accuracy: float = ...,
    ) -> Tensor:
        """Return solutions (k, D, C) by conjugate gradients."""

    def solve_whole(self, rhs: Tensor, scales: Tensor) -> Tensor:
        """Return solutions (k, D, C) with the Hessian of all rows."""


def refit(model: Refitted, weights: Tensor) -> Tensor:
    """Return the steps (k, D, C) to the minima for sample weights (k, n)."""
    objective = model.objective
    row_weights, scales = objective.weighting(weights), objective.scale(weights)
    steps = torch.zeros(len(weights), *objective.params.shape, dtype=torch.double)
    todo = torch.ones(len(weights), dtype=torch.bool)
    has_chord = not (objective.has_l1 or objective.loss.quadratic)
    if has_chord and model.plan.solver != "cg":
        missing = (weights != objective.weights).sum(dim=1)
        few = (missing <= objective.rows.n_rows // _FEW) & objective.weighting.additive
        if bool(few.any()):
            found, arrived = _chord(model, row_weights[few], scales[few])
            steps[few] = found
            todo[few] = ~arrived
    index = todo.nonzero()[:, 0]
    if not len(index):
        return steps
    minimize = _together
    if objective.has_l1 or model.plan.solver == "cg":
        minimize = _one_by_one
    steps[index], arrived, is_open = minimize(model, row_weights[index], scales[index])
    is_quadratic = objective.loss.quadratic
    n_unfinished = int((~arrived | (is_open & (not is_quadratic))).sum())
    n_open = int(is_open.sum()) if is_quadratic else 0
    if n_unfinished and not model.is_singular:
        warnings.warn(
            f"{n_unfinished} of {len(weights)} refits did not reach their minimum: "
            "without a penalty, what is left of the rows may have none (classes that a "
            "plane separates, counts that are all 0). Use a penalty, or keep more "
            "units.",
            ConvergenceWarning,
            stacklevel=5,
        )
    if n_open and not model.is_singular:
        warn_open(n_open, len(weights))
    return steps


def warn_open(n_open: int, n_weightings: int) -> None:
    """Warn that what is left of the rows does not determine the coefficients."""
    warnings.warn(
        f"In {n_open} of {n_weightings} weightings the rows that are left do not "
        "determine all coefficients, and no penalty does: of all solutions, the one "
        "that changes least is taken, where training takes another. Use a penalty, "
        "such as Ridge, or keep more units.",
        FaithfulnessWarning,
        stacklevel=6,
    )


def _gradient(
    model: Refitted, row_weights: Tensor, scale: Tensor, steps: Tensor, outputs: Tensor
) -> Tensor:
    """Return gradients (k, D, C), without that of an l1 penalty."""
    objective = model.objective
    residuals = objective.loss.residuals(outputs, objective.targets)
    gradient = objective.rows.gradient(row_weights[..., None] * residuals)
    params = objective.params + steps
    return gradient + scale[:, None, None] * (objective.l2 * params - model.left)


def _chord(
    model: Refitted, row_weights: Tensor, scales: Tensor
) -> tuple[Tensor, Tensor]:
    """Return steps with the Hessian of all rows, and which of them arrived."""
    objective, n = model.objective, len(row_weights)
    steps = torch.zeros(n, *objective.params.shape, dtype=torch.double)
    arrived = torch.zeros(n, dtype=torch.bool)
    active = torch.ones(n, dtype=torch.bool)
    outputs = model.outputs.expand(n, -1, -1).clone()
    previous = torch.full((n,), torch.inf, dtype=torch.double)
    for _ in range(_MAX_CHORD):
        index = active.nonzero()[:, 0]
        if not len(index):
            break
        args = row_weights[index], scales[index], steps[index], outputs[index]
        moves = -model.solve_whole(_gradient(model, *args), scales[index])
        changes = objective.rows.outputs(moves)
        steps[index] += moves
        outputs[index] += changes
        length = changes.abs().flatten(1).amax(dim=1)
        largest = outputs[index].abs().flatten(1).amax(dim=1).clamp(min=1.0)
        done = length <= _TOLERANCE * largest
        slow = ~(length <= _CONTRACTION * previous[index])
        arrived[index] = done
        previous[index] = length
        active[index] = ~(done | slow)
    return steps, arrived


def _together(
    model: Refitted, row_weights: Tensor, scales: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return steps by Newton's method with halving, for many weightings at a time.

    Also which arrived at a minimum, and which of these are one of many.
    """
    objective, n = model.objective, len(row_weights)
    steps = torch.zeros(n, *objective.params.shape, dtype=torch.double)
    outputs = model.outputs.expand(n, -1, -1).clone()
    values = _values(model, row_weights, scales, steps, outputs)
    active = torch.ones(n, dtype=torch.bool)
    arrived, is_open = torch.zeros_like(active), torch.zeros_like(active)
    for _ in range(_MAX_NEWTON):
        index = active.nonzero()[:, 0]
        if not len(index):
            break
        args = row_weights[index], scales[index], steps[index], outputs[index]
        moves, is_open[index] = _moves(model, *args)
        if objective.loss.quadratic:
            return steps + moves, active, is_open
        changes = objective.rows.outputs(moves)
        largest = outputs[index].abs().flatten(1).amax(dim=1).clamp(min=1.0)
        done = changes.abs().flatten(1).amax(dim=1) <= _TOLERANCE * largest

        share = torch.ones(len(index), dtype=torch.double)
        limit = values[index] + 1e-12 * values[index].abs()
        for _ in range(_MAX_HALVINGS):
            part = share[:, None, None]
            trial = steps[index] + part * moves, outputs[index] + part * changes
            lower = _values(model, row_weights[index], scales[index], *trial)
            raised = ~(lower <= limit) & ~done
            if not bool(raised.any()):
                break
            share[raised] /= 2
        steps[index], outputs[index], values[index] = *trial, lower
        active[index] = ~(done | raised)
        bends = _has_curvature(model, row_weights[index], outputs[index])
        arrived[index] = done & bends
    return steps, arrived, is_open


def _moves(
    model: Refitted,
    row_weights: Tensor,
    scales: Tensor,
    steps: Tensor,
    outputs: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the moves (k, D, C) to the minima of quadratics; which have many."""
    objective, blocks = model.objective, model.blocks
    gradients = _gradient(model, row_weights, scales, steps, outputs)
    curvature = _curvature(model, outputs)
    everything = torch.ones_like(objective.params, dtype=torch.bool)
    moves = torch.empty_like(steps)
    is_open = torch.zeros(len(steps), dtype=torch.bool)
    for i, gradient in enumerate(gradients):
        hessians = blocks.hessians(objective.rows, row_weights[i], curvature[i])
        factors = blocks.factors(hessians, float(scales[i]), everything)
        parts = zip(factors, blocks.split(gradient[None]), strict=True)
        solved = torch.stack([factor.solve(part) for factor, part in parts])
        moves[i] = -blocks.join(solved)[0]
        is_open[i] = any(factor.factor.is_singular for factor in factors)
    return moves, is_open


def _values(
    model: Refitted, row_weights: Tensor, scales: Tensor, steps: Tensor, outputs: Tensor
) -> Tensor:
    """Return the objectives (k,)."""
    objective, params = model.objective, model.objective.params + steps
    flat, targets = _flat(model, outputs)
    losses = objective.loss.values(flat, targets).view(len(outputs), -1)
    penalty = objective.l2 * params.square() / 2 + objective.l1 * params.abs()
    constant = (penalty - model.left * params).sum(dim=(1, 2))
    return (row_weights * losses).sum(dim=1) + scales * constant


def _curvature(model: Refitted, outputs: Tensor) -> Tensor:
    """Return second derivatives (k, n, C) or (k, n, C, C) at outputs (k, n, C)."""
    curvature = model.blocks.curvature(*_flat(model, outputs))
    return curvature.view(*outputs.shape[:2], *curvature.shape[1:])


def _flat(model: Refitted, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return outputs (k·n, C), and the targets of each."""
    targets = model.objective.targets
    repeated = targets.repeat(len(outputs), *[1] * (targets.ndim - 1))
    return outputs.reshape(-1, outputs.shape[-1]), repeated


def _has_curvature(model: Refitted, row_weights: Tensor, outputs: Tensor) -> Tensor:
    """Say where the loss still bends (k,): not where outputs run to infinity."""
    if model.objective.loss.kinked:
        return torch.ones(len(outputs), dtype=torch.bool)
    kept = (row_weights > 0).double()
    sizes = [
        (kept * curvature.abs().flatten(2).amax(dim=2)).amax(dim=1)
        for curvature in (_curvature(model, outputs), model.curvature[None])
    ]
    return sizes[0] > _FLAT * sizes[1]


def _one_by_one(
    model: Refitted, row_weights: Tensor, scales: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same, where an l1 penalty or conjugate gradients need it."""
    steps = torch.zeros(
        len(row_weights), *model.objective.params.shape, dtype=torch.double
    )
    arrived = torch.zeros(len(row_weights), dtype=torch.bool)
    for i, (row, scale) in enumerate(zip(row_weights, scales.tolist(), strict=True)):
        steps[i], arrived[i] = _newton(model, row, scale)
    return steps, arrived, torch.zeros_like(arrived)


def _newton(model: Refitted, row_weights: Tensor, scale: float) -> tuple[Tensor, bool]:
    """Return the step (D, C), and whether it arrived at a minimum."""
    objective = model.objective
    step = torch.zeros_like(objective.params)
    outputs = model.outputs
    row, factor = row_weights[None], torch.tensor([scale], dtype=torch.double)
    value = float(_values(model, row, factor, step[None], outputs[None]))
    for _ in range(_MAX_NEWTON):
        gradient = _gradient(model, row, factor, step[None], outputs[None])
        move = _move(model, row_weights, scale, step, outputs, gradient)
        change = objective.rows.outputs(move[None])[0]
        largest = max(1.0, float(outputs.abs().max()))
        if float(change.abs().max()) <= _TOLERANCE * largest:
            return step + move, bool(_has_curvature(model, row, outputs[None]))
        share, slack = 1.0, 1e-12 * abs(value)
        for _ in range(_MAX_HALVINGS):
            trial = step + share * move, outputs + share * change
            lower = float(_values(model, row, factor, trial[0][None], trial[1][None]))
            if lower <= value + slack:
                break
            share /= 2
        else:
            return step, False
        step, outputs, value = *trial, lower
    return step, False


def _move(
    model: Refitted,
    row_weights: Tensor,
    scale: float,
    step: Tensor,
    outputs: Tensor,
    gradient: Tensor,
) -> Tensor:
    """Return the move (D, C) to the minimum of the quadratic model."""
    objective, blocks = model.objective, model.blocks
    curvature = blocks.curvature(outputs, objective.targets)
    if model.plan.solver == "cg":
        args = gradient, row_weights, scale, curvature
        accuracy = _ACCURACY if objective.loss.quadratic else _ACCURACY_OF_MOVES
        return -model.solve_without_factor(*args, accuracy)[0]
    hessians = blocks.hessians(objective.rows, row_weights, curvature)
    gradients = blocks.split(gradient)
    params = blocks.split((objective.params + step)[None])[:, 0]
    strengths = scale * blocks.split(objective.l1[None])[:, 0]
    moved = []
    for block, (hessian, penalty) in enumerate(
        zip(hessians, blocks.penalty(), strict=True)
    ):
        matrix = hessian.clone()
        matrix.diagonal().add_(scale * penalty)
        start = params[block]
        linear = gradients[block, 0] - matrix @ start
        moved.append(
            minimize_quadratic(matrix, linear, strengths[block], start) - start
        )
    return blocks.join(torch.stack(moved)[:, None])[0]
