"""How far to trust a linearised model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.utils import Bunch
from torch import Tensor
from torch.func import jvp

from skattrib._docstrings import fill_in
from skattrib._validation import as_tensor, draw_seeds, float_dtype
from skattrib._verdict import SIZE_WRONG, halves_findings, judged, scale_hint
from skattrib.base import ATTRIBUTOR_DOCS
from skattrib.engine._functional import chunks, spread
from skattrib.engine._linearized import LinearizedModel
from skattrib.engine._losses import CrossEntropy, Loss, SquaredError
from skattrib.engine._losses._labels import BinaryCrossEntropy
from skattrib.engine._plain_gradients import REFUSALS
from skattrib.engine._solvers import negative_share
from skattrib.engine._tangent import load_forward_mode
from skattrib.engine._training import train
from skattrib.influence._exact_diagnosis import diagnose_exact
from skattrib.influence._exact_models import ExactModel
from skattrib.influence._run_derivatives import RunDerivatives
from skattrib.influence._system_noise import (
    nudged_model,
    system_findings,
    system_noise,
)
from skattrib.models._as_model import as_model
from skattrib.models._datasets import with_targets
from skattrib.models._linear import Convex

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
) -> dict[str, float | None]:
    """Return the loss, stationarity, linearity, leverage, and curvature left out.

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
        "loss_over_constant": loss_over_constant(model),
        "stationarity": model.stationarity(),
        "step_linearity": _median_error(predicted, actual),
    }
    figures |= curvature_left_out(model)
    if model.space.name != "cg":
        figures["leverage"] = float(model.leverages().max())
    return figures


def loss_over_constant(model: LinearizedModel) -> float | None:
    """Return the mean loss over that of one constant for all rows, the best for it.

    None for other losses than of classes and squared errors, with weights or smoothing
    too, and where a constant fits all that count.
    """
    targets, weights = model.targets, model.weights
    outputs = model.outputs
    if model.loss in (CrossEntropy(), BinaryCrossEntropy()):
        if targets[weights > 0].unique().numel() < 2:
            return None
        n_classes = max(2, outputs.shape[1])
        masses = outputs.new_zeros(n_classes).index_add(0, targets, weights.to(outputs))
        constant = (masses / masses.sum()).clamp(min=1e-12).log()
        if outputs.shape[1] == 1:
            constant = constant[1:] - constant[:1]
    elif isinstance(model.loss, SquaredError):
        constant = (weights[:, None] * targets).sum(0) / weights.sum()
    else:
        return None
    losses = [
        float((weights * model.loss.values(guess, targets)).sum())
        for guess in (outputs, constant.expand_as(outputs))
    ]
    return losses[0] / losses[1] if losses[1] > 0 else None


