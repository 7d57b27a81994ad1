"""Retrained outcomes around the average of runs: how many retrainings does it save?

Digits, network and truth of `benchmarks.ranking.fidelity`: 200 half subsets, three
training seeds. A linear surrogate learns from other half subsets, alone and with
`AdamWInfluence` as its prior; the ridge is chosen by leave-one-out error, the slope of
the prior per query from the same outcomes.

    python -m benchmarks.surrogates.prior [dataset ...]
"""

import sys

from benchmarks import _data
from benchmarks._table import Table, each, write
from benchmarks.runs._each import average, each_run, joint
from skattrib import KernelSurrogate, LinearSurrogate
from skattrib.surrogate._prior import AroundPrior

N_LEARNT = (50, 100, 200, 400, 800)


def fitted(surrogate, prior, weights, outcomes):
    """Fit a surrogate, around a prior (attributions, errors) if there is one."""
    model = surrogate if prior is None else AroundPrior(surrogate, *prior)
    return model.fit(weights, outcomes)


def measure(table, name):
    """Add the rows of a data set."""
    data, outcome = _data.load(name), _data.OUTCOME[name]
    X, y, *queries = data
    net = _data.network(name)
    weights = _data.half_subsets(len(X))
    truth = _data.retrained(net, X, y, weights, *queries, outcome)
    learnt = _data.half_subsets(len(X), max(N_LEARNT), random_state=2)
    known = _data.retrained(net, X, y, learnt, *queries, outcome)
    runs = each_run(net, *data, outcome, inclusion=0.5, n_trajectories=16)
    own, together = [average(found) for found in runs], joint(runs)

    def add(kind, prior, m, predicted, of_mean):
        same = each(_data.lds_by_seed(truth, predicted))
        mean = _data.lds_interval(truth.mean(axis=0), of_mean)
        table.add(name, kind, prior, m, same, mean)

    add("none", "yes", 0, [weights @ A.T for A, _ in own], weights @ together[0].T)
    for surrogate in (LinearSurrogate(), KernelSurrogate()):
        for prior in ("no", "yes"):
            priors = [*own, together] if prior == "yes" else [None] * (len(own) + 1)
            for m in N_LEARNT:
                # each seed, and the mean of all
                outcomes = [*known[:, :m], known.mean(axis=0)[:m]]
                *predicted, of_mean = (
                    fitted(surrogate, around, learnt[:m], F).predict(weights)
                    for around, F in zip(priors, outcomes, strict=True)
                )
                add(type(surrogate).__name__, prior, m, predicted, of_mean)


def main(names):
    table = Table(
        "A surrogate alone and around AdamWInfluence (16 runs)",
        ["data", "surrogate", "prior", "retrainings", "LDS: same seed", "LDS: 3 seeds"],
    )
    for name in names:
        measure(table, name)
    write("prior", table)


if __name__ == "__main__":
    main(sys.argv[1:] or ["digits", "diabetes"])
