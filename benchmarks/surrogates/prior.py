"""Retrained outcomes around the average of runs: how many retrainings does it save?

Digits, network and truth of `benchmarks.ranking.fidelity`: 200 half subsets, three
training seeds. A linear surrogate learns from other half subsets, alone and with
`AdamWInfluence` as its prior; the ridge is chosen by leave-one-out error, the slope of
the prior per query from the same outcomes.

    python -m benchmarks.surrogates.prior [dataset ...]
"""

import sys

from benchmarks._data import Problem, half_subsets
from benchmarks._table import Table, write
from benchmarks.runs._each import averages, each_run
from skattrib import KernelSurrogate, LinearSurrogate

# The public attributors have a prior of one seed, not one of several together.
from skattrib.surrogate._prior import AroundPrior

N_LEARNT = (50, 100, 200, 400, 800)


def predictions(surrogate, priors, learnt, outcomes, weights):
    """Return predictions (m, q) of each seed and of the mean, with priors or none."""
    found = []
    for prior, known in zip(priors, [*outcomes, outcomes.mean(axis=0)], strict=True):
        model = surrogate if prior is None else AroundPrior(surrogate, *prior)
        found.append(model.fit(learnt, known).predict(weights))
    return found


def main(names):
    table = Table(
        "A surrogate alone and around AdamWInfluence (16 runs)",
        ["data", "surrogate", "prior", "retrainings", "LDS: same seed", "LDS: 3 seeds"],
    )
    for name in names:
        problem = Problem(name)
        learnt = half_subsets(problem.n_rows, max(N_LEARNT), random_state=2)
        known = problem.retrain(learnt)
        priors = averages(each_run(problem, inclusion=0.5, n_trajectories=16))
        *own, together = [problem.added(A) for A, _ in priors]
        table.add(name, "none", "yes", 0, *problem.lds(own, together))

        for surrogate in (LinearSurrogate(), KernelSurrogate()):
            for prior, around in {"no": [None] * len(priors), "yes": priors}.items():
                for m in N_LEARNT:
                    *own, together = predictions(
                        surrogate, around, learnt[:m], known[:, :m], problem.weights
                    )
                    cells = problem.lds(own, together)
                    table.add(name, type(surrogate).__name__, prior, m, *cells)
    write("prior", table)


if __name__ == "__main__":
    main(sys.argv[1:] or ["digits", "diabetes"])
