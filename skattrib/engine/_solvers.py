"""The only module that factors matrices: direct solvers and conjugate gradients.

All matrices are symmetric positive definite. LU and general solves are not needed, and
batched LU of matrices 150 wide or more returned wrong results on several CPU threads in
torch 2.13.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

#: Takes v (m, N) and the metric applied to it.
Weighed = Callable[[Tensor, Tensor], Tensor]

# An eigendecomposition costs about as much as this many Cholesky factorisations.
EIGH_AFTER = 16
# Columns of the identity for which systems are solved together.
_COLUMNS = 256
# Right-hand sides that share a Krylov space. With more, orthogonalising them would cost
# as much as it saves.
_BLOCK = 64
# Eigenvalues of a matrix with ones on its diagonal that count as 0.
_SINGULAR = 1e-11


class NotPositiveDefiniteError(FloatingPointError, ValueError):
    """A matrix cannot be factored: the data, or the ridge, are to blame."""


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
            if not bool(matrix.isfinite().all()):
                raise NotPositiveDefiniteError(
                    "The damped Hessian is not finite: the rows, or their weights, are "
                    "too large. Standardise X."
                )
            raise NotPositiveDefiniteError(
                "The damped Hessian is not positive definite in "
                f"{matrix.dtype}: use a larger ridge, or scale X (StandardScaler)."
            )
        self._lower = lower

    def solve(self, rhs: Tensor) -> Tensor:
        """Return A⁻¹ rhs, rhs (..., N, k)."""
        return torch.cholesky_solve(rhs.to(self._lower), self._lower).to(self._dtype)

    def half_solve(self, rhs: Tensor, transpose: bool = False) -> Tensor:
        """Return V = L⁻¹ rhs with VᵀV = rhsᵀ A⁻¹ rhs, or L⁻ᵀ rhs."""
        half = self._lower.mT if transpose else self._lower
        out = torch.linalg.solve_triangular(half, rhs.to(half), upper=transpose)
        return out.to(self._dtype)

    def inverse(self) -> Tensor:
        """Return A⁻¹ in float64, of one matrix."""
        return torch.cholesky_inverse(self._lower.double())

    def half_columns(self, index: Tensor) -> Tensor:
        """Return `half_solve` of columns of the identity, of one matrix."""
        out = self._lower.new_zeros(len(self._lower), len(index))
        out[index, torch.arange(len(index), device=index.device)] = 1.0
        for start in range(0, len(index), _COLUMNS):
            chunk = slice(start, start + _COLUMNS)
            # entries before the first one are zero
            first = int(index[chunk].min())
            out[first:, chunk] = torch.linalg.solve_triangular(
                self._lower[first:, first:], out[first:, chunk], upper=False
            )
        return out.to(self._dtype)


class EigenFactor:
    """Solves A + shift·I by the eigendecomposition of A.

    With m shifts, the columns of right-hand sides are m groups, one for each shift.
    """

    def __init__(self, values: Tensor, vectors: Tensor, shifts: Tensor) -> None:
        self._values, self._vectors = values.clamp(min=0), vectors
        self._shifts = shifts

    def at(self, shifts: Tensor) -> EigenFactor:
        """Return this factor for other shifts."""
        return EigenFactor(self._values, self._vectors, shifts)

    def _divisors(self, rhs: Tensor) -> Tensor:
        shifts = self._shifts
        if len(shifts) > 1:
            shifts = shifts.repeat_interleave(rhs.shape[1] // len(shifts))
        return self._values[:, None] + shifts

    def solve(self, rhs: Tensor) -> Tensor:
        return self._vectors @ ((self._vectors.T @ rhs) / self._divisors(rhs))

    def half_solve(self, rhs: Tensor) -> Tensor:
        return (self._vectors.T @ rhs) / self._divisors(rhs).sqrt()

    def inverse(self) -> Tensor:
        vectors = self._vectors.double()
        return vectors / (self._values + self._shifts).double() @ vectors.T

    def half_columns(self, index: Tensor) -> Tensor:
        columns = self._vectors[index].T
        return columns / self._divisors(columns).sqrt()


class ShiftedSystem:
    """A positive semidefinite matrix A (N, N), solved as A + shift·I.

    Parameters
    ----------
    matrix : Tensor of shape (N, N)
        Not modified.
    eigen : tuple of Tensor or None
        Eigenvalues and eigenvectors, if they are known.
    """

    def __init__(
        self, matrix: Tensor, eigen: tuple[Tensor, Tensor] | None = None
    ) -> None:
        self.matrix, self._eigen = matrix, eigen

    @property
    def is_decomposed(self) -> bool:
        """Whether the eigendecomposition is known, so that any shift is cheap."""
        return self._eigen is not None

    def decomposed(self) -> ShiftedSystem:
        """Return this system with its eigendecomposition, so that shifts are cheap."""
        return ShiftedSystem(self.matrix, self.eigen())

    def eigen(self) -> tuple[Tensor, Tensor]:
        """Return eigenvalues, ascending, and eigenvectors."""
        if self._eigen is None:
            # not stored: several threads may call this at once
            values, vectors = torch.linalg.eigh(self.matrix)
            return values, vectors
        return self._eigen

    def factor(self, shift: float) -> Factor | EigenFactor:
        """Factor A + shift·I, by the eigendecomposition if it is known."""
        if self.is_decomposed:
            return self.eigen_factor(self.matrix.new_tensor([shift]))
        return Factor(add_diagonal(self.matrix, shift))

    def eigen_factor(self, shifts: Tensor) -> EigenFactor:
        """Decompose A, for all shifts (m,) at once."""
        return EigenFactor(*self.eigen(), shifts)

    def eigenvalues(self) -> Tensor:
        """Return the eigenvalues of A, ascending, none below zero."""
        if self._eigen is not None:
            return self._eigen[0].clamp(min=0)
        return torch.linalg.eigvalsh(self.matrix).clamp(min=0)


class ScaledFactor:
    """Solves a positive semidefinite matrix (N, N), whatever the units of its columns.

    The matrix is scaled to a diagonal of ones. If it is singular then, the solution of
    least length, so scaled, is taken.

    Attributes
    ----------
    is_singular : bool
    units : Tensor of shape (N,)
        What the columns are scaled by, 1 for those of zeros.
    """

    def __init__(self, matrix: Tensor) -> None:
        diagonal = matrix.diagonal()
        self._scale = torch.where(diagonal > 0, diagonal.clamp(min=0).rsqrt(), 0.0)
        self.units = torch.where(diagonal > 0, self._scale, 1.0)
        scaled = matrix * self._scale * self._scale[:, None]
        self._lower, info = torch.linalg.cholesky_ex(scaled)
        smallest = self._lower.diagonal().square().min()
        self.is_singular = bool(info) or not float(smallest) > _SINGULAR
        self._values: Tensor | None = None
        if self.is_singular:
            if not bool(scaled.isfinite().all()):
                raise NotPositiveDefiniteError(
                    "The Hessian is not finite: the rows, or their weights, are too "
                    "large. Standardise X."
                )
            values, vectors = torch.linalg.eigh(scaled)
            kept = values > _SINGULAR * float(values[-1])
            self._values, self._vectors = values[kept], vectors[:, kept]

    def solve(self, rhs: Tensor) -> Tensor:
        """Return A⁻¹ rhs, rhs (N, k)."""
        scaled = rhs * self._scale[:, None]
        if self._values is None:
            solved = torch.cholesky_solve(scaled, self._lower)
        else:
            inner = (self._vectors.T @ scaled) / self._values[:, None]
            solved = self._vectors @ inner
        return solved * self._scale[:, None]

    def flat_part(self, gradient: Tensor) -> Tensor:
        """Return the direction (N,) of a gradient (N,) in which A does not bend."""
        if self._values is None:
            return torch.zeros_like(gradient)
        scaled = gradient * self.units
        bent = self._vectors @ (self._vectors.T @ scaled)
        return (scaled - bent) * self.units


class PencilFactor:
    """Solves A + (κ − 1) B for any κ, A positive definite and B semidefinite (N, N)."""

    def __init__(self, matrix: Tensor, other: Tensor) -> None:
        scale = matrix.diagonal().rsqrt()
        lower = torch.linalg.cholesky(matrix * scale * scale[:, None])
        half = torch.linalg.solve_triangular(
            lower, other * scale * scale[:, None], upper=False
        )
        inner = torch.linalg.solve_triangular(lower, half.T, upper=False)
        self._values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
        back = torch.linalg.solve_triangular(lower.T, vectors, upper=True)
        self._back = back * scale[:, None]

    def solve(self, rhs: Tensor, kappa: Tensor) -> Tensor:
        """Return the solutions (N, k), of each column with its own κ (k,)."""
        divisors = 1 + (kappa - 1) * self._values[:, None]
        return self._back @ ((self._back.T @ rhs) / divisors)


def principal_directions(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (r,), largest first, and vectors (N, r) of the range.

    ``matrix`` (N, N) is positive semidefinite; r is its numerical rank.
    """
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values.flip(0), vectors.flip(1)
    floor = len(values) * torch.finfo(values.dtype).eps * values[0]
    rank = int((values > floor).sum())
    return values[:rank], vectors[:, :rank]


