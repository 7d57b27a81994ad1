"""Checks shared by estimators: seeds, tensors, tasks, weights, memory."""

import numbers
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from inspect import signature

import numpy as np
import pandas as pd
import sklearn
import torch
from scipy import sparse
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import (
    _check_sample_weight,
    _check_y,
    _num_samples,
    check_consistent_length,
)
from sklearn.utils.validation import check_array as _check_array
from sklearn.utils.validation import column_or_1d as _column_or_1d
from sklearn.utils.validation import validate_data as _validate_data

from skattrib._indexes import check_order, index_of
from skattrib._tables import (
    find_fault,
    find_word,
    not_numbers,
    odd_columns,
    plain,
    to_encode,
)

#: Dtypes that X may have, and that results have.
DTYPES = [np.float64, np.float32]

_MAX_SEED = 2**31 - 1
# More different numbers than this, with fewer than four rows each, look like
# measurements.
_MANY_CLASSES = 10


def _told(check, *names):
    """Let a check of scikit-learn take torch's tensors, and say what it stumbles over.

    On its own it does not see that a tensor is float32 already, and with
    ``array_api_dispatch`` it returns arrays of other libraries unchanged. Errors of
    NumPy about texts and ragged lists do not say which argument, nor what to do.
    ``names`` are those of its positional arguments, None for one that is no data.
    """

    # column_or_1d of scikit-learn 1.7 takes none
    takes_name = "input_name" in signature(check).parameters

    @wraps(check)
    def told(*args, **options):
        given = [options["input_name"]] if options.get("input_name") else names
        if not takes_name:
            options.pop("input_name", None)
        named = list(zip(args, given, strict=False))
        args = [plain(a, n) if n else a for a, n in named] + list(args[len(named) :])
        try:
            # what overflows in a check is refused by it
            with (
                sklearn.config_context(array_api_dispatch=False),
                np.errstate(all="ignore"),
            ):
                return check(*args, **options)
        except (RuntimeError, TypeError, ValueError) as error:
            # an error of a kind of its own is of a mixture of kinds
            strange = type(error) not in (TypeError, ValueError)
            numeric = options.get("dtype") is not None or strange
            for values, name in zip(args, given, strict=False):
                is_numeric = options.get("y_numeric") if name == "y" else numeric
                if name and (fault := find_fault(values, name, is_numeric)):
                    kind = TypeError if isinstance(error, TypeError) else ValueError
                    why = str(error).split(". ")[0].rstrip(".")
                    raise kind(f"{fault} ({why})") from error
            if str(error) == "Input contains NaN":  # said of objects, without a name
                gaps = [n for a, n in named if n and pd.isna(np.asarray(a)).any()]
                raise ValueError(f"Input {' and '.join(gaps)} contains NaN.") from error
            if "inconsistent numbers" in str(error):
                both = " and ".join(name for name in names if name)
                raise ValueError(f"{both} do not go together: {error}.") from error
            raise

    return told


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
        check_order(X, args[0] if args else None)
        odd = {} if options.get("skip_check_array") else not_numbers(X)
        if "date" in odd.values():  # an array of dates alone is taken for numbers
            raise ValueError(f"{odd_columns(odd, 'X')} {to_encode(odd, estimator)}")
        try:
            checked = check(estimator, X, *args, **options)
        except (TypeError, ValueError) as error:
            cure = to_encode(odd, estimator) if odd else None
            if sparse.issparse(X) and not options.get("accept_sparse"):
                cure = "In a pipeline, give the encoder sparse_output=False."
            if str(error).startswith("Found array with dim") and np.ndim(X) > 2:
                cure = (
                    "Flatten the rows, X.reshape(len(X), -1), or pass a network that "
                    "takes them, as TorchClassifier(module=...)."
                )
            if cure is None:
                raise
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{str(error).rstrip('.')}. {cure}") from error
        if args and options.get("y_numeric"):
            X, y = checked
            return X, as_numbers(y)
        return checked

    return with_cure


def as_numbers(y):
    """Return targets of a regressor as floats."""
    y = dense(y)
    fault = None
    if y.dtype.kind not in "biuf":
        fault = find_word(y, "y") or (y.dtype.kind == "c" and "y is complex.")
    if fault:
        raise ValueError(
            f"Unknown label type: {fault} For labels use a classifier, such as "
            "TorchClassifier."
        )
    with np.errstate(all="ignore"):  # infinity is refused
        y = y.astype(np.float64)
    if not np.isfinite(y).all():
        raise ValueError("y contains NaN or infinity: leave these rows out.")
    return y


