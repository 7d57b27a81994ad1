"""What linear models are predicted to be without rows, against retraining."""

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import (
    ElasticNet,
    Lasso,
    LogisticRegression,
    LogisticRegressionCV,
    PoissonRegressor,
    Ridge,
    RidgeClassifier,
)
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.svm import SVR, LinearSVC

from skattrib import (
    DualInfluence,
    KernelSurrogateAttributor,
    LinearSurrogateAttributor,
)
from skattrib.evaluation import lds_score, make_weightings, retrain_outcomes
from tests.linear.cases import (
    FAMILIES,
    fitted,
    logistic,
    relative,
    table,
    truth,
)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_retraining(name):
    estimator, of, (loo_bound, half_bound) = FAMILIES[name]
    X, y, Xq, yq = table(of)
    dual = fitted(estimator, X, y)
    n = len(X)
    halves = make_weightings(n, 12, random_state=1)
    everything, without = np.ones((1, n)), (1 - np.eye(n))[:12]
    weights = np.vstack([everything, without, halves])
    expected = truth(dual, X, y, weights, Xq, yq)
    predicted = dual.predict_outcomes(Xq, yq, weights)
    attributions = dual.attribute(Xq, yq)[:, :12]

    scale = np.abs(expected).max()
    assert np.abs(predicted[0] - expected[0]).max() <= 1e-6 * scale
    left_out = (expected[:1] - expected[1:13]).T
    assert relative(attributions, left_out) <= loo_bound
    assert relative(predicted[13:], expected[13:]) <= half_bound
    # refits do without the error of a Newton step
    assert relative((predicted[:1] - predicted[1:13]).T, left_out) <= 10 * half_bound


@pytest.mark.parametrize("name", ["logistic", "softmax", "balanced softmax", "poisson"])
@pytest.mark.parametrize("removal", ["newton", "influence", "refit"])
def test_removals_are_ordered_by_accuracy(name, removal):
    estimator, of, _ = FAMILIES[name]
    X, y, Xq, yq = table(of)
    n = len(X)
    dual = fitted(estimator, X, y, removal=removal)
    weights = np.vstack([np.ones((1, n)), (1 - np.eye(n))[:15]])
    expected = truth(dual, X, y, weights, Xq, yq)
    error = relative(dual.attribute(Xq, yq)[:, :15], (expected[:1] - expected[1:]).T)
    assert error <= {"influence": 0.4, "newton": 0.1, "refit": 2e-3}[removal]
    assert dual.removal_ == {"attribute": removal, "predict_outcomes": removal}


@pytest.mark.parametrize(
    ("estimator", "of"),
    [
        (logistic(), "cancer"),
        (logistic(class_weight="balanced"), "wine"),
        (RidgeClassifier(class_weight="balanced"), "cancer"),
        (Ridge(), "diabetes"),
        (ElasticNet(tol=1e-10, max_iter=20_000), "diabetes"),
        (PoissonRegressor(alpha=0.1, tol=1e-12, max_iter=20_000), "counts"),
        (LinearSVC(tol=1e-9, max_iter=200_000, random_state=0), "cancer"),
        (KernelRidge(kernel="rbf"), "diabetes"),
    ],
)
def test_sample_weights_are_part_of_the_objective(estimator, of):
    X, y, Xq, yq = table(of)
    weights = np.random.RandomState(0).uniform(0.1, 3, len(X))
    absent = np.arange(5)
    if not isinstance(estimator, RidgeClassifier):  # which counts them for its balance
        weights[absent] = 0
    dual = fitted(estimator, X, y)
    dual.fit(X, y, sample_weight=weights)
    halves, n = make_weightings(len(X), 6, random_state=0), len(X)
    subsets = np.vstack([np.ones((1, n)), halves, 1 - np.eye(n)[5:45]])
    expected = truth(dual, X, y, subsets, Xq, yq, sample_weight=weights)
    predicted = dual.predict_outcomes(Xq, yq, subsets)
    assert relative(predicted, expected) <= 1e-4
    left_out = (expected[:1] - expected[7:]).T
    attributions = dual.attribute(Xq, yq)
    assert relative(attributions[:, 5:45], left_out) <= 0.1
    assert (np.abs(attributions[:, weights == 0]) <= 1e-9).all()


