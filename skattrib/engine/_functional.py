"""A module as a pure function of one flat parameter vector."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import _WeightNorm
from torch.overrides import TorchFunctionMode

from skattrib.engine._row_context import (
    Behaviour,
    RowContext,
    WideMasks,
    counter_names,
    drawing_again,
    drawing_from,
    generator_states,
    known_behaviour,
    statistics_names,
)


class FunctionalModule:
    """Evaluate a module at any flat parameter vector.

    Only parameters that require a gradient enter the vector, in the order of
    ``named_parameters``; frozen parameters stay as they are. Tied parameters appear
    once. The running statistics of batch normalisation may follow them, which training
    moves; a vector without them leaves all buffers as they are.

    Parameters
    ----------
    module : nn.Module
        As it is trained, layers in training mode or not. Not modified, not copied.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        named = [(k, p) for k, p in module.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in named]
        self.shapes = [tuple(p.shape) for _, p in named]
        self.sizes = [p.numel() for _, p in named]
        self.n_params = sum(self.sizes)
        # of those that are in evaluation mode throughout, buffers stay as they are
        self._statistics, self._counters = (
            statistics_names(module),
            counter_names(module),
        )
        held = dict(module.named_buffers())
        self._statistics_shapes = [tuple(held[name].shape) for name in self._statistics]
        self._statistics_sizes = [held[name].numel() for name in self._statistics]
        self.n_buffers = sum(self._statistics_sizes)
        # what it does in training, as far as is known before `look`
        self.behaviour = known_behaviour(module)
        self._evaluated: nn.Module | None = None
        self._written_out = any(isinstance(m, _WeightNorm) for m in module.modules())
        # of a loop whose random numbers it repeats, by step: states of torch's
        # generator, and how rows were padded, or None
        self.draws_again: Mapping[int, tuple[Tensor, Tensor | None]] | None = None
        # by parameters: whether torch.func's gradients of rows in them are right
        self.transformed: dict[tuple[str, ...], bool] = {}
        # where they are not: what is done instead, which is said once, also of copies
        self.said: list[str] = []
        # whether it is only tried, and what is slow is said later
        self.silent = False
        # whether its backward pass runs layers again, as checkpoints do
        self.recomputes: bool | None = None

    def flatten(self) -> Tensor:
        """Return a copy of the module's present parameters, shape (P,)."""
        params = dict(self.module.named_parameters())
        return torch.cat([params[k].detach().reshape(-1) for k in self.names])

    def statistics(self) -> Tensor:
        """Return a copy of the present running statistics, shape (B,)."""
        held = dict(self.module.named_buffers())
        found = [held[name].reshape(-1) for name in self._statistics]
        return torch.cat(found).clone() if found else self.flatten()[:0]

    def vector(self) -> Tensor:
        """Return parameters and running statistics, shape (P + B,)."""
        return torch.cat([self.flatten(), self.statistics()])

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Cut a vector, (P,) or (P + B,), into named parameters and statistics."""
        names, sizes, shapes = self.names, self.sizes, self.shapes
        if self.n_buffers and len(vector) > self.n_params:
            names = names + self._statistics
            sizes = sizes + self._statistics_sizes
            shapes = shapes + self._statistics_shapes
        # split, not slices: its backward is one concatenation
        pieces = torch.split(vector, sizes)
        return {
            name: piece.view(shape)
            for name, piece, shape in zip(names, pieces, shapes, strict=True)
        }

    @property
    def evaluated(self) -> nn.Module:
        """The module as it answers queries: in evaluation mode, if that differs."""
        if not any(self.behaviour):
            return self.module
        if self._evaluated is None:
            self._evaluated = apart(self.module).eval()
        return self._evaluated

    def outputs(self, vector: Tensor, X: Tensor) -> Tensor:
        """Return the outputs (n, C) for queries of the module with these parameters."""
        params = self.unflatten(vector)
        if len(vector) > self.n_params:
            with RowContext():
                return self._run(self.evaluated, X, params)
        return self._run(self.evaluated, X, params)

    def training_outputs(
        self,
        vector: Tensor,
        X: Tensor,
        shares: Tensor,
        ids: Tensor,
        seed: Tensor,
        t: int,
    ) -> tuple[Tensor, Tensor]:
        """Return outputs (n, C) of step t of a training, and new statistics (B,).

        Parameters
        ----------
        vector : Tensor of shape (P + B,)
        X : Tensor of shape (n, ...)
        shares : Tensor of shape (n,)
            Weights of the rows over their sum.
        ids : int64 Tensor of shape (n,)
            Numbers of the rows.
        seed : int64 Tensor of shape ()
        t : int
        """
        params = self.unflatten(vector)
        held = {name: params[name] for name in self._statistics if name in params}
        if not held and not any(self.behaviour):
            return self._run(self.module, X, params), vector[self.n_params :]
        params |= {name: seed.new_zeros(()) for name in self._counters}
        drawn = None if self.draws_again is None else self.draws_again.get(t)
        with RowContext(shares, ids, seed, t, held, own=drawn is None) as context:
            if drawn is not None:
                out = self._drawn_again(*drawn, X, params)
            elif self.behaviour.draws:
                with drawing_from(seed, t):
                    out = self._run(self.module, X, params)
            else:
                out = self._run(self.module, X, params)
        if not held:
            return out, vector[self.n_params :]
        moved = [context.new.get(name, value) for name, value in held.items()]
        return out, torch.cat([value.reshape(-1) for value in moved])

    def _drawn_again(
        self,
        state: Tensor,
        layout: Tensor | None,
        X: Tensor,
        params: Mapping[str, Tensor],
    ) -> Tensor:
        """Return outputs with the numbers that a recorded loop drew for these rows.

        States (K, S) are those of K passes, one after the other, of equal parts; or of
        the parts that a layout (n, 3) tells, of each row the pass, the width of its
        batch and where it began there.
        """
        states = state[None] if state.ndim == 1 else state
        if layout is None:
            sizes = [len(part) for part in X.chunk(len(states))]
        else:  # steps may have fewer passes than states
            sizes = torch.bincount(layout[:, 0]).tolist()
            states = states[: len(sizes)]
        outputs, first = [], 0
        for of_part, size in zip(states, sizes, strict=True):
            part = slice(first, first + size)
            first += size
            with ExitStack() as stack:
                stack.enter_context(drawing_again(of_part, X.device))
                if layout is not None:
                    stack.enter_context(WideMasks(layout[part, 1:]))
                outputs.append(self._run(self.module, X[part], params))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _run(
        self, module: nn.Module, X: Tensor, params: Mapping[str, Tensor]
    ) -> Tensor:
        with _WrittenOut() if self._written_out else nullcontext():
            if self.recomputes:
                return as_rows(run_module(_with(module, params), X), len(X))
            return as_rows(run_module(module, X, params), len(X))

    def look(self, X: Tensor) -> None:
        """Find out from two rows what must be known of the module.

        That is what it does in training, and whether parameters must outlast the
        forward pass: a checkpoint calls its layers again in the backward pass, when
        `functional_call` has taken its parameters back, and gradients would silently be
        those elsewhere.
        """
        if self.recomputes is not None:
            return
        if not self._look_at_layers(X[:2]):
            self.recomputes = False
            return

        vector = 0.9 * self.flatten().to(X)
        found = []
        for self.recomputes in (True, False):
            params = vector.clone().requires_grad_()
            try:
                with torch.enable_grad():
                    total = self.outputs(params, X[:2]).square().sum()
                found.append(torch.autograd.grad(total, params)[0])
            except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):
                # whoever needs gradients will say what is wrong
                self.recomputes = False
                return
        kept, swapped = found
        self.recomputes = bool(kept.isfinite().all()) and not torch.allclose(
            kept, swapped, rtol=1e-3, atol=1e-3 * float(kept.abs().max())
        )

    def _look_at_layers(self, X: Tensor) -> bool:
        """Find random numbers that no layer's class tells of; say if there are outputs.

        Whoever needs outputs will say what is wrong if there are none.
        """
        seed = torch.zeros((), dtype=torch.int64, device=X.device)
        shares = torch.full_like(seed, 1, dtype=X.dtype).expand(len(X)) / len(X)
        ids = torch.arange(len(X), device=X.device)
        module = apart(self.module)
        found = []
        try:
            with torch.no_grad(), drawing_from(seed, 0):
                before = generator_states(X.device)
                for _ in range(2):
                    held = {n: b.clone() for n, b in module.named_buffers()}
                    with RowContext(shares, ids, seed, 0, held) as context:
                        out = run_module(module, X.clone(), held)
                    found.append(out)
                # two rows may come out alike by chance, whatever was drawn
                drew = not torch.equal(before, generator_states(X.device))
        except (RuntimeError, NotImplementedError, ValueError, TypeError):
            return False
        if not all(isinstance(value, Tensor) for value in found):
            return False
        first, second = (value.nan_to_num() for value in found)
        masks, mixes, draws, _ = self.behaviour
        self.behaviour = Behaviour(
            masks or context.calls > 0,
            mixes or context.mixes,
            draws or drew or not torch.equal(first, second),
        )
        if not any(self.behaviour) and any(m.training for m in module.modules()):
            differs = not self._same_when_evaluated(module, first, X)
            self.behaviour = self.behaviour._replace(differs=differs)
        return True

    def _same_when_evaluated(self, module: nn.Module, out: Tensor, X: Tensor) -> bool:
        """Say whether a copy of the module computes this in evaluation mode, too."""
        try:
            with torch.no_grad():
                other = run_module(apart(module).eval(), X.clone())
        except (RuntimeError, NotImplementedError, ValueError, TypeError):
            return True  # and goes on as it is
        if not isinstance(other, Tensor) or other.shape != out.shape:
            return False
        close: bool = torch.allclose(other.nan_to_num(), out, rtol=1e-4, atol=1e-6)
        return close

    def present_outputs(self, X: Tensor) -> Tensor:
        """Return the outputs (n, C) of the module as it is."""
        return as_rows(run_module(self.evaluated, X), len(X))

    def load(self, vector: Tensor) -> None:
        """Write a vector into the module's own parameters, and statistics."""
        params: dict[str, Tensor] = dict(self.module.named_parameters())
        params |= dict(self.module.named_buffers())
        with torch.no_grad():
            for name, value in self.unflatten(vector).items():
                params[name].copy_(value)

    def of_parameters(self, names: list[str]) -> FunctionalModule:
        """Return a copy whose vector holds the named parameters only."""
        module = copy.deepcopy(self.module)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in names)
        return self.like(module)

    def columns_of(self, names: list[str]) -> Tensor:
        """Return the positions of the named parameters in the vector."""
        pieces = torch.arange(self.n_params).split(self.sizes)
        places = dict(zip(self.names, pieces, strict=True))
        return torch.cat([places[name] for name in names])

    def apart(self) -> FunctionalModule:
        """Return a copy, with the same tensors, for use in another thread."""
        return self.like(apart(self.module))

    def __deepcopy__(self, memo: dict[int, object]) -> FunctionalModule:
        return self.like(copy.deepcopy(self.module, memo))

    def like(self, module: nn.Module) -> FunctionalModule:
        """Return another module, of which the same is known."""
        copied = FunctionalModule(module)
        copied.transformed, copied.said = dict(self.transformed), self.said
        copied.recomputes, copied.silent = self.recomputes, self.silent
        copied.behaviour, copied.draws_again = self.behaviour, self.draws_again
        return copied


