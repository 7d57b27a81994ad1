"""Base class of the two attributors that fit a surrogate to subsets."""

import math
import reprlib
from abc import abstractmethod
from numbers import Integral, Real

import numpy as np
import torch
from sklearn import config_context
from sklearn.base import clone, is_classifier
from sklearn.random_projection import BaseRandomProjection
from sklearn.utils._param_validation import (
    Interval,
    InvalidParameterError,
    StrOptions,
)

from skattrib._scoring import FEWEST_RETRAININGS
from skattrib._validation import float_dtype, memory_cap
from skattrib._verdict import few_units_hint
from skattrib.base import BaseAttributor
from skattrib.engine._functional import FunctionalModule
from skattrib.engine._losses import SetOutcome
from skattrib.evaluation import make_weightings
from skattrib.exceptions import UnsupportedModelError
from skattrib.influence._costs import (
    refits_bytes,
    refits_seconds,
)
from skattrib.models._as_model import as_model
from skattrib.models._costs import (
    Cost,
    multiplications_per_second,
    training_cost,
    training_seconds,
)
from skattrib.models._network import untrained
from skattrib.models._retraining import as_retrainable
from skattrib.random_projection import (
    CountSketchTransformer,
    checked_projection,
    fitted_projection,
)
from skattrib.surrogate._closed_forms import check_at
from skattrib.surrogate._estimation import (
    LinearizedSubsets,
    RetrainedSubsets,
    cheaper_estimation,
    choose_estimation,
    in_chunks,
)
from skattrib.surrogate._prior import AroundPrior

_ESTIMANDS = {
    "loo": "outcome with all units minus outcome without this one",
    "banzhaf": "Banzhaf value: mean effect of this unit, others present half the time",
    "shapley": "Shapley value: mean effect of this unit in a random order",
}


