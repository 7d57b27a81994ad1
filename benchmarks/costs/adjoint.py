"""What the reverse sweep costs: time, its parts, and memory with replay.

Time: 512 digits, MLP 64-16-10, batches of 32, 240 steps, 50 queries, against one
training by a plain torch loop and against autograd through the unrolled run. All are
timed in turns, five times. Memory: each in a process of its own, the peak of resident
memory over what was resident with model and data built; a net of a million parameters
over 500 steps. Reads /proc, so Linux only.

    OMP_NUM_THREADS=1 python -m benchmarks.costs.adjoint
"""

import json
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from unittest import mock

import numpy as np
import torch

from benchmarks import _processes
from benchmarks._data import load, network
from benchmarks._processes import in_own_process
from benchmarks._table import Table, write
from benchmarks.costs._training import plain_loop
from skattrib.engine import _adjoint, _training
from skattrib.engine._adjoint import differentiate_run
from skattrib.engine._dense_hessian import DenseGradient
from skattrib.engine._training import train

REPEATS = 5
#: scikit-learn's default working memory
PLENTY = 2**30
#: hidden layers, learning rate, batch size, steps, queries
NETS = {
    "small": ((16,), 1e-2, 32, 240, 50),
    "large": ((960, 960), 1e-4, 8, 500, 2),
}
#: so few steps of the large net fit the memory unrolled
N_UNROLLED = 10
LIMIT = "second derivatives: share of the peak of a product of matrices"
#: what is timed, and where it stands in the engine
PARTS = {
    "states (replayed once)": (_adjoint, "replay"),
    "forward and gradient": (DenseGradient, "__init__"),
    "second derivatives": (DenseGradient, "products"),
    "optimizer": (_adjoint, "step_adjoint"),
}


