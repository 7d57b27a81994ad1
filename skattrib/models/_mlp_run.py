"""The training of scikit-learn's multilayer perceptrons, as a run that is repeated.

What `MLPClassifier.fit` draws, and how long it trains, follows from its random state,
its learning curve and the rows. Everything read here of scikit-learn beyond its public
interface is checked by the replay, which must end at the fitted weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import clone, is_classifier
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state, gen_batches, shuffle
from torch import Tensor, nn

from skattrib._validation import as_tensor, dense
from skattrib.engine._functional import FunctionalModule
from skattrib.engine._losses import Loss
from skattrib.engine._optimizers import Optimizer, with_values
from skattrib.engine._optimizers._scikit_learn import RawEpsAdam, VelocitySGD
from skattrib.engine._trajectory import Recipe
from skattrib.exceptions import FaithfulnessWarning, TrajectoryError
from skattrib.models.recording._estimators import RecordedClassifier, RecordedRegressor

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "logistic": nn.Sigmoid,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
}
# Rounding, as a share of the distance that training moved the weights.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
# Below this, scikit-learn's "adaptive" stops instead of lowering the rate.
_SMALLEST_RATE = 1e-6


@dataclass(frozen=True)
class RunLength:
    """What the damping needs of a recipe."""

    path_length: float
    relative_rates: Tensor | None = None


@dataclass(frozen=True)
class RunSummary:
    """What a fitted estimator still knows of its run.

    Attributes
    ----------
    denominator : Tensor of shape (P,) or None
        Divisor of the last step; None if it does not divide.
    recipe : RunLength
    """

    denominator: Tensor | None
    recipe: RunLength


# ------------------------------------------------------------------------ layers
def module_of(mlp: Any) -> nn.Sequential:
    """Return the layers of a fitted estimator, without the output activation."""
    return _module(mlp.activation, mlp.coefs_, mlp.intercepts_)


def _module(activation: str, coefs: Any, intercepts: Any) -> nn.Sequential:
    layers: list[nn.Module] = []
    for coef, intercept in zip(coefs, intercepts, strict=True):
        weight, bias = torch.tensor(coef.T.copy()), torch.tensor(intercept)
        layer = nn.utils.skip_init(nn.Linear, *coef.shape, dtype=weight.dtype)
        layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
        layers += [layer, _ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1]).eval()


def _flat(coefs: Any, intercepts: Any) -> Tensor:
    """Return arrays shaped like the weights as one vector, in the module's order."""
    pairs = zip(coefs, intercepts, strict=True)
    arrays = [array for c, b in pairs for array in (c.T.ravel(), b.ravel())]
    return torch.tensor(np.concatenate(arrays))


# ----------------------------------------------------------------------- the run
def cannot_be_repeated(mlp: Any) -> str:
    """Return why an estimator takes no steps that are known here, if so."""
    if mlp.solver not in ("adam", "sgd"):
        return f"solver={mlp.solver!r} takes no steps that could be differentiated"
    if mlp.solver == "sgd" and mlp.momentum >= 1:
        return f"momentum={mlp.momentum:g} is not below 1: no move is ever forgotten"
    return ""


def _optimizer(mlp: Any) -> Optimizer:
    if mlp.solver == "adam":
        betas = float(mlp.beta_1), float(mlp.beta_2)
        return RawEpsAdam(weight_decay=0.0, betas=betas, eps=float(mlp.epsilon))
    nesterov = bool(mlp.nesterovs_momentum and mlp.momentum)
    return VelocitySGD(weight_decay=0.0, momentum=mlp.momentum, nesterov=nesterov)


def _n_epochs(mlp: Any) -> int:
    """Return after how many epochs it had the weights that it kept."""
    if mlp.early_stopping:
        return int(np.argmax(mlp.validation_scores_)) + 1
    return int(mlp.n_iter_)


