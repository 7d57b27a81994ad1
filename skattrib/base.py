"""What every attributor shares: the contract."""

import os
from abc import abstractmethod
from functools import partial
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn import config_context, get_config
from sklearn.base import (
    BaseEstimator,
    MetaEstimatorMixin,
    TransformerMixin,
)
from sklearn.utils._param_validation import (
    HasMethods,
    Interval,
    StrOptions,
)
from sklearn.utils.metadata_routing import (
    MetadataRouter,
    MethodMapping,
    _routing_enabled,
    process_routing,
)
from sklearn.utils.validation import (
    _check_feature_names_in,
    _num_samples,
    check_is_fitted,
)

from skattrib._attributing import AttributesQueries
from skattrib._calibrated import CalibratedByHalves
from skattrib._frames import (
    among_all,
    row_names,
    some_queries,
)
from skattrib._indexes import index_of, pandas_index
from skattrib._inputs import ValidatedInputs, in_memory, takes_tables, told_to_encode
from skattrib._predicting import PredictsOutcomes
from skattrib._questions import FurtherQuestions
from skattrib._scoring import FEWEST_RETRAININGS, ScoredByRetraining
from skattrib._validation import (
    check_fits,
    check_not_single,
    check_tasks,
    dense,
    draw_seed,
    float_dtype,
    has_columns,
    unchanged_on_error,
)
from skattrib.engine._losses import SetOutcome, groups_of
from skattrib.models._any import is_pairwise
from skattrib.models._as_model import as_model, check_recipe, check_wrapped
from skattrib.models._costs import Cost
from skattrib.models._datasets import opened, rows_of
from skattrib.models._fit_params import (
    check_names,
    check_target,
    row_weights,
    rows_that_count,
)
from skattrib.models._outcomes import (
    NO_COMPLETIONS,
    OUTCOMES,
    check_label_columns,
    check_outcome,
    check_own_outcome,
)
from skattrib.models._parts import Parts, searched
from skattrib.models._repeatable import check_finite, check_repeatable
from skattrib.models.neural import TorchClassifier, make_estimator

__all__ = ["BaseAttributor"]

# What the docstrings of attributors have in common.
ATTRIBUTOR_DOCS = {
    "outcome": """
    outcome : {"auto", "log_likelihood", "margin", "prediction", "probability"} or \
            callable, default="auto"
        What is attributed; see `evaluation.retrain_outcomes`. "auto" is the
        log-likelihood, the margin of a classifier that has decisions and neither
        probabilities nor a loss that is known, such as SVC. Without y it is that of the
        predicted class, or the raw prediction. An `evaluation.SetOutcome` is one number
        of all queries together.
    """,
    "retraining": """
    n_retrainings : int, default=32
        Models trained by `score`; at least 8.
    retrain_size : float, default=0.5
        Fraction of the units that each of them is trained on.
    """,
    "halves": """
    n_halves : "auto" or int, default="auto"
        Random halves of the units, each with its complement, on which models are really
        trained in `fit`. They correct attributions and give them their size and an
        interval that holds (:ref:`posterior`). "auto": 32 for each run, 64 to 1,024,
        where `inclusion` is 0.5; fewer where units have few halves or models do not fit
        scikit-learn's ``working_memory`` (with `memory` they are kept there), 0 where
        less than 8 pairs are left. 0: attributions by the runs alone.
    """,
    "asked_halves": """
    n_halves : int, default=0
        Random halves of the units, each with its complement, on which models are really
        trained in `fit`. They correct attributions and give them their size and an
        interval that holds (:ref:`posterior`); what is attributed is then the mean
        effect of a unit, others present half the time, around that of the average
        unit. 0: none.
    """,
    "halves_figures": """
    - calibration_slope, lds: slope of retrained outcomes on predicted ones (1
      is right) and their rank correlation: of `n_retrainings` new models, else
      of the retrained halves, each predicted by the others; else None.
    - coverage: share of differences between complementary halves that are in
      their 95 % intervals, each predicted by the others.
    - prior_slope: median slope of retrained outcomes on the attributions that
      halves correct; not above 0 where these are worthless, and not used.
    - share: what is additive of their errors, the rest being interactions.
      These three are None without retrained halves.
    """,
    "system_figures": """
    - system: with ``system=True`` what rounding alone does to attributions, before
      retrained halves correct them: the same training, from a start whose weights
      are the neighbouring numbers. Its attribution_noise is
      the median distance of the attributions of a query, over their size; digits
      what that leaves of them; outcome_noise the median change of an outcome;
      drowned the share of attributions that are smaller than that; diverged the
      share of the trainings that end elsewhere: further off than a hundredth of the
      way that they went. Else None.
    """,
    "halves_found": """
    n_halves_ : int
        Halves that were retrained.
    halves_ : ndarray of bool of shape (`n_halves_`, n_units)
        Units in each, complements next to each other; not there if there are none.
    """,
    "units": """
    y_train_ : ndarray of shape (n_samples,) or (n_samples, n_outputs)
        Their targets.
    tasks_ : ndarray of shape (n_samples,) or None
        Task of each row.
    unit_names_ : ndarray of shape (n_units,)
        Task labels, or the index of X.
    n_units_ : int
        Number of units.
    estimand_ : str
        Meaning of an attribution.
    n_features_in_ : int
        Number of features seen in fit.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, if X had any.
    """,
    "fit_rows": """
    X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        Training rows. A network with a `module` takes rows of any shape; a map-style
        Dataset of torch brings its targets, here and in queries. Of a Dataset of
        Hugging Face the rows are the column "prompt" or "text".
    y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
        Their targets; None only with a Dataset of torch. Of a Dataset of Hugging Face
        the name of their column.
    tasks : array-like of shape (n_samples,) or None, default=None
        Unit of each row, for example its source; None makes every row a unit.
    """,
    "diagnosed": """
    X : array-like of shape (n_queries, n_features) or (n_queries, ...)
        Queries.
    y : array-like of shape (n_queries,) or (n_queries, n_outputs), default=None
        Their targets; None only with a Dataset of torch, which brings them.
    n_retrainings : int, default=0
        Number of retrained models to compare with, at least 8; 0 for none.
    """,
    "fit_params": """
    **fit_params : dict
        Passed to the estimator's ``fit``; `sample_weight` enters the
        attributions too.
    """,
}


