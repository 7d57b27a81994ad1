"""Displays: what is computed ends up in what is drawn."""

import builtins
from types import SimpleNamespace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from skattrib import (
    AdamWInfluence,
    DualInfluence,
    KernelSurrogateAttributor,
    LinearSurrogateAttributor,
    RISEValuator,
    TaskWeightSelector,
    TorchClassifier,
    TorchRegressor,
)
from skattrib.evaluation import (
    lds_score,
    make_weightings,
    removal_curve,
    retrain_outcomes,
)
from skattrib.plotting import (
    AttributionDisplay,
    CalibrationDisplay,
    FaithfulnessDisplay,
    RemovalCurveDisplay,
    TaskInteractionDisplay,
    TaskWeightDisplay,
    TrajectoryDisplay,
    _attribution,
)
from skattrib.plotting._common import outcome_name, shorten

X, Y = load_iris(return_X_y=True)
TRAIN, QUERY = (X[::3], Y[::3]), (X[1::15], Y[1::15])
TASKS = np.array(["a", "b", "c", "d", "e"])[np.arange(50) % 5]
NETWORK = TorchClassifier(hidden_layer_sizes=(4,), max_epochs=20, random_state=0)
CURVE = removal_curve(
    lambda W: W @ np.arange(8.0), np.arange(8.0), fractions=(0.25, 0.5), random_state=0
)
STEPS = {
    "steps": np.repeat([1, 2, 3], 2),
    "rows": np.array([0, 2, 1, 2, 0, 1]),
    "attributions": np.array([[1.0, -3.0, 0.5, -1.0, 2.0, 0.25]]),
}


@pytest.fixture(autouse=True)
def _clean_matplotlib():
    """Draw without a screen; no figure is left, no setting changed."""
    with mpl.rc_context():
        plt.switch_backend("agg")
        before = dict(mpl.rcParams)
        yield
        plt.close("all")
        assert dict(mpl.rcParams) == before


@pytest.fixture(scope="module")
def dual():
    return DualInfluence(NETWORK, n_retrainings=8, random_state=0).fit(*TRAIN)


@pytest.fixture(scope="module")
def ensemble():
    return DualInfluence(NETWORK, n_models=2, random_state=0).fit(*TRAIN)


@pytest.fixture(scope="module")
def surrogate():
    surrogate = KernelSurrogateAttributor(NETWORK, n_subsets=12, random_state=0)
    return surrogate.fit(*TRAIN, tasks=TASKS)


@pytest.fixture(scope="module")
def influence():
    network = clone(NETWORK).set_params(batch_size=10, max_epochs=3)
    return AdamWInfluence(network, inclusion=1.0, random_state=0).fit(*TRAIN)


def widths(bars):
    return np.array([bar.get_width() for bar in bars])


def texts(labels):
    return [label.get_text() for label in labels]


def drawn_texts(figure):
    """All texts that are drawn, with their extents in pixels."""
    figure.canvas.draw()  # the layout
    found, draw = [], mpl.text.Text.draw

    def record(text, renderer):
        if text.get_visible() and text.get_text().strip():
            found.append((text, text.get_window_extent(renderer).padded(-1)))
        return draw(text, renderer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mpl.text.Text, "draw", record)
        figure.canvas.draw()
    return found


def assert_nothing_overlaps(figure):
    """No two texts touch, and all are inside the figure."""
    found = drawn_texts(figure)
    for i, (one, extent) in enumerate(found):
        assert figure.bbox.x0 <= extent.x0, one
        assert figure.bbox.y0 <= extent.y0, one
        assert figure.bbox.x1 >= extent.x1, one
        assert figure.bbox.y1 >= extent.y1, one
        for other, its in found[i + 1 :]:
            assert not extent.overlaps(its), (one, other)


# --------------------------------------------------------------- AttributionDisplay
def test_bars_are_the_largest_and_smallest_attributions(dual):
    display = AttributionDisplay.from_estimator(dual, X[1:2], Y[1:2], n_top=3)
    A = dual.attribute(X[1:2], Y[1:2])[0]
    np.testing.assert_array_equal(display.attributions, A)
    order = np.argsort(-A)
    np.testing.assert_array_equal(display.indices_, np.r_[order[:3], order[-3:]])
    np.testing.assert_allclose(widths(display.bar_), A[display.indices_])
    top = display.ax_.get_yticklabels()[0].get_text()
    assert top == f"row {order[0]}, label {TRAIN[1][order[0]]}"
    assert display.ax_.get_ylim()[0] > display.ax_.get_ylim()[1]  # the top is first
    assert "44 between" in texts(display.ax_.texts)
    assert display.bar_.errorbar is None


