"""A callback of Lightning that records a training, so that it can be attributed."""

import functools
from dataclasses import replace

import numpy as np
from torch import nn

from skattrib._docstrings import fill_in
from skattrib.engine._modules import uncompiled_copy
from skattrib.exceptions import TrajectoryError
from skattrib.models.recording._callbacks import with_base, written_class
from skattrib.models.recording._estimators import (
    RecordedClassifier,
    RecordedRegressor,
)
from skattrib.models.recording._recording import record_training
from skattrib.models.recording._replay import DOCS, first_loss, repeat
from skattrib.models.recording._row_order import RowOrder, unwatch

# Lightning's names of precisions, and whether they round what a replay does not.
_PRECISIONS = {"32-true": None, "64-true": None, "bf16-mixed": "bf16-mixed"}
# Callbacks that write weights without a step.
_AVERAGING = {"StochasticWeightAveraging", "WeightAveraging", "EMAWeightAveraging"}
_LIBRARIES = ("lightning.", "pytorch_lightning.", "torch.")
# Losses of the first step that are the same.
_SAME = 1e-3


class LightningRecorder:
    """Records the training of a LightningModule, which goes on as it does.

    Pass it among the ``callbacks`` of the Trainer; it is a callback of
    ``lightning.pytorch``. The rows of each step are known from the DataLoader, shuffled
    or not.

    Parameters
    ----------
    module : str or None, default=None
        Name of the part of the LightningModule that maps rows to outputs and holds all
        that is trained, as "net" of ``self.net``. None: the LightningModule itself, if
        it has ``forward``; else its only such part.

    See Also
    --------
    SkorchRecorder : The same for skorch.
    skattrib.record_training : Records a loop of your own.

    Notes
    -----
    Optimizer, learning rates, also of a scheduler, clipping by norm, dropout and batch
    normalisation are recorded, and gradients accumulated over equal batches: such a
    step is of the mean over all its rows. With batch normalisation it is not, and is
    refused.

    The loss is not known from the code: it is the LightningModule's only loss of
    torch.nn, as ``self.criterion``, or what is passed as ``loss``, and is compared with
    what ``training_step`` returned in each step.

    Refused are manual optimisation, several optimizers, several devices, weights
    averaged by a callback, and precisions but "32-true", "64-true" and "bf16-mixed".
    The last is replayed in float32, with a warning that says how far from the network
    that comes out.

    Examples
    --------
    >>> import warnings
    >>> import torch
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.frozen import FrozenEstimator
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> from lightning import pytorch as pl
    >>> from skattrib import AdamWInfluence
    >>> from skattrib.recording import LightningRecorder
    >>> class Net(pl.LightningModule):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.net = torch.nn.Linear(4, 3)
    ...         self.criterion = torch.nn.CrossEntropyLoss()
    ...     def forward(self, X):
    ...         return self.net(X)
    ...     def training_step(self, batch):
    ...         return self.criterion(self(batch[0]), batch[1])
    ...     def configure_optimizers(self):
    ...         return torch.optim.AdamW(self.parameters(), lr=0.1)
    >>> X, y = load_iris(return_X_y=True)
    >>> X = X.astype("float32")
    >>> recorder = LightningRecorder()
    >>> trainer = pl.Trainer(
    ...     max_epochs=3, callbacks=[recorder], logger=False, accelerator="cpu",
    ...     enable_checkpointing=False, enable_progress_bar=False,
    ...     enable_model_summary=False,
    ... )
    >>> rows = TensorDataset(torch.tensor(X), torch.tensor(y))
    >>> with warnings.catch_warnings(action="ignore"):  # of Lightning
    ...     trainer.fit(Net(), DataLoader(rows, batch_size=50, shuffle=True))
    >>> trained = FrozenEstimator(recorder.to_classifier(X, y))
    >>> AdamWInfluence(trained, random_state=0).fit(X, y).attribute(X[:2], y[:2]).shape
    (2, 150)
    """

    _is_made = False
    _recording = _restore = None
    _watched = ()

    def __new__(cls, module=None):
        """Make it a callback of Lightning, which is imported here at the earliest."""
        return super().__new__(_as_callback(cls))

    def __init__(self, module=None):
        self.module = module

    def __reduce__(self):
        """Return how to make it again: its class has no place in a module."""
        return written_class(self), (self.module,), vars(self).copy()

    # -------------------------------------------------------------- recording
    def setup(self, trainer, pl_module, stage):
        """Begin anew; raise if the training could not be repeated.

        Parameters
        ----------
        trainer : lightning.pytorch.Trainer
            That is about to train.
        pl_module : lightning.pytorch.LightningModule
            Of which it is known whether it optimises by itself.
        stage : str
            Nothing happens but in "fit".

        Raises
        ------
        TrajectoryError
            If it optimises by itself, on several devices, in a precision that is not
            repeated, clips by value, or averages weights.
        """
        if stage != "fit":
            return
        _check_trainer(trainer, pl_module)
        self._close(TrajectoryError)  # what an error may have left
        self._recording, self._order = None, RowOrder()
        self._parts, self._losses, self._sizes = [], [], []
        self._precision = _PRECISIONS[trainer.precision]
        strategy, process = trainer.strategy, trainer.strategy.process_dataloader
        self._watched = []

        def watching(loader):
            loader = process(loader)
            known = [one for one, _ in self._watched]
            if trainer.training and not any(one is loader for one in known):
                self._watched.append(self._order.watch(loader, "train_dataloader"))
            return loader

        strategy.process_dataloader = watching
        self._restore = functools.partial(delattr, strategy, "process_dataloader")

    def on_train_start(self, trainer, pl_module):
        """Begin to record.

        Parameters
        ----------
        trainer : lightning.pytorch.Trainer
            That trains.
        pl_module : lightning.pytorch.LightningModule
            That is trained.

        Raises
        ------
        TrajectoryError
            If there are several optimizers or loaders, gradients are accumulated over
            unequal batches, or no part of the module is known to be all of it.
        """
        if len(trainer.optimizers) != 1:
            raise TrajectoryError(
                f"configure_optimizers returned {len(trainer.optimizers)} optimizers, "
                "and the recorder repeats one: return one, or record a loop of your "
                "own by record_training(model, [muon, adamw])."
            )
        if not any(loader is trainer.train_dataloader for loader, _ in self._watched):
            raise TrajectoryError(
                f"train_dataloader gives {len(self._watched)} DataLoaders in a "
                f"{type(trainer.train_dataloader).__name__}: give one, whose rows are "
                "those of one X."
            )
        model = _part(pl_module, self.module)
        clip = trainer.gradient_clip_val or None
        self._recording = record_training(model, trainer.optimizers[0], clip_norm=clip)
        self._recording.__enter__()
        self._criterion = _criterion(pl_module)

    def on_train_epoch_start(self, trainer, pl_module):
        """Raise if gradients are accumulated over unequal batches.

        Parameters
        ----------
        trainer : lightning.pytorch.Trainer
            That trains.
        pl_module : lightning.pytorch.LightningModule
            Of no use here.

        Raises
        ------
        TrajectoryError
            If a step would be no mean over its rows.
        """
        k, n_batches = trainer.accumulate_grad_batches, trainer.num_training_batches
        if k == 1 or n_batches == float("inf"):
            return
        loader = trainer.train_dataloader
        size, n_rows = loader.batch_size, len(loader.sampler)
        if size and -(-n_rows // size) == n_batches and n_rows % size:
            _refuse_sizes(k, [size, n_rows % size])
        if n_batches % k:
            raise TrajectoryError(
                f"accumulate_grad_batches={k}, but an epoch has {n_batches} batches: "
                f"its last step would be of {n_batches % k}, divided by {k}. Use "
                f"limit_train_batches={n_batches // k * k}, or another batch_size."
            )

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        """Note the rows of a batch.

        Parameters
        ----------
        trainer : lightning.pytorch.Trainer
            That trains.
        pl_module : lightning.pytorch.LightningModule
            Of no use here.
        batch : object
            Of no use here.
        batch_idx : int
            Of no use here.

        Raises
        ------
        TrajectoryError
            If the rows are not known, or a step has batches of different sizes.
        """
        rows = self._order.next()
        k = trainer.accumulate_grad_batches
        if batch_idx % k == 0:
            self._sizes = []
        self._sizes.append(len(rows))
        if len(set(self._sizes)) > 1:
            _refuse_sizes(k, self._sizes)
        self._recording.rows(rows)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        """Note the loss of a batch.

        Parameters
        ----------
        trainer : lightning.pytorch.Trainer
            Of no use here.
        pl_module : lightning.pytorch.LightningModule
            Of no use here.
        outputs : dict
            With the loss, divided by the number of batches that are accumulated.
        batch : object
            Of no use here.
        batch_idx : int
            Of no use here.
        """
        self._parts.append(outputs["loss"] if outputs else float("nan"))
        if self._recording._n_steps > len(self._losses):
            self._losses.append(sum(self._parts))
            self._parts = []

    def on_train_end(self, trainer, pl_module):
        """End the recording.

        Parameters
        ----------
        trainer : lightning.pytorch.Trainer
            Of no use here.
        pl_module : lightning.pytorch.LightningModule
            Of no use here.
        """
        self._close(None)

    def on_exception(self, trainer, pl_module, exception):
        """Give the recording up.

        Parameters
        ----------
        trainer : lightning.pytorch.Trainer
            Of no use here.
        pl_module : lightning.pytorch.LightningModule
            Of no use here.
        exception : BaseException
            That ended the training.
        """
        self._close(type(exception))

    def _close(self, kind):
        """Leave the loader and the strategy as they were, and the recording."""
        unwatch(self._watched)
        self._watched = ()
        if self._restore is not None:
            self._restore()
            self._restore = None
        if self._recording is not None:
            self._recording.__exit__(kind, None, None)

    # ------------------------------------------------------------------ using
    @fill_in(DOCS)
    def to_classifier(self, X, y=None, classes=None, sample_weight=None, loss="auto"):
        """Return the trained network as a fitted classifier that knows its training.

        The run is replayed, and its losses and its end compared with those of the run.

        Parameters
        ----------
        %(data)s
        y : array-like of shape (n_samples,), default=None
            Their labels; None only with a Dataset.
        classes : array-like of shape (n_classes,) or None, default=None
            Labels of the network's outputs, sorted; None for those in y.
        %(row_weights)s
        loss : "auto", nn.Module or callable, default="auto"
            Loss of a row, as :class:`~skattrib.TorchClassifier` takes it. "auto" is the
            LightningModule's own loss of torch.nn, if it holds one.

        Returns
        -------
        TorchClassifier
            Fitted estimator, for `sklearn.frozen.FrozenEstimator`.

        %(raises_and_warns)s
        """
        run = self._finished()
        options = {"classes": classes, "loss": self._loss(loss)}
        return repeat(run, RecordedClassifier, X, y, sample_weight, options)

    @fill_in(DOCS)
    def to_regressor(self, X, y=None, sample_weight=None, loss="auto"):
        """Return the trained network as a fitted regressor that knows its training.

        The run is replayed, and its losses and its end compared with those of the run.

        Parameters
        ----------
        %(data)s
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Their targets; None only with a Dataset.
        %(row_weights)s
        loss : "auto", nn.Module or callable, default="auto"
            Loss of a row, as :class:`~skattrib.TorchRegressor` takes it. "auto" is the
            LightningModule's own loss of torch.nn, if it holds one; else half the
            squared error, or MSELoss, whichever the first step had.

        Returns
        -------
        TorchRegressor
            Fitted estimator, for `sklearn.frozen.FrozenEstimator`.

        %(raises_and_warns)s
        """
        run = self._finished()
        data, options = (X, y, sample_weight), {"loss": self._loss(loss)}
        if options["loss"] == "auto":
            other = {"loss": nn.MSELoss()}
            found = first_loss(run, RecordedRegressor, *data, other)
            if abs(found - run.losses[0]) <= _SAME * abs(run.losses[0]):
                options = other
        return repeat(run, RecordedRegressor, *data, options)

    def _loss(self, loss):
        """Return the loss to repeat the run with."""
        own = isinstance(loss, str) and loss == "auto" and self._criterion is not None
        return self._criterion if own else loss

    def _finished(self):
        """Return the run; raise if nothing was recorded."""
        if self._recording is None:
            raise TrajectoryError(
                "No training was recorded: pass this LightningRecorder among the "
                "callbacks of a Trainer, and call trainer.fit."
            )
        run = self._recording._finished()
        losses = np.array([float(loss) for loss in self._losses])
        return replace(run, losses=losses, precision=self._precision)


def _as_callback(cls):
    """Return a recorder's class that is one of Lightning's callbacks, too."""
    try:
        from lightning.pytorch import Callback
    except ImportError as error:
        raise ImportError(
            f"{cls.__name__} needs Lightning: pip install skattrib[lightning]."
        ) from error
    return with_base(cls, Callback)


def _check_trainer(trainer, pl_module):
    """Raise if a recording would not repeat what this Trainer does."""
    if not pl_module.automatic_optimization:
        raise TrajectoryError(
            "automatic_optimization=False: what a training_step of its own does to the "
            "weights is not known here. Leave it True, or record a loop of your own by "
            "record_training."
        )
    strategy = type(trainer.strategy).__name__
    if trainer.world_size > 1 or not strategy.startswith("SingleDevice"):
        raise TrajectoryError(
            f"strategy={strategy} with {trainer.world_size} processes: the gradients "
            "of several cannot be recorded in one. Use Trainer(devices=1, "
            "strategy='auto')."
        )
    if trainer.precision not in _PRECISIONS:
        raise TrajectoryError(
            f"precision={trainer.precision!r} is not repeated in full: steps may be "
            f"skipped, or weights rounded. Use one of {sorted(_PRECISIONS)}."
        )
    algorithm = trainer.gradient_clip_algorithm
    if trainer.gradient_clip_val and algorithm is not None and algorithm != "norm":
        name = getattr(algorithm, "value", algorithm)
        raise TrajectoryError(
            f"gradient_clip_algorithm={name!r} cannot be recorded: use 'norm'."
        )
    for callback in trainer.callbacks:
        names = {kind.__name__ for kind in type(callback).__mro__} & _AVERAGING
        if names:
            raise TrajectoryError(
                f"callbacks has {names.pop()}, which writes averages of the weights: "
                "that is no step. Leave it out; TorchClassifier(average='swa') trains "
                "with averages."
            )


def _refuse_sizes(k, sizes):
    raise TrajectoryError(
        f"accumulate_grad_batches={k}, and a step has batches of {sizes} rows: the "
        "mean of their losses is no mean over rows. Give the DataLoader "
        "drop_last=True, or a batch_size that divides the number of rows."
    )


def _holds_all(part, pl_module):
    """Say whether a module holds all that is trained of another, and something."""
    trained = [p for p in pl_module.parameters() if p.requires_grad]
    held = {id(p) for p in part.parameters()}
    return bool(trained) and all(id(p) in held for p in trained)


def _part(pl_module, name):
    """Return what maps rows to outputs in a LightningModule."""
    kind = type(pl_module).__name__
    if name is not None:
        try:
            part = pl_module.get_submodule(name)
        except AttributeError as error:
            raise TrajectoryError(
                f"module={name!r} is no part of {kind}; it has "
                f"{[part for part, _ in pl_module.named_children()]}."
            ) from error
        if not _holds_all(part, pl_module):
            raise TrajectoryError(
                f"module={name!r} does not hold all that is trained of {kind}: freeze "
                "the rest, or let module=None take all, by a forward of its own."
            )
        return part
    if not type(pl_module).forward.__module__.startswith(_LIBRARIES):
        return pl_module
    parts = [part for part in pl_module.children() if _holds_all(part, pl_module)]
    if len(parts) != 1:
        raise TrajectoryError(
            f"{kind} has no forward, and {len(parts)} parts that hold all that is "
            "trained: define forward, from rows to outputs, and call self(X) in "
            "training_step."
        )
    return parts[0]


def _criterion(pl_module):
    """Return a copy of the only loss of torch.nn that a LightningModule holds."""
    found = [
        part for part in pl_module.modules() if isinstance(part, nn.modules.loss._Loss)
    ]
    return uncompiled_copy(found[0]).cpu() if len(found) == 1 else None