class _Switch:
    """A global switch of torch's, off while any thread needs it off.

    The first thread to come turns it off, the last one to leave restores it.
    """

    def __init__(self, get: Callable[[], bool], put: Callable[[bool], object]) -> None:
        self._get, self._put = get, put
        self._lock = threading.Lock()
        self._n_users, self._before = 0, True

    def __enter__(self) -> None:
        with self._lock:
            if not self._n_users:
                self._before = self._get()
                self._put(False)
            self._n_users += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._n_users -= 1
            if not self._n_users:
                self._put(self._before)


# Attention of torch.nn in eval mode: kernels that have no derivatives, and nested
# tensors, which no transform takes.
_fast_attention = _Switch(
    torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled
)
# Recurrent layers on a GPU: cuDNN differentiates them in train mode only, and once.
_cudnn = _Switch(
    lambda: bool(torch.backends.cudnn.enabled),
    lambda value: setattr(torch.backends.cudnn, "enabled", value),
)


class _WrittenOut(TorchFunctionMode):
    """Weight normalisation in single steps: torch's second derivatives are wrong."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        function = _weight_norm if func is torch._weight_norm else func
        return function(*args, **(kwargs or {}))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    axes = [axis for axis in range(v.ndim) if axis != dim]  # dim=-1: all of them
    return v * (g / v.square().sum(axes, keepdim=dim != -1).sqrt())


def as_rows(out: Tensor, n_rows: int) -> Tensor:
    """Return outputs (n, C), also of a module that squeezes what it returns."""
    if out.ndim > 1:
        return out
    return out.reshape(1, -1) if n_rows == 1 else out.reshape(-1, 1)


def run_module(
    module: nn.Module, X: Tensor, params: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Return what a module returns, with other parameters if given.

    Only by kernels that can be differentiated twice.
    """
    with _fast_attention:
        if X.is_cuda and any(isinstance(m, nn.RNNBase) for m in module.modules()):
            with _cudnn:
                return _run(module, X, params)
        return _run(module, X, params)


