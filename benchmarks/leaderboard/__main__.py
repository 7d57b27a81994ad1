"""The leaderboard: this package and its peers on the same work, one command.

    python -m benchmarks.leaderboard --dataset digits

Every method is handed the same three trained networks (`benchmarks/_data.py`), through
the same door (`benchmarks/peers/_order.py`), and returns attributions of 50 queries to
all training rows. They are scored on 200 half subsets and all leave-one-outs, really
retrained with the same minibatches, for each of the three seeds. Peers are shown with
their defaults and with the setting that the truth itself likes best; ours are not
tuned on it. Peers that `make peers` has not installed are left out, and named.

What is measured is kept in benchmarks/.cache, so that a second call computes only what
is new. ``--report`` draws the figure and the table from the numbers kept in
doc/measured.
"""

import argparse
import os
from dataclasses import dataclass

import numpy as np
import sklearn
import torch

from benchmarks._data import DATA, N_SUBSETS, SEEDS
from benchmarks._orders import SCRIPTS, list_peers
from benchmarks._processes import wall_seconds
from benchmarks.leaderboard import _measures as measures
from benchmarks.leaderboard import _report as report
from benchmarks.leaderboard._work import Work, digest, run_once

#: seconds for all settings of a method on one network; what is not reached is lost
TIMEOUT = int(os.environ.get("TIMEOUT", "900"))
#: share of the rows left out, of which a class may be the most
EMPTIED = 0.3
#: settings of a method that all seeds choose from
N_BEST = 2
KINDS = {"run_skattrib": "skattrib", "run_baselines": "baseline"}


def measured(work, script, method, seed, settings=None, mislabeled=False):
    """Return what `run_peer` does; errors only of a process that gave nothing."""
    path = work.order(seed, mislabeled=mislabeled)
    source = SCRIPTS.joinpath(f"{script}.py").read_text()
    what = script, source, method, digest(path), settings
    try:
        took, found = wall_seconds(run_once, *what, path=path, timeout=TIMEOUT)
        error = f"longer than {TIMEOUT} s"
        print(f"  {script} {method} seed {seed}: {took:.0f} s", flush=True)
    except RuntimeError as died:
        found, error = None, str(died)
    if found is not None:
        return found
    settings = settings or [{}]
    nothing = np.full(len(settings), np.nan)
    scores = np.full((len(settings), len(work.queries[0]), work.n_rows), np.nan)
    found = {"scores": scores, "seconds": nothing, "peak": nothing, "yardstick": np.nan}
    return found | {"settings": settings, "errors": [error] * len(settings)}


def take(run, which):
    """Return a run with some of its settings."""
    taken = {k: [run[k][i] for i in which] for k in ("settings", "errors")}
    arrays = {"scores", "predicted", "seconds", "peak"} & set(run)
    return run | taken | {k: run[k][which] for k in arrays}


def lds_by_setting(work, runs):
    """Return the LDS of every setting, to choose by; -inf where it failed."""
    found = []
    for i in range(len(runs[0]["settings"])):
        predicted = Entry("", "", "", runs, i).predictions(work)
        lds = measures.correlations(work.subsets[: len(runs)], predicted).mean()
        found.append(lds if np.isfinite(predicted).all() else -np.inf)
    return np.array(found)


@dataclass
class Entry:
    """One row to be: a setting of a method, run for all seeds."""

    script: str
    method: str
    kind: str
    runs: list
    i: int

    def of_runs(self, name):
        return [run[name][self.i] for run in self.runs]

    @property
    def setting(self):
        return self.runs[0]["settings"][self.i]

    @property
    def error(self):
        return next(filter(None, self.of_runs("errors")), None)

    @property
    def attributions(self):
        """(seeds, q, n)."""
        return np.array(self.of_runs("scores"), dtype=float)

    def predictions(self, work):
        """Return outcomes (seeds, m, q) of the subsets, up to a constant.

        A package that predicts them is asked; attributions of others are added up.
        """
        if all("predicted" in run for run in self.runs):
            own = np.array(self.of_runs("predicted"), dtype=float)
            if np.isfinite(own).all():
                return own
        return np.stack([work.added(A) for A in self.attributions])

    def row(self, work, without):
        """Return what is shown."""
        package = self.script.removeprefix("run_").replace("baselines", "baseline")
        shown = {
            "method": f"{package} {self.method}",
            "kind": self.kind,
            "setting": self.setting,
            "error": self.error,
        }
        if self.error:
            return shown
        A, predicted = self.attributions, self.predictions(work)
        emptied = auc = None
        if work.classifies:
            emptied = measures.emptied(work.rows[1], A, EMPTIED)
            what = self.script, self.method, SEEDS[0], [self.setting], True
            run = measured(work, *what)
            if not run["errors"][0]:
                suspects = run["scores"][0].astype(float)
                auc = measures.mislabel_auc(work.mislabeled[0], suspects)
        costs = [run["seconds"][self.i] / run["yardstick"] for run in self.runs]
        return shown | {
            "lds": measures.lds(work.subsets, predicted),
            "ensemble": measures.ensemble_lds(work.subsets, predicted),
            "loo": measures.loo(work.without_one, A),
            "removal": measures.removal_area(work.random_removals, without),
            "emptied": emptied,
            "cost": float(np.median(costs)),
            # what an earlier setting left to the allocator hides a later one's
            "memory": float(np.nanmax([run["peak"] for run in self.runs]) / 2**20),
            "mislabel": auc,
        }


