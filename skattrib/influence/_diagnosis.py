"""How far to trust a linearised model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sklearn.utils import Bunch
from torch import Tensor
from torch.func import jvp

from skattrib._verdict import SIZE_WRONG, halves_findings, judged
from skattrib.engine._functional import chunks
from skattrib.engine._linearized import LinearizedModel
from skattrib.engine._losses import Loss
from skattrib.engine._plain_gradients import REFUSALS
from skattrib.engine._solvers import negative_share
from skattrib.engine._tangent import load_forward_mode
from skattrib.engine._training import train
from skattrib.influence._run_derivatives import RunDerivatives

#: Units whose removals are tried in the network, spread over all.
N_STEPS = 16
# Parts of a run after which steps are tried.
_PARTS = 0.1, 0.5, 1.0
# Past these the verdict is bad.
_STEP_LIMIT, _LEVERAGE_LIMIT, _STATIONARITY_LIMIT = 0.5, 0.99, 0.4
_APPROXIMATION_LIMIT = _FLAT_LIMIT = 0.5
_SLOPES, _LDS_LIMIT = (0.5, 2.0), 0.3


def diagnose_linearized(
    model: LinearizedModel, steps: Tensor, X: Tensor
) -> dict[str, float]:
    """Return stationarity, step linearity, leverage and curvature that is left out.

    Parameters
    ----------
    model : LinearizedModel
    steps : Tensor of shape (k, D)
        Of removals, to be tried in the network.
    X : Tensor of shape (q, n_features)
        Query rows.
    """
    predicted = torch.cat(
        [
            model.output_change(steps, model.query(X[part])[1])
            for part in chunks(len(X), model.query_batch(len(steps)))
        ],
        dim=1,
    )

    network = model.model.apart()
    parameters = network.flatten()
    with torch.no_grad():
        outputs = network.outputs(parameters, X)
        actual = torch.stack(
            [
                network.outputs(parameters + change, X) - outputs
                for change in model.parameter_change(steps)
            ]
        )

    figures = {
        "stationarity": model.stationarity(),
        "step_linearity": _median_error(predicted, actual),
    }
    figures |= curvature_left_out(model)
    if model.space.name != "cg":
        figures["leverage"] = float(model.leverages().max())
    return figures


def linearity_along_run(
    model: Any, rows: tuple[Any, Any], changes: Tensor, X: Tensor
) -> tuple[float, ...] | None:
    """Return how far outputs are from a tangent after 10, 50 and 100 % of the steps.

    As `diagnose_linearized` at the end, for the same changes of the parameters; the
    run is repeated for it. None if it was not recorded.

    Parameters
    ----------
    model : Model
    rows : tuple of ndarray
        Training rows and their targets.
    changes : Tensor of shape (k, P)
    X : Tensor of shape (q, ...)
        Query rows.
    """
    if not model.stacks or model.trajectory is None:
        return None
    problem = RunDerivatives(model, *rows).problem
    weights = model.trajectory.row_weights
    recipe = problem.recipe
    marks = [max(1, round(part * recipe.n_steps)) for part in _PARTS]
    run = problem.model, problem.loss, recipe, problem.X, problem.targets
    kept = train(*run, problem.weighted(weights[None]), keep=set(marks)).states
    load_forward_mode()
    changes = changes.to(problem.X)
    missing = changes.new_zeros(len(changes), problem.model.n_buffers)
    changes = torch.cat([changes, missing], dim=1)

    def outputs(vector: Tensor) -> Tensor:
        return problem.model.outputs(vector, X)

    errors = []
    for mark in marks:
        vector = kept[mark].params[0]
        moved = torch.stack([_slope(outputs, vector, one) for one in changes])
        with torch.no_grad():
            here = outputs(vector)
            actual = torch.stack([outputs(vector + one) - here for one in changes])
        errors.append(_median_error(moved, actual))
    return tuple(errors)


def _slope(
    outputs: Callable[[Tensor], Tensor], vector: Tensor, change: Tensor
) -> Tensor:
    """Return the derivative of outputs (q, C) along a change of the vector."""
    slope: Tensor
    try:
        slope = jvp(outputs, (vector,), (change,))[1]
    except REFUSALS:  # forward mode does not know every layer
        slope = torch.autograd.functional.jvp(outputs, vector, change)[1]
    return slope


def _median_error(predicted: Tensor, actual: Tensor) -> float:
    smallest = torch.finfo(actual.dtype).tiny
    error = (actual - predicted).flatten(1).norm(dim=1)
    relative = error / actual.flatten(1).norm(dim=1).clamp(min=smallest)
    return float(relative.median())


def curvature_left_out(model: LinearizedModel) -> dict[str, float]:
    """Return the part of the loss's curvature that a Gauss-Newton step leaves out.

    It is nothing where the loss has its root in closed form, as it is convex then.
    """
    loss = model.loss
    if type(loss).hessian_root is not Loss.hessian_root:
        return {"flat_rows": 0.0, "negative_curvature": 0.0}
    hessians = loss.hessian(model.outputs, model.targets)
    largest = hessians.abs().flatten(1).amax(dim=1)
    return {
        "flat_rows": float((largest == 0).double().mean()),
        "negative_curvature": negative_share(hessians),
    }


def verdict(
    figures: dict[str, Any], calibration: dict[str, Any], recorded: bool, hint: str
) -> Bunch:
    """Judge the figures in a sentence, with a hint; warn if they are bad."""
    against: list[str] = []
    in_favour: list[str] = []

    step = figures["step_linearity"]
    (against if step > _STEP_LIMIT else in_favour).append(
        f"predicted changes differ from the network's by {step:.0%}"
    )
    stationarity = figures["stationarity"]
    if stationarity > _STATIONARITY_LIMIT:
        against.append(
            f"training is far from converged (stationarity {stationarity:.2f})"
        )
    if figures.get("leverage", 0.0) > _LEVERAGE_LIMIT:
        against.append(f"a row has leverage {figures['leverage']:.3f} (raise ridge)")

    flat, negative = figures["flat_rows"], figures["negative_curvature"]
    if flat:
        (against if flat > _FLAT_LIMIT else in_favour).append(
            f"{flat:.0%} of the rows are where the loss has no curvature"
        )
    if negative:
        (against if negative > _FLAT_LIMIT else in_favour).append(
            f"the loss is not convex in the outputs, and {negative:.0%} of its "
            "curvature, which is negative, is left out"
        )

    missed = figures.get("approximation")
    if missed is not None:
        (against if missed > _APPROXIMATION_LIMIT else in_favour).append(
            f"the approximation by landmarks misses {missed:.0%} of an exact solution"
        )

    in_favour.extend(halves_findings(calibration, against))
    slope, lds = calibration["calibration_slope"], calibration["lds"]
    trust = "Trust"
    if slope is not None:
        if not _SLOPES[0] <= slope <= _SLOPES[1]:
            trust = SIZE_WRONG
        (in_favour if lds >= _LDS_LIMIT else against).append(
            f"retrained outcomes rank with {lds:.2f} and move {slope:.2f} times as far"
        )

    if slope is None and recorded:
        hint += " Pass n_retrainings to compare with retrained models."
    all_figures = {"leverage": None, **figures, **calibration}
    return judged(all_figures, against, in_favour, trust, hint)
