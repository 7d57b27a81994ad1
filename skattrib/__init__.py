"""Data attribution that you can check.

Which training rows, sources or tasks made the model do this, what would happen
without them, and how far is the answer to be trusted?
"""

from skattrib._make import make_attributor
from skattrib._plan import plan
from skattrib.feature_selection import TaskWeightSelector
from skattrib.influence import (
    AdamWInfluence,
    DualInfluence,
    TreeInfluence,
    lookahead_training,
)
from skattrib.models._stopping import EarlyStopping
from skattrib.models.neural import TorchClassifier, TorchRegressor
from skattrib.models.recording import TrainingRecording, record_training
from skattrib.random_projection import CountSketchTransformer, GradientTransformer
from skattrib.retrieval import RISEValuator
from skattrib.surrogate import (
    KernelSurrogate,
    KernelSurrogateAttributor,
    LinearSurrogate,
    LinearSurrogateAttributor,
)

__version__ = "0.1.0"

__all__ = [
    "AdamWInfluence",
    "CountSketchTransformer",
    "DualInfluence",
    "EarlyStopping",
    "GradientTransformer",
    "KernelSurrogate",
    "KernelSurrogateAttributor",
    "LinearSurrogate",
    "LinearSurrogateAttributor",
    "RISEValuator",
    "TaskWeightSelector",
    "TorchClassifier",
    "TorchRegressor",
    "TrainingRecording",
    "TreeInfluence",
    "__version__",
    "lookahead_training",
    "make_attributor",
    "plan",
    "record_training",
]
