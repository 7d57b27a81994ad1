"""Absent is deleted: the truth of an estimator is its fit to the rows that are left."""

import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.base import clone, is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cross_decomposition import PLSRegression
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.discriminant_analysis import (
    LinearDiscriminantAnalysis,
    QuadraticDiscriminantAnalysis,
)
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.gaussian_process import (
    GaussianProcessClassifier,
    GaussianProcessRegressor,
)
from sklearn.isotonic import IsotonicRegression
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import (
    BayesianRidge,
    HuberRegressor,
    LassoCV,
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    QuantileRegressor,
    Ridge,
    RidgeCV,
    SGDClassifier,
)
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import BernoulliNB, GaussianNB
from sklearn.neighbors import (
    KNeighborsClassifier,
    KNeighborsRegressor,
    RadiusNeighborsClassifier,
)
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from skattrib import KernelSurrogateAttributor, LinearSurrogateAttributor, TreeInfluence
from skattrib.evaluation import make_weightings, retrain_outcomes
from tests.trees.cases import floored

FORESTS = DecisionTreeClassifier, ExtraTreesClassifier, RandomForestClassifier


def logistic_regression_cv():
    """Without what versions of scikit-learn deprecate."""
    found = LogisticRegressionCV(Cs=3, cv=2, random_state=0)
    newer = {"l1_ratios": (0,), "use_legacy_attributes": False}
    if newer.keys() <= found.get_params().keys():
        found.set_params(**newer)
    return found


CLASSIFIERS = [
    LogisticRegression(random_state=0),
    logistic_regression_cv(),
    SGDClassifier(loss="log_loss", random_state=0),
    LinearDiscriminantAnalysis(),
    QuadraticDiscriminantAnalysis(reg_param=0.1),
    GaussianNB(),
    BernoulliNB(binarize=2.0),
    KNeighborsClassifier(3),
    RadiusNeighborsClassifier(5.0),
    GaussianProcessClassifier(optimizer=None, random_state=0),
    DecisionTreeClassifier(max_depth=3, random_state=0),
    ExtraTreesClassifier(5, random_state=0),
    RandomForestClassifier(5, random_state=0),
    BaggingClassifier(KNeighborsClassifier(2), 3, random_state=0),
    AdaBoostClassifier(n_estimators=3, random_state=0),
    GradientBoostingClassifier(n_estimators=3, random_state=0),
    HistGradientBoostingClassifier(max_iter=3, min_samples_leaf=2, random_state=0),
    CalibratedClassifierCV(GaussianNB(), cv=2),
    VotingClassifier(
        [("a", GaussianNB()), ("b", KNeighborsClassifier())], voting="soft"
    ),
    StackingClassifier(
        [("a", GaussianNB()), ("b", KNeighborsClassifier(2))],
        LogisticRegression(random_state=0),
        cv=2,
    ),
    MLPClassifier((3,), max_iter=10, random_state=0),
    make_pipeline(StandardScaler(), KNeighborsClassifier(3)),
    GridSearchCV(KNeighborsClassifier(), {"n_neighbors": [2, 3]}, cv=2),
]
REGRESSORS = [
    LinearRegression(),
    Ridge(random_state=0),
    RidgeCV(),
    LassoCV(alphas=[0.1, 1.0], cv=2, random_state=0),
    BayesianRidge(),
    HuberRegressor(),
    QuantileRegressor(alpha=0.1),
    KernelRidge(),
    SVR(),
    PLSRegression(),
    KNeighborsRegressor(3),
    GaussianProcessRegressor(random_state=0),
    DecisionTreeRegressor(max_depth=3, random_state=0),
    RandomForestRegressor(5, random_state=0),
    GradientBoostingRegressor(
        n_estimators=20, n_iter_no_change=2, validation_fraction=0.3, random_state=0
    ),
    HistGradientBoostingRegressor(max_iter=3, min_samples_leaf=2, random_state=0),
    MLPRegressor(
        hidden_layer_sizes=(3,), max_iter=10, early_stopping=True, random_state=0
    ),
    IsotonicRegression(out_of_bounds="clip"),
]


def named(estimator):
    return type(estimator).__name__


def data(estimator, n=60):
    load = load_iris if is_classifier(estimator) else load_diabetes
    X, y = load(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(y))
    X, y = X[order], y[order]
    if named(estimator) == "IsotonicRegression":
        X = X[:, 2:3]
    return X[:n], y[:n], X[n : n + 8], y[n : n + 8]


def by_deletion(estimator, X, y, weights, Xq, yq):
    """Outcomes by fitting to the rows that are left, and nothing else."""
    outcomes = []
    for row in weights:
        fitted = clone(estimator).fit(X[row > 0], y[row > 0])
        if not is_classifier(estimator):
            outcomes.append(-0.5 * (fitted.predict(Xq).ravel() - yq) ** 2)
            continue
        p = np.zeros((len(Xq), 3))
        p[:, fitted.classes_] = fitted.predict_proba(Xq)
        if isinstance(estimator, FORESTS):
            p = floored(p, len(y))
        smallest = np.finfo(np.float64).eps
        outcomes.append(np.log(p[np.arange(len(yq)), yq].clip(smallest)))
    return np.array(outcomes)


def weightings(y, classes):
    """Half of the rows; the first class almost gone; and gone."""
    half = make_weightings(len(y), 1, random_state=0)
    if not classes:
        return half
    almost, gone = np.ones((2, len(y)))
    almost[np.flatnonzero(y == 0)[5:]] = 0
    gone[y == 0] = 0
    return np.vstack([half, almost, gone])


