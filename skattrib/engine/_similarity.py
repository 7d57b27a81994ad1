"""Rows of an index compared with queries: scores, and the best of them.

What two signatures have in common, and how to go through an index for it a block at a
time, belongs here. What a signature is, and how an index is kept, is in `_index`.
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

# Numbers of rows that are decoded and multiplied while they are in the cache.
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
        """Change unit vectors of a channel, in place, into what products are of."""
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
        """Return vectors (m, width), as ``like`` is, whose products are the scores."""
        # a copy: a map on disk is read-only
        stored = torch.tensor(index.signatures(rows), device=like.device)
        norms = torch.tensor(index.norms[rows]).to(like)
        widths = index.header.widths
        sizes = [width for name, width in widths.items() if name in self.weights]
        out = like.new_empty(len(stored), sum(sizes))
        parts = iter(out.split(sizes, dim=1))
        for i, (name, columns) in enumerate(index.header.slices().items()):
            if name in self.weights:
                part = next(parts)
                part.copy_(stored[:, columns])
                self._prepare(name, part, norms[:, i])
        return out

    def pieces(
        self, index: SignatureIndex, rows: slice, like: Tensor
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield the same a few rows at a time, and which of ``rows`` they are."""
        size = rows.stop - rows.start
        if like.device.type == "cpu":
            size = min(size, _AT_ONCE // index.header.width)
        for part in chunks(rows.stop - rows.start, size):
            some = slice(rows.start + part.start, rows.start + part.stop)
            yield part, self.vectors(index, some, like)

    def of_channels(self, channels: Mapping[str, Tensor]) -> Tensor:
        """Return the vectors of rows that are not in an index."""
        found = []
        for name, values in channels.items():
            if name in self.weights:
                norms, units = unit(values)
                self._prepare(name, units, norms)
                found.append(units)
        return torch.cat(found, dim=1)


def all_scores(
    queries: Tensor, index: SignatureIndex, similarity: Similarity, block: int
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the scores (q, m) of query vectors against blocks of rows."""
    for rows in chunks(len(index), block):
        scores = queries.new_empty(len(queries), rows.stop - rows.start)
        for part, vectors in similarity.pieces(index, rows, queries):
            scores[:, part] = queries @ vectors.T
        yield rows, scores


def best(
    queries: Tensor, index: SignatureIndex, similarity: Similarity, n: int, block: int
) -> tuple[Tensor, Tensor]:
    """Return the n largest scores (q, n) of each query, and their rows."""
    scores = queries.new_empty(len(queries), 0)
    found = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for rows, values in all_scores(queries, index, similarity, block):
        here = _first(values, n)
        scores = torch.cat([scores, values.gather(1, here)], 1)
        found = torch.cat([found, here + rows.start], 1)
        first = _first(scores, n)
        scores, found = scores.gather(1, first), found.gather(1, first)
    return scores, found


def _first(scores: Tensor, n: int) -> Tensor:
    """Return the places (q, n) of the n largest of each row, the earlier of equals.

    So equal scores keep the order of the rows, whatever the blocks are.
    """
    n = min(n, scores.shape[1])
    top, places = scores.topk(n, dim=1)
    if not n or bool(((scores >= top[:, -1:]).sum(dim=1) > n).any()):
        # equals on both sides of the cut: only a stable sort tells them apart
        return scores.argsort(dim=1, descending=True, stable=True)[:, :n]
    places = places.sort(dim=1).values
    order = scores.gather(1, places).argsort(dim=1, descending=True, stable=True)
    return places.gather(1, order)
