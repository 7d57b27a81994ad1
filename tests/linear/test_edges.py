"""Where linear models have no optimum, several, or one that rounding hides."""

import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    PoissonRegressor,
    Ridge,
    RidgeClassifier,
    RidgeCV,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.svm import LinearSVC

from skattrib import DualInfluence
from skattrib.evaluation import make_weightings, retrain_outcomes
from skattrib.exceptions import FaithfulnessWarning, UnsupportedModelError
from tests.linear.cases import SVM, fitted, logistic, relative, table, truth


def numbers(n=40, columns=2, seed=0):
    rng = np.random.RandomState(seed)
    X = rng.randn(n, columns)
    return X, X @ np.arange(1, columns + 1) + rng.randn(n)


def test_counts_of_zero_have_a_slope():
    X, y = numbers()
    y = np.round(np.exp(y / 3))
    model, found = PoissonRegressor(tol=1e-12, max_iter=1000), {}
    for removal in ("influence", "newton"):
        dual = DualInfluence(model, removal=removal, random_state=0).fit(X, y)
        found[removal] = dual.attribute(X, y)
    assert (y == 0).any()
    assert relative(found["influence"], found["newton"]) < 0.3


@pytest.mark.parametrize("alone", ["one of three", "one of two"])
@pytest.mark.parametrize("kind", [logistic, OneVsRestClassifier])
def test_subsets_without_a_class_are_retrained(kind, alone):
    X, y = numbers()
    y = (y > 0) * 1
    if alone == "one of three":
        y[3] = 2
    estimator = logistic() if kind is logistic else OneVsRestClassifier(logistic())
    weights = np.ones((2, len(X)))
    weights[0, y == y.max()] = 0
    dual = fitted(estimator, X, y)
    expected = truth(dual, X, y, weights, X[:6], y[:6])
    found = dual.predict_outcomes(X[:6], y[:6], weights)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(dual.output_change(X[:6], weights)[0]).max() > 1e-3


def test_decision_values_need_all_classes():
    X, y, Xq, yq = table("wine")
    dual = fitted(LinearSVC(**SVM), X, y)
    with pytest.raises(ValueError, match="subset without the classes"):
        dual.predict_outcomes(Xq, yq, (y > 0)[None] * 1.0)


@pytest.mark.parametrize("class_weight", ["balanced", {0: 5.0}])
def test_class_weights_of_several_hinges_are_refused(class_weight):
    X, y, *_ = table("wine")
    with pytest.raises(UnsupportedModelError, match="weighs the same row differently"):
        fitted(LinearSVC(class_weight=class_weight, **SVM), X, y)


def test_a_row_alone_in_a_balanced_class():
    X, y, Xq, yq = table("wine")
    y = np.where(np.arange(len(y)) == 7, 3, y)
    dual = fitted(logistic(class_weight="balanced"), X, y)
    weights = np.vstack([np.ones(len(X)), 1 - np.eye(len(X))[7:10]])
    expected = truth(dual, X, y, weights, Xq, yq)
    left_out = (expected[:1] - expected[1:]).T
    assert relative(dual.attribute(Xq, yq)[:, 7:10], left_out) < 0.02


def test_balance_and_weights_that_all_differ():
    X, y, *_ = table("wine")
    weights = np.random.RandomState(0).uniform(0.1, 3, len(X))
    estimator = logistic(class_weight="balanced")
    closed = fitted(estimator, X, y, removal="newton").fit(X, y, sample_weight=weights)
    rows = closed._linear_models[0].refits
    import torch

    index = torch.arange(0, len(X), 17)
    without = torch.tensor(weights).repeat(len(index), 1)
    without[torch.arange(len(index)), index] = 0
    torch.testing.assert_close(
        rows.newton_without(index), rows.newton_steps(without), rtol=1e-7, atol=1e-9
    )


def test_rows_of_weight_0_are_not_counted():
    X, y, Xq, yq = table("cancer")
    weights = np.ones(len(X))
    weights[:30] = 0
    dual = fitted(RidgeClassifier(class_weight="balanced"), X, y)
    dual.fit(X, y, sample_weight=weights)
    subsets = np.vstack([np.ones(len(X)), make_weightings(len(X), 4, random_state=0)])
    expected = truth(dual, X, y, subsets, Xq, yq, sample_weight=weights)
    assert relative(dual.predict_outcomes(Xq, yq, subsets), expected) < 1e-9


@pytest.mark.parametrize(
    "model",
    [LogisticRegression(tol=1e-10, max_iter=1000), RidgeClassifier(), LinearSVC()],
)
@pytest.mark.parametrize("label", [-1, 3])
def test_a_class_of_rows_of_weight_0_is_none(model, label):
    X, y, Xq, yq = table("wine")
    weights = np.ones(len(X))
    weights[:4] = 0
    y = np.r_[np.full(4, label), y[4:]]
    dual = DualInfluence(model, n_halves=0, random_state=0)
    found = dual.fit(X, y, sample_weight=weights)
    left = fitted(model, X[4:], y[4:], n_halves=0)
    np.testing.assert_array_equal(found.estimator_.classes_, [0, 1, 2])
    attributions = found.attribute(Xq, yq)
    assert_allclose(attributions[:, :4], 0, atol=1e-12)
    assert relative(attributions[:, 4:], left.attribute(Xq, yq)) < 1e-9


