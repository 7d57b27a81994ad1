"""Which tasks to keep and which rows to hold out, as far as numbers alone decide.

Searches through sets of tasks belong here, and draws of rows by task; what the sets are
worth is predicted by an attributor, in `feature_selection`.
"""

import numpy as np


def hold_out(codes, fraction, rng):
    """Hold out a part of every task that has two rows; return both halves.

    If every row is a task, they are drawn as if they were of one.
    """
    if len(np.unique(codes)) == len(codes):
        codes = np.zeros_like(codes)
    held_out = np.concatenate(
        [
            rows[: int(np.ceil(fraction * (len(rows) - 1)))]
            for code in range(codes.max() + 1)
            for rows in [rng.permutation(np.flatnonzero(codes == code))]
        ]
    )
    if not len(held_out):
        raise ValueError(
            f"n_samples={len(codes)}: no rows can be held out as queries, as no "
            "task has 2. Pass X_val and y_val."
        )
    train = np.setdiff1d(np.arange(len(codes)), held_out)
    return train, np.sort(held_out)


def largest(values, n_kept):
    """Return which of the values (n_tasks,) are among the largest."""
    support = np.zeros(len(values), dtype=bool)
    support[np.argsort(-values, kind="stable")[:n_kept]] = True
    return support


def greedy(value, n_tasks, n_kept):
    """Return the set (of n_kept tasks) with the best value that two searches visit.

    One drops tasks from all, the other adds to none; of equal sets the larger wins.
    """
    best, found = -np.inf, None
    for present in (True, False):
        current = np.full(n_tasks, present)
        while True:
            if current.any() and n_kept in (None, current.sum()):
                here = value(current[None].astype(float))[0]
                if here > best:
                    best, found = here, current
            changeable = np.flatnonzero(current == present)
            if not len(changeable):
                break
            candidates = np.repeat(current[None], len(changeable), axis=0)
            candidates[np.arange(len(changeable)), changeable] = not present
            if not candidates.any(axis=1).all():
                break
            current = candidates[np.argmax(value(candidates.astype(float)))]
    return found
