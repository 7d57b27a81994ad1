"""What rounding alone does to a run, to its outcomes and to its attributions.

Two machines, two numbers of threads, or two ways to add up a minibatch round
differently, and training carries that along. Here it is tried by a start whose weights
are moved to a neighbouring number each.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Bunch
from torch import Tensor

from skattrib._posterior._means import FloatArray
from skattrib._validation import memory_cap
from skattrib.engine._training import train, train_stack
from skattrib.engine._trajectory import Recipe
from skattrib.influence._run_derivatives import RunDerivatives, Runs

# Fewer digits than this, and attributions are those of one way of rounding.
_FEWEST_DIGITS = 0.5
# Of the way from the start. Trainings that rounding leaves alone end within a ten
# thousandth of it, others several hundredths away, and few between.
_ELSEWHERE = 0.01


def nudged(recipe: Recipe, seed: int) -> Recipe:
    """Return a recipe whose start is moved by one rounding, up or down by chance."""
    start = recipe.initial
    generator = torch.Generator().manual_seed(seed)
    up = torch.randint(2, start.shape, generator=generator).to(start) * 2 - 1
    return replace(recipe, initial=torch.nextafter(start, up * torch.inf))


def nudged_runs(derivatives: RunDerivatives, runs: Runs, seed: int) -> Runs:
    """Return runs that are repeated, each from a start that is moved by a rounding."""
    problem, recipe = derivatives.problem, nudged(runs.recipe, seed)
    rows = problem.model, problem.loss, recipe, problem.X, problem.targets
    weights, seeds = problem.weighted(runs.weights), runs.seeds_on(problem.X)
    if runs.shares is None:
        cap = memory_cap()
        params = train_stack(*rows, weights, seeds=seeds, memory_bytes=cap).params
    else:  # each has stopped by itself
        ends = []
        for i, shares in enumerate(runs.shares):
            one = slice(i, i + 1)
            end = train(*rows, weights[one], seeds=seeds[one], average=shares)
            ends.append(end.averaged)
        params = torch.cat([end for end in ends if end is not None])
    again = replace(runs, recipe=recipe, params=params.to(runs.params), averages={})
    averages = {decay: derivatives.averages(again, decay) for decay in runs.averages}
    return replace(again, averages=averages)


def nudged_model(model: Any, X: Any, y: Any, seed: int) -> tuple[Any, float]:
    """Return a model whose run is repeated from a start moved by a rounding.

    And how far away that ends, as `apart` says.
    """
    problem = RunDerivatives(model, X, y).problem
    recipe = nudged(problem.recipe, seed)
    weights = problem.weighted(model.trajectory.row_weights[None].to(problem.X))
    rows = problem.model, problem.loss, recipe, problem.X, problem.targets
    end, again = problem.model.flatten(), train(*rows, weights)
    (far,) = apart(problem.recipe.initial, end[None], again.params.to(end))
    return model.ending(recipe, again), far


def apart(start: Tensor, ends: Tensor, again: Tensor) -> FloatArray:
    """Return how far from their ends (k, P) runs end again, over their way.

    In parameters: running statistics, which may follow them, are left out.
    """
    ends, again = ends[:, : len(start)], again[:, : len(start)]
    way = torch.linalg.vector_norm(ends - start.to(ends), dim=1)
    moved = torch.linalg.vector_norm(again - ends, dim=1)
    shares = torch.where(moved == 0, 0.0, moved / way)
    return shares.double().cpu().numpy()


def system_noise(
    attributions: NDArray[np.floating],
    again: NDArray[np.floating],
    outcomes: NDArray[np.floating],
    outcomes_again: NDArray[np.floating],
    moved_ends: ArrayLike,
) -> Bunch:
    """Compare what was found with what is found again.

    Parameters
    ----------
    attributions, again : ndarray of shape (q, n_units)
    outcomes, outcomes_again : ndarray of shape (..., q)
        Of the model, or of several.
    moved_ends : array-like of shape (n_runs,)
        What `apart` says of the runs.
    """
    with np.errstate(all="ignore"):  # what is not finite has no digits
        sizes = np.linalg.norm(attributions, axis=1)
        moved = np.linalg.norm(again - attributions, axis=1)
        shares = np.where(moved == 0, 0.0, moved / sizes)
        changed = np.abs(outcomes_again - outcomes).reshape(-1, len(sizes))
        small = np.abs(attributions) < np.median(changed, axis=0)[:, None]
        # a unit that was not trained on has no effect to be drowned
        small = small[attributions != 0]
    relative = float(np.median(np.nan_to_num(shares, nan=np.inf)))
    most = np.finfo(attributions.dtype).precision
    digits = most if relative == 0 else min(max(0.0, -np.log10(relative)), most)
    return Bunch(
        attribution_noise=relative,
        digits=float(digits),
        outcome_noise=float(np.median(changed)),
        drowned=float(small.mean()) if small.size else 0.0,
        diverged=float(np.mean(~(np.asarray(moved_ends) <= _ELSEWHERE))),
    )


def system_findings(
    figures: Any, against: list[str], corrected: bool = False
) -> list[str]:
    """Return what rounding says for trust; add what it says against it.

    ``corrected`` says that retrained halves correct the attributions, which mends what
    rounding does to them.
    """
    noise = figures.get("system")
    if noise is None:
        return []
    what = "attributions, before halves correct them," if corrected else "attributions"
    found = f"rounding alone changes {what} by {noise.attribution_noise:.1g}"
    more = []
    if noise.drowned > 0.01:
        more.append(
            f"it moves the outcome more than {noise.drowned:.0%} of the units would"
        )
    if noise.diverged > 0:
        more.append(f"by it {noise.diverged:.0%} of the trainings end elsewhere")
    if noise.digits < _FEWEST_DIGITS and not corrected:
        against.append(
            f"{found} of their size (lower the learning rate, or average the weights)"
        )
        return more
    return [f"{found} of their size, and leaves {noise.digits:.1f} digits", *more]
