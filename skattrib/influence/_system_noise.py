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
from numpy.typing import NDArray
from sklearn.utils import Bunch

from skattrib._validation import memory_cap
from skattrib.engine._training import train, train_stack
from skattrib.engine._trajectory import Recipe
from skattrib.influence._run_derivatives import RunDerivatives, Runs

# Fewer digits than this, and attributions are those of one way of rounding.
_FEWEST_DIGITS = 0.5


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


def nudged_model(model: Any, X: Any, y: Any, seed: int) -> Any:
    """Return a model whose run is repeated from a start moved by a rounding."""
    problem = RunDerivatives(model, X, y).problem
    recipe = nudged(problem.recipe, seed)
    weights = problem.weighted(model.trajectory.row_weights[None].to(problem.X))
    rows = problem.model, problem.loss, recipe, problem.X, problem.targets
    return model.ending(recipe, train(*rows, weights))


def system_noise(
    attributions: NDArray[np.floating],
    again: NDArray[np.floating],
    outcomes: NDArray[np.floating],
    outcomes_again: NDArray[np.floating],
) -> Bunch:
    """Compare what was found with what is found again.

    Parameters
    ----------
    attributions, again : ndarray of shape (q, n_units)
    outcomes, outcomes_again : ndarray of shape (..., q)
        Of the model, or of several.
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
    drowned = (
        f"it moves the outcome more than {noise.drowned:.0%} of the units would"
        if noise.drowned > 0.01
        else ""
    )
    if noise.digits < _FEWEST_DIGITS and not corrected:
        against.append(
            f"{found} of their size (lower the learning rate, or average the weights)"
        )
        return [drowned] if drowned else []
    kept = f"{found} of their size, and leaves {noise.digits:.1f} digits"
    return [kept, drowned] if drowned else [kept]
