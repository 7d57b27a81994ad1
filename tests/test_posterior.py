"""The posterior of attributions, given models really retrained on halves."""

import pickle
import re
import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import t as student
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import load_wine, make_classification
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import scale
from torch import nn

from skattrib import (
    AdamWInfluence,
    DualInfluence,
    KernelSurrogateAttributor,
    LinearSurrogateAttributor,
    RISEValuator,
    TorchClassifier,
    TorchRegressor,
    plan,
)
from skattrib._posterior._checks import additive_share, held_out_figures
from skattrib._posterior._gaussian import (
    Halves,
    Knowledge,
    half_width,
    mean_share,
    posterior,
    query_posterior,
    share_likelihood,
    share_prior,
)
from skattrib._posterior._halves import automatic_halves, count_halves, draw_halves
from skattrib.evaluation import (
    loo_intervals,
    make_weightings,
    retrain_outcomes,
    soft_auroc,
)
from skattrib.exceptions import FaithfulnessWarning, UnsupportedModelError
from skattrib.extension import BaseAttributor
from skattrib.plotting import CalibrationDisplay


# ------------------------------------------------------------------ the formulas
def drawn(n_pairs=20, n=30, n_queries=3, seed=0, classes=None):
    rng = np.random.RandomState(seed)
    halves = draw_halves(n, 2 * n_pairs, seed)
    truth = rng.standard_t(4, (n_queries, n))
    truth -= truth.mean(axis=1, keepdims=True)
    attributions = 0.8 * truth + 0.5 * rng.randn(n_queries, n)
    errors = 0.3 + np.abs(attributions)
    outcomes = halves @ truth.T + rng.randn(2 * n_pairs, n_queries)
    return attributions, errors, Halves(halves, classes), outcomes, truth, halves


@pytest.mark.parametrize("classes", [None, np.arange(30) % 4])
@pytest.mark.parametrize("has_errors", [True, False])
def test_posterior_is_that_of_a_gaussian(classes, has_errors):
    a, errors, halves, F, _, present = drawn(classes=classes)
    errors = errors if has_errors else None
    knowledge = Knowledge((0.9, 0.35), (1.7, 0.7), 0.6)
    found = query_posterior(
        a[0], None if errors is None else errors[0], halves, F[:, 0], knowledge
    )
    # by conditioning on all differences, with matrices of all units
    Z = present[::2] - 0.5
    r = (F[::2, 0] - F[1::2, 0]) / 2 - found.slope * Z @ (a[0] - a[0].mean())
    assert_allclose(found.residuals, r, atol=1e-12)
    b = a[0] - a[0].mean()
    spread = np.ones(30) if errors is None else errors[0] / errors[0].mean()
    profile = 0.8 * spread + 0.2 * b**2 / np.mean(b**2)
    prior = np.diag(profile)
    if classes is not None:
        prior = 0.95 * prior + 0.05 * (classes[:, None] == classes)
    prior *= 4 / 30 * 0.6 * found.variance
    noise = 0.4 * found.variance * np.eye(20)
    gain = prior @ Z.T @ np.linalg.inv(Z @ prior @ Z.T + noise)
    mean = found.slope * b + gain @ r
    left = prior - gain @ Z @ prior
    assert_allclose(found.mean, mean - mean.mean(), atol=1e-10)
    assert_allclose(found.std, np.sqrt(np.diag(left)), atol=1e-10)
    # and what is predicted of other halves
    asked = draw_halves(30, 6, 1).astype(float)
    predicted, std = found.predicted(asked)
    z = asked - 0.5
    assert_allclose(predicted, F[:, 0].mean() + z @ found.mean, atol=1e-10)
    assert_allclose(found.outcomes(asked), predicted, atol=1e-12)
    even = np.var((F[::2, 0] + F[1::2, 0]) / 2, ddof=1)
    variance = np.diag(z @ left @ z.T) + 0.4 * found.variance + even * (1 + 1 / 20)
    assert_allclose(std, np.sqrt(variance), atol=1e-10)


def test_other_sizes_are_predicted_by_shares():
    a, errors, halves, F, *_ = drawn()
    rows = a[0], errors[0], halves, F[:, 0], Knowledge()
    found = query_posterior(*rows, whole=7.0)
    every, few = np.ones((1, 30)), np.zeros((1, 30))
    few[0, :6] = 1
    outcome, std = found.predicted(every)
    assert outcome[0] == pytest.approx(7.0)
    assert std[0] == pytest.approx(np.sqrt(found.even / found.n_pairs))
    # six of thirty have shares of 1/6, as if 2.5 of them were in a half
    expected = found.middle + 2.5 * found.mean[:6].sum()
    expected += (7.0 - found.middle) * np.log2(0.4)
    outcome, std_of_few = found.predicted(few)
    assert outcome[0] == pytest.approx(expected)
    without_one = every.copy()
    without_one[0, 3] = 0
    half = np.r_[np.ones(15), np.zeros(15)][None]
    stds = [found.predicted(w)[1][0] for w in (every, without_one, half, few)]
    assert (np.diff(stds) > 0).all()
    # what is not known of the whole changes nothing
    plain = query_posterior(*rows)
    assert plain.growth == 0
    assert plain.predicted(every)[0][0] == pytest.approx(plain.middle)
    assert found.predicted(np.zeros((1, 30)))[1][0] > std_of_few[0]


def test_slope_and_level_are_drawn_to_what_is_known():
    a, errors, halves, F, _, present = drawn(n_pairs=200)
    row = a[0], errors[0], halves, F[:, 0]
    x = (present[::2] - 0.5) @ (a[0] - a[0].mean())
    d = (F[::2, 0] - F[1::2, 0]) / 2
    own = query_posterior(*row, Knowledge(slope=(1.0, 1e6)))
    assert own.slope == pytest.approx(x @ d / (x @ x))
    assert own.variance == pytest.approx(np.var(d - own.slope * x), rel=0.03)
    fixed = query_posterior(*row, Knowledge((1.3, 1e-6), (1.7, 1e-4)))
    assert fixed.slope == pytest.approx(1.3)
    assert fixed.variance == pytest.approx(1.7 * (errors[0] ** 2).sum() / 4, rel=1e-3)


