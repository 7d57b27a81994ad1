"""RISEValuator on tables: identities, retrieval, values of new rows, the index."""

import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import spearmanr
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, scale
from torch import nn

import skattrib.models._network
import skattrib.retrieval._sources
from skattrib import RISEValuator, TorchClassifier, TorchRegressor
from skattrib.evaluation import lds_scorer, retrieval_score
from skattrib.exceptions import (
    FaithfulnessWarning,
    IndexMismatchError,
    TrajectoryError,
)
from skattrib.retrieval import _signatures
from tests.cases import build

EXACT = {
    "sketch": None,
    "channels": ("rh",),
    "top_k": None,
    "temperature": 1.0,
    "normalize": False,
}


def data(n=60, n_queries=8):
    X, y = load_iris(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(y))
    X, y = scale(X)[order], y[order]
    return X[:n], y[:n], X[-n_queries:], y[-n_queries:]


def net(**options):
    options = {"hidden_layer_sizes": (5,), "max_epochs": 15, **options}
    return TorchClassifier(random_state=0, **options)


def make(estimator=None, **options):
    options = {"n_retrainings": 8, "random_state": 0, **options}
    return RISEValuator(net() if estimator is None else estimator, **options)


def head_gradients(estimator, X, y, outcome="log_likelihood"):
    """Return minus the gradient of each row's outcome in the last layer, (n, ·)."""
    module = estimator.module_
    last = [m for m in module.modules() if isinstance(m, nn.Linear)][-1]
    found = []
    for row, target in zip(torch.tensor(X), y, strict=True):
        out = module(row[None])
        if outcome == "prediction":
            value = -out[0, 0]
        elif isinstance(estimator, TorchRegressor):
            value = 0.5 * ((out[0] - torch.tensor(target)) ** 2).sum()
        else:
            code = int(np.searchsorted(estimator.classes_, target))
            value = -out.log_softmax(dim=1)[0, code]
            if outcome == "margin":
                others = torch.cat([out[0, :code], out[0, code + 1 :]])
                value = others.logsumexp(0) - out[0, code]
        grads = torch.autograd.grad(value, [last.weight, last.bias])
        found.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(found).numpy()


# ------------------------------------------------------------------ identities
@pytest.mark.parametrize("outcome", ["log_likelihood", "margin"])
def test_exact_scores_are_inner_products_of_head_gradients(outcome):
    X, y, Xq, yq = data()
    rise = make(outcome=outcome, **EXACT).fit(X, y)
    rows = head_gradients(rise.estimator_, X, y)
    queries = head_gradients(rise.estimator_, Xq, yq, outcome)
    assert_allclose(rise.attribute(Xq, yq), queries @ rows.T, rtol=0, atol=1e-10)


def test_regression():
    X, _, Xq, _ = data()
    model = TorchRegressor(hidden_layer_sizes=(4,), max_epochs=10, random_state=0)
    rise = make(model, **EXACT).fit(X[:, :2], X[:, 2:])
    rows = head_gradients(rise.estimator_, X[:, :2], X[:, 2:])
    queries = head_gradients(rise.estimator_, Xq[:, :2], Xq[:, 2:])
    found = rise.attribute(Xq[:, :2], Xq[:, 2:])
    assert_allclose(found, queries @ rows.T, atol=1e-10)
    one = make(model, **EXACT).fit(X[:, :2], X[:, 2])
    own = head_gradients(one.estimator_, Xq[:, :2], X[:8, 2], "prediction")
    rows = head_gradients(one.estimator_, X[:, :2], X[:, 2:3])
    assert_allclose(one.transform(Xq[:, :2]), own @ rows.T, atol=1e-10)


