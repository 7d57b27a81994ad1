"""The objective of a linear model, as scikit-learn's estimators minimise it.

With sample weights w, weights v(w) of the rows in the loss, and outputs f_i = x_i θ:

    Σ v_i ℓ(f_i, y_i) + κ(w) [ ½ Σ λ_j θ_j² + Σ μ_j |θ_j| ]

κ is 1 for a penalty that is "fixed", and Σw / Σs, relative to the weights s of the fit,
for one "per_sample". An intercept is a column of the rows without a penalty.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor

from skattrib.engine._convex._rows import DenseRows, Rows
from skattrib.engine._losses import Loss
from skattrib.engine._penalties import Regularization
from skattrib.engine._row_weights import RowWeighting
from skattrib.engine._solvers import principal_directions


@dataclass(frozen=True)
class Objective:
    """An objective, and where it was minimised, more or less.

    Parameters
    ----------
    rows : Rows
        n rows of D numbers.
    loss : Loss
        Of the outputs.
    targets : Tensor of shape (n, ...)
    weights : Tensor of shape (n,)
        Sample weights s of the fit.
    params : Tensor of shape (D, C)
        θ, the fitted parameters.
    l2, l1 : Tensor of shape (D, C)
        λ and μ.
    regularization : {"per_sample", "fixed"}
    weighting : RowWeighting
        v of w.
    """

    rows: Rows
    loss: Loss
    targets: Tensor
    weights: Tensor
    params: Tensor
    l2: Tensor
    l1: Tensor
    regularization: Regularization = "fixed"
    weighting: RowWeighting = field(default_factory=RowWeighting)

    @property
    def has_l1(self) -> bool:
        """Whether some parameters may be exactly 0."""
        return bool((self.l1 > 0).any())

    @property
    def is_penalised(self) -> bool:
        """Whether there is any penalty."""
        return bool((self.l2 > 0).any() or (self.l1 > 0).any())

    def outputs(self) -> Tensor:
        """Return the outputs (n, C) of the fitted model."""
        return self.rows.outputs(self.params[None])[0].contiguous()

    def scale(self, weights: Tensor) -> Tensor:
        """Return κ (k,) for sample weights (k, n)."""
        if self.regularization == "fixed":
            return torch.ones_like(weights[:, 0])
        return weights.sum(dim=1) / self.weights.sum()

    @property
    def is_reducible(self) -> bool:
        """Whether parameters never leave the span of the rows.

        That is so if all but the constant column have one penalty in common.
        """
        if self.has_l1:
            return False
        return self._span() is not None

    def _span(self) -> tuple[int, Tensor] | None:
        """Return how many columns have one penalty λ > 0 for each output, and λ."""
        for n_alike in (len(self.l2), len(self.l2) - 1):
            first = self.l2[0]
            alike = bool((self.l2[:n_alike] == first).all())
            if n_alike > 0 and alike and bool((first > 0).all()):
                return n_alike, first
        return None

    def reduced(self) -> tuple[Objective, Basis]:
        """Return it in coordinates of the span of the rows, and the basis of that."""
        n_alike, strength = cast(tuple[int, Tensor], self._span())
        basis = Basis(self.rows, n_alike)
        params = basis.coordinates_of(self.params)
        l2 = torch.cat([strength.expand(basis.rank, -1), self.l2[n_alike:]])
        reduced = replace(
            self,
            rows=DenseRows(basis.train),
            params=params,
            l2=l2,
            l1=torch.zeros_like(l2),
        )
        return reduced, basis


class Basis:
    """Orthonormal coordinates of the span of rows, from their inner products.

    Parameters
    ----------
    rows : Rows
    n_alike : int
        Columns that span; the others, a constant one at most, stay as they are.
    """

    def __init__(self, rows: Rows, n_alike: int) -> None:
        self._rows, self._n_alike = rows, n_alike
        self._constant = self._other_column(rows)
        values, vectors = principal_directions(self._gram(rows))
        self.rank = len(values)
        #: To coordinates, from inner products with the rows.
        self._back = vectors / values.sqrt()
        self.train = self._with_constant(vectors * values.sqrt(), self._constant)

    def _other_column(self, rows: Rows) -> Tensor | None:
        if self._n_alike == rows.n_columns:
            return None
        unit = torch.zeros(1, rows.n_columns, 1, dtype=torch.float64)
        unit[0, -1] = 1.0
        return rows.outputs(unit)[0]

    def _gram(self, others: Rows) -> Tensor:
        products = others.products(self._rows)
        if self._constant is not None:
            column = cast(Tensor, self._other_column(others))
            products = products - column @ self._constant.T
        return products

    @staticmethod
    def _with_constant(coordinates: Tensor, constant: Tensor | None) -> Tensor:
        return (
            coordinates if constant is None else torch.cat([coordinates, constant], 1)
        )

    def coordinates(self, others: Rows) -> Tensor:
        """Return the coordinates (q, rank, or one more) of other rows."""
        inner = self._gram(others) @ self._back
        return self._with_constant(inner, self._other_column(others))

    def coordinates_of(self, params: Tensor) -> Tensor:
        """Return parameters (D, C) in coordinates; what is beyond the span is lost."""
        spanning = params.clone()
        spanning[self._n_alike :] = 0
        images = self._rows.outputs(spanning[None])[0]
        return torch.cat([self._back.T @ images, params[self._n_alike :]])

    def lift(self, params: Tensor) -> Tensor:
        """Return parameters (k, D, C) from coordinates (k, rank or one more, C)."""
        inner, other = params[:, : self.rank], params[:, self.rank :]
        lifted = self._rows.gradient(torch.einsum("nr,krc->knc", self._back, inner))
        lifted[:, self._n_alike :] = other
        return lifted