class SurrogateAttributor(BaseAttributor):
    """Outcomes of random subsets, and a surrogate that is fitted to them per query.

    A subclass implements `_surrogate`.
    """

    _parameter_constraints: dict = {
        **BaseAttributor._parameter_constraints,
        "ridge": [StrOptions({"loocv"}), Interval(Real, 0, None, closed="neither")],
        "n_subsets": [Interval(Integral, 2, None, closed="left")],
        "inclusion": [
            StrOptions({"auto", "uniform"}),
            Interval(Real, 0, 1, closed="right"),
        ],
        "estimation": [StrOptions({"auto", "gradient", "retrain"})],
        "damping": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "center": [StrOptions({"trained", "initial"})],
        "projection": [
            Interval(Integral, 1, None, closed="left"),
            CountSketchTransformer,
            BaseRandomProjection,
            None,
        ],
        "include_loo": [StrOptions({"auto"}), "boolean"],
        "at": [
            StrOptions({"loo", "shapley", "banzhaf"}),
            Interval(Real, 0, 1, closed="both"),
        ],
        "prior": [BaseAttributor, None],
    }
    _measures_sets = True

    def _validate_params(self):
        try:
            super()._validate_params()
        except InvalidParameterError as error:
            if "'prior' parameter" not in str(error):
                raise
            raise InvalidParameterError(
                f"The 'prior' parameter of {type(self).__name__} must be an "
                "attributor, such as DualInfluence(), or None. Got "
                f"{reprlib.repr(self.prior)} instead."
            ) from None

    @abstractmethod
    def _surrogate(self):
        """Return an unfitted regressor."""

    # -------------------------------------------------------------------- fit
    def _check_estimator(self, estimator):
        check_at(self.at)
        model = as_model(estimator)
        if self.estimation == "gradient":
            if not model.stacks:
                raise UnsupportedModelError(
                    f"estimation='gradient' needs gradients, and {model.name} has none:"
                    " use estimation='retrain'."
                )
        elif self.estimation == "retrain" or not model.stacks:
            if model.stacks and model.frozen and not model.has_run:
                raise ValueError(
                    "estimation='retrain' cannot train the frozen module: its training "
                    "was not recorded. Use estimation='gradient'."
                )
            as_retrainable(model.estimator).check()

        if not isinstance(self.projection, Integral | None):
            checked_projection(self.projection, 0)

    def _before_training(self, estimator, X, y):
        if not as_model(estimator).stacks:
            as_retrainable(as_model(estimator).estimator).check_targets(y)
        self._check_prior(estimator)
        try:
            self.weights_ = self._without_subsets_to_score(self._design())
        except ValueError as error:
            raise ValueError(
                f"inclusion={self.inclusion} with n_subsets={self.n_subsets}: {error}"
            ) from error

    def _cost(self, estimator, X, y, n_queries):
        model, n_subsets = as_model(estimator), len(self.weights_)
        problem = untrained(model.network(self), X, y) if model.stacks else None
        estimation = self.estimation
        if estimation == "auto":
            estimation = "retrain" if problem is None else "gradient"
            if problem is not None:
                sizes = len(y), problem.loss.n_outputs(problem.targets)
                rule = problem.recipe, *sizes, n_subsets, self._n_components()
                estimation = cheaper_estimation(*rule)
        one = 0 if model.frozen else 1
        seconds = training_seconds(model, problem, one, X, y)
        work = float(n_subsets) ** 2 * (self.n_units_ + n_queries)
        if estimation == "retrain":
            # of which about half of the rows take part, where others are deleted
            n_models = n_subsets - 1
            share = 1.0 if model.stacks else self.weights_[1:].mean()
            taken, size = training_cost(model, problem, n_models, X, y)
            seconds += share * taken
            size *= share
        else:
            n_models, size = 0, refits_bytes(problem, n_subsets)
            rows = self._unit_weightings(self.weights_)
            removed = (rows != rows[0]).sum(axis=1)
            seconds += refits_seconds(problem, removed, self._n_components())
        seconds += work / multiplications_per_second(torch.float64)
        numbers = n_subsets * (self.n_units_ + 2 * n_subsets + n_queries)
        numbers += 3 * n_queries * self.n_units_
        prior = "" if self.prior is None else "; the prior's own cost is not counted"
        return Cost(
            self._estimand(),
            one + n_models,
            seconds,
            (8 * numbers + size) / 2**20,
            f"outcomes of {n_subsets} subsets by {estimation}{prior}",
        )

    def _estimand(self):
        return _ESTIMANDS.get(
            self.at, f"mean effect of this unit, others present with chance {self.at}"
        )

    def _n_components(self):
        """Return the components of the projection, None if they are not known."""
        n_components = self.projection
        if not isinstance(n_components, Integral | None):
            n_components = getattr(self.projection, "n_components", None)
        return n_components if isinstance(n_components, Integral) else None

    def _fit_attributor(self):
        self.estimation_ = self.estimation

        if self.estimation == "auto":
            self.estimation_ = choose_estimation(
                self._model,
                len(self._targets),
                len(self.weights_),
                self._n_components(),
            )

        rows = self._unit_weightings(self.weights_)
        data = (self._features, self._targets, self._row_weights, rows)
        self._say(f"{len(rows)} subsets by {self.estimation_}")
        if self.estimation_ == "retrain" and self.inclusion != 1:
            self._say(few_units_hint(self.n_units_, len(rows)))
        if self.estimation_ == "gradient":
            self._source = LinearizedSubsets(
                self._model,
                *data,
                ridge=self.damping,
                stationary=self.center == "initial",
                projection=self._fit_projection(),
                memory=self.memory,
                verbose=self.verbose,
            )
        else:
            self._source = RetrainedSubsets(
                self._model,
                *data,
                memory=self.memory,
                n_jobs=self.n_jobs,
                verbose=self.verbose,
            )

        self.estimand_ = self._estimand()
        self.prior_ = self._fit_prior()

    def _unfitted_prior(self, estimator):
        """Return a clone of the prior, with defaults for what it leaves unset."""
        prior = clone(self.prior)
        defaults = {"estimator": clone(estimator), "random_state": self._fit_seed}
        defaults.update(memory=self.memory, n_jobs=self.n_jobs)
        unset = {k: v for k, v in defaults.items() if getattr(prior, k) is None}
        if hasattr(prior, "n_halves"):  # no outcome counts twice
            unset["n_halves"] = 0
        return prior.set_params(outcome=self.outcome, **unset)

    def _check_prior(self, estimator):
        if self.prior is None:
            return
        prior = self._unfitted_prior(estimator)
        prior._validate_params()
        prior._check_usable(prior.estimator)
        if is_classifier(prior.estimator) != is_classifier(estimator):
            raise ValueError(
                f"prior attributes {type(prior.estimator).__name__}, but the surrogate "
                f"{type(estimator).__name__}: one is a classifier, the other is not. "
                "Leave out the prior's estimator, or pass the same to both."
            )

    def _fit_prior(self):
        if self.prior is None:
            return None
        prior = self._unfitted_prior(self._model)
        with config_context(enable_metadata_routing=False):
            return prior.fit(
                self._features,
                self._targets,
                tasks=self.tasks_,
                sample_weight=self._row_weights,
            )

    def _fit_projection(self):
        if isinstance(self.projection, Integral | None):
            return self.projection
        n_params = FunctionalModule(as_model(self._model).module).n_params
        dtype = float_dtype(self._features)
        return fitted_projection(self.projection, n_params, dtype, self._fit_seed)

    def _with_loo(self):
        """Return whether the leave-one-out subsets are used in fit."""
        if self.include_loo != "auto":
            return self.include_loo or self.inclusion == 1
        few = self.n_units_ <= self.n_subsets
        return self.inclusion == 1 or (self.at in ("loo", 1) and few)

    def _design(self):
        """Return distinct subsets (m, n_units): first all units, then without one."""
        n = self.n_units_
        designs = [np.ones((1, n))]
        inclusion = self.inclusion
        if inclusion == "auto":
            # near the point `at`; exactly there, all subsets could be equal
            at = {"shapley": "uniform", "loo": 1.0, "banzhaf": 0.5}.get(
                self.at, self.at
            )
            inclusion = at if at == "uniform" else min(max(at, 0.25), 0.75)

        if self._with_loo():
            designs.append(make_weightings(n, None, kind="loo"))
        if inclusion != 1:
            uniform = inclusion == "uniform"
            n_possible = 2**n - 1 - uniform if n < 60 else np.inf
            designs.append(
                make_weightings(
                    n,
                    int(min(self.n_subsets, n_possible)),
                    size=0.5 if uniform else inclusion,
                    kind="uniform" if uniform else "bernoulli",
                    random_state=self._fit_seed,
                )
            )

        design = np.vstack(designs)
        _, first = np.unique(design, axis=0, return_index=True)
        return design[np.sort(first)]

    def _without_subsets_to_score(self, design):
        """Drop random subsets, so that some are left for `score` if units are few."""
        n = self.n_units_
        size = min(max(round(self.retrain_size * n), 1), n - 1)  # as `score` draws
        n_possible = math.comb(n, size)
        if n_possible < FEWEST_RETRAININGS or (size == n - 1 and self._with_loo()):
            return design
        n_to_score = max(min(self.n_retrainings, n_possible // 2), FEWEST_RETRAININGS)
        droppable = np.flatnonzero(design.sum(axis=1) == size)
        n_excess = len(droppable) - (n_possible - n_to_score)
        rng = np.random.RandomState(self._fit_seed)
        dropped = rng.permutation(droppable)[: max(n_excess, 0)]
        return np.delete(design, dropped, axis=0)

    def _missed_by_errors(self):
        if self.estimation_ == "retrain":
            return ""
        return "the errors of outcomes that were linearised (estimation='retrain')"

    def _seen_weightings(self):
        seen = [self.weights_, super()._seen_weightings()]
        if self.prior_ is not None:
            seen.append(self.prior_._seen_weightings())
        return np.vstack([weights for weights in seen if weights is not None])

    # ---------------------------------------------------------------- queries
    def _fitted_surrogate(self, X, y, outcome):
        """Return a surrogate of some queries, and the outcomes it is fitted to."""
        n_outputs = len(getattr(self._model, "classes_", [0]))
        with np.errstate(all="ignore"):  # what is not finite is refused below
            outcomes = in_chunks(
                self._source,
                X,
                y,
                outcome,
                len(self.weights_),
                max(n_outputs, self._n_outputs()),
            )

        surrogate = self._surrogate()
        if self.prior_ is not None:
            prior_attributions = self.prior_._attributed(X, y, outcome)
            surrogate = AroundPrior(surrogate, *prior_attributions)

        return surrogate.fit(self.weights_, outcomes), outcomes

    def _attribute(self, X, y, outcome):
        surrogate, _ = self._fitted_surrogate(X, y, outcome)
        return surrogate.attribution(self.at, return_std=True)

    def _without_each(self):
        """Return where in `weights_` each unit alone is absent, None if not all are."""
        n_absent = (self.weights_ == 0).sum(axis=1)
        subsets = np.flatnonzero(n_absent == 1)
        if len(subsets) < self.n_units_:
            return None
        absent = self.weights_[subsets].argmin(axis=1)
        return subsets[np.argsort(absent)]

    def _prepare(self, X, y, outcome):
        return self._fitted_surrogate(X, y, outcome)[0].predict

    def _predict_outcomes(self, X, y, weights, outcome):
        return self._prepare(X, y, outcome)(weights)

    def interactions(self, X, y=None, *, average=False):
        """Attribute the outcome of each query to pairs of units.

        Parameters
        ----------
        X : array-like of shape (n_queries, n_features)
            Queries.
        y : array-like of shape (n_queries,) or (n_queries, n_outputs), default=None
            Their targets; None as in `attribute`.
        average : bool, default=False
            Return the mean over the queries.

        Returns
        -------
        ndarray of shape (n_queries, n_units, n_units) or (n_units, n_units)
            Outcome with both units, minus with either one, plus with neither, in the
            unit of the outcome; the other units are present according to `at`. If
            positive, both units have more effect together than the sum of each alone.
            The diagonal is 0.

        Raises
        ------
        ValueError
            If the queries do not fit the training data, or the result is larger than
            scikit-learn's ``working_memory``.
        """
        X, y, outcome = self._check_query(X, y)
        of_one = average or isinstance(outcome, SetOutcome)
        needed = (1 if of_one else len(y)) * self.n_units_**2 * 8
        if needed > memory_cap():
            raise ValueError(
                f"interactions of {len(y)} queries take {needed / 2**20:.0f} MiB, over "
                f"the cap of {memory_cap() / 2**20:.0f} MiB. Pass average=True, fewer "
                "queries at a time, or group rows by tasks=."
            )
        surrogate, _ = self._fitted_surrogate(X, y, outcome)
        interactions = surrogate._interactions(self.at, average)
        interactions = interactions.astype(float_dtype(X), copy=False)
        if not average:
            self._warn_not_finite(interactions, stacklevel=3)
        return interactions
