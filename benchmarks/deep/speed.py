"""What dropout, batch normalisation and images cost in a stack of models.

512 digits, minibatches of 32, 5 epochs of AdamW. Seconds for one model: by a loop of
torch's own (``nn.Module``, ``torch.optim``, one model after the other), and in a stack
of 64 models that `TorchClassifier` trains at once, each on a half of the rows. Then the
sweep: seconds for a run and a query, of 16 runs and 12 queries. CPU time of one thread.

    OMP_NUM_THREADS=1 python -m benchmarks.deep.speed
"""

import copy
import warnings

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks._data import load
from benchmarks._table import Table, write
from benchmarks.deep.as_trained import layers
from skattrib import AdamWInfluence, TorchClassifier
from skattrib.evaluation import make_weightings
from skattrib.exceptions import FaithfulnessWarning
from skattrib.models._costs import cpu_seconds  # no public name

N_MODELS, N_QUERIES = 64, 12
OPTIONS = {"batch_size": 32, "max_epochs": 5, "random_state": 0}


def images(n_features, n_outputs):
    """Return a small convolutional network with dropout, of pictures as they are."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout2d(0.2),
        nn.Flatten(),
        nn.Linear(128, n_outputs),
    )


NETWORKS = {
    "64 x 64": layers((64, 64)),
    "64 x 64, dropout .2": layers((64, 64), 0.2),
    "64 x 64, batch norm": layers((64, 64), norm=nn.BatchNorm1d),
    "64 x 64, dropout .2, batch norm": layers((64, 64), 0.2, nn.BatchNorm1d),
    "convolution, dropout .2": images,
}


def by_torch(module, X, y, batches):
    """Train a module by a loop of torch's own."""
    module = copy.deepcopy(module).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=1e-2)
    for rows in batches:
        optimizer.zero_grad()
        F.cross_entropy(module(X[rows]), y[rows]).backward()
        optimizer.step()


def measure(name, build):
    """Return a row of the table."""
    X, y, *queries = load("digits")
    Xq, yq = (rows[:N_QUERIES] for rows in queries)
    if build is images:
        X, Xq = (rows.reshape(-1, 1, 8, 8) for rows in (X, Xq))
    halves = make_weightings(len(X), N_MODELS, random_state=0).astype(float)
    clf = TorchClassifier(build, **OPTIONS).fit(X, y)
    problem = clf._problem(X, y, 0)
    batches = [torch.tensor(batch) for batch in problem.recipe.batches]
    data = problem.model.module, problem.X, problem.targets, batches
    alone = np.median([cpu_seconds(lambda: by_torch(*data)) for _ in range(3)])
    stack = cpu_seconds(lambda: clf._stack(X, y, halves, random_state=0))
    influence = AdamWInfluence(clf, n_halves=0, random_state=0).fit(X, y)
    swept = cpu_seconds(lambda: influence.attribute(Xq, yq))
    return [
        name,
        f"{alone:.3f}",
        f"{stack / N_MODELS:.3f}",
        f"{alone * N_MODELS / stack:.1f}",
        f"{swept / 16 / N_QUERIES:.4f}",
    ]


def main():
    table = Table(
        "Seconds for one model, and for a run and a query",
        "network | torch's loop | in a stack | times as fast | sweep",
    )
    for name, build in NETWORKS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FaithfulnessWarning)
            row = measure(name, build)
        table.add(*row)
        write("deep_speed", table)


if __name__ == "__main__":
    main()
