"""How far from the best damping is the one that the length of the run implies?

LDS on 200 retrained halves of first-order attributions by `DualInfluence`, at the
damping of ``ridge="auto"`` times factors, and by ``ridge="calibrate"``, which retrains
16 halves. Networks, data and queries are those of `benchmarks.deep.prior_means`, and
wider ones of one hidden layer. Networks that are named have their rows replaced.

    OMP_NUM_THREADS=1 python -m benchmarks.deep.damping [network ...]
"""

import sys

import numpy as np

from benchmarks._data import MEMORY, OUTCOME, half_subsets, load, network
from benchmarks._table import reopen, write
from benchmarks.deep.prior_means import NETWORKS, hidden
from skattrib import DualInfluence
from skattrib.evaluation import lds_score, retrain_outcomes

FACTORS = 4.0 ** np.arange(-4, 3)
WIDER = {
    "64, .01": ("digits", hidden(64), 12),
    "256, .01": ("digits", hidden(256), 12),
    "64x64, .001": ("digits", hidden(64, 64, lr=1e-3), 12),
}
WITHOUT = "64x64 LayerNorm, .01", "CNN, .01"
ALL = {**NETWORKS, **WIDER}
HEADER = [
    "network, learning rate",
    *(f"x {factor:g}" for factor in FACTORS),
    "calibrated",
    "its factor",
]


def row(name):
    """Return a row of the table."""
    data, options, n_queries = ALL[name]
    X, y, X_query, y_query = load(data)
    queries = X_query[:n_queries], y_query[:n_queries]
    net, outcome, asked = network(data, **options), OUTCOME[data], half_subsets(len(X))
    retraining = {"outcome": outcome, "memory": MEMORY}
    truth = retrain_outcomes(net, X, y, asked, *queries, **retraining)

    def fitted(ridge):
        first_order = {"removal": "influence", "outcome": outcome, "random_state": 0}
        return DualInfluence(net, ridge=ridge, **first_order).fit(X, y)

    def lds(attributions):
        return f"{lds_score(truth, asked @ attributions.T):.3f}"

    dual, calibrated = fitted("auto"), fitted("calibrate")
    path = dual.ridge_path(*queries, ridges=dual.ridge_ * FACTORS)
    cells = [*map(lds, path), lds(calibrated.attribute(*queries))]
    return [name, *cells, f"{calibrated.ridge_ / dual.ridge_:g}"]


def main(names):
    table = reopen("deep_damping", "LDS on retrained halves, by damping", HEADER)
    for name in names or [one for one in ALL if one not in WITHOUT]:
        table.put(*row(name))
        table.rows.sort(key=lambda cells: [*ALL].index(cells[0]))
        write("deep_damping", table)


if __name__ == "__main__":
    main(sys.argv[1:])
