"""Attributors as explainers of quanda, whose metrics are another opinion on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from torch import Tensor, nn

from skattrib.exceptions import UnsupportedModelError
from skattrib.models._as_model import as_model
from skattrib.models._datasets import opened
from skattrib.models.neural import TorchClassifier

__all__ = ["QuandaExplainer"]

_TASK = "image_classification"


class QuandaExplainer:
    """An attributor as an explainer of quanda, for its metrics and benchmarks.

    quanda makes explainers itself, from a class and keyword arguments: pass this class
    and ``{"attributor": attributor}``. It has what its metrics call, and needs no
    quanda.

    Parameters
    ----------
    model : nn.Module
        What is explained: logits of classes.
    train_dataset : torch.utils.data.Dataset
        Pairs (x, y) of a training row and its class.
    task : str, default="image_classification"
        The only one, of rows of any shape.
    checkpoints : str, list of str or None, default=None
        Files of the model's weights; the last one is loaded into it.
    checkpoints_load_func : callable or None, default=None
        Loads one: takes the model and the file. None loads a state dict.
    attributor : attributor
        Fitted to the rows of the dataset. Where the module that it was fitted with is
        another than `model`, and where it is not fitted, a clone of it is fitted to
        `model`, as it is: so do :class:`~skattrib.DualInfluence` and
        :class:`~skattrib.RISEValuator`.

    Attributes
    ----------
    attributor_ : attributor
        The fitted one that answers.
    device : torch.device
        Of the model, where explanations are put.

    Raises
    ------
    ValueError
        If the task is another, or the dataset has other rows than the attributor.
    UnsupportedModelError
        If the attributor cannot be fitted to a module as it is, without its training.

    References
    ----------
    Quanda: an interpretability toolkit for training data attribution evaluation and
    beyond, arXiv:2410.07158.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import load_iris
    >>> from skattrib import DualInfluence, TorchClassifier
    >>> from skattrib.evaluation import QuandaExplainer
    >>> X, y = load_iris(return_X_y=True)
    >>> X = X[::3].astype("float32")
    >>> net = TorchClassifier(max_epochs=20, random_state=0)
    >>> dual = DualInfluence(net, random_state=0).fit(X, y[::3])
    >>> rows = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(y[::3]))
    >>> explainer = QuandaExplainer(dual.estimator_.module_, rows, attributor=dual)
    >>> explainer.explain(torch.tensor(X[:4]), torch.tensor(y[::3][:4])).shape
    torch.Size([4, 50])

    With quanda installed, its metrics take it:

    .. code-block:: python

        metric = quanda.ClassDetectionMetric(model, rows)
        metric.update(explainer.explain(X_test, y_test), y_test)
        metric.compute()
    """

    #: Tasks, as quanda names them.
    accepted_tasks = [_TASK]

    def __init__(
        self,
        model: nn.Module,
        train_dataset: Any,
        task: str = _TASK,
        checkpoints: str | Sequence[str] | None = None,
        checkpoints_load_func: Callable[[nn.Module, str], object] | None = None,
        *,
        attributor: Any,
    ) -> None:
        if task != _TASK:
            raise ValueError(
                f"task={task!r} is not {_TASK!r}: an attributor of texts is asked by "
                "its own attribute, and quanda's metrics take what that returns."
            )
        if not hasattr(attributor, "attribute"):
            raise ValueError(
                f"attributor={attributor!r} has no attribute(X, y): pass an attributor "
                "of this package, such as DualInfluence."
            )
        if checkpoints:
            last = checkpoints if isinstance(checkpoints, str) else checkpoints[-1]
            (checkpoints_load_func or _load)(model, last)
        self.model, self.train_dataset = model, train_dataset
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        X, y = opened(train_dataset)
        self.attributor_ = _fitted(attributor, model, X, y)

    def explain(self, test_data: Tensor, targets: Tensor | Sequence[int]) -> Tensor:
        """Attribute the outcomes of queries to the rows of the dataset.

        Parameters
        ----------
        test_data : Tensor of shape (n_queries, ...)
            Queries.
        targets : Tensor of int of shape (n_queries,), or list
            Their classes.

        Returns
        -------
        Tensor of shape (n_queries, n_rows)
            What `attribute` returns.
        """
        both = (torch.as_tensor(part) for part in (test_data, targets))
        X, y = (part.detach().cpu().numpy() for part in both)
        return self._tensor(self.attributor_.attribute(X, y))

    def self_influence(self, batch_size: int = 32) -> Tensor:
        """Attribute each row of the dataset to itself.

        Parameters
        ----------
        batch_size : int, default=32
            Ignored: the attributor knows what fits.

        Returns
        -------
        Tensor of shape (n_rows,)
            What `self_attribution` returns.
        """
        return self._tensor(self.attributor_.self_attribution())

    def _tensor(self, values: Any) -> Tensor:
        found = torch.as_tensor(np.asarray(values), dtype=torch.float32)
        return found.to(self.device)


def _load(model: nn.Module, path: str) -> None:
    where = next(model.parameters()).device
    model.load_state_dict(torch.load(path, map_location=where, weights_only=True))


def _fitted(attributor: Any, model: nn.Module, X: Any, y: Any) -> Any:
    """Return an attributor that is fitted to these rows and this module."""
    classes, weights = np.unique(y), {}
    if hasattr(attributor, "n_units_"):
        _check_rows(attributor, X, y)
        module = getattr(as_model(attributor._model), "module", None)
        if module is not None and _same(module, model):
            return attributor
        classes = getattr(attributor.estimator_, "classes_", classes)
        if (attributor._row_weights != 1).any():
            weights = {"sample_weight": attributor._row_weights}
    frozen = FrozenEstimator(TorchClassifier.from_module(model, classes))
    name = type(attributor).__name__
    if name not in as_model(frozen).attributors():
        raise UnsupportedModelError(
            f"attributor {name} needs a training, and model is a module without one: "
            "fit it first, and pass the module of its estimator_; or use "
            "DualInfluence or RISEValuator, which take a module as it is."
        )
    return clone(attributor).set_params(estimator=frozen).fit(X, y, **weights)


def _check_rows(attributor: Any, X: Any, y: Any) -> None:
    if attributor.tasks_ is not None:
        raise ValueError(
            "attributor has tasks for units, and quanda asks for rows: fit it with "
            "tasks=None."
        )
    rows, targets = attributor.X_train_, attributor.y_train_
    same = np.shape(rows) == np.shape(X) and np.allclose(rows, X)
    if not same or not np.array_equal(targets, y):
        raise ValueError(
            f"train_dataset has rows of shape {np.shape(X)} that are not those that "
            f"the attributor was fitted to, of shape {np.shape(rows)}, or other "
            "targets: pass the same, in the same order."
        )


def _same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules have the same weights and buffers."""
    first, second = one.state_dict(), other.state_dict()
    return list(first) == list(second) and all(
        torch.equal(value.cpu(), second[name].cpu()) for name, value in first.items()
    )
