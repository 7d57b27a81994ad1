"""Refits of a linear model to other weights of its rows: retraining without training.

The gradient that the solver left is kept as a constant, so that the fitted parameters
are the minimum for the weights of the fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor

from skattrib.engine._convex._blocks import BlockFactor, Blocks
from skattrib.engine._convex._objective import Basis, Objective
from skattrib.engine._convex._plan import ConvexPlan
from skattrib.engine._convex._refits import refit, warn_open
from skattrib.engine._convex._rows import DenseRows, Rows
from skattrib.engine._functional import chunks
from skattrib.engine._solvers import Factor, conjugate_gradient, largest_eigenvalue

# Copies of the outputs of all rows that a weighting needs at a time.
_COPIES = 12
# Sparse rows become dense where that takes this share of the memory at most.
_SMALL = 16
# A row whose own weight decides its output: without it, that is not determined.
_DECISIVE = 1 - 1e-9
# Relative accuracy of conjugate gradients; ten times as much is not always reached.
_ACCURACY = 1e-9


#: Rows among those asked for, and the factors, gradients, weights of the rows and
#: factors on the penalty with which they are left out.
_Base = tuple[Tensor, list[BlockFactor], Tensor, Tensor, Tensor]


class ConvexRefits:
    """Steps from the fitted parameters to those of other weights of the rows.

    Weights (k, n) are sample weights; steps (k, D, C) are in coordinates, in which
    `features` gives queries.

    Parameters
    ----------
    objective : Objective
    plan : ConvexPlan
    memory_bytes : float
    centre : Tensor of shape (P,) or None
        What was taken off the columns of the rows, and is to be taken off queries; the
        last column of the rows is then of ones.

    Attributes
    ----------
    is_singular : bool
        Whether columns are collinear, and no penalty tells them apart.
    """

    def __init__(
        self,
        objective: Objective,
        plan: ConvexPlan,
        memory_bytes: float,
        centre: Tensor | None = None,
    ) -> None:
        self.plan, self.memory_bytes, self.centre = plan, memory_bytes, centre
        self.basis: Basis | None = None
        if plan.solver == "dual":
            objective, self.basis = objective.reduced()
        elif plan.solver == "primal":
            rows = objective.rows
            if 8.0 * rows.n_rows * rows.n_columns <= memory_bytes / _SMALL:
                # sparse products of a small matrix cost more than dense ones
                objective = replace(objective, rows=DenseRows(rows.dense()))
        self.objective = objective
        self.blocks = Blocks(objective)
        params, loss = objective.params, objective.loss
        self.outputs = objective.outputs()
        self.residuals = loss.residuals(self.outputs, objective.targets)
        self.curvature = self.blocks.curvature(self.outputs, objective.targets)
        self.row_weights = objective.weighting(objective.weights)
        self.active = (objective.l1 == 0) | (params != 0)
        penalty = objective.l2 * params + objective.l1 * params.sign()
        gradient = self._loss_gradient(self.row_weights[None])[0] + penalty
        beyond = gradient.sign() * (gradient.abs() - objective.l1).clamp(min=0)
        #: Gradient that the solver left.
        self.left = torch.where(self.active, gradient, beyond)
        self._pull = penalty - self.left
        self.is_singular = False
        if plan.solver != "cg":
            self._whole = self._factors(self.row_weights, 1.0)
            if objective.regularization == "per_sample":
                self._whole = [factor.with_pencil() for factor in self._whole]
            singular = [factor.factor.is_singular for factor in self._whole]
            self.is_singular = any(singular)

    @property
    def is_smooth(self) -> bool:
        """Whether a Newton step without a row is near the minimum."""
        return not (self.objective.loss.kinked or self.objective.has_l1)

    def work_of_refits(self, n_units: int) -> float:
        """Return about how many multiplications refits without each unit take."""
        n_rows = self.objective.rows.n_rows
        n_params = float(self.objective.params.numel())
        return 4.0 * n_units * (n_rows * n_params * self.blocks.size + n_params**3)

    # ---------------------------------------------------------------- queries
    def features(self, rows: Rows) -> Tensor | Rows:
        """Return queries (q, D) in the coordinates of steps; as they are for "cg"."""
        if self.basis is not None:
            return self.basis.coordinates(rows)
        return rows if self.plan.solver == "cg" else rows.dense()

    def parameters(self, steps: Tensor) -> Tensor:
        """Return steps as changes of the parameters (k, D, C) of the model."""
        changes = steps if self.basis is None else self.basis.lift(steps)
        if self.centre is None:
            return changes
        changes = changes.clone()
        changes[:, -1] -= torch.einsum("p,kpc->kc", self.centre, changes[:, :-1])
        return changes

    # ------------------------------------------------------------------ parts
    def _loss_gradient(self, row_weights: Tensor) -> Tensor:
        return self.objective.rows.gradient(row_weights[..., None] * self.residuals)

    def gradients(self, weights: Tensor) -> Tensor:
        """Return the gradients (k, D, C) at the fitted parameters."""
        scale = self.objective.scale(weights)[:, None, None]
        row_weights = self.objective.weighting(weights)
        gradients = self._loss_gradient(row_weights) + scale * self._pull
        return torch.where(self.active, gradients, 0.0)

    def _factors(self, row_weights: Tensor, scale: float) -> list[BlockFactor]:
        rows = self.objective.rows
        hessians = self.blocks.hessians(rows, row_weights, self.curvature)
        return self.blocks.factors(hessians, scale, self.active)

    def _solve(
        self, factors: list[BlockFactor], rhs: Tensor, scales: Tensor | None = None
    ) -> Tensor:
        solved = [
            factor.solve(block, scales)
            for factor, block in zip(factors, self.blocks.split(rhs), strict=True)
        ]
        return self.blocks.join(torch.stack(solved))

    def solve_whole(self, rhs: Tensor, scales: Tensor) -> Tensor:
        """Return solutions (k, D, C) with the Hessian of all rows."""
        return self._solve(self._whole, rhs, scales)

    def batch_size(self) -> int:
        """Return how many weightings fit the memory at once."""
        n_numbers = _COPIES * self.outputs.numel() + 4 * self.objective.params.numel()
        return max(1, int(self.memory_bytes / 4 / (8 * n_numbers)))

    def _in_batches(
        self, steps_of: Callable[[Tensor], Tensor], weights: Tensor
    ) -> Tensor:
        out = weights.new_empty(len(weights), *self.objective.params.shape)
        for part in chunks(len(weights), self.batch_size()):
            out[part] = steps_of(weights[part])
        return out

    # ------------------------------------------------------------------ steps
    def influence_steps(self, weights: Tensor) -> Tensor:
        """Return first-order steps: the Hessian is that of all rows."""
        return self._in_batches(self._influence_steps, weights)

    def _influence_steps(self, weights: Tensor) -> Tensor:
        gradients = self.gradients(weights)
        if self.plan.solver == "cg":
            return -self.solve_without_factor(gradients, self.row_weights, 1.0)
        return -self._solve(self._whole, gradients)

    def newton_steps(self, weights: Tensor) -> Tensor:
        """Return one exact Newton step on the weighted rows."""
        return self._in_batches(self._newton_steps, weights)

    def _newton_steps(self, weights: Tensor) -> Tensor:
        gradients, row_weights = (
            self.gradients(weights),
            self.objective.weighting(weights),
        )
        scales = self.objective.scale(weights)
        steps, n_open = torch.empty_like(gradients), 0
        for i, (gradient, of_rows) in enumerate(
            zip(gradients, row_weights, strict=True)
        ):
            if self.plan.solver == "cg":
                args = gradient[None], of_rows, float(scales[i])
                steps[i] = -self.solve_without_factor(*args)[0]
            else:
                factors = self._factors(of_rows, float(scales[i]))
                steps[i] = -self._solve(factors, gradient[None])[0]
                n_open += any(factor.factor.is_singular for factor in factors)
        if n_open and not self.is_singular:
            warn_open(n_open, len(steps))
        return steps

    def refit_steps(self, weights: Tensor) -> Tensor:
        """Return the steps to the minimum."""
        return self._in_batches(partial(refit, self), weights)

    def solve_without_factor(
        self,
        rhs: Tensor,
        row_weights: Tensor,
        scale: float,
        curvature: Tensor | None = None,
        accuracy: float = _ACCURACY,
    ) -> Tensor:
        """Return solutions (k, D, C) by conjugate gradients, for one weighting (n,)."""
        curvature = self.curvature if curvature is None else curvature
        rows, l2 = self.objective.rows, scale * self.objective.l2

        def product(flat: Tensor) -> Tensor:
            params = flat.view(-1, *l2.shape)
            images = rows.outputs(params)
            if self.blocks.separable:
                bent = curvature * images
            else:
                bent = torch.einsum("ncd,knd->knc", curvature, images)
            bent = row_weights[:, None] * bent
            product = rows.gradient(bent) + l2 * params
            return (product + common * params.sum(dim=2, keepdim=True)).flatten(1)

        own = curvature
        if not self.blocks.separable:
            own = curvature.diagonal(dim1=1, dim2=2)
        diagonal = rows.squared_sum(row_weights[:, None] * own) + l2
        common = self.blocks.common_curvature(float(diagonal.mean()))
        diagonal = (diagonal + common).flatten()
        inverse = torch.where(diagonal > 0, 1 / diagonal.clamp(min=1e-300), 0.0)
        out = torch.empty_like(rhs)
        per_step = 8 * _COPIES * (self.outputs.numel() + l2.numel())
        for part in chunks(len(rhs), max(1, int(self.memory_bytes / 4 / per_step))):
            solved = conjugate_gradient(
                product,
                rhs[part].flatten(1),
                precondition=lambda v: v * inverse,
                tol=accuracy,
            )
            out[part] = solved.view(-1, *l2.shape)
        return out

    # ----------------------------------------------------- without single rows
    def newton_without(self, index: Tensor) -> Tensor:
        """Return the Newton steps (m, D, C) without each of some rows (m,).

        They are those of `newton_steps`, from few factors: with h = Rᵀ x H⁻¹ xᵀ R and
        R Rᵀ the curvature v S of the row, a block (C, C) corrects the Hessian of all.
        """
        steps = torch.empty(
            len(index), *self.objective.params.shape, dtype=torch.double
        )
        decisive = torch.zeros(len(index), dtype=torch.bool)
        for members, factors, base, amounts, scales in self._bases(index):
            without = (
                self._without_separable
                if self.blocks.separable
                else self._without_joint
            )
            first = torch.zeros_like(base)
            if bool((base != 0).any()):
                first = -self._solve(factors, base, scales)
            steps[members], decisive[members] = without(
                index[members], factors, first, amounts, scales
            )
        for i in decisive.nonzero()[:, 0]:
            weights = self.objective.weights.clone()
            weights[index[i]] = 0
            steps[i] = self.newton_steps(weights[None])[0]
        return steps

    def _bases(self, index: Tensor) -> Iterator[_Base]:
        """Yield rows that leave the same base, and that: factors and gradient.

        Base and row together are all rows, with the penalty and the class weights that
        hold without the row.
        """
        weights, weighting = self.objective.weights, self.objective.weighting
        everything = torch.arange(len(index))
        if weighting.additive:
            removed = weights[index]
            amounts = self.row_weights[index]
            scales = torch.ones_like(removed)
            if self.objective.regularization == "per_sample":
                scales = 1 - removed / weights.sum()
            gradient = (scales - 1)[:, None, None] * self._pull
            gradient = torch.where(self.active, gradient, 0.0)
            yield everything, self._whole, gradient, amounts, scales
            return

        codes = cast(Tensor, weighting.balanced)
        parts = self._by_class(codes)
        kinds = torch.stack([codes[index].double(), weights[index]], dim=1)
        kinds, kind_of = kinds.unique(dim=0, return_inverse=True)
        for number in range(len(kinds)):
            members = (kind_of == number).nonzero()[:, 0]
            one = index[members[0]]
            left = weights.clone()
            left[one] = 0
            factor = torch.where(left > 0, weighting(left) / left, 0.0)
            of_classes = range(len(parts[0]))
            shares = torch.stack([factor[codes == code].max() for code in of_classes])
            shares[shares == 0] = 1.0  # the only row of its class is retrained
            scale = float(self.objective.scale(left[None])[0])
            hessians = torch.einsum("l,lbmn->bmn", shares, parts[0])
            factors = self.blocks.factors(hessians, scale, self.active)
            gradient = torch.einsum("l,ldc->dc", shares, parts[1])[None]
            gradient = gradient + scale * self._pull
            gradient = torch.where(self.active, gradient, 0.0)
            gradient = gradient.expand(len(members), -1, -1)
            amounts = (shares[codes[one]] * weights[one]).expand(len(members))
            yield members, factors, gradient, amounts, torch.ones_like(amounts)

    def _by_class(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Return Hessians (K, n_blocks, size, size), gradients (K, D, C) by class."""
        hessians, gradients = [], []
        for code in range(int(codes.max()) + 1):
            weights = self.objective.weights * (codes == code)
            rows = self.objective.rows
            hessians.append(self.blocks.hessians(rows, weights, self.curvature))
            gradients.append(self._loss_gradient(weights[None])[0])
        return torch.stack(hessians), torch.stack(gradients)

    def _without_separable(
        self,
        index: Tensor,
        factors: list[BlockFactor],
        first: Tensor,
        amounts: Tensor,
        scales: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return steps, and rows whose removal leaves their own output open."""
        features = self.objective.rows.take(index).dense()
        steps, decisive = first.clone(), torch.zeros(len(index), dtype=torch.bool)
        last, solved = None, features
        for c, factor in enumerate(factors):
            if factor is not last:  # outputs may share a factor
                solved, last = factor.solve(features, scales), factor
            own = (features * solved).sum(dim=1)
            bend = amounts * self.curvature[index, c]
            leverage = bend * own
            decisive |= leverage > _DECISIVE
            pull = amounts * self.residuals[index, c]
            moved = (features * first[:, :, c]).sum(dim=1) + own * pull
            amount = pull + bend * moved / (1 - leverage)
            steps[:, :, c] += amount[:, None] * solved
        return steps, decisive

    def _without_joint(
        self,
        index: Tensor,
        factors: list[BlockFactor],
        first: Tensor,
        amounts: Tensor,
        scales: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return steps, and rows whose removal leaves their own outputs open."""
        features = self.objective.rows.take(index).dense()
        own = self._own_blocks(features, factors, scales)
        residuals = amounts[:, None] * self.residuals[index]
        roots = self.objective.loss.hessian_root(
            self.outputs[index], self.objective.targets[index]
        )
        roots = roots * amounts.sqrt()[:, None, None]

        moved = torch.einsum("md,mdc->mc", features, first)
        moved = moved + torch.einsum("mcd,md->mc", own, residuals)
        inner = roots.mT @ own @ roots
        decisive = largest_eigenvalue(inner) > _DECISIVE
        inner[decisive] = 0
        complement = torch.eye(inner.shape[-1], dtype=features.dtype) - inner
        half = torch.einsum("mcd,mc->md", roots, moved)
        corrected = Factor(complement).solve(half[..., None])[..., 0]
        pull = residuals + torch.einsum("mcd,md->mc", roots, corrected)
        lifted = features[:, :, None] * pull[:, None, :]
        return first + self._solve(factors, lifted, scales), decisive

    def _own_blocks(
        self,
        features: Tensor,
        factors: list[BlockFactor],
        scales: Tensor | None = None,
    ) -> Tensor:
        """Return x H⁻¹ xᵀ (m, C, C) of rows, of a loss whose outputs are joint."""
        n_outputs = self.objective.params.shape[1]
        own = features.new_empty(len(features), n_outputs, n_outputs)
        unit = torch.eye(n_outputs, dtype=features.dtype)
        for c in range(n_outputs):
            solved = self._solve(factors, features[:, :, None] * unit[c], scales)
            own[:, :, c] = torch.einsum("md,mdc->mc", features, solved)
        return own

    def leverages(self) -> Tensor:
        """Return the share (n,) that each row has in its own output, in [0, 1]."""
        everything = torch.arange(self.objective.rows.n_rows)
        out = torch.empty(len(everything), dtype=torch.double)
        for part in chunks(len(everything), self.rows_at_once()):
            features = self.objective.rows.take(everything[part]).dense()
            weights = self.row_weights[part]
            if self.blocks.separable:
                shares = [
                    (features * factor.solve(features)).sum(dim=1)
                    * self.curvature[part, c]
                    for c, factor in enumerate(self._whole)
                ]
                out[part] = weights * torch.stack(shares).amax(dim=0)
                continue
            own = self._own_blocks(features, self._whole)
            roots = self.objective.loss.hessian_root(
                self.outputs[part], self.objective.targets[part]
            )
            out[part] = weights * largest_eigenvalue(roots.mT @ own @ roots)
        return out

    def rows_at_once(self) -> int:
        """Return how many single rows fit the memory at once."""
        n_numbers = 8 * self.objective.params.numel() + 64
        return max(1, int(self.memory_bytes / 4 / (8 * n_numbers)))
