"""Coordinates in which the linearised model is solved: the parameters.

The damped generalised Gauss-Newton Hessian of a linearised model is
H = JᵀBJ + λI with B = diag(w S Sᵀ) over rows (the metric is in J's columns).
`PrimalSpace` solves in the P parameters: H itself.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from skattrib.engine._functional import chunks
from skattrib.engine._gradients import RowGradients
from skattrib.engine._jacobian import FactoredJacobian, jacobian_of
from skattrib.engine._solvers import (
    EIGH_AFTER,
    EigenFactor,
    Factor,
    ShiftedSystem,
    preconditioned_gradient,
)

# One temporary may take 1 / SHARE of the memory cap.
SHARE = 4
# Rows of a Jacobian that are always multiplied together.
_FEW_ROWS = 16
# From this share of the data on, the Hessian of all data approximates that of a part.
_MUCH = 0.2
# The inverse of a factor, in float64, with its factor and a copy: bytes per entry.
_INVERSE_BYTES = 24
#: Relative error at which a solution counts as exact.
EXACT = 1e-11


def multiply_blocks(roots: Tensor, columns: Tensor, transpose: bool = False) -> Tensor:
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
    """The system of all rows at one λ per weighting, factored if the space factors.

    Attributes
    ----------
    shifts : Tensor of shape (m,)
        λ of m weightings, or of all weightings if m = 1.
    """

    shifts: Tensor
    factor: Any = None

    def take(self, which: Tensor | slice) -> FullSystem:
        """Return the system of some of the weightings."""
        if len(self.shifts) == 1:
            return self
        shifts, factor = self.shifts[which], self.factor
        if isinstance(factor, EigenFactor):
            factor = factor.at(shifts)
        return FullSystem(shifts, factor)

    def solve(self, rhs: Tensor) -> Tensor:
        """Return (A + λI)⁻¹ rhs; columns are m groups."""
        return self.factor.solve(rhs)

    def half_solve(self, rhs: Tensor) -> Tensor:
        """Return V with VᵀV = rhsᵀ (A + λI)⁻¹ rhs."""
        return self.factor.half_solve(rhs)

    def inverse(self) -> Tensor:
        """Return (A + λI)⁻¹ for one λ, in float64."""
        return self.factor.inverse()

    def half_columns(self, index: Tensor) -> Tensor:
        """Return `half_solve` of columns of the identity."""
        return self.factor.half_columns(index)


class FullSystems:
    """The systems of all rows at several λ.

    Many λ share one eigendecomposition; for few, factors are stored while they fit.

    Parameters
    ----------
    system : ShiftedSystem or None
        None where nothing is factored.
    shifts : Tensor of shape (k,)
        All λ that will be used.
    memory_bytes : float
    """

    def __init__(
        self, system: ShiftedSystem | None, shifts: Tensor, memory_bytes: float
    ) -> None:
        self._system = system
        self._eigen: EigenFactor | None = None
        self._kept: dict[float, Factor | EigenFactor] = {}
        self._distinct = shifts.unique()
        self._n_kept = 0
        if system is not None:
            matrix = system.matrix
            size = SHARE * matrix.numel() * matrix.element_size()
            self._n_kept = int(memory_bytes / size)

    def groups(self, shifts: Tensor) -> Iterator[tuple[Tensor, FullSystem]]:
        """Yield positions in ``shifts`` and the system that they share."""
        positions = torch.arange(len(shifts), device=shifts.device)
        if self._system is None:
            yield positions, FullSystem(shifts)
        elif self._system.is_decomposed or len(self._distinct) > EIGH_AFTER:
            if self._eigen is None:
                self._eigen = self._system.eigen_factor(self._distinct)
            yield positions, FullSystem(shifts, self._eigen.at(shifts))
        else:
            for shift in shifts.unique():
                full_system = FullSystem(shift[None], self._factor(self._system, shift))
                yield positions[shifts == shift], full_system

    def _factor(self, system: ShiftedSystem, shift: Tensor) -> Factor | EigenFactor:
        key = float(shift)
        factor = self._kept.get(key)
        if factor is None:
            factor = system.factor(key)
            if len(self._kept) < self._n_kept:
                self._kept[key] = factor
        return factor


class Space(Protocol):
    """Coordinates as `LinearizedModel` uses them; k steps are rows (k, D)."""

    name: str

    @property
    def n_coordinates(self) -> int:
        """Numbers D in a step."""

    def gradient(self, rho: Tensor, shift: Tensor, steps: Tensor | None) -> Tensor:
        """Return Jᵀρ + λz in these coordinates, ρ (k, n·C), λ (k,)."""

    def mixed_gradient(self, amounts: Tensor, cotangents: Tensor) -> Tensor:
        """Return Σᵢ amountsᵢ Jᵢᵀ uᵢ, amounts (k, n), u (n, C)."""

    def row_gradients(self, rows: Tensor, cotangents: Tensor) -> Tensor:
        """Return Jᵢᵀ u of a row each, rows (k,), u (k, C)."""

    def decomposed(self) -> Space:
        """Return this space with one eigendecomposition for every λ, if it factors."""

    def full_systems(self, shifts: Tensor) -> FullSystems:
        """Prepare the full-data systems of all these λ (k,)."""

    def solve_full(self, gradients: Tensor, system: FullSystem) -> Tensor:
        """Return −H⁻¹g with the Hessian of all rows."""

    def row_complements(
        self, rows: Tensor, amounts: Tensor, system: FullSystem
    ) -> Tensor:
        """Return I − S̃ᵀ J_i H⁻¹ J_iᵀ S̃, S̃ = √d S, for rows by themselves.

        It describes H without d of a row's weight, relative to H; (len(rows), C, C) in
        float64. The system's weightings are the rows.
        """

    def group_complement(
        self, rows: Tensor, amounts: Tensor, system: FullSystem
    ) -> Tensor:
        """Return I − S̃ᵀ J_R H⁻¹ J_Rᵀ S̃ for the rows of a group, (|R|·C, |R|·C)."""

    def solve_subsets(
        self,
        gradients: Tensor,
        weights: Tensor,
        roots: Tensor,
        shifts: Tensor,
        tol: float = EXACT,
    ) -> Tensor:
        """Return −H(w)⁻¹g for each weighting by itself; roots (k or 1, n, C, C)."""

    def train_outputs(self, steps: Tensor) -> Tensor:
        """Return Jz on the training rows, (k, n·C)."""

    def row_outputs(self, steps: Tensor, rows: Tensor) -> Tensor:
        """Return Jᵢz on a training row for each step, (k, C)."""

    def query_block(self, query: RowGradients) -> Tensor:
        """Return the matrices that map steps z to Jz on other rows, (q, C, D)."""

    def squared_norm(self, steps: Tensor) -> Tensor:
        """Return zᵀz, (k,)."""

    def parameters(self, steps: Tensor) -> Tensor:
        """Return the steps as changes of the parameters, (k, P)."""

    def eigenvalues(self) -> Tensor:
        """Return the eigenvalues of JᵀBJ that can differ from zero."""


def minus_from_one(blocks: Tensor) -> Tensor:
    """Return I − blocks, symmetric, in float64."""
    blocks = blocks.double()
    eye = torch.eye(blocks.shape[-1], dtype=blocks.dtype, device=blocks.device)
    return eye - (blocks + blocks.mT) / 2


class SolvesQueries(Protocol):
    """Spaces whose full system can be solved for vectors of parameters."""

    def solve_in_parameters(self, vectors: Tensor, system: FullSystem) -> Tensor:
        """Return H⁻¹ applied to vectors (q, P) of parameters, in the metric."""

    def images(self, vectors: Tensor) -> Tensor:
        """Return the changes of training outputs (q, n·C) by parameters (q, P)."""


class BySubtraction:
    """Mixin with the complements of spaces that compute J H⁻¹ Jᵀ itself."""

    _roots: Tensor
    _memory: float

    def row_blocks(self, rows: Tensor, system: FullSystem) -> Tensor:
        """Return J_i H⁻¹ J_iᵀ for every row, (len(rows), C, C)."""
        raise NotImplementedError

    def group_block(self, rows: Tensor, system: FullSystem) -> Tensor:
        """Return J_R H⁻¹ J_Rᵀ, (|R|·C, |R|·C)."""
        raise NotImplementedError

    def row_complements(
        self, rows: Tensor, amounts: Tensor, system: FullSystem
    ) -> Tensor:
        blocks = self.row_blocks(rows, system)
        roots = weighted_roots(self._roots[rows], amounts).to(blocks)
        return minus_from_one(roots.mT @ blocks @ roots)

    def group_complement(
        self, rows: Tensor, amounts: Tensor, system: FullSystem
    ) -> Tensor:
        block = self.group_block(rows, system)
        roots = weighted_roots(self._roots[rows], amounts).to(block)
        half = multiply_blocks(roots, block, transpose=True)
        return minus_from_one(multiply_blocks(roots, half.T, transpose=True))


def apply_output_hessians(images: Tensor, roots: Tensor, weights: Tensor) -> Tensor:
    """Return w S Sᵀ applied to outputs (k, n·C), roots (n, C, C) or (k, n, C, C)."""
    rows = "kncd"[4 - roots.ndim :]
    blocks = images.view(*weights.shape, -1)
    bent = torch.einsum(f"{rows},knc->knd", roots, blocks) * weights[..., None]
    return torch.einsum(f"{rows},knd->knc", roots, bent).flatten(1)


class ByIteration:
    """Mixin of spaces that solve for large subsets by conjugate gradients.

    The Hessian of a large subset is similar to that of all data times its share, whose
    factor is the preconditioner.
    """

    _roots: Tensor
    _weights: Tensor
    _memory: float
    _system: ShiftedSystem

    def solve_subsets(
        self,
        gradients: Tensor,
        weights: Tensor,
        roots: Tensor,
        shifts: Tensor,
        tol: float = EXACT,
    ) -> Tensor:
        steps = torch.zeros_like(gradients)
        share = weights.sum(dim=1) / self._weights.sum()
        unsolved = share < _MUCH
        index = (~unsolved).nonzero()[:, 0]
        if len(index):
            typical_shift = float((shifts[index] / share[index]).median())
            factor = self._system.factor(typical_shift)
            numbers = 8 * self._numbers_per_subset()
            size = self._memory / (SHARE * numbers * steps.element_size())
            for chunk in chunks(len(index), int(size)):
                subsets = index[chunk]
                subset_roots = roots if roots is self._roots else roots[subsets]
                steps[subsets], unsolved[subsets] = self._iterate(
                    gradients[subsets],
                    weights[subsets],
                    subset_roots,
                    shifts[subsets],
                    factor,
                    tol,
                )

        if bool(unsolved.any()):
            subset_roots = roots if roots is self._roots else roots[unsolved]
            steps[unsolved] = self._solve_directly(
                gradients[unsolved], weights[unsolved], subset_roots, shifts[unsolved]
            )

        return steps

    def _numbers_per_subset(self) -> int:
        """Return how many numbers are held for each subset."""
        raise NotImplementedError

    def _iterate(
        self,
        gradients: Tensor,
        weights: Tensor,
        roots: Tensor,
        shifts: Tensor,
        factor: Factor | EigenFactor,
        tol: float,
    ) -> tuple[Tensor, Tensor]:
        """Return the steps by conjugate gradients, and which did not converge."""
        raise NotImplementedError

    def _solve_directly(
        self, gradients: Tensor, weights: Tensor, roots: Tensor, shifts: Tensor
    ) -> Tensor:
        """Return the steps by a factor for each subset."""
        raise NotImplementedError


class PrimalSpace(ByIteration, BySubtraction):
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
        self._jacobian = jacobian_of(gradients, memory_bytes)
        self._scale = gradients.scale
        self._roots, self._weights = roots, weights
        full = self._jacobian.gauss_newton(weighted_roots(roots, weights))
        self._system = ShiftedSystem(full)

    def decomposed(self) -> PrimalSpace:
        out = copy.copy(self)
        out._system = self._system.decomposed()
        return out

    def eigen(self) -> tuple[Tensor, Tensor]:
        """Return eigenvalues and eigenvectors of JᵀBJ."""
        return self._system.eigen()

    def jacobian(self) -> Tensor:
        """Return the Jacobian (n·C, P) of the training rows."""
        return self._jacobian.explicit()

    @property
    def n_coordinates(self) -> int:
        return self._jacobian.n_params

    def gradient(self, rho: Tensor, shift: Tensor, steps: Tensor | None) -> Tensor:
        out = self._jacobian.vjp(rho)
        return out if steps is None else out + shift[:, None] * steps

    def mixed_gradient(self, amounts: Tensor, cotangents: Tensor) -> Tensor:
        out = amounts.new_zeros(len(amounts), self.n_coordinates)
        rows = torch.arange(len(cotangents), device=cotangents.device)
        size = 3 * self.n_coordinates * cotangents.element_size()
        for chunk in chunks(len(rows), int(self._memory / (SHARE * size))):
            gradients = self._jacobian.row_vjp(rows[chunk], cotangents[chunk])
            out.addmm_(amounts[:, chunk], gradients)
        return out

    def row_gradients(self, rows: Tensor, cotangents: Tensor) -> Tensor:
        return self._jacobian.row_vjp(rows, cotangents)

    def row_outputs(self, steps: Tensor, rows: Tensor) -> Tensor:
        return self._jacobian.row_jvp(rows, steps)

    def full_systems(self, shifts: Tensor) -> FullSystems:
        return FullSystems(self._system, shifts, self._memory)

    def solve_full(self, gradients: Tensor, system: FullSystem) -> Tensor:
        return -system.solve(gradients.T).T

    def row_blocks(
        self, rows: Tensor, system: FullSystem, basis: Tensor | None = None
    ) -> Tensor:
        P, C = self.n_coordinates, self._roots.shape[1]
        if isinstance(self._jacobian, FactoredJacobian) and self.inverse_pays(
            len(rows), system
        ):
            blocks = self._jacobian.leverages(system.inverse(), rows)
            if basis is None:
                return blocks
            basis = basis.to(blocks)
            return basis.T @ blocks @ basis
        parts = []
        # a row's gradients, and their copies while systems are solved
        size = 4 * C * P * self._roots.element_size()
        at_once = max(_FEW_ROWS, int(self._memory / (SHARE * size)))
        for chunk in chunks(len(rows), at_once):
            gradients = self._jacobian.of_rows(rows[chunk])
            if basis is not None:
                gradients = basis.T @ gradients
            half = system.take(chunk).half_solve(gradients.flatten(0, 1).T)
            half = half.T.reshape(len(gradients), -1, P)
            parts.append(half @ half.mT)
        return torch.cat(parts)

    def inverse_pays(self, n_rows: int, system: FullSystem) -> bool:
        """Return whether the inverse, in float64, is cheaper than solving for rows."""
        P, C = self.n_coordinates, self._roots.shape[1]
        fits = _INVERSE_BYTES * P**2 <= self._memory
        return fits and len(system.shifts) == 1 and n_rows * (C / 2 - 1) > P

    def group_block(self, rows: Tensor, system: FullSystem) -> Tensor:
        half = self._half(rows, system)
        return half.T @ half

    def _half(self, rows: Tensor, system: FullSystem) -> Tensor:
        """Return V with VᵀV = J_R H⁻¹ J_Rᵀ."""
        return system.half_solve(self._jacobian.of_rows(rows).flatten(0, 1).T)

    def _numbers_per_subset(self) -> int:
        return self._roots.shape[0] * self._roots.shape[1] + self.n_coordinates

    def _solve_directly(
        self, gradients: Tensor, weights: Tensor, roots: Tensor, shifts: Tensor
    ) -> Tensor:
        steps = torch.zeros_like(gradients)
        for i, w in enumerate(weights):
            root = weighted_roots(roots if roots is self._roots else roots[i], w)
            matrix = self._jacobian.gauss_newton(root, w.nonzero()[:, 0])
            matrix.diagonal().add_(shifts[i])
            steps[i] = -Factor(matrix).solve(gradients[i, :, None])[:, 0]
        return steps

    def _iterate(
        self,
        gradients: Tensor,
        weights: Tensor,
        roots: Tensor,
        shifts: Tensor,
        factor: Factor | EigenFactor,
        tol: float,
    ) -> tuple[Tensor, Tensor]:
        def hessian(v: Tensor, _: Tensor) -> Tensor:
            bent = apply_output_hessians(self._jacobian.jvp(v), roots, weights)
            return self._jacobian.vjp(bent).add_(shifts[:, None] * v)

        return preconditioned_gradient(
            hessian, -gradients, lambda v, _: factor.solve(v.T).T, tol=tol
        )

    def train_outputs(self, steps: Tensor) -> Tensor:
        return self._jacobian.jvp(steps)

    def solve_in_parameters(self, vectors: Tensor, system: FullSystem) -> Tensor:
        return system.solve(vectors.T).T

    def images(self, vectors: Tensor) -> Tensor:
        return self._jacobian.jvp(vectors)

    def query_block(self, query: RowGradients) -> Tensor:
        return query.jacobian().view(*query.shape, -1)

    def squared_norm(self, steps: Tensor) -> Tensor:
        return steps.square().sum(dim=1)

    def parameters(self, steps: Tensor) -> Tensor:
        return steps if self._scale is None else steps * self._scale

    def eigenvalues(self) -> Tensor:
        return self._system.eigenvalues()
