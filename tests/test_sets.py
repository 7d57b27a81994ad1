"""One outcome of all queries together, the mean of theirs, and the ends of rows."""

import copy
import pickle
import sys
from dataclasses import dataclass
from functools import cache, partial
from operator import itemgetter

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_breast_cancer, load_iris, make_regression
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, scale
from torch import nn

from doc.contributing.gradient_dot import GradientDot
from skattrib import (
    AdamWInfluence,
    DualInfluence,
    GradientTransformer,
    KernelSurrogateAttributor,
    LinearSurrogateAttributor,
    RISEValuator,
    TaskWeightSelector,
    TorchClassifier,
    TorchRegressor,
)
from skattrib.evaluation import (
    SetOutcome,
    group_gap,
    make_weightings,
    retrain_outcomes,
    soft_auroc,
    soft_calibration_error,
    worst_group,
)
from skattrib.exceptions import FaithfulnessWarning
from skattrib.models._memory import digest
from tests.cases import Same
from tests.test_finite import Overflows

ATTRIBUTORS = {
    "newton": partial(DualInfluence, removal="newton"),
    "influence": partial(DualInfluence, removal="influence"),
    "queries solved": partial(DualInfluence, removal="influence", solver="cg"),
    "run": partial(AdamWInfluence, inclusion=1),
    "runs": partial(AdamWInfluence, n_trajectories=4, n_halves=64),
    "kernel": partial(KernelSurrogateAttributor, n_subsets=60),
    "tangents": partial(KernelSurrogateAttributor, n_subsets=60, estimation="gradient"),
    "linear": partial(LinearSurrogateAttributor, n_subsets=60),
}
N, N_QUERIES = 70, 60


def data(dtype=np.float64):
    """Rows of two classes that a few columns do not tell apart."""
    X, y = load_breast_cancer(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(y))[: N + N_QUERIES]
    X, y = scale(X)[order, :6].astype(dtype), y[order]
    return X[:N], y[:N], X[N:], y[N:]


def net(**options):
    options = {"hidden_layer_sizes": (6,), "max_epochs": 25, **options}
    return TorchClassifier(random_state=0, **options)


def made(name, estimator=None, **options):
    X, y, *_ = data()
    attributor = ATTRIBUTORS[name](net() if estimator is None else estimator)
    options = {"n_retrainings": 24, "random_state": 0, **options}
    return attributor.set_params(**options).fit(X, y)


kept = cache(made)


def fitted(name, outcome="auto"):
    """Outcomes are read at query time: one fit serves them all."""
    return copy.copy(kept(name)).set_params(outcome=outcome)


def log_likelihoods(outputs, targets):
    return outputs.log_softmax(-1).gather(-1, targets[..., None])[..., 0]


def mean_log_likelihood(outputs, targets):
    return log_likelihoods(outputs, targets).mean(-1)


def correct(outputs, targets):
    """Not differentiable: an accuracy."""
    return (outputs.argmax(-1) == targets).double().mean(-1)


def hard_auroc(outputs, targets):
    """Not differentiable, and of NumPy."""
    scores = (outputs[..., 1] - outputs[..., 0]).numpy()
    flat = scores.reshape(-1, scores.shape[-1])
    labels = targets.reshape(-1, targets.shape[-1])[0].numpy()
    values = [roc_auc_score(labels, row) for row in flat]
    return torch.tensor(values).reshape(scores.shape[:-1])


def groups():
    return np.array(["b", "a"])[(data()[2][:, 1] > 0).astype(int)]


