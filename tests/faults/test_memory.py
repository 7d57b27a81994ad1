"""Little memory, enforced by the kernel: what would not fit is never made."""

import resource

import numpy as np
import pytest
import sklearn
import torch
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator

from skattrib import (
    AdamWInfluence,
    DualInfluence,
    GradientTransformer,
    KernelSurrogateAttributor,
    LinearSurrogateAttributor,
    RISEValuator,
    TorchClassifier,
)
from skattrib.evaluation import make_weightings, retrain_outcomes
from tests.cases import Tangent
from tests.faults.processes import call

MIB = 2**20
#: MiB that a child may take beside what Python and torch have, and those it is told.
BUDGET, WORKING = 128, 16
ROW_BYTES = 8


def data(n, n_features=20, n_classes=3, seed=0):
    rng = np.random.RandomState(seed)
    X = rng.standard_normal((n, n_features))
    y = (X[:, :n_classes] + rng.standard_normal((n, n_classes))).argmax(axis=1)
    return X, y


def net(**options):
    options = {"hidden_layer_sizes": (WIDTH,), "max_epochs": 5, **options}
    return TorchClassifier(random_state=0, **options)


def confined(job, *args):
    """Do a job under the limit."""
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    limit = taken + BUDGET * MIB
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with pytest.raises(MemoryError):
        np.empty((BUDGET + 8) * MIB, dtype=np.uint8)
    with sklearn.config_context(working_memory=WORKING):
        return job(*args)


def both(job, *args):
    """Return what a job finds under the limit and with more memory than it needs."""
    little = call(confined, job, *args)
    with sklearn.config_context(working_memory=4096):
        return little, job(*args)


def too_large(*shape):
    return np.prod(shape, dtype=float) * ROW_BYTES > BUDGET * MIB


# --------------------------------------------------------------------- influence
N, WIDTH = 2000, 120
N_PARAMS = 20 * WIDTH + WIDTH + WIDTH * 3 + 3
TASKS = np.arange(N) % 6


def by_dual():
    X, y = data(N)
    dual = DualInfluence(net(), ridge=0.1, metric="identity", random_state=0)
    return dual.fit(X, y, tasks=TASKS).attribute(*data(3, seed=1))


@pytest.mark.slow
def test_dual_influence():
    assert too_large(N, 3, N_PARAMS)
    assert too_large(3 * N, 3 * N)
    found = call(confined, by_dual)
    # plain linear algebra
    X, y = data(N)
    model, kind = net().fit(X, y), "classification"
    data_ = torch.tensor(X), torch.tensor(y)
    plain = Tangent.of(model.module_, *data_, kind, torch.ones(N).double())
    Xq, yq = data(3, seed=1)
    queries = torch.tensor(Xq), torch.tensor(yq)
    asked = Tangent.of(model.module_, *queries, kind, torch.ones(3))
    kept = TASKS != 4
    J = plain.J[kept].reshape(-1, N_PARAMS)
    bent = np.einsum("ncd,ndp->ncp", plain.output_hessian()[kept], plain.J[kept])
    H = J.T @ bent.reshape(-1, N_PARAMS) + 0.1 * kept.sum() * np.eye(N_PARAMS)
    zero = np.zeros(N_PARAMS)
    gradient = plain.gradient(zero, kept.astype(float), lambda _: 0.1, "per_sample")
    step = -np.linalg.solve(H, gradient)

    def outcomes(f):
        return (f - np.log(np.exp(f).sum(axis=1, keepdims=True)))[np.arange(3), yq]

    effect = outcomes(asked.f) - outcomes(asked.f + asked.J @ step)
    assert_allclose(found[:, 4], effect, rtol=1e-5, atol=1e-8)


def by_adamw():
    X, y = data(400)
    model = net(hidden_layer_sizes=(800,), batch_size=40, max_epochs=40)
    influence = AdamWInfluence(
        model.set_params(learning_rate=1e-3), inclusion=1.0, random_state=0
    )
    return influence.fit(X, y).attribute(*data(2, seed=1))


