"""Targets that are transformed before the model is trained on them.

The model's outputs and targets are in one unit, those of the user in another. What is
measured is measured in the user's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.dummy import DummyRegressor
from torch import Tensor

from skattrib.engine._losses import Loss, OutcomeFunction, SetOutcome

# Central differences: rounding and curvature are in balance at the cube root.
_STEP = np.finfo(np.float64).eps ** (1 / 3)
_N_TRIED = 16

#: From arrays (m, K) to arrays of the same shape.
Inverse = Callable[[NDArray[np.float64]], NDArray[np.float64]]


class _Nothing(DummyRegressor):
    """Stands in for a regressor that is fitted elsewhere."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> _Nothing:
        """Learn nothing."""
        return self


def fit_target_transformer(regressor: TransformedTargetRegressor, y: Any) -> None:
    """Fit what transforms targets, and leave the regressor within as it is."""
    helper = clone(regressor).set_params(regressor=_Nothing())
    helper.fit(np.zeros((len(y), 1)), y)
    learnt = set(vars(helper)) - set(helper.get_params(deep=False))
    for name in learnt - {"regressor_"}:
        setattr(regressor, name, getattr(helper, name))


def transformed_targets(regressor: TransformedTargetRegressor, y: Any) -> Any:
    """Return targets as the regressor within is trained on them."""
    y = np.asarray(y, dtype=np.float64)
    changed = regressor.transformer_.transform(y.reshape(len(y), -1))
    single = y.ndim == 1 or y.shape[1] == 1
    if np.ndim(changed) != 2 or changed.shape[1] != (1 if single else y.shape[1]):
        raise ValueError(
            f"The transformer of {regressor!r} turns targets of shape {y.shape} into "
            f"shape {np.shape(changed)}: it must keep the number of columns, or "
            "outcomes could not be measured in the unit of y."
        )
    if not np.isfinite(changed).all():
        raise ValueError(
            "y holds values that the transformer of TransformedTargetRegressor turns "
            "into NaN or infinity, such as the logarithm of 0: choose another "
            "transformer, np.log1p for instance, or leave these rows out."
        )
    return changed[:, 0] if y.ndim == 1 else changed


