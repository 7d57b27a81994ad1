"""From what a user calls a projection to a subspace of the parameters."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

from torch import Tensor

from skattrib._parameter_projection import ParameterProjection
from skattrib._validation import memory_cap
from skattrib.engine._gradients import RowGradients
from skattrib.engine._kernel import kernel_block
from skattrib.engine._projection import LinearProjector, PrincipalProjector, Projector

KernelCache = Callable[[Callable[[], Tensor]], Tensor]


def make_projector(
    projection: Any, kernel_cache: KernelCache, like: Tensor
) -> Callable[[RowGradients], Projector] | None:
    """Return what makes a subspace from the gradients of the training rows.

    Parameters
    ----------
    projection : int, fitted random projection or None
        An int takes as many principal directions of the kernel of the rows.
    kernel_cache : callable
        Takes a function that builds the kernel and returns the kernel.
    like : Tensor
        Has the dtype and device to work in.
    """
    if projection is None:
        return None
    cap = memory_cap()

    def principal(gradients: RowGradients) -> Projector:
        kernel = kernel_cache(lambda: kernel_block(gradients, gradients, cap))
        return PrincipalProjector(gradients, kernel, projection, cap)

    def random(gradients: RowGradients) -> Projector:
        matrix = ParameterProjection(projection, like)
        return LinearProjector(matrix.apply, matrix.lift, gradients.scale, cap)

    return principal if isinstance(projection, Integral) else random
