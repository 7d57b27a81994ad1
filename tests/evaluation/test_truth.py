"""Retrained outcomes: the same as training by hand, remembered, resumable."""

from functools import partial

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.ensemble import (
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    VotingClassifier,
)
from sklearn.exceptions import EfficiencyWarning
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    Perceptron,
    SGDClassifier,
)
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler, scale
from sklearn.random_projection import GaussianRandomProjection
from sklearn.svm import SVC
from torch import nn

import skattrib.models._network
from skattrib import TorchClassifier, TorchRegressor
from skattrib.evaluation import (
    group_gap,
    make_weightings,
    retrain_outcomes,
    soft_auroc,
    soft_calibration_error,
    worst_group,
)
from skattrib.exceptions import FaithfulnessWarning, TrajectoryError
from tests.trees.cases import floored


@pytest.fixture
def data():
    X, y = load_iris(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(y))
    X, y = scale(X)[order], y[order]
    return X[:30], y[:30], X[-6:], y[-6:]


def net(**options):
    options = {"hidden_layer_sizes": (4,), "max_epochs": 15, **options}
    return TorchClassifier(random_state=0, **options)


def by_hand(estimator, X, y, rows, Xq, yq):
    """Networks see rows of weight 0, which count for nothing; others do not."""
    if isinstance(estimator, Pipeline):  # whose transformers are kept
        before = clone(estimator[:-1]).fit(X, y)
        X, Xq, estimator = before.transform(X), before.transform(Xq), estimator[-1]
    found = []
    for w in rows:
        kept = slice(None) if isinstance(estimator, TorchClassifier) else w > 0
        fitted = clone(estimator).fit(X[kept], y[kept], sample_weight=w[kept])
        p = np.zeros((len(Xq), 3))
        p[:, fitted.classes_] = fitted.predict_proba(Xq)
        if isinstance(estimator, RandomForestClassifier):
            p = floored(p, len(y))
        p = p[np.arange(len(yq)), yq]
        found.append(np.log(np.clip(p, np.finfo(float).eps, None)))
    return np.array(found)


@pytest.mark.parametrize(
    "estimator",
    [
        net(),
        net(batch_size=7),
        LogisticRegression(random_state=0),
        RandomForestClassifier(5, random_state=0),
        HistGradientBoostingClassifier(max_iter=3, random_state=0),
        make_pipeline(StandardScaler(), LogisticRegression(random_state=0)),
    ],
    ids=["stack", "minibatches", "logistic", "forest", "boosting", "pipeline"],
)
def test_it_is_training_by_hand(data, estimator):
    X, y, Xq, yq = data
    weights = make_weightings(30, 5, random_state=0)
    base = np.random.RandomState(0).uniform(0.5, 2, 30)
    found = retrain_outcomes(estimator, X, y, weights, Xq, yq, sample_weight=base)
    expected = by_hand(estimator, X, y, weights * base, Xq, yq)
    assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_regressors_of_any_kind(data):
    X, _, Xq, _ = data
    weights = make_weightings(30, 3, random_state=0)
    for estimator in [LinearRegression(), GradientBoostingRegressor(random_state=0)]:
        args = estimator, X[:, 1:], X[:, 0], weights, Xq[:, 1:], Xq[:, 0]
        predicted = retrain_outcomes(*args, outcome="prediction")
        for row, w in zip(predicted, weights, strict=True):
            fitted = clone(estimator).fit(X[w > 0, 1:], X[w > 0, 0])
            assert_allclose(row, fitted.predict(Xq[:, 1:]))
        likelihood = retrain_outcomes(*args)
        assert_allclose(likelihood, -0.5 * (predicted - Xq[:, 0]) ** 2)


def test_several_outputs_add_up(data):
    X, _, Xq, _ = data
    weights = make_weightings(30, 3, random_state=0)
    model = TorchRegressor(max_epochs=5, random_state=0)
    for estimator in [model, LinearRegression()]:
        found = retrain_outcomes(
            estimator, X[:, :2], X[:, 2:], weights, Xq[:, :2], Xq[:, 2:]
        )
        fitted = clone(estimator).fit(X[:, :2], X[:, 2:], sample_weight=weights[0])
        error = fitted.predict(Xq[:, :2]) - Xq[:, 2:]
        assert_allclose(found[0], -0.5 * (error**2).sum(axis=1))


