"""An optimizer of one's own: one class, and all else follows; options are checked."""

import pickle
from dataclasses import dataclass, replace
from typing import NamedTuple

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.datasets import load_iris

from skattrib import AdamWInfluence, TorchClassifier
from skattrib.engine._optimizers import OPTIMIZERS
from skattrib.engine._tangent import tangents
from skattrib.engine._training import train
from skattrib.engine._trajectory import Trajectory
from skattrib.exceptions import TrajectoryError
from skattrib.influence._aggregation import exploding
from skattrib.models._memory import digest
from skattrib.optimizers import (
    SGD,
    Adam,
    AdamW,
    Muon,
    Optimizer,
    RMSprop,
    register_optimizer,
)
from tests.cases import randn
from tests.engine.test_adjoint import PLENTY, error, problem, random_weights, scores

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated:DeprecationWarning"
)


class Sums(NamedTuple):
    total: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Adagrad(Optimizer):
    """Of the size of a matrix, too: the mean of all moves is taken off."""

    eps: float = 1e-10

    def initial_state(self, params):
        return Sums(torch.full_like(params, 0.1))

    def step(self, params, grad, state, t, learning_rate):
        total = Sums(state.total + grad.square())
        move = grad / self.denominator(total, t)
        return params - learning_rate * (move - move.mean(-1, keepdim=True)), total

    def denominator(self, state, t):
        return state.total.sqrt() + self.eps


@pytest.fixture
def registered():
    register_optimizer("mine")(Adagrad)
    yield
    del OPTIMIZERS["mine"]


def test_one_class_is_all_that_an_optimizer_needs(registered, tmp_path):
    model, loss, recipe, X, y = problem(clip_norm=0.3, n_steps=9)
    recipe = replace(recipe, optimizer=Adagrad(weight_decay=0.0))
    arguments = model, loss, recipe, X, y
    weights, directions = random_weights(1) + 0.3, randn(3, len(X), seed=8)
    given = randn(1, 3, model.n_params, seed=11)
    found = scores(arguments, weights, given)[0]
    first, _ = tangents(*arguments, weights[0], directions, memory_bytes=PLENTY)
    assert error(given[0] @ first.T, found @ directions.T) < 1e-10
    ends = [train(*arguments, weights + s * 1e-5 * directions).params for s in (-1, 1)]
    assert error(first, (ends[1] - ends[0]) / 2e-5) < 1e-6

    stack = random_weights(3) + 0.3
    together = scores(arguments, stack, given.expand(3, -1, -1))
    for m in range(3):
        alone = scores(arguments, stack[m : m + 1], given)
        assert error(together[m], alone[0]) < 1e-12

    end = train(*arguments, weights, keep={9})
    path, data = tmp_path / "run", (X, y)
    Trajectory(recipe, weights[0], end.denominator[0], end.states).save(path, *data)
    loaded = Trajectory.load(path, *data)
    assert loaded.recipe.optimizer == recipe.optimizer
    assert isinstance(loaded.states[9].optimizer, Sums)
    del OPTIMIZERS["mine"]
    try:
        with pytest.raises(TrajectoryError, match="'mine' is unknown"):
            Trajectory.load(path, *data)
    finally:
        OPTIMIZERS["mine"] = Adagrad


def test_a_registered_name_is_one_of_the_estimator(registered):
    X, y = load_iris(return_X_y=True)
    options = {"max_epochs": 5, "random_state": 0, "weight_decay": 0.0}
    one, other = (
        TorchClassifier(optimizer=o, **options).fit(X, y) for o in ("mine", Adagrad())
    )
    assert_allclose(one.predict_proba(X), other.predict_proba(X))
    with pytest.raises(ValueError, match="'mine' is already an optimizer: Adagrad"):
        register_optimizer("mine")(SGD)


def test_a_denominator_is_there_always_or_never():
    @dataclass(frozen=True, kw_only=True)
    class Whimsical(Adagrad):
        def denominator(self, state, t):
            return None if isinstance(state, Odd) else state.total.sqrt()

    class Odd(Sums):
        pass

    optimizer = Whimsical()
    params = randn(2, 3)
    state = optimizer.initial_state(params)
    still = optimizer._held_still(params, params, state, 1, 0.1, 0.0)
    with pytest.raises(TypeError, match="always return a tensor, or always None"):
        still.denominator(Odd(params), 1)


