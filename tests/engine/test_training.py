"""One loop for one model and for a stack, equal to a loop in plain torch."""

import copy
import pickle
import time
import warnings
from dataclasses import replace

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import EfficiencyWarning
from torch import nn

from skattrib.engine import _training
from skattrib.engine._functional import FunctionalModule
from skattrib.engine._losses import CrossEntropy, SquaredError
from skattrib.engine._minibatch import Minibatch, row_shares, same_seeds
from skattrib.engine._optimizers import map_state
from skattrib.engine._training import (
    can_stack,
    replay,
    stack_size,
    start,
    train,
    train_stack,
)
from skattrib.engine._trajectory import (
    SCHEDULES,
    Recipe,
    epoch_batches,
    steps_to_keep,
)
from tests.cases import OPTIMIZERS, build, conv, mlp, randn, torch_optimizer

N_ROWS = 20
PLENTY = 2.0**30
CLASSIFICATION, REGRESSION = CrossEntropy(), SquaredError()
MODELS = {
    "mlp": (lambda: mlp(4, 5, 2), 4),
    "conv": (lambda: conv(2, 3, 3, stride=2, padding=1), 40),
}


class Item(nn.Module):
    """An MLP that looks at its data, which vmap cannot take."""

    def __init__(self):
        super().__init__()
        self.layers = mlp(4, 5, 2)

    def forward(self, x):
        out = self.layers[0](x)
        time.sleep(1e-4)  # lets another thread in
        out = self.layers[1:](out)
        return out if out.sum().item() < 1e9 else -out


def recipe_of(module, optimizer="adamw", schedule="constant", n_epochs=5, **options):
    batch_size = options.pop("batch_size", 6)
    batches = epoch_batches(N_ROWS, batch_size, n_epochs, seed=0)
    n_steps = n_epochs if batches is None else len(batches)
    factors = [SCHEDULES[schedule](t, n_steps) for t in range(n_steps)]
    return Recipe(
        optimizer=OPTIMIZERS[optimizer],
        learning_rates=0.05 * torch.tensor(factors, dtype=torch.float64),
        initial=FunctionalModule(module).flatten(),
        batches=batches,
        **options,
    )


def problem(name="mlp", **options):
    factory, n_features = MODELS[name]
    module = build(factory)
    X = randn(N_ROWS, n_features, seed=1)
    y = (X[:, 0] + 0.3 * randn(N_ROWS, seed=2) > 0).long()
    return FunctionalModule(module), recipe_of(module, **options), X, y


def random_weights(n_models, seed=5):
    """Between 0 and 2, about a third of them 0."""
    return (randn(n_models, N_ROWS, seed=seed) + 0.4).clamp(0, 2)


def flat(module):
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


def plain_loop(model, recipe, X, y, weights, loss="classification"):
    """Train as anyone would; return the module, the optimizer and gradient norms."""
    module = copy.deepcopy(model.module)
    optimizer = torch_optimizer(recipe.optimizer, list(module.parameters()))
    norms = []
    for t, rate in enumerate(recipe.learning_rates.tolist()):
        rows = slice(None) if recipe.batches is None else recipe.batches[t]
        optimizer.zero_grad(set_to_none=False)
        if loss == "classification":
            values = nn.functional.cross_entropy(
                module(X[rows]), y[rows], reduction="none"
            )
        else:
            values = 0.5 * ((module(X[rows]) - y[rows]) ** 2).sum(dim=1)
        w = weights[rows]
        if w.any():
            ((w * values).sum() / w.sum()).backward()
        else:
            for p in module.parameters():
                p.grad = torch.zeros_like(p)
        if recipe.clip_norm is not None:
            norm = nn.utils.clip_grad_norm_(module.parameters(), recipe.clip_norm)
            norms.append(float(norm))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    return module, optimizer, np.array(norms)


