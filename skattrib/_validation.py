"""Checks shared by estimators: seeds, tensors, tasks, weights, memory."""

import numbers
import warnings
from contextlib import contextmanager
from functools import wraps

import numpy as np
import pandas as pd
import sklearn
import torch
from scipy import sparse
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, _check_y
from sklearn.utils.validation import check_array as _check_array
from sklearn.utils.validation import column_or_1d as _column_or_1d
from sklearn.utils.validation import validate_data as _validate_data

#: Dtypes that X may have, and that results have.
DTYPES = [np.float64, np.float32]

_MAX_SEED = 2**31 - 1
# More different numbers than this, with fewer than four rows each, look like
# measurements.
_MANY_CLASSES = 10


def _as_array(tensor):
    tensor = tensor.detach()
    # NumPy has no bfloat16
    return np.asarray(tensor.float() if tensor.dtype == torch.bfloat16 else tensor)


def _to_numpy(check):
    """Let a check of scikit-learn take torch's tensors, and return NumPy arrays.

    On its own it does not see that a tensor is float32 already, and with
    ``array_api_dispatch`` it returns arrays of other libraries unchanged.
    """

    @wraps(check)
    def to_numpy(*args, **options):
        args = [_as_array(a) if isinstance(a, torch.Tensor) else a for a in args]
        with sklearn.config_context(array_api_dispatch=False):
            return check(*args, **options)

    return to_numpy


def _with_cure(check):
    """Refuse dates in X, the second argument, and say what to do about other errors."""

    @wraps(check)
    def with_cure(estimator, X, *args, **options):
        if isinstance(X, dict) and not sparse.issparse(X):
            raise ValueError(
                f"X is a dict of {len(X)} inputs; it must be one table of rows. Put "
                "them side by side, numpy.hstack(list(X.values())), and wrap a module "
                "that takes several in one whose forward(X) cuts the columns again."
            )
        if not options.get("skip_check_array") and (odd := _not_numbers(X)):
            if "date" in odd.values():  # an array of dates alone is taken for numbers
                raise ValueError(_to_encode(estimator, odd))
        else:
            odd = {}
        try:
            return check(estimator, X, *args, **options)
        except (TypeError, ValueError) as error:
            cure = _to_encode(estimator, odd) if odd else None
            if sparse.issparse(X) and not options.get("accept_sparse"):
                cure = "In a pipeline, give the encoder sparse_output=False."
            if cure is None:
                raise
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{str(error).rstrip('.')}. {cure}") from error

    return with_cure


def _not_numbers(X):
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
    kinds = {name: _kind(X[name]) for name in X.columns if X.columns.is_unique}
    return {name: kind for name, kind in kinds.items() if kind != "number"}


