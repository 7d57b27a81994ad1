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

    joblib's own hash differs for two equal modules, as it includes their addresses, and
    is the same for two closures over different values.

    Raises
    ------
    ValueError
        If something cannot be distinguished from others like it.
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
    contents = [_class(type(value), above), _content(params, above)]
    if isinstance(value, FrozenEstimator):
        contents.append(_content(vars(value.estimator), above))
    return contents


def _array(value: NDArray[Any], above: tuple[int, ...]) -> Any:
    # joblib's hash sees strides too
    return np.ascontiguousarray(value)


def _tensor(value: torch.Tensor, above: tuple[int, ...]) -> Any:
    return _array(value.detach().cpu().numpy(), above)


def _module(value: nn.Module, above: tuple[int, ...]) -> Any:
    state = {name: _tensor(held, above) for name, held in value.state_dict().items()}
    trained = [name for name, p in value.named_parameters() if p.requires_grad]
    layers = []
    for layer in value.modules():
        settings = {
            name: held for name, held in vars(layer).items() if not name.startswith("_")
        }
        layers.append((_class(type(layer), above), _content(settings, above)))
    return [repr(value), state, trained, layers]


def _recipe(value: Recipe, above: tuple[int, ...]) -> Any:
    optimizer = _object(value.optimizer, above)
    return [value.options(), optimizer, _content(value.tensors(), above)]


def _function(value: types.FunctionType, above: tuple[int, ...]) -> Any:
    closure = [cell.cell_contents for cell in value.__closure__ or ()]
    values = [value.__defaults__, value.__kwdefaults__, closure]
    return [_name(value), _code(value.__code__), _content(values, above)]


def _code(code: types.CodeType) -> Any:
    constants = [
        _code(constant) if isinstance(constant, types.CodeType) else repr(constant)
        for constant in code.co_consts
    ]
    return [code.co_code, constants, code.co_names]


def _partial(value: functools.partial[Any], above: tuple[int, ...]) -> Any:
    return _content([value.func, value.args, value.keywords], above)


def _method(value: types.MethodType, above: tuple[int, ...]) -> Any:
    return _content([value.__func__, value.__self__], above)


def _class(value: type, above: tuple[int, ...]) -> Any:
    """Return name and code; that of the libraries is known by their versions."""
    if value.__module__.split(".")[0] in {"torch", "sklearn", "numpy", "builtins"}:
        return _name(value)
    methods = [
        (method.__name__, _code(method.__code__))
        for method in vars(value).values()
        if isinstance(method, types.FunctionType)
    ]
    return [_name(value), methods]


def _object(value: Any, above: tuple[int, ...]) -> Any:
    """Return class, code included, and attributes."""
    attributes = getattr(value, "__dict__", None)
    kind = _class(type(value), above)
    if attributes is None:  # a built-in function
        return [kind, _name(value)]
    return [kind, _content(attributes, above)]


def _mapping(value: dict[Any, Any], above: tuple[int, ...]) -> Any:
    items = sorted(value.items(), key=str)
    return [(str(name), _content(held, above)) for name, held in items]


def _sequence(value: Iterable[Any], above: tuple[int, ...]) -> Any:
    return [_content(item, above) for item in value]


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
    """Return a copy of a function, which joblib takes for a new one.

    joblib notes the code of a function in the first folder that a process uses, and in
    no other; a later process would take the entries of the others for those of other
    code.
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
    row = np.zeros((1, 1))
    array: NDArray[Any] = cached_rows(memory, key, row, lambda _: compute()[None], 1)[0]
    return array


def cached_rows(
    memory: joblib.Memory | None,
    key: str,
    weights: NDArray[np.float64],
    compute: Callable[[NDArray[np.float64]], Iterable[Any]],
    chunk_size: int,
) -> list[Any]:
    """Return the rows of ``compute(weights)``, from memory where they are known.

    Missing rows are computed ``chunk_size`` at a time and stored as soon as their chunk
    is done: an interruption loses one chunk, and further rows are added. What cannot be
    written is returned nevertheless, and joblib warns.
    """
    if memory is None:
        return list(compute(weights))
    # joblib stores what a call returns: the value is passed as an ignored argument
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
