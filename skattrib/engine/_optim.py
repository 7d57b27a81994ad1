"""Optimizer steps as functions of flat parameters, and their transposed Jacobians.

Steps equal those of ``torch.optim``. Every function works elementwise on the last axis,
so that one model ``(P,)`` and a stack of models ``(M, P)`` take the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

OptimizerName = Literal["adamw", "adam", "sgd"]

# torch.nn.utils.clip_grad_norm_ divides by the norm plus this.
_CLIP_EPS = 1e-6


@dataclass(frozen=True)
class Optimizer:
    """Hyper-parameters of an optimizer, with the meaning they have in torch.

    ``weight_decay`` may be a tensor (P,), one for every parameter.
    """

    name: OptimizerName = "adamw"
    weight_decay: float | Tensor = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.0
    nesterov: bool = False

    @property
    def decays(self) -> bool:
        """Whether parameters decay."""
        return isinstance(self.weight_decay, Tensor) or self.weight_decay != 0

    @property
    def adaptive(self) -> bool:
        """Whether the step is scaled by a second moment."""
        return self.name in ("adamw", "adam")

    def as_plain_sgd(self) -> Optimizer:
        """Return SGD that keeps no moments, with the same decay."""
        return replace(self, name="sgd", momentum=0.0, nesterov=False)

    def path_length(self, learning_rates: Tensor) -> float:
        """How far a unit gradient carries in a whole run: the sum of the step sizes."""
        total = float(learning_rates.sum())
        return total if self.adaptive else total / (1.0 - self.momentum)


class OptimizerState(NamedTuple):
    """First and second moment; zero-sized where the optimizer keeps none."""

    first: Tensor
    second: Tensor


def initial_state(optimizer: Optimizer, params: Tensor) -> OptimizerState:
    """Return the state before the first step."""
    empty = params.new_zeros(0)
    if optimizer.adaptive:
        return OptimizerState(torch.zeros_like(params), torch.zeros_like(params))
    if optimizer.momentum:
        return OptimizerState(torch.zeros_like(params), empty)
    return OptimizerState(empty, empty)


def clip_gradient(grad: Tensor, max_norm: float | None) -> Tensor:
    """Scale each model's gradient to norm at most ``max_norm``."""
    if max_norm is None:
        return grad
    norm = grad.norm(dim=-1, keepdim=True)
    return grad * (max_norm / (norm + _CLIP_EPS)).clamp(max=1.0)


def step(
    optimizer: Optimizer,
    params: Tensor,
    grad: Tensor,
    state: OptimizerState,
    t: int,
    learning_rate: float,
) -> tuple[Tensor, OptimizerState]:
    """Take step ``t`` (counted from 1) and return new parameters and state."""
    if optimizer.adaptive:
        return _adam_step(optimizer, params, grad, state, t, learning_rate)
    return _sgd_step(optimizer, params, grad, state, learning_rate)


def _adam_step(
    optimizer: Optimizer,
    params: Tensor,
    grad: Tensor,
    state: OptimizerState,
    t: int,
    learning_rate: float,
) -> tuple[Tensor, OptimizerState]:
    beta1, beta2 = optimizer.betas
    decay = optimizer.weight_decay
    if optimizer.name == "adamw":
        params = params * (1.0 - learning_rate * decay)
    elif optimizer.decays:
        grad = grad + decay * params
    moments = _moments(optimizer, grad, state)
    root = (moments.second / (1.0 - beta2**t)).sqrt_().add(optimizer.eps)
    rate = learning_rate / (1.0 - beta1**t)
    return params.addcdiv(moments.first, root, value=-rate), moments


def _moments(
    optimizer: Optimizer, grad: Tensor, state: OptimizerState
) -> OptimizerState:
    beta1, beta2 = optimizer.betas
    first = torch.lerp(state.first, grad, 1.0 - beta1)
    second = (state.second * beta2).addcmul_(grad, grad, value=1.0 - beta2)
    return OptimizerState(first, second)


