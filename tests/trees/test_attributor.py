"""TreeInfluence: identities, and really retrained models."""

import pickle
import warnings
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.ensemble import (
    ExtraTreesRegressor,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skattrib import LinearSurrogateAttributor, TreeInfluence
from skattrib._posterior._gaussian import Halves, Knowledge, query_posterior
from skattrib.evaluation import SetOutcome, lds_score, make_weightings, retrain_outcomes
from skattrib.exceptions import FaithfulnessWarning, UnsupportedModelError
from skattrib.models._as_model import as_model

N, N_QUERIES = 120, 6


def rows(load):
    X, y = load(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(y))[: N + N_QUERIES]
    return (X[order][:N], y[order][:N]), (X[order][N:], y[order][N:])


SMALL = {"max_iter": 12, "min_samples_leaf": 5, "random_state": 0}
CASES = {
    "regression": (HistGradientBoostingRegressor(**SMALL), load_diabetes, {}),
    "two classes": (
        HistGradientBoostingClassifier(l2_regularization=1.0, **SMALL),
        load_breast_cancer,
        {},
    ),
    "three classes": (
        HistGradientBoostingClassifier(l2_regularization=1.0, **SMALL),
        load_iris,
        {"outcome": "margin"},
    ),
    "counts": (
        HistGradientBoostingRegressor(loss="poisson", **SMALL),
        lambda return_X_y: (load_iris().data[:, :3], load_iris().target + 1.0),
        {},
    ),
    "forest": (
        RandomForestClassifier(10, min_samples_leaf=2, random_state=0),
        load_breast_cancer,
        {"outcome": "probability"},
    ),
    "forest of a regression": (
        ExtraTreesRegressor(10, random_state=0),
        load_diabetes,
        {},
    ),
}


@cache
def fitted(name, **options):
    model, load, own = CASES[name]
    train, query = rows(load)
    options = {"n_halves": 0, "n_structures": 4, "random_state": 0, **own, **options}
    return TreeInfluence(model, **options).fit(*train), train, query


def differences(influence, query, at, eps=1e-5):
    """Finite differences of predicted outcomes around equal weights of all units."""
    n = influence.n_units_
    around = np.full((n, n), at)
    outcomes = [
        influence.predict_outcomes(*query, around + sign * eps * np.eye(n))
        for sign in (1, -1)
    ]
    return (outcomes[0] - outcomes[1]).T / (2 * eps)


# --------------------------------------------------------------------- identities
@pytest.mark.parametrize("name", CASES)
def test_attributions_are_derivatives_of_predicted_outcomes(name):
    influence, _, query = fitted(name)
    found, expected = influence.attribute(*query), differences(influence, query, 0.5)
    assert_allclose(found, expected, atol=1e-7 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["regression", "two classes"])
def test_one_structure_at_full_weight_is_the_model_itself(name):
    leaf, train, query = fitted(name, inclusion=1, n_structures=1, removal="derivative")
    model = as_model(leaf.estimator_)
    own = model.outcomes(*query, "auto") if hasattr(model, "outcomes") else None
    assert own is None
    refitted, _, _ = fitted(name, inclusion=1, n_structures=1)
    frozen = TreeInfluence(FrozenEstimator(leaf.estimator_), random_state=0)
    frozen.fit(*train)
    assert_allclose(frozen.attribute(*query), leaf.attribute(*query), rtol=1e-10)
    expected = differences(refitted, query, 1.0)
    assert_allclose(
        leaf.attribute(*query), expected, atol=1e-7 * np.abs(expected).max()
    )
    # with all rows, the outcomes of the model
    present = np.ones((1, N))
    truth = retrain_outcomes(CASES[name][0], *train, present, *query)
    for one in (leaf, refitted, frozen):
        assert_allclose(one.predict_outcomes(*query, present), truth, rtol=1e-5)


def test_tasks_are_sums_of_their_rows():
    model, load, _ = CASES["regression"]
    train, query = rows(load)
    model = FrozenEstimator(model.fit(*train))
    tasks = np.arange(N) % 7
    of_rows = TreeInfluence(model, random_state=0).fit(*train).attribute(*query)
    of_tasks = TreeInfluence(model, random_state=0).fit(*train, tasks=tasks)
    sums = np.stack(
        [of_rows[:, tasks == task].sum(axis=1) for task in range(7)], axis=1
    )
    assert_allclose(of_tasks.attribute(*query), sums, atol=1e-10 * np.abs(sums).max())


def test_weights_of_rows_are_those_of_training():
    model, load, _ = CASES["two classes"]
    (X, y), query = rows(load)
    weights = 0.5 + np.random.RandomState(0).rand(N)
    model = model.fit(X, y, sample_weight=weights)
    influence = TreeInfluence(FrozenEstimator(model), random_state=0)
    influence.fit(X, y, sample_weight=weights)
    found, expected = influence.attribute(*query), differences(influence, query, 1.0)
    assert_allclose(found, expected, atol=1e-7 * np.abs(expected).max())
    with pytest.warns(FaithfulnessWarning, match="other rows or weights") as found:
        TreeInfluence(FrozenEstimator(model), random_state=0).fit(X, y)
    assert found[0].filename == __file__


def test_a_set_outcome_is_attributed_as_one_number():
    mean = SetOutcome(lambda outputs, targets: outputs[..., 0].mean(-1))
    influence, _, query = fitted("regression", outcome=mean)
    found, expected = influence.attribute(*query), differences(influence, query, 0.5)
    assert found.shape == (1, N)
    assert_allclose(found, expected, atol=1e-7 * np.abs(expected).max())


def test_queries_do_not_depend_on_each_other_nor_numbers_on_a_pickle():
    influence, train, query = fitted("two classes", n_halves=16)
    whole, std = influence.attribute(*query, return_std=True)
    some = query[0][[4, 1]], query[1][[4, 1]]
    assert_allclose(influence.attribute(*some), whole[[4, 1]], rtol=1e-10)
    again = pickle.loads(pickle.dumps(influence))
    assert_allclose(again.attribute(*query, return_std=True)[1], std, rtol=1e-10)
    model = CASES["two classes"][0]
    same = TreeInfluence(model, n_structures=4, n_halves=16, random_state=0).fit(*train)
    assert_array_equal(same.attribute(*query), whole)


def test_halves_beside_sums_of_attributions_are_the_posterior_of_these():
    rng = np.random.RandomState(0)
    present = make_weightings(20, 40, kind="antithetic", random_state=0)
    a, errors = rng.randn(20), 0.1 + rng.rand(20)
    outcomes = present @ (1.5 * a + rng.randn(20)) + 0.3 * rng.randn(40)
    rows = a, errors, Halves(present.astype(bool)), outcomes, Knowledge()
    plain = query_posterior(*rows, whole=3.0)
    sums = np.append(present @ a, a.sum())
    beside = query_posterior(*rows, whole=3.0, beside=sums)
    new = make_weightings(20, 6, random_state=1)
    assert_allclose(
        beside.predicted(new, new @ a), plain.predicted(new), rtol=1e-10, atol=1e-12
    )
    # with all units, what was learnt of them
    every = np.ones((1, 20))
    assert_allclose(beside.outcomes(every, every @ a), [3.0], rtol=1e-10)


def test_predictions_that_halves_were_not_compared_with_are_not_used():
    rng = np.random.RandomState(0)
    present = make_weightings(20, 40, kind="antithetic", random_state=0)
    a, outcomes = rng.randn(20), rng.randn(40)
    rows = a, None, Halves(present.astype(bool)), outcomes, Knowledge()
    bad = np.append(present @ a, a.sum())
    bad[3] = np.inf
    plain, found = query_posterior(*rows), query_posterior(*rows, beside=bad)
    new = make_weightings(20, 6, random_state=1)
    assert_array_equal(found.outcomes(new, new @ a), plain.outcomes(new))
    half = found.differences(new - 0.5, new @ a)[0]
    assert_array_equal(half, plain.differences(new - 0.5)[0])
    # an outcome of all units that is the mean of halves is met, too
    whole = outcomes.reshape(-1, 2).mean(axis=1).mean()
    beside = np.append(present @ a, a.sum() + 1)
    found = query_posterior(*rows, whole=whole, beside=beside)
    assert_allclose(found.outcomes(np.ones((1, 20)), beside[-1:]), [whole])
    # weights above 1 are extrapolated: no less is open than where all are there
    deviations = found.predicted(np.outer([1.0, 1.5, 2.0], np.ones(20)), 0.0)[1]
    assert (np.diff(deviations) > 0).all()


# ------------------------------------------------------------- really retrained
@pytest.mark.parametrize(
    ("name", "least"),
    [("regression", 0.5), ("forest of a regression", 0.5), ("two classes", 0.5)],
)
def test_retrained_outcomes_are_ranked(name, least):
    model, _, own = CASES[name]
    influence, train, query = fitted(name, n_structures=8)
    halves = make_weightings(N, 40, kind="antithetic", random_state=1)
    outcome = own.get("outcome", "auto")
    truth = retrain_outcomes(model, *train, halves, *query, outcome=outcome)
    by_refits = lds_score(truth, influence.predict_outcomes(*query, halves))
    assert by_refits > least
    assert lds_score(truth, halves @ influence.attribute(*query).T) > least - 0.05
    linear, _, _ = fitted(name, n_structures=8, removal="derivative")
    predicted = linear.predict_outcomes(*query, halves)
    sums = halves @ influence.attribute(*query).T
    assert_allclose(np.ptp(predicted - sums, axis=0), 0, atol=1e-8)
    corrected, _, _ = fitted(name, n_structures=8, n_halves=32)
    found, std = corrected.predict_outcomes(*query, halves, return_std=True)
    assert lds_score(truth, found) > by_refits - 0.02
    covered = np.abs(found - truth) <= 1.96 * std
    assert covered.mean() > 0.85


def test_score_and_diagnosis_say_how_far_to_trust():
    influence, _, query = fitted("regression", n_structures=8, n_halves=32)
    assert influence.score(*query) > 0.3
    report = influence.diagnose(*query)
    assert 0 < report.agreement <= 1
    assert 0.3 < report.slope < 5
    assert report.explained < 1
    assert 0.7 < report.coverage <= 1
    assert "two halves of the structures agree" in report.verdict
    alone, _, _ = fitted("regression", inclusion=1, n_structures=1)
    report = alone.diagnose(*query)
    assert report.agreement is report.slope is report.coverage is None
    assert "chaos" in report.verdict
    assert "tasks=" in report.verdict
    forest, _, query = fitted("forest", outcome="auto")
    assert "outcome='probability'" in forest.diagnose(*query).verdict


def test_the_same_queries_cost_one_sweep(monkeypatch):
    influence, _, query = fitted("counts", n_structures=8)
    swept = []
    sweep = TreeInfluence._swept
    monkeypatch.setattr(
        TreeInfluence, "_swept", lambda *args: swept.append(1) or sweep(*args)
    )
    first = influence.attribute(*query)
    influence.diagnose(*query)
    assert_array_equal(influence.attribute(*query), first)
    assert len(swept) == 1
    influence.attribute(query[0], query[1] + 1)
    assert len(swept) == 2


def test_it_is_the_prior_of_a_surrogate():
    model, load, _ = CASES["regression"]
    train, query = rows(load)
    prior = TreeInfluence(n_structures=4)
    surrogate = LinearSurrogateAttributor(
        model, at="banzhaf", prior=prior, n_subsets=32, random_state=0
    )
    found = surrogate.fit(*train).attribute(*query)
    alone, _, _ = fitted("regression")
    agreement = [
        np.corrcoef(*pair)[0, 1]
        for pair in zip(found, alone.attribute(*query), strict=True)
    ]
    assert np.mean(agreement) > 0.5


# ------------------------------------------------------------------- what is given
def test_tables_with_categories_and_gaps_are_passed_on():
    (X, y), (X_query, y_query) = rows(load_diabetes)

    def table(X):
        frame = pd.DataFrame(X[:, :4], columns=list("abcd"))
        frame["e"] = pd.Categorical(np.where(X[:, 4] > 0, "high", "low"))
        frame.loc[::7, "a"] = np.nan
        return frame

    model = HistGradientBoostingRegressor(categorical_features="from_dtype", **SMALL)
    influence = TreeInfluence(model, n_structures=4, n_halves=0, random_state=0)
    influence.fit(table(X), y)
    query = table(X_query), y_query
    expected = differences(influence, query, 0.5)
    assert_allclose(
        influence.attribute(*query), expected, atol=1e-7 * np.abs(expected).max()
    )
    unknown = table(X_query)
    unknown["e"] = unknown["e"].cat.rename_categories({"low": "lowest"})
    with pytest.raises(ValueError, match=r"column 'e'.*'lowest'.*set them to NaN"):
        influence.attribute(unknown, y_query)


def test_gaps_in_arrays_are_passed_on_as_those_in_tables():
    (X, y), (X_query, y_query) = rows(load_diabetes)
    X, X_query = X[:, :4].copy(), X_query[:, :4].copy()
    X[::7, 0] = X_query[0, 0] = np.nan
    options = {"n_structures": 2, "n_halves": 0, "random_state": 0}
    found = TreeInfluence(CASES["regression"][0], **options).fit(X, y)
    names = list("abcd")
    table = TreeInfluence(CASES["regression"][0], **options)
    table.fit(pd.DataFrame(X, columns=names), y)
    assert_array_equal(
        found.attribute(X_query, y_query),
        table.attribute(pd.DataFrame(X_query, columns=names), y_query),
    )
    X[3, 0] = np.inf
    with pytest.raises(ValueError, match="infinity"):
        found.fit(X, y)


def test_class_weights_of_histograms_are_by_code():
    X, y = rows(load_breast_cancer)[0]
    labels = np.array([1, 2])[y]
    model = HistGradientBoostingClassifier(class_weight={0: 1.0, 1: 4.0}, **SMALL)
    structure = as_model(model.fit(X, labels)).ensemble(X, labels, *np.ones((2, N)))
    weights = structure.weighting(torch.ones((1, N), dtype=torch.float64))[0]
    assert_array_equal(weights, np.where(y == 1, 4.0, 1.0))


@pytest.mark.filterwarnings("ignore:Do not trust:UserWarning")
def test_parameters_set_after_fit():
    influence, _, query = fitted("two classes", n_structures=2)
    present = np.ones((1, N))
    expected = influence.predict_outcomes(*query, present)
    later = pickle.loads(pickle.dumps(influence))
    later.set_params(removal="derivative", inclusion=1, n_halves=64)
    assert_array_equal(later.predict_outcomes(*query, present), expected)
    # slopes are drawn to those of the outcome that is asked for
    later.set_params(outcome="probability")
    other, _, _ = fitted("two classes", n_structures=2, outcome="probability")
    assert_allclose(later.attribute(*query), other.attribute(*query), rtol=1e-10)
    assert -1 <= influence.diagnose(*query).agreement <= 1


def test_a_frozen_forest_of_other_rows():
    X, y = rows(load_diabetes)[0]
    forest = FrozenEstimator(ExtraTreesRegressor(3, bootstrap=True, random_state=0))
    forest.estimator.fit(X[:100], y[:100])
    with pytest.warns(FaithfulnessWarning, match="on 100 rows, and X has 120.*Pass"):
        TreeInfluence(forest, random_state=0).fit(X, y)


@pytest.mark.parametrize("boosted", [False, True])
def test_frozen_trees_of_samples_are_compared_as_far_as_they_can_be(boosted):
    model = RandomForestClassifier(30, random_state=0)
    if boosted:
        library = pytest.importorskip("xgboost")
        model = library.XGBClassifier(n_estimators=30, subsample=0.7, random_state=0)
    (X, y), _ = rows(load_breast_cancer)
    frozen = FrozenEstimator(model.fit(X, y))
    with warnings.catch_warnings():
        warnings.simplefilter("error", FaithfulnessWarning)
        TreeInfluence(frozen, random_state=0).fit(X, y)
    with pytest.warns(FaithfulnessWarning, match="other rows or weights"):
        TreeInfluence(frozen, random_state=0).fit(X, 1 - y)


def test_pipelines_and_no_estimator():
    (X, y), query = rows(load_breast_cancer)
    names = np.array(["benign", "malign"])
    options = {"n_structures": 2, "n_halves": 0, "random_state": 0}
    pipeline = make_pipeline(StandardScaler(), CASES["two classes"][0])
    found = TreeInfluence(pipeline, **options).fit(X, names[y])
    expected = differences(found, (query[0], names[query[1]]), 0.5)
    assert_allclose(
        found.attribute(query[0], names[query[1]]),
        expected,
        atol=1e-7 * np.abs(expected).max(),
    )
    default = TreeInfluence(**options).fit(X, y)
    assert isinstance(default.estimator_, HistGradientBoostingClassifier)


def test_few_tasks_and_halves_without_a_class():
    (X, y), query = rows(load_iris)
    tasks = np.arange(N) % 3
    options = {"n_halves": 0, "random_state": 0}
    found = TreeInfluence(CASES["three classes"][0], **options).fit(X, y, tasks=tasks)
    assert found.attribute(*query).shape == (N_QUERIES, 3)
    with pytest.warns(FaithfulnessWarning, match="without some classes"):
        found = TreeInfluence(CASES["three classes"][0], **options).fit(
            X, y, tasks=np.where(y == 2, 9, np.arange(N) % 5)
        )
    assert 0 < len(found.weights_) < 16
    assert np.isfinite(found.attribute(*query)).all()
    # trees of a forest have means of all rows
    forest = RandomForestClassifier(5, random_state=0)
    found = TreeInfluence(forest, outcome="probability", **options)
    found.fit(X, y, tasks=np.where(y == 2, 9, np.arange(N) % 5))
    assert len(found.weights_) == 16


def test_nothing_left_is_predicted_as_something_finite():
    for name in ("two classes", "forest"):
        influence, _, query = fitted(name)
        assert np.isfinite(influence.predict_outcomes(*query, np.zeros((1, N)))).all()


# ---------------------------------------------------------------------- refusals
def fit_with(model=None, **params):
    (X, y), _ = rows(load_diabetes)
    model = CASES["regression"][0] if model is None else model
    return TreeInfluence(model, random_state=0, **params).fit(X, y)


def test_a_model_without_splits_is_its_own_refit(recwarn):
    X, y = load_diabetes(return_X_y=True)
    few = X[:12], 1e6 + y[:12]  # less than two leaves take
    frozen = FrozenEstimator(
        HistGradientBoostingRegressor(max_iter=3, random_state=0).fit(*few)
    )
    influence = TreeInfluence(frozen, random_state=0).fit(*few)
    (found,) = [w for w in recwarn if w.category is FaithfulnessWarning]
    assert "100% of the units has a split" in str(found.message)
    assert np.ptp(influence.estimator_.predict(X[:12])) == 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fit_with(n_structures=5), ValueError, "n_structures=5.*even.*Use 6"),
        (
            lambda: fit_with(inclusion=1, n_halves=16),
            ValueError,
            "n_halves=16.*inclusion=1.*n_halves=0.*loo_intervals",
        ),
        (
            lambda: fit_with(
                FrozenEstimator(CASES["regression"][0].fit(*rows(load_diabetes)[0])),
                inclusion=0.5,
            ),
            ValueError,
            "inclusion=0.5.*FrozenEstimator.*Use inclusion=1",
        ),
        (
            lambda: fit_with(
                FrozenEstimator(CASES["regression"][0].fit(*rows(load_diabetes)[0])),
                n_halves=16,
            ),
            ValueError,
            "n_halves=16.*FrozenEstimator is not. Use n_halves=0, or the estimator",
        ),
        (
            lambda: TreeInfluence(random_state=0).fit(np.eye(7), np.arange(7.0)),
            ValueError,
            "X has 7 rows, and trees take at least 8.*KernelSurrogateAttributor",
        ),
        (
            lambda: fit_with(HistGradientBoostingRegressor(loss="absolute_error")),
            UnsupportedModelError,
            "absolute_error.*KernelSurrogateAttributor",
        ),
        (
            lambda: fit_with(GradientBoostingRegressor()),
            UnsupportedModelError,
            "GradientBoostingRegressor.*Use HistGradientBoostingRegressor",
        ),
        (
            lambda: fit_with(LogisticRegression()),
            UnsupportedModelError,
            "needs an ensemble of trees.*got LogisticRegression.*DualInfluence",
        ),
        (lambda: fit_with(removal="newton"), ValueError, "removal"),
        (
            lambda: TreeInfluence(CASES["regression"][0], random_state=0).fit(
                *rows(load_diabetes)[0],
                tasks=np.arange(N) % 5,
                sample_weight=np.arange(N) % 5 == 0,
            ),
            ValueError,
            "sample_weight is 0 in all rows of 8 of the 16 subsets.*Leave rows",
        ),
    ],
)
def test_refusals_name_the_cure(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_boosters_that_stop_early_and_bare_ones():
    lightgbm = pytest.importorskip("lightgbm")
    (X, y), _ = rows(load_breast_cancer)
    stopped = lightgbm.LGBMClassifier(n_estimators=5, verbosity=-1, early_stopping=2)
    with pytest.raises(
        ValueError, match=r"early_stopping_rounds=None.*FrozenEstimator"
    ):
        TreeInfluence(stopped, random_state=0).fit(X, y)
    bare = lightgbm.LGBMClassifier(n_estimators=2, verbosity=-1).fit(X, y).booster_
    with pytest.raises(ValueError, match=r"lightgbm.basic.Booster.*LGBMClassifier"):
        TreeInfluence(bare, random_state=0).fit(X, y)
    with pytest.raises(ValueError, match=r"one class 1.*Pass rows of another"):
        TreeInfluence(stopped.set_params(early_stopping=None), random_state=0).fit(
            X, np.ones_like(y)
        )
