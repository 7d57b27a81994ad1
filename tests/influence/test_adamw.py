"""AdamWInfluence: derivatives of real training runs, checked by training."""

import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pytest
import sklearn
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_digits, load_iris
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import scale
from sklearn.utils import Bunch
from torch import nn

import skattrib.influence._prior_means
import skattrib.influence._run_derivatives
import skattrib.models._answers
import skattrib.models._network
from skattrib import AdamWInfluence, TorchClassifier, TorchRegressor
from skattrib.engine._tangent import tangents
from skattrib.evaluation import (
    SetOutcome,
    lds_score,
    loo_score,
    make_weightings,
    retrain_outcomes,
)
from skattrib.exceptions import FaithfulnessWarning, TrajectoryError
from skattrib.influence._aggregation import AGGREGATIONS, aggregate, exploding
from skattrib.influence._run_derivatives import RunDerivatives
from skattrib.influence._run_diagnosis import _median_ratio, run_verdict
from skattrib.models._answers import LastAnswer


def data(n=40, n_queries=6):
    X, y = load_iris(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(y))
    X, y = scale(X)[order], y[order]
    return X[:n], y[:n], X[-n_queries:], y[-n_queries:]


def net(**options):
    options = {"hidden_layer_sizes": (5,), "max_epochs": 6, "batch_size": 13, **options}
    return TorchClassifier(random_state=0, **options)


def each_run(influence, X, y, outcome):
    """The attributions of every run, before they are averaged."""
    return influence._each_run(influence._derivatives.queries(X, y, outcome))[0]


def make(estimator=None, **options):
    defaults = {"inclusion": 1.0, "n_retrainings": 8, "random_state": 0, "n_halves": 0}
    options = {**defaults, **options}
    return AdamWInfluence(net() if estimator is None else estimator, **options)


def outcome_of(model, X, y, weights, Xq, yq, **options):
    return retrain_outcomes(model, X, y, weights[None], Xq, yq, **options)[0]


# ------------------------------------------------------------------ identities
@pytest.mark.parametrize(
    "model",
    [
        net(),
        net(optimizer="adam", weight_decay=0.1, clip_norm=0.3),
        net(optimizer="sgd", momentum=0.8, nesterov=True, schedule="cosine"),
        net(batch_size=None),
    ],
    ids=["adamw", "adam clipped", "nesterov cosine", "full batch"],
)
@pytest.mark.parametrize("outcome", ["log_likelihood", "margin"])
def test_attributions_are_derivatives_of_retraining(model, outcome):
    X, y, Xq, yq = data()
    influence = make(model, outcome=outcome).fit(X, y)
    found, h = influence.attribute(Xq, yq), 1e-5
    for i in (0, 7, 23):
        ends = []
        for sign in (1, -1):
            weights = np.ones(40)
            weights[i] += sign * h
            ends.append(outcome_of(model, X, y, weights, Xq, yq, outcome=outcome))
        slope = (ends[0] - ends[1]) / (2 * h)
        assert_allclose(found[:, i], slope, rtol=1e-4, atol=1e-7)


def test_regression():
    X, _, Xq, _ = data()
    model = TorchRegressor(
        hidden_layer_sizes=(4,), max_epochs=5, batch_size=10, random_state=0
    )
    influence = make(model).fit(X[:, :2], X[:, 2:])
    found, h = influence.attribute(Xq[:, :2], Xq[:, 2:]), 1e-5
    weights = np.ones((2, 40))
    weights[:, 3] += [h, -h]
    ends = retrain_outcomes(model, X[:, :2], X[:, 2:], weights, Xq[:, :2], Xq[:, 2:])
    assert_allclose(found[:, 3], (ends[0] - ends[1]) / (2 * h), rtol=1e-4, atol=1e-7)


def test_tasks_and_sample_weights_add_up():
    X, y, Xq, yq = data()
    weights = np.random.RandomState(0).uniform(0.5, 2, 40)
    weights[4] = 0
    tasks = np.arange(40) % 4
    rows = make().fit(X, y, sample_weight=weights).attribute(Xq, yq)
    units = make().fit(X, y, tasks=tasks, sample_weight=weights).attribute(Xq, yq)
    assert_array_equal(rows[:, 4], 0)
    for t in range(4):
        assert_allclose(units[:, t], rows[:, tasks == t].sum(axis=1), atol=1e-12)
    # the scale of all weights together does nothing
    assert np.abs(rows.sum(axis=1)).max() < 1e-10