@pytest.mark.slow
def test_adamw_influence():
    assert too_large(40 * 10, 3 * (20 * 800 + 800 + 800 * 3 + 3))
    found = call(confined, by_adamw)
    X, y = data(400)
    model = net(hidden_layer_sizes=(800,), batch_size=40, max_epochs=40)
    model.set_params(learning_rate=1e-3)
    h, weights = 1e-4, np.ones((2, 400))
    weights[:, 7] += [h, -h]
    up, down = retrain_outcomes(model, X, y, weights, *data(2, seed=1))
    assert_allclose(found[:, 7], (up - down) / (2 * h), rtol=1e-3, atol=1e-7)


# -------------------------------------------------------------------- surrogates
def by_surrogate(kind, estimation, n, n_subsets, width):
    X, y = data(n)
    surrogate = kind(
        net(hidden_layer_sizes=(width,)),
        n_subsets=n_subsets,
        estimation=estimation,
        ridge=0.1,
        damping=0.1,
        random_state=0,
    )
    surrogate.fit(X, y, tasks=np.arange(n) % 3)
    return surrogate.attribute(*data(3, seed=1))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [KernelSurrogateAttributor, LinearSurrogateAttributor])
@pytest.mark.parametrize(
    ("estimation", "sizes"), [("gradient", (400, 2, 600)), ("retrain", (N, 4, WIDTH))]
)
def test_surrogates(kind, estimation, sizes):
    n, _, width = sizes
    assert too_large(n, 3, 20 * width + width + width * 3 + 3)
    little, much = both(by_surrogate, kind, estimation, *sizes)
    assert_allclose(little, much, rtol=1e-5, atol=1e-7)


def retrained():
    X, y = data(N)
    weights = make_weightings(N, 48, random_state=0)
    return retrain_outcomes(net(), X, y, weights, *data(3, seed=1))


def test_retrained_outcomes():
    assert too_large(48, N, WIDTH + WIDTH + 3)
    found = call(confined, retrained)
    X, y = data(N)
    Xq, yq = data(3, seed=1)
    weights = make_weightings(N, 48, random_state=0)
    for i in (0, 31):
        plain = clone(net()).fit(X, y, sample_weight=weights[i])
        log_p = np.log(plain.predict_proba(Xq)[np.arange(3), yq])
        assert_allclose(found[i], log_p, rtol=0, atol=1e-10)


# --------------------------------------------------------------------- gradients
def by_rise(index):
    X, y = data(12_000, n_classes=10)
    model = net(hidden_layer_sizes=(150,), max_epochs=2)
    rise = RISEValuator(FrozenEstimator(model.fit(X[:500], y[:500])), index=index)
    rise.set_params(random_state=0).fit(X, y)
    Xq, yq = data(3, n_classes=10, seed=1)
    return rise.attribute(Xq, yq), *rise.retrieve(Xq, yq, n=5)


def test_rise(tmp_path):
    assert too_large(12_000, 10 * 151)
    little = call(confined, by_rise, tmp_path / "little")
    with sklearn.config_context(working_memory=4096):
        much = by_rise(tmp_path / "much")
    # signatures are kept in half precision
    assert_allclose(little[0], much[0], atol=1e-3)
    assert_allclose(little[1], much[1], atol=1e-3)
    for q in range(3):
        assert_allclose(little[1][q], little[0][q, little[2][q]], atol=1e-6)


def by_gradients(rows):
    X, y = data(10_000)
    model = FrozenEstimator(net().fit(X[:500], y[:500]))
    found = GradientTransformer(model, projection=32, random_state=0).fit(X, y)
    return found.transform(X)[rows]


def test_gradients():
    assert too_large(10_000, N_PARAMS)
    rows = [0, 4_999, 9_999]
    little = call(confined, by_gradients, rows)
    with sklearn.config_context(working_memory=4096):
        assert_allclose(little, by_gradients(rows), atol=1e-10)
