"""How functions of a run are differentiated: exactly, damped, of averages over it.

Groups of functions are swept together, each in its way.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from torch import Tensor

from skattrib.engine._optimizers import Optimizer, Rate, State, StepDerivative
from skattrib.engine._trajectory import Recipe


class Kind(NamedTuple):
    """How functions of a run are differentiated.

    Attributes
    ----------
    curvature : float
        Factor on second derivatives; below 1 the sweep is damped.
    floor : float
        Added to the second moment of the gradient, in units of its mean, where the
        optimizer divides by it; see `Optimizer.pullback`.
    average : Tensor of shape (T + 1,) or (M, T + 1) or None
        Shares of the states after 0 to T steps in what the functions are of, of all
        runs or of each; None takes those of the recipe.
    """

    curvature: float = 1.0
    floor: float = 0.0
    average: Tensor | None = None


EXACT = Kind()


#: Which functions are differentiated in which way.
Groups = list[tuple[slice, Kind]]


def groups_of(kinds: Sequence[tuple[int, Kind]]) -> Groups:
    """Return which of the functions, one after the other, are of which kind."""
    ends = list(accumulate((n for n, _ in kinds), initial=0))
    return [(slice(*ends[i : i + 2]), kind) for i, (_, kind) in enumerate(kinds)]


def within(groups: Groups, part: slice, runs: slice) -> Groups:
    """Return the groups of some of the functions, counted from the first of these."""
    found = []
    for group, kind in groups:
        start, stop = max(group.start, part.start), min(group.stop, part.stop)
        if start >= stop:
            continue
        if kind.average is not None and kind.average.ndim > 1:
            kind = kind._replace(average=kind.average[runs])
        found.append((slice(start - part.start, stop - part.start), kind))
    return found


class Entering:
    """What cotangents (q, m, P + B) add to the derivative in each state of the run.

    Most functions are of the last state: nothing enters before.
    """

    def __init__(self, recipe: Recipe, cotangents: Tensor, groups: Groups) -> None:
        self._cotangents = cotangents
        self._averages = [
            (part, recipe.average if kind.average is None else kind.average)
            for part, kind in groups
        ]
        self.last = cotangents
        if any(average is not None for _, average in self._averages):
            self.last = self._times(recipe.n_steps, last=1.0)

    def _times(self, t: int, last: float) -> Tensor:
        n_runs = max(
            [len(a) for _, a in self._averages if a is not None and a.ndim > 1] or [1]
        )
        factors = self._cotangents.new_full((len(self._cotangents), n_runs, 1), last)
        for part, average in self._averages:
            if average is not None:
                factors[part] = average[..., t, None].to(factors)
        return self._cotangents * factors

    def before(self, t: int) -> Tensor | None:
        """Return what enters at the state after t steps but the last; None: nothing."""
        if all(a is None or not a[..., t].any() for _, a in self._averages):
            return None
        return self._times(t, last=0.0)


def pulled_back(
    step: Optimizer,
    at: tuple[Tensor, Tensor, State, int, Rate],
    after: StepDerivative,
    inert: float,
    floor: float,
) -> tuple[Tensor, StepDerivative]:
    """Pull derivatives back through a step of an optimizer, damped by a floor."""
    if not floor:  # which an optimizer of a user's need not know
        return step.pullback(*at, after, inert)
    return step.pullback(*at, after, inert, floor)
