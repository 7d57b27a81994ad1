"""Equal budgets: what peers reach with as many trained networks as ours train.

On the leaderboard a peer is handed one network, and `AdamWInfluence` trains sixteen.
Here peers have 16 too, trained on random halves of the rows, as TRAK's authors do it:
TRAK of 16 and of 50 combines them itself, of others the scores are averaged. Ours have
1, 4, 16 and 64 runs, and with its default 512 retrained halves, which are counted.
Settings of peers are chosen on the truth; ours have their defaults.

The truth is that of the first seed of the leaderboard: LDS on 200 retrained halves, on
removals of 1 to 25 % of the rows, correlation with 400 leave-one-outs, and how far a
query's outcome falls below that of random removal when the 5 % of the rows that help
it most are left out and the network is trained again. CPU seconds are of all, for 50
queries: trainings, one after the other as a loop of PyTorch does it, and the package.

Rows that the table has are kept. What packages said is kept in benchmarks/.cache, by
versions and machine; rows of another machine are refused.

    make peers
    OMP_NUM_THREADS=1 python -m benchmarks.leaderboard.equal [set ...]
"""

import re
import sys
import time
import warnings
from functools import cached_property, partial

import numpy as np
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator

from benchmarks._data import DATA, MEMORY, SEEDS, lds_interval
from benchmarks._orders import NETWORKS, SCRIPTS, list_peers, write_order
from benchmarks._processes import machine
from benchmarks._table import IMAGES, reopen, write
from benchmarks.leaderboard._work import FOLDER, Work, digest, run_once
from skattrib import DualInfluence
from skattrib.evaluation import lds_score, loo_score, make_weightings, retrain_outcomes

TIMEOUT, MODELS, MORE, N_ALONE = 3600, 16, 50, 400
SHARES, N_REMOVALS, TOP, N_RANDOM = (0.01, 0.05, 0.1, 0.25), 100, 0.05, 20
HEADER = [
    "set",
    "method",
    "networks",
    "CPU s",
    "LDS of halves",
    *(f"{share:.0%} removed" for share in SHARES),
    "leave-one-out",
    f"without its best {TOP:.0%}",
]
NAME, CAPTION = "equal_budgets", "Equal budgets"
FULL = {"use_half_precision": False}
COMPRESSED = [
    {},
    *[{"damping": d, "proj_dim": 256} for d in (1e-2, 1e-1, 1.0, 10.0)],
]
#: peer: script, method, settings, of which the first is its default; None: its grid
PEERS = {
    "traker TRAK": (
        "run_traker",
        "TRAK",
        [FULL, *[FULL | {"lambda_reg": r} for r in (10.0, 100.0, 300.0, 1e3, 3e3)]],
    ),
    "kronfluence EK-FAC": (
        "run_kronfluence",
        "EK-FAC",
        [{}, *[{"damping_factor": d} for d in (None, 1e-4, 1e-3, 1e-2)]],
    ),
    "pydvl EK-FAC": (
        "run_pydvl",
        "EK-FAC",
        [{}, *[{"hessian_regularization": d} for d in (3e-4, 1e-3, 1e-2, 3e-2)]],
    ),
    "pydvl Nystroem": (
        "run_pydvl",
        "Nystroem",
        [
            {"rank": 10, "regularization": 0.01},
            *[{"rank": 200, "regularization": r} for r in (1e-2, 3e-2, 1e-1)],
        ],
    ),
    "captum Arnoldi": (
        "run_captum",
        "Arnoldi",
        [
            {},
            *[{"projection_dim": k, "hessian_reg": 15.0} for k in (100, 200)],
            {"projection_dim": 100, "hessian_reg": 5.0},
        ],
    ),
    "captum TracInCP": ("run_captum", "TracInCP", [{}]),
    "dattri LoGra": ("run_dattri", "LoGra", COMPRESSED),
    "dattri FactGraSS": ("run_dattri", "FactGraSS", COMPRESSED),
    "dualxda DualDA": ("run_dualxda", "DualDA", None),
}
#: ours: method of `run_skattrib`, networks that are trained
OURS = {
    'DualInfluence, removal="influence"': 1,
    "AdamWInfluence, inclusion=1": 1,
    "AdamWInfluence, 4 runs": 4,
    "AdamWInfluence, 16 runs": 16,
    "AdamWInfluence, 64 runs": 64,
    "AdamWInfluence": 16 + 512,
    "LinearSurrogateAttributor, 800 retrainings": 800,
}
AVERAGED = 'DualInfluence, removal="influence", of each'


