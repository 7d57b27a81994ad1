"""Influence on boosted trees and forests, by refitting the leaves of their trees."""

import warnings
from numbers import Integral, Real

import numpy as np
from scipy.stats import rankdata
from sklearn.base import _fit_context, is_classifier
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
)
from sklearn.utils import Bunch, _safe_indexing
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skattrib._docstrings import fill_in
from skattrib._posterior._gaussian import Knowledge, drawn_slope
from skattrib._validation import first_labels, target_type
from skattrib._verdict import few_units_hint
from skattrib.base import ATTRIBUTOR_DOCS, BaseAttributor
from skattrib.engine._losses import SetOutcome
from skattrib.exceptions import FaithfulnessWarning
from skattrib.influence._inclusion import TrainedOnSubsets
from skattrib.influence._tree_diagnosis import tree_verdict
from skattrib.influence._tree_structures import (
    USUAL,
    Structures,
    pooled_slope,
    read_structure,
    slope_prior,
)
from skattrib.models._answers import LastAnswer
from skattrib.models._as_model import as_model
from skattrib.models._costs import Cost, fit_cost
from skattrib.models._datasets import with_targets
from skattrib.models._kept_models import trained_models
from skattrib.models._retraining import Trainer
from skattrib.models._trees import check_categories, known_categories

__all__ = ["TreeInfluence"]

# Share of the units that structures are trained on where all others are present.
_MOST = 0.95
# Training rows that tell how much further outcomes move than those of refits.
_N_ROWS = 50
# Additive share of what refits miss: a quarter to a half in boosted trees, less in
# forests, whose own draws change with the rows.
_ADDITIVE = 0.25
# Mean and deviation of slopes that retrained halves tell: queries of which few models
# change the outcome much have slopes of 5.
_SLOPE_OF_HALVES = 1.8, 1.5
# Halves that are retrained unless asked otherwise.
_HALVES = 64
# Least slope that is applied.
_LEAST = 0.1
# An ensemble is as its own refit up to this, relative to what it varies by. Libraries
# that compute in single precision lose digits where probabilities are close to 1.
_REPRODUCED = 0.01
# Where trees were grown on samples of the rows: their own are missed by 0.1 to 0.3, and
# by up to 0.75 by few trees that have seen few of them.
_OF_SAMPLES = 1.0
_ROUNDED = np.finfo(np.float32).eps
_TINY = np.finfo(float).tiny
# Rows of which halves have four.
_LEAST_ROWS = 8


