"""Modules are built from random_state alone, and looked at when they are given."""

import random
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.frozen import FrozenEstimator
from torch import nn

from skattrib import DualInfluence, TorchClassifier, TorchRegressor
from skattrib.evaluation import retrain_outcomes
from skattrib.exceptions import FaithfulnessWarning

# modules of tests are initialised by torch's global generator
pytestmark = pytest.mark.touches_global_rng

RNG = np.random.RandomState(0)
X, y = RNG.randn(40, 8), np.arange(40) % 3
QUERIES = RNG.randn(4, 8), np.array([0, 1, 2, 0])


def lazy(n_features, n_outputs):
    return nn.Sequential(nn.LazyLinear(6), nn.Tanh(), nn.LazyLinear(n_outputs))


def lazy_norm(n_features, n_outputs):
    layers = nn.Unflatten(1, (2, n_features // 2)), nn.LazyConv1d(3, 2), nn.Flatten()
    return nn.Sequential(*layers, nn.LazyLinear(n_outputs))


class Drawn(nn.Module):
    """A linear layer whose weights another generator draws."""

    def __init__(self, draw, n_features, n_outputs):
        super().__init__()
        self.layer = nn.Linear(n_features, n_outputs)
        weights = np.array(
            [[draw() for _ in range(n_features)] for _ in range(n_outputs)]
        )
        self.layer.weight.data = torch.tensor(weights).float()

    def forward(self, X):
        return self.layer(X)


def numpys_generator():
    return np.random.mtrand._rand.standard_normal()


def by_numpy(n_features, n_outputs):
    return Drawn(numpys_generator, n_features, n_outputs)


def by_python(n_features, n_outputs):
    return Drawn(lambda: random.gauss(0, 1), n_features, n_outputs)


# --------------------------------------------------------------------------- seeds
@pytest.mark.parametrize("module", [lazy, lazy_norm, by_numpy, by_python])
def test_all_that_a_factory_draws_is_seeded(module):
    before, of_numpy = random.getstate(), np.random.mtrand._rand.get_state()
    of_torch = torch.random.get_rng_state()
    net = TorchClassifier(module, max_epochs=3, random_state=0)
    first = net.fit(X, y).predict_proba(QUERIES[0])
    again = net.fit(X, y)
    assert_array_equal(again.predict_proba(QUERIES[0]), first)
    assert random.getstate() == before
    assert_array_equal(np.random.mtrand._rand.get_state()[1], of_numpy[1])
    assert torch.equal(torch.random.get_rng_state(), of_torch)
    other = TorchClassifier(module, max_epochs=3, random_state=1).fit(X, y)
    assert not np.allclose(other.predict_proba(QUERIES[0]), first)

    # retrained networks start where the first did
    weights = np.ones((1, len(X)))
    found = retrain_outcomes(net, X, y, weights, *QUERIES)[0]
    expected = np.log(first[np.arange(4), QUERIES[1]])
    assert_allclose(found, expected, rtol=1e-6)


def test_a_lazy_instance_is_seeded_too():
    net = TorchClassifier(lazy(8, 3), max_epochs=3, random_state=0)
    first = net.fit(X, y).predict_proba(QUERIES[0])
    assert_array_equal(net.fit(X, y).predict_proba(QUERIES[0]), first)


def test_what_cannot_be_seeded_is_refused():
    generator = np.random.default_rng()

    def module(n_features, n_outputs):
        return Drawn(generator.standard_normal, n_features, n_outputs)

    net = TorchClassifier(module, max_epochs=3, random_state=0)
    with pytest.raises(ValueError, match=r"has other layer.weight: it draws from a"):
        net.fit(X, y)
    assert not hasattr(net, "module_")


# ---------------------------------------------------------------- a trained module
class Returns(nn.Module):
    """A linear layer whose outputs something is done to."""

    def __init__(self, change):
        super().__init__()
        self.layer, self.change = nn.Linear(8, 3), change

    def forward(self, X):
        return self.change(self.layer(X), X)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda f, X: (f, X), "returns a tuple"),
        (lambda f, X: {"logits": f}, "returns a dict"),
        (lambda f, X: nn.functional.dropout(f, 0.5, True), "is random"),
        (lambda f, X: f - f.mean(dim=0), "rows of a batch influence each other"),
    ],
    ids=["tuple", "dict", "random", "mixed"],
)
def test_outputs_that_cannot_be_attributed(change, text):
    with pytest.raises(ValueError, match=text):
        TorchClassifier.from_module(Returns(change), [0, 1, 2])


def test_probabilities_are_pointed_out():
    module = nn.Sequential(nn.Linear(8, 3), nn.Softmax(1))
    with pytest.warns(UserWarning, match=r"logits.*leave the softmax out") as caught:
        TorchClassifier.from_module(module, [0, 1, 2])
    assert caught[0].filename == __file__


