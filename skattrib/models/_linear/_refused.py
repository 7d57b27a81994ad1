"""Estimators of scikit-learn that look like linear models, and cannot be refitted."""

from __future__ import annotations

from typing import Any

from sklearn import calibration, linear_model, multioutput, svm

from skattrib.exceptions import UnsupportedModelError
from skattrib.models._any import EstimatorModel

#: Why not, and what to use.
REASONS: dict[type[Any], str] = {
    linear_model.SGDClassifier: (
        "at its defaults it stops far from the optimum. Use LogisticRegression for "
        "loss='log_loss' and LinearSVC for a hinge, which are refitted exactly"
    ),
    linear_model.SGDRegressor: (
        "at its defaults it stops far from the optimum. Use Ridge, which is refitted "
        "exactly"
    ),
    svm.SVC: (
        "its hinge has no curvature, so that a Newton step knows nothing of the rows "
        "that become support vectors. Use LinearSVC (squared hinge), after "
        "sklearn.kernel_approximation.Nystroem for a kernel"
    ),
    svm.SVR: (
        "its loss has no curvature. Use KernelRidge, or LinearSVR with "
        "loss='squared_epsilon_insensitive'"
    ),
    linear_model.HuberRegressor: (
        "it fits a scale together with the coefficients. Use "
        "TorchRegressor(loss=torch.nn.HuberLoss()), without hidden layers for a linear "
        "model"
    ),
    linear_model.QuantileRegressor: (
        "its loss has no curvature. Use a TorchRegressor with a smooth loss"
    ),
    calibration.CalibratedClassifierCV: (
        "its calibration is fitted on folds. Attribute the model within, as "
        "DualInfluence(LinearSVC()), or let its margins be the prior: "
        "LinearSurrogateAttributor(calibrated, outcome='margin', "
        "prior=DualInfluence(LinearSVC()))"
    ),
    multioutput.MultiOutputClassifier: (
        "outcomes are of one column of labels. Fit one attributor per column"
    ),
}


class RefusedModel(EstimatorModel):
    """An estimator that is retrained, and said why no more."""

    def lacks(self, user: str, what: str) -> UnsupportedModelError:
        """Return the error that says what to use instead."""
        kinds = [kind for kind in type(self.estimator).__mro__ if kind in REASONS]
        others = " or ".join(self.attributors())
        return UnsupportedModelError(
            f"{user} needs {what}, and {self.name} cannot be refitted exactly: "
            f"{REASONS[kinds[0]]}; or {others}, by retraining."
        )
