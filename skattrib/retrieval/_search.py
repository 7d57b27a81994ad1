"""Scores of queries against an index, in pieces that fit the memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from skattrib._validation import memory_cap
from skattrib.engine._functional import chunks
from skattrib.engine._index import SignatureIndex
from skattrib.engine._similarity import Similarity, all_scores, best

# Of the memory cap, what a block of rows or of queries may take: 1 / _SHARE.
_SHARE = 8


class Search:
    """What is asked of an index, by one similarity for each of its sketches.

    Query vectors are lists with a tensor (q, width) for each sketch.
    """

    def __init__(
        self, index: SignatureIndex, similarities: Sequence[Similarity]
    ) -> None:
        self._index, self._similarities = index, similarities

    def _block(self, n_queries: int) -> int:
        """Return how many rows of the index are held at a time."""
        numbers = self._index.header.width + n_queries
        return max(1, int(memory_cap() / (_SHARE * 8 * numbers)))

    def parts(self, n_queries: int, n_kept: int) -> Iterator[slice]:
        """Yield queries to ask together, with as many scores kept for each."""
        if len(self._similarities) > 1:
            n_kept = len(self._similarities) * len(self._index)
        numbers = self._index.header.width + n_kept
        return chunks(n_queries, int(memory_cap() / (_SHARE * 8 * numbers)))

    def scores(self, queries: Sequence[Tensor]) -> Tensor:
        """Return scores (n_sketches, q, n_rows)."""
        found = []
        for vectors, similarity in zip(queries, self._similarities, strict=True):
            block = self._block(len(vectors))
            blocks = all_scores(vectors, self._index, similarity, block)
            found.append(torch.cat([scores for _, scores in blocks], dim=1))
        return torch.stack(found)

    def best(self, queries: Sequence[Tensor], n: int) -> tuple[Tensor, Tensor]:
        """Return the n largest mean scores (q, n), and their rows."""
        if len(self._similarities) == 1:
            block = self._block(len(queries[0]))
            return best(queries[0], self._index, self._similarities[0], n, block)
        scores = self.scores(queries).mean(dim=0)
        order = scores.argsort(dim=1, descending=True, stable=True)[:, :n]
        return scores.gather(1, order), order

    def means(self, queries: Sequence[Tensor]) -> Tensor:
        """Return the mean scores (q,) over sketches and rows."""
        total = queries[0].new_zeros(len(queries[0]))
        for vectors, similarity in zip(queries, self._similarities, strict=True):
            middle = vectors.new_zeros(vectors.shape[1])
            for rows in chunks(len(self._index), self._block(0)):
                for _, piece in similarity.pieces(self._index, rows, vectors):
                    middle += piece.sum(dim=0)
            total += vectors @ (middle / len(self._index))
        return total / len(self._similarities)
