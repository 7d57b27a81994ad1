"""Trainings by Lightning, recorded by a callback."""

import copy
import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from skattrib import AdamWInfluence
from skattrib.exceptions import TrajectoryError
from skattrib.recording import LightningRecorder
from tests.networks.recorded_cases import N, built, data

pl = pytest.importorskip("lightning.pytorch")
pytestmark = [
    pytest.mark.touches_global_rng,  # loaders shuffle by torch's generator
    # of Lightning, with newer versions of torch
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*but have no .val_dataloader"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
]
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
WEIGHTS = torch.tensor([1.0, 2.0, 0.5])


class Net(pl.LightningModule):
    """A module as users write it."""

    def __init__(self, net, loss=F.cross_entropy, optimizer=None, schedule=None):
        super().__init__()
        self.net, self.loss = net, loss
        self.make, self.schedule = optimizer, schedule

    def forward(self, X):
        return self.net(X)

    def training_step(self, batch):
        X, y = batch
        return self.loss(self(X), y)

    def validation_step(self, batch):
        X, y = batch
        self.log("loss", self.loss(self(X), y))

    def configure_optimizers(self):
        if self.make is None:
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        else:
            optimizer = self.make(self.parameters())
        if self.schedule is None:
            return optimizer
        return [optimizer], [self.schedule(optimizer)]


def small(**options):
    return built(dtype=torch.float32, **options)


def rows_of(X, y):
    return TensorDataset(torch.tensor(X), torch.tensor(y))


def fit(model, rows, *validation, callbacks=(), loader=None, max_epochs=4, **options):
    """Train; return the recorder."""
    recorder = LightningRecorder(options.pop("module", None))
    trainer = pl.Trainer(
        max_epochs=max_epochs, callbacks=[recorder, *callbacks], **QUIET, **options
    )
    if loader is None:
        loader = {}
    if isinstance(loader, dict):
        loader = DataLoader(rows, **{"batch_size": 15, "shuffle": True, **loader})
    torch.default_generator.manual_seed(7)
    trainer.fit(model, loader, *validation)
    return recorder


def halved(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)


def sgd(params):
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


RUNS = {
    "dropout": ({"normalised": False}, {}, {}, {}),
    "batch normalisation": ({}, {}, {}, {}),
    "schedule and clipping": (
        {},
        {"schedule": halved},
        {"gradient_clip_val": 0.5},
        {},
    ),
    "class weights": (
        {},
        {"loss": nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.1)},
        {},
        {},
    ),
    "class weights in a function": (
        {"normalised": False},
        {"loss": lambda out, y: F.cross_entropy(out, y, weight=WEIGHTS)},
        {},
        {"loss": nn.CrossEntropyLoss(weight=WEIGHTS)},
    ),
    "accumulated": (
        {"normalised": False},
        {"optimizer": sgd},
        {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5},
        {},
    ),
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.EfficiencyWarning")
@pytest.mark.parametrize("name", RUNS)
def test_the_training_of_a_classifier_is_repeated(name):
    X, y = data()
    of_net, of_model, of_trainer, of_recorder = RUNS[name]
    model = Net(small(**of_net), **of_model)
    recorder = fit(model, rows_of(X, y), **of_trainer)
    clf = recorder.to_classifier(X, y, **of_recorder)  # would warn of another end
    expected = model.eval()(torch.tensor(X)).softmax(dim=1).detach()
    assert_allclose(clf.predict_proba(X), expected, rtol=1e-5)
    again = clone(clf).fit(X, y)
    assert_allclose(again.predict_proba(X), expected, rtol=1e-5)
    influence = AdamWInfluence(FrozenEstimator(clf), random_state=0).fit(X, y)
    assert (influence.attribute(X[:2], y[:2]) != 0).all()


