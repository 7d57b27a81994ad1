"""Adam and AdamW, with amsgrad: derivatives in closed form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from skattrib.engine._optimizers._options import flag, numbers
from skattrib.engine._optimizers._protocol import (
    Optimizer,
    Rate,
    State,
    StepDerivative,
    register_optimizer,
)


class Moments(NamedTuple):
    """First and second moment of the gradient."""

    first: Tensor
    second: Tensor


class AmsgradMoments(NamedTuple):
    """First and second moment of the gradient, and the largest second one so far."""

    first: Tensor
    second: Tensor
    largest: Tensor


@dataclass(frozen=True, kw_only=True)
class _Moving(Optimizer):
    """Base class of Adam and AdamW."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    amsgrad: bool = False
    maximize: bool = False

    from_estimator: ClassVar[tuple[str, ...]] = ("betas", "eps")
    torch_state: ClassVar[Mapping[str, str]] = {
        "first": "exp_avg",
        "second": "exp_avg_sq",
        "largest": "max_exp_avg_sq",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(
            betas=numbers(self, "betas", self.betas, 2, below=1),
            eps=numbers(self, "eps", (self.eps,), 1)[0],
            amsgrad=flag(self, "amsgrad", self.amsgrad),
            maximize=flag(self, "maximize", self.maximize),
        )

    @property
    def _decouples(self) -> bool:
        """Whether parameters decay directly, not through the gradient."""
        return True

    def initial_state(self, params: Tensor) -> State:
        zeros = torch.zeros_like(params)
        if self.amsgrad:
            return AmsgradMoments(zeros, zeros, zeros)
        return Moments(zeros, zeros)

    def step(
        self, params: Tensor, grad: Tensor, state: State, t: int, learning_rate: Rate
    ) -> tuple[Tensor, State]:
        grad = self._consumed(params, grad)
        if self._decouples:
            params = params * (1.0 - learning_rate * self._decay)

        moments = self._moments(grad, state)
        root = self.denominator(moments, t)
        rate = learning_rate / (1.0 - self.betas[0] ** t)
        if isinstance(rate, Tensor):
            return params - rate * (moments[0] / root), moments
        return params.addcdiv(moments[0], root, value=-rate), moments

    def denominator(self, state: State, t: int) -> Tensor:
        # with amsgrad the last one is the largest second moment
        return (state[-1] / (1.0 - self.betas[1] ** t)).sqrt_().add(self._eps_at(t))

    def _eps_at(self, t: int) -> float:
        """Return what is added to the root of the corrected second moment."""
        return self.eps

    def _consumed(self, params: Tensor, grad: Tensor) -> Tensor:
        """Return the gradient that enters the moments."""
        if self.maximize:
            grad = -grad
        if self._decays and not self._decouples:
            grad = grad + self._decay * params
        return grad

    def _moments(self, grad: Tensor, state: State) -> State:
        beta1, beta2 = self.betas
        first = torch.lerp(state[0], grad, 1.0 - beta1)
        second = (state[1] * beta2).addcmul_(grad, grad, value=1.0 - beta2)
        if self.amsgrad:
            return AmsgradMoments(first, second, torch.maximum(state[2], second))
        return Moments(first, second)

    def _renewed(self, state: State, moments: State) -> Tensor:
        """Return the derivative of the largest second moment in the present, 0 to 1."""
        largest, second = state[2], moments[1]
        # one half each where they are equal, as in autograd
        return 0.5 * ((second > largest).to(second) + (second >= largest).to(second))

    # ------------------------------------------------------------ derivatives
    def pullback(
        self,
        params: Tensor,
        grad: Tensor,
        state: State,
        t: int,
        learning_rate: Rate,
        after: StepDerivative,
        inert: float = 0.0,
        floor: float = 0.0,
    ) -> tuple[Tensor, StepDerivative]:
        beta1, beta2 = self.betas
        grad = self._consumed(params, grad)
        moments = self._moments(grad, state)

        correction = 1.0 - beta2**t
        rate = learning_rate / (1.0 - beta1**t)
        variance = moments[-1] / correction
        usual = variance.mean(dim=-1, keepdim=True)
        # as in the general pullback: nothing is divided by far less than usual, or
        # inert parameters are held fixed
        if floor:
            root = torch.add(variance, usual, alpha=floor**2).sqrt()
            moves = root > 0
        else:
            root = variance.sqrt()
            moves = root > inert * usual.sqrt()
        scale = root + self._eps_at(t)
        in_first = torch.where(moves, -rate / scale, 0.0)
        # divided one by one: the square of scale may underflow
        ratio = torch.where(moves, moments[0] / root, 0.0)
        in_second = (0.5 * rate / correction) * (ratio / scale / scale)

        mu, (rho, sigma, *largest) = after
        rho = torch.addcmul(rho, mu, in_first)
        if self.amsgrad:
            new = self._renewed(state, moments)
            tau = torch.addcmul(largest[0], mu, in_second)
            sigma, largest = sigma + new * tau, [(1.0 - new) * tau]
        else:
            sigma = torch.addcmul(sigma, mu, in_second)

        in_grad = (1.0 - beta1) * rho
        in_grad.addcmul_(sigma, (2.0 * (1.0 - beta2)) * grad)

        if self._decouples:
            mu = mu * (1.0 - learning_rate * self._decay)
        elif self._decays:
            mu = mu + self._decay * in_grad

        if self.maximize:
            in_grad = -in_grad
        # in place: torch.addcmul and the sum returned new tensors
        before = rho.mul_(beta1), sigma.mul_(beta2), *largest
        return in_grad, StepDerivative(mu, type(moments)(*before))

    def pushforward(
        self,
        params: Tensor,
        grad: Tensor,
        state: State,
        t: int,
        learning_rate: Rate,
        before: Sequence[StepDerivative],
        in_grad: Sequence[Tensor],
    ) -> list[StepDerivative]:
        beta1, beta2 = self.betas
        grad = self._consumed(params, grad)
        in_grad = [
            self._consumed(d.params, g) for d, g in zip(before, in_grad, strict=True)
        ]
        moments = self._moments(grad, state)
        moving = self._moving_moments(grad, state, moments, before, in_grad)

        correction = 1.0 - beta2**t
        rate = learning_rate / (1.0 - beta1**t)
        root = (moments[-1] / correction).sqrt()
        # as in the pullback: parameters without a gradient so far do not move
        moves = root > 0
        safe = torch.where(moves, root, 1.0)
        scale = root + self._eps_at(t)
        # quotient rule for the move m / (root + eps), chain rule for root² = v
        move = moments[0] / scale
        root1 = 0.5 * (moving[0][-1] / correction) / safe
        steps = [(moving[0][0] - move * root1) / scale]

        if len(moving) > 1:
            root2 = (0.5 * (moving[1][-1] / correction) - root1.square()) / safe
            curvature = moving[1][0] - 2.0 * steps[0] * root1 - move * root2
            steps.append(curvature / scale)

        keep = 1.0 - learning_rate * self._decay if self._decouples else 1.0
        return [
            StepDerivative(keep * d.params - torch.where(moves, rate * step, 0.0), new)
            for d, step, new in zip(before, steps, moving, strict=True)
        ]

    def _moving_moments(
        self,
        grad: Tensor,
        state: State,
        moments: State,
        before: Sequence[StepDerivative],
        in_grad: Sequence[Tensor],
    ) -> list[State]:
        """Return the derivatives of the moments along a path, by order."""
        beta1, beta2 = self.betas
        # derivatives of the square of the gradient
        in_square = [2.0 * grad * in_grad[0]]
        if len(in_grad) > 1:
            in_square.append(2.0 * (grad * in_grad[1] + in_grad[0].square()))

        derivatives: list[State] = []
        for d, g, g2 in zip(before, in_grad, in_square, strict=True):
            first = torch.lerp(d.state[0], g, 1.0 - beta1)
            second = torch.lerp(d.state[1], g2, 1.0 - beta2)
            if self.amsgrad:
                new = self._renewed(state, moments)
                largest = new * second + (1.0 - new) * d.state[2]
                derivatives.append(AmsgradMoments(first, second, largest))
            else:
                derivatives.append(Moments(first, second))

        return derivatives


@register_optimizer("adamw")
@dataclass(frozen=True, kw_only=True)
class AdamW(_Moving):
    """AdamW, with the steps of ``torch.optim.AdamW``.

    Parameters
    ----------
    weight_decay : float or None, default=None
        Decoupled from the gradient. None takes that of the estimator.
    betas : tuple of two floats, default=(0.9, 0.999)
        Decay of the moments of the gradient, in [0, 1).
    eps : float, default=1e-8
        Added to the root of the second moment.
    amsgrad : bool, default=False
        Divide by the largest second moment so far.
    maximize : bool, default=False
        Maximise the loss.

    See Also
    --------
    Adam : Adds the decay to the gradient.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skattrib import TorchClassifier
    >>> from skattrib.optimizers import AdamW
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = TorchClassifier(
    ...     optimizer=AdamW(amsgrad=True), max_epochs=20, random_state=0)
    >>> clf.fit(X, y).predict(X[:2])
    array([0, 0])
    """

    torch_class: ClassVar[type | None] = torch.optim.AdamW


@register_optimizer("adam")
@dataclass(frozen=True, kw_only=True)
class Adam(_Moving):
    """Adam, with the steps of ``torch.optim.Adam``.

    Parameters
    ----------
    weight_decay : float or None, default=None
        Added to the gradient. None takes that of the estimator.
    betas : tuple of two floats, default=(0.9, 0.999)
        Decay of the moments of the gradient, in [0, 1).
    eps : float, default=1e-8
        Added to the root of the second moment.
    amsgrad : bool, default=False
        Divide by the largest second moment so far.
    maximize : bool, default=False
        Maximise the loss.
    decoupled_weight_decay : bool, default=False
        Let parameters decay as in AdamW.

    See Also
    --------
    AdamW : Decouples the decay from the gradient.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skattrib import TorchClassifier
    >>> from skattrib.optimizers import Adam
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = TorchClassifier(
    ...     optimizer=Adam(betas=(0.8, 0.99)), max_epochs=20, random_state=0)
    >>> clf.fit(X, y).predict(X[:2])
    array([0, 0])
    """

    decoupled_weight_decay: bool = False

    torch_class: ClassVar[type | None] = torch.optim.Adam

    def __post_init__(self) -> None:
        super().__post_init__()
        decoupled = flag(self, "decoupled_weight_decay", self.decoupled_weight_decay)
        self._set(decoupled_weight_decay=decoupled)

    @property
    def _decouples(self) -> bool:
        return self.decoupled_weight_decay
