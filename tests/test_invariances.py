"""What must not matter to any attributor, over small random problems."""

import warnings
from unittest import mock

import joblib
import numpy as np
import pytest
import sklearn
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from sklearn.base import clone, is_classifier
from sklearn.exceptions import EfficiencyWarning

import skattrib.models._run_length
from skattrib import (
    AdamWInfluence,
    DualInfluence,
    KernelSurrogateAttributor,
    LinearSurrogateAttributor,
    RISEValuator,
    TorchClassifier,
    TorchRegressor,
)
from tests.faults.estimators import DoomedCurious

N, N_QUERIES, N_TASKS = 14, 4, 5
CLOSE = {"rtol": 0, "atol": 1e-10}

#: Attributors of single runs: what units do is known from the data alone.
ATTRIBUTORS = {
    "dual": (DualInfluence, {"ridge": 0.1, "solver": "dual"}),
    "dual by influence": (
        DualInfluence,
        {"ridge": 0.1, "solver": "dual", "removal": "influence"},
    ),
    "dual refit": (DualInfluence, {"ridge": 0.1, "solver": "dual", "removal": "refit"}),
    "adamw": (AdamWInfluence, {"inclusion": 1.0}),
    "rise": (RISEValuator, {"sketch": None}),
    # every subset without one: nothing is drawn
    "kernel": (
        KernelSurrogateAttributor,
        {"inclusion": 1.0, "estimation": "gradient", "ridge": 0.1, "damping": 0.1},
    ),
    "kernel retrained": (
        KernelSurrogateAttributor,
        {"inclusion": 1.0, "estimation": "retrain", "ridge": 0.1},
    ),
    "linear": (
        LinearSurrogateAttributor,
        {"inclusion": 1.0, "estimation": "gradient", "ridge": 0.1, "damping": 0.1},
    ),
    "linear retrained": (
        LinearSurrogateAttributor,
        {"inclusion": 1.0, "estimation": "retrain", "ridge": 0.1},
    ),
}
SUBSETS = {"n_subsets": 12, "ridge": 0.1, "estimation": "retrain"}
#: And those of random runs and subsets.
DRAWN = {
    "halves": (AdamWInfluence, {"inclusion": 0.5, "n_trajectories": 4, "n_halves": 16}),
    "kernel subsets": (
        KernelSurrogateAttributor,
        {"n_subsets": 12, "ridge": 0.1, "estimation": "retrain"},
    ),
    "linear subsets": (
        LinearSurrogateAttributor,
        {"n_subsets": 12, "ridge": 0.1, "estimation": "retrain"},
    ),
}
#: Whose attributions of tasks are the sums over their rows.
ADDITIVE = ["dual by influence", "adamw", "rise"]


#: MiB that hold the matrix that is factored, and little beside it.
MEMORY = dict.fromkeys(
    ["dual", "dual by influence", "dual refit", "kernel", "linear"], 0.15
)


@st.composite
def problems(draw):
    """Draw data, a network and how it is trained."""
    rng = np.random.RandomState(draw(st.integers(0, 2**31 - 1)))
    n_classes = draw(st.sampled_from([0, 2, 3]))
    X = rng.standard_normal((N + N_QUERIES, 3))
    if n_classes:
        y = np.arange(N + N_QUERIES) % n_classes
        y = np.concatenate([rng.permutation(y[:N]), y[:N_QUERIES]])
    else:
        y = rng.standard_normal(N + N_QUERIES)
    model = (TorchClassifier if n_classes else TorchRegressor)(
        hidden_layer_sizes=(draw(st.integers(1, 4)),),
        activation=draw(st.sampled_from(["tanh", "gelu"])),
        optimizer=draw(st.sampled_from(["adamw", "sgd"])),
        learning_rate=0.05,
        max_epochs=draw(st.integers(1, 8)),
        # Adam divides by gradients, which makes of rounding what it wants near 0
        eps=1e-3,
        random_state=draw(st.integers(0, 99)),
    )
    tasks = np.concatenate([np.arange(N_TASKS), rng.randint(N_TASKS, size=N - N_TASKS)])
    weights = rng.uniform(0.5, 2, N)
    return model, X, y, tasks, weights, rng


def fitted(name, model, X, y, **options):
    kind, given = (ATTRIBUTORS | DRAWN)[name]
    given = given | {k: options.pop(k) for k in ("n_jobs",) if k in options}
    attributor = kind(model, random_state=0, n_retrainings=8, **given)
    return attributor.fit(X[:N], y[:N], **options)


def attributed(*args, **options):
    X, y = args[2:4]
    return fitted(*args, **options).attribute(X[-N_QUERIES:], y[-N_QUERIES:])