# ------------------------------------------------------------------- identities
@pytest.mark.parametrize("name", ATTRIBUTORS)
def test_a_set_outcome_that_is_a_mean_is_the_mean(name):
    *_, X, y = data()
    mean = fitted(name).attribute(X, y, reduce="mean")
    by_hand = fitted(name, SetOutcome(mean_log_likelihood)).attribute(X, y)
    assert mean.shape == (N,)
    assert by_hand.shape == (1, N)
    assert_allclose(mean, by_hand[0], rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("name", ["newton", "influence", "queries solved", "run"])
def test_the_attribution_of_the_mean_is_the_mean_of_attributions(name):
    *_, X, y = data()
    attributor = fitted(name)
    rows = attributor.attribute(X, y)
    atol = 1e-8 if name != "queries solved" else 1e-6 * abs(rows).max()
    assert_allclose(
        attributor.attribute(X, y, reduce="mean"), rows.mean(axis=0), atol=atol, rtol=0
    )


@pytest.mark.parametrize("removal", ["auto", "influence", "refit"])
@pytest.mark.parametrize("solver", ["auto", "cg"])
def test_the_mean_of_a_linear_model(removal, solver):
    X, y, *queries = data()
    model = LogisticRegression(tol=1e-10, max_iter=1000, random_state=0)
    options = {"removal": removal, "solver": solver, "random_state": 0}
    dual = DualInfluence(model, **options).fit(X, y)
    rows = dual.attribute(*queries)
    mean = dual.attribute(*queries, reduce="mean")
    assert_allclose(mean, rows.mean(axis=0), atol=1e-7, rtol=0)


@pytest.mark.parametrize("name", ["newton", "influence", "run", "kernel", "tangents"])
@pytest.mark.parametrize("outcome", [None, soft_auroc()], ids=["mean", "set"])
def test_queries_in_pieces_are_those_at_once(name, outcome):
    *_, X, y = data()
    clf = net(max_epochs=3)
    attributor = made(name, clf, outcome="auto" if outcome is None else outcome)
    options = {} if outcome else {"reduce": "mean"}
    whole = attributor.attribute(X, y, **options)
    weights = make_weightings(N, 3, random_state=0)
    predicted = attributor.predict_outcomes(X, y, weights)
    with sklearn.config_context(working_memory=0.02):
        pieces = attributor.attribute(X, y, **options)
        assert_allclose(pieces, whole, rtol=1e-5, atol=1e-9)
        pieces = attributor.predict_outcomes(X, y, weights)
        assert_allclose(pieces, predicted, rtol=1e-5, atol=1e-9)


def test_a_run_agrees_with_finite_differences_of_real_retraining():
    X, y, *queries = data()
    clf, outcome = net(max_epochs=15), soft_auroc(0.5)
    run = AdamWInfluence(clf, inclusion=1, outcome=outcome, random_state=0).fit(X, y)
    attributions, eps = run.attribute(*queries)[0], 1e-3
    units = [0, 7, 33]
    weights = 1 + eps * np.vstack([np.eye(N)[units], -np.eye(N)[units]])
    F = retrain_outcomes(clf, X, y, weights, *queries, outcome=outcome)
    assert F.shape == (6, 1)
    slopes = (F[:3, 0] - F[3:, 0]) / (2 * eps)
    assert_allclose(attributions[units], slopes, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    "outcome", [soft_auroc(), soft_auroc(1e-3), SetOutcome(hard_auroc)], ids=str
)
def test_a_linear_model_is_retrained_exactly(outcome):
    X, y, *queries = data()
    model = LogisticRegression(tol=1e-10, max_iter=1000, random_state=0)
    dual = DualInfluence(model, outcome=outcome, random_state=0).fit(X, y)
    weights = make_weightings(N, 5, size=0.6, random_state=0)
    predicted = dual.predict_outcomes(*queries, weights)
    F = retrain_outcomes(model, X, y, weights, *queries, outcome=outcome)
    assert predicted.shape == F.shape == (5, 1)
    assert_allclose(predicted, F, atol=1e-6, rtol=0)
    left = make_weightings(N, None, kind="loo")[:8]
    F = retrain_outcomes(
        model, X, y, np.vstack([np.ones(N), left]), *queries, outcome=outcome
    )
    dual.set_params(removal="refit").fit(X, y)
    assert_allclose(dual.attribute(*queries)[0, :8], F[0, 0] - F[1:, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "bound"),
    [("newton", 0.5), ("influence", 0.5), ("runs", 0.85), ("kernel", 0.6)]
    + [("linear", 0.6), ("tangents", 0.45)],
)
def test_predictions_of_a_set_rank_retrained_models(name, bound):
    *_, X, y = data()
    attributor = fitted(name, soft_auroc()).set_params(n_retrainings=100)
    assert attributor.score(X, y) > bound


def test_several_seeds_have_errors():
    *_, X, y = data()
    dual = made("newton", outcome=soft_auroc(), n_models=3)
    values, errors = dual.attribute(X, y, return_std=True)
    assert values.shape == errors.shape == (1, N)
    assert (errors > 0).all()
    dual.set_params(outcome="auto")
    values, errors = dual.attribute(X, y, reduce="mean", return_std=True)
    assert values.shape == errors.shape == (N,)
    frame = dual.attribute(X, y, reduce="mean", return_std=True, as_frame=True)
    assert list(frame) == ["unit", "attribution", "standard_error"]
    assert_array_equal(frame["standard_error"], errors)


def test_single_steps_of_a_set_add_up():
    *_, X, y = data()
    run = fitted("run", soft_auroc())
    steps = run.step_attribution(X, y)
    total = np.bincount(steps.rows, steps.attributions[0], minlength=N)
    assert steps.attributions.shape[0] == 1
    assert_allclose(total, run.attribute(X, y)[0], atol=1e-9)


# ------------------------------------------------------------------------ shapes
def test_one_row_named_all():
    *_, X, y = data()
    dual = fitted("newton", soft_auroc())
    frame = dual.attribute(pd.DataFrame(X), y, as_frame=True)
    assert set(frame["query"]) == {"all"}
    assert len(frame) == N
    top = dual.top_units(X, y, n=2)
    assert list(top["query"]) == ["all"] * 4
    assert list(top["rank"]) == [1, 2, -2, -1]
    assert_array_equal(dual.attribute(X, y, reduce="mean"), dual.attribute(X, y)[0])
    assert dual.attribute(X).shape == (1, N)  # at the model's own predictions
    with pytest.raises(ValueError, match="transform returns a row for each query"):
        dual.transform(X)


def test_tasks_are_units_of_sets():
    X, y, *queries = data()
    tasks = np.arange(N) % 7
    dual = DualInfluence(
        net(), removal="influence", outcome=soft_auroc(), random_state=0
    )
    rows = clone(dual).fit(X, y).attribute(*queries)[0]
    of_tasks = dual.fit(X, y, tasks=tasks).attribute(*queries)[0]
    assert_allclose(of_tasks, np.bincount(tasks, rows), atol=1e-9)


@pytest.mark.parametrize(
    ("name", "memory"), [("newton", None), ("newton", 0.01), ("runs", None)]
)
def test_top_k_is_a_sorted_row(name, memory):
    *_, X, y = data()
    attributor = fitted(name)
    rows, errors = attributor.attribute(X, y), None
    with_std = name == "runs"
    if with_std:
        errors = attributor.attribute(X, y, return_std=True)[1]
    with sklearn.config_context(working_memory=memory or 1024):
        values, units, *stds = attributor.attribute(X, y, top_k=4, return_std=with_std)
    order = np.argsort(-rows, axis=1, kind="stable")
    order = np.hstack([order[:, :4], order[:, -4:]])
    assert values.shape == units.shape == (N_QUERIES, 8)
    assert_array_equal(units, order)
    assert_allclose(values, np.take_along_axis(rows, order, axis=1), rtol=1e-8)
    if with_std:
        expected = np.take_along_axis(errors, order, axis=1)
        assert_allclose(stds[0], expected, rtol=1e-6)


def test_top_k_of_other_forms():
    *_, X, y = data()
    dual = fitted("newton")
    rows = dual.attribute(X, y, reduce="mean")
    values, units = dual.attribute(X, y, reduce="mean", top_k=3)
    assert_array_equal(units, np.argsort(-rows, kind="stable")[[0, 1, 2, -3, -2, -1]])
    assert_array_equal(values, rows[units])
    frame = dual.attribute(X[:2], y[:2], top_k=3, as_frame=True)
    assert list(frame) == ["query", "unit", "attribution"]
    assert len(frame) == 12
    values, units = dual.attribute(X[:2], y[:2], top_k=3)
    assert_array_equal(frame["unit"], units.ravel())
    assert_array_equal(frame["attribution"], values.ravel())
    assert_array_equal(dual.top_units(X[:2], y[:2], n=3)["unit"], frame["unit"])
    dual.set_params(outcome=soft_auroc())
    assert dual.attribute(X, y, top_k=3)[1].shape == (1, 6)


def test_arrays_of_all_units_are_not_made(monkeypatch):
    *_, X, y = data()
    dual, seen = fitted("newton"), []
    attribute = dual._attribute
    monkeypatch.setattr(
        dual, "_attribute", lambda X, *a: seen.append(len(X)) or attribute(X, *a)
    )
    cap = 16 * N * 7  # attributions and their errors of seven queries
    with sklearn.config_context(working_memory=cap / 2**20):
        dual.attribute(X, y, top_k=2)
        assert max(seen) == 7
        assert sum(seen) == N_QUERIES
        dual.top_units(X, y, n=2)
    assert max(seen) == 7


@pytest.mark.parametrize("bad", [0, -1, 1.5, "3", True])
def test_top_k_is_a_whole_number(bad):
    *_, X, y = data()
    dual = fitted("newton")
    with pytest.raises(ValueError, match=r"top_k=.* whole number"):
        dual.attribute(X, y, top_k=bad)
    with pytest.raises(ValueError, match=r"top_k=36 .*use at most top_k=35"):
        dual.attribute(X, y, top_k=36)
    with pytest.raises(ValueError, match="reduce='sum' is not known"):
        dual.attribute(X, y, reduce="sum")


# --------------------------------------------------------------- the ready-made
def probabilities(n=200, n_classes=2, seed=0):
    rng = np.random.RandomState(seed)
    logits = torch.tensor(rng.randn(3, n, n_classes))
    return logits, torch.tensor(rng.randint(n_classes, size=n)).expand(3, n)


def test_soft_auroc_becomes_the_area():
    logits, targets = probabilities()
    scores = (logits[..., 1] - logits[..., 0]).numpy()
    areas = [roc_auc_score(targets[0], row) for row in scores]
    assert_allclose(soft_auroc(1e-9)(logits, targets), areas, atol=1e-12)
    y = targets[0].numpy()
    pairs = scores[:, y == 1][..., None] - scores[:, y == 0][:, None]
    soft = torch.tensor(pairs / 2).sigmoid().mean((1, 2))
    assert_allclose(soft_auroc(2)(logits, targets), soft, rtol=1e-12)


def test_group_gap_is_the_gap():
    logits, targets = probabilities()
    labels = np.random.RandomState(1).choice(list("abc"), size=200)
    p, y = logits.softmax(-1)[..., 1].numpy(), targets[0].numpy()
    for kind, rows in [("equal_opportunity", y == 1), ("demographic_parity", y >= 0)]:
        means = np.array([p[:, rows & (labels == g)].mean(1) for g in "abc"])
        gap = group_gap(labels, kind=kind)(logits, targets)
        assert_allclose(gap, means.min(0) - means.max(0), rtol=1e-12)


def test_worst_group_is_the_lowest_mean():
    logits, targets = probabilities(n_classes=3)
    labels = np.random.RandomState(1).randint(4, size=200)
    rows = log_likelihoods(logits, targets).numpy()
    means = np.array([rows[:, labels == g].mean(1) for g in range(4)])
    assert_allclose(worst_group(labels)(logits, targets), means.min(0), rtol=1e-12)
    soft = worst_group(labels, temperature=0.5)(logits, targets)
    expected = -0.5 * np.log(np.exp(-means / 0.5).mean(0))
    assert_allclose(soft, expected, rtol=1e-12)
    mild = worst_group(labels, temperature=1e6)(logits, targets)
    assert_allclose(mild, means.mean(0), rtol=1e-4)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_soft_calibration_error_becomes_that_of_hard_bins(n_classes):
    logits, targets = probabilities(n_classes=n_classes)
    p, y, errors = logits.softmax(-1)[0].numpy(), targets[0].numpy(), []
    for k in range(1 if n_classes == 2 else 0, n_classes):
        bins = np.minimum((p[:, k] * 5).astype(int), 4)
        missing = np.bincount(bins, (y == k) - p[:, k], minlength=5)
        errors.append(abs(missing).sum() / len(y))
    sharp = soft_calibration_error(5, temperature=1e-9)(logits, targets)
    assert_allclose(float(sharp[0]), -np.mean(errors), atol=1e-9)
    soft = soft_calibration_error(5)(logits, targets)
    assert (sharp < 0).all()
    assert (soft < 0).all()
    assert (soft > -1).all()


@pytest.mark.parametrize("kind", range(5))
def test_ready_made_outcomes_have_derivatives(kind):
    logits, targets = probabilities(n=24)
    labels = np.arange(24) % 3
    outcome = [
        soft_auroc(0.7),
        group_gap(labels),
        group_gap(labels, kind="demographic_parity"),
        worst_group(labels, temperature=0.3),
        soft_calibration_error(temperature=0.05),
    ][kind]
    leaf = logits.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda f: outcome(f, targets), leaf)
    # each of the leading axes by itself, also of unnormalised log-probabilities
    shifted = logits + torch.randn(3, 24, 1, generator=torch.Generator().manual_seed(0))
    alone = torch.stack([outcome(f, targets[0]) for f in shifted])
    assert_allclose(alone, outcome(logits, targets), rtol=1e-9)
    grid = outcome(logits[None], targets[None])
    assert grid.shape == (1, 3)


