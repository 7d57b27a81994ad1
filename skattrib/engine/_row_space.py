"""Coordinates of training rows: a step is z = Jᵀβ with n·C coefficients β.

With H = JᵀBJ + λI, B = S̃S̃ᵀ and K = JJᵀ, a solve of H is one of T = λI + S̃ᵀKS̃
(Woodbury, never K(…)K):

- `DualSpace` factors T;
- `MatrixFreeSpace` takes conjugate gradients, and K never exists.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from skattrib.engine._functional import chunks
from skattrib.engine._gradients import RowGradients, is_dense
from skattrib.engine._jacobian import FactoredJacobian
from skattrib.engine._kernel import kernel_block
from skattrib.engine._parameter_space import (
    EXACT,
    SHARE,
    ByIteration,
    BySubtraction,
    FullSystem,
    FullSystems,
    bend,
    times,
    weighted_roots,
)
from skattrib.engine._solvers import (
    EigenFactor,
    Factor,
    LowRankFactor,
    ShiftedSystem,
    add_diagonal,
    block_conjugate_gradient,
    conjugate_gradient,
    preconditioned_gradient,
    pseudo_inverse,
)
from skattrib.engine._spectral import SpectralDualSpace

# Vectors that conjugate gradients hold for a right-hand side, at their peak.
_CG_VECTORS = 16
# From this share of the data on, that of all of it preconditions.
_MOST = 0.75


class RowSpace:
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

    @cached_property
    def _inverses(self) -> Tensor:
        return pseudo_inverse(self._roots)

    @property
    def n_coordinates(self) -> int:
        return self._roots.shape[0] * self._roots.shape[1]

    def _split(self, gradients: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Split ρ into S̃γ + ρ' for weights (k, n); return γ and ρ', (k, n·C).

        Where H is to be solved for S̃γ, no difference of large numbers is taken. Of
        rows that are kept, ρ' is what the curvature S̃ cannot reach: next to nothing.
        """
        roots = weights.sqrt()[..., None]
        blocks = gradients.view(len(gradients), *self._roots.shape[:2])
        inner = torch.einsum("ncd,knd->knc", self._inverses, blocks)
        inner = torch.where(roots > 0, inner / roots, 0.0)
        outside = blocks - torch.einsum("ncd,knd->knc", self._roots, inner) * roots
        rounding = 10 * torch.finfo(blocks.dtype).eps * blocks.abs().amax((1, 2), True)
        noise = outside.abs().amax(2, True) <= rounding
        return inner.flatten(1), outside.masked_fill(noise, 0.0).flatten(1)

    def kernel(self, rows: Tensor) -> Tensor:
        """Return K applied to rows (k, n·C) of coefficients."""
        raise NotImplementedError

    def gradient(self, rho: Tensor, shift: Tensor, steps: Tensor | None) -> Tensor:
        return rho if steps is None else rho + shift[:, None] * steps

    def mixed_gradient(self, amounts: Tensor, cotangents: Tensor) -> Tensor:
        return (amounts[..., None] * cotangents).flatten(1)

    def row_gradients(self, rows: Tensor, cotangents: Tensor) -> Tensor:
        out = cotangents.new_zeros(len(rows), *self._roots.shape[:2])
        out[torch.arange(len(rows), device=rows.device), rows] = cotangents
        return out.flatten(1)

    def train_outputs(self, steps: Tensor) -> Tensor:
        return self.kernel(steps)

    def row_outputs(self, steps: Tensor, rows: Tensor) -> Tensor:
        images = self.kernel(steps).view(len(rows), *self._roots.shape[:2])
        return images[torch.arange(len(rows), device=rows.device), rows]

    def query_block(self, query: RowGradients) -> Tensor:
        block = kernel_block(query, self.gradients, self._memory)
        return block.view(*query.shape, -1)

    def squared_norm(self, steps: Tensor) -> Tensor:
        return (steps * self.kernel(steps)).sum(dim=1)

    def parameters(self, steps: Tensor) -> Tensor:
        scale, out = self.gradients.scale, steps.new_empty(len(steps), self._n_params)
        for part in chunks(len(steps), self._products_at_once()):
            cotangents = steps[part].view(-1, *self.gradients.shape)
            out[part] = self.gradients.vjp(cotangents)
        return out if scale is None else out.mul_(scale)

    @property
    def _n_params(self) -> int:
        return self.gradients.n_params

    def _products_at_once(self) -> int:
        """Return how many vectors to multiply by the Jacobian at once."""
        size = self.gradients.n_temporaries * self._roots.element_size()
        return int(self._memory / (SHARE * size))


