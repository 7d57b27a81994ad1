"""Schedules, minibatches, and the steps that a record keeps."""

import json
import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from safetensors import safe_open
from safetensors.torch import save_file

from skattrib.engine._functional import FunctionalModule
from skattrib.engine._losses import CrossEntropy
from skattrib.engine._optimizers import SGD, map_state, with_values
from skattrib.engine._training import train
from skattrib.engine._trajectory import (
    SCHEDULES,
    Recipe,
    Trajectory,
    epoch_batches,
    steps_to_keep,
)
from skattrib.exceptions import TrajectoryError
from tests.cases import MORE_OPTIMIZERS, MUONS, OPTIMIZERS, build, mlp, randn


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
    recipe = Recipe(SGD(momentum=0.5), rates, torch.zeros(3), batches)
    assert recipe.n_steps == 2
    assert recipe.path_length == pytest.approx(0.6)
    for t, expected in ((1, 0.2), (2, 0.1)):
        rate, rows = recipe.step(t, torch.device("cpu"))
        assert rate == expected
        assert (rows is None) == (batches is None)
        assert rows is None or rows.tolist() == batches[t - 1].tolist()


# ---------------------------------------------------------------------- on disk
def recorded(optimizer="adamw", batch_size=4, record="checkpoints", dtype=None):
    """Return a trajectory and its data."""
    model = FunctionalModule(build(lambda: mlp(4, 3, 2), dtype=dtype or torch.float64))
    X, y = randn(10, 4).to(dtype or torch.float64), torch.arange(10) % 2
    batches = epoch_batches(10, batch_size, 3, seed=0)
    n_steps = 3 if batches is None else len(batches)
    rates = torch.linspace(0.1, 0.01, n_steps, dtype=torch.float64)
    optimizer = {**OPTIMIZERS, **MORE_OPTIMIZERS, **MUONS}[optimizer]
    optimizer = optimizer.bound(model.module)
    recipe = Recipe(optimizer, rates, model.flatten(), batches, 0.5)
    weights, keep = torch.ones(1, 10).to(X), steps_to_keep(record, n_steps)
    run = train(model, CrossEntropy(), recipe, X, y, weights, keep=keep)
    scale = None if run.denominator is None else run.denominator[0]
    return Trajectory(recipe, weights[0], scale, run.states), X, y


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("record", ["recipe", "checkpoints"])
@pytest.mark.parametrize("batch_size", [4, None])
@pytest.mark.parametrize(
    "optimizer", ["adamw", "nesterov", "sgd", "rmsprop_all", "muon", "adam_amsgrad"]
)
def test_saved_trajectory_comes_back_exactly(
    optimizer, batch_size, record, dtype, tmp_path
):
    trajectory, X, y = recorded(optimizer, batch_size, record, dtype)
    path = tmp_path / "run.safetensors"
    trajectory.save(path, X, y)
    assert os.listdir(tmp_path) == ["run.safetensors"]
    loaded = Trajectory.load(str(path), X, y)
    one, other = trajectory.recipe, loaded.recipe
    assert one.optimizer == other.optimizer
    assert one.clip_norm == other.clip_norm
    for name in ("learning_rates", "initial"):
        assert_array_equal(getattr(one, name), getattr(other, name))
    assert other.initial.dtype == dtype
    assert (other.batches is None) == (batch_size is None)
    for mine, theirs in zip(one.batches or [], other.batches or [], strict=True):
        assert_array_equal(mine, theirs)
    assert_array_equal(trajectory.row_weights, loaded.row_weights)
    assert (trajectory.denominator is None) == (loaded.denominator is None)
    if loaded.denominator is not None:
        assert_array_equal(trajectory.denominator, loaded.denominator)
    assert list(loaded.states) == list(trajectory.states)
    for t, state in loaded.states.items():
        assert_array_equal(state.params, trajectory.states[t].params)
        kept = trajectory.states[t].optimizer
        for mine, theirs in zip(kept, state.optimizer, strict=True):
            assert_array_equal(mine, theirs)


@pytest.mark.parametrize("optimizer", ["adamw", "momentum"])
def test_a_run_that_starts_in_the_middle_comes_back(optimizer, tmp_path):
    trajectory, X, y = recorded(optimizer)
    state = trajectory.states[3]
    moments = map_state(torch.flatten, state.optimizer)
    recipe = replace(
        trajectory.recipe, initial=state.params[0], n_before=3, moments=moments
    )
    Trajectory(recipe, trajectory.row_weights).save(tmp_path / "run", X, y)
    loaded = Trajectory.load(tmp_path / "run", X, y).recipe
    assert loaded.n_before == 3
    for mine, theirs in zip(moments, loaded.moments, strict=True):
        assert_array_equal(mine, theirs)


def test_record_of_other_data_is_refused(tmp_path):
    trajectory, X, y = recorded()
    trajectory.save(tmp_path / "run", X, y)
    for other in ((X + 1e-9, y), (X, 1 - y), (X.float(), y), (X[:9], y[:9])):
        with pytest.raises(TrajectoryError, match="other data"):
            Trajectory.load(tmp_path / "run", *other)
    Trajectory.load(tmp_path / "run", X.clone(), y.clone())