def test_scores_are_cosines_by_channel():
    X, y, Xq, yq = data()
    weights = {"rh": 1.0, "gh": 0.5}
    rise = make(sketch=None, temperature=1.0, channel_weights=weights).fit(X, y)
    found = rise.attribute(Xq, yq)
    last = rise.estimator_.module_[-1].weight.detach().numpy()
    expected = 0.0
    for channel, weight in weights.items():
        pair = []
        for rows, labels in ((Xq, yq), (X, y)):
            grads = head_gradients(rise.estimator_, rows, labels)
            joined = np.concatenate(
                [grads[:, :15].reshape(-1, 3, 5), grads[:, 15:, None]], axis=2
            )
            if channel == "gh":
                joined = np.einsum("co,nch->noh", last, joined)
            flat = joined.reshape(len(joined), -1)
            pair.append(flat / np.linalg.norm(flat, axis=1, keepdims=True))
        expected = expected + weight**2 * pair[0] @ pair[1].T
    assert_allclose(found, expected / 1.25, atol=1e-10)
    assert np.abs(found).max() <= 1 + 1e-12


def test_tasks_and_sample_weights_add_up():
    X, y, Xq, yq = data()
    weights = np.random.RandomState(0).uniform(0.5, 2, 60)
    tasks = np.arange(60) % 4
    rows = make().fit(X, y, sample_weight=weights).attribute(Xq, yq)
    units = make().fit(X, y, tasks=tasks, sample_weight=weights).attribute(Xq, yq)
    for t in range(4):
        assert_allclose(units[:, t], rows[:, tasks == t].sum(axis=1), atol=1e-12)


@pytest.mark.parametrize("sketch", ["tensor", "factor"])
def test_wide_sketches_rank_as_exact_channels_do(sketch):
    X, y, Xq, yq = data()
    exact = make(sketch=None).fit(X, y).attribute(Xq, yq)
    ranks = []
    for size in (16, 4096):
        found = make(sketch=sketch, n_components=size).fit(X, y).attribute(Xq, yq)
        ranks.append(spearmanr(found.ravel(), exact.ravel()).statistic)
    assert ranks[1] > 0.97
    assert ranks[1] > ranks[0]


def test_several_sketches_have_error_bars():
    X, y, Xq, yq = data()
    exact = make(sketch=None).fit(X, y).attribute(Xq, yq)
    rise = make(n_components=32, n_sketches=6).fit(X, y)
    found, std = rise.attribute(Xq, yq, return_std=True)
    assert 0.2 < np.median(np.abs(found - exact) / std) < 2.5
    scores, rows = rise.retrieve(Xq, yq, n=5)
    order = np.argsort(-found, axis=1, kind="stable")[:, :5]
    assert_array_equal(rows, order)
    assert_allclose(scores, np.take_along_axis(found, order, axis=1))
    with pytest.raises(ValueError, match=r"return_std=True needs .* Pass n_sketches=4"):
        make().fit(X, y).attribute(Xq, yq, return_std=True)


@pytest.mark.parametrize("normalize", [True, False])
def test_values_of_new_rows_are_means_of_scores(normalize):
    X, y, Xq, yq = data()
    for channels in (("rh", "gh"), ("rh", "h")):
        rise = make(channels=channels, normalize=normalize).fit(X, y)
        expected = rise.attribute(Xq, yq).mean(axis=1)
        assert_allclose(rise.score_samples(Xq, yq), expected, atol=1e-10)


def test_hidden_states_are_centred():
    X, y, Xq, yq = data()
    rise = make(channels=("h",), sketch=None).fit(X, y)
    module = rise.estimator_.module_
    with torch.no_grad():
        h, hq = (module[:-1](torch.tensor(v)).numpy() for v in (X, Xq))
    h, hq = h - h.mean(axis=0), hq - h.mean(axis=0)
    h, hq = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (h, hq))
    assert_allclose(rise.attribute(Xq, yq), hq @ h.T, atol=1e-6)