def test_all_units_if_they_are_few():
    values = [0.5, -1.0, 2.0]
    display = AttributionDisplay.from_predictions(values, unit_names=["x", "y", "z"])
    assert texts(display.ax_.get_yticklabels()) == ["z", "x", "y"]
    np.testing.assert_array_equal(widths(display.bar_), [2.0, 0.5, -1.0])
    assert len(display.ax_.texts) == 0


def test_error_bars_are_standard_errors(ensemble):
    query = X[1:2], Y[1:2]
    display = AttributionDisplay.from_estimator(ensemble, *query, return_std=True)
    A, errors = ensemble.attribute(*query, return_std=True)
    _, _, (bars,) = display.bar_.errorbar.lines
    ends = np.array(bars.get_segments())[:, :, 0]
    shown = display.indices_
    np.testing.assert_allclose(ends[:, 0], (A - errors)[0, shown])
    np.testing.assert_allclose(ends[:, 1], (A + errors)[0, shown])
    assert "standard error" in display.ax_.get_xlabel()


def test_mean_over_queries(dual):
    display = AttributionDisplay.from_estimator(dual, *QUERY)
    np.testing.assert_allclose(display.attributions, dual.attribute(*QUERY).mean(0))
    assert display.ax_.get_xlabel().startswith("mean effect on log-likelihood")
    with pytest.raises(ValueError, match=r"return_std=True with 10 queries.*one query"):
        AttributionDisplay.from_estimator(dual, *QUERY, return_std=True)


def test_zero_is_the_average_unit_where_rows_sum_to_0():
    balanced = AttributionDisplay.from_predictions([1.0, -0.5, -0.5])
    assert "0: the average unit" in balanced.ax_.get_xlabel()
    lopsided = AttributionDisplay.from_predictions([1.0, 0.5, -0.5])
    assert "average" not in lopsided.ax_.get_xlabel()
    similar = AttributionDisplay.from_predictions([1.0, -1.0], value_name="similarity")
    assert similar.ax_.get_xlabel() == "similarity"


@pytest.mark.parametrize("shape", [(2, 2), (2, 1, 3)])
def test_images_of_the_rows(shape):
    pixels = np.random.RandomState(0).rand(6, np.prod(shape))
    values = np.array([3.0, -1.0, 2.0, -3.0, 1.0, -2.0])
    display = AttributionDisplay.from_predictions(
        values, rows=pixels, image_shape=shape, n_top=2
    )
    assert len(display.image_axes_) == 4
    shown = [np.asarray(ax.images[0].get_array()) for ax in display.image_axes_]
    if len(shape) == 2:
        expected = pixels[display.indices_].reshape(-1, *shape)
        np.testing.assert_allclose(shown, expected)
    assert shown[0].shape == shape
    assert_nothing_overlaps(display.figure_)


def test_training_rows_as_images(dual):
    display = AttributionDisplay.from_estimator(
        dual, X[1:2], Y[1:2], image_shape=(2, 2), n_top=2
    )
    first = display.image_axes_[0].images[0].get_array()
    np.testing.assert_allclose(first, TRAIN[0][display.indices_[0]].reshape(2, 2))


def test_table_of_the_rows():
    table = pd.DataFrame(
        {
            "a name that is too long": ["first", "a value that is too long", "x"],
            "number": [1.23456, 2.0, 30000.0],
            "count": [1, 20, 300],
            "kind": pd.Categorical(["u", "v", "u"]),
            "fifth": [0, 0, 0],
        }
    )
    display = AttributionDisplay.from_predictions([1.0, -1.0, 0.1], rows=table)
    shown = texts(display.ax_.texts)
    assert {"1.235", "20", "a value …oo long", "first", "count"} <= set(shown)
    assert "fifth" not in shown
    assert_nothing_overlaps(display.figure_)


def test_texts_of_the_rows():
    rows = ["costs $5 and $6", "a long text, " * 20, "two\nlines"]
    display = AttributionDisplay.from_predictions([1.0, 0.5, -1.0], rows=rows)
    shown = texts(display.ax_.texts)
    assert shown[0] == r"costs \$5 and \$6"  # as it is, not mathematics
    assert shown[1].endswith("…")
    assert shown[2] == "two lines"
    assert_nothing_overlaps(display.figure_)