class LowRankFactor:
    """Solves U diag(e) Uᵀ + shift·I, an approximation of A + shift·I.

    Parameters
    ----------
    half : Tensor of shape (N, r)
        half·halfᵀ approximates A.
    """

    def __init__(self, half: Tensor) -> None:
        values, vectors = principal_directions(half.T @ half)
        self._values, self._vectors = values, half @ (vectors / values.sqrt())

    def solve(self, rhs: Tensor, shifts: Tensor, shares: Tensor) -> Tensor:
        """Return shift · (D A D + shift·I)⁻¹ rhs approximately, for rows rhs (m, N).

        D = diag(shares) (m, N), with numbers in [0, 1]. The inverse is exact where they
        are 1, and always positive definite.
        """
        inner = (rhs * shares) @ self._vectors
        inner *= self._values / (self._values + shifts[:, None])
        return rhs - shares * (inner @ self._vectors.T)


def largest_eigenvalue(matrices: Tensor) -> Tensor:
    """Return the largest eigenvalue (...) of symmetric matrices (..., N, N)."""
    return torch.linalg.eigvalsh((matrices + matrices.mT) / 2)[..., -1]


def positive_root(matrices: Tensor) -> Tensor:
    """Return S with S Sᵀ the positive semi-definite part of symmetric matrices."""
    if matrices.shape[-1] == 1:
        return matrices.clamp(min=0).sqrt()

    symmetric = (matrices + matrices.mT).double() / 2
    values, vectors = torch.linalg.eigh(symmetric)
    root: Tensor = vectors * values.clamp(min=0).sqrt()[..., None, :]
    return root.to(matrices)


