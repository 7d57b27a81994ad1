"""Selection of rows during training, by looking a few steps ahead."""

from dataclasses import replace
from math import ceil
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.utils import Bunch
from sklearn.utils._param_validation import Interval, StrOptions, validate_params

from skattrib._indexes import index_of
from skattrib._progress import tqdm
from skattrib._validation import (
    as_tensor,
    check_completions,
    check_sample_weight,
    first_labels,
    float_dtype,
    label_positions,
    memory_cap,
)
from skattrib.engine._adjoint import check_differentiable, differentiate_run
from skattrib.engine._functional import chunks
from skattrib.engine._modules import activation_size
from skattrib.engine._optimizers import map_state
from skattrib.engine._training import TrainingResult, start, train
from skattrib.engine._trajectory import steps_to_keep
from skattrib.engine._true_derivatives import check_true
from skattrib.exceptions import UnsupportedModelError
from skattrib.models._as_model import as_model, check_recipe
from skattrib.models._datasets import opened
from skattrib.models._parts import Parts, takes_completions
from skattrib.models._rows import check_whole, validate_rows

__all__ = ["lookahead_training"]

# Of the memory cap, what the states of a window may take: 1 / _SHARE.
_SHARE = 4
# Validation rows taken at a time.
_CHUNK = 8192
# Numbers alive per activation of a row, forwards and backwards.
_NUMBERS = 8


