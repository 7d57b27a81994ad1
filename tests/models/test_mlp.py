"""scikit-learn's multilayer perceptrons: gradients, replayed runs, and refusals."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_diabetes, load_iris, load_wine
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler, scale

from skattrib import (
    AdamWInfluence,
    DualInfluence,
    KernelSurrogateAttributor,
    make_attributor,
)
from skattrib.engine._functional import FunctionalModule
from skattrib.engine._training import train
from skattrib.evaluation import loo_score, retrain_outcomes
from skattrib.exceptions import (
    FaithfulnessWarning,
    TrajectoryError,
    UnsupportedModelError,
)
from skattrib.extension import as_model

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
QUICK = {"hidden_layer_sizes": (6, 4), "max_iter": 25, "random_state": 0}
IRIS = load_iris(return_X_y=True)
SOLVERS = {
    "adam": {"learning_rate_init": 0.02},
    "sgd": {"solver": "sgd", "learning_rate_init": 0.1},
    "lbfgs": {"solver": "lbfgs"},
}


def iris(kind="classes", n=75):
    """Rows of iris, and targets of a kind."""
    X, y = scale(IRIS[0])[:: 150 // n], IRIS[1][:: 150 // n]
    numbers = X[:, 3] ** 2 + X[:, 2]
    targets = {
        "classes": y,
        "texts": np.array(["setosa", "versicolor", "virginica"])[y],
        "two classes": y > 0,
        "labels": np.c_[y > 0, y > 1, X[:, 0] > 0].astype(int),
        "numbers": numbers,
        "several numbers": np.c_[numbers, X[:, 0]],
        "counts": np.round(np.exp(X[:, 2])),
    }
    return X, targets[kind]


KINDS = [
    "classes",
    "texts",
    "two classes",
    "labels",
    "numbers",
    "several numbers",
    "counts",
]


def estimator(kind="classes", **params):
    params = {**QUICK, "learning_rate_init": 0.02, **params}
    if kind in ("classes", "texts", "two classes", "labels"):
        return MLPClassifier(**params)
    return MLPRegressor(
        loss="poisson" if kind == "counts" else "squared_error", **params
    )


def answers(fitted, X):
    """What the estimator itself predicts, a column for each output."""
    predict = getattr(fitted, "predict_proba", fitted.predict)
    return predict(X).reshape(len(X), -1)


# ------------------------------------------------------------------- the module
@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_module_answers_as_the_estimator(kind, activation):
    X, y = iris(kind)
    fitted = estimator(kind, activation=activation).fit(X, y)
    model = as_model(fitted)
    outputs = model.outputs(X)
    numbers = kind in ("numbers", "several numbers", "counts")
    shown = (model.loss.predict if numbers else model.loss.probabilities)(outputs)
    assert_allclose(shown.numpy(), answers(fitted, X), rtol=1e-12, atol=1e-12)
    assert_allclose(model.module(torch.tensor(X)).detach(), outputs, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_module_has_the_precision_of_the_fit(dtype):
    X, y = iris()
    model = as_model(estimator().fit(X.astype(dtype), y))
    expected = torch.float32 if dtype == np.float32 else torch.float64
    assert {p.dtype for p in model.module.parameters()} == {expected}
    assert {p.dtype for p in model.in_double().module.parameters()} == {torch.float64}


def test_no_hidden_layer_is_a_linear_model():
    X, y = iris()
    fitted = estimator(hidden_layer_sizes=()).fit(X, y)
    assert_allclose(as_model(fitted).outputs(X).softmax(1), fitted.predict_proba(X))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_training_loss(kind):
    """By differences of the estimator's own loss, whose penalty has no rows."""
    X, y = iris(kind)
    fitted = estimator(kind, activation="tanh", alpha=0.0).fit(X, y)
    model, step = as_model(fitted), 1e-6
    gradient = model.loss_gradients(X, y).mean(dim=0).numpy()

    def loss(moved):
        outputs = as_model(moved).outputs(X)
        return float(model.loss.values(outputs, model.targets(y, outputs)).mean())

    for place in [(0, 0), (1, 3)]:
        ends = []
        for sign in (-1, 1):
            moved = copy.deepcopy(fitted)
            moved.coefs_[0][place] += sign * step
            ends.append(loss(moved))
        slope = (ends[1] - ends[0]) / (2 * step)
        column = place[1] * X.shape[1] + place[0]  # torch has the transpose
        assert_allclose(gradient[column], slope, atol=1e-8)


