"""Runs that are differentiated, or halves that are retrained: what is a better buy?

LDS on 1,000 retrained halves that nothing was fitted to, of 30 queries, mean of two
fits of AdamWInfluence; fewer runs, or halves, are the first ones of the same. CPU
seconds of each part are measured here, in one process: four and sixteen runs trained,
and swept for 10 and for 300 queries, a half retrained, the posterior of a query. Then
the defaults that one could have: so many runs, and so many halves for each.
``--figure`` draws the figure alone, from the tables that this and `peers` have written.

    OMP_NUM_THREADS=1 python -m benchmarks.posterior.frontier [--figure]
"""

import re
import sys
import time
import warnings
from itertools import product

import numpy as np

from benchmarks._table import Table, axes, read, write
from benchmarks.posterior._settings import N_FITS, N_QUERIES, Case
from skattrib._posterior._gaussian import posterior
from skattrib.evaluation import lds_score
from skattrib.influence._aggregation import aggregate, exploding

NAMES = ("wine", "diabetes", "digits", "digits 16x16")
RUNS, HALVES = (2, 4, 8, 16, 32, 64), (0, 64, 128, 256, 512, 1024, 2048)
N_HELD_OUT, N_TIMED_HALVES = 1000, 128
TIMED_RUNS = (4, 16)  # stacks: what all runs cost, and what each costs
ASKED = (10, 300)
PER_RUN, FEW_RUNS = (8, 16, 32, 64), (4, 8, 16)
FEWEST, MOST = 64, 1024  # halves that n_halves="auto" takes
DEFAULT = 16, 512  # runs and halves


def clock(do, *args, **options):
    started = time.process_time()
    found = do(*args, **options)
    return time.process_time() - started, found


class Measured:
    """LDS by numbers of runs and halves, and the CPU seconds of their parts."""

    def __init__(self, name):
        self.case = case = Case(name)
        halves = case.halves(max(HALVES) + N_HELD_OUT)
        outcomes = case.retrain(halves)
        ranked = halves[max(HALVES) :], outcomes[max(HALVES) :]
        self.lds = {cell: [] for cell in product(RUNS, HALVES)}
        self.posterior = {0: 0.0} | {m: [] for m in HALVES[1:]}
        evidence = {m: case.evidence(halves[:m]) for m in HALVES[1:]}
        for fit in range(N_FITS):
            options = {"n_trajectories": max(RUNS), "n_halves": 0}
            influence = case.fit(random_state=fit, **options)
            queries = influence._derivatives.queries(*case.queries, case.outcome)
            each_run = influence._each_run(queries).astype(np.float64)
            knowledge = influence._knowledge()
            for k, m in self.lds:
                runs = each_run[:k]
                a, errors = aggregate(runs, "trimmed_mean", exploding(runs))
                if m:
                    question = a, errors, evidence[m], outcomes[:m], knowledge
                    seconds, after = clock(posterior, *question)
                    self.posterior[m].append(seconds / N_QUERIES)
                    a = after.mean
                self.lds[k, m].append(lds_score(ranked[1], ranked[0] @ a.T))
        self.lds = {cell: np.mean(values) for cell, values in self.lds.items()}
        self.posterior = {m: np.mean(times) for m, times in self.posterior.items()}
        self._time()

    def _time(self):
        """Measure runs, their sweeps, and a half: the mean of a few."""
        case, (X, y) = self.case, self.case.others
        case.fit(n_trajectories=2, n_halves=0)  # what is slower at first
        self.runs, self.sweeps = [], {q: [] for q in ASKED}
        for k in TIMED_RUNS:
            seconds, influence = clock(case.fit, n_trajectories=k, n_halves=0)
            self.runs.append(seconds)
            for q in ASKED:
                rows = np.arange(q) % len(X)
                queries = influence._derivatives.queries(X[rows], y[rows], case.outcome)
                self.sweeps[q].append(clock(influence._each_run, queries)[0])
        new = case.halves(max(HALVES) + N_HELD_OUT + N_TIMED_HALVES)[-N_TIMED_HALVES:]
        seconds, _ = clock(case.retrain, new, memory=None)
        self.half = seconds / N_TIMED_HALVES

    def seconds(self, k, m, q):
        """Return what k runs, m halves and q queries take."""
        runs = np.add(self.runs, self.sweeps[q])
        each = np.diff(runs)[0] / np.diff(TIMED_RUNS)[0]
        of_runs = runs[-1] + (k - TIMED_RUNS[-1]) * each
        after = np.interp(m, list(self.posterior), list(self.posterior.values()))
        return of_runs + m * self.half + q * after

    def lds_of(self, k, m):
        """Return LDS; between measured numbers of halves by their logarithm."""
        known = np.log([max(h, 16) for h in HALVES])
        return np.interp(np.log(m), known, [self.lds[k, h] for h in HALVES])

    def frontier(self, q):
        """Return the seconds and LDS of cells that nothing cheaper is as good as."""
        return frontier([(self.seconds(*cell, q), x) for cell, x in self.lds.items()])

    def shortfall(self, k, multiple, q):
        """Return LDS of a default, seconds, and LDS below the best at its seconds."""
        m = int(np.clip(multiple * k, FEWEST, MOST))
        lds, seconds = self.lds_of(k, m), self.seconds(k, m, q)
        took, reached = self.frontier(q).T
        # a default may be between two cells, and the frontier is then as well
        best = np.interp(np.log(seconds), np.log(took), reached)
        return lds, seconds, best - lds