def _epoch_rates(mlp: Any, n_rows: int) -> NDArray[np.float64]:
    """Return the learning rate of every epoch, of those after which it stopped too."""
    first, n_epochs = float(mlp.learning_rate_init), int(mlp.n_iter_)
    if mlp.solver == "adam" or mlp.learning_rate == "constant":
        return np.full(n_epochs, first)
    if mlp.learning_rate == "invscaling":
        seen = n_rows * np.arange(n_epochs)
        rates = first / (seen + 1.0) ** mlp.power_t
        return np.asarray(rates, dtype=np.float64)
    return _adaptive_rates(mlp)


def _adaptive_rates(mlp: Any) -> NDArray[np.float64]:
    """Return the rates of epochs, lowered where the curve did not improve."""
    curve = np.asarray(mlp.loss_curve_)
    if mlp.early_stopping:
        curve = -np.asarray(mlp.validation_scores_)
    rate, best, n_bad, rates = float(mlp.learning_rate_init), np.inf, 0, []
    for value in curve[: mlp.n_iter_]:
        rates.append(rate)
        n_bad = n_bad + 1 if value > best - mlp.tol else 0
        best = min(best, value)
        if n_bad > mlp.n_iter_no_change:
            rate, n_bad = rate / 5.0 if rate > _SMALLEST_RATE else rate, 0
    return np.array(rates)


def _training_rows(mlp: Any, y: Any, rng: np.random.RandomState) -> NDArray[np.intp]:
    """Return the rows that are not held out to stop early."""
    rows = np.arange(len(y))
    if not mlp.early_stopping:
        return rows
    stratify = None
    if is_classifier(mlp) and mlp.n_outputs_ == 1:
        stratify = mlp._label_binarizer.transform(y).astype(bool)
    options = {"test_size": mlp.validation_fraction, "stratify": stratify}
    kept: NDArray[np.intp] = train_test_split(rows, random_state=rng, **options)[0]
    return kept


def _recipe(mlp: Any, y: Any, weights: NDArray[Any]) -> Recipe:
    """Return the run of a fitted estimator on weighted rows."""
    rng = check_random_state(mlp.random_state)
    blank = clone(mlp)
    blank._random_state = rng  # from which it draws
    sizes = [mlp.coefs_[0].shape[0], *(len(b) for b in mlp.intercepts_)]
    dtype = mlp.coefs_[0].dtype
    drawn = [blank._init_coef(*pair, dtype) for pair in pairwise(sizes)]
    initial = _flat(*zip(*drawn, strict=True))

    rows = _training_rows(mlp, y, rng)
    n_epochs, parts = _n_epochs(mlp), _parts(mlp, len(rows))
    batches = None
    totals = np.repeat(weights.sum(), n_epochs)
    if len(parts) > 1 or len(rows) < len(y):
        batches = [
            rows[order[part]]
            for order in _orders(mlp, len(rows), n_epochs, rng)
            for part in parts
        ]
        totals = np.array([weights[batch].sum() for batch in batches])
    rates = _epoch_rates(mlp, len(rows))[:n_epochs]
    decay, factors = _decay(mlp, totals)
    return Recipe(
        optimizer=_optimizer(mlp),
        learning_rates=torch.tensor(np.repeat(rates, len(parts))),
        initial=initial,
        batches=batches,
        decay=decay,
        decay_factors=factors,
    )


def _parts(mlp: Any, n_rows: int) -> list[slice]:
    """Return which of the shuffled rows are in each minibatch of an epoch."""
    size = 200 if mlp.batch_size == "auto" else mlp.batch_size
    return list(gen_batches(n_rows, int(min(size, n_rows))))


def _orders(
    mlp: Any, n_rows: int, n_epochs: int, rng: np.random.RandomState
) -> Iterator[NDArray[np.intp]]:
    """Yield the order of the rows in every epoch."""
    order = np.arange(n_rows)
    for _ in range(n_epochs):
        if mlp.shuffle:
            order = shuffle(order, random_state=rng)
        yield order


