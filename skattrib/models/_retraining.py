"""Train an estimator again and again, for other weights of its rows."""

from __future__ import annotations

import copy
import warnings
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone, is_classifier
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import check_consistent_length

from skattrib._progress import tqdm
from skattrib._validation import (
    dense,
    draw_seed,
    draw_seeds,
    seed_unset,
    sorted_labels,
)
from skattrib.engine._losses import Loss, OutcomeFunction, SetMeasure
from skattrib.engine._parallel import call_all
from skattrib.engine._training import Trained
from skattrib.exceptions import FaithfulnessWarning
from skattrib.models._any import EstimatorModel
from skattrib.models._as_model import as_model
from skattrib.models._outcomes import check_label_columns
from skattrib.models._parts import Parts, is_search
from skattrib.models._protocol import Retrainable, label_codes
from skattrib.models._repeatable import check_repeatable, finite_rows
from skattrib.models._rows import validate_rows

FloatArray = NDArray[np.float64]
#: Iterations that a tighter tolerance may take.
_MAX_ITER = 10_000


class Trainer:
    """What can be trained for any weights of the rows and any seed.

    Parameters
    ----------
    estimator : classifier or regressor
        Not changed.
    X, y : array-like
        Training rows.
    n_jobs : int or None
        Workers for estimators that are not stacked.
    verbose : int
    """

    def __init__(
        self,
        estimator: Any,
        X: ArrayLike,
        y: ArrayLike,
        n_jobs: int | None = None,
        verbose: int = 0,
        refit_transformers: bool = False,
    ) -> None:
        check_consistent_length(X, y)
        if refit_transformers:
            self.model: Retrainable = RefittedPipeline(estimator)
        else:
            self.model = as_retrainable(estimator)
        self.model.check()
        self.estimator, self.n_jobs, self.verbose = clone(estimator), n_jobs, verbose
        params = estimator.get_params(deep=True)
        self._seed_names = [
            name
            for name in params
            if name == "random_state" or name.endswith("__random_state")
        ]
        self.random = bool(self._seed_names)
        seeds = [params[name] for name in self._seed_names]
        self.random_state = next((seed for seed in seeds if seed is not None), None)
        self._seed: int | None = None
        self.stacked = self.model.stacks
        self.X, self.y = X, dense(y)
        if is_classifier(estimator) and not self.stacked:
            self.model.check_targets(self.y)
            if self.y.ndim == 1:
                self.model.classes = sorted_labels(self.y, "y")[0]
            else:
                loss = self.model.future_loss(self.X, self.y)
                check_label_columns(self.model, loss, self.y)
        if self.stacked:
            self.X, self.y = validate_rows(
                self.estimator, X, self.y, multi_output=self.y.ndim > 1
            )
            self.estimator._learn_target(self.y, self.X)

    def check_queries(self, X_query: Any, y_query: Any) -> None:
        """Raise, before any training, on queries that models cannot answer."""
        shapes = [tuple(getattr(rows, "shape", ())) for rows in (self.X, X_query)]
        known, asked = (shape[1:] for shape in shapes)
        if len(known) == len(asked) == 1 and known != asked:
            raise ValueError(
                f"X_query has {asked[0]} features, but {self.model.name} is expecting "
                f"{known[0]} features, as X has: give both the same columns."
            )
        if self.model.classes is not None:
            label_codes(self.model.classes, y_query)

    def identity(self) -> Any:
        """Return the estimator without what does not change how it is trained."""
        fixed: dict[str, Any] = {"n_jobs": None, "verbose": 0}
        if self.stacked:
            fixed["record"] = "recipe"
        estimator = clone(self.estimator)
        names = estimator.get_params(deep=True)
        last = {name: name.rpartition("__")[2] for name in names}
        to_fix = {name: fixed[end] for name, end in last.items() if end in fixed}
        return estimator.set_params(**to_fix)

    def way(self) -> str:
        """Return what is done with rows of weight 0: part of the key of results."""
        return "weighted" if self.stacked else self.model.way

    def seeds(self, n_seeds: int) -> list[int]:
        """Return a seed per training; the estimator's own comes first."""
        if not self.random:
            return [0]
        if self._seed is None:
            # a copy: drawing from the user's generator would move it on
            self._seed = draw_seed(copy.deepcopy(self.random_state))
        return draw_seeds(self._seed, n_seeds)

    def stack_size(self) -> int:
        """Return how many neural networks are trained at a time."""
        return cast(int, self.estimator._stack_size(self.X, self.y))

    def params(
        self, weights: FloatArray, seed: int, masks: NDArray[np.int64] | None = None
    ) -> Trained:
        """Train a stack of neural networks.

        ``masks`` (k,) are seeds of the random numbers of their layers; None is one for
        all.
        """
        options = {**self._stack_options(weights, seed), "masks": masks}
        return cast(Trained, self.estimator._stack(**options)[1])

    def outputs(
        self, weights: FloatArray, seed: int, X_query: Any
    ) -> tuple[torch.Tensor, Retrainable]:
        """Train; return outputs (k, q, C) of queries, and one of the models."""
        if self.stacked:
            options = self._stack_options(weights, seed)
            outputs = self.estimator._retrained_outputs(X_query=X_query, **options)
            return outputs, self.model.of(self.estimator)
        runs = self._run(_retrain_and_ask, weights, seed, X_query)
        model = self.model.of(runs[0][1])
        check_repeatable(model, X_query)
        return torch.stack([run[0] for run in runs]), model

    def models(self, weights: FloatArray, seed: int) -> list[Any]:
        """Train estimators that are no neural networks; return them fitted."""
        return self._run(retrained, weights, seed)

    def _stack_options(self, weights: FloatArray, seed: int) -> dict[str, Any]:
        return {
            "X": self.X,
            "y": self.y,
            "weights": weights,
            "random_state": seed,
            "n_jobs": self.n_jobs,
            "verbose": self.verbose,
        }

    def _run(self, task: Any, weights: FloatArray, seed: int, *args: Any) -> list[Any]:
        estimator = clone(self.estimator)
        if seed == self.seeds(1)[0]:
            # the estimator's own seeds, which may differ from step to step
            seed_unset(estimator, seed)
        else:
            drawn = draw_seeds(seed, len(self._seed_names) + 1)[1:]
            estimator.set_params(**dict(zip(self._seed_names, drawn, strict=True)))
        model = self.model.of(estimator)
        return call_all(
            task,
            (
                (model, self.X, self.y, row, seed, *args)
                for row in tqdm(weights, desc="retraining", disable=not self.verbose)
            ),
            self.n_jobs,
        )