@pytest.mark.parametrize("kind", ["classes", "two classes", "labels", "numbers"])
def test_the_loss_is_the_one_that_was_trained_on(kind):
    X, y = iris(kind)
    fitted = estimator(kind, solver="lbfgs", alpha=0.0, max_iter=5).fit(X, y)
    model = as_model(fitted)
    outputs = model.outputs(X)
    mean = float(model.loss.values(outputs, model.targets(y, outputs)).mean())
    assert_allclose(mean, fitted.loss_, rtol=1e-10)


# ---------------------------------------------------------- truth and attribution
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", KINDS)
def test_present_outcomes_are_those_of_retraining_with_all(kind, solver):
    X, y = iris(kind, n=30)
    mlp = estimator(kind, **SOLVERS[solver])
    dual = DualInfluence(mlp, ridge=0.1, random_state=0).fit(X, y)
    everything = np.ones((1, len(X)))
    truth = retrain_outcomes(mlp, X, y, everything, X[:5], y[:5])
    assert_allclose(dual.predict_outcomes(X[:5], y[:5], everything), truth, atol=1e-6)
    assert dual.attribute(X[:5], y[:5]).shape == (5, 30)


@pytest.mark.parametrize("kind", ["classes", "two classes", "counts", "labels"])
def test_a_function_measures_what_is_predicted(kind):
    X, y = iris(kind, n=30)
    first = lambda outputs, targets: outputs[..., 0]
    dual = DualInfluence(estimator(kind), ridge=0.1, outcome=first, random_state=0)
    everything = np.ones((1, len(X)))
    found = dual.fit(X, y).predict_outcomes(X[:5], y[:5], everything)[0]
    expected = answers(dual.estimator_, X[:5])[:, 0]
    assert_allclose(found, expected if kind == "counts" else np.log(expected))
    truth = retrain_outcomes(
        estimator(kind), X, y, everything, X[:5], y[:5], outcome=first
    )
    assert_allclose(found, truth[0])


def test_classes_without_rows_have_probability_zero():
    X, y = iris(n=30)
    weights = np.array([y != 2, y == 0, np.ones(30)], dtype=float)
    truth = retrain_outcomes(estimator(), X, y, weights, X[[0, 12, 29]], y[[0, 12, 29]])
    least = np.log(np.finfo(np.float64).eps)
    assert_allclose(truth[0, 2], least)
    assert_allclose(truth[1], [0.0, least, least], atol=1e-12)
    left = estimator().fit(X[y != 2], y[y != 2]).predict_log_proba(X[[0, 12]])
    assert_allclose(truth[0, :2], [left[0, 0], left[1, 1]], rtol=1e-9)


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.filterwarnings("ignore:ridge='auto' without a record")
def test_left_out_rows_rank_as_refitting_does(solver):
    X, y = load_wine(return_X_y=True)
    X, queries = scale(X), np.arange(1, 178, 12)
    rows = np.arange(0, 178, 6)
    params = {"max_iter": 60, "activation": "tanh", "alpha": 1.0}
    mlp = MLPClassifier((4,), **SOLVERS[solver], **params, random_state=0)
    asked = X[queries], y[queries]
    without = 1 - np.eye(len(rows))
    truth = retrain_outcomes(mlp, X[rows], y[rows], without, *asked)
    dual = DualInfluence(mlp, random_state=0).fit(X[rows], y[rows])
    assert loo_score(truth, dual.attribute(*asked)) > 0.4
    if solver == "adam":
        run = AdamWInfluence(mlp, inclusion=1, random_state=0).fit(X[rows], y[rows])
        assert loo_score(truth, run.attribute(*asked)) > 0.6


