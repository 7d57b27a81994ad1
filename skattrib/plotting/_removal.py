"""Display of the outcome after removing the best units."""

from collections.abc import Mapping
from functools import partial
from numbers import Integral

import numpy as np
from sklearn.utils._param_validation import Interval, validate_params

from skattrib.evaluation import removal_curve
from skattrib.evaluation._removal import removal_counts
from skattrib.plotting._common import (
    BLUE,
    GREY,
    ORANGE,
    PALETTE,
    check_drawing,
    check_floats,
    check_retrainable,
    clean,
    make_axes,
    outcome_name,
)

_GID = "skattrib removal"
_ARRAYS = ("fractions", "outcome", "outcome_bottom", "random_mean", "random_std")
_PLOT = {
    "ax": "no_validation",
    "name": [str, None],
    "show_bottom": ["boolean"],
    "show_random": ["boolean"],
}


class RemovalCurveDisplay:
    """Outcome after removing the most helpful, most harmful and random units.

    Create it by `from_estimator`, or by `from_predictions` from the result of
    `evaluation.removal_curve`; all parameters are stored as attributes.

    Parameters
    ----------
    fractions : ndarray of shape (n_fractions,)
        Shares of the units removed, increasing.
    outcome : ndarray of shape (n_fractions,)
        Outcome without the units with the highest attributions.
    outcome_bottom : ndarray of shape (n_fractions,)
        Outcome without the units with the lowest attributions.
    random_mean, random_std : ndarray of shape (n_fractions,)
        Mean and standard deviation of the outcome without as many random units.
    full_outcome : float
        Outcome with all units.
    area : float or None, default=None
        Mean of `random_mean` minus `outcome`.
    outcome_name : str, default="outcome"
        What the outcome is, for the axis.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the curves.
    figure_ : matplotlib Figure
        Figure of the axes.
    line_ : matplotlib Line2D
        Curve of the most helpful units.
    line_bottom_, line_random_ : matplotlib Line2D or None
        Curves of the most harmful units, and of random units.
    band_ : matplotlib PolyCollection or None
        One standard deviation (SD) around random removal.

    See Also
    --------
    skattrib.evaluation.removal_curve : Computes the curve.
    FaithfulnessDisplay : Shows the whole ranking, not only its ends.

    Examples
    --------
    >>> import numpy as np
    >>> from skattrib.evaluation import removal_curve
    >>> from skattrib.plotting import RemovalCurveDisplay
    >>> effects = np.array([4.0, 3.0, 2.0, 1.0])
    >>> curve = removal_curve(
    ...     lambda weights: weights @ effects, effects, fractions=[0.25, 0.5],
    ...     random_state=0)
    >>> display = RemovalCurveDisplay.from_predictions(curve)
    >>> display.line_.get_ydata()
    array([10.,  6.,  3.])
    """

    def __init__(
        self,
        *,
        fractions,
        outcome,
        outcome_bottom,
        random_mean,
        random_std,
        full_outcome,
        area=None,
        outcome_name="outcome",
    ):
        self.fractions = fractions
        self.outcome = outcome
        self.outcome_bottom = outcome_bottom
        self.random_mean = random_mean
        self.random_std = random_std
        self.full_outcome = full_outcome
        self.area = area
        self.outcome_name = outcome_name

    @classmethod
    @validate_params(
        {
            "fractions": ["array-like"],
            "n_random": [Interval(Integral, 2, None, closed="left")],
            "random_state": ["random_state"],
            **_PLOT,
        },
        prefer_skip_nested_validation=True,
    )
    def from_estimator(
        cls,
        estimator,
        X,
        y,
        *,
        fractions=(0.1, 0.2, 0.3, 0.4, 0.5),
        n_random=5,
        random_state=None,
        name=None,
        show_bottom=True,
        show_random=True,
        ax=None,
    ):
        """Rank units by their mean attribution, retrain without them, and plot.

        Parameters
        ----------
        estimator : attributor
            Fitted attributor; its `memory` caches the retrained outcomes.
        X : array-like of shape (n_queries, n_features)
            Queries, over which attributions and outcomes are averaged.
        y : array-like of shape (n_queries,) or (n_queries, n_outputs)
            Their targets.
        fractions : array-like of float, default=(0.1, 0.2, 0.3, 0.4, 0.5)
            Shares of the units to remove.
        n_random : int, default=5
            Random orders of removal to compare with.
        random_state : int, RandomState instance or None, default=None
            Source of these orders; None uses the estimator's seed.
        name : str or None, default=None
            Name for the legend, to distinguish attributors on the same axes.
        show_bottom : bool, default=True
            Draw the removal of the most harmful units.
        show_random : bool, default=True
            Draw the removal of random units.
        ax : matplotlib Axes or None, default=None
            Where to plot; None makes a figure.

        Returns
        -------
        RemovalCurveDisplay
            The display, plotted.

        Raises
        ------
        ValueError
            If the estimator is not an attributor, or fractions leave none or all
            units.
        TrajectoryError
            If it cannot be retrained.
        """
        check_drawing(f"{cls.__name__}.from_estimator", ax)
        check_retrainable(estimator, y, f"{cls.__name__}.from_estimator")
        removal_counts(fractions, estimator.n_units_)
        X, y, outcome = estimator._check_query(X, y)
        if random_state is None:
            random_state = estimator._score_seed
        curve = removal_curve(
            partial(_outcomes, estimator, X, y),
            estimator._attributed(X, y, outcome)[0].mean(axis=0),
            fractions=fractions,
            n_random=n_random,
            random_state=random_state,
        )

        display = cls(**curve, outcome_name=f"mean {outcome_name(estimator)}")
        return display.plot(
            ax, name=name, show_bottom=show_bottom, show_random=show_random
        )

    @classmethod
    @validate_params(
        {"curve": [Mapping], "outcome_name": [str], **_PLOT},
        prefer_skip_nested_validation=True,
    )
    def from_predictions(
        cls,
        curve,
        *,
        outcome_name="outcome",
        name=None,
        show_bottom=True,
        show_random=True,
        ax=None,
    ):
        """Plot a curve computed before.

        Parameters
        ----------
        curve : Bunch
            Result of `evaluation.removal_curve`.
        outcome_name : str, default="outcome"
            What the outcome is, for the axis.
        name : str or None, default=None
            Name for the legend, to distinguish attributors on the same axes.
        show_bottom : bool, default=True
            Draw the removal of the most harmful units.
        show_random : bool, default=True
            Draw the removal of random units.
        ax : matplotlib Axes or None, default=None
            Where to plot; None makes a figure.

        Returns
        -------
        RemovalCurveDisplay
            The display, plotted.

        Raises
        ------
        ValueError
            If something is missing from the curve.
        """
        check_drawing(f"{cls.__name__}.from_predictions", ax)
        missing = sorted({*_ARRAYS, "full_outcome"} - set(curve))
        if missing:
            raise ValueError(
                f"curve lacks {missing}: pass the result of evaluation.removal_curve."
            )

        arrays = {k: check_floats(curve[k], k, 1, "(n_fractions,)") for k in _ARRAYS}
        sizes = {k: len(array) for k, array in arrays.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"curve has arrays of different lengths: {sizes}.")

        display = cls(
            **arrays,
            full_outcome=float(curve["full_outcome"]),
            area=curve.get("area"),
            outcome_name=outcome_name,
        )

        return display.plot(
            ax, name=name, show_bottom=show_bottom, show_random=show_random
        )

    @validate_params(_PLOT, prefer_skip_nested_validation=True)
    def plot(self, ax=None, *, name=None, show_bottom=True, show_random=True):
        """Plot the curves, starting with no unit removed.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Where to plot; None makes a figure.
        name : str or None, default=None
            Name for the legend, to distinguish attributors on the same axes.
        show_bottom : bool, default=True
            Draw the removal of the most harmful units.
        show_random : bool, default=True
            Draw the removal of random units.

        Returns
        -------
        RemovalCurveDisplay
            This display.
        """
        ax = make_axes(self, ax, (6.0, 4.2))
        from matplotlib.ticker import FuncFormatter

        drawn = sum(line.get_gid() == _GID for line in ax.lines)
        prefix = "" if name is None else f"{clean(name)}: "
        label = f"{prefix}most helpful first"
        if name is not None and not show_bottom:
            label = clean(name)
        # a single attributor has two colours, for helpful and harmful units
        colour = PALETTE[drawn % len(PALETTE)]
        other = ORANGE if colour == BLUE and name is None else colour
        removed = np.append(0.0, self.fractions)

        def draw(values, label, **style):
            values = np.append(self.full_outcome, values)
            return ax.plot(removed, values, label=label, markersize=4, **style)[0]

        self.line_ = draw(
            self.outcome,
            label,
            color=colour,
            marker="o",
            gid=_GID,
        )
        self.line_bottom_ = self.line_random_ = self.band_ = None
        if show_random:
            self._draw_random(ax, draw, removed)

        if show_bottom:
            self.line_bottom_ = draw(
                self.outcome_bottom,
                f"{prefix}most harmful first",
                color=other,
                linestyle="--",
                marker="s",
            )

        ax.xaxis.set_major_formatter(FuncFormatter(_as_percentage))
        ax.set(xlabel="units removed", ylabel=clean(self.outcome_name))
        ax.legend(fontsize=9)
        return self

    def _draw_random(self, ax, draw, removed):
        self.line_random_ = draw(
            self.random_mean,
            "random order ± SD",
            color=GREY,
            linestyle=":",
            linewidth=2,
        )
        middle = np.append(self.full_outcome, self.random_mean)
        spread = np.append(0.0, self.random_std)

        self.band_ = ax.fill_between(
            removed,
            middle - spread,
            middle + spread,
            color=GREY,
            alpha=0.2,
            linewidth=0,
        )


def _as_percentage(share, _):
    return f"{100 * share:.3g}%"


def _outcomes(attributor, X, y, weights):
    """Return the outcomes of queries after training with these weights of units."""
    return attributor._truth(weights[:, attributor._unit_of_row], X, y)
