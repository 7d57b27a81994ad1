"""Rows of a linear model, dense or sparse, with a constant column for an intercept."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

# Rows whose products are held at a time where all pairs are formed.
_AT_ONCE = 1024


class Rows(Protocol):
    """What a linear model needs of its n rows of D numbers."""

    n_rows: int
    n_columns: int

    def outputs(self, params: Tensor) -> Tensor:
        """Return the products (k, n, C) with parameters (k, D, C)."""

    def gradient(self, cotangents: Tensor) -> Tensor:
        """Return the sums (k, D, C) of rows times cotangents (k, n, C)."""

    def gram(self, weights: Tensor) -> Tensor:
        """Return Σ w x xᵀ (D, D) for weights (n,)."""

    def squared_sum(self, weights: Tensor) -> Tensor:
        """Return Σ w x² (D, C) for weights (n, C)."""

    def take(self, index: Tensor) -> Rows:
        """Return some of the rows."""

    def dense(self) -> Tensor:
        """Return all rows (n, D) as numbers."""

    def products(self, others: Rows) -> Tensor:
        """Return the inner products (n, m) with other rows."""


class DenseRows:
    """Rows as a matrix (n, D) in double precision."""

    def __init__(self, matrix: Tensor) -> None:
        self._matrix = matrix
        self.n_rows, self.n_columns = matrix.shape

    def outputs(self, params: Tensor) -> Tensor:
        """Return the products (k, n, C) with parameters (k, D, C)."""
        k, _, n_outputs = params.shape
        flat = params.permute(1, 0, 2).reshape(self.n_columns, k * n_outputs)
        out = (self._matrix @ flat).view(self.n_rows, k, n_outputs)
        return out.permute(1, 0, 2)

    def gradient(self, cotangents: Tensor) -> Tensor:
        """Return the sums (k, D, C) of rows times cotangents (k, n, C)."""
        k, _, n_outputs = cotangents.shape
        flat = cotangents.permute(1, 0, 2).reshape(self.n_rows, k * n_outputs)
        out = (self._matrix.T @ flat).view(self.n_columns, k, n_outputs)
        return out.permute(1, 0, 2)

    def gram(self, weights: Tensor) -> Tensor:
        """Return Σ w x xᵀ (D, D) for weights (n,), zero ones for free."""
        kept = weights.nonzero()[:, 0]
        if 2 * len(kept) < len(weights):
            matrix = self._matrix[kept]
            return (matrix * weights[kept, None]).T @ matrix
        return (self._matrix * weights[:, None]).T @ self._matrix

    def squared_sum(self, weights: Tensor) -> Tensor:
        """Return Σ w x² (D, C) for weights (n, C)."""
        return self._matrix.square().T @ weights

    def take(self, index: Tensor) -> DenseRows:
        """Return some of the rows."""
        return DenseRows(self._matrix[index])

    def dense(self) -> Tensor:
        """Return all rows (n, D)."""
        return self._matrix

    def products(self, others: Rows) -> Tensor:
        """Return the inner products (n, m) with other rows."""
        return self._matrix @ others.dense().T


class SparseRows:
    """Rows as a compressed sparse matrix (n, D) in double precision."""

    def __init__(self, matrix: Any) -> None:
        self._matrix = matrix
        self.n_rows, self.n_columns = matrix.shape

    def outputs(self, params: Tensor) -> Tensor:
        """Return the products (k, n, C) with parameters (k, D, C)."""
        k, _, n_outputs = params.shape
        flat = params.permute(1, 0, 2).reshape(self.n_columns, k * n_outputs)
        out = torch.as_tensor(self._matrix @ flat.numpy())
        return out.view(self.n_rows, k, n_outputs).permute(1, 0, 2)

    def gradient(self, cotangents: Tensor) -> Tensor:
        """Return the sums (k, D, C) of rows times cotangents (k, n, C)."""
        k, _, n_outputs = cotangents.shape
        flat = cotangents.permute(1, 0, 2).reshape(self.n_rows, k * n_outputs)
        out = torch.as_tensor(self._matrix.T @ flat.numpy())
        return out.view(self.n_columns, k, n_outputs).permute(1, 0, 2)

    def gram(self, weights: Tensor) -> Tensor:
        """Return Σ w x xᵀ (D, D) for weights (n,), zero ones for free."""
        kept = weights.nonzero()[:, 0].numpy()
        matrix = self._matrix[kept]
        weighted = sparse.diags_array(weights.numpy()[kept]) @ matrix
        return torch.as_tensor((matrix.T @ weighted).toarray())

    def squared_sum(self, weights: Tensor) -> Tensor:
        """Return Σ w x² (D, C) for weights (n, C)."""
        return torch.as_tensor(self._matrix.power(2).T @ weights.numpy())

    def take(self, index: Tensor) -> SparseRows:
        """Return some of the rows."""
        return SparseRows(self._matrix[index.numpy()])

    def dense(self) -> Tensor:
        """Return all rows (n, D) as numbers."""
        return torch.as_tensor(self._matrix.toarray())

    def products(self, others: Rows) -> Tensor:
        """Return the inner products (n, m) with other rows."""
        if isinstance(others, SparseRows):
            return torch.as_tensor((self._matrix @ others._matrix.T).toarray())
        return torch.as_tensor(self._matrix @ others.dense().T.numpy())


def rows_of(X: Any, constant: float | None) -> Rows:
    """Return rows in double precision.

    Parameters
    ----------
    X : array or sparse matrix of shape (n, P)
    constant : float or None
        Last column of all rows; None adds none.
    """
    if sparse.issparse(X):
        matrix = sparse.csr_array(X).astype(np.float64)
        if constant is not None:
            column = sparse.csr_array(np.full((X.shape[0], 1), float(constant)))
            matrix = sparse.hstack([matrix, column], format="csr")
        return SparseRows(matrix)
    values = np.asarray(X, dtype=np.float64)
    if constant is None:
        return DenseRows(torch.tensor(values))
    out = torch.empty(len(values), values.shape[1] + 1, dtype=torch.float64)
    out.numpy()[:, :-1] = values
    out[:, -1] = constant
    return DenseRows(out)
