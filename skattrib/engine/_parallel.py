"""Calls spread over joblib's workers, here or on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from joblib import Parallel, delayed


def call_all(
    function: Callable[..., Any],
    arguments: Iterable[tuple[Any, ...]],
    n_jobs: int | None,
    **options: Any,
) -> list[Any]:
    """Return ``function(*args)`` for every tuple of arguments, in their order.

    Each task carries its data. joblib's backend for dask would place a large argument
    on one worker of the cluster, and fail if that worker dies; arguments in a tuple it
    leaves alone, so that another worker can do the task again.
    """
    return list(
        Parallel(n_jobs=n_jobs, **options)(
            delayed(_call)(function, args) for args in arguments
        )
    )


def _call(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    return function(*args)
