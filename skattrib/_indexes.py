"""Indexes of pandas: whether two tables that go together have their rows in one order.

Rows are joined by their position. Where labels say that this is wrong, it is refused.
"""

from itertools import combinations

import numpy as np
import pandas as pd


def index_of(X, y=None, beside=None, names=("X", "y")):
    """Return the index of X, else of y, None for positions.

    Parameters
    ----------
    X, y : array-like or None
    beside : dict of array-like, or None
        What else has an entry for each row, by its name.
    names : tuple of str
        Of X and y.

    Raises
    ------
    ValueError
        If X and y have labels, and these differ, or two of all the same in another
        order.
    """
    check_order(X, y, beside, names)
    indexes = [pandas_index(table) for table in (X, y)]
    # those that were set, or that tell which rows were selected
    chosen = [one for one in indexes if one is not None and not is_default(one)]
    # numbers may be what is left of positions, where rows were taken from a table
    labels = [one for one in chosen if not _may_be_positions(one)]
    # a difference in length is refused elsewhere
    comparable = len(labels) != 1 and len({len(one) for one in chosen}) == 1
    if len(chosen) == 2 and comparable and not chosen[0].equals(chosen[1]):
        raise _differ(*names)
    return next(iter(labels or chosen), None)


def check_order(X, y=None, beside=None, names=("X", "y")):
    """Raise if two of these have the same labels in another order.

    This is for what is fitted as scikit-learn's estimators are, by position, whatever
    the labels. Parameters are those of `index_of`.
    """
    tables = {**dict(zip(names, (X, y), strict=True)), **(beside or {})}
    indexes = {name: pandas_index(table) for name, table in tables.items()}
    for (a, first), (b, second) in combinations(indexes.items(), 2):
        if first is None or second is None:
            continue
        # what was made anew, of rows in their order, counts them, and says no more
        if is_default(second) and not is_default(first):
            continue
        if in_other_order(first, second):
            raise _differ(a, b)


def in_other_order(first, second):
    """Say whether two indexes hold the same different labels in another order."""
    if len(first) != len(second) or first.equals(second):
        return False
    if not (first.is_unique and second.is_unique):
        return False
    return bool((_places(first, second) >= 0).all())


def _places(index, labels):
    """Return the position of each label in an index of different ones, -1 for none."""
    if isinstance(index, pd.IntervalIndex):  # which cannot be asked if they overlap
        index, labels = index.astype(object), labels.astype(object)
    return index.get_indexer(labels)


def pandas_index(table):
    """Return the index of a table of pandas, or of what has one; else None."""
    index = getattr(table, "index", None)
    return index if isinstance(index, pd.Index) else None


def is_default(index):
    """Say whether an index counts the rows, as it does where none was set."""
    return isinstance(index, pd.RangeIndex) and index.start == 0 and index.step == 1


def _may_be_positions(index):
    return index.name is None and pd.api.types.is_integer_dtype(index)


def _differ(a, b):
    return ValueError(
        f"The index of {a} and that of {b} differ: they would name the rows in two "
        f"ways. Pass {b}.to_numpy() if its rows are in the order of {a}, or align "
        f"them, {b}.loc[{a}.index]."
    )


# ----------------------------------------------------------- rows and columns of units
def check_unit_order(weights, units):
    """Raise if the columns of weights are the units in another order.

    Parameters
    ----------
    weights : array-like
        The columns of a DataFrame, and the index of a Series, may be names of units.
    units : Index (n_units,)
        Names.
    """
    labels = getattr(weights, "columns", getattr(weights, "index", None))
    if not isinstance(labels, pd.Index) or len(labels) != len(units):
        return
    if is_default(labels) and not is_default(units):  # they count the columns
        return
    other = in_other_order(units, labels)
    # transform has names of columns, which are texts
    as_texts = pd.Index(units.map(str)), pd.Index(labels.map(str))
    if other or in_other_order(*as_texts):
        raise ValueError(
            "The columns of weights hold the names of the units in another order than "
            "unit_names_ (that of the rows in fit, or of the sorted tasks), and are "
            "taken by their position. Pass weights.to_numpy() if they are in that "
            "order, or put them in it, weights[names]."
        )


def places_of_units(table, names, *, named, indexed, name):
    """Return the positions (n_units,) of the units' rows in a table of pandas.

    Parameters
    ----------
    table : DataFrame or Series
    names : array (n_units,)
        Labels, or positions from 0.
    named : bool
        Whether they are labels.
    indexed : bool
        Whether they are those of an index, if only of one that counts the rows.
    name : str
        Of the table.

    Raises
    ------
    ValueError
        If the rows cannot be found, or an index and positions tell of different ones.
    """
    in_order, n_units = np.arange(len(names)), len(names)
    units = pd.Index(names, tupleize_cols=False)
    by_index = np.full(n_units, -1)
    if table.index.is_unique:
        by_index = _places(table.index, units)
    if (by_index >= 0).all():
        if named or indexed or np.array_equal(by_index, in_order):
            return by_index
        raise ValueError(
            f"The index of {name} holds 0 to {n_units - 1} in another order, and the "
            "rows that were given to fit had no index, so that these may be labels or "
            f"not. Pass {name}.reset_index(drop=True) if its rows are in the order of "
            f"those of fit, or {name}.sort_index() if its index tells their positions."
        )
    if len(table) != n_units:
        raise ValueError(
            f"{name} has {len(table)} rows for {n_units} units, and its index does not "
            "hold their names (unit_names_). Pass the rows that were given to fit, in "
            "their order; for tasks a row for each, with the task as its index."
        )
    if named and (by_index >= 0).any() and not is_default(table.index):
        missing = units[by_index < 0][:5].tolist()
        raise ValueError(
            f"The index of {name} holds names of some units, but not {missing}: its "
            "rows are of others. Pass the rows that were given to fit, or "
            f"{name}.reset_index(drop=True) if they are those, in their order."
        )
    return in_order
