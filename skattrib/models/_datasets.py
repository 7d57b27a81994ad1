"""Data sets of torch and of Hugging Face: their rows and targets, as two arrays."""

from typing import NoReturn

import numpy as np
import pandas as pd
import torch
from sklearn.utils import _safe_indexing
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from skattrib._indexes import check_order
from skattrib._tables import plain
from skattrib.engine._functional import spread
from skattrib.engine._modules import seeded

# Items that are read twice.
_N_TWICE = 8
# Classes of Hugging Face, which need not be installed; others may be called so, too.
_HUGGING_FACE = {
    ("datasets.arrow_dataset", "Dataset"),
    ("datasets.dataset_dict", "DatasetDict"),
    ("datasets.dataset_dict", "IterableDatasetDict"),
    ("datasets.iterable_dataset", "IterableDataset"),
}
# Columns that hold rows, in data sets of texts.
_PROMPT, _TEXT = "prompt", "text"


def opened(X, y=None):
    """Return the rows and targets of a Dataset as arrays; others as they are.

    Parameters
    ----------
    X : array-like, torch.utils.data.Dataset or datasets.Dataset
    y : array-like, str or None
        Of a Dataset of Hugging Face, the name of a column. With targets, a Dataset of
        torch is left as it is: `validate_data` refuses it.

    Raises
    ------
    ValueError
        If a Dataset has no length, items that are no pairs or differ in shape, or is
        random; or has no such columns.
    """
    if _of_hugging_face(X):
        return _columns(X, y)
    if isinstance(X, DataLoader) and y is None:
        raise ValueError(
            "X is a DataLoader of torch, which orders rows and makes batches, as the "
            "estimator does: pass its dataset, loader.dataset."
        )
    if y is not None or not isinstance(X, Dataset):
        return X, y
    name, tensors = type(X).__name__, _tensors(X)
    if tensors is None:
        return _read(X, name)
    if len(tensors) != 2:
        _refuse_item(0, name, f"a tuple of {len(tensors)}")
    return tuple(plain(t, n) for t, n in zip(tensors, "Xy", strict=True))


def rows_of(X):
    """Return the rows of a Dataset; others as they are."""
    return opened(X)[0]


def some_rows(X, y, rows):
    """Return rows and their targets at some positions; of a Dataset a part of it."""
    if _of_hugging_face(X):
        named = isinstance(y, str)
        return X.select(rows), y if named else _safe_indexing(y, rows)
    if y is None and isinstance(X, Dataset):
        return Subset(X, rows.tolist()), None
    kept = None if X is None else _safe_indexing(X, rows)  # None: no prompts
    return kept, _safe_indexing(y, rows)


def as_frame(data, name):
    """Return a Dataset of Hugging Face as a DataFrame; others as they are."""
    if not _of_hugging_face(data):
        return data
    columns = _read_columns(data, name)
    return pd.DataFrame({key: list(values) for key, values in columns.items()})


def with_targets(X, y, method):
    """Return what `opened` does; raise if there are no targets."""
    X, y = opened(X, y)
    if y is None:
        raise ValueError(
            f"{method} requires y to be passed, but the target y is None: only a "
            "Dataset of torch brings its targets."
        )
    return X, y


def _of_hugging_face(X):
    """Whether this is a Dataset, or several, of the package datasets."""
    names = {(kind.__module__, kind.__name__) for kind in type(X).__mro__}
    return not names.isdisjoint(_HUGGING_FACE)


def _columns(dataset, y):
    """Return the rows of a Dataset of Hugging Face, None if it has none, and targets.

    ``y`` is the name of a column, or what goes with the rows.
    """
    columns = _read_columns(dataset, "X")
    names = list(columns)
    if not isinstance(y, str):
        return _array(columns[_row_column(names, None)]), y
    if y not in names:
        raise ValueError(
            f"y={y!r} is no column of X, a Dataset with the columns {names}."
        )
    targets = _array(columns[y])
    missing = [i for i, value in enumerate(targets) if value is None]
    if missing:
        raise ValueError(
            f"The column y={y!r} of X has no value in the rows {missing[:10]}: leave "
            "them out, X.filter(lambda row: row[...] is not None)."
        )
    # completions without prompts
    return None if len(names) == 1 else _array(columns[_row_column(names, y)]), targets


def _read_columns(dataset, name):
    """Return the columns of a Dataset of Hugging Face by their names."""
    kind = type(dataset).__name__
    if isinstance(dataset, dict):
        raise ValueError(
            f"{name} is a {kind}, which holds several data sets: pass one of "
            f"{sorted(map(str, dataset))}, such as {name}[{min(map(str, dataset))!r}]."
        )
    if not hasattr(dataset, "__len__"):
        raise ValueError(
            f"{name} is an {kind}, which has no length: rows are attributed one by "
            f"one. Read it: datasets.Dataset.from_list(list({name}))."
        )
    if dataset.format["type"] == "custom" and len(dataset):  # made when they are read
        items = [dataset[i] for i in range(len(dataset))]
        return {key: [item[key] for item in items] for key in items[0]}
    plainly = dataset.with_format(None)  # else tensors perhaps
    return {key: plainly[key] for key in dataset.column_names}


