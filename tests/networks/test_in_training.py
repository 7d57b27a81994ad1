"""Dropout, batch normalisation and averages: derivatives, deletion, repetition."""

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from torch import nn
from torch.nn import functional as F

from skattrib import AdamWInfluence, DualInfluence, TorchClassifier
from skattrib.engine._row_context import RowContext

N, D, C = 24, 16, 3
STEPS = {"max_epochs": 3, "batch_size": 8, "random_state": 0, "learning_rate": 1e-2}


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
        h = self.block(h) if self.first else self.block(h.transpose(0, 1)).transpose(0, 1)
        return self.head(h.mean(1))


class ByFunction(nn.Module):
    """Dropout that no layer tells of."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(D, 6), nn.Linear(6, C)

    def forward(self, X):
        return self.last(F.dropout(self.first(X).tanh(), 0.4, training=self.training))


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
    "dropout .2": lambda: mlp(nn.Tanh(), nn.Dropout(0.2)),
    "dropout .5": lambda: mlp(nn.Tanh(), nn.Dropout(0.5)),
    "dropout by a function": ByFunction,
    "alpha dropout": lambda: mlp(nn.SELU(), nn.AlphaDropout(0.3)),
    "rrelu": lambda: mlp(nn.RReLU()),
    "batch norm": normalised,
    "batch norm, dropout": lambda: normalised(0.3),
    "convolution": convolutional,
    "transformer": Attending,
    "transformer, sequence first": lambda: Attending(first=False),
    "recurrent dropout": Recurrent,
    "noise": Noisy,
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


ROWS, QUERIES = [0, 7, 13, 20], [1, 2, 3]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.EfficiencyWarning")
@pytest.mark.parametrize(
    ("name", "half"),
    [(name, False) for name in NETS]
    + [("batch norm", True), ("convolution", True), ("dropout .5", True)],
)
def test_derivatives_are_those_of_differences(name, half):
    X, y = data()
    weights = np.ones(N)
    weights[::2] = 0.05 if half else 1.0
    clf = network(NETS[name])
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
    "name", ["dropout .5", "batch norm", "batch norm, dropout", "convolution"]
)
def test_weight_0_is_deletion(name):
    X, y = data()
    kept = np.ones(N, dtype=bool)
    kept[1::3] = False
    clf = network(NETS[name])
    fitted = clone(clf).fit(X, y, sample_weight=kept.astype(float))
    expected = torch_loop(clf, X, y, kept, 0).state_dict()
    for key, value in fitted.module_.state_dict().items():
        assert_allclose(value, expected[key], rtol=0, atol=1e-12, err_msg=key)
