"""Rows keep the names that they have in X, or in y."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skattrib import DualInfluence, TorchClassifier

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
