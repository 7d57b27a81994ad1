"""How much does one split say? DualInfluence on several shuffles of the digits.

The setting of `benchmarks.ranking.fidelity` (512 rows, 50 queries, margins, 200 half
subsets, three training seeds), with the rows shuffled anew. All parameters have their
defaults, `removal` excepted; "refit" is predicted for whole subsets, the others are
`attribute` added up over the rows present.

    python -m benchmarks.ranking.splits [number of shuffles]
"""

import sys

import numpy as np

from benchmarks import _data
from benchmarks._table import Table, pm, write
from benchmarks.ranking._duals import fitted, predicted
from skattrib.evaluation import lds_score


def scores(shuffle):
    """Return LDS by removal: mean of one model, and of three seeds together."""
    X, y, _ = _data.shuffled_digits(shuffle)
    (X, Xq), (y, yq) = ((part[:512], part[1000:1050]) for part in (X, y))
    net, found = _data.network(), {}
    weights = _data.half_subsets(len(X))
    truth = _data.retrained(net, X, y, weights, Xq, yq, "margin")

    for removal in ("newton", "influence", "refit"):
        each = [
            predicted(dual, Xq, yq, weights, "margin")
            if removal == "refit"
            else weights @ dual.attribute(Xq, yq).T
            for dual in fitted(net, X, y, removal, "margin")
        ]
        own = _data.lds_by_seed(truth, each)
        together = lds_score(truth.mean(axis=0), np.mean(each, axis=0))
        found[removal] = np.mean(own), together
        print(shuffle, removal, *(f"{v:.3f}" for v in found[removal]), flush=True)
    return found


def main(n_shuffles):
    found = [scores(shuffle) for shuffle in range(n_shuffles)]
    table = Table(
        f"LDS over {n_shuffles} shuffles of the digits, ± standard error",
        ["removal", "same seed", "3 seeds", "same seed, by shuffle"],
    )
    for removal in found[0]:
        same, together = np.array([f[removal] for f in found]).T
        by_shuffle = " ".join(f"{value:.3f}" for value in same)
        table.add(removal, pm(same), pm(together), by_shuffle)
    write("splits", table)


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 6)
