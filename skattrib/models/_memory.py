"""What belongs to single weightings, remembered by joblib under a key of our own."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import types
from collections.abc import Callable, Iterable
from typing import Any

import joblib
import numpy as np
import scipy
import sklearn
import torch
from numpy.typing import NDArray
from sklearn.frozen import FrozenEstimator
from torch import nn

from skattrib.engine._optimizers import Optimizer
from skattrib.engine._trajectory import Recipe


def as_memory(
    memory: str | os.PathLike[str] | joblib.Memory | None,
) -> joblib.Memory | None:
    """Turn a path into a joblib.Memory; None stays None."""
    if memory is None or hasattr(memory, "cache"):
        return memory
    return joblib.Memory(memory, verbose=0)


def digest(*parts: Any) -> str:
    """Hash estimators, modules, arrays and functions by what they hold.

    joblib's own hash tells two equal modules apart, as it sees where they live in
    memory, and takes two closures over different values for the same.

    Raises
    ------
    ValueError
        If something cannot be told from others like it.
    """
    # not at the top: the package is still being imported then
    from skattrib import __version__

    versions = (
        __version__,
        np.__version__,
        scipy.__version__,
        sklearn.__version__,
        torch.__version__,
    )
    try:
        return str(joblib.hash([versions, *(_content(part, ()) for part in parts)]))
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise ValueError(
            f"memory cannot tell this estimator or outcome from others: {error}. Use "
            "functions and classes that can be pickled, or memory=None."
        ) from error


def _content(value: Any, above: tuple[int, ...]) -> Any:
    """Return plain values that are equal just where ``value`` acts the same."""
    if id(value) in above:
        return "recursion"
    above = (*above, id(value))
    for kinds, describe in _DESCRIPTIONS:
        if isinstance(value, kinds):
            return describe(value, above)
    if hasattr(value, "get_params"):
        return _estimator(value, above)
    if callable(value):
        return _object(value, above)
    return value


def _estimator(value: Any, above: tuple[int, ...]) -> Any:
    params = value.get_params(deep=False)
    found = [_class(type(value), above), _content(params, above)]
    if isinstance(value, FrozenEstimator):
        found.append(_content(vars(value.estimator), above))
    return found


def _array(value: NDArray[Any], above: tuple[int, ...]) -> Any:
    # joblib's hash sees strides too
    return np.ascontiguousarray(value)


def _tensor(value: torch.Tensor, above: tuple[int, ...]) -> Any:
    return _array(value.detach().cpu().numpy(), above)


def _module(value: nn.Module, above: tuple[int, ...]) -> Any:
    state = {k: _tensor(v, above) for k, v in value.state_dict().items()}
    trained = [k for k, p in value.named_parameters() if p.requires_grad]
    layers = []
    for layer in value.modules():
        own = {k: v for k, v in vars(layer).items() if not k.startswith("_")}
        layers.append((_class(type(layer), above), _content(own, above)))
    return [repr(value), state, trained, layers]


def _recipe(value: Recipe, above: tuple[int, ...]) -> Any:
    optimizer = _object(value.optimizer, above)
    return [value.options(), optimizer, _content(value.tensors(), above)]


def _function(value: types.FunctionType, above: tuple[int, ...]) -> Any:
    closure = [cell.cell_contents for cell in value.__closure__ or ()]
    rest = [value.__defaults__, value.__kwdefaults__, closure]
    return [_name(value), _code(value.__code__), _content(rest, above)]


def _code(code: types.CodeType) -> Any:
    constants = [
        _code(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts
    ]
    return [code.co_code, constants, code.co_names]


def _partial(value: functools.partial[Any], above: tuple[int, ...]) -> Any:
    return _content([value.func, value.args, value.keywords], above)


def _method(value: types.MethodType, above: tuple[int, ...]) -> Any:
    return _content([value.__func__, value.__self__], above)


def _class(value: type, above: tuple[int, ...]) -> Any:
    """Return name and code; the versions stand for the code of the libraries."""
    if value.__module__.split(".")[0] in {"torch", "sklearn", "numpy", "builtins"}:
        return _name(value)
    own = [v for v in vars(value).values() if isinstance(v, types.FunctionType)]
    return [_name(value), [(f.__name__, _code(f.__code__)) for f in own]]


def _object(value: Any, above: tuple[int, ...]) -> Any:
    """Return class, code included, and attributes."""
    held = getattr(value, "__dict__", None)
    kind = _class(type(value), above)
    if held is None:  # a built-in function
        return [kind, _name(value)]
    return [kind, _content(held, above)]


def _mapping(value: dict[Any, Any], above: tuple[int, ...]) -> Any:
    return [(str(k), _content(v, above)) for k, v in sorted(value.items(), key=str)]


def _sequence(value: Iterable[Any], above: tuple[int, ...]) -> Any:
    return [_content(v, above) for v in value]


_DESCRIPTIONS: list[tuple[Any, Callable[..., Any]]] = [
    (nn.Module, _module),
    (torch.Tensor, _tensor),
    (np.ndarray, _array),
    (Recipe, _recipe),
    (Optimizer, _object),
    (types.FunctionType, _function),
    (types.MethodType, _method),
    (functools.partial, _partial),
    (type, _class),
    (dict, _mapping),
    (list | tuple, _sequence),
]


def _name(value: Any) -> str:
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def _remember(key: str, weighting: str, value: Any = None) -> Any:
    return value


def _copied(function: Any) -> types.FunctionType:
    """Return a function that joblib has not met.

    It notes the code of a function in the first folder only that a process uses; a
    later process would take what it finds in the others for that of other code.
    """
    copied = types.FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
    )
    copied.__module__ = function.__module__
    return copied


def cached_array(
    memory: joblib.Memory, key: str, compute: Callable[[], NDArray[Any]]
) -> NDArray[Any]:
    """Return ``compute()``, or what it returned before under this key."""
    row = np.zeros(1)
    found: NDArray[Any] = cached_rows(
        memory, key, row[None], lambda _: compute()[None], 1
    )[0]
    return found


def cached_rows(
    memory: joblib.Memory | None,
    key: str,
    weights: NDArray[np.float64],
    compute: Callable[[NDArray[np.float64]], Iterable[Any]],
    chunk_size: int,
) -> list[Any]:
    """Return what ``compute(weights)`` holds row by row, what is known from memory.

    Missing rows are computed ``chunk_size`` at a time and each is stored as soon as
    its chunk is done, so that a kill loses one chunk and more rows extend. What cannot
    be written is returned all the same, and joblib warns.
    """
    if memory is None:
        return list(compute(weights))
    # joblib stores what a call returns: the value rides along as an ignored argument
    store = memory.cache(_copied(_remember), ignore=["value"], verbose=0)
    names = [str(joblib.hash(np.ascontiguousarray(row))) for row in weights]
    known: dict[str, Any] = {}
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
        for i, value in zip(rows, compute(weights[rows]), strict=True):
            # joblib warns where it cannot write, and may look for what it wrote
            with contextlib.suppress(KeyError):
                store.call(key, names[i], value)
            known[names[i]] = value
    return [known[name] for name in names]