def test_training_rows_as_texts(monkeypatch):
    texts_alone = SimpleNamespace(takes_texts=True)
    monkeypatch.setattr(_attribution, "as_model", lambda estimator: texts_alone)
    of_texts = SimpleNamespace(
        estimator_=None,
        tasks_=None,
        X_train_=[None, "a prompt"],
        y_train_=["a text", "and its end"],
    )
    rows = _attribution._own_rows(of_texts, None)
    display = AttributionDisplay.from_predictions([1.0, -1.0], rows=rows)
    assert texts(display.ax_.texts) == ["a text", "a prompt and its end"]
    of_texts.tasks_ = ["a", "b"]
    assert _attribution._own_rows(of_texts, None) is None


def test_rows_of_a_table_are_found_by_their_index():
    table = pd.DataFrame(X[:12], columns=list("abcd"))
    dual = DualInfluence(LogisticRegression(), random_state=0)
    dual.fit(table, np.arange(12) % 2)
    for rows in (table.sort_values("b"), pd.DataFrame(X, columns=list("abcd"))):
        display = AttributionDisplay.from_estimator(dual, table[:1], rows=rows)
        assert_array_equal(display.rows, table)
    by_text = pd.Series([f"flower {i}" for i in range(12)])[::-1]
    display = AttributionDisplay.from_estimator(dual, table[:1], rows=by_text)
    assert display.rows.tolist() == by_text[::-1].tolist()


def test_tasks_and_similarities_are_named(surrogate):
    display = AttributionDisplay.from_estimator(surrogate, *QUERY)
    assert sorted(texts(display.ax_.get_yticklabels())) == list("abcde")
    rise = RISEValuator(NETWORK, n_components=16, random_state=0).fit(*TRAIN)
    display = AttributionDisplay.from_estimator(rise, X[1:2])
    assert display.ax_.get_xlabel() == "similarity of gradients"
    with pytest.raises(ValueError, match=r"units are tasks.*rows="):
        AttributionDisplay.from_estimator(surrogate, *QUERY, image_shape=(2, 2))


def test_names_of_a_data_frame_are_its_index():
    frame = pd.DataFrame(TRAIN[0], index=[f"flower {i}" for i in range(50)])
    target = TRAIN[1].astype(float) + 0.5
    network = TorchRegressor(hidden_layer_sizes=(4,), max_epochs=5, random_state=0)
    dual = DualInfluence(network, random_state=0).fit(frame, target)
    display = AttributionDisplay.from_estimator(dual, frame[:1], target[:1], n_top=1)
    names = [f"flower {i}" for i in display.indices_]
    assert texts(display.ax_.get_yticklabels()) == names
    squared = "effect on \N{MINUS SIGN}½ squared error"
    assert display.ax_.get_xlabel().startswith(squared)
    display = AttributionDisplay.from_estimator(dual, frame[:1])
    assert display.ax_.get_xlabel().startswith("effect on prediction")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attributions": np.ones((2, 3))}, "attributions has shape.*one row of"),
        ({"attributions": [1.0, np.nan]}, "attributions contains NaN"),
        ({"unit_names": ["a"]}, "unit_names is 1 names: pass a name for each of 3"),
        ({"unit_names": "abc"}, "'unit_names' parameter"),
        ({"standard_errors": [1.0, 2.0]}, "standard_errors must be.*3 attributions"),
        ({"standard_errors": [1.0, 2.0, -1.0]}, "standard_errors must be at least 0"),
        ({"rows": ["a"]}, "rows has 1 rows for 3 units"),
        ({"rows": np.ones((3, 4))}, "rows must be a DataFrame or texts.*image_shape"),
        ({"image_shape": (2, 2)}, "rows is None: pass the pixels"),
        ({"rows": np.ones((3, 4)), "image_shape": (2, 3)}, "takes 6 pixels.*have 4"),
        ({"rows": np.ones((3, 4)), "image_shape": (4,)}, r"pass \(height, width\)"),
        ({"rows": ["a", "b", "c"], "image_shape": (1, 1)}, "rows must be numbers"),
        ({"n_top": 0}, "'n_top' parameter of AttributionDisplay.from_predictions"),
        ({"max_name_length": 2}, "'max_name_length' parameter"),
        ({"ax": np.empty(2)}, "ax must be one matplotlib Axes.*axes"),
    ],
)
def test_what_cannot_be_shown(options, message):
    with pytest.raises(ValueError, match=message):
        AttributionDisplay.from_predictions(
            **{"attributions": [1.0, 2.0, -3.0], **options}
        )
    assert plt.get_fignums() == []


