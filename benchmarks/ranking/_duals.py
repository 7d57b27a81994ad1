"""What `DualInfluence` predicts with each training seed."""

import numpy as np
from sklearn.base import clone

from benchmarks._data import SEEDS
from skattrib import DualInfluence


def fitted(net, X, y, removal, outcome):
    """Yield the attributor of each seed."""
    # a refit without each row takes long and is not asked for: two units do
    units = np.arange(len(X)) % 2 if removal == "refit" else None
    for seed in SEEDS:
        yield DualInfluence(
            clone(net).set_params(random_state=seed),
            removal=removal,
            outcome=outcome,
            random_state=0,
        ).fit(X, y, tasks=units)


def predicted(dual, Xq, yq, weights, outcome):
    """Return outcomes (m, q) for weights of the rows."""
    if dual.removal == "refit":
        # units are halves there, and weights those of rows
        weights = weights.astype(dual.X_train_.dtype)
        return dual._predict_rows(Xq, yq, weights, outcome)
    return dual.predict_outcomes(Xq, yq, weights)
