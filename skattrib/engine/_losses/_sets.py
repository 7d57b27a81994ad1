"""Outcomes of a whole set of queries: one number for all of them together."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skattrib.exceptions import FaithfulnessWarning

#: (outputs (..., n_queries, C), targets (..., n_queries)) → (...), higher is better.
SetFunction = Callable[[Tensor, Tensor], Tensor]


class SetOutcome:
    """An outcome of all queries together, such as the area under their ROC curve.

    Pass it as the `outcome` of an attributor, or to `retrain_outcomes`: what has a row
    or a column for each query otherwise has a single one then, for the whole set.

    Parameters
    ----------
    function : callable
        Takes tensors (outputs (..., n_queries, n_outputs), targets (..., n_queries))
        and returns (...), higher is better. Leading axes are models; targets are the
        same for all of them, both in double precision. Targets are class codes, or
        values (..., n_queries, n_outputs). Outputs are log-probabilities, unnormalised
        for a TorchClassifier, or predictions of a regressor.

    See Also
    --------
    soft_auroc : Ranking of two classes.
    group_gap : Fairness between groups of queries.
    worst_group : Likelihood of the group with the lowest.
    soft_calibration_error : Whether probabilities are right on average.

    Notes
    -----
    The function must have a derivative in the outputs for AdamWInfluence, and for
    DualInfluence with ``removal="influence"``. Where outcomes are evaluated, in the
    other removals of DualInfluence, in surrogates and in retraining, any function will
    do.

    The function is part of the key under which `memory` finds results. To be pickled it
    must be importable: a function of a module, a `functools.partial` of one, or an
    instance of a class.

    Examples
    --------
    The mean log-likelihood of the worst ten queries:

    >>> import torch
    >>> from sklearn.datasets import load_iris
    >>> from skattrib import DualInfluence, TorchClassifier
    >>> from skattrib.evaluation import SetOutcome
    >>> def worst_ten(outputs, targets):
    ...     log_p = outputs.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    ...     return log_p.topk(10, largest=False).values.mean(-1)
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = TorchClassifier(max_epochs=20, random_state=0)
    >>> dual = DualInfluence(clf, outcome=SetOutcome(worst_ten), random_state=0)
    >>> dual.fit(X[::3], y[::3]).attribute(X[1::3], y[1::3]).shape
    (1, 50)
    """

    def __init__(self, function: SetFunction) -> None:
        if not callable(function):
            raise ValueError(
                f"function must be a callable (outputs, targets) -> one number, got "
                f"{function!r}. For a mean over queries use attribute(reduce='mean')."
            )
        self.function = function

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Evaluate the function.

        Parameters
        ----------
        outputs : Tensor of shape (..., n_queries, n_outputs)
            What the models return.
        targets : Tensor of shape (..., n_queries) or (..., n_queries, n_outputs)
            Targets of the queries.

        Returns
        -------
        Tensor of shape (...)
            One number for each model.

        Raises
        ------
        ValueError
            If the function returns another shape.
        """
        value = self.function(outputs, targets)
        expected = outputs.shape[:-2]
        if getattr(value, "shape", None) != expected:
            found = getattr(value, "shape", None)
            found = type(value).__name__ if found is None else f"shape {tuple(found)}"
            raise ValueError(
                f"{self!r} returned {found} for outputs {tuple(outputs.shape)}; it "
                f"must return a tensor of shape {tuple(expected)}: one number for all "
                "queries, for each entry of the axes before them. Reduce the last "
                "axis of what is of single queries, as in .mean(-1)."
            )
        return value

    def __repr__(self) -> str:
        name = getattr(self.function, "__qualname__", None)
        return f"SetOutcome({repr(self.function) if name is None else name})"


def groups_of(outcome: Any) -> dict[str, Any]:
    """Return, by its name, what an outcome has of each query, with an index."""
    return {"groups": outcome.function} if isinstance(outcome, SetOutcome) else {}


class MeanOutcome(SetOutcome):
    """The mean over queries of an outcome of each.

    Parameters
    ----------
    rows : str or callable
        As `Loss.outcome` takes it.
    """

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __repr__(self) -> str:
        return f"MeanOutcome({self.rows!r})"


@dataclass(frozen=True)
class SetMeasure:
    """A set outcome of a loss: outputs (..., q, C) and targets to outcomes (..., 1).

    It is evaluated in double precision: one of many rows changes a sum over all queries
    by little.

    Parameters
    ----------
    function : callable
        To outcomes (...).
    name : str
        For messages.
    rows : callable or None
        To outcomes of each query (..., q), if it is their mean.
    """

    function: SetFunction
    name: str
    rows: SetFunction | None = None

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.function(_in_double(outputs), _in_double(targets))[..., None]


def _in_double(values: Tensor) -> Tensor:
    # Apple's graphics processors have no double precision
    if not values.is_floating_point() or values.device.type == "mps":
        return values
    return values.double()


@dataclass(frozen=True)
class MeanOfRows:
    """The mean of what a function of single queries returns."""

    rows: SetFunction

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.rows(outputs, targets).mean(-1)


def set_slope(
    measure: SetMeasure, targets: Tensor, outputs: Tensor, link: Any = None
) -> Tensor:
    """Return the gradient of a set outcome in the outputs (q, C).

    Parameters
    ----------
    measure : SetMeasure
    targets : Tensor of shape (q, ...)
    outputs : Tensor of shape (q, C)
    link : callable or None
        From these outputs to those that are measured.

    Raises
    ------
    ValueError
        If the function has no derivative in the outputs.
    """
    leaf = outputs.detach().clone().requires_grad_()
    slope, reason = None, "torch finds no way from its value back to the outputs"
    try:
        with torch.enable_grad():
            value = measure(leaf if link is None else link(leaf), targets).sum()
        if value.requires_grad:
            (slope,) = torch.autograd.grad(value, leaf, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
    if slope is None:
        raise ValueError(
            f"outcome={measure.name} cannot be differentiated: {reason}. Use "
            "KernelSurrogateAttributor(estimation='retrain'), which needs no "
            "derivative, DualInfluence(removal='newton'), or a smooth function of "
            "torch, such as evaluation.soft_auroc()."
        )
    if measure.rows is None and not bool(slope.any()):
        warnings.warn(
            f"The gradient of outcome={measure.name} is 0 at the outputs of these "
            "queries: it is constant there, or in steps, as counts are. Attributions "
            "to first order are 0; use KernelSurrogateAttributor(estimation='retrain')"
            " or a smooth function.",
            FaithfulnessWarning,
            stacklevel=2,
        )
    return slope