def test_outcomes_of_a_classifier(data):
    X, y, Xq, yq = data
    weights = make_weightings(30, 3, random_state=0)
    for estimator in [net(), LogisticRegression(random_state=0)]:
        args = estimator, X, y, weights, Xq, yq
        p = np.exp(retrain_outcomes(*args))
        assert_allclose(retrain_outcomes(*args, outcome="margin"), np.log(p / (1 - p)))
        own = retrain_outcomes(
            *args, outcome=lambda f, t: f.softmax(-1).gather(-1, t[..., None])[..., 0]
        )
        assert_allclose(own, p)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize(
    "estimator",
    [
        SVC(random_state=0),
        SGDClassifier(random_state=0),
        Perceptron(random_state=0),
        OneVsRestClassifier(SVC(random_state=0)),
        OneVsOneClassifier(SVC(random_state=0)),
        GridSearchCV(SGDClassifier(random_state=0), {"loss": ["log_loss"]}, cv=2),
        make_pipeline(StandardScaler(), SVC(random_state=0)),
    ],
    ids=["svc", "sgd", "perceptron", "rest", "one", "search", "pipeline"],
)
@pytest.mark.parametrize("refit_transformers", [False, True])
def test_decisions_stand_in_for_probabilities(
    data, estimator, n_classes, refit_transformers
):
    X, y, Xq, yq = data
    X, y = X[y < n_classes], y[y < n_classes]
    Xq, yq = Xq[yq < n_classes], yq[yq < n_classes]
    weights = make_weightings(len(X), 4, random_state=0)
    options = {"refit_transformers": refit_transformers}
    found = retrain_outcomes(estimator, X, y, weights, Xq, yq, **options)
    rows, queries, model = X, Xq, estimator
    if isinstance(estimator, Pipeline) and not refit_transformers:
        before = clone(estimator[:-1]).fit(X)
        rows, queries, model = before.transform(X), before.transform(Xq), estimator[-1]
    for outcomes, w in zip(found, weights, strict=True):
        fitted = clone(model).fit(rows[w > 0], y[w > 0])
        values = fitted.decision_function(queries)
        if n_classes == 2:
            expected = np.where(yq == 1, values, -values)
        else:
            own = np.eye(3, dtype=bool)[yq]
            expected = values[own] - np.where(own, -np.inf, values).max(axis=1)
        assert_allclose(outcomes, expected, rtol=1e-9)
        # more than 0 where the prediction is right
        assert_array_equal(outcomes > 0, fitted.predict(queries) == yq)
    again = retrain_outcomes(
        estimator, X, y, weights, Xq, yq, outcome="margin", **options
    )
    assert_array_equal(again, found)
    given = retrain_outcomes(
        estimator, X, y, weights, Xq, yq, outcome=lambda f, t: f[..., 0], **options
    )
    assert given.shape == found.shape


def test_strings_frames_and_categories():
    frame = pd.DataFrame(
        {"size": np.arange(20.0), "colour": ["red", "blue", "red", "green"] * 5}
    )
    y = np.array(["no", "yes"])[(frame["size"] > 9).astype(int)]
    model = make_pipeline(
        make_column_transformer(
            (OneHotEncoder(), ["colour"]), remainder=StandardScaler()
        ),
        LogisticRegression(random_state=0),
    )
    weights = make_weightings(20, 3, stratify=y, random_state=0)
    found = retrain_outcomes(model, frame, y, weights, frame[:4], y[:4])
    fitted = clone(model).fit(frame, y, logisticregression__sample_weight=weights[0])
    assert_allclose(found[0], fitted.predict_log_proba(frame[:4])[:, 0])


def test_tasks_spread_over_their_rows(data):
    X, y, Xq, yq = data
    tasks = np.array(list("abc"))[np.arange(30) % 3]
    weights = np.array([[1, 0, 1], [0.5, 1, 0]])
    found = retrain_outcomes(net(), X, y, weights, Xq, yq, tasks=tasks)
    rows = weights[:, np.arange(30) % 3]
    assert_array_equal(found, retrain_outcomes(net(), X, y, rows, Xq, yq))


