"""What enters a block of a transformer, computed once for each text and kept."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from functools import cached_property
from typing import IO, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from skattrib._validation import memory_cap
from skattrib.models.language._blocks import (
    find_blocks,
    private_copy,
    run_body,
    tried_tokens,
)

# Shares of the memory cap, and of what is free on the disk, that they may take.
_OF_MEMORY, _OF_DISK = 4, 4

_Key = tuple[int, ...]


class _Reached(Exception):
    """Ends a forward pass, with what has been computed."""


class Below:
    """Hidden states that enter a block, of which nothing below is trained.

    Each text is run through the blocks below once. What it gave is kept: in memory up
    to a part of scikit-learn's ``working_memory``, beyond that in a temporary file that
    is gone with the process, up to a part of the disk. Beyond both it is computed
    again.

    Parameters
    ----------
    body : nn.Module
        Whole; not changed.
    first : int
        Number of the block.
    """

    def __init__(self, body: nn.Module, first: int) -> None:
        #: A copy, whose weights share their memory.
        self.body = private_copy(body)
        block = find_blocks(self.body)[1][first]
        block.register_forward_pre_hook(_stop, with_kwargs=True)
        self._begin()

    def _begin(self) -> None:
        self._kept: dict[_Key, Tensor] = {}
        self._on_disk = _OnDisk()
        self._n_bytes, self._lock = 0, threading.Lock()

    def __call__(self, ids: Tensor, lengths: list[int]) -> Tensor:
        """Return hidden states (n, T, D) of tokens (n, T), zero behind the lengths."""
        keys = [
            tuple(row[:length])
            for row, length in zip(ids.tolist(), lengths, strict=True)
        ]
        found = {key: self._kept[key] for key in keys if key in self._kept}
        with self._lock:
            self._on_disk = self._on_disk.of_this_process()
            for key in {*keys} - {*found}:
                if key in self._on_disk:
                    found[key] = self._on_disk.read(key).to(ids.device)
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
                run_body(self.body, ids)
            except _Reached as reached:
                found: Tensor = reached.args[0]
                return found
        raise RuntimeError("the block was not reached")

    def _keep(self, new: dict[_Key, Tensor]) -> None:
        with self._lock:
            for key, hidden in new.items():
                size = hidden.numel() * hidden.element_size()
                if self._n_bytes + size <= memory_cap() / _OF_MEMORY:
                    self._kept[key] = hidden
                    self._n_bytes += size
                elif key not in self._on_disk:
                    self._on_disk.write(key, hidden, size)

    def __deepcopy__(self, memo: dict[int, object]) -> Below:
        return self  # what it computes is fixed

    def __getstate__(self) -> dict[str, Any]:
        return {"body": self.body}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()


def _stop(block: nn.Module, args: Any, kwargs: Any) -> None:
    hidden = args[0] if args else kwargs["hidden_states"]
    raise _Reached(hidden)


class _OnDisk:
    """Matrices in a temporary file without a name, which is opened when it is needed.

    Its folder is that of `tempfile` (``TMPDIR``).
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._places: dict[_Key, tuple[int, int, torch.Size, torch.dtype]] = {}
        self._end = 0

    @cached_property
    def _file(self) -> IO[bytes]:
        return tempfile.TemporaryFile(prefix="skattrib-")

    @cached_property
    def _cap(self) -> float:
        return shutil.disk_usage(tempfile.gettempdir()).free / _OF_DISK

    def of_this_process(self) -> _OnDisk:
        """Return this, or a new one in a fork: it would share the file's position."""
        return self if os.getpid() == self._process else _OnDisk()

    def __contains__(self, key: _Key) -> bool:
        return key in self._places

    def write(self, key: _Key, matrix: Tensor, n_bytes: int) -> None:
        """Write a matrix, if there is room."""
        if self._end + n_bytes > self._cap:
            return
        try:
            self._file.seek(self._end)
            self._file.write(matrix.cpu().numpy().tobytes())
            self._file.flush()
        except OSError:  # full after all: what is there can be read
            self._cap = 0.0
            return
        self._places[key] = self._end, n_bytes, matrix.shape, matrix.dtype
        self._end += n_bytes

    def read(self, key: _Key) -> Tensor:
        """Return a matrix, on the CPU."""
        begin, n_bytes, shape, dtype = self._places[key]
        self._file.seek(begin)
        values = bytearray(self._file.read(n_bytes))
        return torch.frombuffer(values, dtype=dtype).reshape(shape)


def above(body: nn.Module, first: int) -> nn.Module | None:
    """Return a body without its first blocks; None if it does more than its blocks.

    ``body`` is changed: its blocks are taken away.
    """
    below = Below(body, first)
    config: Any = body.config
    ids = tried_tokens(body)
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
