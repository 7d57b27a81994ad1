"""One table for all optimizers: torch's steps, and derivatives by three ways."""

import copy
import math
from dataclasses import fields

import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from skattrib.engine._functional import FunctionalModule
from skattrib.engine._losses import Loss
from skattrib.engine._optimizers import (
    OPTIMIZERS as REGISTERED,
)
from skattrib.engine._optimizers import (
    AdamW,
    Optimizer,
    StepDerivative,
    map_state,
    with_values,
)
from skattrib.engine._tangent import tangents
from skattrib.engine._training import train
from skattrib.engine._trajectory import Recipe
from tests.cases import (
    MORE_OPTIMIZERS,
    MUONS,
    OPTIMIZERS,
    build,
    decay_of,
    mlp,
    randn,
    torch_optimizer,
)
from tests.engine.test_adjoint import PLENTY, error, problem, random_weights, scores

FLAT = {**OPTIMIZERS, **MORE_OPTIMIZERS}
TABLE = {**FLAT, **MUONS}
CLOSE = {"rtol": 0, "atol": 1e-12}
SIZES = (4, 5, 3, 2)

# torch's own forward mode, on first use
pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated:DeprecationWarning"
)


def module():
    return build(lambda: mlp(*SIZES))


def of(name):
    """Return an entry of the table, for the parameters of the module."""
    return TABLE[name].bound(module())


N_PARAMS = FunctionalModule(module()).n_params


def started(optimizer, n_models, t, shift=0.0):
    """Return parameters, gradient and state before step t of a made-up run."""
    shape = (N_PARAMS,) if n_models is None else (n_models, N_PARAMS)
    params = randn(*shape)
    state = optimizer.initial_state(params)
    for earlier in range(1, t):
        gradient = randn(*shape, seed=earlier) + shift
        params, state = optimizer.step(params, gradient, state, earlier, 0.1)
    return params, randn(*shape, seed=t) + shift, state


def cotangents(params, state, n_queries=4, first_seed=19):
    drawn = [
        randn(n_queries, *value.shape, seed=seed)
        for seed, value in enumerate((params, *state), start=first_seed)
    ]
    return StepDerivative(drawn[0], with_values(state, drawn[1:]))


def flattened(derivative):
    return torch.cat([derivative.params, *derivative.state], dim=-1)


# ------------------------------------------------------------------------ steps
@pytest.mark.parametrize("n_models", [None, 3])
@pytest.mark.parametrize("name", FLAT)
def test_fifty_steps_equal_torch(name, n_models):
    """On given gradients, one of them zero, with a rate that changes."""
    optimizer = FLAT[name]
    shape = (7,) if n_models is None else (n_models, 7)
    params, theirs = randn(*shape), randn(*shape).requires_grad_()
    reference = torch_optimizer(optimizer, [theirs])
    state = optimizer.initial_state(params)
    for t in range(1, 51):
        rate = 0.1 / t**0.5
        gradient = randn(*shape, seed=t) * (t != 20)
        before = [value.clone() for value in (params, *state)]
        moved, new = optimizer.step(params, gradient, state, t, rate)
        # a kept state must not change under the run
        for old, now in zip(before, (params, *state), strict=True):
            assert_array_equal(old, now)
        params, state = moved, new
        reference.param_groups[0]["lr"] = rate
        theirs.grad = gradient.clone()
        reference.step()
    assert_allclose(params, theirs.detach(), **CLOSE)
    # and the state is the one that a recording would read
    read = optimizer.state_from_torch(reference.state[theirs])
    for mine, their in zip(state, read.values(), strict=True):
        assert_allclose(mine, their, **CLOSE)


@pytest.mark.parametrize("kind", REGISTERED.values())
def test_every_option_of_torch_is_in_the_table(kind):
    """Those that change the numbers."""
    if kind.torch_class is None:
        return
    parameter = torch.zeros(2, 2, requires_grad=True)
    theirs = set(kind.torch_class([parameter], lr=1.0).param_groups[0])
    how = {"params", "lr", "foreach", "capturable", "differentiable", "fused"}
    if kind is AdamW:  # from torch 2.7 on, and always True
        how |= {"decoupled_weight_decay"}
    options = {f.name for f in fields(kind)}
    assert theirs - how <= options
    for name in theirs - how:
        values = {repr(getattr(o, name)) for o in TABLE.values() if type(o) is kind}
        assert len(values) > 1, name