def test_a_recorded_length_sets_the_damping():
    X, y = iris()
    with warnings.catch_warnings():
        warnings.simplefilter("error", FaithfulnessWarning)
        for solver in ("adam", "sgd"):
            dual = DualInfluence(estimator(**SOLVERS[solver]), random_state=0)
            dual.fit(X, y)
            assert dual.ridge_rule_.source == "length of the recorded run"
            run = as_model(estimator(**SOLVERS[solver]).fit(X, y))
            network = as_model(run.replayed(X, y, np.ones(len(X))))
            recorded = network.trajectory
            assert_allclose(
                run.trajectory.recipe.path_length, recorded.recipe.path_length
            )
            if solver == "adam":
                assert_allclose(
                    run.trajectory.denominator, recorded.denominator, rtol=1e-6
                )
    with pytest.warns(FaithfulnessWarning, match="without a record"):
        DualInfluence(estimator(solver="lbfgs"), random_state=0).fit(X, y)


def test_several_seeds_are_those_of_retraining():
    X, y = iris(n=30)
    dual = DualInfluence(estimator(), n_models=2, random_state=0).fit(X, y)
    everything = np.ones((1, len(X)))
    truth = retrain_outcomes(estimator(), X, y, everything, X[:5], y[:5], n_seeds=2)
    assert_allclose(dual.predict_outcomes(X[:5], y[:5], everything), truth, atol=1e-6)


def test_a_refitted_pipeline_keeps_the_seed_of_each_step():
    X, y = iris(n=30)
    whole = make_pipeline(PCA(2, random_state=1), estimator(random_state=2))
    everything = np.ones((1, len(X)))
    asked = X, y, everything, X[:5], y[:5]
    again = retrain_outcomes(whole, *asked, refit_transformers=True)
    assert_allclose(again, retrain_outcomes(whole, *asked), atol=1e-9)


def test_head_and_calibration_work():
    X, y = iris(n=30)
    head = DualInfluence(estimator(), parameters="head", random_state=0).fit(X, y)
    assert head.attribute(X[:3], y[:3]).shape == (3, 30)
    mlp = estimator(max_iter=10)
    calibrated = DualInfluence(mlp, ridge="calibrate", random_state=0).fit(X, y)
    assert "by retraining" in calibrated.ridge_rule_.source


# ------------------------------------------------------------------------ replay
RUNS = {
    "adam": {},
    "small batches": {"batch_size": 32},
    "strong penalty": {"batch_size": 32, "alpha": 2.0},
    "no penalty": {"alpha": 0.0},
    "not shuffled": {"batch_size": 32, "shuffle": False},
    "other adam": {"beta_1": 0.5, "beta_2": 0.9, "epsilon": 1e-3, "batch_size": 32},
    "sgd": {"solver": "sgd", "batch_size": 32},
    "sgd without nesterov": {"solver": "sgd", "nesterovs_momentum": False},
    "sgd without momentum": {"solver": "sgd", "momentum": 0.0, "batch_size": 32},
    "invscaling": {"solver": "sgd", "learning_rate": "invscaling", "power_t": 0.3},
    "adaptive": {
        "solver": "sgd",
        "learning_rate": "adaptive",
        "learning_rate_init": 0.3,
        "tol": 0.02,
        "n_iter_no_change": 2,
        "max_iter": 60,
    },
    "stopped": {"learning_rate_init": 0.1, "tol": 0.05, "n_iter_no_change": 2},
    "early stopping": {"early_stopping": True, "n_iter_no_change": 4, "batch_size": 32},
    "adaptive early stopping": {
        "solver": "sgd",
        "learning_rate": "adaptive",
        "early_stopping": True,
        "learning_rate_init": 0.2,
        "n_iter_no_change": 2,
        "max_iter": 40,
    },
}


def end_of_replay(network, X, y):
    """Weights at the end of a run that is repeated, without taking over its end."""
    problem = network._problem(X, network._learn_target(y, X))
    weights = problem.weighted(network.trajectory_.row_weights[None])
    recipe = network.trajectory_.recipe
    return train(
        problem.model, problem.loss, recipe, problem.X, problem.targets, weights
    ).params[0]


