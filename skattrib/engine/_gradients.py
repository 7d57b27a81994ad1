"""Gradients of every output in every parameter, row by row, in factors.

The gradient of an output of one row in a Linear or Conv2d weight is a sum of few
outer products (backpropagated signal) ⊗ (layer input). `RowGradients` stores these
factors, from which Jacobians, Jacobian products and kernel blocks follow by matrix
products; P numbers per row and output exist only on request. Gradients in parameters of
other layers are stored explicitly.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

from skattrib.engine._factors import LayerGradients, LayerTap, factored_layers
from skattrib.engine._functional import (
    FunctionalModule,
    apart,
    as_rows,
    chunks,
    run_module,
)
from skattrib.engine._plain_gradients import (
    REFUSALS,
    RandomProduct,
    cure_of,
    finite,
    owner_of,
    row_jacobians,
    summary,
    warn_slow,
)

# One temporary may take 1 / _SHARE of the memory cap.
_SHARE = 4
# Rows tried to measure the size of a module's gradients.
_PROBE = 2
# While they are computed, gradients exist in about this many copies: backpropagated,
# stacked, reordered; and the graph holds the layers' inputs.
_COPIES = 4
# Rows whose outer products are formed together.
_ROWS = 64


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
        """A tensor with the dtype and device of the gradients."""
        return self.layers[0].inputs if self.layers else next(iter(self.rest.values()))

    @property
    def n_numbers(self) -> int:
        """Count of the numbers stored."""
        numbers = [layer.n_numbers for layer in self.layers]
        return sum(numbers) + sum(value.numel() for value in self.rest.values())

    @property
    def n_temporaries(self) -> int:
        """Count of the temporary numbers of a product with one vector."""
        # signals summed over outputs, and their reordered copy
        layers = [2 * layer.signals.numel() for layer in self.layers]
        n_rows, n_outputs = self.shape
        return 3 * self.n_params + max(layers, default=0) // n_outputs + 3 * n_rows

    def of_rows(self, rows: slice | Tensor) -> RowGradients:
        """Return the gradients of some rows."""
        layers = [layer.of_rows(rows) for layer in self.layers]
        rest = {name: value[rows] for name, value in self.rest.items()}
        n = len(layers[0].inputs if layers else next(iter(rest.values())))
        return RowGradients(self, layers, rest, (n, self.shape[1]), self.scale)

    def without_factors(self, names: Iterable[str]) -> RowGradients:
        """Return the gradients with those in named parameters explicit."""
        wanted = set(names)
        moved = [layer for layer in self.layers if not wanted.isdisjoint(layer.names)]
        if not moved:
            return self
        rest = dict(self.rest)
        for layer in moved:
            rest |= layer.to_columns(layer.explicit())
        layers = [layer for layer in self.layers if wanted.isdisjoint(layer.names)]
        return RowGradients(self, layers, rest, self.shape, self.scale)

    def double(self) -> RowGradients:
        """Return the gradients in float64."""
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
        n_bytes = sum(t.numel() * t.element_size() for t in self.tensors)
        return n_bytes / len(self.outputs)

    def empty(self, n_rows: int) -> _Piece:
        """Return uninitialised gradients of this kind for ``n_rows`` rows."""

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

    The module's present parameters are used. Gradients in a Linear or Conv2d layer
    that is called once are stored as factors, unless it has so many positions that they
    are longer, all others explicitly. With
    ``memory_bytes``, rows are processed in pieces whose temporaries fit part of it.
    """
    # a copy of the layers: hooks are added, and parameters replaced
    module = apart(model.evaluated)
    size = len(X)
    if memory_bytes is not None and len(X) > _PROBE:
        per_row = _COPIES * _probed(model, module, X).bytes_per_row
        size = max(1, int(memory_bytes / (_SHARE * per_row)))
    piece = _by_pieces(model, module, X, size)
    shape = (len(X), piece.outputs.shape[1])
    gradients = RowGradients(model, piece.layers, piece.rest, shape, scale)
    return piece.outputs, gradients


class GradientSize(NamedTuple):
    """Size of what `row_gradients` returns, and whether all layers are dense."""

    n_bytes: float
    dense: bool


