"""How much does one split say? DualInfluence on several shuffles of the digits.

The setting of `benchmarks.fidelity` (512 rows, 50 queries, margins, 200 half subsets,
three training seeds), with the rows shuffled anew. All parameters have their defaults,
`removal` excepted; "refit" is predicted for whole subsets, the others are `attribute`
added up over the rows present.

    python -m benchmarks.splits [number of shuffles]
"""

import sys

import numpy as np
from sklearn.base import clone
from sklearn.datasets import load_digits

from benchmarks._surrogates import MEASURED
from benchmarks.fidelity import N_SEEDS, N_SUBSETS, network
from benchmarks.trajectories import outcomes
from skattrib import DualInfluence
from skattrib._validation import draw_seeds
from skattrib.evaluation import lds_score, make_weightings


def split(shuffle):
    X, y = load_digits(return_X_y=True)
    order = np.random.RandomState(shuffle).permutation(len(y))
    X, y = (X[order] / 16).astype(np.float32), y[order]
    return X[:512], y[:512], X[1000:1050], y[1000:1050]


def scores(shuffle):
    """Return LDS by removal: mean of one model, and of three seeds together."""
    X, y, Xq, yq = split(shuffle)
    net, found = network("digits"), {}
    weights = make_weightings(len(X), N_SUBSETS, random_state=1)
    truth = outcomes(net, X, y, weights, Xq, yq, "margin")
    for removal in ("newton", "influence", "refit"):
        # a refit without each row takes long and is not asked for: two units do
        units = np.arange(len(X)) % 2 if removal == "refit" else None
        predicted = []
        for seed in draw_seeds(0, N_SEEDS):
            model = DualInfluence(
                clone(net).set_params(random_state=seed),
                removal=removal,
                outcome="margin",
                random_state=0,
            ).fit(X, y, tasks=units)
            if removal == "refit":
                rows = weights.astype(X.dtype)
                predicted.append(model._predict_rows(Xq, yq, rows, "margin"))
            else:
                predicted.append(weights @ model.attribute(Xq, yq).T)
        own = [lds_score(t, p) for t, p in zip(truth, predicted, strict=True)]
        together = lds_score(truth.mean(axis=0), np.mean(predicted, axis=0))
        found[removal] = np.mean(own), together
        print(shuffle, removal, *(f"{v:.3f}" for v in found[removal]), flush=True)
    return found


def main(n_shuffles):
    found = [scores(shuffle) for shuffle in range(n_shuffles)]
    lines = [
        f".. csv-table:: LDS over {n_shuffles} shuffles of the digits ± standard error",
        '   :header: "removal", "same seed", "3 seeds", "same seed, by shuffle"',
        "",
    ]
    for removal in found[0]:
        values = np.array([f[removal] for f in found])
        errors = values.std(axis=0, ddof=1) / n_shuffles**0.5
        cells = [f"{m:.3f} ± {e:.3f}" for m, e in zip(values.mean(axis=0), errors)]
        each = " ".join(f"{v:.3f}" for v in values[:, 0])
        lines.append(f'   "{removal}", "{cells[0]}", "{cells[1]}", "{each}"')
        print(lines[-1])
    MEASURED.joinpath("splits.inc").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 6)
