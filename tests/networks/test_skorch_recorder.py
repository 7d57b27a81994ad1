"""Trainings of skorch nets, recorded by a callback."""

import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from torch import nn

from skattrib import AdamWInfluence
from skattrib.exceptions import TrajectoryError
from skattrib.recording import SkorchRecorder
from tests.networks.recorded_cases import N, built, data, layers

skorch = pytest.importorskip("skorch")
pytestmark = pytest.mark.touches_global_rng  # skorch shuffles by torch's generator

OPTIONS = {
    "optimizer": torch.optim.AdamW,
    "lr": 1e-2,
    "max_epochs": 4,
    "batch_size": 16,
    "iterator_train__shuffle": True,
    "verbose": 0,
}


def scheduled():
    schedule = torch.optim.lr_scheduler.StepLR
    return [
        skorch.callbacks.LRScheduler(schedule, step_size=2),
        skorch.callbacks.GradientNormClipping(0.5),
    ]


CLASSIFIERS = {
    "logits": ((), {"criterion": nn.CrossEntropyLoss, "train_split": None}),
    "probabilities": ((nn.Softmax(dim=1),), {}),  # skorch's defaults
    "schedule and clipping": (
        (),
        {"criterion": nn.CrossEntropyLoss, "callbacks": scheduled},
    ),
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.EfficiencyWarning")
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_training_of_a_classifier_is_repeated(name):
    X, y = data()
    end, options = CLASSIFIERS[name]
    recorder = SkorchRecorder()
    options = {**OPTIONS, **options}
    callbacks = [*options.pop("callbacks", list)(), recorder]
    module = built(*end, dtype=torch.float32)
    net = skorch.NeuralNetClassifier(module, callbacks=callbacks, **options).fit(X, y)
    if options.get("train_split", 0) is None:
        clf = recorder.to_classifier(X, y)
    else:  # a fifth of the rows is held out
        with pytest.warns(UserWarning, match="12 of the 60 rows"):
            clf = recorder.to_classifier(X, y)
    again = clone(clf).fit(X, y)
    expected = net.predict_proba(X)
    assert_allclose(clf.predict_proba(X), expected, rtol=1e-5, atol=1e-6)
    assert_allclose(again.predict_proba(X), expected, rtol=1e-4, atol=1e-5)
    influence = AdamWInfluence(FrozenEstimator(clf), random_state=0).fit(X, y)
    attributed = (influence.attribute(X[:2], y[:2]) != 0).any(axis=0)
    assert attributed.sum() == N if options.get("train_split", 0) is None else N - 12


def test_a_regressor_and_what_cannot_be_recorded():
    X, _ = data()
    y = X[:, :1]
    recorder = SkorchRecorder()
    with pytest.raises(TrajectoryError, match="No training was recorded"):
        recorder.to_regressor(X, y)
    module = built(n_outputs=1, dtype=torch.float32)
    net = skorch.NeuralNetRegressor(
        module, callbacks=[recorder], **{**OPTIONS, "train_split": None}
    ).fit(X, y)
    reg = recorder.to_regressor(X, y)
    assert_allclose(reg.predict(X), net.predict(X), rtol=1e-4, atol=1e-5)
    with pytest.raises(TrajectoryError, match=r"net\.fit, not partial_fit"):
        net.partial_fit(X, y)


def test_a_training_that_breaks_leaves_a_recorder_of_use():
    X, y = data()

    class Breaking(skorch.callbacks.Callback):
        left = 2

        def on_batch_end(self, net, **kwargs):
            self.left -= 1
            if not self.left:
                raise ZeroDivisionError

    recorder = SkorchRecorder()
    options = {**OPTIONS, "criterion": nn.CrossEntropyLoss, "train_split": None}
    net = skorch.NeuralNetClassifier(
        layers, callbacks=[Breaking(), recorder], **options
    )
    with pytest.raises(ZeroDivisionError):
        net.fit(X, y)
    net.fit(X, y)
    clf = recorder.to_classifier(X, y)
    assert_allclose(clf.predict_proba(X), net.predict_proba(X), rtol=1e-5, atol=1e-6)


class Accumulating(skorch.NeuralNetClassifier):
    """Takes a step every second minibatch, as skorch's documentation does it."""

    def get_loss(self, *args, **kwargs):
        return super().get_loss(*args, **kwargs) / 2

    def train_step(self, batch, **fit_params):
        step = self.train_step_single(batch, **fit_params)
        if len(self.history[-1, "batches"]) % 2 == 0:
            self.optimizer_.step()
            self.optimizer_.zero_grad()
        return step


def test_accumulated_gradients():
    X, y = data()
    recorder = SkorchRecorder()
    options = {**OPTIONS, "criterion": nn.CrossEntropyLoss, "train_split": None}
    modules = built(dtype=torch.float32), layers(normalised=False)
    for module, size in zip(modules, (15, 20)):
        with pytest.raises(TrajectoryError, match="accumulate"):
            Accumulating(
                module, **{**options, "batch_size": size}, callbacks=[recorder]
            ).fit(X, y)
    module = built(dtype=torch.float32, normalised=False)
    net = Accumulating(module, **{**options, "batch_size": 15}, callbacks=[recorder])
    net.fit(X, y)
    clf = recorder.to_classifier(X, y)
    assert len(clf.loss_curve_) == 8
    again = clone(clf).fit(X, y)
    assert_allclose(again.predict_proba(X), net.predict_proba(X), rtol=1e-5, atol=1e-6)
