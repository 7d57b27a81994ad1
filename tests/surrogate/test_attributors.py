"""Attributors from subsets: identities, real retraining, caching, composition."""

import math
import pickle

import numpy as np
import pandas as pd
import pytest
import sklearn
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_diabetes, load_iris, load_wine
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    VotingClassifier,
)
from sklearn.exceptions import EfficiencyWarning
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Perceptron
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler, scale
from sklearn.random_projection import GaussianRandomProjection, SparseRandomProjection
from sklearn.svm import SVC

import skattrib.models._network
from skattrib import (
    CountSketchTransformer,
    DualInfluence,
    KernelSurrogateAttributor,
    LinearSurrogateAttributor,
    TaskWeightSelector,
    TorchClassifier,
    TorchRegressor,
)
from skattrib.evaluation import lds_scorer, loo_score, make_weightings, retrain_outcomes
from skattrib.exceptions import (
    ConstantOutcomeWarning,
    FaithfulnessWarning,
    TrajectoryError,
)
from skattrib.influence._linear_models import LinearModel

BOTH = [KernelSurrogateAttributor, LinearSurrogateAttributor]
N_TASKS = 8


def data(n=72, n_queries=12):
    X, y = load_iris(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(y))
    X, y = scale(X)[order], y[order]
    return X[:n], y[:n], X[-n_queries:], y[-n_queries:]


def tasks_of(n=72):
    return np.arange(n) % N_TASKS


def net(**options):
    options = {"hidden_layer_sizes": (5,), "max_epochs": 30, **options}
    return TorchClassifier(**{"random_state": 0, **options})


def make(kind=KernelSurrogateAttributor, **options):
    options = {"estimator": net(), "n_subsets": 24, "random_state": 0, **options}
    return kind(**options, n_retrainings=8)


def subset_outcomes(attributor, X, y, outcome="log_likelihood"):
    rows = attributor._parts.features(X)  # of a pipeline: as its last step gets them
    return attributor._source.outcomes(rows, y, outcome)


# ------------------------------------------------------------------ identities
@pytest.mark.parametrize("estimation", ["retrain", "gradient"])
@pytest.mark.parametrize("center", ["initial", "trained"])
def test_outcomes_of_the_whole_are_the_models_own(estimation, center):
    X, y, Xq, yq = data()
    attributor = make(estimation=estimation, center=center).fit(X, y, tasks=tasks_of())
    assert_array_equal(attributor.weights_[0], 1)
    log_p = attributor.estimator_.predict_proba(Xq)[np.arange(len(yq)), yq]
    found = subset_outcomes(attributor, Xq, yq)[0]
    assert_allclose(found, np.log(log_p), rtol=0, atol=1e-9)


def test_retrained_subsets_are_the_truth():
    X, y, Xq, yq = data()
    attributor = make(estimation="retrain").fit(X, y, tasks=tasks_of())
    truth = retrain_outcomes(
        net(), X, y, attributor.weights_, Xq, yq, tasks=tasks_of(), outcome="margin"
    )
    assert_allclose(subset_outcomes(attributor, Xq, yq, "margin"), truth, atol=1e-8)


def test_linearised_subsets_are_refits_of_dual_influence():
    X, y, Xq, yq = data()
    attributor = make(estimation="gradient", damping=0.02).fit(X, y, tasks=tasks_of())
    dual = DualInfluence(net(), ridge=0.02, removal="refit", random_state=0)
    expected = dual.fit(X, y, tasks=tasks_of())
    expected = expected.predict_outcomes(Xq, yq, attributor.weights_)
    assert_allclose(subset_outcomes(attributor, Xq, yq), expected, atol=1e-6)


def test_damping_towards_the_trained_weights_keeps_what_training_left():
    """Gradients left at the end pull every subset, the whole one too."""
    X, y, Xq, yq = data()
    short = net(max_epochs=5)
    found = {}
    for center in ("initial", "trained"):
        attributor = make(estimator=short, estimation="gradient", center=center)
        attributor.fit(X, y, tasks=tasks_of())
        tangent = attributor._source._linear.tangent
        gradient = tangent.space.squared_norm(attributor._source._steps[:1])
        found[center] = float(gradient)
        assert np.isfinite(subset_outcomes(attributor, Xq, yq)).all()
    assert found["initial"] < 1e-20
    assert found["trained"] > 1e-6


def projected(projection, rank=None):
    X, y, Xq, yq = data()
    attributor = make(estimation="gradient", projection=projection)
    attributor.fit(X, y, tasks=tasks_of())
    return subset_outcomes(attributor, Xq, yq), attributor


def n_params():
    return sum(p.numel() for p in net().fit(*data()[:2]).module_.parameters())


def test_all_principal_directions_lose_nothing():
    plain, _ = projected(None)
    # outputs that all move together by the last bias are one direction less
    full, attributor = projected(n_params())
    assert attributor._source._steps.shape[1] == n_params()
    assert_allclose(full, plain, atol=1e-6)
    few, _ = projected(10)
    assert np.abs(few - plain).max() > 1e-3
    changes = [(f - f[0])[1:].ravel() for f in (few, plain)]
    assert np.corrcoef(changes)[0, 1] > 0.5