# --------------------------------------------------------------------- options
@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (AdamW, {"betas": (0.9, 1.0)}, r"AdamW: betas must be a number in \[0, 1\)"),
        (AdamW, {"betas": (0.9,)}, "AdamW: betas must be 2 numbers"),
        (AdamW, {"eps": -1e-8}, "AdamW: eps must be a number at least 0"),
        (AdamW, {"eps": None}, "AdamW: eps must be a number at least 0, got None"),
        (AdamW, {"amsgrad": 1}, "AdamW: amsgrad must be True or False, got 1"),
        (AdamW, {"weight_decay": -0.1}, "AdamW: weight_decay must be a number at"),
        (AdamW, {"weight_decay": np.inf}, "AdamW: weight_decay must be a number at"),
        (Adam, {"decoupled_weight_decay": "no"}, "Adam: decoupled_weight_decay must"),
        (SGD, {"momentum": 1.0}, r"SGD: momentum must be a number in \[0, 1\)"),
        (SGD, {"dampening": True}, "SGD: dampening must be a number"),
        (SGD, {"nesterov": True}, "SGD: nesterov=True needs momentum > 0 and"),
        (
            SGD,
            {"nesterov": True, "momentum": 0.5, "dampening": 0.5},
            "needs momentum > 0 and dampening=0; got momentum=0.5, dampening=0.5",
        ),
        (RMSprop, {"alpha": 1.5}, r"RMSprop: alpha must be a number in \[0, 1\)"),
        (RMSprop, {"alpha": float("nan")}, "RMSprop: alpha must be a number"),
        (RMSprop, {"centered": 0}, "RMSprop: centered must be True or False"),
    ],
)
def test_options_out_of_range(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_an_unknown_name_is_answered_with_the_known_ones():
    X, y = load_iris(return_X_y=True)
    with pytest.raises(ValueError, match="'optimizer' parameter") as caught:
        TorchClassifier(optimizer="lion").fit(X, y)
    assert all(name in str(caught.value) for name in OPTIMIZERS)
    with pytest.raises(ValueError, match=r"SGD of torch.*pass optimizer='sgd'"):
        TorchClassifier(optimizer=torch.optim.SGD).fit(X, y)


INSTANCES = [AdamW(amsgrad=True), Adam(), SGD(momentum=0.5), RMSprop(alpha=0.9), Muon()]


@pytest.mark.parametrize("optimizer", INSTANCES)
def test_instances_are_values(optimizer):
    same, other = replace(optimizer), replace(optimizer, weight_decay=0.5)
    assert same == optimizer != other
    assert hash(same) == hash(optimizer)
    assert eval(repr(optimizer)) == optimizer
    assert pickle.loads(pickle.dumps(optimizer)) == optimizer
    assert joblib.hash(same) == joblib.hash(optimizer) != joblib.hash(other)
    net = TorchClassifier(optimizer=optimizer)
    assert clone(net).optimizer == optimizer
    nets = [TorchClassifier(optimizer=o) for o in (optimizer, same, other)]
    found = [digest(net) for net in nets]
    assert found[0] == found[1] != found[2]
    assert "code" not in optimizer.options()
    assert type(optimizer).from_options(optimizer.options()) == optimizer


def test_the_digest_sees_the_code_of_a_class():
    def make(factor):
        @dataclass(frozen=True, kw_only=True)
        class Own(SGD):
            if factor == 1:

                def step(self, params, grad, state, t, learning_rate):
                    return params - learning_rate * grad, state

            else:

                def step(self, params, grad, state, t, learning_rate):
                    return params - 2 * learning_rate * grad, state

        return Own()

    one, same, other = make(1), make(1), make(2)
    found = [digest(TorchClassifier(optimizer=o)) for o in (one, same, other)]
    assert found[0] == found[1] != found[2]


def optimizer_of(**options):
    X, y = load_iris(return_X_y=True)
    net = TorchClassifier(max_epochs=1, random_state=0, **options).fit(X, y)
    return net.trajectory_.recipe.optimizer


def test_parameters_of_the_estimator_are_for_the_three_names():
    old = {"betas": (0.5, 0.6), "eps": 1e-3, "momentum": 0.3, "weight_decay": 0.2}
    adam = {"betas": (0.5, 0.6), "eps": 1e-3, "weight_decay": 0.2}
    assert optimizer_of(optimizer="adamw", **old) == AdamW(**adam)
    assert optimizer_of(optimizer="adam", **old) == Adam(**adam)
    sgd = SGD(momentum=0.3, weight_decay=0.2)
    assert optimizer_of(optimizer="sgd", **old) == sgd
    assert optimizer_of(optimizer="rmsprop", **old) == RMSprop(weight_decay=0.2)
    muon = optimizer_of(optimizer="muon", **old)
    assert replace(muon, matrices=None) == Muon(weight_decay=0.2)
    assert muon.matrices == ((0, 32, 4),)


def test_the_decay_of_an_instance_wins():
    own = optimizer_of(optimizer=SGD(weight_decay=0.3), weight_decay=0.2)
    assert own == SGD(weight_decay=0.3)
    assert optimizer_of(optimizer=SGD(), weight_decay=0.2) == SGD(weight_decay=0.2)
    assert optimizer_of(optimizer=AdamW(eps=1e-5), betas=(0.1, 0.1)).betas == (
        0.9,
        0.999,
    )


# ------------------------------------------------------------------- half runs
HALVES = {
    "adamw": "adamw",
    "adam": "adam",
    "amsgrad": AdamW(amsgrad=True),
    "sgd": SGD(momentum=0.9),
    "rmsprop": "rmsprop",
    "rmsprop all": RMSprop(alpha=0.9, momentum=0.5, centered=True, eps=1e-4),
    "muon": "muon",
    "mine": Adagrad(weight_decay=0.0),
}


@pytest.mark.parametrize("optimizer", HALVES.values(), ids=list(HALVES))
def test_sixteen_half_runs_with_dead_inputs_do_not_explode(optimizer):
    """Inputs that are 0 for most rows: in some runs, only rows left out have them."""
    X, y = load_iris(return_X_y=True)
    order = np.random.RandomState(0).permutation(150)
    X, y = X[order[:80]] - X.mean(axis=0), y[order[:80]]
    dead = np.zeros((80, 4))
    dead[[3, 11, 25], 0] = dead[[7], 1] = dead[[40, 41], 2] = 1.0
    X = np.hstack([X, dead])
    net = TorchClassifier(
        hidden_layer_sizes=(8, 8),
        optimizer=optimizer,
        max_epochs=8,
        learning_rate=0.01,
        batch_size=40,
        random_state=0,
    )
    influence = AdamWInfluence(net, inclusion=0.5, n_trajectories=16, random_state=0)
    derivatives = influence.fit(X, y)._derivatives
    queries = derivatives.queries(X[:4], y[:4], "log_likelihood")
    each = influence._each_run(queries)
    assert np.isfinite(each).all()
    assert not exploding(each).any()
    assert np.abs(each).max() > 1e-4
