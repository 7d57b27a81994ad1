"""Neural networks as estimators; they live in `skattrib.models`."""

from skattrib.models._stopping import EarlyStopping
from skattrib.models.neural import TorchClassifier, TorchRegressor

__all__ = ["EarlyStopping", "TorchClassifier", "TorchRegressor"]
