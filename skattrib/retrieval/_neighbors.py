"""Approximate search with faiss: lists of like vectors, and what they miss.

Everything that knows faiss is here. Which vectors are compared, and the exact search,
are in `_search`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from skattrib.engine._functional import chunks

# Share of the first rows that is to be found, of how many, and at how many rows.
_RECALL, _N_FIRST, _N_PROBED = 0.95, 10, 256
# Of fewer rows for each list, faiss warns that they are learnt from too few.
_ROWS_PER_LIST = 39
# Rows looked at for each one wanted: ranked by their real scores.
_SPARE = 2


class _Vectors(Protocol):
    """What is asked of `Search`."""

    @property
    def n_rows(self) -> int: ...

    def row_vectors(self, rows: slice | NDArray[np.intp]) -> Tensor: ...

    def block(self, n_queries: int) -> int: ...

    def exact(self, queries: Sequence[Tensor], n: int) -> tuple[Tensor, Tensor]: ...


def check_faiss() -> None:
    """Raise ImportError, with the cure, unless faiss can be imported."""
    try:
        import faiss  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "algorithm='faiss' needs faiss: pip install 'skattrib[index]'. "
            "algorithm='exact' does without."
        ) from error


class Neighbors:
    """Inverted lists over the vectors of an index, in half precision.

    As many lists are read for a query as it takes to find nearly all of the first ten
    rows where rows of the index are the queries.

    Parameters
    ----------
    search : Search
        Has the vectors.
    n_sketches : int
    seed : int
        Draws the rows that the lists are learnt from.
    verbose : int

    Attributes
    ----------
    n_rows : int
        In the lists.
    recall : float
        Share of the first rows that is found.
    """

    def __init__(
        self, search: _Vectors, n_sketches: int, seed: int, verbose: int = 0
    ) -> None:
        import faiss

        self._n_sketches = n_sketches
        n_rows = search.n_rows
        n_lists = int(max(1, min(4 * n_rows**0.5, n_rows // _ROWS_PER_LIST)))
        drawn = np.random.default_rng(seed).permutation(n_rows)
        sample = search.row_vectors(np.sort(drawn[: _ROWS_PER_LIST * n_lists]))
        self._lists: Any = faiss.index_factory(
            sample.shape[1], f"IVF{n_lists},SQfp16", faiss.METRIC_INNER_PRODUCT
        )
        self._lists.train(_plain(sample))
        self.n_rows = 0
        self._add(search, verbose)
        self.recall = self._read_enough(search, np.sort(drawn[:_N_PROBED]))

    def _add(self, search: _Vectors, verbose: int) -> None:
        parts = list(chunks(search.n_rows - self.n_rows, search.block(0)))
        for part in tqdm(parts, desc="faiss lists", disable=not verbose):
            rows = slice(self.n_rows + part.start, self.n_rows + part.stop)
            self._lists.add(_plain(search.row_vectors(rows)))
        self.n_rows = search.n_rows

    def extended(self, search: _Vectors, verbose: int = 0) -> Neighbors:
        """Return the same with the rows that an index has gained."""
        import faiss

        out = object.__new__(Neighbors)
        vars(out).update(vars(self), _lists=faiss.clone_index(self._lists))
        out._add(search, verbose)
        return out

    def _read_enough(self, search: _Vectors, rows: NDArray[np.intp]) -> float:
        """Choose how many lists are read, and return the recall."""
        queries = self._queries(search.row_vectors(rows))
        true = self._true(search, queries)
        while True:
            recall = self._recall(queries, true)
            if recall >= _RECALL or self._lists.nprobe >= self._lists.nlist:
                return recall
            self._lists.nprobe = min(2 * self._lists.nprobe, self._lists.nlist)

    def _queries(self, rows: Tensor) -> list[Tensor]:
        """Return rows as queries: a part for each sketch."""
        return list((rows * self._n_sketches**0.5).chunk(self._n_sketches, dim=1))

    def recall_of(self, search: _Vectors, queries: Sequence[Tensor]) -> float:
        """Return the share of the first rows of queries that is found."""
        return self._recall(queries, self._true(search, queries))

    def _true(self, search: _Vectors, queries: Sequence[Tensor]) -> NDArray[np.intp]:
        return search.exact(queries, min(_N_FIRST, self.n_rows))[1].cpu().numpy()

    def _recall(self, queries: Sequence[Tensor], true: NDArray[np.intp]) -> float:
        found = self._candidates(queries, true.shape[1])
        pairs = zip(true, found, strict=True)
        return float(np.mean([np.isin(a, b).mean() for a, b in pairs]))

    def _candidates(self, queries: Sequence[Tensor], n: int) -> NDArray[np.intp]:
        """Return rows (q, m), probably with the best n; -1 where there are no more."""
        wanted = min(_SPARE * n, self.n_rows)
        return self._lists.search(_plain(torch.cat(list(queries), dim=1)), wanted)[1]

    def best(
        self, search: _Vectors, queries: Sequence[Tensor], n: int
    ) -> tuple[Tensor, Tensor]:
        """Return the n largest scores (q, n) found, and their rows.

        Scores are those of the exact search, which takes over where the lists that
        are read have too few rows.
        """
        like, together = queries[0], torch.cat(list(queries), dim=1)
        together = together / self._n_sketches**0.5
        scores = like.new_empty(len(like), n)
        rows = torch.empty(len(like), n, dtype=torch.int64, device=like.device)
        for i, own in enumerate(self._candidates(queries, n)):
            own = np.sort(own[own >= 0])
            if len(own) < n:
                one = [part[i, None] for part in queries]
                scores[i], rows[i] = (found[0] for found in search.exact(one, n))
                continue
            values = search.row_vectors(own).to(like) @ together[i]
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


def _plain(vectors: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(vectors.cpu().numpy(), dtype=np.float32)
