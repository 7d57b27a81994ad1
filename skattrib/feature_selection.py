"""Selection of tasks to train on, by their attributions."""

import warnings
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
from sklearn.utils._param_validation import (
    HasMethods,
    Hidden,
    Interval,
    RealNotInt,
    StrOptions,
)
from sklearn.utils.metadata_routing import (
    MetadataRouter,
    MethodMapping,
    _routing_enabled,
    process_routing,
)
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import _check_method_params, _num_samples, check_is_fitted

from skattrib._frames import row_names
from skattrib._indexes import index_of
from skattrib._task_folds import Fold, attributions_of, outcome_predictor
from skattrib._task_sets import (
    Judges,
    are_rows,
    draw_folds,
    greedy,
    judge,
    largest,
    refuse_sets,
    spread,
)
from skattrib._validation import (
    DTYPES,
    check_instance,
    check_rows,
    check_squares,
    check_tasks,
    draw_seed,
    first_labels,
    label_positions,
    plain,
    sorted_labels,
    target_type,
    unchanged_on_error,
    validate_data,
)
from skattrib.exceptions import FaithfulnessWarning
from skattrib.models._as_model import as_model
from skattrib.models._datasets import opened, some_rows

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
        X, options = plain(X, "X"), {"accept_sparse": True, "ensure_all_finite": False}
        validate_data(self, X, dtype=DTYPES, reset=False, **options)
        with np.errstate(all="ignore"):  # sums of large numbers in a check
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
    tasks of the training data by what training on them is worth to trusted rows
    (`X_val` and `y_val` of `fit`), or else to the rows of the other tasks.

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
    at : {"auto", "loo", "shapley", "banzhaf"} or float, default="auto"
        Which other tasks are present when one is judged: the value of the parameter
        `at` of an attributor that has one. "auto": where tasks are ranked by their
        weights, "banzhaf" in place of the attributors' default "loo", as leaving one
        out of all says little where the others make up for it; else the attributor's.
    cv : int, default=3
        Number of folds of each task's rows, at least 2. Without `X_val`, an attributor
        is fitted per fold, on the rows of the other folds: `cv` times the cost of one
        with ``1 - 1 / cv`` of the rows. With `X_val` one is fitted, on all rows, and
        `X_val` is split into so many parts, for `task_weights_std_` alone.
    validation_fraction : float, default="deprecated"
        Ignored.

        .. deprecated:: 0.1
           Will be removed: all rows judge in turns, none is left out of training.
           Use `cv`.
    random_state : int, RandomState instance or None, default=None
        Draws the folds, and seeds the attributor if it is unseeded.

    Attributes
    ----------
    attributors_ : list of attributor
        Fitted attributors, one per fold, or one if `X_val` was given; only with
        `attributor`.
    attributor_ : attributor
        The first of them; only with `attributor`.
    task_names_ : ndarray of shape (n_tasks,)
        Names of all tasks: labels, or the index of X; only with `attributor`.
    task_weights_ : ndarray of shape (n_tasks,)
        Value of each task, in the unit of the outcome: its mean attribution over the
        rows of `X_val`, or the median over the other tasks of its 10 % trimmed mean
        attribution on the rows of each. Without `attributor`, means of the columns.
    task_weights_std_ : ndarray of shape (n_tasks,)
        Standard deviation of this value over the folds, or parts of `X_val`; NaN with
        fewer than two. Only with `attributor`.
    support_ : ndarray of bool, shape (n_tasks,)
        Whether a task is kept.
    selected_tasks_ : ndarray
        Names of the tasks kept; without `attributor`, names or numbers of columns.
    predicted_outcome_ : float
        Mean predicted outcome of `X_val`, or of the rows of the tasks kept, after
        training on the tasks kept; only with `attributor`.
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

    Notes
    -----
    Rows with wrong labels vote for their own source, and one confident mistake weighs
    as much as many right answers. So without `X_val` no row is asked of an attributor
    that was fitted to it, no task is judged by its own rows, and the median is safe as
    long as most of the other tasks can be trusted. With two or three tasks it cannot
    tell which of them is wrong: pass `X_val`. If every row is a task, all other rows
    judge it together, by their trimmed mean. Tasks with a single row are judged, but do
    not judge, nor do rows whose label the other folds lack.

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
        "at": [
            StrOptions({"auto", "loo", "shapley", "banzhaf"}),
            Interval(Real, 0, 1, closed="both"),
        ],
        "cv": [Interval(Integral, 2, None, closed="left")],
        "validation_fraction": [
            Interval(Real, 0, 1, closed="neither"),
            Hidden(StrOptions({"deprecated"})),
        ],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        attributor=None,
        *,
        n_tasks_to_select="auto",
        strategy="marginal",
        at="auto",
        cv=3,
        validation_fraction="deprecated",
        random_state=None,
    ):
        self.attributor = attributor
        self.n_tasks_to_select = n_tasks_to_select
        self.strategy = strategy
        self.at = at
        self.cv = cv
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    # -------------------------------------------------------------------- fit
    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None, tasks=None, X_val=None, y_val=None, **fit_params):
        """Select the tasks to keep.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features); or Dataset
            Training rows; without `attributor`, attributions, a column per task.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs); str; or None
            Their targets, or their column in a Dataset of Hugging Face; needed with
            `attributor`.
        tasks : array-like of shape (n_samples,) or None, default=None
            Task of each row; None makes every row one.
        X_val : array-like of shape (n_queries, n_features); Dataset; or None
            Rows with labels that can be trusted, or of the target: the tasks are judged
            by the outcomes of these alone. Recommended. None judges each task by the
            rows of the others, cross-fitted. A pipeline routes it, but transforms it
            only if it is one of ``Pipeline(transform_input=["X_val"])``.
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
            If the data do not fit together, too few rows can judge, or more tasks are
            requested than exist.

        Warns
        -----
        FaithfulnessWarning
            If the weakest task kept and the strongest one dropped differ by no more
            than `task_weights_std_`; if every row is a task, the means of both.
        FutureWarning
            If `validation_fraction` is set, which is deprecated.
        """
        if self.validation_fraction != "deprecated":
            warnings.warn(
                f"validation_fraction={self.validation_fraction} is deprecated and "
                "ignored: all rows judge in turns. Leave it out, or set cv.",
                FutureWarning,
                stacklevel=3,
            )
        check_instance(self.attributor, "attributor")
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
        check_squares(X, "X")
        self.task_weights_ = X.mean(axis=0)
        n_wanted = self._n_wanted(X.shape[1])
        if n_wanted is None:
            n_wanted = max(1, X.shape[1] // 2)
        self.support_ = largest(self.task_weights_, n_wanted)
        names = getattr(self, "feature_names_in_", np.arange(X.shape[1]))
        self.selected_tasks_ = names[self.support_]

        return self

    def _fit_tasks(self, X, y, tasks, X_val, y_val, fit_params):
        X, y = opened(X, y)
        X_val, y_val = opened(X_val, y_val)
        if y is None:
            raise ValueError(
                "requires y to be passed, but the target y is None: the attributor "
                "needs targets."
            )
        if X is None:  # completions without prompts
            X = np.full(_num_samples(y), None)
            if X_val is None and y_val is not None:
                X_val = np.full(_num_samples(y_val), None)
        if (X_val is None) != (y_val is None):
            raise ValueError("X_val and y_val must be given together.")

        validate_data(self, X, skip_check_array=True)
        index = index_of(X, y, {"tasks": tasks, **fit_params})
        X, y = self._rows(X, y, "X", "y")
        n = len(y)
        if tasks is None:
            codes = np.arange(n)
            names = row_names(index, n, stacklevel=5)
        else:
            codes, names = check_tasks(tasks, n)
        self._n_wanted(len(names))
        refuse_sets(self.attributor)
        if _routing_enabled():
            fit_params = process_routing(self, "fit", **fit_params).attributor.fit
        rng = check_random_state(self.random_state)
        attributor = self._seeded(rng)

        if X_val is None:
            plan = self._cross_fitting(codes, y, rng)
        else:
            X_val, y_val = self._check_queries(X_val, y_val, y)
            plan = [(np.arange(n), None)]

        folds = []
        for train, judging in plan:
            fitted = clone(attributor).fit(
                _safe_indexing(X, train),
                _safe_indexing(y, train),
                tasks=None if tasks is None else _safe_indexing(tasks, train),
                **_check_method_params(X, fit_params, indices=train),
            )
            units = np.unique(codes[train])
            if judging is None:
                folds.append(Fold(fitted, units, X_val, y_val))
            else:
                rows = _safe_indexing(X, judging), _safe_indexing(y, judging)
                folds.append(Fold(fitted, units, *rows))

        self.attributors_ = [fold.attributor for fold in folds]
        self.attributor_ = self.attributors_[0]
        self.task_names_ = names
        n_trusted = None if X_val is None else _num_samples(X_val)
        self._select(folds, Judges.of(plan, codes, n_trusted, self.cv, rng))
        self.selected_tasks_ = self.task_names_[self.support_]
        self.sample_weight_ = self.support_[codes].astype(float)

        return self

    def _cross_fitting(self, codes, y, rng):
        """Return, per fold, the rows to train on and those that judge.

        A row that is the only one of its task, or whose label the others lack, is
        always trained on or at least never asked.
        """
        drawn = draw_folds(codes, self.cv, rng)
        labels = np.asarray(y) if self._classifies(y) else None
        plan = []
        for fold in range(self.cv):
            train, judging = (
                np.flatnonzero(drawn != fold),
                np.flatnonzero(drawn == fold),
            )
            if labels is not None and labels.ndim == 1:
                judging = judging[np.isin(labels[judging], labels[train])]
            if len(judging):
                plan.append((train, judging))

        asked = np.concatenate([np.array([], int), *(judging for _, judging in plan)])
        if not len(asked):
            raise ValueError(
                f"n_samples={len(codes)}: no rows can be held out to judge tasks, as "
                "no task has 2, or no label has. Pass X_val and y_val."
            )
        if not are_rows(codes) and len(np.unique(codes[asked])) < 2:
            raise ValueError(
                "only one task has two rows or more, but a task is judged on rows of "
                "other tasks. Give more rows per task, or pass X_val and y_val."
            )
        # every row a task: one in the only fold that judges is never trained on
        trained = np.unique(np.concatenate([codes[train] for train, _ in plan]))
        if len(trained) <= codes.max():
            raise ValueError(
                f"n_samples={len(codes)}: some rows can be judged by no others, as "
                "labels are too rare. Merge rare classes, or pass X_val and y_val."
            )
        return plan

    def _seeded(self, rng):
        """Return a clone of the attributor that draws from a seed."""
        attributor = clone(self.attributor)
        self._set_at(attributor)
        if getattr(attributor, "random_state", 0) is None:
            if self.random_state is None and getattr(attributor, "memory", None):
                raise ValueError(
                    "the attributor has memory set, but its random_state and that of "
                    "the selector are None, so that nothing cached could be reused: "
                    "pass an int random_state."
                )
            attributor.set_params(random_state=draw_seed(rng))
        return attributor

    def _set_at(self, attributor):
        """Set which other tasks are present when one is judged."""
        own = attributor.get_params(deep=False).get("at")
        ranks = self.strategy == "marginal" and self.n_tasks_to_select != "auto"
        if self.at != "auto" and own is None:
            raise ValueError(
                f"at={self.at!r}: {type(attributor).__name__} has no parameter at. Use "
                "at='auto', or an attributor that has one, such as "
                "KernelSurrogateAttributor."
            )
        if self.at != "auto":
            attributor.set_params(at=self.at)
        elif ranks and own == "loo":
            attributor.set_params(at="banzhaf")

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
        X_val, y_val = self._rows(X_val, y_val, "X_val", "y_val")
        if self._classifies(y):
            labels, classes = np.asarray(y_val), sorted_labels(y, "y")[0]
            unseen = label_positions(classes, labels) < 0
            if unseen.any():
                raise ValueError(
                    "y_val has labels unseen in training: "
                    f"{first_labels(labels[unseen])}. Leave out these rows of X_val "
                    "and y_val, or train on rows of these labels."
                )
        return X_val, y_val

    @staticmethod
    def _rows(X, y, X_name, y_name):
        """Check rows and targets; of a table with an index, the index is kept."""
        found, checked = check_rows(X, y, X_name, y_name)
        return indexable(found, y if hasattr(y, "iloc") else checked)

    def _classifies(self, y):
        if not hasattr(self.attributor, "estimator"):
            return False
        estimator = self.attributor.estimator
        if estimator is None:
            return target_type(y) in ("binary", "multiclass")
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

    def _select(self, folds, judges):
        """Set the weights of tasks, which of them are kept, and what is expected."""
        n_tasks = len(self.task_names_)
        every = np.arange(n_tasks)
        attributions = attributions_of(folds, n_tasks)
        self.task_weights_ = judge(attributions, judges.groups, every)
        by_fold = [
            judge(attributions[part], judges.groups_of(part), every)
            for part in judges.parts()
        ]
        self.task_weights_std_ = spread(np.array(by_fold))

        predict = outcome_predictor(folds)
        n_wanted = self._n_wanted(n_tasks)
        if n_wanted is not None and self.strategy == "marginal":
            self.support_ = largest(self.task_weights_, n_wanted)
        else:

            def gain(current, candidates, changed):
                change = predict(candidates) - predict(current[None])
                return judge(change.T, judges.groups, changed)

            self.support_ = greedy(gain, n_tasks, n_wanted)

        outcomes = predict(self.support_[None])[0]
        is_asked = judges.are_of(self.support_) & ~np.isnan(outcomes)
        asked = outcomes[is_asked] if is_asked.any() else outcomes
        self.predicted_outcome_ = float(np.nanmean(asked))
        self._warn_if_alike(judges.are_rows)

    def _warn_if_alike(self, are_rows):
        """Warn if kept and dropped tasks differ by no more than folds do.

        The weakest task kept is compared with the strongest one dropped; of rows, which
        are many and always close, the means.
        """
        kept, dropped = np.flatnonzero(self.support_), np.flatnonzero(~self.support_)
        if not len(dropped):
            return
        weights, std = self.task_weights_, self.task_weights_std_
        if are_rows:
            gap = weights[kept].mean() - weights[dropped].mean()
            # of one query no spread is known
            noise = np.nan if np.isnan(std).all() else np.nanmean(std)
            what = "the rows kept and those dropped have mean values that"
        else:
            weakest = kept[np.argmin(weights[kept])]
            strongest = dropped[np.argmax(weights[dropped])]
            gap = weights[weakest] - weights[strongest]
            noise = max(std[weakest], std[strongest])
            what = (
                f"task {self.task_names_[weakest]!s} (kept) and task "
                f"{self.task_names_[strongest]!s} (dropped) have values that"
            )
        # a search may rightly keep a task of lower weight, which helps another one
        if self.strategy == "greedy" or self.n_tasks_to_select == "auto":
            gap = abs(gap)
        if gap <= noise:
            warnings.warn(
                f"{what} differ by {gap:.2g}, and the spread over folds is "
                f"{noise:.2g}: which is better is not known. Pass clean rows as X_val "
                "and y_val, give more rows, or choose another n_tasks_to_select.",
                FaithfulnessWarning,
                stacklevel=6,
            )

    # ------------------------------------------------------------------ using
    def _get_support_mask(self):
        check_is_fitted(self)
        return self.support_

    @available_if(_selects_rows)
    def fit_resample(self, X, y, tasks=None, X_val=None, y_val=None, **fit_params):
        """Select tasks, and return their rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features); or Dataset
            Training rows.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs); or str
            Their targets, or their column in a Dataset of Hugging Face.
        tasks : array-like of shape (n_samples,) or None, default=None
            Task of each row; None makes every row one.
        X_val : array-like of shape (n_queries, n_features), default=None
            Rows that can be trusted, as in `fit`.
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
        X_kept : array-like of shape (n_kept, n_features); or Dataset
            Rows of the tasks kept; of a Dataset a part of it.
        y_kept : array-like of shape (n_kept,) or (n_kept, n_outputs); or str
            Their targets; or the name of their column, as it was given.
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
        return some_rows(X, y, np.flatnonzero(self.sample_weight_))

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
