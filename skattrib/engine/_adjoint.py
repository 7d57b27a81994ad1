"""The reverse sweep over training runs: derivatives in the weights of the rows.

The derivative of a function of the trained parameters in the weights of the rows is
exact for the optimizer, with its schedule, clipping and decay. One backward pass
through the run serves all rows; queries and runs are processed together.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol

import torch
from sklearn.exceptions import EfficiencyWarning
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from skattrib._progress import tqdm
from skattrib.engine._dense_hessian import DenseGradient, dense_layers
from skattrib.engine._functional import FunctionalModule, chunks
from skattrib.engine._kinds import (
    EXACT,
    Entering,
    Groups,
    Kind,
    groups_of,
    pulled_back,
    within,
)
from skattrib.engine._losses import Loss
from skattrib.engine._minibatch import Minibatch, row_shares, same_seeds
from skattrib.engine._modules import activation_size
from skattrib.engine._optimizers import (
    Optimizer,
    Rate,
    StepDerivative,
    clip_gradient,
    map_state,
    plain_sgd,
    with_values,
)
from skattrib.engine._plain_gradients import (
    REFUSALS,
    agree,
    cure_of,
    finite,
    summary,
    transposed_products,
    warn_slow,
)
from skattrib.engine._training import can_stack, replay, start
from skattrib.engine._trajectory import Recipe, TrainingState

Dynamics = Literal["recorded", "sgd"]
Hessian = Literal["exact", "empirical_fisher"]
#: (step from 1, row indices, scores (m, q, rows), their runs, their queries)
RowCallback = Callable[[int, Tensor, Tensor, slice, slice], object]

# Numbers alive per query and parameter, and per query and activation, in a step.
_COPIES_PER_PARAM = 10
_COPIES_PER_ACTIVATION = 8
# More runs are faster as a stack, by autograd, than one by one in closed form, unless
# each has so many numbers, queries times parameters, that calls cost little.
_FEW_RUNS = 8
_MANY_NUMBERS = 40_000
# Bytes of an array over runs, queries and parameters. From 32 MiB on, C's allocator
# requests and returns memory at every use, which doubles the time.
_LARGEST_ARRAY = 2**24
# Two implementations may differ by this many roundings of the largest number.
_DIGITS_LEFT = 1e4
# With fewer queries at a time, the replay for each of them would take longer.
_FEWEST_QUERIES = 4


def differentiate_run(
    model: FunctionalModule,
    loss: Loss,
    recipe: Recipe,
    X: Tensor,
    targets: Tensor,
    weights: Tensor,
    cotangents: Tensor,
    *,
    states: Mapping[int, TrainingState] | None = None,
    dynamics: Dynamics = "recorded",
    hessian: Hessian = "exact",
    inert: float = 0.0,
    kinds: Sequence[tuple[int, Kind]] | None = None,
    seeds: Tensor | None = None,
    on_rows: RowCallback | None = None,
    memory_bytes: float,
    verbose: int = 0,
) -> Tensor:
    """Differentiate functions of the trained parameters in the weights of the rows.

    Parameters
    ----------
    weights : Tensor of shape (M, n)
        Multipliers of the rows in the M runs.
    cotangents : Tensor of shape (M, q, P + B)
        Gradients of the functions in parameters and running statistics, at the end of
        each run or where an average of its states is.
    states : mapping of int to TrainingState
        States that training kept, of all M runs. The others are replayed, from
        checkpoints if not all fit the memory.
    dynamics : {"recorded", "sgd"}
        "sgd" uses the Jacobians of plain SGD at the same states, as if the optimizer
        had kept no moments.
    hessian : {"exact", "empirical_fisher"}
        "empirical_fisher" replaces the Hessian of the mean loss of a minibatch by
        Σ w ∇ℓ ∇ℓᵀ / Σ w.
    inert : float
        If the optimizer divides by the size of gradients: parameters with gradients of
        at most this fraction of the usual size are held fixed, see
        `Optimizer.pullback`. In a run on a subset, these are parameters trained mostly
        by rows left out. Their derivative is huge and valid for tiny weights only; 0.01
        excludes it in runs on random halves.
    kinds : sequence of (int, Kind), or None
        How many of the functions, one after the other, are differentiated in which way;
        None takes the exact one for all.
    seeds : int64 Tensor of shape (M,) or None
        Of the random numbers of the runs; None takes the recipe's for all.
    on_rows : callable
        Called with the scores of each step, last step first.
    verbose : int
        Shows progress when above 0.

    Returns
    -------
    Tensor of shape (M, q, n)
        Derivatives, summed over the steps; also for rows of weight zero.
    """
    probe = check_differentiable(model, loss, X, targets)
    if hessian == "empirical_fisher" and model.behaviour.mixes:
        raise ValueError(
            "hessian='empirical_fisher' needs the gradient of each row, and batch "
            "normalisation lets rows of a batch meet. Use hessian='exact'."
        )
    n_runs, n_queries = cotangents.shape[:2]
    if seeds is None:
        seeds = same_seeds(n_runs, recipe.seed, X)
    groups = groups_of(kinds or [(n_queries, EXACT)])
    plan = sweep_sizes(model, recipe, X, n_runs, n_queries, memory_bytes)
    stacks = not probe.one_by_one and can_stack(model, loss, X, targets)
    if n_runs > 1 and not stacks:
        plan = replace(plan, n_runs=1)
    scores = X.new_zeros(n_runs, n_queries, len(X))
    run = model, loss, recipe, X, targets
    how = dynamics, hessian, inert, probe
    n_sweeps = math.ceil(n_runs / plan.n_runs) * math.ceil(n_queries / plan.n_queries)
    total = n_sweeps * recipe.n_steps

    with tqdm(total=total, desc="sweeping steps", disable=not verbose) as bar:
        for runs in chunks(n_runs, plan.n_runs):
            stack = _Stack(*run, weights[runs], seeds[runs], *how)
            kept_states = {t: state[runs].to(X) for t, state in (states or {}).items()}
            kept_states.setdefault(0, start(recipe, X, len(stack.weights)))
            for queries in chunks(n_queries, plan.n_queries):
                # queries first: autograd batches over the leading axis
                after = cotangents[runs, queries].transpose(0, 1).to(X)
                steps = stack.sweep(
                    after,
                    stack.states_backwards(kept_states, plan.n_states),
                    within(groups, queries, runs),
                )
                for t, rows, step_scores in steps:
                    step_scores = step_scores.transpose(0, 1)
                    scores[runs, queries].index_add_(2, rows, step_scores)
                    if on_rows is not None:
                        on_rows(t, rows, step_scores, runs, queries)
                    bar.update()

    return scores


class Probe(NamedTuple):
    """Results of autograd for two rows: gradient, and products for one direction.

    ``one_by_one`` says whether autograd cannot batch products over queries.
    """

    one_by_one: bool
    params: Tensor
    shares: Tensor
    cotangents: Tensor
    value: Tensor
    curved: Tensor
    dots: Tensor

    def agrees(self, make_gradient: Callable[..., Differentiated]) -> bool:
        """Return whether another implementation gives the same, up to rounding."""
        rows = torch.arange(self.shares.shape[1], device=self.shares.device)
        seeds = same_seeds(1, 0, self.shares)
        gradient = make_gradient(self.params, rows, self.shares, None, seeds, 0)
        pairs = zip(
            (gradient.value, *gradient.products(self.cotangents)),
            (self.value, self.curved, self.dots),
            strict=True,
        )
        return all(bool(((a - b).abs() <= _slack(b)).all()) for a, b in pairs)


def check_differentiable(
    model: FunctionalModule, loss: Loss, X: Tensor, targets: Tensor
) -> Probe:
    """Return second derivatives by autograd, and how it computes them.

    Raise ValueError if it cannot. Those batched over queries are compared with those of
    one query.
    """
    model.look(X)
    params = model.vector().to(X)[None]
    shares = params.new_tensor([[0.25, 0.75]])[:, : len(X)]
    ramp = torch.linspace(-1, 1, params.shape[1]).to(params)
    cotangents = ramp.expand(2, 1, -1)
    one, name = slice(0, 1), type(model.module).__name__
    minibatch = Minibatch(model, loss, X[:2], targets[:2])

    def products(cotangents: Tensor, one_by_one: bool) -> tuple[Tensor, ...]:
        seeds = same_seeds(1, 0, X)
        gradient = _Gradient(
            minibatch, "exact", params, None, shares, None, seeds, one_by_one=one_by_one
        )
        return gradient.value, *gradient.products(cotangents)

    try:
        expected = products(cotangents[one], True)
    except REFUSALS as error:
        raise ValueError(
            f"{name} cannot be differentiated twice: {error}. The influence of a row "
            f"on later steps needs second derivatives. {cure_of(error)}"
        ) from error

    failure = ""
    try:
        found = products(cotangents, False)
        usual = float(expected[0].norm()) + 1.0
        if finite(expected) and not all(
            agree(a[one], b, usual) for a, b in zip(found, expected, strict=True)
        ):
            failure = "second derivatives differ from those of one query"
    except REFUSALS as error:
        failure = summary(error)

    if failure:
        warn_slow(
            model,
            f"autograd cannot batch queries: {failure}",
            "its second derivatives are computed query by query",
        )
    return Probe(bool(failure), params, shares, cotangents[one], *expected)


class Differentiated(Protocol):
    """The gradient of a minibatch's loss in the parameters, (M, P)."""

    value: Tensor

    def products(self, cotangents: Tensor) -> tuple[Tensor, Tensor]:
        """Return H a, of the shape of a, and the dots ∇ℓᵀ a (q, M, rows).

        Cotangents a (q, M, P + B) are of the gradient and of new running statistics.
        """