def test_seeds_are_averaged_and_the_own_seed_comes_first(data):
    X, y, Xq, yq = data
    args = X, y, make_weightings(30, 4, random_state=0), Xq, yq
    seeds = retrain_outcomes(net(), *args, n_seeds=3, return_seeds=True)
    assert seeds.shape == (3, 4, 6)
    assert_array_equal(seeds[0], retrain_outcomes(net(), *args))
    assert np.abs(seeds[0] - seeds[1]).min() > 0
    assert_allclose(retrain_outcomes(net(), *args, n_seeds=3), seeds.mean(axis=0))
    exact = retrain_outcomes(LinearRegression(), *args, n_seeds=2, return_seeds=True)
    assert_array_equal(exact[0], exact[1])


# ------------------------------------------------------------------- memory
def test_more_weightings_extend_what_is_known(data, tmp_path, trainings):
    X, y, Xq, yq = data
    weights = make_weightings(30, 40, random_state=0)
    args = {"X_query": Xq, "y_query": yq, "memory": str(tmp_path)}
    first = retrain_outcomes(net(), X, y, weights[:10], **args)
    again = retrain_outcomes(net(), X, y, weights[5:][::-1], **args)
    assert trainings == [10, 30]
    assert_array_equal(again[::-1][:5], first[5:])
    everything = retrain_outcomes(net(), X, y, np.vstack([weights, weights]), **args)
    assert trainings == [10, 30]
    plain = retrain_outcomes(net(), X, y, weights, Xq, yq)
    assert_allclose(everything, np.vstack([plain, plain]), rtol=1e-12)


def test_an_interruption_loses_one_chunk(data, tmp_path, trainings, monkeypatch):
    X, y, Xq, yq = data
    weights = make_weightings(30, 80, random_state=0)
    counted = skattrib.models._network.train_stack

    def interrupted(*args, **options):
        if sum(trainings) >= 64:
            raise KeyboardInterrupt
        return counted(*args, **options)

    monkeypatch.setattr(skattrib.models._network, "train_stack", interrupted)
    with pytest.raises(KeyboardInterrupt):
        retrain_outcomes(net(), X, y, weights, Xq, yq, memory=str(tmp_path))
    monkeypatch.setattr(skattrib.models._network, "train_stack", counted)
    found = retrain_outcomes(net(), X, y, weights, Xq, yq, memory=str(tmp_path))
    assert trainings == [32, 32, 16]
    assert_allclose(found, retrain_outcomes(net(), X, y, weights, Xq, yq), rtol=1e-12)


def test_a_damaged_entry_is_trained_again(data, tmp_path, trainings):
    X, y, Xq, yq = data
    weights = make_weightings(30, 4, random_state=0)
    args = net(), X, y, weights, Xq, yq
    first = retrain_outcomes(*args, memory=str(tmp_path))
    for entry in sorted(tmp_path.rglob("output.pkl"))[:2]:
        entry.write_bytes(entry.read_bytes()[:20])
    again = retrain_outcomes(*args, memory=str(tmp_path))
    assert trainings == [4, 2]
    assert_allclose(again, first, rtol=1e-12)


def test_each_folder_serves_later_processes(data, tmp_path, trainings, monkeypatch):
    X, y, Xq, yq = data
    args = net(), X, y, make_weightings(30, 4, random_state=0), Xq, yq
    for name in ("one", "other"):
        retrain_outcomes(*args, memory=tmp_path / name)
    # what a process knows of the functions that it has remembered for
    monkeypatch.setattr(joblib.memory, "_FUNCTION_HASHES", {})
    for name in ("one", "other"):
        retrain_outcomes(*args, memory=tmp_path / name)
    assert trainings == [4, 4]


