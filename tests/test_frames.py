"""Rows keep the names that they have in X, or in y."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skattrib import (
    DualInfluence,
    KernelSurrogateAttributor,
    TaskWeightSelector,
    TorchClassifier,
    lookahead_training,
    plan,
)
from skattrib.evaluation import (
    group_gap,
    mislabel_score,
    retrain_outcomes,
    worst_group,
)
from skattrib.random_projection import GradientTransformer

RNG = np.random.RandomState(0)
X, y = RNG.randn(20, 3), np.arange(20) % 2
NAMES = [f"id{i}" for i in range(20)]
NET = TorchClassifier(max_epochs=2, random_state=0)


def names(X, y, estimator=NET):
    return DualInfluence(estimator, random_state=0).fit(X, y).unit_names_


def test_the_index_of_y_serves_where_x_has_none():
    labelled = pd.Series(y, index=NAMES)
    assert_array_equal(names(X, labelled), NAMES)
    assert_array_equal(names(pd.DataFrame(X), labelled), NAMES)
    assert_array_equal(names(pd.DataFrame(X, index=NAMES), y), NAMES)
    assert_array_equal(names(pd.DataFrame(X, index=NAMES), labelled), NAMES)
    taken = pd.Series(y).iloc[::-1]  # as a split leaves it
    assert_array_equal(names(X, taken), np.arange(20)[::-1])


def test_a_step_before_that_returns_arrays_loses_no_name():
    frame, labelled = pd.DataFrame(X, index=NAMES), pd.Series(y, index=NAMES)
    pipeline = make_pipeline(StandardScaler(), DualInfluence(NET, random_state=0))
    assert_array_equal(pipeline.fit(frame, labelled)[-1].unit_names_, NAMES)


def test_queries_keep_theirs():
    fitted = DualInfluence(NET, random_state=0).fit(X, y)
    table = fitted.attribute(X[:2], pd.Series(y[:2], index=["p", "q"]), as_frame=True)
    assert table["query"].unique().tolist() == ["p", "q"]


def test_two_that_differ_are_refused():
    frame = pd.DataFrame(X, index=NAMES)
    with pytest.raises(ValueError, match="index of X and that of y differ"):
        names(frame, pd.Series(y, index=NAMES[::-1]))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        names(frame, pd.Series(y, index=NAMES)[:5])
    with pytest.raises(ValueError, match="index of X and that of y differ"):
        DualInfluence(NET, random_state=0).fit(frame, y).attribute(
            frame[:2], pd.Series(y[:2], index=["p", "q"])
        )


def test_labels_that_occur_twice_give_way_to_positions():
    frame = pd.DataFrame(X, index=["twice", "twice", *NAMES[2:]])
    with pytest.warns(UserWarning, match="'twice': rows are named by their position"):
        assert_array_equal(names(frame, y), np.arange(20))
    fitted = DualInfluence(NET, random_state=0).fit(X, y)
    with pytest.warns(UserWarning, match="rows are named by their") as caught:
        fitted.attribute(frame[:2], y[:2], as_frame=True)
    assert caught[0].filename == __file__


def test_positions_that_a_split_leaves_give_way_to_labels():
    """As GridSearchCV cuts a table without labels, and a y that has some."""
    frame, labelled = pd.DataFrame(X), pd.Series(y, index=NAMES)
    taken = [1, 4, 5, 8, 10, 13]
    assert_array_equal(
        names(frame.iloc[taken], labelled.iloc[taken]), np.array(NAMES)[taken]
    )
    by_x = pd.DataFrame(X, index=NAMES), pd.Series(y)
    assert_array_equal(
        names(by_x[0].iloc[taken], by_x[1].iloc[taken]), np.array(NAMES)[taken]
    )


# --------------------------------------------------------------------- top units
def test_top_units_are_the_ends_of_the_order():
    fitted = DualInfluence(NET, random_state=0).fit(pd.DataFrame(X, index=NAMES), y)
    found = fitted.attribute(X[:3], y[:3])
    top = fitted.top_units(X[:3], y[:3], n=2)
    assert list(top.columns) == ["query", "rank", "unit", "attribution"]
    assert top["rank"].tolist() == [1, 2, -2, -1] * 3
    assert top["query"].tolist() == np.repeat([0, 1, 2], 4).tolist()
    for query, part in top.groupby("query"):
        order = np.argsort(-found[query])[[0, 1, -2, -1]]
        assert part["unit"].tolist() == [NAMES[i] for i in order]
        assert_array_equal(part["attribution"], found[query][order])


def test_every_unit_is_there_once_if_there_are_few():
    tasks = np.arange(20) % 5
    fitted = DualInfluence(NET, random_state=0).fit(X, y, tasks=tasks)
    top = fitted.top_units(X[:1], n=4)
    assert sorted(top["unit"]) == [0, 1, 2, 3, 4]
    assert top["rank"].tolist() == [1, 2, 3, -2, -1]
    assert top["attribution"].is_monotonic_decreasing


def test_top_units_show_the_rows_as_they_were():
    raw = pd.DataFrame({"city": np.array(list("abcd"))[np.arange(20) % 4]}, index=NAMES)
    fitted = DualInfluence(NET, random_state=0).fit(pd.DataFrame(X, index=NAMES), y)
    whole = pd.concat([raw.iloc[::-1], raw.rename(index="other {}".format)])
    for data in (raw, whole):  # found by name: in any order, among others
        top = fitted.top_units(X[:2], y[:2], n=3, data=data)
        assert_array_equal(top["city"], raw.loc[top["unit"], "city"])
    by_position = DualInfluence(NET, random_state=0).fit(X, y)
    top = by_position.top_units(X[:2], y[:2], data=raw)
    assert_array_equal(top["city"], raw["city"].iloc[top["unit"]])


def test_an_index_that_counts_the_rows_has_names_too():
    """The commonest table: it is sorted, or rows were taken from a longer one."""
    whole = pd.DataFrame(RNG.randn(30, 3), columns=list("abc"))
    fitted = DualInfluence(NET, random_state=0).fit(whole[:20], y)
    by_y = DualInfluence(NET, random_state=0).fit(whole[:20].to_numpy(), pd.Series(y))
    for dual, query in ((fitted, whole[20:22]), (by_y, whole[20:22].to_numpy())):
        for data in (whole, whole[:20].sort_values("a"), whole.sort_values("b")):
            top = dual.top_units(query, y[:2], n=3, data=data)
            assert_array_equal(top[["a", "b"]], whole.loc[top["unit"], ["a", "b"]])


def test_rows_of_an_array_have_no_names():
    """An index may be that of before the rows were shuffled, and made an array."""
    table = pd.DataFrame(X, columns=list("abc"))
    fitted = DualInfluence(NET, random_state=0).fit(X, y)
    longer = pd.concat([table, table], ignore_index=True)
    for data in (table, table.set_axis(NAMES), table.set_axis(y), longer):
        top = fitted.top_units(X[:2], y[:2], data=data)
        assert_array_equal(top["a"], X[top["unit"], 0])
    for data in (table[::-1], longer[::-1]):
        with pytest.raises(ValueError, match=r"holds 0 to 19 in another order.*reset_"):
            fitted.top_units(X[:2], y[:2], data=data)


def test_rows_of_some_units_and_others_are_refused():
    taken = pd.DataFrame(X, index=np.arange(20) + 5)
    fitted = DualInfluence(NET, random_state=0).fit(taken, y)
    other = pd.DataFrame(X, columns=list("abc"), index=np.arange(20) + 9)
    with pytest.raises(ValueError, match=r"not \[5, 6, 7, 8\].*data.reset_index"):
        fitted.top_units(X[:2], y[:2], data=other)
    top = fitted.top_units(X[:2], y[:2], data=other.reset_index(drop=True))
    assert_array_equal(top["a"], X[top["unit"] - 5, 0])


def test_tasks_are_found_by_their_names():
    tasks = np.array(list("abcd"))[np.arange(20) % 4]
    fitted = DualInfluence(NET, random_state=0).fit(X, y, tasks=tasks)
    about = pd.DataFrame({"size": [1, 2, 3, 4]}, index=list("dcba"))
    top = fitted.top_units(X[:1], y[:1], data=about)
    assert_array_equal(top["size"], about.loc[top["unit"], "size"])
    with pytest.raises(ValueError, match="data has 20 rows for 4 units"):
        fitted.top_units(X[:1], y[:1], data=pd.DataFrame(X))


def test_standard_errors_are_in_the_table():
    surrogate = KernelSurrogateAttributor(NET, n_subsets=8, random_state=0)
    surrogate.fit(X, y, tasks=np.arange(20) % 4)
    top = surrogate.top_units(X[:1], y[:1])
    assert list(top.columns)[-1] == "standard_error"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (X, "data must be a DataFrame"),
        (pd.DataFrame(X[:5]), "data has 5 rows for 20 units"),
        (pd.DataFrame({"unit": y}), r"the result has too: \['unit'\]. Rename"),
    ],
)
def test_data_that_does_not_fit_is_refused(data, message):
    fitted = DualInfluence(NET, random_state=0).fit(X, y)
    with pytest.raises(ValueError, match=message):
        fitted.top_units(X[:1], y[:1], data=data)


# ------------------------------------------------- what goes with rows has their order
FRAME = pd.DataFrame(X)  # with the index that was never set
TARGETS, BACKWARDS = pd.Series(y), pd.Series(y)[::-1]
TASKS = pd.Series(np.arange(20) % 4)
ONES = np.ones((2, 20))
# a table and an array differ in their layout, and sums over it by rounding
assert_close = partial(assert_allclose, rtol=1e-9, atol=1e-12)
MODEL = LogisticRegression(random_state=0)
FITTED = DualInfluence(MODEL, random_state=0).fit(FRAME, TARGETS)

SELECTOR = TaskWeightSelector(FITTED, random_state=0)


def retrained(X=FRAME, y=TARGETS, weights=ONES, X_query=FRAME, y_query=TARGETS, **kw):
    return retrain_outcomes(MODEL, X, y, weights, X_query, y_query, **kw)


def with_gap(groups, queries=FRAME):
    dual = DualInfluence(MODEL, outcome=group_gap(groups), random_state=0)
    return dual.fit(FRAME, TARGETS).attribute(queries, y)


IN_ANOTHER_ORDER = {
    "fit": lambda s: clone(FITTED).fit(FRAME, s),
    "fit, tasks": lambda s: clone(FITTED).fit(FRAME, y, tasks=s // 1),
    "fit, tasks and y": lambda s: clone(FITTED).fit(X, TARGETS, tasks=s),
    "fit, sample_weight": lambda s: clone(FITTED).fit(FRAME, y, sample_weight=s + 1),
    "plan": lambda s: plan(MODEL, FRAME, y, tasks=s),
    "attribute": lambda s: FITTED.attribute(FRAME, s),
    "top_units": lambda s: FITTED.top_units(FRAME, s),
    "predict_outcomes": lambda s: FITTED.predict_outcomes(FRAME, s, ONES),
    "score": lambda s: FITTED.score(FRAME, s),
    "diagnose": lambda s: FITTED.diagnose(FRAME, s),
    "value_new": lambda s: FITTED.value_new(FRAME, s, FRAME, y),
    "value_new, queries": lambda s: FITTED.value_new(FRAME, y, FRAME, s),
    "retrain_outcomes": lambda s: retrained(y=s),
    "retrain_outcomes, queries": lambda s: retrained(y_query=s),
    "retrain_outcomes, tasks": lambda s: retrained(tasks=s, weights=ONES[:, :2]),
    "retrain_outcomes, sample_weight": lambda s: retrained(sample_weight=s + 1),
    "retrain_outcomes, groups": lambda s: retrained(outcome=group_gap(s)),
    "group_gap": with_gap,
    "worst_group": lambda s: retrained(outcome=worst_group(s)),
    "lookahead_training": lambda s: lookahead_training(NET, FRAME, s, X, y),
    "lookahead_training, queries": lambda s: lookahead_training(NET, X, y, FRAME, s),
    "a selector": lambda s: TaskWeightSelector(FITTED, random_state=0).fit(
        FRAME, y, tasks=s
    ),
    "its queries": lambda s: SELECTOR.fit(FRAME, y, TASKS, FRAME, s),
    "a network": lambda s: clone(NET).fit(FRAME, s),
    "its weights": lambda s: clone(NET).fit(FRAME, y, sample_weight=s + 1),
    "gradients": lambda s: GradientTransformer(NET, random_state=0).fit(FRAME, s),
    "mislabel_score": lambda s: mislabel_score(FRAME[0], s == 1),
}


@pytest.mark.parametrize("where", IN_ANOTHER_ORDER)
def test_labels_in_another_order_are_refused_everywhere(where):
    with pytest.raises(ValueError, match=r"The index of \w+ and that of \w+ differ"):
        IN_ANOTHER_ORDER[where](BACKWARDS)


def test_labels_in_the_same_order_and_plain_ones_are_not():
    weights = np.linspace(1, 2, 20)
    expected = clone(FITTED).fit(X, y, sample_weight=weights).attribute(X, y)
    named = FRAME.set_axis(NAMES)
    for table, index in ((FRAME, FRAME.index), (X, NAMES), (named, NAMES)):
        of_rows = pd.Series(weights, index=index)
        found = clone(FITTED).fit(table, y, sample_weight=of_rows)
        assert_close(found.attribute(table, pd.Series(y, index=index)), expected)
    # numbers that a split left beside labels, or an index that was never set
    taken = FRAME.set_axis(np.arange(20)[::-1] + 7)
    found = clone(FITTED).fit(taken, TARGETS, sample_weight=pd.Series(weights))
    assert_close(found.attribute(X, y), expected)
    groups = pd.Series(np.arange(20) // 10, index=NAMES)
    assert_close(with_gap(groups, X), with_gap(groups.to_numpy(), X))


def test_groups_are_of_the_queries_and_not_of_new_rows():
    dual = DualInfluence(MODEL, outcome=group_gap(TASKS // 2), random_state=0)
    dual.fit(FRAME, TARGETS)
    expected = dual.value_new(X[::-1], y[::-1], X, y)
    assert_close(dual.value_new(FRAME[::-1], BACKWARDS, FRAME, y), expected)


def test_weights_have_the_order_of_the_units():
    weights = RNG.randint(0, 2, size=(2, 20))
    expected = FITTED.predict_outcomes(X, y, weights), retrained(weights=weights)
    named = clone(FITTED).fit(FRAME.set_axis(NAMES), y)
    as_texts = [str(i) for i in range(20)]  # as transform has them
    for columns in (range(20), as_texts, NAMES):
        table = pd.DataFrame(weights, columns=columns)
        assert_close(FITTED.predict_outcomes(X, y, table), expected[0])
        assert_close(retrained(weights=table), expected[1])
        if columns == as_texts or columns == range(20):
            for of_units in (table.iloc[:, ::-1], table.iloc[0, ::-1]):
                with pytest.raises(ValueError, match="columns of weights hold the"):
                    FITTED.predict_outcomes(X, y, of_units)
                with pytest.raises(ValueError, match="columns of weights hold the"):
                    retrained(weights=of_units)
    table = pd.DataFrame(weights, columns=NAMES)
    assert_close(named.predict_outcomes(X, y, table), expected[0])
    backwards = table[NAMES[::-1]]
    for ask in (
        lambda: named.predict_outcomes(X, y, backwards),
        lambda: named.output_change(X, backwards),
        lambda: named.parameter_change(backwards),
        lambda: retrained(X=FRAME.set_axis(NAMES), weights=backwards),
        lambda: retrained(tasks=NAMES, weights=backwards[NAMES[::-1]]),
    ):
        with pytest.raises(ValueError, match=r"weights\[names\]"):
            ask()


def test_an_index_that_counts_says_nothing_beside_labels():
    """Targets that were made anew, of rows in their order."""
    frame = pd.DataFrame(np.random.RandomState(0).randn(40, 3))
    frame = frame.sample(frac=1, random_state=0)
    y = pd.Series(np.arange(40) % 2)
    dual = DualInfluence(LogisticRegression(), random_state=0).fit(frame, y)
    weights = pd.DataFrame(np.ones((2, 40)))
    assert dual.predict_outcomes(frame[:3], y[:3].to_numpy(), weights).shape == (2, 3)
    with pytest.raises(ValueError, match=r"Pass y.to_numpy\(\) if its rows are in the"):
        DualInfluence(LogisticRegression(), random_state=0).fit(
            frame.sort_index(), y.loc[frame.index]
        )


def test_intervals_that_overlap_are_labels_too():
    index = pd.IntervalIndex.from_arrays(range(40), range(5, 45))
    frame = pd.DataFrame(np.random.RandomState(0).randn(40, 3), index=index)
    y = pd.Series(np.arange(40) % 2, index=index)
    dual = DualInfluence(LogisticRegression(), random_state=0).fit(frame, y)
    weights = pd.DataFrame(np.ones((2, 40)))
    assert dual.predict_outcomes(frame[:3], y[:3], weights).shape == (2, 3)
    with pytest.raises(ValueError, match=r"index of X and that of y differ"):
        DualInfluence(LogisticRegression(), random_state=0).fit(frame, y[::-1])
