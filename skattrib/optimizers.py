"""Optimizers with their options, for ``TorchClassifier(optimizer=...)``."""

from skattrib.engine._optimizers import (
    SGD,
    Adam,
    AdamW,
    Muon,
    Optimizer,
    RMSprop,
    register_optimizer,
)

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Muon",
    "Optimizer",
    "RMSprop",
    "register_optimizer",
]
