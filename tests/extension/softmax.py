"""A model with gradients: logistic regression, as the linear layer that it is."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from skattrib.extension import Differentiable, Retrainable, register_model


class Softmax(LogisticRegression):
    """Logistic regression of three or more classes."""


@register_model(Softmax)
class SoftmaxModel(Retrainable, Differentiable):
    """Its fit takes ``sample_weight``; its module has the same probabilities."""

    def retrain(self, X, y, weights, seed):
        """Return a copy fitted to weighted rows."""
        return self.clone().fit(X, y, sample_weight=weights)

    @property
    def module(self):
        """The layer from rows to logits."""
        weight, bias = self.estimator.coef_, self.estimator.intercept_
        layer = torch.nn.utils.skip_init(torch.nn.Linear, *weight.T.shape)
        layer = layer.double()
        layer.load_state_dict(
            {"weight": torch.tensor(weight), "bias": torch.tensor(bias)}
        )
        return layer

    def targets(self, y, like):
        """Return the codes of classes."""
        return torch.tensor(np.searchsorted(self.estimator.classes_, y))
