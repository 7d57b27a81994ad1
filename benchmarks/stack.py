"""Training a stack of models against training them one after the other.

The baseline is a plain torch loop: `torch.nn`, `torch.optim.AdamW`, one model at a
time, the same weights and minibatches. Both are timed in turns, five times.
"""

import time

import numpy as np
import torch
from torch import nn

from benchmarks._data import load
from skattrib import TorchClassifier
from skattrib.engine._training import train_stack

N_MODELS, N_EPOCHS, BATCH, REPEATS = 64, 5, 32, 5


def plain_loop(module, problem, weights):
    """Train one model the way a tutorial does."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=1e-2)
    for rows in problem.recipe.batches:
        rows = torch.as_tensor(rows)
        optimizer.zero_grad()
        losses = nn.functional.cross_entropy(
            module(problem.X[rows]), problem.targets[rows], reduction="none"
        )
        (losses * weights[rows]).sum().div(weights[rows].sum()).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def main():
    X, y, *_ = load("digits")
    net = TorchClassifier(
        hidden_layer_sizes=(16,),
        activation="relu",
        batch_size=BATCH,
        max_epochs=N_EPOCHS,
        random_state=0,
    ).fit(X, y)
    problem = net._problem(X, y)
    weights = torch.tensor(np.random.RandomState(0).rand(N_MODELS, len(X)) < 0.5) * 1.0
    ratios = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        stack = train_stack(
            problem.model,
            problem.loss,
            problem.recipe,
            problem.X,
            problem.targets,
            weights,
            memory_bytes=2**30,
        )
        middle = time.perf_counter()
        singles = []
        for w in weights:
            problem.model.load(problem.recipe.initial)
            singles.append(plain_loop(problem.model.module, problem, w))
        ratios.append((time.perf_counter() - middle) / (middle - start))
        problem.model.load(problem.recipe.initial)
    error = float((stack - torch.stack(singles)).abs().max())
    threads = torch.get_num_threads()
    print(
        f"{N_MODELS} models, MLP 64-16-10, batch {BATCH}, "
        f"{problem.recipe.n_steps} steps, {threads} threads: the stack is "
        f"{np.median(ratios):.1f} times faster than one by one (five runs: "
        f"{min(ratios):.1f} to {max(ratios):.1f}); largest "
        f"difference of a parameter {error:.1e} (float32)"
    )


if __name__ == "__main__":
    main()