@pytest.mark.parametrize("outcome", ["log_likelihood", "margin", "probability"])
@pytest.mark.parametrize("of", ["cancer", "wine"])
def test_outcomes_of_classifiers_are_those_of_retraining(outcome, of):
    X, y, Xq, yq = table(of)
    dual = fitted(logistic(), X, y, outcome=outcome)
    weights = make_weightings(len(X), 5, random_state=0)
    expected = truth(dual, X, y, weights, Xq, yq)
    assert relative(dual.predict_outcomes(Xq, yq, weights), expected) <= 1e-5


@pytest.mark.parametrize("outcome", ["log_likelihood", "margin"])
@pytest.mark.parametrize("of", ["cancer", "wine"])
@pytest.mark.parametrize(
    "estimator", [LinearSVC(tol=1e-9, max_iter=200_000), RidgeClassifier()]
)
def test_classifiers_without_probabilities_have_their_own_outcomes(
    estimator, of, outcome
):
    X, y, Xq, yq = table(of)
    estimator = estimator.set_params(random_state=0)
    dual = fitted(estimator, X, y, outcome=outcome)
    present = dual.predict_outcomes(Xq, yq, np.ones(len(X)))[0]
    values = dual.estimator_.decision_function(Xq)
    if of == "cancer":
        signs = 2 * yq - 1
        margin, losses = signs * values, (1 - signs * values)[:, None]
    else:
        signs = 2 * np.eye(3)[yq] - 1
        margin, losses = values[np.arange(len(yq)), yq], 1 - signs * values
    if outcome == "margin":
        expected = margin
    elif isinstance(estimator, LinearSVC):
        expected = -np.square(losses.clip(min=0)).sum(axis=1)
    else:
        expected = -0.5 * np.square(losses).sum(axis=1)
    np.testing.assert_allclose(present, expected, rtol=1e-9)
    again = truth(dual, X, y, np.ones((1, len(X))), Xq, yq)[0]
    np.testing.assert_allclose(again, expected, rtol=1e-5, atol=1e-9)
    assert dual.transform(Xq).shape == (len(Xq), len(X))


def test_counts_are_measured_by_their_deviance():
    X, y, Xq, yq = table("counts")
    dual = fitted(PoissonRegressor(), X, y)
    mean = dual.estimator_.predict(Xq)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(yq > 0, yq * np.log(yq / mean), 0.0)
    expected = -(logs - yq + mean)
    np.testing.assert_allclose(
        dual.predict_outcomes(Xq, yq, np.ones(len(X)))[0], expected, rtol=1e-9
    )


@pytest.mark.parametrize("name", ["logistic", "softmax", "svc", "ridge"])
def test_rows_sum_to_what_relaxing_the_penalty_does(name):
    estimator, of, _ = FAMILIES[name]
    X, y, Xq, yq = table(of)
    dual = fitted(estimator, X, y, removal="influence")
    sums = dual.attribute(Xq, yq).sum(axis=1)
    step = 1e-3
    outcomes = []
    for factor in (1 + step, 1 - step):
        strength = (
            {"alpha": estimator.alpha / factor}
            if name == "ridge"
            else {"C": estimator.C * factor}
        )
        changed = fitted(
            type(estimator)(**{**estimator.get_params(), **strength}), X, y
        )
        outcomes.append(changed.predict_outcomes(Xq, yq, np.ones(len(X)))[0])
    slope = (outcomes[0] - outcomes[1]) / (2 * step)
    np.testing.assert_allclose(sums, slope, rtol=2e-2, atol=2e-3 * np.abs(slope).max())
    assert np.abs(sums).max() > 1e-4


@pytest.mark.parametrize("name", ["elastic", "poisson", "least squares"])
def test_rows_sum_to_nothing_where_the_penalty_is_per_sample(name):
    estimator, of, _ = FAMILIES[name]
    X, y, Xq, yq = table(of)
    attributions = fitted(estimator, X, y, removal="influence").attribute(Xq, yq)
    assert np.abs(attributions.sum(axis=1)).max() <= 1e-5 * np.abs(attributions).max()


