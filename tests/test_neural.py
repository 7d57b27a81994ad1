"""TorchClassifier and TorchRegressor: what each option does, and what is refused."""

import copy
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import skorch
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.utils.estimator_checks import check_sample_weight_equivalence_on_dense_data
from torch import nn

from skattrib import DualInfluence, TorchClassifier, TorchRegressor
from skattrib.engine._functional import FunctionalModule
from skattrib.engine._training import train
from tests.cases import build, mlp, randn

N, D = 30, 4
LABELS = np.array(["ant", "bee", "cat"])


def data(dtype=np.float64):
    """Three classes that a linear model can nearly tell apart."""
    X = randn(N, D, seed=1).numpy()
    y = np.digitize(X[:, 0] + 0.5 * X[:, 1], [-0.5, 0.5])
    return X.astype(dtype), y


def targets(n_outputs=None):
    X, _ = data()
    y = X @ randn(D, n_outputs or 1, seed=2).numpy()
    return y if n_outputs else y[:, 0]


def problem(kind):
    X, y = data()
    return (X, LABELS[y]) if kind is TorchClassifier else (X, targets())


def outputs(estimator, X):
    predict = getattr(estimator, "predict_log_proba", estimator.predict)
    return predict(X)


def parameters(estimator):
    return FunctionalModule(estimator.module_).flatten()


KINDS = [TorchClassifier, TorchRegressor]
SHORT = {"max_epochs": 8, "random_state": 0}


# -------------------------------------------------------------------- options
def harmonic(step, n_steps):
    return 1 / (1 + step)


def option_name(options):
    return ", ".join(f"{k}={getattr(v, '__name__', v)}" for k, v in options.items())


# All of them change the run.
OPTIONS = [
    {"hidden_layer_sizes": ()},
    {"hidden_layer_sizes": [5, 4]},
    {"hidden_layer_sizes": np.array([7])},
    *({"activation": name} for name in ("relu", "gelu", "silu", "identity")),
    {"optimizer": "adam"},
    {"optimizer": "sgd", "learning_rate": 0.1},
    {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9},
    {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9, "nesterov": True},
    {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0.5},
    {"learning_rate": 0.02},
    {"weight_decay": 0},
    {"betas": [0.5, 0.9]},
    {"eps": 1e-2},
    {"schedule": "cosine"},
    {"schedule": "linear_warmup"},
    {"schedule": harmonic},
    {"clip_norm": 0.3},
    {"batch_size": 1},
    {"batch_size": 7},
    {"max_epochs": 9},
    {"random_state": 1},
]
# These do not.
BYSTANDERS = [
    {"batch_size": N},
    {"batch_size": 10 * N},
    {"record": "checkpoints"},
    {"record": "states"},
    {"device": torch.device("cpu")},
    {"learning_rate": np.float64(1e-2), "momentum": 0.0},
]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def default(request):
    """A class, its data and its parameters after a run with default options."""
    X, y = problem(request.param)
    return request.param, X, y, parameters(request.param(**SHORT).fit(X, y))


@pytest.mark.parametrize("options", OPTIONS, ids=option_name)
def test_options_change_the_run_and_it_learns(default, options):
    kind, X, y, before = default
    estimator = kind(**{**SHORT, **options}).fit(X, y)
    again = clone(estimator).fit(X, y)
    after = parameters(estimator)
    assert torch.equal(after, parameters(again))
    assert after.shape != before.shape or not torch.allclose(after, before, atol=1e-7)
    assert estimator.loss_curve_.shape == (estimator.max_epochs,)
    assert estimator.loss_curve_[-1] < estimator.loss_curve_[0]
    assert np.isfinite(outputs(estimator, X)).all()


@pytest.mark.parametrize("options", BYSTANDERS, ids=option_name)
def test_options_that_do_not_change_the_run(default, options):
    kind, X, y, before = default
    assert torch.equal(parameters(kind(**SHORT, **options).fit(X, y)), before)


