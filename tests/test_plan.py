"""What is told before work: trainings, the way taken, refusals."""

import pickle
from functools import partial

import numpy as np
import pytest
import sklearn
from scipy import sparse
from sklearn.datasets import load_diabetes, load_iris
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils.validation import check_is_fitted

import skattrib.engine._plan
from skattrib import (
    AdamWInfluence,
    DualInfluence,
    KernelSurrogateAttributor,
    RISEValuator,
    TorchClassifier,
    TorchRegressor,
    TreeInfluence,
    plan,
)
from skattrib.influence import _costs
from skattrib.models._as_model import as_model
from skattrib.models._network import untrained
from tests.cases import Same

COLUMNS = ["estimand", "trainings", "seconds", "megabytes", "way", "faithfulness"]


def iris():
    X, y = load_iris(return_X_y=True)
    return X[::3], y[::3]


def net(**options):
    return TorchClassifier(max_epochs=5, random_state=0, **options)


# --------------------------------------------------------------------------- tables
def test_classifiers_without_probabilities_have_a_plan():
    found = plan(SVC(random_state=0), *iris())
    assert {*found.index} == {"KernelSurrogateAttributor", "LinearSurrogateAttributor"}
    with pytest.raises(ValueError, match="use decision_function_shape='ovr'"):
        plan(SVC(decision_function_shape="ovo"), *iris())


def test_a_row_for_each_attributor_that_takes_the_model():
    X, y = iris()
    model = make_pipeline(StandardScaler(), net())
    table = plan(model, X, y)
    assert list(table.columns) == COLUMNS
    assert list(table.index) == [
        "AdamWInfluence",
        "DualInfluence",
        "KernelSurrogateAttributor",
        "LinearSurrogateAttributor",
        "RISEValuator",
    ]
    assert (table[["seconds", "megabytes"]] > 0).all(axis=None)
    assert (table["faithfulness"] != "").all()
    with pytest.raises(NotFittedError):
        check_is_fitted(model)


@pytest.mark.parametrize(
    "attributor",
    [
        AdamWInfluence(n_trajectories=4),
        AdamWInfluence(inclusion=1),
        DualInfluence(n_models=2),
        DualInfluence(removal="influence"),
        KernelSurrogateAttributor(n_subsets=20, estimation="retrain"),
        KernelSurrogateAttributor(n_subsets=20, estimation="gradient"),
        RISEValuator(),
    ],
    ids=str,
)
def test_estimand_and_trainings_are_those_of_fit(attributor, monkeypatch):
    X, y = iris()
    attributor.set_params(estimator=net(), random_state=0)
    row = plan(attributor, X, y).iloc[0]
    assert not hasattr(attributor, "n_units_")
    attributor.fit(X, y)
    assert row["estimand"] == attributor.estimand_
    n_models = {
        "AdamWInfluence": lambda: 2 + len(attributor.weights_) + attributor.n_halves_,
        "DualInfluence": lambda: len(attributor.estimators_),
        "KernelSurrogateAttributor": lambda: (
            len(attributor.weights_) if attributor.estimation_ == "retrain" else 1
        ),
        "RISEValuator": lambda: 1,
    }[type(attributor).__name__]()
    if getattr(attributor, "inclusion", None) == 1:
        n_models = 1  # the run of the model itself
    assert row["trainings"] == n_models


