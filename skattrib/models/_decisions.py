"""Classifiers without probabilities, which are measured by their decision function."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import is_classifier

from skattrib._validation import blamed
from skattrib.models._parts import Parts, is_search


def has_decisions_alone(estimator: Any) -> bool:
    """Say whether an estimator is a classifier with decisions and no probabilities."""
    return (
        is_classifier(estimator)
        and not hasattr(estimator, "predict_proba")
        and hasattr(estimator, "decision_function")
    )


def check_classifier(estimator: Any) -> None:
    """Raise ValueError unless a classifier has probabilities or decision values."""
    known = hasattr(estimator, "predict_proba") or has_decisions_alone(estimator)
    if known or not is_classifier(estimator):
        return
    name = type(estimator).__name__
    votes = getattr(estimator, "voting", None) == "hard"
    cure = (
        "Use voting='soft', of classifiers with predict_proba"
        if votes
        else "Use a classifier that has one of them"
    )
    raise ValueError(
        f"{name} has neither predict_proba nor decision_function, and outcomes of a "
        f"classifier are measured by one of them. {cure}."
    )


def check_not_in_pairs(estimator: Any, n_classes: int) -> None:
    """Raise ValueError if decision values are of pairs of classes."""
    inner = estimator
    if is_search(inner):
        inner = getattr(inner, "best_estimator_", inner.estimator)
    inner = Parts(inner).model
    if n_classes > 2 and getattr(inner, "decision_function_shape", None) == "ovo":
        raise ValueError(
            f"decision_function_shape='ovo' of {type(inner).__name__} has a decision "
            f"value for each pair of the {n_classes} classes, and the margin of a "
            "query needs one for each class: use decision_function_shape='ovr', the "
            "default."
        )


def decision_values(estimator: Any, X: ArrayLike) -> torch.Tensor:
    """Return decision values (q, 1) of a fitted classifier of two classes, else (q, K).

    Raises
    ------
    ValueError
        If there is not one for each class.
    """
    n_classes = len(estimator.classes_)
    check_not_in_pairs(estimator, n_classes)
    with blamed(estimator, "predict these rows"):
        found = np.asarray(estimator.decision_function(X), dtype=np.float64)
    values = found.reshape(len(found), -1)
    if values.shape[1] != (1 if n_classes == 2 else n_classes):
        raise ValueError(
            f"decision_function of {type(estimator).__name__} returns "
            f"{values.shape[1]} values for {n_classes} classes, and the margin of a "
            "query needs one for each class, or one for two classes."
        )
    return torch.tensor(values)
