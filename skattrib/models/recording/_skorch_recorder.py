"""A callback of skorch that records a training, so that it can be attributed."""

from dataclasses import replace

from sklearn.base import BaseEstimator
from torch import nn

from skattrib._docstrings import fill_in
from skattrib.exceptions import TrajectoryError
from skattrib.models._skorch import after_module
from skattrib.models.recording._estimators import (
    RecordedClassifier,
    RecordedRegressor,
)
from skattrib.models.recording._recording import record_training
from skattrib.models.recording._replay import DOCS, repeat
from skattrib.models.recording._row_order import RowOrder


class SkorchRecorder(BaseEstimator):
    """Records the training of a skorch net, which goes on as it does.

    Pass it among the ``callbacks`` of the net, the last of them. The rows of each step
    are known from the net's iterator, shuffled or not; rows that ``train_split`` holds
    out are in no step.

    See Also
    --------
    skattrib.record_training : Records a loop of your own.
    skattrib.TorchClassifier.from_skorch : Wraps a fitted net, without its training.

    Notes
    -----
    Optimizer, learning rates, also of a scheduler, clipping by
    ``GradientNormClipping``, dropout and batch normalisation are recorded; the
    criterion is the loss. Refused is what a recording cannot repeat, see
    `skattrib.record_training`.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.frozen import FrozenEstimator
    >>> from skorch import NeuralNetClassifier
    >>> from skattrib import AdamWInfluence
    >>> from skattrib.recording import SkorchRecorder
    >>> X, y = load_iris(return_X_y=True)
    >>> X = X.astype("float32")
    >>> recorder = SkorchRecorder()
    >>> net = NeuralNetClassifier(
    ...     torch.nn.Linear(4, 3),
    ...     criterion=torch.nn.CrossEntropyLoss,
    ...     optimizer=torch.optim.AdamW,
    ...     max_epochs=3,
    ...     train_split=None,
    ...     iterator_train__shuffle=True,
    ...     callbacks=[recorder],
    ...     verbose=0,
    ... ).fit(X, y)
    >>> trained = FrozenEstimator(recorder.to_classifier(X, y))
    >>> AdamWInfluence(trained, random_state=0).fit(X, y).attribute(X[:2], y[:2]).shape
    (2, 150)
    """

    _net = _recording = None

    def initialize(self):
        """Begin anew, as skorch does with the net.

        Returns
        -------
        self : SkorchRecorder
            Without a recording.
        """
        if self._recording is not None:  # which an error may have left open
            self._recording.__exit__(TrajectoryError, None, None)
        self._net = self._recording = None
        return self

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Begin to record.

        Parameters
        ----------
        net : skorch.NeuralNet
            Initialised.
        X, y : array-like or Dataset
            Of no use here.
        **kwargs : dict
            Of no use here.
        """
        if self._recording is not None:
            raise TrajectoryError(
                "A SkorchRecorder holds one training from its start: call net.fit, not "
                "partial_fit, and use warm_start=False."
            )
        self._net = net
        self._recording = record_training(
            net.module_, net.optimizer_, clip_norm=_clip_norm(net)
        )
        self._recording.__enter__()
        if net.iterator_train != self._noting:  # that an error left in its place
            self._iterator = net.iterator_train
        self._order, net.iterator_train = RowOrder(), self._noting

    def _noting(self, dataset, **options):
        """Return the net's own iterator, that notes which rows it takes."""
        loader = self._iterator(dataset, **options)
        self._order.watch(loader, "iterator_train")
        return loader

    def on_batch_begin(self, net, batch=None, training=None, **kwargs):
        """Note the rows of a step.

        Parameters
        ----------
        net : skorch.NeuralNet
            That is trained.
        batch : tuple of Tensor
            Of no use here.
        training : bool
            Whether it is a step of the training.
        **kwargs : dict
            Of no use here.
        """
        if training:
            self._recording.rows(self._order.next())

    def on_train_end(self, net, X=None, y=None, **kwargs):
        """End the recording.

        Parameters
        ----------
        net : skorch.NeuralNet
            That was trained.
        X, y : array-like or Dataset
            Of no use here.
        **kwargs : dict
            Of no use here.
        """
        net.iterator_train = self._iterator
        self._recording.__exit__(None, None, None)

    def on_epoch_begin(self, net, **kwargs):
        """Do nothing.

        Parameters
        ----------
        net : skorch.NeuralNet
            That is trained.
        **kwargs : dict
            Of no use here.
        """

    # of what else skorch tells its callbacks
    on_epoch_end = on_batch_end = on_grad_computed = on_epoch_begin

    # ------------------------------------------------------------------ using
    @fill_in(DOCS)
    def to_classifier(self, X, y=None, sample_weight=None):
        """Return the net as a fitted classifier that knows its training.

        The run is replayed, and its end compared with that of the net.

        Parameters
        ----------
        %(data)s
        y : array-like of shape (n_samples,), default=None
            Their labels; None only with a Dataset.
        %(row_weights)s

        Returns
        -------
        TorchClassifier
            Fitted estimator, for `sklearn.frozen.FrozenEstimator`.

        %(raises_and_warns)s
        """
        run, loss = self._finished()
        options = {"classes": self._net.classes_, "loss": loss}
        return repeat(run, RecordedClassifier, X, y, sample_weight, options)

    @fill_in(DOCS)
    def to_regressor(self, X, y=None, sample_weight=None):
        """Return the net as a fitted regressor that knows its training.

        The run is replayed, and its end compared with that of the net.

        Parameters
        ----------
        %(data)s
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Their targets; None only with a Dataset.
        %(row_weights)s

        Returns
        -------
        TorchRegressor
            Fitted estimator, for `sklearn.frozen.FrozenEstimator`.

        %(raises_and_warns)s
        """
        run, loss = self._finished()
        return repeat(run, RecordedRegressor, X, y, sample_weight, {"loss": loss})

    def _finished(self):
        """Return the run and the loss; raise if nothing was recorded."""
        if self._recording is None:
            raise TrajectoryError(
                "No training was recorded: pass this SkorchRecorder among the "
                "callbacks of a net, and fit it. A clone of the net has a recorder of "
                "its own, in net.callbacks_."
            )
        run, loss = self._recording._finished(), self._net.criterion_
        if (end := after_module(loss)) is None:
            return run, loss
        return replace(run, module=nn.Sequential(run.module, end)), "auto"


def _clip_norm(net):
    """Return the norm that the net's gradients are clipped to, None if they are not."""
    for _, callback in net.callbacks_:
        value = getattr(callback, "gradient_clip_value", None)
        if value is None:
            continue
        if callback.gradient_clip_norm_type != 2:
            raise TrajectoryError(
                f"GradientNormClipping with norm {callback.gradient_clip_norm_type} "
                "cannot be recorded: use gradient_clip_norm_type=2."
            )
        return float(value)
    return None
