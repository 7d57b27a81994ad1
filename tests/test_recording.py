"""Recorded loops: attributed, repeated, saved, and checked against the loop itself."""

import copy
import inspect
import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import scale
from torch import nn

from skattrib import (
    AdamWInfluence,
    DualInfluence,
    TorchClassifier,
    TrainingRecording,
    record_training,
)
from skattrib.evaluation import make_weightings, retrain_outcomes
from skattrib.exceptions import FaithfulnessWarning, TrajectoryError
from tests.cases import Tied, build, fill, mlp

RATE = 0.05
N = 40


def data(n_queries=6):
    X, y = load_iris(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(y))
    X, y = scale(X)[order], y[order]
    return X[:N], y[:N], X[-n_queries:], y[-n_queries:]


def regression_data():
    X, _, Xq, _ = data()
    return X[:, :2], X[:, 2:], Xq[:, :2], Xq[:, 2:]


def minibatches(n_epochs=3, size=10, n_rows=N):
    rng = np.random.RandomState(0)
    return [
        rows
        for _ in range(n_epochs)
        for rows in np.split(rng.permutation(n_rows), range(size, n_rows, size))
    ]


def net(*sizes, seed=0, **options):
    return build(lambda: mlp(*(sizes or (4, 5, 3)), **options), seed)


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.1)


def cosine(optimizer, n_steps):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)


class Loop:
    """The user's own loop, once written; rows may be weighted."""

    def __init__(self, model=None, optimizer=adamw, *, clip=None, scheduler=None):
        self.model = net() if model is None else model
        self.optimizer = optimizer(self.model)
        self.clip, self.scheduler = clip, scheduler

    def row_losses(self, outputs, targets):
        if targets.dtype == torch.int64:
            return nn.functional.cross_entropy(outputs, targets, reduction="none")
        return 0.5 * (outputs - targets).square().sum(1)

    def gradient(self, X, y, rows, weights):
        self.optimizer.zero_grad()
        losses = self.row_losses(self.model(X[rows]), y[rows])
        (losses * weights[rows]).sum().div(weights[rows].sum()).backward()

    def run(self, X, y, batches=None, *, weights=None, recording=None):
        batches = minibatches() if batches is None else batches
        dtype = next(self.model.parameters()).dtype
        X, y = torch.tensor(X, dtype=dtype), torch.tensor(y)
        weights = np.ones(len(X)) if weights is None else weights
        weights = torch.tensor(weights, dtype=dtype)
        scheduler = self.scheduler and self.scheduler(self.optimizer, len(batches))
        for rows in batches:
            if recording is not None:
                recording.rows(rows)
            self.gradient(X, y, rows, weights)
            if self.clip:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            self.optimizer.step()
            if scheduler:
                scheduler.step()
        return self

    def record(self, X, y, batches=None, *, clip_norm=0, **options):
        clip_norm = self.clip if clip_norm == 0 else clip_norm
        recording = record_training(self.model, self.optimizer, clip_norm)
        with recording:
            self.run(X, y, batches, recording=recording, **options)
        return recording

    def outcomes(self, X, y):
        """Outcomes of queries, as the package defines them."""
        with torch.no_grad():
            outputs = self.model(
                torch.tensor(X, dtype=next(self.model.parameters()).dtype)
            )
            return -self.row_losses(outputs, torch.tensor(y)).numpy()


def influence(estimator, **options):
    options = {"n_retrainings": 8, "random_state": 0, **options}
    return AdamWInfluence(FrozenEstimator(estimator), **options)


def differences(make_loop, X, y, Xq, yq, rows, h=1e-5, **options):
    """Central differences of the loop itself, run again with a row weighted."""
    slopes = []
    for i in rows:
        ends = []
        for sign in (1, -1):
            weights = np.ones(len(X))
            weights[i] += sign * h
            loop = make_loop().run(X, y, weights=weights, **options)
            ends.append(loop.outcomes(Xq, yq))
        slopes.append((ends[0] - ends[1]) / (2 * h))
    return np.array(slopes).T


@pytest.fixture(scope="module")
def recorded():
    """A recording, and the classifier that it gives."""
    X, y, *_ = data()
    recording = Loop().record(X, y)
    return recording, recording.to_classifier(X, y)


# ------------------------------------------------------------------- identities
def test_attributions_are_those_of_the_same_run_by_the_package():
    X, y, Xq, yq = data()
    initial = net()
    model = TorchClassifier(
        initial,
        learning_rate=RATE,
        weight_decay=0.1,
        schedule="cosine",
        clip_norm=0.4,
        batch_size=10,
        max_epochs=3,
        random_state=0,
    ).fit(X, y)
    loop = Loop(copy.deepcopy(initial), clip=0.4, scheduler=cosine)
    batches = model.trajectory_.recipe.batches
    found = loop.record(X, y, batches).to_classifier(X, y)
    assert_allclose(found.predict_proba(Xq), model.predict_proba(Xq), atol=1e-12)
    attributions = influence(found).fit(X, y).attribute(Xq, yq)
    expected = influence(model).fit(X, y).attribute(Xq, yq)
    assert np.abs(expected).max() > 1e-3
    assert_allclose(attributions, expected, atol=1e-10)


