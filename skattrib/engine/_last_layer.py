"""Gradients of the last linear layer, as sums of outer products that are never formed.

With the input h of the last layer, outputs z = W h + b and a residual r = ∂ℓ/∂z, the
loss has the gradient r ⊗ (h, 1) in (W, b) and g = Wᵀ r in h. An index stores their sums
over the tokens of each row, sketched as factors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from skattrib.engine._functional import as_rows
from skattrib.engine._losses import CrossEntropy, Loss
from skattrib.engine._sketch import draw_tables, sketch

Channel = Literal["rh", "gh", "h"]
Sketch = Literal["tensor", "factor"] | None

# Outer products of this many numbers are formed at a time.
_AT_ONCE = 2**22
# As many logits are exponentiated at a time.
_IN_CACHE = 2**20
_TINY = 1e-8


@dataclass(frozen=True)
class Head:
    """The last linear layer: weight (C, D), bias (C,) or None."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, layer: nn.Linear) -> Head:
        """Return the layer's own tensors, detached."""
        bias = None if layer.bias is None else layer.bias.detach()
        return cls(layer.weight.detach(), bias)

    @property
    def n_inputs(self) -> int:
        """Number of columns of W, and one for the bias."""
        return self.weight.shape[1] + (self.bias is not None)

    def with_one(self, hidden: Tensor) -> Tensor:
        """Append the ones that the bias multiplies, if there is one."""
        if self.bias is None:
            return hidden
        return torch.cat([hidden, hidden.new_ones(*hidden.shape[:-1], 1)], dim=-1)


def find_head(module: nn.Module, X: Tensor) -> nn.Linear:
    """Return the nn.Linear whose output is the module's output, tried on two rows.

    Raises
    ------
    ValueError
        If there is no such layer.
    """
    linear = [m for m in module.modules() if isinstance(m, nn.Linear)]
    called: list[nn.Linear] = []
    handles = [
        layer.register_forward_hook(
            lambda called_layer, *_: called.append(called_layer)
        )
        for layer in linear
    ]

    try:
        with torch.no_grad():
            out = as_rows(module(X[:2]), len(X[:2]))
    finally:
        for handle in handles:
            handle.remove()

    if called and called[-1].out_features == out.shape[1]:
        if _is_output(module, called[-1], X[:2]):
            return called[-1]

    kind = type(module).__name__
    raise ValueError(
        f"The output of {kind} is not that of an nn.Linear layer: what comes after the "
        "last one (a softmax, a scale or cap on the logits, a second logit made of "
        "one) would have to be part of the loss. Wrap a module that ends in nn.Linear."
    )


def _is_output(module: nn.Module, layer: nn.Linear, X: Tensor) -> bool:
    """Return whether the module returns the output of the layer unchanged."""
    replacements: list[Tensor] = []

    def swap(_: nn.Module, inputs: object, output: Tensor) -> Tensor:
        # large, of both signs: any nonlinear function changes these
        steps = torch.arange(output.numel(), dtype=output.dtype, device=output.device)
        replacement = ((50.0 + steps) * (1.0 - 2.0 * (steps % 2))).reshape(output.shape)
        replacements.append(replacement.clone())
        return replacement

    handle = layer.register_forward_hook(swap)
    try:
        with torch.no_grad():
            out = module(X)
    finally:
        handle.remove()

    same = len(replacements) == 1 and replacements[0].numel() == out.numel()
    return same and torch.equal(out.reshape(-1), replacements[0].reshape(-1))