def check_replay(fitted, X, y, weights, atol=1e-8):
    model = as_model(fitted)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "early_stopping held out")
        warnings.filterwarnings("ignore", "Every row of y has one 1")
        network = model.replayed(X, y, weights)
    end = FunctionalModule(model.module).flatten()
    assert_allclose(end_of_replay(network, X, y), end, rtol=0, atol=atol)
    assert_allclose(FunctionalModule(network.module_).flatten(), end, rtol=0, atol=0)
    return network


@pytest.mark.parametrize("name", RUNS)
def test_replay_ends_at_the_fitted_weights(name):
    X, y = iris()
    fitted = estimator(**RUNS[name]).fit(X, y)
    network = check_replay(fitted, X, y, np.ones(len(X)))
    if "adaptive" in name:
        assert len(set(network.recipe.learning_rates.tolist())) > 1
    if name == "stopped":
        assert fitted.n_iter_ < fitted.max_iter


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_replay_of_every_kind_of_target(kind, early_stopping):
    X, y = iris(kind)
    fitted = estimator(kind, batch_size=32, early_stopping=early_stopping).fit(X, y)
    check_replay(fitted, X, y, np.ones(len(X)))


@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh"])
def test_replay_of_every_activation(activation):
    X, y = iris()
    fitted = estimator(activation=activation).fit(X, y)
    check_replay(fitted, X, y, np.ones(len(X)))


def test_replay_of_weighted_rows():
    X, y = iris()
    weights = np.random.RandomState(0).uniform(0.2, 3, len(X))
    fitted = estimator(batch_size=32, alpha=1.0).fit(X, y, sample_weight=weights)
    network = check_replay(fitted, X, y, weights)
    assert network.recipe.decay_factors is not None


def test_replay_in_single_precision():
    X, y = iris()
    X = X.astype(np.float32)
    network = check_replay(estimator().fit(X, y), X, y, np.ones(len(X), "f"), atol=1e-4)
    assert network.recipe.initial.dtype == torch.float32


@pytest.mark.parametrize("name", ["adam", "small batches", "sgd"])
def test_runs_rank_retrained_ones(name):
    X, y = iris()
    mlp = estimator(**RUNS[name], activation="tanh")
    run = AdamWInfluence(mlp, n_trajectories=8, random_state=0).fit(X, y)
    assert run.score(*iris(n=30)) > 0.5
    assert isinstance(run.estimator_, MLPClassifier)


def test_derivatives_are_those_of_the_repeated_run():
    """The last minibatch is smaller, and has a penalty of its own."""
    X, y = iris(n=30)
    mlp = estimator(batch_size=20, alpha=1.0, activation="tanh", max_iter=8)
    frozen = FrozenEstimator(mlp.fit(X, y))
    run = AdamWInfluence(frozen, random_state=0).fit(X, y)
    found, step = run.attribute(X[:4], y[:4]), 1e-5
    weights = 1 + step * np.vstack([np.eye(30)[:3], -np.eye(30)[:3]])
    ends = retrain_outcomes(run._model, X, y, weights, X[:4], y[:4])
    slopes = (ends[:3] - ends[3:]) / (2 * step)
    assert_allclose(found[:, :3].T, slopes, rtol=1e-5, atol=1e-7)
    everything = np.ones((1, 30))
    truth = retrain_outcomes(frozen, X, y, everything, X[:4], y[:4])
    assert_allclose(run.predict_outcomes(X[:4], y[:4], everything), truth, atol=1e-6)


def test_steps_and_second_derivatives_of_a_run():
    X, y = iris(n=30)
    run = AdamWInfluence(
        estimator(batch_size=20, activation="tanh", max_iter=5, solver="sgd"),
        inclusion=1,
        random_state=0,
    ).fit(X, y)
    steps = run.step_attribution(X[:2], y[:2])
    by_row = np.zeros((2, 30))
    np.add.at(by_row.T, steps.rows, steps.attributions.T)
    assert_allclose(by_row, run.attribute(X[:2], y[:2]), atol=1e-10)
    assert run.diagnose(X[:4], y[:4]).second_order_error < 0.5


