"""The reverse sweep equals forward tangents, and differences of retrained models."""

import weakref
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch import nn
from torch.func import functional_call, jacfwd

from skattrib.engine import _adjoint, _training
from skattrib.engine._adjoint import SweepSizes, differentiate_run, sweep_sizes
from skattrib.engine._dense_hessian import DenseGradient
from skattrib.engine._functional import FunctionalModule
from skattrib.engine._losses import CrossEntropy, SquaredError
from skattrib.engine._optimizers import Adam, AdamW, map_state
from skattrib.engine._training import train
from skattrib.engine._trajectory import SCHEDULES, Recipe, epoch_batches
from tests.cases import MODULES, OPTIMIZERS, build, build_case, decay_of, mlp, randn

N_ROWS, N_STEPS = 20, 26
PLENTY = 2.0**30
CLASSIFICATION, REGRESSION = CrossEntropy(), SquaredError()

# torch's own forward mode, on first use
pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated:DeprecationWarning"
)


def recipe_of(
    module, optimizer="adamw", schedule="constant", batch_size=6, n_steps=N_STEPS, **kw
):
    model = FunctionalModule(module)
    batches = epoch_batches(N_ROWS, batch_size, n_steps, seed=0)
    factors = [SCHEDULES[schedule](t, n_steps) for t in range(n_steps)]
    rates = 0.02 * torch.tensor(factors, dtype=torch.float64)
    batches = None if batches is None else batches[:n_steps]
    return Recipe(OPTIMIZERS[optimizer], rates, model.flatten(), batches, **kw)


def problem(module=None, n_features=4, **options):
    """Return model, loss, recipe, X and targets; the module has two outputs."""
    module = build(lambda: mlp(4, 5, 2)) if module is None else module
    X = randn(N_ROWS, n_features, seed=1)
    y = (X[:, 0] + 0.5 * randn(N_ROWS, seed=2) > 0).long()
    recipe = recipe_of(module, **options)
    return FunctionalModule(module), CLASSIFICATION, recipe, X, y


def random_weights(n_models, seed=5):
    """Between 0 and 2, about a third of them 0."""
    return (randn(n_models, N_ROWS, seed=seed) + 0.4).clamp(0, 2)


def random_cotangents(n_models, recipe, n_queries=3):
    return randn(n_models, n_queries, recipe.initial.numel(), seed=11)


def scores(arguments, weights, cotangents, memory_bytes=PLENTY, **options):
    return differentiate_run(
        *arguments, weights, cotangents, memory_bytes=memory_bytes, **options
    )


def error(found, expected):
    return float((found - expected).norm() / expected.norm())


# ---------------------------------------------------------------- the reference
def root(value):
    """√v with derivative 0 at 0."""
    safe = torch.where(value > 0, value, 1.0)
    return torch.where(value > 0, safe.sqrt(), 0.0)


def plain_step(optimizer, params, g, first, second, t, rate):
    decay = decay_of(optimizer)
    if isinstance(optimizer, AdamW):
        params = (1 - rate * decay) * params
    else:
        g = g + decay * params
    if not isinstance(optimizer, AdamW | Adam):
        first = optimizer.momentum * first + g
        if optimizer.nesterov:
            g = g + optimizer.momentum * first
        else:
            g = first
        return params - rate * g, first, second
    beta1, beta2 = optimizer.betas
    first = beta1 * first + (1 - beta1) * g
    second = beta2 * second + (1 - beta2) * g**2
    scale = root(second / (1 - beta2**t)) + optimizer.eps
    move = rate * first / (1 - beta1**t) / scale
    # by convention, parameters without a gradient so far have derivative 0
    return params - torch.where(second > 0, move, 0.0), first, second


