"""Losses of labels: each output is the log-odds of one label."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from skattrib.engine._losses._classes import ClassLoss
from skattrib.engine._losses._protocol import Loss, OutcomeFunction


class LabelLoss(Loss):
    """A loss whose targets are 0 or 1 (n, C), for rows with any number of labels.

    There is one output for each label, and its sigmoid is the probability. A subclass
    implements `values`.

    See Also
    --------
    Loss : Methods that are required, and optional ones.

    Examples
    --------
    >>> from sklearn.datasets import make_multilabel_classification
    >>> from skattrib import TorchClassifier
    >>> from skattrib.extension import LabelLoss
    >>> class Brier(LabelLoss):
    ...     def values(self, outputs, targets):
    ...         return (outputs.sigmoid() - targets).square().sum(-1)
    >>> X, y = make_multilabel_classification(40, 6, n_classes=3, random_state=0)
    >>> clf = TorchClassifier(loss=Brier(), max_epochs=20, random_state=0)
    >>> clf.fit(X, y).predict(X[:2]).shape
    (2, 3)
    """

    own_outcome = "log_likelihood"

    def predict(self, outputs: Tensor) -> Tensor:
        return (outputs > 0).to(outputs.dtype)

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        return nn.functional.logsigmoid(outputs)

    def tempered(self, outputs: Tensor, temperature: float) -> Tensor:
        return outputs if temperature == 1.0 else outputs / temperature

    def outcomes(self) -> dict[str, OutcomeFunction]:
        return {"log_likelihood": self.minus}


def _sign(targets: Tensor, like: Tensor) -> Tensor:
    return 2 * targets.to(like.dtype) - 1


@dataclass(frozen=True, repr=False)
class BinaryCrossEntropies(LabelLoss):
    """The sum over labels of their cross-entropies.

    The outcome is the log-likelihood of all labels together, without weights.

    Parameters
    ----------
    pos_weight : tuple of float or None, default=None
        Factor on the terms of labels that are present, one for each label or one for
        all.
    weight : tuple of float or None, default=None
        Factor on both terms of each label.
    """

    pos_weight: tuple[float, ...] | None = None
    weight: tuple[float, ...] | None = None
    separable = True

    @classmethod
    def of(cls, module: nn.BCEWithLogitsLoss) -> BinaryCrossEntropies:
        """Return the loss of a torch module."""
        return cls(_numbers(module.pos_weight), _numbers(module.weight))

    def n_outputs(self, targets: Tensor) -> int:
        """Return the number of labels; raise unless the weights suit it."""
        n_labels = super().n_outputs(targets)
        for name in ("pos_weight", "weight"):
            _check_length(name, getattr(self, name), n_labels)
        return n_labels

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses (n,)."""
        losses = nn.functional.binary_cross_entropy_with_logits(
            outputs,
            targets.to(outputs.dtype),
            weight=_tensor(self.weight, outputs),
            pos_weight=_tensor(self.pos_weight, outputs),
            reduction="none",
        )
        return losses.sum(-1)

    def outcomes(self) -> dict[str, OutcomeFunction]:
        """Return the log-likelihood of all labels."""
        return {"log_likelihood": _labels_log_likelihood}

    def residuals(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the gradients in the log-odds."""
        positive, both = self._term_weights(outputs, targets)
        return both * outputs.sigmoid() - positive

    def hessian_product(
        self, outputs: Tensor, targets: Tensor, vectors: Tensor
    ) -> Tensor:
        """Return p (1 − p) v, weighted."""
        return self._curvature(outputs, targets) * vectors

    def hessian_root(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return S (n, C, C), diagonal."""
        return torch.diag_embed(self._curvature(outputs, targets).sqrt())

    def _curvature(self, outputs: Tensor, targets: Tensor) -> Tensor:
        p = outputs.sigmoid()
        # 1 - p would lose precision where p is near 1
        return self._term_weights(outputs, targets)[1] * p * (-outputs).sigmoid()

    def _term_weights(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factor of −log p, and its sum with the factor of −log (1 − p)."""
        y = targets.to(outputs.dtype)
        pos_weight = _tensor(self.pos_weight, outputs)
        positive_part = y if pos_weight is None else pos_weight * y
        weight = _tensor(self.weight, outputs)
        factor = 1.0 if weight is None else weight
        return factor * positive_part, factor * (positive_part + 1 - y)

    def __repr__(self) -> str:
        return "BinaryCrossEntropies"


@dataclass(frozen=True, repr=False)
class BinaryCrossEntropy(ClassLoss):
    """Cross-entropy of two classes by one output, the log-odds of the second.

    The outcome is log p_y, without the weight.

    Parameters
    ----------
    pos_weight : float, default=1.0
        Factor on the losses of rows of the second class.
    """

    pos_weight: float = 1.0
    separable = True

    @classmethod
    def of(cls, module: nn.BCEWithLogitsLoss) -> BinaryCrossEntropy:
        """Return the loss of a torch module."""
        if module.weight is not None:
            raise ValueError(
                "BCEWithLogitsLoss(weight=...) with two classes scales all losses: "
                "use class_weight= or sample_weight= instead."
            )
        weight = _numbers(module.pos_weight) or (1.0,)
        _check_length("pos_weight", weight, 1)
        return cls(weight[0])

    def n_outputs(self, targets: Tensor) -> int:
        """Return 1; raise unless there are two classes."""
        n_classes = super().n_outputs(targets)
        if n_classes != 2:
            raise ValueError(
                f"BCEWithLogitsLoss has one output for two classes, but y has "
                f"{n_classes}: use nn.CrossEntropyLoss, or give y a column of 0 and 1 "
                "for each label."
            )
        return 1

    def predict(self, outputs: Tensor) -> Tensor:
        """Return the code, 0 or 1, of the more likely class."""
        return (outputs[..., 0] > 0).long()

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        """Return log-probabilities (..., 2)."""
        z = outputs[..., 0]
        pair = nn.functional.logsigmoid(-z), nn.functional.logsigmoid(z)
        return torch.stack(pair, dim=-1)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return probabilities (..., 2)."""
        return self.log_probabilities(outputs).exp()

    def outcomes(self) -> dict[str, OutcomeFunction]:
        """Return log p_y, the margin and the probability."""
        return {**super().outcomes(), "log_likelihood": self.class_log_likelihood}

    def margin(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the log-odds of the target's class."""
        return _sign(targets, outputs) * outputs[..., 0]

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses (n,)."""
        margins = self.margin(outputs, targets)
        return -self._factor(outputs, targets) * nn.functional.logsigmoid(margins)

    def residuals(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the gradients (..., n, 1) in the log-odds."""
        sign = _sign(targets, outputs)
        slope = -sign * (-sign * outputs[..., 0]).sigmoid()
        return (self._factor(outputs, targets) * slope)[..., None]

    def hessian_product(
        self, outputs: Tensor, targets: Tensor, vectors: Tensor
    ) -> Tensor:
        """Return p (1 − p) v, weighted."""
        return self._curvature(outputs, targets) * vectors

    def hessian_root(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return S (n, 1, 1)."""
        return self._curvature(outputs, targets).sqrt()[..., None]

    def _curvature(self, outputs: Tensor, targets: Tensor) -> Tensor:
        curvature = outputs.sigmoid() * (-outputs).sigmoid()
        return self._factor(outputs, targets)[..., None] * curvature

    def _factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 1 + (self.pos_weight - 1) * targets.to(outputs.dtype)

    def __repr__(self) -> str:
        return "BinaryCrossEntropy"


def _labels_log_likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.logsigmoid(_sign(targets, outputs) * outputs).sum(-1)


def _numbers(values: Tensor | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values.reshape(-1).tolist())


def _tensor(values: tuple[float, ...] | None, like: Tensor) -> Tensor | None:
    return None if values is None else torch.tensor(values).to(like)


def _check_length(name: str, values: tuple[float, ...] | None, n: int) -> None:
    if values is not None and len(values) not in (1, n):
        raise ValueError(
            f"The {name} of the loss has {len(values)} entries, for {n} outputs: give "
            "one for each, or one for all."
        )
