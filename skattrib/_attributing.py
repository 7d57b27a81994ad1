"""Attributions of queries: a row for each, or one for all; all units, or the ends."""

import warnings
from numbers import Integral

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, validate_params
from sklearn.utils.validation import _num_samples, check_is_fitted

from skattrib._frames import (
    among_all,
    check_columns,
    ends,
    long_form,
    row_names,
    some_queries,
    top_form,
)
from skattrib._indexes import index_of, places_of_units
from skattrib._posterior._gaussian import intervals
from skattrib._validation import float_dtype, memory_cap
from skattrib.engine._functional import chunks
from skattrib.engine._losses import MeanOutcome, SetOutcome
from skattrib.exceptions import FaithfulnessWarning
from skattrib.models._as_model import as_model
from skattrib.models._datasets import as_frame
from skattrib.models._repeatable import finite_rows

# What a query whose outcome is not finite may raise.
NOT_COMPUTED = ValueError, ArithmeticError, np.linalg.LinAlgError
# Arrays of attributions that are held at once, with their errors.
_COPIES = 2


class AttributesQueries:
    """Methods of an attributor that attribute queries, and leave out bad ones.

    It has what `skattrib.base.BaseAttributor` learns in ``fit``.
    """

    #: Whether `_attribute` returns a single row for a `SetOutcome`.
    _measures_sets = False

    def attribute(
        self,
        X,
        y=None,
        *,
        reduce=None,
        top_k=None,
        return_std=False,
        as_frame=False,
        per_token=False,
    ):
        """Attribute the outcome of each query to the training units.

        Parameters
        ----------
        X : array-like of shape (n_queries, n_features) or (n_queries, ...)
            Queries; or a Dataset of torch, which brings the targets.
        y : array-like of shape (n_queries,) or (n_queries, n_outputs), default=None
            Their targets. None: the model's own predictions (class), or the
            prediction itself (regressor); of a Dataset its targets.
        reduce : {None, "mean"}, default=None
            "mean": attribute the mean outcome of the queries, which takes one pass for
            any number of them. Queries that are not finite are left out.
        top_k : int or None, default=None
            Return, for each query, only the units with the `top_k` largest and the
            `top_k` smallest attributions. Then any number of queries fits the memory.
        return_std : bool, default=False
            Also return standard errors: standard deviations of the truth around the
            attributions where halves were retrained (``n_halves``), else only of what
            another draw of runs or subsets would give.
        as_frame : bool, default=False
            Return a pandas DataFrame in long form instead of arrays.
        per_token : bool, default=False
            Of a language model that is trained: one outcome for each token of each
            completion, its log-probability, in order. They add up to the attribution of
            the completion, to first order.

        Returns
        -------
        attributions : ndarray of shape (n_queries, n_units)
            Outcome with the unit minus outcome without it, as `estimand_` says, in
            the unit of the outcome. Positive: the outcome is higher with the unit.
            To first order rows sum to 0, as only ratios of weights matter in
            training: 0 is the average unit, not "no effect". One row where the
            outcome is a `skattrib.evaluation.SetOutcome`; shape (n_units,) with
            `reduce`; 2 `top_k` columns instead of n_units with `top_k`, from the
            largest to the smallest.
        units : ndarray of int, of the shape of attributions
            Only with `top_k`: positions of the units that they are of, in
            `unit_names_`.
        standard_errors : ndarray of the shape of attributions
            Only with `return_std`.
        frame : DataFrame of n_queries * n_units rows
            Only with `as_frame`, instead of the arrays: columns "query" (the label in
            the index of X if unique, else the position; "all" of a set outcome; left
            out with `reduce`), "unit" (of `unit_names_`), "attribution" and, with
            `return_std`, "standard_error"; where halves were retrained also
            "lower_95" and "upper_95", the ends of an interval that has 95 % of true
            effects. Errors of like units go together: intervals of a group's units say
            nothing of their sum; pass the groups as `tasks` to ``fit``. With `top_k`,
            of these units only. With `per_token`, after "query" the columns "position",
            from 0, and "token", its text.

        Raises
        ------
        ValueError
            If the queries do not fit the training data, the outcome needs y, there
            is nothing to estimate a standard error from, a set outcome cannot be
            differentiated where it must be, `top_k` is more than half of the
            units, or `per_token` is asked of another model, or of queries together.

        Notes
        -----
        The mean of the outcomes is attributed, not the mean of the rows that the
        queries have by themselves. The two differ where rows are chosen or smoothed
        one by one: several runs of AdamWInfluence are trimmed, and a surrogate picks
        its ridge, for the mean alone. For an attributor that knows no set outcomes it
        is the mean of the rows, and errors are averaged, as if they moved together.
        """
        check_is_fitted(self, "n_units_")
        _check_reduce(reduce)
        counts = None if top_k is None else (_check_top_k(top_k, self.n_units_),) * 2
        index = index_of(X, y)
        X, y, outcome = self._check_query(X, y)
        tokens = None
        if per_token:
            self._check_has_tokens(outcome, reduce)
            index = row_names(index, _num_samples(X), stacklevel=3)
            X, y, tokens = self._parts.reader._by_token(X)
        way = self._way(outcome, reduce)
        places, attributions, errors = way(X, y, outcome, counts)
        if return_std and errors is None:
            raise ValueError(
                "return_std=True needs an ensemble of models to compare. "
                f"{self._models_to_pass()}"
            )
        if return_std:
            self._warn_if_not_calibrated()
        errors = errors if return_std else None
        if as_frame:
            values = self._columns(attributions, errors)
            if tokens is not None:
                names = index[tokens["query"]]
                frame = long_form(names, self.unit_names_, places, **values)
                for i, column in enumerate(("position", "token"), start=1):
                    of_rows = np.repeat(tokens[column], len(frame) // len(names))
                    frame.insert(i, column, of_rows)
                return frame
            names = None if reduce else self._names_of(outcome, index, X)
            return long_form(names, self.unit_names_, places, **values)
        found = [a for a in (attributions, places, errors) if a is not None]
        found = [array[0] for array in found] if reduce else found
        return found[0] if len(found) == 1 else tuple(found)

    def _check_has_tokens(self, outcome, reduce):
        """Raise unless queries are completions, and each token has an outcome."""
        if not self._takes_completions:
            raise ValueError(
                "per_token=True is for a language model that is trained, "
                "CausalLanguageModel(trainable='adapters'): others have no tokens. "
                "Leave it False."
            )
        if reduce or isinstance(outcome, SetOutcome):
            what = "reduce" if reduce else "outcome"
            raise ValueError(
                f"per_token=True gives one outcome a token, and {what}="
                f"{reduce or outcome!r} is of queries together: leave one of the two "
                "out."
            )

    @validate_params(
        {
            "X": "no_validation",
            "y": "no_validation",
            "n": [Interval(Integral, 1, None, closed="left")],
            "data": "no_validation",
        },
        prefer_skip_nested_validation=False,
    )
    def top_units(self, X, y=None, *, n=5, data=None):
        """Return the units that raise and lower the outcome of each query most.

        Parameters
        ----------
        X : array-like of shape (n_queries, n_features) or (n_queries, ...)
            Queries.
        y : array-like of shape (n_queries,) or (n_queries, n_outputs), default=None
            Their targets; None as in `attribute`.
        n : int, default=5
            How many units of either kind; fewer if there are fewer than two times `n`.
        data : DataFrame, datasets.Dataset or None, default=None
            What to show of the units, for example the rows as they were before they
            were encoded. Its rows are found by the names of the units in its index, in
            any order and among others, else it has one for each unit, in their order.
            Rows of an array have no names: an index of their positions in another
            order is refused.

        Returns
        -------
        DataFrame of at most n_queries * 2 * n rows
            Columns "query" and "unit" as in `attribute`, "rank" (1 raises the outcome
            most, -1 lowers it most), "attribution", "standard_error" if there is one,
            "lower_95" and "upper_95" where halves were retrained, and those of `data`.

        Raises
        ------
        ValueError
            If the queries do not fit the training data, or `data` not the units.
        """
        check_is_fitted(self, "n_units_")
        if data is not None:
            data = as_frame(data, "data")
            check_columns(data)
            data = self._rows_of_units(data, "data")
        index = index_of(X, y)
        X, y, outcome = self._check_query(X, y)
        n_best = min(n, (self.n_units_ + 1) // 2)
        counts = n_best, min(n, self.n_units_ - n_best)
        places, attributions, errors = self._way(outcome)(X, y, outcome, counts)
        return top_form(
            self._names_of(outcome, index, X),
            self.unit_names_,
            places,
            n_best,
            data,
            **self._columns(attributions, errors),
        )

    def _rows_of_units(self, table, name):
        """Return the rows of a table of pandas that belong to the units, in order."""
        how = {"named": self._has_names, "indexed": self._has_index, "name": name}
        return table.iloc[places_of_units(table, self.unit_names_, **how)]

    def _columns(self, attributions, errors):
        """Return what a data frame has, by names."""
        found = {"attribution": attributions, "standard_error": errors}
        if errors is not None and self._trained_halves is not None:
            found.update(intervals(attributions, errors))
        return found

    def _names_of(self, outcome, index, X):
        """Return the names of the rows of attributions."""
        if isinstance(outcome, SetOutcome):
            return np.array(["all"], dtype=object)
        return row_names(index, _num_samples(X), stacklevel=4)

    # ------------------------------------------------ what is finite, and its ends
    def _way(self, outcome, reduce=None):
        """Return the method that attributes: to places, values and errors of rows."""
        # no frame between it and attribute, or `_attribute`: warnings count them
        if isinstance(outcome, SetOutcome):
            return self._attribute_set
        return self._attribute_mean if reduce else self._attribute_finite

    def _at_once(self, counts, n_queries):
        """Return pieces of queries whose attributions are held at once; [None]: all."""
        size = n_queries
        if counts is not None:
            size = int(memory_cap() / (_COPIES * 8 * self.n_units_))
        return [None] if size >= n_queries else list(chunks(n_queries, size))

    def _attribute_finite(self, X, y, outcome, counts=None):
        """Attribute queries, with a warning; one that is not finite has NaN.

        ``counts`` says how many of the largest and smallest attributions to keep, None
        for all: then places are None.
        """
        pieces, dtype, nothing = [], float_dtype(X), np.empty((0, self.n_units_))
        for part in self._at_once(counts, _num_samples(X)):
            rows = some_queries(X, y, part)
            kept, found = self._finite_queries(rows[0]), (nothing, None)
            try:
                with np.errstate(all="ignore"):  # what overflows is named
                    if kept is None or len(kept):
                        found = self._attributed(*some_queries(*rows, kept), outcome)
            except NOT_COMPUTED:
                kept = self._finite_queries(*rows, outcome)
                if kept is None:
                    raise
                with np.errstate(all="ignore"):
                    if len(kept):
                        found = self._attributed(*some_queries(*rows, kept), outcome)
            values = (among_all(v, len(rows[1]), kept, dtype) for v in found)
            pieces.append(_some_units(*values, counts))
        places, attributions, errors = map(_stacked, zip(*pieces, strict=True))
        bad = attributions if errors is None else np.hstack([attributions, errors])
        self._warn_not_finite(bad)
        return places, attributions, errors

    def _attribute_mean(self, X, y, outcome, counts=None):
        """Attribute the mean outcome of the queries that are finite: one row."""
        n_queries, dtype = _num_samples(X), float_dtype(X)
        kept = self._finite_queries(X, y, outcome)
        if kept is not None:
            nothing = np.zeros(len(kept))
            self._warn_not_finite(among_all(nothing, n_queries, kept, float))
        if kept is not None and not len(kept):
            nothing = np.full((1, self.n_units_), np.nan, dtype=dtype)
            return _some_units(nothing, None, counts)
        rows = some_queries(X, y, kept)
        with np.errstate(all="ignore"):
            if self._measures_sets:
                found = self._attributed(*rows, MeanOutcome(outcome))
            else:
                found = self._mean_of_rows(*rows, outcome)
        values = [None if v is None else v.astype(dtype, copy=False) for v in found]
        if not np.isfinite(values[0]).all():
            warnings.warn(
                "The attributions of the mean outcome are not finite: those of some "
                "queries are too large. attribute(reduce=None) names them.",
                FaithfulnessWarning,
                stacklevel=3,
            )
        return _some_units(*values, counts)

    def _mean_of_rows(self, X, y, outcome):
        """Return the mean (1, n_units) of the rows of queries, and of their errors."""
        total, errors = np.zeros((2, 1, self.n_units_))
        for part in self._at_once((), len(y)):
            values, stds = self._attributed(*some_queries(X, y, part), outcome)
            total += np.sum(values, axis=0) / len(y)
            if stds is None:
                errors = None
            else:
                errors += np.sum(stds, axis=0) / len(y)
        return total, errors

    def _attribute_set(self, X, y, outcome, counts=None):
        """Attribute the outcome of all queries together: one row, maybe NaN."""
        dtype, kept = float_dtype(X), self._finite_queries(X)
        try:
            with np.errstate(all="ignore"):
                found = self._attributed(X, y, outcome)
        except NOT_COMPUTED:
            if kept is None:
                raise
            found = np.full((2, 1, self.n_units_), np.nan)
        self._check_is_of_set(found[0], outcome)
        values = [None if v is None else v.astype(dtype, copy=False) for v in found]
        self._warn_of_set(kept, values[0], _num_samples(X))
        return _some_units(*values, counts)

    def _check_is_of_set(self, attributions, outcome):
        """Raise on attributions of an attributor that knows no set outcomes."""
        if attributions.shape != (1, self.n_units_):
            raise ValueError(
                f"{type(self).__name__} returned attributions of shape "
                f"{attributions.shape} for outcome={outcome!r}, which has one row: it "
                "knows outcomes of single queries only. Use attribute(reduce='mean'), "
                "or DualInfluence or KernelSurrogateAttributor."
            )

    def _warn_of_set(self, kept, values, n_queries, stacklevel=4):
        """Warn if queries of a set, or its result, are not finite."""
        if kept is None and np.isfinite(values).all():
            return
        if kept is None:
            what = "The result for the set of queries is not finite, though outputs are"
        else:
            bad = np.setdiff1d(np.arange(n_queries), kept)[:10].tolist()
            what = f"The model's outputs for queries {bad} are not finite"
        warnings.warn(
            f"{what}: one outcome of all queries cannot be measured there. Look at "
            "these rows, or leave them out.",
            FaithfulnessWarning,
            stacklevel=stacklevel,
        )

    @staticmethod
    def _warn_not_finite(values, stacklevel=4):
        """Name the queries, of which there is a row each, with values not finite."""
        finite = np.isfinite(values)
        finite = finite.all(axis=tuple(range(1, finite.ndim)))
        if len(bad := np.flatnonzero(~finite)):
            warnings.warn(
                f"The results for queries {bad[:10].tolist()} are not finite: the "
                "model's outputs, their targets or the weights are not, or are too "
                "large. Look at these rows.",
                FaithfulnessWarning,
                stacklevel=stacklevel,
            )

    def _finite_queries(self, X, y=None, outcome=None):
        """Return which queries have finite outputs, and outcomes; None: all have."""
        model = as_model(self._model)
        if model.takes_texts or not hasattr(model, "outputs"):
            return None
        with torch.no_grad():
            outputs = model.outputs(X)
            finite = finite_rows(outputs)
            if outcome is not None and not isinstance(outcome, SetOutcome):
                encode = model.encode if hasattr(model, "encode") else model.targets
                values = model.loss.outcome(outcome)(outputs, encode(y, outputs))
                finite &= torch.isfinite(values)
        finite = finite.cpu().numpy()
        return None if finite.all() else np.flatnonzero(finite)


def _check_reduce(reduce):
    if reduce is not None and reduce != "mean":
        raise ValueError(
            f"reduce={reduce!r} is not known: use 'mean' for the mean outcome of the "
            "queries, or None for a row each. For another number of all of them pass "
            "outcome=skattrib.evaluation.SetOutcome(function) to the attributor."
        )


def _check_top_k(top_k, n_units):
    """Return how many units to keep at either end."""
    if isinstance(top_k, bool) or not isinstance(top_k, Integral) or top_k < 1:
        raise ValueError(
            f"top_k={top_k!r} must be a whole number of at least 1, or None."
        )
    if 2 * top_k > n_units:
        raise ValueError(
            f"top_k={top_k} asks for {top_k} units at either end, and there are "
            f"{n_units}: use at most top_k={n_units // 2}, or None for all."
        )
    return int(top_k)


def _some_units(attributions, errors, counts):
    """Return places, values and errors of the ends of each row; all for None."""
    if counts is None:
        return None, attributions, errors
    places = ends(attributions, *counts)
    if errors is not None:
        errors = np.take_along_axis(errors, places, axis=1)
    return places, np.take_along_axis(attributions, places, axis=1), errors


def _stacked(pieces):
    """Return what pieces of queries have, one after the other; None of None."""
    if pieces[0] is None:
        return None
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