def test_runs_on_halves_are_differentiated_where_they_were_trained():
    X, y, Xq, yq = data()
    influence = make(inclusion=0.5, n_trajectories=8, aggregation="mean").fit(X, y)
    W = influence.weights_
    assert set(np.unique(W)) == {0.05, 1.0}
    assert_allclose(W[0] + W[1], 1.05)
    each = each_run(influence, Xq, yq, "log_likelihood")
    h, i = 1e-5, 9
    for k in range(4):
        weights = np.repeat(W[k : k + 1], 2, axis=0)
        weights[:, i] += [h, -h]
        ends = retrain_outcomes(net(), X, y, weights, Xq, yq)
        slope = (ends[0] - ends[1]) / (2 * h)
        assert_allclose(each[k, :, i], slope, rtol=1e-3, atol=1e-6)
    found, std = influence.attribute(Xq, yq, return_std=True)
    assert_allclose(found, each.mean(axis=0), atol=1e-12)
    assert_allclose(std, each.std(axis=0, ddof=1) / 8**0.5, atol=1e-12)


def test_predicted_outcomes():
    X, y, Xq, yq = data()
    own = make().fit(X, y)
    log_p = np.log(own.estimator_.predict_proba(Xq)[np.arange(6), yq])
    weights = np.ones((2, 40))
    weights[1, 3] = 0
    found = own.predict_outcomes(Xq, yq, weights)
    assert_allclose(found[0], log_p, atol=1e-10)
    assert_allclose(found[0] - found[1], own.attribute(Xq, yq)[:, 3], atol=1e-10)
    halves = make(inclusion=0.5, n_trajectories=4).fit(X, y)
    middle = halves.weights_.mean(axis=0, keepdims=True)
    real = retrain_outcomes(net(), X, y, halves.weights_, Xq, yq).mean(axis=0)
    assert_allclose(halves.predict_outcomes(Xq, yq, middle)[0], real, atol=1e-8)


def test_steps_add_up_to_the_run():
    X, y, Xq, yq = data()
    weights = np.random.RandomState(0).uniform(0.5, 2, 40)
    influence = make().fit(X, y, sample_weight=weights)
    found = influence.step_attribution(Xq, yq)
    assert found.attributions.shape == (6, 6 * 40)
    assert found.steps.max() == 6 * 4  # batches of 13, 13, 13 and 1
    total = np.zeros((6, 40))
    np.add.at(total.T, found.rows, found.attributions.T)
    assert_allclose(total, influence.attribute(Xq, yq), atol=1e-10)
    for step in (1, 24):
        rows = found.rows[found.steps == step]
        batch = influence.estimator_.trajectory_.recipe.batches[step - 1]
        assert_array_equal(rows, batch)
    with sklearn.config_context(working_memory=0.001):
        with pytest.raises(ValueError, match="Ask fewer queries"):
            influence.step_attribution(Xq, yq)


def test_queries_in_pieces_are_the_same():
    X, y, Xq, yq = data()
    influence = make(inclusion=0.5, n_trajectories=4).fit(X, y)
    whole, steps = influence.attribute(Xq, yq), influence.step_attribution(Xq, yq)
    with sklearn.config_context(working_memory=0.05):
        assert_allclose(influence.attribute(Xq, yq), whole, atol=1e-10)
        again = influence.step_attribution(Xq, yq)
    assert_allclose(again.attributions, steps.attributions, atol=1e-10)


@pytest.mark.parametrize("inclusion", [0.5, 1])
def test_workers_share_runs_or_queries(inclusion, monkeypatch):
    X, y, *queries = data()
    options = {"n_models": 3 if inclusion == 1 else 1, "inclusion": inclusion}
    parts = []
    derivatives = RunDerivatives.derivatives

    def noted(self, runs, queries, **options):
        parts.append((len(runs.params), len(queries.X)))
        return derivatives(self, runs, queries, **options)

    alone = make(net(), n_trajectories=4, **options).fit(X, y)
    expected = alone.attribute(*queries, return_std=True)
    with joblib.parallel_config("threading"):
        shared = make(net(), n_trajectories=4, n_jobs=2, **options).fit(X, y)
        monkeypatch.setattr(RunDerivatives, "derivatives", noted)
        found = shared.attribute(*queries, return_std=True)
    # one run is shared out by queries, others by runs
    assert sorted(parts) == sorted([(1, 3)] * 6 if inclusion == 1 else [(2, 6)] * 2)
    for ours, theirs in zip(found, expected, strict=True):
        assert_allclose(ours, theirs, rtol=1e-7, atol=1e-10)


def test_workers_do_not_share_queries_that_have_one_outcome():
    X, y, *queries = data()
    options = {"outcome": SetOutcome(lowest), "inclusion": 1}
    expected = [
        make().fit(X, y).attribute(*queries, reduce="mean"),
        make(**options).fit(X, y).attribute(*queries),
    ]
    with joblib.parallel_config("threading"):
        found = [
            make(n_jobs=2).fit(X, y).attribute(*queries, reduce="mean"),
            make(n_jobs=2, **options).fit(X, y).attribute(*queries),
        ]
    for ours, theirs in zip(found, expected, strict=True):
        assert_allclose(ours, theirs, rtol=1e-7, atol=1e-10)


