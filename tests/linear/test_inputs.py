"""What linear models take (tables, texts, sparse rows, searches) and refuse."""

import re

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.datasets import load_breast_cancer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.impute import SimpleImputer
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import (
    GammaRegressor,
    HuberRegressor,
    Lasso,
    LinearRegression,
    LogisticRegression,
    MultiTaskLasso,
    PoissonRegressor,
    QuantileRegressor,
    Ridge,
    SGDClassifier,
    TweedieRegressor,
)
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.svm import SVC, LinearSVC, LinearSVR
from sklearn.tree import DecisionTreeClassifier

from skattrib import (
    AdamWInfluence,
    DualInfluence,
    KernelSurrogateAttributor,
    make_attributor,
)
from skattrib.evaluation import make_weightings, retrain_outcomes
from skattrib.exceptions import FaithfulnessWarning, UnsupportedModelError
from tests.linear.cases import TIGHT, fitted, logistic, relative, table


def mixed(n=80):
    """A table with numbers, words and holes, named rows, and labels."""
    rng = np.random.RandomState(0)
    frame = pd.DataFrame(
        {
            "size": rng.randn(n),
            "town": rng.choice(["Oslo", "Rome", "Kyiv"], n),
            "age": np.where(rng.rand(n) < 0.1, np.nan, rng.randint(20, 80, n)),
        },
        index=[f"r{i}" for i in range(n)],
    )
    noise = rng.randn(n) + (frame["town"] == "Rome")
    return frame, pd.Series(
        np.where(frame["size"] + noise > 0, "yes", "no"), frame.index
    )


def pipeline(model):
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    words = OneHotEncoder(handle_unknown="ignore")
    return make_pipeline(
        make_column_transformer((numbers, ["size", "age"]), (words, ["town"])), model
    )


def documents(n=60):
    rng = np.random.RandomState(0)
    words = {0: "goal ball team", 1: "stock bank price", 2: "atom cell gene"}
    labels = rng.randint(3, size=n)
    common = "the and with from about".split()
    texts = [" ".join(rng.choice(words[label].split() + common, 7)) for label in labels]
    return texts, labels


def test_a_raw_table_in_a_pipeline():
    X, y = mixed()
    dual = fitted(pipeline(logistic()), X[:60], y[:60], n_retrainings=16)
    top = dual.top_units(X[60:62], y[60:62], n=2, data=X[:60])
    assert list(top.columns) == ["query", "rank", "unit", "attribution", *X.columns]
    assert set(top["unit"]) <= set(X.index[:60])
    assert dual.score(X[60:], y[60:]) > 0.9999
    unknown = X[60:61].assign(town="Nowhere")
    assert np.isfinite(dual.attribute(unknown, y[60:61])).all()
    names = dual.parameter_change(np.ones((1, 60)), as_frame=True).columns
    assert names[-1] == "intercept"
    assert len(names) == 6


def test_words_without_an_encoder_are_refused_with_the_cure():
    X, y = mixed()
    with pytest.raises(ValueError, match=r"then make_pipeline\(encoder, LogisticReg"):
        fitted(LogisticRegression(), X, y)


def test_categories_that_are_unknown_are_named():
    X, y = mixed()
    strict = make_pipeline(
        make_column_transformer((OneHotEncoder(), ["town"])), logistic()
    )
    dual = fitted(strict, X, y)
    with pytest.raises(ValueError, match="unknown categories"):
        dual.attribute(X[:1].assign(town="Nowhere"), y[:1])


@pytest.mark.parametrize("kind", [list, np.array, pd.Series])
def test_texts_in_a_pipeline(kind):
    texts, labels = documents()
    pipe = make_pipeline(TfidfVectorizer(), logistic())
    dual = fitted(pipe, kind(texts[:50]), labels[:50], n_retrainings=8)
    queries = kind(texts[50:])
    assert dual.score(queries, labels[50:]) > 0.9999
    rows = TfidfVectorizer().fit(texts[:50])
    plain = fitted(logistic(), rows.transform(texts[:50]).toarray(), labels[:50])
    np.testing.assert_allclose(
        dual.attribute(queries, labels[50:]),
        plain.attribute(rows.transform(texts[50:]).toarray(), labels[50:]),
        rtol=1e-4,
        atol=1e-7,
    )
    with pytest.raises(ValueError, match="must be a 1-D sequence of str"):
        dual.attribute(texts[50], labels[50:51])