def test_a_fitted_attributor_can_be_pickled_and_remembers(tmp_path):
    X, y = iris(n=30)
    options = {"n_trajectories": 4, "memory": str(tmp_path), "random_state": 0}
    run = AdamWInfluence(estimator(max_iter=5), **options).fit(X, y)
    again = AdamWInfluence(estimator(max_iter=5), **options).fit(X, y)
    loaded = pickle.loads(pickle.dumps(run))
    for other in (again, loaded):
        assert_allclose(other.attribute(X[:2], y[:2]), run.attribute(X[:2], y[:2]))


def test_rows_held_out_to_stop_early_are_named():
    X, y = iris(n=30)
    mlp = estimator(early_stopping=True, n_iter_no_change=3)
    run = AdamWInfluence(mlp, inclusion=1, random_state=0)
    with pytest.warns(FaithfulnessWarning, match="held out 3 of the 30") as caught:
        run.fit(X, y)
    assert caught[-1].filename == __file__
    assert (run.attribute(X[:2], y[:2]) == 0).all(axis=0).sum() == 3


# ---------------------------------------------------------------------- composed
@pytest.mark.parametrize("kind", [DualInfluence, AdamWInfluence])
@pytest.mark.parametrize("frozen", [False, True])
def test_pipelines(kind, frozen):
    X, y = load_iris(return_X_y=True, as_frame=True)
    X, y = X[::5], y[::5]
    whole = make_pipeline(StandardScaler(), estimator())
    if frozen:
        whole = FrozenEstimator(whole.fit(X, y))
    attributor = kind(whole, random_state=0).fit(X, y)
    alone = kind(estimator(), random_state=0).fit(scale(X), y)
    inclusion = {"inclusion": 1} if kind is AdamWInfluence else {}
    if frozen and inclusion:
        alone.set_params(**inclusion).fit(scale(X), y)
    assert_allclose(
        attributor.attribute(X[:3], y[:3]),
        alone.attribute(scale(X)[:3], y[:3]),
        atol=1e-9,
    )
    inner = attributor.estimator_
    inner = inner.estimator if frozen else inner
    assert isinstance(inner[-1], MLPClassifier)


@pytest.mark.parametrize("kind", [DualInfluence, AdamWInfluence])
def test_targets_that_are_transformed(kind):
    X, y = load_diabetes(return_X_y=True)
    X, y = scale(X[:40]), y[:40]
    mlp = estimator("numbers", learning_rate_init=0.01)
    whole = TransformedTargetRegressor(mlp, transformer=StandardScaler())
    attributor = kind(whole, outcome="prediction", random_state=0).fit(X, y)
    assert attributor.attribute(X[:3]).shape == (3, 40)
    if kind is DualInfluence:
        found = attributor.predict_outcomes(X[:3], y[:3], np.ones((1, 40)))[0]
        assert_allclose(found, attributor.estimator_.predict(X[:3]), rtol=1e-9)


def test_frames_groups_and_texts():
    X, y = load_iris(return_X_y=True, as_frame=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    tasks = np.arange(150) % 5
    for kind in (DualInfluence, AdamWInfluence, KernelSurrogateAttributor):
        few = {"n_subsets": 16} if kind is KernelSurrogateAttributor else {}
        mlp = estimator(max_iter=5)
        attributor = kind(mlp, random_state=0, **few).fit(X, names, tasks=tasks)
        assert attributor.attribute(X[:3], names[:3]).shape == (3, 5)
        assert attributor.transform(X[:3]).shape == (3, 5)


def test_sparse_rows_are_retrained_on_but_have_no_gradients():
    X, y = iris(n=30)
    X, asked = np.round(X), (np.round(X)[:5], y[:5])
    sparse, dense = (
        make_pipeline(
            OneHotEncoder(handle_unknown="ignore", sparse_output=out), estimator()
        )
        for out in (True, False)
    )
    weights = np.ones((1, len(X)))
    truth = retrain_outcomes(sparse, X, y, weights, *asked)
    assert_allclose(truth, retrain_outcomes(dense, X, y, weights, *asked), rtol=1e-6)
    for kind in (DualInfluence, AdamWInfluence):
        with pytest.raises(TypeError, match="sparse_output=False"):
            kind(sparse, random_state=0).fit(X, y)


def test_which_attributor_to_begin_with():
    everyone = [
        "DualInfluence",
        "AdamWInfluence",
        "KernelSurrogateAttributor",
        "LinearSurrogateAttributor",
        "RISEValuator",
    ]
    assert as_model(estimator()).attributors() == everyone
    without = [name for name in everyone if name != "AdamWInfluence"]
    assert as_model(estimator(solver="lbfgs")).attributors() == without
    assert isinstance(make_attributor(estimator()), DualInfluence)


# --------------------------------------------------------------------- refusals
CURES = "TorchClassifier.*DualInfluence.*KernelSurrogateAttributor"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"solver": "lbfgs"}, "solver='lbfgs'"),
        ({"solver": "sgd", "momentum": 1.0}, "momentum=1"),
    ],
)
def test_what_takes_other_steps_is_refused_before_training(params, message):
    X, y = iris()
    for mlp in (estimator(**params), make_pipeline(estimator(**params))):
        with pytest.raises(UnsupportedModelError, match=f"{message}.*{CURES}"):
            AdamWInfluence(mlp, random_state=0).fit(X, y)


