"""Base class of losses: values of rows, and derivatives, maybe in closed form.

A loss maps the outputs (n, C) of a model and the targets of n rows to n numbers, each
of a single row. Gradients and second derivatives in the outputs come from autograd
unless a loss has closed forms.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from skattrib.engine._losses._sets import (
    MeanOfRows,
    MeanOutcome,
    SetMeasure,
    SetOutcome,
)
from skattrib.engine._solvers import positive_root

#: (outputs (..., C), targets) → outcome (...), higher is better.
OutcomeFunction = Callable[[Tensor, Tensor], Tensor]


class Loss(ABC):
    """A training loss: one number for each row, from its outputs and its target.

    A subclass implements `values`. It may override `residuals`, `hessian_product` and
    `hessian_root` by closed forms, which are compared with autograd when a model is
    fitted, and `n_outputs`, `predict` and `outcomes`, which give a meaning to the
    outputs. This class is for targets that are numbers; `ClassLoss` and `LabelLoss` are
    for classes and for labels of which a row may have several.

    See Also
    --------
    ClassLoss : For targets that are classes.
    LabelLoss : For targets that are labels, of which a row may have several.

    Notes
    -----
    Rows are independent: the value of a row depends on no other row. The loss of a
    minibatch is Σ w ℓ / Σ w, with w the weights of its rows.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.preprocessing import scale
    >>> from skattrib import TorchRegressor
    >>> from skattrib.extension import Loss
    >>> class Cauchy(Loss):
    ...     def values(self, outputs, targets):
    ...         return torch.log1p((outputs - targets).square()).sum(-1)
    >>> X, y = load_diabetes(return_X_y=True)
    >>> reg = TorchRegressor(loss=Cauchy(), max_epochs=20, random_state=0)
    >>> reg.fit(scale(X), scale(y)).predict(scale(X)[:2]).shape
    (2,)
    """

    #: Name of the outcome at the model's own prediction, for queries without targets.
    own_outcome = "prediction"
    #: Name of the outcome for which "auto" stands.
    auto_outcome = "log_likelihood"
    #: Whether the loss is a sum over the outputs, so that its Hessians are diagonal.
    separable = False
    #: Whether the Hessians are the same at all outputs.
    quadratic = False
    #: Whether the Hessians jump, so that a Newton step of any length may miss.
    kinked = False

    @abstractmethod
    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each row.

        Parameters
        ----------
        outputs : Tensor of shape (n, C)
            What the model returns.
        targets : Tensor of shape (n, ...)
            Targets of the rows.

        Returns
        -------
        Tensor of shape (n,)
            One number for each row, from its own output and target alone.
        """

    # ------------------------------------------------------- what outputs mean
    def n_outputs(self, targets: Tensor) -> int:
        """Return how many outputs C a model of these targets must have.

        Parameters
        ----------
        targets : Tensor of shape (n, ...)
            Targets of the rows.

        Returns
        -------
        int
            In this class, one for each column of the targets.
        """
        return 1 if targets.ndim == 1 else targets.shape[1]

    def predict(self, outputs: Tensor) -> Tensor:
        """Return predictions, encoded like targets.

        Parameters
        ----------
        outputs : Tensor of shape (..., C)
            What the model returns.

        Returns
        -------
        Tensor of shape (..., ) or (..., K)
            Predictions; in this class, the outputs themselves.
        """
        return outputs

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        """Return the logarithms of the probabilities of the classes or labels.

        Parameters
        ----------
        outputs : Tensor of shape (..., C)
            What the model returns.

        Returns
        -------
        Tensor of shape (..., C)
            Log-probabilities.

        Raises
        ------
        NotImplementedError
            If there are no probabilities, as in this class.
        """
        raise NotImplementedError(f"{self!r} has no probabilities.")

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the probabilities of the classes or labels.

        Parameters
        ----------
        outputs : Tensor of shape (..., C)
            What the model returns.

        Returns
        -------
        Tensor of shape (..., C)
            Probabilities.
        """
        return self.log_probabilities(outputs).exp()

    def own_targets(self, outputs: Tensor) -> Tensor:
        """Return the targets for outcomes of queries that have no targets.

        Parameters
        ----------
        outputs : Tensor of shape (..., C)
            What the model returns.

        Returns
        -------
        Tensor
            As `values` takes them; in this class, the predictions.
        """
        return self.predict(outputs)

    def tempered(self, outputs: Tensor, temperature: float) -> Tensor:
        """Return the outputs at another temperature, if they are a distribution.

        Parameters
        ----------
        outputs : Tensor of shape (..., C)
            What the model returns.
        temperature : float
            Divisor of the log-probabilities.

        Returns
        -------
        Tensor of shape (..., C)
            In this class, the outputs unchanged.
        """
        return outputs

    def outcomes(self) -> dict[str, OutcomeFunction]:
        """Return the available outcomes, by name.

        Returns
        -------
        dict of str to callable
            Functions (outputs, targets) -> outcome, higher is better. One of them is
            that for which "auto" stands, "log_likelihood" in this class.
        """
        return {"log_likelihood": self.minus, "prediction": self._first}

    def minus(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return −ℓ as an outcome.

        Parameters
        ----------
        outputs : Tensor of shape (..., C)
            What the model returns.
        targets : Tensor
            With the same axes except the last one.

        Returns
        -------
        Tensor of shape (...)
            Minus the losses.
        """
        return -by_rows(self.values, outputs, targets)

    def _first(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.predict(outputs)[..., 0]

    def row_weights(self, targets: Tensor) -> Tensor | None:
        """Return factors on the weights of rows, None for 1.

        Parameters
        ----------
        targets : Tensor of shape (n, ...)
            Targets of the rows.

        Returns
        -------
        Tensor of shape (n,) or None
            They are part of the Σ w by which a minibatch's loss is divided; a factor
            that only scales a row's loss belongs in `values`.
        """
        return None

    def outcome(self, outcome: str | OutcomeFunction) -> OutcomeFunction:
        """Return an outcome by name, or check the user's own function.

        Parameters
        ----------
        outcome : str or callable
            One of `outcomes`, "auto", a function (outputs, targets) -> outcome, or a
            `SetOutcome`.

        Returns
        -------
        callable
            Maps outputs (..., C) and targets to outcomes (...), those of a set of
            queries (..., q, C) to (..., 1).

        Raises
        ------
        ValueError
            If there is no outcome of that name.
        """
        if isinstance(outcome, MeanOutcome):
            rows = self.outcome(outcome.rows)
            return SetMeasure(MeanOfRows(rows), repr(outcome.rows), rows)
        if isinstance(outcome, SetOutcome):
            return SetMeasure(outcome, repr(outcome))
        if callable(outcome):
            return partial(_checked, outcome)
        known = self.outcomes()
        name = self.auto_outcome if outcome == "auto" else outcome
        if name in known:
            return known[name]
        raise ValueError(
            f"outcome={outcome!r} is not defined for {self!r}; use one of "
            f"{sorted(known)} or a callable (outputs, targets) -> outcome."
        )

    # ------------------------------------------------------------- derivatives
    def residuals(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the gradients of the losses in their outputs.

        Parameters
        ----------
        outputs : Tensor of shape (..., n, C)
            Outputs of one or more models.
        targets : Tensor of shape (n, ...)
            Targets of the rows.

        Returns
        -------
        Tensor of shape (..., n, C)
            Gradient of each row's loss in its own outputs.
        """
        return by_rows(self._gradients, outputs, along(outputs, targets))

    def _gradients(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return gradients (n, C), which can be differentiated in the outputs."""
        gradients: Tensor = torch.func.grad(lambda f: self.values(f, targets).sum())(
            outputs
        )
        return gradients

    def hessian_product(
        self, outputs: Tensor, targets: Tensor, vectors: Tensor
    ) -> Tensor:
        """Return the Hessians of the losses in their outputs, times vectors.

        Parameters
        ----------
        outputs : Tensor of shape (n, C)
            What the model returns.
        targets : Tensor of shape (n, ...)
            Targets of the rows.
        vectors : Tensor of shape (q, n, C)
            Vectors, q of them for each row.

        Returns
        -------
        Tensor of shape (q, n, C)
            Products.
        """
        pull = torch.func.vjp(lambda f: self._gradients(f, targets), outputs)[1]
        # rows are independent and a Hessian is symmetric
        products: Tensor = torch.func.vmap(lambda v: pull(v)[0])(vectors)
        return products

    def hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the Hessian of each loss in its outputs.

        Parameters
        ----------
        outputs : Tensor of shape (n, C)
            What the model returns.
        targets : Tensor of shape (n, ...)
            Targets of the rows.

        Returns
        -------
        Tensor of shape (n, C, C)
            One for each row.
        """
        n_outputs = outputs.shape[-1]
        eye = torch.eye(n_outputs, dtype=outputs.dtype, device=outputs.device)
        columns = eye[:, None].expand(-1, len(outputs), -1)
        return self.hessian_product(outputs, targets, columns).transpose(0, 1)

    def curvature(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the second derivative of each loss in each of its outputs.

        Parameters
        ----------
        outputs : Tensor of shape (n, C)
            What the model returns.
        targets : Tensor of shape (n, ...)
            Targets of the rows.

        Returns
        -------
        Tensor of shape (n, C)
            The whole Hessian of a loss that is `separable`.
        """
        if self.separable:
            return self.hessian_product(
                outputs, targets, torch.ones_like(outputs)[None]
            )[0]
        return self.hessian(outputs, targets).diagonal(dim1=-2, dim2=-1)

    def hessian_root(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return S with S Sᵀ the Hessian of each loss in its outputs.

        Parameters
        ----------
        outputs : Tensor of shape (n, C)
            What the model returns.
        targets : Tensor of shape (n, ...)
            Targets of the rows.

        Returns
        -------
        Tensor of shape (n, C, C)
            One for each row. If the loss is not convex in its outputs, only the part
            with positive curvature.
        """
        return positive_root(self.hessian(outputs, targets))

    def __repr__(self) -> str:
        return type(self).__name__


def by_rows(
    function: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor
) -> Tensor:
    """Call a function of rows (n, C) for any number of row axes, also none.

    Targets have the same row axes.
    """
    axes = outputs.shape[:-1]
    flat = function(
        outputs.reshape(-1, outputs.shape[-1]),
        targets.reshape(-1, *targets.shape[len(axes) :]),
    )
    return flat.reshape(*axes, *flat.shape[1:])


def along(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return targets of rows (n, ...), expanded by the leading axes of outputs."""
    return targets.expand(*outputs.shape[:-2], *targets.shape)


def _checked(outcome: OutcomeFunction, outputs: Tensor, targets: Tensor) -> Tensor:
    """Evaluate the user's own function."""
    outcomes = outcome(outputs, targets)
    if outcomes.shape != outputs.shape[:-1]:
        raise ValueError(
            f"outcome returned shape {tuple(outcomes.shape)} for outputs "
            f"{tuple(outputs.shape)}; it must drop the last axis and keep all others."
        )
    return outcomes