def lowest(outputs, targets):
    return outputs.gather(-1, targets[..., None])[..., 0].amin(-1)


@pytest.mark.parametrize(
    "changed",
    [{"dynamics": "sgd"}, {"hessian": "empirical_fisher"}, {"aggregation": "mean"}],
    ids=lambda changed: next(iter(changed)),
)
def test_a_remembered_sweep_is_not_that_of_other_parameters(changed):
    X, y, *queries = data()
    options = {"inclusion": 0.5, "n_trajectories": 4}
    influence = make(**options).fit(X, y)
    before = influence.attribute(*queries)
    found = influence.set_params(**changed).attribute(*queries)
    assert_allclose(found, make(**options, **changed).fit(X, y).attribute(*queries))
    assert np.abs(found - before).max() > 1e-6


def test_several_seeds_are_averaged():
    X, y, Xq, yq = data()
    one = make(inclusion=0.5, n_trajectories=4, aggregation="mean").fit(X, y)
    three = make(inclusion=0.5, n_trajectories=4, aggregation="mean", n_models=3)
    three.fit(X, y)
    assert len(each_run(three, Xq, yq, "margin")) == 12
    assert_allclose(
        each_run(three, Xq, yq, "margin")[:4], each_run(one, Xq, yq, "margin")
    )
    W = three.weights_
    truth = retrain_outcomes(net(), X, y, W, Xq, yq, n_seeds=3)
    queries = three._derivatives.queries(Xq, yq, "log_likelihood")
    assert_allclose(three._run_outcomes(queries).mean(axis=0), truth)
    single = make(n_models=2).fit(X, y)
    assert len(each_run(single, Xq, yq, "margin")) == 2


def test_baselines_are_other_numbers_from_the_same_run():
    X, y, Xq, yq = data()
    exact = make().fit(X, y).attribute(Xq, yq)
    for options in ({"dynamics": "sgd"}, {"hessian": "empirical_fisher"}):
        other = make(**options).fit(X, y).attribute(Xq, yq)
        assert np.abs(other - exact).max() > 1e-4
    plain = net(optimizer="sgd", weight_decay=0.0, learning_rate=0.1)
    both = [
        make(plain, dynamics=d).fit(X, y).attribute(Xq, yq) for d in ("recorded", "sgd")
    ]
    assert_allclose(*both, atol=1e-12)


# ----------------------------------------------------------- against retraining
@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(y))
    X, y = X[order] / 16, y[order]
    return X[:120], y[:120], X[-15:], y[-15:]


def test_leave_one_out_of_a_smooth_net(digits):
    X, y, Xq, yq = digits
    model = TorchClassifier(
        hidden_layer_sizes=(16,),
        batch_size=30,
        max_epochs=8,
        learning_rate=1e-3,
        random_state=0,
    )
    truth = retrain_outcomes(
        model, X, y, 1 - np.eye(120)[:40], Xq, yq, outcome="margin"
    )
    scores = {}
    for dynamics in ("recorded", "sgd"):
        influence = make(model, dynamics=dynamics, outcome="margin").fit(X, y)
        scores[dynamics] = loo_score(truth, influence.attribute(Xq, yq)[:, :40])
    assert scores["recorded"] > 0.95
    assert scores["recorded"] > scores["sgd"] + 0.05


def test_halves_rank_retrained_subsets(digits):
    X, y, Xq, yq = digits
    model = TorchClassifier(
        hidden_layer_sizes=(8,), activation="relu", batch_size=30, max_epochs=10
    )
    model.set_params(random_state=0)
    W = make_weightings(120, 40, random_state=1)
    truth = retrain_outcomes(model, X, y, W, Xq, yq, outcome="margin")
    halves = {"inclusion": "auto", "n_halves": "auto"}
    influence = make(model, outcome="margin", **halves).fit(X, y)
    assert influence.inclusion_ == 0.5
    assert len(influence.weights_) == 16
    attributions = influence.attribute(Xq, yq)
    assert lds_score(truth, W @ attributions.T) > 0.9
    predicted = influence.predict_outcomes(Xq, yq, W)
    assert lds_score(truth, predicted) == pytest.approx(
        lds_score(truth, W @ attributions.T), abs=1e-6
    )
    found = influence.diagnose(Xq, yq, n_retrainings=16)
    assert found.trustworthy
    assert found.lds > 0.8


