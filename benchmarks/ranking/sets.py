"""Outcomes of a whole query set: are they ranked, and does acting on them help?

Telecom churn (``modeldata::wa_churn``), a network of two hidden layers of 64, 1,000
training rows. Outcomes of 500 validation rows: their mean log-likelihood, a soft AUROC,
and minus the gap in the probability of churn, given churn, between senior citizens and
others. First table: LDS of one number, over 100 models retrained on halves;
attributions are added up over the units present. Second: the 5 % of the rows that hurt
the validation outcome most, as each attributor says, are left out; the outcome is
measured on 3,000 other rows, mean over three training seeds. They are compared with the
rows of the highest training loss and, five draws of each, with random rows and with as
many random rows of either class. A win: a larger gain than the mean over the random
draws has. All of it over six splits of the table. A soft AUROC also rises where
log-odds only become larger, so the area itself is measured beside it. A gap has an
optimum: its last row leaves out as many rows as are predicted to close that of the
validation rows, if these are fewer, and is compared with the same random rows.

    OMP_NUM_THREADS=1 python -m benchmarks.ranking.sets
"""

import warnings
from functools import partial

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.preprocessing import scale

from benchmarks._data import half_subsets
from benchmarks._table import Table, pm, write
from benchmarks.ranking.first_page import churn
from skattrib import AdamWInfluence, DualInfluence, TorchClassifier
from skattrib.evaluation import (
    SetOutcome,
    group_gap,
    lds_score,
    retrain_outcomes,
    soft_auroc,
)

N_TRAIN, N_VALIDATION, N_TEST, N_HALVES = 1000, 500, 3000, 100
N_SPLITS, N_DRAWS, N_SEEDS, DROPPED = 6, 5, 3, 0.05


AREA, WHOLE = "AUROC itself, soft one attributed", "with all rows"
GAP, CLOSED = "minus gap, senior citizens", "minus gap, rows until it is closed"


def mean_log_likelihood(outputs, targets):
    log_p = outputs.log_softmax(-1)
    return log_p.gather(-1, targets[..., None])[..., 0].mean(-1)


def area(outputs, targets):
    """The limit of the soft AUROC, which larger log-odds do not raise."""
    return soft_auroc(1e-6)(outputs, targets)


OUTCOMES = {
    "mean log-likelihood": lambda seniors: SetOutcome(mean_log_likelihood),
    "soft AUROC": lambda seniors: soft_auroc(),
    GAP: group_gap,
}
ATTRIBUTORS = {
    "DualInfluence": DualInfluence,
    "AdamWInfluence": partial(AdamWInfluence, n_halves=0),
}
DRAWN = {"random": "random", "balanced": "random, as many of either class"}
LOSS = "highest loss"


def network():
    return TorchClassifier(
        hidden_layer_sizes=(64, 64), max_epochs=10, batch_size=128, random_state=0
    )


def splits():
    """Yield rows, labels and whether each is a senior citizen, for each purpose."""
    table, labels = churn()
    X = scale(pd.get_dummies(table, drop_first=True).to_numpy(dtype=float))
    X, y = X.astype(np.float32), (labels == "Yes").to_numpy(dtype=int)
    seniors = table["senior_citizen"].to_numpy()
    for seed in range(N_SPLITS):
        order = np.random.RandomState(seed).permutation(len(y))
        ends = np.cumsum([N_TRAIN, N_VALIDATION, N_TEST])
        parts = np.split(order[: ends[-1]], ends[:-1])
        yield seed, [(X[part], y[part], seniors[part]) for part in parts]


def without(rows):
    weights = np.ones(N_TRAIN)
    weights[rows] = 0
    return weights


