"""What attributors ask of a model: three small protocols, and one error.

A family of models is a class that takes an estimator, fitted or not, and implements the
protocols that it can. `as_model` finds the family of an estimator; no other code of the
package asks what class it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from sklearn.base import clone, is_classifier
from sklearn.utils import get_tags

from skattrib._validation import (
    as_numbers,
    as_tensor,
    blamed,
    first_labels,
    label_positions,
    memory_cap,
    sorted_labels,
)
from skattrib.engine._functional import FunctionalModule, chunks
from skattrib.engine._gradients import row_gradients
from skattrib.engine._losses import (
    CrossEntropy,
    Loss,
    OutcomeFunction,
    SetMeasure,
    SquaredError,
)
from skattrib.engine._losses._generalized import DecisionValue
from skattrib.engine._row_weights import RowWeighting
from skattrib.engine._set_gradients import set_gradient
from skattrib.exceptions import UnsupportedModelError
from skattrib.models._decisions import (
    check_classifier,
    check_not_in_pairs,
    decision_values,
    has_decisions_alone,
)

#: Attributors, and the protocols of which each needs one, in the order of what to try
#: first.
_NEEDS = {
    "DualInfluence": {"Differentiable", "Convex"},
    "AdamWInfluence": {"Recorded"},
    "TreeInfluence": {"TreeModel"},
    "KernelSurrogateAttributor": {"Retrainable"},
    "LinearSurrogateAttributor": {"Retrainable"},
    "RISEValuator": {"Differentiable"},
}

_NETWORKS = "TorchClassifier, TorchRegressor, MLPClassifier, MLPRegressor"
#: What takes more than the two networks of the package.
_TAKEN = {
    "DualInfluence": (
        f"a network ({_NETWORKS}), or a linear model, kernel ridge or Gaussian process "
        "of scikit-learn that can be refitted exactly"
    ),
    "AdamWInfluence": f"a network ({_NETWORKS})",
    "RISEValuator": f"a network ({_NETWORKS})",
    "plan": "a model that can be attributed",
    "make_attributor": "a model that can be attributed",
    "Retraining": "a model that can be trained",
}


class Model:
    """An estimator, and what attributors need to know of it.

    Parameters
    ----------
    estimator : estimator
        Fitted or not, without what only wraps it.
    frozen : bool, default=False
        Whether it was given as one that must not be trained.
    """

    def __init__(self, estimator: Any, *, frozen: bool = False) -> None:
        self.estimator, self.frozen = estimator, frozen

    @property
    def name(self) -> str:
        """Name of the estimator's class."""
        return type(self.estimator).__name__

    def recipe(self) -> Any:
        """Return what to train on other rows: what a fit chose by itself is kept.

        Returns
        -------
        estimator
            Here the estimator.
        """
        return self.estimator

    def trained_weights(self, weights: Any) -> Any:
        """Return the weights of the rows of a fit; 0 for those it held out.

        Parameters
        ----------
        weights : ndarray of shape (n,)
            That the fit was given.

        Returns
        -------
        ndarray of shape (n,)
            Here the same.
        """
        return weights

    @property
    def takes_texts(self) -> bool:
        """Whether rows are texts."""
        if not hasattr(self.estimator, "__sklearn_tags__"):
            return False
        tags = get_tags(self.estimator).input_tags
        return bool(tags.string and not tags.two_d_array)

    @property
    def takes_tables(self) -> bool:
        """Whether a data frame is passed on unchanged."""
        return True

    @property
    def takes_sparse(self) -> bool:
        """Whether sparse rows are passed on as they are."""
        return True

    @property
    def takes_any_shape(self) -> bool:
        """Whether rows may have more than one axis, and whole numbers stay them."""
        return False

    @property
    def loss(self) -> Loss:
        """Loss whose outcomes the model has."""
        return CrossEntropy() if is_classifier(self.estimator) else SquaredError()

    def future_loss(self, X: Any, y: Any) -> Loss:
        """Return `loss` as it will be once the estimator is fitted to these rows.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
            Training rows.
        y : ndarray of shape (n,) or (n, n_outputs)
            Their targets.

        Returns
        -------
        Loss
            Here the one that it has.
        """
        return self.loss

    def alike(self, X: Any, y: Any) -> Any:
        """Return an untrained network of the sizes that it will have, to plan by.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
            Training rows.
        y : ndarray of shape (n,) or (n, n_outputs)
            Their targets.

        Returns
        -------
        TorchClassifier, TorchRegressor or None
            Here None: they are not known.
        """
        return None

    #: Attributors to begin with, the first that works.
    first_attributors: tuple[str, ...] = ("KernelSurrogateAttributor", "DualInfluence")
    #: Whether many are trained at once, as one stack.
    stacks = False
    #: Whether it repeats one recorded run, whatever the seed.
    one_run = False

    @property
    def has_run(self) -> bool:
        """Whether there is a record of its training, or will be once it is fitted."""
        return False

    @property
    def can_retrain(self) -> bool:
        """Whether it can be trained again."""
        return isinstance(self, Retrainable)

    @property
    def starts_still(self) -> bool:
        """Whether parameters begin where others have no gradient, as adapters do."""
        return False

    @property
    def trajectory(self) -> Any:
        """Record of its training; None where there is none."""
        return None

    def differentiable(self, user: Any) -> Any:
        """Return the model, whose gradients are needed.

        Parameters
        ----------
        user : attributor
            Who needs it.

        Returns
        -------
        Differentiable
            The model itself.

        Raises
        ------
        UnsupportedModelError
            If it is none.
        """
        if not isinstance(self, Differentiable):
            raise self.lacks(type(user).__name__, "gradients")
        return self

    def network(self, user: Any) -> Any:
        """Return the network of skattrib that it is.

        Parameters
        ----------
        user : attributor
            Who needs it.

        Returns
        -------
        TorchClassifier or TorchRegressor
            The estimator itself.

        Raises
        ------
        UnsupportedModelError
            If it is none.
        """
        name = type(user).__name__
        raise self.lacks(name, "gradients")

    def check_run(self, user: Any) -> None:
        """Raise unless its training is, or can become, a run to differentiate.

        Parameters
        ----------
        user : attributor
            Who needs it.
        """
        self.network(user)

    def check_trees(self, user: Any) -> None:
        """Raise unless it is an ensemble of trees whose leaves can be refitted.

        Parameters
        ----------
        user : attributor
            Who needs it.

        Raises
        ------
        UnsupportedModelError
            If it is none.
        """
        name = type(user).__name__
        raise UnsupportedModelError(
            f"{name} needs an ensemble of trees as its estimator, got {self.name}: "
            "take HistGradientBoosting, a forest or a decision tree of scikit-learn, "
            "or a classifier or regressor of LightGBM or XGBoost. "
            f"{self._instead_of(name)}."
        )

    def attributors(self) -> list[str]:
        """Return the names of the attributors of the package that work for it.

        Returns
        -------
        list of str
            Names of classes, in the order of what to try first.
        """
        kinds = protocols(self)
        if type(self).network is Model.network:  # runs are repeated by networks alone
            kinds -= {"Recorded"}
        return [name for name, needed in _NEEDS.items() if needed & kinds]

    def _instead_of(self, user: str) -> str:
        """Return a sentence on the other attributors that work for it."""
        others = [name for name in self.attributors() if name != user]
        if isinstance(self, Retrainable):
            try:
                self.check()
            except ValueError as error:
                return f"No attributor can use it as it is: {str(error).rstrip('.')}"
        return f"Use {' or '.join(others)}" if others else "No attributor can use it"

    def lacks(self, user: str, what: str) -> UnsupportedModelError:
        """Return the error that says what it lacks, and who does without.

        Parameters
        ----------
        user : str
            Name of the attributor.
        what : str
            What that needs.

        Returns
        -------
        UnsupportedModelError
            To be raised.
        """
        taken = _TAKEN.get(user, "a TorchClassifier or TorchRegressor")
        return UnsupportedModelError(
            f"estimator must be {taken}, got {self.name}: "
            f"{user} needs {what}. {self._instead_of(user)}; or wrap a network "
            "of torch by TorchClassifier(module=...), and a trained one by "
            "TorchClassifier.from_module or from_skorch, inside a FrozenEstimator."
        )