@pytest.mark.parametrize("changed", [["passthrough"], [None, "lower"], ["lower"]])
def test_functions_change_texts_before_they_are_numbers(changed):
    texts, labels = documents()
    lower = FunctionTransformer(lambda rows: [text.lower() for text in rows])
    steps = [lower if step == "lower" else step for step in changed]
    upper = [text.upper() for text in texts]
    vectors = TfidfVectorizer(lowercase="lower" not in changed)
    dual = fitted(make_pipeline(*steps, vectors, logistic()), upper[:50], labels[:50])
    plain = make_pipeline(TfidfVectorizer(), logistic())
    plain = fitted(plain, texts[:50], labels[:50])
    np.testing.assert_allclose(
        dual.attribute(upper[50:], labels[50:]),
        plain.attribute(texts[50:], labels[50:]),
        rtol=1e-10,
    )
    of_column = FunctionTransformer(lambda table: table["text"])
    pipe = make_pipeline(of_column, *steps, vectors, logistic())
    table = pd.DataFrame({"text": upper, "words": [len(text) for text in texts]})
    picked = fitted(pipe, table[:50], labels[:50])
    np.testing.assert_allclose(
        picked.attribute(table[50:], labels[50:]),
        plain.attribute(texts[50:], labels[50:]),
        rtol=1e-10,
    )


def test_functions_of_a_series_are_told_that_texts_are_an_array():
    texts, labels = documents()
    lower = FunctionTransformer(lambda rows: rows.str.lower())
    pipe = make_pipeline(lower, TfidfVectorizer(), logistic())
    with pytest.raises(
        ValueError, match=r"Make one in the function: pd\.Series\(texts"
    ):
        fitted(pipe, pd.Series(texts), labels)
    lower = FunctionTransformer(lambda rows: pd.Series(rows).str.lower())
    dual = fitted(make_pipeline(lower, TfidfVectorizer(), logistic()), texts, labels)
    assert np.abs(dual.attribute(pd.Series(texts[:2]), labels[:2])).max() > 0


