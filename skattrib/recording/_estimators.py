"""Estimators whose training is a recorded run."""

import copy

import torch
from torch import nn

from skattrib._torch_estimator import _check_module, _Problem
from skattrib._validation import as_tensor
from skattrib.engine._functional import FunctionalModule, Loss
from skattrib.engine._modules import TwoLogits
from skattrib.engine._trajectory import Recipe
from skattrib.exceptions import TrajectoryError
from skattrib.neural import TorchClassifier, TorchRegressor, check_classes

CAUSES = (
    "The loop must take the mean over each minibatch of the cross-entropy, or of half "
    "the squared error summed over outputs (MSELoss has no half). Other causes: "
    "gradients clipped without clip_norm=, augmented rows, weights, other data."
)


class _Recorded:
    """What repeats a recorded run, where other estimators draw one from a seed."""

    _one_run = True
    # of a training that is not recorded yet; fixed here
    record = "recipe"
    random_state = 0

    _parameter_constraints: dict = {
        "module": [nn.Module],
        "recipe": [Recipe],
        "classes": ["array-like", None],
        "device": [str, torch.device],
        "verbose": ["verbose"],
    }

    def __init__(self, module, recipe, *, device="cpu", verbose=0):
        self.module = module
        self.recipe = recipe
        self.device = device
        self.verbose = verbose

    @property
    def max_epochs(self):
        """Number of steps, each of which has an entry in `loss_curve_`."""
        return self.recipe.n_steps

    @property
    def batch_size(self):
        """Rows of the largest minibatch; None for all rows."""
        batches = self.recipe.batches
        return None if batches is None else max(map(len, batches))

    def _diverged(self, step):
        return TrajectoryError(
            f"Replaying the recording diverged in {step}: it is of another loss or of "
            f"other data. {CAUSES}"
        )

    def _problem(self, X, y, random_state=None):
        module = copy.deepcopy(self.module).to(self._device())
        X = as_tensor(X, next(p for p in module.parameters() if p.requires_grad))
        module = self._completed(module, X[:1])
        targets = self._targets(y, X)
        _check_module(module, X[:3], self.n_outputs_)
        check_rows(self.recipe.batches, len(X))
        model = FunctionalModule(module)
        return _Problem(model, Loss(self._task), self.recipe, X, targets)

    def _completed(self, module, row):
        """Return the module with the outputs that the task needs."""
        return module


class RecordedClassifier(_Recorded, TorchClassifier):
    """A classifier whose training is a recorded run.

    Parameters
    ----------
    module : nn.Module
        As it was before the run.
    recipe : Recipe
        The run.
    classes : array-like of shape (n_classes,) or None, default=None
        Labels of the module's outputs; None for those in y.
    device : str or torch.device, default="cpu"
        Where to train.
    verbose : int, default=0
        Shows progress when above 0.
    """

    def __init__(self, module, recipe, *, classes=None, device="cpu", verbose=0):
        super().__init__(module, recipe, device=device, verbose=verbose)
        self.classes = classes

    def _learn_target(self, y):
        if self.classes is None:
            return super()._learn_target(y)
        self.classes_ = check_classes(self.classes)
        self.n_outputs_ = len(self.classes_)
        return y

    def _completed(self, module, row):
        try:
            with torch.no_grad():
                n_outputs = module(row).numel()
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
            return module  # refused in a moment, with a reason
        single = n_outputs == 1 and self.n_outputs_ == 2
        return nn.Sequential(module, TwoLogits()) if single else module


class RecordedRegressor(_Recorded, TorchRegressor):
    """A regressor whose training is a recorded run.

    Parameters
    ----------
    module : nn.Module
        As it was before the run.
    recipe : Recipe
        The run.
    device : str or torch.device, default="cpu"
        Where to train.
    verbose : int, default=0
        Shows progress when above 0.
    """


def check_rows(batches, n_rows):
    """Raise if minibatches hold rows that X does not have."""
    last = -1 if batches is None else max(int(rows.max()) for rows in batches)
    if last >= n_rows:
        raise TrajectoryError(
            f"The recorded minibatches hold row {last}, but X has {n_rows} rows. "
            "Give the X that the indices passed to rows() are of, as a whole."
        )
