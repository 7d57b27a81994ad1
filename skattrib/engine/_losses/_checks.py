"""Checks of a loss on a few rows, before any training."""

from __future__ import annotations

import torch
from torch import Tensor

from skattrib.engine._losses._protocol import Loss

# Tolerance of closed forms against autograd, in units of rounding.
_SLACK = 1e4


def check_loss(loss: Loss, outputs: Tensor, targets: Tensor) -> None:
    """Raise ValueError unless a loss passes all checks on a few rows.

    It must return one finite number for each row, independent of the other rows, and
    its closed forms must agree with autograd.
    """
    outputs = outputs.detach()
    _check_values(loss, outputs, targets)
    _check_closed_forms(loss, outputs, targets)


def _check_values(loss: Loss, outputs: Tensor, targets: Tensor) -> None:
    n = len(outputs)
    values = _called(loss, outputs, targets)
    if not isinstance(values, Tensor) or values.shape != (n,):
        description = (
            f"shape {tuple(values.shape)}"
            if isinstance(values, Tensor)
            else f"a {type(values).__name__}"
        )
        raise ValueError(
            f"{_name(loss)} returned {description} for outputs "
            f"{tuple(outputs.shape)}: it must return one number for each row, ({n},), "
            "neither their mean nor their sum. Sum over outputs by .sum(-1)."
        )

    if not bool(torch.isfinite(values).all()):
        row = int((~torch.isfinite(values)).nonzero()[0])
        raise ValueError(
            f"{_name(loss)} is {values[row].item()} for outputs "
            f"{outputs[row].tolist()} and target {targets[row].tolist()}, before any "
            "training: check that it suits what the module returns."
        )

    alone = torch.cat(
        [_called(loss, outputs[i : i + 1], targets[i : i + 1]) for i in range(n)]
    )
    # each row alone, and beside other rows
    turned = _called(loss, outputs.roll(1, 0), targets.roll(1, 0)).roll(-1, 0)

    for other in (alone, turned):
        if _differ(values, other):
            raise ValueError(
                f"{_name(loss)} of a row depends on the other rows of its minibatch, "
                "but a weight must multiply the loss of a single row. Losses of pairs "
                "or of whole batches (contrastive, ranking) cannot be attributed to "
                "rows."
            )


def _called(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    try:
        with torch.no_grad():
            return loss.values(outputs, targets)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ValueError(
            f"{_name(loss)} failed on outputs {tuple(outputs.shape)} and targets "
            f"{tuple(targets.shape)} of {targets.dtype}: {error}"
        ) from error


def _check_closed_forms(loss: Loss, outputs: Tensor, targets: Tensor) -> None:
    try:
        with torch.enable_grad():
            at = outputs.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(loss.values(at, targets).sum(), at)
    except RuntimeError as error:
        raise ValueError(
            f"{_name(loss)} cannot be differentiated in the outputs: {error}"
        ) from error

    _compare(loss, "residuals", loss.residuals(outputs, targets), gradient)

    vectors = torch.linspace(-1, 1, outputs.numel()).view(1, *outputs.shape).to(outputs)
    by_autograd = _ByAutograd(loss)
    try:
        expected = by_autograd.hessian_product(outputs, targets, vectors)
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"{_name(loss)} has no second derivative in the outputs: {error}. Write "
            "it as a function of plain tensor operations."
        ) from error

    closed_form = loss.hessian_product(outputs, targets, vectors)
    _compare(loss, "hessian_product", closed_form, expected)

    if type(loss).hessian_root is not Loss.hessian_root:
        root = loss.hessian_root(outputs, targets)
        expected_root = by_autograd.hessian_root(outputs, targets)
        _compare(loss, "hessian_root", root @ root.mT, expected_root @ expected_root.mT)


class _ByAutograd(Loss):
    """A loss without its closed forms, by plain autograd.

    The first transform of torch.func imports a second's worth of modules.
    """

    def __init__(self, loss: Loss) -> None:
        self._loss = loss

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses (n,)."""
        return self._loss.values(outputs, targets)

    def hessian_product(
        self, outputs: Tensor, targets: Tensor, vectors: Tensor
    ) -> Tensor:
        """Return Hessians times vectors (q, n, C), one vector after the other."""
        with torch.enable_grad():
            at = outputs.detach().clone().requires_grad_()
            total = self.values(at, targets).sum()
            (gradient,) = torch.autograd.grad(total, at, create_graph=True)
        products = torch.zeros_like(vectors)
        if gradient.requires_grad:  # else the loss is linear
            for product, vector in zip(products, vectors, strict=True):
                product += torch.autograd.grad(
                    gradient, at, vector, retain_graph=True, materialize_grads=True
                )[0]
        return products


def _compare(loss: Loss, what: str, closed_form: Tensor, expected: Tensor) -> None:
    if closed_form.shape != expected.shape or _differ(closed_form, expected):
        raise ValueError(
            f"{what} of {type(loss).__name__} are not the derivatives of its values: "
            "correct this method, or leave it out to use autograd."
        )


def _differ(values: Tensor, expected: Tensor) -> bool:
    scale = expected.abs().max().clamp(min=1.0)
    slack = _SLACK * torch.finfo(expected.dtype).eps * scale
    return not bool(((values - expected).abs() <= slack).all())


def _name(loss: Loss) -> str:
    text = repr(loss)
    return text if text.startswith("loss") else f"loss {text}"
