"""TreeInfluence and its peers on retrained halves: LDS, sizes, intervals and costs.

Six tables, ensembles with their libraries' defaults (XGBoost: 100 trees, learning rate
0.1), one thread, 50 queries, 200 halves in complementary pairs, really retrained.
Halves of TreeInfluence are others, and so are those of ridge regression
(`LinearSurrogate` at halves). Ridge on 400 and 800 retrainings, and 256 retrained
halves, are measured for LightGBM on the small tables only.
LeafInfluence is TreeInfluence with ``n_structures=1, inclusion=1,
removal="derivative"``; BoostIn and the kernel of trees are those of arXiv:2205.00359.
The second table has the slope of true outcomes on predicted ones, all queries together,
how many outcomes of the halves are inside their 95 % intervals, and CPU seconds in
trainings of the model. The third compares attributions with linear effects by least
squares on thousands of other halves, for LightGBM on two tables.
Libraries and tables that are named have their rows replaced, the others keep theirs.

    OMP_NUM_THREADS=1 python -m benchmarks.trees.board [library ...] [table ...]
"""

import sys
import warnings
from types import SimpleNamespace

import numpy as np
from sklearn.base import clone, is_regressor

from benchmarks._data import N_SUBSETS
from benchmarks._processes import in_turns, seconds
from benchmarks._table import reopen, write
from benchmarks.posterior._settings import Truth, centred, metrics
from benchmarks.trees._cases import (
    FORESTS,
    LIBRARIES,
    N_ROWS,
    Case,
    additive_limits,
    slope,
)
from benchmarks.trees._peers import OwnTrees, knn_shapley
from skattrib import LinearSurrogate
from skattrib._posterior._gaussian import half_width  # no public name
from skattrib.evaluation import lds_score

TABLES = ("diabetes", "mroz", "boston", "beps", "breast cancer", "churn")
RIDGES = (200, 400, 800)
#: halves retrained by TreeInfluence: none, the default, many
HALVES = (0, "auto", 256)
#: halves that effects come from
EFFECTS = {("LightGBM", "diabetes"): 4000, ("LightGBM", "mroz"): 4000}


def _is_cheap(case):
    """Return whether models are retrained more often than for the others."""
    return case.library == "LightGBM" and case.n_rows <= 1000


def fitted(case, n_halves):
    """Return an attributor, its attributions and their CPU seconds."""
    influence = case.influence(n_halves=n_halves)

    def work():
        return influence.fit(*case.rows).attribute(*case.queries)

    took, attributions = seconds(work)
    return influence, attributions, took


def peers(case):
    """Return attributions by name, from the model alone."""
    leaf = case.leaf_influence()
    own = OwnTrees(leaf, *case.queries)
    random = np.random.RandomState(0).randn(len(case.queries[1]), case.n_rows)
    return {
        "random": random,
        "KNN-Shapley": knn_shapley(
            *case.rows, *case.queries, regression=is_regressor(case.estimator)
        ),
        "tree kernel": own.tree_kernel(),
        "BoostIn": None if case.library in FORESTS else own.boost_in(),
        "LeafInfluence": leaf.attribute(*case.queries),
    }


def surrogates(case):
    """Yield attributions by ridge regression on halves, few to many."""
    n = RIDGES if _is_cheap(case) else RIDGES[:1]
    halves = case.halves(n[-1], random_state=4)
    outcomes = case.retrain(halves)
    for m in n:
        ridge = LinearSurrogate().fit(halves[:m], outcomes[:m])
        yield ridge.attribution("banzhaf", return_std=False)