def sgd(**options):
    return lambda model: torch.optim.SGD(model.parameters(), lr=RATE, **options)


def adam(**options):
    return lambda model: torch.optim.Adam(model.parameters(), lr=RATE, **options)


def no_decay_of_biases(kind, **options):
    def make(model):
        weights = [p for p in model.parameters() if p.ndim > 1]
        biases = [p for p in model.parameters() if p.ndim == 1]
        groups = [
            {"params": biases, "weight_decay": 0.0},
            {"params": weights, "weight_decay": 0.3},
        ]
        return kind(groups, lr=RATE, **options)

    return make


def rates_of_layers(kind, **options):
    def make(model):
        groups = [
            {"params": model[0].parameters(), "lr": RATE},
            {"params": model[2].parameters(), "lr": 0.3 * RATE},
        ]
        return kind(groups, **options)

    return make


def one_falls(optimizer, n_steps):
    """One group's rate falls, the other's does not."""
    factors = [lambda t: 1.0, lambda t: 1.0 - t / n_steps]
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factors)


def rmsprop(**options):
    return lambda model: torch.optim.RMSprop(model.parameters(), lr=RATE, **options)


LOOPS = {
    "adamw, rates of layers": lambda: Loop(
        optimizer=rates_of_layers(torch.optim.AdamW), scheduler=one_falls
    ),
    "momentum, rates of layers": lambda: Loop(
        optimizer=rates_of_layers(torch.optim.SGD, momentum=0.8), scheduler=one_falls
    ),
    "amsgrad": lambda: Loop(optimizer=adam(amsgrad=True, betas=(0.8, 0.9))),
    "dampening": lambda: Loop(optimizer=sgd(momentum=0.8, dampening=0.4)),
    "rmsprop": lambda: Loop(optimizer=rmsprop(alpha=0.9)),
    "rmsprop centered": lambda: Loop(
        optimizer=rmsprop(alpha=0.9, momentum=0.5, centered=True, weight_decay=0.1)
    ),
    "adamw, biases do not decay": lambda: Loop(
        optimizer=no_decay_of_biases(torch.optim.AdamW)
    ),
    "adam, biases do not decay": lambda: Loop(
        optimizer=no_decay_of_biases(torch.optim.Adam)
    ),
    "momentum, biases do not decay": lambda: Loop(
        optimizer=no_decay_of_biases(torch.optim.SGD, momentum=0.8)
    ),
    "adamw clipped, cosine": lambda: Loop(clip=0.4, scheduler=cosine),
    "adam": lambda: Loop(optimizer=adam(weight_decay=0.1, betas=(0.8, 0.9))),
    "sgd": lambda: Loop(optimizer=sgd()),
    "momentum": lambda: Loop(optimizer=sgd(momentum=0.8, weight_decay=0.1)),
    "nesterov": lambda: Loop(optimizer=sgd(momentum=0.8, nesterov=True)),
}
if "decoupled_weight_decay" in inspect.signature(torch.optim.Adam).parameters:
    LOOPS["adam decoupled"] = lambda: Loop(  # from torch 2.7 on
        optimizer=adam(weight_decay=0.1, decoupled_weight_decay=True)
    )


@pytest.mark.parametrize("make_loop", LOOPS.values(), ids=list(LOOPS))
def test_attributions_are_derivatives_of_the_loop(make_loop):
    X, y, Xq, yq = data()
    model = make_loop().record(X, y).to_classifier(X, y)
    found = influence(model).fit(X, y).attribute(Xq, yq)
    slopes = differences(make_loop, X, y, Xq, yq, (0, 7))
    assert_allclose(found[:, [0, 7]], slopes, rtol=1e-4, atol=1e-7)


def test_regression():
    X, y, Xq, yq = regression_data()

    def make_loop():
        return Loop(net(2, 4, 2))

    model = make_loop().record(X, y).to_regressor(X, y)
    found = influence(model).fit(X, y).attribute(Xq, yq)
    slopes = differences(make_loop, X, y, Xq, yq, (3,))
    assert_allclose(found[:, [3]], slopes, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "optimizer",
    [
        adamw,
        sgd(momentum=0.8),
        sgd(momentum=0.8, dampening=0.4),
        rmsprop(momentum=0.5, centered=True, alpha=0.9),
        adam(amsgrad=True),
    ],
    ids=["adamw", "momentum", "dampening", "rmsprop", "amsgrad"],
)
def test_recording_may_start_in_the_middle(optimizer):
    X, y, Xq, yq = data()

    def make_loop():
        return Loop(optimizer=optimizer).run(X, y, minibatches(n_epochs=1))

    later = minibatches()[-6:]
    model = make_loop().record(X, y, later).to_classifier(X, y)
    found = influence(model).fit(X, y).attribute(Xq, yq)
    slopes = differences(make_loop, X, y, Xq, yq, (0, 7), batches=later)
    assert_allclose(found[:, [0, 7]], slopes, rtol=1e-4, atol=1e-7)


