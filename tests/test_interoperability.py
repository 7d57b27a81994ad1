"""Every attributor next to the libraries that people bring along."""

import functools

import imblearn.pipeline
import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy
import skorch
import torch
from imblearn.over_sampling import RandomOverSampler
from imblearn.under_sampling import RandomUnderSampler
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import UnsetMetadataPassedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, scale
from sklearn.utils.fixes import parse_version
from torch import nn

from skattrib import (
    AdamWInfluence,
    CountSketchTransformer,
    DualInfluence,
    GradientTransformer,
    KernelSurrogate,
    KernelSurrogateAttributor,
    LinearSurrogate,
    LinearSurrogateAttributor,
    RISEValuator,
    TaskWeightSelector,
    TorchClassifier,
    TorchRegressor,
    record_training,
)
from skattrib.evaluation import lds_score, lds_scorer, make_weightings, retrain_outcomes
from tests.cases import build, mlp

N = 36


def data(n_queries=5):
    X, y = load_iris(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(y))
    X, y = scale(X)[order], y[order]
    return X[:N], y[:N], X[-n_queries:], y[-n_queries:]


def network(**options):
    options = {
        "hidden_layer_sizes": (4,),
        "max_epochs": 15,
        "random_state": 0,
    } | options
    return TorchClassifier(**options)


def attributors(model=None):
    model = network() if model is None else model
    options = {"n_retrainings": 8, "random_state": 0}
    return {
        "dual": DualInfluence(model, **options),
        "adamw": AdamWInfluence(model, n_trajectories=2, **options),
        "kernel": KernelSurrogateAttributor(model, n_subsets=24, **options),
        "linear": LinearSurrogateAttributor(model, n_subsets=24, **options),
        "rise": RISEValuator(model, n_components=16, **options),
    }


NAMES = list(attributors())


# ------------------------------------------------------------ pandas and polars
def tables(library):
    X, y, Xq, yq = data()
    columns = ["a b", "c", "d", "e"]
    if library == "polars":
        return pl.DataFrame(X, columns), pl.Series(y), pl.DataFrame(Xq, columns), yq
    rows, queries = [f"r{i}" for i in range(N)], [f"q{i}" for i in range(len(Xq))]
    return (
        pd.DataFrame(X, rows, columns),
        pd.Series(y, rows),
        pd.DataFrame(Xq, queries, columns),
        pd.Series(yq, queries),
    )


@pytest.mark.parametrize("library", ["pandas", "polars"])
@pytest.mark.parametrize("name", NAMES)
def test_tables_in_and_out(name, library):
    X, y, Xq, yq = tables(library)
    plain = attributors()[name].fit(*data()[:2])
    attributor = attributors()[name].set_output(transform=library).fit(X, y)
    out = attributor.transform(Xq)
    assert isinstance(out, pd.DataFrame if library == "pandas" else pl.DataFrame)
    units = X.index if library == "pandas" else range(N)
    assert list(out.columns) == [str(unit) for unit in units]
    assert_array_equal(attributor.unit_names_, units)
    if library == "pandas":
        assert_array_equal(out.index, Xq.index)
    # a table's columns lie one after the other: sums round differently
    same = functools.partial(assert_allclose, rtol=1e-7, atol=1e-12)
    same(out.to_numpy(), plain.transform(data()[2]))
    same(attributor.attribute(Xq, yq), plain.attribute(*data()[2:]))
    assert_array_equal(attributor.feature_names_in_, X.columns)


@pytest.mark.parametrize("name", NAMES)
def test_tasks_of_a_column_name_the_results(name):
    X, y, Xq, yq = tables("pandas")
    tasks = pd.Series(np.array(["north", "south", "west"])[np.arange(N) % 3], X.index)
    options = {"n_subsets": 4} if name in ("kernel", "linear") else {}
    attributor = attributors()[name].set_params(**options)
    attributor.set_output(transform="pandas").fit(X, y, tasks=tasks)
    assert list(attributor.transform(Xq).columns) == ["north", "south", "west"]
    frame = attributor.attribute(Xq, yq, as_frame=True)
    wide = frame.pivot(index="query", columns="unit", values="attribution")
    assert_array_equal(wide.loc[Xq.index], attributor.attribute(Xq, yq))
    assert list(wide.columns) == ["north", "south", "west"]


