"""How many runs, and with how many of the rows? AdamWInfluence on random subsets.

Data, networks and truth are those of `benchmarks.fidelity`, and digits once more with
larger networks. Many runs are differentiated once; smaller numbers of runs are
the first ones of them. LDS and leave-one-out of `attribute` by the trimmed mean; three
seeds are all their runs averaged together.

    python -m benchmarks.ensembles [dataset ...]
"""

import sys
import time

import numpy as np
from sklearn.base import clone

from benchmarks._data import load
from benchmarks._surrogates import MEASURED
from benchmarks.fidelity import N_SEEDS, N_SUBSETS, OUTCOME, interval, network
from benchmarks.trajectories import outcomes
from skattrib import AdamWInfluence
from skattrib._validation import draw_seeds
from skattrib.evaluation import lds_score, loo_score, make_weightings
from skattrib.influence._aggregation import aggregate, exploding

# name: (data, hidden layers, inclusions, numbers of runs)
CASES = {
    "digits": ("digits", (16,), (0.25, 0.5, 0.75, 0.9), (4, 8, 16, 32)),
    "digits, 64 hidden": ("digits", (64,), (0.5, 0.75), (16, 32, 64)),
    "digits, 64 and 64 hidden": ("digits", (64, 64), (0.5,), (16, 32, 64)),
    "mnist": ("mnist", (16,), (0.5,), (16, 32, 64)),
    "wine": ("wine", (16,), (0.25, 0.5, 0.75, 0.9), (4, 8, 16, 32)),
    "diabetes": ("diabetes", (16,), (0.25, 0.5, 0.75, 0.9), (4, 8, 16, 32)),
}


def each_run(net, X, y, Xq, yq, outcome, inclusion, n_runs):
    """Return the attributions of every run of every seed, (seeds, runs, q, n)."""
    found = []
    for seed in draw_seeds(0, N_SEEDS):
        influence = AdamWInfluence(
            clone(net).set_params(random_state=seed),
            inclusion=inclusion,
            n_trajectories=n_runs,
            outcome=outcome,
            random_state=0,
        ).fit(X, y)
        found.append(influence._each_run(Xq, yq, outcome).astype(np.float32))
    return np.array(found)


def rows(case):
    """Yield a line of the table for every inclusion and number of runs."""
    name, hidden, inclusions, numbers = CASES[case]
    X, y, Xq, yq = load(name)
    net, outcome = network(name, hidden_layer_sizes=hidden), OUTCOME[name]
    weights = make_weightings(len(X), N_SUBSETS, random_state=1)
    subsets = outcomes(net, X, y, weights, Xq, yq, outcome)
    one_out = None
    if name != "mnist":
        one_out = outcomes(net, X, y, 1 - np.eye(len(X)), Xq, yq, outcome)
    for inclusion in inclusions:
        start = time.perf_counter()
        found = each_run(net, X, y, Xq, yq, outcome, inclusion, max(numbers))
        seconds = time.perf_counter() - start
        for k in numbers:
            some = found[:, :k]  # halves stay in their pairs
            A = [aggregate(runs, "trimmed_mean")[0] for runs in some]
            joint = aggregate(np.concatenate(some), "trimmed_mean")[0]
            lds = [lds_score(F, weights @ a.T) for F, a in zip(subsets, A, strict=True)]
            cells = [
                f"{np.mean(lds):.3f} ({' '.join(f'{v:.3f}' for v in lds)})",
                interval(subsets.mean(axis=0), weights @ joint.T),
                "",
            ]
            if one_out is not None:
                loo = [loo_score(F, a) for F, a in zip(one_out, A, strict=True)]
                cells[-1] = f"{np.mean(loo):.3f}"
            cells.append(f"{np.mean([exploding(runs).mean() for runs in some]):.3f}")
            line = ", ".join(f'"{cell}"' for cell in cells)
            print(case, inclusion, k, line, f"{seconds:.0f} s", flush=True)
            yield f'   "{case}", {inclusion}, {k}, {line}'


def main(cases):
    head = [
        ".. csv-table:: Inclusion and number of runs",
        '   :header: "data", "inclusion", "runs a seed", "LDS: same seed", '
        '"LDS: 3 seeds", "leave-one-out: same seed", "exploding"',
        "",
    ]
    for case in cases:
        path = MEASURED / f"ensembles_{case.replace(',', '').replace(' ', '_')}.inc"
        lines = list(rows(case))
        path.write_text("\n".join(head + lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:] or list(CASES))
