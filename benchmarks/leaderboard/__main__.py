"""The leaderboard: this package and its peers on the same work, one command.

    python -m benchmarks.leaderboard --dataset digits

Every method is handed the same three trained networks (`benchmarks/_data.py`), through
the same door (`benchmarks/peers/_order.py`), and returns attributions of 50 queries to
all training rows. They are scored on 200 half subsets and all leave-one-outs, really
retrained with the same minibatches, for each of the three seeds. Peers are shown with
their defaults and with the setting that the truth itself likes best; ours are not
tuned on it. Peers that `make peers` has not installed are left out, and named.

What is measured is kept in benchmarks/.cache, so that a second call computes only what
is new; `--fresh` measures everything again.
"""

import argparse
import hashlib
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import sklearn
import torch

from benchmarks._data import DATA, N_SUBSETS
from benchmarks._orders import SCRIPTS, list_peers, run_peer
from benchmarks.leaderboard import _measures as measures
from benchmarks.leaderboard import _report as report
from benchmarks.leaderboard._work import FOLDER, Work

#: seconds for all settings of a method on one network; what is not reached is lost
TIMEOUT = int(os.environ.get("TIMEOUT", "900"))
#: share of the rows left out, of which a class may be the most
EMPTIED = 0.3
#: settings of a method that all seeds choose from
N_BEST = 2
PACKAGES = {
    "run_skattrib": "skattrib",
    "run_baselines": "baseline",
    "run_dattri": "dattri",
    "run_pydvl": "pydvl",
    "run_captum": "captum",
    "run_kronfluence": "kronfluence",
    "run_traker": "traker",
    "run_pyinfluence": "pyinfluence",
}


def measured(
    work, script, method, seed, settings=None, mislabeled=False, *, fresh=False
):
    """Return what `run_peer` does, from the cache if nothing has changed since."""
    path, digest = work.order(seed, mislabeled=mislabeled)
    source = SCRIPTS.joinpath(f"{script}.py").read_bytes()
    key = f"{method}{settings}{digest}".encode() + source
    kept = FOLDER / f"{script}-{hashlib.sha256(key).hexdigest()[:16]}.pkl"
    if kept.exists() and not fresh:
        return pickle.loads(kept.read_bytes())
    start = time.perf_counter()
    try:
        found = run_peer(script, method, path, settings, timeout=TIMEOUT)
    except RuntimeError as error:
        # the machine may be at fault: it is tried again next time
        print(f"  {script} {method} seed {seed}: {error}", flush=True)
        return failed(work, str(error), settings or [{}])
    except TimeoutError as error:
        found = failed(work, str(error), settings or [{}])
    kept.write_bytes(pickle.dumps(found))
    seconds = time.perf_counter() - start
    print(f"  {script} {method} seed {seed}: {seconds:.0f} s", flush=True)
    return found


def failed(work, error, settings):
    """Return what `run_peer` does of a process that gave nothing at all."""
    n = len(settings)
    return {
        "scores": np.full((n, len(work.data[2]), work.n_rows), np.nan),
        "seconds": np.full(n, np.nan),
        "peak": np.full(n, np.nan),
        "yardstick": np.nan,
        "settings": settings,
        "errors": [error] * n,
    }


def take(run, which):
    """Return a run with some of its settings."""
    taken = {k: [run[k][i] for i in which] for k in ("settings", "errors")}
    arrays = {"scores", "predicted", "seconds", "peak"} & set(run)
    return run | taken | {k: run[k][which] for k in arrays}


def predictions(work, runs, i):
    """Return outcomes (seeds, m, q) of the subsets, up to a constant.

    A package that predicts them is asked; attributions of the others are added up.
    """

    def of(run):
        own = run.get("predicted")
        if own is not None and np.isfinite(own[i]).all():
            return own[i].astype(float)
        return work.weights @ run["scores"][i].T.astype(float)

    return np.stack([of(run) for run in runs])


def scores_by_setting(work, runs):
    """Return the LDS of every setting, to choose by; -inf where it failed."""
    found = []
    for i, _ in enumerate(runs[0]["settings"]):
        predicted = predictions(work, runs, i)
        if np.isfinite(predicted).all():
            truth = work.subsets[: len(runs)]
            found.append(measures.correlations(truth, predicted).mean())
        else:
            found.append(-np.inf)
    return np.array(found)


def best_settings(work, run):
    """Return positions of the default and of the two best for the first seed."""
    values = scores_by_setting(work, [run])
    best = [i for i in np.argsort(-values)[:N_BEST] if np.isfinite(values[i])]
    return [0, *(int(i) for i in best if i != 0)]


@dataclass
class Entry:
    """One row to be: a setting of a method, run for all seeds."""

    script: str
    method: str
    kind: str
    runs: list
    i: int

    @property
    def setting(self):
        return self.runs[0]["settings"][self.i]

    @property
    def error(self):
        return next(
            (r["errors"][self.i] for r in self.runs if r["errors"][self.i]), None
        )

    @property
    def attributions(self):
        """(seeds, q, n)."""
        return np.array([r["scores"][self.i] for r in self.runs], dtype=float)


