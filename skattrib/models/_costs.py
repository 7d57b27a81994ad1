"""What training takes on this machine, told from a few steps of it."""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import _num_samples

from skattrib._validation import memory_cap, sorted_labels
from skattrib.engine._training import stack_size, train
from skattrib.engine._trajectory import Recipe
from skattrib.models._network import TrainingProblem
from skattrib.models._protocol import Retrainable
from skattrib.models._retraining import Trainer

# Steps that are timed, and rows of a full batch that take part.
_N_STEPS, _N_ROWS = 3, 4096
# Side of the matrices that tell multiplications per second.
_SIDE = 768
# Numbers that tell how many are written per second.
_N_WRITTEN = 2**22
# Rows that other estimators are fitted to.
_N_FITTED = 1000
# One step that takes longer than this is not repeated.
_LONG = 0.5


@dataclass(frozen=True)
class Cost:
    """What an attributor will take, and give.

    Attributes
    ----------
    estimand : str
    trainings : int
        Models trained, that of all units among them.
    seconds : float
        CPU seconds of fit and of one call of attribute; NaN if they cannot be told.
    megabytes : float
        At once, beyond the rows.
    way : str
        What "auto" takes, and why.
    """

    estimand: str
    trainings: float = math.nan
    seconds: float = math.nan
    megabytes: float = math.nan
    way: str = ""

    def said(self) -> str:
        """Return a line for people."""
        numbers = []
        if self.trainings == self.trainings:
            plural = "" if self.trainings == 1 else "s"
            numbers.append(f"{self.trainings:.0f} training{plural}")
        if self.seconds == self.seconds:
            numbers.append(f"about {self.seconds:.2g} CPU s")
        if self.megabytes == self.megabytes:
            numbers.append(f"{max(self.megabytes, 1):.2g} MB")
        return "; ".join([", ".join(numbers) or "cost not known", self.way]).strip("; ")


def cpu_seconds(call: Callable[[], object]) -> float:
    """Return the CPU seconds that a call takes, of all threads."""
    start = time.process_time()
    call()
    return time.process_time() - start


def multiplications_per_second(dtype: torch.dtype) -> float:
    """Return how many multiplications of large matrices take a second."""
    matrix = torch.ones(_SIDE, _SIDE, dtype=dtype)
    matrix @ matrix
    taken = cpu_seconds(lambda: matrix @ matrix)
    return _SIDE**3 / max(taken, 1e-4)


def numbers_per_second(dtype: torch.dtype) -> float:
    """Return how many numbers of products a second writes to new memory."""
    column = torch.ones(_N_WRITTEN // _SIDE, 1, dtype=dtype)
    row = torch.ones(1, _SIDE, dtype=dtype)
    column * row
    taken = cpu_seconds(lambda: column * row)
    return _N_WRITTEN / max(taken, 1e-4)


def shortened(problem: TrainingProblem, n_steps: int) -> tuple[TrainingProblem, float]:
    """Return a problem of the first steps, with the rows these need, and a factor.

    The factor is that of the rows of a full batch.
    """
    recipe, X = problem.recipe, problem.X
    n_steps = min(n_steps, recipe.n_steps)
    changes: dict[str, Any] = {"learning_rates": recipe.learning_rates[:n_steps]}
    changes["average"] = None  # which is of all steps
    if recipe.decay_factors is not None:
        changes["decay_factors"] = recipe.decay_factors[:n_steps]
    if recipe.batches is None:
        rows = np.arange(min(len(X), _N_ROWS))
    else:
        batches = recipe.batches[:n_steps]
        rows = np.unique(np.concatenate(batches))
        changes["batches"] = [np.searchsorted(rows, batch) for batch in batches]
    factor = len(X) / len(rows) if recipe.batches is None else 1.0
    index = torch.as_tensor(rows, device=X.device)
    short: Recipe = replace(recipe, **changes)
    targets = problem.targets[index]
    changes = {"X": X[index], "targets": targets, "held_out": rows[:0]}
    return replace(problem, recipe=short, **changes), factor


def per_step(call: Callable[[int], object], n_steps: int) -> tuple[float, float]:
    """Return the seconds of a step, and of what comes before the first.

    ``call`` takes the number of steps to do.
    """
    call(1)
    first = cpu_seconds(lambda: call(1))
    n_more = min(_N_STEPS, n_steps)
    if first > _LONG or n_more == 1:
        return first, 0.0
    several = cpu_seconds(lambda: call(n_more))
    step = max((several - first) / (n_more - 1), several / n_more / 4)
    return step, max(first - step, 0.0)


def stack_seconds(problem: TrainingProblem, n_models: int = 1) -> float:
    """Return the CPU seconds of training so many models, in stacks."""
    size = stack_size(problem.model, problem.recipe, problem.X, memory_cap())
    size = min(size, n_models)
    factor = 1.0

    def steps(n_steps: int) -> None:
        nonlocal factor
        short, factor = shortened(problem, n_steps)
        weights = short.X.new_ones(size, len(short.X))
        train(short.model, short.loss, short.recipe, short.X, short.targets, weights)

    step, before = per_step(steps, problem.recipe.n_steps)
    n_stacks = math.ceil(n_models / size)
    return n_stacks * (before + step * factor * problem.recipe.n_steps)


def stack_bytes(problem: TrainingProblem, n_models: int = 1) -> float:
    """Return the memory that a stack of so many models takes while it is trained."""
    cap = memory_cap()
    size = stack_size(problem.model, problem.recipe, problem.X, cap)
    return cap * min(size, n_models) / size


def fit_cost(model: Retrainable, X: Any, y: Any, seed: int = 0) -> tuple[float, float]:
    """Return about the CPU seconds of one fit, and the bytes of the fitted model.

    As if both grew with the rows.
    """
    n = _num_samples(X)
    rows = np.arange(n)
    if n > _N_FITTED:
        rows = np.random.RandomState(seed).permutation(n)[:_N_FITTED]
        if y.ndim == 1 and y.dtype.kind not in "fc":  # a row of each class at least
            _, first = np.unique(sorted_labels(y, "y")[1], return_index=True)
            rows = np.union1d(rows, first)
    trainer = Trainer(model.estimator, _safe_indexing(X, rows), y[rows])
    weights = np.ones((1, len(rows)))
    fitted: list[Any] = []
    taken = cpu_seconds(lambda: fitted.extend(trainer.models(weights, seed)))
    share = n / len(rows)
    try:
        size = len(pickle.dumps(fitted))
    except (pickle.PicklingError, AttributeError, TypeError):
        size = 0
    return taken * share, size * share


def training_cost(
    model: Any, problem: TrainingProblem | None, n_models: int, X: Any, y: Any
) -> tuple[float, float]:
    """Return the CPU seconds of training a model so many times, and the bytes.

    Those of a stack of networks while it is trained, or of all other models, which are
    kept. ``problem`` is None if the steps of the training are not known.
    """
    if n_models == 0:
        return 0.0, 0.0
    if problem is None:
        seconds, size = fit_cost(model, X, y)
        return n_models * seconds, n_models * size
    return stack_seconds(problem, n_models), stack_bytes(problem, n_models)


def training_seconds(
    model: Any, problem: TrainingProblem | None, n_models: int, X: Any, y: Any
) -> float:
    """Return the first of `training_cost`."""
    return training_cost(model, problem, n_models, X, y)[0]
