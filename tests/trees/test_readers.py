"""Ensembles of every library: rebuilt, refitted at their own weights, or refused."""

import re

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skattrib import TreeInfluence, make_attributor
from skattrib.engine._trees import TreeRefits
from skattrib.evaluation import retrain_outcomes
from skattrib.exceptions import UnsupportedModelError
from skattrib.models._as_model import as_model
from skattrib.models._trees import check_categories, known_categories
from tests.trees.cases import (
    SIGNS,
    estimator,
    fitted,
    floored,
    gap,
    library,
    numbers,
    row_weights,
    table,
    targets,
)

# Of the range of the outputs; the libraries compute in single precision.
CLOSE = 1e-6

HIST, LIGHT, XG = (
    {"reg": f"{stem}Regressor", "cls": f"{stem}Classifier"}
    for stem in ("HistGradientBoosting", "LGBM", "XGB")
)
COUNTS = {"reg": {"target": "counts"}}

#: Of each library: regressor or classifier, and what is special of the case.
CASES = [
    (HIST["reg"], {}),
    (HIST["reg"], {"monotonic_cst": SIGNS}),
    (HIST["reg"], {"loss": "poisson", "target": "counts"}),
    (HIST["reg"], {"rows": "table", "l2_regularization": 1.0}),
    (HIST["reg"], {"max_features": 0.5}),
    (HIST["reg"], {"early_stopping": True}),
    (HIST["cls"], {"target": "words"}),
    (HIST["cls"], {"target": "two", "class_weight": "balanced"}),
    (HIST["cls"], {"target": "two", "class_weight": {0: 2.0}, "rows": "table"}),
    (HIST["cls"], {"target": "words", "class_weight": {1: 3.0}}),  # by code
    (HIST["cls"], {"target": "two", "monotonic_cst": SIGNS}),
    # without a penalty, leaves of rows that are sure lose digits: p (1 - p) is summed
    # in single precision
    (HIST["cls"], {"target": "three", "l2_regularization": 1.0}),
    (LIGHT["reg"], {}),
    (LIGHT["reg"], {"monotone_constraints": SIGNS}),
    (LIGHT["reg"], {"objective": "poisson", "target": "counts"}),
    (LIGHT["reg"], {"rows": "table"}),
    (LIGHT["reg"], {"rows": "table", "cat_l2": 3.0, "max_cat_to_onehot": 3}),
    (LIGHT["reg"], {"rows": "table", "monotone_constraints": [1, 0, 0, 0]}),
    (LIGHT["reg"], {"reg_alpha": 1.0, "reg_lambda": 2.0}),
    (LIGHT["reg"], {"lambda_l1": 1.0, "learning_rate": 1.0, "n_estimators": 3}),
    (LIGHT["reg"], {"max_delta_step": 0.3}),
    (LIGHT["reg"], {"boost_from_average": False}),
    (LIGHT["reg"], {"colsample_bytree": 0.5}),
    (LIGHT["reg"], {"subsample": 0.5, "subsample_freq": 1}),
    (LIGHT["reg"], {"min_child_samples": 100}),
    (LIGHT["cls"], {"target": "words", "extra_trees": True}),
    (LIGHT["cls"], {"target": "two", "class_weight": "balanced"}),
    (LIGHT["cls"], {"target": "words", "class_weight": {"yes": 3.0}}),
    (
        LIGHT["cls"],
        {"target": "two", "class_weight": {0: 2.0}, "scale_pos_weight": 3.0},
    ),
    (LIGHT["cls"], {"target": "three"}),
    (LIGHT["cls"], {"target": "three", "class_weight": "balanced", "rows": "table"}),
    (LIGHT["cls"], {"target": "two", "objective": "multiclass", "num_class": 2}),
    (XG["reg"], {}),
    (XG["reg"], {"monotone_constraints": tuple(SIGNS)}),
    (XG["reg"], {"monotone_constraints": {"size": 1}, "rows": "table"}),
    (XG["reg"], {"monotone_constraints": "(0,1,0,-1)", "tree_method": "exact"}),
    (XG["reg"], {"objective": "count:poisson", "target": "counts"}),
    (XG["reg"], {"rows": "table", "max_cat_to_onehot": 2}),
    (XG["reg"], {"reg_alpha": 1.0, "reg_lambda": 0.0}),
    (XG["reg"], {"alpha": 1.0, "eta": 1.0, "n_estimators": 3}),
    (XG["reg"], {"base_score": 0.4}),
    (XG["reg"], {"gamma": 5.0, "colsample_bytree": 0.5}),
    (XG["reg"], {"grow_policy": "lossguide", "max_leaves": 6, "max_depth": 0}),
    (XG["reg"], {"subsample": 0.5}),
    (XG["cls"], {"target": "two"}),
    (XG["cls"], {"target": "two", "scale_pos_weight": 3.0, "rows": "table"}),
    (XG["cls"], {"target": "two", "max_delta_step": 0.5, "base_score": 0.3}),
    (XG["cls"], {"target": "three"}),
    (XG["cls"], {"target": "three", "tree_method": "approx", "rows": "table"}),
    # with missing values scikit-learn 1.7 gives some leaves the values of other rows
    # than it puts there, and extremely randomized trees of 1.9 do so with weights
    ("RandomForestRegressor", {}),
    (
        "RandomForestRegressor",
        {"bootstrap": False, "max_features": 0.5, "rows": "whole"},
    ),
    ("RandomForestRegressor", {"target": "two columns", "max_depth": 3}),
    ("RandomForestClassifier", {"target": "words", "class_weight": "balanced"}),
    (
        "RandomForestClassifier",
        {
            "target": "three",
            "rows": "whole",
            "bootstrap": False,
            "class_weight": {0: 3.0},
            "max_depth": 3,
        },
    ),
    ("ExtraTreesRegressor", {"rows": "whole", "monotonic_cst": SIGNS}),
    (
        "ExtraTreesRegressor",
        {"criterion": "friedman_mse", "max_leaf_nodes": 9, "rows": "whole"},
    ),
    (
        "ExtraTreesClassifier",
        {"target": "three", "min_samples_leaf": 4, "rows": "whole"},
    ),
    (
        "ExtraTreesClassifier",
        {"target": "two", "rows": "whole", "monotonic_cst": SIGNS, "max_depth": 3},
    ),
    (
        "ExtraTreesClassifier",
        {
            "target": "three",
            "rows": "whole",
            "class_weight": "balanced",
            "max_depth": 3,
        },
    ),
    (
        "RandomForestClassifier",
        {
            "target": "two",
            "rows": "whole",
            "bootstrap": False,
            "class_weight": "balanced_subsample",
            "max_depth": 3,
        },
    ),
    ("DecisionTreeRegressor", {"criterion": "poisson", "target": "counts"}),
    ("DecisionTreeRegressor", {"ccp_alpha": 0.05}),
    ("DecisionTreeClassifier", {"target": "words", "class_weight": "balanced"}),
    ("DecisionTreeClassifier", {"target": "words", "class_weight": {"yes": 3.0}}),
    (
        "ExtraTreeClassifier",
        {"target": "three", "criterion": "entropy", "rows": "whole"},
    ),
]
IDS = [
    f"{name}-{','.join(f'{k}={v}' for k, v in case.items())}" for name, case in CASES
]
#: Only some of the rows were in each tree, or the stop kept some apart.
PARTLY = {"subsample", "early_stopping"}


