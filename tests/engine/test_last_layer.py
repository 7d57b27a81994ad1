"""Readout channels: gradients of the last layer, sparse residuals, sketches."""

import math

import pytest
import torch
from torch import nn

from skattrib.engine._last_layer import (
    Head,
    Sketcher,
    find_head,
    hidden_states,
    residuals,
)
from skattrib.engine._losses import CrossEntropy, SquaredError
from tests.cases import build, mlp, randn

N, C, D = 6, 7, 5
ROWS = torch.tensor([0, 0, 1, 1, 1, 2])


def head(bias=True, n_outputs=C):
    layer = build(lambda: nn.Linear(D, n_outputs, bias=bias))
    return Head.of(layer)


def tokens(n=N, n_outputs=C):
    """Return hidden states, targets and the logits that the head makes."""
    return 2 * randn(n, D, seed=1), torch.arange(n) % n_outputs


def logits(own, hidden):
    out = hidden @ own.weight.T
    return out if own.bias is None else out + own.bias


def channels(own, hidden, targets, rows=ROWS, sizes=16, how=None, seed=0, **options):
    top_k = options.pop("top_k", None)
    residual = residuals(logits(own, hidden), targets, CrossEntropy(), top_k=top_k)
    tables = Sketcher.draw(own, how, sizes, seed)
    names = options.pop("channels", ("rh", "gh"))
    sketcher = Sketcher(own, names, how, sizes, tables, **options)
    return sketcher(residual, hidden, rows, int(rows.max()) + 1)


def error(found, expected):
    return float((found - expected).detach().norm() / expected.detach().norm())


# ------------------------------------------------------------------ identities
@pytest.mark.parametrize("bias", [True, False])
def test_residuals_and_channels_are_gradients(bias):
    own, (hidden, targets) = head(bias), tokens()
    W = own.weight.clone().requires_grad_()
    b = None if own.bias is None else own.bias.clone().requires_grad_()
    h = hidden.clone().requires_grad_()
    z = nn.functional.linear(h, W, b)
    z.retain_grad()
    losses = nn.functional.cross_entropy(z, targets, reduction="none")
    losses.sum().backward()
    residual = residuals(z.detach(), targets, CrossEntropy())
    assert error(residual.dense(), z.grad) < 1e-12
    assert error(residual.project(own.weight), h.grad) < 1e-12
    # one row of all tokens: the gradient in weight and bias
    found = channels(own, hidden, targets, rows=torch.zeros(N, dtype=torch.int64))
    expected = W.grad if b is None else torch.cat([W.grad, b.grad[:, None]], dim=1)
    assert error(found["rh"].reshape(C, -1), expected) < 1e-12
    assert error(found["gh"][0], (h.grad.T @ own.with_one(hidden)).flatten()) < 1e-12


def test_kernel_is_the_inner_product_of_head_gradients():
    own, (hidden, targets) = head(), tokens()
    found = channels(own, hidden, targets)["rh"]
    gradients = []
    for row in range(3):
        W, b = own.weight.clone().requires_grad_(), own.bias.clone().requires_grad_()
        z = nn.functional.linear(hidden[ROWS == row], W, b)
        loss = nn.functional.cross_entropy(z, targets[ROWS == row], reduction="sum")
        both = torch.autograd.grad(loss, (W, b))
        gradients.append(torch.cat([g.flatten() for g in both]))
    gradients = torch.stack(gradients)
    assert error(found @ found.T, gradients @ gradients.T) < 1e-10


def test_regression_residual_is_the_gradient_of_half_the_squared_error():
    out = randn(N, 2, seed=3).requires_grad_()
    y = randn(N, 2, seed=4)
    (0.5 * (out - y).square().sum()).backward()
    found = residuals(out.detach(), y, SquaredError())
    assert error(found.dense(), out.grad) < 1e-12


def test_temperature_is_that_of_the_softmax():
    z, targets = randn(N, C, seed=3), torch.arange(N) % C
    found = residuals(z, targets, CrossEntropy(), temperature=0.5)
    expected = (z / 0.5).softmax(dim=1) - nn.functional.one_hot(targets, C)
    assert error(found.dense(), expected) < 1e-12


def test_sure_tokens_keep_their_digits():
    z = torch.tensor([[30.0, 0.0, 0.0]])
    found = residuals(z, torch.tensor([0]), CrossEntropy()).dense()
    exact = -2 * math.exp(-30.0)
    assert found[0, 0].item() == pytest.approx(exact, rel=1e-4)