@fill_in(ATTRIBUTOR_DOCS)
class TreeInfluence(TrainedOnSubsets, BaseAttributor):
    """Effects on an ensemble of trees: leaves refitted, structures averaged over.

    Models are trained on random halves of the units. Of each only the structure of the
    trees is kept; the values of the leaves are computed again from all rows, with the
    weights in question, along the boosting. Outcomes are those of the mean output, and
    attributions are its exact derivative.

    Parameters
    ----------
    estimator : estimator or None, default=None
        Model to train and attribute: HistGradientBoostingClassifier or -Regressor,
        RandomForest, ExtraTrees or DecisionTree of scikit-learn, LGBMClassifier or
        LGBMRegressor of lightgbm, XGBClassifier or XGBRegressor of xgboost; a fitted
        one inside `sklearn.frozen.FrozenEstimator` is taken as it is. None is
        histogram gradient boosting, as y demands.
    inclusion : "auto" or float, default="auto"
        Share in (0, 1] of the units that is present where the derivative is taken, all
        of them with this weight; structures are of models trained on random subsets
        of this share. 1: structures are of models trained on 95 %% of the units.
        "auto": 0.5, or 1 if the estimator is frozen.
    n_structures : int, default=16
        Models trained for their structures; at 0.5 in pairs of complementary halves,
        so even. Fewer where units have fewer subsets. 1 with ``inclusion=1``, and a
        frozen estimator, take the structure of the fitted model itself, which is
        LeafInfluence.
    removal : {"auto", "refit", "derivative"}, default="auto"
        What `predict_outcomes` and `score` do for other weights of the units: "refit"
        leaves, or follow the derivative. "auto": "refit".
    %(outcome)s
    n_halves : "auto" or int, default="auto"
        Random halves of the units, each with its complement, on which models are really
        trained in `fit`. They correct attributions, and predictions, and give them
        their size and an interval that holds (:ref:`posterior`). "auto": 64 where
        `inclusion` is 0.5; fewer where units have few halves, 0 where less than 8
        pairs are left. 0: attributions by the structures alone.
    %(retraining)s
    memory : str, joblib.Memory or None, default=None
        Where trained models and retrained outcomes are remembered, so that an
        interrupted fit goes on; needs an int `random_state`. Holds whole models.
    n_jobs : int or None, default=None
        Workers among which models that are trained are divided.
    random_state : int, RandomState instance or None, default=None
        Seeds what the estimator leaves unseeded, the subsets and the weightings of
        `score`.
    verbose : int, default=0
        Shows progress when above 0.

    Attributes
    ----------
    estimator_ : estimator
        Model fitted on all units.
    inclusion_ : float
        Share of the units that is present.
    weights_ : ndarray of shape (n_structures, n_units)
        Weights of the units in the models whose structures were kept.
    slope_ : float
        How far outcomes of models that were really trained move with those of refits:
        each model whose structure was kept, predicted by the others, on training rows.
        1.5, as is usual, where halves are retrained, which tell it better; 1 where
        there is one structure, or `inclusion` is 1.
    %(halves_found)s
    X_train_ : ndarray of shape (n_samples, n_features)
        Training rows.
    %(units)s

    See Also
    --------
    KernelSurrogateAttributor : For any other estimator, by retraining alone.

    Notes
    -----
    Structures change with the rows, and how they do cannot be differentiated. So sizes
    of refits are too small, by a slope that is measured and applied: with `n_halves` by
    retrained halves, without by the models whose structures were kept. One row's
    leave-one-out is chaos in boosted trees: its effects in two random subsets of the
    others hardly correlate. What holds is the mean over such subsets, which is what
    attributions are, and groups of rows (`tasks`).

    A leaf that is left without weight has the value of the node above it. Bootstraps of
    a forest are ignored: its leaves have the mean over all rows that fall into them.

    References
    ----------
    Adapting and Evaluating Influence-Estimation Methods for Gradient-Boosted Decision
    Trees, arXiv:2205.00359. Finding Influential Training Samples for Gradient Boosted
    Decision Trees (LeafInfluence), arXiv:1802.06640.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.ensemble import HistGradientBoostingClassifier
    >>> from skattrib import TreeInfluence
    >>> X, y = load_iris(return_X_y=True)
    >>> boosted = HistGradientBoostingClassifier(max_iter=10, random_state=0)
    >>> influence = TreeInfluence(boosted, n_structures=4, n_halves=0, random_state=0)
    >>> influence.fit(X[::3], y[::3]).attribute(X[1::30], y[1::30]).shape
    (5, 50)
    """

    _parameter_constraints: dict = {
        **BaseAttributor._parameter_constraints,
        "inclusion": [StrOptions({"auto"}), Interval(Real, 0, 1, closed="right")],
        "n_structures": [Interval(Integral, 1, None, closed="left")],
        "removal": [StrOptions({"auto", "refit", "derivative"})],
        "n_halves": [
            StrOptions({"auto"}),
            *BaseAttributor._parameter_constraints["n_halves"],
        ],
    }

    _measures_sets = True

    def __init__(
        self,
        estimator=None,
        *,
        inclusion="auto",
        n_structures=16,
        removal="auto",
        outcome="auto",
        n_halves="auto",
        n_retrainings=32,
        retrain_size=0.5,
        memory=None,
        n_jobs=None,
        random_state=None,
        verbose=0,
    ):
        self.estimator = estimator
        self.inclusion = inclusion
        self.n_structures = n_structures
        self.removal = removal
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
        """Train the model, and those whose structures are kept.

        Parameters
        ----------
        %(fit_rows)s
        %(fit_params)s

        Returns
        -------
        self : TreeInfluence
            Fitted attributor.

        Raises
        ------
        ValueError
            If a parameter or the data cannot be used, or there are fewer than 8 rows.
        UnsupportedModelError
            If the estimator is no ensemble of trees whose leaves can be refitted.

        Warns
        -----
        FaithfulnessWarning
            If a frozen estimator was trained on other rows or weights, or structures
            lack classes, or all splits.
        """
        return self._fit(X, y, tasks, fit_params)

    def _made_estimator(self, y, seed):
        if self.estimator is not None:
            return super()._made_estimator(y, seed)
        if target_type(y) in ("binary", "multiclass"):
            return HistGradientBoostingClassifier(random_state=seed)
        return HistGradientBoostingRegressor(random_state=seed)

    def _check_estimator(self, estimator):
        model = as_model(estimator)
        model.check_trees(self)
        inclusion = self._inclusion(estimator)
        if model.frozen and inclusion != 1:
            raise ValueError(
                f"inclusion={self.inclusion} needs an estimator that is trained on "
                "subsets; a FrozenEstimator is one structure. Use inclusion=1, or the "
                "estimator itself."
            )
        if self.n_halves not in ("auto", 0) and model.frozen:
            raise ValueError(
                f"n_halves={self.n_halves} needs an estimator that is trained again, "
                "and a FrozenEstimator is not. Use n_halves=0, or the estimator itself."
            )
        self._check_inclusion(estimator, "n_structures")

    def _before_training(self, estimator, X, y):
        if len(y) < _LEAST_ROWS:
            raise ValueError(
                f"X has {len(y)} rows, and trees take at least {_LEAST_ROWS}: what "
                "they split by is told from many. Use more rows, or retrain without "
                "each: KernelSurrogateAttributor(estimation='retrain', inclusion=1)."
            )
        if is_classifier(estimator) and (labels := first_labels(y))[1:] == []:
            raise ValueError(
                f"y holds the one class {labels[0]!r}: there is nothing to tell it "
                "from. Pass rows of another, too."
            )
        self.inclusion_ = self._inclusion(estimator)
        self._own_structure = as_model(estimator).frozen or (
            self.inclusion_ == 1 and self.n_structures == 1
        )
        self.weights_ = self._design()
        weighted = self._unit_weightings(self.weights_).any(axis=1)
        if not weighted.all():
            raise ValueError(
                f"sample_weight is 0 in all rows of {np.sum(~weighted)} of the "
                f"{len(weighted)} subsets of units that models are to be trained on. "
                "Leave rows of weight 0 out, so that all units have some to train on."
            )

    def _design(self):
        if self._own_structure:
            return np.ones((1, self.n_units_))
        return self._drawn_subsets(self.n_structures, min(self.inclusion_, _MOST))

    def _fit_attributor(self):
        model = as_model(self._model)
        self._categories = known_categories(self._features)
        self._last_sweep, self._last_crossed = LastAnswer(), LastAnswer()
        rows = self._unit_weightings(self.weights_)
        itself = self._read(model, self._row_weights)
        self._check_reproduced(itself)
        each = [itself]
        if not self._own_structure:
            each, rows = self._trained(model, rows)
        if not any(one.splits() for one in each):
            warnings.warn(
                f"No tree of a model trained on {self.inclusion_:.0%} of the units has "
                "a split: attributions are those of a constant. Allow smaller leaves "
                "(min_samples_leaf, min_child_samples), or use more rows.",
                FaithfulnessWarning,
                stacklevel=6,
            )
        middle = self.inclusion_ * self._row_weights
        self._structures = Structures(model, each, rows, middle, self.verbose)
        self._structures.learn(crossed=self._has_slope() and not self._will_halve())
        self.estimand_ = self._estimand()
        # what was fitted counts, not what parameters are set later
        self._by_refits = self.removal != "derivative"
        self._sloped_by = self.outcome
        self.slope_ = self._learnt_slope()

    def _trained(self, model, rows):
        """Train models on subsets; return structures, and weights of the rows."""
        trainer = Trainer(
            model.recipe(), self._features, self._targets, self.n_jobs, self.verbose
        )
        self._say(few_units_hint(self.n_units_, 1 + len(rows)))
        self._say(f"{len(rows)} models trained for their structures")
        fitted = trained_models(trainer, rows, trainer.seeds(1)[0], self.memory)
        models = [as_model(one) for one in fitted]
        classes = getattr(model.estimator, "classes_", None)
        whole = [_knows(one, model, classes) for one in models]
        if not all(whole):
            n_lost = len(whole) - sum(whole)
            if n_lost == len(whole):
                raise ValueError(
                    "No model trained on a subset of the units knows all classes of y: "
                    "merge rare classes, or group rows so that units have several."
                )
            warnings.warn(
                f"{n_lost} of {len(whole)} models were trained on subsets without some "
                "classes: their structures are left out. Merge rare classes.",
                FaithfulnessWarning,
                stacklevel=7,
            )
        self.weights_, rows = self.weights_[whole], rows[whole]
        kept = [one for one, good in zip(models, whole, strict=True) if good]
        for one in kept:
            one.classes = classes
        read = [self._read(*pair) for pair in zip(kept, rows, strict=True)]
        return read, rows

    def _read(self, model, trained):
        return read_structure(
            model, self._features, self._targets, self._row_weights, trained
        )

    def _check_reproduced(self, structure):
        """Warn unless a fitted ensemble is its own refit to the rows given here."""
        model, refits = structure.model, structure.refits
        n_rows = len(self._targets)
        if model.frozen and model.n_seen not in (None, n_rows):
            warnings.warn(
                f"{model.name} was trained on {model.n_seen} rows, and X has {n_rows}: "
                "attributions are of another model. Pass the rows it was trained on.",
                FaithfulnessWarning,
                stacklevel=7,
            )
            return
        # each tree of a sample of the rows has other leaves than all rows give
        limit = _REPRODUCED if model.refits_itself else _OF_SAMPLES
        if not (model.refits_itself or model.frozen):
            return
        own = model.raw_outputs(self._features)
        again = refits.outputs(self._row_weights[None], refits.leaves)[0]
        # outputs that are all the same differ by their rounding
        least = max(_ROUNDED * np.square(own).mean(), _TINY)
        error = np.sqrt(np.square(again - own).mean() / max(own.var(), least))
        if not error < limit:
            why = "it has a rule for them that is not known here"
            if model.frozen:
                why = "it was trained on other rows or weights"
            warnings.warn(
                f"The outputs of {model.name} are missed by {error:.1e} of what they "
                f"vary by when its leaves are refitted to these rows: {why}. "
                "Attributions are of another model.",
                FaithfulnessWarning,
                stacklevel=7,
            )

    def _estimand(self):
        if self.inclusion_ == 1:
            return (
                "derivative of the outcome in the weight of this unit, all others "
                "present, with structures of trees as they are"
            )
        return (
            "derivative of the mean outcome in the weight of this unit, others present "
            f"with chance {self.inclusion_:g}"
        )

    def _has_slope(self):
        return self.inclusion_ < 1 and len(self._structures.each) > 1

    def _will_halve(self):
        """Return whether halves will be retrained, which tell slopes better."""
        return self._count_halves(0) > 0

    def _learnt_slope(self):
        """Return how far outcomes of the models move with those of refits."""
        if not self._has_slope():
            return 1.0
        if self._will_halve():
            return USUAL[0]
        return self._pooled_slope()

    def _pooled_slope(self):
        """Return that of the outcome, by training rows."""
        rng = np.random.RandomState(self._fit_seed)
        n = len(self._targets)
        drawn = np.sort(rng.permutation(n)[:_N_ROWS])
        X = _safe_indexing(self._features, drawn)
        outcome = self._checked_outcome(self.outcome)
        if isinstance(outcome, SetOutcome):
            outcome = self._checked_outcome("auto")
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", FaithfulnessWarning)  # of outcomes here
            queries = self._structures.ask(X, self._targets[drawn], outcome)
            absent = self._structures.weights[:, drawn] == 0
            return pooled_slope(*queries.by_each_other(), absent)

    def _cost(self, estimator, X, y, n_queries):
        model = as_model(estimator)
        seconds, size = (0.0, 0.0) if model.frozen else fit_cost(model, X, y)
        n_models = 0 if self._own_structure else len(self.weights_)
        share = min(self.inclusion_, _MOST)
        way = f"leaves refitted in the structures of {max(1, n_models)} models"
        return Cost(
            self._estimand(),
            (not model.frozen) + n_models,
            seconds * (1 + share * n_models),
            size * (1 + n_models) / 2**20,
            way,
        )

    def _wanted_halves(self):
        return _HALVES * (self.inclusion_ == 0.5)

    def _missed_by_errors(self):
        return "what all structures have in common"

    def _knowledge(self):
        if self._trained_halves is None:  # slopes are applied already
            return Knowledge(slope=slope_prior(1.0), share=_ADDITIVE)
        return Knowledge(slope=_SLOPE_OF_HALVES, share=_ADDITIVE)

    # ---------------------------------------------------------------- queries
    def _check_query(self, X, y, *, new=False):
        X, y, outcome = super()._check_query(X, y, new=new)
        check_categories(self._categories, X, "X")
        return X, y, outcome

    def _attribute(self, X, y, outcome):
        attributions, errors, _ = self._averaged(X, y, outcome)
        if self._trained_halves is not None:  # which tell slopes
            return attributions, errors
        slopes = self._slopes(X, y, outcome)[0][:, None]
        return slopes * attributions, None if errors is None else slopes * errors

    def _averaged(self, X, y, outcome):
        """Return attributions by the derivative, errors, and those by two halves.

        Remembered: all that is asked of the same queries costs one sweep.
        """
        question = X, y, outcome
        mean, errors, *halves = self._last_sweep(
            question, lambda: self._swept(*question)
        )
        return mean, errors, None if errors is None else halves

    def _swept(self, X, y, outcome):
        queries = self._structures.ask(X, y, outcome)
        total, squares, halves = 0.0, 0.0, [0.0, 0.0]
        sets = self._structures.sets  # in which pairs stay together
        n = len(sets)
        for one, found in zip(sets, queries.derivatives(), strict=True):
            of_units = self._by_unit(found)
            total, squares = total + of_units, squares + np.square(of_units)
            halves[one] = halves[one] + of_units
        mean = total / n
        if n == 1:
            return mean, None
        variances = np.maximum(squares / n - np.square(mean), 0) / (n - 1)
        return mean, np.sqrt(variances), *halves

    def _by_each_other(self, X, y, outcome):
        """Return outcomes of the models, and as the others predict them; remembered."""
        question = X, y, outcome
        return self._last_crossed(
            question, lambda: self._structures.ask(*question).by_each_other()
        )

    def _slopes(self, X, y, outcome):
        """Return slopes of outcomes on those of refits, and the means of both.

        Of the models whose structures were kept, each predicted by the others.
        """
        if not self._has_slope():
            means = self._structures.ask(X, y, outcome).in_the_middle()
            return np.ones_like(means), means, means
        trained, predicted = self._by_each_other(X, y, outcome)
        means = trained.mean(axis=0), predicted.mean(axis=0)
        columns = zip((predicted - means[1]).T, (trained - means[0]).T, strict=True)
        slope = self.slope_
        if self._trained_halves is None and self.outcome != self._sloped_by:
            slope = self._pooled_slope()
        prior = slope_prior(slope)
        slopes = [drawn_slope(x, d, *prior) for x, d in columns]
        # an order is not given up for a slope of few models
        return np.maximum(slopes, _LEAST), *means

    def _refit_outcomes(self, X, y, outcome):
        """Return outcomes of mean refits as a function of weights of the units."""
        queries = self._structures.ask(X, y, outcome)
        return lambda weights: queries.outcomes(self._unit_weightings(weights))

    def _predictor_beside(self, X, y, outcome):
        if not self._by_refits:
            return None
        return self._refit_outcomes(X, y, outcome)

    def _predict_outcomes(self, X, y, weights, outcome):
        return self._prepare(X, y, outcome)(weights)

    def _prepare(self, X, y, outcome):
        slopes, middle, expected = self._slopes(X, y, outcome)
        if self._by_refits:
            refits = self._refit_outcomes(X, y, outcome)
            return lambda weights: middle + slopes * (refits(weights) - expected)
        attributions, _ = self._attribute(X, y, outcome)
        at = self.weights_.mean(axis=0) if self.inclusion_ < 1 else 1.0
        return lambda weights: middle + (weights - at) @ attributions.T

    # ------------------------------------------------------------------ verdict
    @fill_in(ATTRIBUTOR_DOCS)
    def diagnose(self, X, y=None, n_retrainings=0):
        """Say how far the attributions can be trusted, and why not.

        Parameters
        ----------
        %(diagnosed)s

        Returns
        -------
        Bunch
            With these entries.

            - agreement: rank correlation of attributions by one half of the structures
              with those by the other, mean over queries; None of one structure.
            - slope: median over queries of how far outcomes of the models whose
              structures were kept move with those of refits in the others; None of one
              structure, or at `inclusion` 1.
            - explained: share of the variance of these outcomes that refits explain,
              with that slope.
            %(halves_figures)s
            - trustworthy, verdict: whether the order of attributions can be trusted,
              and a sentence.

        Warns
        -----
        FaithfulnessWarning
            If the verdict is bad.
        """
        check_is_fitted(self, "n_units_")
        X, y = with_targets(X, y, "diagnose")
        X, y, outcome = self._check_finite_query(X, y)
        figures = Bunch(agreement=None, slope=None, explained=None)
        halves = self._averaged(X, y, outcome)[2]
        if halves is not None:
            figures.agreement = _agreement(*halves)
        if self._has_slope():
            slopes = self._slopes(X, y, outcome)[0]
            figures.slope = float(np.median(slopes))
            pair = self._by_each_other(X, y, outcome)
            figures.explained = _explained(*pair, slopes)
        figures.update(self._held_out(X, y, outcome))
        if n_retrainings:
            figures.update(self._calibrate(X, y, outcome, n_retrainings))
        model = as_model(self._model)
        return tree_verdict(
            figures,
            at_full_data=self.inclusion_ == 1,
            boosted=self._structures.each[0].refits.ensemble.objective.follows,
            logarithm=model.loss.own_outcome == "log_likelihood"
            and self.outcome in ("auto", "log_likelihood"),
            hint=few_units_hint(self.n_units_, 1 + len(self.weights_)),
        )


def _knows(model, whole, classes):
    """Return whether a trained model is an ensemble that knows all classes."""
    if model.name != whole.name or not model.is_fitted:
        return False
    if classes is None or not model.needs_all_classes:
        return True
    return np.array_equal(model.estimator.classes_, classes)


def _agreement(first, second):
    """Return the rank correlation of attributions (q, n_units), mean over queries."""
    ranks = [rankdata(part, axis=1) for part in (first, second)]
    ranks = [part - part.mean(axis=1, keepdims=True) for part in ranks]
    products = (ranks[0] * ranks[1]).sum(axis=1)
    sizes = np.sqrt(np.prod([np.square(part).sum(axis=1) for part in ranks], axis=0))
    return float(np.mean(np.divide(products, sizes, where=sizes > 0, out=0 * sizes)))


def _explained(trained, predicted, slopes):
    """Return the share of the variance of outcomes (m, q) that is predicted."""
    d = trained - trained.mean(axis=0)
    left = d - slopes * (predicted - predicted.mean(axis=0))
    squares = np.square(d).sum()
    if squares < np.finfo(float).tiny:
        return float("nan")
    return float(1 - np.square(left).sum() / squares)
