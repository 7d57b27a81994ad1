"""The slow way that is always right: plain autograd, one output at a time.

torch.func's transforms do not take every module: recurrent layers, packed sequences,
branches on data, checkpoints, custom functions. Some they take, and are wrong. What a
transform returns is compared here with plain autograd, along one random direction;
where it fails or differs, autograd is called in loops instead, with a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from sklearn.exceptions import EfficiencyWarning
from torch import Tensor, nn
from torch.func import jacrev

from skattrib.engine._functional import FunctionalModule, run_module

# What torch raises where a transform, or autograd, cannot go on.
REFUSALS = (RuntimeError, NotImplementedError, ValueError, TypeError, IndexError)
# Differences may be this many roundings of what cancels.
_DIGITS_LEFT = 1e3
# Of an error message, what a warning repeats.
_LONGEST = 160
_CURES = (
    ("checkpoint", "Call torch.utils.checkpoint.checkpoint with use_reentrant=False."),
    (
        "cdist",
        "Write torch.cdist(a, b) as (a[:, None] - b).norm(dim=-1), which has second "
        "derivatives.",
    ),
    (
        "embedding_bag",
        "Write nn.EmbeddingBag as nn.Embedding, and the mean or sum of its vectors.",
    ),
    ("modified inplace", "Leave out what is written in place, as max_norm of layers."),
)
_OTHER_CURE = (
    "Replace the operation named above; a custom autograd.Function needs a "
    "differentiable backward() without in-place operations."
)


def agree(found: Tensor, expected: Tensor, usual: float = 0.0) -> bool:
    """Return whether two results are finite and the same up to rounding.

    ``usual`` is the norm of what they are differences of: where these cancel, all that
    is left is rounding.
    """
    scale = float(found.norm() + expected.norm())
    eps = torch.finfo(found.dtype).eps
    allowed = eps**0.5 * scale + _DIGITS_LEFT * eps * usual
    return float((found - expected).norm()) <= allowed


def finite(values: Iterable[Tensor]) -> bool:
    """Return whether all numbers are finite: else a comparison tells nothing."""
    return all(bool(value.isfinite().all()) for value in values)


def summary(error: BaseException | str) -> str:
    """Return the first line of an error, not too long."""
    text = str(error).strip().split("\n", 1)[0].rstrip(".")
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


def cure_of(error: BaseException) -> str:
    """Return what to do where plain autograd fails too."""
    text = str(error).lower()
    return next((cure for word, cure in _CURES if word in text), _OTHER_CURE)


@dataclass(frozen=True)
class RandomProduct:
    """Gradients of the outputs' product with random numbers, by plain autograd."""

    cotangents: Tensor
    gradients: Mapping[str, Tensor]

    @classmethod
    def of(cls, module: nn.Module, outputs: Tensor) -> RandomProduct:
        """Backpropagate outputs (n, C) of a module; their graph is kept."""
        params = {k: p for k, p in module.named_parameters() if p.requires_grad}
        generator = torch.Generator().manual_seed(0)
        cotangents = torch.randn(outputs.shape, generator=generator).to(outputs)
        gradients = gradients_of((outputs * cotangents).sum(), list(params.values()))
        return cls(cotangents, dict(zip(params, gradients, strict=True)))

    def agrees(self, explicit: Mapping[str, Tensor]) -> bool:
        """Compare gradients (n, C, numel) of every output in named parameters."""
        usual = sum(float(g.norm()) for g in self.gradients.values())
        return all(
            agree(
                torch.einsum("nc,ncp->p", self.cotangents, value),
                self.gradients[name].reshape(-1),
                usual,
            )
            for name, value in explicit.items()
        )


def gradients_of(output: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of a number, dense, 0 where it does not depend on them."""
    if not output.requires_grad:
        return [torch.zeros_like(p) for p in params]
    found = torch.autograd.grad(output, params, retain_graph=True, allow_unused=True)
    return [
        torch.zeros_like(p) if g is None else g.detach().to_dense()
        for g, p in zip(found, params, strict=True)
    ]


def row_jacobians(
    module: nn.Module, X: Tensor, names: Sequence[str]
) -> dict[str, Tensor]:
    """Return (n, C, numel) gradients in the module's named parameters, row by row."""
    every = dict(module.named_parameters())
    params = [every[name] for name in names]
    filled: dict[str, Tensor] = {}

    for i, row in enumerate(X):
        with torch.enable_grad():
            outputs = run_module(module, row[None]).reshape(-1)
        if not filled:
            filled = {
                name: outputs.new_empty(len(X), len(outputs), p.numel())
                for name, p in zip(names, params, strict=True)
            }
        for c, output in enumerate(outputs):
            found = gradients_of(output, params)
            for target, value in zip(filled.values(), found, strict=True):
                target[i, c] = value.reshape(-1)

    return filled


def vector_jacobian(
    model: FunctionalModule, function: Callable[[Tensor], Tensor], vector: Tensor
) -> Tensor:
    """Return gradients (q, P) of q numbers that depend on a model's parameters (P,)."""
    vector = vector.detach().requires_grad_()
    with torch.enable_grad():
        values = function(vector)
    generator = torch.Generator().manual_seed(0)
    cotangents = torch.randn(values.shape, generator=generator).to(values)
    expected = gradients_of((values * cotangents).sum(), [vector])[0]

    try:
        found: Tensor = jacrev(function)(vector.detach())
        if not finite([expected]) or agree(cotangents @ found, expected):
            return found
        reason = "torch.func.jacrev differs from plain autograd"
    except REFUSALS as error:
        reason = f"torch.func.jacrev fails: {summary(error)}"

    warn_slow(model, reason, "outcomes are differentiated one by one")
    rows = [gradients_of(value, [vector])[0] for value in values]
    return torch.stack(rows) if rows else vector.new_zeros(0, len(vector))


def transposed_products(
    outputs: Tensor,
    inputs: Sequence[Tensor],
    cotangents: Tensor,
    *,
    one_by_one: bool,
    retain_graph: bool = False,
) -> tuple[Tensor, ...]:
    """Return products of cotangents (q, ...) with a Jacobian, (q, ...) per input.

    Parameters
    ----------
    outputs : Tensor
        With the graph that leads to the inputs.
    one_by_one : bool
        Go through the graph once per cotangent, where autograd cannot batch them.
    """
    if not one_by_one:
        return torch.autograd.grad(
            outputs,
            inputs,
            cotangents,
            retain_graph=retain_graph,
            is_grads_batched=True,
        )

    products = [
        torch.autograd.grad(outputs, inputs, cotangent, retain_graph=True)
        for cotangent in cotangents
    ]
    return tuple(torch.stack(values) for values in zip(*products, strict=True))


def owner_of(module: nn.Module, name: str) -> str:
    """Return the place and the type of the layer that owns a parameter."""
    place, _, _ = name.rpartition(".")
    layer = type(module.get_submodule(place)).__name__
    return f"{place} ({layer})" if place else layer


def warn_slow(model: FunctionalModule, reason: str, what: str) -> None:
    """Say once for a model, and its copies, that the slow way is taken, and why."""
    if what in model.said:
        return
    model.said.append(what)
    if model.silent:
        return
    warnings.warn(
        f"{type(model.module).__name__}: {reason}. So {what}, by plain autograd, which "
        "is exact but slower.",
        EfficiencyWarning,
        # at one place for all callers, so that the default filter shows it once
        stacklevel=2,
    )
