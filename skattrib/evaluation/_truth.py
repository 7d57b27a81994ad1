"""The truth: train again with other weights and look at the outcomes."""

from __future__ import annotations

import os
import warnings
from functools import partial
from numbers import Integral
from typing import Any

import joblib
import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.frozen import FrozenEstimator
from sklearn.utils._param_validation import HasMethods, Interval, validate_params
from sklearn.utils.validation import (
    _num_samples,
    check_consistent_length,
    check_is_fitted,
)

from skattrib._outcomes import check_outcome
from skattrib._torch_estimator import TorchEstimator, check_seeds
from skattrib._validation import (
    DTYPES,
    check_sample_weight,
    check_tasks,
    check_weights,
    validate_data,
)
from skattrib.engine._losses import OutcomeFunction
from skattrib.evaluation._cache import as_memory, cached_rows, digest
from skattrib.evaluation._trainer import FloatArray, Trainer, encode, measure, predict
from skattrib.exceptions import FaithfulnessWarning, TrajectoryError

#: A kill loses at most one chunk.
CHUNK = 32


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
) -> FloatArray:
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
    outcome : {"auto", "log_likelihood", "margin", "prediction", "probability"} or \
            callable, default="auto"
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
    fitted, estimator = unwrap(estimator)
    check_seeds(estimator, "n_seeds", n_seeds)
    trainer = Trainer(estimator, X, y, n_jobs, verbose)
    runner = Runner(trainer, X_query, y_query, outcome)
    n_rows = _num_samples(X)
    codes = np.arange(n_rows) if tasks is None else check_tasks(tasks, n_rows)[0]
    units = check_weights(weights, int(codes.max()) + 1)
    base = check_sample_weight(
        sample_weight, X, dtype=np.float64, ensure_non_negative=True
    )
    if memory is not None and trainer.random and trainer.random_state is None:
        raise ValueError(
            "memory is set but the estimator's random_state is None: nothing could be "
            "found again. Give the estimator an int random_state, or memory=None."
        )
    if fitted is not None:
        check_reproduced(fitted, runner, base)
    cache = as_memory(memory)
    seeds = trainer.seeds(n_seeds)
    rows = units[:, codes] * base
    outcomes = []
    for seed in seeds:
        key = "" if cache is None else runner.key(seed)
        outcomes.append(
            cached_rows(cache, key, rows, partial(runner, seed=seed), CHUNK)
        )
    if not trainer.random:
        outcomes *= n_seeds
    stacked = np.array(outcomes)
    return stacked if return_seeds else stacked.mean(axis=0)


def unwrap(estimator: Any) -> tuple[Any | None, Any]:
    """Return (the frozen fitted estimator or None, what can be trained)."""
    if not isinstance(estimator, FrozenEstimator):
        return None, estimator
    inner = estimator.estimator
    if getattr(inner, "trajectory_", 0) is None:
        raise TrajectoryError(
            f"The frozen {type(inner).__name__} wraps a module whose training was not "
            "recorded: it cannot be trained again. Train it through "
            f"{type(inner).__name__}(module=...).fit, or record your own loop by "
            "record_training, to compare with retraining."
        )
    return inner, inner


class Runner:
    """Train for given row weights and one seed; return outcomes (k, n_queries)."""

    def __init__(
        self,
        trainer: Trainer,
        X_query: ArrayLike,
        y_query: ArrayLike,
        outcome: str | OutcomeFunction,
    ) -> None:
        check_consistent_length(X_query, y_query)
        self.trainer, self.estimator = trainer, trainer.estimator
        self.X_query, self.y_query = X_query, np.asarray(y_query)
        if trainer.stacked:
            self.X_query = validate_data(
                self.estimator, X_query, dtype=DTYPES, reset=False
            )
            self.estimator._targets(self.y_query, torch.empty(0))
        n_outputs = 1 if trainer.y.ndim == 1 else trainer.y.shape[1]
        self.outcome = check_outcome(outcome, self.estimator, n_outputs)

    def key(self, seed: int) -> str:
        return digest(
            self.trainer.identity(),
            self.trainer.X,
            self.trainer.y,
            self.X_query,
            self.y_query,
            self.outcome,
            seed,
        )

    def __call__(self, weights: FloatArray, seed: int) -> FloatArray:
        outputs, classes = self.trainer.outputs(weights, seed, self.X_query)
        targets = self.trainer.targets(self.y_query, outputs, classes)
        return measure(outputs, targets, self.outcome, self.estimator)


def check_reproduced(fitted: Any, runner: Runner, base: FloatArray) -> None:
    """Warn unless training with all units present gives the frozen outcomes."""
    check_is_fitted(fitted)
    if isinstance(fitted, TorchEstimator):
        outputs = fitted._raw_outputs(np.asarray(runner.X_query))[None]
        targets = fitted._targets(runner.y_query, outputs)
    else:
        found, classes = predict(fitted, runner.X_query)
        outputs, targets = torch.tensor(found)[None], encode(runner.y_query, classes)
    frozen = measure(outputs, targets, runner.outcome, runner.estimator)[0]
    again = runner(base[None], runner.trainer.seeds(1)[0])[0]
    error = np.abs(again - frozen).max() / max(1.0, float(np.abs(frozen).max()))
    if not error < 1e-3:
        warnings.warn(
            f"Training the frozen {type(fitted).__name__} again on all rows misses its "
            f"outcomes by {error:.1e}: it was trained on other rows, weights or an "
            "unknown seed. The retrained outcomes are of another model.",
            FaithfulnessWarning,
            stacklevel=3,
        )
