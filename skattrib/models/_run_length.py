"""The course of a network's run: how long it is, and which states answer queries."""

from dataclasses import replace

import numpy as np
import torch
from sklearn.base import clone
from sklearn.utils import check_array, check_consistent_length
from torch.utils.data import Dataset

from skattrib._validation import DTYPES, as_tensor
from skattrib.engine._stopping import Validation, Watch
from skattrib.engine._trajectory import (
    SCHEDULES,
    epoch_batches,
    exponential_average,
)
from skattrib.models._datasets import opened
from skattrib.models._rows import check_whole, unknown_numbers
from skattrib.models._stopping import EarlyStopping

# "swa" averages over the last 1 / _LAST_PART of the steps.
_LAST_PART = 4


class LengthOfRun:
    """Methods of an estimator that may stop early, and average over its run.

    It has the parameters ``early_stopping``, ``average`` and ``average_decay``.
    """

    def _stopping(self):
        """Return when training stops early; None if it does not."""
        if not self.early_stopping:
            return None
        stopping = self.early_stopping
        stopping = EarlyStopping() if stopping is True else stopping
        if self.average == "swa" and stopping.n_epochs is None:
            raise ValueError(
                "average='swa' is over the last quarter of the steps, and "
                "early_stopping leaves their number open. Use average='ema', or "
                "early_stopping=False."
            )
        return stopping

    def _batches(self, n_rows, held_out, seed):
        """Return the minibatches of a run, without rows that are held out."""
        kept = np.setdiff1d(np.arange(n_rows), held_out)
        batches = epoch_batches(len(kept), self.batch_size, self.max_epochs, seed)
        if not len(held_out):
            return batches
        if batches is None:
            return [kept] * self.max_epochs
        return [kept[rows] for rows in batches]

    def _validation_rows(self, module, stopping, held_out, X, targets):
        """Return the rows, and their targets, that decide when a run stops."""
        if stopping.validation_data is None:
            return X[held_out], targets[held_out]
        data, known = stopping.validation_data, self._known_columns()
        brings_both = isinstance(data, Dataset)
        columns = None if brings_both else getattr(data[0], "columns", None)
        if columns is not None and known is not None and list(columns) != known:
            raise ValueError(
                f"EarlyStopping: validation_data has X with columns {list(columns)}, "
                f"and X of fit has {known}: pass these, in this order."
            )
        try:
            rows, y = opened(data) if brings_both else data
            rows = check_array(rows, dtype=DTYPES, allow_nd=True, ensure_2d=False)
            y = np.asarray(y)
            check_consistent_length(rows, y)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"EarlyStopping: validation_data cannot be used: {error}"
            ) from error
        if rows.shape[1:] != tuple(X.shape[1:]) or len(rows) != len(y):
            raise ValueError(
                f"EarlyStopping: validation_data has X of shape {rows.shape} and "
                f"{len(y)} targets; X of fit has rows of shape {tuple(X.shape[1:])}."
            )
        try:
            check_whole(module, rows)
            rows = as_tensor(rows, X)
            return rows, self._targets(y, rows)
        except ValueError as error:
            raise ValueError(
                f"EarlyStopping: validation_data cannot be used: {error}"
            ) from error

    def _known_columns(self):
        """Return the names of the columns of X, None where they have none."""
        names = getattr(self, "feature_names_in_", None)
        return None if names is None else list(names)

    def _validation(self, stopping, X, targets, epoch):
        decay = self.average_decay if self.average == "ema" else None
        return Validation(
            X,
            targets,
            epoch,
            stopping.patience,
            stopping.min_delta,
            stopping.restore_best,
            decay,
        )

    def _watch(self, problem):
        """Return what decides when the run stops; None if that is known."""
        if problem.validation is None:
            return None
        watch = Watch(problem.model, problem.loss, problem.validation, 1)
        try:
            watch.losses(problem.recipe.start.to(problem.X)[None])
        except IndexError as error:
            found = unknown_numbers(problem.validation.X, error)
            raise ValueError(f"EarlyStopping: validation_data: {found}") from error
        return watch

    def _stopped(self, problem, result, watch):
        """Return the problem up to where the run stopped, and cut the result there."""
        n_steps = int(watch.stops[0])
        recipe = problem.recipe.cut(n_steps, self._shares_of_states(n_steps))
        result.states = {t: s for t, s in result.states.items() if t <= n_steps}
        result.denominator = recipe.optimizer.denominator(
            watch.state.optimizer, recipe.n_before + n_steps
        )
        self.validation_loss_curve_ = torch.stack(watch.curves)[:, 0].numpy()
        return replace(problem, recipe=recipe)

    def _shares_of_states(self, n_steps):
        """Return the shares (T + 1,) of the states in the model; None: the last."""
        if self.average is None:
            return None
        if self.average == "ema":
            return exponential_average(n_steps, self.average_decay)
        n_averaged = max(1, round(n_steps / _LAST_PART))
        shares = torch.zeros(n_steps + 1, dtype=torch.float64)
        shares[-n_averaged:] = 1.0 / n_averaged
        return shares

    def _shares_at(self, stops):
        """Return the shares (M, T + 1) of the states in models that stop by then."""
        n_steps = int(stops.max())
        shares = torch.zeros(len(stops), n_steps + 1, dtype=torch.float64)
        for row, stop in zip(shares, stops.tolist(), strict=True):
            own = self._shares_of_states(stop)
            row[stop] = 1.0
            if own is not None:
                row[: stop + 1] = own
        return shares

    def _kept_stopping(self):
        """Return the estimator, that stops where this fitted one did."""
        stopping = self._stopping()
        if stopping is None or stopping.n_epochs is not None:
            return self
        if not hasattr(self, "n_epochs_"):
            return self
        kept = stopping._kept(self.n_epochs_, self._held_out)
        return clone(self).set_params(early_stopping=kept)

    def _learning_rates(self, n_steps):
        schedule = SCHEDULES.get(self.schedule, self.schedule)
        try:
            factors = [schedule(step, n_steps) for step in range(n_steps)]
            factors = np.array(factors, dtype=float)
        except TypeError as error:
            raise ValueError(
                f"schedule={schedule!r} fails: {error}. It is called with the step, "
                "from 0, and the number of all steps, and returns a factor on "
                "learning_rate: lambda step, n_steps: 1 - step / n_steps, say. A "
                "scheduler of torch steps an optimizer of its own loop, as "
                "record_training records it."
            ) from error
        if not np.isfinite(factors).all() or (factors < 0).any() or not factors.any():
            raise ValueError(
                "schedule(step, n_steps) must return finite factors >= 0, not all 0; "
                f"got {factors.min():g} to {factors.max():g}."
            )
        return torch.tensor(self.learning_rate * factors)

    def _check_finite(self, result, n_steps, n_before=0):
        """Raise if a run, of which ``n_before`` steps were taken before, diverged."""
        curve = np.array(result.loss_curve)
        if not (np.isfinite(curve).all() and torch.isfinite(result.params).all()):
            raise self._diverged(f"step {n_before + len(curve)} of {n_steps}")

    def _diverged(self, step):
        """Return the error that says so."""
        return ValueError(
            f"Training diverged with learning_rate={self.learning_rate} in {step}: the "
            "loss or the weights are no longer finite. Lower learning_rate, set "
            "clip_norm, or standardise X."
        )
