"""Dropout, batch normalisation and averages: derivatives, deletion, repetition."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from skattrib import (
    AdamWInfluence,
    DualInfluence,
    EarlyStopping,
    TorchClassifier,
    TorchRegressor,
    lookahead_training,
    plan,
    record_training,
)
from skattrib.engine._functional import FunctionalModule
from skattrib.engine._row_context import RowContext, uniform
from skattrib.evaluation import retrain_outcomes
from tests.cases import build

N, D, C = 24, 16, 3
STEPS = {"max_epochs": 2, "batch_size": 8, "random_state": 0, "learning_rate": 1e-2}


def data(seed=0):
    rng = np.random.RandomState(seed)
    X = rng.normal(size=(N, D))
    return X, (X[:, :C] + 0.5 * rng.normal(size=(N, C))).argmax(axis=1)


class Attending(nn.Module):
    """Four tokens through one layer of a transformer, with dropout in attention."""

    def __init__(self, first=True, **options):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(
            4, 2, 6, dropout=0.3, batch_first=first, activation="gelu", **options
        )
        self.head, self.first = nn.Linear(4, C), first

    def forward(self, X):
        h = X.view(-1, 4, 4)
        h = (
            self.block(h)
            if self.first
            else self.block(h.transpose(0, 1)).transpose(0, 1)
        )
        return self.head(h.mean(1))


class ByFunction(nn.Module):
    """Dropout that no layer tells of."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(D, 6), nn.Linear(6, C)

    def forward(self, X):
        return self.last(F.dropout(self.first(X).tanh(), 0.4, training=self.training))


class Again(nn.Module):
    """One batch normalisation for two layers, each of which moves its statistics."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Linear(n, 6, bias=False) for n in (D, 6))
        self.norm, self.last = nn.BatchNorm1d(6), nn.Linear(6, C)

    def forward(self, X):
        h = self.norm(self.first(X)).tanh()
        return self.last(self.norm(self.second(h)).tanh())


class Recurrent(nn.Module):
    """Dropout between recurrent layers, out of reach of everything but a seed."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(4, 3, num_layers=2, dropout=0.3, batch_first=True)
        self.head = nn.Linear(3, C)

    def forward(self, X):
        return self.head(self.rnn(X.view(-1, 4, 4))[0][:, -1])


