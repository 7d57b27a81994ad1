"""Each row on itself, what a new row would change, and the model without some units."""

import copy
import warnings
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from scipy.stats import spearmanr
from sklearn import config_context
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_diabetes, load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import (
    Lasso,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
    RidgeClassifier,
)
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler, scale

from skattrib import (
    AdamWInfluence,
    DualInfluence,
    KernelSurrogateAttributor,
    LinearSurrogateAttributor,
    RISEValuator,
    TorchClassifier,
    TorchRegressor,
)
from skattrib.engine._training import train
from skattrib.evaluation import retrain_outcomes
from skattrib.exceptions import (
    FaithfulnessWarning,
    TrajectoryError,
    UnsupportedModelError,
)
from skattrib.models._as_model import as_model
from tests.extension.gradient_dot import GradientDot

N, N_NEW = 40, 20
LOGISTIC = LogisticRegression(
    solver="newton-cholesky", tol=1e-12, max_iter=1000, random_state=0
)


@cache
def iris():
    X, y = load_iris(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(y))
    return scale(X)[order], y[order]


@cache
def diabetes():
    X, y = load_diabetes(return_X_y=True)
    return scale(X), scale(y)


def split(data):
    """Rows, new rows, queries."""
    X, y = data
    parts = slice(N), slice(N, N + N_NEW), slice(N + N_NEW, N + N_NEW + 12)
    return [(X[part], y[part]) for part in parts]


def net(kind=TorchClassifier, **options):
    defaults = {"hidden_layer_sizes": (4,), "max_epochs": 10, "random_state": 0}
    return kind(**defaults | options)


def really_added(estimator, rows, new_rows, queries, size=1.0):
    """What each new row, of this weight, changes in the mean outcome."""
    X, y = (np.concatenate(pair) for pair in zip(rows, new_rows, strict=True))
    n_new = len(new_rows[1])
    weights = np.zeros((1 + n_new, len(y)))
    weights[:, : len(y) - n_new] = 1
    weights[1:, len(y) - n_new :] = size * np.eye(n_new)
    outcomes = retrain_outcomes(estimator, X, y, weights, *queries).mean(axis=1)
    return outcomes[1:] - outcomes[0]


