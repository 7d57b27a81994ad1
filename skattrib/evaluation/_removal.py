"""Removal curve: does the outcome fall when the best units are removed?"""

from collections.abc import Callable
from numbers import Integral

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Bunch, check_random_state
from sklearn.utils._param_validation import Interval, validate_params

from skattrib._validation import check_array, column_or_1d

FloatArray = NDArray[np.float64]


def removal_counts(fractions: ArrayLike, n_units: int) -> NDArray[np.intp]:
    """Return the distinct numbers of units to remove, increasing."""
    shares = column_or_1d(fractions, dtype=np.float64, input_name="fractions")
    if not ((shares > 0) & (shares < 1)).all():
        raise ValueError(
            f"fractions={fractions!r}: pass shares of the units to remove between 0 "
            "and 1, both excluded."
        )

    counts = np.unique(np.rint(shares * n_units).astype(np.intp))
    counts = counts[(counts > 0) & (counts < n_units)]
    if not counts.size:
        raise ValueError(
            f"fractions={fractions!r} of {n_units} units round to none or all of them: "
            f"pass fractions such as {1 / n_units:.2g}, or more units."
        )
    return counts


def _removal_weightings(
    orders: NDArray[np.intp], counts: NDArray[np.intp]
) -> FloatArray:
    """Remove the first `counts[c]` units of each order, one row for each pair."""
    place = np.argsort(orders, axis=1)
    kept = place[:, None, :] >= counts[None, :, None]
    return kept.reshape(-1, orders.shape[1]).astype(np.float64)


@validate_params(
    {
        "outcome_of": [callable],
        "attributions": ["array-like"],
        "fractions": ["array-like"],
        "n_random": [Interval(Integral, 2, None, closed="left")],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=True,
)
def removal_curve(
    outcome_of: Callable[[FloatArray], ArrayLike],
    attributions: ArrayLike,
    *,
    fractions: ArrayLike = (0.1, 0.2, 0.3, 0.4, 0.5),
    n_random: int = 5,
    random_state: int | np.random.RandomState | None = None,
) -> Bunch:
    """Compute the outcome after removing the units with the highest attributions.

    If the attributions are right, removing the most helpful units lowers the outcome
    faster than removing as many at random, and removing the most harmful ones lowers
    it more slowly.

    Parameters
    ----------
    outcome_of : callable
        Function that retrains: called once with 0/1 weights (n_weightings, n_units), it
        returns outcomes of shape (n_weightings,) or (n_weightings, n_queries), which
        are averaged over queries. Typically a closure over `retrain_outcomes`.
    attributions : array-like of shape (n_units,)
        One attribution per unit, such as the mean over queries. Positive = the
        outcome is higher with the unit. Ties are put in random order.
    fractions : array-like of float, default=(0.1, 0.2, 0.3, 0.4, 0.5)
        Shares of the units to remove, in (0, 1). They are rounded to whole units;
        duplicates, none and all of the units are dropped.
    n_random : int, default=5
        Number of random removal orders to compare with, at least 2.
    random_state : int, RandomState instance or None, default=None
        Source of the random orders.

    Returns
    -------
    curve : Bunch
        With the arrays of shape (n_fractions,), outcomes in the outcome's unit:

        - `fractions`: actual shares of the units removed, increasing;
        - `outcome`: outcome without the top units;
        - `outcome_bottom`: outcome without the bottom units;
        - `random_mean`, `random_std`: mean and standard deviation of the outcome over
          the random orders;

        and the floats

        - `full_outcome`: outcome with all units;
        - `area`: mean of `random_mean - outcome` over removed shares from 0 to the
          largest, by the trapezoidal rule. Positive = removing the top units lowers
          the outcome more than removing random ones.

    Raises
    ------
    ValueError
        If every fraction rounds to none or all of the units, or `outcome_of` returns
        a wrong shape or values that are not finite.

    See Also
    --------
    skattrib.evaluation.lds_score : Scores the whole ranking, not only its ends.

    Examples
    --------
    >>> import numpy as np
    >>> from skattrib.evaluation import removal_curve
    >>> effects = np.array([4.0, 3.0, 2.0, 1.0])
    >>> curve = removal_curve(
    ...     lambda weights: weights @ effects, effects, fractions=[0.25, 0.5],
    ...     random_state=0,
    ... )
    >>> curve.full_outcome, curve.outcome
    (10.0, array([6., 3.]))
    >>> curve.area > 0
    True
    """
    helpful: FloatArray = check_array(
        attributions, dtype=np.float64, ensure_2d=False, input_name="attributions"
    )
    if helpful.ndim != 1:
        raise ValueError(
            f"attributions has shape {helpful.shape}: pass one value per unit, such "
            "as attributions.mean(axis=0)."
        )

    n_units = helpful.size
    counts = removal_counts(fractions, n_units)
    rng = check_random_state(random_state)
    # Sorting a shuffled array stably breaks ties at random.
    shuffled = rng.permutation(n_units)
    top = shuffled[np.argsort(-helpful[shuffled], kind="stable")]
    orders = [top, top[::-1], *(rng.permutation(n_units) for _ in range(n_random))]
    weightings = np.vstack(
        [np.ones((1, n_units)), _removal_weightings(np.array(orders), counts)]
    )

    outcomes = check_array(
        outcome_of(weightings), dtype=np.float64, ensure_2d=False, input_name="outcomes"
    )
    if outcomes.ndim > 2 or outcomes.shape[0] != weightings.shape[0]:
        raise ValueError(
            f"outcome_of returned shape {outcomes.shape} for {weightings.shape[0]} "
            "weightings: return (n_weightings,) or (n_weightings, n_queries)."
        )

    outcomes = outcomes.reshape(weightings.shape[0], -1).mean(axis=1)
    curves = outcomes[1:].reshape(n_random + 2, counts.size)
    removed = counts / n_units
    random_mean = curves[2:].mean(axis=0)
    gap = np.append(0.0, random_mean - curves[0])

    return Bunch(
        fractions=removed,
        outcome=curves[0],
        outcome_bottom=curves[1],
        random_mean=random_mean,
        random_std=curves[2:].std(axis=0, ddof=1),
        full_outcome=float(outcomes[0]),
        area=float(np.trapezoid(gap, np.append(0.0, removed)) / removed[-1]),
    )
