"""Rows of an index compared with queries: scores, and the best of them.

What two signatures have in common, and how to go through an index for it a block at a
time, belongs here. What a signature is, and how an index is kept, is in `_index`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from skattrib.engine._functional import chunks
from skattrib.engine._index import SignatureIndex, unit


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

    def _prepared(self, name: str, units: Tensor, norms: Tensor) -> Tensor:
        weight = self.weights[name]
        center = self.centers.get(name)
        if center is not None:
            units = units * norms[:, None] - center.to(units)
            if self.cosine:
                units = unit(units)[1]
        elif not self.cosine:
            units = units * norms[:, None]
        if self.cosine:
            weight = weight / sum(w**2 for w in self.weights.values()) ** 0.5
        return weight * units

    def vectors(self, index: SignatureIndex, rows: slice, like: Tensor) -> Tensor:
        """Return vectors (m, width), as ``like`` is, whose products are the scores."""
        norms = torch.tensor(index.norms[rows]).to(like)
        found = [
            self._prepared(name, torch.tensor(units).to(like), norms[:, i])
            for i, (name, units) in enumerate(index.channels(rows).items())
            if name in self.weights
        ]
        return torch.cat(found, dim=1)

    def of_channels(self, channels: Mapping[str, Tensor]) -> Tensor:
        """Return the vectors of rows that are not in an index."""
        found = []
        for name, values in channels.items():
            if name in self.weights:
                norms, units = unit(values)
                found.append(self._prepared(name, units, norms))
        return torch.cat(found, dim=1)


def all_scores(
    queries: Tensor, index: SignatureIndex, similarity: Similarity, block: int
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the scores (q, m) of query vectors against blocks of rows."""
    for rows in chunks(len(index), block):
        yield rows, queries @ similarity.vectors(index, rows, queries).T


def best(
    queries: Tensor, index: SignatureIndex, similarity: Similarity, n: int, block: int
) -> tuple[Tensor, Tensor]:
    """Return the n largest scores (q, n) of each query, and their rows."""
    scores = queries.new_empty(len(queries), 0)
    found = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for rows, values in all_scores(queries, index, similarity, block):
        ids = torch.arange(rows.start, rows.stop, device=queries.device)
        ids = ids.expand(len(queries), -1)
        scores, found = torch.cat([scores, values], 1), torch.cat([found, ids], 1)
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
