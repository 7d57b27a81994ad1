"""Scores of queries against an index, in pieces that fit the memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skattrib._validation import memory_cap
from skattrib.engine._functional import chunks
from skattrib.engine._index import SignatureIndex
from skattrib.engine._losses import OutcomeFunction
from skattrib.engine._similarity import Similarity, all_scores, best
from skattrib.retrieval._neighbors import Neighbors
from skattrib.retrieval._signatures import Signer

# Of the memory cap, what a block of rows or of queries may take: 1 / _SHARE.
_SHARE = 8


def similarities(
    index: SignatureIndex, weights: Mapping[str, float], settings: Mapping[str, Any]
) -> list[Similarity]:
    """Return how signatures are compared, for each sketch of the index."""
    return [
        Similarity(
            {f"{name}/{k}": w for name, w in weights.items()},
            bool(settings["normalize"]),
            _centers(index, f"h/{k}"),
        )
        for k in range(settings["n_sketches"])
    ]


def _centers(index: SignatureIndex, channel: str) -> dict[str, Tensor]:
    """Return the mean of a channel of hidden states over the index."""
    if channel not in index.header.widths:
        return {}
    column = list(index.header.widths).index(channel)
    total = np.zeros(index.header.widths[channel])
    size = int(memory_cap() / (8 * index.header.width))
    for rows in chunks(len(index), size):
        units = index.channels(rows)[channel].astype(np.float64)
        total += (units * index.norms[rows][:, column, None]).sum(axis=0)
    return {channel: torch.tensor(total / len(index))}


class Search:
    """What is asked of an index: by rows X, y and the outcome to search by.

    Parameters
    ----------
    signer : Signer
        With the hash tables of the index.
    index : SignatureIndex
    similarities : list of Similarity
        One for each sketch.
    neighbors : Neighbors or None
        Who looks for the best rows; None compares them all.
    """

    def __init__(
        self,
        signer: Signer,
        index: SignatureIndex,
        similarities: Sequence[Similarity],
        neighbors: Neighbors | None = None,
    ) -> None:
        self._signer, self._index, self.similarities = signer, index, similarities
        # it is of the rows that there were when it was made
        old = neighbors is not None and not neighbors.reaches(len(index))
        self._neighbors = None if old else neighbors

    def signed(
        self, X: Any, y: Any, outcome: str | OutcomeFunction
    ) -> tuple[list[Tensor], Tensor]:
        """Sign queries.

        Returns
        -------
        vectors : list of Tensor (q, width)
            For each sketch, compared by inner products.
        norms : Tensor
            Of residuals.
        """
        found, norms = [], []
        for part in chunks(len(X), self._signer.batch_size()):
            channels, own = self._signer(X[part], y[part], outcome)
            found.append([s.of_channels(channels) for s in self.similarities])
            norms.append(own)
        return [torch.cat(parts) for parts in zip(*found, strict=True)], torch.cat(
            norms
        )

    def _vectors(self, X: Any, y: Any, outcome: str | OutcomeFunction) -> list[Tensor]:
        return self.signed(X, y, outcome)[0]

    @property
    def n_rows(self) -> int:
        return len(self._index)

    def row_vectors(
        self, rows: slice | NDArray[np.intp], like: Tensor | None = None
    ) -> Tensor:
        """Return the vectors of some rows, those of all sketches side by side."""
        if like is None:
            device = self._signer.head.weight.device
            like = torch.empty(0, dtype=torch.float32, device=device)
        found = [s.vectors(self._index, rows, like) for s in self.similarities]
        return torch.cat(found, dim=1) / len(self.similarities) ** 0.5

    def block(self, n_queries: int) -> int:
        """Return how many rows of the index are held at a time."""
        numbers = self._index.header.width + n_queries
        return max(1, int(memory_cap() / (_SHARE * 8 * numbers)))

    def _parts(self, n_queries: int, n_kept: int) -> Iterator[slice]:
        """Yield queries to ask together, with as many scores kept for each."""
        if len(self.similarities) > 1:
            n_kept = len(self.similarities) * len(self._index)
        numbers = self._index.header.width + n_kept
        return chunks(n_queries, int(memory_cap() / (_SHARE * 8 * numbers)))

    def scores(
        self, X: Any, y: Any, outcome: str | OutcomeFunction
    ) -> NDArray[np.floating]:
        """Return scores (n_sketches, q, n_rows)."""
        return self.scores_of(self._vectors(X, y, outcome)).cpu().numpy()

    def scores_of(self, queries: Sequence[Tensor]) -> Tensor:
        """Return the same of queries that are signed."""
        found = []
        for vectors, similarity in zip(queries, self.similarities, strict=True):
            block = self.block(len(vectors))
            blocks = all_scores(vectors, self._index, similarity, block)
            found.append(torch.cat([scores for _, scores in blocks], dim=1))
        return torch.stack(found)

    def best(
        self, X: Any, y: Any, outcome: str | OutcomeFunction, n: int
    ) -> tuple[NDArray[np.floating], NDArray[np.intp]]:
        """Return the n largest mean scores (q, n), and their rows."""
        found = [
            self.nearest(self._vectors(X[part], y[part], outcome), n)
            for part in self._parts(len(X), n)
        ]
        scores, rows = (torch.cat(parts) for parts in zip(*found, strict=True))
        return scores.cpu().numpy(), rows.cpu().numpy()

    def recall(self, queries: Sequence[Tensor]) -> float | None:
        """Return the share of the first rows of queries that the neighbors find."""
        if self._neighbors is None:
            return None
        return self._neighbors.recall_of(self, queries)

    def nearest(self, queries: Sequence[Tensor], n: int) -> tuple[Tensor, Tensor]:
        """Return the n largest mean scores (q, n) that are found, and their rows."""
        if self._neighbors is None:
            return self.exact(queries, n)
        return self._neighbors.best(self, queries, n)

    def exact(self, queries: Sequence[Tensor], n: int) -> tuple[Tensor, Tensor]:
        """Return the same of all rows."""
        parts = [
            self._exact([own[part] for own in queries], n)
            for part in self._parts(len(queries[0]), n)
        ]
        scores, rows = (torch.cat(found) for found in zip(*parts, strict=True))
        return scores, rows

    def _exact(self, queries: Sequence[Tensor], n: int) -> tuple[Tensor, Tensor]:
        if len(self.similarities) == 1:
            block = self.block(len(queries[0]))
            return best(queries[0], self._index, self.similarities[0], n, block)
        scores = self.scores_of(queries).mean(dim=0)
        order = scores.argsort(dim=1, descending=True, stable=True)[:, :n]
        return scores.gather(1, order), order

    def means(
        self, X: Any, y: Any, outcome: str | OutcomeFunction
    ) -> NDArray[np.floating]:
        """Return the mean scores (q,) over sketches and rows."""
        found = [
            self._means(self._vectors(X[part], y[part], outcome))
            for part in self._parts(len(X), 1)
        ]
        return torch.cat(found).cpu().numpy()

    def _means(self, queries: Sequence[Tensor]) -> Tensor:
        total = queries[0].new_zeros(len(queries[0]))
        for vectors, similarity in zip(queries, self.similarities, strict=True):
            middle = vectors.new_zeros(vectors.shape[1])
            for rows in chunks(len(self._index), self.block(0)):
                for _, piece in similarity.pieces(self._index, rows, vectors):
                    middle += piece.sum(dim=0)
            total += vectors @ (middle / len(self._index))
        return total / len(self.similarities)
