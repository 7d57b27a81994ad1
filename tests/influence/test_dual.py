"""DualInfluence: identities, and agreement with real retraining."""

import copy
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pytest
import sklearn
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_digits, load_iris, load_wine
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import scale
from torch import nn

import skattrib.engine._linearized
import skattrib.engine._plan
import skattrib.influence._dual
from skattrib import DualInfluence, TorchClassifier, TorchRegressor
from skattrib.engine._linearized import LinearizedModel
from skattrib.engine._plan import SolverChoice
from skattrib.evaluation import (
    lds_score,
    loo_score,
    make_weightings,
    retrain_outcomes,
)
from skattrib.exceptions import FaithfulnessWarning, TrajectoryError
from skattrib.influence._linear_models import LeaveOneUnitOut, LinearModel
from skattrib.models._as_model import as_model

REMOVALS = ["influence", "newton", "refit"]


def iris(n=40, n_queries=8):
    X, y = load_iris(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(y))
    X, y = scale(X)[order], y[order]
    return X[:n], y[:n], X[-n_queries:], y[-n_queries:]


def diabetes(n=40, n_queries=8):
    X, y = load_diabetes(return_X_y=True)
    X, y = scale(X), scale(y)
    return X[:n], y[:n], X[-n_queries:], y[-n_queries:]


def small_net(**options):
    options = {"hidden_layer_sizes": (6,), "max_epochs": 30, **options}
    return TorchClassifier(random_state=0, **options)


@pytest.fixture(scope="module", params=REMOVALS)
def fitted(request):
    X, y, *queries = iris()
    dual = DualInfluence(small_net(), removal=request.param, random_state=0)
    return dual.fit(X, y), *queries


# ------------------------------------------------------------------ identities
@pytest.mark.parametrize("outcome", ["log_likelihood", "margin"])
def test_all_units_present_is_the_model_itself(fitted, outcome):
    dual, X, y = fitted
    dual = pickle.loads(pickle.dumps(dual)).set_params(outcome=outcome)
    p = dual.estimator_.predict_proba(X)[np.arange(len(y)), y]
    expected = np.log(p) if outcome == "log_likelihood" else np.log(p / (1 - p))
    found = dual.predict_outcomes(X, y, np.ones((1, dual.n_units_)))
    assert_allclose(found[0], expected, rtol=1e-12, atol=1e-12)


def test_attributions_are_leave_one_out_predictions(fitted):
    dual, X, y = fitted
    weights = np.vstack([np.ones(dual.n_units_), 1 - np.eye(dual.n_units_)])
    outcomes = dual.predict_outcomes(X, y, weights)
    assert_allclose(
        dual.attribute(X, y), (outcomes[0] - outcomes[1:]).T, rtol=0, atol=1e-9
    )


def test_first_order_attributions_sum_to_zero():
    X, y, *queries = iris()
    weights = np.random.RandomState(0).uniform(0.5, 2, len(y))
    dual = DualInfluence(small_net(), removal="influence", random_state=0)
    A = dual.fit(X, y, sample_weight=weights).attribute(*queries)
    assert np.abs(A).max() > 1e-3
    assert_allclose(A.sum(axis=1), 0, atol=1e-12)


@pytest.mark.parametrize("ridge", ["auto", 0.01])
def test_a_task_is_the_sum_of_its_rows_at_first_order(ridge):
    X, y, *queries = iris()
    tasks = np.arange(len(y)) % 5
    dual = DualInfluence(small_net(), removal="influence", ridge=ridge, random_state=0)
    rows = dual.fit(X, y).attribute(*queries)
    by_task = dual.fit(X, y, tasks=tasks).attribute(*queries)
    summed = np.stack([rows[:, tasks == t].sum(axis=1) for t in range(5)], axis=1)
    assert_allclose(by_task, summed, rtol=0, atol=1e-10)


def test_a_task_is_not_the_sum_of_its_rows_in_a_newton_step():
    X, y, *queries = iris()
    tasks = np.arange(len(y)) % 5
    dual = DualInfluence(small_net(), ridge=0.01, random_state=0)
    rows = dual.fit(X, y).attribute(*queries)
    by_task = dual.fit(X, y, tasks=tasks)
    outcomes = by_task.predict_outcomes(*queries, 1 - np.eye(5))
    present = by_task.predict_outcomes(*queries, np.ones(5))
    found = by_task.attribute(*queries)
    assert_allclose(found, (present - outcomes).T, rtol=0, atol=1e-10)
    summed = np.stack([rows[:, tasks == t].sum(axis=1) for t in range(5)], axis=1)
    assert np.abs(found - summed).max() > 0.05 * np.abs(found).max()


@pytest.mark.parametrize("removal", REMOVALS)
@pytest.mark.parametrize("regularization", ["per_sample", "fixed"])
def test_the_three_solvers_agree(removal, regularization):
    X, y, *queries = iris()
    weights = make_weightings(len(y), 4, random_state=0)
    found = {}
    for solver in ["primal", "dual", "cg"]:
        dual = DualInfluence(
            small_net(),
            removal=removal,
            regularization=regularization,
            solver=solver,
            random_state=0,
        ).fit(X, y)
        assert dual.solver_ == solver
        found[solver] = (
            dual.attribute(*queries),
            dual.predict_outcomes(*queries, weights),
            dual.parameter_change(weights),
        )
    for primal, dual, cg in zip(*found.values(), strict=True):
        assert_allclose(dual, primal, rtol=1e-8, atol=1e-8 * np.abs(primal).max())
        assert_allclose(cg, primal, rtol=1e-6, atol=1e-6 * np.abs(primal).max())


def test_output_change_is_what_the_outcome_is_read_from():
    X, y, Xq, yq = diabetes()
    dual = DualInfluence(TorchRegressor(max_epochs=20, random_state=0), random_state=0)
    dual.fit(X, y)
    weights = make_weightings(len(y), 4, random_state=0)
    moved = dual.estimator_.predict(Xq) + dual.output_change(Xq, weights)[:, :, 0]
    expected = -0.5 * (moved - yq) ** 2
    assert_allclose(dual.predict_outcomes(Xq, yq, weights), expected, atol=1e-12)


def test_without_y_the_raw_prediction_of_a_regressor_is_attributed():
    X, y, Xq, _ = diabetes()
    dual = DualInfluence(TorchRegressor(max_epochs=20, random_state=0), random_state=0)
    dual.fit(X, y)
    changes = dual.output_change(Xq, 1 - np.eye(len(y)))[:, :, 0]
    assert_allclose(dual.attribute(Xq), -changes.T, atol=1e-12)
    assert_allclose(dual.transform(Xq), -changes.T, atol=1e-12)


