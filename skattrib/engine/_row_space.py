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
    apply_output_hessians,
    multiply_blocks,
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

# Most vectors that conjugate gradients hold for a right-hand side.
_CG_VECTORS = 16
# From this share of the data on, the system of all data is the preconditioner.
_MOST = 0.75


class RowSpace:
    """Base of the two spaces of row coefficients: a step is z = Jᵀβ."""

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

        Solving H for S̃γ takes no difference of large numbers. For rows that are kept,
        ρ' is the part outside the range of the curvature S̃, which is almost zero.
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
        scale = self.gradients.scale
        out = steps.new_empty(len(steps), self._n_params)
        for chunk in chunks(len(steps), self._products_at_once()):
            cotangents = steps[chunk].view(-1, *self.gradients.shape)
            out[chunk] = self.gradients.vjp(cotangents)
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

        Gradients can be mixed from these cotangents (n, C) only.
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
        kernel = self._kernel.view(n, C, -1)
        out = steps.new_empty(len(rows), C)
        size = 2 * C * self.n_coordinates * steps.element_size()
        for chunk in chunks(len(rows), int(self._memory / (SHARE * size))):
            out[chunk] = torch.bmm(kernel[rows[chunk]], steps[chunk, :, None])[..., 0]
        return out

    @staticmethod
    def _sandwich(roots: Tensor, kernel: Tensor) -> Tensor:
        # symmetric up to rounding: factorisations read one triangle only
        half = multiply_blocks(roots, kernel, transpose=True)
        return multiply_blocks(roots, half.T, transpose=True)

    def kernel(self, rows: Tensor) -> Tensor:
        return rows @ self._kernel

    def full_systems(self, shifts: Tensor) -> FullSystems:
        return FullSystems(self._system, shifts, self._memory)

    def solve_full(self, gradients: Tensor, system: FullSystem) -> Tensor:
        inner, outside = self._split(gradients, self._weights[None])
        right = -inner
        shifts = system.shifts[:, None]
        any_outside = bool(outside.any())
        if any_outside:
            bent = multiply_blocks(self._full, self.kernel(outside).T, transpose=True)
            right += bent.T / shifts
        out = multiply_blocks(self._full, system.solve(right.T)).T
        return out - outside / shifts if any_outside else out

    def row_complements(
        self, rows: Tensor, amounts: Tensor, system: FullSystem
    ) -> Tensor:
        # S̃ᵀGS̃ = I − λT⁻¹ with the roots S̃ in T: a difference in full precision
        n, C, _ = self._roots.shape
        # right-hand sides, solved, and twice in float64
        size = 8 * n * C**2 * self._roots.element_size()
        complements = []

        for chunk in chunks(len(rows), int(self._memory / (SHARE * size))):
            chunk_system = system.take(chunk)
            half = (
                self._half(rows[chunk], chunk_system).double().T.reshape(-1, C, n * C)
            )
            inner = chunk_system.shifts[:, None, None] * (half @ half.mT)
            share = (amounts[chunk] / self._weights[rows[chunk]]).double()[
                :, None, None
            ]
            eye = torch.eye(C, dtype=share.dtype, device=share.device)
            complements.append((1 - share) * eye + share * inner)

        return torch.cat(complements)

    def group_complement(
        self, rows: Tensor, amounts: Tensor, system: FullSystem
    ) -> Tensor:
        half = self._half(rows, system)
        share = (amounts / self._weights[rows]).double()
        share = share.repeat_interleave(self._roots.shape[1])
        out = share.new_zeros(len(share), len(share))
        for chunk in chunks(len(half), len(share)):
            columns = half[chunk].double()
            out.addmm_(columns.T, columns)
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
        # λ + BK and its approximate inverse are symmetric in the kernel's metric
        def hessian(v: Tensor, image: Tensor) -> Tensor:
            return shifts[:, None] * v + apply_output_hessians(image, roots, weights)

        def precondition(v: Tensor, image: Tensor) -> Tensor:
            inner = factor.solve(multiply_blocks(self._full, image.T, transpose=True))
            return v - multiply_blocks(self._full, inner).T

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
            rows = w.nonzero()[:, 0]
            index = _output_index(rows, self._roots.shape[1])
            root = weighted_roots((roots if frozen else roots[i])[rows], w[rows])
            matrix = self._sandwich(root, self._kernel[index][:, index])
            right = (
                multiply_blocks(root, images[i, index, None], transpose=True)
                / shifts[i]
            )
            right -= inner[i, index, None]
            solved = Factor(add_diagonal(matrix, float(shifts[i]))).solve(right)
            out[i, index] += multiply_blocks(root, solved)[:, 0]

        return out

    def eigenvalues(self) -> Tensor:
        return self._system.eigenvalues()