def test_accumulated_gradients_are_one_step():
    X, y, Xq, _ = data()
    loop, batches = Loop(), minibatches()
    rows, targets = torch.tensor(X), torch.tensor(y)
    with record_training(loop.model, loop.optimizer) as recording:
        for batch in batches:
            loop.optimizer.zero_grad()
            for part in (torch.tensor(batch[:4]), torch.tensor(batch[4:])):
                recording.rows(part)
                losses = loop.row_losses(loop.model(rows[part]), targets[part])
                (losses.sum() / 10).backward()
            loop.optimizer.step()
    model = recording.to_classifier(X, y)
    assert_array_equal(model.recipe.batches, batches)
    whole = Loop().record(X, y, batches).to_classifier(X, y)
    assert_allclose(model.predict_proba(Xq), whole.predict_proba(Xq), atol=1e-12)


def test_weights_of_the_loop():
    X, y, Xq, yq = data()
    weights = np.random.RandomState(0).uniform(0.5, 2, N)
    recording = Loop().record(X, y, weights=weights)
    model = recording.to_classifier(X, y, sample_weight=weights)
    found = influence(model).fit(X, y)
    assert_allclose(found.predict_outcomes(Xq, yq, np.ones(N))[0], model_log_p(model))
    with pytest.warns(FaithfulnessWarning, match="Replaying the recording misses"):
        recording.to_classifier(X, y)


def model_log_p(model):
    _, _, Xq, yq = data()
    return model.predict_log_proba(Xq)[np.arange(len(yq)), yq]


def test_rows_drawn_twice_count_twice():
    X, y, Xq, yq = data()
    batches = list(np.random.RandomState(0).randint(N, size=(20, 8)))
    batches[0][:4] = 5, 5, 7, 5
    model = Loop().record(X, y, batches).to_classifier(X, y)
    found = influence(model).fit(X, y).attribute(Xq, yq)
    slopes = differences(Loop, X, y, Xq, yq, (5,), batches=batches)
    assert_allclose(found[:, [5]], slopes, rtol=1e-4, atol=1e-7)


# ------------------------------------------------------- the loop is left alone
def test_the_loop_is_not_changed():
    X, y, *_ = data()
    plain = Loop(clip=0.4).run(X, y)
    loop = Loop(clip=0.4)
    recording = loop.record(X, y)
    recording.to_classifier(X, y)
    for a, b in zip(plain.model.parameters(), loop.model.parameters(), strict=True):
        assert_array_equal(a.detach(), b.detach())
    assert not loop.optimizer._optimizer_step_pre_hooks
    assert not loop.optimizer._optimizer_step_post_hooks
    before = [p.clone() for p in loop.model.parameters()]
    loop.run(X, y)  # goes on, unseen
    assert recording.to_classifier(X, y).recipe.n_steps == 12
    assert not torch.equal(before[0], next(loop.model.parameters()))


def test_hooks_go_after_an_error_too():
    X, y, *_ = data()
    loop = Loop()
    recording = record_training(loop.model, loop.optimizer)
    with pytest.raises(IndexError), recording:
        loop.run(X, y, [np.arange(5), [99]], recording=recording)
    assert not loop.optimizer._optimizer_step_pre_hooks
    with pytest.raises(TrajectoryError, match="to its end without an error"):
        recording.to_classifier(X, y)


def test_model_of_images_is_recorded_with_flat_rows():
    X, y, Xq, _ = data()
    inner = build(lambda: nn.Sequential(nn.Conv2d(1, 3, 2), nn.Flatten()))
    whole = nn.Sequential(nn.Unflatten(1, (1, 2, 2)), inner)
    optimizer = adamw(inner)
    images, targets = torch.tensor(X).view(-1, 1, 2, 2), torch.tensor(y)
    with record_training(whole, optimizer) as recording:
        for batch in minibatches():
            recording.rows(batch)
            optimizer.zero_grad()
            nn.functional.cross_entropy(inner(images[batch]), targets[batch]).backward()
            optimizer.step()
    found = recording.to_classifier(X, y).predict_proba(Xq)
    expected = inner(torch.tensor(Xq).view(-1, 1, 2, 2)).softmax(1).detach()
    assert_allclose(found, expected, atol=1e-12)


def test_frozen_parameters_may_be_in_the_optimizer():
    X, y, *_ = data()
    model = net()
    model[0].bias.requires_grad_(False)
    found = Loop(model).record(X, y).to_classifier(X, y)
    assert len(found.recipe.initial) == 4 * 5 + 5 * 3 + 3


def test_tied_weights_are_trained_once():
    X, y, Xq, yq = data()

    def make_loop():
        return Loop(build(Tied))

    model = make_loop().record(X, y).to_classifier(X, y, classes=range(4))
    found = influence(model).fit(X, y).attribute(Xq, yq)
    slopes = differences(make_loop, X, y, Xq, yq, (3,))
    assert_allclose(found[:, [3]], slopes, rtol=1e-4, atol=1e-7)


def test_float32_stays_float32():
    X, y, Xq, yq = data()
    loop = Loop(fill(net(), dtype=torch.float32))
    model = loop.record(X, y).to_classifier(X, y)
    assert model.predict_proba(Xq).dtype == np.float32
    found = influence(model).fit(X.astype(np.float32), y)
    attributions = found.attribute(Xq.astype(np.float32), yq)
    assert attributions.dtype == np.float32
    expected = influence(Loop().record(X, y).to_classifier(X, y)).fit(X, y)
    assert_allclose(attributions, expected.attribute(Xq, yq), rtol=0.01, atol=1e-4)


