"""Losses that are given as functions, or as modules of torch without a name here."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from skattrib.engine._losses._classes import ClassLoss
from skattrib.engine._losses._labels import LabelLoss
from skattrib.engine._losses._protocol import Loss

# Not one number for each row, by their nature.
_NOT_BY_ROWS = (
    nn.TripletMarginLoss,
    nn.TripletMarginWithDistanceLoss,
    nn.CosineEmbeddingLoss,
    nn.MarginRankingLoss,
    nn.CTCLoss,
)
_ON_PROBABILITIES = {nn.BCELoss: "nn.BCEWithLogitsLoss"}


class _Wrapped(Loss):
    """A function of outputs and targets as a loss; derivatives are autograd's."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.function = function

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses (n,)."""
        found = self.function(outputs, self._shaped(outputs, targets))
        if not isinstance(found, Tensor) or found.ndim < 2:
            return found
        # torch's own have a number for each output; functions owe the sum
        if isinstance(self.function, nn.Module) or found.shape[1:] == (1,):
            found = found.flatten(1).sum(1)
        return found

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
    """Return a function or a module of torch as a loss of such targets."""
    if isinstance(loss, nn.Module):
        loss = _by_row(loss)
    elif isinstance(loss, type):
        raise ValueError(
            f"loss={loss.__name__} is a class: pass an instance, {loss.__name__}()."
        )
    return _WRAPPED[link](loss)


def check_module(module: nn.Module) -> None:
    """Raise on a module of torch that is no mean of one number for each row."""
    name = type(module).__name__
    if isinstance(module, _NOT_BY_ROWS):
        raise ValueError(
            f"loss={name} compares rows with one another: it is not the mean of a loss "
            "of each row, which is what the weight of a row multiplies."
        )
    for kind, better in _ON_PROBABILITIES.items():
        if isinstance(module, kind):
            raise ValueError(
                f"loss={name} takes probabilities; use {better}, and leave the sigmoid "
                "out of the module."
            )
    if any(p.requires_grad for p in module.parameters()):
        raise ValueError(
            f"loss={name} has parameters of its own that would be trained: put them "
            "into the module."
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
            f"loss={name} has ignore_index={ignored}, which would leave out the rows "
            "of one class: leave them out of X and y, or give them sample_weight 0."
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
