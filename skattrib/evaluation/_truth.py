"""The truth: train again with other weights and look at the outcomes."""

from __future__ import annotations

import copy
import os
import warnings
from functools import partial
from numbers import Integral
from typing import Any, cast

import joblib
import numpy as np
import torch
from joblib import Parallel, delayed
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils._param_validation import HasMethods, Interval, validate_params
from sklearn.utils.validation import (
    _check_sample_weight,
    _num_samples,
    check_consistent_length,
    check_is_fitted,
    has_fit_parameter,
    validate_data,
)
from tqdm.auto import tqdm

from skattrib._torch_estimator import TorchEstimator
from skattrib._validation import (
    DTYPES,
    check_outcome,
    check_tasks,
    check_weights,
    draw_seed,
    draw_seeds,
    seed_unset,
)
from skattrib.engine._functional import OutcomeFunction, outcome_function
from skattrib.evaluation._cache import as_memory, cached_rows, digest
from skattrib.exceptions import FaithfulnessWarning, TrajectoryError

# A kill loses at most one chunk.
_CHUNK = 32


@validate_params(
    {
        "estimator": [HasMethods(["fit", "predict"])],
        "tasks": ["array-like", None],
        "n_seeds": [Interval(Integral, 1, None, closed="left")],
        "return_seeds": ["boolean"],
        "memory": [str, os.PathLike, HasMethods(["cache"]), None],
        "n_jobs": [Integral, None],
        "verbose": ["verbose"],
    },
    prefer_skip_nested_validation=False,
)
def retrain_outcomes(
    estimator: Any,
    X: ArrayLike,
    y: ArrayLike,
    weights: ArrayLike,
    X_query: ArrayLike,
    y_query: ArrayLike,
    *,
    tasks: ArrayLike | None = None,
    outcome: str | OutcomeFunction = "auto",
    sample_weight: ArrayLike | None = None,
    n_seeds: int = 1,
    return_seeds: bool = False,
    memory: str | os.PathLike[str] | joblib.Memory | None = None,
    n_jobs: int | None = None,
    verbose: int = 0,
) -> NDArray[np.float64]:
    """Train an estimator once per weighting and return the outcomes of queries.

    The wrappers of skattrib are trained many at a time, as one stack; any other
    estimator whose ``fit`` takes `sample_weight` is trained by joblib.

    Parameters
    ----------
    estimator : estimator
        Classifier or regressor; cloned. A `sklearn.frozen.FrozenEstimator` is
        unwrapped, after a check that training it again gives the same outcomes. In a
        `sklearn.pipeline.Pipeline` only the last step sees the weights.
    X : array-like of shape (n_samples, n_features)
        Training rows.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Their targets.
    weights : array-like of shape (n_weightings, n_units)
        Weights of the units: 0 is absent, 1 present. Rows are never deleted: the
        weights multiply `sample_weight`.
    X_query : array-like of shape (n_queries, n_features)
        Rows whose outcomes are asked for.
    y_query : array-like of shape (n_queries,) or (n_queries, n_outputs)
        Their targets.
    tasks : array-like of shape (n_samples,) or None, default=None
        Unit of every row; units are the sorted labels. None: every row is a unit.
    outcome : {"auto", "log_likelihood", "margin", "prediction"} or callable, \
            default="auto"
        What is measured, higher is better. "log_likelihood" (which is "auto"):
        log p_y, or −½ Σ_outputs error² of a regressor. "margin":
        log p_y / (1 − p_y). "prediction": the output of a regressor. A callable takes
        tensors (outputs (..., n_queries, n_outputs), targets) and returns
        (..., n_queries); targets are class codes or values (n_queries, n_outputs),
        and outputs are log-probabilities where the estimator is not a torch one.
    sample_weight : array-like of shape (n_samples,) or None, default=None
        Weights of the rows when every unit is present.
    n_seeds : int, default=1
        Trainings per weighting, over which the outcome is averaged; the estimator's
        own `random_state` comes first. Each seed serves all weightings.
    return_seeds : bool, default=False
        Return the outcomes of every seed instead of their mean.
    memory : str, joblib.Memory or None, default=None
        Where outcomes are remembered, by weighting: more weightings extend what is
        there, and an interrupted call loses at most 32 of them.
    n_jobs : int or None, default=None
        Workers for estimators that are not stacked.
    verbose : int, default=0
        Shows progress when above 0.

    Returns
    -------
    ndarray of shape (n_weightings, n_queries)
        Outcomes; with `return_seeds`, (n_seeds, n_weightings, n_queries).

    Raises
    ------
    ValueError
        If the data do not fit together, `estimator` takes no sample weights, or
        `memory` is set while the estimator's `random_state` is None.
    TrajectoryError
        If a frozen estimator wraps a module without a record of its training.

    Warns
    -----
    FaithfulnessWarning
        If training a frozen estimator again does not reproduce its outcomes.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skattrib import TorchClassifier
    >>> from skattrib.evaluation import make_weightings, retrain_outcomes
    >>> X, y = load_iris(return_X_y=True)
    >>> weights = make_weightings(100, 4, random_state=0)
    >>> clf = TorchClassifier(max_epochs=20, random_state=0)
    >>> outcomes = retrain_outcomes(
    ...     clf, X[::3], y[::3], weights[:, :50], X[1::30], y[1::30])
    >>> outcomes.shape
    (4, 5)
    """
    fitted, estimator = _unwrap(estimator)
    runner = _Runner(estimator, X, y, X_query, y_query, outcome, n_jobs, verbose)
    n_rows = _num_samples(X)
    codes = np.arange(n_rows) if tasks is None else check_tasks(tasks, n_rows)[0]
    units = check_weights(weights, int(codes.max()) + 1)
    base = _check_sample_weight(
        sample_weight, X, dtype=np.float64, ensure_non_negative=True
    )
    if memory is not None and runner.random and runner.random_state is None:
        raise ValueError(
            "memory is set but the estimator's random_state is None: nothing could be "
            "found again. Give the estimator an int random_state, or memory=None."
        )
    if fitted is not None:
        _check_reproduced(fitted, runner, base)
    cache = as_memory(memory)
    seeds = runner.seeds(n_seeds)
    rows = units[:, codes] * base
    outcomes = []
    for seed in seeds:
        key = "" if cache is None else runner.key(seed)
        outcomes.append(
            cached_rows(cache, key, rows, partial(runner, seed=seed), _CHUNK)
        )
    if not runner.random:
        outcomes *= n_seeds
    stacked = np.array(outcomes)
    return stacked if return_seeds else stacked.mean(axis=0)


