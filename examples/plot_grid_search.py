"""
Choose the damping with GridSearchCV
====================================

An attributor has a score: how well it ranks retrained models. So its settings can be
searched like those of any scikit-learn estimator. Here the setting is ``ridge``, the
damping, which attribution methods are most sensitive to; and the question is how far
the default, which needs no retraining, is from the best.
"""

# %%
# A pipeline with an attributor
# -----------------------------
# The attributor is the last step, so the pipeline's score is the attributor's: the
# linear datamodeling score (LDS), here from 16 networks trained on halves of the
# training rows. The seeds are fixed, and so that each candidate meets the same 16
# networks, they are remembered in a folder: ``memory=``.
#
# scikit-learn sees no classifier here, as an attributor is none. ``StratifiedKFold``
# makes sure that every fold trains on every class.

import tempfile

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_wine
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skattrib import DualInfluence, TorchClassifier

X, y = load_wine(return_X_y=True)
X = X.astype(np.float32)

folder = tempfile.TemporaryDirectory()
network = TorchClassifier(hidden_layer_sizes=(16,), max_epochs=60, random_state=0)
dual = DualInfluence(network, n_retrainings=16, memory=folder.name, random_state=0)
pipeline = make_pipeline(StandardScaler(), dual)
ridges = [0.001, 0.01, 0.1, 1.0]
search = GridSearchCV(
    pipeline,
    {"dualinfluence__ridge": [*ridges, "auto"]},
    cv=StratifiedKFold(3, shuffle=True, random_state=0),
    refit=False,
).fit(X, y)

# %%
# The networks are trained once for each fold, by the first candidate. The others find
# their outcomes in the folder.

results = search.cv_results_
scores = np.array([results[f"split{k}_test_score"] for k in range(3)])
for candidate, fold_scores, seconds in zip(
    [*ridges, "auto"], scores.T, results["mean_score_time"], strict=True
):
    print(
        f"ridge {candidate!s:>5}: LDS {fold_scores.mean():.2f}, folds "
        f"{np.round(fold_scores, 2)}, scored in {seconds:.2f} s"
    )
folder.cleanup()

# %%
# Where the default lies
# ----------------------
# "auto" derives the damping from the length of training, more of it for removing many
# rows than for removing one. ``ridge_rule_`` gives it for a share of rows removed; the
# score removes half of them.

fitted = pipeline.set_params(dualinfluence__memory=None).fit(X, y)[-1]
print(f"one row: {fitted.ridge_:.3f}, half of the rows: {fitted.ridge_rule_(0.5):.3f}")

# %%
# The folds differ more from each other than good candidates do, so compare candidates
# within a fold: along a line. A damping that is wrong by a factor of 10 or 100 costs
# much; the default is close to the best of the grid in every fold.

fig, ax = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
for k, fold_scores in enumerate(scores):
    label = "each fold" if k == 0 else None
    ax.plot(ridges, fold_scores[:-1], color="#999999", linewidth=1, label=label)
spread = scores.std(axis=0)
ax.errorbar(
    ridges,
    scores.mean(axis=0)[:-1],
    spread[:-1],
    fmt="o-",
    color="#0072B2",
    capsize=4,
    label="mean and standard deviation",
)
ax.errorbar(
    fitted.ridge_rule_(0.5),
    scores.mean(axis=0)[-1],
    spread[-1],
    fmt="D",
    color="#D55E00",
    capsize=4,
    label='"auto"',
)
ax.set(xscale="log", xlabel="ridge (log scale)", ylabel="LDS on held-out rows")
ax.legend(loc="lower right")
plt.show()
