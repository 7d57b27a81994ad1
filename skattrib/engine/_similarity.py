"""Rows of an index compared with queries: scores, and the best of them.

The similarity of two signatures, and the search of an index block by block, belong
here. What a signature is, and how an index is stored, is in `_index`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skattrib.engine._functional import chunks
from skattrib.engine._index import SignatureIndex, unit

# Numbers of rows that are decoded and multiplied at a time: they fit the cache.
_AT_ONCE = 2**19


@dataclass(frozen=True)
class Similarity:
    """How signatures are compared: Σ over channels of weight² · inner product.

    Attributes
    ----------
    weights : dict of str to float
        Of the channels.
    cosine : bool
        Compare unit vectors, and divide by Σ weight²; else the vectors as they were.
    centers : dict of str to Tensor (width,)
        Subtracted from channels before they are compared.
    """

    weights: dict[str, float]
    cosine: bool
    centers: dict[str, Tensor]

    def _prepare(self, name: str, units: Tensor, norms: Tensor) -> None:
        """Scale and centre unit vectors of a channel in place, for inner products."""
        weight = self.weights[name]
        center = self.centers.get(name)
        if center is not None:
            units.mul_(norms[:, None]).sub_(center.to(units))
            if self.cosine:
                units.copy_(unit(units)[1])
        elif not self.cosine:
            units.mul_(norms[:, None])
        if self.cosine:
            weight = weight / sum(w**2 for w in self.weights.values()) ** 0.5
        if weight != 1:
            units.mul_(weight)

    def vectors(
        self, index: SignatureIndex, rows: slice | NDArray[np.intp], like: Tensor
    ) -> Tensor:
        """Return vectors (m, width) whose inner products are the scores.

        They have the dtype and device of ``like``.
        """
        # a copy: a memory map is read-only
        stored = torch.tensor(index.signatures(rows), device=like.device)
        norms = torch.tensor(index.norms[rows]).to(like)
        widths = index.header.widths
        sizes = [width for name, width in widths.items() if name in self.weights]
        out = like.new_empty(len(stored), sum(sizes))
        blocks = iter(out.split(sizes, dim=1))
        for i, (name, columns) in enumerate(index.header.slices().items()):
            if name in self.weights:
                block = next(blocks)
                block.copy_(stored[:, columns])
                self._prepare(name, block, norms[:, i])
        return out

    def pieces(
        self, index: SignatureIndex, rows: slice, like: Tensor
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield the vectors of a few rows at a time, and which of ``rows`` they are."""
        size = rows.stop - rows.start
        if like.device.type == "cpu":
            size = min(size, _AT_ONCE // index.header.width)
        for chunk in chunks(rows.stop - rows.start, size):
            chunk_rows = slice(rows.start + chunk.start, rows.start + chunk.stop)
            yield chunk, self.vectors(index, chunk_rows, like)

    def of_channels(self, channels: Mapping[str, Tensor]) -> Tensor:
        """Return the vectors of rows that are not in an index."""
        vectors = []
        for name, values in channels.items():
            if name in self.weights:
                norms, units = unit(values)
                self._prepare(name, units, norms)
                vectors.append(units)
        return torch.cat(vectors, dim=1)


def all_scores(
    queries: Tensor, index: SignatureIndex, similarity: Similarity, block: int
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the scores (q, m) of query vectors against blocks of rows."""
    for rows in chunks(len(index), block):
        scores = queries.new_empty(len(queries), rows.stop - rows.start)
        for chunk, vectors in similarity.pieces(index, rows, queries):
            scores[:, chunk] = queries @ vectors.T
        yield rows, scores


def best(
    queries: Tensor, index: SignatureIndex, similarity: Similarity, n: int, block: int
) -> tuple[Tensor, Tensor]:
    """Return the n largest scores (q, n) of each query, and their rows."""
    scores = queries.new_empty(len(queries), 0)
    best_rows = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for rows, values in all_scores(queries, index, similarity, block):
        places = _first(values, n)
        scores = torch.cat([scores, values.gather(1, places)], 1)
        best_rows = torch.cat([best_rows, places + rows.start], 1)
        order = _first(scores, n)
        scores, best_rows = scores.gather(1, order), best_rows.gather(1, order)
    return scores, best_rows


def _first(scores: Tensor, n: int) -> Tensor:
    """Return the positions (q, n) of the n largest scores, the earlier of equal ones.

    Equal scores thus keep the order of the rows, independent of the blocks.
    """
    n = min(n, scores.shape[1])
    top, places = scores.topk(n, dim=1)
    if not n or bool(((scores >= top[:, -1:]).sum(dim=1) > n).any()):
        # equal scores on both sides of the cut: only a stable sort separates them
        return scores.argsort(dim=1, descending=True, stable=True)[:, :n]
    places = places.sort(dim=1).values
    order = scores.gather(1, places).argsort(dim=1, descending=True, stable=True)
    return places.gather(1, order)