def test_many_halves_are_least_squares():
    a, errors, halves, F, truth, present = drawn(n_pairs=500)
    Z, D = present[::2] - 0.5, (F[::2] - F[1::2]) / 2
    found = posterior(np.zeros_like(a), None, halves, F, Knowledge(share=0.975))
    plain = np.linalg.lstsq(Z, D, rcond=None)[0].T
    assert_allclose(found.mean, plain, atol=0.05)
    few = posterior(a, errors, *drawn()[2:4], Knowledge())
    assert np.square(few.mean - truth).mean() < np.square(a - truth).mean()
    assert few.std.mean() > 1.3 * found.std.mean()


def test_intervals_are_those_of_students_t():
    assert half_width(np.array(1.0)) == pytest.approx(1.963, abs=1e-3)
    draws = student(4).rvs(10000, random_state=0) / student(4).std()
    for level in (0.68, 0.9, 0.99):
        inside = np.abs(draws) < half_width(np.array(1.0), level)
        assert inside.mean() == pytest.approx(level, abs=0.01)


def test_what_is_known_of_a_query_does_not_depend_on_others():
    a, errors, halves, F, *_ = drawn(n_queries=5)
    order = [3, 1]
    all_of_them = posterior(a, errors, halves, F, Knowledge())
    two = posterior(a[order], errors[order], halves, F[:, order], Knowledge())
    assert_allclose(two.mean, all_of_them.mean[order], atol=1e-12)
    assert_allclose(two.std, all_of_them.std[order], atol=1e-12)


def test_outcomes_that_are_not_finite_go_with_their_complement():
    a, errors, halves, F, _, present = drawn()
    F[6, 0] = np.nan
    found = query_posterior(a[0], errors[0], halves, F[:, 0], Knowledge())
    kept = np.delete(np.arange(40), [6, 7])
    rest = query_posterior(
        a[0], errors[0], Halves(present[kept]), F[kept, 0], Knowledge()
    )
    assert found.n_pairs == 19
    assert_allclose(found.mean, rest.mean, atol=1e-12)
    assert_allclose(found.std, rest.std, atol=1e-12)
    nothing = query_posterior(a[0], None, halves, np.full(40, np.nan), Knowledge())
    assert nothing is None
    # attributions that are not: the halves alone
    only = query_posterior(np.full(30, np.nan), None, halves, F[:, 1], Knowledge())
    zero = query_posterior(np.zeros(30), None, halves, F[:, 1], Knowledge())
    assert_array_equal(only.mean, zero.mean)


def test_attributions_that_halves_contradict_are_not_used():
    _, _, halves, F, truth, _ = drawn(n_pairs=200)
    found = query_posterior(-truth[0], None, halves, F[:, 0], Knowledge())
    assert found.slope < 0
    zero = query_posterior(np.zeros(30), None, halves, F[:, 0], Knowledge())
    assert_allclose(found.mean, zero.mean, atol=1e-12)
    assert np.corrcoef(found.mean, truth[0])[0, 1] > 0.9


def test_figures_of_held_out_halves():
    a, errors, halves, F, truth, present = drawn(n_pairs=100, n_queries=6)
    rows = a, errors, halves, F, Knowledge()
    found = held_out_figures(*rows)
    assert found.calibration_slope == pytest.approx(1, abs=0.15)
    assert 0.9 < found.coverage < 0.99
    assert found.lds > 0.6
    assert found.prior_slope == pytest.approx(
        np.median(posterior(a, errors, halves, F, Knowledge()).slope), abs=0.1
    )
    # outcomes are additive, up to noise that no unit has a part in
    noisy = additive_share(a, errors, halves, F, Knowledge())
    exact = present @ truth.T
    assert additive_share(a, errors, halves, exact, Knowledge()) > max(0.9, noisy)


# ------------------------------------------------------------------ how many, which
def test_number_of_halves():
    assert count_halves(6) == 20
    assert count_halves(7) == 70
    assert automatic_halves(100, 256) == 256
    assert automatic_halves(100, 16) == 64
    assert automatic_halves(100, 5000) == 1024
    assert automatic_halves(7, 256) == 34  # half of them
    assert automatic_halves(6, 256) == 0  # fewer than 8 pairs
    with config_context(working_memory=1):
        assert automatic_halves(100, 256, n_bytes=2**20 / 30) == 30
        assert automatic_halves(100, 256, n_bytes=2**20) == 0
    first, more = draw_halves(20, 16, 3), draw_halves(20, 40, 3)
    assert_array_equal(first, more[:16])
    assert_array_equal(first[::2], ~first[1::2])


@pytest.mark.parametrize(
    ("options", "n_runs", "n_halves"),
    [
        ({"n_halves": "auto"}, 16, 512),
        ({"n_halves": "auto", "n_trajectories": 2}, 2, 64),
        ({"n_halves": 0}, 16, 0),
        ({"n_halves": 64}, 16, 64),
        ({"n_halves": "auto", "n_trajectories": 40}, 40, 1024),
        ({"n_halves": "auto", "inclusion": 0.7}, 16, 0),
    ],
)
def test_numbers_of_runs_and_halves(options, n_runs, n_halves):
    X, y, *_ = wine(30)
    one = AdamWInfluence(net(max_epochs=1), n_retrainings=8, random_state=0, **options)
    one.fit(X, y)
    assert len(one.weights_) == n_runs
    assert one.n_halves_ == n_halves


# ------------------------------------------------------------- real retraining
def wine(n=60):
    X, y = load_wine(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(y))
    X, y = scale(X)[order], y[order]
    return X[:n], y[:n], X[n : n + 12], y[n : n + 12]


def net(**options):
    defaults = {"hidden_layer_sizes": (6,), "max_epochs": 8, "random_state": 0}
    return TorchClassifier(**{**defaults, "batch_size": 20, **options})


def make(n_halves=64, estimator=None, **options):
    defaults = {"n_trajectories": 4, "outcome": "margin", "random_state": 0}
    estimator = net(learning_rate=0.02) if estimator is None else estimator
    return AdamWInfluence(
        estimator, n_halves=n_halves, n_retrainings=8, **{**defaults, **options}
    )


@pytest.fixture(scope="module")
def fitted():
    X, y, *_ = wine()
    return make().fit(X, y), make(0).fit(X, y)


