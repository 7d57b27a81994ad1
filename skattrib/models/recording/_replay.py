"""Repeat a recorded run, and compare its end with the recorded one."""

import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from sklearn.utils.validation import _num_samples, check_consistent_length
from torch import nn

from skattrib._indexes import check_order
from skattrib.engine._functional import FunctionalModule
from skattrib.engine._minibatch import Minibatch, row_shares, same_seeds
from skattrib.engine._trajectory import Recipe, TrainingState
from skattrib.exceptions import FaithfulnessWarning, TrajectoryError
from skattrib.models._datasets import with_targets
from skattrib.models._network import replay_error, untrained
from skattrib.models.recording._estimators import CAUSES, check_rows

# A gradient's norm in single precision, summed in another order.
_SAME_NORM = 1e-3
# Losses of a step, as shares of the noted one: of the first step, which begins where
# the loop did, also in mixed precision; and of a later one, that of its predecessor
# being right, where rounding alone does not come to that.
_SAME_LOSS, _SAME_IN_MIXED, _JUMP = 1e-3, 0.05, 0.01
# Ends of a replay, as shares of the distance moved, that no rounding comes to.
_FAR = 1e-2
# Outputs of a replay in another precision, as a share of how rows differ in them.
_STRETCH, _FEW_ROWS = 0.1, 1000

# What the docstrings of to_classifier and to_regressor have in common.
DOCS = {
    "raises_and_warns": """
    Raises
    ------
    ValueError
        If the data do not fit the model.
    TrajectoryError
        If no run was recorded, or it is of rows that X does not have.

    Warns
    -----
    FaithfulnessWarning
        If the replay ends elsewhere, or some rows are in no minibatch.
    """,
    "row_weights": """
    sample_weight : array-like of shape (n_samples,) or None, default=None
        Weights that the net gave to the losses of rows, as Σ w ℓ / Σ w.
    """,
    "data": """
    X : array-like of shape (n_samples, ...) or Dataset
        The rows that the net was trained on, in the order of its data set; or that
        data set, which brings the targets.
    """,
}


@dataclass(frozen=True)
class Run:
    """A run that has ended, on the CPU.

    Attributes
    ----------
    module : nn.Module
        As it was before the run.
    device : str
        Where it was trained.
    recipe : Recipe
    end : TrainingState
    first_norm : float or None
        Norm of the first gradient.
    losses : ndarray of shape (T,) or None
        Loss of each step, where the loop told.
    precision : str or None
        Mixed precision of the loop.
    causes : str, default=""
        What to do about a replay that is another run, which then is an error, where
        rounding does not explain it. Empty: another end is warned of.
    """

    module: nn.Module
    device: str
    recipe: Recipe
    end: TrainingState
    first_norm: float | None = None
    losses: np.ndarray | None = None
    precision: str | None = None
    causes: str = ""


def repeat(run, kind, X, y, sample_weight, options):
    """Return a fitted estimator of a kind that ended where the run did."""
    X, y = with_targets(X, y, "This recording")
    check_order(X, y, {"sample_weight": sample_weight})
    n_rows, recipe = _num_samples(X), run.recipe
    check_rows(recipe.batches, n_rows)
    seen = np.zeros(n_rows, dtype=bool)
    seen[np.concatenate(recipe.batches)] = True
    everything = all(_is_everything(rows, n_rows) for rows in recipe.batches)
    if everything and recipe.generator_states is None:  # which know their order
        recipe = replace(recipe, batches=None)
    estimator = kind(run.module, recipe, device=run.device, **options)
    estimator.fit(X, y, sample_weight=sample_weight)
    if run.losses is not None:
        _check_losses(run, estimator.loss_curve_)
    if not seen.all():
        unseen = np.flatnonzero(~seen)
        warnings.warn(
            f"{len(unseen)} of the {n_rows} rows of X are in no recorded minibatch "
            f"(first {unseen[:5].tolist()}): their attributions are 0.",
            FaithfulnessWarning,
            stacklevel=3,
        )
    _take_end(estimator, run, X, y)
    return estimator


def _is_everything(rows, n_rows):
    """Say whether a minibatch holds every row once."""
    return len(rows) == n_rows and np.array_equal(np.sort(rows), np.arange(n_rows))


