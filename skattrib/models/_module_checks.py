"""What a module must be to be trained, or to be attributed as it is."""

import inspect
import warnings

import numpy as np
import torch
from torch import nn

from skattrib.engine._functional import FunctionalModule, apart, as_rows
from skattrib.engine._losses import ClassLoss, LabelLoss
from skattrib.engine._modules import find_refused_layers, probe_rows, probe_training
from skattrib.exceptions import FaithfulnessWarning

#: What to do about modules that cannot be attributed.
CURE = (
    "skattrib needs the output for a row to depend on that row alone, and to be the "
    "same every time; in training, rows may meet in batch normalisation, and random "
    "numbers come from dropout or from torch's global generator. Call .eval() on the "
    "layer that does it, or replace it."
)
#: Rows that a module and its loss are tried on.
FEW = 3
# What autograd calls steps that leave the numbers as they are.
_RESHAPING = (
    "View",
    "Reshape",
    "UnsafeView",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Clone",
    "T",
)


def check_factory(factory, n_inputs, n_outputs):
    """Raise TypeError unless a factory of modules can be called with both numbers."""
    try:
        inspect.signature(factory).bind(n_inputs, n_outputs)
    except TypeError as error:
        name = getattr(factory, "__name__", type(factory).__name__)
        built = f"module={name}()" if inspect.isclass(factory) else "a module"
        raise TypeError(
            f"module={name} is called as {name}(n_features, n_outputs), here "
            f"{name}({n_inputs}, {n_outputs}), and cannot be: {error}. Pass {built}, "
            "which is copied, or a function of these two numbers."
        ) from error
    except ValueError:  # its arguments are not known
        pass


def check_is_tensor(out):
    """Raise ValueError unless a module returned a tensor."""
    if not isinstance(out, torch.Tensor):
        raise ValueError(
            f"module returns a {type(out).__name__}; it must return one tensor, with a "
            "row for each row of X: wrap it in a module that picks that."
        )


def check_shape(out, n_rows, n_outputs):
    """Raise ValueError unless outputs have a row for each row and all columns."""
    if out.shape != (n_rows, n_outputs):
        columns = (
            "a column of log-odds, or of a regression's output"
            if n_outputs == 1
            else "one column per class (also for two classes; unnormalised "
            "log-probabilities) or regression output"
        )
        raise ValueError(
            f"module returns shape {tuple(out.shape)} for {n_rows} rows; it must be "
            f"({n_rows}, {n_outputs}): {columns}."
        )


def check_ids(module, X, dtype):
    """Raise ValueError if the module looks up words by numbers that are rounded."""
    looks_up = any(
        isinstance(layer, nn.Embedding | nn.EmbeddingBag) for layer in module.modules()
    )
    if not looks_up or dtype != torch.float32 or X.dtype == np.float32:
        return
    odd = (X != X.astype(np.float32)) & (X == np.round(X))
    if odd.any():
        example = X[odd][0]
        raise ValueError(
            f"X holds whole numbers that {dtype} rounds, such as {example:.0f}, and "
            "the module has an embedding, which would look up others: pass "
            "module.double()."
        )


