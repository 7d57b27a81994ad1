"""Linear and kernel models of scikit-learn, whose training has a known objective."""

from skattrib.models._linear._classifiers import (
    LinearSVCModel,
    LogisticModel,
    RidgeClassifierModel,
)
from skattrib.models._linear._composed import MultiOutputModel, OneVsRestModel
from skattrib.models._linear._kernels import GaussianProcessModel, KernelRidgeModel
from skattrib.models._linear._protocol import Convex, LinearModel
from skattrib.models._linear._refused import REASONS, RefusedModel
from skattrib.models._linear._regressors import (
    ElasticNetModel,
    GammaModel,
    GeneralizedModel,
    LinearSVRModel,
    PoissonModel,
    RidgeModel,
)

__all__ = [
    "REASONS",
    "Convex",
    "ElasticNetModel",
    "GammaModel",
    "GaussianProcessModel",
    "GeneralizedModel",
    "KernelRidgeModel",
    "LinearModel",
    "LinearSVCModel",
    "LinearSVRModel",
    "LogisticModel",
    "MultiOutputModel",
    "OneVsRestModel",
    "PoissonModel",
    "RefusedModel",
    "RidgeClassifierModel",
    "RidgeModel",
]