@pytest.mark.parametrize("seed", [None, "generator"])
def test_a_frozen_one_of_unknown_seed_is_refused(seed):
    X, y = iris()
    rng = np.random.RandomState(0)
    fitted = estimator(random_state=rng).fit(X, y)
    fitted.set_params(random_state=None if seed is None else rng)
    with pytest.raises(UnsupportedModelError, match=f"random_state=.*{CURES}"):
        AdamWInfluence(FrozenEstimator(fitted), random_state=0).fit(X, y)
    # what is trained gets a seed
    fitted = AdamWInfluence(estimator(random_state=None), random_state=0).fit(X, y)
    assert fitted.attribute(X[:1], y[:1]).shape == (1, 75)


@pytest.mark.parametrize("why", ["rows", "labels", "warm_start", "partial_fit"])
def test_a_run_that_is_not_reproduced_is_refused_with_the_figure(why):
    X, y = iris()
    mlp = estimator(warm_start=why == "warm_start")
    if why == "partial_fit":
        for _ in range(3):
            mlp.partial_fit(X, y, classes=[0, 1, 2])
    else:
        mlp.fit(X, y)
    if why == "warm_start":
        mlp.fit(X, y)
    if why == "rows":
        X = X[::-1] + 0.1
    if why == "labels":
        y = np.roll(y, 1)
    figure = r"misses the fitted weights by \d\.\de[-+]\d+ of the distance"
    with pytest.raises(TrajectoryError, match=f"{figure}.*{CURES}"):
        AdamWInfluence(FrozenEstimator(mlp), random_state=0).fit(X, y)
    # which needs no run
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FaithfulnessWarning)
        dual = DualInfluence(FrozenEstimator(mlp), random_state=0).fit(X, y)
    assert dual.attribute(X[:2], y[:2]).shape == (2, 75)


def test_a_warm_start_that_was_used_once_is_a_run():
    X, y = iris()
    frozen = FrozenEstimator(estimator(warm_start=True).fit(X, y))
    run = AdamWInfluence(frozen, random_state=0).fit(X, y)
    assert run.attribute(X[:1], y[:1]).shape == (1, 75)


def test_other_refusals_are_those_of_networks():
    X, y = iris()
    with pytest.raises(ValueError, match="batch_size=1 makes weights inert"):
        AdamWInfluence(estimator(batch_size=1), random_state=0).fit(X, y)
    with pytest.raises(ValueError, match=r"n_models=2 .*Use n_models=1"):
        AdamWInfluence(estimator(), n_models=2, random_state=0).fit(X, y)
    with pytest.raises(ValueError, match="one class only"):
        DualInfluence(estimator(), random_state=0).fit(X, np.zeros(len(X), dtype=int))
    dual = DualInfluence(estimator(), ridge=0.1, random_state=0).fit(X, y)
    with pytest.raises(ValueError, match=r"labels unseen in fit: .*Leave these rows"):
        dual.attribute(X[:1], [7])
    _, labels = iris("labels")
    dual = DualInfluence(estimator("labels"), ridge=0.1, random_state=0).fit(X, labels)
    with pytest.raises(ValueError, match="3 columns of 0 and 1"):
        dual.attribute(X[:1], [[0, 1, 2]])