@validate_params(
    {
        "horizon": [Interval(Integral, 1, None, closed="left"), StrOptions({"run"})],
        "drop": [Interval(Real, 0, 1, closed="left")],
        "dynamics": [StrOptions({"recorded", "sgd"})],
        "sample_weight": ["array-like", None],
        "verbose": ["verbose"],
    },
    prefer_skip_nested_validation=True,
)
def lookahead_training(
    estimator,
    X,
    y,
    X_val,
    y_val,
    *,
    horizon=1,
    drop=0.1,
    dynamics="recorded",
    sample_weight=None,
    verbose=0,
):
    """Train a network and leave out, step by step, the rows that harm validation.

    The run is cut into windows of `horizon` steps. Each window is trained provisionally
    on all rows of its minibatches and differentiated: how would the validation loss at
    its end change if a row weighed less at one step? Then the run goes back to the
    start of the window, and takes its steps again without the worst rows of every
    minibatch.

    Parameters
    ----------
    estimator : TorchClassifier, TorchRegressor or CausalLanguageModel
        What to train; cloned. Any optimizer, schedule, clipping and batch size.
    X : array-like of shape (n_samples, n_features)
        Training rows; of a language model prompts, with completions for targets.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Their targets.
    X_val : array-like of shape (n_val, n_features)
        Rows of which the mean loss is to be low. They steer the training: measure the
        result on others.
    y_val : array-like of shape (n_val,) or (n_val, n_outputs)
        Their targets.
    horizon : int or "run", default=1
        Steps to look ahead. 1 judges a row by the very step that it is part of; "run",
        or as many as there are, is selection by the whole run.
    drop : float, default=0.1
        Share of the rows of each minibatch to leave out, in [0, 1), rounded down to
        whole rows. 0 is the plain training, with scores.
    dynamics : {"recorded", "sgd"}, default="recorded"
        "sgd" scores rows as if plain SGD had taken the steps: a baseline.
    sample_weight : array-like of shape (n_samples,) or None, default=None
        Multiplier of each row's loss. Rows of weight 0 do not count as rows of a
        minibatch and are never left out.
    verbose : int, default=0
        Shows progress when above 0.

    Returns
    -------
    Bunch
        With these entries; arrays of shape (n_entries,) have one entry per row of each
        minibatch, in the order of training.

        - estimator: fitted clone. Its `trajectory_` records the steps that were taken,
          as minibatches of the rows kept, so that attributors that take it in a
          `sklearn.frozen.FrozenEstimator` see that run, the selection held fixed. What
          retrains (their ``score``) trains on all rows, with a FaithfulnessWarning.
        - steps: int ndarray of shape (n_entries,), step of the run, from 1.
        - rows: int ndarray of shape (n_entries,), index of the row in X.
        - kept: bool ndarray of shape (n_entries,), whether that step was trained on it.
        - scores: ndarray of shape (n_entries,), derivative of the mean validation
          log-likelihood (regression: −½ Σ_outputs error²) at the end of the
          provisional window in the weight of the row at that step alone, times its
          weight. Positive = the row helps; the lowest are left out.
        - validation_loss: ndarray of shape (n_windows + 1,), mean validation loss (the
          negative of that outcome) before training and after each window. These rows
          chose what was trained on: judge the result by others.

    Raises
    ------
    ValueError
        If a parameter or the data cannot be used, no minibatch is large enough for a
        row to be left out, the module cannot be differentiated twice, or training or
        its derivatives diverge.

    Warns
    -----
    FaithfulnessWarning
        If `estimator` wraps a trained module: it is trained again from its weights.
        If autograd's derivatives are not those of what the module computes.

    See Also
    --------
    AdamWInfluence : Attributions along a run, to select rows before training.

    Notes
    -----
    It takes the time of about five plain trainings, of up to ten with ``horizon=1``.

    The first step of Adam and AdamW has the length of the learning rate in every
    parameter, whatever the gradient. With ``horizon=1``, scores of the first step are
    therefore of the size of `eps`, and its selection means almost nothing; it is
    made nevertheless.

    Equal scores are left out in the order of the minibatch.

    References
    ----------
    Influence of training data along AdamW's trajectory, arXiv:2605.18814. The rule for
    what to leave out, a share of each minibatch, is ours.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skattrib import TorchClassifier, lookahead_training
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = TorchClassifier(batch_size=25, max_epochs=5, random_state=0)
    >>> found = lookahead_training(
    ...     clf, X[::2], y[::2], X[1::4], y[1::4], horizon=3, drop=0.2)
    >>> found.estimator.predict(X[:2]).shape
    (2,)
    >>> float(found.kept.mean())
    0.8
    """
    index_of(X, y, {"sample_weight": sample_weight})
    index_of(X_val, y_val, names=("X_val", "y_val"))
    reader = None
    if Parts(estimator).reader is not None and not as_model(estimator).frozen:
        reader = Parts(clone(estimator))
        (X, y), (X_val, y_val) = opened(X, y), opened(X_val, y_val)
        if takes_completions(estimator):
            X, y = check_completions(X, y)
            X_val, y_val = check_completions(X_val, y_val)
        X, y = reader.fit_transformers(X, y)
        X_val, y_val = reader.rows(X_val, y_val)
    model = _cloned(estimator if reader is None else reader.model)
    problem, weights = _check_training(model, X, y, sample_weight)
    validation = _check_validation(model, X_val, y_val, problem)
    recipe = problem.recipe
    everything = np.arange(len(problem.X))
    batches = recipe.batches or [everything] * recipe.n_steps
    size = "batch_size" if reader is None else "train_batch_size"
    weighted, n_bytes = weights.cpu().numpy(), problem.X.element_size()
    _check_batches(batches, weighted, drop, n_bytes, size)
    whose = problem.model, problem.loss, problem.X, problem.targets
    check_differentiable(*whose)
    check_true(*whose, order=2)
    run = _Run(model, problem, weights, validation, batches, drop, dynamics)
    length = recipe.n_steps if horizon == "run" else horizon
    with tqdm(
        total=recipe.n_steps, desc="lookahead_training", disable=not verbose
    ) as bar:
        for window in chunks(recipe.n_steps, length):
            run.advance(window)
            bar.update(window.stop - window.start)
    found = run.result()
    if reader is not None:
        reader.replace_model(found.estimator)
        found.estimator = reader.whole
    return found


# ---------------------------------------------------------------- validation
def _cloned(estimator):
    """Return a clone that can be trained."""
    check_recipe(estimator, stacklevel=4)
    given = as_model(estimator)
    if given.frozen:
        raise ValueError(
            "estimator is a FrozenEstimator, which is not to be trained, but "
            "lookahead_training trains: pass the estimator that it holds."
        )
    if not Parts(estimator).is_bare:
        raise ValueError(
            f"estimator is a {type(estimator).__name__}; transform X, X_val and the "
            "targets first, and pass the network alone."
        )
    if not given.stacks:
        raise UnsupportedModelError(
            f"estimator must be a TorchClassifier or TorchRegressor, got {given.name}: "
            "its training has to be differentiated. Wrap a network by "
            "TorchClassifier(module=...)."
        )
    model = clone(given.estimator)
    for name in ("average", "early_stopping"):
        if value := getattr(model, name, None):
            raise ValueError(
                f"lookahead_training drops rows while it trains, and takes no "
                f"{name}={value!r}: what it looks ahead to is the last step. Use "
                f"{name}={'None' if name == 'average' else 'False'}."
            )
    model._validate_params()
    return model


