"""Seeds, tasks, weights and outcomes: what is taken and what is refused."""

import numpy as np
import pandas as pd
import polars
import pytest
import sklearn
import torch
from numpy.testing import assert_array_equal
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from skattrib import (
    CountSketchTransformer,
    DualInfluence,
    TorchClassifier,
    TorchRegressor,
)
from skattrib._validation import (
    DTYPES,
    _told,
    as_tensor,
    check_tasks,
    check_weights,
    draw_seed,
    draw_seeds,
    memory_cap,
    seed_unset,
    unchanged_on_error,
    validate_data,
)
from skattrib.models._outcomes import check_outcome


# ------------------------------------------------------------------------- seeds
@pytest.mark.parametrize("seed", [0, 7, np.int64(7), 2**31 - 2])
def test_a_given_seed_is_the_seed(seed):
    assert draw_seed(seed) == seed
    assert type(draw_seed(seed)) is int
    assert draw_seeds(seed, 3)[0] == seed


def test_a_generator_is_drawn_from():
    rng = np.random.RandomState(0)
    seeds = [draw_seed(rng) for _ in range(3)]
    assert len(set(seeds)) == 3
    rng = np.random.RandomState(0)
    assert [draw_seed(rng) for _ in range(3)] == seeds
    assert all(type(seed) is int and 0 <= seed < 2**31 for seed in seeds)


@pytest.mark.parametrize("make", [lambda: 3, lambda: np.random.RandomState(3)])
def test_more_seeds_keep_the_first(make):
    many = draw_seeds(make(), 6)
    assert len(set(many)) == 6
    assert draw_seeds(make(), 2) == many[:2]
    assert draw_seeds(make(), 1) == many[:1]
    assert all(type(seed) is int for seed in many)


@pytest.mark.touches_global_rng
def test_seed_unset_seeds_what_has_none_at_any_depth():
    def make():
        return make_pipeline(
            StandardScaler(), TorchClassifier(), LogisticRegression(random_state=5)
        )

    def seeds(pipeline):
        params = pipeline.get_params(deep=True)
        return {k: v for k, v in params.items() if k.endswith("random_state")}

    one, again, other, drawn = make(), make(), make(), make()
    seed_unset(one, 0)
    seed_unset(again, 0)
    seed_unset(other, 1)
    seed_unset(drawn, None)
    assert seeds(one)["logisticregression__random_state"] == 5
    for pipeline in (one, other, drawn):
        assert type(seeds(pipeline)["torchclassifier__random_state"]) is int
    assert seeds(one) == seeds(again) != seeds(other)


def test_seed_unset_gives_different_steps_different_seeds():
    pipeline = make_pipeline(
        LogisticRegression(), Ridge(), TorchClassifier(), TorchRegressor()
    )
    seed_unset(pipeline, 0)
    steps = [step for _, step in pipeline.steps]
    assert len({step.random_state for step in steps}) == 4


def test_seed_unset_without_seeds_is_nothing():
    scaler = StandardScaler()
    seed_unset(scaler, 0)
    assert scaler.get_params() == StandardScaler().get_params()


# ---------------------------------------------------------------------- failures
def test_unchanged_on_error():
    model = Ridge(alpha=2.0)
    model.coef_ = before = np.ones(2)

    @unchanged_on_error(model)
    def fail():
        model.coef_, model.alpha, model.intercept_ = np.zeros(2), 3.0, 1.0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert vars(model).keys() == {*Ridge().get_params(), "coef_"}
    assert model.coef_ is before
    assert model.alpha == 2.0
    with unchanged_on_error(model):
        model.alpha = 3.0
    assert model.alpha == 3.0


# ----------------------------------------------------------------------- tensors
def test_as_tensor_copies():
    array = np.arange(6.0).reshape(2, 3)[:, ::2]
    array.flags.writeable = False
    tensor = as_tensor(array)
    assert tensor.dtype == torch.float64
    tensor += 1
    assert_array_equal(array, [[0, 2], [3, 5]])
    like = as_tensor([1, 2], torch.empty(0, dtype=torch.float32))
    assert like.dtype == torch.float32
    assert like.tolist() == [1, 2]


