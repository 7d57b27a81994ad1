"""Any estimator of scikit-learn that can be trained on weighted rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn import config_context
from sklearn.base import is_classifier, is_regressor
from sklearn.utils.validation import has_fit_parameter

from skattrib.models._parts import Parts, is_search, weight_name
from skattrib.models._protocol import Retrainable


class EstimatorModel(Retrainable):
    """An estimator known by its interface alone: it is retrained, and that is all."""

    def check(self) -> None:
        """Raise unless it predicts, and its fit takes weights of the rows."""
        estimator = self.estimator
        if not (is_classifier(estimator) or is_regressor(estimator)):
            raise ValueError(
                f"estimator {self.name} is neither a classifier nor a regressor."
            )
        super().check()
        trained = estimator
        if is_search(estimator):
            trained = Parts(estimator.estimator).model
        if not has_fit_parameter(trained, "sample_weight"):
            raise ValueError(
                f"fit of {type(trained).__name__} takes no sample_weight: it cannot be "
                "retrained on weighted rows. Use an estimator that does."
            )

    def retrain(self, X: Any, y: Any, weights: Any, seed: int) -> Any:
        """Return a clone fitted to weighted rows; ``seed`` is in its parameters."""
        fitted = self.clone()
        try:
            with config_context(enable_metadata_routing=False):
                return fitted.fit(X, y, **{weight_name(fitted): weights})
        except ValueError as error:
            present = np.unique(y[weights > 0]) if is_classifier(fitted) else y
            absent = np.setdiff1d(y, present)
            if not len(absent):
                raise
            raise ValueError(
                f"{self.name} could not be trained on a subset without the classes "
                f"{absent[:5].tolist()}: {error} Keep more units in every subset, or "
                "merge rare classes."
            ) from error
