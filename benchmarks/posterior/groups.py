"""Intervals of groups of rows, and of predicted outcomes: where do they hold?

First table: 40 random groups of rows are the units (``tasks=``), attributed with 64
halves of them retrained, against linear effects as in ``coverage``. Second: intervals
of rows are added up over groups, in quadrature, as if their errors had nothing in
common. Third: outcomes of ``predict_outcomes(return_std=True)`` and of models that were
really retrained, on new halves, on halves without further rows, on all rows without
some, and on all rows without rows of one class (fifth of the targets).

    OMP_NUM_THREADS=1 python -m benchmarks.posterior.groups
"""

import warnings

import numpy as np

from benchmarks._table import Table, write
from benchmarks.posterior._settings import (
    N_FITS,
    Case,
    Truth,
    centred,
    mean_of,
    metrics,
)
from skattrib._posterior._gaussian import half_width, posterior

NAMES = ("wine", "breast_cancer", "diabetes", "digits")
N_HALVES, N_DRAWS, N_POOL = 64, 2, 1024
N_TASKS, N_TASK_HALVES = 40, 3000
N_WEIGHTINGS, FEWER, OF_CLASS = 200, (10, 25, 50), 25


def posteriors(case, halves, outcomes):
    """Yield attributions and errors of each fit, and posteriors of its draws."""
    for fit in range(N_FITS):
        influence = case.fit(n_halves=0, random_state=fit)
        a, errors = map(np.float64, influence.attribute(*case.queries, return_std=True))
        after = []
        for draw in range(N_DRAWS):
            start = (N_DRAWS * fit + draw) * N_HALVES
            rows = slice(start, start + N_HALVES)
            question = a, errors, case.evidence(halves[rows]), outcomes[rows]
            after.append(posterior(*question, influence._knowledge()))
        yield a, errors, after


def of_tasks(name):
    """Return metrics before and after, with tasks as units."""
    case = Case(name, n_tasks=N_TASKS)
    halves = case.halves(N_TASK_HALVES)
    outcomes = case.retrain(halves)
    used = N_FITS * N_DRAWS * N_HALVES
    truth, before, after = Truth(halves[used:], outcomes[used:]), [], []
    for a, errors, found in posteriors(case, halves, outcomes):
        before.append(metrics(centred(a), errors, truth, normal=True))
        after += [metrics(each.mean, each.std, truth) for each in found]
    return mean_of(before), mean_of(after)


def of_sums(name):
    """Return coverage of 95 % intervals of rows, and of sums by kind of group."""
    case = Case(name)
    halves = case.halves(N_POOL + case.setting.n_truth)
    outcomes = case.retrain(halves)
    truth, n = Truth(halves[N_POOL:], outcomes[N_POOL:]), case.n_units
    shuffled = np.random.RandomState(0).permutation(n) % (n // 10)
    groups = {
        "rows": np.eye(n),
        "sums of 10 random rows": one_hot(shuffled),
        "sums of classes": one_hot(case.classes),
    }
    sums = {kind: truth.sums(members) for kind, members in groups.items()}
    found = []
    for _, _, after in posteriors(case, halves, outcomes):
        for each in after:
            found.append({})
            for kind, members in groups.items():
                effects, errors = sums[kind]
                std = np.hypot(np.sqrt(np.square(each.std) @ members), errors)
                inside = np.abs(each.mean @ members - effects) < half_width(std)
                found[-1][kind] = inside.mean()
    return mean_of(found)


def one_hot(codes):
    return (codes[:, None] == np.arange(codes.max() + 1)).astype(float)


def weightings(case):
    """Return weightings by name; None where too few rows would be left."""
    rng, n = np.random.RandomState(2), case.n_units
    halves = case.halves(N_POOL + case.setting.n_truth)[-N_WEIGHTINGS:]
    found = {"halves": halves}
    for k in FEWER:
        enough = n // 2 >= 2 * k
        found[f"- {k}"] = np.array([without(w, k, rng) for w in halves]) * enough
    for k in FEWER:
        full = [without(np.ones(n), k, rng) for _ in range(N_WEIGHTINGS)]
        found[f"all rows - {k}"] = np.array(full)
    one_class = []
    for i in range(N_WEIGHTINGS):
        members = case.classes == i % (case.classes.max() + 1)
        one_class.append(1 - (members - without(members.astype(float), OF_CLASS, rng)))
    found[f"all rows - {OF_CLASS} of a class"] = np.array(one_class)
    return {name: w if w.any() else None for name, w in found.items()}


def without(weights, k, rng):
    left = weights.copy()
    left[rng.permutation(np.flatnonzero(weights))[:k]] = 0
    return left


def of_predictions(name):
    """Return coverage at 95 and 68 %, and errors over deviations, by weighting."""
    case = Case(name)
    asked, found = weightings(case), {}
    fits = [case.fit(n_halves=N_HALVES, random_state=fit) for fit in range(N_FITS)]
    for kind, weights in asked.items():
        if weights is None:
            continue
        outcomes, of_fits = case.retrain(weights), []
        for influence in fits:
            predicted, std = influence.predict_outcomes(
                *case.queries, weights, return_std=True
            )
            z = (outcomes - predicted) / std
            of_fits.append(
                {
                    "95 %": (np.abs(z) < half_width(1.0)).mean(),
                    "68 %": (np.abs(z) < half_width(1.0, 0.68)).mean(),
                    "rms": np.sqrt(np.square(z).mean()),
                    "width": np.mean(std.mean(axis=0) / outcomes.std(axis=0)),
                }
            )
        found[kind] = mean_of(of_fits)
    return asked, found


def main():
    warnings.simplefilter("ignore")
    shown = ("95 %", "68 %", "width", "slope", "CRPS", "right sign", "correlation")
    tasks = Table(
        f"{N_TASKS} random groups of rows as units: attributions alone → with "
        f"{N_HALVES} halves of them retrained",
        ["set", *shown],
    )
    sums = Table(
        f"Coverage of 95 % intervals, {N_HALVES} halves, added in quadrature",
        ["set", "rows", "sums of 10 random rows", "sums of classes"],
    )
    predictions = None
    for name in NAMES:
        before, after = of_tasks(name)
        tasks.add(name, *[f"{before[w]:.3f} → {after[w]:.3f}" for w in shown])
        sums.add(name, *[f"{value:.3f}" for value in of_sums(name).values()])
        asked, found = of_predictions(name)
        predictions = predictions or Table(
            f"Predicted outcomes: coverage of 95 % intervals, of 68 % intervals, and "
            f"standard deviations over that of retrained outcomes; {N_WEIGHTINGS} "
            "retrained models each",
            ["set", *asked],
        )
        cells = [
            "{95 %:.3f}, {68 %:.2f}, {width:.2f}".format(**found[kind])
            if kind in found
            else ""
            for kind in asked
        ]
        errors = " ".join(f"{one['rms']:.2f}" for one in found.values())
        predictions.add(name, *cells, note=f"errors over deviations {errors}")
    write("posterior_groups", tasks, sums, predictions)


if __name__ == "__main__":
    main()