class _Gradient:
    """The gradient of a minibatch's loss, and products with its Jacobians.

    Parameters
    ----------
    minibatch : Minibatch
    hessian : {"exact", "empirical_fisher"}
    params : Tensor of shape (M, P + B)
    rows : int Tensor of shape (rows,) or None
    shares : Tensor of shape (M, rows)
        Weights of the rows over their sum.
    clip_norm : float or None
    seeds : int64 Tensor of shape (M,)
    step : int
    one_by_one : bool
        Take products for one query after the other.
    """

    def __init__(
        self,
        minibatch: Minibatch,
        hessian: Hessian,
        params: Tensor,
        rows: Tensor | None,
        shares: Tensor,
        clip_norm: float | None,
        seeds: Tensor,
        step: int = 0,
        *,
        one_by_one: bool = False,
    ) -> None:
        self._hessian, self._one_by_one = hessian, one_by_one
        self._params = params.detach().requires_grad_()
        self._shares = shares.detach().requires_grad_()

        with torch.enable_grad():
            # only unfused attention has second derivatives
            with sdpa_kernel(SDPBackend.MATH):
                self._losses, statistics = minibatch.stacked_losses(
                    self._params, self._shares, rows, seeds, step
                )
            (grad,) = torch.autograd.grad(
                (self._losses * self._shares).sum(), self._params, create_graph=True
            )
            # The clipped gradient is what the optimizer consumes: products go through
            # the Jacobian of clipping as well.
            grad = clip_gradient(grad[:, : minibatch.model.n_params], clip_norm)
            self.value = grad.detach()
            self._grad = grad
            if minibatch.model.n_buffers:
                self._grad = torch.cat([grad, statistics], dim=1)

    def products(self, cotangents: Tensor) -> tuple[Tensor, Tensor]:
        """Return H a, of the shape of a, and the dots ∇ℓᵀ a (q, M, rows).

        Both come from the transposed Jacobian of one function, the gradient in terms of
        parameters and shares: gradients of rows are not formed.
        """
        products = partial(transposed_products, one_by_one=self._one_by_one)
        if self._hessian == "exact":
            curved, dots = products(
                self._grad, (self._params, self._shares), cotangents
            )
            return curved, dots

        (dots,) = products(self._grad, (self._shares,), cotangents, retain_graph=True)
        bent = dots * self._shares.detach()
        (curved,) = products(self._losses, (self._params,), bent)
        return curved, dots