@pytest.mark.parametrize(
    "change",
    ["X", "y", "sample_weight", "X_query", "outcome", "epochs", "module", "seed"],
)
def test_the_key_sees_what_matters(data, tmp_path, trainings, change):
    X, y, Xq, yq = data

    def linear(bias):
        layer = nn.utils.skip_init(nn.Linear, 4, 3)
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, bias)
        return layer

    def run(**different):
        given = {"X": X, "y": y, "X_query": Xq, "y_query": yq, **different}
        model = given.pop("model", TorchClassifier(linear(0.0), random_state=0))
        given["weights"] = make_weightings(30, 2, random_state=0)
        return retrain_outcomes(
            model.set_params(max_epochs=3), memory=str(tmp_path), **given
        )

    run()
    # an equal module elsewhere in memory is the same
    run()
    assert trainings == [2]
    other = {
        "X": {"X": X + 1e-9},
        "y": {"y": np.roll(y, 1)},
        "sample_weight": {"sample_weight": np.arange(1, 31)},
        "X_query": {"X_query": Xq + 1},
        "outcome": {"outcome": "margin"},
        "epochs": {"model": TorchClassifier(linear(0.0), eps=1e-7, random_state=0)},
        "module": {"model": TorchClassifier(linear(1.0), random_state=0)},
        "seed": {"model": TorchClassifier(linear(0.0), random_state=1)},
    }
    run(**other[change])
    assert trainings == [2, 2]


class Ramp:
    def __init__(self, height):
        self.height = height

    def __call__(self, step, n_steps):
        return self.height * (step + 1) / n_steps


class Stretched(nn.Module):
    def __init__(self, n_inputs, n_outputs, factor=1.0, frozen=False):
        super().__init__()
        self.linear = nn.Linear(n_inputs, n_outputs)
        self.linear.bias.requires_grad_(not frozen)
        self.factor = factor

    def forward(self, x):
        return self.factor * self.linear(x)


def one_output(column):
    return lambda outputs, targets: outputs[..., column]


SIMILAR = {
    "closures": lambda k: {"outcome": one_output(k)},
    "partials": lambda k: {"module": partial(Stretched, factor=1.0 + k)},
    "callable objects": lambda k: {"schedule": Ramp(1.0 + k)},
    "source unknown": lambda k: {
        "outcome": eval(f"lambda outputs, targets: outputs[..., {k}]")
    },
    "plain attributes": lambda k: {"module": seeded(Stretched, 4, 3, 1.0 + k)},
    "frozen parameters": lambda k: {"module": seeded(Stretched, 4, 3, 1.0, k == 1)},
}


def seeded(build, *args):
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        return build(*args)


@pytest.mark.parametrize("similar", SIMILAR.values(), ids=list(SIMILAR))
def test_the_key_tells_what_looks_alike(data, tmp_path, similar):
    X, y, Xq, yq = data

    def run(k, memory):
        options = similar(k)
        outcome = options.pop("outcome", "auto")
        args = net(**options), X, y, np.ones((1, 30)), Xq, yq
        return retrain_outcomes(*args, outcome=outcome, memory=memory)

    for k in (0, 1):
        assert_array_equal(run(k, str(tmp_path)), run(k, None))
    assert np.abs(run(0, None) - run(1, None)).max() > 0
    entries = len(list(tmp_path.rglob("output.pkl")))
    run(0, str(tmp_path))
    assert len(list(tmp_path.rglob("output.pkl"))) == entries == 2


def test_a_fitted_step_is_part_of_the_key(data, tmp_path):
    X, y, Xq, yq = data
    found = []
    for scaler in [StandardScaler().fit(X), StandardScaler().fit(9 * X + 1)]:
        model = make_pipeline(
            FrozenEstimator(scaler), LogisticRegression(random_state=0)
        )
        args = model, X, y, np.ones((1, 30)), Xq, yq
        found.append(retrain_outcomes(*args, memory=tmp_path))
        assert_array_equal(found[-1], retrain_outcomes(*args))
    assert np.abs(found[0] - found[1]).max() > 0


def test_the_own_seeds_of_all_steps_come_first(data):
    X, y, Xq, yq = data
    model = make_pipeline(
        GaussianRandomProjection(3, random_state=1),
        GaussianRandomProjection(2, random_state=2),
        LogisticRegression(random_state=0),
    )
    found = retrain_outcomes(model, X, y, np.ones((1, 30)), Xq, yq)
    expected = clone(model).fit(X, y).predict_log_proba(Xq)[np.arange(6), yq]
    assert_allclose(found[0], expected, rtol=1e-9)


def test_a_generator_is_not_moved_on(data):
    X, y, Xq, yq = data
    model = net().set_params(random_state=np.random.RandomState(0))
    args = model, X, y, np.ones((1, 30)), Xq, yq
    assert_array_equal(retrain_outcomes(*args), retrain_outcomes(*args))


