"""Do sizes and intervals of attributions hold?

True effects are linear effects on retrained halves, by least squares, of 30 queries;
their own error is added in quadrature to the intervals. Attributions of AdamWInfluence,
two fits, by themselves (``n_halves=0``) and with the posterior of 64 retrained halves,
two draws for each fit. Outcomes are margins, of regressions -1/2 error^2. Beside it:
other numbers of halves, the additive share found by the likelihood of each query in the
place of a fixed one, and no part of the errors that rows of a class have in common.

    OMP_NUM_THREADS=1 python -m benchmarks.posterior.coverage
"""

import sys
import time
import warnings
from dataclasses import replace

import numpy as np

from benchmarks._table import Table, write
from benchmarks.posterior._settings import (
    N_FITS,
    SETTINGS,
    Case,
    Truth,
    centred,
    check_pool,
    mean_of,
    metrics,
)
from skattrib._posterior._gaussian import Halves, posterior, query_posterior

N_HALVES, N_DRAWS = 64, 2
N_POOL = 1024  # halves that posteriors are made from; all others are the truth
SIZES = (16, 32, 64, 128, 256)
# of the additive share, where each query's halves tell it
PRIOR_SHARE, PRIOR_SD = 0.55, 0.6
FIXED, FOUND, ALONE = "64", "share by likelihood", "no class block"


def by_likelihood(a, errors, halves, outcomes, knowledge):
    """Return means and deviations (q, n), each query with a share of its own."""
    told = replace(knowledge, share=PRIOR_SHARE, spread=PRIOR_SD)
    mean, std = np.empty((2, *a.shape))
    for i in range(len(a)):
        found = query_posterior(a[i], errors[i], halves, outcomes[:, i], told)
        mean[i], std[i] = found.mean, found.std
    return mean, std


def measure(case):
    """Return truth, and metrics by what was done with how many halves."""
    started = time.process_time()
    halves = case.halves(N_POOL + case.setting.n_truth)
    outcomes = case.retrain(halves)
    truth = Truth(halves[N_POOL:], outcomes[N_POOL:])
    seconds = time.process_time() - started
    print(
        f"{case.name}: error of the truth {truth.relative_error:.3f}, {seconds:.0f} s"
    )
    found = {"before": []} | {str(m): [] for m in SIZES} | {FOUND: [], ALONE: []}
    for fit in range(N_FITS):
        influence = case.fit(n_halves=0, random_state=fit)
        a, errors = map(np.float64, influence.attribute(*case.queries, return_std=True))
        found["before"].append(metrics(centred(a), errors, truth, normal=True))
        knowledge = influence._knowledge()
        for m in SIZES:
            for draw in range(N_DRAWS):
                start = (N_DRAWS * fit + draw) * m
                rows = slice(start, start + m)
                evidence, drawn = case.evidence(halves[rows]), outcomes[rows]
                after = posterior(a, errors, evidence, drawn, knowledge)
                found[str(m)].append(metrics(after.mean, after.std, truth))
                if m != N_HALVES:
                    continue
                after = by_likelihood(a, errors, evidence, drawn, knowledge)
                found[FOUND].append(metrics(*after, truth))
                alone = Halves(halves[rows].astype(bool))
                after = posterior(a, errors, alone, drawn, knowledge)
                found[ALONE].append(metrics(after.mean, after.std, truth))
    return truth, {name: mean_of(values) for name, values in found.items()}


def label(case, truth):
    halves = case.setting.n_truth
    return f"{case.name} ({case.n_units}; {halves}, {truth.relative_error:.2f})"


def main(names):
    warnings.simplefilter("ignore")
    check_pool(Case("wine"))
    shown = ("95 %", "68 %", "width", "slope", "sd of own slopes", "CRPS", "right sign")
    shown += ("correlation",)
    table = Table(
        f"Attributions alone → with {N_HALVES} retrained halves; set (rows; halves of "
        "the truth, its error over the sd of effects)",
        ["set", *shown],
    )
    others = Table(
        "Coverage of 95 % intervals, and CRPS, by number of halves; and with "
        f"{N_HALVES}, other ways",
        ["set", "0", *map(str, SIZES), FOUND, ALONE],
    )
    everything = []
    for name in names:
        case = Case(name)
        truth, found = measure(case)
        everything.append(found)
        before, after = found["before"], found[FIXED]
        pairs = [f"{before[what]:.3f} → {after[what]:.3f}" for what in shown]
        table.add(label(case, truth), *pairs)
        others.add(name, *_cells(found))
    mean = {
        which: mean_of([found[which] for found in everything])
        for which in everything[0]
    }
    pairs = [f"{mean['before'][w]:.3f} → {mean[FIXED][w]:.3f}" for w in shown]
    table.add("mean", *pairs)
    others.add("mean", *_cells(mean))
    if len(names) == len(SETTINGS):
        write("posterior_coverage", table, others)


def _cells(found):
    return [f"{one['95 %']:.3f} ({one['CRPS']:.3f})" for one in found.values()]


if __name__ == "__main__":
    main(sys.argv[1:] or SETTINGS)
