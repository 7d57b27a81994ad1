"""Removing 10 to 90 % of the rows: predicted against really retrained networks.

For an MLP, a wide one and a small convolutional net on digits, each trained once with
AdamW, predicts how the margins of 50 queries change when random rows are left out, and
retrains. Writes a figure and a table into the manual.

    python -m benchmarks.ranking.removals
"""

import numpy as np

from benchmarks._data import MEMORY, convolutional, load
from benchmarks._table import Table, axes, write
from benchmarks.ranking._duals import fitted, predicted
from skattrib import TorchClassifier
from skattrib.evaluation import make_weightings, retrain_outcomes

N_ROWS, N_SUBSETS = 200, 10
REMOVED = [0.1, 0.3, 0.5, 0.7, 0.9]
#: kinds of removal, and how they are drawn
STYLES = {"influence": "^:C2", "newton": "o-C0", "refit": "s--C1"}
NETS = {
    "MLP 64-32-10": {"hidden_layer_sizes": (32,)},
    "wide MLP 64-1024-10": {"hidden_layer_sizes": (1024,), "learning_rate": 1e-3},
    "Conv2d 8, 8": {"module": convolutional(padding=0)},
}


def measure(name):
    """Return (correlation, relative error) of predicted changes by removal, share."""
    X, y, *queries = load("digits")
    X, y = X[:N_ROWS], y[:N_ROWS]
    net = TorchClassifier(**NETS[name], max_epochs=60, random_state=0)
    weights = [
        make_weightings(N_ROWS, N_SUBSETS, size=1 - share, random_state=3)
        for share in REMOVED
    ]
    # the model itself, of which changes are measured, comes first
    weights = np.vstack([np.ones((1, N_ROWS)), *weights])
    options = {"outcome": "margin", "memory": MEMORY}
    retrained = retrain_outcomes(net, X, y, weights, *queries, **options)

    def changes(outcomes):
        return (outcomes[1:] - outcomes[0]).reshape(len(REMOVED), -1)

    found = {}
    for removal in STYLES:
        dual = fitted(net, X, y, removal, "margin")
        pairs = changes(predicted(dual, *queries, weights)), changes(retrained)
        found[removal] = [
            (np.corrcoef(p, t)[0, 1], np.linalg.norm(p - t) / np.linalg.norm(t))
            for p, t in zip(*pairs, strict=True)
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
    with axes("removals", len(found), (10, 3.2), sharey=True) as shown:
        for axis, (name, by_removal) in zip(shown, found.items(), strict=True):
            for removal, values in by_removal.items():
                correlations = [correlation for correlation, _ in values]
                axis.plot(REMOVED, correlations, STYLES[removal], label=removal)
            axis.set(title=name, xlabel="fraction of rows removed", ylim=(0, 1))
        shown[0].set_ylabel("correlation with retraining")
        shown[0].legend(frameon=False, loc="lower left")


if __name__ == "__main__":
    main()
