"""Retrained outcomes around the average of runs: how many retrainings does it save?

Digits, network and truth of `benchmarks.fidelity`: 200 half subsets, three training
seeds. A linear surrogate learns from other half subsets, alone and with
`AdamWInfluence` as its prior; the ridge is chosen by leave-one-out error, the slope of
the prior per query from the same outcomes.

    python -m benchmarks.prior [dataset ...]
"""

import sys

import numpy as np

from benchmarks._data import load
from benchmarks._surrogates import MEASURED
from benchmarks.ensembles import each_run
from benchmarks.fidelity import N_SUBSETS, OUTCOME, interval, network
from benchmarks.trajectories import outcomes
from skattrib import KernelSurrogate, LinearSurrogate
from skattrib.evaluation import lds_score, make_weightings
from skattrib.influence._aggregation import aggregate
from skattrib.surrogate._prior import AroundPrior

N_LEARNT = (50, 100, 200, 400, 800)


def main(names):
    lines = [
        ".. csv-table:: A surrogate alone and around AdamWInfluence (16 runs)",
        '   :header: "data", "surrogate", "prior", "retrainings", "LDS: same seed", '
        '"LDS: 3 seeds"',
        "",
    ]
    for name in names:
        X, y, Xq, yq = load(name)
        net, outcome = network(name), OUTCOME[name]
        weights = make_weightings(len(X), N_SUBSETS, random_state=1)
        truth = outcomes(net, X, y, weights, Xq, yq, outcome)
        learnt = make_weightings(len(X), max(N_LEARNT), random_state=2)
        known = outcomes(net, X, y, learnt, Xq, yq, outcome)
        runs = each_run(net, X, y, Xq, yq, outcome, 0.5, 16)
        each = [aggregate(found, "trimmed_mean") for found in runs]
        joint = aggregate(np.concatenate(runs), "trimmed_mean")

        def line(kind, prior, m, predicted, together, truth=truth, name=name):
            own = [lds_score(t, p) for t, p in zip(truth, predicted, strict=True)]
            cells = [
                f"{np.mean(own):.3f} ({' '.join(f'{v:.3f}' for v in own)})",
                interval(truth.mean(axis=0), together),
            ]
            text = ", ".join(f'"{c}"' for c in [name, kind, prior, m, *cells])
            print(text, flush=True)
            lines.append(f"   {text}")

        line(
            "none",
            "yes",
            0,
            [weights @ found.T for found, _ in each],
            weights @ joint[0].T,
        )
        for surrogate in (LinearSurrogate(), KernelSurrogate()):
            for prior in ("no", "yes"):
                for m in N_LEARNT:
                    predicted = [
                        _fitted(surrogate, prior, found, learnt[:m], F[:m]).predict(
                            weights
                        )
                        for found, F in zip(each, known, strict=True)
                    ]
                    F = known.mean(axis=0)[:m]
                    together = _fitted(surrogate, prior, joint, learnt[:m], F)
                    kind = type(surrogate).__name__
                    line(kind, prior, m, predicted, together.predict(weights))
        MEASURED.joinpath("prior.inc").write_text("\n".join(lines) + "\n")


def _fitted(surrogate, prior, found, weights, outcomes):
    if prior == "no":
        return surrogate.fit(weights, outcomes)
    return AroundPrior(surrogate, *found).fit(weights, outcomes)


if __name__ == "__main__":
    main(sys.argv[1:] or ["digits", "diabetes"])