@pytest.mark.parametrize(
    "projection",
    [
        pytest.param(CountSketchTransformer(2000), marks=pytest.mark.slow),
        pytest.param(GaussianRandomProjection(2000), marks=pytest.mark.slow),
        pytest.param(SparseRandomProjection(2000), marks=pytest.mark.slow),
        30,
    ],
    ids=repr,
)
def test_projected_steps_move_the_outputs_as_they_move_the_parameters(projection):
    plain, _ = projected(None)
    found, attributor = projected(projection)
    changes = [(f - f[0])[1:].ravel() for f in (found, plain)]
    assert np.corrcoef(changes)[0, 1] > 0.9
    model, steps = attributor._source._linear.tangent, attributor._source._steps[:4]
    query = skattrib.models._network.as_tensor(data()[2])
    outputs = model.output_change(steps, model.query(query)[1])
    jacobian = skattrib.engine._gradients.row_gradients(model.model, query)[1]
    by_hand = model.parameter_change(steps) @ jacobian.jacobian().T
    assert_allclose(by_hand.view_as(outputs), outputs, atol=1e-10)


# ----------------------------------------------------------- against retraining
def truth_of(estimator, X, y, Xq, yq, tasks, **options):
    """Outcome with all tasks minus outcome without each, (N_TASKS, n_queries)."""
    W = np.vstack([np.ones((1, N_TASKS)), make_weightings(N_TASKS, None, kind="loo")])
    outcomes = retrain_outcomes(estimator, X, y, W, Xq, yq, tasks=tasks, **options)
    return outcomes[0] - outcomes[1:]


@pytest.mark.parametrize("estimation", ["retrain", "gradient"])
def test_attributions_rank_real_leave_one_out(estimation):
    X, y, Xq, yq = data(n_queries=30)
    y = y.copy()
    y[tasks_of() == 3] = 2 - y[tasks_of() == 3]  # a task with wrong labels
    truth = truth_of(net(), X, y, Xq, yq, tasks_of())
    attributor = make(estimation=estimation, n_subsets=60).fit(X, y, tasks=tasks_of())
    found = attributor.attribute(Xq, yq)
    assert found.mean(axis=0).argmin() == truth.mean(axis=1).argmin() == 3
    assert loo_score(-truth, found) > (0.8 if estimation == "retrain" else 0.5)
    assert attributor.score(Xq, yq) > 0.5


@pytest.mark.parametrize(
    ("estimator", "load"),
    [
        (GradientBoostingClassifier(n_estimators=10), load_wine),
        (GradientBoostingRegressor(n_estimators=10), load_diabetes),
        (make_pipeline(StandardScaler(), LogisticRegression()), load_wine),
    ],
    ids=["trees", "regression trees", "pipeline"],
)
def test_any_estimator_that_takes_weights(estimator, load):
    X, y = load(return_X_y=True)
    tasks, half = np.arange(len(y)) % N_TASKS, slice(None, None, 2)
    attributor = make(estimator=estimator).fit(X[half], y[half], tasks=tasks[half])
    assert attributor.estimation_ == "retrain"
    seeded = attributor.estimator_  # as fit seeded it
    n_units = attributor.n_units_
    W = np.vstack([np.ones((1, n_units)), make_weightings(n_units, None, kind="loo")])
    outcomes = retrain_outcomes(
        clone(seeded), X[half], y[half], W, X[1::20], y[1::20], tasks=tasks[half]
    )
    truth = outcomes[0] - outcomes[1:]
    found, std = attributor.attribute(X[1::20], y[1::20], return_std=True)
    assert found.shape == truth.T.shape
    assert loo_score(-truth, found) > 0.5
    assert (std > 0).all()
    # what it predicts for the designs is what it learnt them from
    predicted = attributor.predict_outcomes(X[1::20], y[1::20], attributor.weights_)
    learnt = subset_outcomes(attributor, X[1::20], y[1::20])
    assert np.corrcoef(predicted.ravel(), learnt.ravel())[0, 1] > 0.9


def test_read_outs_of_the_attributor_are_those_of_the_surrogate():
    X, y, Xq, yq = data()
    for at in ("loo", "shapley", "banzhaf", 0.3):
        attributor = make(at=at, ridge=0.01, include_loo=False)
        attributor.fit(X, y, tasks=tasks_of())
        outcomes = subset_outcomes(attributor, Xq, yq)
        surrogate = attributor._surrogate().fit(attributor.weights_, outcomes)
        found, std = attributor.attribute(Xq, yq, return_std=True)
        expected = surrogate.attribution(at, return_std=True)
        assert_allclose([found, std], expected, atol=1e-10)
        pairs = attributor.interactions(Xq, yq)
        assert pairs.shape == (12, N_TASKS, N_TASKS)
        assert_allclose(pairs, surrogate.interactions(at), atol=1e-10)
        mean = attributor.interactions(Xq, yq, average=True)
        assert_allclose(mean, pairs.mean(axis=0), atol=1e-10)
    assert "chance 0.3" in attributor.estimand_