def refitted(model, X, y, own, trained):
    """Return the ensemble, leaves, and outputs of a refit at the trained weights."""
    ensemble, leaves = model.ensemble(X, y, own, trained), model.leaves(X)
    refits = TreeRefits(ensemble, leaves, model.training_targets(y))
    return ensemble, leaves, refits.outputs(trained[None], leaves)[0]


@pytest.mark.filterwarnings("ignore:.*friedman_mse:FutureWarning")
@pytest.mark.parametrize(("name", "case"), CASES, ids=IDS)
def test_outputs_are_rebuilt_and_refitted(name, case):
    weights = row_weights()
    model, X, y, _ = fitted(name, weights=weights, **case)
    assert model.reason_against() is None
    assert "TreeInfluence" in model.attributors()
    raw = model.raw_outputs(X)
    ensemble, leaves, again = refitted(model, X, y, weights, weights)
    assert raw.shape == (len(X), ensemble.n_outputs)
    assert gap(ensemble.as_fitted(leaves), raw) < CLOSE
    partly = PARTLY & case.keys() or case.get("bootstrap", "Random" in name)
    assert model.refits_itself == (not partly)
    if model.refits_itself:
        assert gap(again, raw) < CLOSE
    else:
        assert 1e-3 < gap(again, raw) < 1


