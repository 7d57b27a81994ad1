"""The files of an index on disk: their layout, and checks of all that is read.

``header.json`` describes the index and counts its rows, ``tables.safetensors`` holds
hash tables, ``signatures.bin`` and ``norms.bin`` the rows, ``checksums.bin`` a checksum
of each row that detects a flipped bit. All that depends on the name or layout of a file
belongs here. A folder from an untrusted source can at worst be refused: nothing in it
is executed, no link is followed, and nothing is larger in memory than on disk.
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
#: Missing if an older version made the index: then rows are not checked.
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
# Most bytes of a header, and numbers of a row.
_LARGEST_HEADER, _WIDEST = 2**24, 2**31


@dataclass(frozen=True)
class Header:
    """Description of an index.

    Attributes
    ----------
    widths : dict of str to int
        Numbers of each channel, in the order of the columns.
    settings : dict
        JSON values; two indexes belong together only if theirs are equal.
    source : str
        Digest of the rows that the index is built from.
    dtype : {"float16", "float32", "float64"}
        Of the signatures.
    n_rows : int
        Number of valid rows.
    complete : bool
        Whether these are all rows of the source.
    id : str
        Drawn when the index is made: distinguishes it from another at the same path.
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


def damaged(path: Path, reason: str) -> IndexMismatchError:
    return IndexMismatchError(
        f"index {path} is damaged: {reason}. Build it again at another path, or delete "
        "it first."
    )


def check_plain(path: Path, name: str) -> int:
    """Return the size of a file in bytes; raise if it is a link, a pipe or similar.

    Through a link, rows would be appended to some other file.
    """
    try:
        status = os.lstat(path / name)
    except (FileNotFoundError, NotADirectoryError):
        if name == HEADER:
            raise
        raise damaged(path, f"{name} is missing") from None
    if not stat.S_ISREG(status.st_mode):
        raise damaged(path, f"{name} is not a regular file")
    return status.st_size


def read_header(path: Path) -> Header:
    try:
        size = check_plain(path, HEADER)
        if size > _LARGEST_HEADER:
            raise damaged(path, f"{HEADER} has {size} bytes")
        fields = json.loads((path / HEADER).read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise IndexMismatchError(
            f"{path} is not an index: {HEADER} is missing. Pass another path."
        ) from error
    except IndexMismatchError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, f"{HEADER}: {error}") from error

    if not isinstance(fields, dict) or not isinstance(fields.get("version"), int):
        raise damaged(path, f"{HEADER} has no version")
    if fields["version"] != VERSION:
        raise IndexMismatchError(
            f"index {path} has version {fields['version']}, but this skattrib reads "
            f"version {VERSION}: build it again."
        )

    wrong = [k for k, kind in _FIELDS.items() if type(fields.get(k)) is not kind]
    if wrong or set(fields) != set(_FIELDS):
        raise damaged(path, f"{HEADER} has wrong fields {wrong or sorted(fields)}")

    widths = fields["widths"]
    if (
        fields["dtype"] not in _DTYPES
        or fields["n_rows"] < 0
        or not widths
        or not all(type(w) is int and w > 0 for w in widths.values())
        or sum(widths.values()) >= _WIDEST
    ):
        raise damaged(path, f"{HEADER} has impossible sizes")
    del fields["version"]

    return Header(**fields)


def write_header(path: Path, header: Header) -> None:
    for leftover in path.glob(f"{HEADER}.*.part"):  # by a killed process
        leftover.unlink(missing_ok=True)
    temporary = path / f"{HEADER}.{os.getpid()}.part"
    try:
        with open(temporary, "x") as file:
            json.dump({"version": VERSION, **vars(header)}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path / HEADER)
    finally:
        temporary.unlink(missing_ok=True)


class Rows(NamedTuple):
    """Signatures of n rows.

    Attributes
    ----------
    signatures : ndarray of shape (n, width)
    norms : ndarray of shape (n, n_channels)
    checksums : ndarray of shape (n, 1) or None
    """

    signatures: NDArray[Any]
    norms: NDArray[np.float64]
    checksums: NDArray[np.uint64] | None

    def take(self, rows: slice | NDArray[np.intp]) -> Rows:
        """Return some of the rows."""
        checks = None if self.checksums is None else self.checksums[rows]
        return Rows(self.signatures[rows], self.norms[rows], checks)

    def differing(self) -> NDArray[np.intp]:
        """Return the rows that do not agree with their checksums."""
        if self.checksums is None:
            return np.empty(0, dtype=np.intp)
        now = checksums(self.signatures, self.norms)
        return np.flatnonzero(now != self.checksums)


def checksums(
    signatures: NDArray[Any], norms: NDArray[np.float64]
) -> NDArray[np.uint64]:
    """Return a checksum (n, 1) of each row, which changes with every single bit.

    It is the sum of the row's words plus 1, so that a hole in the files, which reads
    as zeros, is not valid. It takes about as long as reading the rows.
    """
    total = np.ones((len(signatures), 1), dtype=np.uint64)
    for array in (signatures, norms):
        n_bytes = array.shape[1] * array.itemsize
        word = next(size for size in (8, 4, 2) if not n_bytes % size)
        words = np.ascontiguousarray(array).view(f"u{word}")
        total += words.sum(axis=1, dtype=np.uint64, keepdims=True)
    return total


def map_rows(path: Path, header: Header) -> Rows:
    """Map the valid rows into memory."""
    signatures = _mapped(path, SIGNATURES, header.dtype, header, header.width)
    norms = _mapped(path, NORMS, "float64", header, len(header.widths))
    if not os.path.lexists(path / CHECKSUMS):
        return Rows(signatures, norms, None)
    check_plain(path, CHECKSUMS)
    return Rows(signatures, norms, _mapped(path, CHECKSUMS, "uint64", header, 1))


def _mapped(
    path: Path, name: str, dtype: str, header: Header, width: int
) -> NDArray[Any]:
    """Map the valid rows of a file; raise if the file is too short."""
    n_bytes = header.n_rows * width * np.dtype(dtype).itemsize
    try:
        size = (path / name).stat().st_size
    except OSError as error:
        raise damaged(path, f"{name}: {error}") from error
    if size < n_bytes:
        raise damaged(path, f"{name} has {size} of {n_bytes} bytes")
    shape = (header.n_rows, width)
    if not header.n_rows:  # an empty file cannot be mapped
        return np.empty(shape, dtype=dtype)
    # a plain array: slices of a memmap cost ten times as much
    return np.asarray(np.memmap(path / name, dtype=dtype, mode="r", shape=shape))


def append_rows(path: Path, n_rows: int, block: NDArray[Any]) -> None:
    """Write rows after the ``n_rows`` valid ones, over any unfinished ones."""
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
    """Keep other writers out; the lock ends with its process."""
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
