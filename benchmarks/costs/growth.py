"""How cost grows: CPU time of fit and of a query over rows, parameters and queries.

Two epochs of minibatches of 32. Rows: the health insurance table (two classes, one
hidden layer of 16, 50 queries). Parameters: 250 digits (ten classes), two equal hidden
layers, 10 queries, or one; queries: the same with one hidden layer of 16. A cell is the
log-log slope over the upper half of the sizes: 1 is linear.
Default parameters, but for AdamWInfluence, which is one run (`inclusion=1`), and for
the surrogate's units, 10 blocks of rows.

    OMP_NUM_THREADS=1 python -m benchmarks.costs.growth
"""

import sys

import numpy as np
from sklearn.base import clone

from benchmarks._data import DATA, load
from benchmarks._processes import seconds
from benchmarks._table import Table, write
from skattrib import (
    AdamWInfluence,
    DualInfluence,
    KernelSurrogateAttributor,
    RISEValuator,
    TorchClassifier,
)

ROWS = [250, 500, 1000, 2000, 4000, 8000]
PARAMS = [10**3, 10**4, 10**5, 10**6, 10**7]
QUERIES = [10, 30, 100, 300, 1000]
N_FEW = 10


#: attributor: (parameters, sweep: the most that its method sheet allows)
ATTRIBUTORS = {
    "DualInfluence": (
        DualInfluence(),
        # the cheaper of (n C)³ and n P² + P³; with gradients, linear in P
        {"rows": 3, "parameters": 1, "queries": 1},
    ),
    "AdamWInfluence, one run": (
        AdamWInfluence(inclusion=1.0, n_trajectories=1),
        # steps times queries times parameters
        {"rows": 1, "parameters": 1, "parameters, one query": 1, "queries": 1},
    ),
    "KernelSurrogateAttributor, 10 tasks": (
        KernelSurrogateAttributor(),
        {"rows": 3, "parameters": 1, "queries": 1},
    ),
    "RISEValuator": (RISEValuator(), {"rows": 1, "parameters": 1, "queries": 1}),
}
#: subsets of ten million parameters take minutes
FEWER = {("KernelSurrogateAttributor, 10 tasks", "parameters"): PARAMS[:-1]}


def network(*hidden):
    return TorchClassifier(
        hidden_layer_sizes=hidden or (16,), batch_size=32, max_epochs=2, random_state=0
    )


def of_size(n_params):
    """Return a network of two equal hidden layers with about so many parameters."""
    # (64 + 1) h + (h + 1) h + 10 (h + 1)
    h = round((-76 + np.sqrt(76**2 + 4 * (n_params - 10))) / 2)
    return network(h, h)


def fit_and_query(attributor, net, X, y, X_query, y_query):
    """Return CPU seconds of fit, the training included, and of the query."""
    tasks = None
    if isinstance(attributor, KernelSurrogateAttributor):
        tasks = np.arange(len(X)) * 10 // len(X)
    model = clone(attributor).set_params(estimator=net, random_state=0)
    fit, _ = seconds(model.fit, X, y, tasks=tasks)
    return fit, seconds(model.attribute, X_query, y_query)[0]


def slope(sizes, values):
    """Return the log-log slope over the upper half of the sizes."""
    upper = slice(len(sizes) // 2, None)
    return np.polyfit(np.log(sizes[upper]), np.log(values[upper]), 1)[0]


def sweeps():
    """Yield name, sizes and a function of the size: network, rows and queries."""
    # all rows of the table: the first ones train, the last ones are asked
    read, _ = DATA["insurance"]
    X, y = read()
    order = np.random.default_rng(0).permutation(len(X))
    X, y = X[order].astype(np.float32), y[order]
    yield "rows", ROWS, lambda n: (network(), X[:n], y[:n], X[-50:], y[-50:])
    D, d, _, _ = load("digits")
    rows = D[:250], d[:250]

    for name, n_queries in {"parameters": N_FEW, "parameters, one query": 1}.items():
        few = D[250 : 250 + n_queries], d[250 : 250 + n_queries]
        yield name, PARAMS, lambda P, few=few: (of_size(P), *rows, *few)

    many = np.resize(np.arange(250, 512), max(QUERIES))
    yield "queries", QUERIES, lambda q: (network(), *rows, D[many[:q]], d[many[:q]])


def main(names):
    header = ["attributor", "over", "range", "fit", "attribute", "at most"]
    table = Table("Log-log slopes of CPU time", header)
    for name, (attributor, bounds) in ATTRIBUTORS.items():
        if names and not any(part in name for part in names):
            continue
        for over, sizes, arguments in sweeps():
            if over not in bounds:
                continue
            sizes = FEWER.get((name, over), sizes)
            fit_and_query(attributor, *arguments(sizes[0]))  # imports, caches
            found = [fit_and_query(attributor, *arguments(size)) for size in sizes]
            found = np.array(found)
            table.add(
                name,
                over,
                f"{sizes[0]:,} to {sizes[-1]:,}",
                *(f"{slope(sizes, took):.2f}" for took in found.T),
                bounds[over],
                note=" ".join(f"{fit:.3g}, {query:.3g} s;" for fit, query in found),
            )

    if not names:
        write("growth", table)


if __name__ == "__main__":
    main(sys.argv[1:])
