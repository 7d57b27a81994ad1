"""Boosted trees and forests, whose structures can be refitted."""

from skattrib.models._trees._categories import check_categories, known_categories
from skattrib.models._trees._forests import ForestModel
from skattrib.models._trees._hist import HistModel
from skattrib.models._trees._lightgbm import LightGBMModel
from skattrib.models._trees._protocol import BoosterModel, TreeModel
from skattrib.models._trees._refused import REASONS, WRAPPERS, RefusedTrees, full_name
from skattrib.models._trees._xgboost import XGBoostModel

__all__ = [
    "REASONS",
    "WRAPPERS",
    "BoosterModel",
    "ForestModel",
    "HistModel",
    "LightGBMModel",
    "RefusedTrees",
    "TreeModel",
    "XGBoostModel",
    "check_categories",
    "full_name",
    "known_categories",
]
