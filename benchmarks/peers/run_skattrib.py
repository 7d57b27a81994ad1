"""Scores by this package, through the door that the peers come in by.

Where a peer is handed a trained network, so is a fit here (frozen, with its record);
methods that train others count those trainings. `GridSearchCV` retrains on folds of the
training rows and never sees the truth; its search counts.
"""

import numpy as np
from _order import main
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold

from skattrib import (
    AdamWInfluence,
    DualInfluence,
    KernelSurrogateAttributor,
    LinearSurrogateAttributor,
    RISEValuator,
    TorchClassifier,
    TorchRegressor,
)

TRAINED = {}


def unfitted(order):
    kind = TorchClassifier if order.classifies else TorchRegressor
    return kind(**order.estimator)


def arrays(order):
    """Return X, y, X_query, y_query."""
    y, y_query = order.y.numpy(), order.y_query.numpy()
    if not order.classifies:
        y, y_query = y[:, 0], y_query[:, 0]
    return order.X.numpy(), y, order.X_query.numpy(), y_query


def trained(order):
    """Return the trained network, frozen, once for all settings."""
    X, y, *_ = arrays(order)
    if len(X) not in TRAINED:
        TRAINED[len(X)] = FrozenEstimator(unfitted(order).fit(X, y))
    return TRAINED[len(X)]


def attribute(attributor, order, **setting):
    X, y, X_query, y_query = arrays(order)
    if not isinstance(attributor, RISEValuator):
        setting["outcome"] = "margin" if order.classifies else "log_likelihood"
    attributor.set_params(random_state=order.random_state, **setting)
    return attributor.fit(X, y).attribute(X_query, y_query)


def of_the_trained(kind, **fixed):
    def method(order, **setting):
        return attribute(kind(trained(order), **fixed), order, **setting)

    method.prepare = trained
    return method


def of_more_runs(kind, **fixed):
    def method(order):
        return attribute(kind(unfitted(order), **fixed), order)

    return method


def searched(attributor, grid, **after):
    """Choose by cross-validation: folds of the training rows, 32 retrainings each.

    ``after`` is set when the search is done.
    """

    def method(order):
        X, y, *_ = arrays(order)
        model = clone(attributor).set_params(
            estimator=unfitted(order), random_state=order.random_state
        )
        folds = StratifiedKFold(3) if order.classifies else KFold(3)
        search = GridSearchCV(model, grid, cv=folds, refit=False).fit(X, y)
        return attribute(model, order, **search.best_params_, **after)

    return method


def that_predicts(order):
    """Foretell the subsets' outcomes, too: their size, which is known, sets damping."""
    _, _, X_query, y_query = arrays(order)
    dual = DualInfluence(trained(order))
    scores = attribute(dual, order)
    return scores, dual.predict_outcomes(X_query, y_query, order.subsets.numpy())


def of_halves(order):
    """Return a dual with the damping that the package has for groups of that size."""
    dual = DualInfluence(trained(order), removal="influence")
    return dual.set_params(ridge=dual.fit(*arrays(order)[:2]).ridge_rule_(0.5))


def damped_for_halves(order):
    """Add up attributions of single rows."""
    return attribute(of_halves(order), order)


def around_halves(order):
    """Let some retrainings, which are not those of the truth, correct them."""
    options = {"estimation": "retrain", "n_subsets": 200, "prior": of_halves(order)}
    return attribute(LinearSurrogateAttributor(trained(order), **options), order)


def around_runs(order):
    # it takes the surrogate's estimator
    prior = AdamWInfluence(random_state=order.random_state)
    surrogate = LinearSurrogateAttributor(unfitted(order), **RETRAINED, prior=prior)
    return attribute(surrogate, order)


that_predicts.prepare = damped_for_halves.prepare = around_halves.prepare = trained
RETRAINED = {"estimation": "retrain", "n_subsets": 800}
INFLUENCE = {"removal": "influence"}
RUNS = {"n_halves": 0}
EXACT = {"sketch": None, "channels": ("rh",), "top_k": None, "normalize": False}
DUAL_GRID = {"ridge": np.logspace(-4, 0, 9), "removal": ["newton", "influence"]}
METHODS = {
    "RISEValuator, exact": of_the_trained(RISEValuator, **EXACT),
    "DualInfluence": of_the_trained(DualInfluence),
    'DualInfluence, removal="influence"': of_the_trained(DualInfluence, **INFLUENCE),
    "DualInfluence, predict_outcomes": that_predicts,
    'DualInfluence, removal="influence", ridge_rule_(0.5)': damped_for_halves,
    'DualInfluence, parameters="head", removal="influence"': of_the_trained(
        DualInfluence, parameters="head", **INFLUENCE
    ),
    "DualInfluence, GridSearchCV": searched(DualInfluence(), DUAL_GRID),
    "AdamWInfluence, inclusion=1": of_the_trained(
        AdamWInfluence, inclusion=1.0, n_trajectories=1
    ),
    "AdamWInfluence, 2 runs": of_more_runs(AdamWInfluence, n_trajectories=2, **RUNS),
    "AdamWInfluence, 4 runs": of_more_runs(AdamWInfluence, n_trajectories=4, **RUNS),
    "AdamWInfluence, 16 runs": of_more_runs(AdamWInfluence, **RUNS),
    "AdamWInfluence": of_more_runs(AdamWInfluence),
    "AdamWInfluence, 64 runs": of_more_runs(AdamWInfluence, n_trajectories=64, **RUNS),
    "AdamWInfluence, GridSearchCV": searched(
        # fewer runs are enough to choose by
        AdamWInfluence(n_trajectories=4),
        {"inclusion": [0.3, 0.5, 0.7, 1.0]},
        n_trajectories=16,
    ),
    "KernelSurrogateAttributor": of_the_trained(KernelSurrogateAttributor),
    "LinearSurrogateAttributor, 800 retrainings": of_more_runs(
        LinearSurrogateAttributor, **RETRAINED
    ),
    "the same around AdamWInfluence": around_runs,
    "LinearSurrogateAttributor, 200 retrainings around DualInfluence": around_halves,
}

if __name__ == "__main__":
    # one setting each, its defaults: ours are not tuned on the truth
    main({name: (method, [{}]) for name, method in METHODS.items()})
