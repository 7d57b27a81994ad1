"""The blocks of a transformer, and what enters one of them, computed once."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.overrides import TorchFunctionMode

from skattrib._validation import memory_cap
from skattrib.exceptions import UnsupportedModelError

# Share of the memory cap that hidden states may take.
_SHARE = 4
# Tokens that a model is tried on; more if it has a window of up to so many.
_N_TRIED, _WIDEST = 5, 512


def private_copy(model: nn.Module, trained: Iterable[str] = ()) -> nn.Module:
    """Return a copy whose weights share their memory with those of a model.

    They are parameters of its own, none of which is trained, so that nothing that is
    done to the copy reaches the model. Weights in half precision are copied to float32,
    in which derivatives are more than rounding.

    Parameters
    ----------
    model : nn.Module
    trained : set of str
        Names of parameters that get memory of their own, and are trained.
    """
    new: dict[int, Any] = {}
    trained = set(trained)
    for name, weight in model.named_parameters():
        value = weight.detach()
        if value.dtype in (torch.float16, torch.bfloat16):
            value = value.float()
        own = name in trained
        new[id(weight)] = nn.Parameter(value.clone() if own else value, own)
    new |= {id(buffer): buffer for buffer in model.buffers()}
    copied = copy.deepcopy(model, new)
    _without_fast_kernels(copied)
    return copied.eval()


def _without_fast_kernels(model: nn.Module) -> None:
    """Let attention be computed by operations that have second derivatives."""
    for layer in model.modules():
        config: Any = getattr(layer, "config", None)
        if hasattr(config, "_attn_implementation"):
            config._attn_implementation = "eager"
        if getattr(layer, "gradient_checkpointing", False):
            vars(layer)["gradient_checkpointing"] = False


def body_of(model: nn.Module) -> nn.Module:
    """Return a causal model without its head."""
    name = getattr(model, "base_model_prefix", "")
    body = getattr(model, name, None) if name else None
    if not isinstance(body, nn.Module):
        raise ValueError(
            f"{type(model).__name__} does not say which part of it is below its head "
            "(base_model_prefix): it cannot be trained here. Wrap it in a module of "
            "your own, and train that by TorchRegressor."
        )
    return body


def find_blocks(body: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the name and the list of a transformer's blocks."""
    config = getattr(body, "config", None)
    n_blocks = getattr(config, "num_hidden_layers", None)
    for name, layer in body.named_modules():
        if isinstance(layer, nn.ModuleList) and len(layer) == n_blocks:
            return name, layer
    raise ValueError(
        f"{type(body).__name__} has no list of its {n_blocks} blocks: it cannot be "
        "trained here."
    )


class _Reached(Exception):
    """Ends a forward pass, with what has been computed."""


class Below:
    """Hidden states that enter a block, of which nothing below is trained.

    Each text is run through the blocks below once; what it gave is kept in memory, up
    to a part of scikit-learn's ``working_memory``, and computed again beyond.

    Parameters
    ----------
    body : nn.Module
        Whole; not changed.
    first : int
        Number of the block.
    """

    def __init__(self, body: nn.Module, first: int) -> None:
        self._body = private_copy(body)
        block = find_blocks(self._body)[1][first]
        block.register_forward_pre_hook(_stop, with_kwargs=True)
        self._kept: dict[tuple[int, ...], Tensor] = {}
        self._n_bytes, self._lock = 0, threading.Lock()

    def __call__(self, ids: Tensor, lengths: list[int]) -> Tensor:
        """Return hidden states (n, T, D) of tokens (n, T), zero behind the lengths."""
        keys = [
            tuple(row[:length])
            for row, length in zip(ids.tolist(), lengths, strict=True)
        ]
        found = {key: self._kept[key] for key in keys if key in self._kept}
        new = [i for i, key in enumerate(keys) if key not in found]
        if new:
            for i, hidden in zip(new, self._computed(ids[new]), strict=True):
                found[keys[i]] = hidden[: lengths[i]].clone()
            self._keep({keys[i]: found[keys[i]] for i in new})
        padded = pad_sequence([found[key] for key in keys], batch_first=True)
        return nn.functional.pad(padded, (0, 0, 0, ids.shape[1] - padded.shape[1]))

    def _computed(self, ids: Tensor) -> Tensor:
        with torch.no_grad():
            try:
                run_body(self._body, ids)
            except _Reached as reached:
                found: Tensor = reached.args[0]
                return found
        raise RuntimeError("the block was not reached")

    def _keep(self, new: dict[tuple[int, ...], Tensor]) -> None:
        with self._lock:
            for key, hidden in new.items():
                size = hidden.numel() * hidden.element_size()
                if self._n_bytes + size <= memory_cap() / _SHARE:
                    self._kept[key] = hidden
                    self._n_bytes += size

    def __deepcopy__(self, memo: dict[int, object]) -> Below:
        return self  # what it computes is fixed

    def __getstate__(self) -> dict[str, Any]:
        return {"_body": self._body}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._kept, self._n_bytes, self._lock = {}, 0, threading.Lock()


