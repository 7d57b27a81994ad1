"""Sets of queries of a tangent: one outcome of all of them, piece by piece."""

import torch

from skattrib._validation import as_tensor, memory_cap
from skattrib.engine._functional import chunks
from skattrib.engine._losses import set_slope

# Numbers alive per output of a query, while the outcome of a set is evaluated, in
# double precision.
_COPIES = 24


class TangentSet:
    """A set of queries of a linear model: its outcome, and attributions to the units.

    It answers as `QueryBatches` does, with one row. Gradients of queries are formed
    batch by batch; only their outputs are held at once, for as many steps as fit.

    Parameters
    ----------
    linear : LinearModel
    X, y : ndarray
        Queries.
    measure : SetMeasure
    n_steps : int
        Steps that they will be multiplied by, at most.
    """

    def __init__(self, linear, X, y, measure, n_steps):
        self._linear, self._tangent, self._X = linear, linear.tangent, X
        self._measure = measure
        self._targets = linear.trained.targets(y, self._tangent.outputs)
        self._parts = list(chunks(len(X), self._tangent.query_batch(n_steps)))
        self._single = None

    def _prepared(self, part):
        """Return outputs and gradients of some queries, and where they are."""
        rows = as_tensor(self._X[part], self._tangent.outputs)
        return *self._tangent.query(rows), part

    def _pieces(self):
        if len(self._parts) > 1:
            return map(self._prepared, self._parts)
        if self._single is None:
            self._single = [self._prepared(self._parts[0])]
        return iter(self._single)

    def _of(self, outputs):
        """Return the outcome (..., 1) of outputs (..., q, C)."""
        targets = self._targets
        return self._measure(
            outputs, targets.expand(*outputs.shape[:-2], *targets.shape)
        )

    def _present(self):
        return self._linear.trained.outputs(self._X).to(self._tangent.outputs)

    def _slope(self):
        """Return the gradient of the outcome in the outputs (q, C)."""
        return set_slope(self._measure, self._targets, self._present())

    def present_outcomes(self):
        """Return the outcome (1,) of the network as it is."""
        return self._of(self._present()).cpu().numpy()

    def outcomes(self, steps):
        """Return the outcomes (k, 1) after each step."""
        present, gained = self._gained(steps)
        return (present + gained)[:, None].cpu().numpy()

    def _gained(self, steps):
        """Return the outcome as it is, and by how much each step raises it (k,)."""
        return (self._gained_by_rows if self._measure.rows else self._of_whole)(steps)

    def _gained_by_rows(self, steps):
        """Add up outcomes of single queries, batch by batch."""
        present = gained = 0.0
        for outputs, gradients, part in self._pieces():
            moved = outputs + self._tangent.output_change(steps, gradients)
            targets = self._targets[part]
            before = self._measure.rows(outputs, targets).double()
            after = self._measure.rows(
                moved, targets.expand(len(moved), *targets.shape)
            ).double()
            present = present + before.sum() / len(self._X)
            gained = gained + (after - before).sum(dim=-1) / len(self._X)
        return present, gained

    def _of_whole(self, steps):
        """Evaluate outputs of all queries, for as many steps as they fit the memory."""
        like = self._tangent.outputs
        shape = len(self._X), like.shape[1]
        numbers = _COPIES * shape[0] * shape[1] * like.element_size()
        present, gained = like.new_empty(shape), []
        for few in chunks(len(steps), int(memory_cap() / numbers)):
            moved = like.new_empty(len(steps[few]), *shape)
            for outputs, gradients, part in self._pieces():
                present[part] = outputs
                moved[:, part] = outputs + self._tangent.output_change(
                    steps[few], gradients
                )
            gained.append(self._of(moved)[:, 0] - self._of(present))
        return self._of(present), torch.cat(gained)

    def attributions(self, without_each):
        """Return outcome minus outcome without each unit, (1, n_units).

        ``without_each`` is what `LinearModel.without_each_unit` returns.
        """
        if self._linear.solves_queries:
            return self._solved_for_queries(without_each)
        if self._linear.removal != "influence":
            return -self._gained(without_each)[1][None].cpu().numpy()

        slope, gradient = self._slope(), 0.0
        for _, gradients, part in self._pieces():
            flat = gradients.flatten(0, 1)
            gradient = gradient + slope[part].flatten() @ flat
        return -(without_each @ gradient)[None].cpu().numpy()

    def _solved_for_queries(self, system):
        """Return attributions at first order without any unit's step: one solve."""
        tangent, units = self._tangent, self._linear.units
        like, slope, gradient = tangent.outputs, self._slope(), 0.0
        for part in chunks(len(self._X), tangent.query_batch(1)):
            rows = as_tensor(self._X[part], like)
            gradient = gradient + tangent.pulled(rows, slope[part])
        effects = tangent.effects_of(gradient[None], system)
        unit_of_row = torch.tensor(units.unit_of_row, device=like.device)
        return tangent.summed(effects, unit_of_row, len(units)).cpu().numpy()
