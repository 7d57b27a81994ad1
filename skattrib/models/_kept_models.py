"""Models trained on subsets: their outcomes, or the models, for later queries."""

from __future__ import annotations

import os
import pickle
import warnings
from functools import partial
from typing import Any

import joblib
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.exceptions import EfficiencyWarning
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from skattrib._validation import (
    as_tensor,
    dense,
    memory_cap,
    seed_unset,
)
from skattrib.engine._functional import FunctionalModule, chunks
from skattrib.engine._losses import OutcomeFunction, SetMeasure
from skattrib.engine._set_gradients import all_outputs
from skattrib.exceptions import FaithfulnessWarning, TrajectoryError
from skattrib.models._as_model import as_model
from skattrib.models._memory import as_memory, cached_rows, digest
from skattrib.models._outcomes import check_outcome
from skattrib.models._protocol import protocols
from skattrib.models._retraining import FloatArray, Trainer, as_retrainable, measure
from skattrib.models._rows import validate_rows
from skattrib.models._targets import OriginalUnits

#: Models trained between two writes: an interruption loses at most these.
CHUNK = 32
_N_CHECKED = 100
# Copies in memory of the outputs of a set of queries, in double precision.
_COPIES = 16


def unwrap(estimator: Any) -> tuple[Any | None, Any]:
    """Return (the frozen fitted estimator or None, what can be trained)."""
    model = as_model(estimator)
    if not model.frozen:
        return None, estimator
    if "Recorded" in protocols(model) and not model.has_run:
        raise TrajectoryError(
            f"The frozen {model.name} wraps a module whose training was not recorded: "
            f"it cannot be trained again. Train it through {model.name}(module=...)"
            ".fit, or record your own loop by record_training, to compare with "
            "retraining."
        )
    return model.estimator, model.recipe()


def recipe_of(estimator: Any) -> Any:
    """Return what a fitted estimator is trained as on other rows; frozen ones are."""
    model = as_model(estimator)
    recipe = model.recipe()
    return estimator if model.frozen or recipe is model.estimator else recipe


def estimator_to_refit(estimator: Any) -> Any:
    """Return a pipeline, to fit its transformers again; raise on a frozen one."""
    if as_model(estimator).frozen:
        raise ValueError(
            "refit_transformers=True fits again what is frozen: pass the pipeline "
            "itself, or refit_transformers=False."
        )
    return estimator


class Runner:
    """Train for given row weights and one seed; return outcomes (k, n_queries)."""

    def __init__(
        self,
        trainer: Trainer,
        X_query: ArrayLike,
        y_query: ArrayLike,
        outcome: str | OutcomeFunction,
        units: OriginalUnits | None = None,
    ) -> None:
        check_consistent_length(X_query, y_query)
        self.trainer, self.estimator = trainer, trainer.estimator
        self.X_query, self.y_query = X_query, dense(y_query)
        if trainer.stacked:
            self.X_query = validate_rows(self.estimator, X_query, reset=False)
            self.estimator._targets(self.y_query, torch.empty(0))
        else:
            trainer.check_queries(self.X_query, self.y_query)
        n_outputs = 1 if trainer.y.ndim == 1 else trainer.y.shape[1]
        self.outcome = check_outcome(outcome, self.estimator, n_outputs)
        if units is not None:
            loss = as_model(self.estimator).loss
            self.outcome = units.outcome(self.outcome, loss)

    def key(self, seed: int) -> str:
        """Return what the outcomes depend on beside the weights, as a hash."""
        return digest(
            self.trainer.way(),
            self.trainer.identity(),
            self.trainer.X,
            self.trainer.y,
            self.X_query,
            self.y_query,
            self.outcome,
            seed,
        )

    def __call__(self, weights: FloatArray, seed: int) -> FloatArray:
        outputs, model = self.trainer.outputs(weights, seed, self.X_query)
        targets = model.encode(self.y_query, outputs)
        return measure(outputs, targets, self.outcome, model.loss)


