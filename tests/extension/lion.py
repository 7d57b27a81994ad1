"""Lion (arXiv:2302.06675), an optimizer of signs, and one whose signs are smooth."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from skattrib.extension import Optimizer, register_optimizer


class Average(NamedTuple):
    """Average gradient."""

    mean: torch.Tensor


@register_optimizer("lion")
@dataclass(frozen=True, kw_only=True)
class Lion(Optimizer):
    """Move by the sign of the averaged gradient.

    The derivative of a sign is 0 wherever it has one: to first order, the weight of a
    row changes nothing in a run. With ``smooth`` above 0, ``tanh(mean / smooth)``
    stands for the sign, and there is a derivative.
    """

    betas: tuple[float, float] = (0.9, 0.99)
    smooth: float = 0.0

    from_estimator = ("betas",)

    def initial_state(self, params):
        """Return an average of 0."""
        return Average(torch.zeros_like(params))

    def step(self, params, grad, state, t, learning_rate):
        """Step along the signs; decay beside them."""
        fast, slow = self.betas
        ahead = fast * state.mean + (1 - fast) * grad
        signs = torch.tanh(ahead / self.smooth) if self.smooth else torch.sign(ahead)
        decay = 0.0 if self.weight_decay is None else self.weight_decay
        mean = slow * state.mean + (1 - slow) * grad
        return params - learning_rate * (signs + decay * params), Average(mean)
