"""Do attributions rank really retrained models? DualInfluence on real data.

Truth: 200 half subsets and every leave-one-out for each of 3 training seeds, all
really retrained. LDS is the mean over 50 queries of the rank correlation over
subsets, of `attribute` (added up over the units present) and of `predict_outcomes`;
95 % intervals come from a bootstrap over queries and subsets. Outcomes are margins
(−½ error² for diabetes).

    python -m benchmarks.ranking.fidelity [dataset ...]
"""

import sys
import time

import numpy as np
import sklearn

from benchmarks import _data
from benchmarks._data import DATA, N_SEEDS, N_SUBSETS, OUTCOME, lds_by_seed
from benchmarks._table import each
from benchmarks.ranking._duals import fitted, predicted
from skattrib.evaluation import lds_score, loo_score

# Predictions that factor a large matrix per subset are made for the first ones only.
N_SLOW = 60


def measure(name, removal, data, weights, subsets, one_out):
    """Print what a kind of removal gives for a data set."""
    X, y, Xq, yq = data
    outcome, start = OUTCOME[name], time.perf_counter()
    some = slice(N_SLOW if name == "mnist" else None)

    models = list(fitted(_data.network(name), X, y, removal, outcome))
    whole = [predicted(m, Xq, yq, weights[some], outcome) for m in models]
    seconds = time.perf_counter() - start

    print(f"{removal}: ridge_ {models[0].ridge_:.4f}, {seconds:.0f} s")
    print(
        f"  predict_outcomes, same seed {each(lds_by_seed(subsets[:, some], whole))}"
        ", 3-seed mean",
        _data.lds_interval(subsets.mean(axis=0)[some], np.mean(whole, axis=0)),
    )
    if removal == "refit":
        return

    found = [m.attribute(Xq, yq) for m in models]
    added, mean = [weights @ A.T for A in found], np.mean(found, axis=0)
    loo = [loo_score(*pair) for pair in zip(one_out, found, strict=True)]
    print(
        f"  attribute, same seed {each(lds_by_seed(subsets, added))}, 3-seed mean",
        _data.lds_interval(subsets.mean(axis=0), weights @ mean.T),
    )
    print(
        f"  leave-one-out, same seed {np.mean(loo):.3f}, 3-seed "
        f"{loo_score(one_out.mean(axis=0), mean):.3f}",
        flush=True,
    )


def main(names):
    print(f"{N_SUBSETS} half subsets, {N_SEEDS} seeds, 50 queries")
    for name in names:
        data = _data.load(name)
        truth = _data.truth(_data.network(name), *data, OUTCOME[name])
        pairs = [lds_score(truth[1][i - 1], truth[1][i]) for i in range(N_SEEDS)]
        print(
            f"\n{name}: n = {len(data[0])}, one seed ranks another by "
            f"{np.mean(pairs):.3f}"
        )
        for removal in ("newton", "influence", "refit"):
            if (removal, name) != ("refit", "mnist"):
                measure(name, removal, data, *truth)


if __name__ == "__main__":
    # mnist: 10,000 outputs, kernels of 400 MB
    with sklearn.config_context(working_memory=4096):
        main(sys.argv[1:] or list(DATA))
