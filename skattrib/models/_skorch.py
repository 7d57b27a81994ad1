"""Modules and losses of fitted skorch nets, as the wrappers here take them.

What skorch's criteria expect of a module, and what must follow it therefore, belongs
here. skorch itself is not imported.
"""

import torch
from sklearn.base import is_classifier
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skattrib.engine._modules import uncompiled_copy


class _LogProbabilities(nn.Module):
    """Turn probabilities into logits: softmax(log p) = p."""

    def forward(self, p):
        return p.clamp(min=torch.finfo(p.dtype).tiny).log()


def after_module(criterion):
    """Return what follows a module whose criterion takes probabilities, else None."""
    return _LogProbabilities() if isinstance(criterion, nn.NLLLoss) else None


def classifier_of(net):
    """Return a copy of a classifier's module, and its loss.

    skorch's NLLLoss takes probabilities; their logarithms are what follows them here.
    """
    check_is_fitted(net, "module_")
    if not is_classifier(net):
        raise ValueError(
            f"net is a {type(net).__name__}, no classifier: use "
            "TorchRegressor.from_skorch(net)."
        )
    module, loss = _module_and_loss(net)
    end = after_module(loss)
    return module if end is None else nn.Sequential(module, end), loss


def regressor_of(net):
    """Return a copy of a regressor's module, and its loss."""
    check_is_fitted(net, "module_")
    if is_classifier(net):
        raise ValueError(
            f"net is a {type(net).__name__}, a classifier: use "
            "TorchClassifier.from_skorch(net)."
        )
    return _module_and_loss(net)


def _module_and_loss(net):
    criterion = net.criterion_
    if isinstance(criterion, nn.Module):
        criterion = uncompiled_copy(criterion)
    return uncompiled_copy(net.module_).eval(), criterion
