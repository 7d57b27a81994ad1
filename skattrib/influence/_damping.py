"""How much to damp, and in which metric: from the run's record, or by retraining.

T steps of preconditioned descent act on a direction of curvature e about as
(1 − exp(−e t)) / e ≈ 1 / (e + 1/t) does, with t the sum of the learning rates over
the optimizer's own scale of that parameter. So damping follows the optimizer's second
moment, and its strength the length of training.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skattrib.engine._functional import FunctionalModule, chunks
from skattrib.engine._gradients import RowGradients, row_gradients
from skattrib.engine._linearized import LinearizedModel
from skattrib.engine._losses import Loss
from skattrib.engine._row_space import MatrixFreeSpace
from skattrib.engine._trajectory import Trajectory
from skattrib.evaluation import lds_score
from skattrib.exceptions import FaithfulnessWarning
from skattrib.models._protocol import Differentiable

# Measured on MLPs: best for single rows is 1.5; for half subsets 3.5, as damping also
# makes up for what a first order, or one Newton step, overshoots.
_ALPHA_ROWS, _ALPHA_PER_FRACTION = 1.5, 4.0
#: Factors that calibration tries.
CALIBRATION_GRID = 2.0 ** np.arange(-4, 5)
#: Models that it retrains, each on half of the units, and rows to ask them about.
N_RETRAINED, N_QUERIES = 16, 50
# A factor on the evidence's optimum where no run was recorded, for half subsets.
_EVIDENCE_FACTOR = 6.8
# A factor on the mean eigenvalue where there are no eigenvalues.
_TRACE_FACTOR = 10.0
# Dead inputs and units have no second moment at all.
_SMALLEST_SCALE = 1e-3
_ASSUMED_BATCH = 32
_ROWS_AT_ONCE = 256
_N_PROBES = 32


@dataclass(frozen=True)
class RidgeRule:
    """Damping of the mean row loss as a function of the fraction of rows removed."""

    constant: float
    slope: float = 0.0
    source: str = "given"

    def __call__(self, fraction: float) -> float:
        # a falling rule is known at 0 and a half, and must not reach 0 beyond
        return self.constant + self.slope * min(fraction, 0.5 if self.slope < 0 else 1)

    def times(self, factor: float) -> RidgeRule:
        """Return the rule with its damping multiplied."""
        return RidgeRule(self.constant * factor, self.slope * factor, self.source)


def optimizer_scale(trained: Differentiable, model: FunctionalModule) -> Tensor:
    """Return by what the end of the run divided the model's parameters' steps.

    That is the optimizer's denominator over the learning rates of every parameter,
    relative to each other; ones for an optimizer without a denominator.
    """
    trajectory = trained.trajectory
    whole = FunctionalModule(trained.module)
    scale, rates = trajectory.denominator, trajectory.recipe.relative_rates
    if scale is None:
        scale = torch.ones(whole.n_params)
    if rates is not None:
        scale = scale / rates.to(scale).clamp(min=_SMALLEST_SCALE)
    return scale[whole.columns_of(model.names)]


def choose_metric(
    kind: str | tuple[str, Tensor | None],
    trained: Differentiable,
    model: FunctionalModule,
    X: Tensor,
    targets: Tensor,
) -> tuple[str, Tensor | None]:
    """Return the name of the metric used and the metric (P,), None for the identity.

    An unrecorded run has no second moments: those of its rows' gradients at the end
    replace them. What was returned before is taken as it is.
    """
    if not isinstance(kind, str):
        return kind
    if kind == "identity":
        return "identity", None
    if trained.trajectory is not None:
        scale = optimizer_scale(trained, model).to(X)
        return "optimizer", normalised_metric(scale)
    scale = gradient_scale(model, trained.loss, X, targets)
    return "gradients", normalised_metric(scale)


def choose_rule(
    ridge: float | str | RidgeRule,
    trained: Differentiable,
    linearized: LinearizedModel,
    metric: Tensor | None,
) -> RidgeRule:
    """Return the damping: the one given, that of the record, or a guess."""
    if isinstance(ridge, RidgeRule):
        return ridge
    if not isinstance(ridge, str):
        return RidgeRule(float(ridge))
    if trained.trajectory is not None:
        scale = optimizer_scale(trained, linearized.model)
        return recorded_rule(trained.trajectory, scale)
    warnings.warn(
        "ridge='auto' without a record of the training is a guess from the curvature "
        "of the loss. Train through TorchClassifier or TorchRegressor, or pass "
        "ridge=<float>.",
        FaithfulnessWarning,
        stacklevel=7,
    )
    return evidence_rule(linearized, metric)


def gradient_scale(
    model: FunctionalModule, loss: Loss, X: Tensor, targets: Tensor
) -> Tensor:
    """Guess √v̂ of an unrecorded run from the rows' loss gradients at its end."""
    total = squares = torch.zeros(())
    for rows in chunks(len(X), _ROWS_AT_ONCE):
        outputs, gradients = row_gradients(model, X[rows])
        residuals = loss.residuals(outputs, targets[rows])
        total = total + gradients.vjp(residuals[None])[0]
        squares = squares + gradients.squared_sum(residuals)
    mean, square = total / len(X), squares / len(X)
    variance = (square - mean.square()).clamp(min=0)
    return (mean.square() + variance / _ASSUMED_BATCH).sqrt()


