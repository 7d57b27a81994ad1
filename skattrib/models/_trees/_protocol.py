"""What TreeInfluence asks of an ensemble of trees, one file a library."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import is_classifier
from sklearn.dummy import DummyClassifier
from sklearn.utils import _safe_indexing
from torch import Tensor

from skattrib._validation import as_numbers, blamed, label_positions
from skattrib.engine._losses import CrossEntropy, Loss, SquaredError
from skattrib.engine._losses._generalized import HalfDeviance
from skattrib.engine._losses._labels import BinaryCrossEntropy
from skattrib.engine._row_weights import RowWeighting
from skattrib.engine._trees import (
    Ensemble,
    LogLoss,
    PoissonLoss,
    PresentWeighting,
    SoftmaxLoss,
    SquaredLoss,
)
from skattrib.exceptions import UnsupportedModelError
from skattrib.models._any import EstimatorModel
from skattrib.models._linear._classifiers import among_classes

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.integer[Any]]


class TreeModel(EstimatorModel):
    """An ensemble of trees whose leaf values can be computed again.

    It is retrained, for the truth, as any other estimator.
    """

    first_attributors = ("TreeInfluence", "KernelSurrogateAttributor")
    #: Whether trees of a subset without a class say nothing of it.
    needs_all_classes = True

    # -------------------------------------------------------------- refusals
    def reason_against(self) -> str | None:
        """Return why leaf values cannot be computed again, None if they can."""
        return None

    def check_trees(self, user: Any) -> None:
        """Raise UnsupportedModelError unless leaf values can be computed again."""
        reason = self.reason_against()
        if reason is not None:
            name = type(user).__name__
            others = [other for other in self.attributors() if other != name]
            raise UnsupportedModelError(
                f"{name} cannot refit the leaves of {self.name}: {reason} "
                f"{' and '.join(others)} work, by retraining."
            )
        if self.needs_other_rows and not self.frozen:
            raise ValueError(
                f"{self.name} stops early by rows given to its fit, which models "
                "trained on subsets do not get. Set early_stopping_rounds=None, and "
                "n_estimators to what it chose; or fit it, and pass it in a "
                "FrozenEstimator."
            )

    def attributors(self) -> list[str]:
        """Return the names of the attributors that work for it."""
        known = super().attributors()
        if self.reason_against() is not None:
            known.remove("TreeInfluence")
        return known

    # -------------------------------------------------- what a family gives
    @property
    @abstractmethod
    def is_fitted(self) -> bool:
        """Whether the estimator is a fitted ensemble."""

    @property
    def needs_other_rows(self) -> bool:
        """Whether its fit asks for rows to validate with."""
        return False

    @property
    def refits_itself(self) -> bool:
        """Whether leaves refitted to all of its rows are as it has them.

        Not where trees saw some of the rows only.
        """
        return True

    @property
    def n_seen(self) -> int | None:
        """Number of rows that its fit was given, None if it does not say."""
        return None

    @abstractmethod
    def ensemble(
        self, X: Any, y: Any, own: FloatArray, trained: FloatArray
    ) -> Ensemble:
        """Return the structure of the fitted estimator.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
            All training rows.
        y : ndarray of shape (n,)
            Their targets.
        own : ndarray of shape (n,)
            Weights of the rows when all are present.
        trained : ndarray of shape (n,)
            Weights that it was fitted with; 0 is absent.
        """

    @abstractmethod
    def leaves(self, X: Any) -> IntArray:
        """Return the leaves of rows, as `TreeRefits` takes them."""

    @abstractmethod
    def raw_outputs(self, X: Any) -> FloatArray:
        """Return the fitted estimator's own raw outputs (q, n_outputs)."""

    @abstractmethod
    def link(self, raw: Tensor) -> Tensor:
        """Return outputs as `loss` takes them, from raw ones (..., n_outputs)."""

    # --------------------------------------------------------------- training
    def retrain(self, X: Any, y: Any, weights: Any, seed: int) -> Any:
        """Return a clone fitted to the rows whose weight is not 0.

        Some libraries make two classes of one.
        """
        kept = np.flatnonzero(weights)
        if is_classifier(self.estimator) and (y[kept] == y[kept[0]]).all():
            return DummyClassifier().fit(_safe_indexing(X, kept), y[kept])
        return super().retrain(X, y, weights, seed)

    # --------------------------------------------------------------- targets
    def training_targets(self, y: Any) -> Any:
        """Return codes of classes, or numbers, of training rows."""
        if not is_classifier(self.estimator):
            return as_numbers(y)
        return label_positions(self.estimator.classes_, np.asarray(y))

    def outputs(self, X: Any) -> Tensor:
        """Return outputs as `loss` takes them: log-probabilities, or predictions."""
        if not self.is_fitted:  # of one class
            return super().outputs(X)
        with blamed(self.estimator, "predict these rows"):
            raw = torch.tensor(np.asarray(self.raw_outputs(X), dtype=np.float64))
        known = self.link(raw)
        if not is_classifier(self.estimator) or self.classes is None:
            return known
        return among_classes(known, self.estimator.classes_, self.classes)

    @property
    def restores_classes(self) -> bool:
        """Whether outputs have a column for classes that a subset lacked: yes."""
        return True

    def class_weighting(
        self, class_weight: Any, y: Any, own: FloatArray
    ) -> RowWeighting:
        """Return what ``class_weight`` of scikit-learn's meaning does to weights."""
        if class_weight is None:
            return RowWeighting()
        codes = torch.tensor(self.training_targets(y))
        if isinstance(class_weight, str):
            return PresentWeighting(balanced=codes, own=torch.tensor(own))
        classes = self.estimator.classes_.tolist()
        factors = [float(class_weight.get(label, 1.0)) for label in classes]
        return RowWeighting(torch.tensor(factors, dtype=torch.float64)[codes])


