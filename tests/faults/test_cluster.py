"""joblib on a cluster of dask: the same numbers, also when a worker dies."""

import os
from functools import partial

import joblib
import numpy as np
import pytest
from distributed import Client, LocalCluster
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import EfficiencyWarning
from sklearn.frozen import FrozenEstimator

from skattrib import (
    AdamWInfluence,
    GradientTransformer,
    KernelSurrogateAttributor,
    LinearSurrogateAttributor,
    RISEValuator,
)
from skattrib.evaluation import make_weightings, retrain_outcomes
from skattrib.influence import _run_derivatives
from tests.faults.estimators import Doomed, DoomedCurious, DoomedModule
from tests.faults.jobs import data, net

# joblib's own backend for dask, until 1.6
pytestmark = pytest.mark.filterwarnings(
    "ignore:.apply_async. is deprecated:DeprecationWarning"
)


@pytest.fixture
def cluster():
    """A cluster of two processes on this machine, which joblib uses."""
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            silence_logs="CRITICAL",
        ) as cluster,
        Client(cluster) as client,
        joblib.parallel_config(backend="dask"),
    ):
        yield client


@pytest.mark.slow
def test_a_worker_dies_in_a_forest_of_retrainings(cluster, tmp_path):
    # each array is over what dask would place on one worker
    X, y, Xq, yq = data()
    X, Xq = np.repeat(X, 10, axis=1), np.repeat(Xq, 10, axis=1)
    weights = make_weightings(60, 12, random_state=0)
    flag = tmp_path / "struck"
    found = retrain_outcomes(
        Doomed(str(flag), random_state=0), X, y, weights, Xq, yq, n_jobs=2
    )
    assert flag.exists()
    with joblib.parallel_config(backend="sequential"):
        expected = retrain_outcomes(Doomed(random_state=0), X, y, weights, Xq, yq)
    assert_array_equal(found, expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.func.vmap cannot batch")
def test_everything_that_trains_one_by_one(cluster, tmp_path):
    X, y, Xq, yq = data()
    X, Xq = np.repeat(X, 10, axis=1), np.repeat(Xq, 10, axis=1)
    weights = make_weightings(60, 12, random_state=0)
    forest = RandomForestClassifier(9, min_samples_leaf=5, random_state=0)
    tasks = np.arange(60) % 6
    refused = partial(net, module=DoomedCurious)

    def outcomes(estimator, **options):
        return retrain_outcomes(estimator, X, y, weights, Xq, yq, **options)

    def attribute(kind, estimator, **options):
        influence = kind(estimator, random_state=0, n_jobs=2, **options)
        return influence.fit(X, y, tasks=tasks).attribute(Xq, yq)

    subsets = {"n_subsets": 10, "estimation": "retrain"}
    jobs = {
        "forest": lambda: outcomes(forest, n_jobs=2, n_seeds=2),
        "vmap refuses": lambda: outcomes(refused(), n_jobs=2),
        "kernel": lambda: attribute(KernelSurrogateAttributor, forest, **subsets),
        "linear": lambda: attribute(LinearSurrogateAttributor, refused(), **subsets),
        "runs": lambda: attribute(
            AdamWInfluence, refused(), n_trajectories=4, n_halves=0
        ),
        "score": lambda: [
            KernelSurrogateAttributor(
                forest,
                random_state=0,
                n_jobs=2,
                n_retrainings=8,
                **subsets,
            )
            .fit(X, y)
            .score(Xq, yq)
        ],
    }
    for name, job in jobs.items():
        found = job()
        with joblib.parallel_config(backend="sequential"):
            assert_allclose(found, job(), rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("memory", [False, True])
def test_a_worker_dies_while_modules_are_trained(cluster, tmp_path, memory):
    X, y, Xq, yq = data()
    weights = make_weightings(60, 40, random_state=0)
    flag = tmp_path / "struck"
    module = partial(DoomedCurious, flag=str(flag), home=os.getpid())
    options = {"memory": tmp_path / "memory"} if memory else {}
    with pytest.warns(EfficiencyWarning, match="vmap cannot batch"):
        found = retrain_outcomes(
            net(module=module), X, y, weights, Xq, yq, n_jobs=2, **options
        )
    assert flag.exists()
    with (
        joblib.parallel_config(backend="sequential"),
        pytest.warns(EfficiencyWarning, match="vmap cannot batch"),
    ):
        expected = retrain_outcomes(
            net(module=DoomedCurious), X, y, weights, Xq, yq, n_jobs=2
        )
    assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_a_worker_dies_while_a_surrogate_learns(cluster, tmp_path):
    X, y, Xq, yq = data()
    found = []
    for flag in (str(tmp_path / "struck"), None):
        surrogate = KernelSurrogateAttributor(
            Doomed(), n_subsets=20, estimation="retrain", random_state=0, n_jobs=2
        )
        # its own training is at home
        model = Doomed(random_state=0).fit(X, y)
        model.flag = flag
        surrogate.set_params(estimator=FrozenEstimator(model))
        tasks = np.arange(60) % 6
        with joblib.parallel_config(backend="dask" if flag else "sequential"):
            found.append(surrogate.fit(X, y, tasks=tasks).attribute(Xq, yq))
    assert (tmp_path / "struck").exists()
    assert_array_equal(*found)


def compare(job, tmp_path, flag=None):
    """Do a job with a frozen network on the cluster, and at home."""
    X, y, Xq, yq = data()
    X, Xq = np.repeat(X, 10, axis=1), np.repeat(Xq, 10, axis=1)
    doom = {"flag": flag and str(flag), "home": os.getpid()}
    frozen = FrozenEstimator(net(module=partial(DoomedModule, **doom)).fit(X, y))

    def found(**options):
        options |= {"random_state": 0}
        if job == "gradients":
            kind = GradientTransformer(frozen, projection=8, **options)
            return kind.fit(X, y).transform(Xq)
        rise = RISEValuator(frozen, n_components=16, **options)
        return rise.fit(X, y).attribute(Xq, yq)

    ours = found(n_jobs=2, **({"index": tmp_path / "index"} if job == "index" else {}))
    with joblib.parallel_config(backend="sequential"):
        assert_allclose(ours, found(), rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("job", ["gradients", "index"])
def test_a_worker_dies_while_rows_are_read(cluster, tmp_path, job):
    compare(job, tmp_path, tmp_path / "struck")
    assert (tmp_path / "struck").exists()


# a cluster takes longer to start than to do all of these
@pytest.mark.slow
def test_gradients_an_index_and_sweeps_on_the_cluster(cluster, tmp_path, monkeypatch):
    for job in ("gradients", "index"):
        compare(job, tmp_path)

    X, y, Xq, yq = data()
    runs = AdamWInfluence(net(), n_trajectories=4, n_halves=0, random_state=0, n_jobs=2)
    parts, call_each = [], _run_derivatives.call_each

    def seen(function, tasks, n_jobs, **options):
        parts.append(len(tasks))
        return call_each(function, tasks, n_jobs, **options)

    monkeypatch.setattr(_run_derivatives, "call_each", seen)
    found = runs.fit(X, y).attribute(Xq, yq)
    assert parts == [2]
    with joblib.parallel_config(backend="sequential"):
        assert_allclose(found, clone(runs).fit(X, y).attribute(Xq, yq), atol=1e-12)
    assert parts == [2]
