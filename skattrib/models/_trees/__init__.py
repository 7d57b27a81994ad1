"""Boosted trees and forests, whose structures can be refitted."""

from skattrib.models._trees._hist import HistModel
from skattrib.models._trees._lightgbm import LightGBMModel
from skattrib.models._trees._protocol import BoosterModel, TreeModel

__all__ = ["BoosterModel", "HistModel", "LightGBMModel", "TreeModel"]
