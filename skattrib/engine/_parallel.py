"""Calls spread over joblib's workers, here or on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from joblib import Parallel, delayed, effective_n_jobs

from skattrib.engine._functional import chunks


def call_all(
    function: Callable[..., Any],
    arguments: Iterable[tuple[Any, ...]],
    n_jobs: int | None,
    **options: Any,
) -> list[Any]:
    """Return ``function(*args)`` for every tuple of arguments, in their order.

    Each task carries its data. joblib's backend for dask would place a large argument
    on one worker of the cluster, and fail if that worker dies. It does not do so with
    arguments in a tuple, so that another worker can repeat the task.
    """
    return list(
        Parallel(n_jobs=n_jobs, **options)(
            delayed(_call)(function, args) for args in arguments
        )
    )


def batches(n: int, size: int, n_jobs: int | None) -> list[slice]:
    """Cut n rows into batches of at most ``size``, at least one for each worker."""
    return list(chunks(n, min(size, -(-n // effective_n_jobs(n_jobs)))))


def call_each(
    function: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    n_jobs: int | None,
    **options: Any,
) -> Iterator[Any]:
    """Yield the results of `call_all`, of as many calls at a time as workers."""
    for batch in chunks(len(arguments), effective_n_jobs(n_jobs)):
        yield from call_all(function, arguments[batch], n_jobs, **options)


def _call(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    return function(*args)
