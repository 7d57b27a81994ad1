"""Ensembles of trees whose leaf values cannot be computed again."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from skattrib.engine._trees import Ensemble
from skattrib.models._trees._protocol import TreeModel

_OF_RANKING = "it ranks rows within groups. Use a classifier or a regressor."
_OF_CATBOOST = (
    "its splits depend on the targets of rows, in an order of its own. Use LightGBM, "
    "XGBoost or HistGradientBoosting of scikit-learn."
)

#: Why not, and what to use; by name, since libraries need not be there.
REASONS: dict[str, str] = {
    "sklearn.ensemble._gb.GradientBoostingClassifier": (
        "the values of its leaves follow a rule of their own. Use "
        "HistGradientBoostingClassifier."
    ),
    "sklearn.ensemble._gb.GradientBoostingRegressor": (
        "the values of its leaves follow a rule of their own. Use "
        "HistGradientBoostingRegressor."
    ),
    "lightgbm.sklearn.LGBMRanker": _OF_RANKING,
    "xgboost.sklearn.XGBRanker": _OF_RANKING,
    "catboost.core.CatBoostRanker": _OF_RANKING,
    "catboost.core.CatBoostClassifier": _OF_CATBOOST,
    "catboost.core.CatBoostRegressor": _OF_CATBOOST,
}
#: Boosters without an interface for scikit-learn, and what wraps them.
WRAPPERS: dict[str, str] = {
    "lightgbm.basic.Booster": "LGBMClassifier or LGBMRegressor",
    "xgboost.core.Booster": "XGBClassifier or XGBRegressor",
    "catboost.core.CatBoost": "CatBoostClassifier or CatBoostRegressor",
}


def full_name(kind: type) -> str:
    """Return the name of a class, with that of its module."""
    return f"{kind.__module__}.{kind.__qualname__}"


class RefusedTrees(TreeModel):
    """An ensemble that is retrained, and said why no more."""

    def reason_against(self) -> str:
        """Return why leaf values cannot be computed again."""
        names = [full_name(kind) for kind in type(self.estimator).__mro__]
        return next(REASONS[name] for name in names if name in REASONS)

    @property
    def is_fitted(self) -> bool:
        """Whether the estimator is a known ensemble: no."""
        return False

    def ensemble(
        self,
        X: Any,
        y: Any,
        own: NDArray[np.float64],
        trained: NDArray[np.float64],
    ) -> Ensemble:
        """Raise: there is none."""
        raise NotImplementedError(self.reason_against())

    def leaves(self, X: Any) -> NDArray[np.integer[Any]]:
        """Raise: there are none."""
        raise NotImplementedError(self.reason_against())

    def raw_outputs(self, X: Any) -> NDArray[np.float64]:
        """Raise: there are none."""
        raise NotImplementedError(self.reason_against())

    def link(self, raw: Tensor) -> Tensor:
        """Raise: there is none."""
        raise NotImplementedError(self.reason_against())