def _sgd_step(
    optimizer: Optimizer,
    params: Tensor,
    grad: Tensor,
    state: OptimizerState,
    learning_rate: float,
) -> tuple[Tensor, OptimizerState]:
    if optimizer.decays:
        grad = grad + optimizer.weight_decay * params
    if not optimizer.momentum:
        return params.add(grad, alpha=-learning_rate), state
    # A zero buffer gives torch's first step, which copies the gradient.
    first = optimizer.momentum * state.first + grad
    move = grad + optimizer.momentum * first if optimizer.nesterov else first
    return params.add(move, alpha=-learning_rate), OptimizerState(first, state.second)


def second_moment(
    optimizer: Optimizer, state: OptimizerState, n_steps: int
) -> Tensor | None:
    """Return the bias-corrected second moment after ``n_steps``, None for SGD."""
    if not optimizer.adaptive:
        return None
    return state.second / (1.0 - optimizer.betas[1] ** n_steps)


# -------------------------------------------------------------------- adjoint
class StepDerivative(NamedTuple):
    """Derivatives of something in, or of, parameters and optimizer state."""

    params: Tensor
    state: OptimizerState


def step_adjoint(
    optimizer: Optimizer,
    params: Tensor,
    grad: Tensor,
    state: OptimizerState,
    t: int,
    learning_rate: float,
    after: StepDerivative,
    inert: float = 0.0,
) -> tuple[Tensor, StepDerivative]:
    """Apply the transposed Jacobian of `step`, at the same arguments.

    Parameters
    ----------
    after : StepDerivative
        Derivatives in what the step returned, with any leading axes.
    inert : float
        Adam and AdamW: parameters whose second moment has a root of at most this
        fraction of the root mean square of their model's count as not moved by any
        gradient. At 0 these are those that have had none.

    Returns
    -------
    grad : Tensor
        Derivative in the gradient that the step consumed.
    before : StepDerivative
        Derivatives in ``params`` and ``state``, ``grad`` held fixed.
    """
    if optimizer.adaptive:
        return _adam_adjoint(
            optimizer, params, grad, state, t, learning_rate, after, inert
        )
    return _sgd_adjoint(optimizer, learning_rate, after)


def _adam_adjoint(
    optimizer: Optimizer,
    params: Tensor,
    grad: Tensor,
    state: OptimizerState,
    t: int,
    learning_rate: float,
    after: StepDerivative,
    inert: float,
) -> tuple[Tensor, StepDerivative]:
    beta1, beta2 = optimizer.betas
    decay = optimizer.weight_decay
    if optimizer.name == "adam" and optimizer.decays:
        grad = grad + decay * params
    moments = _moments(optimizer, grad, state)
    correction = 1.0 - beta2**t
    rate = learning_rate / (1.0 - beta1**t)
    variance = moments.second / correction
    root = variance.sqrt()
    scale = root + optimizer.eps
    # A parameter that has had no gradient would move by learning_rate / eps times the
    # first one to come, but in truth by at most about learning_rate: its derivative,
    # 0/0 in the second moment, says nothing about any weight but an infinitesimal one.
    moves = root > inert * variance.mean(dim=-1, keepdim=True).sqrt()
    in_first = torch.where(moves, -rate / scale, 0.0)
    # divided one by one: the square of scale may underflow
    ratio = torch.where(moves, moments.first / root, 0.0)
    in_second = (0.5 * rate / correction) * (ratio / scale / scale)
    mu, (rho, sigma) = after
    rho = torch.addcmul(rho, mu, in_first)
    sigma = torch.addcmul(sigma, mu, in_second)
    in_grad = (1.0 - beta1) * rho
    in_grad.addcmul_(sigma, (2.0 * (1.0 - beta2)) * grad)
    if optimizer.name == "adamw":
        mu = mu * (1.0 - learning_rate * decay)
    elif optimizer.decays:
        mu = mu + decay * in_grad
    state_before = OptimizerState(rho.mul_(beta1), sigma.mul_(beta2))
    return in_grad, StepDerivative(mu, state_before)


