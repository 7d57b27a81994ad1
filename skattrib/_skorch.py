"""Modules of fitted skorch nets, with the outputs that skattrib's losses take.

What skorch's criteria expect of a module, and what must follow it therefore, belongs
here. skorch itself is not imported.
"""

import warnings

import torch
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skattrib.engine._modules import TwoLogits, uncompiled_copy


class _LogProbabilities(nn.Module):
    """Turn probabilities into logits: softmax(log p) = p."""

    def forward(self, p):
        return p.clamp(min=torch.finfo(p.dtype).tiny).log()


def classifier_of(net):
    """Return a copy of a classifier's module that ends in log-probabilities.

    These need not be normalised.
    """
    check_is_fitted(net, "module_")
    criterion = uncompiled_copy(net.criterion_)
    module = uncompiled_copy(net.module_).eval()
    if isinstance(criterion, nn.NLLLoss):
        return nn.Sequential(module, _LogProbabilities())
    if isinstance(criterion, nn.BCEWithLogitsLoss):
        return nn.Sequential(module, TwoLogits())
    if not isinstance(criterion, nn.CrossEntropyLoss):
        raise ValueError(
            f"criterion {type(criterion).__name__} of the skorch net is not a "
            "classification loss known here; use CrossEntropyLoss."
        )
    return module


def regressor_of(net):
    """Return a copy of a regressor's module."""
    check_is_fitted(net, "module_")
    criterion = uncompiled_copy(net.criterion_)
    if not isinstance(criterion, nn.MSELoss):
        warnings.warn(
            f"The skorch net was trained on {type(criterion).__name__}, not "
            "on a squared error; attributions assume a squared error.",
            UserWarning,
            stacklevel=3,
        )
    return uncompiled_copy(net.module_).eval()
