"""Is the exact derivative of few runs enough where they agree?

Networks of `benchmarks.deep.prior_means`, two very calm ones and one between calm and
rough; the 16 runs of `AdamWInfluence`, in groups of 8, 4 and 2. LDS on 200 retrained
halves, means over the groups: of the exact derivatives of a group, and of their mixture
with damped and averaged ones; alone, and after 64 further halves. *Agreement* is that
of the group's own runs, brought to eight in each half: least, mean and largest. *At
worst*: the least difference, exact less mixture, of a group without halves. Networks
that are named have their rows replaced.

    OMP_NUM_THREADS=1 python -m benchmarks.deep.few_runs [network ...]
"""

import sys
import warnings

import numpy as np

from benchmarks._table import reopen, write
from benchmarks.deep.prior_means import NETWORKS as known
from benchmarks.deep.prior_means import Case, hidden
from skattrib import AdamWInfluence
from skattrib.influence._prior_means import (
    AVERAGED,
    DAMPED,
    EXACT,
    Weighed,
    agreement_of,
    averaged,
    row_agreement,
)

N_RUNS, SIZES = 16, (8, 4, 2)
ALL = EXACT, DAMPED, AVERAGED
VERY_CALM = {
    "wine 16, .01": ("wine", hidden(16), 12),
    "64x64, .001": ("digits", hidden(64, 64, lr=1e-3), 12),
}
BETWEEN = {"16x16, .003": ("digits", hidden(16, 16, lr=3e-3), 12)}
NETWORKS = {
    **VERY_CALM,
    **{name: known[name] for name in ("16, .01", "wine 64x64, .01", "64x64, .003")},
    **BETWEEN,
    **{name: known[name] for name in ("16x16, .01", "64x64, .01, seed 1")},
}
HEADER = [
    "network, learning rate",
    "runs",
    "agreement",
    "0 halves: exact",
    "mixture",
    "at worst",
    "64 halves: exact",
    "mixture",
]


class Groups:
    """All runs of a network, swept once, of which some are looked at."""

    def __init__(self, setting):
        self.case = case = Case(setting)
        options = {"outcome": case.outcome, "n_halves": 0, "random_state": 0}
        self.influence = AdamWInfluence(case.net, n_trajectories=N_RUNS, **options)
        self.influence.fit(*case.rows)
        derivatives, decay = self.influence._derivatives, AVERAGED.decay
        for runs in self.influence._runs:
            runs.averages[decay] = derivatives.averages(runs, decay)
        few, places, outcome = self.influence._few_rows()
        self.own = self.influence._unit_of_row[places]
        self.of_rows, self.of_queries = (
            self.influence._each_run(derivatives.queries(*rows, outcome), ALL)
            for rows in (few, case.queries)
        )

    def agreements(self, runs):
        n_units = self.of_rows.shape[-1]
        found = [row_agreement(one[runs], self.own) for one in self.of_rows]
        n_runs = runs.stop - runs.start
        return [agreement_of(one, n_units, n_runs) or 0.0 for one in found]

    def measures(self, runs):
        """Return the agreement, and LDS without halves and after 64, by two ways."""
        agreements = self.agreements(runs)
        exact = averaged(self.of_queries[:1, runs], "trimmed_mean").only()
        mixture = averaged(self.of_queries[:, runs], "trimmed_mean")
        mixture = Weighed(ALL, tuple(agreements)).means(mixture), None
        found = [agreements[0]]
        for alone, prior in ((exact[0], exact), (mixture[0].mixture()[0], mixture)):
            told = self.case.posteriors(self.influence, 64, prior)
            means = np.array([one.mean for one in told])
            found += [self.case.lds(alone), self.case.lds(means)]
        return found


def rows(name):
    """Yield rows of the table."""
    groups = Groups(NETWORKS[name])
    for size in SIZES:
        found = np.array(
            [
                groups.measures(slice(first, first + size))
                for first in range(0, N_RUNS, size)
            ]
        )
        agreement, exact, exact_told, mixed, mixed_told = found.T
        shown = agreement.min(), agreement.mean(), agreement.max()
        yield [
            name,
            size,
            ", ".join(f"{value:.2f}" for value in shown),
            f"{exact.mean():.3f}",
            f"{mixed.mean():.3f}",
            f"{(exact - mixed).min():.3f}",
            f"{exact_told.mean():.3f}",
            f"{mixed_told.mean():.3f}",
        ]


def main(names):
    table = reopen("deep_few_runs", "LDS on retrained halves, of few runs", HEADER)
    for name in names or NETWORKS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for row in rows(name):
                table.put(*row, n_keys=2)
        table.rows.sort(key=lambda row: ([*NETWORKS].index(row[0]), -int(row[1])))
        write("deep_few_runs", table)


if __name__ == "__main__":
    main(sys.argv[1:])