def negative_share(matrices: Tensor) -> float:
    """Return the share of negative eigenvalues, by size, of symmetric matrices."""
    values = torch.linalg.eigvalsh((matrices + matrices.mT).double() / 2)
    total = float(values.abs().sum())
    return float(values.clamp(max=0).abs().sum()) / total if total else 0.0


def pseudo_inverse(matrices: Tensor, atol: float = 0.0) -> Tensor:
    """Return Moore-Penrose inverses of matrices (..., C, C).

    Singular values count as zero below √eps of the matrix's largest, or ``atol``.
    """
    tolerance = torch.finfo(matrices.dtype).eps ** 0.5
    inverse: Tensor = torch.linalg.pinv(matrices.double(), atol=atol, rtol=tolerance)
    return inverse.to(matrices)


def add_diagonal(matrix: Tensor, value: float) -> Tensor:
    """Return matrix + value·I as a new tensor."""
    out = matrix.clone()
    out.diagonal(dim1=-2, dim2=-1).add_(value)
    return out


def conjugate_gradient(
    matvec: Callable[[Tensor], Tensor],
    rhs: Tensor,
    *,
    precondition: Callable[[Tensor], Tensor] = lambda v: v,
    tol: float = 1e-11,
    max_iter: int = 2000,
) -> Tensor:
    """Solve A x = b for a batch of right-hand sides, A symmetric positive definite.

    Parameters
    ----------
    matvec : callable
        Maps (m, N) to (m, N), each row by its own A.
    rhs : Tensor of shape (m, N)
    precondition : callable
        Approximate inverse of each A; symmetric positive definite.
    tol : float
        Relative residual, in the norm of the preconditioner, at which a row is done;
        raised to what the dtype can reach.
    max_iter : int
        A `ConvergenceWarning` is issued if it is not enough.
    """
    tol = max(tol, 10 * torch.finfo(rhs.dtype).eps)
    x, worst = _descend(
        lambda v, _: matvec(v),
        rhs,
        lambda v, _: precondition(v),
        lambda v: v,
        tol,
        max_iter,
    )

    if worst > 1:
        warnings.warn(
            f"Conjugate gradients stopped after {max_iter} iterations at {worst:.1e} "
            "times the required residual; increase `ridge`.",
            ConvergenceWarning,
            stacklevel=2,
        )

    return x


