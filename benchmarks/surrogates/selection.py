"""Does `TaskWeightSelector` drop sources of noise, without and with trusted rows?

Rows of wine, digits or diabetes come from six or eight sources; the labels of two or
three of them are drawn at random, the targets of diabetes shuffled. The selector is
told how many to keep. A try counts if it drops those with noise and no other.

The first table is about how attributions, cross-fitted over three folds, become values
of the sources: a mean, trimmed mean or median over the rows of each source, then over
all sources, or over the others, whose mean or median is taken. The second one is about
the selector, as it is.

    python -m benchmarks.surrogates.selection
"""

import warnings
from itertools import product

import numpy as np
from scipy.stats import trim_mean
from sklearn.base import clone
from sklearn.model_selection import StratifiedKFold

from benchmarks._data import DATA, MEMORY, network
from benchmarks._table import Table, write
from skattrib import KernelSurrogateAttributor, TaskWeightSelector

N_SEEDS = 10
# wine has no more
N_TRUSTED = {"wine": 50, "digits": 100, "diabetes": 100}
#: data set, `at` of the attributor, rows, sources, those with noise, epochs
SETTINGS = [
    ("wine", "loo", 120, 6, [1, 4], 20),
    ("wine", "banzhaf", 120, 6, [1, 4], 20),
    ("digits", "loo", 320, 8, [1, 4, 6], 20),
    ("digits", "banzhaf", 320, 8, [1, 4, 6], 20),
    ("diabetes", "loo", 300, 6, [1, 4], 15),
    ("diabetes", "banzhaf", 300, 6, [1, 4], 15),
]
ROWS = {
    "mean": lambda A: A.mean(axis=0),
    "trimmed mean": lambda A: trim_mean(A, 0.1),
    "median": lambda A: np.median(A, axis=0),
}
SOURCES = {"mean": np.mean, "median": np.median}


def sources(name, n_rows, n_sources, noisy, seed):
    """Return rows, targets, their sources, and trusted rows and targets."""
    X, y = DATA[name][0]()
    rng = np.random.RandomState(seed)
    order = rng.permutation(len(y))
    X, y = X[order], y[order]
    first, trusted = slice(n_rows), slice(n_rows, n_rows + N_TRUSTED[name])

    tasks = rng.randint(0, n_sources, n_rows)
    targets = y[first].copy()
    rows = np.flatnonzero(np.isin(tasks, noisy))
    if name == "diabetes":
        targets[rows] = rng.permutation(targets[rows])
    else:
        targets[rows] = rng.randint(0, y.max() + 1, len(rows))
    return X[first], targets, tasks, X[trusted], y[trusted]


def cross_fitted(attributor, X, y, tasks, seed):
    """Return attributions (n, n_sources) by attributors that have not seen the row."""
    found = np.zeros((len(y), tasks.max() + 1))
    folds = StratifiedKFold(3, shuffle=True, random_state=seed)
    for train, held_out in folds.split(X, tasks):
        attributor = clone(attributor).fit(X[train], y[train], tasks=tasks[train])
        found[held_out] = attributor.attribute(X[held_out], y[held_out])
    return found


def values(attributions, tasks, over_rows, over_sources, others):
    """Return the values of the sources."""
    verdicts = np.array([over_rows(attributions[tasks == t]) for t in np.unique(tasks)])
    if not others:
        return over_sources(verdicts, axis=0)
    return np.array(
        [
            over_sources(np.delete(verdicts[:, source], source))
            for source in range(len(verdicts))
        ]
    )


def drops_noise(attributor, data, wanted, strategy, *, trusted):
    """Return whether the selector drops the noise and nothing else, and if it warns."""
    X, y, tasks, X_val, y_val = data
    judges = {"X_val": X_val, "y_val": y_val} if trusted else {}
    selector = TaskWeightSelector(
        attributor,
        n_tasks_to_select=int(wanted.sum()),
        strategy=strategy,
        at=attributor.at,
        random_state=attributor.random_state,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        selector.fit(X, y, tasks=tasks, **judges)
    warned = any("spread over folds" in str(warning.message) for warning in caught)
    return (selector.support_ == wanted).all(), warned


def main():
    warnings.simplefilter("ignore")
    ways = list(product(ROWS, SOURCES, [False, True]))
    by_value = Table(
        f"Tries of {N_SEEDS} that drop the noise, by the value of a source",
        "data | at | value of a source | tries",
    )
    by_selector = Table(
        f"Tries of {N_SEEDS} in which the selector drops the noise; in brackets those "
        "that warn",
        "data | at | marginal | greedy | marginal, trusted rows | greedy, trusted rows",
    )
    uses = list(product([False, True], ["marginal", "greedy"]))
    for name, at, n_rows, n_sources, noisy, epochs in SETTINGS:
        wanted = np.isin(np.arange(n_sources), noisy, invert=True)
        by_way, by_use = np.zeros(len(ways), int), np.zeros((len(uses), 2), int)
        for seed in range(N_SEEDS):
            data = sources(name, n_rows, n_sources, noisy, seed)
            attributor = KernelSurrogateAttributor(
                network(name, max_epochs=epochs),
                n_subsets=60,
                at=at,
                memory=MEMORY,
                random_state=seed,
            )
            found = cross_fitted(attributor, *data[:3], seed)
            for place, (rows, over, others) in enumerate(ways):
                worth = values(found, data[2], ROWS[rows], SOURCES[over], others)
                by_way[place] += wanted[np.argsort(worth)[len(noisy) :]].all()
            for place, (trusted, strategy) in enumerate(uses):
                by_use[place] += drops_noise(
                    attributor, data, wanted, strategy, trusted=trusted
                )

        by_selector.add(name, at, *(f"{right} ({warns})" for right, warns in by_use))
        for (rows, over, others), right in zip(ways, by_way, strict=True):
            which = "other" if others else "all"
            way = f"{over} over {which} sources of the {rows} over rows"
            by_value.add(name, at, way, right)
    write("selection", by_value, by_selector)


if __name__ == "__main__":
    main()
