"""
Pictures of attributions, and whether to believe them
=====================================================

What helped and hurt a prediction, predictions against retrained networks, and what
happens when the helpers are removed: three displays, made as those of scikit-learn are,
by ``from_estimator``.
"""

# %%
# A network on images of digits
# -------------------------------
# The outcome is the log-probability of the true digit.

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skattrib import DualInfluence, TorchClassifier
from skattrib.plotting import (
    AttributionDisplay,
    FaithfulnessDisplay,
    RemovalCurveDisplay,
)

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(
    X / 16, y, train_size=300, stratify=y, random_state=0
)
network = TorchClassifier(hidden_layer_sizes=(16,), max_epochs=60, random_state=0)

# %%
# What helped, what hurt
# ----------------------
# Attributions are averaged over three networks with different initial weights, whose
# disagreement gives the standard errors. ``image_shape`` shows the training rows as
# images; ``rows=`` takes a table, or texts. Zero is the average training row, as
# attributions sum to about 0.

ensemble = DualInfluence(network, n_models=3, random_state=0).fit(X_train, y_train)
query = slice(7, 8)
display = AttributionDisplay.from_estimator(
    ensemble, X_test[query], y_test[query], image_shape=(8, 8), return_std=True
)
display.ax_.set_title(f"Log-likelihood of a {y_test[query][0]}")
plt.show()

# %%
# Is it true?
# -----------
# ``FaithfulnessDisplay`` trains the networks that ``score`` trains, on random halves of
# the rows. A cloud along a rising line is a good ranking, whatever its slope; a slope
# above 1 says that retraining moves outcomes further than predicted. On axes of your
# own you can compare: here with the same method under much more damping.
#
# ``RemovalCurveDisplay`` looks at the ends of the ranking: what happens without the
# rows that helped most on average, or hurt most. The two pictures need not agree: with
# much damping random halves and the harmful rows are ranked worse, but the half that it
# calls most helpful is missed even more.

dual = DualInfluence(network, random_state=0).fit(X_train, y_train)
damped = DualInfluence(network, ridge=1.0, random_state=0).fit(X_train, y_train)
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
queries = X_test[:50], y_test[:50]
for name, attributor in {"as it is": dual, "damped": damped}.items():
    FaithfulnessDisplay.from_estimator(attributor, *queries, name=name, ax=left)
    RemovalCurveDisplay.from_estimator(
        attributor, *queries, name=name, show_random=attributor is dual, ax=right
    )
plt.show()
