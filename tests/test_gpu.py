"""On a GPU everything says what it says on a CPU: ``make test-gpu``."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes, load_wine
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import scale
from torch import nn

from skattrib import (
    AdamWInfluence,
    DualInfluence,
    GradientTransformer,
    KernelSurrogateAttributor,
    LinearSurrogateAttributor,
    RISEValuator,
    TorchClassifier,
    TorchRegressor,
    lookahead_training,
    record_training,
)
from skattrib.evaluation import make_weightings, retrain_outcomes

pytestmark = pytest.mark.gpu

QUERIES = slice(80, 90)


def wine():
    X, y = load_wine(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(X))[:90]
    return scale(X)[order], y[order]


def diabetes():
    X, y = load_diabetes(return_X_y=True)
    return scale(X)[:90], scale(y)[:90]


def network(kind, device, **options):
    settings = {
        "hidden_layer_sizes": (6,),
        "batch_size": 15,
        "max_epochs": 5,
        "random_state": 0,
    }
    return kind(**settings | options, device=device)


def problem(kind):
    X, y = wine() if kind is TorchClassifier else diabetes()
    return X[:80], y[:80], X[QUERIES], y[QUERIES]


KINDS = [TorchClassifier, TorchRegressor]
ATTRIBUTORS = {
    "newton": lambda net: DualInfluence(net, ridge=0.1),
    "influence": lambda net: DualInfluence(net, ridge=0.1, removal="influence"),
    "refit": lambda net: DualInfluence(net, ridge=0.1, removal="refit"),
    "primal": lambda net: DualInfluence(net, ridge=0.1, solver="primal"),
    "dual": lambda net: DualInfluence(net, ridge=0.1, solver="dual"),
    "cg": lambda net: DualInfluence(net, ridge=0.1, solver="cg"),
    "nystroem": lambda net: DualInfluence(net, ridge=0.1, solver="nystroem"),
    "by_query": lambda net: DualInfluence(
        net, ridge=0.1, solver="cg", removal="influence"
    ),
    "head": lambda net: DualInfluence(net, parameters="head"),
    "calibrated": lambda net: DualInfluence(net, ridge="calibrate"),
    "auto": lambda net: DualInfluence(net),
    "one_run": lambda net: AdamWInfluence(net, inclusion=1.0, n_trajectories=1),
    "halves": lambda net: AdamWInfluence(net, n_trajectories=4),
    "fisher": lambda net: AdamWInfluence(
        net, n_trajectories=2, hessian="empirical_fisher"
    ),
    "kernel": lambda net: KernelSurrogateAttributor(net, n_subsets=20),
    "gradient": lambda net: LinearSurrogateAttributor(
        net, n_subsets=20, estimation="gradient"
    ),
    "retrain": lambda net: LinearSurrogateAttributor(
        net, n_subsets=20, estimation="retrain"
    ),
    "rise": lambda net: RISEValuator(net, n_components=32),
    "rise_exact": lambda net: RISEValuator(
        net, sketch=None, channels=("rh",), top_k=None, normalize=False
    ),
}


def on_both(use):
    """Return what a function of a device gives on the CPU and on the GPU."""
    return use("cpu"), use("cuda")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_training(kind, optimizer):
    X, y, X_query, _ = problem(kind)

    def predict(device):
        net = network(kind, device, optimizer=optimizer).fit(X, y)
        assert {p.device.type for p in net.module_.parameters()} == {device}
        return net.predict(X_query), net

    (expected, _), (found, net) = on_both(predict)
    np.testing.assert_allclose(found, expected, atol=1e-10)
    again = pickle.loads(pickle.dumps(net))
    np.testing.assert_allclose(again.predict(X_query), expected, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ATTRIBUTORS)
def test_attributions(kind, name):
    X, y, X_query, y_query = problem(kind)
    if kind is TorchRegressor and name.startswith("rise"):
        kind, (X, y, X_query, y_query) = TorchClassifier, problem(TorchClassifier)

    def attribute(device):
        model = ATTRIBUTORS[name](network(kind, device))
        model.set_params(random_state=0)
        tasks = np.arange(len(X)) % 12 if "retrain" in name else None
        return model.fit(X, y, tasks=tasks).attribute(X_query, y_query)

    expected, found = on_both(attribute)
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["newton", "refit", "one_run", "kernel"])
def test_predicted_outcomes_score_and_verdict(name):
    X, y, X_query, y_query = problem(TorchClassifier)
    weightings = make_weightings(len(X), 6, random_state=0)

    def use(device):
        model = ATTRIBUTORS[name](network(TorchClassifier, device))
        model.set_params(random_state=0, n_retrainings=8).fit(X, y)
        return (
            model.predict_outcomes(X_query, y_query, weightings),
            model.score(X_query, y_query),
        )

    (expected, score), (found, own) = on_both(use)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert own == pytest.approx(score, abs=1e-6)


@pytest.mark.filterwarnings("ignore::skattrib.exceptions.FaithfulnessWarning")
@pytest.mark.parametrize("name", ["newton", "one_run", "rise"])
def test_diagnose(name):
    X, y, X_query, y_query = problem(TorchClassifier)

    def use(device):
        model = ATTRIBUTORS[name](network(TorchClassifier, device))
        model.set_params(random_state=0).fit(X, y)
        return model.diagnose(X_query, y_query)

    expected, found = on_both(use)
    for figure, value in expected.items():
        if isinstance(value, float):
            np.testing.assert_allclose(found[figure], value, rtol=1e-4, err_msg=figure)


def test_retrained_outcomes():
    X, y, X_query, y_query = problem(TorchClassifier)
    weightings = make_weightings(len(X), 20, random_state=0)
    expected, found = on_both(
        lambda device: retrain_outcomes(
            network(TorchClassifier, device), X, y, weightings, X_query, y_query
        )
    )
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_gradients_of_rows():
    X, y, _, _ = problem(TorchClassifier)
    expected, found = on_both(
        lambda device: GradientTransformer(
            network(TorchClassifier, device), random_state=0
        ).fit_transform(X, y)
    )
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_lookahead():
    X, y, X_query, y_query = problem(TorchClassifier)
    expected, found = on_both(
        lambda device: lookahead_training(
            network(TorchClassifier, device), X, y, X_query, y_query
        ).estimator.predict_proba(X_query)
    )
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_a_loop_recorded_on_the_gpu():
    X, y, X_query, y_query = problem(TorchClassifier)

    def attribute(device):
        module = network(TorchClassifier, "cpu").fit(X, y).module_.to(device)
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
        inputs, targets = torch.tensor(X).to(device), torch.tensor(y).to(device)
        recording = record_training(module, optimizer)
        with recording:
            for rows in torch.arange(80).split(16):
                recording.rows(rows)
                loss = nn.functional.cross_entropy(module(inputs[rows]), targets[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        net = FrozenEstimator(recording.to_classifier(X, y))
        model = AdamWInfluence(net, inclusion=1.0, random_state=0)
        return model.fit(X, y).attribute(X_query, y_query)

    expected, found = on_both(attribute)
    np.testing.assert_allclose(found, expected, atol=1e-8)