def test_the_gradient_that_a_loose_solver_left_is_kept():
    X, y, Xq, yq = table("cancer", n=400)
    with pytest.warns(UserWarning, match="times as far from its optimum"):
        loose = fitted(LogisticRegression(tol=1e-3), X, y)
    ones = np.ones(len(X))
    present = loose.estimator_.predict_log_proba(Xq)[np.arange(len(yq)), yq]
    np.testing.assert_allclose(
        loose.predict_outcomes(Xq, yq, ones)[0], present, rtol=1e-9, atol=1e-12
    )
    tight = fitted(logistic(), X, y)
    assert relative(loose.attribute(Xq, yq), tight.attribute(Xq, yq)) < 0.15
    with pytest.warns(UserWarning, match="of where it stopped, not of the optimum"):
        far = fitted(LogisticRegression(tol=0.1), X, y)
    with pytest.warns(UserWarning, match="Do not trust: .* from its optimum"):
        assert not far.diagnose(Xq, yq).trustworthy


def test_a_smaller_tol_is_no_cure_in_single_precision():
    X, y, *_ = table("cancer")
    for dtype, cure in (np.float32, "it X in double precision"), (float, "Use a small"):
        with pytest.warns(UserWarning, match=f"leave-one-out .* is noise.*{cure}"):
            fitted(LogisticRegression(tol=1e-2), X.astype(dtype), y)


@pytest.mark.parametrize("solver", ["primal", "dual"])
def test_the_distance_to_the_optimum_is_the_same_in_every_space(solver):
    X, y, *_ = table("cancer")
    loose = LogisticRegression(tol=1e-2, solver="newton-cholesky")
    with pytest.warns(UserWarning, match="times as far from its optimum"):
        by_iteration = fitted(loose, X, y, solver="cg")
    with pytest.warns(UserWarning, match="times as far from its optimum"):
        direct = fitted(loose, X, y, solver=solver)
    distances = [
        dual._linear_models[0].distance_to_optimum() for dual in (by_iteration, direct)
    ]
    assert 0.5 < distances[0] / distances[1] < 2


def test_a_truth_at_another_tolerance():
    X, y, Xq, yq = table("cancer")
    weights = make_weightings(len(X), 4, random_state=0)
    data = (X, y, weights, Xq, yq)
    lax = LogisticRegression(tol=0.1, random_state=0)
    tight = retrain_outcomes(logistic(random_state=0), *data)
    loose = retrain_outcomes(lax, *data)
    asked = retrain_outcomes(lax, *data, tol=1e-10)
    assert np.abs(asked - tight).max() < 1e-6 < np.abs(loose - tight).max()


def test_what_a_search_of_its_own_chose_is_kept():
    X, y, Xq, yq = table("cancer")
    search = LogisticRegressionCV(
        Cs=[1e-3, 0.1],
        l1_ratios=(0,),
        scoring="neg_log_loss",
        use_legacy_attributes=False,
        tol=1e-10,
        max_iter=20_000,
    )
    dual = fitted(search, X, y, n_retrainings=8)
    kept = recipe = dual._linear_models[0].trained.recipe()
    assert isinstance(recipe, LogisticRegression)
    assert kept.C == dual.estimator_.C_
    assert dual.score(Xq, yq) > 0.99999
    same = fitted(kept, X, y)
    np.testing.assert_allclose(
        dual.attribute(Xq, yq), same.attribute(Xq, yq), rtol=1e-2, atol=1e-9
    )


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_subsets_of_fewer_rows_than_coefficients(fit_intercept):
    """The penalty alone decides where the loss of those rows has no curvature."""
    rng = np.random.RandomState(0)
    X, Xq = rng.randn(25, 30), rng.randn(4, 30)
    y, yq = X[:, :3].sum(axis=1) + 0.3 * rng.randn(25), rng.randn(4)
    options = {"tol": 1e-12, "max_iter": 100_000, "random_state": 0}
    lasso = Lasso(0.1, fit_intercept=fit_intercept, **options)
    dual = fitted(lasso, X, y)
    sizes = [1, 2, 3, 5, 8, 12, 16, 24]
    weights = np.array([rng.permutation(25) < size for size in sizes], dtype=float)
    expected = retrain_outcomes(lasso, X, y, weights, Xq, yq)
    found = dual.predict_outcomes(Xq, yq, weights)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_search_by_liblinear_has_the_intercept_of_its_last_fit():
    X, y, Xq, yq = table("cancer")
    search = LogisticRegressionCV(
        Cs=[0.1],
        l1_ratios=(0,),
        scoring="neg_log_loss",
        use_legacy_attributes=False,
        solver="liblinear",
        intercept_scaling=5.0,
        random_state=0,
        tol=1e-10,
        max_iter=20_000,
    )
    dual = fitted(search, X, y)
    half = 1.0 * (np.arange(len(X)) % 2)[None]
    found = dual.predict_outcomes(Xq, yq, half)
    rows = half[0] > 0
    expected = search.fit(X[rows], y[rows]).predict_log_proba(Xq)
    np.testing.assert_allclose(found[0], expected[np.arange(len(yq)), yq], atol=1e-6)


