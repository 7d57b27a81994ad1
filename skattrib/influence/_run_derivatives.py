"""Training runs that can be differentiated: several weightings, several seeds."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from skattrib._validation import as_tensor, memory_cap
from skattrib.engine._adjoint import RowCallback, differentiate_run
from skattrib.engine._functional import FunctionalModule, chunks
from skattrib.engine._losses import OutcomeFunction, SetMeasure
from skattrib.engine._plain_gradients import vector_jacobian
from skattrib.engine._set_gradients import all_outputs, set_gradient
from skattrib.engine._training import train
from skattrib.engine._trajectory import Recipe
from skattrib.exceptions import FaithfulnessWarning
from skattrib.models._network import TrainingProblem, replay_error
from skattrib.models._protocol import Differentiable

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


def check_reproduced(problem: TrainingProblem, run: Runs) -> None:
    """Warn unless its recipe leads to the end of the run of a frozen estimator."""
    weights = problem.weighted(run.weights)
    again = train(
        problem.model, problem.loss, run.recipe, problem.X, problem.targets, weights
    ).params
    error = replay_error(again, run.params, run.recipe.initial)
    if error:
        warnings.warn(
            f"Replaying the record of the frozen estimator on these rows misses its "
            f"weights by {error:.1e} of the distance that training moved them: it was "
            "trained on other rows, labels or weights. What is differentiated is "
            "another run.",
            FaithfulnessWarning,
            stacklevel=7,
        )


class Queries(NamedTuple):
    """Queries as a module takes them, their targets encoded, and the outcome.

    Their number of outcomes is 1 if they have one for all of them.
    """

    X: Tensor
    targets: Tensor
    outcome: OutcomeFunction

    @property
    def n_outcomes(self) -> int:
        """How many outcomes, and so gradients, there are."""
        return 1 if isinstance(self.outcome, SetMeasure) else len(self.X)

    def part(self, rows: slice) -> Queries:
        """Return some of them."""
        return Queries(self.X[rows], self.targets[rows], self.outcome)


class RunDerivatives:
    """Outcomes at the ends of runs, and their derivatives in the weights of rows.

    What it needs of the training rows is prepared once. A pickle has the arrays that it
    was prepared from, which the attributor has too, and prepares it again.

    Parameters
    ----------
    model : Differentiable
        With a record of its training.
    X, y : ndarray
        Training rows.
    """

    def __init__(self, model: Differentiable, X: Any, y: Any) -> None:
        self._model, self._arrays = model, (X, y)
        self._prepare()

    def _prepare(self) -> None:
        model, (X, y) = self._model, self._arrays
        rows = as_tensor(X, next(model.module.parameters()))
        targets = model.targets(y, rows)
        module = FunctionalModule(model.module)
        module.look_for_recomputation(rows)  # which copies for queries know then

        self._trained = TrainingProblem(
            module,
            model.loss,
            model.trajectory.recipe,
            rows,
            targets,
            model.weighting(targets),
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: vars(self)[name] for name in ("_model", "_arrays")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._prepare()

    @property
    def problem(self) -> TrainingProblem:
        """What the estimator was trained on, for one thread to evaluate."""
        return replace(self._trained, model=self._trained.model.apart())

    def queries(self, X: Any, y: Any, outcome: str | OutcomeFunction) -> Queries:
        """Prepare queries, for any of the runs."""
        rows = as_tensor(X, self._trained.X)
        targets = self._model.targets(y, rows)
        return Queries(rows, targets, self._trained.loss.outcome(outcome))

    def outcomes(self, runs: Runs, queries: Queries) -> Tensor:
        """Return the outcomes (M, q)."""
        problem, targets = self.problem, queries.targets
        params = runs.params.to(problem.X)
        outputs = all_outputs(problem.model, params, queries.X, memory_cap())
        return queries.outcome(outputs, targets.expand(len(outputs), *targets.shape))

    def derivatives(
        self,
        runs: Runs,
        queries: Queries,
        on_rows: RowCallback | None = None,
        **options: Any,
    ) -> Tensor:
        """Return derivatives (M, q, n) of outcomes in the weights of the rows.

        ``options`` are those of `differentiate_run`, `verbose` among them.
        """
        problem = self.problem
        numbers = len(runs.params) * problem.model.n_params
        size = int(memory_cap() / (_SHARE * numbers * problem.X.element_size()))
        row_weights, derivatives = runs.weights.to(problem.X), []
        weights = problem.weighting(row_weights)

        for part in chunks(queries.n_outcomes, size):
            gradients = _outcome_gradients(problem, runs, queries, part)
            derivatives.append(
                differentiate_run(
                    problem.model,
                    problem.loss,
                    runs.recipe,
                    problem.X,
                    problem.targets,
                    weights,
                    gradients,
                    on_rows=None if on_rows is None else _shifted(on_rows, part.start),
                    memory_bytes=memory_cap(),
                    **options,
                )
            )
        return problem.weighting.pullback(row_weights, torch.cat(derivatives, dim=1))


def _outcome_gradients(
    problem: TrainingProblem, runs: Runs, queries: Queries, part: slice
) -> Tensor:
    """Return gradients (M, q, P) of some outcomes in the parameters at the end."""
    model, params = problem.model, runs.params.to(problem.X)
    measure = queries.outcome
    if isinstance(measure, SetMeasure):
        rows = queries.X, queries.targets, measure, memory_cap()
        return torch.stack([set_gradient(model, vector, *rows) for vector in params])[
            :, None
        ]
    queries = queries.part(part)

    def outcomes(vector: Tensor) -> Tensor:
        return queries.outcome(model.outputs(vector, queries.X), queries.targets)

    return torch.stack([vector_jacobian(model, outcomes, vector) for vector in params])


def _shifted(on_rows: RowCallback, start: int) -> RowCallback:
    """Count queries from the first of all rather than of a piece."""

    def call(t: int, rows: Tensor, scores: Tensor, runs: slice, part: slice) -> None:
        on_rows(t, rows, scores, runs, slice(start + part.start, start + part.stop))

    return call