# ------------------------------------------------------------------- diagnosis
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_errors_of_removals_are_told_apart(activation):
    X, y, Xq, yq = data()
    options = {"batch_size": None, "max_epochs": 30, "learning_rate": 1e-3}
    blank = net(activation=activation, **options)
    found = make(blank).fit(X, y).diagnose(Xq, yq)
    # by hand, for the same sixteen rows
    rows = np.linspace(0, 39, 16).astype(int)
    weights = np.vstack([np.ones(40), 1 - np.eye(40)[rows]])
    _, trained = blank._stack(X, blank._learn_target(y), weights, random_state=0)
    ends = trained.params
    change = (ends[1:] - ends[0]).numpy()
    h = 1e-4
    moved = [1 + s * h * np.eye(40)[rows] for s in (1, -1)]
    up, down = (blank._stack(X, y, w, random_state=0)[1].params.numpy() for w in moved)
    first = (up - down) / (2 * h)
    second = (up - 2 * ends[:1].numpy() + down) / h**2

    def share(part, whole):
        return np.median(np.linalg.norm(part, axis=1) / np.linalg.norm(whole, axis=1))

    def near(value):
        return pytest.approx(value, rel=0.1)

    split = found.error_split
    assert found.second_order_error == near(share(second / 2, first))
    assert split.first_order == near(share(second / 2, change))
    assert split.exact == near(share(change + first, change))
    assert split.remainder == near(share(change + first - second / 2, change))
    assert split.remainder < split.exact < split.sgd
    assert split.optimizer_mismatch > 0.5


def without_each(model, X, y, rows):
    """Trained parameters (r, P) without each row, by `fit`, and of all rows first."""
    weights = np.vstack([np.ones(len(X)), 1 - np.eye(len(X))[rows]])
    ends = []
    for w in weights:
        module = sklearn.base.clone(model).fit(X, y, sample_weight=w).module_
        ends.append(nn.utils.parameters_to_vector(module.parameters()))
    return torch.stack(ends).detach()


def test_kinks_are_seen_by_retraining_alone():
    X, y, Xq, yq = data(120)
    rows = np.linspace(0, 119, 16).astype(int)
    shares = {}
    for activation in ("tanh", "relu"):
        options = {"learning_rate": 0.01, "max_epochs": 10, "batch_size": 30}
        model = net(hidden_layer_sizes=(16,), activation=activation, **options)
        influence = make(model).fit(X, y)
        found = influence.diagnose(Xq, yq)
        ends = without_each(model, X, y, rows)
        change = ends[1:] - ends[0]
        # the straight line, of which diagnose has the errors only
        problem = influence._derivatives.problem
        directions = torch.eye(120, dtype=ends.dtype)[rows]
        run = problem.model, problem.loss, problem.recipe, problem.X, problem.targets
        (first,) = tangents(
            *run, torch.ones(120).to(ends), directions, order=1, memory_bytes=2**28
        )
        missed = (change + first).norm(dim=1) / change.norm(dim=1)
        split = found.error_split
        assert split.exact == pytest.approx(np.median(missed.numpy()), rel=0.01)
        shares[activation] = split.first_order / split.exact
    # what the second derivative foretells of it
    assert shares["relu"] < 0.3 < 0.5 < shares["tanh"] < 1.1


def test_errors_of_removals_are_of_weights_and_not_of_running_statistics():
    X, y, Xq, yq = data()
    rows = np.linspace(0, 39, 16).astype(int)

    def normalised(n_inputs, n_outputs):
        return nn.Sequential(
            nn.Linear(n_inputs, 8, bias=False),
            nn.BatchNorm1d(8),
            nn.Tanh(),
            nn.Linear(8, 3),
        )

    model = net(module=normalised, learning_rate=1e-3, batch_size=20)
    influence = make(model).fit(X, y)
    split = influence.diagnose(Xq, yq).error_split
    ends = without_each(model, X, y, rows)
    change = ends[1:] - ends[0]
    problem = influence._derivatives.problem
    run = problem.model, problem.loss, problem.recipe, problem.X, problem.targets
    directions = torch.eye(40, dtype=ends.dtype)[rows]
    (first,) = tangents(
        *run, torch.ones(40).to(ends), directions, order=1, memory_bytes=2**28
    )
    first = first[:, : ends.shape[1]]
    missed = (change + first).norm(dim=1) / change.norm(dim=1)
    assert split.exact == pytest.approx(np.median(missed.numpy()), rel=0.01)


def test_units_without_weight_say_nothing_of_removals():
    X, y, Xq, yq = data()
    weights = np.ones(40)
    weights[10:] = 0
    influence = make(net()).fit(X, y, sample_weight=weights)
    few = make(net()).fit(X[:10], y[:10])
    assert _median_ratio(torch.zeros(2, 3), torch.zeros(2, 3)) == 0
    part = torch.tensor([[1.0], [0.0], [0.0]])
    assert _median_ratio(part, 2 * part) == 0.5
    found, alone = (one.diagnose(Xq, yq).error_split for one in (influence, few))
    assert found.exact > 0
    assert alone.exact > 0


