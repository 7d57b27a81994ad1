"""Flat parameters, and rows in pieces."""

import copy

import pytest
import torch
from numpy.testing import assert_array_equal

from skattrib.engine._functional import (
    FunctionalModule,
    chunks,
    spread,
)
from tests.cases import (
    MODULES,
    Tied,
    build,
    build_case,
    frozen,
    mlp,
    randn,
    trainable,
)


# ------------------------------------------------------------------ parameters
@pytest.mark.parametrize("name", MODULES)
def test_flat_parameters_round_trip(name):
    module, X = build_case(name)
    model = FunctionalModule(module)
    flat = model.flatten()
    assert flat.shape == (model.n_params,)
    assert model.n_params == sum(p.numel() for p in trainable(module))
    pieces = model.unflatten(flat)
    for name, p in zip(model.names, trainable(module), strict=True):
        assert torch.equal(pieces[name], p)
    with torch.no_grad():
        expected = module(X)
        assert_array_equal(model.outputs(flat, X), expected.reshape(len(X), -1))


def test_outputs_elsewhere_leave_the_module_alone_and_load_moves_it():
    module, X = build_case("layer_norm")
    model, before = FunctionalModule(module), copy.deepcopy(module.state_dict())
    there = model.flatten() + randn(model.n_params, seed=2)
    with torch.no_grad():
        elsewhere = model.outputs(there, X)
        here = module(X)
    assert not torch.allclose(elsewhere, here)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    model.load(there)
    assert torch.equal(model.flatten(), there)
    with torch.no_grad():
        assert torch.equal(module(X), elsewhere)


def test_flatten_is_a_copy():
    model = FunctionalModule(build(lambda: mlp(2, 2)))
    flat = model.flatten()
    before = flat.clone()
    model.load(torch.zeros_like(flat))
    assert torch.equal(flat, before)
    flat += 1
    assert not model.flatten().any()


def test_tied_parameters_appear_once_and_stay_tied():
    module = build(Tied)
    model = FunctionalModule(module)
    assert model.names == ["first.weight", "first.bias", "second.bias"]
    there = randn(model.n_params, seed=2)
    X = randn(3, 4, seed=3)
    elsewhere = model.outputs(there, X)
    model.load(there)
    assert module.second.weight is module.first.weight
    assert torch.equal(elsewhere, module(X))


def test_frozen_parameters_stay():
    module = build(lambda: frozen("0.weight", "2.bias"))
    model = FunctionalModule(module)
    assert model.names == ["0.bias", "2.weight"]
    before = copy.deepcopy(module.state_dict())
    model.load(torch.zeros(model.n_params))
    after = module.state_dict()
    assert torch.equal(after["0.weight"], before["0.weight"])
    assert torch.equal(after["2.bias"], before["2.bias"])
    assert not after["0.bias"].any()


def test_deep_copy_has_a_module_of_its_own():
    model = FunctionalModule(build(lambda: mlp(3, 2)))
    before, other = model.flatten(), copy.deepcopy(model)
    other.load(torch.zeros(model.n_params))
    assert torch.equal(model.flatten(), before)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_apart_has_the_same_weights_and_layers_of_its_own(name):
    module, X = build_case(name)
    model = FunctionalModule(module)
    other = model.apart()
    tensors = [*module.parameters(), *module.buffers()]
    theirs = [*other.module.parameters(), *other.module.buffers()]
    assert all(one is two for one, two in zip(tensors, theirs, strict=True))
    assert not set(map(id, module.modules())) & set(map(id, other.module.modules()))
    assert other.names == model.names

    def swapped(*_):
        # in the middle of a call with other parameters, the module has its own
        seen.append([p is q for p, q in zip(module.parameters(), trained, strict=True)])

    seen, trained = [], list(module.parameters())
    other.module.register_forward_hook(swapped)
    there = model.flatten() + 1
    with torch.no_grad():
        found = other.outputs(there, X)
    assert seen
    assert all(map(all, seen))
    n_seen = len(seen)
    with torch.no_grad():
        assert_array_equal(found, model.outputs(there, X))
    assert len(seen) == n_seen


@pytest.mark.parametrize(
    ("n", "size", "pieces"),
    [
        (5, 2, [(0, 2), (2, 4), (4, 5)]),
        (4, 4, [(0, 4)]),
        (3, 9, [(0, 3)]),
        (2, 0, [(0, 1), (1, 2)]),
        (0, 3, []),
    ],
)
def test_chunks(n, size, pieces):
    assert [(s.start, s.stop) for s in chunks(n, size)] == pieces


@pytest.mark.parametrize(
    ("n", "n_wanted", "expected"),
    [(9, 3, [0, 4, 8]), (3, 8, [0, 1, 2]), (5, 1, [0]), (1, 4, [0])],
)
def test_spread(n, n_wanted, expected):
    assert spread(n, n_wanted).tolist() == expected
