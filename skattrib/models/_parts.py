"""An estimator in parts: transformers that are kept, and the model that is attributed.

In a pipeline only the last step learns from the weights of rows. What comes before it
is fitted once, on all rows, and kept, by attributors and in retraining alike; X stays
what the user has. A search keeps what it chose.
"""

from __future__ import annotations

from typing import Any

from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

_NOT_FITTED = (
    "The frozen %(name)s is not fitted: fit it first, or leave FrozenEstimator out to "
    "have it trained."
)


class Parts:
    """Transformers and the model after them.

    Parameters
    ----------
    estimator : estimator
        Frozen or not; a pipeline of pipelines, or neither.

    Attributes
    ----------
    whole : estimator
        The estimator, fitted by `fit`.
    model : estimator
        What is attributed: the last step, frozen if the whole is.
    """

    def __init__(self, estimator: Any) -> None:
        self.whole = estimator
        self._frozen = isinstance(estimator, FrozenEstimator)
        inner = estimator.estimator if self._frozen else estimator
        if self._frozen and isinstance(inner, BaseSearchCV):
            check_is_fitted(inner, msg=_NOT_FITTED)
            inner = inner.best_estimator_

        self._before: list[Pipeline] = []
        self._last: Pipeline | None = None
        while isinstance(inner, Pipeline):
            if len(inner.steps) > 1:
                self._before.append(inner[:-1])
            self._last, inner = inner, inner.steps[-1][1]
            _check_last(inner)
        wrap = self._frozen and not isinstance(inner, FrozenEstimator)
        self.model = FrozenEstimator(inner) if wrap else inner

    @property
    def has_transformers(self) -> bool:
        """Whether something is done to rows before the model gets them."""
        return bool(self._before)

    def fit_transformers(self, X: Any, y: Any) -> Any:
        """Fit what comes before the model, unless it is frozen; return its rows."""
        for part in (self.whole, self.model):
            if isinstance(part, FrozenEstimator):
                check_is_fitted(part.estimator, msg=_NOT_FITTED)
        if self._frozen:
            return self.features(X)
        for steps in self._before:
            X = steps.fit_transform(X, y)
        return X

    def features(self, X: Any) -> Any:
        """Return rows as the model gets them."""
        for steps in self._before:
            X = steps.transform(X)
        return X

    def fit_model(self, features: Any, y: Any, **fit_params: Any) -> None:
        """Fit the model; the whole is fitted with it."""
        self.model.fit(features, y, **fit_params)

    def replace_model(self, fitted: Any) -> None:
        """Put a fitted model in the place of the model."""
        self.model = fitted
        if self._last is None:
            self.whole = fitted
        else:
            self._last.steps[-1] = (self._last.steps[-1][0], fitted)


def _check_last(step: Any) -> None:
    if step is None or step == "passthrough" or not hasattr(step, "predict"):
        what = step if step is None or isinstance(step, str) else type(step).__name__
        raise ValueError(
            f"The pipeline ends in {what}, which predicts nothing: its last step must "
            "be the model that is attributed."
        )


def searched(estimator: Any, X: Any, y: Any, **fit_params: Any) -> tuple[Any, Any]:
    """Search, if the estimator does; return it, and what is to be attributed.

    That is an unfitted copy of the best estimator: it is trained once more as it will
    be on other weights of the rows.
    """
    if not isinstance(estimator, BaseSearchCV):
        return None, estimator
    estimator.fit(X, y, **fit_params)
    if not hasattr(estimator, "best_estimator_"):
        raise ValueError(
            f"{type(estimator).__name__} has refit={estimator.refit}: there is no best "
            "estimator to attribute. Use refit=True."
        )
    return estimator, clone(estimator.best_estimator_)


def is_search(estimator: Any) -> bool:
    """Say whether an estimator searches for its parameters when it is fitted."""
    return isinstance(estimator, BaseSearchCV)
