"""TaskWeightSelector: what it keeps, and how it composes."""

import warnings

import numpy as np
import pandas as pd
import pytest
import sklearn
from imblearn.pipeline import make_pipeline as make_imblearn_pipeline
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import trim_mean
from sklearn.base import BaseEstimator, clone
from sklearn.datasets import load_iris, load_wine
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler, scale

from skattrib import (
    DualInfluence,
    KernelSurrogate,
    KernelSurrogateAttributor,
    TaskWeightSelector,
    TorchClassifier,
)
from skattrib._task_sets import greedy
from skattrib.evaluation import lds_scorer, retrain_outcomes
from skattrib.exceptions import ConstantOutcomeWarning, FaithfulnessWarning

N_TASKS, NOISY = 8, [2, 5]


class Game(BaseEstimator):
    """An attributor that knows the outcome of every set of four tasks."""

    def __init__(self, random_state=None):
        self.random_state = random_state

    @staticmethod
    def values(W):
        # 0 and 1 help only together; 2 is worth a little; 3 hurts a little
        return W[:, 0] * W[:, 1] - 0.2 * (W[:, 0] != W[:, 1]) + 0.1 * W @ [0, 0, 1, -1]

    def fit(self, X, y, tasks=None):
        self.unit_names_, self.n_units_ = np.unique(tasks), 4
        return self

    def attribute(self, X, y):
        whole = np.ones((1, 4))
        loo = self.values(whole) - self.values(1 - np.eye(4))
        return np.tile(loo, (len(X), 1))

    def predict_outcomes(self, X, y, weights):
        return np.tile(self.values(weights)[:, None], (1, len(X)))


def data(n=96):
    X, y = load_iris(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(y))
    X, y = scale(X)[order][:n], y[order][:n].copy()
    tasks = np.arange(n) % N_TASKS
    noisy = np.isin(tasks, NOISY)
    y[noisy] = (y[noisy] + 1) % 3
    return X, y, tasks


def clean():
    X, y = load_iris(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(y))
    return scale(X)[order][96:], y[order][96:]


def net():
    return TorchClassifier(hidden_layer_sizes=(5,), max_epochs=40, random_state=0)


def kernel(**options):
    return KernelSurrogateAttributor(net(), n_subsets=60, random_state=0, **options)


# --------------------------------------------------------------------- columns
def test_columns_with_the_largest_means_are_kept():
    A = np.random.RandomState(0).randn(20, 5) + [0, 3, -2, 1, -1]
    selector = TaskWeightSelector(n_tasks_to_select=2).fit(A)
    assert_allclose(selector.task_weights_, A.mean(axis=0))
    assert_array_equal(selector.selected_tasks_, [1, 3])
    assert_array_equal(selector.transform(A), A[:, [1, 3]])
    assert_array_equal(selector.get_support(), [False, True, False, True, False])
    back = selector.inverse_transform(A[:, [1, 3]])
    assert_array_equal(back[:, [0, 2, 4]], 0)


@pytest.mark.parametrize(
    ("wanted", "kept"), [("auto", 3), (0.5, 4), (0.01, 1), (1.0, 7), (1, 1), (7, 7)]
)
def test_how_many_columns_are_kept(wanted, kept):
    A = -1 - np.random.RandomState(0).rand(20, 7)  # no sign decides
    assert TaskWeightSelector(n_tasks_to_select=wanted).fit(A).support_.sum() == kept


def test_names_of_columns():
    A = pd.DataFrame(np.random.RandomState(0).randn(9, 3), columns=["a", "b", "c"])
    selector = TaskWeightSelector(n_tasks_to_select=2).set_output(transform="pandas")
    out = selector.fit_transform(A)
    kept = A.columns[np.argsort(-A.mean())[:2]]
    assert set(out.columns) == set(selector.selected_tasks_) == set(kept)