def _row_column(names, target):
    """Return the name of the column that holds the rows."""
    found = [name for name in (_PROMPT, _TEXT) if name in names and name != target]
    if len(found) == 1:
        return found[0]
    problem = "both" if found else "neither"
    raise ValueError(
        f"X is a Dataset with the columns {names}: its rows are those of the column "
        f"{_PROMPT!r} or {_TEXT!r}, and it has {problem}. Select and rename columns, "
        "or pass them: X['question'], X['answer'] in the place of X and y; and None "
        "for X where completions have no prompts."
    )


def _array(column):
    """Return a column as an array (n,)."""
    values = list(column)
    if all(isinstance(value, bool | int | float) for value in values):
        return np.array(values)
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


def _tensors(dataset):
    """Return tensors that hold all items, None if they must be read one by one."""
    # a derived class may do anything to its items
    if type(dataset) is TensorDataset:
        return dataset.tensors
    if type(dataset) is Subset and (inner := _tensors(dataset.dataset)) is not None:
        rows = torch.as_tensor(np.asarray(dataset.indices, dtype=np.int64))
        return tuple(tensor[rows] for tensor in inner)
    return None


def _read(dataset, name):
    """Return the rows and targets of items that are read one by one."""
    try:
        n = len(dataset)
    except TypeError as error:
        raise ValueError(
            f"X is a {name}, which has no length: rows are attributed one by one, so "
            "it must be a Dataset with __len__ and __getitem__. Collect its items: "
            "TensorDataset(X, y)."
        ) from error
    if not n:
        raise ValueError(f"Found 0 samples: the {name} is empty.")
    # what a random item draws must not move the user's generators
    with seeded(0):
        for i in spread(n, _N_TWICE):
            _check_same(_item(dataset, i, name), _item(dataset, i, name), i, name)
        items = [_item(dataset, i, name) for i in range(n)]
    rows, targets = zip(*items, strict=True)
    return _stacked(rows, "rows", name), _stacked(targets, "targets", name)


def _item(dataset, i, name):
    """Return an item as a pair of arrays."""
    item = dataset[int(i)]
    if not isinstance(item, tuple | list) or len(item) != 2:
        has_length = isinstance(item, tuple | list)
        what = f"a {type(item).__name__}{f' of {len(item)}' if has_length else ''}"
        _refuse_item(i, name, what)
    x, y = (np.asarray(plain(part, f"item {i}")) for part in item)
    if x.dtype.kind not in "biuf":
        raise ValueError(
            f"The row of item {i} of the {name} is a {type(item[0]).__name__}, no "
            "tensor or array of numbers: let the Dataset turn it into one."
        )
    return x, y


def _refuse_item(i, name, what) -> NoReturn:
    raise ValueError(
        f"Item {i} of the {name} is {what}, and must be a pair (x, y) of a row and its "
        "target: wrap it in a Dataset whose __getitem__ returns that."
    )


def _check_same(one, other, i, name):
    """Raise if an item is another when it is read again."""
    for a, b in zip(one, other, strict=True):
        if not np.array_equal(a, b, equal_nan=a.dtype.kind == b.dtype.kind == "f"):
            raise ValueError(
                f"The {name} is random: item {i}, read twice, is not the same, so a "
                "model could not be trained on it again. Switch off its random "
                "transforms, or draw once: pass TensorDataset(X, y) of what was drawn; "
                "or transform in a layer of the module, in training mode by torch's "
                "generator, which is seeded at each step."
            )


def _stacked(parts, what, name):
    """Return parts of equal shapes as one array."""
    for i, part in enumerate(parts):
        if part.shape != parts[0].shape:
            raise ValueError(
                f"Items 0 and {i} of the {name} have {what} of shapes "
                f"{parts[0].shape} and {part.shape}, and there is no collate function "
                "here: pad them to one shape (torch.nn.utils.rnn.pad_sequence)."
            )
    return np.stack(parts)


class ScoresDatasets:
    """A mixin of scikit-learn's ``score`` that takes a Dataset, too."""

    def score(self, X, y=None, sample_weight=None):
        """Return the accuracy, or the coefficient of determination of a regressor.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Rows; or a Dataset, as in ``fit``.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Their targets; None only with a Dataset of torch.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights of the rows.

        Returns
        -------
        float
            As ``score`` of scikit-learn's classifiers and regressors returns it.
        """
        X, y = with_targets(X, y, "score")
        check_order(X, y, {"sample_weight": sample_weight})
        return super().score(X, y, sample_weight)
