"""The files of an index on disk: what is in them, and nothing taken on trust.

``header.json`` says what the index is of and how many rows are in it,
``tables.safetensors`` holds hash tables, ``signatures.bin`` and ``norms.bin`` the rows,
``checksums.bin`` a number for each that tells of a flipped bit in it. Whatever knows a
file's name or layout belongs here. A folder of unknown origin can do no more than be
refused: nothing in it is run, followed or larger in memory than on disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skattrib.exceptions import IndexMismatchError

VERSION = 1
HEADER, TABLES = "header.json", "tables.safetensors"
SIGNATURES, NORMS, LOCK = "signatures.bin", "norms.bin", "lock"
#: Missing where an older version made the index: then rows are not checked.
CHECKSUMS = "checksums.bin"
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


def damaged(path: Path, what: str) -> IndexMismatchError:
    return IndexMismatchError(
        f"index {path} is damaged: {what}. Build it again at another path, or delete "
        "it first."
    )


def check_plain(path: Path, name: str) -> int:
    """Return the bytes of a file; raise if it is a link, a pipe or the like.

    Through a link what is appended would go into some other file.
    """
    try:
        found = os.lstat(path / name)
    except (FileNotFoundError, NotADirectoryError):
        if name == HEADER:
            raise
        raise damaged(path, f"{name} is missing") from None
    if not stat.S_ISREG(found.st_mode):
        raise damaged(path, f"{name} is no plain file")
    return found.st_size


def read_header(path: Path) -> Header:
    try:
        size = check_plain(path, HEADER)
        if size > _LARGEST_HEADER:
            raise damaged(path, f"{HEADER} has {size} bytes")
        found = json.loads((path / HEADER).read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise IndexMismatchError(
            f"{path} is no index: {HEADER} is missing. Name another path."
        ) from error
    except IndexMismatchError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, f"{HEADER}: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("version"), int):
        raise damaged(path, f"{HEADER} names no version")
    if found["version"] != VERSION:
        raise IndexMismatchError(
            f"index {path} has version {found['version']}, this skattrib reads "
            f"version {VERSION}: build it again."
        )
    wrong = [k for k, kind in _FIELDS.items() if type(found.get(k)) is not kind]
    if wrong or set(found) != set(_FIELDS):
        raise damaged(path, f"{HEADER} has wrong fields {wrong or sorted(found)}")
    widths = found["widths"]
    if (
        found["dtype"] not in _DTYPES
        or found["n_rows"] < 0
        or not widths
        or not all(type(w) is int and w > 0 for w in widths.values())
        or sum(widths.values()) >= _WIDEST
    ):
        raise damaged(path, f"{HEADER} has impossible sizes")
    del found["version"]
    return Header(**found)


def write_header(path: Path, header: Header) -> None:
    for left in path.glob(f"{HEADER}.*.part"):  # by a kill: there is one writer
        left.unlink(missing_ok=True)
    beside = path / f"{HEADER}.{os.getpid()}.part"
    try:
        with open(beside, "x") as file:
            json.dump({"version": VERSION, **vars(header)}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path / HEADER)
    finally:
        beside.unlink(missing_ok=True)


class Rows(NamedTuple):
    """What is kept of n rows.

    Attributes
    ----------
    signatures : ndarray of shape (n, width)
    norms : ndarray of shape (n, n_channels)
    checksums : ndarray of shape (n, 1) or None
    """

    signatures: NDArray[Any]
    norms: NDArray[np.float64]
    checksums: NDArray[np.uint64] | None

    def part(self, rows: slice | NDArray[np.intp]) -> Rows:
        """Return some of the rows."""
        checks = None if self.checksums is None else self.checksums[rows]
        return Rows(self.signatures[rows], self.norms[rows], checks)

    def differing(self) -> NDArray[np.intp]:
        """Return the rows that are not what their checksums are of."""
        if self.checksums is None:
            return np.empty(0, dtype=np.intp)
        now = checksums(self.signatures, self.norms)
        return np.flatnonzero(now != self.checksums)


def checksums(
    signatures: NDArray[Any], norms: NDArray[np.float64]
) -> NDArray[np.uint64]:
    """Return a number (n, 1) for each row that every single bit of it changes.

    The sum of its words, and 1: a hole in the files is no row of zeros. As fast as
    they are read, which a search does anyway.
    """
    total = np.ones((len(signatures), 1), dtype=np.uint64)
    for array in (signatures, norms):
        n_bytes = array.shape[1] * array.itemsize
        word = next(size for size in (8, 4, 2) if not n_bytes % size)
        words = np.ascontiguousarray(array).view(f"u{word}")
        total += words.sum(axis=1, dtype=np.uint64, keepdims=True)
    return total


def map_rows(path: Path, header: Header) -> Rows:
    """Map what is kept of the rows that count."""
    signatures = _mapped(path, SIGNATURES, header.dtype, header, header.width)
    norms = _mapped(path, NORMS, "float64", header, len(header.widths))
    if not os.path.lexists(path / CHECKSUMS):
        return Rows(signatures, norms, None)
    check_plain(path, CHECKSUMS)
    return Rows(signatures, norms, _mapped(path, CHECKSUMS, "uint64", header, 1))


def _mapped(
    path: Path, name: str, dtype: str, header: Header, width: int
) -> NDArray[Any]:
    """Map the rows that count; raise if there are fewer bytes than that."""
    n_bytes = header.n_rows * width * np.dtype(dtype).itemsize
    try:
        size = (path / name).stat().st_size
    except OSError as error:
        raise damaged(path, f"{name}: {error}") from error
    if size < n_bytes:
        raise damaged(path, f"{name} has {size} of {n_bytes} bytes")
    shape = (header.n_rows, width)
    if not header.n_rows:  # nothing can be mapped
        return np.empty(shape, dtype=dtype)
    # a plain array: slices of a memmap cost ten times as much
    return np.asarray(np.memmap(path / name, dtype=dtype, mode="r", shape=shape))


def append_rows(path: Path, n_rows: int, block: NDArray[Any]) -> None:
    """Write rows behind the ``n_rows`` that count; what a kill left there goes."""
    check_plain(path.parent, path.name)
    start = n_rows * block.shape[1] * block.itemsize
    with open(path, "rb+") as file:
        file.truncate(start)
        file.seek(start)
        file.write(block.tobytes())
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other writers out; the lock goes with its process."""
    check_plain(path, LOCK)
    with open(path / LOCK, "rb+") as file:
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