def test_memory_cap_is_scikit_learns():
    with sklearn.config_context(working_memory=3):
        assert memory_cap() == 3 * 2**20


# ------------------------------------------------------------------------ tables
def _frames():
    columns = {"size": [1.0, 2.0, 3.0], "city": ["Oslo", "Rome", "Oslo"]}
    table = pd.DataFrame(columns)
    days = table.assign(city=pd.date_range("2020-01-01", periods=3))
    return {
        "text": table,
        "categories": table.astype({"city": "category"}),
        "dates": days,
        "polars": polars.DataFrame(columns),
    }


@pytest.mark.parametrize("kind", ["text", "categories", "polars"])
def test_columns_of_texts_are_named_with_the_encoder_to_write(kind):
    with pytest.raises((TypeError, ValueError)) as caught:
        validate_data(TorchClassifier(), _frames()[kind], [0, 1, 0], dtype=DTYPES)
    message = str(caught.value)
    assert "columns of X are not numbers: texts ['city']. (" in message
    assert "Encode texts: encoder = make_column_transformer" in message
    assert "OneHotEncoder(handle_unknown='ignore', sparse_output=False)" in message
    assert message.endswith("make_pipeline(encoder, TorchClassifier()).")


@pytest.mark.parametrize("as_X", [lambda t: t, lambda t: t[["city"]], np.asarray])
@pytest.mark.parametrize("kind", ["dates", "times", "durations", "zones", "objects"])
def test_dates_are_refused_alone_too(kind, as_X):
    days = pd.Series(pd.date_range("2020-01-01", periods=3))
    column = {
        "dates": days,
        "times": days.dt.to_period("h"),
        "durations": days - days[0],
        "zones": days.dt.tz_localize("Europe/Oslo"),
        "objects": days.astype(object),
    }[kind]
    table = as_X(_frames()["text"].assign(size=[1, 2, 3], city=column))
    with pytest.raises(ValueError, match=r"dates or times \[('city'|0|1)\]. Turn"):
        validate_data(TorchClassifier(), table, [0, 1, 0], dtype=DTYPES)


IMPORTS = """
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from skattrib import DualInfluence, TorchClassifier
"""


def test_the_encoder_that_is_advised_works():
    """The code in the message, run; queries may hold texts that training did not."""
    table = _frames()["text"].assign(size=[1.0, np.nan, 3.0])
    table = pd.concat([table] * 8, ignore_index=True)
    names = [f"id{i}" for i in range(len(table))]
    table.index, y = names, np.arange(len(table)) % 2
    with pytest.raises(ValueError, match="texts") as caught:
        DualInfluence(random_state=0).fit(table, y)
    code = str(caught.value).split("Encode texts: ")[1].rstrip(".")
    setup, use = code.split("; then ")
    scope = {}
    exec(IMPORTS, scope)
    exec(setup, scope)
    attributor = eval(use, scope)
    attributor.set_params(estimator__torchclassifier__max_epochs=2, random_state=0)
    attributor.fit(table, y)
    assert list(attributor.unit_names_) == names
    queries = table[:2].assign(city=["Oslo", "Berlin"])
    assert np.isfinite(attributor.attribute(queries, y[:2])).all()


def test_numbers_in_disguise_are_numbers():
    table = pd.DataFrame({"a": pd.Series([1, 2, 3], dtype=object)})
    table["b"] = pd.Categorical([1, 2, 1])
    table["c"] = pd.array([1, 2, 3], dtype="Int64")
    table["d"] = ["1", "2.5", "3"]
    X, _ = validate_data(TorchClassifier(), table, [0, 1, 0], dtype=DTYPES)
    assert X.dtype == np.float64