def test_a_callable_outcome_is_attributed():
    X, y, Xq, yq = iris()
    spread = lambda outputs, targets: outputs.std(dim=-1)
    dual = DualInfluence(small_net(), outcome=spread, random_state=0).fit(X, y)
    weights = make_weightings(len(y), 3, random_state=0)
    outputs = np.log(dual.estimator_.predict_proba(Xq)) + dual.output_change(
        Xq, weights
    )
    expected = outputs.std(axis=-1, ddof=1)
    assert_allclose(dual.predict_outcomes(Xq, yq, weights), expected, atol=1e-10)


# ------------------------------------------------------------- many dampings
RIDGES = [1e-4, 1e-2, 0.3, 3.0]


@pytest.fixture
def factorisations(monkeypatch):
    """Names of what decomposes or factors, called for matrices of 20 or more."""
    calls = []

    def spy(name):
        inner = getattr(torch.linalg, name)

        def noting(matrix, *args, **options):
            if matrix.shape[-1] >= 20:
                calls.append(name)
            return inner(matrix, *args, **options)

        monkeypatch.setattr(torch.linalg, name, noting)

    for name in ("cholesky_ex", "eigh", "eigvalsh"):
        spy(name)
    return calls


@pytest.mark.parametrize("solver", ["primal", "dual", "nystroem"])
@pytest.mark.parametrize("removal", ["influence", "newton"])
@pytest.mark.parametrize("with_tasks", [False, True])
@pytest.mark.parametrize("data", [iris, diabetes])
def test_a_ridge_path_is_separate_fits(
    data, with_tasks, removal, solver, factorisations
):
    X, y, *queries = data()
    # groups of three rows at most
    tasks = np.arange(len(y)) % 14 if with_tasks else None
    net = TorchRegressor(max_epochs=20, random_state=0)
    net = FrozenEstimator((small_net() if data is iris else net).fit(X, y))
    options = {"solver": solver, "removal": removal, "random_state": 0}
    dual = DualInfluence(net, **options).fit(X, y, tasks=tasks)
    before = joblib.hash(pickle.dumps(dual))
    factorisations.clear()
    path = dual.ridge_path(*queries, ridges=RIDGES)
    assert factorisations == ["eigh"]
    assert joblib.hash(pickle.dumps(dual)) == before
    assert path.shape == (4, len(queries[0]), dual.n_units_)
    for ridge, found in zip(RIDGES, path):
        alone = DualInfluence(net, ridge=ridge, **options).fit(X, y, tasks=tasks)
        expected = alone.attribute(*queries)
        assert_allclose(found, expected, rtol=0, atol=1e-8 * np.abs(expected).max())


@pytest.mark.parametrize("solver", ["primal", "dual"])
@pytest.mark.parametrize("removal", ["influence", "newton"])
def test_a_ridge_path_counts_rows_where_the_loss_is_flat(removal, solver):
    X, y, *queries = diabetes()
    loss = nn.HuberLoss(delta=0.3)  # most rows are on its tails
    net = TorchRegressor(loss=loss, max_epochs=20, random_state=0).fit(X, y)
    options = {"solver": solver, "removal": removal, "random_state": 0}
    dual = DualInfluence(FrozenEstimator(net), **options).fit(X, y)
    (found,) = dual.ridge_path(*queries, ridges=[dual.ridge_])
    expected = dual.attribute(*queries)
    assert_allclose(found, expected, rtol=0, atol=1e-8 * np.abs(expected).max())


def test_a_ridge_path_is_the_mean_over_models_and_takes_weights():
    X, y, *queries = iris()
    weights = np.random.RandomState(0).uniform(0.5, 2, len(y))
    options = {"n_models": 2, "solver": "dual", "random_state": 0}
    dual = DualInfluence(small_net(), **options).fit(X, y, sample_weight=weights)
    (found,) = dual.ridge_path(*queries, ridges=[0.05])
    alone = DualInfluence(small_net(), ridge=0.05, **options)
    expected = alone.fit(X, y, sample_weight=weights).attribute(*queries)
    assert_allclose(found, expected, rtol=0, atol=1e-8 * np.abs(expected).max())


def test_a_ridge_path_in_float32_and_by_conjugate_gradients():
    X, y, *queries = iris()
    for dtype, solver, tol in [(np.float32, "dual", 1e-4), (np.float64, "cg", 1e-6)]:
        options = {"solver": solver, "random_state": 0}
        Xq = queries[0].astype(dtype)
        dual = DualInfluence(small_net(), **options).fit(X.astype(dtype), y)
        path = dual.ridge_path(Xq, ridges=[0.01, 1.0])
        assert path.dtype == dtype
        for ridge, found in zip([0.01, 1.0], path):
            alone = DualInfluence(small_net(), ridge=ridge, **options)
            expected = alone.fit(X.astype(dtype), y).attribute(Xq)
            assert_allclose(found, expected, rtol=0, atol=tol * np.abs(expected).max())


def test_a_ridge_path_refuses_what_it_cannot_share():
    X, y, *queries = iris()
    dual = DualInfluence(small_net(), removal="refit", random_state=0).fit(X, y)
    with pytest.raises(ValueError, match=r"removal='refit' would save nothing.*Use"):
        dual.ridge_path(*queries, ridges=[0.1])
    dual = DualInfluence(small_net(), random_state=0).fit(X, y)
    for ridges in ([0.1, 0.0], [-1.0], [[0.1]]):
        with pytest.raises(ValueError, match="ridges must be a list of positive"):
            dual.ridge_path(*queries, ridges=ridges)


@pytest.mark.parametrize("solver", ["primal", "dual"])
def test_calibration_decomposes_once(solver, factorisations):
    X, y, *_ = iris()
    net = FrozenEstimator(small_net().fit(X, y))
    dual = DualInfluence(net, ridge="calibrate", solver=solver, random_state=0)
    dual.fit(X, y)
    assert factorisations == ["eigh"]
    # and finds what plain factors find
    model, rule = dual._linear_models[0].tangent, dual.ridge_rule_
    assert model.ridge is rule
    without = LeaveOneUnitOut(np.arange(len(y)), np.ones(len(y)), len(y))
    expected = model.parameter_change(dual._linear_models[0].steps(without))
    found = model.parameter_change(dual._without_each[0])
    assert_allclose(found, expected, rtol=0, atol=1e-8 * float(expected.abs().max()))


# ----------------------------------------------------------------- Nystroem
def digits(n=200):
    X, y = load_digits(return_X_y=True)
    X = X / 16
    return X[:n], y[:n], X[-20:], y[-20:]