def normalised_metric(scale: Tensor) -> Tensor:
    """Return the scale with mean 1 and nothing near zero."""
    scale = scale.clamp(min=_SMALLEST_SCALE * float(scale.mean()))
    return scale / scale.mean()


def recorded_rule(trajectory: Trajectory, scale: Tensor) -> RidgeRule:
    """Return the damping that the length of a recorded run implies.

    ``scale`` is the optimizer's, of the parameters that move.
    """
    scale = scale.clamp(min=_SMALLEST_SCALE * float(scale.mean()))
    unit = float(scale.mean()) / trajectory.recipe.path_length
    slope = _ALPHA_PER_FRACTION * unit
    return RidgeRule(_ALPHA_ROWS * unit, slope, "length of the recorded run")


def calibrated_rules(
    rules: Sequence[RidgeRule],
    truth: NDArray[Any],
    shares: NDArray[Any],
    attributions_at: Callable[[float], NDArray[Any]],
    outcomes_at: Callable[[float], NDArray[Any]],
) -> list[RidgeRule]:
    """Scale rules at single units and at halves by what ranks retraining best.

    Parameters
    ----------
    rules : list of RidgeRule
    truth : ndarray of shape (n_weightings, q)
        Retrained outcomes.
    shares : ndarray of shape (n_weightings, n_units)
        What is left of each unit in retraining.
    attributions_at, outcomes_at : callable
        Take a factor on the rules; return attributions (q, n_units), and predicted
        outcomes like ``truth``.
    """
    rank_units, rank_halves = [], []
    for factor in CALIBRATION_GRID:
        additive = shares @ attributions_at(factor).T
        rank_units.append(lds_score(truth, additive))
        rank_halves.append(lds_score(truth, outcomes_at(factor)))

    # over neighbours: 16 models leave much noise, and the optimum is flat
    units, halves = (
        float(CALIBRATION_GRID[int(np.argmax(_smoothed(scores)))])
        for scores in (rank_units, rank_halves)
    )
    return [_scaled(rule, units, halves) for rule in rules]


def _scaled(rule: RidgeRule, units: float, halves: float) -> RidgeRule:
    """Multiply a rule by one factor at single units, and by another at halves."""
    constant, half = units * rule(0.0), halves * rule(0.5)
    source = (
        f"{units:g} (units), {halves:g} (halves) times {rule.source}, by retraining"
    )
    return RidgeRule(constant, 2 * (half - constant), source)


def _smoothed(scores: list[float]) -> NDArray[np.float64]:
    padded = np.pad(np.asarray(scores, dtype=np.float64), 1, mode="edge")
    return (padded[:-2] + padded[1:-1] + padded[2:]) / 3


def evidence_rule(linearized: LinearizedModel, metric: Tensor | None) -> RidgeRule:
    """Guess the damping of an unrecorded run from MacKay's evidence fixed point."""
    total = float(linearized.weights.sum())
    theta = linearized.model.flatten()
    squared = float((theta.square() * (1.0 if metric is None else metric)).sum())
    if isinstance(linearized.space, MatrixFreeSpace):
        mean = mean_eigenvalue(linearized, linearized.space.gradients)
        return RidgeRule(_TRACE_FACTOR * mean, 0.0, "trace of the Hessian")
    values = linearized.space.eigenvalues().double() / total
    n = len(linearized.weights)
    ridge = float(values.mean())
    for _ in range(200):
        ridge = float((values / (values + ridge)).sum()) / (n * squared)
    return RidgeRule(
        _EVIDENCE_FACTOR / 2 * ridge, _EVIDENCE_FACTOR * ridge, "Laplace evidence"
    )


def mean_eigenvalue(linearized: LinearizedModel, gradients: RowGradients) -> float:
    """Estimate tr(H) / P of the mean loss from random signs (Hutchinson)."""
    generator = torch.Generator().manual_seed(0)
    # one by one: each is as large as the model
    probes = []
    for _ in range(_N_PROBES):
        signs = torch.empty(1, linearized.model.n_params)
        signs.bernoulli_(generator=generator).mul_(2).sub_(1)
        probes.append(gradients.jvp(signs.to(linearized.outputs)))
    images = torch.cat(probes)
    bent = torch.einsum("ncd,knc->knd", linearized.output_hessian_roots, images)
    energy = (bent.square().sum(dim=2) * linearized.weights).sum(dim=1).mean()
    return float(energy / linearized.weights.sum() / linearized.model.n_params)