class Noisy(nn.Module):
    """Noise of torch's generator, in training alone."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(D, 6), nn.Linear(6, C)

    def forward(self, X):
        h = self.first(X).tanh()
        return self.last(h + 0.1 * torch.randn_like(h) if self.training else h)


class Mirrored(nn.Module):
    """Rows turned round at random, one in a hundred: augmentation by a layer."""

    def forward(self, X):
        if not self.training:
            return X
        turned = torch.rand(len(X), 1) < 0.01
        return torch.where(turned, X.flip(1), X)


def mlp(*between, bias=True):
    return nn.Sequential(nn.Linear(D, 6, bias=bias), *between, nn.Linear(6, C))


def normalised(p=0.0):
    return mlp(nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(p), bias=False)


def convolutional(p=0.2):
    return nn.Sequential(
        nn.Unflatten(1, (1, 4, 4)),
        nn.Conv2d(1, 3, 2, bias=False),
        nn.BatchNorm2d(3),
        nn.Tanh(),
        nn.Dropout2d(p),
        nn.Flatten(),
        nn.Linear(27, C),
    )


NETS = {
    "dropout .5": lambda: mlp(nn.Tanh(), nn.Dropout(0.5)),
    "dropout by a function": ByFunction,
    "alpha dropout, rrelu": lambda: mlp(nn.SELU(), nn.AlphaDropout(0.3), nn.RReLU()),
    "batch norm": normalised,
    "batch norm, dropout": lambda: normalised(0.3),
    "convolution": convolutional,
    "transformer": Attending,
    "layers called twice": Again,
    "recurrent dropout": Recurrent,
    "noise": Noisy,
    "augmentation": lambda: nn.Sequential(Mirrored(), *mlp(nn.Tanh())),
}


AVERAGED = {
    "ema": {"average": "ema", "average_decay": 0.8},
    "swa": {"average": "swa"},
}


def network(make, **options):
    def seeded(n_features, n_outputs):
        return make().double()

    return TorchClassifier(seeded, **{**STEPS, **options})


def differences(clf, X, y, weights, rows, queries, eps=1e-5):
    """Return central differences (q, k) of the margins in the weights of rows."""
    found = []
    for row in rows:
        ends = []
        for sign in (1, -1):
            moved = weights.copy()
            moved[row] += sign * eps
            fitted = clone(clf).fit(X, y, sample_weight=moved)
            outputs = torch.tensor(fitted.decision_function(X[queries]))
            targets = torch.tensor(y[queries])
            ends.append(fitted.loss_function_.margin(outputs, targets).numpy())
        found.append((ends[0] - ends[1]) / (2 * eps))
    return np.array(found).T


ROWS, QUERIES = [7, 20], [1, 2]
# Whose rows are all of weight 1; half of those of others have 0.1.
WHOLE = ["dropout by a function", "transformer", "recurrent dropout", "noise"]


def test_what_draws_is_known_though_two_rows_come_out_alike():
    with torch.random.fork_rng():
        model = FunctionalModule(nn.Sequential(Mirrored(), nn.Linear(D, C)))
    model.look(torch.ones(2, D))
    assert model.behaviour.draws


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.EfficiencyWarning")
@pytest.mark.parametrize("name", NETS)
def test_derivatives_are_those_of_differences(name):
    weights = np.ones(N)
    weights[::2] = 1.0 if name in WHOLE else 0.1
    assert_derivatives(network(NETS[name]), weights)


def test_weights_of_classes_do_not_count_in_batch_statistics():
    """As in torch, where only the loss knows of them; weights of rows do."""
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0, 0.5]))
    clf = network(NETS["batch norm"], loss=loss, max_epochs=1, batch_size=None)
    X, y = data()
    clf.fit(X, y)
    first = clf._problem(X, clf._learn_target(y, X)).model.module
    by_torch = first.train()(torch.tensor(X))
    expected = float(loss.double()(by_torch, torch.tensor(y)))
    assert_allclose(clf.loss_curve_, [expected], rtol=1e-12)
    moved = dict(first.named_buffers())
    for name, value in clf.module_.named_buffers():
        if "running" in name:
            assert_allclose(value, moved[name], rtol=1e-10)

    weights = np.ones(N)
    weights[::2] = 0.1
    assert_derivatives(network(NETS["batch norm"], loss=loss), weights)


@pytest.mark.parametrize("average", AVERAGED)
def test_derivatives_of_averages(average):
    weights = np.linspace(0.5, 1.5, N)
    assert_derivatives(network(normalised, **AVERAGED[average]), weights)


def assert_derivatives(clf, weights):
    X, y = data()
    expected = differences(clf, X, y, weights, ROWS, QUERIES)
    fitted = FrozenEstimator(clone(clf).fit(X, y, sample_weight=weights))
    influence = AdamWInfluence(fitted, outcome="margin", random_state=0)
    influence.fit(X, y, sample_weight=weights)
    found = influence.attribute(X[QUERIES], y[QUERIES])[:, ROWS] / weights[ROWS]
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert np.abs(expected).max() > 1e-6
    assert error < 1e-7


class OnlyMasks(RowContext):
    """Random numbers by row, and batch normalisation of torch's own."""

    def __torch_function__(self, func, kinds, args=(), kwargs=None):
        if func is F.batch_norm:
            return func(*args, **(kwargs or {}))
        return super().__torch_function__(func, kinds, args, kwargs)


def torch_loop(clf, X, y, kept, seed):
    """Train by torch alone, on the rows that are kept; return the module."""
    blank = clone(clf)
    problem = blank._problem(X, blank._learn_target(y), seed)
    module = copy.deepcopy(problem.model.module)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=1e-2)
    for t, batch in enumerate(problem.recipe.batches, 1):
        rows = torch.tensor(batch[kept[batch]])
        optimizer.zero_grad()
        with OnlyMasks(None, rows, torch.tensor(problem.recipe.seed), t):
            out = module(problem.X[rows])
        F.cross_entropy(out, problem.targets[rows]).backward()
        optimizer.step()
    return module.eval()


@pytest.mark.parametrize(
    "name", ["batch norm, dropout", "convolution", "layers called twice"]
)
def test_weight_0_is_deletion(name):
    X, y = data()
    kept = np.ones(N, dtype=bool)
    kept[1::3] = False
    clf = network(NETS[name])
    fitted = clone(clf).fit(X, y, sample_weight=kept.astype(float))
    expected = torch_loop(clf, X, y, kept, 0).state_dict()
    for key, value in fitted.module_.state_dict().items():
        if "num_batches" in key and name == "layers called twice":
            continue  # batches are counted, not calls
        assert_allclose(value, expected[key], rtol=0, atol=1e-12, err_msg=key)


