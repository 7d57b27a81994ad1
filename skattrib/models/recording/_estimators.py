"""Estimators whose training is a recorded run."""

import copy

import torch
from sklearn.utils._param_validation import StrOptions
from torch import nn

from skattrib._validation import as_tensor
from skattrib.engine._functional import FunctionalModule
from skattrib.engine._losses import Loss, check_loss
from skattrib.engine._trajectory import Recipe
from skattrib.exceptions import TrajectoryError
from skattrib.models._from_module import check_classes
from skattrib.models._module_checks import FEW, check_module, few_outputs
from skattrib.models._network import TrainingProblem
from skattrib.models._rows import as_it_takes
from skattrib.models.neural import TorchClassifier, TorchRegressor

CAUSES = (
    "The loop must take the mean over each minibatch of the loss of a row: of the "
    "cross-entropy, of half the squared error summed over outputs (MSELoss has no "
    "half), or of what is passed as loss=. Other causes: gradients clipped without "
    "clip_norm=, gradients accumulated as the mean over parts of different sizes, "
    "augmented rows, weights, other data."
)


class _Recorded:
    """What repeats a recorded run, where other estimators draw one from a seed."""

    _one_run = True
    # parameters of a network that draws its run; fixed here
    record = "recipe"
    random_state = 0
    average, average_decay, early_stopping = None, 0.99, False

    _parameter_constraints: dict = {
        "module": [nn.Module],
        "recipe": [Recipe],
        "classes": ["array-like", None],
        "loss": [StrOptions({"auto"}), nn.Module, callable, Loss],
        "device": [str, torch.device],
        "verbose": ["verbose"],
    }

    def __init__(self, module, recipe, *, loss="auto", device="cpu", verbose=0):
        self.module = module
        self.recipe = recipe
        self.loss = loss
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

    def _own_module(self, X):
        """Return a copy of the module, where it is trained, and rows as it takes."""
        return as_it_takes(copy.deepcopy(self.module).to(self._device()), X)

    def _problem(self, X, y, random_state=None, *, check=False):
        module, X = self._own_module(as_tensor(X))
        X = X.to(next(p for p in module.parameters() if p.requires_grad))
        targets = self._targets(y, X)
        check_module(module, X[:FEW], self.n_outputs_, self.loss_function_)
        check_rows(self.recipe.batches, len(X))
        model = FunctionalModule(module)
        model.draws_again = self.recipe.draws_again
        loss = self.loss_function_
        check_loss(loss, few_outputs(model.evaluated, X), targets[:FEW])
        weighting = self._weighting(targets)
        recipe = self.recipe.with_statistics(model.statistics())
        return TrainingProblem(model, loss, recipe, X, targets, weighting)


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
    loss : "auto", nn.Module or callable, default="auto"
        Loss of a row, as TorchClassifier takes it.
    device : str or torch.device, default="cpu"
        Where to train.
    verbose : int, default=0
        Shows progress when above 0.
    """

    def __init__(
        self, module, recipe, *, classes=None, loss="auto", device="cpu", verbose=0
    ):
        super().__init__(module, recipe, loss=loss, device=device, verbose=verbose)
        self.classes = classes

    def _learn_classes(self, y):
        if self.classes is None:
            return super()._learn_classes(y)
        return check_classes(self.classes)


class RecordedRegressor(_Recorded, TorchRegressor):
    """A regressor whose training is a recorded run.

    Parameters
    ----------
    module : nn.Module
        As it was before the run.
    recipe : Recipe
        The run.
    loss : "auto", nn.Module or callable, default="auto"
        Loss of a row, as TorchRegressor takes it.
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
