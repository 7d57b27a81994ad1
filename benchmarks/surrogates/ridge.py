"""Which ridge should a kernel surrogate have, and why is LOO-CV's not the best?

Six problems with retrained outcomes: twelve tasks of digits, twelve clusters of
diabetes, the rows of wine, sixteen blocks of the table of addition modulo 23, twelve
industries of wages (boosted trees), sixteen demonstrations of a prompt. Surrogates
learn from 40 or 100 subsets that hold each unit with probability 0.5 or 0.75, none of
which lacks one unit or none; they are scored on 60 others (R², LDS) and on retraining
without one unit (LOO). Rules choose from the same eight ridges, 1e-6 to 10.
Differences are paired.

    python -m benchmarks.surrogates.ridge
"""

import numpy as np
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import rbf_kernel

from benchmarks._table import Table, pm, write
from benchmarks.surrogates._pools import INCLUSIONS, N_LEARNT, pools, scores, scores_of
from skattrib import KernelSurrogate

RIDGES = np.logspace(-6, 1, 8)
USUAL = "LOO-CV, per query"


class Path:
    """Surrogates of one pool with every ridge.

    Attributes
    ----------
    left_out : ndarray of shape (r, n_learnt, q)
        Squared errors of the subsets that were learnt from, each left out.
    held_out : ndarray of shape (r, q)
        Mean squared errors of subsets held out.
    evidence : ndarray of shape (r, q)
        Log marginal likelihood of a Gaussian process, up to a constant.
    """

    def __init__(self, pool, n_learnt):
        self.pool = pool
        W, F = pool.learnt(n_learnt)
        models = [KernelSurrogate(ridge=r).fit(W, F) for r in RIDGES]
        self._predicted = np.array([m.predict(pool.held_out[0]) for m in models])
        self._loo = np.array([model.attribution("loo") for model in models])
        errors = self._predicted - pool.held_out[1]
        self.held_out = np.square(errors).mean(axis=1)

        n, centred = len(W), F - F.mean(axis=0)
        self.left_out, self.evidence = [], []
        for r, model in zip(RIDGES, models, strict=True):
            K = rbf_kernel(W, gamma=1 / W.shape[1]) + r * np.eye(n)
            inverse = np.linalg.inv(K)
            # leaving a subset out also moves the mean of the others
            moved = centred / (n - 1) * inverse.sum(axis=1, keepdims=True)
            own = (model.dual_coef_ + moved) / np.diag(inverse)[:, None]
            self.left_out.append(np.square(own))
            fit = (centred * model.dual_coef_).mean(axis=0)
            size = np.linalg.slogdet(K)[1]
            self.evidence.append(-0.5 * (n * np.log(fit) + size))
        self.left_out, self.evidence = map(np.array, (self.left_out, self.evidence))

    def of(self, chosen):
        """Return METRICS of the ridges at these places, one for each query."""
        queries = np.arange(len(chosen))
        predicted, loo = (
            self._predicted[chosen, :, queries].T,
            self._loo[chosen, queries],
        )
        return scores(self.pool.held_out[1], predicted, self.pool.one_out, loo)

    def always(self, ridge):
        return np.full(self.held_out.shape[1], np.abs(np.log(RIDGES / ridge)).argmin())

    def together(self, errors):
        """Choose one ridge for all queries, by errors (r, q) next to the smallest."""
        place = (errors / errors.min(axis=0)).mean(axis=1).argmin()
        return np.full(errors.shape[1], place)

    def within(self, times):
        """Choose the largest ridge whose LOO-CV error is so near the smallest one.

        So many standard errors of the paired difference.
        """
        best = self.left_out.mean(axis=1).argmin(axis=0)
        smallest = self.left_out[best, :, np.arange(len(best))].T
        more = self.left_out - smallest
        error = more.std(axis=1, ddof=1) / more.shape[1] ** 0.5
        near = more.mean(axis=1) <= times * error
        return len(RIDGES) - 1 - near[::-1].argmax(axis=0)

    def best_for_loo(self):
        """Choose one ridge whose LOO read-outs correlate best with the truth."""
        return max(map(self.always, RIDGES), key=lambda chosen: self.of(chosen)[2])


