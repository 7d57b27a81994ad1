"""Names of rows, and results as tables."""

import warnings

import numpy as np
import pandas as pd


def index_of(X, y=None):
    """Return the index of X, else of y, None for positions.

    Raises
    ------
    ValueError
        If both have labels, and these differ.
    """
    indices = [index for table in (X, y) if (index := _labels(table)) is not None]
    # a difference in length is refused elsewhere
    same_length = len({len(index) for index in indices}) == 1
    if len(indices) == 2 and same_length and not indices[0].equals(indices[1]):
        raise ValueError(
            "The index of X and that of y differ: they would name the rows in two "
            "ways. Align them, y.loc[X.index], or drop one, y.reset_index(drop=True)."
        )
    return indices[0] if indices else None


def _labels(table):
    """Return an index that was set, or that tells which rows were selected."""
    index = getattr(table, "index", None)
    if not isinstance(index, pd.Index):
        return None
    is_default = (
        isinstance(index, pd.RangeIndex) and index.start == 0 and index.step == 1
    )
    return None if is_default else index


def row_names(index, n_rows, stacklevel=3):
    """Return the labels of an index if they tell the rows apart, else positions."""
    if index is not None and not getattr(index, "is_unique", True):
        warnings.warn(
            f"The index holds some labels more than once, such as "
            f"{index[index.duplicated()][0]!r}: rows are named by their position.",
            UserWarning,
            stacklevel=stacklevel,
        )
    if getattr(index, "is_unique", False):
        return np.asarray(index)
    return np.arange(n_rows)


def long_form(queries, units, **values):
    """Return a data frame with one row per query and unit.

    Parameters
    ----------
    queries : array (n_queries,)
    units : array (n_units,)
        Names.
    **values : array (n_queries, n_units) or None
        A column each; None is left out.
    """
    # positions first: names may be tuples, of an index with several levels
    rows = {
        "query": pd.Index(queries, tupleize_cols=False).repeat(len(units)),
        "unit": pd.Index(units, tupleize_cols=False).take(
            np.tile(np.arange(len(units)), len(queries))
        ),
    }
    rows |= {
        name: column.ravel() for name, column in values.items() if column is not None
    }
    return pd.DataFrame(rows)