class Retrainable(Model, ABC):
    """A model that can be trained again for other weights of its rows.

    `retrain` is all that a family owes; the targets and outputs of classifiers and
    regressors of scikit-learn are known.

    Parameters
    ----------
    estimator : estimator
        Fitted or not, without what only wraps it.
    frozen : bool, default=False
        Whether it was given as one that must not be trained.

    See Also
    --------
    register_model : Says which estimators are of a family.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.neighbors import KNeighborsClassifier
    >>> from skattrib.extension import Retrainable
    >>> class Neighbors(Retrainable):
    ...     def retrain(self, X, y, weights, seed):
    ...         return self.clone().fit(X[weights > 0], y[weights > 0])
    >>> X, y = load_iris(return_X_y=True)
    >>> model = Neighbors(KNeighborsClassifier())
    >>> fitted = model.retrain(X, y, weights=(y != 1).astype(float), seed=0)
    >>> fitted.classes_
    array([0, 2])
    >>> model.of(fitted).outputs(X[:3]).shape
    torch.Size([3, 2])
    """

    #: All classes, if the estimator may have been fitted to some of them.
    classes: Any = None
    #: How it is retrained and measured: part of the key of results that are kept.
    way = "deleted"
    _by_decisions: bool | None = None
    #: Number of all training rows, where `retrain` is given those that are left.
    n_all: int | None = None

    @abstractmethod
    def retrain(self, X: Any, y: Any, weights: Any, seed: int) -> Any:
        """Train on weighted rows.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
            Training rows.
        y : ndarray of shape (n,) or (n, n_outputs)
            Their targets.
        weights : ndarray of shape (n,)
            0 is absent.
        seed : int
            For what the training draws.

        Returns
        -------
        estimator
            A fitted clone; the model's own estimator stays as it is.
        """

    def check(self) -> None:
        """Raise unless outcomes of retrained models can be computed.

        Raises
        ------
        ValueError
            If it is a classifier without probabilities and decision values.
        """
        check_classifier(self.estimator)

    def check_targets(self, y: Any) -> None:
        """Raise on training targets whose outcomes it lacks, before any training.

        Parameters
        ----------
        y : ndarray of shape (n,) or (n, n_outputs)
            Targets of the training rows.

        Raises
        ------
        ValueError
            If decision values are of pairs of more than two classes, or of several
            labels a row.
        """
        if self.by_decisions and y.ndim > 1 and y.shape[1] > 1:
            raise ValueError(
                f"y has {y.shape[1]} labels a row, and {self.name} has no "
                "predict_proba: the margin of a query needs one label. Attribute each "
                "column of y by an estimator of its own."
            )
        if self.by_decisions and y.ndim == 1:
            check_not_in_pairs(self.estimator, len(sorted_labels(y, "y")[0]))

    def check_weights(self, weights: Any) -> None:
        """Raise on weights of rows that `retrain` cannot take, before any training.

        Parameters
        ----------
        weights : ndarray of shape (n_weightings, n)
            Weights of the rows.

        Raises
        ------
        ValueError
            If there are such; here never.
        """

    def of(self, fitted: Any) -> Retrainable:
        """Return another estimator as a model like this.

        Parameters
        ----------
        fitted : estimator
            Such as `retrain` returns.

        Returns
        -------
        Retrainable
            Of the same family, and with the same classes.
        """
        other = type(self)(fitted)
        other.classes = self.classes
        # a search may choose one that has probabilities as well
        other._by_decisions = self.by_decisions
        return other

    @property
    def restores_classes(self) -> bool:
        """Whether outputs have a column for classes that a subset lacked."""
        return type(self).outputs is Retrainable.outputs and not self.by_decisions

    @property
    def by_decisions(self) -> bool:
        """Whether outputs are decision values, for want of probabilities."""
        if self._by_decisions is None:
            known = type(self).outputs is Retrainable.outputs
            return known and has_decisions_alone(self.estimator)
        return self._by_decisions

    @property
    def loss(self) -> Loss:
        """Loss whose outcomes the model has."""
        return DecisionValue() if self.by_decisions else super().loss

    def clone(self) -> Any:
        """Return an unfitted copy of the estimator.

        Returns
        -------
        estimator
            With the same parameters.
        """
        return clone(self.estimator)

    def outputs(self, X: Any) -> torch.Tensor:
        """Return outputs of the fitted estimator, as its loss takes them.

        Parameters
        ----------
        X : array-like of shape (q, n_features)
            Rows.

        Returns
        -------
        Tensor of shape (q, C)
            Log-probabilities of a classifier, at least that of the smallest number
            that changes a 1; decision values of one without probabilities, (q, 1) for
            two classes; predictions of a regressor.
        """
        if not is_classifier(self.estimator):
            with blamed(self.estimator, "predict these rows"):
                predicted = np.asarray(self.estimator.predict(X), dtype=np.float64)
            return torch.tensor(predicted.reshape(len(predicted), -1))
        if self.by_decisions:
            return decision_values(self.estimator, X)
        with blamed(self.estimator, "predict these rows"):
            probabilities = np.asarray(self.estimator.predict_proba(X))
        if self.classes is not None:  # those it has not seen have probability 0
            seen = probabilities
            columns = np.searchsorted(self.classes, self.estimator.classes_)
            probabilities = np.zeros((len(seen), len(self.classes)), dtype=seen.dtype)
            probabilities[:, columns] = seen
        # as sklearn.metrics.log_loss: a tree's 0 is not minus infinity
        smallest = np.finfo(probabilities.dtype).eps
        log_probabilities = np.log(probabilities.clip(smallest, 1.0))
        return torch.tensor(log_probabilities.astype(np.float64))

    def encode(self, y: Any, like: torch.Tensor) -> torch.Tensor:
        """Return targets of the fitted estimator, as its loss takes them.

        Parameters
        ----------
        y : ndarray of shape (q,) or (q, n_outputs)
            Targets as the user has them.
        like : Tensor of shape (..., q, C)
            Outputs: a network's targets have their dtype, and are where they are.

        Returns
        -------
        Tensor of shape (q,) or (q, n_outputs)
            Codes of classes, or numbers.
        """
        if not is_classifier(self.estimator):
            values = as_numbers(y)
            return torch.tensor(values[:, None] if values.ndim == 1 else values)
        classes = self.estimator.classes_ if self.classes is None else self.classes
        return torch.tensor(label_codes(classes, y))


