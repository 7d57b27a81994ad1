"""A module as a pure function of one flat parameter vector."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call


class FunctionalModule:
    """Evaluate a module at any flat parameter vector.

    Only parameters that require a gradient enter the vector, in the order of
    ``named_parameters``; buffers and frozen parameters stay as they are. Tied
    parameters appear once.

    Parameters
    ----------
    module : nn.Module
        Not modified, not copied.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        named = [(k, p) for k, p in module.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in named]
        self.shapes = [tuple(p.shape) for _, p in named]
        self.sizes = [p.numel() for _, p in named]
        self.n_params = sum(self.sizes)
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

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Cut a vector (P,) into named parameters."""
        # split, not slices: its backward is one concatenation
        pieces = torch.split(vector, self.sizes)
        return {
            name: piece.view(shape)
            for name, piece, shape in zip(self.names, pieces, self.shapes, strict=True)
        }

    def outputs(self, vector: Tensor, X: Tensor) -> Tensor:
        """Return the outputs (n, C) of the module with these parameters."""
        params = self.unflatten(vector)
        if self.recomputes:
            out = run_module(self._with(params), X)
        else:
            out = run_module(self.module, X, params)
        return as_rows(out, len(X))

    def _with(self, params: Mapping[str, Tensor]) -> nn.Module:
        """Return a copy that has these parameters for good."""
        module = apart(self.module)
        own = dict(module.named_parameters())
        new = {id(own[name]): value for name, value in params.items()}
        for layer in module.modules():
            for name, parameter in layer._parameters.items():
                if id(parameter) in new:
                    layer.__dict__["_parameters"][name] = new[id(parameter)]
        return module

    def look_for_recomputation(self, X: Tensor) -> None:
        """Find out from two rows whether parameters must outlast the forward pass.

        A checkpoint calls its layers again in the backward pass, when `functional_call`
        has taken its parameters back: gradients would silently be those elsewhere.
        """
        if self.recomputes is not None:
            return

        vector = 0.9 * self.flatten().to(X)
        found = []
        for self.recomputes in (True, False):
            params = vector.clone().requires_grad_()
            try:
                with torch.enable_grad():
                    total = self.outputs(params, X[:2]).square().sum()
                found.append(torch.autograd.grad(total, params)[0])
            except (RuntimeError, NotImplementedError, ValueError, TypeError):
                # whoever needs gradients will say what is wrong
                self.recomputes = False
                return
        kept, swapped = found
        self.recomputes = bool(kept.isfinite().all()) and not torch.allclose(
            kept, swapped, rtol=1e-3, atol=1e-3 * float(kept.abs().max())
        )

    def present_outputs(self, X: Tensor) -> Tensor:
        """Return the outputs (n, C) of the module as it is."""
        return as_rows(run_module(self.module, X), len(X))

    def load(self, vector: Tensor) -> None:
        """Write a vector into the module's own parameters."""
        params = dict(self.module.named_parameters())
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