# ----------------------------------------------------------------------- tasks
def fit_game(**options):
    X, tasks = np.zeros((16, 2)), np.arange(16) % 4
    return TaskWeightSelector(Game(), random_state=0, **options).fit(
        X, X[:, 0], tasks=tasks
    )


def test_greedy_sees_tasks_that_help_together():
    assert_array_equal(fit_game().selected_tasks_, [0, 1, 2])
    assert fit_game().predicted_outcome_ == pytest.approx(1.1)
    pair = fit_game(n_tasks_to_select=2, strategy="greedy")
    assert_array_equal(pair.selected_tasks_, [0, 1])
    one = fit_game(n_tasks_to_select=1, strategy="greedy")
    assert_array_equal(one.selected_tasks_, [2])
    single = fit_game(n_tasks_to_select=1)
    assert_array_equal(single.selected_tasks_, [0])  # LOO of 0 and 1 are equal


def gains(value):
    """The gain of each candidate, for `greedy`, from the values of sets."""
    return lambda current, candidates, changed: (
        value(candidates.astype(float)) - value(current[None].astype(float))
    )


def test_greedy_search_finds_the_optimum_of_additive_games():
    rng = np.random.RandomState(0)
    for _ in range(20):
        worth = rng.randn(6)
        found = greedy(gains(lambda W, worth=worth: W @ worth), 6, None)
        assert_array_equal(found, worth > 0 if (worth > 0).any() else worth.max())
        three = greedy(gains(lambda W, worth=worth: W @ worth), 6, 3)
        assert_array_equal(three, worth >= np.sort(worth)[3])


def test_at_least_one_task_is_kept_and_ties_keep_more():
    nothing_helps = greedy(gains(lambda W: -W.sum(axis=1)), 4, None)
    assert nothing_helps.sum() == 1
    assert greedy(gains(lambda W: np.zeros(len(W))), 4, None).all()


@pytest.mark.parametrize(
    "attributor",
    [kernel(), DualInfluence(net(), random_state=0)],
    ids=["kernel", "dual"],
)
def test_noisy_tasks_are_dropped_and_the_model_gets_better(attributor):
    X, y, tasks = data()
    Xq, yq = clean()
    selector = TaskWeightSelector(attributor, random_state=0)
    selector.fit(X, y, tasks=tasks, X_val=Xq[:25], y_val=yq[:25])
    assert not set(NOISY) & set(selector.selected_tasks_)
    assert_allclose(
        selector.task_weights_,
        selector.attributor_.attribute(Xq[:25], yq[:25]).mean(axis=0),
    )
    weights = np.array([np.ones(N_TASKS), selector.support_], dtype=float)
    before, after = retrain_outcomes(
        net(), X, y, weights, Xq[25:], yq[25:], tasks=tasks
    ).mean(axis=1)
    assert after > before


def test_fit_resample_keeps_all_rows_of_the_tasks_kept():
    X, y, tasks = data()
    frame = pd.DataFrame(X, columns=list("abcd"))
    selector = TaskWeightSelector(kernel(), n_tasks_to_select=6, random_state=0)
    X_kept, y_kept = selector.fit_resample(frame, y, tasks=tasks)
    kept = np.isin(tasks, selector.selected_tasks_)
    assert kept.sum() == 72
    assert_array_equal(X_kept, X[kept])
    assert_array_equal(y_kept, y[kept])
    assert isinstance(X_kept, pd.DataFrame)
    assert_array_equal(selector.sample_weight_, kept)
    weighted = LogisticRegression().fit(X, y, sample_weight=selector.sample_weight_)
    plain = LogisticRegression().fit(X_kept.to_numpy(), y_kept)
    assert_allclose(weighted.predict_proba(X), plain.predict_proba(X), atol=1e-3)


