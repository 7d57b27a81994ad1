"""Linear models with a known convex objective: what they are for other row weights."""

from skattrib.engine._convex._kernel_ridge import KernelObjective, KernelRefits
from skattrib.engine._convex._objective import Objective
from skattrib.engine._convex._plan import ConvexPlan, plan_convex
from skattrib.engine._convex._problem import ConvexRefits
from skattrib.engine._convex._rows import rows_of

__all__ = [
    "ConvexPlan",
    "ConvexRefits",
    "KernelObjective",
    "KernelRefits",
    "Objective",
    "plan_convex",
    "rows_of",
]
