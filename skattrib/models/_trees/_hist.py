"""HistGradientBoostingClassifier and HistGradientBoostingRegressor."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import is_classifier
from sklearn.utils.validation import _check_monotonic_cst

from skattrib._validation import blamed
from skattrib.engine._trees import Ensemble, Monotone, Tree, compacted
from skattrib.models._trees._protocol import BoosterModel

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.integer[Any]]

_OBJECTIVES = {"squared_error": "squared", "log_loss": "log"}


class HistModel(BoosterModel):
    """Histogram gradient boosting of scikit-learn."""

    cure = "Use loss='squared_error' or 'poisson', or a classifier."

    def objective_name(self) -> str:
        """Return what the estimator's ``loss`` is called here."""
        loss = self.estimator.loss
        return _OBJECTIVES.get(loss, str(loss))

    @property
    def is_fitted(self) -> bool:
        """Whether the estimator is a fitted ensemble."""
        return hasattr(self.estimator, "_predictors")

    @property
    def refits_itself(self) -> bool:
        """Whether all rows were in its trees."""
        return not self.estimator.do_early_stopping_

    def raw_outputs(self, X: Any) -> FloatArray:
        """Return logits, logarithms of means, or predictions."""
        estimator = self.estimator
        if is_classifier(estimator):
            found = estimator.decision_function(X)
        elif self.objective_name() == "poisson":
            found = np.log(estimator.predict(X))
        else:
            found = estimator.predict(X)
        return np.asarray(found, dtype=float).reshape(len(found), -1)

    def leaves(self, X: Any) -> IntArray:
        """Return leaves (n_iterations, n_outputs, q)."""
        estimator = self.estimator
        with blamed(estimator, "predict these rows"):
            X = estimator._preprocess_X(X, reset=False)
        known = estimator._bin_mapper.make_known_categories_bitsets()
        found = [
            [self._leaves_of(one, X, known) for one in stage]
            for stage in estimator._predictors
        ]
        shape = len(found), self.n_outputs(), len(X)
        return np.array(found, dtype=np.intp).reshape(shape)

    @staticmethod
    def _leaves_of(predictor: Any, X: Any, known: Any) -> IntArray:
        """Return the leaves of rows in one tree, by the library's own predictions."""
        is_leaf = predictor.nodes["is_leaf"].astype(bool)
        numbered = copy.copy(predictor)
        numbered.nodes = predictor.nodes.copy()
        numbered.nodes["value"][is_leaf] = np.arange(is_leaf.sum())
        found: IntArray = numbered.predict(X, *known, n_threads=1).astype(np.intp)
        return found

    def ensemble(
        self, X: Any, y: Any, own: FloatArray, trained: FloatArray
    ) -> Ensemble:
        """Return the structure of the fitted estimator."""
        estimator = self.estimator
        signs = self._signs()
        stages = tuple(
            tuple(self._tree(predictor.nodes, signs) for predictor in stage)
            for stage in estimator._predictors
        )
        return Ensemble(
            stages,
            self.objective(),
            np.ravel(estimator._baseline_prediction).astype(float),
            weighting=self.class_weighting(self._class_weight(), y, own),
        )

    def _class_weight(self) -> Any:
        """Return the class weights, by label: the library has them by code."""
        found = getattr(self.estimator, "class_weight", None)
        if not isinstance(found, dict):
            return found
        labels = self.estimator.classes_.tolist()
        if not found.keys() <= set(range(len(labels))):
            return found  # as it is documented
        return {label: found.get(code, 1.0) for code, label in enumerate(labels)}

    def _signs(self) -> IntArray:
        """Return the monotone constraint of each column, as trees see columns."""
        estimator = self.estimator
        signs = _check_monotonic_cst(estimator, estimator.monotonic_cst)
        categorical = estimator.is_categorical_
        if categorical is not None:  # these come first
            signs = np.concatenate([signs[categorical], signs[~categorical]])
        return np.asarray(signs, dtype=int)

    def _tree(self, nodes: Any, signs: IntArray) -> Tree:
        is_leaf = nodes["is_leaf"].astype(bool)
        left, right = (
            np.where(is_leaf, -1, nodes[side].astype(np.intp))
            for side in ("left", "right")
        )
        children, _ = compacted(left, right)
        of_inner = signs[nodes["feature_idx"][~is_leaf]]
        return Tree(
            children,
            nodes["value"][is_leaf],
            self.estimator.learning_rate,
            self.estimator.l2_regularization,
            Monotone(of_inner) if of_inner.any() else None,
        )
