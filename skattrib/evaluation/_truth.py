"""The reference: outcomes of models retrained with other weights."""

from __future__ import annotations

import os
from functools import partial
from numbers import Integral, Real
from typing import Any

import joblib
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.utils._param_validation import HasMethods, Interval, validate_params
from sklearn.utils.validation import _num_samples

from skattrib._indexes import check_unit_order, index_of
from skattrib._validation import (
    check_completions,
    check_rows,
    check_sample_weight,
    check_tasks,
    check_weights,
)
from skattrib.engine._losses import OutcomeFunction, groups_of
from skattrib.models._as_model import as_model
from skattrib.models._datasets import opened
from skattrib.models._kept_models import (
    CHUNK,
    Runner,
    check_reproduced,
    estimator_to_refit,
    unwrap,
)
from skattrib.models._memory import as_memory, cached_rows
from skattrib.models._network import check_seeds
from skattrib.models._parts import Parts, takes_completions
from skattrib.models._retraining import FloatArray, Trainer, tightened

_QUERIES = "X_query", "y_query"


@validate_params(
    {
        "estimator": [HasMethods(["fit", "get_params"])],
        "tasks": ["array-like", None],
        "n_seeds": [Interval(Integral, 1, None, closed="left")],
        "return_seeds": ["boolean"],
        "memory": [str, os.PathLike, HasMethods(["cache"]), None],
        "n_jobs": [Integral, None],
        "verbose": ["verbose"],
        "refit_transformers": ["boolean"],
        "tol": [Interval(Real, 0, None, closed="neither"), None],
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
    refit_transformers: bool = False,
    tol: float | None = None,
) -> FloatArray:
    """Train an estimator once per weighting and return the outcomes of queries.

    The wrappers of skattrib are trained many at a time, as one stack; any other
    classifier or regressor is trained by joblib.

    Parameters
    ----------
    estimator : estimator
        Classifier or regressor; cloned. A `sklearn.frozen.FrozenEstimator` is
        unwrapped, after a check that retraining it gives the same outcomes. In a
        `sklearn.pipeline.Pipeline` only the last step sees the weights; the others are
        fitted once, to all rows, and so is the transformer of targets in a
        `sklearn.compose.TransformedTargetRegressor`; outcomes are in the unit of y. A
        search is repeated for every weighting; a frozen search is replaced by the
        estimator that it chose.
    X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        Training rows; or a Dataset of torch, which brings the targets: then y is None.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Their targets.
    weights : array-like of shape (n_weightings, n_units)
        Weights of the units: 0 is absent, 1 present; they multiply `sample_weight`. A
        DataFrame whose columns are the units in another order is refused.
        Networks are trained on weighted rows, and draw what they draw for all of them.
        Other estimators are fitted to the rows whose weight is not 0, and need a
        ``fit`` with `sample_weight` for weights other than 0 and 1. A class that has no
        row left has probability 0.
    X_query : array-like of shape (n_queries, n_features) or (n_queries, ...)
        Query rows, whose outcomes are returned.
    y_query : array-like of shape (n_queries,) or (n_queries, n_outputs)
        Their targets.
    tasks : array-like of shape (n_samples,) or None, default=None
        Unit of every row; units are the sorted labels. None: every row is a unit.
    outcome : {"auto", "log_likelihood", "margin", "prediction", "probability"} or \
            callable, default="auto"
        Outcome to measure, higher is better. "log_likelihood" (which is "auto"):
        log p_y, or −½ Σ_outputs error² of a regressor; of PoissonRegressor,
        GammaRegressor and TweedieRegressor minus half the deviance; of LinearSVC and
        RidgeClassifier, without probabilities, minus their own loss. "margin":
        log p_y / (1 − p_y); of LinearSVC and RidgeClassifier the decision value of the
        class, signed. Other classifiers without ``predict_proba``, such as SVC and
        Perceptron, have "margin" alone, which is then "auto": their
        ``decision_function``, negative for a query of the first of two classes; of
        more classes that of the query's class less the largest other.
        "prediction": the output of a regressor. A `SetOutcome` is one number of all
        queries together. Another callable takes tensors (outputs
        (..., n_queries, n_outputs), targets) and returns (..., n_queries); targets are
        class codes or values (n_queries, n_outputs), and outputs are log-probabilities
        or decision values if the estimator is not a torch one.
    sample_weight : array-like of shape (n_samples,) or None, default=None
        Weights of the rows when every unit is present.
    n_seeds : int, default=1
        Trainings per weighting, over which the outcome is averaged. The first seed is
        the estimator's `random_state`; each seed is used for all weightings.
    return_seeds : bool, default=False
        Return the outcomes of every seed instead of their mean.
    memory : str, joblib.Memory or None, default=None
        Cache of outcomes by weighting: further weightings are added to it, and an
        interrupted call loses at most 32 of them.
    n_jobs : int or None, default=None
        Workers for estimators that are not stacked.
    verbose : int, default=0
        Shows progress when above 0.
    refit_transformers : bool, default=False
        Fit the transformers of a pipeline again for every weighting, to the rows whose
        weight is not 0, and delete the others. This measures the error of keeping the
        transformers.
    tol : float or None, default=None
        Tolerance to train with, in the place of the estimator's own; its `max_iter` is
        then 10,000 at least. At their default tolerance, linear models may stop further
        from the optimum than a row, left out, moves it.

    Returns
    -------
    ndarray of shape (n_weightings, n_queries)
        Outcomes; with `return_seeds`, (n_seeds, n_weightings, n_queries). One column
        for a `SetOutcome`.

    Raises
    ------
    ValueError
        If the data do not fit together, weights are not 0 or 1 and `estimator` takes
        no sample weights, or `memory` is set while the estimator's `random_state` is
        None.
    TrajectoryError
        If a frozen estimator wraps a module without a record of its training.

    Warns
    -----
    FaithfulnessWarning
        If retraining a frozen estimator does not reproduce its outcomes.

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
    beside = {"tasks": tasks, "sample_weight": sample_weight}
    X, y, index = _checked_data(estimator, X, y, beside)
    queries = _checked_data(estimator, X_query, y_query, groups_of(outcome), _QUERIES)
    X_query, y_query, _ = queries
    estimator = tightened(estimator, tol)
    if refit_transformers:
        fitted, units = None, None
        estimator = estimator_to_refit(estimator)
    else:
        parts = Parts(clone(estimator))
        X, y = parts.fit_transformers(X, y)
        X_query, y_query = parts.rows(X_query, y_query)
        fitted, estimator = unwrap(parts.model)
        units = parts.units
        check_seeds(as_model(estimator), "n_seeds", n_seeds)

    trainer = Trainer(estimator, X, y, n_jobs, verbose, refit_transformers)
    runner = Runner(trainer, X_query, y_query, outcome, units)
    codes, present = _checked_weights(weights, tasks, index, _num_samples(X))
    base = check_sample_weight(
        sample_weight, X, dtype=np.float64, ensure_non_negative=True
    )
    rows = present[:, codes] * base
    trainer.model.check_weights(rows)
    if memory is not None and trainer.random and trainer.random_state is None:
        raise ValueError(
            "memory is set, but the estimator's random_state is None, so no cached "
            "outcome could be reused. Give the estimator an int random_state, or pass "
            "memory=None."
        )

    if fitted is not None:
        check_reproduced(fitted, runner, base)
    memory_cache, outcomes = as_memory(memory), []
    for seed in trainer.seeds(n_seeds):
        key = "" if memory_cache is None else runner.key(seed)
        outcomes.append(
            cached_rows(memory_cache, key, rows, partial(runner, seed=seed), CHUNK)
        )

    if not trainer.random:
        outcomes *= n_seeds
    stacked = np.array(outcomes)
    return stacked if return_seeds else stacked.mean(axis=0)


def _checked_data(
    estimator: Any,
    X: Any,
    y: Any,
    beside: dict[str, Any],
    names: tuple[str, str] = ("X", "y"),
) -> tuple[Any, Any, pd.Index | None]:
    """Return rows and their targets, as far as all can use, and their index."""
    X, y = opened(X, y)
    index = index_of(X, y, beside, names)
    if as_model(estimator).takes_texts:
        return X, y, index
    if takes_completions(estimator):
        return *check_completions(X, y), index
    return *check_rows(X, y, *names), index


def _checked_weights(
    weights: ArrayLike, tasks: ArrayLike | None, index: pd.Index | None, n_rows: int
) -> tuple[NDArray[np.intp], FloatArray]:
    """Return the unit of each row, and weightings of which there must be one."""
    codes, units = np.arange(n_rows), pd.RangeIndex(n_rows)
    if tasks is not None:
        codes, names = check_tasks(tasks, n_rows)
        units = pd.Index(names, tupleize_cols=False)
    elif index is not None:
        units = index
    check_unit_order(weights, units)
    checked: FloatArray = check_weights(weights, len(units))
    if not len(checked):
        raise ValueError("weights holds no weighting: pass at least one row of it.")
    return codes, checked
