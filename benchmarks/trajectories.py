"""AdamWInfluence on really retrained networks: one run, or runs on halves.

Data, networks and truth are those of `benchmarks.fidelity`: 200 half subsets, margins,
three training seeds; every leave-one-out too, but for MNIST. `inclusion=1` is one run
per seed, "auto" sixteen runs on halves. LDS and leave-one-out of `attribute`; averages
over seeds go over all their runs together.

    python -m benchmarks.trajectories [dataset ...]
"""

import sys
import time

import numpy as np
from sklearn.base import clone

from benchmarks._data import load
from benchmarks._surrogates import MEASURED
from benchmarks.fidelity import MEMORY, N_SEEDS, N_SUBSETS, OUTCOME, interval, network
from skattrib import AdamWInfluence
from skattrib._validation import draw_seeds
from skattrib.evaluation import (
    lds_score,
    loo_score,
    make_weightings,
    retrain_outcomes,
)
from skattrib.influence._aggregation import aggregate, exploding


def outcomes(net, X, y, weights, Xq, yq, outcome):
    """Return the outcomes of each seed, (n_seeds, m, q)."""
    return retrain_outcomes(
        net,
        X,
        y,
        weights,
        Xq,
        yq,
        outcome=outcome,
        n_seeds=N_SEEDS,
        return_seeds=True,
        memory=MEMORY,
    )


def main(names):
    lines = [
        ".. csv-table:: AdamWInfluence",
        '   :header: "data", "inclusion", "LDS: same seed", "LDS: 3 seeds", '
        '"leave-one-out: same seed", "leave-one-out: 3 seeds", "exploding"',
        "",
    ]
    for name in names:
        X, y, Xq, yq = load(name)
        net, outcome = network(name), OUTCOME[name]
        weights = make_weightings(len(X), N_SUBSETS, random_state=1)
        subsets = outcomes(net, X, y, weights, Xq, yq, outcome)
        one_out = None
        if name != "mnist":
            one_out = outcomes(net, X, y, 1 - np.eye(len(X)), Xq, yq, outcome)
        for inclusion in (1.0, "auto"):
            start, each = time.perf_counter(), []
            for seed in draw_seeds(0, N_SEEDS):
                own = clone(net).set_params(random_state=seed)
                influence = AdamWInfluence(
                    own, inclusion=inclusion, outcome=outcome, random_state=0
                ).fit(X, y)
                each.append(influence._each_run(Xq, yq, outcome))
            A = [aggregate(runs, "trimmed_mean")[0] for runs in each]
            joint = aggregate(np.concatenate(each), "trimmed_mean")[0]
            lds = [lds_score(F, weights @ a.T) for F, a in zip(subsets, A, strict=True)]
            cells = [
                f"{np.mean(lds):.3f} ({' '.join(f'{v:.3f}' for v in lds)})",
                interval(subsets.mean(axis=0), weights @ joint.T),
            ]
            if one_out is None:
                cells += ["", ""]
            else:
                loo = [loo_score(F, a) for F, a in zip(one_out, A, strict=True)]
                cells += [
                    f"{np.mean(loo):.3f} ({' '.join(f'{v:.3f}' for v in loo)})",
                    f"{loo_score(one_out.mean(axis=0), joint):.3f}",
                ]
            cells.append(f"{np.mean([exploding(runs).mean() for runs in each]):.3f}")
            row = ", ".join(f'"{cell}"' for cell in cells)
            lines.append(f'   "{name}", "{inclusion}", {row}')
            seconds = time.perf_counter() - start
            print(lines[-1].strip(), f"{seconds:.0f} s", flush=True)
        MEASURED.joinpath("trajectories.inc").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:] or ["digits", "breast_cancer", "wine", "diabetes", "mnist"])
