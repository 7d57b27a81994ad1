"""Neural networks as estimators; they live in `skattrib.models`."""

from skattrib.models.neural import TorchClassifier, TorchRegressor

__all__ = ["TorchClassifier", "TorchRegressor"]
