"""What attributing a model will take: counted work, and a few steps of it timed."""

import math

import numpy as np
import torch
from torch import nn

from skattrib._validation import memory_cap
from skattrib.engine._adjoint import differentiate_run, sweep_sizes
from skattrib.engine._gradients import gradient_size
from skattrib.engine._plan import ProblemSize, Units, plan_solver
from skattrib.influence._tangent_plans import SMALL_MATRICES
from skattrib.models._costs import (
    Cost,
    fit_cost,
    multiplications_per_second,
    numbers_per_second,
    per_step,
    shortened,
)

# Arrays as large as the attributions that exist at once.
_COPIES = 3
# The same of outputs of queries without each unit, from which outcomes are computed.
_OUTPUT_COPIES = 6
# Of these, what a batch of queries is counted to need.
_BATCH_COPIES = 3
# Copies of the rows while runs are differentiated: the attributor's own, and a tensor;
# and of their weights in each run.
_ROW_COPIES, _WEIGHT_COPIES = 2, 2
# Others of each row, of 8 bytes: target, that as a tensor, unit, name, weight.
_BESIDES = 5
# Such outcomes of linear models are computed so many at a time, in so many arrays.
_AT_ONCE, _ARRAYS = 2**20, 5
# Of the memory cap, what temporary arrays of one step may take: 1 / _SHARE.
_SHARE = 4
# Bytes for each entry of the inverse of a Hessian while leverages are read off.
_INVERSE_BYTES = 24


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
    rows, dtype = float(n_rows * n_outputs), problem.X.dtype
    queried = float(n_queries * n_outputs)
    work = plan.unit_work + 2 * queried * n_params * n_rows
    # products of queries with rows in each layer, and their outputs without units
    written = float(n_queries) * n_rows * _numbers_per_row(problem)
    if plan.removal != "influence":
        written += _OUTPUT_COPIES * queried * n_units
    if plan.solver == "dual":
        # a half of the kernel in each layer; and for each system what the curvature
        # does not see, a product with the kernel
        written += n_rows**2 / 2 * _numbers_per_row(problem)
        work += (2 if plan.removal == "newton" else 1) * n_units * rows**2
    if not plan.by_query:
        width = n_params if plan.solver == "primal" else rows
        work += queried * n_units * width
    elif plan.solver == "primal":
        work += queried * n_params**2
    else:
        work += n_queries * plan.query_work
    seconds = written / numbers_per_second(dtype)
    return seconds + work / multiplications_per_second(dtype)


def tangent_bytes(plan, problem, n_units, n_queries):
    """Return the bytes of solving for steps and of queries at once.

    Arrays that are made a few rows at a time take what they need, and a part of the
    memory cap at most.
    """
    itemsize, n_rows = problem.X.element_size(), float(len(problem.X))
    n_outputs = problem.loss.n_outputs(problem.targets)
    n_params, share = problem.model.n_params, memory_cap() / _SHARE
    if plan.solver == "dual":
        temporary = itemsize * n_rows**2 * _numbers_per_row(problem)
    else:
        temporary = itemsize * n_rows * _pairs(problem.model.module, n_params)
    asked = 0.0
    if plan.removal != "influence":
        asked = itemsize * _OUTPUT_COPIES * n_queries * n_units * n_outputs
        # queries are asked so many at a time that a part of them fits
        asked = min(asked, memory_cap() * _OUTPUT_COPIES / _BATCH_COPIES)
    if plan.by_query:
        changed = n_rows * n_outputs + 4 * n_params
        asked += min(itemsize * n_queries * n_outputs * changed, share)
    fitting = min(temporary, share)
    pays = n_rows * (n_outputs / 2 - 1) > n_params
    if plan.by_query and plan.removal == "newton" and pays:
        fitting += _INVERSE_BYTES * n_params**2
    return (
        plan.n_bytes
        + max(fitting, asked)
        + attribution_bytes(n_queries, n_units, itemsize)
    )


def _numbers_per_row(problem):
    """Return the numbers of the gradients of a row, in factors."""
    size = gradient_size(problem.model, problem.X).n_bytes
    return size / len(problem.X) / problem.X.element_size()


