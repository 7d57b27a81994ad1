"""
When did a row matter?
======================

AdamW does not take the steps that SGD would take: it divides by what gradients have
been. Influence scores along a training run that forget this get the order of rows
wrong. Here the actual run is differentiated, optimizer state included,
and both are compared with networks trained without each row. Then a row's effect is
taken apart into the steps of training.
"""

# %%
# One run, differentiated
# -----------------------
# Two hundred digits, a small network, minibatches of 25 for six epochs.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from skattrib import AdamWInfluence, TorchClassifier
from skattrib.evaluation import loo_score, make_weightings, retrain_outcomes
from skattrib.plotting import TrajectoryDisplay

X, y = load_digits(return_X_y=True)
order = np.random.RandomState(0).permutation(len(y))
X, y = X[order] / 16, y[order]
X_train, y_train, X_test, y_test = X[:200], y[:200], X[1000:1020], y[1000:1020]

network = TorchClassifier(
    hidden_layer_sizes=(16,),
    batch_size=25,
    max_epochs=6,
    learning_rate=3e-3,
    random_state=0,
)
found = {}
for dynamics in ("recorded", "sgd"):
    influence = AdamWInfluence(
        network, inclusion=1.0, dynamics=dynamics, outcome="margin", random_state=0
    ).fit(X_train, y_train)
    found[dynamics] = influence.attribute(X_test, y_test)

# %%
# Against networks trained without each row
# -----------------------------------------

without = make_weightings(200, None, kind="loo")
weights = np.vstack([np.ones((1, 200)), without])
outcomes = retrain_outcomes(
    network, X_train, y_train, weights, X_test, y_test, outcome="margin"
)
effects = (outcomes[0] - outcomes[1:]).T
names = {"recorded": "AdamW, as recorded", "sgd": "as if SGD"}
fig, axes = plt.subplots(1, 2, figsize=(8.5, 4), layout="constrained")
for ax, (dynamics, A) in zip(axes, found.items(), strict=True):
    score = loo_score(outcomes[1:], A)
    ax.scatter(A, effects, s=3, alpha=0.3, color="#0072B2", linewidth=0)
    ax.set(title=f"{names[dynamics]}: rank correlation {score:.2f}")
    ax.set(xlabel="derivative", ylabel="margin with the row minus without")
plt.show()

# %%
# Step by step
# ------------
# For one query: the rows that matter most, and in which of the 48 steps. Each row is in
# one minibatch of every epoch. What it does early can be undone, or amplified, later.

influence = AdamWInfluence(
    network, inclusion=1.0, outcome="margin", random_state=0
).fit(X_train, y_train)
query = slice(3, 4)
display = TrajectoryDisplay.from_estimator(
    influence, X_test[query], y_test[query], n_top=12
)
display.ax_.set_title(f"Margin of a {y_test[query][0]}")
plt.show()
