"""Display of residuals against leverage, with the contours of Cook's distance."""

from numbers import Integral

import numpy as np
from sklearn.utils._param_validation import Interval, validate_params
from sklearn.utils.validation import check_is_fitted

from skattrib.plotting._common import (
    BLUE,
    GREY,
    check_drawing,
    clean,
    make_axes,
    shorten,
)

#: Cook's distances at which a row is usually looked at.
_COOK = (0.5, 1.0)
_COLUMNS = {"hat_diag", "standard_resid", "cooks_d"}
_NAME_LENGTH = 20
_PLOT = {
    "ax": "no_validation",
    "n_named": [Interval(Integral, 0, None, closed="left")],
}


class LeverageDisplay:
    """Studentised residuals against leverage, with contours of Cook's distance.

    Create it by `from_estimator`, or by `from_predictions` from the result of
    `DualInfluence.influence_measures`; all parameters are stored as attributes.

    Parameters
    ----------
    measures : DataFrame of n_units rows
        With the columns "hat_diag", "standard_resid" and "cooks_d"; its index has the
        names of the rows.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the points.
    figure_ : matplotlib Figure
        Figure of the axes.
    points_ : matplotlib PathCollection
        A point for each row.
    contours_ : list of matplotlib Line2D
        Where Cook's distance is 0.5 and 1, above and below 0.
    named_ : list
        Names of the rows that are named: those with the largest Cook's distance.

    See Also
    --------
    skattrib.DualInfluence.influence_measures : Computes the measures.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import LinearRegression
    >>> from skattrib import DualInfluence
    >>> from skattrib.plotting import LeverageDisplay
    >>> X, y = load_diabetes(return_X_y=True, as_frame=True)
    >>> dual = DualInfluence(LinearRegression(), random_state=0).fit(X, y)
    >>> LeverageDisplay.from_estimator(dual, n_named=2).named_
    [382, 123]
    """

    def __init__(self, *, measures):
        self.measures = measures

    @classmethod
    @validate_params(_PLOT, prefer_skip_nested_validation=True)
    def from_estimator(cls, estimator, *, n_named=3, ax=None):
        """Compute the measures, and plot.

        Parameters
        ----------
        estimator : DualInfluence
            Fitted to a regression with `influence_measures`.
        n_named : int, default=3
            Rows to name, those with the largest Cook's distance.
        ax : matplotlib Axes or None, default=None
            Where to plot; None makes a figure.

        Returns
        -------
        LeverageDisplay
            The display, plotted.

        Raises
        ------
        ValueError
            If the estimator has no such measures.
        """
        check_drawing(f"{cls.__name__}.from_estimator", ax)
        if not hasattr(estimator, "influence_measures"):
            raise ValueError(
                f"estimator must be a DualInfluence of a regression, got "
                f"{type(estimator).__name__}: only that has influence_measures."
            )
        check_is_fitted(estimator, "n_units_")
        return cls(measures=estimator.influence_measures()).plot(ax, n_named=n_named)

    @classmethod
    @validate_params(
        {"measures": "no_validation", **_PLOT}, prefer_skip_nested_validation=True
    )
    def from_predictions(cls, measures, *, n_named=3, ax=None):
        """Plot measures computed before.

        Parameters
        ----------
        measures : DataFrame
            Result of `DualInfluence.influence_measures`, or statsmodels'
            ``summary_frame()``.
        n_named : int, default=3
            Rows to name, those with the largest Cook's distance.
        ax : matplotlib Axes or None, default=None
            Where to plot; None makes a figure.

        Returns
        -------
        LeverageDisplay
            The display, plotted.

        Raises
        ------
        ValueError
            If columns are missing.
        """
        check_drawing(f"{cls.__name__}.from_predictions", ax)
        missing = sorted(_COLUMNS - set(getattr(measures, "columns", ())))
        if missing:
            raise ValueError(
                f"measures lack the columns {missing}: pass the result of "
                "influence_measures()."
            )
        return cls(measures=measures).plot(ax, n_named=n_named)

    @validate_params(_PLOT, prefer_skip_nested_validation=True)
    def plot(self, ax=None, *, n_named=3):
        """Plot the rows and the contours.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Where to plot; None makes a figure.
        n_named : int, default=3
            Rows to name, those with the largest Cook's distance.

        Returns
        -------
        LeverageDisplay
            This display.
        """
        ax = make_axes(self, ax, (6.0, 4.2))
        leverage = self.measures["hat_diag"].to_numpy()
        residual = self.measures["standard_resid"].to_numpy()
        cook = self.measures["cooks_d"].to_numpy()
        self.points_ = ax.scatter(leverage, residual, s=14, color=BLUE, alpha=0.6)
        ax.axhline(0, color="black", linewidth=0.8)

        far = np.argsort(-np.nan_to_num(cook, nan=-1), kind="stable")[:n_named]
        self.named_ = self.measures.index[far].tolist()
        for row in far:
            name = shorten(clean(str(self.measures.index[row])), _NAME_LENGTH)
            ax.annotate(
                name,
                (leverage[row], residual[row]),
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=8,
            )

        self.contours_ = self._draw_contours(ax, leverage)
        ax.set(xlabel="leverage", ylabel="studentised residual")
        return self

    def _draw_contours(self, ax, leverage):
        """Draw where Cook's distance has certain values, inside the limits."""
        limits = ax.get_xlim(), ax.get_ylim()
        n_params = leverage.sum()
        places = np.linspace(1e-3, min(limits[0][1], 1 - 1e-9), 200)
        contours = []
        for distance in _COOK:
            height = np.sqrt(distance * n_params * (1 - places) / places)
            for sign in (1, -1):
                label = f"Cook's distance {distance:g}" if sign == 1 else None
                style = "--" if distance == _COOK[0] else ":"
                contours += ax.plot(
                    places, sign * height, style, color=GREY, linewidth=1, label=label
                )
        ax.set(xlim=limits[0], ylim=limits[1])
        ax.legend(fontsize=8, loc="best")
        return contours
