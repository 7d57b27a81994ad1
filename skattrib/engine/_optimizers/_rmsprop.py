"""RMSprop: its step; derivatives come from autograd."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from skattrib.engine._optimizers._options import flag, number
from skattrib.engine._optimizers._protocol import (
    Optimizer,
    Rate,
    State,
    register_optimizer,
)


class Squares(NamedTuple):
    """Average square of the gradient."""

    square: Tensor


class CentredSquares(NamedTuple):
    """Average square of the gradient, and average gradient."""

    square: Tensor
    mean: Tensor


class SquaresMomentum(NamedTuple):
    """Average square of the gradient, and sum of past moves."""

    square: Tensor
    buffer: Tensor


class CentredSquaresMomentum(NamedTuple):
    """Averages of the gradient and its square, and sum of past moves."""

    square: Tensor
    mean: Tensor
    buffer: Tensor


@register_optimizer("rmsprop")
@dataclass(frozen=True, kw_only=True)
class RMSprop(Optimizer):
    """RMSprop, with the steps of ``torch.optim.RMSprop``.

    Parameters
    ----------
    weight_decay : float or None, default=None
        Added to the gradient. None takes that of the estimator.
    alpha : float, default=0.99
        Decay of the average square of the gradient, in [0, 1).
    eps : float, default=1e-8
        Added to its root.
    momentum : float, default=0.0
        Share of the last move that is kept, in [0, 1).
    centered : bool, default=False
        Divide by the standard deviation of the gradient.
    maximize : bool, default=False
        Maximise the loss.

    See Also
    --------
    Adam : Averages the gradient as well.

    Notes
    -----
    The average of squares starts at 0 without a correction: the first steps have a
    length of 1 / √(1 − alpha) learning rates, ten with the default. If runs on subsets
    explode in `AdamWInfluence`, use a third of the learning rate of Adam.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skattrib import TorchClassifier
    >>> from skattrib.optimizers import RMSprop
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = TorchClassifier(
    ...     optimizer=RMSprop(alpha=0.9), max_epochs=20, random_state=0)
    >>> clf.fit(X, y).predict(X[:2])
    array([0, 0])
    """

    alpha: float = 0.99
    eps: float = 1e-8
    momentum: float = 0.0
    centered: bool = False
    maximize: bool = False

    torch_class: ClassVar[type | None] = torch.optim.RMSprop
    torch_state: ClassVar[Mapping[str, str]] = {
        "square": "square_avg",
        "mean": "grad_avg",
        "buffer": "momentum_buffer",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(
            alpha=number(self, "alpha", self.alpha, below=1),
            eps=number(self, "eps", self.eps),
            momentum=number(self, "momentum", self.momentum, below=1),
            centered=flag(self, "centered", self.centered),
            maximize=flag(self, "maximize", self.maximize),
        )

    def path_length(self, learning_rates: Tensor) -> float:
        return float(learning_rates.sum()) / (1.0 - self.momentum)

    def _state(self, square: Tensor, mean: Tensor, buffer: Tensor) -> State:
        """Return the state, with the tensors that the options need."""
        if self.centered and self.momentum:
            return CentredSquaresMomentum(square, mean, buffer)
        if self.centered:
            return CentredSquares(square, mean)
        return SquaresMomentum(square, buffer) if self.momentum else Squares(square)

    def initial_state(self, params: Tensor) -> State:
        zeros = torch.zeros_like(params)
        return self._state(zeros, zeros, zeros)

    def step(
        self, params: Tensor, grad: Tensor, state: State, t: int, learning_rate: Rate
    ) -> tuple[Tensor, State]:
        if self.maximize:
            grad = -grad
        if self._decays:
            grad = grad + self._decay * params

        square = self.alpha * state[0] + (1.0 - self.alpha) * grad.square()
        mean = torch.lerp(state[1], grad, 1.0 - self.alpha) if self.centered else grad
        scale = self.denominator(self._state(square, mean, grad), t)
        move = grad / scale
        if self.momentum:
            move = self.momentum * state[-1] + move

        return params - learning_rate * move, self._state(square, mean, move)

    def denominator(self, state: State, t: int) -> Tensor:
        variance = state[0]
        if self.centered:
            # below 0 by rounding; torch returns nan then
            variance = (variance - state[1].square()).clamp(min=0.0)
        return variance.sqrt() + self.eps
