"""What rounding alone does to attributions: diagnose(system=True)."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris, make_classification
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from torch import nn

from skattrib import AdamWInfluence, DualInfluence, TorchClassifier
from skattrib.influence._system_noise import (
    apart,
    nudged,
    system_findings,
    system_noise,
)
from skattrib.neural import EarlyStopping
from tests.test_fine_tuning import texts, tuned


def data(dtype=np.float32):
    X, y = load_iris(return_X_y=True)
    X = ((X - X.mean(axis=0)) / X.std(axis=0)).astype(dtype)
    return X[::3], y[::3], X[1::15], y[1::15]


def network(**options):
    options = {"batch_size": 10, "max_epochs": 8, "random_state": 0, **options}
    return TorchClassifier(**options)


def attributors(net):
    return [
        DualInfluence(net, random_state=0),
        AdamWInfluence(net, inclusion=1, random_state=0),
        AdamWInfluence(net, n_trajectories=4, n_halves=0, random_state=0),
    ]


def test_the_start_is_moved_to_neighbouring_numbers():
    recipe = network().fit(*data()[:2]).trajectory_.recipe
    moved = nudged(recipe, 0).initial
    up = torch.nextafter(recipe.initial, torch.tensor(torch.inf))
    down = torch.nextafter(recipe.initial, torch.tensor(-torch.inf))
    is_up = moved == up
    assert ((moved == down) | is_up).all()
    assert 0.3 < is_up.double().mean() < 0.7
    assert (nudged(recipe, 0).initial == moved).all()
    assert (nudged(recipe, 1).initial != moved).any()


class Given(nn.Sequential):
    """A network that begins where it is told to."""

    def __init__(self, start):
        super().__init__(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        self.double()
        nn.utils.vector_to_parameters(start, self.parameters())


@pytest.mark.parametrize("which", [0, 1])
def test_it_is_what_another_training_gives(which, monkeypatch):
    X, y, Xq, yq = data(np.float64)
    start = torch.linspace(-0.5, 0.5, 4 * 8 + 8 + 8 * 3 + 3).double()
    # far more than a rounding, so that rounding does not count
    away = start + 1e-3 * torch.cos(7 * torch.arange(len(start)))

    def moved(recipe, seed):
        torch.testing.assert_close(recipe.initial, start)
        return replace(recipe, initial=away)

    monkeypatch.setattr("skattrib.influence._system_noise.nudged", moved)
    first, other = (
        attributors(network(module=lambda p, c, at=at: Given(at)))[which].fit(X, y)
        for at in (start, away)
    )
    found = first.diagnose(Xq, yq, system=True).system
    before, after = (one.attribute(Xq, yq) for one in (first, other))
    shares = np.linalg.norm(after - before, axis=1) / np.linalg.norm(before, axis=1)
    assert 1e-4 < np.median(shares) < 0.5
    np.testing.assert_allclose(found.attribution_noise, np.median(shares), rtol=1e-6)
    np.testing.assert_allclose(found.digits, -np.log10(np.median(shares)), rtol=1e-6)
    outcomes = (
        one.predict_outcomes(Xq, yq, np.ones((1, 50))) for one in (first, other)
    )
    changed = np.median(np.abs(np.subtract(*outcomes)))
    np.testing.assert_allclose(found.outcome_noise, changed, rtol=1e-6)
    assert found.diverged == 0


def test_how_far_away_a_training_ends_is_measured_in_its_way():
    start = torch.tensor([1.0, 0.0])
    ends = torch.tensor([[1.0, 4.0], [4.0, 4.0], [1.0, 0.0]])
    again = torch.tensor([[1.0, 3.0], [4.0, 4.0], [1.0, 0.0]])
    np.testing.assert_allclose(apart(start, ends, again), [0.25, 0, 0])


@pytest.mark.parametrize("which", range(3))
def test_trainings_that_end_elsewhere_are_counted(which, monkeypatch):
    X, y, Xq, yq = data()

    def moved(recipe, seed):
        return replace(recipe, initial=recipe.initial + 0.5)

    attributor = attributors(network())[which].fit(X, y)
    assert attributor.diagnose(Xq, yq, system=True).system.diverged == 0
    monkeypatch.setattr("skattrib.influence._system_noise.nudged", moved)
    assert attributor.diagnose(Xq, yq, system=True).system.diverged == 1


@pytest.mark.parametrize("which", range(3))
def test_double_precision_keeps_more_digits(which):
    found = []
    for dtype in (np.float32, np.float64):
        X, y, Xq, yq = data(dtype)
        attributor = attributors(network())[which].fit(X, y)
        before = attributor.attribute(Xq, yq)
        found.append(attributor.diagnose(Xq, yq, system=True))
        np.testing.assert_array_equal(attributor.attribute(Xq, yq), before)
        assert "digits" in found[-1].verdict or not found[-1].trustworthy
    single, double = (one.system for one in found)
    assert 2 < single.digits < 7.3  # what 24 bits can have
    assert double.digits > single.digits + 6
    assert double.outcome_noise < 1e-6 * max(single.outcome_noise, 1e-9)


def test_the_mean_of_models_is_compared():
    X, y, Xq, yq = data()
    y = np.random.RandomState(0).permutation(y)
    rough = network(learning_rate=0.1, max_epochs=30)
    one, several = (
        DualInfluence(rough, n_models=n, random_state=0).fit(X, y) for n in (1, 4)
    )
    alone = one.diagnose(Xq, yq, system=True).system
    together = several.diagnose(Xq, yq, system=True).system
    assert together.attribution_noise != alone.attribution_noise
    assert together.attribution_noise > 0
    linear = several._linear_models
    before = several.attribute(Xq, yq)
    np.testing.assert_array_equal(several.attribute(Xq, yq), before)
    assert several._linear_models is linear


def test_rows_that_were_not_trained_on_are_not_drowned():
    X, y, Xq, yq = data()
    weights = np.r_[np.zeros(25), np.ones(25)]
    for attributor in attributors(network())[:2]:
        attributor.fit(X, y, sample_weight=weights)
        assert attributor.diagnose(Xq, yq, system=True).system.drowned < 0.1


def test_halves_correct_what_rounding_does():
    noise = system_noise(
        *np.random.RandomState(0).randn(2, 5, 20), *np.zeros((2, 3, 5)), [0]
    )
    against = []
    (said,) = system_findings({"system": noise}, against, corrected=True)
    assert not against
    assert "before halves correct them" in said


def test_nothing_is_repeated_unasked():
    X, y, Xq, yq = data()
    for attributor in attributors(network()):
        assert attributor.fit(X, y).diagnose(Xq, yq).system is None


@pytest.mark.parametrize(
    "options",
    [
        {"average": "ema"},
        {"early_stopping": EarlyStopping(patience=1, redecide=True)},
        {
            "module": lambda p, c: nn.Sequential(
                nn.Linear(p, 8, bias=False),
                nn.BatchNorm1d(8),
                nn.ReLU(),
                nn.Dropout(0.2),
                nn.Linear(8, c),
            )
        },
    ],
)
def test_all_that_a_training_has_is_repeated(options):
    X, y = make_classification(60, 6, random_state=0)
    X = X.astype(np.float32)
    for attributor in attributors(network(**options)):
        found = attributor.fit(X[:50], y[:50]).diagnose(X[50:], y[50:], system=True)
        # had masks, averages or stops been others, hardly a digit would be left
        assert found.system.digits > 2
        assert found.system.diverged == 0
        assert 0 <= found.system.outcome_noise < 1e-3


def test_a_language_model_has_digits():
    X, y = texts(8)
    influence = AdamWInfluence(tuned(), inclusion=1, random_state=0).fit(X, y)
    assert influence.diagnose(X[:2], y[:2], system=True).system.digits > 2


def test_what_has_no_run_is_refused():
    X, y, Xq, yq = data()
    exact = DualInfluence(LogisticRegression(), random_state=0).fit(X, y)
    with pytest.raises(ValueError, match=r"system=True.*LogisticRegression.*optimum"):
        exact.diagnose(Xq, yq, system=True)
    module = network().fit(X, y).module_
    wrapped = TorchClassifier.from_module(module, classes=[0, 1, 2])
    dual = DualInfluence(FrozenEstimator(wrapped), random_state=0).fit(X, y)
    with pytest.raises(ValueError, match=r"system=True.*not recorded.*record_training"):
        dual.diagnose(Xq, yq, system=True)


def test_noise_as_large_as_attributions_is_no_ground_for_trust():
    rng = np.random.RandomState(0)
    first, second = rng.randn(2, 5, 20)
    outcomes = rng.randn(3, 5)
    noise = system_noise(first, second, outcomes, outcomes + 1, [0, 1e-5, 0.1, np.nan])
    assert noise.digits == 0
    assert noise.diverged == 0.5
    assert noise.outcome_noise == pytest.approx(1)
    assert noise.drowned == pytest.approx((np.abs(first) < 1).mean())
    against = []
    drowned, elsewhere = system_findings({"system": noise}, against)
    assert "lower the learning rate" in against[0]
    assert f"{noise.drowned:.0%}" in drowned
    assert "50% of the trainings end elsewhere" in elsewhere
    same = system_noise(first, first, outcomes, outcomes, [0, 0])
    assert (same.attribution_noise, same.drowned, same.diverged) == (0, 0, 0)
    assert same.digits == 15
    lost = system_noise(first, np.full_like(first, np.nan), outcomes, outcomes, [0])
    assert lost.digits == 0
