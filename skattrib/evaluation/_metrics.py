"""Scores of attributions against retrained outcomes and relevance labels."""

import warnings
from collections.abc import Callable
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.utils import Bunch
from sklearn.utils._param_validation import (
    Hidden,
    Interval,
    RealNotInt,
    StrOptions,
    validate_params,
)

from skattrib._docstrings import fill_in
from skattrib._indexes import check_order
from skattrib._validation import check_array, find_fault
from skattrib.evaluation._ranks import rank_agreement

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

_RESAMPLING_CONSTRAINTS = {
    "confidence": [Interval(RealNotInt, 0, 1, closed="neither"), None],
    "n_resamples": [Interval(Integral, 2, None, closed="left")],
    "random_state": ["random_state"],
}

# What the docstrings of scores with an interval have in common.
_DOCS = {
    "resampling": """
    n_resamples : int, default=1000
        Number of bootstrap resamples, at least 2. Unused without `confidence`.
    random_state : int, RandomState instance or None, default=None
        Source of the resamples. Unused without `confidence`.
    """,
    "score": """
    score : float or Bunch
        A float in [-1, 1]; 1 is perfect, 0 is chance. With `confidence`, a
        :class:`~sklearn.utils.Bunch` of floats `score`, `low`, `high` and
        `standard_error`.
    """,
}


def _check_floats(values: ArrayLike, name: str, **options: Any) -> FloatArray:
    array: FloatArray = check_array(
        values, dtype=np.float64, input_name=name, **options
    )
    return array


@validate_params(
    {
        "outcomes": ["array-like"],
        "predicted": ["array-like"],
        **_RESAMPLING_CONSTRAINTS,
    },
    prefer_skip_nested_validation=True,
)
@fill_in(_DOCS)
def lds_score(
    outcomes: ArrayLike,
    predicted: ArrayLike,
    *,
    confidence: float | None = None,
    n_resamples: int = 1000,
    random_state: int | np.random.RandomState | None = None,
) -> float | Bunch:
    """Compute the linear datamodeling score: how well predictions rank outcomes.

    The mean over queries of the Spearman rank correlation, over weightings, between
    the outcomes of retrained models and the outcomes predicted for them.

    Parameters
    ----------
    outcomes : array-like of shape (n_weightings, n_queries)
        Outcomes of retrained models, as from `retrain_outcomes`. At least 2
        weightings.
    predicted : array-like of shape (n_weightings, n_queries)
        Predicted outcomes for the same weightings and queries, as from
        `predict_outcomes`, or `weightings @ attributions.T`. Only their order within
        a query matters. A query with constant predictions scores 0.
    confidence : float, default=None
        If given, the level in (0, 1) of a bootstrap interval, such as 0.95.
    %(resampling)s

    Returns
    -------
    %(score)s

    Raises
    ------
    ValueError
        If the shapes differ, a value is not finite, or no query has an outcome that
        varies.

    Warns
    -----
    ConstantOutcomeWarning
        If some queries have the same outcome under every weighting. They are left
        out of the mean.

    See Also
    --------
    skattrib.evaluation.loo_score : The score for leaving out single units.
    skattrib.evaluation.make_weightings : Draw the weightings.

    Notes
    -----
    The bootstrap resamples queries and weightings, so the interval is about new
    queries *and* new weightings; `low` and `high` are percentiles, shifted so that the
    resamples have the score as their median: they have fewer different weightings,
    whose ranks agree less. It tends to be too wide, as noise of a single query and
    weighting is resampled twice. It does not include variation of the training seed:
    average outcomes over several. With a single query only the weightings vary.

    Examples
    --------
    >>> import numpy as np
    >>> from skattrib.evaluation import lds_score
    >>> outcomes = np.array([[0.1, 3.0], [0.2, 1.0], [0.4, 2.0]])
    >>> lds_score(outcomes, 10 * outcomes)
    1.0
    >>> round(lds_score(outcomes, [[1, 3], [2, 1], [3, 1]]), 3)
    0.933
    """
    outcomes = _check_floats(outcomes, "outcomes", ensure_min_samples=2)
    predicted = _check_floats(predicted, "predicted")
    if outcomes.shape != predicted.shape:
        raise ValueError(
            f"outcomes has shape {outcomes.shape} and predicted {predicted.shape}: "
            "pass both as (n_weightings, n_queries)."
        )

    return rank_agreement(
        outcomes,
        predicted,
        confidence=confidence,
        n_resamples=n_resamples,
        random_state=random_state,
    )


