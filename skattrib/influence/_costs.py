"""What attributing a model will take: counted work, and a few steps of it timed."""

import math

import numpy as np
import torch

from skattrib._validation import memory_cap
from skattrib.engine._adjoint import differentiate_run, sweep_sizes
from skattrib.models._costs import (
    Cost,
    fit_seconds,
    multiplications_per_second,
    per_step,
    shortened,
    stack_seconds,
)

# Arrays as large as the attributions that exist at once.
_COPIES = 3


def training_seconds(model, problem, n_models, X, y):
    """Return the CPU seconds of training a network so many times.

    ``problem`` is None if the steps of its training are not known.
    """
    if n_models == 0:
        return 0.0
    if problem is None:
        return n_models * fit_seconds(model, X, y)
    return stack_seconds(problem, n_models)


def tangent_seconds(plan, problem, n_units, n_queries):
    """Return the CPU seconds of the steps without units, and of queries.

    Parameters
    ----------
    plan : SolverChoice
    problem : TrainingProblem
    n_units, n_queries : int
    """
    n_rows, n_params = len(problem.X), float(problem.model.n_params)
    n_outputs = problem.loss.n_outputs(problem.targets)
    rows = float(n_rows * n_outputs)
    queried = float(n_queries * n_outputs)
    work = plan.unit_work + 2 * queried * n_params * n_rows
    if not plan.by_query:
        width = n_params if plan.solver == "primal" else rows
        work += queried * n_units * width
    elif plan.solver == "primal":
        work += queried * n_params**2
    else:
        work += n_queries * plan.query_work
    return work / multiplications_per_second(problem.X.dtype)


def exact_cost(model, X, y, units, n_queries):
    """Return the cost of a linear or kernel model that is refitted exactly."""
    n, n_columns = X.shape
    n_outputs = max(len(np.unique(y)) if y.ndim == 1 else y.shape[1], 1)
    if y.dtype.kind == "f":
        n_outputs = 1 if y.ndim == 1 else y.shape[1]
    side = float(min(n_columns, n) * n_outputs)
    # one Hessian and its factor, a step for each row, and their effect on queries
    work = n * n_outputs * n_columns * side + side**3 + len(units) * side**2
    work += float(n_queries) * len(units) * n_columns * n_outputs
    seconds = 0.0 if model.frozen else fit_seconds(model, X, y)
    seconds += work / multiplications_per_second(torch.float64)
    numbers = 6 * side**2 + n * (n_columns + 4 * n_outputs) + len(units) * side
    size = 8.0 * numbers + attribution_bytes(n_queries, len(units), 8)
    return Cost(
        "outcome with all units minus outcome without this one",
        0 if model.frozen else 1,
        seconds,
        size / 2**20,
        "refitted exactly, with its own penalty",
    )


def sweep_seconds(problem, n_runs, n_queries, **options):
    """Return the CPU seconds of differentiating runs for so many queries.

    Parameters
    ----------
    problem : TrainingProblem
    n_runs, n_queries : int
    **options : dict
        Of `differentiate_run`.
    """
    sizes = sweep_sizes(
        problem.model, problem.recipe, problem.X, n_runs, n_queries, memory_cap()
    )
    at_once, queries = sizes.n_runs, sizes.n_queries
    factor = 1.0

    def steps(n_steps):
        nonlocal factor
        short, factor = shortened(problem, n_steps)
        n_params = short.model.n_params
        # gradients of some size, of which none is like another
        ramp = torch.linspace(-1, 1, n_params).to(short.X)
        scales = torch.linspace(0.5, 1, queries).to(short.X)[:, None]
        differentiate_run(
            short.model,
            short.loss,
            short.recipe,
            short.X,
            short.targets,
            short.X.new_ones(at_once, len(short.X)),
            (scales * ramp).expand(at_once, -1, -1),
            memory_bytes=memory_cap(),
            **options,
        )

    step, before = per_step(steps, problem.recipe.n_steps)
    n_sweeps = math.ceil(n_runs / at_once) * math.ceil(n_queries / queries)
    # a sweep of three steps keeps them all; a long one may train twice
    return before + n_sweeps * factor * step * problem.recipe.n_steps


def sweep_megabytes(problem, n_runs, n_queries):
    """Return the megabytes that a sweep needs at once."""
    sizes = sweep_sizes(
        problem.model, problem.recipe, problem.X, n_runs, n_queries, memory_cap()
    )
    numbers = _COPIES * n_runs * n_queries * len(problem.X) + sizes.numbers
    return numbers * problem.X.element_size() / 2**20


def attribution_bytes(n_queries, n_units, itemsize):
    """Return the bytes of attributions while they are made."""
    return _COPIES * n_queries * n_units * itemsize
