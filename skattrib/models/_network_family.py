"""The family of networks: what attributors ask of TorchClassifier, TorchRegressor."""

import copy
import warnings
from dataclasses import replace

import numpy as np
from sklearn.base import clone

from skattrib._validation import as_tensor
from skattrib.engine._functional import FunctionalModule
from skattrib.engine._row_moments import moments_of_rows, same_rows
from skattrib.exceptions import FaithfulnessWarning, TrajectoryError
from skattrib.models._module_checks import FEW, check_module
from skattrib.models._protocol import Differentiable, Recorded, Retrainable
from skattrib.models._rows import check_row_shape


class NetworkModel(Retrainable, Differentiable, Recorded):
    """A network: a recipe or a recorded run, or a module that came without either."""

    stacks = True
    first_attributors = ("AdamWInfluence", "DualInfluence")

    @property
    def takes_tables(self):
        """Whether a data frame is passed on unchanged: no, rows become numbers."""
        return False

    @property
    def takes_sparse(self):
        """Whether sparse rows are passed on as they are: no."""
        return False

    @property
    def takes_any_shape(self):
        """Whether rows may have more than one axis: as a module takes them."""
        return self.estimator.module is not None

    @property
    def loss(self):
        """Loss that it was trained on; before that, the usual one of its kind."""
        return getattr(self.estimator, "loss_function_", super().loss)

    def future_loss(self, X, y):
        """Return the loss that it will be trained on."""
        if self.frozen:  # and knows its rows
            check_row_shape(self.estimator, X)
            return self.loss
        blank = clone(self.estimator)
        blank._learn_target(y, X)
        return blank.loss_function_

    def recipe(self):
        """Return what to train on other rows: a fitted one stops where it stopped."""
        return self.estimator._kept_stopping()

    def trained_weights(self, weights):
        """Return the weights of the rows; 0 for those that were not trained on."""
        held_out = getattr(self.estimator, "_held_out", ())
        if not len(held_out) or len(weights) <= held_out[-1]:
            return weights
        warnings.warn(
            f"early_stopping held out {len(held_out)} of the {len(weights)} rows: "
            "their attributions are 0, although they decide when training stops. Use "
            "EarlyStopping(validation_data=(X, y)) to attribute to all rows.",
            FaithfulnessWarning,
            stacklevel=6,
        )
        weights = weights.copy()
        weights[held_out] = 0
        return weights

    @property
    def module(self):
        """The fitted module."""
        return self.estimator.module_

    @property
    def module_in_training(self):
        """The fitted module, its tensors shared, in the modes it was trained in."""
        return self.estimator._module_in_training()

    @property
    def trajectory(self):
        """Record of the training; None before it, and where there is none."""
        return getattr(self.estimator, "trajectory_", None)

    @property
    def has_run(self):
        """Whether there is a run, or will be once it is fitted."""
        return getattr(self.estimator, "trajectory_", 0) is not None

    @property
    def can_retrain(self):
        """Whether it can be trained again: not a frozen module without a record."""
        return self.has_run or not self.frozen

    @property
    def one_run(self):
        """Whether it repeats one recorded run, whatever the seed."""
        return self.estimator._one_run

    def targets(self, y, like):
        """Return targets as the loss takes them, where ``like`` is."""
        return self.estimator._targets(y, like)

    def weighting(self, targets):
        """Return what makes the weights in the loss of the weights of the rows."""
        return self.estimator._weighting(targets)

    def in_double(self):
        """Return the model with a copy of its module in double precision."""
        estimator = copy.copy(self.estimator)
        estimator.module_ = copy.deepcopy(estimator.module_).double()
        return type(self)(estimator, frozen=self.frozen)

    def encode(self, y, like):
        """Return targets as the loss takes them, where ``like`` is."""
        return self.targets(y, like)

    def outputs(self, X):
        """Return outputs (q, C) of the fitted module."""
        return self.estimator._raw_outputs(np.asarray(X))

    def check(self):
        """Raise if it cannot be trained; it can."""

    def check_answers(self, X):
        """Raise unless the fitted module maps rows to outputs one by one.

        Training has made sure of it. A module that was trained elsewhere has met no
        rows, unless it could be tried on some of a table when it was wrapped.
        """
        tried = getattr(self.estimator, "_tried", None)
        if tried is False or (tried and np.ndim(X) > 2):
            rows = as_tensor(np.asarray(X)[:FEW], next(self.module.parameters()))
            check_module(self.module, rows, self.estimator.n_outputs_, self.loss)

    def retrain(self, X, y, weights, seed):
        """Return a clone trained on weighted rows; many are trained as a stack."""
        blank = self.clone()
        if not self.one_run:
            blank.set_params(random_state=seed)
        return blank.fit(X, y, weights)

    def warn_of_other_rows(self, X, y, weights, stacklevel):
        """Warn if it was trained on other rows than these, as far as that is known."""
        known = getattr(self.trajectory, "rows", None)
        if known is None:
            return
        rows = as_tensor(X, next(self.module.parameters()))
        counted = as_tensor(weights, self.trajectory.row_weights).clone()
        held_out = getattr(self.estimator, "_held_out", [])
        if len(held_out) and len(counted) > held_out[-1]:
            counted[held_out] = 0
        if not same_rows(known, moments_of_rows(rows, self.targets(y, rows), counted)):
            n_seen = len(self.trajectory.row_weights)
            warnings.warn(
                f"The frozen {self.name} was trained on other rows, labels or weights "
                f"({n_seen} rows then, {len(rows)} now), or a transformer made others "
                "of them: attributions are those of a model that does not exist. Pass "
                "what it was trained on.",
                FaithfulnessWarning,
                stacklevel=stacklevel + 1,
            )

    def ending(self, recipe, result):
        """Return a copy with the end of another run by a recipe of the same steps."""
        estimator = copy.copy(self.estimator)
        estimator.module_ = copy.deepcopy(estimator.module_)
        FunctionalModule(estimator.module_).load(result.params[0])
        scale = result.denominator
        estimator.trajectory_ = replace(
            self.trajectory,
            recipe=recipe,
            denominator=None if scale is None else scale[0].cpu(),
            states={},
        )
        return type(self)(estimator, frozen=self.frozen)

    def moved(self, change):
        """Return a copy, without a record, whose parameters are moved."""
        estimator = copy.copy(self.estimator)
        estimator.trajectory_ = None
        vars(estimator).pop("loss_curve_", None)
        estimator = copy.deepcopy(estimator)
        module = FunctionalModule(estimator.module_)
        end = module.flatten()
        module.load(end + as_tensor(change, end))
        return estimator

    def network(self, user):
        """Return the estimator, which has gradients."""
        return self.estimator

    def check_run(self, user):
        """Raise unless its training was, or will be, recorded."""
        if self.frozen and not self.has_run:
            raise TrajectoryError(
                f"The frozen {self.name} wraps a module whose training was not "
                "recorded: there is no run to differentiate. Train it through "
                "TorchClassifier(module=...).fit, record your own loop by "
                "record_training, or use DualInfluence."
            )

    def attributors(self):
        """Return the names of the attributors that work for it."""
        known = super().attributors()
        if self.frozen and not self.has_run:
            known.remove("AdamWInfluence")
        return known