@dataclass(frozen=True)
class OriginalUnits:
    """Turns what a model predicts back into the unit of y, and measures outcomes in it.

    Parameters
    ----------
    regressors : sequence of TransformedTargetRegressor
        Fitted, from the outermost to the innermost.
    """

    regressors: Sequence[TransformedTargetRegressor]

    def inverse(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return values (m, K) of the model in the unit of y."""
        for regressor in reversed(self.regressors):
            values = regressor.transformer_.inverse_transform(values)
        return np.asarray(values, dtype=np.float64).reshape(len(values), -1)

    def __call__(self, values: Tensor) -> Tensor:
        """Return values (..., K) of the model in the unit of y, differentiably."""
        changed: Tensor = _Inverse.apply(values, self.inverse)
        return changed

    def check(self, targets: NDArray[Any]) -> None:
        """Raise unless each number is turned back alone, whatever is beside it."""
        few = np.asarray(targets, dtype=np.float64)[:_N_TRIED]
        few = few.reshape(len(few), -1)
        together = self.inverse(few)
        alone = np.concatenate([self.inverse(row[None]) for row in few])
        others = few.copy()
        others[:, 1:] = few[::-1, 1:]  # the first column must not change
        first = self.inverse(others)[:, :1]

        size = np.abs(together).max() + np.finfo(np.float64).tiny
        mixes = [np.abs(alone - together), np.abs(first - together[:, :1])]
        if not all((error <= 1e-9 * size).all() for error in mixes):
            raise ValueError(
                "The transformer of TransformedTargetRegressor mixes the columns of y, "
                "or its rows: outcomes in the unit of y need one that takes each "
                "number by itself, as StandardScaler and np.log1p do."
            )

    def predictions(self, outputs: Tensor, loss: Loss) -> Tensor:
        """Return outputs (..., K) as predictions in the unit of y.

        Raises
        ------
        ValueError
            If the outputs of this loss are no predictions.
        """
        if not _predicts(loss):
            raise ValueError(
                f"The outputs of {loss!r} are no predictions that a "
                "TransformedTargetRegressor fitted anew could turn back into the unit "
                "of y. Use refit_transformers=False."
            )
        return self(outputs)

    def outcome(self, name: str | OutcomeFunction, loss: Loss) -> OutcomeFunction:
        """Return an outcome in the unit of y.

        Parameters
        ----------
        name : str or callable
            As the user gave it, and the loss has it.
        loss : Loss
            Of the model.

        Returns
        -------
        callable
            Takes outputs and targets as the model has them.

        Raises
        ------
        ValueError
            If the outputs of this loss are no predictions, and a callable asks for
            them.
        """
        if callable(name) and not _predicts(loss):
            raise ValueError(
                f"outcome is a function of outputs, and those of {loss!r} are no "
                "predictions that TransformedTargetRegressor could turn back into the "
                "unit of y. Use outcome='prediction' or 'log_likelihood'."
            )
        measured = _InOriginalUnits(self, loss, name)
        return SetOutcome(measured) if isinstance(name, SetOutcome) else measured


@dataclass(frozen=True)
class _InOriginalUnits:
    """An outcome of outputs and targets of a model, in the unit of y."""

    units: OriginalUnits
    loss: Loss
    name: str | OutcomeFunction

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.name == "prediction":
            prediction: Tensor = self.units(self.loss.predict(outputs))[..., 0]
            return prediction
        measured: OutcomeFunction
        if isinstance(self.name, SetOutcome):
            measured = self.name
        else:
            measured = self.loss.outcome(self.name)
        if not _predicts(self.loss):
            # a density: in another unit, the same but for a constant of each query
            return measured(outputs, targets)
        return measured(self.units(outputs), self.units(targets))


def _predicts(loss: Loss) -> bool:
    """Say whether outputs are what is predicted."""
    return type(loss).predict is Loss.predict


class _Inverse(torch.autograd.Function):
    """A function of each number alone, known by its values; slopes by differences."""

    generate_vmap_rule = False

    @staticmethod
    def forward(values: Tensor, inverse: Inverse) -> Tensor:
        """Return the function's values."""
        return _evaluate(inverse, values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Inverse], output: Tensor) -> None:
        """Save the values at which it was evaluated."""
        values, ctx.inverse = inputs
        ctx.save_for_backward(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Multiply by the slopes."""
        (values,) = ctx.saved_tensors
        return gradient * _Slope.apply(values, ctx.inverse), None

    @staticmethod
    def vmap(info: Any, axes: Any, values: Tensor, inverse: Inverse) -> Any:
        """Evaluate many at once."""
        return _Inverse.apply(values.movedim(axes[0], 0), inverse), 0


class _Slope(torch.autograd.Function):
    """Slopes of such a function, which have none themselves."""

    generate_vmap_rule = False

    @staticmethod
    def forward(values: Tensor, inverse: Inverse) -> Tensor:
        """Return central differences."""
        steps = _STEP * values.detach().double().abs().clamp(min=1.0)
        above, below = values.double() + steps, values.double() - steps
        rise = _evaluate(inverse, above) - _evaluate(inverse, below)
        return (rise / (above - below)).to(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Inverse], output: Tensor) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:
        """Raise: a difference of differences would be noise."""
        raise NotImplementedError(
            "Outcomes behind a TransformedTargetRegressor can be differentiated once."
        )

    @staticmethod
    def vmap(info: Any, axes: Any, values: Tensor, inverse: Inverse) -> Any:
        """Evaluate many at once."""
        return _Slope.apply(values.movedim(axes[0], 0), inverse), 0


def _evaluate(inverse: Inverse, values: Tensor) -> Tensor:
    """Return the values of a function of NumPy arrays, as a tensor like the given."""
    flat = values.detach().double().cpu().numpy().reshape(-1, values.shape[-1])
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # what is not finite is reported as an outcome
        warnings.simplefilter("ignore")
        changed = inverse(flat)
    return torch.tensor(changed, dtype=values.dtype, device=values.device).view_as(
        values
    )