@pytest.mark.slow
def test_blocks_change_nothing():
    X, y, Xq, yq = data()
    for options in ({}, {"channels": ("rh", "h")}, {"n_sketches": 2}):
        whole = make(**options).fit(X, y)
        with sklearn.config_context(working_memory=0.01):
            cut = make(**options).fit(X, y)
            assert_allclose(cut.attribute(Xq, yq), whole.attribute(Xq, yq), atol=1e-10)
            assert_allclose(
                cut.score_samples(Xq, yq), whole.score_samples(Xq, yq), atol=1e-10
            )
            pairs = zip(
                cut.retrieve(Xq, yq, n=3), whole.retrieve(Xq, yq, n=3), strict=True
            )
            for mine, theirs in pairs:
                assert_allclose(mine, theirs, atol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_of_the_query_stays(dtype):
    X, y, Xq, yq = data()
    rise = make().fit(X.astype(dtype), y)
    Xq = Xq.astype(dtype)
    assert rise.attribute(Xq, yq).dtype == dtype
    assert rise.score_samples(Xq, yq).dtype == dtype
    assert rise.retrieve(Xq, yq)[0].dtype == dtype


# ------------------------------------------------------------------- retrieval
@pytest.fixture(scope="module")
def poisoned():
    """Digits, 5 % of them with a bright corner and the label 0."""
    X, y = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(y))
    X, y = X[order] / 16, y[order].copy()
    rng = np.random.RandomState(1)
    bad = np.zeros(1000, dtype=bool)
    bad[rng.choice(np.flatnonzero(y[:1000] != 0), 50, replace=False)] = True
    X[:1000][bad] = patched(X[:1000][bad])
    y[:1000][bad] = 0
    some = 1000 + np.flatnonzero(y[1000:1300] != 0)[:60]
    model = TorchClassifier(
        hidden_layer_sizes=(16,), batch_size=32, max_epochs=30, random_state=0
    ).fit(X[:1000], y[:1000])
    queries = patched(X[some])
    assert (model.predict(queries) == 0).mean() > 0.8
    return model, X[:1000], y[:1000], bad, queries, np.zeros(60, dtype=int)


def patched(X):
    X = X.copy().reshape(-1, 8, 8)
    X[:, :2, :2] = 1.0
    return X.reshape(-1, 64)


def test_a_backdoor_is_found_in_a_few_hundred_bytes_a_row(poisoned):
    model, X, y, bad, Xq, yq = poisoned
    rise = make(FrozenEstimator(model), n_components=128).fit(X, y)
    assert rise.bytes_per_row_ == 512
    relevance = np.tile(bad, (60, 1))
    auc = retrieval_score(rise.attribute(Xq, yq), relevance, metric="roc_auc")
    assert auc > 0.88
    _, rows = rise.retrieve(Xq, yq, n=20)
    assert bad[rows].mean() > 0.4  # one row in twenty is


def test_sure_predictions_vanish_at_a_low_temperature(poisoned):
    model, X, y, _, Xq, yq = poisoned
    frozen = FrozenEstimator(model)
    assert make(frozen).fit(X, y).diagnose(Xq, yq).vanishing_share < 0.5
    with pytest.warns(FaithfulnessWarning, match="residuals vanish"):
        found = make(frozen, temperature=0.02).fit(X, y).diagnose(Xq, yq)
    assert not found.trustworthy


def test_residuals_that_are_all_zero_are_said_to_vanish(poisoned):
    model, X, y, _, Xq, _ = poisoned
    rise = make(FrozenEstimator(model), temperature=1e-4).fit(X, y)
    with pytest.warns(FaithfulnessWarning, match="residuals vanish"):
        found = rise.diagnose(Xq[:4], model.predict(Xq[:4]))
    assert found.sketch_correlation is None


def test_sketches_that_are_too_small_are_not_trusted(poisoned):
    model, X, y, _, Xq, yq = poisoned
    rise = make(FrozenEstimator(model), n_components=2).fit(X, y)
    with pytest.warns(FaithfulnessWarning, match="sketched and exact scores of rows"):
        found = rise.diagnose(Xq, yq)
    assert not found.trustworthy


