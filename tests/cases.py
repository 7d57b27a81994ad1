"""Modules, optimizers and an attributor that several tests share; dense references.

The references use nothing of the engine: they are plain autograd and NumPy.
"""

import copy
import inspect
import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrizations

from skattrib.engine._losses import CrossEntropy, SquaredError
from skattrib.engine._optimizers import SGD, Adam, AdamW, Muon, RMSprop
from skattrib.extension import BaseAttributor

LOSSES = {"classification": CrossEntropy(), "regression": SquaredError()}


class Twice(nn.Module):
    """One layer called two times."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.inner(self.inner(x).tanh()).tanh())


class Tied(nn.Module):
    """Two layers with one weight and a bias each."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x).tanh())


class TiedInForward(nn.Module):
    """An autoencoder whose decoder borrows the encoder's weight."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(4, 3)

    def forward(self, x):
        return nn.functional.linear(self.encoder(x).tanh(), self.encoder.weight.T)


class PositionsFirst(nn.Module):
    """A layer that sees (positions, rows, width): here as many positions as rows."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(2, 2), nn.Linear(6, 2)

    def forward(self, x):
        moved = self.inner(x.view(-1, 3, 2).transpose(0, 1)).tanh()
        return self.head(moved.transpose(0, 1).reshape(len(x), -1))


class Scaled(nn.Module):
    """A bare parameter next to a layer, and one output without its axis."""

    def __init__(self):
        super().__init__()
        self.layer, self.factor = nn.Linear(4, 3), nn.Parameter(torch.ones(3))

    def forward(self, x):
        return (self.layer(x).tanh() * self.factor).sum(dim=1)


