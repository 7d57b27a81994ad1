"""Outcomes of subsets: by the linearised model, or by really training."""

from functools import partial

import numpy as np
import torch
from sklearn.utils import _safe_indexing

from skattrib._validation import as_tensor, memory_cap
from skattrib.engine._functional import chunks
from skattrib.influence._member import Member
from skattrib.models._as_model import as_model
from skattrib.models._kept_models import CHUNK, RetrainedModels
from skattrib.models._memory import as_memory, cached_rows, digest

# Multiplications per second of many small networks against few large matrices.
_STACK_SLOWDOWN = 8
_NEWTON_STEPS = 6


class LinearizedSubsets:
    """The linearised model refitted to every subset, kept to be asked later.

    Parameters
    ----------
    estimator : fitted TorchClassifier or TorchRegressor
    X, y : ndarray
        Training rows.
    base : ndarray of shape (n_samples,)
        Weights of the rows in training.
    weights : ndarray of shape (m, n_samples)
        Of the rows, in each subset; the first are `base`.
    options : dict
        Of `Member`.
    """

    def __init__(self, estimator, X, y, base, weights, *, memory, verbose, **options):
        self._member = Member(estimator, X, y, base, memory=memory, **options)
        cache, key = as_memory(memory), ""
        if cache is not None:
            # steps have the coordinates of the space that the memory cap allowed
            model = self._member.model
            how = self._member.plan.solver, vars(model.ridge), model.scale
            trained = (
                estimator.module_,
                estimator.loss_function_,
                estimator.class_weight,
            )
            key = digest("steps", trained, X, y, base, how, options)
        solve = partial(self._solve, verbose=verbose)
        found = cached_rows(cache, key, weights, solve, CHUNK)
        self._steps = torch.tensor(np.array(found))

    def _solve(self, weights, verbose):
        return self._member.steps("refit", weights, verbose).cpu().numpy()

    def outcomes(self, X, y, outcome):
        """Return the outcomes (m, q) of queries, those of the model itself first."""
        steps = as_tensor(self._steps, self._member.model.outputs)
        asked = self._member.ask(X, len(steps))
        found = self._member.outcomes(steps, asked, y, outcome)
        present = self._member.present_outcomes(X, y, outcome)
        # damping towards the trained weights moves the model that has all units too
        return found - found[0] + present


class RetrainedSubsets:
    """Really trained models of every subset but the first, which is the whole."""

    def __init__(self, estimator, X, y, base, weights, *, memory, n_jobs, verbose):
        self._models = RetrainedModels(
            estimator,
            X,
            y,
            weights[1:],
            whole=weights[0],
            memory=memory,
            n_jobs=n_jobs,
            verbose=verbose,
        )

    def outcomes(self, X, y, outcome):
        """Return the outcomes (m, q) of queries, those of the model itself first."""
        present = self._models.present_outcomes(X, y, outcome)
        return np.vstack([present, self._models.outcomes(X, y, outcome)])


def choose_estimation(estimator, n_rows, n_subsets, n_components):
    """Return "retrain" or "gradient": what needs fewer multiplications.

    Counted, not timed: a clock would choose differently from one run to the next.
    """
    model = as_model(estimator)
    if not model.stacks:
        return "retrain"
    if not model.has_run:
        return "gradient"
    recipe = model.trajectory.recipe
    n_params = len(recipe.initial)
    itemsize = recipe.initial.element_size()
    if n_subsets * n_params * itemsize > memory_cap():
        return "gradient"
    batch = n_rows if recipe.batches is None else len(recipe.batches[0])
    train = 6.0 * n_params * batch * recipe.n_steps * n_subsets * _STACK_SLOWDOWN
    size = n_rows * estimator.n_outputs_
    width = min(size, n_params, n_components or size)
    solve = 2.0 * size * width**2 + width**3 / 3
    gradient = 2.0 * n_rows**2 * n_params + n_subsets * _NEWTON_STEPS * solve
    return "retrain" if train <= gradient else "gradient"


def in_chunks(source, X, y, outcome, n_subsets, n_outputs):
    """Ask a few queries at a time, so that their outputs fit the memory cap."""
    numbers = 4 * n_subsets * n_outputs * 8
    parts = chunks(len(X), int(memory_cap() / numbers))
    found = [
        source.outcomes(_safe_indexing(X, part), y[part], outcome) for part in parts
    ]
    return np.hstack(found).astype(np.float64)
