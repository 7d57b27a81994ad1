"""A module that was trained elsewhere, as a fitted estimator."""

import numpy as np
import torch
from torch import nn

from skattrib.engine._losses import as_loss, check_loss
from skattrib.engine._modules import is_lazy, uncompiled_copy
from skattrib.models._module_checks import (
    FEW,
    check_layers,
    check_takes_rows,
    in_single_precision,
    module_width,
    try_on_noise,
)
from skattrib.models._rows import with_integer_lookups


def fitted_from(cls, module, targets, device, loss, link, **fitted):
    """Return a fitted wrapper around a trained module, without a record.

    ``targets`` are examples, as many different ones as there can be.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module)}.")
    if not any(p.requires_grad for p in module.parameters()):
        raise ValueError("module has no trainable parameters.")
    check_takes_rows(module)
    if device is None:
        device = next(module.parameters()).device
    estimator = cls(module=module, loss=loss, device=device)
    if is_lazy(module):
        raise ValueError(
            "module has lazy layers that have seen no input yet: call it on a few rows "
            "once, as its training did."
        )
    module = with_integer_lookups(uncompiled_copy(module).to(device))
    estimator.module_ = in_single_precision(module).eval()
    check_layers(estimator.module_)
    estimator.trajectory_ = None
    loss = as_loss(loss, link, single_output=module_width(module) == 1)
    estimator.loss_function_, n_outputs = loss, loss.n_outputs(targets)
    estimator.n_outputs_ = n_outputs
    few_targets = targets[-FEW:]
    shape = len(few_targets), n_outputs
    # numbers that may be rates, log-odds or predictions
    outputs = torch.linspace(0.2, 1.0, shape[0] * shape[1]).view(shape)
    check_loss(loss, outputs, few_targets)
    estimator._tried = try_on_noise(estimator.module_, n_outputs, loss)
    for name, value in fitted.items():
        setattr(estimator, name, value)
    return estimator


def targets_of(loss, n_outputs):
    """Return for how many targets a loss of numbers takes so many outputs."""
    for n_targets in range(n_outputs, 0, -1):
        if loss.n_outputs(torch.zeros(1, n_targets)) == n_outputs:
            return n_targets
    raise ValueError(
        f"n_outputs={n_outputs} is what loss {loss!r} takes for no number of targets: "
        f"for one it takes {loss.n_outputs(torch.zeros(1, 1))}."
    )


def check_classes(classes):
    """Return the labels of a module's outputs as an array."""
    classes = np.asarray(classes)
    if (
        classes.ndim != 1
        or len(classes) < 2
        or not np.array_equal(np.unique(classes), classes)
    ):
        raise ValueError(
            "classes must be at least two different labels in sorted order, as "
            f"np.unique(y) gives them; got {classes!r}."
        )
    return classes