@pytest.mark.parametrize("name", TABLE)
def test_a_rate_for_every_parameter(name):
    """Equal ones are one; others are those of the parameter."""
    optimizer = of(name)
    params, gradient, state = started(optimizer, 3, 4)
    same = torch.full((N_PARAMS,), 0.1, dtype=torch.float64)
    split = same.clone()
    split[20:] = 0.3  # after the weights of the first layer
    arguments = params, gradient, state, 4
    one, _ = optimizer.step(*arguments, 0.1)
    other, _ = optimizer.step(*arguments, 0.3)
    assert_allclose(optimizer.step(*arguments, same)[0], one, **CLOSE)
    found, _ = optimizer.step(*arguments, split)
    assert_allclose(found[:, :20], one[:, :20], **CLOSE)
    assert_allclose(found[:, 20:], other[:, 20:], **CLOSE)
    after = cotangents(params, state)
    moved = torch.func.vjp(
        lambda p, g: optimizer.step(p, g, state, 4, split)[0], params, gradient
    )[1]
    nothing = with_values(state, [torch.zeros_like(s) for s in after.state])
    in_grad, before = optimizer.pullback(
        *arguments, split, after._replace(state=nothing)
    )
    for q in range(4):
        in_params, expected = moved(after.params[q])
        assert_allclose(in_grad[q], expected, **CLOSE)
        assert_allclose(before.params[q], in_params, **CLOSE)