class Keyword(nn.Module):
    """A layer called by keyword."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(input=x)


def mlp(*sizes, activation=nn.Tanh, **options):
    layers = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out, **options), activation()]
    return nn.Sequential(*layers[:-1])


def frozen(*names):
    module = mlp(4, 5, 2)
    for name in names:
        module.get_parameter(name).requires_grad_(False)
    return module


def normalised(norm):
    """A first layer whose weight is computed from another parameter."""
    module = mlp(4, 4, 2)
    norm(module[0])
    return module.eval()


def conv(*args, **options):
    """A convolution of images (2, 5, 4) and a linear head."""
    with torch.device("meta"):
        body = nn.Sequential(nn.Unflatten(1, (2, 5, 4)), nn.Conv2d(*args, **options))
        width = math.prod(body(torch.empty(1, 40)).shape)
    layer = nn.Conv2d(*args, **options)
    return nn.Sequential(body[0], layer, nn.Tanh(), nn.Flatten(), nn.Linear(width, 2))


#: name: (factory, number of features)
MODULES = {
    "mlp": (lambda: mlp(4, 5, 3), 4),
    "layer_norm": (
        lambda: nn.Sequential(
            nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)
        ),
        4,
    ),
    "no_bias": (lambda: mlp(4, 5, 2, activation=nn.GELU, bias=False), 4),
    "one_layer": (lambda: mlp(4, 3), 4),
    "sequence": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (3, 2)),
            nn.Linear(2, 4),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(12, 2),
        ),
        6,
    ),
    "conv": (
        lambda: conv(2, 3, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
        40,
    ),
    "conv_no_bias": (lambda: conv(2, 2, 2, bias=False), 40),
    "conv_grouped": (lambda: conv(2, 4, 3, groups=2), 40),
    "conv_padding_same": (lambda: conv(2, 2, 3, padding="same"), 40),
    "conv_circular": (lambda: conv(2, 2, 3, padding=1, padding_mode="circular"), 40),
    "in_place": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 2)),
        4,
    ),
    "twice": (Twice, 4),
    "tied": (Tied, 4),
    "tied_in_forward": (TiedInForward, 4),
    "frozen_layer": (lambda: frozen("0.weight", "0.bias"), 4),
    "frozen_bias": (lambda: frozen("0.bias"), 4),
    "frozen_weight": (lambda: frozen("2.weight"), 4),
    "positions_first": (PositionsFirst, 6),
    "bare_parameter": (Scaled, 4),
    "keyword": (Keyword, 4),
    "spectral_norm": (lambda: normalised(parametrizations.spectral_norm), 4),
    # the older one, by a hook: the layer is a plain nn.Linear
    "spectral_hook": (lambda: normalised(nn.utils.spectral_norm), 4),
}


OPTIMIZERS = {
    "adamw": AdamW(weight_decay=0.1, betas=(0.8, 0.95)),
    "adam": Adam(eps=1e-3),
    "adam_decay": Adam(weight_decay=0.1),
    "sgd": SGD(),
    "sgd_decay": SGD(weight_decay=0.1),
    "momentum": SGD(momentum=0.9),
    "nesterov": SGD(weight_decay=0.1, momentum=0.8, nesterov=True),
}
#: Every option of every optimizer of flat parameters, beyond those above.
MORE_OPTIMIZERS = {
    "adamw_plain": AdamW(weight_decay=0.0, eps=1e-4),
    "adamw_amsgrad": AdamW(weight_decay=0.1, betas=(0.8, 0.9), amsgrad=True),
    "adamw_climbs": AdamW(weight_decay=0.1, maximize=True),
    "adam_amsgrad": Adam(weight_decay=0.1, betas=(0.8, 0.9), amsgrad=True),
    "adam_climbs": Adam(weight_decay=0.1, maximize=True),
    "dampening": SGD(weight_decay=0.1, momentum=0.8, dampening=0.3),
    "sgd_climbs": SGD(momentum=0.8, nesterov=True, maximize=True, weight_decay=0.1),
    "rmsprop": RMSprop(alpha=0.9),
    "rmsprop_decay": RMSprop(weight_decay=0.1, eps=1e-3),
    "rmsprop_momentum": RMSprop(alpha=0.9, momentum=0.7),
    "rmsprop_centered": RMSprop(alpha=0.9, centered=True, weight_decay=0.1),
    "rmsprop_all": RMSprop(
        alpha=0.8, momentum=0.7, centered=True, weight_decay=0.1, maximize=True
    ),
}
if "decoupled_weight_decay" in inspect.signature(torch.optim.Adam).parameters:
    MORE_OPTIMIZERS["adam_decoupled"] = Adam(  # from torch 2.7 on
        weight_decay=0.1, decoupled_weight_decay=True, amsgrad=True
    )
#: Of the parameters of mlp(4, 5, 3, 2): two hidden matrices.
MUONS = {
    "muon": Muon(weight_decay=0.1),
    "muon_plain": Muon(nesterov=False, momentum=0.8, others=AdamW(weight_decay=0.2)),
    "muon_scaled": Muon(
        ns_coefficients=(2.0, -1.5, 0.5),
        ns_steps=3,
        eps=1e-6,
        adjust_lr_fn="match_rms_adamw",
        weight_decay=0.1,
        others=AdamW(betas=(0.8, 0.9), eps=1e-6),
    ),
}


class Same(BaseAttributor):
    """A third party's attributor: of single queries only, and silent on its costs."""

    def __init__(
        self,
        estimator=None,
        *,
        outcome="auto",
        n_retrainings=32,
        retrain_size=0.5,
        memory=None,
        n_jobs=None,
        random_state=None,
        verbose=0,
    ):
        self.estimator, self.outcome = estimator, outcome
        self.n_retrainings, self.retrain_size = n_retrainings, retrain_size
        self.memory, self.n_jobs = memory, n_jobs
        self.random_state, self.verbose = random_state, verbose

    def fit(self, X, y, tasks=None, **fit_params):
        return self._fit(X, y, tasks, fit_params)

    def _fit_attributor(self):
        self.estimand_ = "whether classes are the same"

    def _attribute(self, X, y, outcome):
        same = (y[:, None] == self.y_train_).astype(float)
        return self._by_unit(same), self._by_unit(same + 1)

    def _predict_outcomes(self, X, y, weights, outcome):
        return weights @ self._attribute(X, y, outcome)[0].T


def torch_optimizer(optimizer, params):
    """Return the optimizer of torch.optim with the same options."""
    kind, options = type(optimizer).torch_class, optimizer.options()
    known = inspect.signature(kind).parameters
    options = {name: value for name, value in options.items() if name in known}
    return kind(params, lr=1.0, **options | {"weight_decay": decay_of(optimizer)})


