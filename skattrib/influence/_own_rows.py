"""What the unit of each training row does to the outcome of the row itself.

Steps without units are followed on their own rows alone, so that nothing has an entry
for each pair of rows.
"""

import numpy as np
import torch
from sklearn.utils import _safe_indexing

from skattrib._validation import memory_cap
from skattrib.engine._functional import chunks
from skattrib.engine._parameter_space import SHARE
from skattrib.engine._row_removal import RowRemovals

# Sparse rows that are multiplied by the steps of all of them.
_FEW = 32


def of_tangent(linear, without_each, y, outcome):
    """Return attributions (n,) of the training rows to their own units.

    Parameters
    ----------
    linear : LinearModel
    without_each : Tensor, RowRemovals or FullSystem
        What `LinearModel.without_each_unit` returned.
    y : ndarray
        Targets of the rows.
    outcome : str or callable
    """
    tangent, unit_of_row = linear.tangent, linear.units.unit_of_row
    targets = linear.trained.targets(y, tangent.outputs)
    function = linear.trained.loss.outcome(outcome)
    first_order = linear.removal == "influence"
    numbers = 6 * tangent.space.n_coordinates + len(unit_of_row)
    size = tangent.outputs.element_size() * numbers
    known = isinstance(without_each, RowRemovals)
    known = known and (without_each.has_all_outputs or not callable(outcome))
    found = torch.empty_like(tangent.outputs[:, 0])

    for rows, own, units in _by_unit(unit_of_row, int(memory_cap() / (SHARE * size))):
        index = torch.tensor(rows, device=tangent.outputs.device)
        outputs = tangent.outputs[index]
        if known:
            changes = without_each.own_changes[index]
        else:
            solved = linear.plan.by_query  # then no steps are stored
            steps = linear.steps(linear.units[units]) if solved else without_each[units]
            changes = tangent.space.row_outputs(steps[own], index)
        found[index] = _lost(function, outputs, changes, targets[index], first_order)
    return found.cpu().numpy()


def of_exact(exact, without_each, X, y, outcome):
    """Return the same of a model that is refitted exactly.

    Parameters
    ----------
    exact : ExactModel
    without_each : Moved or None
        What `ExactModel.without_each_unit` returned.
    X, y : array-like, ndarray
        Training rows and their targets.
    outcome : str or callable
    """
    trained, unit_of_row = exact.trained, exact.units.unit_of_row
    linear = trained.linear_outputs(X)
    targets, function = trained.encode(y, linear), trained.loss.outcome(outcome)
    first_order = exact.removal["attribute"] == "influence"
    found = torch.empty(len(unit_of_row), dtype=torch.double)

    def measured(outputs, index):
        return function(trained.link(outputs), targets[index])

    slope_of = torch.func.grad(lambda outputs, index: measured(outputs, index).sum())
    for rows, own, units in _by_unit(unit_of_row, exact.refits.rows_at_once()):
        moved = without_each[units] if without_each else exact.without_units(units)
        index = torch.tensor(rows)
        some = trained.query_rows(exact.refits, _safe_indexing(X, rows))
        changes = _own_changes(some, moved.steps, own)
        outputs = linear[index]
        if first_order:
            slope = slope_of(outputs, index)
            found[index] = -(changes * slope).sum(dim=-1)
            continue
        found[index] = measured(outputs, index) - measured(outputs + changes, index)
        for number, model in moved.retrained.items():
            # a class was left without rows
            for place in np.flatnonzero(own == number):
                one = index[place : place + 1]
                after = model.outputs(_safe_indexing(X, rows[place : place + 1]))
                now = measured(linear[one], one)
                found[one] = now - function(after, targets[one])
    return found.numpy()


def _by_unit(unit_of_row, size):
    """Yield some rows, sorted by unit, the unit of each among a few, and these few."""
    order = np.argsort(unit_of_row, kind="stable")
    for part in chunks(len(order), size):
        rows = order[part]
        units = unit_of_row[rows]
        yield rows, units - units[0], slice(units[0], units[-1] + 1)


def _lost(function, outputs, changes, targets, first_order):
    """Return outcomes minus those after changes of the outputs, row by row."""
    if not first_order:
        after = function(outputs + changes, targets)
        return function(outputs, targets) - after
    slope = torch.func.grad(lambda f: function(f, targets).sum())(outputs)
    return -(changes * slope).sum(dim=-1)


def _own_changes(rows, steps, own):
    """Return the change of the outputs (m, C) of each row by its own step."""
    if torch.is_tensor(rows):
        return torch.einsum("md,mdc->mc", rows, steps[own])
    changes = []
    for part in chunks(len(own), _FEW):
        few = torch.arange(len(own))[part]
        each = rows.take(few).outputs(steps[own[part]])
        changes.append(each.diagonal(dim1=0, dim2=1).T)
    return torch.cat(changes)