def test_full_batches_need_no_indices():
    X, y, *_ = data()
    orders = [np.random.RandomState(i).permutation(N) for i in range(4)]
    assert Loop().record(X, y, orders).to_classifier(X, y).recipe.batches is None
    orders.append(np.r_[0, 0, 2:N])
    assert len(Loop().record(X, y, orders).to_classifier(X, y).recipe.batches) == 5


def test_a_single_logit_is_a_classifier_of_two():
    X, y, Xq, _ = data()
    y = np.array(["no", "yes"])[y % 2]
    model = net(4, 5, 1)
    optimizer = adamw(model)
    rows, targets = torch.tensor(X), torch.tensor(y == "yes").double()
    with record_training(model, optimizer) as recording:
        for batch in minibatches():
            recording.rows(batch)
            optimizer.zero_grad()
            logits = model(rows[batch])[:, 0]
            nn.functional.binary_cross_entropy_with_logits(
                logits, targets[batch]
            ).backward()
            optimizer.step()
    found = recording.to_classifier(X, y)
    expected = model(torch.tensor(Xq)).sigmoid().detach()
    assert_allclose(found.predict_proba(Xq)[:, 1:], expected, atol=1e-12)
    attributions = influence(found).fit(X, y).attribute(Xq[:2], y[:2])
    assert np.abs(attributions).max() > 1e-3


def test_classes_that_y_lacks():
    X, y, *_ = data()
    recording = Loop(net(4, 5, 4)).record(X, y)
    model = recording.to_classifier(X, y, classes=[0, 1, 2, 3])
    assert model.predict_proba(X).shape == (N, 4)
    assert influence(model).fit(X, y).attribute(X[:2], [3, 0]).shape == (2, N)
    with pytest.raises(ValueError, match="one column per class"):
        recording.to_classifier(X, y)
    with pytest.raises(ValueError, match="labels unseen in fit"):
        recording.to_classifier(X, y + 2, classes=[0, 1, 2, 3])


# ------------------------------------------------------------ training it again
def test_truth_is_the_loop_run_again(recorded):
    X, y, Xq, yq = data()
    _, model = recorded
    weights = make_weightings(N, 3, random_state=0).astype(float)
    found = retrain_outcomes(FrozenEstimator(model), X, y, weights, Xq, yq)
    for row, outcomes in zip(weights, found, strict=True):
        expected = Loop().run(X, y, weights=row).outcomes(Xq, yq)
        assert_allclose(outcomes, expected, atol=1e-10)


def test_attributors_can_be_scored(recorded):
    X, y, Xq, yq = data()
    _, model = recorded
    frozen = influence(model).fit(X, y)
    assert frozen.inclusion_ == 1
    assert frozen.score(Xq, yq) > 0.3
    assert frozen.diagnose(Xq, yq, n_retrainings=8).calibration_slope > 0
    dual = DualInfluence(FrozenEstimator(model), n_retrainings=8, random_state=0)
    assert dual.fit(X, y).score(Xq, yq) > 0
    with pytest.raises(ValueError, match=r"inclusion=0\.5 needs an estimator"):
        influence(model, inclusion=0.5).fit(X, y)


def test_a_clone_repeats_the_run(recorded):
    X, y, Xq, _ = data()
    _, model = recorded
    again = clone(model).fit(X, y)
    assert_allclose(again.predict_proba(Xq), model.predict_proba(Xq), atol=1e-12)
    assert len(again.loss_curve_) == 12
    assert again.loss_curve_[-1] < again.loss_curve_[0]
    assert "tensor(" not in repr(model)
    start = torch.cat([p.detach().flatten() for p in model.module.parameters()])
    assert_array_equal(start, model.recipe.initial)
    thawed = pickle.loads(pickle.dumps(model))
    assert_array_equal(thawed.predict_proba(Xq), model.predict_proba(Xq))


def test_runs_on_halves_of_a_recorded_loop(recorded):
    X, y, Xq, yq = data()
    _, model = recorded
    halves = AdamWInfluence(model, n_trajectories=4, n_halves=16, random_state=0)
    halves.fit(X, y)
    assert halves.inclusion_ == 0.5
    expected = Loop().run(X, y, weights=halves.weights_[1]).outcomes(Xq, yq)
    queries = halves._derivatives.queries(Xq, yq, "log_likelihood")
    assert_allclose(halves._run_outcomes(queries)[0, 1], expected, atol=1e-10)


def test_there_is_one_seed(recorded):
    X, y, Xq, yq = data()
    _, model = recorded
    for attributor in (AdamWInfluence, DualInfluence):
        with pytest.raises(ValueError, match="n_models=2 needs an estimator"):
            attributor(model, n_models=2, random_state=0).fit(X, y)
    with pytest.raises(ValueError, match="n_seeds=2 needs an estimator"):
        retrain_outcomes(
            FrozenEstimator(model), X, y, np.ones((1, N)), Xq, yq, n_seeds=2
        )


