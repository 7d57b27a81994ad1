"""Do attributions rank really retrained models? DualInfluence on real data.

Truth: 200 half subsets and every leave-one-out for each of 3 training seeds, all
really retrained. LDS is the mean over 50 queries of the rank correlation over
subsets, of `attribute` (added up over the units present) and of `predict_outcomes`;
95 % intervals come from a bootstrap over queries and subsets. Outcomes are margins
(−½ error² for diabetes).

    python -m benchmarks.fidelity [dataset ...]
"""

import sys
import time

import numpy as np
import sklearn
from sklearn.base import clone

from benchmarks._data import DATA, load
from skattrib import DualInfluence, TorchClassifier, TorchRegressor
from skattrib._validation import draw_seeds
from skattrib.evaluation import (
    lds_score,
    loo_score,
    make_weightings,
    retrain_outcomes,
)

N_SUBSETS, N_SEEDS = 200, 3
# Predictions that factor a large matrix per subset are made for the first ones only.
N_SLOW = 60
MEMORY = "benchmarks/.cache"


OUTCOME = dict.fromkeys(DATA, "margin") | {"diabetes": "log_likelihood"}


def network(name, **options):
    options = {
        "hidden_layer_sizes": (16,),
        "activation": "relu",
        "batch_size": 32,
        "max_epochs": 15,
        "random_state": 0,
        **options,
    }
    kind = TorchRegressor if name == "diabetes" else TorchClassifier
    return kind(**options)


def truth(net, X, y, Xq, yq, outcome):
    """Return subsets, their outcomes by seed, and leave-one-out outcomes by seed."""
    weights = make_weightings(len(X), N_SUBSETS, random_state=1)
    options = {
        "outcome": outcome,
        "n_seeds": N_SEEDS,
        "return_seeds": True,
        "memory": MEMORY,
    }
    subsets = retrain_outcomes(net, X, y, weights, Xq, yq, **options)
    one_out = retrain_outcomes(net, X, y, 1 - np.eye(len(X)), Xq, yq, **options)
    return weights, subsets, one_out


def interval(outcomes, predicted):
    found = lds_score(outcomes, predicted, confidence=0.95, random_state=0)
    return f"{found.score:.3f} [{found.low:.3f}, {found.high:.3f}]"


def main(names):
    print(f"{N_SUBSETS} half subsets, {N_SEEDS} seeds, 50 queries")
    for name in names:
        X, y, Xq, yq = load(name)
        outcome = OUTCOME[name]
        net = network(name)
        weights, subsets, one_out = truth(net, X, y, Xq, yq, outcome)
        seeds = draw_seeds(0, N_SEEDS)
        pairs = [lds_score(subsets[i - 1], subsets[i]) for i in range(N_SEEDS)]
        print(f"\n{name}: n = {len(X)}, one seed ranks another by {np.mean(pairs):.3f}")
        for removal in ["newton", "influence", "refit"]:
            if removal == "refit" and name == "mnist":
                continue
            start = time.perf_counter()
            some = slice(N_SLOW if name == "mnist" else None)
            # a refit without each row takes long and is not asked for: two units do
            units = np.arange(len(X)) % 2 if removal == "refit" else None
            models, found, predicted = [], [], []
            for seed in seeds:
                model = DualInfluence(
                    clone(net).set_params(random_state=seed),
                    removal=removal,
                    outcome=outcome,
                    random_state=0,
                ).fit(X, y, tasks=units)
                models.append(model)
                found.append(model.attribute(Xq, yq))
                rows = weights[some].astype(X.dtype)
                predicted.append(
                    model._predict_rows(Xq, yq, rows, OUTCOME[name])
                    if removal == "refit"
                    else model.predict_outcomes(Xq, yq, rows)
                )
            seconds = time.perf_counter() - start
            print(
                f"{removal:>9}: ridge_ {models[0].ridge_:.4f} ({models[0].solver_})"
                f", {seconds:.0f} s"
            )
            by_seed = [
                lds_score(t[some], p) for t, p in zip(subsets, predicted, strict=True)
            ]
            print(
                "           predict_outcomes, same seed "
                f"{np.mean(by_seed):.3f} {np.round(by_seed, 3)}, 3-seed mean "
                f"{interval(subsets.mean(0)[some], np.mean(predicted, axis=0))}"
            )
            if removal == "refit":
                continue
            by_seed = [
                lds_score(t, weights @ a.T) for t, a in zip(subsets, found, strict=True)
            ]
            loo = [loo_score(t, a) for t, a in zip(one_out, found, strict=True)]
            mean = np.mean(found, axis=0)
            print(
                "           attribute,        same seed "
                f"{np.mean(by_seed):.3f} {np.round(by_seed, 3)}, 3-seed mean "
                f"{interval(subsets.mean(0), weights @ mean.T)}; leave-one-out same "
                f"seed {np.mean(loo):.3f}, 3-seed "
                f"{loo_score(one_out.mean(0), mean):.3f}"
            )


if __name__ == "__main__":
    # mnist: 10,000 outputs, kernels of 400 MB
    with sklearn.config_context(working_memory=4096):
        main(sys.argv[1:] or list(DATA))
