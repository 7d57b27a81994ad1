"""Names of rows, and results of queries as arrays and tables."""

import warnings

import numpy as np
import pandas as pd
from sklearn.utils import _safe_indexing

# Of the tables that attributors return.
_COLUMNS = {
    "query",
    "rank",
    "unit",
    "attribution",
    "standard_error",
    "lower_95",
    "upper_95",
}


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


def long_form(queries, units, places=None, **values):
    """Return a data frame with one row per query and unit.

    Parameters
    ----------
    queries : array (n_queries,) or None
        Labels; None for a single row that is of no query.
    units : array (n_units,)
        Names.
    places : int array (n_queries, k) or None
        Which units the columns of the values are of; None for all, in their order.
    **values : array (n_queries, n_units or k) or None
        A column each; None is left out.
    """
    values = {name: column for name, column in values.items() if column is not None}
    if places is None:
        n_rows = len(next(iter(values.values())))
        places = np.tile(np.arange(len(units)), n_rows)
    else:
        n_rows, places = len(places), places.ravel()
    rows = {}
    # positions first: names may be tuples, of an index with several levels
    if queries is not None:
        repeats = len(places) // n_rows
        rows["query"] = pd.Index(queries, tupleize_cols=False).repeat(repeats)
    rows["unit"] = pd.Index(units, tupleize_cols=False).take(places)
    rows |= {name: column.ravel() for name, column in values.items()}
    return pd.DataFrame(rows)


def ends(values, n_best, n_worst):
    """Return the positions (n, n_best + n_worst) of the largest and smallest values.

    From the largest to the smallest; of equal values the first comes first. NaN is
    last, as if it were the smallest.
    """
    order = np.argsort(-values, axis=1, kind="stable")
    return np.hstack([order[:, :n_best], order[:, order.shape[1] - n_worst :]])


def top_form(queries, units, places, n_best, data=None, **values):
    """Return a data frame of the units that raise and lower each query most.

    Parameters
    ----------
    queries : array (n_queries,)
    units : array (n_units,)
        Names.
    places : int array (n_queries, k)
        Which units the values are of, in the order of `ends`.
    n_best : int
        How many of them raise the outcome most.
    data : DataFrame with a row for each unit, in their order, or None
    **values : array (n_queries, k) or None
        A column each; None is left out.
    """
    n_worst = places.shape[1] - n_best
    ranks = np.concatenate([np.arange(n_best) + 1, np.arange(-n_worst, 0)])
    table = long_form(queries, units, places, **values)
    table.insert(1, "rank", np.tile(ranks, len(places)))
    if data is None:
        return table
    rows = data.iloc[places.ravel()].reset_index(drop=True)
    return pd.concat([table, rows], axis=1)


def check_columns(data):
    """Raise unless this is a data frame whose columns can stand beside the result's."""
    if not isinstance(data, pd.DataFrame):
        raise ValueError(
            f"data must be a DataFrame with a row for each unit, got a "
            f"{type(data).__name__}. Wrap it: pd.DataFrame(data)."
        )
    taken = _COLUMNS & {*data.columns}
    if taken:
        raise ValueError(
            f"data has columns that the result has too: {sorted(taken)}. Rename them, "
            f"data.add_prefix('train_')."
        )


def units_named(units, names, named):
    """Return the positions (m,) of some units.

    Parameters
    ----------
    units : label or array-like of shape (m,)
        Names, or positions if the units have none.
    names : array (n_units,)
    named : bool
        Whether the names are labels, and not positions.

    Raises
    ------
    ValueError
        If there are none, or one is unknown.
    """
    single = isinstance(units, str | bytes) or np.ndim(units) == 0
    wanted = pd.Index([units] if single else list(units), tupleize_cols=False)
    if not len(wanted):
        raise ValueError("units is empty: name at least one.")
    names = pd.Index(names if named else np.arange(len(names)), tupleize_cols=False)
    if wanted.dtype.kind == "b" and names.dtype.kind != "b":
        raise ValueError(
            "units is a mask: pass unit_names_[mask], or np.flatnonzero(mask) if the "
            "units have no names."
        )
    places = names.get_indexer(wanted)
    if (places < 0).any():
        unknown = wanted[places < 0][:5].tolist()
        what = (
            f"names such as {names[:3].tolist()} (unit_names_)"
            if named
            else f"no names: pass positions, from 0 to {len(names) - 1}"
        )
        raise ValueError(f"units holds {unknown}, and units have {what}.")
    return places


def some_queries(X, y, kept):
    """Return some of the queries, positions or a slice; all if ``kept`` is None."""
    return (X, y) if kept is None else (_safe_indexing(X, kept), y[kept])


def among_all(values, n_queries, kept, dtype):
    """Return results of some queries among those of all, NaN for the others."""
    if values is None:
        return None
    with np.errstate(all="ignore"):
        values = values.astype(dtype, copy=False)
    if kept is None:
        return values
    whole = np.full((n_queries, *values.shape[1:]), np.nan, dtype=dtype)
    whole[kept] = values
    return whole
