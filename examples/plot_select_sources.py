"""
Keep the sources that are worth training on
===========================================

Ten sources deliver labelled digits; three of them have a third of their labels wrong or
more, and it is not known which. ``TaskWeightSelector`` predicts what training on any
subset of them would give, searches for the best, and keeps its rows. Whether that was
right is checked by retraining.
"""

# %%
# Sources of different quality
# ----------------------------
# The target is a small clean set that somebody has checked: 200 digits. Half of it
# serves the selection, the other half only the final test.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from skattrib import KernelSurrogateAttributor, TaskWeightSelector, TorchClassifier
from skattrib.plotting import TaskWeightDisplay

rng = np.random.RandomState(0)
X, y = load_digits(return_X_y=True)
order = rng.permutation(len(y))
X, y = (X[order] / 16).astype(np.float32), y[order]
X_source, y_source, sources = X[:500], y[:500].copy(), np.arange(500) % 10
wrong_share = {1: 0.35, 4: 0.6, 8: 1.0}
for source, share in wrong_share.items():
    rows = np.flatnonzero(sources == source)
    rows = rows[rng.rand(len(rows)) < share]
    y_source[rows] = rng.randint(0, 10, len(rows))
X_val, y_val, X_test, y_test = X[500:600], y[500:600], X[600:1600], y[600:1600]

# %%
# Select
# ------
# No sign decides: attributions are relative to the average source, so about half of
# them are negative whatever the sources are like. The selector takes the set with the
# best predicted outcome that it finds by dropping and adding sources one by one.

network = TorchClassifier(hidden_layer_sizes=(32,), max_epochs=80, random_state=0)
attributor = KernelSurrogateAttributor(network, n_subsets=100, random_state=0)
selector = TaskWeightSelector(attributor, random_state=0)
X_kept, y_kept = selector.fit_resample(
    X_source, y_source, tasks=sources, X_val=X_val, y_val=y_val
)
print("kept:", selector.selected_tasks_, f"{len(y_kept)} of {len(y_source)} rows")
print(f"predicted log-likelihood: {selector.predicted_outcome_:.3f}")

# %%
# Before and after, by real training
# ----------------------------------

clean = np.isin(sources, list(wrong_share), invert=True)
accuracy = {
    "all sources": network.fit(X_source, y_source).score(X_test, y_test),
    "selected": network.fit(X_kept, y_kept).score(X_test, y_test),
    "without the bad three": network.fit(X_source[clean], y_source[clean]).score(
        X_test, y_test
    ),
}
for name, value in accuracy.items():
    print(f"{name:>21}: accuracy {value:.3f}")

# %%
# Weights of the sources
# ----------------------

names = [
    f"{source}: {wrong_share[source]:.0%} wrong" if source in wrong_share else source
    for source in selector.attributor_.unit_names_
]
TaskWeightDisplay.from_predictions(
    selector.task_weights_,
    selector.support_,
    task_names=names,
    outcome_name="log-likelihood",
)
plt.show()