# ------------------------------------------------------------------- one model
@pytest.mark.parametrize("schedule", ["cosine", "linear_warmup"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_run_equals_plain_torch(optimizer, schedule):
    """52 steps in minibatches, with weights, some of them clipped."""
    model, recipe, X, y = problem(
        optimizer=optimizer, schedule=schedule, n_epochs=13, clip_norm=0.4
    )
    assert recipe.n_steps == 52
    weights = random_weights(1)
    result = train(model, CLASSIFICATION, recipe, X, y, weights)
    module, theirs, norms = plain_loop(model, recipe, X, y, weights[0])
    assert 5 < (norms > 0.4).sum() < 50  # it clips, but not always
    assert_allclose(result.params[0], flat(module), rtol=0, atol=1e-12)
    assert float((result.params[0] - recipe.initial).abs().max()) > 0.05
    if hasattr(recipe.optimizer, "betas"):
        moments = [theirs.state[p]["exp_avg_sq"] for p in module.parameters()]
        expected = torch.cat([m.reshape(-1) for m in moments])
        expected = expected / (1 - recipe.optimizer.betas[1] ** 52)
        expected = expected.sqrt() + recipe.optimizer.eps
        assert_allclose(result.denominator[0], expected, rtol=0, atol=1e-12)
    else:
        assert result.denominator is None


def test_regression_run_equals_plain_torch():
    model, recipe, X, _ = problem()
    y, weights = randn(N_ROWS, 2, seed=3), random_weights(1)
    result = train(model, REGRESSION, recipe, X, y, weights)
    module, *_ = plain_loop(model, recipe, X, y, weights[0], "regression")
    assert_allclose(result.params[0], flat(module), rtol=0, atol=1e-12)


def test_module_itself_is_not_trained():
    model, recipe, X, y = problem()
    before = recipe.initial.clone()
    train(model, CLASSIFICATION, recipe, X, y, random_weights(1))
    assert_array_equal(model.flatten(), before)
    assert_array_equal(recipe.initial, before)


def test_loss_curve_and_progress():
    model, recipe, X, y = problem(batch_size=None)
    weights, calls = random_weights(2), []
    result = train(
        model, CLASSIFICATION, recipe, X, y, weights, on_step=lambda: calls.append(1)
    )
    assert len(result.loss_curve) == len(calls) == recipe.n_steps == 5
    with torch.no_grad():
        values = nn.functional.cross_entropy(model.module(X), y, reduction="none")
    expected = float((values * weights[0]).sum() / weights[0].sum())
    assert result.loss_curve[0] == pytest.approx(expected, rel=1e-12)
    assert result.loss_curve[-1] < result.loss_curve[0]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_that_starts_in_the_middle(optimizer):
    model, recipe, X, y = problem(optimizer=optimizer)
    weights = random_weights(2)
    whole = train(model, CLASSIFICATION, recipe, X, y, weights, keep={7})
    for one in range(2):
        state = whole.states[7][one : one + 1]
        moments = map_state(torch.flatten, state.optimizer)
        rest = replace(
            recipe,
            learning_rates=recipe.learning_rates[7:],
            initial=state.params[0],
            batches=recipe.batches[7:],
            n_before=7,
            moments=moments,
        )
        result = train(model, CLASSIFICATION, rest, X, y, weights)
        assert_allclose(result.params[one], whole.params[one], rtol=0, atol=1e-12)
        if whole.denominator is not None:
            assert_allclose(result.denominator[one], whole.denominator[one])


# --------------------------------------------------------------------- weights
@pytest.mark.parametrize("optimizer", ["adamw", "nesterov"])
def test_zero_weight_is_dropping_the_row(optimizer):
    model, recipe, X, y = problem(optimizer=optimizer, batch_size=None, n_epochs=20)
    weights = random_weights(1)
    kept = weights[0] > 0
    assert 0 < kept.sum() < N_ROWS
    one = train(model, CLASSIFICATION, recipe, X, y, weights)
    other = train(model, CLASSIFICATION, recipe, X[kept], y[kept], weights[:, kept])
    assert_allclose(one.params, other.params, rtol=0, atol=1e-12)
    assert one.loss_curve == pytest.approx(other.loss_curve, rel=1e-12)


def test_only_ratios_of_weights_matter():
    model, recipe, X, y = problem()
    weights = random_weights(2)
    one = train(model, CLASSIFICATION, recipe, X, y, weights)
    other = train(model, CLASSIFICATION, recipe, X, y, 7 * weights)
    assert_allclose(one.params, other.params, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_models", [1, 2])
@pytest.mark.parametrize("optimizer", ["adamw", "adam_decay", "nesterov"])
def test_batch_left_empty_takes_a_step_without_gradient(optimizer, n_models):
    """Momentum, decay and the counter of steps go on, as if the gradient were 0."""
    model, recipe, X, y = problem(optimizer=optimizer)
    weights = random_weights(n_models)
    weights[0, recipe.batches[3]] = 0
    result = train(model, CLASSIFICATION, recipe, X, y, weights, keep={3, 4})
    module, *_ = plain_loop(model, recipe, X, y, weights[0])
    assert_allclose(result.params[0], flat(module), rtol=0, atol=1e-12)
    assert result.loss_curve[3] == 0
    moved = result.states[4].params[0] - result.states[3].params[0]
    assert float(moved.abs().max()) > 1e-4


@pytest.mark.parametrize("n_models", [1, 3])
def test_minibatch_without_weights(n_models):
    model, _, X, y = problem()
    params = model.flatten().repeat(n_models, 1)
    weights = random_weights(n_models)
    weights[-1] = 0
    minibatch = Minibatch(model, CLASSIFICATION, X, y)
    gradient, _, losses = minibatch(
        params, row_shares(weights), None, same_seeds(len(params), 0, X)
    )
    assert losses[-1] == 0
    assert not gradient[-1].any()
    assert gradient[:-1].any(dim=1).all()


# ---------------------------------------------------------------------- stacks
@pytest.mark.parametrize("clip_norm", [None, 0.1])
@pytest.mark.parametrize("name", MODELS)
def test_stack_equals_separate_runs(name, clip_norm):
    model, recipe, X, y = problem(name, clip_norm=clip_norm)
    weights = random_weights(5)
    together = train_stack(
        model, CLASSIFICATION, recipe, X, y, weights, memory_bytes=PLENTY
    ).params
    alone = [
        train(model, CLASSIFICATION, recipe, X, y, row[None]).params for row in weights
    ]
    assert_allclose(together, torch.cat(alone), rtol=0, atol=1e-10)
    assert float((together[0] - together[1]).abs().max()) > 1e-2


@pytest.mark.parametrize("n_per_chunk", [0.5, 1, 2, 5])
@pytest.mark.parametrize("name", MODELS)
def test_stack_is_cut_to_fit_the_memory(name, n_per_chunk, monkeypatch):
    model, recipe, X, y = problem(name, n_epochs=2)
    weights, sizes = random_weights(5), []

    def recording(*args, **kwargs):
        result = train(*args, **kwargs)
        sizes.append(len(result.params))
        return result

    monkeypatch.setattr(_training, "train", recording)
    per_model = PLENTY / stack_size(model, recipe, X, PLENTY)
    cut = train_stack(
        model,
        CLASSIFICATION,
        recipe,
        X,
        y,
        weights,
        memory_bytes=1.001 * n_per_chunk * per_model,
    ).params
    most = max(1, int(n_per_chunk))
    assert max(sizes) == most
    assert len(sizes) == -(-5 // most)
    whole = train(model, CLASSIFICATION, recipe, X, y, weights).params
    assert_allclose(cut, whole, rtol=0, atol=1e-10)


def test_stack_shows_progress_when_asked(capsys):
    model, recipe, X, y = problem(n_epochs=1)
    arguments = (model, CLASSIFICATION, recipe, X, y, random_weights(2))
    train_stack(*arguments, memory_bytes=PLENTY)
    assert capsys.readouterr().err == ""
    train_stack(*arguments, memory_bytes=PLENTY, verbose=1)
    assert "retraining 2 models" in capsys.readouterr().err


# -------------------------------------------------------- where vmap cannot go
def test_can_stack():
    model, _, X, y = problem()
    assert can_stack(model, CLASSIFICATION, X, y)
    assert can_stack(model, CLASSIFICATION, X[:1], y[:1])
    assert not can_stack(FunctionalModule(build(Item)), CLASSIFICATION, X, y)


@pytest.mark.parametrize("backend", ["sequential", "threading"])
def test_modules_that_vmap_cannot_take_are_trained_one_by_one(backend):
    module = build(Item)
    model, other = FunctionalModule(module), FunctionalModule(module.layers)
    _, _, X, y = problem()
    recipe, weights = recipe_of(module), random_weights(4)
    with joblib.parallel_config(backend, n_jobs=2 if backend == "threading" else 1):
        with pytest.warns(EfficiencyWarning, match=r"Item: .*vmap cannot.*4 models"):
            found = train_stack(
                model, CLASSIFICATION, recipe, X, y, weights, memory_bytes=PLENTY
            ).params
    expected = train(other, CLASSIFICATION, recipe, X, y, weights).params
    assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_workers_share_a_stack(monkeypatch):
    model, recipe, X, y = problem()
    weights, sizes = random_weights(5), []
    arguments = model, CLASSIFICATION, recipe, X, y, weights
    expected = train_stack(*arguments, memory_bytes=PLENTY).params
    one = _training.train

    def noted(*arguments, **options):
        sizes.append(len(arguments[-1]))
        return one(*arguments, **options)

    monkeypatch.setattr(_training, "train", noted)
    with joblib.parallel_config("threading"):
        found = train_stack(*arguments, memory_bytes=PLENTY, n_jobs=2).params
    assert sorted(sizes) == [2, 3]
    assert_allclose(found, expected, rtol=1e-9)


def test_one_model_needs_no_stack():
    _, _, X, y = problem()
    model = FunctionalModule(build(Item))
    recipe, weights = recipe_of(model.module), random_weights(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = train_stack(
            model, CLASSIFICATION, recipe, X, y, weights, memory_bytes=PLENTY
        ).params
    expected = train(model, CLASSIFICATION, recipe, X, y, weights).params
    assert_array_equal(found, expected)


def test_a_worker_process_gets_the_same_run():
    """What joblib sends: everything a run needs survives pickling."""
    model, recipe, X, y = problem()
    arguments = (model, CLASSIFICATION, recipe, X, y, random_weights(1))
    here, there = (
        train(*a) for a in (arguments, pickle.loads(pickle.dumps(arguments)))
    )
    assert_array_equal(here.params, there.params)


# ---------------------------------------------------------------------- record
@pytest.mark.parametrize("record", ["states", "checkpoints"])
@pytest.mark.parametrize("optimizer", ["adamw", "nesterov", "sgd"])
def test_kept_states_lead_to_the_end(record, optimizer):
    """From any kept state, the recipe's remaining steps give the end of the run."""
    model, recipe, X, y = problem(
        optimizer=optimizer, schedule="cosine", n_epochs=4, clip_norm=0.4
    )
    weights = random_weights(1)
    keep = steps_to_keep(record, recipe.n_steps)
    result = train(model, CLASSIFICATION, recipe, X, y, weights, keep=keep)
    assert set(result.states) == keep
    assert_array_equal(result.states[0].params[0], recipe.initial)
    for begin, kept in result.states.items():
        params, state = kept.params, kept.optimizer
        for t in range(begin + 1, recipe.n_steps + 1):
            rate, rows = recipe.step(t, X.device)
            minibatch = Minibatch(model, CLASSIFICATION, X[rows], y[rows])
            shares = row_shares(weights[:, rows])
            gradient, *_ = minibatch(
                params, shares, None, same_seeds(len(params), 0, X)
            )
            scale = (recipe.clip_norm / (gradient.norm() + 1e-6)).clamp(max=1)
            with torch.no_grad():
                params, state = recipe.optimizer.step(
                    params, gradient * scale, state, t, rate
                )
        assert_allclose(params, result.params, rtol=0, atol=1e-13)


def test_replaying_from_the_first_state_is_exact():
    model, recipe, X, y = problem(schedule="cosine")
    weights = random_weights(1)
    first = train(model, CLASSIFICATION, recipe, X, y, weights, keep={0})
    again = replace(recipe, initial=first.states[0].params[0])
    second = train(model, CLASSIFICATION, again, X, y, weights)
    assert_array_equal(first.params, second.params)
    assert first.loss_curve == second.loss_curve


@pytest.mark.parametrize("n_models", [1, 3])
@pytest.mark.parametrize("optimizer", ["adamw", "nesterov", "sgd"])
def test_replay_is_exact_from_any_state(optimizer, n_models):
    model, recipe, X, y = problem(optimizer=optimizer, schedule="cosine", clip_norm=0.4)
    arguments = (model, CLASSIFICATION, recipe, X, y, random_weights(n_models))
    stored = train(*arguments, keep=range(recipe.n_steps + 1)).states
    for first, keep in [(0, {20, 7}), (6, range(6, 15, 4)), (19, [20]), (20, [20])]:
        found = replay(*arguments, stored[first], first, keep)
        assert set(found) == set(keep)
        for t, state in found.items():
            assert_array_equal(state.params, stored[t].params)
            for one, other in zip(state.optimizer, stored[t].optimizer, strict=True):
                assert_array_equal(one, other)
    begin = start(recipe, X, n_models)
    assert_array_equal(begin.params, stored[0].params)
    for one, other in zip(begin.optimizer, stored[0].optimizer, strict=True):
        assert one.shape == other.shape


def test_replayed_states_are_packed():
    """Else each small state would keep large arrays of its step from being freed."""
    model, recipe, X, y = problem()
    arguments = (model, CLASSIFICATION, recipe, X, y, random_weights(2))
    stored = train(*arguments, keep=[0]).states
    found = replay(*arguments, stored[0], 0, range(1, 5))
    assert len(found) == 4
    for parts in zip(*((s.params, *s.optimizer) for s in found.values()), strict=True):
        storages = {part.untyped_storage().data_ptr() for part in parts}
        assert len(storages) == 1
        size = parts[0].numel() * parts[0].element_size()
        assert parts[0].untyped_storage().nbytes() == 4 * size


def test_row_shares():
    weights = torch.tensor([[1.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
    expected = [[0.25, 0.75, 0.0], [0.0, 0.0, 0.0]]
    assert_array_equal(row_shares(weights), expected)
