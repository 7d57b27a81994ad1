"""Kernel against linear surrogates on outcomes of subsets: one evaluation for all."""

import numpy as np
from sklearn.base import clone
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from benchmarks._table import Table, write
from skattrib import KernelSurrogate, LinearSurrogate
from skattrib.evaluation import lds_score, loo_score

N_DRAWS = 40

LINEAR, KERNEL = "linear, ridge by LOO-CV", "kernel, ridge and width by LOO-CV"
SURROGATES = {
    # what the paper compares with
    "least squares without intercept": LinearRegression(fit_intercept=False),
    LINEAR: LinearSurrogate(ridge="loocv"),
    "kernel, ridge 0.1": KernelSurrogate(ridge=0.1),
    "kernel, ridge by LOO-CV": KernelSurrogate(ridge="loocv"),
    KERNEL: KernelSurrogate(ridge="loocv", bandwidth="loocv"),
}
DIFFERENCE = "difference: kernel less linear, both tuned"
METRICS = [
    "R² (median)",
    "R² (pooled)",
    "LDS",
    "LOO (Pearson)",
    "LOO (Spearman)",
    "mean: R²",
    "mean: LOO (Pearson)",
]


def draw_subsets(n_units, n_subsets, inclusion, seed):
    """Draw different subsets, each unit with probability ``inclusion``.

    With "uniform", the probability is drawn anew for every subset.

    Subsets that lack one unit or none are passed over: what they say is what the
    leave-one-out read-outs are tested on.
    """
    rng = np.random.default_rng(seed)
    found = {}
    while len(found) < n_subsets:
        p = rng.random() if inclusion == "uniform" else inclusion
        row = rng.random(n_units) < p
        if 0 < row.sum() < n_units - 1:
            found[row.tobytes()] = row
    return np.array(list(found.values()), dtype=float)


def leave_one_out(n_units):
    """Return the subsets that lack one unit and, last, the one that lacks none."""
    return np.vstack([1 - np.eye(n_units), np.ones(n_units)])


def loo_of(model):
    """Return the leave-one-out read-out of a surrogate, (n_targets, n_units)."""
    coef = getattr(model, "coef_", None)  # a linear surrogate says the same anywhere
    return model.attribution(at="loo") if coef is None else coef


def score(model, weights, outcomes, one_out):
    """Score a surrogate on held-out subsets and on outcomes of `leave_one_out`.

    The last target is the mean of the others. Returns one number for each of METRICS.
    """
    predicted, loo = model.predict(weights), loo_of(model)
    effects = one_out[-1] - one_out[:-1]
    pearson = [np.corrcoef(pair)[0, 1] for pair in zip(effects.T, loo, strict=True)]
    r2 = r2_score(outcomes, predicted, multioutput="raw_values")
    outcomes, predicted = outcomes[:, :-1], predicted[:, :-1]
    return [
        np.median(r2[:-1]),
        r2_score(outcomes, predicted, multioutput="variance_weighted"),
        lds_score(outcomes, predicted),
        np.mean(pearson[:-1]),
        loo_score(one_out[:-1, :-1], loo[:-1]),
        r2[-1],
        pearson[-1],
    ]


def compare(weights, outcomes, one_out, n_fit, n_held_out):
    """Fit and score every surrogate on random draws of the subsets and the targets.

    A draw takes ``n_fit`` of the subsets to fit, others to score, and the targets
    with replacement; all surrogates see the same draws.

    Returns
    -------
    dict of str to ndarray of shape (N_DRAWS, len(METRICS))
        Scores, and the paired difference between tuned kernel and tuned linear.
    """
    rng = np.random.default_rng(0)
    found = {name: [] for name in SURROGATES}
    for _ in range(N_DRAWS):
        order = rng.permutation(len(weights))
        fit, held_out = order[:n_fit], order[-n_held_out:]
        targets = rng.integers(outcomes.shape[1], size=outcomes.shape[1])
        F, G = _with_mean(outcomes[:, targets]), _with_mean(one_out[:, targets])
        for name, surrogate in SURROGATES.items():
            model = clone(surrogate).fit(weights[fit], F[fit])
            found[name].append(score(model, weights[held_out], F[held_out], G))
    scores = {name: np.array(rows) for name, rows in found.items()}
    return scores | {DIFFERENCE: scores[KERNEL] - scores[LINEAR]}


def _with_mean(outcomes):
    return np.column_stack([outcomes, outcomes.mean(axis=1)])


def compare_all(name, caption, outcomes_of, n_units, inclusions, sizes):
    """Compare the surrogates; print a table and write it for the manual.

    A cell is the mean over draws ± half the width of their central 95 %.

    Parameters
    ----------
    name, caption : str
    outcomes_of : callable
        Of subsets (m, n_units); returns outcomes (m, n_targets).
    n_units : int
    inclusions : iterable of float
    sizes : tuple of int
        Subsets to fit; fewer, for the inclusion 0.75; subsets held out.
    """
    n_fit, n_few, n_held_out = sizes
    one_out = outcomes_of(leave_one_out(n_units))
    table = Table(caption, ["subsets", "surrogate", *METRICS])
    for inclusion in inclusions:
        weights = draw_subsets(n_units, n_fit + n_held_out, inclusion, seed=1)
        outcomes = outcomes_of(weights)
        print(f"p = {inclusion}: {weights.mean():.2f} of the units present")
        for n in (n_few, n_fit) if inclusion == 0.75 else (n_fit,):
            found = compare(weights, outcomes, one_out, n, n_held_out)
            first = f"{n}, p = {inclusion}"
            for surrogate, values in found.items():
                low, high = np.percentile(values, [2.5, 97.5], axis=0)
                pairs = zip(values.mean(axis=0), (high - low) / 2, strict=True)
                table.add(first, surrogate, *(f"{m:.2f} ± {s:.2f}" for m, s in pairs))
                first = ""
    write(name, table)
