"""What DualInfluence asks of a model whose training minimises a known objective."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import sparse
from sklearn.base import clone
from torch import Tensor

from skattrib._tables import not_numbers, odd_columns, to_encode
from skattrib._validation import blamed
from skattrib.engine._convex import (
    ConvexRefits,
    KernelRefits,
    Objective,
    plan_convex,
    rows_of,
)
from skattrib.engine._losses import Loss
from skattrib.engine._penalties import Regularization
from skattrib.engine._row_weights import RowWeighting
from skattrib.exceptions import UnsupportedModelError
from skattrib.models._any import EstimatorModel


class Convex(EstimatorModel):
    """A model that can be refitted to other weights of its rows without training.

    It is retrained, for the truth, as any other estimator.
    """

    first_attributors = ("DualInfluence", "KernelSurrogateAttributor")

    # -------------------------------------------------------------- refusals
    def reason_against(self) -> str | None:
        """Return why training minimises no known objective, None if it does."""
        return None

    def check_convex(self, user: str) -> None:
        """Raise UnsupportedModelError unless training minimises a known objective."""
        reason = self.reason_against()
        if reason is not None:
            others = [name for name in self.attributors() if name != user]
            raise UnsupportedModelError(
                f"{user} cannot refit {self.name} exactly: {reason} "
                f"{' and '.join(others)} work, by retraining."
            )

    def attributors(self) -> list[str]:
        """Return the names of the attributors that work for it."""
        known = super().attributors()
        if self.reason_against() is not None:
            known.remove("DualInfluence")
        return known

    def check_rows(self, X: Any) -> None:
        """Raise ValueError on training rows that it cannot use, before it is fitted."""
        if odd := not_numbers(X):
            cure = to_encode(odd, self.estimator)
            raise ValueError(f"{odd_columns(odd, 'X')} {cure}")

    # --------------------------------------------------------------- settings
    @property
    def settings(self) -> Any:
        """The estimator whose parameters say what was minimised."""
        return self.recipe()

    # ---------------------------------------------------------------- outputs
    @abstractmethod
    def linear_outputs(self, X: Any) -> Tensor:
        """Return the fitted model's linear outputs (q, C), of rows (q, n_features)."""

    def link(self, outputs: Tensor) -> Tensor:
        """Return outputs as `loss` takes them, from linear ones (..., C)."""
        return outputs

    # ----------------------------------------------------------------- refits
    @abstractmethod
    def refits(
        self, X: Any, y: Any, weights: Any, solver: str, memory_bytes: float
    ) -> ConvexRefits | KernelRefits:
        """Return what refits it, from its training rows and their weights (n,)."""

    @abstractmethod
    def query_rows(self, refits: Any, X: Any) -> Any:
        """Return queries as the steps of ``refits`` are multiplied by them."""

    @abstractmethod
    def parameter_names(self, feature_names: list[str]) -> list[str]:
        """Return the names of its parameters, in the order of their changes."""


