"""Fitted projections as torch applies them to gradients, a block of them at a time.

Whatever depends on how a projection stores itself (hash tables, dense, sparse) belongs
here; projections are made and checked in `random_projection`.
"""

import scipy.sparse as sp
import torch

from skattrib._validation import as_tensor
from skattrib.engine._sketch import sketch, unsketch


class ParameterProjection:
    """A fitted projection of P parameters to k components, as torch applies it.

    Parameters
    ----------
    projection : CountSketchTransformer or sklearn random projection
    like : Tensor
        Has the dtype and device to work in; sparse matrices stay on the CPU.
    """

    def __init__(self, projection, like):
        self.n_components = projection.n_components_
        self._like, self._tables, self._matrix = like, None, None
        if hasattr(projection, "hash_indices_"):
            self._tables = tuple(
                torch.tensor(table, device=like.device)
                for table in (projection.hash_indices_, projection.hash_signs_)
            )
        elif sp.issparse(projection.components_):
            # of this, slices of columns are cheap
            self._matrix = projection.components_.tocsc()
        else:
            self._matrix = projection.components_

    def apply(self, columns, block):
        """Return the share (n, k) of a block (n, len(columns)) in the projection."""
        if self._tables is not None:
            tables = (table[:, columns] for table in self._tables)
            return sketch(block, *tables, self.n_components)
        if sp.issparse(self._matrix):
            share = block.cpu().numpy() @ self._matrix[:, columns].T
            return as_tensor(share, self._like)
        return block @ as_tensor(self._matrix[:, columns], block).T

    def lift(self, coordinates):
        """Return the transpose of the projection applied to rows (m, k): (m, P)."""
        if self._tables is not None:
            return unsketch(coordinates, *self._tables)
        if sp.issparse(self._matrix):
            lifted = coordinates.cpu().numpy() @ self._matrix
            return as_tensor(lifted, self._like)
        return coordinates @ as_tensor(self._matrix, coordinates)
