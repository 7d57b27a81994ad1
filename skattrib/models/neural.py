"""Neural networks as scikit-learn estimators that remember how they were trained."""

import warnings
from dataclasses import replace
from numbers import Real

import numpy as np
import torch
from sklearn.base import ClassifierMixin, RegressorMixin, _fit_context, clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from skattrib._docstrings import fill_in
from skattrib._indexes import check_order
from skattrib._validation import (
    as_numbers,
    as_tensor,
    check_labels,
    dense,
    first_labels,
    has_columns,
    label_positions,
    seed_unset,
    target_type,
    unchanged_on_error,
    warn_if_measured,
)
from skattrib.engine._losses import ClassLoss, LabelLoss, Loss, as_loss
from skattrib.engine._modules import uncompiled_copy
from skattrib.engine._row_weights import RowWeighting
from skattrib.models._datasets import ScoresDatasets, opened
from skattrib.models._from_module import check_classes, fitted_from, targets_of
from skattrib.models._module_checks import module_width
from skattrib.models._network import TorchEstimator
from skattrib.models._rows import as_it_takes, validate_rows
from skattrib.models._skorch import classifier_of, regressor_of

__all__ = ["TorchClassifier", "TorchRegressor"]


# Rows that a loss is tried on.
_FEW = 3
# Mean sizes of targets outside of which a fit that explains nothing is reported.
_REACH = 0.1, 10.0

# What the docstrings of classifier and regressor have in common.
_DOCS = {
    "purpose": """
    The run is recorded, so that attributors can differentiate, linearise or repeat
    it. Rows are weighted as Σ w ℓ / Σ w in every batch: a row of weight zero is
    dropped, and only ratios of weights matter.
    """,
    "module": """
    None builds a multilayer perceptron. An instance is copied and trained from the
    weights it has; a callable ``module(n_features, n_outputs) -> nn.Module`` is
    called with torch's generator seeded by `random_state`. It gets the shape of a
    row, a tuple, for n_features where X has more than two dimensions.
    """,
    "layers": """
    hidden_layer_sizes : array-like of int, default=(32,)
        Widths of the hidden layers when ``module=None``.
    activation : {"tanh", "relu", "gelu", "silu", "identity"}, default="tanh"
        Activation when ``module=None``.
    """,
    "training": """
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
        Passes over the rows, at most.
    early_stopping : bool or EarlyStopping, default=False
        Whether training stops where the loss on validation rows no longer falls. True
        holds out a tenth of the rows and waits for 10 epochs. Retrainings of a fitted
        network stop where it did, unless told otherwise.
    average : {"ema", "swa"} or None, default=None
        What answers queries: None is the network after the last step; "ema" an
        exponential average over the steps, "swa" the mean over their last quarter, of
        weights and running statistics. Averages are calmer functions of the rows: their
        attributions rank retrained models better where the learning rate is high.
    average_decay : float, default=0.99
        Of "ema", for each step.
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
    """,
    "attributes": """
    module_ : nn.Module
        Trained network, with weights in the dtype of X.
    trajectory_ : Trajectory or None
        Record of the run; None for a wrapped module.
    loss_function_ : Loss
        Loss of a row.
    loss_curve_ : ndarray of shape (n_epochs,)
        Mean training loss of each epoch, measured before each step.
    n_epochs_ : int
        Epochs that the network was trained for, up to the one that was taken.
    validation_loss_curve_ : ndarray of shape (n_epochs,)
        Mean loss of the validation rows after each epoch, with early stopping.
    n_outputs_ : int
        Number of outputs of the module.
    n_features_in_ : int
        Number of features seen in fit.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, if X had any.
    """,
    "rows": """
    Training rows; the network takes their dtype, float32 or float64. With a `module`
    they may have any shape: images, or sequences. Whole numbers become floats,
    float64, if the module takes these; if not, as an ``nn.Embedding`` does not, they
    stay integers (int64), and the network is of torch's default, float32. A map-style
    ``torch.utils.data.Dataset`` of pairs (x, y) brings its targets.
    """,
    "fit_errors": """
    ValueError
        If a parameter, the module, the loss or the data cannot be used, or
        training diverges.
    """,
    "no_record": """
    There is no record of its training: `trajectory_` is None, and what needs to
    train again (``score`` of an attributor) raises. Use it inside
    `sklearn.frozen.FrozenEstimator`, as scikit-learn trains what is not frozen.
    """,
}