@pytest.fixture(scope="module")
def linear_effects():
    """Effects of rows when half of the others are there, by 1,600 retrainings."""
    X, y, Xq, yq = wine()
    W = draw_halves(len(y), 1600, 99).astype(float)
    F = retrain_outcomes(net(learning_rate=0.02), X, y, W, Xq, yq, outcome="margin")
    Z, D = W[::2] - 0.5, (F[::2] - F[1::2]) / 2
    gram = np.linalg.pinv(Z.T @ Z)
    effects = (gram @ Z.T @ D).T
    noise = np.square(D - Z @ effects.T).sum(axis=0) / (len(Z) - Z.shape[1] + 1)
    return effects, np.sqrt(np.outer(noise, np.diag(gram)))


def test_intervals_hold_where_those_of_the_runs_do_not(fitted, linear_effects):
    _, _, Xq, yq = wine()
    truth, noise = linear_effects
    after, before = fitted
    assert after.n_halves_ == 64
    assert after.halves_.shape == (64, 60)
    shares, errors = [], []
    for one in (after, before):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FaithfulnessWarning)
            a, std = one.attribute(Xq, yq, return_std=True)
        a = a - a.mean(axis=1, keepdims=True)
        shares.append((np.abs(a - truth) < 1.96 * np.hypot(std, noise)).mean())
        errors.append(np.square(a - truth).mean())
    assert 0.9 < shares[0] < 0.99
    assert shares[1] < 0.85
    assert errors[0] < errors[1]
    slope = (a * truth).sum() / np.square(a).sum()
    a = after.attribute(Xq, yq)
    assert (a * truth).sum() / np.square(a).sum() == pytest.approx(1, abs=0.1)
    assert slope == pytest.approx(1, abs=0.5)  # of the runs alone


def test_subsets_are_predicted_within_their_intervals(fitted):
    X, y, Xq, yq = wine()
    W = make_weightings(len(y), 80, random_state=7)
    F = retrain_outcomes(net(learning_rate=0.02), X, y, W, Xq, yq, outcome="margin")
    predicted, std = fitted[0].predict_outcomes(Xq, yq, W, return_std=True)
    assert 0.9 < (np.abs(F - predicted) < 1.96 * std).mean() < 0.99
    assert_array_equal(predicted, fitted[0].predict_outcomes(Xq, yq, W))
    slope = fitted[0].attribute(Xq, yq)
    gap = predicted[1:] - predicted[:1]
    assert_allclose(gap, (W[1:] - W[:1]) @ slope.T, atol=1e-6)


def test_smaller_subsets_are_predicted_too(fitted):
    X, y, Xq, yq = wine()
    W = draw_halves(len(y), 60, 11).astype(float)
    rng = np.random.RandomState(0)
    for w in W:
        w[rng.permutation(np.flatnonzero(w))[:8]] = 0
    W = np.vstack([W, np.ones(60)])
    F = retrain_outcomes(net(learning_rate=0.02), X, y, W, Xq, yq, outcome="margin")
    predicted, std = fitted[0].predict_outcomes(Xq, yq, W, return_std=True)
    assert_allclose(predicted[-1], F[-1], atol=1e-8)
    inside = np.abs(F - predicted)[:-1] < 1.96 * std[:-1]
    assert 0.9 < inside.mean() < 0.99
    # what fewer rows teach is seen: nothing is too high or too low on the whole
    linear = fitted[0]._half_outcomes(Xq, yq, "margin")[0].mean(axis=0)
    linear = linear + (W - 0.5) @ fitted[0].attribute(Xq, yq).T
    errors = [np.square(F - found)[:-1].mean() for found in (predicted, linear)]
    assert errors[0] < errors[1]


def test_figures_of_diagnose_are_of_held_out_halves(fitted):
    _, _, Xq, yq = wine()
    found = fitted[0].diagnose(Xq, yq)
    assert found.calibration_slope == pytest.approx(1, abs=0.15)
    assert 0.9 < found.coverage < 0.99
    assert found.lds > 0.6
    assert found.prior_slope > 0
    assert found.trustworthy
    bare = fitted[1]._held_out(Xq, yq, "margin")
    for name in ("calibration_slope", "lds", "coverage", "prior_slope", "share"):
        assert bare[name] is None


def test_without_halves_nothing_changes(fitted):
    _, _, Xq, yq = wine()
    after, before = fitted
    outcome = after._checked_outcome("margin")
    assert_array_equal(after._attribute(Xq, yq, outcome)[0], before.attribute(Xq, yq))
    assert_array_equal(after.weights_, before.weights_)
    assert before.n_halves_ == 0
    assert not hasattr(before, "halves_")
    assert "derivative" in before.estimand_
    assert after.estimand_ == (
        "mean effect of this unit on the outcome, others present half the time, around "
        "that of the average unit"
    )
    rows = after.attribute(Xq, yq)
    assert_allclose(rows.mean(axis=1), 0, atol=1e-6 * np.abs(rows).max())
    with pytest.warns(FaithfulnessWarning, match=r"not calibr.*all runs.*n_halves=64"):
        before.attribute(Xq, yq, return_std=True)
    with pytest.raises(ValueError, match="return_std=True needs retrained halves"):
        before.predict_outcomes(Xq, yq, np.ones((1, 60)), return_std=True)


@pytest.mark.parametrize(
    ("n_units", "advice"),
    [
        (4, "n_halves=16, once there are 7 units or more,"),
        (6, "n_halves=16, once there are 7 units or more,"),
        (7, "n_halves=34"),
        (30, "n_halves=64"),
    ],
)
def test_so_many_halves_are_advised_as_the_units_have(n_units, advice):
    X, y, Xq, yq = wine()
    tasks = np.arange(len(X)) % n_units
    options = {"estimator": LogisticRegression(), "random_state": 0}
    dual = DualInfluence(**options).fit(X, y, tasks=tasks)
    words = advice.rstrip(",")
    with pytest.raises(ValueError, match=f"Pass {words}, which retrains on halves"):
        dual.attribute(Xq, yq, return_std=True)
    with pytest.raises(ValueError, match=f"Pass {advice} to DualInfluence, with an"):
        dual.predict_outcomes(Xq, yq, np.ones((1, n_units)), return_std=True)
    n_halves = int(re.search(r"n_halves=(\d+)", advice)[1])
    if advice[-1] == ",":
        tasks = np.arange(len(X)) % 7
    again = DualInfluence(**options, n_halves=n_halves).fit(X, y, tasks=tasks)
    assert again.attribute(Xq, yq, return_std=True)[1].shape[0] == len(Xq)


