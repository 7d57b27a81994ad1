"""Checks of the options of optimizers, which return them in their final type."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

# Whole numbers below this are exact in double precision.
_LARGEST = 2**53


def number(owner: object, name: str, value: Any, below: float = _LARGEST) -> float:
    """Return an option as a float; raise ValueError unless it is in [0, below)."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not real or not 0 <= value < below:
        limit = "at least 0" if below == _LARGEST else f"in [0, {below:g})"
        raise ValueError(
            f"{type(owner).__name__}: {name} must be a number {limit}, got {value!r}."
        )
    return float(value)


def numbers(
    owner: object, name: str, value: Any, count: int, below: float = _LARGEST
) -> tuple[float, ...]:
    """Return an option of several numbers in [0, below) as a tuple of floats."""
    if not isinstance(value, tuple | list) or len(value) != count:
        raise ValueError(
            f"{type(owner).__name__}: {name} must be {count} numbers, got {value!r}."
        )
    return tuple(number(owner, name, item, below) for item in value)


def whole(owner: object, name: str, value: Any, least: int, below: int) -> int:
    """Return an option as an int; raise ValueError unless it is in [least, below)."""
    known = isinstance(value, Integral) and not isinstance(value, bool)
    if not known or not least <= value < below:
        raise ValueError(
            f"{type(owner).__name__}: {name} must be a whole number from {least} to "
            f"{below - 1}, got {value!r}."
        )
    return int(value)


def flag(owner: object, name: str, value: Any) -> bool:
    """Return an option that is True or False; raise ValueError if it is neither."""
    # NumPy has a type of its own
    if type(value).__name__ not in ("bool", "bool_"):
        raise ValueError(
            f"{type(owner).__name__}: {name} must be True or False, got {value!r}."
        )
    return bool(value)
