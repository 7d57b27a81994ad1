"""Display of predicted against retrained outcomes."""

import numpy as np
from sklearn.utils._param_validation import Interval, RealNotInt, validate_params

from skattrib._verdict import calibration_slope
from skattrib.evaluation import lds_score
from skattrib.plotting._common import (
    axis_length,
    check_drawing,
    check_floats,
    check_retrainable,
    clean,
    make_axes,
    next_colour,
    outcome_name,
)

_GID = "skattrib faithfulness"
_INTERVAL = {
    "confidence": [Interval(RealNotInt, 0, 1, closed="neither")],
    "random_state": ["random_state"],
}
_PLOT = {
    "ax": "no_validation",
    "name": [str, None],
    "scatter_kwargs": [dict, None],
}


class FaithfulnessDisplay:
    """Outcomes of retrained models against predicted outcomes, with the LDS.

    Every point is one query under one weighting of the training units. If there are
    several queries, each is shown minus its mean over the weightings: the LDS is about
    the order of weightings within a query.

    Create it by `from_estimator` or `from_predictions`; all parameters are stored as
    attributes.

    Parameters
    ----------
    outcomes : ndarray of shape (n_weightings, n_queries)
        Outcomes of retrained models.
    predicted : ndarray of shape (n_weightings, n_queries)
        Predicted outcomes.
    lds : Bunch
        Result of `evaluation.lds_score`: `score`, `low` and `high`.
    confidence : float, default=0.95
        Level of the interval from `low` to `high`.
    outcome_name : str, default="outcome"
        What the outcome is, for the axes.
    same_unit : bool, default=True
        Whether predictions are in the unit of the outcome. If not, as for similarities,
        only their order has a meaning, and no lines are drawn.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the points.
    figure_ : matplotlib Figure
        Figure of the axes.
    scatter_ : matplotlib PathCollection
        The points.
    slope_ : float or None
        Calibration slope: change of retrained outcomes when predicted ones change by 1,
        within queries. None without `same_unit`.
    slope_line_ : matplotlib Line2D or None
        Line with that slope.

    See Also
    --------
    skattrib.evaluation.lds_score : Computes the score.
    RemovalCurveDisplay : Shows the effect of removing the most helpful units.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skattrib import DualInfluence, TorchClassifier
    >>> from skattrib.plotting import FaithfulnessDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = TorchClassifier(max_epochs=20, random_state=0)
    >>> dual = DualInfluence(clf, random_state=0).fit(X[::3], y[::3])
    >>> display = FaithfulnessDisplay.from_estimator(dual, X[1::10], y[1::10])
    >>> display.lds.score == dual.score(X[1::10], y[1::10])
    True
    """

    def __init__(
        self,
        *,
        outcomes,
        predicted,
        lds,
        confidence=0.95,
        outcome_name="outcome",
        same_unit=True,
    ):
        self.outcomes = outcomes
        self.predicted = predicted
        self.lds = lds
        self.confidence = confidence
        self.outcome_name = outcome_name
        self.same_unit = same_unit

    @classmethod
    @validate_params({**_INTERVAL, **_PLOT}, prefer_skip_nested_validation=True)
    def from_estimator(
        cls,
        estimator,
        X,
        y,
        *,
        confidence=0.95,
        random_state=0,
        name=None,
        scatter_kwargs=None,
        ax=None,
    ):
        """Retrain as ``estimator.score`` does, and plot.

        The same `n_retrainings` models are trained, or read from the `memory` of the
        estimator.

        Parameters
        ----------
        estimator : attributor
            Fitted attributor.
        X : array-like of shape (n_queries, n_features)
            Queries.
        y : array-like of shape (n_queries,) or (n_queries, n_outputs)
            Their targets.
        confidence : float, default=0.95
            Level of the interval.
        random_state : int, RandomState instance or None, default=0
            Source of the resamples of the interval.
        name : str or None, default=None
            Name for the legend, to distinguish attributors on the same axes.
        scatter_kwargs : dict or None, default=None
            Passed to ``ax.scatter``.
        ax : matplotlib Axes or None, default=None
            Where to plot; None makes a figure.

        Returns
        -------
        FaithfulnessDisplay
            The display, plotted.

        Raises
        ------
        ValueError
            If the estimator is not an attributor, or has too few units to rank.
        TrajectoryError
            If it cannot be retrained.
        """
        check_drawing(f"{cls.__name__}.from_estimator", ax)
        check_retrainable(estimator, y, f"{cls.__name__}.from_estimator")
        X, y, outcome = estimator._check_query(X, y)
        weights, outcomes = estimator._retrain(X, y, estimator.n_retrainings)
        predicted = estimator._predicted(X, y, weights, outcome)
        display = cls(
            outcomes=outcomes,
            predicted=predicted,
            lds=lds_score(
                outcomes, predicted, confidence=confidence, random_state=random_state
            ),
            confidence=confidence,
            outcome_name=outcome_name(estimator),
            same_unit=hasattr(estimator, "predict_outcomes"),
        )

        return display.plot(ax, name=name, scatter_kwargs=scatter_kwargs)

    @classmethod
    @validate_params(
        {
            "outcomes": ["array-like"],
            "predicted": ["array-like"],
            "outcome_name": [str],
            "same_unit": ["boolean"],
            **_INTERVAL,
            **_PLOT,
        },
        prefer_skip_nested_validation=True,
    )
    def from_predictions(
        cls,
        outcomes,
        predicted,
        *,
        confidence=0.95,
        random_state=0,
        outcome_name="outcome",
        same_unit=True,
        name=None,
        scatter_kwargs=None,
        ax=None,
    ):
        """Plot outcomes computed before.

        Parameters
        ----------
        outcomes : array-like of shape (n_weightings, n_queries)
            Outcomes of retrained models, as from `evaluation.retrain_outcomes`.
        predicted : array-like of shape (n_weightings, n_queries)
            Outcomes predicted for the same weightings and queries.
        confidence : float, default=0.95
            Level of the interval.
        random_state : int, RandomState instance or None, default=0
            Source of the resamples of the interval.
        outcome_name : str, default="outcome"
            What the outcome is, for the axes.
        same_unit : bool, default=True
            Whether predictions are in the unit of the outcome. If not, no lines are
            drawn.
        name : str or None, default=None
            Name for the legend, to distinguish attributors on the same axes.
        scatter_kwargs : dict or None, default=None
            Passed to ``ax.scatter``.
        ax : matplotlib Axes or None, default=None
            Where to plot; None makes a figure.

        Returns
        -------
        FaithfulnessDisplay
            The display, plotted.

        Raises
        ------
        ValueError
            If the shapes differ, or nothing can be ranked.
        """
        check_drawing(f"{cls.__name__}.from_predictions", ax)
        shape = "(n_weightings, n_queries); of one query, values[:, None]"
        outcomes = check_floats(outcomes, "outcomes", 2, shape)
        predicted = check_floats(predicted, "predicted", 2, shape)
        lds = lds_score(
            outcomes, predicted, confidence=confidence, random_state=random_state
        )
        display = cls(
            outcomes=outcomes,
            predicted=predicted,
            lds=lds,
            confidence=confidence,
            outcome_name=outcome_name,
            same_unit=same_unit,
        )

        return display.plot(ax, name=name, scatter_kwargs=scatter_kwargs)

    @validate_params(_PLOT, prefer_skip_nested_validation=True)
    def plot(self, ax=None, *, name=None, scatter_kwargs=None):
        """Plot the points, the line of equality and the line with the slope.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Where to plot; None makes a figure.
        name : str or None, default=None
            Name for the legend, to distinguish attributors on the same axes.
        scatter_kwargs : dict or None, default=None
            Passed to ``ax.scatter``.

        Returns
        -------
        FaithfulnessDisplay
            This display.
        """
        ax = make_axes(self, ax, (5.2, 4.8))
        colour = next_colour(ax, _GID)
        several = self.outcomes.shape[1] > 1
        x, y = self.predicted, self.outcomes
        if several:
            x, y = x - x.mean(axis=0), y - y.mean(axis=0)
        style = {
            "color": colour,
            "s": 24 if x.size <= 200 else 8,
            "alpha": float(np.clip(60 / x.size**0.5, 0.15, 0.8)),
            "linewidths": 0,
            "gid": _GID,
            **(scatter_kwargs or {}),
        }

        colour = style["color"]
        label = f"LDS {self.lds.score:.2f} ({self.lds.low:.2f} to {self.lds.high:.2f})"
        label = label if name is None else f"{clean(name)}: {label}"
        self.scatter_ = ax.scatter(x.ravel(), y.ravel(), label=label, **style)
        self.slope_, self.slope_line_ = None, None
        if self.same_unit:
            self._draw_lines(ax, x, y, colour)
        self._name_axes(ax, several)
        self._draw_legend(ax)

        return self

    def _draw_lines(self, ax, x, y, colour):
        from matplotlib.patheffects import withStroke

        style = {}
        self.slope_ = calibration_slope(x, y)
        middle = float(x.mean()), float(y.mean())
        ends = np.array([x.min(), x.max()])
        if x.size > 200:  # a white rim, to be visible among the points
            style["path_effects"] = [withStroke(linewidth=4, foreground="white")]
        (self.slope_line_,) = ax.plot(
            ends,
            middle[1] + self.slope_ * (ends - middle[0]),
            color=colour,
            linewidth=2,
            label=f"slope {self.slope_:.2g}",
            **style,
        )

        if not any(line.get_gid() == _GID + " exact" for line in ax.lines):
            ax.axline(
                middle,
                slope=1,
                color="black",
                linestyle="--",
                linewidth=1,
                label="exact: slope 1",
                gid=_GID + " exact",
            )

    def _name_axes(self, ax, several):
        minus = "\nminus each query's mean" if several else ""
        name = clean(self.outcome_name)
        predicted = f"predicted {name}" if self.same_unit else "summed attributions"
        ax.set_xlabel(f"{predicted}{minus}")
        ax.set_ylabel(f"retrained {name}{minus}")

    def _draw_legend(self, ax):
        """Draw the legend above the points, with extended axis limits."""
        low, high = ax.dataLim.intervaly
        n_lines = len(ax.get_legend_handles_labels()[0])
        height = axis_length(ax, "y")
        share = min(15 * (n_lines + 1.5) / max(height, 1), 0.5)
        pad = 0.04 * (high - low)
        ax.set_ylim(low - pad, high + (high - low) * share / (1 - share) + pad)
        title = f"{self.outcomes.shape[0]} retrainings, {self.confidence:.0%} interval"
        legend = ax.legend(loc="upper left", fontsize=9, title=title)
        legend.get_title().set_fontsize(9)
        for handle in legend.legend_handles:
            handle.set_alpha(1)