def linearity_along_run(
    model: Any, rows: tuple[Any, Any], changes: Tensor, X: Tensor
) -> tuple[float, ...] | None:
    """Return how far outputs are from a tangent after 10, 50 and 100 % of the steps.

    As `diagnose_linearized` at the end, for the same changes of the parameters; the
    run is repeated for it. None if it was not recorded, or with other rows.

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
    if len(model.trajectory.row_weights) != len(rows[0]):
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
    worse = figures["loss_over_constant"]
    if worse is not None and worse > 1:
        against.append(
            "the loss on the training rows is above that of a constant, so that "
            "training has hardly begun, or was of other rows or weights"
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

    corrected = calibration["coverage"] is not None
    in_favour.extend(system_findings(figures, against, corrected))
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


class DiagnosesTangent:
    """Methods of an attributor that says how far its tangent goes.

    It has what `DualInfluence` learns.
    """

    @fill_in(ATTRIBUTOR_DOCS)
    def diagnose(self, X, y=None, n_retrainings=0, *, system=False):
        """Say how far the attributions can be trusted, and why not.

        Parameters
        ----------
        %(diagnosed)s
        system : bool, default=False
            Whether to repeat the training from a start that differs by rounding.

        Returns
        -------
        Bunch
            With these entries.

            - loss_over_constant: mean loss of the training rows over that of the best
              constant; above 1 the model is untrained. None for losses other than
              cross-entropy and squared errors.
            - stationarity: length of the mean loss gradient over that of single rows'
              gradients; above 0.4 training stopped far too early.
            - step_linearity: relative error of the predicted output changes against
              the network evaluated at the predicted parameters.
            - step_linearity_along_run: the same after 10, 50 and 100 % of the steps of
              its training, for the same changes of the parameters; None if that was not
              recorded, or on other rows. Where it is large early, what a row does there
              is lost.
            - leverage: largest share that a row has in its own output, in [0, 1);
              None where it would take too long.
            - flat_rows, negative_curvature: share of rows where the loss has no
              curvature in the outputs (Huber's tails), and share of its curvature that
              is negative; both are left out of the steps.
            - approximation: with ``solver="nystroem"``, relative error of the predicted
              output changes of eight units against an exact solution; else None.
            %(halves_figures)s
            %(system_figures)s
            - trustworthy, verdict: whether the order of attributions can be trusted, as
              far as these figures tell, and a sentence on order and size.

        Raises
        ------
        ValueError
            If `system` is asked of a model without a record of its training.

        Warns
        -----
        FaithfulnessWarning
            If the verdict is bad.
        """
        X, y = with_targets(X, y, "diagnose")
        X, y, outcome = self._check_finite_query(X, y)
        if system:
            self._check_recorded()
        linear = self._linear_models[0]
        calibration = self._held_out(X, y, outcome)
        if n_retrainings:
            calibration.update(self._calibrate(X, y, outcome, n_retrainings))
        if isinstance(linear, ExactModel):
            without_each = self._without_each[0]
            return diagnose_exact(linear, without_each, X, calibration)
        units = spread(self.n_units_, N_STEPS)
        removed = self._left_out[units]
        if linear.plan.by_query:
            steps = linear.steps(removed)
        else:
            steps = self._without_each[0][units]

        queries = as_tensor(X, linear.tangent.outputs)
        linear.trained.targets(y, queries)  # raises on labels that were not in fit
        figures = diagnose_linearized(linear.tangent, steps, queries)
        figures["approximation"] = linear.approximation_error(removed, steps, queries)
        model = as_model(self._model)
        changes = linear.tangent.parameter_change(steps)
        rows = self._features, self._targets
        figures["step_linearity_along_run"] = linearity_along_run(
            model, rows, changes, queries
        )

        figures["system"] = self._system_noise(X, y, outcome) if system else None
        recorded = model.can_retrain
        return verdict(figures, calibration, recorded, scale_hint(self._features))

    def _check_recorded(self):
        """Raise unless there is a run that can be repeated."""
        model = as_model(self._model)
        if isinstance(model, Convex):
            raise ValueError(
                f"system=True repeats a training, and {model.name} is refitted to its "
                "optimum, whatever the rounding. Leave system=False."
            )
        if model.trajectory is None or not model.stacks:
            raise ValueError(
                f"system=True repeats a training, and that of {model.name} was not "
                "recorded. Leave system=False, or train by TorchClassifier or "
                "TorchRegressor, or record your own loop by record_training."
            )

    def _system_noise(self, X, y, outcome):
        """Compare models with their training, repeated from another start."""
        self._say("trainings are repeated from starts that differ by rounding")
        rows, models = (self._features, self._targets), self._linear_models
        other, removal = copy.copy(self), self.removal_["attribute"]
        moved, ends = [], []
        for linear, seed in zip(models, draw_seeds(self._fit_seed, len(models))):
            model, far = nudged_model(linear.trained, *rows, seed)
            ends.append(far)
            again = other._linearize(model, removal)
            if self.ridge == "calibrate":  # what retrained models said stays
                again = again.at_ridge(linear.ridge)
            moved.append(again)
        present = self._row_weights[None].astype(float_dtype(self._features))

        def asked(models):
            effects, outcomes = [], []
            for linear in models:
                queries = linear.ask(X, y, outcome, self.n_units_)
                effects.append(queries.attributions(linear.without_each_unit()))
                outcomes.append(queries.outcomes(linear.steps(present)))
            return np.mean(effects, axis=0), np.stack(outcomes)

        (attributions, outcomes), (again, outcomes_again) = map(asked, (models, moved))
        return system_noise(attributions, again, outcomes, outcomes_again, ends)
