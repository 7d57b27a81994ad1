"""A module that was trained elsewhere is looked at as one that is trained here."""

import warnings

import numpy as np
import pytest
import skorch
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.frozen import FrozenEstimator
from torch import nn

from skattrib import (
    AdamWInfluence,
    DualInfluence,
    RISEValuator,
    TorchClassifier,
    TorchRegressor,
    record_training,
)

# modules of tests are initialised by torch's global generator
pytestmark = pytest.mark.touches_global_rng

RNG = np.random.RandomState(0)
X, y = RNG.randn(40, 8), np.arange(40) % 3
TWO, VALUES = np.arange(40) % 2, RNG.randn(40)
# rows that no check can make up: it does not know what the first layer takes
IDS = RNG.randint(0, 10, (40, 8))


class Ends(nn.Module):
    """A layer, and what is done with its outputs."""

    def __init__(self, end, n_outputs=3):
        super().__init__()
        self.layer, self.end = nn.Linear(8, n_outputs).double(), end

    def forward(self, X):
        return self.end(self.layer(X))


class OfWords(nn.Module):
    """Embedded words, and what is done with the outputs."""

    def __init__(self, end, n_outputs=3):
        super().__init__()
        self.words, self.end = nn.Embedding(10, 4).double(), end
        self.layer = nn.Linear(4, n_outputs).double()

    def forward(self, X):
        return self.end(self.layer(self.words(X.long().clamp(0, 9)).mean(1)))


def frozen(estimator):
    options = {"ridge": 0.1, "metric": "identity"}
    return DualInfluence(FrozenEstimator(estimator), **options)


# ---------------------------------------------------------------- squeezed outputs
def _classifier(end, n_outputs):
    classes = np.arange(max(n_outputs, 2))
    return TorchClassifier.from_module(Ends(end, n_outputs), classes)


