"""Intervals for what leaving out one unit changes, from some really left out."""

from numbers import Real
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Bunch, check_array
from sklearn.utils._param_validation import Interval, validate_params

FloatArray = NDArray[np.float64]

# Deviation of a query's slope around that of all, as a share of it.
_SLOPE_SPREAD = 0.3
_FEWEST = 8


@validate_params(
    {
        "attributions": ["array-like"],
        "left_out": ["array-like"],
        "outcomes": ["array-like"],
        "full_outcomes": ["array-like", None],
        "level": [Interval(Real, 0, 1, closed="neither")],
    },
    prefer_skip_nested_validation=True,
)
def loo_intervals(
    attributions: ArrayLike,
    left_out: ArrayLike,
    outcomes: ArrayLike,
    *,
    full_outcomes: ArrayLike | None = None,
    level: float = 0.95,
) -> Bunch:
    """Compute intervals for leaving out one unit, from units really left out.

    Parameters
    ----------
    attributions : array-like of shape (n_queries, n_units)
        Attributions of leave-one-out effects: of `DualInfluence`, or of
        `AdamWInfluence` with ``inclusion=1``.
    left_out : array-like of int of shape (n_left_out,)
        Positions of the units that were left out in turn, at least 8, drawn at random:
        64 are enough. Times the queries they are at least ``level / (1 - level)``, 19
        for 0.95.
    outcomes : array-like of shape (n_left_out, n_queries)
        Outcomes of the models retrained without each, as from `retrain_outcomes` with
        `make_weightings(kind="loo")`.
    full_outcomes : array-like of shape (n_queries,) or None, default=None
        Outcomes with all units. None: effects and their intervals are around those of
        the average unit, and so are the attributions that are returned.
    level : float, default=0.95
        Chance that the effect of a unit, really left out, is in its interval.

    Returns
    -------
    Bunch
        With these entries.

        - attributions: ndarray of shape (n_queries, n_units), of the right size.
        - lower, upper: ndarrays of that shape, the ends of the intervals.
        - slope: ndarray of shape (n_queries,), true effects per attribution: that of
          each query, drawn to that of all.

    Raises
    ------
    ValueError
        If shapes do not fit, units are too few, for this level too, repeated or
        unknown, or a number is not finite.

    See Also
    --------
    retrain_outcomes : Trains models without units.
    loo_score : Scores the order of the effects.

    Notes
    -----
    The intervals are conformal over queries and units left out: so many of their
    residuals, in units of the root mean square of the others within a query, are at
    most as large as the half-width. A single retraining is the target, its chaos
    included. Where training is chaotic the intervals are several times as wide as
    effects differ: the effect of a single unit is then hardly there to be known, while
    its mean effect where half of the others are there (``n_halves``) is.

    Examples
    --------
    >>> import numpy as np
    >>> from skattrib.evaluation import loo_intervals
    >>> rng = np.random.RandomState(0)
    >>> attributions = rng.randn(4, 200)
    >>> effects = 2 * attributions + 0.5 * rng.randn(4, 200)
    >>> found = loo_intervals(attributions, np.arange(64), -effects[:, :64].T)
    >>> found.slope.round(1)
    array([2., 2., 2., 2.])
    >>> inside = (found.lower < effects) & (effects < found.upper)
    >>> bool(0.9 < inside[:, 64:].mean() < 0.98)
    True
    """
    a, units, effects = _checked(attributions, left_out, outcomes, full_outcomes)
    x, n_left = a[:, units], len(units)
    if full_outcomes is None:
        x = x - x.mean(axis=1, keepdims=True)
        a = a - a.mean(axis=1, keepdims=True)
    tiny = np.finfo(float).tiny
    squares = np.square(x).sum(axis=1)
    # of a query whose effects are large no more than of another, of one without none
    moved = effects.any(axis=1)
    weights = moved / np.maximum(np.square(effects).mean(axis=1), tiny)
    products = (x * effects).sum(axis=1)
    pooled = weights @ products / max(weights @ squares, tiny)
    own = products / np.maximum(squares, tiny)
    left = np.square(effects - own[:, None] * x).sum(axis=1)
    noise = np.full_like(squares, np.inf)  # of a slope that nothing tells
    np.divide(left / (n_left - 1), squares, out=noise, where=squares > 0)
    prior = (_SLOPE_SPREAD * pooled) ** 2
    share = prior / np.maximum(prior + noise, tiny)
    slope = share * own + (1 - share) * pooled
    residuals = effects - slope[:, None] * x
    total = np.square(residuals).sum(axis=1, keepdims=True)
    sizes = np.sqrt(total / (n_left - 1))
    # each as if it had not been known: without its part in the slope and in the size
    leverage = share[:, None] * np.square(x) / np.maximum(squares, tiny)[:, None]
    others = np.sqrt(np.maximum(total - np.square(residuals), tiny) / (n_left - 2))
    scores = np.abs(residuals) / (1 - leverage).clip(0.1) / others
    # those of a query without effects, which are 0, say nothing of others
    scores = scores[moved].ravel() if moved.any() else np.zeros(1)
    if moved.any():
        _check_level(level, len(scores))
    # one more, as the next one is not among them
    rank = min(np.ceil(level * (len(scores) + 1)) / len(scores), 1.0)
    half = np.quantile(scores, rank, method="higher") * sizes
    centre = slope[:, None] * a
    return Bunch(
        attributions=centre, lower=centre - half, upper=centre + half, slope=slope
    )


