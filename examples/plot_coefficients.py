"""
Which few rows flip the sign of a coefficient?
==============================================

A regression says that something goes up with something else. Would it still say so
without three of the rows? A standard error does not tell, as it asks about another
sample of the same kind, and not about a handful of rows that this one rests on. A
linear model is refitted exactly in a millisecond or two, so one can look.
"""

# %%
# A regression
# ------------
# 442 patients with diabetes: how far did the disease go within a year, by ten
# measurements? Ordinary least squares, with all measurements in standard deviations.

import time

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression

from skattrib import DualInfluence

X, y = load_diabetes(return_X_y=True, as_frame=True, scaled=False)
X = (X - X.mean()) / X.std()
names = {
    "s1": "cholesterol",
    "s2": "LDL",
    "s3": "HDL",
    "s4": "cholesterol / HDL",
    "s5": "log triglycerides",
    "s6": "glucose",
}
X = X.rename(columns=names)
dual = DualInfluence(LinearRegression(), random_state=0).fit(X, y)
coefficients = dual.estimator_.coef_

# %%
# Without each of the patients
# ----------------------------
# ``parameter_change`` has the change of every coefficient, in the order of the columns,
# and of the intercept, for any weights of the rows: here without each of them.

n = len(X)
start = time.perf_counter()
alone = dual.parameter_change(1 - np.eye(n))[:, :-1]
print(f"{n} refits in {time.perf_counter() - start:.2f} s")
for column, name in enumerate(X.columns):
    low, high = coefficients[column] + np.quantile(alone[:, column], [0, 1])
    print(
        f"{name:>18} {coefficients[column]:7.2f}, without one patient "
        f"{low:7.2f} to {high:7.2f}"
    )

# %%
# One patient makes the coefficient of age what it is, up to its sign.

# %%
# Without a few
# -------------
# Greedily: leave out the patient without whom the coefficient comes closest to the
# other sign, given those who are out already, and so on. Rows are not additive: two
# that are alike do more together than their effects alone add up to, so all are
# refitted at every step. Only the 30 patients with the largest effects alone are tried.
# There may be smaller sets than those that a greedy search finds.


def leave_out(column, at_most=15, n_tried=30):
    """Return rows whose removal flips a coefficient, and it after each of them."""
    sign = np.sign(coefficients[column])
    tried = np.argsort(sign * alone[:, column])[:n_tried]
    out, path = [], [coefficients[column]]
    while sign * path[-1] > 0 and len(out) < at_most:
        candidates = np.setdiff1d(tried, out)
        weights = np.ones((len(candidates), n))
        weights[:, out] = 0
        weights[np.arange(len(candidates)), candidates] = 0
        change = dual.parameter_change(weights)[:, column]
        best = np.argmin(sign * change)
        out.append(int(candidates[best]))
        path.append(coefficients[column] + change[best])
    return out, np.array(path)


found = [leave_out(column) for column in range(X.shape[1])]

# %%
# Trained again
# -------------
# The coefficients predicted without these patients are those of a regression on the
# others, to rounding.

errors = []
for column, (out, path) in enumerate(found):
    others = np.setdiff1d(np.arange(n), out)
    real = LinearRegression().fit(X.iloc[others], y.iloc[others]).coef_[column]
    errors.append(abs(real - path[-1]))
    flipped = "flips" if np.sign(real) != np.sign(coefficients[column]) else "keeps"
    print(
        f"{X.columns[column]:>18} {coefficients[column]:7.2f} becomes {real:7.2f} "
        f"without {len(out):2}: it {flipped} its sign"
    )
print(f"largest difference from retraining: {max(errors):.0e}")

# %%
# Left: the coefficients as patients are left out, as a share of what they were. Right:
# the coefficient of LDL cholesterol, which four patients of 442 hold up, with the
# regression trained again after each of them. Cholesterol, LDL and HDL belong together
# (they are collinear, nearly), so little decides which of them gets the credit. Body
# mass index, blood pressure, sex and triglycerides do not depend on a few.

fig, (left, right) = plt.subplots(
    ncols=2, figsize=(10.5, 4.4), width_ratios=[1.3, 1], layout="constrained"
)
for column, (_, path) in enumerate(found):
    style = "-" if path[-1] * path[0] < 0 else ":"
    left.plot(path / path[0], style, marker=".", label=X.columns[column])
left.axhline(0, color="black", linewidth=0.8)
left.set(xlabel="patients left out, greedily", ylabel="coefficient / with all patients")
left.set_ylim(-1, 1.05)
left.legend(fontsize=8, ncols=2, loc="lower right")

column = X.columns.get_loc("LDL")
out, path = found[column]
retrained = []
for k in range(len(out) + 1):
    others = np.setdiff1d(np.arange(n), out[:k])
    model = LinearRegression().fit(X.iloc[others], y.iloc[others])
    retrained.append(model.coef_[column])
right.plot(path, "o", color="#0072B2", label="parameter_change")
right.plot(retrained, "+", color="#D55E00", markersize=12, label="trained again")
right.axhline(0, color="black", linewidth=0.8)
right.set(xlabel="patients left out", ylabel="coefficient of LDL cholesterol")
right.set_xticks(range(len(path)), ["none", *(f"+ no. {i}" for i in out)])
right.legend()
plt.show()
