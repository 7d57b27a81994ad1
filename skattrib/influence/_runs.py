"""Training runs that can be differentiated: several weightings, several seeds."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from skattrib._validation import as_tensor, memory_cap
from skattrib.engine._adjoint import RowCallback, sweep
from skattrib.engine._functional import FunctionalModule, chunks
from skattrib.engine._losses import OutcomeFunction
from skattrib.engine._training import can_stack, stacked_outputs, train
from skattrib.engine._trajectory import Recipe
from skattrib.exceptions import FaithfulnessWarning
from skattrib.models._network import TorchEstimator, _Problem, replay_error

# Of the memory cap, what the gradients of queries may take: 1 / _SHARE.
_SHARE = 8


@dataclass(frozen=True)
class Runs:
    """Runs by one recipe that differ in the weights of the rows.

    Attributes
    ----------
    recipe : Recipe
    weights : Tensor of shape (M, n)
        Of the rows, without those of their classes.
    params : Tensor of shape (M, P)
        At the end of each run.
    """

    recipe: Recipe
    weights: Tensor
    params: Tensor


def check_reproduced(problem: _Problem, run: Runs) -> None:
    """Warn unless its recipe leads to the end of the run of a frozen estimator."""
    weights = problem.weighted(run.weights)
    again = train(
        problem.model, problem.loss, run.recipe, problem.X, problem.targets, weights
    ).params
    error = replay_error(again, run.params, run.recipe.initial)
    if error:
        warnings.warn(
            f"Replaying the record of the frozen estimator on these rows misses its "
            f"weights by {error:.1e} of the way that training took: it was trained on "
            "other rows, labels or weights. What is differentiated is another run.",
            FaithfulnessWarning,
            stacklevel=7,
        )


class Differentiator:
    """Outcomes at the ends of runs, and their derivatives in the weights of rows.

    Parameters
    ----------
    estimator : fitted TorchClassifier or TorchRegressor
    X, y : ndarray
        Training rows.
    options : dict
        Of `sweep`, `verbose` among them.
    """

    def __init__(
        self, estimator: TorchEstimator, X: Any, y: Any, **options: Any
    ) -> None:
        # a copy: other threads may be using the module
        module = copy.deepcopy(estimator.module_)
        self._estimator, self._model = estimator, FunctionalModule(module)
        self._like = next(module.parameters())
        self._X = as_tensor(X, self._like)
        self._targets = estimator._targets(y, self._X)
        self._loss, self._options = estimator.loss_function_, options
        self._weighting = estimator._weighting(self._targets)

    def _queries(
        self, X: Any, y: Any, outcome: str | OutcomeFunction
    ) -> tuple[Tensor, Tensor, OutcomeFunction]:
        queries = as_tensor(X, self._like)
        targets = self._estimator._targets(y, queries)
        return queries, targets, self._loss.outcome(outcome)

    def outcomes(
        self, runs: Runs, X: Any, y: Any, outcome: str | OutcomeFunction
    ) -> Tensor:
        """Return the outcomes (M, q)."""
        queries, targets, function = self._queries(X, y, outcome)
        params = runs.params.to(self._X)
        outputs = stacked_outputs(self._model, params, queries, memory_cap())
        return function(outputs, targets.expand(len(outputs), *targets.shape))

    def derivatives(
        self,
        runs: Runs,
        X: Any,
        y: Any,
        outcome: str | OutcomeFunction,
        on_rows: RowCallback | None = None,
    ) -> Tensor:
        """Return derivatives (M, q, n) of outcomes in the weights of the rows."""
        numbers = len(runs.params) * self._model.n_params
        size = int(memory_cap() / (_SHARE * numbers * self._X.element_size()))
        row_weights, found = runs.weights.to(self._X), []
        weights = self._weighting(row_weights)
        for part in chunks(len(X), size):
            gradients = self._gradients(runs, X[part], y[part], outcome)
            found.append(
                sweep(
                    self._model,
                    self._loss,
                    runs.recipe,
                    self._X,
                    self._targets,
                    weights,
                    gradients,
                    on_rows=None if on_rows is None else _shifted(on_rows, part.start),
                    memory_bytes=memory_cap(),
                    **self._options,
                )
            )
        return self._weighting.pullback(row_weights, torch.cat(found, dim=1))

    def _gradients(
        self, runs: Runs, X: Any, y: Any, outcome: str | OutcomeFunction
    ) -> Tensor:
        """Return gradients (M, q, P) of outcomes in the parameters at the end."""
        queries, targets, function = self._queries(X, y, outcome)
        gradient: Callable[[Tensor], Tensor] = jacrev(
            lambda vector: function(self._model.outputs(vector, queries), targets)
        )
        params = runs.params.to(self._X)
        if can_stack(self._model, self._loss, self._X, self._targets):
            return vmap(gradient, chunk_size=1)(params)
        return torch.stack([gradient(vector) for vector in params])


def _shifted(on_rows: RowCallback, start: int) -> RowCallback:
    """Count queries from the first of all rather than of a piece."""

    def call(t: int, rows: Tensor, scores: Tensor, runs: slice, part: slice) -> None:
        on_rows(t, rows, scores, runs, slice(start + part.start, start + part.stop))

    return call