def _check_level(level: float, n_scores: int) -> None:
    """Raise if the largest of so many residuals is not large enough for a level."""
    if np.ceil(level * (n_scores + 1)) > n_scores:
        needed = int(np.ceil(round(level / (1 - level), 6)))
        possible = np.floor(1e3 * n_scores / (n_scores + 1)) / 1e3
        raise ValueError(
            f"level={level:g} needs {needed} effects or more, of units left out on "
            f"queries that they move, and there are {n_scores}: leave out more units, "
            f"pass more queries, or level={possible:g}."
        )


def _checked(
    attributions: Any, left_out: Any, outcomes: Any, full_outcomes: Any
) -> tuple[FloatArray, NDArray[np.intp], FloatArray]:
    """Return attributions, units (c,) and their effects (q, c), or raise."""
    a = check_array(attributions, dtype=np.float64, input_name="attributions")
    F = check_array(outcomes, dtype=np.float64, input_name="outcomes")
    units = np.asarray(left_out)
    if units.ndim != 1 or units.dtype.kind not in "iu":
        raise ValueError(
            "left_out must be positions of units, int of shape (n_left_out,), got "
            f"{units.dtype} of shape {units.shape}. Of a mask: np.flatnonzero(mask)."
        )
    if F.shape != (len(units), len(a)):
        raise ValueError(
            f"outcomes has shape {F.shape}, and {len(units)} units left out and "
            f"{len(a)} queries need {(len(units), len(a))}."
        )
    if len(units) < _FEWEST or len(np.unique(units)) < len(units):
        raise ValueError(
            f"left_out has {len(np.unique(units))} different units of {len(units)}: "
            f"leave out at least {_FEWEST}, each once."
        )
    if units.min() < 0 or units.max() >= a.shape[1]:
        raise ValueError(
            f"left_out holds {int(units.max())} and {int(units.min())}: positions are "
            f"from 0 to {a.shape[1] - 1}."
        )
    if full_outcomes is None:
        effects = F.mean(axis=0) - F
    else:
        full = check_array(
            full_outcomes, dtype=np.float64, ensure_2d=False, input_name="full_outcomes"
        )
        if full.shape != (len(a),):
            raise ValueError(
                f"full_outcomes has shape {full.shape}, and {len(a)} queries need "
                f"{(len(a),)}."
            )
        effects = full - F
    rounding = 16 * np.finfo(float).eps * np.abs(F).max(axis=0)
    effects[np.abs(effects) <= rounding] = 0.0
    return a, cast(NDArray[np.intp], units), effects.T