@pytest.mark.parametrize(
    "model", [RidgeCV([0.1, 1.0, 10.0]), LogisticRegressionCV(Cs=[0.1, 1.0], tol=1e-10)]
)
def test_splits_are_positions_of_all_rows(model):
    """Also of those of weight 0."""
    X, y, Xq, yq = table("cancer")
    weights = np.ones(len(X))
    weights[:9] = 0
    half = np.arange(len(X)) % 2 == 0
    splits = [(np.flatnonzero(half), np.flatnonzero(~half))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        own = clone(model).set_params(cv=splits).fit(X, y, sample_weight=weights)
        model = clone(model).set_params(cv=splits)
        found = DualInfluence(model, n_halves=0, random_state=0)
        found.fit(X, y, sample_weight=weights)
    assert_allclose(found.estimator_.coef_, own.coef_, rtol=1e-12)
    assert_allclose(found.attribute(Xq, yq)[:, :9], 0, atol=1e-12)


@pytest.mark.parametrize(
    "model",
    [KernelRidge(kernel="rbf"), GaussianProcessRegressor(alpha=0.1, random_state=0)],
)
def test_a_frozen_kernel_of_other_rows_is_refused(model):
    X, y = numbers()
    order = np.random.RandomState(1).permutation(len(X))
    kernel = model.__class__(**model.get_params())
    for rows, targets in [(X[:30], y[:30]), (X, y[order])]:
        frozen = FrozenEstimator(kernel.fit(rows, targets))
        with pytest.raises(ValueError, match=r"other rows, targets or weights"):
            fitted(frozen, X, y)
    sorted_otherwise = fitted(FrozenEstimator(kernel.fit(X[order], y[order])), X, y)
    weights = make_weightings(len(X), 5, random_state=0)
    expected = truth(sorted_otherwise, X, y, weights, X[:5], y[:5])
    found = sorted_otherwise.predict_outcomes(X[:5], y[:5], weights)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_as_many_coefficients_as_rows_are_refused():
    X, y = numbers(n=10, columns=9)
    with pytest.raises(ValueError, match="no row matters by itself"):
        fitted(LinearRegression(), X, y)


def test_subsets_that_leave_coefficients_open_are_pointed_out():
    X, y = numbers()
    weights = np.zeros((2, len(X)))
    weights[0, :2], weights[1, :20] = 1, 1
    dual = fitted(LinearRegression(), X, y)
    with pytest.warns(FaithfulnessWarning, match="In 1 of 2 weightings"):
        dual.predict_outcomes(X[:4], y[:4], weights)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted(Ridge(), X, y).predict_outcomes(X[:4], y[:4], weights)


@pytest.mark.parametrize(
    ("estimator", "y"),
    [
        (PoissonRegressor(tol=1e-12, max_iter=1000), lambda y: np.round(np.exp(y / 3))),
        (LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000), lambda y: (y > 0) * 1),
    ],
    ids=["all zero", "separated"],
)
def test_subsets_without_an_optimum_are_pointed_out(estimator, y):
    X, values = numbers()
    y = y(values)
    dual = fitted(estimator, X, y)
    if isinstance(estimator, PoissonRegressor):
        kept = y == 0
    else:
        kept = (X @ dual.estimator_.coef_[0] + dual.estimator_.intercept_ > 0) == y
    assert 3 < kept.sum() < len(y)
    with pytest.warns(ConvergenceWarning, match="did not reach their minimum"):
        dual.predict_outcomes(X[:4], y[:4], kept[None] * 1.0)


@pytest.mark.parametrize("offset", [1e6, 1.7e9])
def test_large_offsets_cost_no_digits(offset):
    X, y = numbers(n=60, columns=3)
    X[:, 0] = 1e3 * X[:, 0] + offset
    dual = fitted(Ridge(solver="svd", random_state=0), X, y)
    weights = np.vstack([np.ones(60), make_weightings(60, 5, random_state=0)])
    expected = truth(dual, X, y, weights, X[:8], y[:8])
    assert relative(dual.predict_outcomes(X[:8], y[:8], weights), expected) < 1e-6
    change = dual.parameter_change(weights[1:2])[0]
    other = Ridge(solver="svd").fit(X[weights[1] > 0], y[weights[1] > 0])
    np.testing.assert_allclose(
        change[:3], other.coef_ - dual.estimator_.coef_, rtol=1e-5, atol=1e-12
    )
    intercept = other.intercept_ - dual.estimator_.intercept_
    np.testing.assert_allclose(change[3], intercept, rtol=1e-4)


def test_kernels_name_the_outputs_of_their_coefficients():
    X, y = numbers()
    both = np.column_stack([y, -y])
    frame = fitted(KernelRidge(), X, both).parameter_change(
        np.ones((1, 40)), as_frame=True
    )
    assert list(frame.columns[[0, 40, 41]]) == ["y0: alpha0", "y0: mean", "y1: alpha0"]
    with pytest.raises(ValueError, match="solver='cg' does not apply to KernelRidge"):
        fitted(KernelRidge(), X, y, solver="cg")


def test_steps_that_do_not_fit_the_memory_are_not_kept():
    import sklearn

    X, y, Xq, yq = table("cancer")
    kept = fitted(logistic(), X, y)
    with sklearn.config_context(working_memory=0.05):
        frugal = fitted(logistic(), X, y, solver="auto", removal="newton")
        found = frugal.attribute(Xq, yq)
    assert kept._without_each[0] is not None
    np.testing.assert_allclose(found, kept.attribute(Xq, yq), rtol=1e-5, atol=1e-9)


def test_one_class_of_one_against_the_rest():
    X, y, Xq, yq = table("wine")
    alone = retrain_outcomes(
        OneVsRestClassifier(logistic(random_state=0)),
        X, y, (y == 2)[None] * 1.0, Xq, yq,
    )  # fmt: skip
    np.testing.assert_allclose(alone[0][yq == 2], 0, atol=1e-12)
    assert (alone[0][yq != 2] < -30).all()
