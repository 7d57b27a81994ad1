"""From rows to their index: a new one, or the one on disk taken up where it stands.

Whether an index is of this model, these settings and rows is decided here; what a row
leaves in it is in `_signatures`, what its files must look like in the engine.
"""

import hashlib
import os
from numbers import Integral

import numpy as np
from tqdm.auto import tqdm

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
    """Return an index of the rows: a new one, or the one at ``path`` taken further.

    ``settings`` are those of the valuator, resolved, ``seed`` is that of its hashes.
    """
    exact, source = settings["sketch"] is None, source_digest(X, y)
    settings = {**_kept(settings, seed), **signer.settings()}
    if path is not None:  # gigabytes, maybe
        settings["model"] = signer.fingerprint()
    if path is not None and os.path.exists(path):
        index = SignatureIndex.open(path)
        _check_same(index, settings, source)
        _check_tables(index, signer.tables())
        signer.use(index.tables)
        if index.header.widths != signer.widths:
            raise IndexMismatchError(
                f"index {index.path} is damaged: its channels are {index.header.widths}"
                f", of these settings {signer.widths}. Delete it, or name another path."
            )
    else:
        tables = signer.tables()
        signer.use(tables)
        # exact channels are to be exact
        dtype = str(signer.head.weight.dtype).rpartition(".")[2] if exact else "float16"
        signer.check_size(0 if path else len(X), dtype)
        header = Header(signer.widths, settings, source, dtype)
        index = SignatureIndex.create(path, header, tables)
    if index.header.complete:
        if len(index) < len(X):
            raise IndexMismatchError(
                f"index {path} is damaged: it says that all {len(X)} rows are in it, "
                f"and has {len(index)}. Delete it, or name another path."
            )
        # rows that partial_fit has added since are not these
        return index.first(len(X))
    return _filled(index, signer, X, y, n_jobs, verbose)


def _filled(index, signer, X, y, n_jobs, verbose):
    """Append the rows that are not in the index yet."""
    start, n_left = len(index), len(X) - len(index)
    todo = [
        slice(start + part.start, start + part.stop)
        for part in batches(n_left, signer.batch_size(), n_jobs)
    ]
    work = [(signer, X[rows], y[rows]) for rows in todo]
    with tqdm(total=n_left, desc="indexing rows", disable=not verbose) as bar:
        for rows, channels in zip(todo, call_each(_signed, work, n_jobs), strict=True):
            # another process may be building it too
            last = rows.stop == len(X)
            index = index.append(channels, complete=last, resume=True)
            bar.update(rows.stop - rows.start)
    return index


def _signed(signer, X, y):
    return signer(X, y)[0]


def _kept(settings, seed):
    """Return the settings as an index keeps them, as JSON."""
    return {**settings, "channels": list(settings["channels"]), "seed": seed}


def with_further(names, n_units):
    """Return the names of units, and new ones of the units added to them."""
    further = np.arange(len(names), n_units)
    if names.dtype.kind in "iu":
        further += max(0, int(names.max()) + 1 - len(names))
    else:
        further = further.astype(object)
    return np.concatenate([names, further])


def check_path(path, random_state):
    """Raise unless an index can be made at a path and found again."""
    if not path:
        raise ValueError("index='' is no path; None keeps the index in memory.")
    if not isinstance(random_state, Integral):
        raise ValueError(
            f"index={path!r} needs an int random_state: another fit would draw other "
            "hashes, and find nothing there."
        )


def check_index(path, settings, seed):
    """Raise unless an index with these settings can be made or taken up at a path.

    The model, which may be yet to be trained, is not compared.
    """
    settings = _kept(settings, seed)
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        raise ValueError(f"index={path!r}: there is no folder {parent!r}.")
    if not os.path.exists(path):
        if not os.access(parent, os.W_OK):
            raise PermissionError(f"index={path!r}: {parent!r} is read-only.")
    else:
        there = SignatureIndex.open(path).header.settings
        own = {**settings, **{k: v for k, v in there.items() if k not in settings}}
        _check_settings(path, there, own)


def _check_same(index, settings, source):
    _check_settings(index.path, index.header.settings, settings)
    if index.header.source != source:
        raise IndexMismatchError(
            f"index {index.path} is of other rows or labels: delete it, or name "
            "another path. Rows are added by partial_fit."
        )


def _check_tables(index, drawn):
    """Raise unless the hash tables of an index are like those drawn for it."""
    found = index.tables
    same = found.keys() == drawn.keys() and all(
        [t.shape for t in found[name]] == [t.shape for t in drawn[name]]
        and [t.dtype for t in found[name]] == [t.dtype for t in drawn[name]]
        and bool((found[name][1].abs() == 1).all())
        for name in drawn
    )
    sizes = index.header.settings["n_components"]
    for name, (indices, _) in found.items() if same else ():
        factor = name.partition(":")[2]
        n_components = sizes if isinstance(sizes, int) else sizes[factor]
        same = same and 0 <= int(indices.min()) and int(indices.max()) < n_components
    if not same:
        raise IndexMismatchError(
            f"index {index.path} is damaged: its hash tables are not of these "
            "settings. Delete it, or name another path."
        )


def _check_settings(path, there, settings):
    for name in {**settings, **there}:
        if settings.get(name) != there.get(name):
            what = "the model" if name == "model" else name
            detail = (
                ""
                if name == "model"
                else f" ({there.get(name)!r} there, {settings.get(name)!r} here)"
            )
            raise IndexMismatchError(
                f"index {path} differs in {what}{detail}: delete it, or name another "
                "path."
            )