# ------------------------------------------------------------------------ checks
def permuted_rows(name, model, X, y, tasks, weights, rng):
    """Attributions go with the rows; minibatches hold the same rows as before."""
    order = rng.permutation(N)
    everything = np.concatenate([order, np.arange(N, N + N_QUERIES)])
    draw = skattrib.models._run_length.epoch_batches

    def moved(*args):
        return [np.argsort(order)[rows] for rows in draw(*args)]

    for batch_size in (None, 5):
        model = clone(model).set_params(batch_size=batch_size)
        before = attributed(name, model, X, y, sample_weight=weights)
        with mock.patch.object(
            skattrib.models._run_length, "epoch_batches", moved if batch_size else draw
        ):
            found = attributed(
                name, model, X[everything], y[everything], sample_weight=weights[order]
            )
        assert_allclose(found, before[:, order], **CLOSE)


def duplicated_queries(name, model, X, y, tasks, weights, rng):
    attributor = fitted(name, model, X, y)
    rows = N + rng.randint(N_QUERIES, size=7)
    found = attributor.attribute(X[rows], y[rows])
    assert_allclose(found, attributor.attribute(X, y)[rows], **CLOSE)


def tasks_add_up(name, model, X, y, tasks, weights, rng):
    rows = attributed(name, model, X, y, sample_weight=weights)
    found = attributed(name, model, X, y, sample_weight=weights, tasks=tasks)
    assert_allclose(found, rows @ np.eye(N_TASKS)[tasks], **CLOSE)


def single_row_tasks(name, model, X, y, tasks, weights, rng):
    """Tasks of one row each are rows, whatever they are called."""
    names = np.sort(rng.permutation(1000)[:N])
    found = attributed(name, model, X, y, tasks=names)
    assert_allclose(found, attributed(name, model, X, y), **CLOSE)


def named_classes(name, model, X, y, tasks, weights, rng):
    if not is_classifier(model):
        y = (y > 0).astype(int)
        y[:2], model = [0, 1], TorchClassifier(max_epochs=3, random_state=0)
    before = attributed(name, model, X, y)
    for names in (["a", "bc", "d"], [-7, 2, 90], [False, True, True]):
        if y.max() < 2 or len(set(names)) > 2:
            assert_allclose(
                attributed(name, model, X, np.array(names)[y]), before, **CLOSE
            )


def scaled_weights(name, model, X, y, tasks, weights, rng):
    before = attributed(name, model, X, y, sample_weight=weights)
    factor = rng.uniform(0.1, 10)
    found = attributed(name, model, X, y, sample_weight=factor * weights)
    # similarities are multiplied by the weights of the rows
    share = factor if name == "rise" else 1.0
    assert_allclose(found / share, before, **CLOSE)


def little_memory(name, model, X, y, tasks, weights, rng):
    """Chunks do not matter; that of solvers is another choice, of other accuracy."""
    before = attributed(name, model, X, y, tasks=tasks)
    for mebibytes in (MEMORY[name],) if name in MEMORY else (0.01, 0.03):
        with sklearn.config_context(working_memory=mebibytes):
            found = attributed(name, model, X, y, tasks=tasks)
        assert_allclose(found, before, **CLOSE)


def several_workers(name, model, X, y, tasks, weights, rng):
    model = clone(model).set_params(module=DoomedCurious)  # vmap refuses it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EfficiencyWarning)
        before = attributed(name, model, X, y, tasks=tasks)
        with joblib.parallel_config(backend="threading"):
            found = attributed(name, model, X, y, tasks=tasks, n_jobs=2)
    assert_allclose(found, before, **CLOSE)


CHECKS = {
    permuted_rows: ATTRIBUTORS,
    duplicated_queries: ATTRIBUTORS | DRAWN,
    tasks_add_up: ADDITIVE,
    single_row_tasks: ATTRIBUTORS | DRAWN,
    named_classes: ATTRIBUTORS | DRAWN,
    scaled_weights: ATTRIBUTORS | DRAWN,
    little_memory: ATTRIBUTORS | DRAWN,
    several_workers: ["kernel retrained", "linear retrained", "halves"],
}
PAIRS = [
    pytest.param(check, name, id=f"{check.__name__}-{name}")
    for check, names in CHECKS.items()
    for name in names
]


def often(n_examples, check, name):
    @settings(max_examples=n_examples)
    @given(problems())
    def run(problem):
        check(name, *problem)

    run()


@pytest.mark.parametrize(("check", "name"), PAIRS)
def test_invariances(check, name):
    often(3, check, name)


@pytest.mark.slow
@pytest.mark.parametrize(("check", "name"), PAIRS)
def test_invariances_often(check, name):
    often(25, check, name)
