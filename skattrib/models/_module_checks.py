"""What a module must be to be trained, or to be attributed as it is."""

import warnings

import torch
from torch import nn

from skattrib.engine._modules import find_unsuitable_layers, probe_rows
from skattrib.exceptions import FaithfulnessWarning

#: What to do about layers that cannot be attributed.
CURE = (
    "skattrib needs each row's output to depend on that row alone and to be the same "
    "every time. Call .eval() on this layer (or on the module) before passing it, or "
    "replace it (LayerNorm or GroupNorm for BatchNorm, weight_decay for dropout)."
)
#: Rows that a module and its loss are tried on.
FEW = 3


def check_is_tensor(outputs):
    """Raise ValueError unless a module returned a tensor."""
    if not isinstance(outputs, torch.Tensor):
        raise ValueError(
            f"module returns a {type(outputs).__name__}; it must return one tensor, "
            "with a row for each row of X: wrap it in a module that selects it."
        )


def check_module(module, X, n_outputs, stacklevel=2):
    """Raise ValueError unless the module maps rows to outputs one by one."""
    if not any(p.requires_grad for p in module.parameters()):
        raise ValueError("module has no trainable parameters.")
    unsuitable = find_unsuitable_layers(module)
    if unsuitable:
        name, reason = unsuitable[0]
        raise ValueError(f"module layer {name} {reason}. {CURE}")
    try:
        with torch.no_grad():
            outputs = module(X.clone())
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ValueError(
            f"module failed on rows of shape {tuple(X.shape)}: {error}. X is always "
            "2-D; reshape inside the module (nn.Unflatten) for images or sequences."
        ) from error
    check_is_tensor(outputs)
    width = outputs.shape[1] if outputs.ndim == 2 else 1 if outputs.ndim == 1 else None
    if len(outputs) != len(X) or width != n_outputs:
        raise ValueError(
            f"module returns shape {tuple(outputs.shape)} for {len(X)} rows; it must "
            f"be ({len(X)}, {n_outputs}): one column per class (also for two classes; "
            "unnormalised log-probabilities) or regression output."
        )
    if n_outputs > 1 and bool(
        (outputs >= 0).all() and (outputs.sum(1) - 1).abs().max() < 1e-4
    ):
        warnings.warn(
            "module returns probabilities (its rows sum to 1); a classifier needs "
            "logits, unnormalised log-probabilities: leave the softmax out.",
            UserWarning,
            stacklevel=stacklevel,
        )
    fault = probe_rows(module, X)
    if fault:
        raise ValueError(f"module {type(module).__name__} {fault}. {CURE}")


def few_outputs(module, X):
    """Return the outputs (n, C) of a few rows."""
    with torch.no_grad():
        outputs = module(X[:FEW])
    check_is_tensor(outputs)
    return outputs if outputs.ndim > 1 else outputs[:, None]


def module_width(module):
    """Return how many outputs the last linear layer of a module has; None: unknown."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    return layers[-1].out_features if layers else None


def in_single_precision(module):
    """Return a module whose parameters and buffers have at least 32 bits."""
    dtypes = {parameter.dtype for parameter in module.parameters()}
    halves = sorted(map(str, dtypes & {torch.float16, torch.bfloat16}))
    if halves:
        warnings.warn(
            f"module has parameters in {' and '.join(halves)}: derivatives in that "
            "would be mostly rounding error, so a copy in torch.float32 is attributed.",
            FaithfulnessWarning,
            stacklevel=4,
        )
        module = module.float()
    return module


def try_on_noise(module, n_outputs):
    """Check what a trained module returns, if its input can be guessed.

    That is the case where its first layer with weights takes rows; else the check
    comes with the rows of an attributor.
    """
    layers = [
        layer for layer in module.modules() if list(layer.parameters(recurse=False))
    ]
    if not layers or not isinstance(layers[0], nn.Linear):
        return
    like = next(module.parameters())
    size = FEW, layers[0].in_features
    rows = torch.linspace(-1, 1, size[0] * size[1], dtype=like.dtype).view(size)
    rows = rows.to(like.device)
    try:
        with torch.no_grad():
            outputs = module(rows)
    except Exception:
        return
    check_is_tensor(outputs)
    if not torch.isfinite(outputs).all():  # which attributors report
        return
    if outputs.ndim <= 2 and outputs.reshape(len(outputs), -1).shape == (
        FEW,
        n_outputs,
    ):
        check_module(module, rows, n_outputs, stacklevel=5)
