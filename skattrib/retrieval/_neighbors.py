"""Approximate search with faiss: lists of similar vectors, and their recall.

All code that uses faiss is here. The vectors, and the exact search, are in `_search`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skattrib._progress import tqdm
from skattrib.engine._functional import chunks

# Share of the best rows to find, how many best rows, and how many queries are tried.
_RECALL, _N_FIRST, _N_PROBED = 0.95, 10, 256
# Number of copies of a row that may be skipped in search of other rows.
_N_COPIES = 54
# With fewer rows for each list, faiss warns of too few training points.
_ROWS_PER_LIST = 39
# Candidates for each row to return, ranked by their exact scores.
_SPARE = 2
# At most one row in this many may be missing in the lists.
_LATE = 50
# Largest number in half precision, approximately.
_HALF = 6e4
# Scores that differ by less, relative to the largest, are equal.
_ROUNDING = 1e-5


class _Vectors(Protocol):
    """The part of `Search` that is used here."""

    @property
    def n_rows(self) -> int: ...

    def row_vectors(
        self, rows: slice | NDArray[np.intp], like: Tensor | None = None
    ) -> Tensor: ...

    def block(self, n_queries: int) -> int: ...

    def exact(self, queries: Sequence[Tensor], n: int) -> tuple[Tensor, Tensor]: ...


def check_faiss() -> None:
    """Raise ImportError, with the cure, unless faiss can be imported."""
    try:
        importlib.import_module("faiss")
    except ImportError as error:
        raise ImportError(
            "algorithm='faiss' needs faiss: pip install 'skattrib[index]', or use "
            "algorithm='exact'."
        ) from error


class Neighbors:
    """Inverted lists over the vectors of an index, in half precision.

    For each query, so many lists are read that nearly all of the best ten rows are
    found when rows of the index are queries; copies of the queries do not count. Rows
    that were added to the index later may be missing in the lists, and are compared
    one by one.

    Parameters
    ----------
    search : Search
        Provides the vectors.
    n_sketches : int
    seed : int
        Draws the rows that train the lists, and those that are tried as queries.
    verbose : int

    Attributes
    ----------
    n_rows : int
        Number of rows in the lists, the first ones of the index.
    recall : float
        Share of the best rows that is found.
    """

    def __init__(
        self, search: _Vectors, n_sketches: int, seed: int, verbose: int = 0
    ) -> None:
        import faiss

        self._n_sketches, self._seed, self._verbose = n_sketches, seed, verbose
        n_rows = self._n_learnt = search.n_rows
        n_lists = int(max(1, min(4 * n_rows**0.5, n_rows // _ROWS_PER_LIST)))
        sample = search.row_vectors(self._drawn(n_rows, _ROWS_PER_LIST * n_lists))
        # half precision ends at 65504
        self._largest = float(sample.abs().max().clamp(min=torch.finfo().tiny))
        self._lists: Any = faiss.index_factory(
            sample.shape[1], f"IVF{n_lists},SQfp16", faiss.METRIC_INNER_PRODUCT
        )
        _train(self._lists, self._in_lists(sample))
        self.n_rows = 0
        self._add(search)

    def _drawn(self, n_rows: int, size: int) -> NDArray[np.intp]:
        return np.sort(np.random.default_rng(self._seed).permutation(n_rows)[:size])

    def _in_lists(self, rows: Tensor) -> NDArray[np.float32]:
        """Return vectors as the lists store them."""
        return _plain((rows / self._largest).clamp(-_HALF, _HALF))

    def _add(self, search: _Vectors) -> None:
        row_chunks = list(chunks(search.n_rows - self.n_rows, search.block(0)))
        for chunk in tqdm(row_chunks, desc="faiss lists", disable=not self._verbose):
            rows = slice(self.n_rows + chunk.start, self.n_rows + chunk.stop)
            self._lists.add(self._in_lists(search.row_vectors(rows)))
        self.n_rows = search.n_rows
        self.recall = self._read_enough(search)

    def reaches(self, n_rows: int) -> bool:
        """Return whether the lists lack at most a few of these rows."""
        return n_rows - self.n_rows <= self.n_rows // _LATE

    def extended(self, search: _Vectors) -> Neighbors:
        """Return lists that include the rows added to an index.

        Rows are added to copies of the lists once there are enough of them: copying,
        and measuring the recall, takes as long as a search by 256 queries.
        """
        import faiss

        if self.reaches(search.n_rows):
            return self
        if search.n_rows > 2 * self._n_learnt:
            return Neighbors(search, self._n_sketches, self._seed, self._verbose)
        out = object.__new__(Neighbors)
        vars(out).update(vars(self), _lists=faiss.clone_index(self._lists))
        out._add(search)
        return out

    def _read_enough(self, search: _Vectors) -> float:
        """Determine how many lists to read, and return the recall."""
        rows = search.row_vectors(self._drawn(self.n_rows, _N_PROBED))
        queries = list((rows * self._n_sketches**0.5).chunk(self._n_sketches, dim=1))
        own_scores = rows.square().sum(dim=1, keepdim=True)
        n_scores = min(_N_FIRST + _N_COPIES, self.n_rows)
        # a row always finds itself and its copies
        exact_scores = _without_copies(search.exact(queries, n_scores)[0], own_scores)[
            :, :_N_FIRST
        ]

        while True:
            list_scores = _without_copies(
                self._scores(search, queries, n_scores), own_scores
            )
            recall = _share_found(exact_scores, list_scores)
            if recall >= _RECALL or self._lists.nprobe >= self._lists.nlist:
                return recall
            self._lists.nprobe = min(2 * self._lists.nprobe, self._lists.nlist)

    def recall_of(self, search: _Vectors, queries: Sequence[Tensor]) -> float:
        """Return the share of the best rows for queries that is found."""
        n = min(_N_FIRST, self.n_rows)
        exact_scores = search.exact(queries, n)[0]
        return _share_found(exact_scores, self._scores(search, queries, n))

    def _candidates(self, queries: Sequence[Tensor], n: int) -> NDArray[np.intp]:
        """Return rows (q, m) that likely include the best n; -1 if there are fewer."""
        vectors = torch.cat(list(queries), dim=1)
        largest = vectors.abs().amax(dim=1, keepdim=True)
        vectors = vectors / torch.where(largest > 0, largest, 1.0)
        return self._lists.search(_plain(vectors), min(_SPARE * n, self.n_rows))[1]

    def _scored(
        self, search: _Vectors, queries: Sequence[Tensor], n: int
    ) -> Iterator[tuple[int, Tensor, NDArray[np.intp]]]:
        """Yield for each query the exact scores of its candidates, in order of rows."""
        vectors = torch.cat(list(queries), dim=1) / self._n_sketches**0.5
        later_rows = np.arange(self.n_rows, search.n_rows)
        later_scores = vectors @ search.row_vectors(later_rows, vectors).T
        for i, candidates in enumerate(self._candidates(queries, n)):
            candidates = np.sort(candidates[candidates >= 0])
            values = search.row_vectors(candidates, vectors) @ vectors[i]
            yield (
                i,
                torch.cat([values, later_scores[i]]),
                np.concatenate([candidates, later_rows]),
            )

    def _scores(self, search: _Vectors, queries: Sequence[Tensor], n: int) -> Tensor:
        """Return the exact scores (q, m) of candidates, largest first; then -inf."""
        m = min(_SPARE * n, self.n_rows) + search.n_rows - self.n_rows
        out = queries[0].new_full((len(queries[0]), m), -torch.inf)
        for i, values, _ in self._scored(search, queries, n):
            out[i, : len(values)] = values.sort(descending=True).values
        return out

    def best(
        self, search: _Vectors, queries: Sequence[Tensor], n: int
    ) -> tuple[Tensor, Tensor]:
        """Return the n largest scores (q, n) found, and their rows.

        Scores are exact. If the lists that are read have too few rows, the exact search
        is used.
        """
        like = queries[0]
        scores = like.new_empty(len(like), n)
        rows = torch.empty(len(like), n, dtype=torch.int64, device=like.device)
        for i, values, candidates in self._scored(search, queries, n):
            if len(candidates) < n:
                query = [vectors[i, None] for vectors in queries]
                scores[i], rows[i] = (exact[0] for exact in search.exact(query, n))
                continue
            order = values.argsort(descending=True, stable=True)[:n]
            scores[i], rows[i] = values[order], torch.tensor(candidates).to(rows)[order]
        return scores, rows

    def __getstate__(self) -> dict[str, Any]:
        import faiss

        return {**vars(self), "_lists": faiss.serialize_index(self._lists)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        check_faiss()
        import faiss

        vars(self).update(state, _lists=faiss.deserialize_index(state["_lists"]))


def _train(lists: Any, rows: NDArray[np.float32]) -> None:
    # of few rows there is one list, which needs no warning on standard error
    lists.cp.min_points_per_centroid = 1
    lists.train(rows)


def _without_copies(scores: Tensor, own_scores: Tensor) -> Tensor:
    """Return scores (q, m), largest first, without those of a query and its copies."""
    others = scores.masked_fill(scores >= own_scores * (1 - _ROUNDING), -torch.inf)
    return others.sort(dim=1, descending=True).values


def _share_found(exact_scores: Tensor, found_scores: Tensor) -> float:
    """Return the share of the largest scores (q, n) that are found, or 1 without any.

    Scores are compared, not rows: rows with equal scores are interchangeable.
    """
    least = exact_scores.masked_fill(exact_scores.isinf(), torch.inf).amin(
        dim=1, keepdim=True
    )
    size = exact_scores.masked_fill(exact_scores.isinf(), 0.0).abs().amax()
    n_true = (exact_scores > -torch.inf).sum(dim=1)
    n_found = (found_scores >= least - _ROUNDING * size).sum(dim=1).minimum(n_true)
    return int(n_found.sum()) / int(n_true.sum()) if n_true.any() else 1.0


def _plain(vectors: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(vectors.cpu().numpy(), dtype=np.float32)