def test_rows_can_be_units():
    X, y, _ = data(40)
    selector = TaskWeightSelector(
        DualInfluence(net(), random_state=0), n_tasks_to_select=10, random_state=0
    ).fit(X, y)
    assert [a.n_units_ for a in selector.attributors_] == [26, 27, 27]
    assert_array_equal(selector.task_names_, np.arange(40))
    frame = pd.DataFrame(X, index=[f"row {row}" for row in range(40)])
    named = clone(selector).fit(frame, y)
    assert_array_equal(named.selected_tasks_, frame.index[selector.support_])
    assert np.isfinite(selector.task_weights_).all()
    assert selector.support_.sum() == selector.sample_weight_.sum() == 10


class Seen(BaseEstimator):
    """An attributor that tells what it was fitted to and asked for.

    The last column of X numbers the rows, the first ones are what tasks are worth.
    """

    def __init__(self, random_state=None):
        self.random_state = random_state

    def fit(self, X, y, tasks=None):
        self.rows_, self.tasks_, self.asked_ = X[:, -1], tasks, []
        self.unit_names_ = np.unique(X[:, -1] if tasks is None else tasks)
        return self

    def attribute(self, X, y):
        self.asked_.extend(X[:, -1])
        return X[:, : len(self.unit_names_)]

    def predict_outcomes(self, X, y, weights):
        return weights @ X[:, : len(self.unit_names_)].T


def numbered(n, n_tasks, seed=0):
    X = np.random.RandomState(seed).randn(n, n_tasks + 1)
    X[:, -1] = np.arange(n)
    return X, np.zeros(n), np.arange(n) % n_tasks


@pytest.mark.parametrize("cv", [2, 3, 5])
def test_no_row_is_asked_of_an_attributor_that_has_seen_it(cv):
    X, y, tasks = numbered(31, 4)
    tasks[0] = 9  # the only one: always trained on, never asked
    selector = TaskWeightSelector(
        Seen(), n_tasks_to_select=3, strategy="greedy", cv=cv, random_state=0
    ).fit(np.c_[X[:, :-1], X[:, -1:], X[:, -1:]], y, tasks=tasks)
    assert len(selector.attributors_) == cv
    for fitted in selector.attributors_:
        assert not set(fitted.rows_) & set(fitted.asked_)
        assert set(fitted.rows_) | set(fitted.asked_) == set(range(31))
        assert set(fitted.tasks_) == {0, 1, 2, 3, 9}
    asked = np.concatenate([fitted.asked_ for fitted in selector.attributors_])
    assert_array_equal(np.sort(asked), np.arange(1, 31))
    assert selector.attributor_ is selector.attributors_[0]


@pytest.mark.parametrize("strategy", ["marginal", "greedy"])
def test_a_task_is_worth_the_median_over_the_others(strategy):
    X, y, tasks = numbered(60, 5)
    X[tasks == 2, 2] += 100  # a task that praises itself
    X[0, 1] = 1e6  # one row of 12 is cut off
    selector = TaskWeightSelector(
        Seen(), n_tasks_to_select=2, strategy=strategy, random_state=0
    ).fit(X, y, tasks=tasks)
    by_task = np.array([trim_mean(X[tasks == t, :5], 0.1) for t in range(5)])
    expected = [np.median(np.delete(by_task[:, t], t)) for t in range(5)]
    assert_allclose(selector.task_weights_, expected)
    # outcomes are additive
    best = np.argsort(expected)[3:]
    assert_array_equal(selector.selected_tasks_, np.sort(best))
    found = selector.support_[tasks]
    outcome = (X[:, :5] @ selector.support_)[found].mean()
    assert selector.predicted_outcome_ == pytest.approx(outcome)


def test_values_vary_over_folds():
    X, y, tasks = numbered(60, 5)
    selector = TaskWeightSelector(
        Seen(), n_tasks_to_select=2, random_state=0, cv=4
    ).fit(X, y, tasks=tasks)
    by_fold = []
    for fitted in selector.attributors_:
        rows = np.array(fitted.asked_, dtype=int)
        by_task = [trim_mean(X[rows][tasks[rows] == t, :5], 0.1) for t in range(5)]
        by_fold.append(
            [np.median(np.delete(np.array(by_task)[:, t], t)) for t in range(5)]
        )
    assert_allclose(selector.task_weights_std_, np.std(by_fold, axis=0, ddof=1))