RULES = {
    USUAL: lambda path: path.left_out.mean(axis=1).argmin(axis=0),
    "LOO-CV, one for all queries": lambda path: path.together(
        path.left_out.mean(axis=1)
    ),
    "LOO-CV, the largest within a standard error": lambda path: path.within(1),
    "marginal likelihood, per query": lambda path: path.evidence.argmax(axis=0),
    "0.001": lambda path: path.always(0.001),
    "0.01": lambda path: path.always(0.01),
    "0.1": lambda path: path.always(0.1),
    "1": lambda path: path.always(1.0),
    "best for held-out subsets, per query": lambda path: path.held_out.argmin(axis=0),
    "best for LOO, one for all queries": Path.best_for_loo,
}


#: ridge and regressor for a number of units
OTHERS = {
    "0.1, outcomes not centred": (
        0.1,
        lambda n: KernelRidge(alpha=0.1, kernel="rbf", gamma=1 / n),
    ),
    "0.03, 1.5 times the width": (
        0.03,
        lambda n: KernelSurrogate(0.03, 1.5 * (n / 2) ** 0.5),
    ),
}


def scored(rule, path):
    """Return METRICS of the surrogates that a rule chooses, and their median ridge."""
    if rule in OTHERS:
        ridge, model = OTHERS[rule]
        n_learnt, n_units = path.left_out.shape[1], path.pool.weights.shape[1]
        return [*scores_of(model(n_units), path.pool, n_learnt), ridge]
    chosen = RULES[rule](path)
    return [*path.of(chosen), np.median(RIDGES[chosen])]


class Settings:
    """Values of settings, and their means over settings by problem and by draw."""

    def __init__(self, paths):
        self._problems = np.array([path.pool.problem for path in paths])
        self._draws = np.array([path.pool.draw for path in paths])
        self._inclusions = np.array([path.pool.inclusion for path in paths])
        self.names = list(dict.fromkeys(self._problems))

    def by_problem(self, values, inclusion=None):
        """Return the mean of each problem, (problems, ...)."""
        return np.array(
            [self.by_draw(values, k, inclusion).mean(0) for k in self.names]
        )

    def by_draw(self, values, problem, inclusion=None):
        """Return the mean of each draw of a problem, (draws, ...)."""
        those = self._problems == problem
        if inclusion is not None:
            those &= self._inclusions == inclusion
        draws = [those & (self._draws == k) for k in np.unique(self._draws[those])]
        return np.array([values[draw].mean(axis=0) for draw in draws])


def main():
    paths = [Path(pool, n) for pool in pools() for n in N_LEARNT]
    settings = Settings(paths)
    found = {
        rule: np.array([scored(rule, path) for path in paths])
        for rule in [*RULES, *OTHERS]
    }
    by_rule = Table(
        "Ridges less LOO-CV's, mean of six problems ± standard error over them; the "
        "first row is LOO-CV itself",
        "ridge | median, p = 0.5 | R² | LDS | LOO (Pearson) | LOO (Pearson), p = 0.5 | "
        "LOO (Pearson), p = 0.75",
    )
    for rule, values in found.items():
        more = values[:, :4] - (0 if rule == USUAL else found[USUAL][:, :4])
        cells = list(settings.by_problem(more)[:, :3].T)
        cells += [settings.by_problem(more, p)[:, 2] for p in INCLUSIONS]
        ridge = np.median(settings.by_problem(values, 0.5)[:, 4])
        by_rule.add(rule, f"{ridge:.2g}", *map(pm, cells))

    by_problem = Table(
        "A ridge of 0.1 less LOO-CV's, by problem, mean of draws ± standard error",
        "problem | draws | R² | LDS | LOO (Pearson), p = 0.5 | LOO (Pearson), p = 0.75",
    )
    more = (found["0.1"] - found[USUAL])[:, :4]
    for name in settings.names:
        both = settings.by_draw(more, name)
        cells = [both[:, 0], both[:, 1]]
        cells += [settings.by_draw(more, name, p)[:, 2] for p in INCLUSIONS]
        by_problem.add(name, len(both), *map(pm, cells))
    write("ridge_of_kernel", by_rule, by_problem)


if __name__ == "__main__":
    main()
