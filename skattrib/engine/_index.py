"""Signatures of rows, in memory or on disk: append, resume after interruption, read.

Rows are appended first and counted afterwards, by a header that is written beside the
old one and renamed. Rows that a killed process leaves after the counted ones are never
read, and removed by the next writer. The layout of the files is in `_index_files`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from skattrib.engine._index_files import (
    CHECKSUMS,
    LOCK,
    NORMS,
    SIGNATURES,
    TABLES,
    Header,
    Rows,
    append_rows,
    check_plain,
    checksums,
    damaged,
    locked,
    map_rows,
    read_header,
    write_header,
)
from skattrib.engine._trajectory import write_tensors
from skattrib.exceptions import IndexMismatchError

Tables = dict[str, tuple[Tensor, Tensor]]


class SignatureIndex:
    """Unit vectors of every channel of every row, and their original norms.

    Made by `create` or `open`.
    """

    def __init__(
        self,
        header: Header,
        tables: Tables,
        rows: Rows,
        path: Path | None,
    ) -> None:
        self.header, self.tables, self.path = header, tables, path
        self._rows = rows
        # checked when they are first read: a check takes a twelfth of a search
        self._checked = np.full(len(rows.norms), rows.checksums is None)

    def __len__(self) -> int:
        return self.header.n_rows

    def __reduce__(self) -> tuple[Any, ...]:
        if self.path is not None:  # a pickle holds the path, not the rows
            return SignatureIndex._reopen, (self.path, self.header)
        return SignatureIndex, (self.header, self.tables, self._rows, None)

    @classmethod
    def _reopen(cls, path: Path, header: Header) -> SignatureIndex:
        index = cls.open(path)
        if index.header.id != header.id or len(index) < header.n_rows:
            raise IndexMismatchError(
                f"index {path} is no longer the one that was pickled: fit again."
            )
        return index.first(header.n_rows)

    def first(self, n_rows: int) -> SignatureIndex:
        """Return a read-only view of the first rows."""
        header = replace(self.header, n_rows=n_rows)
        rows = self._rows.take(slice(n_rows))
        return SignatureIndex(header, self.tables, rows, self.path)

    @property
    def norms(self) -> NDArray[np.float64]:
        """Norms (n_rows, n_channels), in the order of the channels."""
        return self._rows.norms

    def signatures(self, rows: slice | NDArray[np.intp]) -> NDArray[Any]:
        """Return unit vectors of some rows, (m, width), as they are stored.

        Raises
        ------
        IndexMismatchError
            If these rows, or their norms, have changed since they were written.
        """
        if not self._checked[rows].all():
            self._check(rows)
        return self._rows.signatures[rows]

    def _check(self, rows: slice | NDArray[np.intp]) -> None:
        """Compare rows with their checksums."""
        wrong = self._rows.take(rows).differing()
        if len(wrong):
            first = np.arange(len(self))[rows][wrong[0]]
            raise damaged(
                cast(Path, self.path),
                f"{len(wrong)} rows have changed since they were written, the first "
                f"is row {first}",
            )
        self._checked[rows] = True

    def channels(self, rows: slice) -> dict[str, NDArray[Any]]:
        """Return unit vectors of some rows, by channel."""
        block = self.signatures(rows)
        return {
            name: block[:, columns] for name, columns in self.header.slices().items()
        }

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
            If the disk is full or read-only; no files remain then.
        """
        if path is None:
            signatures = np.empty((0, header.width), dtype=header.dtype)
            norms = np.empty((0, len(header.widths)), dtype=np.float64)
            return cls(header, tables, Rows(signatures, norms, None), None)

        header = replace(header, id=uuid.uuid4().hex)
        path = Path(path)
        # complete before it is visible: a killed process leaves another folder
        temporary = Path(
            tempfile.mkdtemp(prefix=f"{path.name}.", suffix=".part", dir=path.parent)
        )

        try:
            flat = {}
            for name, (indices, signs) in tables.items():
                flat[f"{name}/indices"], flat[f"{name}/signs"] = indices, signs
            write_tensors(temporary / TABLES, flat)
            for name in (SIGNATURES, NORMS, CHECKSUMS, LOCK):
                (temporary / name).touch()
            write_header(temporary, header)
            if path.exists():
                raise FileExistsError(f"index: {path} already exists.")
            os.rename(temporary, path)
        except FileExistsError:
            raise
        except OSError as error:
            raise OSError(
                f"index={str(path)!r} cannot be created, and no files remain: {error}"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

        return cls.open(path)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> SignatureIndex:
        """Read an index; rows that others append later are not seen.

        Raises
        ------
        IndexMismatchError
            If it is not an index, damaged, or of another version.
        """
        path = Path(path)
        header = read_header(path)
        for name in (TABLES, SIGNATURES, NORMS, LOCK):
            check_plain(path, name)
        try:
            flat = load_file(path / TABLES)
            names = {key.partition("/")[0] for key in flat}
            tables = {n: (flat[f"{n}/indices"], flat[f"{n}/signs"]) for n in names}
        except (SafetensorError, OSError, KeyError) as error:
            raise damaged(path, f"{TABLES}: {error}") from error
        return cls(header, tables, map_rows(path, header), path)

    def append(
        self,
        channels: Mapping[str, Tensor],
        *,
        complete: bool = False,
        resume: bool = False,
    ) -> SignatureIndex:
        """Add rows (m, width) of every channel; return the longer index.

        With ``resume``, equal rows that were added on disk since this index was read
        are accepted as these rows: a process that was killed may have added them.

        Raises
        ------
        BlockingIOError
            If another process is appending.
        OSError
            If the disk is full or read-only; the index stays as it was.
        """
        values = [channels[name].detach().cpu() for name in self.header.widths]
        norms_and_units = [unit(v) for v in values]
        block = torch.cat([u for _, u in norms_and_units], dim=1).numpy()
        block = block.astype(self.header.dtype)
        norms = (
            torch.stack([n for n, _ in norms_and_units], dim=1)
            .numpy()
            .astype(np.float64)
        )

        n_rows = len(self) + len(block)
        header = replace(self.header, n_rows=n_rows, complete=complete)
        if self.path is None:
            rows = Rows(
                np.concatenate([self._rows.signatures, block]),
                np.concatenate([self._rows.norms, norms]),
                None,
            )
            return SignatureIndex(header, self.tables, rows, None)

        if resume and self._has(self._header_on_disk(), block, norms):
            return self._with(header)  # works on a read-only disk, too

        with locked(self.path):
            on_disk = self._header_on_disk()
            n_new_on_disk = on_disk.n_rows - len(self)
            if n_new_on_disk and not (
                resume and self._continued(on_disk, block, norms)
            ):
                raise IndexMismatchError(
                    f"index {self.path} has {on_disk.n_rows} rows on disk, but "
                    f"{len(self)} here: rows were added elsewhere. Add rows where the "
                    "last ones were added, or by a pickle made after that; otherwise "
                    "fit to another path."
                )
            if not self._has(on_disk, block, norms):
                self._write(
                    on_disk.n_rows, block[n_new_on_disk:], norms[n_new_on_disk:], header
                )

        return self._with(header)

    def _with(self, header: Header) -> SignatureIndex:
        """Return the index on disk, with the rows that a header counts."""
        path = cast(Path, self.path)
        return SignatureIndex(header, self.tables, map_rows(path, header), path)

    def _write(
        self,
        n_rows: int,
        block: NDArray[Any],
        norms: NDArray[np.float64],
        header: Header,
    ) -> None:
        """Write rows after the counted ones, then the header that counts them."""
        path = cast(Path, self.path)
        try:
            append_rows(path / SIGNATURES, n_rows, block)
            append_rows(path / NORMS, n_rows, norms)
            if self._rows.checksums is not None:
                append_rows(path / CHECKSUMS, n_rows, checksums(block, norms))
            write_header(path, header)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror}; the index still has {n_rows} rows. Once it can be "
                "written, the same call continues from there",
                str(path),
            ) from error

    def _header_on_disk(self) -> Header:
        """Return the header that is on disk now."""
        path = cast(Path, self.path)
        on_disk = read_header(path)
        if on_disk.id != self.header.id:
            raise IndexMismatchError(
                f"index {path} has been replaced: it was deleted and built again. "
                "Fit again."
            )
        return on_disk

    def _has(
        self, on_disk: Header, block: NDArray[Any], norms: NDArray[np.float64]
    ) -> bool:
        """Return whether all of these rows have been added on disk."""
        enough = len(block) > 0 and on_disk.n_rows >= len(self) + len(block)
        return enough and self._continued(on_disk, block, norms)

    def _continued(
        self, on_disk: Header, block: NDArray[Any], norms: NDArray[np.float64]
    ) -> bool:
        """Return whether the rows added on disk agree with these as far as both go."""
        if on_disk.n_rows < len(self):
            return False
        rows = slice(len(self), min(on_disk.n_rows, len(self) + len(block)))
        n_rows = rows.stop - rows.start
        stored = map_rows(cast(Path, self.path), on_disk).take(rows)
        return np.array_equal(stored.signatures, block[:n_rows]) and np.array_equal(
            stored.norms, norms[:n_rows]
        )


def unit(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the norms (m,) of vectors, and the vectors at norm 1 (or 0)."""
    # squares of small numbers may vanish
    scale = values.abs().amax(dim=1, keepdim=True)
    scaled = values / torch.where(scale > 0, scale, 1.0)
    norms = scaled.norm(dim=1, keepdim=True)
    return (scale * norms)[:, 0], scaled / torch.where(norms > 0, norms, 1.0)
