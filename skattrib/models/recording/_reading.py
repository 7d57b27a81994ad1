"""What a recording reads of a module and of optimizers, or refuses."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from skattrib.engine._modules import find_refused_layers
from skattrib.engine._optimizers import OPTIMIZERS, class_for_torch


def as_optimizers(optimizer):
    """Return the optimizers of a loop as a tuple."""
    return tuple(optimizer) if isinstance(optimizer, list | tuple) else (optimizer,)


def _groups(optimizers):
    return [group for optimizer in optimizers for group in optimizer.param_groups]


def read_settings(optimizers, params):
    """Return the options of optimizers as one; raise where they are not known.

    Where groups decay differently, the decay is that of the first: see `read_decay`.
    """
    kinds = {}
    for optimizer in optimizers:
        kind = class_for_torch(type(optimizer))
        for group in optimizer.param_groups:
            options = kind.from_torch(group)
            key = replace(options, weight_decay=None)
            kinds.setdefault(key, (options, []))[1].extend(map(id, group["params"]))
    if len({type(key) for key in kinds}) < len(kinds):
        raise ValueError(
            f"{type(optimizers[0]).__name__} has parameter groups with other "
            "hyper-parameters; only learning rate and weight decay of a recorded run "
            "may differ."
        )
    # the one that leaves parameters to others comes first
    parts = sorted(kinds.values(), key=lambda part: not part[0].leaves_others)
    first, last = parts[0], parts[-1]
    if len(parts) > 2:
        names = sorted(type(optimizer).__name__ for optimizer in optimizers)
        raise ValueError(f"A run of {', '.join(names)} together cannot be recorded.")
    shapes = [tuple(p.shape) for p in params]
    places = [i for i, p in enumerate(params) if id(p) in first[1]]
    return first[0].joined(shapes, places, last[0])


def read_rates(optimizer):
    """Return the learning rates of an optimizer's groups."""
    return [float(group["lr"]) for group in optimizer.param_groups]


def read_groups(optimizers, params):
    """Return the group (P,) of every parameter, all optimizers' groups counted."""
    number = {
        id(p): i for i, group in enumerate(_groups(optimizers)) for p in group["params"]
    }
    return flat([torch.full(p.shape, number[id(p)]) for p in params])


def read_decay(optimizers, params):
    """Return the weight decay (P,) of every parameter, None where it is the same."""
    groups = _groups(optimizers)
    if len({float(group["weight_decay"]) for group in groups}) == 1:
        return None
    decay = {
        id(p): float(group["weight_decay"]) for group in groups for p in group["params"]
    }
    return flat([torch.full_like(p, decay[id(p)]) for p in params])


def read_state(optimizers, settings, params):
    """Return the steps taken and the state (P,), None if there is none yet."""
    template = settings.initial_state(flat(params))
    held = [optimizer.state for optimizer in optimizers]
    states = [next((state[p] for state in held if p in state), {}) for p in params]
    parts_of = [settings.state_from_torch(state) for state in states]
    known = [parts is not None for parts in parts_of]
    if not template or not any(known):
        return 0, None
    # some count no steps: what matters then is whether there were any
    counts = {int(state["step"]) for state in states if "step" in state} or {1}
    if not all(known) or len(counts) > 1:
        raise ValueError(
            f"{type(optimizers[0]).__name__} has taken more steps for some parameters "
            "than for others: start the recording with a new optimizer."
        )
    kind = type(template)
    parts = {name: flat([part[name] for part in parts_of]) for name in kind._fields}
    return counts.pop(), kind(**parts)


def flat(tensors):
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).cpu()


def check_model(model):
    """Raise unless the module can be trained, and repeated, row by row."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model)}.")
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError("model has no trainable parameters.")
    places = {(p.dtype, p.device) for p in trained}
    if len(places) > 1 or trained[0].dtype not in (torch.float32, torch.float64):
        raise ValueError(
            "The parameters of model must be of one dtype, float32 or float64, and on "
            f"one device; found {sorted(map(str, places))}."
        )
    check_layers(model, "model")


def check_layers(model, what):
    """Raise if a layer's training is not repeated by a recording."""
    refused = find_refused_layers(model)
    refused += [
        (
            f"{name or 'module'} ({type(layer).__name__})",
            "drops attention in kernels that cannot be repeated: call .eval() on it, "
            "or train by TorchClassifier(module=...)",
        )
        for name, layer in model.named_modules()
        if isinstance(layer, nn.MultiheadAttention) and layer.training and layer.dropout
    ]
    if refused:
        name, reason = refused[0]
        raise ValueError(f"{what} layer {name} {reason}.")


def check_optimizers(model, optimizers):
    """Raise unless the optimizers are known ones, of this model."""
    for optimizer in optimizers:
        if class_for_torch(type(optimizer)) is None:
            kinds = (kind.torch_class for kind in OPTIMIZERS.values())
            names = sorted({kind.__name__ for kind in kinds if kind})
            raise ValueError(
                f"optimizer {type(optimizer).__name__} cannot be recorded: its steps "
                f"are not known here. Use one of torch.optim: {', '.join(names)}."
            )
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    trained = {id(p): name for name, p in named.items()}
    held = [p for group in _groups(optimizers) for p in group["params"]]
    # torch skips frozen parameters
    held = [id(p) for p in held if p.requires_grad]
    twice = {key for key in held if held.count(key) > 1}
    if twice:
        name = trained.get(twice.pop(), "one that is not of model")
        raise ValueError(
            f"Two parameter groups of optimizer share the parameter {name}: it would "
            "be moved twice a step. Put every parameter into one group."
        )
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
    read_settings(optimizers, list(named.values()))


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
