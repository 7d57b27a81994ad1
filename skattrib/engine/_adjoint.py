"""The reverse sweep over training runs: what the weight of every row did to the end.

The derivative of a function of the trained parameters in the weights of the rows, exact
for the optimizer, its schedule, clipping and decay included. One backward pass through
the run serves all rows; queries and runs are swept together.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol

import torch
from sklearn.exceptions import EfficiencyWarning
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from skattrib.engine._dense_hessian import DenseGradient, dense_layers
from skattrib.engine._functional import FunctionalModule, chunks
from skattrib.engine._losses import Loss
from skattrib.engine._minibatch import NO_BUFFERS, Minibatch, row_shares
from skattrib.engine._modules import activation_size
from skattrib.engine._optimizers import (
    Optimizer,
    StepDerivative,
    clip_gradient,
    map_state,
    plain_sgd,
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
# More runs are faster as a stack, through autograd, than one by one by hand, unless
# each has so many numbers, queries times parameters, that the calls do not matter.
_FEW_RUNS = 8
_MANY_NUMBERS = 40_000
# Bytes of an array over runs, queries and parameters. From 32 MiB on, C's allocator
# takes memory from the system and gives it back at every use, which doubles the time.
_LARGEST_ARRAY = 2**24
# Two ways may differ by this many roundings of the largest number.
_DIGITS_LEFT = 1e4
# With fewer queries at a time, replaying for each lot takes longer than that.
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
    on_rows: RowCallback | None = None,
    memory_bytes: float,
    verbose: int = 0,
) -> Tensor:
    """Differentiate functions of the trained parameters in the weights of the rows.

    Parameters
    ----------
    weights : Tensor of shape (M, n)
        Multipliers of the rows in the M runs.
    cotangents : Tensor of shape (M, q, P)
        Gradients of the functions in the parameters at the end of each run.
    states : mapping of int to TrainingState
        States that training kept, of all M runs. The others are replayed; where not
        all fit the memory, from checkpoints.
    dynamics : {"recorded", "sgd"}
        "sgd" passes plain SGD's Jacobians along the same states, as if the optimizer
        had kept no moments.
    hessian : {"exact", "empirical_fisher"}
        "empirical_fisher" takes Σ w ∇ℓ ∇ℓᵀ / Σ w of the minibatch for the Hessian of
        its mean loss.
    inert : float
        Where the optimizer divides by the size of gradients: parameters with gradients
        of at most this fraction of the usual size pass nothing on, see
        `Optimizer.pullback`. In a run on a subset, these are the ones that mostly rows
        left out would train. Their derivative is huge and holds for tiny weights only;
        0.01 keeps it out of runs on random halves.
    on_rows : callable
        Gets the scores of every single step, last step first.
    verbose : int
        Shows progress when above 0.

    Returns
    -------
    Tensor of shape (M, q, n)
        Derivatives, summed over the steps. They hold in rows of weight zero, too.
    """
    probe = check_differentiable(model, loss, X, targets)
    n_runs, n_queries = cotangents.shape[:2]
    plan = _Plan.of(model, recipe, X, n_runs, n_queries, memory_bytes)
    if n_runs > 1 and not can_stack(model, loss, X, targets):
        plan = replace(plan, n_runs=1)
    scores = X.new_zeros(n_runs, n_queries, len(X))
    n_sweeps = math.ceil(n_runs / plan.n_runs) * math.ceil(n_queries / plan.n_queries)
    total = n_sweeps * recipe.n_steps
    with tqdm(total=total, desc="sweeping steps", disable=not verbose) as bar:
        for runs in chunks(n_runs, plan.n_runs):
            stack = _Stack(
                model,
                loss,
                recipe,
                X,
                targets,
                weights[runs],
                dynamics,
                hessian,
                inert,
                probe,
            )
            kept = {t: state[runs].to(X) for t, state in (states or {}).items()}
            kept.setdefault(0, start(recipe, X, len(stack.weights)))
            for queries in chunks(n_queries, plan.n_queries):
                # queries first: autograd batches over the leading axis
                after = cotangents[runs, queries].transpose(0, 1).to(X)
                steps = stack.sweep(after, stack.states_backwards(kept, plan.n_states))
                for t, rows, found in steps:
                    found = found.transpose(0, 1)
                    scores[runs, queries].index_add_(2, rows, found)
                    if on_rows is not None:
                        on_rows(t, rows, found, runs, queries)
                    bar.update()
    return scores


class Probe(NamedTuple):
    """What autograd has for two rows: the gradient, and products for one direction."""

    params: Tensor
    shares: Tensor
    cotangents: Tensor
    value: Tensor
    curved: Tensor
    dots: Tensor

    def agrees(self, way: Callable[..., Differentiated]) -> bool:
        """Say whether another way has the same, up to rounding."""
        rows = torch.arange(self.shares.shape[1], device=self.shares.device)
        other = way(self.params, rows, self.shares, None)
        pairs = zip(
            (other.value, *other.products(self.cotangents)), self[3:], strict=True
        )
        return all(bool(((a - b).abs() <= _slack(b)).all()) for a, b in pairs)


def check_differentiable(
    model: FunctionalModule, loss: Loss, X: Tensor, targets: Tensor
) -> Probe:
    """Raise ValueError unless autograd takes the module twice, batched over queries."""
    params = model.flatten().to(X)[None]
    shares = params.new_tensor([[0.25, 0.75]])[:, : len(X)]
    ramp = torch.linspace(-1, 1, params.shape[1]).to(params)
    cotangents = ramp.expand(2, 1, -1)
    try:
        minibatch = Minibatch(model, loss, X[:2], targets[:2])
        gradient = _Gradient(minibatch, "exact", params, None, shares, None)
        curved, dots = gradient.products(cotangents)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        name = type(model.module).__name__
        raise ValueError(
            f"{name} cannot be differentiated twice: {error}. The influence of a row "
            "on the steps after it needs second derivatives, of many queries at once. "
            "Replace the layer named above: a custom autograd.Function needs a twice "
            "differentiable backward() without in-place operations; write a recurrent "
            "layer as a loop over cells (nn.LSTMCell)."
        ) from error
    one = slice(0, 1)
    return Probe(
        params, shares, cotangents[one], gradient.value, curved[one], dots[one]
    )


class Differentiated(Protocol):
    """The gradient of a minibatch's loss in the parameters, (M, P)."""

    value: Tensor

    def products(self, cotangents: Tensor) -> tuple[Tensor, Tensor]:
        """Return H a (q, M, P) and the dots ∇ℓᵀ a (q, M, B) for cotangents a."""