class BoosterModel(TreeModel):
    """Boosted trees: outputs are sums over trees."""

    @abstractmethod
    def objective_name(self) -> str:
        """Return "squared", "log", "poisson", or another name."""

    #: What to use instead of other objectives.
    cure = ""
    #: Names of objectives whose leaves can be refitted.
    known = ("squared", "log", "poisson")
    #: What second derivatives of a softmax are multiplied by, for so many classes.
    softmax_factor = staticmethod(lambda n_classes: 1.0)
    #: Whether constants of a softmax add up to 0.
    centred = True

    def reason_against(self) -> str | None:
        """Return why leaf values cannot be computed again, None if they can."""
        name = self.objective_name()
        if name not in self.known:
            return (
                f"its objective {name!r} is not one of {', '.join(self.known)}, of "
                f"which the values of leaves are known. {self.cure}"
            )
        return None

    @property
    def loss(self) -> Loss:
        """Loss of the predictions, as an outcome."""
        if is_classifier(self.estimator):
            return CrossEntropy()
        return (
            HalfDeviance(1.0) if self.objective_name() == "poisson" else SquaredError()
        )

    def n_outputs(self) -> int:
        """Return the number of raw outputs."""
        if not is_classifier(self.estimator):
            return 1
        n_classes = len(self.estimator.classes_)
        return 1 if n_classes == 2 else n_classes

    def objective(self) -> Any:
        """Return what the leaves minimise."""
        name, n_outputs = self.objective_name(), self.n_outputs()
        if name == "squared":
            return SquaredLoss()
        if name == "poisson":
            return PoissonLoss(damping=self.poisson_damping())
        if n_outputs == 1:
            return LogLoss()
        factor = self.softmax_factor(n_outputs)
        return SoftmaxLoss(n_outputs, factor=factor, centred=self.centred)

    def poisson_damping(self) -> float:
        """Return what is added to outputs in second derivatives of counts."""
        return 0.0

    def link(self, raw: Tensor) -> Tensor:
        """Return log-probabilities, means of counts, or predictions."""
        if not is_classifier(self.estimator):
            return raw.exp() if self.objective_name() == "poisson" else raw
        if raw.shape[-1] == 1:
            return BinaryCrossEntropy().log_probabilities(raw)
        return raw.log_softmax(-1)
