"""What is kept of a fitted ensemble: its splits, and how leaf values come about."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skattrib.engine._row_weights import RowWeighting
from skattrib.engine._trees._objectives import Objective

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Monotone:
    """Splits of a tree on columns that outputs must rise or fall with.

    Attributes
    ----------
    signs : int array of shape (n_inner,)
        Of each inner node: 1 if values must not fall from its first child to its
        second, -1 if they must not rise, 0 for neither.
    """

    signs: IntArray


@dataclass(frozen=True)
class Tree:
    """One tree. Its nodes are its leaves, from 0, and then its inner nodes.

    Attributes
    ----------
    children : int array of shape (n_inner, 2)
        Nodes below each inner node, which comes before inner nodes below it: the
        first inner node is the root.
    values : ndarray of shape (n_leaves,) or (n_leaves, n_outputs)
        What each leaf adds to the output, as fitted; or to all, of a tree that they
        share.
    rate : float
        What the optimum of a leaf is multiplied by: the learning rate.
    penalty : float or ndarray of shape (n_nodes,)
        Squared penalty on the value of a node; one for each if they differ.
    monotone : Monotone or None
        Bounds on values.
    """

    children: IntArray
    values: FloatArray
    rate: float = 1.0
    penalty: float | FloatArray = 0.0
    monotone: Monotone | None = None

    @property
    def n_leaves(self) -> int:
        """Number of leaves."""
        return len(self.values)

    @property
    def n_nodes(self) -> int:
        """Number of nodes."""
        return self.n_leaves + len(self.children)

    def penalties(self) -> float | FloatArray:
        """Return the penalties of all nodes, as a column if they differ."""
        if np.ndim(self.penalty) == 0:
            return float(np.asarray(self.penalty))
        return np.asarray(self.penalty, dtype=float)[:, None]


@dataclass(frozen=True)
class Ensemble:
    """Trees in the order of their training, one for each output of an iteration.

    Attributes
    ----------
    stages : tuple of tuples of Tree
        Of each iteration, the tree of each output; one tree whose leaves have a value
        for each output where ``objective`` has more.
    objective : Objective
        What leaf values minimise.
    initial : ndarray of shape (n_outputs,)
        Outputs before the first iteration, as fitted.
    moves : bool
        Whether those are the best constant, that moves with the weights of rows.
    l1 : float
        Absolute penalty on the value of a leaf.
    largest : float
        Bound on the size of a value, before the rate; 0 for none.
    weighting : RowWeighting
        Weights in the loss, from those of the rows.
    initial_weighting : RowWeighting or None
        The same for ``initial``; None as ``weighting``.
    """

    stages: tuple[tuple[Tree, ...], ...]
    objective: Objective
    initial: FloatArray
    moves: bool = True
    l1: float = 0.0
    largest: float = 0.0
    weighting: RowWeighting = field(default_factory=RowWeighting)
    initial_weighting: RowWeighting | None = None

    @property
    def n_outputs(self) -> int:
        """Number of outputs."""
        return self.objective.n_outputs

    @property
    def n_values(self) -> int:
        """Number of values of all leaves."""
        n_leaves = [[tree.n_leaves for tree in stage] for stage in self.stages]
        shared = [self.n_outputs // len(stage) for stage in self.stages]
        return sum(k * sum(n) for k, n in zip(shared, n_leaves, strict=True))

    def as_fitted(self, leaves: IntArray) -> FloatArray:
        """Return outputs (q, n_outputs) by the fitted values.

        ``leaves`` (n_iterations, n_outputs or 1, q) are those that rows fall into.
        """
        found = np.tile(self.initial, (leaves.shape[2], 1))
        for stage, of_stage in zip(self.stages, leaves, strict=True):
            for k, tree in enumerate(stage):
                if tree.values.ndim == 1:
                    found[:, k] += tree.values[of_stage[k]]
                else:
                    found += tree.values[of_stage[k]]
        return found


def compacted(left: IntArray, right: IntArray) -> tuple[IntArray, IntArray]:
    """Return the children of inner nodes, and the number of each leaf.

    Parameters
    ----------
    left, right : int array of shape (n_nodes,)
        Nodes below each node, as a library numbers them; below 0 at leaves. A node
        comes before those below it.

    Returns
    -------
    children : int array of shape (n_inner, 2)
        As `Tree` has them.
    numbers : int array of shape (n_nodes,)
        New number of each node.
    """
    is_leaf = left < 0
    n_leaves = int(is_leaf.sum())
    numbers = np.empty(len(left), dtype=np.intp)
    numbers[is_leaf] = np.arange(n_leaves)
    numbers[~is_leaf] = n_leaves + np.arange(len(left) - n_leaves)
    inner = np.column_stack([left[~is_leaf], right[~is_leaf]]).astype(np.intp)
    return numbers[inner], numbers
