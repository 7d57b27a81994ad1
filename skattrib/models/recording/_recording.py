"""Record your own training loop, so that its run can be attributed."""

from numbers import Real

import numpy as np
import torch

from skattrib._docstrings import fill_in
from skattrib._validation import as_tensor, check_array
from skattrib.engine._functional import FunctionalModule
from skattrib.engine._modules import uncompiled_copy
from skattrib.engine._optimizers import map_state
from skattrib.engine._trajectory import Recipe, TrainingState, Trajectory
from skattrib.exceptions import TrajectoryError
from skattrib.models.recording._draws import Draws
from skattrib.models.recording._estimators import (
    RecordedClassifier,
    RecordedRegressor,
    check_rows,
)
from skattrib.models.recording._reading import (
    as_optimizers,
    as_rows,
    check_layers,
    check_model,
    check_optimizers,
    flat,
    read_decay,
    read_groups,
    read_rates,
    read_settings,
    read_state,
)
from skattrib.models.recording._replay import DOCS, Run, repeat

# clip_grad_norm_ leaves a gradient at the norm asked for, up to rounding.
_CLIPPED = 1.0 + 1e-3


def _same(one, other):
    """Compare the weight decays of parameters, None where they are all alike."""
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


class TrainingRecording:
    """A recorded training loop, made by `record_training`.

    Parameters
    ----------
    model : nn.Module
        Module that is trained.
    optimizer : torch.optim.Optimizer or list of them
        What trains it.
    clip_norm : float or None, default=None
        Norm that the loop clips gradients to.

    See Also
    --------
    record_training : Makes a recording.

    Examples
    --------
    A recording outlives the session in a file:

    >>> import tempfile, torch
    >>> from pathlib import Path
    >>> from sklearn.datasets import load_iris
    >>> from skattrib import TrainingRecording, record_training
    >>> X, y = load_iris(return_X_y=True)
    >>> rows, targets = torch.tensor(X).float(), torch.tensor(y)
    >>> model = torch.nn.Linear(4, 3)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with record_training(model, optimizer) as recording:
    ...     for batch in torch.arange(150).split(50):
    ...         recording.rows(batch)
    ...         optimizer.zero_grad()
    ...         loss = torch.nn.functional.cross_entropy(
    ...             model(rows[batch]), targets[batch])
    ...         loss.backward()
    ...         optimizer.step()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "run.safetensors"
    ...     recording.save(path, X, y)
    ...     again = TrainingRecording.load(path, torch.nn.Linear(4, 3), X, y)
    >>> again.to_classifier(X, y).predict(X[:2]).shape
    (2,)
    """

    _handles = ()
    _run = None

    def __init__(self, model, optimizer, clip_norm=None):
        check_model(model)
        optimizers = as_optimizers(optimizer)
        check_optimizers(model, optimizers)
        if clip_norm is not None and not (
            isinstance(clip_norm, Real) and clip_norm > 0
        ):
            raise ValueError(f"clip_norm must be above 0 or None, got {clip_norm!r}.")
        self._model, self._optimizers, self._clip_norm = model, optimizers, clip_norm
        self._entered = False
        self._pending, self._batches, self._rates = [], [], []
        # rates of the optimizers that have taken the present step, by position
        self._taken = {}
        self._first_norm = None

    # -------------------------------------------------------------- recording
    def __enter__(self):
        if self._run is not None or self._entered:
            raise TrajectoryError(
                "This recording has been used: make a new one by record_training."
            )
        check_model(self._model)
        check_optimizers(self._model, self._optimizers)
        self._entered = True
        self._trained = [p for p in self._model.parameters() if p.requires_grad]
        self._settings = read_settings(self._optimizers, self._trained)
        self._decay = read_decay(self._optimizers, self._trained)
        self._n_before, self._moments = read_state(
            self._optimizers, self._settings, self._trained
        )
        self._initial = _copied(self._model)
        self._draws = Draws(self._model)
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step)
            for optimizer in self._optimizers
        ]
        self._handles += self._draws.handles
        return self

    def __exit__(self, kind, error, traceback):
        for handle in self._handles:
            handle.remove()
        self._handles = ()
        if kind is None:
            self._end()

    def rows(self, rows):
        """Say which rows of X the next step learns from.

        Several calls before one step add up: gradients that are accumulated, so that
        the step is of the mean over all of these rows.

        Parameters
        ----------
        rows : array-like of int of shape (n_rows,)
            Indices of the minibatch's rows in the X of `to_classifier` or
            `to_regressor`.

        Raises
        ------
        ValueError
            If these are no indices.
        TrajectoryError
            If nothing is being recorded.
        """
        if not self._handles:
            raise TrajectoryError("rows() was called outside `with recording:`.")
        self._pending.append(as_rows(rows))

    @property
    def _n_steps(self):
        """Number of steps recorded so far."""
        return len(self._batches)

    def _before_step(self, optimizer, args, kwargs):
        step = len(self._rates) + 1
        given = [*args, *kwargs.values()]
        closures = [v for v in given if v is not None and v is not optimizer]
        if closures and (len(self._optimizers) > 1 or not callable(closures[0])):
            raise TrajectoryError(
                f"Step {step} was called with a closure, and there are several "
                "optimizers: compute the gradient first and call step() of each alone."
            )
        for closure in closures:  # which computes the gradient: once, as the step does
            with torch.enable_grad():
                closure()
        place = [known is optimizer for known in self._optimizers].index(True)
        if place in self._taken or (self._taken and self._pending):
            raise TrajectoryError(
                f"In step {step} not every optimizer was called: call step() of each "
                f"of the {len(self._optimizers)} once, one after the other, for every "
                "minibatch."
            )
        self._check_settings(step)
        if not self._taken:
            self._begin_step(step)

        self._taken[place] = read_rates(optimizer)
        if len(self._taken) == len(self._optimizers):
            rates = [self._taken[i] for i in range(len(self._optimizers))]
            self._rates.append(np.concatenate(rates))
            self._taken = {}
        return ((optimizer,), {}) if closures else None

    def _check_settings(self, step):
        settings = read_settings(self._optimizers, self._trained)
        decay = read_decay(self._optimizers, self._trained)
        if settings != self._settings or not _same(decay, self._decay):
            raise TrajectoryError(
                f"The optimizer's hyper-parameters changed before step {step}, from "
                f"{self._settings} to {settings}. Only the learning rate may "
                "change (OneCycleLR needs cycle_momentum=False)."
            )

    def _begin_step(self, step):
        """Note the rows of a step, before the first optimizer takes it."""
        if not self._pending:
            raise TrajectoryError(
                f"The rows of step {step} are not known: call recording.rows(indices) "
                "before optimizer.step()."
            )
        check_layers(self._model, f"In step {step}, model")
        norm = self._gradient_norm(step)
        if step == 1:
            self._first_norm = norm
        self._draws.end_step(step, [len(rows) for rows in self._pending])
        self._batches.append(np.concatenate(self._pending))
        self._pending = []

    def _gradient_norm(self, step):
        """Return the norm of the gradient of a step; raise where it cannot be right."""
        named = [
            (name, p) for name, p in self._model.named_parameters() if p.requires_grad
        ]
        without = [name for name, p in named if p.grad is None]
        if without or len(named) != len(self._trained):
            what = f"{without[0]} has no gradient" if without else "others are trained"
            raise TrajectoryError(
                f"The same parameters must be trained in every step, but in step "
                f"{step} {what}. Freeze what the loss does not depend on, by "
                "requires_grad_(False), before recording."
            )
        norms = [torch.linalg.vector_norm(p.grad) for _, p in named]
        norm = float(torch.linalg.vector_norm(torch.stack(norms)))
        if not np.isfinite(norm):
            raise TrajectoryError(
                f"The gradient of step {step} is not finite. Lower the learning rate, "
                "clip the gradient, or scale X."
            )
        clip = self._clip_norm
        if clip is not None and norm > clip * _CLIPPED:
            raise TrajectoryError(
                f"clip_norm={clip}, but the gradient of step {step} has norm {norm:.3g}"
                ": call torch.nn.utils.clip_grad_norm_ on all parameters before "
                "optimizer.step(), or leave clip_norm out."
            )
        return norm

    def _end(self):
        """Note the state at the end of the run."""
        if self._taken:
            raise TrajectoryError(
                "The recording ended before every optimizer had taken the last step."
            )
        self._draws.put_modes(self._initial)
        moving = self._draws.moving
        before = _untrained(self._initial)
        for name, value in _untrained(self._model).items():
            if name in moving or name not in before:
                continue
            if not torch.equal(value.cpu(), before[name]):
                raise TrajectoryError(
                    f"{name}, which the optimizer does not train, changed during the "
                    "recording: a run with other weights would not repeat that."
                )
        params = flat(self._trained)
        _, moments = read_state(self._optimizers, self._settings, self._trained)
        if moments is None:
            moments = self._settings.initial_state(params)
        rates, groups = self._learning_rates()
        recipe = Recipe(
            optimizer=self._settings,
            learning_rates=rates,
            initial=FunctionalModule(self._initial).flatten(),
            batches=self._batches,
            clip_norm=self._clip_norm,
            n_before=self._n_before,
            moments=self._moments,
            decay=self._decay,
            groups=groups,
            statistics=FunctionalModule(self._initial).statistics() if moving else None,
            generator_states=self._draws.states(),
        )
        if moving:
            statistics = FunctionalModule(_copied(self._model)).statistics()
            params = torch.cat([params, statistics.to(params)])
        end = TrainingState(params[None], map_state(lambda m: m[None], moments))
        device = str(self._trained[0].device)
        self._run = Run(self._initial, device, recipe, end, self._first_norm)

    def _learning_rates(self):
        """Return the rates of the steps, and the groups of parameters or None."""
        rates = torch.tensor(np.array(self._rates), dtype=torch.float64)
        if not len(rates):
            return rates, None
        if bool((rates == rates[:, :1]).all()):
            return rates[:, 0].contiguous(), None
        return rates, read_groups(self._optimizers, self._trained)

    def _finished(self):
        """Return the run; raise if there is none."""
        if self._run is None:
            raise TrajectoryError(
                "There is no recorded run: train inside `with recording:`, and to its "
                "end without an error."
            )
        if not self._run.recipe.n_steps:
            raise TrajectoryError(
                "No step was recorded: optimizer.step() was not called inside "
                "`with recording:`, or not of the optimizer passed to record_training."
            )
        if not self._run.recipe.learning_rates.any():
            raise TrajectoryError(
                "The learning rate was 0 in every recorded step: nothing was learnt."
            )
        return self._run

    # ------------------------------------------------------------------ using
    @fill_in(DOCS)
    def to_classifier(self, X, y, classes=None, sample_weight=None, loss="auto"):
        """Return the recorded model as a fitted classifier.

        The run is replayed, and its end compared with that of the loop.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            All rows that the loop indexed, in their order.
        y : array-like of shape (n_samples,)
            Their labels.
        classes : array-like of shape (n_classes,) or None, default=None
            Labels of the model's outputs, sorted; None for those in y.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights that the loop gave to the losses of rows, as Σ w ℓ / Σ w.
        loss : "auto", nn.Module or callable, default="auto"
            Loss of the loop, as :class:`~skattrib.TorchClassifier` takes it.

        Returns
        -------
        TorchClassifier
            Fitted estimator with the loop's weights and a `trajectory_`; clones of it
            repeat the run. Use it inside `sklearn.frozen.FrozenEstimator`.

        %(raises_and_warns)s
        """
        options = {"classes": classes, "loss": loss}
        return repeat(
            self._finished(), RecordedClassifier, X, y, sample_weight, options
        )

    @fill_in(DOCS)
    def to_regressor(self, X, y, sample_weight=None, loss="auto"):
        """Return the recorded model as a fitted regressor.

        The run is replayed, and its end compared with that of the loop.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            All rows that the loop indexed, in their order.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Their targets.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights that the loop gave to the losses of rows, as Σ w ℓ / Σ w.
        loss : "auto", nn.Module or callable, default="auto"
            Loss of the loop, as :class:`~skattrib.TorchRegressor` takes it.

        Returns
        -------
        TorchRegressor
            Fitted estimator with the loop's weights and a `trajectory_`; clones of it
            repeat the run. Use it inside `sklearn.frozen.FrozenEstimator`.

        %(raises_and_warns)s
        """
        options = {"loss": loss}
        return repeat(self._finished(), RecordedRegressor, X, y, sample_weight, options)

    # ------------------------------------------------------------------- disk
    def save(self, path, X, y):
        """Write the recording to a safetensors file.

        Parameters
        ----------
        path : str or path-like
            File to write, or to replace.
        X : array-like of shape (n_samples, n_features)
            All rows that the loop indexed. Only a digest of the data is written.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Their targets.

        Raises
        ------
        TrajectoryError
            If no run was recorded, or it is of rows that X does not have.
        """
        run = self._finished()
        X, y = _data(X, y)
        check_rows(run.recipe.batches, len(X))
        states = {run.recipe.n_steps: run.end}
        Trajectory(run.recipe, torch.ones(len(X)), states=states).save(path, X, y)

    @classmethod
    def load(cls, path, module, X, y):
        """Read what `save` wrote.

        Parameters
        ----------
        path : str or path-like
            File to read.
        module : nn.Module
            Module built as the recorded one was; its trainable weights do not matter.
        X : array-like of shape (n_samples, n_features)
            Data that the run was saved with, in the same order and dtype.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Their targets.

        Returns
        -------
        TrainingRecording
            For `to_classifier` or `to_regressor`.

        Raises
        ------
        TrajectoryError
            If the file holds no recording, or one of other data or another module.
        """
        check_model(module)
        device = next(p.device for p in module.parameters() if p.requires_grad)
        trajectory = Trajectory.load(path, *_data(X, y))
        recipe = trajectory.recipe
        end = trajectory.states.get(recipe.n_steps)
        if end is None or not recipe.batches:
            raise TrajectoryError(
                f"{path} holds no recording: the end of the run, or what its steps "
                "were, is missing."
            )
        module = uncompiled_copy(module).to("cpu", recipe.initial.dtype)
        model = FunctionalModule(module)
        if model.n_params != len(recipe.initial):
            raise TrajectoryError(
                f"{path} is the record of a module with {len(recipe.initial)} "
                f"trainable parameters; {type(module).__name__} has {model.n_params}."
            )
        model.load(recipe.start)
        recording = cls.__new__(cls)
        recording._run = Run(module, str(device), recipe, end)
        return recording


