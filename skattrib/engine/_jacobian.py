"""The Jacobian of the training rows as products, the way the primal space needs them.

A dense layer's gradient is an outer product, signal ⊗ input. As long as nothing else
is in the way, Gauss-Newton matrices and leverages are products of these factors: C times
less work than with explicit gradients, of which none are formed.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from skattrib.engine._functional import chunks
from skattrib.engine._gradients import LayerGradients, RowGradients

# Of the memory cap, what one temporary may take: 1 / _SHARE.
_SHARE = 4
# Rows of factors that are always multiplied together.
_FEW_ROWS = 16


class Jacobian(Protocol):
    """J (n·C, P) of rows, in the metric."""

    n_params: int

    def vjp(self, cotangents: Tensor) -> Tensor:
        """Return u J, (m, P), for u of shape (m, n·C)."""

    def jvp(self, tangents: Tensor) -> Tensor:
        """Return v Jᵀ, (m, n·C), for v of shape (m, P)."""

    def gauss_newton(self, roots: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return Σ JᵢᵀSᵢSᵢᵀJᵢ over all or some rows, (P, P), for S (n, C, C)."""

    def of_rows(self, rows: Tensor) -> Tensor:
        """Return explicit gradients of some rows, (m, C, P)."""


class ExplicitJacobian:
    """Holds n·C·P numbers: for layers with positions, bare parameters, projections."""

    def __init__(self, gradients: RowGradients, memory_bytes: float) -> None:
        self._matrix, self._memory = gradients.jacobian(), memory_bytes
        self._n_outputs = gradients.shape[1]
        self.n_params = self._matrix.shape[1]

    def _rows(self) -> Tensor:
        return self._matrix.view(-1, self._n_outputs, self.n_params)

    def vjp(self, cotangents: Tensor) -> Tensor:
        return cotangents @ self._matrix

    def jvp(self, tangents: Tensor) -> Tensor:
        return tangents @ self._matrix.T

    def gauss_newton(self, roots: Tensor, rows: Tensor | None = None) -> Tensor:
        jacobian = self._rows()
        out = jacobian.new_zeros(self.n_params, self.n_params)
        # two copies of the gradients of a row
        size = 2 * self._n_outputs * self.n_params * jacobian.element_size()
        at_once = max(_FEW_ROWS, int(self._memory / (_SHARE * size)))
        n_rows = len(jacobian) if rows is None else len(rows)
        for part in chunks(n_rows, at_once):
            some = part if rows is None else rows[part]
            half = (roots[some].mT @ jacobian[some]).flatten(0, 1)
            out.addmm_(half.T, half)
        return out

    def of_rows(self, rows: Tensor) -> Tensor:
        return self._rows()[rows]


class FactoredJacobian:
    """Holds layer factors: for networks of dense layers."""

    def __init__(self, gradients: RowGradients, memory_bytes: float) -> None:
        self._gradients, self._memory = gradients, memory_bytes
        self.n_params = gradients.n_params
        columns = torch.arange(self.n_params, device=gradients.layers[0].inputs.device)
        pieces = gradients._columns(columns)
        #: columns of every layer, in the order of signal ⊗ input
        self._columns = [
            layer.from_columns(pieces).flatten() for layer in gradients.layers
        ]

    def _at_once(self, numbers: int) -> int:
        size = numbers * self._gradients.layers[0].inputs.element_size()
        return max(_FEW_ROWS, int(self._memory / (_SHARE * size)))

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

    def gauss_newton(self, roots: Tensor, rows: Tensor | None = None) -> Tensor:
        layers = self._gradients.layers
        out = roots.new_empty(self.n_params, self.n_params)
        some = slice(None) if rows is None else rows
        bent = [roots[some].mT @ layer.signals[some, :, 0] for layer in layers]
        for i, one in enumerate(layers):
            for j, two in enumerate(layers[: i + 1]):
                block = self._block(one, two, bent[i], bent[j], rows)
                out[self._columns[i][:, None], self._columns[j]] = block
                if i != j:
                    out[self._columns[j][:, None], self._columns[i]] = block.T
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
        """Return Σ (s ⊗ a)(s' ⊗ a')ᵀ = Σ (s s'ᵀ) ⊗ (a a'ᵀ) for signals bent by S."""
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
        return blocks.permute(2, 0, 3, 1).reshape(o * k, p * q)

    def of_rows(self, rows: Tensor) -> Tensor:
        jacobian = self._gradients.of_rows(rows).jacobian()
        return jacobian.view(len(rows), -1, self.n_params)

    def leverages(self, inverse: Tensor, rows: Tensor) -> Tensor:
        """Return Jᵢ M Jᵢᵀ of some rows, (m, C, C), for symmetric M (P, P).

        In M's precision.
        """
        scale = self._gradients.scale
        if scale is not None:
            inverse = inverse * scale * scale[:, None]
        layers, (_, C) = self._gradients.layers, self._gradients.shape
        out = inverse.new_zeros(len(rows), C, C)
        for i, one in enumerate(layers):
            for j, two in enumerate(layers[: i + 1]):
                block = inverse[self._columns[i][:, None], self._columns[j]]
                found = self._leverages(block, one, two, rows)
                out += found if i == j else found + found.mT
        return out

    def _leverages(
        self, block: Tensor, one: LayerGradients, two: LayerGradients, rows: Tensor
    ) -> Tensor:
        (o, k), (p, q) = one.width, two.width
        # (a ⊗ a') M first: a product of inputs with all pairs of signals
        matrix = block.view(o, k, p, q).permute(1, 3, 0, 2).reshape(k * q, o * p)
        out = []
        for part in chunks(len(rows), self._at_once(2 * (k * q + 2 * o * p))):
            some = rows[part]
            inputs = one.inputs[some, 0, :, None] * two.inputs[some, 0, None, :]
            inner = (inputs.flatten(1).to(matrix) @ matrix).view(-1, o, p)
            left, right = (
                layer.signals[some, :, 0].to(matrix) for layer in (one, two)
            )
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
    dense = (
        isinstance(gradients, RowGradients)
        and gradients.layers
        and not gradients.rest
        and all(layer.inputs.shape[1] == 1 for layer in gradients.layers)
    )
    kind = FactoredJacobian if dense else ExplicitJacobian
    return kind(gradients, memory_bytes)
