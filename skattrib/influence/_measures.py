"""The classical measures of single rows' influence on a regression.

Leverage, studentised residuals, Cook's distance, DFFITS and DFBETAS, as in Belsley, Kuh
and Welsch (1980), and in Pregibon (1981) for generalised linear models: exact for least
squares, from one Newton step for others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from skattrib._validation import memory_cap
from skattrib.engine._solvers import ScaledFactor
from skattrib.exceptions import UnsupportedModelError

FloatArray = NDArray[np.float64]


def measures(
    trained: Any, X: Any, y: Any, weights: FloatArray, names: Any, features: list[str]
) -> pd.DataFrame:
    """Return the measures of each row, under the names of statsmodels.

    Parameters
    ----------
    trained : Convex
        A fitted regression with one output.
    X, y : ndarray
        Training rows.
    weights : ndarray of shape (n,)
        Of the rows.
    names : array (n,)
        Of the rows.
    features : list of str
        Names of the columns of X.
    """
    variance = _variance(trained)
    objective = trained.objective(X, y, weights)
    n_rows, n_columns = objective.rows.n_rows, objective.rows.n_columns
    needed = 8.0 * 4 * (n_rows * n_columns + n_columns**2)
    if needed > memory_cap():
        raise ValueError(
            f"influence_measures needs {needed / 2**20:.0f} MiB for {n_rows} rows and "
            f"{n_columns} coefficients, over the cap of {memory_cap() / 2**20:.0f} "
            "MiB. Fit on fewer columns, or raise "
            "sklearn.set_config(working_memory=...)."
        )
    design = objective.rows.dense().numpy()
    row_weights = objective.weighting(objective.weights).numpy()
    mean, slope, y_values = _means(trained, objective)
    spread = variance(mean)
    curvature = objective.loss.curvature(objective.outputs(), objective.targets)
    information = row_weights * curvature[:, 0].numpy()
    gram = design.T @ (information[:, None] * design)
    penalty = objective.l2[:, 0].numpy()
    inverse = _inverse(gram + np.diag(penalty))

    leverage = information * np.einsum("ni,ij,nj->n", design, inverse, design)
    total = leverage.sum()
    pearson = np.sqrt(row_weights / spread) * (y_values - mean)
    degrees = (row_weights > 0).sum() - total
    is_squared = objective.loss.quadratic
    scale = 1.0
    if trained.has_dispersion():
        scale = float((pearson**2).sum() / degrees)
    free = 1 - leverage
    with np.errstate(divide="ignore", invalid="ignore"):
        internal = pearson / np.sqrt(scale * free)
        odds = np.sqrt(leverage / free)
        score = row_weights * (y_values - mean) * slope / spread
        change = (design @ inverse) * (score / free)[:, None]
        others = np.full(n_rows, scale)
        if is_squared:
            others = (degrees * scale - pearson**2 / free) / (degrees - 1)
        errors = np.sqrt(np.diagonal(inverse @ gram @ inverse) * others[:, None])
        columns = {
            f"dfb_{_column(name)}": change[:, j] / errors[:, j]
            for j, name in enumerate(trained.parameter_names(features))
        }
        columns["cooks_d"] = internal**2 * leverage / free / total
        columns["standard_resid"] = internal
        columns["hat_diag"] = leverage
        columns["dffits_internal"] = internal * odds
        if is_squared:
            columns["student_resid"] = pearson / np.sqrt(others * free)
            columns["dffits"] = columns["student_resid"] * odds
    return pd.DataFrame(columns, index=pd.Index(names, tupleize_cols=False))


def _column(name: str) -> str:
    return "const" if name == "intercept" else name


def _inverse(matrix: FloatArray) -> FloatArray:
    eye = torch.eye(len(matrix), dtype=torch.double)
    inverse: FloatArray = ScaledFactor(torch.tensor(matrix)).solve(eye).numpy()
    return inverse


def _variance(trained: Any) -> Any:
    """Return the variance as a function of the mean, or raise."""
    kind = getattr(trained, "variance", None)
    function = None if kind is None else kind()
    if function is None:
        raise UnsupportedModelError(
            f"influence_measures are of least squares and generalised linear models "
            f"with one output and no l1 penalty, and {trained.name} is none: use "
            "attribute, or LinearRegression, Ridge, LogisticRegression of two "
            "classes, PoissonRegressor, GammaRegressor or TweedieRegressor."
        )
    return function


def _means(trained: Any, objective: Any) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the means of the rows, their slopes in the linear output, and targets."""
    linear = objective.outputs()
    mean = trained.mean(linear)
    slope = torch.func.grad(lambda f: trained.mean(f).sum())(linear)
    targets = objective.targets.reshape(len(linear), -1)[:, 0].double()
    return mean[:, 0].numpy(), slope[:, 0].numpy(), targets.numpy()
