"""Does `plan` tell what attributing takes? What it says over what was measured.

Default parameters but for those named. Networks: two hidden layers of 64, minibatches
of 256, ten epochs; "small": one hidden layer of 16, full batch, 100 epochs. Measured
are `fit`, the training included, and one call of `attribute`, in a process of its own,
after the same on a few rows: CPU seconds, and the peak of resident memory above what
the imports and the rows take.

    OMP_NUM_THREADS=1 python -m benchmarks.costs.plans [part of a setting's name]
"""

import sys
import warnings

import numpy as np
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from benchmarks._processes import in_own_process, peak_from_here, seconds
from benchmarks._table import Table, write
from benchmarks.costs._rows import churn, diamonds, digits, network, regressor, rows
from skattrib import (
    AdamWInfluence,
    DualInfluence,
    KernelSurrogateAttributor,
    LinearSurrogateAttributor,
    RISEValuator,
    plan,
)

N_WARM, FEW_SUBSETS = 120, 12


def small(**options):
    return network(hidden=(16,), batch_size=None, max_epochs=100, **options)


def forest():
    return RandomForestClassifier(30, random_state=0)


#: name: (attributor, rows, how many, queries)
SETTINGS = {
    "DualInfluence, 1,000 rows": (DualInfluence(network()), churn, 1000, 100),
    "DualInfluence, 5,000 rows": (DualInfluence(network()), churn, 5000, 100),
    "DualInfluence, 10,000 rows": (DualInfluence(network()), churn, 10_000, 100),
    'DualInfluence, removal="influence"': (
        DualInfluence(network(), removal="influence"),
        churn,
        20_000,
        100,
    ),
    "DualInfluence, digits, small": (DualInfluence(small()), digits, 1000, 100),
    "DualInfluence, diamonds": (DualInfluence(regressor()), diamonds, 20_000, 100),
    "DualInfluence, LogisticRegression": (
        DualInfluence(LogisticRegression()),
        churn,
        10_000,
        100,
    ),
    "AdamWInfluence, small": (AdamWInfluence(small(), n_halves=0), churn, 500, 10),
    "AdamWInfluence, inclusion=1, minibatches of 64": (
        AdamWInfluence(network(batch_size=64), inclusion=1),
        churn,
        5000,
        10,
    ),
    "KernelSurrogateAttributor, forest of 30": (
        KernelSurrogateAttributor(forest()),
        churn,
        500,
        10,
    ),
    "KernelSurrogateAttributor, small, retrained": (
        KernelSurrogateAttributor(small(), estimation="retrain"),
        churn,
        500,
        10,
    ),
    "KernelSurrogateAttributor, small, gradients": (
        KernelSurrogateAttributor(small(), estimation="gradient"),
        churn,
        500,
        10,
    ),
    "LinearSurrogateAttributor, small": (
        LinearSurrogateAttributor(small()),
        churn,
        500,
        10,
    ),
    "RISEValuator, churn": (RISEValuator(network()), churn, 5000, 10),
}


def of(name):
    """Return the attributor of a setting, with a seed, and its rows."""
    attributor, read, n, n_queries = SETTINGS[name]
    return clone(attributor).set_params(random_state=0), rows(read, n, n_queries)


def planned(name):
    """Return what `plan` says, and its own CPU seconds."""
    attributor, (X, y, X_query, _) = of(name)
    own, table = seconds(plan, attributor, X, y, n_queries=len(X_query))
    return table.iloc[0], own


def measured(name):
    """Return CPU seconds and megabytes."""
    warnings.simplefilter("ignore")
    attributor, (X, y, *queries) = of(name)
    warm = clone(attributor)
    if hasattr(warm, "n_subsets"):
        warm.set_params(n_subsets=FEW_SUBSETS)
    warm.fit(X[:N_WARM], y[:N_WARM]).attribute(*(part[:2] for part in queries))
    del warm
    peak = peak_from_here()
    taken, _ = seconds(lambda: attributor.fit(X, y).attribute(*queries))
    return taken, peak() / 2**20


def main(names):
    header = "setting | rows | CPU s | planned / measured | MB | planned / measured"
    table = Table("What `plan` says, and what it takes", header)
    ratios = []
    for name, (_, _, n, _) in SETTINGS.items():
        if names and not any(part in name for part in names):
            continue
        said, own = in_own_process(planned, name)
        taken, size = in_own_process(measured, name)
        ratios.append(said["seconds"] / taken)
        table.add(
            name,
            f"{n:,}",
            f"{taken:.2g}",
            f"{ratios[-1]:.2f}",
            f"{size:.0f}",
            f"{said['megabytes'] / size:.2f}",
            note=f"plan took {own:.2g} s; {said['way']}",
        )

    low, high = min(ratios), max(ratios)
    print(f"seconds: {low:.2f} to {high:.2f}, median {np.median(ratios):.2f}")
    if not names:
        write("plans", table)


if __name__ == "__main__":
    main(sys.argv[1:])
