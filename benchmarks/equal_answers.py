"""The same influence function by three packages: time and memory at equal answers.

Softmax regression, where Hessian and Gauss-Newton matrix are one: DualInfluence with
``metric="identity", removal="influence"`` and a given ridge, dattri and pydvl with the
same damping, explicit and by conjugate gradients. The largest difference of any
query's scores is in the table. The multilayer perceptron is shown for its cost only: there the peers' Hessian is
another matrix. All go through `benchmarks/peers/_order.py`, one process each, in turns.
Ours also solves for all rows at fit; theirs for 50 queries.

    OMP_NUM_THREADS=1 python -m benchmarks.equal_answers
"""

import tempfile
from pathlib import Path

import numpy as np

from benchmarks._data import load
from benchmarks._orders import run_peer, write_order
from benchmarks._surrogates import MEASURED
from benchmarks.fidelity import network

RIDGE, REPEATS = 0.03, 3
OURS = ("run_skattrib", 'DualInfluence, removal="influence"')
#: script and method: its settings
PEERS = {
    ("run_dattri", "explicit"): {"regularization": RIDGE},
    # as many steps as reach the explicit answer; its default of 10 does not
    ("run_dattri", "CG"): {"regularization": RIDGE, "max_iter": 100},
    ("run_pydvl", "Direct"): {"regularization": RIDGE},
    ("run_pydvl", "CG"): {"regularization": RIDGE, "solve_simultaneously": True},
}
#: data, hidden layers
PROBLEMS = {
    "digits, softmax regression": ("digits", ()),
    "MNIST, softmax regression": ("mnist", ()),
    "digits, MLP 64-16-10": ("digits", (16,)),
}


def compared(scores):
    """Return each query's scores without their mean, and with norm 1.

    Packages scale them by other constants, and ours is the log-odds of the label;
    weights that are relative to their sum take the mean of the rows away.
    """
    scores = scores - scores.mean(axis=1, keepdims=True)
    return scores / np.linalg.norm(scores, axis=1, keepdims=True)


def compare(name, order):
    """Yield the cells of each peer."""
    X = np.load(order)["X"]
    runs = {peer: [] for peer in [OURS, *PEERS]}
    for _ in range(REPEATS):
        for peer in runs:
            setting = {"ridge": RIDGE, "metric": "identity"}
            setting = setting if peer == OURS else PEERS[peer]
            # a Hessian of MNIST takes gigabytes, and minutes
            runs[peer].append(run_peer(*peer, order, [setting], timeout=900))
    median = {
        peer: {k: np.median([run[k][0] for run in found]) for k in ("seconds", "peak")}
        for peer, found in runs.items()
    }
    ours = compared(runs[OURS][0]["scores"][0])
    for peer in PEERS:
        last = runs[peer][-1]
        label = [name, f"{peer[0].removeprefix('run_')} {peer[1]}", f"{len(X)}"]
        if last["errors"][0]:
            yield [*label, last["errors"][0], "", ""]
            continue
        theirs = compared(last["scores"][0])
        yield [
            *label,
            f"{np.linalg.norm(theirs - ours, axis=1).max():.1e}",
            f"{median[peer]['seconds'] / median[OURS]['seconds']:.3g}",
            f"{median[peer]['peak'] / max(median[OURS]['peak'], 2**20):.3g}",
        ]


def main():
    header = ["problem", "peer", "rows", "difference", "time", "memory"]
    lines = [
        f".. csv-table:: Relative to DualInfluence, damping {RIDGE}",
        "   :header: " + ", ".join(f'"{h}"' for h in header),
        "",
    ]
    for name, (data, hidden) in PROBLEMS.items():
        X, y, X_query, y_query = load(data)
        net = network(data, hidden_layer_sizes=hidden).fit(X, y)
        with tempfile.TemporaryDirectory() as folder:
            order = Path(folder) / "order.npz"
            write_order(order, net, X, y, X_query, y_query)
            for cells in compare(name, order):
                lines.append("   " + ", ".join(f'"{cell}"' for cell in cells))
                print(lines[-1].strip(), flush=True)
    MEASURED.joinpath("equal_answers.inc").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
