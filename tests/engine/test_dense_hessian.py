"""Second derivatives that are written out equal autograd's."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch import nn

from skattrib.engine._adjoint import _Gradient
from skattrib.engine._dense_hessian import DenseGradient, dense_layers
from skattrib.engine._functional import FunctionalModule
from skattrib.engine._losses import CrossEntropy
from skattrib.engine._minibatch import Minibatch, same_seeds
from tests.cases import LOSSES, MODULES, build, mlp, randn

N_ROWS, N_QUERIES = 7, 4
ACTIVATIONS = [nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Identity]


def problem(module, n_runs, dtype=torch.float64):
    """Return a module's function, parameters of some runs, rows and their shares."""
    model = FunctionalModule(module.to(dtype))
    params = randn(n_runs, model.n_params, seed=1).to(dtype)
    X = randn(N_ROWS, 4, seed=2).to(dtype)
    shares = randn(n_runs, N_ROWS, seed=3).clamp(min=0).to(dtype)
    return model, params, X, shares


def targets_of(task, n_outputs):
    if task == "regression":
        return randn(N_ROWS, n_outputs, seed=4)
    return torch.arange(N_ROWS) % n_outputs


def assert_same(module, n_runs, task="classification", clip_norm=None):
    model, params, X, shares = problem(module, n_runs)
    y, loss = targets_of(task, module[-1].out_features), LOSSES[task]
    layers = dense_layers(model, X)
    assert layers is not None
    minibatch = Minibatch(model, loss, X, y)
    rest = params, None, shares, clip_norm, same_seeds(len(params), 0, X)
    ours = DenseGradient(layers, minibatch, *rest)
    theirs = _Gradient(minibatch, "exact", *rest)
    cotangents = randn(N_QUERIES, n_runs, model.n_params, seed=5)
    before = [t.clone() for t in (params, X, shares, cotangents)]
    found, expected = ours.products(cotangents), theirs.products(cotangents)
    pairs = zip((ours.value, *found), (theirs.value, *expected), strict=True)
    for one, two in pairs:
        assert one.shape == two.shape
        assert float((one - two).norm()) <= 1e-13 * float(two.norm())
    for value, kept in zip((params, X, shares, cotangents), before, strict=True):
        assert_array_equal(value, kept)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("n_runs", [1, 3])
def test_activations(activation, n_runs):
    assert_same(build(lambda: mlp(4, 5, 6, 3, activation=activation)), n_runs)


@pytest.mark.parametrize("clip_norm", [None, 0.01, 100.0])
@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("sizes", [(4, 3), (4, 5, 3), (4, 5, 1)])
def test_losses_and_clipping(sizes, task, clip_norm):
    assert_same(build(lambda: mlp(*sizes)), 2, task, clip_norm)


@pytest.mark.parametrize("bias", [True, False])
def test_biases(bias):
    assert_same(build(lambda: mlp(4, 5, 6, 2, bias=bias)), 2)


def test_products_are_symmetric():
    model, params, X, shares = problem(build(lambda: mlp(4, 5, 3)), 1)
    y, layers = targets_of("classification", 3), dense_layers(model, X)
    minibatch = Minibatch(model, CrossEntropy(), X, y)
    gradient = DenseGradient(layers, minibatch, params, None, shares, None)
    eye = torch.eye(model.n_params, dtype=torch.float64)[:, None]
    hessian = gradient.products(eye)[0][:, 0].numpy()
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-14)


def hooked():
    module = mlp(4, 5, 3)
    module[0].register_forward_hook(lambda layer, args, out: 2 * out)
    return module


def shared():
    module = mlp(4, 4, 4)
    module[2].weight = module[0].weight
    return module


OTHERS = {
    "frozen": lambda: mlp(4, 5, 3).requires_grad_(False),
    "one frozen": lambda: nn.Sequential(
        nn.Linear(4, 5).requires_grad_(False), nn.Tanh(), nn.Linear(5, 3)
    ),
    "hooked": hooked,
    "shared": shared,
    "twice": lambda: nn.Sequential(*[nn.Linear(4, 4)] * 2),
    "activation last": lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh()),
    "activation first": lambda: nn.Sequential(nn.Tanh(), nn.Linear(4, 3)),
    "dropout": lambda: nn.Sequential(nn.Linear(4, 5), nn.Dropout(), nn.Linear(5, 3)),
    "parametrised": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), nn.Linear(5, 3)
    ),
    "nested": lambda: nn.Sequential(mlp(4, 5, 5), nn.Tanh(), nn.Linear(5, 3)),
    "of another class": lambda: type("Mine", (nn.Sequential,), {})(nn.Linear(4, 3)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_anything_else_is_left_to_autograd(name):
    model = FunctionalModule(build(OTHERS[name]))
    assert dense_layers(model, torch.zeros(2, 4)) is None


def test_which_modules_are_known():
    known = set()
    for name, (factory, n_features) in MODULES.items():
        model = FunctionalModule(build(factory))
        if dense_layers(model, torch.zeros(2, n_features)) is not None:
            known.add(name)
    assert {"mlp", "no_bias", "one_layer"} <= known
    assert not known & {"layer_norm", "sequence", "conv"}
    model = FunctionalModule(build(lambda: mlp(4, 3)))
    assert dense_layers(model, torch.zeros(2, 5, 4)) is None
