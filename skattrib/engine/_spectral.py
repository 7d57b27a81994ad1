"""Coordinates in which the full-data Hessian is diagonal at every damping.

After one eigendecomposition, leaving units out at another λ takes products with few
columns only. Large subsets are solved for in the space from which these came.
"""

from __future__ import annotations

import torch
from torch import Tensor

from skattrib.engine._functional import chunks
from skattrib.engine._gradients import RowGradients
from skattrib.engine._kernel import kernel_block
from skattrib.engine._parameter_space import (
    SHARE,
    BySubtraction,
    FullSystem,
    FullSystems,
    multiply_blocks,
)


def _take(basis: Tensor, rows: Tensor) -> Tensor:
    """Return some rows, without a copy if they follow each other."""
    if len(rows) and bool((rows.diff() == 1).all()):
        return basis[int(rows[0]) : int(rows[-1]) + 1]
    return basis[rows]


class _Spectral:
    """Base of the two spectral spaces.

    Parameters
    ----------
    values : Tensor of shape (r,)
        Eigenvalues, at least 0.
    outputs : Tensor of shape (n, C, D)
        Matrix that maps steps to changes of the outputs of training rows.
    """

    name = "spectral"

    def __init__(self, values: Tensor, outputs: Tensor, memory_bytes: float) -> None:
        self._values = values.clamp(min=0)
        self._outputs = outputs
        self._memory = memory_bytes

    @property
    def n_coordinates(self) -> int:
        return self._outputs.shape[2]

    def full_systems(self, shifts: Tensor) -> FullSystems:
        return FullSystems(None, shifts, self._memory)

    def _divisors(self, system: FullSystem) -> Tensor:
        return self._values + system.shifts[:, None]

    def _rows_at_once(self) -> int:
        """Return how many rows of the basis may be copied at once."""
        row = self._outputs[0].numel() * self._outputs.element_size()
        return int(self._memory / (2 * SHARE * row))

    def _times_rows(self, left: Tensor, rows: Tensor, basis: Tensor) -> Tensor:
        """Return left (k, C) times the rows' basis (C, ·) each."""
        out = left.new_empty(len(rows), basis.shape[2])
        for chunk in chunks(len(rows), self._rows_at_once()):
            out[chunk] = torch.bmm(left[chunk, None], _take(basis, rows[chunk]))[:, 0]
        return out

    def train_outputs(self, steps: Tensor) -> Tensor:
        return steps @ self._outputs.flatten(0, 1).T

    def row_outputs(self, steps: Tensor, rows: Tensor) -> Tensor:
        out = steps.new_empty(len(rows), self._outputs.shape[1])
        for chunk in chunks(len(rows), self._rows_at_once()):
            row_basis = _take(self._outputs, rows[chunk])
            out[chunk] = torch.bmm(row_basis, steps[chunk, :, None])[..., 0]
        return out


class SpectralPrimalSpace(_Spectral, BySubtraction):
    """Parameters in the basis of the Hessian's eigenvectors (P, P)."""

    def __init__(
        self,
        eigen: tuple[Tensor, Tensor],
        jacobian: Tensor,
        roots: Tensor,
        memory_bytes: float,
    ) -> None:
        values, self._vectors = eigen
        rotated = (jacobian @ self._vectors).view(*roots.shape[:2], -1)
        super().__init__(values, rotated, memory_bytes)
        self._roots = roots

    def mixed_gradient(self, amounts: Tensor, cotangents: Tensor) -> Tensor:
        return amounts @ torch.bmm(cotangents[:, None], self._outputs)[:, 0]

    def row_gradients(self, rows: Tensor, cotangents: Tensor) -> Tensor:
        return self._times_rows(cotangents, rows, self._outputs)

    def gradient(self, rho: Tensor, shift: Tensor, steps: Tensor | None) -> Tensor:
        out = rho @ self._outputs.flatten(0, 1)
        return out if steps is None else out + shift[:, None] * steps

    def solve_full(self, gradients: Tensor, system: FullSystem) -> Tensor:
        return -gradients / self._divisors(system)

    def row_blocks(self, rows: Tensor, system: FullSystem) -> Tensor:
        blocks = []
        for chunk in chunks(len(rows), self._rows_at_once()):
            divisor_roots = self._divisors(system.take(chunk)).sqrt()
            half = _take(self._outputs, rows[chunk]) / divisor_roots[:, None]
            blocks.append(half @ half.mT)
        return torch.cat(blocks)

    def group_block(self, rows: Tensor, system: FullSystem) -> Tensor:
        half = self._outputs[rows].flatten(0, 1) / self._divisors(system).sqrt()
        return half @ half.T

    def query_block(self, query: RowGradients) -> Tensor:
        return (query.jacobian() @ self._vectors).view(*query.shape, -1)