def test_another_fit_forgets_the_halves_of_the_last():
    X, y, Xq, yq = wine(30)
    one = make(16).fit(X, y)
    one.set_params(n_halves=0).fit(X, y)
    assert not hasattr(one, "halves_")
    assert_array_equal(one.attribute(Xq, yq), make(0).fit(X, y).attribute(Xq, yq))


def test_queries_and_their_order_change_nothing(fitted):
    _, _, Xq, yq = wine()
    whole, std = fitted[0].attribute(Xq, yq, return_std=True)
    some = [7, 2, 4]
    part = fitted[0].attribute(Xq[some], yq[some], return_std=True)
    assert_allclose(part[0], whole[some], atol=1e-10)
    assert_allclose(part[1], std[some], atol=1e-10)
    again = make().fit(*wine()[:2]).attribute(Xq[some], yq[some])
    assert_allclose(again, part[0], atol=1e-10)


def test_both_doors_lead_to_the_same_posterior(fitted):
    X, y, Xq, yq = wine()
    surrogate = LinearSurrogateAttributor(
        net(learning_rate=0.02),
        prior=make(256).set_params(estimator=None),
        at="banzhaf",
        n_subsets=64,
        outcome="margin",
        random_state=0,
    ).fit(X, y)
    assert surrogate.prior_.n_halves_ == 0
    assert_array_equal(surrogate.halves_, fitted[0].halves_)
    for ours, theirs in zip(
        surrogate.attribute(Xq, yq, return_std=True),
        fitted[0].attribute(Xq, yq, return_std=True),
        strict=True,
    ):
        assert_allclose(ours, theirs, atol=1e-10)
    W = make_weightings(60, 5, random_state=1)
    assert_allclose(
        surrogate.predict_outcomes(Xq, yq, W),
        fitted[0].predict_outcomes(Xq, yq, W),
        atol=1e-10,
    )
    assert not surrogate.interactions(Xq, yq).any()
    seen = {w.tobytes() for w in surrogate._seen_weightings()}
    assert not seen & {w.tobytes() for w in surrogate._retrain(Xq, yq, 8)[0]}
    with pytest.raises(ValueError, match=r"n_subsets are the halves.*n_halves=0"):
        clone(surrogate).set_params(n_halves=16).fit(X, y)


def test_score_never_asks_what_was_fitted(fitted):
    _, _, Xq, yq = wine()
    weights, _ = fitted[0]._retrain(Xq, yq, 20)
    seen = {half.astype(float).tobytes() for half in fitted[0].halves_}
    assert not seen & {w.tobytes() for w in weights}
    X, y, *_ = wine(9)
    few = make("auto", n_trajectories=8).fit(X, y)  # 252 halves of 9 units
    assert few.n_halves_ == 126
    drawn, _ = few._retrain(Xq, yq, 200)
    seen = {half.astype(float).tobytes() for half in few.halves_}
    assert not seen & {w.tobytes() for w in drawn}


def test_tables_have_intervals(fitted):
    _, _, Xq, yq = wine()
    _, std = fitted[0].attribute(Xq, yq, return_std=True)
    table = fitted[0].attribute(Xq, yq, return_std=True, as_frame=True)
    half = 1.963 * std.ravel()
    assert_allclose(table["upper_95"] - table["attribution"], half, rtol=1e-3)
    assert_allclose(table["attribution"] - table["lower_95"], half, rtol=1e-3)
    top = fitted[0].top_units(Xq, yq, n=2)
    assert (top["lower_95"] < top["attribution"]).all()
    assert "lower_95" not in fitted[1].top_units(Xq, yq, n=2)


def test_own_effects_are_the_diagonal(fitted):
    X, y, *_ = wine()
    whole = fitted[0].attribute(X, y)
    assert_allclose(fitted[0].self_attribution(), np.diag(whole), atol=1e-10)
    dual = DualInfluence(net(), n_halves=16, random_state=0).fit(X, y)
    whole = dual.attribute(X, y)
    assert_allclose(dual.self_attribution(), np.diag(whole), atol=1e-10)


def test_one_outcome_of_a_set_has_a_posterior(fitted):
    _, _, Xq, yq = wine()
    mean, std = fitted[0].attribute(Xq, yq, reduce="mean", return_std=True)
    rows, each = fitted[0].attribute(Xq, yq, return_std=True)
    assert np.corrcoef(mean, rows.mean(axis=0))[0, 1] > 0.98
    assert (std > 0).all()
    assert std.mean() < each.mean()
    X, y, *_ = wine()
    two, asked = y < 2, yq < 2
    auroc = make(16, outcome=soft_auroc()).fit(X[two], y[two])
    a, std = auroc.attribute(Xq[asked], yq[asked], return_std=True)
    assert a.shape == std.shape == (1, two.sum())
    W = make_weightings(two.sum(), 3, random_state=0)
    found = auroc.predict_outcomes(Xq[asked], yq[asked], W, return_std=True)
    assert found[0].shape == found[1].shape == (3, 1)


# ----------------------------------------------------- other attributors, models
def regressor():
    return TorchRegressor(hidden_layer_sizes=(4,), max_epochs=4, random_state=0)