# ------------------------------------------------------------------- averages
def test_ema_is_that_of_torch():
    X, y = data()
    clf = network(lambda: mlp(nn.Tanh()), average="ema", average_decay=0.8)
    fitted = clone(clf).fit(X, y)
    recipe = fitted.trajectory_.recipe
    module = copy.deepcopy(fitted.module_)
    torch.nn.utils.vector_to_parameters(recipe.initial, module.parameters())
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=1e-2)
    average = torch.optim.swa_utils.AveragedModel(
        module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.8)
    )
    for rows in recipe.batches:
        optimizer.zero_grad()
        F.cross_entropy(module(torch.tensor(X[rows])), torch.tensor(y[rows])).backward()
        optimizer.step()
        average.update_parameters(module)
    with torch.no_grad():
        expected = average(torch.tensor(X)).numpy()
    assert_allclose(fitted.decision_function(X), expected, rtol=0, atol=1e-12)


# -------------------------------------------------------------- early stopping
V = data(1)
RULE = EarlyStopping(patience=1, restore_best=False, validation_data=V)
LONG = {"max_epochs": 16, "learning_rate": 0.03}


def stopping(rule, **options):
    return network(lambda: mlp(nn.Tanh()), early_stopping=rule, **LONG, **options)


@pytest.mark.parametrize("restore_best", [False, True])
def test_a_fixed_stop_is_a_shorter_run(restore_best):
    X, y = data()
    rule = EarlyStopping(patience=2, restore_best=restore_best, validation_data=V)
    fitted = stopping(rule).fit(X, y)
    curve = fitted.validation_loss_curve_
    best = int(curve.argmin())
    assert len(curve) == best + 3 < 16
    assert fitted.n_epochs_ == (best + 1 if restore_best else best + 3)
    short = network(lambda: mlp(nn.Tanh()), learning_rate=0.03)
    short.set_params(max_epochs=fitted.n_epochs_).fit(X, y)
    assert_allclose(fitted.predict_proba(X), short.predict_proba(X), atol=1e-14)

    def attributed(clf):
        options = {"n_trajectories": 2, "n_halves": 0, "random_state": 0}
        influence = AdamWInfluence(clf, **options).fit(X, y)
        halves = np.arange(N)[None] % 2 == [[0], [1]]
        return influence.attribute(*V), retrain_outcomes(
            influence.estimator_, X, y, halves, *V
        )

    for found, expected in zip(attributed(fitted), attributed(short), strict=True):
        assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_validation_loss_is_that_of_the_loss():
    X, y = data()
    fitted = stopping(EarlyStopping(patience=16, restore_best=False, validation_data=V))
    fitted.fit(X, y)
    own = fitted.predict_log_proba(V[0])[np.arange(N), V[1]]
    assert_allclose(fitted.validation_loss_curve_[-1], -own.mean(), rtol=1e-12)


def test_rows_held_out_have_no_attribution():
    X, y = data()
    clf = stopping(EarlyStopping(patience=2, validation_fraction=0.25))
    for kind, options in (
        (AdamWInfluence, {"n_trajectories": 2, "n_halves": 0}),
        (AdamWInfluence, {"n_trajectories": 2, "n_halves": 8}),
        (DualInfluence, {"n_halves": 8}),
    ):
        influence = kind(clf, random_state=0, **options)
        with pytest.warns(UserWarning, match="held out 6 of the 24 rows") as caught:
            influence.fit(X, y)
        assert __file__ in {warning.filename for warning in caught}
        attributions = influence.attribute(*V)
        held_out = influence.estimator_._held_out
        assert np.bincount(y[held_out], minlength=C).max() <= 3  # of every class
        assert not attributions[:, held_out].any()
        assert (attributions != 0).sum() >= N * (N - 6) // 2