@pytest.mark.parametrize(
    ("model", "trainings"),
    [
        (LogisticRegression(), 1),
        (MLPClassifier(max_iter=5, random_state=0), 1),
        (FrozenEstimator(LogisticRegression().fit(*iris())), 0),
        (FrozenEstimator(net().fit(*iris())), 0),
    ],
    ids=["linear", "perceptron", "frozen", "frozen network"],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_models_that_are_trained_or_not(model, trainings):
    table = plan(DualInfluence(model, random_state=0), *iris())
    assert table["trainings"].tolist() == [trainings]
    assert table["seconds"].notna().all()


PERCEPTRONS = {
    "two classes": (MLPClassifier, {}, lambda y: y > 0),
    "three classes": (MLPClassifier, {"batch_size": 16}, lambda y: y),
    "labels": (MLPClassifier, {}, lambda y: np.c_[y > 0, y > 1].astype(int)),
    "lbfgs": (MLPClassifier, {"solver": "lbfgs"}, lambda y: y),
    "numbers": (MLPRegressor, {}, lambda y: y + 0.5),
    "columns": (MLPRegressor, {}, lambda y: np.c_[y, y * y] + 0.5),
}


@pytest.mark.parametrize("name", PERCEPTRONS)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_perceptrons_are_planned_by_the_sizes_that_they_will_have(name):
    X, y = iris()
    kind, options, target = PERCEPTRONS[name]
    options = {"max_iter": 7, "random_state": 0, **options}
    mlp, y = kind(hidden_layer_sizes=(5, 4), **options), target(y)
    dual = DualInfluence(mlp, random_state=0)
    row = plan(dual, X, y).iloc[0]
    dual.fit(X, y)
    assert row["way"].endswith(f"solver {dual.solver_}: {dual.solver_reason_}")
    assert f"removal {dual.removal_['attribute']}:" in row["way"]
    assert row["megabytes"] > 0
    alike, fitted = as_model(mlp).alike(X, y), as_model(dual.estimator_)
    sizes = [value.shape for value in fitted.module.parameters()]
    module = untrained(alike, X, y).model.module
    assert [value.shape for value in module.parameters()] == sizes
    if "solver" not in options:
        run = plan(AdamWInfluence(mlp, inclusion=1, random_state=0), X, y).iloc[0]
        n_steps = 7 * (4 if "batch_size" in options else 1)
        assert f"of at most {n_steps} steps" in run["way"]
        assert run["megabytes"] > 0
    # sparse rows are of no network
    assert as_model(mlp).alike(sparse.csr_matrix(X), y) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_iter": 0}, "'max_iter' param"), ({"hidden_layer_sizes": 0}, "'hidden_lay")],
    ids=str,
)
def test_perceptrons_that_cannot_be_trained_say_so_themselves(options, message):
    dual = DualInfluence(MLPClassifier(**options), random_state=0)
    for call in (partial(plan, dual), dual.fit):
        with pytest.raises(ValueError, match=message):
            call(*iris())


def test_copies_of_many_rows_are_counted():
    X = np.random.RandomState(0).randn(40_000, 20)
    y = (X[:, 0] > 0).astype(int)
    model = net(hidden_layer_sizes=(4,), batch_size=8000)
    row = plan(AdamWInfluence(model, inclusion=1, random_state=0), X, y, n_queries=1)
    # the attributor's copy, and a tensor
    assert row["megabytes"].iloc[0] > 2 * X.nbytes / 2**20


def test_other_estimators_are_retrained():
    table = plan(KNeighborsClassifier(3), *iris())
    expected = ["KernelSurrogateAttributor", "LinearSurrogateAttributor"]
    assert list(table.index) == expected
    assert (table["trainings"] > 100).all()
    assert table["way"].str.contains("subsets by retrain").all()


def test_trees_are_refitted_first():
    forest = RandomForestClassifier(2, random_state=0)
    table = plan(forest, *iris())
    retrained = ["KernelSurrogateAttributor", "LinearSurrogateAttributor"]
    assert list(table.index) == ["TreeInfluence", *retrained]
    assert "structures of 16 models" in table["way"]["TreeInfluence"]
    assert (table["faithfulness"] != "").all()
    frozen = FrozenEstimator(forest.fit(*iris()))
    row = plan(TreeInfluence(frozen, random_state=0), *iris()).iloc[0]
    assert row["trainings"] == 0
    assert "structures of trees as they are" in row["estimand"]
    # whose leaves follow another rule
    other = plan(GradientBoostingClassifier(n_estimators=2, random_state=0), *iris())
    assert list(other.index) == retrained


def test_regression_and_tasks():
    X, y = load_diabetes(return_X_y=True)
    tasks = np.arange(len(y)) % 12
    network = TorchRegressor(max_epochs=5, random_state=0)
    for model in (Ridge(), network):
        kernel = KernelSurrogateAttributor(model, n_subsets=16, random_state=0)
        rows, units = plan(kernel, X, y), plan(kernel, X, y, tasks=tasks)
        assert rows["trainings"].iloc[0] <= units["trainings"].iloc[0]
        # with as many subsets: those without one task are further models to hold
        kernel.set_params(include_loo=False)
        rows, units = plan(kernel, X, y), plan(kernel, X, y, tasks=tasks)
        assert rows["megabytes"].iloc[0] > units["megabytes"].iloc[0]


