"""Linear and kernel models of scikit-learn, tables for them, and how they compare."""

import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import (
    ElasticNet,
    ElasticNetCV,
    GammaRegressor,
    Lasso,
    LassoCV,
    LinearRegression,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
    RidgeClassifier,
    RidgeClassifierCV,
    RidgeCV,
    TweedieRegressor,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputRegressor
from sklearn.preprocessing import scale
from sklearn.svm import LinearSVC, LinearSVR

from skattrib import DualInfluence
from skattrib.evaluation import retrain_outcomes
from skattrib.models._kept_models import recipe_of

TIGHT = {"tol": 1e-10, "max_iter": 20_000}
GLM = {"tol": 1e-12, "max_iter": 20_000, "alpha": 0.1}
SVM = {"tol": 1e-9, "max_iter": 200_000, "random_state": 0}


def logistic(**options):
    return LogisticRegression(**{**TIGHT, **options})


# Estimator, table, and bounds on the relative errors of leave-one-out, as `attribute`
# has it, and of halves.
EXACT = (1e-9, 1e-9)
SMOOTH = (0.1, 1e-4)
KINKED = (1e-3, 1e-4)
FAMILIES = {
    "logistic": (logistic(), "cancer", SMOOTH),
    "softmax": (logistic(), "wine", SMOOTH),
    "no intercept": (logistic(fit_intercept=False), "wine", SMOOTH),
    "balanced": (logistic(class_weight="balanced"), "cancer", SMOOTH),
    "balanced softmax": (logistic(class_weight="balanced"), "wine", SMOOTH),
    "class weights": (logistic(class_weight={0: 3.0, 1: 0.5}), "cancer", SMOOTH),
    "newton-cholesky": (logistic(solver="newton-cholesky"), "wine", SMOOTH),
    "liblinear": (
        logistic(solver="liblinear", intercept_scaling=2.0, random_state=0),
        "cancer",
        SMOOTH,
    ),
    "liblinear l1": (
        logistic(solver="liblinear", l1_ratio=1.0, C=0.3, random_state=0),
        "cancer",
        KINKED,
    ),
    "elastic net": (
        logistic(solver="saga", l1_ratio=0.5, C=0.2, random_state=0),
        "wine",
        KINKED,
    ),
    "least squares": (LinearRegression(), "diabetes", EXACT),
    "ridge": (Ridge(), "diabetes", EXACT),
    "ridge of two": (Ridge(alpha=np.array([1.0, 30.0])), "two", EXACT),
    "ridge no intercept": (Ridge(fit_intercept=False), "diabetes", EXACT),
    "ridge cv": (RidgeCV(), "diabetes", EXACT),
    "ridge classifier": (RidgeClassifier(), "cancer", EXACT),
    "ridge classifier cv": (RidgeClassifierCV(), "wine", EXACT),
    "ridge balanced": (RidgeClassifier(class_weight="balanced"), "wine", EXACT),
    "elastic": (ElasticNet(**TIGHT), "diabetes", (1e-6, 1e-6)),
    "elastic cv": (ElasticNetCV(alphas=5, **TIGHT), "diabetes", (1e-6, 1e-6)),
    "lasso": (Lasso(**TIGHT), "diabetes", (1e-6, 1e-6)),
    "lasso cv": (LassoCV(alphas=5, **TIGHT), "diabetes", (1e-6, 1e-6)),
    "poisson": (PoissonRegressor(**GLM), "counts", SMOOTH),
    "gamma": (GammaRegressor(**GLM), "diabetes", SMOOTH),
    "tweedie": (TweedieRegressor(power=1.5, **GLM), "counts", SMOOTH),
    "tweedie 0": (TweedieRegressor(power=0, **GLM), "counts", KINKED),
    "svc": (LinearSVC(**SVM), "cancer", KINKED),
    "svc of three": (LinearSVC(**SVM), "wine", KINKED),
    "svc balanced": (LinearSVC(class_weight="balanced", **SVM), "cancer", KINKED),
    "svr": (
        LinearSVR(loss="squared_epsilon_insensitive", epsilon=10.0, dual=False, **SVM),
        "diabetes",
        KINKED,
    ),
    "kernel": (KernelRidge(kernel="rbf", gamma=0.05), "diabetes", EXACT),
    "kernel of two": (
        KernelRidge(kernel="poly", degree=2, alpha=np.array([3.0, 9.0])),
        "two",
        EXACT,
    ),
    "gaussian process": (
        GaussianProcessRegressor(
            RBF(4.0) + WhiteKernel(0.5), normalize_y=True, random_state=0
        ),
        "diabetes",
        EXACT,
    ),
    "one vs rest": (OneVsRestClassifier(logistic()), "wine", SMOOTH),
    "one vs rest svc": (OneVsRestClassifier(LinearSVC(**SVM)), "wine", KINKED),
    "outputs": (MultiOutputRegressor(Ridge()), "two", EXACT),
    "outputs poisson": (
        MultiOutputRegressor(PoissonRegressor(**GLM)),
        "counts of two",
        SMOOTH,
    ),
}


def table(name, n=120, n_query=25):
    """Return training rows and queries, shuffled and scaled."""
    loaders = {"cancer": load_breast_cancer, "wine": load_wine}
    X, y = loaders.get(name, load_diabetes)(return_X_y=True)
    other = X[:, 2] * 1000 + y
    if name.startswith("counts"):
        y, other = np.round(y / 20), np.round(np.abs(other) / 20)
    if name.endswith("two"):
        y = np.column_stack([y, other])
    rows = np.random.RandomState(0).permutation(len(y))[: n + n_query]
    X, y = scale(X)[rows], y[rows]
    return X[:n], y[:n], X[n:], y[n:]


def fitted(estimator, X, y, **options):
    return DualInfluence(estimator, random_state=0, **options).fit(X, y)


def truth(dual, X, y, weights, Xq, yq, **options):
    """Return outcomes of retrained models, at the penalty that was chosen."""
    return retrain_outcomes(
        recipe_of(dual._model), X, y, weights, Xq, yq, outcome=dual.outcome, **options
    )


def relative(found, expected):
    return np.abs(found - expected).mean() / np.abs(expected).mean()
