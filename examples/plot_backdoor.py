"""
Who taught the network this trick?
==================================

Somebody has put a bright corner on fifty training images and called them all 0. The
network learned the trick: any digit with the corner is a 0. From one such prediction,
an index of a few hundred bytes a row finds the images that taught it.
"""

# %%
# A poisoned training set
# -----------------------

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator

from skattrib import RISEValuator, TorchClassifier
from skattrib.evaluation import retrain_outcomes, retrieval_score


def with_corner(images):
    images = images.copy().reshape(-1, 8, 8)
    images[:, :2, :2] = 1.0
    return images.reshape(-1, 64)


X, y = load_digits(return_X_y=True)
order = np.random.RandomState(0).permutation(len(y))
X, y = X[order] / 16, y[order].copy()
X_train, y_train = X[:1000].copy(), y[:1000].copy()
poisoned = np.zeros(1000, dtype=bool)
poisoned[np.flatnonzero(y_train != 0)[::18][:50]] = True
X_train[poisoned], y_train[poisoned] = with_corner(X_train[poisoned]), 0

network = TorchClassifier(
    hidden_layer_sizes=(16,), batch_size=32, max_epochs=30, random_state=0
).fit(X_train, y_train)
others = 1000 + np.flatnonzero(y[1000:] != 0)[:60]
tricked = with_corner(X[others])
print(f"as they are: {(network.predict(X[others]) == y[others]).mean():.0%} right")
print(f"with the corner: {(network.predict(tricked) == 0).mean():.0%} are called 0")

# %%
# Search the index
# ----------------
# What the network says is explained, so no labels are needed.

rise = RISEValuator(FrozenEstimator(network), n_components=128, random_state=0)
rise.fit(X_train, y_train)
scores, rows = rise.retrieve(tricked, n=10)
print(f"{rise.bytes_per_row_} bytes a row")
print(f"planted among the ten most similar: {poisoned[rows].mean():.0%}, of all: 5%")

fig, axes = plt.subplots(4, 9, figsize=(9, 4.6), layout="constrained")
for line, q in zip(axes, (0, 7, 20, 33), strict=True):
    images = [tricked[q], *X_train[rows[q, :8]]]
    for k, (ax, image) in enumerate(zip(line, images, strict=True)):
        ax.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[])
        planted = k > 0 and poisoned[rows[q, k - 1]]
        for side in ax.spines.values():
            side.set(
                color="#D55E00" if planted else "0.7", linewidth=3 if planted else 1
            )
        if k == 0:
            ax.set_ylabel("query", fontsize=9)
axes[0, 0].set_title("called 0", fontsize=9)
axes[0, 4].set_title("most similar rows, planted ones framed", fontsize=9)
plt.show()

# %%
# Compare with what costs nothing
# -------------------------------
# All planted rows have the label 0, and so have a hundred honest ones: most of the area
# under the ROC curve comes from the label alone. Average precision tells them apart.

relevance = np.tile(poisoned, (60, 1))
for name, found in {
    "sketched gradients": rise.attribute(tricked),
    "the label 0": np.tile(1.0 * (y_train == 0), (60, 1)),
    "nearest images": -np.linalg.norm(tricked[:, None] - X_train, axis=2),
}.items():
    auc = retrieval_score(found, relevance, metric="roc_auc")
    ap = retrieval_score(found, relevance, metric="average_precision")
    print(f"{name:20} ROC AUC {auc:.2f}, average precision {ap:.2f}")

# %%
# Similar is not the same as responsible
# --------------------------------------
# Leave the found rows out and train again. The trick survives as long as enough planted
# rows are left: they stand in for each other.

ranked = np.argsort(-rise.attribute(tricked).mean(axis=0), kind="stable")
left_out = {
    "50 ranked first": ranked[:50],
    "100 ranked first": ranked[:100],
    "the 50 planted": np.flatnonzero(poisoned),
}
weights = np.ones((4, 1000))
for row, out in zip(weights[1:], left_out.values(), strict=True):
    row[out] = 0
zeros = np.zeros(60, dtype=int)
outcomes = retrain_outcomes(network, X_train, y_train, weights, tricked, zeros)
chance = np.exp(outcomes).mean(axis=1)
print(f"chance of a 0 with all rows: {chance[0]:.2f}")
for (name, out), value in zip(left_out.items(), chance[1:], strict=True):
    print(f"without {name} ({poisoned[out].sum()} planted): {value:.2f}")
