"""Outcomes of single weightings, remembered by joblib under a key of our own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import joblib
import numpy as np
import scipy
import sklearn
import torch
from numpy.typing import NDArray
from torch import nn


def as_memory(memory: str | joblib.Memory | None) -> joblib.Memory | None:
    """Turn a path into a joblib.Memory; None stays None."""
    if memory is None or hasattr(memory, "cache"):
        return memory
    return joblib.Memory(memory, verbose=0)


def digest(*parts: Any) -> str:
    """Hash estimators, modules, arrays and functions by what they hold.

    joblib's own hash tells two equal modules apart, as it sees where they live in
    memory; here a module is its layout and the bytes of its state.
    """
    versions = (
        np.__version__,
        scipy.__version__,
        sklearn.__version__,
        torch.__version__,
    )
    return str(joblib.hash([versions, *map(_content, parts)]))


def _content(value: Any) -> Any:
    if isinstance(value, nn.Module):
        state = {k: v.detach().cpu().numpy() for k, v in value.state_dict().items()}
        return ("module", _name(type(value)), repr(value), state)
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().numpy()
    if hasattr(value, "get_params") and not inspect.isclass(value):
        params = value.get_params(deep=False)
        return (_name(type(value)), sorted((k, _content(v)) for k, v in params.items()))
    if isinstance(value, np.ndarray):
        # joblib's hash sees strides too
        return np.ascontiguousarray(value)
    if isinstance(value, list | tuple):
        return [_content(v) for v in value]
    if callable(value):
        try:
            source = inspect.getsource(value)
        except (OSError, TypeError):
            source = ""
        return (_name(value), source)
    return value


def _name(value: Any) -> str:
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def _remember(
    key: str, weighting: str, outcomes: NDArray[np.float64] | None = None
) -> NDArray[np.float64] | None:
    return outcomes


def cached_array(
    memory: joblib.Memory, key: str, compute: Callable[[], NDArray[Any]]
) -> NDArray[Any]:
    """Return ``compute()``, or what it returned before under this key."""
    row = np.zeros(1)
    return cached_rows(memory, key, row[None], lambda _: compute()[None], 1)[0]


def cached_rows(
    memory: joblib.Memory | None,
    key: str,
    weights: NDArray[np.float64],
    compute: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    chunk_size: int,
) -> NDArray[np.float64]:
    """Return ``compute(weights)`` row by row, what is known from memory.

    Missing rows are computed ``chunk_size`` at a time and each is stored as soon as
    its chunk is done, so that a kill loses one chunk and more rows extend.
    """
    if memory is None:
        return compute(weights)
    # joblib stores what a call returns: the value rides along as an ignored argument
    store = memory.cache(_remember, ignore=["outcomes"], verbose=0)
    names = [str(joblib.hash(np.ascontiguousarray(row))) for row in weights]
    known: dict[str, NDArray[np.float64]] = {}
    for name in set(names):
        if store.check_call_in_cache(key, name):
            value = store(key, name)
            # a damaged entry is recomputed by joblib, to None
            if value is not None:
                known[name] = value
    first = {name: i for i, name in reversed(list(enumerate(names)))}
    missing = sorted(i for name, i in first.items() if name not in known)
    for start in range(0, len(missing), chunk_size):
        rows = missing[start : start + chunk_size]
        for i, outcomes in zip(rows, compute(weights[rows]), strict=True):
            store.call(key, names[i], outcomes)
            known[names[i]] = outcomes
    return np.array([known[name] for name in names])
