"""Tables, ensembles of trees with their libraries' defaults, and retrained truth."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from sklearn import ensemble
from sklearn.base import is_regressor

from benchmarks._data import MEMORY, N_QUERIES
from benchmarks.linear._cases import read
from benchmarks.ranking.first_page import churn
from skattrib import TreeInfluence
from skattrib.evaluation import make_weightings, retrain_outcomes

#: training rows by table; the next ones are the queries
N_ROWS = {
    "diabetes": 400,
    "mroz": 700,
    "boston": 450,
    "beps": 600,
    "breast cancer": 500,
    "churn": 5000,
    "credit": 800,
    "medpar": 800,
}
REGRESSIONS = ("diabetes", "boston", "medpar")


def _hist(kind):
    name = f"HistGradientBoosting{kind}"
    return getattr(ensemble, name)(early_stopping=False, random_state=0)


def _lightgbm(kind):
    import lightgbm

    return getattr(lightgbm, f"LGBM{kind}")(
        n_jobs=1, deterministic=True, force_col_wise=True, verbosity=-1, random_state=0
    )


def _xgboost(kind):
    import xgboost

    options = {"n_estimators": 100, "learning_rate": 0.1}
    return getattr(xgboost, f"XGB{kind}")(n_jobs=1, random_state=0, **options)


#: what makes an estimator, from "Classifier" or "Regressor"
LIBRARIES = {
    "LightGBM": _lightgbm,
    "HGB": _hist,
    "XGBoost": _xgboost,
    "RandomForest": lambda kind: getattr(ensemble, f"RandomForest{kind}")(
        random_state=0
    ),
    "ExtraTrees": lambda kind: getattr(ensemble, f"ExtraTrees{kind}")(random_state=0),
}
FORESTS = ("RandomForest", "ExtraTrees")


def _read(table):
    """Return X and y of a table, shuffled: categories as dummies, classes as codes."""
    if table != "churn":
        X, y = read(table)
        order = np.random.RandomState(0).permutation(len(y))
        return X[order], y[order]
    import pandas as pd

    X, labels = churn()
    X = pd.get_dummies(X, drop_first=True).to_numpy(dtype=float)
    return X, (labels == "Yes").to_numpy(dtype=int)


@dataclass
class Case:
    """An ensemble on a table.

    Parameters
    ----------
    table : str
        One of N_ROWS.
    library : str
        One of LIBRARIES.
    """

    table: str
    library: str

    @property
    def n_rows(self):
        return N_ROWS[self.table]

    @cached_property
    def estimator(self):
        kind = "Regressor" if self.table in REGRESSIONS else "Classifier"
        return LIBRARIES[self.library](kind)

    @property
    def outcome(self):
        """Log-likelihoods, but of forests probabilities: theirs are 0 at times."""
        forest = self.library in FORESTS and not is_regressor(self.estimator)
        return "probability" if forest else "auto"

    @cached_property
    def data(self):
        X, y = _read(self.table)
        n = self.n_rows
        return X[:n], y[:n], X[n : n + N_QUERIES], y[n : n + N_QUERIES]

    @property
    def rows(self):
        return self.data[:2]

    @property
    def queries(self):
        return self.data[2:]

    def halves(self, n_halves, random_state=2):
        """Return halves, complements next to each other; fewer are the first ones."""
        return make_weightings(
            self.n_rows, n_halves, kind="antithetic", random_state=random_state
        )

    def retrain(self, weights, queries=None, *, rows=None, **options):
        """Return outcomes (m, q) of models trained with weights of the units."""
        return retrain_outcomes(
            self.estimator,
            *(rows or self.rows),
            weights,
            *(queries or self.queries),
            outcome=self.outcome,
            memory=MEMORY,
            **options,
        )

    def influence(self, **options):
        """Return an attributor, not fitted."""
        return TreeInfluence(
            self.estimator, outcome=self.outcome, random_state=0, **options
        )

    def leaf_influence(self):
        """Return the fitted one of the model's own structure."""
        own = {"n_structures": 1, "inclusion": 1, "removal": "derivative"}
        return self.influence(**own, n_halves=0).fit(*self.rows)


def slope(predicted, truth):
    """Return the slope of outcomes (m, q) on predicted ones, of all together."""
    x, d = predicted - predicted.mean(axis=0), truth - truth.mean(axis=0)
    return float((x * d).sum() / np.square(x).sum())


def additive_limits(outcomes):
    """Return what sums of attributions can reach on antithetic halves: likely, at most.

    Correlations. Of the parts of outcomes sums can predict that which changes its sign
    with the complement, at most; it holds interactions of odd order, which are likely
    to vary as much as those of even order.
    """
    odd = ((outcomes[::2] - outcomes[1::2]) / 2).var(axis=0)
    even = ((outcomes[::2] + outcomes[1::2]) / 2).var(axis=0)
    likely, most = np.maximum(odd - even, 0) / (odd + even), odd / (odd + even)
    return float(np.sqrt(likely).mean()), float(np.sqrt(most).mean())
