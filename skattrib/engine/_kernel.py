"""Blocks of the empirical neural tangent kernel, from layer factors."""

from __future__ import annotations

import torch
from torch import Tensor

from skattrib.engine._factors import LayerGradients
from skattrib.engine._functional import chunks
from skattrib.engine._gradients import RowGradients

# The temporaries of one chunk may take 1 / _SHARE of the memory cap.
_SHARE = 4


def kernel_block(
    left: RowGradients, right: RowGradients, memory_bytes: float
) -> Tensor:
    """Return J₁J₂ᵀ (n₁·C₁, n₂·C₂) of rows whose columns have the same scale."""
    # rows with fewer positions may have factors where the others have none
    left, right = left.without_factors(right.rest), right.without_factors(left.rest)
    (n1, C1), (n2, C2) = left.shape, right.shape
    block = left.like.new_zeros(n1, C1, n2, C2)
    for one, two, scale in zip(
        left.layers, right.layers, left.layer_scales, strict=True
    ):
        if one.inputs.shape[1] > 1:
            _add_explicit(block, one, two, scale, memory_bytes)
        elif scale is None:
            _add_plain(block, one, two, memory_bytes)
        else:
            _add_scaled(block, one, two, scale, memory_bytes)

    columns = None if left.scale is None else left.by_name(left.scale)
    for name, value in left.rest.items():
        other = right.rest[name].flatten(0, 1).T
        size = memory_bytes / (_SHARE * C1 * (len(other) + 2 * n2 * C2))
        for rows in chunks(n1, int(size / block.element_size())):
            left_block = value[rows].flatten(0, 1)
            if columns is not None:
                left_block = left_block * columns[name] ** 2
            block[rows] += (left_block @ other).view(-1, C1, n2, C2)

    return block.view(n1 * C1, n2 * C2)


def _add_plain(
    block: Tensor, one: LayerGradients, two: LayerGradients, memory_bytes: float
) -> None:
    """Add a dense layer in the identity metric: inner products multiply."""
    _, C1, n2, C2 = block.shape
    numbers = n2 * (1 + 2 * C1 * C2)
    size = int(memory_bytes / (_SHARE * numbers * block.element_size()))
    for rows in chunks(len(one.inputs), size):
        signals = torch.einsum(
            "ico,jdo->icjd", one.signals[rows, :, 0], two.signals[:, :, 0]
        )
        inputs = one.inputs[rows, 0] @ two.inputs[:, 0].T
        block[rows] += signals.mul_(inputs[:, None, :, None])


def _add_explicit(
    block: Tensor,
    one: LayerGradients,
    two: LayerGradients,
    scale: Tensor | None,
    memory_bytes: float,
) -> None:
    """Add a layer with several positions: outer products summed, o' at a time."""
    n1, C1, n2, C2 = block.shape
    o, k = one.width
    numbers = 3 * max(n1 * C1, n2 * C2) * k
    size = int(memory_bytes / (_SHARE * numbers * block.element_size()))
    flat = block.view(n1 * C1, n2 * C2)
    for outputs in chunks(o, size):
        first, second = one.explicit(outputs), two.explicit(outputs)
        if scale is not None:
            first = first * scale[outputs] ** 2
        flat += first.reshape(n1 * C1, -1) @ second.reshape(n2 * C2, -1).T


def _add_scaled(
    block: Tensor,
    one: LayerGradients,
    two: LayerGradients,
    scale: Tensor,
    memory_bytes: float,
) -> None:
    """Add a dense layer whose parameters have a scale each.

    Σ_o s_io s_jo (Σ_k m_ok a_ik a_jk): the inner sum for every o is a product of
    inputs, C₁C₂ times cheaper than the product of whole gradients.
    """
    _, C1, n2, C2 = block.shape
    o, k = one.width
    squared = scale**2
    right_signals = two.signals[:, :, 0].permute(2, 0, 1)[None]  # (1, o, n2, C2)
    # a row's scaled inputs, its inner sums and their product with signals
    numbers = o * (k + n2 + 2 * n2 * C2)
    size = int(memory_bytes / (_SHARE * numbers * block.element_size()))
    symmetric = one is two

    for rows in chunks(len(one.inputs), size):
        first = rows.start if symmetric else 0
        weighted = one.inputs[rows, 0, None, :] * squared  # (i, o, k)
        inputs = weighted @ two.inputs[first:, 0].T  # (i, o, j)
        right = (inputs[..., None] * right_signals[:, :, first:]).flatten(2)
        products = torch.bmm(one.signals[rows, :, 0], right)
        products = products.view(-1, C1, n2 - first, C2)
        block[rows, :, first:] += products
        if symmetric:
            later = products[:, :, rows.stop - rows.start :]
            block[rows.stop :, :, rows] += later.permute(2, 3, 0, 1)
