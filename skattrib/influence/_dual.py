"""Influence by refitting the linearised model in closed form."""

from dataclasses import replace
from numbers import Integral, Real

import numpy as np
import pandas as pd
import torch
from sklearn.base import _fit_context
from sklearn.utils import _safe_indexing
from sklearn.utils._param_validation import Interval, StrOptions, validate_params
from sklearn.utils.validation import check_is_fitted

from skattrib._docstrings import fill_in
from skattrib._posterior._gaussian import Knowledge
from skattrib._validation import float_dtype
from skattrib.base import ATTRIBUTOR_DOCS, BaseAttributor
from skattrib.engine._losses import SetOutcome
from skattrib.engine._true_derivatives import check_true
from skattrib.influence._answers import AnswersBySteps
from skattrib.influence._costs import (
    exact_cost,
    tangent_bytes,
    tangent_seconds,
)
from skattrib.influence._damping import (
    N_QUERIES,
    N_RETRAINED,
    RidgeRule,
    calibrated_rules,
)
from skattrib.influence._diagnosis import DiagnosesTangent
from skattrib.influence._exact_models import ExactModel
from skattrib.influence._linear_models import (
    LeaveOneUnitOut,
    LinearModel,
    trained_seeds,
)
from skattrib.influence._measures import measures
from skattrib.influence._tangent_plans import check_has_head, plan_untrained, told
from skattrib.models._answers import LastAnswer
from skattrib.models._as_model import as_model
from skattrib.models._costs import Cost, training_seconds
from skattrib.models._linear import Convex
from skattrib.models._network import check_seeds, untrained

__all__ = ["DualInfluence"]

#: Meaning of an attribution, at first order or not.
ESTIMANDS = {
    True: "first-order change of the outcome when this unit is added to the rest",
    False: "outcome with all units minus outcome without this one",
}
# Parameters that decide how a network is solved for.
_PLANNED = "parameters", "solver", "removal"


