"""Hessians of linear models, in blocks that can be solved one by one.

A loss that is a sum over outputs has a block (D, D) for each, any other one block
(D·C, D·C).
"""

from __future__ import annotations

import torch
from torch import Tensor

from skattrib.engine._convex._objective import Objective
from skattrib.engine._convex._rows import Rows
from skattrib.engine._solvers import PencilFactor, ScaledFactor


class Blocks:
    """How the parameters (D, C) of an objective fall into blocks."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.separable = objective.loss.separable
        n_columns, n_outputs = objective.params.shape
        self.n_blocks = n_outputs if self.separable else 1
        self.size = n_columns if self.separable else n_columns * n_outputs
        self._shape = n_columns, n_outputs
        # A softmax does not change if all outputs move together. Where no penalty fixes
        # that, any curvature will do: there is no gradient.
        self._free = (objective.l2 == 0).all(dim=1) & (objective.l1 == 0).all(dim=1)

    def split(self, params: Tensor) -> Tensor:
        """Return parameters (k, D, C) as (n_blocks, k, size)."""
        if self.separable:
            return params.permute(2, 0, 1)
        return params.flatten(1)[None]

    def join(self, blocks: Tensor) -> Tensor:
        """Return parameters (k, D, C) from (n_blocks, k, size)."""
        if self.separable:
            return blocks.permute(1, 2, 0)
        return blocks[0].view(-1, *self._shape)

    def curvature(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return second derivatives (n, C) of a separable loss, (n, C, C) of others."""
        loss = self.objective.loss
        if self.separable:
            return loss.curvature(outputs, targets)
        return loss.hessian(outputs, targets)

    def hessians(self, rows: Rows, weights: Tensor, curvature: Tensor) -> Tensor:
        """Return the Hessians (n_blocks, size, size) of the weighted losses."""
        n_columns, n_outputs = self._shape
        if self.separable:
            if bool((curvature == curvature[:, :1]).all()):  # squared error
                one = rows.gram(weights * curvature[:, 0])
                return one.expand(n_outputs, -1, -1)
            columns = (weights[:, None] * curvature).T
            return torch.stack([rows.gram(column) for column in columns])

        out = torch.empty(
            n_columns, n_outputs, n_columns, n_outputs, dtype=torch.double
        )
        for c in range(n_outputs):
            for d in range(c, n_outputs):
                block = rows.gram(weights * curvature[:, c, d])
                out[:, c, :, d] = block
                out[:, d, :, c] = block
        size = float(torch.einsum("dcdc->", out)) / self.size
        common = self.common_curvature(size)
        for d in self._free.nonzero()[:, 0]:
            out[d, :, d, :] += common[d, 0]
        return out.view(1, self.size, self.size)

    def common_curvature(self, size: float) -> Tensor:
        """Return a curvature (D, 1) for what moves all outputs together, if free.

        ``size`` is that of the mean second derivative.
        """
        if self.separable:
            return torch.zeros(self._shape[0], 1, dtype=torch.double)
        share = max(size, 1e-300) / self._shape[1]
        return share * self._free.double()[:, None]

    def penalty(self) -> Tensor:
        """Return the diagonals (n_blocks, size) of the penalty's Hessian."""
        return self.split(self.objective.l2[None])[:, 0]

    def factors(
        self, hessians: Tensor, scale: float, active: Tensor
    ) -> list[BlockFactor]:
        """Return what solves each block, with the penalty times ``scale``."""
        penalty = self.penalty()
        masks = self.split(active[None])[:, 0]
        factors: list[BlockFactor] = []
        for hessian, diagonal, mask in zip(hessians, penalty, masks, strict=True):
            last = factors[-1] if factors else None
            if last is not None and last.is_for(hessian, diagonal, mask):
                factors.append(last)
            else:
                factors.append(BlockFactor(hessian, diagonal, mask, scale))
        return factors


class BlockFactor:
    """Solves a block for the parameters that are active; the others stay."""

    def __init__(
        self, hessian: Tensor, penalty: Tensor, mask: Tensor, scale: float
    ) -> None:
        self._made_of = hessian, penalty, mask
        self.index = mask.nonzero()[:, 0]
        self._n = len(mask)
        self._whole = len(self.index) == self._n
        inner = hessian if self._whole else hessian[self.index][:, self.index]
        self._penalty = penalty if self._whole else penalty[self.index]
        matrix = inner.clone()
        matrix.diagonal().add_(scale * self._penalty)
        self._matrix, self._scale = matrix, scale
        self.factor = ScaledFactor(matrix)
        self._pencil: PencilFactor | None = None

    def is_for(self, hessian: Tensor, penalty: Tensor, mask: Tensor) -> bool:
        """Say whether it is of the same block, penalty and active parameters."""
        mine = self._made_of
        same = hessian.data_ptr() == mine[0].data_ptr()
        return same and torch.equal(penalty, mine[1]) and torch.equal(mask, mine[2])

    def with_pencil(self) -> BlockFactor:
        """Prepare it for other scales of the penalty, where it can be."""
        if self._pencil is None and not self.factor.is_singular:
            self._pencil = PencilFactor(self._matrix, torch.diag(self._penalty))
        return self

    def solve(self, rhs: Tensor, scales: Tensor | None = None) -> Tensor:
        """Return solutions (k, size) of right-hand sides (k, size).

        ``scales`` (k,) are factors on the penalty, relative to that of the factor.
        """
        inner = rhs.T if self._whole else rhs[:, self.index].T
        if scales is None or bool((scales == 1).all()):
            solved = self.factor.solve(inner)
        elif self._pencil is not None:
            solved = self._pencil.solve(inner, scales)
        else:
            solved = torch.empty_like(inner)
            for scale in scales.unique():
                chosen = scales == scale
                matrix = self._matrix.clone()
                change = (float(scale) - 1) * self._scale * self._penalty
                matrix.diagonal().add_(change)
                solved[:, chosen] = ScaledFactor(matrix).solve(inner[:, chosen])
        if self._whole:
            return solved.T
        out = rhs.new_zeros(rhs.shape)
        out[:, self.index] = solved.T
        return out