# -------------------------------------------------------------------- long form
@pytest.mark.parametrize("name", NAMES)
def test_long_form_has_a_row_per_query_and_unit(name):
    X, y, Xq, yq = tables("pandas")
    attributor = attributors()[name].fit(X, y)
    A = attributor.attribute(Xq, yq)
    frame = attributor.attribute(Xq, yq, as_frame=True)
    assert list(frame.columns) == ["query", "unit", "attribution"]
    assert len(frame) == A.size
    for i, j in [(0, 0), (2, 5), (4, N - 1)]:
        row = frame[(frame["query"] == f"q{i}") & (frame["unit"] == f"r{j}")]
        assert row["attribution"].item() == A[i, j]


@pytest.mark.parametrize("name", ["dual", "adamw", "kernel", "rise"])
def test_long_form_with_standard_errors(name):
    X, y, Xq, yq = data()
    attributor = attributors()[name]
    if name == "dual":
        attributor.set_params(n_models=2)
    if name == "rise":
        attributor.set_params(sketch="tensor", n_components=64, n_sketches=2)
    attributor.fit(X, y)
    A, errors = attributor.attribute(Xq, yq, return_std=True)
    frame = attributor.attribute(Xq, yq, return_std=True, as_frame=True)
    columns = ["query", "unit", "attribution", "standard_error"]
    if name == "adamw":  # it has retrained halves
        columns += ["lower_95", "upper_95"]
    assert list(frame.columns) == columns
    assert_array_equal(frame["attribution"], A.ravel())
    assert_array_equal(frame["standard_error"], errors.ravel())
    assert_array_equal(frame["query"], np.repeat(np.arange(len(Xq)), N))
    assert_array_equal(frame["unit"], np.tile(np.arange(N), len(Xq)))


