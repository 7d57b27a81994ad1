"""The gradients of one layer as outer products: recorded, backpropagated, checked.

All that depends on what a Linear or Conv2d layer computes belongs here: which layers
have factors, how a forward pass records them, and what they represent. Gradients in all
parameters of a module are in `_gradients`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from skattrib.engine._plain_gradients import RandomProduct, agree


@dataclass(frozen=True)
class LayerGradients:
    """Factors of one layer's gradients, for n rows and C outputs.

    Attributes
    ----------
    names : tuple of str
        Weight, then bias if there is one.
    inputs : Tensor of shape (n, T, k)
        What the weight multiplies at each of T positions; a last column of ones
        stands for the bias.
    signals : Tensor of shape (n, C, T, o)
        Gradient of each output in the layer's o outputs at each position.
    """

    names: tuple[str, ...]
    inputs: Tensor
    signals: Tensor

    @property
    def width(self) -> tuple[int, int]:
        """Shape (o, k) of the weight with the bias as its last column."""
        return self.signals.shape[-1], self.inputs.shape[-1]

    @property
    def n_numbers(self) -> int:
        """Count of the numbers stored."""
        return self.inputs.numel() + self.signals.numel()

    def of_rows(self, rows: slice | Tensor) -> LayerGradients:
        """Return the factors of some rows."""
        return LayerGradients(self.names, self.inputs[rows], self.signals[rows])

    def double(self) -> LayerGradients:
        """Return the factors in float64."""
        return LayerGradients(self.names, self.inputs.double(), self.signals.double())

    @property
    def is_long(self) -> bool:
        """Whether the gradients themselves have fewer numbers than their factors."""
        (_, C, positions, o), k = self.signals.shape, self.inputs.shape[2]
        return positions > 1 and C * o * k < positions * (k + C * o)

    def explicit(self, outputs: slice = slice(None)) -> Tensor:
        """Return gradients (n, C, o', k) for some of the layer's outputs."""
        signals = self.signals[..., outputs]
        if self.inputs.shape[1] == 1:
            return signals[:, :, 0, :, None] * self.inputs[:, :, None, :]
        return torch.einsum("ncto,ntk->ncok", signals, self.inputs)

    def vjp(self, cotangents: Tensor) -> Tensor:
        """Return Σ_rows,outputs u · gradient, (m, o, k), for u of shape (m, n, C)."""
        signals = torch.einsum("mnc,ncto->mnto", cotangents, self.signals)
        return torch.einsum("mnto,ntk->mok", signals, self.inputs)

    def squared_sum(self, cotangents: Tensor) -> Tensor:
        """Return Σ_rows (Σ_outputs u · gradient)², (o, k), for u of shape (n, C)."""
        signals = torch.einsum("nc,ncto->nto", cotangents, self.signals)
        if self.inputs.shape[1] == 1:
            return signals[:, 0].square().T @ self.inputs[:, 0].square()
        return torch.einsum("nto,ntk->nok", signals, self.inputs).square().sum(dim=0)

    def jvp(self, tangents: Tensor) -> Tensor:
        """Return gradient · v, (m, n, C), for v of shape (m, o, k)."""
        moved = torch.einsum("ntk,mok->mnto", self.inputs, tangents)
        return torch.einsum("mnto,ncto->mnc", moved, self.signals)

    def to_columns(self, joined: Tensor) -> dict[str, Tensor]:
        """Cut (..., o, k) into the flat columns of weight and bias."""
        if len(self.names) == 1:
            return {self.names[0]: joined.flatten(-2)}
        return {
            self.names[0]: joined[..., :-1].flatten(-2),
            self.names[1]: joined[..., -1],
        }

    def from_columns(self, columns: dict[str, Tensor]) -> Tensor:
        """Join flat columns of weight and bias into (..., o, k)."""
        o, k = self.width
        weight = columns[self.names[0]]
        if len(self.names) == 1:
            return weight.unflatten(-1, (o, k))
        bias = columns[self.names[1]]
        return torch.cat([weight.unflatten(-1, (o, k - 1)), bias[..., None]], dim=-1)


@dataclass(frozen=True)
class _Call:
    """One call of a Linear or Conv2d layer in a forward pass."""

    layer: nn.Module
    x: Tensor
    output: Tensor


class LayerTap:
    """Forward hooks that record the calls of Linear and Conv2d layers."""

    def __init__(self, module: nn.Module) -> None:
        self.calls: dict[str, list[_Call]] = {}
        self._handles = [
            layer.register_forward_hook(self._hook(name), with_kwargs=True)
            for name, layer in module.named_modules()
            if _has_factors(layer)
        ]

    def _hook(self, name: str) -> Callable[..., Tensor]:
        def record(
            layer: nn.Module,
            args: tuple[Tensor, ...],
            kwargs: dict[str, Tensor],
            output: Tensor,
        ) -> Tensor:
            x = args[0] if args else kwargs["input"]
            self.calls.setdefault(name, []).append(_Call(layer, x, output))
            # an in-place activation must not overwrite the recorded output
            return output.clone()

        return record

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self.calls.clear()


def _has_factors(layer: nn.Module) -> bool:
    # a reparametrised layer has other parameters than these
    parameter_names = {name for name, _ in layer.named_parameters(recurse=False)}
    if not {"weight"} <= parameter_names <= {"weight", "bias"}:
        return False
    if type(layer) is nn.Linear:
        return True
    return (
        type(layer) is nn.Conv2d
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def factored_layers(
    module: nn.Module, tap: LayerTap, outputs: Tensor, reference: RandomProduct
) -> list[LayerGradients]:
    """Backpropagate every output to the recorded layers and check the result."""
    params = {name: p for name, p in module.named_parameters() if p.requires_grad}
    calls = _single_calls(params, tap, len(outputs))
    if not calls:
        return []

    layer_outputs = [call.output for call in calls.values()]
    signals = [
        torch.autograd.grad(
            column.sum(), layer_outputs, retain_graph=True, materialize_grads=True
        )
        for column in outputs.unbind(1)
    ]  # before torch 2.7, the zeros of unused layers require gradients
    layers = [
        LayerGradients(
            names,
            _layer_inputs(call.layer, call.x),
            _layer_signals(call.layer, torch.stack([s[i].detach() for s in signals])),
        )
        for i, (names, call) in enumerate(calls.items())
    ]

    return [layer for layer in layers if _agrees(layer, reference)]


def _agrees(layer: LayerGradients, reference: RandomProduct) -> bool:
    """Compare a random product with autograd's.

    It differs if the first axis of the layer's input is not that of the rows, or if
    the weight is also used outside of the layer's own call.
    """
    products = layer.to_columns(layer.vjp(reference.cotangents[None]))
    found = torch.cat([product[0] for product in products.values()])
    expected = [reference.gradients[name].reshape(-1) for name in products]
    return agree(found, torch.cat(expected))


def _single_calls(
    params: Mapping[str, Tensor], tap: LayerTap, n_rows: int
) -> dict[tuple[str, ...], _Call]:
    """Return the layers whose trainable weights belong to one call, by parameters."""
    owner = {id(p): name for name, p in params.items()}
    users = [id(p) for calls in tap.calls.values() for p in calls[0].layer.parameters()]
    single_calls = {}

    for calls in tap.calls.values():
        parameters = [calls[0].layer.weight, calls[0].layer.bias]
        parameters = [p for p in parameters if p is not None]
        if (
            len(calls) == 1
            and len(calls[0].x) == n_rows
            and calls[0].output.requires_grad
            and all(id(p) in owner and users.count(id(p)) == 1 for p in parameters)
        ):
            single_calls[tuple(owner[id(p)] for p in parameters)] = calls[0]

    return single_calls


def _layer_inputs(layer: nn.Module, x: Tensor) -> Tensor:
    """Return what the weight multiplies, (n, T, k), with ones for the bias."""
    if isinstance(layer, nn.Conv2d) and not isinstance(layer.padding, str):
        x = nn.functional.unfold(
            x,
            layer.kernel_size,
            dilation=layer.dilation,
            padding=layer.padding,
            stride=layer.stride,
        ).transpose(1, 2)
    else:
        x = x.reshape(len(x), -1, x.shape[-1])

    if layer.bias is not None:
        x = torch.cat([x, x.new_ones(*x.shape[:2], 1)], dim=-1)
    return x.detach()


def _layer_signals(layer: nn.Module, signals: Tensor) -> Tensor:
    """Bring backpropagated signals (C, n, ...) to (n, C, T, o)."""
    if isinstance(layer, nn.Conv2d):
        signals = signals.flatten(3).transpose(2, 3)
    else:
        signals = signals.reshape(*signals.shape[:2], -1, signals.shape[-1])
    return signals.transpose(0, 1).contiguous()
