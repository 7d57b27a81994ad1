"""Do intervals hold for linear models, which are refitted exactly?

40 rows of 4 normal columns, 8 queries, 6 draws. True effects are linear effects on
2,000 pairs of halves, by least squares, which closed forms give. Retrained halves
correct attributions that are exact for a row left out alone. Share of 95 % intervals
that hold true effects, and the error of attributions over the standard deviation of
these: with the additive share of what sums over rows miss told by the halves of each
query, as `DualInfluence` does it, and fixed at 0.8, as it is for networks.

    OMP_NUM_THREADS=1 python -m benchmarks.posterior.refits
"""

import warnings
from unittest.mock import patch

import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge

from benchmarks._table import Table, write
from skattrib import DualInfluence
from skattrib._posterior._gaussian import Knowledge, half_width
from skattrib.evaluation import make_weightings

N_ROWS, N_QUERIES, N_DRAWS = 40, 8, 6
SIZES = 16, 64, 256
MODELS = {
    "Ridge()": Ridge(),
    "Ridge(alpha=10)": Ridge(alpha=10.0),
    "LogisticRegression()": LogisticRegression(tol=1e-8, max_iter=10_000),
    "LogisticRegression(C=.1)": LogisticRegression(C=0.1, tol=1e-8, max_iter=10_000),
}


def rows(seed, classifies):
    """Return rows and queries."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(N_ROWS + N_QUERIES, 4))
    y = X @ [1.0, -2.0, 0.5, 0.0] + rng.normal(size=len(X))
    if classifies:
        y = (y + rng.normal(size=len(y)) > 0.7).astype(int)
    return X[:N_ROWS], y[:N_ROWS], X[N_ROWS:], y[N_ROWS:]


def effects(model, X, y, *queries):
    """Return linear effects (q, n) on halves, around those of the average row."""
    # complements cancel what is even, and would be noise
    weights = make_weightings(N_ROWS, 4000, kind="antithetic", random_state=1)
    exact = DualInfluence(model, random_state=0).fit(X, y)
    outcomes = exact.predict_outcomes(*queries, weights)
    fitted = np.linalg.lstsq(weights - 0.5, outcomes - outcomes.mean(axis=0))[0]
    return fitted.T - fitted.T.mean(axis=1, keepdims=True)


def measured(model, n_halves, seed, true, X, y, *queries):
    """Return which intervals (q, n) hold the effects, and errors over their size."""
    halves = DualInfluence(model, n_halves=n_halves, random_state=seed).fit(X, y)
    found, std = halves.attribute(*queries, return_std=True)
    error = found - found.mean(axis=1, keepdims=True) - true
    return np.abs(error) < half_width(std), np.sqrt(np.mean(error**2) / np.var(true))


def main():
    table = Table(
        "95 % intervals of exact refits: told by each query → fixed at 0.8",
        "model | halves | in their intervals | error",
    )
    fixed = patch.object(DualInfluence, "_knowledge", lambda _: Knowledge(share=0.8))
    for name, model in MODELS.items():
        classifies = isinstance(model, LogisticRegression)
        draws = [rows(seed, classifies) for seed in range(N_DRAWS)]
        draws = [(effects(model, *data), *data) for data in draws]
        for n_halves in SIZES:
            cells = []
            for seed, data in enumerate(draws):
                told = measured(model, n_halves, seed, *data)
                with fixed:
                    cells.append([*told, *measured(model, n_halves, seed, *data)])
            held, error, held_fixed, error_fixed = (
                np.mean(part) for part in zip(*cells, strict=True)
            )
            table.add(
                name,
                n_halves,
                f"{held:.2f} → {held_fixed:.2f}",
                f"{error:.2f} → {error_fixed:.2f}",
            )
    write("posterior_refits", table)


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main()
