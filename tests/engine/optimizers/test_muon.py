"""Muon equals torch's, in the precision of the parameters; what it takes for hidden."""

import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from skattrib.engine._optimizers import AdamW, Muon
from tests.cases import MUONS, build, mlp, randn


def has_muon(test):
    """Leave a test out where torch, before 2.9, has no Muon."""
    return test if hasattr(torch.optim, "Muon") else None


def steps_of_torch(module, optimizer, gradients, rate=0.02):
    """Take the steps by torch.optim.Muon and AdamW; return the flat parameters."""
    matrices = [module[0].weight, module[2].weight]
    ids = set(map(id, matrices))
    rest = [p for p in module.parameters() if id(p) not in ids]
    muon = {
        name: value
        for name, value in optimizer.options().items()
        if name not in ("others", "matrices")
    }
    others = optimizer.others
    decay = others.weight_decay
    decay = optimizer.weight_decay if decay is None else decay
    pair = [
        torch.optim.Muon(
            matrices, lr=rate, **muon | {"weight_decay": optimizer.weight_decay or 0.0}
        ),
        torch.optim.AdamW(
            rest, lr=rate, betas=others.betas, eps=others.eps, weight_decay=decay or 0.0
        ),
    ]
    for gradient in gradients:
        pieces = torch.split(gradient, [p.numel() for p in module.parameters()])
        for p, piece in zip(module.parameters(), pieces, strict=True):
            p.grad = piece.view(p.shape).clone()
        for one in pair:
            one.step()
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


def our_steps(module, optimizer, gradients, rate=0.02):
    params = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    optimizer, state = optimizer.bound(module), None
    for t, gradient in enumerate(gradients, start=1):
        state = optimizer.initial_state(params) if state is None else state
        params, state = optimizer.step(params, gradient, state, t, rate)
    return params


def fresh(dtype=torch.float64):
    return build(lambda: mlp(4, 5, 3, 2), dtype=dtype)


def gradients(dtype=torch.float64):
    size = sum(p.numel() for p in fresh().parameters())
    return [randn(size, seed=t, dtype=dtype) * (t != 20) for t in range(1, 51)]


@has_muon
@pytest.mark.parametrize("name", MUONS)
def test_fifty_steps_equal_those_of_torch_in_double_precision(name, monkeypatch):
    """The one thing changed in torch's step is that it does not round to bfloat16."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    expected = steps_of_torch(fresh(), MUONS[name], gradients())
    assert_allclose(our_steps(fresh(), MUONS[name], gradients()), expected, atol=1e-12)


@has_muon
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MUONS)
def test_fifty_steps_are_those_of_torch_within_its_rounding(name, dtype):
    """bfloat16 has eight bits: 0.4 % of a number; 2 % of the way of fifty steps."""
    begin = torch.cat([p.detach().reshape(-1) for p in fresh(dtype).parameters()])
    theirs = steps_of_torch(fresh(dtype), MUONS[name], gradients(dtype))
    ours = our_steps(fresh(dtype), MUONS[name], gradients(dtype))
    assert ours.dtype == dtype
    error = (ours - theirs).norm() / (theirs - begin).norm()
    assert 1e-5 < float(error) < 0.02


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.names, self.scale = nn.Embedding(3, 4), nn.Parameter(torch.ones(4))
        self.inner, self.filter = nn.Linear(4, 5), nn.Conv1d(1, 2, 3)
        self.head = nn.Linear(5, 2)


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.ones(3, 4))
        self.last = nn.Parameter(torch.ones(4, 2))


HIDDEN = {
    "two of three layers": (lambda: mlp(4, 5, 3, 2), ((0, 5, 4), (25, 3, 5))),
    "no hidden layer": (lambda: nn.Linear(4, 2), ()),
    "embedding, filter": (Embedded, ((16, 5, 4),)),
    "no linear layer": (Bare, ((0, 3, 4),)),
}


@pytest.mark.parametrize(("factory", "expected"), HIDDEN.values(), ids=list(HIDDEN))
def test_hidden_matrices(factory, expected):
    assert Muon().bound(build(factory)).matrices == expected


def test_frozen_matrices_are_not_in_the_vector():
    module = build(lambda: mlp(4, 5, 3, 2))
    module[0].requires_grad_(False)
    assert Muon().bound(module).matrices == ((0, 3, 5),)


def test_without_matrices_it_is_adamw():
    module, own = build(lambda: nn.Linear(4, 2)), {"weight_decay": 0.1}
    params, gradient = randn(10), randn(10, seed=1)
    results = []
    for optimizer in (Muon(**own).bound(module), AdamW(**own)):
        state = optimizer.initial_state(params)
        results.append(optimizer.step(params, gradient, state, 1, 0.1)[0])
    assert_allclose(*results, rtol=0, atol=0)


def test_singular_values_are_pushed_towards_one():
    """From very different ones, into the band that the polynomial keeps."""
    found = torch.linalg.svdvals(Muon()._orthogonal(randn(2, 6, 4)))
    assert 0.6 < float(found.min()) < float(found.max()) < 1.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ns_steps": 0}, "ns_steps must be a whole number from 1 to 99, got 0"),
        ({"ns_steps": 2.5}, "ns_steps must be a whole number"),
        ({"ns_coefficients": (1.0, 2.0)}, "ns_coefficients must be three numbers"),
        ({"ns_coefficients": "abc"}, "ns_coefficients must be three numbers"),
        ({"adjust_lr_fn": "mine"}, "adjust_lr_fn must be one of .*match_rms_adamw"),
        ({"others": AdamW(amsgrad=True)}, "others must be an AdamW without amsgrad"),
        ({"others": "adamw"}, "others must be an AdamW"),
        (
            {"matrices": ((0, 2, 3), (5, 1, 1))},
            "matrices must be in order and not overlap",
        ),
        ({"matrices": ((0, 0, 3),)}, "matrices must be in order and not overlap"),
        ({"matrices": ((0, -1, 3),)}, "matrices must be a whole number"),
        ({"momentum": 1.0}, r"momentum must be a number in \[0, 1\)"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=f"Muon: {message}"):
        Muon(**options)


def test_it_must_know_the_module():
    with pytest.raises(ValueError, match=r"Muon does not know the module.*bound"):
        Muon().initial_state(randn(5))
    with pytest.raises(ValueError, match="matrices do not fit 5 parameters"):
        Muon(matrices=((0, 2, 3),)).initial_state(randn(5))