def test_a_verdict_says_that_removals_were_not_followed():
    found = told(second_order_error=None, error_split=None)
    assert "could not be followed" in run_verdict(found, at_full_data=True).verdict
    assert "followed" not in run_verdict(found, at_full_data=False).verdict


def test_a_verdict_says_that_sizes_are_wrong():
    split = Bunch(exact=0.8)
    found = told(second_order_error=0.1, error_split=split)
    verdict = run_verdict(found, at_full_data=True).verdict
    assert "the weights end 80% off the prediction, so that sizes are wrong" in verdict
    assert verdict.startswith("Nothing speaks against the order, but against sizes")
    split.exact = 0.1
    verdict = run_verdict(found, at_full_data=True).verdict
    assert "the weights end 10% off the prediction." in verdict


def test_sgd_has_no_optimizer_mismatch():
    X, y, Xq, yq = data()
    plain = net(optimizer="sgd", weight_decay=0.0, learning_rate=0.1)
    assert make(plain).fit(X, y).diagnose(Xq, yq).optimizer_mismatch < 1e-12


def test_removals_that_bend_are_not_trusted():
    X, y, Xq, yq = data()
    wild = net(learning_rate=0.3, max_epochs=20)
    with pytest.warns(FaithfulnessWarning, match="bend away from the straight line"):
        found = make(wild).fit(X, y).diagnose(Xq, yq)
    assert not found.trustworthy


def test_overflow_is_no_reason_to_trust():
    huge = torch.full((4, 3), torch.inf)
    assert _median_ratio(huge, huge) == np.inf
    found = Bunch(
        exploding_share=0.0,
        calibration_slope=None,
        lds=None,
        coverage=None,
        prior_slope=None,
        second_order_error=np.inf,
        optimizer_mismatch=1.0,
        error_split=None,
    )
    with pytest.warns(FaithfulnessWarning, match="bend away"):
        assert not run_verdict(found, at_full_data=True).trustworthy


def told(**figures):
    """What a diagnosis of runs on halves has."""
    nothing = dict.fromkeys(["calibration_slope", "lds", "coverage", "prior_slope"])
    rest = dict.fromkeys(["second_order_error", "optimizer_mismatch", "error_split"])
    return Bunch(**{"exploding_share": 0.0, **nothing, **rest, **figures})


def test_runs_that_halves_contradict_are_not_trusted():
    found = told(calibration_slope=1.0, lds=0.6, coverage=0.95, prior_slope=-0.2)
    with pytest.warns(FaithfulnessWarning, match="halves move against the attrib"):
        assert not run_verdict(found, at_full_data=False).trustworthy
    found = told(calibration_slope=1.0, lds=0.6, coverage=0.7, prior_slope=0.9)
    with pytest.warns(FaithfulnessWarning, match="95 % intervals have 70% of what"):
        assert not run_verdict(found, at_full_data=False).trustworthy
    found.coverage = 0.94
    verdict = run_verdict(found, at_full_data=False)
    assert verdict.trustworthy
    assert "95 % intervals have 94% of what halves held out show" in verdict.verdict
    found.calibration_slope = 0.3
    verdict = run_verdict(found, at_full_data=False).verdict
    assert verdict.startswith("Trust the order, not the size")


def test_without_retraining_nothing_is_vouched_for():
    verdict = run_verdict(told(), at_full_data=False).verdict
    assert verdict.startswith(
        "Nothing speaks against it, but retrained outcomes are unknown"
    )


def test_steps_far_too_long_are_not_trusted():
    X, y, Xq, yq = data()
    wild = net(learning_rate=1e6, max_epochs=5, batch_size=None)
    halves = {"inclusion": 0.5, "n_halves": 64}
    influence = make(wild, n_trajectories=2, **halves).fit(X, y)
    with pytest.warns(FaithfulnessWarning, match="Do not trust"):
        assert not influence.diagnose(Xq, yq).trustworthy


@pytest.mark.parametrize("n_tasks", [2, 3, 4])
def test_few_units_have_few_runs(n_tasks):
    X, y, Xq, yq = data()
    tasks = np.arange(40) % n_tasks
    influence = make(inclusion=0.5, n_trajectories=16).fit(X, y, tasks=tasks)
    assert len(influence.weights_) == {2: 2, 3: 6, 4: 6}[n_tasks]
    assert influence.attribute(Xq, yq).shape == (6, n_tasks)
    other = make(inclusion=0.75, n_trajectories=16).fit(X, y, tasks=tasks)
    assert len(other.weights_) == {2: 3, 3: 7, 4: 15}[n_tasks]


