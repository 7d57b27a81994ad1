"""A quadratic with an l1 penalty, minimised exactly by its active set.

The feature-sign search of Lee, Battle, Raina and Ng (NIPS 2006): on the signs of the
active parameters the problem is a linear system; a step stops where a sign changes, and
the parameter that violates its optimality most becomes active.
"""

from __future__ import annotations

import torch
from torch import Tensor

from skattrib.engine._solvers import ScaledFactor

# Violations of optimality, relative to the penalty, that count as rounding.
_SLACK = 1e-11
# Slopes without curvature, relative to all that adds up to them, that are rounding.
_FLAT = 1e-12
# Steps for each parameter: more than are ever needed.
_MAX_STEPS = 20


def minimize_quadratic(
    matrix: Tensor, linear: Tensor, strengths: Tensor, start: Tensor
) -> Tensor:
    """Return argmin ½ xᵀ A x + bᵀ x + Σ μ |x|.

    Parameters
    ----------
    matrix : Tensor of shape (N, N)
        A, positive semidefinite.
    linear : Tensor of shape (N,)
        b.
    strengths : Tensor of shape (N,)
        μ, at least 0.
    start : Tensor of shape (N,)
        The nearer to the minimum, the faster.
    """
    x = start.clone()
    signs = x.sign()
    active = (strengths == 0) | (x != 0)
    size = float(strengths.max().clamp(min=1e-300))
    for _ in range(_MAX_STEPS * len(x) + 1):
        x, signs, active = _settle(matrix, linear, strengths, x, signs, active)
        gradient = matrix @ x + linear
        excess = torch.where(active, 0.0, gradient.abs() - strengths)
        worst = int(excess.argmax())
        if float(excess[worst]) <= _SLACK * size:
            break
        active[worst] = True
        signs[worst] = -gradient[worst].sign()
    return x


def _settle(
    matrix: Tensor,
    linear: Tensor,
    strengths: Tensor,
    x: Tensor,
    signs: Tensor,
    active: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Minimise over the active parameters; those that reach 0 leave."""
    while bool(active.any()):
        index = active.nonzero()[:, 0]
        here, penalty = x[index], strengths[index]
        square, pull = matrix[index][:, index], linear[index] + penalty * signs[index]
        target = _target(square, pull, penalty, here, signs[index])
        crossing = (penalty > 0) & (target * signs[index] < 0)
        x = x.clone()
        if not bool(crossing.any()):
            x[index] = target
            return x, signs, active
        shares = torch.where(crossing, here / (here - target), torch.inf)
        first = int(shares.argmin())
        x[index] = here + shares[first] * (target - here)
        leaver = index[first]
        x[leaver] = 0.0
        signs, active = signs.clone(), active.clone()
        signs[leaver], active[leaver] = 0.0, False
    return x, signs, active


def _target(
    matrix: Tensor, pull: Tensor, penalty: Tensor, here: Tensor, signs: Tensor
) -> Tensor:
    """Return where parameters that keep their signs have the minimum, or sink to 0.

    Of more parameters than rows the loss has directions without curvature, and the
    penalty falls along them until a sign changes.
    """
    system = ScaledFactor(matrix)
    if not system.is_singular:
        return -system.solve(pull[:, None])[:, 0]
    gradient = matrix @ here + pull
    flat = system.flat_part(gradient)
    slope, curvature = float(gradient @ flat), float(flat @ matrix @ flat)
    terms = system.units * (matrix.abs() @ here.abs() + pull.abs() + penalty)
    if slope > 0 and slope**0.5 > _FLAT * float(terms.max()):
        sinking = (penalty > 0) & (flat * signs > 0)
        length = slope / curvature if curvature > 0 else torch.inf
        if bool(sinking.any()):
            length = min(length, 1 + float((here / flat)[sinking].max()))
        if length < torch.inf:
            here = here - length * flat
            if bool(((penalty > 0) & (here * signs < 0)).any()):
                return here
            gradient = matrix @ here + pull
    return here - system.solve(gradient[:, None])[:, 0]
