"""What tells the rows of a training from others, in any order and up to rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from skattrib.engine._functional import chunks

# Moments of rows that are the same: up to this part of a deviation, and of a mean.
_SAME, _ROUNDING, _TINY = 1e-3, 1e-6, 1e-12
_NUMBERS_AT_ONCE = 2**20


def moments_of_rows(X: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return what tells rows, in any order, from others with their targets, (3, D).

    Means and deviations of the columns, targets among them, and their covariances with
    the targets, by the weights. The last column has how many rows count, and the
    targets' deviation.
    """
    # which has no double precision
    device = torch.device("cpu") if X.device.type == "mps" else X.device
    rows = [values.detach().reshape(len(X), -1).to(device) for values in (X, targets)]
    kinds = torch.arange(1, rows[1].shape[1] + 1, device=device, dtype=torch.float64)
    shares = weights.detach().to(device).double()
    shares = shares / shares.sum().clamp(min=_TINY)
    # so that large means do not drown what varies
    first = torch.cat([values[:1] for values in rows], dim=1).double().nan_to_num()
    sums = first.new_zeros(3, first.shape[1] + 1)
    for part in chunks(len(X), max(1, _NUMBERS_AT_ONCE // sums.shape[1])):
        values = torch.cat([own[part].double() for own in rows], dim=1).nan_to_num()
        values = values - first
        target = (values[:, -len(kinds) :] * kinds).sum(1, keepdim=True)
        values = torch.cat([values, target], dim=1)
        share = shares[part]
        sums += torch.stack(
            [share @ values, share @ values**2, (share * target[:, 0]) @ values]
        )
    mean, square, product = sums
    deviation = (square - mean**2).clamp(min=0).sqrt()
    found = torch.stack([mean, deviation, product - mean * mean[-1]])
    found[0, :-1] += first[0]
    found[:2, -1] = (weights > 0).sum()
    found[2, -1] = deviation[-1]
    return found.cpu()


def same_rows(known: Tensor, found: Tensor) -> bool:
    """Whether moments of rows are the same, but for rounding and what comes to it."""
    if known.shape != found.shape or known[0, -1] != found[0, -1]:
        return False
    mean, deviation, _ = known[:, :-1]
    spread = deviation * _SAME + mean.abs() * _ROUNDING + _TINY
    allowed = torch.stack([spread, spread, spread * known[2, -1] + _TINY])
    return bool(((known - found)[:, :-1].abs() <= allowed).all())
