"""Forward derivatives of a training run in the weights of its rows, to second order.

One pass through the run serves one direction of weights, so this is for a sample of
rows. It shows how far attributions, which are linear in the weights, can be trusted:
the second derivative is the effect of a removal beyond first order.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from skattrib._progress import tqdm
from skattrib.engine._functional import FunctionalModule, apart, chunks
from skattrib.engine._losses import Loss
from skattrib.engine._minibatch import Minibatch, row_shares, same_seeds
from skattrib.engine._modules import activation_size
from skattrib.engine._optimizers import (
    StepDerivative,
    clip_gradient,
    map_state,
    plain_sgd,
)
from skattrib.engine._plain_gradients import (
    REFUSALS,
    agree,
    finite,
    summary,
    warn_slow,
)
from skattrib.engine._training import start, train_steps
from skattrib.engine._trajectory import Recipe, TrainingState

# Numbers alive per direction and parameter, and per direction and activation.
_COPIES_PER_PARAM = 16
_COPIES_PER_ACTIVATION = 12
# A step of central differences in double precision, and how far they may be off.
_DIFFERENCE, _TOLERANCE = 1e-5, 0.01


def tangents(
    model: FunctionalModule,
    loss: Loss,
    recipe: Recipe,
    X: Tensor,
    targets: Tensor,
    weights: Tensor,
    directions: Tensor,
    *,
    order: Literal[1, 2] = 2,
    plain_sgd: bool = False,
    memory_bytes: float,
    verbose: int = 0,
) -> tuple[Tensor, ...]:
    """Differentiate the end of a run along directions of its weights.

    Parameters
    ----------
    weights : Tensor of shape (n,)
        Of the rows.
    directions : Tensor of shape (r, n)
        How the weights move.
    order : {1, 2}
        2 differentiates twice.
    plain_sgd : bool
        Differentiate steps of plain SGD instead, at the same states.
    memory_bytes : float
        Determines how many directions are followed at a time.
    verbose : int
        Shows progress when above 0.

    Returns
    -------
    tuple of Tensor of shape (r, P + B)
        First derivatives of parameters and running statistics that answer queries, and
        second ones.

    Raises
    ------
    NotImplementedError
        If torch's third derivatives of the module, which the second ones need, are
        wrong.
    """
    load_forward_mode()
    model = _in_single_steps(model)
    run = _Run(model, loss, recipe, X, targets, weights, order, plain_sgd)
    run = run.without_forward_mode_if_wrong()
    run.check_third_derivatives()
    n_at_once = run.n_directions(memory_bytes)
    batches = list(chunks(len(directions), n_at_once))
    derivatives = []
    total = len(batches) * recipe.n_steps
    with tqdm(total=total, desc="following steps", disable=not verbose) as bar:
        for batch in batches:
            derivatives.append(run.follow(directions[batch].to(X), bar.update))
    return tuple(torch.cat(batches) for batches in zip(*derivatives, strict=True))


@functools.cache
def load_forward_mode() -> None:
    """Make torch load its rules of forward mode, which warn of torch's own calls."""
    zero = torch.zeros(())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        jvp(torch.sin, (zero,), (zero,))


def _layer_norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    axes = tuple(range(-len(layer.normalized_shape), 0))
    centred = x - x.mean(axes, keepdim=True)
    out = centred * (centred.square().mean(axes, keepdim=True) + layer.eps).rsqrt()
    if layer.weight is not None:
        out = out * layer.weight
    return out if layer.bias is None else out + layer.bias


def _in_single_steps(model: FunctionalModule) -> FunctionalModule:
    """Write layer normalisation out: torch's third derivatives of it are wrong."""
    if not any(type(layer) is nn.LayerNorm for layer in model.module.modules()):
        return model
    module = apart(model.module)
    for layer in module.modules():
        if type(layer) is nn.LayerNorm:
            layer.__dict__["forward"] = partial(_layer_norm, layer)
    return model.like(module)