def test_the_published_settings():
    X, y, Xq, yq = data()
    rise = make(preset="paper").fit(X, y)
    assert rise.bytes_per_row_ == 2 * 128 * (128 + 64)
    spelt = make(
        n_components={"r": 128, "g": 64, "h": 128},
        sketch="factor",
        channel_weights={"rh": 1.0, "gh": 0.3},
        top_k=256,
        temperature=0.1,
        normalize="token",
    ).fit(X, y)
    assert_array_equal(rise.attribute(Xq, yq), spelt.attribute(Xq, yq))


def test_scores_rank_retrained_networks():
    X, y, Xq, yq = data()
    assert make(n_retrainings=24).fit(X, y).score(Xq, yq) > 0.4


def test_there_are_no_predicted_outcomes():
    X, y, Xq, yq = data()
    rise = make().fit(X, y)
    assert not hasattr(rise, "predict_outcomes")
    with pytest.raises(AttributeError, match="similarities"):
        rise.predict_outcomes(Xq, yq, np.ones((1, 60)))


def test_diagnose_compares_with_unsketched_scores():
    X, y, Xq, yq = data()
    narrow, wide = (
        make(n_components=m).fit(X, y).diagnose(Xq, yq).sketch_correlation
        for m in (64, 4096)
    )
    assert narrow < wide
    assert wide > 0.97
    assert make(sketch=None).fit(X, y).diagnose(Xq, yq).sketch_correlation == 1
    assert make().fit(X, y).diagnose(Xq, yq, n_retrainings=8).lds > 0
    small = {"working_memory": 0.001}
    with sklearn.config_context(**small):
        rise = make(n_components=64).fit(X, y)
        assert rise.diagnose(Xq, yq).sketch_correlation is None


def test_the_verdict_says_what_was_checked():
    X, y, Xq, yq = data()
    rise = make().fit(X, y)
    said = rise.diagnose(Xq, yq).verdict
    untried = (
        "Nothing speaks against it, but retrained outcomes are unknown: residuals are "
    )
    assert said.startswith(untried)
    assert "sketched and exact scores of rows" in said
    unchecked = "not the effect of retraining:"
    assert said.endswith(f"the sketch, {unchecked} pass n_retrainings to compare.")
    said = rise.diagnose(Xq, yq, n_retrainings=8).verdict
    assert said.startswith("Trust: ")
    assert "rank correlation with retrained outcomes" in said
    assert unchecked not in said
    said = make(sketch=None).fit(X, y).diagnose(Xq, yq).verdict
    assert f"This checked the residuals, {unchecked}" in said
    assert "sketch" not in said
    bare = TorchClassifier.from_module(net().fit(X, y).module_, [0, 1, 2])
    said = make(FrozenEstimator(bare)).fit(X, y).diagnose(Xq, yq).verdict
    assert f"{unchecked} this model cannot be retrained" in said
    with sklearn.config_context(working_memory=0.001):
        said = rise.diagnose(Xq, yq).verdict
    assert "The sketch was not checked: exact scores need more memory." in said


def test_diagnose_signs_queries_once(monkeypatch):
    X, y, Xq, yq = data()
    rise, signed = make(algorithm="faiss").fit(X, y), []
    real = _signatures.Signer.__call__

    def counted(self, X, y, outcome="log_likelihood"):
        signed.append((self._options["sketch"], len(X)))
        return real(self, X, y, outcome)

    monkeypatch.setattr(_signatures.Signer, "__call__", counted)
    rise.diagnose(Xq, yq)
    # without a sketch: rows of the index, and queries
    assert signed == [("tensor", 8), (None, 60), (None, 8)]


