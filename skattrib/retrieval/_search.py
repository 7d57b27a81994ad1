"""Scores of queries against an index, in blocks that fit the memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

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

# A block of rows or of queries may take 1 / _SHARE of the memory cap.
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
    """Searches of an index by queries X, y and an outcome.

    Parameters
    ----------
    signer : Signer
        It must have the hash tables of the index.
    index : SignatureIndex
    similarities : list of Similarity
        One for each sketch.
    neighbors : Neighbors or None
        Approximate search of the best rows; None compares all rows.
    """

    def __init__(
        self,
        signer: Signer,
        index: SignatureIndex,
        similarities: Sequence[Similarity],
        neighbors: Neighbors | None = None,
    ) -> None:
        self._signer, self._index, self.similarities = signer, index, similarities
        # it has the rows that existed when it was made
        is_outdated = neighbors is not None and not neighbors.reaches(len(index))
        self._neighbors = None if is_outdated else neighbors

    def signed(
        self, X: Any, y: Any, outcome: str | OutcomeFunction
    ) -> tuple[list[Tensor], Tensor]:
        """Return the signatures of queries.

        Returns
        -------
        vectors : list of Tensor (q, width)
            One for each sketch, to be compared by inner products.
        norms : Tensor
            Norms of residuals.
        """
        vectors = []
        norms = []
        for chunk in chunks(len(X), self._signer.batch_size()):
            channels, chunk_norms = self._signer(X[chunk], y[chunk], outcome)
            vectors.append([s.of_channels(channels) for s in self.similarities])
            norms.append(chunk_norms)
        return [
            torch.cat(chunk_vectors) for chunk_vectors in zip(*vectors, strict=True)
        ], torch.cat(norms)

    def _vectors(self, X: Any, y: Any, outcome: str | OutcomeFunction) -> list[Tensor]:
        return self.signed(X, y, outcome)[0]

    @property
    def n_rows(self) -> int:
        return len(self._index)

    def row_vectors(
        self, rows: slice | NDArray[np.intp], like: Tensor | None = None
    ) -> Tensor:
        """Return the vectors of some rows, concatenated over sketches."""
        if like is None:
            device = self._signer.head.weight.device
            like = torch.empty(0, dtype=torch.float32, device=device)
        vectors = [s.vectors(self._index, rows, like) for s in self.similarities]
        return torch.cat(vectors, dim=1) / len(self.similarities) ** 0.5

    def block(self, n_queries: int) -> int:
        """Return how many rows of the index to process at a time."""
        numbers = self._index.header.width + n_queries
        return max(1, int(memory_cap() / (_SHARE * 8 * numbers)))

    def _query_chunks(self, n_queries: int, n_kept: int) -> Iterator[slice]:
        """Yield slices of queries to process together, with ``n_kept`` scores each."""
        if len(self.similarities) > 1:
            n_kept = len(self.similarities) * len(self._index)
        numbers = self._index.header.width + n_kept
        return chunks(n_queries, int(memory_cap() / (_SHARE * 8 * numbers)))

    def scores(
        self, X: Any, y: Any, outcome: str | OutcomeFunction
    ) -> NDArray[np.floating]:
        """Return scores (n_sketches, q, n_rows)."""
        return self.scores_of(self._vectors(X, y, outcome)).cpu().numpy()

    def mean_scores(
        self, X: Any, y: Any, outcome: str | OutcomeFunction
    ) -> NDArray[np.floating]:
        """Return the mean scores (n_sketches, 1, n_rows) over queries."""
        totals: list[Tensor | float] = [0.0] * len(self.similarities)
        for chunk in self._query_chunks(len(X), 1):
            vectors = self._vectors(X[chunk], y[chunk], outcome)
            for k, of_sketch in enumerate(vectors):
                totals[k] += of_sketch.sum(dim=0, keepdim=True)
        means = [cast(Tensor, total) / len(X) for total in totals]
        return self.scores_of(means).cpu().numpy()

    def scores_of(self, queries: Sequence[Tensor]) -> Tensor:
        """Return scores (n_sketches, q, n_rows) of the signatures of queries."""
        scores_by_sketch = []
        for vectors, similarity in zip(queries, self.similarities, strict=True):
            block = self.block(len(vectors))
            blocks = all_scores(vectors, self._index, similarity, block)
            scores_by_sketch.append(
                torch.cat([block_scores for _, block_scores in blocks], dim=1)
            )
        return torch.stack(scores_by_sketch)

    def best(
        self, X: Any, y: Any, outcome: str | OutcomeFunction, n: int
    ) -> tuple[NDArray[np.floating], NDArray[np.intp]]:
        """Return the n largest mean scores (q, n), and their rows."""
        chunk_results = [
            self.nearest(self._vectors(X[chunk], y[chunk], outcome), n)
            for chunk in self._query_chunks(len(X), n)
        ]
        scores, rows = (
            torch.cat(arrays) for arrays in zip(*chunk_results, strict=True)
        )
        return scores.cpu().numpy(), rows.cpu().numpy()

    def recall(self, queries: Sequence[Tensor]) -> float | None:
        """Return the share of the best rows for queries that the neighbors find."""
        if self._neighbors is None:
            return None
        return self._neighbors.recall_of(self, queries)

    def nearest(self, queries: Sequence[Tensor], n: int) -> tuple[Tensor, Tensor]:
        """Return the n largest mean scores (q, n), maybe approximately, and rows."""
        if self._neighbors is None:
            return self.exact(queries, n)
        return self._neighbors.best(self, queries, n)

    def exact(self, queries: Sequence[Tensor], n: int) -> tuple[Tensor, Tensor]:
        """Return the n largest mean scores (q, n) of all rows, and their rows."""
        chunk_results = [
            self._exact([vectors[chunk] for vectors in queries], n)
            for chunk in self._query_chunks(len(queries[0]), n)
        ]
        scores, rows = (
            torch.cat(arrays) for arrays in zip(*chunk_results, strict=True)
        )
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
        chunk_means = [
            self._means(self._vectors(X[chunk], y[chunk], outcome))
            for chunk in self._query_chunks(len(X), 1)
        ]
        return torch.cat(chunk_means).cpu().numpy()

    def own_scores(
        self, X: Any, y: Any, outcome: str | OutcomeFunction
    ) -> NDArray[np.floating]:
        """Return the mean score (q,) of each query with the row at its own position."""
        own = []
        for chunk in self._query_chunks(len(X), 1):
            queries = self._vectors(X[chunk], y[chunk], outcome)
            each_sketch = [
                (vectors * similarity.vectors(self._index, chunk, vectors)).sum(dim=1)
                for vectors, similarity in zip(queries, self.similarities, strict=True)
            ]
            own.append(torch.stack(each_sketch).mean(dim=0))
        return torch.cat(own).cpu().numpy()

    def scores_of_new(
        self,
        new_rows: tuple[Any, Any],
        queries: tuple[Any, Any],
        outcome: str | OutcomeFunction,
    ) -> NDArray[np.floating]:
        """Return the mean scores (n_new,) of rows like those of the index."""
        X, y = queries
        means: list[Any] = [0.0] * len(self.similarities)
        for chunk in self._query_chunks(len(X), 1):
            vectors = self._vectors(X[chunk], y[chunk], outcome)
            sums = [of_sketch.sum(dim=0) for of_sketch in vectors]
            means = [a + b / len(X) for a, b in zip(means, sums, strict=True)]
        X, y = new_rows
        found = []
        for chunk in self._query_chunks(len(X), 1):
            rows = self._vectors(X[chunk], y[chunk], "log_likelihood")
            scores = [a @ b for a, b in zip(rows, means, strict=True)]
            found.append(torch.stack(scores).mean(dim=0))
        return torch.cat(found).cpu().numpy()

    def _means(self, queries: Sequence[Tensor]) -> Tensor:
        total = queries[0].new_zeros(len(queries[0]))
        for vectors, similarity in zip(queries, self.similarities, strict=True):
            mean_vector = vectors.new_zeros(vectors.shape[1])
            for rows in chunks(len(self._index), self.block(0)):
                for _, row_vectors in similarity.pieces(self._index, rows, vectors):
                    mean_vector += row_vectors.sum(dim=0)
            total += vectors @ (mean_vector / len(self._index))
        return total / len(self.similarities)