@pytest.mark.parametrize("estimation", ["retrain", "gradient"])
@pytest.mark.parametrize("prior", [None, DualInfluence()])
def test_few_units_are_left_out_and_not_smoothed(estimation, prior):
    X, y, Xq, yq = data()
    options = {"estimation": estimation, "at": "loo", "damping": 0.05, "prior": prior}
    few = make(**options, n_subsets=N_TASKS).fit(X, y, tasks=tasks_of())
    outcomes = subset_outcomes(few, Xq, yq)
    assert_array_equal(few.weights_[1 : N_TASKS + 1], 1 - np.eye(N_TASKS))
    differences = (outcomes[0] - outcomes[1 : N_TASKS + 1]).T
    found, std = few.attribute(Xq, yq, return_std=True)
    assert_allclose(found, differences, rtol=0, atol=1e-12)
    assert (std > 0).all()  # other seeds would give other differences
    alone = make(**options, inclusion=1.0).fit(X, y, tasks=tasks_of())
    assert len(alone.weights_) == N_TASKS + 1
    assert_allclose(alone.attribute(Xq, yq), differences, rtol=0, atol=1e-9)


def test_differences_are_those_of_really_retrained_models():
    X, y, Xq, yq = data()
    W = np.vstack([np.ones(N_TASKS), 1 - np.eye(N_TASKS)])
    truth = retrain_outcomes(net(), X, y, W, Xq, yq, tasks=tasks_of())
    found = make().fit(X, y, tasks=tasks_of()).attribute(Xq, yq)
    assert_allclose(found, (truth[0] - truth[1:]).T, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("options", "is_said"),
    [
        ({}, True),
        ({"n_subsets": N_TASKS - 2}, False),
        ({"inclusion": 1.0}, False),
        ({"estimation": "gradient", "damping": 0.05}, False),
    ],
)
def test_few_units_are_said(options, is_said, capsys):
    X, y, *_ = data()
    make(**options, verbose=1).fit(X, y, tasks=tasks_of())
    assert (f"{N_TASKS + 1} trainings give" in capsys.readouterr().out) == is_said


def test_averaged_interactions_with_several_bandwidths():
    X, y, Xq, yq = data()
    attributor = make(bandwidth="loocv", n_subsets=60).fit(X, y, tasks=tasks_of())
    pairs = attributor.interactions(Xq, yq)
    mean = attributor.interactions(Xq, yq, average=True)
    assert_allclose(mean, pairs.mean(axis=0), atol=1e-10)
    linear = make(LinearSurrogateAttributor).fit(X, y, tasks=tasks_of())
    assert not linear.interactions(Xq, yq, average=True).any()
    assert linear.interactions(Xq).shape == pairs.shape


# ---------------------------------------------------------------------- designs
def test_the_design_holds_the_whole_leave_one_out_and_random_subsets():
    X, y, *_ = data()
    W = make(n_subsets=20, inclusion=0.6).fit(X, y, tasks=tasks_of()).weights_
    assert_array_equal(W[0], 1)
    assert_array_equal(W[1 : N_TASKS + 1], 1 - np.eye(N_TASKS))
    assert len(np.unique(W, axis=0)) == len(W)
    assert W.any(axis=1).all()
    assert 0.4 < W[N_TASKS + 1 :].mean() < 0.8
    few = make(n_subsets=N_TASKS - 1).fit(X, y, tasks=tasks_of()).weights_
    assert (few.sum(axis=1) == N_TASKS - 1).sum() < N_TASKS
    without = make(n_subsets=20, include_loo=False).fit(X, y, tasks=tasks_of())
    assert len(without.weights_) <= 21


def test_subsets_are_drawn_where_the_read_out_looks():
    X, y, *_ = data()

    def sizes(**options):
        attributor = make(n_subsets=100, include_loo=False, **options)
        W = attributor.fit(X, y, tasks=tasks_of()).weights_[1:]
        return np.bincount(W.sum(axis=1).astype(int), minlength=9)[1:8]

    loo, banzhaf, shapley = (sizes(at=at) for at in ("loo", "banzhaf", "shapley"))
    assert loo @ np.arange(1, 8) / loo.sum() > 5
    assert abs(banzhaf @ np.arange(1, 8) / banzhaf.sum() - 4) < 0.5
    assert min(shapley[0], shapley[-1]) >= 6  # of 8 that there are
    assert_array_equal(sizes(inclusion="uniform"), shapley)
    assert_array_equal(sizes(at=0.9), loo)
    assert_array_equal(sizes(at=0.0), sizes(inclusion=0.25))


def test_shapley_values_of_really_trained_subsets():
    X, y, Xq, yq = data()
    tasks = np.arange(72) % 6
    attributor = make(at="shapley", n_subsets=30).fit(X, y, tasks=tasks)
    everything = (np.arange(64)[:, None] >> np.arange(6)) % 2.0
    outcomes = retrain_outcomes(net(), X, y, everything, Xq, yq, tasks=tasks)
    size = everything.sum(axis=1).astype(int)
    exact = []
    for j in range(6):
        # |S|! (5 - |S|)! / 6! of the subsets S of the others
        weight = np.array(
            [
                1 / (6 * math.comb(5, s - w[j]))
                for s, w in zip(size.tolist(), everything.astype(int).tolist())
            ]
        )
        exact.append((np.where(everything[:, j], 1, -1) * weight) @ outcomes)
    found = attributor.attribute(Xq, yq)
    assert np.corrcoef(found.ravel(), np.array(exact).T.ravel())[0, 1] > 0.9