# ----------------------------------------------------------------------- index
def test_rows_are_added(tmp_path):
    X, y, Xq, yq = data()
    for index in (None, tmp_path / "index"):
        rise = make(index=index).fit(X, y)
        before = rise.attribute(Xq, yq)
        rise.partial_fit(Xq[:3], yq[:3])
        assert rise.n_units_ == 63
        assert_array_equal(rise.unit_names_, np.arange(63))
        found = rise.attribute(Xq, yq)
        assert_allclose(found[:, :60], before, atol=1e-12)
        assert_allclose(np.diag(found[:3, 60:]), 1, atol=2e-3)
        assert_array_equal(rise.retrieve(Xq[:1], yq[:1], n=1)[1], [[60]])
        with pytest.raises(ValueError, match="3 rows were added by partial_fit"):
            rise.score(Xq, yq)
        with pytest.raises(ValueError, match="3 rows were added by partial_fit"):
            rise.diagnose(Xq, yq, n_retrainings=8)
        with pytest.raises(ValueError, match="requires y"):
            rise.partial_fit(Xq, None)
    named = make().fit(pd.DataFrame(X, index=[f"r{i}" for i in range(60)]), y)
    named.partial_fit(pd.DataFrame(Xq[:2]), yq[:2])
    assert list(named.get_feature_names_out()[-3:]) == ["r59", "60", "61"]
    late = make().fit(pd.DataFrame(X, index=np.arange(30, 90)), y)
    late.partial_fit(pd.DataFrame(Xq[:2]), yq[:2])
    assert list(late.unit_names_[-3:]) == [89, 90, 91]


def test_fitting_again_forgets_the_rows_that_were_added(tmp_path):
    X, y, Xq, yq = data()
    rise = make(index=tmp_path / "index").fit(X, y)
    before = rise.attribute(Xq, yq)
    rise.partial_fit(Xq, yq)
    again = make(index=tmp_path / "index").fit(X, y)
    assert again.n_units_ == 60
    assert_array_equal(again.attribute(Xq, yq), before)
    with pytest.raises(IndexMismatchError, match="has 68 rows on disk"):
        again.partial_fit(Xq[1:], yq[1:])
    # the same additions, as by a program that is started again, take them up
    again.partial_fit(Xq[:3], yq[:3]).partial_fit(Xq[3:], yq[3:])
    assert_array_equal(again.attribute(Xq, yq), rise.attribute(Xq, yq))
    again.partial_fit(X[:1], y[:1])
    assert again.n_units_ == 69
    assert rise.attribute(Xq, yq).shape == (8, 68)


