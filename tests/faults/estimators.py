"""Estimators that meet with accidents, in the workers of a cluster."""

import os
import signal

import torch
from sklearn.linear_model import LogisticRegression
from torch import nn


def strike(flag):
    """Kill this process, the first time that a flag is taken."""
    try:
        os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


class Doomed(LogisticRegression):
    """Its second training kills the process, once; `flag` is a file, None spares it."""

    def __init__(self, flag=None, random_state=None):
        super().__init__(random_state=random_state)
        self.flag = flag

    def fit(self, X, y, sample_weight=None):
        if self.flag is not None:
            strike(self.flag)
        return super().fit(X, y, sample_weight=sample_weight)


class DoomedModule(nn.Module):
    """Its forward pass kills a process, once, that is not `home`; the flag as above."""

    def __init__(self, n_inputs, n_outputs, flag=None, home=None):
        super().__init__()
        self.linear = nn.Linear(n_inputs, n_outputs)
        self.flag, self.home = flag, home

    def forward(self, x):
        if self.flag is not None and os.getpid() != self.home:
            strike(self.flag)
        return self.linear(x)


class DoomedCurious(DoomedModule):
    """One that vmap refuses, as it looks at its data."""

    def forward(self, x):
        out = super().forward(x)
        return out if float(out.detach().sum()) > -1e30 else torch.zeros_like(out)