def measure(
    outputs: torch.Tensor,
    targets: torch.Tensor,
    outcome: str | OutcomeFunction,
    loss: Loss,
) -> FloatArray:
    """Turn outputs (k, q, C) of models into outcomes (k, q), of a set (k, 1)."""
    if targets.ndim > 1 and loss.n_outputs(targets) != outputs.shape[-1]:
        raise ValueError(
            f"y_query has {targets.shape[-1]} columns, the estimator predicts "
            f"{outputs.shape[-1]}."
        )
    function = loss.outcome(outcome)
    outcomes = function(outputs, targets.expand(len(outputs), *targets.shape))
    result = outcomes.double().cpu().numpy()
    finite = np.isfinite(result).all(axis=0)
    if not finite.all():
        whose = f"queries {np.flatnonzero(~finite)[:10].tolist()}"
        if isinstance(function, SetMeasure):
            rows = finite_rows(outputs.transpose(0, 1).flatten(1)).cpu().numpy()
            whose = f"set, with its queries {np.flatnonzero(~rows)[:10].tolist()}"
        warnings.warn(
            f"Some retrained outcomes are not finite, of the {whose}: training "
            "diverged, a probability is exactly 0, or these queries are too large.",
            FaithfulnessWarning,
            stacklevel=5,
        )
    return cast(FloatArray, result)


def as_retrainable(estimator: Any) -> Retrainable:
    """Return an estimator as a model to train again; a search searches again.

    Raises
    ------
    UnsupportedModelError
        If its family cannot be trained again.
    """
    model = EstimatorModel(estimator) if is_search(estimator) else as_model(estimator)
    if not isinstance(model, Retrainable):
        raise model.lacks("Retraining", "a fit that trains")
    return model


