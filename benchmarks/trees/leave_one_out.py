"""One row left out of boosted trees: what is its effect, and who ranks it?

LightGBM with its defaults, 50 queries. In each of 24 random contexts, 95 % of the rows,
models are trained with and without each of 40 rows. The effect of a row is the mean
over the contexts; a single one is chaos. Rank correlation over rows, mean over queries,
± standard error over queries: of two contexts with each other; of the mean of 12 with
that of the other 12, from which the reliability of that of 24 follows
(Spearman-Brown), whose root no method can exceed; of one context with the mean of the
others, and of the rows left out of the model itself, as users would do; and of
attributions. Tables that are named have their rows replaced.

    OMP_NUM_THREADS=1 python -m benchmarks.trees.leave_one_out [table ...]
"""

import sys
import warnings

import numpy as np
from scipy.stats import spearmanr

from benchmarks._table import pm, reopen, write
from benchmarks.trees._cases import Case
from benchmarks.trees._peers import OwnTrees

TABLES = ("diabetes", "mroz", "boston")
N_CONTEXTS, N_LEFT_OUT = 24, 40


def ranked(first, second):
    """Return rank correlations (q,) of effects (q, k)."""
    pairs = zip(first, second, strict=True)
    found = np.array([spearmanr(*pair).statistic for pair in pairs])
    return found[np.isfinite(found)]


def without_each(weights, rows):
    """Return weights, and the same without each of the rows, (1 + k, n)."""
    found = np.tile(weights, (1 + len(rows), 1))
    found[1 + np.arange(len(rows)), rows] = 0
    return found


def in_contexts(case, rows):
    """Return effects (contexts, q, k) of rows."""
    rng, effects = np.random.RandomState(5), []
    for _ in range(N_CONTEXTS):
        weights = (rng.rand(case.n_rows) < 0.95).astype(float)
        weights[rows] = 1
        effects.append(effects_in(case, weights, rows))
    return np.array(effects)


def effects_in(case, weights, rows):
    outcomes = case.retrain(without_each(weights, rows))
    return (outcomes[0] - outcomes[1:]).T


def attributions(case):
    """Yield attributions (q, n)."""
    leaf = case.leaf_influence()
    yield OwnTrees(leaf, *case.queries).boost_in()
    yield leaf.attribute(*case.queries)
    for options in (
        {},
        {"inclusion": 1, "n_structures": 16},
        {"inclusion": 1, "n_structures": 64},
    ):
        influence = case.influence(n_halves=0, **options).fit(*case.rows)
        yield influence.attribute(*case.queries)


def measure(case):
    """Return the cells of a table."""
    rows = np.random.RandomState(3).permutation(case.n_rows)[:N_LEFT_OUT]
    effects = in_contexts(case, rows)
    mean, half = effects.mean(axis=0), N_CONTEXTS // 2
    pairs = [ranked(*effects[i : i + 2]).mean() for i in range(0, N_CONTEXTS, 2)]
    of_halves = ranked(effects[:half].mean(axis=0), effects[half:].mean(axis=0)).mean()
    reliability = 2 * of_halves / (1 + of_halves)
    others = (mean * N_CONTEXTS - effects) / (N_CONTEXTS - 1)
    each = [ranked(*pair).mean() for pair in zip(effects, others, strict=True)]
    itself = effects_in(case, np.ones(case.n_rows), rows)
    return [
        f"{np.mean(pairs):.3f}",
        f"{reliability:.2f}, {np.sqrt(max(reliability, 0)):.2f}",
        f"{np.mean(each):.3f}",
        pm(ranked(itself, mean)),
        *(pm(ranked(found[:, rows], mean)) for found in attributions(case)),
    ]


def main(names):
    warnings.simplefilter("ignore")
    table = reopen(
        "trees_leave_one_out",
        f"Rank correlation with mean effects of {N_LEFT_OUT} rows in {N_CONTEXTS} "
        "contexts",
        [
            *("table (rows)", "two contexts", "reliability, its root"),
            *("one context", "left out of the model itself", "BoostIn"),
            *("LeafInfluence", "inclusion=0.5", "inclusion=1"),
            "inclusion=1, 64 structures",
        ],
    )
    for name in names or TABLES:
        case = Case(name, "LightGBM")
        table.put(f"{name} ({case.n_rows})", *measure(case))
        write("trees_leave_one_out", table)


if __name__ == "__main__":
    main(sys.argv[1:])