# ------------------------------------------------------------------ derivatives
@pytest.mark.parametrize("n_models", [None, 3])
@pytest.mark.parametrize("t", [1, 2, 9])
@pytest.mark.parametrize("name", TABLE)
def test_pullback_equals_autograd(name, t, n_models):
    optimizer = of(name)
    params, gradient, state = started(optimizer, n_models, t)
    after = cotangents(params, state)

    def flat(params, gradient, *values):
        moved, new = optimizer.step(
            params, gradient, with_values(state, values), t, 0.1
        )
        return moved, *new

    _, vjp = torch.func.vjp(flat, params, gradient, *state)
    arguments = params, gradient, state, t, 0.1, after
    for way in (type(optimizer).pullback, Optimizer.pullback):
        in_grad, before = way(optimizer, *arguments)
        for q in range(4):
            expected = vjp((after.params[q], *(part[q] for part in after.state)))
            found = before.params[q], in_grad[q], *(part[q] for part in before.state)
            for one, other in zip(found, expected, strict=True):
                assert_allclose(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("t", [1, 5])
@pytest.mark.parametrize("name", TABLE)
def test_pushforward_equals_autograd_and_the_pullback(name, t, order):
    optimizer = of(name)
    params, gradient, state = started(optimizer, None, t)
    before = [cotangents(params, state, first_seed=19 + 9 * i) for i in range(order)]
    in_grad = [randn(4, N_PARAMS, seed=60 + i) for i in range(order)]
    arguments = params, gradient, state, t, 0.1, before, in_grad
    found = optimizer.pushforward(*arguments)
    general = Optimizer.pushforward(optimizer, *arguments)
    for one, other in zip(found, general, strict=True):
        expected = flattened(other)
        limit = 1e-10 * float(expected.abs().max())
        assert_allclose(flattened(one), expected, rtol=0, atol=limit)

    after = cotangents(params, state, n_queries=3)
    in_gradient, pulled = optimizer.pullback(params, gradient, state, t, 0.1, after)
    left = flattened(after) @ flattened(found[0]).T
    right = flattened(pulled) @ flattened(before[0]).T + in_gradient @ in_grad[0].T
    assert_allclose(left, right, rtol=0, atol=1e-10 * float(right.abs().max()))


# ------------------------------------------------------------------- whole runs
# A maximum has a kink, which long differences step over.
KINKED = {name for name, o in TABLE.items() if getattr(o, "amsgrad", False)}


def run_of(name, **options):
    """Return what sweep and tangents take, of a run by that optimizer."""
    model, loss, recipe, X, y = problem(module(), **options)
    values = {**vars(recipe), "optimizer": of(name)}
    return model, loss, Recipe(**values), X, y


@pytest.mark.parametrize("name", TABLE)
def test_runs_equal_differences_and_forward_derivatives(name):
    arguments = run_of(name, clip_norm=0.3, n_steps=8)
    recipe = arguments[2]
    weights = random_weights(1) + 0.3
    cotangents = randn(1, 3, N_PARAMS, seed=11)
    found = scores(arguments, weights, cotangents)[0]

    directions = randn(3, weights.shape[1], seed=8)
    first, second = tangents(*arguments, weights[0], directions, memory_bytes=PLENTY)
    assert error(cotangents[0] @ first.T, found @ directions.T) < 1e-10

    h = 1e-5
    sides = [weights + s * h * directions for s in (-1, 1)]
    ends = [train(*arguments, side).params for side in sides]
    assert error(first, (ends[1] - ends[0]) / (2 * h)) < 1e-6
    # to one part in a thousand: differences of differences
    h = 1e-4 if name not in KINKED else 1e-5
    low, middle, high = (
        train(*arguments, weights + s * h * directions).params for s in (-1, 0, 1)
    )
    assert error(second, (high - 2 * middle + low) / h**2) < 1e-3
    assert math.isfinite(recipe.path_length)


@pytest.mark.parametrize("name", ["adam_climbs", "rmsprop_all", "muon"])
def test_plain_sgd_along_any_run(name):
    arguments = run_of(name, n_steps=5)
    weights, given = random_weights(1) + 0.3, randn(1, 3, N_PARAMS, seed=11)
    directions = randn(3, weights.shape[1], seed=8)
    found = scores(arguments, weights, given, dynamics="sgd")[0]
    options = {"order": 1, "plain_sgd": True, "memory_bytes": PLENTY}
    (first,) = tangents(*arguments, weights[0], directions, **options)
    assert error(given[0] @ first.T, found @ directions.T) < 1e-10


@pytest.mark.parametrize("name", TABLE)
def test_a_run_in_groups_with_rates_of_their_own(name):
    """Also rates that change differently."""
    model, loss, recipe, X, y = run_of(name, n_steps=5)
    rates = torch.stack([recipe.learning_rates, recipe.learning_rates.flip(0)], dim=1)
    rates = rates * torch.linspace(0.5, 1.5, 5, dtype=torch.float64)[:, None]
    rates[:, 1] = rates[:, 0].flip(0)
    groups = (torch.arange(N_PARAMS) >= 25).long()  # after the first layer
    recipe = Recipe(**{**vars(recipe), "learning_rates": rates, "groups": groups})
    arguments = model, loss, recipe, X, y
    weights, cotangents = random_weights(1) + 0.3, randn(1, 3, N_PARAMS, seed=11)
    directions = randn(3, weights.shape[1], seed=8)
    found = scores(arguments, weights, cotangents)[0]
    (first,) = tangents(
        *arguments, weights[0], directions, order=1, memory_bytes=PLENTY
    )
    assert error(cotangents[0] @ first.T, found @ directions.T) < 1e-10
    h = 1e-5
    ends = [train(*arguments, weights + s * h * directions).params for s in (-1.0, 1.0)]
    assert error(first, (ends[1] - ends[0]) / (2 * h)) < 1e-6


@pytest.mark.parametrize("inert", [0.0, 0.01])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TABLE)
def test_dead_inputs_leave_no_nan(name, dtype, inert):
    """An input that is always 0, and a batch left empty."""
    own = build(lambda: mlp(*SIZES), dtype=dtype)
    model, loss, recipe, X, y = problem(own, n_steps=5)
    recipe = Recipe(**{**vars(recipe), "optimizer": TABLE[name].bound(own)})
    X = X.to(dtype)
    X[:, 3] = 0
    weights = random_weights(2).to(dtype)
    weights[:, recipe.batches[0]] = 0
    cotangents = randn(2, 3, N_PARAMS, seed=11).to(dtype)
    arguments = (model, loss, recipe, X, y)
    found = scores(arguments, weights, cotangents, inert=inert)
    assert torch.isfinite(found).all()
    assert found.any()
    parts = tangents(
        *arguments, weights[0], randn(2, 20).to(dtype), memory_bytes=PLENTY
    )
    assert all(torch.isfinite(part).all() for part in parts)


