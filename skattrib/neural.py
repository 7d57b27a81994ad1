"""Neural networks as scikit-learn estimators that remember how they were trained."""

import numpy as np
import torch
from sklearn.base import ClassifierMixin, RegressorMixin, _fit_context, clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils.multiclass import check_classification_targets, type_of_target

from skattrib._skorch import classifier_of, regressor_of
from skattrib._torch_estimator import TorchEstimator, fitted_from
from skattrib._validation import (
    DTYPES,
    as_tensor,
    seed_unset,
    unchanged_on_error,
    validate_data,
    warn_if_measured,
)

__all__ = ["TorchClassifier", "TorchRegressor"]


def check_classes(classes):
    """Return the labels of a module's outputs as an array."""
    classes = np.asarray(classes)
    if (
        classes.ndim != 1
        or len(classes) < 2
        or not np.array_equal(np.unique(classes), classes)
    ):
        raise ValueError(
            "classes must be at least two different labels in sorted order, as "
            f"np.unique(y) gives them; got {classes!r}."
        )
    return classes


class TorchClassifier(ClassifierMixin, TorchEstimator):
    """A neural network classifier trained on cross-entropy, reproducibly.

    The run is recorded, so that attributors can differentiate, linearise or repeat
    it. Rows are weighted as Σ w ℓ / Σ w in every batch: a row of weight zero is
    dropped, and only ratios of weights matter.

    Parameters
    ----------
    module : nn.Module, callable or None, default=None
        Network from rows (n, n_features) to unnormalised log-probabilities
        (n, n_classes). None builds a multilayer perceptron. An instance is copied and
        trained from the weights it has; a callable
        ``module(n_features, n_outputs) -> nn.Module`` is called with torch's
        generator seeded by `random_state`.
    hidden_layer_sizes : array-like of int, default=(32,)
        Widths of the hidden layers when ``module=None``.
    activation : {"tanh", "relu", "gelu", "silu", "identity"}, default="tanh"
        Activation when ``module=None``.
    optimizer : {"adamw", "adam", "sgd", "rmsprop", "muon"} or Optimizer, \
            default="adamw"
        With the update rules of ``torch.optim``. An instance from
        `skattrib.optimizers` has its own options.
    learning_rate : float, default=1e-2
        Step size before `schedule`.
    weight_decay : float, default=1e-2
        Decoupled for AdamW and Muon, added to the gradient otherwise, as in torch. That
        of an `optimizer` instance wins, if it is given one.
    betas : tuple of two floats, default=(0.9, 0.999)
        Decay of the moments of "adamw" and "adam".
    eps : float, default=1e-8
        Added to the root of their second moment.
    momentum : float, default=0
        Of "sgd".
    nesterov : bool, default=False
        Nesterov momentum of "sgd".
    schedule : {"constant", "cosine", "linear_warmup"} or callable, default="constant"
        Factor on the learning rate. "linear_warmup" rises over the first tenth of the
        steps and then falls linearly to zero. A callable takes (step from 0, n_steps).
    clip_norm : float or None, default=None
        Largest norm of the gradient of a step.
    batch_size : int or None, default=None
        Rows per step. None is all of them: only then do weights act exactly as
        repeated rows, because the minibatches do not depend on them.
    max_epochs : int, default=100
        Passes over the rows; there is no early stopping.
    record : {"recipe", "checkpoints", "states"}, default="recipe"
        What `trajectory_` keeps: what is needed to repeat the run; also about √T
        states; or all T of them.
    device : str or torch.device, default="cpu"
        Where to train.
    random_state : int, RandomState instance or None, default=None
        Seed of the initial weights and of the order of the minibatches. torch's
        global generator is neither used nor changed.
    verbose : int, default=0
        Shows progress when above 0.

    Attributes
    ----------
    module_ : nn.Module
        Trained network, with weights in the dtype of X.
    trajectory_ : Trajectory or None
        Record of the run; None for a wrapped module.
    classes_ : ndarray of shape (n_classes,)
        Class labels, in the order of the module's outputs.
    loss_curve_ : ndarray of shape (max_epochs,)
        Mean training loss of each epoch, measured before each step.
    n_outputs_ : int
        Number of classes.
    n_features_in_ : int
        Number of features seen in fit.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, if X had any.

    See Also
    --------
    TorchRegressor : The same for numbers.
    DualInfluence : Attributes its predictions to training rows.

    Notes
    -----
    Layers through which rows influence each other (batch normalisation in training
    mode) and layers that draw random numbers (dropout) are refused: with them "the
    effect of a row" is not defined by the weights alone.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skattrib import TorchClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = TorchClassifier(max_epochs=50, random_state=0).fit(X, y)
    >>> clf.predict(X[:2])
    array([0, 0])
    >>> clf.predict_proba(X[:2]).shape
    (2, 3)
    """

    _task = "classification"

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None):
        """Train the network.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows, float32 or float64; the network takes their dtype.
        y : array-like of shape (n_samples,)
            Class labels, at least two different ones.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Multiplier of each row's loss.

        Returns
        -------
        self : TorchClassifier
            Fitted estimator.

        Raises
        ------
        ValueError
            If a parameter, the module or the data cannot be used, or training
            diverges.
        """
        with unchanged_on_error(self):
            X, y = validate_data(self, X, y, dtype=DTYPES)
            return self._fit(X, y, sample_weight)

    def _learn_target(self, y):
        check_classification_targets(y)
        classes = np.unique(y)
        if len(classes) < 2:
            raise ValueError(
                f"y holds one class only ({classes[0]!r}); a classifier needs samples "
                "of at least 2 classes in the data."
            )
        warn_if_measured(y, len(classes))
        self.classes_, self.n_outputs_ = classes, len(classes)
        return y

    def _targets(self, y, like):
        words = [labels.dtype.kind in "OSU" for labels in (self.classes_, y)]
        if words[0] == words[1]:
            position = np.searchsorted(self.classes_, y)
            position = position.clip(max=len(self.classes_) - 1)
            unseen = self.classes_[position] != y
        else:  # words and numbers have no order
            unseen = np.full(len(y), True)
        if np.any(unseen):
            raise ValueError(
                f"y holds labels unseen in fit: {np.unique(y[unseen])[:5].tolist()}; "
                f"known are {self.classes_[:10].tolist()}, and the model has no output "
                "for others: leave these rows out. In a grid search, "
                "cv=StratifiedKFold(...) lets every fold train on every class."
            )
        return torch.tensor(position, dtype=torch.int64, device=like.device)

    def predict(self, X):
        """Predict the most likely class.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples,)
            Class labels.
        """
        outputs = self._outputs(X)
        return self.classes_[outputs.argmax(axis=1)]

    def predict_log_proba(self, X):
        """Predict log-probabilities.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Natural logarithms, columns in the order of `classes_`.
        """
        outputs = torch.tensor(self._outputs(X))
        return outputs.log_softmax(dim=1).numpy()

    def predict_proba(self, X):
        """Predict probabilities.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Probabilities, columns in the order of `classes_`.
        """
        return torch.tensor(self._outputs(X)).softmax(dim=1).numpy()

    @classmethod
    def from_module(cls, module, classes, *, device=None):
        """Wrap a trained module as a fitted classifier.

        There is no record of its training: `trajectory_` is None, and what needs to
        train again (``score`` of an attributor) raises. Use it inside
        `sklearn.frozen.FrozenEstimator`, as scikit-learn trains what is not frozen.

        Parameters
        ----------
        module : nn.Module
            Maps rows to one unnormalised log-probability per class.
        classes : array-like of shape (n_classes,)
            Labels in the order of the module's outputs; must be sorted.
        device : str, torch.device or None, default=None
            Where to run; None is where the module is.

        Returns
        -------
        TorchClassifier
            Fitted estimator with a copy of the module.
        """
        classes = check_classes(classes)
        return fitted_from(cls, module, len(classes), device, classes_=classes)

    @classmethod
    def from_skorch(cls, net):
        """Wrap a fitted skorch classifier.

        Parameters
        ----------
        net : skorch.NeuralNetClassifier or skorch.NeuralNetBinaryClassifier
            Fitted, with criterion NLLLoss (skorch's default, on probabilities),
            CrossEntropyLoss or BCEWithLogitsLoss.

        Returns
        -------
        TorchClassifier
            Fitted estimator with ``trajectory_=None``; see `from_module`.
        """
        return cls.from_module(classifier_of(net), net.classes_, device=net.device)


