"""Removing 10 to 90 % of the rows: predicted against really retrained networks.

For an MLP, a wide one and a small convolutional net on digits, each trained once with
AdamW, predicts how the margins of 50 queries change when random rows are left out, and
retrains. Writes a figure and a table into the manual.

    python -m benchmarks.ranking.removals
"""

import numpy as np
from torch import nn

from benchmarks._data import MEMORY, load
from benchmarks._table import IMAGES, Table, write
from skattrib import DualInfluence, TorchClassifier
from skattrib.evaluation import make_weightings, retrain_outcomes

N_ROWS, N_SUBSETS = 200, 10
REMOVED = [0.1, 0.3, 0.5, 0.7, 0.9]
REMOVALS = {"influence": "^:C2", "newton": "o-C0", "refit": "s--C1"}


def convolutional(n_inputs, n_outputs):
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, n_outputs),
    )


NETS = {
    "MLP 64-32-10": {"hidden_layer_sizes": (32,)},
    "wide MLP 64-1024-10": {"hidden_layer_sizes": (1024,), "learning_rate": 1e-3},
    "Conv2d 8, 8": {"module": convolutional},
}


def measure(name):
    """Return (correlation, relative error) of predicted changes by removal, share."""
    X, y, Xq, yq = load("digits")
    X, y = X[:N_ROWS], y[:N_ROWS]
    net = TorchClassifier(**NETS[name], max_epochs=60, random_state=0)
    each = [
        make_weightings(N_ROWS, N_SUBSETS, size=1 - share, random_state=3)
        for share in REMOVED
    ]
    weights = np.vstack(each)
    options = {"outcome": "margin", "memory": MEMORY}
    true = retrain_outcomes(net, X, y, weights, Xq, yq, **options)

    dual = DualInfluence(net, outcome="margin", random_state=0).fit(X, y)
    present = dual.predict_outcomes(Xq, yq, np.ones((1, N_ROWS)))
    true = (true - present).reshape(len(REMOVED), -1)
    found = {}

    for removal in REMOVALS:
        model = dual.set_params(removal=removal)
        predicted = model.predict_outcomes(Xq, yq, weights) - present
        predicted = predicted.reshape(len(REMOVED), -1)
        found[removal] = [
            (np.corrcoef(p, t)[0, 1], np.linalg.norm(p - t) / np.linalg.norm(t))
            for p, t in zip(predicted, true, strict=True)
        ]
    return found


def main():
    found = {}
    table = Table(
        f"Predicted and real change of the margin, {N_SUBSETS} random "
        "removals of each size, 50 queries: correlation (relative error)",
        ["net", "removal", *(f"{share:.0%}" for share in REMOVED)],
    )
    for name in NETS:
        found[name] = measure(name)
        for removal, values in found[name].items():
            cells = [f"{corr:.2f} ({error:.2f})" for corr, error in values]
            table.add(name, removal, *cells)
    write("removals", table)
    plot(found)


def plot(found):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axes = figure.subplots(1, len(found), sharey=True)
    for axis, (name, by_removal) in zip(axes, found.items(), strict=True):
        for removal, values in by_removal.items():
            axis.plot(REMOVED, [v[0] for v in values], REMOVALS[removal], label=removal)
        axis.set(title=name, xlabel="fraction of rows removed", ylim=(0, 1))
    axes[0].set_ylabel("correlation with retraining")
    axes[0].legend(frameon=False, loc="lower left")
    figure.savefig(IMAGES / "removals.png", dpi=110)


if __name__ == "__main__":
    main()