def relative(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


# ------------------------------------------------------------------------- predict
@pytest.mark.parametrize(
    "attributor",
    [
        DualInfluence(net(), random_state=0),
        DualInfluence(make_pipeline(StandardScaler(), LOGISTIC), random_state=0),
        KernelSurrogateAttributor(
            KNeighborsClassifier(), n_subsets=10, n_retrainings=8, random_state=0
        ),
    ],
    ids=lambda a: type(a.estimator).__name__,
)
def test_predict_is_the_models(attributor):
    (X, y), _, (queries, _) = split(iris())
    names = [f"row {i}" for i in range(N)]
    columns = ["a", "b", "c", "d"]
    frame = pd.DataFrame(X, index=names, columns=columns)
    queries = pd.DataFrame(queries, columns=columns)
    attributor = clone(attributor).fit(frame, y)
    table = isinstance(attributor.X_train_, pd.DataFrame)
    asked = queries if table else queries.to_numpy()
    model = attributor.estimator_
    assert_array_equal(attributor.predict(queries), model.predict(asked))
    with pytest.raises(ValueError, match="feature names should match"):
        attributor.predict(frame.drop(columns="d"))
    with pytest.raises(ValueError, match="NaN"):
        attributor.predict(queries * np.nan)


def test_a_pipeline_and_a_search_that_end_in_an_attributor_predict():
    (X, y), _, (queries, _) = split(diabetes())
    pipe = make_pipeline(StandardScaler(), DualInfluence(Ridge(), random_state=0))
    expected = make_pipeline(StandardScaler(), Ridge()).fit(X, y).predict(queries)
    assert_array_equal(pipe.fit(X, y).predict(queries), expected)
    search = GridSearchCV(
        DualInfluence(Ridge(), n_retrainings=8, random_state=0),
        {"estimator__alpha": [1.0]},
        cv=2,
    )
    expected = Ridge().fit(X, y).predict(queries)
    assert_array_equal(search.fit(X, y).predict(queries), expected)


# ------------------------------------------------------------------ on the row itself
def own_entries(attributor):
    A = attributor.attribute(attributor.X_train_, attributor.y_train_)
    return A[np.arange(len(A)), attributor._unit_of_row]


ON_ITSELF = {
    "auto": DualInfluence(net()),
    "influence": DualInfluence(net(), removal="influence", solver="primal"),
    "cg": DualInfluence(net(), removal="influence", solver="cg"),
    "refit": DualInfluence(net(), removal="refit", solver="dual"),
    "calibrated": DualInfluence(net(), ridge="calibrate"),
    "two seeds": DualInfluence(net(max_epochs=4), n_models=2),
    "mlp": DualInfluence(MLPClassifier((4,), max_iter=10, random_state=0)),
    "logistic": DualInfluence(LOGISTIC),
    "balanced": DualInfluence(clone(LOGISTIC).set_params(class_weight="balanced")),
    "logistic, 1st": DualInfluence(LOGISTIC, removal="influence"),
    "logistic, cg": DualInfluence(LOGISTIC, solver="cg", removal="newton"),
    "pipeline": DualInfluence(make_pipeline(StandardScaler(), RidgeClassifier())),
    "halves": AdamWInfluence(net(max_epochs=4), n_trajectories=2, n_halves=16),
    "whole run": AdamWInfluence(net(max_epochs=4), inclusion=1),
    "kernel": KernelSurrogateAttributor(net(max_epochs=4), n_subsets=12),
    "linear": LinearSurrogateAttributor(KNeighborsClassifier(), n_subsets=12),
    "rise": RISEValuator(net(), n_sketches=2),
    "toy": GradientDot(net()),
}


@pytest.mark.parametrize("tasks", [None, np.arange(N) % 9], ids=["rows", "tasks"])
@pytest.mark.parametrize("attributor", ON_ITSELF.values(), ids=ON_ITSELF)
@pytest.mark.filterwarnings("ignore:The outcome of .* queries is the same")
def test_it_is_the_entry_of_the_own_unit(attributor, tasks, ignore_convergence):
    (X, y), _, _ = split(iris())
    attributor = clone(attributor).set_params(random_state=0)
    # more than 64 units are solved for by query, at first order
    if attributor.get_params().get("removal") == "influence" and tasks is None:
        X, y = iris()[0][:80], iris()[1][:80]
    weights = {}
    if not isinstance(attributor, LinearSurrogateAttributor):
        if not isinstance(attributor.estimator, MLPClassifier | type(make_pipeline(0))):
            weights = {"sample_weight": np.linspace(0.5, 2, len(y))}
    attributor.fit(X, y, tasks=tasks, **weights)
    expected, found = own_entries(attributor), attributor.self_attribution()
    assert found.shape == (len(y),)
    assert np.abs(expected).max() > 0
    assert relative(found, expected) < 1e-9
    with config_context(working_memory=0.25):  # a few rows at a time
        assert relative(attributor.self_attribution(), expected) < 1e-9


@pytest.fixture
def ignore_convergence():
    """Let a network of scikit-learn stop early."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


@pytest.mark.parametrize(
    "model",
    [KernelRidge(kernel="rbf"), Lasso(alpha=0.01), PoissonRegressor(), Ridge()],
    ids=lambda model: type(model).__name__,
)
@pytest.mark.filterwarnings("ignore:.*stopped")
def test_it_is_the_entry_of_the_own_row_of_a_regression(model):
    (X, y), _, _ = split(diabetes())
    y = np.round(np.exp(y)) if isinstance(model, PoissonRegressor) else y
    if isinstance(model, Ridge):  # two outputs
        y = np.column_stack([y, X[:, 0] * y])
    X = sparse.csr_array(X) if isinstance(model, Ridge) else X
    dual = DualInfluence(model, random_state=0).fit(X, y)
    assert relative(dual.self_attribution(), own_entries(dual)) < 1e-10


def test_a_class_of_one_row_is_retrained_without_it():
    (X, y), _, _ = split(iris())
    y = np.where(np.arange(N) == 7, 3, y)
    dual = DualInfluence(LOGISTIC, random_state=0).fit(X, y)
    found = dual.self_attribution()
    assert relative(found, own_entries(dual)) < 1e-12
    # without its row the class has the smallest probability there is
    assert found.argmax() == 7
    assert found[7] > 10


def test_a_row_that_is_not_finite_spoils_no_other():
    def outcome(outputs, y):
        return outputs[..., 0] / (y != 2)

    (X, y), _, _ = split(iris())
    dual = DualInfluence(net(), outcome=outcome, random_state=0).fit(X, y)
    with pytest.warns(FaithfulnessWarning, match="results for queries .* not finite"):
        found = dual.self_attribution()
    assert_array_equal(np.isfinite(found), y != 2)
    with pytest.warns(FaithfulnessWarning):
        assert_allclose(found, own_entries(dual), rtol=1e-9)


# -------------------------------------------------------------------- rows to come
@pytest.mark.parametrize(
    "model",
    [
        LOGISTIC,
        clone(LOGISTIC).set_params(class_weight="balanced", C=0.1),
        RidgeClassifier(random_state=0),
    ],
    ids=["logistic", "balanced", "ridge"],
)
def test_a_new_row_of_a_linear_classifier_is_really_added(model):
    rows, new_rows, queries = split(iris())
    dual = DualInfluence(model, random_state=0).fit(*rows)
    found = dual.value_new(*new_rows, *queries)
    assert relative(found, really_added(model, rows, new_rows, queries)) < 1e-6
    with config_context(working_memory=0.1):  # a few new rows at a time
        assert relative(dual.value_new(*new_rows, *queries), found) < 1e-9
    without_y = dual.value_new(*new_rows, queries[0])
    predicted = dual.predict(queries[0])
    assert_allclose(without_y, dual.value_new(*new_rows, queries[0], predicted))


@pytest.mark.parametrize(
    "model",
    [
        Ridge(random_state=0),
        Lasso(alpha=0.01, tol=1e-12, max_iter=10**5, random_state=0),
        PoissonRegressor(solver="newton-cholesky", tol=1e-12),
        KernelRidge(kernel="rbf"),
        GaussianProcessRegressor(RBF() + WhiteKernel(), optimizer=None, random_state=0),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_new_row_of_a_regression_is_really_added(model):
    X, y = diabetes()
    y = np.round(np.exp(y)) if isinstance(model, PoissonRegressor) else y
    rows, new_rows, queries = split((X, y))
    dual = DualInfluence(model, random_state=0).fit(*rows)
    found = dual.value_new(*new_rows, *queries)
    assert relative(found, really_added(model, rows, new_rows, queries)) < 1e-6


def test_new_rows_of_tables_pipelines_and_transformed_targets():
    (X, y), (X_new, y_new), (X_query, y_query) = split(diabetes())
    y, y_new, y_query = (np.exp(target) for target in (y, y_new, y_query))
    frames = [
        pd.DataFrame({"sex": np.where(rows[:, 1] > 0, "f", "m"), "bmi": rows[:, 2] > 0})
        for rows in (X, X_new, X_query)
    ]
    encoder = OneHotEncoder(drop="first", sparse_output=False)
    model = TransformedTargetRegressor(
        make_pipeline(encoder, Ridge()), func=np.log, inverse_func=np.exp
    )
    dual = DualInfluence(model, random_state=0).fit(frames[0], y)
    found = dual.value_new(frames[1], y_new, frames[2], y_query)
    # with the same transformers: they are kept
    encoder = clone(encoder).fit(frames[0])
    features = [encoder.transform(frame) for frame in frames]
    expected = []
    kept = Ridge().fit(features[0], np.log(y))
    for i in range(N_NEW):
        more = Ridge().fit(
            np.vstack([features[0], features[1][i]]), np.log([*y, y_new[i]])
        )
        errors = [
            (np.exp(fitted.predict(features[2])) - y_query) ** 2 / 2
            for fitted in (kept, more)
        ]
        expected.append((errors[0] - errors[1]).mean())
    assert relative(found, np.array(expected)) < 1e-8


@pytest.mark.parametrize(
    "options",
    [
        {"max_epochs": 60, "learning_rate": 0.1},
        {"max_epochs": 20, "learning_rate": 0.05, "batch_size": 15},
    ],
    ids=["full batch", "minibatch"],
)
def test_values_of_new_rows_rank_as_really_adding_them_does(options):
    rows, new_rows, queries = split(diabetes())
    network = net(TorchRegressor, optimizer="sgd", **options)
    expected = really_added(network, rows, new_rows, queries)
    for attributor in (AdamWInfluence(network, inclusion=1), DualInfluence(network)):
        attributor.set_params(random_state=0).fit(*rows)
        found = attributor.value_new(*new_rows, *queries)
        assert spearmanr(found, expected)[0] > 0.9
        assert 0.5 < np.polyfit(found, expected, 1)[0] < 2


@pytest.mark.parametrize("class_weight", [None, "balanced", {0: 1, 1: 2, 2: 3}])
def test_values_of_new_rows_are_derivatives_of_the_training(class_weight):
    rows, new_rows, queries = split(iris())
    network = net(class_weight=class_weight)
    influence = AdamWInfluence(network, inclusion=1, random_state=0).fit(*rows)
    found = influence.value_new(*new_rows, *queries)
    eps = 1e-5
    sides = [really_added(network, rows, new_rows, queries, s * eps) for s in (1, 2)]
    # of second order, at a weight that cannot be negative
    assert relative(found, (4 * sides[0] - sides[1]) / (2 * eps)) < 1e-4
    with config_context(working_memory=0.02):  # one by one
        assert relative(influence.value_new(*new_rows, *queries), found) < 1e-9


def test_a_training_row_of_weight_zero_is_a_new_row():
    rows, _, queries = split(iris())
    weights = np.where(np.arange(N) == 5, 0.0, 1.0)
    influence = AdamWInfluence(net(), inclusion=1, random_state=0)
    influence.fit(*rows, sample_weight=weights)
    found = influence.value_new(rows[0][5:6], rows[1][5:6], *queries)
    asked = influence._derivatives.queries(*queries, "log_likelihood")
    whole = influence._derivatives.derivatives(influence._own_run, asked)
    assert_allclose(found[0], whole[0, 0, :, 5].mean(), rtol=1e-9)


def test_a_new_row_is_in_one_minibatch_of_an_epoch():
    """Train with it in the first, the second ... of each epoch, and take the mean."""
    rows, (X_new, y_new), queries = split(iris())
    network = net(batch_size=15, max_epochs=5, learning_rate=0.02)  # 15, 15 and 10
    influence = AdamWInfluence(network, inclusion=1, random_state=0).fit(*rows)
    found = influence.value_new(X_new[:1], y_new[:1], *queries)

    problem = influence._derivatives.problem
    X = torch.cat([problem.X, torch.tensor(X_new[:1])])
    targets = torch.cat([problem.targets, torch.tensor(y_new[:1])])
    asked = influence._derivatives.queries(*queries, "log_likelihood")

    def outcome(place, weight):
        batches = [
            np.append(batch, N) if t % 3 == place else batch
            for t, batch in enumerate(problem.recipe.batches)
        ]
        recipe = replace(problem.recipe, batches=batches)
        weights = torch.ones(1, N + 1, dtype=torch.double)
        weights[0, N] = weight
        end = train(problem.model, problem.loss, recipe, X, targets, weights).params[0]
        outputs = problem.model.outputs(end, asked.X)
        return float(asked.outcome(outputs, asked.targets).mean())

    eps = 1e-5
    slopes = [
        (4 * outcome(b, eps) - outcome(b, 2 * eps) - 3 * outcome(b, 0)) / (2 * eps)
        for b in range(3)
    ]
    # the larger a minibatch, the more often the row would be in it
    expected = np.average(slopes, weights=[15, 15, 10])
    assert_allclose(found[0], expected, rtol=1e-5)


def test_runs_on_halves_are_averaged():
    rows, new_rows, queries = split(iris())
    options = {"n_halves": 0, "aggregation": "mean", "random_state": 0}
    how = {"hessian": "empirical_fisher"}  # of which no other derivatives are mixed
    halves = AdamWInfluence(net(), n_trajectories=4, **how, **options)
    halves.fit(*rows)
    asked = halves._derivatives.queries(*queries, "log_likelihood")
    of_runs = halves._derivatives.of_new_rows(
        halves._runs[0], asked, *new_rows, inert=0.01, **how
    )[0, :, -N_NEW:]
    assert of_runs.shape == (4, N_NEW)
    found = halves.value_new(*new_rows, *queries)
    assert_allclose(found, of_runs.mean(dim=0), rtol=1e-10)


@pytest.mark.parametrize("solver", ["primal", "dual", "cg"])
@pytest.mark.parametrize("removal", ["newton", "influence"])
def test_values_of_new_rows_of_a_tangent_are_the_dense_ones(removal, solver):
    (X, y), (X_new, y_new), (X_query, y_query) = split(iris())
    ridge = 0.05
    options = {"removal": removal, "solver": solver, "metric": "identity"}
    dual = DualInfluence(net(), ridge=ridge, **options, random_state=0).fit(X, y)
    found = dual.value_new(X_new[:3], y_new[:3], X_query, y_query)

    module = dual.estimator_.module_
    params = dict(module.named_parameters())

    def linearised(rows):
        def outputs(params):
            return torch.func.functional_call(module, params, torch.tensor(rows))

        jacobian = torch.func.jacrev(outputs)(
            {k: v.detach() for k, v in params.items()}
        )
        J = torch.cat([j.flatten(2) for j in jacobian.values()], dim=2).detach()
        return outputs(params).detach().numpy(), J.numpy()

    def log_p(outputs, labels):
        p = torch.tensor(outputs).log_softmax(dim=1).numpy()
        return p[np.arange(len(labels)), labels]

    f_query, J_query = linearised(X_query)
    present, expected = log_p(f_query, y_query).mean(), []
    for i in range(3):
        f, J = linearised(np.vstack([X, X_new[i]]))
        p = torch.tensor(f).softmax(dim=1).numpy()
        residuals = p - np.eye(3)[[*y, y_new[i]]]
        bend = np.einsum("nc,cd->ncd", p, np.eye(3)) - p[:, :, None] * p[:, None]
        with_row, share = np.ones(N + 1), (N + 1) / N
        amounts = with_row - share * np.append(np.ones(N), 0)
        kept = with_row if removal == "newton" else np.append(np.ones(N), 0)
        damping = ridge * kept.sum() * np.eye(J.shape[2])
        hessian = np.einsum("n,ncp,ncd,ndq->pq", kept, J, bend, J) + damping
        step = -np.linalg.solve(
            hessian, np.einsum("n,nc,ncp->p", amounts, residuals, J)
        )
        if removal == "newton":
            expected.append(log_p(f_query + J_query @ step, y_query).mean() - present)
        else:
            p = torch.tensor(f_query).softmax(dim=1).numpy()
            slope = np.eye(3)[y_query] - p
            expected.append((slope * (J_query @ step)).sum(axis=1).mean())
    assert relative(found, np.array(expected)) < 1e-8


@pytest.mark.filterwarnings("ignore:ridge='auto' without a record")
def test_a_frozen_module_without_a_run_values_new_rows_at_its_own_damping():
    rows, new_rows, queries = split(iris())
    module = net().fit(*rows).module_
    frozen = FrozenEstimator(TorchClassifier.from_module(module, [0, 1, 2]))
    dual = DualInfluence(frozen, random_state=0).fit(*rows)
    tangent = dual._linear_models[0]
    wider = tangent.with_rows(
        *(np.concatenate(pair) for pair in zip(rows, new_rows, strict=True)),
        np.append(np.ones(N), np.zeros(N_NEW)),
        None,
    )
    assert wider.ridge == tangent.ridge
    assert_array_equal(wider.tangent.scale, tangent.tangent.scale)
    found = dual.value_new(*new_rows, *queries)
    assert np.abs(found).min() > 0
    # a training row that is there twice: about minus leaving it out once
    twice = dual.value_new(*rows, *queries)
    assert spearmanr(twice, dual.attribute(*queries).mean(axis=0))[0] > 0.9


def test_new_rows_are_as_similar_as_if_they_were_in_the_index():
    rows, new_rows, queries = split(iris())
    rise = RISEValuator(net(), n_sketches=2, random_state=0).fit(*rows)
    found = rise.value_new(*new_rows, *queries)
    rise.partial_fit(*new_rows)
    expected = rise.attribute(*queries)[:, N:].mean(axis=0)
    assert_allclose(found, expected, rtol=0, atol=2e-3)  # rounding in the index


def test_who_knows_nothing_of_new_rows_names_who_does():
    rows, new_rows, queries = split(iris())
    with pytest.raises(UnsupportedModelError, match="Use DualInfluence or AdamWInf"):
        KernelSurrogateAttributor(net(), n_subsets=10, random_state=0).fit(
            *rows
        ).value_new(*new_rows, *queries)
    with pytest.raises(UnsupportedModelError, match=r"Append the row and train again"):
        LinearSurrogateAttributor(
            KNeighborsClassifier(), n_subsets=10, random_state=0
        ).fit(*rows).value_new(*new_rows, *queries)
    with pytest.raises(UnsupportedModelError, match="GradientDot has no value_new"):
        GradientDot(net(), random_state=0).fit(*rows).value_new(*new_rows, *queries)
    X, y = split(diabetes())[0]
    kernel = DualInfluence(KernelRidge(kernel="precomputed"), random_state=0)
    with pytest.raises(UnsupportedModelError, match="kernel lacks that of new rows"):
        kernel.fit(X @ X.T, y).value_new(X[:2] @ X.T, y[:2], X @ X.T, y)


@pytest.mark.parametrize(
    "attributor",
    [DualInfluence(LOGISTIC), DualInfluence(net()), AdamWInfluence(net(), inclusion=1)],
    ids=["linear", "tangent", "run"],
)
def test_new_rows_that_do_not_fit_are_refused(attributor):
    rows, (X_new, y_new), queries = split(iris())
    attributor = clone(attributor).set_params(random_state=0).fit(*rows)
    for wrong, message in [
        ((X_new[:, :3], y_new), "X_new and y_new cannot be used: .* 3 features"),
        ((X_new, y_new + 1), "X_new and y_new .*unseen"),
        ((X_new, y_new[:-1]), "X_new and y_new .*inconsistent numbers"),
        ((np.where(X_new > 1, np.nan, X_new), y_new), "X_new and y_new .*NaN"),
        ((X_new, None), "a row to train on has a target"),
        ((X_new, np.column_stack([y_new, y_new])), "X_new and y_new"),
        ((X_new[0], y_new[0]), "X_new and y_new"),
    ]:
        with pytest.raises(ValueError, match=message):
            attributor.value_new(*wrong, *queries)
    with pytest.raises(ValueError, match="unseen"):
        attributor.value_new(X_new, y_new, queries[0], queries[1] + 1)


def test_a_new_row_that_could_not_be_trained_on_has_no_value():
    (X, y), (X_new, y_new), (X_query, y_query) = split(diabetes())
    y, y_new, y_query = (np.round(np.exp(target)) for target in (y, y_new, y_query))
    dual = DualInfluence(PoissonRegressor(), random_state=0).fit(X, y)
    expected = dual.value_new(X_new, y_new, X_query, y_query)
    y_new[2] = -1
    with pytest.warns(FaithfulnessWarning, match=r"new rows \[2\] are not finite"):
        found = dual.value_new(X_new, y_new, X_query, y_query)
    assert np.isnan(found[2])
    assert_allclose(np.delete(found, 2), np.delete(expected, 2))


# ------------------------------------------------------------------ what would be left
@pytest.mark.parametrize("n_removed", [1, 10, 20])
@pytest.mark.parametrize(
    "model",
    [
        LOGISTIC,
        clone(LOGISTIC).set_params(class_weight="balanced"),
        make_pipeline(StandardScaler(), LOGISTIC),
    ],
    ids=["logistic", "balanced", "pipeline"],
)
def test_a_linear_model_without_rows_is_fitted_without_them(model, n_removed):
    (X, y), _, queries = split(iris())
    dual = DualInfluence(model, random_state=0).fit(X, y)
    kept = np.arange(N) >= n_removed
    found = dual.model_without(np.flatnonzero(~kept))
    assert type(found) is type(model)
    last, features = found, X
    if hasattr(found, "steps"):
        assert_allclose(found[0].mean_, X.mean(axis=0))  # the transformers are kept
        assert found[0] is not dual.estimator_[0]
        last, features = found[-1], found[0].transform(X)
    inner = clone(last)
    coef = inner.fit(features[kept], y[kept]).coef_
    assert relative(last.coef_, coef) < 1e-6
    # and is what was predicted
    p = found.predict_proba(queries[0])[np.arange(12), queries[1]]
    predicted = dual.predict_outcomes(*queries, kept.astype(float))[0]
    assert_allclose(np.log(p), predicted, rtol=1e-6)


def test_units_are_known_by_name():
    (X, y), _, _ = split(iris())
    names = [f"row {i}" for i in range(N)]
    dual = DualInfluence(LOGISTIC, random_state=0)
    dual.fit(pd.DataFrame(X, index=names), y)
    by_name, by_list = dual.model_without("row 3"), dual.model_without(["row 3"])
    expected = clone(LOGISTIC).fit(np.delete(X, 3, axis=0), np.delete(y, 3))
    assert_allclose(by_name.coef_, expected.coef_, rtol=1e-6)
    assert_array_equal(by_name.coef_, by_list.coef_)
    with pytest.raises(ValueError, match=r"\[3\], and units have names such as"):
        dual.model_without([3])
    tasks = np.array(["a", "b", "c", "d"])[np.arange(N) % 4]
    dual = DualInfluence(LOGISTIC, random_state=0).fit(X, y, tasks=tasks)
    kept = ~np.isin(tasks, ["a", "c"])
    expected = clone(LOGISTIC).fit(X[kept], y[kept])
    found = dual.model_without(["c", "a"])
    assert_allclose(found.coef_, expected.coef_, rtol=1e-6)


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ([], "units is empty"),
        ([2, N], rf"\[{N}\], and units have no names: pass positions"),
        ([-1], r"\[-1\]"),
        (["a"], "no names"),
        ([True] * N, "units is a mask"),
        (range(N), f"all {N} units"),
    ],
)
def test_units_that_cannot_be_left_out_are_refused(units, message):
    (X, y), _, _ = split(iris())
    dual = DualInfluence(LOGISTIC, random_state=0).fit(X, y)
    with pytest.raises(ValueError, match=message):
        dual.model_without(units)
    with pytest.raises(ValueError, match=r"all rows of the classes \[1\]"):
        dual.model_without(np.flatnonzero(y == 1))


@pytest.mark.parametrize(
    "attributor",
    [
        AdamWInfluence(net(batch_size=15), inclusion=1),
        KernelSurrogateAttributor(net(batch_size=15), n_subsets=10),
        RISEValuator(net(batch_size=15)),
        GradientDot(net(batch_size=15)),
    ],
    ids=lambda a: type(a).__name__,
)
def test_a_network_without_units_is_really_retrained(attributor):
    rows, _, queries = split(iris())
    attributor = clone(attributor).set_params(random_state=0).fit(*rows)
    before = copy.deepcopy(attributor.estimator_.module_.state_dict())
    found = attributor.model_without([1, 7, 8])
    weights = np.ones(N)
    weights[[1, 7, 8]] = 0
    expected = retrain_outcomes(attributor.estimator_, *rows, weights, *queries)[0]
    p = found.predict_proba(queries[0])[np.arange(12), queries[1]]
    assert_allclose(np.log(p), expected, rtol=1e-10)
    after = attributor.estimator_.module_.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for parameter in found.module_.parameters():  # nothing is shared
        parameter.data.zero_()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("removal", ["newton", "influence"])
@pytest.mark.parametrize("kind", ["network", "mlp", "pipeline"])
def test_dual_influence_moves_the_parameters(kind, removal, ignore_convergence):
    rows, _, queries = split(iris())
    model = net(max_epochs=40, learning_rate=0.02)
    if kind == "mlp":
        model = MLPClassifier(
            (4,), max_iter=60, learning_rate_init=0.02, random_state=0
        )
    elif kind == "pipeline":
        model = make_pipeline(StandardScaler(), model)
    dual = DualInfluence(model, removal=removal, random_state=0).fit(*rows)
    before = pd.Series(dual.estimator_.predict_proba(queries[0]).ravel())
    removed, weights = np.arange(5), np.ones(N)
    weights[:5] = 0
    found = dual.model_without(removed)
    assert type(found) is type(model)
    last = found[-1] if kind == "pipeline" else found
    if kind != "mlp":
        assert last.trajectory_ is None  # it ends elsewhere
    change = dual.parameter_change(weights)[0]
    module = as_model(dual._model).module
    flat = torch.cat([p.detach().flatten() for p in module.parameters()]).numpy()
    moved = torch.cat(
        [p.detach().flatten() for p in as_model(last).module.parameters()]
    )
    assert_allclose(moved.numpy(), flat + change, rtol=1e-12)
    assert np.abs(change).max() > 1e-3
    # outcomes change as by retraining
    expected = retrain_outcomes(dual.estimator_, *rows, weights, *queries)[0]
    p = found.predict_proba(queries[0])[np.arange(12), queries[1]]
    now = dual.estimator_.predict_proba(queries[0])[np.arange(12), queries[1]]
    if kind != "mlp":  # which draws other minibatches of fewer rows
        assert np.corrcoef(np.log(p) - np.log(now), expected - np.log(now))[0, 1] > 0.5
    assert_allclose(dual.estimator_.predict_proba(queries[0]).ravel(), before)


@pytest.mark.filterwarnings("ignore:ridge='auto' without a record")
def test_a_frozen_module_has_a_model_without_units_by_dual_influence_only():
    rows, _, queries = split(iris())
    module = net().fit(*rows).module_
    frozen = FrozenEstimator(TorchClassifier.from_module(module, [0, 1, 2]))
    dual = DualInfluence(frozen, random_state=0).fit(*rows)
    found = dual.model_without([0, 1])
    assert isinstance(found, TorchClassifier)
    assert np.abs(
        found.predict_proba(queries[0]) - dual.estimator_.predict_proba(queries[0])
    ).max()
    rise = RISEValuator(frozen, random_state=0).fit(*rows)
    with pytest.raises(TrajectoryError, match="Use DualInfluence"):
        rise.model_without([0])
    recorded = FrozenEstimator(net(batch_size=15).fit(*rows))
    found = AdamWInfluence(recorded, random_state=0).fit(*rows).model_without([0])
    assert isinstance(found, TorchClassifier)
    assert found.trajectory_ is not None


def test_a_search_keeps_what_it_chose_without_units():
    (X, y), _, _ = split(iris())
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LOGISTIC),
        {"logisticregression__C": [0.01, 1.0]},
        cv=3,
    )
    dual = DualInfluence(search, random_state=0).fit(X, y)
    found = dual.model_without([0, 1])
    chosen = dual.estimator_.best_params_["logisticregression__C"]
    assert found[-1].C == chosen
    features = StandardScaler().fit(X).transform(X[2:])
    expected = clone(found[-1]).fit(features, y[2:])
    assert_allclose(found[-1].coef_, expected.coef_, rtol=1e-9)
    frozen = FrozenEstimator(make_pipeline(StandardScaler(), LOGISTIC).fit(X, y))
    found = DualInfluence(frozen, random_state=0).fit(X, y).model_without([0])
    assert found[-1].coef_.shape == (3, 4)
    assert found[-1] is not frozen.estimator[-1]