def test_inclusion_of_one_is_leave_one_out():
    X, y, Xq, yq = data()
    attributor = make(LinearSurrogateAttributor, inclusion=1.0, ridge=0)
    attributor.fit(X, y, tasks=tasks_of())
    assert len(attributor.weights_) == N_TASKS + 1
    truth = truth_of(net(), X, y, Xq, yq, tasks_of())
    assert_allclose(attributor.attribute(Xq, yq), truth.T, atol=1e-8)


def test_no_more_subsets_than_there_are():
    """Of three units there are no eight halves to score on: all are learnt from."""
    X, y, Xq, yq = data()
    attributor = make(n_subsets=1000).fit(X, y, tasks=np.arange(72) % 3)
    assert len(attributor.weights_) == 7
    with pytest.raises(ValueError, match="3 of these were learnt from: too few"):
        attributor.score(Xq, yq)


@pytest.mark.parametrize(
    ("n_tasks", "options", "left"),
    [
        (5, {}, 8),  # of 10
        (6, {}, 10),  # of 20
        (6, {"at": "banzhaf", "n_subsets": 1000}, 10),
        (6, {"at": "shapley"}, 10),
        (8, {"retrain_size": 0.9, "include_loo": False}, 8),
        (8, {}, 32),  # of 70
    ],
)
def test_few_units_leave_some_subsets_to_score(n_tasks, options, left):
    X, y, Xq, yq = data()
    attributor = KernelSurrogateAttributor(net(max_epochs=2), random_state=0, **options)
    attributor.fit(X, y, tasks=np.arange(72) % n_tasks)
    size = min(round(attributor.retrain_size * n_tasks), n_tasks - 1)
    seen = (attributor.weights_.sum(axis=1) == size).sum()
    assert math.comb(n_tasks, size) - seen >= left
    assert_array_equal(attributor.weights_[0], 1)
    assert np.isfinite(attributor.score(Xq, yq))
    again = clone(attributor).fit(X, y, tasks=np.arange(72) % n_tasks)
    assert_array_equal(again.weights_, attributor.weights_)


def test_leave_one_out_subsets_are_learnt_from_even_if_scored():
    X, y, *_ = data()
    attributor = make(n_subsets=60, retrain_size=0.9).fit(X, y, tasks=tasks_of())
    assert (attributor.weights_.sum(axis=1) == N_TASKS - 1).sum() == N_TASKS


def test_score_uses_unseen_subsets():
    X, y, *_ = data()
    attributor = make(n_subsets=150).fit(X, y, tasks=tasks_of())
    seen = {w.tobytes() for w in attributor.weights_}
    halves = [w for w in attributor.weights_ if w.sum() == 4]
    assert halves
    drawn = attributor._draw_weightings(8, 0.5, 0)
    assert len(drawn) == 8
    assert not seen & {w.tobytes() for w in drawn}


# ----------------------------------------------------- what the estimation costs
def test_estimation_is_chosen_by_size():
    X, y, *_ = data()
    chosen = {}
    for width, epochs in [(20, 10), (5, 500), (20, 100)]:
        model = net(hidden_layer_sizes=(width,), max_epochs=epochs)
        for projection in (None, 4):
            attributor = make(estimator=model, projection=projection)
            attributor.fit(X, y, tasks=tasks_of())
            chosen[width, epochs, projection] = attributor.estimation_
    # short runs are cheaper than solving for many parameters
    assert chosen[20, 10, None] == "retrain"
    assert chosen[5, 500, None] == "gradient"
    assert (chosen[20, 100, None], chosen[20, 100, 4]) == ("retrain", "gradient")


@pytest.mark.slow
def test_models_over_the_memory_cap_are_linearised():
    X, y, *_ = data()
    with sklearn.config_context(working_memory=0.01):
        attributor = make(n_subsets=100).fit(X, y, tasks=tasks_of())
    assert attributor.estimation_ == "gradient"


@pytest.mark.parametrize("estimation", ["retrain", "gradient"])
def test_searching_the_surrogate_estimates_once_per_fold(
    estimation, tmp_path, trainings, monkeypatch
):
    X, y, *_ = data()
    solved = []
    solve = skattrib.surrogate._estimation.LinearizedSubsets._solve

    def counted(self, weights):
        solved.append(len(weights))
        return solve(self, weights)

    monkeypatch.setattr(
        skattrib.surrogate._estimation.LinearizedSubsets, "_solve", counted
    )
    attributor = make(
        estimation=estimation, memory=tmp_path, inclusion=0.5, include_loo=False
    )
    search = GridSearchCV(
        attributor,
        {"ridge": [1e-4, 1.0], "bandwidth": [0.5, 4.0]},
        cv=StratifiedKFold(3),
        scoring=lds_scorer,
        refit=False,
    )
    search.fit(X, y, tasks=tasks_of())
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert np.ptp(search.cv_results_["mean_test_score"]) > 0
    scored = [8, 8, 8]
    if estimation == "gradient":
        assert trainings == scored
        assert solved == [25, 25, 25]
    else:
        assert sorted(trainings) == [*scored, 24, 24, 24]
        assert not solved