def test_other_errors_of_a_table_of_numbers_are_scikit_learns():
    table = pd.DataFrame({"size": [1.0, np.nan, 3.0], "big": [True, False, True]})
    with pytest.raises(ValueError, match="contains NaN") as caught:
        validate_data(TorchClassifier(), table, [0, 1, 0], dtype=DTYPES)
    assert "Encode" not in str(caught.value)


def test_a_sparse_table_is_the_encoders():
    encoded = OneHotEncoder().fit_transform([["Oslo"], ["Rome"], ["Oslo"]])
    with pytest.raises(TypeError, match="give the encoder sparse_output=False"):
        validate_data(TorchClassifier(), encoded, [0, 1, 0], dtype=DTYPES)


def test_where_sparse_is_taken_it_is_not_to_blame():
    X = csr_array(np.array([[1.0, np.nan], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="contains NaN") as caught:
        CountSketchTransformer(2).fit(X)
    assert "sparse_output" not in str(caught.value)


# ------------------------------------------------------------------------- tasks
@pytest.mark.parametrize(
    ("tasks", "names", "codes"),
    [
        ([3, 1, 3], [1, 3], [1, 0, 1]),
        (["b", "a", "b"], ["a", "b"], [1, 0, 1]),
        ((1.5, 0.5, 0.5), [0.5, 1.5], [1, 0, 0]),
        ([True, False, True], [False, True], [1, 0, 1]),
        ([[2], [1], [2]], [1, 2], [1, 0, 1]),
        (pd.Series(["b", "a", "b"], index=[5, 6, 7]), ["a", "b"], [1, 0, 1]),
        (pd.Series(["b", "a", "b"], dtype="category"), ["a", "b"], [1, 0, 1]),
        (pd.Index([3, 1, 3]), [1, 3], [1, 0, 1]),
        (np.array(["b", "a", "b"], dtype=object), ["a", "b"], [1, 0, 1]),
    ],
)
def test_tasks_become_codes_of_sorted_labels(tasks, names, codes):
    found, labels = check_tasks(tasks, 3)
    assert list(labels) == names
    assert_array_equal(found, codes)
    assert found.dtype.kind == "i"


@pytest.mark.parametrize(
    ("tasks", "text"),
    [
        ([1, 2], "tasks has 2 labels for 3 rows; give one per row"),
        ([1, 2, 3, 4], "tasks has 4 labels for 3 rows"),
        ([1, 1, 1], r"only one label \(.*1.*\).*at least two tasks, or tasks=None"),
        ([1.0, np.inf, 2.0], "tasks contains.* infinity"),
        *(
            (missing, "tasks contains.*label every row")
            for missing in (
                [1, 2, np.nan],
                ["a", None, "b"],
                ["a", np.nan, "b"],
                np.array(["a", np.nan, "b"], dtype=object),
                np.array(["2020-01-01", "NaT", "2021-01-01"], "M8[D]"),
                np.array(["2020-01-01", "NaT", "2021-01-01"], "M8[ns]"),
                pd.Series(["a", None, "b"]),
                pd.Series(["a", pd.NA, "b"], dtype=object),
                pd.Series(["a", None, "b"], dtype="category"),
                pd.Series([1, pd.NA, 2], dtype="Int64"),
            )
        ),
        (np.array([1, "a", 2.5], dtype=object), "tasks.*one type"),
        ("city", r"tasks has shape \(\); give one column, a label per row"),
        ([[1, 2], [3, 4], [5, 6]], r"tasks has shape \(3, 2\); give one column"),
    ],
)
def test_tasks_that_are_refused(tasks, text):
    with pytest.raises(ValueError, match=text):
        check_tasks(tasks, 3)


@pytest.mark.parametrize("missing", [np.nan, None])
def test_labels_that_are_missing_among_texts_are_said_to_be_in_y(missing):
    labels = np.array(["a", missing, "b", "a"], dtype=object)
    X = np.arange(8.0).reshape(4, 2)
    for y in (labels, pd.Series(labels)):
        for estimator in (LogisticRegression(), TorchClassifier(random_state=0)):
            with pytest.raises(ValueError, match="Input y contains NaN"):
                DualInfluence(estimator, random_state=0).fit(X, y)


# ----------------------------------------------------------------------- weights
@pytest.mark.parametrize(
    "weights",
    [
        [[1, 0, 2]],
        [1, 0, 2],
        np.array([[1, 0, 2]], dtype=np.uint8),
        pd.DataFrame([[1.0, 0.0, 2.0]]),
    ],
)
def test_weights_become_rows(weights):
    found = check_weights(weights, 3)
    assert found.dtype == np.float64
    assert_array_equal(found, [[1.0, 0.0, 2.0]])
    assert check_weights(weights, 3, np.float32).dtype == np.float32


def test_weights_may_be_booleans_and_are_copied():
    given = np.array([[True, False], [True, True]])
    assert_array_equal(check_weights(given, 2), [[1, 0], [1, 1]])
    given = np.ones((2, 2))
    check_weights(given, 2)[:] = 5
    assert_array_equal(given, 1)


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ([[1, 0]], r"shape \(n_weightings, n_units=3\).*got \(1, 2\)"),
        (np.ones((2, 2, 3)), r"n_units=3.*got \(2, 2, 3\)"),
        (1.0, r"n_units=3.*got \(1, 1\)"),
        ([["a", "b", "c"]], "weights must be numeric"),
        ([[1, None, 1]], "weights must be numeric, got dtype object"),
        ([[1j, 0, 1]], "weights must be numeric, got dtype complex"),
        ([[1, np.nan, 1]], "weights contains NaN"),
        ([[1, np.inf, 1]], "weights contains NaN or infinity"),
        ([[1, -0.5, 1]], r"at least 0 \(0 = absent, 1 = present\); got -0\.5"),
    ],
)
def test_weights_that_are_refused(weights, text):
    with pytest.raises(ValueError, match=text):
        check_weights(weights, 3)


