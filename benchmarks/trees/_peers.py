"""What others do: BoostIn, a kernel of trees, and Shapley values of neighbours.

BoostIn and the kernel (TREX, without its surrogate) are those of arXiv:2205.00359, on
the structure of the model itself, which they read from a fitted attributor of it.
"""

import numpy as np
from sklearn.preprocessing import StandardScaler

from skattrib.engine._trees._values import leaf_terms, leaf_values  # no public name


class OwnTrees:
    """The model's own trees, and queries in them.

    Parameters
    ----------
    influence : TreeInfluence
        Fitted, with one structure.
    X, y
        Queries.
    """

    def __init__(self, influence, X, y):
        # no public names
        (structure,) = influence._structures.each
        self.refits, model = structure.refits, structure.model
        self.ensemble = self.refits.ensemble
        self.asked, self.of_query = model.leaves(X), y
        self.targets = self.ensemble.objective.targets(model.training_targets(y))
        queries = influence._structures.ask(
            X, y, influence._checked_outcome(influence.outcome)
        )
        ones = np.ones(self.refits.targets.shape[1])
        self.slopes = queries._slopes(queries.raw(ones[None])[0]).T

    def _stages(self):
        """Yield stages, with outputs of rows and queries before each."""
        F, asked = (
            np.repeat(self.ensemble.initial[:, None], part.shape[1], axis=1)
            for part in (self.refits.targets, self.targets)
        )
        objective = self.ensemble.objective
        for t, stage in enumerate(self.ensemble.stages):
            g, h = objective.gradients(F, self.refits.targets)
            sums = []
            for k, tree in enumerate(stage):
                leaves = self.refits.leaves[t, k]
                sums.append(
                    [
                        np.bincount(leaves, part[k], tree.n_leaves)[:, None]
                        for part in (g, h)
                    ]
                )
            yield t, stage, (g, h), sums, asked
            F, asked = F.copy(), asked.copy()
            for k, tree in enumerate(stage):
                values = leaf_values(self.ensemble, tree, *sums[k])[:, 0]
                F[k] += values[self.refits.leaves[t, k]]
                asked[k] += values[self.asked[t, k]]
        self.outputs = F

    def boost_in(self):
        """Return BoostIn (q, n): what each leaf value does to the loss at its time.

        The row's effect on the leaf is that with the outputs before it as they are.
        """
        found = 0.0
        for t, stage, (g, h), sums, asked in self._stages():
            pull = -self.ensemble.objective.gradients(asked, self.targets)[0]
            for k, tree in enumerate(stage):
                pulled = np.zeros((tree.n_leaves, len(self.of_query)))
                pulled[self.asked[t, k], np.arange(len(self.of_query))] = pull[k]
                leaves = self.refits.leaves[t, k]
                for term in leaf_terms(self.ensemble, tree, *sums[k], pulled):
                    factor = term.first * g[k] + term.second[leaves] * h[k]
                    found = found + factor[:, None] * term.values[leaves]
        return found.T

    def tree_kernel(self):
        """Return trees whose leaf is shared, times residuals and slopes, (q, n)."""
        objective = self.ensemble.objective
        if objective.follows:
            for _ in self._stages():
                pass
            residuals = -objective.gradients(self.outputs, self.refits.targets)[0]
        else:
            ones = np.ones((1, self.refits.targets.shape[1]))
            outputs = self.refits.outputs(ones, self.refits.leaves.astype(np.intp))[0].T
            residuals = self.refits.targets - outputs
        found = 0.0
        for k, residual in enumerate(residuals):
            shared = 0
            for asked, leaves in zip(self.asked, self.refits.leaves, strict=True):
                j = min(k, len(leaves) - 1)
                shared = shared + (asked[j][:, None] == leaves[j])
            found = found + self.slopes[k][:, None] * shared * residual
        return found


def knn_shapley(X, y, X_query, y_query, *, regression, k=5):
    """Return Shapley values (q, n) of rows for their nearest neighbours' prediction.

    Of the share of the k nearest with the right label, or of minus the squared error of
    their mean (arXiv:1908.08619).
    """
    scaler = StandardScaler().fit(X)
    X, X_query = scaler.transform(X), scaler.transform(X_query)
    found = np.empty((len(X_query), len(X)))
    for q, row in enumerate(X_query):
        order = np.argsort(np.square(X - row).sum(axis=1), kind="stable")
        of_order = _of_means if regression else _of_labels
        found[q, order] = of_order(y[order], y_query[q], k)
    return found


def _of_labels(y, target, k):
    """Return Shapley values of rows in the order of their distance."""
    right, n = (y == target).astype(float), len(y)
    i = np.arange(1, n)
    steps = (right[:-1] - right[1:]) / k * np.minimum(k, i) / i
    last = right[-1] / n
    return last + np.append(np.cumsum(steps[::-1])[::-1], 0.0)


def _of_means(y, target, k):
    """Return the same of minus (sum of the k nearest / k - target)²."""
    n = len(y)
    i = np.arange(1, n)  # the pairs i, i + 1
    before = np.append(0.0, np.cumsum(y))[i - 1]
    # how often a row is with a pair of which one enters: those nearer, and further ones
    nearer = np.minimum(k - 1, i - 1) / np.maximum(i - 1, 1)
    after = np.arange(3, n + 1)
    chance = np.minimum(k, after - 1) * np.minimum(k - 1, after - 2)
    chance = chance / ((after - 1.0) * (after - 2))
    later = np.append(np.cumsum((chance * y[2:])[::-1])[::-1], 0.0)
    with_pair = nearer * before + y[:-1] + y[1:] + later * i / np.minimum(k, i)
    steps = np.minimum(k, i) / i * (y[1:] - y[:-1]) / k * (with_pair / k - 2 * target)
    others = (k - 1) / k * y[:-1].mean()
    last = -y[-1] / n * (y[-1] / k - 2 * target + others)
    return last + np.append(np.cumsum(steps[::-1])[::-1], 0.0)