def _check_training(model, X, y, sample_weight):
    """Return the problem, as `fit` would build it, and the weights of the rows."""
    regressor = is_regressor(model)
    X, y = opened(X, y)
    X, y = validate_rows(model, X, y, y_numeric=regressor, multi_output=regressor)
    weights = check_sample_weight(
        sample_weight, X, dtype=float_dtype(X), ensure_non_negative=True
    )
    problem = model._problem(X, model._learn_target(y, X))
    return problem, as_tensor(weights, problem.X)


def _check_validation(model, X_val, y_val, problem):
    """Return the validation rows and their targets as tensors."""
    regressor = is_regressor(model)
    try:
        X_val, y_val = opened(X_val, y_val)
        X_val, y_val = validate_rows(
            model,
            X_val,
            y_val,
            y_numeric=regressor,
            multi_output=regressor,
            reset=False,
        )
    except ValueError as error:
        raise ValueError(f"X_val and y_val do not fit X and y: {error}") from error
    if is_classifier(model):
        unseen = label_positions(model.classes_, y_val) < 0
        if unseen.any():
            raise ValueError(
                f"y_val holds labels that y does not: {first_labels(y_val[unseen])}; "
                "y has "
                f"{model.classes_[:10].tolist()}. Leave these validation rows out, or "
                "train on rows of every class."
            )
    elif (1 if y_val.ndim == 1 else y_val.shape[1]) != model.n_outputs_:
        raise ValueError(
            f"y_val has shape {y_val.shape}, but y has {model.n_outputs_} outputs: "
            "give both the same columns."
        )
    check_whole(problem.model.module, X_val)
    X_val = as_tensor(X_val, problem.X)
    return X_val, as_model(model).targets(y_val, X_val)


def _check_batches(batches, weights, drop, itemsize, size):
    """Raise unless something can be left out, and its record fits the memory."""
    largest = max(int((weights[rows] > 0).sum()) for rows in batches)
    if drop and not _quota(drop, largest):
        raise ValueError(
            f"drop={drop} of a minibatch of {largest} weighted rows is less than one "
            "row, or all there are: nothing could be left out. Raise drop, or "
            f"{size} to at least {max(2, ceil(1 / drop))}."
        )
    n_entries = sum(map(len, batches))
    needed = n_entries * (2 * np.intp(0).itemsize + itemsize + 1)
    if needed > memory_cap():
        raise ValueError(
            f"{n_entries} rows in {len(batches)} steps: their scores take "
            f"{needed / 2**20:.2f} MiB, over the cap of {memory_cap() / 2**20:.2f} "
            "MiB. Train on fewer rows or epochs, or raise "
            "sklearn.set_config(working_memory=...)."
        )


def _quota(drop, n_rows):
    """Return how many of the rows of a minibatch are left out; never all."""
    # a little more: 0.29 * 100 is 28.999...
    return max(0, min(int(drop * n_rows + 1e-9), n_rows - 1))


