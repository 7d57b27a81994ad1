"""A fourth prior mean, and more retrained halves for fewer runs: are they better buys?

Networks of `benchmarks.deep.prior_means` whose runs disagree, 12 queries, LDS of
attributions that are added up on 200 halves, really retrained.

First table: attributions by `DualInfluence` at first order, of the frozen model of each
of the 16 runs of `AdamWInfluence` on halves, with the weights of its rows, over which
they are divided, averaged over the runs as derivatives are. *Agreement* is that of
halves of the runs on 12 training rows, of exact derivatives and of the tangents. Alone;
the mixture of exact, damped and averaged derivatives; that with the tangents as a
fourth, of equal size and weighed by agreement; and at the share of the tangents, in
twentieths, that is best on the truth itself. Alone, and after 64 further halves. CPU
seconds of the tangents, models as they are, and of the sweeps of the three.

Second table: LDS of the mixture by fewer runs and more further halves, means over the
groups of the 16 runs and over blocks of 1,024 halves. CPU seconds of fit, and of
attribute for 10 and 300 queries, from their parts, measured in one process: runs fitted
without halves; their sweep for 10 and for 30 queries, linear beyond; 128 halves
retrained; the posterior of a query. Networks that are named have their rows replaced.

    OMP_NUM_THREADS=1 python -m benchmarks.deep.alternatives [network ...]
"""

import copy
import sys
import warnings
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator

from benchmarks._data import load
from benchmarks._table import reopen, write
from benchmarks.deep.few_runs import ALL, N_RUNS, Groups
from benchmarks.deep.prior_means import NETWORKS as known
from skattrib import AdamWInfluence, DualInfluence
from skattrib.evaluation import retrain_outcomes
from skattrib.influence._prior_means import (
    Weighed,
    agreement_of,
    averaged,
    row_agreement,
)
from skattrib.models._costs import cpu_seconds  # no public name

NETWORKS = {
    name: known[name] for name in ("16x16, .01", "64x64, .01", "64x64, .01, seed 1")
}
HOW = "trimmed_mean"
SHARES = np.linspace(0, 1, 21)
#: runs and retrained halves
BUYS = (4, 1024), (8, 512), (16, 512), (16, 256)
N_POOL, SOME = 1024, 64
ASKED, N_TIMED_HALVES = (10, 30, 300), 128
FOURTH = [
    "network, learning rate",
    "agreement: exact",
    "tangents",
    "0 halves: exact",
    "tangents",
    "mixture of 3",
    "of 4",
    "at the best share",
    "64 halves: exact",
    "tangents",
    "mixture of 3",
    "of 4",
    "seconds: tangents",
    "sweeps of 3",
]
EQUAL = [
    "network, learning rate",
    "runs",
    "halves",
    "LDS",
    "seconds: fit",
    f"attribute: {ASKED[0]} queries",
    f"{ASKED[-1]} queries",
    f"together: {ASKED[0]} queries",
    f"{ASKED[-1]} queries",
]


def timed(do, *args, **options):
    """Return CPU seconds of a call, and what it returns."""
    found = []
    seconds = cpu_seconds(lambda: found.append(do(*args, **options)))
    return seconds, found[0]


# ---------------------------------------------------------------- a fourth mean
class Tangents:
    """Tangents of the models that the runs end with."""

    def __init__(self, case, influence):
        self.weights, self.duals = influence.weights_, []
        for weights in self.weights:
            half = clone(case.net).fit(*case.rows, sample_weight=weights)
            dual = DualInfluence(
                FrozenEstimator(half),
                removal="influence",
                outcome=case.outcome,
                random_state=0,
            )
            self.duals.append((dual, {"sample_weight": weights}))
        self.rows = case.rows

    def fit(self):
        for dual, options in self.duals:
            dual.fit(*self.rows, **options)

    def each_run(self, X, y):
        """Return derivatives of outcomes in the weights, (n_runs, q, n_units)."""
        found = [dual.attribute(X, y) for dual, _ in self.duals]
        return np.array(found) / self.weights[:, None]


def sized_as(prior, others):
    """Return prior means of the size of others, which all have one size."""
    sizes = [np.linalg.norm(one.means[:, 0], axis=1) for one in (others, prior)]
    scale = (sizes[0] / sizes[1])[:, None, None]
    return replace(prior, means=prior.means * scale, errors=prior.errors * scale)