def test_nystroem_with_a_quarter_of_the_rows_is_near(monkeypatch):
    monkeypatch.setattr("skattrib.engine._plan._FEW_LANDMARKS", 1)
    X, y, *queries = digits()
    net = TorchClassifier(hidden_layer_sizes=(16,), max_epochs=30, random_state=0)
    net = FrozenEstimator(net.fit(X, y))
    exact = DualInfluence(net, random_state=0).fit(X, y)
    ours = DualInfluence(net, solver="nystroem", random_state=0).fit(X, y)
    assert ours.solver_ == "nystroem"
    assert ours.solver_reason_ == "as requested: an approximation, 50 of 200 rows"
    found, expected = ours.attribute(*queries), exact.attribute(*queries)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9
    again = DualInfluence(net, solver="nystroem", random_state=0).fit(X, y)
    assert_array_equal(again.attribute(*queries), found)
    other = DualInfluence(net, solver="nystroem", random_state=1).fit(X, y)
    assert not np.array_equal(other.attribute(*queries), found)


@pytest.mark.parametrize("removal", REMOVALS)
@pytest.mark.parametrize("data", [iris, diabetes])
def test_nystroem_with_all_rows_is_exact(data, removal):
    X, y, *queries = data()
    net = TorchRegressor(max_epochs=20, random_state=0)
    net = FrozenEstimator((small_net() if data is iris else net).fit(X, y))
    weights = make_weightings(len(y), 4, random_state=0)
    found = {}
    for solver in ("nystroem", "primal"):
        dual = DualInfluence(net, solver=solver, removal=removal, random_state=0)
        dual.fit(X, y)
        found[solver] = (
            dual.attribute(*queries),
            dual.predict_outcomes(*queries, weights),
            dual.parameter_change(weights),
        )
    for ours, exact in zip(*found.values(), strict=True):
        assert_allclose(ours, exact, rtol=0, atol=1e-6 * np.abs(exact).max())


def test_nystroem_says_what_it_misses(monkeypatch):
    X, y, *queries = digits(120)
    net = TorchClassifier(hidden_layer_sizes=(16,), max_epochs=30, random_state=0)
    net = FrozenEstimator(net.fit(X, y))
    exact = DualInfluence(net, random_state=0).fit(X, y)
    assert exact.diagnose(*queries).approximation is None
    missed, true = [], []
    for count in (2, 40, 120):
        monkeypatch.setattr(
            "skattrib.influence._tangent_plans.plan_solver",
            lambda *args, count=count, **options: SolverChoice("nystroem", "", count),
        )
        ours = DualInfluence(net, solver="nystroem", random_state=0).fit(X, y)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = ours.diagnose(*queries)
        assert "approximation by landmarks misses" in found.verdict
        assert found.trustworthy == (not caught) == (count > 2)
        missed.append(found.approximation)
        everyone = 1 - np.eye(120)
        moved, expected = (
            dual.output_change(queries[0], everyone) for dual in (ours, exact)
        )
        true.append(np.linalg.norm(moved - expected) / np.linalg.norm(expected))
    # eight units stand for all of them
    assert_allclose(missed[:2], true[:2], rtol=0.5)
    assert max(missed[2], true[2]) < 1e-6


# ------------------------------------------------------------ real retraining
def zeros(n_inputs, n_outputs):
    layer = nn.utils.skip_init(nn.Linear, n_inputs, n_outputs)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def ridge_net(task, **options):
    """A linear model trained to the minimum of mean loss + 0.05 ‖θ‖²."""
    kind = {"regression": TorchRegressor, "classification": TorchClassifier}[task]
    return kind(
        zeros,
        optimizer="sgd",
        learning_rate=0.3,
        momentum=0.8,
        weight_decay=0.1,
        max_epochs=400,
        random_state=0,
        **options,
    )


def one_out(net, X, y, Xq, yq, weights=None):
    """Really retrain without each row: F(1) − F(1 − e_j), (n_queries, n_rows)."""
    rows = np.vstack([np.ones(len(y)), 1 - np.eye(len(y))])
    outcomes = retrain_outcomes(net, X, y, rows, Xq, yq, sample_weight=weights)
    return (outcomes[0] - outcomes[1:]).T


@pytest.mark.parametrize("weighted", [False, True])
def test_newton_is_retraining_for_squared_loss(weighted):
    X, y, Xq, yq = diabetes(30)
    net = ridge_net("regression")
    s = np.random.RandomState(0).uniform(0.5, 2, len(y)) if weighted else None
    dual = DualInfluence(net, ridge=0.1, metric="identity", random_state=0)
    A = dual.fit(X, y, sample_weight=s).attribute(Xq, yq)
    truth = one_out(net, X, y, Xq, yq, s)
    assert np.abs(truth).max() > 0.01
    assert_allclose(A, truth, rtol=0, atol=1e-8 * np.abs(truth).max())


def test_groups_and_fractions_are_retraining_for_squared_loss():
    X, y, Xq, yq = diabetes(30)
    net = ridge_net("regression")
    weights = np.vstack(
        [
            make_weightings(30, 3, random_state=0),
            make_weightings(30, 2, size=0.9, random_state=0),
            np.random.RandomState(1).uniform(0, 1.5, (2, 30)),
        ]
    )
    dual = DualInfluence(net, ridge=0.1, metric="identity", random_state=0).fit(X, y)
    truth = retrain_outcomes(net, X, y, weights, Xq, yq)
    found = dual.predict_outcomes(Xq, yq, weights)
    assert_allclose(found, truth, rtol=0, atol=1e-8 * np.abs(truth).max())


def test_parameter_change_is_that_of_retraining():
    X, y, *_ = diabetes(30)
    net = ridge_net("regression")
    dual = DualInfluence(net, ridge=0.1, metric="identity", random_state=0).fit(X, y)
    weights = make_weightings(30, 1, random_state=0)

    def flat(model):
        return torch.cat([p.detach().flatten() for p in model.module_.parameters()])

    again = dual.estimator_.__sklearn_clone__().fit(X, y, sample_weight=weights[0])
    change = (flat(again) - flat(dual.estimator_)).numpy()
    assert_allclose(dual.parameter_change(weights)[0], change, atol=1e-8)


def test_refit_is_retraining_for_softmax_and_newton_is_close():
    X, y, Xq, yq = iris(40)
    net = ridge_net("classification")
    weights = np.vstack(
        [1 - np.eye(40)[::4], make_weightings(40, 3, size=0.6, random_state=0)]
    )
    truth = retrain_outcomes(net, X, y, weights, Xq, yq)
    present = retrain_outcomes(net, X, y, np.ones((1, 40)), Xq, yq)
    error = {}
    for removal in REMOVALS:
        dual = DualInfluence(
            net, ridge=0.1, metric="identity", removal=removal, random_state=0
        ).fit(X, y)
        change = dual.predict_outcomes(Xq, yq, weights) - present
        true = truth - present
        each = np.linalg.norm(change - true, axis=1) / np.linalg.norm(true, axis=1)
        error[removal] = each[:10].mean()
        if removal == "refit":
            assert each.max() < 1e-5
    assert error["newton"] < 0.05
    assert error["newton"] < error["influence"] / 2