def plain_run(model, loss, recipe, X, targets, weights):
    """Return the trained parameters as a plain function of the weights (n,).

    Batches without any of these ``weights`` count as empty whatever they become.
    """

    def mean_loss(params, w, rows):
        out = functional_call(model.module, model.unflatten(params), (X[rows],))
        out = out if out.ndim > 1 else out[:, None]
        return (w[rows] * loss.values(out, targets[rows])).sum() / w[rows].sum()

    # outside: before torch 2.7 jacfwd lets nothing be read off a tensor
    rates = recipe.learning_rates.tolist()

    def run(w):
        params = recipe.initial
        first = second = torch.zeros_like(params)
        for t, rate in enumerate(rates, start=1):
            rows = slice(None) if recipe.batches is None else recipe.batches[t - 1]
            if weights[rows].any():
                g = torch.func.grad(mean_loss)(params, w, rows)
                if recipe.clip_norm is not None:
                    g = g * (recipe.clip_norm / (g.norm() + 1e-6)).clamp(max=1)
            else:
                g = torch.zeros_like(params)
            params, first, second = plain_step(
                recipe.optimizer, params, g, first, second, t, rate
            )
        return params

    return run


def tangents(*arguments):
    """Return d θ_T / d w (P, n) of one run, forward through plain steps."""
    return jacfwd(plain_run(*arguments))(arguments[-1])


def reference(arguments, weights, cotangents):
    return torch.stack(
        [c @ tangents(*arguments, w) for w, c in zip(weights, cotangents, strict=True)]
    )


# -------------------------------------------------------------------- exactness
@pytest.mark.parametrize("clip_norm", [None, 0.3])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_adjoint_equals_tangent(optimizer, schedule, clip_norm):
    """Also in rows of weight 0 and through a batch without any weight."""
    arguments = problem(optimizer=optimizer, schedule=schedule, clip_norm=clip_norm)
    recipe = arguments[2]
    weights = random_weights(2)
    weights[0, recipe.batches[7]] = 0
    assert (weights == 0).any(dim=1).all()
    cotangents = random_cotangents(2, recipe)
    found = scores(arguments, weights, cotangents)
    expected = reference(arguments, weights, cotangents)
    assert found.shape == (2, 3, N_ROWS)
    assert error(found, expected) < 1e-10
    assert (found[weights[:, None].expand_as(found) == 0] != 0).all()


@pytest.mark.parametrize("optimizer", ["adamw", "nesterov"])
def test_a_run_that_starts_in_the_middle(optimizer):
    arguments = problem(optimizer=optimizer)
    model, loss, recipe, X, y = arguments
    weights, cotangents = random_weights(1), random_cotangents(1, recipe)
    tail = torch.zeros(1, 3, N_ROWS, dtype=X.dtype)

    def late(t, rows, found, runs, queries):
        if t > 9:
            tail[runs, queries] = tail[runs, queries].index_add(2, rows, found)

    scores(arguments, weights, cotangents, on_rows=late)
    state = train(*arguments, weights, keep={9}).states[9]
    rest = replace(
        recipe,
        learning_rates=recipe.learning_rates[9:],
        initial=state.params[0],
        batches=recipe.batches[9:],
        n_before=9,
        moments=map_state(torch.flatten, state.optimizer),
    )
    found = scores((model, loss, rest, X, y), weights, cotangents)
    assert error(found, tail) < 1e-12


@pytest.mark.parametrize("batch_size", [5, 7, None])
@pytest.mark.parametrize("n_models", [1, 3])
def test_batch_sizes(batch_size, n_models):
    arguments = problem(batch_size=batch_size, n_steps=9)
    weights = random_weights(n_models)
    cotangents = random_cotangents(n_models, arguments[2])
    found = scores(arguments, weights, cotangents)
    assert error(found, reference(arguments, weights, cotangents)) < 1e-10


