"""Linear regressors of scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import ElasticNet, Lasso, Ridge
from torch import Tensor

from skattrib.engine._losses import Loss, SquaredError
from skattrib.engine._losses._generalized import (
    HalfDeviance,
    LogLinkDeviance,
    SquaredTube,
)
from skattrib.engine._penalties import Regularization
from skattrib.models._linear._protocol import LinearModel, ScaledIntercept, copied

_POSITIVE = "positive=True bounds the coefficients. Use positive=False."


class LinearRegressorModel(LinearModel):
    """A linear regressor of one target or several."""

    def reason_against(self) -> str | None:
        """Return why its objective has no derivative."""
        return _POSITIVE if getattr(self.settings, "positive", False) else None

    def training_loss(self) -> Loss:
        """Return half the squared error."""
        return SquaredError()

    def training_targets(self, y: Any) -> Tensor:
        """Return numbers (n, C)."""
        values = np.asarray(y, dtype=np.float64)
        return torch.tensor(values.reshape(len(values), -1))


class RidgeModel(LinearRegressorModel):
    """LinearRegression, Ridge, and RidgeCV at the alpha that it chose."""

    def recipe(self) -> Any:
        """Return a Ridge with the alpha that was used."""
        chosen = getattr(self.estimator, "alpha_", None)
        if chosen is None:
            return self.estimator
        return copied(self.estimator, Ridge, alpha=chosen)

    def penalties(self, total: float) -> tuple[Any, float]:
        """Return alpha, 0."""
        return getattr(self.settings, "alpha", 0.0), 0.0

    def variance(self) -> Callable[[Any], Any] | None:
        """Return 1, of one target."""
        return np.ones_like if len(self._coefficients()[0]) == 1 else None


class ElasticNetModel(LinearRegressorModel):
    """ElasticNet and Lasso, and their CV at the penalty that they chose."""

    @property
    def regularization(self) -> Regularization:
        """How the penalty depends on the rows: it is on the mean of their losses."""
        return "per_sample"

    def recipe(self) -> Any:
        """Return an estimator with the penalty that was used."""
        estimator = self.estimator
        if not hasattr(estimator, "alpha_"):
            return estimator
        chosen = {"alpha": float(estimator.alpha_)}
        kind = ElasticNet if hasattr(estimator, "l1_ratio") else Lasso
        if kind is ElasticNet:
            chosen["l1_ratio"] = float(estimator.l1_ratio_)
        precompute = getattr(estimator, "precompute", False)
        return copied(
            estimator, kind, **chosen, precompute=precompute not in (False, "auto")
        )

    def penalties(self, total: float) -> tuple[float, float]:
        """Return alpha (1 − r) and alpha r, times the sum of the weights."""
        strength = self.settings.alpha * total
        ratio = getattr(self.settings, "l1_ratio", 1.0)
        return strength * (1 - ratio), strength * ratio


class GeneralizedModel(LinearRegressorModel):
    """PoissonRegressor, GammaRegressor and TweedieRegressor."""

    @property
    def regularization(self) -> Regularization:
        """How the penalty depends on the rows: it is on the mean of their losses."""
        return "per_sample"

    def _power(self) -> float:
        return float(getattr(self.settings, "power", self.fixed_power))

    #: Power of an estimator that has none as a parameter.
    fixed_power = 0.0

    def _has_log_link(self) -> bool:
        link = getattr(self.settings, "link", "log")
        return bool(link == "log" or (link == "auto" and self._power() > 0))

    @property
    def loss(self) -> Loss:
        """Half the deviance of the predicted means."""
        return HalfDeviance(self._power())

    def reason_against(self) -> str | None:
        """Return why its objective is not convex."""
        power = self._power()
        if power == 0 and not self._has_log_link():
            return None
        if 1 <= power <= 2 and self._has_log_link():
            return None
        return (
            f"power={power:g} with link={self.settings.link!r} is not convex in the "
            "coefficients. Use a power from 1 to 2 with the logarithm, or 0 without."
        )

    def training_loss(self) -> Loss:
        """Return half the deviance in the logarithm of the mean."""
        if not self._has_log_link():
            return SquaredError()
        return LogLinkDeviance(self._power())

    def penalties(self, total: float) -> tuple[float, float]:
        """Return alpha times the sum of the weights, 0."""
        return self.settings.alpha * total, 0.0

    def variance(self) -> Callable[[Any], Any] | None:
        """Return the mean to its power."""
        return lambda mean: mean ** self._power()

    def has_dispersion(self) -> bool:
        """Say no for counts."""
        return self._power() != 1

    def link(self, outputs: Tensor) -> Tensor:
        """Return means."""
        return outputs.exp() if self._has_log_link() else outputs


class PoissonModel(GeneralizedModel):
    """PoissonRegressor."""

    fixed_power = 1.0


class GammaModel(GeneralizedModel):
    """GammaRegressor."""

    fixed_power = 2.0


class LinearSVRModel(ScaledIntercept, LinearRegressorModel):
    """LinearSVR, to be refitted with the squared loss outside its tube."""

    def reason_against(self) -> str | None:
        """Return why its objective has no second derivative."""
        if self.settings.loss != "squared_epsilon_insensitive":
            return (
                f"loss={self.settings.loss!r} has no curvature. Use "
                "loss='squared_epsilon_insensitive'."
            )
        return None

    def training_loss(self) -> Loss:
        """Return the squared error outside the tube."""
        return SquaredTube(float(self.settings.epsilon))

    def penalties(self, total: float) -> tuple[float, float]:
        """Return 1/C, 0."""
        return 1 / self.settings.C, 0.0
