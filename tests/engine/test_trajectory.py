"""Schedules, minibatches, and the steps that a record keeps."""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from skattrib.engine._optim import Optimizer
from skattrib.engine._trajectory import (
    SCHEDULES,
    Recipe,
    epoch_batches,
    steps_to_keep,
)


def factors(name, n_steps):
    return [SCHEDULES[name](t, n_steps) for t in range(n_steps)]


def test_constant_schedule():
    assert factors("constant", 3) == [1.0] * 3


@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")
def test_cosine_schedule_equals_torch():
    p = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([p], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30)
    expected = []
    for _ in range(30):
        expected.append(schedule.get_last_lr()[0])
        schedule.step()
    assert_allclose(factors("cosine", 30), expected, rtol=1e-10)


def test_linear_warmup_rises_then_falls_to_zero_after_the_last_step():
    rates = np.array(factors("linear_warmup", 40))
    assert_allclose(rates[:4], [0.25, 0.5, 0.75, 1.0])
    assert_allclose(rates[4:], 1 - np.arange(36) / 36)


@pytest.mark.parametrize("n_steps", [1, 2, 3])
@pytest.mark.parametrize("name", SCHEDULES)
def test_shortest_runs_learn_something(name, n_steps):
    rates = factors(name, n_steps)
    assert all(math.isfinite(rate) and 0 <= rate <= 1 for rate in rates)
    assert rates[0] > 0


@pytest.mark.parametrize("batch_size", [None, 10, 11])
def test_full_batch_needs_no_indices(batch_size):
    assert epoch_batches(10, batch_size, 3, seed=0) is None


def test_every_epoch_takes_every_row_once_in_a_new_order():
    batches = epoch_batches(10, 4, 3, seed=0)
    assert [len(rows) for rows in batches] == [4, 4, 2] * 3
    epochs = [np.concatenate(batches[i : i + 3]) for i in (0, 3, 6)]
    for rows in epochs:
        assert_array_equal(np.sort(rows), np.arange(10))
    assert not np.array_equal(epochs[0], epochs[1])
    again, other = (epoch_batches(10, 4, 3, seed=seed) for seed in (0, 1))
    assert all(map(np.array_equal, batches, again))
    assert not all(map(np.array_equal, batches, other))


@pytest.mark.parametrize(
    ("record", "n_steps", "expected"),
    [
        ("recipe", 9, set()),
        ("states", 3, {0, 1, 2, 3}),
        ("checkpoints", 9, {0, 3, 6, 9}),
        ("checkpoints", 10, {0, 3, 6, 9}),
        ("checkpoints", 1, {0, 1}),
    ],
)
def test_steps_to_keep(record, n_steps, expected):
    assert steps_to_keep(record, n_steps) == expected


@pytest.mark.parametrize("batches", [None, [np.array([2, 0]), np.array([1])]])
def test_recipe_steps(batches):
    rates = torch.tensor([0.2, 0.1], dtype=torch.float64)
    recipe = Recipe(Optimizer("sgd", momentum=0.5), rates, torch.zeros(3), batches)
    assert recipe.n_steps == 2
    assert recipe.path_length == pytest.approx(0.6)
    steps = list(recipe.steps(torch.device("cpu")))
    assert [(t, rate) for t, rate, _ in steps] == [(1, 0.2), (2, 0.1)]
    for i, (*_, rows) in enumerate(steps):
        assert (rows is None) == (batches is None)
        assert rows is None or rows.tolist() == batches[i].tolist()
