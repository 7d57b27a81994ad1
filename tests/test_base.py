"""The contract that all attributors share, tried on DualInfluence."""

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError, UnsetMetadataPassedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, scale
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import skattrib.models._network
from skattrib import (
    AdamWInfluence,
    DualInfluence,
    KernelSurrogateAttributor,
    RISEValuator,
    TaskWeightSelector,
    TorchClassifier,
    TorchRegressor,
)
from skattrib.evaluation import lds_scorer, retrain_outcomes
from skattrib.exceptions import FaithfulnessWarning


def data(n=40, n_queries=10):
    X, y = load_iris(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(y))
    X, y = scale(X)[order], y[order]
    return X[:n], y[:n], X[-n_queries:], y[-n_queries:]


def attributor(**options):
    net = TorchClassifier(hidden_layer_sizes=(4,), max_epochs=20)
    options = {"estimator": net, "n_retrainings": 8, "random_state": 0, **options}
    return DualInfluence(**options)


# --------------------------------------------------------------------- fitting
def test_fit_leaves_what_the_contract_names():
    X, y, *_ = data()
    frame = pd.DataFrame(X, columns=list("abcd"), index=np.arange(100, 140))
    dual = attributor().fit(frame, y)
    assert_array_equal(dual.X_train_, X)
    assert_array_equal(dual.y_train_, y)
    assert dual.tasks_ is None
    assert_array_equal(dual.unit_names_, np.arange(100, 140))
    assert dual.n_units_ == 40
    assert "without" in dual.estimand_
    assert list(dual.feature_names_in_) == list("abcd")
    assert dual.get_feature_names_out()[0] == "100"


def test_tasks_are_the_units():
    X, y, *queries = data()
    tasks = np.array(["north", "south", "east", "west"])[np.arange(40) % 4]
    dual = attributor().fit(X, y, tasks=tasks)
    assert_array_equal(dual.tasks_, tasks)
    assert list(dual.get_feature_names_out()) == ["east", "north", "south", "west"]
    assert dual.attribute(*queries).shape == (10, 4)