class DualSpace(ByIteration, RowSpace):
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

    def decomposed(self) -> DualSpace:
        out = copy.copy(self)
        out._system = self._system.decomposed()
        return out

    def spectral(self, cotangents: Tensor) -> SpectralDualSpace:
        """Return coordinates for leaving out units at many λ.

        Gradients are to be mixed of these cotangents (n, C) only.
        """
        inner, outside = self._split(cotangents.reshape(1, -1), self._weights[None])
        roots = self._weights.sqrt()[:, None, None]
        return SpectralDualSpace(
            self._system.eigen(),
            self.gradients,
            self._kernel,
            self._full,
            torch.where(roots > 0, self._inverses / roots, 0.0),
            inner.view_as(cotangents),
            outside.view_as(cotangents),
            self._weights,
            self._memory,
        )

    def row_outputs(self, steps: Tensor, rows: Tensor) -> Tensor:
        n, C, _ = self._roots.shape
        kernel, out = self._kernel.view(n, C, -1), steps.new_empty(len(rows), C)
        size = 2 * C * self.n_coordinates * steps.element_size()
        for part in chunks(len(rows), int(self._memory / (SHARE * size))):
            out[part] = torch.bmm(kernel[rows[part]], steps[part, :, None])[..., 0]
        return out

    @staticmethod
    def _sandwich(roots: Tensor, kernel: Tensor) -> Tensor:
        # symmetric but for rounding: what factors it reads one triangle
        half = times(roots, kernel, transpose=True)
        return times(roots, half.T, transpose=True)

    def kernel(self, rows: Tensor) -> Tensor:
        return rows @ self._kernel

    def full_systems(self, shifts: Tensor) -> FullSystems:
        return FullSystems(self._system, shifts, self._memory)

    def solve_full(self, gradients: Tensor, system: FullSystem) -> Tensor:
        inner, outside = self._split(gradients, self._weights[None])
        right, shifts = -inner, system.shifts[:, None]
        some = bool(outside.any())
        if some:
            bent = times(self._full, self.kernel(outside).T, transpose=True)
            right += bent.T / shifts
        out = times(self._full, system.solve(right.T)).T
        return out - outside / shifts if some else out

    def row_complements(
        self, rows: Tensor, amounts: Tensor, system: FullSystem
    ) -> Tensor:
        # S̃ᵀGS̃ = I − λT⁻¹ with the roots S̃ in T: a difference in full precision
        n, C, _ = self._roots.shape
        # right-hand sides, solved, and twice in float64
        size = 8 * n * C**2 * self._roots.element_size()
        out = []
        for part in chunks(len(rows), int(self._memory / (SHARE * size))):
            some = system.take(part)
            half = self._half(rows[part], some).double().T.reshape(-1, C, n * C)
            inner = some.shifts[:, None, None] * (half @ half.mT)
            share = (amounts[part] / self._weights[rows[part]]).double()[:, None, None]
            eye = torch.eye(C, dtype=share.dtype, device=share.device)
            out.append((1 - share) * eye + share * inner)
        return torch.cat(out)

    def group_complement(
        self, rows: Tensor, amounts: Tensor, system: FullSystem
    ) -> Tensor:
        half = self._half(rows, system)
        share = (amounts / self._weights[rows]).double()
        share = share.repeat_interleave(self._roots.shape[1])
        out = share.new_zeros(len(share), len(share))
        for part in chunks(len(half), len(share)):
            some = half[part].double()
            out.addmm_(some.T, some)
        out *= system.shifts * (share * share[:, None]).sqrt()
        out.diagonal().add_(1 - share)
        return out

    def _half(self, rows: Tensor, system: FullSystem) -> Tensor:
        """Return V with VᵀV the block of T⁻¹."""
        return system.half_columns(_output_index(rows, self._roots.shape[1]))

    def _numbers_per_subset(self) -> int:
        return 2 * self.n_coordinates

    def _iterate(
        self,
        gradients: Tensor,
        weights: Tensor,
        roots: Tensor,
        shifts: Tensor,
        factor: Factor | EigenFactor,
        tol: float,
    ) -> tuple[Tensor, Tensor]:
        # λ + BK, and its approximate inverse, are symmetric in the kernel
        def hessian(v: Tensor, image: Tensor) -> Tensor:
            return shifts[:, None] * v + bend(image, roots, weights)

        def precondition(v: Tensor, image: Tensor) -> Tensor:
            inner = factor.solve(times(self._full, image.T, transpose=True))
            return v - times(self._full, inner).T

        return preconditioned_gradient(
            hessian, -gradients, precondition, metric=self.kernel, tol=tol
        )

    def _solve_directly(
        self, gradients: Tensor, weights: Tensor, roots: Tensor, shifts: Tensor
    ) -> Tensor:
        frozen = roots is self._roots
        inner, outside = torch.zeros_like(gradients), gradients
        if frozen:
            inner, outside = self._split(gradients, weights)
        images = self.kernel(outside)
        out = -outside / shifts[:, None]
        for i, w in enumerate(weights):
            kept = w.nonzero()[:, 0]
            index = _output_index(kept, self._roots.shape[1])
            root = weighted_roots((roots if frozen else roots[i])[kept], w[kept])
            matrix = self._sandwich(root, self._kernel[index][:, index])
            right = times(root, images[i, index, None], transpose=True) / shifts[i]
            right -= inner[i, index, None]
            solved = Factor(add_diagonal(matrix, float(shifts[i]))).solve(right)
            out[i, index] += times(root, solved)[:, 0]
        return out

    def eigenvalues(self) -> Tensor:
        return self._system.eigenvalues()