@pytest.mark.filterwarnings("ignore:.*friedman_mse:FutureWarning")
@pytest.mark.parametrize(("name", "case"), CASES, ids=IDS)
def test_outputs_are_those_of_the_library(name, case):
    model, X, _, _ = fitted(name, **case)
    found = model.outputs(X).numpy()
    assert torch.equal(model.link(torch.tensor(model.raw_outputs(X))), model.outputs(X))
    if hasattr(model.estimator, "predict_proba"):
        expected = model.estimator.predict_proba(X)
        found = np.exp(found)
        if "Tree" in name or "Forest" in name:
            expected = floored(expected, len(X))
    else:
        expected = model.estimator.predict(X).reshape(len(X), -1)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [HIST["cls"], LIGHT["cls"], "DecisionTreeClassifier", "ExtraTreesClassifier"],
)
def test_balanced_classes_count_the_rows_that_are_present(name):
    """A model of half of the rows is its own refit at the weights of the half."""
    own = row_weights()
    X, y = numbers(), targets("two")
    present = np.random.RandomState(0).rand(len(y)) < 0.5 + 0.3 * y
    trained = np.where(present, own, 0.0)
    whole = as_model(estimator(name, class_weight="balanced"))
    model = whole.of(whole.retrain(X, y, trained, 0))
    raw = model.raw_outputs(X)[present]
    _, _, again = refitted(model, X, y, own, trained)
    assert gap(again[present], raw) < CLOSE


# ----------------------------------------------------------------- early stops
@pytest.mark.filterwarnings("ignore:The argument 'eval_set':FutureWarning")
def test_lightgbm_keeps_the_trees_of_an_early_stop():
    lightgbm = library("lightgbm")
    X, y = table(), targets("numbers")
    given = {"n_estimators": 100, "learning_rate": 0.5}
    stopped = estimator("LGBMRegressor", early_stopping_round=3, **given)
    stopped.fit(X[:110], y[:110], eval_set=[(X[110:], y[110:])])
    called = estimator("LGBMRegressor", num_iterations=100, learning_rate=0.5)
    calls = [lightgbm.early_stopping(3, verbose=False)]
    called.fit(X[:110], y[:110], eval_set=[(X[110:], y[110:])], callbacks=calls)
    for one in (stopped, called):
        model, ones = as_model(one), np.ones(110)
        n_trees = one.best_iteration_
        assert 1 < n_trees < 97
        ensemble, _, again = refitted(model, X[:110], y[:110], ones, ones)
        assert len(ensemble.stages) == n_trees
        assert gap(again, model.raw_outputs(X[:110])) < CLOSE
        # it is trained without rows to stop by
        recipe = model.recipe()
        assert recipe.get_params()["n_estimators"] == n_trees
        repeated = clone(recipe).fit(X[:110], y[:110])
        np.testing.assert_allclose(repeated.predict(X), one.predict(X))
        assert as_model(recipe).recipe() is recipe