def _stop(block: nn.Module, args: Any, kwargs: Any) -> None:
    hidden = args[0] if args else kwargs["hidden_states"]
    raise _Reached(hidden)


def run_body(body: nn.Module, ids: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Return the last hidden states (n, T, D) of tokens (n, T).

    ``hidden`` (n, T, D) is what the blocks get in place of the tokens' embeddings.
    """
    like = next(p for p in body.parameters() if p.is_floating_point())
    given = {"input_ids": ids} if hidden is None else {"inputs_embeds": hidden}
    # padding is to the right, where a causal model does not look
    mask = torch.ones(ids.shape, dtype=torch.int64, device=ids.device)
    with in_its_precision(like.dtype):
        out: Tensor = body(**given, attention_mask=mask, use_cache=False)[0]
    return out


def _tried(model: nn.Module) -> Tensor:
    """Return tokens (2, T) to try a model on, longer than what it looks back at."""
    config: Any = model.config
    window = getattr(config, "sliding_window", None) or 0
    context = getattr(config, "max_position_embeddings", None) or _N_TRIED
    n_tokens = window + 3 if _N_TRIED <= window + 3 <= _WIDEST else _N_TRIED
    n_tokens = max(2, min(n_tokens, context // 2))
    ids = torch.arange(2 * n_tokens).view(2, -1) * 7 + 1
    return (ids % config.vocab_size).to(next(model.parameters()).device)


def check_computed(model: nn.Module) -> None:
    """Raise unless the logits are the head's of what `run_body` returns.

    Raises
    ------
    UnsupportedModelError
        If there is something between the two, or the model looks elsewhere.
    """
    tried = private_copy(model)
    ids, find = _tried(tried), cast(Any, tried.get_output_embeddings)
    name, same = type(model).__name__, False
    reason = "it computes logits otherwise than by its head on its last hidden states"
    try:
        with torch.no_grad():
            out = tried(input_ids=ids, use_cache=False)
            wanted = out[0] if isinstance(out, tuple) else out.logits
            found = find()(run_body(body_of(tried), ids))
        near = 1e-3 * float(wanted.std())
        same = torch.allclose(found, wanted, rtol=1e-3, atol=near)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        reason = f"it could not be run on a few tokens: {error}"
    if not same:
        raise UnsupportedModelError(
            f"model {name} cannot be trained here: {reason}. Llama, Qwen, Mistral, "
            "GPT-2 and the like can; RISEValuator takes this one with trainable=None."
        )


def in_its_precision(dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Return a context in which a model of float64 computes nothing in float32."""
    return _KeepsDouble() if dtype == torch.float64 else nullcontext()


def _is_whole(values: Tensor) -> bool:
    """Whether numbers are integers."""
    return not (values.is_floating_point() or values.is_complex())


class _KeepsDouble(TorchFunctionMode):
    """Leaves numbers in double precision, where models compute parts in single."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch, or leave its conversion to float32 out."""
        kwargs = kwargs or {}
        first = args[0] if args else None
        double = isinstance(first, Tensor) and first.dtype == torch.float64
        if double and (
            func is Tensor.float
            or (func is Tensor.to and torch.float32 in (*args, *kwargs.values()))
        ):
            return first
        if func is Tensor.float and isinstance(first, Tensor) and _is_whole(first):
            return first.double()  # positions, times frequencies that stay double
        if double and kwargs.get("dtype") == torch.float32:
            kwargs = {**kwargs, "dtype": torch.float64}
        return func(*args, **kwargs)


def above(body: nn.Module, first: int) -> nn.Module | None:
    """Return a body without its first blocks; None if it does more than its blocks.

    ``body`` is changed: its blocks are taken away.
    """
    below = Below(body, first)
    config: Any = body.config
    ids = _tried(body)
    with torch.no_grad():
        wanted = run_body(body, ids)
        name, blocks = find_blocks(body)
        body.set_submodule(name, nn.ModuleList(blocks[first:]))
        if isinstance(getattr(config, "layer_types", None), list):
            config.layer_types = config.layer_types[first:]
        _without_positions(body)
        hidden = below(ids, [ids.shape[1]] * len(ids)).to(wanted.dtype)
        try:
            found = run_body(body, ids, hidden)
        except (RuntimeError, ValueError, TypeError, IndexError):
            return None
    same = torch.allclose(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.std()))
    return body if same else None


def _without_positions(body: nn.Module) -> None:
    """Take embeddings of positions away, which hidden states have had added."""
    words = cast(Any, body.get_input_embeddings)()
    for name, layer in body.named_children():
        if isinstance(layer, nn.Embedding) and layer is not words:
            setattr(body, name, _Nothing(layer.embedding_dim))


class _Nothing(nn.Module):
    """An embedding of zeros."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, ids: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return zeros (..., D)."""
        return torch.zeros(*ids.shape, self.size, device=ids.device)
