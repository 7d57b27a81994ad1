"""Products with the Jacobian of the training rows, as the parameter space needs them.

A dense layer's gradient is an outer product, signal ⊗ input. If all layers are dense,
Gauss-Newton matrices and leverages are products of these factors, which takes C times
less work than explicit gradients; these are not formed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from skattrib.engine._factors import LayerGradients
from skattrib.engine._functional import chunks
from skattrib.engine._gradients import RowGradients, is_dense

# One temporary may take 1 / _SHARE of the memory cap.
_SHARE = 4
# Rows of factors that are always multiplied together.
_FEW_ROWS = 16
# Layers with up to this many times the network's outputs are handled in one product.
_WIDE = 4
# Which inputs of a layer belong to its weight, and which to its bias if it has one.
_INNER: dict[int, tuple[slice | int, ...]] = {
    1: (slice(None),),
    2: (slice(None, -1), -1),
}


class Jacobian(Protocol):
    """The Jacobian J (n·C, P) of rows, in the metric."""

    n_params: int

    def explicit(self) -> Tensor:
        """Return J itself."""

    def of_rows(self, rows: Tensor) -> Tensor:
        """Return explicit gradients of some rows, (m, C, P)."""

    def vjp(self, cotangents: Tensor) -> Tensor:
        """Return u J, (m, P), for u of shape (m, n·C)."""

    def jvp(self, tangents: Tensor) -> Tensor:
        """Return v Jᵀ, (m, n·C), for v of shape (m, P)."""

    def row_vjp(self, rows: Tensor, cotangents: Tensor) -> Tensor:
        """Return u_i J_i of each row by itself, (m, P), for u of shape (m, C)."""

    def row_jvp(self, rows: Tensor, tangents: Tensor) -> Tensor:
        """Return v_i J_iᵀ of each row by itself, (m, C), for v of shape (m, P)."""

    def gauss_newton(self, roots: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return Σ JᵢᵀSᵢSᵢᵀJᵢ over all or some rows, (P, P), for S (n, C, C)."""


class ExplicitJacobian:
    """An explicit matrix, for layers with several positions and for projections.

    It also serves parameters outside of layers.
    """

    def __init__(self, gradients: RowGradients, memory_bytes: float) -> None:
        self._matrix = gradients.jacobian()
        self._memory = memory_bytes
        self._n_outputs = gradients.shape[1]
        self.n_params = self._matrix.shape[1]

    def _rows(self) -> Tensor:
        return self._matrix.view(-1, self._n_outputs, self.n_params)

    def _at_once(self) -> int:
        """Return for how many rows two copies of the gradients may exist."""
        size = 2 * self._n_outputs * self.n_params * self._matrix.element_size()
        return max(_FEW_ROWS, int(self._memory / (_SHARE * size)))

    def explicit(self) -> Tensor:
        return self._matrix

    def of_rows(self, rows: Tensor) -> Tensor:
        return self._rows()[rows]

    def vjp(self, cotangents: Tensor) -> Tensor:
        return cotangents @ self._matrix

    def jvp(self, tangents: Tensor) -> Tensor:
        return tangents @ self._matrix.T

    def row_vjp(self, rows: Tensor, cotangents: Tensor) -> Tensor:
        jacobian = self._rows()
        out = cotangents.new_empty(len(rows), self.n_params)
        for chunk in chunks(len(rows), self._at_once()):
            out[chunk] = torch.bmm(cotangents[chunk, None], jacobian[rows[chunk]])[:, 0]
        return out

    def row_jvp(self, rows: Tensor, tangents: Tensor) -> Tensor:
        jacobian = self._rows()
        out = tangents.new_empty(len(rows), self._n_outputs)
        for chunk in chunks(len(rows), self._at_once()):
            out[chunk] = torch.bmm(jacobian[rows[chunk]], tangents[chunk, :, None])[
                ..., 0
            ]
        return out

    def gauss_newton(self, roots: Tensor, rows: Tensor | None = None) -> Tensor:
        jacobian = self._rows()
        out = jacobian.new_zeros(self.n_params, self.n_params)
        n_rows = len(jacobian) if rows is None else len(rows)
        for chunk in chunks(n_rows, self._at_once()):
            chunk_rows = chunk if rows is None else rows[chunk]
            half = (roots[chunk_rows].mT @ jacobian[chunk_rows]).flatten(0, 1)
            out.addmm_(half.T, half)
        return out


