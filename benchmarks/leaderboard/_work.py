"""The work that every method is given: data, trained networks, retrained truth."""

from functools import cached_property
from pathlib import Path

import joblib
import numpy as np
from sklearn.base import clone

from benchmarks._data import MEMORY, SEEDS, Problem
from benchmarks._orders import run_peer, write_order
from benchmarks._processes import machine

FOLDER = Path(MEMORY) / "leaderboard"
FRACTIONS = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
N_RANDOM = 10
MISLABELED = 0.1
memory = joblib.Memory(FOLDER, verbose=0)


class Work(Problem):
    """A data set, a network trained on it with three seeds, and what is true of it."""

    @property
    def classifies(self):
        return np.issubdtype(self.rows[1].dtype, np.integer)

    def without_first(self, order):
        """Return weights (fractions, n) without the first rows of an order."""
        counts = np.rint(FRACTIONS * self.n_rows)
        return (np.argsort(order) >= counts[:, None]).astype(float)

    @cached_property
    def random_removals(self):
        """Outcomes (seeds, fractions, q) without random rows, the mean of several."""
        rng = np.random.default_rng(0)
        orders = [rng.permutation(self.n_rows) for _ in range(N_RANDOM)]
        found = self.retrain(np.concatenate([self.without_first(o) for o in orders]))
        shape = (len(SEEDS), N_RANDOM, len(FRACTIONS), -1)
        return found.reshape(shape).mean(axis=1)

    @cached_property
    def mislabeled(self):
        """Which rows get a wrong label, and the labels with these."""
        y = self.rows[1]
        rng = np.random.default_rng(0)
        wrong = np.zeros(self.n_rows, dtype=bool)
        wrong[rng.permutation(self.n_rows)[: round(MISLABELED * self.n_rows)]] = True
        n_classes = y.max() + 1
        others = (y + rng.integers(1, n_classes, self.n_rows)) % n_classes
        return wrong, np.where(wrong, others, y)

    def order(self, seed, *, mislabeled=False):
        """Write the order of a trained network once; return its path."""
        kind = "-mislabeled" if mislabeled else ""
        path = FOLDER / f"{self.name}{kind}-{seed}.npz"
        if path not in self._orders:
            X, y = self.rows[0], self.mislabeled[1] if mislabeled else self.rows[1]
            net = clone(self.net).set_params(random_state=seed).fit(X, y)
            FOLDER.mkdir(parents=True, exist_ok=True)
            write_order(path, net, X, y, *self.queries, self.weights)
            self._orders.add(path)
        return path

    @cached_property
    def _orders(self):
        """Paths of those that were written by this object."""
        return set()


def digest(path):
    """Return a short name of what an order holds; archives carry their time, too.

    Not of the subsets, which follow from the number of rows; and of the machine, as
    seconds of another are not to be mixed with its own.
    """
    with np.load(path) as file:
        held = {name: file[name] for name in set(file) - {"subsets"}}
    return joblib.hash((machine(), held))


@memory.cache(ignore=["path", "timeout"])
def run_once(script, source, method, holds, settings, path, timeout):
    """Return what `run_peer` does, remembered by script and order; None for too long.

    What died is tried again next time: the machine may have been at fault.
    """
    try:
        return run_peer(script, method, path, settings, timeout=timeout)
    except TimeoutError:
        return None
