"""The Jacobian of the training rows as products, the way the primal space needs them.

A dense layer's gradient is an outer product, signal ⊗ input. As long as nothing else
is in the way, Gauss-Newton matrices and leverages are products of these factors, with C
times less work than with explicit gradients, and none of these are formed.
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

# Of the memory cap, what one temporary may take: 1 / _SHARE.
_SHARE = 4
# Rows of factors that are always multiplied together.
_FEW_ROWS = 16
# Layers with outputs up to so many times the network's are gone through in one product.
_WIDE = 4
# Which inputs of a layer belong to its weight alone, or to its weight and its bias.
_INNER: dict[int, tuple[slice | int, ...]] = {
    1: (slice(None),),
    2: (slice(None, -1), -1),
}


class Jacobian(Protocol):
    """J (n·C, P) of rows, in the metric."""

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
    """Holds n·C·P numbers: for layers with positions, bare parameters, projections."""

    def __init__(self, gradients: RowGradients, memory_bytes: float) -> None:
        self._matrix, self._memory = gradients.jacobian(), memory_bytes
        self._n_outputs = gradients.shape[1]
        self.n_params = self._matrix.shape[1]

    def _rows(self) -> Tensor:
        return self._matrix.view(-1, self._n_outputs, self.n_params)

    def _at_once(self) -> int:
        """Return of how many rows two copies of the gradients may exist."""
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
        jacobian, out = self._rows(), cotangents.new_empty(len(rows), self.n_params)
        for part in chunks(len(rows), self._at_once()):
            out[part] = torch.bmm(cotangents[part, None], jacobian[rows[part]])[:, 0]
        return out

    def row_jvp(self, rows: Tensor, tangents: Tensor) -> Tensor:
        jacobian, out = self._rows(), tangents.new_empty(len(rows), self._n_outputs)
        for part in chunks(len(rows), self._at_once()):
            out[part] = torch.bmm(jacobian[rows[part]], tangents[part, :, None])[..., 0]
        return out

    def gauss_newton(self, roots: Tensor, rows: Tensor | None = None) -> Tensor:
        jacobian = self._rows()
        out = jacobian.new_zeros(self.n_params, self.n_params)
        n_rows = len(jacobian) if rows is None else len(rows)
        for part in chunks(n_rows, self._at_once()):
            some = part if rows is None else rows[part]
            half = (roots[some].mT @ jacobian[some]).flatten(0, 1)
            out.addmm_(half.T, half)
        return out


class FactoredJacobian:
    """Holds layer factors: for networks of dense layers.

    Here alone `curvature` and `leverages` are cheaper than by explicit gradients.
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
        for part in chunks(len(out), self._at_once(self._gradients.n_temporaries)):
            some = cotangents[part].view(-1, *self._gradients.shape)
            out[part] = self._gradients.vjp(some)
        return out

    def jvp(self, tangents: Tensor) -> Tensor:
        n, C = self._gradients.shape
        out = tangents.new_empty(len(tangents), n * C)
        for part in chunks(len(out), self._at_once(self._gradients.n_temporaries)):
            out[part] = self._gradients.jvp(tangents[part]).flatten(1)
        return out

    def row_vjp(self, rows: Tensor, cotangents: Tensor) -> Tensor:
        out = cotangents.new_empty(len(rows), self.n_params)
        for layer in self._gradients.layers:
            signals = torch.bmm(cotangents[:, None], layer.signals[rows, :, 0])
            found = signals.mT * layer.inputs[rows]
            for name, value in layer.to_columns(found).items():
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
        some = slice(None) if rows is None else rows
        bent = [roots[some].mT @ layer.signals[some, :, 0] for layer in layers]
        for i, one in enumerate(layers):
            for j, two in enumerate(layers[: i + 1]):
                block = self._block(one, two, bent[i], bent[j], rows)
                for place, there, part in self._parts(one, two):
                    out[place, there] = block[part].reshape(out[place, there].shape)
                    if i != j:
                        out[there, place] = out[place, there].T
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
        # of a symmetric product, a triangle says it all
        pairs_o = _Pairs(o, p, same, first.device)
        pairs_k = _Pairs(k, q, same, first.device)
        total = first.new_zeros(len(pairs_o), len(pairs_k))
        numbers = len(pairs_k) + (1 + first.shape[1]) * len(pairs_o) + o * p + k * q
        for part in chunks(len(first), self._at_once(numbers)):
            some = part if rows is None else rows[part]
            outer = torch.einsum("nco,ncp->nop", first[part], second[part])
            inputs = one.inputs[some, 0, :, None] * two.inputs[some, 0, None, :]
            total.addmm_(pairs_o.of(outer).T, pairs_k.of(inputs))
        blocks = pairs_k.all(pairs_o.all(total).permute(2, 0, 1))
        return blocks.permute(2, 0, 3, 1)

    def _parts(
        self, one: LayerGradients, two: LayerGradients
    ) -> Iterator[tuple[slice, slice, tuple[slice | int, ...]]]:
        """Yield columns of both layers, and where they are in (o, k, o', k')."""
        whole = slice(None)
        for first, inner in zip(one.names, _INNER[len(one.names)], strict=True):
            for second, other in zip(two.names, _INNER[len(two.names)], strict=True):
                part = whole, inner, whole, other
                yield self._columns[first], self._columns[second], part

    def curvature(self, blocks: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the product of vectors (m, P) with Σ JᵢᵀBᵢJᵢ, for B (n, C, C)."""
        layers = self._gradients.layers
        signals = torch.cat([layer.signals[:, :, 0] for layer in layers], dim=2)
        n, C, width = signals.shape
        joined = None
        if width <= _WIDE * C:
            joined = signals.mT @ blocks @ signals

        def across(moved: Tensor, out: Tensor) -> None:
            """Take (n, o, m), of all layers, through the rows' curvature."""
            if joined is not None:
                torch.bmm(joined, moved, out=out)
                return
            images = torch.bmm(blocks, torch.bmm(signals, moved))
            torch.bmm(signals.mT, images, out=out)

        at_once = self._at_once(2 * n * (width + C) + 3 * self.n_params)
        # kept from product to product: fresh memory is slow
        buffers: dict[int, tuple[Tensor, Tensor]] = {}

        def product(vectors: Tensor) -> Tensor:
            out = torch.empty_like(vectors)
            for part in chunks(len(vectors), at_once):
                some = self._gradients.in_metric(vectors[part])
                m = len(some)
                if m not in buffers:
                    moved = vectors.new_empty(n, width * m)
                    buffers[m] = moved, torch.empty_like(moved)
                moved, bent = buffers[m]
                self._outward(some, moved)
                across(moved.view(n, width, m), bent.view(n, width, m))
                self._inward(bent, out[part])
            return self._gradients.in_metric(out)

        return product

    def _outward(self, vectors: Tensor, out: Tensor) -> None:
        """Write what vectors (m, P) do to the layers' outputs, (n, o·m) side by side.

        Rows first, vectors last: no factor and no product is brought in another order.
        """
        m, columns = len(vectors), self._gradients.by_name(vectors)
        start = 0
        for layer in self._gradients.layers:
            o, k = layer.width
            joined = vectors.new_empty(o, m, k)
            for name, inner in zip(layer.names, _INNER[len(layer.names)], strict=True):
                value = columns[name].unflatten(1, (o, -1)).transpose(0, 1)
                part = joined[..., inner]
                part.copy_(value.reshape(part.shape))
            stop = start + o * m
            torch.mm(layer.inputs[:, 0], joined.flatten(0, 1).T, out=out[:, start:stop])
            start = stop

    def _inward(self, bent: Tensor, out: Tensor) -> None:
        """Write products of the layers' inputs with (n, o·m) as vectors (m, P)."""
        m, columns = len(out), self._gradients.by_name(out)
        start = 0
        for layer in self._gradients.layers:
            o, k = layer.width
            stop = start + o * m
            found = (bent[:, start:stop].T @ layer.inputs[:, 0]).view(o, m, k)
            for name, inner in zip(layer.names, _INNER[len(layer.names)], strict=True):
                value = found[..., inner].transpose(0, 1)
                columns[name].copy_(value.reshape(m, -1))
            start = stop

    def leverages(self, matrix: Tensor, rows: Tensor) -> Tensor:
        """Return Jᵢ M Jᵢᵀ of some rows, (m, C, C), for symmetric M (P, P).

        In M's precision.
        """
        scale = self._gradients.scale
        if scale is not None:
            matrix = matrix * scale * scale[:, None]
        layers, (_, C) = self._gradients.layers, self._gradients.shape
        out = matrix.new_zeros(len(rows), C, C)
        for i, one in enumerate(layers):
            for j, two in enumerate(layers[: i + 1]):
                block = matrix.new_empty(*one.width, *two.width)
                for place, there, part in self._parts(one, two):
                    block[part] = matrix[place, there].reshape(block[part].shape)
                found = self._leverages(block, one, two, rows)
                out += found if i == j else found + found.mT
        return out

    def _leverages(
        self, block: Tensor, one: LayerGradients, two: LayerGradients, rows: Tensor
    ) -> Tensor:
        (o, k), (p, q) = one.width, two.width
        # (a ⊗ a') M first: a product of inputs with all pairs of signals
        matrix = block.permute(1, 3, 0, 2).reshape(k * q, o * p)
        out = []
        for part in chunks(len(rows), self._at_once(2 * (k * q + 2 * o * p))):
            some = rows[part]
            # in the matrix's precision: what is summed may cancel
            left, right = (layer.inputs[some, 0].to(matrix) for layer in (one, two))
            inputs = (left[:, :, None] * right[:, None, :]).flatten(1)
            inner = (inputs @ matrix).view(-1, o, p)
            left, right = (layer.signals[some, :, 0].to(matrix) for layer in (one, two))
            out.append(left @ inner @ right.mT)
        return torch.cat(out)


class _Pairs:
    """Pairs (i, j) of n × m, or of a symmetric n × n those with i <= j."""

    def __init__(self, n: int, m: int, symmetric: bool, device: torch.device) -> None:
        self._shape, self._some = (n, m), None
        if symmetric:
            self._some = torch.triu_indices(n, n, device=device)
            index = torch.empty(n, n, dtype=torch.long, device=device)
            order = torch.arange(self._some.shape[1], device=device)
            index[self._some[0], self._some[1]] = order
            index[self._some[1], self._some[0]] = order
            self._index = index

    def __len__(self) -> int:
        if self._some is None:
            return self._shape[0] * self._shape[1]
        return self._some.shape[1]

    def of(self, matrices: Tensor) -> Tensor:
        """Return the entries of matrices (b, n, m) at the pairs, (b, len)."""
        if self._some is None:
            return matrices.flatten(1)
        return matrices[:, self._some[0], self._some[1]]

    def all(self, entries: Tensor) -> Tensor:
        """Return whole matrices (n, m, ...) from entries (len, ...)."""
        if self._some is None:
            return entries.reshape(*self._shape, *entries.shape[1:])
        return entries[self._index]


def jacobian_of(gradients: RowGradients, memory_bytes: float) -> Jacobian:
    """Return the factored Jacobian where there is one, else the explicit."""
    # projected gradients are explicit
    if isinstance(gradients, RowGradients) and is_dense(gradients):
        return FactoredJacobian(gradients, memory_bytes)
    return ExplicitJacobian(gradients, memory_bytes)
