"""What fit of an attributor is given for its estimator: weights, metadata, tables.

How these reach the estimator's own fit, and training on subsets as well, belongs here;
what they must look like is in `_validation`.
"""

from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.metadata_routing import _routing_enabled, process_routing

from skattrib._torch_estimator import TorchEstimator
from skattrib._validation import check_sample_weight, float_dtype, takes_texts
from skattrib.evaluation._trainer import sample_weight_name

_MISNAMED = {"groups", "source", "sources", "task", "unit", "units"}


def check_names(fit_params):
    """Name what newcomers pass instead of what is meant."""
    misnamed = _MISNAMED.intersection(fit_params)
    if misnamed and not _routing_enabled():
        raise ValueError(
            f"fit takes tasks=, not {min(misnamed)}=: one label per row of X."
        )


def row_weights(estimator, fit_params, X):
    """Return the weights of the rows, and what the estimator's fit is to be given."""
    fit_params = _flat(estimator, fit_params)
    name = _weight_name(fit_params, estimator)
    given = fit_params.get(name)
    weights = check_sample_weight(
        given, X, dtype=float_dtype(X), ensure_non_negative=True
    )
    if given is None:
        weights = _recorded_weights(estimator, weights)
    if takes_texts(estimator):
        return weights, {}  # nothing is trained
    if not isinstance(estimator, TorchEstimator):
        # as subsets are trained: a forest draws other rows without any weights
        return weights, {name: weights}
    return weights, fit_params


def takes_tables(estimator):
    """Return whether the estimator may do with a data frame as it likes."""
    if isinstance(estimator, FrozenEstimator):
        estimator = estimator.estimator
    return not (estimator is None or isinstance(estimator, TorchEstimator))


def _flat(estimator, params):
    """Return parameters of fit as a pipeline takes them without metadata routing."""
    if not (_routing_enabled() and isinstance(estimator, Pipeline)):
        return params
    flat = {}
    routed = process_routing(estimator, "fit", **params)
    for name, step in estimator.steps:
        own = {}
        for method in ("fit", "fit_transform"):
            own.update(routed.get(name, {}).get(method, {}))
        own = _flat(step, own)
        flat.update({f"{name}__{key}": value for key, value in own.items()})
    return flat


def _weight_name(params, estimator):
    """Name the weights of rows; raise on what training on subsets would not get."""
    inner = estimator
    if isinstance(estimator, FrozenEstimator):
        inner = estimator.estimator
    if isinstance(inner, TorchEstimator):
        return "sample_weight"
    texts = takes_texts(inner)
    name = "sample_weight" if texts else sample_weight_name(inner)
    others = sorted(set(params) - {name})
    if others:
        raise ValueError(
            f"fit parameters {others} would not reach the models trained on subsets: "
            f"only tasks= and {name}= do. Set them in the estimator."
        )
    return name


def _recorded_weights(estimator, weights):
    """Return the weights that a frozen model was trained with, if they are recorded."""
    if not isinstance(estimator, FrozenEstimator):
        return weights
    trajectory = getattr(estimator, "trajectory_", None)
    if trajectory is None or len(trajectory.row_weights) != len(weights):
        return weights
    return trajectory.row_weights.numpy().astype(weights.dtype)
