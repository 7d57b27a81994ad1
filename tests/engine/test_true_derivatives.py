"""Derivatives of autograd that are not those of what a module computes."""

import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from skattrib import AdamWInfluence, DualInfluence, TorchClassifier, lookahead_training
from skattrib.engine._functional import FunctionalModule
from skattrib.engine._losses import CrossEntropy
from skattrib.engine._true_derivatives import check_true
from skattrib.exceptions import FaithfulnessWarning
from skattrib.language import CausalLanguageModel
from tests.test_fine_tuning import Tokenizer, texts
from tests.test_fine_tuning import build as build_language_model

X = np.random.RandomState(0).randn(24, 5)
y = (X[:, 0] + X[:, 1] ** 2 > 0.7).astype(int)


class Detached(nn.Module):
    """Divides by a norm that has no gradient."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 2)

    def inside(self, h):
        return h / h.norm(dim=1, keepdim=True).detach()

    def forward(self, x):
        return self.last(self.inside(self.first(x)))


class Rounded(Detached):
    """Passes the gradient straight through a rounding."""

    def inside(self, h):
        return h + (h.round() - h).detach()


class Sigmoid(torch.autograd.Function):
    """Of which only the first derivative is right."""

    @staticmethod
    def forward(x):
        return torch.sigmoid(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.output = output.detach()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.output * (1 - ctx.output)


class Once(Detached):
    def inside(self, h):
        return Sigmoid.apply(h)


def built(make):
    """Call a factory; the global generator ends as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return make()


def deep(*layers):
    return nn.Sequential(nn.Linear(5, 8), *layers, nn.Linear(8, 2))


