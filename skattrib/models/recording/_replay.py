"""Repeat a recorded run, and compare its end with the recorded one."""

import warnings
from dataclasses import dataclass, replace

import numpy as np
from sklearn.utils.validation import _num_samples
from torch import nn

from skattrib.engine._functional import FunctionalModule
from skattrib.engine._minibatch import Minibatch, row_shares, same_seeds
from skattrib.engine._trajectory import Recipe, TrainingState
from skattrib.exceptions import FaithfulnessWarning
from skattrib.models._network import replay_error
from skattrib.models.recording._estimators import CAUSES, check_rows

# A gradient's norm in single precision, summed in another order.
_SAME_NORM = 1e-3


@dataclass(frozen=True)
class Run:
    """A run that has ended, on the CPU."""

    module: nn.Module
    device: str
    recipe: Recipe
    end: TrainingState
    first_norm: float | None = None


def repeat(run, kind, X, y, sample_weight, options):
    """Return a fitted estimator of a kind that ended where the run did."""
    n_rows, recipe = _num_samples(X), run.recipe
    check_rows(recipe.batches, n_rows)
    seen = np.zeros(n_rows, dtype=bool)
    seen[np.concatenate(recipe.batches)] = True
    everything = all(_is_everything(rows, n_rows) for rows in recipe.batches)
    if everything and recipe.generator_states is None:  # which know their order
        recipe = replace(recipe, batches=None)
    estimator = kind(run.module, recipe, device=run.device, **options)
    estimator.fit(X, y, sample_weight=sample_weight)
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
    model.load(end.to(model.flatten()))
    norms, scale = "", 1.0
    if run.first_norm:
        problem = estimator._problem(X, y)
        weights = problem.weighted(estimator.trajectory_.row_weights[None])
        replayed = _first_gradient_norm(problem, weights)
        scale = replayed / run.first_norm
        norms = (
            f" The first gradient had norm {run.first_norm:.3g}, that of the package's "
            f"loss is {replayed:.3g}."
        )
    if not error:
        if abs(scale - 1.0) > _SAME_NORM:
            # Adam takes the same steps, but a row left out does something else
            warnings.warn(
                "The recording is replayed, but its loss is another than the mean over "
                f"a step's rows: what a row's weight does differs.{norms} Use "
                "reduction='mean', and 0.5 * MSELoss for numbers, or pass loss=.",
                FaithfulnessWarning,
                stacklevel=4,
            )
        return
    warnings.warn(
        f"Replaying the recording misses the weights of the loop by {error:.1e} of the "
        f"distance that training moved them: what is attributed is another run. "
        f"{CAUSES}{norms}",
        FaithfulnessWarning,
        stacklevel=4,
    )


def _first_gradient_norm(problem, weights):
    recipe = problem.recipe
    _, rows = recipe.step(1, problem.X.device)
    minibatch = Minibatch(problem.model, problem.loss, problem.X, problem.targets)
    shares = row_shares(weights if rows is None else weights[:, rows])
    initial = problem.recipe.start.to(problem.X)[None]
    seeds = same_seeds(1, recipe.seed, problem.X)
    norm = float(minibatch(initial, shares, rows, seeds, 1)[0].norm())
    clip = recipe.clip_norm
    return norm if clip is None else min(norm, clip)
