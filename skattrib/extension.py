"""What a loss, a penalty, an optimizer, a model or an attributor of your own needs.

Derive from one of these classes; registered, it works wherever the package's own do.
The manual has a page for each.
"""

from skattrib.base import BaseAttributor
from skattrib.engine._losses import ClassLoss, LabelLoss, Loss
from skattrib.engine._optimizers import Optimizer, register_optimizer
from skattrib.engine._penalties import Penalty
from skattrib.exceptions import (
    ConstantOutcomeWarning,
    FaithfulnessWarning,
    IndexMismatchError,
    TrajectoryError,
    UnsupportedModelError,
)
from skattrib.models._as_model import as_model, register_model
from skattrib.models._protocol import Differentiable, Recorded, Retrainable

__all__ = [
    "BaseAttributor",
    "ClassLoss",
    "ConstantOutcomeWarning",
    "Differentiable",
    "FaithfulnessWarning",
    "IndexMismatchError",
    "LabelLoss",
    "Loss",
    "Optimizer",
    "Penalty",
    "Recorded",
    "Retrainable",
    "TrajectoryError",
    "UnsupportedModelError",
    "as_model",
    "register_model",
    "register_optimizer",
]