@pytest.mark.parametrize("removal", REMOVALS)
@pytest.mark.parametrize(("optimizer", "least"), [("adamw", 0.4), ("sgd", 0.6)])
def test_it_ranks_retrained_networks(removal, optimizer, least):
    X, y = load_wine(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(y))
    X, y = scale(X)[order], y[order]
    rate = 1e-2 if optimizer == "adamw" else 0.2
    net = TorchClassifier(optimizer=optimizer, learning_rate=rate, random_state=0)
    dual = DualInfluence(net, outcome="margin", removal=removal, random_state=0)
    dual.fit(X[:60], y[:60])
    assert dual.score(X[60:90], y[60:90]) > 0.6
    truth = retrain_outcomes(
        net, X[:60], y[:60], 1 - np.eye(60), X[60:90], y[60:90], outcome="margin"
    )
    assert loo_score(truth, dual.attribute(X[60:90], y[60:90])) > least


def convolutional(n_inputs, n_outputs):
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 4, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, n_outputs),
    )


def test_it_ranks_retrained_convolutional_networks():
    from sklearn.datasets import load_digits

    X, y = load_digits(n_class=4, return_X_y=True)
    X = (X / 16).astype(np.float32)
    net = TorchClassifier(convolutional, max_epochs=60, random_state=0)
    dual = DualInfluence(net, outcome="margin", random_state=0).fit(X[:60], y[:60])
    assert dual.attribute(X[60:90]).dtype == np.float32
    assert dual.score(X[60:90], y[60:90]) > 0.6


# --------------------------------------------------------------------- choices
def test_ridge_auto_follows_the_length_of_training():
    X, y, *_ = iris()
    short = DualInfluence(small_net(max_epochs=20), random_state=0).fit(X, y)
    trajectory = short.estimator_.trajectory_
    rates = 20 * [1e-2]
    scale_ = trajectory.denominator
    unit = float(scale_.clamp(min=1e-3 * scale_.mean()).mean()) / sum(rates)
    assert short.ridge_ == pytest.approx((1.5 + 4 / 40) * unit, rel=1e-6)
    assert short.ridge_rule_(0.5) == pytest.approx(3.5 * unit, rel=1e-6)
    assert short.metric_ == "optimizer"


def test_ridge_auto_of_sgd_counts_momentum():
    X, y, *_ = iris()
    net = small_net(optimizer="sgd", momentum=0.9, learning_rate=0.05)
    dual = DualInfluence(net, removal="influence", random_state=0).fit(X, y)
    assert dual.ridge_ == pytest.approx(1.5 * (1 - 0.9) / (30 * 0.05), rel=1e-6)


def test_calibrated_ridge_ranks_held_out_rows_no_worse():
    X, y, Xq, yq = iris(60, 30)
    # trained far longer than needed: the rule is off here
    net = small_net(max_epochs=150, learning_rate=5e-2, hidden_layer_sizes=(16,))
    weights = make_weightings(60, 60, random_state=5)
    truth = retrain_outcomes(net, X, y, weights, Xq, yq, outcome="margin")
    scores = {}
    for ridge in ["auto", "calibrate", 100.0]:
        dual = DualInfluence(net, ridge=ridge, outcome="margin", random_state=0)
        predicted = dual.fit(X, y).predict_outcomes(Xq, yq, weights)
        scores[ridge] = lds_score(truth, predicted)
        if ridge == "calibrate":
            assert "by retraining" in dual.ridge_rule_.source
    assert scores["calibrate"] > scores[100.0]
    assert scores["calibrate"] > scores["auto"] - 0.05


def test_calibration_of_single_rows_is_not_led_by_held_out_ones():
    X, y = load_wine(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(y))
    X, y = scale(X)[order], y[order]
    Xq, yq = X[120:], y[120:]
    net = small_net(hidden_layer_sizes=(16,), max_epochs=60)
    weights = make_weightings(120, 60, random_state=5)
    truth = retrain_outcomes(net, X[:120], y[:120], weights, Xq, yq, outcome="margin")
    ranks = {}
    for ridge in ["calibrate", 1e-4, 1e-3, 1e-2, 1e-1, 1.0]:
        dual = DualInfluence(net, ridge=ridge, outcome="margin", random_state=0)
        A = dual.fit(X[:120], y[:120]).attribute(Xq, yq)
        ranks[ridge] = lds_score(truth, weights @ A.T)
    best = max(ranks[r] for r in ranks if r != "calibrate")
    assert ranks["calibrate"] > best - 0.05


def test_a_model_trained_by_a_generator_has_one_truth():
    X, y, *queries = iris()
    net = small_net().set_params(random_state=np.random.RandomState(0))
    dual = DualInfluence(net, n_models=2, n_retrainings=8, random_state=0).fit(X, y)
    assert dual.score(*queries) == dual.score(*queries)
    ones = np.ones((1, len(y)))
    again = retrain_outcomes(dual.estimator_, X, y, ones, *queries, n_seeds=2)
    assert_allclose(dual.predict_outcomes(*queries, ones), again, atol=1e-9)


def test_an_outcome_that_misreads_its_axes_is_refused():
    X, y, *queries = diabetes()
    net = TorchRegressor(max_epochs=5, random_state=0)
    dual = DualInfluence(net, outcome=lambda f, t: f[:, 0], random_state=0).fit(X, y)
    with pytest.raises(ValueError, match="it must drop the last axis and keep"):
        dual.attribute(*queries)


def test_float32_attributions_of_sure_queries_keep_their_digits():
    from sklearn.datasets import load_digits

    X, y = load_digits(n_class=5, return_X_y=True)
    X = X / 16
    net = small_net(hidden_layer_sizes=(16,), max_epochs=80)
    found = []
    for dtype in (np.float64, np.float32):
        # the same trained parameters in both precisions
        trained = clone(net).fit(X[:80].astype(np.float64), y[:80])
        trained.module_.to(torch.float32).to(
            torch.float64 if dtype is np.float64 else torch.float32
        )
        dual = DualInfluence(FrozenEstimator(trained), random_state=0)
        dual.fit(X[:80].astype(dtype), y[:80])
        found.append(dual.attribute(X[80:110].astype(dtype), y[80:110]))
    size = np.abs(found[0]).max(axis=1)
    error = np.abs(found[0] - found[1]).max(axis=1)
    assert size.min() < 1e-2
    assert (error / size).max() < 1e-3
    assert np.median(error / size) < 1e-4