@pytest.mark.parametrize(
    ("attributor", "model"),
    [
        (DualInfluence, net()),
        (DualInfluence, LogisticRegression(random_state=0)),
        (DualInfluence, Ridge(random_state=0)),
        (KernelSurrogateAttributor, net()),
        (LinearSurrogateAttributor, LogisticRegression(random_state=0)),
        (
            AdamWInfluence,
            TorchRegressor(hidden_layer_sizes=(4,), max_epochs=4, random_state=0),
        ),
        (AdamWInfluence, MLPClassifier((4,), max_iter=5, random_state=0)),
    ],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_every_attributor_has_a_posterior_if_asked(attributor, model):
    X, y, Xq, yq = wine(30)
    options = {"n_subsets": 16} if attributor.__name__.endswith("Attributor") else {}
    with warnings.catch_warnings():  # of rows that bend
        warnings.simplefilter("ignore", FaithfulnessWarning)
        one = attributor(model, n_halves=32, n_retrainings=8, random_state=0, **options)
        one.fit(X, y)
        a = one.attribute(Xq, yq)
    assert one.estimand_.startswith("mean effect of this unit")
    assert_allclose(a.sum(axis=1), 0, atol=1e-4)
    truth = one._truth(one.halves_.astype(float), Xq, yq)
    # more of what the halves show is explained than by nothing
    D, Z = (truth[::2] - truth[1::2]) / 2, one.halves_[::2] - 0.5
    left = D - Z @ a.T
    assert (np.square(left).sum(axis=0) < np.square(D).sum(axis=0)).all()


@pytest.mark.parametrize(
    ("attributor", "options", "missed"),
    [
        (DualInfluence, {"n_models": 2}, "tangents of all seeds"),
        (LinearSurrogateAttributor, {"estimation": "gradient"}, "that were linearised"),
        (LinearSurrogateAttributor, {"estimation": "retrain"}, None),
    ],
)
def test_errors_that_miss_something_say_so(attributor, options, missed):
    X, y, Xq, yq = wine(30)
    if attributor is LinearSurrogateAttributor:
        options = {**options, "n_subsets": 16}
    one = attributor(net(), random_state=0, **options).fit(X, y)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        one.attribute(Xq, yq, return_std=True)
    said = [str(w.message) for w in caught if w.category is FaithfulnessWarning]
    assert len(said) == (missed is not None)
    if missed:
        assert missed in said[0]
        assert caught[0].filename == __file__


class Nothing(BaseAttributor):
    """An attributor of a third party, that knows nothing."""

    def __init__(
        self,
        estimator=None,
        *,
        outcome="auto",
        n_halves=0,
        n_retrainings=8,
        retrain_size=0.5,
        memory=None,
        n_jobs=None,
        random_state=None,
        verbose=0,
    ):
        self.estimator, self.outcome, self.n_halves = estimator, outcome, n_halves
        self.n_retrainings, self.retrain_size = n_retrainings, retrain_size
        self.memory, self.n_jobs = memory, n_jobs
        self.random_state, self.verbose = random_state, verbose

    def fit(self, X, y, tasks=None, **fit_params):
        return self._fit(X, y, tasks, fit_params)

    def _fit_attributor(self):
        self.estimand_ = "nothing"

    def _attribute(self, X, y, outcome):
        return np.zeros((len(y), self.n_units_)), None

    def _predict_outcomes(self, X, y, weights, outcome):
        return np.zeros((len(weights), len(y)))


def test_attributors_of_others_have_it_free(linear_effects):
    X, y, Xq, yq = wine()
    one = Nothing(net(learning_rate=0.02), outcome="margin", random_state=0)
    assert not one.fit(X, y).attribute(Xq, yq).any()
    with_halves = clone(one).set_params(n_halves=256).fit(X, y)
    truth, noise = linear_effects
    a, std = with_halves.attribute(Xq, yq, return_std=True)
    inside = np.abs(a - truth) < 1.96 * np.hypot(std, noise)
    assert 0.88 < inside.mean() < 0.99
    assert with_halves.score(Xq, yq) > 0.4


def test_tasks_are_halved_as_units():
    X, y, Xq, yq = wine()
    tasks = np.arange(60) % 20
    one = make(64, outcome="margin").fit(X, y, tasks=tasks)
    assert one.halves_.shape == (64, 20)
    W = draw_halves(20, 1200, 5).astype(float)
    F = retrain_outcomes(
        net(learning_rate=0.02), X, y, W, Xq, yq, tasks=tasks, outcome="margin"
    )
    D, Z = (F[::2] - F[1::2]) / 2, W[::2] - 0.5
    truth = (np.linalg.pinv(Z) @ D).T
    a, std = one.attribute(Xq, yq, return_std=True)
    assert 0.88 < (np.abs(a - truth) < 1.96 * std).mean() <= 1


def test_several_seeds_have_halves_each():
    X, y, Xq, yq = wine(30)
    one = make(16, n_models=2).fit(X, y)
    rows = one.halves_.astype(float)
    truth = retrain_outcomes(
        net(learning_rate=0.02), X, y, rows, Xq, yq, outcome="margin", n_seeds=2
    )
    found = one._trained_halves.outcomes(Xq, yq, "margin")[:-1]
    assert_allclose(found, truth, atol=1e-10)


def test_frozen_models_with_a_recipe_are_trained_again():
    X, y, Xq, yq = wine(30)
    model = net().fit(X, y)
    frozen = DualInfluence(FrozenEstimator(model), n_halves=16, random_state=0)
    own = DualInfluence(net(), n_halves=16, random_state=0)
    assert_allclose(
        frozen.fit(X, y).attribute(Xq, yq), own.fit(X, y).attribute(Xq, yq), atol=1e-8
    )


# ----------------------------------------------------------------- keeping models
def test_a_pickle_gives_the_same_numbers(fitted):
    _, _, Xq, yq = wine()
    expected = fitted[0].attribute(Xq, yq)
    small = pickle.dumps(fitted[0])
    assert_array_equal(pickle.loads(small).attribute(Xq, yq), expected)
    with config_context(working_memory=0.1):  # 64 models are more than a sixteenth
        bare = pickle.dumps(fitted[0])
    assert len(bare) < len(small) - 64 * 600
    assert_array_equal(pickle.loads(bare).attribute(Xq, yq), expected)


def test_what_is_too_large_to_keep_goes_to_the_memory(tmp_path, monkeypatch):
    # rows that runs are compared by, each with a replay where memory is little
    monkeypatch.setattr("skattrib.influence._run_agreement.N_ROWS", 1)
    X, y, Xq, yq = wine(30)
    kept = make(64).fit(X, y)
    with config_context(working_memory=0.05):
        one = make(memory=str(tmp_path)).fit(X, y)
        assert one.n_halves_ == 64
        assert not one._trained_halves._models
        fewer = make("auto").fit(X, y)
        assert 16 <= fewer.n_halves_ < 64
    assert_allclose(one.attribute(Xq, yq), kept.attribute(Xq, yq), atol=1e-10)
    assert_array_equal(fewer.halves_, kept.halves_[: fewer.n_halves_])


def test_halves_are_remembered(tmp_path, monkeypatch):
    X, y, Xq, yq = wine(30)
    one = make(32, memory=str(tmp_path)).fit(X, y)

    def refuse(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr("skattrib.models._retraining.Trainer.params", refuse)
    again = make(32, memory=str(tmp_path)).fit(X, y)
    assert_array_equal(again.attribute(Xq, yq), one.attribute(Xq, yq))
    monkeypatch.undo()
    more = make(64, memory=str(tmp_path)).fit(X, y)
    assert_array_equal(more.halves_[:32], one.halves_)


def test_plan_counts_halves(fitted):
    X, y, *_ = wine()
    row = plan(make(), X, y).iloc[0]
    assert row["trainings"] == 1 + 4 + 64 + 1  # with all units, once more
    assert "64 retrained halves" in row["way"]
    assert plan(make(0), X, y).iloc[0]["trainings"] == 1 + 4


def test_progress_says_how_many(capsys):
    X, y, *_ = wine(30)
    make(16, verbose=1).fit(X, y)
    assert "16 random halves retrained" in capsys.readouterr().out
    make("auto", verbose=1).fit(X[:6], y[:6])
    assert "no halves: 6 units have too few" in capsys.readouterr().out


# ----------------------------------------------------------------------- bad input
def frozen_module():
    X, *_ = wine()
    module = nn.Linear(X.shape[1], 3).double()
    return TorchClassifier.from_module(module, classes=[0, 1, 2])


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"n_halves": 17}, ValueError, "n_halves=17 must be even.*Use 18, or 0"),
        ({"n_halves": 2}, ValueError, "n_halves=2 is a single pair.*at least 16"),
        ({"n_halves": -2}, ValueError, "'n_halves' parameter.*Got -2 instead"),
        ({"n_halves": "many"}, ValueError, "'n_halves' parameter.*Got 'many'"),
        (
            {"n_halves": 16, "inclusion": 1.0},
            ValueError,
            "n_halves=16 .* inclusion=1. Use n_halves=0, or inclusion=0.5.*loo_int",
        ),
        ({"n_halves": 16, "inclusion": 0.7}, ValueError, "inclusion=0.7. Use n_halves"),
    ],
)
def test_refused_before_training(options, error, match, monkeypatch):
    X, y, *_ = wine()

    def refuse(*_, **__):
        raise AssertionError("trained")

    monkeypatch.setattr(TorchClassifier, "fit", refuse)
    with pytest.raises(error, match=match):
        make(**options).fit(X, y)


