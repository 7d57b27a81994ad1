"""Influence and TRAK, summed over the rows of tasks: are surrogates worth their price?

Twelve tasks of digits and twelve clusters of diabetes, three draws each, as in
`benchmarks.surrogates.ridge`, with 50 queries. Attributors are fitted with ``tasks=``;
TRAK (dattri's, with its default and with the setting that is best on this truth) gives
a score to each row, which is summed over the task. LOO is the correlation, per query,
with retraining without the task; LDS is about 60 subsets that hold each task with
probability 0.5 or 0.75, whose outcomes are predicted, or by TRAK added up. CPU time is
of `fit`, attributions and these predictions, next to that of one training. It includes
the training of the network that is explained, for TRAK too.

    [PEERS=FOLDER] python -m benchmarks.surrogates.baselines [PROBLEM ...]
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.base import clone

from benchmarks._orders import list_peers, run_peer, write_order
from benchmarks._table import pm, reopen, write
from benchmarks.surrogates._pools import GAMES, game_pools
from skattrib import (
    AdamWInfluence,
    DualInfluence,
    KernelSurrogateAttributor,
    LinearSurrogateAttributor,
)
from skattrib.evaluation import lds_score

PROBLEMS, N_QUERIES, N_DRAWS = ("digits", "diabetes"), 50, 3
TRAK = "run_dattri", "TRAK"
ATTRIBUTORS = {
    'DualInfluence, removal="influence"': DualInfluence(removal="influence"),
    "DualInfluence": DualInfluence(),
    "AdamWInfluence, the one run": AdamWInfluence(inclusion=1),
    "AdamWInfluence, n_halves=0": AdamWInfluence(n_halves=0),
    "LinearSurrogateAttributor": LinearSurrogateAttributor(),
    "LinearSurrogateAttributor, halves": LinearSurrogateAttributor(at="banzhaf"),
    "KernelSurrogateAttributor": KernelSurrogateAttributor(),
    "KernelSurrogateAttributor, halves": KernelSurrogateAttributor(at="banzhaf"),
    "KernelSurrogateAttributor, 32 subsets": KernelSurrogateAttributor(n_subsets=32),
    'the same, estimation="gradient"': KernelSurrogateAttributor(
        n_subsets=32, estimation="gradient"
    ),
    "KernelSurrogateAttributor, inclusion=1": KernelSurrogateAttributor(inclusion=1),
}


def of_attributor(attributor, game, pools, seed):
    """Return attributions (q, n), predictions for each pool, and CPU seconds."""
    model = clone(attributor).set_params(
        estimator=clone(game.model), outcome=game.outcome, random_state=seed
    )
    started = time.process_time()
    model.fit(*game.rows, tasks=game.tasks)
    found = model.attribute(*game.queries)
    predicted = [model.predict_outcomes(*game.queries, p.held_out[0]) for p in pools]
    return found, predicted, time.process_time() - started


def of_trak(game, pools):
    """Return the same of TRAK with each of its settings."""
    started = time.process_time()
    net = clone(game.model).fit(*game.rows)
    # the others train in `fit`
    training = time.process_time() - started
    with tempfile.TemporaryDirectory() as folder:
        order = Path(folder) / "order.npz"
        write_order(order, net, *game.rows, *game.queries)
        found = run_peer(*TRAK, order)
    of_unit = np.eye(game.n_units)[game.units_of_rows]
    for setting, scores, seconds in zip(
        found["settings"], found["scores"], found["seconds"], strict=True
    ):
        summed = scores @ of_unit
        added = [pool.held_out[0] @ summed.T for pool in pools]
        yield str(setting), (summed, added, training + float(seconds))


def scored(answer, pools):
    """Return LOO, LDS of each pool, and CPU seconds."""
    found, predicted, seconds = answer
    one_out = pools[0].one_out[:, :N_QUERIES]
    effects = (one_out[-1] - one_out[:-1]).T
    loo = [np.corrcoef(*pair)[0, 1] for pair in zip(effects, found, strict=True)]
    lds = [
        lds_score(pool.held_out[1][:, :N_QUERIES], outcomes)
        for pool, outcomes in zip(pools, predicted, strict=True)
    ]
    return [np.mean(loo), *lds, seconds]


def one_draw(name, draw, *, with_trak):
    """Return scores of every method, TRAK's settings apart, and a training's time."""
    game = GAMES[name][0](draw)
    pools = list(game_pools(name, draw))
    game = game.with_queries(N_QUERIES)
    found, trak = {}, {}
    for label, attributor in ATTRIBUTORS.items():
        found[label] = scored(of_attributor(attributor, game, pools, draw), pools)
    if with_trak:
        trak = {k: scored(answer, pools) for k, answer in of_trak(game, pools)}
    times = []
    for _ in range(3):
        started = time.process_time()
        clone(game.model).fit(*game.rows)
        times.append(time.process_time() - started)
    print(f"{name}: draw {draw} done", flush=True)
    return found, trak, min(times)


def main(names):
    missing = TRAK not in list_peers()[0]
    if missing:
        print("TRAK is left out: its environment is missing (make peers)")
    header = "problem | method | LOO (Pearson) | LDS, p = 0.5 | LDS, p = 0.75 | CPU s"
    caption = "Tasks by influence and by surrogates; mean over draws ± standard error"
    table = reopen("baselines", caption, f"{header} | trainings".split(" | "))
    for name in names or PROBLEMS:
        # what is imported, and compiled, counts for none
        small = GAMES[name][0](0).with_queries(2)
        for attributor in (DualInfluence(removal="influence"), DualInfluence()):
            of_attributor(attributor, small, [next(game_pools(name, 0))], 0)
        with_trak = name != "diabetes" and not missing
        draws = range(N_DRAWS)
        draws = [one_draw(name, draw, with_trak=with_trak) for draw in draws]
        one = np.mean([draw[2] for draw in draws])

        def add(label, values, name=name, one=one):
            price = f"{values[:, -1].mean() / one:.1f}"
            table.put(name, label, *map(pm, values.T), price, n_keys=2)

        for label in ATTRIBUTORS:
            add(label, np.array([draw[0][label] for draw in draws]))
        values = {s: np.array([d[1][s] for d in draws]) for s in draws[0][1]}
        if values:
            best = max(values, key=lambda s: np.nan_to_num(values[s][:, 0]).mean())
            print(f"{name}: the best TRAK has {best}")
            add("TRAK, default", next(iter(values.values())))
            add("TRAK, best of 14 settings", values[best])
    write("baselines", table)


if __name__ == "__main__":
    main(sys.argv[1:])
