"""Rows of any shape, and of whole numbers, as a network with a module takes them."""

import copy

import numpy as np
import torch
from torch import nn

from skattrib._validation import DTYPES, validate_data
from skattrib.engine._modules import generator_kept, uncompiled_copy

# Whole numbers that stay what they are; others, and truth values, become floats.
_INTEGERS = [np.int64, np.int32, np.int16, np.int8, np.uint8]
# Rows that a module is tried on, and those with extreme numbers.
_FEW, _N_EXTREME = 3, 256
# Whole numbers from here on may be rounded in single precision.
_ROUNDED = 2**24


# ------------------------------------------------------------------------- shapes
def validate_rows(estimator, X, *y, any_shape=None, reset=True, **options):
    """Validate X, and y if given, as `validate_data` does.

    Parameters
    ----------
    any_shape : bool or None, default=None
        Whether rows may have any shape, and whole numbers stay whole numbers. None: if
        the estimator has a ``module``.
    reset : bool, default=True
        Whether the shape of the rows is learnt, or must be the one that was.
    **options : dict
        Of `sklearn.utils.validation.validate_data`.

    Raises
    ------
    ValueError
        If the rows cannot be used, or have another shape than in fit.
    """
    if any_shape is None:
        any_shape = getattr(estimator, "module", None) is not None
    if not reset:
        check_row_shape(estimator, X)
    if any_shape:
        options = {"allow_nd": True, "dtype": DTYPES + _INTEGERS, **options}
    found = validate_data(
        estimator, X, *y, **{"dtype": DTYPES, "reset": reset, **options}
    )
    rows = found[0] if y else found
    if not all(rows.shape[1:]):
        raise ValueError(
            f"Found array with 0 feature(s) (shape={rows.shape}): X has rows without "
            "numbers."
        )
    if reset:
        estimator._row_shape = rows.shape[1:]
    return found


def check_row_shape(estimator, X):
    """Raise unless X has rows of the shape that a fitted estimator knows."""
    _check_shape(estimator, _shape_of(X))


def _shape_of(X):
    """Return the shape of each row, None where it is not known yet."""
    try:
        return tuple(X.shape if hasattr(X, "shape") else np.shape(X))[1:]
    except (RuntimeError, TypeError, ValueError):  # refused in a moment
        return None


def _check_shape(estimator, shape):
    """Raise unless rows have the shape that they had in fit, if that was not of one."""
    known = getattr(estimator, "_row_shape", None)
    if not shape or known is None or shape == known or len(shape) == len(known) == 1:
        return  # columns of tables are counted by scikit-learn
    wanted = ", ".join(["n", *map(str, known)])
    raise ValueError(
        f"X has rows of shape {shape}, but {type(estimator).__name__} was fitted to "
        f"rows of shape {known}: give X the shape ({wanted})."
    )


# ------------------------------------------------------------------ whole numbers
def _as_integers(module, args):
    """Hand whole numbers to a module, or a layer, as integers: a hook of torch."""
    if not args or not isinstance(args[0], torch.Tensor):
        return None
    return (args[0].long(), *args[1:])


def _has_hook(module):
    return any(hook is _as_integers for hook in module._forward_pre_hooks.values())


def _without_hooks(module):
    """Take the hooks off a module, which may come from an earlier fit."""
    for layer in module.modules():
        for key, hook in list(layer._forward_pre_hooks.items()):
            if hook is _as_integers:
                del layer._forward_pre_hooks[key]
    return module


def as_it_takes(module, X):
    """Let a module have rows as it takes them: as floats, or as whole numbers.

    It is tried on a few rows. Floats come first: so one that takes both, or makes
    integers by itself, computes what it always did. One that refuses floats, as
    nn.Embedding does, gets the same whole numbers as integers (int64): in tensors they
    stay floats, and a hook of the module turns them, so that whoever trains or
    differentiates it need not know.

    Parameters
    ----------
    module : nn.Module
        Gets the hook, or loses it.
    X : Tensor of shape (n, ...)
        Floats or integers.

    Returns
    -------
    module : nn.Module
    X : Tensor of shape (n, ...)
        Floats. Of integers that stay integers the type is torch's default, float32;
        else float64.

    Raises
    ------
    ValueError
        If the module takes integers, but not all that X holds.
    """
    _without_hooks(module)
    given_floats = X.is_floating_point()
    floats = X if given_floats else X.double()
    if given_floats and not (_are_whole(X[:_FEW]) and _are_whole(X)):
        return module, X
    if _refusal(module, floats[:_FEW]) is None:
        return module, floats
    rows = floats if given_floats else _in_few_bits(X)
    module.register_forward_pre_hook(_as_integers)
    error = _refusal(module, rows[:_FEW])
    if error is None:
        error = _refusal(module, rows[_extreme(rows)])
        if error is None:
            return module, rows
    _without_hooks(module)
    if isinstance(error, IndexError):
        raise unknown_numbers(floats, error) from error
    return module, floats  # the checks of the module raise, with a reason


def unknown_numbers(X, error):
    """Return the error that says which numbers a module was asked to look up."""
    return ValueError(
        f"module fails on some of the numbers in X, which are from {X.min():g} to "
        f"{X.max():g}: {error}. An nn.Embedding has a row for each whole number from 0 "
        "to num_embeddings - 1."
    )


def _in_few_bits(X):
    """Return integers as floats of torch's default type, if that holds them."""
    dtype = torch.get_default_dtype()
    return X.double() if X.abs().max() >= _ROUNDED else X.to(dtype)


def _are_whole(X):
    return bool((X == X.round()).all())


def _extreme(X):
    """Return which rows hold the smallest and the largest numbers."""
    flat = X.flatten(1)
    found = torch.cat([flat.argmin(dim=0), flat.argmax(dim=0)]).unique()
    return found[:_N_EXTREME]


def _refusal(module, X):
    """Return the error that a module raises on rows; None if it takes them."""
    # on a CPU: elsewhere a number without an embedding ends the process
    tried = uncompiled_copy(module).eval().to("cpu", X.dtype)
    with torch.no_grad(), generator_kept():
        try:
            tried(X.clone().cpu())
        except Exception as error:
            return error
    return None


def in_dtype_of(module, X):
    """Return rows in the type of a module's weights."""
    return X.to(next(p.dtype for p in module.parameters() if p.is_floating_point()))


def with_integer_lookups(module):
    """Let the embeddings of a module that has met no rows take whole floats.

    They would refuse them: a module that works without this is not changed by it.
    """
    for layer in _without_hooks(module).modules():
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
            layer.register_forward_pre_hook(_as_integers)
    return module


def check_whole(module, X):
    """Raise ValueError if X holds fractions where a module takes whole numbers."""
    if X.dtype.kind != "f" or not any(map(_has_hook, module.modules())):
        return
    odd = X != np.round(X)
    if not odd.any():
        return
    if not _has_hook(module):  # its embeddings have, and may get some columns only
        bare = _without_hooks(copy.deepcopy(module))
        like = next(module.parameters())
        rows = torch.tensor(np.array(X[:_FEW]), dtype=like.dtype)
        if _refusal(bare, rows) is None:
            return
    raise ValueError(
        f"X holds {X[odd][0]:g}, and the module takes whole numbers only, as "
        "nn.Embedding does: pass integers."
    )