def test_an_interrupted_addition_goes_on(tmp_path, monkeypatch):
    X, y, Xq, yq = data()
    rise = make(index=tmp_path / "index").fit(X, y)
    whole = make().fit(X, y).partial_fit(Xq, yq).attribute(Xq, yq)
    monkeypatch.setattr(_signatures.Signer, "batch_size", lambda self: 3)
    real, calls = _signatures.Signer.__call__, []

    def killed(self, X, y, outcome="log_likelihood"):
        calls.append(len(X))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, X, y, outcome)

    with monkeypatch.context() as patch:
        patch.setattr(_signatures.Signer, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            rise.partial_fit(Xq, yq)
    assert rise.n_units_ == len(rise.unit_names_) == 63
    rise.partial_fit(Xq[3:], yq[3:])
    assert_allclose(rise.attribute(Xq, yq), whole, atol=1e-12)


def test_partial_fit_first_is_fit():
    X, y, Xq, yq = data()
    first = make().partial_fit(X, y)
    assert_array_equal(first.attribute(Xq, yq), make().fit(X, y).attribute(Xq, yq))


def test_an_index_on_disk_is_taken_up(tmp_path, monkeypatch):
    X, y, Xq, yq = data()
    path, signed = tmp_path / "index", []
    memory = make().fit(X, y).attribute(Xq, yq)
    real = _signatures.Signer.__call__

    def counted(self, X, y, outcome="log_likelihood"):
        if len(signed) == 3 and killed:
            raise KeyboardInterrupt
        signed.append(len(X))
        return real(self, X, y, outcome)

    killed = True
    monkeypatch.setattr(_signatures.Signer, "__call__", counted)
    monkeypatch.setattr(_signatures.Signer, "batch_size", lambda self: 16)
    with pytest.raises(KeyboardInterrupt):
        make(index=path).fit(X, y)
    assert signed == [16, 16, 16]
    killed = False
    rise = make(index=str(path)).fit(X, y)
    assert signed == [16, 16, 16, 12]
    assert rise.index_path_ == str(path)
    assert_allclose(rise.attribute(Xq, yq), memory, atol=1e-12)
    signed.clear()
    again = make(index=path).fit(X, y)
    assert signed == []
    assert_array_equal(again.attribute(Xq, yq), rise.attribute(Xq, yq))


def test_queries_copy_no_weights_and_try_no_layers(monkeypatch):
    X, y, Xq, yq = data()
    rise = make().fit(X, y)
    expected = rise.attribute(Xq, yq)

    def refuse(*_):
        raise AssertionError("done once, in fit")

    monkeypatch.setattr(nn.Parameter, "__deepcopy__", refuse)
    for name in ("find_head", "activation_size"):
        monkeypatch.setattr(skattrib.retrieval._sources, name, refuse)
    again = pickle.loads(pickle.dumps(rise))
    for valuator in (rise, again):
        assert_array_equal(valuator.attribute(Xq, yq), expected)
        valuator.score_samples(Xq, yq)
        valuator.diagnose(Xq, yq)


def test_queries_may_come_from_any_thread():
    X, y, Xq, yq = data()
    rise = make().fit(X, y)
    before, expected = pickle.dumps(rise), rise.attribute(Xq, yq)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: rise.attribute(Xq, yq), range(30)):
            assert_array_equal(found, expected)
    assert joblib.hash(pickle.dumps(rise)) == joblib.hash(before)


def test_pickles_of_both_kinds(tmp_path):
    X, y, Xq, yq = data()
    sizes = []
    for index in (None, tmp_path / "index"):
        rise = make(n_components=4096, index=index).fit(X, y)
        pickled = pickle.dumps(rise)
        again = pickle.loads(pickled)
        assert_array_equal(again.attribute(Xq, yq), rise.attribute(Xq, yq))
        sizes.append(len(pickled))
    assert sizes[1] < sizes[0] / 10
    # more rows by now do not matter, another index does
    clone(rise).fit(X, y).partial_fit(Xq, yq)
    assert_array_equal(pickle.loads(pickled).attribute(Xq, yq), rise.attribute(Xq, yq))
    shutil.rmtree(tmp_path / "index")
    make(index=tmp_path / "index").fit(X, y)
    with pytest.raises(IndexMismatchError, match="no longer the one"):
        pickle.loads(pickled)


OTHERS = {
    "the model": ({"estimator": net(max_epochs=16)}, "differs in the model"),
    "top_k": ({"top_k": 2}, r"differs in top_k \(128 on disk, 2 here\)"),
    "components": ({"n_components": 64}, r"n_components \(256 on disk, 64 here\)"),
    "channels": ({"channels": ("rh",)}, "differs in channels"),
    "seed": ({"random_state": 1, "estimator": net()}, "differs in seed"),
    "temperature": ({"temperature": 2.0}, "differs in temperature"),
}


@pytest.mark.parametrize(("change", "message"), OTHERS.values(), ids=list(OTHERS))
def test_an_index_of_something_else_is_refused_by_name(change, message, tmp_path):
    X, y, *_ = data()
    make(index=tmp_path / "index").fit(X, y)
    with pytest.raises(IndexMismatchError, match=message):
        make(index=tmp_path / "index", **change).fit(X, y)