def _sgd_adjoint(
    optimizer: Optimizer, learning_rate: float, after: StepDerivative
) -> tuple[Tensor, StepDerivative]:
    mu, (rho, empty) = after
    in_grad = -learning_rate * mu
    if optimizer.momentum:
        in_move = in_grad
        weight = optimizer.momentum if optimizer.nesterov else 1.0
        in_first = rho.add(in_move, alpha=weight)
        in_grad = in_first + in_move if optimizer.nesterov else in_first
        rho = optimizer.momentum * in_first
    if optimizer.decays:
        mu = mu + optimizer.weight_decay * in_grad
    return in_grad, StepDerivative(mu, OptimizerState(rho, empty))


# -------------------------------------------------------------------- tangent
def step_tangent(
    optimizer: Optimizer,
    params: Tensor,
    grad: Tensor,
    state: OptimizerState,
    t: int,
    learning_rate: float,
    before: Sequence[StepDerivative],
    in_grad: Sequence[Tensor],
) -> list[StepDerivative]:
    """Carry first derivatives along a path, or first and second, through `step`.

    Parameters
    ----------
    before : one or two StepDerivative
        Derivatives of ``params`` and ``state``, with any leading axes.
    in_grad : as many Tensor
        Those of the gradient that the step consumed.
    """
    if optimizer.adaptive:
        return _adam_tangent(
            optimizer, params, grad, state, t, learning_rate, before, in_grad
        )
    # linear in parameters, gradient and buffer together
    return [
        StepDerivative(*_sgd_step(optimizer, d.params, g, d.state, learning_rate))
        for d, g in zip(before, in_grad, strict=True)
    ]


def _adam_tangent(
    optimizer: Optimizer,
    params: Tensor,
    grad: Tensor,
    state: OptimizerState,
    t: int,
    learning_rate: float,
    before: Sequence[StepDerivative],
    in_grad: Sequence[Tensor],
) -> list[StepDerivative]:
    beta1, beta2 = optimizer.betas
    decay = optimizer.weight_decay
    if optimizer.name == "adam" and optimizer.decays:
        grad = grad + decay * params
        in_grad = [g + decay * d.params for d, g in zip(before, in_grad, strict=True)]
    # of the square of the gradient
    in_square = [2.0 * grad * in_grad[0]]
    if len(in_grad) > 1:
        in_square.append(2.0 * (grad * in_grad[1] + in_grad[0].square()))
    moments = _moments(optimizer, grad, state)
    moving = [
        OptimizerState(
            torch.lerp(d.state.first, g, 1.0 - beta1),
            torch.lerp(d.state.second, g2, 1.0 - beta2),
        )
        for d, g, g2 in zip(before, in_grad, in_square, strict=True)
    ]
    correction = 1.0 - beta2**t
    rate = learning_rate / (1.0 - beta1**t)
    root = (moments.second / correction).sqrt()
    # as in the adjoint: what has had no gradient does not move
    moves = root > 0
    safe = torch.where(moves, root, 1.0)
    scale = root + optimizer.eps
    # quotient rule for the move m / (root + eps), chain rule for root² = v
    move = moments.first / scale
    root1 = 0.5 * (moving[0].second / correction) / safe
    steps = [(moving[0].first - move * root1) / scale]
    if len(moving) > 1:
        root2 = (0.5 * (moving[1].second / correction) - root1.square()) / safe
        bend = moving[1].first - 2.0 * steps[0] * root1 - move * root2
        steps.append(bend / scale)
    keep = 1.0 - learning_rate * decay if optimizer.name == "adamw" else 1.0
    return [
        StepDerivative(keep * d.params - torch.where(moves, rate * step, 0.0), new)
        for d, step, new in zip(before, steps, moving, strict=True)
    ]
