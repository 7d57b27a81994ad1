"""Any estimator of scikit-learn: rows of weight 0 are left out of its fit."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn import config_context
from sklearn.base import is_classifier, is_regressor
from sklearn.dummy import DummyClassifier
from sklearn.utils import _safe_indexing, get_tags
from sklearn.utils.validation import has_fit_parameter

from skattrib._validation import blamed, label_positions
from skattrib.models._parts import Parts, is_search, weight_name
from skattrib.models._protocol import Retrainable


class OfKeptColumns:
    """A model fitted to a kernel of some rows, asked about the kernel with all.

    Parameters
    ----------
    estimator : fitted estimator
    columns : int array
        Rows that it was fitted to.
    """

    def __init__(self, estimator: Any, columns: Any) -> None:
        self.estimator, self.columns = estimator, columns

    def __getattr__(self, name: str) -> Any:
        if name in ("estimator", "columns"):  # while it is unpickled
            raise AttributeError(name)
        found = getattr(self.estimator, name)
        if name not in ("predict", "predict_proba", "decision_function"):
            return found
        return lambda X: found(_safe_indexing(X, self.columns, axis=1))

    def __sklearn_tags__(self) -> Any:
        return get_tags(self.estimator)


def is_pairwise(estimator: Any) -> bool:
    """Say whether rows have a column for each training row: a kernel, distances."""
    return bool(get_tags(estimator).input_tags.pairwise)


class EstimatorModel(Retrainable):
    """An estimator known by its interface alone: it is retrained, and that is all."""

    @property
    def takes_sparse(self) -> bool:
        """Whether sparse rows are passed on as they are."""
        if not hasattr(self.estimator, "__sklearn_tags__"):
            return True
        return bool(get_tags(self.estimator).input_tags.sparse)

    def check(self) -> None:
        """Raise unless it predicts."""
        if not (is_classifier(self.estimator) or is_regressor(self.estimator)):
            raise ValueError(
                f"estimator {self.name} is neither a classifier nor a regressor: pass "
                "a model, and of an attributor its estimator."
            )
        super().check()

    def check_weights(self, weights: Any) -> None:
        """Raise on weights between 0 and 1 that its fit does not take."""
        trained = self.estimator
        if is_search(trained):
            trained = Parts(trained.estimator).model
        if not weights.any(axis=1).all():
            empty = np.flatnonzero(~weights.any(axis=1))
            raise ValueError(
                f"weights leave no row in the weightings {empty[:5].tolist()}, and "
                f"{type(trained).__name__} cannot be fitted to none: keep some units."
            )
        fractions = weights[(weights != 0) & (weights != 1)]
        if len(fractions) and not has_fit_parameter(trained, "sample_weight"):
            raise ValueError(
                f"weights hold {fractions[0]:g}, and fit of {type(trained).__name__} "
                "takes no sample_weight: rows can be present (1) or left out (0). Use "
                "weights of 0 and 1, without sample_weight."
            )

    def retrain(self, X: Any, y: Any, weights: Any, seed: int) -> Any:
        """Return a clone fitted to the rows whose weight is not 0.

        Such a row would still count in histograms, in validation splits, and as a
        neighbour. ``seed`` is in the parameters already.
        """
        fitted, kept = self.clone(), np.flatnonzero(weights)
        y_kept, weights_kept = y[kept], weights[kept]
        if len(kept) < len(weights):
            X = _safe_indexing(X, kept)
            if is_pairwise(fitted):  # X is a kernel, or distances
                X = _safe_indexing(X, kept, axis=1)
        unweighted = (weights_kept == 1).all()
        params = {} if unweighted else {weight_name(fitted): weights_kept}
        try:
            with config_context(enable_metadata_routing=False):
                fitted.fit(X, y_kept, **params)
            if len(kept) < len(weights) and is_pairwise(fitted):
                return OfKeptColumns(fitted, kept)
            return fitted
        except (TypeError, ValueError) as error:
            absent = y[:0]
            if is_classifier(fitted) and not isinstance(error, TypeError):
                labels, known = np.unique(y), np.unique(y_kept)
                absent = labels[label_positions(known, labels) < 0]
            if not len(absent):
                with blamed(fitted, "be trained"):
                    raise
            if (y_kept == y_kept[0]).all():
                # some cannot be fitted to one class, which is then all they predict
                return DummyClassifier().fit(X, y_kept)
            raise ValueError(
                f"{self.name} could not be trained on a subset without the classes "
                f"{absent[:5].tolist()}: {error} Keep more units in every subset, or "
                "merge rare classes."
            ) from error