def gradient_size(model: FunctionalModule, X: Tensor) -> GradientSize:
    """Return the size of the gradients of these rows, after trying two."""
    piece = _probed(model, apart(model.evaluated), X)
    return GradientSize(len(X) * piece.bytes_per_row, is_dense(piece))


def is_dense(gradients: RowGradients | _Piece) -> bool:
    """Return whether every parameter is in a layer with one position per row."""
    one = all(layer.inputs.shape[1] == 1 for layer in gradients.layers)
    return one and bool(gradients.layers) and not gradients.rest


def _probed(model: FunctionalModule, module: nn.Module, X: Tensor) -> _Piece:
    return _gradients_of_rows(model, module, X[:_PROBE], frozenset())


def _by_pieces(
    model: FunctionalModule,
    module: nn.Module,
    X: Tensor,
    size: int,
    explicit: frozenset[str] = frozenset(),
) -> _Piece:
    """Fill the gradients of all rows from those of ``size`` at a time."""
    first = _gradients_of_rows(model, module, X[:size], explicit)
    if size >= len(X):
        return first

    filled = first.empty(len(X))
    for chunk in chunks(len(X), size):
        later = chunk.start > 0
        piece = (
            _gradients_of_rows(model, module, X[chunk], explicit) if later else first
        )
        differing = set(filled.rest) ^ set(piece.rest)
        if differing:
            # factors that are valid for some numbers of rows only are not used
            return _by_pieces(model, module, X, size, explicit | differing)
        for target, value in zip(filled.tensors, piece.tensors, strict=True):
            target[chunk] = value

    return filled


def _gradients_of_rows(
    model: FunctionalModule, module: nn.Module, X: Tensor, explicit: frozenset[str]
) -> _Piece:
    """Return the gradients of a few rows, without factors for ``explicit``."""
    tap = LayerTap(module)
    try:
        with torch.enable_grad():
            outputs = as_rows(run_module(module, X), len(X))
            reference = RandomProduct.of(module, outputs)
            layers = factored_layers(module, tap, outputs, reference)
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"autograd cannot differentiate {type(module).__name__}: {error}. "
            f"{cure_of(error)}"
        ) from error
    finally:
        tap.close()

    outputs = outputs.detach()  # the graph is freed
    layers = [layer for layer in layers if explicit.isdisjoint(layer.names)]
    covered = {name for layer in layers for name in layer.names}
    names = tuple(name for name in model.names if name not in covered)
    rest = _explicit_gradients(model, module, X, names, reference)
    for layer in layers:
        if layer.is_long:
            rest |= layer.to_columns(layer.explicit())
    return _Piece(outputs, [layer for layer in layers if not layer.is_long], rest)


def _explicit_gradients(
    model: FunctionalModule,
    module: nn.Module,
    X: Tensor,
    names: tuple[str, ...],
    reference: RandomProduct,
) -> dict[str, Tensor]:
    """Return (n, C, numel) gradients in the named parameters, all rows at once.

    Where torch.func cannot, or is wrong, by plain autograd.
    """
    if not names:
        return {}

    known = model.transformed.get(names)
    if known is not False:
        try:
            gradients = _transformed_gradients(module, X, names)
            if known or not finite(reference.gradients[name] for name in names):
                return gradients
            if reference.agrees(gradients):
                model.transformed[names] = True
                return gradients
            reason = "differs from plain autograd"
        except REFUSALS as error:
            reason = f"fails: {summary(error)}"
        model.transformed[names] = False
        layers = list(dict.fromkeys(owner_of(module, name) for name in names))
        more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
        warn_slow(
            model,
            f"torch.func.jacrev {reason}",
            f"gradients in {', '.join(layers[:3])}{more} are computed row by row",
        )

    return row_jacobians(module, X, names)


def _transformed_gradients(
    module: nn.Module, X: Tensor, names: tuple[str, ...]
) -> dict[str, Tensor]:
    params = {k: p.detach() for k, p in module.named_parameters()}
    chosen = {k: params[k] for k in names}

    def outputs(values: dict[str, Tensor], row: Tensor) -> Tensor:
        return run_module(module, row[None], {**params, **values}).reshape(-1)

    gradients = vmap(jacrev(outputs), (None, 0))(chosen, X)
    return {k: g.flatten(2) for k, g in gradients.items()}