def label_codes(classes: Any, y: Any) -> Any:
    """Return the positions of labels among classes; raise on one that is unknown."""
    if y.ndim != 1:
        raise ValueError(f"y_query must be labels in one column, got shape {y.shape}.")
    codes = label_positions(classes, y)
    if (codes < 0).any():
        raise ValueError(
            f"y_query holds labels unseen in y: {first_labels(y[codes < 0])}. Leave "
            "these queries out."
        )
    return codes


class Differentiable(Model, ABC):
    """A model that is a module, differentiable in its parameters, and a loss.

    A family owes `module` and `targets`, and `loss` where it is not the usual one of
    classifiers and regressors. Gradients and outcomes follow.

    Parameters
    ----------
    estimator : estimator
        Fitted or not, without what only wraps it.
    frozen : bool, default=False
        Whether it was given as one that must not be trained.

    See Also
    --------
    as_model : Finds the family of an estimator.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skattrib import TorchClassifier
    >>> from skattrib.extension import Differentiable, as_model
    >>> X, y = load_iris(return_X_y=True)
    >>> network = TorchClassifier(max_epochs=20, random_state=0).fit(X, y)
    >>> model = as_model(network)
    >>> isinstance(model, Differentiable)
    True
    >>> model.loss_gradients(X, y).shape, model.outcomes(X[:3], y[:3]).shape
    (torch.Size([150, 259]), torch.Size([3]))
    """

    @property
    @abstractmethod
    def module(self) -> torch.nn.Module:
        """The fitted module, from rows to outputs."""

    @property
    def module_in_training(self) -> torch.nn.Module:
        """The same, its tensors shared, with its layers in the modes of training.

        Here the module itself: it has no dropout and no batch normalisation.
        """
        return self.module

    def warn_of_other_rows(self, X: Any, y: Any, weights: Any, stacklevel: int) -> None:
        """Warn if a frozen model was trained on other rows, where that can be told.

        Here nothing is known of its training.

        Parameters
        ----------
        X : ndarray of shape (n, ...)
            Rows that are taken for those of its training.
        y : ndarray of shape (n,) or (n, n_outputs)
            Their targets.
        weights : ndarray of shape (n,)
            Their weights.
        stacklevel : int
            Of the warning, where this is called.
        """

    @abstractmethod
    def targets(self, y: Any, like: torch.Tensor) -> torch.Tensor:
        """Return targets as the loss takes them.

        Parameters
        ----------
        y : ndarray of shape (n,) or (n, n_outputs)
            Targets as the user has them.
        like : Tensor
            Floating-point targets have its dtype, and all are on its device.

        Returns
        -------
        Tensor of shape (n, ...)
            Codes of classes, or numbers.
        """

    def weighting(self, targets: torch.Tensor) -> RowWeighting:
        """Return what makes the weights in the loss of the weights of the rows.

        Parameters
        ----------
        targets : Tensor of shape (n, ...)
            Of the training rows, as the loss takes them.

        Returns
        -------
        RowWeighting
            Here what the loss says of classes.
        """
        return RowWeighting(self.loss.row_weights(targets))

    def curved(self, X: Any, seed: int) -> tuple[Differentiable, Any]:
        """Return what is linearised in its place, and the training rows for it.

        Parameters
        ----------
        X : array-like of shape (n, ...)
            Rows.
        seed : int
            For what is drawn.

        Returns
        -------
        model : Differentiable
            Here itself, whose loss is curved in its outputs.
        X : array-like of shape (n, ...)
            Here the same.
        """
        return self, X

    def in_double(self) -> Differentiable | None:
        """Return the model with its module in double precision.

        Returns
        -------
        Differentiable or None
            Here None: there is no general way.
        """
        return None

    def moved(self, change: Any) -> Any:
        """Return a fitted copy of the estimator whose parameters are moved.

        Parameters
        ----------
        change : ndarray of shape (P,)
            P counts the parameters of `module` that are trained.

        Returns
        -------
        estimator or None
            Here None: there is no general way.
        """
        return None

    def loss_gradients(self, X: Any, y: Any) -> torch.Tensor:
        """Return the gradient of each row's loss in the parameters.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
            Rows, as the module takes them.
        y : ndarray of shape (n,) or (n, n_outputs)
            Their targets.

        Returns
        -------
        Tensor of shape (n, P)
            P counts the parameters that are trained.
        """
        return self._gradients(X, y, self.loss.values)

    def outcome_gradients(
        self, X: Any, y: Any, outcome: str | OutcomeFunction = "auto"
    ) -> torch.Tensor:
        """Return the gradient of each query's outcome in the parameters.

        Parameters
        ----------
        X : array-like of shape (q, n_features)
            Queries, as the module takes them.
        y : ndarray of shape (q,) or (q, n_outputs)
            Their targets.
        outcome : str or callable, default="auto"
            One that the loss has, a function (outputs, targets) -> outcome, or a
            `SetOutcome`, which has one gradient.

        Returns
        -------
        Tensor of shape (q, P)
            P counts the parameters that are trained.
        """
        measure = self.loss.outcome(outcome)
        if not isinstance(measure, SetMeasure):
            return self._gradients(X, y, measure)
        model = FunctionalModule(self.module).apart()
        rows = as_tensor(X, next(self.module.parameters()))
        queries = rows, self.targets(y, rows), measure
        return set_gradient(model, model.flatten(), *queries, memory_cap())[None]

    def outcomes(
        self, X: Any, y: Any, outcome: str | OutcomeFunction = "auto"
    ) -> torch.Tensor:
        """Return the outcomes of queries.

        Parameters
        ----------
        X : array-like of shape (q, n_features)
            Queries, as the module takes them.
        y : ndarray of shape (q,) or (q, n_outputs)
            Their targets.
        outcome : str or callable, default="auto"
            As `outcome_gradients` takes it.

        Returns
        -------
        Tensor of shape (q,)
            Higher is better; (1,) of a `SetOutcome`.
        """
        outputs = self._module_outputs(X)
        return self.loss.outcome(outcome)(outputs, self.targets(y, outputs))

    def outputs(self, X: Any) -> torch.Tensor:
        """Return outputs of the fitted module, as its loss takes them.

        Parameters
        ----------
        X : array-like of shape (q, n_features)
            Rows.

        Returns
        -------
        Tensor of shape (q, C)
            Outputs, without a gradient.
        """
        return self._module_outputs(X)

    def _module_outputs(self, X: Any) -> torch.Tensor:
        rows = as_tensor(X, next(self.module.parameters()))
        with torch.no_grad():
            return FunctionalModule(self.module).present_outputs(rows)

    def _gradients(self, X: Any, y: Any, function: OutcomeFunction) -> torch.Tensor:
        model = FunctionalModule(self.module)
        like = next(self.module.parameters())
        n_outputs = model.present_outputs(as_tensor(X[:1], like)).shape[1]
        numbers = model.n_params * n_outputs
        n_at_once = int(memory_cap() / (8 * like.element_size() * numbers))
        gradients_of_parts = []

        for part in chunks(len(X), n_at_once):
            rows = as_tensor(X[part], like)
            targets = self.targets(y[part], rows)
            outputs, gradients = row_gradients(model, rows)
            slopes = torch.func.grad(
                lambda outputs, targets=targets: function(outputs, targets).sum()
            )(outputs)
            jacobian = gradients.jacobian().view(*outputs.shape, -1)
            gradients_of_parts.append(torch.einsum("nc,ncp->np", slopes, jacobian))
        return torch.cat(gradients_of_parts)


class Recorded(Model, ABC):
    """A model whose training is known step by step.

    A family owes `trajectory`.

    Parameters
    ----------
    estimator : estimator
        Fitted or not, without what only wraps it.
    frozen : bool, default=False
        Whether it was given as one that must not be trained.

    See Also
    --------
    skattrib.record_training : Records a training loop of your own.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skattrib import TorchClassifier
    >>> from skattrib.extension import Recorded, as_model
    >>> X, y = load_iris(return_X_y=True)
    >>> model = as_model(TorchClassifier(max_epochs=20, random_state=0).fit(X, y))
    >>> isinstance(model, Recorded)
    True
    >>> model.trajectory.recipe.n_steps
    20
    """

    @property
    @abstractmethod
    def trajectory(self) -> Any:
        """Record of the training; None where there is none."""


def protocols(model: Model) -> set[str]:
    """Return the names of the protocols that a model implements."""
    return {kind.__name__ for kind in type(model).__mro__}
