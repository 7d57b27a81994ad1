"""Helpers of the displays: colours, axes, names, checks."""

from numbers import Integral

import numpy as np
from sklearn.base import is_classifier
from sklearn.utils._optional_dependencies import check_matplotlib_support
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import _num_samples, check_is_fitted

from skattrib._validation import check_array
from skattrib.base import BaseAttributor
from skattrib.models._as_model import as_model
from skattrib.models._parts import is_search

# Colours of Okabe and Ito that are visible on white, also for the colour-blind.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, "#E69F00", "#56B4E9", "#000000")
GREY = "#666666"
DIVERGING = "RdBu"  # blue is positive, as in the bars
_SMALLEST_FONT = 5.0

AT_LEAST_ONE = [Interval(Integral, 1, None, closed="left")]
NAME_LENGTH = [Interval(Integral, 4, None, closed="left")]


# ------------------------------------------------------------------ matplotlib, axes
def check_drawing(caller, ax):
    """Raise, before any work, unless Matplotlib can be imported and ax be drawn on."""
    try:
        check_matplotlib_support(caller)
    except ImportError as error:
        raise ImportError(
            f"{caller} needs matplotlib, which comes with the extra plot: "
            "pip install 'skattrib[plot]'"
        ) from error
    if not (ax is None or hasattr(ax, "get_xaxis_transform")):
        raise ValueError(
            f"ax must be one matplotlib Axes or None, got {type(ax).__name__}: pass a "
            "single one, such as axes[0]."
        )


def make_axes(display, ax, size, layout="constrained"):
    """Return the axes given, or those of a new figure, and store them."""
    check_drawing(f"{type(display).__name__}.plot", ax)
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=size, layout=layout)
    display.ax_, display.figure_ = ax, ax.figure
    return ax


def draw_zero(ax, *, vertical):
    draw = ax.axvline if vertical else ax.axhline
    draw(0, color="black", linewidth=0.8, zorder=3)


def label_axis(ax, axis, places, names, *, lost=0.0, letters=0):
    """Label positions on an axis, with small fonts or fewer labels to avoid overlap.

    Parameters
    ----------
    lost : float, default=0.0
        Points by which a later layout will shorten the axis.
    letters : int, default=0
        Length of the labels of the other axis, which shorten this one, too.

    Returns
    -------
    float
        Font size in points.
    """
    import matplotlib
    from matplotlib.font_manager import FontProperties

    usual = FontProperties(size=matplotlib.rcParams["ytick.labelsize"])
    room = max(axis_length(ax, axis) - lost, 1.0)
    span = np.ptp(places) + 1
    size = 0.8 * room / (span + 0.5 * letters)
    size = float(np.clip(size, _SMALLEST_FONT, usual.get_size_in_points()))
    room = max(room - 0.6 * letters * size, 2 * size)
    every = int(np.ceil(1.2 * size * span / room))
    style = {"rotation": 90} if axis == "x" else {}
    set_ticks = ax.set_xticks if axis == "x" else ax.set_yticks
    set_ticks(places[::every], names[::every], fontsize=size, **style)

    return size


def axis_length(ax, axis):
    """Return the length of an axis in points, before any layout."""
    extent = ax.get_window_extent()
    return 72 / ax.figure.dpi * (extent.width if axis == "x" else extent.height)


def average_note(values, unit):
    """Return a note that 0 is the average, if the values sum to about 0."""
    balanced = abs(values.sum()) < 0.2 * np.abs(values).sum()
    return f"\n(0: the average {unit})" if balanced else ""


def few_ticks(ax):
    """Use so few ticks on the x-axis that long numbers do not overlap."""
    from matplotlib.ticker import MaxNLocator

    n_most = int(np.clip(axis_length(ax, "x") / 55, 3, 6))
    ax.xaxis.set_major_locator(MaxNLocator(n_most, steps=[1, 2, 5, 10]))


def next_colour(ax, kind):
    """Return the next colour for displays of a kind on the same axes."""
    drawn = sum(artist.get_gid() == kind for artist in ax.get_children())
    return PALETTE[drawn % len(PALETTE)]