@pytest.mark.parametrize("n_models", [1, 2])
@pytest.mark.parametrize("name", MODULES)
def test_any_module(name, n_models):
    module, X = build_case(name, n_rows=N_ROWS)
    with torch.no_grad():
        n_outputs = module(X).reshape(N_ROWS, -1).shape[1]
    targets = randn(N_ROWS, n_outputs, seed=4)
    model = FunctionalModule(module)
    arguments = (model, REGRESSION, recipe_of(module, n_steps=5), X, targets)
    weights = random_weights(n_models)
    cotangents = random_cotangents(n_models, arguments[2])
    found = scores(arguments, weights, cotangents)
    assert error(found, reference(arguments, weights, cotangents)) < 1e-9


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("adamw", {}),
        ("adam_decay", {"schedule": "linear_warmup"}),
        ("nesterov", {"clip_norm": 0.3}),
    ],
)
def test_adjoint_equals_differences_of_retrained_models(optimizer, options):
    arguments = problem(optimizer=optimizer, **options)
    model, loss, _, X, _ = arguments
    weights = random_weights(1)
    X_query, y_query = randn(3, 4, seed=8), torch.tensor([0, 1, 0])

    def query_losses(params):
        return loss.values(model.outputs(params, X_query), y_query)

    end = train(*arguments, weights).params[0]
    cotangents = torch.func.jacrev(query_losses)(end)[None]
    h, eye = 2e-5, torch.eye(N_ROWS, dtype=X.dtype)
    moved = torch.cat([weights + h * eye, weights - h * eye])
    ends = train(*arguments, moved).params
    losses = torch.stack([query_losses(params) for params in ends])
    expected = (losses[:N_ROWS] - losses[N_ROWS:]).T / (2 * h)
    assert error(scores(arguments, weights, cotangents)[0], expected) < 1e-6


def test_scale_of_the_weights_does_not_matter():
    """So the scores, weighted, sum to zero."""
    arguments = problem()
    weights = random_weights(2)
    cotangents = random_cotangents(2, arguments[2])
    found = scores(arguments, weights, cotangents)
    total = (found * weights[:, None]).sum(dim=-1)
    assert float(total.abs().max()) < 1e-12 * float(found.abs().max())


# ----------------------------------------------------------- batching and memory
def test_batched_equals_one_by_one():
    arguments = problem(clip_norm=0.3)
    weights = random_weights(3)
    cotangents = random_cotangents(3, arguments[2])
    together = scores(arguments, weights, cotangents)
    for m in range(3):
        for q in range(3):
            alone = scores(
                arguments, weights[m : m + 1], cotangents[m : m + 1, q : q + 1]
            )
            assert error(alone[0, 0], together[m, q]) < 1e-12


@pytest.mark.parametrize("room", [0, 1, 9, 10, 24, 25])
def test_replay_equals_stored_states(room, monkeypatch):
    arguments = problem(schedule="cosine")
    recipe, weights = arguments[2], random_weights(2)
    cotangents = random_cotangents(2, recipe)
    keep = range(recipe.n_steps + 1)
    states = train(*arguments, weights, keep=keep).states
    stored = scores(arguments, weights, cotangents, states=states)
    sizes = SweepSizes(2, 3, room, 0.0)
    monkeypatch.setattr(_adjoint, "sweep_sizes", lambda *_: sizes)
    assert_array_equal(scores(arguments, weights, cotangents), stored)
    some = {t: states[t] for t in (0, 11, 12, 26)}
    found = scores(arguments, weights, cotangents, states=some)
    assert_array_equal(found, stored)


@pytest.mark.parametrize(
    ("room", "most_held", "most_steps"),
    [(25, 25, 25), (24, 10, 51), (10, 10, 51), (9, 9, 90), (0, 5, 90)],
)
def test_replay_holds_few_states_and_repeats_few_steps(
    room, most_held, most_steps, monkeypatch
):
    """All 25 beside the start; 2 (√26 − 1); or halves of halves."""
    arguments, alive, most, taken = problem(), weakref.WeakSet(), [0], []
    weights = random_weights(1)

    def replay(*args):
        states = _training.replay(*args)
        alive.update(states.values())
        most[0] = max(most[0], len(alive))
        taken.append(max(states) - args[7])
        return states

    monkeypatch.setattr(_adjoint, "replay", replay)
    sizes = SweepSizes(1, 3, room, 0.0)
    monkeypatch.setattr(_adjoint, "sweep_sizes", lambda *_: sizes)
    scores(arguments, weights, random_cotangents(1, arguments[2]))
    assert most[0] <= 1 + most_held
    assert sum(taken) <= most_steps


