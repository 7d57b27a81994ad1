"""Approximate search with faiss: lists of like vectors, and what they miss.

Everything that knows faiss is here. Which vectors are compared, and the exact search,
are in `_search`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from skattrib.engine._functional import chunks

# Share of the first rows that is to be found, of how many, and at how many rows.
_RECALL, _N_FIRST, _N_PROBED = 0.95, 10, 256
# Copies of a row that are looked through for others.
_N_COPIES = 54
# Of fewer rows for each list, faiss warns that they are learnt from too few.
_ROWS_PER_LIST = 39
# Rows looked at for each one wanted: ranked by their real scores.
_SPARE = 2
# Rows that are not in the lists, of those that are: one in so many.
_LATE = 50
# What halves can hold.
_HALF = 6e4
# Relative to the largest: scores that differ by less are equal.
_ROUNDING = 1e-5


class _Vectors(Protocol):
    """What is asked of `Search`."""

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
            "algorithm='faiss' needs faiss: pip install 'skattrib[index]'. "
            "algorithm='exact' does without."
        ) from error


class Neighbors:
    """Inverted lists over the vectors of an index, in half precision.

    As many lists are read for a query as it takes to find nearly all of the first ten
    rows where rows of the index, other than the queries and copies of them, are asked.
    A few rows that the index has gained since are not in the lists, and all compared.

    Parameters
    ----------
    search : Search
        Has the vectors.
    n_sketches : int
    seed : int
        Draws the rows that the lists are learnt from, and those that are asked.
    verbose : int

    Attributes
    ----------
    n_rows : int
        In the lists: the first ones of the index.
    recall : float
        Share of the first rows that is found.
    """

    def __init__(
        self, search: _Vectors, n_sketches: int, seed: int, verbose: int = 0
    ) -> None:
        import faiss

        self._n_sketches, self._seed, self._verbose = n_sketches, seed, verbose
        n_rows = self._n_learnt = search.n_rows
        n_lists = int(max(1, min(4 * n_rows**0.5, n_rows // _ROWS_PER_LIST)))
        sample = search.row_vectors(self._drawn(n_rows, _ROWS_PER_LIST * n_lists))
        # halves end at 65504
        self._largest = float(sample.abs().max().clamp(min=torch.finfo().tiny))
        self._lists: Any = faiss.index_factory(
            sample.shape[1], f"IVF{n_lists},SQfp16", faiss.METRIC_INNER_PRODUCT
        )
        self._lists.train(self._in_lists(sample))
        self.n_rows = 0
        self._add(search)

    def _drawn(self, n_rows: int, size: int) -> NDArray[np.intp]:
        return np.sort(np.random.default_rng(self._seed).permutation(n_rows)[:size])

    def _in_lists(self, rows: Tensor) -> NDArray[np.float32]:
        """Return vectors as the lists keep them."""
        return _plain((rows / self._largest).clamp(-_HALF, _HALF))

    def _add(self, search: _Vectors) -> None:
        parts = list(chunks(search.n_rows - self.n_rows, search.block(0)))
        for part in tqdm(parts, desc="faiss lists", disable=not self._verbose):
            rows = slice(self.n_rows + part.start, self.n_rows + part.stop)
            self._lists.add(self._in_lists(search.row_vectors(rows)))
        self.n_rows = search.n_rows
        self.recall = self._read_enough(search)

    def reaches(self, n_rows: int) -> bool:
        """Return whether so few of these rows are not in the lists that it is fine."""
        return n_rows - self.n_rows <= self.n_rows // _LATE

    def extended(self, search: _Vectors) -> Neighbors:
        """Return the same with the rows that an index has gained.

        Rows are put into copies of the lists once there are enough of them: copying,
        and measuring the recall, takes the time of a search by 256 queries.
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
        """Choose how many lists are read, and return the recall."""
        rows = search.row_vectors(self._drawn(self.n_rows, _N_PROBED))
        queries = list((rows * self._n_sketches**0.5).chunk(self._n_sketches, dim=1))
        own = rows.square().sum(dim=1, keepdim=True)
        wanted = min(_N_FIRST + _N_COPIES, self.n_rows)
        # a row finds itself in any list, and its copies there
        true = _others(search.exact(queries, wanted)[0], own)[:, :_N_FIRST]
        while True:
            found = _others(self._scores(search, queries, wanted), own)
            recall = _share_found(true, found)
            if recall >= _RECALL or self._lists.nprobe >= self._lists.nlist:
                return recall
            self._lists.nprobe = min(2 * self._lists.nprobe, self._lists.nlist)

    def recall_of(self, search: _Vectors, queries: Sequence[Tensor]) -> float:
        """Return the share of the first rows of queries that is found."""
        n = min(_N_FIRST, self.n_rows)
        true = search.exact(queries, n)[0]
        return _share_found(true, self._scores(search, queries, n))

    def _candidates(self, queries: Sequence[Tensor], n: int) -> NDArray[np.intp]:
        """Return rows (q, m), probably with the best n; -1 where there are no more."""
        together = torch.cat(list(queries), dim=1)
        largest = together.abs().amax(dim=1, keepdim=True)
        together = together / torch.where(largest > 0, largest, 1.0)
        return self._lists.search(_plain(together), min(_SPARE * n, self.n_rows))[1]

    def _scored(
        self, search: _Vectors, queries: Sequence[Tensor], n: int
    ) -> Iterator[tuple[int, Tensor, NDArray[np.intp]]]:
        """Yield for each query the real scores of its candidates, in order of rows."""
        together = torch.cat(list(queries), dim=1) / self._n_sketches**0.5
        late = np.arange(self.n_rows, search.n_rows)
        others = together @ search.row_vectors(late, together).T
        for i, own in enumerate(self._candidates(queries, n)):
            own = np.sort(own[own >= 0])
            values = search.row_vectors(own, together) @ together[i]
            yield i, torch.cat([values, others[i]]), np.concatenate([own, late])

    def _scores(self, search: _Vectors, queries: Sequence[Tensor], n: int) -> Tensor:
        """Return the real scores (q, m) of candidates, largest first; then -inf."""
        m = min(_SPARE * n, self.n_rows) + search.n_rows - self.n_rows
        out = queries[0].new_full((len(queries[0]), m), -torch.inf)
        for i, values, _ in self._scored(search, queries, n):
            out[i, : len(values)] = values.sort(descending=True).values
        return out

    def best(
        self, search: _Vectors, queries: Sequence[Tensor], n: int
    ) -> tuple[Tensor, Tensor]:
        """Return the n largest scores (q, n) found, and their rows.

        Scores are those of the exact search, which takes over where the lists that
        are read have too few rows.
        """
        like = queries[0]
        scores = like.new_empty(len(like), n)
        rows = torch.empty(len(like), n, dtype=torch.int64, device=like.device)
        for i, values, own in self._scored(search, queries, n):
            if len(own) < n:
                one = [part[i, None] for part in queries]
                scores[i], rows[i] = (found[0] for found in search.exact(one, n))
                continue
            order = values.argsort(descending=True, stable=True)[:n]
            scores[i], rows[i] = values[order], torch.tensor(own).to(rows)[order]
        return scores, rows

    def __getstate__(self) -> dict[str, Any]:
        import faiss

        return {**vars(self), "_lists": faiss.serialize_index(self._lists)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        check_faiss()
        import faiss

        vars(self).update(state, _lists=faiss.deserialize_index(state["_lists"]))


def _others(scores: Tensor, own: Tensor) -> Tensor:
    """Return scores (q, m), largest first, without a query's own and its copies'."""
    others = scores.masked_fill(scores >= own * (1 - _ROUNDING), -torch.inf)
    return others.sort(dim=1, descending=True).values


def _share_found(true: Tensor, found: Tensor) -> float:
    """Return the share of the largest scores (q, n) that are reached; 1 of none.

    Scores, not rows: of equal ones it does not matter which are found.
    """
    least = true.masked_fill(true.isinf(), torch.inf).amin(dim=1, keepdim=True)
    size = true.masked_fill(true.isinf(), 0.0).abs().amax()
    n_true = (true > -torch.inf).sum(dim=1)
    n_found = (found >= least - _ROUNDING * size).sum(dim=1).minimum(n_true)
    return int(n_found.sum()) / int(n_true.sum()) if n_true.any() else 1.0


def _plain(vectors: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(vectors.cpu().numpy(), dtype=np.float32)