@pytest.mark.parametrize("way", ["its own", "autograd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [1e-8, 1e-12])
@pytest.mark.parametrize("t", [1, 5])
@pytest.mark.parametrize("name", ["adamw", "adam", "adam_amsgrad", "rmsprop_all"])
def test_pullback_is_finite_without_gradients_and_with_tiny_ones(
    name, t, eps, dtype, way
):
    optimizer = copy.copy(FLAT[name])
    optimizer._set(eps=eps, weight_decay=0.0)
    gradient = torch.tensor([0.0, 1e-30, 1e-23, 1e-21, 1e-15, 1.0]).to(dtype)
    params = torch.ones_like(gradient)
    state = optimizer.initial_state(params)
    for earlier in range(1, t):
        params, state = optimizer.step(params, gradient, state, earlier, 0.1)
    after = StepDerivative(params[None], optimizer.initial_state(params[None]))
    pullback = Optimizer.pullback if way == "autograd" else type(optimizer).pullback
    found, before = pullback(optimizer, params, gradient, state, t, 0.1, after)
    for value in (found, before.params, *before.state):
        assert torch.isfinite(value).all()
    assert found[0, 0] == 0
    # the buffer of RMSprop has been divided before
    divided = before.state[: len(before.state) - ("buffer" in before.state._fields)]
    assert not any(value[0, 0] for value in divided)


HAVE_DENOMINATORS = [
    name
    for name, o in TABLE.items()
    if o.bound(module()).denominator.__qualname__ != Optimizer.denominator.__qualname__
]


@pytest.mark.parametrize("name", [n for n in HAVE_DENOMINATORS if n in FLAT])
def test_inert_parameters_pass_nothing_on(name):
    """Those of 0 always; those of 0.01 and less times the rms if asked."""
    optimizer = copy.copy(FLAT[name])
    optimizer._set(weight_decay=0.0)
    gradient = torch.tensor([[0.0, 1e-3, 0.1, 1.0], [0.0, 1e-6, 1e-4, 1e-3]]).double()
    params = torch.ones_like(gradient)
    state = optimizer.initial_state(params)
    nothing = map_state(torch.zeros_like, optimizer.initial_state(params[None]))
    after = StepDerivative(params[None], nothing)
    arguments = optimizer, params, gradient, state, 1, 0.1, after
    moves = torch.tensor([[False, False, True, True]] * 2)
    for pullback in (type(optimizer).pullback, Optimizer.pullback):
        exact, kept = pullback(*arguments)
        assert_array_equal(exact[0, :, 0], 0)
        found, before = pullback(*arguments, inert=0.01)
        assert_allclose(found[0], torch.where(moves, exact[0], 0.0), **CLOSE)
        assert_allclose(before.params, kept.params, **CLOSE)
        for name, one in before.state._asdict().items():
            other = getattr(kept.state, name)
            # the buffer of RMSprop has been divided before
            expected = other if name == "buffer" else torch.where(moves, other, 0.0)
            assert_allclose(one, expected, **CLOSE)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        (name, way)
        for name in HAVE_DENOMINATORS
        for way in (["its own", "autograd"] if name in FLAT else ["its own"])
    ],
)
def test_rows_left_out_do_not_explode_through_inputs_that_only_they_have(
    name, way, monkeypatch
):
    """Nearly as if these inputs were 0."""
    if way == "autograd":
        monkeypatch.setattr(type(TABLE[name]), "pullback", Optimizer.pullback)
    model, loss, recipe, X, y = run_of(name, n_steps=8)
    weights, given = random_weights(1), randn(1, 3, N_PARAMS, seed=11)
    absent = weights[0] == 0
    X[~absent, 3] = 1e-7
    without = X.clone()
    without[:, 3] = 0
    found = scores((model, loss, recipe, X, y), weights, given, inert=0.01)
    expected = scores((model, loss, recipe, without, y), weights, given, inert=0.01)
    assert torch.isfinite(found).all()
    assert float(found.abs().max()) < 10 * float(expected.abs().max())


# ------------------------------------------------------------------------ rest
@pytest.mark.parametrize("name", TABLE)
def test_denominator_is_what_the_move_is_divided_by(name):
    """Twice as large where gradients are; None where the move follows their size."""
    optimizer = of(name)
    params, gradient, state = started(optimizer, 2, 1, shift=0.5)
    scales = []
    for factor in (1.0, 2.0):
        _, new = optimizer.step(params, factor * gradient, state, 1, 0.1)
        scale = optimizer.denominator(new, 1)
        scales.append(None if scale is None else scale - getattr(optimizer, "eps", 0))
    if name not in HAVE_DENOMINATORS:
        assert scales == [None, None]
        return
    assert scales[0].shape == params.shape
    if decay_of(optimizer) == 0 or "adamw" in name or "muon" in name:
        assert_allclose(scales[1], 2 * scales[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("adamw", 0.6),
        ("sgd", 0.6),
        ("momentum", 6.0),
        ("dampening", 0.6 * 0.7 / 0.2),
        ("rmsprop", 0.6),
        ("rmsprop_momentum", 2.0),
        ("muon", 0.6),
    ],
)
def test_path_length(name, expected):
    rates = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    assert of(name).path_length(rates) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["momentum", "nesterov", "dampening"])
