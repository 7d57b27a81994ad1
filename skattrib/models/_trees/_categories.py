"""Categories of the columns of a table: trees know only those of training rows."""

from __future__ import annotations

from typing import Any

import pandas as pd

Categories = dict[Any, frozenset[Any]]


def known_categories(X: Any) -> Categories:
    """Return the categories that occur in each column of that kind; {} if no table."""
    if not isinstance(X, pd.DataFrame):
        return {}
    return {
        column: frozenset(X[column].dropna().unique())
        for column in X.columns
        if isinstance(X[column].dtype, pd.CategoricalDtype)
    }


def check_categories(known: Categories, X: Any, name: str = "X_query") -> None:
    """Raise ValueError if a table has categories that no training row has.

    Libraries take these for missing values, some of them with a warning, and some take
    texts for categories.
    """
    for column, categories in known.items():
        if not isinstance(X, pd.DataFrame) or column not in X.columns:
            continue  # the library's business
        unknown = frozenset(X[column].dropna().unique()) - categories
        if unknown:
            found = sorted(unknown, key=str)[:5]
            raise ValueError(
                f"{name} has categories in column {column!r} that no training row "
                f"has: {found}. Leave these rows out, or set them to NaN if they are "
                "to count as missing."
            )
