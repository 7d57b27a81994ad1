"""One suite for what takes time: each part's share of what the machine can do.

Yardsticks, timed in turns with each part, in CPU time: the product of two matrices of
1,024, and the copy of 256 MB. A part's arithmetic is counted by torch's FLOP counter
(products of matrices only), its traffic from the sizes of what it must read and write.
"Share of peak" is its arithmetic per second over the yardstick's, "share of traffic"
the same for bytes; where both are small, what limits is neither but the calls
themselves: many small operations, dispatched by Python.

    OMP_NUM_THREADS=1 python -m benchmarks.costs.speed [cuda]
"""

import sys
import time
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

from benchmarks._data import load, network, run_of
from benchmarks._processes import in_turns, product
from benchmarks._table import Table, write
from skattrib import KernelSurrogate, RISEValuator

# The parts by themselves are no one's public function.
from skattrib.engine._adjoint import differentiate_run
from skattrib.engine._gradients import row_gradients
from skattrib.engine._index import Header, SignatureIndex
from skattrib.engine._jacobian import jacobian_of
from skattrib.engine._kernel import kernel_block
from skattrib.engine._similarity import Similarity, best
from skattrib.engine._solvers import Factor, add_diagonal
from skattrib.engine._training import train_stack
from skattrib.evaluation import make_weightings

N_ROUNDS = 5
PLENTY = 2**31
#: from these shares on, arithmetic or traffic is what limits
MUCH = 0.25
N_ROWS, N_QUERIES, N_MODELS = 512, 50, 64


def setting(device):
    """Return a trained network and what the parts start from."""
    X, y, X_query, y_query = load("digits")
    net = network(device=device).fit(X, y)
    s = SimpleNamespace(net=net, X=X, y=y, device=device, run=run_of(net, X, y))
    model, loss, _, rows, labels = s.run
    weights = make_weightings(N_ROWS, N_MODELS, random_state=0)
    s.weights = torch.tensor(weights, device=device).to(rows)
    queries = torch.tensor(X_query, device=device)
    targets = torch.tensor(y_query, device=device)
    s.cotangents = torch.func.jacrev(
        lambda p: -loss.values(model.outputs(p, queries), targets)
    )(model.flatten())[None]
    outputs, s.gradients = row_gradients(model, rows, None, PLENTY)
    s.roots = loss.hessian_root(outputs, labels).contiguous()
    s.jacobian = jacobian_of(s.gradients, PLENTY)
    return s


def parts(s):
    """Return {part: (call, bytes it must move, its FLOPs where none are counted)}."""
    model, _, recipe, rows, _ = s.run
    P, n, C = s.gradients.n_params, N_ROWS, 10
    kernel = kernel_block(s.gradients, s.gradients, PLENTY)
    damped = add_diagonal(kernel, 10.0)
    rng = np.random.default_rng(0)
    W = make_weightings(500, 1000, random_state=0)
    F = rng.normal(size=(1000, N_QUERIES))
    index = SignatureIndex.create(None, Header({"rh": 512}, {}, ""), {})
    index = index.append({"rh": torch.randn(100_000, 512)})
    similarity = Similarity({"rh": 1.0}, True, {})
    asked = normalize(torch.randn(N_QUERIES, 512, device=s.device))
    n_steps, batch = recipe.n_steps, 32
    whole = torch.ones(1, n, device=s.device)

    def search():
        best(asked, index, similarity, 10, 2**14)

    return {
        "gradients of 512 rows, as factors": (
            lambda: row_gradients(model, rows, None, PLENTY),
            4 * s.gradients.n_numbers,
        ),
        "Gauss-Newton matrix": (
            lambda: s.jacobian.gauss_newton(s.roots),
            4 * (P**2 + s.gradients.n_numbers),
            # a quarter of a layer's own block, as it is symmetric twice
            2 * n * (1040**2 / 4 + 170**2 / 4 + 1040 * 170),
        ),
        "kernel of 512 rows, 10 outputs": (
            lambda: kernel_block(s.gradients, s.gradients, PLENTY),
            4 * (n * C) ** 2,
        ),
        "its Cholesky factor": (
            lambda: Factor(damped),
            8 * (n * C) ** 2,
            (n * C) ** 3 / 3,
        ),
        "64 models in a stack, 240 steps": (
            lambda: train_stack(*s.run, s.weights, memory_bytes=PLENTY),
            # parameters, two moments and the gradient, read and written
            4 * n_steps * N_MODELS * 8 * P,
        ),
        "reverse sweep, 50 queries, 240 steps": (
            lambda: differentiate_run(*s.run, whole, s.cotangents, memory_bytes=PLENTY),
            4 * n_steps * N_QUERIES * (8 * P + batch),
        ),
        "kernel surrogate, 1,000 subsets of 500 units": (
            lambda: KernelSurrogate().fit(W, F),
            8 * 1000**2,
            # an eigendecomposition
            9 * 1000**3,
        ),
        "index of 512 rows": (
            lambda: RISEValuator(s.net, random_state=0).fit(s.X, s.y),
            4 * n * 512,
        ),
        "search of 100,000 signatures, 50 queries": (search, 2 * 100_000 * 512),
    }


def flops_of(use):
    counter = FlopCounterMode(display=False)
    with counter:
        use()
    return counter.get_total_flops()


def limit(peak, traffic):
    """Say what limits, from the shares reached."""
    if max(peak, traffic) < MUCH:
        return "small operations"
    return "arithmetic" if peak >= traffic else "memory traffic"


def main(device):
    s = setting(device)
    multiply = product(device=device)
    block = torch.empty(2**26, device=device)
    copy = torch.empty_like(block)

    def until_done(use):
        """Return a call that is over when the device's queue is empty."""
        return lambda: (use(), device == "cuda" and torch.cuda.synchronize())

    table = Table(
        f"{torch.get_num_threads()} thread(s), {device}",
        ["part", "products of 1,024", "share of peak", "share of traffic", "limit"],
    )

    for name, (use, n_bytes, *counted) in parts(s).items():
        calls = [until_done(c) for c in (use, multiply, lambda: copy.copy_(block))]
        in_turns(calls, 1)
        flops = counted[0] if counted else flops_of(use)
        clock = time.perf_counter if device == "cuda" else time.process_time
        took, one, copied = np.median(in_turns(calls, N_ROUNDS, clock), axis=0)
        peak = flops / took / (2 * 1024**3 / one)
        traffic = n_bytes / took / (2 * 2**28 / copied)
        table.add(
            name,
            f"{took / one:.3g}",
            f"{peak:.2f}",
            f"{traffic:.2f}",
            limit(peak, traffic),
            note=f"{took * 1e3:.2f} ms",
        )
    write("speed" if device == "cpu" else f"speed_{device}", table)


if __name__ == "__main__":
    main(sys.argv[1] if sys.argv[1:] else "cpu")