def test_xgboost_keeps_the_trees_of_an_early_stop():
    xgboost = library("xgboost")
    X, y = table(), targets("three")
    given = {"n_estimators": 100, "learning_rate": 0.5}
    stopped = estimator("XGBClassifier", early_stopping_rounds=3, **given)
    call = xgboost.callback.EarlyStopping(rounds=3)
    for one in (stopped, estimator("XGBClassifier", callbacks=[call], **given)):
        held = [(X[110:], y[110:])]
        one.fit(X[:110], y[:110], eval_set=held, verbose=False)
        model, ones = as_model(one), np.ones(110)
        n_trees = one.best_iteration + 1
        assert 1 < n_trees < one.get_booster().num_boosted_rounds() < 100
        ensemble, _, again = refitted(model, X[:110], y[:110], ones, ones)
        assert len(ensemble.stages) == n_trees
        assert gap(again, model.raw_outputs(X[:110])) < CLOSE
        repeated = clone(model.recipe()).fit(X[:110], y[:110])
        np.testing.assert_allclose(
            repeated.predict_proba(X), one.predict_proba(X), rtol=1e-5
        )


# -------------------------------------------------------------- first outputs
@pytest.mark.parametrize(
    ("name", "case", "moves"),
    [
        ("LGBMRegressor", {}, True),
        ("LGBMRegressor", {"boost_from_average": False}, False),
        ("XGBRegressor", {}, True),
        ("XGBRegressor", {"objective": "count:poisson", "target": "counts"}, True),
        ("XGBRegressor", {"base_score": 3.0}, False),
        ("XGBClassifier", {"target": "two", "scale_pos_weight": 3.0}, True),
        ("HistGradientBoostingClassifier", {"target": "three"}, True),
    ],
    ids=str,
)
def test_first_outputs_move_where_the_library_moves_them(name, case, moves):
    """Trained for other weights, the library begins where a refit does."""
    model, X, y, ones = fitted(name, **case)
    other = np.where(targets("numbers") > 3, 4.0, 1.0)
    ensemble = model.ensemble(X, y, ones, ones)
    assert ensemble.moves == moves
    refits = TreeRefits(ensemble, model.leaves(X), model.training_targets(y))
    in_loss = ensemble.weighting(torch.tensor(other[None])).numpy()
    found = refits._initial(other[None], in_loss)[:, 0]
    there = model.of(clone(model.estimator).fit(X, y, sample_weight=other))
    expected = there.ensemble(X, y, other, other).initial
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (np.abs(found - ensemble.initial).max() > 0.01) == moves


def test_lightgbm_begins_at_a_mean_of_nothing():
    """Then nothing is added to the first trees, or what rounding leaves of it."""
    X, y = numbers(), targets("numbers")
    for shift in (y.mean(), 0.0):
        own = estimator("LGBMRegressor").fit(X, y - shift)
        model, ones = as_model(own), np.ones(len(y))
        ensemble, _, again = refitted(model, X, y - shift, ones, ones)
        assert ensemble.moves
        assert gap(again, model.raw_outputs(X)) < CLOSE


# -------------------------------------------------------------------- classes
@pytest.mark.parametrize("name", [HIST["cls"], LIGHT["cls"], XG["cls"], "forest"])
def test_half_models_of_some_classes_answer_for_all(name):
    name = "RandomForestClassifier" if name == "forest" else name
    X, y = numbers(), targets("three")
    model = as_model(estimator(name))
    model.classes = np.arange(3)
    for kept in ([0], [0, 1]):
        weights = np.isin(y, kept).astype(float)
        found = model.of(model.retrain(X, y, weights, 0)).outputs(X)
        assert found.shape == (len(X), 3)
        assert torch.isfinite(found).all()
        assert (found.argmax(axis=1) < 2).all()
        assert (found[:, 2] < -5).all()
        if kept == [0]:
            assert (found[:, 0] > np.log(0.99)).all()