def _kind(column):
    """Return what a column of a data frame holds."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = pd.Series(column.cat.categories)
    column = column.infer_objects()
    if pd.api.types.is_numeric_dtype(column.dtype):
        return "number"
    if column.dtype.kind in "mM" or isinstance(
        column.dtype, pd.DatetimeTZDtype | pd.PeriodDtype
    ):
        return "date"
    numbers_of_texts = pd.to_numeric(column, errors="coerce")
    return "text" if numbers_of_texts.isna().any() else "number"


def _to_encode(estimator, odd):
    """Return a sentence on columns that are not numbers, and the code to write."""
    texts, dates = (
        [name for name, kind in odd.items() if kind == wanted]
        for wanted in ("text", "date")
    )
    named = [f"texts {texts}"] * bool(texts) + [f"dates or times {dates}"] * bool(dates)
    cures = [f"These columns of X are not numbers: {' and '.join(named)}."]
    if dates:
        cures.append(
            "Turn dates into numbers, (X[name] - pd.Timestamp('2000-01-01')).dt.days, "
            "and durations, X[name].dt.total_seconds()."
        )
    if texts:
        network = "TorchClassifier()"
        use = f"make_pipeline(encoder, {type(estimator).__name__}())"
        if hasattr(estimator, "estimator"):
            use = f"{type(estimator).__name__}(make_pipeline(encoder, {network}))"
        cures.append(
            "Encode texts: encoder = make_column_transformer((OneHotEncoder("
            f"handle_unknown='ignore', sparse_output=False), {texts}), remainder="
            "make_pipeline(SimpleImputer(), StandardScaler()))"
            f".set_output(transform='pandas'); then {use}."
        )
    return " ".join(cures)


@wraps(_check_sample_weight)
def _check_not_all_zero(*args, **options):
    weights = _check_sample_weight(*args, **options)
    if not np.any(weights):  # scikit-learn checks it from 1.8 on
        raise ValueError("Sample weights must contain at least one non-zero number.")
    return weights


check_array = _to_numpy(_check_array)
check_sample_weight = _to_numpy(_check_not_all_zero)
check_y = _to_numpy(_check_y)
column_or_1d = _to_numpy(_column_or_1d)
validate_data = _with_cure(_to_numpy(_validate_data))


@contextmanager
def unchanged_on_error(estimator):
    """Restore the attributes of the estimator if fitting it fails."""
    before = vars(estimator).copy()
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise


def float_dtype(X):
    """Return the dtype of results for X."""
    if isinstance(X, pd.DataFrame) or X.dtype.kind != "f":
        return np.dtype(np.float64)
    return X.dtype


def draw_seed(random_state):
    """Return an int seed: the one given, or one drawn from the generator given."""
    if isinstance(random_state, numbers.Integral):
        return int(random_state)
    return int(check_random_state(random_state).randint(_MAX_SEED))


def draw_seeds(random_state, n_seeds):
    """Return ``n_seeds`` int seeds; an int given is the first of them."""
    first = draw_seed(random_state)
    rest = np.random.RandomState(first).randint(_MAX_SEED, size=n_seeds - 1)
    return [first, *map(int, rest)]


def seed_unset(estimator, random_state):
    """Set every nested ``random_state`` to an int; ints of the user are kept.

    A generator would change with every use, so that no training could be repeated.
    """
    rng = check_random_state(random_state)
    unset = sorted(
        name
        for name, value in estimator.get_params(deep=True).items()
        if (name == "random_state" or name.endswith("__random_state"))
        # a str: scikit-learn's "deprecated"
        and not isinstance(value, numbers.Integral | str)
    )
    estimator.set_params(**{name: int(rng.randint(_MAX_SEED)) for name in unset})


def as_tensor(array, like=None):
    """Copy an array to a tensor, with dtype and device of ``like`` if given.

    Always a copy: user data may be a read-only memory map.
    """
    if like is None:
        return torch.tensor(np.asarray(array))
    return torch.tensor(np.asarray(array), dtype=like.dtype, device=like.device)


def memory_cap():
    """Return scikit-learn's ``working_memory`` in bytes."""
    return sklearn.get_config()["working_memory"] * 2.0**20


def check_fits(n_rows, n_columns, dtype, cure):
    """Raise unless an array of this shape fits the working memory."""
    needed = n_rows * n_columns * dtype.itemsize
    if needed > memory_cap():
        raise ValueError(
            f"transform would return {n_rows} x {n_columns} numbers "
            f"({needed / 2**20:.0f} MiB), over the cap of "
            f"{memory_cap() / 2**20:.0f} MiB. {cure}, or raise "
            "sklearn.set_config(working_memory=...)."
        )


def check_texts(texts, name, *, optional=False):
    """Return texts as an object array (n,); missing ones as None if ``optional``."""
    if isinstance(texts, str):
        raise ValueError(
            f"{name} must be a 1-D sequence of str, got one str: a single text goes "
            f"into a list, {name}=[text]."
        )
    if isinstance(texts, bytes) or getattr(texts, "ndim", 1) != 1:
        kind = f"{getattr(texts, 'ndim', 1)}-D {type(texts).__name__}"
        raise ValueError(f"{name} must be a 1-D sequence of str, got a {kind}.")

    try:
        texts = list(texts)
    except TypeError as error:
        raise ValueError(
            f"{name} must be a sequence of str, got {type(texts).__name__}."
        ) from error

    if not texts:
        raise ValueError(f"Found 0 samples: {name} is empty.")

    checked = np.empty(len(texts), dtype=object)
    for i, text in enumerate(texts):
        missing = text is None or text is pd.NA
        missing = missing or (isinstance(text, numbers.Real) and text != text)
        if not (isinstance(text, str) or (optional and missing)):
            raise ValueError(
                f"{name} must be a sequence of str{' or None' if optional else ''}; "
                f"{name}[{i}] is of type {type(text).__name__}."
            )
        checked[i] = None if missing else _encodable(text, f"{name}[{i}]")

    return checked


