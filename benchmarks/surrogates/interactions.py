"""Do interactions of rows explain what a linear surrogate misses?

Networks of `benchmarks.ranking.fidelity`, one seed: 800 retrained half subsets of the
rows to learn from, 200 others to score (pooled R² over 50 queries). What a linear
surrogate leaves of the outcomes is fitted again, by kernel ridge regression on all
pairs of rows (a quadratic kernel) or by an RBF kernel, each with the ridge that is best
on the 200: at its best, not at what could be chosen.

Would they, if interactions were all that is left? Below each row is its positive
control: outcomes of the same subsets that are linear plus random interactions of all
pairs of rows, without noise, with as much variance in the pairs as the linear surrogate
leaves of the retrained ones: a generous one, as part of that is the surrogate's error.

    python -m benchmarks.surrogates.interactions
"""

import numpy as np
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics import r2_score

from benchmarks._data import Problem, half_subsets
from benchmarks._table import Table, write
from skattrib import LinearSurrogate

N_LEARNT, RIDGES = 800, np.logspace(-3, 3, 13)
NAMES = ("wine", "diabetes", "digits")


def kernels(n_units):
    """Return kernels of weightings around a half, ±1, of squares that have mean one."""
    return {
        "pairs": {"kernel": "poly", "degree": 2, "coef0": 0, "gamma": 1 / n_units},
        "RBF": {"kernel": "rbf", "gamma": 1 / (4 * n_units)},
    }


def linear_plus_pairs(weights, n_outcomes, share):
    """Return outcomes (m, q): linear but for a `share` of variance that pairs have."""
    rng, signs = np.random.default_rng(0), 2.0 * weights - 1
    n_units = signs.shape[1]
    linear = signs @ rng.normal(size=(n_units, n_outcomes))
    pairs = np.empty_like(linear)
    for outcome in pairs.T:
        # of unordered pairs: a unit with itself would add a constant
        of_pairs = np.triu(rng.normal(size=(n_units, n_units)), 1)
        outcome[:] = np.sum(signs @ of_pairs * signs, axis=1)
    parts = linear / linear.std(axis=0), pairs / pairs.std(axis=0)
    return np.sqrt(1 - share) * parts[0] + np.sqrt(share) * parts[1]


def explained(learnt, known, asked, truth):
    """Return R² of a linear surrogate, and of each kernel for what that leaves."""
    linear = LinearSurrogate().fit(learnt, known)
    left, rest = known - linear.predict(learnt), truth - linear.predict(asked)
    found = []
    for options in kernels(learnt.shape[1]).values():
        models = [
            KernelRidge(alpha=r, **options).fit(2.0 * learnt - 1, left) for r in RIDGES
        ]
        found.append(max(score(rest, m.predict(2.0 * asked - 1)) for m in models))
    return score(truth, linear.predict(asked)), *found


def main():
    table = Table(
        "R² of outcomes by a linear surrogate of rows, and of what it leaves by "
        "kernels of their interactions",
        "data | units | outcomes | linear | pairs, of the rest | RBF, of the rest",
    )
    for name in NAMES:
        problem = Problem(name)
        learnt = half_subsets(problem.n_rows, N_LEARNT, random_state=2)
        known = problem.retrain(learnt, problem.net)
        truth = problem.retrain(problem.weights, problem.net)
        own = explained(learnt, known, problem.weights, truth)
        made = linear_plus_pairs(
            np.concatenate([learnt, problem.weights]), known.shape[1], 1 - own[0]
        )
        control = explained(learnt, made[:N_LEARNT], problem.weights, made[N_LEARNT:])
        for label, values in (("retrained", own), ("linear + pairs", control)):
            cells = [f"{value:.3f}" for value in values]
            table.add(name, problem.n_rows, label, *cells)
    write("interactions", table)


def score(truth, predicted):
    return r2_score(truth, predicted, multioutput="variance_weighted")


if __name__ == "__main__":
    main()
