"""The leaderboard: this package and its peers on the same work, one command.

    python -m benchmarks.leaderboard --dataset digits

Every method is handed the same three trained networks (`benchmarks.fidelity`), through
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
import pickle
import subprocess
import time

import numpy as np
import sklearn
import torch

from benchmarks._data import DATA
from benchmarks._orders import SCRIPTS, list_peers, run_peer
from benchmarks.fidelity import N_SUBSETS
from benchmarks.leaderboard import _measures as measures
from benchmarks.leaderboard import _report as report
from benchmarks.leaderboard._work import FOLDER, Work

#: seconds for all settings of a method on one network; what is not reached is lost
TIMEOUT = 900
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
    work, script, method, seed, settings=None, *, mislabeled=False, fresh=False
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
    except (RuntimeError, subprocess.SubprocessError) as error:
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
        "errors": [error.strip().splitlines()[0]] * n,
    }


def take(run, which):
    """Return a run with some of its settings."""
    taken = {k: [run[k][i] for i in which] for k in ("settings", "errors")}
    return run | taken | {k: run[k][which] for k in ("scores", "seconds", "peak")}


def row(work, script, method, runs, i, kind):
    """Return the row of a setting from the runs of all seeds."""
    found = {
        "method": f"{PACKAGES[script]} {method}",
        "kind": kind,
        "setting": runs[0]["settings"][i],
        "error": next((r["errors"][i] for r in runs if r["errors"][i]), None),
    }
    if found["error"]:
        return found
    A = np.array([r["scores"][i] for r in runs], dtype=float)
    predicted = work.weights @ np.swapaxes(A, 1, 2)
    best = np.argsort(-A.mean(axis=1), axis=1, kind="stable")
    without = [
        work.retrain(work.without_first(order), seed)
        for order, seed in zip(best, work.seeds, strict=True)
    ]
    return found | {
        "lds": measures.lds(work.subsets, predicted),
        "ensemble": measures.ensemble_lds(work.subsets, predicted),
        "loo": measures.loo(work.without_one, A),
        "removal": measures.removal_area(work.random_removals, np.array(without)),
        "cost": float(np.median([r["seconds"][i] / r["yardstick"] for r in runs])),
        # what an earlier setting left to the allocator hides a later one's
        "memory": float(np.nanmax([r["peak"] for r in runs]) / 2**20),
        "mislabel": mislabel(work, script, method, runs[0]["settings"][i]),
    }


def mislabel(work, script, method, setting):
    """Return the area under the curve of finding wrong labels; None in regression."""
    if not work.classifies:
        return None
    seed = work.seeds[0]
    run = measured(work, script, method, seed, [setting], mislabeled=True)
    if run["errors"][0]:
        return None
    return measures.mislabel_auc(work.mislabeled[0], run["scores"][0].astype(float))


def scores_by_setting(work, runs):
    """Return the LDS of every setting, to choose by; -inf where it failed."""
    found = []
    for i, _ in enumerate(runs[0]["settings"]):
        A = np.array([r["scores"][i] for r in runs], dtype=float)
        if np.isfinite(A).all():
            predicted = work.weights @ np.swapaxes(A, 1, 2)
            truth = work.subsets[: len(runs)]
            found.append(measures.correlations(truth, predicted).mean())
        else:
            found.append(-np.inf)
    return np.array(found)


def rows(work, script, method, fresh):
    """Return the rows of a method: its defaults, and its best if that is another.

    All settings meet the first seed, the default and the two best of them the others,
    where they are chosen from by the truth of all.
    """
    first, *others = work.seeds
    run = measured(work, script, method, first, fresh=fresh)
    values = scores_by_setting(work, [run])
    grid = [
        [setting, None if np.isinf(value) else float(value)]
        for setting, value in zip(run["settings"], values, strict=True)
    ]
    best = [i for i in np.argsort(-values)[:N_BEST] if np.isfinite(values[i])]
    which = [0, *(int(i) for i in best if i != 0)]
    chosen = [run["settings"][i] for i in which]
    runs = [take(run, which)]
    runs += [
        measured(work, script, method, seed, chosen, fresh=fresh) for seed in others
    ]
    kind = {"run_skattrib": "skattrib", "run_baselines": "baseline"}.get(script)
    default = row(work, script, method, runs, 0, kind or "default")
    default["grid"] = grid
    values = scores_by_setting(work, runs)
    if np.isinf(values.max()):
        return [default]
    if values.argmax() == 0:
        # its defaults are its best
        return [default | {"kind": kind or "peer"}]
    return [default, row(work, script, method, runs, values.argmax(), kind or "peer")]


def leaderboard(name, only=None, fresh=False):
    """Measure and return the board of a data set."""
    work = Work(name)
    methods, missing = list_peers()
    board = {
        "dataset": name,
        "n_rows": work.n_rows,
        "versions": {p.__name__: p.__version__ for p in (np, sklearn, torch)},
        "missing": missing,
        "ceiling": {
            "lds": measures.ceiling(work.subsets),
            "loo": measures.loo_ceiling(work.without_one),
        },
        "rows": [],
    }
    for script, method in methods:
        if only is None or any(part in f"{script} {method}" for part in only):
            board["rows"] += rows(work, script, method, fresh)
    # the best first, then the failures
    board["rows"].sort(key=lambda r: -r["lds"][0] if not r["error"] else 2)
    lds, loo = (board["ceiling"][k][0] for k in ("lds", "loo"))
    board["work"] = (
        f"{name}: {work.n_rows} rows, {N_SUBSETS} half subsets and every row left out, "
        f"3 seeds, 50 queries. Another seed's outcomes have LDS {lds:.3f}, "
        f"leave-one-out {loo:.3f}."
    )
    return board


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", choices=[*DATA, "all"], default="digits")
    parser.add_argument("--only", nargs="*", help="parts of names of methods")
    parser.add_argument("--fresh", action="store_true", help="measure again")
    options = parser.parse_args()
    names = list(DATA) if options.dataset == "all" else [options.dataset]
    for name in names:
        board = leaderboard(name, options.only, options.fresh)
        if options.only is None:
            report.write(board)
        else:
            print(report.markdown(board))


if __name__ == "__main__":
    main()