def test_memory_serves_other_estimators_too(data, tmp_path):
    X, y, Xq, yq = data
    args = X, y, make_weightings(30, 3, random_state=0), Xq, yq
    forest = RandomForestClassifier(3, random_state=0)
    first = retrain_outcomes(forest, *args, memory=str(tmp_path))
    files = sorted(tmp_path.rglob("output.pkl"))
    assert len(files) == 3
    assert_array_equal(retrain_outcomes(forest, *args, memory=str(tmp_path)), first)
    assert sorted(tmp_path.rglob("output.pkl")) == files


# ------------------------------------------------------------ frozen, fallbacks
def test_a_frozen_estimator_is_trained_again(data):
    X, y, Xq, yq = data
    weights = make_weightings(30, 3, random_state=0)
    for model in [net(), LogisticRegression(random_state=0)]:
        frozen = FrozenEstimator(clone(model).fit(X, y))
        expected = retrain_outcomes(model, X, y, weights, Xq, yq)
        assert_array_equal(retrain_outcomes(frozen, X, y, weights, Xq, yq), expected)
        with pytest.warns(FaithfulnessWarning, match="misses its outcomes"):
            retrain_outcomes(frozen, X[:20], y[:20], weights[:, :20], Xq, yq)


def test_a_wrapped_module_cannot_be_trained_again(data):
    X, y, Xq, yq = data
    module = net().fit(X, y).module_
    frozen = FrozenEstimator(TorchClassifier.from_module(module, [0, 1, 2]))
    with pytest.raises(TrajectoryError, match=r"not recorded.*Train it through"):
        retrain_outcomes(frozen, X, y, np.ones((1, 30)), Xq, yq)


class Stubborn(nn.Module):
    """Looks at its data, which vmap cannot."""

    def __init__(self, n_inputs, n_outputs):
        super().__init__()
        self.linear = nn.Linear(n_inputs, n_outputs)

    def forward(self, x):
        out = self.linear(x)
        return out if float(out.detach().sum()) > -1e30 else out * 0


def test_modules_that_cannot_be_stacked_are_trained_one_by_one(data):
    X, y, Xq, yq = data
    weights = make_weightings(30, 3, random_state=0)
    model = net(module=Stubborn)
    with pytest.warns(EfficiencyWarning, match="Stubborn: .*vmap cannot batch models"):
        found = retrain_outcomes(model, X, y, weights, Xq, yq)
    assert_allclose(found, by_hand(model, X, y, weights, Xq, yq), rtol=1e-9)


def test_outcomes_that_are_not_finite_are_pointed_out(data):
    X, y, Xq, yq = data
    with pytest.warns(FaithfulnessWarning, match="not finite"):
        retrain_outcomes(
            net(), X, y, np.ones((1, 30)), Xq, yq, outcome=lambda f, t: f[..., 0] / 0
        )