@pytest.mark.parametrize("megabytes", [1e-6, 0.03, 0.1, 1])
def test_chunks_under_a_memory_cap(megabytes):
    arguments = problem(n_steps=9)
    weights = random_weights(3)
    cotangents, seen = random_cotangents(3, arguments[2], n_queries=5), []
    expected = scores(arguments, weights, cotangents)
    found = scores(
        arguments,
        weights,
        cotangents,
        memory_bytes=megabytes * 1e6,
        on_rows=lambda *_: seen.append(1),
    )
    assert error(found, expected) < 1e-12
    assert len(seen) % 9 == 0
    assert (len(seen) == 9 * 15) == (megabytes == 1e-6)
    assert (len(seen) == 9) == (megabytes == 1)


def test_less_memory_means_fewer_at_a_time():
    model, _, recipe, X, _ = problem()
    plans = [sweep_sizes(model, recipe, X, 64, 50, 10.0**k) for k in range(3, 10)]
    for less, more in pairwise(plans):
        assert less.n_runs <= more.n_runs
        assert less.n_queries <= more.n_queries
    assert (plans[0].n_runs, plans[0].n_queries, plans[0].n_states) == (1, 1, 0)
    assert (plans[-1].n_runs, plans[-1].n_queries) == (64, 50)
    assert plans[-1].n_states > N_STEPS


def test_no_array_is_so_large_that_the_allocator_takes_it_back(monkeypatch):
    arguments = problem(n_steps=9)
    weights = random_weights(3)
    cotangents, seen = random_cotangents(3, arguments[2], n_queries=6), []
    expected = scores(arguments, weights, cotangents)
    one_query = 8 * arguments[0].n_params
    plan = partial(sweep_sizes, arguments[0], arguments[2], arguments[3])
    monkeypatch.setattr(_adjoint, "_LARGEST_ARRAY", 13 * one_query)
    assert (plan(3, 6, PLENTY).n_runs, plan(3, 6, PLENTY).n_queries) == (2, 6)
    monkeypatch.setattr(_adjoint, "_LARGEST_ARRAY", one_query)
    assert (plan(3, 6, PLENTY).n_runs, plan(3, 6, PLENTY).n_queries) == (1, 4)
    found = scores(arguments, weights, cotangents, on_rows=lambda *_: seen.append(1))
    assert error(found, expected) < 1e-12
    assert len(seen) == 9 * 3 * 2


def test_many_runs_by_hand_where_each_is_large(monkeypatch):
    arguments, taken = problem(n_steps=9), []
    weights = random_weights(9)
    cotangents = random_cotangents(9, arguments[2])

    class Noted(DenseGradient):
        def products(self, cotangents):
            taken.append(len(cotangents))
            return super().products(cotangents)

    monkeypatch.setattr(_adjoint, "DenseGradient", Noted)
    expected = scores(arguments, weights, cotangents)
    assert not taken
    n_numbers = 3 * arguments[0].n_params
    monkeypatch.setattr(_adjoint, "_MANY_NUMBERS", n_numbers)
    found = scores(arguments, weights, cotangents)
    assert taken == [1] + [3] * 9  # the first is the comparison with autograd
    assert error(found, expected) < 1e-12


@pytest.mark.parametrize("megabytes", [0.03, 1])
@pytest.mark.parametrize("batch_size", [6, None])
def test_rows_of_single_steps_sum_to_the_scores(batch_size, megabytes):
    arguments = problem(batch_size=batch_size)
    recipe, weights = arguments[2], random_weights(3)
    total, steps = torch.zeros(3, 4, N_ROWS, dtype=torch.float64), []

    def on_rows(t, rows, values, runs, queries):
        steps.append(t)
        expected = np.arange(N_ROWS) if batch_size is None else recipe.batches[t - 1]
        assert_array_equal(rows, expected)
        part = total[runs, queries]
        assert values.shape == (*part.shape[:2], len(rows))
        for column, row in enumerate(rows.tolist()):
            part[:, :, row] += values[:, :, column]

    cotangents = random_cotangents(3, recipe, n_queries=4)
    found = scores(
        arguments,
        weights,
        cotangents,
        on_rows=on_rows,
        memory_bytes=megabytes * 1e6,
    )
    assert error(total, found) < 1e-14
    assert steps[:N_STEPS] == list(range(N_STEPS, 0, -1))
    assert len(steps) > N_STEPS or megabytes == 1


