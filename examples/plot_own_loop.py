"""
Attribute a training loop of your own
=====================================

The network below was trained by a plain PyTorch loop, with its own order of the rows, a
schedule and clipping. Two lines record it. After that the run can be differentiated as
if it had been trained here, and repeated without some rows, to see whether the answer
was right.
"""

# %%
# A loop, and two lines more
# --------------------------
# 250 digits, shuffled minibatches of 25, a one-cycle schedule. The first new line makes
# the recording; the second, in the loop, says which rows the step learns from.

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from torch import nn

from skattrib import AdamWInfluence, record_training
from skattrib.evaluation import loo_score, make_weightings, retrain_outcomes
from skattrib.plotting import FaithfulnessDisplay

X, y = load_digits(return_X_y=True)
order = np.random.RandomState(0).permutation(len(y))
X, y = X[order] / 16, y[order]
X_train, y_train, X_test, y_test = X[:250], y[:250], X[1000:1025], y[1000:1025]

generator = torch.Generator().manual_seed(0)
torch.random.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 24), nn.LayerNorm(24), nn.GELU(), nn.Linear(24, 10))
model = model.double()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
scheduler = torch.optim.lr_scheduler.OneCycleLR(
    optimizer, max_lr=1e-2, total_steps=80, cycle_momentum=False
)
inputs, targets = torch.tensor(X_train), torch.tensor(y_train)

recording = record_training(model, optimizer, clip_norm=1.0)  # new
with recording:
    for _ in range(8):
        for rows in torch.randperm(250, generator=generator).split(25):
            recording.rows(rows)  # new
            loss = nn.functional.cross_entropy(model(inputs[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()

# %%
# The recording becomes a fitted classifier. On the way it is replayed: had the loop
# done something that the recording does not know, there would be a warning here.

trained = recording.to_classifier(X_train, y_train)
print(f"test accuracy {trained.score(X[1000:], y[1000:]):.3f}")

# %%
# What did each row do?
# ---------------------
# The run that happened, differentiated in the weight of every row; and the same run
# repeated without each row in turn. The derivative is a first-order answer: it is right
# for most rows and too small for the few that matter most.

own = AdamWInfluence(FrozenEstimator(trained), outcome="margin", random_state=0)
attributions = own.fit(X_train, y_train).attribute(X_test, y_test)

without = np.vstack([np.ones((1, 250)), make_weightings(250, None, kind="loo")])
data = (X_train, y_train), (X_test, y_test)
outcomes = retrain_outcomes(trained, *data[0], without, *data[1], outcome="margin")
effects = (outcomes[0] - outcomes[1:]).T
loo = loo_score(outcomes[1:], attributions)

# %%
# And half of the rows?
# ---------------------
# What can be repeated can also be repeated on random halves: without the
# ``FrozenEstimator``, the derivatives are averaged over such runs. Points on the dashed
# lines were predicted exactly.

halves = AdamWInfluence(trained, n_trajectories=8, outcome="margin", random_state=0)
halves.fit(X_train, y_train)
weights = make_weightings(250, 64, random_state=1)
real = retrain_outcomes(trained, *data[0], weights, *data[1], outcome="margin")
predicted = halves.predict_outcomes(*data[1], weights)

fig, (left, right) = plt.subplots(1, 2, figsize=(8.5, 4.2), layout="constrained")
left.scatter(attributions, effects, s=6, alpha=0.4, color="#0072B2", linewidth=0)
left.axline((0, 0), slope=1, color="black", linestyle="--", linewidth=1)
left.set(xlabel="derivative", ylabel="margin with the row minus without")
left.set_title(f"One row left out: rank correlation {loo:.2f}")
FaithfulnessDisplay.from_predictions(real, predicted, outcome_name="margin", ax=right)
right.set_title("Half of the rows")
plt.show()
