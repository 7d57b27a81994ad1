"""What a recorded loop draws, and the modes and statistics of its layers."""

import torch

from skattrib.engine._row_context import (
    counter_names,
    generator_state,
    known_behaviour,
    statistics_names,
)
from skattrib.exceptions import TrajectoryError

_MEASURE = "Measure under torch.no_grad() and in evaluation mode."


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

    def end_step(self, step, sizes):
        """Note what the passes of a step drew; raise if that cannot be repeated.

        Parameters
        ----------
        step : int
        sizes : list of int
            Numbers of rows of its parts, as they were reported.
        """
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
        passes, self._passes = self._passes, []
        if not passes:
            self._check_unseen(step)
        drawn = [state for state in passes if state is not None]
        if self.moving and (len(passes) > 1 or len(sizes) > 1):
            raise TrajectoryError(
                f"Step {step} took {max(len(passes), len(sizes))} forward passes in "
                "training mode, and batch statistics are of each pass alone: only one "
                f"can be repeated. {_MEASURE} Do not accumulate gradients, or replace "
                "batch normalisation (by LayerNorm, GroupNorm)."
            )
        if drawn:
            self._check_parts(step, len(passes), sizes)
            # of a part that draws nothing, any state will do
            states = torch.stack([drawn[0] if s is None else s for s in passes])
            self._states.append(states)
        else:
            self._states.append(None)

    def _check_unseen(self, step):
        """Raise if the model does in training what only its passes tell."""
        behaviour = known_behaviour(self._model)
        if behaviour.masks or behaviour.mixes or behaviour.draws:
            name = type(self._model).__name__
            raise TrajectoryError(
                f"Step {step} called no forward pass of {name} as a whole, where what "
                "its dropout or batch normalisation do is seen: call the recorded "
                "module itself, model(X), not model.forward(X) nor parts of it."
            )

    def _check_parts(self, step, n_passes, sizes):
        """Raise unless each part of a step has a pass, and they are equally large."""
        if n_passes != len(sizes):
            raise TrajectoryError(
                f"Step {step} took {n_passes} forward passes in training mode, and "
                f"drew random numbers, for rows of {len(sizes)}: each pass must have "
                f"its own call of recording.rows(indices). {_MEASURE}"
            )
        known = [len(states) for states in self._states if states is not None]
        if len(set(sizes)) > 1 or (known and known[0] != len(sizes)):
            before = f", after steps of {known[0]}" if known else ""
            raise TrajectoryError(
                f"Step {step} accumulates gradients over passes of {sizes} rows"
                f"{before}, and draws random numbers: these are repeated for the same "
                "number of equal parts in each step. Drop incomplete ones "
                "(drop_last=True), or replace dropout."
            )

    def put_modes(self, module):
        """Put a copy of the model into the modes that its steps had."""
        for name, training in (self._modes or {}).items():
            name = name.replace("_orig_mod.", "").removesuffix("_orig_mod")
            module.get_submodule(name.rstrip(".")).training = training

    def states(self):
        """Return the states (T, S) of the steps; None if nothing was drawn.

        They are (T, K, S) if K passes were accumulated in each.
        """
        known = [states for states in self._states if states is not None]
        if not known:
            return None
        found = torch.stack([known[0] if s is None else s for s in self._states])
        return found[:, 0] if found.shape[1] == 1 else found