def test_a_training_that_is_resumed(tmp_path):
    X, y = data()
    options = {"normalised": False}
    model = Net(small(**options))
    loader = DataLoader(rows_of(X, y), batch_size=15, shuffle=True)
    first = pl.Trainer(max_epochs=2, **QUIET)
    first.fit(model, loader)
    first.save_checkpoint(tmp_path / "half.ckpt")
    recorder = LightningRecorder()
    again = Net(small(**options))
    second = pl.Trainer(max_epochs=4, callbacks=[recorder], **QUIET)
    second.fit(again, loader, ckpt_path=tmp_path / "half.ckpt")
    clf = recorder.to_classifier(X, y)
    assert len(clf.loss_curve_) == 8
    assert clf.recipe.n_before == 8
    expected = again.eval()(torch.tensor(X)).softmax(dim=1).detach()
    assert_allclose(clone(clf).fit(X, y).predict_proba(X), expected, rtol=1e-5)


def test_the_training_goes_on_as_it_does():
    X, y = data()
    ends = []
    for recorded in (True, False):
        model = Net(small())
        options = {"loader": DataLoader(rows_of(X, y), batch_size=15, shuffle=True)}
        if recorded:
            fit(model, None, **options)
        else:
            torch.default_generator.manual_seed(7)
            pl.Trainer(max_epochs=4, **QUIET).fit(model, options["loader"])
        assert type(options["loader"]) is DataLoader
        ends.append(nn.utils.parameters_to_vector(model.parameters()).detach())
    assert torch.equal(*ends)


def test_accumulated_derivatives_are_those_of_the_run_repeated():
    X, y = (part.astype(float) if part.dtype.kind == "f" else part for part in data())
    model = Net(built(dtype=torch.float64, normalised=False))
    recorder = fit(model, rows_of(X, y), accumulate_grad_batches=2, precision="64-true")
    clf = recorder.to_classifier(X, y)
    influence = AdamWInfluence(FrozenEstimator(clf), random_state=0, outcome="margin")
    found = influence.fit(X, y).attribute(X[:3], y[:3])
    for row in (0, 41):
        ends = []
        for sign in (1, -1):
            weights = np.ones(N)
            weights[row] += sign * 1e-5
            moved = clone(clf).fit(X, y, sample_weight=weights)
            outputs = torch.tensor(moved.decision_function(X[:3]))
            ends.append(moved.loss_function_.margin(outputs, torch.tensor(y[:3])))
        expected = (ends[0] - ends[1]).numpy() / 2e-5
        assert_allclose(found[:, row], expected, atol=1e-7 * np.abs(found).max())


def test_loaders_of_other_kinds():
    """A part of the rows, taken ahead by workers, cut short; validation in between."""
    X, y = data()
    rows = Subset(rows_of(X, y), np.arange(50))
    validation = DataLoader(Subset(rows_of(X, y), np.arange(50, 60)), batch_size=5)
    model = Net(small(normalised=False))
    workers = {"num_workers": 1, "multiprocessing_context": "fork", "batch_size": 10}
    recorder = fit(
        model, rows, validation, loader=workers, limit_train_batches=3, max_epochs=5
    )
    with pytest.warns(UserWarning, match="11 of the 60 rows"):
        clf = recorder.to_classifier(rows_of(X, y))
    expected = model.eval()(torch.tensor(X)).softmax(dim=1).detach()
    assert_allclose(clone(clf).fit(X, y).predict_proba(X), expected, rtol=1e-5)


@pytest.mark.parametrize("loss", [F.mse_loss, nn.HuberLoss(delta=0.7), "half"])
def test_the_loss_of_a_regressor_is_found(loss):
    X, _ = data()
    y = X[:, :1] + X[:, 1:2] ** 2
    function = (lambda out, y: 0.5 * F.mse_loss(out, y)) if loss == "half" else loss
    model = Net(small(n_outputs=1), loss=function)
    recorder = fit(model, rows_of(X, y))
    reg = recorder.to_regressor(X, y)
    expected = model.eval()(torch.tensor(X)).detach()
    assert_allclose(reg.predict(X), expected, rtol=1e-5, atol=1e-6)
    again = clone(reg).fit(X, y)
    assert_allclose(again.predict(X), expected, rtol=1e-5, atol=1e-6)