# ---------------------------------------------------------------------- outcomes
def several_outputs():
    X = np.arange(8.0).reshape(4, 2)
    return TorchRegressor(max_epochs=1, random_state=0).fit(X, X)


@pytest.mark.parametrize(
    ("outcome", "estimator", "expected"),
    [
        ("auto", LogisticRegression(), "log_likelihood"),
        ("auto", Ridge(), "log_likelihood"),
        ("log_likelihood", Ridge(), "log_likelihood"),
        ("margin", LogisticRegression(), "margin"),
        ("prediction", Ridge(), "prediction"),
        (max, Ridge(), max),
    ],
)
def test_outcomes(outcome, estimator, expected):
    assert check_outcome(outcome, estimator) == expected


@pytest.mark.parametrize(
    ("outcome", "make", "text"),
    [
        ("likelihood", Ridge, "outcome must be one of.*'margin'.*got 'likelihood'"),
        (None, Ridge, "outcome must be one of.*got None"),
        ("margin", Ridge, "'margin'.*needs a classifier; use 'log_likelihood'"),
        ("prediction", LogisticRegression, "'prediction'.*regressor with one output"),
        ("prediction", several_outputs, "'prediction'.*or a callable"),
    ],
)
def test_outcomes_that_do_not_fit(outcome, make, text):
    with pytest.raises(ValueError, match=text):
        check_outcome(outcome, make())


def test_a_check_of_an_older_scikit_learn_gets_no_name():
    """Its errors name what they stumble over all the same."""

    def column(y, *, dtype=None):
        return np.asarray(y, dtype=dtype)

    told = _told(column, "y")
    np.testing.assert_array_equal(told([1, 2], input_name="tasks"), [1, 2])
    with pytest.raises(ValueError, match=r"tasks"):
        told(["a"], dtype=float, input_name="tasks")