@dataclass(frozen=True)
class _Stack:
    """Runs that differ only in the weights (m, n) of their rows."""

    model: FunctionalModule
    loss: Loss
    recipe: Recipe
    X: Tensor
    targets: Tensor
    weights: Tensor
    seeds: Tensor
    dynamics: Dynamics
    hessian: Hessian
    inert: float
    probe: Probe

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer whose Jacobians the sweep takes."""
        recorded = self.recipe.optimizer_on(self.X)
        if self.dynamics == "recorded":
            return recorded
        return plain_sgd(recorded)

    def sweep(
        self,
        cotangents: Tensor,
        states: Iterator[tuple[int, TrainingState]],
        groups: Groups,
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield step, rows and scores (q, m, rows), from the last step to the first."""
        all_rows = torch.arange(len(self.X), device=self.X.device)
        gradient_of = self._gradients(cotangents[:, 0].numel())
        optimizer, n_params = self.optimizer, self.model.n_params
        entering = Entering(self.recipe, cotangents, groups)
        factors = cotangents.new_ones(len(cotangents), 1, 1)
        for part, kind in groups:
            factors[part] = kind.curvature
        damped = bool((factors != 1.0).any())
        sizes = [n_params, self.model.n_buffers]
        params, buffers = entering.last.split(sizes, dim=2)
        # derivatives in the final optimizer state are zero
        state_zeros = map_state(torch.zeros_like, optimizer.initial_state(params))
        after = StepDerivative(params, state_zeros)

        for n_done, state in states:
            t = n_done + 1
            rate, rows = self.recipe.step(t, self.X.device)
            weights = self.weights if rows is None else self.weights[:, rows]
            shares = row_shares(weights)
            clip, count = self.recipe.clip_norm, self.recipe.n_before + t
            gradient = gradient_of(state.params, rows, shares, clip, self.seeds, count)
            rows = all_rows if rows is None else rows
            # assigned to `after` at once, so that its large old value is freed
            in_grad, after = self._pullback(
                optimizer, t, rate, state, gradient.value, after, groups
            )
            if self.model.n_buffers:
                in_grad = torch.cat([in_grad, buffers], dim=2)
            curved, dots = gradient.products(in_grad)
            params, buffers = curved.split(sizes, dim=2)
            if damped:
                params = params * factors
            if (more := entering.before(n_done)) is not None:
                params = params + more[..., :n_params]
                buffers = buffers + more[..., n_params:]
            after = after._replace(params=after.params + params)
            total = weights.sum(dim=1, keepdim=True)
            # A larger share of one row means smaller shares of the others. A batch
            # whose weights are all zero contributes nothing.
            dots = dots - (dots * shares).sum(dim=-1, keepdim=True)
            yield t, rows, torch.where(total > 0, dots / total, 0.0)

    def _pullback(
        self,
        optimizer: Optimizer,
        t: int,
        rate: Rate,
        state: TrainingState,
        gradient: Tensor,
        after: StepDerivative,
        groups: Groups,
    ) -> tuple[Tensor, StepDerivative]:
        """Pull derivatives back through a step, each group of them in its way."""
        step = self.recipe.at_step(optimizer, t)
        count = self.recipe.n_before + t
        at = (
            state.params[:, : self.model.n_params],
            gradient,
            state.optimizer,
            count,
            rate,
        )
        floors = [kind.floor for _, kind in groups]
        if len(set(floors)) == 1:
            return pulled_back(step, at, after, self.inert, floors[0])
        in_grad = torch.empty_like(after.params)
        before = []
        for (part, _), floor in zip(groups, floors, strict=True):
            values = [value[part] for value in after.state]
            some = StepDerivative(after.params[part], with_values(after.state, values))
            in_grad[part], pulled = pulled_back(step, at, some, self.inert, floor)
            before.append(pulled)
        params = torch.cat([each.params for each in before])
        state_parts = zip(*(each.state for each in before), strict=True)
        values = [torch.cat(parts) for parts in state_parts]
        return in_grad, StepDerivative(params, with_values(after.state, values))

    def _gradients(self, n_numbers: int) -> Callable[..., Differentiated]:
        """Return a function for gradients of minibatches, in closed form if known."""
        layers = dense_layers(self.model, self.X)
        # on a GPU calls always cost much
        large = n_numbers >= _MANY_NUMBERS and self.X.device.type == "cpu"
        worth_it = len(self.weights) <= _FEW_RUNS or large
        minibatch = Minibatch(self.model, self.loss, self.X, self.targets)
        by_autograd = partial(
            _Gradient, minibatch, self.hessian, one_by_one=self.probe.one_by_one
        )
        if layers is None or self.hessian != "exact" or not worth_it:
            return by_autograd

        by_hand = partial(DenseGradient, layers, minibatch)
        if self.probe.agrees(by_hand):
            return by_hand

        warnings.warn(
            f"The closed-form second derivatives of {type(self.model.module).__name__} "
            "differ from those of autograd, which are used instead; they are slower. "
            "Please report the module and its loss.",
            EfficiencyWarning,
            stacklevel=2,
        )

        return by_autograd

    def states_backwards(
        self, kept_states: Mapping[int, TrainingState], room: int
    ) -> Iterator[tuple[int, TrainingState]]:
        """Yield t and the state after t steps, from the last but one to the first."""
        steps = range(self.recipe.n_steps)
        kept_states = {t: state for t, state in kept_states.items() if t in steps}
        return self._backwards(kept_states, self.recipe.n_steps, room)

    def _backwards(
        self, kept_states: Mapping[int, TrainingState], last: int, room: int
    ) -> Iterator[tuple[int, TrainingState]]:
        """Yield the states before step ``last``; replay those that are not stored."""
        ends = [*sorted(kept_states), last]
        for first, end in reversed(list(pairwise(ends))):
            if end - first == 1:
                yield first, kept_states[first]
                continue
            keep = range(first, end, _stride(end - first, room))
            # not assigned to a name: these states must be freed before the next ones
            yield from self._backwards(
                self._replay(kept_states[first], first, keep), end, room - len(keep) + 1
            )

    def _replay(
        self, state: TrainingState, first: int, keep: range
    ) -> dict[int, TrainingState]:
        return replay(
            self.model,
            self.loss,
            self.recipe,
            self.X,
            self.targets,
            self.weights,
            state,
            first,
            keep,
            self.seeds,
        )