def entries(work, script, method):
    """Return a method's default, and its best by all seeds if that is another.

    All settings meet the first seed; the default and the two best of them meet the
    others, and are chosen from by the truth of all.
    """
    first = measured(work, script, method, SEEDS[0])
    values = lds_by_setting(work, [first])
    best = [int(i) for i in np.argsort(-values)[:N_BEST] if np.isfinite(values[i])]
    which = [0, *(i for i in best if i != 0)]
    runs = [take(first, which)]
    # what gave nothing at all is not tried again
    if not all(first["errors"]):
        chosen = runs[0]["settings"]
        runs += [measured(work, script, method, seed, chosen) for seed in SEEDS[1:]]

    values = lds_by_setting(work, runs)
    best = int(values.argmax())
    default = Entry(script, method, KINDS.get(script, "default"), runs, 0)
    tuned = Entry(script, method, KINDS.get(script, "peer"), runs, best)
    if np.isinf(values[best]):
        return [default]
    return [tuned] if best == 0 else [default, tuned]


def without_best(work, found):
    """Return outcomes (entries, seeds, fractions, q) without what helps most."""
    orders = [np.argsort(-e.attributions.mean(axis=1), kind="stable") for e in found]
    weights = np.array([[work.without_first(o) for o in own] for own in orders])
    n_entries, n_seeds, n_fractions, n_rows = weights.shape
    each = [
        work.retrain(weights[:, s].reshape(-1, n_rows), net)
        for s, net in enumerate(work.networks())
    ]
    shape = (n_seeds, n_entries, n_fractions, -1)
    return np.reshape(each, shape).swapaxes(0, 1)


def leaderboard(name, only=None):
    """Measure and return the board of a data set."""
    work = Work(name)
    peers, missing = list_peers()
    if only is not None:
        peers = [m for m in peers if any(part in " ".join(m) for part in only)]
    found = [entry for peer in peers for entry in entries(work, *peer)]
    good = [entry for entry in found if not entry.error]
    rows = [e.row(work, own) for e, own in zip(good, without_best(work, good))]
    # the best first, the failures last
    rows.sort(key=lambda row: -row["lds"][0])
    rows += [entry.row(work, None) for entry in found if entry.error]
    ceiling = measures.ceilings(work)
    return {
        "dataset": name,
        "n_rows": work.n_rows,
        "versions": {p.__name__: p.__version__ for p in (np, sklearn, torch)},
        "missing": missing,
        "ceiling": ceiling,
        "rows": rows,
        "work": (
            f"{name}: {work.n_rows} rows, {N_SUBSETS} half subsets and every row left "
            f"out, 3 seeds, 50 queries. Another seed's outcomes have LDS "
            f"{ceiling['lds'][0]:.3f}, leave-one-out {ceiling['loo'][0]:.3f}."
        ),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", choices=[*DATA, "all"], default="digits")
    parser.add_argument("--only", nargs="*", help="parts of names of methods")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    options = parser.parse_args()

    for name in list(DATA) if options.dataset == "all" else [options.dataset]:
        if options.report:
            report.show(report.read(name))
            continue
        board = leaderboard(name, options.only)
        print(board["work"])
        if options.only is None:
            report.keep(board)
        report.show(board, write=options.only is None)


if __name__ == "__main__":
    main()