def _run(module: nn.Module, X: Tensor, params: Mapping[str, Tensor] | None) -> Tensor:
    out: Tensor = (
        module(X) if params is None else functional_call(module, dict(params), (X,))
    )
    return out


def _with(module: nn.Module, params: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy that has these parameters for good."""
    module = apart(module)
    own: dict[str, Tensor] = dict(module.named_parameters())
    own |= dict(module.named_buffers())
    new = {id(own[name]): value for name, value in params.items()}
    for layer in module.modules():
        for kind in ("_parameters", "_buffers"):
            held = getattr(layer, kind)
            for name, value in held.items():
                if id(value) in new:
                    layer.__dict__[kind][name] = new[id(value)]
    return module


def apart(module: nn.Module) -> nn.Module:
    """Return a copy of a module that shares its tensors: weights are not copied.

    Hooks, and `functional_call`, which replaces parameters for a while, write into the
    layers of a module. They are applied to such a copy, as other threads may be using
    the module.
    """
    tensors = (*module.parameters(), *module.buffers())
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


def spread(n: int, n_wanted: int) -> NDArray[np.intp]:
    """Return up to ``n_wanted`` positions in ``range(n)``, spread evenly."""
    return np.linspace(0, n - 1, min(n, n_wanted)).astype(np.intp)


def chunks(n: int, size: int) -> Iterator[slice]:
    """Yield slices that cover ``range(n)`` in pieces of at most ``size``."""
    size = max(1, size)
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