@dataclass(frozen=True)
class _Run:
    model: FunctionalModule
    loss: Loss
    recipe: Recipe
    X: Tensor
    targets: Tensor
    weights: Tensor
    order: int
    plain_sgd: bool
    by_reverse_mode: bool = False

    def without_forward_mode_if_wrong(self) -> _Run:
        """Compare forward mode, on two rows, with reverse mode; return what is right.

        Where reverse mode cannot tell, nothing changes.
        """
        params = self.model.vector().to(self.X)
        self.model.look(self.X)
        rows = torch.arange(min(2, len(self.X)), device=self.X.device)
        shares = torch.linspace(1.0, 2.0, len(rows)).to(self.X)
        ramp = torch.linspace(-1, 1, len(params)).to(self.X)
        arguments = params, rows, 1, shares, shares.flip(0)[None]
        paths = [ramp[None]] * self.order
        reverse = replace(self, by_reverse_mode=True)
        try:
            expected = reverse.moved_gradient(*arguments, paths)
        except REFUSALS:
            return self

        try:
            found = self.moved_gradient(*arguments, paths)
            usual = float(expected[0].norm()) + 1.0
            if not finite(expected) or all(
                agree(a, b, usual) for a, b in zip(found, expected, strict=True)
            ):
                return self
            reason = "forward mode differs from plain autograd"
        except REFUSALS as error:
            reason = f"forward mode fails: {summary(error)}"
        warn_slow(self.model, reason, "removals are followed one by one")
        return reverse

    def check_third_derivatives(self) -> None:
        """Compare second derivatives of a gradient with differences of first ones.

        On two rows, in double precision. Raise NotImplementedError if they differ: no
        way of torch's is right then.
        """
        if self.order < 2:
            return

        targets, X = self.targets[:2], self.X[:2].double()
        run = replace(
            self,
            model=self.model.like(copy.deepcopy(self.model.module).double()),
            X=X,
            targets=targets.double() if targets.is_floating_point() else targets,
            by_reverse_mode=True,
        )
        params = run.model.vector()
        v = torch.linspace(-1, 1, len(params)).to(params)
        v *= params.norm() / v.norm()
        weights = torch.linspace(1.0, 2.0, len(X)).to(params)
        move, step = weights.flip(0)[None], _DIFFERENCE

        def slope(h: float) -> Tensor:
            at = params + h * v, None, 1, weights + h * move[0], move
            return replace(run, order=1).moved_gradient(*at, [v[None]])[1]

        try:
            straight = [v[None], torch.zeros_like(v)[None]]
            _, first, found = run.moved_gradient(
                params, None, 1, weights, move, straight
            )
            expected = (slope(step) - slope(-step)) / (2 * step)
        except REFUSALS:
            return
        error = float((found - expected).norm())
        if error > _TOLERANCE * float(expected.norm() + step * first.norm()):
            raise NotImplementedError(
                f"torch's third derivatives of {type(run.model.module).__name__} are "
                "wrong."
            )

    def n_directions(self, memory_bytes: float) -> int:
        """Return how many directions fit the memory."""
        batches = self.recipe.batches
        batch = len(self.X) if batches is None else len(batches[0])
        numbers = (
            _COPIES_PER_PARAM * self.model.n_params
            + _COPIES_PER_ACTIVATION
            * batch
            * activation_size(self.model.module, self.X)
        )
        return max(1, int(memory_bytes / (numbers * self.X.element_size())))

    def follow(
        self, directions: Tensor, on_step: Callable[[], object]
    ) -> tuple[Tensor, ...]:
        """Return derivatives (r, P + B) of what answers queries, by order."""
        optimizer = self.recipe.optimizer_on(self.X)
        if self.plain_sgd:
            optimizer = plain_sgd(optimizer)
        before, n_params = start(self.recipe, self.X, 1), self.model.n_params
        zeros = self.X.new_zeros(len(directions), n_params)
        moved = [self.X.new_zeros(len(directions), self.model.n_buffers)] * self.order
        total = [torch.zeros(())] * self.order
        average = self.recipe.average
        state_zeros = map_state(torch.zeros_like, optimizer.initial_state(zeros))
        derivatives = [StepDerivative(zeros, state_zeros)] * self.order
        steps = train_steps(
            self.model,
            self.loss,
            self.recipe,
            self.X,
            self.targets,
            self.weights[None],
            before,
            0,
            self.recipe.n_steps,
        )

        for t, after, _ in steps:
            paths = [
                torch.cat([d.params, m], dim=1)
                for d, m in zip(derivatives, moved, strict=True)
            ]
            gradient, *in_gradient = self._gradient(before, t, directions, paths)
            moved = [each[:, n_params:] for each in in_gradient]
            rate, _ = self.recipe.step(t, self.X.device)
            derivatives = self.recipe.at_step(optimizer, t).pushforward(
                before.params[0, :n_params],
                gradient[:n_params],
                map_state(lambda value: value[0], before.optimizer),
                self.recipe.n_before + t,
                rate,
                derivatives,
                [each[:, :n_params] for each in in_gradient],
            )
            before = after
            if average is not None or t == self.recipe.n_steps:
                share = 1.0 if average is None else float(average[t])
                total = [
                    sum_ + share * torch.cat([d.params, m], dim=1)
                    for sum_, d, m in zip(total, derivatives, moved, strict=True)
                ]
            on_step()

        return tuple(total)

    def _gradient(
        self, before: TrainingState, t: int, directions: Tensor, paths: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """Return what a step computes (P + B,) and derivatives along the paths."""
        _, rows = self.recipe.step(t, self.X.device)
        weights = self.weights
        if rows is not None:
            weights, directions = weights[rows], directions[:, rows]
        return self.moved_gradient(
            before.params[0], rows, t, weights, directions, paths
        )

    def moved_gradient(
        self,
        params: Tensor,
        rows: Tensor | None,
        t: int,
        weights: Tensor,
        directions: Tensor,
        paths: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """Return gradient and new statistics of rows (P + B,), and their derivatives.

        Those are (r, P + B), along each of the paths.
        """
        minibatch = Minibatch(self.model, self.loss, self.X, self.targets)
        n_params, seed = self.model.n_params, same_seeds(1, self.recipe.seed, self.X)[0]
        gradient_of = minibatch.moved
        jvp_of: Callable[..., Any] = jvp
        if self.by_reverse_mode:
            gradient_of = minibatch.plainly_moved
            jvp_of = partial(torch.autograd.functional.jvp, create_graph=True)

        def computed(params: Tensor, w: Tensor) -> Tensor:
            shares = row_shares(w[None])[0]
            found = gradient_of(params, shares, rows, seed, self.recipe.n_before + t)
            if self.recipe.clip_norm is None:
                return found
            gradient, statistics = found.split([n_params, self.model.n_buffers])
            clipped = clip_gradient(gradient, self.recipe.clip_norm)
            return torch.cat([clipped, statistics])

        zero = self.X.new_zeros(())
        one = torch.ones_like(zero)

        def derivatives(
            direction: Tensor, velocity: Tensor, *acceleration: Tensor
        ) -> tuple[Tensor, ...]:
            def at(s: Tensor) -> Tensor:
                moved = params + s * velocity
                for curvature in acceleration:
                    moved = moved + 0.5 * s**2 * curvature
                return computed(moved, weights + s * direction)

            def slope(s: Tensor) -> Tensor:
                first_derivative: Tensor = jvp_of(at, (s,), (one,))[1]
                return first_derivative

            if not acceleration:
                return (slope(zero),)
            return tuple(jvp_of(slope, (zero,), (one,)))

        with sdpa_kernel(SDPBackend.MATH):
            value = computed(params, weights)
            if not self.by_reverse_mode:
                return value, *vmap(derivatives)(directions, *paths)
            moved = [
                derivatives(*each) for each in zip(directions, *paths, strict=True)
            ]
            stacked = (torch.stack(each) for each in zip(*moved, strict=True))
            return value.detach(), *(each.detach() for each in stacked)
