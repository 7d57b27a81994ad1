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


def check_is_tensor(out):
    """Raise ValueError unless a module returned a tensor."""
    if not isinstance(out, torch.Tensor):
        raise ValueError(
            f"module returns a {type(out).__name__}; it must return one tensor, with a "
            "row for each row of X: wrap it in a module that picks that."
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
            out = module(X.clone())
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ValueError(
            f"module failed on rows of shape {tuple(X.shape)}: {error}. X is always "
            "2-D; reshape inside the module (nn.Unflatten) for images or sequences."
        ) from error
    check_is_tensor(out)
    width = out.shape[1] if out.ndim == 2 else 1 if out.ndim == 1 else None
    if len(out) != len(X) or width != n_outputs:
        raise ValueError(
            f"module returns shape {tuple(out.shape)} for {len(X)} rows; it must be "
            f"({len(X)}, {n_outputs}): one column per class (also for two classes; "
            "unnormalised log-probabilities) or regression output."
        )
    if n_outputs > 1 and bool((out >= 0).all() and (out.sum(1) - 1).abs().max() < 1e-4):
        warnings.warn(
            "module returns probabilities (its rows sum to 1); a classifier needs "
            "logits, unnormalised log-probabilities: leave the softmax out.",
            UserWarning,
            stacklevel=stacklevel,
        )
    wrong = probe_rows(module, X)
    if wrong:
        raise ValueError(f"module {type(module).__name__} {wrong}. {CURE}")


def few_outputs(module, X):
    """Return the outputs (n, C) of a few rows."""
    with torch.no_grad():
        out = module(X[:FEW])
    check_is_tensor(out)
    return out if out.ndim > 1 else out[:, None]


def module_width(module):
    """Return how many outputs the last linear layer of a module has; None: unknown."""
    layers = [m for m in module.modules() if isinstance(m, nn.Linear)]
    return layers[-1].out_features if layers else None


def in_single_precision(module):
    """Return a module whose parameters and buffers have at least 32 bits."""
    kinds = {p.dtype for p in module.parameters() if p.is_floating_point()}
    if halves := sorted(str(k) for k in kinds & {torch.float16, torch.bfloat16}):
        warnings.warn(
            f"module has parameters in {' and '.join(halves)}: derivatives in that "
            "would be mostly rounding, so a copy in torch.float32 is attributed.",
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
    layers = [m for m in module.modules() if list(m.parameters(recurse=False))]
    if not layers or not isinstance(layers[0], nn.Linear):
        return
    like = next(module.parameters())
    size = FEW, layers[0].in_features
    rows = torch.linspace(-1, 1, size[0] * size[1], dtype=like.dtype).view(size)
    rows = rows.to(like.device)
    try:
        with torch.no_grad():
            out = module(rows)
    except Exception:
        return
    check_is_tensor(out)
    if not torch.isfinite(out).all():  # which attributors report
        return
    if out.ndim <= 2 and out.reshape(len(out), -1).shape == (FEW, n_outputs):
        check_module(module, rows, n_outputs, stacklevel=5)
