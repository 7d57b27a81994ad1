"""Deep networks by this package and its peers, on retrained halves.

AdamW with weight decay 0.01, minibatches of 32, 15 epochs (10 of sequences and
characters, 5 of cats and dogs), ReLU, learning rate 0.01 unless the name says another;
512 rows of digits, churn, diamonds, 350 of diabetes, and fewer of images and sequences,
as the table says. Margins of 12 queries and fewer, log-likelihoods of numbers. LDS of
sums of attributions on really retrained halves; with dropout they are means over 4
draws of masks. *Limit*: a bound of LDS for sums over rows, from outcomes of halves that
share half of their rows. *Exact*: derivatives of 16 runs (8 of cats and dogs, and of
characters), and *chosen* what `AdamWInfluence` makes of them by `agreement_`; *with
halves*, and how many it retrains. Cells of peers have the default, then the best of a
few settings, chosen on the truth; they are given the same network or, TRAK, those
trained on random halves. Peers measure margins as well.

The second table removes other fractions of the rows, 100 subsets each.

A file of images, ``X (n, 32, 32, 3)``, y, X_test and y_test of 0 and 1, adds a slim
ResNet-9. Settings that are named have their rows replaced; without names, those that
have no row yet are measured. ``--peers`` measures the peers of rows anew, and ``--own``
what is this package's; the rest is kept.

    OMP_NUM_THREADS=1 python -m benchmarks.deep.board [setting ...] [--data FILE]
        [--peers | --own]
"""

import argparse
import copy
import warnings

import numpy as np
from scipy.stats import spearmanr

from benchmarks._table import reopen, write
from benchmarks.deep._peers import KERNEL, PEERS, TRAK, Peers
from benchmarks.deep._settings import IMAGES, REMOVED, SETTINGS, Case
from benchmarks.deep.prior_means import exact
from skattrib import AdamWInfluence, DualInfluence
from skattrib.evaluation import lds_score
from skattrib.exceptions import FaithfulnessWarning

EXACT, CHOSEN, HALVES, DUAL = (
    "exact",
    "chosen",
    "with halves",
    "DualInfluence",
)
HEADER = [
    "setting",
    *("weights", "rows", "truth", "limit", "agreement", "warned"),
    *(EXACT, CHOSEN, HALVES, DUAL),
    *PEERS,
]
KEYS = ["setting", "attributions"]
#: rows of the second table
COMPARED = (CHOSEN, HALVES, KERNEL, TRAK)


