"""Do attributions rank really retrained models? DualInfluence on real data.

Truth: 200 half subsets and every leave-one-out for each of 3 training seeds, all
really retrained. LDS is the mean over 50 queries of the rank correlation over
subsets, of `attribute` (added up over the units present) and of `predict_outcomes`;
95 % intervals come from a bootstrap over queries and subsets. Outcomes are margins
(−½ error² for diabetes). "shuffles" asks what one split says: the digits, with the
rows shuffled anew six times; "refit" is predicted for whole subsets, the others are
`attribute` added up.

    python -m benchmarks.ranking.fidelity [dataset ...] [shuffles]
"""

import sys

import numpy as np
import sklearn

from benchmarks._data import DATA, Problem, shuffled_digits
from benchmarks._processes import wall_seconds
from benchmarks._table import Table, pm, write
from benchmarks.ranking._duals import REMOVALS, fitted, predicted
from skattrib.evaluation import lds_score

# Predictions that factor a large matrix per subset are made for the first ones only.
N_SLOW = 60
N_SHUFFLES = 6


def duals(problem, removal):
    """Return the attributor of each seed."""
    nets = problem.networks()
    return [fitted(net, *problem.rows, removal, problem.outcome) for net in nets]


def cells(problem, removal):
    """Return what a kind of removal gives for a data set."""
    models = duals(problem, removal)
    whole = [predicted(dual, *problem.queries, problem.weights) for dual in models]
    of_subsets = problem.lds(whole, np.mean(whole, axis=0))
    if removal == "refit":
        return ["", "", *of_subsets, "", ""]

    found = [dual.attribute(*problem.queries) for dual in models]
    mean = np.mean(found, axis=0)
    added = problem.lds([problem.added(A) for A in found], problem.added(mean))
    return [*added, *of_subsets, *problem.leave_one_out(found, mean)]


def report(names):
    kinds = ("attribute", "predict_outcomes", "leave-one-out")
    titles = [f"{kind}: {s}" for kind in kinds for s in ("same seed", "3 seeds")]
    table = Table("DualInfluence", ["data (rows)", "removal", *titles])
    for name in names:
        problem = Problem(name)
        if name == "mnist":
            problem.weights = problem.weights[:N_SLOW]
        pairs = zip(problem.subsets, np.roll(problem.subsets, 1, axis=0), strict=True)
        others = np.mean([lds_score(*pair) for pair in pairs])
        print(f"{name}: one seed ranks another by {others:.3f}")
        for removal in REMOVALS:
            if (removal, name) != ("refit", "mnist"):
                took, found = wall_seconds(cells, problem, removal)
                label = f"{name} ({problem.n_rows})"
                table.add(label, removal, *found, note=f"{took:.0f} s")


def shuffled_scores(seed):
    """Return LDS of each removal, of one model and of three: (removals, 2)."""
    X, y, _ = shuffled_digits(seed)
    problem = Problem("digits", (X[:512], y[:512], X[1000:1050], y[1000:1050]))
    found = []
    for removal in REMOVALS:
        each = [
            predicted(dual, *problem.queries, problem.weights)
            if removal == "refit"
            else problem.added(dual.attribute(*problem.queries))
            for dual in duals(problem, removal)
        ]
        own = [lds_score(*pair) for pair in zip(problem.subsets, each, strict=True)]
        together = lds_score(problem.subsets.mean(axis=0), np.mean(each, axis=0))
        found.append((np.mean(own), together))
        print(seed, removal, *(f"{value:.3f}" for value in found[-1]), flush=True)
    return found


def shuffles():
    found = np.array([shuffled_scores(seed) for seed in range(N_SHUFFLES)])
    table = Table(
        f"LDS over {N_SHUFFLES} shuffles of the digits, ± standard error",
        "removal | same seed | 3 seeds | same seed, by shuffle",
    )
    for removal, (same, together) in zip(REMOVALS, found.transpose(1, 2, 0)):
        by_shuffle = " ".join(f"{value:.3f}" for value in same)
        table.add(removal, pm(same), pm(together), by_shuffle)
    write("splits", table)


if __name__ == "__main__":
    names = sys.argv[1:] or [*DATA, "shuffles"]
    # mnist: 10,000 outputs, kernels of 400 MB
    with sklearn.config_context(working_memory=4096):
        report([name for name in names if name != "shuffles"])
    if "shuffles" in names:
        shuffles()
