"""Count sketches, and gradients of outcomes in blocks of columns to be sketched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from skattrib.engine._functional import FunctionalModule
from skattrib.engine._gradients import RowGradients, row_gradients
from skattrib.engine._losses import Loss, OutcomeFunction
from skattrib.engine._projection import gradient_blocks


def draw_tables(
    n_features: int, n_components: int, n_hashes: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Draw the component and the sign that each hash gives to each feature.

    Each hash has n_components / n_hashes components of its own.

    Returns
    -------
    indices : int32 Tensor of shape (n_hashes, n_features)
        In ``range(n_components)``.
    signs : int8 Tensor of shape (n_hashes, n_features)
        -1 or 1.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (n_hashes, n_features)
    width = n_components // n_hashes
    indices = torch.randint(width, shape, generator=generator, dtype=torch.int32)
    signs = torch.randint(2, shape, generator=generator, dtype=torch.int8)
    first = torch.arange(n_hashes, dtype=torch.int32) * width
    return indices + first[:, None], 2 * signs - 1


def sketch(X: Tensor, indices: Tensor, signs: Tensor, n_components: int) -> Tensor:
    """Sketch rows (..., P) to (..., n_components), by the tables of the P columns.

    The sketch is linear: sketches of blocks of columns, each by the tables of its
    columns, add up to the sketch of all. On CUDA the order of summation varies, and
    with it the last digits.
    """
    out = X.new_zeros(*X.shape[:-1], n_components)
    for index, sign in zip(indices, signs, strict=True):
        # torch adds by int32 indices several times more slowly
        out.index_add_(-1, index.long(), X * sign.to(X.dtype))
    return out / len(indices) ** 0.5


def unsketch(sketched: Tensor, indices: Tensor, signs: Tensor) -> Tensor:
    """Apply the transpose of `sketch` to rows (..., n_components): (..., P)."""
    columns = [
        sketched[..., index.long()] * sign.to(sketched.dtype)
        for index, sign in zip(indices, signs, strict=True)
    ]
    return torch.stack(columns).sum(dim=0) / len(indices) ** 0.5


def numbers_per_row(model: FunctionalModule, row: Tensor) -> int:
    """Return how many numbers the factored gradients of one row (1, ...) hold."""
    _, gradients = row_gradients(model, row)
    tensors = list(gradients.rest.values())
    for layer in gradients.layers:
        tensors += [layer.inputs, layer.signals]
    return sum(tensor.numel() for tensor in tensors)


def outcome_gradients(
    model: FunctionalModule,
    X: Tensor,
    outcome: OutcomeFunction,
    loss: Loss,
    max_numbers: int,
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the gradient of each row's outcome at its own prediction, in blocks.

    Each block (n, columns) comes with the slice of its columns in the flat parameter
    vector; together the blocks cover all columns. A block has at most
    ``max_numbers`` entries, unless one output of a layer, or a parameter that no layer
    covers, already has more.
    """
    outputs, gradients = row_gradients(model, X)
    targets = loss.own_targets(outputs)
    slopes = torch.func.grad(lambda f: outcome(f, targets).sum())(outputs)
    # mix the C outputs while they are factors: one outer product instead of C
    layers = [
        replace(
            layer,
            signals=torch.einsum("nc,ncto->nto", slopes, layer.signals)[:, None],
        )
        for layer in gradients.layers
    ]

    rest = {
        name: torch.einsum("nc,ncp->np", slopes, value)[:, None]
        for name, value in gradients.rest.items()
    }
    mixed = RowGradients(model, layers, rest, (len(X), 1))
    yield from gradient_blocks(mixed, max_numbers)
