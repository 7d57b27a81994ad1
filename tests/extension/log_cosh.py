"""A loss of numbers: log cosh of the error, by its values alone and in closed form."""

import math

import torch
from torch.nn.functional import softplus

from skattrib.extension import Loss


class LogCosh(Loss):
    """Sum over outputs of log cosh(error): a smooth absolute error."""

    def values(self, outputs, targets):
        """Return the losses (n,)."""
        error = outputs - targets
        # cosh itself would overflow
        return (error.abs() + softplus(-2 * error.abs()) - math.log(2)).sum(-1)


class ClosedLogCosh(LogCosh):
    """The same, with its derivatives written out."""

    def residuals(self, outputs, targets):
        """Return the gradients."""
        return torch.tanh(outputs - targets)

    def hessian_product(self, outputs, targets, vectors):
        """Return the Hessians, which are diagonal, times vectors."""
        return self._curvature(outputs, targets) * vectors

    def hessian_root(self, outputs, targets):
        """Return roots of the Hessians."""
        return torch.diag_embed(self._curvature(outputs, targets).sqrt())

    def _curvature(self, outputs, targets):
        return 1 - torch.tanh(outputs - targets).square()
