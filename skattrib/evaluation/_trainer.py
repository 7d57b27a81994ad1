"""Train an estimator again and again, for other weights of its rows."""

from __future__ import annotations

import copy
import warnings
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn import config_context
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_consistent_length, has_fit_parameter
from tqdm.auto import tqdm

from skattrib._outcomes import loss_of
from skattrib._torch_estimator import TorchEstimator
from skattrib._validation import (
    DTYPES,
    draw_seed,
    draw_seeds,
    seed_unset,
    validate_data,
)
from skattrib.engine._losses import OutcomeFunction
from skattrib.engine._parallel import call_all
from skattrib.exceptions import FaithfulnessWarning

FloatArray = NDArray[np.float64]


class Trainer:
    """What can be trained for any weights of the rows and any seed.

    Parameters
    ----------
    estimator : classifier or regressor
        Not changed.
    X, y : array-like
        Training rows.
    n_jobs : int or None
        Workers for estimators that are not stacked.
    verbose : int
    """

    def __init__(
        self,
        estimator: Any,
        X: ArrayLike,
        y: ArrayLike,
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> None:
        check_consistent_length(X, y)
        check_retrainable(estimator)
        self.estimator, self.n_jobs, self.verbose = clone(estimator), n_jobs, verbose
        params = estimator.get_params(deep=True)
        self._seed_names = [
            k for k in params if k == "random_state" or k.endswith("__random_state")
        ]
        self.random = bool(self._seed_names)
        seeds = [params[k] for k in self._seed_names]
        self.random_state = next((s for s in seeds if s is not None), None)
        self._seed: int | None = None
        self.stacked = isinstance(estimator, TorchEstimator)
        self.X, self.y = X, np.asarray(y)
        if self.stacked:
            self.X, self.y = validate_data(
                self.estimator, X, self.y, dtype=DTYPES, multi_output=self.y.ndim > 1
            )
            self.estimator._learn_target(self.y, self.X)
        else:
            self._weight_name = sample_weight_name(estimator)

    def identity(self) -> Any:
        """Return the estimator without what does not change how it is trained."""
        same: dict[str, Any] = {"n_jobs": None, "verbose": 0}
        if self.stacked:
            same["record"] = "recipe"
        estimator = clone(self.estimator)
        names = estimator.get_params(deep=True)
        last = {name: name.rpartition("__")[2] for name in names}
        found = {name: same[end] for name, end in last.items() if end in same}
        return estimator.set_params(**found)

    def seeds(self, n_seeds: int) -> list[int]:
        """Return a seed per training; the estimator's own comes first."""
        if not self.random:
            return [0]
        if self._seed is None:
            # a copy: drawing from the user's generator would move it on
            self._seed = draw_seed(copy.deepcopy(self.random_state))
        return draw_seeds(self._seed, n_seeds)

    def stack_size(self) -> int:
        """Return how many neural networks are trained at a time."""
        return cast(int, self.estimator._stack_size(self.X, self.y))

    def params(self, weights: FloatArray, seed: int) -> torch.Tensor:
        """Train a stack of neural networks; return their parameters (k, P)."""
        return cast(
            torch.Tensor, self.estimator._stack(**self._stack_options(weights, seed))[1]
        )

    def outputs(self, weights: FloatArray, seed: int, X_query: Any) -> Outputs:
        """Train; return outputs (k, q, C) of queries, and the classes."""
        if self.stacked:
            options = self._stack_options(weights, seed)
            found = self.estimator._retrained_outputs(X_query=X_query, **options)
            return found, None
        runs = self._run(_fit_and_predict, weights, seed, X_query)
        return torch.tensor(np.array([run[0] for run in runs])), runs[0][1]

    def models(self, weights: FloatArray, seed: int) -> list[Any]:
        """Train estimators that are no neural networks; return them fitted."""
        return self._run(_fit, weights, seed)

    def _stack_options(self, weights: FloatArray, seed: int) -> dict[str, Any]:
        return {
            "X": self.X,
            "y": self.y,
            "weights": weights,
            "random_state": seed,
            "n_jobs": self.n_jobs,
            "verbose": self.verbose,
        }

    def _run(self, task: Any, weights: FloatArray, seed: int, *args: Any) -> list[Any]:
        estimator = clone(self.estimator)
        if seed == self.seeds(1)[0]:
            # the estimator's own seeds, which may differ from step to step
            seed_unset(estimator, seed)
        else:
            drawn = draw_seeds(seed, len(self._seed_names) + 1)[1:]
            estimator.set_params(**dict(zip(self._seed_names, drawn, strict=True)))
        return call_all(
            task,
            (
                (clone(estimator), self.X, self.y, self._weight_name, row, *args)
                for row in tqdm(weights, desc="retraining", disable=not self.verbose)
            ),
            self.n_jobs,
        )

    def targets(
        self, y: NDArray[Any], outputs: torch.Tensor, classes: NDArray[Any] | None
    ) -> torch.Tensor:
        """Encode the targets of queries as the outcome takes them."""
        if self.stacked:
            return cast(torch.Tensor, self.estimator._targets(y, outputs))
        return encode(y, classes)


Outputs = tuple[torch.Tensor, NDArray[Any] | None]


def measure(
    outputs: torch.Tensor,
    targets: torch.Tensor,
    outcome: str | OutcomeFunction,
    estimator: Any,
) -> FloatArray:
    """Turn outputs (k, q, C) of trained models into outcomes (k, q)."""
    loss = loss_of(estimator)
    if targets.ndim > 1 and loss.n_outputs(targets) != outputs.shape[-1]:
        raise ValueError(
            f"y_query has {targets.shape[-1]} columns, the estimator predicts "
            f"{outputs.shape[-1]}."
        )
    function = loss.outcome(outcome)
    outcomes = function(outputs, targets.expand(len(outputs), *targets.shape))
    result = outcomes.double().cpu().numpy()
    if not np.isfinite(result).all():
        warnings.warn(
            "Some retrained outcomes are not finite: training diverged, or a "
            "probability is exactly 0.",
            FaithfulnessWarning,
            stacklevel=5,
        )
    return cast(FloatArray, result)


def encode(y: NDArray[Any], classes: NDArray[Any] | None) -> torch.Tensor:
    """Return class codes, or values (q, C), of an estimator that is no network."""
    if classes is None:
        values = np.asarray(y, dtype=np.float64)
        return torch.tensor(values[:, None] if values.ndim == 1 else values)
    unseen = ~np.isin(y, classes)
    if unseen.any():
        raise ValueError(
            f"y_query holds labels unseen in y: {np.unique(y[unseen])[:5].tolist()}."
        )
    return torch.tensor(np.searchsorted(classes, y))


def predict(estimator: Any, X: Any) -> tuple[FloatArray, NDArray[Any] | None]:
    """Return log-probabilities and classes, or predictions (q, C) and None."""
    if not is_classifier(estimator):
        prediction = np.asarray(estimator.predict(X), dtype=np.float64)
        return prediction.reshape(len(prediction), -1), None
    p = np.asarray(estimator.predict_proba(X))
    # as sklearn.metrics.log_loss: a tree's 0 is not minus infinity
    p = p.clip(np.finfo(p.dtype).eps, 1.0)
    return np.log(p).astype(np.float64), estimator.classes_


def check_retrainable(estimator: Any) -> None:
    """Raise unless outcomes of trainings on weighted rows can be had."""
    if not (is_classifier(estimator) or is_regressor(estimator)):
        raise ValueError(
            f"estimator {type(estimator).__name__} is neither a classifier nor a "
            "regressor."
        )
    if is_classifier(estimator) and not hasattr(estimator, "predict_proba"):
        raise ValueError(
            f"{type(estimator).__name__} has no predict_proba; outcomes of a "
            "classifier need probabilities (see CalibratedClassifierCV)."
        )
    if not isinstance(estimator, TorchEstimator):
        sample_weight_name(estimator)


def sample_weight_name(estimator: Any) -> str:
    """Return the name under which fit takes row weights."""
    steps, last = [], estimator
    while isinstance(last, Pipeline):
        step, last = last.steps[-1]
        steps.append(step)
    if isinstance(last, BaseSearchCV):
        raise ValueError(
            f"{type(last).__name__} would search again for every subset: fit it first "
            "and pass its best_estimator_."
        )
    if not has_fit_parameter(last, "sample_weight"):
        raise ValueError(
            f"fit of {type(last).__name__} takes no sample_weight: it cannot be "
            "retrained on weighted rows. Use an estimator that does."
        )
    return "__".join([*steps, "sample_weight"])


def _fit(
    estimator: Any, X: Any, y: NDArray[Any], weight_name: str, weights: FloatArray
) -> Any:
    try:
        # a pipeline takes the weights under the name of its step then
        with config_context(enable_metadata_routing=False):
            return estimator.fit(X, y, **{weight_name: weights})
    except ValueError as error:
        present = np.unique(y[weights > 0]) if is_classifier(estimator) else y
        absent = np.setdiff1d(y, present)
        if not len(absent):
            raise
        raise ValueError(
            f"{type(estimator).__name__} could not be trained on a subset without the "
            f"classes {absent[:5].tolist()}: {error} Keep more units in every subset, "
            "or merge rare classes."
        ) from error


def _fit_and_predict(
    estimator: Any,
    X: Any,
    y: NDArray[Any],
    weight_name: str,
    weights: FloatArray,
    X_query: Any,
) -> tuple[FloatArray, NDArray[Any] | None]:
    return predict(_fit(estimator, X, y, weight_name, weights), X_query)
