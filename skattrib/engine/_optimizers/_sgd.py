"""Stochastic gradient descent, with momentum: derivatives in closed form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from skattrib.engine._optimizers._options import flag, number
from skattrib.engine._optimizers._protocol import (
    NoState,
    Optimizer,
    Rate,
    State,
    StepDerivative,
    register_optimizer,
)


class Momentum(NamedTuple):
    """Sum of past gradients, older ones with decaying weights."""

    buffer: Tensor


@register_optimizer("sgd")
@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent, with the steps of ``torch.optim.SGD``.

    It does not divide by the size of gradients: ``metric="optimizer"`` of
    `DualInfluence` is the identity, and runs on subsets hold no parameter fixed.

    Parameters
    ----------
    weight_decay : float or None, default=None
        Added to the gradient. None takes that of the estimator.
    momentum : float, default=0.0
        Share of the last move that is kept, in [0, 1).
    dampening : float, default=0.0
        Share of each gradient, except the first, that momentum ignores, in [0, 1).
    nesterov : bool, default=False
        Use Nesterov momentum; needs momentum above 0 and no dampening.
    maximize : bool, default=False
        Maximise the loss.

    See Also
    --------
    RMSprop : Divides by the root of the second moment.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skattrib import TorchClassifier
    >>> from skattrib.optimizers import SGD
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = TorchClassifier(
    ...     optimizer=SGD(momentum=0.9), max_epochs=20, random_state=0)
    >>> clf.fit(X, y).predict(X[:2])
    array([0, 0])
    """

    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    maximize: bool = False

    from_estimator: ClassVar[tuple[str, ...]] = ("momentum", "nesterov")
    torch_class: ClassVar[type | None] = torch.optim.SGD
    torch_state: ClassVar[Mapping[str, str]] = {"buffer": "momentum_buffer"}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(
            momentum=number(self, "momentum", self.momentum, below=1),
            dampening=number(self, "dampening", self.dampening, below=1),
            nesterov=flag(self, "nesterov", self.nesterov),
            maximize=flag(self, "maximize", self.maximize),
        )
        if self.nesterov and (not self.momentum or self.dampening):
            raise ValueError(
                "SGD: nesterov=True needs momentum > 0 and dampening=0; got momentum="
                f"{self.momentum:g}, dampening={self.dampening:g}."
            )

    def path_length(self, learning_rates: Tensor) -> float:
        taken = 1.0 - self.dampening if self.momentum else 1.0
        return float(learning_rates.sum()) * taken / (1.0 - self.momentum)

    def initial_state(self, params: Tensor) -> State:
        return Momentum(torch.zeros_like(params)) if self.momentum else NoState()

    def step(
        self, params: Tensor, grad: Tensor, state: State, t: int, learning_rate: Rate
    ) -> tuple[Tensor, State]:
        if self.maximize:
            grad = -grad
        if self._decays:
            grad = grad + self._decay * params
        if not self.momentum:
            return _moved(params, grad, learning_rate), state

        buffer = self.momentum * state[0] + self._taken(t) * grad
        move = grad + self.momentum * buffer if self.nesterov else buffer
        return _moved(params, move, learning_rate), Momentum(buffer)

    def _taken(self, t: int) -> float:
        """Return the factor of a gradient in the buffer: torch copies the first."""
        return 1.0 if t == 1 else 1.0 - self.dampening

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
        mu, before = after
        in_grad = -learning_rate * mu
        if self.momentum:
            in_move = in_grad
            weight = self.momentum if self.nesterov else 1.0
            in_buffer = after.state[0].add(in_move, alpha=weight)
            in_grad = self._taken(t) * in_buffer
            if self.nesterov:
                in_grad = in_grad + in_move
            before = Momentum(self.momentum * in_buffer)

        if self._decays:
            mu = mu + self._decay * in_grad
        if self.maximize:
            in_grad = -in_grad
        return in_grad, StepDerivative(mu, before)

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
        # the step is linear in parameters, gradient and buffer
        return [
            StepDerivative(*self.step(d.params, g, d.state, t, learning_rate))
            for d, g in zip(before, in_grad, strict=True)
        ]


def _moved(params: Tensor, move: Tensor, learning_rate: Rate) -> Tensor:
    if isinstance(learning_rate, Tensor):
        return params - learning_rate * move
    return params.add(move, alpha=-learning_rate)


def plain_sgd(optimizer: Optimizer) -> SGD:
    """Return SGD without momentum, with the decay of another optimizer."""
    climbs = bool(getattr(optimizer, "maximize", False))
    return SGD(weight_decay=optimizer.weight_decay, maximize=climbs)
