"""Signatures of rows, in memory or on disk: append, go on after a kill, read.

On disk an index is a folder: ``header.json`` says what it is of and how many rows are
in it, ``tables.safetensors`` holds hash tables, ``signatures.bin`` and ``norms.bin``
the rows. Rows are appended first and counted afterwards, by a header that is written
beside the old one and renamed: what a kill leaves behind the counted rows is never
read, and the next writer cuts it off.

A folder from strangers can do no more than be refused: nothing in it is run, followed
or larger in memory than on disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from skattrib.engine._trajectory import write_tensors
from skattrib.exceptions import IndexMismatchError

VERSION = 1
_HEADER, _TABLES = "header.json", "tables.safetensors"
_SIGNATURES, _NORMS, _LOCK = "signatures.bin", "norms.bin", "lock"
#: What a header must hold, and of what type.
_FIELDS = {
    "version": int,
    "dtype": str,
    "widths": dict,
    "settings": dict,
    "source": str,
    "n_rows": int,
    "complete": bool,
    "id": str,
}
_DTYPES = ("float16", "float32", "float64")
# Bytes of a header, and numbers of a row.
_LARGEST_HEADER, _WIDEST = 2**24, 2**31

Tables = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Header:
    """What an index is of.

    Attributes
    ----------
    widths : dict of str to int
        Numbers of each channel, in the order of the columns.
    settings : dict
        Of JSON values; two indexes belong together only if theirs are equal.
    source : str
        Digest of the rows that it is built from.
    dtype : {"float16", "float32", "float64"}
        Of the signatures.
    n_rows : int
        Rows that count.
    complete : bool
        Whether these are all rows of the source.
    id : str
        Drawn when the index is made: tells it from another one at the same path.
    """

    widths: dict[str, int]
    settings: dict[str, Any]
    source: str
    dtype: str = "float16"
    n_rows: int = 0
    complete: bool = False
    id: str = ""

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return sum(self.widths.values())

    def slices(self) -> dict[str, slice]:
        """Return the columns of each channel."""
        ends = np.cumsum(list(self.widths.values())).tolist()
        starts = [0, *ends[:-1]]
        return {
            name: slice(a, b)
            for name, a, b in zip(self.widths, starts, ends, strict=True)
        }


class SignatureIndex:
    """Unit vectors of every channel of every row, and the norms they had.

    Made by `create` or `open`.
    """

    def __init__(
        self,
        header: Header,
        tables: Tables,
        signatures: NDArray[Any],
        norms: NDArray[np.float64],
        path: Path | None,
    ) -> None:
        self.header, self.tables, self.path = header, tables, path
        self._signatures, self._norms = signatures, norms

    def __len__(self) -> int:
        return self.header.n_rows

    def __reduce__(self) -> tuple[Any, ...]:
        if self.path is not None:  # a pickle holds where it is, not what it holds
            return SignatureIndex._reopen, (self.path, self.header)
        return SignatureIndex, (
            self.header,
            self.tables,
            self._signatures,
            self._norms,
            None,
        )

    @classmethod
    def _reopen(cls, path: Path, header: Header) -> SignatureIndex:
        index = cls.open(path)
        if index.header.id != header.id or len(index) < header.n_rows:
            raise IndexMismatchError(
                f"index {path} is no longer the one that was pickled: fit again."
            )
        return index.first(header.n_rows)

    def first(self, n_rows: int) -> SignatureIndex:
        """Return a view of the first rows, to which nothing can be appended."""
        header = replace(self.header, n_rows=n_rows)
        rows = slice(n_rows)
        return SignatureIndex(
            header, self.tables, self._signatures[rows], self._norms[rows], self.path
        )

    @property
    def norms(self) -> NDArray[np.float64]:
        """Norms (n_rows, n_channels), in the order of the channels."""
        return self._norms

    def signatures(self, rows: slice) -> NDArray[Any]:
        """Return unit vectors of some rows, (m, width), as they are stored."""
        return self._signatures[rows]

    def channels(self, rows: slice) -> dict[str, NDArray[Any]]:
        """Return the same for every channel."""
        block = self.signatures(rows)
        return {name: block[:, part] for name, part in self.header.slices().items()}

    # ----------------------------------------------------------------- making
    @classmethod
    def create(
        cls, path: str | os.PathLike[str] | None, header: Header, tables: Tables
    ) -> SignatureIndex:
        """Make an empty index; None keeps it in memory.

        Raises
        ------
        FileExistsError
            If something else is at ``path``.
        OSError
            If the disk is full or read-only; nothing is left then.
        """
        if path is None:
            signatures = np.empty((0, header.width), dtype=header.dtype)
            norms = np.empty((0, len(header.widths)), dtype=np.float64)
            return cls(header, tables, signatures, norms, None)
        header = replace(header, id=uuid.uuid4().hex)
        path = Path(path)
        # complete before it is seen: a kill leaves a folder of another name
        beside = Path(
            tempfile.mkdtemp(prefix=f"{path.name}.", suffix=".part", dir=path.parent)
        )
        try:
            flat = {}
            for name, (indices, signs) in tables.items():
                flat[f"{name}/indices"], flat[f"{name}/signs"] = indices, signs
            write_tensors(beside / _TABLES, flat)
            for name in (_SIGNATURES, _NORMS, _LOCK):
                (beside / name).touch()
            _write_header(beside, header)
            if path.exists():
                raise FileExistsError(f"index: {path} is there already.")
            os.rename(beside, path)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return cls.open(path)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> SignatureIndex:
        """Read an index; what others append later is not seen.

        Raises
        ------
        IndexMismatchError
            If it is no index, damaged, or of another version.
        """
        path = Path(path)
        header = _read_header(path)
        for name in (_TABLES, _SIGNATURES, _NORMS, _LOCK):
            _check_plain(path, name)
        try:
            flat = load_file(path / _TABLES)
            names = {key.partition("/")[0] for key in flat}
            tables = {n: (flat[f"{n}/indices"], flat[f"{n}/signs"]) for n in names}
        except (SafetensorError, OSError, KeyError) as error:
            raise _damaged(path, f"{_TABLES}: {error}") from error
        return cls(header, tables, *_rows(path, header), path)

    def append(
        self,
        channels: Mapping[str, Tensor],
        *,
        complete: bool = False,
        resume: bool = False,
    ) -> SignatureIndex:
        """Add rows (m, width) of every channel; return the longer index.

        With ``resume``, rows that were added since this index was read count as these
        if they are equal: those of a process that was killed, maybe.

        Raises
        ------
        BlockingIOError
            If another process is appending.
        OSError
            If the disk is full or read-only; the index stays as it was.
        """
        values = [channels[name].detach().cpu() for name in self.header.widths]
        pairs = [unit(v) for v in values]
        block = torch.cat([u for _, u in pairs], dim=1).numpy()
        block = block.astype(self.header.dtype)
        sizes = torch.stack([n for n, _ in pairs], dim=1).numpy().astype(np.float64)
        n_rows = len(self) + len(block)
        header = replace(self.header, n_rows=n_rows, complete=complete)
        if self.path is None:
            return SignatureIndex(
                header,
                self.tables,
                np.concatenate([self._signatures, block]),
                np.concatenate([self._norms, sizes]),
                None,
            )
        if resume and self._has(self._there(), block, sizes):
            whole = _rows(self.path, header)  # nothing to write, maybe nothing may be
            return SignatureIndex(header, self.tables, *whole, self.path)
        with _locked(self.path):
            there = self._there()
            known = there.n_rows - len(self)
            if known and not (resume and self._continued(there, block, sizes)):
                raise IndexMismatchError(
                    f"index {self.path} has {there.n_rows} rows by now, and here it "
                    f"has {len(self)}: rows can be added only where the last ones were "
                    "added, or by a pickle made after that. Else fit to another path."
                )
            if not self._has(there, block, sizes):
                self._write(there.n_rows, block[known:], sizes[known:], header)
        return SignatureIndex(header, self.tables, *_rows(self.path, header), self.path)

    def _write(
        self,
        n_rows: int,
        block: NDArray[Any],
        sizes: NDArray[np.float64],
        header: Header,
    ) -> None:
        """Write rows behind those that count, then the header that counts them."""
        path = cast(Path, self.path)
        try:
            _append(path / _SIGNATURES, n_rows, block)
            _append(path / _NORMS, n_rows, sizes)
            _write_header(path, header)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror}; the index has {n_rows} rows, as before",
                str(path),
            ) from error

    def _there(self) -> Header:
        """Return the header that is on disk now."""
        path = cast(Path, self.path)
        there = _read_header(path)
        if there.id != self.header.id:
            raise IndexMismatchError(
                f"index {path} is another one by now: it was deleted and made again. "
                "Fit again."
            )
        return there

    def _has(
        self, there: Header, block: NDArray[Any], sizes: NDArray[np.float64]
    ) -> bool:
        """Say whether all of these rows have been added on disk."""
        enough = len(block) > 0 and there.n_rows >= len(self) + len(block)
        return enough and self._continued(there, block, sizes)

    def _continued(
        self, there: Header, block: NDArray[Any], sizes: NDArray[np.float64]
    ) -> bool:
        """Say whether what was added on disk begins, or goes on, as these rows do."""
        if there.n_rows < len(self):
            return False
        rows = slice(len(self), min(there.n_rows, len(self) + len(block)))
        n_rows = rows.stop - rows.start
        found, norms = (v[rows] for v in _rows(cast(Path, self.path), there))
        return np.array_equal(found, block[:n_rows]) and np.array_equal(
            norms, sizes[:n_rows]
        )


def unit(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the norms (m,) of vectors, and the vectors at norm 1 (or 0)."""
    # squares of small numbers may vanish
    scale = values.abs().amax(dim=1, keepdim=True)
    scaled = values / torch.where(scale > 0, scale, 1.0)
    norms = scaled.norm(dim=1, keepdim=True)
    return (scale * norms)[:, 0], scaled / torch.where(norms > 0, norms, 1.0)


