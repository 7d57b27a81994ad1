"""Data attribution that you can check.

Which training rows, sources or tasks made the model do this, what would happen
without them, and how far is the answer to be trusted?
"""

from skattrib.influence import DualInfluence
from skattrib.neural import TorchClassifier, TorchRegressor

__version__ = "0.1.0.dev0"

__all__ = ["DualInfluence", "TorchClassifier", "TorchRegressor", "__version__"]