def test_memory_knows_the_run(recorded, trainings, tmp_path):
    X, y, Xq, yq = data()
    recording, model = recorded
    options = {"memory": str(tmp_path)}
    weights = make_weightings(N, 3, random_state=0)
    first = retrain_outcomes(model, X, y, weights, Xq, yq, **options)
    again = recording.to_classifier(X, y)
    second = retrain_outcomes(again, X, y, weights, Xq, yq, **options)
    assert_array_equal(first, second)
    assert trainings == [3]
    other = Loop().record(X, y, minibatches(n_epochs=2)).to_classifier(X, y)
    retrain_outcomes(other, X, y, weights, Xq, yq, **options)
    assert trainings == [3, 3]


# ------------------------------------------------------------------------- disk
def test_saved_and_loaded(tmp_path):
    X, y, Xq, yq = data()
    path = tmp_path / "run.safetensors"
    loop = Loop(clip=0.4).run(X, y, minibatches(n_epochs=1))
    recording = loop.record(X, y)
    recording.save(path, X, y)
    loaded = TrainingRecording.load(path, net(seed=3), X, y)
    models = [r.to_classifier(X, y) for r in (recording, loaded)]
    assert_array_equal(*(m.predict_proba(Xq) for m in models))
    assert_array_equal(*(influence(m).fit(X, y).attribute(Xq, yq) for m in models))
    assert loaded._run.recipe.n_before == 4
    loaded.save(path, X, y)  # once more, from what was loaded
    TrainingRecording.load(path, net(), X, y)
    with pytest.raises(TrajectoryError, match="training on other data"):
        TrainingRecording.load(path, net(), X, (y + 1) % 3)
    with pytest.raises(TrajectoryError, match="with 43 trainable parameters"):
        TrainingRecording.load(path, net(4, 6, 3), X, y)
    with pytest.raises(TrajectoryError, match="has been used"), loaded:
        pass
    fitted = TorchClassifier(hidden_layer_sizes=(5,), max_epochs=2, random_state=0)
    fitted.fit(X, y).trajectory_.save(path, torch.tensor(X), torch.tensor(y))
    with pytest.raises(TrajectoryError, match="holds no recording"):
        TrainingRecording.load(path, net(), X, y)


def test_a_sum_instead_of_a_mean_is_noticed():
    """Adam takes the same steps for either, but a row left out does not."""
    X, y, *_ = data()

    class Summed(Loop):
        def gradient(self, X, y, rows, weights):
            self.optimizer.zero_grad()
            losses = self.row_losses(self.model(X[rows]), y[rows])
            losses.sum().backward()

    with pytest.warns(FaithfulnessWarning, match="Use reduction='mean'"):
        Summed().record(X, y).to_classifier(X, y)


def test_weight_decays_are_saved_too(tmp_path):
    X, y, Xq, _ = data()
    path = tmp_path / "run.safetensors"
    recording = Loop(optimizer=no_decay_of_biases(torch.optim.AdamW)).record(X, y)
    recording.save(path, X, y)
    loaded = TrainingRecording.load(path, net(seed=3), X, y)
    assert_array_equal(loaded._run.recipe.decay, recording._run.recipe.decay)
    models = [r.to_classifier(X, y) for r in (recording, loaded)]
    assert_array_equal(*(m.predict_proba(Xq) for m in models))
    found = influence(models[0]).fit(X, y).diagnose(Xq, y[:6])
    assert found.second_order_error > 0


@pytest.mark.parametrize(
    "make_loop",
    [LOOPS["momentum, rates of layers"], LOOPS["rmsprop centered"], LOOPS["amsgrad"]],
)
def test_any_optimizer_is_saved(make_loop, tmp_path):
    X, y, Xq, _ = data()
    path = tmp_path / "run.safetensors"
    recording = make_loop().run(X, y, minibatches(1)).record(X, y)
    recording.save(path, X, y)
    loaded = TrainingRecording.load(path, net(seed=3), X, y)
    assert loaded._run.recipe.options() == recording._run.recipe.options()
    models = [r.to_classifier(X, y) for r in (recording, loaded)]
    assert_array_equal(*(m.predict_proba(Xq) for m in models))
    dual = DualInfluence(FrozenEstimator(models[1]), random_state=0).fit(X, y)
    assert dual.metric_ == "optimizer"


# ------------------------------------------------------------- Muon with AdamW
class MuonLoop(Loop):
    """Two optimizers, as torch has it."""

    def __init__(self, exact=True):
        super().__init__(net(4, 5, 4, 3))
        matrices = [self.model[0].weight, self.model[2].weight]
        ids = set(map(id, matrices))
        rest = [p for p in self.model.parameters() if id(p) not in ids]
        self.optimizer = torch.optim.Muon(matrices, lr=RATE)
        self.other = torch.optim.AdamW(rest, lr=0.5 * RATE)

    def step(self):
        self.optimizer.step()
        self.other.step()

    def record(self, X, y, batches=None):
        recording = record_training(self.model, [self.optimizer, self.other])
        rows, targets = torch.tensor(X), torch.tensor(y)
        with recording:
            for batch in minibatches() if batches is None else batches:
                recording.rows(batch)
                self.model.zero_grad()
                losses = self.row_losses(self.model(rows[batch]), targets[batch])
                losses.mean().backward()
                self.step()
        return recording


