"""One linear model for each output: OneVsRestClassifier and MultiOutputRegressor."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.linear_model import (
    GammaRegressor,
    LinearRegression,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
    RidgeClassifier,
    TweedieRegressor,
)
from sklearn.svm import LinearSVC, LinearSVR
from torch import Tensor, nn

from skattrib._validation import label_positions
from skattrib.engine._losses import Loss
from skattrib.engine._losses._labels import BinaryCrossEntropies, BinaryCrossEntropy
from skattrib.engine._penalties import Regularization
from skattrib.models._decisions import has_decisions_alone
from skattrib.models._linear._classifiers import (
    LinearSVCModel,
    LogisticModel,
    RidgeClassifierModel,
    among_classes,
)
from skattrib.models._linear._protocol import LinearModel
from skattrib.models._linear._regressors import (
    GammaModel,
    GeneralizedModel,
    LinearSVRModel,
    PoissonModel,
    RidgeModel,
)

_CLASSIFIERS: dict[type, type[LinearModel]] = {
    LogisticRegression: LogisticModel,
    LinearSVC: LinearSVCModel,
    RidgeClassifier: RidgeClassifierModel,
}
_REGRESSORS: dict[type, type[LinearModel]] = {
    LinearRegression: RidgeModel,
    Ridge: RidgeModel,
    PoissonRegressor: PoissonModel,
    GammaRegressor: GammaModel,
    TweedieRegressor: GeneralizedModel,
    LinearSVR: LinearSVRModel,
}


class _ComposedModel(LinearModel):
    """A linear model of the same kind for each output."""

    kinds: dict[type, type[LinearModel]]

    @property
    def inner(self) -> LinearModel | None:
        """The model of the first output, if it is one of the known kinds."""
        fitted = getattr(self.estimator, "estimators_", [self.estimator.estimator])
        kind = self.kinds.get(type(fitted[0]))
        return None if kind is None else kind(fitted[0])

    def reason_against(self) -> str | None:
        """Return why its objective is not known."""
        inner = self.inner
        if inner is None:
            known = ", ".join(kind.__name__ for kind in self.kinds)
            name = type(self.estimator.estimator).__name__
            return f"of {name} it is not known how (of {known} it is)."
        if getattr(inner.settings, "class_weight", None) is not None:
            return "class_weight differs from output to output. Use None."
        return inner.reason_against()

    def _known(self) -> LinearModel:
        inner = self.inner
        if inner is None:
            raise self.lacks("DualInfluence", "a known objective")
        return inner

    def training_loss(self) -> Loss:
        """Return the loss of one output, which is a sum over more."""
        return self._known().training_loss()

    def penalties(self, total: float) -> tuple[Any, Any]:
        """Return those of one output."""
        return self._known().penalties(total)

    def intercept_column(self) -> float | None:
        """Return that of one output."""
        return self._known().intercept_column()

    def penalises_intercept(self) -> bool:
        """Say whether one output's is penalised."""
        return self._known().penalises_intercept()

    def _coefficients(self) -> tuple[Any, Any]:
        models = self.estimator.estimators_
        coefficients = [np.ravel(model.coef_) for model in models]
        intercepts = [float(np.ravel(model.intercept_)[0]) for model in models]
        return np.array(coefficients, dtype=np.float64), np.array(intercepts)


class MultiOutputModel(_ComposedModel):
    """MultiOutputRegressor."""

    kinds = _REGRESSORS

    @property
    def regularization(self) -> Regularization:
        """Whether the penalty grows with the rows."""
        return self._known().regularization

    @property
    def loss(self) -> Loss:
        """Loss of one output, a sum over more."""
        return super().loss if self.inner is None else self.inner.loss

    def training_targets(self, y: Any) -> Tensor:
        """Return numbers (n, C)."""
        return self._known().training_targets(y)

    def link(self, outputs: Tensor) -> Tensor:
        """Return predictions."""
        return self._known().link(outputs)


class OneVsRestModel(_ComposedModel):
    """OneVsRestClassifier of single labels: each class against the others."""

    kinds = _CLASSIFIERS

    def _is_logistic(self) -> bool:
        return isinstance(self.inner, LogisticModel)

    @property
    def loss(self) -> Loss:
        """Log-likelihood where there are probabilities, else the inner loss."""
        inner = self.inner
        return super().loss if inner is None or self._is_logistic() else inner.loss

    @property
    def by_decisions(self) -> bool:
        """Whether outputs are decision values of models that are only retrained."""
        return self.inner is None and has_decisions_alone(self.estimator)

    def check(self) -> None:
        """Accept it without probabilities where there are decision values."""
        if self.inner is None:
            super().check()

    @property
    def restores_classes(self) -> bool:
        """Whether outputs have a column for classes that a subset lacked."""
        return self._is_logistic()

    def training_loss(self) -> Loss:
        """Return the loss of one against the rest, summed."""
        return (
            BinaryCrossEntropies() if self._is_logistic() else super().training_loss()
        )

    def training_targets(self, y: Any) -> Tensor:
        """Return 1 at the class, else 0 (n, C); codes where losses take these."""
        classes = self.estimator.classes_
        codes = torch.tensor(label_positions(classes, np.asarray(y)))
        if not self._is_logistic():
            return codes
        if len(classes) == 2:
            return codes[:, None].double()
        return nn.functional.one_hot(codes, len(classes)).double()

    def link(self, outputs: Tensor) -> Tensor:
        """Return log-probabilities, those of all classes made to add up to 1."""
        if not self._is_logistic():
            return outputs
        if outputs.shape[-1] == 1:
            return BinaryCrossEntropy().log_probabilities(outputs)
        alone = nn.functional.logsigmoid(outputs)
        return alone - alone.logsumexp(-1, keepdim=True)

    def outputs(self, X: Any) -> Tensor:
        """Return log-probabilities (q, K), or decision values."""
        classes = getattr(self.estimator, "classes_", ())
        if len(classes) == 1 and self.classes is not None:
            certain = torch.zeros(X.shape[0], 1, dtype=torch.double)
            return among_classes(certain, classes, self.classes)
        if self.inner is None or not hasattr(self.estimator, "estimators_"):
            return super().outputs(X)
        known = self.link(self.linear_outputs(X))
        if not self._is_logistic() or self.classes is None:
            return known
        return among_classes(known, self.estimator.classes_, self.classes)

    def output_names(self) -> list[str]:
        """Return the classes; none of two, where the output is the second's."""
        classes = self.estimator.classes_
        return [str(label) for label in (classes[1:] if len(classes) == 2 else classes)]
