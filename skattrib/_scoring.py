"""What really retrained models say of an attributor."""

import math

import numpy as np
from sklearn.utils import Bunch

from skattrib._verdict import calibration_slope
from skattrib.evaluation import lds_score, make_weightings, retrain_outcomes
from skattrib.models._datasets import with_targets
from skattrib.models._kept_models import recipe_of

FEWEST_RETRAININGS = 8


class ScoredByRetraining:
    """Methods of an attributor that train models on subsets, to compare with them.

    It has what `skattrib.base.BaseAttributor` learns in ``fit``.
    """

    def score(self, X, y=None):
        """Score how well predicted outcomes rank retrained ones.

        Trains `n_retrainings` models, each on a random `retrain_size` of the units;
        fewer where there are not so many different subsets.

        Parameters
        ----------
        X : array-like of shape (n_queries, n_features) or (n_queries, ...)
            Queries.
        y : array-like of shape (n_queries,) or (n_queries, n_outputs), default=None
            Their targets; None only with a Dataset of torch, which brings them.

        Returns
        -------
        float
            Linear datamodeling score (LDS): Spearman correlation over the retrained
            models between predicted and actual outcome, mean over queries. 1 is
            perfect, 0 is chance. `evaluation.lds_score` gives an interval too.

        Raises
        ------
        ValueError
            If there are too few units for 8 different subsets.
        TrajectoryError
            If the estimator is a frozen module without a record of its training.
        """
        X, y = with_targets(X, y, "score")
        X, y, outcome = self._check_finite_query(X, y)
        weights, truth = self._retrain(X, y, self.n_retrainings)
        return lds_score(truth, self._predicted(X, y, weights, outcome))

    def _check_retrainable(self):
        """Raise if retrained models would say nothing about these attributions."""

    def _retrain(self, X, y, n_retrainings):
        """Return weightings and the outcomes of models trained with them."""
        self._check_retrainable()
        if n_retrainings < FEWEST_RETRAININGS:
            raise ValueError(
                f"n_retrainings={n_retrainings} is too few to rank: use at least "
                f"{FEWEST_RETRAININGS}."
            )
        weights = self._draw_weightings(
            n_retrainings, self.retrain_size, self._score_seed
        )
        return weights, self._truth(weights[:, self._unit_of_row], X, y)

    def _draw_weightings(self, n_wanted, size, seed):
        """Draw different unseen subsets of the units; all there are, if fewer."""
        kept = min(max(round(size * self.n_units_), 1), self.n_units_ - 1)
        seen = self._seen_weightings()
        seen = set() if seen is None else {w.tobytes() for w in seen if w.sum() == kept}
        possible = math.comb(self.n_units_, kept)
        if possible - len(seen) < FEWEST_RETRAININGS:
            known = f", and {len(seen)} of these were learnt from" if seen else ""
            raise ValueError(
                f"n_units={self.n_units_} units allow {possible} different subsets of "
                f"{kept}{known}: too few to rank, at least {FEWEST_RETRAININGS} are "
                f"needed. Fit on more units{' or fewer subsets' if seen else ''}, or "
                "compare `attribute` with leave-one-out: make_weightings(kind='loo') "
                "and evaluation.loo_score."
            )
        drawn = make_weightings(
            self.n_units_,
            min(n_wanted + len(seen), possible),
            size=size,
            random_state=seed,
        )
        return np.array([w for w in drawn if w.tobytes() not in seen])[:n_wanted]

    def _truth(self, row_weights, X, y, outcome=None):
        """Retrain on weighted rows; return the outcomes of queries, None: its own."""
        outcome = self._checked_outcome(self.outcome) if outcome is None else outcome
        return retrain_outcomes(
            recipe_of(self._model),
            self._features,
            self._targets,
            row_weights,
            X,
            y,
            outcome=outcome,
            sample_weight=self._row_weights,
            n_seeds=self._n_seeds(),
            memory=self.memory,
            n_jobs=self.n_jobs,
            verbose=self.verbose,
        )

    def _calibrate(self, X, y, outcome, n_retrainings):
        """Compare predictions with a handful of real retrainings."""
        weights, truth = self._retrain(X, y, n_retrainings)
        predicted = self._predicted(X, y, weights, outcome)
        slope = calibration_slope(predicted, truth)
        return Bunch(calibration_slope=slope, lds=lds_score(truth, predicted))
