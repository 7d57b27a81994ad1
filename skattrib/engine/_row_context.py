"""Random masks and batch statistics as functions of weights, seed, step and row.

A network with dropout is a function of the weights of its rows only if a row's mask
depends neither on these weights nor on the rest of the batch. One with batch
normalisation is, if statistics count rows by their weights. `RowContext` is entered
around one forward pass, and answers the calls that draw random numbers or mix rows; all
else runs as it is, inside the transforms of torch.func too.
"""

from __future__ import annotations

import math
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# torch's global generator, which threads share.
global_generator = threading.RLock()
# What SELU tends to for large negative numbers, which alpha dropout puts in.
_LOW = -1.7580993408473766
# With a larger share, a row is alone in its batch.
_ALONE = 1 - 1e-6


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number


# Constants of splitmix64, as numbers with a sign.
_STEP, _FIRST, _SECOND = map(
    _signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def mix(x: Tensor) -> Tensor:
    """Return scrambled whole numbers (int64): one round of splitmix64.

    Products wrap around; shifts are made those of numbers without a sign.
    """
    x = x + _STEP
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _FIRST
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _SECOND
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def uniform(seed: Tensor, step: int, call: int, ids: Tensor, n: int) -> Tensor:
    """Return numbers in [0, 1), n for each row: the same on every device.

    They depend on nothing else, so that neither the other rows of a batch, nor their
    order, nor the number of threads changes them.

    Parameters
    ----------
    seed : int64 Tensor of shape ()
        One for every model, inside `torch.func.vmap`.
    step, call : int
        Step of the training, and which call of the forward pass.
    ids : int64 Tensor of shape (B,)
        Numbers of the rows.
    n : int

    Returns
    -------
    float32 Tensor of shape (B, n)
    """
    of_row = mix(mix(mix(mix(seed) + step) + call) + ids)
    cells = mix(of_row[:, None] + torch.arange(n, device=ids.device))
    return ((cells >> 40) & 0xFFFFFF).float() / (1 << 24)


class UnsuitableError(RuntimeError):
    """What a module does makes its training no function of weights and seeds.

    The message says what it is, and what to do, after the name of the module.
    """


class Behaviour(NamedTuple):
    """What a module does in training that it does not in evaluation mode.

    Attributes
    ----------
    masks : bool
        Draws random numbers that `RowContext` answers.
    mixes : bool
        Takes statistics of the rows of a batch.
    draws : bool
        Draws from torch's global generator, out of reach of `RowContext`.
    differs : bool
        Computes something else than in evaluation mode, without any of these.
    """

    masks: bool = False
    mixes: bool = False
    draws: bool = False
    differs: bool = False


def known_behaviour(module: nn.Module) -> Behaviour:
    """Return what the layers of a module do, as far as their classes tell."""
    masks = mixes = draws = False
    for layer in module.modules():
        if not layer.training:
            continue
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            masks |= layer.p > 0
        elif isinstance(layer, nn.RReLU):
            masks = True
        elif isinstance(layer, nn.MultiheadAttention):
            masks |= layer.dropout > 0
        elif isinstance(layer, nn.RNNBase):
            draws |= layer.dropout > 0
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
            mixes = True
    return Behaviour(masks, mixes, draws)


def statistics_names(module: nn.Module) -> list[str]:
    """Return the names of the running statistics of batch normalisation."""
    return [
        f"{name}.{kind}" if name else kind
        for name, layer in module.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        and layer.running_mean is not None
        for kind in ("running_mean", "running_var")
    ]


def counter_names(module: nn.Module) -> list[str]:
    """Return the names of the batch counters of batch normalisation."""
    return [
        f"{name}.num_batches_tracked" if name else "num_batches_tracked"
        for name, layer in module.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        and layer.num_batches_tracked is not None
    ]


@contextmanager
def drawing_from(seed: Tensor, step: int) -> Iterator[None]:
    """Seed torch's global generators for one forward pass, and restore them."""
    device = [seed.device] if seed.is_cuda else []
    number = int(mix(mix(seed) + step)) & 0x7FFFFFFFFFFFFFFF
    with global_generator, torch.random.fork_rng(device):
        torch.default_generator.manual_seed(number)
        for where in device:
            with torch.cuda.device(where):
                torch.cuda.manual_seed(number)
        yield


@contextmanager
def drawing_again(state: Tensor, device: torch.device) -> Iterator[None]:
    """Let torch's generator draw from a recorded state, and restore it afterwards."""
    state = state.cpu().clone()  # torch crashes on a view
    on_gpu = device.type == "cuda"
    with global_generator, torch.random.fork_rng([device] if on_gpu else []):
        if on_gpu:
            torch.cuda.set_rng_state(state, device)
        else:
            torch.default_generator.set_state(state)
        yield


def generator_state(device: torch.device) -> Tensor:
    """Return a copy of the state of torch's generator for a device."""
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.default_generator.get_state()


def generator_states(device: torch.device) -> Tensor:
    """Return the states of torch's generators for the CPU and a device, as one."""
    states = [torch.default_generator.get_state()]
    if device.type == "cuda":
        states.append(generator_state(device))
    return torch.cat(states)


class WideMasks(TorchFunctionMode):
    """Draws masks for a batch as a recorded loop padded it, while it is entered.

    Parameters
    ----------
    places : int64 Tensor of shape (B, 2)
        Of each row, the width of its batch in that loop and the place where it began
        there: here rows begin at 0, and are as long as the longest.
    """

    def __init__(self, places: Tensor) -> None:
        super().__init__()
        self._places = places

    def __torch_function__(
        self,
        func: Callable[..., Any],
        kinds: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer dropout, and pass other calls on."""
        found = func is F.dropout
        return (self._dropout if found else func)(*args, **(kwargs or {}))

    def _dropout(
        self,
        input: Tensor,
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
    ) -> Tensor:
        if not training or p == 0:
            return input
        widths, begins = self._places.to(input.device).T
        if input.ndim < 2 or len(input) != len(begins):
            raise RuntimeError("dropout of something else than rows of tokens")
        width, device = int(widths[0]), input.device
        shape = len(begins), width, *input.shape[2:]
        masks = F.dropout(torch.ones(shape, dtype=input.dtype, device=device), p)
        # what is read past the end there is no token here
        columns = begins[:, None] + torch.arange(input.shape[1], device=device)
        rows = torch.arange(len(begins), device=device)[:, None]
        return input * masks[rows, columns.clamp(max=width - 1)]


def _never(*_: object) -> bool:
    return False


def _drops(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    **_: object,
) -> bool:
    return dropout_p > 0


class RowContext(TorchFunctionMode):
    """Answers dropout and batch normalisation while it is entered.

    Parameters
    ----------
    shares : Tensor of shape (B,) or None
        Weights of the rows over their sum, which batch statistics count. None: no layer
        may ask for them, as in evaluation mode.
    ids : int64 Tensor of shape (B,) or None
        Numbers of the rows, which their masks depend on.
    seed : int64 Tensor of shape () or None
    step : int
    buffers : mapping of str to Tensor
        Those that the module was given, by name.
    silent : bool
        Draw nothing, and normalise by running statistics, whatever the mode.
    seen : list or None
        Gets an entry for each call that is answered.
    own : bool
        Answer what draws random numbers; else torch draws them, as in another loop.

    Attributes
    ----------
    new : dict of str to Tensor
        Buffers that batch normalisation changed.
    calls : int
        How many calls have drawn random numbers.
    mixes : bool
        Whether a call took statistics of the rows.
    """

    def __init__(
        self,
        shares: Tensor | None = None,
        ids: Tensor | None = None,
        seed: Tensor | None = None,
        step: int = 0,
        buffers: Mapping[str, Tensor] | None = None,
        silent: bool = False,
        seen: list[int] | None = None,
        own: bool = True,
    ) -> None:
        super().__init__()
        self._seen, self._own = seen, own
        self._silent = silent
        self._shares, self._ids, self._seed, self._step = shares, ids, seed, step
        self._names = {id(value): name for name, value in (buffers or {}).items()}
        self.new: dict[str, Tensor] = {}
        self.calls = 0
        self.mixes = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        kinds: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer a call of torch's, or pass it on."""
        kwargs = kwargs or {}
        if not self._own and func is not F.batch_norm:
            if func is F.scaled_dot_product_attention and _drops(*args, **kwargs):
                raise ValueError(
                    "F.scaled_dot_product_attention with dropout draws its masks in "
                    "kernels that have no second derivatives: a recorded loop cannot "
                    "be repeated with it. Train by TorchClassifier(module=...)."
                )
            return func(*args, **kwargs)
        if func in _ANSWERED:
            if self._seen is not None:
                self._seen.append(1)
            return _ANSWERED[func](self, *args, **kwargs)
        if func in _COMPOSED:
            # a mode is off inside of its own answers: the body is run with it on
            with self:
                return _COMPOSED[func](*args, **kwargs)
        return func(*args, **kwargs)

    # --------------------------------------------------------------- random numbers
    def _uniform(self, shape: Sequence[int]) -> Tensor:
        """Return random numbers of a shape whose first axis is the rows, mostly."""
        self.calls += 1
        ids, seed = self._ids, self._seed
        if ids is None or seed is None:
            raise RuntimeError("a layer draws random numbers in evaluation mode")
        if not shape or shape[0] != len(ids):
            # rows are not first, or heads are folded into them: by position
            ids = torch.arange(shape[0] if shape else 1, device=ids.device)
        n = math.prod(shape[1:])
        return uniform(seed, self._step, self.calls, ids, n).reshape(tuple(shape))

    def _kept(self, x: Tensor, p: float, *, channels: bool = False) -> Tensor:
        """Return which numbers of x, or whole channels of it, are kept."""
        if not channels:
            return self._uniform(x.shape) >= p
        kept = self._uniform(x.shape[:2]) >= p
        return kept.reshape(*x.shape[:2], *[1] * (x.ndim - 2))

    def _dropout(
        self,
        input: Tensor,
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
        *,
        channels: bool = False,
    ) -> Tensor:
        if not training or p == 0 or self._silent:
            return input
        if p == 1:
            return input * 0.0
        return input * (self._kept(input, p, channels=channels).to(input) / (1 - p))

    def _channel_dropout(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self._dropout(input, *args, **kwargs, channels=True)

    def _dropout1d(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if input.ndim == 2:  # (channels, length) of one row
            return self._dropout1d(input[None], *args, **kwargs)[0]
        return self._channel_dropout(input, *args, **kwargs)

    def _alpha_dropout(
        self,
        input: Tensor,
        p: float = 0.5,
        training: bool = False,
        inplace: bool = False,
        *,
        channels: bool = False,
    ) -> Tensor:
        if not training or p == 0 or self._silent:
            return input
        if p == 1:
            return input * 0.0
        scale = ((1 - p) * (1 + p * _LOW**2)) ** -0.5
        kept = self._kept(input, p, channels=channels)
        return scale * torch.where(kept, input, _LOW) - scale * _LOW * p

    def _channel_alpha_dropout(self, input: Tensor, *args: Any, **kw: Any) -> Tensor:
        return self._alpha_dropout(input, *args, **kw, channels=True)

    def _rrelu(
        self,
        input: Tensor,
        lower: float = 1 / 8,
        upper: float = 1 / 3,
        training: bool = False,
        inplace: bool = False,
    ) -> Tensor:
        if not training or self._silent:
            return F.leaky_relu(input, (lower + upper) / 2)
        slope = lower + (upper - lower) * self._uniform(input.shape).to(input)
        return torch.where(input >= 0, input, slope * input)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if not dropout_p or self._silent:
            out: Tensor = F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask,
                is_causal=is_causal,
                scale=scale,
                enable_gqa=enable_gqa,
            )
            return out
        if enable_gqa:
            n = query.shape[-3] // key.shape[-3]
            key = key.repeat_interleave(n, dim=-3)
            value = value.repeat_interleave(n, dim=-3)
        logits = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            ones = torch.ones(logits.shape[-2:], dtype=torch.bool, device=query.device)
            logits = logits.masked_fill(~ones.tril(), -torch.inf)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            logits = logits.masked_fill(~attn_mask, -torch.inf)
        elif attn_mask is not None:
            logits = logits + attn_mask
        return self._dropout(logits.softmax(-1), dropout_p) @ value

    # -------------------------------------------------------------- statistics of rows
    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        rows = input.reshape(len(input), input.shape[1], -1)
        if (
            not training or self._silent
        ):  # torch's own has no derivative in the running statistics
            if running_mean is None or running_var is None:
                raise UnsuitableError(
                    "normalises by batch statistics without running ones, which "
                    "predictions need: use track_running_stats=True"
                )
            centred = rows - running_mean[:, None]
            out = centred / (running_var + eps).sqrt()[:, None]
        else:
            centred, var = self._centred(rows)
            out = centred / (var + eps).sqrt()[:, None]
            if running_mean is not None and running_var is not None:
                mean = (rows - centred)[0, :, 0]
                self._move(running_mean, running_var, mean, var, momentum, rows)
        if weight is not None:
            out = out * weight[:, None]
        if bias is not None:
            out = out + bias[:, None]
        return out.reshape(input.shape)

    def _centred(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows (B, C, cells) without their mean, and their variance (C,)."""
        self.mixes = True
        if self._shares is None or len(self._shares) != len(rows):
            raise UnsuitableError(
                "normalises batches that are not the rows of X, such as tokens of all "
                "rows together: let the first axis be the rows, as in (n, channels, "
                "length)"
            )
        mean = torch.einsum("b,bc->c", self._shares, rows.mean(-1))
        centred = rows - mean[:, None]
        var = torch.einsum("b,bc->c", self._shares, centred.square().mean(-1))
        return centred, var

    def _move(
        self,
        running_mean: Tensor,
        running_var: Tensor,
        mean: Tensor,
        var: Tensor,
        momentum: float,
        rows: Tensor,
    ) -> None:
        """Note the new running statistics; those of a batch without weight stay."""
        shares = self._shares
        if shares is None:
            return
        # n / (n - 1) for weights of 0 and 1, and blind to the scale of weights
        alone = shares.square().sum() / rows.shape[2]
        some = shares.sum() > 0
        several = some & (alone < _ALONE)
        unbiased = var / (1 - torch.where(several, alone, 0.0))
        for old, now, known in (
            (running_mean, mean, some),
            (running_var, unbiased, several),
        ):
            name = self._names.get(id(old))
            if name is None:
                raise UnsuitableError(
                    "keeps running statistics of its own: leave them to "
                    "nn.BatchNorm1d, nn.BatchNorm2d or nn.BatchNorm3d"
                )
            old = self.new.get(name, old)  # a layer may be called twice
            moved = (1 - momentum) * old + momentum * now
            self.new[name] = torch.where(known, moved, old)


_ANSWERED: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.dropout: RowContext._dropout,
    F.dropout1d: RowContext._dropout1d,
    F.dropout2d: RowContext._channel_dropout,
    F.dropout3d: RowContext._channel_dropout,
    F.alpha_dropout: RowContext._alpha_dropout,
    F.feature_alpha_dropout: RowContext._channel_alpha_dropout,
    F.rrelu: RowContext._rrelu,
    F.scaled_dot_product_attention: RowContext._attention,
    F.batch_norm: RowContext._batch_norm,
}


def _bare(function: Any) -> Callable[..., Any]:
    """Return a function of torch's that does not ask for modes before its body."""
    bare = types.FunctionType(
        function.__code__,
        {**function.__globals__, "has_torch_function": _never},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    bare.__kwdefaults__ = function.__kwdefaults__
    return bare


# Functions of torch's whose body holds calls to answer.
_COMPOSED: dict[Callable[..., Any], Callable[..., Any]] = {
    F.multi_head_attention_forward: _bare(F.multi_head_attention_forward),
}