class SpectralDualSpace(_Spectral):
    """Row coefficients in the basis of the eigenvectors of S̃ᵀKS̃.

    A step is β = S̃Ve + Oa, where O holds, for each row, the part of its cotangent
    outside the range of the curvature S̃, if there is any.

    Parameters
    ----------
    eigen : tuple of Tensor
        Eigenvalues (n·C,) and eigenvectors V of S̃ᵀKS̃.
    gradients : RowGradients
    kernel : Tensor of shape (n·C, n·C)
    full : Tensor of shape (n, C, C)
        S̃.
    inverses : Tensor of shape (n, C, C)
        S̃⁻¹, where there is an inverse.
    inner, outside : Tensor of shape (n, C)
        The cotangents of which gradients are mixed, split into S̃·inner + outside.
    weights : Tensor of shape (n,)
    """

    def __init__(
        self,
        eigen: tuple[Tensor, Tensor],
        gradients: RowGradients,
        kernel: Tensor,
        full: Tensor,
        inverses: Tensor,
        inner: Tensor,
        outside: Tensor,
        weights: Tensor,
        memory_bytes: float,
    ) -> None:
        values, vectors = eigen
        n, C, _ = full.shape
        self._gradients, self._full, self._inverses = gradients, full, inverses
        self._inner, self._weights = inner, weights
        self._vectors = vectors.view(n, C, -1)
        self._outside = outside if bool(outside.any()) else outside[:0]
        self._memory = memory_bytes
        outputs = self._in_coordinates(kernel)
        super().__init__(values, outputs.view(n, C, -1), memory_bytes)
        # VᵀS̃ᵀKO
        reached = multiply_blocks(full, outputs[:, n * C :], transpose=True)
        self._bent = reached.T @ vectors

    def _in_coordinates(self, block: Tensor) -> Tensor:
        """Return the block (m, n·C) of the kernel as a matrix on coordinates."""
        n, C, r = self._vectors.shape
        out = block.new_empty(len(block), r + len(self._outside))
        out[:, :r] = block @ multiply_blocks(self._full, self._vectors.flatten(0, 1))
        if len(self._outside):
            out[:, r:] = torch.einsum("mnc,nc->mn", block.view(-1, n, C), self._outside)
        return out

    def _padded(self, inner: Tensor) -> Tensor:
        return torch.nn.functional.pad(inner, (0, len(self._outside)))

    def mixed_gradient(self, amounts: Tensor, cotangents: Tensor) -> Tensor:
        """Return gradients of the cotangents given in `__init__`, not of these."""
        rotated = torch.bmm(self._inner[:, None], self._vectors)[:, 0]
        extra = amounts if len(self._outside) else amounts[:, :0]
        return torch.cat([amounts @ rotated, extra], dim=1)

    def row_gradients(self, rows: Tensor, cotangents: Tensor) -> Tensor:
        inner = torch.bmm(self._inverses[rows], cotangents[..., None])
        coordinates = self._times_rows(inner[..., 0], rows, self._vectors)
        if not len(self._outside):
            return coordinates
        # what the curvature does not reach, as a share of that of the row's cotangent
        missed = cotangents - torch.bmm(self._full[rows], inner)[..., 0]
        rounding = 10 * torch.finfo(missed.dtype).eps * cotangents.abs().amax(1, True)
        missed = missed.masked_fill(missed.abs() <= rounding, 0.0)
        own = self._outside[rows]
        sizes = own.square().sum(dim=1)
        share = (missed * own).sum(dim=1) / torch.where(sizes > 0, sizes, 1.0)
        extra = coordinates.new_zeros(len(rows), len(self._outside))
        extra[torch.arange(len(rows), device=rows.device), rows] = share
        return torch.cat([coordinates, extra], dim=1)

    def gradient(self, rho: Tensor, shift: Tensor, steps: Tensor | None) -> Tensor:
        """Return the gradient for ρ in the range of the curvature, without steps."""
        blocks = rho.view(len(rho), *self._full.shape[:2])
        inner = torch.einsum("ncd,knd->knc", self._inverses, blocks).flatten(1)
        return self._padded(inner @ self._vectors.flatten(0, 1))

    def solve_full(self, gradients: Tensor, system: FullSystem) -> Tensor:
        r = len(self._values)
        shifts = system.shifts[:, None]
        inner, extra = gradients[:, :r], gradients[:, r:] / shifts
        solved = (extra @ self._bent - inner) / self._divisors(system)
        return torch.cat([solved, -extra], dim=1)

    def row_complements(
        self, rows: Tensor, amounts: Tensor, system: FullSystem
    ) -> Tensor:
        # as in `DualSpace`, where no difference of large numbers is taken either
        complements = []
        C = self._full.shape[1]
        for chunk in chunks(len(rows), self._rows_at_once()):
            row_vectors = _take(self._vectors, rows[chunk])
            chunk_system = system.take(chunk)
            damped = chunk_system.shifts[:, None] / self._divisors(chunk_system)
            inner = torch.bmm(row_vectors * damped[:, None], row_vectors.mT).double()
            inner = (inner + inner.mT) / 2
            share = (amounts[chunk] / self._weights[rows[chunk]]).double()[
                :, None, None
            ]
            eye = torch.eye(C, dtype=share.dtype, device=share.device)
            complements.append((1 - share) * eye + share * inner)

        return torch.cat(complements)

    def group_complement(
        self, rows: Tensor, amounts: Tensor, system: FullSystem
    ) -> Tensor:
        half = self._vectors[rows].flatten(0, 1) / self._divisors(system).sqrt()
        share = (amounts / self._weights[rows]).double()
        share = share.repeat_interleave(self._full.shape[1])
        out = (half.double() @ half.double().T) * system.shifts
        out *= (share * share[:, None]).sqrt()
        out.diagonal().add_(1 - share)
        return out

    def query_block(self, query: RowGradients) -> Tensor:
        block = kernel_block(query, self._gradients, self._memory)
        return self._in_coordinates(block).view(*query.shape, -1)
