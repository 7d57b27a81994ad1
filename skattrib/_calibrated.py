"""Attributions with sizes and intervals, from halves of the units really retrained."""

import itertools
import warnings

import numpy as np
from sklearn.base import is_classifier
from sklearn.exceptions import EfficiencyWarning

from skattrib._posterior._checks import HELD_OUT, held_out_figures
from skattrib._posterior._gaussian import (
    FEWEST_PAIRS,
    Halves,
    Knowledge,
    posterior,
    query_posteriors,
)
from skattrib._posterior._halves import (
    BYTES,
    FEWEST_HALVES,
    TrainedHalves,
    automatic_halves,
    count_halves,
    draw_halves,
)
from skattrib._validation import memory_cap, sorted_labels
from skattrib.engine._losses import SetOutcome
from skattrib.exceptions import FaithfulnessWarning, UnsupportedModelError
from skattrib.models._as_model import as_model
from skattrib.models._costs import Cost, training_cost
from skattrib.models._network import untrained
from skattrib.models._protocol import protocols

#: What an attribution is once halves were retrained.
ESTIMAND = (
    "mean effect of this unit on the outcome, others present half the time, around "
    "that of the average unit"
)
# Groups of like targets of a regression, of which errors have a part in common.
_N_GROUPS = 5


def _most_halves(n_units):
    """Return how many halves units have, if as many are left to `score`."""
    return count_halves(n_units) // 4 * 2


