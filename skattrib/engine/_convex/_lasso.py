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
        system = ScaledFactor(matrix[index][:, index])
        pull = linear[index] + strengths[index] * signs[index]
        target = -system.solve(pull[:, None])[:, 0]
        crossing = (strengths[index] > 0) & (target * signs[index] < 0)
        if not bool(crossing.any()):
            x = x.clone()
            x[index] = target
            return x, signs, active
        here = x[index]
        shares = torch.where(crossing, here / (here - target), torch.inf)
        first = int(shares.argmin())
        x = x.clone()
        x[index] = here + shares[first] * (target - here)
        leaver = index[first]
        x[leaver] = 0.0
        signs, active = signs.clone(), active.clone()
        signs[leaver], active[leaver] = 0.0, False
    return x, signs, active
