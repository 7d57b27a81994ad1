"""Whether a model predicts the same when it is called twice."""

from __future__ import annotations

from typing import Any

import torch
from sklearn.utils import _safe_indexing

from skattrib.engine._modules import generator_kept
from skattrib.models._protocol import Model

# Rows that are predicted twice.
_FEW = 2


def check_repeatable(model: Model, X: Any) -> None:
    """Raise ValueError if the outputs of a fitted model change between two calls.

    ``X`` holds rows as the model takes them. A model of texts is not checked.
    """
    outputs = getattr(model, "outputs", None)
    if outputs is None:
        return
    rows = _safe_indexing(X, slice(_FEW))
    with generator_kept(), torch.no_grad():
        first, again = outputs(rows), outputs(rows)

    # threads add up in changing order
    slack = 1e3 * torch.finfo(first.dtype).eps
    same = first.shape == again.shape and torch.allclose(
        first, again, rtol=slack, atol=slack, equal_nan=True
    )
    if not same:
        raise ValueError(
            f"{model.name} gives two different answers to the same rows: what is "
            "random in its predictions would be taken for an effect of the training "
            "rows. Fix the seed that it predicts with, or switch off what draws "
            "(.eval() for dropout)."
        )
