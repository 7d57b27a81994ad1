"""Training a stack of models against training them one after the other.

The baseline is a plain torch loop: `torch.nn`, `torch.optim.AdamW`, one model at a
time, the same weights and minibatches. Both are timed in turns, five times.

    python -m benchmarks.costs.stack
"""

import time

import numpy as np
import torch

from benchmarks._data import load, network
from benchmarks._processes import seconds
from benchmarks.costs._training import plain_loop
from skattrib.evaluation import retrain_outcomes

N_MODELS, N_EPOCHS, REPEATS = 64, 5, 5


def main():
    X, y, Xq, yq = load("digits")
    net = network(max_epochs=N_EPOCHS).fit(X, y)
    recipe, data = net.trajectory_.recipe, (torch.tensor(X), torch.tensor(y))
    weights = np.random.RandomState(0).rand(N_MODELS, len(X)) < 0.5

    def together():
        return retrain_outcomes(net, X, y, weights, Xq, yq)

    def alone():
        start, found = (net.module_, recipe.initial, recipe.batches), []
        for w in torch.tensor(weights, dtype=data[0].dtype):
            plain_loop(*start, *data, w)
            found.append(net.predict_log_proba(Xq)[range(len(yq)), yq])
        return np.array(found)

    ratios = []
    for _ in range(REPEATS):
        (one, stack), (many, singles) = (
            seconds(use, clock=time.perf_counter) for use in (together, alone)
        )
        ratios.append(many / one)

    print(
        f"{N_MODELS} models, MLP 64-16-10, batch {net.batch_size}, {recipe.n_steps} "
        f"steps, {torch.get_num_threads()} threads: the stack is "
        f"{np.median(ratios):.1f} times faster than one by one (five runs: "
        f"{min(ratios):.1f} to {max(ratios):.1f}); largest difference of a "
        f"log-likelihood {np.abs(stack - singles).max():.1e} (float32)"
    )


if __name__ == "__main__":
    main()
