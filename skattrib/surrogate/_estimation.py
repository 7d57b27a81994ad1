"""Outcomes of subsets, by the linearised model or by retraining."""

import numpy as np
import torch
from sklearn.utils import _safe_indexing

from skattrib._validation import as_tensor, memory_cap
from skattrib.engine._functional import chunks
from skattrib.engine._losses import SetOutcome
from skattrib.influence._linear_models import LinearModel
from skattrib.models._as_model import as_model
from skattrib.models._kept_models import CHUNK, RetrainedModels
from skattrib.models._memory import as_memory, cached_rows, digest

# Multiplications per second of many small networks against few large matrices.
_STACK_SLOWDOWN = 8
_NEWTON_STEPS = 6


class LinearizedSubsets:
    """Steps of the linearised model refitted to every subset.

    Parameters
    ----------
    estimator : fitted estimator with gradients
    X, y : ndarray
        Training rows.
    base : ndarray of shape (n_samples,)
        Weights of the rows in training.
    weights : ndarray of shape (m, n_samples)
        Weights of the rows in each subset; the first are `base`.
    options : dict
        Options of `LinearModel`.
    """

    def __init__(self, estimator, X, y, base, weights, *, memory, verbose, **options):
        model = as_model(estimator)
        self._linear = LinearModel.precise(
            model,
            X,
            y,
            base,
            removal="refit",
            memory=memory,
            verbose=verbose,
            **options,
        )

        cache = as_memory(memory)
        key = ""
        if cache is not None:
            # the coordinates of steps depend on the solver, so on the memory cap
            tangent = self._linear.tangent
            settings = self._linear.plan.solver, vars(tangent.ridge), tangent.scale
            model_state = model.module, model.loss, self._linear.weighting
            key = digest("steps", model_state, X, y, base, settings, options)

        steps = cached_rows(cache, key, weights, self._solve, CHUNK)
        self._steps = torch.tensor(np.array(steps))

    def _solve(self, weights):
        return self._linear.steps(weights).cpu().numpy()

    def outcomes(self, X, y, outcome):
        """Return the outcomes (m, q) of queries, those of the model itself first."""
        steps = as_tensor(self._steps, self._linear.tangent.outputs)
        queries = self._linear.ask(X, y, outcome, len(steps))
        predicted = queries.outcomes(steps)
        # damping towards the trained weights also moves the model of all units
        return predicted - predicted[0] + queries.present_outcomes()


class RetrainedSubsets:
    """Models retrained on every subset except the first, which has all units."""

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
    """Return "retrain" or "gradient", whichever needs fewer multiplications.

    They are counted, not timed, so that the choice is the same in every run.
    """
    model = as_model(estimator)
    if not model.stacks:
        return "retrain"
    if not model.has_run:
        return "gradient"

    n_outputs = model.estimator.n_outputs_
    return cheaper_estimation(
        model.trajectory.recipe, n_rows, n_outputs, n_subsets, n_components
    )


def cheaper_estimation(recipe, n_rows, n_outputs, n_subsets, n_components):
    """Return "retrain" or "gradient" for a network with this recipe."""
    n_params = len(recipe.initial)
    itemsize = recipe.initial.element_size()
    if n_subsets * n_params * itemsize > memory_cap():
        return "gradient"

    batch = n_rows if recipe.batches is None else len(recipe.batches[0])
    train = 6.0 * n_params * batch * recipe.n_steps * n_subsets * _STACK_SLOWDOWN
    gradient = gradient_work(n_rows, n_outputs, n_params, n_subsets, n_components)

    return "retrain" if train <= gradient else "gradient"


def gradient_work(n_rows, n_outputs, n_params, n_subsets, n_components):
    """Return the multiplications of refitting the linearised model to subsets."""
    size = n_rows * n_outputs
    width = min(size, n_params, n_components or size)
    solve = 2.0 * size * width**2 + width**3 / 3
    return 2.0 * n_rows**2 * n_params + n_subsets * _NEWTON_STEPS * solve


def in_chunks(source, X, y, outcome, n_subsets, n_outputs):
    """Return outcomes, computed for as many queries at a time as fit the memory.

    One of all queries together is computed by the source, which then does as much.
    """
    if isinstance(outcome, SetOutcome):
        return source.outcomes(X, y, outcome).astype(np.float64)
    bytes_per_query = 4 * n_subsets * n_outputs * 8
    query_chunks = chunks(len(y), int(memory_cap() / bytes_per_query))
    outcomes = [
        source.outcomes(_safe_indexing(X, chunk), y[chunk], outcome)
        for chunk in query_chunks
    ]
    return np.hstack(outcomes).astype(np.float64)