@pytest.mark.parametrize(
    "estimator",
    [
        net(loss=nn.BCEWithLogitsLoss(), module=nn.Linear(6, 1), max_epochs=5),
        LogisticRegression(random_state=0),
        MLPClassifier((4,), solver="lbfgs", max_iter=30, random_state=0),
    ],
    ids=["one logit", "log-probabilities", "shown"],
)
@pytest.mark.filterwarnings("ignore")
def test_models_of_other_outputs_have_the_same_outcome(estimator):
    X, y, *queries = data()
    dual = DualInfluence(estimator, outcome=soft_auroc(1e-6), random_state=0).fit(X, y)
    p = dual.estimator_.predict_proba(queries[0])[:, 1]
    ours = dual.predict_outcomes(*queries, np.ones((1, N)))
    assert_allclose(ours[0, 0], roc_auc_score(queries[1], p), atol=1e-9)
    error = dual.set_params(outcome=soft_calibration_error(1))
    ours = error.predict_outcomes(*queries, np.ones((1, N)))[0, 0]
    assert_allclose(ours, -abs((queries[1] - p).mean()), atol=1e-6)


def test_pairs_of_many_queries_are_compared_in_pieces(monkeypatch):
    logits, targets = probabilities()
    leaf = logits.clone().requires_grad_()
    whole = soft_auroc()(leaf, targets)
    (slope,) = torch.autograd.grad(whole.sum(), leaf)
    monkeypatch.setattr("skattrib.evaluation._sets._AT_ONCE", 1000)
    pieces = soft_auroc()(leaf, targets)
    assert_allclose(pieces.detach(), whole.detach(), rtol=1e-12)
    (again,) = torch.autograd.grad(pieces.sum(), leaf)
    assert_allclose(again, slope, rtol=1e-9)


