"""Forward derivatives of runs: nested forward mode, the adjoint, real retraining."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch.func import jacfwd

from skattrib.engine import _tangent
from skattrib.engine._functional import FunctionalModule
from skattrib.engine._losses import CrossEntropy
from skattrib.engine._optimizers import map_state
from skattrib.engine._tangent import _Run, tangents
from skattrib.engine._training import train
from skattrib.engine._trajectory import Recipe, epoch_batches
from tests.cases import OPTIMIZERS, build, mlp, randn
from tests.engine.test_adjoint import (
    N_ROWS,
    PLENTY,
    error,
    plain_run,
    problem,
    random_weights,
    scores,
)

# torch's own forward mode, on first use
pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated:DeprecationWarning"
)


def directions_of(n_rows, n=3):
    """Two single rows and a group."""
    directions = torch.zeros(n, n_rows, dtype=torch.float64)
    directions[0, 0] = directions[1, 7] = 1
    directions[2:, 3:9] = randn(n - 2, 6, seed=8)
    return directions


@pytest.mark.parametrize("clip_norm", [None, 0.3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_both_derivatives_equal_nested_forward_mode(optimizer, clip_norm):
    arguments = problem(optimizer=optimizer, clip_norm=clip_norm, n_steps=9)
    recipe = arguments[2]
    weights = random_weights(1)[0]
    weights[recipe.batches[7]] = 0
    directions = randn(2, N_ROWS, seed=8)
    # no row of an empty batch moves: its loss jumps there
    directions[:, recipe.batches[7]] = 0
    first, second = tangents(*arguments, weights, directions, memory_bytes=PLENTY)
    run = plain_run(*arguments, weights)

    for k, direction in enumerate(directions):

        def along(s, direction=direction):
            return run(weights + s * direction)

        zero = torch.zeros((), dtype=torch.float64)
        assert error(first[k], jacfwd(along)(zero)) < 1e-10
        assert error(second[k], jacfwd(jacfwd(along))(zero)) < 1e-10


@pytest.mark.parametrize("optimizer", ["adamw", "nesterov"])
@pytest.mark.parametrize("plain_sgd", [False, True])
def test_first_derivative_is_that_of_the_reverse_sweep(optimizer, plain_sgd):
    arguments = problem(optimizer=optimizer, clip_norm=0.3)
    weights, directions = random_weights(1), directions_of(N_ROWS)
    cotangents = randn(1, 4, arguments[2].initial.numel(), seed=11)
    options = {"plain_sgd": plain_sgd, "memory_bytes": PLENTY}
    first, _ = tangents(*arguments, weights[0], directions, **options)
    (alone,) = tangents(*arguments, weights[0], directions, order=1, **options)
    assert error(alone, first) < 1e-12
    dynamics = "sgd" if plain_sgd else "recorded"
    swept = scores(arguments, weights, cotangents, dynamics=dynamics)
    assert error(cotangents[0] @ first.T, swept[0] @ directions.T) < 1e-10


def test_second_derivative_is_the_second_difference_of_retraining():
    arguments = problem(module=build(lambda: mlp(4, 6, 2)), n_steps=26)
    weights, directions = torch.ones(N_ROWS, dtype=torch.float64), torch.zeros(4, 20)
    directions[range(4), [0, 5, 9, 13]] = 1
    directions = directions.double()
    first, second = tangents(*arguments, weights, directions, memory_bytes=PLENTY)
    h = 1e-3
    moved = [weights + s * h * directions for s in (-1, 0, 1)]
    low, middle, high = (train(*arguments, w).params for w in moved)
    assert error(first, (high - low) / (2 * h)) < 1e-4
    assert error(second, (high - 2 * middle + low) / h**2) < 1e-3


def test_second_derivative_foretells_the_error_of_the_first():
    """What removing a row does beyond the first order is half the second."""
    X, y = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(y))[:400]
    X, y = torch.tensor(X[order] / 16), torch.tensor(y[order])
    model = FunctionalModule(build(lambda: mlp(64, 16, 10)))
    batches = epoch_batches(400, 32, 2, seed=0)
    rates = torch.full((len(batches),), 1e-2, dtype=torch.float64)
    recipe = Recipe(OPTIMIZERS["adamw"], rates, model.flatten(), batches)
    rows = torch.arange(0, 400, 16)
    directions = torch.zeros(25, 400, dtype=torch.float64)
    directions[range(25), rows] = 1
    weights = torch.ones(400, dtype=torch.float64)
    arguments = (model, CrossEntropy(), recipe, X, y)
    first, second = tangents(*arguments, weights, directions, memory_bytes=PLENTY)
    real = train(*arguments, torch.cat([weights[None], weights - directions])).params
    missed = (real[1:] - real[0] + first).norm(dim=1)
    proxy = 0.5 * second.norm(dim=1)
    assert 0.8 < float((proxy / missed).median()) < 1.25
    assert spearmanr(proxy, missed).statistic > 0.9


@pytest.mark.slow
def test_one_by_one_and_all_together(monkeypatch, capsys):
    arguments, calls, follow = problem(), [], _Run.follow

    def noting(self, directions, on_step):
        calls.append(len(directions))
        return follow(self, directions, on_step)

    monkeypatch.setattr(_Run, "follow", noting)
    weights, directions = random_weights(1)[0], directions_of(N_ROWS, 4)
    whole = tangents(*arguments, weights, directions, memory_bytes=PLENTY)
    cut = tangents(
        *arguments,
        weights,
        directions,
        memory_bytes=1.0,
        verbose=1,
    )
    assert calls == [4, 1, 1, 1, 1]
    n_steps = 4 * arguments[2].n_steps
    assert f"{n_steps}/{n_steps}" in capsys.readouterr().err
    assert error(cut[0], whole[0]) < 1e-12
    assert error(cut[1], whole[1]) < 1e-12


def test_a_run_that_starts_in_the_middle():
    arguments = problem()
    model, loss, recipe, X, y = arguments
    weights, directions = random_weights(1)[0], directions_of(N_ROWS)
    state = train(*arguments, weights[None], keep={9}).states[9]
    rest = replace(
        recipe,
        learning_rates=recipe.learning_rates[9:],
        initial=state.params[0],
        batches=recipe.batches[9:],
        n_before=9,
        moments=map_state(torch.flatten, state.optimizer),
    )
    _, second = tangents(
        model, loss, rest, X, y, weights, directions, memory_bytes=PLENTY
    )
    h = 1e-3
    ends = [
        train(model, loss, rest, X, y, weights + s * h * directions).params
        for s in (-1, 0, 1)
    ]
    assert error(second, (ends[2] - 2 * ends[1] + ends[0]) / h**2) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiny_gradients_and_dead_inputs_stay_finite(dtype):
    """Second moments that underflow, and inputs that are always 0."""
    model, loss, recipe, X, y = problem(module=build(lambda: mlp(4, 5, 2), dtype=dtype))
    X = X.clone().to(dtype)
    X[:, 1], X[:, 2] = 0, X[:, 2] * 1e-22
    recipe = replace(recipe, initial=recipe.initial.to(dtype))
    weights, directions = torch.ones(N_ROWS, dtype=dtype), directions_of(N_ROWS)
    found = tangents(
        model, loss, recipe, X, y, weights, directions, memory_bytes=PLENTY
    )
    for part in found:
        assert part.isfinite().all()
        assert part.dtype == dtype


def test_memory_bounds_the_directions(monkeypatch):
    arguments = problem()
    run = _tangent._Run(*arguments, random_weights(1)[0], 2, False)
    most = run.n_directions(PLENTY)
    assert run.n_directions(PLENTY / most * 2.5) == 2
    assert run.n_directions(1.0) == 1
    assert math.isclose(run.n_directions(2 * PLENTY) / most, 2, rel_tol=0.01)