# ------------------------------------------------------------------- variations
def test_sgd_dynamics_along_recorded_states():
    """A = Π (1 − ηλ − ηH) by dense matrices."""
    arguments = problem()
    model, loss, recipe, X, y = arguments
    weights = random_weights(1)
    cotangents = random_cotangents(1, recipe)
    states = train(*arguments, weights, keep=range(N_STEPS)).states
    after, expected = cotangents[0], torch.zeros(3, N_ROWS, dtype=X.dtype)
    for t in range(N_STEPS - 1, -1, -1):
        rows, rate = recipe.batches[t], float(recipe.learning_rates[t])

        def gradient(params, w, rows=rows):
            def mean_loss(p):
                values = loss.values(model.outputs(p, X[rows]), y[rows])
                return (w[rows] * values).sum() / w[rows].sum()

            return torch.func.grad(mean_loss)(params)

        params = states[t].params[0]
        expected -= rate * after @ jacfwd(gradient, 1)(params, weights[0])
        H = jacfwd(gradient)(params, weights[0])
        after = (1 - rate * recipe.optimizer.weight_decay) * after - rate * after @ H
    found = scores(arguments, weights, cotangents, dynamics="sgd")
    assert error(found[0], expected) < 1e-10
    assert error(scores(arguments, weights, cotangents)[0], expected) > 0.1


@pytest.mark.parametrize("n_models", [1, 2])
def test_sgd_dynamics_of_an_sgd_run_is_the_run(n_models):
    arguments = problem(optimizer="sgd_decay")
    weights = random_weights(n_models)
    cotangents = random_cotangents(n_models, arguments[2])
    recorded = scores(arguments, weights, cotangents)
    sgd = scores(arguments, weights, cotangents, dynamics="sgd")
    assert_array_equal(recorded, sgd)


@pytest.mark.parametrize("n_models", [1, 2])
def test_empirical_fisher(n_models):
    """Two full steps of SGD: θ₂' = (1 − ηH) θ₁', with Σ w ∇ℓ ∇ℓᵀ / Σ w for H."""
    arguments = problem(optimizer="sgd", batch_size=None, n_steps=2)
    model, loss, recipe, X, y = arguments
    weights = random_weights(n_models)
    cotangents = random_cotangents(n_models, recipe)
    states = train(*arguments, weights, keep={0, 1}).states
    found = scores(arguments, weights, cotangents, hessian="empirical_fisher")
    for m, w in enumerate(weights):
        parts = []
        for t in (0, 1):
            J = torch.func.jacrev(lambda p: loss.values(model.outputs(p, X), y))(
                states[t].params[m]
            )
            mean = w @ J / w.sum()
            parts.append((J, (J - mean) / w.sum()))
        fisher = parts[1][0].T @ (w[:, None] * parts[1][0]) / w.sum()
        rate = float(recipe.learning_rates[0])
        last = -rate * cotangents[m]
        first = last - rate * last @ fisher
        expected = last @ parts[1][1].T + first @ parts[0][1].T
        assert error(found[m], expected) < 1e-12


# ------------------------------------------------------------------- hard places
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_dead_inputs_and_units_leave_no_nan(optimizer, dtype):
    """A feature that is always 0, a unit that never fires, one batch left empty."""
    module = build(lambda: mlp(4, 5, 2, activation=nn.ReLU), dtype=dtype)
    with torch.no_grad():
        module[0].bias[2] = -100.0
    model, loss, recipe, X, y = problem(module, optimizer=optimizer, clip_norm=0.3)
    X = X.to(dtype)
    X[:, 3] = 0
    weights = random_weights(2).to(dtype)
    weights[:, recipe.batches[0]] = 0
    arguments = (model, loss, recipe, X, y)
    cotangents = random_cotangents(2, recipe).to(dtype)
    end = train(*arguments, weights)
    if end.denominator is not None and not decay_of(recipe.optimizer):
        assert (end.denominator == recipe.optimizer.eps).any()
    found = scores(arguments, weights, cotangents)
    assert found.dtype == dtype
    assert torch.isfinite(found).all()
    assert found.any()
    if dtype == torch.float64:
        assert error(found, reference(arguments, weights, cotangents)) < 1e-10


