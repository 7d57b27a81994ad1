"""Subspaces of the parameters: fewer coordinates for the linearised model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from itertools import accumulate
from operator import add
from typing import Protocol

import torch
from torch import Tensor

from skattrib.engine._functional import chunks
from skattrib.engine._gradients import RowGradients
from skattrib.engine._kernel import kernel_block
from skattrib.engine._solvers import Factor, add_diagonal, principal_directions

# One temporary may take 1 / _SHARE of the memory cap.
_SHARE = 4
# Added to the diagonal of the kernel of landmarks, in units of rounding.
_JITTER = 100
# A block and its scaled copy in float64, and the temporaries of applying it.
_BYTES_PER_NUMBER = 64


class ProjectedGradients:
    """Gradients of n rows and C outputs in the coordinates of a subspace.

    Used in place of `RowGradients` where explicit Jacobians are used.
    """

    scale = None

    def __init__(self, jacobian: Tensor, shape: tuple[int, int]) -> None:
        self._jacobian, self.shape = jacobian, shape

    def jacobian(self) -> Tensor:
        """Return the Jacobian (n·C, k)."""
        return self._jacobian


class Projector(Protocol):
    """A subspace of the parameters, in the metric."""

    def project(self, gradients: RowGradients) -> ProjectedGradients:
        """Return gradients in the k coordinates."""

    def lift(self, steps: Tensor) -> Tensor:
        """Return steps (m, k) as changes of the parameters (m, P)."""


class PrincipalProjector:
    """The directions in which the training outputs change most.

    With all directions of the kernel the projection is exact: gradients of training
    rows have no component outside of them.

    Parameters
    ----------
    gradients : RowGradients
        Of the training rows.
    kernel : Tensor of shape (n·C, n·C)
        Of these gradients.
    n_components : int
        At most the rank of the kernel.
    """

    def __init__(
        self,
        gradients: RowGradients,
        kernel: Tensor,
        n_components: int,
        memory_bytes: float,
    ) -> None:
        self._gradients, self._memory = gradients, memory_bytes
        values, vectors = principal_directions(kernel)
        if n_components > len(values):
            raise ValueError(
                f"projection={n_components} is more than the {len(values)} directions "
                "that the training outputs have in the parameters. Use a smaller "
                "number, or projection=None."
            )
        values, vectors = values[:n_components], vectors[:, :n_components]
        self._dual = vectors / values.sqrt()  # (n·C, k)

    def project(self, gradients: RowGradients) -> ProjectedGradients:
        block = kernel_block(gradients, self._gradients, self._memory)
        return ProjectedGradients(block @ self._dual, gradients.shape)

    def lift(self, steps: Tensor) -> Tensor:
        coefficients = steps @ self._dual.T
        out = self._gradients.vjp(coefficients.view(-1, *self._gradients.shape))
        scale = self._gradients.scale
        return out if scale is None else out * scale


class LandmarkProjector:
    """The span of some rows' gradients: the Nystroem approximation of the kernel.

    All outputs of the landmarks count. With every row as a landmark it is exact.
    Gradients of similar rows are nearly dependent, so that the basis is stored, and
    applied, in float64.

    Parameters
    ----------
    gradients : RowGradients
        Of the training rows.
    landmarks : int Tensor of shape (m,)
        Rows.
    memory_bytes : float
    """

    def __init__(
        self, gradients: RowGradients, landmarks: Tensor, memory_bytes: float
    ) -> None:
        self._landmarks = gradients.of_rows(landmarks)
        self._memory = memory_bytes
        self._landmarks = self._landmarks.double()
        kernel = kernel_block(self._landmarks, self._landmarks, memory_bytes)
        rounding = torch.finfo(kernel.dtype).eps * float(kernel.trace())
        self._factor = Factor(add_diagonal(kernel, _JITTER * rounding))

    def project(self, gradients: RowGradients) -> ProjectedGradients:
        n, C = gradients.shape
        out = gradients.like.new_empty(n * C, self._n_components)
        # a block, its copies in the solve, and the gradients in float64
        size = 8 * (4 * C * self._n_components + gradients.n_numbers / max(1, n))
        for rows in chunks(n, int(self._memory / (_SHARE * size))):
            chunk_gradients = gradients.of_rows(rows).double()
            block = kernel_block(chunk_gradients, self._landmarks, self._memory)
            flat = slice(rows.start * C, rows.stop * C)
            out[flat] = self._factor.half_solve(block.T).T
        return ProjectedGradients(out, gradients.shape)

    def lift(self, steps: Tensor) -> Tensor:
        landmarks, scale = self._landmarks, self._landmarks.scale
        out = steps.new_empty(len(steps), landmarks.n_params)
        for chunk in chunks(
            len(steps), int(self._memory / (8 * landmarks.n_temporaries))
        ):
            solved = self._factor.half_solve(steps[chunk].double().T, transpose=True)
            moved = landmarks.vjp(solved.T.reshape(-1, *landmarks.shape))
            out[chunk] = moved if scale is None else moved * scale
        return out

    @property
    def _n_components(self) -> int:
        return self._landmarks.shape[0] * self._landmarks.shape[1]


class LinearProjector:
    """A random subspace, z = Rᵀθ.

    Parameters
    ----------
    apply : callable
        Takes columns and a block (rows, len(columns)) of a matrix; returns its share
        (rows, k) of the matrix times R.
    transpose : callable
        Takes rows (m, k) and returns their products with Rᵀ, (m, P).
    scale : Tensor of shape (P,) or None
        Of the columns of gradients.
    memory_bytes : float
    """

    def __init__(
        self,
        apply: Callable[[slice, Tensor], Tensor],
        transpose: Callable[[Tensor], Tensor],
        scale: Tensor | None,
        memory_bytes: float,
    ) -> None:
        self._apply, self._transpose = apply, transpose
        self._scale, self._memory = scale, memory_bytes

    def project(self, gradients: RowGradients) -> ProjectedGradients:
        size = int(self._memory / _BYTES_PER_NUMBER)
        shares = (
            self._apply(
                columns, block if self._scale is None else block * self._scale[columns]
            )
            for columns, block in gradient_blocks(gradients, size)
        )
        return ProjectedGradients(reduce(add, shares), gradients.shape)

    def lift(self, steps: Tensor) -> Tensor:
        out = self._transpose(steps)
        return out if self._scale is None else out * self._scale


def gradient_blocks(
    gradients: RowGradients, max_numbers: int
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the Jacobian (n·C, P), not scaled, in blocks of columns.

    Each comes with the slice of its columns. A block has at most
    ``max_numbers`` entries, unless one output of a layer, or a parameter that no layer
    covers, already has more.
    """
    starts = [0, *accumulate(gradients.sizes)]
    first = dict(zip(gradients.names, starts, strict=False))
    for name, value in gradients.rest.items():
        yield slice(first[name], first[name] + value.shape[-1]), value.flatten(0, 1)
    n_rows = gradients.shape[0] * gradients.shape[1]

    for layer in gradients.layers:
        n_outputs, width = layer.width
        for outputs in chunks(n_outputs, max_numbers // (n_rows * width)):
            columns = layer.to_columns(layer.explicit(outputs).flatten(0, 1))
            for name, block in columns.items():
                per_output = block.shape[1] // (outputs.stop - outputs.start)
                start = first[name] + outputs.start * per_output
                yield slice(start, start + block.shape[1]), block
