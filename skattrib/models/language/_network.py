"""The network of a language model that is trained: rows of tokens, and their loss."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skattrib._validation import as_tensor
from skattrib.engine._functional import apart, chunks
from skattrib.engine._losses import Loss, OutcomeFunction
from skattrib.engine._modules import call_seeded
from skattrib.exceptions import UnsupportedModelError
from skattrib.models._module_checks import FEW, check_module
from skattrib.models._network_family import NetworkModel
from skattrib.models._rows import in_dtype_of
from skattrib.models.language._adapted import with_draws
from skattrib.models.neural import TorchClassifier, TorchRegressor

# Rows that are asked at once.
_AT_ONCE = 32
#: Texts drawn in the place of each completion, of which the curvature is made.
N_DRAWS = 4


@dataclass(frozen=True, repr=False)
class CompletionLoss(Loss):
    """The mean loss of a completion's tokens, which is what the module returns.

    Targets are the numbers of these tokens. Further outputs are those of draws, of
    which this loss has its curvature, as `CompletionLosses` says.

    Parameters
    ----------
    by_token : bool, default=False
        Whether a batch's loss is the mean over its tokens, so that long texts count
        more, or over its texts.
    """

    by_token: bool = False
    separable = quadratic = True
    own_outcome = "log_likelihood"

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses (n,)."""
        return outputs[..., 0]

    def predict(self, outputs: Tensor) -> Tensor:
        """Return the outputs."""
        return outputs

    def residuals(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return 1 for the loss, and 0 for draws."""
        found = torch.zeros_like(outputs)
        found[..., 0] = 1
        return found

    def hessian_product(
        self, outputs: Tensor, targets: Tensor, vectors: Tensor
    ) -> Tensor:
        """Return the mean over draws, and 0 for the loss itself."""
        return vectors * self._bend(outputs)

    def hessian_root(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the roots of these Hessians (n, C, C)."""
        root = self._bend(outputs).sqrt().diag()
        return root.expand(len(outputs), -1, -1)

    def _bend(self, outputs: Tensor) -> Tensor:
        n_draws = outputs.shape[-1] - 1
        bend = outputs.new_full((1 + n_draws,), 1 / max(1, n_draws))
        bend[0] = 0
        return bend

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


class ReadsTokens:
    """Methods of a network of rows of tokens, which may be of any length.

    It has a recipe, with a module that builds adapters on a model that all clones
    share.
    """

    module: Any
    module_: nn.Module
    n_outputs_: int
    loss_function_: Loss

    @property
    def trains_adapters(self) -> bool:
        """Whether adapters are trained, half of which begin at zero."""
        return bool(self.module.trainable == "adapters")

    @property
    def _row_shape(self):
        """Rows of queries may be shorter or longer: there is no shape to keep."""
        return None

    @_row_shape.setter
    def _row_shape(self, shape):
        pass

    def _device(self) -> torch.device:
        """Return where the model is that is built upon."""
        if isinstance(self.module, nn.Module):  # of a recorded run
            return next(self.module.parameters()).device
        place: torch.device = self.module.device(self.n_outputs_)
        return place

    def _build_module(self, X: Tensor, seed: int) -> nn.Module:
        n_outputs = self.n_outputs_
        module = call_seeded(self.module, X.shape[1], n_outputs, seed)
        few = in_dtype_of(module, X[:FEW])
        check_module(module, few, n_outputs, self.loss_function_)
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


class TextNetwork(ReadsTokens, TorchRegressor):
    """What a `CausalLanguageModel` trains."""

    #: Its outputs are losses, and not those of the last linear layer.
    gives_losses = True


class TextClassifier(ReadsTokens, TorchClassifier):
    """What a `SequenceClassifier` trains."""


class TextClassifierModel(NetworkModel):
    """The network of a classifier of texts."""

    @property
    def starts_still(self) -> bool:
        """Whether adapters are trained, half of which begin at zero."""
        return bool(self.estimator.trains_adapters)


class TextNetworkModel(TextClassifierModel):
    """The network of a trained language model."""

    first_attributors = ("AdamWInfluence", "DualInfluence")

    def differentiable(self, user: Any) -> Any:
        """Return the model; raise for an index, which is of a model that is read."""
        name = type(user).__name__
        if name not in self.attributors():
            raise UnsupportedModelError(
                f"{name} needs the logits of a model, and one that is trained here "
                f"gives losses of texts. Use {' or '.join(self.attributors())}; or, "
                "for an index, CausalLanguageModel(trainable=None)."
            )
        return self

    def curved(self, X: Any, seed: int) -> tuple[TextNetworkModel, Any]:
        """Return it with outputs of draws, and rows with what is drawn from it."""
        rows = as_tensor(X, next(self.module.parameters()))
        drawn = with_draws(self.module, rows[:, :2], N_DRAWS, seed).cpu().numpy()
        estimator = copy.copy(self.estimator)
        estimator.module_ = apart(self.module)
        estimator.module_.n_draws = N_DRAWS
        return type(self)(estimator, frozen=self.frozen), drawn

    def attributors(self) -> list[str]:
        """Return the names of the attributors that work for it."""
        return [name for name in super().attributors() if name != "RISEValuator"]
