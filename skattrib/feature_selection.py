"""Selection of tasks to train on, by their attributions."""

import warnings
from functools import partial
from numbers import Integral, Real

import numpy as np
from sklearn.base import (
    BaseEstimator,
    MetaEstimatorMixin,
    _fit_context,
    clone,
    is_classifier,
)
from sklearn.feature_selection import SelectorMixin
from sklearn.utils import _safe_indexing, check_random_state, indexable
from sklearn.utils._param_validation import HasMethods, Interval, RealNotInt, StrOptions
from sklearn.utils.metadata_routing import (
    MetadataRouter,
    MethodMapping,
    _routing_enabled,
    process_routing,
)
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import _check_method_params, _num_samples, check_is_fitted

from skattrib._task_sets import greedy, hold_out, largest
from skattrib._validation import (
    DTYPES,
    check_tasks,
    draw_seed,
    unchanged_on_error,
    validate_data,
)
from skattrib.exceptions import ConstantOutcomeWarning
from skattrib.models._as_model import as_model

__all__ = ["TaskWeightSelector"]


def _selects_columns(self):
    if self.attributor is None:
        return True
    raise AttributeError(
        "TaskWeightSelector(attributor=...) selects tasks, not columns: use "
        "fit_resample(X, y, tasks=...), selected_tasks_ or sample_weight_."
    )


def _selects_rows(self):
    if self.attributor is not None:
        return True
    raise AttributeError(
        "fit_resample needs an attributor: TaskWeightSelector(attributor=...)."
    )


class _ColumnMethods:
    """Methods that select columns, hidden if tasks of training data are selected.

    They are in a class of their own, because scikit-learn wraps the methods of a
    transformer when its class is created, and they would no longer be hidden.
    """

    @available_if(_selects_columns)
    def transform(self, X):
        """Keep the columns of the selected tasks.

        Parameters
        ----------
        X : array-like of shape (n_queries, n_tasks)
            Attributions.

        Returns
        -------
        ndarray or DataFrame of shape (n_queries, n_selected)
            The columns kept.
        """
        return super().transform(X)

    @available_if(_selects_columns)
    def fit_transform(self, X, y=None, **fit_params):
        """Select tasks, and return their columns.

        Parameters
        ----------
        X : array-like of shape (n_queries, n_tasks)
            Attributions.
        y : None
            Ignored.
        **fit_params : dict
            Passed to `fit`.

        Returns
        -------
        ndarray or DataFrame of shape (n_queries, n_selected)
            The columns kept.
        """
        return super().fit_transform(X, y, **fit_params)

    @available_if(_selects_columns)
    def inverse_transform(self, X):
        """Put columns of zeros where tasks were dropped.

        Parameters
        ----------
        X : array-like of shape (n_queries, n_selected)
            Columns kept.

        Returns
        -------
        ndarray of shape (n_queries, n_tasks)
            Attributions, 0 for the tasks dropped.
        """
        return super().inverse_transform(X)

    @available_if(_selects_columns)
    def get_feature_names_out(self, input_features=None):
        """Return the names of the columns kept.

        Parameters
        ----------
        input_features : array-like of str or None, default=None
            Names of all columns.

        Returns
        -------
        ndarray of str
            Names of those kept.
        """
        return super().get_feature_names_out(input_features)


