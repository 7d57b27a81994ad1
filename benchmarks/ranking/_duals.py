"""What `DualInfluence` predicts of whole subsets."""

import numpy as np

from skattrib import DualInfluence

REMOVALS = ("newton", "influence", "refit")


def fitted(net, X, y, removal, outcome):
    # a refit without each row takes long and is not asked for: two units do
    units = np.arange(len(X)) % 2 if removal == "refit" else None
    dual = DualInfluence(net, removal=removal, outcome=outcome, random_state=0)
    return dual.fit(X, y, tasks=units)


def predicted(dual, Xq, yq, weights):
    """Return outcomes (m, q) for weights of the rows."""
    if dual.removal == "refit":
        # units are halves there: no public method takes weights of the rows
        weights = weights.astype(dual.X_train_.dtype)
        return dual._predict_rows(Xq, yq, weights, dual.outcome)
    return dual.predict_outcomes(Xq, yq, weights)