# --------------------------------------------------------------- CalibrationDisplay
def test_calibration_of_an_estimator(dual):
    halves = DualInfluence(NETWORK, n_halves=32, n_retrainings=8, random_state=0)
    halves.fit(*TRAIN)
    display = CalibrationDisplay.from_estimator(halves, *QUERY, name="dual")
    weights, truth = halves._retrain(*QUERY, 8)
    predicted, std = halves.predict_outcomes(*QUERY, weights, return_std=True)
    np.testing.assert_allclose(display.predicted, predicted, atol=1e-6)
    inside = (np.abs(truth - predicted) < 1.963 * std).mean()
    assert display.coverage_ == pytest.approx(inside, abs=0.02)
    (label,) = texts(display.ax_.get_legend().get_texts())
    assert label.startswith(f"dual: {display.coverage_:.0%} in 95% intervals, slope ")
    assert_nothing_overlaps(display.figure_)
    with pytest.raises(ValueError, match=r"needs retrained halves.*n_halves=64"):
        CalibrationDisplay.from_estimator(dual, *QUERY)


def test_calibration_of_arrays():
    rng = np.random.RandomState(0)
    predicted = rng.randn(50, 6)
    std = np.ones((50, 6))
    outcomes = predicted + rng.standard_t(4, (50, 6)) / 2**0.5
    display = CalibrationDisplay.from_predictions(
        outcomes, predicted, std, level=0.68, n_points=40
    )
    assert display.coverage_ == pytest.approx(0.68, abs=0.06)
    assert len(display.scatter_.get_offsets()) == 40
    low, high = np.array(display.bars_.get_segments())[0, :, 1]
    assert high - low == pytest.approx(2 * 0.80, abs=0.01)
    # outside of the interval: of another colour
    x, y = display.scatter_.get_offsets().T
    colours = display.scatter_.get_facecolors()
    outside = np.abs(y - x) > (high - low) / 2
    assert (colours[outside] == colours[outside][0]).all()
    assert (colours[~outside] != colours[outside][0]).any(axis=1).all()


def test_calibration_of_what_does_not_fit():
    ones = np.ones((3, 2))
    with pytest.raises(ValueError, match="Shapes differ"):
        CalibrationDisplay.from_predictions(ones, ones, ones[:, :1])
    with pytest.raises(ValueError, match="std has negative numbers"):
        CalibrationDisplay.from_predictions(ones, ones, -ones)
    with pytest.raises(ValueError, match="'level' parameter"):
        CalibrationDisplay.from_predictions(ones, ones, ones, level=1.0)


# -------------------------------------------------------------- FaithfulnessDisplay
def test_faithfulness_of_an_estimator(dual):
    display = FaithfulnessDisplay.from_estimator(dual, *QUERY)
    assert display.lds.score == dual.score(*QUERY)
    assert display.outcomes.shape == (8, 10)
    x, y = display.predicted, display.outcomes
    points = np.column_stack([(x - x.mean(0)).ravel(), (y - y.mean(0)).ravel()])
    np.testing.assert_allclose(display.scatter_.get_offsets(), points)
    found = dual.diagnose(*QUERY, n_retrainings=8)
    np.testing.assert_allclose(display.slope_, found.calibration_slope)
    x, y = display.slope_line_.get_data()
    np.testing.assert_allclose(np.diff(y) / np.diff(x), display.slope_)
    legend = display.ax_.get_legend()
    lds = f"LDS {display.lds.score:.2f} ({display.lds.low:.2f} to "
    assert texts(legend.get_texts())[0].startswith(lds)
    assert legend.get_title().get_text() == "8 retrainings, 95% interval"
    assert "minus each query's mean" in display.ax_.get_xlabel()
    assert_nothing_overlaps(display.figure_)


def test_faithfulness_uses_the_memory(tmp_path, trainings):
    dual = DualInfluence(NETWORK, n_retrainings=8, memory=tmp_path, random_state=0)
    dual.fit(*TRAIN)
    score = dual.score(*QUERY)
    trainings.clear()
    assert FaithfulnessDisplay.from_estimator(dual, *QUERY).lds.score == score
    assert trainings == []


def test_faithfulness_of_arrays(dual):
    W = make_weightings(50, 8, random_state=1)
    outcomes = retrain_outcomes(NETWORK, *TRAIN, W, *QUERY)
    predicted = dual.predict_outcomes(*QUERY, W)
    display = FaithfulnessDisplay.from_predictions(outcomes, predicted, confidence=0.9)
    expected = lds_score(outcomes, predicted, confidence=0.9, random_state=0)
    assert display.lds == expected
    assert "90% interval" in display.ax_.get_legend().get_title().get_text()


