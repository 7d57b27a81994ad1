"""A net of five million parameters: memory and time of DualInfluence.

Prints the largest resident memory of the process and times as multiples of one
training epoch (one step on all rows) in the same run.

    python -m benchmarks.costs.large
"""

import numpy as np
from sklearn.datasets import load_digits

from benchmarks._processes import resident_bytes, wall_seconds
from skattrib import DualInfluence, TorchClassifier

N_ROWS, N_QUERIES, N_EPOCHS = 300, 50, 10


def main():
    X, y = load_digits(n_class=3, return_X_y=True)
    X = (X / 16).astype(np.float32)
    train, queries = slice(N_ROWS), slice(N_ROWS, N_ROWS + N_QUERIES)
    net = TorchClassifier(
        hidden_layer_sizes=(2200, 2200),
        learning_rate=1e-4,
        max_epochs=N_EPOCHS,
        random_state=0,
    )
    epoch = wall_seconds(net.fit, X[train], y[train])[0] / N_EPOCHS
    n_params = sum(p.numel() for p in net.module_.parameters())
    print(f"P = {n_params:,}, n = {N_ROWS}, C = 3; one epoch {epoch:.2f} s")

    for metric in ["identity", "optimizer"]:
        dual = DualInfluence(net, metric=metric, random_state=0)
        fit, _ = wall_seconds(dual.fit, X[train], y[train])
        attribute, _ = wall_seconds(dual.attribute, X[queries], y[queries])
        print(
            f"metric={metric:<9} solver={dual.solver_}: fit {fit / epoch:.0f} epochs "
            f"({N_EPOCHS} of them training), attribute {attribute / epoch:.0f} epochs, "
            f"peak {resident_bytes(peak=True) / 2**30:.2f} GiB"
        )


if __name__ == "__main__":
    main()
