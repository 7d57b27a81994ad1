"""Modules from a seed, and the layers that make the effect of a row undefined."""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import pytest
import torch
from torch import nn

from skattrib.engine import _modules
from skattrib.engine._modules import (
    ACTIVATIONS,
    activation_size,
    build_mlp,
    call_seeded,
    find_refused_layers,
    probe_rows,
)
from skattrib.engine._row_context import known_behaviour
from tests.cases import build, build_case, randn

MIXES = "rows of a batch influence each other"
DRAWS = "draws random numbers"
BUFFERS = "changes its own buffers"
DIFFERS = "different outputs"


class Centred(nn.Module):
    """Subtracts the mean of the batch: nothing in its type says so."""

    def forward(self, x):
        return x - x.mean(dim=0)


class Noisy(nn.Module):
    """Draws from the global generator."""

    def forward(self, x):
        return x + torch.randn_like(x)


class Counting(nn.Module):
    """Counts its calls in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x


class Doubling(nn.Module):
    """Overwrites its input."""

    def forward(self, x):
        return x.mul_(2)


def with_layer(layer):
    return nn.Sequential(nn.Linear(4, 6), layer, nn.Linear(6, 2))


def with_norm(norm):
    return nn.Sequential(nn.Unflatten(1, (2, 2)), norm, nn.Flatten())


# name: (factory, training, what its layers say, what a probe says)
LAYERS = {
    "mlp": (lambda: with_layer(nn.Tanh()), True, None, None),
    "layer_norm": (lambda: with_layer(nn.LayerNorm(6)), True, None, None),
    "group_norm": (lambda: with_layer(nn.GroupNorm(2, 6)), True, None, None),
    "batch_norm": (lambda: with_norm(nn.BatchNorm1d(2)), True, MIXES, BUFFERS),
    "batch_norm_eval": (lambda: with_norm(nn.BatchNorm1d(2)), False, None, None),
    "batch_norm_without_statistics": (
        lambda: with_norm(nn.BatchNorm1d(2, track_running_stats=False)),
        False,
        MIXES,
        MIXES,
    ),
    "dropout": (lambda: with_layer(nn.Dropout()), True, DRAWS, DIFFERS),
    "dropout_eval": (lambda: with_layer(nn.Dropout()), False, None, None),
    "dropout_0": (lambda: with_layer(nn.Dropout(0)), True, None, None),
    "alpha_dropout": (lambda: with_layer(nn.AlphaDropout()), True, DRAWS, DIFFERS),
    "rrelu": (lambda: with_layer(nn.RReLU()), True, DRAWS, DIFFERS),
    "rrelu_eval": (lambda: with_layer(nn.RReLU()), False, None, None),
    "instance_norm": (lambda: with_norm(nn.InstanceNorm1d(2)), True, None, None),
    "instance_norm_statistics": (
        lambda: with_norm(nn.InstanceNorm1d(2, track_running_stats=True)),
        True,
        MIXES,
        BUFFERS,
    ),
    "custom_mixing": (lambda: with_layer(Centred()), True, None, MIXES),
    "custom_mixing_eval": (lambda: with_layer(Centred()), False, None, MIXES),
    "custom_random": (lambda: with_layer(Noisy()), False, None, DIFFERS),
    "custom_buffer": (lambda: with_layer(Counting()), False, None, BUFFERS),
}


@pytest.mark.parametrize("name", LAYERS)
def test_what_layers_do_in_training_is_known(name):
    factory, training, by_type, _ = LAYERS[name]
    module = build(factory).train(training)
    known, refused = known_behaviour(module), find_refused_layers(module)
    assert (known.masks or known.draws) == (by_type == DRAWS)
    assert (known.mixes or bool(refused)) == (by_type == MIXES)
    assert all(label.startswith("1 (") for label, _ in refused)


@pytest.mark.parametrize("name", LAYERS)
def test_probe(name):
    factory, training, _, expected = LAYERS[name]
    found = probe_rows(build(factory).train(training), randn(3, 4))
    assert (found is None) == (expected is None)
    assert expected is None or expected in found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probe_tolerates_rounding(dtype):
    """Sums over a batch come out in another order than over a row."""
    module, X = build_case("conv", n_rows=8, dtype=dtype)
    assert probe_rows(module, 1e3 * X) is None


def test_probe_notices_a_module_that_overwrites_its_input():
    module = nn.Sequential(Doubling(), build(lambda: nn.Linear(4, 2)))
    assert DIFFERS in probe_rows(module, randn(3, 4))


def test_recurrent_and_attention_dropout():
    module = build(lambda: nn.GRU(3, 4, num_layers=2, dropout=0.5))
    assert known_behaviour(module).draws
    assert not any(known_behaviour(module.eval()))
    module = build(lambda: nn.MultiheadAttention(4, 2, dropout=0.1))
    assert known_behaviour(module).masks


# -------------------------------------------------------------------- building
def parameters_equal(one, other):
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_build_mlp(activation):
    module = build_mlp(3, (5, 4), 2, activation, seed=0)
    kinds = [type(layer) for layer in module]
    between = ACTIVATIONS[activation]
    assert kinds == [nn.Linear, between, nn.Linear, between, nn.Linear]
    shapes = [tuple(layer.weight.shape) for layer in module[::2]]
    assert shapes == [(5, 3), (4, 5), (2, 4)]
    assert parameters_equal(module, build_mlp(3, (5, 4), 2, activation, seed=0))
    assert not parameters_equal(module, build_mlp(3, (5, 4), 2, activation, seed=1))


def test_build_mlp_without_hidden_layers():
    (layer,) = build_mlp(3, (), 2, "tanh", seed=0)
    assert (layer.in_features, layer.out_features) == (3, 2)


def test_build_mlp_draws_as_torch_does():
    """The distribution of nn.Linear: uniform within 1 / √(inputs)."""
    ours = build_mlp(100, (), 300, "tanh", seed=0)[0]
    with torch.random.fork_rng(devices=[]):
        theirs = nn.Linear(100, 300)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        # variance 0.1² / 3, known to about 0.9 / √(number of values)
        spread = 4 * 0.9 / p.numel() ** 0.5
        for v in (p.detach(), q.detach()):
            assert 0.095 < float(v.abs().max()) <= 0.1
            assert abs(float(v.var()) / (0.01 / 3) - 1) < spread


def factory(n_inputs, n_outputs):
    first = nn.Linear(n_inputs, 30)
    time.sleep(1e-4)  # lets another thread in
    return nn.Sequential(first, nn.Linear(30, n_outputs))


def test_call_seeded_passes_the_shape_and_leaves_the_global_generator():
    before = torch.random.get_rng_state()
    module = call_seeded(factory, 7, 3, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (module[0].in_features, module[1].out_features) == (7, 3)
    assert parameters_equal(module, call_seeded(factory, 7, 3, seed=0))
    assert not parameters_equal(module, call_seeded(factory, 7, 3, seed=1))


def test_call_seeded_leaves_the_global_generator_after_an_error():
    def failing(n_inputs, n_outputs):
        torch.randn(3)
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        call_seeded(failing, 2, 2, seed=0)
    call_seeded(factory, 2, 2, seed=0)  # the lock is free again


def test_call_seeded_from_many_threads():
    seeds = [i % 4 for i in range(64)]
    expected = [call_seeded(factory, 50, 3, seed) for seed in range(4)]
    with ThreadPoolExecutor(8) as pool:
        built = list(pool.map(lambda seed: call_seeded(factory, 50, 3, seed), seeds))
    for seed, module in zip(seeds, built, strict=True):
        assert parameters_equal(module, expected[seed])


def test_factory_may_build_by_a_factory(monkeypatch):
    """As one that pre-trains does: it must not wait for itself."""
    # a lock of its own, lest a failure here blocks all other tests
    lock = type(_modules.global_generator)()
    monkeypatch.setattr(_modules, "global_generator", lock)
    built = []

    def nested(n_inputs, n_outputs):
        return nn.Sequential(call_seeded(factory, n_inputs, n_outputs, seed=3))

    thread = Thread(
        target=lambda: built.append(call_seeded(nested, 4, 2, seed=0)), daemon=True
    )
    thread.start()
    thread.join(timeout=5)
    assert built
    assert parameters_equal(built[0][0], call_seeded(factory, 4, 2, seed=3))


@pytest.mark.parametrize(("name", "size"), [("mlp", 5 + 5 + 3), ("in_place", 12)])
def test_activation_size(name, size):
    module, X = build_case(name)
    assert activation_size(module, X) == size
    assert not any(layer._forward_hooks for layer in module.modules())
