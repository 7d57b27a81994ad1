"""What fit of an attributor receives for its estimator: weights, metadata, tables.

How these reach the estimator's own fit, and training on subsets as well, belongs here;
what they must look like is in `_validation`.
"""

import numpy as np
from sklearn.base import is_classifier
from sklearn.pipeline import Pipeline
from sklearn.utils import _safe_indexing
from sklearn.utils.metadata_routing import _routing_enabled, process_routing
from sklearn.utils.validation import has_fit_parameter

from skattrib._validation import (
    as_numbers,
    check_labels,
    check_sample_weight,
    float_dtype,
)
from skattrib.models._as_model import as_model
from skattrib.models._parts import weight_name
from skattrib.models._protocol import Differentiable

_MISNAMED = {"groups", "source", "sources", "task", "unit", "units"}


def check_names(fit_params):
    """Raise on names that stand for ``tasks`` elsewhere."""
    misnamed = _MISNAMED.intersection(fit_params)
    if misnamed and not _routing_enabled():
        raise ValueError(
            f"fit takes tasks=, not {min(misnamed)}=: one label per row of X."
        )


def row_weights(estimator, fit_params, X):
    """Return the weights of the rows, and the parameters of the model's fit.

    The model is the last step of a pipeline, or the estimator itself.
    """
    model = as_model(estimator)
    params = _flat(estimator, fit_params)
    name = weight_name(estimator)
    others = sorted(set(params) - {name})
    if others and not (model.stacks and name == "sample_weight"):
        raise ValueError(
            f"fit parameters {others} would not reach the models trained on subsets: "
            f"only tasks= and {name}= do. Set them in the estimator."
        )
    given = params.pop(name, None)
    weights = check_sample_weight(
        given, X, dtype=float_dtype(X), ensure_non_negative=True
    )
    if given is None:
        weights = _recorded_weights(model, weights)
    if model.takes_texts:
        return weights, {}  # nothing is trained
    if not has_fit_parameter(model.estimator, "sample_weight"):
        _check_all_one(weights, model)
        return weights, params
    if model.stacks:
        if given is not None or name != "sample_weight":
            params["sample_weight"] = weights
    elif np.any(weights != 1):  # as subsets are trained
        params["sample_weight"] = weights
    return weights, params


def rows_that_count(model, X, y, params):
    """Return rows, targets and parameters of fit without rows of weight 0.

    So subsets are trained: beside its loss, an estimator may count rows. Not where its
    training is repeated, whose minibatches are of all rows, or where splits for
    cross-validation are positions of rows.
    """
    weights = params.get("sample_weight")
    repeated = model.stacks or isinstance(model, Differentiable)
    placed = isinstance(getattr(model.estimator, "cv", None), list | tuple)
    if weights is None or np.all(weights) or repeated or placed:
        return X, y, params
    kept = np.flatnonzero(weights)
    params = {**params, "sample_weight": weights[kept]}
    return _safe_indexing(X, kept), y[kept], params


def check_target(y, estimator):
    """Return labels and texts unchanged, and numbers for a regressor as floats."""
    if as_model(estimator).takes_texts:
        return y
    if is_classifier(estimator):
        check_labels(y)
        return y
    return as_numbers(y)


def _check_all_one(weights, model):
    """Raise if rows have weights, and the fit of the model takes none."""
    if np.any(weights != 1):
        raise ValueError(
            f"fit of {model.name} takes no sample_weight: it cannot be trained on "
            "weighted rows. Leave the weights out."
        )


def _flat(estimator, params):
    """Return parameters of fit as a pipeline takes them without metadata routing."""
    if not (_routing_enabled() and isinstance(estimator, Pipeline)):
        return dict(params)
    flat = {}
    routed = process_routing(estimator, "fit", **params)
    for name, step in estimator.steps:
        of_step = {}
        for method in ("fit", "fit_transform"):
            of_step.update(routed.get(name, {}).get(method, {}))
        of_step = _flat(step, of_step)
        flat.update({f"{name}__{key}": value for key, value in of_step.items()})
    return flat


def _recorded_weights(model, weights):
    """Return the weights that a frozen model was trained with, if they are recorded."""
    recorded = model.frozen and model.has_run and not model.takes_texts
    trajectory = model.trajectory if recorded else None
    if trajectory is None or len(trajectory.row_weights) != len(weights):
        return weights
    return trajectory.row_weights.numpy().astype(weights.dtype)
