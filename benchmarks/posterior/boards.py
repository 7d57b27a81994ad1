"""What halves add on the six boards: LDS of AdamWInfluence, and of DualInfluence.

The data sets, networks and 200 half subsets of the leaderboard, really retrained with
three seeds; 50 queries. "0 halves" is the average over 16 runs alone, and 512 the
default. DualInfluence with 512 halves trains no run.
LDS of attributions that are added up over the units present, mean over the seeds, and
CPU seconds of fit and attribute, mean too. Datasets that are named have their rows
replaced, the others keep theirs.

    OMP_NUM_THREADS=1 python -m benchmarks.posterior.boards [dataset ...]
"""

import sys

import numpy as np

from benchmarks._data import DATA, Problem
from benchmarks._table import each, reopen, write
from skattrib import AdamWInfluence, DualInfluence
from skattrib.evaluation import lds_score
from skattrib.models._costs import cpu_seconds  # no public name

METHODS = {
    "AdamW, 0 halves": (AdamWInfluence, {"n_halves": 0}),
    "AdamW, 256 halves": (AdamWInfluence, {"n_halves": 256}),
    "AdamW, 512 halves": (AdamWInfluence, {}),
    "Dual, 0 halves": (DualInfluence, {}),
    "Dual, 512 halves": (DualInfluence, {"n_halves": 512}),
}


def scores(problem, kind, options):
    """Return LDS by seed, and mean CPU seconds."""
    found, seconds = [], []
    for net, truth in zip(problem.networks(), problem.subsets, strict=True):
        attributor = kind(net, outcome=problem.outcome, random_state=0, **options)

        def work(attributor=attributor):
            attributor.fit(*problem.rows)
            return found.append(attributor.attribute(*problem.queries))

        seconds.append(cpu_seconds(work))
        found[-1] = lds_score(truth, problem.added(found[-1]))
    return found, np.mean(seconds)


def main(names):
    header = ["data (rows)", *METHODS]
    table = reopen("posterior_boards", "LDS by seed, and CPU seconds", header)
    for name in names or DATA:
        problem = Problem(name)
        cells = []
        for label, (kind, options) in METHODS.items():
            lds, seconds = scores(problem, kind, options)
            cells.append(f"{each(lds)}, {seconds:.0f} s")
            print(name, label, cells[-1], flush=True)
        table.put(f"{name} ({problem.n_rows})", *cells)
        write("posterior_boards", table)


if __name__ == "__main__":
    main(sys.argv[1:])