@pytest.mark.parametrize("kind", KINDS)
def test_same_result_from_other_threads(kind):
    X, y = problem(kind)
    estimators = [
        kind(
            module=lambda n_in, n_out: mlp(n_in, 9, n_out),
            max_epochs=3,
            batch_size=7,
            random_state=seed,
        )
        for seed in (0, 1, 2, 3) * 2
    ]
    expected = [parameters(clone(e).fit(X, y)) for e in estimators]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda e: parameters(e.fit(X, y)), estimators))
    assert all(map(torch.equal, found, expected))
    assert not torch.equal(found[0], found[1])


def test_random_state_may_be_a_generator():
    X, y = data()
    rng = np.random.RandomState(0)
    clf = TorchClassifier(max_epochs=2, random_state=rng)
    first, second = (parameters(clone(clf).fit(X, y)) for _ in range(2))
    assert torch.equal(first, second)  # clone copies the generator
    assert not torch.equal(parameters(clf.fit(X, y)), parameters(clf.fit(X, y)))


def test_schedule_is_called_with_step_and_length():
    X, y = data()
    calls = []

    def schedule(step, n_steps):
        calls.append((step, n_steps))
        return 0.5**step

    clf = TorchClassifier(
        schedule=schedule,
        learning_rate=0.1,
        max_epochs=2,
        batch_size=10,
        random_state=0,
    )
    rates = clf.fit(X, y).trajectory_.recipe.learning_rates
    assert calls == [(step, 6) for step in range(6)]
    assert_allclose(rates, 0.1 * 0.5 ** np.arange(6), rtol=1e-12)


# ------------------------------------------------------------------ predictions
def test_measurements_are_not_silently_classes():
    X, y = np.eye(60), np.arange(60.0) % 30
    with pytest.warns(UserWarning, match="60 numbers of y are treated as 30 classes"):
        TorchClassifier(max_epochs=1, random_state=0).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TorchClassifier(max_epochs=1, random_state=0).fit(X, y.astype(str))
        TorchClassifier(max_epochs=1, random_state=0).fit(X, y % 15)


def test_classifier_predictions():
    X, y = problem(TorchClassifier)
    clf = TorchClassifier(max_epochs=60, random_state=0).fit(X, y)
    assert_array_equal(clf.classes_, LABELS)
    p = clf.predict_proba(X)
    assert p.shape == (N, 3)
    assert_allclose(p.sum(axis=1), 1, rtol=1e-12)
    assert_allclose(clf.predict_log_proba(X), np.log(p), rtol=1e-10)
    assert_array_equal(clf.predict(X), LABELS[p.argmax(axis=1)])
    assert clf.score(X, y) > 0.9


@pytest.mark.parametrize("shape", [(N,), (N, 1), (N, 2)])
def test_regressor_predictions_have_the_shape_of_y(shape):
    X, _ = data()
    y = targets(2)[:, : shape[-1]].reshape(shape) if len(shape) > 1 else targets()
    reg = TorchRegressor(max_epochs=200, random_state=0).fit(X, y)
    assert reg.predict(X).shape == shape
    assert reg.n_outputs_ == (1 if len(shape) == 1 else shape[1])
    assert reg.score(X, y) > 0.9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("given", "expected"),
    [(np.float32, np.float32), (np.float64, np.float64), (np.int64, np.float64)],
)
def test_dtype_is_that_of_X(kind, given, expected):
    X, y = problem(kind)
    X = (10 * X).astype(given)
    estimator = kind(**SHORT).fit(X, y)
    torch_dtype = torch.tensor(np.empty(0, expected)).dtype
    assert {p.dtype for p in estimator.module_.parameters()} == {torch_dtype}
    assert estimator.trajectory_.recipe.initial.dtype == torch_dtype
    assert outputs(estimator, X).dtype == expected
    assert outputs(estimator, X.astype(np.float64)).dtype == expected


def test_many_rows_are_predicted_in_chunks():
    X, y = data()
    clf = TorchClassifier(**SHORT).fit(X, y)
    many = np.tile(X, (300, 1))
    assert len(many) > 8192
    assert_allclose(
        clf.predict_proba(many), np.tile(clf.predict_proba(X), (300, 1)), rtol=1e-12
    )


