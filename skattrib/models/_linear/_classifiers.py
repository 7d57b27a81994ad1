"""Linear classifiers of scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from torch import Tensor

from skattrib._validation import label_positions
from skattrib.engine._convex import ConvexRefits
from skattrib.engine._losses import ClassLoss, CrossEntropy, Loss
from skattrib.engine._losses._generalized import Hinge, SquaredHinge, SquaredSigns
from skattrib.engine._losses._labels import BinaryCrossEntropy
from skattrib.engine._row_weights import RowWeighting
from skattrib.exceptions import UnsupportedModelError
from skattrib.models._linear._protocol import LinearModel, ScaledIntercept, copied

# Log-probability of a class without rows, as of `Retrainable.outputs`.
_NEVER = float(np.log(np.finfo(np.float64).eps))


class _CountedWeighting(RowWeighting):
    """Balances classes by the number of their rows, whatever these weigh."""

    def __call__(self, weights: Tensor) -> Tensor:
        """Return the weights (k, n) in the loss, from sample weights."""
        return weights * super().__call__((weights > 0).to(weights))


def among_classes(known: Tensor, of: Any, classes: Any) -> Tensor:
    """Return log-probabilities of some classes among all; others have next to none."""
    out = known.new_full((len(known), len(classes)), _NEVER)
    out[:, np.searchsorted(classes, of)] = known
    return out


class LinearClassifierModel(LinearModel):
    """A linear classifier: two classes have one linear output, more one each."""

    def _classes(self) -> Any:
        return self.estimator.classes_

    def training_targets(self, y: Any) -> Tensor:
        """Return codes."""
        return torch.tensor(label_positions(self._classes(), np.asarray(y)))

    def weighting(self, y: Any) -> RowWeighting:
        """Return what class_weight does."""
        class_weight, classes = self.settings.class_weight, self._classes()
        if class_weight is None:
            return RowWeighting()
        codes = self.training_targets(y)
        if isinstance(class_weight, str):
            return self._balanced(codes)
        factors = [float(class_weight.get(label, 1.0)) for label in classes.tolist()]
        return RowWeighting(torch.tensor(factors, dtype=torch.float64)[codes])

    def _balanced(self, codes: Tensor) -> RowWeighting:
        return RowWeighting(balanced=codes)

    def output_names(self) -> list[str]:
        """Return the classes; none of two, where the output is the second's."""
        classes = self._classes()
        return [str(label) for label in (classes[1:] if len(classes) == 2 else classes)]


class LogisticModel(LinearClassifierModel):
    """LogisticRegression, and LogisticRegressionCV at the penalty that it chose."""

    def recipe(self) -> Any:
        """Return a LogisticRegression with the penalty that was used."""
        estimator = self.estimator
        if not hasattr(estimator, "C_"):
            return estimator
        strengths = {"C": float(np.ravel(estimator.C_)[0])}
        chosen = getattr(estimator, "l1_ratio_", None)
        ratio = (
            None if chosen is None else np.ravel(np.asarray(chosen, dtype=object))[0]
        )
        if ratio is not None:
            strengths["l1_ratio"] = float(ratio)
        # its last fit, to all rows, is at the default of this
        strengths["intercept_scaling"] = 1.0
        return copied(estimator, LogisticRegression, **strengths)

    def reason_against(self) -> str | None:
        """Return why it has another objective, None if it has this."""
        if getattr(self.settings, "multi_class", None) == "ovr":
            return "multi_class='ovr' trains one model per class. Use the default."
        chosen = getattr(self.estimator, "C_", None)
        if chosen is not None and len(np.unique(chosen)) > 1:
            return "it chose a C for each class."
        if hasattr(self.estimator, "Cs") and not self.estimator.refit:
            return "refit=False averages models of several folds. Use refit=True."
        return None

    def training_loss(self) -> Loss:
        """Return the logistic loss, or that of a softmax."""
        return BinaryCrossEntropy() if len(self._classes()) == 2 else CrossEntropy()

    def penalties(self, total: float) -> tuple[float, float]:
        """Return (1 − r)/C and r/C."""
        settings = self.settings
        penalty = getattr(settings, "penalty", "deprecated")
        ratio = settings.l1_ratio or 0.0
        if penalty is None or np.isinf(settings.C):
            return 0.0, 0.0
        ratio = {"l1": 1.0, "l2": 0.0}.get(penalty, ratio)
        return (1 - ratio) / settings.C, ratio / settings.C

    def _is_liblinear(self) -> bool:
        return bool(self.settings.solver == "liblinear")

    def intercept_column(self) -> float | None:
        """Return 1, or what liblinear, which penalises the intercept, scales it by."""
        if not self.settings.fit_intercept:
            return None
        return float(self.settings.intercept_scaling) if self._is_liblinear() else 1.0

    def penalises_intercept(self) -> bool:
        """Say whether the solver is liblinear."""
        return self._is_liblinear()

    def link(self, outputs: Tensor) -> Tensor:
        """Return log-probabilities (..., K)."""
        if outputs.shape[-1] == 1:
            return BinaryCrossEntropy().log_probabilities(outputs)
        return outputs.log_softmax(-1)

    def variance(self) -> Callable[[Any], Any] | None:
        """Return p (1 − p), of two classes without an l1 penalty."""
        if len(self._classes()) > 2 or self.penalties(1.0)[1]:
            return None
        return lambda mean: mean * (1 - mean)

    def has_dispersion(self) -> bool:
        """Say no: the variance is known."""
        return False

    def mean(self, outputs: Tensor) -> Tensor:
        """Return probabilities of the second class."""
        return outputs.sigmoid()

    @property
    def restores_classes(self) -> bool:
        """Whether outputs have a column for classes that a subset lacked: yes."""
        return True

    def outputs(self, X: Any) -> Tensor:
        """Return log-probabilities (q, K), however small."""
        if not hasattr(self.estimator, "coef_"):  # fitted to one class
            return super().outputs(X)
        known = self.link(self.linear_outputs(X))
        if self.classes is None:
            return known
        return among_classes(known, self._classes(), self.classes)

    def check_optimum(self, refits: ConvexRefits) -> None:
        """Raise if classes are separated without a penalty."""
        super().check_optimum(refits)
        objective = refits.objective
        if objective.is_penalised:
            return
        loss = cast(ClassLoss, objective.loss)
        kept = objective.weights > 0
        margins = loss.margin(refits.outputs[kept], objective.targets[kept])
        right = loss.predict(refits.outputs[kept]) == objective.targets[kept]
        if bool((right & (margins != 0)).all()):
            raise ValueError(
                f"{self.name} has no penalty, and a plane separates the classes of all "
                "training rows: the likelihood grows without end, and the coefficients "
                "are where the solver gave up. Use a finite C, such as C=1e4."
            )


