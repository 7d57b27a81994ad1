"""Building modules from a seed, and checks that they can be attributed."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from sklearn.utils import check_random_state
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer

from skattrib.engine._functional import (
    FunctionalModule,
    apart,
    as_rows,
    run_module,
)
from skattrib.engine._row_context import (
    RowContext,
    UnsuitableError,
    global_generator,
)

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "identity": nn.Identity,
}


@contextmanager
def generator_kept() -> Iterator[None]:
    """Restore torch's global generator afterwards; other threads wait meanwhile.

    CUDA generators are not touched.
    """
    with global_generator, torch.random.fork_rng(devices=[]):
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators of torch, NumPy and Python, and restore them afterwards."""
    with generator_kept():
        of_numpy = check_random_state(None)
        before = of_numpy.get_state(), random.getstate()
        torch.default_generator.manual_seed(seed)
        of_numpy.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            of_numpy.set_state(before[0])
            random.setstate(before[1])


def build_mlp(
    n_inputs: int,
    hidden_layer_sizes: Sequence[int],
    n_outputs: int,
    activation: str,
    seed: int,
) -> nn.Sequential:
    """Build a multilayer perceptron from a seed, with torch's initialisation."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise([n_inputs, *hidden_layer_sizes, n_outputs]):
        layer = nn.utils.skip_init(nn.Linear, n_in, n_out)
        bound = n_in**-0.5
        nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
        nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
        layers += [layer, ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


def call_seeded(
    factory: Callable[[int, int], nn.Module], n_inputs: int, n_outputs: int, seed: int
) -> nn.Module:
    """Call a factory with all global generators seeded, then restore these.

    The factory builds on the CPU.
    """
    with seeded(seed):
        return factory(n_inputs, n_outputs)


def is_lazy(module: nn.Module) -> bool:
    """Say whether parameters or buffers of a module wait for its first input."""
    held = itertools.chain(module.parameters(), module.buffers())
    return any(nn.parameter.is_lazy(tensor) for tensor in held)


def _lazy_buffers(module: nn.Module) -> dict[int, Any]:
    """Return, by id, copies of the buffers that `copy.deepcopy` cannot copy."""
    kind: Any = UninitializedBuffer  # whose types are those of another class
    return {
        id(buffer): kind(device=buffer.device, dtype=buffer.dtype)
        for buffer in module.buffers()
        if isinstance(buffer, UninitializedBuffer)
    }


def materialise(module: nn.Module, X: Tensor, seed: int) -> None:
    """Let the lazy layers of a module draw their weights, from a seed.

    ``X`` holds a few rows, by which they learn their widths.
    """
    if is_lazy(module):
        modes = {layer: layer.training for layer in module.modules()}
        with seeded(seed), torch.no_grad():
            module.eval()(X.clone())  # running statistics stay as they begin
        for layer in module.modules():
            layer.training = modes[layer]


def uncompiled_copy(module: nn.Module) -> nn.Module:
    """Copy a module without the wrappers of ``torch.compile``.

    The copy computes the same, but its layers are accessible: a compiled module is one
    opaque function, traced again for each transform of torch.func. Gradients of its
    embeddings are dense: a vector of all parameters cannot have sparse ones.
    """
    module = getattr(module, "_orig_mod", module)
    copied = copy.deepcopy(module, _lazy_buffers(module))
    for parent in list(copied.modules()):
        if isinstance(parent, nn.Embedding | nn.EmbeddingBag):
            parent.sparse = False
        # not named_children: it lists a layer that occurs twice only once
        for name, child in list(parent._modules.items()):
            if hasattr(child, "_orig_mod"):
                setattr(parent, name, child._orig_mod)
    return copied


def check_no_nan(module: nn.Module) -> None:
    """Raise ValueError if a weight or buffer is NaN."""
    for name, value in module.state_dict().items():
        if value.isnan().any():
            raise ValueError(
                f"The model's {name} has NaN: its training diverged, or its file is "
                "damaged. Train or load it again."
            )


def activation_size(module: nn.Module, X: Tensor) -> int:
    """Return how many numbers the outputs of all layers have for one row."""
    total = 0

    def count(_module: nn.Module, _inputs: object, output: object) -> None:
        nonlocal total
        if isinstance(output, Tensor):
            total += output[:1].numel()

    if any(layer.training for layer in module.modules()):
        module = apart(module).eval()
    leaves = [m for m in module.modules() if not list(m.children())]
    handles = [leaf.register_forward_hook(count) for leaf in leaves]
    try:
        with torch.no_grad():
            run_module(module, X[:1])
    finally:
        for handle in handles:
            handle.remove()

    return total


def find_refused_layers(module: nn.Module) -> list[tuple[str, str]]:
    """Return the layers whose training is no function of weights and seeds.

    Returns
    -------
    list of (name, reason)
        With what to use instead.
    """
    refused = []
    for name, layer in module.named_modules():
        reason = _why_refused(layer)
        if reason:
            refused.append((f"{name or 'module'} ({type(layer).__name__})", reason))
    return refused


def _why_refused(layer: nn.Module) -> str:
    if isinstance(layer, nn.modules.instancenorm._InstanceNorm):
        moves = layer.training and layer.track_running_stats
        return (
            "keeps running statistics of single rows: use track_running_stats=False"
            if moves
            else ""
        )
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
        if layer.max_norm is not None:
            return "shortens its vectors in place, in each pass: use max_norm=None"
        return (
            "divides gradients by how often a word is in the batch, where rows meet: "
            "use scale_grad_by_freq=False"
            if layer.scale_grad_by_freq
            else ""
        )
    if not isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return ""
    if layer.running_mean is None:
        return (
            "lets the rows of a batch influence each other when it predicts, too: use "
            "track_running_stats=True"
        )
    if layer.training and layer.momentum is None:
        return (
            "averages its statistics over a number of batches that depends on which "
            "rows are there: use momentum=0.1"
        )
    if layer.training and isinstance(layer, nn.SyncBatchNorm):
        return "takes statistics over several processes: use BatchNorm"
    return ""


def probe_training(model: FunctionalModule, X: Tensor) -> str | None:
    """Run a few rows as in training; return what is wrong, or None.

    Random numbers that are masks by row, and batch statistics, are right.
    """
    if not any(m.training for m in model.module.modules()):
        return None
    seed = torch.zeros((), dtype=torch.int64, device=X.device)
    vector, ids = model.vector().to(X), torch.arange(len(X), device=X.device)
    shares = X.new_full((len(X),), 1.0 / len(X))
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    try:
        with torch.no_grad(), generator_kept():
            first, _ = model.training_outputs(vector, X.clone(), shares, ids, seed, 1)
            again, _ = model.training_outputs(vector, X.clone(), shares, ids, seed, 1)
    except UnsuitableError as error:
        return str(error)
    after = model.module.state_dict()
    if any(not _same(v, before[k]) for k, v in after.items()):
        return "changes its own buffers while it is trained"
    if not _same(first, again):
        return (
            "draws random numbers while it is trained that torch's seed does not fix: "
            "draw them from torch's global generator, as torch.rand does"
        )
    answered = model.behaviour.masks or model.behaviour.mixes
    if any(model.behaviour) and (
        model.recomputes
        or (answered and _runs_again(model, vector, X, shares, ids, seed))
    ):
        return (
            "has a checkpoint, which runs layers again in the backward pass, where "
            "their random numbers and batch statistics are others: leave it out"
        )
    if model.behaviour.draws:
        return None
    try:
        with torch.no_grad(), RowContext(silent=True):
            return _meeting(model.module, X)
    except UnsuitableError as error:
        return str(error)


def _runs_again(
    model: FunctionalModule,
    vector: Tensor,
    X: Tensor,
    shares: Tensor,
    ids: Tensor,
    seed: Tensor,
) -> bool:
    """Return whether the backward pass calls what `RowContext` answers, or layers."""
    model, calls = model.apart(), []
    for layer in model.module.modules():
        if layer is not model.module:
            layer.register_forward_hook(lambda *_: calls.append(1))
    vector = vector.clone().requires_grad_()
    with torch.enable_grad(), generator_kept():
        out, _ = model.training_outputs(vector, X.clone(), shares, ids, seed, 1)
        calls.clear()
        with RowContext(shares, ids, seed, 1, silent=True, seen=calls):
            out.square().sum().backward()
    return bool(calls)


def _meeting(module: nn.Module, X: Tensor) -> str | None:
    """Return what is wrong if outputs of rows depend on who they come with."""
    module = apart(module)
    # batch normalisation counts its calls
    held = {name: value.clone() for name, value in module.named_buffers()}
    together = as_rows(run_module(module, X.clone(), held), len(X))
    alone = torch.cat([as_rows(run_module(module, row[None], held), 1) for row in X])
    if alone.shape != together.shape:
        return "returns other shapes for one row than for several"

    scale = together.nan_to_num().abs().max().clamp(min=1.0)
    tolerance = 1e3 * torch.finfo(together.dtype).eps * scale
    close = (together - alone).abs() <= tolerance
    if not bool((close | (together.isnan() & alone.isnan())).all()):
        return "lets the rows of a batch influence each other"
    return None


def probe_rows(module: nn.Module, X: Tensor) -> str | None:
    """Run a few rows alone, together and twice; return what is wrong, or None.

    This detects custom layers, whose class tells nothing.
    """
    state = {k: v.clone() for k, v in module.state_dict().items()}
    with torch.no_grad(), generator_kept():
        together = as_rows(module(X), len(X))
        again = as_rows(module(X), len(X))

    changed = any(not _same(v, state[k]) for k, v in module.state_dict().items())
    if changed:
        return "changes its own buffers in the forward pass"
    if not _same(together, again):
        return "is random: it returns different outputs for the same rows"
    with torch.no_grad(), generator_kept():
        return _meeting(module, X)


def _same(one: Tensor, other: Tensor) -> bool:
    """Say whether tensors are equal, NaN to NaN."""
    return bool(((one == other) | ((one != one) & (other != other))).all())
