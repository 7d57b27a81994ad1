"""Do interactions of rows explain what a linear surrogate misses?

Networks of `benchmarks.ranking.fidelity`, one seed: 800 retrained half subsets of the
rows to learn from, 200 others to score (pooled R² over 50 queries). What a linear
surrogate leaves of the outcomes is fitted again, by kernel ridge regression on all
pairs of rows (a quadratic kernel) or by an RBF kernel, each with the ridge that is best
on the 200: at its best, not at what could be chosen.

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


def main():
    table = Table(
        "R² of retrained outcomes by a linear surrogate of rows, and of what it leaves "
        "by kernels of their interactions",
        ["data", "units", "linear", "pairs, of the rest", "RBF, of the rest"],
    )
    for name in NAMES:
        problem = Problem(name)
        learnt = half_subsets(problem.n_rows, N_LEARNT, random_state=2)
        known = problem.retrain(learnt, problem.net)
        truth = problem.retrain(problem.weights, problem.net)
        linear = LinearSurrogate().fit(learnt, known)
        left, rest = (
            known - linear.predict(learnt),
            truth - linear.predict(problem.weights),
        )
        signs, asked = 2.0 * learnt - 1, 2.0 * problem.weights - 1
        found = []
        for options in kernels(problem.n_rows).values():
            models = [KernelRidge(alpha=r, **options).fit(signs, left) for r in RIDGES]
            scores = [score(rest, model.predict(asked)) for model in models]
            found.append(f"{max(scores):.3f}")
        own = score(truth, linear.predict(problem.weights))
        table.add(name, problem.n_rows, f"{own:.3f}", *found)
    write("interactions", table)


def score(truth, predicted):
    return r2_score(truth, predicted, multioutput="variance_weighted")


if __name__ == "__main__":
    main()
