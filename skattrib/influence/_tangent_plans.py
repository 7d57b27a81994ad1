"""How the tangent of a network will be solved, known before it is trained."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from skattrib._validation import as_tensor, memory_cap
from skattrib.engine._functional import as_rows
from skattrib.engine._gradients import gradient_size
from skattrib.engine._last_layer import find_head
from skattrib.engine._modules import seeded
from skattrib.engine._plan import NO_UNITS, ProblemSize, Units, plan_solver
from skattrib.engine._trajectory import Recipe
from skattrib.models._network import untrained

#: A small network's matrices take so many times longer than large ones.
SMALL_MATRICES = 8


class Rows(NamedTuple):
    """Training rows, their weights, and the units that are left out.

    Attributes
    ----------
    X : Tensor
    n_outputs : int
    weighting : RowWeighting
    weights : ndarray of shape (n,)
        Of the rows in training.
    units : LeaveOneUnitOut or None
    """

    X: Any
    n_outputs: int
    weighting: Any
    weights: Any
    units: Any


def plan_untrained(problem, weights, units, *, parameters, solver, removal):
    """Choose how to solve for a network that is not trained yet, or refuse.

    Parameters
    ----------
    problem : TrainingProblem
    weights : ndarray of shape (n,)
    units : LeaveOneUnitOut
    parameters, solver, removal : str
        As `LinearModel` takes them.
    """
    network, X = problem.model, problem.X
    network.silent = True
    with seeded(0):  # a module that draws numbers is refused later
        n_outputs = as_rows(network.module(X[:2]), len(X[:2])).shape[1]
        if parameters == "head":
            names = head_parameters(network.module, X)
            network = network.of_parameters(names)
        rows = Rows(X, n_outputs, problem.weighting, weights, units)
        return plan_tangent(network, rows, solver, removal, problem.recipe)


def plan_tangent(model, rows, solver, removal, recipe=None):
    """Choose how to solve a linearised model, and how to leave units out.

    Parameters
    ----------
    model : FunctionalModule
        Trained or not.
    rows : Rows
    solver, removal : str
    recipe : Recipe or None
        Of the training, where it is known.
    """
    units = NO_UNITS
    if rows.units is not None:
        n_weights, largest = len(np.unique(rows.weights)), int(rows.units.largest)
        additive = rows.weighting.additive
        units = Units(len(rows.units), largest, additive, n_weights)
    problem = ProblemSize(
        len(rows.X),
        rows.n_outputs,
        model.n_params,
        rows.X.element_size(),
        gradient_size(model, rows.X),
        units,
        training_work(recipe, len(rows.X)),
    )
    plan = plan_solver(problem, memory_cap(), solver, removal)
    return replace(plan, reason="; ".join([plan.reason, *model.said]))


def training_work(recipe, n_rows):
    """Return the multiplications of a training, as many as large matrices would take.

    Small matrices take longer by the factor that is counted. 0 if only its length is
    known, or nothing.
    """
    if not isinstance(recipe, Recipe):
        return 0.0
    rows = recipe.n_steps * n_rows
    if recipe.batches is not None:
        rows = sum(map(len, recipe.batches))
    return SMALL_MATRICES * 3.0 * len(recipe.initial) * rows


def head_parameters(module, X):
    """Return the names of the trainable parameters of the last linear layer."""
    head = find_head(module, X)
    in_head = {id(parameter) for parameter in head.parameters()}
    trained = [
        name
        for name, parameter in module.named_parameters()
        if id(parameter) in in_head and parameter.requires_grad
    ]
    if not trained:
        raise ValueError(
            "parameters='head' moves the last linear layer, and that is not trained: "
            "its parameters do not require a gradient. Use parameters='all'."
        )
    return trained


def check_has_head(model, X, y):
    """Raise ValueError unless the module ends in a linear layer that is trained."""
    if getattr(model.estimator, "gives_losses", False):
        raise ValueError(
            "parameters='head' moves the last linear layer, and what is trained of "
            "this language model are adapters, or weights, below it. Leave "
            "parameters='all': that is all that was trained."
        )
    if model.frozen:
        head_parameters(model.module, as_tensor(X[:2], next(model.module.parameters())))
    elif model.stacks:
        problem = untrained(model.estimator, X, y)
        head_parameters(problem.model.evaluated, problem.X)


def told(plan):
    """Return how a network is solved for and units are left out, and why."""
    removal = f"removal {plan.removal}: {plan.removal_reason}"
    return f"{removal}; solver {plan.solver}: {plan.reason}"
