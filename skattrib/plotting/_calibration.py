"""Display of retrained outcomes in the intervals of predicted ones."""

from numbers import Integral

import numpy as np
from sklearn.utils._param_validation import Interval, RealNotInt, validate_params

from skattrib._posterior._gaussian import half_width
from skattrib._verdict import calibration_slope
from skattrib.plotting._common import (
    ORANGE,
    check_drawing,
    check_floats,
    check_retrainable,
    clean,
    make_axes,
    next_colour,
    outcome_name,
)

_GID = "skattrib calibration"
_LEVEL = {"level": [Interval(RealNotInt, 0, 1, closed="neither")]}
_PLOT = {
    "ax": "no_validation",
    "name": [str, None],
    "n_points": [Interval(Integral, 1, None, closed="left")],
}


class CalibrationDisplay:
    """Retrained outcomes against predicted ones, each in its interval or not.

    Every point is one query under one weighting of the training units; its bar is the
    interval around the prediction, and it is orange if it is outside. If there are
    several queries, each is shown minus the mean of its predictions.

    Create it by `from_estimator` or `from_predictions`; all parameters are stored as
    attributes.

    Parameters
    ----------
    outcomes : ndarray of shape (n_weightings, n_queries)
        Outcomes of retrained models.
    predicted : ndarray of shape (n_weightings, n_queries)
        Predicted outcomes.
    std : ndarray of shape (n_weightings, n_queries)
        Their standard deviations.
    level : float, default=0.95
        Share of the outcomes that should be in the intervals.
    outcome_name : str, default="outcome"
        What the outcome is, for the axes.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the points.
    figure_ : matplotlib Figure
        Figure of the axes.
    bars_ : matplotlib LineCollection
        The intervals drawn.
    scatter_ : matplotlib PathCollection
        The points drawn.
    coverage_ : float
        Share of all outcomes that are in their intervals.
    slope_ : float
        Change of retrained outcomes when predicted ones change by 1, within queries.

    See Also
    --------
    FaithfulnessDisplay : Shows how well predictions rank.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skattrib import AdamWInfluence, TorchClassifier
    >>> from skattrib.plotting import CalibrationDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = TorchClassifier(max_epochs=10, random_state=0)
    >>> influence = AdamWInfluence(clf, n_trajectories=4, random_state=0)
    >>> influence = influence.fit(X[::3], y[::3])
    >>> display = CalibrationDisplay.from_estimator(influence, X[1::30], y[1::30])
    >>> bool(0.8 < display.coverage_ <= 1)
    True
    """

    def __init__(self, *, outcomes, predicted, std, level=0.95, outcome_name="outcome"):
        self.outcomes = outcomes
        self.predicted = predicted
        self.std = std
        self.level = level
        self.outcome_name = outcome_name

    @classmethod
    @validate_params({**_LEVEL, **_PLOT}, prefer_skip_nested_validation=True)
    def from_estimator(
        cls, estimator, X, y, *, level=0.95, name=None, n_points=200, ax=None
    ):
        """Retrain as ``estimator.score`` does, and plot.

        Parameters
        ----------
        estimator : attributor
            Fitted attributor with retrained halves (``n_halves``).
        X : array-like of shape (n_queries, n_features)
            Queries.
        y : array-like of shape (n_queries,) or (n_queries, n_outputs)
            Their targets.
        level : float, default=0.95
            Share of the outcomes that should be in the intervals.
        name : str or None, default=None
            Name for the legend.
        n_points : int, default=200
            Points drawn at most, evenly chosen from all.
        ax : matplotlib Axes or None, default=None
            Where to plot; None makes a figure.

        Returns
        -------
        CalibrationDisplay
            The display, plotted.

        Raises
        ------
        ValueError
            If the estimator is not an attributor, has no retrained halves or too few
            units, or outcomes are not finite.
        TrajectoryError
            If it cannot be retrained.
        """
        check_drawing(f"{cls.__name__}.from_estimator", ax)
        check_retrainable(estimator, y, f"{cls.__name__}.from_estimator")
        estimator._check_has_halves(f"{cls.__name__}.from_estimator")
        X, y, outcome = estimator._check_query(X, y)
        weights, outcomes = estimator._retrain(X, y, estimator.n_retrainings)
        predicted, std = estimator._predicted_with_std(X, y, weights, outcome)
        arrays = {"outcomes": outcomes, "predicted": predicted, "std": std}
        for key, array in arrays.items():  # what is not finite is in no interval
            check_floats(array, key, 2, "(n_weightings, n_queries)")
        display = cls(**arrays, level=level, outcome_name=outcome_name(estimator))
        return display.plot(ax, name=name, n_points=n_points)

    @classmethod
    @validate_params(
        {
            "outcomes": ["array-like"],
            "predicted": ["array-like"],
            "std": ["array-like"],
            "outcome_name": [str],
            **_LEVEL,
            **_PLOT,
        },
        prefer_skip_nested_validation=True,
    )
    def from_predictions(
        cls,
        outcomes,
        predicted,
        std,
        *,
        level=0.95,
        outcome_name="outcome",
        name=None,
        n_points=200,
        ax=None,
    ):
        """Plot outcomes computed before.

        Parameters
        ----------
        outcomes : array-like of shape (n_weightings, n_queries)
            Outcomes of retrained models, as from `evaluation.retrain_outcomes`.
        predicted : array-like of shape (n_weightings, n_queries)
            Outcomes predicted for the same weightings and queries.
        std : array-like of shape (n_weightings, n_queries)
            Their standard deviations, as from ``predict_outcomes(return_std=True)``.
        level : float, default=0.95
            Share of the outcomes that should be in the intervals.
        outcome_name : str, default="outcome"
            What the outcome is, for the axes.
        name : str or None, default=None
            Name for the legend.
        n_points : int, default=200
            Points drawn at most, evenly chosen from all.
        ax : matplotlib Axes or None, default=None
            Where to plot; None makes a figure.

        Returns
        -------
        CalibrationDisplay
            The display, plotted.

        Raises
        ------
        ValueError
            If the shapes differ, a number is not finite, or a deviation is negative.
        """
        check_drawing(f"{cls.__name__}.from_predictions", ax)
        shape = "(n_weightings, n_queries); of one query, values[:, None]"
        arrays = {"outcomes": outcomes, "predicted": predicted, "std": std}
        arrays = {k: check_floats(v, k, 2, shape) for k, v in arrays.items()}
        if len({array.shape for array in arrays.values()}) > 1:
            shapes = {name: array.shape for name, array in arrays.items()}
            raise ValueError(f"Shapes differ: {shapes}. Pass one value for each.")
        if (arrays["std"] < 0).any():
            raise ValueError("std has negative numbers: pass standard deviations.")
        display = cls(**arrays, level=level, outcome_name=outcome_name)
        return display.plot(ax, name=name, n_points=n_points)

    @validate_params(_PLOT, prefer_skip_nested_validation=True)
    def plot(self, ax=None, *, name=None, n_points=200):
        """Plot points, intervals, and the line where predictions are right.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Where to plot; None makes a figure.
        name : str or None, default=None
            Name for the legend.
        n_points : int, default=200
            Points drawn at most, evenly chosen from all.

        Returns
        -------
        CalibrationDisplay
            This display.
        """
        ax = make_axes(self, ax, (5.2, 4.8))
        colour = next_colour(ax, _GID)
        several = self.outcomes.shape[1] > 1
        middle = self.predicted.mean(axis=0) if several else 0.0
        x, y = self.predicted - middle, self.outcomes - middle
        half = half_width(self.std, self.level)
        inside = np.abs(y - x) <= half
        self.coverage_ = float(inside.mean())
        self.slope_ = calibration_slope(x, y)

        drawn = np.unique(np.linspace(0, x.size - 1, n_points).astype(int))
        x, y, half, inside = (values.ravel()[drawn] for values in (x, y, half, inside))
        self.bars_ = ax.vlines(x, x - half, x + half, color=colour, alpha=0.3, lw=1)
        label = (
            f"{self.coverage_:.0%} in {self.level:.0%} intervals, slope "
            f"{self.slope_:.2f}"
        )
        self.scatter_ = ax.scatter(
            x,
            y,
            s=12,
            c=np.where(inside, colour, ORANGE),
            label=label if name is None else f"{clean(name)}: {label}",
            gid=_GID,
            zorder=3,
        )
        ax.axline((0, 0) if several else (x[0], x[0]), slope=1, color="black", lw=1)
        minus = "\nminus each query's mean prediction" if several else ""
        ax.set_xlabel(f"predicted {clean(self.outcome_name)}{minus}")
        ax.set_ylabel(f"retrained {clean(self.outcome_name)}{minus}")
        ax.legend(loc="upper left", fontsize=9)
        return self