class LinearModel(Convex):
    """A model whose linear outputs are X times coefficients, plus an intercept."""

    @property
    def regularization(self) -> Regularization:
        """How the penalty depends on the rows, as `scale_with` takes it."""
        return "fixed"

    # ------------------------------------------------- what a subclass gives
    @abstractmethod
    def training_loss(self) -> Loss:
        """Return the loss of linear outputs that training minimises."""

    @abstractmethod
    def training_targets(self, y: Any) -> Tensor:
        """Return targets as that loss takes them."""

    @abstractmethod
    def penalties(self, total: float) -> tuple[Any, Any]:
        """Return l2 and l1 strengths, a number or one for each output.

        ``total`` is the sum of the sample weights.
        """

    def intercept_column(self) -> float | None:
        """Return the constant whose coefficient is the intercept; None for none."""
        return 1.0 if self.settings.fit_intercept else None

    def penalises_intercept(self) -> bool:
        """Say whether the penalty is on the intercept, too."""
        return False

    def weighting(self, y: Any) -> RowWeighting:
        """Return what makes the weights in the loss of the weights of the rows."""
        return RowWeighting()

    # ------------------------------------------------ of a regression's rows
    def variance(self) -> Callable[[Any], Any] | None:
        """Return the variance of a row as a function of its mean, up to a factor.

        None if it is no generalised linear model with one output.
        """
        return None

    def has_dispersion(self) -> bool:
        """Say whether that factor is estimated, and not 1."""
        return True

    def mean(self, outputs: Tensor) -> Tensor:
        """Return means of linear outputs."""
        return self.link(outputs)

    # ------------------------------------------------------------------ parts
    def linear_outputs(self, X: Any) -> Tensor:
        """Return the fitted model's linear outputs (q, C)."""
        coefficients, intercept = self._coefficients()
        with blamed(self.estimator, "predict these rows"):
            self.estimator.predict(X[:1])  # its own checks of the columns
        products = as_matrix(X) @ coefficients.T
        return torch.as_tensor(np.asarray(products, dtype=np.float64) + intercept)

    def _coefficients(self) -> tuple[Any, Any]:
        """Return coefficients (C, P) and intercepts (C,) in double precision."""
        coefficients = np.atleast_2d(np.asarray(self.estimator.coef_, dtype=np.float64))
        intercept = np.asarray(self.estimator.intercept_, dtype=np.float64)
        return coefficients, np.broadcast_to(intercept, len(coefficients))

    def centre(self, X: Any, weights: Any) -> Any:
        """Return what to take off the columns: their means, with a free intercept.

        An intercept without a penalty takes it up, and offsets that are large against
        what the columns vary by, as of dates, would cost digits.
        """
        free = self.intercept_column() is not None and not self.penalises_intercept()
        if sparse.issparse(X) or not free:
            return None
        return np.average(as_matrix(X), axis=0, weights=weights)

    def objective(self, X: Any, y: Any, weights: Any, centre: Any = None) -> Objective:
        """Return the objective that training minimised, of rows less ``centre``."""
        constant = self.intercept_column()
        coefficients, intercept = self._coefficients()
        if centre is not None:
            X = as_matrix(X) - centre
            intercept = intercept + coefficients @ centre
        params = coefficients.T
        if constant is not None:
            params = np.vstack([params, intercept[None] / constant])
        params = torch.tensor(params)
        weights = torch.tensor(np.asarray(weights, dtype=np.float64))
        l2, l1 = (
            self._strengths(strength, params)
            for strength in self.penalties(float(weights.sum()))
        )
        return Objective(
            rows_of(as_matrix(X), constant),
            self.training_loss(),
            self.training_targets(y),
            weights,
            params,
            l2,
            l1,
            regularization=self.regularization,
            weighting=self.weighting(y),
        )

    def _strengths(self, strength: Any, params: Tensor) -> Tensor:
        """Return a penalty on all parameters (D, C), 0 on an intercept without one."""
        row = torch.as_tensor(np.asarray(strength, dtype=np.float64))
        strengths = torch.zeros_like(params) + row
        if self.intercept_column() is not None and not self.penalises_intercept():
            strengths[-1] = 0
        return strengths

    def refits(
        self, X: Any, y: Any, weights: Any, solver: str, memory_bytes: float
    ) -> ConvexRefits:
        """Return what refits it."""
        centre = self.centre(X, weights)
        objective = self.objective(X, y, weights, centre)
        plan = plan_convex(objective, memory_bytes, solver)
        taken_off = None if centre is None else torch.tensor(centre)
        refits = ConvexRefits(objective, plan, memory_bytes, taken_off)
        self.check_optimum(refits)
        return refits

    def check_optimum(self, refits: ConvexRefits) -> None:
        """Raise ValueError if the objective has no unique finite minimum."""
        objective = refits.objective
        n_present = int((objective.weights > 0).sum())
        n_columns = objective.rows.n_columns
        if not objective.is_penalised and n_columns >= n_present:
            raise ValueError(
                f"{self.name} has no penalty, and with {n_columns} coefficients for "
                f"{n_present} rows it fits them at any targets: no row matters by "
                "itself. Use a penalty, such as Ridge, or fewer columns."
            )

    def query_rows(self, refits: ConvexRefits, X: Any) -> Any:
        """Return queries in the coordinates of steps."""
        X = as_matrix(X)
        if refits.centre is not None:
            X = X - refits.centre.numpy()
        return refits.features(rows_of(X, self.intercept_column()))

    def parameter_names(self, feature_names: list[str]) -> list[str]:
        """Return a name for each coefficient, those of an output together."""
        names = list(feature_names)
        if self.intercept_column() is not None:
            names.append("intercept")
        outputs = self.output_names()
        if len(outputs) == 1:
            return names
        return [f"{output}: {name}" for output in outputs for name in names]

    def output_names(self) -> list[str]:
        """Return the names of the outputs."""
        n_outputs = len(self._coefficients()[0])
        return [f"y{number}" for number in range(n_outputs)]


class ScaledIntercept(LinearModel):
    """A model of liblinear, whose intercept is one penalised coefficient more."""

    def intercept_column(self) -> float | None:
        """Return what the intercept is scaled by."""
        if not self.settings.fit_intercept:
            return None
        return float(self.settings.intercept_scaling)

    def penalises_intercept(self) -> bool:
        """Say yes: it is one coefficient more."""
        return True


def as_matrix(X: Any) -> Any:
    """Return rows in double precision; sparse ones stay sparse."""
    return X if sparse.issparse(X) else np.asarray(X, dtype=np.float64)


def copied(estimator: Any, kind: type, **params: Any) -> Any:
    """Return an unfitted estimator of a class with the parameters that both have."""
    own = estimator.get_params(deep=False)
    known = kind().get_params(deep=False)
    shared = {name: own[name] for name in known if name in own}
    if "random_state" in known and "random_state" not in own:
        shared["random_state"] = 0  # for a solver that draws, the same each time
    return clone(kind(**{**shared, **params}))
