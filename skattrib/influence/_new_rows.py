"""What rows that were not there would change: the tangent, or the model, with them."""

import numpy as np
import pandas as pd
from scipy import sparse

from skattrib._validation import memory_cap
from skattrib.engine._functional import chunks

# Arrays of new rows and queries, or training rows, that are held at a time.
_COPIES = 32


class WithOneMore:
    """Weights (n_new, n + n_new) of the rows with each new one, formed when asked for.

    Parameters
    ----------
    weights : array of shape (n + n_new,)
        Of the rows without new ones, which are the last.
    n_new : int
    """

    def __init__(self, weights, n_new):
        self._weights, self._added = weights, np.eye(n_new, dtype=weights.dtype)

    def __len__(self):
        return len(self._added)

    def __getitem__(self, part):
        added = self._added[part]
        weights = np.repeat(self._weights[None], len(added), axis=0)
        weights[:, -added.shape[1] :] += added
        return weights


def values_of_new_rows(models, rows, new_rows, queries, outcome):
    """Return what each new row, added, changes in the mean outcome, (n_new,).

    The rows to be added have weight 0 in the tangents, or refits, that are made of all,
    with the damping and the metric of those of the training rows.

    Parameters
    ----------
    models : list of LinearModel or ExactModel
        Over which the outcome is averaged.
    rows : tuple of X, y, weights
        Training rows.
    new_rows : tuple of X, y
    queries : tuple of X, y
    outcome : str or callable
    """
    (X, y, weights), (X_new, y_new) = rows, new_rows
    n_rows, n_queries = len(y), len(queries[1])
    at_once = int(memory_cap() / (8 * _COPIES * max(n_rows, n_queries)))
    values = []
    # as many as there are rows: each time the system of all is solved anew
    for part in chunks(len(y_new), max(1, min(at_once, n_rows))):
        of_part = y_new[part]
        extended = (
            stacked(X, X_new[part]),
            np.concatenate([y, of_part]),
            np.concatenate([weights, np.zeros(len(of_part), dtype=weights.dtype)]),
        )
        added = WithOneMore(extended[2], len(of_part))
        each_model = []
        for model in models:
            wider = model.with_rows(*extended, added)
            lost = wider.ask(*queries, outcome, len(added)).attributions(
                wider.steps(added)
            )
            each_model.append(-lost.mean(axis=0))
        values.append(np.mean(each_model, axis=0))
    return np.concatenate(values)


def stacked(rows, further):
    """Return rows, and further ones below them, as what they are."""
    if sparse.issparse(rows):
        return sparse.vstack([rows, further], format="csr")
    if isinstance(rows, pd.DataFrame):
        if not isinstance(further, pd.DataFrame):  # an array, taken in their order
            further = pd.DataFrame(further, columns=rows.columns)
        return pd.concat([rows, further], ignore_index=True)
    if rows.ndim == 3 and rows.shape[2] != further.shape[2]:  # texts, in tokens
        width = max(rows.shape[2], further.shape[2])
        rows, further = (_widened(some, width) for some in (rows, further))
    return np.concatenate([rows, further])


def _widened(rows, width):
    """Return rows of tokens, of which further ones do nothing."""
    found = np.repeat(rows[..., -1:], width, axis=2)
    found[:, 1] = np.minimum(rows[:, 1].min(), 0)  # none counts, or is looked at
    found[..., : rows.shape[2]] = rows
    return found