# ------------------------------------------------------------------ training
class _Run:
    """A training in windows: where it stands, and what it has kept.

    Parameters
    ----------
    model : clone of the estimator, targets learnt
    problem : what it trains on
    weights : Tensor of shape (n,)
    validation : rows and targets
    batches : list of int arrays, of all steps
    drop, dynamics : as in `lookahead_training`
    """

    def __init__(self, model, problem, weights, validation, batches, drop, dynamics):
        self._model, self._problem = model, problem
        self._row_weights = weights
        self._weights = problem.weighted(weights[None])[0]
        self._validation, self._batches = validation, batches
        self._drop, self._dynamics = drop, dynamics
        self._keep = steps_to_keep(model.record, problem.recipe.n_steps)
        begin = start(problem.recipe, problem.X, 1)
        self._done = TrainingResult(begin.params, None)
        if 0 in self._keep:
            self._done.states[0] = begin
        self._state = begin
        self._kept, self._scores = [], []
        numbers = _NUMBERS * max(1, activation_size(problem.model.evaluated, problem.X))
        fits = int(memory_cap() / (numbers * problem.X.element_size()))
        self._at_once = max(1, min(_CHUNK, fits))
        self._losses = [self._validate()[0]]

    def advance(self, window):
        """Look through the steps of a window, then take them."""
        batches = self._batches[window]
        scores = self._look(self._recipe(window, batches), window.start)
        weights = self._weights.cpu().numpy()
        kept = [
            _keep(of_rows, weights[rows] > 0, self._drop)
            for of_rows, rows in zip(scores, batches, strict=True)
        ]
        chosen = [rows[mask] for rows, mask in zip(batches, kept, strict=True)]
        self._take(self._recipe(window, chosen), window.start)
        self._scores += scores
        self._kept += kept
        self._losses.append(self._validate()[0])

    def result(self):
        """Return what `lookahead_training` returns."""
        chosen = [
            batch[mask] for batch, mask in zip(self._batches, self._kept, strict=True)
        ]
        problem = replace(
            self._problem, recipe=replace(self._problem.recipe, batches=chosen)
        )
        return Bunch(
            estimator=self._model._finish(problem, self._done, self._row_weights),
            steps=np.repeat(
                np.arange(1, len(self._batches) + 1), list(map(len, self._batches))
            ),
            rows=np.concatenate(self._batches),
            kept=np.concatenate(self._kept),
            scores=np.concatenate(self._scores),
            validation_loss=np.array(self._losses),
        )

    def _recipe(self, window, batches):
        """Return the window as a run of its own, from where the training stands."""
        n_params = self._problem.model.n_params
        statistics = self._state.params[0, n_params:]
        return replace(
            self._problem.recipe,
            learning_rates=self._problem.recipe.learning_rates[window],
            initial=self._state.params[0, :n_params],
            statistics=statistics if len(statistics) else None,
            batches=batches,
            n_before=self._problem.recipe.n_before + window.start,
            moments=map_state(torch.flatten, self._state.optimizer),
        )

    def _train(self, recipe, n_before, keep):
        problem = self._problem
        result = train(
            problem.model,
            problem.loss,
            recipe,
            problem.X,
            problem.targets,
            self._weights[None],
            keep=keep,
            stop_when_diverged=True,
        )
        self._model._check_finite(result, problem.recipe.n_steps, n_before)
        return result

    def _take(self, recipe, n_before):
        in_window = range(1, recipe.n_steps + 1)
        wanted = {step - n_before for step in self._keep} & set(in_window)
        result = self._train(recipe, n_before, wanted | {recipe.n_steps})
        self._state = result.states[recipe.n_steps]
        self._done.params = result.params
        self._done.denominator = result.denominator
        self._done.loss_curve += result.loss_curve
        self._done.states |= {n_before + step: result.states[step] for step in wanted}

    def _look(self, recipe, n_before):
        """Take the steps on all rows; return the scores of every step's rows."""
        problem = self._problem
        state = 3 * problem.model.n_params * problem.X.element_size()
        fits = _SHARE * recipe.n_steps * state <= memory_cap()
        keep = steps_to_keep("states" if fits else "checkpoints", recipe.n_steps)
        trial = self._train(recipe, n_before, keep)
        gradient = self._validate(trial.params[0])[1]
        scores = [None] * recipe.n_steps

        def note(step, rows, of_rows, *_):
            scores[step - 1] = (of_rows[0, 0] * self._weights[rows]).cpu().numpy()

        differentiate_run(
            problem.model,
            problem.loss,
            recipe,
            problem.X,
            problem.targets,
            self._weights[None],
            -gradient[None, None],
            states=trial.states,
            dynamics=self._dynamics,
            on_rows=note,
            memory_bytes=memory_cap(),
        )
        if not all(np.isfinite(of_rows).all() for of_rows in scores):
            raise ValueError(
                f"The derivatives of steps {n_before + 1} to "
                f"{n_before + recipe.n_steps} are not finite: training is too unstable "
                f"to look horizon={recipe.n_steps} steps ahead. Shorten horizon, lower "
                "learning_rate, or set clip_norm."
            )
        return scores

    def _validate(self, params=None):
        """Return the mean validation loss and its gradient in the parameters."""
        params = self._state.params[0] if params is None else params
        params = params.detach().requires_grad_()
        X, targets = self._validation
        loss, gradient = 0.0, torch.zeros_like(params)
        for part in chunks(len(X), self._at_once):
            outputs = self._problem.model.outputs(params, X[part])
            values = self._problem.loss.values(outputs, targets[part]).sum() / len(X)
            gradient += torch.autograd.grad(values, params)[0]
            loss += values.item()
        return loss, gradient


def _keep(scores, present, drop):
    """Return which rows of a minibatch stay: not the present ones that score low."""
    order = np.argsort(np.where(present, scores, np.inf), kind="stable")
    kept = np.ones(len(scores), dtype=bool)
    kept[order[: _quota(drop, int(present.sum()))]] = False
    return kept
