"""Displays of interactions between tasks, and of tasks selected."""

import numpy as np
from sklearn.utils._param_validation import validate_params
from sklearn.utils.validation import check_is_fitted

from skattrib._validation import column_or_1d
from skattrib.feature_selection import TaskWeightSelector
from skattrib.plotting._common import (
    BLUE,
    DIVERGING,
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
    outcome_name,
    shorten,
)

_HEAT_MAP = {
    "ax": "no_validation",
    "order": ["array-like", None],
    "max_name_length": NAME_LENGTH,
    "colorbar": ["boolean"],
}
_BARS = {"ax": "no_validation", "max_name_length": NAME_LENGTH}


class TaskInteractionDisplay:
    """Heat map of the interactions of pairs of tasks.

    Blue pairs have more effect together than the sum of both alone, red ones less: they
    can replace each other.

    Create it by `from_estimator` or `from_predictions`; all parameters are stored as
    attributes.

    Parameters
    ----------
    interactions : ndarray of shape (n_units, n_units)
        Interactions, symmetric.
    unit_names : array-like of str of shape (n_units,)
        Names of the units.
    outcome_name : str, default="outcome"
        What the outcome is, for the colour bar.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the heat map.
    figure_ : matplotlib Figure
        Figure of the axes.
    image_ : matplotlib AxesImage
        The heat map, white at 0.
    colorbar_ : matplotlib Colorbar or None
        Its colour bar.

    See Also
    --------
    TaskWeightDisplay : Shows single tasks.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from skattrib import KernelSurrogateAttributor, TorchClassifier
    >>> from skattrib.plotting import TaskInteractionDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = TorchClassifier(max_epochs=20, random_state=0)
    >>> surrogate = KernelSurrogateAttributor(clf, n_subsets=30, random_state=0)
    >>> surrogate = surrogate.fit(X, y, tasks=np.arange(150) % 6)
    >>> display = TaskInteractionDisplay.from_estimator(surrogate, X[::30], y[::30])
    >>> display.image_.get_array().shape
    (6, 6)
    """

    def __init__(self, *, interactions, unit_names, outcome_name="outcome"):
        self.interactions = interactions
        self.unit_names = unit_names
        self.outcome_name = outcome_name

    @classmethod
    @validate_params(_HEAT_MAP, prefer_skip_nested_validation=True)
    def from_estimator(
        cls,
        estimator,
        X,
        y=None,
        *,
        order=None,
        max_name_length=24,
        colorbar=True,
        ax=None,
    ):
        """Plot the interactions of a surrogate, the mean over the queries.

        Parameters
        ----------
        estimator : KernelSurrogateAttributor
            Fitted attributor.
        X : array-like of shape (n_queries, n_features)
            Queries.
        y : array-like of shape (n_queries,) or (n_queries, n_outputs), default=None
            Their targets; None as in ``estimator.attribute``.
        order : array-like of int or None, default=None
            Units to show, in this order; None shows all.
        max_name_length : int, default=24
            Longer names are shortened in the middle.
        colorbar : bool, default=True
            Draw a colour bar.
        ax : matplotlib Axes or None, default=None
            Where to plot; None makes a figure.

        Returns
        -------
        TaskInteractionDisplay
            The display, plotted.

        Raises
        ------
        ValueError
            If the estimator has no ``interactions``, or `order` does not fit.
        """
        check_drawing(f"{cls.__name__}.from_estimator", ax)
        check_attributor(estimator, "interactions")
        _check_order(order, estimator.n_units_)
        display = cls(
            interactions=estimator.interactions(X, y, average=True),
            unit_names=default_names(estimator),
            outcome_name=outcome_name(estimator, own=y is None),
        )
        return display.plot(
            ax, order=order, max_name_length=max_name_length, colorbar=colorbar
        )

    @classmethod
    @validate_params(
        {
            "interactions": ["array-like"],
            "unit_names": ["array-like", None],
            "outcome_name": [str],
            **_HEAT_MAP,
        },
        prefer_skip_nested_validation=True,
    )
    def from_predictions(
        cls,
        interactions,
        *,
        unit_names=None,
        outcome_name="outcome",
        order=None,
        max_name_length=24,
        colorbar=True,
        ax=None,
    ):
        """Plot interactions computed before.

        Parameters
        ----------
        interactions : array-like of shape (n_units, n_units)
            Interactions, as from ``interactions(X, y, average=True)``.
        unit_names : array-like of str of shape (n_units,) or None, default=None
            Names of the units; None numbers them.
        outcome_name : str, default="outcome"
            What the outcome is, for the colour bar.
        order : array-like of int or None, default=None
            Units to show, in this order; None shows all.
        max_name_length : int, default=24
            Longer names are shortened in the middle.
        colorbar : bool, default=True
            Draw a colour bar.
        ax : matplotlib Axes or None, default=None
            Where to plot; None makes a figure.

        Returns
        -------
        TaskInteractionDisplay
            The display, plotted.

        Raises
        ------
        ValueError
            If the interactions are not square, or names or `order` do not fit.
        """
        check_drawing(f"{cls.__name__}.from_predictions", ax)
        shape = "(n_units, n_units); of several queries, their mean(axis=0)"
        values = check_floats(interactions, "interactions", 2, shape)
        if values.shape[0] != values.shape[1]:
            raise ValueError(
                f"interactions has shape {values.shape}: pass it as {shape}."
            )

        _check_order(order, len(values))
        display = cls(
            interactions=values,
            unit_names=check_names(unit_names, len(values), "unit_names", "unit"),
            outcome_name=outcome_name,
        )

        return display.plot(
            ax, order=order, max_name_length=max_name_length, colorbar=colorbar
        )

    @validate_params(_HEAT_MAP, prefer_skip_nested_validation=True)
    def plot(self, ax=None, *, order=None, max_name_length=24, colorbar=True):
        """Plot the heat map.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Where to plot; None makes a figure.
        order : array-like of int or None, default=None
            Units to show, in this order; None shows all.
        max_name_length : int, default=24
            Longer names are shortened in the middle.
        colorbar : bool, default=True
            Draw a colour bar.

        Returns
        -------
        TaskInteractionDisplay
            This display.
        """
        order = _check_order(order, len(self.unit_names))
        names = [shorten(self.unit_names[j], max_name_length) for j in order]
        side = float(np.clip(0.3 * len(order), 2.5, 11))
        margin = 0.08 * max(map(len, names))
        size = (side + margin + 1.4, side + margin + 0.2)
        ax = make_axes(self, ax, size, layout="compressed")
        shown = self.interactions[np.ix_(order, order)]
        limit = np.abs(shown).max() or 1.0
        self.image_ = ax.imshow(shown, cmap=DIVERGING, vmin=-limit, vmax=limit)

        places = np.arange(len(order))
        letters = max(map(len, names))
        label_axis(ax, "x", places, names, lost=70 * colorbar, letters=letters)
        label_axis(ax, "y", places, names, letters=letters)
        self.colorbar_ = None

        if colorbar:
            label = f"interaction, in {clean(self.outcome_name)}"
            self.colorbar_ = self.figure_.colorbar(self.image_, ax=ax, label=label)

        return self