@fill_in(_DOCS)
class TorchClassifier(ScoresDatasets, ClassifierMixin, TorchEstimator):
    """A neural network classifier, trained reproducibly.

    %(purpose)s

    Parameters
    ----------
    module : nn.Module, callable or None, default=None
        Network from rows (n, n_features), or of another shape, to unnormalised
        log-probabilities (n, n_classes).
        %(module)s
    %(layers)s
    loss : "auto", nn.Module or callable, default="auto"
        Loss of a row. "auto" is cross-entropy: of a softmax over classes, or the sum
        over labels where y has several; a module with one output has the log-odds of
        two classes, as with ``nn.BCEWithLogitsLoss``. A loss of ``torch.nn`` counts
        with the sum over outputs of what it gives with ``reduction="none"``. A
        callable takes outputs (n, n_outputs) and targets, class codes (n,) or labels
        (n, n_labels), and returns one number for each row.
        Losses that compare rows, and sums over minibatches, are refused.
    class_weight : dict, "balanced" or None, default=None
        Factors on the weights of rows, by class; classes that are left out have 1.
        "balanced" gives all classes the same total weight, of the rows that are there:
        when rows are left out, those of their class that stay count for more.
    %(training)s

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels, in the order of the module's outputs.
    %(attributes)s

    See Also
    --------
    TorchRegressor : The same for numbers.
    DualInfluence : Attributes its predictions to training rows.

    Notes
    -----
    Dropout draws the same mask for a row in each retraining: it is a function of
    `random_state`, the step and the row. Batch normalisation counts rows by their
    weights. So a row of weight zero is one that is left out, and derivatives in the
    weights are exact. Layers in evaluation mode when the module is passed stay so.
    Other layers through which rows influence each other are refused.

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

    _parameter_constraints: dict = {
        **TorchEstimator._parameter_constraints,
        "class_weight": [StrOptions({"balanced"}), dict, None],
    }

    def __init__(
        self,
        module=None,
        *,
        hidden_layer_sizes=(32,),
        activation="tanh",
        loss="auto",
        class_weight=None,
        optimizer="adamw",
        learning_rate=1e-2,
        weight_decay=1e-2,
        betas=(0.9, 0.999),
        eps=1e-8,
        momentum=0,
        nesterov=False,
        schedule="constant",
        clip_norm=None,
        batch_size=None,
        max_epochs=100,
        early_stopping=False,
        average=None,
        average_decay=0.99,
        record="recipe",
        device="cpu",
        random_state=None,
        verbose=0,
    ):
        super().__init__(
            module,
            hidden_layer_sizes=hidden_layer_sizes,
            activation=activation,
            loss=loss,
            optimizer=optimizer,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            betas=betas,
            eps=eps,
            momentum=momentum,
            nesterov=nesterov,
            schedule=schedule,
            clip_norm=clip_norm,
            batch_size=batch_size,
            max_epochs=max_epochs,
            early_stopping=early_stopping,
            average=average,
            average_decay=average_decay,
            record=record,
            device=device,
            random_state=random_state,
            verbose=verbose,
        )
        self.class_weight = class_weight

    @_fit_context(prefer_skip_nested_validation=True)
    @fill_in(_DOCS)
    def fit(self, X, y=None, sample_weight=None):
        """Train the network.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            %(rows)s
        y : array-like of shape (n_samples,) or (n_samples, n_labels), default=None
            Class labels, at least two different ones; or 0 and 1 for each of several
            labels, of which a row may have any. None only with a Dataset.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Multiplier of each row's loss.

        Returns
        -------
        self : TorchClassifier
            Fitted estimator.

        Raises
        ------
        %(fit_errors)s
        """
        with unchanged_on_error(self):
            X, y = opened(X, y)
            check_order(X, y, {"sample_weight": sample_weight})
            X, y = validate_rows(self, X, y, multi_output=has_columns(y))
            return self._fit(X, y, sample_weight)

    def _learn_target(self, y, X=None):
        check_labels(y)
        if getattr(y, "ndim", 1) == 2:
            self._learn_labels(y)
        else:
            self.classes_ = self._learn_classes(y)
            single = len(self.classes_) == 2 and self._has_single_output(X)
            self.loss_function_ = as_loss(self.loss, ClassLoss, single_output=single)
        known = torch.arange(len(self.classes_))
        if isinstance(self.loss_function_, LabelLoss):
            known = torch.zeros(1, len(self.classes_))
        self.n_outputs_ = self.loss_function_.n_outputs(known)
        self._check_class_weight(y)
        return y

    def _learn_labels(self, y):
        if target_type(y) != "multilabel-indicator":
            raise ValueError(
                "y has several columns, of which some hold more than two classes: "
                "there is no loss for that. Fit one attributor per column, or one "
                "TorchClassifier, as sklearn.multioutput.MultiOutputClassifier does."
            )
        if (dense(y).sum(axis=1) == 1).all():
            warnings.warn(
                f"Every row of y has one 1 in its {y.shape[1]} columns, which are "
                "treated as labels of which a row may have any. If they are classes, "
                "pass y.argmax(axis=1).",
                UserWarning,
                stacklevel=6,
            )
        self.classes_ = np.arange(y.shape[1])
        self.loss_function_ = as_loss(self.loss, LabelLoss)

    def _learn_classes(self, y):
        classes = np.unique(y)
        if len(classes) < 2:
            raise ValueError(
                f"y holds one class only ({classes[0]!r}); a classifier needs samples "
                "of at least 2 classes in the data."
            )
        warn_if_measured(y, len(classes))
        return classes

    def _has_single_output(self, X):
        """Say whether a module that was given as one returns one column."""
        if X is None or not isinstance(self.module, nn.Module):
            return False
        try:
            module = uncompiled_copy(self.module)
            module, row = as_it_takes(module, as_tensor(X[:1]))
            with torch.no_grad():
                return module.eval().to(row.dtype)(row).numel() == 1
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
            return False  # the checks of the module raise, with a reason

    def _check_class_weight(self, y):
        if self.class_weight is None:
            return
        if isinstance(self.loss_function_, LabelLoss):
            raise ValueError(
                "class_weight is for one label a row; weigh labels by "
                "loss=nn.BCEWithLogitsLoss(pos_weight=...)."
            )
        if isinstance(self.class_weight, dict):
            weights = list(self.class_weight.values())
            valid = all(
                isinstance(weight, Real) and 0 <= weight < np.inf for weight in weights
            )
            if not valid or not any(weights):
                raise ValueError(
                    "class_weight must map classes to finite numbers of at least 0, "
                    f"not all 0; got {self.class_weight!r}."
                )
            compute_class_weight(self.class_weight, classes=self.classes_, y=y)

    def _weighting(self, targets):
        weighting = super()._weighting(targets)
        if self.class_weight is None:
            return weighting
        if isinstance(self.class_weight, str):
            return replace(weighting, balanced=targets)
        factors = torch.tensor(
            [
                float(self.class_weight.get(label, 1.0))
                for label in self.classes_.tolist()
            ],
            dtype=torch.float64,
            device=targets.device,
        )[targets]
        return RowWeighting(
            factors * (1.0 if weighting.factors is None else weighting.factors)
        )

    def _targets(self, y, like):
        y = dense(y)
        if isinstance(self.loss_function_, LabelLoss):
            return self._label_targets(y, like)
        if y.ndim != 1:
            raise ValueError(
                f"y must be labels in one column, as in fit; got shape {y.shape}."
            )
        position = label_positions(self.classes_, y)
        if (position < 0).any():
            raise ValueError(
                f"y holds labels unseen in fit: {first_labels(y[position < 0])}; "
                f"known are {self.classes_[:10].tolist()}, and the model has no output "
                "for others: leave these rows out. In a grid search, "
                "cv=StratifiedKFold(...) lets every fold train on every class."
            )
        return torch.tensor(position, dtype=torch.int64, device=like.device)

    def _label_targets(self, y, like):
        n_labels = len(self.classes_)
        if y.ndim != 2 or y.shape[1] != n_labels or not np.isin(y, (0, 1)).all():
            raise ValueError(
                f"y must have {n_labels} columns of 0 and 1, a label each, as in fit; "
                f"got shape {y.shape}."
            )
        return torch.tensor(y.astype(np.float64), dtype=like.dtype, device=like.device)

    def predict(self, X):
        """Predict the most likely class, or the labels that are likely.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_labels)
            Class labels; or 1 for every label that is more likely than not.
        """
        outputs = torch.tensor(self._outputs(X))
        predicted = self.loss_function_.predict(outputs).numpy()
        if isinstance(self.loss_function_, LabelLoss):
            return predicted.astype(int)
        return self.classes_[predicted]

    def decision_function(self, X):
        """Return log-odds, or unnormalised log-probabilities.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples,), (n_samples, n_classes) or (n_samples, n_labels)
            Of two classes the log-odds of the second, of more an unnormalised
            log-probability each, of labels the log-odds of each.
        """
        outputs = torch.tensor(self._outputs(X))
        if isinstance(self.loss_function_, LabelLoss) or len(self.classes_) > 2:
            return outputs.numpy()
        second = torch.ones(len(outputs), dtype=torch.int64)
        return self.loss_function_.margin(outputs, second).numpy()

    def predict_log_proba(self, X):
        """Predict log-probabilities.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples, n_classes) or (n_samples, n_labels)
            Natural logarithms, columns in the order of `classes_`; of several labels
            each by itself.
        """
        outputs = torch.tensor(self._outputs(X))
        return self.loss_function_.log_probabilities(outputs).numpy()

    def predict_proba(self, X):
        """Predict probabilities.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples, n_classes) or (n_samples, n_labels)
            Probabilities, columns in the order of `classes_`; of several labels each
            by itself.
        """
        outputs = torch.tensor(self._outputs(X))
        return self.loss_function_.probabilities(outputs).numpy()

    @classmethod
    @fill_in(_DOCS)
    def from_module(cls, module, classes, *, loss="auto", device=None):
        """Wrap a trained module as a fitted classifier.

        %(no_record)s

        Parameters
        ----------
        module : nn.Module
            Maps rows to one unnormalised log-probability per class, or to the log-odds
            of the second of two classes.
        classes : array-like of shape (n_classes,)
            Labels in the order of the module's outputs; must be sorted.
        loss : "auto", nn.Module or callable, default="auto"
            What it was trained on, as the parameter `loss`. With
            ``nn.BCEWithLogitsLoss`` and as many outputs as classes these are labels, of
            which a row may have any.
        device : str, torch.device or None, default=None
            Where to run; None is where the module is.

        Returns
        -------
        TorchClassifier
            Fitted estimator with a copy of the module.
        """
        classes = check_classes(classes)
        several = isinstance(loss, nn.BCEWithLogitsLoss | LabelLoss)
        if several and isinstance(module, nn.Module):
            several = module_width(module) == len(classes)
        targets, link = torch.arange(len(classes)), ClassLoss
        if several:
            targets, link = torch.eye(len(classes)), LabelLoss
        return fitted_from(cls, module, targets, device, loss, link, classes_=classes)

    @classmethod
    def from_skorch(cls, net):
        """Wrap a fitted skorch classifier.

        Parameters
        ----------
        net : skorch.NeuralNetClassifier or skorch.NeuralNetBinaryClassifier
            Fitted. Its criterion is the loss; NLLLoss, skorch's default, is on
            probabilities.

        Returns
        -------
        TorchClassifier
            Fitted estimator with ``trajectory_=None``; see `from_module`.
        """
        module, loss = classifier_of(net)
        return cls.from_module(module, net.classes_, loss=loss, device=net.device)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


@fill_in(_DOCS)
class TorchRegressor(ScoresDatasets, RegressorMixin, TorchEstimator):
    """A neural network regressor, trained reproducibly.

    %(purpose)s

    Parameters
    ----------
    module : nn.Module, callable or None, default=None
        Network from rows (n, n_features), or of another shape, to predictions
        (n, n_outputs).
        %(module)s
    %(layers)s
    loss : "auto", nn.Module or callable, default="auto"
        Loss of a row. "auto" is half the squared error, summed over outputs.
        ``nn.PoissonNLLLoss`` predicts the rate; ``nn.GaussianNLLLoss`` has two outputs
        for each target, the mean and the logarithm of the variance. A loss of
        ``torch.nn`` counts with the sum over outputs of what it gives with
        ``reduction="none"``. A callable takes outputs (n, n_outputs) and targets
        (n, n_targets), and returns one number for each row.
        Losses that compare rows, and sums over minibatches, are refused.
    %(training)s

    Attributes
    ----------
    %(attributes)s

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

    @_fit_context(prefer_skip_nested_validation=True)
    @fill_in(_DOCS)
    def fit(self, X, y=None, sample_weight=None):
        """Train the network.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            %(rows)s
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Numbers to predict; None only with a Dataset.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Multiplier of each row's loss.

        Returns
        -------
        self : TorchRegressor
            Fitted estimator.

        Raises
        ------
        %(fit_errors)s
        """
        with unchanged_on_error(self):
            X, y = opened(X, y)
            check_order(X, y, {"sample_weight": sample_weight})
            X, y = validate_rows(self, X, y, y_numeric=True, multi_output=True)
            self._fit(X, y, sample_weight)
        self._warn_if_out_of_reach(X, y)
        return self

    def _warn_if_out_of_reach(self, X, y):
        """Warn if training ended far from targets of another size than 1."""
        size = np.abs(y).mean(axis=0)
        if _REACH[0] < np.min(size) and np.max(size) < _REACH[1]:
            return
        if type(self.loss_function_).predict is not Loss.predict:
            return
        errors = (self.predict(X) - y) ** 2
        spread = ((y - y.mean(axis=0)) ** 2).mean()
        if not errors.mean() < 0.9 * spread and spread > 0:
            warnings.warn(
                f"The network explains almost nothing of y, whose size is about "
                f"{np.max(size):.3g}: its outputs start at about 1, and training moved "
                "them too little. Scale y: "
                "TransformedTargetRegressor(TorchRegressor(), transformer="
                "StandardScaler()).",
                UserWarning,
                stacklevel=4,
            )

    def _learn_target(self, y, X=None):
        self._single_output = y.ndim == 1
        self._n_targets = 1 if y.ndim == 1 else y.shape[1]
        self.loss_function_ = as_loss(self.loss, Loss)
        known = torch.zeros(1, self._n_targets)
        self.n_outputs_ = self.loss_function_.n_outputs(known)
        return y

    def _targets(self, y, like):
        y = as_numbers(y)
        y = y[:, None] if y.ndim == 1 else y
        if y.shape[1] != self._n_targets:
            raise ValueError(
                f"y has {y.shape[1]} columns, the regressor was fitted to "
                f"{self._n_targets}."
            )
        return as_tensor(y, like)

    def predict(self, X):
        """Predict the targets.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_outputs)
            Predictions, shaped as the y of fit.
        """
        outputs = torch.tensor(self._outputs(X))
        predicted = self.loss_function_.predict(outputs).numpy()
        return predicted[:, 0] if self._single_output else predicted

    @classmethod
    @fill_in(_DOCS)
    def from_module(cls, module, n_outputs=1, *, loss="auto", device=None):
        """Wrap a trained module as a fitted regressor.

        %(no_record)s

        Parameters
        ----------
        module : nn.Module
            Maps rows to predictions.
        n_outputs : int, default=1
            Number of columns that the module returns.
        loss : "auto", nn.Module or callable, default="auto"
            What it was trained on, as the parameter `loss`.
        device : str, torch.device or None, default=None
            Where to run; None is where the module is.

        Returns
        -------
        TorchRegressor
            Fitted estimator with a copy of the module.
        """
        n_targets = targets_of(as_loss(loss, Loss), n_outputs)
        return fitted_from(
            cls,
            module,
            torch.ones(_FEW, n_targets),
            device,
            loss,
            Loss,
            _n_targets=n_targets,
            _single_output=n_targets == 1,
        )

    @classmethod
    def from_skorch(cls, net, n_outputs=1):
        """Wrap a fitted skorch regressor.

        Parameters
        ----------
        net : skorch.NeuralNetRegressor
            Fitted. Its criterion is the loss.
        n_outputs : int, default=1
            Number of columns that the net's module returns.

        Returns
        -------
        TorchRegressor
            Fitted estimator with ``trajectory_=None``; see `from_module`.
        """
        module, loss = regressor_of(net)
        return cls.from_module(module, n_outputs, loss=loss, device=net.device)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def make_estimator(estimator, y, seed):
    """Return what to train: a clone without unset seeds; for None what suits y."""
    if estimator is None:
        kind = target_type(y)
        if kind in ("binary", "multiclass", "multilabel-indicator"):
            return TorchClassifier(random_state=seed)
        return TorchRegressor(random_state=seed)
    estimator = clone(estimator)
    if not isinstance(estimator, FrozenEstimator):
        seed_unset(estimator, seed)
    return estimator
