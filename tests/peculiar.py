"""Tables, targets, tasks and weights as users bring them, some of them unusable.

A `Case` names what is peculiar, so that a failure can be read, and repeated; `build`
makes the data of it. Whether they can be used is not said here.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from hypothesis import strategies as st
from scipy import sparse


@dataclass(frozen=True)
class Case:
    """What is peculiar about training rows, queries, and the options of a call."""

    seed: int = 0
    n: int = 10
    p: int = 3
    n_queries: int = 3
    values: tuple = ()
    container: str = "array"
    target: str = "classes"
    target_as: str = "array"
    tasks: str = "none"
    weights: str = "none"
    query_values: tuple = ()
    query_as: str = "same"
    query_target: str = "same"
    unit_weights: str = "halves"
    option: int = 0


# ------------------------------------------------------------------------- values
def _first(value):
    def change(X, rng):
        if X.size:
            X.flat[rng.randint(X.size)] = value
        return X

    return change


def _scaled(factor):
    return lambda X, rng: X * factor


def _constant(X, rng):
    X[:, :1] = 3.0
    return X


def _duplicated(X, rng):
    return X[rng.randint(max(len(X) // 2, 1), size=len(X))] if len(X) else X


VALUES = {
    "nan": _first(np.nan),
    "inf": _first(np.inf),
    "huge number": _first(1e300),
    "largest number": _first(1.7e308),
    "large number": _first(1e30),
    "huge": _scaled(1e250),
    "largest": _scaled(2e307),
    "large": _scaled(1e20),
    "offset": lambda X, rng: X + 1e8,
    "tiny": _scaled(1e-310),
    "zero": _scaled(0.0),
    "constant column": _constant,
    "duplicated rows": _duplicated,
}


# ---------------------------------------------------------------------- containers
def _read_only(X):
    X = X.copy()
    X.flags.writeable = False
    return X


def _memory_mapped(X):
    mapped = np.ascontiguousarray(X).view(np.memmap)
    mapped.flags.writeable = False
    return mapped


def _spread(X):
    """Every second number of every second row."""
    wide = np.zeros((2 * len(X), 2 * X.shape[1]))
    wide[::2, 1::2] = X
    return wide[::2, 1::2]


def _cast(kind):
    def cast(X):
        with np.errstate(all="ignore"):
            return X.astype(kind)

    return cast


def _words(X):
    return np.array([f"w{v:.0f}" for v in X.ravel()], object).reshape(X.shape)


def _mixed(X):
    X = X.astype(object)
    X[:1, :1] = None
    return X


def _frame(**options):
    def frame(X):
        given = {key: make(len(X)) for key, make in options.items()}
        return pd.DataFrame(X, columns=[f"x{i}" for i in range(X.shape[1])], **given)

    return frame


def _nullable(kind, missing):
    def nullable(X):
        table = pd.DataFrame(np.nan_to_num(X).clip(-9, 9).round()).astype(kind)
        return table.mask(table == table.to_numpy()[:1, :1].sum()) if missing else table

    return nullable


def _with_column(make):
    def table(X):
        frame = _frame()(X)
        frame["more"] = make(len(frame))
        return frame

    return table


CONTAINERS = {
    "array": lambda X: X,
    "fortran": np.asfortranarray,
    "read-only": _read_only,
    "memory map": _memory_mapped,
    "negative strides": lambda X: X[::-1, ::-1].copy()[::-1, ::-1],
    "spread": _spread,
    "big-endian": _cast(">f8"),
    "float32": _cast(np.float32),
    "big-endian float32": _cast(">f4"),
    "float16": _cast(np.float16),
    "longdouble": _cast(np.longdouble),
    "int8": _cast(np.int8),
    "uint8": _cast(np.uint8),
    "int64": _cast(np.int64),
    "bool": _cast(bool),
    "complex": _cast(complex),
    "objects": _cast(object),
    "objects with None": _mixed,
    "words": _words,
    "texts of numbers": _cast(str),
    "dates": lambda X: np.nan_to_num(X).clip(-9, 9).astype("M8[D]"),
    "list": lambda X: X.tolist(),
    "tuples": lambda X: tuple(map(tuple, X)),
    "ragged list": lambda X: [row[: 1 + i % 2] for i, row in enumerate(X.tolist())],
    "frame": _frame(),
    "frame with labels": _frame(index=lambda n: [f"r{i}" for i in range(n)]),
    "frame with odd index": _frame(index=lambda n: np.arange(n) * 7 % 5 - 3),
    "frame with dates": _frame(index=lambda n: pd.date_range("2020", periods=n)),
    "frame with two levels": _frame(
        index=lambda n: pd.MultiIndex.from_arrays([np.arange(n) % 2, np.arange(n)])
    ),
    "frame named by numbers": pd.DataFrame,
    "frame with one name twice": lambda X: pd.DataFrame(X, columns=["x"] * X.shape[1]),
    "nullable floats": _nullable("Float64", False),
    "nullable integers": _nullable("Int64", False),
    "missing floats": _nullable("Float64", True),
    "missing integers": _nullable("Int64", True),
    "with texts": _with_column(lambda n: ["a", "b"] * (n // 2) + ["c"] * (n % 2)),
    "with categories": _with_column(lambda n: pd.Categorical(["a"] * n)),
    "with dates": _with_column(lambda n: pd.date_range("2020", periods=n)),
    "with booleans": _with_column(lambda n: np.arange(n) % 2 == 0),
    "csr matrix": sparse.csr_matrix,
    "csc array": sparse.csc_array,
    "csr array": sparse.csr_array,
    "tensor": lambda X: torch.tensor(np.array(X)),
    "half tensor": lambda X: torch.tensor(np.array(X)).to(torch.bfloat16),
    "tensor with gradients": lambda X: torch.tensor(np.array(X), requires_grad=True),
    "masked": lambda X: np.ma.masked_greater(X, 1.0),
    "matrix": lambda X: X.view(np.matrix),
    "records": lambda X: np.zeros(len(X), dtype=[("a", float), ("b", int)]),
    "one row": lambda X: X.ravel()[: X.shape[1]],
    "series": lambda X: pd.Series(X.ravel()[: len(X)]),
    "three axes": lambda X: X[:, :, None],
    "one number": lambda X: 1.5,
    "none": lambda X: None,
    "text": lambda X: "rows",
    "dictionary": lambda X: dict(enumerate(X.T)),
    "generator": lambda X: (row for row in X),
}


# ------------------------------------------------------------------------- targets
def _labels(names):
    return lambda n, rng: np.asarray(names)[_codes(n, rng, len(names))]


def _codes(n, rng, k):
    return np.concatenate([np.arange(n)[:k], rng.randint(k, size=max(n - k, 0))])[:n]


def _spoilt(value, kind=None):
    def spoilt(n, rng):
        y = _codes(n, rng, 2).astype(float)
        y[:1] = value
        return y if kind is None else y.astype(kind)

    return spoilt


def _objects_with(value):
    def objects(n, rng):
        y = _labels(["a", "b"])(n, rng).astype(object)
        y[:1] = value
        return y

    return objects


TARGETS = {
    "classes": _labels([0, 1]),
    "three classes": _labels([-1, 5, 7]),
    "words": _labels(["no", "yes"]),
    "object words": lambda n, rng: _labels(["no", "yes"])(n, rng).astype(object),
    "booleans": _labels([False, True]),
    "bytes": _labels([b"no", b"yes"]),
    "float classes": _labels([1.0, 2.0]),
    "huge classes": _labels([2**62, 2**62 + 1]),
    "huge float classes": _labels([1e300, -1e300]),
    "one class": _labels([3]),
    "rare class": lambda n, rng: (np.arange(n) == n - 1).astype(int),
    "a class each": lambda n, rng: np.arange(n),
    "numbers": lambda n, rng: rng.standard_normal(n),
    "constant numbers": lambda n, rng: np.full(n, 0.5),
    "huge numbers": lambda n, rng: rng.standard_normal(n) * 1e300,
    "large numbers": lambda n, rng: rng.standard_normal(n) * 1e20,
    "tiny numbers": lambda n, rng: rng.standard_normal(n) * 1e-310,
    "nan": _spoilt(np.nan),
    "inf": _spoilt(np.inf),
    "complex": _spoilt(1, complex),
    "nan among words": _objects_with(np.nan),
    "none among words": _objects_with(None),
    "number among words": _objects_with(3),
    "list among words": lambda n, rng: (
        _objects_with(None)(n, rng)
        if n == 0
        else np.array([*_labels(["a", "b"])(n, rng)[1:].tolist(), ("t",)], object)
    ),
    "dates": lambda n, rng: _codes(n, rng, 2).astype("M8[D]"),
    "texts of numbers": lambda n, rng: rng.standard_normal(n).astype(str),
    "probabilities": lambda n, rng: rng.dirichlet(np.ones(2), n),
    "two columns": lambda n, rng: rng.standard_normal((n, 2)),
    "labels": lambda n, rng: np.c_[_codes(n, rng, 2), 1 - _codes(n, rng, 2)],
    "classes in columns": lambda n, rng: rng.randint(3, size=(n, 2)),
    "too short": lambda n, rng: _codes(n - 1, rng, 2) if n else np.zeros(1),
    "three axes": lambda n, rng: np.zeros((n, 1, 1)),
    "no column": lambda n, rng: np.zeros((n, 0)),
    "none": lambda n, rng: None,
    "one number": lambda n, rng: 1,
    "text": lambda n, rng: "y",
}


def _series(y):
    if y.ndim > 2:
        return y
    return pd.Series(y) if y.ndim == 1 else pd.DataFrame(y)


def _small(kind):
    def cast(y):
        if y.dtype.kind not in "biuf":
            return y
        with np.errstate(all="ignore"):
            return y.astype(kind)

    return cast


def _relabelled(y):
    y = _series(y)
    return y.set_axis(np.arange(len(y)) + 3) if y.ndim < 3 else y


def _nullable_target(y):
    if y.ndim > 1 or y.dtype.kind not in "biuf" or not np.isfinite(y).all():
        return y
    y = pd.Series(y.astype(float)).clip(-9, 9).round().astype("Int64")
    y[:1] = pd.NA
    return y


TARGETS_AS = {
    "array": lambda y: y,
    "list": lambda y: y.tolist(),
    "column": lambda y: y[:, None] if y.ndim == 1 else y,
    "series": _series,
    "series of other index": _relabelled,
    "category": lambda y: _series(y).astype("category") if y.ndim < 3 else y,
    "missing integers": _nullable_target,
    "frame": lambda y: pd.DataFrame(y) if y.ndim < 3 else y,
    "uint8": _small(np.uint8),
    "float16": _small(np.float16),
    "float32": _small(np.float32),
    "big-endian": _small(">f8"),
    "objects": lambda y: y.astype(object),
    "read-only": _read_only,
    "reversed": lambda y: y[::-1],
    "tensor": lambda y: torch.tensor(np.array(y)) if y.dtype.kind in "biuf" else y,
    "sparse": lambda y: (
        sparse.csr_matrix(y if y.ndim == 2 else y[:, None])
        if y.ndim < 3 and y.dtype.kind in "biuf"
        else y
    ),
}


# --------------------------------------------------------------- tasks and weights
TASKS = {
    "none": lambda n, rng: None,
    "three": lambda n, rng: _codes(n, rng, 3),
    "words": _labels(["a", "b", "c"]),
    "a row alone": lambda n, rng: np.arange(n) == 0,
    "a task each": lambda n, rng: np.arange(n)[::-1],
    "list of words": lambda n, rng: _labels(["a", "b"])(n, rng).tolist(),
    "series": lambda n, rng: pd.Series(_codes(n, rng, 2), index=np.arange(n) + 4),
    "categories": lambda n, rng: pd.Categorical(_labels(["a", "b"])(n, rng)),
    "dates": lambda n, rng: _codes(n, rng, 2).astype("M8[D]"),
    "tensor": lambda n, rng: torch.tensor(_codes(n, rng, 3)),
    "column": lambda n, rng: _codes(n, rng, 3)[:, None],
    "one task": lambda n, rng: np.zeros(n),
    "nan": _spoilt(np.nan),
    "none among words": _objects_with(None),
    "number among words": _objects_with(3),
    "ragged": lambda n, rng: [[0] * (1 + i % 2) for i in range(n)],
    "lists": lambda n, rng: np.array([[0], *[None] * (n - 1)], object)[:n],
    "two columns": lambda n, rng: np.zeros((n, 2)),
    "too long": lambda n, rng: np.arange(n + 2) % 2,
    "one number": lambda n, rng: 2,
    "name of a column": lambda n, rng: "x0",
    "dictionary": lambda n, rng: {"a": [0], "b": [1]},
    "sparse": lambda n, rng: sparse.csr_matrix(_codes(n, rng, 2)[:, None]),
}


def _one_weight(value, kind=float):
    def weights(n, rng):
        found = rng.uniform(0.5, 2, n).astype(kind)
        found[:1] = value
        return found

    return weights


WEIGHTS = {
    "none": lambda n, rng: None,
    "ones": lambda n, rng: np.ones(n),
    "uneven": lambda n, rng: rng.uniform(0.5, 2, n),
    "whole": lambda n, rng: rng.randint(1, 4, n),
    "some zero": lambda n, rng: np.arange(n) % 2,
    "one left": lambda n, rng: np.arange(n) == 0,
    "zeros": lambda n, rng: np.zeros(n),
    "negative": _one_weight(-1.0),
    "nan": _one_weight(np.nan),
    "inf": _one_weight(np.inf),
    "huge": _one_weight(1e300),
    "all huge": lambda n, rng: np.full(n, 1e308),
    "tiny": lambda n, rng: np.full(n, 1e-320),
    "objects": _one_weight(None, object),
    "words": _labels(["a", "b"]),
    "complex": _one_weight(1j, complex),
    "too long": lambda n, rng: np.ones(n + 1),
    "column": lambda n, rng: np.ones((n, 1)),
    "one number": lambda n, rng: 2.0,
    "series": lambda n, rng: pd.Series(np.ones(n), index=np.arange(n) + 4),
    "list": lambda n, rng: [1.0] * n,
    "tensor": lambda n, rng: torch.ones(n),
    "text": lambda n, rng: "balanced",
}


def _unit_weights(value):
    def weights(n, rng):
        W = np.ones((2, n))
        W.flat[:1] = value
        return W

    return weights


UNIT_WEIGHTS = {
    "halves": lambda n, rng: (rng.uniform(size=(3, n)) < 0.5).astype(float),
    "booleans": lambda n, rng: rng.uniform(size=(3, n)) < 0.5,
    "one weighting": lambda n, rng: np.ones(n),
    "zeros": lambda n, rng: np.zeros((2, n)),
    "between": lambda n, rng: rng.uniform(size=(2, n)),
    "twos": lambda n, rng: np.full((1, n), 2),
    "no weighting": lambda n, rng: np.zeros((0, n)),
    "nan": _unit_weights(np.nan),
    "inf": _unit_weights(np.inf),
    "negative": _unit_weights(-1.0),
    "huge": _unit_weights(1e300),
    "frame": lambda n, rng: pd.DataFrame(np.ones((2, n))),
    "words": lambda n, rng: np.full((2, n), "in"),
    "ragged": lambda n, rng: [[1.0] * n, [1.0] * (n + 1)],
    "too wide": lambda n, rng: np.ones((2, n + 1)),
    "none": lambda n, rng: None,
    "sparse": lambda n, rng: sparse.csr_matrix(np.ones((2, n))),
    "three axes": lambda n, rng: np.ones((1, 2, n)),
}

QUERIES_AS = ["same", "plain", "narrow", *CONTAINERS]


# ------------------------------------------------------------------------ strategy
def _mostly(usual, others, times=2):
    """The usual about as often as `times` times all of the others; it shrinks to it."""
    others = [name for name in others if name != usual]
    return st.one_of(*[st.just(usual)] * times, st.sampled_from(others))


CHANGES = st.one_of(
    st.just(()),
    st.just(()),
    st.lists(st.sampled_from(list(VALUES)), max_size=2).map(tuple),
)
SIZES = st.one_of(st.just(10), st.just(10), st.integers(0, 12))
CASES = st.builds(
    Case,
    seed=st.integers(0, 99),
    n=SIZES,
    p=st.one_of(st.just(3), st.integers(0, 4)),
    n_queries=st.one_of(st.just(3), st.integers(0, 4)),
    values=CHANGES,
    container=_mostly("array", CONTAINERS),
    target=st.one_of(
        *[st.sampled_from(["classes", "three classes", "words", "numbers"])] * 2,
        st.sampled_from(list(TARGETS)),
    ),
    target_as=_mostly("array", TARGETS_AS),
    tasks=_mostly("none", TASKS),
    weights=_mostly("none", WEIGHTS),
    query_values=CHANGES,
    query_as=_mostly("same", QUERIES_AS, 3),
    query_target=_mostly("same", TARGETS, 3),
    unit_weights=_mostly("halves", UNIT_WEIGHTS),
    option=st.integers(0, 5),
)


def _table(n, p, changes, rng):
    X = rng.standard_normal((n, p))
    for change in changes:
        with np.errstate(all="ignore"):
            X = VALUES[change](X, rng)
    return X


def _target(kind, kind_as, n, rng):
    y = TARGETS[kind](n, rng)
    return TARGETS_AS[kind_as](y) if isinstance(y, np.ndarray) else y


def build(case):
    """Return X, y, tasks, weights and queries X, y of a case."""
    rng = np.random.RandomState(case.seed)
    X = _table(case.n, case.p, case.values, rng)
    rows = CONTAINERS[case.container](X)
    y = _target(case.target, case.target_as, case.n, rng)
    tasks, weights = TASKS[case.tasks](case.n, rng), WEIGHTS[case.weights](case.n, rng)
    width = max(case.p - 1, 0) if case.query_as == "narrow" else case.p
    queries = _table(case.n_queries, width, case.query_values, rng)
    kind_as = {"same": case.container, "plain": "array", "narrow": "array"}
    queries = CONTAINERS[kind_as.get(case.query_as, case.query_as)](queries)
    kind = case.target if case.query_target == "same" else case.query_target
    y_query = _target(kind, case.target_as, case.n_queries, rng)
    return rows, y, tasks, weights, queries, y_query


def unit_weights(case, n_units):
    """Return weightings of as many units."""
    rng = np.random.RandomState(case.seed)
    return UNIT_WEIGHTS[case.unit_weights](n_units, rng)