def test_each_run_stops_by_itself():
    """Differences of the outcomes of a half run whose stop does not move."""
    X, y = data()
    rule = EarlyStopping(patience=2, redecide=True, validation_data=V)
    influence = AdamWInfluence(
        stopping(rule), n_trajectories=4, n_halves=0, outcome="margin", random_state=0
    ).fit(X, y)
    (runs,) = influence._runs
    stops = runs.shares.argmax(dim=1)
    assert len(set(stops.tolist())) > 1
    for k, weights in enumerate(influence.weights_):
        alone = clone(influence.estimator_).set_params(
            early_stopping=EarlyStopping(
                n_epochs=int(stops[k]) // 3, validation_data=V, restore_best=False
            )
        )
        expected = differences(alone, *data(), weights, ROWS, QUERIES)
        queries = influence._derivatives.queries(X[QUERIES], y[QUERIES], "margin")
        found = influence._each_run(queries)[0, k][:, ROWS]
        assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


BAD = {
    "patience": ({"patience": 0}, "patience=0 must be a whole number of at least 1"),
    "delta": ({"min_delta": -1}, "min_delta=-1 must be a number of at least 0"),
    "fraction": ({"validation_fraction": 1.0}, "must be between 0 and 1"),
    "data": ({"validation_data": 3}, r"must be a pair \(X, y\), or a .*, got int"),
    "epochs": ({"n_epochs": 1.5}, "n_epochs=1.5 must be a whole number"),
    "not finite": ({"min_delta": np.nan}, "min_delta=nan must be a number"),
    "no targets": ({"validation_data": (V[0], None)}, "got a pair with None"),
    "yes": ({"redecide": "yes"}, "redecide='yes' must be True or False"),
}


@pytest.mark.parametrize("name", BAD)
def test_rules_that_cannot_be(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        EarlyStopping(**options)


def test_bad_validation_rows():
    X, y = data()
    few = np.r_[np.zeros(N - 2, dtype=int), 1, 2]
    with pytest.raises(
        ValueError, match=r"cannot hold out 10% of 24 rows.*least popul"
    ):
        stopping(True).fit(X, few)
    narrow = EarlyStopping(validation_data=(V[0][:, :3], V[1]))
    with pytest.raises(ValueError, match=r"X of shape \(24, 3\).*shape \(16,\)"):
        stopping(narrow).fit(X, y)
    with pytest.raises(ValueError, match="held_out has row 99"):
        stopping(EarlyStopping(held_out=[99])).fit(X, y)
    with pytest.raises(ValueError, match=r"held_out must be posi.*bool.*flatnonzero"):
        stopping(EarlyStopping(held_out=y == 1)).fit(X, y)
    with pytest.raises(ValueError, match="held_out has 24 of 24 rows"):
        stopping(EarlyStopping(held_out=range(N))).fit(X, y)
    for rows, targets, message in (
        (V[0] + np.nan, V[1], "contains NaN"),
        (V[0], V[1] + 7, "labels unseen in fit"),
        (pd.DataFrame(V[0])[range(D)[::-1]], V[1], r"X with columns \[15, 14"),
    ):
        rule = EarlyStopping(validation_data=(rows, targets))
        with pytest.raises(ValueError, match=f"EarlyStopping: validation.*{message}"):
            stopping(rule).fit(pd.DataFrame(X).rename(columns=str), y)
    with pytest.raises(ValueError, match="sample_weight is 0 for all rows but those"):
        stopping(EarlyStopping(held_out=[1, 2])).fit(
            X, y, np.isin(np.arange(N), [1, 2])
        )
    with pytest.raises(ValueError, match=r"average='swa'.*early_stopping"):
        stopping(RULE, average="swa").fit(X, y)
    with pytest.raises(ValueError, match="takes no average='ema'"):
        lookahead_training(network(normalised, average="ema"), X, y, *V)


# ------------------------------------------------------------------ what is said
def test_a_bias_that_is_taken_away_is_pointed_out():
    X, y = data()
    clf = network(lambda: mlp(nn.BatchNorm1d(6)))
    with pytest.warns(UserWarning, match=r"layer 0 has a bias.*bias=False") as caught:
        clf.fit(X, y)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.BatchNorm1d(6, momentum=None), r"1 \(BatchNorm1d\) averages.*momentum=0.1"),
        (nn.BatchNorm1d(6, track_running_stats=False), "track_running_stats=True"),
        (nn.InstanceNorm1d(6, track_running_stats=True), "track_running_stats=False"),
    ],
)
def test_statistics_that_are_refused(layer, message):
    with pytest.raises(ValueError, match=message):
        network(lambda: mlp(layer)).fit(*data())


@pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}])
def test_vectors_of_words_that_are_refused(options):
    """They are written in place, or have gradients that count words of a batch."""

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(9, 4, **options)
            self.last = nn.Linear(4, C)

        def forward(self, X):
            return self.last(self.words(X.long() % 9).mean(dim=1))

    name, usual = next(iter(options)), {"max_norm": None}
    message = rf"words \(Embedding\) .*use {name}={usual.get(name, False)}"
    X, y = data()
    with pytest.raises(ValueError, match=message):
        network(Words).fit(X, y)
    with torch.random.fork_rng():
        module = Words().double()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=message):
        record_training(module, optimizer)


class Folded(nn.Module):
    """Batch statistics of the halves of all rows together."""

    def __init__(self):
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(D // 2), nn.Linear(D, C)

    def forward(self, X):
        return self.last(self.norm(X.reshape(-1, D // 2)).reshape(-1, D))


class OwnStatistics(nn.Module):
    """Batch normalisation by a function, with statistics of its own or none."""

    def __init__(self, kept=True):
        super().__init__()
        self.last, self.kept = nn.Linear(D, C), kept
        self.register_buffer("mean", torch.zeros(D))
        self.register_buffer("var", torch.ones(D))

    def forward(self, X):
        if self.kept:
            X = F.batch_norm(X, self.mean, self.var, training=self.training)
        elif self.training:
            X = F.batch_norm(X, None, None, training=True)
        return self.last(X)


class Checkpoint(nn.Module):
    """Dropout that the backward pass would draw again."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(D, 6), nn.Linear(6, C)
        self.drop = nn.Dropout(0.5)

    def forward(self, X):
        return self.last(checkpoint(self._start, X, use_reentrant=False))

    def _start(self, X):
        return self.drop(self.first(X))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Folded, r"Folded normalises.*not the rows.*first axis"),
        (OwnStatistics, r"OwnStatistics keeps running.*nn\.BatchNorm1d"),
        (lambda: OwnStatistics(False), r"OwnStatistics normalises.*track_running"),
        (Checkpoint, r"Checkpoint has a checkpoint.*leave it out"),
    ],
)
def test_modules_that_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        network(make).fit(*data())


class Colder(nn.Module):
    """Other outputs in training, without random numbers or other rows."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(D, C)

    def forward(self, X):
        return self.last(X) / (1.0 if self.training else 3.0)


def test_predictions_are_those_of_evaluation_mode():
    X, y = data()
    fitted = network(Colder).fit(X, y)
    assert not fitted.module_.training
    layer = fitted.module_.last
    expected = (X @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()) / 3
    assert_allclose(fitted.decision_function(X), expected, rtol=0, atol=1e-12)


def test_modules_as_they_come():
    """One output with batch normalisation, lazy layers, a scalar mask."""
    X, y = data()
    single = build(
        lambda: nn.Sequential(nn.BatchNorm1d(D), nn.Dropout(), nn.Linear(D, 1))
    )
    clf = TorchClassifier(single, **STEPS).fit(X, y > 0)
    assert clf.decision_function(X).shape == (N,)
    lazy = network(
        lambda: nn.Sequential(
            nn.LazyLinear(6, bias=False), nn.LazyBatchNorm1d()
        ).append(nn.Linear(6, C))
    ).fit(X, y)
    assert lazy.trajectory_.recipe.statistics.tolist() == [0.0] * 6 + [1.0] * 6
    scaled = network(Scaled).fit(X, y)
    assert scaled.trajectory_.recipe.seed


class Scaled(nn.Module):
    """All rows of a batch dropped together."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(D, C)

    def forward(self, X):
        return self.last(X) * F.dropout(X.new_tensor(1.0), 0.5, self.training)


def test_a_bias_before_statistics_that_stay_is_of_use(recwarn):
    module = build(lambda: mlp(nn.BatchNorm1d(6)))
    module[1].eval()
    TorchClassifier(module, **STEPS).fit(*data())
    assert not [w for w in recwarn if "has a bias" in str(w.message)]


def test_rows_held_out_do_not_balance_classes():
    X, y = data()
    rule = EarlyStopping(n_epochs=2, held_out=[0, 1, 2])
    clf = network(lambda: mlp(nn.Tanh()), early_stopping=rule, class_weight="balanced")
    weights = np.ones(N)
    weights[:3] = 0.0
    found = clone(clf).fit(X, y).decision_function(X)
    expected = clone(clf).fit(X, y, sample_weight=weights).decision_function(X)
    assert_allclose(found, expected, rtol=0, atol=0)


def test_a_curve_of_an_earlier_fit_is_forgotten():
    X, y = data()
    clf = stopping(RULE).fit(X, y)
    assert len(clf.validation_loss_curve_) >= clf.n_epochs_
    clf.set_params(early_stopping=False, max_epochs=1).fit(X, y)
    assert not hasattr(clf, "validation_loss_curve_")


def test_a_recorded_loop_with_statistics_that_stay():
    X, y = data()
    module = build(lambda: normalised(0.5)).double().eval()
    module[1].running_mean.add_(1.0)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    recording = record_training(module, optimizer)
    with recording:
        for rows in torch.arange(N).split(8):
            recording.rows(rows)
            optimizer.zero_grad()
            out = module(torch.tensor(X)[rows])
            F.cross_entropy(out, torch.tensor(y)[rows]).backward()
            optimizer.step()
    trained = FrozenEstimator(recording.to_classifier(X, y))
    found = AdamWInfluence(trained, n_halves=0, random_state=0).fit(X, y)
    sizes = np.abs(found.attribute(*V)).max(axis=1)
    assert np.isfinite(sizes).all()
    assert (sizes > 0).all()


def test_the_cost_of_a_network_with_statistics():
    X, y = data()
    clf = network(normalised, average="ema", early_stopping=RULE)
    table = plan(AdamWInfluence(clf, n_halves=0, random_state=0), X, y)
    assert "AdamWInfluence" in str(table)


def test_own_random_numbers():
    """Half runs draw their own masks; trainings of one seed draw the same."""
    X, y = data()
    clf = network(NETS["dropout .5"])
    influence = AdamWInfluence(clf, n_trajectories=4, n_halves=0, random_state=0)
    influence.fit(X, y)
    seeds = influence._runs[0].seeds.tolist()
    assert len(set(seeds)) == 4
    assert influence._own_run.seeds is None
    once, twice = (clone(clf).fit(X, y).predict_proba(X) for _ in range(2))
    assert_allclose(once, twice, rtol=0, atol=0)


def test_masks_do_not_depend_on_the_batch():
    seed, ids = torch.tensor(3), torch.arange(50)
    whole = uniform(seed, 2, 1, ids, 8)
    part = uniform(seed, 2, 1, ids[[7, 31]], 8)
    assert torch.equal(whole[[7, 31]], part)
    many = uniform(seed, 2, 1, torch.arange(4000), 25)
    assert abs(float(many.mean()) - 0.5) < 0.005
    others = [uniform(seed + 1, 2, 1, ids, 8), uniform(seed, 3, 1, ids, 8)]
    others.append(uniform(seed, 2, 2, ids, 8))
    for other in others:
        both = torch.stack([whole.flatten(), other.flatten()])
        assert abs(float(torch.corrcoef(both)[0, 1])) < 0.2


def test_attention_without_dropout_is_that_of_torch():
    block = build(
        lambda: nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
    ).double()
    X = torch.linspace(-1, 1, 5 * 3 * 4, dtype=torch.float64).view(5, 3, 4)
    with RowContext(None, torch.arange(5), torch.tensor(0), 1):
        inside = block(X), *block.self_attn(X, X, X)
    outside = block(X), *block.self_attn(X, X, X)
    for one, other in zip(inside, outside, strict=True):
        assert_allclose(one.detach(), other.detach(), rtol=0, atol=1e-12)


def test_regression_with_batch_norm():
    rng = np.random.RandomState(0)
    X = rng.normal(size=(N, D))

    def build(n_features, n_outputs):
        return nn.Sequential(
            nn.Linear(n_features, 6, bias=False),
            nn.BatchNorm1d(6),
            nn.ReLU(),
            nn.Linear(6, n_outputs),
        )

    reg = TorchRegressor(build, **STEPS)
    influence = AdamWInfluence(reg, n_trajectories=2, n_halves=4, random_state=0)
    with pytest.warns(UserWarning, match="too few"):
        influence.fit(X, X[:, 0])
    assert influence.attribute(X[:2], X[:2, 0]).shape == (2, N)
    assert int(influence.estimator_.module_[1].num_batches_tracked) == 6
