"""The work that every method is given: data, trained networks, retrained truth."""

import hashlib
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from sklearn.base import clone

from benchmarks._data import MEMORY, N_SEEDS, OUTCOME, SEEDS, load, network, truth
from benchmarks._orders import write_order
from skattrib.evaluation import retrain_outcomes

FOLDER = Path(MEMORY) / "leaderboard"
FRACTIONS = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
N_RANDOM = 10
MISLABELED = 0.1


@dataclass
class Work:
    """A data set, a network trained on it with three seeds, and what is true of it."""

    name: str
    data: tuple = field(init=False)
    orders: dict = field(init=False, default_factory=dict)

    def __post_init__(self):
        self.data = load(self.name)
        self.outcome = OUTCOME[self.name]
        self.net = network(self.name)
        self.seeds = SEEDS

    @property
    def n_rows(self):
        return len(self.data[0])

    @property
    def classifies(self):
        return np.issubdtype(self.data[1].dtype, np.integer)

    @property
    def _retrained(self):
        """The network, on the device that the environment asks for."""
        device = os.environ.get("TRUTH_DEVICE", "cpu")
        return clone(self.net).set_params(device=device)

    @cached_property
    def _truth(self):
        return truth(self._retrained, *self.data, self.outcome)

    @property
    def weights(self):
        """Half subsets (m, n)."""
        return self._truth[0]

    @property
    def subsets(self):
        """Outcomes retrained on them (seeds, m, q)."""
        return self._truth[1]

    @property
    def without_one(self):
        """Outcomes without each row, (seeds, n, q)."""
        return self._truth[2]

    # ---------------------------------------------------------------- removal
    def retrain(self, weights, seed):
        """Return outcomes (m, q) of one seed."""
        X, y, X_query, y_query = self.data
        net = clone(self._retrained).set_params(random_state=seed)
        options = {"outcome": self.outcome, "memory": MEMORY}
        return retrain_outcomes(net, X, y, weights, X_query, y_query, **options)

    def without_first(self, order):
        """Return weights (fractions, n) without the first rows of an order."""
        place = np.empty(self.n_rows)
        place[order] = np.arange(self.n_rows)
        counts = np.rint(FRACTIONS * self.n_rows)
        return (place >= counts[:, None]).astype(float)

    @cached_property
    def random_removals(self):
        """Outcomes (seeds, fractions, q) without random rows, the mean of several."""
        rng = np.random.default_rng(0)
        orders = [rng.permutation(self.n_rows) for _ in range(N_RANDOM)]
        weights = np.concatenate([self.without_first(order) for order in orders])
        found = [self.retrain(weights, seed) for seed in self.seeds]
        shape = (N_SEEDS, N_RANDOM, len(FRACTIONS), -1)
        return np.reshape(found, shape).mean(axis=1)

    # ------------------------------------------------------------------ orders
    @cached_property
    def mislabeled(self):
        """Which rows get a wrong label, and the labels with these."""
        y = self.data[1]
        rng = np.random.default_rng(0)
        wrong = np.zeros(self.n_rows, dtype=bool)
        wrong[rng.permutation(self.n_rows)[: round(MISLABELED * self.n_rows)]] = True
        n_classes = y.max() + 1
        others = (y + rng.integers(1, n_classes, self.n_rows)) % n_classes
        return wrong, np.where(wrong, others, y)

    def order(self, seed, *, mislabeled=False):
        """Write the order of a trained network once; return its path and a digest."""
        if (seed, mislabeled) in self.orders:
            return self.orders[seed, mislabeled]
        X, y, X_query, y_query = self.data
        if mislabeled:
            y = self.mislabeled[1]
        net = clone(self.net).set_params(random_state=seed).fit(X, y)
        FOLDER.mkdir(parents=True, exist_ok=True)
        kind = "-mislabeled" if mislabeled else ""
        path = FOLDER / f"{self.name}{kind}-{seed}.npz"
        write_order(path, net, X, y, X_query, y_query, self.weights)
        self.orders[seed, mislabeled] = path, digest(path)
        return self.orders[seed, mislabeled]


def digest(path):
    """Return a short name of what an order holds; archives carry their time, too.

    Not of the subsets, which follow from the number of rows.
    """
    found = hashlib.sha256()
    with np.load(path) as file:
        for name in sorted(set(file) - {"subsets"}):
            found.update(name.encode() + np.ascontiguousarray(file[name]).tobytes())
    return found.hexdigest()[:12]