def test_faithfulness_of_one_query_is_not_centred():
    x = np.arange(5.0)[:, None]
    display = FaithfulnessDisplay.from_predictions(2 * x + 1, x)
    points = np.column_stack([x[:, 0], 2 * x[:, 0] + 1])
    np.testing.assert_allclose(display.scatter_.get_offsets(), points)
    assert display.slope_ == pytest.approx(2)
    assert display.ax_.get_xlabel() == "predicted outcome"


def test_faithfulness_of_similarities_has_no_lines():
    rise = RISEValuator(NETWORK, n_components=16, n_retrainings=8, random_state=0)
    display = FaithfulnessDisplay.from_estimator(rise.fit(*TRAIN), *QUERY)
    assert display.slope_ is display.slope_line_ is None
    assert len(display.ax_.lines) == 0
    assert display.lds.score == rise.score(*QUERY)


def test_two_attributors_on_the_same_axes():
    rng = np.random.RandomState(0)
    truth = rng.randn(20, 3)
    one = FaithfulnessDisplay.from_predictions(truth, truth + 1, name="one")
    high = one.ax_.get_ylim()[1]
    two = FaithfulnessDisplay.from_predictions(
        truth, truth + rng.randn(20, 3), name="two", ax=one.ax_
    )
    assert two.ax_ is one.ax_
    assert not np.allclose(one.scatter_.get_facecolor(), two.scatter_.get_facecolor())
    shown = texts(one.ax_.get_legend().get_texts())
    assert [s.split(":")[0] for s in shown if "LDS" in s] == ["one", "two"]
    assert sum("exact" in s for s in shown) == 1
    assert one.ax_.get_ylim()[1] < 2 * high  # room for the legend does not pile up
    assert_nothing_overlaps(one.figure_)


def test_faithfulness_of_what_does_not_fit(dual, trainings):
    with pytest.raises(ValueError, match="y is None"):
        FaithfulnessDisplay.from_estimator(dual, QUERY[0], None)
    with pytest.raises(ValueError, match=r"outcomes has shape \(3,\).*values\[:, None"):
        FaithfulnessDisplay.from_predictions(np.ones(3), np.ones(3))
    with pytest.raises(ValueError, match="ax must be one matplotlib Axes"):
        FaithfulnessDisplay.from_estimator(dual, *QUERY, ax=[])
    assert trainings == []
    with pytest.raises(ValueError, match="'confidence' parameter"):
        FaithfulnessDisplay.from_estimator(dual, *QUERY, confidence=2.0)


# -------------------------------------------------------------- RemovalCurveDisplay
def test_removal_curve():
    display = RemovalCurveDisplay.from_predictions(CURVE, outcome_name="accuracy")
    removed = np.append(0, CURVE.fractions)
    for line, values in [
        (display.line_, CURVE.outcome),
        (display.line_bottom_, CURVE.outcome_bottom),
        (display.line_random_, CURVE.random_mean),
    ]:
        np.testing.assert_array_equal(line.get_xdata(), removed)
        values = np.append(CURVE.full_outcome, values)
        np.testing.assert_array_equal(line.get_ydata(), values)
    corners = display.band_.get_paths()[0].vertices
    assert (CURVE.random_mean + CURVE.random_std)[-1] in corners[:, 1]
    assert display.ax_.get_ylabel() == "accuracy"
    assert_nothing_overlaps(display.figure_)


def test_removal_curve_of_an_estimator(dual):
    display = RemovalCurveDisplay.from_estimator(
        dual, *QUERY, fractions=(0.2, 0.4), n_random=2, random_state=0
    )
    curve = removal_curve(
        lambda W: retrain_outcomes(NETWORK, *TRAIN, W, *QUERY),
        dual.attribute(*QUERY).mean(axis=0),
        fractions=(0.2, 0.4),
        n_random=2,
        random_state=0,
    )
    np.testing.assert_allclose(display.outcome, curve.outcome)
    np.testing.assert_allclose(display.random_std, curve.random_std)
    assert display.ax_.get_ylabel() == "mean log-likelihood"
    again = RemovalCurveDisplay(**curve).plot()
    np.testing.assert_allclose(again.line_.get_ydata(), display.line_.get_ydata())


def test_two_curves_on_the_same_axes():
    _, ax = plt.subplots()
    one = RemovalCurveDisplay.from_predictions(CURVE, name="one", ax=ax)
    two = RemovalCurveDisplay.from_predictions(
        CURVE, name="two", ax=ax, show_bottom=False, show_random=False
    )
    assert one.ax_ is two.ax_ is ax
    assert one.line_.get_color() != two.line_.get_color()
    assert two.line_bottom_ is two.line_random_ is two.band_ is None
    assert len(ax.lines) == 4


