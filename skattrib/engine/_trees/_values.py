"""Values of leaves from sums of derivatives, and how they move with these."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skattrib.engine._trees._structure import Ensemble, Tree

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Term:
    """A part of the derivative in the weight of a row, by its leaf.

    The derivative is ``values[leaf] · (first · g + second[leaf] · h)``.
    """

    values: FloatArray
    first: float
    second: FloatArray


def optimum(
    ensemble: Ensemble, penalty: float | FloatArray, G: FloatArray, H: FloatArray
) -> FloatArray:
    """Return the values of nodes (k, m) before the rate, 0 where there is nothing."""
    total = H + penalty
    size = np.sign(G) * np.maximum(np.abs(G) - ensemble.l1, 0) if ensemble.l1 else G
    found: FloatArray = -np.divide(size, total, out=np.zeros_like(G), where=total > 0)
    if ensemble.largest:
        np.clip(found, -ensemble.largest, ensemble.largest, out=found)
    return found


def _slopes(
    ensemble: Ensemble, penalty: float | FloatArray, G: FloatArray, H: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return the derivatives of `optimum` in G and in H."""
    total, value = H + penalty, optimum(ensemble, penalty, G, H)
    inverse: FloatArray = np.divide(
        1.0, total, out=np.zeros_like(total), where=total > 0
    )
    moves = np.abs(G) > ensemble.l1 if ensemble.l1 else np.ones(G.shape, dtype=bool)
    if ensemble.largest:
        moves &= np.abs(value) < ensemble.largest
    by_G: FloatArray = -inverse * moves
    return by_G, value * by_G


def leaf_values(
    ensemble: Ensemble, tree: Tree, G: FloatArray, H: FloatArray
) -> FloatArray:
    """Return what leaves add to the output (n_leaves, m), from sums over their rows."""
    if tree.monotone is None and (H > 0).all():
        penalty = tree.penalties()
        if isinstance(penalty, np.ndarray):
            penalty = penalty[: tree.n_leaves]
        return tree.rate * optimum(ensemble, penalty, G, H)
    return tree.rate * _Nodes(ensemble, tree, G, H).values[: tree.n_leaves]


def leaf_terms(
    ensemble: Ensemble, tree: Tree, G: FloatArray, H: FloatArray, pulled: FloatArray
) -> list[Term]:
    """Return the derivatives in weights of rows of ``(pulled * values).sum()``.

    Sums are (n_leaves, 1), ``pulled`` is (n_leaves, q).
    """
    if tree.monotone is not None or not (H > 0).all():
        in_G, in_H = _Nodes(ensemble, tree, G, H).pull(tree.rate * pulled)
        nothing, one = np.zeros(tree.n_leaves), np.ones(tree.n_leaves)
        return [Term(in_G, 1.0, nothing), Term(in_H, 0.0, one)]
    penalty = tree.penalties()
    if isinstance(penalty, np.ndarray):
        penalty = penalty[: tree.n_leaves]
    by_G, by_H = _slopes(ensemble, penalty, G, H)
    ratio = np.divide(by_H, by_G, out=np.zeros_like(by_H), where=by_G != 0)
    return [Term(tree.rate * by_G * pulled, 1.0, ratio[:, 0])]


class _Nodes:
    """Values of all nodes of a tree: where leaves are empty, or values have bounds.

    An empty leaf has the value of the node above. Below a monotone split values stay on
    their side of the mean of its two.
    """

    def __init__(
        self, ensemble: Ensemble, tree: Tree, G: FloatArray, H: FloatArray
    ) -> None:
        self.ensemble, self.tree = ensemble, tree
        n_leaves, children = tree.n_leaves, tree.children
        self.G, self.H = (
            np.concatenate([part, np.zeros((len(children), part.shape[1]))])
            for part in (G, H)
        )
        for j in range(len(children) - 1, -1, -1):
            for sums in (self.G, self.H):
                sums[n_leaves + j] = sums[children[j]].sum(axis=0)
        raw = optimum(ensemble, tree.penalties(), self.G, self.H)
        root = n_leaves if len(children) else 0
        shape = raw.shape
        self.values = raw.copy()
        # where a value is from: below 0 its own, else the node above, or the inner
        # node whose mean is its bound
        self.above = np.zeros(shape, dtype=bool)
        self.bound = np.full(shape, -1)
        self.above[root] = False
        low, high = np.full(shape, -np.inf), np.full(shape, np.inf)
        of_low, of_high = np.full(shape, -1), np.full(shape, -1)
        signs = None if tree.monotone is None else tree.monotone.signs
        for j, pair in enumerate(children):
            node = n_leaves + j
            for child in pair:
                value = np.clip(raw[child], low[node], high[node])
                self.bound[child] = np.where(
                    raw[child] < low[node],
                    of_low[node],
                    np.where(raw[child] > high[node], of_high[node], -1),
                )
                empty = self.H[child] <= 0
                self.above[child] = empty
                self.values[child] = np.where(empty, self.values[node], value)
                low[child], high[child] = low[node], high[node]
                of_low[child], of_high[child] = of_low[node], of_high[node]
            if signs is not None and signs[j]:
                first, second = pair if signs[j] > 0 else pair[::-1]
                middle = self.values[pair].mean(axis=0)
                high[first], of_high[first] = middle, j
                low[second], of_low[second] = middle, j

    def pull(self, pulled: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return derivatives in the sums of leaves, of one weighting."""
        tree = self.tree
        n_leaves, children = tree.n_leaves, tree.children
        n_inner = len(children)
        in_values = np.concatenate([pulled, np.zeros((n_inner, pulled.shape[1]))])
        in_middles = np.zeros((n_inner, pulled.shape[1]))
        in_raw = np.zeros_like(in_values)
        for j in range(n_inner - 1, -1, -1):
            for child in children[j]:
                in_values[child] += in_middles[j] / 2
            for child in children[j]:
                if self.above[child, 0]:
                    in_values[n_leaves + j] += in_values[child]
                elif (bound := self.bound[child, 0]) >= 0:
                    in_middles[bound] += in_values[child]
                else:
                    in_raw[child] = in_values[child]
        root = n_leaves if n_inner else 0
        in_raw[root] = in_values[root]
        by_G, by_H = _slopes(self.ensemble, tree.penalties(), self.G, self.H)
        in_G, in_H = by_G * in_raw, by_H * in_raw
        for j, pair in enumerate(children):
            for sums in (in_G, in_H):
                sums[pair] += sums[n_leaves + j]
        return in_G[:n_leaves], in_H[:n_leaves]