def test_trusted_rows_judge_alone():
    X, y, tasks = numbered(24, 4)
    X_val = np.random.RandomState(1).randn(7, 5)
    selector = TaskWeightSelector(Seen(), n_tasks_to_select=2, random_state=0)
    selector.fit(X, y, tasks=tasks, X_val=X_val, y_val=np.zeros(7))
    assert len(selector.attributors_) == 1
    assert_array_equal(selector.attributor_.rows_, np.arange(24))
    assert_array_equal(selector.attributor_.asked_, X_val[:, -1])
    assert_allclose(selector.task_weights_, X_val[:, :4].mean(axis=0))
    assert (selector.task_weights_std_ > 0).all()
    selector.fit(X, y, tasks=tasks, X_val=X_val[:1], y_val=np.zeros(1))
    assert np.isnan(selector.task_weights_std_).all()


def test_tasks_that_differ_less_than_folds_do_are_pointed_out(recwarn):
    X, y, tasks = numbered(40, 4, seed=1)
    X[:, :4] += [9, 0, 0, -9]
    selector = TaskWeightSelector(Seen(), n_tasks_to_select=2, random_state=0)
    message = r"task [12] \(kept\) and task [12] \(dropped\).*Pass clean rows as X_val"
    with pytest.warns(FaithfulnessWarning, match=message):
        selector.fit(X, y, tasks=tasks)
    recwarn.clear()
    for n_kept in (1, 3, 4):
        clone(selector).set_params(n_tasks_to_select=n_kept).fit(X, y, tasks=tasks)
    assert not recwarn.list
    rows = TaskWeightSelector(
        DualInfluence(net(), random_state=0), n_tasks_to_select=0.5, random_state=0
    )
    with pytest.warns(FaithfulnessWarning, match="the rows kept and those dropped"):
        rows.fit(np.random.RandomState(0).randn(24, 2), np.arange(24) % 2)


def test_validation_fraction_is_deprecated():
    X, y, tasks = numbered(40, 4)
    selector = TaskWeightSelector(Seen(), n_tasks_to_select=4, random_state=0)
    expected = selector.fit(X, y, tasks=tasks).task_weights_
    selector.set_params(validation_fraction=0.25)
    with pytest.warns(FutureWarning, match=r"validation_fraction=0.25 is deprecated"):
        assert_array_equal(selector.fit(X, y, tasks=tasks).task_weights_, expected)


def test_rows_whose_label_is_rare_are_not_asked():
    X, y, tasks = data(48)
    y[:2] = [3, 4]
    selector = TaskWeightSelector(
        DualInfluence(net(), random_state=0), n_tasks_to_select=7, random_state=0
    )
    assert np.isfinite(selector.fit(X, y, tasks=tasks).task_weights_).all()
    selector.set_params(n_tasks_to_select="auto")
    with pytest.raises(ValueError, match="no rows can be held out"):
        selector.fit(X[:8], np.arange(8), tasks=tasks[:8] // 4)
    with pytest.raises(ValueError, match="only one task has two rows or more"):
        selector.fit(X[:4], [0, 0, 0, 1], tasks=[0, 0, 0, 1])


def wine_with_noise(seed):
    """Wine from six sources, two of which have labels at random; trusted rows."""
    X, y = load_wine(return_X_y=True)
    rng = np.random.RandomState(seed)
    order = rng.permutation(len(y))
    X, y = scale(X)[order], y[order]
    tasks = np.array(list("abcdef"))[rng.randint(0, 6, 120)]
    noisy = np.where(np.isin(tasks, ["b", "e"]), rng.randint(0, 3, 120), y[:120])
    return X[:120], noisy, tasks, X[120:], y[120:]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["marginal", "greedy"])
