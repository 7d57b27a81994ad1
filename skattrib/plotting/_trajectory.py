"""Display of the steps of training in which rows had an effect."""

from collections.abc import Mapping

import numpy as np
from sklearn.utils._param_validation import StrOptions, validate_params
from sklearn.utils.validation import _num_samples

from skattrib.plotting._common import (
    AT_LEAST_ONE,
    DIVERGING,
    NAME_LENGTH,
    PALETTE,
    check_attributor,
    check_drawing,
    check_floats,
    check_names,
    clean,
    draw_zero,
    label_axis,
    make_axes,
    row_names,
    shorten,
    value_name,
)

_MOST_COLUMNS = 200
_STYLES = ("-", "--", "-.", ":")
_PLOT = {
    "ax": "no_validation",
    "kind": [StrOptions({"heatmap", "cumulative"})],
    "n_top": AT_LEAST_ONE,
    "max_name_length": NAME_LENGTH,
}


class TrajectoryDisplay:
    """The rows with the largest effects, and their effects in the steps of training.

    Create it by `from_estimator`, or by `from_predictions` from the result of
    `AdamWInfluence.step_attribution`; all parameters are stored as attributes.

    Parameters
    ----------
    steps : ndarray of int, shape (n_entries,)
        Step of the run, from 1.
    rows : ndarray of int, shape (n_entries,)
        Row in that step's minibatch.
    attributions : ndarray of shape (n_entries,)
        Effect of the row in that step.
    row_names : array-like of str of shape (n_rows,)
        Names of the rows.
    value_name : str, default="effect on outcome"
        Meaning of an attribution, for the axes.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the heat map or the lines.
    figure_ : matplotlib Figure
        Figure of the axes.
    indices_ : ndarray of shape (n_shown,)
        Rows shown, from the most positive sum over the steps to the most negative.
    image_ : matplotlib AxesImage or None
        The heat map, white at 0.
    colorbar_ : matplotlib Colorbar or None
        Its colour bar.
    lines_ : list of matplotlib Line2D
        The lines of ``kind="cumulative"``.

    See Also
    --------
    skattrib.AdamWInfluence : Has ``step_attribution``.
    AttributionDisplay : Shows sums over the run.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skattrib import AdamWInfluence, TorchClassifier
    >>> from skattrib.plotting import TrajectoryDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = TorchClassifier(max_epochs=4, batch_size=10, random_state=0)
    >>> influence = AdamWInfluence(clf, inclusion=1.0, random_state=0)
    >>> influence = influence.fit(X[::3], y[::3])
    >>> display = TrajectoryDisplay.from_estimator(influence, X[1:2], y[1:2])
    >>> display.image_.get_array().shape  # rows, steps
    (10, 20)
    """

    def __init__(
        self, *, steps, rows, attributions, row_names, value_name="effect on outcome"
    ):
        self.steps = steps
        self.rows = rows
        self.attributions = attributions
        self.row_names = row_names
        self.value_name = value_name

    @classmethod
    @validate_params(_PLOT, prefer_skip_nested_validation=True)
    def from_estimator(
        cls,
        estimator,
        X,
        y=None,
        *,
        kind="heatmap",
        n_top=10,
        max_name_length=30,
        ax=None,
    ):
        """Attribute a query to the steps of training, and plot.

        Parameters
        ----------
        estimator : AdamWInfluence
            Fitted attributor; its run on all rows is shown.
        X : array-like of shape (n_queries, n_features)
            A query; for several queries, the mean is shown.
        y : array-like of shape (n_queries,) or (n_queries, n_outputs), default=None
            Their targets; None as in ``estimator.attribute``.
        kind : {"heatmap", "cumulative"}, default="heatmap"
            Effect of a row in each step, or its sum up to the step.
        n_top : int, default=10
            How many rows are shown: those with the largest sums.
        max_name_length : int, default=30
            Longer names are shortened in the middle.
        ax : matplotlib Axes or None, default=None
            Where to plot; None makes a figure.

        Returns
        -------
        TrajectoryDisplay
            The display, plotted.

        Raises
        ------
        ValueError
            If the estimator has no ``step_attribution``.
        """
        check_drawing(f"{cls.__name__}.from_estimator", ax)
        check_attributor(estimator, "step_attribution")
        step_attributions = estimator.step_attribution(X, y)
        prefix = "mean " if _num_samples(X) > 1 else ""
        display = cls(
            steps=step_attributions.steps,
            rows=step_attributions.rows,
            attributions=step_attributions.attributions.mean(axis=0),
            row_names=row_names(estimator),
            value_name=prefix + value_name(estimator, own=y is None),
        )
        return display.plot(ax, kind=kind, n_top=n_top, max_name_length=max_name_length)

    @classmethod
    @validate_params(
        {
            "step_attributions": [Mapping],
            "row_names": ["array-like", None],
            "value_name": [str],
            **_PLOT,
        },
        prefer_skip_nested_validation=True,
    )
    def from_predictions(
        cls,
        step_attributions,
        *,
        row_names=None,
        value_name="effect on outcome",
        kind="heatmap",
        n_top=10,
        max_name_length=30,
        ax=None,
    ):
        """Plot effects of steps computed before.

        Parameters
        ----------
        step_attributions : Bunch
            Result of ``step_attribution``; for several queries, the mean is shown.
        row_names : array-like of str of shape (n_rows,) or None, default=None
            Names of the rows; None numbers them.
        value_name : str, default="effect on outcome"
            Meaning of an attribution, for the axes.
        kind : {"heatmap", "cumulative"}, default="heatmap"
            Effect of a row in each step, or its sum up to the step.
        n_top : int, default=10
            How many rows are shown: those with the largest sums.
        max_name_length : int, default=30
            Longer names are shortened in the middle.
        ax : matplotlib Axes or None, default=None
            Where to plot; None makes a figure.

        Returns
        -------
        TrajectoryDisplay
            The display, plotted.

        Raises
        ------
        ValueError
            If something is missing, or the arrays do not fit together.
        """
        check_drawing(f"{cls.__name__}.from_predictions", ax)
        missing = sorted({"steps", "rows", "attributions"} - set(step_attributions))
        if missing:
            raise ValueError(
                f"step_attributions lacks {missing}: pass the result of "
                "step_attribution()."
            )

        steps, rows = (np.asarray(step_attributions[k]) for k in ("steps", "rows"))
        values = check_floats(
            np.atleast_2d(step_attributions["attributions"]),
            "attributions",
            2,
            "(n_queries, n_entries)",
        )
        integers = steps.dtype.kind in "iu" and rows.dtype.kind in "iu"

        if not (integers and steps.shape == rows.shape == values.shape[1:]):
            raise ValueError(
                "steps and rows must be integers, one for each of the "
                f"{values.shape[1]} entries of attributions."
            )
        if steps.min() < 1 or rows.min() < 0:
            raise ValueError("steps must count from 1, and rows from 0.")

        n_rows = int(rows.max()) + 1
        if row_names is not None:
            n_rows = max(n_rows, _num_samples(row_names))
        display = cls(
            steps=steps,
            rows=rows,
            attributions=values.mean(axis=0),
            row_names=check_names(row_names, n_rows, "row_names", "row"),
            value_name=("mean " if len(values) > 1 else "") + value_name,
        )

        return display.plot(ax, kind=kind, n_top=n_top, max_name_length=max_name_length)

    @validate_params(_PLOT, prefer_skip_nested_validation=True)
    def plot(self, ax=None, *, kind="heatmap", n_top=10, max_name_length=30):
        """Plot the rows over the steps of training.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Where to plot; None makes a figure.
        kind : {"heatmap", "cumulative"}, default="heatmap"
            Effect of a row in each step, or its sum up to the step.
        n_top : int, default=10
            How many rows are shown: those with the largest sums.
        max_name_length : int, default=30
            Longer names are shortened in the middle.

        Returns
        -------
        TrajectoryDisplay
            This display.
        """
        n_rows, n_steps = len(self.row_names), int(self.steps.max())
        totals = np.bincount(self.rows, self.attributions, minlength=n_rows)
        top = np.argsort(-np.abs(totals), kind="stable")[:n_top]
        self.indices_ = top = top[np.argsort(-totals[top], kind="stable")]
        table = np.zeros((len(top), n_steps))
        place = np.full(n_rows, -1)
        place[top] = np.arange(len(top))
        shown = place[self.rows] >= 0
        where = place[self.rows[shown]], self.steps[shown] - 1

        np.add.at(table, where, self.attributions[shown])
        names = [
            f"{shorten(self.row_names[i], max_name_length)}: {totals[i]:+.2g}"
            for i in top
        ]
        width = 6.0 + 0.08 * max(map(len, names))
        ax = make_axes(self, ax, (width, max(1.2 + 0.3 * len(top), 3.2)))
        from matplotlib.ticker import MaxNLocator

        self.image_, self.colorbar_, self.lines_ = None, None, []
        if kind == "heatmap":
            self._draw_heat_map(ax, table, names)
        else:
            self._draw_lines(ax, table, names)

        ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        ax.set_xlabel("step of training")
        return self

    def _draw_heat_map(self, ax, table, names):
        n_steps = table.shape[1]
        per_column = -(-n_steps // _MOST_COLUMNS)
        table = np.add.reduceat(table, np.arange(0, n_steps, per_column), axis=1)
        limit = np.abs(table).max() or 1.0
        self.image_ = ax.imshow(
            table,
            cmap=DIVERGING,
            vmin=-limit,
            vmax=limit,
            aspect="auto",
            interpolation="nearest",
            extent=(0.5, 0.5 + per_column * table.shape[1], len(table) - 0.5, -0.5),
        )

        label_axis(ax, "y", np.arange(len(names)), names)
        ax.set_ylabel("training row: sum over steps")
        when = "in the step" if per_column == 1 else f"in {per_column} steps"
        label = f"{clean(self.value_name)} {when}"
        self.colorbar_ = self.figure_.colorbar(self.image_, ax=ax, label=label)

    def _draw_lines(self, ax, table, names):
        sums = np.cumsum(np.pad(table, ((0, 0), (1, 0))), axis=1)
        for i, values in enumerate(sums):
            (line,) = ax.plot(
                values,
                drawstyle="steps-post",
                color=PALETTE[i % len(PALETTE)],
                linestyle=_STYLES[i // len(PALETTE) % len(_STYLES)],
            )
            self.lines_.append(line)

        draw_zero(ax, vertical=False)
        ax.set_ylabel(f"{clean(self.value_name)},\nsummed up to the step")
        # Matplotlib leaves out labels that start with an underscore
        names = [f" {name}" if name.startswith("_") else name for name in names]
        ax.legend(
            self.lines_,
            names,
            title="training row: sum over steps",
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
            fontsize=9,
            title_fontsize=9,
            frameon=False,
        )
