"""What is interrupted in the tests of this folder: small jobs that write to a folder.

Each begins from whatever is there, and returns numbers.
"""

import numpy as np
import sklearn
from sklearn.datasets import load_iris
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import scale

from skattrib import AdamWInfluence, RISEValuator, TorchClassifier
from skattrib.evaluation import make_weightings, retrain_outcomes


def data(n=60, n_queries=6):
    X, y = load_iris(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(y))
    X, y = scale(X)[order], y[order]
    return X[:n], y[:n], X[-n_queries:], y[-n_queries:]


def net(**options):
    options = {"hidden_layer_sizes": (5,), "max_epochs": 4, **options}
    return TorchClassifier(random_state=0, **options)


def truth(folder):
    """Retrain in chunks of 32, of which each outcome is a file."""
    X, y, Xq, yq = data()
    weights = make_weightings(60, 100, random_state=0)
    return retrain_outcomes(net(), X, y, weights, Xq, yq, memory=folder / "memory")


def runs(folder):
    """Train the runs of several seeds, which are kept as they end."""
    X, y, Xq, yq = data()
    influence = AdamWInfluence(
        net(batch_size=30),
        n_trajectories=4,
        n_halves=0,
        n_models=4,
        memory=folder / "memory",
        random_state=0,
    )
    return influence.fit(X, y).attribute(Xq, yq)


def build(folder):
    """Build an index, a few rows at a time."""
    X, y, Xq, yq = data(140)
    rise = RISEValuator(net(), index=folder / "index", random_state=0)
    with sklearn.config_context(working_memory=0.1):
        rise.fit(X, y)
    return rise.attribute(Xq, yq)


def append(folder):
    """Add rows to an index, a few at a time."""
    X, y, Xq, yq = data(140)
    rise = RISEValuator(
        FrozenEstimator(net().fit(X, y)), index=folder / "index", random_state=0
    )
    rise.fit(X[:20], y[:20])
    with sklearn.config_context(working_memory=0.1):
        for rows in (slice(20, 50), slice(50, 140)):
            rise.partial_fit(X[rows], y[rows])
    return rise.attribute(Xq, yq)


JOBS = {"truth": truth, "runs": runs, "index": build, "append": append}
