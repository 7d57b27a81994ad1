"""Answers to queries that are kept: the last one at hand, and by `memory` on disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray
from sklearn.utils import _safe_indexing

from skattrib._validation import memory_cap
from skattrib.models._kept_models import CHUNK
from skattrib.models._memory import as_memory, cached_rows, digest

# An answer may take 1 / _SHARE of the memory cap.
_SHARE = 4

Arrays = Sequence[NDArray[Any] | None]


class LastAnswer:
    """The arrays that answered the last question, for when it is asked again.

    A pickle holds none.
    """

    def __init__(self) -> None:
        self.__setstate__({})

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._lock, self._key = Lock(), ""
        self._arrays: Arrays = ()

    def __call__(self, question: Sequence[Any], compute: Callable[[], Arrays]) -> Any:
        """Return copies of the arrays that were computed for an equal question.

        What cannot be told from other questions, such as a function that cannot be
        pickled, is computed again.
        """
        try:
            key = digest(*question)
        except ValueError:
            return compute()
        with self._lock:
            found, known = key == self._key, self._arrays
        if not found:
            known = compute()
            n_bytes = sum(array.nbytes for array in known if array is not None)
            if n_bytes <= memory_cap() / _SHARE:
                with self._lock:
                    self._key, self._arrays = key, tuple(known)
        return tuple(None if array is None else array.copy() for array in known)


def answered_by_query(
    memory: str | os.PathLike[str] | joblib.Memory | None,
    key: Sequence[Any],
    queries: tuple[Any, NDArray[Any]],
    compute: Callable[[Any, NDArray[Any]], NDArray[Any]],
    bytes_per_query: float,
) -> NDArray[Any]:
    """Return ``compute(X, y)``, a row for each query, from disk where they are known.

    Queries are answered a few at a time, so that a kill loses no more than these.

    Parameters
    ----------
    memory : str, joblib.Memory or None
    key : sequence
        What the answers depend on, besides the query.
    queries : tuple of X, y
    compute : callable
        Takes some of the queries.
    bytes_per_query : float
        Of an answer.

    Raises
    ------
    OSError
        If the disk has no room for the answers, before any is computed.
    """
    X, y = queries
    cache = as_memory(memory)
    if cache is None:
        return compute(X, y)
    check_room(cache, len(y) * bytes_per_query)
    names = [joblib.hash((_safe_indexing(X, [i]), y[i])) for i in range(len(y))]
    places = {name: i for i, name in enumerate(names)}

    def answer(asked: NDArray[Any]) -> NDArray[Any]:
        rows = np.array([places[name] for name in asked[:, 0]])
        return compute(_safe_indexing(X, rows), y[rows])

    asked = np.array(names)[:, None]
    return np.array(cached_rows(cache, digest(*key), asked, answer, CHUNK))


def check_room(memory: joblib.Memory, n_bytes: float) -> None:
    """Raise OSError if the disk of a cache has no room for so many bytes."""
    folder = os.path.abspath(getattr(memory, "location", None) or ".")
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise OSError(
            f"memory={memory.location!r} has {free / 2**20:.0f} MiB left on its disk, "
            f"and the answers take up to {n_bytes / 2**20:.0f} MiB. Ask fewer queries, "
            "use attribute(reduce='mean'), another folder, or memory=None."
        )
