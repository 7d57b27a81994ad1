"""An estimator in parts: transformers that are kept, and the model that is attributed.

In a pipeline only the last step learns from the weights of rows. What comes before it
is fitted once, on all rows, and kept, by attributors and in retraining alike; X stays
what the user has. So does y, which a TransformedTargetRegressor turns into what the
model is trained on. A search keeps what it chose.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import _safe_indexing, get_tags
from sklearn.utils.validation import check_is_fitted

from skattrib._validation import blamed
from skattrib.engine._losses import Loss, OutcomeFunction
from skattrib.models._reading import ReadsTexts
from skattrib.models._targets import (
    OriginalUnits,
    fit_target_transformer,
    transformed_targets,
)

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
        The estimator, fitted once its transformers and its model are.
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

        self._before: list[Pipeline | TransformedTargetRegressor | ReadsTexts] = []
        self._within: list[Any] = []  # what each TransformedTargetRegressor fits
        self._holder: Pipeline | TransformedTargetRegressor | ReadsTexts | None = None
        while _has_parts(inner):
            self._holder = inner
            if isinstance(inner, ReadsTexts):
                self._before.append(inner)
                inner = inner._present_network()
            elif isinstance(inner, TransformedTargetRegressor):
                self._before.append(inner)
                inner = _regressor_of(inner)
                self._within.append(inner)
            else:
                if len(inner.steps) > 1:
                    self._before.append(inner[:-1])
                inner = inner.steps[-1][1]
                _check_last(inner)
        wrap = self._frozen and not isinstance(inner, FrozenEstimator)
        self.model = FrozenEstimator(inner) if wrap else inner

    @property
    def has_transformers(self) -> bool:
        """Whether something is done to rows before the model gets them."""
        return any(isinstance(part, Pipeline | ReadsTexts) for part in self._before)

    @property
    def reader(self) -> ReadsTexts | None:
        """What turns texts into tokens, if the model is one of language."""
        last = self._before[-1] if self._before else None
        return last if isinstance(last, ReadsTexts) else None

    @property
    def is_bare(self) -> bool:
        """Whether the model gets rows and targets as the user has them."""
        return not self._before

    @property
    def _regressors(self) -> list[TransformedTargetRegressor]:
        return [p for p in self._before if isinstance(p, TransformedTargetRegressor)]

    @property
    def units(self) -> OriginalUnits | None:
        """What turns targets back into the unit of y, if they are transformed."""
        return OriginalUnits(self._regressors) if self._regressors else None

    def fit_transformers(self, X: Any, y: Any) -> tuple[Any, Any]:
        """Fit what comes before the model, unless it is frozen.

        Returns
        -------
        rows, targets
            As the model takes them.
        """
        for part in (self.whole, self.model):
            if isinstance(part, FrozenEstimator):
                check_is_fitted(part.estimator, msg=_NOT_FITTED)
        if self._frozen:
            return self.rows(X, y)
        for part in self._before:
            if isinstance(part, Pipeline):
                with blamed(part, "transform X"):
                    X = part.fit_transform(X, y)
            elif isinstance(part, ReadsTexts):
                X, y = part._tokenised(X, y)
                part.network_ = self.model
            else:
                fit_target_transformer(part, y)
                y = transformed_targets(part, y)
        for part, inner in zip(self._regressors, self._within, strict=True):
            part.regressor_ = inner
        if self.units is not None:
            self.units.check(y)
        return X, y

    def rows(self, X: Any, y: Any) -> tuple[Any, Any]:
        """Return rows and targets as the model gets them."""
        if self.reader is not None and self.reader.has_completions:
            return self.reader._tokenised(X, y)
        return self.features(X), self.targets(y)

    def features(self, X: Any) -> Any:
        """Return rows as the model gets them."""
        given = X
        for part in self._before:
            if isinstance(part, ReadsTexts):
                X = part._tokenised(X)[0]
            elif isinstance(part, Pipeline):
                with blamed(part, "transform these rows"):
                    X = part.transform(X)
        if isinstance(given, pd.DataFrame):
            self._check_gaps(given, X)
        return X

    def _check_gaps(self, given: pd.DataFrame, features: Any) -> None:
        """Let the model refuse rows with NaN or infinity itself, as in `predict`.

        Of a table they were passed on, for a transformer may fill them.
        """
        gaps = given.isna() | given.isin([np.inf, -np.inf])
        rows = np.flatnonzero(gaps.any(axis=1))
        if not len(rows):
            return
        try:
            check_is_fitted(self.model)
        except NotFittedError:  # it says so when it is
            return
        self.model.predict(_safe_indexing(features, rows))

    def feature_names_out(self) -> Any:
        """Return the names of the columns that the model gets."""
        names = None
        for part in self._before:
            if isinstance(part, Pipeline):
                names = part.get_feature_names_out(names)
        return names

    def targets(self, y: Any) -> Any:
        """Return targets as the model gets them."""
        for regressor in self._regressors:
            y = transformed_targets(regressor, y)
        return y

    def outcome(
        self, outcome: str | OutcomeFunction, loss: Loss
    ) -> str | OutcomeFunction:
        """Return an outcome of the model's outputs, measured in the unit of y."""
        return outcome if self.units is None else self.units.outcome(outcome, loss)

    def fit_model(self, features: Any, targets: Any, **fit_params: Any) -> None:
        """Fit the model; the whole is fitted with it."""
        with blamed(self.model, "be fitted"):
            self.model.fit(features, targets, **fit_params)

    def with_model(self, model: Any) -> Parts:
        """Return the same with another model, which answers as this one does."""
        other = copy.copy(self)
        other.model = model
        return other

    def replace_model(self, fitted: Any) -> None:
        """Put a fitted model in the place of the model."""
        self.model = fitted
        if self._holder is None:
            self.whole = fitted
        elif isinstance(self._holder, Pipeline):
            self._holder.steps[-1] = (self._holder.steps[-1][0], fitted)
        elif isinstance(self._holder, ReadsTexts):
            self._holder.network_ = fitted
        else:
            self._holder.regressor_ = fitted

    def with_copy_of(self, fitted: Any) -> Any:
        """Return a copy of the whole with a fitted model in the place of the model."""
        if self._holder is None:
            return fitted
        copied = Parts(copy.deepcopy(self.whole))
        copied.replace_model(fitted)
        return copied.whole


