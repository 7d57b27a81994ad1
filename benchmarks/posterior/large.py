"""Halves of many rows, and of a large network: what they add, take and leave behind.

Telecom churn (``modeldata::wa_churn``): 5,000 rows and two hidden layers of 64, ten
epochs; and 1,000 rows and two hidden layers of 975, a million parameters, three epochs.
LDS of ten queries over 64 half subsets, really retrained, of AdamWInfluence without
and with 256 halves; CPU seconds of fit and of the attribution of these queries, peak
memory beyond the rows, and the size of a pickle, in a process of their own.

    OMP_NUM_THREADS=1 python -m benchmarks.posterior.large
"""

import pickle
import warnings

import numpy as np
import pandas as pd
from sklearn.preprocessing import scale

from benchmarks._data import half_subsets
from benchmarks._processes import in_own_process, peak_from_here, seconds
from benchmarks._table import Table, write
from benchmarks.ranking.first_page import churn
from skattrib import AdamWInfluence, TorchClassifier
from skattrib.evaluation import lds_score, retrain_outcomes

N_QUERIES, N_SUBSETS = 10, 64
SETTINGS = {
    "5,000 rows, 64-64": (5000, 16, {"hidden_layer_sizes": (64, 64), "max_epochs": 10}),
    "1,000 rows, 975-975": (
        1000,
        4,
        {"hidden_layer_sizes": (975, 975), "max_epochs": 3, "learning_rate": 1e-3},
    ),
}


def data(n_rows):
    table, labels = churn()
    X = scale(pd.get_dummies(table, drop_first=True).to_numpy(dtype=float))
    X, y = X.astype(np.float32), (labels == "Yes").to_numpy(dtype=int)
    queries = slice(n_rows, n_rows + N_QUERIES)
    return X[:n_rows], y[:n_rows], X[queries], y[queries]


def network(options):
    return TorchClassifier(batch_size=128, random_state=0, **options)


def measured(label, n_halves):
    """Return attributions, halves, CPU seconds and bytes, at the peak and pickled."""
    warnings.simplefilter("ignore")
    n_rows, n_runs, options = SETTINGS[label]
    X, y, *queries = data(n_rows)
    attributor = AdamWInfluence(
        network(options),
        n_trajectories=n_runs,
        n_halves=n_halves,
        outcome="margin",
        random_state=0,
    )
    network(options).set_params(max_epochs=1).fit(X[:128], y[:128])  # libraries
    peak = peak_from_here()

    def work():
        return attributor.fit(X, y).attribute(*queries)

    took, found = seconds(work)
    size = len(pickle.dumps(attributor))
    return found, attributor.n_halves_, took, peak(), size


def main():
    names = ["setting", "runs", "halves", "LDS", "CPU s", "peak MB", "pickle MB"]
    table = Table("", names)
    for label, (n_rows, n_runs, options) in SETTINGS.items():
        X, y, *queries = data(n_rows)
        weights = half_subsets(n_rows, N_SUBSETS)
        truth = retrain_outcomes(
            network(options), X, y, weights, *queries, outcome="margin"
        )
        for asked in (0, 256):
            found, n_halves, took, peak, size = in_own_process(measured, label, asked)
            lds = lds_score(truth, weights @ found.T)
            numbers = f"{lds:.3f}", f"{took:.0f}", f"{peak / 1e6:.0f}"
            table.add(label, n_runs, n_halves, *numbers, f"{size / 1e6:.0f}")
    write("posterior_large", table)


if __name__ == "__main__":
    main()
