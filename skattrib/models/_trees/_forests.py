"""Forests and single trees of scikit-learn."""

from __future__ import annotations

from inspect import signature
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import is_classifier
from torch import Tensor

from skattrib._validation import as_numbers, blamed, label_positions
from skattrib.engine._row_weights import RowWeighting
from skattrib.engine._trees import Ensemble, Means, Monotone, Tree, compacted
from skattrib.models._trees._protocol import TreeModel

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.integer[Any]]

#: Criteria by which the value of a leaf is a mean.
_OF_MEANS = (
    "squared_error",
    "friedman_mse",
    "poisson",
    "gini",
    "entropy",
    "log_loss",
)
# Where `retrain` leaves the number of all rows, which a fit to some does not know.
_N_ROWS = "_n_rows_of_all"


class ForestModel(TreeModel):
    """A random forest, extremely randomized trees, or one decision tree.

    Its value is the mean over trees of the means in their leaves, of all rows: those
    that a bootstrap drew do not count more than others.
    """

    needs_all_classes = False
    way = "deleted, and probabilities of half a row at least"

    # -------------------------------------------------------------- refusals
    def reason_against(self) -> str | None:
        """Return why leaf values cannot be computed again, None if they can."""
        criterion = self.estimator.criterion
        if criterion not in _OF_MEANS:
            return (
                f"the values of its leaves are no means with criterion={criterion!r}. "
                "Use criterion='squared_error'."
            )
        if isinstance(getattr(self.estimator, "classes_", None), list):
            return "it has several columns of labels. Fit one model per column of y."
        return None

    # --------------------------------------------------------------- training
    def retrain(self, X: Any, y: Any, weights: Any, seed: int) -> Any:
        """Return a clone fitted to the rows whose weight is not 0."""
        fitted = super().retrain(X, y, weights, seed)
        setattr(fitted, _N_ROWS, len(weights) if self.n_all is None else self.n_all)
        return fitted

    def n_rows(self) -> int:
        """Return the number of training rows, also of a model that saw some of them."""
        estimator = self.estimator
        if hasattr(estimator, _N_ROWS):
            return int(getattr(estimator, _N_ROWS))
        if hasattr(estimator, "estimators_"):
            return int(estimator._n_samples)
        return int(estimator.tree_.n_node_samples[0])

    # ----------------------------------------------------------------- values
    @property
    def is_fitted(self) -> bool:
        """Whether the estimator is a fitted ensemble."""
        return hasattr(self.estimator, "estimators_") or hasattr(
            self.estimator, "tree_"
        )

    @property
    def refits_itself(self) -> bool:
        """Whether there was no bootstrap."""
        return not getattr(self.estimator, "bootstrap", False)

    @property
    def n_seen(self) -> int:
        """Number of rows that its fit was given."""
        return self.n_rows()

    def _all_classes(self) -> Any:
        """Return all classes, also those that a subset lacked."""
        return self.estimator.classes_ if self.classes is None else self.classes

    def training_targets(self, y: Any) -> Any:
        """Return codes of classes, or numbers, of training rows."""
        if not is_classifier(self.estimator):
            return as_numbers(y)
        return label_positions(self._all_classes(), np.asarray(y))

    def raw_outputs(self, X: Any) -> FloatArray:
        """Return probabilities of classes, or predictions."""
        estimator = self.estimator
        if not is_classifier(estimator):
            found = np.asarray(estimator.predict(X), dtype=float)
            return found.reshape(len(found), -1)
        return self._among_all(np.asarray(estimator.predict_proba(X), dtype=float))

    def _among_all(self, known: FloatArray) -> FloatArray:
        """Return a column for each class: those it has not seen have probability 0."""
        classes = self._all_classes()
        found = np.zeros((len(known), len(classes)))
        found[:, np.searchsorted(classes, self.estimator.classes_)] = known
        return found

    def link(self, raw: Tensor) -> Tensor:
        """Return log-probabilities, or predictions.

        A probability is at least that of half a row among all: pure leaves have 0.
        Together they are 1 again.
        """
        if not is_classifier(self.estimator):
            return raw
        return raw.clamp(min=0.5 / self.n_rows()).log().log_softmax(-1)

    def outputs(self, X: Any) -> Tensor:
        """Return outputs as `loss` takes them: log-probabilities, or predictions."""
        if isinstance(getattr(self.estimator, "classes_", None), list):
            return super().outputs(X)
        with blamed(self.estimator, "predict these rows"):
            raw = self.raw_outputs(X)
        return self.link(torch.tensor(raw))

    # -------------------------------------------------------------- structure
    def class_weighting(
        self, class_weight: Any, y: Any, own: FloatArray
    ) -> RowWeighting:
        """Return what ``class_weight`` does to weights."""
        if isinstance(class_weight, str) and self._balances_weights():
            return RowWeighting(balanced=torch.tensor(self.training_targets(y)))
        return super().class_weighting(class_weight, y, own)

    def _balances_weights(self) -> bool:
        """Whether classes are balanced by their weights, as forests of 1.9 do.

        Forests before, and single trees, count their rows.
        """
        balance = getattr(self.estimator, "_validate_y_class_weight", None)
        return balance is not None and "sample_weight" in signature(balance).parameters

    def _grown(self) -> list[Any]:
        """Return the fitted trees of scikit-learn."""
        estimators = getattr(self.estimator, "estimators_", [self.estimator])
        return [estimator.tree_ for estimator in estimators]

    def _signs(self) -> IntArray | None:
        """Return the monotone constraint of each column, None for none."""
        signs = self.estimator.monotonic_cst
        return None if signs is None or not np.any(signs) else np.asarray(signs)

    def leaves(self, X: Any) -> IntArray:
        """Return leaves (n_iterations, 1, q), one of each output with constraints."""
        with blamed(self.estimator, "predict these rows"):
            found = np.asarray(self.estimator.apply(X))
        found = found.reshape(len(found), -1)
        numbered = [
            compacted(tree.children_left, tree.children_right)[1][column]
            for tree, column in zip(self._grown(), found.T, strict=True)
        ]
        leaves = np.array(numbered, dtype=np.intp)[:, None]
        return np.repeat(leaves, 2, axis=1) if self._is_apart() else leaves

    def _is_apart(self) -> bool:
        """Whether each output has trees of its own: constraints of two classes."""
        return is_classifier(self.estimator) and self._signs() is not None

    def ensemble(
        self, X: Any, y: Any, own: FloatArray, trained: FloatArray
    ) -> Ensemble:
        """Return the structure of the fitted estimator."""
        classifier, grown = is_classifier(self.estimator), self._grown()
        n_outputs = (
            len(self._all_classes()) if classifier else self.estimator.n_outputs_
        )
        return Ensemble(
            tuple(self._stage(tree, 1 / len(grown)) for tree in grown),
            Means(n_outputs, classes=classifier),
            np.zeros(n_outputs),
            moves=False,
            weighting=self.class_weighting(
                getattr(self.estimator, "class_weight", None), y, own
            ),
        )

    def _stage(self, tree: Any, rate: float) -> tuple[Tree, ...]:
        is_leaf = tree.children_left < 0
        children, _ = compacted(tree.children_left, tree.children_right)
        values = tree.value[is_leaf]
        if is_classifier(self.estimator):
            values = self._among_all(values[:, 0])
        values = rate * values.reshape(len(values), -1)
        signs = self._signs()
        if signs is None:
            return (Tree(children, values, rate),)
        of_inner = signs[tree.feature[~is_leaf]]
        if not self._is_apart():
            return (Tree(children, values, rate, monotone=Monotone(of_inner)),)
        return tuple(
            Tree(children, values[:, k], rate, monotone=Monotone(sign * of_inner))
            for k, sign in enumerate((-1, 1))
        )