def with_zeros():
    """Begins where units are neither on nor off."""
    module = deep(nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    for layer in module[::2]:
        nn.init.zeros_(layer.bias)
    return module


class Single(Detached):
    """Takes single precision only, and cannot be looked at."""

    def inside(self, h):
        assert h.dtype == torch.float32
        return h / h.norm(dim=1, keepdim=True).detach()


class Strict(Detached):
    """Refuses double precision by an error of its own."""

    class Refusal(Exception):
        pass

    def inside(self, h):
        if h.dtype != torch.float32:
            raise self.Refusal("single precision only")
        return torch.tanh(h)


class Padded(nn.Module):
    """Whose vector of the padding has no gradient."""

    def __init__(self):
        super().__init__()
        self.words, self.last = nn.Embedding(9, 8, padding_idx=0), nn.Linear(8, 2)

    def forward(self, x):
        return self.last(self.words(x.long().clamp(0, 8)).tanh().sum(dim=1))


def scaled(factor, module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter *= factor
    return module


def unbiased():
    layers = [nn.Linear(5, 5, bias=False), nn.Tanh(), nn.Linear(5, 2, bias=False)]
    return nn.Sequential(nn.Linear(5, 5, bias=False), nn.Tanh(), *layers)


RIGHT = {
    # whose losses hardly differ, as their roundings do
    "small": lambda: scaled(1e-4, unbiased()),
    "large": lambda: scaled(1e3, deep(nn.Tanh())),
    "padded": Padded,
    "linear": lambda: nn.Linear(5, 2),
    "tanh": lambda: deep(nn.Tanh()),
    "kinks": with_zeros,
    "normalised": lambda: deep(nn.BatchNorm1d(8), nn.LayerNorm(8), nn.ReLU()),
    "masked": lambda: deep(nn.Dropout(0.4), nn.GELU()),
    "weights normalised": lambda: nn.Sequential(
        weight_norm(nn.Linear(5, 8)), nn.Tanh(), weight_norm(nn.Linear(8, 2), dim=None)
    ),
}


def check(make, order, X=X, dtype=torch.float32):
    rows = torch.tensor(X, dtype=dtype)
    model = FunctionalModule(built(make).to(dtype))
    check_true(model, CrossEntropy(), rows, torch.tensor(y), order)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", RIGHT)
def test_right_derivatives_are_not_doubted(name, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(RIGHT[name], 2, dtype=dtype)
        check(RIGHT[name], 2, np.zeros_like(X), dtype)


@pytest.mark.parametrize("make", [Detached, Rounded])
@pytest.mark.parametrize("order", [1, 2])
def test_gradients_are_compared_with_losses(make, order):
    with pytest.warns(FaithfulnessWarning, match=rf"gradients of {make.__name__} are"):
        check(make, order)


def test_second_derivatives_are_compared_with_gradients():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(Once, 1)
    with pytest.warns(FaithfulnessWarning, match=r"second derivatives of Once are"):
        check(Once, 2)


@pytest.mark.parametrize("make", [Single, Strict])
def test_what_cannot_be_looked_at_goes_on_as_it_is(make):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(make, 2)


def trained(make, **options):
    options = {"batch_size": 12, "max_epochs": 6, "random_state": 0, **options}
    return TorchClassifier(built(make), **options)


@pytest.mark.parametrize("dim", [0, 1, None])
def test_attributions_through_weight_normalisation(dim):
    """torch's second derivatives of it are wrong; these are differences of runs."""

    def make():
        return nn.Sequential(
            weight_norm(nn.Linear(5, 8), dim=dim), nn.Tanh(), nn.Linear(8, 2)
        )

    network = trained(make, max_epochs=15)
    influence = AdamWInfluence(
        network, inclusion=1, n_halves=0, inert=0, random_state=0
    )
    found = influence.fit(X, y).attribute(X[:3], y[:3])[:, [0, 7]]
    ends = []
    for row in (0, 7):
        for step in (1e-4, -1e-4):
            weights = np.ones(len(X))
            weights[row] += step
            model = trained(make, max_epochs=15).fit(X, y, sample_weight=weights)
            ends.append(np.log(model.predict_proba(X[:3])[range(3), y[:3]]))
    ends = np.array(ends)
    expected = (ends[::2] - ends[1::2]).T / 2e-4
    assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_attributors_warn_before_they_train():
    message = r"gradients of Detached are not those of what it computes"
    with pytest.warns(FaithfulnessWarning, match=message):
        AdamWInfluence(trained(Detached), inclusion=1, n_halves=0, random_state=0).fit(
            X, y
        )
    with pytest.warns(FaithfulnessWarning, match=message):
        DualInfluence(trained(Detached), random_state=0).fit(X, y)
    with pytest.warns(FaithfulnessWarning, match=message):
        lookahead_training(trained(Detached), X, y, X[:4], y[:4])


def test_only_what_is_used_is_doubted():
    options = {"inclusion": 1, "n_halves": 0, "random_state": 0}
    with pytest.warns(FaithfulnessWarning, match=r"second derivatives of Once"):
        AdamWInfluence(trained(Once), **options).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FaithfulnessWarning)
        AdamWInfluence(trained(Once), hessian="empirical_fisher", **options).fit(X, y)
        DualInfluence(trained(Once), random_state=0).fit(X, y)


def test_dora_is_doubted(monkeypatch):
    """Its norms have no gradient."""
    prompts, completions = texts(8)
    model = CausalLanguageModel(
        build_language_model(n_layers=1),
        Tokenizer(),
        trainable="adapters",
        adapter={"r": 2, "use_dora": True},
        max_epochs=1,
        random_state=0,
    )
    influence = AdamWInfluence(model, inclusion=1, n_halves=0, random_state=0)
    with pytest.warns(FaithfulnessWarning, match=r"its DoraLinearLayer detaches norms"):
        influence.fit(prompts, completions)
    # which is known of it: differences say so, too
    monkeypatch.setattr("skattrib.engine._true_derivatives._UNTRUE", ())
    with pytest.warns(FaithfulnessWarning, match=r"random weights they are off by"):
        influence.fit(prompts, completions)