def test_an_index_with_repeats_does_not_name_rows():
    X, y, *_ = data()
    dual = attributor().fit(pd.DataFrame(X, index=np.arange(40) // 2), y)
    assert_array_equal(dual.unit_names_, np.arange(40))


@pytest.mark.parametrize(
    ("y", "kind"), [("classes", TorchClassifier), ("values", TorchRegressor)]
)
def test_no_estimator_builds_one_that_suits_y(y, kind):
    X, codes, *_ = data()
    target = codes if y == "classes" else X[:, 0] * 0.7 + 0.1
    dual = DualInfluence(random_state=0).fit(X, target)
    assert isinstance(dual.estimator_, kind)
    assert dual.estimator is None


def test_seeds_of_the_user_stay_and_missing_ones_are_drawn():
    X, y, *_ = data()
    net = TorchClassifier(max_epochs=2, random_state=7)
    assert DualInfluence(net, random_state=0).fit(X, y).estimator_.random_state == 7
    seeds = {
        attributor(random_state=seed).fit(X, y).estimator_.random_state
        for seed in [0, 0, 1]
    }
    assert len(seeds) == 2
    assert None not in seeds


def test_string_labels_and_multi_output_targets():
    X, y, Xq, yq = data()
    names = np.array(["setosa", "versicolor", "virginica"])
    plain = attributor().fit(X, y).attribute(Xq, yq)
    named = attributor().fit(X, names[y]).attribute(Xq, names[yq])
    assert_array_equal(plain, named)
    dual = DualInfluence(TorchRegressor(max_epochs=5), random_state=0)
    dual.fit(X[:, :2], X[:, 2:])
    assert dual.attribute(Xq[:, :2], Xq[:, 2:]).shape == (10, 40)
    with pytest.raises(ValueError, match="outcome='prediction' needs a regressor with"):
        dual.attribute(Xq[:, :2])


# ----------------------------------------------------------- metadata, pipelines
def test_sample_weight_reaches_estimator_and_attributions():
    X, y, *queries = data()
    weights = np.random.RandomState(0).uniform(0.5, 2, 40)
    weighted = attributor().fit(X, y, sample_weight=weights)
    again = attributor().fit(X, y, sample_weight=10 * weights)
    assert_allclose(weighted.attribute(*queries), again.attribute(*queries), atol=1e-9)
    plain = attributor().fit(X, y).attribute(*queries)
    assert np.abs(plain - weighted.attribute(*queries)).max() > 1e-4


def test_metadata_routing():
    X, y, *queries = data()
    weights = np.random.RandomState(0).uniform(0.5, 2, 40)
    tasks = np.arange(40) % 10
    expected = attributor().fit(X, y, tasks=tasks, sample_weight=weights)
    with sklearn.config_context(enable_metadata_routing=True):
        net = TorchClassifier(hidden_layer_sizes=(4,), max_epochs=20)
        with pytest.raises(UnsetMetadataPassedError):
            attributor(estimator=net).fit(X, y, sample_weight=weights)
        net.set_fit_request(sample_weight=True)
        dual = DualInfluence(net, n_retrainings=8, random_state=0)
        pipeline = make_pipeline(
            StandardScaler().set_fit_request(sample_weight=False),
            dual.set_fit_request(tasks=True),
        )
        pipeline.fit(X, y, tasks=tasks, sample_weight=weights)
        plain = dual.fit(X, y, tasks=tasks, sample_weight=weights)
    assert_array_equal(plain.attribute(*queries), expected.attribute(*queries))
    assert pipeline[-1].n_units_ == 10


def test_pipeline_and_pandas_output():
    X, y, Xq, yq = data()
    pipeline = make_pipeline(StandardScaler(), attributor()).set_output(
        transform="pandas"
    )
    out = pipeline.fit(X, y, dualinfluence__tasks=np.arange(40) % 3).transform(Xq)
    assert list(out.columns) == ["0", "1", "2"]
    assert 0 < pipeline.set_params(dualinfluence__retrain_size=0.3).fit(X, y).score(
        Xq, yq
    )


@pytest.mark.touches_global_rng
def test_grid_search_trains_one_truth_per_fold(tmp_path, trainings):
    X, y, *_ = data()
    module = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    dual = DualInfluence(
        TorchClassifier(module, max_epochs=20),
        n_retrainings=8,
        memory=str(tmp_path),
        random_state=0,
    )
    search = GridSearchCV(
        make_pipeline(StandardScaler(), dual),
        {"dualinfluence__ridge": [1e-3, 1e-2, 1e-1, 1.0, "auto"]},
        cv=StratifiedKFold(3),
    ).fit(X, y)
    assert trainings == [8, 8, 8]
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert len(set(search.cv_results_["mean_test_score"])) == 5


def test_tasks_are_sliced_by_the_folds(tmp_path):
    X, y, *_ = data()
    tasks = np.arange(40) % 10
    search = GridSearchCV(
        attributor(), {"ridge": [1e-2, 1e-1]}, cv=StratifiedKFold(2), scoring=lds_scorer
    )
    search.fit(X, y, tasks=tasks)
    assert search.best_estimator_.n_units_ == 10
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_plain_folds_without_a_class_say_what_to_do():
    X, y, *_ = data()
    order = np.argsort(y, kind="stable")
    search = GridSearchCV(attributor(), {"ridge": [1e-2]}, cv=3, error_score="raise")
    with pytest.raises(ValueError, match=r"unseen in fit.*cv=StratifiedKFold"):
        search.fit(X[order], y[order])


# ----------------------------------------------------------------------- score
def test_score_is_the_same_twice_and_differs_between_seeds():
    X, y, *queries = data()
    dual = attributor().fit(X, y)
    assert dual.score(*queries) == dual.score(*queries)
    assert dual.score(*queries) != attributor(random_state=1).fit(X, y).score(*queries)


def test_score_looks_up_what_memory_holds(tmp_path, trainings):
    X, y, *queries = data()
    memory = joblib.Memory(tmp_path, verbose=0)
    first = attributor(memory=memory).fit(X, y).score(*queries)
    assert trainings == [8]
    # the attributor's own parameters do not matter to the truth; more subsets extend
    attributor(memory=memory, ridge=0.1, removal="influence").fit(X, y).score(*queries)
    assert trainings == [8]
    attributor(memory=memory, n_retrainings=12).fit(X, y).score(*queries)
    assert trainings == [8, 4]
    assert attributor().fit(X, y).score(*queries) == first


def test_few_units_are_scored_on_all_their_subsets(trainings):
    X, y, *queries = data()
    dual = attributor(n_retrainings=32).fit(X, y, tasks=np.arange(40) % 6)
    assert np.isfinite(dual.score(*queries))
    assert trainings == [20]
    attributor(ridge="calibrate").fit(X, y, tasks=np.arange(40) % 5)
    assert trainings == [20, 10]


def test_transform_refuses_what_does_not_fit_in_memory():
    X, y, *_ = data()
    dual = attributor(removal="influence").fit(X, y)
    rows = np.zeros((4000, 4))
    with sklearn.config_context(working_memory=1):
        with pytest.raises(ValueError, match=r"4000 x 40 numbers .*working_memory"):
            dual.transform(rows)
    assert dual.transform(rows[:10]).shape == (10, 40)


# --------------------------------------------------------- targets of queries
NETWORK = TorchClassifier(hidden_layer_sizes=(4,), max_epochs=5, random_state=0)
ENCODERS = {
    "newton": DualInfluence(NETWORK, random_state=0),
    "influence": DualInfluence(NETWORK, removal="influence", random_state=0),
    "run": AdamWInfluence(NETWORK, inclusion=1, random_state=0),
    "surrogate": KernelSurrogateAttributor(
        NETWORK, n_subsets=12, estimation="gradient", random_state=0
    ),
    "similarity": RISEValuator(NETWORK, random_state=0),
}


def each_query(fitted, X, y):
    """The methods that take queries with targets, without retraining."""
    weights = np.ones((2, fitted.n_units_))
    yield "attribute", lambda: fitted.attribute(X, y)
    if not isinstance(fitted, RISEValuator):  # a similarity predicts no outcome
        yield "predict_outcomes", lambda: fitted.predict_outcomes(X, y, weights)


@pytest.mark.parametrize("name", ENCODERS)
def test_targets_of_a_query_are_encoded_once(name, monkeypatch):
    X, y, Xq, yq = data()
    fitted = clone(ENCODERS[name]).fit(X, y, tasks=np.arange(len(y)) % 8)
    encode, calls = TorchClassifier._targets, []

    def counting(self, *args):
        calls.append(args)
        return encode(self, *args)

    monkeypatch.setattr(TorchClassifier, "_targets", counting)
    for method, query in each_query(fitted, Xq, yq):
        calls.clear()
        query()
        assert len(calls) == 1, method


@pytest.mark.parametrize("name", ENCODERS)
def test_unseen_labels_are_refused_by_every_query(name):
    X, y, Xq, yq = data()
    fitted = clone(ENCODERS[name]).fit(X, y, tasks=np.arange(len(y)) % 8)
    queries = dict(each_query(fitted, Xq, yq + 5))
    queries["score"] = lambda: fitted.score(Xq, yq + 5)
    if hasattr(fitted, "diagnose"):
        queries["diagnose"] = lambda: fitted.diagnose(Xq, yq + 5)
    for query in queries.values():
        with pytest.raises(ValueError, match="unseen in fit"):
            query()


# ------------------------------------------------------------------- bad input
def fit_with(**options):
    return lambda X, y, Xq, yq: attributor(**options).fit(X, y)


def fit_on(change):
    return lambda X, y, Xq, yq: attributor().fit(*change(X, y))


def ask(method, change):
    def call(X, y, Xq, yq):
        return getattr(attributor().fit(X, y), method)(*change(Xq, yq))

    return call


def tasks_of(tasks):
    return lambda X, y, Xq, yq: attributor().fit(X, y, tasks=tasks)


def torch_dataset(X, y):
    return TensorDataset(torch.tensor(X), torch.tensor(y))


def with_nan(X):
    X = X.copy()
    X[0, 0] = np.nan
    return X


LOGISTIC = LogisticRegression()
BAD_INPUT = {
    "one class": (fit_on(lambda X, y: (X, y * 0)), "one class only .*at least 2"),
    "unseen label": (ask("attribute", lambda X, y: (X, y + 5)), "unseen in fit"),
    "one target alone": (
        ask("attribute", lambda X, y: (X[:1], 1)),
        r"y=1 must have a target for each query.*y=\[target\]",
    ),
    "one target of an array": (
        ask("score", lambda X, y: (X[:1], y[0])),
        r"y=.* must have a target for each query.*y=\[target\]",
    ),
    "one row of a frame": (
        ask("attribute", lambda X, y: (pd.DataFrame(X).iloc[0], y[:1])),
        r"X is a Series.*frame\.iloc\[\[i\]\]",
    ),
    "one row of an array": (
        ask("transform", lambda X, y: (X[0],)),
        r"Expected 2D array.*reshape\(1, -1\) if it contains a single sample",
    ),
    "NaN": (fit_on(lambda X, y: (with_nan(X), y)), "Input X contains NaN"),
    "NaN in queries": (ask("transform", lambda X, y: (with_nan(X),)), "contains NaN"),
    "3-D X": (fit_on(lambda X, y: (X[:, :, None], y)), "dim 3"),
    "length of y": (fit_on(lambda X, y: (X, y[1:])), "inconsistent numbers"),
    "one row": (
        fit_on(lambda X, y: (X[:1], y[:1])),
        "minimum of 2 is required: 1 sample",
    ),
    "length of tasks": (tasks_of(np.arange(7)), "tasks has 7 labels for 40 rows"),
    "equal tasks": (tasks_of(np.ones(40)), "tasks has only one label .*tasks=None"),
    "missing task": (tasks_of([None, *range(39)]), "missing labels; label every row"),
    "ridge of 0": (fit_with(ridge=0), "'ridge' parameter of DualInfluence must be"),
    "negative ridge": (fit_with(ridge=-1.0), "'ridge' parameter"),
    "unknown ridge": (fit_with(ridge="best"), "'ridge' parameter"),
    "unknown removal": (fit_with(removal="delete"), "'removal' parameter"),
    "few retrainings": (fit_with(n_retrainings=4), "'n_retrainings' parameter"),
    "negative weights": (
        ask("predict_outcomes", lambda X, y: (X, y, -np.ones((2, 40)))),
        "weights must be at least 0",
    ),
    "shape of weights": (
        ask("predict_outcomes", lambda X, y: (X, y, np.ones((2, 39)))),
        r"shape \(n_weightings, n_units=40\)",
    ),
    "NaN in weights": (
        ask("output_change", lambda X, y: (X, np.full((1, 40), np.nan))),
        "weights contains NaN",
    ),
    "other columns": (ask("transform", lambda X, y: (X[:, :2],)), "expecting 4 feat"),
    "not a torch model": (
        fit_with(estimator=KNeighborsClassifier()),
        r"a network \(.*MLPRegressor\), or a linear model, .*, got "
        r"KNeighborsClassifier: DualInfluence needs gradients. Use KernelSurr",
    ),
    "frozen ensemble": (
        lambda X, y, Xq, yq: attributor(
            estimator=FrozenEstimator(TorchClassifier(max_epochs=1).fit(X, y)),
            n_models=2,
        ).fit(X, y),
        "n_models=2 needs an estimator that can be trained",
    ),
    "calibrated without a recipe": (
        lambda X, y, Xq, yq: attributor(
            estimator=FrozenEstimator(
                TorchClassifier.from_module(nn.Linear(4, 3), [0, 1, 2])
            ),
            ridge="calibrate",
        ).fit(X, y),
        "ridge='calibrate' retrains.*Use ridge='auto' or a number",
    ),
    "width of the module": (
        fit_with(estimator=TorchClassifier(nn.Linear(4, 2))),
        r"must be \(3, 3\)",
    ),
    "memory without a seed": (
        fit_with(memory="cache", random_state=None),
        "memory is set but random_state is None.*Pass an int random_state",
    ),
    "standard errors of one model": (
        lambda X, y, Xq, yq: attributor().fit(X, y).attribute(Xq, yq, return_std=True),
        "return_std=True needs an ensemble",
    ),
    "margin of a regressor": (
        fit_with(estimator=TorchRegressor(max_epochs=2), outcome="margin"),
        "outcome='margin'.*needs a classifier",
    ),
    "prediction of a classifier": (
        fit_with(outcome="prediction"),
        "outcome='prediction' needs a regressor",
    ),
    "own likelihood of a regressor": (
        lambda X, y, Xq, yq: (
            attributor(estimator=TorchRegressor(max_epochs=2), outcome="log_likelihood")
            .fit(X, y)
            .transform(Xq)
        ),
        "outcome='log_likelihood' needs y",
    ),
    "a bare module": (
        fit_with(estimator=nn.Identity()),
        r"estimator is a torch module; wrap it: TorchClassifier\(module=",
    ),
    "a pipeline without a model": (
        fit_with(estimator=make_pipeline(StandardScaler(), StandardScaler())),
        "ends in StandardScaler, which predicts nothing",
    ),
    "a pipeline that is frozen, not fitted": (
        fit_with(
            estimator=FrozenEstimator(
                make_pipeline(StandardScaler(), TorchClassifier())
            )
        ),
        "not fitted",
    ),
    "groups": (
        lambda X, y, Xq, yq: attributor().fit(X, y, groups=y),
        "fit takes tasks=, not groups=",
    ),
    "sources": (
        lambda X, y, Xq, yq: attributor().fit(X, y, sources=y),
        "fit takes tasks=, not sources=: one label per row",
    ),
    "several outputs of a classifier": (
        fit_on(lambda X, y: (X, np.c_[y, y])),
        "Fit one attributor per column",
    ),
    "few retrainings after fit": (
        lambda X, y, Xq, yq: (
            attributor().fit(X, y).set_params(n_retrainings=3).score(Xq, yq)
        ),
        "n_retrainings=3 is too few to rank",
    ),
    "a class for an estimator": (
        fit_with(estimator=TorchClassifier),
        r"estimator=TorchClassifier is a class: pass an instance.*TorchClassifier\(\)",
    ),
    "a name for an estimator": (
        fit_with(estimator="mlp"),
        "'estimator' parameter of DualInfluence must be.*Got 'mlp' instead",
    ),
    "a frozen estimator that was never fitted": (
        fit_with(estimator=FrozenEstimator(TorchClassifier())),
        "frozen TorchClassifier is not fitted: fit it first, or leave FrozenEstimator",
    ),
    "no targets": (
        fit_on(lambda X, y: (X, None)),
        "requires y to be passed, but the target y is None",
    ),
    "no targets of a table": (
        lambda X, y, Xq, yq: attributor(
            estimator=make_pipeline(StandardScaler(), TorchClassifier())
        ).fit(pd.DataFrame(X), None),
        "requires y to be passed, but the target y is None",
    ),
    "probabilities for labels": (
        fit_on(lambda X, y: (X, np.eye(3)[y] * 0.7 + 0.1)),
        r"Unknown label type.*of probabilities pass the labels, y.argmax\(axis=1\)",
    ),
    "measurements for a classifier": (
        fit_on(lambda X, y: (X, X[:, 0])),
        "Unknown label type.*For measurements use a regressor, such as TorchRegressor",
    ),
    "words for a regressor": (
        lambda X, y, Xq, yq: attributor(estimator=TorchRegressor()).fit(
            X, np.array(["low", "mid", "high"])[y]
        ),
        "y holds '(low|mid|high)', which is not a number.*For labels use a classifier",
    ),
    "a dataset of torch": (
        fit_on(lambda X, y: (torch_dataset(X, y), y)),
        r"X is a TensorDataset of torch: pass its rows.*X, y = dataset\.tensors",
    ),
    "a loader of torch": (
        fit_on(lambda X, y: (DataLoader(torch_dataset(X, y)), y)),
        r"X is a DataLoader of torch: pass its rows.*X, y = dataset\.tensors",
    ),
    "the path of a table": (
        fit_on(lambda X, y: ("train.csv", y)),
        "X must be an array, a data frame or a list, got str",
    ),
    "a column of text": (
        fit_on(lambda X, y: (pd.DataFrame(X).assign(city="Oslo"), y)),
        r"columns of X are not numbers: texts \['city'\].*Encode texts.*OneHot",
    ),
    "words in an array": (
        fit_on(lambda X, y: (np.full(X.shape, "big", dtype=object), y)),
        "columns of X are not numbers: texts .*'big'.*Encode texts",
    ),
    "rows of unlike length": (
        fit_on(lambda X, y: ([row[: 1 + i % 2] for i, row in enumerate(X)], y)),
        "X is no table: its rows.*Give every row as many numbers",
    ),
    "a column named twice": (
        fit_on(lambda X, y: (pd.DataFrame(X, columns=list("aabc")), y)),
        r"columns of X occur more than once: \['a'\]\. Give every column a name",
    ),
    "dates for numbers": (
        fit_on(lambda X, y: (X.astype("M8[D]"), y)),
        "columns of X are not numbers: dates or times .*Turn dates into numbers",
    ),
    "masked values": (
        fit_on(lambda X, y: (np.ma.masked_greater(X, 1), y)),
        r"X is an array with masked values.*fill them, X\.filled\(value\)",
    ),
    "a device that is not there": (
        fit_with(estimator=TorchClassifier(device="cuda:99")),
        "device='cuda:99' is not available here.*Use device='cpu'",
    ),
    "a loss for an outcome": (
        fit_with(outcome="logloss"),
        "'outcome' parameter of DualInfluence must be.*'log_likelihood'.*Got 'logloss'",
    ),
    "rows to remove for weights": (
        ask("predict_outcomes", lambda X, y: (X, y, [3, 5])),
        r"weights must have shape \(n_weightings, n_units=40\), one column per row",
    ),
    "sample weights by a name": (
        lambda X, y, Xq, yq: attributor().fit(X, y, sample_weight="balanced"),
        "sample_weight must be an array.*got str",
    ),
    "sample weights of two columns": (
        lambda X, y, Xq, yq: attributor().fit(X, y, sample_weight=np.ones((40, 2))),
        "Sample weights must be 1D.*length 40",
    ),
    "tasks by the name of a column": (
        tasks_of("city"),
        "tasks has shape.*give one column, a label per row of X",
    ),
    "fewer targets than queries": (
        ask("attribute", lambda X, y: (X, y[:-1])),
        r"X and y do not go together.*inconsistent.*\[10, 9\]",
    ),
    "labels where rows belong": (
        ask("attribute", lambda X, y: (y,)),
        "Expected 2D array, got 1D array",
    ),
    "codes for labels that are words": (
        lambda X, y, Xq, yq: (
            attributor().fit(X, np.array(["a", "b", "c"])[y]).attribute(Xq, yq)
        ),
        r"labels unseen in fit: \[0, 1, 2\]; known are \['a', 'b', 'c'\]",
    ),
    "no subsets": (
        lambda X, y, Xq, yq: KernelSurrogateAttributor(LOGISTIC, n_subsets=0).fit(X, y),
        r"'n_subsets' parameter of KernelSurrogateAttributor must be an int.*Got 0",
    ),
    "an attributor for a model": (
        lambda X, y, Xq, yq: retrain_outcomes(
            attributor(), X, y, np.ones((1, 40)), Xq, yq
        ),
        "DualInfluence is neither a classifier nor a regressor.*its estimator",
    ),
    "other features in queries of retraining": (
        lambda X, y, Xq, yq: retrain_outcomes(
            LOGISTIC, X, y, np.ones((1, 40)), Xq[:, :2], yq
        ),
        "X_query has 2 features, but LogisticRegression is expecting 4 features",
    ),
    "a weighting without rows": (
        lambda X, y, Xq, yq: retrain_outcomes(
            LOGISTIC, X, y, np.zeros((1, 40)), Xq, yq
        ),
        r"weights leave no row in the weightings \[0\].*keep some units",
    ),
    "a class for an attributor": (
        lambda X, y, Xq, yq: TaskWeightSelector(DualInfluence).fit(X, y, tasks=y),
        r"attributor=DualInfluence is a class: pass an instance.*DualInfluence\(\)",
    ),
    "too few units to score": (
        lambda X, y, Xq, yq: (
            attributor().fit(X, y, tasks=np.arange(40) % 3).score(Xq, yq)
        ),
        "n_units=3 units allow 3 different subsets of 2.*Fit on more units",
    ),
}


def test_classes_in_columns_are_pointed_out():
    X, y, *_ = data()
    with pytest.warns(UserWarning, match=r"one 1 in its 3 columns.*y\.argmax\(axis=1"):
        attributor().fit(X, np.eye(3)[y])


@pytest.mark.touches_global_rng
@pytest.mark.parametrize(("call", "message"), BAD_INPUT.values(), ids=list(BAD_INPUT))
def test_bad_input_is_named_with_its_cure(call, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((TypeError, ValueError), match=f"(?s){message}"):
        call(*data())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["attribute", "transform", "score", "diagnose"])
def test_queries_before_fit(method):
    *_, X, y = data()
    args = (X,) if method == "transform" else (X, y)
    with pytest.raises(NotFittedError):
        getattr(attributor(), method)(*args)
    with pytest.raises(NotFittedError):
        attributor().predict_outcomes(X, y, np.ones((1, 3)))


def test_other_column_names_are_refused():
    X, y, Xq, _ = data()
    dual = attributor().fit(pd.DataFrame(X, columns=list("abcd")), y)
    with pytest.raises(ValueError, match="feature names should match"):
        dual.transform(pd.DataFrame(Xq, columns=list("abce")))


@pytest.mark.parametrize(
    "options",
    [
        {"estimator": TorchRegressor(random_state=0), "outcome": "margin"},
        {"outcome": "prediction"},
        {"estimator": KNeighborsClassifier()},
    ],
)
def test_what_is_known_beforehand_is_refused_before_training(options, monkeypatch):
    X, y, *_ = data()
    monkeypatch.setattr(
        skattrib.models._network, "train", lambda *args, **options: pytest.fail("ran")
    )
    with pytest.raises(ValueError, match=r"outcome=|needs gradients"):
        attributor(**options).fit(X, y)


def test_a_wrapped_module_that_is_not_frozen_is_pointed_out():
    X, y, *_ = data()
    net = TorchClassifier(max_epochs=5, random_state=0).fit(X, y)
    wrapped = TorchClassifier.from_module(net.module_, net.classes_)
    with pytest.warns(FaithfulnessWarning, match="put it in a sklearn.frozen"):
        attributor(estimator=wrapped).fit(X, y)


def test_a_kernel_over_the_cap_says_what_to_do():
    X, y, *_ = data()
    with sklearn.config_context(working_memory=0.01):
        with pytest.raises(ValueError, match=r"solver='dual' needs .*Use solver='cg'"):
            attributor(solver="dual").fit(X, y)
        dual = attributor(removal="influence").fit(X, y)
    assert dual.solver_ == "cg"
    assert "over the memory cap" in dual.solver_reason_


def test_a_failed_fit_leaves_the_estimator_as_it_was():
    X, y, *queries = data()
    dual = attributor().fit(X, y)
    before = dual.attribute(*queries)
    bad = [
        {"X": X, "y": y, "tasks": np.ones(40)},
        {"X": with_nan(X), "y": y},
        {"X": X[:, :2], "y": y * 0},
    ]
    for arguments in bad:
        with pytest.raises(ValueError, match=r"one label|NaN|one class"):
            dual.fit(**arguments)
        assert_array_equal(dual.attribute(*queries), before)


def test_a_file_mapped_to_memory_is_read_once(tmp_path, monkeypatch):
    X, y, *queries = data()
    mapped = np.memmap(tmp_path / "X", dtype=X.dtype, mode="w+", shape=X.shape)
    mapped[:] = X
    expected = attributor().fit(X, y).attribute(*queries)
    train = TorchClassifier.fit

    def changed_meanwhile(self, *args, **options):
        fitted = train(self, *args, **options)
        mapped[:] = 0
        return fitted

    monkeypatch.setattr(TorchClassifier, "fit", changed_meanwhile)
    dual = attributor().fit(mapped, y)
    assert_array_equal(dual.X_train_, X)
    assert type(dual.X_train_) is np.ndarray
    assert_array_equal(dual.attribute(*queries), expected)