# ---------------------------------------------------------------------- files
def _damaged(path: Path, what: str) -> IndexMismatchError:
    return IndexMismatchError(
        f"index {path} is damaged: {what}. Build it again at another path, or delete "
        "it first."
    )


def _check_plain(path: Path, name: str) -> int:
    """Return the bytes of a file; raise if it is a link, a pipe or the like.

    Through a link what is appended would go into some other file.
    """
    try:
        found = os.lstat(path / name)
    except (FileNotFoundError, NotADirectoryError):
        if name == _HEADER:
            raise
        raise _damaged(path, f"{name} is missing") from None
    if not stat.S_ISREG(found.st_mode):
        raise _damaged(path, f"{name} is no plain file")
    return found.st_size


def _read_header(path: Path) -> Header:
    try:
        size = _check_plain(path, _HEADER)
        if size > _LARGEST_HEADER:
            raise _damaged(path, f"{_HEADER} has {size} bytes")
        found = json.loads((path / _HEADER).read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise IndexMismatchError(
            f"{path} is no index: {_HEADER} is missing. Name another path."
        ) from error
    except IndexMismatchError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, f"{_HEADER}: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("version"), int):
        raise _damaged(path, f"{_HEADER} names no version")
    if found["version"] != VERSION:
        raise IndexMismatchError(
            f"index {path} has version {found['version']}, this skattrib reads "
            f"version {VERSION}: build it again."
        )
    wrong = [k for k, kind in _FIELDS.items() if type(found.get(k)) is not kind]
    if wrong or set(found) != set(_FIELDS):
        raise _damaged(path, f"{_HEADER} has wrong fields {wrong or sorted(found)}")
    widths = found["widths"]
    if (
        found["dtype"] not in _DTYPES
        or found["n_rows"] < 0
        or not widths
        or not all(type(w) is int and w > 0 for w in widths.values())
        or sum(widths.values()) >= _WIDEST
    ):
        raise _damaged(path, f"{_HEADER} has impossible sizes")
    del found["version"]
    return Header(**found)


def _write_header(path: Path, header: Header) -> None:
    for left in path.glob(f"{_HEADER}.*.part"):  # by a kill: there is one writer
        left.unlink(missing_ok=True)
    beside = path / f"{_HEADER}.{os.getpid()}.part"
    try:
        with open(beside, "x") as file:
            json.dump({"version": VERSION, **vars(header)}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path / _HEADER)
    finally:
        beside.unlink(missing_ok=True)


def _rows(path: Path, header: Header) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Map the signatures and the norms of the rows that count."""
    signatures = _mapped(path, _SIGNATURES, header.dtype, header, header.width)
    return signatures, _mapped(path, _NORMS, "float64", header, len(header.widths))


def _mapped(
    path: Path, name: str, dtype: str, header: Header, width: int
) -> NDArray[Any]:
    """Map the rows that count; raise if there are fewer bytes than that."""
    n_bytes = header.n_rows * width * np.dtype(dtype).itemsize
    try:
        size = (path / name).stat().st_size
    except OSError as error:
        raise _damaged(path, f"{name}: {error}") from error
    if size < n_bytes:
        raise _damaged(path, f"{name} has {size} of {n_bytes} bytes")
    shape = (header.n_rows, width)
    if not header.n_rows:  # nothing can be mapped
        return np.empty(shape, dtype=dtype)
    return np.memmap(path / name, dtype=dtype, mode="r", shape=shape)


def _append(path: Path, n_rows: int, block: NDArray[Any]) -> None:
    """Write rows behind the ``n_rows`` that count; what a kill left there goes."""
    _check_plain(path.parent, path.name)
    start = n_rows * block.shape[1] * block.itemsize
    with open(path, "rb+") as file:
        file.truncate(start)
        file.seek(start)
        file.write(block.tobytes())
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other writers out; the lock goes with its process."""
    _check_plain(path, _LOCK)
    with open(path / _LOCK, "rb+") as file:
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BlockingIOError(
                f"index {path} is being written by another process: wait for it."
            ) from error
        yield
