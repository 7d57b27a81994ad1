"""A complete attributor: inner products of gradients at the trained weights."""

from numbers import Real

import torch
from sklearn.base import _fit_context
from sklearn.utils._param_validation import Interval

from skattrib._validation import as_tensor, memory_cap
from skattrib.base import BaseAttributor
from skattrib.engine._functional import FunctionalModule, chunks
from skattrib.engine._gradients import row_gradients
from skattrib.models._network import unfrozen


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

    _parameter_constraints: dict = {
        **BaseAttributor._parameter_constraints,
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
    }

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

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y, tasks=None, **fit_params):
        """Train the model and keep the gradients of the rows' losses."""
        return self._fit(X, y, tasks, fit_params)

    def _check_estimator(self, estimator):
        unfrozen(estimator, self)  # a network of ours, frozen or not; else it raises

    def _fit_attributor(self):
        loss = self.estimator_.loss_function_.values
        gradients = self._gradients(self.X_train_, self.y_train_, loss)
        weights = as_tensor(self._row_weights, gradients)
        share = self.learning_rate / weights.sum()
        # without a row, the mean is over the others: only ratios of weights matter
        self._steps = -share * (gradients - weights @ gradients / weights.sum())
        self.estimand_ = (
            f"outcome after one step of {self.learning_rate:g} down the mean loss of "
            "all rows, minus the same without this unit"
        )

    def _gradients(self, X, y, function):
        """Return the gradients (n, P) of function(outputs, targets) of each row."""
        module = self.estimator_.module_
        model, like = FunctionalModule(module), next(module.parameters())
        numbers = model.n_params * self.estimator_.n_outputs_
        size, found = int(memory_cap() / (8 * like.element_size() * numbers)), []
        for part in chunks(len(X), size):
            rows = as_tensor(X[part], like)
            targets = self.estimator_._targets(y[part], rows)
            outputs, gradients = row_gradients(model, rows)
            slopes = torch.func.grad(lambda f, t=targets: function(f, t).sum())(outputs)
            jacobian = gradients.jacobian().view(*outputs.shape, -1)
            found.append(torch.einsum("nc,ncp->np", slopes, jacobian))
        return torch.cat(found)

    def _attribute(self, X, y, outcome):
        function = self.estimator_.loss_function_.outcome(outcome)
        queries = self._gradients(X, y, function)
        return self._by_unit((queries @ self._steps.T).cpu().numpy()), None

    def _predict_outcomes(self, X, y, weights, outcome):
        function = self.estimator_.loss_function_.outcome(outcome)
        outputs = self.estimator_._raw_outputs(X)
        present = function(outputs, self.estimator_._targets(y, outputs))
        lost = (1 - weights) @ self._attribute(X, y, outcome)[0].T
        return present.cpu().numpy() - lost
