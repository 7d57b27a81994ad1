"""
Find wrong labels
=================

One label in ten of a table is flipped. Can attributions find the flipped rows, and
better than a look at each row's own loss? No: the loss wins here. Attribution answers
another question, what a row does to the rows that we care about, and removing rows by
that answer helps those rows about as much at first.
"""

# %%
# A table with wrong labels
# -------------------------
# The breast cancer data as a DataFrame: 350 rows to train on, of which 35 get the wrong
# label, 60 rows with labels that we trust, and the rest to test on.

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from skattrib import DualInfluence, TorchClassifier
from skattrib.evaluation import mislabel_score, removal_curve, retrain_outcomes
from skattrib.plotting import RemovalCurveDisplay

X, y = load_breast_cancer(return_X_y=True, as_frame=True)
X_train, X_rest, y_clean, y_rest = train_test_split(
    X, y, train_size=350, stratify=y, random_state=0
)
X_trusted, X_test, y_trusted, y_test = train_test_split(
    X_rest, y_rest, train_size=60, stratify=y_rest, random_state=0
)
scaler = StandardScaler().set_output(transform="pandas").fit(X_train)
X_train, X_trusted, X_test = map(scaler.transform, (X_train, X_trusted, X_test))

rng = np.random.default_rng(0)
flipped = np.zeros(len(X_train), dtype=bool)
flipped[rng.choice(len(X_train), size=35, replace=False)] = True
y_train = y_clean.where(~flipped, 1 - y_clean)

# %%
# Three ways to be suspicious
# ---------------------------
# *Effect on trusted rows.* Attributions of the 60 trusted rows, averaged: a row whose
# removal is predicted to raise their log-likelihood is suspicious.
#
# *Effect on itself.* The attribution of a training row to itself, which
# ``self_attribution`` has for all rows. A row that the network gets right only because
# it was trained on it has a large one.
#
# *Loss.* The training loss of the row. It needs no attribution and no trusted rows.
#
# Training is kept short, as a network that is trained for long learns wrong labels by
# heart.


def suspicions(max_epochs):
    network = TorchClassifier(
        hidden_layer_sizes=(16,), max_epochs=max_epochs, random_state=0
    )
    dual = DualInfluence(network, random_state=0).fit(X_train, y_train)
    on_trusted = dual.attribute(X_trusted, y_trusted).mean(axis=0)
    on_itself = dual.self_attribution()
    log_p = dual.estimator_.predict_log_proba(X_train.to_numpy())
    loss = -log_p[np.arange(len(X_train)), y_train]
    table = pd.DataFrame(
        {"on trusted rows": -on_trusted, "on itself": on_itself, "loss": loss},
        index=dual.unit_names_,
    )
    return dual, table


dual, table = suspicions(max_epochs=30)
_, longer = suspicions(max_epochs=100)
auc = pd.DataFrame(
    {
        "30 epochs": table.apply(mislabel_score, is_mislabeled=flipped),
        "100 epochs": longer.apply(mislabel_score, is_mislabeled=flipped),
    }
)
print("area under the ROC curve (0.5 is chance)")
print(auc.round(2))

# %%
# The loss finds the flipped rows best, with nothing but a trained network. The effect
# on the trusted rows comes close after 30 epochs, but not after 100: what a row did to
# others depends on how long the network was trained. This is one split and one seed, so
# differences of a few hundredths mean nothing.
#
# The units are named after the index of the DataFrame, so that a suspicious row can be
# looked up in the table that it came from.

worst = table.sort_values("on trusted rows", ascending=False).head()
print(worst.assign(label=y_train, flipped=pd.Series(flipped, X_train.index)).round(4))

# %%
# Does it help to remove them?
# ----------------------------
# ``removal_curve`` takes out the rows with the highest values first, trains again, and
# measures the log-likelihood of the test rows, which no method has seen.


def outcome_of(weights):
    found = retrain_outcomes(dual.estimator, X_train, y_train, weights, X_test, y_test)
    return found.mean(axis=1)


shares = np.arange(0.02, 0.21, 0.02)
curves = {
    name: removal_curve(outcome_of, table[name], fractions=shares, random_state=0)
    for name in table
}

# %%
# Left: how many of the flipped rows are found among the most suspicious. Right: what
# training without these rows does to the test rows; the band is one standard deviation
# over five random orders. Removing the most suspicious 8 % helps the test rows about as
# much by the effect on trusted rows as by the loss; beyond that the loss is better. The
# effect on itself takes longer.

fig, (left, right) = plt.subplots(ncols=2, figsize=(10, 4.2), layout="constrained")
inspected = np.arange(len(flipped) + 1) / len(flipped)
for name, curve in curves.items():
    display = RemovalCurveDisplay.from_predictions(
        curve,
        name=name,
        outcome_name="mean log-likelihood of test rows",
        show_bottom=False,
        show_random=name == "loss",
        ax=right,
    )
    order = np.argsort(-table[name].to_numpy(), kind="stable")
    found = np.append(0, np.cumsum(flipped[order])) / flipped.sum()
    label = f"{name} (AUC {auc.loc[name, '30 epochs']:.2f})"
    left.plot(inspected, found, color=display.line_.get_color(), label=label)
left.plot([0, 1], [0, 1], ":", color="black", label="random")
left.set(xlabel="share of rows inspected", ylabel="share of flipped rows found")
left.legend(loc="lower right")
right.axvline(flipped.mean(), color="black", linewidth=0.8)
right.text(flipped.mean() + 0.003, -0.15, "as many as were flipped")
right.set(xticks=np.arange(0, 0.21, 0.05))
right.set(xlabel="rows removed, the most suspicious first")
plt.show()