@pytest.mark.touches_global_rng
def test_what_cannot_be_halved_or_retrained_is_refused():
    X, y, *_ = wine()
    with pytest.raises(ValueError, match=r"6 units have 20 different halves.*=10 at"):
        make(64).fit(X[:6], y[:6])
    with pytest.raises(UnsupportedModelError, match=r"not recorded. Use n_halves=0"):
        DualInfluence(FrozenEstimator(frozen_module()), n_halves=16).fit(X, y)
    frozen = DualInfluence(FrozenEstimator(frozen_module()), random_state=0).fit(X, y)
    assert frozen.n_halves_ == 0
    assert make("auto", inclusion=1.0).fit(X[:20], y[:20]).n_halves_ == 0
    assert not hasattr(RISEValuator(), "n_halves")
    with pytest.raises(ValueError, match=r"4 units have 6 different.*=0\.$"):
        make(16).fit(X, y, tasks=np.arange(60) % 4)
    for attributor in (DualInfluence, KernelSurrogateAttributor, Nothing):
        with pytest.raises(ValueError, match=r"'n_halves' parameter.*Got 'auto'"):
            attributor(net(), n_halves="auto").fit(X, y)
    # of a module that will be trained from its weights, not frozen
    with pytest.warns(FaithfulnessWarning, match="trained again from its weights"):
        assert DualInfluence(frozen_module(), n_halves=16).fit(X, y).n_halves_ == 16


def test_few_halves_are_said_to_be_few():
    X, y, *_ = wine(30)
    with pytest.warns(FaithfulnessWarning, match="n_halves=8 are too few") as caught:
        make(8).fit(X, y)
    assert caught[0].filename == __file__


def test_outcomes_that_do_not_differ_are_named():
    X, y, Xq, yq = wine(30)

    def constant(outputs, targets):
        return outputs.sum(-1) * 0 + 1.0

    one = make(16, outcome=constant).fit(X, y)
    with pytest.warns(FaithfulnessWarning, match=r"queries \[0, 1\] are the same wh"):
        a, std = one.attribute(Xq[:2], yq[:2], return_std=True)
    assert not a.any()
    assert not std.any()


def test_diverged_retrainings_are_left_out_and_said(monkeypatch):
    X, y, Xq, yq = wine(30)
    one = make(32).fit(X, y)
    models = one._trained_halves._models[0][0]
    models._models[3] = np.nan
    with pytest.warns(FaithfulnessWarning) as caught:
        a, std = one.attribute(Xq, yq, return_std=True)
    said = [str(w.message) for w in caught]
    assert any("1 of 32 retrained halves are not finite" in text for text in said)
    assert np.isfinite(a).all()
    assert np.isfinite(std).all()


def unmeasured(outputs, targets):
    """Return margins, and of retrained models none of the first query."""
    margins = outputs.gather(-1, targets.long()[..., None])[..., 0]
    if outputs.ndim == 3:
        margins = margins.clone()
        margins[..., 0] = np.inf
    return margins


def test_a_query_without_outcomes_of_halves_leaves_others_as_they_are():
    X, y, Xq, yq = wine(30)
    one = make(16, outcome=unmeasured, n_trajectories=2).fit(X, y)
    with pytest.warns(FaithfulnessWarning, match=r"16 of 16 .* for queries \[0\]"):
        both = one.attribute(Xq, yq, return_std=True)
    assert np.isnan([rows[0] for rows in both]).all()
    assert np.isfinite([rows[1:] for rows in both]).all()
    with pytest.warns(FaithfulnessWarning, match="16 of 16") as caught:
        found = one.diagnose(Xq, yq)
    assert __file__ in {w.filename for w in caught}
    assert 0.8 < found.lds <= 1
    plt = pytest.importorskip("matplotlib.pyplot")
    with (
        pytest.warns(FaithfulnessWarning),
        pytest.raises(ValueError, match="outcomes contains"),
    ):
        CalibrationDisplay.from_estimator(one, Xq, yq)
    plt.close("all")