class TorchRegressor(RegressorMixin, TorchEstimator):
    """A neural network regressor trained on ½ Σ_outputs error², reproducibly.

    The run is recorded, so that attributors can differentiate, linearise or repeat
    it. Rows are weighted as Σ w ℓ / Σ w in every batch: a row of weight zero is
    dropped, and only ratios of weights matter.

    Parameters
    ----------
    module : nn.Module, callable or None, default=None
        Network from rows (n, n_features) to predictions (n, n_outputs). None builds a
        multilayer perceptron. An instance is copied and trained from the weights it
        has; a callable ``module(n_features, n_outputs) -> nn.Module`` is called with
        torch's generator seeded by `random_state`.
    hidden_layer_sizes : array-like of int, default=(32,)
        Widths of the hidden layers when ``module=None``.
    activation : {"tanh", "relu", "gelu", "silu", "identity"}, default="tanh"
        Activation when ``module=None``.
    optimizer : {"adamw", "adam", "sgd", "rmsprop", "muon"} or Optimizer, \
            default="adamw"
        With the update rules of ``torch.optim``. An instance from
        `skattrib.optimizers` has its own options.
    learning_rate : float, default=1e-2
        Step size before `schedule`.
    weight_decay : float, default=1e-2
        Decoupled for AdamW and Muon, added to the gradient otherwise, as in torch. That
        of an `optimizer` instance wins, if it is given one.
    betas : tuple of two floats, default=(0.9, 0.999)
        Decay of the moments of "adamw" and "adam".
    eps : float, default=1e-8
        Added to the root of their second moment.
    momentum : float, default=0
        Of "sgd".
    nesterov : bool, default=False
        Nesterov momentum of "sgd".
    schedule : {"constant", "cosine", "linear_warmup"} or callable, default="constant"
        Factor on the learning rate. "linear_warmup" rises over the first tenth of the
        steps and then falls linearly to zero. A callable takes (step from 0, n_steps).
    clip_norm : float or None, default=None
        Largest norm of the gradient of a step.
    batch_size : int or None, default=None
        Rows per step. None is all of them: only then do weights act exactly as
        repeated rows, because the minibatches do not depend on them.
    max_epochs : int, default=100
        Passes over the rows; there is no early stopping.
    record : {"recipe", "checkpoints", "states"}, default="recipe"
        What `trajectory_` keeps: what is needed to repeat the run; also about √T
        states; or all T of them.
    device : str or torch.device, default="cpu"
        Where to train.
    random_state : int, RandomState instance or None, default=None
        Seed of the initial weights and of the order of the minibatches. torch's
        global generator is neither used nor changed.
    verbose : int, default=0
        Shows progress when above 0.

    Attributes
    ----------
    module_ : nn.Module
        Trained network, with weights in the dtype of X.
    trajectory_ : Trajectory or None
        Record of the run; None for a wrapped module.
    loss_curve_ : ndarray of shape (max_epochs,)
        Mean training loss of each epoch, measured before each step.
    n_outputs_ : int
        Number of outputs.
    n_features_in_ : int
        Number of features seen in fit.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, if X had any.

    See Also
    --------
    TorchClassifier : The same for classes.
    DualInfluence : Attributes its predictions to training rows.

    Notes
    -----
    The network is trained on y as it is: standardise a y that is far from unit size.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from skattrib import TorchRegressor
    >>> X, y = load_diabetes(return_X_y=True, scaled=False)
    >>> X, y = (X - X.mean(0)) / X.std(0), (y - y.mean()) / y.std()
    >>> reg = TorchRegressor(max_epochs=50, random_state=0).fit(X, y)
    >>> bool(reg.score(X, y) > 0.4)
    True
    """

    _task = "regression"

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None):
        """Train the network.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows, float32 or float64; the network takes their dtype.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Numbers to predict.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Multiplier of each row's loss.

        Returns
        -------
        self : TorchRegressor
            Fitted estimator.

        Raises
        ------
        ValueError
            If a parameter, the module or the data cannot be used, or training
            diverges.
        """
        with unchanged_on_error(self):
            X, y = validate_data(
                self, X, y, dtype=DTYPES, y_numeric=True, multi_output=True
            )
            return self._fit(X, y, sample_weight)

    def _learn_target(self, y):
        self._single_output = y.ndim == 1
        self.n_outputs_ = 1 if y.ndim == 1 else y.shape[1]
        return y

    def _targets(self, y, like):
        y = np.asarray(y, dtype=np.float64)
        y = y[:, None] if y.ndim == 1 else y
        if y.shape[1] != self.n_outputs_:
            raise ValueError(
                f"y has {y.shape[1]} columns, the regressor {self.n_outputs_} outputs."
            )
        return as_tensor(y, like)

    def predict(self, X):
        """Predict the targets.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_outputs)
            Predictions, shaped as the y of fit.
        """
        outputs = self._outputs(X)
        return outputs[:, 0] if self._single_output else outputs

    @classmethod
    def from_module(cls, module, n_outputs=1, *, device=None):
        """Wrap a trained module as a fitted regressor.

        There is no record of its training: `trajectory_` is None, and what needs to
        train again (``score`` of an attributor) raises. Use it inside
        `sklearn.frozen.FrozenEstimator`, as scikit-learn trains what is not frozen.

        Parameters
        ----------
        module : nn.Module
            Maps rows to predictions.
        n_outputs : int, default=1
            Number of columns that the module returns.
        device : str, torch.device or None, default=None
            Where to run; None is where the module is.

        Returns
        -------
        TorchRegressor
            Fitted estimator with a copy of the module.
        """
        return fitted_from(
            cls, module, n_outputs, device, _single_output=n_outputs == 1
        )

    @classmethod
    def from_skorch(cls, net, n_outputs=1):
        """Wrap a fitted skorch regressor.

        Parameters
        ----------
        net : skorch.NeuralNetRegressor
            Fitted, with criterion MSELoss.
        n_outputs : int, default=1
            Number of columns that the net's module returns.

        Returns
        -------
        TorchRegressor
            Fitted estimator with ``trajectory_=None``; see `from_module`.
        """
        return cls.from_module(regressor_of(net), n_outputs, device=net.device)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def make_estimator(estimator, y, seed):
    """Return what to train: a clone without unset seeds; for None what suits y."""
    if estimator is None:
        kind = type_of_target(y, input_name="y")
        if kind in ("binary", "multiclass"):
            return TorchClassifier(random_state=seed)
        return TorchRegressor(random_state=seed)
    estimator = clone(estimator)
    if not isinstance(estimator, FrozenEstimator):
        seed_unset(estimator, seed)
    return estimator
