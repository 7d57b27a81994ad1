"""What a recorded loop draws, and the modes and statistics of its layers."""

import torch

from skattrib.engine._row_context import (
    counter_names,
    generator_state,
    known_behaviour,
    statistics_names,
)
from skattrib.exceptions import TrajectoryError


class Draws:
    """States of torch's generator before the forward passes of a loop.

    Parameters
    ----------
    model : nn.Module
        That is trained.

    Attributes
    ----------
    handles : list
        Of the hooks, to be removed.
    moving : set of str
        Names of the buffers that batch normalisation moves.
    """

    def __init__(self, model):
        self._model, self._modes, self.moving = model, None, set()
        self._before, self._passes, self._states = None, [], []
        # as they are in a pass with gradients
        self._present, self._mixes = None, False
        self.handles = [
            model.register_forward_pre_hook(self._enter),
            model.register_forward_hook(self._leave),
        ]

    def _enter(self, model, _):
        self._before = generator_state(self._device)
        if torch.is_grad_enabled():
            named = self._model.named_modules()
            self._present = {name: layer.training for name, layer in named}
            self._mixes = known_behaviour(self._model).mixes

    def _leave(self, model, *_):
        # passes to measure a loss are without gradients
        if model.training and torch.is_grad_enabled() and self._before is not None:
            drew = not torch.equal(self._before, generator_state(self._device))
            self._passes.append(self._before if drew else None)
        self._before = None

    @property
    def _device(self):
        return next(p.device for p in self._model.parameters() if p.requires_grad)

    def end_step(self, step, n_parts):
        """Note what the passes of a step drew; raise if that cannot be repeated."""
        modes = self._present
        if self._modes is None:
            self._modes = modes
            if self._mixes:
                names = statistics_names(self._model) + counter_names(self._model)
                self.moving = {name.replace("_orig_mod.", "") for name in names}
        if modes != self._modes:
            raise TrajectoryError(
                f"Layers of the model are in other modes in step {step} than in the "
                "first: call .train() once, before each step, or leave it."
            )
        drawn = [state for state in self._passes if state is not None]
        if (drawn or self.moving) and (len(self._passes) > 1 or n_parts > 1):
            what = "random numbers" if drawn else "batch statistics"
            raise TrajectoryError(
                f"Step {step} took {max(len(self._passes), n_parts)} forward passes in "
                f"training mode, and has {what}: only one pass a step can be repeated. "
                "Measure under torch.no_grad() and in evaluation mode, and do not "
                "accumulate gradients; or replace dropout and batch normalisation."
            )
        self._states.append(drawn[0] if drawn else None)
        self._passes = []

    def put_modes(self, module):
        """Put a copy of the model into the modes that its steps had."""
        for name, training in (self._modes or {}).items():
            name = name.replace("_orig_mod.", "").removesuffix("_orig_mod")
            module.get_submodule(name.rstrip(".")).training = training

    def states(self):
        """Return the states (T, S) of the steps; None if nothing was drawn."""
        known = [state for state in self._states if state is not None]
        if not known:
            return None
        return torch.stack([known[0] if s is None else s for s in self._states])