def test_a_frozen_model_keeps_the_weights_it_was_trained_with():
    X, y, *queries = iris()
    weights = np.random.RandomState(0).uniform(0.5, 3, len(y))
    trained = small_net().fit(X, y, sample_weight=weights)
    frozen = DualInfluence(FrozenEstimator(trained), random_state=0).fit(X, y)
    fresh = DualInfluence(small_net(), random_state=0).fit(X, y, sample_weight=weights)
    assert_array_equal(frozen.attribute(*queries), fresh.attribute(*queries))


def test_a_wrapped_module_of_another_width_is_refused():
    X, y, *_ = iris()
    layer = nn.utils.skip_init(nn.Linear, 4, 5)
    wrapped = TorchClassifier.from_module(layer, [0, 1, 2])
    with pytest.raises(ValueError, match="module returns shape"):
        DualInfluence(FrozenEstimator(wrapped), ridge=0.1, random_state=0).fit(X, y)


def test_diagnose_leaves_the_module_to_other_threads(fitted):
    dual, X, y = fitted
    expected = dual.estimator_.predict_proba(X)
    n_seen = 0
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(lambda: [dual.diagnose(X, y) for _ in range(5)])

        while not running.done():
            assert_array_equal(dual.estimator_.predict_proba(X), expected)
            n_seen += 1

        running.result()  # raises what the thread raised
    assert n_seen


def test_changing_the_data_afterwards_does_not_change_the_truth():
    X, y, *queries = iris()
    dual = DualInfluence(small_net(), n_retrainings=8, random_state=0).fit(X, y)
    before = dual.score(*queries)
    X += 1
    assert dual.score(*queries) == before


def test_several_models_average_over_the_seeds_of_the_truth():
    X, y, *queries = iris()
    several = DualInfluence(small_net(), n_models=3, random_state=0).fit(X, y)
    found, errors = several.attribute(*queries, return_std=True)
    single = [
        DualInfluence(FrozenEstimator(estimator), random_state=0)
        .fit(X, y)
        .attribute(*queries)
        for estimator in several.estimators_
    ]
    assert_allclose(found, np.mean(single, axis=0), atol=1e-12)
    assert_allclose(errors, np.std(single, axis=0, ddof=1) / 3**0.5, atol=1e-12)
    present = retrain_outcomes(
        small_net(), X, y, np.ones((1, len(y))), *queries, n_seeds=3
    )
    predicted = several.predict_outcomes(*queries, np.ones((1, len(y))))
    assert_allclose(predicted, present, atol=1e-9)


def test_a_frozen_model_is_attributed_as_it_is():
    X, y, *queries = iris()
    trained = small_net().fit(X, y)
    frozen = DualInfluence(FrozenEstimator(trained), random_state=0).fit(X, y)
    assert frozen.estimator_.module_ is trained.module_
    fresh = DualInfluence(small_net(), random_state=0).fit(X, y)
    assert_array_equal(frozen.attribute(*queries), fresh.attribute(*queries))
    assert frozen.score(*queries) == fresh.score(*queries)


def test_a_wrapped_module_is_attributed_with_a_warning():
    X, y, *queries = iris()
    trained = small_net().fit(X, y)
    wrapped = TorchClassifier.from_module(trained.module_, trained.classes_)
    dual = DualInfluence(FrozenEstimator(wrapped), random_state=0)
    with pytest.warns(FaithfulnessWarning, match="ridge='auto' without a record"):
        dual.fit(X, y)
    assert dual.metric_ == "gradients"
    assert dual.ridge_rule_.source == "Laplace evidence"
    with pytest.raises(TrajectoryError, match="cannot be trained again"):
        dual.score(*queries)
    # the guess is good enough to agree with the recorded run
    recorded = DualInfluence(small_net(), random_state=0).fit(X, y)
    same = lds_score(dual.attribute(*queries).T, recorded.attribute(*queries).T)
    assert same > 0.9


def test_a_wrapped_module_too_large_to_factor_uses_the_trace():
    X, y, *_ = iris()
    trained = small_net().fit(X, y)
    wrapped = TorchClassifier.from_module(trained.module_, trained.classes_)
    dual = DualInfluence(FrozenEstimator(wrapped), solver="cg", random_state=0)
    with pytest.warns(FaithfulnessWarning):
        dual.fit(X, y)
    primal = DualInfluence(FrozenEstimator(wrapped), ridge=1.0, random_state=0)
    model = primal.fit(X, y)._linear_models[0].tangent
    mean = float(model.space.eigenvalues().sum()) / len(y) / model.model.n_params
    assert dual.ridge_rule_.source == "trace of the Hessian"
    assert dual.ridge_ == pytest.approx(10 * mean, rel=0.3)


def test_memory_keeps_the_kernel(tmp_path, monkeypatch):
    X, y, *queries = iris()
    calls = []
    build = skattrib.engine._linearized.kernel_block
    monkeypatch.setattr(
        skattrib.engine._linearized,
        "kernel_block",
        lambda *args: calls.append(1) or build(*args),
    )
    options = {"solver": "dual", "memory": str(tmp_path), "random_state": 0}
    found = [
        DualInfluence(small_net(), ridge=r, **options).fit(X, y).attribute(*queries)
        for r in [0.01, 0.02, 0.01]
    ]
    assert len(calls) == 1
    assert_array_equal(found[0], found[2])


@pytest.mark.parametrize("solver", ["primal", "dual", "cg"])
def test_queries_in_small_pieces_give_the_same(solver, monkeypatch):
    X, y, *queries = iris()
    dual = DualInfluence(small_net(), solver=solver, random_state=0).fit(X, y)
    weights = make_weightings(len(y), 3, random_state=0)
    whole = dual.attribute(*queries), dual.predict_outcomes(*queries, weights)
    model = dual._linear_models[0].tangent
    assert model.query_batch(len(y)) > len(queries[0])
    monkeypatch.setattr(model, "memory_bytes", 1e4)
    assert model.query_batch(len(y)) < len(queries[0])
    pieces = dual.attribute(*queries), dual.predict_outcomes(*queries, weights)
    for one, other in zip(whole, pieces, strict=True):
        assert_allclose(one, other, rtol=0, atol=1e-10)


