"""Recorded loops with dropout and batch normalisation."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from torch import nn
from torch.nn import functional as F

from skattrib import AdamWInfluence, TrainingRecording, record_training
from skattrib.exceptions import TrajectoryError
from tests.cases import build

N, D, C, BATCH = 24, 6, 3, 8
pytestmark = pytest.mark.touches_global_rng  # as loops with dropout do


def data(seed=0):
    rng = np.random.RandomState(seed)
    X = rng.normal(size=(N, D))
    y = np.arange(N) % C
    X[:, :C] += np.eye(C)[y]
    return X, y


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(3, 3, num_layers=2, dropout=0.3, batch_first=True)
        self.head = nn.Linear(3, C)

    def forward(self, X):
        return self.head(self.rnn(X.view(-1, 2, 3))[0][:, -1])


def normalised():
    return nn.Sequential(
        nn.Linear(D, 5, bias=False),
        nn.BatchNorm1d(5),
        nn.Tanh(),
        nn.Dropout(0.3),
        nn.Linear(5, C),
    )


NETS = {
    "dropout": lambda: nn.Sequential(
        nn.Linear(D, 5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, C)
    ),
    "both": normalised,
    "recurrent": Recurrent,
}


def loop(model, X, y, *, n_epochs=3, during=None, before_step=None, n_parts=1):
    """Train as a user does, with validation in between; return the recording."""
    rows, targets = torch.tensor(X), torch.tensor(y)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    recording = record_training(model, optimizer)
    rng = np.random.RandomState(0)
    with recording:
        for _ in range(n_epochs):
            model.train()
            for batch in np.split(rng.permutation(N), N // BATCH):
                optimizer.zero_grad()
                for part in np.array_split(batch, n_parts):
                    recording.rows(part)
                    loss = F.cross_entropy(model(rows[part]), targets[part])
                    (loss / n_parts).backward()
                if before_step is not None:
                    before_step(model, rows)
                optimizer.step()
            model.eval()
            with torch.no_grad():
                model(rows)
            torch.rand(3)  # whatever else a loop draws
            if during is not None:
                during(model)
    return recording


def recorded(name, **options):
    X, y = data()
    model = build(NETS[name])
    torch.default_generator.manual_seed(3)
    return model, loop(model, X, y, **options), X, y


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.EfficiencyWarning")
@pytest.mark.parametrize(
    ("name", "n_parts"),
    [*((name, 1) for name in NETS), ("dropout", 2), ("recurrent", 4)],
)
def test_a_loop_is_repeated_and_differentiated(name, n_parts):
    model, recording, X, y = recorded(name, n_parts=n_parts)
    clf = recording.to_classifier(X, y)  # would warn if it ended elsewhere
    again = clone(clf).fit(X, y)
    for key, value in model.state_dict().items():
        assert_allclose(again.module_.state_dict()[key], value, rtol=0, atol=1e-12)
    assert_allclose(
        clf.decision_function(X), model(torch.tensor(X)).detach(), rtol=0, atol=1e-12
    )

    influence = AdamWInfluence(FrozenEstimator(clf), outcome="margin", random_state=0)
    found = influence.fit(X, y).attribute(X[:3], y[:3])
    for row in (0, 11):
        ends = []
        for sign in (1, -1):
            weights = np.ones(N)
            weights[row] += sign * 1e-5
            moved = clone(clf).fit(X, y, sample_weight=weights)
            outputs = torch.tensor(moved.decision_function(X[:3]))
            ends.append(moved.loss_function_.margin(outputs, torch.tensor(y[:3])))
        expected = (ends[0] - ends[1]).numpy() / 2e-5
        assert_allclose(found[:, row], expected, atol=1e-7 * np.abs(found).max())


def test_a_file_holds_all_of_it(tmp_path):
    model, recording, X, y = recorded("both")
    recording.save(tmp_path / "run.safetensors", X, y)
    other = build(normalised, seed=5).train()
    again = TrainingRecording.load(tmp_path / "run.safetensors", other, X, y)
    clf = again.to_classifier(X, y)
    expected = model(torch.tensor(X)).detach()
    assert_allclose(clf.decision_function(X), expected, rtol=0, atol=1e-12)


def test_what_cannot_be_repeated_is_said():

    def twice(model, rows):
        model(rows[:4]).sum().backward()

    with pytest.raises(TrajectoryError, match=r"Step 1 took 2 forward passes.*no_grad"):
        recorded("dropout", before_step=twice)
    with pytest.raises(TrajectoryError, match=r"Step 1 took 2 .*replace batch norm"):
        recorded("both", n_parts=2)
    with pytest.raises(TrajectoryError, match=r"passes of \[3, 3, 2\] rows.*drop_last"):
        recorded("dropout", n_parts=3)
    with pytest.raises(TrajectoryError, match=r"other modes in step 2.*\.train\(\)"):
        recorded("both", before_step=lambda model, _: model[1].eval())
    attending = build(lambda: nn.TransformerEncoderLayer(D, 2, 4, dropout=0.1))
    with pytest.raises(ValueError, match=r"self_attn \(MultiheadAttention\) drops"):
        record_training(attending, torch.optim.AdamW(attending.parameters()))


def uneven_steps(model):
    """Take a step of two parts, and one of a single part."""
    X, y = (torch.tensor(part) for part in data())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = record_training(model, optimizer)
    with recording:
        for sizes in ((4, 4), (8,)):
            optimizer.zero_grad()
            for rows in torch.arange(8).split(sizes):
                recording.rows(rows)
                loss = F.cross_entropy(model(X[rows]), y[rows], reduction="sum")
                (loss / 8).backward()
            optimizer.step()
    return recording


def test_parts_that_are_not_the_same_in_each_step():
    """Without dropout any parts are repeated; what they drew is, of equal ones."""
    X, y = data()
    with pytest.raises(TrajectoryError, match=r"of \[8\] rows, after steps of 2"):
        uneven_steps(build(NETS["dropout"]))
    model = build(lambda: nn.Linear(D, C))
    recording = uneven_steps(model)
    with pytest.warns(UserWarning, match="16 of the 24 rows"):
        clf = recording.to_classifier(X, y)
    expected = model(torch.tensor(X)).detach()
    assert_allclose(clf.decision_function(X), expected, atol=1e-12)


def test_means_over_unequal_parts_are_noticed():
    X, y = data()
    model = build(lambda: nn.Linear(D, C))
    recording = loop(model, X, y, n_parts=3)
    with pytest.warns(UserWarning, match="parts of different sizes"):
        recording.to_classifier(X, y)


def test_a_pass_that_is_not_seen_is_said():
    class Beside(nn.Sequential):
        def __call__(self, X):
            return self.forward(X)

    X, y = data()
    with pytest.raises(TrajectoryError, match=r"1 called no forward pass of Beside"):
        loop(build(lambda: Beside(NETS["dropout"]())), X, y)


def test_batch_statistics_from_elsewhere_are_noticed():
    """A pass in training mode, outside of the steps, moves the statistics."""

    def measure(model):
        model.train()
        with torch.no_grad():
            model(5 * torch.tensor(data()[0]))

    _, recording, X, y = recorded("both", during=measure)
    with pytest.warns(UserWarning, match="Replaying the recording misses"):
        recording.to_classifier(X, y)
