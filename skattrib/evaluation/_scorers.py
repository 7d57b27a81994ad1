"""Scorers for model selection."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike


def lds_scorer(estimator: Any, X: ArrayLike, y: ArrayLike) -> float:
    """Score an attributor, at any position in a pipeline, by its LDS.

    Parameters
    ----------
    estimator : estimator
        A fitted attributor, a selector with a fitted ``attributor_``, or a
        `sklearn.pipeline.Pipeline` that holds one; later steps are ignored.
    X : array-like of shape (n_queries, n_features)
        Query rows, as the whole pipeline takes them.
    y : array-like of shape (n_queries,)
        Their targets.

    Returns
    -------
    float
        Linear datamodeling score in [-1, 1]: the mean rank correlation between
        predicted and retrained outcomes.

    Raises
    ------
    ValueError
        If there is no attributor in `estimator`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from skattrib import DualInfluence, TorchClassifier
    >>> from skattrib.evaluation import lds_scorer
    >>> X, y = load_iris(return_X_y=True)
    >>> pipeline = make_pipeline(
    ...     StandardScaler(),
    ...     DualInfluence(TorchClassifier(max_epochs=20), random_state=0))
    >>> bool(lds_scorer(pipeline.fit(X[::3], y[::3]), X[1::30], y[1::30]) > 0)
    True
    """
    attributor = _attributor(estimator)
    if attributor is not None:
        return float(attributor.score(X, y))

    if hasattr(estimator, "steps"):  # a pipeline, of imbalanced-learn too
        steps = [step for _, step in estimator.steps]
        for i, step in enumerate(steps):
            attributor = _attributor(step)
            if attributor is not None:
                # a resampler has no transform: it is for training rows only
                for before in steps[:i]:
                    X = before.transform(X) if hasattr(before, "transform") else X
                return float(attributor.score(X, y))

    raise ValueError(
        f"{type(estimator).__name__} has no attributor: lds_scorer needs one, with "
        "the methods attribute and score."
    )


def _attributor(estimator: Any) -> Any | None:
    """Return the object that attributes: the estimator or its ``attributor_``."""
    for candidate in (estimator, getattr(estimator, "attributor_", None)):
        if hasattr(candidate, "attribute") and hasattr(candidate, "score"):
            return candidate
    return None
