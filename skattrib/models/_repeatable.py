"""Whether the answers of a fitted model can be attributed."""

from __future__ import annotations

from typing import Any

import torch
from sklearn.utils import _safe_indexing

from skattrib.engine._modules import check_no_nan, generator_kept
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
    check_answers = getattr(model, "check_answers", None)
    with generator_kept(), torch.no_grad():
        if check_answers is not None:
            check_answers(X)
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


def finite_rows(outputs: torch.Tensor) -> torch.Tensor:
    """Return which rows (n,) have outputs that are all finite."""
    return torch.isfinite(outputs).reshape(len(outputs), -1).all(dim=1)


def check_finite(model: Model, X: Any) -> None:
    """Raise ValueError if a frozen model has outputs for training rows that are NaN.

    A model that was trained on them has none: its training would have diverged.
    """
    outputs = getattr(model, "outputs", None)
    if outputs is None or not model.frozen or model.takes_texts:
        return
    with torch.no_grad():
        odd = (~finite_rows(outputs(X))).nonzero().flatten()
    if not len(odd):
        return
    module = getattr(model, "module", None)
    if module is not None:
        check_no_nan(module)
    raise ValueError(
        f"The model's outputs for {len(odd)} training rows, such as "
        f"{odd[:10].tolist()}, are NaN or infinite: they have no gradients. Leave "
        "these rows out of X and y; if they are all rows, its training diverged, "
        "or X is out of range."
    )