# ---------------------------------------------------------------------- errors
ERRORS = {
    "no weights taken": (
        {"estimator": KNeighborsClassifier(), "weights": np.full((1, 30), 0.5)},
        r"weights hold 0.5, and fit of KNeighborsClassifier takes no sample_weight",
    ),
    "no probabilities": (
        {"estimator": VotingClassifier([("a", Perceptron())])},
        r"VotingClassifier has neither predict_proba nor decision_function, .* Use "
        r"voting='soft'",
    ),
    "decisions of pairs": (
        {"estimator": SVC(decision_function_shape="ovo")},
        r"decision_function_shape='ovo' of SVC has a decision value for each pair of "
        r"the 3 classes, .* use decision_function_shape='ovr'",
    ),
    "a subset of one class": (
        {"estimator": SVC(random_state=0), "weights": np.eye(30)[:1]},
        r"SVC was trained on a subset without the classes .* Keep more units",
    ),
    "a likelihood of decisions": (
        {"estimator": Perceptron(random_state=0), "outcome": "log_likelihood"},
        r"'log_likelihood' needs probabilities, and Perceptron has none; use "
        r"outcome='margin'",
    ),
    "a probability of decisions": (
        {"estimator": SVC(random_state=0), "outcome": "probability"},
        r"'probability' needs probabilities, and SVC has none; use outcome='margin'",
    ),
    "neither kind": ({"estimator": StandardScaler()}, "neither a classifier nor a"),
    "shape of weights": ({"weights": np.ones((2, 4))}, "n_units=30"),
    "negative weights": ({"weights": -np.ones((2, 30))}, "weights must be at least 0"),
    "weights as text": ({"weights": np.full((2, 30), "a")}, "weights must be numeric"),
    "length of y": ({"y": np.zeros(3)}, "inconsistent numbers"),
    "length of y_query": ({"y_query": np.zeros(3)}, "inconsistent numbers"),
    "unseen label": ({"y_query": np.full(6, 7)}, "unseen in fit"),
    "unseen label, not torch": (
        {"estimator": LogisticRegression(random_state=0), "y_query": np.full(6, 7)},
        "y_query holds labels unseen",
    ),
    "negative sample_weight": ({"sample_weight": -np.ones(30)}, "Negative values"),
    "zero sample_weight": ({"sample_weight": np.zeros(30)}, "at least one non-zero"),
    "one task": ({"tasks": np.zeros(30)}, "tasks has only one label"),
    "no seed": (
        {"estimator": TorchClassifier(), "memory": "cache"},
        "memory is set, but the estimator's random_state is None",
    ),
    "unknown outcome": ({"outcome": "loss"}, "outcome must be one of"),
    "outcome of the wrong shape": (
        {"outcome": lambda f, t: f.sum()},
        "it must drop the last axis and keep",
    ),
    "columns of y_query": (
        {
            "estimator": LinearRegression(),
            "y": np.zeros((30, 2)),
            "y_query": np.zeros(6),
        },
        "y_query has 1 columns, the estimator predicts 2",
    ),
    "seeds": ({"n_seeds": 0}, "'n_seeds' parameter"),
}


@pytest.mark.parametrize(("change", "message"), ERRORS.values(), ids=list(ERRORS))
def test_bad_input(data, change, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    X, y, Xq, yq = data
    given = {
        "estimator": net(),
        "X": X,
        "y": y,
        "weights": np.ones((2, 30)),
        "X_query": Xq,
        "y_query": yq,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        retrain_outcomes(**given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "outcome",
    [soft_calibration_error(), group_gap([0, 1] * 10), worst_group([0, 1] * 10)],
)
def test_decision_values_are_no_probabilities(outcome):
    X, y = load_breast_cancer(return_X_y=True)
    data = X[:60], y[:60], np.ones((1, 60)), X[60:80], y[60:80]
    with pytest.raises(ValueError, match=r"needs probabilities, and SVC has none: use"):
        retrain_outcomes(SVC(random_state=0), *data, outcome=outcome)
    ranked = retrain_outcomes(SVC(random_state=0), *data, outcome=soft_auroc())
    assert 0 < float(ranked[0, 0]) <= 1


def test_several_labels_without_probabilities_are_refused_before_training():
    X, Y = (
        np.random.RandomState(0).randn(40, 3),
        np.eye(2, dtype=int)[np.arange(40) % 2],
    )
    with pytest.raises(
        ValueError, match=r"y has 2 labels a row, .* has no predict_proba"
    ):
        retrain_outcomes(
            OneVsRestClassifier(SVC(random_state=0)), X, Y, np.ones((1, 40)), X, Y
        )


@pytest.mark.parametrize("refit_transformers", [False, True])
@pytest.mark.parametrize("n_labels", [2, 3])
def test_columns_of_labels_are_refused_before_training(n_labels, refit_transformers):
    rng = np.random.RandomState(0)
    X, Y = rng.randn(40, 3), rng.randint(n_labels, size=(40, 2))
    forest = RandomForestClassifier(2, random_state=0)
    pipe = make_pipeline(StandardScaler(), forest)
    data = X, Y, np.ones((1, 40)), X[:4], Y[:4]
    with pytest.raises(ValueError, match=r"y has 2 columns.*Fit one attributor per"):
        retrain_outcomes(pipe, *data, refit_transformers=refit_transformers)
    perceptron = MLPClassifier((3,), max_iter=2, random_state=0)
    pipe = make_pipeline(StandardScaler(), perceptron)
    if n_labels == 2:
        options = {"refit_transformers": refit_transformers}
        assert retrain_outcomes(pipe, *data, **options).shape == (1, 4)
