"""What a recording reads of a module and an optimizer, or refuses."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from skattrib._torch_estimator import _CURE
from skattrib.engine._modules import find_unsuitable_layers
from skattrib.engine._optim import Optimizer, OptimizerState

_NAMES = {torch.optim.AdamW: "adamw", torch.optim.Adam: "adam", torch.optim.SGD: "sgd"}
_FLAGS = ("amsgrad", "maximize", "dampening")


def read_settings(optimizer):
    """Return hyper-parameters and learning rate; raise where they are not known.

    Where groups decay differently, the decay is that of the first: see `read_decay`.
    """
    kind = type(optimizer).__name__
    found = []
    for group in optimizer.param_groups:
        wrong = [flag for flag in _FLAGS if group.get(flag)]
        if wrong:
            raise ValueError(
                f"{kind} with {wrong[0]}={group[wrong[0]]} cannot be recorded: train "
                f"without {wrong[0]}."
            )
        found.append((_settings(optimizer, group), float(group["lr"])))
    settings, rate = found[0]
    for other, own_rate in found:
        same = replace(other, weight_decay=settings.weight_decay) == settings
        if not same or own_rate != rate:
            raise ValueError(
                f"{kind} has parameter groups with different learning rates or other "
                "hyper-parameters; only the weight decay of a recorded run may differ."
            )
    return settings, rate


def read_decay(optimizer, params):
    """Return the weight decay (P,) of every parameter, None where it is the same."""
    groups = optimizer.param_groups
    if len({float(group["weight_decay"]) for group in groups}) == 1:
        return None
    own = {id(p): float(g["weight_decay"]) for g in groups for p in g["params"]}
    return flat([torch.full_like(p, own[id(p)]) for p in params])


def _settings(optimizer, group):
    name, decay = _NAMES[type(optimizer)], float(group["weight_decay"])
    if name == "sgd":
        momentum, nesterov = float(group["momentum"]), bool(group["nesterov"])
        return Optimizer(name, decay, momentum=momentum, nesterov=nesterov)
    if group.get("decoupled_weight_decay"):
        name = "adamw"
    beta1, beta2 = map(float, group["betas"])
    return Optimizer(name, decay, (beta1, beta2), float(group["eps"]))


def read_state(optimizer, settings, params):
    """Return the steps taken and the moments (P,), None if there are none yet."""
    names = ("exp_avg", "exp_avg_sq") if settings.adaptive else ("momentum_buffer",)
    if not settings.adaptive and not settings.momentum:
        return 0, None
    states = [optimizer.state.get(p, {}) for p in params]
    known = [all(s.get(name) is not None for name in names) for s in states]
    if not any(known):
        return 0, None
    counts = {int(s.get("step", 0)) for s in states}
    if not all(known) or len(counts) > 1:
        raise ValueError(
            f"{type(optimizer).__name__} has taken more steps for some parameters than "
            "for others: start the recording with a new optimizer."
        )
    moments = [flat([s[name] for s in states]) for name in names]
    if not settings.adaptive:
        moments.append(moments[0].new_zeros(0))
    return counts.pop(), OptimizerState(*moments)


def flat(tensors):
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).cpu()


def check_model(model):
    """Raise unless the module can be trained, and repeated, row by row."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model)}.")
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError("model has no trainable parameters.")
    kinds = {(p.dtype, p.device) for p in trained}
    if len(kinds) > 1 or trained[0].dtype not in (torch.float32, torch.float64):
        raise ValueError(
            "The parameters of model must be of one dtype, float32 or float64, and on "
            f"one device; found {sorted(map(str, kinds))}."
        )
    check_layers(model, "model")


def check_layers(model, what):
    unsuitable = find_unsuitable_layers(model)
    if unsuitable:
        name, reason = unsuitable[0]
        raise ValueError(f"{what} layer {name} {reason}. {_CURE}")


def check_optimizer(model, optimizer):
    """Raise unless the optimizer is a known one, of this model."""
    if type(optimizer) not in _NAMES:
        raise ValueError(
            f"optimizer {type(optimizer).__name__} cannot be recorded: its steps are "
            "not known here. Use torch.optim.AdamW, Adam or SGD."
        )
    read_settings(optimizer)
    trained = {id(p): k for k, p in model.named_parameters() if p.requires_grad}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    # torch passes over frozen parameters
    held = {id(p) for p in held if p.requires_grad}
    left_out = [name for key, name in trained.items() if key not in held]
    if left_out:
        raise ValueError(
            f"optimizer does not hold the parameter {left_out[0]} of model "
            f"({len(left_out)} in all): pass it model.parameters(), after moving the "
            "model to its device, or freeze the parameter by requires_grad_(False)."
        )
    if len(held) > len(trained):
        raise ValueError(
            f"optimizer holds {len(held) - len(trained)} parameters that are not those "
            "of model: record the module that contains all that is trained."
        )


def as_rows(rows):
    if isinstance(rows, torch.Tensor):
        rows = rows.detach().cpu().numpy()
    rows = np.atleast_1d(np.asarray(rows))
    whole = rows.dtype.kind in "iu" and rows.ndim == 1 and len(rows) > 0
    if not whole or rows.min() < 0:
        raise ValueError(
            "rows must be the indices (at least 0, one axis, not empty) of the rows of "
            f"X in this minibatch; got dtype {rows.dtype}, shape {rows.shape}"
            + (f", smallest {rows.min()}." if whole else ".")
        )
    return rows.astype(np.int64)