def _regressor_of(regressor: TransformedTargetRegressor) -> Any:
    """Return what is fitted to the transformed targets, or was."""
    if hasattr(regressor, "regressor_"):
        return regressor.regressor_
    return LinearRegression() if regressor.regressor is None else regressor.regressor


def _has_parts(estimator: Any) -> bool:
    if isinstance(estimator, ReadsTexts):
        return estimator.trains
    return isinstance(estimator, Pipeline | TransformedTargetRegressor)


def _check_last(step: Any) -> None:
    if step is None or step == "passthrough" or not hasattr(step, "predict"):
        what = step if step is None or isinstance(step, str) else type(step).__name__
        raise ValueError(
            f"The pipeline ends in {what}, which predicts nothing: its last step must "
            "be the model that is attributed."
        )


def reads_texts(estimator: Any, *, table: bool = False) -> bool:
    """Say whether rows are texts, which the first step turns into numbers.

    Steps in front of it that are functions change texts, or pick those of a table.
    """
    if isinstance(estimator, FrozenEstimator):
        return reads_texts(estimator.estimator, table=table)
    if is_search(estimator):
        found = getattr(estimator, "best_estimator_", estimator.estimator)
        return reads_texts(found, table=table)
    if isinstance(estimator, ReadsTexts):
        return estimator.trains
    if isinstance(estimator, TransformedTargetRegressor):
        return reads_texts(_regressor_of(estimator), table=table)
    if not isinstance(estimator, Pipeline) or len(estimator.steps) < 2:
        return False
    first = next((step for _, step in estimator.steps if not _is_function(step)), None)
    if table and first is not estimator.steps[0][1]:
        return False
    if isinstance(first, Pipeline | ReadsTexts):
        return reads_texts(first, table=table)
    if not hasattr(first, "__sklearn_tags__"):
        return False
    tags = get_tags(first).input_tags
    return bool(tags.string and not tags.two_d_array)


def _is_function(step: Any) -> bool:
    """Say whether a step of a pipeline passes on what it gets, or a function of it."""
    if step is None or (isinstance(step, str) and step == "passthrough"):
        return True
    return isinstance(step, FunctionTransformer)


def takes_completions(estimator: Any) -> bool:
    """Say whether targets are texts, the completions of prompts."""
    if is_search(estimator):
        estimator = getattr(estimator, "best_estimator_", estimator.estimator)
    reader = Parts(estimator).reader
    return reader is not None and reader.has_completions


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


def weight_name(estimator: Any) -> str:
    """Return the name under which the fit of the whole estimator takes row weights."""
    steps: list[str] = []
    while isinstance(estimator, Pipeline | TransformedTargetRegressor) or is_search(
        estimator
    ):
        if is_search(estimator):
            estimator = estimator.estimator
        elif isinstance(estimator, TransformedTargetRegressor):
            estimator = estimator.regressor  # which gets them under their own names
        else:
            step, estimator = estimator.steps[-1]
            steps.append(step)
    return "__".join([*steps, "sample_weight"])