class _Gradient:
    """The gradient of a minibatch's loss, and products with its Jacobians.

    Parameters
    ----------
    minibatch : Minibatch
    hessian : {"exact", "empirical_fisher"}
    params : Tensor of shape (M, P)
    rows : int Tensor of shape (B,) or None
    shares : Tensor of shape (M, B)
        Weights of the rows over their sum.
    clip_norm : float or None
    """

    def __init__(
        self,
        minibatch: Minibatch,
        hessian: Hessian,
        params: Tensor,
        rows: Tensor | None,
        shares: Tensor,
        clip_norm: float | None,
    ) -> None:
        self._hessian = hessian
        self._params = params.detach().requires_grad_()
        self._shares = shares.detach().requires_grad_()
        with torch.enable_grad():
            # fused attention has no second derivative, the plain one has
            with sdpa_kernel(SDPBackend.MATH):
                self._losses, _ = minibatch.stacked_losses(
                    self._params, NO_BUFFERS, self._shares, rows
                )
            (grad,) = torch.autograd.grad(
                (self._losses * self._shares).sum(), self._params, create_graph=True
            )
            # The clipped gradient is what the optimizer consumes: products go through
            # the Jacobian of clipping as well.
            self._grad = clip_gradient(grad, clip_norm)
        self.value = self._grad.detach()

    def products(self, cotangents: Tensor) -> tuple[Tensor, Tensor]:
        """Return H a (q, M, P) and the dots ∇ℓᵀ a (q, M, B) for cotangents a.

        Both are the transposed Jacobian of one function, the gradient as it depends on
        parameters and shares: no row's gradient is formed.
        """
        if self._hessian == "exact":
            curved, dots = torch.autograd.grad(
                self._grad,
                (self._params, self._shares),
                cotangents,
                is_grads_batched=True,
            )
            return curved, dots
        (dots,) = torch.autograd.grad(
            self._grad,
            self._shares,
            cotangents,
            retain_graph=True,
            is_grads_batched=True,
        )
        (curved,) = torch.autograd.grad(
            self._losses,
            self._params,
            dots * self._shares.detach(),
            is_grads_batched=True,
        )
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
        self, cotangents: Tensor, states: Iterator[tuple[int, TrainingState]]
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield step, rows and scores (q, m, rows), from the last step to the first."""
        everything = torch.arange(len(self.X), device=self.X.device)
        take = self._gradients(cotangents[:, 0].numel())
        optimizer = self.optimizer
        # no derivative in the state at the end, whatever a state starts from
        nothing = map_state(torch.zeros_like, optimizer.initial_state(cotangents))
        after = StepDerivative(cotangents, nothing)
        for done, state in states:
            t = done + 1
            rate, rows = self.recipe.step(t, self.X.device)
            weights = self.weights if rows is None else self.weights[:, rows]
            shares = row_shares(weights)
            gradient = take(state.params, rows, shares, self.recipe.clip_norm)
            rows = everything if rows is None else rows
            # bound to `after` at once: what it was is large, and done with
            in_grad, after = optimizer.pullback(
                state.params,
                gradient.value,
                state.optimizer,
                self.recipe.n_before + t,
                rate,
                after,
                self.inert,
            )
            curved, dots = gradient.products(in_grad)
            after = after._replace(params=after.params + curved)
            total = weights.sum(dim=1, keepdim=True)
            # More of one row is less of the others. An empty batch stays empty when a
            # weight moves by a trifle: it counts as no step's worth.
            dots = dots - (dots * shares).sum(dim=-1, keepdim=True)
            yield t, rows, torch.where(total > 0, dots / total, 0.0)

    def _gradients(self, n_numbers: int) -> Callable[..., Differentiated]:
        """Return what makes a minibatch's gradient: by hand where that is known."""
        layers = dense_layers(self.model, self.X)
        # on a GPU the calls always matter
        large = n_numbers >= _MANY_NUMBERS and self.X.device.type == "cpu"
        worth_it = len(self.weights) <= _FEW_RUNS or large
        minibatch = Minibatch(self.model, self.loss, self.X, self.targets)
        by_autograd = partial(_Gradient, minibatch, self.hessian)
        if layers is None or self.hessian != "exact" or not worth_it:
            return by_autograd

        by_hand = partial(DenseGradient, layers, minibatch)
        if self.probe.agrees(by_hand):
            return by_hand
        warnings.warn(
            f"Second derivatives of {type(self.model.module).__name__} written out "
            "differ from those of autograd, which are taken instead; they are slower. "
            "Please report the module and its loss.",
            EfficiencyWarning,
            stacklevel=2,
        )
        return by_autograd

    def states_backwards(
        self, kept: Mapping[int, TrainingState], room: int
    ) -> Iterator[tuple[int, TrainingState]]:
        """Yield t and the state after t steps, from the last but one to the start."""
        steps = range(self.recipe.n_steps)
        kept = {t: state for t, state in kept.items() if t in steps}
        return self._backwards(kept, self.recipe.n_steps, room)

    def _backwards(
        self, kept: Mapping[int, TrainingState], last: int, room: int
    ) -> Iterator[tuple[int, TrainingState]]:
        """Yield the states before step ``last``; replay those between the kept ones."""
        ends = [*sorted(kept), last]
        for first, end in reversed(list(pairwise(ends))):
            if end - first == 1:
                yield first, kept[first]
                continue
            keep = range(first, end, _stride(end - first, room))
            # not bound to a name: this segment's states must go before the next one's
            yield from self._backwards(
                self._replay(kept[first], first, keep), end, room - len(keep) + 1
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
        )


