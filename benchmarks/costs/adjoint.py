"""What the reverse sweep costs: time, and memory with replay.

Time: 512 digits, MLP 64-16-10, batches of 32, 240 steps, 50 queries, against one
training by a plain torch loop and against autograd through the unrolled run. All are
timed in turns, five times. Memory: each in a process of its own, the peak of resident
memory over what was resident with model and data built; a net of a million parameters
over 500 steps. Reads /proc, so Linux only.

    OMP_NUM_THREADS=1 python -m benchmarks.costs.adjoint
"""

import time
from dataclasses import replace
from unittest import mock

import numpy as np
import torch

from benchmarks._data import load, network, run_of
from benchmarks._processes import in_own_process, in_turns, peak_from_here, wall_seconds
from benchmarks._table import Table, write
from benchmarks.costs._training import plain_loop

# The sweep itself, without what an attributor does around it, and how often it
# replays: neither has a public name.
from skattrib.engine import _adjoint, _training

N_ROUNDS = 5
#: scikit-learn's default working memory
PLENTY = 2**30
#: hidden layers, learning rate, batch size, steps, queries
NETS = {"small": ((16,), 1e-2, 32, 240, 50), "large": ((960, 960), 1e-4, 8, 500, 2)}


def problem_of(size, n_steps=None):
    """Return the arguments of the engine's `train`, and the queries, of one of NETS."""
    hidden, rate, batch_size, n_all, n_queries = NETS[size]
    X, y, X_query, y_query = load("digits")
    net = network(
        hidden_layer_sizes=hidden,
        learning_rate=rate,
        batch_size=batch_size,
        max_epochs=-(-n_all * batch_size // len(X)),
    )
    model, loss, recipe, X, targets = run_of(net, X, y)
    steps = slice(n_steps or n_all)
    rates, batches = recipe.learning_rates[steps], recipe.batches[steps]
    recipe = replace(recipe, learning_rates=rates, batches=batches)
    run = model, loss, recipe, X, targets, torch.ones(1, len(X))
    return run, (torch.tensor(X_query[:n_queries]), torch.tensor(y_query[:n_queries]))


def outcomes(run, params, queries):
    model, loss = run[:2]
    return -loss.values(model.outputs(params, queries[0]), queries[1])


def swept(run, params, queries, memory_bytes=PLENTY):
    """Return derivatives (q, n), the gradients at the end included."""
    gradients = torch.func.jacrev(lambda p: outcomes(run, p, queries))(params)
    return _adjoint.differentiate_run(*run, gradients[None], memory_bytes=memory_bytes)[
        0
    ]


def by_autograd(run, params, queries):
    """As for networks that are not linear layers and activations only."""
    with mock.patch.object(_adjoint, "dense_layers", return_value=None):
        return swept(run, params, queries)


def one_by_one(run, params, queries):
    pairs = zip(*queries, strict=True)
    return torch.cat([swept(run, params, (x[None], y[None])) for x, y in pairs])


def unrolled(run, queries, batched):
    """Return derivatives (q, n) by autograd through all steps of the run."""
    model, loss, recipe, X, targets, weights = run
    optimizer, weights = recipe.optimizer, weights[0].clone().requires_grad_()
    beta1, beta2 = optimizer.betas
    params = recipe.initial.clone().requires_grad_()
    first = second = torch.zeros_like(params)

    for t in range(1, recipe.n_steps + 1):
        rate, rows = recipe.step(t, X.device)
        w = weights[rows]
        values = loss.values(model.outputs(params, X[rows]), targets[rows])
        mean = (values * w).sum() / w.sum()
        (grad,) = torch.autograd.grad(mean, params, create_graph=True)
        first = beta1 * first + (1 - beta1) * grad
        second = beta2 * second + (1 - beta2) * grad**2
        # the root has no derivative at 0
        moved = second > 0
        root = torch.where(moved, second, 1.0).div(1 - beta2**t).sqrt()
        move = torch.where(moved, first / (root + optimizer.eps), 0.0)
        params = (1 - rate * optimizer.weight_decay) * params
        params = params - rate / (1 - beta1**t) * move

    found = outcomes(run, params, queries)
    if batched:
        eye = torch.eye(len(found))
        return torch.autograd.grad(found, weights, eye, is_grads_batched=True)[0]
    each = [torch.autograd.grad(o, weights, retain_graph=True)[0] for o in found]
    return torch.stack(each)


def plain(run):
    """Train by a plain loop; return the parameters."""
    model, _, recipe, X, targets, weights = run
    start = model.module, recipe.initial, recipe.batches
    return plain_loop(*start, X, targets, weights[0])


SWEEP, UNROLLED = "one reverse sweep", "unrolled, queries batched"
WAYS = {
    SWEEP: swept,
    "the same, all by autograd": by_autograd,
    "a sweep for each query": one_by_one,
    UNROLLED: lambda run, _, queries: unrolled(run, queries, True),
    "unrolled, query by query": lambda run, _, queries: unrolled(run, queries, False),
}


def times():
    """Time over that of a plain training, and memory, for each of WAYS."""
    table = Table(
        "50 queries through 240 steps",
        "way | time / plain training | peak memory (MB) | difference from the sweep",
    )
    run, queries = problem_of("small")
    params = _training.train(*run).params[0]
    np.testing.assert_allclose(plain(run), params, rtol=0, atol=1e-3)

    calls, found = [], {}
    for name, way in WAYS.items():

        def keep(name=name, way=way):
            found[name] = way(run, params, queries)

        # plain trainings around each: the machine has other work
        calls += [lambda: plain(run), keep]
    calls.append(calls[0])
    took = in_turns(calls, N_ROUNDS, clock=time.perf_counter)
    ratios = 2 * took[:, 1::2] / (took[:, :-1:2] + took[:, 2::2])

    for name, values in zip(WAYS, ratios.T, strict=True):
        gap = (found[name] - found[SWEEP]).norm() / found[SWEEP].norm()
        table.add(
            name,
            f"{np.median(values):.1f} ({min(values):.1f} to {max(values):.1f})",
            f"{in_own_process(measure, 'small', name)['extra']:.1f}",
            f"{gap:.0e}",
        )
    write("adjoint_time", table)


# ---------------------------------------------------------------------- memory
def measure(size, name, n_steps=None, mebibytes=None):
    """Return peak memory (MB) over that of model and data, and the steps replayed.

    A cap of None is scikit-learn's default.
    """
    warm, queries = problem_of(size, 1)
    options = {"memory_bytes": mebibytes * 2**20} if mebibytes else {}
    # what is imported or built on first use is no part of the cost
    plain(warm)
    WAYS[name](warm, warm[2].initial, queries, **options)
    run, queries = problem_of(size, n_steps)
    n_replayed = []

    def counted(*args):
        n_replayed.append(max(args[-1]) - args[-2])
        return _training.replay(*args)

    # the end of training is the start of a sweep; here any point will do
    params = run[2].initial
    risen = peak_from_here()
    with mock.patch.object(_adjoint, "replay", counted):
        spent, _ = wall_seconds(WAYS[name], run, params, queries, **options)
    extra = risen() / 1e6
    base = np.median([wall_seconds(plain, run)[0] for _ in range(3)])
    return {
        "n_params": run[0].n_params,
        "n_steps": run[2].n_steps,
        "extra": extra,
        "replayed": sum(n_replayed),
        "ratio": spent / base,
    }


def memory():
    """Memory of each way and cap, on the large net."""
    table = Table(
        "A million parameters, 2 queries",
        "way | parameters | steps | cap (MiB) | peak memory (MB) | steps replayed "
        "| time / plain training",
    )
    # way, steps, cap: so few steps of the large net fit the memory unrolled
    cases = [
        (SWEEP, None, None, f"default ({PLENTY / 2**20:.0f})"),
        (SWEEP, None, 512, 512),
        (SWEEP, None, 256, 256),
        (UNROLLED, 10, None, ""),
        (UNROLLED, 20, None, ""),
    ]
    for name, n_steps, mebibytes, label in cases:
        found = in_own_process(measure, "large", name, n_steps, mebibytes)
        table.add(
            name,
            f"{found['n_params']:,}",
            found["n_steps"],
            label,
            f"{found['extra']:.0f}",
            found["replayed"],
            f"{found['ratio']:.1f}",
        )
    write("adjoint_memory", table)


if __name__ == "__main__":
    times()
    memory()