class MatrixFreeSpace(BySubtraction, RowSpace):
    """Solve in row coefficients by conjugate gradients, with K only as a product.

    Parameters
    ----------
    features : Tensor of shape (n·C, r) or None
        Their inner products come near the kernel: what they see of T preconditions
        the solutions for most of the rows.
    """

    name = "cg"

    def __init__(
        self,
        gradients: RowGradients,
        roots: Tensor,
        weights: Tensor,
        memory_bytes: float,
        features: Tensor | None = None,
    ) -> None:
        super().__init__(gradients, roots, weights, memory_bytes)
        self._near: LowRankFactor | None = None
        if features is not None:
            full = weighted_roots(roots, weights)
            self._near = LowRankFactor(times(full, features, transpose=True))

    def kernel(self, rows: Tensor) -> Tensor:
        out, shape = torch.empty_like(rows), self.gradients.shape
        for part in chunks(len(rows), self._products_at_once()):
            moved = self.gradients.vjp(rows[part].view(-1, *shape))
            out[part] = self.gradients.jvp(moved).flatten(1)
        return out

    def decomposed(self) -> MatrixFreeSpace:
        return self

    def full_systems(self, shifts: Tensor) -> FullSystems:
        return FullSystems(None, shifts, self._memory)

    def solve_full(self, gradients: Tensor, system: FullSystem) -> Tensor:
        weights = self._weights.expand(len(gradients), -1)
        shifts = system.shifts.expand(len(gradients))
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
            self._blocks(row[None], system.take(slice(i, i + 1)))[
                :, _output_index(row[None], C)
            ]
            for i, row in enumerate(rows)
        ]
        return torch.stack(blocks)

    def group_block(self, rows: Tensor, system: FullSystem) -> Tensor:
        return self._blocks(rows, system)[:, _output_index(rows, self._roots.shape[1])]

    def solve_subsets(
        self,
        gradients: Tensor,
        weights: Tensor,
        roots: Tensor,
        shifts: Tensor,
        tol: float = EXACT,
    ) -> Tensor:
        size = _CG_VECTORS * gradients.shape[1] * gradients.element_size()
        out = torch.empty_like(gradients)
        near = self._is_near(weights, roots)
        for which, factor in [(near, self._near), (~near, None)]:
            index = which.nonzero()[:, 0]
            for part in chunks(len(index), int(self._memory / (SHARE * size))):
                some = index[part]
                own = roots if roots is self._roots else roots[some]
                # a residual in these coordinates says little about the step: never
                # loose
                out[some] = self._solve(
                    gradients[some], weights[some], own, shifts[some], factor
                )
        return out

    def _is_near(self, weights: Tensor, roots: Tensor) -> Tensor:
        """Return which weightings (k,) leave T near that of all rows."""
        if self._near is None or roots is not self._roots:
            return torch.zeros_like(weights[:, 0], dtype=torch.bool)
        much = weights.sum(dim=1) >= _MOST * self._weights.sum()
        return much & (weights <= self._weights).all(dim=1)

    def _solve(
        self,
        gradients: Tensor,
        weights: Tensor,
        roots: Tensor,
        shifts: Tensor,
        factor: LowRankFactor | None,
    ) -> Tensor:
        shape = (len(gradients), *self.gradients.shape)
        root, axes = weights.sqrt()[..., None], "kncd"[4 - roots.ndim :]

        def forward(v: Tensor) -> Tensor:  # S̃ v
            v = torch.einsum(f"{axes},knd->knc", roots, v.view(shape) * root)
            return v.flatten(1)

        def backward(v: Tensor) -> Tensor:  # S̃ᵀ v
            v = torch.einsum(f"{axes},knc->knd", roots, v.view(shape)) * root
            return v.flatten(1)

        inner, outside = torch.zeros_like(gradients), gradients
        if roots is self._roots:
            inner, outside = self._split(gradients, weights)

        def precondition(v: Tensor) -> Tensor:
            return v if factor is None else factor.solve(v, shifts, kept)

        kept = (weights / self._weights).nan_to_num().sqrt()
        kept = kept.repeat_interleave(shape[2], dim=1)
        right = backward(self.kernel(outside)) / shifts[:, None] - inner
        solved = conjugate_gradient(
            lambda v: shifts[:, None] * v + backward(self.kernel(forward(v))),
            right,
            precondition=precondition,
            tol=EXACT,
        )
        return forward(solved) - outside / shifts[:, None]

    def solve_in_parameters(self, vectors: Tensor, system: FullSystem) -> Tensor:
        full = weighted_roots(self._roots, self._weights)
        bent, shift = self._curvature(full @ full.mT), system.shifts
        return block_conjugate_gradient(lambda v: bent(v).add_(shift * v), vectors)

    def _curvature(self, blocks: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the product of vectors (q, P) with JᵀBJ for B (n, C, C)."""
        if is_dense(self.gradients):
            return FactoredJacobian(self.gradients, self._memory).curvature(blocks)
        shape = self.gradients.shape

        def product(v: Tensor) -> Tensor:
            out = torch.empty_like(v)
            for part in chunks(len(v), self._products_at_once()):
                images = self.gradients.jvp(v[part])
                bent = torch.einsum("ncd,qnd->qnc", blocks, images.view(-1, *shape))
                out[part] = self.gradients.vjp(bent)
            return out

        return product

    def images(self, vectors: Tensor) -> Tensor:
        out = vectors.new_empty(len(vectors), self.n_coordinates)
        for part in chunks(len(vectors), self._products_at_once()):
            out[part] = self.gradients.jvp(vectors[part]).flatten(1)
        return out

    def eigenvalues(self) -> Tensor:
        raise NotImplementedError


def _output_index(rows: Tensor, n_outputs: int) -> Tensor:
    """Return the positions of all outputs of some rows in a vector (n·C,)."""
    outputs = torch.arange(n_outputs, device=rows.device)
    return (rows[:, None] * n_outputs + outputs).view(-1)