def _copied(model):
    try:
        return uncompiled_copy(model).cpu()
    except RuntimeError as error:
        raise ValueError(
            f"model cannot be copied: {error}. Weights that a layer computes need "
            "torch.nn.utils.parametrizations."
        ) from error


def _untrained(model):
    """Return buffers and frozen parameters by name."""
    named = [*model.named_buffers(), *model.named_parameters()]
    return {
        name.replace("_orig_mod.", ""): value  # as in the uncompiled copy
        for name, value in named
        if not value.requires_grad
    }


def _data(X, y):
    """Return the data as tensors whose digest tells them from others."""
    X = check_array(X, dtype=[np.float64, np.float32], allow_nd=True)
    y = np.asarray(y)
    if y.dtype.kind not in "biuf":
        y = np.unique(y, return_inverse=True)[1]
    return as_tensor(X), as_tensor(y)


def record_training(model, optimizer, clip_norm=None):
    """Record your own training loop, so that its run can be attributed.

    Wrap the loop in ``with recording:`` and call ``recording.rows(indices)`` for each
    minibatch. Steps are seen through a hook of the optimizer; nothing else about the
    loop changes.

    Parameters
    ----------
    model : nn.Module
        Module from rows (n, n_features) to unnormalised log-probabilities or
        predictions; rows have the shape that it takes. Layers that mix rows are
        refused, but for batch normalisation; dropout is repeated from the states of
        torch's generator, but for that of attention.
    optimizer : torch.optim.AdamW, Adam, SGD, RMSprop or Muon, or list of them
        What holds all trainable parameters of the model. Groups of them may differ in
        learning rate and weight decay. Schedulers may change the learning rate. It may
        have taken steps before. A list is ``[Muon(...), AdamW(...)]``, for matrices
        and for the other parameters.
    clip_norm : float or None, default=None
        Norm that the loop clips the gradient of every step to, by
        ``torch.nn.utils.clip_grad_norm_``.

    Returns
    -------
    TrainingRecording
        A context manager.

    Raises
    ------
    TypeError
        If `model` is no module.
    ValueError
        If `model` or `optimizer` cannot be recorded.

    See Also
    --------
    AdamWInfluence : Differentiates the recorded run.
    TorchClassifier : Trains and records by itself.

    Notes
    -----
    The loss of a step must be the mean over its rows of the cross-entropy, or of
    ½ Σ_outputs error². Otherwise replaying the recording ends elsewhere, which
    `TrainingRecording.to_classifier` and `to_regressor` say.

    With dropout or batch normalisation, each step must take one forward pass with
    gradients. While recording, a step raises TrajectoryError if its rows are not known,
    its gradient is missing for some parameter, not finite or not clipped as said, or
    the optimizer's hyper-parameters have changed.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.frozen import FrozenEstimator
    >>> from skattrib import AdamWInfluence, record_training
    >>> X, y = load_iris(return_X_y=True)
    >>> rows, targets = torch.tensor(X).float(), torch.tensor(y)
    >>> model = torch.nn.Linear(4, 3)
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    >>> recording = record_training(model, optimizer)
    >>> with recording:
    ...     for batch in torch.arange(150).split(50):
    ...         recording.rows(batch)
    ...         optimizer.zero_grad()
    ...         loss = torch.nn.functional.cross_entropy(
    ...             model(rows[batch]), targets[batch])
    ...         loss.backward()
    ...         optimizer.step()
    >>> trained = FrozenEstimator(recording.to_classifier(X, y))
    >>> AdamWInfluence(trained).fit(X, y).attribute(X[:2], y[:2]).shape
    (2, 150)
    """
    return TrainingRecording(model, optimizer, clip_norm)
