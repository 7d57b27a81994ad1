"""Gradients of every output in every parameter, one row at a time, kept factored.

The gradient of an output of one row in a Linear or Conv2d weight is a sum of few
outer products (backpropagated signal) ⊗ (layer input). `RowGradients` keeps these
factors, from which Jacobians, Jacobian products and kernel blocks follow by matrix
products; P numbers per row and output exist only when asked for. Parameters of other
layers are kept as explicit gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from skattrib.engine._functional import FunctionalModule, chunks

# Of the memory cap, what one temporary may take: 1 / _SHARE.
_SHARE = 4
# Rows tried to learn what a module's gradients hold.
_PROBE = 2
# While they are computed, gradients exist about this many times: backpropagated,
# stacked, brought in order; and the graph holds the layers' inputs.
_COPIES = 4
# Rows whose outer products are formed together.
_ROWS = 64


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
        """Numbers held."""
        return self.inputs.numel() + self.signals.numel()

    def of_rows(self, rows: slice | Tensor) -> LayerGradients:
        """Return the factors of some rows."""
        return LayerGradients(self.names, self.inputs[rows], self.signals[rows])

    def double(self) -> LayerGradients:
        """Return the factors in float64."""
        return LayerGradients(self.names, self.inputs.double(), self.signals.double())

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


class RowGradients:
    """Gradients of the C outputs of n rows in P parameters, columns scaled.

    Parameters
    ----------
    model : FunctionalModule or RowGradients
        Fixes the order of the P columns.
    layers : list of LayerGradients
    rest : dict of str to Tensor (n, C, numel)
        Explicit gradients of the parameters that no layer covers.
    scale : Tensor of shape (P,) or None
        Multiplies the columns; None is 1.
    """

    def __init__(
        self,
        model: FunctionalModule | RowGradients,
        layers: list[LayerGradients],
        rest: dict[str, Tensor],
        shape: tuple[int, int],
        scale: Tensor | None = None,
    ) -> None:
        self.names: list[str] = model.names
        self.sizes: list[int] = model.sizes
        self.layers, self.rest, self.shape = layers, rest, shape
        self.scale = scale
        columns = None if scale is None else self.by_name(scale)
        self.layer_scales = [
            None if columns is None else layer.from_columns(columns) for layer in layers
        ]

    @property
    def n_params(self) -> int:
        """Number of columns P."""
        return sum(self.sizes)

    @property
    def like(self) -> Tensor:
        """Some tensor of the gradients' dtype and device."""
        return self.layers[0].inputs if self.layers else next(iter(self.rest.values()))

    @property
    def n_numbers(self) -> int:
        """Numbers held."""
        held = [layer.n_numbers for layer in self.layers]
        return sum(held) + sum(value.numel() for value in self.rest.values())

    @property
    def n_temporaries(self) -> int:
        """Numbers that a product with one vector takes for a while."""
        # signals summed over outputs, and the same in another order
        layers = [2 * layer.signals.numel() for layer in self.layers]
        n_rows, n_outputs = self.shape
        return 3 * self.n_params + max(layers, default=0) // n_outputs + 3 * n_rows

    def of_rows(self, rows: slice | Tensor) -> RowGradients:
        """Return the gradients of some rows."""
        layers = [layer.of_rows(rows) for layer in self.layers]
        rest = {name: value[rows] for name, value in self.rest.items()}
        n = len(layers[0].inputs if layers else next(iter(rest.values())))
        return RowGradients(self, layers, rest, (n, self.shape[1]), self.scale)

    def double(self) -> RowGradients:
        """Return the same in float64."""
        layers = [layer.double() for layer in self.layers]
        rest = {name: value.double() for name, value in self.rest.items()}
        scale = None if self.scale is None else self.scale.double()
        return RowGradients(self, layers, rest, self.shape, scale)

    def by_name(self, vectors: Tensor) -> dict[str, Tensor]:
        pieces = torch.split(vectors, self.sizes, dim=-1)
        return dict(zip(self.names, pieces, strict=True))

    def in_metric(self, vectors: Tensor) -> Tensor:
        """Return vectors (..., P) times the columns' scale."""
        return vectors if self.scale is None else vectors * self.scale

    def jacobian(self) -> Tensor:
        """Return the explicit Jacobian (n·C, P)."""
        out = self.like.new_empty(self.shape[0] * self.shape[1], self.n_params)
        # written in place, a few rows at a time: nothing else is as large
        columns = self.by_name(out)
        for name, value in self.rest.items():
            columns[name].copy_(value.flatten(0, 1))
        n, n_outputs = self.shape
        for layer in self.layers:
            for rows in chunks(n, _ROWS):
                flat = slice(rows.start * n_outputs, rows.stop * n_outputs)
                explicit = layer.of_rows(rows).explicit().flatten(0, 1)
                for name, value in layer.to_columns(explicit).items():
                    columns[name][flat] = value
        return out if self.scale is None else out.mul_(self.scale)

    def vjp(self, cotangents: Tensor) -> Tensor:
        """Return Jᵀu as rows (m, P) for cotangents (m, n, C)."""
        columns = {
            name: torch.einsum("mnc,ncp->mp", cotangents, value)
            for name, value in self.rest.items()
        }
        for layer in self.layers:
            columns.update(layer.to_columns(layer.vjp(cotangents)))
        return self.in_metric(torch.cat([columns[k] for k in self.names], dim=-1))

    def squared_sum(self, cotangents: Tensor) -> Tensor:
        """Return Σ_rows (Σ_outputs u · gradient)², (P,), for u of shape (n, C)."""
        columns = {
            name: torch.einsum("nc,ncp->np", cotangents, value).square().sum(dim=0)
            for name, value in self.rest.items()
        }
        for layer in self.layers:
            columns.update(layer.to_columns(layer.squared_sum(cotangents)))
        total = torch.cat([columns[k] for k in self.names])
        return self.in_metric(self.in_metric(total))

    def jvp(self, tangents: Tensor) -> Tensor:
        """Return Jv (m, n, C) for tangents (m, P)."""
        columns = self.by_name(self.in_metric(tangents))
        out = tangents.new_zeros(len(tangents), *self.shape)
        for name, value in self.rest.items():
            out += torch.einsum("ncp,mp->mnc", value, columns[name])
        for layer in self.layers:
            out += layer.jvp(layer.from_columns(columns))
        return out


