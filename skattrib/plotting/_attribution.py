"""Display of the units that raised and lowered an outcome most."""

import textwrap
from numbers import Integral

import numpy as np
import pandas as pd
from sklearn.utils._param_validation import validate_params
from sklearn.utils.validation import _num_samples

from skattrib._indexes import pandas_index
from skattrib.models._as_model import as_model
from skattrib.plotting._common import (
    AT_LEAST_ONE,
    BLUE,
    GREY,
    NAME_LENGTH,
    ORANGE,
    average_note,
    check_attributor,
    check_drawing,
    check_floats,
    check_names,
    clean,
    default_names,
    draw_zero,
    few_ticks,
    label_axis,
    make_axes,
    shorten,
    value_name,
)

_N_COLUMNS = 4
_CELL_LENGTH = 16
_TEXT_WIDTH = 44
_EM = 0.65  # of a character, generously
_GAP = 0.9  # between the best and the worst, in bars
_LOOKS = {
    "rows": ["array-like", None],
    "image_shape": [tuple, list, None],
    "unit_names": ["array-like", None],
}
_PLOT = {"ax": "no_validation", "n_top": AT_LEAST_ONE, "max_name_length": NAME_LENGTH}


class AttributionDisplay:
    """Bars of the units that raised and lowered an outcome most.

    Create it by `from_estimator` or `from_predictions`; all parameters are stored as
    attributes.

    Parameters
    ----------
    attributions : ndarray of shape (n_units,)
        Attributions of one query, or their mean over several.
    unit_names : array-like of str of shape (n_units,)
        Names of the units.
    standard_errors : ndarray of shape (n_units,) or None, default=None
        Standard errors of the attributions.
    rows : DataFrame, ndarray or None, default=None
        Contents of the units, to be shown: a table, of which the first four columns are
        shown; texts; or, with `image_shape`, pixels of shape (n_units, n_pixels).
    image_shape : tuple or None, default=None
        Shape of each image: (height, width), or (height, width, 3) in colour.
    value_name : str, default="effect on outcome"
        Meaning of an attribution, for the axis.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the bars.
    figure_ : matplotlib Figure
        Figure of the axes.
    indices_ : ndarray of shape (n_shown,)
        Units shown, from the top.
    bar_ : matplotlib BarContainer
        Bars of these units. Their ``errorbar`` holds the standard errors.
    image_axes_ : list of matplotlib Axes
        Axes of their images, if there are any.

    See Also
    --------
    FaithfulnessDisplay : Shows how far attributions can be trusted.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skattrib import DualInfluence, TorchClassifier
    >>> from skattrib.plotting import AttributionDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = TorchClassifier(max_epochs=20, random_state=0)
    >>> dual = DualInfluence(clf, random_state=0).fit(X[::3], y[::3])
    >>> display = AttributionDisplay.from_estimator(dual, X[1:2], y[1:2], n_top=3)
    >>> len(display.bar_)
    6
    """

    def __init__(
        self,
        *,
        attributions,
        unit_names,
        standard_errors=None,
        rows=None,
        image_shape=None,
        value_name="effect on outcome",
    ):
        self.attributions = attributions
        self.unit_names = unit_names
        self.standard_errors = standard_errors
        self.rows = rows
        self.image_shape = image_shape
        self.value_name = value_name

    @classmethod
    @validate_params(
        {"return_std": ["boolean"], **_LOOKS, **_PLOT},
        prefer_skip_nested_validation=True,
    )
    def from_estimator(
        cls,
        estimator,
        X,
        y=None,
        *,
        return_std=False,
        rows=None,
        image_shape=None,
        unit_names=None,
        n_top=5,
        max_name_length=30,
        ax=None,
    ):
        """Attribute a query, and plot.

        Parameters
        ----------
        estimator : attributor
            Fitted attributor.
        X : array-like of shape (n_queries, n_features)
            A query; for several queries, the mean attribution is shown.
        y : array-like of shape (n_queries,) or (n_queries, n_outputs), default=None
            Their targets; None as in ``estimator.attribute``.
        return_std : bool, default=False
            Draw standard errors, for a single query.
        rows : DataFrame, array-like or None, default=None
            Contents of the units, one row each: a table, texts or, with `image_shape`,
            pixels; those of pandas are found as ``top_units`` finds its ``data``. None
            shows the training rows if there is an `image_shape`, or if they are texts.
        image_shape : tuple or None, default=None
            Shape of each image: (height, width), or (height, width, 3).
        unit_names : array-like of str of shape (n_units,) or None, default=None
            Names of the units; None takes the attributor's.
        n_top : int, default=5
            How many of the most positive, and of the most negative, are shown.
        max_name_length : int, default=30
            Longer names are shortened in the middle.
        ax : matplotlib Axes or None, default=None
            Where to plot; None makes a figure.

        Returns
        -------
        AttributionDisplay
            The display, plotted.

        Raises
        ------
        ValueError
            If the estimator is not an attributor, or `rows`, `image_shape` or names do
            not fit the units.
        """
        check_drawing(f"{cls.__name__}.from_estimator", ax)
        check_attributor(estimator)
        n_queries = _num_samples(y if X is None else X)
        if return_std and n_queries > 1:
            raise ValueError(
                f"return_std=True with {n_queries} queries: the standard error of a "
                "mean does not follow from those of single queries. Pass one query."
            )

        n_units = estimator.n_units_
        names = default_names(estimator) if unit_names is None else unit_names
        rows = _own_rows(estimator, image_shape) if rows is None else rows
        names = check_names(names, n_units, "unit_names", "unit")
        if pandas_index(rows) is not None:
            rows = estimator._rows_of_units(rows, "rows")
        rows = _check_rows(rows, image_shape, n_units)
        attributions = estimator.attribute(X, y, return_std=return_std)
        errors = None
        if return_std:
            attributions, errors = attributions[0], attributions[1][0]

        prefix = "mean " if n_queries > 1 else ""
        display = cls(
            attributions=attributions.mean(axis=0),
            unit_names=names,
            standard_errors=errors,
            rows=rows,
            image_shape=image_shape,
            value_name=prefix + value_name(estimator, own=y is None),
        )

        return display.plot(ax, n_top=n_top, max_name_length=max_name_length)

    @classmethod
    @validate_params(
        {
            "attributions": ["array-like"],
            "standard_errors": ["array-like", None],
            "value_name": [str],
            **_LOOKS,
            **_PLOT,
        },
        prefer_skip_nested_validation=True,
    )
    def from_predictions(
        cls,
        attributions,
        *,
        unit_names=None,
        standard_errors=None,
        rows=None,
        image_shape=None,
        value_name="effect on outcome",
        n_top=5,
        max_name_length=30,
        ax=None,
    ):
        """Plot attributions computed before.

        Parameters
        ----------
        attributions : array-like of shape (n_units,)
            Attributions of one query: a row of what ``attribute`` returns.
        unit_names : array-like of str of shape (n_units,) or None, default=None
            Names of the units; None numbers them.
        standard_errors : array-like of shape (n_units,) or None, default=None
            Standard errors of the attributions.
        rows : DataFrame, array-like or None, default=None
            Contents of the units, one row each: a table, texts or, with `image_shape`,
            pixels.
        image_shape : tuple or None, default=None
            Shape of each image: (height, width), or (height, width, 3).
        value_name : str, default="effect on outcome"
            Meaning of an attribution, for the axis.
        n_top : int, default=5
            How many of the most positive, and of the most negative, are shown.
        max_name_length : int, default=30
            Longer names are shortened in the middle.
        ax : matplotlib Axes or None, default=None
            Where to plot; None makes a figure.

        Returns
        -------
        AttributionDisplay
            The display, plotted.

        Raises
        ------
        ValueError
            If the arrays do not fit together.
        """
        check_drawing(f"{cls.__name__}.from_predictions", ax)
        shape = "(n_units,), such as one row of what attribute() returns"
        values = check_floats(attributions, "attributions", 1, shape)
        if standard_errors is not None:
            standard_errors = check_floats(
                standard_errors, "standard_errors", 1, "(n_units,)"
            )
            if standard_errors.shape != values.shape or (standard_errors < 0).any():
                raise ValueError(
                    "standard_errors must be at least 0, one for each of the "
                    f"{len(values)} attributions."
                )

        display = cls(
            attributions=values,
            unit_names=check_names(unit_names, len(values), "unit_names", "unit"),
            standard_errors=standard_errors,
            rows=_check_rows(rows, image_shape, len(values)),
            image_shape=image_shape,
            value_name=value_name,
        )

        return display.plot(ax, n_top=n_top, max_name_length=max_name_length)

    @validate_params(_PLOT, prefer_skip_nested_validation=True)
    def plot(self, ax=None, *, n_top=5, max_name_length=30):
        """Plot the bars, the most helpful unit at the top.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Where to plot; None makes a figure.
        n_top : int, default=5
            How many of the most positive, and of the most negative, are shown.
        max_name_length : int, default=30
            Longer names are shortened in the middle.

        Returns
        -------
        AttributionDisplay
            This display.
        """
        n_units = len(self.attributions)
        order = np.argsort(-self.attributions, kind="stable")
        n_hidden = max(n_units - 2 * n_top, 0)
        if n_hidden:
            order = np.r_[order[:n_top], order[-n_top:]]
        places = np.arange(len(order), dtype=float)
        places[n_top:] += _GAP if n_hidden else 0
        names = [shorten(self.unit_names[j], max_name_length) for j in order]
        height = 0.3 if self.rows is None or self._is_table() else 0.46

        longest = max(map(len, names))
        width = 4.2 + 0.08 * longest + self._panel_width(order)
        ax = make_axes(self, ax, (width, 1.1 + height * (places[-1] + 1)))
        self.indices_ = order
        values = self.attributions[order]
        errors = None if self.standard_errors is None else self.standard_errors[order]
        self.bar_ = ax.barh(
            places,
            values,
            xerr=errors,
            color=np.where(values < 0, ORANGE, BLUE),
            error_kw={"ecolor": "black", "elinewidth": 1.2, "capsize": 2.5},
        )

        size = label_axis(ax, "y", places, names)
        few_ticks(ax)
        ax.set_ylim(places[-1] + 0.6, -0.6)
        draw_zero(ax, vertical=True)
        if n_hidden:
            self._draw_gap(ax, places[n_top - 1 : n_top + 1].mean(), n_hidden)
        ax.set_xlabel(self._axis_name())
        self.image_axes_ = []
        self._draw_rows(ax, order, places, size)

        return self

    def _axis_name(self):
        name = clean(self.value_name)
        if self.standard_errors is not None:
            name += " ± standard error"
        if "effect" in self.value_name:
            name += average_note(self.attributions, "unit")
        return name

    @staticmethod
    def _draw_gap(ax, place, n_hidden):
        ax.axhline(place, color=GREY, linewidth=0.8, linestyle=":")
        ax.text(
            0.98,
            place,
            f"{n_hidden} between",
            transform=ax.get_yaxis_transform(),
            ha="right",
            va="center",
            fontsize=8,
            color=GREY,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )

    # ------------------------------------------------- what the units look like
    def _is_table(self):
        return isinstance(self.rows, pd.DataFrame)

    def _panel_width(self, order):
        """Return the width in inches of the rows to the right of the bars."""
        if self.rows is None:
            return 0.0
        if self.image_shape is not None:
            return 0.7
        if self._is_table():
            return sum(width for *_, width in self._columns(order, 9)) / 72 + 0.2
        return 3.2

    def _columns(self, order, size):
        """Yield name, cells, whether they are numbers, and width in points."""
        for name in self.rows.columns[:_N_COLUMNS]:
            column = self.rows[name].iloc[order]
            numeric = pd.api.types.is_numeric_dtype(column.dtype)
            cells = [
                f"{value:.4g}" if isinstance(value, float) else value
                for value in column.tolist()
            ]
            cells = [shorten(cell, _CELL_LENGTH) for cell in cells]
            name = shorten(name, _CELL_LENGTH)
            longest = max(map(len, [name, *cells]))
            yield name, cells, numeric, _EM * size * (longest + 2)

    def _draw_rows(self, ax, order, places, size):
        if self.rows is None:
            return

        if self.image_shape is not None:
            self._draw_images(ax, order, places)
        elif self._is_table():
            self._draw_table(ax, order, places, min(size, 9))
        else:
            for j, place in zip(order, places):
                lines = textwrap.wrap(
                    clean(self.rows[j]), _TEXT_WIDTH, max_lines=2, placeholder=" …"
                )
                text = "\n".join(lines)
                _annotate(ax, text, place, 6, fontsize=min(size, 8))

    def _draw_table(self, ax, order, places, size):
        left = 0.0
        for name, cells, numeric, width in self._columns(order, size):
            # words are aligned to the left of a column, numbers to the right
            x, align = (left + width, "right") if numeric else (left + 6, "left")
            for cell, place in zip(cells, places):
                _annotate(ax, cell, place, x, fontsize=size, ha=align)
            top = {"va": "bottom", "weight": "bold"}
            _annotate(ax, name, -0.6, x, fontsize=size, ha=align, **top)
            left += width

    def _draw_images(self, ax, order, places):
        images = np.asarray(self.rows)[order].reshape(-1, *self.image_shape)
        low, high = images.min(), images.max()
        if images.ndim == 4:  # colours are drawn from 0 to 1
            images = (images - low) / (high - low or 1)

        for image, place in zip(images, places):
            inset = ax.inset_axes(
                (1.02, place - 0.46, 0.2, 0.92), transform=ax.get_yaxis_transform()
            )
            inset.imshow(image, cmap="gray_r", vmin=low, vmax=high, aspect="equal")
            inset.set_anchor("W")
            inset.set(xticks=[], yticks=[])
            for side in inset.spines.values():
                side.set(color=GREY, linewidth=0.6)
            self.image_axes_.append(inset)


