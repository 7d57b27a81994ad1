"""The structures of trained ensembles, and queries that are asked of their refits."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from skattrib._progress import tqdm
from skattrib._validation import memory_cap
from skattrib.engine._losses import SetMeasure, set_slope
from skattrib.engine._trees import TreeRefits
from skattrib.models._retraining import measure

#: Slopes of outcomes on those of refits, of all queries: mean and standard deviation.
USUAL = 1.5, 0.6
# Of the slope of a query: deviation of its prior, as a share of its mean.
_OPEN = 0.35
# Weights of rows that structures are asked for again and again.
_MIDDLE, _CROSSED = "middle", "crossed"
# Values of leaves that are kept take 1 / _SHARE of the memory cap.
_SHARE = 8


@dataclass(frozen=True)
class Structure:
    """A trained ensemble, and the refits of its leaves to all training rows."""

    model: Any
    refits: TreeRefits

    def splits(self):
        """Say whether any tree has more than one leaf."""
        stages = self.refits.ensemble.stages
        return any(tree.n_leaves > 1 for stage in stages for tree in stage)


def read_structure(model, X, y, own, trained):
    """Return the structure of a fitted model.

    Parameters
    ----------
    model : TreeModel
    X, y
        All training rows.
    own, trained : ndarray of shape (n,)
        Weights of the rows where all are present, and those it was trained with.
    """
    ensemble = model.ensemble(X, y, own, trained)
    return Structure(
        model, TreeRefits(ensemble, model.leaves(X), model.training_targets(y))
    )


class Structures:
    """Structures that are averaged over.

    Parameters
    ----------
    whole : TreeModel
        Fitted to all rows: what targets and outcomes are told by.
    each : list of Structure
    weights : ndarray of shape (n_structures, n)
        Of the rows, those they were trained with.
    middle : ndarray of shape (n,)
        Weights of the rows at which derivatives are taken.
    verbose : int

    Attributes
    ----------
    sets : ndarray of shape (n_structures,)
        0 or 1: models of either set are predicted by structures of the other.
        Complementary halves are in the same set.
    """

    def __init__(self, whole, each, weights, middle, verbose=0):
        self.whole, self.each, self.weights = whole, each, weights
        self.middle, self.verbose = middle, verbose
        numbers = np.arange(len(each))
        self.sets = (numbers // 2 if len(each) > 3 else numbers) % 2
        self._known = {}

    def learn(self, *, crossed):
        """Refit each structure to what will be asked again, if it fits the memory.

        ``crossed``: also to the weights of the other set.
        """
        room = memory_cap() / _SHARE / len(self.each)
        label = "structures refitted"
        for i, one in enumerate(tqdm(self.each, desc=label, disable=not self.verbose)):
            n_values = one.refits.ensemble.n_values
            for which in (_MIDDLE, _CROSSED)[: 1 + crossed]:
                if 8 * n_values * len(self._weights(which, i)) <= room:
                    self._known[which, i] = self._refitted(which, i)

    def _weights(self, which, i):
        """Return weights of the rows: the middle, or those of the other set."""
        if which == _MIDDLE:
            return self.middle[None]
        return self.weights[self.sets != self.sets[i]]

    def _refitted(self, which, i):
        return self.each[i].refits.values(self._weights(which, i))

    def repeated(self, which, i):
        """Return values of leaves for `_weights`, remembered or computed again."""
        known = self._known.get((which, i))
        return self._refitted(which, i) if known is None else known

    def ask(self, X, y, outcome):
        """Return queries that are asked of all structures."""
        return TreeQueries(self, X, y, outcome)


class TreeQueries:
    """Queries, with the leaves that they fall into.

    Parameters
    ----------
    structures : Structures
    X, y
        Queries.
    outcome : str or callable
    """

    def __init__(self, structures, X, y, outcome):
        self._structures, self._X = structures, X
        self._outcome, self._whole = outcome, structures.whole
        self._leaves = [one.model.leaves(X) for one in structures.each]
        self._targets = self._whole.encode(y, torch.empty(0, dtype=torch.float64))

    def _each(self, label):
        pairs = list(zip(self._structures.each, self._leaves, strict=True))
        return tqdm(pairs, desc=label, disable=not self._structures.verbose)

    def raw(self, weights):
        """Return mean raw outputs (m, q, K) after refits for weights (m, n)."""
        total = 0.0
        for one, leaves in self._each("refits"):
            total = total + one.refits.outputs(weights, leaves)
        return total / len(self._leaves)

    def _repeated(self, which, i):
        """Return raw outputs of one structure, of weights that are asked again."""
        return self._structures.repeated(which, i).outputs(self._leaves[i])

    def in_the_middle(self):
        """Return outcomes (n_outcomes,) of mean refits to the middle weights."""
        return self.measured(self._middle()[None])[0]

    def _middle(self):
        found = [self._repeated(_MIDDLE, i)[0] for i in range(len(self._leaves))]
        return np.mean(found, axis=0)

    def measured(self, raw):
        """Return outcomes (m, q) of raw outputs (m, q, K), those of a set (m, 1)."""
        outputs = self._whole.link(torch.as_tensor(raw))
        return measure(outputs, self._targets, self._outcome, self._whole.loss)

    def outcomes(self, weights):
        """Return outcomes of mean refits, for weights (m, n) of the rows."""
        return self.measured(self.raw(weights))

    def derivatives(self):
        """Yield the derivatives (n_outcomes, n) in weights of rows, by structure.

        Of the outcome of mean outputs, where all rows have their middle weights.
        """
        structures = self._structures
        middle = structures.middle
        slopes = self._slopes(self._middle())
        owners = np.arange(len(slopes))
        if isinstance(self._whole.loss.outcome(self._outcome), SetMeasure):
            owners = np.zeros_like(owners)
        for one, leaves in self._each("derivatives"):
            yield one.refits.derivatives(middle, leaves, slopes, owners)

    def _slopes(self, raw):
        """Return derivatives (q, K) of outcomes in raw outputs."""
        with torch.enable_grad():
            leaf = torch.tensor(raw, requires_grad=True)
            outputs = self._whole.link(leaf)
            function = self._whole.loss.outcome(self._outcome)
            if isinstance(function, SetMeasure):
                slope = set_slope(function, self._targets, outputs.detach())
                total = (outputs * slope).sum()
            else:
                total = function(outputs, self._targets).sum()
            (slopes,) = torch.autograd.grad(total, leaf)
        return slopes.numpy()

    # ------------------------------------------------- structures by each other
    def by_each_other(self):
        """Return outcomes of the trained ensembles, and as the others predict them.

        Returns
        -------
        trained, predicted : ndarray of shape (n_structures, n_outcomes)
            Predicted by mean refits in the structures of the other set.
        """
        structures, sets = self._structures, self._structures.sets
        own = np.array([one.model.raw_outputs(self._X) for one in structures.each])
        predicted = np.empty_like(own)
        for one in (0, 1):
            others = np.flatnonzero(sets != one)
            predicted[sets == one] = np.mean(
                [self._repeated(_CROSSED, i) for i in others], axis=0
            )
        return self.measured(own), self.measured(predicted)


def pooled_slope(trained, predicted, asked):
    """Return the slope of outcomes (m, q) on predicted ones, of all queries together.

    Of those that are ``asked`` (m, q): training rows are like queries for models that
    were trained without them. A few models say little: it is drawn to what is usual.
    """
    asked = asked & np.isfinite(trained) & np.isfinite(predicted)
    n = np.maximum(asked.sum(axis=0), 1)
    x, d = (
        np.where(asked, part - np.where(asked, part, 0).sum(axis=0) / n, 0)
        for part in (predicted, trained)
    )
    mean, deviation = USUAL
    noise = 0.0
    for axis in (0, 1):  # without each of the queries, and of the models
        products, squares = (x * d).sum(axis=axis), np.square(x).sum(axis=axis)
        others = squares.sum() - squares
        if others.min() < np.finfo(float).tiny:
            return mean
        without = (products.sum() - products) / others
        noise += without.var() * (len(without) - 1)
    own = products.sum() / squares.sum()
    return float((deviation**2 * own + noise * mean) / (deviation**2 + noise))


def slope_prior(pooled):
    """Return mean and standard deviation of slopes of single queries."""
    middle = max(pooled, 0.1)
    return middle, _OPEN * middle
