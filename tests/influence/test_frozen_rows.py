"""A frozen model of other rows is not attributed without a word."""

import copy
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.datasets import make_classification
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline

from skattrib import AdamWInfluence, DualInfluence, TorchClassifier, TorchRegressor
from skattrib.engine._trajectory import Trajectory
from skattrib.exceptions import FaithfulnessWarning

X, y = make_classification(300, 6, n_informative=4, random_state=0)
X = X.astype(np.float32)
A, B = slice(0, 100), slice(100, 200)
OPTIONS = {"ridge": 0.1, "random_state": 0}


def network(**options):
    defaults = {"hidden_layer_sizes": (8,), "max_epochs": 20, "random_state": 0}
    return TorchClassifier(**defaults | options)


def fitted(estimator, rows, labels, **weights):
    return DualInfluence(FrozenEstimator(estimator), **OPTIONS).fit(
        rows, labels, **weights
    )


@pytest.mark.parametrize(
    ("rows", "labels", "n"),
    [
        (X[B], y[B], 100),
        (X[A], 1 - y[A], 100),
        (X[A][:-1], y[A][:-1], 99),
        (X[:200], y[:200], 200),
    ],
)
@pytest.mark.filterwarnings("ignore:Do not trust")
def test_a_recorded_network_of_other_rows_is_told(rows, labels, n):
    net = network().fit(X[A], y[A])
    with pytest.warns(FaithfulnessWarning, match=f"other rows.*100 rows then, {n} now"):
        dual = fitted(net, rows, labels)
    with pytest.warns(FaithfulnessWarning, match="other rows, labels or weights"):
        fitted(net, X[A], y[A], sample_weight=np.r_[2.0, np.ones(99)])
    # of other numbers of rows the run is not taken again
    along = dual.diagnose(X[200:], y[200:]).step_linearity_along_run
    assert (along is None) == (n != 100)


def test_the_same_rows_in_another_order_are_the_same():
    net = network().fit(X[A], y[A])
    order = np.random.RandomState(0).permutation(100)
    weights = np.random.RandomState(1).rand(100)
    weighted = network().fit(X[A], y[A], sample_weight=weights)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FaithfulnessWarning)
        straight = fitted(net, X[A], y[A])
        shuffled = fitted(net, X[A][order], y[A][order])
        fitted(weighted, X[A][order], y[A][order], sample_weight=weights[order])
        # what has no record, or an older one, says nothing
        old = copy.copy(net)
        old.trajectory_ = None
        fitted(old, X[B], y[B])
    queries = X[200:210], y[200:210]
    assert_allclose(
        shuffled.attribute(*queries),
        straight.attribute(*queries)[:, order],
        rtol=1e-4,
        atol=1e-7,
    )


def test_what_leaves_the_training_as_it_was_is_not_told():
    """Rounding, rows without weight, rows that were held out."""
    weights = np.r_[np.zeros(10), np.ones(90)]
    weighted = network().fit(X[A], y[A], sample_weight=weights)
    stopped = network(early_stopping=True).fit(X[A], y[A])
    double = X.astype(np.float64) / 3
    pca = make_pipeline(PCA(4, svd_solver="full"), network()).fit(double[A], y[A])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The frozen")
        warnings.filterwarnings("ignore", message="early_stopping held out")
        fitted(weighted, X[10:100], y[10:100])
        fitted(stopped, X[A], y[A])
        fitted(pca, double[A], y[A])
        fitted(network().fit(double[A], y[A]), double[A].astype(np.float32), y[A])
    mlp = MLPClassifier((8,), learning_rate_init=0.01, random_state=0)
    order = np.argsort(y[A])
    for _ in range(30):
        for part in np.split(order, 10):
            mlp.partial_fit(X[A][part], y[A][part], classes=[0, 1])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The frozen")
        fitted(mlp, X[A], y[A])


def test_a_saved_record_knows_its_rows(tmp_path):
    net = network().fit(X[A], y[A])
    data = torch.tensor(X[A]), torch.tensor(y[A])
    net.trajectory_.save(tmp_path / "run.safetensors", *data)
    again = Trajectory.load(tmp_path / "run.safetensors", *data)
    assert_allclose(again.rows, net.trajectory_.rows, rtol=1e-12)


def test_numbers_are_compared_too():
    values = X[:, 0] * 2 + X[:, 1]
    net = TorchRegressor(hidden_layer_sizes=(8,), max_epochs=5, random_state=0)
    net.fit(X[A], values[A])
    with pytest.warns(FaithfulnessWarning, match="trained on other rows"):
        fitted(net, X[A], values[A] + 0.1)


def test_the_run_of_other_rows_is_told_as_well():
    net = network().fit(X[A], y[A])
    one = AdamWInfluence(FrozenEstimator(net), random_state=0)
    with pytest.warns(FaithfulnessWarning, match="trained on other rows"):
        one.fit(X[B], y[B])


@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_a_perceptron_of_scikit_learn_has_its_loss(kind):
    labels = y if kind is MLPClassifier else X[:, 0] * 2 + X[:, 1]
    wrong = 1 - y if kind is MLPClassifier else 3 - labels
    sizes = {"hidden_layer_sizes": (16,), "max_iter": 300, "tol": 1e-3}
    mlp = kind(**sizes, random_state=0).fit(X[A], labels[A])
    with warnings.catch_warnings():
        warnings.simplefilter("error", FaithfulnessWarning)
        fitted(mlp, X[A], labels[A])
    with pytest.warns(FaithfulnessWarning, match="when it was trained: those were oth"):
        fitted(mlp, X[A], wrong[A])


@pytest.mark.parametrize("seed", range(3))
def test_a_network_that_was_not_trained_is_not_trusted(seed):
    net = network(max_epochs=1, learning_rate=1e-9, random_state=seed).fit(X[A], y[A])
    dual = fitted(net, X[A], y[A])
    with pytest.warns(FaithfulnessWarning, match="above that of a constant"):
        found = dual.diagnose(X[200:], y[200:])
    assert not found.trustworthy
    assert found.loss_over_constant > 1


@pytest.mark.filterwarnings("ignore:Do not trust")
def test_the_loss_of_the_best_constant_is_one():
    """The figure is the ratio to the entropy of the classes, or to the variance."""
    net = network(max_epochs=40).fit(X[A], y[A])
    found = fitted(net, X[A], y[A]).diagnose(X[200:], y[200:])
    share = y[A].mean()
    entropy = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    loss = -np.log(net.predict_proba(X[A])[np.arange(100), y[A]]).mean()
    assert found.loss_over_constant == pytest.approx(loss / entropy, rel=1e-4)
    values = X[:, 0] * 2 + X[:, 1]
    net = TorchRegressor(hidden_layer_sizes=(8,), max_epochs=40, random_state=0)
    net.fit(X[A], values[A])
    found = fitted(net, X[A], values[A]).diagnose(X[200:], values[200:])
    missed = np.square(net.predict(X[A]) - values[A]).mean() / values[A].var()
    assert found.loss_over_constant == pytest.approx(missed, rel=1e-4)