class Twice(torch.autograd.Function):
    """A layer whose forward-mode derivative torch does not have."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class NoForwardMode(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return Twice.apply(self.layer(x))


class Plain(NoForwardMode):
    def forward(self, x):
        return 2 * self.layer(x)


@pytest.mark.slow
def test_modules_without_forward_mode_have_a_second_order():
    X, y, Xq, yq = data()
    found, expected = (
        make(net(module=lambda *_, kind=kind: kind())).fit(X, y).diagnose(Xq, yq)
        for kind in (NoForwardMode, Plain)
    )
    assert found.second_order_error == pytest.approx(expected.second_order_error)
    assert found.trustworthy


# --------------------------------------------------------------- aggregation
def test_exploding_runs_are_left_out():
    rng = np.random.RandomState(0)
    found = 1 + 0.1 * rng.randn(16, 3, 5)
    found[[2, 9]] *= 1e3
    share = exploding(found).mean(axis=0)
    assert_allclose(share, 2 / 16)
    for how in ("trimmed_mean", "median"):
        mean, error = aggregate(found, how, exploding(found))
        assert_allclose(mean, 1, atol=0.15)
        assert (error > 0).all()
        assert (error < 0.5).all()
    mean, _ = aggregate(found, "mean", exploding(found))
    assert np.abs(mean - 1).max() > 50
    found[3:7, 1] *= 1e3  # more than a quarter, in one query
    mean, _ = aggregate(found, "trimmed_mean", exploding(found))
    assert_allclose(mean, 1, atol=0.2)
    single, error = aggregate(found[:1], "mean", exploding(found[:1]))
    assert_array_equal(single, found[0])
    assert error is None


def test_averages_of_exploding_runs_warn(monkeypatch):
    X, y, Xq, yq = data()
    influence = make(inclusion=0.5, n_trajectories=8).fit(X, y)
    runs = each_run(influence, Xq, yq, "margin")
    for n_wild, warns in ((1, False), (3, True)):
        influence._last_sweep = LastAnswer()
        found = runs.copy()
        found[:n_wild] *= 1e4
        monkeypatch.setattr(influence, "_each_run", lambda *_, found=found: found[None])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            influence.attribute(Xq, yq)
        said = [str(w.message) for w in caught if w.category is FaithfulnessWarning]
        assert any("38% of the runs" in text for text in said) == warns
        assert all(w.filename == __file__ for w in caught)


def test_standard_errors_are_those_of_the_average():
    rng = np.random.RandomState(0)
    draws = rng.randn(400, 16, 1, 1)
    for how in AGGREGATIONS:
        found = [aggregate(runs, how, exploding(runs)) for runs in draws]
        real = np.std([mean for mean, _ in found])
        assert np.mean([error for _, error in found]) == pytest.approx(real, rel=0.25)


# ------------------------------------------------------------- frozen, pickles
def test_frozen_estimators_are_one_run():
    X, y, Xq, yq = data()
    expected = make().fit(X, y).attribute(Xq, yq)
    fitted = net().fit(X, y)
    frozen = AdamWInfluence(FrozenEstimator(fitted), random_state=0)
    found = frozen.fit(X, y)
    assert found.inclusion_ == 1
    assert_allclose(found.attribute(Xq, yq), expected, atol=1e-12)
    with pytest.warns(FaithfulnessWarning, match="misses its weights"):
        frozen.fit(X, (y + 1) % 3)
    with pytest.raises(ValueError, match=r"inclusion=0\.5 needs an estimator"):
        make(FrozenEstimator(fitted), inclusion=0.5).fit(X, y)
    with pytest.raises(ValueError, match="n_models=2 needs an estimator"):
        make(FrozenEstimator(fitted), n_models=2).fit(X, y)
    bare = TorchClassifier.from_module(fitted.module_, [0, 1, 2])
    with pytest.raises(TrajectoryError, match="was not recorded"):
        make(FrozenEstimator(bare)).fit(X, y)


def test_a_killed_fit_goes_on(tmp_path, monkeypatch):
    X, y, Xq, yq = data()
    options = {"inclusion": 0.5, "n_trajectories": 4, "n_models": 3}
    whole = make(**options).fit(X, y).attribute(Xq, yq)
    trained, real = [], skattrib.models._network.train_stack

    def killed(*args, **kwargs):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(skattrib.models._network, "train_stack", killed)
    influence = make(memory=str(tmp_path), **options)
    with pytest.raises(KeyboardInterrupt):
        influence.fit(X, y)
    assert not hasattr(influence, "estimator_")
    trained.append(1)  # past the kill; one seed is left to be trained
    found = influence.fit(X, y).attribute(Xq, yq)
    assert len(trained) == 4
    assert_allclose(found, whole, atol=1e-12)
    influence.set_params(aggregation="median").fit(X, y)
    assert len(trained) == 4


def test_pickles_and_threads_give_the_same():
    X, y, Xq, yq = data()
    influence = make(inclusion=0.5, n_trajectories=2).fit(X, y)
    expected = influence.attribute(Xq, yq)
    again = pickle.loads(pickle.dumps(influence))
    assert_array_equal(again.attribute(Xq, yq), expected)
    before = joblib.hash(pickle.dumps(influence))

    with ThreadPoolExecutor(4) as pool:
        predicted = influence.estimator_.predict_proba(Xq)
        running = [pool.submit(influence.attribute, Xq, yq) for _ in range(6)]
        while not all(run.done() for run in running):
            assert_array_equal(influence.estimator_.predict_proba(Xq), predicted)
        for run in running:
            assert_array_equal(run.result(), expected)
    assert joblib.hash(pickle.dumps(influence)) == before


def test_a_pickle_has_the_rows_once():
    X, y, *_ = data()
    few, many = (
        len(pickle.dumps(make().fit(np.hstack([X, np.zeros((len(X), n))]), y)))
        for n in (0, 2000)
    )
    # the module has five more weights per column, of which a handful of copies are kept
    weights = 5 * 2000 * X.itemsize
    assert many - few < 1.5 * len(X) * 2000 * X.itemsize + 10 * weights


def test_queries_copy_neither_weights_nor_training_rows(monkeypatch):
    X, y, Xq, yq = data()
    influence = make(inclusion=0.5, n_trajectories=2).fit(X, y)
    expected = influence.attribute(Xq, yq), influence.step_attribution(Xq, yq)

    def refuse(*_):
        raise AssertionError("weights are copied")

    sizes, convert = [], skattrib.influence._run_derivatives.as_tensor

    def counted(rows, like):
        sizes.append(len(rows))
        return convert(rows, like)

    monkeypatch.setattr(nn.Parameter, "__deepcopy__", refuse)
    monkeypatch.setattr(skattrib.influence._run_derivatives, "as_tensor", counted)
    found = influence.attribute(Xq, yq), influence.step_attribution(Xq, yq)
    assert_array_equal(found[0], expected[0])
    assert_array_equal(found[1].attributions, expected[1].attributions)
    influence.predict_outcomes(Xq, yq, influence.weights_)
    assert set(sizes) == {len(Xq)}
    assert len(sizes) == 2  # the sweep of attribute is remembered


@pytest.mark.parametrize("aggregation", ["trimmed_mean", "median"])
def test_exploding_runs_are_looked_for_once(aggregation, monkeypatch):
    X, y, Xq, yq = data()
    uneven = net(learning_rate=0.05, max_epochs=15, batch_size=10)
    options = {"inclusion": 0.5, "n_trajectories": 4, "aggregation": aggregation}
    influence = make(uneven, **options).fit(X, y)
    calls = []

    def counted(each_run):
        calls.append(len(each_run))
        return exploding(each_run)

    monkeypatch.setattr(skattrib.influence._prior_means, "exploding", counted)
    influence.attribute(Xq, yq)
    assert calls == [4] * 3  # by each derivative
    influence.diagnose(Xq, yq)
    assert calls == [4] * 3


# ------------------------------------------------------------- answers are remembered
@pytest.fixture
def sweeps(monkeypatch):
    """Numbers of queries of the sweeps that are done, but for those of fits."""
    found, fitting, derivatives = [], [], RunDerivatives.derivatives
    learn = AdamWInfluence._learn_agreement

    def noted(self, runs, queries, **options):
        if not fitting:
            found.append(len(queries.X))
        return derivatives(self, runs, queries, **options)

    def learning(self):
        fitting.append(True)
        learn(self)
        fitting.pop()

    monkeypatch.setattr(RunDerivatives, "derivatives", noted)
    monkeypatch.setattr(AdamWInfluence, "_learn_agreement", learning)
    return found


def test_the_same_queries_cost_one_sweep(sweeps):
    X, y, Xq, yq = data()
    influence = make(inclusion=0.5, n_trajectories=4).fit(X, y)
    first = influence.attribute(Xq, yq)
    kept = first.copy()
    first[:] = 0  # it is the user's
    assert_array_equal(influence.attribute(Xq, yq), kept)
    influence.attribute(Xq, yq, return_std=True, as_frame=True)
    influence.top_units(Xq, yq)
    influence.predict_outcomes(Xq, yq, influence.weights_)
    influence.diagnose(Xq, yq)
    assert sweeps == [6]
    influence.attribute(Xq[:4], yq[:4])
    influence.attribute(Xq[:4], 1 - yq[:4].clip(0, 1))
    assert sweeps == [6, 4, 4]
    influence.set_params(outcome="margin").attribute(Xq[:4], yq[:4])
    influence.attribute(Xq[:4], yq[:4], reduce="mean")
    assert sweeps == [6, 4, 4, 4, 4]
    influence.fit(X, y).attribute(Xq[:4], yq[:4], reduce="mean")
    assert len(sweeps) == 6
    again = pickle.loads(pickle.dumps(influence))
    again.attribute(Xq[:4], yq[:4], reduce="mean")
    assert len(sweeps) == 7  # a pickle holds no answers
    again.set_params(aggregation="median").attribute(Xq[:4], yq[:4], reduce="mean")
    assert len(sweeps) == 8


def test_what_does_not_fit_is_not_remembered(sweeps):
    X, y, Xq, yq = data()
    influence = make(inclusion=1).fit(X, y)
    with sklearn.config_context(working_memory=0.001):
        for _ in range(2):
            influence.attribute(Xq, yq)
    assert len(sweeps) == 2


@pytest.mark.parametrize("inclusion", [0.5, 1])
def test_answers_are_found_on_disk(inclusion, tmp_path, sweeps, monkeypatch):
    X, y, Xq, yq = data()
    options = {"inclusion": inclusion, "n_trajectories": 4, "memory": tmp_path}
    expected = make(inclusion=inclusion, n_trajectories=4).fit(X, y)
    expected = expected.attribute(Xq, yq)
    sweeps.clear()
    monkeypatch.setattr(skattrib.models._answers, "CHUNK", 2)
    first, kill = make(**options).fit(X, y), RunDerivatives.queries

    def killed(self, X, y, outcome):
        if len(sweeps) == 2:
            raise KeyboardInterrupt
        return kill(self, X, y, outcome)

    monkeypatch.setattr(RunDerivatives, "queries", killed)
    with pytest.raises(KeyboardInterrupt):
        first.attribute(Xq, yq)
    monkeypatch.setattr(RunDerivatives, "queries", kill)
    assert sweeps == [2, 2]
    # another process finds what was done; only the last two are missing
    found = make(**options).fit(X, y).attribute(Xq, yq)
    assert sweeps == [2, 2, 2]
    assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    make(**options).fit(X, y).attribute(Xq[::-1], yq[::-1])
    assert len(sweeps) == 3
    make(**options).fit(X, y).attribute(Xq, yq, reduce="mean")
    other = make(**options, dynamics="sgd").fit(X, y)
    other.attribute(Xq[:2], yq[:2])
    assert len(sweeps) == 5


def test_a_full_disk_is_noticed_before_the_sweep(tmp_path, sweeps, monkeypatch):
    X, y, Xq, yq = data()
    influence = make(inclusion=1, memory=tmp_path / "new").fit(X, y)
    usage = Bunch(free=100)
    monkeypatch.setattr(skattrib.models._answers.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"left on its disk.*reduce='mean'.*memory=None"):
        influence.attribute(Xq, yq)
    assert not sweeps


# ---------------------------------------------------------------------- errors
class OnceOnly(torch.autograd.Function):
    """A square whose derivative cannot be differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * x * grad