def test_an_index_of_other_rows_is_refused(tmp_path):
    X, y, Xq, yq = data()
    make(FrozenEstimator(net().fit(X, y)), index=tmp_path / "index").fit(X, y)
    with pytest.raises(IndexMismatchError, match="has other rows or labels"):
        make(FrozenEstimator(net().fit(X, y)), index=tmp_path / "index").fit(Xq, yq)


# ---------------------------------------------------------------------- errors
ERRORS = {
    "channel": ({"channels": ("rh", "rg")}, "channels=.*must be one or more of"),
    "no channel": ({"channels": ()}, "channels=.*must be one or more of"),
    "channel twice": ({"channels": ("rh", "rh")}, "must be one or more of"),
    "a bare channel": ({"channels": "h"}, r"channels='h' must be a tuple.*\('h',\)"),
    "weights of some": (
        {"channel_weights": {"rh": 1.0}},
        "number above 0 for each of the channels",
    ),
    "negative weight": (
        {"channel_weights": {"rh": 1.0, "gh": -1.0}},
        "a number above 0",
    ),
    "a dict for tensors": ({"n_components": {"r": 2}}, "must be a whole number"),
    "a factor is missing": (
        {"sketch": "factor", "n_components": {"r": 2, "h": 3}},
        "must have a whole number above 0 for each",
    ),
    "temperature": ({"temperature": 0.0}, "'temperature' parameter"),
    "top_k": ({"top_k": 0}, "'top_k' parameter"),
    "not torch": ({"estimator": LogisticRegression()}, "needs gradients"),
    "an index without a seed": (
        {"index": "somewhere", "random_state": None},
        "needs an int random_state",
    ),
}


@pytest.mark.parametrize(("change", "message"), ERRORS.values(), ids=list(ERRORS))
@pytest.mark.touches_global_rng
def test_bad_input(change, message, monkeypatch):
    X, y, *_ = data()

    def trained(*args, **options):
        raise AssertionError("trained before the error")

    monkeypatch.setattr(skattrib.models._network, "train", trained)
    rise = make(**change)
    with pytest.raises(ValueError, match=message):
        rise.fit(X, y)
    assert not hasattr(rise, "n_units_")


def capped(n_features, n_outputs):
    return nn.Sequential(nn.Linear(n_features, n_outputs), nn.Tanh())


def test_what_is_known_only_with_the_rows_is_said_before_training(
    tmp_path, monkeypatch
):
    X, y, *_ = data()
    make(index=tmp_path / "index").fit(X, y)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()

    def trained(*args, **options):
        raise AssertionError("trained before the error")

    monkeypatch.setattr(skattrib.models._network, "train", trained)
    for change, message in [
        ({"estimator": net(module=capped)}, r"not that of an nn\.Linear layer"),
        ({"index": tmp_path / "nowhere" / "i"}, "there is no folder"),
        ({"index": tmp_path / "file"}, "is not an index: .* Pass another path"),
        ({"index": tmp_path / "folder"}, "is not an index: .* Pass another path"),
        ({"index": ""}, "index='' is not a path"),
        ({"index": tmp_path / "index", "top_k": 2}, "differs in top_k"),
        ({"index": tmp_path / "index", "random_state": 1}, "differs in seed"),
    ]:
        with pytest.raises(ValueError, match=message):
            make(**change).fit(X, y)