def check_reproduced(fitted: Any, runner: Runner, base: FloatArray) -> None:
    """Warn unless training with all units present gives the frozen outcomes."""
    check_is_fitted(fitted)
    model = as_retrainable(fitted)
    outputs = model.outputs(runner.X_query)[None]
    targets = model.encode(runner.y_query, outputs)
    frozen = measure(outputs, targets, runner.outcome, model.loss)[0]
    again = runner(base[None], runner.trainer.seeds(1)[0])[0]
    error = np.abs(again - frozen).max() / max(1.0, float(np.abs(frozen).max()))
    if not error < 1e-3:
        warnings.warn(
            f"Training the frozen {type(fitted).__name__} again on all rows misses its "
            f"outcomes by {error:.1e}: it was trained on other rows, weights or an "
            "unknown seed. The retrained outcomes are of another model.",
            FaithfulnessWarning,
            stacklevel=3,
        )


def retrained_once(
    estimator: Any,
    X: Any,
    y: Any,
    weights: FloatArray,
    *,
    whole: FloatArray,
    seed: int,
    n_jobs: int | None = None,
    verbose: int = 0,
) -> Any:
    """Return an estimator trained for one weighting (n_samples,), as outcomes are.

    Parameters
    ----------
    estimator : fitted estimator
        A frozen one is unwrapped, and must be reproduced.
    whole : ndarray of shape (n_samples,)
        Weights that it was trained with.
    seed : int
        For what it leaves unseeded.
    """
    frozen, recipe = unwrap(estimator)
    recipe = clone(recipe_of(recipe))
    seed_unset(recipe, seed)
    trainer = Trainer(recipe, X, y, n_jobs, verbose)
    trainer.model.check_weights(weights[None])
    if frozen is not None:
        _check_first_rows(frozen, trainer, X, y, whole)
    first = trainer.seeds(1)[0]
    if trainer.stacked:  # as it is given: a table has names
        return trainer.model.retrain(X, trainer.y, weights, first)
    return trainer.models(weights[None], first)[0]


def _check_first_rows(
    frozen: Any, trainer: Trainer, X: Any, y: Any, whole: FloatArray
) -> None:
    """Warn unless training again gives a frozen estimator's outcomes of a few rows."""
    queries = _safe_indexing(X, slice(_N_CHECKED)), y[:_N_CHECKED]
    check_reproduced(frozen, Runner(trainer, *queries, "auto"), whole)