class Square(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return OnceOnly.apply(self.layer(x))


ERRORS = {
    "batch_size=1": ({"estimator": net(batch_size=1)}, "batch_size=1 makes weights"),
    "odd pairs": (
        {"inclusion": 0.5, "n_trajectories": 5},
        "n_trajectories=5 must be even",
    ),
    "inclusion": ({"inclusion": 0.0}, "'inclusion' parameter"),
    "aggregation": ({"aggregation": "sum"}, "'aggregation' parameter"),
    "not torch": ({"estimator": LogisticRegression()}, "needs gradients"),
    "no second derivative": (
        {"estimator": net(module=lambda n_features, n_outputs: Square())},
        "cannot be differentiated twice",
    ),
}


@pytest.mark.parametrize(("change", "message"), ERRORS.values(), ids=list(ERRORS))
def test_bad_input(change, message, monkeypatch):
    X, y, *_ = data()

    def trained(*args, **options):
        raise AssertionError("trained before the error")

    monkeypatch.setattr(skattrib.models._network, "train", trained)
    influence = make(**change)
    with pytest.raises(ValueError, match=message):
        influence.fit(X, y)
    assert not hasattr(influence, "weights_")


def test_a_single_run_has_no_standard_error():
    X, y, Xq, yq = data()
    with pytest.raises(ValueError, match=r"return_std=True needs .* Pass n_models=4"):
        make().fit(X, y).attribute(Xq, yq, return_std=True)