def needs_muon(test):
    """Leave a test out where torch, before 2.9, has no Muon."""
    return test if hasattr(torch.optim, "Muon") else None


def in_double(monkeypatch):
    """Let torch's own Newton-Schulz keep the precision of the parameters."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)


@needs_muon
def test_muon_with_adamw_is_recorded(monkeypatch, tmp_path):
    in_double(monkeypatch)
    X, y, Xq, yq = data()
    recording = MuonLoop().record(X, y)
    recipe = recording._run.recipe
    assert recipe.optimizer.matrices == ((0, 5, 4), (25, 4, 5))
    assert recipe.learning_rates.shape == (12, 2)
    assert recipe.optimizer.others.eps == 1e-8
    recording.save(tmp_path / "run", X, y)
    module = net(4, 5, 4, 3, seed=3)
    loaded = TrainingRecording.load(tmp_path / "run", module, X, y)
    models = [r.to_classifier(X, y) for r in (recording, loaded)]  # nothing warns
    found = [influence(model).fit(X, y).attribute(Xq, yq) for model in models]
    assert_array_equal(*found)
    assert np.abs(found[0]).max() > 1e-3


@needs_muon
def test_the_rounding_of_muon_is_told():
    """A replay in full precision misses the loop: bfloat16 has eight bits."""
    X, y, *_ = data()
    with pytest.warns(FaithfulnessWarning, match="Replaying the recording misses"):
        MuonLoop().record(X, y).to_classifier(X, y)


@needs_muon
def test_every_optimizer_steps_once_a_minibatch():
    X, y, *_ = data()

    class Forgetful(MuonLoop):
        def step(self):
            self.optimizer.step()

    with pytest.raises(TrajectoryError, match="In step 1 not every optimizer"):
        Forgetful().record(X, y)
    with pytest.raises(TrajectoryError, match="ended before every optimizer"):
        Forgetful().record(X, y, [np.arange(5)])


def test_a_decay_that_changes_stops_the_loop():
    X, y, *_ = data()
    loop = Loop(optimizer=no_decay_of_biases(torch.optim.AdamW))
    recording = record_training(loop.model, loop.optimizer)

    def train():
        with recording:
            loop.run(X, y, minibatches()[:3], recording=recording)
            loop.optimizer.param_groups[1]["weight_decay"] = 0.2
            loop.run(X, y, minibatches()[3:], recording=recording)

    with pytest.raises(TrajectoryError, match="changed before step 4"):
        train()


def test_labels_and_frames(tmp_path):
    X, y, *_ = data()
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    recording = Loop().record(X, y)
    model = recording.to_classifier(X.tolist(), names)
    assert_array_equal(model.classes_, np.unique(names))
    path = tmp_path / "run.safetensors"
    recording.save(path, X, names)
    again = TrainingRecording.load(path, net(), X, names)
    assert again.to_classifier(X, names).score(X, names) > 0.5


# --------------------------------------------------------------------- warnings
class Mean(Loop):
    """With the loss of nn.MSELoss."""

    def row_losses(self, outputs, targets):
        return (outputs[:, 0] - targets).square()


def test_another_loss_is_noticed():
    X, y = regression_data()[:2]
    y = y[:, 0]
    recording = Mean(net(2, 4, 1), sgd()).record(X, y)
    # without the half, twice the gradient
    with pytest.warns(FaithfulnessWarning, match="MSELoss has no half") as caught:
        model = recording.to_regressor(X, y)
    assert caught[0].filename == __file__
    norms = str(caught[0].message).split("had norm ")[1].split(". ")[0]
    recorded, replayed = norms.split(", that of the package's loss is ")
    assert float(recorded) == pytest.approx(2 * float(replayed), rel=0.01)
    # the weights are the loop's nevertheless
    assert_array_equal(
        next(model.module_.parameters()).detach(),
        recording._run.end.params[0, :8].reshape(4, 2),
    )
    with pytest.warns(FaithfulnessWarning, match="misses its weights"):
        influence(model).fit(X, y)


def test_short_tunings_are_not_taken_for_replayed():
    X, y, *_ = data()
    gentle = lambda model: torch.optim.SGD(model.parameters(), lr=1e-6)
    recording = Loop(optimizer=gentle).record(X, y)
    recording.to_classifier(X, y)
    with pytest.warns(FaithfulnessWarning, match="Replaying the recording misses"):
        recording.to_classifier(X, (y + 1) % 3)


def test_untold_clipping_is_noticed():
    X, y, *_ = data()
    recording = Loop(optimizer=sgd(), clip=0.1).record(X, y, clip_norm=None)
    with pytest.warns(FaithfulnessWarning, match=r"norm 0\.1, .*without clip_norm="):
        recording.to_classifier(X, y)
    recording = Loop(optimizer=sgd(), clip=0.1).record(X, y)
    with pytest.warns(FaithfulnessWarning, match=r"package's loss is 0\.1\."):
        recording.to_classifier(X, (y + 1) % 3)


def test_a_replay_may_diverge():
    X, y, *_ = regression_data()
    steep = lambda model: torch.optim.SGD(model.parameters(), lr=50.0)
    recording = Loop(net(2, 2), steep, clip=0.01).record(
        X, y, minibatches(60), clip_norm=None
    )
    with pytest.raises(TrajectoryError, match=r"diverged in step .*without clip_norm="):
        recording.to_regressor(X, y)


def test_rows_in_no_minibatch_are_named():
    X, y, Xq, yq = data()
    recording = Loop().record(X, y, minibatches(n_rows=37))
    message = r"3 of the 40 rows of X .*first \[37, 38, 39\]"
    with pytest.warns(FaithfulnessWarning, match=message):
        model = recording.to_classifier(X, y)
    attributions = influence(model).fit(X, y).attribute(Xq, yq)
    assert_array_equal(attributions[:, 37:], 0)
    assert np.abs(attributions[:, :37]).min(axis=0).all()


# ----------------------------------------------------------------------- errors
class MyAdam(torch.optim.Adam):
    pass


def two_groups(model):
    groups = [
        {"params": [p], "betas": (0.8 + 0.01 * i, 0.9)}
        for i, p in enumerate(model.parameters())
    ]
    return torch.optim.AdamW(groups)


def shared(model):
    optimizer = adamw(model)
    # add_param_group would refuse it
    optimizer.param_groups.append({**optimizer.param_groups[0], "lr": 0.1})
    return optimizer


def mixed(model):
    model[0].float()
    return model


REFUSED = {
    "no module": (lambda m: lambda x: x, adamw, "must be a torch.nn.Module"),
    "statistics of single rows": (
        lambda m: nn.Sequential(
            m, nn.InstanceNorm1d(3, track_running_stats=True).double()
        ),
        adamw,
        r"1 \(InstanceNorm1d\) keeps running statistics.*track_running_stats=False",
    ),
    "nothing to train": (
        lambda m: m.requires_grad_(False),
        adamw,
        "no trainable parameters",
    ),
    "half precision": (lambda m: m.half(), adamw, "of one dtype, float32 or float64"),
    "two dtypes": (mixed, adamw, "of one dtype, float32 or float64"),
    "optimizer": (
        lambda m: m,
        lambda m: torch.optim.Adagrad(m.parameters()),
        "Adagrad cannot be recorded.*Use one of torch.optim: Adam, AdamW, .*RMSprop",
    ),
    "subclass": (lambda m: m, lambda m: MyAdam(m.parameters()), "MyAdam cannot be"),
    "no optimizer": (lambda m: m, lambda m: None, "NoneType cannot be recorded"),
    "maximize": (lambda m: m, adam(maximize=True), "Adam with maximize=True"),
    "groups": (lambda m: m, two_groups, "groups with other hyper-parameters"),
    "shared": (lambda m: m, shared, r"groups of optimizer share the parameter 0\.weig"),
    "two optimizers": (
        lambda m: m,
        lambda m: [
            torch.optim.SGD(m[0].parameters(), lr=0.1),
            torch.optim.Adam(m[2].parameters()),
        ],
        "SGD and Adam with other options train one model",
    ),
    "shared by two": (
        lambda m: m,
        lambda m: [adamw(m), torch.optim.AdamW(m[2].parameters())],
        r"groups of optimizer share the parameter 2\.",
    ),
    "left out": (
        lambda m: m,
        lambda m: torch.optim.Adam(m[0].parameters()),
        r"does not hold the parameter 2\.weight of model \(2 in all\)",
    ),
    "too many": (
        lambda m: m[0],
        lambda m: torch.optim.Adam([*m.parameters(), nn.Parameter(torch.ones(2))]),
        "holds 1 parameters that are not those",
    ),
}


@pytest.mark.parametrize(
    ("change", "optimizer", "message"), REFUSED.values(), ids=list(REFUSED)
)
def test_refused_up_front(change, optimizer, message):
    model = net()
    made = optimizer(model)
    model = change(model)
    known = isinstance(made, torch.optim.Optimizer | list)
    if known and optimizer is not adamw:
        made = optimizer(model)
    with pytest.raises((ValueError, TypeError), match=message):
        record_training(model, made)


@pytest.mark.parametrize("clip_norm", [0, -1.0, "1"])
def test_clip_norm_is_checked(clip_norm):
    loop = Loop()
    with pytest.raises(ValueError, match="clip_norm must be above 0"):
        record_training(loop.model, loop.optimizer, clip_norm)


def step(loop, recording, **options):
    X, y, *_ = data()
    loop.run(X, y, [np.arange(5)], recording=recording, **options)


def forget_rows(loop, recording):
    step(loop, recording)
    step(loop, None)


def train_mode(loop, recording):
    step(loop, recording)
    loop.model.train()
    with torch.random.fork_rng(devices=[]):
        step(loop, recording)


def change_betas(loop, recording):
    step(loop, recording)
    loop.optimizer.param_groups[0]["betas"] = (0.5, 0.9)
    step(loop, recording)


def unused_layer(loop, recording):
    recording.rows([0])
    loop.model[0](torch.zeros(1, 4).double()).sum().backward()
    loop.optimizer.step()


def unfreeze(loop, recording):
    step(loop, recording)
    loop.model[0].bias.requires_grad_(False)
    step(loop, recording)


def infinite(loop, recording):
    step(loop, recording)
    recording.rows([0])
    for p in loop.model.parameters():
        p.grad.fill_(np.inf)
    loop.optimizer.step()


def move_frozen(loop, recording):
    step(loop, recording)
    loop.model.frozen.add_(1)


def with_frozen():
    model = net()
    model.register_buffer("frozen", torch.zeros(1))
    return model


WRONG_STEPS = {
    "rows forgotten": (net, forget_rows, "rows of step 2 are not known.*rows"),
    "train mode": (
        lambda: nn.Sequential(net(), nn.Dropout(0.5)).eval(),
        train_mode,
        r"in other modes in step 2 than in the first: call \.train\(\) once",
    ),
    "betas": (net, change_betas, "hyper-parameters changed before step 2"),
    "no gradient": (net, unused_layer, r"in step 1 2\.weight has no gradient"),
    "frozen later": (net, unfreeze, "in step 2 others are trained"),
    "not finite": (net, infinite, "gradient of step 2 is not finite"),
    "buffer": (with_frozen, move_frozen, "frozen, which the optimizer does not train"),
    "rows": (net, lambda loop, r: r.rows([0.5]), "rows must be the indices.*float64"),
    "mask": (net, lambda loop, r: r.rows(np.ones(3, bool)), "got dtype bool"),
    "negative": (net, lambda loop, r: r.rows([-1]), "smallest -1"),
    "no rows": (net, lambda loop, r: r.rows([]), r"shape \(0,\)"),
    "slice": (net, lambda loop, r: r.rows(slice(3)), "got dtype object"),
    "twice": (net, lambda loop, r: r.__enter__(), "has been used"),
}


@pytest.mark.parametrize(
    ("model", "act", "message"), WRONG_STEPS.values(), ids=list(WRONG_STEPS)
)
def test_wrong_steps_stop_the_loop(model, act, message):
    loop = Loop(model())
    recording = record_training(loop.model, loop.optimizer)
    with pytest.raises(ValueError, match=message), recording:
        act(loop, recording)
    assert not loop.optimizer._optimizer_step_pre_hooks


def test_a_model_that_cannot_be_copied():
    loop = Loop()
    loop.model.computed = loop.model[0].weight * 2
    recording = record_training(loop.model, loop.optimizer)
    with pytest.raises(ValueError, match="cannot be copied: Only Tensors"), recording:
        pass


def test_clipping_that_does_not_happen():
    loop = Loop()
    with (
        pytest.raises(TrajectoryError, match=r"clip_norm=0\.01, but the gradient of"),
        record_training(loop.model, loop.optimizer, 0.01) as recording,
    ):
        step(loop, recording)


def test_half_used_optimizers_are_refused():
    loop = Loop()
    loop.model[0](torch.ones(1, 4).double()).sum().backward()
    loop.optimizer.step()
    for _ in range(2):
        recording = record_training(loop.model, loop.optimizer)
        with pytest.raises(ValueError, match="more steps for some param"), recording:
            pass
        step(loop, None)  # from now on there is a state of each


def test_records_that_cannot_be_used():
    X, y, *_ = data()
    loop = Loop()
    recording = record_training(loop.model, loop.optimizer)
    with pytest.raises(TrajectoryError, match="outside `with recording:`"):
        recording.rows([0])
    with pytest.raises(TrajectoryError, match="There is no recorded run"):
        recording.to_classifier(X, y)
    with recording:
        pass
    with pytest.raises(TrajectoryError, match="No step was recorded"):
        recording.to_classifier(X, y)
    still = Loop(optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.0))
    with pytest.raises(TrajectoryError, match="learning rate was 0 in every"):
        still.record(X, y).to_classifier(X, y)
    recording = Loop().record(X, y)
    with pytest.raises(TrajectoryError, match="hold row 39, but X has 30 rows"):
        recording.to_classifier(X[:30], y[:30])
    with pytest.raises(TrajectoryError, match="hold row 39, but X has 30 rows"):
        clone(recording.to_classifier(X, y)).fit(X[:30], y[:30])
    with pytest.raises(ValueError, match="module failed on rows of shape"):
        recording.to_classifier(X[:, :3], y)


def test_single_rows_are_refused_by_the_attributor():
    X, y, *_ = data()
    model = Loop().record(X, y, minibatches(1, size=1)).to_classifier(X, y)
    with pytest.raises(ValueError, match="batch_size=1 makes weights inert"):
        influence(model).fit(X, y)


def test_unrecorded_models_point_here(recorded):
    X, y, Xq, yq = data()
    _, model = recorded
    bare = FrozenEstimator(TorchClassifier.from_module(model.module_, [0, 1, 2]))
    with pytest.raises(TrajectoryError, match="by record_training"):
        AdamWInfluence(bare, random_state=0).fit(X, y)
    with pytest.raises(TrajectoryError, match="by record_training"):
        retrain_outcomes(bare, X, y, np.ones((1, N)), Xq, yq)