def ours(case):
    """Return attributions by column, the attributor, and whether it warned in fit."""
    options = {"outcome": case.outcome, "random_state": 0}
    influence = AdamWInfluence(
        case.net,
        n_halves=case.setting.halves,
        n_trajectories=case.setting.runs,
        **options,
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        influence.fit(*case.rows)
    warned = any(issubclass(one.category, FaithfulnessWarning) for one in said)
    # the same runs, whose sweep is remembered
    alone = copy.copy(influence)
    alone._trained_halves = None
    found = {HALVES: influence.attribute(*case.queries)}
    found[CHOSEN] = alone.attribute(*case.queries)
    plain = exact(alone)
    same = plain._by() == alone._by()
    found[EXACT] = found[CHOSEN] if same else plain.attribute(*case.queries)
    return found, influence, warned


def dual(case):
    """Return attributions by DualInfluence, or why there are none."""
    options = {"outcome": case.outcome, "random_state": 0}
    try:
        return (
            DualInfluence(case.net, **options).fit(*case.rows).attribute(*case.queries)
        )
    except Exception as error:  # it is told in the table, which goes on
        return f"{type(error).__name__}: {error}"


def own_cells(case, halves, outcomes):
    """Return the cells of a row up to the peers, and attributions by column."""
    limit = case.limit(halves, outcomes)
    found, influence, warned = ours(case)
    found[DUAL] = dual(case)
    scored = {
        name: one
        if isinstance(one, str)
        else f"{lds_score(outcomes, halves @ one.T):.3f}"
        for name, one in found.items()
    }
    scored[HALVES] += f" ({influence.n_halves_})"
    agreement = influence.agreement_
    row = [
        case.name,
        f"{case.n_params:,}",
        case.n_rows,
        f"{len(halves)}, {len(case.queries[1])}",
        f"{limit:.2f}",
        "" if agreement is None else f"{agreement:.2f}",
        "yes" if warned else "no",
        *(scored[name] for name in (EXACT, CHOSEN, HALVES, DUAL)),
    ]
    return row, found


def cells(case, only=None, known=None):
    """Return the row of the board, and those of the table of fractions.

    ``only`` says whether those of "peers" or this package's "own" cells are measured;
    the others are those of the ``known`` row.
    """
    halves = case.halves()
    outcomes = case.truth(halves)
    if only == "peers":
        row, found = known[: -len(PEERS)], {}
    else:
        row, found = own_cells(case, halves, outcomes)
    if only == "own":
        row = [*row, *known[-len(PEERS) :]]
    else:
        peers = Peers(case, halves, outcomes)
        row, found = [*row, *(peers.cells[name] for name in PEERS)], found | peers.best
    return row, removals(case, found) if case.setting.removed else []


def removals(case, attributions):
    """Return rows of LDS after other fractions of the rows were removed."""
    subsets = [case.without(fraction) for fraction in REMOVED]
    outcomes = [case.truth(weights) for weights in subsets]
    return [
        [
            case.name,
            name,
            *(
                f"{lds_score(true, weights @ attributions[name].T):.3f}"
                for true, weights in zip(outcomes, subsets, strict=True)
            ),
        ]
        for name in COMPARED
        if name in attributions
    ]


def ranked(board):
    """Return a sentence on how agreement ranks the settings."""
    at = [HEADER.index(name) for name in ("agreement", EXACT)]
    pairs = [
        [float(row[i]) for i in at] for row in board.rows if all(row[i] for i in at)
    ]
    if len(pairs) < 3:
        return ""
    rank = spearmanr(*np.transpose(pairs)).statistic
    return (
        f"Rank correlation of agreement with LDS of exact derivatives, "
        f"{len(pairs)} settings: {rank:.2f}."
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("settings", nargs="*", metavar="setting")
    parser.add_argument("--data", metavar="FILE")
    which = parser.add_mutually_exclusive_group()
    for only in ("peers", "own"):
        which.add_argument(f"--{only}", dest="only", action="store_const", const=only)
    asked = parser.parse_args()
    if unknown := set(asked.settings) - set(SETTINGS):
        parser.error(f"no settings {sorted(unknown)}; there are {[*SETTINGS]}")
    title = "LDS; of peers by default → at the best of a few settings"
    board = reopen("deep_board", title, HEADER)
    removed = reopen(
        "deep_board_removed",
        "LDS where a fraction of the rows is removed",
        [*KEYS, *(f"{fraction:.0%}" for fraction in REMOVED)],
    )
    done = {row[0]: row for row in board.rows}
    names = [name for name in SETTINGS if (name in done) == bool(asked.only)]
    if asked.only and (unknown := set(asked.settings) - set(names)):
        parser.error(f"no rows of {sorted(unknown)}, to be measured anew in part")
    for name in asked.settings or names:
        if SETTINGS[name].data == IMAGES and asked.data is None:
            print(f"{name}: left out, it needs --data FILE", flush=True)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row, others = cells(Case(name, asked.data), asked.only, done.get(name))
        board.put(*row)
        board.rows.sort(key=lambda one: [*SETTINGS].index(one[0]))
        write("deep_board", board, *filter(None, [ranked(board)]))
        for other in others:
            removed.put(*other, n_keys=2)
        if others:
            removed.rows.sort(key=lambda one: [*SETTINGS].index(one[0]))
            write("deep_board_removed", removed)


if __name__ == "__main__":
    main()
