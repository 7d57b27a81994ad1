"""Ensembles of trees whose structures are kept, and leaf values computed again."""

from skattrib.engine._trees._objectives import (
    LogLoss,
    Means,
    Objective,
    PoissonLoss,
    SoftmaxLoss,
    SquaredLoss,
)
from skattrib.engine._trees._refits import TreeRefits
from skattrib.engine._trees._structure import Ensemble, Monotone, Tree, compacted
from skattrib.engine._trees._weighting import PresentWeighting

__all__ = [
    "Ensemble",
    "LogLoss",
    "Means",
    "Monotone",
    "Objective",
    "PoissonLoss",
    "PresentWeighting",
    "SoftmaxLoss",
    "SquaredLoss",
    "Tree",
    "TreeRefits",
    "compacted",
]
