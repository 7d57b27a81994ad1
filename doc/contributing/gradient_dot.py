"""A complete attributor: inner products of gradients at the trained weights."""

from numbers import Real

import torch
from sklearn.utils import check_scalar

from skattrib.extension import BaseAttributor, Differentiable, as_model


class GradientDot(BaseAttributor):
    """Follow one step of gradient descent: ⟨∇ outcome, −∇ loss⟩.

    A step on the mean loss of all rows, less the same step without a unit: what
    TracIn (arXiv:2002.08484) adds up over checkpoints, at the last one alone.

    Parameters
    ----------
    estimator : TorchClassifier, TorchRegressor or None, default=None
        Model to train, or a fitted one in `sklearn.frozen.FrozenEstimator`.
    learning_rate : float, default=0.1
        Of that step; every attribution is proportional to it.
    outcome, n_retrainings, retrain_size, memory, n_jobs, random_state, verbose
        As in `skattrib.DualInfluence`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skattrib import TorchClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> network = TorchClassifier(max_epochs=20, random_state=0)
    >>> A = GradientDot(network, random_state=0).fit(X, y).attribute(X[:3], y[:3])
    >>> A.shape, bool(abs(A.sum(axis=1)).max() < 1e-6)
    ((3, 150), True)
    """

    def __init__(
        self,
        estimator=None,
        *,
        learning_rate=0.1,
        outcome="auto",
        n_retrainings=32,
        retrain_size=0.5,
        memory=None,
        n_jobs=None,
        random_state=None,
        verbose=0,
    ):
        self.estimator = estimator
        self.learning_rate = learning_rate
        self.outcome = outcome
        self.n_retrainings = n_retrainings
        self.retrain_size = retrain_size
        self.memory = memory
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X, y, tasks=None, **fit_params):
        """Train the model and keep the gradients of the rows' losses."""
        positive = {"min_val": 0, "include_boundaries": "neither"}
        check_scalar(self.learning_rate, "learning_rate", Real, **positive)
        return self._fit(X, y, tasks, fit_params)

    def _check_estimator(self, estimator):
        model = as_model(estimator)
        if not isinstance(model, Differentiable):
            raise model.lacks("GradientDot", "gradients")

    def _fit_attributor(self):
        model = as_model(self._model)
        gradients = model.loss_gradients(self._features, self.y_train_)
        weights = torch.tensor(self._row_weights).to(gradients)
        share = self.learning_rate / weights.sum()
        # without a row, the mean is over the others: only ratios of weights matter
        self._steps = -share * (gradients - weights @ gradients / weights.sum())
        self.estimand_ = (
            f"outcome after one step of {self.learning_rate:g} down the mean loss of "
            "all rows, minus the same without this unit"
        )

    def _attribute(self, X, y, outcome):
        queries = as_model(self._model).outcome_gradients(X, y, outcome)
        return self._by_unit((queries @ self._steps.T).cpu().numpy()), None

    def _predict_outcomes(self, X, y, weights, outcome):
        present = as_model(self._model).outcomes(X, y, outcome).cpu().numpy()
        return present - (1 - weights) @ self._attribute(X, y, outcome)[0].T