def test_removal_curve_that_lacks_something(dual, trainings):
    with pytest.raises(ValueError, match="round to none or all"):
        RemovalCurveDisplay.from_estimator(dual, *QUERY, fractions=[0.001])
    assert trainings == []
    with pytest.raises(ValueError, match=r"curve lacks \['outcome'\]"):
        RemovalCurveDisplay.from_predictions(
            {k: v for k, v in CURVE.items() if k != "outcome"}
        )
    with pytest.raises(ValueError, match="different lengths"):
        RemovalCurveDisplay.from_predictions({**CURVE, "outcome": np.ones(1)})


# ------------------------------------------------------- interactions and selection
def test_interactions(surrogate):
    display = TaskInteractionDisplay.from_estimator(surrogate, *QUERY)
    expected = surrogate.interactions(*QUERY, average=True)
    np.testing.assert_allclose(display.image_.get_array(), expected)
    low, high = display.image_.get_clim()
    assert -low == high == np.abs(expected).max()
    assert texts(display.ax_.get_xticklabels()) == list("abcde")
    assert display.colorbar_.ax.get_ylabel() == "interaction, in log-likelihood"


def test_order_and_subset_of_interactions():
    values = np.arange(9.0).reshape(3, 3)
    display = TaskInteractionDisplay.from_predictions(
        values, unit_names=["x", "y", "z"], order=[2, 0], colorbar=False
    )
    np.testing.assert_array_equal(display.image_.get_array(), [[8, 6], [2, 0]])
    assert texts(display.ax_.get_yticklabels()) == ["z", "x"]
    assert display.colorbar_ is None


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.ones((2, 3, 3)), {}, "interactions has shape.*mean"),
        (np.ones((2, 3)), {}, "interactions has shape"),
        (np.eye(3), {"order": [0, 3]}, "order must list units by number, 0 to 2"),
        (np.eye(3), {"order": [0.5]}, "order must list"),
        (np.eye(3), {"order": []}, "order must list"),
        (np.eye(3), {"unit_names": ["a"]}, "unit_names is 1 names"),
    ],
)
def test_interactions_that_do_not_fit(values, options, message):
    with pytest.raises(ValueError, match=message):
        TaskInteractionDisplay.from_predictions(values, **options)
    assert plt.get_fignums() == []


def test_no_interactions(dual):
    with pytest.raises(ValueError, match=r"with the method interactions\(\)"):
        TaskInteractionDisplay.from_estimator(dual, *QUERY)
    linear = LinearSurrogateAttributor(NETWORK, n_subsets=12, random_state=0)
    linear.fit(*TRAIN, tasks=TASKS)
    display = TaskInteractionDisplay.from_estimator(linear, *QUERY)  # all are 0
    assert display.image_.get_clim() == (-1, 1)


def test_task_weights(surrogate):
    selector = TaskWeightSelector(clone(surrogate), n_tasks_to_select=3, random_state=0)
    selector.fit(*TRAIN, tasks=TASKS, X_val=QUERY[0], y_val=QUERY[1])
    display = TaskWeightDisplay.from_estimator(selector)
    order = np.argsort(-selector.task_weights_)
    np.testing.assert_array_equal(display.indices_, order)
    np.testing.assert_allclose(widths(display.bar_), selector.task_weights_[order])
    shown = texts(display.ax_.get_yticklabels())
    assert shown == selector.attributor_.unit_names_[order].tolist()
    hatched = [bool(bar.get_hatch()) for bar in display.bar_]
    assert hatched == (~selector.support_[order]).tolist()
    legend = display.ax_.get_legend()
    assert texts(legend.get_texts()) == ["3 kept", "2 dropped"]
    assert "mean effect on log-likelihood" in display.ax_.get_xlabel()


def test_task_weights_of_columns():
    A = pd.DataFrame({"x": [1.0, 2.0], "y": [0.0, 0.0], "z": [-2.0, -1.0]})
    selector = TaskWeightSelector(n_tasks_to_select=1).fit(A)
    display = TaskWeightDisplay.from_estimator(selector)
    assert texts(display.ax_.get_yticklabels()) == ["x", "y", "z"]
    assert "0: the average task" in display.ax_.get_xlabel()
    everything = TaskWeightDisplay.from_predictions([1.0, 2.0], [True, True])
    assert everything.ax_.get_legend() is None
    assert texts(everything.ax_.get_yticklabels()) == ["task 1", "task 0"]