def baselines(net, X, y, rng):
    """Return weightings without the rows of the highest loss, and without others."""
    n = round(DROPPED * N_TRAIN)
    p = clone(net).fit(X, y).predict_proba(X)[np.arange(N_TRAIN), y]
    found = {LOSS: [without(np.argsort(p)[:n])], "random": [], "balanced": []}
    for _ in range(N_DRAWS):
        found["random"].append(without(rng.permutation(N_TRAIN)[:n]))
        half = [rng.permutation(np.flatnonzero(y == k))[: n // 2] for k in (0, 1)]
        found["balanced"].append(without(np.concatenate(half)))
    return found


def measure(seed, train, validation, test):
    """Return LDS, and changes of the outcome on test rows, by outcome and method."""
    (X, y, _), net = train, network()
    halves = half_subsets(N_TRAIN, N_HALVES, random_state=seed)
    n = round(DROPPED * N_TRAIN)
    others = baselines(net, X, y, np.random.RandomState(seed))
    fitted = {
        name: kind(net, random_state=0).fit(X, y) for name, kind in ATTRIBUTORS.items()
    }
    ranks, gains = {}, {}
    for name, make in OUTCOMES.items():
        outcome, measured = make(validation[2]), make(test[2])
        weights = np.vstack([np.ones((1, N_TRAIN)), halves])
        present, *truth = retrain_outcomes(
            net, X, y, weights, *validation[:2], outcome=outcome
        )
        dropped = dict(others)
        for method, attributor in fitted.items():
            attributor.set_params(outcome=outcome)
            attributions = attributor.attribute(*validation[:2])[0]
            ranks[name, method] = lds_score(truth, halves @ attributions[:, None])
            order = np.argsort(attributions)[:n]
            dropped[method] = [without(order)]
            if name == GAP:
                gained = -attributions[order].cumsum()
                n_closing = np.searchsorted(gained, -present[0]) + 1
                dropped[method, CLOSED] = [without(order[:n_closing])]
        weights = np.vstack([np.ones((1, N_TRAIN)), *map(np.array, dropped.values())])
        asked = {name: measured}
        if name == "soft AUROC":
            asked[AREA] = SetOutcome(area)
        places = np.cumsum([1, *map(len, dropped.values())])
        for what, function in asked.items():
            outcomes = retrain_outcomes(
                net, X, y, weights, *test[:2], outcome=function, n_seeds=N_SEEDS
            )[:, 0]
            gains[what, WHOLE] = outcomes[0]
            of_each = np.split(outcomes, places[:-1])[1:]
            for method, values in zip(dropped, of_each, strict=True):
                row = method if isinstance(method, tuple) else (method, what)
                gains[row[::-1]] = np.mean(values) - outcomes[0]
        if name == GAP:
            same = (WHOLE, LOSS, *DRAWN)
            gains |= {(CLOSED, method): gains[GAP, method] for method in same}
    return ranks, gains


def main():
    warnings.simplefilter("ignore")
    ranks, gains = [], []
    for seed, parts in splits():
        of_split = measure(seed, *parts)
        ranks.append(of_split[0])
        gains.append(of_split[1])
        print(f"split {seed}", flush=True)
    table = Table(
        f"LDS of the outcome of a set, {N_HALVES} halves, mean ± standard error of "
        f"{N_SPLITS} splits",
        ["outcome", *ATTRIBUTORS],
    )
    for name in OUTCOMES:
        cells = [pm([found[name, method] for found in ranks]) for method in ATTRIBUTORS]
        table.add(name, *cells)

    loop = Table(
        f"Change on new rows without {DROPPED:.0%} of the training rows, in "
        f"thousandths, mean ± standard error (wins over random of {N_SPLITS})",
        ["outcome", WHOLE, *ATTRIBUTORS, LOSS, *DRAWN.values()],
    )
    names = list(OUTCOMES)
    for name in [*names[:2], AREA, *names[2:], CLOSED]:
        cells = [f"{np.mean([found[name, WHOLE] for found in gains]):.3f}"]
        chance = np.array([found[name, "random"] for found in gains])
        for method in [*ATTRIBUTORS, LOSS, *DRAWN]:
            values = np.array([found[name, method] for found in gains])
            wins = "" if method == "random" else f" ({(values > chance).sum()})"
            cells.append(pm(1000 * values, digits=1) + wins)
        loop.add(name, *cells)
    write("sets", table, loop)


if __name__ == "__main__":
    main()
