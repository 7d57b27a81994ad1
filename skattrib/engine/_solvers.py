"""The only place that factors a matrix: Cholesky, shifted systems, conjugate gradients.

Everything is symmetric positive definite. LU and general solves are avoided for that,
and because batched LU of matrices 150 wide or more returned garbage on several CPU
threads in torch 2.13.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

# An eigendecomposition costs about as much as this many Cholesky factorisations.
EIGH_AFTER = 16


class Factor:
    """Cholesky factor of a positive definite matrix (..., N, N).

    A float32 matrix too ill-conditioned for its precision is factored in float64.
    """

    def __init__(self, matrix: Tensor) -> None:
        self._dtype = matrix.dtype
        lower, info = torch.linalg.cholesky_ex(matrix)
        if bool(info.any()) and matrix.dtype == torch.float32:
            lower, info = torch.linalg.cholesky_ex(matrix.double())
        if bool(info.any()):
            raise FloatingPointError(
                "The damped Hessian is not positive definite in "
                f"{matrix.dtype}; increase `ridge`."
            )
        self._lower = lower

    def solve(self, rhs: Tensor) -> Tensor:
        """Return A⁻¹ rhs, rhs (..., N, k)."""
        return torch.cholesky_solve(rhs.to(self._lower), self._lower).to(self._dtype)

    def half_solve(self, rhs: Tensor) -> Tensor:
        """Return V with VᵀV = rhsᵀ A⁻¹ rhs."""
        out = torch.linalg.solve_triangular(
            self._lower, rhs.to(self._lower), upper=False
        )
        return out.to(self._dtype)


class EigenFactor:
    """The same for A + shift·I from the eigendecomposition of A."""

    def __init__(self, values: Tensor, vectors: Tensor, shift: float) -> None:
        self._values, self._vectors = values.clamp(min=0) + shift, vectors

    def solve(self, rhs: Tensor) -> Tensor:
        return self._vectors @ ((self._vectors.T @ rhs) / self._values[:, None])

    def half_solve(self, rhs: Tensor) -> Tensor:
        return (self._vectors.T @ rhs) / self._values.sqrt()[:, None]


class ShiftedSystem:
    """A positive semidefinite matrix A (N, N), solved as A + shift·I.

    Parameters
    ----------
    matrix : Tensor of shape (N, N)
        Not modified.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def factors(self, shifts: list[float]) -> dict[float, Factor | EigenFactor]:
        """Factor A + shift·I for every distinct shift, the cheaper way."""
        distinct = sorted(set(shifts))
        if len(distinct) > EIGH_AFTER:
            values, vectors = torch.linalg.eigh(self.matrix)
            return {s: EigenFactor(values, vectors, s) for s in distinct}
        return {s: Factor(add_diagonal(self.matrix, s)) for s in distinct}

    def eigenvalues(self) -> Tensor:
        """Return the eigenvalues of A, ascending, none below zero."""
        return torch.linalg.eigvalsh(self.matrix).clamp(min=0)


def add_diagonal(matrix: Tensor, value: float) -> Tensor:
    """Return matrix + value·I as a new tensor."""
    out = matrix.clone()
    out.diagonal(dim1=-2, dim2=-1).add_(value)
    return out


def conjugate_gradient(
    matvec: Callable[[Tensor], Tensor],
    rhs: Tensor,
    *,
    tol: float = 1e-10,
    max_iter: int = 2000,
) -> Tensor:
    """Solve A x = b for a batch of right-hand sides, A symmetric positive definite.

    Parameters
    ----------
    matvec : callable
        Maps (m, N) to (m, N), each row by its own A.
    rhs : Tensor of shape (m, N)
    tol : float
        Relative residual at which a row is done; what the dtype cannot reach is
        not asked for.
    max_iter : int
        A `ConvergenceWarning` says when it was not enough.
    """
    tol = max(tol, 10 * torch.finfo(rhs.dtype).eps)
    x, residual = torch.zeros_like(rhs), rhs.clone()
    direction = residual.clone()
    rho = residual.square().sum(dim=1)
    goal = tol**2 * rho
    for _ in range(max_iter):
        active = rho > goal
        if not bool(active.any()):
            return x
        image = matvec(direction)
        step = torch.where(active, rho / (direction * image).sum(dim=1), 0.0)
        x += step[:, None] * direction
        residual -= step[:, None] * image
        new = torch.where(active, residual.square().sum(dim=1), rho)
        ratio = torch.where(active, new / rho, 0.0)
        direction = residual + ratio[:, None] * direction
        rho = new
    worst = float((rho / goal.clamp(min=torch.finfo(rho.dtype).tiny)).max().sqrt())
    if worst > 1:
        warnings.warn(
            f"Conjugate gradients stopped after {max_iter} iterations at {worst:.1e} "
            "times the wanted residual; increase `ridge`.",
            ConvergenceWarning,
            stacklevel=2,
        )
    return x