class _DecisionModel(LinearClassifierModel):
    """A classifier that has decision values and no probabilities."""

    @property
    def restores_classes(self) -> bool:
        """Whether outputs have a column for classes that a subset lacked: no."""
        return False

    def check(self) -> None:
        """Accept it: outcomes are minus its loss, and the signed decision value."""

    def outputs(self, X: Any) -> Tensor:
        """Return decision values (q, 1) of two classes, else (q, K)."""
        return self.linear_outputs(X)


class LinearSVCModel(ScaledIntercept, _DecisionModel):
    """LinearSVC, to be refitted with the squared hinge."""

    @property
    def loss(self) -> Loss:
        """Loss that it minimises, as an outcome."""
        return SquaredHinge() if self._is_smooth() else Hinge()

    def _is_smooth(self) -> bool:
        return bool(self.settings.loss == "squared_hinge")

    def reason_against(self) -> str | None:
        """Return why its objective has no second derivative."""
        if self.settings.multi_class != "ovr":
            return "multi_class='crammer_singer' is another problem. Use 'ovr'."
        if not self._is_smooth():
            return (
                "loss='hinge' has no curvature. Use loss='squared_hinge', the default."
            )
        return None

    def weighting(self, y: Any) -> RowWeighting:
        """Return what class_weight does to two classes."""
        if self.settings.class_weight is not None and len(self._classes()) > 2:
            # liblinear weighs the class, and not the rest that it is against
            raise UnsupportedModelError(
                f"class_weight={self.settings.class_weight!r} of a LinearSVC with more "
                "than two classes weighs the same row differently in each of its "
                "problems. Use class_weight=None, or sample_weight=; or "
                "KernelSurrogateAttributor, by retraining."
            )
        return super().weighting(y)

    def training_loss(self) -> Loss:
        """Return the squared hinge."""
        return SquaredHinge()

    def penalties(self, total: float) -> tuple[float, float]:
        """Return 1/C on either."""
        strength = 1 / self.settings.C
        return (strength, 0.0) if self.settings.penalty == "l2" else (0.0, strength)


class RidgeClassifierModel(_DecisionModel):
    """RidgeClassifier, and RidgeClassifierCV at the alpha that it chose."""

    def recipe(self) -> Any:
        """Return a RidgeClassifier with the alpha that was used."""
        chosen = getattr(self.estimator, "alpha_", None)
        if chosen is None:
            return self.estimator
        return copied(self.estimator, RidgeClassifier, alpha=float(chosen))

    @property
    def loss(self) -> Loss:
        """Loss that it minimises, as an outcome."""
        return SquaredSigns()

    def reason_against(self) -> str | None:
        """Return why its objective has no derivative."""
        if getattr(self.settings, "positive", False):
            return "positive=True bounds the coefficients. Use positive=False."
        return None

    def training_loss(self) -> Loss:
        """Return squared errors of signs."""
        return SquaredSigns()

    def penalties(self, total: float) -> tuple[float, float]:
        """Return alpha, 0."""
        return float(self.settings.alpha), 0.0

    def _balanced(self, codes: Tensor) -> RowWeighting:
        return _CountedWeighting(balanced=codes)
