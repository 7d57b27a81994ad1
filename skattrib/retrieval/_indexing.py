"""Building the index of rows: a new one, or an index on disk that is continued.

The checks that an index has this model, these settings and these rows are here; the
signatures of rows are in `_signatures`, the layout of the files is in the engine.
"""

import hashlib
import os
from numbers import Integral

import numpy as np

from skattrib._progress import tqdm
from skattrib.engine._index import Header, SignatureIndex
from skattrib.engine._parallel import batches, call_each
from skattrib.exceptions import IndexMismatchError
from skattrib.retrieval._sources import text_digest


def source_digest(X, y):
    """Return a hash of the rows that an index is built from."""
    digest = hashlib.sha256()
    for array in (X, y):
        digest.update(f"{array.dtype}{array.shape}".encode())
        if array.dtype.kind in "OUS":
            digest.update(text_digest(map(repr, array.ravel().tolist())).encode())
        else:
            digest.update(array.tobytes())
    return digest.hexdigest()


def build_index(signer, X, y, settings, seed, path, *, n_jobs, verbose):
    """Return an index of the rows: a new one, or the one at ``path``, continued.

    ``settings`` are the resolved ones of the valuator, ``seed`` is that of its hashes.
    """
    exact = settings["sketch"] is None
    source = source_digest(X, y)
    settings = {**_stored_settings(settings, seed), **signer.settings()}
    if path is not None:  # hashing a large model takes long
        settings["model"] = signer.fingerprint()

    if path is not None and os.path.exists(path):
        index = SignatureIndex.open(path)
        _check_same(index, settings, source)
        _check_tables(index, signer.tables())
        signer.use(index.tables)
        if index.header.widths != signer.widths:
            raise IndexMismatchError(
                f"index {index.path} is damaged: its channels are {index.header.widths}"
                f", but should be {signer.widths}. Delete it, or pass another path."
            )
    else:
        tables = signer.tables()
        signer.use(tables)
        # channels without a sketch keep their precision
        dtype = str(signer.head.weight.dtype).rpartition(".")[2] if exact else "float16"
        signer.check_size(0 if path else len(X), dtype)
        header = Header(signer.widths, settings, source, dtype)
        index = SignatureIndex.create(path, header, tables)

    if index.header.complete:
        if len(index) < len(X):
            raise IndexMismatchError(
                f"index {path} is damaged: it is marked as complete, but has "
                f"{len(index)} of {len(X)} rows. Delete it, or pass another path."
            )
        # without the rows that partial_fit has added since
        return index.first(len(X))
    return _filled(index, signer, X, y, n_jobs, verbose)


def _filled(index, signer, X, y, n_jobs, verbose):
    """Append the rows that are not in the index yet."""
    start = len(index)
    n_left = len(X) - len(index)
    slices = [
        slice(start + chunk.start, start + chunk.stop)
        for chunk in batches(n_left, signer.batch_size(), n_jobs)
    ]
    work = [(signer, X[rows], y[rows]) for rows in slices]

    with tqdm(total=n_left, desc="indexing rows", disable=not verbose) as bar:
        for rows, channels in zip(
            slices, call_each(_signed, work, n_jobs), strict=True
        ):
            # another process may be building it, too
            last = rows.stop == len(X)
            index = index.append(channels, complete=last, resume=True)
            bar.update(rows.stop - rows.start)

    return index


def _signed(signer, X, y):
    return signer(X, y)[0]


def _stored_settings(settings, seed):
    """Return the settings as an index stores them, in JSON."""
    return {**settings, "channels": list(settings["channels"]), "seed": seed}


def with_further(names, n_units):
    """Return the names of units, and new names for units that were added."""
    numbers = np.arange(len(names), n_units)
    if names.dtype.kind in "iu":
        numbers += max(0, int(names.max()) + 1 - len(names))
    else:
        numbers = numbers.astype(object)
    return np.concatenate([names, numbers])


def check_path(path, random_state):
    """Raise unless an index can be created at a path and used again."""
    if not path:
        raise ValueError("index='' is not a path; None keeps the index in memory.")
    if not isinstance(random_state, Integral):
        raise ValueError(
            f"index={path!r} needs an int random_state: another fit would draw other "
            "hashes, and could not use the index."
        )


def check_index(path, settings, seed):
    """Raise unless an index with these settings can be created or continued.

    The model is not compared, because it may not have been trained yet.
    """
    settings = _stored_settings(settings, seed)
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        raise ValueError(f"index={path!r}: there is no folder {parent!r}: create it.")

    if not os.path.exists(path):
        if not os.access(parent, os.W_OK):
            raise PermissionError(
                f"index={path!r}: {parent!r} is read-only: pass another path."
            )
    else:
        stored = SignatureIndex.open(path).header.settings
        expected = {
            **settings,
            **{k: v for k, v in stored.items() if k not in settings},
        }
        _check_settings(path, stored, expected)


def _check_same(index, settings, source):
    _check_settings(index.path, index.header.settings, settings)
    if index.header.source != source:
        raise IndexMismatchError(
            f"index {index.path} has other rows or labels: delete it, or pass another "
            "path. To add rows, use partial_fit."
        )


def _check_tables(index, drawn):
    """Raise unless the hash tables of an index have the shape of those drawn for it."""
    stored = index.tables
    agree = stored.keys() == drawn.keys() and all(
        [t.shape for t in stored[name]] == [t.shape for t in drawn[name]]
        and [t.dtype for t in stored[name]] == [t.dtype for t in drawn[name]]
        and bool((stored[name][1].abs() == 1).all())
        for name in drawn
    )
    sizes = index.header.settings["n_components"]

    for name, (indices, _) in stored.items() if agree else ():
        factor = name.partition(":")[2]
        n_components = sizes if isinstance(sizes, int) else sizes[factor]
        agree = agree and 0 <= int(indices.min()) and int(indices.max()) < n_components
    if not agree:
        raise IndexMismatchError(
            f"index {index.path} is damaged: its hash tables do not fit these "
            "settings. Delete it, or pass another path."
        )


def _check_settings(path, stored, settings):
    for name in {**settings, **stored}:
        if settings.get(name) != stored.get(name):
            label = "the model" if name == "model" else name
            detail = (
                ""
                if name == "model"
                else f" ({stored.get(name)!r} on disk, {settings.get(name)!r} here)"
            )
            raise IndexMismatchError(
                f"index {path} differs in {label}{detail}: delete it, or pass another "
                "path."
            )