def contents(folder):
    """Return the bytes of every file of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files}


def _edited(path, old, new):
    path.write_bytes(path.read_bytes().replace(old, new))


def _cut(path):
    path.write_bytes(path.read_bytes()[:-1])


REFUSED = {
    "another model": ({"estimator": net(max_epochs=16)}, None, "differs in the model"),
    "other settings": ({"top_k": 2}, None, "differs in top_k .128 on disk, 2 here."),
    "an older version": (
        {},
        lambda p: _edited(p / "header.json", b'"version": 1', b'"version": 0'),
        "has version 0, but this skattrib reads version 1: build it again",
    ),
    **{
        f"cut {name}": ({}, lambda p, name=name: _cut(p / name), f"damaged: {name}")
        for name in (
            "header.json",
            "tables.safetensors",
            "signatures.bin",
            "norms.bin",
            "checksums.bin",
        )
    },
}


@pytest.mark.parametrize(("change", "spoil", "message"), REFUSED.values(), ids=REFUSED)
def test_an_index_that_is_refused_stays_as_it_was(change, spoil, message, tmp_path):
    X, y, *_ = data()
    make(index=tmp_path / "index").fit(X, y)
    if spoil is not None:
        spoil(tmp_path / "index")
    before, rise = contents(tmp_path), make(index=tmp_path / "index", **change)
    with pytest.raises(IndexMismatchError, match=message):
        rise.fit(X, y)
    assert contents(tmp_path) == before
    assert not hasattr(rise, "n_units_")


def test_a_model_with_nan_makes_no_index(tmp_path):
    X, y, *_ = data()
    module = build(lambda: nn.Linear(4, 3))
    with torch.no_grad():
        module.weight[0, 0] = torch.nan
    broken = FrozenEstimator(TorchClassifier.from_module(module, [0, 1, 2]))
    for index in (None, tmp_path / "index"):
        with pytest.raises(ValueError, match="The model's weight has NaN: its"):
            make(broken, index=index).fit(X, y)
    end = build(lambda: capped(4, 3))
    headless = FrozenEstimator(TorchClassifier.from_module(end, [0, 1, 2]))
    with pytest.raises(ValueError, match=r"not that of an nn\.Linear layer"):
        make(headless, index=tmp_path / "index").fit(X, y)
    assert not list(tmp_path.iterdir())


def test_numbers_of_numpy_are_numbers(tmp_path):
    X, y, Xq, yq = data()
    options = {"top_k": 2, "n_sketches": 2, "temperature": 2.0, "normalize": True}
    kinds = [np.int64, np.int32, np.float32, np.bool_]
    numpy = {k: kind(v) for (k, v), kind in zip(options.items(), kinds, strict=True)}
    plain = make(index=tmp_path / "index", **options).fit(X, y)
    found = make(index=tmp_path / "index", **numpy).fit(X, y)
    assert_array_equal(found.attribute(Xq, yq), plain.attribute(Xq, yq))


def test_a_scorer_finds_it():
    X, y, Xq, yq = data()
    pipeline = make_pipeline(StandardScaler(), make()).fit(X, y)
    assert lds_scorer(pipeline, Xq, yq) == pipeline.score(Xq, yq)


def test_bad_queries():
    X, y, Xq, yq = data()
    rise = make().fit(X, y)
    for n in (0, 61, 2.5):
        with pytest.raises(ValueError, match=r"n=.*from 1 to the 60 rows"):
            rise.retrieve(Xq, yq, n=n)
    with pytest.raises(ValueError, match="labels unseen in fit"):
        rise.retrieve(Xq, yq + 7)
    grouped = make().fit(X, y, tasks=np.arange(60) % 3)
    with pytest.raises(ValueError, match="units are tasks"):
        grouped.partial_fit(Xq, yq)


def test_a_model_without_a_record_cannot_be_scored():
    X, y, Xq, yq = data()
    bare = TorchClassifier.from_module(net().fit(X, y).module_, [0, 1, 2])
    rise = make(FrozenEstimator(bare)).fit(X, y)
    assert rise.attribute(Xq, yq).shape == (8, 60)
    with pytest.raises(TrajectoryError, match=r"evaluation\.retrieval_score"):
        rise.score(Xq, yq)


def test_clones_share_nothing():
    X, y, *_ = data()
    rise = make(channel_weights={"rh": 1.0, "gh": 2.0}).fit(X, y)
    again = clone(rise)
    assert again.channel_weights == rise.channel_weights
    assert not hasattr(again, "n_units_")