class FactoredJacobian:
    """Layer factors, for networks of dense layers.

    Only this class has `curvature` and `leverages`: with explicit gradients they would
    be no cheaper than other ways.
    """

    def __init__(self, gradients: RowGradients, memory_bytes: float) -> None:
        self._gradients, self._memory = gradients, memory_bytes
        self.n_params = gradients.n_params
        starts = accumulate(gradients.sizes, initial=0)
        self._columns = {
            name: slice(start, start + size)
            for name, start, size in zip(
                gradients.names, starts, gradients.sizes, strict=False
            )
        }

    def _at_once(self, numbers: int) -> int:
        size = numbers * self._gradients.like.element_size()
        return max(_FEW_ROWS, int(self._memory / (_SHARE * size)))

    def explicit(self) -> Tensor:
        return self._gradients.jacobian()

    def of_rows(self, rows: Tensor) -> Tensor:
        jacobian = self._gradients.of_rows(rows).jacobian()
        return jacobian.view(len(rows), -1, self.n_params)

    def vjp(self, cotangents: Tensor) -> Tensor:
        out = cotangents.new_empty(len(cotangents), self.n_params)
        for chunk in chunks(len(out), self._at_once(self._gradients.n_temporaries)):
            blocks = cotangents[chunk].view(-1, *self._gradients.shape)
            out[chunk] = self._gradients.vjp(blocks)
        return out

    def jvp(self, tangents: Tensor) -> Tensor:
        n, C = self._gradients.shape
        out = tangents.new_empty(len(tangents), n * C)
        for chunk in chunks(len(out), self._at_once(self._gradients.n_temporaries)):
            out[chunk] = self._gradients.jvp(tangents[chunk]).flatten(1)
        return out

    def row_vjp(self, rows: Tensor, cotangents: Tensor) -> Tensor:
        out = cotangents.new_empty(len(rows), self.n_params)
        for layer in self._gradients.layers:
            signals = torch.bmm(cotangents[:, None], layer.signals[rows, :, 0])
            gradients = signals.mT * layer.inputs[rows]
            for name, value in layer.to_columns(gradients).items():
                out[:, self._columns[name]] = value
        scale = self._gradients.scale
        return out if scale is None else out.mul_(scale)

    def row_jvp(self, rows: Tensor, tangents: Tensor) -> Tensor:
        scale, (_, C) = self._gradients.scale, self._gradients.shape
        out = tangents.new_zeros(len(rows), C)
        if scale is not None:
            tangents = tangents * scale
        columns = self._gradients.by_name(tangents)
        for layer in self._gradients.layers:
            moved = layer.from_columns(columns)
            moved = torch.bmm(moved, layer.inputs[rows].mT)
            out += torch.bmm(layer.signals[rows, :, 0], moved)[..., 0]
        return out

    def gauss_newton(self, roots: Tensor, rows: Tensor | None = None) -> Tensor:
        layers = self._gradients.layers
        out = roots.new_empty(self.n_params, self.n_params)
        chosen = slice(None) if rows is None else rows
        weighted_signals = [
            roots[chosen].mT @ layer.signals[chosen, :, 0] for layer in layers
        ]

        for i, one in enumerate(layers):
            for j, two in enumerate(layers[: i + 1]):
                block = self._block(
                    one, two, weighted_signals[i], weighted_signals[j], rows
                )
                for first, second, entries in self._column_blocks(one, two):
                    out[first, second] = block[entries].reshape(
                        out[first, second].shape
                    )
                    if i != j:
                        out[second, first] = out[first, second].T

        scale = self._gradients.scale
        return out if scale is None else out.mul_(scale).mul_(scale[:, None])

    def _block(
        self,
        one: LayerGradients,
        two: LayerGradients,
        first: Tensor,
        second: Tensor,
        rows: Tensor | None,
    ) -> Tensor:
        """Return Σ (s ⊗ a)(s' ⊗ a')ᵀ = Σ (s s'ᵀ) ⊗ (a a'ᵀ) for signals bent by S.

        Of shape (o, k, o', k').
        """
        (o, k), (p, q) = one.width, two.width
        same = one is two
        # one triangle of a symmetric product determines it
        pairs_o = _Pairs(o, p, same, first.device)
        pairs_k = _Pairs(k, q, same, first.device)
        total = first.new_zeros(len(pairs_o), len(pairs_k))
        numbers = len(pairs_k) + (1 + first.shape[1]) * len(pairs_o) + o * p + k * q

        for chunk in chunks(len(first), self._at_once(numbers)):
            chunk_rows = chunk if rows is None else rows[chunk]
            outer = torch.einsum("nco,ncp->nop", first[chunk], second[chunk])
            inputs = (
                one.inputs[chunk_rows, 0, :, None] * two.inputs[chunk_rows, 0, None, :]
            )
            total.addmm_(pairs_o.of(outer).T, pairs_k.of(inputs))

        blocks = pairs_k.all(pairs_o.all(total).permute(2, 0, 1))
        return blocks.permute(2, 0, 3, 1)

    def _column_blocks(
        self, one: LayerGradients, two: LayerGradients
    ) -> Iterator[tuple[slice, slice, tuple[slice | int, ...]]]:
        """Yield columns of both layers, and where they are in (o, k, o', k')."""
        outputs = slice(None)
        for first, first_inputs in zip(one.names, _INNER[len(one.names)], strict=True):
            for second, second_inputs in zip(
                two.names, _INNER[len(two.names)], strict=True
            ):
                entries = outputs, first_inputs, outputs, second_inputs
                yield self._columns[first], self._columns[second], entries

    def curvature(self, blocks: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the product of vectors (m, P) with Σ JᵢᵀBᵢJᵢ, for B (n, C, C)."""
        layers = self._gradients.layers
        signals = torch.cat([layer.signals[:, :, 0] for layer in layers], dim=2)
        n, C, width = signals.shape
        joined = None
        if width <= _WIDE * C:
            joined = signals.mT @ blocks @ signals

        def apply_blocks(moved: Tensor, out: Tensor) -> None:
            """Multiply (n, o, m), of all layers, by the rows' curvature."""
            if joined is not None:
                torch.bmm(joined, moved, out=out)
                return
            images = torch.bmm(blocks, torch.bmm(signals, moved))
            torch.bmm(signals.mT, images, out=out)

        at_once = self._at_once(2 * n * (width + C) + 3 * self.n_params)
        # reused from product to product: allocating memory is slow
        buffers: dict[int, tuple[Tensor, Tensor]] = {}

        def product(vectors: Tensor) -> Tensor:
            out = torch.empty_like(vectors)
            for chunk in chunks(len(vectors), at_once):
                chunk_vectors = self._gradients.in_metric(vectors[chunk])
                m = len(chunk_vectors)
                if m not in buffers:
                    moved = vectors.new_empty(n, width * m)
                    buffers[m] = moved, torch.empty_like(moved)
                moved, bent = buffers[m]
                self._outward(chunk_vectors, moved)
                apply_blocks(moved.view(n, width, m), bent.view(n, width, m))
                self._inward(bent, out[chunk])
            return self._gradients.in_metric(out)

        return product

    def _outward(self, vectors: Tensor, out: Tensor) -> None:
        """Write the effect of vectors (m, P) on the layers' outputs, as (n, o·m).

        With rows first and vectors last, no factor and no product is reordered.
        """
        m = len(vectors)
        columns = self._gradients.by_name(vectors)
        start = 0
        for layer in self._gradients.layers:
            o, k = layer.width
            joined = vectors.new_empty(o, m, k)
            for name, inputs in zip(layer.names, _INNER[len(layer.names)], strict=True):
                value = columns[name].unflatten(1, (o, -1)).transpose(0, 1)
                target = joined[..., inputs]
                target.copy_(value.reshape(target.shape))
            stop = start + o * m
            torch.mm(layer.inputs[:, 0], joined.flatten(0, 1).T, out=out[:, start:stop])
            start = stop

    def _inward(self, bent: Tensor, out: Tensor) -> None:
        """Write products of the layers' inputs with (n, o·m) as vectors (m, P)."""
        m = len(out)
        columns = self._gradients.by_name(out)
        start = 0
        for layer in self._gradients.layers:
            o, k = layer.width
            stop = start + o * m
            products = (bent[:, start:stop].T @ layer.inputs[:, 0]).view(o, m, k)
            for name, inputs in zip(layer.names, _INNER[len(layer.names)], strict=True):
                value = products[..., inputs].transpose(0, 1)
                columns[name].copy_(value.reshape(m, -1))
            start = stop

    def leverages(self, matrix: Tensor, rows: Tensor) -> Tensor:
        """Return Jᵢ M Jᵢᵀ of some rows, (m, C, C), for symmetric M (P, P).

        In the precision of M.
        """
        scale = self._gradients.scale
        if scale is not None:
            matrix = matrix * scale * scale[:, None]
        layers, (_, C) = self._gradients.layers, self._gradients.shape
        out = matrix.new_zeros(len(rows), C, C)

        for i, one in enumerate(layers):
            for j, two in enumerate(layers[: i + 1]):
                block = matrix.new_empty(*one.width, *two.width)
                for first, second, entries in self._column_blocks(one, two):
                    block[entries] = matrix[first, second].reshape(block[entries].shape)
                products = self._leverages(block, one, two, rows)
                out += products if i == j else products + products.mT

        return out

    def _leverages(
        self, block: Tensor, one: LayerGradients, two: LayerGradients, rows: Tensor
    ) -> Tensor:
        (o, k), (p, q) = one.width, two.width
        # (a ⊗ a') M first: a product of inputs with all pairs of signals
        matrix = block.permute(1, 3, 0, 2).reshape(k * q, o * p)
        leverages = []

        for chunk in chunks(len(rows), self._at_once(2 * (k * q + 2 * o * p))):
            chunk_rows = rows[chunk]
            # in the matrix's precision: what is summed may cancel
            first, second = (
                layer.inputs[chunk_rows, 0].to(matrix) for layer in (one, two)
            )
            inputs = (first[:, :, None] * second[:, None, :]).flatten(1)
            inner = (inputs @ matrix).view(-1, o, p)
            first, second = (
                layer.signals[chunk_rows, :, 0].to(matrix) for layer in (one, two)
            )
            leverages.append(first @ inner @ second.mT)

        return torch.cat(leverages)


class _Pairs:
    """Pairs (i, j) of n × m, or of a symmetric n × n those with i <= j."""

    def __init__(self, n: int, m: int, symmetric: bool, device: torch.device) -> None:
        self._shape = (n, m)
        self._upper = None
        if symmetric:
            self._upper = torch.triu_indices(n, n, device=device)
            index = torch.empty(n, n, dtype=torch.long, device=device)
            order = torch.arange(self._upper.shape[1], device=device)
            index[self._upper[0], self._upper[1]] = order
            index[self._upper[1], self._upper[0]] = order
            self._index = index

    def __len__(self) -> int:
        if self._upper is None:
            return self._shape[0] * self._shape[1]
        return self._upper.shape[1]

    def of(self, matrices: Tensor) -> Tensor:
        """Return the entries of matrices (b, n, m) at the pairs, (b, len)."""
        if self._upper is None:
            return matrices.flatten(1)
        return matrices[:, self._upper[0], self._upper[1]]

    def all(self, entries: Tensor) -> Tensor:
        """Return whole matrices (n, m, ...) from entries (len, ...)."""
        if self._upper is None:
            return entries.reshape(*self._shape, *entries.shape[1:])
        return entries[self._index]


def jacobian_of(gradients: RowGradients, memory_bytes: float) -> Jacobian:
    """Return the factored Jacobian where there is one, else the explicit."""
    # projected gradients are explicit
    if isinstance(gradients, RowGradients) and is_dense(gradients):
        return FactoredJacobian(gradients, memory_bytes)
    return ExplicitJacobian(gradients, memory_bytes)