# ---------------------------------------------------------------------- weights
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_full_batch_weights_are_repetitions(kind, optimizer):
    X, y = problem(kind)
    weights = np.arange(N) % 4
    rows = np.repeat(np.arange(N), weights)
    estimator = kind(optimizer=optimizer, **{**SHORT, "max_epochs": 30})
    weighted = clone(estimator).fit(X, y, sample_weight=weights)
    repeated = clone(estimator).fit(X[rows], y[rows])
    assert_allclose(outputs(weighted, X), outputs(repeated, X), rtol=0, atol=1e-9)
    unweighted = clone(estimator).fit(X, y)
    assert not np.allclose(outputs(weighted, X), outputs(unweighted, X), atol=1e-3)
    assert_array_equal(weighted.trajectory_.row_weights, weights)


@pytest.mark.parametrize("kind", KINDS)
def test_scikit_learns_own_check_of_weights(kind):
    check_sample_weight_equivalence_on_dense_data(
        kind.__name__, kind(max_epochs=10, random_state=0)
    )


# ----------------------------------------------------------------------- module
@pytest.mark.parametrize("kind", KINDS)
def test_module_instance_is_copied_and_its_weights_are_the_start(kind):
    X, y = problem(kind)
    module = build(lambda: mlp(D, 5, 3 if kind is TorchClassifier else 1))
    before = copy.deepcopy(module.state_dict())
    estimator = kind(module, **SHORT).fit(X, y)
    assert estimator.module is module
    assert estimator.module_ is not module
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    start = FunctionalModule(module).flatten()
    assert torch.equal(estimator.trajectory_.recipe.initial, start)
    assert not torch.allclose(parameters(estimator), start, atol=1e-3)
    # the seed has nothing left to decide
    other = kind(module, max_epochs=8, random_state=1).fit(X, y)
    assert torch.equal(parameters(other), parameters(estimator))


def test_module_factory_is_seeded():
    X, y = data()
    calls = []

    def factory(n_inputs, n_outputs):
        calls.append((n_inputs, n_outputs))
        return nn.Linear(n_inputs, n_outputs)

    fits = [
        TorchClassifier(factory, max_epochs=1, random_state=seed).fit(X, y)
        for seed in (0, 0, 1)
    ]
    assert calls == [(D, 3)] * 6  # twice, to see that it comes out the same
    starts = [f.trajectory_.recipe.initial for f in fits]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_frozen_parameters_are_not_trained():
    X, y = data()
    module = build(lambda: mlp(D, 5, 3))
    module[0].requires_grad_(False)
    clf = TorchClassifier(module, **SHORT).fit(X, y)
    assert torch.equal(clf.module_[0].weight, module[0].weight)
    assert not torch.equal(clf.module_[2].weight, module[2].weight)


def test_regression_module_may_drop_its_last_axis():
    X, y = problem(TorchRegressor)
    flat = TorchRegressor(
        lambda n_in, n_out: nn.Sequential(mlp(n_in, 5, n_out), nn.Flatten(0)), **SHORT
    )
    column = TorchRegressor(
        lambda n_in, n_out: nn.Sequential(mlp(n_in, 5, n_out)), **SHORT
    )
    predictions = [reg.fit(X, y).predict(X) for reg in (flat, column)]
    assert_array_equal(*predictions)


