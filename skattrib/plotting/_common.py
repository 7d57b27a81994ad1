"""What the displays share: colours, axes, names, checks."""

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

# The colours of Okabe and Ito that show on white, told apart by the colour-blind too.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, "#E69F00", "#56B4E9", "#000000")
GREY = "#666666"
DIVERGING = "RdBu"  # blue is positive, as in the bars
_SMALLEST_FONT = 5.0

AT_LEAST_ONE = [Interval(Integral, 1, None, closed="left")]
NAME_LENGTH = [Interval(Integral, 4, None, closed="left")]


# ------------------------------------------------------------------ matplotlib, axes
def check_drawing(caller, ax):
    """Raise unless Matplotlib can be imported, and ax drawn on; before any work."""
    try:
        check_matplotlib_support(caller)
    except ImportError as error:
        raise ImportError(
            f"{caller} needs matplotlib, which comes with the extra plot: "
            "pip install 'skattrib[plot]'"
        ) from error
    if not (ax is None or hasattr(ax, "get_xaxis_transform")):
        raise ValueError(
            f"ax must be one matplotlib Axes or None, got {type(ax).__name__}: of "
            "several pass one, such as axes[0]."
        )


def make_axes(display, ax, size, layout="constrained"):
    """Return the axes given, or those of a new figure; the display keeps them."""
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
    """Name places along an axis, in type so small, or so few, that none touch.

    Parameters
    ----------
    lost : float, default=0.0
        Points of the axis that a later layout will take away.
    letters : int, default=0
        Length of labels at right angles to it, which will take their share, too.

    Returns
    -------
    float
        Size of the type, in points.
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
    """Return the length of an axis in points, as it is before any layout."""
    extent = ax.get_window_extent()
    return 72 / ax.figure.dpi * (extent.width if axis == "x" else extent.height)


def average_note(values, unit):
    """Say what 0 is, if the values sum to about 0."""
    balanced = abs(values.sum()) < 0.2 * np.abs(values).sum()
    return f"\n(0: the average {unit})" if balanced else ""


def few_ticks(ax):
    """Make the x-axis so sparse that long numbers do not touch."""
    from matplotlib.ticker import MaxNLocator

    n_most = int(np.clip(axis_length(ax, "x") / 55, 3, 6))
    ax.xaxis.set_major_locator(MaxNLocator(n_most, steps=[1, 2, 5, 10]))


def next_colour(ax, kind):
    """Return the next colour for a display of a kind that may share its axes."""
    drawn = sum(artist.get_gid() == kind for artist in ax.get_children())
    return PALETTE[drawn % len(PALETTE)]


# ------------------------------------------------------------------------------ names
def clean(text):
    """Return a text on one line that Matplotlib will not read as mathematics."""
    text = " ".join(str(text).split())
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text.replace("$", r"\$")


def shorten(name, length):
    """Shorten a name in its middle: names of files differ at the end."""
    name = " ".join(str(name).split())
    if len(name) > length:
        tail = (length - 1) // 2
        name = f"{name[: length - 1 - tail]}…{name[-tail:]}"
    return clean(name)


def outcome_name(attributor, *, own=False):
    """Name the outcome of an attributor, or the one at its own predictions."""
    outcome = attributor.outcome
    if callable(outcome):
        name = getattr(outcome, "__name__", "<lambda>")
        return "outcome" if name == "<lambda>" else name.replace("_", " ")
    texts = as_model(attributor.estimator_).takes_texts
    regresses = not (texts or is_classifier(attributor.estimator_))
    if outcome == "auto":
        outcome = "prediction" if regresses and own else "log_likelihood"
    if outcome == "log_likelihood" and regresses:
        return "\N{MINUS SIGN}½ squared error"
    return {"log_likelihood": "log-likelihood"}.get(outcome, outcome)


def value_name(attributor, *, own):
    """Name what `attribute` returns."""
    if not hasattr(attributor, "predict_outcomes"):
        return "similarity of gradients"
    return f"effect on {outcome_name(attributor, own=own)}"


def row_names(attributor):
    """Name the training rows, by label too where there are classes."""
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
    """Name the units: tasks, or rows."""
    if attributor.tasks_ is None:
        return row_names(attributor)
    return np.array([str(name) for name in attributor.unit_names_], dtype=object)


def check_names(names, n, parameter, default):
    """Return n names: those given, as str, or numbered ones."""
    if names is None:
        return np.array([f"{default} {i}" for i in range(n)], dtype=object)
    if isinstance(names, str) or _num_samples(names) != n:
        found = "a str" if isinstance(names, str) else f"{_num_samples(names)} names"
        raise ValueError(f"{parameter} is {found}: pass a name for each of {n}.")
    return np.array([str(name) for name in names], dtype=object)


# ----------------------------------------------------------------------------- checks
def check_attributor(estimator, method="attribute"):
    """Raise unless this is a fitted attributor of ours with a method."""
    if hasattr(estimator, "steps"):
        raise ValueError(
            "estimator is a Pipeline: pass its attributor, such as pipeline[-1], and "
            "queries that went through the steps before, pipeline[:-1].transform(X)."
        )
    if is_search(estimator):
        raise ValueError(
            f"estimator is a {type(estimator).__name__}: pass its best_estimator_."
        )
    if not (isinstance(estimator, BaseAttributor) and hasattr(estimator, method)):
        raise ValueError(
            f"estimator is a {type(estimator).__name__}, which has no {method}() of "
            "an attributor: pass a fitted attributor that has, or arrays to "
            "from_predictions."
        )
    check_is_fitted(estimator, "n_units_")


def check_retrainable(attributor, y, caller):
    """Raise on what would stop retraining, before it starts."""
    check_attributor(attributor)
    if y is None:
        raise ValueError(f"y is None: {caller} retrains, and needs the queries' y.")
    attributor._check_retrainable()


def check_floats(values, name, ndim, shape):
    """Return finite floats of a number of dimensions; `shape` says which in words."""
    array = check_array(
        values, dtype=np.float64, ensure_2d=False, allow_nd=True, input_name=name
    )
    if array.ndim != ndim:
        raise ValueError(f"{name} has shape {array.shape}: pass it as {shape}.")
    return array