def check_labels(y):
    """Raise unless targets are classes that can be told apart and sorted."""
    try:
        with np.errstate(all="ignore"):
            check_classification_targets(y)
            np.unique(y)
    except ValueError as error:
        if "continuous" not in str(error):
            raise
        raise ValueError(
            f"{error} For measurements use a regressor, such as TorchRegressor; of "
            "probabilities pass the labels, y.argmax(axis=1)."
        ) from error
    except TypeError as error:
        if pd.isna(y).any():
            raise ValueError("Input y contains NaN or None.") from error
        raise ValueError(
            f"y holds labels of several types, which cannot be sorted: {error}. Make "
            "them alike, y.astype(str)."
        ) from error


def target_type(y):
    """Return what scikit-learn takes targets for."""
    with np.errstate(all="ignore"):
        return type_of_target(y, input_name="y")


def check_rows(X, y, X_name, y_name):
    """Return rows of any kind, and targets, as arrays if they are none of a table.

    Rows are the business of whoever is fitted to them; targets are checked.
    """
    X, y = plain(X, X_name), plain(y, y_name)
    for values, name in ((X, X_name), (y, y_name)):
        if fault := find_fault(values, name, numeric=False):
            raise ValueError(fault)
        if values is None or getattr(values, "ndim", 1) == 0:
            raise ValueError(f"{name} must have an entry for each row, got {values!r}.")
    check_consistent_length(X, y)
    index_of(X, y, names=(X_name, y_name))
    if not _num_samples(X):
        raise ValueError(f"Found 0 samples: {X_name} has no rows.")
    try:
        return X, dense(check_y(y, multi_output=has_columns(y)))
    except ValueError as error:
        raise ValueError(f"{y_name} cannot be used: {error}") from error


@contextmanager
def blamed(estimator, what):
    """Name an estimator of another package in errors that come from inside it."""
    try:
        yield
    except (TypeError, ValueError) as error:
        clear = (type(estimator), type(error))
        if any(kind.__module__.startswith("skattrib.") for kind in clear) or isinstance(
            error, NotFittedError
        ):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{type(estimator).__name__} cannot {what}: {error}") from error


def check_squares(values, name):
    """Raise if numbers are so large that sums of their squares are not finite."""
    largest = np.abs(values).max(initial=0.0)
    if largest > np.sqrt(np.finfo(values.dtype).max / max(values.size, 1)):
        raise ValueError(
            f"{name} holds numbers as large as {largest:.3g}, whose squares are beyond "
            f"{values.dtype}: divide it by a constant."
        )


def sorted_labels(labels, name):
    """Return the sorted different labels, and the code of each."""
    try:
        return np.unique(labels, return_inverse=True)
    except TypeError as error:
        raise ValueError(
            f"{name} must be labels of one type that can be sorted: {error}."
        ) from error


def label_positions(classes, y):
    """Return the position of each label among sorted classes, -1 for one unknown."""
    words = [labels.dtype.kind in "OSU" for labels in (classes, y)]
    if words[0] != words[1]:  # they have no common order
        return np.full(y.shape, -1)
    try:
        positions = np.searchsorted(classes, y).clip(max=len(classes) - 1)
        return np.where(classes[positions] == y, positions, -1)
    except TypeError:  # nor do labels of several types
        known = classes.tolist()
        flat = [known.index(x) if x in known else -1 for x in y.ravel().tolist()]
        return np.array(flat, dtype=np.intp).reshape(y.shape)


def first_labels(y):
    """Return a few of the different labels, as a list to be shown."""
    try:
        return np.unique(y)[:5].tolist()
    except TypeError:
        return y.ravel()[:5].tolist()


@wraps(_check_sample_weight)
def _check_sum(*args, **options):
    weights = _check_sample_weight(*args, **options)
    if not np.any(weights):  # scikit-learn checks it from 1.8 on
        raise ValueError("Sample weights must contain at least one non-zero number.")
    limits = np.finfo(weights.dtype)
    if not limits.tiny <= weights.sum() <= limits.max:
        raise ValueError(
            f"sample_weight adds up to {weights.sum():g}, beyond what {weights.dtype} "
            "can be trusted with: divide the weights by their mean."
        )
    return weights


check_array = _told(_check_array, "X")
check_sample_weight = _told(_check_sum, "sample_weight", None)
check_y = _told(_check_y, "y")
column_or_1d = _told(_column_or_1d, "y")
validate_data = _with_cure(_told(_validate_data, None, "X", "y"))


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


def check_instance(value, name):
    """Raise, with the cure, if a class is given where an instance of it is meant."""
    if isinstance(value, type):
        raise TypeError(
            f"{name}={value.__name__} is a class: pass an instance of it, "
            f"{value.__name__}()."
        )


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


