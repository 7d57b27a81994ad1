"""
What if I correct this label
============================

Some labels of a table may be wrong, and somebody can look them up again, for a price.
Which correction would help most? A corrected label is an old row that goes and a new
row that comes: ``attribute`` values the one, ``value_new`` the other, without any
training. Here both are compared with really training on the corrected table.
"""

# %%
# A table with wrong labels
# -------------------------
# Of 200 tumours to train on, 20 got the other label. 60 more have labels that we trust,
# and the rest is for tests.

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skattrib import DualInfluence
from skattrib.evaluation import retrain_outcomes

X, y = load_breast_cancer(return_X_y=True, as_frame=True)
X_train, X_rest, y_clean, y_rest = train_test_split(
    X, y, train_size=200, stratify=y, random_state=0
)
X_trusted, X_test, y_trusted, y_test = train_test_split(
    X_rest, y_rest, train_size=60, stratify=y_rest, random_state=0
)
rng = np.random.default_rng(0)
wrong = np.zeros(len(X_train), dtype=bool)
wrong[rng.choice(len(X_train), size=20, replace=False)] = True
y_train = y_clean.where(~wrong, 1 - y_clean)

# a small C: with so many columns, any label could be learnt by heart
logistic = LogisticRegression(C=0.1, solver="newton-cholesky", tol=1e-8)
pipe = make_pipeline(StandardScaler(), logistic)
dual = DualInfluence(pipe, random_state=0).fit(X_train, y_train)

# %%
# The row goes, and comes again
# -----------------------------
# The model is refitted without each row, and with each row at its other label. Both
# effects are on the mean log-likelihood of the trusted rows, so they can be added up.

without = -dual.attribute(X_trusted, y_trusted).mean(axis=0)
with_other = dual.value_new(X_train, 1 - y_train, X_trusted, y_trusted)
gain = pd.Series(without + with_other, X_train.index, name="gain")

# %%
# To compare, we train 200 times: each time one row is replaced by the same row with the
# other label. These models are given all rows twice, and weights that pick one of each.

n = len(X_train)
picks = np.vstack([np.zeros(n), np.eye(n)])  # first of all, no label is changed
really = retrain_outcomes(
    pipe,
    pd.concat([X_train, X_train]),
    pd.concat([y_train, 1 - y_train]),
    np.hstack([1 - picks, picks]),
    X_trusted,
    y_trusted,
).mean(axis=1)
really = really[1:] - really[0]

fig, ax = plt.subplots(figsize=(5, 4.5), layout="constrained")
ax.axline((0, 0), slope=1, color="black", linewidth=0.8)
for kind, name in [(~wrong, "label is right"), (wrong, "label is wrong")]:
    ax.scatter(gain[kind], really[kind], s=14, label=name)
ax.set(xlabel="predicted gain", ylabel="gain after training again")
ax.legend()
print(f"correlation: {np.corrcoef(gain, really)[0, 1]:.4f}")

# %%
# Each part is exact for a linear model. Their sum is not quite, as the row comes to a
# model that the old one has not left.
#
# Correct the ten most promising
# ------------------------------
# Above zero the gain of a correction says that the other label suits the trusted rows
# better. We look the ten best up:

best = gain.nlargest(10).index
print(f"{wrong[X_train.index.isin(best)].sum()} of 10 labels were wrong")
corrected = y_train.where(~y_train.index.isin(best), y_clean)

# %%
# The alternative is to throw these rows away, which ``model_without`` does. Both are
# tried on rows that no step has seen.

models = {
    "as it is": dual.estimator_,
    "without the ten rows": dual.model_without(best),
    "ten labels looked up": clone(pipe).fit(X_train, corrected),
    "all labels right": clone(pipe).fit(X_train, y_clean),
}
for name, model in models.items():
    log_p = model.predict_log_proba(X_test)[np.arange(len(y_test)), y_test]
    print(f"{name:>21}: mean log-likelihood {log_p.mean():.3f}")
plt.show()
