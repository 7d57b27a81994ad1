"""What the dropout of adapters draws while transformers' Trainer trains them."""

import numpy as np
import torch
from torch import nn

from skattrib.engine._row_context import generator_state
from skattrib.exceptions import TrajectoryError


def dropout_of_adapters(model):
    """Return the layers of a model that drop what enters its adapters."""
    return [
        layer
        for name, layer in model.named_modules()
        if "lora_dropout" in name
        and isinstance(layer, nn.modules.dropout._DropoutNd)
        and layer.p
    ]


class AdapterDraws:
    """States of torch's generator before each pass, and how its rows were padded.

    With these the masks of adapters are drawn again, if nothing else draws.

    Parameters
    ----------
    base : nn.Module
        The causal model with its adapters.
    device : torch.device
        Where it draws.

    Attributes
    ----------
    handles : list
        Of the hooks, to be removed.
    """

    def __init__(self, base, device):
        self._device, self._layers = device, dropout_of_adapters(base)
        # the generator as the pass under way left it; None outside of one
        self._present, self._shape, self._foreign = None, None, False
        self._passes, self._steps = [], []
        self.handles = []
        for layer in self._layers:
            self.handles += [
                layer.register_forward_pre_hook(self._before),
                layer.register_forward_hook(self._after),
            ]

    def begin(self, ids, mask):
        """Note a pass that begins.

        Parameters
        ----------
        ids : int64 Tensor of shape (B, T)
            Tokens, padded.
        mask : Tensor of shape (B, T) or None
            1 for what is no padding.
        """
        self._present, self._shape = generator_state(self._device), ids.shape
        self._foreign = False
        begins = np.zeros(len(ids), dtype=np.int64)
        if mask is not None:
            begins = (mask.cpu().numpy() > 0).argmax(axis=1)
        self._passes.append((self._present, ids.shape[1], begins))

    def break_off(self):
        """Forget a pass that raised, if one is under way."""
        self._present = None

    def end(self):
        """End a pass; say whether all that it drew are masks of adapters."""
        self._check_unchanged()
        self._present = None
        return not self._foreign

    def end_step(self):
        """End a step of the passes since the last one."""
        passes, self._passes = self._passes, []
        if self._layers:
            self._steps.append(passes)

    def of_run(self):
        """Return the fields of a recipe that hold what was drawn."""
        if not self._steps:
            return {}
        most = max(map(len, self._steps))
        states, layout = [], []
        for passes in self._steps:
            found = [state for state, *_ in passes]
            # steps may have fewer passes than others: then any state will do
            states.append(torch.stack(found + found[:1] * (most - len(found))))
            for number, (_, width, begins) in enumerate(passes):
                rows = [np.full(len(begins), value) for value in (number, width)]
                layout.append(np.stack([*rows, begins], axis=1))
        layout = torch.tensor(np.concatenate(layout).astype(np.int64))
        return {"generator_states": torch.stack(states), "layout": layout}

    def _before(self, layer, inputs):
        if not self._is_noted(layer):
            return
        self._check_unchanged()
        if inputs[0].shape[:2] != self._shape:
            raise TrajectoryError(
                f"lora_dropout={layer.p} is of a layer that gets inputs of shape "
                f"{tuple(inputs[0].shape)} in a batch of {tuple(self._shape)} tokens, "
                "whose masks are not drawn again. Use LoraConfig(lora_dropout=0.0), or "
                "target_modules that see each token once (not experts)."
            )

    def _after(self, layer, *_):
        if self._is_noted(layer):
            self._present = generator_state(self._device)

    def _is_noted(self, layer):
        """Whether what a layer draws is of a pass under way.

        What checkpoints draw behind it is the same again. Whether there are gradients
        says nothing: reentrant checkpoints have none in the pass itself.
        """
        return layer.training and self._present is not None

    def _check_unchanged(self):
        """Note whether something else has drawn since the last adapter."""
        now = generator_state(self._device)
        self._foreign |= not torch.equal(self._present, now)