def test_forests_have_one_floor_for_all_models():
    """A class without rows in a leaf has half a row among all, also in half models."""
    X, y = numbers(), targets("three")
    model = as_model(RandomForestClassifier(3, random_state=0))
    model.classes = np.arange(3)
    weights = (np.arange(len(y)) % 2).astype(float)
    for of_rows in (weights, np.ones(len(y)), (y == 1).astype(float)):
        found = model.of(model.retrain(X, y, of_rows, 0)).outputs(X)
        # two classes have as much where the third has all
        lowest = np.log(0.5 / len(y) / (1 + 1 / len(y)))
        assert float(found.min()) == pytest.approx(lowest)
        assert torch.allclose(found.exp().sum(axis=1), torch.ones(len(X)).double())
    alone = as_model(RandomForestClassifier(3, random_state=0).fit(X, y))
    assert alone.n_rows() == len(y)
    single, _, _, _ = fitted("DecisionTreeClassifier", target="two")
    assert single.n_rows() == len(y)


@pytest.mark.parametrize("outcome", ["log_likelihood", "probability"])
def test_retrained_outcomes_of_a_forest(outcome):
    X, y = numbers(), targets("words")
    forest = RandomForestClassifier(5, random_state=0)
    weights = np.ones((2, len(y)))
    weights[1, ::3] = 0
    found = retrain_outcomes(forest, X, y, weights, X[:20], y[:20], outcome=outcome)
    for row, outcomes in zip(weights, found.reshape(2, 20), strict=True):
        kept = row > 0
        fit = clone(forest).fit(X[kept], y[kept])
        shares = floored(fit.predict_proba(X[:20]), len(y))
        expected = shares[np.arange(20), (y[:20] == "yes").astype(int)]
        if outcome == "log_likelihood":
            expected = np.log(expected)
        np.testing.assert_allclose(outcomes, expected)


def test_the_floor_is_the_same_where_transformers_are_fitted_again():
    X, y = numbers(holes=False), targets("words")
    forest = make_pipeline(StandardScaler(), RandomForestClassifier(5, random_state=0))
    weights = (np.arange(len(y))[None] % 2).astype(float)
    args = X, y, weights, X[:20], y[:20]
    again = retrain_outcomes(forest, *args, refit_transformers=True)
    np.testing.assert_allclose(again, retrain_outcomes(forest, *args))


@pytest.mark.parametrize("name", [HIST["reg"], LIGHT["reg"], XG["reg"]])
def test_tables_reach_the_library_as_they_are(name):
    X, y = table(), targets("numbers")
    weights = np.ones((2, len(y)))
    weights[1, :50] = 0
    own = estimator(name)
    found = retrain_outcomes(own, X, y, weights, X[:9], y[:9])
    for row, outcomes in zip(weights, found.reshape(2, 9), strict=True):
        kept = row > 0
        predicted = clone(own).fit(X[kept], y[kept]).predict(X[:9])
        np.testing.assert_allclose(
            outcomes, -0.5 * (predicted - y[:9]) ** 2, rtol=1e-5, atol=1e-8
        )


@pytest.mark.parametrize("name", [HIST["reg"], LIGHT["reg"], XG["reg"]])
def test_queries_that_the_library_refuses(name):
    model, X, _, _ = fitted(name, rows="table")
    with pytest.raises(ValueError, match=f"{name} cannot predict these rows"):
        model.leaves(X.drop(columns="town"))
    with pytest.raises(ValueError, match=f"{name} cannot predict these rows"):
        model.outputs(X.drop(columns="town"))


def test_categories_of_no_training_row_are_named():
    X = table()
    known = known_categories(X[X["town"] != "Rome"])
    assert set(known) == {"town", "kind"}
    check_categories(known, X[X["town"] != "Rome"])  # missing ones, too
    check_categories(known_categories(numbers()), numbers())
    for query in (X, X.astype({"town": object}), X.astype({"town": str})):
        with pytest.raises(ValueError, match=r"column 'town'.*\['Rome'.*Leave"):
            check_categories(known, query)


# ------------------------------------------------------------------- refusals
def half_squares(y, predicted, sample_weight):
    return predicted - y, np.ones_like(y)


