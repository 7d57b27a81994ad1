"""Optimizers: one pure step each, and its derivatives.

A new one is a file in this package, its class decorated by `register_optimizer`, and
one line here that imports it.
"""

from skattrib.engine._optimizers._adam import Adam, AdamW
from skattrib.engine._optimizers._muon import Muon
from skattrib.engine._optimizers._protocol import (
    OPTIMIZERS,
    NoState,
    Optimizer,
    Rate,
    State,
    StepDerivative,
    class_for_torch,
    clip_gradient,
    map_state,
    name_of,
    refuse_torch,
    register_optimizer,
    with_values,
)
from skattrib.engine._optimizers._rmsprop import RMSprop
from skattrib.engine._optimizers._sgd import SGD, plain_sgd

__all__ = [
    "OPTIMIZERS",
    "SGD",
    "Adam",
    "AdamW",
    "Muon",
    "NoState",
    "Optimizer",
    "RMSprop",
    "Rate",
    "State",
    "StepDerivative",
    "class_for_torch",
    "clip_gradient",
    "map_state",
    "name_of",
    "plain_sgd",
    "refuse_torch",
    "register_optimizer",
    "with_values",
]
