"""Outcomes of a whole set of queries: ranking, fairness, the worst group, calibration.

All are smooth in the outputs almost everywhere, and higher is better.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils._param_validation import Interval, StrOptions, validate_params
from torch import Tensor
from torch.nn.functional import logsigmoid

from skattrib._indexes import pandas_index
from skattrib._validation import sorted_labels
from skattrib.engine._functional import chunks
from skattrib.engine._losses import SetOutcome

# Pairs of queries, times models, that are compared at a time.
_AT_ONCE = 2**22


@validate_params(
    {"temperature": [Interval(Real, 0, None, closed="neither")]},
    prefer_skip_nested_validation=True,
)
def soft_auroc(temperature: float = 1.0) -> SetOutcome:
    """Return the area under the ROC curve, smoothed, as an outcome of a set.

    For two classes. The mean, over pairs of a query of the second class and one of the
    first, of the logistic function of the difference of their log-odds.

    Parameters
    ----------
    temperature : float, default=1.0
        Divides the differences. Towards 0 the outcome becomes the area itself, whose
        gradient is 0 almost everywhere.

    Returns
    -------
    SetOutcome
        In [0, 1]. It raises ValueError where queries are not of two classes, both of
        them.

    See Also
    --------
    sklearn.metrics.roc_auc_score : The limit.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.preprocessing import scale
    >>> from skattrib import DualInfluence
    >>> from skattrib.evaluation import soft_auroc
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> X = scale(X)
    >>> dual = DualInfluence(LogisticRegression(tol=1e-8), outcome=soft_auroc())
    >>> dual.fit(X[:100], y[:100]).attribute(X[100:300], y[100:300]).shape
    (1, 100)
    """
    return SetOutcome(_SoftAUROC(float(temperature)))


@validate_params(
    {
        "groups": ["array-like"],
        "kind": [StrOptions({"equal_opportunity", "demographic_parity"})],
    },
    prefer_skip_nested_validation=True,
)
def group_gap(groups: ArrayLike, *, kind: str = "equal_opportunity") -> SetOutcome:
    """Return minus the gap between groups of queries as an outcome of a set.

    For two classes. The gap is the largest difference between two groups in their mean
    probability of the second class.

    Parameters
    ----------
    groups : array-like of shape (n_queries,)
        Group of each query, in their order. If it has an index, queries with the same
        labels in another order are refused.
    kind : {"equal_opportunity", "demographic_parity"}, default="equal_opportunity"
        Queries that are averaged: "equal_opportunity" takes those of the second class,
        "demographic_parity" all.

    Returns
    -------
    SetOutcome
        In [-1, 0]; 0 is no gap, where its gradient is taken as 0. It raises ValueError
        where queries are not of two classes, as many as `groups`, or a group has none
        to average.

    Raises
    ------
    ValueError
        If there are fewer than two groups.

    Examples
    --------
    >>> import torch
    >>> from skattrib.evaluation import group_gap
    >>> gap = group_gap(["a", "a", "b", "b"])
    >>> probabilities = torch.tensor([[0.2, 0.8], [0.9, 0.1], [0.4, 0.6], [0.7, 0.3]])
    >>> round(float(gap(probabilities.log(), torch.tensor([1, 0, 1, 0]))), 4)
    -0.2
    """
    names, codes, index = _groups(groups)
    if len(names) < 2:
        raise ValueError(
            f"groups holds one label, {names[0]!r}: a gap is between two groups at "
            "least. Pass the group of each query."
        )
    return SetOutcome(_GroupGap(names, codes, index, kind))


@validate_params(
    {
        "groups": ["array-like"],
        "temperature": [Interval(Real, 0, None, closed="left")],
    },
    prefer_skip_nested_validation=True,
)
def worst_group(groups: ArrayLike, *, temperature: float = 0.0) -> SetOutcome:
    """Return the mean log-likelihood of the worst group as an outcome of a set.

    For classes, of any number.

    Parameters
    ----------
    groups : array-like of shape (n_queries,)
        Group of each query, as in `group_gap`.
    temperature : float, default=0.0
        0 takes the group with the lowest mean, whose gradient is that of this group
        alone. Above, a smooth minimum of the groups' means m,
        -T log(mean(exp(-m / T))), which becomes the mean of the groups for large T.

    Returns
    -------
    SetOutcome
        At most 0. It raises ValueError where queries are not of classes, or not as many
        as `groups`.

    Examples
    --------
    >>> import torch
    >>> from skattrib.evaluation import worst_group
    >>> worst = worst_group(["a", "a", "b", "b"])
    >>> probabilities = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.9, 0.1], [0.1, 0.9]])
    >>> round(float(worst(probabilities.log(), torch.tensor([0, 0, 0, 1])).exp()), 4)
    0.5
    """
    return SetOutcome(_WorstGroup(*_groups(groups), float(temperature)))


@validate_params(
    {
        "n_bins": [Interval(Integral, 1, None, closed="left")],
        "temperature": [Interval(Real, 0, None, closed="neither")],
    },
    prefer_skip_nested_validation=True,
)
def soft_calibration_error(
    n_bins: int = 10, *, temperature: float = 0.01
) -> SetOutcome:
    """Return minus the expected calibration error, with soft bins, of a set.

    Of each class, of two classes the second alone: queries are shared out to bins by
    the probability of the class, and in every bin the share of the class is compared
    with its mean probability. The error is the mean absolute difference over queries,
    and over the classes.

    Parameters
    ----------
    n_bins : int, default=10
        Bins of equal width in [0, 1].
    temperature : float, default=0.01
        Bins have weights softmax(-(p - centre)² / temperature). Towards 0 every
        probability p is in one bin.

    Returns
    -------
    SetOutcome
        In [-1, 0]; 0 is calibrated. It raises ValueError where queries are not of
        classes.

    References
    ----------
    A. Karandikar et al., Soft calibration objectives for neural networks, 2021.

    Examples
    --------
    >>> import torch
    >>> from skattrib.evaluation import soft_calibration_error
    >>> error = soft_calibration_error()
    >>> probabilities = torch.tensor([[0.3, 0.7], [0.3, 0.7]])
    >>> round(float(error(probabilities.log(), torch.tensor([1, 0]))), 4)
    -0.2
    """
    return SetOutcome(_SoftCalibrationError(int(n_bins), float(temperature)))


# -------------------------------------------------------------- what they compute
def _groups(groups: ArrayLike) -> tuple[list[Any], NDArray[np.intp], Any]:
    """Return the sorted labels, the code of each query, and the queries' index."""
    labels = np.asarray(groups)
    if labels.ndim != 1 or not len(labels):
        raise ValueError(
            f"groups has shape {labels.shape}: pass one label for each query, "
            "(n_queries,)."
        )
    names, codes = sorted_labels(labels, "groups")
    return np.asarray(names).tolist(), codes, pandas_index(groups)