REFUSED = [
    (HIST["reg"], {"loss": "absolute_error"}, "loss='squared_error'"),
    (HIST["reg"], {"loss": "quantile", "quantile": 0.5}, "loss='squared_error'"),
    (LIGHT["reg"], {"boosting_type": "dart"}, "boosting_type='gbdt'"),
    (LIGHT["reg"], {"boosting": "dart"}, "boosting_type='gbdt'"),
    (
        LIGHT["reg"],
        {"boosting_type": "rf", "subsample": 0.5, "subsample_freq": 1},
        "random forest",
    ),
    (LIGHT["reg"], {"boosting_type": "goss"}, "'bagging'"),
    (LIGHT["reg"], {"data_sample_strategy": "goss"}, "'bagging'"),
    (LIGHT["reg"], {"linear_tree": True}, "linear_tree=False"),
    (LIGHT["reg"], {"path_smooth": 1.0}, "path_smooth=0"),
    (LIGHT["reg"], {"use_quantized_grad": True}, "use_quantized_grad=False"),
    (LIGHT["reg"], {"reg_sqrt": True}, "reg_sqrt=False"),
    (LIGHT["reg"], {"objective": "regression_l1"}, "objective='regression'"),
    (LIGHT["reg"], {"loss": "huber"}, "objective='regression'"),
    (LIGHT["reg"], {"objective": half_squares}, "objective='regression'"),
    (
        LIGHT["reg"],
        {"monotone_constraints": SIGNS, "mc_method": "advanced"},
        "monotone_constraints_method='basic'",
    ),
    (LIGHT["cls"], {"sigmoid": 2.0}, "sigmoid=1"),
    (LIGHT["cls"], {"is_unbalance": True}, "class_weight='balanced'"),
    (
        LIGHT["cls"],
        {"scale_pos_weight": 2.0, "class_weight": "balanced"},
        "one of them",
    ),
    (
        LIGHT["cls"],
        {"objective": "multiclassova", "num_class": 2},
        "'binary' or 'multiclass'",
    ),
    (XG["reg"], {"booster": "dart"}, "booster='gbtree'"),
    (XG["reg"], {"booster": "gblinear"}, "booster='gbtree'"),
    (XG["reg"], {"num_parallel_tree": 2}, "num_parallel_tree=1"),
    (XG["reg"], {"objective": "reg:absoluteerror"}, "objective='reg:squarederror'"),
    (XG["reg"], {"objective": "reg:pseudohubererror"}, "objective='reg:squared"),
    (XG["reg"], {"objective": half_squares}, "objective='reg:squarederror'"),
    (XG["reg"], {"target": "two columns"}, "one model per column"),
    (
        XG["reg"],
        {
            "multi_strategy": "multi_output_tree",
            "tree_method": "hist",
            "target": "two columns",
        },
        "multi_strategy='one_output_per_tree'",
    ),
    ("XGBRFRegressor", {"max_depth": 2}, "RandomForest"),
    (
        "RandomForestRegressor",
        {"criterion": "absolute_error", "n_estimators": 2, "rows": "whole"},
        "criterion='squared_error'",
    ),
]


@pytest.mark.filterwarnings("ignore::UserWarning")
def without_addresses(value):
    """The name of a case, the same in every process."""
    return re.sub(r"<function (\w+) at \w+>", r"\1", str(value))


@pytest.mark.parametrize(("name", "case", "cure"), REFUSED, ids=without_addresses)
def test_refusals_name_the_cure(name, case, cure):
    """Also before a fit, except of what only that shows."""
    target = "two" if name.endswith("Classifier") else "numbers"
    given = {key: case[key] for key in case if key not in ("target", "rows")}
    rows = "table" if name.startswith("XGBRF") else "numbers"
    after = fitted(name, **({"rows": rows, "target": target} | case))[0]
    models = [after]
    if cure != "one model per column":
        models.append(as_model(estimator(name, **given)))
    for model in models:
        with pytest.raises(UnsupportedModelError, match="TreeInfluence cannot") as info:
            model.check_trees(TreeInfluence())
        assert cure in str(info.value)
        assert "KernelSurrogateAttributor and LinearSurrogate" in str(info.value)
        assert "TreeInfluence" not in model.attributors()


