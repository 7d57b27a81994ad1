"""Modules and losses of fitted skorch nets, as the wrappers here take them.

What skorch's criteria expect of a module, and what must follow it therefore, belongs
here. skorch itself is not imported.
"""

import torch
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skattrib.engine._modules import uncompiled_copy


class _LogProbabilities(nn.Module):
    """Turn probabilities into logits: softmax(log p) = p."""

    def forward(self, p):
        return p.clamp(min=torch.finfo(p.dtype).tiny).log()


def classifier_of(net):
    """Return a copy of a classifier's module, and its loss.

    skorch's NLLLoss takes probabilities; their logarithms are what follows them here.
    """
    module, loss = regressor_of(net)
    if isinstance(loss, nn.NLLLoss):
        module = nn.Sequential(module, _LogProbabilities())
    return module, loss


def regressor_of(net):
    """Return a copy of a regressor's module, and its loss."""
    check_is_fitted(net, "module_")
    criterion = net.criterion_
    if isinstance(criterion, nn.Module):
        criterion = uncompiled_copy(criterion)
    return uncompiled_copy(net.module_).eval(), criterion
