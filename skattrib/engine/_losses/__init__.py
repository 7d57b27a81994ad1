"""Losses of rows, which training minimises, and the meaning of outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from skattrib.engine._losses._checks import check_loss
from skattrib.engine._losses._classes import ClassLoss, CrossEntropy, cross_log_odds
from skattrib.engine._losses._labels import (
    BinaryCrossEntropies,
    BinaryCrossEntropy,
    LabelLoss,
)
from skattrib.engine._losses._protocol import Loss, OutcomeFunction
from skattrib.engine._losses._sets import (
    MeanOfRows,
    MeanOutcome,
    SetMeasure,
    SetOutcome,
    groups_of,
    set_slope,
)
from skattrib.engine._losses._values import (
    GaussianError,
    PoissonError,
    SquaredError,
)
from skattrib.engine._losses._wrapped import check_module, wrapped

__all__ = [
    "ClassLoss",
    "CrossEntropy",
    "LabelLoss",
    "Loss",
    "MeanOfRows",
    "MeanOutcome",
    "OutcomeFunction",
    "SetMeasure",
    "SetOutcome",
    "SquaredError",
    "as_loss",
    "check_loss",
    "cross_log_odds",
    "groups_of",
    "set_slope",
]

#: Losses that "auto" stands for, for classes, labels and numbers.
_AUTO: dict[Any, Callable[[], Loss]] = {
    ClassLoss: CrossEntropy,
    LabelLoss: BinaryCrossEntropies,
    Loss: SquaredError,
}
#: Losses of torch that have a class here, with closed forms; others are wrapped.
_OF_TORCH: dict[tuple[type[nn.Module], type[Loss]], Callable[[Any], Loss]] = {
    (nn.CrossEntropyLoss, ClassLoss): CrossEntropy.of,
    (nn.NLLLoss, ClassLoss): CrossEntropy.of_log_probabilities,
    (nn.BCEWithLogitsLoss, ClassLoss): BinaryCrossEntropy.of,
    (nn.BCEWithLogitsLoss, LabelLoss): BinaryCrossEntropies.of,
    (nn.MSELoss, Loss): lambda module: SquaredError(1.0),
    (nn.PoissonNLLLoss, Loss): PoissonError.of,
    (nn.GaussianNLLLoss, Loss): GaussianError.of,
}
_CALLED = {ClassLoss: "classes", LabelLoss: "labels", Loss: "numbers"}


def link_of(loss: Loss) -> type[Loss]:
    """Return the kind of targets of a loss: one of the three base classes."""
    if isinstance(loss, ClassLoss):
        return ClassLoss
    return LabelLoss if isinstance(loss, LabelLoss) else Loss


def as_loss(loss: Any, link: type[Loss], *, single_output: bool = False) -> Loss:
    """Return what a user passes as a loss as a `Loss`, for targets of one kind.

    Parameters
    ----------
    loss : "auto", nn.Module, callable or Loss
    link : {ClassLoss, LabelLoss, Loss}
        Kind of the targets.
    single_output : bool
        Whether the module has one output, which then is the log-odds of two classes.

    Raises
    ------
    ValueError
        If it is not a loss of single rows, or is for other targets.
    """
    if isinstance(loss, str) and loss == "auto":
        single = single_output and link is ClassLoss
        return BinaryCrossEntropy() if single else _AUTO[link]()
    if isinstance(loss, Loss):
        if link_of(loss) is not link:
            raise ValueError(
                f"loss={loss!r} is a loss of {_CALLED[link_of(loss)]}, but y holds "
                f"{_CALLED[link]}: use loss='auto', or a loss of {_CALLED[link]}."
            )
        return loss

    if isinstance(loss, nn.Module):
        check_module(loss)
        known = _OF_TORCH.get((type(loss), link))
        return wrapped(loss, link) if known is None else known(loss)
    return wrapped(loss, link)