def _annotate(ax, text, place, offset, **style):
    """Write a text to the right of the axes, at an offset in points."""
    ax.annotate(
        text,
        (1, place),
        xycoords=ax.get_yaxis_transform(),
        xytext=(offset, 0),
        textcoords="offset points",
        annotation_clip=False,
        **{"va": "center", **style},
    )


def _own_rows(attributor, image_shape):
    """Return the training rows if they can be shown, else None."""
    texts = as_model(attributor.estimator_).takes_texts
    if image_shape is None and not texts:
        return None
    if attributor.tasks_ is not None:
        if texts:
            return None
        raise ValueError(
            "image_shape is set, but the units are tasks with several rows each: pass "
            "an image for each task as rows=, or image_shape=None."
        )

    X, y = attributor.X_train_, attributor.y_train_
    if texts:
        prompts = ["" if prompt is None else prompt for prompt in X]
        return [f"{prompt} {text}" for prompt, text in zip(prompts, y)]
    return X


def _check_rows(rows, image_shape, n_units):
    """Return rows that fit the units and the images."""
    if rows is None:
        if image_shape is not None:
            raise ValueError("image_shape is set, but rows is None: pass the pixels.")
        return None
    if _num_samples(rows) != n_units:
        raise ValueError(
            f"rows has {_num_samples(rows)} rows for {n_units} units: pass one per "
            "unit, in their order."
        )

    if image_shape is not None:
        return _check_images(rows, tuple(image_shape))
    if isinstance(rows, pd.DataFrame):
        return rows

    rows = list(rows)
    if not all(isinstance(row, str) for row in rows):
        raise ValueError(
            "rows must be a DataFrame or texts; for images set image_shape, such as "
            "(8, 8)."
        )
    return np.array(rows, dtype=object)


def _check_images(rows, shape):
    sides = all(isinstance(side, Integral) and side > 0 for side in shape)
    colours = len(shape) == 3 and shape[2] in (3, 4)
    if not (sides and (len(shape) == 2 or colours)):
        raise ValueError(
            f"image_shape={shape}: pass (height, width), or (height, width, 3)."
        )

    images = np.asarray(rows)
    if images.dtype.kind not in "biuf":
        raise ValueError(f"rows must be numbers to be images, not {images.dtype}.")
    if images[0].size != np.prod(shape):
        raise ValueError(
            f"image_shape={shape} takes {np.prod(shape)} pixels, but rows have "
            f"{images[0].size}: pass the shape of one image."
        )
    if images.ndim == 4 and colours and images.shape[1:] == (shape[2], *shape[:2]):
        images = np.moveaxis(images, 1, -1)  # colours came first, as torch has them
    return images.reshape(len(images), -1)
