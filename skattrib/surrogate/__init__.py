"""Surrogates of how outcomes depend on the units trained on."""

from skattrib.surrogate._attributors import (
    KernelSurrogateAttributor,
    LinearSurrogateAttributor,
)
from skattrib.surrogate._regressors import KernelSurrogate, LinearSurrogate

__all__ = [
    "KernelSurrogate",
    "KernelSurrogateAttributor",
    "LinearSurrogate",
    "LinearSurrogateAttributor",
]
