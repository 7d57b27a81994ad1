"""Boosted trees and forests, whose structures can be refitted."""

from skattrib.models._trees._hist import HistModel
from skattrib.models._trees._lightgbm import LightGBMModel
from skattrib.models._trees._protocol import BoosterModel, TreeModel
from skattrib.models._trees._xgboost import XGBoostModel

__all__ = ["BoosterModel", "HistModel", "LightGBMModel", "TreeModel", "XGBoostModel"]