def entries(work, script, method, runs):
    """Return a method's default, and its best by all seeds if that is another."""
    kind = {"run_skattrib": "skattrib", "run_baselines": "baseline"}.get(script)
    values = scores_by_setting(work, runs)
    best = int(values.argmax())
    if np.isinf(values[best]):
        return [Entry(script, method, kind or "default", runs, 0)]
    tuned = Entry(script, method, kind or "peer", runs, best)
    if best == 0:
        return [tuned]
    return [Entry(script, method, kind or "default", runs, 0), tuned]


def without_best(work, found):
    """Return outcomes (entries, seeds, fractions, q) without what helps most.

    One stack of retrainings for each seed serves all entries.
    """
    weights = [
        [
            work.without_first(np.argsort(-A.mean(axis=0), kind="stable"))
            for A in entry.attributions
        ]
        for entry in found
    ]
    each = [
        work.retrain(np.concatenate([own[s] for own in weights]), seed)
        for s, seed in enumerate(work.seeds)
    ]
    n_fractions = len(weights[0][0])
    return (
        np.stack(each, axis=1)
        .reshape(len(found), n_fractions, len(work.seeds), -1)
        .swapaxes(1, 2)
    )


def row(work, entry, without, mislabeled):
    """Return what is shown of an entry."""
    shown = {
        "method": f"{PACKAGES[entry.script]} {entry.method}",
        "kind": entry.kind,
        "setting": entry.setting,
        "error": entry.error,
    }
    if without is None:
        return shown
    A, runs, i = entry.attributions, entry.runs, entry.i
    predicted = predictions(work, runs, i)
    auc = None
    if mislabeled is not None and not mislabeled["errors"][0]:
        suspects = mislabeled["scores"][0].astype(float)
        auc = measures.mislabel_auc(work.mislabeled[0], suspects)
    return shown | {
        "lds": measures.lds(work.subsets, predicted),
        "ensemble": measures.ensemble_lds(work.subsets, predicted),
        "loo": measures.loo(work.without_one, A),
        "removal": measures.removal_area(work.random_removals, without),
        "emptied": measures.emptied(work.data[1], A, EMPTIED)
        if work.classifies
        else None,
        "cost": float(np.median([r["seconds"][i] / r["yardstick"] for r in runs])),
        # what an earlier setting left to the allocator hides a later one's
        "memory": float(np.nanmax([r["peak"] for r in runs]) / 2**20),
        "mislabel": auc,
    }


def leaderboard(name, only=None, fresh=False, jobs=1):
    """Measure and return the board of a data set.

    All settings of a method meet the first seed; the default and the two best of them
    meet the others, and are chosen from by the truth of all.
    """
    work = Work(name)
    settings, missing = list_peers()
    methods = [
        m for m in settings if only is None or any(o in " ".join(m) for o in only)
    ]
    first, *others = work.seeds

    for seed in work.seeds:
        work.order(seed)
    with ThreadPoolExecutor(jobs) as pool:

        def run(each):
            return list(pool.map(lambda a: measured(work, *a, fresh=fresh), each))

        of_first = dict(zip(methods, run([(*m, first) for m in methods]), strict=True))
        which = {m: best_settings(work, of_first[m]) for m in methods}
        chosen = {m: [of_first[m]["settings"][i] for i in which[m]] for m in methods}
        # what gave nothing at all is not tried again
        tried = [m for m in methods if not all(of_first[m]["errors"])]
        of_others = iter(run([(*m, s, chosen[m]) for m in tried for s in others]))
        found = []
        for m in methods:
            runs = [take(of_first[m], which[m])]
            if m in tried:
                runs += [next(of_others) for _ in others]
            found += entries(work, *m, runs)
        good = [entry for entry in found if not entry.error]
        wrong = [None] * len(good)
        if work.classifies:
            work.order(first, mislabeled=True)
            wrong = run([(e.script, e.method, first, [e.setting], True) for e in good])

    without = iter(zip(without_best(work, good), wrong, strict=True))
    rows = [
        row(work, entry, *((None, None) if entry.error else next(without)))
        for entry in found
    ]
    # the best first, the failures last
    rows.sort(key=lambda r: 2.0 if r["error"] else -r["lds"][0])
    ceiling = {
        "lds": measures.ceiling(work.subsets),
        "loo": measures.loo_ceiling(work.without_one),
    }
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
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--fresh", action="store_true", help="measure again")
    options = parser.parse_args()
    names = list(DATA) if options.dataset == "all" else [options.dataset]

    for name in names:
        board = leaderboard(name, options.only, options.fresh, options.jobs)
        if options.only is None:
            report.write(board)
        else:
            print(report.markdown(board))


if __name__ == "__main__":
    main()