def test_path_length_is_how_far_a_unit_gradient_carries(name):
    """Of a run long against the memory of the momentum."""
    optimizer = copy.copy(FLAT[name])
    optimizer._set(weight_decay=0.0)
    params = torch.zeros(1, dtype=torch.float64)
    state = optimizer.initial_state(params)
    for t in range(1, 2001):
        params, state = optimizer.step(params, torch.ones_like(params), state, t, 0.01)
    length = optimizer.path_length(torch.full((2000,), 0.01))
    assert float(-params) == pytest.approx(length, rel=6e-3)


@pytest.mark.parametrize("name", ["adamw", "rmsprop", "muon", "sgd"])
def test_losses_of_a_run_fall(name):
    *arguments, y = run_of(name, n_steps=60, batch_size=None)
    weights = torch.ones(1, len(y), dtype=torch.float64)
    curve = train(*arguments, y, weights).loss_curve
    assert curve[-1] < curve[0]
    assert isinstance(arguments[1], Loss)


# ----------------------------------------------------------------------- a floor
@pytest.mark.parametrize("t", [1, 5])
@pytest.mark.parametrize("name", TABLE)
def test_a_floored_pullback_is_that_of_autograd(name, t):
    """And of a step that divides by the root of v + floor² mean(v)."""
    optimizer = of(name)
    params, gradient, state = started(optimizer, 3, t)
    arguments = params, gradient, state, t, 0.1, cotangents(params, state)
    plain = optimizer.pullback(*arguments)
    found = optimizer.pullback(*arguments, floor=0.5)
    if name in MUONS:  # its matrices have no divisor
        assert not torch.equal(found[0], plain[0])
        return
    expected = Optimizer.pullback(optimizer, *arguments, floor=0.5)
    for one, other in zip(found[1].state, expected[1].state, strict=True):
        assert_allclose(one, other, rtol=1e-10, atol=1e-12)
    assert_allclose(found[0], expected[0], rtol=1e-10, atol=1e-12)
    assert_allclose(found[1].params, expected[1].params, rtol=1e-10, atol=1e-12)
    assert torch.equal(found[0], plain[0]) == (name not in HAVE_DENOMINATORS)
    near = optimizer.pullback(*arguments, floor=1e-9)
    assert_allclose(near[0], plain[0], rtol=1e-7, atol=1e-9)


def test_the_floor_of_adam_is_the_published_formula():
    """Of a parameter that has never had a gradient, too."""
    optimizer = FLAT["adamw"]
    params, gradient, state = started(optimizer, 2, 4)
    still = torch.arange(N_PARAMS) >= 5
    gradient, state = gradient * still, map_state(lambda x: x * still, state)
    after, (beta1, beta2), t = cotangents(params, state), optimizer.betas, 4
    m, v = (
        b * s + (1 - b) * g
        for b, s, g in zip(
            optimizer.betas, state, (gradient, gradient.square()), strict=True
        )
    )
    c1, c2 = 1 - beta1**t, 1 - beta2**t
    r = (v / c2 + 0.7**2 * (v / c2).mean(dim=1, keepdim=True)).sqrt()
    rho = after.state[0] - 0.1 / c1 / r * after.params
    sigma = after.state[1] + 0.1 / (2 * c1 * c2) * m / r**3 * after.params
    expected = (1 - beta1) * rho + 2 * (1 - beta2) * gradient * sigma
    arguments = params, gradient, state, t, 0.1, after
    for pullback in (type(optimizer).pullback, Optimizer.pullback):
        found, before = pullback(optimizer, *arguments, floor=0.7)
        assert_allclose(found, expected, rtol=1e-6)  # but for eps
        assert_allclose(before.state[0], beta1 * rho, rtol=1e-6)
        assert_allclose(before.state[1], beta2 * sigma, rtol=1e-6)


@pytest.mark.parametrize("way", ["its own", "autograd"])
@pytest.mark.parametrize("name", ["adamw", "adam_amsgrad", "rmsprop_all"])
def test_a_floor_leaves_no_nan_without_any_gradient(name, way):
    optimizer = copy.copy(FLAT[name])
    optimizer._set(weight_decay=0.0)
    pullback = Optimizer.pullback if way == "autograd" else type(optimizer).pullback
    gradient = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1e-30, 1.0]])
    params = torch.ones_like(gradient)
    state = optimizer.initial_state(params)
    after = StepDerivative(params[None], optimizer.initial_state(params[None]))
    arguments = params, gradient, state, 1, 0.1, after
    found, before = pullback(optimizer, *arguments, floor=1.0)
    for value in (found, before.params, *before.state):
        assert torch.isfinite(value).all()
    assert not found[0, 0].any()
    assert found[0, 1].all()
