"""What is no table of numbers, and what to do about it."""

import reprlib

import numpy as np
import pandas as pd
import torch
from pandas.api.types import is_numeric_dtype
from scipy import sparse
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection._search import BaseSearchCV
from torch.utils.data import DataLoader, Dataset


def plain(values, name):
    """Return tensors as arrays, and the rest as it is; refuse what would be misread."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        # NumPy has no bfloat16
        is_short = values.dtype == torch.bfloat16
        return np.asarray(values.float() if is_short else values)
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise ValueError(
            f"{name} is an array with masked values, which would be taken as if they "
            f"were not: fill them, {name}.filled(value), or leave these rows out."
        )
    return values


def find_fault(values, name, numeric):
    """Return why values are no array, or not one of numbers; None if they are."""
    if values is None or sparse.issparse(values):
        return None
    if isinstance(values, Dataset | DataLoader):
        return (
            f"{name} is a {type(values).__name__} of torch: pass its rows and targets, "
            "two tensors or arrays, such as X, y = dataset.tensors. A Dataset in the "
            "place of X brings its targets: leave y out, as in fit(dataset)."
        )
    is_sized = hasattr(values, "__len__") or hasattr(values, "__array__")
    if isinstance(values, str | bytes | dict | set) or not is_sized:
        return (
            f"{name} must be an array, a data frame or a list, got "
            f"{type(values).__name__}."
        )
    if isinstance(values, pd.DataFrame) and not values.shape[1]:
        return f"Found 0 features: {name} is a data frame without columns."
    if isinstance(values, pd.DataFrame) and not values.columns.is_unique:
        twice = values.columns[values.columns.duplicated()].unique().tolist()
        return (
            f"These columns of {name} occur more than once: {twice}. Give every column "
            "a name of its own."
        )
    try:
        if numeric and (odd := not_numbers(values)):
            return odd_columns(odd, name)
        array = np.asarray(values)
    except (RuntimeError, TypeError, ValueError):
        return (
            f"{name} is no table: its rows, or their entries, differ in length or "
            "kind. Give every row as many numbers."
        )
    return find_word(array, name) if numeric else None


_CURES = {
    "X": "encode words, as OneHotEncoder does, or leave them out",
    "y": "a regressor needs numbers, a classifier takes labels",
}


def find_word(array, name):
    """Return what in an array is no number, None if nothing is."""
    if array.dtype.kind in "VMm":
        kind = "records" if array.dtype.kind == "V" else "dates"
        return f"{name} holds {kind}, not numbers: make columns of numbers of them."
    if array.dtype.kind not in "OSU":
        return None
    for entry in array.ravel().tolist():
        try:
            float(0 if entry is None or entry is pd.NA else entry)
        except (TypeError, ValueError):
            found = f"{name} holds {reprlib.repr(entry)}, which is not a number"
            return f"{found}: {cure}." if (cure := _CURES.get(name)) else f"{found}."
    return None


def not_numbers(X):
    """Return {name: "date" or "text"} of columns, positions of an array's."""
    if hasattr(X, "schema") and hasattr(X, "columns"):  # polars
        return {
            name: "date" if kind.is_temporal() else "text"
            for name, kind in zip(X.columns, X.dtypes, strict=True)
            if not kind.is_numeric() and str(kind) != "Boolean"
        }
    if isinstance(X, np.ndarray) and X.ndim == 2 and X.dtype.kind in "OUSmM":
        X = pd.DataFrame(X)
    if not isinstance(X, pd.DataFrame):
        return {}
    if not X.columns.is_unique:
        return {}
    odd = [n for n, kind in X.dtypes.items() if not is_numeric_dtype(kind)]
    kinds = {name: _kind(X[name]) for name in odd}
    return {name: kind for name, kind in kinds.items() if kind != "number"}


def _kind(column):
    """Return what a column of a data frame holds."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = pd.Series(column.cat.categories)
    column = column.infer_objects()
    if is_numeric_dtype(column.dtype):
        return "number"
    if column.dtype.kind in "mM" or isinstance(
        column.dtype, pd.DatetimeTZDtype | pd.PeriodDtype
    ):
        return "date"
    numbers_of_texts = pd.to_numeric(column, errors="coerce")
    return "text" if numbers_of_texts.isna().any() else "number"


def odd_columns(odd, name):
    """Return a sentence on columns that `not_numbers` found."""
    texts, dates = (_of_kind(odd, kind) for kind in ("text", "date"))
    held = [f"texts {texts}"] * bool(texts) + [f"dates or times {dates}"] * bool(dates)
    return f"These columns of {name} are not numbers: {' and '.join(held)}."


def to_encode(odd, estimator):
    """Return what to write before an estimator for columns that are not numbers."""
    cures = []
    if _of_kind(odd, "date"):
        cures.append(
            "Turn dates into numbers, (X[name] - pd.Timestamp('2000-01-01')).dt.days, "
            "and durations, X[name].dt.total_seconds()."
        )
    if texts := _of_kind(odd, "text"):
        kind = type(estimator).__name__
        use = f"make_pipeline(encoder, {kind}())"
        if hasattr(estimator, "estimator"):
            use = f"{kind}(make_pipeline(encoder, {_name_within(estimator)}()))"
        cures.append(
            "Encode texts: encoder = make_column_transformer((OneHotEncoder("
            f"handle_unknown='ignore', sparse_output=False), {texts}), remainder="
            "make_pipeline(SimpleImputer(), StandardScaler()))"
            f".set_output(transform='pandas'); then {use}."
        )
    return " ".join(cures)


def _name_within(estimator):
    """Return the name of the model that an attributor, and what it wraps, is of."""
    model = estimator.estimator
    while hasattr(model, "steps") or isinstance(model, FrozenEstimator | BaseSearchCV):
        model = model.steps[-1][1] if hasattr(model, "steps") else model.estimator
    return "TorchClassifier" if model is None else type(model).__name__


def _of_kind(odd, wanted):
    return [name for name, kind in odd.items() if kind == wanted]