# ----------------------------------------------------------------------- top-k
@pytest.mark.parametrize("top_k", [C, C + 3, None])
def test_all_classes_are_the_dense_residual(top_k):
    z, targets = randn(N, C, seed=3), torch.arange(N) % C
    found = residuals(z, targets, CrossEntropy(), top_k=top_k)
    dense = residuals(z, targets, CrossEntropy())
    assert error(found.dense(), dense.dense()) < 1e-12


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_few_classes_hold_the_likely_ones_and_the_target(top_k):
    own, (hidden, targets) = head(), tokens()
    z = logits(own, hidden)
    found = residuals(z, targets, CrossEntropy(), top_k=top_k)
    dense = residuals(z, targets, CrossEntropy()).dense()
    sparse = found.dense()
    assert found.values.shape == (N, top_k)
    for i in range(N):
        kept = found.indices[i].tolist()
        assert len(set(kept)) == top_k
        assert int(targets[i]) in kept
        likely = z[i].argsort(descending=True)[:top_k].tolist()
        assert len(set(likely) - set(kept)) <= (int(targets[i]) not in likely)
        assert error(sparse[i, kept], dense[i, kept]) < 1e-12
    assert error(found.project(own.weight), sparse @ own.weight) < 1e-12
    tables = Sketcher.draw(own, "tensor", 4, 0)["r"]
    whole = residuals(z, targets, CrossEntropy())
    whole = type(whole)(sparse, None, C)
    assert error(found.sketch(tables, 4), whole.sketch(tables, 4)) < 1e-12


# -------------------------------------------------------------------- sketches
def test_tensor_sketch_is_direct_hashing():
    own, (hidden, targets) = head(), tokens()
    m = 16
    found = channels(own, hidden, targets, how="tensor", sizes=m)
    exact = channels(own, hidden, targets)
    tables = Sketcher.draw(own, "tensor", m, 0)
    (right,), (right_sign,) = tables["h"]
    for name in ("rh", "gh"):
        (left,), (left_sign,) = tables[name[0]]
        where = (left[:, None].long() + right[None].long()) % m
        sign = left_sign[:, None].double() * right_sign[None].double()
        outer = exact[name].reshape(3, len(left), len(right)) * sign
        expected = torch.zeros(3, m, dtype=torch.float64)
        expected.index_add_(1, where.flatten(), outer.flatten(1))
        assert error(found[name], expected) < 1e-12


def test_factor_sketch_is_two_sided():
    own, (hidden, targets) = head(), tokens()
    sizes = {"r": 4, "g": 3, "h": 5}
    found = channels(own, hidden, targets, how="factor", sizes=sizes)
    exact = channels(own, hidden, targets)
    tables = Sketcher.draw(own, "factor", sizes, 0)

    def matrix(name):
        (index,), (sign,) = tables[name]
        out = torch.zeros(len(index), sizes[name], dtype=torch.float64)
        out[torch.arange(len(index)), index.long()] = sign.double()
        return out

    for name in ("rh", "gh"):
        left, right = matrix(name[0]), matrix("h")
        outer = exact[name].reshape(3, len(left), len(right))
        expected = torch.einsum("nab,ai,bj->nij", outer, left, right).flatten(1)
        assert error(found[name], expected) < 1e-12


@pytest.mark.parametrize("how", ["tensor", "factor", None])
def test_rows_are_sums_of_their_tokens(how):
    own, (hidden, targets) = head(), tokens()
    sizes = {"r": 4, "g": 3, "h": 5} if how == "factor" else 8
    whole = channels(own, hidden, targets, how=how, sizes=sizes)
    alone = channels(own, hidden, targets, rows=torch.arange(N), how=how, sizes=sizes)
    for name, value in whole.items():
        expected = torch.zeros_like(value).index_add_(0, ROWS, alone[name])
        assert error(value, expected) < 1e-12


def test_tensor_sketch_is_unbiased_with_the_variance_of_theory():
    n_draws = 1000
    own, m = head(bias=False, n_outputs=40), 32
    hidden, targets = tokens(2, 40)
    rows = torch.arange(2)
    exact = channels(own, hidden, targets, rows=rows)["rh"]
    true = float(exact[0] @ exact[1])
    found = []
    for seed in range(n_draws):
        s = channels(
            own, hidden, targets, rows=rows, how="tensor", sizes=m, seed=7 * seed
        )["rh"]
        found.append(float(s[0] @ s[1]))
    found = torch.tensor(found, dtype=torch.float64)
    se = float(found.std()) / n_draws**0.5
    assert abs(float(found.mean()) - true) < 4 * se
    # collisions of pairs (i, j) ≠ (k, l): independent signs unless a factor agrees
    X, Y = exact[0].reshape(40, D), exact[1].reshape(40, D)
    expected = _variance(X, Y) / m
    assert float(found.std()) == pytest.approx(expected**0.5, rel=0.1)


