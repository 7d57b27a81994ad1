"""
Which digits taught it this?
============================

A small network learns handwritten digits. For three test images we ask which training
images raised, and which lowered, the probability that it gives to the true digit. Then
we check the answer: the network is trained again on random halves of the training
images, and what it does is compared with what was predicted for each half.

Run as a script with a file name, ``python examples/plot_digits.py figure.png``, it
saves the figure there.
"""

# %%
# Train, and attribute
# --------------------
# The digits are 8 x 8 pixels, 500 of them for training. ``DualInfluence`` trains the
# network that it is given, replaces it by its tangent at the trained weights, and works
# out what happens to it when one training image is left out, for every image in turn.

import sys
import time

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skattrib import DualInfluence, TorchClassifier
from skattrib.evaluation import lds_score, make_weightings, retrain_outcomes

X, y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32)
X_train, X_test, y_train, y_test = train_test_split(
    X, y, train_size=500, stratify=y, random_state=0
)

network = TorchClassifier(hidden_layer_sizes=(16,), max_epochs=60, random_state=0)
start = time.perf_counter()
dual = DualInfluence(network, random_state=0).fit(X_train, y_train)
fit_time = time.perf_counter() - start
accuracy = dual.estimator_.score(X_test, y_test)
print(f"test accuracy {accuracy:.3f} on {len(X_test)} images")

# %%
# ``attribute`` gives a number for each pair of a test and a training image. It is the
# log-probability of the true digit with the training image minus that without it:
# positive where the training image helped.

X_query, y_query = X_test[:200], y_test[:200]
start = time.perf_counter()
attributions = dual.attribute(X_query, y_query)
attribute_time = time.perf_counter() - start
print(
    f"{len(X_query)} x {dual.n_units_} attributions: {attribute_time:.2f} s, after "
    f"{fit_time:.2f} s for training and solving"
)

# %%
# The truth, by retraining
# ------------------------
# 64 networks are trained on random halves of the 500 images, from the same initial
# weights, and their log-probabilities are compared with the predicted ones. The linear
# datamodeling score (LDS) is the rank correlation over the 64 halves, averaged over the
# test images: 1 is a perfect ranking, 0 is chance. Its interval is for new halves and
# new test images, not for new initial weights.

halves = make_weightings(dual.n_units_, 64, random_state=0)
start = time.perf_counter()
retrained = retrain_outcomes(network, X_train, y_train, halves, X_query, y_query)
retrain_time = time.perf_counter() - start
start = time.perf_counter()
predicted = dual.predict_outcomes(X_query, y_query, halves)
predict_time = time.perf_counter() - start
lds = lds_score(retrained, predicted, confidence=0.95, random_state=0)
print(
    f"64 networks on half of the images: {retrain_time:.2f} s to train, "
    f"{predict_time:.2f} s to predict"
)
print(f"LDS {lds.score:.2f}, 95 % interval {lds.low:.2f} to {lds.high:.2f}")

# %%
# For comparison, a guess without any model: an image helps the images of its own digit
# and hurts the others, in proportion to how alike their pixels are.

centre = X_train.mean(axis=0)
alike = (X_query - centre) @ (X_train - centre).T
signed = np.where(y_query[:, None] == y_train, alike, -alike / 9)
guessed = lds_score(retrained, halves @ signed.T, confidence=0.95, random_state=0)
print(f"LDS {guessed.score:.2f} by likeness of the pixels alone")

# %%
# At this size training 64 networks at once is quick, quicker than predicting all of the
# halves. What attribution saves is the 500 networks that leave one image out, and it
# needs no recipe for training again.
#
# Three test images
# -----------------
# A typical one, the one that the network got right with the least confidence, and the
# one that it got most wrong. The log-probability of the true digit decides.

outcome = dual.predict_outcomes(X_query, y_query, np.ones((1, dual.n_units_)))[0]
guess = dual.estimator_.predict(X_query)
right = np.flatnonzero(guess == y_query)
queries = {
    "typical": right[np.argsort(outcome[right])[len(right) // 2]],
    "least sure": right[np.argmin(outcome[right])],
    "most wrong": np.argmin(outcome),
}

# %%
# Each row of the figure is a test image, the four training images that raised its
# outcome most, the four that lowered it most, and the check: one dot for each half.
# Dots on the dashed line would be predicted exactly; a steeper cloud means that
# retraining moves the outcome further than predicted.

HELPED, HURT = "#0072B2", "#D55E00"
N_SHOWN = 4


def draw_digit(ax, pixels, text, colour="black"):
    ax.imshow(pixels.reshape(8, 8), cmap="gray_r")
    ax.set(xticks=[], yticks=[])
    ax.set_xlabel(text, color=colour, fontsize=10, labelpad=3)
    for spine in ax.spines.values():
        spine.set(color=colour, linewidth=2)


def draw_check(ax, x, y, score):
    ax.scatter(x, y, s=12, color="#555555", alpha=0.7, linewidths=0)
    ends = [min(x.min(), y.min()), max(x.max(), y.max())]
    ax.plot(ends, ends, "--", color="black", linewidth=1)
    ax.set_title(f"rank correlation {score:.2f}", fontsize=10)
    ax.set_ylabel("retrained", fontsize=10)
    ax.tick_params(labelsize=8)


fig = plt.figure(figsize=(11, 6), layout="constrained")
widths = [1.3, 0.1, *[1] * N_SHOWN, 0.2, *[1] * N_SHOWN, 0.2, 3]
grid = fig.add_gridspec(len(queries), len(widths), width_ratios=widths)
for row, (kind, q) in enumerate(queries.items()):
    ax = fig.add_subplot(grid[row, 0])
    draw_digit(ax, X_query[q], f"label {y_query[q]}\nguess {guess[q]}")
    ax.set_title(kind, fontsize=11)
    order = np.argsort(attributions[q])
    for side, first, title, colour in (
        (order[::-1], 2, "helped most", HELPED),
        (order, 3 + N_SHOWN, "hurt most", HURT),
    ):
        for column, j in enumerate(side[:N_SHOWN], start=first):
            ax = fig.add_subplot(grid[row, column])
            text = f"{y_train[j]}\n{attributions[q, j]:+.2g}"
            draw_digit(ax, X_train[j], text, colour)
            if row == 0 and column == first:
                ax.set_title(title, fontsize=11, color=colour, loc="left")
    ax = fig.add_subplot(grid[row, -1])
    score = lds_score(retrained[:, [q]], predicted[:, [q]])
    draw_check(ax, predicted[:, q], retrained[:, q], score)
ax.set_xlabel("predicted log-probability", fontsize=10)
fig.suptitle(
    "Which training images taught it this?   Checked on 200 test images: "
    f"LDS {lds.score:.2f} ({lds.low:.2f} to {lds.high:.2f})",
    fontsize=13,
)
if len(sys.argv) > 1:
    fig.savefig(sys.argv[1], dpi=100)
plt.show()
