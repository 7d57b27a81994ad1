"""What somebody else writes by the public API works wherever the package's own does."""

import ast
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import load_iris, load_wine
from sklearn.frozen import FrozenEstimator
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, scale
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from skattrib import (
    AdamWInfluence,
    DualInfluence,
    GradientTransformer,
    KernelSurrogateAttributor,
    RISEValuator,
    TorchClassifier,
    TorchRegressor,
    make_attributor,
)
from skattrib.evaluation import make_weightings, retrain_outcomes
from skattrib.extension import (
    Differentiable,
    Retrainable,
    UnsupportedModelError,
    as_model,
    register_model,
    register_optimizer,
)
from skattrib.optimizers import SGD
from tests.extension.gradient_dot import GradientDot
from tests.extension.lion import Lion
from tests.extension.log_cosh import ClosedLogCosh, LogCosh
from tests.extension.neighbors import (
    Neighbors,
    NeighborsModel,
    NeighborsRegressor,
)
from tests.extension.softmax import Softmax, SoftmaxModel
from tests.test_common import TRANSFORMER_CHECKS, draws_globally, short_name
from tests.test_contributing import private_names
from tests.test_losses import N, dense_newton, numbers, rows

HERE = Path(__file__).parent
PACKAGE = sorted(
    path
    for path in HERE.glob("*.py")
    if path.stem not in ("__init__", "conftest", "test_extension")
)


# ------------------------------------------------------------------- what it takes
@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.stem)
def test_it_imports_public_names_only(path):
    assert not private_names(path.read_text(encoding="utf-8"))


def test_each_extension_is_one_file():
    """A loss needs no registration; an optimizer and a model have theirs in their file.

    The fixture that undoes them is not needed outside of tests.
    """
    assert {path.stem for path in PACKAGE} == {
        "gradient_dot",
        "lion",
        "log_cosh",
        "neighbors",
        "softmax",
    }
    lines = {
        path.stem: sum("register_" in line for line in path.read_text().splitlines())
        for path in PACKAGE
    }
    # an import, and a decorator for each class
    assert lines == {
        "gradient_dot": 0,
        "lion": 2,
        "log_cosh": 0,
        "neighbors": 3,
        "softmax": 2,
    }
    imported = [
        node.module
        for path in PACKAGE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
    ]
    assert not [name for name in imported if name.startswith("tests")]


# ------------------------------------------------------------------------ the data
def wine():
    X, y = load_wine(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(X))
    X, y = scale(X)[order], y[order]
    return (X[:80], y[:80]), (X[80:100], y[80:100])


def values():
    """Rows and queries of a regression."""
    X, y = rows()
    y = numbers(X, y)
    return (X[:N], y[:N]), (X[N:], y[N:])


def small(kind=TorchRegressor, **options):
    defaults = {"hidden_layer_sizes": (4,), "max_epochs": 5, "batch_size": 9}
    return kind(**defaults, random_state=0, **options)


def compared_with_training(estimator, train, queries):
    """Attributions, and differences of the outcomes of a few training rows' weights."""
    influence = AdamWInfluence(estimator, inclusion=1.0, random_state=0).fit(*train)
    found = influence.attribute(*queries)
    step, some = 1e-4, [0, 5, 11]
    # of fourth order, so that what is tested is not the differences
    points = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}
    weights = np.ones((len(some), 4, len(train[0])))
    for i, row in enumerate(some):
        weights[i, :, row] += step * np.array(list(points))
    flat = weights.reshape(-1, len(train[0]))
    outcomes = retrain_outcomes(influence.estimator_, *train, flat, *queries)
    outcomes = outcomes.reshape(len(some), 4, -1)
    factors = np.array(list(points.values()))[:, None]
    return found, found[:, some].T, (outcomes * factors).sum(axis=1) / step


# ------------------------------------------------------------------------ the loss
@pytest.mark.parametrize("loss", [LogCosh(), ClosedLogCosh()], ids=repr)
def test_the_loss_is_trained_on(loss):
    train, (X, y) = values()
    network = small(loss=loss).fit(*train)
    assert network.loss_function_ is loss
    outcome = as_model(network).outcomes(X, y)
    assert_allclose(outcome, -np.log(np.cosh(network.predict(X) - y)), atol=1e-12)


