"""
Which demonstrations in a prompt help?
======================================

A language model labels reviews after sixteen labelled examples. Training is not needed
to attribute: a demonstration is in the prompt or it is not, and the outcome is what the
model then says. Anything that scores subsets can be attributed, here with the scores of
SmolLM2-135M-Instruct from a small table (``demonstrations.csv`` beside this file, made
by ``benchmarks.surrogates.demonstrations``).
"""

# %%
# Subset scores from elsewhere
# ----------------------------
# Each row of the table is a prompt: 1 where a demonstration was in it, then the log
# odds of the right label for twelve reviews.

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.model_selection import GridSearchCV

from skattrib import KernelSurrogate, LinearSurrogate

folder = Path(__file__).parent if "__file__" in globals() else Path.cwd()
table = pd.read_csv(folder / "demonstrations.csv").drop_duplicates()
W = table.filter(like="demonstration_")
F = table.filter(like="query_")
whole, one_out = W.sum(axis=1) == 16, W.sum(axis=1) == 15
random = ~(whole | one_out)
print(f"{random.sum()} random subsets, {one_out.sum()} without one demonstration")

# %%
# Kernel or linear?
# -----------------
# Surrogates are regressors, so model selection is scikit-learn's. Demonstrations mostly
# add up: the linear surrogate, ridge regression with an intercept, is not far behind.
# Here subsets that hold a demonstration with probability 1/2 and 3/4 are pooled, all
# that there are; :doc:`../measurements` learns from part of one kind at a time,
# where neither surrogate is better within the spread.

grids = {
    "kernel": (KernelSurrogate(), {"ridge": [0.01, 0.1, 1], "bandwidth": [1, 2, 4]}),
    "linear": (LinearSurrogate(), {"ridge": [0.1, 1, 10]}),
}
fitted = {}
for name, (surrogate, grid) in grids.items():
    search = GridSearchCV(surrogate, grid, cv=5).fit(W[random], F[random])
    fitted[name] = search.best_estimator_
    print(f"{name}: R² {search.best_score_:.2f} with {search.best_params_}")

# %%
# What the model would lose
# -------------------------
# Both surrogates learnt from random subsets only. Against prompts that lack one
# demonstration, the mean over the reviews:

effects = (F[whole].to_numpy() - F[one_out].to_numpy()).mean(axis=1)
left_out = W[one_out].to_numpy().argmin(axis=1)
real = np.empty(16)
real[left_out] = effects
labels = [c.removeprefix("demonstration_").replace("_", ": ") for c in W.columns]

fig, ax = plt.subplots(figsize=(7.5, 4.4), layout="constrained")
x = np.arange(16)
ax.bar(x, real, color="#BBBBBB", label="measured")
for (name, surrogate), color, shift in zip(
    fitted.items(), ["#0072B2", "#D55E00"], [-0.15, 0.15], strict=True
):
    found, deviation = surrogate.attribution(at="loo", return_std=True)
    correlation = np.corrcoef(found.mean(axis=0), real)[0, 1]
    ax.errorbar(
        x + shift,
        found.mean(axis=0),
        deviation.mean(axis=0) / len(found.T) ** 0.5,
        fmt="o",
        color=color,
        label=f"{name}, correlation {correlation:.2f}",
    )
ax.axhline(0, color="black", linewidth=0.8)
ax.set_xticks(x, labels, rotation=70, fontsize=8)
ax.set_ylabel("effect on the log odds of the right label")
ax.legend(fontsize=9)
plt.show()
