"""Rows keep the names that they have in X, or in y."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skattrib import DualInfluence, KernelSurrogateAttributor, TorchClassifier

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
