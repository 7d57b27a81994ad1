"""One seeded loop over weighted rows; trains one model or a stack of hundreds."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from joblib import effective_n_jobs
from torch import Tensor
from torch.func import vmap

from skattrib._progress import tqdm
from skattrib.engine._functional import FunctionalModule, chunks
from skattrib.engine._losses import Loss
from skattrib.engine._minibatch import Minibatch, row_shares, same_seeds
from skattrib.engine._modules import activation_size
from skattrib.engine._optimizers import clip_gradient, map_state, with_values
from skattrib.engine._parallel import batches, call_all, call_each
from skattrib.engine._plain_gradients import (
    REFUSALS,
    agree,
    finite,
    summary,
    warn_slow,
)
from skattrib.engine._stopping import Validation, Watch
from skattrib.engine._trajectory import Recipe, TrainingState

# Numbers alive per parameter in a step: parameters, gradient, moments, temporaries.
_COPIES_PER_PARAM = 8
_COPIES_PER_ACTIVATION = 3


@dataclass
class TrainingResult:
    """Outcome of a run of M models.

    Attributes
    ----------
    params : Tensor of shape (M, P + B)
        Parameters and running statistics that answer queries.
    averaged : Tensor of shape (M, P + B) or None
        The same of another average over the run, if one was asked for.
    denominator : Tensor of shape (M, P) or None
        Divisor of the last step of the optimizer; None if it does not divide.
    loss_curve : list of float
        Training loss of the first model at every step, before the step.
    states : dict of int to TrainingState
    """

    params: Tensor
    denominator: Tensor | None
    averaged: Tensor | None = None
    loss_curve: list[float] = field(default_factory=list)
    states: dict[int, TrainingState] = field(default_factory=dict)


def train(
    model: FunctionalModule,
    loss: Loss,
    recipe: Recipe,
    X: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    seeds: Tensor | None = None,
    average: Tensor | None = None,
    watch: Watch | None = None,
    keep: Collection[int] = (),
    stop_when_diverged: bool = False,
    on_step: Callable[[], object] | None = None,
) -> TrainingResult:
    """Train M models that differ only in the weights of their rows.

    Parameters
    ----------
    weights : Tensor of shape (M, n)
        Multiplier of every row's loss; zero leaves the row out.
    seeds : int64 Tensor of shape (M,) or None
        Of the random numbers that layers draw; None takes the recipe's for all models.
    average : Tensor of shape (T + 1,) or None
        Shares of the states in another average that is to be returned.
    watch : Watch or None
        Decides when the run stops, and what of it answers queries.
    keep : collection of int
        Steps after which the state is kept; 0 is the start.
    stop_when_diverged : bool
        End the run where the first model's loss is not finite.
    on_step : callable
        Called after every step.
    """
    state = start(recipe, X, len(weights))
    result = TrainingResult(state.params, None)
    # a watch follows the average by itself
    own = _Mean(None if watch is not None else recipe.average, state)
    other = _Mean(average, state)
    if 0 in keep:
        result.states[0] = state
    steps = train_steps(
        model,
        loss,
        recipe,
        X,
        targets,
        weights,
        state,
        0,
        recipe.n_steps,
        seeds=seeds,
    )

    for t, state, losses in steps:
        result.loss_curve.append(losses[0].item())
        if stop_when_diverged and not math.isfinite(result.loss_curve[-1]):
            break
        own.add(t, state)
        other.add(t, state)
        if t in keep:
            result.states[t] = state
        if on_step is not None:
            on_step()
        if watch is not None and watch(t, state):
            break

    result.params = state.params if own.value is None else own.value
    if watch is not None and watch.vectors is not None:
        result.params = watch.vectors
    result.averaged = other.value
    result.denominator = recipe.optimizer.denominator(
        state.optimizer, recipe.n_before + recipe.n_steps
    )
    return result


class _Mean:
    """A weighted sum of the states of a run."""

    def __init__(self, shares: Tensor | None, state: TrainingState) -> None:
        self._shares = None if shares is None else shares.tolist()
        self.value: Tensor | None = None
        if self._shares is not None:
            self.value = self._shares[0] * state.params

    def add(self, t: int, state: TrainingState) -> None:
        """Add the state after t steps, with its share."""
        if self.value is not None and self._shares is not None and self._shares[t]:
            self.value = self.value.add(state.params, alpha=self._shares[t])


def start(recipe: Recipe, X: Tensor, n_models: int) -> TrainingState:
    """Return the state of M models before the first step, where X is."""
    params = recipe.start.to(X).expand(n_models, -1).contiguous()
    moments = recipe.optimizer.initial_state(params[:, : len(recipe.initial)])
    if recipe.moments is not None:
        moments = map_state(
            lambda value: value.to(X).expand(n_models, -1).contiguous(), recipe.moments
        )
    return TrainingState(params, moments)


def replay(
    model: FunctionalModule,
    loss: Loss,
    recipe: Recipe,
    X: Tensor,
    targets: Tensor,
    weights: Tensor,
    state: TrainingState,
    first: int,
    keep: Collection[int],
    seeds: Tensor | None = None,
) -> dict[int, TrainingState]:
    """Continue a run from its state after ``first`` steps; return the states to keep.

    They are bit by bit those of `train` if M is the same.
    """
    states = {first: state} if first in keep else {}
    shelf = _Shelf(len(keep))
    steps = train_steps(
        model, loss, recipe, X, targets, weights, state, first, max(keep), seeds=seeds
    )
    for t, state, _ in steps:
        if t in keep:
            states[t] = shelf.put(state)
    return states


class _Shelf:
    """Room for states that are kept for a while, one array for each of their parts.

    Left where the steps made them, small states would hold on to the memory of the
    large arrays between them: several times their own size.
    """

    def __init__(self, n_states: int) -> None:
        self._n_states, self._n_kept = n_states, 0
        self._arrays: list[Tensor] = []

    def put(self, state: TrainingState) -> TrainingState:
        """Return the state, copied to its place."""
        parts = [state.params, *state.optimizer]
        if not self._arrays:
            self._arrays = [
                part.new_empty(self._n_states, *part.shape) for part in parts
            ]
        places = [array[self._n_kept] for array in self._arrays]
        for place, part in zip(places, parts, strict=True):
            place.copy_(part)
        self._n_kept += 1
        return TrainingState(places[0], with_values(state.optimizer, places[1:]))


def train_steps(
    model: FunctionalModule,
    loss: Loss,
    recipe: Recipe,
    X: Tensor,
    targets: Tensor,
    weights: Tensor,
    state: TrainingState,
    first: int,
    last: int,
    *,
    seeds: Tensor | None = None,
) -> Iterator[tuple[int, TrainingState, Tensor]]:
    """Yield t, the state after step t and the losses before it, first < t ≤ last."""
    optimizer = recipe.optimizer_on(X)
    model.look(X)
    minibatch = Minibatch(model, loss, X, targets)
    if seeds is None:
        seeds = same_seeds(len(weights), recipe.seed, X)
    for t in range(first + 1, last + 1):
        rate, rows = recipe.step(t, X.device)
        shares = row_shares(weights if rows is None else weights[:, rows])
        count = recipe.n_before + t
        gradient, statistics, losses = minibatch(
            state.params, shares, rows, seeds, count
        )
        with torch.no_grad():
            gradient = clip_gradient(gradient, recipe.clip_norm)
            step = recipe.at_step(optimizer, t).step
            params = state.params[:, : model.n_params]
            params, moments = step(params, gradient, state.optimizer, count, rate)
            if model.n_buffers:
                params = torch.cat([params, statistics], dim=1)
            state = TrainingState(params, moments)
        yield t, state, losses


def can_stack(model: FunctionalModule, loss: Loss, X: Tensor, targets: Tensor) -> bool:
    """Return whether vmap can batch the module rightly, tried on two rows."""
    return not _why_not_stacked(model, loss, X, targets)


def _why_not_stacked(
    model: FunctionalModule, loss: Loss, X: Tensor, targets: Tensor
) -> str:
    """Compare gradients of a stack of two models with those of one after the other."""
    model.look(X)
    if model.behaviour.draws or model.draws_again is not None:
        return "it draws from torch's generator, which models cannot share"
    vector = model.vector().to(X)
    stack = torch.stack([vector, 0.9 * vector])
    shares = row_shares(X.new_ones(2, len(X[:2])))
    seeds = same_seeds(2, 0, X)
    minibatch = Minibatch(model, loss, X[:2], targets[:2])
    try:
        found = minibatch(stack, shares, None, seeds)[0]
    except REFUSALS as error:
        return summary(error)
    single = [
        minibatch(stack[i : i + 1], shares[:1], None, seeds[:1])[0] for i in range(2)
    ]
    expected = torch.cat(single)
    right = not finite([expected]) or agree(found, expected)
    return "" if right else "its gradients differ from those of plain autograd"


def stack_size(
    model: FunctionalModule, recipe: Recipe, X: Tensor, memory_bytes: float
) -> int:
    """Return how many models fit a stack under the memory cap."""
    batch = len(X) if recipe.batches is None else len(recipe.batches[0])
    numbers = (
        _COPIES_PER_PARAM * model.n_params
        + _COPIES_PER_ACTIVATION * batch * activation_size(model.module, X)
    )
    return max(1, int(memory_bytes / (numbers * X.element_size())))


class Trained(NamedTuple):
    """What training a stack returns.

    Attributes
    ----------
    params : Tensor of shape (M, P + B)
        What answers queries.
    stops : int64 Tensor of shape (M,)
        Steps of each model.
    """

    params: Tensor
    stops: Tensor


def train_stack(
    model: FunctionalModule,
    loss: Loss,
    recipe: Recipe,
    X: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    memory_bytes: float,
    seeds: Tensor | None = None,
    validation: Validation | None = None,
    n_jobs: int | None = None,
    verbose: int = 0,
) -> Trained:
    """Train a model for every row of ``weights``.

    Stacks are as large as the memory cap allows, and are divided among joblib's
    workers, which changes results by rounding alone. A module that vmap cannot batch is
    trained once per weighting in joblib's workers instead, with a warning.
    """
    n_models = len(weights)
    if seeds is None:
        seeds = same_seeds(n_models, recipe.seed, X)
    run = (model, loss, recipe, X, targets)
    failure = _why_not_stacked(model, loss, X, targets) if n_models > 1 else ""
    if failure:
        warn_slow(
            model,
            f"torch.func.vmap cannot batch models: {failure}",
            f"its {n_models} models are trained one by one (n_jobs={n_jobs})",
        )
        trained = call_all(
            _train_one,
            (
                (*run, weights[i : i + 1], seeds[i : i + 1], validation)
                for i in tqdm(range(n_models), desc="retraining", disable=not verbose)
            ),
            n_jobs,
            prefer="processes",
        )
        return _joined(trained)

    size = stack_size(model, recipe, X, memory_bytes)
    if X.device.type != "cpu":  # which one process shares out best
        n_jobs = 1
    stacks = batches(n_models, size, n_jobs)
    parts = [(*run, weights[s], seeds[s], validation) for s in stacks]
    if len(stacks) > 1 and effective_n_jobs(n_jobs) > 1:
        with tqdm(total=n_models, desc="retraining", disable=not verbose) as bar:
            trained = []
            for part in call_each(_train_one, parts, n_jobs, prefer="processes"):
                trained.append(part)
                bar.update(len(part.params))
        return _joined(trained)
    with tqdm(
        total=len(stacks) * recipe.n_steps,
        desc=f"retraining {n_models} models",
        disable=not verbose,
    ) as bar:
        return _joined([_trained(*part, on_step=bar.update) for part in parts])


def stacked_outputs(
    model: FunctionalModule, params: Tensor, X: Tensor, memory_bytes: float
) -> Tensor:
    """Return outputs (M, q, C) of models with these parameters (M, P)."""
    numbers = len(X) * activation_size(model.module, X) + model.n_params
    size = int(memory_bytes / (_COPIES_PER_ACTIVATION * numbers * X.element_size()))
    outputs_at = vmap(lambda vector: model.outputs(vector, X))
    with torch.no_grad():
        try:
            found = outputs_at(params[:1])
            expected = model.outputs(params[0], X)
            right = not finite([expected]) or agree(found[0], expected)
        except REFUSALS:
            right = False
        if not right:
            return torch.stack([model.outputs(vector, X) for vector in params])
        return torch.cat(
            [outputs_at(params[chunk]) for chunk in chunks(len(params), size)]
        )


def _joined(parts: Sequence[Trained]) -> Trained:
    return Trained(*(torch.cat(values) for values in zip(*parts, strict=True)))


def _trained(
    model: FunctionalModule,
    loss: Loss,
    recipe: Recipe,
    X: Tensor,
    targets: Tensor,
    weights: Tensor,
    seeds: Tensor,
    validation: Validation | None,
    on_step: Callable[[], object] | None = None,
) -> Trained:
    watch = None
    if validation is not None:
        watch = Watch(model, loss, validation, len(weights))
    run = (model, loss, recipe, X, targets, weights)
    params = train(*run, seeds=seeds, watch=watch, on_step=on_step).params
    stops = torch.full((len(weights),), recipe.n_steps, device=X.device)
    return Trained(params, stops if watch is None else watch.stops)


def _train_one(model: FunctionalModule, *arguments: Any) -> Trained:
    # a worker thread must not share a module: functional_call swaps its parameters
    return _trained(model.apart(), *arguments)
