"""The network of a language model that is trained: rows of tokens, and their loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skattrib._validation import as_tensor
from skattrib.engine._functional import chunks
from skattrib.engine._losses import Loss, OutcomeFunction
from skattrib.engine._modules import call_seeded
from skattrib.exceptions import UnsupportedModelError
from skattrib.models._module_checks import FEW, check_module
from skattrib.models._network_family import NetworkModel
from skattrib.models.neural import TorchRegressor

# Rows that are asked at once.
_AT_ONCE = 32


@dataclass(frozen=True, repr=False)
class CompletionLoss(Loss):
    """The mean loss of a completion's tokens, which is what the module returns.

    Targets are the numbers of these tokens.

    Parameters
    ----------
    by_token : bool, default=False
        Whether a batch's loss is the mean over its tokens, so that long texts count
        more, or over its texts.
    """

    by_token: bool = False
    separable = True
    own_outcome = "log_likelihood"

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses (n,)."""
        return outputs[..., 0]

    def predict(self, outputs: Tensor) -> Tensor:
        """Return the outputs."""
        return outputs

    def row_weights(self, targets: Tensor) -> Tensor | None:
        """Return the numbers of tokens (n,), if each of them has the same weight."""
        return targets[:, 0] if self.by_token else None

    def outcomes(self) -> dict[str, OutcomeFunction]:
        """Return the log-likelihood of the completion."""
        return {"log_likelihood": _log_likelihood}

    def __repr__(self) -> str:
        return f"CompletionLoss(by_token={self.by_token})"


def _log_likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
    return -outputs[..., 0] * targets[..., 0]


class TextNetwork(TorchRegressor):
    """A network of rows of tokens, which may be of any length.

    It is what a `CausalLanguageModel` trains: a recipe, with a module that builds
    adapters on a model that all clones share.
    """

    @property
    def _row_shape(self):
        """Rows of queries may be shorter or longer: there is no shape to keep."""
        return None

    @_row_shape.setter
    def _row_shape(self, shape):
        pass

    def _build_module(self, X: Tensor, seed: int) -> nn.Module:
        module = call_seeded(self.module, X.shape[1], 1, seed)
        check_module(module, X[:FEW], 1, self.loss_function_)
        return module

    def _raw_outputs(self, X: Any) -> Tensor:
        like = next(self.module_.parameters())
        with torch.no_grad():
            return torch.cat(
                [
                    self.module_(as_tensor(X[part], like))
                    for part in chunks(len(X), _AT_ONCE)
                ]
            )


class TextNetworkModel(NetworkModel):
    """The network of a trained language model."""

    first_attributors = ("AdamWInfluence", "KernelSurrogateAttributor")

    @property
    def starts_still(self) -> bool:
        """Whether adapters are trained, half of which begin at zero."""
        return bool(self.estimator.module.trainable == "adapters")

    def differentiable(self, user: Any) -> Any:
        """Raise: its loss has no curvature in its outputs."""
        name = type(user).__name__
        others = " or ".join(self.attributors())
        raise UnsupportedModelError(
            f"{name} needs outputs in which the loss is curved, and a language model "
            f"that is trained gives losses of texts. Use {others}; RISEValuator takes "
            "CausalLanguageModel(trainable=None)."
        )

    def attributors(self) -> list[str]:
        """Return the names of the attributors that work for it."""
        return [
            name
            for name in super().attributors()
            if name not in ("DualInfluence", "RISEValuator")
        ]