def _decay(
    mlp: Any, totals: NDArray[np.float64]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the decay of parameters, and of steps where batches differ in weight.

    The penalty of a minibatch is divided by its total weight; intercepts have none.
    """
    if not mlp.alpha:
        return None, None
    coefs = [np.full(c.shape, float(mlp.alpha)) for c in mlp.coefs_]
    decay = _flat(coefs, [np.zeros(b.shape) for b in mlp.intercepts_])
    if (totals == totals[0]).all():
        return decay / float(totals[0]), None
    return decay, torch.tensor(1.0 / totals)


def replayed(
    mlp: Any,
    loss: Loss,
    X: Any,
    y: Any,
    weights: NDArray[Any],
    message: Callable[[str], str],
) -> Any:
    """Return a fitted network whose recorded run is that of a fitted estimator.

    Parameters
    ----------
    mlp : MLPClassifier or MLPRegressor
        Fitted, by "adam" or "sgd".
    loss : Loss
        Of a row.
    X, y, weights : ndarray
        Rows that it was fitted to, their targets and weights.
    message : callable
        Makes a message of why there is no such network.

    Raises
    ------
    TrajectoryError
        If the run ends elsewhere.
    """
    y = dense(y)
    recipe, end = _recipe(mlp, y, weights), _flat(mlp.coefs_, mlp.intercepts_)
    initial = module_of(mlp)
    FunctionalModule(initial).load(recipe.initial)
    if is_classifier(mlp):
        network: Any = RecordedClassifier(
            initial, recipe, classes=mlp.classes_, loss=loss
        )
    else:
        network = RecordedRegressor(initial, recipe, loss=loss)
    network.fit(X, y, sample_weight=weights)
    model = FunctionalModule(network.module_)
    moved = (end - recipe.initial).norm().clamp(min=torch.finfo(end.dtype).tiny)
    error = float((model.flatten() - end).norm() / moved)
    if not error <= _TOLERANCE[end.dtype]:
        raise TrajectoryError(
            message(
                f"replaying it on these rows misses the fitted weights by {error:.1e} "
                "of the distance that training moved them: it was fitted to other "
                "rows or weights, with warm_start, or by partial_fit"
            )
        )
    model.load(end)
    if recipe.batches is not None:
        _warn_of_held_out(len(y), recipe.batches)
    return network


def _warn_of_held_out(n_rows: int, batches: list[NDArray[np.intp]]) -> None:
    """Warn of rows that are in no minibatch, if there are any."""
    n_unseen = n_rows - len(np.unique(np.concatenate(batches)))
    if n_unseen:
        warnings.warn(
            f"early_stopping held out {n_unseen} of the {n_rows} rows: their "
            "attributions are 0, although they decide when training stops. Use "
            "early_stopping=False to attribute to all rows.",
            FaithfulnessWarning,
            stacklevel=9,
        )


# ------------------------------------------------------------------- the summary
def summary_of(mlp: Any) -> RunSummary | None:
    """Return what a fitted estimator knows of its run; None if it took no steps."""
    stepper: Any = getattr(mlp, "_optimizer", None)
    adam = mlp.solver == "adam"
    known = hasattr(stepper, "vs") if adam else hasattr(stepper, "velocities")
    if not known or cannot_be_repeated(mlp) or mlp.warm_start:
        return None
    n_rows = max(1, mlp.t_ // max(1, mlp.n_iter_))
    rates = _epoch_rates(mlp, n_rows)[: _n_epochs(mlp)]
    optimizer, denominator = _optimizer(mlp), None
    if adam:
        n_layers = len(mlp.coefs_)
        second = _flat(stepper.vs[:n_layers], stepper.vs[n_layers:])
        state = with_values(optimizer.initial_state(second), (second, second))
        denominator = optimizer.denominator(state, stepper.t)
    n_batches = len(_parts(mlp, n_rows))
    length = optimizer.path_length(n_batches * as_tensor(rates))
    return RunSummary(denominator, RunLength(length))