def test_long_form_keeps_labels_of_any_kind():
    X, y, Xq, _ = data()
    levels = pd.MultiIndex.from_product([["a", "b"], range(N // 2)])
    attributor = attributors()["dual"].fit(pd.DataFrame(X, levels), y)
    days = pd.date_range("2024-01-01", periods=len(Xq))
    frame = attributor.attribute(pd.DataFrame(Xq, days), as_frame=True)
    assert frame["unit"][N - 1] == ("b", N // 2 - 1)
    assert_array_equal(frame["query"][::N], days)
    repeated = pd.DataFrame(Xq, ["same"] * len(Xq))
    frame = attributor.attribute(repeated, as_frame=True)
    assert_array_equal(frame["query"][::N], np.arange(len(Xq)))


# ----------------------------------------------------------------------- skorch
def fitted_net(kind, n_outputs, y, **options):
    X = data()[0].astype(np.float32)
    net = kind(
        build(lambda: mlp(4, 5, n_outputs), dtype=torch.float32),
        max_epochs=5,
        lr=0.1,
        train_split=None,
        verbose=0,
        **options,
    )
    return net.fit(X, y)


@pytest.mark.touches_global_rng
@pytest.mark.parametrize("name", ["dual", "kernel", "linear", "rise"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_fitted_skorch_net(name, compiled):
    X, y, Xq, yq = data()
    X, Xq = X.astype(np.float32), Xq.astype(np.float32)
    options = {"compile": True, "compile__backend": "eager"} if compiled else {}
    net = fitted_net(
        skorch.NeuralNetClassifier, 3, y, criterion=nn.CrossEntropyLoss, **options
    )
    found = []
    for wrapped in (
        TorchClassifier.from_skorch(net),
        TorchClassifier.from_module(
            getattr(net.module_, "_orig_mod", net.module_), range(3)
        ),
    ):
        assert_array_equal(wrapped.predict(X), net.predict(X))
        attributor = attributors(FrozenEstimator(wrapped))[name]
        if name == "dual":
            attributor.set_params(ridge=0.1)
        if name in ("kernel", "linear"):
            attributor.set_params(estimation="gradient", damping=0.1)
        found.append(attributor.fit(X, y).attribute(Xq, yq))
    assert_array_equal(*found)
    assert found[0].std() > 0


@pytest.mark.touches_global_rng
def test_a_fitted_skorch_regressor():
    X, _, Xq, _ = data()
    X, Xq = X.astype(np.float32), Xq.astype(np.float32)
    net = fitted_net(skorch.NeuralNetRegressor, 1, X[:, :1])
    wrapped = FrozenEstimator(TorchRegressor.from_skorch(net))
    dual = DualInfluence(wrapped, ridge=0.1, random_state=0).fit(X, X[:, 0])
    outcomes = dual.predict_outcomes(Xq, Xq[:, 0], np.ones((1, N)))
    errors = net.predict(Xq)[:, 0] - Xq[:, 0]
    assert_allclose(outcomes[0], -(errors**2) / 2, rtol=1e-4)


@pytest.mark.touches_global_rng
def test_a_bare_skorch_net_is_answered_with_how_to_wrap_it():
    X, y, *_ = data()
    net = fitted_net(skorch.NeuralNetClassifier, 3, y, criterion=nn.CrossEntropyLoss)
    with pytest.raises(ValueError, match="from_skorch, inside a FrozenEstimator"):
        DualInfluence(net).fit(X.astype(np.float32), y)


# ---------------------------------------------------------------- torch.compile
def compiled_whole(module):
    return torch.compile(module, backend="eager")


def compiled_layer(module):
    module[0] = torch.compile(module[0], backend="eager")
    return module


def compiled_in_place(module):
    module.compile(backend="eager")
    return module


def module():
    return build(lambda: nn.Sequential(mlp(4, 5), nn.Tanh(), nn.Linear(5, 3)))


COMPILED = [compiled_whole, compiled_layer, compiled_in_place]


@pytest.mark.parametrize("compiled", COMPILED)
@pytest.mark.parametrize("name", NAMES)
def test_compiled_modules_are_attributed_as_the_plain_one(name, compiled):
    X, y, *queries = data()
    found = [
        attributors(network(module=m))[name].fit(X, y).attribute(*queries)
        for m in (module(), compiled(module()))
    ]
    assert_array_equal(*found)


@pytest.mark.parametrize("compiled", COMPILED)
def test_compiled_modules_that_are_trained_already_or_come_of_a_factory(compiled):
    X, y, *queries = data()

    def frozen(m):
        wrapped = FrozenEstimator(TorchClassifier.from_module(m, [0, 1, 2]))
        return DualInfluence(wrapped, ridge=0.1, random_state=0).fit(X, y)

    found = [frozen(m).attribute(*queries) for m in (module(), compiled(module()))]
    assert_array_equal(*found)

    def factory(n_features, n_outputs):
        return compiled(module())

    made = DualInfluence(network(module=factory), random_state=0).fit(X, y)
    plain = DualInfluence(network(module=module()), random_state=0).fit(X, y)
    assert_array_equal(made.attribute(*queries), plain.attribute(*queries))


@pytest.mark.parametrize("compiled", COMPILED)
def test_compiled_modules_in_a_recorded_loop(compiled):
    X, y, *queries = data()
    found = []
    for m in (module(), compiled(module())):
        m.requires_grad_(True)
        optimizer = torch.optim.AdamW(m.parameters(), lr=0.01)
        with record_training(m, optimizer) as recording:
            for _ in range(8):
                recording.rows(np.arange(N))
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(m(torch.tensor(X)), torch.tensor(y))
                loss.backward()
                optimizer.step()
        model = FrozenEstimator(recording.to_classifier(X, y))
        influence = AdamWInfluence(model, inclusion=1.0, random_state=0)
        found.append(influence.fit(X, y).attribute(*queries))
    assert_array_equal(*found)


# ----------------------------------------------------------------------- joblib
@pytest.mark.parametrize("compress", [0, 3])
@pytest.mark.parametrize("name", NAMES)
def test_dumped_attributors_answer_the_same(name, compress, tmp_path):
    X, y, Xq, yq = tables("pandas")
    attributor = attributors()[name].fit(X, y)
    joblib.dump(attributor, tmp_path / "a.joblib", compress=compress)
    again = joblib.load(tmp_path / "a.joblib")
    assert_array_equal(again.attribute(Xq, yq), attributor.attribute(Xq, yq))
    assert_array_equal(again.transform(Xq), attributor.transform(Xq))
    assert_array_equal(again.unit_names_, X.index)
    assert again.score(Xq, yq) == attributor.score(Xq, yq)


# ------------------------------------------------------------- imbalanced-learn
@pytest.mark.parametrize("sampler", [RandomOverSampler, RandomUnderSampler])
@pytest.mark.parametrize("name", NAMES)
def test_a_resampler_before_the_attributor(name, sampler):
    X, y, Xq, yq = data()
    keep = np.flatnonzero((y != 0) | (np.arange(N) % 3 == 0))
    X, y = X[keep], y[keep]
    pipeline = imblearn.pipeline.make_pipeline(
        StandardScaler(), sampler(random_state=0), attributors()[name]
    ).fit(X, y)
    scaler = StandardScaler().fit(X)
    resampled = sampler(random_state=0).fit_resample(scaler.transform(X), y)
    assert len(set(np.bincount(resampled[1]))) == 1
    by_hand = attributors()[name].fit(*resampled)
    queries = scaler.transform(Xq)
    assert pipeline[-1].n_units_ == len(resampled[1]) != len(y)
    assert_array_equal(pipeline.transform(Xq), by_hand.transform(queries))
    assert lds_scorer(pipeline, Xq, yq) == by_hand.score(queries, yq)


def test_a_resampler_before_the_network():
    X, y, Xq, _ = data()
    pipeline = imblearn.pipeline.make_pipeline(
        RandomOverSampler(random_state=0), network()
    )
    resampled = RandomOverSampler(random_state=0).fit_resample(X, y)
    assert_array_equal(
        pipeline.fit(X, y).predict_proba(Xq),
        network().fit(*resampled).predict_proba(Xq),
    )


# -------------------------------------------------------------- metadata routing
@pytest.fixture
def routing():
    with config_context(enable_metadata_routing=True):
        yield


def metadata():
    weights = np.random.RandomState(0).uniform(0.5, 2, N)
    return {"sample_weight": weights, "tasks": np.arange(N) % 12}


def routed(name):
    model = network().set_fit_request(sample_weight=True)
    return make_pipeline(
        StandardScaler().set_fit_request(sample_weight=False),
        attributors(model)[name].set_fit_request(tasks=True),
    )


def fold_by_hand(name, train):
    """Fit to a fold and to its weights and tasks, without any routing."""
    X, y, *_ = data()
    with config_context(enable_metadata_routing=False):
        return attributors()[name].fit(
            StandardScaler().fit_transform(X[train]),
            y[train],
            **{key: value[train] for key, value in metadata().items()},
        )


@pytest.mark.usefixtures("routing")
@pytest.mark.parametrize("name", NAMES)
def test_cross_validation_routes_weights_and_tasks(name):
    X, y, Xq, yq = data()
    cv = StratifiedKFold(3)
    found = cross_validate(
        routed(name),
        X,
        y,
        scoring=lds_scorer,
        cv=cv,
        params=metadata(),
        return_estimator=True,
        error_score="raise",
    )
    for pipeline, (train, test), score in zip(
        found["estimator"], cv.split(X, y), found["test_score"], strict=True
    ):
        expected = fold_by_hand(name, train)
        assert pipeline[-1].n_units_ == 12
        queries = pipeline[:-1].transform(Xq)
        assert_array_equal(
            pipeline[-1].attribute(queries, yq), expected.attribute(queries, yq)
        )
        assert score == lds_scorer(pipeline, X[test], y[test])


@pytest.mark.usefixtures("routing")
@pytest.mark.parametrize("name", ["dual", "kernel"])
def test_searches_route_weights_and_tasks(name):
    X, y, Xq, yq = data()
    step = type(attributors()[name]).__name__.lower()
    search = GridSearchCV(
        routed(name),
        {f"{step}__ridge": [0.1, 1.0]},
        scoring=lds_scorer,
        cv=StratifiedKFold(2),
        error_score="raise",
    ).fit(X, y, **metadata())
    best = search.best_estimator_
    expected = fold_by_hand(name, slice(None))
    with config_context(enable_metadata_routing=False):
        expected.set_params(ridge=best[-1].ridge).fit(
            best[:-1].transform(X), y, **metadata()
        )
    queries = best[:-1].transform(Xq)
    assert_array_equal(best[-1].attribute(queries, yq), expected.attribute(queries, yq))


@pytest.mark.usefixtures("routing")
@pytest.mark.parametrize("name", NAMES)
def test_metadata_that_nobody_asked_for_is_refused(name):
    X, y, *_ = data()
    with pytest.raises(UnsetMetadataPassedError, match="sample_weight"):
        attributors()[name].fit(X, y, sample_weight=metadata()["sample_weight"])


# ---------------------------------------------------------------- tensors of torch
def fitted_and_asked(estimator, X, y, Xq, yq):
    """Fit an estimator; return all that it answers."""
    estimator = clone(estimator).fit(X, y)
    if isinstance(estimator, TaskWeightSelector):
        return estimator, [estimator.task_weights_]
    asked = [
        estimator.attribute(Xq, yq) if hasattr(estimator, "attribute") else None,
        estimator.transform(Xq) if hasattr(estimator, "transform") else None,
        estimator.predict(Xq) if hasattr(estimator, "predict") else None,
        estimator.score(Xq, yq) if hasattr(estimator, "score") else None,
    ]
    return estimator, [answer for answer in asked if answer is not None]


#: scikit-learn dispatches by the array API with SciPy 1.14 or newer
NEW_SCIPY = parse_version(scipy.__version__) >= parse_version("1.14")
DISPATCH = [False, True] if NEW_SCIPY else [False]
TAKERS = {
    **attributors(),
    "classifier": network(),
    "regressor": TorchRegressor(max_epochs=5, random_state=0),
    "sketch": CountSketchTransformer(2, random_state=0),
    "gradients": GradientTransformer(network(), random_state=0),
    "kernel surrogate": KernelSurrogate(),
    "linear surrogate": LinearSurrogate(),
    "selector": TaskWeightSelector(
        DualInfluence(network(), removal="influence"),
        n_tasks_to_select=0.5,
        random_state=0,
    ),
}


@pytest.mark.parametrize("dispatch", DISPATCH)
@pytest.mark.parametrize("name", TAKERS)
def test_tensors_are_taken_as_arrays(name, dispatch):
    X, y, Xq, yq = data()
    if name in ("regressor", "kernel surrogate", "linear surrogate"):
        y, yq = y + 0.5, yq + 0.5
    if "surrogate" in name:
        X, Xq = (X > 0).astype(float), (Xq > 0).astype(float)
    _, expected = fitted_and_asked(TAKERS[name], X, y, Xq, yq)
    with config_context(array_api_dispatch=dispatch):
        estimator, found = fitted_and_asked(
            TAKERS[name], *map(torch.tensor, (X, y, Xq, yq))
        )
    assert found
    for answer, wanted in zip(found, expected, strict=True):
        assert isinstance(answer, np.ndarray | float)
        assert_array_equal(answer, wanted)
    assert isinstance(getattr(estimator, "X_train_", X), np.ndarray)


@pytest.mark.parametrize("dispatch", DISPATCH)
def test_tensors_of_tasks_weights_and_outcomes(dispatch):
    X, y, Xq, yq = data()
    W = make_weightings(12, 10, random_state=0)
    extra = metadata()
    dual = attributors()["dual"].fit(X, y, **extra)
    expected = dual.predict_outcomes(Xq, yq, W)
    truth = retrain_outcomes(network(), X, y, W, Xq, yq, **extra)
    with config_context(array_api_dispatch=dispatch):
        tensors = [torch.tensor(value) for value in (X, y, Xq, yq, W)]
        extra = {key: torch.tensor(value) for key, value in extra.items()}
        dual = attributors()["dual"].fit(*tensors[:2], **extra)
        assert_array_equal(dual.predict_outcomes(*tensors[2:]), expected)
        found = retrain_outcomes(
            network(), *tensors[:2], tensors[4], *tensors[2:4], **extra
        )
        score = lds_score(torch.tensor(truth), torch.tensor(expected))
    assert_array_equal(found, truth)
    assert score == lds_score(truth, expected)


def test_tensors_of_float32_stay_float32():
    X, y, Xq, _ = data()
    dual = attributors()["dual"].fit(torch.tensor(X, dtype=torch.float32), y)
    out = dual.transform(torch.tensor(Xq, dtype=torch.float32))
    assert out.dtype == np.float32
