"""Every run of `AdamWInfluence`, for averages that no single fit has."""

import numpy as np
from sklearn.base import clone

from benchmarks._data import SEEDS
from skattrib import AdamWInfluence
from skattrib.influence._aggregation import aggregate, exploding


def each_run(net, X, y, Xq, yq, outcome, **options):
    """Return the attributions of every run of every seed, (seeds, runs, q, n)."""
    found = []
    for seed in SEEDS:
        influence = AdamWInfluence(
            clone(net).set_params(random_state=seed),
            outcome=outcome,
            random_state=0,
            **options,
        ).fit(X, y)
        queries = influence._derivatives.queries(Xq, yq, outcome)
        found.append(influence._each_run(queries).astype(np.float32))
    return np.array(found)


def average(runs):
    """Return the trimmed mean over runs (runs, q, n), and its error."""
    return aggregate(runs, "trimmed_mean", exploding(runs))


def joint(runs):
    """Return the same for the runs of all seeds together."""
    return average(np.concatenate(runs))


def exploding_share(runs):
    return np.mean([exploding(own).mean() for own in runs])
