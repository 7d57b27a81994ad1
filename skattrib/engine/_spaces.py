"""Coordinates in which the linearised model is solved: parameters, rows, or neither.

The damped generalised Gauss-Newton Hessian of a linearised model is
H = JᵀBJ + λI with B = diag(w S Sᵀ) over rows (the metric is in J's columns).

- `PrimalSpace` solves in the P parameters: H itself.
- `DualSpace` solves in the n·C outputs: a step is z = Jᵀβ and only
  T = λI + S̃ᵀ K S̃ with K = JJᵀ is factored (Woodbury, never K(…)K).
- `MatrixFreeSpace` is the dual with conjugate gradients; K never exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from skattrib.engine._functional import chunks
from skattrib.engine._gradients import RowGradients
from skattrib.engine._kernel import kernel_block
from skattrib.engine._solvers import (
    EIGH_AFTER,
    Factor,
    ShiftedSystem,
    add_diagonal,
    conjugate_gradient,
)

# Of the memory cap, what one temporary may take: 1 / _SHARE.
_SHARE = 4
# From this many weightings on their Hessians are formed together, ...
_ENOUGH = 8
# ... this many columns at a time, which stay in cache.
_COLUMNS = 32


def _times(roots: Tensor, columns: Tensor, transpose: bool = False) -> Tensor:
    """Multiply block-diagonal S (n, C, C), or its transpose, with (n·C, m)."""
    n, C, _ = roots.shape
    blocks = roots.mT if transpose else roots
    m = columns.shape[1]
    return torch.bmm(blocks, columns.view(n, C, m)).view(n * C, m)


def weighted_roots(roots: Tensor, weights: Tensor) -> Tensor:
    """Return S̃ = √w S for every row."""
    return roots * weights.sqrt()[:, None, None]


@dataclass(frozen=True)
class FullSystem:
    """The system of all rows at one λ, factored where the space factors."""

    shift: float
    factor: Any = None

    def solve(self, rhs: Tensor) -> Tensor:
        """Return (A + λI)⁻¹ rhs."""
        return self.factor.solve(rhs)

    def half_solve(self, rhs: Tensor) -> Tensor:
        """Return V with VᵀV = rhsᵀ (A + λI)⁻¹ rhs."""
        return self.factor.half_solve(rhs)


def _factored(system: ShiftedSystem, shifts: list[float]) -> Iterator[FullSystem]:
    """Yield the systems one by one: each holds a dense factor."""
    distinct = sorted(set(shifts))
    if len(distinct) > EIGH_AFTER:
        for shift, factor in system.factors(distinct).items():
            yield FullSystem(shift, factor)
    else:
        for shift in distinct:
            yield FullSystem(shift, system.factors([shift])[shift])


class Space(Protocol):
    """What `LinearizedModel` asks of its coordinates; k steps are rows (k, D)."""

    name: str

    def gradient(self, rho: Tensor, shift: Tensor, steps: Tensor | None) -> Tensor:
        """Return Jᵀρ + λz in these coordinates, ρ (k, n·C), λ (k,)."""

    def full_systems(self, shifts: list[float]) -> Iterator[FullSystem]:
        """Factor the full-data system for every distinct λ of these."""

    def solve_full(self, gradients: Tensor, system: FullSystem) -> Tensor:
        """Return −H⁻¹g with the Hessian of all rows."""

    def row_blocks(self, rows: Tensor, system: FullSystem) -> Tensor:
        """Return J_i H⁻¹ J_iᵀ for every row, (len(rows), C, C)."""

    def group_block(self, rows: Tensor, system: FullSystem) -> Tensor:
        """Return J_R H⁻¹ J_Rᵀ, (|R|·C, |R|·C)."""

    def solve_subsets(
        self, gradients: Tensor, weights: Tensor, roots: Tensor, shifts: Tensor
    ) -> Tensor:
        """Return −H(w)⁻¹g for each weighting by itself; roots (k or 1, n, C, C)."""

    def train_outputs(self, steps: Tensor) -> Tensor:
        """Return Jz on the training rows, (k, n·C)."""

    def query_outputs(self, steps: Tensor, query: RowGradients) -> Tensor:
        """Return Jz on other rows, (k, q, C)."""

    def squared_norm(self, steps: Tensor) -> Tensor:
        """Return zᵀz, (k,)."""

    def parameters(self, steps: Tensor) -> Tensor:
        """Return the steps as changes of the parameters, (k, P)."""

    def eigenvalues(self) -> Tensor:
        """Return the eigenvalues of JᵀBJ that can differ from zero."""


class PrimalSpace:
    """Solve in parameters: P × P systems.

    Parameters
    ----------
    gradients : RowGradients
        Of the training rows.
    roots : Tensor of shape (n, C, C)
    weights : Tensor of shape (n,)
    """

    name = "primal"

    def __init__(
        self,
        gradients: RowGradients,
        roots: Tensor,
        weights: Tensor,
        memory_bytes: float,
    ) -> None:
        self._memory = memory_bytes
        self._jacobian = gradients.jacobian()
        self._scale = gradients.scale
        self._n_outputs = gradients.shape[1]
        self._roots, self._weights = roots, weights
        self._system = ShiftedSystem(self._gauss_newton(weighted_roots(roots, weights)))

    def _gauss_newton(self, roots: Tensor, rows: Tensor | None = None) -> Tensor:
        jacobian = self._jacobian
        if rows is not None:
            shape = (*roots.shape[:2], -1)
            jacobian = jacobian.view(shape[0], shape[1], -1)[rows].flatten(0, 1)
            roots = roots[rows]
        half = _times(roots, jacobian, transpose=True)
        return half.T @ half

    def gradient(self, rho: Tensor, shift: Tensor, steps: Tensor | None) -> Tensor:
        out = rho @ self._jacobian
        return out if steps is None else out + shift[:, None] * steps

    def full_systems(self, shifts: list[float]) -> Iterator[FullSystem]:
        return _factored(self._system, shifts)

    def solve_full(self, gradients: Tensor, system: FullSystem) -> Tensor:
        return -system.solve(gradients.T).T

    def row_blocks(self, rows: Tensor, system: FullSystem) -> Tensor:
        C = self._n_outputs
        jacobian = self._jacobian.view(-1, C, self._jacobian.shape[1])[rows]
        half = system.half_solve(jacobian.flatten(0, 1).T)
        half = half.T.view(len(rows), C, -1)
        return half @ half.mT

    def group_block(self, rows: Tensor, system: FullSystem) -> Tensor:
        jacobian = self._jacobian.view(-1, self._n_outputs, self._jacobian.shape[1])
        half = system.half_solve(jacobian[rows].flatten(0, 1).T)
        return half.T @ half

    def solve_subsets(
        self, gradients: Tensor, weights: Tensor, roots: Tensor, shifts: Tensor
    ) -> Tensor:
        # several systems at once where their rows' curvatures are the same and dense
        frozen = roots is self._roots
        dense = (
            float((weights != 0).sum(dim=1).double().median()) > len(self._roots) / 4
        )
        if not (frozen and dense and len(weights) >= _ENOUGH):
            return self._solve_one_by_one(gradients, weights, roots, shifts)
        n_params = gradients.shape[1]
        share = self._memory / (_SHARE * n_params**2 * gradients.element_size())
        out = []
        for part in chunks(len(weights), int(share)):
            hessians = self._weighted_hessians(weights[part])
            hessians.diagonal(dim1=1, dim2=2).add_(shifts[part, None])
            for g, hessian in zip(gradients[part], hessians, strict=True):
                out.append(-Factor(hessian).solve(g[:, None])[:, 0])
        return torch.stack(out)

    def _weighted_hessians(self, weights: Tensor) -> Tensor:
        """Return lower triangles of Σ w_i A_i, (k, P, P), A_i the rows' curvatures.

        A few columns of all A_i are formed at a time and weighted in one product, C
        times cheaper than a product of Jacobians for every weighting.
        """
        half = _times(self._roots, self._jacobian, transpose=True)
        half = half.view(*self._roots.shape[:2], -1)
        n, _, n_params = half.shape
        out = half.new_empty(len(weights), n_params, n_params)
        width = self._memory / (_SHARE * n * n_params * half.element_size())
        for part in chunks(n_params, min(int(width), _COLUMNS)):
            below = half[:, :, part.start :]
            curvatures = (below.mT @ half[:, :, part]).flatten(1)
            out[:, part.start :, part] = (weights @ curvatures).view(
                len(weights), -1, part.stop - part.start
            )
        return out

    def _solve_one_by_one(
        self, gradients: Tensor, weights: Tensor, roots: Tensor, shifts: Tensor
    ) -> Tensor:
        out = []
        frozen = roots is self._roots
        for i, (g, w, shift) in enumerate(zip(gradients, weights, shifts, strict=True)):
            removed = self._weights - w
            small = frozen and bool((removed >= 0).all())
            small = small and int((removed > 0).sum()) < int((w > 0).sum())
            if small:
                rows = removed.nonzero()[:, 0]
                matrix = self._system.matrix - self._gauss_newton(
                    weighted_roots(roots, removed), rows
                )
            else:
                root = roots if frozen else roots[i]
                matrix = self._gauss_newton(weighted_roots(root, w), w.nonzero()[:, 0])
            factor = Factor(add_diagonal(matrix, float(shift)))
            out.append(-factor.solve(g[:, None])[:, 0])
        return torch.stack(out)

    def train_outputs(self, steps: Tensor) -> Tensor:
        return steps @ self._jacobian.T

    def query_outputs(self, steps: Tensor, query: RowGradients) -> Tensor:
        out = steps @ query.jacobian().T
        return out.view(len(steps), *query.shape)

    def squared_norm(self, steps: Tensor) -> Tensor:
        return steps.square().sum(dim=1)

    def parameters(self, steps: Tensor) -> Tensor:
        return steps if self._scale is None else steps * self._scale

    def eigenvalues(self) -> Tensor:
        return self._system.eigenvalues()


class _RowSpace:
    """What the two spaces of row coefficients share: a step is z = Jᵀβ."""

    def __init__(
        self,
        gradients: RowGradients,
        roots: Tensor,
        weights: Tensor,
        memory_bytes: float,
    ) -> None:
        self.gradients = gradients
        self._roots, self._weights = roots, weights
        self._memory = memory_bytes

    def kernel(self, rows: Tensor) -> Tensor:
        """Return K applied to rows (k, n·C) of coefficients."""
        raise NotImplementedError

    def gradient(self, rho: Tensor, shift: Tensor, steps: Tensor | None) -> Tensor:
        return rho if steps is None else rho + shift[:, None] * steps

    def train_outputs(self, steps: Tensor) -> Tensor:
        return self.kernel(steps)

    def query_outputs(self, steps: Tensor, query: RowGradients) -> Tensor:
        block = kernel_block(query, self.gradients, self._memory)
        return (steps @ block.T).view(len(steps), *query.shape)

    def squared_norm(self, steps: Tensor) -> Tensor:
        return (steps * self.kernel(steps)).sum(dim=1)

    def parameters(self, steps: Tensor) -> Tensor:
        out = self.gradients.vjp(steps.view(len(steps), *self.gradients.shape))
        scale = self.gradients.scale
        return out if scale is None else out * scale


class DualSpace(_RowSpace):
    """Solve in row coefficients: n·C × n·C systems."""

    name = "dual"

    def __init__(
        self,
        gradients: RowGradients,
        roots: Tensor,
        weights: Tensor,
        memory_bytes: float,
        kernel: Tensor,
    ) -> None:
        super().__init__(gradients, roots, weights, memory_bytes)
        self._kernel = kernel
        self._full = weighted_roots(roots, weights)
        self._system = ShiftedSystem(self._sandwich(self._full, kernel))

    @staticmethod
    def _sandwich(roots: Tensor, kernel: Tensor) -> Tensor:
        half = _times(roots, kernel, transpose=True)
        out = _times(roots, half.T, transpose=True)
        return (out + out.T) / 2

    def kernel(self, rows: Tensor) -> Tensor:
        return rows @ self._kernel

    def full_systems(self, shifts: list[float]) -> Iterator[FullSystem]:
        return _factored(self._system, shifts)

    def solve_full(self, gradients: Tensor, system: FullSystem) -> Tensor:
        right = _times(self._full, self.kernel(gradients).T, transpose=True)
        inner = _times(self._full, system.solve(right))
        return (inner.T - gradients) / system.shift

    def _half(self, rows: Tensor, system: FullSystem) -> tuple[Tensor, Tensor]:
        C = self._roots.shape[1]
        index = _output_index(rows, C)
        right = _times(self._full, self._kernel[:, index], transpose=True)
        return index, system.half_solve(right)

    def row_blocks(self, rows: Tensor, system: FullSystem) -> Tensor:
        C = self._roots.shape[1]
        index, half = self._half(rows, system)
        half = half.T.reshape(len(rows), C, -1)
        by_row = index.view(-1, C)
        own = self._kernel[by_row[:, :, None], by_row[:, None, :]]
        return (own - half @ half.mT) / system.shift

    def group_block(self, rows: Tensor, system: FullSystem) -> Tensor:
        index, half = self._half(rows, system)
        return (self._kernel[index][:, index] - half.T @ half) / system.shift

    def solve_subsets(
        self, gradients: Tensor, weights: Tensor, roots: Tensor, shifts: Tensor
    ) -> Tensor:
        out = []
        images = self.kernel(gradients)
        for i, w in enumerate(weights):
            kept = w.nonzero()[:, 0]
            index = _output_index(kept, self._roots.shape[1])
            root = roots if roots is self._roots else roots[i]
            root = weighted_roots(root[kept], w[kept])
            shift = float(shifts[i])
            matrix = self._sandwich(root, self._kernel[index][:, index])
            right = _times(root, images[i, index, None], transpose=True)
            inner = Factor(add_diagonal(matrix, shift)).solve(right)
            step = -gradients[i]
            step[index] += _times(root, inner)[:, 0]
            out.append(step / shift)
        return torch.stack(out)

    def eigenvalues(self) -> Tensor:
        return self._system.eigenvalues()


class MatrixFreeSpace(_RowSpace):
    """Solve in row coefficients by conjugate gradients, with K only as a product."""

    name = "cg"

    def kernel(self, rows: Tensor) -> Tensor:
        shape = self.gradients.shape
        numbers = 3 * self.gradients.n_params + shape[0] * shape[1] * 3
        size = int(self._memory / (numbers * rows.element_size()))
        out = [
            self.gradients.jvp(self.gradients.vjp(rows[part].view(-1, *shape)))
            for part in chunks(len(rows), size)
        ]
        return torch.cat(out).flatten(1)

    def full_systems(self, shifts: list[float]) -> Iterator[FullSystem]:
        return (FullSystem(shift) for shift in sorted(set(shifts)))

    def solve_full(self, gradients: Tensor, system: FullSystem) -> Tensor:
        weights = self._weights.expand(len(gradients), -1)
        shifts = gradients.new_full((len(gradients),), system.shift)
        return self.solve_subsets(gradients, weights, self._roots, shifts)

    def _blocks(self, rows: Tensor, system: FullSystem) -> Tensor:
        """Return J_X H⁻¹ J_Rᵀ transposed, (|R|·C, n·C)."""
        n, C, _ = self._roots.shape
        index = _output_index(rows, C)
        unit = self._roots.new_zeros(len(index), n * C)
        unit[torch.arange(len(index)), index] = 1.0
        return -self.kernel(self.solve_full(unit, system))

    def row_blocks(self, rows: Tensor, system: FullSystem) -> Tensor:
        C = self._roots.shape[1]
        blocks = [
            self._blocks(row[None], system)[:, _output_index(row[None], C)]
            for row in rows
        ]
        return torch.stack(blocks)

    def group_block(self, rows: Tensor, system: FullSystem) -> Tensor:
        return self._blocks(rows, system)[:, _output_index(rows, self._roots.shape[1])]

    def solve_subsets(
        self, gradients: Tensor, weights: Tensor, roots: Tensor, shifts: Tensor
    ) -> Tensor:
        shape = (len(gradients), *self.gradients.shape)
        full = roots.expand(len(gradients), -1, -1, -1) if roots.ndim == 3 else roots
        root = weights.sqrt()[..., None]

        def forward(v: Tensor) -> Tensor:  # S̃ v
            v = torch.einsum("kncd,knd->knc", full, v.view(shape) * root)
            return v.flatten(1)

        def backward(v: Tensor) -> Tensor:  # S̃ᵀ v
            v = torch.einsum("kncd,knc->knd", full, v.view(shape)) * root
            return v.flatten(1)

        inner = conjugate_gradient(
            lambda v: shifts[:, None] * v + backward(self.kernel(forward(v))),
            backward(self.kernel(gradients)),
        )
        return (forward(inner) - gradients) / shifts[:, None]

    def eigenvalues(self) -> Tensor:
        raise NotImplementedError


def _output_index(rows: Tensor, n_outputs: int) -> Tensor:
    """Return the positions of all outputs of some rows in a vector (n·C,)."""
    outputs = torch.arange(n_outputs, device=rows.device)
    return (rows[:, None] * n_outputs + outputs).view(-1)
