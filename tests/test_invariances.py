"""What must not matter to any attributor, over small random problems."""

import numpy as np
import pytest
import sklearn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.frozen import FrozenEstimator

from skattrib import (
    AdamWInfluence,
    DualInfluence,
    KernelSurrogateAttributor,
    LinearSurrogateAttributor,
    RISEValuator,
    TorchClassifier,
    TorchRegressor,
)
from skattrib.engine import _trajectory

N, N_QUERIES, N_TASKS = 14, 4, 5
TOLERANCE = {"rtol": 0, "atol": 1e-10}

#: Attributors of single runs: what units do is known from the data alone.
ATTRIBUTORS = {
    "dual": (DualInfluence, {"ridge": 0.1}),
    "dual by influence": (DualInfluence, {"ridge": 0.1, "removal": "influence"}),
    "dual refit": (DualInfluence, {"ridge": 0.1, "removal": "refit"}),
    "adamw": (AdamWInfluence, {"inclusion": 1.0}),
    "rise": (RISEValuator, {"n_components": 16}),
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
#: And those of random runs and subsets.
DRAWN = {
    "halves": (AdamWInfluence, {"inclusion": 0.5, "n_trajectories": 4}),
    "kernel subsets": (KernelSurrogateAttributor, {"n_subsets": 12}),
    "linear subsets": (LinearSurrogateAttributor, {"n_subsets": 12}),
}
#: Whose attributions of tasks are the sums over their rows.
ADDITIVE = ["dual by influence", "adamw", "rise"]


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
    kind, given = {**ATTRIBUTORS, **DRAWN}[name]
    own = {k: options.pop(k) for k in ("n_jobs",) if k in options}
    attributor = kind(model, random_state=0, n_retrainings=8, **given, **own)
    return attributor.fit(X, y, **options)


def invariance(names, n_examples=6):
    """Make a test of attributors and problems; ten times the problems if slow."""

    def decorate(check):
        def build(number):
            @pytest.mark.parametrize("name", names)
            @settings(
                max_examples=number,
                suppress_health_check=[HealthCheck.function_scoped_fixture],
            )
            @given(problem=problems())
            def test(name, problem):
                check(name, *problem)

            return test

        return build(n_examples), pytest.mark.slow(build(10 * n_examples))

    return decorate


@invariance(ATTRIBUTORS)
def permuted_rows(name, model, X, y, tasks, weights, rng):
    order = rng.permutation(N)
    Xq, yq = X[N:], y[N:]
    before = fitted(name, model, X[:N], y[:N], sample_weight=weights)
    after = fitted(name, model, X[order], y[order], sample_weight=weights[order])
    found = after.attribute(Xq, yq)
    assert_allclose(found, before.attribute(Xq, yq)[:, order], **tolerance(name))


test_permuted_rows, test_permuted_rows_often = permuted_rows