class MatrixFreeSpace(BySubtraction, RowSpace):
    """Solve in row coefficients by conjugate gradients, with K only as a product.

    Parameters
    ----------
    features : Tensor of shape (n·C, r) or None
        Their inner products approximate the kernel: the approximation of T is the
        preconditioner for solutions with most of the rows.
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
            self._near = LowRankFactor(multiply_blocks(full, features, transpose=True))

    @cached_property
    def _inverses(self) -> Tensor:
        """Pseudo-inverses of the roots, not of those next to nothing.

        Residuals of rows that the model is sure of, times these, would drown the other
        rows in the residual that iterations reduce.
        """
        sizes = self._roots.flatten(1).norm(dim=1)
        smallest = torch.finfo(sizes.dtype).eps ** 0.25 * float(sizes.max())
        return pseudo_inverse(self._roots, smallest)

    def kernel(self, rows: Tensor) -> Tensor:
        out = torch.empty_like(rows)
        shape = self.gradients.shape
        for chunk in chunks(len(rows), self._products_at_once()):
            moved = self.gradients.vjp(rows[chunk].view(-1, *shape))
            out[chunk] = self.gradients.jvp(moved).flatten(1)
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
        is_near = self._is_near(weights, roots)

        for which, factor in [(is_near, self._near), (~is_near, None)]:
            index = which.nonzero()[:, 0]
            for chunk in chunks(len(index), int(self._memory / (SHARE * size))):
                subsets = index[chunk]
                subset_roots = roots if roots is self._roots else roots[subsets]
                # never inexact: a residual in these coordinates says little about
                # the error of the step
                out[subsets] = self._solve(
                    gradients[subsets],
                    weights[subsets],
                    subset_roots,
                    shifts[subsets],
                    factor,
                )

        return out

    def _is_near(self, weights: Tensor, roots: Tensor) -> Tensor:
        """Return for which weightings (k,) T is similar to that of all rows."""
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
            return v if factor is None else factor.solve(v, shifts, kept_shares)

        kept_shares = (weights / self._weights).nan_to_num().sqrt()
        kept_shares = kept_shares.repeat_interleave(shape[2], dim=1)
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
        bent = self._curvature(full @ full.mT)
        shift = system.shifts
        return block_conjugate_gradient(lambda v: bent(v).add_(shift * v), vectors)

    def _curvature(self, blocks: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the product of vectors (q, P) with JᵀBJ for B (n, C, C)."""
        if is_dense(self.gradients):
            return FactoredJacobian(self.gradients, self._memory).curvature(blocks)

        shape = self.gradients.shape

        def product(v: Tensor) -> Tensor:
            out = torch.empty_like(v)
            for chunk in chunks(len(v), self._products_at_once()):
                images = self.gradients.jvp(v[chunk])
                bent = torch.einsum("ncd,qnd->qnc", blocks, images.view(-1, *shape))
                out[chunk] = self.gradients.vjp(bent)
            return out

        return product

    def images(self, vectors: Tensor) -> Tensor:
        out = vectors.new_empty(len(vectors), self.n_coordinates)
        for chunk in chunks(len(vectors), self._products_at_once()):
            out[chunk] = self.gradients.jvp(vectors[chunk]).flatten(1)
        return out

    def eigenvalues(self) -> Tensor:
        raise NotImplementedError


def _output_index(rows: Tensor, n_outputs: int) -> Tensor:
    """Return the positions of all outputs of some rows in a vector (n·C,)."""
    outputs = torch.arange(n_outputs, device=rows.device)
    return (rows[:, None] * n_outputs + outputs).view(-1)