class RetrainedModels:
    """The models of weightings of the rows.

    Parameters
    ----------
    estimator : fitted estimator
        With int random states; a frozen one is unwrapped.
    X, y : ndarray
        Training rows.
    weights : ndarray of shape (m, n_samples)
        Of the rows, one model each.
    whole : ndarray of shape (n_samples,)
        Of the rows, those the estimator was trained with.
    seed_number : int
        Which of the seeds that `retrain_outcomes` averages over, from 0.
    reproduced : bool
        Whether training a frozen one again was compared with it before.
    memory : str, joblib.Memory or None
        Where models are remembered, as outcomes are by `retrain_outcomes`.
    """

    def __init__(
        self,
        estimator: Any,
        X: NDArray[Any],
        y: NDArray[Any],
        weights: FloatArray,
        *,
        whole: FloatArray,
        seed_number: int = 0,
        reproduced: bool = False,
        memory: str | os.PathLike[str] | joblib.Memory | None = None,
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> None:
        frozen, recipe = unwrap(estimator)
        recipe = recipe_of(recipe)
        self._fitted: Any = estimator if frozen is None else frozen
        trainer = Trainer(recipe, X, y, n_jobs, verbose)
        trainer.model.check_weights(weights)
        self._classes = trainer.model.classes
        if frozen is not None and not reproduced:
            _check_first_rows(frozen, trainer, X, y, whole)
        if not trainer.stacked:
            _warn_if_large(self._fitted, len(weights))
        # an estimator without seeds has one only
        seed = trainer.seeds(seed_number + 1)[-1]
        models = trained_models(trainer, weights, seed, memory)
        self._models = np.array(models) if trainer.stacked else models
        self._stacked = trainer.stacked

    def present_outcomes(
        self, X: NDArray[Any], y: NDArray[Any], outcome: str | OutcomeFunction
    ) -> FloatArray:
        """Return the outcomes (q,) of the fitted estimator itself."""
        model = as_retrainable(self._fitted)
        outputs = model.outputs(X)[None]
        targets = model.encode(y, outputs)
        present: FloatArray = measure(outputs, targets, outcome, model.loss)[0]
        return present

    def outcomes(
        self, X: NDArray[Any], y: NDArray[Any], outcome: str | OutcomeFunction
    ) -> FloatArray:
        """Return the outcomes (m, q) of queries, those of a set (m, 1)."""
        model = as_retrainable(self._fitted)
        if not isinstance(model.loss.outcome(outcome), SetMeasure):
            return self._outcomes_of(slice(None), X, y, outcome)
        # the outputs of all queries at once, of as many models as they fit the memory
        numbers = model.outputs(X).numel()
        size = int(memory_cap() / (_COPIES * 8 * max(1, numbers)))
        found = [
            self._outcomes_of(part, X, y, outcome)
            for part in chunks(len(self._models), size)
        ]
        return np.concatenate(found)

    def _outcomes_of(
        self,
        part: slice,
        X: NDArray[Any],
        y: NDArray[Any],
        outcome: str | OutcomeFunction,
    ) -> FloatArray:
        model = as_retrainable(self._fitted)
        if not self._stacked:
            model.classes = self._classes
            retrained = [model.of(fitted) for fitted in self._models[part]]
            outputs = torch.stack([one.outputs(X) for one in retrained])
            targets = retrained[0].encode(y, outputs)
            return measure(outputs, targets, outcome, model.loss)

        module = FunctionalModule(self._fitted.module_).apart()
        like = next(self._fitted.module_.parameters())
        params, queries = as_tensor(self._models[part], like), as_tensor(X, like)
        outputs = all_outputs(module, params, queries, memory_cap())
        return measure(outputs, model.encode(y, outputs), outcome, model.loss)


def trained_models(
    trainer: Trainer,
    weights: FloatArray,
    seed: int,
    memory: str | os.PathLike[str] | joblib.Memory | None,
    masks: NDArray[np.int64] | None = None,
    stops: bool = False,
) -> list[Any]:
    """Train for weights (m, n_samples), or remember; as many at a time as are stacked.

    Networks take a seed (m,) of the random numbers of their layers each, if ``masks``
    are given. With ``stops``, a further number is the steps that each took.

    Returns
    -------
    list of length m
        Parameters and running statistics (P + B,) of networks, else fitted estimators.
    """
    cache, key = as_memory(memory), ""
    if cache is not None:
        key = digest(
            "models", trainer.way(), trainer.identity(), trainer.X, trainer.y, seed
        )
        key += "stops" * stops
    train: Any = trainer.models
    if trainer.stacked:
        masked = masks is not None
        train = partial(_parameters, trainer, masked=masked, stops=stops)
    size = min(CHUNK, trainer.stack_size()) if trainer.stacked else CHUNK
    if masks is not None:  # remembered with the weights
        weights = np.column_stack([weights, masks])
    return cached_rows(cache, key, weights, partial(train, seed=seed), size)


def _warn_if_large(fitted: Any, n_models: int) -> None:
    try:
        needed = len(pickle.dumps(fitted)) * n_models
    except (pickle.PicklingError, AttributeError, TypeError):
        return
    if needed > memory_cap():
        warnings.warn(
            f"{n_models} models like this {type(fitted).__name__} take about "
            f"{needed / 2**20:.0f} MiB, over scikit-learn's working_memory of "
            f"{memory_cap() / 2**20:.0f} MiB, and all are kept: use fewer n_subsets or "
            "a smaller estimator.",
            EfficiencyWarning,
            stacklevel=2,
        )


def _parameters(
    trainer: Trainer, rows: FloatArray, seed: int, *, masked: bool, stops: bool
) -> NDArray[Any]:
    masks = None
    if masked:
        rows, masks = rows[:, :-1], rows[:, -1].astype(np.int64)
    found = trainer.params(rows, seed, masks)
    params = found.params
    if stops:
        params = torch.cat([params, found.stops[:, None].to(params)], dim=1)
    parameters: NDArray[Any] = params.cpu().numpy()
    return parameters