@fill_in(ATTRIBUTOR_DOCS)
class DualInfluence(DiagnosesTangent, AnswersBySteps, BaseAttributor):
    """Leave-one-out effects from the model linearised at its trained weights.

    A network is replaced by its tangent, whose damped refit without a unit has a
    closed form, solved in the space of parameters or, through the empirical neural
    tangent kernel, in that of the training rows: whichever is smaller. The damping
    stands for the finite length of training and is set from it.

    A linear or kernel model of scikit-learn is its own tangent. With its own penalty in
    the place of the damping the refit is retraining, in a fraction of the time.

    Parameters
    ----------
    estimator : estimator or None, default=None
        Model to train and attribute: a TorchClassifier or TorchRegressor, or one of
        scikit-learn: MLPClassifier, MLPRegressor, or, refitted exactly,
        LogisticRegression, Ridge, RidgeClassifier, LinearRegression, ElasticNet, Lasso,
        PoissonRegressor, GammaRegressor, TweedieRegressor, LinearSVC and LinearSVR with
        squared losses, KernelRidge, GaussianProcessRegressor (at its fitted kernel),
        their variants with CV (at the penalty that they chose), OneVsRestClassifier and
        MultiOutputRegressor of these. A fitted one inside
        `sklearn.frozen.FrozenEstimator` is taken as it is. None builds a network that
        suits y; then nested parameters (``estimator__learning_rate``) cannot be
        searched. Integers in y read as classes: for counts pass a regressor.
    ridge : "auto", "calibrate" or float, default="auto"
        Damping added to the Hessian of the *mean* row loss. "auto" sets it from the
        optimizer's second moment and the sum of its learning rates, larger for large
        removals than for single rows. "calibrate" multiplies it by the factors, from
        1/16 to 16, that best rank 16 models retrained on half of the units: one
        factor for single units, by `attribute`, and one for halves, by
        `predict_outcomes`; for a set outcome by log-likelihoods of single rows. A
        linear model has its own penalty, and takes "auto" only.
    metric : {"optimizer", "identity"}, default="optimizer"
        Norm of the damping. "optimizer": every parameter is damped in proportion to
        what the optimizer divides its steps by (the root of the second moment for
        AdamW, Adam and RMSprop; the same for all for SGD); without a record,
        to that of its row gradients. "identity" is the textbook.
    parameters : {"all", "head"}, default="all"
        What moves when a unit is left out. "head": the last linear layer only, its
        inputs taken as fixed. Many times cheaper; ranks retrained models less well.
    removal : {"auto", "newton", "influence", "refit"}, default="auto"
        How units are left out, in `attribute`, `predict_outcomes` and `score` alike.
        "newton": one exact Newton step on what is kept, outcome evaluated again.
        "influence": first order, additive in the units. "refit": the linearised model
        fitted until convergence, for linear models retraining itself; slower for many
        units. "auto" counts the multiplications, in `fit`: networks take "newton" where
        that needs at most 1e12, a minute or so, or four trainings, else "influence",
        in all methods alike. Linear models take "newton" in `attribute`, exact if the
        loss is squared, and "refit" for subsets; where their Hessian does not fit the
        memory, "influence" in `attribute`. See `removal_`, and `skattrib.plan`
        beforehand.
    regularization : {"per_sample", "fixed"}, default="per_sample"
        Whether rows take their share of the damping along when they leave.
    solver : {"auto", "dual", "primal", "cg", "nystroem"}, default="auto"
        "primal" factors P x P matrices, "dual" n·C x n·C ones, "cg" none (conjugate
        gradients). "auto" takes the one with the fewest multiplications that fits
        scikit-learn's ``working_memory``; what fits none is refused before training.
        With more than 64 units, "primal" and, at first order, "cg" solve for queries
        in `attribute` instead of units: tasks at first order, single rows also by
        Newton steps. "nystroem" is an approximation, many times cheaper than "cg": the
        parameters move in the span of the gradients of at most a quarter of the rows,
        as many as fit; `diagnose` says how far off that is. For linear models "dual"
        needs one l2 penalty for all coefficients, and "cg" keeps sparse rows sparse.
    n_models : int, default=1
        Training seeds to average over: the outcome is then the mean over these seeds,
        in `score` too.
    %(outcome)s
    %(asked_halves)s
    %(retraining)s
    memory : str, joblib.Memory or None, default=None
        Where retrained outcomes are remembered; needs an int `random_state`.
    n_jobs : int or None, default=None
        Workers for models that cannot be trained as a stack.
    random_state : int, RandomState instance or None, default=None
        Seeds what the estimator leaves unseeded, and the weightings of `score`.
    verbose : int, default=0
        1 says which solver is used and why, and shows progress.

    Attributes
    ----------
    estimator_ : estimator
        Fitted model; the first one of `n_models`.
    estimators_ : list of estimators
        All fitted models; in a pipeline, the others are networks alone.
    removal_ : dict
        How units are left out by "attribute" and by "predict_outcomes".
    ridge_ : float
        Damping of the mean row loss when one average unit is left out; 0 for linear
        models, which have their own penalty.
    ridge_rule_ : RidgeRule
        Damping as a function of the fraction of rows removed, and its source.
    metric_ : {"optimizer", "gradients", "identity"}
        Metric used.
    solver_ : {"dual", "primal", "cg", "nystroem"}
        Space used; `solver_reason_` says why.
    solver_reason_ : str
        Why.
    %(halves_found)s
    X_train_ : ndarray of shape (n_samples, n_features)
        Training rows.
    %(units)s

    See Also
    --------
    skattrib.evaluation.retrain_outcomes : The truth that this predicts.

    Notes
    -----
    The gradient of the whole training loss at the trained weights is subtracted as a
    constant, so that the linearised model is stationary where training stopped,
    converged or not: ``predict_outcomes`` at weights of 1 is the model's own outcome.

    Linear models of scikit-learn sum their loss over the rows and add a penalty that
    does not grow with them, but for ElasticNet, Lasso and the generalised regressors.
    Then rows of `attribute` do not sum to 0: to first order they sum to the change of
    the outcome per unit of the logarithm of ``1 / penalty``, as if all rows were there
    more often. If a class is left without rows, the model is retrained without it.

    References
    ----------
    Dual influence for linearised models, arXiv:2605.11239.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skattrib import DualInfluence, TorchClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = TorchClassifier(max_epochs=30, random_state=0)
    >>> dual = DualInfluence(clf, random_state=0).fit(X[::3], y[::3])
    >>> A = dual.attribute(X[1::30], y[1::30])
    >>> A.shape
    (5, 50)
    >>> F = dual.predict_outcomes(X[1::30], y[1::30], 1 - np.eye(50)[:2])
    >>> bool(dual.score(X[1::3], y[1::3]) > 0.3)
    True
    """

    _parameter_constraints: dict = {
        **BaseAttributor._parameter_constraints,
        "ridge": [
            StrOptions({"auto", "calibrate"}),
            Interval(Real, 0, None, closed="neither"),
        ],
        "metric": [StrOptions({"optimizer", "identity"})],
        "parameters": [StrOptions({"all", "head"})],
        "removal": [StrOptions({"auto", "newton", "influence", "refit"})],
        "regularization": [StrOptions({"per_sample", "fixed"})],
        "solver": [StrOptions({"auto", "dual", "primal", "cg", "nystroem"})],
        "n_models": [Interval(Integral, 1, None, closed="left")],
    }

    _measures_sets = True

    def __init__(
        self,
        estimator=None,
        *,
        ridge="auto",
        metric="optimizer",
        parameters="all",
        removal="auto",
        regularization="per_sample",
        solver="auto",
        n_models=1,
        outcome="auto",
        n_halves=0,
        n_retrainings=32,
        retrain_size=0.5,
        memory=None,
        n_jobs=None,
        random_state=None,
        verbose=0,
    ):
        self.estimator = estimator
        self.ridge = ridge
        self.metric = metric
        self.parameters = parameters
        self.removal = removal
        self.regularization = regularization
        self.solver = solver
        self.n_models = n_models
        self.outcome = outcome
        self.n_halves = n_halves
        self.n_retrainings = n_retrainings
        self.retrain_size = retrain_size
        self.memory = memory
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    # -------------------------------------------------------------------- fit
    @_fit_context(prefer_skip_nested_validation=False)
    @fill_in(ATTRIBUTOR_DOCS)
    def fit(self, X, y=None, tasks=None, **fit_params):
        """Train the model and prepare for the removal of every unit.

        Parameters
        ----------
        %(fit_rows)s
        %(fit_params)s

        Returns
        -------
        self : DualInfluence
            Fitted attributor.

        Raises
        ------
        ValueError
            If a parameter or the data cannot be used.

        Warns
        -----
        FaithfulnessWarning
            If ``ridge="auto"`` has no record of the training, or autograd's gradients
            are not those of what the module computes.
        """
        return self._fit(X, y, tasks, fit_params)

    def _check_estimator(self, estimator):
        model = as_model(estimator)
        if isinstance(model, Convex):
            model.check_convex(type(self).__name__)
            self._check_own_penalty(model)
            return
        model.differentiable(self)
        if self.n_models > 1 and "random_state" not in model.estimator.get_params():
            raise ValueError(
                f"n_models={self.n_models} needs an estimator with a random_state, and "
                f"{model.name} has none. Use n_models=1."
            )
        if model.frozen and self.n_models > 1:
            raise ValueError(
                f"n_models={self.n_models} needs an estimator that can be trained; a "
                "FrozenEstimator is one model. Use n_models=1."
            )
        check_seeds(model, "n_models", self.n_models)
        if self.ridge == "calibrate" and not model.can_retrain:
            raise ValueError(
                "ridge='calibrate' retrains, and the frozen module's training was not "
                "recorded. Use ridge='auto' or a number."
            )

    def _check_own_penalty(self, model):
        """Raise on parameters that damp or simplify, of a model that is refitted."""
        for name in ("ridge", "metric", "parameters", "regularization", "n_models"):
            value, default = getattr(self, name), getattr(type(self)(), name)
            if value != default:
                cure = {
                    "ridge": "its own penalty is used; set that (C, alpha)",
                    "n_models": "its optimum depends on no seed",
                }.get(name, "it is refitted with its own penalty")
                raise ValueError(
                    f"{name}={value!r} does not apply to {model.name}: {cure}. Leave "
                    f"{name}={default!r}."
                )

    def _before_training(self, estimator, X, y):
        if isinstance(as_model(estimator), Convex):
            as_model(estimator).check_rows(X)
            return
        model = as_model(estimator)
        if self.parameters == "head":
            check_has_head(model, X, y)
        self._planned, problem = None, self._problem(model, X, y)
        if problem is not None:
            check_true(problem.model, problem.loss, problem.X, problem.targets, order=1)
            options = {name: getattr(self, name) for name in _PLANNED}
            weights, units = self._row_weights, self._units_left_out()
            self._planned = plan_untrained(problem, weights, units, **options)

    def _problem(self, model, X, y):
        """Return what is trained, or has its sizes; None if they are not known yet."""
        if model.stacks:
            return untrained(model.network(self), X, y)
        network = model.alike(X, y)
        # how long it will be trained is not known
        return network and replace(untrained(network, X, y), recipe=None)

    def _cost(self, estimator, X, y, n_queries):
        model = as_model(estimator)
        if isinstance(model, Convex):
            return exact_cost(model, X, y, self._units_left_out(), n_queries)
        problem = self._problem(model, X, y)
        trained = problem if model.stacks else None
        n_trainings = self.n_models - model.frozen
        seconds = training_seconds(model, trained, n_trainings, X, y)
        if problem is None:
            way = "solver and removal are known once it is trained"
            return Cost("", n_trainings, seconds, way=way)
        plan = self._planned
        taken = tangent_seconds(plan, problem, self.n_units_, n_queries)
        size = tangent_bytes(plan, problem, self.n_units_, n_queries)
        if self.ridge == "calibrate":
            seconds += training_seconds(model, trained, N_RETRAINED, X, y)
            n_trainings += N_RETRAINED
        return Cost(
            ESTIMANDS[plan.removal == "influence"],
            n_trainings,
            seconds + self.n_models * taken,
            size / 2**20,
            told(plan),
        )

    def _units_left_out(self):
        return LeaveOneUnitOut(self._unit_of_row, self._row_weights, self.n_units_)

    def _fit_attributor(self):
        self._left_out, self._last_solved = self._units_left_out(), LastAnswer()
        if isinstance(as_model(self._model), Convex):
            self._fit_exact(as_model(self._model))
        else:
            self._fit_tangents()
        share = 0.0 if self.removal_["attribute"] == "influence" else 1 / self.n_units_
        self.ridge_ = self.ridge_rule_(share)
        self.estimand_ = ESTIMANDS[self.removal_["attribute"] == "influence"]

    def _fit_exact(self, model):
        self.estimators_ = [self.estimator_]
        exact = ExactModel(
            model,
            self._features,
            self._targets,
            self._row_weights,
            removal=self.removal,
            units=self._left_out,
            solver=self.solver,
            seed=self._fit_seed,
            verbose=self.verbose,
        )
        exact.warn_if_loose()
        self._say(exact.said())
        self._linear_models = [exact]
        self._without_each = [exact.without_each_unit()]
        self.removal_, self.ridge_rule_ = exact.removal, exact.ridge
        self.solver_, self.solver_reason_ = exact.plan.solver, exact.plan.reason
        self.metric_ = exact.metric

    def _fit_tangents(self):
        models = trained_seeds(
            as_model(self._model),
            self._features,
            self._targets,
            self._row_weights,
            self.n_models,
        )
        self.estimators_ = [self.estimator_, *(model.estimator for model in models[1:])]
        first = self._linearize(models[0], self.removal)
        planned = vars(self).pop("_planned", None)
        if planned is None or told(planned) != told(first.plan):
            self._say(told(first.plan))
        others = [self._linearize(model, first.removal) for model in models[1:]]
        self._linear_models = [first, *others]
        ways = "attribute", "predict_outcomes"
        self.removal_ = dict.fromkeys(ways, first.removal)
        if self.ridge == "calibrate":
            self._calibrate_ridge()
        else:
            models = self._linear_models
            self._without_each = [linear.without_each_unit() for linear in models]

        self.ridge_rule_ = self._linear_models[0].ridge

    def _linearize(self, model, removal):
        linear = LinearModel.precise(
            model,
            self._features,
            self._targets,
            self._row_weights,
            ridge=self.ridge,
            removal=removal,
            units=self._left_out,
            metric=self.metric,
            parameters=self.parameters,
            regularization=self.regularization,
            solver=self.solver,
            memory=self.memory,
            seed=self._fit_seed,
            verbose=self.verbose,
        )
        self.solver_, self.solver_reason_ = linear.plan.solver, linear.plan.reason
        self.metric_ = linear.metric
        return linear

    def _calibrate_ridge(self):
        """Choose the damping by retraining; see `calibrated_rules`.

        The queries are training rows that all of these models leave out.
        """
        rng = np.random.RandomState(self._fit_seed)
        n = len(self._features)
        held_out = rng.permutation(n)[: min(N_QUERIES, n // 4)]
        weights = self._draw_weightings(N_RETRAINED, 0.5, rng)
        rows = weights[:, self._unit_of_row]
        rows[:, held_out] = 0
        X, y = _safe_indexing(self._features, held_out), self._targets[held_out]
        weighted = (rows * self._row_weights).astype(float_dtype(self._features))
        # a set outcome is of the user's queries, with their groups perhaps
        of_set = isinstance(self.outcome, SetOutcome)
        outcome = self._checked_outcome("auto" if of_set else self.outcome)
        truth = self._truth(rows, X, y, outcome)

        # one eigendecomposition serves units, halves, and the fit
        models = [linear.for_many_ridges() for linear in self._linear_models]
        alone = [linear.for_many_ridges(units_alone=True) for linear in models]
        rules = [linear.ridge for linear in models]
        batches = [linear.ask(X, y, outcome, len(weighted)) for linear in models]
        batches_alone = [linear.ask(X, y, outcome, self.n_units_) for linear in alone]

        def attributions_at(factor):
            scaled = [
                linear.at_ridge(rule.times(factor))
                for linear, rule in zip(alone, rules)
            ]
            steps = [linear.without_each_unit() for linear in scaled]
            return _attributions(batches_alone, steps).mean(axis=0)

        def outcomes_at(factor):
            scaled = [
                linear.at_ridge(rule.times(factor))
                for linear, rule in zip(models, rules)
            ]
            steps = [linear.steps(weighted) for linear in scaled]
            return _mean_outcomes(batches, steps)

        shares = self._left_out.shares(weighted)
        rules = calibrated_rules(rules, truth, shares, attributions_at, outcomes_at)
        damped = [linear.at_ridge(rule) for linear, rule in zip(models, rules)]
        self._without_each = [linear.without_each_unit() for linear in damped]
        plain = zip(self._linear_models, rules, strict=True)
        self._linear_models = [linear.at_ridge(rule) for linear, rule in plain]

    def _n_seeds(self):
        return self.n_models

    def _missed_by_errors(self):
        return "what the tangents of all seeds have in common"

    def _knowledge(self):
        # refits have no noise of training: what sums over rows miss may be all of it
        exact = isinstance(as_model(self._model), Convex)
        return Knowledge(share=0.8, spread=1.0 if exact else None)

    # ---------------------------------------------------------------- queries
    def _ask(self, X, y, outcome):
        """Prepare queries for the removal of each unit, by every model."""
        return [
            linear.ask(X, y, outcome, self.n_units_) for linear in self._linear_models
        ]

    def _attribute(self, X, y, outcome):
        return self._last_solved((X, y, outcome), lambda: self._solved(X, y, outcome))

    def _solved(self, X, y, outcome):
        each_seed = _attributions(self._ask(X, y, outcome), self._without_each)
        if len(each_seed) == 1:
            return each_seed[0], None
        errors = each_seed.std(axis=0, ddof=1) / len(each_seed) ** 0.5
        return each_seed.mean(axis=0), errors

    def ridge_path(self, X, y=None, *, ridges):
        """Attribute at many values of `ridge`, for the price of a few fits.

        The Hessian is decomposed once, which costs as much as a few fits, and serves
        them all. The solver "cg", which decomposes nothing, and tasks of more than a
        quarter of the rows take each value by itself.

        Parameters
        ----------
        X : array-like of shape (n_queries, n_features)
            Queries.
        y : array-like of shape (n_queries,) or (n_queries, n_outputs), default=None
            Their targets; None as in `attribute`.
        ridges : array-like of shape (n_ridges,)
            Positive numbers, each in the place of `ridge`.

        Returns
        -------
        ndarray of shape (n_ridges, n_queries, n_units)
            What `attribute` returns after fitting with each of the numbers.

        Raises
        ------
        ValueError
            If ``removal="refit"``, whose refits decompose matrices of their own, if a
            ridge is not positive, or if the queries do not fit the training data.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skattrib import DualInfluence, TorchClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = TorchClassifier(max_epochs=30, random_state=0)
        >>> dual = DualInfluence(clf, random_state=0).fit(X[::3], y[::3])
        >>> path = dual.ridge_path(X[1::30], y[1::30], ridges=[0.01, 0.1, 1.0])
        >>> path.shape
        (3, 5, 50)
        >>> bool(abs(path[0]).mean() > abs(path[2]).mean())  # damped less, moves more
        True
        """
        X, y, outcome = self._check_query(X, y)
        if isinstance(self._linear_models[0], ExactModel):
            raise ValueError(
                f"ridge_path needs a damping, and {type(self._model).__name__} has a "
                "penalty of its own: fit with each of them, as GridSearchCV does over "
                "estimator__C or estimator__alpha."
            )
        if self.removal_["attribute"] == "refit":
            raise ValueError(
                "ridge_path with removal='refit' would save nothing: every refit has "
                "Hessians of its own. Use removal='newton' or 'influence', or fit with "
                "each ridge."
            )
        ridges = np.asarray(ridges, dtype=np.float64)
        if ridges.ndim != 1 or not ((ridges > 0) & np.isfinite(ridges)).all():
            raise ValueError("ridges must be a list of positive numbers.")

        models = [
            linear.for_many_ridges(units_alone=True) for linear in self._linear_models
        ]
        batches = [linear.ask(X, y, outcome, self.n_units_) for linear in models]
        path = []
        for rule in [RidgeRule(float(ridge)) for ridge in ridges]:
            steps = [linear.at_ridge(rule).without_each_unit() for linear in models]
            path.append(_attributions(batches, steps).mean(axis=0))
        values = np.stack(path).astype(float_dtype(X), copy=False)
        self._warn_not_finite(values.swapaxes(0, 1), stacklevel=3)
        return values

    def _predict_outcomes(self, X, y, weights, outcome):
        if self.removal_["predict_outcomes"] == "influence":
            batches = self._ask(X, y, outcome)
            present = np.mean([batch.present_outcomes() for batch in batches], axis=0)
            effects, _ = self._attribute(X, y, outcome)
            return present - (1 - weights) @ effects.T
        return self._predict_rows(X, y, self._unit_weightings(weights), outcome)

    def _predict_rows(self, X, y, row_weights, outcome):
        """Return outcomes (k, q) for weights of the rows, mean over the models."""
        models = self._linear_models
        batches = [linear.ask(X, y, outcome, len(row_weights)) for linear in models]
        return _mean_outcomes(batches, [linear.steps(row_weights) for linear in models])

    # ------------------------------------------------------- changes, verdict
    def influence_measures(self):
        """Return the classical measures of each row's influence on a regression.

        For least squares and generalised linear models with one output. They are exact
        for least squares, and one Newton step for others, with the penalty held
        fixed.

        Returns
        -------
        DataFrame of n_units rows
            Index: `unit_names_`. Columns, under the names of statsmodels: "dfb_*", the
            change of each coefficient over its standard error (DFBETAS), "cooks_d"
            (Cook's distance), "standard_resid" and "student_resid" (Pearson residuals,
            internally and externally studentised), "hat_diag" (leverage),
            "dffits_internal" and "dffits". Those that leave the row out of the
            variance, "student_resid" and "dffits", are of least squares only. With a
            penalty, the number of parameters is the trace of the hat matrix.

        Raises
        ------
        UnsupportedModelError
            If the model is no such regression.
        ValueError
            If units are tasks, or the measures do not fit the memory.

        References
        ----------
        D. Pregibon, Logistic regression diagnostics, Annals of Statistics 9 (1981).

        Examples
        --------
        >>> from sklearn.datasets import load_diabetes
        >>> from sklearn.linear_model import LinearRegression
        >>> from skattrib import DualInfluence
        >>> X, y = load_diabetes(return_X_y=True, as_frame=True)
        >>> dual = DualInfluence(LinearRegression(), random_state=0).fit(X, y)
        >>> dual.influence_measures()[["cooks_d", "hat_diag"]].idxmax()
        cooks_d     382
        hat_diag    322
        dtype: int64
        """
        check_is_fitted(self, "n_units_")
        if self.tasks_ is not None:
            raise ValueError(
                "influence_measures are of single rows, and units are tasks: fit with "
                "tasks=None, or use attribute."
            )
        return measures(
            as_model(self._model),
            self._features,
            self._targets,
            self._row_weights,
            self.unit_names_,
            self._column_names(),
        )

    def _column_names(self):
        """Return the names of the columns that the model is trained on."""
        names = getattr(self, "feature_names_in_", None)
        if self._parts.has_transformers:
            try:
                names = self._parts.feature_names_out()
            except (AttributeError, ValueError):  # a transformer without names
                names = None
        if names is not None:
            return list(map(str, names))
        return [f"x{column}" for column in range(self._features.shape[1])]

    @validate_params(
        {"weights": "no_validation", "as_frame": ["boolean"]},
        prefer_skip_nested_validation=False,
    )
    def parameter_change(self, weights, *, as_frame=False):
        """Predict how other weights of the units change the parameters.

        Parameters
        ----------
        weights : array-like of shape (n_weightings, n_units)
            0 is absent, 1 present; as in `predict_outcomes`.
        as_frame : bool, default=False
            Return a DataFrame with the names of the parameters as columns.

        Returns
        -------
        ndarray or DataFrame of shape (n_weightings, n_params)
            Predicted minus trained parameters. Of a network, those of
            ``estimator_.module_``, flattened in the order of ``named_parameters``; 0
            where `parameters` leaves them out. Of a linear model, the coefficients in
            the order of the columns and the intercept, those of an output or class
            together; of a kernel model its dual coefficients, and the mean of y.

        Raises
        ------
        ValueError
            If the weights do not fit the training data, or leave a class of a linear
            model without rows.
        """
        check_is_fitted(self, "n_units_")
        rows = self._unit_weightings(
            self._checked_weights(weights, float_dtype(self._features))
        )
        linear = self._linear_models[0]
        changes = linear.parameter_change(linear.steps(rows)).cpu().numpy()
        if not as_frame:
            return changes
        names = linear.parameter_names(self._column_names())
        return pd.DataFrame(changes, columns=names)

    def output_change(self, X, weights):
        """Predict how other weights of the units change the outputs of queries.

        Parameters
        ----------
        X : array-like of shape (n_queries, n_features)
            Queries.
        weights : array-like of shape (n_weightings, n_units)
            0 is absent, 1 present; as in `predict_outcomes`.

        Returns
        -------
        ndarray of shape (n_weightings, n_queries, n_outputs)
            Predicted minus present outputs: unnormalised log-probabilities, or
            predictions of a regressor; the mean over `n_models`.
        """
        check_is_fitted(self, "n_units_")
        X = self._check_rows(X)
        rows = self._unit_weightings(
            self._checked_weights(weights, float_dtype(self._features))
        )
        changes = [
            linear.output_changes(linear.steps(rows), X)
            for linear in self._linear_models
        ]
        change = torch.stack(changes).mean(dim=0).cpu().numpy()
        self._warn_not_finite(change.swapaxes(0, 1), stacklevel=3)
        return change


def _attributions(batches, without_each):
    """Return the attributions of each model, (n_models, q, n_units)."""
    both = zip(batches, without_each, strict=True)
    return np.stack([queries.attributions(steps) for queries, steps in both])


def _mean_outcomes(batches, steps):
    """Return outcomes (k, q) after each step, mean over the models."""
    both = zip(batches, steps, strict=True)
    return np.mean([queries.outcomes(moved) for queries, moved in both], axis=0)
