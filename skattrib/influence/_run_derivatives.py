"""Training runs that can be differentiated: several weightings, several seeds."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from joblib import effective_n_jobs
from numpy.typing import NDArray
from torch import Tensor

from skattrib._progress import tqdm
from skattrib._validation import as_tensor, memory_cap
from skattrib.engine._adjoint import RowCallback, differentiate_run
from skattrib.engine._functional import FunctionalModule, chunks
from skattrib.engine._kinds import Kind
from skattrib.engine._losses import MeanOfRows, OutcomeFunction, SetMeasure
from skattrib.engine._minibatch import same_seeds
from skattrib.engine._modules import activation_size
from skattrib.engine._parallel import batches, call_each
from skattrib.engine._plain_gradients import gradients_of, vector_jacobian
from skattrib.engine._set_gradients import all_outputs, set_gradient
from skattrib.engine._training import can_stack, stack_size, train
from skattrib.engine._trajectory import Recipe, exponential_average
from skattrib.exceptions import FaithfulnessWarning
from skattrib.influence._prior_means import EXACT, Derivative
from skattrib.models._network import TrainingProblem, replay_error
from skattrib.models._protocol import Differentiable

# Of the memory cap, what the gradients of queries may take: 1 / _SHARE.
_SHARE = 8
# Numbers alive per activation of a row in a step of the sweep.
_COPIES_PER_ACTIVATION = 8


def derivatives_by_workers(
    derivatives: RunDerivatives,
    runs: Runs,
    queries: Queries,
    n_jobs: int | None,
    **options: Any,
) -> Tensor:
    """Return `RunDerivatives.derivatives`, the runs divided among joblib's workers.

    Where there are fewer runs than workers, the queries are divided, unless they have
    one outcome together.
    """
    n_workers = effective_n_jobs(n_jobs)
    if n_workers == 1 or not derivatives.on_cpu:
        return derivatives.derivatives(runs, queries, **options)
    verbose, options["verbose"] = options.get("verbose", 0), 0
    by_run = len(runs.params) >= n_workers or queries.n_outcomes == 1
    tasks = [
        (derivatives, runs.part(part), queries, options)
        if by_run
        else (derivatives, runs, queries.part(part), options)
        for part in batches(
            len(runs.params) if by_run else len(queries.X), 2**31, n_jobs
        )
    ]
    label = f"sweeps by {n_workers} workers"
    done = call_each(_differentiate, tasks, n_jobs, prefer="processes")
    bar = tqdm(done, desc=label, total=len(tasks), disable=not verbose)
    return torch.cat(list(bar), dim=1 if by_run else 2)


def _differentiate(
    derivatives: RunDerivatives, runs: Runs, queries: Queries, options: dict[str, Any]
) -> Tensor:
    return derivatives.derivatives(runs, queries, **options)


@dataclass(frozen=True)
class Runs:
    """Runs by one recipe that differ in the weights of the rows.

    Attributes
    ----------
    recipe : Recipe
    weights : Tensor of shape (M, n)
        Of the rows, without those of their classes.
    params : Tensor of shape (M, P + B)
        Parameters and running statistics that answer queries, of each run.
    averages : dict of float to Tensor of shape (M, P + B)
        Exponential averages over each run, by their decay, as far as they are known.
    seeds : int64 Tensor of shape (M,) or None
        Of the random numbers of each; None is the recipe's for all.
    shares : Tensor of shape (M, T + 1) or None
        Those of the states of each in what answers queries; None are the recipe's.
    """

    recipe: Recipe
    weights: Tensor
    params: Tensor
    averages: Mapping[float, Tensor] = field(default_factory=dict)
    seeds: Tensor | None = None
    shares: Tensor | None = None

    def part(self, which: slice) -> Runs:
        """Return some of them."""
        return Runs(
            self.recipe,
            self.weights[which],
            self.params[which],
            {decay: params[which] for decay, params in self.averages.items()},
            None if self.seeds is None else self.seeds[which],
            None if self.shares is None else self.shares[which],
        )

    def seeds_on(self, X: Tensor) -> Tensor:
        """Return the seeds of all runs, where X is."""
        if self.seeds is None:
            return same_seeds(len(self.params), self.recipe.seed, X)
        return self.seeds.to(X.device)


def own_seeds(seed: int, n_runs: int) -> NDArray[np.int64] | None:
    """Return seeds (M,) of runs that draw other random numbers each; None: none do."""
    return seed + 1 + np.arange(n_runs) if seed else None


def check_reproduced(problem: TrainingProblem, run: Runs) -> None:
    """Warn unless its recipe leads to the end of the run of a frozen estimator."""
    weights = problem.weighted(run.weights)
    again = train(
        problem.model, problem.loss, run.recipe, problem.X, problem.targets, weights
    ).params
    error = replay_error(again, run.params, run.recipe.start)
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
        # apart: other threads may be using it
        module = FunctionalModule(model.module_in_training).apart()
        module.draws_again = model.trajectory.recipe.draws_again
        module.look(rows)  # which copies for queries know then

        self._trained = TrainingProblem(
            module,
            model.loss,
            model.trajectory.recipe.with_statistics(module.statistics()),
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

    @property
    def on_cpu(self) -> bool:
        """Whether runs are repeated there."""
        return self._trained.X.device.type == "cpu"

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
        by: Sequence[Derivative] = (EXACT,),
        **options: Any,
    ) -> Tensor:
        """Return derivatives (K, M, q, n) of outcomes in the weights of the rows.

        Those of several kinds are taken in one sweep. ``options`` are those of
        `differentiate_run`, `verbose` among them.
        """
        problem = self.problem
        numbers = len(by) * len(runs.params) * problem.model.n_params
        size = int(memory_cap() / (_SHARE * numbers * problem.X.element_size()))
        row_weights, derivatives = runs.weights.to(problem.X), []
        weights = problem.weighting(row_weights)

        for part in chunks(queries.n_outcomes, size):
            gradients, kinds = _cotangents(problem, runs, queries, part, by)
            found = differentiate_run(
                problem.model,
                problem.loss,
                runs.recipe,
                problem.X,
                problem.targets,
                weights,
                gradients,
                kinds=kinds,
                seeds=runs.seeds_on(problem.X),
                on_rows=None if on_rows is None else _shifted(on_rows, part.start),
                memory_bytes=memory_cap(),
                **options,
            )
            derivatives.append(found.unflatten(1, (len(by), -1)))
        whole = torch.cat(derivatives, dim=2)
        pulled = problem.weighting.pullback(row_weights, whole.flatten(1, 2))
        return pulled.unflatten(1, whole.shape[1:3]).transpose(0, 1)

    def averages(self, runs: Runs, decay: float, verbose: int = 0) -> Tensor:
        """Return exponential averages (M, P + B) of the states of each run."""
        problem, recipe = self.problem, runs.recipe
        weights = problem.weighted(runs.weights)
        coefficients = exponential_average(recipe.n_steps, decay)
        seeds = runs.seeds_on(problem.X)
        rows = problem.model, problem.loss, recipe, problem.X, problem.targets
        at_once = 1
        if can_stack(problem.model, problem.loss, problem.X, problem.targets):
            at_once = stack_size(problem.model, recipe, problem.X, memory_cap())
        found = []
        for part in chunks(len(weights), at_once):
            run = train(*rows, weights[part], seeds=seeds[part], average=coefficients)
            found += [] if run.averaged is None else [run.averaged.to(runs.params)]
        return torch.cat(found)

    def of_new_rows(
        self,
        runs: Runs,
        queries: Queries,
        X: Any,
        y: Any,
        by: Sequence[Derivative] = (EXACT,),
        **options: Any,
    ) -> Tensor:
        """Return derivatives (K, M, n + k) of the mean outcome, also in further rows.

        The last k are in their weights. They are in every minibatch, with weight 0, so
        that the run is the same, and the derivatives in their weights come out of one
        sweep for all queries and all of these rows. A row that is really trained on is
        in some minibatches only: in a run that draws them by shuffling, in one of each
        epoch, and in that of |B| of the n rows with chance |B| / n. The derivative of
        each step counts for so much; with full batches for all, with equal ones that
        divides the sum by their number in an epoch.
        """
        problem = self.problem
        rows = as_tensor(X, problem.X)
        targets = self._model.targets(y, rows)
        measure = _of_set(queries.outcome)
        one = Queries(queries.X, queries.targets, measure)
        gradients, kinds = _cotangents(problem, runs, one, slice(None), by)
        options["kinds"] = kinds
        found = [
            self._of_few_new_rows(
                problem, runs, gradients, rows[part], targets[part], options
            )
            for part in chunks(len(rows), _new_at_once(problem))
        ]
        n = len(problem.X)  # the rows that are trained on are in each
        return torch.cat([found[0][..., :n], *[one[..., n:] for one in found]], dim=-1)

    def _of_few_new_rows(
        self,
        problem: TrainingProblem,
        runs: Runs,
        gradients: Tensor,
        X: Tensor,
        targets: Tensor,
        options: dict[str, Any],
    ) -> Tensor:
        n_rows, n_new = len(problem.X), len(X)
        recipe, places = runs.recipe, np.arange(n_rows, n_rows + n_new)
        chances = np.ones(recipe.n_steps)
        if recipe.batches is not None:
            sizes = np.array([len(batch) for batch in recipe.batches])
            chances = sizes / len(np.unique(np.concatenate(recipe.batches)))
            batches = [np.concatenate([batch, places]) for batch in recipe.batches]
            recipe = replace(recipe, batches=batches)

        everything = torch.cat([problem.targets, targets])
        weighting = self._model.weighting(everything)
        absent = problem.X.new_zeros(len(runs.params), n_new)
        weights = torch.cat([runs.weights.to(problem.X), absent], dim=1)
        of_new = absent.new_zeros(*gradients.shape[:2], n_new)

        def add(t: int, _: Tensor, scores: Tensor, which: slice, by: slice) -> None:
            of_new[which, by] += chances[t - 1] * scores[..., -n_new:]

        derivatives = differentiate_run(
            problem.model,
            problem.loss,
            recipe,
            torch.cat([problem.X, X]),
            everything,
            weighting(weights),
            gradients,
            seeds=runs.seeds_on(problem.X),
            on_rows=add,
            memory_bytes=memory_cap(),
            **options,
        )
        derivatives[..., -n_new:] = of_new
        return weighting.pullback(weights, derivatives).transpose(0, 1)


def _new_at_once(problem: TrainingProblem) -> int:
    """Return how many further rows fit the minibatches."""
    numbers = _COPIES_PER_ACTIVATION * activation_size(problem.model.module, problem.X)
    size = numbers * problem.X.element_size()
    if problem.recipe.batches is not None:
        size += 8 * problem.recipe.n_steps  # their places in each
    return max(1, int(memory_cap() / (_SHARE * size)))


def _of_set(outcome: OutcomeFunction) -> SetMeasure:
    """Return an outcome of a set, or the mean of one of single queries."""
    if isinstance(outcome, SetMeasure):
        return outcome
    return SetMeasure(MeanOfRows(outcome), "the mean outcome", outcome)


def _cotangents(
    problem: TrainingProblem,
    runs: Runs,
    queries: Queries,
    part: slice,
    by: Sequence[Derivative],
) -> tuple[Tensor, list[tuple[int, Kind]]]:
    """Return gradients (M, K q, P) of some outcomes, and how each q are differentiated.

    They are taken in the parameters whose outcome is differentiated.
    """
    found: dict[float | None, Tensor] = {}
    for decay in {one.decay for one in by}:
        at = None if decay is None else runs.averages[decay]
        found[decay] = _outcome_gradients(problem, runs.params, queries, part, at)
    kinds = []
    for one in by:
        average = runs.shares
        if one.decay is not None:
            average = exponential_average(runs.recipe.n_steps, one.decay)
        n_queries = found[one.decay].shape[1]
        kinds.append((n_queries, Kind(one.curvature, one.floor, average)))
    return torch.cat([found[one.decay] for one in by], dim=1), kinds


def _outcome_gradients(
    problem: TrainingProblem,
    ends: Tensor,
    queries: Queries,
    part: slice,
    at: Tensor | None,
) -> Tensor:
    """Return gradients (M, q, P) of some outcomes in parameters (M, P).

    Where these are not those at the ends of runs, the outputs are differentiated there,
    and the outcome keeps its slope in the outputs at the end: a residual of averaged
    weights may have the other sign.
    """
    model, ends = problem.model, ends.to(problem.X)
    at = ends if at is None else at.to(problem.X)
    outcome = queries.outcome
    if isinstance(outcome, SetMeasure):
        rows = queries.X, queries.targets, outcome, memory_cap()
        pairs = zip(at, ends, strict=True)
        found = [set_gradient(model, one, *rows, sloped_at=end) for one, end in pairs]
        return torch.stack(found)[:, None]
    queries = queries.part(part)

    def outcomes(vector: Tensor) -> Tensor:
        return outcome(model.outputs(vector, queries.X), queries.targets)

    if at is ends:
        return torch.stack([vector_jacobian(model, outcomes, one) for one in at])

    def along(vector: Tensor, end: Tensor) -> Tensor:
        slope = _slope(model.outputs(end, queries.X), queries)
        return vector_jacobian(
            model,
            lambda one: (model.outputs(one, queries.X) * slope).flatten(1).sum(1),
            vector,
        )

    return torch.stack([along(*pair) for pair in zip(at, ends, strict=True)])


def _slope(outputs: Tensor, queries: Queries) -> Tensor:
    """Return the gradient of each outcome in the outputs of its query."""
    leaf = outputs.detach().requires_grad_()
    with torch.enable_grad():
        total = queries.outcome(leaf, queries.targets).sum()
    return gradients_of(total, [leaf])[0]


def _shifted(on_rows: RowCallback, start: int) -> RowCallback:
    """Count queries from the first of all rather than of a piece."""

    def call(t: int, rows: Tensor, scores: Tensor, runs: slice, part: slice) -> None:
        on_rows(t, rows, scores, runs, slice(start + part.start, start + part.stop))

    return call