@pytest.mark.parametrize("solver", ["primal", "dual", "cg"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_sparse_rows_give_what_dense_rows_give(solver, dtype):
    texts, labels = documents()
    rows = TfidfVectorizer(ngram_range=(1, 2)).fit_transform(texts)
    # the same numbers, rounded once
    rows = rows.astype(np.float32).astype(dtype)
    model = fitted(Ridge(solver="cholesky"), rows.toarray(), labels, solver="primal")
    options = {"removal": "newton", "solver": solver}
    ours = fitted(logistic(), rows[:50], labels[:50], **options)
    theirs = fitted(logistic(), rows[:50].toarray(), labels[:50], removal="newton")
    found = ours.attribute(rows[50:], labels[50:])
    assert found.dtype == dtype
    tolerance = 1e-8 if dtype == np.float64 else 1e-4
    expected = theirs.attribute(rows[50:].toarray(), labels[50:])
    np.testing.assert_allclose(found, expected, atol=tolerance)
    halves = make_weightings(50, 4, random_state=0)
    np.testing.assert_allclose(
        ours.predict_outcomes(rows[50:], labels[50:], halves),
        theirs.predict_outcomes(rows[50:].toarray(), labels[50:], halves),
        atol=10 * tolerance,
    )
    assert model.solver_ == "primal"


def test_the_space_is_chosen_by_shape_and_memory():
    texts, labels = documents()
    rows = TfidfVectorizer(ngram_range=(1, 3)).fit_transform(texts)
    assert rows.shape[1] > 3 * rows.shape[0]
    wide = fitted(logistic(), rows, labels)
    assert (wide.solver_, wide.removal_["attribute"]) == ("dual", "newton")
    import sklearn

    with sklearn.config_context(working_memory=1):
        small = fitted(logistic(), rows, labels)
        by_query = small.attribute(rows[:5], labels[:5])
    assert (small.solver_, small.removal_["attribute"]) == ("cg", "influence")
    first_order = fitted(logistic(), rows, labels, removal="influence")
    np.testing.assert_allclose(
        by_query, first_order.attribute(rows[:5], labels[:5]), atol=1e-7
    )


def test_a_search_over_the_penalty():
    X, y, *_ = table("cancer")
    search = GridSearchCV(
        DualInfluence(logistic(), n_retrainings=8, random_state=0),
        {"estimator__C": [0.1, 1.0]},
        cv=StratifiedKFold(2),
    ).fit(X, y)
    assert min(search.cv_results_["mean_test_score"]) > 0.9999
    inner = fitted(GridSearchCV(logistic(), {"C": [0.01, 1.0]}, cv=2), X, y)
    assert inner.score(X[:20], y[:20]) > 0.9999


def test_targets_that_are_transformed():
    X, y, Xq, yq = table("diabetes")
    around = TransformedTargetRegressor(Ridge(), func=np.log, inverse_func=np.exp)
    dual = fitted(around, X, y)
    weights = np.vstack([np.ones((1, len(X))), (1 - np.eye(len(X)))[:5]])
    seeded = clone(around).set_params(regressor__random_state=0)
    expected = retrain_outcomes(seeded, X, y, weights, Xq, yq)
    assert relative(dual.predict_outcomes(Xq, yq, weights), expected) < 1e-9


def test_a_frozen_model_is_taken_as_it_is():
    X, y, Xq, yq = table("cancer")
    model = logistic().fit(X, y)
    dual = fitted(FrozenEstimator(model), X, y)
    assert dual.estimator_.estimator is model
    same = fitted(logistic(), X, y).attribute(Xq, yq)
    np.testing.assert_allclose(dual.attribute(Xq, yq), same, rtol=1e-3, atol=1e-9)
    with pytest.raises(ValueError, match="not fitted"):
        fitted(FrozenEstimator(logistic()), X, y)


def test_attributors_that_work_are_named():
    assert type(make_attributor(LogisticRegression())) is DualInfluence
    with pytest.raises(UnsupportedModelError, match="Use DualInfluence or Kernel"):
        AdamWInfluence(logistic()).fit(*table("cancer")[:2])


X, Y = load_breast_cancer(return_X_y=True)
X, Y = X[:60] / X[:60].max(axis=0), Y[:60]
NUMBERS = X[:, 0] * 3 + np.arange(60) / 60
REFUSED = {
    "sgd": (SGDClassifier(), Y, "Use LogisticRegression for loss='log_loss'"),
    "svc": (SVC(), Y, r"Use LinearSVC \(squared hinge\)"),
    "huber": (HuberRegressor(), NUMBERS, r"loss=torch.nn.HuberLoss\(\)"),
    "quantile": (QuantileRegressor(), NUMBERS, "TorchRegressor with a smooth loss"),
    "hinge": (LinearSVC(loss="hinge"), Y, "Use loss='squared_hinge'"),
    "crammer": (LinearSVC(multi_class="crammer_singer"), Y, "Use 'ovr'"),
    "tube": (LinearSVR(), NUMBERS, "squared_epsilon_insensitive"),
    "positive": (Ridge(positive=True), NUMBERS, "Use positive=False"),
    "positive lasso": (Lasso(positive=True), NUMBERS, "Use positive=False"),
    "power": (TweedieRegressor(power=3), NUMBERS + 1, "Use a power from 1 to 2"),
    "link": (
        TweedieRegressor(power=0, link="log"),
        NUMBERS + 1,
        "is not convex in the coefficients",
    ),
    "tasks": (MultiTaskLasso(), np.column_stack([NUMBERS, NUMBERS]), "needs gradients"),
    "trees of each": (
        OneVsRestClassifier(DecisionTreeClassifier()),
        Y,
        "of DecisionTreeClassifier it is not known how",
    ),
    "weights of each": (
        OneVsRestClassifier(LogisticRegression(class_weight="balanced")),
        Y,
        "class_weight differs from output to output",
    ),
}


@pytest.mark.parametrize(("estimator", "y", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals_name_what_works(estimator, y, message):
    with pytest.raises(UnsupportedModelError, match=message) as error:
        fitted(estimator, X, y)
    assert "KernelSurrogateAttributor" in str(error.value)


BAD = {
    "separated": (
        LogisticRegression(C=np.inf),
        X,
        (X[:, 0] > 0.5) * 1,
        "a plane separates",
    ),
    "nothing penalised": (
        LinearRegression(),
        X[:20],
        NUMBERS[:20],
        "has no penalty, and with",
    ),
    "negative counts": (PoissonRegressor(), X, NUMBERS - 5, "out of the valid range"),
    "no zeros": (
        GammaRegressor(),
        X,
        np.r_[0.0, NUMBERS[1:] + 1],
        "out of the valid range",
    ),
    "kernel not square": (
        KernelRidge(kernel="precomputed"),
        X,
        NUMBERS,
        "needs X of shape",
    ),
    "kernel not symmetric": (
        KernelRidge(kernel="precomputed"),
        X[:, :1] + np.arange(60.0),
        NUMBERS,
        "needs a symmetric X",
    ),
    "kernel not positive": (
        KernelRidge(kernel="precomputed"),
        -np.eye(60) * 3,
        NUMBERS,
        "not positive definite",
    ),
    "one class": (LogisticRegression(), X, np.zeros(60), "class"),
}


@pytest.mark.parametrize(("estimator", "rows", "y", "message"), BAD.values(), ids=BAD)
def test_bad_input(estimator, rows, y, message):
    dual = DualInfluence(estimator, random_state=0)
    with pytest.raises(ValueError, match=message):
        dual.fit(rows, y)
    assert not hasattr(dual, "estimator_")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ridge": 0.1}, "ridge=0.1 does not apply to LogisticRegression: its own"),
        ({"ridge": "calibrate"}, "Leave ridge='auto'"),
        ({"metric": "identity"}, "refitted with its own penalty. Leave metric="),
        ({"regularization": "fixed"}, "Leave regularization="),
        ({"n_models": 2}, "its optimum depends on no seed"),
        ({"solver": "nystroem"}, "solver='nystroem' approximates"),
    ],
)
def test_parameters_that_do_not_apply(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fitted(LogisticRegression(), X, Y, **options)


def test_solvers_that_cannot_be_used():
    with pytest.raises(ValueError, match="solver='dual' needs one l2 penalty"):
        fitted(LinearRegression(), X, NUMBERS, solver="dual")
    with pytest.raises(ValueError, match="solver='cg' cannot follow"):
        fitted(Lasso(0.001), X, NUMBERS, solver="cg")
    # a solver is named as a cure if it works
    for model in (Lasso(0.001), LinearRegression(), Ridge()):
        with pytest.raises(ValueError, match="nystroem") as refused:
            fitted(model, X, NUMBERS, solver="nystroem")
        cures = str(refused.value).rpartition("Use solver=")[2]
        for solver in ("auto", "primal", "dual", "cg"):
            if repr(solver) in cures:
                assert fitted(model, X, NUMBERS, solver=solver).solver_
            else:
                with pytest.raises(ValueError, match="Use solver='auto'"):
                    fitted(model, X, NUMBERS, solver=solver)
    with pytest.raises(ValueError, match="ridge_path needs a damping"):
        fitted(Ridge(), X, NUMBERS).ridge_path(X, NUMBERS, ridges=[1.0])


def test_columns_that_are_collinear_are_pointed_out():
    rows, y, Xq, yq = table("diabetes")
    twice, queries = (np.column_stack([r, r[:, :1]]) for r in (rows, Xq))
    with pytest.warns(FaithfulnessWarning, match="columns of X are collinear"):
        dual = fitted(LinearRegression(), twice, y)
    plain = fitted(LinearRegression(), rows, y)
    np.testing.assert_allclose(
        dual.attribute(queries, yq), plain.attribute(Xq, yq), rtol=1e-6, atol=1e-6
    )


def test_weights_that_its_fit_does_not_take():
    rows, y, Xq, yq = table("diabetes", n=40)
    dual = fitted(GaussianProcessRegressor(random_state=0), rows, y)
    with pytest.raises(ValueError, match="takes no sample_weight"):
        dual.predict_outcomes(Xq, yq, np.full((1, 40), 0.5))
    with pytest.raises(ValueError, match="leave no row"):
        dual.predict_outcomes(Xq, yq, np.zeros((1, 40)))


def test_the_verdict_of_a_linear_model():
    rows, y, Xq, yq = table("cancer")
    found = fitted(logistic(), rows, y).diagnose(Xq, yq, n_retrainings=8)
    assert found.trustworthy
    assert found.lds > 0.9999
    assert found.calibration_slope == pytest.approx(1, abs=1e-3)
    assert 0 < found.step_linearity < 0.2
    assert 0 < found.leverage < 1
    assert found.distance_to_optimum < 0.01
    sparse_ones = fitted(Lasso(2.0, **TIGHT), *table("diabetes")[:2])
    assert sparse_ones.diagnose(*table("diabetes")[2:]).sign_changes >= 0


def test_surrogates_take_sparse_rows_and_texts():
    texts, labels = documents()
    pipe = make_pipeline(TfidfVectorizer(), logistic(random_state=0))
    options = {"n_subsets": 12, "n_retrainings": 8, "random_state": 0}
    surrogate = KernelSurrogateAttributor(clone(pipe), **options).fit(texts, labels)
    rows = sparse.csr_matrix(TfidfVectorizer().fit_transform(texts))
    other = KernelSurrogateAttributor(logistic(random_state=0), **options)
    np.testing.assert_allclose(
        surrogate.attribute(texts[:3], labels[:3]),
        other.fit(rows, labels).attribute(rows[:3], labels[:3]),
        atol=1e-6,
    )
