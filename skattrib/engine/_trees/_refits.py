"""Refit the leaves of an ensemble for other weights of its rows, and differentiate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from skattrib._validation import memory_cap
from skattrib.engine._functional import chunks
from skattrib.engine._row_weights import RowWeighting
from skattrib.engine._trees._structure import Ensemble
from skattrib.engine._trees._values import Term, leaf_terms, leaf_values

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.integer[Any]]

# Arrays of rows and weightings at once, for each output.
_COPIES = 8
# Pairs of leaves that are counted at once: what fits a cache.
_AT_ONCE = 2**18


class TreeRefits:
    """An ensemble and the rows that the values of its leaves are computed from.

    Parameters
    ----------
    ensemble : Ensemble
    leaves : int array of shape (n_iterations, n_outputs, n)
        Leaf of each row in each tree; (n_iterations, 1, n) where outputs share trees.
    y : ndarray of shape (n,) or (n, n_outputs)
        Codes of classes, or numbers.
    """

    def __init__(self, ensemble: Ensemble, leaves: IntArray, y: FloatArray) -> None:
        self.ensemble = ensemble
        largest = max(
            (tree.n_leaves for stage in ensemble.stages for tree in stage), default=1
        )
        # by tree: libraries give them by row
        self.leaves = leaves.astype(np.min_scalar_type(largest), order="C")
        self.targets = ensemble.objective.targets(y)

    def _weighted(self, weights: FloatArray, weighting: RowWeighting) -> FloatArray:
        found: FloatArray = weighting(torch.as_tensor(weights)).numpy()
        return found

    def _initial(self, weights: FloatArray, in_loss: FloatArray) -> FloatArray:
        """Return the outputs (n_outputs, m) before the first tree."""
        ensemble = self.ensemble
        if not ensemble.moves:
            return np.tile(ensemble.initial[:, None], len(weights))
        if ensemble.initial_weighting is not None:
            in_loss = self._weighted(weights, ensemble.initial_weighting)
        total = in_loss.sum(axis=1)
        # where nothing is left, as of all rows
        in_loss = np.where(total[:, None] > 0, in_loss, 1.0)
        means = self.targets @ in_loss.T / in_loss.sum(axis=1)
        return ensemble.objective.constant(means)

    def outputs(self, weights: FloatArray, leaves: IntArray) -> FloatArray:
        """Return outputs (m, q, n_outputs) of queries after refits.

        Parameters
        ----------
        weights : ndarray of shape (m, n)
            Of the rows.
        leaves : int array of shape (n_iterations, n_outputs or 1, q)
            Of the queries.
        """
        n_outputs, n = self.targets.shape
        at_once = int(memory_cap() / (8 * _COPIES * n_outputs * max(n, 1)))
        found = [
            self.values(weights[part]).outputs(leaves)
            for part in chunks(len(weights), max(1, at_once))
        ]
        return np.concatenate(found)

    def values(self, weights: FloatArray) -> RefittedLeaves:
        """Return the values of all leaves for weights (m, n) of the rows."""
        ensemble, objective = self.ensemble, self.ensemble.objective
        in_loss = self._weighted(weights, ensemble.weighting)
        of_rows = np.ascontiguousarray(in_loss.T)
        initial = self._initial(weights, in_loss)
        n, targets = self.targets.shape[1], self.targets[:, :, None]
        shape = (objective.n_outputs, n, len(weights))
        F = np.empty(shape if objective.follows else (shape[0], n, 1))
        F[:] = initial[:, None] if objective.follows else 0.0
        found = []
        for t, stage in enumerate(ensemble.stages):
            g, h = objective.gradients(F, targets)
            of_stage = []
            for k in range(objective.n_outputs):
                j = min(k, len(stage) - 1)
                tree, of_tree = stage[j], self.leaves[t, j]
                if k == j:
                    sums = _sums_of(of_tree, tree.n_leaves)
                if k == j or not objective.quadratic:
                    H = sums @ (of_rows if objective.quadratic else of_rows * h[k])
                values = leaf_values(ensemble, tree, sums @ (of_rows * g[k]), H)
                of_stage.append(values)
                if objective.follows:
                    F[k] += values[of_tree]
            found.append(of_stage)
        return RefittedLeaves(initial, found)

    # ------------------------------------------------------------ derivatives
    def derivatives(
        self,
        weights: FloatArray,
        leaves: IntArray,
        slopes: FloatArray,
        owners: IntArray,
    ) -> FloatArray:
        """Return derivatives (n_outcomes, n) in the weights of the rows.

        Parameters
        ----------
        weights : ndarray of shape (n,)
            Of the rows, where the derivative is taken.
        leaves : int array of shape (n_iterations, n_outputs or 1, q)
            Of the queries.
        slopes : ndarray of shape (q, n_outputs)
            Derivatives of outcomes in the outputs of queries.
        owners : int array of shape (q,)
            Outcome that each query belongs to.
        """
        sweep = _Sweep(self, weights, leaves, slopes, owners)
        found = sweep.run()
        initial = sweep.in_initial()
        ensemble = self.ensemble
        if ensemble.initial_weighting is None:
            return self._pulled(ensemble.weighting, weights, found + initial)
        return self._pulled(ensemble.weighting, weights, found) + self._pulled(
            ensemble.initial_weighting, weights, initial
        )

    def _pulled(
        self, weighting: RowWeighting, weights: FloatArray, found: FloatArray
    ) -> FloatArray:
        """Return derivatives in weights of rows from those in weights in the loss."""
        at = torch.as_tensor(weights)[None]
        of_rows = weighting.pullback(at, torch.as_tensor(found.T[None]))
        in_weights: FloatArray = of_rows[0].numpy()
        return in_weights


@dataclass(frozen=True)
class RefittedLeaves:
    """Values of the leaves of an ensemble, for several weightings of its rows.

    Attributes
    ----------
    initial : ndarray of shape (n_outputs, m)
        Outputs before the first tree.
    values : list of lists of ndarray of shape (n_leaves, m)
        Of each iteration and output.
    """

    initial: FloatArray
    values: list[list[FloatArray]]

    def outputs(self, leaves: IntArray) -> FloatArray:
        """Return outputs (m, q, n_outputs) of queries in these leaves."""
        asked = np.repeat(self.initial[:, None], leaves.shape[2], axis=1)
        last = leaves.shape[1] - 1
        for stage, of_stage in zip(self.values, leaves, strict=True):
            for k, values in enumerate(stage):
                asked[k] += values[of_stage[min(k, last)]]
        return asked.transpose(2, 1, 0)


def _sums_of(leaves: IntArray, n_leaves: int) -> Any:
    """Return what sums rows by leaves, as a sparse matrix (n_leaves, n)."""
    n = len(leaves)
    parts = np.ones(n), leaves.astype(np.int32), np.arange(n + 1, dtype=np.int32)
    return sparse.csc_array(parts, shape=(n_leaves, n))


def _column(leaves: IntArray, weights: FloatArray, n_leaves: int) -> FloatArray:
    """Return sums of weights by leaves, as a column."""
    found: FloatArray = np.asarray(np.bincount(leaves, weights, n_leaves), dtype=float)
    return found[:, None]


class _Sweep:
    """One sweep backwards through the trees, for all outcomes at once.

    What is left of a row's output after a tree is a sum over the trees that follow, of
    a number for the leaf that the row is in. So a tree needs of the rows only how many
    of each of its leaves are in each leaf of a tree that follows, weighted: the work
    hardly depends on the number of outcomes.
    """

    def __init__(
        self,
        refits: TreeRefits,
        weights: FloatArray,
        leaves: IntArray,
        slopes: FloatArray,
        owners: IntArray,
    ) -> None:
        self.refits, self.weights = refits, weights
        self.ensemble, self.objective = refits.ensemble, refits.ensemble.objective
        in_loss = refits._weighted(weights[None], self.ensemble.weighting)
        self.in_loss, self.asked = in_loss[0], leaves
        self.slopes, self.owners = slopes, owners
        self.n_outcomes = int(owners.max()) + 1
        n_outputs = self.objective.n_outputs
        # derivatives in the sum of the outputs of all rows
        self.total = np.zeros((n_outputs, self.n_outcomes))
        self.start = refits._initial(weights[None], in_loss)
        self.starts = [
            np.cumsum([0, *(_tree_of(stage, k).n_leaves for stage in self.stages)])
            for k in range(n_outputs)
        ]

        # of each row, leaves of all trees, by place, times the most leaves of one
        self.width, self.scaled = 0, []
        if self.objective.follows:
            self.width = max(tree.n_leaves for stage in self.stages for tree in stage)
            for k, starts in enumerate(self.starts):
                places = refits.leaves[:, k].astype(np.intp)
                places += starts[:-1, None]
                places *= self.width
                self.scaled.append(places)

    @property
    def stages(self) -> tuple[tuple[Any, ...], ...]:
        """The trees."""
        return self.ensemble.stages

    def run(self) -> FloatArray:
        """Return derivatives (n, n_outcomes) in weights in the loss."""
        if not self.objective.follows:
            return self._independent()
        refits, targets = self.refits, self.refits.targets
        before, sums = self._forward()
        pulled = [self._asked(k) for k in range(self.objective.n_outputs)]
        rows = _RowProducts(targets.shape[1], self.n_outcomes)
        for t in range(len(self.stages) - 1, -1, -1):
            g, h = self.objective.gradients(before[t], targets)
            slope_g, slope_h = self.objective.slopes(before[t], targets)
            for k, tree in enumerate(self.stages[t]):
                of_tree = refits.leaves[t, k].astype(np.intp)
                here = slice(*self.starts[k][[t, t + 1]])
                for term in leaf_terms(
                    self.ensemble, tree, *sums[t][k], pulled[k][here]
                ):
                    second = term.second[of_tree]
                    rows.add(of_tree, term.first * g[k] + second * h[k], term.values)
                    for m in range(self.objective.n_outputs):
                        factor = term.first * slope_g[k, m] + second * slope_h[k, m]
                        flow = self.in_loss * factor
                        self._push(pulled[m], m, t, of_tree, flow, term)
        return rows.total()

    def _forward(self) -> tuple[list[FloatArray], list[list[tuple[Any, Any]]]]:
        """Return outputs before each iteration, and the sums of its leaves."""
        targets, in_loss = self.refits.targets, self.in_loss
        F = np.repeat(self.start, targets.shape[1], axis=1)
        before, sums = [], []
        for t, stage in enumerate(self.stages):
            g, h = self.objective.gradients(F, targets)
            before.append(F)
            F, of_stage = F.copy(), []
            for k, tree in enumerate(stage):
                of_tree = self.refits.leaves[t, k].astype(np.intp)
                G, H = (
                    _column(of_tree, in_loss * part[k], tree.n_leaves)
                    for part in (g, h)
                )
                F[k] += leaf_values(self.ensemble, tree, G, H)[of_tree, 0]
                of_stage.append((G, H))
            sums.append(of_stage)
        return before, sums

    def _asked(self, k: int) -> FloatArray:
        """Return derivatives (leaves of all trees, n_outcomes) in their values."""
        n_stages, n_asked = len(self.stages), len(self.owners)
        j = min(k, self.asked.shape[1] - 1)
        rows = self.asked[:, j].astype(np.intp) + self.starts[k][:-1, None]
        columns = np.broadcast_to(self.owners, (n_stages, n_asked))
        values = np.broadcast_to(self.slopes[:, k], (n_stages, n_asked))
        parts = values.ravel(), (rows.ravel(), columns.ravel())
        shape = int(self.starts[k][-1]), self.n_outcomes
        found: FloatArray = sparse.coo_array(parts, shape=shape).toarray()
        return found

    def _push(
        self,
        pulled: FloatArray,
        m: int,
        t: int,
        of_tree: IntArray,
        flow: FloatArray,
        term: Term,
    ) -> None:
        """Add what a tree passes on to those before it, of output m."""
        n_leaves, n = len(term.values), len(of_tree)
        self.total[m] += np.bincount(of_tree, flow, n_leaves) @ term.values
        starts, size = self.starts[m], max(1, _AT_ONCE // n)
        each = np.tile(flow, min(size, t))
        for part in chunks(t, size):
            first, last = starts[part.start], starts[part.stop]
            pairs = self.scaled[m][part] + (of_tree - first * self.width)
            length = (last - first) * self.width
            together = np.bincount(pairs.ravel(), each[: pairs.size], length)
            by_leaf = together.reshape(-1, self.width)[:, :n_leaves]
            pulled[first:last] += by_leaf @ term.values

    def _independent(self) -> FloatArray:
        """Return derivatives where no tree follows another."""
        refits, in_loss = self.refits, self.in_loss
        n_outputs, n = refits.targets.shape
        found = np.zeros((n, self.n_outcomes))
        for t, stage in enumerate(self.stages):
            for k in range(n_outputs):
                j = min(k, len(stage) - 1)
                tree, of_tree = stage[j], refits.leaves[t, j].astype(np.intp)
                asked = self.slopes[:, k], (self.asked[t, j], self.owners)
                shape = tree.n_leaves, self.n_outcomes
                pulled = sparse.coo_array(asked, shape=shape).toarray()
                G = -_column(of_tree, in_loss * refits.targets[k], tree.n_leaves)
                H = _column(of_tree, in_loss, tree.n_leaves)
                for term in leaf_terms(self.ensemble, tree, G, H, pulled):
                    factor = -term.first * refits.targets[k] + term.second[of_tree]
                    found += factor[:, None] * term.values[of_tree]
        return found

    def in_initial(self) -> FloatArray:
        """Return derivatives (n, n_outcomes) in weights of the first outputs."""
        refits, ensemble = self.refits, self.ensemble
        n = refits.targets.shape[1]
        if not ensemble.moves:
            return np.zeros((n, self.n_outcomes))
        weights = self.in_loss
        if ensemble.initial_weighting is not None:
            weighting = ensemble.initial_weighting
            weights = refits._weighted(self.weights[None], weighting)[0]
        total = weights.sum()
        means = refits.targets @ weights / total
        asked = np.zeros((self.n_outcomes, self.objective.n_outputs))
        np.add.at(asked, self.owners, self.slopes)
        pulled = (asked.T + self.total).T @ self.objective.constant_slopes(means)
        found: FloatArray = (refits.targets - means[:, None]).T / total @ pulled.T
        return found


def _tree_of(stage: tuple[Any, ...], k: int) -> Any:
    return stage[min(k, len(stage) - 1)]


class _RowProducts:
    """Sums over terms of a factor of each row times the values of its leaf."""

    def __init__(self, n: int, n_outcomes: int) -> None:
        self._found = np.zeros((n, n_outcomes))
        self._leaves: list[IntArray] = []
        self._factors: list[FloatArray] = []
        self._values: list[FloatArray] = []

    def add(self, leaves: IntArray, factors: FloatArray, values: FloatArray) -> None:
        """Add a term."""
        start = sum(map(len, self._values))
        self._leaves.append((leaves + start).astype(np.int32))
        self._factors.append(factors)
        self._values.append(values)
        if len(self._values) == 64:
            self._flush()

    def _flush(self) -> None:
        if not self._values:
            return
        n, width = len(self._found), len(self._values)
        values = np.concatenate(self._values)
        parts = (
            np.column_stack(self._factors).ravel(),
            np.column_stack(self._leaves).ravel(),
            np.arange(0, n * width + 1, width),
        )
        self._found += sparse.csr_array(parts, shape=(n, len(values))) @ values
        self._leaves, self._factors, self._values = [], [], []

    def total(self) -> FloatArray:
        """Return the sums (n, n_outcomes)."""
        self._flush()
        return self._found