def test_noise_does_not_vote_for_itself(strategy):
    network = TorchClassifier(
        hidden_layer_sizes=(16,),
        activation="relu",
        batch_size=32,
        max_epochs=20,
        random_state=0,
    )
    for seed in range(3):
        X, y, tasks, X_val, y_val = wine_with_noise(seed)
        attributor = KernelSurrogateAttributor(network, n_subsets=60, random_state=seed)
        for trusted in ({}, {"X_val": X_val, "y_val": y_val}):
            selector = TaskWeightSelector(
                attributor, n_tasks_to_select=4, strategy=strategy, random_state=seed
            ).fit(X, y, tasks=tasks, **trusted)
            assert_array_equal(selector.selected_tasks_, list("acdf"))


def test_imbalanced_learn_pipelines():
    X, y, tasks = data()
    selector = TaskWeightSelector(kernel(), n_tasks_to_select=6, random_state=0)
    X_kept, y_kept = selector.fit_resample(X, y, tasks=tasks)
    expected = LogisticRegression().fit(X_kept, y_kept)
    with sklearn.config_context(enable_metadata_routing=True):
        pipeline = make_imblearn_pipeline(
            clone(selector).set_fit_request(tasks=True), LogisticRegression()
        )
        pipeline.fit(X, y, tasks=tasks)
    assert_allclose(pipeline.predict_proba(X), expected.predict_proba(X), atol=1e-8)


def test_trusted_rows_are_routed():
    X, y, tasks = data()
    X_val, y_val = clean()
    trusted = {"X_val": X_val, "y_val": y_val}
    selector = TaskWeightSelector(kernel(), n_tasks_to_select=6, random_state=0)
    expected = selector.fit(X, y, tasks=tasks, **trusted).task_weights_
    with sklearn.config_context(enable_metadata_routing=True):
        asked = clone(selector).set_fit_request(tasks=True, X_val=True, y_val=True)
        sampling = make_imblearn_pipeline(asked, LogisticRegression())
        sampling.fit(X, y, tasks=tasks, **trusted)
        last = Pipeline(
            [("scale", StandardScaler()), ("select", clone(asked))],
            transform_input=["X_val"],
        )
        last.fit(3 * X + 1, y, tasks=tasks, X_val=3 * X_val + 1, y_val=y_val)
    assert_array_equal(sampling[0].task_weights_, expected)
    assert len(last[-1].attributors_) == 1
    assert not set(NOISY) & set(last[-1].selected_tasks_)


def test_the_scorer_finds_the_attributor():
    X, y, tasks = data()
    selector = TaskWeightSelector(kernel(n_retrainings=8), random_state=0)
    selector.fit(X, y, tasks=tasks)
    assert lds_scorer(selector, X[:20], y[:20]) == selector.attributor_.score(
        X[:20], y[:20]
    )


def test_fit_parameters_reach_the_attributor():
    X, y, tasks = data()
    weights = np.random.RandomState(0).uniform(0.5, 2, len(y))
    options = {"n_tasks_to_select": 4, "random_state": 0}
    selector = TaskWeightSelector(DualInfluence(net(), random_state=0), **options)
    plain = selector.fit(X, y, tasks=tasks).task_weights_
    weighted = selector.fit(X, y, tasks=tasks, sample_weight=weights)
    held = weighted.attributor_.estimator_.trajectory_.row_weights
    assert len(held) == 64
    assert np.isin(held.numpy(), weights).all()
    assert np.abs(weighted.task_weights_ - plain).max() > 1e-6
    expected = weighted.task_weights_
    with sklearn.config_context(enable_metadata_routing=True):
        routed = TaskWeightSelector(
            DualInfluence(
                net().set_fit_request(sample_weight=True), random_state=0
            ).set_fit_request(tasks=True),
            **options,
        )
        routed.fit(X, y, tasks=tasks, sample_weight=weights)
    assert_allclose(routed.task_weights_, expected)