class OfParts(Net):
    """Calls a part, and has a forward of its own for users."""

    def forward(self, X):
        return self.net(X).softmax(dim=1)

    def training_step(self, batch):
        return self.loss(self.net(batch[0]), batch[1])


def test_a_part_of_a_module_is_recorded():
    X, y = data()
    model = OfParts(small())
    with pytest.raises(TrajectoryError, match="no forward pass of OfParts"):
        fit(model, rows_of(X, y))
    with pytest.raises(TrajectoryError, match=r"module='nets' is no part.*\['net'\]"):
        fit(model, rows_of(X, y), module="nets")
    with pytest.raises(TrajectoryError, match=r"'net\.0' does not hold all"):
        fit(model, rows_of(X, y), module="net.0")
    model = OfParts(small())
    clf = fit(model, rows_of(X, y), module="net").to_classifier(X, y)
    assert_allclose(clf.predict_proba(X), model.eval()(torch.tensor(X)).detach(), 1e-5)

    class Headless(OfParts):
        forward = pl.LightningModule.forward

    model = Headless(small())
    clf = fit(model, rows_of(X, y)).to_classifier(X, y)
    expected = model.net.eval()(torch.tensor(X)).softmax(dim=1).detach()
    assert_allclose(clf.predict_proba(X), expected, 1e-5)


def test_mixed_precision_is_said():
    X, y = data()
    model = Net(small(normalised=False))
    recorder = fit(model, rows_of(X, y), precision="bf16-mixed")
    with pytest.warns(UserWarning, match=r"'bf16-mixed', and is replayed in") as said:
        clf = recorder.to_classifier(X, y)
    expected = model.eval()(torch.tensor(X)).detach().numpy()
    replayed = clone(clf).fit(X, y).decision_function(X)
    assert_allclose(clf.decision_function(X), expected, rtol=1e-5, atol=1e-6)
    spread = np.linalg.norm(expected - expected.mean(axis=0))
    share = np.linalg.norm(replayed - expected) / spread
    assert 0 < share < 0.1
    assert f"by {share:.1%} of what" in str(said[0].message)

    def falling(out, y):  # what is noted is right, and what is learnt another
        loss = F.cross_entropy(out, y)
        return loss.detach() - (loss - loss.detach())

    recorder = fit(Net(small(), loss=falling), rows_of(X, y), precision="bf16-mixed")
    with pytest.raises(TrajectoryError, match=r"another run. Train with precision="):
        recorder.to_classifier(X, y)


class Manual(Net):
    automatic_optimization = False


class Stream(IterableDataset):
    def __iter__(self):
        yield from rows_of(*data())


class Doubled(Net):
    def configure_optimizers(self):
        made = [torch.optim.SGD([p], lr=0.1) for p in self.parameters()]
        return made[:2]


def averaging():
    return [pl.callbacks.StochasticWeightAveraging(swa_lrs=0.1)]