@validate_params(
    {
        "outcomes": ["array-like"],
        "attributions": ["array-like"],
        "full_outcomes": ["array-like", None, Hidden(StrOptions({"deprecated"}))],
        **_RESAMPLING_CONSTRAINTS,
    },
    prefer_skip_nested_validation=True,
)
@fill_in(_DOCS)
def loo_score(
    outcomes: ArrayLike,
    attributions: ArrayLike,
    *,
    full_outcomes: ArrayLike | str | None = "deprecated",
    confidence: float | None = None,
    n_resamples: int = 1000,
    random_state: int | np.random.RandomState | None = None,
) -> float | Bunch:
    """Compute the leave-one-out score: how well attributions rank effects of units.

    The mean over queries of the Spearman rank correlation, over units, between the
    effect of the unit, F(all units) - F(all but the unit), and its attribution.

    Parameters
    ----------
    outcomes : array-like of shape (n_units_tested, n_queries)
        Row k: outcomes retrained without the k-th unit tested, as from
        `retrain_outcomes` with `make_weightings(kind="loo")`. At least 2 units.
    attributions : array-like of shape (n_queries, n_units_tested)
        Attribution of each unit tested, in the same order: the columns of
        `attribute` that belong to them. Positive = the outcome is higher with the
        unit.
    full_outcomes : array-like of shape (n_queries,), default="deprecated"
        Outcomes with all units, which are not needed.

        .. deprecated:: 0.1
           Will be removed: they shift all effects of a query equally, which does not
           change ranks.
    confidence : float, default=None
        If given, the level in (0, 1) of a bootstrap interval over units and queries.
    %(resampling)s

    Returns
    -------
    %(score)s

    Raises
    ------
    ValueError
        If the shapes do not fit, a value is not finite, or no query has an effect
        that varies.

    Warns
    -----
    ConstantOutcomeWarning
        If some queries have the same outcome whichever unit is left out. They are
        left out of the mean.
    FutureWarning
        If `full_outcomes` is passed, which is deprecated.

    See Also
    --------
    skattrib.evaluation.lds_score : The score for random subsets; explains the interval.

    Examples
    --------
    Without unit 0 the outcome falls most, so its effect is the largest:

    >>> from skattrib.evaluation import loo_score
    >>> loo_score(outcomes=[[0.2], [0.5], [0.9]], attributions=[[3.0, 2.0, -1.0]])
    1.0
    """
    outcomes = _check_floats(outcomes, "outcomes", ensure_min_samples=2)
    attributions = _check_floats(attributions, "attributions")
    if attributions.shape != outcomes.shape[::-1]:
        raise ValueError(
            f"outcomes has shape {outcomes.shape} and attributions "
            f"{attributions.shape}: pass (n_units_tested, n_queries) and "
            "(n_queries, n_units_tested)."
        )

    if not isinstance(full_outcomes, str):
        warnings.warn(
            "full_outcomes is deprecated and will be removed: it shifts all effects of "
            "a query equally, which does not change ranks. Leave it out.",
            FutureWarning,
            stacklevel=3,
        )

    return rank_agreement(
        -outcomes,
        attributions.T,
        confidence=confidence,
        n_resamples=n_resamples,
        random_state=random_state,
    )


def _parse_cutoff(metric: str, n_rows: int) -> int:
    name, _, cutoff = metric.partition("@")
    if name not in ("recall", "precision") or not cutoff.isdecimal():
        raise ValueError(
            f"metric={metric!r} is unknown: pass 'roc_auc', 'average_precision', "
            "'recall@k' or 'precision@k' with a number for k, such as 'recall@10'."
        )
    if not 1 <= int(cutoff) <= n_rows:
        raise ValueError(
            f"metric={metric!r} looks at {cutoff} of {n_rows} rows: pass a number "
            f"from 1 to {n_rows}."
        )
    return int(cutoff)


def _expected_hits(scores: FloatArray, relevance: BoolArray, k: int) -> float:
    """Return relevant rows among the k best, expected over orders of tied scores."""
    threshold = np.sort(scores)[-k]
    above, tied = scores > threshold, scores == threshold
    share = (k - above.sum()) / tied.sum()
    return float(relevance[above].sum() + share * relevance[tied].sum())


def _check_boolean(values: ArrayLike, name: str) -> BoolArray:
    if fault := find_fault(values, name, numeric=False):
        raise ValueError(fault)
    array = np.asarray(values)
    if not np.isin(array, (0, 1)).all():
        raise ValueError(f"{name} holds values other than 0 and 1: pass booleans.")
    return array.astype(bool)