def retrained(
    model: Retrainable, X: Any, y: Any, weights: FloatArray, seed: int
) -> Any:
    """Return an estimator trained on weighted rows; raise if it lacks outputs."""
    fitted = model.retrain(X, y, weights, seed)
    known = getattr(fitted, "classes_", None)
    restored = model.restores_classes
    if isinstance(known, np.ndarray) and y.ndim == 1 and not restored:
        absent = np.setdiff1d(y, known)
        if len(absent):
            raise ValueError(
                f"{model.name} was trained on a subset without the classes "
                f"{absent[:5].tolist()}, and predicts other outputs. Keep more units "
                "in every subset, or merge rare classes."
            )
    return fitted


def _retrain_and_ask(
    model: Retrainable, X: Any, y: Any, weights: FloatArray, seed: int, X_query: Any
) -> tuple[torch.Tensor, Any]:
    fitted = retrained(model, X, y, weights, seed)
    return model.of(fitted).outputs(X_query), fitted


def tightened(estimator: Any, tol: float | None) -> Any:
    """Return an unfitted estimator that is trained to a tolerance; the same for None.

    Raises
    ------
    ValueError
        If it has none, or is frozen.
    """
    if tol is None:
        return estimator
    params = estimator.get_params(deep=True)
    ends = ("tol", "max_iter")
    held = {name: v for name, v in params.items() if name.rpartition("__")[2] in ends}
    tols = {name for name in held if name.rpartition("__")[2] == "tol"}
    model = as_model(estimator)
    if model.frozen or not tols:
        raise ValueError(
            f"tol={tol} cannot be set: {model.name} "
            f"{'is frozen' if model.frozen else 'has no parameter tol'}. Leave it None."
        )
    changed: dict[str, Any] = dict.fromkeys(tols, tol)
    for name in held.keys() - tols:
        if held[name] is not None and held[name] > 0:
            changed[name] = max(held[name], _MAX_ITER)
    return clone(estimator).set_params(**changed)


class RefittedPipeline(Retrainable):
    """A pipeline whose transformers are fitted anew, to the rows that are left."""

    def __init__(self, estimator: Any, *, frozen: bool = False) -> None:
        super().__init__(estimator, frozen=frozen)
        self._parts = Parts(estimator)
        self._last = as_retrainable(self._parts.model)

    @property
    def loss(self) -> Loss:
        """Loss of the last step."""
        return self._last.loss

    def future_loss(self, X: Any, y: Any) -> Loss:
        """Return what the last step will have as `loss`."""
        return self._last.future_loss(X, y)

    def check(self) -> None:
        """Raise unless the last step can be trained again."""
        self._last.check()

    def check_targets(self, y: Any) -> None:
        """Raise on training targets whose outcomes the last step lacks."""
        self._last.check_targets(y)

    def retrain(self, X: Any, y: Any, weights: FloatArray, seed: int) -> Any:
        """Return a clone fitted to the rows whose weight is not 0."""
        parts, kept = Parts(self.clone()), np.flatnonzero(weights)
        features, targets = parts.fit_transformers(_safe_indexing(X, kept), y[kept])
        if self._last.stacks:
            parts.fit_model(features, targets, sample_weight=weights[kept])
        else:
            last = self._last.of(parts.model)
            last.n_all = len(weights)
            # that of an earlier step may be another; each has its own by now
            own = last.estimator.get_params().get("random_state")
            seed = seed if own is None else own
            parts.replace_model(last.retrain(features, targets, weights[kept], seed))
        return parts.whole

    @property
    def restores_classes(self) -> bool:
        """Whether outputs have a column for classes that a subset lacked."""
        return self._last.restores_classes

    def check_weights(self, weights: FloatArray) -> None:
        """Raise on weights that the last step cannot take."""
        self._last.check_weights(weights)

    def of(self, fitted: Any) -> Retrainable:
        """Return another pipeline as a model like this."""
        other = cast(RefittedPipeline, super().of(fitted))
        other._last.classes = self.classes
        other._last._by_decisions = self._last.by_decisions
        return other

    def outputs(self, X: Any) -> torch.Tensor:
        """Return outputs of the last step, predictions in the unit of y."""
        outputs = self._last.outputs(self._parts.features(X))
        units = self._parts.units
        if units is None:
            return outputs
        # every model has a unit of its own
        return units.predictions(outputs, self.loss)

    def encode(self, y: Any, like: torch.Tensor) -> torch.Tensor:
        """Return targets as the last step's loss takes them, in the unit of y."""
        return self._last.encode(y, like)