# ------------------------------------------------------------------- refusals
def test_sets_that_make_no_sense_are_refused():
    X, _, Xq, yq = data()
    with pytest.raises(ValueError, match="groups holds one label, 'a'"):
        group_gap(["a"] * 5)
    with pytest.raises(ValueError, match=r"groups has shape \(2, 2\)"):
        worst_group([[1, 2], [3, 4]])
    with pytest.raises(ValueError, match="function must be a callable"):
        SetOutcome("log_likelihood")

    def asked(outcome, y=yq):
        return fitted("newton", outcome).attribute(Xq, y)

    with pytest.raises(ValueError, match="groups of 3 queries, and there are 60"):
        asked(group_gap(list("aba")))
    with pytest.raises(ValueError, match="all queries are of one"):
        asked(soft_auroc(), np.ones_like(yq))
    lonely = np.where(yq == 1, "a", "b")
    with pytest.raises(ValueError, match="the group 'b' has none"):
        asked(group_gap(lonely))
    assert asked(group_gap(lonely, kind="demographic_parity")).shape == (1, N)

    iris = load_iris(return_X_y=True)
    three = DualInfluence(net(max_epochs=2), outcome=soft_auroc(), random_state=0).fit(
        *iris
    )
    with pytest.raises(ValueError, match="of two classes, and the model has 3"):
        three.attribute(*iris)
    numbers = DualInfluence(Ridge(), outcome=worst_group([0, 1]), random_state=0).fit(
        X, X[:, 0]
    )
    with pytest.raises(ValueError, match="needs a classifier"):
        numbers.attribute(X[:2], X[:2, 0])


