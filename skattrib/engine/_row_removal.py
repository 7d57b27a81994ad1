"""Newton steps without each single row, known by what they do to queries.

Leaving out d of the weight of row i, with H the damped Hessian of all rows, g the
gradient of their loss and G = J_i H⁻¹ J_iᵀ, gives the step

    z = H⁻¹ J_iᵀ u − c H⁻¹ g ,    u = d r + S̃ (I − S̃ᵀGS̃)⁻¹ S̃ᵀ (d G r − c J_i H⁻¹ g) ,

c being the share of the constant gradient that leaves with the row, S̃ = √d S. A row is
known by its u, of C numbers; its effect on queries takes one solution of H for each
output of these, however many rows there are.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from skattrib._progress import tqdm
from skattrib.engine._functional import chunks
from skattrib.engine._parameter_space import (
    SHARE,
    FullSystem,
    PrimalSpace,
    minus_from_one,
    weighted_roots,
)
from skattrib.engine._solvers import Factor

# Directions of the outputs without curvature and gradient: zero up to rounding.
_ROUNDINGS = 100
# Steps of a progress bar.
_PIECES = 20


@dataclass(frozen=True)
class _Alike:
    """Rows of equal weight: they share λ.

    Attributes
    ----------
    rows : int Tensor of shape (m,)
    system : FullSystem
    constant : Tensor of shape (P,)
        c H⁻¹ g.
    """

    rows: Tensor
    system: FullSystem
    constant: Tensor


class RowRemovals:
    """Newton steps without each row of the training data, in place of (n, P) numbers.

    Parameters
    ----------
    space : PrimalSpace
    residuals : Tensor of shape (n, C)
        Gradients of the rows' losses in their outputs.
    roots : Tensor of shape (n, C, C)
        Roots of the curvature in the outputs.
    amounts : Tensor of shape (n,)
        Weight of each row.
    shifts : Tensor of shape (n,)
        λ without each row.
    constants : Tensor of shape (n,)
        c of each row.
    memory_bytes : float
    verbose : int
        Shows progress when above 0.

    Attributes
    ----------
    own_changes : Tensor of shape (n, C)
        Changes of the outputs of each row without it.
    has_all_outputs : bool
        Whether `own_changes` are known in all directions of the outputs: not in the one
        that a softmax does not depend on.
    """

    def __init__(
        self,
        space: PrimalSpace,
        residuals: Tensor,
        roots: Tensor,
        amounts: Tensor,
        shifts: Tensor,
        constants: Tensor,
        memory_bytes: float,
        verbose: int = 0,
    ) -> None:
        self._space, self._memory = space, memory_bytes
        self._asked = torch.arange(len(amounts), device=amounts.device)
        self._cotangents = torch.zeros_like(residuals)
        self.own_changes = torch.zeros_like(residuals)
        self._groups: list[_Alike] = []
        total = space.mixed_gradient(amounts[None], residuals)
        basis = _used_outputs(residuals, roots)
        self.has_all_outputs = basis.shape[0] == basis.shape[1]
        systems = space.full_systems(shifts)
        present = amounts.nonzero()[:, 0]

        present = (amounts != 0) | (constants != 0)
        for shift in shifts[present].unique():
            rows = (present & (shifts == shift)).nonzero()[:, 0]
            ((_, system),) = systems.groups(shift[None])
            solved = -space.solve_full(total, system)
            constant = constants[rows[0]] * solved[0]
            self._groups.append(_Alike(rows, system, constant))

            blocks = _blocks(space, rows, system, basis, verbose)
            root = basis.T @ weighted_roots(roots[rows], amounts[rows])
            gradient = (amounts[rows, None] * residuals[rows]) @ basis
            moved = (blocks.to(gradient) @ gradient[..., None])[..., 0]
            back = space.images(constant[None]).view_as(residuals)[rows]
            moved -= back @ basis
            complements = minus_from_one(root.to(blocks).mT @ blocks @ root.to(blocks))
            right = (root.mT @ moved[..., None]).double()
            lifted = root @ Factor(complements).solve(right).to(root)
            gradient += lifted[..., 0]
            self._cotangents[rows] = gradient @ basis.T
            moved = (blocks.to(gradient) @ gradient[..., None])[..., 0] - back @ basis
            self.own_changes[rows] = moved @ basis.T

    def __len__(self) -> int:
        return len(self._asked)

    def __getitem__(self, which: slice) -> RowRemovals:
        out = copy.copy(self)
        out._asked = self._asked[which]
        return out

    def output_change(self, query: Tensor) -> Tensor:
        """Return the changes (n, q, C) of the outputs of queries without each row.

        ``query`` (q, C, P) are the gradients of these outputs.
        """
        n, C = self._cotangents.shape
        out = query.new_zeros(len(self), *query.shape[:2])
        numbers = query.shape[1] * (n * C + 4 * query.shape[2])
        size = int(self._memory / (SHARE * numbers * query.element_size()))
        for part in chunks(len(query), size):
            vectors = query[part].flatten(0, 1)
            for alike in self._groups:
                asked = torch.isin(self._asked, alike.rows).nonzero()[:, 0]
                rows = self._asked[asked]
                solved = self._space.solve_in_parameters(vectors, alike.system)
                images = self._space.images(solved).view(-1, n, C)[:, rows]
                change = torch.einsum("mnc,nc->nm", images, self._cotangents[rows])
                change -= vectors @ alike.constant
                shape = len(rows), -1, query.shape[1]
                out[asked, part] = change.view(shape)
        return out


def _blocks(
    space: PrimalSpace,
    rows: Tensor,
    system: FullSystem,
    basis: Tensor,
    verbose: int,
) -> Tensor:
    """Return J_i H⁻¹ J_iᵀ of the rows, in the basis; piece by piece, with a bar."""
    pieces = 1 if space.inverse_pays(len(rows), system) else _PIECES
    bar = tqdm(rows.chunk(pieces), desc="newton steps", disable=not verbose)
    return torch.cat([space.row_blocks(piece, system, basis) for piece in bar])


def _used_outputs(residuals: Tensor, roots: Tensor) -> Tensor:
    """Return orthonormal directions (C, r) of the outputs that the loss depends on.

    Those of a softmax are one less than its outputs: a constant added to all of them
    changes nothing. For two classes this halves the work.
    """
    n_outputs = residuals.shape[1]
    eye = torch.eye(n_outputs, dtype=residuals.dtype, device=residuals.device)
    if n_outputs == 1:
        return eye
    tolerance = _ROUNDINGS * torch.finfo(residuals.dtype).eps
    gradient = residuals.sum(dim=1).abs() <= tolerance * residuals.abs().sum(dim=1)
    size = roots.abs().amax(dim=(1, 2))
    curvature = roots.sum(dim=1).abs().amax(dim=1) <= tolerance * size
    if not bool((gradient & curvature).all()):
        return eye
    # Helmert's contrasts
    below = torch.tril(torch.ones_like(eye), diagonal=-1)[1:]
    places = torch.arange(1, n_outputs, device=eye.device, dtype=eye.dtype)
    contrasts = below - places[:, None] * eye[1:]
    return (contrasts / contrasts.norm(dim=1, keepdim=True)).T
