"""Adam and SGD as the multilayer perceptrons of scikit-learn take their steps.

They have no name: estimators and files choose among the optimizers of torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from skattrib.engine._optimizers._adam import Adam
from skattrib.engine._optimizers._protocol import Rate, State, StepDerivative
from skattrib.engine._optimizers._sgd import SGD, Momentum


@dataclass(frozen=True, kw_only=True)
class RawEpsAdam(Adam):
    """Adam that adds eps to the root of the second moment before its correction."""

    def _eps_at(self, t: int) -> float:
        return self.eps / float((1.0 - self.betas[1] ** t) ** 0.5)


@dataclass(frozen=True, kw_only=True)
class VelocitySGD(SGD):
    """SGD whose momentum is of moves: each has the learning rate of its own step.

    That of torch is of gradients, which the present learning rate multiplies. At a
    constant rate both are the same.
    """

    def step(
        self, params: Tensor, grad: Tensor, state: State, t: int, learning_rate: Rate
    ) -> tuple[Tensor, State]:
        if self.maximize:
            grad = -grad
        if self._decays:
            grad = grad + self._decay * params
        move = learning_rate * grad
        if not self.momentum:
            return params - move, state
        velocity = self.momentum * state[0] + self._taken(t) * move
        move = move + self.momentum * velocity if self.nesterov else velocity
        return params - move, Momentum(velocity)

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
        in_move = -mu
        if self.momentum:
            weight = self.momentum if self.nesterov else 1.0
            in_velocity = before[0] - weight * mu
            in_move = self._taken(t) * in_velocity
            if self.nesterov:
                in_move = in_move - mu
            before = Momentum(self.momentum * in_velocity)
        in_grad = learning_rate * in_move
        if self._decays:
            mu = mu + self._decay * in_grad
        if self.maximize:
            in_grad = -in_grad
        return in_grad, StepDerivative(mu, before)