# ----------------------------------------------------------------------- record
@pytest.mark.parametrize("batch_size", [None, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_recipe_repeats_the_run(kind, batch_size):
    X, y = problem(kind)
    weights = np.linspace(0.5, 2, N)
    fitted = kind(batch_size=batch_size, schedule="cosine", clip_norm=0.5, **SHORT)
    fitted.fit(X, y, sample_weight=weights)
    trajectory = fitted.trajectory_
    codes = fitted._targets(y, torch.tensor(X))
    model = FunctionalModule(fitted.module_)
    result = train(
        model,
        fitted.loss_function_,
        trajectory.recipe,
        torch.tensor(X),
        codes,
        trajectory.row_weights[None],
    )
    assert torch.equal(result.params[0], parameters(fitted))
    assert torch.equal(result.denominator[0], trajectory.denominator)
    per_epoch = len(result.loss_curve) // 8
    means = np.reshape(result.loss_curve, (8, per_epoch)).mean(axis=1)
    assert_allclose(fitted.loss_curve_, means, rtol=1e-12)


@pytest.mark.parametrize(
    ("record", "steps"),
    [("recipe", []), ("checkpoints", [0, 3, 6, 9]), ("states", list(range(10)))],
)
def test_record(record, steps):
    X, y = data()
    clf = TorchClassifier(record=record, max_epochs=9, random_state=0).fit(X, y)
    states = clf.trajectory_.states
    assert sorted(states) == steps
    if steps:
        assert torch.equal(states[0].params[0], clf.trajectory_.recipe.initial)
        assert torch.equal(states[9].params[0], parameters(clf))


# ---------------------------------------------------------------------- wrapped
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_classifier_from_module(dtype):
    module = build(lambda: mlp(D, 5, 3), dtype=dtype)
    X, _ = data()
    clf = TorchClassifier.from_module(module, LABELS)
    with torch.no_grad():
        expected = module(torch.tensor(X, dtype=dtype)).softmax(dim=1).numpy()
        module[0].weight.zero_()  # the wrapper has a copy
    assert_array_equal(clf.predict_proba(X), expected)
    assert_array_equal(clf.predict(X), LABELS[expected.argmax(axis=1)])
    assert clf.trajectory_ is None
    frozen = FrozenEstimator(clf).fit(X, LABELS[data()[1]])
    assert_array_equal(frozen.predict_proba(X), expected)


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_regressor_from_module(n_outputs):
    module = build(lambda: mlp(D, 5, n_outputs))
    X, _ = data()
    reg = TorchRegressor.from_module(module, n_outputs)
    with torch.no_grad():
        expected = module(torch.tensor(X)).numpy()
    expected = expected[:, 0] if n_outputs == 1 else expected
    for estimator in (reg, FrozenEstimator(reg)):
        assert_array_equal(estimator.predict(X), expected)
    assert reg.trajectory_ is None


class Probabilities(nn.Module):
    """What skorch's default criterion, NLLLoss, expects."""

    def __init__(self):
        super().__init__()
        self.layers = mlp(D, 5, 3)

    def forward(self, x):
        return self.layers(x).softmax(dim=-1)


class OneLogit(nn.Module):
    """What BCEWithLogitsLoss expects, with a layer that has an .eval() mode."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(mlp(D, 5, 1), nn.Flatten(0), nn.Dropout(0.5))

    def forward(self, x):
        return self.layers(x)


def skorch_net(kind, module, criterion=None, **options):
    if criterion is not None:
        options["criterion"] = criterion
    return kind(module, max_epochs=3, lr=0.1, verbose=0, train_split=None, **options)


@pytest.mark.touches_global_rng
@pytest.mark.parametrize(
    ("kind", "module", "criterion", "labels"),
    [
        (skorch.NeuralNetClassifier, Probabilities, None, LABELS),
        (skorch.NeuralNetClassifier, Probabilities, nn.NLLLoss, [0, 1, 2]),
        (
            skorch.NeuralNetClassifier,
            lambda: mlp(D, 5, 3),
            nn.CrossEntropyLoss,
            [0, 1, 2],
        ),
        (skorch.NeuralNetBinaryClassifier, OneLogit, nn.BCEWithLogitsLoss, None),
    ],
)
def test_classifier_from_skorch(kind, module, criterion, labels):
    X, y = data(np.float32)
    if labels is None:
        y = (y > 0).astype(np.float32)
    net = skorch_net(kind, module, criterion)
    net.fit(X, y)
    clf = TorchClassifier.from_skorch(net)
    assert_allclose(clf.predict_proba(X), net.predict_proba(X), rtol=0, atol=1e-6)
    assert_array_equal(clf.predict(X), net.predict(X))
    assert_array_equal(clf.classes_, net.classes_)
    assert clf.trajectory_ is None


@pytest.mark.touches_global_rng
@pytest.mark.parametrize("n_outputs", [1, 2])
def test_regressor_from_skorch(n_outputs):
    X, _ = data(np.float32)
    y = targets(n_outputs).astype(np.float32)
    net = skorch_net(skorch.NeuralNetRegressor, lambda: mlp(D, 5, n_outputs))
    net.fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reg = TorchRegressor.from_skorch(
            net, **({"n_outputs": 2} if n_outputs == 2 else {})
        )
    found = reg.predict(X).reshape(N, -1)
    assert_allclose(found, net.predict(X), rtol=0, atol=1e-6)


@pytest.mark.touches_global_rng
def test_skorch_criteria_that_do_not_fit():
    X, y = data(np.float32)
    net = skorch_net(skorch.NeuralNetRegressor, lambda: mlp(D, 5, 1), nn.L1Loss)
    net.fit(X, targets(1).astype(np.float32))
    wrapped = TorchRegressor.from_skorch(net)
    assert repr(wrapped.loss_function_) == "loss L1Loss"
    margin = skorch_net(
        skorch.NeuralNetClassifier, lambda: mlp(D, 5, 3), nn.MultiMarginLoss
    )
    margin.fit(X, y)
    with pytest.raises(ValueError, match=r"MultiMarginLoss has no second derivative"):
        TorchClassifier.from_skorch(margin)
    with pytest.raises(NotFittedError):
        TorchClassifier.from_skorch(clone(margin))


@pytest.mark.touches_global_rng
def test_skorch_losses_are_taken_over():
    X, y = data(np.float32)
    weight = torch.tensor([1.0, 10.0, 1.0])
    net = skorch_net(
        skorch.NeuralNetClassifier,
        lambda: mlp(D, 5, 3),
        nn.CrossEntropyLoss,
        criterion__weight=weight,
        criterion__label_smoothing=0.1,
    )
    loss = TorchClassifier.from_skorch(net.fit(X, y)).loss_function_
    assert loss.weight == (1.0, 10.0, 1.0)
    assert loss.label_smoothing == 0.1
    single = skorch_net(
        skorch.NeuralNetBinaryClassifier,
        lambda: mlp(D, 5, 1),
        nn.BCEWithLogitsLoss,
        criterion__pos_weight=torch.tensor(3.0),
    )
    single.fit(X, (y == y[0]).astype(np.float32))
    wrapped = TorchClassifier.from_skorch(single)
    assert wrapped.loss_function_.pos_weight == 3.0
    assert_allclose(wrapped.predict_proba(X), single.predict_proba(X), rtol=1e-5)


# ---------------------------------------------------------------- pickle, output
@pytest.mark.parametrize("kind", KINDS)
def test_pickling(kind):
    X, y = problem(kind)
    estimator = kind(max_epochs=4, record="states", random_state=0).fit(X, y)
    loaded = pickle.loads(pickle.dumps(estimator))
    assert_array_equal(outputs(loaded, X), outputs(estimator, X))
    one, other = estimator.trajectory_, loaded.trajectory_
    assert torch.equal(one.recipe.initial, other.recipe.initial)
    assert sorted(one.states) == sorted(other.states) == [0, 1, 2, 3, 4]
    pickle.dumps(kind())


@pytest.mark.parametrize("kind", KINDS)
def test_progress_is_shown_when_asked_for(kind, capsys):
    X, y = problem(kind)
    kind(**SHORT).fit(X, y)
    assert capsys.readouterr() == ("", "")
    kind(verbose=1, **SHORT).fit(X, y)
    out, err = capsys.readouterr()
    assert out == ""
    assert kind.__name__ in err
    assert "8/8" in err


# -------------------------------------------------------------------- bad input
class Pair(nn.Module):
    def __init__(self, n_inputs, n_outputs):
        super().__init__()
        self.layer = nn.Linear(n_inputs, n_outputs)

    def forward(self, x):
        return self.layer(x), x


class Centred(nn.Linear):
    def forward(self, x):
        return super().forward(x) - super().forward(x).mean(dim=0)


def with_layer(layer):
    return lambda n_in, n_out: nn.Sequential(
        nn.Linear(n_in, 6), layer, nn.Linear(6, n_out)
    )


def spoiled(array, value):
    array = np.array(array, dtype=float)
    array[3] = value
    return array


# what: (class, options, changes of X, y and sample_weight, error, its text)
BAD_FITS = {
    "one class": (
        TorchClassifier,
        {},
        {"y": np.zeros(N)},
        ValueError,
        "one class only.*at least 2 classes",
    ),
    "continuous labels": (
        TorchClassifier,
        {},
        {"y": targets()},
        ValueError,
        "Unknown label type: continuous",
    ),
    "NaN in X": (
        TorchClassifier,
        {},
        {"X": spoiled(data()[0], np.nan)},
        ValueError,
        "X contains NaN",
    ),
    "infinity in y": (
        TorchRegressor,
        {},
        {"y": spoiled(targets(), np.inf)},
        ValueError,
        "y contains infinity",
    ),
    "3-D X": (
        TorchClassifier,
        {},
        {"X": data()[0].reshape(N, 2, 2)},
        ValueError,
        "Found array with dim 3.*dim <= 2",
    ),
    "y of another length": (
        TorchClassifier,
        {},
        {"y": data()[1][:-1]},
        ValueError,
        r"inconsistent numbers of samples: \[30, 29\]",
    ),
    "module too wide": (
        TorchClassifier,
        {"module": nn.Linear(D, 4)},
        {},
        ValueError,
        r"module returns shape \(3, 4\).*must be \(3, 3\): one column per class",
    ),
    "module too narrow": (
        TorchRegressor,
        {"module": nn.Linear(D, 1)},
        {"y": targets(2)},
        ValueError,
        r"module returns shape \(3, 1\).*must be \(3, 2\)",
    ),
    "module with one output for the batch": (
        TorchRegressor,
        {"module": nn.Sequential(nn.Linear(D, 1), nn.Flatten(0), nn.Softmax(0))},
        {},
        ValueError,
        r"module Sequential lets the rows of a batch influence each other.*\.eval\(\)",
    ),
    "custom layer that mixes rows": (
        TorchClassifier,
        {"module": Centred},
        {},
        ValueError,
        r"module Centred lets the rows of a batch influence each other",
    ),
    "nothing to train": (
        TorchClassifier,
        {"module": nn.Linear(D, 3).requires_grad_(False)},
        {},
        ValueError,
        "module has no trainable parameters",
    ),
    "module that fails": (
        TorchClassifier,
        {"module": nn.Linear(D + 1, 3)},
        {},
        ValueError,
        r"module failed on rows of shape \(3, 4\).*give X the shape that the",
    ),
    "module that returns a tuple": (
        TorchClassifier,
        {"module": Pair},
        {},
        ValueError,
        "module returns",
    ),
    "factory that returns no module": (
        TorchClassifier,
        {"module": lambda n_in, n_out: None},
        {},
        (TypeError, ValueError),
        r"module.*nn\.Module",
    ),
    "beta of 1": (
        TorchClassifier,
        {"betas": (0.9, 1.0)},
        {},
        ValueError,
        r"betas must be two numbers in \[0, 1\)",
    ),
    "one beta": (
        TorchClassifier,
        {"betas": (0.9,)},
        {},
        ValueError,
        r"betas must be two numbers in \[0, 1\)",
    ),
    "beta that is no number": (
        TorchClassifier,
        {"betas": ("a", "b")},
        {},
        (TypeError, ValueError),
        "betas must be two numbers",
    ),
    "nesterov without momentum": (
        TorchRegressor,
        {"optimizer": "sgd", "nesterov": True},
        {},
        ValueError,
        "nesterov=True needs momentum > 0",
    ),
    "negative weight": (
        TorchClassifier,
        {},
        {"sample_weight": spoiled(np.ones(N), -1)},
        ValueError,
        "Negative values in data passed to `sample_weight`",
    ),
    "no weight": (
        TorchRegressor,
        {},
        {"sample_weight": np.zeros(N)},
        ValueError,
        "Sample weights must contain at least one non-zero",
    ),
    "weights of another length": (
        TorchRegressor,
        {},
        {"sample_weight": np.ones(N - 1)},
        ValueError,
        r"sample_weight.shape == \(29,\), expected \(30,\)",
    ),
    "device that is none": (
        TorchClassifier,
        {"device": "abacus"},
        {},
        ValueError,
        "device='abacus' is not available.*device='cpu'",
    ),
    "device that is absent": (
        TorchClassifier,
        {"device": "cuda:99"},
        {},
        ValueError,
        "device='cuda:99' is not available.*device='cpu'",
    ),
    "divergence": (
        TorchRegressor,
        {"optimizer": "sgd", "learning_rate": 1e3},
        {},
        ValueError,
        r"diverged with learning_rate=1000\.0 in step \d+ of 60:.*Lower.*clip_norm",
    ),
    "hidden layer of 0": (
        TorchClassifier,
        {"hidden_layer_sizes": (5, 0)},
        {},
        ValueError,
        r"hidden_layer_sizes must hold whole numbers of at least 1.*\(5, 0\)",
    ),
    "a bare hidden layer": (
        TorchClassifier,
        {"hidden_layer_sizes": 32},
        {},
        ValueError,
        r"hidden_layer_sizes=32 must be a tuple .* one layer is \(32,\)",
    ),
    "hidden layer of a half": (
        TorchClassifier,
        {"hidden_layer_sizes": (2.5,)},
        {},
        ValueError,
        "hidden_layer_sizes must hold whole numbers",
    ),
    "hidden layer of a word": (
        TorchClassifier,
        {"hidden_layer_sizes": ("many",)},
        {},
        ValueError,
        "hidden_layer_sizes must hold whole numbers",
    ),
    "nested hidden layers": (
        TorchClassifier,
        {"hidden_layer_sizes": [[3]]},
        {},
        ValueError,
        "hidden_layer_sizes must hold whole numbers",
    ),
    "a scheduler of torch": (
        TorchClassifier,
        {"schedule": torch.optim.lr_scheduler.OneCycleLR},
        {},
        ValueError,
        r"schedule=.*OneCycleLR.* fails.*called with the step.*record_training",
    ),
    "a schedule of the step alone": (
        TorchClassifier,
        {"schedule": lambda step: 0.9**step},
        {},
        ValueError,
        r"schedule=.* fails: .*called with the step, from 0, and the number",
    ),
    "a class of torch's optimizers": (
        TorchClassifier,
        {"optimizer": torch.optim.AdamW},
        {},
        ValueError,
        r"AdamW of torch.*optimizer='adamw', or skattrib.optimizers.AdamW\(\)",
    ),
    "one of torch's optimizers": (
        TorchClassifier,
        {"optimizer": torch.optim.NAdam([torch.zeros(1, requires_grad=True)])},
        {},
        ValueError,
        r"NAdam of torch.*optimizer=one of \['adam', 'adamw'",
    ),
    **{
        f"schedule of {name}": (
            TorchClassifier,
            {"schedule": schedule},
            {},
            ValueError,
            r"schedule\(step, n_steps\) must return finite factors >= 0, not all 0",
        )
        for name, schedule in {
            "NaN": lambda step, n_steps: np.nan,
            "negative factors": lambda step, n_steps: 1.0 - step,
            "zeros": lambda step, n_steps: 0,
        }.items()
    },
}


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("what", BAD_FITS)
def test_bad_fits_say_why_and_leave_the_old_fit(what):
    kind, options, changes, error, text = BAD_FITS[what]
    X, y = problem(kind)
    fitted = kind(**SHORT).fit(X, y)
    before, attributes = outputs(fitted, X), sorted(vars(fitted))
    fitted.set_params(max_epochs=60, **options)
    arguments = {"X": X, "y": y, **changes}
    with pytest.raises(error, match=f"(?s){text}"):
        clone(fitted).fit(**arguments)
    with pytest.raises(error, match=f"(?s){text}"):
        fitted.fit(**arguments)
    assert_array_equal(outputs(fitted, X), before)
    assert sorted(vars(fitted)) == attributes


@pytest.mark.parametrize("kind", KINDS)
def test_bad_queries(kind):
    X, y = problem(kind)
    with pytest.raises(NotFittedError):
        kind().predict(X)
    fitted = kind(**SHORT).fit(X, y)
    with pytest.raises(ValueError, match=r"X has 3 features.*expecting 4"):
        fitted.predict(X[:, :3])
    with pytest.raises(ValueError, match="contains NaN"):
        fitted.predict(spoiled(X, np.nan))


def test_targets_of_queries_must_be_known():
    X, y = problem(TorchClassifier)
    clf = TorchClassifier(**SHORT).fit(X, y)
    codes = clf._targets(np.array(["cat", "ant"]), torch.empty(0))
    assert codes.tolist() == [2, 0]
    for unseen in ("aaa", "bat", "dog"):
        with pytest.raises(
            ValueError, match=rf"(?s)unseen in fit: \['{unseen}'\].*StratifiedKFold"
        ):
            clf._targets(np.array(["cat", unseen]), torch.empty(0))
    reg = TorchRegressor(**SHORT).fit(X, targets(2))
    with pytest.raises(ValueError, match="3 columns, the regressor was fitted to 2"):
        reg._targets(np.zeros((5, 3)), torch.empty(0))


@pytest.mark.parametrize(
    ("wrap", "error", "text"),
    [
        (lambda: (mlp(D, 3), ["b", "a", "c"]), ValueError, "classes.*sorted order"),
        (lambda: (mlp(D, 3), ["a", "a", "b"]), ValueError, "classes.*different"),
        (lambda: (mlp(D, 1), ["a"]), ValueError, "classes.*at least two"),
        (lambda: (mlp(D, 2), [["a", "b"]]), ValueError, "classes must be"),
        (lambda: (np.tanh, [0, 1]), TypeError, r"module must be a torch\.nn\.Module"),
        (lambda: (nn.Tanh(), [0, 1]), ValueError, "module has no trainable parameters"),
    ],
)
def test_modules_that_cannot_be_wrapped(wrap, error, text):
    with torch.random.fork_rng(devices=[]):
        arguments = wrap()
    with pytest.raises(error, match=f"(?s){text}"):
        TorchClassifier.from_module(*arguments)


def test_evaluation_mode_makes_layers_usable():
    X, y = data()
    module = build(
        lambda: nn.Sequential(mlp(D, 6), nn.BatchNorm1d(6), nn.Dropout(), mlp(6, 3))
    ).eval()
    clf = TorchClassifier.from_module(module, LABELS)
    assert np.isfinite(clf.predict_proba(X)).all()
    trained = TorchClassifier(module, **SHORT).fit(X, y)
    assert trained.loss_curve_[-1] < trained.loss_curve_[0]


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda module: TorchClassifier.from_module(module, [0, 1]),
        lambda module: TorchRegressor.from_module(module, 2),
    ],
)
def test_wrapped_module_of_another_width(wrapped):
    """Known only when there are rows: better late than a silent wrong answer."""
    estimator = wrapped(build(lambda: mlp(D, 3)))
    with pytest.raises(ValueError, match=r"module returns.*3"):
        estimator.predict(data()[0])


def test_probabilities_from_a_module_are_pointed_out():
    X, y = data()
    module = build(lambda: nn.Sequential(mlp(D, 5, 3), nn.Softmax(dim=1)))
    with pytest.warns(UserWarning, match="leave the softmax out"):
        TorchClassifier(module, **SHORT).fit(X, y)


def test_words_for_numbers_are_unseen_labels():
    X, y = load_iris(return_X_y=True)
    clf = TorchClassifier(hidden_layer_sizes=(4,), max_epochs=2, random_state=0)
    dual = DualInfluence(clf, random_state=0).fit(X[::5], y[::5])
    with pytest.raises(ValueError, match=r"unseen in fit: \['setosa'\]"):
        dual.attribute(X[:2], ["setosa", "setosa"])
    dual.fit(X[::5], np.array(["a", "b", "c"])[y[::5]])
    with pytest.raises(ValueError, match=r"unseen in fit: \[1\]"):
        dual.attribute(X[:1], [1])