class TaskWeightSelector(
    _ColumnMethods, SelectorMixin, MetaEstimatorMixin, BaseEstimator
):
    """Select the tasks, sources or rows that are worth training on.

    Without `attributor` it is the step after an attributor in a pipeline, and selects
    columns of attributions. With `attributor` it fits this attributor, and selects
    tasks of the training data by the predicted outcome without the others.

    Parameters
    ----------
    attributor : attributor or None, default=None
        Attributor with ``attribute`` and ``predict_outcomes``; cloned.
    n_tasks_to_select : "auto", int or float, default="auto"
        Number or fraction of tasks to keep, at least one. "auto" keeps the set with the
        best predicted outcome that a greedy search finds, by dropping tasks from all
        and by adding tasks to the best one; without `attributor`, it keeps half. The
        sign of an attribution is not used: it is relative to the average task.
    strategy : {"marginal", "greedy"}, default="marginal"
        How a given number of tasks is selected. "marginal": the tasks with the largest
        weights. "greedy": the set of that size with the best predicted outcome that the
        same search finds, which accounts for interactions; needs `attributor`.
    validation_fraction : float, default=0.25
        Fraction of each task's rows held out as queries, if `fit` gets none. The
        attributor is then fitted on the other rows, three quarters by default.
    random_state : int, RandomState instance or None, default=None
        Draws these rows, and seeds the attributor if it is unseeded.

    Attributes
    ----------
    attributor_ : attributor
        Fitted attributor; only with `attributor`.
    task_weights_ : ndarray of shape (n_tasks,)
        Mean attribution of each task over the queries.
    support_ : ndarray of bool, shape (n_tasks,)
        Whether a task is kept.
    selected_tasks_ : ndarray
        Names of the tasks kept; without `attributor`, names or numbers of columns.
    predicted_outcome_ : float
        Mean predicted outcome of the queries after training on the tasks kept; only
        with `attributor`.
    sample_weight_ : ndarray of shape (n_samples,)
        1 for the rows of tasks kept, else 0, to be passed to any estimator; only with
        `attributor`.
    n_features_in_ : int
        Number of features seen in fit.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, if X had any.

    See Also
    --------
    KernelSurrogateAttributor : Predicts outcomes of tasks that interact.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from skattrib import (
    ...     KernelSurrogateAttributor, TaskWeightSelector, TorchClassifier)
    >>> X, y = load_iris(return_X_y=True)
    >>> tasks = np.arange(150) % 6
    >>> y[tasks == 4] = (y[tasks == 4] + 1) % 3  # all labels wrong
    >>> clf = TorchClassifier(max_epochs=40, random_state=0)
    >>> attributor = KernelSurrogateAttributor(clf, n_subsets=30, random_state=0)
    >>> selector = TaskWeightSelector(attributor, n_tasks_to_select=5, random_state=0)
    >>> X_kept, y_kept = selector.fit_resample(X, y, tasks=tasks)
    >>> selector.selected_tasks_
    array([0, 1, 2, 3, 5])
    """

    _parameter_constraints: dict = {
        "attributor": [HasMethods(["fit", "attribute", "predict_outcomes"]), None],
        "n_tasks_to_select": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
            Interval(RealNotInt, 0, 1, closed="right"),
        ],
        "strategy": [StrOptions({"marginal", "greedy"})],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        attributor=None,
        *,
        n_tasks_to_select="auto",
        strategy="marginal",
        validation_fraction=0.25,
        random_state=None,
    ):
        self.attributor = attributor
        self.n_tasks_to_select = n_tasks_to_select
        self.strategy = strategy
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    # -------------------------------------------------------------------- fit
    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None, tasks=None, X_val=None, y_val=None, **fit_params):
        """Select the tasks to keep.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows; without `attributor`, attributions, a column per task.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Their targets; needed with `attributor`.
        tasks : array-like of shape (n_samples,) or None, default=None
            Task of each row; None makes every row one.
        X_val : array-like of shape (n_queries, n_features), default=None
            Queries: rows whose outcomes training should improve. None holds out
            `validation_fraction` of the training rows.
        y_val : array-like of shape (n_queries,) or (n_queries, n_outputs), default=None
            Their targets.
        **fit_params : dict
            Passed to the attributor's ``fit``.

        Returns
        -------
        self : TaskWeightSelector
            Fitted selector.

        Raises
        ------
        ValueError
            If the data do not fit together, or more tasks are requested than exist.
        """
        with unchanged_on_error(self):
            if self.attributor is None:
                return self._fit_columns(X, tasks, X_val, fit_params)
            return self._fit_tasks(X, y, tasks, X_val, y_val, fit_params)

    def _fit_columns(self, X, tasks, X_val, fit_params):
        if tasks is not None or X_val is not None or fit_params:
            raise ValueError(
                "tasks, X_val and fit parameters need attributor=: without one, fit "
                "takes attributions, a column per task."
            )
        if self.strategy == "greedy":
            raise ValueError(
                "strategy='greedy' needs attributor= to predict outcomes; use "
                "strategy='marginal'."
            )

        X = validate_data(self, X, dtype=DTYPES)
        self.task_weights_ = X.mean(axis=0)
        n_wanted = self._n_wanted(X.shape[1])
        if n_wanted is None:
            n_wanted = max(1, X.shape[1] // 2)
        self.support_ = largest(self.task_weights_, n_wanted)
        names = getattr(self, "feature_names_in_", np.arange(X.shape[1]))
        self.selected_tasks_ = names[self.support_]

        return self

    def _fit_tasks(self, X, y, tasks, X_val, y_val, fit_params):
        if y is None:
            raise ValueError(
                "requires y to be passed, but the target y is None: the attributor "
                "needs targets."
            )
        if (X_val is None) != (y_val is None):
            raise ValueError("X_val and y_val must be given together.")

        validate_data(self, X, skip_check_array=True)
        X, y = indexable(X, y)
        n = len(y)
        codes = np.arange(n) if tasks is None else check_tasks(tasks, n)[0]
        if _routing_enabled():
            fit_params = process_routing(self, "fit", **fit_params).attributor.fit
        rng = check_random_state(self.random_state)
        train = np.arange(n)
        attributor = self._seeded(rng)

        if X_val is None:
            train, held_out = hold_out(codes, self.validation_fraction, rng)
            X_val, y_val = _safe_indexing(X, held_out), _safe_indexing(y, held_out)

        units = np.unique(codes[train])
        self._n_wanted(len(units))
        self._check_queries(X_val, y_val, _safe_indexing(y, train))
        fit_params = _check_method_params(X, fit_params, indices=train)
        self.attributor_ = attributor.fit(
            _safe_indexing(X, train),
            _safe_indexing(y, train),
            tasks=None if tasks is None else _safe_indexing(tasks, train),
            **fit_params,
        )

        self._select(X_val, y_val)
        self.selected_tasks_ = self.attributor_.unit_names_[self.support_]
        # tasks without training rows are not units, and their rows are kept
        self.sample_weight_ = np.ones(n)
        is_known = np.isin(codes, units)
        unit_of_row = np.searchsorted(units, codes[is_known])
        self.sample_weight_[is_known] = self.support_[unit_of_row]

        return self

    def _seeded(self, rng):
        """Return a clone of the attributor that draws from a seed."""
        attributor = clone(self.attributor)
        if getattr(attributor, "random_state", 0) is None:
            if self.random_state is None and getattr(attributor, "memory", None):
                raise ValueError(
                    "the attributor has memory set, but its random_state and that of "
                    "the selector are None, so that nothing cached could be reused: "
                    "pass an int random_state."
                )
            attributor.set_params(random_state=draw_seed(rng))
        return attributor

    def _check_queries(self, X_val, y_val, y):
        """Raise, before training, if the queries do not fit the training data."""
        try:
            validate_data(self, X_val, reset=False, skip_check_array=True)
        except ValueError as error:
            raise ValueError(f"X_val: {error}") from error
        if _num_samples(X_val) != _num_samples(y_val):
            raise ValueError(
                f"X_val has {_num_samples(X_val)} rows, but y_val has "
                f"{_num_samples(y_val)}: pass one target per row."
            )

        if not self._classifies(y):
            return

        unseen = np.setdiff1d(y_val, y)
        if len(unseen):
            raise ValueError(
                f"y_val, or the rows held out, have labels unseen in training: "
                f"{unseen[:5].tolist()}. Merge rare classes, or pass X_val and y_val "
                "without them."
            )

    def _classifies(self, y):
        if not hasattr(self.attributor, "estimator"):
            return False
        estimator = self.attributor.estimator
        if estimator is None:
            return type_of_target(y) in ("binary", "multiclass")
        # a frozen estimator has its own classes
        return is_classifier(estimator) and not as_model(estimator).frozen

    def _n_wanted(self, n_tasks):
        """Return how many tasks to keep, None for "auto"."""
        wanted = self.n_tasks_to_select
        if isinstance(wanted, str):
            return None
        if not isinstance(wanted, Integral):
            return max(1, round(wanted * n_tasks))
        if wanted > n_tasks:
            raise ValueError(
                f"n_tasks_to_select={wanted}, but there are {n_tasks} tasks; use at "
                f"most {n_tasks}, or 'auto'."
            )
        return int(wanted)

    def _select(self, X, y):
        self.task_weights_ = self.attributor_.attribute(X, y).mean(axis=0)
        n_tasks = len(self.task_weights_)
        n_wanted = self._n_wanted(n_tasks)

        predict = self._outcome_predictor(X, y)

        def value(weights):
            return predict(weights).mean(axis=1)

        if n_wanted is not None and self.strategy == "marginal":
            self.support_ = largest(self.task_weights_, n_wanted)
        else:
            self.support_ = greedy(value, n_tasks, n_wanted)

        self.predicted_outcome_ = float(value(self.support_[None].astype(float))[0])

    def _outcome_predictor(self, X, y):
        """Return the attributor's `predict_outcomes` of these queries."""
        if not hasattr(self.attributor_, "_outcome_predictor"):
            return partial(self.attributor_.predict_outcomes, X, y)
        with warnings.catch_warnings():
            # attribute() has already warned
            warnings.simplefilter("ignore", ConstantOutcomeWarning)
            return self.attributor_._outcome_predictor(X, y)

    # ------------------------------------------------------------------ using
    def _get_support_mask(self):
        check_is_fitted(self)
        return self.support_

    @available_if(_selects_rows)
    def fit_resample(self, X, y, tasks=None, X_val=None, y_val=None, **fit_params):
        """Select tasks, and return their rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Their targets.
        tasks : array-like of shape (n_samples,) or None, default=None
            Task of each row; None makes every row one.
        X_val : array-like of shape (n_queries, n_features), default=None
            Queries, as in `fit`.
        y_val : array-like of shape (n_queries,) or (n_queries, n_outputs), default=None
            Their targets.
        **fit_params : dict
            Passed to the attributor's ``fit``.

        Warns
        -----
        UserWarning
            If `tasks` is None while metadata routing is off, as in a pipeline of
            imbalanced-learn that cannot pass them on.

        Returns
        -------
        X_kept : array-like of shape (n_kept, n_features)
            Rows of the tasks kept, those held out included.
        y_kept : array-like of shape (n_kept,) or (n_kept, n_outputs)
            Their targets.
        """
        if tasks is None and not _routing_enabled():
            warnings.warn(
                "tasks is None: every row is its own task. A pipeline of "
                "imbalanced-learn passes on tasks only after "
                "sklearn.set_config(enable_metadata_routing=True) and "
                ".set_fit_request(tasks=True) of this selector.",
                UserWarning,
                stacklevel=2,
            )
        self.fit(X, y, tasks=tasks, X_val=X_val, y_val=y_val, **fit_params)
        rows = np.flatnonzero(self.sample_weight_)
        return _safe_indexing(X, rows), _safe_indexing(y, rows)

    def get_metadata_routing(self):
        """Return how fit passes metadata on to the attributor.

        Returns
        -------
        MetadataRouter
            Routes the parameters of ``fit`` to ``attributor.fit``.
        """
        request = self._get_metadata_request()
        mapping = MethodMapping().add(caller="fit", callee="fit")
        # scikit-learn knows this method once imbalanced-learn is imported; it takes the
        # same metadata as fit
        if hasattr(request, "fit_resample"):
            for param, alias in request.fit.requests.items():
                request.fit_resample.add_request(param=param, alias=alias)
            mapping.add(caller="fit_resample", callee="fit")
        router = MetadataRouter(owner=self).add_self_request(request)
        if self.attributor is None:
            return router
        return router.add(attributor=self.attributor, method_mapping=mapping)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        if self.attributor is not None:
            tags.target_tags.required = True
            tags.transformer_tags = None  # its transform is hidden
        return tags
