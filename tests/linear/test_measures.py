"""The classical measures of influence, against statsmodels and against deletion."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from sklearn.datasets import load_diabetes
from sklearn.linear_model import (
    GammaRegressor,
    Lasso,
    LinearRegression,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, scale

from skattrib.exceptions import UnsupportedModelError
from skattrib.plotting import LeverageDisplay
from tests.linear.cases import fitted, table

X, Y = load_diabetes(return_X_y=True, as_frame=True)
X = (X[["age", "bmi", "bp", "s1", "s5"]] * 20)[:150]
X.index = [f"p{i}" for i in range(len(X))]
Y = pd.Series(Y.to_numpy()[:150], index=X.index)
EXACT = {"tol": 1e-13, "max_iter": 1000, "solver": "newton-cholesky"}


def compare(measures, expected, bound):
    assert list(measures.index) == list(X.index)
    assert set(measures.columns) == set(expected.columns)
    for column in expected.columns:
        error = np.abs(measures[column].to_numpy() - expected[column].to_numpy()).max()
        assert error <= bound * np.abs(expected[column]).max(), column


def test_least_squares():
    measures = fitted(LinearRegression(), X, Y).influence_measures()
    model = sm.OLS(Y, sm.add_constant(X)).fit()
    compare(measures, model.get_influence().summary_frame(), 1e-10)


def test_weighted_least_squares_is_deletion():
    weights = np.random.RandomState(0).uniform(0.2, 2, len(X))
    dual = fitted(LinearRegression(), X, Y).fit(X, Y, sample_weight=weights)
    measures = dual.influence_measures()
    for row in (0, 17):
        kept = np.arange(len(X)) != row
        without = LinearRegression().fit(X[kept], Y[kept], weights[kept])
        change = dual.estimator_.coef_ - without.coef_
        errors = weights[kept] * (Y[kept] - without.predict(X[kept])) ** 2
        variance = errors.sum() / (len(X) - 1 - 6)
        design = np.column_stack([X, np.ones(len(X))])
        covariance = np.linalg.inv(design.T @ (weights[:, None] * design))
        expected = change / np.sqrt(variance * np.diagonal(covariance)[:5])
        np.testing.assert_allclose(measures.iloc[row, :5], expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("family", "estimator", "y"),
    [
        (sm.families.Binomial(), LogisticRegression(C=np.inf, **EXACT), (Y > 140) * 1),
        (sm.families.Poisson(), PoissonRegressor(alpha=0, **EXACT), (Y / 20).round()),
    ],
    ids=["binomial", "poisson"],
)
def test_generalised_linear_models(family, estimator, y):
    measures = fitted(estimator, X, y).influence_measures()
    model = sm.GLM(y, sm.add_constant(X), family=family).fit(tol=1e-14)
    compare(measures, model.get_influence().summary_frame(), 1e-6)


def test_a_gamma_regression_has_one_newton_step():
    dual = fitted(GammaRegressor(alpha=0, **EXACT), X, Y)
    measures = dual.influence_measures()
    weights = (1 - np.eye(len(X)))[:4]
    step = fitted(GammaRegressor(alpha=0, **EXACT), X, Y, removal="newton")
    change = -step.parameter_change(weights)
    ratio = measures.iloc[:4, :6].to_numpy() / change
    # the same standard errors for every row
    np.testing.assert_allclose(ratio, np.tile(ratio[0], (4, 1)), rtol=1e-8)
    hat = measures["hat_diag"].sum()
    assert hat == pytest.approx(6, rel=1e-9)


def test_a_penalty_takes_degrees_of_freedom():
    measures = fitted(Ridge(50.0), X, Y).influence_measures()
    design = scale(X, with_std=False)
    hat = design @ np.linalg.inv(design.T @ design + 50 * np.eye(5)) @ design.T
    np.testing.assert_allclose(
        measures["hat_diag"], np.diagonal(hat) + 1 / len(X), rtol=1e-9
    )


def test_columns_have_the_names_that_the_model_sees():
    dual = fitted(make_pipeline(StandardScaler(), LinearRegression()), X, Y)
    columns = dual.influence_measures().columns
    assert list(columns[:6]) == [f"dfb_{name}" for name in [*X.columns, "const"]]
    change = dual.parameter_change(1 - np.eye(len(X))[:2], as_frame=True)
    assert list(change.columns) == [*X.columns, "intercept"]
    array = fitted(LinearRegression(), X.to_numpy(), Y)
    assert list(array.influence_measures().columns[:2]) == ["dfb_x0", "dfb_x1"]


def test_parameter_changes_are_those_of_retraining():
    rows, y, *_ = table("wine")
    dual = fitted(LogisticRegression(tol=1e-10, max_iter=10_000), rows, y)
    weights = 1 - np.eye(len(rows))[:3]
    frame = dual.parameter_change(weights, as_frame=True)
    assert list(frame.columns[[0, 13, 14]]) == ["0: x0", "0: intercept", "1: x0"]
    for number, row in enumerate(weights):
        other = LogisticRegression(tol=1e-10, max_iter=10_000)
        other.fit(rows[row > 0], y[row > 0])
        expected = np.column_stack([other.coef_, other.intercept_]) - np.column_stack(
            [dual.estimator_.coef_, dual.estimator_.intercept_]
        )
        found = frame.iloc[number].to_numpy().reshape(3, 14)
        centre = lambda change: change - change.mean(axis=0)
        np.testing.assert_allclose(
            centre(found), centre(expected), atol=2e-3 * np.abs(expected).max()
        )


def test_what_has_no_measures_is_refused():
    rows, y, *_ = table("wine")
    with pytest.raises(UnsupportedModelError, match="with one output and no l1"):
        fitted(LogisticRegression(), rows, y).influence_measures()
    with pytest.raises(UnsupportedModelError, match="Lasso is none"):
        fitted(Lasso(), X, Y).influence_measures()
    dual = fitted(LinearRegression(), X, Y)
    with pytest.raises(ValueError, match="fit with tasks=None"):
        dual.fit(X, Y, tasks=Y > 100).influence_measures()


def test_the_display_has_a_point_for_each_row_and_contours_of_cook():
    import matplotlib.pyplot as plt

    dual = fitted(LinearRegression(), X, Y)
    measures = dual.influence_measures()
    display = LeverageDisplay.from_estimator(dual, n_named=2)
    points = display.points_.get_offsets()
    np.testing.assert_allclose(points, measures[["hat_diag", "standard_resid"]])
    assert display.named_ == list(measures["cooks_d"].nlargest(2).index)
    texts = [text.get_text() for text in display.ax_.texts]
    assert texts == display.named_
    for line, distance in zip(display.contours_[::2], (0.5, 1.0), strict=True):
        leverage, residual = line.get_data()
        cook = residual**2 * leverage / (1 - leverage) / measures["hat_diag"].sum()
        np.testing.assert_allclose(cook, distance)
    again = LeverageDisplay.from_predictions(measures, ax=display.ax_)
    assert again.figure_ is display.figure_
    with pytest.raises(ValueError, match="lack the columns"):
        LeverageDisplay.from_predictions(measures[["cooks_d"]])
    with pytest.raises(ValueError, match="must be a DualInfluence"):
        LeverageDisplay.from_estimator(LinearRegression())
    plt.close("all")