def test_lazy_layers_that_saw_nothing():
    with pytest.raises(ValueError, match="call it on a few rows once"):
        TorchClassifier.from_module(lazy(8, 3), [0, 1, 2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_attributed_as_singles(dtype):
    half = nn.Sequential(nn.Linear(8, 3).to(dtype))
    single = nn.Sequential(nn.Linear(8, 3))
    single.load_state_dict({k: v.float() for k, v in half.state_dict().items()})
    with pytest.warns(FaithfulnessWarning, match=str(dtype)) as caught:
        wrapped = TorchClassifier.from_module(half, [0, 1, 2])
    assert caught[0].filename == __file__
    assert half[0].weight.dtype == dtype  # the user's own stays as it is

    options = {"ridge": 0.1, "metric": "identity", "random_state": 0}
    found, expected = (
        DualInfluence(FrozenEstimator(net), **options).fit(X, y).attribute(*QUERIES)
        for net in (wrapped, TorchClassifier.from_module(single, [0, 1, 2]))
    )
    assert_allclose(found, expected, rtol=1e-6)


def test_ids_are_not_rounded():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.layer = nn.Embedding(3000, 8), nn.Linear(8, 3)

        def forward(self, X):
            return self.layer(self.words(X.long()).mean(1))

    module, ids = Tokens().to(torch.bfloat16), RNG.randint(0, 3000, (60, 5))
    with pytest.warns(FaithfulnessWarning, match="bfloat16"):
        wrapped = TorchClassifier.from_module(module, [0, 1, 2])
    with torch.no_grad():
        expected = module.float()(torch.tensor(ids)).argmax(1)
    assert_array_equal(wrapped.predict(ids), expected)


class Hashed(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.layer = nn.Embedding(31, 8), nn.Linear(8, 3)

    def forward(self, X):
        return self.layer(self.words(X.long() % 31).mean(1))


def test_ids_that_single_precision_rounds_are_refused_with_a_cure():
    module, ids = Hashed(), 2**24 + 1 + RNG.randint(0, 3000, (60, 5))
    with torch.no_grad():
        expected = module(torch.tensor(ids)).argmax(1)
    wrapped = TorchClassifier.from_module(module, [0, 1, 2])
    labels = expected.numpy()
    attributor = DualInfluence(FrozenEstimator(wrapped), ridge=0.1, metric="identity")
    for use in (wrapped.predict, lambda ids: attributor.fit(ids, labels)):
        with pytest.raises(ValueError, match=r"rounds, such as .* module\.double\(\)"):
            use(ids)
    double = TorchClassifier.from_module(module.double(), [0, 1, 2])
    assert_array_equal(double.predict(ids), expected)
    small = ids - 2**24 - 1
    assert wrapped.predict(small).shape == (60,)
    # numbers that are measured may be rounded
    linear = TorchClassifier.from_module(nn.Linear(5, 3), [0, 1, 2])
    assert linear.predict(ids).shape == (60,)


def test_trained_ids_are_not_rounded():
    """A network is trained in the precision of X, and whole numbers are doubles."""
    ids = 2**24 + RNG.randint(0, 2, (40, 1))
    net = TorchClassifier(lambda *sizes: Hashed(), max_epochs=60, random_state=0)
    labels = (ids[:, 0] % 2) + np.arange(40) * 0
    labels[:3] = 0, 1, 2  # the module has three outputs
    assert net.fit(ids, labels).score(ids[3:], labels[3:]) == 1


# ------------------------------------------------------------------ what is said
def test_targets_out_of_reach_are_pointed_out():
    values = 150 + 80 * X[:, 0]
    with pytest.warns(UserWarning, match="Scale y: TransformedTarget") as caught:
        TorchRegressor(max_epochs=20, random_state=0).fit(X, values)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TorchRegressor(max_epochs=20, random_state=0).fit(X, X[:, 0])


def test_counts_are_not_classes():
    with pytest.warns(UserWarning, match="treated as 19 classes"):
        DualInfluence(random_state=0).fit(X, (np.arange(40) * 7) % 19)


def test_conjugate_gradients_with_little_damping_are_in_double_precision():
    net = FrozenEstimator(
        TorchClassifier(max_epochs=30, random_state=0).fit(X.astype(np.float32), y)
    )
    options = {"ridge": 1e-7, "metric": "identity", "removal": "influence"}
    found, expected = (
        DualInfluence(net, solver=solver, random_state=0, **options)
        .fit(X.astype(dtype), y)
        .attribute(QUERIES[0].astype(dtype), QUERIES[1])
        for solver, dtype in (("cg", np.float32), ("dual", np.float64))
    )
    assert found.dtype == np.float32
    assert_allclose(found, expected, atol=1e-3 * abs(expected).max())
    plain = DualInfluence(net, solver="cg", ridge=0.1, random_state=0)
    assert "double" not in plain.fit(X.astype(np.float32), y).solver_reason_