def check_device(device):
    """Return where tensors sent to a device are: "cuda" is "cuda:0"; None is "cpu"."""
    try:
        return torch.empty(0, device="cpu" if device is None else device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device={device!r} is not available here: {error}. Use device='cpu'."
        ) from error


def as_tensor(array, like=None):
    """Copy an array to a tensor, with dtype and device of ``like`` if given.

    Always a copy: user data may be a read-only memory map.
    """
    if sparse.issparse(array):
        raise TypeError(
            "Sparse rows reach the model, and its gradients need dense ones. In a "
            "pipeline, give the encoder sparse_output=False."
        )
    array = np.asarray(array)
    if any(step < 0 for step in array.strides):  # which torch does not take
        array = array.copy()
    if like is None:
        return torch.tensor(array)
    return torch.tensor(array, dtype=like.dtype, device=like.device)


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
        cure = (
            f" Pass a column: {name}[name]." if isinstance(texts, pd.DataFrame) else ""
        )
        raise ValueError(f"{name} must be a 1-D sequence of str, got a {kind}.{cure}")

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
                f"{name}[{i}] is of type {type(text).__name__}.{_text_of(text, name)}"
            )
        checked[i] = None if missing else _encodable(text, f"{name}[{i}]")

    return checked


def _text_of(row, name):
    """Return how texts are made of the messages of a chat; nothing of other rows."""
    if not (isinstance(row, Sequence) and row):
        return ""
    if not all(isinstance(each, Mapping) and "content" in each for each in row):
        return ""
    if name == "y":
        return (
            " Of messages, pass the text of the answer: "
            "[messages[-1]['content'] for messages in y]."
        )
    return (
        " Put messages into the model's template: "
        "[tokenizer.apply_chat_template(messages, tokenize=False, "
        f"add_generation_prompt=True) for messages in {name}]."
    )


def check_completions(X, y):
    """Return prompts and completions as object arrays (n,); no prompts at all as None.

    X may be None.
    """
    check_order(X, y)
    y = check_texts(y, "y")
    if X is None:
        return np.full(len(y), None, dtype=object), y
    X = check_texts(X, "X", optional=True)
    check_consistent_length(X, y)
    return X, y


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
    try:
        shape = y.shape if hasattr(y, "shape") else np.asarray(y).shape
    except (RuntimeError, ValueError):  # refused in a moment, with a reason
        return False
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
    fault = find_fault(tasks, "tasks", numeric=False)
    if fault and not isinstance(tasks, str):  # which has a shape, a wrong one
        raise ValueError(f"{fault} Give one column, a label per row of X.")
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

    tasks = column_or_1d(tasks, input_name="tasks")
    if len(tasks) != n_rows:
        raise ValueError(
            f"tasks has {len(tasks)} labels for {n_rows} rows; give one per row of X."
        )
    if not n_rows:
        raise ValueError("Found 0 samples: there are no rows, and no tasks of them.")
    if tasks.dtype.kind == "f" and not np.isfinite(tasks).all():
        raise ValueError("tasks contains NaN or infinity; label every row.")

    names, codes = sorted_labels(tasks, "tasks")
    if len(names) < 2:
        raise ValueError(
            f"tasks has only one label ({names[0]!r}): nothing can be compared. "
            "Give at least two tasks, or tasks=None for one unit per row."
        )
    return codes, names


def check_weights(weights, n_units, dtype=np.float64):
    """Validate weightings of the units, (n_weightings, n_units) or (n_units,)."""
    if sparse.issparse(weights):
        weights = weights.toarray()
    fault = find_fault(weights, "weights", numeric=False)
    if fault and not isinstance(weights, numbers.Number | str):
        raise ValueError(
            f"{fault} It must have shape (n_weightings, n_units={n_units})."
        )
    weights = np.asarray(weights)
    if weights.dtype.kind not in "biuf":
        raise ValueError(f"weights must be numeric, got dtype {weights.dtype}.")

    with np.errstate(over="ignore"):  # infinity is refused
        weights = np.atleast_2d(weights).astype(dtype)
    if weights.ndim != 2 or weights.shape[1] != n_units:
        raise ValueError(
            f"weights must have shape (n_weightings, n_units={n_units}), one column "
            f"per row or task that the attributor was fitted on; got {weights.shape}."
        )
    if not np.isfinite(weights).all():
        raise ValueError("weights contains NaN or infinity.")

    check_squares(weights, "weights")
    if (weights < 0).any():
        raise ValueError(
            f"weights must be at least 0 (0 = absent, 1 = present); got "
            f"{weights.min():g}."
        )
    return weights