@pytest.mark.parametrize("name", ["newton", "influence", "run", "kernel"])
def test_a_function_of_another_shape_is_refused(name):
    *_, X, y = data()
    attributor = fitted(name, SetOutcome(log_likelihoods))
    with pytest.raises(
        ValueError, match=r"log_likelihoods\) returned shape .* one num"
    ):
        attributor.attribute(X, y)
    attributor.set_params(outcome=SetOutcome(lambda outputs, targets: 0.5))
    with pytest.raises(ValueError, match="returned float"):
        attributor.attribute(X, y)


@pytest.mark.parametrize("function", [correct, hard_auroc])
def test_what_has_no_derivative_is_refused_where_it_must_have_one(function):
    *_, X, y = data()
    outcome = SetOutcome(function)
    for name in ("influence", "queries solved", "run"):
        with pytest.raises(ValueError, match=r"cannot be diff.*KernelSurrogateAttr"):
            fitted(name, outcome).attribute(X, y)
    linear = DualInfluence(
        LogisticRegression(random_state=0),
        removal="influence",
        outcome=outcome,
        random_state=0,
    )
    with pytest.raises(ValueError, match="cannot be differentiated"):
        linear.fit(*data()[:2]).attribute(X, y)
    weights = make_weightings(N, 8, random_state=0)
    for name in ("newton", "kernel", "tangents"):
        assert np.ptp(fitted(name, outcome).predict_outcomes(X, y, weights)) > 0