def _encodable(text, name):
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} is not valid Unicode text: {error}.") from error
    return str(text)


def check_not_single(X, y):
    """Raise, with the cure, if one row or one target is given by itself."""
    if isinstance(X, pd.Series):
        raise ValueError(
            "X is a Series, but must have a row for each query: select one row of a "
            "data frame by frame.iloc[[i]], not frame.iloc[i]."
        )
    if isinstance(y, numbers.Number | str) or getattr(y, "ndim", 1) == 0:
        raise ValueError(
            f"y={y!r} must have a target for each query: put the target of one query "
            "into a list, y=[target]."
        )


def dense(y):
    """Return targets as an array; a sparse matrix of labels becomes dense."""
    return y.toarray() if sparse.issparse(y) else np.asarray(y)


def has_columns(y):
    """Return whether targets have several columns."""
    shape = y.shape if sparse.issparse(y) else np.asarray(y).shape
    return len(shape) == 2 and shape[1] > 1


def warn_if_measured(y, n_classes):
    """Warn if numbers that are treated as classes look like targets of regression."""
    if y.dtype.kind in "fiu" and n_classes > max(_MANY_CLASSES, len(y) / 4):
        warnings.warn(
            f"The {len(y)} numbers of y are treated as {n_classes} classes, with one "
            "output of the network each. If they are measurements or counts, use "
            "TorchRegressor, as in DualInfluence(TorchRegressor()).",
            UserWarning,
            stacklevel=3,
        )


def check_tasks(tasks, n_rows):
    """Turn task labels into codes.

    Returns
    -------
    codes : int array (n_rows,)
    names : array (n_units,)
        Sorted labels.
    """
    # as objects: an array of strings would hold NaN as the label "nan"
    missing = any(pd.isna(np.asarray(tasks, dtype=t)).any() for t in (None, object))
    if missing:
        raise ValueError("tasks contains NaN or missing labels; label every row.")

    if hasattr(tasks, "iloc") and getattr(tasks, "ndim", 1) == 1:
        tasks = np.asarray(tasks)
    if np.ndim(tasks) != 1 and np.shape(tasks)[1:] != (1,):
        raise ValueError(
            f"tasks has shape {np.shape(tasks)}; give one column, a label per row of X."
        )

    tasks = column_or_1d(tasks)
    if len(tasks) != n_rows:
        raise ValueError(
            f"tasks has {len(tasks)} labels for {n_rows} rows; give one per row of X."
        )
    if tasks.dtype.kind == "f" and not np.isfinite(tasks).all():
        raise ValueError("tasks contains NaN or infinity; label every row.")

    try:
        names, codes = np.unique(tasks, return_inverse=True)
    except TypeError as error:
        raise ValueError(
            f"tasks must be labels of one type that can be sorted: {error}."
        ) from error

    if len(names) < 2:
        raise ValueError(
            f"tasks has only one label ({names[0]!r}): nothing can be compared. "
            "Give at least two tasks, or tasks=None for one unit per row."
        )
    return codes, names


def check_weights(weights, n_units, dtype=np.float64):
    """Validate weightings of the units, (n_weightings, n_units) or (n_units,)."""
    weights = np.asarray(weights)
    if weights.dtype.kind not in "biuf":
        raise ValueError(f"weights must be numeric, got dtype {weights.dtype}.")

    weights = np.atleast_2d(weights).astype(dtype)
    if weights.ndim != 2 or weights.shape[1] != n_units:
        raise ValueError(
            f"weights must have shape (n_weightings, n_units={n_units}), one column "
            f"per row or task that the attributor was fitted on; got {weights.shape}."
        )
    if not np.isfinite(weights).all():
        raise ValueError("weights contains NaN or infinity.")

    if (weights < 0).any():
        raise ValueError(
            f"weights must be at least 0 (0 = absent, 1 = present); got "
            f"{weights.min():g}."
        )
    return weights