BEFORE = {
    "batches": (
        {},
        {"accumulate_grad_batches": 3},
        r"4 batches.*limit_train_batches=3",
    ),
    "sizes": (
        {},
        {"accumulate_grad_batches": 2, "loader": {"batch_size": 16}},
        r"=2, and a step has batches of \[16, 12\] rows.*drop_last=True",
    ),
    "clipping": (
        {},
        {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"},
        r"gradient_clip_algorithm='value'.*use 'norm'",
    ),
    "precision": ({}, {"precision": "bf16-true"}, r"precision='bf16-true'.*'32-true'"),
    "averages": ({}, {"callbacks": averaging}, "StochasticWeightAveraging.*Leave it"),
    "stream": (
        {},
        {"loader": lambda: DataLoader(Stream(), batch_size=4)},
        "Stream, an IterableDataset.*__getitem__",
    ),
    "list": (
        {},
        {"loader": lambda: [1, 2]},
        "gives a list: .* DataLoader only",
    ),
    "two": (
        {},
        {"loader": lambda: [DataLoader(rows_of(*data())) for _ in range(2)]},
        "train_dataloader gives 2 DataLoaders in a list: give one",
    ),
    "manual": ({"kind": Manual}, {}, "automatic_optimization=False.*record_training"),
}


@pytest.mark.parametrize("name", BEFORE)
def test_what_cannot_be_repeated_is_refused_before_training(name):
    of_model, options, message = BEFORE[name]
    options = {k: v() if callable(v) else v for k, v in options.items()}
    model = of_model.get("kind", Net)(small(normalised=False))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TrajectoryError, match=message):
        fit(model, rows_of(*data()), **options)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.filterwarnings("ignore:.*fork")
def test_several_processes_are_refused():
    recorder = LightningRecorder()
    trainer = pl.Trainer(devices=2, strategy="ddp", **QUIET)
    with pytest.raises(TrajectoryError, match=r"=DDPStrategy with 2.*devices=1"):
        recorder.setup(trainer, Net(small()), "fit")
    recorder.setup(trainer, Net(small()), "test")


def test_losses_that_are_no_mean_over_rows_are_refused():
    X, y = data()

    def penalised(out, y):
        return F.cross_entropy(out, y) + 0.1 * out.square().mean()

    class Annealed(Net):
        def training_step(self, batch):
            return super().training_step(batch) * (1 if self.global_step < 7 else 0.9)

    first = r"loss of step 1 was .* as loss= .*a term besides it"
    for model, message in [
        (Net(small(), loss=penalised), first),
        (Net(small(), loss=lambda o, y: F.cross_entropy(o, y, weight=WEIGHTS)), first),
        (Annealed(small()), "loss of step 8 was"),
    ]:
        recorder = fit(model, rows_of(X, y))
        with pytest.raises(TrajectoryError, match=message):
            recorder.to_classifier(X, y)
    with pytest.raises(TrajectoryError, match=first):  # of other rows
        fit(Net(small()), rows_of(X, y)).to_classifier(X[::-1].copy(), y)


def test_batch_normalisation_is_not_accumulated():
    with pytest.raises(TrajectoryError, match="are of each pass alone"):
        fit(Net(small()), rows_of(*data()), accumulate_grad_batches=2)


def test_a_training_that_breaks_leaves_all_as_it_was():
    X, y = data()

    class Breaking(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 2:
                raise ZeroDivisionError

    loader = DataLoader(rows_of(X, y), batch_size=15)
    recorder = LightningRecorder()
    with pytest.raises(TrajectoryError, match="No training was recorded: pass this Li"):
        recorder.to_classifier(X, y)
    model = Net(small())
    broken = pl.Trainer(max_epochs=2, callbacks=[recorder, Breaking()], **QUIET)
    with pytest.raises(ZeroDivisionError):
        broken.fit(model, loader)
    assert type(loader) is DataLoader
    assert "process_dataloader" not in vars(broken.strategy)
    with pytest.raises(TrajectoryError, match="There is no recorded run"):
        recorder.to_classifier(X, y)
    pl.Trainer(max_epochs=2, callbacks=[recorder], **QUIET).fit(model, loader)
    clf = recorder.to_classifier(X, y)
    expected = model.eval()(torch.tensor(X)).softmax(dim=1).detach()
    assert_allclose(clf.predict_proba(X), expected, rtol=1e-5)


def test_a_recorder_is_a_callback_that_can_be_sent():
    recorder = LightningRecorder("net")
    assert isinstance(recorder, pl.Callback)
    for again in (pickle.loads(pickle.dumps(recorder)), copy.deepcopy(recorder)):
        assert isinstance(again, pl.Callback)
        assert type(again) is type(recorder)
        assert again.module == "net"