def block_conjugate_gradient(
    matvec: Callable[[Tensor], Tensor],
    rhs: Tensor,
    *,
    tol: float = 1e-11,
    max_iter: int = 2000,
) -> Tensor:
    """Solve A x = b for right-hand sides that have one A in common.

    All are solved in one common Krylov space, which takes fewer products, by about
    their number. The residuals are stored as orthonormal columns times a small matrix
    (Dubrulle's BCGrQ), so that similar or converged ones do no harm.

    Parameters
    ----------
    matvec : callable
        Maps (m, N) to (m, N); symmetric positive definite.
    rhs : Tensor of shape (m, N)
    tol : float
        Relative residual at which a row is done; raised to what the dtype can reach.
    max_iter : int
        A `ConvergenceWarning` is issued if it is not enough.
    """
    tol = max(tol, 10 * torch.finfo(rhs.dtype).eps)
    out = torch.empty_like(rhs)
    n_blocks = -(-len(rhs) // max(1, min(_BLOCK, rhs.shape[1])))
    for rows in torch.arange(len(rhs)).chunk(max(1, n_blocks)):
        block = slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) else slice(0, 0)
        solved = _descend_together(matvec, rhs[block], tol, max_iter)
        if solved is None:  # too ill-conditioned for that, or not finite
            solved = conjugate_gradient(matvec, rhs[block], tol=tol, max_iter=max_iter)
        out[block] = solved
    return out


def _descend_together(
    matvec: Callable[[Tensor], Tensor], rhs: Tensor, tol: float, max_iter: int
) -> Tensor | None:
    """Return x for rows (m, N), m <= N, or None if it does not converge."""
    x = torch.zeros_like(rhs)
    goal = tol * rhs.norm(dim=1)
    # the residual is ξᵀ Q
    basis, xi = _orthonormal_rows(rhs)
    directions = basis

    for _ in range(max_iter):
        if bool((xi.norm(dim=0) <= goal).all()):
            return x
        images = matvec(directions)
        inner = (directions @ images.T).double()
        lower, info = torch.linalg.cholesky_ex((inner + inner.T) / 2)
        if bool(info):
            return None
        step = torch.cholesky_inverse(lower).to(rhs)
        x.addmm_((step @ xi).T, directions)
        basis, rotation = _orthonormal_rows(basis.addmm(step, images, alpha=-1))
        xi = rotation @ xi
        directions = basis.addmm(rotation, directions)

    return None


def _orthonormal_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return Q (m, N) with orthonormal rows and R with rows = Rᵀ Q."""
    columns, upper = torch.linalg.qr(rows.T)
    return columns.T, upper


def preconditioned_gradient(
    matvec: Weighed,
    rhs: Tensor,
    precondition: Weighed,
    *,
    metric: Callable[[Tensor], Tensor] = lambda v: v,
    tol: float = 1e-11,
    max_iter: int = 100,
) -> tuple[Tensor, Tensor]:
    """Solve A x = b for rows (m, N), with a preconditioner that depends on the row.

    Parameters
    ----------
    matvec, precondition : callable
        Take v and ``metric(v)``; positive definite and symmetric in the metric.
    rhs : Tensor of shape (m, N)
    metric : callable
        Positive semidefinite; its null space is ignored.
    tol : float
    max_iter : int

    Returns
    -------
    x : Tensor of shape (m, N)
    failed : Tensor of shape (m,)
        Rows whose residual, evaluated explicitly, is more than ten times ``tol``, or
        ten times what the dtype can reach.
    """
    tol = max(tol, 10 * torch.finfo(rhs.dtype).eps)
    x, _ = _descend(matvec, rhs, precondition, metric, tol, max_iter)
    residual = rhs - matvec(x, metric(x))
    weighed = [(v, metric(v)) for v in (residual, rhs)]
    end, start = ((w * precondition(v, w)).sum(dim=1) for v, w in weighed)
    return x, ~(end <= (10 * tol) ** 2 * start)


def _descend(
    matvec: Weighed,
    rhs: Tensor,
    precondition: Weighed,
    metric: Callable[[Tensor], Tensor],
    tol: float,
    max_iter: int,
) -> tuple[Tensor, float]:
    """Return x, and the worst residual as a multiple of the required one."""
    x = torch.zeros_like(rhs)
    residual = rhs.clone()
    weighed = metric(residual)
    direction = precondition(residual, weighed).clone()
    rho = (weighed * direction).sum(dim=1)
    goal = tol**2 * rho

    for _ in range(max_iter):
        active = rho > goal
        if not bool(active.any()):
            return x, 0.0
        weighed = metric(direction)
        image = matvec(direction, weighed)
        step = torch.where(active, rho / (weighed * image).sum(dim=1), 0.0)
        x += step[:, None] * direction
        residual -= step[:, None] * image
        weighed = metric(residual)
        downhill = precondition(residual, weighed)
        new = torch.where(active, (weighed * downhill).sum(dim=1), rho)
        ratio = torch.where(active, new / rho, 0.0)
        direction = downhill + ratio[:, None] * direction
        rho = new

    tiny = torch.finfo(rho.dtype).tiny
    return x, float((rho / goal.clamp(min=tiny)).max().sqrt())