@pytest.mark.parametrize("solver", ["primal", "dual", "cg"])
@pytest.mark.parametrize("loss", [LogCosh(), ClosedLogCosh()], ids=repr)
def test_a_newton_step_of_the_loss_is_the_dense_one(loss, solver):
    train, queries = values()
    dual = DualInfluence(
        small(loss=loss),
        ridge=0.05,
        metric="identity",
        solver=solver,
        random_state=0,
    )
    found = dual.fit(*train).attribute(*queries)
    expected = dense_newton(dual.estimator_, *train, *queries, lambda w: w, 0.05)
    assert np.abs(found - expected).max() < 1e-8 * np.abs(expected).max()


@pytest.mark.parametrize("loss", [LogCosh(), ClosedLogCosh()], ids=repr)
def test_attributions_of_the_loss_are_derivatives_of_the_training(loss):
    network = small(loss=loss)
    _, found, expected = compared_with_training(network, *values())
    assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("kind", [DualInfluence, AdamWInfluence])
def test_attributions_of_the_loss_rank_retrained_networks(kind):
    X, y = load_iris(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(X))
    X, y = scale(X)[order], X[order, 2]
    network = small(loss=LogCosh()).set_params(max_epochs=30, batch_size=None)
    attributor = kind(network, n_retrainings=24, random_state=0).fit(X[:40], y[:40])
    assert attributor.score(X[40:60], y[40:60]) > 0.6


def test_a_wrong_closed_form_is_refused():
    class Wrong(ClosedLogCosh):
        def residuals(self, outputs, targets):
            return outputs - targets

    train, _ = values()
    with pytest.raises(ValueError, match="residuals of Wrong are not the derivatives"):
        small(loss=Wrong()).fit(*train)


# ------------------------------------------------------------------- the optimizer
def test_the_optimizer_is_known_by_name_and_as_an_instance():
    train, (X, _) = wine()
    options = {"betas": (0.8, 0.95), "weight_decay": 0.1}
    network = small(TorchClassifier, learning_rate=0.01, **options)
    named = clone(network).set_params(optimizer="lion").fit(*train)
    lion = Lion(betas=(0.8, 0.95))
    given = clone(network).set_params(optimizer=lion).fit(*train)
    assert_array_equal(named.predict_proba(X), given.predict_proba(X))
    recipe = named.trajectory_.recipe
    assert recipe.optimizer == replace(lion, weight_decay=0.1)
    # one step: every parameter moves by the learning rate, and decays
    one = clone(named).set_params(max_epochs=1, batch_size=None).fit(*train)
    end = torch.cat([p.detach().flatten() for p in one.module_.parameters()])
    moved = end - 0.999 * one.trajectory_.recipe.initial
    assert_allclose(moved.abs(), 0.01, rtol=1e-9)


@pytest.mark.parametrize("smooth", [1e-2, 1e-3])
def test_attributions_of_a_smooth_run_are_derivatives_of_the_training(smooth):
    train, queries = wine()
    network = small(TorchClassifier, optimizer=Lion(smooth=smooth))
    _, found, expected = compared_with_training(network, train, queries)
    assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()


def test_the_derivative_of_signs_is_zero():
    train, queries = wine()
    network = small(TorchClassifier, optimizer="lion")
    found, _, expected = compared_with_training(network, train, queries)
    assert_array_equal(found, 0)
    # rounding, over a step of 1e-4: away from kinks the run does not change at all
    assert_allclose(expected, 0, atol=1e-10)


def test_attributions_of_smooth_runs_rank_retrained_networks():
    train, queries = wine()
    network = small(TorchClassifier, optimizer=Lion(smooth=1e-2))
    network.set_params(max_epochs=20, batch_size=None)
    attributor = AdamWInfluence(network, n_retrainings=24, random_state=0)
    assert attributor.fit(*train).score(*queries) > 0.6


# ----------------------------------------------------------------------- the model
def by_hand(model, train, weights, queries):
    """Log-likelihoods of models fitted to the rows whose weight is not 0."""
    (X, y), (X_query, y_query) = train, queries
    found = []
    for kept in weights > 0:
        p = clone(model).fit(X[kept], y[kept]).predict_proba(X_query)
        p = p[np.arange(len(y_query)), y_query]
        found.append(np.log(p.clip(np.finfo(float).eps)))
    return np.array(found)