class Contest(Work):
    """A data set, networks trained on halves of it, and the truth of one seed."""

    def __init__(self, name):
        super().__init__(name)
        self.net = clone(self.net).set_params(random_state=SEEDS[0])

    def of_one_seed(self, weights):
        """Return outcomes (m, q) of networks trained on rows with weights (m, n)."""
        options = {"outcome": self.outcome, "memory": MEMORY}
        return retrain_outcomes(self.net, *self.rows, weights, *self.queries, **options)

    @cached_property
    def trained(self):
        """Networks trained on halves, and CPU seconds of one of them."""
        halves = make_weightings(self.n_rows, MORE, random_state=5)
        start = time.process_time()
        found = [clone(self.net).fit(*self.rows, sample_weight=w) for w in halves]
        return found, (time.process_time() - start) / MORE

    @property
    def seconds(self):
        return self.trained[1]

    @cached_property
    def path(self):
        """The order: the network of all rows, and those of halves."""
        path = FOLDER / f"equal-{self.name}.npz"
        FOLDER.mkdir(parents=True, exist_ok=True)
        net = clone(self.net).fit(*self.rows)
        write_order(path, net, *self.rows, *self.queries, fits=self.trained[0])
        return path

    @cached_property
    def truth(self):
        """Weights (m, n) and outcomes (m, q), by the share that is removed."""
        found = {0.5: self.weights}
        for share in SHARES:
            options = {"size": 1 - share, "random_state": 7}
            found[share] = make_weightings(self.n_rows, N_REMOVALS, **options)
        return {share: (w, self.of_one_seed(w)) for share, w in found.items()}

    @cached_property
    def left_out(self):
        """Rows that are left out alone: all of them, or as many drawn ones."""
        return np.random.RandomState(2).permutation(self.n_rows)[:N_ALONE]

    @cached_property
    def alone(self):
        """Outcomes (m, q) without each of these."""
        return self.of_one_seed(1 - np.eye(self.n_rows)[self.left_out])

    @cached_property
    def at_random(self):
        """Outcomes (q,) without as many random rows as the best are, their mean."""
        rng = np.random.RandomState(3)
        orders = [rng.permutation(self.n_rows) for _ in range(N_RANDOM)]
        return self.of_one_seed(self.without(np.array(orders))).mean(axis=0)

    def without(self, orders):
        """Return weights without the first rows of orders (m, n)."""
        return (np.argsort(orders) >= round(TOP * self.n_rows)).astype(float)

    def fall(self, attributions):
        """Return how far outcomes fall without each query's own best rows, (q,)."""
        orders = np.argsort(-attributions, axis=1, kind="stable")
        own = self.of_one_seed(self.without(orders))
        return self.at_random - np.diagonal(own)

    def lds(self, attributions):
        weights, outcomes = self.truth[0.5]
        return lds_score(outcomes, weights @ attributions.T)

    def cells(self, attributions, default=None):
        """Return cells of the fidelity of attributions (q, n)."""
        weights, outcomes = self.truth[0.5]
        first = lds_interval(outcomes, weights @ attributions.T)
        if default is not None:
            first = f"{default} → {first}"
        shares = [self.truth[share] for share in SHARES]
        removed = [lds_score(out, w @ attributions.T) for w, out in shares]
        alone = loo_score(self.alone, attributions[:, self.left_out])
        fall = self.fall(attributions)
        error = fall.std(ddof=1) / len(fall) ** 0.5
        fell = f"{fall.mean():.2f} ± {error:.2f}"
        return first, *[f"{x:.3f}" for x in (*removed, alone)], fell


def asked(contest, script, method, settings):
    """Return what `run_peer` does, remembered by order, script and pinned versions."""
    names = [script, "_order", "_networks"]
    pins = (SCRIPTS / "requirements").glob(f"{NETWORKS[script]}*.txt")
    files = [*(SCRIPTS / f"{name}.py" for name in names), *sorted(pins)]
    source = [file.read_text() for file in files]
    what = script, source, method, digest(contest.path), settings
    return run_once(*what, path=contest.path, timeout=TIMEOUT)


def ranked(contest, found):
    """Return numbers of settings that gave scores, the best first, and their LDS."""
    scores = {
        i: contest.lds(a.astype(float))
        for i, (a, error) in enumerate(
            zip(found["scores"], found["errors"], strict=True)
        )
        if error is None
    }
    if not scores:
        raise RuntimeError(found["errors"][0])
    return sorted(scores, key=lambda i: -scores[i]), scores


class Peer:
    """A method of a package, for growing numbers of networks."""

    def __init__(self, contest, script, method, settings):
        self.contest, self.what, self.settings = contest, (script, method), settings

    def row(self, n_models):
        """Return CPU seconds and cells.

        More networks have the default and those settings that were best for fewer: two,
        one for more than 16. TRAK, whose best ridge depends on their number, has all of
        them for 16.
        """
        trained = {} if n_models == 1 else {"n_models": n_models}
        settings = [one | trained for one in self.settings]
        found = asked(self.contest, *self.what, settings)
        if found is None:
            raise RuntimeError(f"longer than {TIMEOUT} s")
        order, scores = ranked(self.contest, found)
        n_kept = 2 if n_models == 1 else 1
        if n_models > 1 or self.what[1] != "TRAK":
            kept = dict.fromkeys([0, *order[:n_kept]])
            self.settings = [self.settings[i] for i in kept]
        default = None
        if len(settings) > 1:
            default = f"{scores[0]:.3f}" if 0 in scores else "fails"
        seconds = found["seconds"][order[0]] + n_models * self.contest.seconds
        attributions = found["scores"][order[0]].astype(float)
        return f"{seconds:.1f}", *self.contest.cells(attributions, default)


