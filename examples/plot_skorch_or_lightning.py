"""
Attribute what skorch or Lightning trained
==========================================

The networks below were trained elsewhere: one by skorch, as an estimator of
scikit-learn with callbacks, the other by a Trainer of Lightning. One more callback
records each training. After that the runs can be differentiated, and repeated without
some rows, to see whether what was predicted of these rows comes true.
"""

# %%
# 300 digits
# ----------
# Both train the same network.

import logging
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import skorch
import torch
from lightning import pytorch as pl
from sklearn.base import clone
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from skattrib import AdamWInfluence
from skattrib.evaluation import lds_score, make_weightings, retrain_outcomes
from skattrib.plotting import FaithfulnessDisplay
from skattrib.recording import LightningRecorder, SkorchRecorder

X, y = load_digits(return_X_y=True)
order = np.random.RandomState(0).permutation(len(y))
X, y = (X[order] / 16).astype("float32"), y[order]
X_train, y_train, X_test, y_test = X[:300], y[:300], X[1000:1040], y[1000:1040]


def network():
    return nn.Sequential(
        nn.Linear(64, 24), nn.LayerNorm(24), nn.GELU(), nn.Linear(24, 10)
    )


# %%
# Trained by skorch
# -----------------
# Its callbacks lower the learning rate and clip gradients; the last one records.

torch.random.manual_seed(0)
recorder = SkorchRecorder()
net = skorch.NeuralNetClassifier(
    network(),
    criterion=nn.CrossEntropyLoss,
    optimizer=torch.optim.AdamW,
    lr=1e-2,
    max_epochs=8,
    batch_size=30,
    iterator_train__shuffle=True,
    train_split=None,
    callbacks=[
        skorch.callbacks.LRScheduler(torch.optim.lr_scheduler.StepLR, step_size=4),
        skorch.callbacks.GradientNormClipping(1.0),
        recorder,
    ],
    verbose=0,
).fit(X_train, y_train)

# %%
# The recorder returns the net as a classifier of this package. On the way the run is
# replayed: had it ended elsewhere, there would be a warning here. A clone repeats the
# training.

by_skorch = recorder.to_classifier(X_train, y_train)
again = clone(by_skorch).fit(X_train, y_train)
off = np.abs(again.predict_proba(X_test) - net.predict_proba(X_test)).max()
print(f"largest difference of a probability: {off:.1e}")
print(f"test accuracy {by_skorch.score(X[1000:], y[1000:]):.3f}")

# %%
# Trained by Lightning
# --------------------
# Gradients are accumulated over two minibatches of 15: such a step is of the mean over
# their 30 rows. Lightning does not tell what the loss is; it is found in
# ``self.criterion``, and compared with what ``training_step`` returned in each step.


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = network()
        self.criterion = nn.CrossEntropyLoss(label_smoothing=0.05)

    def forward(self, X):
        return self.net(X)

    def training_step(self, batch):
        X, y = batch
        return self.criterion(self(X), y)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
torch.random.manual_seed(1)
recorder = LightningRecorder()
trainer = pl.Trainer(
    max_epochs=8,
    accumulate_grad_batches=2,
    callbacks=[recorder],
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
rows = TensorDataset(torch.tensor(X_train), torch.tensor(y_train))
with warnings.catch_warnings(action="ignore"):  # of Lightning, about workers
    trainer.fit(Classifier(), DataLoader(rows, batch_size=15, shuffle=True))

by_lightning = recorder.to_classifier(X_train, y_train)
print(f"test accuracy {by_lightning.score(X[1000:], y[1000:]):.3f}")

# %%
# Is it true?
# -----------
# The runs are repeated on random halves of the rows, and differentiated there. What
# that predicts for other halves is compared with networks that were trained on them, in
# the order and with the rates of the recorded run. Points on the dashed lines were
# predicted exactly.

weights = make_weightings(300, 64, random_state=1)
fig, axes = plt.subplots(1, 2, figsize=(8.5, 4.4), layout="constrained")
for ax, name, model in zip(axes, ("skorch", "Lightning"), (by_skorch, by_lightning)):
    influence = AdamWInfluence(
        model, n_trajectories=8, outcome="margin", random_state=0
    ).fit(X_train, y_train)
    predicted = influence.predict_outcomes(X_test, y_test, weights)
    real = retrain_outcomes(
        model, X_train, y_train, weights, X_test, y_test, outcome="margin"
    )
    FaithfulnessDisplay.from_predictions(real, predicted, outcome_name="margin", ax=ax)
    ax.set_title(f"{name}: rank correlation {lds_score(real, predicted):.2f}")
plt.show()

# %%
# The attributions behind it are one number for each test digit and training digit. The
# rows that speak most for the first test digit in the network of Lightning, and most
# against it:

digits = pd.DataFrame({"digit": y_train})
top = influence.top_units(X_test[:1], y_test[:1], n=3, data=digits)
print(f"The digit asked for is a {y_test[0]}.")
print(top.to_string(index=False))
