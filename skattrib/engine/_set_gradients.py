"""Outputs of many queries, and the gradient of one number of all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from skattrib.engine._functional import FunctionalModule, chunks
from skattrib.engine._losses import SetMeasure, set_slope
from skattrib.engine._modules import activation_size
from skattrib.engine._plain_gradients import gradients_of
from skattrib.engine._training import stacked_outputs

# Numbers alive per activation of a query, forwards and backwards.
_COPIES = 8


def _parts(model: FunctionalModule, X: Tensor, memory_bytes: float) -> list[slice]:
    """Return pieces of the queries that one model evaluates at a time."""
    numbers = max(1, activation_size(model.module, X))
    per_query = _COPIES * numbers * X.element_size()
    return list(chunks(len(X), int(memory_bytes / per_query)))


def all_outputs(
    model: FunctionalModule, params: Tensor, X: Tensor, memory_bytes: float
) -> Tensor:
    """Return outputs (M, q, C) of models with parameters (M, P), of any queries."""
    found = [
        stacked_outputs(model, params, X[part], memory_bytes)
        for part in _parts(model, X, memory_bytes)
    ]
    return found[0] if len(found) == 1 else torch.cat(found, dim=1)


def set_gradient(
    model: FunctionalModule,
    vector: Tensor,
    X: Tensor,
    targets: Tensor,
    measure: SetMeasure,
    memory_bytes: float,
    sloped_at: Tensor | None = None,
) -> Tensor:
    """Return the gradient (P,) of a set outcome in the parameters.

    ``sloped_at`` are other parameters, at whose outputs the outcome's slope is taken.
    Queries are evaluated twice, piece by piece: for their outputs, in which the outcome
    has a slope, and to pull that back. So there may be any number of them.
    """
    parts = _parts(model, X, memory_bytes)
    with torch.no_grad():
        at = vector if sloped_at is None else sloped_at
        outputs = torch.cat([model.outputs(at, X[part]) for part in parts])
    slope = set_slope(measure, targets, outputs)
    leaf = vector.detach().requires_grad_()
    total = torch.zeros_like(leaf, requires_grad=False)
    for part in parts:
        with torch.enable_grad():
            pulled = (model.outputs(leaf, X[part]) * slope[part]).sum()
        total += gradients_of(pulled, [leaf])[0]
    return total
