"""Least squares in the space of a kernel, refitted on other rows in closed form.

Outputs are f(x) = m + Σ_i k(x, x_i) α_i with α = (K + diag(noise / w))⁻¹ (y − m) on the
rows that are present. The offset m is 0, or the mean of their targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skattrib.engine._convex._plan import ConvexPlan
from skattrib.engine._solvers import Factor, NotPositiveDefiniteError


@dataclass(frozen=True)
class KernelObjective:
    """Kernel ridge regression, or the mean of a Gaussian process.

    Parameters
    ----------
    kernel : Tensor of shape (n, n)
        Between the rows, without noise.
    noise : Tensor of shape (n, T)
        Added to the diagonal; T is the number C of outputs, or 1.
    targets : Tensor of shape (n, C)
    weights : Tensor of shape (n,)
        Sample weights of the fit.
    is_centred : bool
        Whether the mean of the targets is taken off.
    """

    kernel: Tensor
    noise: Tensor
    targets: Tensor
    weights: Tensor
    is_centred: bool = False

    def offsets(self, weights: Tensor) -> Tensor:
        """Return m (k, C) for weights (k, n)."""
        if not self.is_centred:
            return weights.new_zeros(len(weights), self.targets.shape[1])
        return (weights @ self.targets) / weights.sum(dim=1, keepdim=True)


class KernelRefits:
    """Steps (k, n + 1, C), of α and m, for other weights of the rows.

    Parameters
    ----------
    objective : KernelObjective
    memory_bytes : float

    Raises
    ------
    ValueError
        If the kernel with its noise is not positive definite.
    """

    plan = ConvexPlan("dual", "the kernel of the rows")
    is_singular = False
    #: Whether a Newton step without a row is near the minimum: it is there.
    is_smooth = True

    def __init__(self, objective: KernelObjective, memory_bytes: float) -> None:
        self.objective, self.memory_bytes = objective, memory_bytes
        #: The rows themselves, between which and queries kernels are computed.
        self.train_rows: Any = None
        ones = objective.weights[None]
        self._present = self._solutions(ones)[0]
        self._inverses: list[Tensor] = []
        index = objective.weights.nonzero()[:, 0]
        for column in range(objective.noise.shape[1]):
            inverse = torch.zeros_like(objective.kernel)
            inner = self._factor(objective.weights, index, column).inverse()
            inverse[index[:, None], index] = inner
            self._inverses.append(inverse)
        #: Gradient that a solver left: there is none.
        self.left = torch.zeros(1)

    # ------------------------------------------------------------------ parts
    def _factor(self, weights: Tensor, index: Tensor, column: int) -> Factor:
        kernel = self.objective.kernel[index[:, None], index]
        noise = self.objective.noise[index, column] / weights[index]
        kernel.diagonal().add_(noise)
        try:
            return Factor(kernel)
        except NotPositiveDefiniteError as error:
            raise ValueError(
                "The kernel of the rows, with the ridge on its diagonal, is not "
                "positive definite: use a kernel that is, or a larger alpha."
            ) from error

    def _solutions(self, weights: Tensor) -> Tensor:
        """Return α and m (k, n + 1, C) for weights (k, n)."""
        n, n_outputs = self.objective.targets.shape
        offsets = self.objective.offsets(weights)
        out = torch.zeros(len(weights), n + 1, n_outputs, dtype=torch.double)
        out[:, n] = offsets
        for k, (row, offset) in enumerate(zip(weights, offsets, strict=True)):
            index = row.nonzero()[:, 0]
            centred = self.objective.targets[index] - offset
            n_noises = self.objective.noise.shape[1]
            for column in range(n_noises):
                outputs = slice(None) if n_noises == 1 else slice(column, column + 1)
                factor = self._factor(row, index, column)
                out[k, index, outputs] = factor.solve(centred[:, outputs])
        return out

    def batch_size(self) -> int:
        """Return how many steps fit the memory at once."""
        size = self.objective.targets.numel() + self.objective.targets.shape[1]
        return max(1, int(self.memory_bytes / 4 / (8 * 4 * size)))

    def work_of_refits(self, n_units: int) -> float:
        """Return about how many multiplications refits without each unit take."""
        return n_units * len(self.objective.targets) ** 3 / 3

    def rows_at_once(self) -> int:
        """Return how many single rows fit the memory at once."""
        return self.batch_size()

    # ------------------------------------------------------------------ steps
    def refit_steps(self, weights: Tensor) -> Tensor:
        """Return the steps to the minimum."""
        return self._solutions(weights) - self._present

    def newton_steps(self, weights: Tensor) -> Tensor:
        """Return the same: the objective is quadratic."""
        return self.refit_steps(weights)

    def newton_without(self, index: Tensor) -> Tensor:
        """Return the steps without each of some rows (m,), in closed form."""
        objective, n = self.objective, len(self.objective.targets)
        # the weights enter as noise alone, so that a row is deleted at any weight
        centre = objective.weights.expand(len(index), n).clone()
        centre[torch.arange(len(index)), index] = 0
        offsets = objective.offsets(centre)
        out = torch.empty(len(index), n + 1, objective.targets.shape[1]).double()
        out[:, n] = offsets
        for c in range(objective.targets.shape[1]):
            inverse = self._inverses[min(c, len(self._inverses) - 1)]
            solved = inverse @ objective.targets[:, c]
            of_ones = inverse.sum(dim=1)
            alpha = solved - offsets[:, c, None] * of_ones
            own = inverse.diagonal()[index]
            share = alpha.gather(1, index[:, None])[:, 0] / own
            share = torch.where(own > 0, share, 0.0)  # a row of weight 0
            out[:, :n, c] = alpha - share[:, None] * inverse[index]
        return out - self._present

    def influence_steps(self, weights: Tensor) -> Tensor:
        """Return first-order steps."""
        objective, n = self.objective, len(self.objective.targets)
        change = weights - objective.weights
        out = torch.zeros(len(weights), n + 1, objective.targets.shape[1]).double()
        total = objective.weights.sum()
        if objective.is_centred:
            centred = objective.targets - objective.offsets(objective.weights[None])
            out[:, n] = change @ centred / total
        for c in range(objective.targets.shape[1]):
            column = min(c, len(self._inverses) - 1)
            inverse, noise = self._inverses[column], objective.noise[:, column]
            safe = objective.weights.clamp(min=1e-300)
            slope = torch.where(objective.weights > 0, noise / safe**2, 0.0)
            pull = change * (slope * self._present[:n, c])
            of_ones = inverse.sum(dim=1)
            out[:, :n, c] = pull @ inverse - out[:, n, c, None] * of_ones
        return out

    # ---------------------------------------------------------------- queries
    def train_outputs(self) -> Tensor:
        """Return the outputs (n, C) of the rows."""
        return self.features(self.objective.kernel) @ self._present

    def features(self, kernel: Tensor) -> Tensor:
        """Return kernel values of queries (q, n), and a constant (q, n + 1)."""
        return torch.cat([kernel, torch.ones_like(kernel[:, :1])], dim=1)

    def parameters(self, steps: Tensor) -> Tensor:
        """Return the steps: α and m."""
        return steps

    def leverages(self) -> Tensor:
        """Return the diagonal (n,) of the matrix that maps targets to outputs."""
        noise = self.objective.noise / self.objective.weights.clamp(min=1e-300)[:, None]
        shares = [
            1 - noise[:, column] * inverse.diagonal()
            for column, inverse in enumerate(self._inverses)
        ]
        out = torch.stack(shares).amax(dim=0)
        return torch.where(self.objective.weights > 0, out, 0.0)
