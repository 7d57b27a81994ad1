"""Outcomes of retrained models, and scores that compare attributions with them."""

from skattrib.engine._losses import SetOutcome
from skattrib.evaluation._intervals import loo_intervals
from skattrib.evaluation._metrics import (
    lds_score,
    loo_score,
    mislabel_score,
    retrieval_score,
)
from skattrib.evaluation._quanda import QuandaExplainer
from skattrib.evaluation._removal import removal_curve
from skattrib.evaluation._scorers import lds_scorer
from skattrib.evaluation._sets import (
    group_gap,
    soft_auroc,
    soft_calibration_error,
    worst_group,
)
from skattrib.evaluation._truth import retrain_outcomes
from skattrib.evaluation._weightings import make_weightings

__all__ = [
    "QuandaExplainer",
    "SetOutcome",
    "group_gap",
    "lds_score",
    "lds_scorer",
    "loo_intervals",
    "loo_score",
    "make_weightings",
    "mislabel_score",
    "removal_curve",
    "retrain_outcomes",
    "retrieval_score",
    "soft_auroc",
    "soft_calibration_error",
    "worst_group",
]