@pytest.mark.parametrize("inert", [0.0, 0.01])
@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_rows_left_out_do_not_explode_through_inputs_that_only_they_have(name, inert):
    """As if these inputs were 0, and nearly so where they are tiny."""
    model, loss, recipe, X, y = problem(optimizer=name)
    size = 1e-7 if inert else 0.0
    weights, cotangents = random_weights(1), random_cotangents(1, recipe)
    absent = weights[0] == 0
    X[~absent, 3] = size
    without = X.clone()
    without[:, 3] = 0
    found = scores((model, loss, recipe, X, y), weights, cotangents, inert=inert)
    expected = scores(
        (model, loss, recipe, without, y), weights, cotangents, inert=inert
    )
    present = ~absent
    assert error(found[..., present], expected[..., present]) < 1e-5
    assert float(found.abs().max()) < 10 * float(expected.abs().max())
    if inert:
        exact = scores((model, loss, recipe, X, y), weights, cotangents)
        assert float(exact.abs().max()) > 30 * float(expected.abs().max())


def test_single_precision_is_close_to_double():
    arguments = problem()
    _, loss, recipe, X, y = arguments
    weights = random_weights(2)
    cotangents = random_cotangents(2, recipe)
    double = scores(arguments, weights, cotangents)
    single = FunctionalModule(build(lambda: mlp(4, 5, 2), dtype=torch.float32))
    found = scores(
        (single, loss, recipe, X.float(), y), weights.float(), cotangents.float()
    )
    assert error(found.double(), double) < 1e-4


def test_run_without_any_weight_has_no_derivative():
    arguments = problem(clip_norm=0.3)
    weights = torch.zeros(2, N_ROWS, dtype=torch.float64)
    weights[1] = 1
    found = scores(arguments, weights, random_cotangents(2, arguments[2]))
    assert not found[0].any()
    assert found[1].any()


def test_arguments_stay_as_they_are():
    arguments = problem(optimizer="sgd")
    model, _, recipe, *_ = arguments
    weights = random_weights(2)
    cotangents = random_cotangents(2, recipe)
    before = [model.flatten(), recipe.initial.clone(), weights.clone()]
    before.append(cotangents.clone())
    found = scores(arguments, weights, cotangents)
    for old, now in zip(
        before, (model.flatten(), recipe.initial, weights, cotangents), strict=True
    ):
        assert_array_equal(old, now)
    assert not found.requires_grad


# ------------------------------------------------------ where autograd cannot go
class OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, cotangent):
        (x,) = ctx.saved_tensors
        return cotangent * x.exp()


class Exp(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        return OnceDifferentiable.apply(self.layer(x))


class Item(nn.Module):
    """An MLP that looks at its data, which vmap cannot take."""

    def __init__(self):
        super().__init__()
        self.layers = mlp(4, 5, 2)

    def forward(self, x):
        out = self.layers(x)
        return out if out.sum().item() < 1e9 else -out


class Attention(nn.Module):
    """Fused attention, which has no second derivative."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(2, 6), nn.Linear(4, 2)

    def forward(self, x):
        q, k, v = self.inner(x.view(-1, 2, 2)).chunk(3, dim=-1)
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(out.flatten(1))


def test_modules_that_cannot_be_differentiated_twice(monkeypatch):
    arguments = problem(build(Exp))
    monkeypatch.setattr(_adjoint, "replay", None)  # before any work
    with pytest.raises(ValueError, match=r"Exp cannot be differentiated twice"):
        scores(arguments, random_weights(2), random_cotangents(2, arguments[2]))


def test_modules_that_vmap_cannot_take_are_swept_one_by_one():
    module = build(Item)
    weights = random_weights(2)
    inner = problem(module.layers)
    cotangents = random_cotangents(2, inner[2])
    found = scores(problem(module), weights, cotangents)
    assert error(found, scores(inner, weights, cotangents)) < 1e-12


@pytest.mark.parametrize("n_models", [1, 2])
def test_fused_attention(n_models):
    arguments = problem(build(Attention), optimizer="momentum", n_steps=5)
    weights = random_weights(n_models)
    cotangents = random_cotangents(n_models, arguments[2])
    found = scores(arguments, weights, cotangents)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = reference(arguments, weights, cotangents)
    assert error(found, expected) < 1e-10
