"""Models trained on subsets, kept so that queries can be asked later."""

from __future__ import annotations

import copy
import os
import pickle
import warnings
from functools import partial
from typing import Any

import joblib
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import EfficiencyWarning
from sklearn.utils import _safe_indexing

from skattrib._validation import as_tensor, memory_cap
from skattrib.engine._functional import FunctionalModule
from skattrib.engine._losses import OutcomeFunction
from skattrib.engine._training import stacked_outputs
from skattrib.evaluation._cache import as_memory, cached_rows, digest
from skattrib.evaluation._trainer import FloatArray, Trainer, encode, measure, predict
from skattrib.evaluation._truth import CHUNK, Runner, check_reproduced, unwrap

_N_CHECKED = 100


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
        memory: str | os.PathLike[str] | joblib.Memory | None = None,
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> None:
        frozen, recipe = unwrap(estimator)
        self._fitted: Any = estimator if frozen is None else frozen
        trainer = Trainer(recipe, X, y, n_jobs, verbose)
        if frozen is not None:
            queries = _safe_indexing(X, slice(_N_CHECKED)), y[:_N_CHECKED]
            check_reproduced(frozen, Runner(trainer, *queries, "auto"), whole)
        if not trainer.stacked:
            _warn_if_large(self._fitted, len(weights))
        found = trained_models(trainer, weights, trainer.seeds(1)[0], memory)
        self._models = np.array(found) if trainer.stacked else found
        self._stacked = trainer.stacked

    def present_outcomes(
        self, X: NDArray[Any], y: NDArray[Any], outcome: str | OutcomeFunction
    ) -> FloatArray:
        """Return the outcomes (q,) of the fitted estimator itself."""
        if self._stacked:
            outputs = self._fitted._raw_outputs(X)[None]
            targets = self._fitted._targets(y, outputs)
        else:
            found, classes = predict(self._fitted, X)
            outputs, targets = torch.tensor(found)[None], encode(y, classes)
        present: FloatArray = measure(outputs, targets, outcome, self._fitted)[0]
        return present

    def outcomes(
        self, X: NDArray[Any], y: NDArray[Any], outcome: str | OutcomeFunction
    ) -> FloatArray:
        """Return the outcomes (m, q) of queries."""
        if self._stacked:
            # a copy: another thread may be using the module
            model = FunctionalModule(copy.deepcopy(self._fitted.module_))
            like = next(self._fitted.module_.parameters())
            params, queries = as_tensor(self._models, like), as_tensor(X, like)
            outputs = stacked_outputs(model, params, queries, memory_cap())
            targets = self._fitted._targets(y, outputs)
        else:
            found = [predict(model, X) for model in self._models]
            outputs = torch.tensor(np.array([log_p for log_p, _ in found]))
            targets = encode(y, found[0][1])
        return measure(outputs, targets, outcome, self._fitted)


def trained_models(
    trainer: Trainer,
    weights: FloatArray,
    seed: int,
    memory: str | os.PathLike[str] | joblib.Memory | None,
) -> list[Any]:
    """Train for weights (m, n_samples), or remember; as many at a time as are stacked.

    Returns
    -------
    list of length m
        Parameters (P,) of networks, else fitted estimators.
    """
    cache, key = as_memory(memory), ""
    if cache is not None:
        key = digest("models", trainer.identity(), trainer.X, trainer.y, seed)
    train = partial(_parameters, trainer) if trainer.stacked else trainer.models
    size = min(CHUNK, trainer.stack_size()) if trainer.stacked else CHUNK
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


def _parameters(trainer: Trainer, weights: FloatArray, seed: int) -> NDArray[Any]:
    found: NDArray[Any] = trainer.params(weights, seed).cpu().numpy()
    return found