def test_digest_is_of_the_whole_recipe():
    trajectory, X, y = recorded()
    recipe, initial = trajectory.recipe, trajectory.recipe.initial
    moments = recipe.optimizer.initial_state(initial)
    others = [
        replace(recipe, optimizer=replace(recipe.optimizer, eps=1e-7)),
        replace(recipe, clip_norm=None),
        replace(recipe, learning_rates=recipe.learning_rates * 2),
        replace(recipe, initial=recipe.initial + 1),
        replace(recipe, batches=recipe.batches[::-1]),
        replace(recipe, batches=None),
        replace(recipe, n_before=3),
        replace(recipe, decay=torch.ones_like(recipe.initial)),
        replace(recipe, moments=with_values(moments, [initial, initial])),
        replace(recipe, groups=torch.zeros(len(initial), dtype=torch.int64)),
    ]
    found = {r.digest(X, y) for r in (recipe, replace(recipe), *others)}
    assert len(found) == 1 + len(others)


def with_metadata(path, **changes):
    """Write a record again, with other words beside the arrays."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    found = {**metadata, **changes}
    save_file(tensors, path, {k: v for k, v in found.items() if v is not None})


@pytest.mark.parametrize(("format", "named"), [(None, "format 1;"), ("3", "format 3;")])
def test_other_formats_are_refused_by_name(format, named, tmp_path):
    """The first had no number, and other options."""
    trajectory, X, y = recorded()
    path = tmp_path / "run"
    trajectory.save(path, X, y)
    old = {"name": "adamw", "weight_decay": 0.1, "betas": [0.9, 0.999], "eps": 1e-8}
    options = json.dumps([{**old, "momentum": 0.0, "nesterov": False}, 0.5, 0])
    with_metadata(path, format=format, options=options)
    with pytest.raises(TrajectoryError, match=f"{named} this version.*format 2"):
        Trajectory.load(path, X, y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "lion"}, "'lion' is unknown; known are .*'adam', 'adamw', "),
        ({"name": "os.system"}, "is unknown"),
        ({"eps": -1.0}, "AdamW: eps must be a number at least 0, got -1"),
        ({"eps": float("nan")}, "AdamW: eps must be a number"),
        ({"betas": [0.9, 1.0]}, r"AdamW: betas must be a number in \[0, 1\)"),
        ({"code": 1}, "not the options of AdamW"),
        ({"denominator": 1}, "not the options of AdamW"),
    ],
)
def test_optimizers_in_files_are_checked(change, message, tmp_path):
    trajectory, X, y = recorded()
    path = tmp_path / "run"
    trajectory.save(path, X, y)
    optimizer, *rest = json.loads(trajectory.recipe.options())
    with_metadata(path, options=json.dumps([{**optimizer, **change}, *rest]))
    with pytest.raises(TrajectoryError, match=message):
        Trajectory.load(path, X, y)


def test_a_recipe_in_groups_comes_back(tmp_path):
    trajectory, X, y = recorded(record="recipe")
    recipe = trajectory.recipe
    rates = torch.stack([recipe.learning_rates, 3 * recipe.learning_rates], dim=1)
    groups = (torch.arange(len(recipe.initial)) >= 5).long()
    recipe = replace(recipe, learning_rates=rates, groups=groups)
    path = tmp_path / "run"
    replace(trajectory, recipe=recipe).save(path, X, y)
    found = Trajectory.load(path, X, y).recipe
    assert_array_equal(found.groups, groups)
    assert_array_equal(found.learning_rates, rates)
    share = 5 / len(groups)
    expected = float(recipe.learning_rates[:, 0].sum()) * (share + 3 * (1 - share))
    assert found.path_length == pytest.approx(expected, rel=1e-12)
    assert float(found.relative_rates.mean()) == pytest.approx(1, rel=1e-12)
    assert float(found.relative_rates[-1] / found.relative_rates[0]) == pytest.approx(3)
    for wrong in (groups + 1, groups - 1, groups[:3], groups.double()):
        bad = replace(trajectory, recipe=replace(recipe, groups=wrong))
        bad.save(path, X, y)
        with pytest.raises(TrajectoryError, match=r"one rate for each step|damaged"):
            Trajectory.load(path, X, y)


def test_what_is_no_record_is_refused(tmp_path):
    _, X, y = recorded()
    path = tmp_path / "run"
    path.write_bytes(b"something else entirely")
    with pytest.raises(TrajectoryError, match="no training record"):
        Trajectory.load(path, X, y)
    with pytest.raises(FileNotFoundError):
        Trajectory.load(tmp_path / "nowhere", X, y)


def test_a_save_that_fails_leaves_the_old_record(tmp_path, monkeypatch):
    trajectory, X, y = recorded()
    path = tmp_path / "run"
    trajectory.save(path, X, y)
    before = path.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            recorded("sgd")[0].save(path, X, y)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["run"]
