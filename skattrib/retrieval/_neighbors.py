"""Approximate search with faiss: lists of like vectors, and what they miss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from skattrib.engine._functional import chunks

if TYPE_CHECKING:
    from skattrib.retrieval._search import Search

#: Share of the true first rows that the lists are asked to find.
RECALL, _N_FIRST = 0.95, 10
_N_PROBES, _ROWS_PER_LIST = 256, 39  # of fewer rows, faiss warns that centres are poor
#: Rows found for each one wanted, to be ranked by their real scores.
_SPARE = 2


def check_faiss() -> None:
    """Raise ImportError, with the cure, unless faiss can be imported."""
    try:
        import faiss  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "algorithm='faiss' needs faiss: pip install skattrib[index]. "
            "algorithm='exact' does without."
        ) from error


class Neighbors:
    """Inverted lists over the vectors of an index, in half precision.

    As many lists are read for a query as it takes to find `RECALL` of the first ten
    rows, when rows of the index are the queries.

    Parameters
    ----------
    search : Search
        Has the vectors.
    seed : int
        Draws the rows that the lists are learnt from.
    verbose : int

    Attributes
    ----------
    recall : float
        Share that is found.
    n_rows : int
    """

    def __init__(self, search: Search, seed: int, verbose: int = 0) -> None:
        import faiss

        self.n_rows = search.n_rows
        n_lists = int(max(1, min(4 * self.n_rows**0.5, self.n_rows // _ROWS_PER_LIST)))
        drawn = np.random.default_rng(seed).permutation(self.n_rows)
        sample = np.sort(drawn[: _ROWS_PER_LIST * n_lists])
        vectors = search.vectors(sample)
        self._lists = faiss.index_factory(
            vectors.shape[1], f"IVF{n_lists},SQfp16", faiss.METRIC_INNER_PRODUCT
        )
        self._lists.train(_plain(vectors))
        parts = list(chunks(self.n_rows, search.block(0)))
        for part in tqdm(parts, desc="faiss lists", disable=not verbose):
            self._lists.add(_plain(search.vectors(np.arange(self.n_rows)[part])))
        self.recall = self._read_enough(search, np.sort(drawn[:_N_PROBES]))

    def _read_enough(self, search: Search, rows: NDArray[np.int64]) -> float:
        """Choose how many lists are read, and return the recall."""
        queries = search.vectors(rows)
        n = min(_N_FIRST, self.n_rows - 1) + 1  # each row finds itself
        true = search.exact(queries, n)[1].cpu().numpy()
        while True:
            found = self._candidates(queries, n)
            recall = overlap(true, found)
            if recall >= RECALL or self._lists.nprobe >= self._lists.nlist:
                return recall
            self._lists.nprobe = min(2 * self._lists.nprobe, self._lists.nlist)

    def _candidates(self, queries: Tensor, n: int) -> NDArray[np.int64]:
        return self._lists.search(_plain(queries), n)[1]

    def best(self, search: Search, queries: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Return the n largest scores (q, n) found, and their rows.

        Scores are those of the exact search. Where the lists that are read have not
        enough rows, it is searched exactly.
        """
        wanted = min(_SPARE * n, self.n_rows)
        found = self._candidates(queries, wanted)
        scores = queries.new_empty(len(queries), n)
        rows = torch.empty(len(queries), n, dtype=torch.int64, device=queries.device)
        for i, own in enumerate(found):
            own = np.sort(own[own >= 0])
            if len(own) < n:
                scores[i], rows[i] = (x[0] for x in search.exact(queries[[i]], n))
                continue
            values = search.vectors(own) @ queries[i] / search.n_sketches
            order = values.argsort(descending=True, stable=True)[:n]
            scores[i], rows[i] = values[order], torch.tensor(own).to(rows)[order]
        return scores, rows

    def __getstate__(self) -> dict[str, Any]:
        import faiss

        return {**vars(self), "_lists": faiss.serialize_index(self._lists)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        import faiss

        vars(self).update(state)
        self._lists = faiss.deserialize_index(state["_lists"])


def overlap(true: NDArray[np.int64], found: NDArray[np.int64]) -> float:
    """Return the mean share of rows (q, n) that are found."""
    pairs = zip(true, found, strict=True)
    return float(np.mean([np.isin(a, b).mean() for a, b in pairs]))


def _plain(vectors: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(vectors.cpu().numpy(), dtype=np.float32)