def fourth(name, groups):
    """Return a row of the first table."""
    case, influence = groups.case, groups.influence
    tangents = Tangents(case, influence)
    took = timed(tangents.fit)[0]
    (X, y), *_ = influence._few_rows()
    seconds, of_queries = timed(tangents.each_run, *case.queries)
    of_rows = tangents.each_run(X, y)
    n_units = of_rows.shape[-1]
    agreement = agreement_of(row_agreement(of_rows, groups.own), n_units, N_RUNS)

    agreements = groups.agreements(slice(0, N_RUNS))
    every = np.concatenate([groups.of_queries, of_queries[None]])
    three = Weighed(ALL, tuple(agreements)).means(averaged(every[:3], HOW))
    # the name of a derivative is not looked at
    four = Weighed((*ALL, None), (*agreements, agreement)).means(averaged(every, HOW))
    four = sized_as(four, three)
    exact = averaged(every[:1], HOW).only()
    tangent, rest = four.means[:, 3], three.mixture()[0]
    best = [case.lds((1 - share) * rest + share * tangent) for share in SHARES]

    means = exact[0], tangent, rest, four.mixture()[0]
    priors = exact, (tangent, four.errors[:, 3]), (three, None), (four, None)
    told = [case.posteriors(influence, SOME, prior) for prior in priors]
    told = [np.array([one.mean for one in each]) for each in told]
    queries = influence._derivatives.queries(*case.queries, case.outcome)
    of_sweeps = cpu_seconds(partial(influence._each_run, queries, ALL))
    return [
        name,
        f"{agreements[0]:.2f}",
        f"{agreement:.2f}",
        *(f"{case.lds(one):.3f}" for one in means),
        f"{max(best):.3f} ({SHARES[np.argmax(best)]:.2f})",
        *(f"{case.lds(one):.3f}" for one in told),
        f"{took + seconds:.0f}",
        f"{of_sweeps:.0f}",
    ]


# ------------------------------------------------------------------- equal cost
class Parts:
    """CPU seconds of runs, by their number, of their sweeps, and of a half."""

    def __init__(self, case, setting):
        self.fits, self.sweeps = {}, {}
        X, y = load(setting[0])[2:]
        options = {"outcome": case.outcome, "n_halves": 0, "random_state": 0}
        for n_runs in sorted({runs for runs, _ in BUYS}):
            influence = AdamWInfluence(case.net, n_trajectories=n_runs, **options)
            self.fits[n_runs] = cpu_seconds(partial(influence.fit, *case.rows))
            self.sweeps[n_runs] = [
                cpu_seconds(partial(influence.attribute, X[:q], y[:q]))
                for q in ASKED[:2]
            ]
        new = case.draw(N_TIMED_HALVES, 13)
        rows = *case.rows, new, *case.queries
        once = partial(retrain_outcomes, case.net, *rows, outcome=case.outcome)
        self.half = cpu_seconds(once) / N_TIMED_HALVES

    def fit(self, n_runs, n_halves):
        return self.fits[n_runs] + n_halves * self.half

    def attribute(self, n_runs, n_queries):
        """Return the seconds of the sweeps, a straight line through two of them."""
        line = np.polyfit(ASKED[:2], self.sweeps[n_runs], 1)
        return float(np.polyval(line, n_queries))


def bought(groups, pool, n_runs, n_halves):
    """Return the LDS of so many runs and halves, and CPU seconds of a posterior."""
    found, seconds = [], []
    starts = range(0, N_RUNS, n_runs), range(0, N_POOL, n_halves)
    for run, half in product(*starts):
        runs, case = slice(run, run + n_runs), copy.copy(groups.case)
        case.halves, case.outcomes = (one[half : half + n_halves] for one in pool)
        several = averaged(groups.of_queries[:, runs], HOW)
        prior = Weighed(ALL, tuple(groups.agreements(runs))).means(several), None
        took, told = timed(case.posteriors, groups.influence, n_halves, prior)
        found.append(case.lds(np.array([one.mean for one in told])))
        seconds.append(took / len(told))
    return np.mean(found), np.mean(seconds)


def equal(name, groups):
    """Yield rows of the second table."""
    case = groups.case
    halves = case.draw(N_POOL, 7)
    pool, parts = (halves, case.retrain(halves)), Parts(case, NETWORKS[name])
    for n_runs, n_halves in BUYS:
        lds, posterior = bought(groups, pool, n_runs, n_halves)
        fit = parts.fit(n_runs, n_halves)
        asked = [parts.attribute(n_runs, q) + q * posterior for q in ASKED[::2]]
        seconds = fit, *asked, *(fit + one for one in asked)
        yield [
            name,
            n_runs,
            n_halves,
            f"{lds:.3f}",
            *(f"{one:.0f}" for one in seconds),
        ]


def main(names):
    means = reopen("deep_fourth_mean", "LDS on retrained halves", FOURTH)
    buys = reopen("deep_equal_cost", "LDS on retrained halves", EQUAL)
    warnings.simplefilter("ignore")
    for name in names or NETWORKS:
        groups = Groups(NETWORKS[name])
        means.put(*fourth(name, groups))
        means.rows.sort(key=lambda row: [*NETWORKS].index(row[0]))
        write("deep_fourth_mean", means)
        for row in equal(name, groups):
            buys.put(*row, n_keys=3)
        buys.rows.sort(key=lambda row: [*NETWORKS].index(row[0]))
        write("deep_equal_cost", buys)


if __name__ == "__main__":
    main(sys.argv[1:])