def test_task_weights_that_do_not_fit(dual):
    with pytest.raises(ValueError, match="pass a fitted TaskWeightSelector"):
        TaskWeightDisplay.from_estimator(dual)
    with pytest.raises(NotFittedError):
        TaskWeightDisplay.from_estimator(TaskWeightSelector())
    with pytest.raises(ValueError, match="support must be 2 booleans"):
        TaskWeightDisplay.from_predictions([1.0, 2.0], [1, 0])
    with pytest.raises(ValueError, match="task_weights has shape"):
        TaskWeightDisplay.from_predictions([[1.0, 2.0]], [True, False])


# ---------------------------------------------------------------- TrajectoryDisplay
def test_heat_map_of_a_run(influence):
    query = X[1:2], Y[1:2]
    display = TrajectoryDisplay.from_estimator(influence, *query, n_top=4)
    found = influence.step_attribution(*query)
    table = np.zeros((50, 15))
    table[found.rows, found.steps - 1] = found.attributions[0]
    np.testing.assert_allclose(
        display.image_.get_array(), table[display.indices_], atol=1e-12
    )
    totals = influence.attribute(*query)[0]
    assert set(display.indices_) == set(np.argsort(-np.abs(totals))[:4])
    assert (np.diff(totals[display.indices_]) <= 0).all()
    first = display.ax_.get_yticklabels()[0].get_text()
    j = display.indices_[0]
    assert first == f"row {j}, label {TRAIN[1][j]}: {totals[j]:+.2g}"
    assert display.lines_ == []
    assert_nothing_overlaps(display.figure_)


def test_cumulative_effects():
    display = TrajectoryDisplay.from_predictions(STEPS, kind="cumulative", n_top=2)
    np.testing.assert_array_equal(display.indices_, [0, 2])
    np.testing.assert_allclose(display.lines_[0].get_ydata(), [0, 1, 1, 3])
    np.testing.assert_allclose(display.lines_[1].get_ydata(), [0, -3, -4, -4])
    assert display.image_ is display.colorbar_ is None
    shown = texts(display.ax_.get_legend().get_texts())
    assert shown == ["row 0: +3", "row 2: -4"]
    assert_nothing_overlaps(display.figure_)