def hidden_states(
    module: nn.Module, layer: nn.Linear, X: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the layer's inputs (n, D), and the module's outputs (n, C)."""
    layer_inputs: list[Tensor] = []
    handle = layer.register_forward_pre_hook(
        lambda _, inputs: layer_inputs.append(inputs[0])
    )
    try:
        with torch.no_grad():
            out = as_rows(module(X), len(X))
    finally:
        handle.remove()
    return layer_inputs[-1].reshape(len(X), -1), out


@dataclass(frozen=True)
class Tokens:
    """Hidden states and outputs of N tokens; a row of a table is one token.

    Attributes
    ----------
    rows : int64 Tensor of shape (N,)
        Row that each token belongs to.
    hidden : Tensor of shape (N, D)
        Inputs of the head.
    outputs : Tensor of shape (N, C)
        Outputs of the head.
    targets : Tensor of shape (N,) or (N, C)
        Targets of the outputs.
    """

    rows: Tensor
    hidden: Tensor
    outputs: Tensor
    targets: Tensor


# ------------------------------------------------------------------ residuals
@dataclass(frozen=True)
class Residual:
    """Residuals of N tokens, for all outputs or for some.

    Attributes
    ----------
    values : Tensor of shape (N, K)
    indices : int64 Tensor of shape (N, K) or None
        Outputs that the values belong to; None: all C in order.
    n_outputs : int
        C.
    """

    values: Tensor
    indices: Tensor | None
    n_outputs: int

    def dense(self) -> Tensor:
        """Return the residuals (N, C)."""
        if self.indices is None:
            return self.values
        out = self.values.new_zeros(len(self.values), self.n_outputs)
        return out.scatter_(1, self.indices, self.values)

    def project(self, matrix: Tensor) -> Tensor:
        """Return Σ_c r_c matrix_c, (N, k), for a matrix (C, k)."""
        if self.indices is None:
            return self.values @ matrix
        projected: Tensor = nn.functional.embedding_bag(
            self.indices, matrix, per_sample_weights=self.values, mode="sum"
        )
        return projected

    def sketch(self, tables: tuple[Tensor, Tensor], n_components: int) -> Tensor:
        """Return count sketches (N, n_components)."""
        if self.indices is None:
            return sketch(self.values, *tables, n_components)
        index = tables[0][0].long()
        sign = tables[1][0].to(self.values)
        out = self.values.new_zeros(len(self.values), n_components)
        signed = self.values * sign[self.indices]
        return out.scatter_add_(1, index[self.indices], signed)


def residuals(
    outputs: Tensor,
    targets: Tensor,
    loss: Loss,
    *,
    top_k: int | None = None,
    temperature: float = 1.0,
) -> Residual:
    """Return ∂ℓ/∂z of outputs z (N, C); of cross-entropy, p − onehot.

    Parameters
    ----------
    top_k : int or None
        For cross-entropy: keep the residuals of this many most likely classes,
        including the target's. Probabilities are those among all classes.
    temperature : float
        Of the softmax or sigmoid; losses of numbers ignore it.
    """
    n_outputs = outputs.shape[1]
    z = loss.tempered(outputs, temperature)
    if type(loss) is not CrossEntropy or loss.label_smoothing:
        return Residual(loss.residuals(z, targets), None, n_outputs)

    # a few rows at a time, which fit the processor's cache: twice as fast
    pieces = z.split(max(1, _IN_CACHE // n_outputs))
    total = torch.cat([piece.logsumexp(dim=1, keepdim=True) for piece in pieces])
    target = targets[:, None]
    # p - 1 would lose precision where p is near 1
    at_target = torch.expm1(z.gather(1, target) - total)
    if top_k is None or top_k >= n_outputs:
        return Residual(
            (z - total).exp().scatter_(1, target, at_target), None, n_outputs
        )

    best, indices = z.topk(top_k, dim=1)
    # where the target is, else the last place
    is_target = indices == target
    place = is_target.int().argmax(dim=1, keepdim=True)
    place = torch.where(is_target.any(dim=1, keepdim=True), place, top_k - 1)
    values = (best - total).exp().scatter_(1, place, at_target)

    return Residual(values, indices.scatter_(1, place, target), n_outputs)


# ------------------------------------------------------------------- channels
class Sketcher:
    """Converts tokens to the channels of their rows.

    Parameters
    ----------
    head : Head
    channels : sequence of {"rh", "gh", "h"}
        "rh": Σ r ⊗ h; "gh": Σ (Wᵀ r) ⊗ h; "h": the mean of
        h, sketched if "tensor" makes it shorter.
    how : {"tensor", "factor"} or None
        "tensor": one sketch of each outer product; "factor": outer products of
        sketches of the factors; None: the outer products themselves.
    sizes : int or mapping
        Components of a channel; for "factor" those of the factors "r", "g", "h".
    per_token : bool
        Scale the factors of every token to norm 1.
    tables : mapping
        From `draw`.
    """

    def __init__(
        self,
        head: Head,
        channels: tuple[Channel, ...],
        how: Sketch,
        sizes: int | Mapping[str, int],
        tables: Mapping[str, tuple[Tensor, Tensor]],
        per_token: bool = False,
    ) -> None:
        self._head, self._how, self._per_token = head, how, per_token
        self.channels, self._sizes = channels, sizes
        self._tables = {
            name: (index.to(head.weight.device), sign.to(head.weight.device))
            for name, (index, sign) in tables.items()
        }
        self._lengths = {"r": head.weight.shape[0], "g": head.weight.shape[1]}
        self._lengths["h"] = head.n_inputs

    @staticmethod
    def draw(
        head: Head, how: Sketch, sizes: int | Mapping[str, int], seed: int
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Draw the hash tables of the factors; none for exact channels."""
        if how is None:
            return {}
        n_outputs, n_hidden = head.weight.shape
        lengths = {"h": head.n_inputs, "g": n_hidden, "r": n_outputs}
        if isinstance(sizes, int):
            sizes = dict.fromkeys(lengths, sizes)
            if n_hidden > sizes["h"]:
                lengths["mean"], sizes["mean"] = n_hidden, sizes["h"]
        return {
            name: draw_tables(length, sizes[name], 1, seed + i)
            for i, (name, length) in enumerate(lengths.items())
        }

    def _size(self, factor: str) -> int:
        if self._how is None:
            return self._lengths[factor]
        return self._sizes if isinstance(self._sizes, int) else self._sizes[factor]

    def width(self, channel: Channel) -> int:
        """Return the numbers of a channel."""
        if channel == "h":
            return self._size("h") if "mean" in self._tables else self._lengths["g"]
        left, right = self._size(channel[0]), self._size("h")
        return right if self._how == "tensor" else left * right

    def __call__(
        self, residual: Residual, hidden: Tensor, rows: Tensor, n_rows: int
    ) -> dict[Channel, Tensor]:
        """Return the channels (n_rows, width) of tokens that belong to ``rows``."""
        channels: dict[Channel, Tensor] = {}
        right = self._factor("h", self._head.with_one(hidden))
        for channel in self.channels:
            if channel == "h":
                mean = _row_means(hidden, rows, n_rows)
                if "mean" in self._tables:
                    mean = sketch(mean, *self._tables["mean"], self._size("h"))
                channels[channel] = mean
            elif channel == "rh":
                channels[channel] = self._pairs(
                    self._left_r(residual), right, rows, n_rows
                )
            else:
                g = self._factor("g", residual.project(self._head.weight))
                channels[channel] = self._pairs(g, right, rows, n_rows)

        return channels

    def _left_r(self, residual: Residual) -> Tensor:
        if self._how is None:
            return self._scaled(residual.dense())
        return self._scaled(residual.sketch(self._tables["r"], self._size("r")))

    def _factor(self, name: str, values: Tensor) -> Tensor:
        if self._how is not None:
            values = sketch(values, *self._tables[name], self._size(name))
        return self._scaled(values)

    def _scaled(self, values: Tensor) -> Tensor:
        if not self._per_token:
            return values
        return values / values.norm(dim=1, keepdim=True).clamp(min=_TINY)

    def _pairs(self, left: Tensor, right: Tensor, rows: Tensor, n_rows: int) -> Tensor:
        """Return the sums over the tokens of each row of left ⊗ right, sketched."""
        if self._how == "tensor":
            # an outer product is sketched by a circular convolution: sum its transform
            width = right.shape[1]
            waves = torch.fft.rfft(left) * torch.fft.rfft(right)
            total = waves.new_zeros(n_rows, waves.shape[1]).index_add_(0, rows, waves)
            return torch.fft.irfft(total, n=width)

        out = right.new_zeros(n_rows, left.shape[1] * right.shape[1])
        step = max(1, _AT_ONCE // out.shape[1])
        for start in range(0, len(rows), step):
            chunk = slice(start, start + step)
            outer = left[chunk, :, None] * right[chunk, None, :]
            out.index_add_(0, rows[chunk], outer.flatten(1))

        return out


def _row_means(values: Tensor, rows: Tensor, n_rows: int) -> Tensor:
    counts = torch.bincount(rows, minlength=n_rows).clamp(min=1)
    total = values.new_zeros(n_rows, values.shape[1]).index_add_(0, rows, values)
    return total / counts[:, None].to(values)