def test_surrogates_are_fitted_twice_and_warn_once(monkeypatch, recwarn):
    X, y, tasks = data()
    fits = []
    fit = KernelSurrogate.fit

    def counted(self, *args):
        fits.append(1)
        return fit(self, *args)

    monkeypatch.setattr(KernelSurrogate, "fit", counted)
    attributor = kernel(outcome=lambda f, t: 0 * f[..., 0])
    selector = TaskWeightSelector(attributor, random_state=0).fit(X, y, tasks=tasks)
    assert len(fits) == 2 * 3
    assert len([w for w in recwarn if w.category is ConstantOutcomeWarning]) == 1
    held_out = X[:10], y[:10], np.eye(N_TASKS)
    predict = selector.attributor_._outcome_predictor(*held_out[:2])
    assert_array_equal(
        predict(held_out[2]), selector.attributor_.predict_outcomes(*held_out)
    )
    with pytest.raises(ValueError, match="n_units=8"):
        predict(np.ones((1, 3)))


@pytest.mark.parametrize(
    ("at", "own", "options", "expected"),
    [
        ("auto", "loo", {"n_tasks_to_select": 3}, "banzhaf"),
        ("auto", "shapley", {"n_tasks_to_select": 3}, "shapley"),
        ("auto", "loo", {"n_tasks_to_select": 3, "strategy": "greedy"}, "loo"),
        ("auto", "loo", {}, "loo"),
        ("loo", "shapley", {"n_tasks_to_select": 3}, "loo"),
        (0.7, "loo", {}, 0.7),
    ],
)
def test_tasks_are_judged_next_to_those_that_at_says(at, own, options, expected):
    X, y, tasks = data()
    attributor = kernel(at=own).set_params(n_subsets=10)
    selector = TaskWeightSelector(attributor, at=at, random_state=0, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FaithfulnessWarning)
        selector.fit(X, y, tasks=tasks)
    assert {fitted.at for fitted in selector.attributors_} == {expected}
    assert attributor.at == own


def test_at_needs_an_attributor_that_has_it():
    X, y, tasks = data()
    selector = TaskWeightSelector(DualInfluence(net()), at="loo")
    with pytest.raises(ValueError, match="DualInfluence has no parameter at"):
        selector.fit(X, y, tasks=tasks)


def test_tasks_that_do_not_arrive_are_pointed_out(recwarn):
    X, y, tasks = data(24)
    dual = DualInfluence(net(), removal="influence", random_state=0)
    selector = TaskWeightSelector(dual, n_tasks_to_select=0.5, random_state=0)
    with pytest.warns(UserWarning, match=r"every row is its own.*enable_metadata_rout"):
        make_imblearn_pipeline(selector, LogisticRegression()).fit(
            X, y, taskweightselector__tasks=tasks
        )
    recwarn.clear()
    selector.fit_resample(X, y, tasks=tasks)
    with sklearn.config_context(enable_metadata_routing=True):
        selector.fit_resample(X, y)
    assert not [w for w in recwarn if "its own task" in str(w.message)]


def test_memory_needs_a_seed_of_the_selector_or_the_attributor(tmp_path):
    X, y, tasks = data()
    unseeded = DualInfluence(net(), memory=tmp_path)
    with pytest.raises(
        ValueError, match="random_state and that of the selector are None"
    ):
        TaskWeightSelector(unseeded).fit(X, y, tasks=tasks)
    assert not list(tmp_path.iterdir())
    selector = TaskWeightSelector(unseeded, n_tasks_to_select=4, random_state=0)
    selector.fit(X, y, tasks=tasks)


@pytest.mark.touches_global_rng
def test_seeds_that_the_attributor_draws_are_its_own(tmp_path):
    X, y, tasks = data()
    seeded = DualInfluence(net().set_params(random_state=None), random_state=3)
    kept = {"X_val": X, "y_val": y}
    found = [
        TaskWeightSelector(seeded, n_tasks_to_select=4)
        .fit(X, y, tasks=tasks, **kept)
        .task_weights_
        for _ in range(2)
    ]
    assert_array_equal(*found)