@pytest.mark.parametrize("n_jobs", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_retraining_deletes_rows_of_weight_zero(n_jobs):
    train, queries = wine()
    model = Neighbors(n_neighbors=7)
    weights = make_weightings(len(train[0]), 6, random_state=0)
    found = retrain_outcomes(model, *train, weights, *queries, n_jobs=n_jobs)
    expected = by_hand(model, train, weights, queries)
    assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("refit", [False, True])
def test_retraining_inside_a_pipeline(refit):
    (X, y), (X_query, y_query) = wine()
    shift = np.arange(X.shape[1])
    X, X_query = X * (shift + 1) + shift, X_query * (shift + 1) + shift
    scaler, model = StandardScaler(), Neighbors(n_neighbors=7)
    pipeline = make_pipeline(scaler, model)
    weights = make_weightings(len(X), 6, random_state=0)
    found = retrain_outcomes(
        pipeline, X, y, weights, X_query, y_query, refit_transformers=refit
    )
    train, queries = (X, y), (X_query, y_query)
    if not refit:
        pipeline, scaled = model, clone(scaler).fit(X)
        train = scaled.transform(X), y
        queries = scaled.transform(X_query), y_query
    expected = by_hand(pipeline, train, weights, queries)
    assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("place", ["alone", "in a pipeline", "frozen"])
def test_surrogates_of_the_model_rank_retrained_ones(place):
    train, queries = wine()
    model = Neighbors(n_neighbors=9)
    if place == "in a pipeline":
        model = make_pipeline(StandardScaler(), model)
    elif place == "frozen":
        model = FrozenEstimator(model.fit(*train))
    surrogate = KernelSurrogateAttributor(
        model,
        estimation="retrain",
        n_subsets=100,
        n_retrainings=24,
        random_state=0,
    )
    surrogate.fit(*train)
    present = surrogate.predict_outcomes(*queries, np.ones((1, len(train[0]))))
    assert present.shape == (1, len(queries[0]))
    assert surrogate.score(*queries) > 0.25


def test_tasks_of_the_model():
    train, queries = wine()
    tasks = np.arange(len(train[0])) % 10
    surrogate = KernelSurrogateAttributor(
        Neighbors(), n_subsets=40, n_retrainings=8, random_state=0
    )
    found = surrogate.fit(*train, tasks=tasks).attribute(*queries)
    assert found.shape == (len(queries[0]), 10)


@pytest.mark.parametrize(
    "kind", [DualInfluence, AdamWInfluence, RISEValuator, GradientDot]
)
@pytest.mark.parametrize("piped", [False, True])
def test_what_needs_gradients_names_the_surrogates(kind, piped):
    train, _ = wine()
    model = make_pipeline(StandardScaler(), Neighbors()) if piped else Neighbors()
    surrogates = "KernelSurrogateAttributor or LinearSurrogateAttributor"
    message = f"{kind.__name__} needs gradients. Use {surrogates}"
    with pytest.raises(UnsupportedModelError, match=message):
        kind(model, random_state=0).fit(*train)


def test_the_attributor_to_begin_with():
    for model in (Neighbors(), Softmax()):
        assert type(make_attributor(model)) is KernelSurrogateAttributor


def test_a_model_with_gradients():
    train, queries = wine()
    fitted = Softmax().fit(*train)
    model = as_model(fitted)
    assert isinstance(model, Differentiable)
    residuals = softmax(fitted.decision_function(train[0]), axis=1)
    residuals[np.arange(len(train[0])), train[1]] -= 1
    expected = np.einsum("nc,nd->ncd", residuals, train[0]).reshape(len(residuals), -1)
    expected = np.hstack([expected, residuals])
    assert_allclose(model.loss_gradients(*train), expected, atol=1e-12)
    found = model.outcomes(*queries)
    every = fitted.predict_log_proba(queries[0])
    assert_allclose(found, every[np.arange(len(found)), queries[1]], atol=1e-12)

    attributor = GradientDot(Softmax(), n_retrainings=24, random_state=0)
    assert attributor.fit(*train).score(*queries) > 0.4


def test_a_model_with_gradients_in_the_attributors_of_the_package():
    train, queries = wine()
    fitted = Softmax().fit(*train)
    network = TorchClassifier.from_module(as_model(fitted).module, fitted.classes_)
    options = {"ridge": 0.01, "metric": "identity", "random_state": 0}
    for parameters in ("all", "head"):  # which is the same here
        for removal in ("newton", "influence", "refit"):
            dual = DualInfluence(
                Softmax(), removal=removal, parameters=parameters, **options
            )
            same = clone(dual).set_params(estimator=FrozenEstimator(network))
            expected = same.fit(*train).attribute(*queries)
            found = dual.fit(*train).attribute(*queries)
            assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    # damped as its own penalty, 1 / (2 C) of the squares, does
    scored = DualInfluence(Softmax(), n_retrainings=16, **options).fit(*train)
    assert scored.score(*queries) > 0.9

    valued = RISEValuator(Softmax(), n_retrainings=16, random_state=0).fit(*train)
    same = RISEValuator(FrozenEstimator(network), random_state=0).fit(*train)
    assert_allclose(valued.attribute(*queries), same.attribute(*queries), rtol=1e-9)
    assert valued.score(*queries) > 0.3
    with pytest.raises(UnsupportedModelError, match=r"got Softmax.*Use DualInfluence"):
        AdamWInfluence(Softmax(), random_state=0).fit(*train)
    register_model(Unseeded, SoftmaxModel)
    with pytest.raises(ValueError, match="n_models=2 needs an estimator with a random"):
        DualInfluence(Unseeded(), n_models=2, random_state=0).fit(*train)


INSTANCES = [
    KernelSurrogateAttributor(
        NeighborsRegressor(n_neighbors=7), n_subsets=16, n_retrainings=8
    ),
    DualInfluence(
        small(loss=LogCosh(), optimizer="lion").set_params(random_state=None),
        n_retrainings=8,
    ),
]


@draws_globally
@parametrize_with_checks(INSTANCES)
def test_common_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("check", TRANSFORMER_CHECKS, ids=short_name)
@pytest.mark.parametrize("estimator", INSTANCES, ids=short_name)
def test_transformer_checks(estimator, check):
    check(type(estimator).__name__, estimator)


# ----------------------------------------------------------------------- bad input
class Noisy(Neighbors):
    """Its probabilities change from call to call."""

    _drawn = np.random.default_rng(0)

    def predict_proba(self, X):
        p = super().predict_proba(X) + self._drawn.uniform(0.1, 1.0)
        return p / p.sum(axis=1, keepdims=True)


class Dropping(nn.Module):
    """Dropout that eval() does not switch off, seen only where it gets rows."""

    def __init__(self):
        super().__init__()
        self.layer = nn.utils.skip_init(nn.Conv1d, 1, 3, 13).double()
        nn.init.constant_(self.layer.weight, 0.1)
        nn.init.ones_(self.layer.bias)

    def forward(self, X):
        rows = nn.functional.dropout(X, 0.5, training=True)[:, None]
        return self.layer(rows).flatten(1)


class Unseeded(ClassifierMixin, BaseEstimator):
    """A classifier without a random_state."""

    def fit(self, X, y):
        """Learn nothing."""
        return self


class Owing(Retrainable):
    """A family without `retrain`."""


def frozen(*steps):
    return FrozenEstimator(make_pipeline(*steps))


def fit(attributor):
    return lambda X, y: attributor.set_params(random_state=0).fit(X, y)


def retrain(model, **options):
    return lambda X, y: retrain_outcomes(
        model, X, y, np.ones((2, len(X))), X[:3], y[:3], **options
    )


KERNEL = KernelSurrogateAttributor
TO_NOTHING = make_pipeline(StandardScaler(), StandardScaler())
ENDS = "pipeline ends in StandardScaler, which predicts nothing"
NOT_FITTED = "The frozen Pipeline is not fitted: fit it first, or leave FrozenEst"
CHANGES = " gives two different answers to the same rows.*random"
RANDOM = "module Dropping is random: it returns different outputs for the same rows"
DROPPING = FrozenEstimator(TorchClassifier.from_module(Dropping(), [0, 1, 2]))
SCALER, NET = StandardScaler(), TorchClassifier(max_epochs=2)

BAD_INPUT = {
    "a class registered twice": (
        lambda X, y: register_model(Neighbors, NeighborsModel),
        ValueError,
        "Neighbors is registered already, as NeighborsModel: derive a class",
    ),
    "a class registered twice, by a decorator": (
        lambda X, y: register_model(Softmax)(NeighborsModel),
        ValueError,
        "Softmax is registered already, as SoftmaxModel",
    ),
    "an instance for a class": (
        lambda X, y: register_model(Neighbors(), NeighborsModel),
        TypeError,
        "estimator_class must be a class",
    ),
    "no family": (
        lambda X, y: register_model(KNeighborsClassifier, Neighbors),
        TypeError,
        "family must be a class derived from Retrainable",
    ),
    "a family that owes a method": (
        lambda X, y: register_model(KNeighborsClassifier, Owing),
        TypeError,
        "Owing lacks retrain",
    ),
    "a name of another optimizer": (
        lambda X, y: register_optimizer("lion")(SGD),
        ValueError,
        "'lion' is already an optimizer: Lion",
    ),
    "a pipeline to nothing": (fit(DualInfluence(TO_NOTHING)), ValueError, ENDS),
    "retrained": (fit(KERNEL(TO_NOTHING)), ValueError, ENDS),
    "in an attributor of one's own": (fit(GradientDot(TO_NOTHING)), ValueError, ENDS),
    "in the truth": (retrain(TO_NOTHING), ValueError, ENDS),
    "for somebody to choose": (
        lambda X, y: make_attributor(TO_NOTHING),
        ValueError,
        ENDS,
    ),
    "a frozen pipeline that is not fitted": (
        fit(DualInfluence(frozen(SCALER, NET))),
        ValueError,
        NOT_FITTED,
    ),
    "not fitted, of neighbours": (
        fit(KERNEL(frozen(SCALER, Neighbors()), n_subsets=16)),
        ValueError,
        NOT_FITTED,
    ),
    "not fitted, in an attributor of one's own": (
        fit(GradientDot(frozen(SCALER, NET))),
        ValueError,
        NOT_FITTED,
    ),
    "not fitted, in the truth": (
        retrain(frozen(SCALER, Neighbors())),
        ValueError,
        NOT_FITTED,
    ),
    "not fitted, the last step alone": (
        fit(DualInfluence(make_pipeline(SCALER, FrozenEstimator(NET)))),
        ValueError,
        "The frozen TorchClassifier is not fitted",
    ),
    "a model that changes": (
        fit(KERNEL(Noisy(), n_subsets=16)),
        ValueError,
        f"Noisy{CHANGES}",
    ),
    "changes, in a pipeline": (
        fit(KERNEL(make_pipeline(SCALER, Noisy()), n_subsets=16)),
        ValueError,
        f"Noisy{CHANGES}",
    ),
    "changes, in the truth": (retrain(Noisy()), ValueError, f"Noisy{CHANGES}"),
    "a module that changes": (
        fit(DualInfluence(DROPPING)),
        ValueError,
        RANDOM,
    ),
    "changes, in an attributor of one's own": (
        fit(GradientDot(DROPPING)),
        ValueError,
        RANDOM,
    ),
    "changes, as a transformer": (
        fit(GradientTransformer(DROPPING)),
        ValueError,
        RANDOM,
    ),
    "weights that a fit does not take": (
        lambda X, y: KERNEL(Neighbors(), random_state=0).fit(X, y, sample_weight=y),
        ValueError,
        "fit of Neighbors takes no sample_weight",
    ),
}


@pytest.mark.parametrize(("call", "kind", "text"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_named(call, kind, text):
    (X, y), _ = wine()
    with pytest.raises(kind, match=f"(?s){text}"):
        call(X, y)


def test_what_failed_is_left_as_it_was():
    train, _ = wine()
    surrogate = KERNEL(Noisy(), n_subsets=16, random_state=0)
    before = dict(vars(surrogate))
    with pytest.raises(ValueError, match="two different answers"):
        surrogate.fit(*train)
    assert vars(surrogate) == before


def test_trees_of_many_threads_give_the_same_answers_but_for_rounding():
    from sklearn.ensemble import RandomForestClassifier

    train, queries = wine()
    forest = RandomForestClassifier(30, n_jobs=2, random_state=0)
    weights = np.ones((2, len(train[0])))
    assert np.isfinite(retrain_outcomes(forest, *train, weights, *queries)).all()


def test_log_cosh_of_large_errors_is_finite():
    error = torch.tensor([[-800.0], [0.0], [1e-4], [900.0]], dtype=torch.float64)
    found = LogCosh().values(error, torch.zeros_like(error))
    expected = [800 - math.log(2), 0, 0.5e-8, 900 - math.log(2)]
    assert_allclose(found, expected, rtol=1e-7, atol=1e-15)