def test_verbose_says_once_which_solver_and_why(capsys, monkeypatch):
    X, y, *_ = iris()
    n_planned, plan = [], skattrib.influence._dual.plan_untrained

    def counted(*args, **options):
        n_planned.append(1)
        return plan(*args, **options)

    monkeypatch.setattr(skattrib.influence._dual, "plan_untrained", counted)
    dual = DualInfluence(small_net(), n_models=2, random_state=0, verbose=1)
    dual.fit(X, y)
    said = capsys.readouterr().out
    assert said.count("solver primal: cheapest for n·C = 120") == 1
    assert said.count("removal newton: Newton steps are affordable") == 1
    assert len(n_planned) == 1
    # what training brought to light is said after it
    single = X.astype(np.float32)
    dual.set_params(ridge=1e-7, n_models=1).fit(single, y)
    first, *others = capsys.readouterr().out.splitlines()
    assert "double precision" not in first
    assert ["in double precision" in line for line in others] == [True]
    # of a module there is no plan before
    module = TorchClassifier.from_module(dual.estimator_.module_, [0, 1, 2])
    dual.set_params(estimator=FrozenEstimator(module), ridge=0.1).fit(X, y)
    assert capsys.readouterr().out.count("solver primal: cheapest for") == 1


def test_queries_write_nothing_and_may_come_from_any_thread(fitted):
    dual, X, y = fitted
    before = joblib.hash(pickle.dumps(dual))
    weights = make_weightings(dual.n_units_, 4, random_state=0)

    def ask(_):
        return dual.attribute(X, y), dual.predict_outcomes(X, y, weights)

    alone = ask(0)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(ask, range(8)):
            assert_array_equal(found[0], alone[0])
            assert_array_equal(found[1], alone[1])
    assert joblib.hash(pickle.dumps(dual)) == before


def test_queries_copy_no_weights(fitted, monkeypatch):
    dual, X, y = fitted
    weights = make_weightings(dual.n_units_, 4, random_state=0)
    expected = dual.attribute(X, y)

    def refuse(*_):
        raise AssertionError("weights are copied")

    monkeypatch.setattr(nn.Parameter, "__deepcopy__", refuse)
    assert_array_equal(dual.attribute(X, y), expected)
    dual.predict_outcomes(X, y, weights)
    dual.diagnose(X, y)


def test_targets_are_encoded_once(monkeypatch):
    """For any number of batches and dampings."""
    X, y, *queries = iris()
    dual = DualInfluence(small_net(), random_state=0).fit(X, y)
    encoded, encode = [], TorchClassifier._targets
    monkeypatch.setattr(
        TorchClassifier,
        "_targets",
        lambda self, y, like: encoded.append(1) or encode(self, y, like),
    )
    tangent = dual._linear_models[0].tangent
    monkeypatch.setattr(type(tangent), "query_batch", lambda *_: 2)
    dual.ridge_path(*queries, ridges=[0.1, 1.0, 10.0])
    assert len(encoded) == 1
    dual.attribute(*queries)
    assert len(encoded) == 2


# -------------------------------------------------------------------- diagnose
def test_diagnose_compares_with_retraining():
    X, y, Xq, yq = iris(60, 30)
    dual = DualInfluence(small_net(), outcome="margin", random_state=0).fit(X, y)
    found = dual.diagnose(Xq, yq, n_retrainings=16)
    assert found.trustworthy
    assert found.lds > 0.6
    assert 0.5 < found.calibration_slope < 2
    assert 0 < found.step_linearity < 0.5
    along = found.step_linearity_along_run
    assert along[-1] == pytest.approx(found.step_linearity, rel=1e-6)
    assert len(set(along)) == 3
    assert 0 < found.leverage < 1
    assert "retrained outcomes rank" in found.verdict


def test_diagnose_without_retraining_does_not_say_trust():
    X, y, Xq, yq = iris()
    dual = DualInfluence(small_net(), random_state=0).fit(X, y)
    found = dual.diagnose(Xq, yq)
    assert found.trustworthy
    assert found.verdict.startswith("Nothing speaks against it, but retrained outcomes")
    assert "StandardScaler" not in found.verdict


def test_diagnose_sees_that_a_feature_is_not_scaled():
    X, y, Xq, yq = iris()
    X, Xq = (rows * np.array([1, 1000, 1, 1]) for rows in (X, Xq))
    dual = DualInfluence(small_net(), random_state=0).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FaithfulnessWarning)
        verdict = dual.diagnose(Xq, yq).verdict
    assert "times the median one" in verdict
    assert "StandardScaler" in verdict


def test_diagnose_of_a_linear_model_finds_no_fault():
    X, y, Xq, yq = diabetes(30)
    net = ridge_net("regression")
    dual = DualInfluence(net, ridge=0.1, metric="identity", random_state=0)
    found = dual.fit(X, y).diagnose(Xq, yq, n_retrainings=8)
    assert found.step_linearity < 1e-8
    assert max(found.step_linearity_along_run) < 1e-8
    assert found.calibration_slope == pytest.approx(1, abs=1e-6)
    assert found.lds == pytest.approx(1)


def test_diagnose_tells_order_from_size():
    X, y, Xq, yq = diabetes(60, 30)
    net = ridge_net("regression")
    # damped five times too much: the order stays, the effects shrink
    dual = DualInfluence(net, ridge=5.0, metric="identity", random_state=0).fit(X, y)
    found = dual.diagnose(Xq, yq, n_retrainings=16)
    assert found.trustworthy
    assert found.calibration_slope > 2
    assert found.verdict.startswith("Trust the order, not the size")


def test_diagnose_sees_that_training_stopped_early():
    X, y, Xq, yq = iris()
    done = DualInfluence(small_net(), random_state=0).fit(X, y)
    # targets of the order of 1000 are out of reach in two epochs
    far = DualInfluence(TorchRegressor(max_epochs=2, random_state=0), random_state=0)
    far.fit(X[:, 1:], 100 * X[:, 0] + 1000)
    with pytest.warns(FaithfulnessWarning, match="far from converged"):
        found = far.diagnose(Xq[:, 1:], 100 * Xq[:, 0] + 1000)
    assert found.stationarity > 0.5
    assert not found.trustworthy
    assert done.diagnose(Xq, yq).stationarity < 0.4


