"""How many structures, and of models trained on which share of the rows?

LightGBM with its defaults; 200 halves really retrained, 50 queries, LDS of attributions
and of refits, without retrained halves. Credit and medpar were not looked at when the
defaults were chosen. Tables that are named have their rows replaced.

    OMP_NUM_THREADS=1 python -m benchmarks.trees.structures [table ...]
"""

import sys
import warnings

from benchmarks._data import N_SUBSETS
from benchmarks._table import reopen, write
from benchmarks.trees._cases import Case
from skattrib.evaluation import lds_score

TABLES = ("diabetes", "credit", "medpar")
WAYS = {
    **{f"{m}": {"n_structures": m} for m in (4, 8, 16, 32, 64)},
    **{f"{m} of 75 %": {"n_structures": m, "inclusion": 0.75} for m in (16, 64)},
}


def measure(case):
    """Return cells: LDS of attribute, and of predict_outcomes."""
    halves = case.halves(N_SUBSETS)
    truth = case.retrain(halves)
    for options in WAYS.values():
        influence = case.influence(n_halves=0, **options).fit(*case.rows)
        attributions = influence.attribute(*case.queries)
        predicted = influence.predict_outcomes(*case.queries, halves)
        lds = [
            lds_score(truth, found) for found in (halves @ attributions.T, predicted)
        ]
        yield ", ".join(f"{value:.3f}" for value in lds)


def main(names):
    warnings.simplefilter("ignore")
    title = "LDS of attribute, predict_outcomes, by number of structures"
    table = reopen("trees_structures", title, ["table (rows)", *WAYS])
    for name in names or TABLES:
        case = Case(name, "LightGBM")
        table.put(f"{name} ({case.n_rows})", *measure(case))
        write("trees_structures", table)


if __name__ == "__main__":
    main(sys.argv[1:])
