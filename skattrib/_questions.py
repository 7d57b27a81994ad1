"""The questions after "which rows": each row on itself, a new row, none of these."""

import warnings

import numpy as np
import pandas as pd
import torch
from sklearn.base import is_classifier
from sklearn.frozen import FrozenEstimator
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import _num_samples, check_is_fitted

from skattrib._attributing import NOT_COMPUTED
from skattrib._frames import among_all, some_queries, units_named
from skattrib._validation import first_labels, float_dtype, memory_cap
from skattrib.engine._functional import chunks
from skattrib.engine._losses import SetOutcome
from skattrib.exceptions import (
    FaithfulnessWarning,
    TrajectoryError,
    UnsupportedModelError,
)
from skattrib.models._as_model import as_model
from skattrib.models._datasets import opened, rows_of
from skattrib.models._kept_models import recipe_of, retrained_once
from skattrib.models._protocol import protocols

# Arrays of queries and units that a method may hold at a time.
_COPIES = 32


class FurtherQuestions:
    """Methods of an attributor that ask for no attributions of queries to units.

    It has what `skattrib.base.BaseAttributor` learns in ``fit``.
    """

    # ---------------------------------------------------------------- the model
    def predict(self, X):
        """Predict with the model that was fitted to all units.

        Parameters
        ----------
        X : array-like of shape (n_queries, n_features) or (n_queries, ...)
            Queries.

        Returns
        -------
        ndarray of shape (n_queries,) or (n_queries, n_outputs)
            ``estimator_.predict(X)``.
        """
        check_is_fitted(self, "n_units_")
        X, table = rows_of(X), isinstance(self.X_train_, pd.DataFrame)
        return self.estimator_.predict(self._validated(X, table=table, reset=False))

    # ------------------------------------------------------- a row and its own unit
    def self_attribution(self):
        """Attribute the outcome of each training row to its own unit.

        A row with a large value is predicted as it is because the model was trained on
        it: a rare row, or one with a wrong label.

        Returns
        -------
        ndarray of shape (n_samples,)
            Of each training row, at its own target, what `attribute` gives for the
            unit that it belongs to. Positive: the outcome is higher with the unit.
            Where units are rows that is the diagonal of
            ``attribute(X_train_, y_train_)``, which is never formed.

        Raises
        ------
        ValueError
            If the outcome is a `skattrib.evaluation.SetOutcome`.

        Warns
        -----
        FaithfulnessWarning
            If the results for some rows are not finite.
        """
        check_is_fitted(self, "n_units_")
        if isinstance(self.outcome, SetOutcome):
            raise ValueError(
                "self_attribution is of the outcome of each row, and outcome="
                f"{self.outcome!r} is of all rows together. Use an outcome of single "
                "rows, such as 'log_likelihood'."
            )
        X, y = self._features, self._targets
        outcome, kept = self._checked_outcome(self.outcome), self._finite_queries(X)
        with np.errstate(all="ignore"):  # what overflows is named
            try:
                found = self._own_effects(X, y, outcome, kept)
            except NOT_COMPUTED:
                kept = self._finite_queries(X, y, outcome)
                if kept is None:
                    raise
                found = self._own_effects(X, y, outcome, kept)
        values = among_all(found, len(y), kept, float_dtype(X))
        self._warn_not_finite(values[:, None], stacklevel=3)
        return values

    def _own_effects(self, X, y, outcome, kept):
        """Return the effects on all training rows, or on those that are finite."""
        if kept is None and self._trained_halves is None:
            return self._self_attribution(X, y, outcome)
        if kept is None:
            kept = np.arange(len(y))
        if not len(kept):
            return np.empty(0)
        return self._own_entries(X, y, outcome, kept)

    def _self_attribution(self, X, y, outcome):
        """Return the effect (n_samples,) of each training row's own unit on it.

        X and y are the training rows, as a query to `_attribute` has them.
        """
        return self._own_entries(X, y, outcome, np.arange(len(y)))

    def _own_entries(self, X, y, outcome, rows):
        """Return entries of `_attribute`, for a few of these rows at a time."""
        found = np.empty(len(rows))
        at_once = int(memory_cap() / (8 * _COPIES * self.n_units_))
        for part in chunks(len(rows), at_once):
            some = rows[part]
            queries = _safe_indexing(X, some), y[some]
            attributions, _ = self._attributed(*queries, outcome)
            found[part] = attributions[np.arange(len(some)), self._unit_of_row[some]]
        return found

    # -------------------------------------------------------------- what is not there
    def value_new(self, X_new, y_new, X, y=None):
        """Value new rows by what each, added, would change in the outcomes of queries.

        Parameters
        ----------
        X_new : array-like of shape (n_new, n_features) or (n_new, ...)
            Rows that the model was not trained on, with the columns of those that it
            was.
        y_new : array-like of shape (n_new,) or (n_new, n_outputs)
            Their targets, of the known classes.
        X : array-like of shape (n_queries, n_features) or (n_queries, ...)
            Queries.
        y : array-like of shape (n_queries,) or (n_queries, n_outputs), default=None
            Their targets; None as in `attribute`.

        Returns
        -------
        ndarray of shape (n_new,)
            Mean outcome of the queries with the row, of weight 1, minus that without
            it; each row is added by itself. Positive: the outcome is higher with it.
            `DualInfluence` refits linear and kernel models with the row, exactly (a
            Gaussian process at its fitted kernel), and moves the tangent of a network
            as its ``removal_`` says. `AdamWInfluence` has the derivative in the weight
            of the row where that is 0; in minibatches it counts for the chance of the
            row to be in them; retrained halves, which know nothing of the row, do not
            correct it. `RISEValuator` has the mean similarity to the queries.

        Raises
        ------
        ValueError
            If the new rows or the queries do not fit the training data.
        UnsupportedModelError
            If this attributor, or its model, knows nothing of rows that were not there.

        Warns
        -----
        FaithfulnessWarning
            If the outcomes of some queries, which are left out of the mean, or the
            values of some rows are not finite.
        """
        check_is_fitted(self, "n_units_")
        if type(self)._value_new is FurtherQuestions._value_new:
            raise self._unknown_rows("it knows of the units that it was fitted to only")
        self._check_new_rows()
        X_new, y_new = self._checked_new(X_new, y_new)
        X, y, outcome = self._check_finite_query(X, y)
        self._encoded(y)
        # also a target that the loss, as that of counts, cannot have
        kept = self._finite_queries(X_new, y_new, "log_likelihood")
        found = np.empty(0)
        with np.errstate(all="ignore"):
            if kept is None or len(kept):
                rows = some_queries(X_new, y_new, kept)
                found = self._value_new(*rows, X, y, outcome)
        values = among_all(found, _num_samples(X_new), kept, float_dtype(X_new))
        if len(bad := np.flatnonzero(~np.isfinite(values))):
            warnings.warn(
                f"The values of the new rows {bad[:10].tolist()} are not finite: the "
                "model's outputs, or their targets, are not, or are none that it could "
                "be trained on. Look at these rows.",
                FaithfulnessWarning,
                stacklevel=2,
            )
        return values

    def _check_new_rows(self):
        """Raise if rows that the model was not fitted to cannot be valued."""

    def _unknown_rows(self, reason):
        """Return the error that names who can value new rows."""
        known = as_model(self._model).attributors()
        others = [name for name in known if name in ("DualInfluence", "AdamWInfluence")]
        others = [name for name in others if name != type(self).__name__]
        cure = f"Use {' or '.join(others)}" if others else "Append the row"
        return UnsupportedModelError(
            f"{type(self).__name__} has no value_new here: {reason}. {cure}"
            f"{', or append the row' if others else ''} and train again "
            "(evaluation.retrain_outcomes)."
        )

    def _checked_new(self, X_new, y_new):
        """Validate new rows; return them as the model takes them."""
        try:
            X_new, y_new = opened(X_new, y_new)
            if y_new is None:
                raise ValueError("y_new is None: a row to train on has a target.")
            X_new, y_new, _ = self._check_query(X_new, y_new, new=True)
            if y_new.shape[1:] != self._targets.shape[1:]:
                raise ValueError(
                    f"they have targets of shape {y_new.shape}, those of fit are of "
                    f"shape {self._targets.shape}."
                )
            self._encoded(y_new)
        except ValueError as error:
            raise ValueError(f"X_new and y_new cannot be used: {error}") from error
        return X_new, y_new

    def _encoded(self, y):
        """Raise on targets that the model does not know, before any work."""
        model = as_model(self._model)
        if not model.takes_texts:
            encode = model.encode if hasattr(model, "encode") else model.targets
            encode(y, torch.empty(0))

    def _value_new(self, X_new, y_new, X, y, outcome):
        """Return what each new row, added, changes in the mean outcome, (n_new,)."""
        raise NotImplementedError

    # ------------------------------------------------------------------ and without
    def model_without(self, units):
        """Return the model as it would be without some units.

        Parameters
        ----------
        units : label or array-like of shape (n_removed,)
            Units to leave out together: by their names if they have any (tasks, or
            the index of the training rows), else by position, from 0; see
            ``unit_names_``.

        Returns
        -------
        estimator
            Fitted; a pipeline if there was one, with its transformers, which are kept,
            and a new last step; of a search, what it chose. It shares nothing with
            ``estimator_``. It is really trained, by the model's own recipe, as
            `evaluation.retrain_outcomes` does. Not so by `DualInfluence` on a network,
            of which it has the first: there it is a copy whose parameters are moved by
            the step that `predict_outcomes` takes, without training or a record of it.

        Raises
        ------
        ValueError
            If there are no such units, or nothing would be left of all units or of a
            class.
        TrajectoryError
            If the model is frozen, and there is no recipe to train it by.
        """
        check_is_fitted(self, "n_units_")
        removed = units_named(units, self.unit_names_, self._has_names)
        weights = self._row_weights * ~np.isin(self._unit_of_row, removed)
        self._check_left(weights)
        whole = self._parts.with_copy_of(self._model_without(weights))
        return whole.estimator if isinstance(whole, FrozenEstimator) else whole

    def _check_left(self, weights):
        """Raise if weights of the rows leave nothing of all, or of a class."""
        if not weights.any():
            raise ValueError(
                f"units holds all {self.n_units_} units that count: nothing would be "
                "left to train on. Keep some."
            )
        if not is_classifier(self._model) or self._targets.ndim > 1:
            return
        before = np.unique(self._targets[self._row_weights > 0])
        lost = np.setdiff1d(before, self._targets[weights > 0])
        if len(lost):
            raise ValueError(
                f"units holds all rows of the classes {first_labels(lost)}: a model "
                "trained without them would not know these classes. Keep a row of each."
            )

    def _model_without(self, row_weights):
        """Return the last step as trained with weights (n_samples,) of the rows."""
        model = as_model(self._model)
        if "Recorded" in protocols(model) and model.frozen and not model.has_run:
            raise TrajectoryError(
                f"{model.name} cannot be trained again: it is frozen, and its training "
                "was not recorded. Use DualInfluence, whose model_without trains "
                "nothing, or train it through TorchClassifier(module=...).fit or "
                "record_training."
            )
        return retrained_once(
            recipe_of(self._model),
            self._features,
            self._targets,
            row_weights,
            whole=self._row_weights,
            seed=self._fit_seed,
            n_jobs=self.n_jobs,
            verbose=self.verbose,
        )
