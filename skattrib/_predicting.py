"""Predicted outcomes of models trained with other weights of the units."""

import numpy as np
import pandas as pd
from sklearn.utils.validation import _num_samples

from skattrib._attributing import NOT_COMPUTED
from skattrib._frames import among_all, some_queries
from skattrib._indexes import check_unit_order
from skattrib._validation import check_weights, float_dtype
from skattrib.engine._losses import SetOutcome


class PredictsOutcomes:
    """Methods of an attributor that predict outcomes, and leave out bad queries.

    It has what `skattrib.base.BaseAttributor` learns in ``fit``.
    """

    def predict_outcomes(self, X, y, weights, *, return_std=False):
        """Predict the outcomes of models trained with other weights of the units.

        Parameters
        ----------
        X : array-like of shape (n_queries, n_features) or (n_queries, ...)
            Queries.
        y : array-like of shape (n_queries,) or (n_queries, n_outputs)
            Their targets.
        weights : array-like of shape (n_weightings, n_units)
            0 is absent, 1 present. Columns are in the order of ``unit_names_``; of a
            DataFrame that has these names in another order they are refused.
        return_std : bool, default=False
            Also return standard deviations of retrained outcomes around the predicted
            ones, interactions of the units included. They need retrained halves
            (``n_halves``).

        Returns
        -------
        outcomes : ndarray of shape (n_weightings, n_queries)
            Predicted outcomes. At weights of 1 the model's own, up to what a
            surrogate smooths; of runs on halves alone (``n_halves=0``) the mean of
            halves. One column where the outcome is of all queries together.
        standard_deviations : ndarray of the shape of outcomes
            Only with `return_std`: 95 % of the outcomes are within 1.96 of them.

        Raises
        ------
        ValueError
            If the queries or the weights do not fit the training data, or there are no
            retrained halves to tell deviations from.
        """
        X, y, outcome = self._check_query(X, y)
        weights = self._checked_weights(weights, float_dtype(X))
        if return_std:
            self._check_has_halves("return_std=True")
        kept = self._finite_queries(X)
        if isinstance(outcome, SetOutcome):
            found = self._predict_set(X, y, weights, outcome, kept, return_std)
        else:
            found = self._predict_finite(X, y, weights, outcome, kept, return_std)
        return tuple(found) if return_std else found[0]

    def _checked_weights(self, weights, dtype):
        """Validate weightings (n_weightings, n_units) of the units."""
        check_unit_order(weights, pd.Index(self.unit_names_, tupleize_cols=False))
        return check_weights(weights, self.n_units_, dtype)

    def _predict_finite(self, X, y, weights, outcome, kept, with_std):
        """Predict outcomes, and deviations, of queries; NaN for bad ones."""
        found = np.empty((0, 1 + with_std, len(weights)))
        try:
            with np.errstate(all="ignore"):  # what overflows is named
                if kept is None or len(kept):
                    rows = some_queries(X, y, kept)
                    found = self._asked(*rows, weights, outcome, with_std)
        except NOT_COMPUTED:
            kept = self._finite_queries(X, y, outcome)
            if kept is None:
                raise
            with np.errstate(all="ignore"):
                if len(kept):
                    rows = some_queries(X, y, kept)
                    found = self._asked(*rows, weights, outcome, with_std)
        predicted = among_all(found, _num_samples(X), kept, float_dtype(X))
        self._warn_not_finite(predicted)
        return predicted.transpose(1, 2, 0)

    def _predict_set(self, X, y, weights, outcome, kept, with_std):
        """Predict one outcome of all queries, of which those kept are finite."""
        try:
            with np.errstate(all="ignore"):
                found = self._asked(X, y, weights, outcome, with_std)
        except NOT_COMPUTED:
            if kept is None:
                raise
            found = np.full((1, 1 + with_std, len(weights)), np.nan)
        self._warn_of_set(kept, found, _num_samples(X))
        return found.transpose(1, 2, 0).astype(float_dtype(X), copy=False)

    def _asked(self, X, y, weights, outcome, with_std):
        """Return predictions (n_queries, 1, n_weightings), of 2 with deviations."""
        if with_std:
            found = self._predicted_with_std(X, y, weights, outcome)
        else:
            found = (self._predicted(X, y, weights, outcome),)
        return np.stack([values.T for values in found], axis=1)

    def _outcome_predictor(self, X, y):
        """Return `predict_outcomes` of these queries, prepared once."""
        X, y, outcome = self._check_query(X, y)
        predict = self._predictor(X, y, outcome)
        return lambda weights: predict(check_weights(weights, self.n_units_))
