"""What does TreeInfluence take, and how does that grow with rows, trees and queries?

LightGBM with its defaults on made rows with 20 columns, on one thread; CPU seconds of
fit, of attribute and of the refit of one half, over those of one training (the median
of three), and the peak of the memory of a process of its own, beyond the rows. With no
retrained halves unless said. Rows whose size is named are measured anew.

    OMP_NUM_THREADS=1 python -m benchmarks.trees.sizes [rows ...]
"""

import sys
import warnings

import lightgbm
import numpy as np
from sklearn.base import clone
from sklearn.datasets import make_classification, make_regression

from benchmarks._processes import in_own_process, in_turns, peak_from_here, seconds
from benchmarks._table import reopen, write
from skattrib import TreeInfluence
from skattrib.evaluation import make_weightings

MEGABYTE = 2**20
N_REFITS = 8
#: task, rows, trees, queries, retrained halves
SETTINGS = [
    *(("two classes", n, 100, 100, 0) for n in (2000, 5000, 10_000, 20_000, 50_000)),
    *(("two classes", 10_000, trees, 100, 0) for trees in (50, 200, 400)),
    *(("two classes", 10_000, 100, queries, 0) for queries in (10, 1000)),
    ("two classes", 50_000, 100, 100, 64),
    ("regression", 50_000, 100, 100, 0),
    ("regression", 50_000, 100, 100, 64),
]


def data(task, n_rows, n_queries):
    """Return rows, targets, and those of queries."""
    n = n_rows + n_queries
    if task == "regression":
        X, y = make_regression(n, 20, n_informative=10, noise=10, random_state=0)
    else:
        X, y = make_classification(n, 20, n_informative=10, random_state=0)
    return X[:n_rows], y[:n_rows], X[n_rows:], y[n_rows:]


def measure(task, n_rows, n_trees, n_queries, n_halves):
    """Return seconds of a training, fit, attribute and a refit, and bytes."""
    warnings.simplefilter("ignore")
    X, y, *queries = data(task, n_rows, n_queries)
    kind = "LGBMRegressor" if task == "regression" else "LGBMClassifier"
    options = {"n_jobs": 1, "verbosity": -1, "random_state": 0}
    model = getattr(lightgbm, kind)(n_estimators=n_trees, **options)
    training = np.median(in_turns([lambda: clone(model).fit(X, y)], 3))
    influence = TreeInfluence(model, n_halves=n_halves, random_state=0)
    peak = peak_from_here()
    fit, _ = seconds(influence.fit, X, y)
    attribute, _ = seconds(influence.attribute, *queries)
    risen = peak()
    refit = None
    if not n_halves:
        halves = make_weightings(n_rows, N_REFITS, random_state=1)
        refit = seconds(influence.predict_outcomes, *queries, halves)[0] / N_REFITS
    return training, fit, attribute, refit, risen


def main(names):
    names = [name.replace(",", "") for name in names]
    table = reopen(
        "trees_costs",
        "Cost in trainings",
        [
            *("task", "rows", "trees", "queries", "halves"),
            *("a training", "fit", "attribute", "both", "a refit", "peak, MB"),
        ],
    )
    for setting in SETTINGS:
        if names and str(setting[1]) not in names:
            continue
        task, n_rows, *others = setting
        training, fit, attribute, refit, peak = in_own_process(measure, *setting)
        table.put(
            *(task, f"{n_rows:,}", *others),
            f"{training:.2f} s",
            f"{fit / training:.1f}",
            f"{attribute / training:.1f}",
            f"{(fit + attribute) / training:.1f}",
            "" if refit is None else f"{refit / training:.2f}",
            f"{peak / MEGABYTE:,.0f}",
            n_keys=5,
        )
        write("trees_costs", table)


if __name__ == "__main__":
    main(sys.argv[1:])
