"""What attributors of parts of the rows say of the rows that they have not seen."""

import warnings
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils.validation import _num_samples

from skattrib.exceptions import ConstantOutcomeWarning


class Fold(NamedTuple):
    """An attributor, the tasks that it was fitted on, and rows that it has not seen."""

    attributor: Any
    units: np.ndarray
    X: Any
    y: Any


def attributions_of(folds, n_tasks):
    """Return attributions of rows to tasks, NaN where a row's attributor lacks one."""
    parts = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for fold in folds:
            found = fold.attributor.attribute(fold.X, fold.y)
            part = np.full((len(found), n_tasks), np.nan)
            part[:, fold.units] = found
            parts.append(part)
    # each fold warns of the same
    raised = {(warning.category, str(warning.message)): warning for warning in caught}
    for warning in raised.values():
        warnings.warn(warning.message, stacklevel=2)
    return np.concatenate(parts)


def outcome_predictor(folds):
    """Return a function of sets (m, n_tasks) that predicts outcomes (m, n_rows)."""
    predictors = []
    for fold in folds:
        attributor, rows = fold.attributor, (fold.X, fold.y)
        if not hasattr(attributor, "_outcome_predictor"):
            predictors.append(partial(attributor.predict_outcomes, *rows))
            continue
        with warnings.catch_warnings():
            # attribute() has already warned
            warnings.simplefilter("ignore", ConstantOutcomeWarning)
            predictors.append(attributor._outcome_predictor(*rows))

    def predict(sets):
        parts = []
        for fold, predicted in zip(folds, predictors, strict=True):
            weights = sets[:, fold.units].astype(float)
            # nothing is known of a model without data
            is_some = weights.any(axis=1)
            part = np.full((len(sets), _num_samples(fold.y)), np.nan)
            if is_some.any():
                part[is_some] = predicted(weights[is_some])
            parts.append(part)
        return np.concatenate(parts, axis=1)

    return predict
