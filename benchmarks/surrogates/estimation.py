"""What is the surrogate's error, and what that of outcomes estimated from gradients?

Twelve tasks of digits, twelve clusters of diabetes, the rows of wine, six draws each,
as in `benchmarks.surrogates.ridge`. Linear and kernel surrogates learn from the same
100 subsets, with outcomes from retraining or from the tangent refitted to each (the
defaults of `KernelSurrogateAttributor`); both are scored on retrained outcomes: 60
other subsets, and leaving one unit out. Then the same kernel surrogate, from tangents
in fewer principal directions (``projection``).

    python -m benchmarks.surrogates.estimation
"""

import time

import numpy as np
from sklearn.base import clone

from benchmarks._table import Table, pm, write
from benchmarks.surrogates._pools import (
    GAMES,
    METRICS,
    N_LEARNT,
    Pool,
    game_pools,
    scores_of,
)
from skattrib import KernelSurrogate, LinearSurrogate

# `KernelSurrogateAttributor` draws its own subsets, and does not hand outcomes out.
from skattrib.surrogate._estimation import LinearizedSubsets

PROBLEMS = ("digits", "diabetes", "wine, rows")
SURROGATES = {"linear": LinearSurrogate(), "kernel": KernelSurrogate()}
PROJECTIONS = (4, 16, 64, None)


def estimated(game, net, weights, **options):
    """Return outcomes (m, q) of subsets, from the refitted tangent, and CPU seconds."""
    started = time.process_time()
    X, y = game.rows
    rows = np.vstack([np.ones(len(X)), weights[:, game.units_of_rows]])
    options = {"ridge": "auto", "stationary": True, "projection": None} | options
    source = LinearizedSubsets(
        net, X, y, rows[0], rows, memory=None, verbose=0, **options
    )
    found = source.outcomes(*game.queries, game.outcome)[1:]
    return found, time.process_time() - started


def main():
    by_source = Table(
        "Surrogates of estimated and of retrained outcomes, against retraining; mean "
        "of six draws ± standard error",
        ["problem", "p", "outcomes", "surrogate", *METRICS],
    )
    by_projection = Table(
        "A kernel surrogate of tangents in so many directions, p = 0.75; mean of six "
        "draws ± standard error",
        ["problem", "directions", "LDS", "LOO (Pearson)", "CPU s"],
    )
    for name in PROBLEMS:
        found, projected = {}, {}
        for draw in range(GAMES[name][1]):
            game = GAMES[name][0](draw)
            net = clone(game.model).fit(*game.rows)
            for pool in game_pools(name, draw):
                for k in PROJECTIONS if pool.inclusion == 0.75 else (None,):
                    outcomes, seconds = estimated(
                        game, net, pool.learnt(max(N_LEARNT))[0], projection=k
                    )
                    # held-out outcomes and those of leaving one out stay retrained
                    of = Pool(
                        name,
                        draw,
                        pool.inclusion,
                        pool.weights,
                        np.vstack([outcomes, pool.held_out[1]]),
                        pool.one_out,
                    )
                    got = scores_of(SURROGATES["kernel"], of, max(N_LEARNT))
                    if pool.inclusion == 0.75:
                        row = [got[1], got[2], seconds]
                        projected.setdefault(k, []).append(row)
                sources = {"tangent": of, "retrained": pool}
                for source, those in sources.items():
                    for surrogate, model in SURROGATES.items():
                        key = pool.inclusion, source, surrogate
                        got = scores_of(model, those, max(N_LEARNT))
                        found.setdefault(key, []).append(got)
        for key in sorted(found, key=lambda key: key[:2]):
            by_source.add(name, *key, *map(pm, np.array(found[key]).T))
        for k, rows in projected.items():
            cells = map(pm, np.array(rows).T)
            by_projection.add(name, "all" if k is None else k, *cells)
    write("estimation", by_source, by_projection)


if __name__ == "__main__":
    main()