def test_outcomes_that_do_not_differ_are_no_ground_for_trust():
    X, y, Xq, yq = wine(30)
    one = DualInfluence(
        LogisticRegression(),
        outcome=lambda outputs, _: outputs.sum(-1) * 0 + 1.0,
        n_halves=16,
        random_state=0,
    ).fit(X, y)
    with pytest.warns(FaithfulnessWarning, match=r"do not differ|are the same"):
        found = one.diagnose(Xq[:2], yq[:2])
    assert not found.trustworthy
    assert "retrained outcomes do not differ" in found.verdict


def test_too_few_halves_hold_nothing_out():
    X, y, Xq, yq = wine(30)
    with pytest.warns(FaithfulnessWarning, match="too few"):
        one = DualInfluence(LogisticRegression(), n_halves=4, random_state=0).fit(X, y)
    assert np.isfinite(one.attribute(Xq, yq, return_std=True)).all()
    found = one.diagnose(Xq, yq)
    assert found.coverage is found.lds is found.prior_slope is None
    assert "halves" not in found.verdict


def test_no_weightings_are_no_outcomes(fitted):
    _, _, Xq, yq = wine()
    for one in fitted:
        assert one.predict_outcomes(Xq, yq, np.empty((0, 60))).shape == (0, 12)


def test_a_set_outcome_that_is_not_known_is_refused():
    X, y, Xq, yq = wine(30)
    X, y, Xq, yq = X[y < 2], y[y < 2], Xq[yq < 2], yq[yq < 2]
    one = Nothing(net(), outcome=soft_auroc(), n_halves=16, random_state=0).fit(X, y)
    for ask in (
        lambda: one.attribute(Xq, yq),
        lambda: one.predict_outcomes(Xq, yq, np.ones((2, len(y)))),
        lambda: one.score(Xq, yq),
    ):
        with pytest.raises(ValueError, match="knows outcomes of single queries only"):
            ask()


def test_errors_are_missed_only_where_there_are_some():
    X, y, Xq, yq = wine(30)
    one = make(0, inclusion=1.0).fit(X, y)
    with pytest.raises(ValueError, match="needs an ensemble"):  # and no warning
        one.attribute(Xq, yq, return_std=True)
    two = make(0, inclusion=1.0, n_models=2).fit(X, y)
    with pytest.warns(FaithfulnessWarning, match=r"not calibrated.*loo_intervals"):
        two.attribute(Xq, yq, return_std=True)


def surrogate(**options):
    defaults = {"prior": DualInfluence(), "at": "banzhaf", "n_subsets": 32}
    defaults.update(outcome="margin", n_retrainings=8, random_state=0)
    return LinearSurrogateAttributor(net(), **{**defaults, **options})


def test_what_was_fitted_counts_not_what_is_set_later():
    X, y, Xq, yq = wine(30)
    for fitted_at, later in [("banzhaf", "loo"), ("loo", "banzhaf")]:
        one = surrogate(at=fitted_at, estimation="retrain").fit(X, y)
        expected = one.attribute(Xq, yq)
        again = one.set_params(at=later).attribute(Xq, yq)
        assert_allclose(again, expected, atol=1e-10)


def test_a_prior_that_is_a_posterior_is_used_with_its_halves():
    X, y, Xq, yq = wine(30)
    inner = surrogate(prior=DualInfluence(net(), random_state=0), random_state=1)
    expected = inner.fit(X, y).attribute(Xq, yq)
    for at in ("banzhaf", "loo"):
        one = surrogate(prior=clone(inner), at=at, estimation="retrain").fit(X, y)
        found = one.prior_.attribute(Xq, yq)
        assert_allclose(found, expected, atol=1e-10)
        if at == "banzhaf":
            given = one._attribute(Xq, yq, one._checked_outcome("margin"))[0]
            assert_allclose(given, expected, atol=1e-10)


@pytest.mark.touches_global_rng
def test_few_units_have_few_subsets_around_a_prior():
    X, y, Xq, yq = wine(30)
    for n_units in (3, 4):
        one = surrogate().fit(X, y, tasks=np.arange(30) % n_units)
        assert one.n_halves_ == 4
        assert np.isfinite(one.attribute(Xq, yq)).all()
    with pytest.raises(ValueError, match="2 units have one half"):
        surrogate().fit(X, y, tasks=np.arange(30) % 2)
    with pytest.raises(ValueError, match=r"n_subsets=3 with a.*no variance"):
        surrogate(n_subsets=3).fit(X, y)
    frozen = surrogate().set_params(estimator=FrozenEstimator(frozen_module()))
    with pytest.raises(UnsupportedModelError, match="Use estimation='gradient'"):
        frozen.fit(X, y)


def test_a_frozen_model_is_compared_once(tmp_path, monkeypatch):
    X, y, Xq, yq = wine(30)
    model, compared = FrozenEstimator(net(max_epochs=2).fit(X, y)), []
    monkeypatch.setattr(
        "skattrib.models._kept_models.check_reproduced",
        lambda *_: compared.append(None),
    )
    options = {"n_halves": 64, "memory": str(tmp_path), "random_state": 0}
    with config_context(working_memory=0.05):
        one = Nothing(model, **options).fit(X, y)
        assert not one._trained_halves._models
        one.attribute(Xq, yq)
    assert len(compared) == 1


