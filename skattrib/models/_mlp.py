"""The family of scikit-learn's multilayer perceptrons.

A fitted one is also a module of torch, so that it has gradients; it is trained again by
its own fit, on the rows that are left.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy import sparse
from sklearn.base import is_classifier
from sklearn.dummy import DummyClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.utils import _safe_indexing
from torch import Tensor, nn

from skattrib._validation import (
    as_numbers,
    as_tensor,
    blamed,
    dense,
    first_labels,
    label_positions,
)
from skattrib.engine._losses import (
    CrossEntropy,
    Loss,
    MeanOutcome,
    OutcomeFunction,
    SetMeasure,
    SquaredError,
)
from skattrib.engine._losses._labels import BinaryCrossEntropies, BinaryCrossEntropy
from skattrib.engine._losses._values import PoissonError
from skattrib.exceptions import FaithfulnessWarning, UnsupportedModelError
from skattrib.models._any import EstimatorModel
from skattrib.models._mlp_run import (
    RunSummary,
    cannot_be_repeated,
    module_of,
    replayed,
    summary_of,
)
from skattrib.models._protocol import Differentiable, Retrainable
from skattrib.models.neural import TorchClassifier, TorchRegressor

# The probability of a class without rows, as in `Retrainable.outputs`.
_ABSENT = float(np.log(np.finfo(np.float64).eps))
# Of the loss that the last epoch had, so much is that of other rows; beyond so little
# that it may be the last steps.
_OTHER_LOSS, _LITTLE = 2.0, 0.01


class _Shown(Loss):
    """A loss whose callable outcomes are of what the estimator predicts.

    Retraining measures log-probabilities and predictions, the module has logits.
    """

    def outcome(self, outcome: str | OutcomeFunction) -> OutcomeFunction:
        """Return an outcome of the module's outputs."""
        function = super().outcome(outcome)
        if not callable(outcome) or isinstance(outcome, MeanOutcome):
            return function
        if isinstance(function, SetMeasure):
            return replace(function, function=partial(self._of_shown, outcome))
        return partial(self._of_shown, function)

    def _of_shown(
        self, function: OutcomeFunction, outputs: Tensor, targets: Tensor
    ) -> Tensor:
        return function(self._shown(outputs), targets)

    def _shown(self, outputs: Tensor) -> Tensor:
        return self.log_probabilities(outputs)


class _Classes(_Shown, CrossEntropy):
    """Cross-entropy of several classes."""


class _TwoClasses(_Shown, BinaryCrossEntropy):
    """Cross-entropy of two classes by one output."""


class _Labels(_Shown, BinaryCrossEntropies):
    """Cross-entropies of labels."""


class _Counts(_Shown, PoissonError):
    """Poisson deviance, of the logarithm of the rate."""

    def _shown(self, outputs: Tensor) -> Tensor:
        return self.predict(outputs)