def _classes(
    name: str, outputs: Tensor, targets: Tensor, *, two: bool = False
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities (..., q, K) and the classes (q,) of the queries."""
    if targets.ndim != outputs.ndim - 1 or targets.is_floating_point():
        raise ValueError(
            f"outcome={name} needs a classifier, and queries of one class each: the "
            f"targets of these are numbers or several labels, of shape "
            f"{tuple(targets.shape)}. Write a SetOutcome of your own for them."
        )
    codes = targets.reshape(-1, targets.shape[-1])[0]
    if outputs.shape[-1] == 1:  # the log-odds of the second of two classes
        pair = logsigmoid(-outputs), logsigmoid(outputs)
        log_p = torch.cat(pair, dim=-1)
    else:
        log_p = outputs.log_softmax(-1)
    if two and log_p.shape[-1] != 2:
        raise ValueError(
            f"outcome={name} is of two classes, and the model has "
            f"{log_p.shape[-1]}. Fit it to one class against the others."
        )
    return log_p, codes


def _check_length(name: str, codes: NDArray[np.intp], targets: Tensor) -> None:
    if len(codes) != len(targets):
        raise ValueError(
            f"outcome={name} has the groups of {len(codes)} queries, and there are "
            f"{len(targets)}: pass the group of each query, in their order. "
            "(A search over folds has other queries in each.)"
        )


def _means(values: Tensor, codes: Tensor, n_groups: int) -> Tensor:
    """Return the means (..., n_groups) of values (..., q) in each group."""
    members = torch.nn.functional.one_hot(codes, n_groups).to(values)
    return values @ (members / members.sum(0))


@dataclass(frozen=True)
class _SoftAUROC:
    temperature: float

    def __repr__(self) -> str:
        return f"soft_auroc(temperature={self.temperature:g})"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        log_p, codes = _classes("soft_auroc", outputs, targets, two=True)
        positive = codes == 1
        if bool(positive.all()) or not bool(positive.any()):
            raise ValueError(
                "outcome=soft_auroc compares two classes, and all queries are of one. "
                "Add queries of the other."
            )
        scores = log_p[..., 1] - log_p[..., 0]
        flat = scores.reshape(-1, scores.shape[-1])
        pairs = flat[:, positive], flat[:, ~positive], self.temperature
        differs = torch.is_grad_enabled() and scores.requires_grad
        mean: Tensor = _Pairs.apply(*pairs)[0] if differs else _compared(*pairs)
        return mean.reshape(scores.shape[:-1])


def _shares(ahead: Tensor, behind: Tensor, temperature: float) -> Iterator[Tensor]:
    """Yield the logistic function of pairs (k, some of p, m), a piece at a time."""
    for part in chunks(ahead.shape[1], _AT_ONCE // max(1, behind.numel())):
        differences = ahead[:, part, None] - behind[:, None]
        yield differences.div_(temperature).sigmoid_()


def _compared(ahead: Tensor, behind: Tensor, temperature: float) -> Tensor:
    """Return the means (k,) over pairs."""
    total = ahead.new_zeros(len(ahead))
    for shares in _shares(ahead, behind, temperature):
        total = total + shares.sum(dim=(1, 2))
    return total / (ahead.shape[1] * behind.shape[1])


class _Pairs(torch.autograd.Function):
    """Mean over pairs of a logistic function; its slopes are made along the way.

    Autograd would keep a number for each pair.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        ahead: Tensor, behind: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return means (k,), and slopes in scores ahead (k, p) and behind (k, m)."""
        total = ahead.new_zeros(len(ahead))
        of_ahead, of_behind = [], torch.zeros_like(behind)
        for shares in _shares(ahead, behind, temperature):
            total = total + shares.sum(dim=(1, 2))
            slopes = shares * (1 - shares) / temperature
            of_ahead.append(slopes.sum(dim=2))
            of_behind = of_behind - slopes.sum(dim=1)
        n_pairs = ahead.shape[1] * behind.shape[1]
        return (
            total / n_pairs,
            torch.cat(of_ahead, dim=1) / n_pairs,
            of_behind / n_pairs,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep the slopes."""
        ctx.save_for_backward(*output[1:])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> Any:
        """Multiply by the slopes."""
        of_ahead, of_behind = ctx.saved_tensors
        return gradient[:, None] * of_ahead, gradient[:, None] * of_behind, None


@dataclass(frozen=True, eq=False)
class _GroupGap:
    names: list[Any]
    codes: NDArray[np.intp]
    index: Any
    kind: str
    needs_probabilities = True

    def __repr__(self) -> str:
        return f"group_gap(groups={self.names}, kind={self.kind!r})"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        log_p, classes = _classes("group_gap", outputs, targets, two=True)
        _check_length("group_gap", self.codes, classes)
        codes = torch.tensor(self.codes, device=classes.device)
        p = log_p[..., 1].exp()
        if self.kind == "equal_opportunity":
            counted = classes == 1
            without = np.setdiff1d(self.codes, self.codes[counted.cpu().numpy()])
            if len(without):
                raise ValueError(
                    "outcome=group_gap with kind='equal_opportunity' averages queries "
                    f"of the second class, and the group {self.names[without[0]]!r} "
                    "has none. Merge groups, add queries, or use "
                    "kind='demographic_parity'."
                )
            p, codes = p[..., counted], codes[counted]
        means = _means(p, codes, len(self.names))
        return means.amin(-1) - means.amax(-1)


@dataclass(frozen=True, eq=False)
class _WorstGroup:
    names: list[Any]
    codes: NDArray[np.intp]
    index: Any
    temperature: float
    needs_probabilities = True

    def __repr__(self) -> str:
        return f"worst_group(groups={self.names}, temperature={self.temperature:g})"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        log_p, classes = _classes("worst_group", outputs, targets)
        _check_length("worst_group", self.codes, classes)
        places = classes.expand(log_p.shape[:-1])[..., None]
        of_rows = log_p.gather(-1, places)[..., 0]
        codes = torch.tensor(self.codes, device=classes.device)
        means = _means(of_rows, codes, len(self.names))
        if not self.temperature:
            return means.amin(-1)
        lowest = (-means / self.temperature).logsumexp(-1) - np.log(len(self.names))
        return -self.temperature * lowest


@dataclass(frozen=True)
class _SoftCalibrationError:
    n_bins: int
    temperature: float
    needs_probabilities = True

    def __repr__(self) -> str:
        return (
            f"soft_calibration_error({self.n_bins}, temperature={self.temperature:g})"
        )

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        log_p, codes = _classes("soft_calibration_error", outputs, targets)
        first = 1 if log_p.shape[-1] == 2 else 0
        edges = torch.arange(self.n_bins, device=log_p.device, dtype=log_p.dtype)
        centres, errors = (edges + 0.5) / self.n_bins, []
        for k in range(first, log_p.shape[-1]):
            p = log_p[..., k].exp()
            distances = (p[..., None] - centres).square()
            shares = (-distances / self.temperature).softmax(-1)
            missing = (codes == k).to(p) - p
            in_bins = (shares * missing[..., None]).sum(-2)
            errors.append(in_bins.abs().sum(-1) / p.shape[-1])
        return -torch.stack(errors).mean(0)
