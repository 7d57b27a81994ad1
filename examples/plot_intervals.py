"""
How large is an effect, and how sure is that?
=============================================

An attribution is worth betting on if it has the right size, and an interval that holds
as often as it says. Networks that are really retrained on random halves of the rows
give it both; :ref:`posterior` explains how.
"""

# %%
# Attributions with intervals
# ---------------------------
# Which wines of the training set moved the prediction for another one, when half of the
# others were there? The table has the ends of 95 % intervals.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skattrib import AdamWInfluence, TorchClassifier
from skattrib.plotting import CalibrationDisplay

X, y = load_wine(return_X_y=True, as_frame=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)
network = TorchClassifier(
    hidden_layer_sizes=(16,), learning_rate=1e-2, max_epochs=20, random_state=0
)
model = make_pipeline(StandardScaler(), network)
influence = AdamWInfluence(model, outcome="margin", random_state=0)
influence.fit(X_train, y_train)
print(influence.n_halves_, "halves;", influence.estimand_)
print(influence.top_units(X_test[:1], y_test[:1], n=3).round(3).to_string())

# %%
# Do the intervals hold?
# ----------------------
# ``diagnose`` predicts each half from the others, without further training.
# ``CalibrationDisplay`` retrains on new halves, as ``score`` does. Predicted outcomes
# are on the horizontal axis, retrained ones on the vertical, and orange if they are
# outside of their interval.

found = influence.diagnose(X_test, y_test)
print(
    f"{found.coverage:.1%} of the halves are in their 95 % intervals, as predicted by"
)
print(f"the others; slope {found.calibration_slope:.2f}, LDS {found.lds:.2f}.")
display = CalibrationDisplay.from_estimator(influence, X_test, y_test)
plt.show()

# %%
# What if these rows go?
# ----------------------
# A prediction for a subset has an interval, too, here for the first half without ten
# more rows. Interactions of the rows, which no attribution has, are in it.

W = influence.halves_[:1].astype(float)
W[0, np.flatnonzero(W[0])[:10]] = 0
outcome, std = influence.predict_outcomes(X_test[:1], y_test[:1], W, return_std=True)
print(f"{outcome[0, 0]:.2f} ± {1.96 * std[0, 0]:.2f}")