def test_a_function_in_steps_is_named():
    *_, X, y = data()
    run = fitted("run", SetOutcome(lambda f, y: f.round().sum((-1, -2))))
    with pytest.warns(FaithfulnessWarning, match="The gradient of .* is 0"):
        assert not run.attribute(X, y).any()


def test_who_compares_single_queries_refuses_sets():
    X, y, *_ = data()
    outcome = soft_auroc()
    with pytest.raises(ValueError, match=r"RISEValuator compares .*DualInfluence"):
        RISEValuator(net(), outcome=outcome, random_state=0).fit(X, y)
    rise = RISEValuator(net(), random_state=0).fit(X, y).set_params(outcome=outcome)
    with pytest.raises(ValueError, match="RISEValuator compares"):
        rise.attribute(X, y)
    with pytest.raises(ValueError, match="GradientTransformer returns a gradient for"):
        GradientTransformer(net(), outcome=outcome, random_state=0).fit(X, y)
    selector = TaskWeightSelector(DualInfluence(net(), outcome=outcome), random_state=0)
    with pytest.raises(ValueError, match="tasks are judged by outcomes of single"):
        selector.fit(X, y, tasks=np.arange(N) % 5)


@pytest.mark.parametrize("n_sketches", [1, 2])
def test_the_mean_of_similarities_is_that_of_rows(n_sketches):
    X, y, *queries = data()
    rise = RISEValuator(net(), n_sketches=n_sketches, random_state=0).fit(X, y)
    rows, mean = rise.attribute(*queries), rise.attribute(*queries, reduce="mean")
    assert_allclose(mean, rows.mean(axis=0), atol=1e-6)
    if n_sketches > 1:
        _, errors = rise.attribute(*queries, reduce="mean", return_std=True)
        assert errors.shape == (N,)


# ----------------------------------------------------------- what is not finite
def test_a_bad_query_spoils_the_set_and_is_left_out_of_the_mean():
    *_, X, y = data()
    bad = X.copy()
    bad[[3, 8], 0] = 99
    for name in ("newton", "run", "kernel"):
        overflows = TorchClassifier(Overflows, max_epochs=5, random_state=0)
        attributor = made(name, overflows, outcome=soft_auroc())
        named = r"queries \[3, 8\].*leave them"
        with pytest.warns(FaithfulnessWarning, match=named) as caught:
            assert np.isnan(attributor.attribute(bad, y)).all()
        assert caught[-1].filename == __file__
        with pytest.warns(FaithfulnessWarning, match=r"queries \[3, 8\]"):
            predicted = attributor.predict_outcomes(bad, y, np.ones((2, N)))
        assert predicted.shape == (2, 1)
        assert np.isnan(predicted).all()
        with pytest.raises(ValueError, match=r"queries \[3, 8\] are NaN"):
            attributor.score(bad, y)
        attributor.set_params(outcome="auto")
        with pytest.warns(FaithfulnessWarning, match=r"queries \[3, 8\]") as caught:
            mean = attributor.attribute(bad, y, reduce="mean")
        assert caught[-1].filename == __file__
        good = np.delete(np.arange(N_QUERIES), [3, 8])
        alone = attributor.attribute(X[good], y[good], reduce="mean")
        assert_allclose(mean, alone, rtol=1e-9)
        with pytest.warns(FaithfulnessWarning):
            assert np.isnan(attributor.attribute(bad[3:4], y[3:4], reduce="mean")).all()


