"""What does rounding do to attributions, beside what else is wrong with them?

512 digits, AdamW, minibatches of 32, 15 epochs, ReLU; 12 queries. Median over queries
of how far attributions are from those of the same training otherwise rounded, over
their size: from a start whose weights are moved to the neighbouring number (that is
``diagnose(system=True)``), in double precision, by two threads; and, to compare with,
from another seed. *Elsewhere*: how many of the trainings end elsewhere from such a
start. Beside them the other errors of a derivative, in the weights of the run on all
rows: what is beyond a straight line, to second order, and what is wrong if plain SGD is
taken to have made the steps. Rows that the table has are kept.

    OMP_NUM_THREADS=1 python -m benchmarks.runs.rounding
"""

import warnings

import numpy as np
import torch
from sklearn import config_context
from sklearn.base import clone

from benchmarks._data import load
from benchmarks._table import axes, reopen, write
from skattrib import AdamWInfluence, DualInfluence, TorchClassifier

N_ROWS, N_QUERIES = 512, 12
CAPTION = "Distance of attributions, over their size, where the training is repeated"
# Of the figure: linearity, the optimizer, the system's noise; and what is no error.
CLASSES = {
    "second order": ("beyond a straight line", "o"),
    "SGD for AdamW": ("another optimizer's steps", "s"),
    "start moved by a rounding": ("rounding", "^"),
    "another seed": ("for comparison: another seed", "x"),
}
HEADER = [
    "network, learning rate",
    "attributions",
    "start moved by a rounding",
    "digits left",
    "elsewhere",
    "drowned",
    "double precision",
    "two threads",
    "another seed",
    "second order",
    "SGD for AdamW",
]
NETWORKS = {
    "16, .01": ((16,), 0.01),
    "64x64, .001": ((64, 64), 0.001),
    "64x64, .003": ((64, 64), 0.003),
    "64x64, .01": ((64, 64), 0.01),
    "64x64x64, .01": ((64, 64, 64), 0.01),
}
ATTRIBUTORS = {
    "DualInfluence": DualInfluence(random_state=0),
    "AdamWInfluence, run on all": AdamWInfluence(inclusion=1, random_state=0),
    "AdamWInfluence, 16 half runs": AdamWInfluence(n_halves=0, random_state=0),
}


def far(found, other):
    """Return the median distance of attributions (q, n), over their size."""
    sizes = np.linalg.norm(found, axis=1)
    return np.median(np.linalg.norm(other - found, axis=1) / sizes)


def measured(attributor, net, dtype=np.float32, seed=0, system=False):
    """Return attributions of the queries, and a diagnosis if it is wanted."""
    X, y, Xq, yq = load("digits", dtype=dtype)[:4]
    net = clone(net).set_params(random_state=seed)
    attributor = clone(attributor).set_params(estimator=net)
    attributor.fit(X[:N_ROWS], y[:N_ROWS])
    queries = Xq[:N_QUERIES], yq[:N_QUERIES]
    found = attributor.attribute(*queries)
    return found, attributor.diagnose(*queries, system=True) if system else None


def row(attributor, net):
    """Return what the table has of an attributor and a network."""
    found, told = measured(attributor, net, system=True)
    double, _ = measured(attributor, net, dtype=np.float64)
    torch.set_num_threads(2)
    threads, _ = measured(attributor, net)
    torch.set_num_threads(1)
    seed, _ = measured(attributor, net, seed=1)
    errors = [told.get(e) for e in ("second_order_error", "optimizer_mismatch")]
    return [
        f"{told.system.attribution_noise:.0e}",
        f"{told.system.digits:.1f}",
        f"{told.system.diverged:.0%}",
        f"{told.system.drowned:.1%}",
        *(f"{far(found, other):.0e}" for other in (double, threads)),
        f"{far(found, seed):.2f}",
        *("" if error is None else f"{error:.2f}" for error in errors),
    ]


def draw(table):
    """Save a figure of the classes of error of a derivative: the run on all rows."""
    rows = [cells for cells in table.rows if cells[1] == "AdamWInfluence, run on all"]
    with axes("errors", 1, (7, 3)) as axis:
        for title, (label, mark) in CLASSES.items():
            sizes = [float(cells[HEADER.index(title)]) for cells in rows]
            axis.semilogx(sizes, range(len(rows)), mark, label=label)
        axis.set_yticks(range(len(rows)), [cells[0] for cells in rows])
        axis.set_ylabel("network, learning rate")
        axis.set_xlabel("relative error")
        axis.grid(axis="x", alpha=0.3)
        axis.figure.legend(loc="outside upper center", ncols=2, frameon=False)


def main():
    table = reopen("rounding", CAPTION, HEADER)
    known = {tuple(cells[:2]) for cells in table.rows}
    for name, (sizes, rate) in NETWORKS.items():
        net = TorchClassifier(
            hidden_layer_sizes=sizes,
            activation="relu",
            learning_rate=rate,
            batch_size=32,
            max_epochs=15,
        )
        for method, attributor in ATTRIBUTORS.items():
            if (name, method) not in known:
                table.put(name, method, *row(attributor, net), n_keys=2)
                write("rounding", table)
    draw(table)


if __name__ == "__main__":
    torch.set_num_threads(1)
    # the same ways are taken in double precision, which needs more
    with warnings.catch_warnings(), config_context(working_memory=4096):
        warnings.simplefilter("ignore")
        main()