def test_long_runs_are_summed_over_steps():
    n = 1001
    steps = {
        "steps": np.arange(1, n + 1),
        "rows": np.zeros(n, dtype=int),
        "attributions": np.ones(n),
    }
    display = TrajectoryDisplay.from_predictions(steps, row_names=["_all", "none"])
    shown = display.image_.get_array()
    assert shown.shape == (2, 167)
    np.testing.assert_array_equal(shown[0], [6] * 166 + [5])
    assert "in 6 steps" in display.colorbar_.ax.get_ylabel()
    lines = display.plot(kind="cumulative")
    assert texts(lines.ax_.get_legend().get_texts())[0].strip() == "_all: +1e+03"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": None}, r"step_attributions lacks \['steps'\]"),
        ({"rows": np.arange(5)}, "one for each of the 6 entries"),
        ({"rows": np.ones(6)}, "must be integers"),
        ({"steps": np.arange(6)}, "steps must count from 1"),
        ({"attributions": np.full(6, np.inf)}, "attributions contains infinity"),
    ],
)
def test_steps_that_do_not_fit(change, message):
    steps = {k: v for k, v in {**STEPS, **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        TrajectoryDisplay.from_predictions(steps)


def test_no_steps(dual):
    with pytest.raises(ValueError, match=r"with the method step_attribution\(\)"):
        TrajectoryDisplay.from_estimator(dual, X[1:2], Y[1:2])
    with pytest.raises(ValueError, match="'kind' parameter"):
        TrajectoryDisplay.from_predictions(STEPS, kind="film")


# ----------------------------------------------------------------------- all of them
MAKERS = {
    "attribution": lambda **o: AttributionDisplay.from_predictions([1.0, -1.0], **o),
    "calibration": lambda **o: CalibrationDisplay.from_predictions(
        np.eye(3), np.eye(3) + 0.1, np.full((3, 3), 0.2), **o
    ),
    "faithfulness": lambda **o: FaithfulnessDisplay.from_predictions(
        np.eye(3), np.eye(3), **o
    ),
    "removal": lambda **o: RemovalCurveDisplay.from_predictions(CURVE, **o),
    "interaction": lambda **o: TaskInteractionDisplay.from_predictions(np.eye(3), **o),
    "weight": lambda **o: TaskWeightDisplay.from_predictions(
        [1.0, 2.0], [True, False], **o
    ),
    "trajectory": lambda **o: TrajectoryDisplay.from_predictions(STEPS, **o),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_axes_given_are_used(make):
    figure, axes = plt.subplots(1, 2)
    display = make(ax=axes[1])
    assert display.ax_ is axes[1]
    assert display.figure_ is figure
    assert plt.get_fignums() == [figure.number]
    assert not axes[0].has_data()
    sub = plt.figure().subfigures(1, 2)[0]
    assert make(ax=sub.subplots()).figure_ is sub


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_figure_is_made_and_plot_returns_the_display(make):
    display = make()
    assert display.figure_ is plt.figure(plt.get_fignums()[0])
    assert_nothing_overlaps(display.figure_)
    assert display.plot() is display
    assert len(plt.get_fignums()) == 2


LONG = np.array(
    [f"a source with quite a long name, of ${i} number_{i}" for i in range(40)]
)
LONG_MAKERS = {
    "attribution": lambda v: AttributionDisplay.from_predictions(
        v, unit_names=LONG, n_top=15, rows=pd.DataFrame({"name": LONG, "value": v})
    ),
    "interaction": lambda v: TaskInteractionDisplay.from_predictions(
        np.outer(v, v), unit_names=LONG
    ),
    "weight": lambda v: TaskWeightDisplay.from_predictions(v, v > 0, task_names=LONG),
    "trajectory": lambda v: TrajectoryDisplay.from_predictions(
        {"steps": np.arange(1, 41), "rows": np.arange(40), "attributions": v},
        row_names=LONG,
        n_top=25,
    ),
}


@pytest.mark.parametrize("make", LONG_MAKERS.values(), ids=LONG_MAKERS)
def test_many_long_names_do_not_overlap(make):
    display = make(np.random.RandomState(0).randn(40))
    assert_nothing_overlaps(display.figure_)


def test_small_axes_name_fewer_units():
    _, ax = plt.subplots(figsize=(3, 2.5), layout="constrained")
    TaskInteractionDisplay.from_predictions(np.eye(40), unit_names=LONG, ax=ax)
    assert 2 <= len(ax.get_xticklabels()) < 40


@pytest.mark.parametrize(
    ("display", "estimator"),
    [
        (AttributionDisplay, DualInfluence(NETWORK)),
        (CalibrationDisplay, DualInfluence(NETWORK)),
        (FaithfulnessDisplay, DualInfluence(NETWORK)),
        (RemovalCurveDisplay, DualInfluence(NETWORK)),
        (TaskInteractionDisplay, KernelSurrogateAttributor(NETWORK)),
        (TrajectoryDisplay, AdamWInfluence(NETWORK)),
    ],
)
def test_estimators_that_cannot_be_shown(display, estimator):
    with pytest.raises(NotFittedError):
        display.from_estimator(estimator, *QUERY)
    with pytest.raises(ValueError, match=r"Pipeline.*pipeline\[-1\]"):
        display.from_estimator(make_pipeline(StandardScaler(), estimator), *QUERY)
    with pytest.raises(ValueError, match=r"GridSearchCV.*best_estimator_"):
        display.from_estimator(GridSearchCV(estimator, {}), *QUERY)
    with pytest.raises(ValueError, match=r"TorchClassifier.*fitted attributor"):
        display.from_estimator(NETWORK, *QUERY)
    assert plt.get_fignums() == []


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_matplotlib_is_missing(make, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **options):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **options)

    display = make()
    monkeypatch.setattr(builtins, "__import__", without)
    for call in (make, display.plot):
        with pytest.raises(ImportError, match=r"pip install 'skattrib\[plot\]'"):
            call()


def test_names():
    assert shorten("short", 10) == "short"
    assert shorten("https://example.org/part-17", 11) == "https…rt-17"
    assert len(shorten("a" * 50, 11)) == 11
    assert shorten("tab\tand\nline\x07", 20) == "tab and line?"
    outcomes = {
        "auto": "log-likelihood",
        "margin": "margin",
        np.mean: "mean",
        (lambda outputs, y: outputs): "outcome",
    }
    for outcome, name in outcomes.items():
        attributor = DualInfluence(NETWORK, outcome=outcome)
        attributor.estimator_ = FrozenEstimator(NETWORK)
        assert outcome_name(attributor) == name
    machine = KernelSurrogateAttributor(SVC(random_state=0))
    machine.estimator_ = machine.estimator
    assert outcome_name(machine) == "margin"