# ------------------------------------------------------------------- leave-one-out
def test_intervals_of_leaving_one_out():
    X, y = make_classification(80, 6, n_classes=2, random_state=0)
    model = net(max_epochs=10)
    Xq, yq = X[60:], y[60:]
    X, y = X[:60], y[:60]
    dual = DualInfluence(model, outcome="margin", random_state=0).fit(X, y)
    a = dual.attribute(Xq, yq)
    W = np.vstack([np.ones(60), 1 - np.eye(60)])
    F = retrain_outcomes(model, X, y, W, Xq, yq, outcome="margin")
    units = np.random.RandomState(0).permutation(60)
    known, rest = units[:24], units[24:]
    found = loo_intervals(a, known, F[1 + known], full_outcomes=F[0])
    effects = (F[0] - F[1:]).T[:, rest]
    inside = (found.lower[:, rest] < effects) & (effects < found.upper[:, rest])
    assert 0.9 < inside.mean() < 0.99
    own = (a[:, known] * (F[0] - F[1 + known]).T).sum() / np.square(a[:, known]).sum()
    assert found.slope.min() - 0.1 < own < found.slope.max() + 0.1
    assert_allclose(found.attributions, found.slope[:, None] * a)
    narrow = loo_intervals(a, known, F[1 + known], full_outcomes=F[0], level=0.5)
    assert (narrow.upper < found.upper).all()
    around = loo_intervals(a, known, F[1 + known])
    centred = effects - (F[0] - F[1 + known]).T.mean(axis=1, keepdims=True)
    inside = (around.lower[:, rest] < centred) & (centred < around.upper[:, rest])
    assert 0.88 < inside.mean() <= 1


def test_without_outcomes_of_all_units_intervals_are_around_the_average():
    rng = np.random.RandomState(0)
    known, rest, inside = np.arange(64), np.arange(64, 200), []
    for _ in range(20):
        a = 2 + rng.randn(10, 200)  # of a linear model they need not sum to 0
        effects = (1 + 0.3 * rng.randn(10, 1)) * a + 0.5 * rng.randn(10, 200)
        found = loo_intervals(a, known, -effects[:, known].T)
        assert_allclose(found.attributions.mean(axis=1), 0, atol=1e-12)
        around = (effects - effects.mean(axis=1, keepdims=True))[:, rest]
        inside.append((found.lower[:, rest] < around) & (around < found.upper[:, rest]))
    assert 0.94 < np.mean(inside) < 0.96


def test_effects_that_are_too_few_for_a_level():
    rng = np.random.RandomState(0)
    a = rng.randn(3, 30)
    F = rng.randn(9, 3)
    data = a[:2], np.arange(9), F[:, :2]
    match = r"level=0\.95 needs 19 effects.*there are 18.*level=0\.947"
    with pytest.raises(ValueError, match=match):
        loo_intervals(*data)
    assert np.isfinite(loo_intervals(*data, level=0.947).upper).all()
    assert np.isfinite(loo_intervals(a, np.arange(9), F).upper).all()
    assert np.isfinite(
        loo_intervals(a[:1], np.arange(9), F[:, :1], level=0.9).upper
    ).all()


def test_queries_without_effects_say_nothing_of_others():
    rng = np.random.RandomState(0)
    a, units = rng.randn(5, 60), np.arange(30)
    F = -(2 * a + 0.3 * rng.randn(5, 60))[:, units].T
    others = loo_intervals(a[1:], units, F[:, 1:])
    F[:, 0] = 0.1  # whichever unit is left out; its mean is not, by rounding
    found = loo_intervals(a, units, F)
    assert_array_equal(found.slope[1:], others.slope)
    assert_allclose(found.upper[1:], others.upper)
    assert not found.lower[0].any()
    # attributions that are all equal
    flat = loo_intervals(np.ones_like(a), units, F)
    assert not flat.slope.any()
    assert np.isfinite(flat.upper).all()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"left_out": np.arange(8.0)}, "int of shape .n_left_out"),
        ({"left_out": np.ones(9, dtype=int)}, "1 different units of 9"),
        ({"left_out": np.arange(4), "outcomes": np.ones((4, 2))}, "at least 8"),
        ({"left_out": np.arange(25, 34)}, "positions are from 0 to 29"),
        ({"outcomes": np.ones((2, 9))}, r"\(2, 9\), and 9 units left out and 2 q"),
        ({"outcomes": np.full((9, 2), np.nan)}, "outcomes contains NaN"),
        ({"full_outcomes": np.ones(3)}, r"\(3,\), and 2 queries"),
        ({"level": 1.0}, "'level' parameter"),
    ],
)
def test_units_left_out_that_cannot_be_used(changes, match):
    rng = np.random.RandomState(0)
    good = {
        "attributions": rng.randn(2, 30),
        "left_out": np.arange(9),
        "outcomes": rng.randn(9, 2),
    }
    with pytest.raises(ValueError, match=match):
        loo_intervals(**{**good, **changes})


def test_intervals_of_exact_refits_hold():
    """Of a linear model all that sums over rows miss may be additive, or nothing."""
    held = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        X = rng.normal(size=(48, 4))
        y = X @ [1, -2, 0.5, 0] + rng.normal(size=48)
        rows, queries = (X[:40], y[:40]), (X[40:], y[40:])
        exact = DualInfluence(Ridge(), random_state=0).fit(*rows)
        weights = make_weightings(40, 4000, kind="antithetic", random_state=1)
        outcomes = exact.predict_outcomes(*queries, weights)
        true = np.linalg.lstsq(weights - 0.5, outcomes - outcomes.mean(axis=0))[0].T
        true -= true.mean(axis=1, keepdims=True)
        halves = DualInfluence(Ridge(), n_halves=256, random_state=seed).fit(*rows)
        found, std = halves.attribute(*queries, return_std=True)
        found -= found.mean(axis=1, keepdims=True)
        held.append(np.abs(found - true) < half_width(std))
    assert 0.88 < np.mean(held) < 0.99  # 0.77 with a share of 0.8


def test_the_share_of_additive_errors_is_told_by_halves():
    rng = np.random.default_rng(0)
    kernel = np.cov(rng.normal(size=(40, 60)))
    found = []
    for share in (0.1, 0.9):
        mixed = share * kernel + (1 - share) * np.eye(40)
        drawn = rng.multivariate_normal(np.zeros(40), mixed, size=20)
        known = share_prior(0.5, 1.0)
        for residuals in drawn:
            known = known + share_likelihood(residuals, kernel)
        found.append(mean_share(known))
    np.testing.assert_allclose(found, [0.1, 0.9], atol=0.07)
    # no residuals say nothing
    np.testing.assert_array_equal(share_likelihood(np.zeros(40), kernel), 0)
    assert mean_share(share_prior(0.5, 1.0)) == pytest.approx(0.5, abs=0.02)