def check_takes_rows(module):
    """Raise ValueError if a module needs more than one input."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):  # of compiled code
        return
    optional = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    needed = [
        p.name for p in parameters if p.default is p.empty and p.kind not in optional
    ]
    if len(needed) > 1:
        raise ValueError(
            f"module takes {len(needed)} inputs, {', '.join(needed)}; it must take one "
            "table of rows: wrap it in a module whose forward(X) cuts the columns of X "
            "into these, and pass them side by side, numpy.hstack([...])."
        )


def check_module(module, X, n_outputs, loss, stacklevel=2):
    """Raise ValueError unless the module maps rows to outputs one by one.

    It is as in training: what its layers do there, and not for queries, is allowed if
    the weights of rows, and seeds, determine it.
    """
    if not any(p.requires_grad for p in module.parameters()):
        raise ValueError("module has no trainable parameters.")
    check_takes_rows(module)
    check_layers(module)
    model = FunctionalModule(module)
    model.look(X)
    module = model.evaluated
    try:
        with torch.no_grad():
            out = module(X.clone())
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ValueError(
            f"module failed on rows of shape {tuple(X.shape)}: {error}. It gets X as "
            "it is: give X the shape that the module takes, or reshape inside it "
            "(nn.Unflatten), and whole numbers where it looks them up."
        ) from error
    check_is_tensor(out)
    out = as_rows(out, len(X))
    check_shape(out, len(X), n_outputs)
    if isinstance(loss, ClassLoss | LabelLoss):
        _warn_of_probabilities(module, X, out, stacklevel + 1)
    wrong = probe_rows(module, X) or probe_training(model, X)
    if wrong:
        raise ValueError(f"module {type(module).__name__} {wrong}. {CURE}")


def check_layers(module):
    """Raise ValueError if a layer cannot be trained as a function of weights."""
    refused = find_refused_layers(module)
    if refused:
        name, reason = refused[0]
        raise ValueError(f"module layer {name} {reason}.")


def _warn_of_probabilities(module, X, out, stacklevel):
    """Warn if what should be logits are probabilities."""
    in_range = bool((out >= 0).all() and (out <= 1).all())
    if in_range and out.shape[1] > 1 and bool((out.sum(1) - 1).abs().max() < 1e-4):
        seen = "its rows sum to 1", "softmax"
    elif in_range and _ends_in_sigmoid(module, X):
        seen = "the last that it does is a sigmoid", "sigmoid"
    else:
        return
    warnings.warn(
        f"module returns probabilities ({seen[0]}); a classifier needs logits, "
        f"unnormalised log-probabilities or log-odds: leave the {seen[1]} out.",
        UserWarning,
        stacklevel=stacklevel,
    )


def warn_of_useless_biases(module, X, stacklevel=2):
    """Warn if batch normalisation takes away a bias that is trained."""
    module, biased, found = apart(module), {}, []
    normalising = {
        layer
        for layer in module.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training
    }
    module.eval()

    def note(layer, inputs, output):
        if layer in normalising:
            found.extend(biased.get(id(inputs[0]), ())[:1])
        bias = getattr(layer, "bias", None)
        linear = isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)
        if linear and bias is not None and bias.requires_grad:
            biased[id(output)] = names[layer], output  # kept, or its id is used again

    names = {layer: name for name, layer in module.named_modules()}
    for layer in names:
        layer.register_forward_hook(note)
    with torch.no_grad():
        module(X.clone())
    if found:
        warnings.warn(
            f"module layer {found[0]} has a bias, which the batch normalisation after "
            "it takes away again: its gradient is rounding noise, which optimizers "
            "like Adam magnify. Pass bias=False.",
            UserWarning,
            stacklevel=stacklevel,
        )


def _ends_in_sigmoid(module, X):
    """Whether outputs are a sigmoid's, layer or function, but for their shape."""
    with torch.enable_grad():
        node = module(X.clone()).grad_fn
    while node is not None and node.name().startswith(_RESHAPING):
        node = node.next_functions[0][0]
    return node is not None and node.name().startswith("Sigmoid")


def few_outputs(module, X):
    """Return the outputs (n, C) of a few rows."""
    few = X[:FEW]
    with torch.no_grad():
        out = module(few)
    check_is_tensor(out)
    return as_rows(out, len(few))


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


def try_on_noise(module, n_outputs, loss):
    """Check what a trained module returns, if its input can be guessed.

    That is the case where its first layer with weights takes rows. Returns whether it
    was; else the check comes with the rows of an attributor.
    """
    layers = [m for m in module.modules() if list(m.parameters(recurse=False))]
    if not layers or not isinstance(layers[0], nn.Linear):
        return False
    like = next(module.parameters())
    size = FEW, layers[0].in_features
    rows = torch.linspace(-1, 1, size[0] * size[1], dtype=like.dtype).view(size)
    rows = rows.to(like.device)
    try:
        with torch.no_grad():
            out = module(rows)
    except Exception:
        return False
    check_is_tensor(out)
    out = as_rows(out, len(rows))
    # attributors report what is not finite
    if out.shape != (FEW, n_outputs) or not torch.isfinite(out).all():
        return False
    check_module(module, rows, n_outputs, loss, stacklevel=5)
    return True