@validate_params(
    {"scores": ["array-like"], "relevance": ["array-like"], "metric": [str]},
    prefer_skip_nested_validation=True,
)
def retrieval_score(
    scores: ArrayLike, relevance: ArrayLike, *, metric: str = "roc_auc"
) -> float:
    """Measure how well scores find the relevant training rows, averaged over queries.

    Parameters
    ----------
    scores : array-like of shape (n_queries, n_rows)
        Attribution or similarity of each row for each query; higher = more relevant.
    relevance : array-like of bool of shape (n_queries, n_rows) or (n_rows,)
        Which rows are relevant; 1-D if the same for every query.
    metric : str, default="roc_auc"
        "roc_auc", "average_precision", "recall@k" (share of the relevant rows among
        the k best) or "precision@k" (share of relevant ones among the k best), with a
        number for k such as "recall@10". In the last two, rows with tied scores
        count as if put in random order.

    Returns
    -------
    score : float
        In [0, 1], higher is better.

    Raises
    ------
    ValueError
        If the shapes do not fit, `metric` is unknown, or no query has both relevant
        and irrelevant rows.

    Warns
    -----
    UndefinedMetricWarning
        If some queries lack relevant or irrelevant rows. They are left out of the
        mean.

    See Also
    --------
    skattrib.evaluation.lds_score : A score that needs no labels but retraining.

    Examples
    --------
    >>> from skattrib.evaluation import retrieval_score
    >>> scores = [[0.9, 0.1, 0.8], [0.2, 0.3, 0.1]]
    >>> relevance = [[True, False, True], [True, False, False]]
    >>> retrieval_score(scores, relevance)
    0.75
    >>> retrieval_score(scores, relevance, metric="recall@1")
    0.25
    """
    scores = _check_floats(scores, "scores")
    relevant = _check_boolean(relevance, "relevance")
    if relevant.shape not in (scores.shape, scores.shape[1:]):
        raise ValueError(
            f"relevance has shape {relevant.shape} and scores {scores.shape}: pass "
            "relevance as (n_queries, n_rows) or (n_rows,)."
        )

    relevant = np.broadcast_to(relevant, scores.shape)
    measure: Callable[[BoolArray, FloatArray], float]
    if metric == "roc_auc":
        measure = roc_auc_score
    elif metric == "average_precision":
        measure = average_precision_score
    else:
        k = _parse_cutoff(metric, scores.shape[1])
        recall = metric.startswith("recall")

        def measure(truth: BoolArray, row: FloatArray) -> float:
            return _expected_hits(row, truth, k) / (truth.sum() if recall else k)

    usable = relevant.any(axis=1) & ~relevant.all(axis=1)
    if not usable.any():
        raise ValueError(
            "relevance marks all rows or none for every query, so there is nothing to "
            "find: pass queries with both relevant and irrelevant rows."
        )

    if not usable.all():
        warnings.warn(
            f"{usable.size - usable.sum()} of {usable.size} queries have only relevant "
            "or only irrelevant rows and are left out of the mean.",
            UndefinedMetricWarning,
            stacklevel=3,
        )

    return float(
        np.mean([measure(*pair) for pair in zip(relevant[usable], scores[usable])])
    )


@validate_params(
    {"scores": ["array-like"], "is_mislabeled": ["array-like"]},
    prefer_skip_nested_validation=True,
)
def mislabel_score(scores: ArrayLike, is_mislabeled: ArrayLike) -> float:
    """Compute the area under the ROC curve of finding mislabelled training rows.

    Parameters
    ----------
    scores : array-like of shape (n_rows,)
        Suspicion of each row; higher = more suspicious. Attributions have the opposite
        sign: pass `-attributions.mean(axis=0)`.
    is_mislabeled : array-like of bool of shape (n_rows,)
        Which labels are wrong.

    Returns
    -------
    score : float
        In [0, 1]; 0.5 is chance.

    Raises
    ------
    ValueError
        If the lengths differ, or the rows are all mislabelled or none is.

    See Also
    --------
    skattrib.evaluation.retrieval_score : Scores of rows for many queries.

    Examples
    --------
    >>> from skattrib.evaluation import mislabel_score
    >>> mislabel_score([0.1, 0.9, 0.3, 0.2], [False, True, False, False])
    1.0
    """
    check_order(scores, is_mislabeled, names=("scores", "is_mislabeled"))
    scores = _check_floats(scores, "scores", ensure_2d=False)
    mislabeled = _check_boolean(is_mislabeled, "is_mislabeled")
    if scores.ndim != 1 or mislabeled.shape != scores.shape:
        raise ValueError(
            f"is_mislabeled has shape {mislabeled.shape} and scores "
            f"{scores.shape}: pass one value per row in both."
        )

    if mislabeled.all() or not mislabeled.any():
        raise ValueError(
            "is_mislabeled marks all rows or none, so that there is nothing to find: "
            "pass rows of both kinds."
        )
    return float(roc_auc_score(mislabeled, scores))