def test_xgboost_refuses_rows_by_their_gradients():
    model = as_model(estimator("XGBRegressor", sampling_method="gradient_based"))
    assert "sampling_method='uniform'" in model.reason_against()
    model = as_model(estimator("XGBRegressor", process_type="update"))
    assert "process_type='default'" in model.reason_against()


@pytest.mark.parametrize(
    ("kind", "cure"),
    [
        (GradientBoostingClassifier, "Use HistGradientBoostingClassifier"),
        (GradientBoostingRegressor, "Use HistGradientBoostingRegressor"),
    ],
)
def test_other_ensembles_are_refused_and_retrained(kind, cure):
    model = as_model(kind(n_estimators=3, random_state=0))
    with pytest.raises(UnsupportedModelError, match=cure):
        model.check_trees(TreeInfluence())
    X, y = numbers(holes=False), targets("two")
    fit = model.retrain(X, y, np.ones(len(y)), 0)
    assert torch.isfinite(model.of(fit).outputs(X)).all()
    for ask in (model.leaves, model.raw_outputs, model.link):
        with pytest.raises(NotImplementedError, match=cure):
            ask(X)
    with pytest.raises(NotImplementedError, match=cure):
        model.ensemble(X, y, np.ones(len(y)), np.ones(len(y)))


def test_catboost_and_rankers_are_refused():
    kind = type("CatBoostClassifier", (ClassifierMixin, BaseEstimator), {})
    kind.__module__ = "catboost.core"
    model = as_model(kind())
    with pytest.raises(UnsupportedModelError, match="Use LightGBM, XGBoost or Hist"):
        model.check_trees(TreeInfluence())
    assert model.attributors() == [
        "KernelSurrogateAttributor",
        "LinearSurrogateAttributor",
    ]
    for name in ("LGBMRanker", "XGBRanker"):
        reason = as_model(estimator(name)).reason_against()
        assert reason == "it ranks rows within groups. Use a classifier or a regressor."


@pytest.mark.parametrize("name", ["LGBMClassifier", "XGBClassifier"])
def test_a_booster_needs_its_wrapper(name):
    fit = estimator(name).fit(numbers(), targets("two"))
    bare = fit.booster_ if name.startswith("LGBM") else fit.get_booster()
    with pytest.raises(ValueError, match=f"pass the estimator.*{name} or"):
        as_model(bare)
    with pytest.raises(ValueError, match=f"pass the estimator.*{name} or"):
        make_attributor(bare)


def test_lightgbm_refuses_what_a_fit_was_told_besides():
    lightgbm = library("lightgbm")
    X, y = numbers(), targets("numbers")
    ones = np.ones(len(y))
    moved = estimator("LGBMRegressor").fit(X, y, init_score=ones)
    with pytest.raises(UnsupportedModelError, match="Fit it without init_score"):
        as_model(moved).ensemble(X, y, ones, ones)
    schedule = lightgbm.reset_parameter(learning_rate=lambda t: 0.1 * 0.9**t)
    slower = estimator("LGBMRegressor").fit(X, y, callbacks=[schedule])
    with pytest.raises(UnsupportedModelError, match="constant learning_rate"):
        as_model(slower).ensemble(X, y, ones, ones)


def test_xgboost_refuses_trees_without_their_parameters(tmp_path):
    xgboost = library("xgboost")
    X, y = numbers(), targets("numbers")
    ones = np.ones(len(y))
    path = str(tmp_path / "model.json")
    estimator("XGBRegressor", learning_rate=0.1).fit(X, y).get_booster().save_model(
        path
    )
    loaded = xgboost.XGBRegressor()
    loaded.load_model(path)
    with pytest.raises(UnsupportedModelError, match="load it by pickle"):
        as_model(loaded).ensemble(X, y, ones, ones)