def problem_of(size, n_steps=None):
    """Return the arguments of `train`, and the queries, of one of NETS."""
    hidden, rate, batch_size, n_all, n_queries = NETS[size]
    X, y, X_query, y_query = load("digits")
    net = network(
        hidden_layer_sizes=hidden,
        learning_rate=rate,
        batch_size=batch_size,
        max_epochs=-(-n_all * batch_size // len(X)),
    )
    problem = net._problem(X, net._learn_target(y))
    recipe, steps = problem.recipe, slice(n_steps or n_all)
    recipe = replace(
        recipe,
        learning_rates=recipe.learning_rates[steps],
        batches=recipe.batches[steps],
    )
    weights = torch.ones(1, len(X))
    run = (problem.model, problem.loss, recipe, problem.X, problem.targets, weights)
    return run, (torch.tensor(X_query[:n_queries]), torch.tensor(y_query[:n_queries]))


def outcomes(run, params, queries):
    model, loss = run[:2]
    return -loss.values(model.outputs(params, queries[0]), queries[1])


def swept(run, params, queries, **options):
    """Return derivatives (q, n), the gradients at the end included."""
    gradients = torch.func.jacrev(lambda p: outcomes(run, p, queries))(params)
    options.setdefault("memory_bytes", PLENTY)
    return differentiate_run(*run, gradients[None], **options)[0]


def by_autograd(run, params, queries):
    """As for networks that are not linear layers and activations only."""
    with mock.patch.object(_adjoint, "dense_layers", return_value=None):
        return swept(run, params, queries)


def one_by_one(run, params, queries):
    pairs = zip(*queries, strict=True)
    each = [swept(run, params, (x[None], y[None])) for x, y in pairs]
    return torch.cat(each)


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


def seconds(function, *args, **options):
    return _processes.seconds(function, *args, clock=time.perf_counter, **options)


def timed_parts(run, params, queries):
    """Return the share of each of PARTS, and of the rest, in a sweep."""
    spent = dict.fromkeys(PARTS, 0.0)

    def clocked(name, function):
        def call(*args):
            start = time.perf_counter()
            found = function(*args)
            spent[name] += time.perf_counter() - start
            return found

        return call

    with ExitStack() as stack:
        for name, (owner, attribute) in PARTS.items():
            function = clocked(name, getattr(owner, attribute))
            stack.enter_context(mock.patch.object(owner, attribute, function))
        total, _ = seconds(swept, run, params, queries)

    shares = {name: value / total for name, value in spent.items()}
    shares["the rest"] = 1 - sum(shares.values())
    # multiplications and additions of what the R-operator needs: two products of each
    # query with the first layer, six with the others
    hidden, _, batch_size, n_steps, n_queries = NETS["small"]
    sizes = [64, *hidden, 10]
    products = [2, *[6] * len(hidden)]
    pairs = zip(products, pairwise(sizes), strict=True)
    numbers = sum(n * k * o for n, (k, o) in pairs)
    done = 2 * numbers * batch_size * n_steps * n_queries
    rate = done / spent["second derivatives"]
    return shares | {LIMIT: rate / peak()}


def peak(size=1024):
    """Return multiplications and additions a second in a product of two matrices."""
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    return 2 * size**3 / min(seconds(torch.mm, matrix, matrix)[0] for _ in range(10))


def error(found, expected):
    return float((found - expected).norm() / expected.norm())


def plain(run):
    """Train by a plain loop; return the parameters."""
    model, _, recipe, X, targets, weights = run
    start = model.module, recipe.initial, recipe.batches
    return plain_loop(*start, X, targets, weights[0])


WAYS = {
    "one reverse sweep": swept,
    "the same, all by autograd": by_autograd,
    "a sweep for each query": one_by_one,
    "unrolled, queries batched": lambda run, _, queries: unrolled(run, queries, True),
    "unrolled, query by query": lambda run, _, queries: unrolled(run, queries, False),
}


def times():
    """Time over that of a plain training, and memory, for each of WAYS."""
    table = Table(
        "50 queries through 240 steps",
        "way | time / plain training | peak memory (MB) | difference from the sweep",
    )
    run, queries = problem_of("small")
    params = train(*run).params[0]
    np.testing.assert_allclose(plain(run), params, rtol=0, atol=1e-3)

    ratios, found = {name: [] for name in WAYS}, {}
    for _ in range(REPEATS):
        for name, way in WAYS.items():
            # plain trainings around each: the machine has other work
            before, _ = seconds(plain, run)
            spent, found[name] = seconds(way, run, params, queries)
            after, _ = seconds(plain, run)
            ratios[name].append(2 * spent / (before + after))

    expected = found["one reverse sweep"]
    for name, values in ratios.items():
        table.add(
            name,
            f"{np.median(values):.1f} ({min(values):.1f} to {max(values):.1f})",
            f"{in_own_process(__spec__.name, 'small', name)['extra']:.1f}",
            f"{error(found[name], expected):.0e}",
        )
    write("adjoint_time", table)


def shares():
    table = Table("Where a sweep spends its time", ["part", "share"])
    run, queries = problem_of("small")
    params = train(*run).params[0]
    each = [timed_parts(run, params, queries) for _ in range(REPEATS)]
    for name in each[0]:
        table.add(name, f"{np.median([found[name] for found in each]):.0%}")
    write("adjoint_parts", table)


# ---------------------------------------------------------------------- memory
def measure(size, name, n_steps=0, mebibytes=0):
    """Return peak memory (MB) over that of model and data, and the steps replayed.

    A cap of 0 MiB is scikit-learn's default.
    """
    warm, queries = problem_of(size, 1)
    options = {"memory_bytes": int(mebibytes) * 2**20 or PLENTY}
    options = options if name == "one reverse sweep" else {}
    # what is imported or built on first use is no part of the cost
    plain(warm)
    WAYS[name](warm, warm[2].initial, queries, **options)
    run, queries = problem_of(size, int(n_steps))
    n_replayed = []

    def counted(*args):
        n_replayed.append(max(args[-1]) - args[-2])
        return _training.replay(*args)

    # the end of training is the start of a sweep; here any point will do
    params = run[2].initial
    risen = _processes.peak_from_here()
    with mock.patch.object(_adjoint, "replay", counted):
        spent, _ = seconds(WAYS[name], run, params, queries, **options)
    extra = risen() / 1e6
    base = np.median([seconds(plain, run)[0] for _ in range(3)])
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
    cases = [
        ("one reverse sweep", 0, 0, f"default ({PLENTY / 2**20:.0f})"),
        ("one reverse sweep", 0, 512, 512),
        ("one reverse sweep", 0, 256, 256),
        ("unrolled, queries batched", N_UNROLLED, 0, ""),
        ("unrolled, queries batched", 2 * N_UNROLLED, 0, ""),
    ]

    for name, n_steps, mebibytes, label in cases:
        found = in_own_process(__spec__.name, "large", name, n_steps, mebibytes)
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


def check_replay(n_steps=40):
    """Replayed states give the same bits as kept ones."""
    run, queries = problem_of("large", n_steps)
    result = train(*run, keep=range(n_steps))
    found = []
    for states in (None, result.states):
        options = {"states": states, "memory_bytes": 128 * 2**20}
        found.append(swept(run, result.params[0], queries, **options))
    np.testing.assert_array_equal(*found)
    print(f"replayed and kept states: equal to the bit, {n_steps} steps")


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(measure(*sys.argv[1:])))
    else:
        check_replay()
        times()
        shares()
        memory()