def _take_end(estimator, run, X, y):
    """Give the estimator the weights that the loop ended with; warn if it misses."""
    end, initial = run.end.params[0], run.recipe.start
    model = FunctionalModule(estimator.module_)
    n = len(end)  # running statistics too, if they were trained
    error = replay_error(model.vector()[:n].cpu(), end, initial)
    if run.precision is not None:
        _take_rounded_end(model, estimator._problem(X, y).X[:_FEW_ROWS], end, run)
        return
    model.load(end.to(model.flatten()))
    norms, scale = "", 1.0
    if run.first_norm:
        problem = estimator._problem(X, y)
        weights = problem.weighted(estimator.trajectory_.row_weights[None])
        replayed = _first_step(problem, weights)[0]
        scale = replayed / run.first_norm
        norms = (
            f" The first gradient had norm {run.first_norm:.3g}, that of the package's "
            f"loss is {replayed:.3g}."
        )
    if error:
        _complain(
            f"Replaying the recording misses the weights of the loop by {error:.1e} of "
            "the distance that training moved them: what is attributed is another run."
            f"{norms}",
            run.causes or CAUSES,
            bool(run.causes) and error > _FAR,
        )
    if (not error or run.causes) and abs(scale - 1.0) > _SAME_NORM:
        # Adam takes the same steps, but a row left out does something else
        _complain(
            "The recording is replayed, but its loss is another than the mean over a "
            f"step's rows: what a row's weight does differs.{norms}",
            run.causes
            or "Use reduction='mean', and 0.5 * MSELoss for numbers, or pass loss=.",
            bool(run.causes),
        )


def _complain(message, cure, refuse):
    """Say that a replay is another run than the recorded one."""
    if refuse:
        raise TrajectoryError(f"{message} {cure}")
    warnings.warn(f"{message} {cure}", FaithfulnessWarning, stacklevel=5)


def _take_rounded_end(model, X, end, run):
    """Load the end of a run in mixed precision; say how far its replay is from it."""
    with torch.no_grad():
        replayed = model.present_outputs(X)
        model.load(end.to(model.flatten()))
        trained = model.present_outputs(X)
    spread = (trained - trained.mean(dim=0)).norm().clamp(min=1e-12)
    share = float((replayed - trained).norm() / spread)
    said = (
        f"The run was in precision {run.precision!r}, and is replayed in "
        f"{str(end.dtype).removeprefix('torch.')}: its outputs are off those of the "
        f"trained network by {share:.1%} of what rows differ in them"
    )
    if not share <= _STRETCH:
        raise TrajectoryError(
            f"{said}, which is another run. Train with precision='32-true' (Lightning) "
            "or bf16=False (transformers) to attribute the training."
        )
    warnings.warn(f"{said}.", FaithfulnessWarning, stacklevel=5)


def _check_losses(run, replayed):
    """Raise if the loss of a step, as it was noted, is another than in the replay."""
    noted = np.abs(run.losses)
    off = np.abs(run.losses - replayed) / np.maximum(noted, 1e-3 * noted.max())
    first = _SAME_LOSS if run.precision is None else _SAME_IN_MIXED
    jumps = np.flatnonzero((off[1:] > _JUMP) & (off[:-1] < _SAME_LOSS)) + 1
    if not off[0] <= first:
        step = 0
    elif len(jumps) and run.precision is None:
        step = jumps[0]
    else:
        return
    cure = (
        "the loss is no mean over rows of loss=, of the module's outputs and the "
        "targets. Pass the loss as loss= (as nn.CrossEntropyLoss(weight=...)), weights "
        "of rows as sample_weight=; a term besides it, augmented rows, or mixed ones, "
        "cannot be repeated."
    )
    raise TrajectoryError(
        f"The loss of step {step + 1} was {run.losses[step]:.6g}, and that of the "
        f"replay is {replayed[step]:.6g}: {run.causes or cure}"
    )


def first_loss(run, kind, X, y, sample_weight, options):
    """Return the loss of the first step, as the package computes it."""
    X, y = map(np.asarray, with_targets(X, y, "This recording"))
    check_consistent_length(X, y, sample_weight)
    weights = np.ones(len(X)) if sample_weight is None else np.asarray(sample_weight)
    estimator = kind(run.module, run.recipe, device=run.device, **options)
    problem = untrained(estimator, X, y)
    return _first_step(problem, problem.weighted(weights[None]))[1]


def _first_step(problem, weights):
    """Return the gradient's norm, clipped as it was, and the loss of the first step."""
    recipe = problem.recipe
    _, rows = recipe.step(1, problem.X.device)
    minibatch = Minibatch(problem.model, problem.loss, problem.X, problem.targets)
    problem.model.look(problem.X)
    shares = row_shares(weights if rows is None else weights[:, rows])
    initial = recipe.start.to(problem.X)[None]
    seeds = same_seeds(1, recipe.seed, problem.X)
    step = recipe.n_before + 1
    gradient, _, losses = minibatch(initial, shares, rows, seeds, step)
    norm, clip = float(gradient[0].norm()), recipe.clip_norm
    return norm if clip is None else min(norm, clip), float(losses[0])