def _slack(value: Tensor) -> Tensor:
    size = value.abs().max().clamp(min=1.0)
    return _DIGITS_LEFT * torch.finfo(value.dtype).eps * size


def _stride(n_steps: int, room: int) -> int:
    """Return how far apart to keep states, if there is room for some beside the first.

    All if they fit; else about √T, with room for as many again inside one segment, so
    that every step is replayed twice; else one half way, for log₂ T replays.
    """
    if n_steps - 1 <= room:
        return 1
    root = math.isqrt(n_steps - 1) + 1
    return root if 2 * (root - 1) <= room else -(-n_steps // 2)


@dataclass(frozen=True)
class _Plan:
    """How many runs, queries and states are held at a time."""

    n_runs: int
    n_queries: int
    n_states: int

    @classmethod
    def of(
        cls,
        model: FunctionalModule,
        recipe: Recipe,
        X: Tensor,
        n_runs: int,
        n_queries: int,
        memory_bytes: float,
    ) -> _Plan:
        numbers = memory_bytes / X.element_size()
        batch = len(X) if recipe.batches is None else len(recipe.batches[0])
        activations = batch * activation_size(model.module, X)
        moments = recipe.optimizer.initial_state(recipe.initial)
        state = model.n_params + sum(m.numel() for m in moments)
        query = (
            _COPIES_PER_PARAM * model.n_params + _COPIES_PER_ACTIVATION * activations
        )
        # a run without queries: a step, and the states of the leanest replay that
        # takes every step no more than twice
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
        return cls(n_runs, n_queries, max(0, int(left / (n_runs * state))))