def decay_of(optimizer):
    return optimizer.weight_decay or 0.0


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def fill(module, seed=0, dtype=torch.float64):
    """Give a module's parameters seeded values of about the usual size."""
    module = module.to(dtype)
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            width = max(1, p[0].numel())
            p.copy_(randn(*p.shape, seed=1000 * seed + i) * 0.8 / width**0.5)
    return module


def build(factory, seed=0, dtype=torch.float64):
    """Call a factory; the global generator ends as it was."""
    with torch.random.fork_rng(devices=[]):
        module = factory()
    return fill(module, seed, dtype)


def build_case(name, n_rows=3, dtype=torch.float64):
    """Return module and rows of an entry of MODULES."""
    factory, n_features = MODULES[name]
    return build(factory, dtype=dtype), randn(n_rows, n_features, seed=9, dtype=dtype)


def trainable(module):
    return [p for p in module.parameters() if p.requires_grad]


def dense_jacobian(module, X):
    """Return d output / d parameters of every row, (n, C, P): plain autograd."""
    # a copy: after a call, a module that computes its weights may not be copied
    module = copy.deepcopy(module)
    params = trainable(module)
    rows = []
    for row in X:
        gradients = [
            torch.autograd.grad(
                output, params, retain_graph=True, materialize_grads=True
            )
            for output in module(row[None]).reshape(-1)
        ]
        rows.append(
            torch.stack([torch.cat([g.reshape(-1) for g in gs]) for gs in gradients])
        )
    return torch.stack(rows).detach()


@dataclass
class Tangent:
    """The linearised problem of a module in NumPy: nothing clever."""

    J: np.ndarray  # (n, C, P), columns in the metric
    f: np.ndarray  # (n, C)
    y: np.ndarray
    task: str
    s: np.ndarray  # weights of the run

    @classmethod
    def of(cls, module, X, targets, task, weights, scale=None):
        J = dense_jacobian(module, X)
        J = J if scale is None else J * scale
        with torch.no_grad():
            f = module(X)
        arrays = [t.double().numpy() for t in (J, f)]
        return cls(*arrays, targets.numpy(), task, weights.double().numpy())

    def residuals(self, f):
        if self.task == "regression":
            return f - self.y
        p = np.exp(f - f.max(axis=1, keepdims=True))
        return p / p.sum(axis=1, keepdims=True) - np.eye(f.shape[1])[self.y]

    def output_hessian(self):
        n, C = self.f.shape
        if self.task == "regression":
            return np.broadcast_to(np.eye(C), (n, C, C))
        p = self.residuals(self.f) + np.eye(C)[self.y]
        return p[:, :, None] * np.eye(C) - p[:, :, None] * p[:, None, :]

    def hessian(self, w, damping):
        H = np.einsum("n,ncp,ncd,ndq->pq", w, self.J, self.output_hessian(), self.J)
        return H + damping * np.eye(self.J.shape[2])

    def kept(self, w, regularization):
        return 1.0 if regularization == "fixed" else w.sum() / self.s.sum()

    def damping(self, w, ridge, regularization):
        fraction = max(0.0, 1 - w.sum() / self.s.sum())
        mass = self.s.sum() if regularization == "fixed" else w.sum()
        return ridge(fraction) * mass

    def gradient(self, z, w, ridge, regularization):
        """Of the linearised objective at the step z."""
        r = w[:, None] * self.residuals(self.f + self.J @ z)
        start = self.s[:, None] * self.residuals(self.f)
        r = r - self.kept(w, regularization) * start
        damping = self.damping(w, ridge, regularization)
        return np.einsum("ncp,nc->p", self.J, r) + damping * z

    def newton(self, w, ridge, regularization):
        H = self.hessian(w, self.damping(w, ridge, regularization))
        zero = np.zeros(self.J.shape[2])
        return -np.linalg.solve(H, self.gradient(zero, w, ridge, regularization))

    def influence(self, w, ridge, regularization):
        H = self.hessian(self.s, ridge(0.0) * self.s.sum())
        zero = np.zeros(self.J.shape[2])
        return -np.linalg.solve(H, self.gradient(zero, w, ridge, regularization))