@dataclass(frozen=True)
class _Call:
    """One call of a Linear or Conv2d layer in a forward pass."""

    layer: nn.Module
    x: Tensor
    output: Tensor


class _Tap:
    """Forward hooks that note the calls of Linear and Conv2d layers."""

    def __init__(self, module: nn.Module) -> None:
        self.calls: dict[str, list[_Call]] = {}
        self._handles = [
            layer.register_forward_hook(self._hook(name), with_kwargs=True)
            for name, layer in module.named_modules()
            if _has_factors(layer)
        ]

    def _hook(self, name: str) -> Callable[..., Tensor]:
        def note(
            layer: nn.Module,
            args: tuple[Tensor, ...],
            kwargs: dict[str, Tensor],
            output: Tensor,
        ) -> Tensor:
            x = args[0] if args else kwargs["input"]
            self.calls.setdefault(name, []).append(_Call(layer, x, output))
            # an in-place activation must not overwrite what was noted
            return output.clone()

        return note

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


def _has_factors(layer: nn.Module) -> bool:
    # a reparametrised layer has other parameters than these
    own = {name for name, _ in layer.named_parameters(recurse=False)}
    if not {"weight"} <= own <= {"weight", "bias"}:
        return False
    if type(layer) is nn.Linear:
        return True
    return (
        type(layer) is nn.Conv2d
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


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


@dataclass(frozen=True)
class _Piece:
    """Gradients of some rows."""

    outputs: Tensor
    layers: list[LayerGradients]
    rest: dict[str, Tensor]

    @property
    def tensors(self) -> list[Tensor]:
        factors = [t for layer in self.layers for t in (layer.inputs, layer.signals)]
        return [self.outputs, *factors, *self.rest.values()]

    @property
    def bytes_per_row(self) -> float:
        held = sum(t.numel() * t.element_size() for t in self.tensors)
        return held / len(self.outputs)

    def empty(self, n_rows: int) -> _Piece:
        """Return the same for other rows, to be filled."""

        def like(value: Tensor) -> Tensor:
            return value.new_empty(n_rows, *value.shape[1:])

        layers = [
            LayerGradients(layer.names, like(layer.inputs), like(layer.signals))
            for layer in self.layers
        ]
        rest = {name: like(value) for name, value in self.rest.items()}
        return _Piece(like(self.outputs), layers, rest)


def row_gradients(
    model: FunctionalModule,
    X: Tensor,
    scale: Tensor | None = None,
    memory_bytes: float | None = None,
) -> tuple[Tensor, RowGradients]:
    """Return outputs (n, C) and the factored gradients of each in the parameters.

    The module's present parameters are used. Weights of a Linear or Conv2d layer
    that is called once are kept factored; everything else explicitly. With
    ``memory_bytes`` rows are taken in pieces, whose temporaries fit a part of it.
    """
    # hooks go on a copy: other threads may be using the module
    module = copy.deepcopy(model.module)
    size = len(X)
    if memory_bytes is not None and len(X) > _PROBE:
        per_row = _COPIES * _probed(model, module, X).bytes_per_row
        size = max(1, int(memory_bytes / (_SHARE * per_row)))
    found = _by_pieces(model, module, X, size)
    shape = (len(X), found.outputs.shape[1])
    gradients = RowGradients(model, found.layers, found.rest, shape, scale)
    return found.outputs, gradients


class GradientSize(NamedTuple):
    """What `row_gradients` would hold, and whether in dense layers only."""

    n_bytes: float
    dense: bool


def gradient_size(model: FunctionalModule, X: Tensor) -> GradientSize:
    """Return the size of the gradients of these rows, after trying two."""
    piece = _probed(model, copy.deepcopy(model.module), X)
    return GradientSize(len(X) * piece.bytes_per_row, is_dense(piece))


def is_dense(gradients: RowGradients | _Piece) -> bool:
    """Say whether every parameter is in a layer with one position a row."""
    one = all(layer.inputs.shape[1] == 1 for layer in gradients.layers)
    return one and bool(gradients.layers) and not gradients.rest


def _probed(model: FunctionalModule, module: nn.Module, X: Tensor) -> _Piece:
    return _some_rows(model, module, X[:_PROBE], frozenset())


def _by_pieces(
    model: FunctionalModule,
    module: nn.Module,
    X: Tensor,
    size: int,
    explicit: frozenset[str] = frozenset(),
) -> _Piece:
    """Fill the gradients of all rows from those of ``size`` at a time."""
    first = _some_rows(model, module, X[:size], explicit)
    if size >= len(X):
        return first
    whole = first.empty(len(X))
    for part in chunks(len(X), size):
        later = part.start > 0
        piece = _some_rows(model, module, X[part], explicit) if later else first
        differing = set(whole.rest) ^ set(piece.rest)
        if differing:
            # factors that hold for some numbers of rows only are done without
            return _by_pieces(model, module, X, size, explicit | differing)
        for target, value in zip(whole.tensors, piece.tensors, strict=True):
            target[part] = value
    return whole


def _some_rows(
    model: FunctionalModule, module: nn.Module, X: Tensor, explicit: frozenset[str]
) -> _Piece:
    """Return the gradients of a few rows, those of ``explicit`` not factored."""
    tap = _Tap(module)
    with torch.enable_grad():
        outputs = module(X)
        outputs = outputs if outputs.ndim > 1 else outputs[:, None]
        layers = _factored_layers(module, tap, outputs)
    tap.close()
    layers = [layer for layer in layers if explicit.isdisjoint(layer.names)]
    covered = {name for layer in layers for name in layer.names}
    rest = _explicit_gradients(
        model, X, [name for name in model.names if name not in covered]
    )
    return _Piece(outputs.detach(), layers, rest)


def _factored_layers(
    module: nn.Module, tap: _Tap, outputs: Tensor
) -> list[LayerGradients]:
    """Backpropagate every output to the noted layers and check what comes of it."""
    params = {name: p for name, p in module.named_parameters() if p.requires_grad}
    calls = _single_calls(params, tap, len(outputs))
    if not calls:
        return []
    noted = [call.output for call in calls.values()]
    signals = [
        torch.autograd.grad(
            column.sum(), noted, retain_graph=True, materialize_grads=True
        )
        for column in outputs.unbind(1)
    ]  # the zeros of what is not used require gradients before torch 2.7
    layers = [
        LayerGradients(
            names,
            _layer_inputs(call.layer, call.x),
            _layer_signals(call.layer, torch.stack([s[i].detach() for s in signals])),
        )
        for i, (names, call) in enumerate(calls.items())
    ]
    generator = torch.Generator().manual_seed(0)
    cotangents = torch.randn(outputs.shape, generator=generator).to(outputs)
    expected = dict(
        zip(
            params,
            torch.autograd.grad(
                (outputs * cotangents).sum(), list(params.values()), allow_unused=True
            ),
            strict=True,
        )
    )
    return [layer for layer in layers if _agrees(layer, cotangents, expected)]


def _agrees(
    layer: LayerGradients, cotangents: Tensor, expected: Mapping[str, Tensor | None]
) -> bool:
    """Compare a random product with autograd's.

    It differs where the first axis of the layer's input is not that of the rows, or
    where the weight is used outside of the layer's own call, too.
    """
    error = scale = 0.0
    for name, found in layer.to_columns(layer.vjp(cotangents[None])).items():
        true = expected[name]
        true = torch.zeros_like(found) if true is None else true.reshape(1, -1)
        error += float((found - true).norm())
        scale += float(found.norm() + true.norm())
    return error <= torch.finfo(cotangents.dtype).eps ** 0.5 * scale


def _single_calls(
    params: Mapping[str, Tensor], tap: _Tap, n_rows: int
) -> dict[tuple[str, ...], _Call]:
    """Keep the layers whose trainable weights belong to one call, by their names."""
    owner = {id(p): name for name, p in params.items()}
    users = [id(p) for calls in tap.calls.values() for p in calls[0].layer.parameters()]
    found = {}
    for calls in tap.calls.values():
        own = [calls[0].layer.weight, calls[0].layer.bias]
        own = [p for p in own if p is not None]
        if (
            len(calls) == 1
            and len(calls[0].x) == n_rows
            and calls[0].output.requires_grad
            and all(id(p) in owner and users.count(id(p)) == 1 for p in own)
        ):
            found[tuple(owner[id(p)] for p in own)] = calls[0]
    return found


def _explicit_gradients(
    model: FunctionalModule, X: Tensor, names: list[str]
) -> dict[str, Tensor]:
    """Return (n, C, numel) gradients in the named parameters, by reverse mode."""
    if not names:
        return {}
    params = {k: p.detach() for k, p in model.module.named_parameters()}
    chosen = {k: params[k] for k in names}
    module = copy.deepcopy(model.module)

    def outputs(some: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional_call(module, {**params, **some}, (row[None],)).reshape(-1)

    try:
        gradients = vmap(jacrev(outputs), (None, 0))(chosen, X)
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"torch.func cannot differentiate {type(model.module).__name__} row by "
            f"row in its parameters {names[:3]}: {error}. Rewrite forward() without "
            "in-place operations, .item() and branches on data."
        ) from error
    return {k: g.flatten(2) for k, g in gradients.items()}