# ---------------------------------------------------------------------- errors
def test_methods_that_do_not_apply_are_hidden():
    A = np.random.RandomState(0).randn(5, 3)
    columns = TaskWeightSelector().fit(A)
    assert not hasattr(columns, "fit_resample")
    tasks = TaskWeightSelector(kernel())
    for name in ("transform", "fit_transform", "inverse_transform"):
        assert not hasattr(tasks, name)
    with pytest.raises(AttributeError) as caught:
        tasks.transform(A)
    assert "fit_resample" in str(caught.value.__cause__)
    with pytest.raises(NotFittedError):
        TaskWeightSelector().get_support()


ERRORS = {
    "too many": ({"n_tasks_to_select": 9}, {}, "n_tasks_to_select=9, but there are 8"),
    "none": ({"n_tasks_to_select": 0}, {}, "'n_tasks_to_select' parameter"),
    "strategy": ({"strategy": "best"}, {}, "'strategy' parameter"),
    "no attributor": ({"attributor": LogisticRegression()}, {}, "'attributor' param"),
    "no y": ({}, {"y": None}, "the target y is None"),
    "half of the queries": ({}, {"X_val": np.zeros((2, 4))}, "given together"),
    "width of the queries": (
        {},
        {"X_val": np.zeros((2, 3)), "y_val": [0, 1]},
        "X_val: X has 3 features",
    ),
    "labels of the queries": (
        {},
        {"X_val": np.zeros((2, 4)), "y_val": [0, 7]},
        r"y_val has labels unseen in training: \[7\]. Leave out",
    ),
    "length of the queries": (
        {},
        {"X_val": np.zeros((2, 4)), "y_val": [0]},
        "X_val has 2 rows, but y_val has 1",
    ),
    "one fold": ({"cv": 1}, {}, "'cv' parameter"),
    "more rows than there are": (
        {"n_tasks_to_select": 97},
        {"tasks": None},
        "n_tasks_to_select=97, but there are 96",
    ),
    "tasks of another length": ({}, {"tasks": np.arange(5)}, "tasks has 5 labels"),
    "greedy without attributor": (
        {"attributor": None, "strategy": "greedy"},
        {"tasks": None},
        "strategy='greedy' needs attributor=",
    ),
    "tasks without attributor": ({"attributor": None}, {}, "need attributor="),
    "too many columns": (
        {"attributor": None, "n_tasks_to_select": 9},
        {"tasks": None},
        "there are 4 tasks",
    ),
}


@pytest.mark.parametrize(
    ("params", "given", "message"), ERRORS.values(), ids=list(ERRORS)
)
def test_bad_input(params, given, message, monkeypatch):
    X, y, tasks = data()
    monkeypatch.setattr(DualInfluence, "_fit", lambda *args: pytest.fail("was fitted"))
    selector = TaskWeightSelector(
        **{"attributor": DualInfluence(net()), "random_state": 0, **params}
    )
    with pytest.raises(ValueError, match=message):
        selector.fit(**{"X": X, "y": y, "tasks": tasks, **given})
    assert not hasattr(selector, "support_")


def test_tasks_of_one_row_are_rows_as_units():
    X, y, _ = data(24)
    selector = TaskWeightSelector(
        DualInfluence(net()), n_tasks_to_select=8, random_state=0
    )
    assert selector.fit(X, y, tasks=np.arange(24)).attributor_.n_units_ == 16


def test_one_row_per_task_cannot_be_split():
    X, y, _ = data(3)
    selector = TaskWeightSelector(kernel(), random_state=0)
    with pytest.raises(ValueError, match="n_samples=1: no rows can be held out"):
        selector.fit(X[:1], y[:1])