def _variance(X, Y):
    """m times the variance of ⟨S X, S Y⟩ for the tensor sketch of X and Y (a, b).

    Σ over pairs of entries that may collide, p and q, of E[signs] (x_p y_q)(...): the
    signs of entries (i, j) and (k, l) cancel in squares and, where i ≠ k and j ≠ l,
    also in the product of (i, l) and (k, j).
    """
    x, y = X.flatten(), Y.flatten()
    a, b = X.shape
    i, j = torch.arange(a).repeat_interleave(b), torch.arange(b).repeat(a)
    p, q = torch.triu_indices(a * b, a * b, offset=1)
    cross = x[p] * y[q] + x[q] * y[p]
    total = cross @ cross
    # entries (i, j), (k, l) and (i, l), (k, j) collide together when all four hashes do
    apart = (i[p] != i[q]) & (j[p] != j[q])
    swapped_p = i[p] * b + j[q]
    swapped_q = i[q] * b + j[p]
    other = x[swapped_p] * y[swapped_q] + x[swapped_q] * y[swapped_p]
    return float(total + (cross * other)[apart].sum())


def test_mean_hidden_state():
    own, (hidden, targets) = head(), tokens()
    found = channels(own, hidden, targets, channels=("h",), how="tensor", sizes=16)
    expected = torch.stack([hidden[ROWS == k].mean(dim=0) for k in range(3)])
    assert error(found["h"], expected) < 1e-12
    short = channels(own, hidden, targets, channels=("h",), how="tensor", sizes=3)
    assert short["h"].shape == (3, 3)


def test_tokens_of_norm_1():
    own, (hidden, targets) = head(), tokens()
    rows = torch.arange(N)
    found = channels(own, hidden, targets, rows=rows, per_token=True)
    plain = channels(own, hidden, targets, rows=rows)
    for name, value in found.items():
        unit = plain[name] / plain[name].norm(dim=1, keepdim=True)
        assert error(value, unit) < 1e-7


def test_widths():
    own = head()
    sizes = {"r": 4, "g": 3, "h": 5}
    for how, size, expected in [
        ("tensor", 16, {"rh": 16, "gh": 16, "h": D}),
        ("tensor", 3, {"rh": 3, "gh": 3, "h": 3}),
        ("factor", sizes, {"rh": 20, "gh": 15, "h": D}),
        (None, 16, {"rh": C * (D + 1), "gh": D * (D + 1), "h": D}),
    ]:
        tables = Sketcher.draw(own, how, size, 0)
        names = ("rh", "gh", "h")
        sketcher = Sketcher(own, names, how, size, tables)
        hidden, targets = tokens()
        residual = residuals(logits(own, hidden), targets, CrossEntropy())
        found = sketcher(residual, hidden, ROWS, 3)
        assert {name: sketcher.width(name) for name in names} == expected
        assert {name: value.shape[1] for name, value in found.items()} == expected


# ------------------------------------------------------------------------ head
def test_the_head_is_the_layer_that_makes_the_output():
    module = build(lambda: mlp(4, 5, 3))
    X = randn(6, 4)
    layer = find_head(module, X)
    assert layer is module[-1]
    hidden, out = hidden_states(module, layer, X)
    assert error(layer(hidden), out) < 1e-12
    assert not module._forward_hooks
    assert not layer._forward_pre_hooks


def test_a_head_is_tried_with_other_outputs():
    """On two rows, what comes after may do nothing by chance."""
    first, last = build(lambda: nn.Linear(4, 8)), build(lambda: nn.Linear(8, 1))
    with torch.no_grad():
        last.bias.add_(50.0)
    for after in (nn.ReLU(), nn.ReLU(inplace=True)):
        module = nn.Sequential(first, nn.Tanh(), last, after)
        X = randn(6, 4)
        assert (module(X) > 0).all()
        with pytest.raises(ValueError, match=r"not that of an nn\.Linear layer"):
            find_head(module, X)


@pytest.mark.parametrize(
    "last", [nn.Softmax(dim=1), nn.LogSoftmax(dim=1), nn.Tanh(), nn.Conv1d(1, 1, 1)]
)
def test_no_head(last):
    module = build(lambda: mlp(4, 5, 3))
    layers = [*module, nn.Unflatten(1, (1, 3)), last, nn.Flatten()]
    module = nn.Sequential(*layers).double()
    with pytest.raises(ValueError, match=r"not that of an nn\.Linear layer"):
        find_head(module, randn(6, 4))
