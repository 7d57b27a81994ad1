"""What belongs to single weightings, remembered by joblib under a key of our own."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import sys
import types
from collections.abc import Callable, Iterable
from pathlib import Path
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
    if type(value).__module__.split(".")[0] == "transformers":
        # its configurations hold what differs from process to process
        told = getattr(value, "to_dict", None)
        return value if told is None else [_name(type(value)), _content(told(), above)]
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
    found = _alone(value, above)
    return found if _NO_FURTHER in above else [found, _globals(value, above)]


def _alone(value: types.FunctionType, above: tuple[int, ...]) -> Any:
    values = [value.__defaults__, value.__kwdefaults__, _enclosed(value)]
    return [_name(value), _code(value.__code__), _content(values, above)]


def _enclosed(value: types.FunctionType) -> list[Any]:
    return [cell.cell_contents for cell in value.__closure__ or ()]


def _globals(value: types.FunctionType, above: tuple[int, ...]) -> Any:
    """Return what a function of the user reads of its module, and those that it calls.

    Each is looked into once, as they may call each other.
    """
    found: dict[tuple[str, str], Any] = {}
    functions, within = {id(value): value}, (*above, _NO_FURTHER)
    waiting = [value]
    while waiting:
        function = waiting.pop()
        if _installed(function.__module__):
            continue
        held = _enclosed(function)
        for name in sorted(_names(function.__code__) & function.__globals__.keys()):
            if (place := (function.__module__, name)) not in found:
                held.append(function.__globals__[name])
                found[place] = _content(held[-1], within)
        for called in (one for value in held for one in _functions_of(value)):
            if id(called) not in functions:
                functions[id(called)] = called
                waiting.append(called)
    return list(found.items())


def _functions_of(value: Any) -> list[types.FunctionType]:
    """Return a function, or those of a class of the user, or of its instance."""
    if isinstance(value, types.FunctionType):
        return [value]
    kinds = (value if isinstance(value, type) else type(value)).__mro__
    members = [
        _plain(member)
        for kind in kinds
        if not _installed(kind.__module__)
        for member in vars(kind).values()
    ]
    flat = [one for m in members for one in (m if isinstance(m, list) else [m])]
    return [one for one in flat if isinstance(one, types.FunctionType)]


def _names(code: types.CodeType) -> set[str]:
    """Return the names of globals, and of attributes, in code and what it defines."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names(constant)
    return names


def _installed(module: str | None) -> bool:
    """Say whether a module is not the user's: its version tells what it does."""
    root = str(module).split(".")[0]
    if root in _KNOWN or (root in sys.stdlib_module_names and root != "__main__"):
        return True
    place = getattr(sys.modules.get(str(module)), "__file__", None) or ""
    return bool({"site-packages", "dist-packages"} & {*Path(place).parts})


def _code(code: types.CodeType) -> Any:
    return [code.co_code, [_constant(one) for one in code.co_consts], code.co_names]


def _constant(value: Any) -> Any:
    if isinstance(value, types.CodeType):
        return _code(value)
    if isinstance(value, frozenset):  # in an order that each process has of its own
        return sorted(map(repr, value))
    return repr(value)


def _partial(value: functools.partial[Any], above: tuple[int, ...]) -> Any:
    return _content([value.func, value.args, value.keywords], above)


def _method(value: types.MethodType, above: tuple[int, ...]) -> Any:
    return _content([value.__func__, value.__self__], above)


def _class(value: type, above: tuple[int, ...]) -> Any:
    """Return name and code; that of the libraries is known by their versions."""
    if value.__module__.split(".")[0] in {"torch", "sklearn", "numpy", "builtins"}:
        return _name(value)
    if _installed(value.__module__):
        methods = [
            (method.__name__, _code(method.__code__))
            for method in vars(value).values()
            if isinstance(method, types.FunctionType)
        ]
        return [_name(value), methods]
    bases = [_class(base, above) for base in value.__bases__]
    held = {
        name: _content(_plain(member), above)
        for name, member in vars(value).items()
        if not isinstance(member, _OF_CLASSES)
        # Python, pickle and abc note things under such names
        and (not name.startswith(("__", "_abc_")) or callable(member))
    }
    return [_name(value), list(held.items()), bases]


def _plain(member: Any) -> Any:
    """Return the functions in what a class makes of them."""
    if isinstance(member, property):
        return [member.fget, member.fset]
    if isinstance(member, staticmethod | classmethod):
        return member.__func__
    return member.func if isinstance(member, functools.cached_property) else member


def _object(value: Any, above: tuple[int, ...]) -> Any:
    """Return class, code included, and attributes."""
    attributes = getattr(value, "__dict__", None)
    kind = _class(type(value), above)
    slots = [vars(part).get("__slots__", ()) for part in type(value).__mro__]
    names = [name for of in slots for name in ([of] if isinstance(of, str) else of)]
    held = {name: getattr(value, name) for name in names if hasattr(value, name)}
    held.pop("__weakref__", None)
    held |= attributes or {}
    if isinstance(value, types.BuiltinFunctionType):
        return [kind, _name(value), _content(value.__self__, above)]
    if attributes is None and not names:
        # known by how it is pickled, as an operator.itemgetter is
        return [kind, value]
    return [kind, _content(held, above)]


def _module_name(value: types.ModuleType, above: tuple[int, ...]) -> Any:
    return value.__name__


def _mapping(value: dict[Any, Any], above: tuple[int, ...]) -> Any:
    items = sorted(value.items(), key=str)
    return [(str(name), _content(held, above)) for name, held in items]


def _sequence(value: Iterable[Any], above: tuple[int, ...]) -> Any:
    return [_content(item, above) for item in value]


# Modules whose versions are part of a key, or whose results do not change a value.
_KNOWN = {"skattrib", "numpy", "scipy", "sklearn", "torch", "pandas", "joblib"}
# Among what is above: globals are not followed from here.
_NO_FURTHER = 0
# What a class has for its slots.
_OF_CLASSES = types.MemberDescriptorType | types.GetSetDescriptorType

_DESCRIPTIONS: list[tuple[Any, Callable[..., Any]]] = [
    (nn.Module, _module),
    (torch.Tensor, _tensor),
    (np.ndarray, _array),
    (Recipe, _recipe),
    (Optimizer, _object),
    (types.ModuleType, _module_name),
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