class TaskWeightDisplay:
    """Bars of the weights of tasks, with those that were kept marked.

    Create it by `from_estimator` or `from_predictions`; all parameters are stored as
    attributes.

    Parameters
    ----------
    task_weights : ndarray of shape (n_tasks,)
        Weights: mean attributions.
    support : ndarray of bool, shape (n_tasks,)
        Whether a task was kept.
    task_names : array-like of str of shape (n_tasks,)
        Names of the tasks.
    outcome_name : str, default="outcome"
        What the outcome is, for the axis.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the bars.
    figure_ : matplotlib Figure
        Figure of the axes.
    indices_ : ndarray of shape (n_tasks,)
        Tasks from the top.
    bar_ : matplotlib BarContainer
        Bars of these tasks; those dropped are hatched.

    See Also
    --------
    skattrib.TaskWeightSelector : Selects tasks.

    Examples
    --------
    >>> import numpy as np
    >>> from skattrib import TaskWeightSelector
    >>> from skattrib.plotting import TaskWeightDisplay
    >>> A = np.array([[0.3, -0.2, 0.1], [0.1, -0.4, 0.3]])
    >>> selector = TaskWeightSelector(n_tasks_to_select=2).fit(A)
    >>> display = TaskWeightDisplay.from_estimator(selector)
    >>> [bar.get_width().round(1) for bar in display.bar_]
    [np.float64(0.2), np.float64(0.2), np.float64(-0.3)]
    """

    def __init__(self, *, task_weights, support, task_names, outcome_name="outcome"):
        self.task_weights = task_weights
        self.support = support
        self.task_names = task_names
        self.outcome_name = outcome_name

    @classmethod
    @validate_params(_BARS, prefer_skip_nested_validation=True)
    def from_estimator(cls, estimator, *, max_name_length=30, ax=None):
        """Plot the weights of a selector.

        Parameters
        ----------
        estimator : TaskWeightSelector
            Fitted selector.
        max_name_length : int, default=30
            Longer names are shortened in the middle.
        ax : matplotlib Axes or None, default=None
            Where to plot; None makes a figure.

        Returns
        -------
        TaskWeightDisplay
            The display, plotted.

        Raises
        ------
        ValueError
            If the estimator is not a `TaskWeightSelector`.
        """
        check_drawing(f"{cls.__name__}.from_estimator", ax)
        if not isinstance(estimator, TaskWeightSelector):
            raise ValueError(
                f"estimator is a {type(estimator).__name__}: pass a fitted "
                "TaskWeightSelector, or arrays to from_predictions."
            )

        check_is_fitted(estimator, "task_weights_")
        attributor = getattr(estimator, "attributor_", None)
        names = getattr(estimator, "feature_names_in_", None)
        if attributor is not None:
            names = estimator.task_names_
        weights = estimator.task_weights_
        display = cls(
            task_weights=weights,
            support=estimator.support_,
            task_names=check_names(names, len(weights), "task_names", "task"),
            outcome_name=(
                outcome_name(attributor)
                if hasattr(attributor, "outcome")
                else "outcome"
            ),
        )

        return display.plot(ax, max_name_length=max_name_length)

    @classmethod
    @validate_params(
        {
            "task_weights": ["array-like"],
            "support": ["array-like"],
            "task_names": ["array-like", None],
            "outcome_name": [str],
            **_BARS,
        },
        prefer_skip_nested_validation=True,
    )
    def from_predictions(
        cls,
        task_weights,
        support,
        *,
        task_names=None,
        outcome_name="outcome",
        max_name_length=30,
        ax=None,
    ):
        """Plot weights computed before.

        Parameters
        ----------
        task_weights : array-like of shape (n_tasks,)
            Weights: mean attributions.
        support : array-like of bool, shape (n_tasks,)
            Whether a task was kept.
        task_names : array-like of str of shape (n_tasks,) or None, default=None
            Names of the tasks; None numbers them.
        outcome_name : str, default="outcome"
            What the outcome is, for the axis.
        max_name_length : int, default=30
            Longer names are shortened in the middle.
        ax : matplotlib Axes or None, default=None
            Where to plot; None makes a figure.

        Returns
        -------
        TaskWeightDisplay
            The display, plotted.

        Raises
        ------
        ValueError
            If the arrays do not fit together.
        """
        check_drawing(f"{cls.__name__}.from_predictions", ax)
        shape = "(n_tasks,); of several queries, the attributions' mean(axis=0)"
        weights = check_floats(task_weights, "task_weights", 1, shape)
        support = column_or_1d(support)
        if support.dtype != bool or len(support) != len(weights):
            raise ValueError(
                f"support must be {len(weights)} booleans, one per task; got "
                f"{len(support)} of {support.dtype}."
            )

        display = cls(
            task_weights=weights,
            support=support,
            task_names=check_names(task_names, len(weights), "task_names", "task"),
            outcome_name=outcome_name,
        )

        return display.plot(ax, max_name_length=max_name_length)

    @validate_params(_BARS, prefer_skip_nested_validation=True)
    def plot(self, ax=None, *, max_name_length=30):
        """Plot the bars, the largest weight at the top.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Where to plot; None makes a figure.
        max_name_length : int, default=30
            Longer names are shortened in the middle.

        Returns
        -------
        TaskWeightDisplay
            This display.
        """
        self.indices_ = order = np.argsort(-self.task_weights, kind="stable")
        names = [shorten(self.task_names[j], max_name_length) for j in order]
        n = len(order)
        width = 4.2 + 0.08 * max(map(len, names))
        ax = make_axes(self, ax, (width, min(1.3 + 0.3 * n, 12)))
        places = np.arange(n)
        is_kept = self.support[order]
        self.bar_ = ax.barh(places, self.task_weights[order], edgecolor="white")

        for bar, bar_is_kept in zip(self.bar_, is_kept):
            bar.set_facecolor(BLUE if bar_is_kept else ORANGE)
            bar.set_hatch("" if bar_is_kept else "///")

        label_axis(ax, "y", places, names)
        few_ticks(ax)
        ax.set_ylim(n - 0.4, -0.6)
        draw_zero(ax, vertical=True)
        note = average_note(self.task_weights, "task")
        ax.set_xlabel(f"mean effect on {clean(self.outcome_name)}{note}")

        if is_kept.all() or not is_kept.any():
            return self

        first = int(np.argmin(is_kept))
        legend = [self.bar_[int(np.argmax(is_kept))], self.bar_[first]]
        counts = [f"{is_kept.sum()} kept", f"{n - is_kept.sum()} dropped"]
        ax.legend(
            legend,
            counts,
            ncols=2,
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            frameon=False,
            fontsize=9,
        )

        return self


def _check_order(order, n_units):
    """Return the units to show, in their order."""
    if order is None:
        return np.arange(n_units)
    order = np.asarray(order)
    are_integers = order.ndim == 1 and order.dtype.kind in "iu" and len(order)
    if not are_integers or order.min() < 0 or order.max() >= n_units:
        raise ValueError(
            f"order must list units by number, 0 to {n_units - 1}, such as "
            "attributions.mean(axis=0).argsort()."
        )
    return order