class CalibratedByHalves:
    """Methods of an attributor that give it a posterior, if it has ``n_halves``.

    It has what `skattrib.base.BaseAttributor` learns in ``fit``.
    """

    #: Halves of the units that were retrained, None before that.
    _trained_halves = None

    def _knowledge(self):
        """Return what is known of the errors of these attributions beforehand."""
        return Knowledge()

    def _wanted_halves(self):
        """Return how many halves ``n_halves="auto"`` should take; 0 for none."""
        return 0

    def _asks_for_halves(self):
        """Return whether halves are to be retrained, if they can be."""
        return getattr(self, "n_halves", 0) != 0

    def _missed_by_errors(self):
        """Return what the standard errors of `_attribute` miss, or ""."""
        return ""

    def _calibrated_by(self):
        """Return a sentence on how to have intervals that hold, or ""."""
        if self._why_not_trainable(as_model(self._model)):
            return ""
        name = type(self).__name__
        return f"Pass {self._halves_to_pass()} to {name} for intervals that hold."

    def _halves_to_pass(self):
        """Return the parameter that asks for halves, as many as these units have."""
        most, fewest = min(64, _most_halves(self.n_units_)), 2 * FEWEST_PAIRS
        if most >= fewest:
            return f"n_halves={most}"
        needed = next(n for n in itertools.count(2) if _most_halves(n) >= fewest)
        return f"n_halves={fewest}, once there are {needed} units or more,"

    def _models_to_pass(self):
        """Return a sentence on the parameters that give models to compare."""
        model, name, cures = as_model(self._model), type(self).__name__, []
        if hasattr(self, "n_sketches"):
            cures.append("n_sketches=4, which compares projections,")
        if not self._why_not_trainable(model):
            seeded = "Differentiable" in protocols(model) and not model.frozen
            if hasattr(self, "n_models") and seeded:
                cures.append("n_models=4, which compares seeds,")
            if hasattr(self, "n_halves"):
                cures.append(f"{self._halves_to_pass()}, which retrains on halves,")
        if cures:
            return f"Pass {' or '.join(cures)} to {name}.".replace(",,", ",")
        return f"{name} has none of {model.name}: leave return_std=False."

    # -------------------------------------------------------------------- fit
    def _check_halves(self, estimator):
        """Raise, before anything is trained, if halves cannot be."""
        n_halves = getattr(self, "n_halves", 0)
        if n_halves in ("auto", 0):
            return
        if n_halves % 2:
            raise ValueError(
                f"n_halves={n_halves} must be even: each half comes with its "
                f"complement. Use {n_halves + 1}, or 0 for none."
            )
        if n_halves < FEWEST_HALVES:
            raise ValueError(
                f"n_halves={n_halves} is a single pair, which has no variance. Use at "
                f"least {2 * FEWEST_PAIRS}, or 0 for none."
            )
        cure = "n_halves=0, which retrains nothing"
        self._check_trainable(estimator, f"n_halves={n_halves}", cure)

    def _check_trainable(self, estimator, what, cure):
        """Raise if a model cannot be trained again."""
        model = as_model(estimator)
        if reason := self._why_not_trainable(model):
            raise UnsupportedModelError(
                f"{what} trains {model.name} again, and {reason}. Use {cure}."
            )

    @staticmethod
    def _why_not_trainable(model):
        """Return why a model cannot be trained again, "" if it can."""
        if model.frozen and "Recorded" in protocols(model) and not model.has_run:
            return "its training was not recorded"
        return "" if model.can_retrain else "it cannot be"

    def _check_distinct_halves(self):
        """Raise if there are not so many; warn if there are few."""
        n_halves = getattr(self, "n_halves", 0)
        if n_halves in ("auto", 0):
            return
        n_possible = count_halves(self.n_units_)
        if n_halves > n_possible:
            most, no_halves = _most_halves(self.n_units_), "n_halves=0"
            cure = f"n_halves={most} at most, which leaves as many to `score`, or 0"
            raise ValueError(
                f"n_halves={n_halves}, but {self.n_units_} units have {n_possible} "
                f"different halves. Use {cure if most >= FEWEST_HALVES else no_halves}."
            )
        if n_halves < 2 * FEWEST_PAIRS:
            warnings.warn(
                f"n_halves={n_halves} are too few to say much: sizes and intervals are "
                f"those of the prior. Use at least {2 * FEWEST_PAIRS}.",
                FaithfulnessWarning,
                stacklevel=7,
            )

    def _count_halves(self, n_bytes):
        """Return how many halves to retrain, if a model takes so many bytes."""
        n_halves = getattr(self, "n_halves", 0)
        if n_halves != "auto":
            return n_halves
        wanted = self._wanted_halves()
        if not wanted:
            return 0
        # what is too large goes to the memory on disk, if there is one
        n_bytes = n_bytes * self._n_seeds() if self.memory is None else 0
        return automatic_halves(self.n_units_, wanted, n_bytes)

    def _learn_halves(self):
        """Train the halves, and learn what the posterior needs."""
        self._trained_halves = None  # those of an earlier fit
        vars(self).pop("halves_", None)
        n_bytes = self._model_bytes()
        n_halves = self._count_halves(n_bytes)
        if hasattr(self, "n_halves"):
            self.n_halves_ = n_halves
        if not n_halves:
            if getattr(self, "n_halves", 0) == "auto" and self._wanted_halves():
                self._say(
                    f"no halves: {self.n_units_} units have too few, or models are too "
                    "large to keep; sizes and standard errors are not calibrated"
                )
            return
        self.halves_ = draw_halves(self.n_units_, n_halves, self._halves_seed)
        size = n_bytes * n_halves * self._n_seeds()
        if size > memory_cap() and self.memory is None:
            warnings.warn(
                f"The models of {n_halves} halves take {size / 2**20:.0f} MiB, over "
                "scikit-learn's working_memory of "
                f"{memory_cap() / 2**20:.0f} MiB, and all are kept. Use fewer, or "
                "memory=, which keeps them on disk.",
                EfficiencyWarning,
                stacklevel=6,
            )
        self._say(f"{n_halves} random halves retrained, for sizes and intervals")
        self._trained_halves = TrainedHalves(
            self._model,
            self._features,
            self._targets,
            self.halves_,
            unit_of_row=self._unit_of_row,
            row_weights=self._row_weights,
            n_seeds=self._n_seeds(),
            n_bytes=n_bytes,
            memory=self.memory,
            n_jobs=self.n_jobs,
            verbose=self.verbose,
        )
        self.estimand_ = ESTIMAND

    def _evidence(self):
        """Return the halves as the posterior takes them: larger, and not kept."""
        grouped = self.n_units_ < len(self._unit_of_row)
        return Halves(self.halves_, self._classes_of_units(), grouped)

    def _model_bytes(self):
        """Return the bytes of a kept model; 0 where they cannot be told."""
        module = getattr(as_model(self._model), "module", None)
        if module is None:
            return 0
        return sum(p.numel() * p.element_size() for p in module.parameters())

    def _classes_of_units(self):
        """Return the class, or group of like targets, of units that are rows."""
        y = self._targets
        if self.n_units_ < len(y) or y.ndim > 1:
            return None
        y = y[np.argsort(self._unit_of_row)]
        if is_classifier(self._model):
            return sorted_labels(y, "y")[1]
        if y.dtype.kind not in "fiu":
            return None
        edges = np.quantile(y, np.arange(1, _N_GROUPS) / _N_GROUPS)
        return np.searchsorted(np.unique(edges), y, side="right")

    def _whole_cost(self, estimator, X, y, n_queries):
        """Return `_cost`, with that of retrained halves."""
        cost = self._cost(estimator, X, y, n_queries)
        if not self._asks_for_halves():
            return cost
        model = as_model(estimator)
        network = model.network(self) if model.stacks else model.alike(X, y)
        problem, n_bytes = None, 0
        if network is not None:
            problem = untrained(network, X, y)
            n_bytes = problem.model.n_params * problem.X.element_size()
        n_halves = self._count_halves(n_bytes)
        if not n_halves:
            return cost
        n_models = (n_halves + 1) * self._n_seeds()
        seconds, size = training_cost(model, problem, n_models, X, y)
        kept = size if problem is None else n_models * n_bytes
        if self.memory is not None:
            kept = min(kept, memory_cap())
        if problem is None:  # of other estimators, that are fitted to half of the rows
            seconds, kept = seconds / 2, kept / 2
        way = f"{n_halves} retrained halves, for sizes and intervals"
        return Cost(
            ESTIMAND,
            cost.trainings + n_models,
            cost.seconds + seconds,
            cost.megabytes + (kept + BYTES * n_halves * self.n_units_) / 2**20,
            f"{cost.way}; {way}" if cost.way else way,
        )

    # ---------------------------------------------------------------- queries
    def _seen_weightings(self):
        """Return the weightings (m, n_units) whose outcomes were fitted, or None."""
        return None if self._trained_halves is None else self.halves_.astype(float)

    def _attributed(self, X, y, outcome):
        """Return attributions (n_queries, n_units) and their deviations, or None.

        Those of `_attribute`, or of the posterior that begins with them.
        """
        if self._trained_halves is None:
            return self._of_present(*self._attribute(X, y, outcome))
        found = self._prior()(X, y, outcome)
        outcomes, _ = self._half_outcomes(X, y, outcome)
        if len(found[0]) != outcomes.shape[1]:
            # of an attributor that knows no sets, and is told so
            return self._attribute(X, y, outcome)
        after = posterior(*found, self._evidence(), outcomes, self._knowledge())
        return self._of_present(after.mean, after.std)

    def _of_present(self, values, errors=None):
        """Return attributions and deviations, 0 where a unit has no weight.

        Nothing was trained on it: a mean over units, or noise, is not its own.
        """
        present = np.bincount(self._unit_of_row, self._row_weights != 0) > 0
        if present.all() or values.shape[-1] != len(present):
            return values, errors
        found = (
            None if v is None else np.where(present, v, 0.0) for v in (values, errors)
        )
        return tuple(found)

    def _prior(self):
        """Return the method that answers queries with what the posterior begins with.

        It returns what `_attribute` does, or several means as `PriorMeans`, and None.
        """
        return self._attribute  # itself: warnings count frames

    def _half_outcomes(self, X, y, outcome, stacklevel=5):
        """Return the outcomes (m, n_queries) of retrained halves; warn of bad ones.

        And those (n_queries,) of models that all units are in.
        """
        outcomes = self._trained_halves.outcomes(X, y, outcome)
        outcomes, whole = outcomes[:-1], outcomes[-1]
        finite = np.isfinite(outcomes)
        lost = ~finite.all(axis=1)
        if lost.any():
            queries = np.flatnonzero(~finite.all(axis=0))[:10].tolist()
            warnings.warn(
                f"Outcomes of {lost.sum()} of {len(lost)} retrained halves are not "
                f"finite for queries {queries}: they are left out there, with their "
                "complements.",
                FaithfulnessWarning,
                stacklevel=stacklevel,
            )
        highest = np.max(outcomes, axis=0, where=finite, initial=-np.inf)
        lowest = np.min(outcomes, axis=0, where=finite, initial=np.inf)
        equal = np.flatnonzero(highest == lowest)  # neither where none is finite
        if len(equal):
            warnings.warn(
                f"The outcomes of queries {equal[:10].tolist()} are the same whichever "
                "half of the units is trained on: nothing can be attributed there.",
                FaithfulnessWarning,
                stacklevel=stacklevel,
            )
        return np.where(finite, outcomes, np.nan), whole

    def _warn_if_not_calibrated(self):
        """Warn if standard errors are no errors of the attributions."""
        missed = self._missed_by_errors()
        if missed and self._trained_halves is None:
            warnings.warn(
                f"Standard errors are not calibrated: they miss {missed}."
                f" {self._calibrated_by()}".rstrip(),
                FaithfulnessWarning,
                stacklevel=3,
            )

    def _held_out(self, X, y, outcome):
        """Return figures of halves held out, None each if there are none."""
        if self._trained_halves is None:
            return dict.fromkeys(HELD_OUT)
        evidence, found = self._evidence(), self._prior()(X, y, outcome)
        if isinstance(outcome, SetOutcome):
            self._check_is_of_set(found[0], outcome)
        shown = self._shown_beside(self._predictor_beside(X, y, outcome))
        return held_out_figures(
            *found,
            evidence,
            self._half_outcomes(X, y, outcome, stacklevel=4)[0],
            self._knowledge(),
            None if shown is None else shown[:-1],
        )

    def _predictor_beside(self, X, y, outcome):
        """Return a function of weights that predicts outcomes better than sums.

        Of `attribute`, that is; None where there is none.
        """
        return None

    def _shown_beside(self, beside):
        """Return its predictions (m + 1, n_queries) of the halves, and of all units."""
        if beside is None:
            return None
        return beside(np.vstack([self.halves_, np.ones(self.n_units_)]))

    def _posteriors(self, X, y, outcome, beside):
        """Yield the posterior of each query; see `QueryPosterior`."""
        found = self._prior()(X, y, outcome)
        if isinstance(outcome, SetOutcome):
            self._check_is_of_set(found[0], outcome)
        outcomes, whole = self._half_outcomes(X, y, outcome, stacklevel=7)
        evidence, knowledge = self._evidence(), self._knowledge()
        shown = self._shown_beside(beside)
        return query_posteriors(*found, evidence, outcomes, knowledge, whole, shown)

    def _check_has_halves(self, what):
        """Raise if no halves were retrained."""
        if self._trained_halves is None:
            raise ValueError(
                f"{what} needs retrained halves, and there are none. Pass "
                f"{self._halves_to_pass()} to {type(self).__name__}, with an estimator "
                "that can be trained again."
            )

    def _predicted(self, X, y, weights, outcome):
        """Return predicted outcomes (n_weightings, n_queries)."""
        if self._trained_halves is None:
            return self._predict_outcomes(X, y, weights, outcome)
        return self._predictor(X, y, outcome)(weights)

    def _predictor(self, X, y, outcome):
        """Return `_predicted` as a function of weights, prepared once."""
        if self._trained_halves is None:
            return self._prepare(X, y, outcome)
        beside = self._predictor_beside(X, y, outcome)
        found = list(self._posteriors(X, y, outcome, beside))

        def predict(weights):
            nothing = np.full(len(weights), np.nan)
            shown = _columns(beside, weights, len(found))
            each = [
                nothing if one is None else one.outcomes(weights, column)
                for one, column in zip(found, shown, strict=True)
            ]
            return np.array(each).T

        return predict

    def _predicted_with_std(self, X, y, weights, outcome):
        """Return predicted outcomes (n_weightings, n_queries) and their deviations."""
        nothing = np.full((2, len(weights)), np.nan)
        beside = self._predictor_beside(X, y, outcome)
        posteriors = list(self._posteriors(X, y, outcome, beside))
        shown = _columns(beside, weights, len(posteriors))
        found = [
            nothing if one is None else one.predicted(weights, column)
            for one, column in zip(posteriors, shown, strict=True)
        ]
        return np.array(found).transpose(1, 2, 0)  # of one query at least


def _columns(beside, weights, n_queries):
    """Return predictions beside the posterior by query, None where there are none."""
    return [None] * n_queries if beside is None else list(beside(weights).T)