def _pairs(module, n_params):
    """Return the pairs of inputs, and twice those of outputs, of the widest layer."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    sizes = [(m.in_features + 1) ** 2 + 2 * m.out_features**2 for m in layers]
    return max(sizes, default=n_params)


def refits_seconds(problem, removed, n_components):
    """Return the CPU seconds of refitting the tangent to subsets.

    Parameters
    ----------
    problem : TrainingProblem
    removed : ndarray of shape (m,)
        Rows that each subset lacks.
    n_components : int or None
        Principal directions of the kernel that steps are in.
    """
    n_rows, dtype = len(problem.X), problem.X.dtype
    n_outputs = problem.loss.n_outputs(problem.targets)
    size, seconds = float(n_rows * n_outputs), 0.0
    n_params = n_components or problem.model.n_params
    gradients = gradient_size(problem.model, problem.X)
    if n_components is not None:
        gradients = gradients._replace(dense=False)
    sizes = n_rows, n_outputs, n_params, problem.X.element_size(), gradients
    tangent, solver = ProblemSize(*sizes), "primal"
    if n_components is None:
        solver = plan_solver(tangent, memory_cap(), removal="refit").solver
    work = tangent.work(solver, "refit", 0)
    with_subsets = ProblemSize(*sizes, Units(len(removed), n_rows))
    products = with_subsets.work(solver, "refit", 0) - work
    # each is a product with the Hessian, by layers unless a matrix is stored, and a
    # solution with the factor of all rows
    side = {"primal": float(n_params), "dual": size}.get(solver, 0.0)
    work += products / tangent.product(solver) * side**2
    by_layers = solver != "dual" and n_components is None
    work += products * (SMALL_MATRICES if by_layers else 1)
    if n_components is not None:
        # the kernel twice, and its eigenvectors
        work += 2.0 * n_rows**2 * problem.model.n_params + 9 * size**3
        written = 2.0 * n_rows**2 * _numbers_per_row(problem)
        seconds += written / numbers_per_second(dtype)
    if solver != "cg":
        # few rows leave as a block of their outputs, twice as slow in float64
        group = n_outputs * removed[removed <= n_rows // 4].astype(float)
        double = 2 if solver == "dual" else 1
        each = side**2 * group / 2 + double * side * group**2 + 2 * group**3 / 3
        work += each.sum()
    return seconds + work / multiplications_per_second(dtype)


def refits_bytes(problem, n_subsets):
    """Return the bytes of refitting the tangent to subsets, all at once."""
    n_outputs = problem.loss.n_outputs(problem.targets)
    numbers = n_subsets * (_numbers_per_row(problem) + n_outputs**2)
    temporary = problem.X.element_size() * len(problem.X) * numbers
    gradients = gradient_size(problem.model, problem.X)
    sizes = len(problem.X), n_outputs, problem.model.n_params
    size = ProblemSize(*sizes, problem.X.element_size(), gradients)
    plan = plan_solver(size, memory_cap(), removal="refit")
    return plan.n_bytes + min(temporary, memory_cap() / _SHARE)


def exact_cost(model, X, y, units, n_queries):
    """Return the cost of a linear or kernel model that is refitted exactly."""
    n, n_columns = X.shape
    n_outputs = max(len(np.unique(y)) if y.ndim == 1 else y.shape[1], 1)
    if y.dtype.kind == "f":
        n_outputs = 1 if y.ndim == 1 else y.shape[1]
    # outputs that bend each other make one block, of which a row leaves by all of them
    n_joint = 1 if n_outputs <= 2 or model.loss.separable else n_outputs
    n_blocks, side = n_outputs / n_joint, float(min(n_columns, n) * n_joint)
    # Hessians and their factors, a step for each row, and their effect on queries
    work = n_blocks * (n * n_joint * n_columns * side + side**3)
    work += n_blocks * len(units) * side**2 * (n_joint + 1)
    work += float(n_queries) * len(units) * n_columns * n_outputs
    seconds = 0.0 if model.frozen else fit_cost(model, X, y)[0]
    seconds += work / multiplications_per_second(torch.float64)
    numbers = n_blocks * (6 * side**2 + len(units) * side)
    numbers += n * (n_columns + 4 * n_outputs)
    numbers += _ARRAYS * min(_AT_ONCE, n_queries * len(units) * n_outputs)
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
        n_numbers = len(short.recipe.start)
        # gradients of some size, of which none is like another
        ramp = torch.linspace(-1, 1, n_numbers).to(short.X)
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
    n_rows, recipe = len(problem.X), problem.recipe
    numbers = _COPIES * n_runs * n_queries * n_rows + sizes.numbers
    numbers += _ROW_COPIES * problem.X.numel() + _WEIGHT_COPIES * n_runs * n_rows
    places = 0 if recipe.batches is None else sum(map(len, recipe.batches))
    size = numbers * problem.X.element_size() + 8 * (places + _BESIDES * n_rows)
    return size / 2**20


def attribution_bytes(n_queries, n_units, itemsize):
    """Return the bytes of attributions while they are made."""
    return _COPIES * n_queries * n_units * itemsize
