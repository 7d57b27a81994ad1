"""Displays: pictures of attributions and of how far they are to be trusted."""

from skattrib.plotting._attribution import AttributionDisplay
from skattrib.plotting._calibration import CalibrationDisplay
from skattrib.plotting._faithfulness import FaithfulnessDisplay
from skattrib.plotting._leverage import LeverageDisplay
from skattrib.plotting._removal import RemovalCurveDisplay
from skattrib.plotting._tasks import TaskInteractionDisplay, TaskWeightDisplay
from skattrib.plotting._trajectory import TrajectoryDisplay

__all__ = [
    "AttributionDisplay",
    "CalibrationDisplay",
    "FaithfulnessDisplay",
    "LeverageDisplay",
    "RemovalCurveDisplay",
    "TaskInteractionDisplay",
    "TaskWeightDisplay",
    "TrajectoryDisplay",
]