def test_a_function_that_is_not_finite_is_named():
    *_, X, y = data()
    dual = fitted("newton", SetOutcome(lambda f, y: f.mean((-1, -2)) * torch.nan))
    with pytest.warns(FaithfulnessWarning, match="for the set of queries is not fin"):
        dual.attribute(X, y)


# ------------------------------------------------------------------------ others
@pytest.mark.parametrize("memory", [1024, 0.01])
def test_attributors_of_others_have_means_and_ends(memory):
    X, y, *queries = data()
    same = Same(net(max_epochs=2), random_state=0).fit(X, y)
    with sklearn.config_context(working_memory=memory):
        mean, errors = same.attribute(*queries, reduce="mean", return_std=True)
        values, units = same.attribute(*queries, top_k=2)
    share = np.mean(queries[1][:, None] == y, axis=0)
    assert_allclose(mean, share)
    assert_allclose(errors, share + 1)
    assert (y[units[:, :2]] == queries[1][:, None]).all()
    assert_array_equal(values, np.tile([1.0, 1, 0, 0], (N_QUERIES, 1)))
    same.set_params(outcome=soft_auroc())
    with pytest.raises(ValueError, match="Same returned attributions of shape"):
        same.attribute(*queries)


def test_gradients_of_the_extension_know_sets():
    X, y, *queries = data()
    dot = GradientDot(net(), outcome=soft_auroc(), random_state=0).fit(X, y)
    by_set = dot.attribute(*queries)
    assert by_set.shape == (1, N)
    assert np.ptp(by_set) > 0
    dot.set_params(outcome=SetOutcome(mean_log_likelihood))
    mean = dot.attribute(*queries)[0]
    dot.set_params(outcome="auto")
    assert_allclose(dot.attribute(*queries, reduce="mean"), mean, atol=1e-9)


def test_any_estimator_by_retraining():
    X, y, *queries = data()
    trees = HistGradientBoostingClassifier(max_iter=5, random_state=0)
    outcome = SetOutcome(hard_auroc)
    surrogate = KernelSurrogateAttributor(
        trees, n_subsets=20, include_loo=False, outcome=outcome, random_state=0
    )
    assert surrogate.fit(X, y).attribute(*queries).shape == (1, N)
    present = surrogate._source.outcomes(*queries, outcome)[0, 0]
    p = surrogate.estimator_.predict_proba(queries[0])[:, 1]
    assert_allclose(present, roc_auc_score(queries[1], p), atol=1e-9)


def test_a_pipeline_is_that_of_its_model():
    X, y, *queries = data()
    scaler = StandardScaler().fit(3 * X + 1)
    outcome = soft_auroc()
    inside = DualInfluence(
        make_pipeline(StandardScaler(), net()), outcome=outcome, random_state=0
    ).fit(3 * X + 1, y)
    alone = DualInfluence(net(), outcome=outcome, random_state=0)
    alone.fit(scaler.transform(3 * X + 1), y)
    moved = 3 * queries[0] + 1
    expected = alone.attribute(scaler.transform(moved), queries[1])
    assert_allclose(inside.attribute(moved, queries[1]), expected, atol=1e-9)


def largest_error(outputs, targets):
    return -(outputs - targets).abs().amax((-1, -2))


def mean_error(outputs, targets):
    return -(outputs - targets).square().mean((-1, -2)) / 2


