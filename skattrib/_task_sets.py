"""Which tasks to keep and what they are worth, as far as numbers alone decide.

Folds, values of tasks from attributions, and searches through sets of tasks belong
here; attributions and outcomes are predicted by attributors, in `feature_selection`.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from skattrib.engine._losses import SetOutcome

# Of the rows of a task, this share is cut off at either end before the mean: a few rows
# that are answered wrongly with confidence outweigh the others. Chosen, as the median
# over the other tasks was, by `python -m benchmarks.surrogates.selection`.
TRIMMED = 0.1


def refuse_sets(attributor):
    """Raise if the outcome that an attributor has is no outcome of single rows."""
    outcome = getattr(attributor, "outcome", None)
    if isinstance(outcome, SetOutcome):
        raise ValueError(
            f"attributor has outcome={outcome!r}, which is of all queries together: "
            "tasks are judged by outcomes of single rows, such as 'log_likelihood'. "
            "For a set, rank them by "
            "attributor.fit(X, y, tasks=tasks).attribute(X_val, y_val)."
        )


def are_rows(codes):
    """Return whether every row is a task of its own."""
    return len(np.unique(codes)) == len(codes)


def draw_folds(codes, n_folds, rng):
    """Return the fold of each row; a task's rows are spread over the folds.

    Tasks of one row are always trained on: their fold is -1. If every row is a task,
    they are drawn as if they were of one.
    """
    if are_rows(codes):
        codes = np.zeros_like(codes)
    folds = np.full(len(codes), -1)
    n_drawn = 0
    for code in np.unique(codes):
        rows = rng.permutation(np.flatnonzero(codes == code))
        if len(rows) > 1:
            folds[rows] = (n_drawn + np.arange(len(rows))) % n_folds
            n_drawn += len(rows)
    return folds


class Judges(NamedTuple):
    """The rows that judge: the task and fold of each, tasks being None if trusted."""

    groups: np.ndarray | None
    folds: np.ndarray
    rows: np.ndarray | None
    are_rows: bool

    @classmethod
    def of(cls, plan, codes, n_trusted, n_folds, rng):
        if plan[0][1] is None:
            parts = rng.permutation(n_trusted) % n_folds
            return cls(None, parts, None, are_rows(codes))
        rows = np.concatenate([judging for _, judging in plan])
        folds = np.repeat(np.arange(len(plan)), [len(judging) for _, judging in plan])
        # single rows judge together: a median over them would see few effects
        groups = np.full(len(rows), -1) if are_rows(codes) else codes[rows]
        return cls(groups, folds, codes[rows], are_rows(codes))

    def parts(self):
        return [self.folds == fold for fold in np.unique(self.folds)]

    def groups_of(self, part):
        return None if self.groups is None else self.groups[part]

    def are_of(self, support):
        """Return which rows are of tasks kept, or trusted."""
        if self.rows is None:
            return np.ones(len(self.folds), dtype=bool)
        return support[self.rows]


def trimmed_mean(values):
    """Return the trimmed mean of each column of (n_rows, m); NaN is left out."""
    values = np.sort(values, axis=0)  # NaN at the end
    n_known = (~np.isnan(values)).sum(axis=0)
    n_cut = (TRIMMED * n_known).astype(int)
    place = np.arange(len(values))[:, None]
    is_kept = (place >= n_cut) & (place < n_known - n_cut)
    total = np.where(is_kept, values, 0).sum(axis=0)
    n_kept = is_kept.sum(axis=0)
    return np.where(n_kept > 0, total / np.maximum(n_kept, 1), np.nan)


def judge(values, groups, owners):
    """Return what columns (n_rows, m) of effects are worth to rows of other tasks.

    Parameters
    ----------
    values : ndarray of shape (n_rows, m)
        Effects on each row; NaN if unknown.
    groups : ndarray of shape (n_rows,) or None
        Task of each row, -1 if of none; None: rows that can be trusted.
    owners : ndarray of shape (m,)
        Task whose effect a column is.

    Returns
    -------
    ndarray of shape (m,)
        Median over the other tasks of the trimmed mean over the rows of each; the mean
        over rows that can be trusted.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN|Mean of empty", RuntimeWarning)
        if groups is None:
            return np.nanmean(values, axis=0)
        judges = np.unique(groups)
        verdicts = np.array([trimmed_mean(values[groups == code]) for code in judges])
        verdicts[judges[:, None] == owners] = np.nan
        return np.nanmedian(verdicts, axis=0)


def spread(values):
    """Return the standard deviation of columns, NaN with fewer than two numbers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Degrees of freedom", RuntimeWarning)
        return np.nanstd(values, axis=0, ddof=1)


def largest(values, n_kept):
    """Return which of the values (n_tasks,) are among the largest."""
    support = np.zeros(len(values), dtype=bool)
    support[np.argsort(-values, kind="stable")[:n_kept]] = True
    return support


def greedy(gain, n_tasks, n_kept):
    """Return the set (of n_kept tasks) with the best value that two searches visit.

    One drops tasks from all, the other adds to none; of equal sets the larger wins.
    A set's value is the sum of the gains that lead from all tasks to it.

    Parameters
    ----------
    gain : callable
        ``gain(current, candidates, changed)``: by how much each of the candidates
        (m, n_tasks) is better than the current set (n_tasks,), from which it differs by
        the task changed (m,). The search that adds compares single tasks with all.
    n_tasks : int
    n_kept : int or None

    Returns
    -------
    ndarray of bool, shape (n_tasks,)
    """
    best_value, best_set = -np.inf, None
    for present in (True, False):
        path = _search(gain, n_tasks, present)
        # the search that adds ends with all tasks, whose value is 0
        all_tasks = path[0][0] if present else path[-1][0]
        for value, current in path:
            if n_kept in (None, current.sum()) and value - all_tasks > best_value:
                best_value, best_set = value - all_tasks, current
    return best_set


def _search(gain, n_tasks, present):
    """Return values and sets on the way from all tasks to one, or from one to all."""
    current, value = np.full(n_tasks, present), 0.0
    path = []

    if present:
        path.append((value, current))
    for _ in range(n_tasks - present):
        changed = np.flatnonzero(current == present)
        candidates = np.repeat(current[None], len(changed), axis=0)
        candidates[np.arange(len(changed)), changed] = not present
        start = current if current.any() else ~current
        gains = gain(start, candidates, changed)
        current, value = candidates[np.argmax(gains)], value + np.max(gains)
        path.append((value, current))
    return path