# ------------------------------------------------------------------------------ names
def clean(text):
    """Return a text on one line, with dollar signs escaped for Matplotlib."""
    text = " ".join(str(text).split())
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text.replace("$", r"\$")


def shorten(name, length):
    """Shorten a name in the middle: names of files often differ at the end."""
    name = " ".join(str(name).split())
    if len(name) > length:
        tail = (length - 1) // 2
        name = f"{name[: length - 1 - tail]}…{name[-tail:]}"
    return clean(name)


def outcome_name(attributor, *, own=False):
    """Return the name of an attributor's outcome, or of that at its predictions."""
    outcome = attributor.outcome
    if callable(outcome):
        name = getattr(outcome, "__name__", "<lambda>")
        return "outcome" if name == "<lambda>" else name.replace("_", " ")
    model = as_model(attributor.estimator_)
    regresses = not (model.takes_texts or is_classifier(attributor.estimator_))
    if outcome == "auto":
        outcome = "prediction" if regresses and own else model.loss.auto_outcome
    if outcome == "log_likelihood" and regresses:
        return "\N{MINUS SIGN}½ squared error"
    return {"log_likelihood": "log-likelihood"}.get(outcome, outcome)


def value_name(attributor, *, own):
    """Return a name for the values that `attribute` returns."""
    if not hasattr(attributor, "predict_outcomes"):
        return "similarity of gradients"
    return f"effect on {outcome_name(attributor, own=own)}"


def row_names(attributor):
    """Return names of the training rows, with labels if there are classes."""
    names = attributor.unit_names_
    if attributor.tasks_ is not None:
        names = np.arange(len(attributor.X_train_))
    numbers = all(isinstance(name, Integral) for name in names.tolist())
    names = [f"row {name}" if numbers else str(name) for name in names]
    labels = attributor.y_train_
    if is_classifier(attributor.estimator_) and len(labels) == len(names):
        names = [f"{name}, label {y}" for name, y in zip(names, labels.tolist())]
    return np.array(names, dtype=object)


def default_names(attributor):
    """Return names of the units: tasks, or rows."""
    if attributor.tasks_ is None:
        return row_names(attributor)
    return np.array([str(name) for name in attributor.unit_names_], dtype=object)


def check_names(names, n, parameter, default):
    """Return n names as str: those given, or numbered defaults."""
    if names is None:
        return np.array([f"{default} {i}" for i in range(n)], dtype=object)
    if isinstance(names, str) or _num_samples(names) != n:
        given = "a str" if isinstance(names, str) else f"{_num_samples(names)} names"
        raise ValueError(f"{parameter} is {given}: pass a name for each of {n}.")
    return np.array([str(name) for name in names], dtype=object)


# ----------------------------------------------------------------------------- checks
def check_attributor(estimator, method="attribute"):
    """Raise unless this is a fitted attributor with a method."""
    if hasattr(estimator, "steps"):
        raise ValueError(
            "estimator is a Pipeline: pass its attributor, such as pipeline[-1], and "
            "queries transformed by the other steps, pipeline[:-1].transform(X)."
        )
    if is_search(estimator):
        raise ValueError(
            f"estimator is a {type(estimator).__name__}: pass its best_estimator_."
        )

    if not (isinstance(estimator, BaseAttributor) and hasattr(estimator, method)):
        raise ValueError(
            f"estimator is a {type(estimator).__name__}, not an attributor with the "
            f"method {method}(): pass a fitted attributor that has it, or arrays to "
            "from_predictions."
        )
    check_is_fitted(estimator, "n_units_")


def check_retrainable(attributor, y, caller):
    """Raise, before any work, if the attributor cannot be retrained."""
    check_attributor(attributor)
    if y is None:
        raise ValueError(f"y is None: {caller} retrains and needs y of the queries.")
    attributor._check_retrainable()


def check_floats(values, name, ndim, shape):
    """Return finite floats with ``ndim`` dimensions; `shape` is for the message."""
    array = check_array(
        values, dtype=np.float64, ensure_2d=False, allow_nd=True, input_name=name
    )
    if array.ndim != ndim:
        raise ValueError(f"{name} has shape {array.shape}: pass it as {shape}.")
    return array