def test_models_that_are_kept_or_trained_together_take_memory():
    X, y = iris()
    for model in (RandomForestClassifier(5, random_state=0), net()):
        few, many = (
            plan(KernelSurrogateAttributor(model, n_subsets=n, random_state=0), X, y)
            for n in (16, 100)
        )
        trained = [pickle.dumps(model.fit(X, y))] * 100
        assert many["megabytes"].iloc[0] > 3 * few["megabytes"].iloc[0]
        if isinstance(model, RandomForestClassifier):
            kept = sum(map(len, trained)) / 2**20
            assert kept / 3 < many["megabytes"].iloc[0] < 3 * kept


def test_refits_of_tangents_are_counted_by_their_products(monkeypatch):
    X, y = iris()
    problem = untrained(net(), X.astype(np.float32), y)
    monkeypatch.setattr(_costs, "multiplications_per_second", lambda dtype: 1.0)
    monkeypatch.setattr(_costs, "numbers_per_second", lambda dtype: 1.0)
    for n_components in (None, 20):
        few, more, many, blocks = (
            _costs.refits_seconds(problem, removed, n_components)
            for removed in (*(np.full(n, 20) for n in (10, 20, 40)), np.full(40, 2))
        )
        assert many - more == pytest.approx(2 * (more - few))
        # six Newton steps of twenty products and solutions; 150 rows and classes
        product, side = 150**2, 150
        if n_components is not None:
            product, side = 2 * 150 * 20, 20
        assert (more - few) / 10 == pytest.approx(120 * (product + side**2))
        # a few rows leave by a matrix of their six outputs
        double = 2 if n_components is None else 1
        block = side**2 * 6 / 2 + double * side * 6**2 + 2 * 6**3 / 3
        assert (blocks - many) / 40 == pytest.approx(block)


def test_more_queries_and_runs_take_longer():
    X, y = load_iris(return_X_y=True)
    memory = [
        plan(
            AdamWInfluence(net(), n_trajectories=runs, random_state=0),
            X,
            y,
            n_queries=queries,
        )
        for runs, queries in [(2, 10), (8, 10), (8, 1000)]
    ]
    few, more, most = (table["megabytes"].iloc[0] for table in memory)
    assert few < more < most


# ------------------------------------------------------------------ refusals, printing
def test_what_is_refused_is_a_row_with_the_reason(monkeypatch):
    X, y = load_iris(return_X_y=True)
    monkeypatch.setattr(skattrib.engine._plan, "_NEVER_REFUSED", 0.0)
    with sklearn.config_context(working_memory=0.01):
        table = plan(net(), X, y)
        assert table["way"]["DualInfluence"].startswith("refused: solver='cg' needs")
        assert np.isnan(table["seconds"]["DualInfluence"])
        assert table["seconds"]["RISEValuator"] > 0
        with pytest.raises(ValueError, match="AdamWInfluence"):
            plan(DualInfluence(net(), random_state=0), X, y)


def test_fit_says_what_it_will_take_before_it_trains(capsys, monkeypatch):
    X, y = iris()
    said = []

    def fit(self, *args, **options):
        said.append(capsys.readouterr().out)
        raise KeyboardInterrupt

    monkeypatch.setattr(TorchClassifier, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        DualInfluence(net(), random_state=0, verbose=1).fit(X, y)
    assert "[DualInfluence] 1 training, about" in said[0]
    assert "removal newton" in said[0]
    with pytest.raises(KeyboardInterrupt):
        DualInfluence(net(), random_state=0).fit(X, y)
    assert said[1] == ""


def test_an_attributor_that_cannot_be_timed():
    table = plan(Same(net(), random_state=0), *iris())
    assert table.loc["Same", ["trainings", "seconds", "megabytes"]].isna().all()
    assert "Same does not tell" in table["way"]["Same"]
    assert table["faithfulness"].tolist() == [""]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"n_queries": 0}, ValueError, "'n_queries' parameter"),
        ({"model": "net"}, ValueError, "'model' parameter"),
        ({"y": np.zeros(3)}, ValueError, "inconsistent numbers of samples"),
        ({"model": StandardScaler()}, ValueError, "neither a classifier nor"),
    ],
    ids=str,
)
def test_bad_input(change, error, message):
    X, y = iris()
    options = {"model": net(), "X": X, "y": y, **change}
    with pytest.raises(error, match=message):
        plan(**options)
