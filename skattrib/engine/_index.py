"""Signatures of rows, in memory or on disk: append, go on after a kill, read.

Rows are appended first and counted afterwards, by a header that is written beside the
old one and renamed: what a kill leaves behind the counted rows is never read, and the
next writer cuts it off. What the files look like is in `_index_files`.
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
    """Unit vectors of every channel of every row, and the norms they had.

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
        # checked where they are first read: a check takes a twelfth of a search
        self._checked = np.full(len(rows.norms), rows.checksums is None)

    def __len__(self) -> int:
        return self.header.n_rows

    def __reduce__(self) -> tuple[Any, ...]:
        if self.path is not None:  # a pickle holds where it is, not what it holds
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
        """Return a view of the first rows, to which nothing can be appended."""
        header = replace(self.header, n_rows=n_rows)
        rows = self._rows.part(slice(n_rows))
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
            If these, or their norms, are no longer what was written.
        """
        if not self._checked[rows].all():
            self._check(rows)
        return self._rows.signatures[rows]

    def _check(self, rows: slice | NDArray[np.intp]) -> None:
        """Compare rows with their checksums."""
        wrong = self._rows.part(rows).differing()
        if len(wrong):
            first = np.arange(len(self))[rows][wrong[0]]
            raise damaged(
                cast(Path, self.path),
                f"{len(wrong)} rows are not what was written, the first row {first}",
            )
        self._checked[rows] = True

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
            return cls(header, tables, Rows(signatures, norms, None), None)
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
            write_tensors(beside / TABLES, flat)
            for name in (SIGNATURES, NORMS, CHECKSUMS, LOCK):
                (beside / name).touch()
            write_header(beside, header)
            if path.exists():
                raise FileExistsError(f"index: {path} is there already.")
            os.rename(beside, path)
        except FileExistsError:
            raise
        except OSError as error:
            raise OSError(
                f"index={str(path)!r} cannot be made, and nothing is left of it: "
                f"{error}"
            ) from error
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
            rows = Rows(
                np.concatenate([self._rows.signatures, block]),
                np.concatenate([self._rows.norms, sizes]),
                None,
            )
            return SignatureIndex(header, self.tables, rows, None)
        if resume and self._has(self._there(), block, sizes):
            return self._with(header)  # nothing to write, maybe nothing may be
        with locked(self.path):
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
        return self._with(header)

    def _with(self, header: Header) -> SignatureIndex:
        """Return the index that is on disk by now, of the rows that a header counts."""
        path = cast(Path, self.path)
        return SignatureIndex(header, self.tables, map_rows(path, header), path)

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
            append_rows(path / SIGNATURES, n_rows, block)
            append_rows(path / NORMS, n_rows, sizes)
            if self._rows.checksums is not None:
                append_rows(path / CHECKSUMS, n_rows, checksums(block, sizes))
            write_header(path, header)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror}; the index has {n_rows} rows, as before. Once "
                "it can be written, the same call goes on from there",
                str(path),
            ) from error

    def _there(self) -> Header:
        """Return the header that is on disk now."""
        path = cast(Path, self.path)
        there = read_header(path)
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
        found = map_rows(cast(Path, self.path), there).part(rows)
        return np.array_equal(found.signatures, block[:n_rows]) and np.array_equal(
            found.norms, sizes[:n_rows]
        )


def unit(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the norms (m,) of vectors, and the vectors at norm 1 (or 0)."""
    # squares of small numbers may vanish
    scale = values.abs().amax(dim=1, keepdim=True)
    scaled = values / torch.where(scale > 0, scale, 1.0)
    norms = scaled.norm(dim=1, keepdim=True)
    return (scale * norms)[:, 0], scaled / torch.where(norms > 0, norms, 1.0)