class MLPModel(EstimatorModel, Differentiable):
    """An MLPClassifier or MLPRegressor of scikit-learn."""

    first_attributors = ("DualInfluence", "KernelSurrogateAttributor")
    _module: nn.Module | None = None

    @property
    def takes_tables(self) -> bool:
        """Whether a data frame is passed on unchanged: no, rows become numbers."""
        return False

    # ------------------------------------------------------------ what it computes
    @property
    def loss(self) -> Loss:
        """Loss of a row, without the penalty; before the fit, that of its kind."""
        if not is_classifier(self.estimator):
            counts = getattr(self.estimator, "loss", None) == "poisson"
            return _Counts() if counts else SquaredError()
        if self._has_labels:
            return _Labels()
        return _TwoClasses() if self._known_classes(2) else _Classes()

    def future_loss(self, X: Any, y: Any) -> Loss:
        """Return `loss` as it will be once the estimator is fitted to these rows."""
        if self.frozen or not is_classifier(self.estimator):
            return self.loss
        if y.ndim > 1 and y.shape[1] > 1:
            return _Labels()
        classes = np.unique(y)
        if len(classes) < 2:
            raise ValueError(
                f"y holds one class only ({classes[0]!r}); a classifier needs samples "
                "of at least 2 classes in the data."
            )
        return _TwoClasses() if len(classes) == 2 else _Classes()

    @property
    def _has_labels(self) -> bool:
        """Whether it was fitted to several labels a row."""
        binarizer = getattr(self.estimator, "_label_binarizer", None)
        return getattr(binarizer, "y_type_", "").startswith("multilabel")

    def _known_classes(self, n_classes: int) -> bool:
        """Say whether there are so many classes."""
        known = self.classes
        if known is None:
            known = getattr(self.estimator, "classes_", ())
        return len(known) == n_classes

    @property
    def module(self) -> nn.Module:
        """The fitted layers as a module, up to the output activation."""
        if self._module is None:
            self._module = module_of(self.estimator)
        return self._module

    def in_double(self) -> MLPModel:
        """Return the model with its weights in double precision."""
        estimator = copy.copy(self.estimator)
        for name in ("coefs_", "intercepts_"):
            values = getattr(estimator, name)
            setattr(estimator, name, [np.asarray(v, dtype=np.float64) for v in values])
        return type(self)(estimator, frozen=self.frozen)

    def moved(self, change: Any) -> Any:
        """Return a copy of the estimator whose weights are moved."""
        estimator = copy.deepcopy(self.estimator)
        places = iter(np.split(change, np.cumsum(self._sizes())[:-1]))
        for weights, bias in zip(estimator.coefs_, estimator.intercepts_, strict=True):
            weights += next(places).reshape(weights.T.shape).T.astype(weights.dtype)
            bias += next(places).astype(bias.dtype)
        return estimator

    def _sizes(self) -> list[int]:
        """Return how many numbers each parameter of the module has."""
        return [parameter.numel() for parameter in self.module.parameters()]

    def outputs(self, X: Any) -> Tensor:
        """Return outputs (q, C) as the loss takes them: those of the module.

        A class that the estimator has not seen has a column for a probability of 0.
        """
        if not hasattr(self.estimator, "coefs_"):  # what predicts the only class
            log_probabilities = Retrainable.outputs(self, X)
            return self._as_outputs(log_probabilities)
        like = next(self.module.parameters())
        rows = as_tensor(X.toarray() if sparse.issparse(X) else X, like)
        if rows.ndim != 2 or rows.shape[1] != like.shape[1]:
            with blamed(self.estimator, "predict these rows"):
                self.estimator.predict(X)  # which says what it expects
        with torch.no_grad():
            outputs: Tensor = self.module(rows)
        own = getattr(self.estimator, "classes_", None)
        if self.classes is None or own is None or len(own) == len(self.classes):
            return outputs
        of_subset = _TwoClasses() if outputs.shape[1] == 1 else _Classes()
        seen = of_subset.log_probabilities(outputs)
        everything = seen.new_full((len(seen), len(self.classes)), _ABSENT)
        everything[:, np.searchsorted(self.classes, own)] = seen
        return self._as_outputs(everything)

    def _as_outputs(self, log_probabilities: Tensor) -> Tensor:
        """Return log-probabilities of all classes as outputs."""
        if log_probabilities.shape[1] != 2:
            return log_probabilities
        return log_probabilities[:, 1:] - log_probabilities[:, :1]

    @property
    def restores_classes(self) -> bool:
        """Whether outputs have a column for classes that a subset lacked."""
        return True

    def targets(self, y: Any, like: Tensor) -> Tensor:
        """Return targets as the loss takes them, where ``like`` is."""
        y = dense(y)
        if not is_classifier(self.estimator):
            values = as_numbers(y)
            return as_tensor(values[:, None] if values.ndim == 1 else values, like)
        if self._has_labels:
            return self._label_targets(y, like)
        classes = self.estimator.classes_ if self.classes is None else self.classes
        if y.ndim != 1:
            raise ValueError(f"y must be labels in one column, got shape {y.shape}.")
        positions = label_positions(classes, y)
        if (positions < 0).any():
            raise ValueError(
                f"y holds labels unseen in fit: {first_labels(y[positions < 0])}; "
                f"known are {np.asarray(classes)[:10].tolist()}. Leave these rows out."
            )
        return torch.tensor(positions, dtype=torch.int64, device=like.device)

    def _label_targets(self, y: Any, like: Tensor) -> Tensor:
        n_labels = self.estimator.n_outputs_
        if y.ndim != 2 or y.shape[1] != n_labels or not np.isin(y, (0, 1)).all():
            raise ValueError(
                f"y must have {n_labels} columns of 0 and 1, a label each, as in fit; "
                f"got shape {y.shape}."
            )
        return as_tensor(y, like)

    def encode(self, y: Any, like: Tensor) -> Tensor:
        """Return targets as the loss takes them, where ``like`` is."""
        return self.targets(y, like)

    def warn_of_other_rows(self, X: Any, y: Any, weights: Any, stacklevel: int) -> None:
        """Warn if its loss on these rows is far above that of its last epoch."""
        mlp = self.estimator
        known = getattr(mlp, "loss_", None)
        if known is None or y.ndim != 1 or isinstance(self.loss, _Counts):
            return
        seen = getattr(mlp, "t_", 0) / max(getattr(mlp, "n_iter_", 1), 1)
        if 0 < seen < len(X) / 2:  # partial_fit, whose loss is of its last batch
            return
        if mlp.early_stopping and getattr(mlp, "validation_scores_", None):
            known = mlp.loss_curve_[int(np.argmax(mlp.validation_scores_))]
        # of a number, half the squared error: what scikit-learn has, too
        losses = -self.outcomes(X, y, "log_likelihood").double().cpu().numpy()
        loss = float(np.average(losses, weights=weights))
        loss += mlp.alpha / 2 * sum(np.sum(w * w) for w in mlp.coefs_) / len(X)
        size = 1.0 if is_classifier(mlp) else float(np.var(y))
        if loss > _OTHER_LOSS * known + _LITTLE * size:
            warnings.warn(
                f"The frozen {self.name} has a loss of {loss:.3g} on these rows, and "
                f"had {known:.3g} when it was trained: those were other rows, labels "
                "or weights, or its last step led astray. Attributions are those of a "
                "model that does not exist. Pass what it was trained on.",
                FaithfulnessWarning,
                stacklevel=stacklevel + 1,
            )

    # ------------------------------------------------------------------- training
    def alike(self, X: Any, y: Any) -> Any:
        """Return an untrained network of its sizes, trained for as long at most."""
        mlp, n_epochs = self.estimator, self.estimator.max_iter
        mlp._validate_params()
        sizes = np.ravel(mlp.hidden_layer_sizes)
        if sparse.issparse(X) or (sizes < 1).any():  # its own fit says why not
            return None
        if self.frozen:
            n_epochs = mlp.n_iter_
        batch = None
        if mlp.solver != "lbfgs":
            batch = min(200 if mlp.batch_size == "auto" else mlp.batch_size, len(X))
        kind = TorchClassifier if is_classifier(mlp) else TorchRegressor
        return kind(
            hidden_layer_sizes=tuple(sizes.tolist()),
            loss=self.future_loss(X, y),
            batch_size=batch,
            max_epochs=n_epochs,
            random_state=0,
        )

    def retrain(self, X: Any, y: Any, weights: Any, seed: int) -> Any:
        """Return a clone fitted to the rows whose weight is not 0, from this seed."""
        kept = np.flatnonzero(weights)
        if is_classifier(self.estimator) and y.ndim == 1:
            if (y[kept] == y[kept][:1]).all():
                # its own fit to one class gives probabilities of two
                return DummyClassifier().fit(_safe_indexing(X, kept), y[kept])
        seeded = EstimatorModel(self.clone().set_params(random_state=seed))
        return seeded.retrain(X, y, weights, seed)

    @property
    def trajectory(self) -> RunSummary | None:
        """How long it was trained, by which steps; None if that is not known."""
        return summary_of(self.estimator)

    def check_run(self, user: Any) -> None:
        """Raise unless its training can be repeated step by step."""
        reason = self._why_not_replayed()
        if reason:
            raise UnsupportedModelError(self._not_replayed(type(user).__name__, reason))
        if user.n_models > 1:
            raise ValueError(
                f"n_models={user.n_models} needs an estimator that can be trained from "
                f"other seeds; of an {self.name} one run is repeated. Use n_models=1."
            )

    def replayed(self, X: Any, y: Any, weights: Any) -> Any:
        """Return a fitted network of skattrib whose record is this one's training.

        Parameters
        ----------
        X : ndarray of shape (n, n_features)
            Rows that it was fitted to.
        y : ndarray of shape (n,) or (n, n_outputs)
            Their targets.
        weights : ndarray of shape (n,)
            Their weights.

        Returns
        -------
        TorchClassifier or TorchRegressor
            Frozen if this is.

        Raises
        ------
        TrajectoryError
            If the run ends elsewhere.
        """
        cure = partial(self._not_replayed, "AdamWInfluence")
        network = replayed(self.estimator, self.loss, X, y, weights, cure)
        return FrozenEstimator(network) if self.frozen else network

    def _why_not_replayed(self) -> str:
        """Return why no run can be repeated, as far as is known without the rows."""
        seed = self.estimator.random_state
        if self.frozen and not isinstance(seed, int | np.integer):
            return (
                f"random_state={seed!r} does not say from which weights, and in which "
                "order, the frozen one was trained"
            )
        return cannot_be_repeated(self.estimator)

    def _not_replayed(self, user: str, reason: str) -> str:
        kind = "Classifier" if is_classifier(self.estimator) else "Regressor"
        layers = tuple(np.ravel(self.estimator.hidden_layer_sizes).tolist())
        return (
            f"{user} repeats the training of an {self.name} step by step, and {reason}."
            f" Use Torch{kind}(hidden_layer_sizes={layers}), which records its run; "
            f"DualInfluence, also on the frozen {self.name}; or "
            "KernelSurrogateAttributor, which retrains it."
        )

    def attributors(self) -> list[str]:
        """Return the names of the attributors that work for it."""
        known = super().attributors()
        if not self._why_not_replayed():
            known.insert(1, "AdamWInfluence")
        return known
