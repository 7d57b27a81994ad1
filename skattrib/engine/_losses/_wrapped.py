"""Losses given as functions, or as modules of torch without a class here."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from skattrib.engine._losses._classes import ClassLoss
from skattrib.engine._losses._labels import LabelLoss
from skattrib.engine._losses._protocol import Loss

# These cannot return one number for each row.
_NOT_BY_ROWS = (
    nn.TripletMarginLoss,
    nn.TripletMarginWithDistanceLoss,
    nn.CosineEmbeddingLoss,
    nn.MarginRankingLoss,
    nn.CTCLoss,
)
_ON_PROBABILITIES = {nn.BCELoss: "nn.BCEWithLogitsLoss"}


class _Wrapped(Loss):
    """A loss from a function of outputs and targets, differentiated by autograd."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.function = function

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses (n,)."""
        losses = self.function(outputs, self._shaped(outputs, targets))
        if not isinstance(losses, Tensor) or losses.ndim < 2:
            return losses
        # torch's losses return a number for each output, functions must return sums
        if isinstance(self.function, nn.Module) or losses.shape[1:] == (1,):
            losses = losses.flatten(1).sum(1)
        return losses

    def _shaped(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return targets

    def __repr__(self) -> str:
        name = getattr(self.function, "__name__", type(self.function).__name__)
        return f"loss {name}"


class WrappedLoss(_Wrapped):
    """A function of numbers."""


class WrappedClassLoss(_Wrapped, ClassLoss):
    """A function of class codes."""


class WrappedLabelLoss(_Wrapped, LabelLoss):
    """A function of labels."""

    def _shaped(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return targets.to(outputs.dtype)


_WRAPPED: dict[Any, type[_Wrapped]] = {
    Loss: WrappedLoss,
    ClassLoss: WrappedClassLoss,
    LabelLoss: WrappedLabelLoss,
}


def wrapped(loss: Any, link: type[Loss]) -> Loss:
    """Return a function or a module of torch as a loss of these targets."""
    if isinstance(loss, nn.Module):
        loss = _by_row(loss)
    elif isinstance(loss, type):
        raise ValueError(
            f"loss={loss.__name__} is a class: pass an instance, {loss.__name__}()."
        )
    return _WRAPPED[link](loss)


def check_module(module: nn.Module) -> None:
    """Raise unless a module of torch is the mean of one number for each row."""
    name = type(module).__name__
    if isinstance(module, _NOT_BY_ROWS):
        raise ValueError(
            f"loss={name} compares rows with one another. It must be a mean of losses "
            "of single rows, because the weight of a row multiplies its loss."
        )

    for kind, alternative in _ON_PROBABILITIES.items():
        if isinstance(module, kind):
            raise ValueError(
                f"loss={name} takes probabilities: use {alternative}, and leave "
                "the sigmoid out of the module."
            )

    if any(p.requires_grad for p in module.parameters()):
        raise ValueError(
            f"loss={name} has parameters of its own that would be trained: move them "
            "to the module."
        )
    if getattr(module, "reduction", "mean") == "sum":
        raise ValueError(
            f"loss={name} has reduction='sum': a step would grow with the number of "
            "rows in a minibatch. Use reduction='mean', with learning_rate times the "
            "size of a minibatch for the same steps."
        )

    ignored = getattr(module, "ignore_index", -1)
    if ignored >= 0:
        raise ValueError(
            f"loss={name} has ignore_index={ignored}, which would ignore the rows of "
            "one class: leave them out of X and y, or give them sample_weight 0."
        )


def _by_row(module: nn.Module) -> nn.Module:
    n_inputs = sum(
        p.default is p.empty
        for p in inspect.signature(module.forward).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    )
    if n_inputs > 2:
        raise ValueError(
            f"loss={type(module).__name__} takes {n_inputs} inputs; it must take "
            "outputs and targets."
        )

    module = copy.deepcopy(module)
    if hasattr(module, "reduction"):
        vars(module)["reduction"] = "none"
    return module