def _unwrap(estimator: Any) -> tuple[Any | None, Any]:
    """Return (the frozen fitted estimator or None, what can be trained)."""
    if not isinstance(estimator, FrozenEstimator):
        return None, estimator
    inner = estimator.estimator
    if getattr(inner, "trajectory_", 0) is None:
        raise TrajectoryError(
            f"The frozen {type(inner).__name__} wraps a module whose training was not "
            "recorded: it cannot be trained again. Train it through "
            f"{type(inner).__name__}(module=...).fit to compare with retraining."
        )
    return inner, inner


class _Runner:
    """Train for given row weights and one seed; return outcomes (k, n_queries)."""

    def __init__(
        self,
        estimator: Any,
        X: ArrayLike,
        y: ArrayLike,
        X_query: ArrayLike,
        y_query: ArrayLike,
        outcome: str | OutcomeFunction,
        n_jobs: int | None,
        verbose: int,
    ) -> None:
        check_consistent_length(X, y)
        check_consistent_length(X_query, y_query)
        self.estimator, self.n_jobs, self.verbose = clone(estimator), n_jobs, verbose
        if not (is_classifier(estimator) or is_regressor(estimator)):
            raise ValueError(
                f"estimator {type(estimator).__name__} is neither a classifier nor a "
                "regressor."
            )
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
        self.X_query, self.y_query = X_query, np.asarray(y_query)
        if self.stacked:
            self._validate_torch()
        else:
            self._weight_name = _sample_weight_name(estimator)
        n_outputs = 1 if self.y.ndim == 1 else self.y.shape[1]
        self.outcome = check_outcome(outcome, self.estimator, n_outputs)

    def _validate_torch(self) -> None:
        blank = self.estimator
        self.X, self.y = validate_data(
            blank, self.X, self.y, dtype=DTYPES, multi_output=self.y.ndim > 1
        )
        blank._learn_target(self.y)
        self.X_query = validate_data(blank, self.X_query, dtype=DTYPES, reset=False)
        blank._targets(self.y_query, torch.empty(0))

    def seeds(self, n_seeds: int) -> list[int]:
        """Return a seed per training; the estimator's own comes first."""
        if not self.random:
            return [0]
        if self._seed is None:
            # a copy: drawing from the user's generator would move it on
            self._seed = draw_seed(copy.deepcopy(self.random_state))
        return draw_seeds(self._seed, n_seeds)

    def key(self, seed: int) -> str:
        return digest(
            self.estimator,
            self.X,
            self.y,
            self.X_query,
            self.y_query,
            self.outcome,
            seed,
        )

    def __call__(self, weights: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
        if self.stacked:
            outputs = self.estimator._retrained_outputs(
                self.X,
                self.y,
                weights,
                self.X_query,
                random_state=seed,
                n_jobs=self.n_jobs,
                verbose=self.verbose,
            )
            targets = self.estimator._targets(self.y_query, outputs)
        else:
            outputs, targets = self._joblib_outputs(weights, seed)
        return self.measure(outputs, targets)

    def measure(
        self, outputs: torch.Tensor, targets: torch.Tensor
    ) -> NDArray[np.float64]:
        """Turn outputs (k, q, C) into outcomes (k, q)."""
        task = "classification" if is_classifier(self.estimator) else "regression"
        function = outcome_function(self.outcome, cast(Any, task))
        if task == "regression" and targets.shape[-1] != outputs.shape[-1]:
            raise ValueError(
                f"y_query has {targets.shape[-1]} columns, the estimator predicts "
                f"{outputs.shape[-1]}."
            )
        outcomes = function(outputs, targets.expand(len(outputs), *targets.shape))
        if outcomes.shape != outputs.shape[:2]:
            raise ValueError(
                f"outcome returned shape {tuple(outcomes.shape)} for outputs "
                f"{tuple(outputs.shape)}; it must drop the last axis only."
            )
        result = outcomes.double().cpu().numpy()
        if not np.isfinite(result).all():
            warnings.warn(
                "Some retrained outcomes are not finite: training diverged, or a "
                "probability is exactly 0.",
                FaithfulnessWarning,
                stacklevel=5,
            )
        return cast(NDArray[np.float64], result)

    def _joblib_outputs(
        self, weights: NDArray[np.float64], seed: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        estimator = clone(self.estimator)
        if seed == self.seeds(1)[0]:
            # the estimator's own seeds, which may differ from step to step
            seed_unset(estimator, seed)
        else:
            drawn = draw_seeds(seed, len(self._seed_names) + 1)[1:]
            estimator.set_params(**dict(zip(self._seed_names, drawn, strict=True)))
        runs = Parallel(n_jobs=self.n_jobs)(
            delayed(_fit_and_predict)(
                clone(estimator), self.X, self.y, self._weight_name, row, self.X_query
            )
            for row in tqdm(weights, desc="retraining", disable=not self.verbose)
        )
        outputs = torch.tensor(np.array([run[0] for run in runs]))
        return outputs, _codes(self.y_query, runs[0][1])


def _codes(y: NDArray[Any], classes: NDArray[Any] | None) -> torch.Tensor:
    if classes is None:
        values = np.asarray(y, dtype=np.float64)
        return torch.tensor(values[:, None] if values.ndim == 1 else values)
    unseen = ~np.isin(y, classes)
    if unseen.any():
        raise ValueError(
            f"y_query holds labels unseen in y: {np.unique(y[unseen])[:5].tolist()}."
        )
    return torch.tensor(np.searchsorted(classes, y))


def _sample_weight_name(estimator: Any) -> str:
    """Return the name under which fit takes row weights."""
    name, last = "sample_weight", estimator
    while isinstance(last, Pipeline):
        step, last = last.steps[-1]
        name = f"{step}__{name}"
    if not has_fit_parameter(last, "sample_weight"):
        raise ValueError(
            f"fit of {type(last).__name__} takes no sample_weight: it cannot be "
            "retrained on weighted rows. Use an estimator that does."
        )
    return name


def _fit_and_predict(
    estimator: Any,
    X: Any,
    y: NDArray[Any],
    weight_name: str,
    weights: NDArray[np.float64],
    X_query: Any,
) -> tuple[NDArray[np.float64], NDArray[Any] | None]:
    """Fit on weighted rows; return (log-probabilities or predictions, classes)."""
    estimator.fit(X, y, **{weight_name: weights})
    return _predict(estimator, X_query)


def _predict(
    estimator: Any, X_query: Any
) -> tuple[NDArray[np.float64], NDArray[Any] | None]:
    if not is_classifier(estimator):
        prediction = np.asarray(estimator.predict(X_query), dtype=np.float64)
        return prediction.reshape(len(prediction), -1), None
    if not hasattr(estimator, "predict_proba"):
        raise ValueError(
            f"{type(estimator).__name__} has no predict_proba; outcomes of a "
            "classifier need probabilities (see CalibratedClassifierCV)."
        )
    p = np.asarray(estimator.predict_proba(X_query))
    # as sklearn.metrics.log_loss: a tree's 0 is not minus infinity
    p = p.clip(np.finfo(p.dtype).eps, 1.0)
    return np.log(p).astype(np.float64), estimator.classes_


def _check_reproduced(fitted: Any, runner: _Runner, base: NDArray[np.float64]) -> None:
    """Warn unless training with all units present gives the frozen outcomes."""
    check_is_fitted(fitted)
    if isinstance(fitted, TorchEstimator):
        outputs = fitted._raw_outputs(np.asarray(runner.X_query))[None]
        targets = fitted._targets(runner.y_query, outputs)
    else:
        found, classes = _predict(fitted, runner.X_query)
        outputs, targets = torch.tensor(found)[None], _codes(runner.y_query, classes)
    frozen = runner.measure(outputs, targets)[0]
    again = runner(base[None], runner.seeds(1)[0])[0]
    error = np.abs(again - frozen).max() / max(1.0, float(np.abs(frozen).max()))
    if not error < 1e-3:
        warnings.warn(
            f"Training the frozen {type(fitted).__name__} again on all rows misses its "
            f"outcomes by {error:.1e}: it was trained on other rows, weights or an "
            "unknown seed. The retrained outcomes are of another model.",
            FaithfulnessWarning,
            stacklevel=3,
        )