def test_a_class_without_rows_is_retrained_without():
    X, y, Xq, yq = table("wine")
    dual = fitted(logistic(), X, y)
    dual.fit(X, y, tasks=y)  # each class a task
    weights = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 1], [0, 0, 1]])
    options = {"tasks": y}
    expected = truth(dual, X, y, weights, Xq, yq, **options)
    np.testing.assert_allclose(
        dual.predict_outcomes(Xq, yq, weights), expected, atol=1e-6
    )
    np.testing.assert_allclose(
        dual.attribute(Xq, yq)[:, :2], (expected[2] - expected[:2]).T, atol=1e-6
    )
    with pytest.raises(ValueError, match="leave a class without rows"):
        dual.parameter_change(weights)


def test_a_row_that_is_alone_in_its_class():
    X, y, Xq, yq = table("wine")
    y = np.where(np.arange(len(y)) == 7, 3, y)
    dual = fitted(logistic(), X, y)
    without = np.ones((2, len(X)))
    without[1, 7] = 0
    expected = truth(dual, X, y, without, Xq, yq)
    found = dual.attribute(Xq, yq)[:, 7]
    np.testing.assert_allclose(found, expected[0] - expected[1], atol=1e-6)


@pytest.mark.touches_global_rng  # SVR does
def test_a_precomputed_kernel_loses_rows_and_columns():
    X, y, Xq, yq = table("diabetes")
    K, Kq = rbf_kernel(X, gamma=0.05), rbf_kernel(Xq, X, gamma=0.05)
    weights = make_weightings(len(X), 5, random_state=0)
    for given, other in [
        (KernelRidge(kernel="precomputed"), KernelRidge(kernel="rbf", gamma=0.05)),
        (SVR(kernel="precomputed"), SVR(kernel="rbf", gamma=0.05)),
    ]:
        expected = retrain_outcomes(other, X, y, weights, Xq, yq)
        found = retrain_outcomes(given, K, y, weights, Kq, yq)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    dual = fitted(KernelRidge(kernel="precomputed"), K, y)
    other = fitted(KernelRidge(kernel="rbf", gamma=0.05), X, y)
    np.testing.assert_allclose(
        dual.attribute(Kq, yq), other.attribute(Xq, yq), rtol=1e-6, atol=1e-6
    )
    surrogate = KernelSurrogateAttributor(
        KernelRidge(kernel="precomputed"), n_subsets=16, n_retrainings=8, random_state=0
    )
    assert np.isfinite(surrogate.fit(K, y).attribute(Kq, yq)).all()


def test_it_is_a_prior_of_a_surrogate():
    X, y, Xq, yq = table("cancer", n=60)
    options = {"n_subsets": 16, "n_retrainings": 16, "random_state": 0}
    with_prior = LinearSurrogateAttributor(logistic(), prior=DualInfluence(), **options)
    without = LinearSurrogateAttributor(logistic(), **options)
    scores = [a.fit(X, y).score(Xq, yq) for a in (with_prior, without)]
    assert scores[0] > scores[1] + 0.2


def test_the_score_is_next_to_one():
    X, y, Xq, yq = table("cancer")
    dual = fitted(logistic(), X, y, n_retrainings=16)
    assert dual.score(Xq, yq) > 0.99999
    weights = make_weightings(len(X), 16, random_state=3)
    expected = truth(dual, X, y, weights, Xq, yq)
    additive = fitted(logistic(), X, y, removal="influence")
    first_order = additive.predict_outcomes(Xq, yq, weights)
    assert lds_score(expected, first_order) < 0.9999
