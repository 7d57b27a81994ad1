"""A net of five million parameters: memory and time of DualInfluence.

Prints the largest resident memory of the process and times as multiples of one
training epoch (one step on all rows) in the same run.
"""

import resource
import time

import numpy as np
from sklearn.datasets import load_digits

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
    start = time.perf_counter()
    net.fit(X[train], y[train])
    epoch = (time.perf_counter() - start) / N_EPOCHS
    n_params = sum(p.numel() for p in net.module_.parameters())
    print(f"P = {n_params:,}, n = {N_ROWS}, C = 3; one epoch {epoch:.2f} s")
    for metric in ["identity", "optimizer"]:
        dual = DualInfluence(net, metric=metric, random_state=0)
        start = time.perf_counter()
        dual.fit(X[train], y[train])
        fit = time.perf_counter() - start
        start = time.perf_counter()
        A = dual.attribute(X[queries], y[queries])
        attribute = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"metric={metric:<9} solver={dual.solver_}: fit {fit / epoch:.0f} epochs "
            f"({N_EPOCHS} of them training), attribute {attribute / epoch:.0f} epochs, "
            f"peak {peak:.2f} GiB, largest attribution {np.abs(A).max():.2g}"
        )


if __name__ == "__main__":
    main()
