"""A module as a pure function of one flat parameter vector."""

from __future__ import annotations

import copy
from collections.abc import Iterator

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
        out: Tensor = functional_call(self.module, self.unflatten(vector), (X,))
        return out if out.ndim > 1 else out[:, None]

    def present_outputs(self, X: Tensor) -> Tensor:
        """Return the outputs (n, C) of the module as it is."""
        out: Tensor = self.module(X)
        return out if out.ndim > 1 else out[:, None]

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
        return FunctionalModule(module)

    def columns_of(self, names: list[str]) -> Tensor:
        """Return the positions of the named parameters in the vector."""
        pieces = torch.arange(self.n_params).split(self.sizes)
        places = dict(zip(self.names, pieces, strict=True))
        return torch.cat([places[name] for name in names])

    def apart(self) -> FunctionalModule:
        """Return a copy, with the same tensors, for use in another thread."""
        return FunctionalModule(apart(self.module))

    def __deepcopy__(self, memo: dict[int, object]) -> FunctionalModule:
        return FunctionalModule(copy.deepcopy(self.module, memo))


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