def test_diagnose_does_not_offer_retraining_without_a_record():
    X, y, Xq, yq = iris()
    wrapped = TorchClassifier.from_module(small_net().fit(X, y).module_, [0, 1, 2])
    dual = DualInfluence(FrozenEstimator(wrapped), ridge=0.01, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = dual.fit(X, y).diagnose(Xq, yq)
    assert "n_retrainings" not in found.verdict


def test_diagnose_warns_of_steps_beyond_the_tangent():
    X, y, Xq, yq = iris()
    net = small_net(max_epochs=200, learning_rate=5e-2)
    dual = DualInfluence(net, ridge=1e-7, metric="identity", random_state=0).fit(X, y)
    with pytest.warns(FaithfulnessWarning, match="Do not trust"):
        found = dual.diagnose(Xq, yq)
    assert not found.trustworthy
    assert found.lds is None
    with pytest.raises(ValueError, match="n_retrainings=3 is too few to rank"):
        dual.diagnose(Xq, yq, n_retrainings=3)


def test_gradients_that_no_layer_factors_count_before_the_work():
    """Parameters outside of Linear and Conv2d layers: n·C numbers for each."""

    class Scaled(nn.Module):
        def __init__(self, n_inputs, n_outputs):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(200, n_inputs) / 10)
            self.head = nn.Linear(200, n_outputs)

        def forward(self, x):
            return self.head((x @ self.scale.T).tanh())

    X, y, *_ = iris()
    net = TorchClassifier(Scaled, max_epochs=2, random_state=0)
    size = len(y) * 3
    with sklearn.config_context(working_memory=6 * size**2 * X.itemsize / 2**20):
        plain = small_net().set_params(max_epochs=2)
        assert DualInfluence(plain, solver="dual", random_state=0).fit(X, y)
        with pytest.raises(ValueError, match=r"'dual' needs .* MiB of gradients"):
            DualInfluence(net, solver="dual", random_state=0).fit(X, y)
        assert DualInfluence(net, random_state=0).fit(X, y).solver_ == "cg"


def test_weights_without_each_unit_are_made_when_asked_for():
    units, weights = np.array([1, 0, 1, 2]), np.array([1.0, 2.0, 0.5, 3.0])
    without = LeaveOneUnitOut(units, weights, 3)
    expected = (1 - np.eye(3))[:, units] * weights
    assert len(without) == 3
    assert_array_equal(without[:], expected)
    assert_array_equal(without[1:3], expected[1:])


