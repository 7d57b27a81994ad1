"""Small tables, ensembles of every family, and structures drawn at random."""

import importlib

import numpy as np
import pandas as pd
import pytest
from sklearn import ensemble, tree

from skattrib.engine._trees import Monotone, Tree, compacted
from skattrib.models._as_model import as_model

N = 160
SIGNS = [1, -1, 0, 0]
WORDS = ["Bern", "Kyiv", "Lima", "Oslo", "Rome", "Suva", "Wien"]


def numbers(n=N, holes=True):
    """Return rows of numbers, some missing."""
    rng = np.random.RandomState(0)
    X = rng.randn(n, 4)
    if holes:
        X[rng.rand(*X.shape) < 0.1] = np.nan
    return X


def table(n=N):
    """Return numbers, words and few numbered categories, some missing."""
    rng = np.random.RandomState(1)
    frame = pd.DataFrame(
        {
            "size": numbers(n, holes=False)[:, 0],
            "town": pd.Categorical(rng.choice(WORDS, n), categories=WORDS),
            "kind": pd.Categorical(rng.choice([3, 5, 9], n)),
            "age": numbers(n, holes=False)[:, 1],
        }
    )
    frame.loc[::9, "town"] = np.nan
    return frame


def targets(kind, n=N):
    """Return numbers, counts, or classes that depend on both of the above."""
    rng = np.random.RandomState(2)
    codes = table(n)["town"].cat.codes.to_numpy() % 3
    signal = np.nan_to_num(numbers(n, holes=False)[:, 0]) + codes - 1
    signal = signal + 0.5 * rng.randn(n)
    if kind == "numbers":
        return 3 + signal
    if kind == "two columns":
        return np.column_stack([signal, signal**2])
    if kind == "counts":
        return rng.poisson(np.exp(0.5 * signal)).astype(float)
    if kind == "two":
        return (signal > 0.3).astype(int)
    if kind == "words":
        return np.where(signal > 0.3, "yes", "no")
    return np.digitize(signal, [-0.7, 0.7])


def row_weights(n=N):
    """Return positive weights of rows."""
    return np.random.RandomState(3).uniform(0.3, 2.0, n)


def library(name):
    """Return a module that may be missing: the test is skipped then."""
    if name in ("lightgbm", "xgboost"):
        return pytest.importorskip(name)
    return importlib.import_module(name)


def estimator(name, **params):
    """Return an estimator of one of the families, small and seeded."""
    if name.startswith("LGBM"):
        kind = getattr(library("lightgbm"), name)
        defaults = {"verbosity": -1, "min_child_samples": 5, "min_data_per_group": 5}
        defaults |= {"n_estimators": 15, "num_leaves": 8, "n_jobs": 1}
    elif name.startswith("XGB"):
        kind = getattr(library("xgboost"), name)
        defaults = {"n_estimators": 12, "max_depth": 3, "n_jobs": 1}
        defaults["enable_categorical"] = params.get("tree_method") != "exact"
    elif name.startswith("Hist"):
        kind = getattr(ensemble, name)
        defaults = {"max_iter": 15, "max_leaf_nodes": 8, "min_samples_leaf": 5}
    else:
        kind = getattr(ensemble, name, None) or getattr(tree, name)
        defaults = {"n_estimators": 8} if hasattr(ensemble, name) else {}
    return kind(**(defaults | {"random_state": 0} | params))


def fitted(name, rows="numbers", target="numbers", weights=None, **params):
    """Return a fitted estimator as a model, its rows, targets and weights."""
    X = {"numbers": numbers, "table": table, "whole": whole}[rows]()
    y = targets(target)
    weights = np.ones(len(y)) if weights is None else weights
    model = estimator(name, **params).fit(X, y, sample_weight=weights)
    return as_model(model), X, y, weights


def whole():
    """Return rows of numbers, none missing."""
    return numbers(holes=False)


def floored(shares, n):
    """Return probabilities of a forest of n rows as outcomes have them: nowhere 0."""
    shares = shares.clip(0.5 / n)
    return shares / shares.sum(axis=1, keepdims=True)


def random_tree(rng, n_inner, *, signs=False, rate=0.3, penalty=0.0):
    """Return a tree whose leaves are split at random."""
    left, right, leaves = [-1], [-1], [0]
    for _ in range(n_inner):
        node = leaves.pop(rng.randint(len(leaves)))
        left[node], right[node] = len(left), len(left) + 1
        leaves += [left[node], right[node]]
        left += [-1, -1]
        right += [-1, -1]
    children, _ = compacted(np.array(left), np.array(right))
    monotone = Monotone(rng.randint(-1, 2, n_inner)) if signs else None
    return Tree(children, np.zeros(n_inner + 1), rate, penalty, monotone)


def gap(found, expected):
    """Return the largest difference, of the range of what is expected."""
    return np.abs(found - expected).max() / (np.ptp(expected) or 1.0)