def measure(case):
    """Return the cells of the table of ranks, and of that of sizes."""
    halves = case.halves(N_SUBSETS)
    truth = case.retrain(halves)
    lds = {
        name: None if a is None else lds_score(truth, halves @ a.T)
        for name, a in peers(case).items()
    }
    of_ridge = [lds_score(truth, halves @ a.T) for a in surrogates(case)]
    training = np.median(in_turns([lambda: clone(case.estimator).fit(*case.rows)], 3))
    by_attribute, by_predict, slopes, inside, costs = [], [], [], [], []
    for n_halves in HALVES if _is_cheap(case) else HALVES[:2]:
        influence, attributions, took = fitted(case, n_halves)
        by_attribute.append(lds_score(truth, halves @ attributions.T))
        asked = *case.queries, halves
        if n_halves == 0:
            slopes.append(slope(halves @ attributions.T, truth))
            refit, predicted = seconds(influence.predict_outcomes, *asked)
            each = refit / len(halves) / training
        else:
            predicted, std = influence.predict_outcomes(*asked, return_std=True)
            inside.append((np.abs(truth - predicted) < half_width(std)).mean())
        by_predict.append(lds_score(truth, predicted))
        slopes.append(slope(predicted, truth))
        costs.append(took / training)
    ranks = [
        *("" if value is None else f"{value:.3f}" for value in lds.values()),
        *(" → ".join(f"{v:.3f}" for v in one) for one in (by_attribute, by_predict)),
        ", ".join(f"{value:.3f}" for value in of_ridge),
        ", ".join(f"{value:.3f}" for value in additive_limits(truth)),
    ]
    sizes = [
        f"{slopes[0]:.2f}",
        " → ".join(f"{value:.2f}" for value in slopes[1:]),
        ", ".join(f"{value:.3f}" for value in inside),
        f"{1000 * training:.0f} ms",
        ", ".join(f"{value:.0f}" for value in costs),
        f"{each:.2f}",
    ]
    return ranks, sizes


def effects(case, n_truth):
    """Return the cells of the table of effects."""
    halves = case.halves(n_truth, random_state=5)
    truth = Truth(halves, case.retrain(halves))
    alone = case.influence(n_halves=0).fit(*case.rows)
    found = [_compared(alone, case, truth, normal=True)]
    for n_halves in HALVES[1:]:
        influence = case.influence(n_halves=n_halves).fit(*case.rows)
        found.append(_compared(influence, case, truth))
    shown = ("95 %", "68 %", "width", "slope", "sd of own slopes", "correlation")
    cells = [" → ".join(f"{one[what]:.3f}" for one in found) for what in shown]
    return [f"{n_truth}, {truth.relative_error:.2f}", *cells]


def _compared(influence, case, truth, **options):
    """Return metrics of the queries whose attributions are not all 0."""
    found, std = influence.attribute(*case.queries, return_std=True)
    some = found.any(axis=1)
    known = SimpleNamespace(effects=truth.effects[some], errors=truth.errors[some])
    if not some.all():
        print(case.table, "attributions of", (~some).sum(), "queries are 0", flush=True)
    return metrics(centred(found[some]), std[some], known, **options)


def main(names):
    warnings.simplefilter("ignore")
    tables = [name for name in TABLES if name in names] or TABLES
    libraries = [name for name in LIBRARIES if name in names] or LIBRARIES
    keys = ["library", "table (rows)"]
    ranks = reopen(
        "trees_board",
        "LDS; attribute and predict_outcomes with 0 → 64 → 256 retrained halves",
        [
            *keys,
            *("random", "KNN-Shapley", "tree kernel", "BoostIn", "LeafInfluence"),
            *("attribute", "predict_outcomes", "ridge on 200, 400, 800"),
            "limits of sums",
        ],
    )
    sizes = reopen(
        "trees_sizes_of_outcomes",
        "Slopes of true outcomes on predicted ones with 0 → 64 → 256 retrained halves, "
        "coverage of 95 % intervals with 64, 256, and costs in trainings",
        [
            *keys,
            *("attribute: slope", "predict_outcomes: slope", "coverage"),
            *("a training", "fit and attribute with 0, 64, 256", "a refit"),
        ],
    )
    linear = reopen(
        "trees_effects",
        "Attributions against effects, with 0 → 64 → 256 retrained halves",
        [
            *keys,
            *("halves of the truth, its error", "95 %", "68 %", "width", "slope"),
            *("sd of own slopes", "correlation"),
        ],
    )
    for library in libraries:
        for table in tables:
            if library in FORESTS and N_ROWS[table] > 1000:
                continue
            case = Case(table, library)
            key = library, f"{table} ({case.n_rows})"
            of_ranks, of_sizes = measure(case)
            ranks.put(*key, *of_ranks, n_keys=2)
            sizes.put(*key, *of_sizes, n_keys=2)
            write("trees_board", ranks)
            write("trees_sizes_of_outcomes", sizes)
            if (library, table) in EFFECTS:
                cells = effects(case, EFFECTS[library, table])
                linear.put(*key, *cells, n_keys=2)
                write("trees_effects", linear)


if __name__ == "__main__":
    main(sys.argv[1:])
