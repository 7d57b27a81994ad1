"""Names of rows, and results as tables."""

import numpy as np
import pandas as pd


def row_names(index, n_rows):
    """Return the labels of an index if they tell the rows apart, else positions."""
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
    rows |= {name: v.ravel() for name, v in values.items() if v is not None}
    return pd.DataFrame(rows)
