"""Data and networks that libraries train, and whose trainings are recorded."""

import numpy as np
from torch import nn

from tests.cases import build

N, D, C = 60, 6, 3


def data():
    rng = np.random.RandomState(0)
    y = np.arange(N) % C
    X = rng.normal(size=(N, D)) + np.eye(C)[y] @ np.ones((C, D))
    return X.astype(np.float32), y.astype(np.int64)


def layers(*end, n_outputs=C, normalised=True):
    """Return a small network with dropout, and batch normalisation."""
    return nn.Sequential(
        nn.Linear(D, 8, bias=not normalised),
        *([nn.BatchNorm1d(8)] if normalised else []),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(8, n_outputs),
        *end,
    )


def built(*end, dtype, **options):
    return build(lambda: layers(*end, **options), dtype=dtype)