@pytest.mark.touches_global_rng  # libsvm does
@pytest.mark.filterwarnings("ignore")  # of estimators that did not converge
@pytest.mark.parametrize("estimator", [*CLASSIFIERS, *REGRESSORS], ids=named)
def test_the_truth_is_the_fit_to_the_rows_that_are_left(estimator):
    X, y, Xq, yq = data(estimator)
    weights = weightings(y, is_classifier(estimator))
    expected = by_deletion(estimator, X, y, weights, Xq, yq)
    found = retrain_outcomes(estimator, X, y, weights, Xq, yq)
    if isinstance(estimator, type(make_pipeline(StandardScaler()))):
        # its scaler is kept
        Z, Zq = (estimator[0].fit(X).transform(rows) for rows in (X, Xq))
        expected = by_deletion(estimator[-1], Z, y, weights, Zq, yq)
    assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_histograms_of_what_is_left():
    X, y = load_breast_cancer(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(y))
    X, y = X[order], y[order]
    weights = np.ones((1, 200))
    weights[0, np.flatnonzero(y[:200] == 0)[5:]] = 0
    kept, queries = weights[0] > 0, (X[200:260], y[200:260])
    trees = HistGradientBoostingClassifier(max_iter=20, random_state=0)
    found = retrain_outcomes(trees, X[:200], y[:200], weights, *queries)[0]
    fitted = clone(trees).fit(X[:200][kept], y[:200][kept])
    every = np.log(fitted.predict_proba(queries[0]))
    assert_allclose(found, every[np.arange(60), queries[1]], rtol=1e-12)


def test_fractions_are_weights_of_the_rows_that_are_left():
    X, y, Xq, yq = data(CLASSIFIERS[0])
    weights = np.random.RandomState(0).choice([0, 0.5, 2.0], (2, len(y)))
    kept = weights[0] > 0
    fitted = clone(CLASSIFIERS[0]).fit(X[kept], y[kept], weights[0][kept])
    expected = fitted.predict_log_proba(Xq)[np.arange(len(yq)), yq]
    found = retrain_outcomes(CLASSIFIERS[0], X, y, weights, Xq, yq)[0]
    assert_allclose(found, expected, rtol=1e-12)


def test_refitted_pipelines_put_classes_back_too():
    X, y, Xq, yq = data(CLASSIFIERS[0])
    pipeline = make_pipeline(StandardScaler(), KNeighborsClassifier(3))
    weights = weightings(y, True)
    found = retrain_outcomes(pipeline, X, y, weights, Xq, yq, refit_transformers=True)
    expected = by_deletion(pipeline, X, y, weights, Xq, yq)
    assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [KNeighborsClassifier, LinearDiscriminantAnalysis])
def test_estimators_without_weights_have_attributions_and_a_score(kind):
    X, y, Xq, yq = data(kind())
    surrogate = KernelSurrogateAttributor(
        kind(), n_subsets=40, n_retrainings=16, random_state=0
    )
    surrogate.fit(X, y, tasks=np.arange(len(y)) % 10)
    assert surrogate.attribute(Xq, yq).shape == (8, 10)
    assert surrogate.score(Xq, yq) > 0


def test_outcomes_of_before_are_not_taken_for_these(tmp_path):
    """Which multiplied rows by 0: their key is another."""
    X, y, Xq, yq = data(CLASSIFIERS[0])
    weights = weightings(y, True)
    forest = RandomForestClassifier(5, random_state=0)
    first = retrain_outcomes(forest, X, y, weights, Xq, yq, memory=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = retrain_outcomes(forest, X, y, weights, Xq, yq, memory=tmp_path)
    assert_allclose(again, first, rtol=0)


def test_one_class_alone_is_what_is_predicted():
    """Though logistic regression cannot be fitted to it."""
    X, y, Xq, yq = data(CLASSIFIERS[0])
    weights = (y == 1)[None].astype(float)
    found = retrain_outcomes(CLASSIFIERS[0], X, y, weights, Xq, yq)[0]
    expected = np.where(yq == 1, 0.0, np.log(np.finfo(np.float64).eps))
    assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("attributor", "estimator"),
    [
        (TreeInfluence, HistGradientBoostingClassifier(max_iter=9, random_state=0)),
        (TreeInfluence, RandomForestClassifier(5, random_state=0)),
        (LinearSurrogateAttributor, DecisionTreeClassifier(random_state=0)),
        (LinearSurrogateAttributor, SVC(random_state=0)),
    ],
)
def test_attributors_train_without_rows_of_weight_zero(attributor, estimator):
    X, y = load_breast_cancer(return_X_y=True)
    weights = np.r_[np.zeros(40), np.full(80, 2.0)]
    size = "n_structures" if attributor is TreeInfluence else "n_subsets"
    options = {"n_halves": 0} if attributor is TreeInfluence else {}
    options[size] = 12
    model = attributor(estimator, random_state=0, **options)
    model.fit(X[:120], y[:120], sample_weight=weights)
    left = clone(estimator).fit(X[40:120], y[40:120], sample_weight=weights[40:])
    asked = "decision_function" if isinstance(estimator, SVC) else "predict_proba"
    found, expected = (getattr(m, asked)(X[120:]) for m in (model.estimator_, left))
    np.testing.assert_array_equal(found, expected)