def peers(contest, grids):
    """Yield method, numbers of networks, script, and what returns seconds and cells."""
    for name, (script, method, settings) in PEERS.items():
        settings = settings or grids.get((script, method), [{}])
        counts = (1, MODELS, MORE) if method == "TRAK" else (1, MODELS)
        yield name, counts, script, Peer(contest, script, method, settings).row


def ours(contest, _):
    """Yield the same of this package."""

    def row(method, n_networks):
        found = asked(contest, "run_skattrib", method, [{}])
        ranked(contest, found)
        # a trained network is handed over, others it trains itself
        n_given = n_networks == 1
        took = found["seconds"][0] + n_given * contest.seconds
        return f"{took:.1f}", *contest.cells(found["scores"][0].astype(float))

    for name, n_networks in OURS.items():
        own = f"skattrib {name}", (n_networks,), "run_skattrib"
        yield *own, partial(row, name)
    own = f"skattrib {AVERAGED}", (MODELS,), "run_skattrib"
    yield *own, partial(averaged, contest)


def averaged(contest, n_models):
    """Return the row of the mean of tangents of the networks that peers have."""
    start = time.process_time()
    total = 0
    for fit in contest.trained[0][:n_models]:
        dual = DualInfluence(
            FrozenEstimator(fit),
            removal="influence",
            outcome=contest.outcome,
            random_state=SEEDS[0],
        )
        total = total + dual.fit(*contest.rows).attribute(*contest.queries)
    took = time.process_time() - start + n_models * contest.seconds
    return f"{took:.1f}", *contest.cells(total / n_models)


def line_of(row):
    """Return the method of a row, whatever the number of its runs."""
    return re.sub(r", \d+ runs$", "", row[1])


def figure(table):
    """Draw LDS over networks and over CPU seconds, a set a column."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row[0] for row in table.rows))
    methods = dict.fromkeys(map(line_of, table.rows))
    colors = dict(zip(methods, colormaps["tab20"].colors, strict=False))
    drawn = Figure(figsize=(2.6 * len(names), 5.4), layout="constrained")
    shown = drawn.subplots(2, len(names), squeeze=False, sharey="col")
    for axes, name in zip(shown.T, names, strict=True):
        rows = [row for row in table.rows if row[0] == name and row[3]]
        for axis, at, title in zip(axes, (2, 3), ("networks", "CPU s"), strict=True):
            draw(axis, rows, at, colors)
            axis.set(xscale="log", xlabel=title)
        axes[0].set_title(name)
    for axes in shown:
        axes[0].set_ylabel("LDS, peers tuned on it")
    handles, labels = shown[0, 0].get_legend_handles_labels()
    below = {"loc": "outside lower center", "frameon": False, "ncols": 4}
    drawn.legend(handles, labels, **below)
    drawn.savefig(IMAGES / f"{NAME}.png", dpi=110)


def draw(axis, rows, at, colors):
    """Draw a line for each method over one of the columns."""
    lines = {}
    for row in rows:
        lds = float(row[4].split("→")[-1].split("[")[0])
        lines.setdefault(line_of(row), []).append((float(row[at]), lds))
    for method, points in lines.items():
        style = "o-" if method.startswith("skattrib") else "^--"
        options = {"ms": 4, "label": method, "color": colors[method]}
        axis.plot(*zip(*sorted(points), strict=True), style, **options)


def main(names):
    warnings.simplefilter("ignore")
    table = reopen(NAME, CAPTION, HEADER, machine())
    grids, missing = list_peers()
    for name in names or DATA:
        contest = Contest(name)
        for rows in (ours, peers):
            for method, counts, script, row in rows(contest, grids):
                # all numbers of networks: the first chooses settings of the others
                keys = [[name, method, str(n_networks)] for n_networks in counts]
                known = [known[:3] for known in table.rows]
                if all(key in known for key in keys):
                    continue
                for key, n_networks in zip(keys, counts, strict=True):
                    try:
                        if script in missing:
                            raise RuntimeError(missing[script])
                        cells = row(n_networks)
                    except RuntimeError as error:
                        cells = "", str(error)
                    empty = [""] * (len(HEADER) - 3 - len(cells))
                    table.put(*key, *cells, *empty, n_keys=3)
                    write(NAME, table)
    figure(table)


if __name__ == "__main__":
    main(sys.argv[1:])
