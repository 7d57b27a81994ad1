"""What the derivative of a run misses when a row is really removed, and why.

First, does half the second derivative along the run foretell the error, without
retraining? Or a run that removes half of each row, whose error is taken four times, or
half the second difference of runs without it and with twice its weight? 400 digits, one
hidden layer of 16, minibatches of 32, 2 epochs, 24 rows; and adapters of all blocks of
a small Llama, 32 docstrings, minibatches of 8, 3 epochs, every third row. CPU time is
that of the runs without each row, as one stack, next to that of the first and second
derivatives. Rows that this table has are kept.
Then the errors of the trained weights after removing each of 32 rows of the data,
networks and runs of `benchmarks.ranking.fidelity`, told apart. float64.

    OMP_NUM_THREADS=1 python -m benchmarks.runs.second_order
"""

import time

import numpy as np
import torch
from scipy.stats import linregress, spearmanr

from benchmarks._data import load, network, run_of
from benchmarks._table import Table, reopen, write
from benchmarks.language._small import columns, docstrings, small_llama
from benchmarks.language.fine_tuning import small_lm

# `AdamWInfluence.diagnose` has the medians of fewer rows, and not each of them.
from skattrib.engine._tangent import tangents
from skattrib.engine._training import train

CAP = 2**30
#: learning rate, eps, schedule
RUNS = [
    (1e-2, 1e-8, "constant"),
    (1e-3, 1e-8, "constant"),
    (1e-4, 1e-8, "constant"),
    (1e-3, 1e-4, "constant"),
    (1e-3, 1e-2, "constant"),
    (1e-3, 1e-8, "linear_warmup"),
]
#: of the Llama: each source's texts and queries, tokens; learning rates
LLAMA_TEXTS, LLAMA_RATES = (4, 1, 30), (5e-3, 1e-3, 1e-4)
CAPTION = "Half the second derivative against the real error"
HEADER = (
    "activation | learning rate | eps | schedule | error / change | predicted / "
    "real | Spearman | R² (logs) | slope (logs) | half removal: predicted / real | "
    "Spearman | second difference: predicted / real | Spearman | CPU: runs / "
    "derivatives"
).split(" | ")


def removals(net, X, y, n_rows):
    """Return changes, first and second derivatives, and SGD-style ones, (r, P) each."""
    run = run_of(net, X, y)
    rows = np.linspace(0, len(X) - 1, n_rows).astype(int)
    directions = torch.eye(len(X), dtype=torch.float64)[rows]
    weights = torch.ones(len(X), dtype=torch.float64)
    along = (*run, weights, directions)
    first, second = tangents(*along, memory_bytes=CAP)
    (sgd,) = tangents(*along, order=1, plain_sgd=True, memory_bytes=CAP)
    return removed(run, weights, directions), first, second, sgd


def removed(run, weights, directions, share=1.0):
    """Return how the end of a run changes without a share of each direction, (r, P)."""
    ends = train(*run, torch.cat([weights[None], weights - share * directions])).params
    return ends[1:] - ends[0]


def timed(function, *arguments, repeats, **options):
    """Return what a function does, and the shortest of its CPU times."""
    times = []
    for _ in range(repeats):
        started = time.process_time()
        found = function(*arguments, **options)
        times.append(time.process_time() - started)
    return found, min(times)


def ratio(predicted, real):
    """Return cells: the median ratio of errors, and their rank correlation."""
    ranks = spearmanr(predicted, real).statistic
    return f"{float((predicted / real).median()):.2f}", f"{ranks:.3f}"


def compared(run, n_rows, rows, repeats=3):
    """Return cells: what foretells the error of removing each of some rows."""
    directions = torch.eye(n_rows, dtype=torch.float64)[rows]
    weights = torch.ones(n_rows, dtype=torch.float64)
    along = (*run, weights, directions)
    change, of_runs = timed(removed, run, weights, directions, repeats=repeats)
    (first, second), of_derivatives = timed(
        tangents, *along, memory_bytes=CAP, repeats=repeats
    )
    half = removed(run, weights, directions, 0.5) + first / 2
    difference = change + removed(run, weights, directions, -1.0)
    missed = (change + first).norm(dim=1)
    proxy = second.norm(dim=1) / 2
    fit = linregress(missed.log().numpy(), proxy.log().numpy())
    return (
        f"{float((missed / change.norm(dim=1)).median()):.3f}",
        *ratio(proxy, missed),
        f"{fit.rvalue**2:.2f}",
        f"{fit.slope:.2f}",
        *ratio(4 * half.norm(dim=1), missed),
        *ratio(difference.norm(dim=1) / 2, missed),
        f"{of_runs / of_derivatives:.2f}",
    )


def networks():
    """Yield the first cells of networks, and what gives the others."""
    X, y, *_ = load("digits", dtype=np.float64)
    rows = np.linspace(0, 399, 24).astype(int)
    for activation in ("tanh", "relu"):
        for rate, eps, schedule in RUNS:
            options = {"learning_rate": rate, "eps": eps, "schedule": schedule}
            options |= {"max_epochs": 2, "betas": (0.9, 0.95)}

            def cells(activation=activation, options=options):
                net = network(activation=activation, **options)
                return compared(run_of(net, X[:400], y[:400]), 400, rows)

            yield (activation, f"{rate:g}", f"{eps:g}", schedule), cells


def llamas():
    """Yield the same of adapters of the small Llama."""
    model, tokenizer = small_llama()
    _, *texts = columns(docstrings(tokenizer, *LLAMA_TEXTS)[0])
    for rate in LLAMA_RATES:
        lm = small_lm(model.double(), tokenizer, random_state=0, learning_rate=rate)

        def cells(lm=lm):
            lm.fit(*texts)
            X, y = lm._tokenised(*texts)
            rows = np.arange(0, len(X), 3)
            return compared(run_of(lm.network_, X, y), len(X), rows, repeats=1)

        yield ("SiLU, adapters of a Llama", f"{rate:g}", "1e-08", lm.schedule), cells


def foretold():
    table = reopen("second_order", CAPTION, HEADER)
    for settings in (networks(), llamas()):
        for names, cells in settings:
            if [*names] not in [row[:4] for row in table.rows]:
                table.put(*names, *cells(), n_keys=4)
                write("second_order", table)


def split():
    table = Table(
        "Errors of the weights after a removal, as shares of the change",
        "data | activation | learning rate | optimizer mismatch | first order | "
        "remainder | exact derivative | SGD-style",
    )

    for name in ("digits", "breast_cancer", "wine", "diabetes"):
        X, y, *_ = load(name, dtype=np.float64)
        for activation, rate in [("relu", 1e-2), ("tanh", 1e-2), ("relu", 1e-3)]:
            net = network(name, activation=activation, learning_rate=rate)
            change, first, second, sgd = removals(net, X, y, 32)
            parts = [
                sgd - first,
                second / 2,
                change + first - second / 2,
                change + first,
                change + sgd,
            ]
            shares = [p.norm(dim=1) / change.norm(dim=1) for p in parts]
            cells = [f"{float(share.median()):.2f}" for share in shares]
            table.add(name, activation, f"{rate:g}", *cells)
    write("removal_errors", table)


if __name__ == "__main__":
    foretold()
    split()