def frontier(cells):
    """Return the seconds and LDS that nothing cheaper is as good as."""
    best = [(0, -np.inf)]
    for cell in sorted(cells):
        if cell[1] > best[-1][1]:
            best.append(cell)
    return np.array(best[1:])


def cells_of(table):
    """Return LDS and seconds, for each number of queries, by runs and halves."""
    found = {}
    for k, *cells in table.rows:
        for m, cell in zip(table.header[1:], cells, strict=True):
            found[int(k), int(m)] = [*map(float, re.findall(r"[^ (/)]+", cell))]
    return found


def draw_ours(axis, cells):
    for i, (q, style) in enumerate(zip(ASKED, ("o-C0", "s--C1"), strict=True), 1):
        points = frontier([(cell[i], cell[0]) for cell in cells.values()])
        axis.semilogx(*points.T, style, label=f"{q} queries", ms=4)
    lds, *seconds = cells[DEFAULT]
    label = "{} runs, {} halves".format(*DEFAULT)
    axis.plot(seconds, [lds] * len(seconds), "*k", label=label, ms=9)


def draw_trak(axis, rows):
    _, models, lds, seconds, _ = zip(*rows, strict=True)
    points = [*map(float, seconds)], [*map(float, lds)]
    axis.plot(*points, "^:C2", label=f"TRAK, {'/'.join(models)} models", ms=5)


def figure():
    """Draw the tables of this benchmark, and that of TRAK."""
    ours = {one.caption.partition(":")[0]: one for one in read("posterior_frontier")}
    (trak,) = read("posterior_peers")
    with axes("posterior_frontier", len(NAMES), (3 * len(NAMES), 3.4)) as shown:
        for axis, name in zip(shown, NAMES, strict=True):
            draw_ours(axis, cells_of(ours[name]))
            if rows := [row for row in trak.rows if row[0] == name]:
                draw_trak(axis, rows)
            axis.set(title=name, xlabel="CPU seconds", ylabel="LDS")
            axis.xaxis.set_minor_formatter(lambda *_: "")  # they would overlap
        handles, labels = shown[0].get_legend_handles_labels()
        below = {"loc": "outside lower center", "frameon": False, "ncols": len(labels)}
        shown[0].figure.legend(handles, labels, **below)


def table_of(name, one):
    """Return a table of LDS, with the seconds of each cell."""
    table = Table(
        f"{name}: LDS by runs and retrained halves (CPU seconds for "
        f"{' / '.join(map(str, ASKED))} queries)",
        ["runs", *map(str, HALVES)],
    )
    for k in RUNS:
        cells = [
            f"{one.lds[k, m]:.3f} "
            f"({' / '.join(f'{one.seconds(k, m, q):.3g}' for q in ASKED)})"
            for m in HALVES
        ]
        table.add(k, *cells)
    return table


def costs(measured):
    """Return a table of what the parts cost."""
    swept = [f"swept for {q} queries" for q in ASKED]
    table = Table(
        f"CPU seconds of one of {TIMED_RUNS[-1]} runs, over those of a retrained half",
        ["set", "a half, ms", "trained", *swept],
    )
    for name, one in measured.items():
        parts = [one.runs[-1], *[seconds[-1] for seconds in one.sweeps.values()]]
        cells = [f"{x / TIMED_RUNS[-1] / one.half:.1f}" for x in parts]
        table.add(name, f"{1e3 * one.half:.1f}", *cells)
    return table


def defaults(measured):
    """Return a table of runs, and of halves for each, that could be the default."""
    table = Table(
        "LDS of possible defaults, and in brackets how far below the best for the same "
        f"CPU seconds, at {' and at '.join(map(str, ASKED))} queries",
        ["runs", "halves a run", *measured, "mean"],
    )
    for k, multiple in product(FEW_RUNS, PER_RUN):
        found = []
        for one in measured.values():
            lds, _, few = one.shortfall(k, multiple, ASKED[0])
            found.append((lds, few, one.shortfall(k, multiple, ASKED[1])[2]))
        found.append(np.mean(found, axis=0))
        table.add(k, multiple, *["{:.3f} ({:.3f}, {:.3f})".format(*x) for x in found])
    return table


def main():
    warnings.simplefilter("ignore")
    measured, tables = {}, []
    for name in NAMES:
        measured[name] = Measured(name)
        tables.append(table_of(name, measured[name]))
    tables += costs(measured), defaults(measured)
    write("posterior_frontier", *tables)
    figure()


if __name__ == "__main__":
    figure() if sys.argv[1:] == ["--figure"] else main()
