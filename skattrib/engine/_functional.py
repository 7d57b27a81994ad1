"""A module as a pure function of one flat parameter vector; losses and outcomes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

Task = Literal["classification", "regression"]
OutcomeFunction = Callable[[Tensor, Tensor], Tensor]

# From about a hundred on, log-softmax is as fast within a row as across rows.
_FEW_CLASSES = 64


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

    def load(self, vector: Tensor) -> None:
        """Write a vector into the module's own parameters."""
        params = dict(self.module.named_parameters())
        with torch.no_grad():
            for name, value in self.unflatten(vector).items():
                params[name].copy_(value)

    def of_parameters(self, names: list[str]) -> FunctionalModule:
        """Return a copy of which only the named parameters enter the vector."""
        module = copy.deepcopy(self.module)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in names)
        return FunctionalModule(module)

    def columns_of(self, names: list[str]) -> Tensor:
        """Return the positions of the named parameters in the vector."""
        pieces = torch.arange(self.n_params).split(self.sizes)
        places = dict(zip(self.names, pieces, strict=True))
        return torch.cat([places[name] for name in names])

    def __deepcopy__(self, memo: dict[int, object]) -> FunctionalModule:
        return FunctionalModule(copy.deepcopy(self.module, memo))


# --------------------------------------------------------------------- losses
@dataclass(frozen=True)
class Loss:
    """Row losses of a task: softmax cross-entropy or ½ Σ error².

    Targets are class codes (n,) or values (n, C).
    """

    task: Task

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses (n,)."""
        if self.task != "classification":
            return 0.5 * (outputs - targets).square().sum(-1)
        if outputs.shape[-1] > _FEW_CLASSES:
            return nn.functional.cross_entropy(outputs, targets, reduction="none")
        # classes first: to the bit the same, but vectorised over rows, three times
        # as fast for ten classes
        log_p = nn.functional.log_softmax(outputs.T.contiguous(), dim=0)
        return -log_p.gather(0, targets[None])[0]

    def residuals(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the gradient of each loss in its outputs, (n, C)."""
        if self.task == "classification":
            one_hot = nn.functional.one_hot(targets, outputs.shape[-1])
            return outputs.softmax(-1) - one_hot.to(outputs.dtype)
        return outputs - targets

    def hessian_root(self, outputs: Tensor) -> Tensor:
        """Return S (n, C, C) with S Sᵀ the Hessian of each loss in its outputs."""
        n, n_outputs = outputs.shape
        if self.task == "classification":
            p = outputs.softmax(-1)
            root = p.sqrt()
            return torch.diag_embed(root) - p[:, :, None] * root[:, None, :]
        eye = torch.eye(n_outputs, dtype=outputs.dtype, device=outputs.device)
        return eye.expand(n, n_outputs, n_outputs)


def cross_log_odds(outputs: Tensor, targets: Tensor) -> Tensor:
    """log p_y / (1 − p_y), as f_y − logsumexp of the others: finite at saturation."""
    own = outputs.gather(-1, targets[..., None])[..., 0]
    mask = nn.functional.one_hot(targets, outputs.shape[-1]).bool()
    others = outputs.masked_fill(mask, -torch.inf)
    return own - others.logsumexp(-1)


def outcome_function(outcome: str | OutcomeFunction, task: Task) -> OutcomeFunction:
    """Return the map (outputs (..., C), targets) → outcome (...), higher is better."""
    if callable(outcome):
        return partial(_checked, outcome)
    if outcome == "margin":
        return cross_log_odds
    if outcome == "prediction":
        return _first_output
    if task == "classification":
        return _class_log_likelihood
    return _gaussian_log_likelihood


def _checked(outcome: OutcomeFunction, outputs: Tensor, targets: Tensor) -> Tensor:
    """Evaluate the user's own function."""
    found = outcome(outputs, targets)
    if found.shape != outputs.shape[:-1]:
        raise ValueError(
            f"outcome returned shape {tuple(found.shape)} for outputs "
            f"{tuple(outputs.shape)}; it must drop the last axis only, whatever stands "
            "before it."
        )
    return found


def _class_log_likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
    # keeps the digits of a probability near 1, where log_softmax rounds to 0
    return nn.functional.logsigmoid(cross_log_odds(outputs, targets))


def _gaussian_log_likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
    return -0.5 * (outputs - targets).square().sum(-1)


def _first_output(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs[..., 0]


def spread(n: int, n_wanted: int) -> NDArray[np.intp]:
    """Return up to ``n_wanted`` positions in ``range(n)``, as far apart as can be."""
    return np.linspace(0, n - 1, min(n, n_wanted)).astype(np.intp)


def chunks(n: int, size: int) -> Iterator[slice]:
    """Yield slices that cover ``range(n)`` in pieces of at most ``size``."""
    size = max(1, size)
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