def _slack(value: Tensor) -> Tensor:
    size = value.abs().max().clamp(min=1.0)
    return _DIGITS_LEFT * torch.finfo(value.dtype).eps * size


def _stride(n_steps: int, room: int) -> int:
    """Return the distance of stored states, with room for some beside the first.

    It is 1 if all fit; else about √T, with room for as many inside one segment, so that
    every step is replayed twice; else half of the steps, for log₂ T replays.
    """
    if n_steps - 1 <= room:
        return 1
    root = math.isqrt(n_steps - 1) + 1
    return root if 2 * (root - 1) <= room else -(-n_steps // 2)


@dataclass(frozen=True)
class SweepSizes:
    """Numbers of runs, queries and states that are held at a time.

    Attributes
    ----------
    numbers : float
        Held in all, about.
    """

    n_runs: int
    n_queries: int
    n_states: int
    numbers: float


def sweep_sizes(
    model: FunctionalModule,
    recipe: Recipe,
    X: Tensor,
    n_runs: int,
    n_queries: int,
    memory_bytes: float,
) -> SweepSizes:
    """Return how many runs, queries and states fit the memory cap."""
    numbers = memory_bytes / X.element_size()
    batch = len(X) if recipe.batches is None else len(recipe.batches[0])
    activations = batch * activation_size(model.module, X)
    moments = recipe.optimizer.initial_state(recipe.initial)
    state = model.n_params + sum(m.numel() for m in moments)
    query = _COPIES_PER_PARAM * model.n_params + _COPIES_PER_ACTIVATION * activations
    # a run without queries: a step, and the fewest states with which every step is
    # replayed at most twice
    run = query + 2 * math.sqrt(recipe.n_steps) * state

    fits = int((numbers - run) / query)
    n_queries = max(1, min(n_queries, fits))
    if X.device.type == "cpu":
        best = _LARGEST_ARRAY // (model.n_params * X.element_size())
        n_queries = min(n_queries, max(best, _FEWEST_QUERIES))
        n_runs = min(n_runs, max(1, best // n_queries))

    fits = int(numbers / (run + n_queries * query))
    n_runs = max(1, min(n_runs, fits))
    left = numbers - n_runs * (n_queries + 1) * query
    n_states = max(0, int(left / (n_runs * state)))
    held = n_runs * (n_queries + 1) * query
    held += n_runs * min(n_states, recipe.n_steps) * state
    return SweepSizes(n_runs, n_queries, n_states, held)