#: Queries that a plan counts on.
N_PLANNED = 10


class _Job(NamedTuple):
    """What is to be trained: rows, the steps of a pipeline, and a search that chose."""

    X: Any
    y: Any
    parts: Parts
    search: Any
    features: Any
    targets: Any
    model_params: dict


class BaseAttributor(
    FurtherQuestions,
    AttributesQueries,
    PredictsOutcomes,
    CalibratedByHalves,
    ScoredByRetraining,
    ValidatedInputs,
    MetaEstimatorMixin,
    TransformerMixin,
    BaseEstimator,
):
    """Base class of attributors: fit, attribute, predict outcomes, be checked.

    It validates what the user passes, trains the model, and compares predictions with
    retraining. A subclass works on validated arrays only.

    Attributes
    ----------
    estimator_ : estimator
        The fitted model, transformers included.
    X_train_, y_train_ : ndarray or DataFrame
        Copies of the training rows and their targets.
    n_units_ : int
        Number of units: rows, or tasks.
    unit_names_ : ndarray of shape (n_units,)
        Their names.
    estimand_ : str
        What an attribution is. The subclass sets it in `_fit_attributor`.

    See Also
    --------
    as_model : Gives gradients, outcomes and retraining of a model.

    Notes
    -----
    The ``__init__`` of a subclass only stores its parameters. These must be among them,
    with the meaning that they have in `DualInfluence`: ``estimator``, ``outcome``,
    ``n_retrainings``, ``retrain_size``, ``memory``, ``n_jobs``, ``random_state`` and
    ``verbose``. Its ``fit(X, y, tasks=None, **fit_params)`` checks parameters of its
    own and returns ``self._fit(X, y, tasks, fit_params)``. One that has ``n_halves``,
    too, has retrained halves where it is above 0: then `attribute` gives the posterior
    that begins with what ``_attribute`` returns (:ref:`posterior`).

    A subclass writes these methods:

    ``_check_estimator(estimator)``
        Raise if the attributor cannot use this model, before anything is trained. The
        model is the last step of a pipeline, and is not fitted unless it is frozen.
        May be left out.
    ``_before_training(estimator, X, y)``
        Prepare what needs the rows and the units, but no trained model. May be left
        out.
    ``_cost(estimator, X, y, n_queries)``
        Return a `Cost`, before anything is trained: for `skattrib.plan`. May be left
        out.
    ``_fit_attributor()``
        Learn from the trained model and the rows. Set ``estimand_``.
    ``_attribute(X, y, outcome)``
        Return attributions (n_queries, n_units) and their standard errors, or None in
        place of these. Change nothing: queries may come from several threads.
    ``_predict_outcomes(X, y, weights, outcome)``
        Return the outcomes (n_weightings, n_queries) of models that are trained with
        these weights (n_weightings, n_units) of the units.

    If both return one row, or column, where the outcome is a
    `skattrib.evaluation.SetOutcome`, it sets ``_measures_sets = True`` in the class:
    then ``attribute(reduce="mean")`` asks for the mean outcome as such a set, in place
    of averaging the rows of all queries.

    It may write these, too:

    ``_self_attribution(X, y, outcome)``
        Return what `self_attribution` does, cheaper than by ``_attribute``. X and y
        are all training rows.
    ``_value_new(X_new, y_new, X, y, outcome)``
        Return the change (n_new,) of the mean outcome of the queries by each new row.
        Without it, `value_new` refuses.
    ``_check_new_rows()``
        Raise if ``_value_new`` cannot answer for this model.
    ``_model_without(row_weights)``
        Return the fitted model, without the transformers, for weights (n_samples,) of
        the rows. Without it, `model_without` retrains.

    It may read these from ``_fit_attributor`` on:

    ``_model``
        The fitted model, without the transformers before it. Pass it to `as_model`.
    ``_features``
        The training rows as ``_model`` takes them. Queries that a method gets are
        transformed already, too.
    ``_targets``
        The training targets as ``_model`` takes them: ``y_train_``, unless it is in a
        `sklearn.compose.TransformedTargetRegressor`. So are those of queries, and the
        outcome that a method gets measures in the unit of y.
    ``_row_weights``
        Weights (n_samples,) of the rows, 1 unless the user passed `sample_weight`.
    ``_unit_of_row``
        Number (n_samples,) of the unit that each row belongs to.
    ``_by_unit(values)``
        Multiply values (..., n_samples) of the rows by their weights, and add them up
        to units (..., n_units).
    ``_fit_seed``
        Seed (int) for what the subclass draws in ``_fit_attributor``.

    Examples
    --------
    An attributor that counts rows of the same class as the query:

    >>> import numpy as np
    >>> from sklearn.base import clone
    >>> from sklearn.datasets import load_iris
    >>> from skattrib import TorchClassifier
    >>> from skattrib.extension import BaseAttributor, as_model
    >>> class SameClass(BaseAttributor):
    ...     def __init__(self, estimator=None, *, outcome="auto", n_retrainings=32,
    ...                  retrain_size=0.5, memory=None, n_jobs=None,
    ...                  random_state=None, verbose=0):
    ...         self.estimator, self.outcome = estimator, outcome
    ...         self.n_retrainings, self.retrain_size = n_retrainings, retrain_size
    ...         self.memory, self.n_jobs = memory, n_jobs
    ...         self.random_state, self.verbose = random_state, verbose
    ...
    ...     def fit(self, X, y, tasks=None, **fit_params):
    ...         return self._fit(X, y, tasks, fit_params)
    ...
    ...     def _fit_attributor(self):
    ...         self.estimand_ = "whether the classes are the same, no effect"
    ...
    ...     def _attribute(self, X, y, outcome):
    ...         same = y[:, None] == self.y_train_
    ...         return self._by_unit(same - same.mean(axis=1, keepdims=True)), None
    ...
    ...     def _predict_outcomes(self, X, y, weights, outcome):
    ...         present = as_model(self._model).outcomes(X, y, outcome).numpy()
    ...         return present - (1 - weights) @ self._attribute(X, y, outcome)[0].T
    >>> X, y = load_iris(return_X_y=True)
    >>> network = TorchClassifier(max_epochs=20, random_state=0)
    >>> same = SameClass(network, random_state=0).fit(X, y)
    >>> same.attribute(X[:1], y[:1])[0, ::50].round(2)
    array([ 0.67, -0.33, -0.33])
    """

    _parameter_constraints: dict = {
        "estimator": [HasMethods(["fit", "get_params"]), torch.nn.Module, None],
        "outcome": [
            StrOptions(set(OUTCOMES)),
            callable,
        ],
        "n_halves": [Interval(Integral, 0, None, closed="left")],
        "n_retrainings": [Interval(Integral, FEWEST_RETRAININGS, None, closed="left")],
        "retrain_size": [Interval(Real, 0, 1, closed="neither")],
        "memory": [str, os.PathLike, HasMethods(["cache"]), None],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    @abstractmethod
    def _fit_attributor(self):
        """Learn from the fitted ``estimator_`` and the training data."""

    @abstractmethod
    def _attribute(self, X, y, outcome):
        """Return attributions (n_queries, n_units) and their standard error or None.

        X has rows as ``self._model`` takes them, and so has ``self._features``, the
        training rows: what comes before it in a pipeline has been done.
        """

    @abstractmethod
    def _predict_outcomes(self, X, y, weights, outcome):
        """Return predicted outcomes (n_weightings, n_queries)."""

    def _say(self, text):
        """Print a line if verbose, none if there is nothing to say."""
        if self.verbose and text:
            print(f"[{type(self).__name__}] {text.strip()}")  # noqa: T201

    def _n_seeds(self):
        """Return how many training seeds the outcome is averaged over."""
        return 1

    # -------------------------------------------------------------------- fit
    def _fit(self, X, y, tasks, fit_params):
        """Check the parameters that all attributors have, fit, and return self."""
        if not get_config()["skip_parameter_validation"]:
            self._validate_params()
        with unchanged_on_error(self):
            self._validate_and_fit(X, y, tasks, fit_params)
        return self

    def _validate_params(self):
        check_wrapped(self.estimator)
        super()._validate_params()

    def _validate_and_fit(self, X, y, tasks, fit_params):
        job = self._prepared_fit(X, y, tasks, fit_params)
        parts, features, targets = job.parts, job.features, job.targets
        if self.verbose:
            cost = self._whole_cost(parts.model, features, targets, N_PLANNED)
            self._say(cost.said())
        with (
            config_context(enable_metadata_routing=False),
            told_to_encode(self, job.X),
        ):
            rows, labels, model_params = rows_that_count(
                as_model(parts.model), features, targets, job.model_params
            )
            parts.fit_model(rows, labels, **model_params)
        check_repeatable(as_model(parts.model), features)
        check_finite(as_model(parts.model), features)
        trained = as_model(parts.model).trained_weights(self._row_weights)
        self._row_weights = trained
        self.estimator_ = parts.whole if job.search is None else job.search
        self.X_train_, self.y_train_ = job.X, job.y
        self._parts = parts
        self._features = features if parts.has_transformers else self.X_train_
        kept = parts.units is None and parts.reader is None
        self._targets = self.y_train_ if kept else targets
        self._fit_attributor()
        self._learn_halves()

    def _prepared_fit(self, X, y, tasks, fit_params):
        """Check everything, fit transformers, and return what is to be trained."""
        check_recipe(self.estimator, stacklevel=6)
        X, y = opened(X, y)
        if self.estimator is not None:  # before any number is drawn
            self._check_usable(Parts(self.estimator).model)
        check_names(fit_params)
        index = index_of(X, y, {"tasks": tasks, **fit_params})
        indexed = any(pandas_index(table) is not None for table in (X, y))
        # an array of texts would give each the room of the longest
        texts = self._takes_texts or self._takes_completions
        several = not texts and has_columns(y)
        table = self.estimator is not None and takes_tables(self.estimator)
        X, y = self._validated(X, y, several=several, table=table)
        # copies: changed meanwhile, by the user or on disk, they would not be what is
        # trained on
        X, y = in_memory(X), in_memory(y)
        if _routing_enabled():
            fit_params = process_routing(self, "fit", **fit_params).estimator.fit
        if self.memory is not None and self.random_state is None:
            raise ValueError(
                "memory is set but random_state is None: nothing could be found again. "
                "Pass an int random_state, or memory=None."
            )
        codes, names = self._units(tasks, index, _num_samples(X))
        # one generator per purpose: what one draws must not move the others
        seeds = np.random.SeedSequence(draw_seed(self.random_state)).generate_state(4)
        estimator = self._made_estimator(y, int(seeds[0] >> 1))
        parts = Parts(estimator)
        y = y if texts else check_target(dense(y), estimator)
        if self.estimator is None:
            self._check_usable(parts.model)
        weights, model_params = row_weights(estimator, fit_params, X)
        with config_context(enable_metadata_routing=False), told_to_encode(self, X):
            search, estimator = searched(estimator, X, y, **fit_params)
            parts = parts if search is None else Parts(estimator)
            features, targets = parts.fit_transformers(X, y)
        self._check_outcome_of(parts, features, targets)
        self.unit_names_, self.n_units_ = names, len(names)
        self.tasks_ = None if tasks is None else names[codes]
        self._has_names = tasks is not None or getattr(index, "is_unique", False)
        self._has_index = self._has_names or (index is None and indexed)
        self._score_seed, self._fit_seed, self._halves_seed = (
            int(seed >> 1) for seed in seeds[1:]
        )
        self._unit_of_row, self._row_weights = codes, weights
        self._check_distinct_halves()
        self._before_training(parts.model, features, targets)
        return _Job(X, y, parts, search, features, targets, model_params)

    def _check_outcome_of(self, parts, features, y):
        """Raise on an outcome, or on targets, that the model cannot have."""
        model = parts.model
        loss = as_model(model).future_loss(features, y)
        check_label_columns(as_model(model), loss, y)
        n_outputs = 1 if y.ndim == 1 else y.shape[1]
        parts.outcome(check_outcome(self.outcome, model, n_outputs, loss), loss)

    @property
    def _model(self):
        """The fitted model that is attributed: the last step, if there are steps."""
        return self._parts.model

    @staticmethod
    def _units(tasks, index, n_rows):
        if tasks is not None:
            return check_tasks(tasks, n_rows)
        if n_rows < 2:
            raise ValueError(
                f"Found array with {n_rows} sample(s) (n_samples={n_rows}) while a "
                "minimum of 2 is required: 1 sample has no other to be compared with."
            )
        return np.arange(n_rows), row_names(index, n_rows, stacklevel=7)

    def _made_estimator(self, y, seed):
        """Return what is trained: a clone, with seeds; of None what suits y."""
        return make_estimator(self.estimator, y, seed)

    def _check_usable(self, estimator):
        self._check_estimator(estimator)
        self._check_halves(estimator)

    def _check_estimator(self, estimator):
        """Raise unless this attributor can use the estimator; before any training."""

    def _before_training(self, estimator, X, y):
        """Prepare, and refuse, what needs the units but no trained estimator."""

    def _cost(self, estimator, X, y, n_queries):
        """Return what fit and attributing queries will take; asked before training."""
        return Cost("", way=f"{type(self).__name__} does not tell what it takes")

    # ---------------------------------------------------------------- queries
    def _check_query(self, X, y, *, new=False):
        """Validate queries, or new rows; return X, y and the outcome to measure."""
        check_is_fitted(self, "n_units_")
        X, y = opened(X, y)
        index_of(X, y, {} if new else groups_of(self.outcome))
        if not (self._takes_texts or self._reads_texts(X)):
            check_not_single(X, y)
        table = isinstance(self.X_train_, pd.DataFrame)
        if y is None:
            if self._takes_completions:
                raise ValueError(NO_COMPLETIONS)
            X = self._validated(X, table=table, reset=False)
            y, outcome = self._own_predictions(X)
            return self._parts.features(X), self._parts.targets(y), outcome
        several = self._n_outputs() > 1
        X, y = self._validated(X, y, several=several, table=table, reset=False)
        if not self._takes_completions:
            y = check_target(dense(y), self._model)
        return *self._parts.rows(X, y), self._checked_outcome(self.outcome)

    def _check_rows(self, X):
        """Validate rows that have no targets; return them as the model takes them."""
        check_is_fitted(self, "n_units_")
        if self._takes_completions:
            raise ValueError(
                "Outputs of a language model are of prompts with completions: use "
                "predict_outcomes(X, y, weights)."
            )
        X, table = rows_of(X), isinstance(self.X_train_, pd.DataFrame)
        return self._parts.features(self._validated(X, table=table, reset=False))

    def _own_predictions(self, X):
        """Return the model's own predictions and the outcome measured at them."""
        outcome = check_own_outcome(self.outcome, self._model, self._n_outputs())
        outcome = self._parts.outcome(outcome, as_model(self._model).loss)
        return self.estimator_.predict(X), outcome

    def _n_outputs(self):
        return 1 if self.y_train_.ndim == 1 else self.y_train_.shape[1]

    def _checked_outcome(self, outcome):
        outcome = check_outcome(outcome, self._model, self._n_outputs())
        return self._parts.outcome(outcome, as_model(self._model).loss)

    def transform(self, X):
        """Attribute the model's own predictions.

        Parameters
        ----------
        X : array-like of shape (n_queries, n_features) or (n_queries, ...)
            Queries.

        Returns
        -------
        ndarray or DataFrame of shape (n_queries, n_units)
            ``attribute(X)``; columns are named after the units.

        Raises
        ------
        ValueError
            If the result is larger than scikit-learn's ``working_memory``, or the
            outcome is one of all queries together.
        """
        check_is_fitted(self, "n_units_")
        if isinstance(self.outcome, SetOutcome):
            raise ValueError(
                f"transform returns a row for each query, and outcome={self.outcome!r} "
                "has one for all of them. Use attribute(X), or an outcome of single "
                "queries."
            )
        X, y, outcome = self._check_query(rows_of(X), None)
        cure = "Attribute fewer rows at a time, group rows by tasks="
        check_fits(_num_samples(X), self.n_units_, float_dtype(X), cure)
        return self._attribute_finite(X, y, outcome)[1]

    def _check_finite_query(self, X, y):
        """Validate queries; leave out those whose outputs are not finite."""
        X, y, outcome = self._check_query(X, y)
        kept = self._finite_queries(X)
        if kept is None:
            return X, y, outcome
        if isinstance(outcome, SetOutcome):
            bad = np.setdiff1d(np.arange(_num_samples(X)), kept)[:10].tolist()
            raise ValueError(
                f"The model's outputs for queries {bad} are NaN or infinite, and the "
                f"outcome {outcome!r} is of all queries together: leave these rows "
                "out."
            )
        nothing = np.zeros(len(kept))
        self._warn_not_finite(among_all(nothing, _num_samples(X), kept, float))
        if not len(kept):
            raise ValueError(
                "The model's outputs for all of these queries are NaN or infinite: "
                "its training diverged, or X is out of range. Look at predict(X)."
            )
        return *some_queries(X, y, kept), outcome

    def _unit_weightings(self, weights):
        """Spread weights of units over rows and multiply by the rows' own."""
        return weights[:, self._unit_of_row] * self._row_weights

    def _by_unit(self, values):
        """Weigh values (..., n_samples) of the rows and add them up to units."""
        share = values * self._row_weights
        if self.tasks_ is None:
            return share
        out = np.zeros((*share.shape[:-1], self.n_units_), dtype=share.dtype)
        np.add.at(out, (..., self._unit_of_row), share)
        return out

    def _prepare(self, X, y, outcome):
        """Return a function of weights; a subclass may do work beforehand."""
        return partial(self._predict_outcomes, X, y, outcome=outcome)

    # ------------------------------------------------------- sklearn protocol
    def get_feature_names_out(self, input_features=None):
        """Return the names of the units.

        Parameters
        ----------
        input_features : array-like of str or None, default=None
            Only checked against the features seen in fit.

        Returns
        -------
        ndarray of str, shape (n_units,)
            Task labels, or the index of the training rows.
        """
        check_is_fitted(self, "n_units_")
        _check_feature_names_in(self, input_features, generate_names=False)
        return np.array([str(name) for name in self.unit_names_], dtype=object)

    def get_metadata_routing(self):
        """Return how fit passes metadata on to the estimator.

        Returns
        -------
        MetadataRouter
            Routes the parameters of ``fit`` to ``estimator.fit``.
        """
        estimator = TorchClassifier() if self.estimator is None else self.estimator
        return (
            MetadataRouter(owner=self)
            .add_self_request(self)
            .add(
                estimator=estimator,
                method_mapping=MethodMapping().add(caller="fit", callee="fit"),
            )
        )

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.input_tags.sparse = self._takes_sparse
        tags.input_tags.allow_nan = self._takes_gaps
        if self.estimator is not None:  # a kernel is sliced by rows and columns
            tags.input_tags.pairwise = is_pairwise(self.estimator)
        return tags