def test_units_are_left_out_in_batches_that_fit(monkeypatch):
    X, y, *queries = iris()
    sizes = []
    inner = LinearizedModel.newton_steps

    def recording(self, weights):
        sizes.append(len(weights))
        return inner(self, weights)

    monkeypatch.setattr(LinearizedModel, "newton_steps", recording)
    dual = DualInfluence(small_net(), random_state=0)
    expected = dual.fit(X, y).attribute(*queries)
    assert sizes == [len(y)]
    sizes.clear()
    monkeypatch.setattr(LinearizedModel, "batch_size", lambda self: 7)
    found = dual.fit(X, y).attribute(*queries)
    assert max(sizes) == 7
    assert sum(sizes) == len(y)
    assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_float32_with_little_damping_in_rows():
    """Rows that a trained net fits: differences of large numbers keep two digits."""
    X, y = load_digits(return_X_y=True)
    X, y = (X[:120] / 16).astype(np.float32), y[:120]
    net = TorchClassifier(hidden_layer_sizes=(16,), random_state=0).fit(X, y)
    double = copy.deepcopy(net)
    double.module_.double()
    options = {"ridge": 1e-4, "metric": "identity"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FaithfulnessWarning)
        ours, exact = (
            LinearModel(
                as_model(network),
                X.astype(dtype),
                y,
                np.ones(120),
                **options,
                solver=space,
            )
            for network, dtype, space in [
                (net, np.float32, "dual"),
                (double, np.float64, "primal"),
            ]
        )
    without = LeaveOneUnitOut(np.arange(120), np.ones(120), 20)
    found, expected = (
        linear.tangent.parameter_change(linear.steps(without)).double()
        for linear in (ours, exact)
    )
    error = (found - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.max() <= 1e-4


# ----------------------------------------------------------------------- the head
def frozen_body(net):
    """Return the network of which only the head may move, frozen."""
    module = copy.deepcopy(net.module_)
    for parameter in module[:-1].parameters():
        parameter.requires_grad_(False)
    return FrozenEstimator(TorchClassifier.from_module(module, net.classes_))


@pytest.mark.parametrize("removal", ["newton", "influence", "refit"])
def test_the_head_alone_is_a_network_with_a_frozen_body(removal):
    X, y, *_ = iris()
    net = small_net().fit(X, y)
    options = {"ridge": 0.05, "metric": "identity", "removal": removal}
    head = DualInfluence(
        FrozenEstimator(net), parameters="head", random_state=0, **options
    ).fit(X, y)
    body = DualInfluence(frozen_body(net), random_state=0, **options).fit(X, y)
    assert_allclose(head.attribute(X[:4], y[:4]), body.attribute(X[:4], y[:4]))
    W = make_weightings(40, 3, random_state=0)
    expected = body.predict_outcomes(X[:4], y[:4], W)
    assert_allclose(head.predict_outcomes(X[:4], y[:4], W), expected)
    # the body stands still
    change = head.parameter_change(W)
    n_head = 3 * 6 + 3
    assert change.shape == (3, sum(p.numel() for p in net.module_.parameters()))
    assert not change[:, :-n_head].any()
    assert_allclose(change[:, -n_head:], body.parameter_change(W))
    assert change[:, -n_head:].all()


def test_the_heads_damping_comes_from_its_own_moments():
    X, y, *_ = iris()
    net = small_net().fit(X, y)
    head = DualInfluence(FrozenEstimator(net), parameters="head", random_state=0)
    head.fit(X, y)
    scale = net.trajectory_.denominator[-21:].mean()
    # 1.5 for single rows, and 4 for the share removed, over the learning rates' sum
    expected = (1.5 + 4 / 40) * float(scale) / (30 * 1e-2)
    assert head.ridge_ == pytest.approx(expected, rel=1e-2)
    everything = DualInfluence(FrozenEstimator(net), random_state=0).fit(X, y)
    assert head.ridge_ != pytest.approx(everything.ridge_, rel=0.1)


def test_kernels_of_head_and_whole_are_remembered_apart(tmp_path):
    X, y, *_ = iris()
    net = FrozenEstimator(small_net(max_epochs=5).fit(X, y))
    found = []
    for memory in (None, tmp_path):
        for parameters in ("all", "head"):
            model = DualInfluence(
                net,
                parameters=parameters,
                metric="identity",
                solver="dual",
                memory=memory,
                random_state=0,
            )
            found.append(model.fit(X, y).attribute(X[:2], y[:2]))
    assert_allclose(found[2:], found[:2])
    assert np.abs(found[0] - found[1]).max() > 1e-6


class Softmaxed(nn.Module):
    """No head: something comes after the last linear layer."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.layer = nn.Linear(n_in, n_out)

    def forward(self, x):
        return self.layer(x).softmax(-1)


@pytest.mark.filterwarnings("ignore:module returns probabilities")
def test_a_module_without_a_head_is_refused_before_training(trainings):
    X, y, *_ = iris()
    model = DualInfluence(TorchClassifier(Softmaxed), parameters="head", random_state=0)
    with pytest.raises(ValueError, match=r"not that of an nn\.Linear"):
        model.fit(X, y)
    assert not hasattr(model, "estimator_")
    net = small_net(max_epochs=5).fit(X, y)
    module = copy.deepcopy(net.module_)
    for parameter in module[-1].parameters():
        parameter.requires_grad_(False)
    frozen = FrozenEstimator(TorchClassifier.from_module(module, net.classes_))
    with pytest.raises(ValueError, match=r"'head' .* Use parameters='all'"):
        model.set_params(estimator=frozen).fit(X, y)


# --------------------------------------------------------------- solving for queries
@pytest.mark.parametrize("problem", [iris, diabetes])
@pytest.mark.parametrize("tasks", [False, True])
@pytest.mark.parametrize("solver", ["primal", "cg"])
def test_first_order_by_queries_is_that_by_units(problem, tasks, solver, monkeypatch):
    X, y, Xq, yq = problem(n=100)
    kind = TorchClassifier if problem is iris else TorchRegressor
    net = kind(hidden_layer_sizes=(4,), max_epochs=20, random_state=0)
    options = {"removal": "influence", "ridge": 0.1, "random_state": 0}
    units = np.arange(100) // 2 if tasks else None
    dense = DualInfluence(net, solver="dual", **options).fit(X, y, tasks=units)
    ours = DualInfluence(net, solver=solver, **options)
    monkeypatch.setattr(skattrib.engine._plan, "_MANY_UNITS", 10)
    ours.fit(X, y, tasks=units)
    assert not torch.is_tensor(ours._without_each[0])
    expected = dense.attribute(Xq, yq)
    assert_allclose(ours.attribute(Xq, yq), expected, atol=1e-7 * abs(expected).max())
    W = make_weightings(dense.n_units_, 3, random_state=0)
    assert_allclose(
        ours.predict_outcomes(Xq, yq, W), dense.predict_outcomes(Xq, yq, W), rtol=1e-6
    )
    path = ours.ridge_path(Xq, yq, ridges=[0.1, 1.0])
    assert_allclose(path, dense.ridge_path(Xq, yq, ridges=[0.1, 1.0]), atol=1e-7)
    assert ours.diagnose(Xq, yq).step_linearity == pytest.approx(
        dense.diagnose(Xq, yq).step_linearity, rel=1e-5
    )
    # few units are solved for once and for all
    monkeypatch.setattr(skattrib.engine._plan, "_MANY_UNITS", 100)
    assert torch.is_tensor(ours.fit(X, y, tasks=units)._without_each[0])


@pytest.mark.parametrize("problem", [iris, diabetes])
def test_newton_steps_by_queries_are_those_by_units(problem, monkeypatch):
    X, y, Xq, yq = problem(n=100)
    kind = TorchClassifier if problem is iris else TorchRegressor
    net = kind(hidden_layer_sizes=(4,), max_epochs=20, random_state=0)
    ours = DualInfluence(net, solver="primal", ridge=0.1, random_state=0)
    by_units = clone(ours).fit(X, y)  # of which there may be more than queries
    monkeypatch.setattr(skattrib.engine._plan, "_MANY_UNITS", 10)
    ours.fit(X, y)
    monkeypatch.setattr(skattrib.engine._plan, "_MANY_UNITS", 1000)
    by_units.fit(X, y)
    assert torch.is_tensor(by_units._without_each[0])
    assert not torch.is_tensor(ours._without_each[0])
    expected = by_units.attribute(Xq, yq)
    assert_allclose(ours.attribute(Xq, yq), expected, atol=1e-7 * abs(expected).max())
    paths = [dual.ridge_path(Xq, yq, ridges=[0.1, 1.0]) for dual in (ours, by_units)]
    assert_allclose(*paths, atol=1e-7)
    assert ours.diagnose(Xq, yq).step_linearity == pytest.approx(
        by_units.diagnose(Xq, yq).step_linearity, rel=1e-5
    )
    again = pickle.loads(pickle.dumps(ours))
    assert_array_equal(again.attribute(Xq, yq), ours.attribute(Xq, yq))
    for outcome in ("auto", lambda outputs, y: outputs[..., 0]):
        own = [
            dual.set_params(outcome=outcome).self_attribution()
            for dual in (ours, by_units)
        ]
        assert_allclose(*own, atol=1e-7 * abs(own[1]).max())


# ----------------------------------------------------------------- removal="auto"
@pytest.mark.parametrize("removal", ["newton", "influence"])
def test_auto_is_what_is_affordable(removal, monkeypatch):
    X, y, *queries = iris(n=100)
    net = small_net(max_epochs=20)
    if removal == "influence":
        monkeypatch.setattr(skattrib.engine._plan, "_AFFORDABLE", 0.0)
        monkeypatch.setattr(skattrib.engine._plan, "_TRAININGS", 0.0)
    auto = DualInfluence(net, n_models=2, random_state=0).fit(X, y)
    assert auto.removal_ == {"attribute": removal, "predict_outcomes": removal}
    why = auto._linear_models[0].plan.removal_reason
    assert ("affordable" in why) == (removal == "newton")
    explicit = clone(auto).set_params(removal=removal).fit(X, y)
    assert auto.estimand_ == explicit.estimand_
    assert_array_equal(auto.attribute(*queries), explicit.attribute(*queries))
    weights = make_weightings(100, 3, random_state=0)
    found = auto.predict_outcomes(*queries, weights)
    assert_array_equal(found, explicit.predict_outcomes(*queries, weights))
    if removal == "influence":  # first order: outcomes are attributions, added up
        present = auto.predict_outcomes(*queries, np.ones((1, 100)))
        additive = present - (1 - weights) @ auto.attribute(*queries).T
        assert_allclose(found, additive, rtol=1e-5)


@pytest.mark.parametrize("solver", ["dual", "primal", "auto"])
def test_what_does_not_fit_is_refused_before_training(solver, monkeypatch):
    X, y, *_ = digits(400)
    net = TorchClassifier(hidden_layer_sizes=(400,), random_state=0)
    monkeypatch.setattr(skattrib.engine._plan, "_NEVER_REFUSED", 0.0)
    monkeypatch.setattr(TorchClassifier, "fit", lambda *args: pytest.fail("trained"))
    dual = DualInfluence(net, solver=solver, random_state=0)
    with (
        config_context(working_memory=1),
        pytest.raises(ValueError, match=r"needs .* MiB .*AdamWInfluence"),
    ):
        dual.fit(X, y)
    assert not hasattr(dual, "estimator_")