def test_the_users_card(tmp_path, trainings):
    """A pipeline ending in a selector, searched over ridge and bandwidth."""
    X, y, *_ = data()
    X = np.hstack([X, X**2, X[:, :1] * X])
    pipeline = make_pipeline(
        StandardScaler(),
        CountSketchTransformer(64, random_state=0),
        KernelSurrogateAttributor(
            net(), n_subsets=24, n_retrainings=8, memory=tmp_path, random_state=0
        ),
        TaskWeightSelector(),
    )
    name = "kernelsurrogateattributor"
    search = GridSearchCV(
        pipeline,
        {f"{name}__ridge": [1e-3, 1e-1], f"{name}__bandwidth": [1, 4]},
        cv=StratifiedKFold(3),
        scoring=lds_scorer,
    )
    search.fit(X, y, **{f"{name}__tasks": tasks_of()})
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_score_ > 0
    # three folds and the refit; one truth per fold
    assert len(trainings) == 4 + 3
    best = search.best_estimator_
    assert best.transform(X).shape == (72, N_TASKS // 2)
    assert len(best[-1].selected_tasks_) == N_TASKS // 2


def test_tasks_are_routed_through_a_pipeline(tmp_path):
    X, y, *_ = data()
    expected = make().fit(scale(X), y, tasks=tasks_of()).attribute(scale(X)[:3], y[:3])
    with sklearn.config_context(enable_metadata_routing=True):
        attributor = make().set_fit_request(tasks=True)
        pipeline = make_pipeline(StandardScaler(), attributor)
        pipeline.fit(X, y, tasks=tasks_of())
        found = pipeline[-1].attribute(pipeline[:-1].transform(X[:3]), y[:3])
        assert_allclose(found, expected, atol=1e-8)
        search = GridSearchCV(
            make_pipeline(
                StandardScaler(), make(memory=tmp_path).set_fit_request(tasks=True)
            ),
            {"kernelsurrogateattributor__ridge": [1e-3, 1e-1]},
            cv=StratifiedKFold(3),
            scoring=lds_scorer,
        )
        search.fit(X, y, tasks=tasks_of())
        assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_a_task_without_rows_in_a_fold_is_no_unit_of_it():
    X, y, *_ = data()
    tasks = tasks_of().copy()
    tasks[0] = 99
    attributor = make(include_loo=False)
    assert attributor.fit(X, y, tasks=tasks).n_units_ == N_TASKS + 1
    assert attributor.fit(X[1:], y[1:], tasks=tasks[1:]).n_units_ == N_TASKS


@pytest.mark.parametrize("estimation", ["retrain", "gradient"])
def test_an_interrupted_estimation_keeps_what_is_done(
    estimation, tmp_path, monkeypatch
):
    X, y, Xq, yq = data()
    attributor = make(estimation=estimation, memory=tmp_path, n_subsets=80)
    name = "_solve" if estimation == "gradient" else "params"
    place = (
        skattrib.surrogate._estimation.LinearizedSubsets
        if estimation == "gradient"
        else skattrib.models._retraining.Trainer
    )
    compute, calls = getattr(place, name), []

    def interrupted(self, *args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return compute(self, *args, **options)

    monkeypatch.setattr(place, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        attributor.fit(X, y, tasks=tasks_of())
    assert not hasattr(attributor, "weights_")
    done = []

    def counted(self, weights, *args, **options):
        done.append(len(weights))
        return compute(self, weights, *args, **options)

    monkeypatch.setattr(place, name, counted)
    again = attributor.fit(X, y, tasks=tasks_of()).attribute(Xq, yq)
    learnt = len(attributor.weights_) - (estimation == "retrain")
    assert sum(done) == learnt - 32
    plain = make(estimation=estimation, n_subsets=80).fit(X, y, tasks=tasks_of())
    assert_allclose(plain.attribute(Xq, yq), again, atol=1e-7)


def test_remembered_steps_are_of_the_space_solved_in(tmp_path, monkeypatch):
    """Another memory cap may choose another space: its steps mean something else."""
    X, y, Xq, yq = data()
    attributor = make(estimation="gradient", memory=tmp_path, n_subsets=10)
    primal = attributor.fit(X, y, tasks=tasks_of())
    assert primal._source._linear.plan.solver == "primal"
    expected = primal.attribute(Xq, yq)
    precise = LinearModel.precise
    monkeypatch.setattr(
        LinearModel,
        "precise",
        lambda *args, **options: precise(*args, solver="dual", **options),
    )
    found = clone(attributor).fit(X, y, tasks=tasks_of()).attribute(Xq, yq)
    assert_allclose(found, expected, atol=1e-6)


def test_remembered_steps_are_of_the_metric_solved_in(tmp_path):
    """A frozen module without a record has no optimizer whose metric to take."""
    X, y, Xq, yq = data()
    fitted = net().fit(X, y)
    bare = FrozenEstimator(TorchClassifier.from_module(fitted.module_, [0, 1, 2]))
    options = {"estimation": "gradient", "damping": 0.1, "n_subsets": 10}
    expected = make(estimator=bare, **options).fit(X, y, tasks=tasks_of())
    for estimator in (FrozenEstimator(fitted), bare):
        found = make(estimator=estimator, memory=tmp_path, **options)
        found.fit(X, y, tasks=tasks_of())
    assert_allclose(found.attribute(Xq, yq), expected.attribute(Xq, yq), atol=1e-7)


def test_what_does_not_change_training_finds_what_is_remembered(
    tmp_path, trainings, monkeypatch
):
    X, y, Xq, yq = data()
    make(memory=tmp_path).fit(X, y, tasks=tasks_of()).score(Xq, yq)
    done = len(trainings)
    for options in ({"record": "states"}, {"verbose": 1}):
        same = make(estimator=net(**options), memory=tmp_path)
        same.fit(X, y, tasks=tasks_of()).score(Xq, yq)
        assert len(trainings) == done
    fits, fit = [], LogisticRegression.fit

    def counted(self, X, y, sample_weight=None):
        fits.append(1)
        return fit(self, X, y, sample_weight)

    monkeypatch.setattr(LogisticRegression, "fit", counted)
    for verbose in (0, 1):
        logistic = LogisticRegression(verbose=verbose)
        attributor = make(estimator=logistic, memory=tmp_path)
        attributor.fit(X, y, tasks=tasks_of())
    assert len(fits) == len(attributor.weights_) + 1


def test_models_that_fill_the_memory_are_pointed_out(recwarn):
    X, y, *_ = data()
    forest = GradientBoostingClassifier(n_estimators=5)
    with sklearn.config_context(working_memory=1):
        with pytest.warns(EfficiencyWarning, match="fewer n_subsets") as caught:
            make(estimator=forest, n_subsets=80).fit(X, y, tasks=tasks_of())
    assert len(caught) == 1
    recwarn.clear()
    make(estimator=forest, n_subsets=80).fit(X, y, tasks=tasks_of())
    assert not recwarn.list


def test_fitted_attributors_can_be_pickled():
    X, y, Xq, yq = data()
    for options in (
        {"estimation": "retrain"},
        {"estimation": "gradient"},
        {"estimation": "gradient", "projection": CountSketchTransformer(50)},
        {"estimator": LogisticRegression()},
    ):
        attributor = make(**options).fit(X, y, tasks=tasks_of())
        again = pickle.loads(pickle.dumps(attributor))
        assert_array_equal(again.attribute(Xq, yq), attributor.attribute(Xq, yq))


def test_queries_in_pieces_are_the_same():
    X, y, Xq, yq = data()
    attributor = make().fit(X, y, tasks=tasks_of())
    whole = attributor.attribute(Xq, yq)
    with sklearn.config_context(working_memory=0.01):
        assert_allclose(attributor.attribute(Xq, yq), whole, atol=1e-9)


def test_constant_outcomes_are_pointed_out():
    X, y, Xq, yq = data()
    attributor = make(outcome=lambda f, t: 0 * f[..., 0]).fit(X, y, tasks=tasks_of())
    with pytest.warns(ConstantOutcomeWarning, match="12 of 12 queries"):
        found = attributor.attribute(Xq, yq)
    assert not found.any()


def test_frozen_estimators():
    X, y, Xq, yq = data()
    fitted = net().fit(X, y)
    expected = make().fit(X, y, tasks=tasks_of()).attribute(Xq, yq)
    frozen = make(estimator=FrozenEstimator(fitted)).fit(X, y, tasks=tasks_of())
    assert frozen.estimation_ == "retrain"
    assert_allclose(frozen.attribute(Xq, yq), expected, atol=1e-8)
    bare = TorchClassifier.from_module(fitted.module_, [0, 1, 2])
    bare = make(estimator=FrozenEstimator(bare), damping=0.05)
    assert bare.fit(X, y, tasks=tasks_of()).estimation_ == "gradient"
    assert bare.attribute(Xq, yq).shape == (12, N_TASKS)
    with pytest.raises(TrajectoryError, match="was not recorded"):
        bare.score(Xq, yq)
    with pytest.raises(ValueError, match="estimation='retrain' cannot train"):
        bare.set_params(estimation="retrain").fit(X, y, tasks=tasks_of())


@pytest.mark.parametrize(
    "estimator",
    [
        net(),
        RandomForestClassifier(5, random_state=0),
        LogisticRegression(random_state=0),
    ],
    ids=["network", "forest", "logistic"],
)
def test_frozen_estimators_are_trained_again(estimator, recwarn):
    X, y, Xq, yq = data()
    frozen = FrozenEstimator(clone(estimator).fit(X, y))
    found = make(estimator=frozen, estimation="retrain").fit(X, y, tasks=tasks_of())
    expected = make(estimator=estimator, estimation="retrain")
    expected.fit(X, y, tasks=tasks_of())
    assert_allclose(found.attribute(Xq, yq), expected.attribute(Xq, yq), atol=1e-8)
    assert not [w for w in recwarn if w.category is FaithfulnessWarning]
    elsewhere = FrozenEstimator(clone(estimator).fit(X[::2], y[::2]))
    with pytest.warns(FaithfulnessWarning, match="trained on other rows"):
        make(estimator=elsewhere, estimation="retrain").fit(X, y, tasks=tasks_of())


def test_weights_of_a_pipeline_reach_every_subset():
    X, y, Xq, yq = data()
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(random_state=0))
    weights = np.where(tasks_of() == 0, 10.0, 0.5)
    given = {"logisticregression__sample_weight": weights}
    attributor = make(estimator=pipeline).fit(X, y, tasks=tasks_of(), **given)
    truth = retrain_outcomes(
        pipeline,
        X,
        y,
        attributor.weights_,
        Xq,
        yq,
        tasks=tasks_of(),
        sample_weight=weights,
    )
    assert_allclose(subset_outcomes(attributor, Xq, yq), truth, atol=1e-8)
    with sklearn.config_context(enable_metadata_routing=True):
        last = LogisticRegression().set_fit_request(sample_weight=True)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        routed = make(estimator=make_pipeline(scaler, make_pipeline(last)))
        routed.fit(X, y, tasks=tasks_of(), sample_weight=weights)
        found = routed.attribute(Xq, yq)
        assert np.isfinite(routed.score(Xq, yq))
    assert_allclose(found, attributor.attribute(Xq, yq), atol=1e-8)
    with pytest.raises(
        ValueError, match=r"\['standardscaler__sample_weight'\] would not"
    ):
        make(estimator=pipeline).fit(
            X, y, tasks=tasks_of(), standardscaler__sample_weight=weights, **given
        )


def table():
    """A table with text and a missing number, its targets, and queries."""
    X, y, Xq, yq = data()
    found = [pd.DataFrame(part, columns=list("abcd")) for part in (X, Xq)]
    for part in found:
        part["kind"] = np.where(part["a"] > 0, "long", "short")
        part.loc[0, "b"] = np.nan
    return found[0], np.array(list("xyz"))[y], found[1], np.array(list("xyz"))[yq]


def test_tables_reach_other_estimators_as_they_are(tmp_path):
    X, y, Xq, yq = table()
    encode = make_column_transformer(
        (OneHotEncoder(), ["kind"]), (SimpleImputer(), ["a", "b"])
    )
    attributor = make(
        estimator=make_pipeline(encode, LogisticRegression()), memory=tmp_path
    )
    by_hand = clone(encode).fit(X)
    expected = make(estimator=LogisticRegression())
    expected.fit(by_hand.transform(X), y, tasks=tasks_of())
    queries = by_hand.transform(Xq), yq
    for _ in range(2):
        found = attributor.fit(X, y, tasks=tasks_of())
        assert_allclose(
            found.attribute(Xq, yq), expected.attribute(*queries), atol=1e-6
        )
    assert isinstance(found.X_train_, pd.DataFrame)
    assert found.transform(Xq).dtype == np.float64
    assert found.interactions(Xq, yq, average=True).shape == (N_TASKS, N_TASKS)
    assert found.score(Xq, yq) == pytest.approx(expected.score(*queries), abs=0.05)
    with sklearn.config_context(working_memory=0.01):  # queries in pieces
        assert_allclose(
            found.attribute(Xq, yq), expected.attribute(*queries), atol=1e-6
        )
    with pytest.raises(ValueError, match="feature names should match"):
        found.transform(Xq.rename(columns={"a": "e"}))
    with pytest.raises(ValueError, match="inconsistent numbers"):
        attributor.fit(X, y[1:], tasks=tasks_of())


def test_missing_values_and_selection_of_tables():
    X, y, Xq, yq = table()
    trees = HistGradientBoostingClassifier(
        max_iter=3, categorical_features="from_dtype", random_state=0
    )
    X, Xq = (part.astype({"kind": "category"}) for part in (X, Xq))
    attributor = make(estimator=trees)
    assert attributor.fit(X, y, tasks=tasks_of()).attribute(Xq, yq).any()
    selector = TaskWeightSelector(attributor, n_tasks_to_select=6, random_state=0)
    kept, _ = selector.fit_resample(X, y, tasks=tasks_of())
    assert list(kept.columns) == [*"abcd", "kind"]
    with pytest.raises(ValueError, match="could not convert string"):
        make().fit(table()[0], y, tasks=tasks_of())


def test_regression_of_several_outputs():
    X, _, Xq, _ = data()
    model = TorchRegressor(hidden_layer_sizes=(4,), max_epochs=10)
    for estimation in ("retrain", "gradient"):
        attributor = make(estimator=model, estimation=estimation)
        attributor.fit(X[:, :2], X[:, 2:], tasks=tasks_of())
        found = attributor.attribute(Xq[:, :2], Xq[:, 2:])
        assert found.shape == (12, N_TASKS)
        assert found.any()


def ahead(estimator, X, y):
    """By how much the decision function of a fitted classifier is ahead for y."""
    values = estimator.decision_function(X)
    if values.ndim == 1:
        return np.where(y == estimator.classes_[1], values, -values)
    own = estimator.classes_ == y[:, None]
    return values[own] - np.where(own, -np.inf, values).max(axis=1)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("estimator", [SVC(random_state=0), Perceptron(random_state=0)])
def test_classifiers_without_probabilities_have_margins(kind, n_classes, estimator):
    X, y, Xq, yq = data()
    tasks = tasks_of()[y < n_classes]
    X, y = X[y < n_classes], y[y < n_classes]
    Xq, yq = Xq[yq < n_classes], yq[yq < n_classes]
    fitted = make(kind, estimator=estimator).fit(X, y, tasks=tasks)
    by_hand = []
    for present in fitted.weights_:
        kept = present[tasks] > 0
        by_hand.append(ahead(clone(estimator).fit(X[kept], y[kept]), Xq, yq))
    assert_allclose(subset_outcomes(fitted, Xq, yq, "margin"), by_hand, rtol=1e-9)
    named = make(kind, estimator=estimator, outcome="margin").fit(X, y, tasks=tasks)
    assert_array_equal(named.attribute(Xq, yq), fitted.attribute(Xq, yq))
    own = fitted.attribute(Xq, fitted.predict(Xq))
    assert_allclose(fitted.transform(Xq), own)
    assert np.isfinite(fitted.score(Xq, yq))


def test_data_frames_and_names():
    X, y, *_ = data()
    frame = pd.DataFrame(X, columns=list("abcd"))
    names = np.array([f"hospital-{i}" for i in range(N_TASKS)])
    attributor = make().set_output(transform="pandas")
    out = attributor.fit(frame, y, tasks=names[tasks_of()]).transform(frame[:5])
    assert list(out.columns) == list(names)


def test_verbose_says_how_outcomes_were_estimated(capsys):
    X, y, *_ = data()
    make(verbose=1).fit(X, y, tasks=tasks_of())
    assert "25 subsets by retrain" in capsys.readouterr().out


# ---------------------------------------------------------------------- errors
ERRORS = {
    "inclusion of 0": ({"inclusion": 0}, "'inclusion' parameter"),
    "inclusion above 1": ({"inclusion": 1.2}, "'inclusion' parameter"),
    "one subset": ({"n_subsets": 1}, "'n_subsets' parameter"),
    "at": ({"at": "all"}, "'at' parameter"),
    "ridge": ({"ridge": 0}, "'ridge' parameter"),
    "damping": ({"damping": 0.0}, "'damping' parameter"),
    "center": ({"center": "mean"}, "'center' parameter"),
    "projection": ({"projection": StandardScaler()}, "'projection' parameter"),
    "projection to nothing": (
        {"projection": CountSketchTransformer(0)},
        "'n_components' parameter of CountSketchTransformer",
    ),
    "projection wider than the rank": (
        {"estimation": "gradient", "projection": 5000},
        "projection=5000 is more than the",
    ),
    "gradients of trees": (
        {"estimation": "gradient", "estimator": GradientBoostingClassifier()},
        "use estimation='retrain'",
    ),
    "gradients of a pipeline": (
        {
            "estimation": "gradient",
            "estimator": make_pipeline(StandardScaler(), LogisticRegression()),
        },
        "LogisticRegression has none: use estimation='retrain'",
    ),
    "projection that counts samples": (
        {"projection": GaussianRandomProjection()},
        "n_components='auto'.*pass an int n_components",
    ),
    "a truth value": ({"at": True}, "at must be 'loo'.*got True"),
    "subsets that are all alike": (
        {"inclusion": 1 - 1e-9, "n_subsets": 100, "tasks": None},
        "inclusion=0.999999999 with n_subsets=100: ",
    ),
    "a search that keeps nothing": (
        {"estimator": GridSearchCV(LogisticRegression(), {"C": [1]}, refit=False)},
        "Use refit=True",
    ),
    "several outputs of a classifier": (
        {"estimator": RandomForestClassifier(), "y": np.zeros((72, 2), dtype=int)},
        "Fit one attributor per column",
    ),
    "a likelihood of decisions": (
        {"estimator": Perceptron(), "outcome": "log_likelihood"},
        "'log_likelihood' needs probabilities, and Perceptron has none; use "
        "outcome='margin'",
    ),
    "neither probabilities nor decisions": (
        {"estimator": VotingClassifier([("a", SVC(random_state=0))])},
        "VotingClassifier has neither predict_proba nor decision_function",
    ),
    "decisions of pairs": (
        {"estimator": SVC(decision_function_shape="ovo")},
        "each pair of the 3 classes, .* use decision_function_shape='ovr'",
    ),
    "one task": ({"tasks": np.zeros(72)}, "tasks has only one label"),
    "tasks of another length": ({"tasks": np.arange(5)}, "tasks has 5 labels"),
    "memory without a seed": (
        {"memory": "cache", "random_state": None},
        "memory is set but random_state is None",
    ),
}


@pytest.mark.parametrize(("change", "message"), ERRORS.values(), ids=list(ERRORS))
def test_bad_input(change, message, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    X, y, *_ = data()
    change = change.copy()
    tasks, y = change.pop("tasks", tasks_of()), change.pop("y", y)
    attributor = make(**change)
    if "wider than the rank" not in request.node.name:  # of the trained network
        monkeypatch.setattr(
            skattrib.models._network, "train", lambda *args, **_: pytest.fail("ran")
        )
    with pytest.raises(ValueError, match=message):
        attributor.fit(X, y, tasks=tasks)
    assert not hasattr(attributor, "n_units_")
    assert not list(tmp_path.iterdir())


def test_bad_queries():
    X, y, Xq, yq = data()
    attributor = make().fit(X, y, tasks=tasks_of())
    with pytest.raises(ValueError, match="unseen in fit"):
        attributor.interactions(Xq, np.full(12, 7))
    with pytest.raises(ValueError, match="n_units=8"):
        attributor.predict_outcomes(Xq, yq, np.ones((2, 9)))
    with sklearn.config_context(working_memory=0.001):
        with pytest.raises(ValueError, match="Pass average=True"):
            attributor.interactions(Xq, yq)


def test_a_class_missing_from_a_subset_is_named():
    class Picky(LogisticRegression):
        def fit(self, X, y, sample_weight=None):
            if len(np.unique(y)) < 3:
                raise ValueError("too few classes.")
            return super().fit(X, y, sample_weight)

    X, y, *_ = data()
    with pytest.raises(ValueError, match=r"without the classes \[[012]\]: too few"):
        make(estimator=Picky(), inclusion=0.3).fit(X, y, tasks=y)