@pytest.mark.parametrize("regressor", [Ridge(), TorchRegressor(max_epochs=5)], ids=str)
def test_outcomes_of_transformed_targets_are_in_the_unit_of_y(regressor):
    X, y = make_regression(60, 4, noise=5.0, random_state=0)
    if "random_state" in regressor.get_params():
        regressor = clone(regressor).set_params(random_state=0)
    model = TransformedTargetRegressor(clone(regressor), transformer=StandardScaler())
    train, queries = (X[:40], y[:40]), (X[40:], y[40:])
    for function in (largest_error, mean_error):
        dual = DualInfluence(model, outcome=SetOutcome(function), random_state=0)
        dual.fit(*train)
        errors = dual.estimator_.predict(queries[0]) - queries[1]
        own = {largest_error: -abs(errors).max(), mean_error: -np.mean(errors**2) / 2}
        ours = dual.predict_outcomes(*queries, np.ones((1, 40)))[0, 0]
        assert_allclose(ours, own[function], rtol=1e-4)
        assert dual.score(*queries) > 0.5
    mean = dual.set_params(outcome="auto").attribute(*queries, reduce="mean")
    dual.set_params(outcome=SetOutcome(mean_error))
    assert_allclose(mean, dual.attribute(*queries)[0], rtol=1e-4, atol=1e-3)
    dual = DualInfluence(model, removal="influence", random_state=0).fit(*train)
    rows = dual.attribute(*queries)
    mean = dual.attribute(*queries, reduce="mean")
    assert_allclose(mean, rows.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_sets_are_copied_and_told_apart(tmp_path):
    X, y, *queries = data()
    labels = groups()
    outcomes = [
        soft_auroc(),
        soft_auroc(2.0),
        group_gap(labels),
        group_gap(labels, kind="demographic_parity"),
        group_gap(labels[::-1].copy()),
        worst_group(labels),
        soft_calibration_error(),
        SetOutcome(correct),
        SetOutcome(partial(torch.mean, dim=(-1, -2))),
    ]
    keys = [digest(outcome) for outcome in outcomes]
    assert len(set(keys)) == len(keys)
    again = [digest(pickle.loads(pickle.dumps(outcome))) for outcome in outcomes]
    assert again == keys
    attributor = fitted("newton", group_gap(labels))
    copies = [clone(attributor).fit(X, y), pickle.loads(pickle.dumps(attributor))]
    for same in copies:
        expected = attributor.attribute(*queries)
        assert_array_equal(same.attribute(*queries), expected)
    weights = make_weightings(N, 4, random_state=0)
    options = {"outcome": soft_auroc(), "memory": str(tmp_path)}
    first = retrain_outcomes(net(), X, y, weights, *queries, **options)
    second = retrain_outcomes(net(), X, y, weights, *queries, **options)
    assert_array_equal(first, second)
    options["outcome"] = soft_auroc(2.0)
    other = retrain_outcomes(net(), X, y, weights, *queries, **options)
    assert (other != first).all()


SIZE = 1.0


def scaled(outputs, targets):
    return SIZE * widths(outputs).mean(-1)


def widths(outputs):
    return outputs.amax(-1) - outputs.amin(-1)


class Scaled:
    size = 1.0

    def __call__(self, outputs, targets):
        return self.size * self.widths(outputs).mean(-1)

    def widths(self, outputs):
        return widths(outputs)


class Inherits(Scaled):
    @property
    def double(self):
        return 2 * self.size


@dataclass(frozen=True, slots=True)
class Slots:
    size: float

    def __call__(self, outputs, targets):
        return self.size * widths(outputs).mean(-1)


@pytest.mark.parametrize("changed", ["global", "function", "class", "inherited"])
def test_what_a_function_reads_tells_it_from_others(changed, monkeypatch):
    function = {"class": Scaled(), "inherited": Inherits()}.get(changed, scaled)
    before = digest(SetOutcome(function))
    assert digest(SetOutcome(function)) == before
    here = sys.modules[__name__]
    if changed == "global":
        monkeypatch.setattr(here, "SIZE", 2.0)
    elif changed == "function":
        monkeypatch.setattr(here, "widths", lambda outputs: outputs.amax(-1))
    elif changed == "class":
        monkeypatch.setattr(Scaled, "size", 2.0)
    else:
        monkeypatch.setattr(Scaled, "widths", lambda _, outputs: outputs.amax(-1))
    assert digest(SetOutcome(function)) != before


def test_attributes_without_a_dict_tell_functions_apart():
    alike = [Slots(1.0), Slots(2.0), itemgetter(0), itemgetter(1)]
    assert len({digest(function) for function in alike}) == 4
    assert digest(Slots(1.0)) == digest(Slots(1.0))


def test_an_answer_is_not_given_again_for_another_global(monkeypatch):
    _, _, *queries = data()
    attributor = fitted("newton", SetOutcome(scaled))
    before = attributor.attribute(*queries)
    monkeypatch.setattr(sys.modules[__name__], "SIZE", 2.0)
    assert_allclose(attributor.attribute(*queries), 2 * before)


def test_damping_is_calibrated_by_single_rows():
    *_, X, y = data()
    of_set = made("newton", outcome=group_gap(groups()), ridge="calibrate")
    assert of_set.ridge_rule_ == made("newton", ridge="calibrate").ridge_rule_
    assert of_set.attribute(X, y).shape == (1, N)
