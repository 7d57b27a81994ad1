"""Whether autograd's derivatives are those of what a module computes.

They are not where a tensor is detached, a rounding is passed straight through, a custom
function says otherwise, or torch is wrong. Training goes on as it does: its steps are
some function of the weights, whose derivatives are others than autograd's. Differences
of that function tell.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from skattrib.engine._functional import FunctionalModule
from skattrib.engine._losses import Loss
from skattrib.engine._minibatch import Minibatch, row_shares
from skattrib.exceptions import FaithfulnessWarning

# Differences are taken this far from the weights, in units of their size: first so
# near that no kink is between, then further, for modules that round to float32.
_STEPS = 1e-7, 1e-4
# The weights are moved away from where they begin, which may be on a kink.
_MOVED = 0.1
_N_DIRECTIONS = 3
# Errors above this share count, unless differences over half the way differ, too.
_TOLERANCE, _UNSURE = 5e-3, 0.1
# Differences round by up to so many roundings of the loss and of outputs.
_ROUNDINGS = 100
_WHAT = "gradients", "second derivatives"
# More numbers in double precision, 1 GiB, are not held: those of the module, and ten
# times those that are trained.
_MOST_NUMBERS = 2**27
# Layers that are known to detach what they divide by, however large the module.
_UNTRUE = ("peft.tuners.lora.dora",)


def check_true(
    model: FunctionalModule, loss: Loss, X: Tensor, targets: Tensor, order: int
) -> None:
    """Warn if derivatives of the loss of two rows are not those of its differences.

    Parameters
    ----------
    order : int
        1 compares gradients with differences of losses; 2 also second derivatives with
        differences of gradients.
    """
    module = model.module
    for layer in module.modules():
        if type(layer).__module__ in _UNTRUE:
            _warn(_WHAT[0], module, f"its {type(layer).__name__} detaches norms")
            return
    if (
        sum(p.numel() for p in module.parameters()) + 10 * model.n_params
        > _MOST_NUMBERS
    ):
        return
    try:
        errors = _errors(model, loss, X[:2], targets[:2], order)
    except Exception:
        # it may take single precision only, and say so by any error; whoever needs
        # derivatives says if there are none
        return
    for what, error in errors.items():
        if error > _TOLERANCE:
            off = f"for random weights they are off by {error:.2g} of their size"
            _warn(what, module, off)
            return


def _warn(what: str, module: nn.Module, why: str) -> None:
    warnings.warn(
        f"autograd's {what} of {type(module).__name__} are not those of what it "
        f"computes: {why}, and attributions may be far off. That is so where "
        "a tensor is detached, numbers are rounded, or a custom autograd.Function "
        "gives other derivatives: leave these out. Retrained models need no "
        "derivatives: evaluation.retrain_outcomes, KernelSurrogateAttributor.",
        FaithfulnessWarning,
        stacklevel=3,
    )


class _At(NamedTuple):
    """A loss of some weights, and its gradient along a direction.

    And the gradients of both.
    """

    values: Tensor
    gradients: list[Tensor]


def _errors(
    model: FunctionalModule, loss: Loss, X: Tensor, targets: Tensor, order: int
) -> dict[str, float]:
    """Return errors of derivatives, as shares of their size, by what they are of."""
    model.look(X)
    double = model.like(copy.deepcopy(model.module).double())
    X, targets = (t.double() if t.is_floating_point() else t for t in (X, targets))
    minibatch = Minibatch(double, loss, X, targets)
    weights, n_params = double.vector(), double.n_params
    shares = row_shares(torch.linspace(1.0, 2.0, len(X)).to(weights)[None])[0]
    seed = torch.zeros((), dtype=torch.int64, device=weights.device)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(_N_DIRECTIONS + 2, n_params, generator=generator).to(weights)
    drawn *= weights[:n_params].square().mean().sqrt()
    cotangent, start, *directions = drawn
    weights[:n_params] += _MOVED * start

    def at(step: Tensor, order: int) -> _At:
        vector = weights.clone()
        vector[:n_params] += step
        vector.requires_grad_()
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            losses, _ = minibatch.losses(vector, shares, None, seed)
            values = [losses @ shares]
            gradients = list(
                torch.autograd.grad(values[0], vector, create_graph=order > 1)
            )
            values.append(gradients[0][:n_params] @ cotangent)
        if order > 1:
            gradients += torch.autograd.grad(values[1], vector)
        return _At(torch.stack(values).detach(), [g[:n_params] for g in gradients])

    def slopes(width: float) -> Tensor:
        """Return slopes (order, directions) of both values."""
        found = []
        for v in directions:
            ends = [at(sign * width * v, 1).values for sign in (1, -1)]
            found.append((ends[0] - ends[1]) / (2 * width))
        return torch.stack(found).T[:order]

    here = at(torch.zeros_like(start), order)
    gradients = torch.stack(here.gradients)
    ids = torch.arange(len(X), device=X.device)
    with torch.no_grad():
        outputs, _ = double.training_outputs(weights, X, shares, ids, seed, 0)
    sizes = here.values.abs()[:order] + outputs.abs().max()
    # what never gets a gradient is not trained, as the vector of a padding token
    trained = gradients[0] != 0
    directions = [v * trained for v in directions]
    return _compared(gradients, torch.stack(directions), slopes, sizes)


def _compared(
    gradients: Tensor,
    directions: Tensor,
    slopes: Callable[[float], Tensor],
    sizes: Tensor,
) -> dict[str, float]:
    """Return how far gradients (order, P) are from slopes along directions (K, P).

    What slopes are differences of has these sizes (order,), and rounds like them.
    """
    expected = gradients.detach() @ directions.T
    scales = expected.norm(dim=1)
    errors = torch.zeros_like(scales)
    for width in _STEPS:
        whole, half = slopes(width), slopes(width / 2)
        off = (half - expected).norm(dim=1)
        wrong = ~(off <= _TOLERANCE * scales)
        rounding = _ROUNDINGS * torch.finfo(sizes.dtype).eps * sizes / width
        sure = (whole - half).norm(dim=1) + rounding < _UNSURE * off
        errors = torch.where(wrong & sure, off / scales, 0.0)
        if not bool((wrong & ~sure).any()):
            break
    return dict(zip(_WHAT, errors.tolist(), strict=False))