@pytest.mark.parametrize("end", [torch.squeeze, lambda out: out.squeeze(-1)])
@pytest.mark.parametrize(
    ("wrap", "targets"),
    [
        (lambda end: TorchRegressor.from_module(Ends(end, 1)), VALUES),
        (lambda end: _classifier(end, 1), TWO),
        (lambda end: _classifier(end, 3), y),
    ],
    ids=["regression", "one logit", "classes"],
)
@pytest.mark.parametrize("kind", ["dual", "rise"])
def test_a_row_alone_gives_what_it_gives_among_many(kind, wrap, targets, end):
    torch.default_generator.manual_seed(0)
    squeezed = wrap(end)
    plain = wrap(lambda out: out)
    plain.module_.load_state_dict(squeezed.module_.state_dict())
    assert_array_equal(squeezed.predict(X), plain.predict(X))
    assert_array_equal(squeezed.predict(X[:1]), plain.predict(X[:1]))
    if kind == "rise" and isinstance(squeezed, TorchRegressor):
        return
    found = []
    for estimator in (squeezed, plain):
        attributor = (
            frozen(estimator)
            if kind == "dual"
            else RISEValuator(FrozenEstimator(estimator), random_state=0)
        )
        attributor.fit(X, targets)
        found.append(attributor.attribute(X[:4], targets[:4]))
        alone = attributor.attribute(X[:1], targets[:1])
        assert_allclose(alone, found[-1][:1], rtol=1e-9, atol=1e-12)
    assert_allclose(*found, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("end", [torch.squeeze, lambda out: out.squeeze(-1)])
def test_squeezed_outputs_can_be_trained(end):
    """One row in the last minibatch, too: 40 rows in threes."""

    def influence(end):
        net = TorchRegressor(
            lambda _, n_outputs: Ends(end, n_outputs),
            batch_size=3,
            max_epochs=2,
            random_state=0,
        )
        influence = AdamWInfluence(net, n_trajectories=2, random_state=0)
        return influence.fit(X, VALUES).attribute(X[:1], VALUES[:1])

    assert_allclose(influence(end), influence(lambda out: out), rtol=1e-6)


# ------------------------------------------- met at the rows if not at the wrapping
@pytest.mark.parametrize(
    ("end", "message"),
    [
        (lambda out: nn.functional.dropout(out, 0.5, True), "is random"),
        (lambda out: out + torch.rand(()), "is random"),
        (lambda out: out - out.mean(0), "rows of a batch influence each other"),
        (lambda out: (out, out), "returns a tuple"),
        (lambda out: {"logits": out}, "returns a dict"),
        (lambda out: out[:, None], r"shape \(3, 1, 3\) for 3 rows"),
        (lambda out: out[:, :2], r"shape \(3, 2\) for 3 rows"),
        (lambda out: out.sum(), r"shape \(1, 1\) for 3 rows"),
    ],
)
@pytest.mark.parametrize("kind", ["wrapped", "skorch", "trained", "recorded"])
def test_every_door_refuses_the_same(kind, end, message):
    def enter():
        module = OfWords(end)
        if kind == "trained":
            TorchClassifier(module, random_state=0).fit(IDS, y)
        elif kind == "recorded":
            optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
            recording = record_training(module, optimizer)
            with recording:
                recording.rows(range(40))
                sum(p.square().sum() for p in module.parameters()).backward()
                optimizer.step()
            recording.to_classifier(IDS, y)
        elif kind == "wrapped":
            frozen(TorchClassifier.from_module(module, [0, 1, 2])).fit(IDS, y)
        else:
            options = {"criterion": nn.CrossEntropyLoss, "classes": [0, 1, 2]}
            net = skorch.NeuralNetClassifier(module, verbose=0, **options).initialize()
            frozen(TorchClassifier.from_skorch(net)).fit(IDS, y)

    with pytest.raises(ValueError, match=message):
        enter()


@pytest.mark.parametrize(
    ("end", "text"),
    [
        (lambda out: out.softmax(1), "its rows sum to 1.*leave the softmax out"),
        (nn.Sigmoid(), "does is a sigmoid.*leave the sigmoid out"),
        (torch.sigmoid, "does is a sigmoid.*leave the sigmoid out"),
    ],
)
@pytest.mark.parametrize("module", [Ends, OfWords])
def test_probabilities_are_pointed_out_once_rows_are_there(module, end, text):
    rows = X if module is Ends else IDS

    def use():
        frozen(TorchClassifier.from_module(module(end), [0, 1, 2])).fit(rows, y)

    with pytest.warns(UserWarning, match=text):
        use()


class OneLogit(nn.Module):
    """Log-odds, through what is done in the end."""

    def __init__(self, end):
        super().__init__()
        self.layer, self.end = nn.Linear(8, 1), end

    def forward(self, x):
        return self.end(self.layer(x))


@pytest.mark.parametrize(
    "end",
    [
        nn.Sigmoid(),
        torch.sigmoid,
        lambda out: torch.sigmoid(out.squeeze(1)),
        lambda out: torch.sigmoid(out).view(-1),
    ],
)
def test_one_logit_through_a_sigmoid_is_pointed_out(end):
    with pytest.warns(UserWarning, match="log-odds: leave the sigmoid out"):
        TorchClassifier.from_module(OneLogit(end), [0, 1])
    with pytest.warns(UserWarning, match="log-odds: leave the sigmoid out"):
        TorchClassifier(OneLogit(end), max_epochs=1).fit(X, y % 2)


def test_a_sigmoid_inside_is_none_at_the_end():
    module = OneLogit(lambda out: 0.5 + 0.1 * torch.sigmoid(out))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TorchClassifier.from_module(module, [0, 1])


class Bare(nn.Module):
    """A module without arguments."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 2)

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize(
    ("factory", "text"),
    [
        (Bare, r"module=Bare is called .* Bare\(8, 2\).* Pass module=Bare\(\), which"),
        (lambda n: Bare(), "Pass a module, which is copied, or a function of these"),
    ],
)
def test_a_factory_that_does_not_take_two_numbers_is_refused(factory, text):
    with pytest.raises(TypeError, match=text):
        TorchClassifier(factory, max_epochs=1).fit(X, y % 2)
    TorchClassifier(Bare(), max_epochs=1).fit(X, y % 2)


def test_a_regressor_may_predict_shares(recwarn):
    TorchRegressor.from_module(nn.Sequential(nn.Linear(8, 3), nn.Softmax(1)), 3)
    TorchRegressor.from_module(nn.Sequential(nn.Linear(8, 1), nn.Sigmoid()))
    assert not [str(w.message) for w in recwarn if "probabilities" in str(w.message)]


# ------------------------------------------------------------------ several inputs
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, left, right, scale=1.0):
        return self.layer(torch.cat([left, right], 1)) * scale


def test_several_inputs_are_refused_with_what_to_write():
    parts = {"left": X[:, :4].astype("f4"), "right": X[:, 4:].astype("f4")}
    net = skorch.NeuralNetClassifier(
        Two, criterion=nn.CrossEntropyLoss, max_epochs=1, verbose=0
    ).fit(parts, y)
    for enter in (
        lambda: TorchClassifier.from_skorch(net),
        lambda: TorchClassifier.from_module(Two(), [0, 1, 2]),
        lambda: TorchClassifier(Two()).fit(X, y),
    ):
        with pytest.raises(ValueError, match=r"2 inputs, left, right; .*hstack"):
            enter()
    with pytest.raises(ValueError, match=r"X is a dict of 2 inputs.*hstack"):
        TorchClassifier().fit(parts, y)

    class Cut(nn.Module):  # as the message says
        def __init__(self):
            super().__init__()
            self.inner = net.module_

        def forward(self, X):
            return self.inner(X[:, :4], X[:, 4:])

    wrapped = TorchClassifier.from_module(Cut(), [0, 1, 2])
    assert_array_equal(
        wrapped.predict(np.hstack(list(parts.values()))), net.predict(parts)
    )


def test_nets_of_the_other_kind():
    regressor = skorch.NeuralNetRegressor(nn.Linear(8, 1), verbose=0).initialize()
    with pytest.raises(ValueError, match=r"use TorchRegressor\.from_skorch"):
        TorchClassifier.from_skorch(regressor)
    classifier = skorch.NeuralNetClassifier(nn.Linear(8, 3), verbose=0).initialize()
    with pytest.raises(ValueError, match=r"use TorchClassifier\.from_skorch"):
        TorchRegressor.from_skorch(classifier)
