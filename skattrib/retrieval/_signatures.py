"""Signatures of rows: what the tokens of a row leave of the last layer's gradient."""

import hashlib
import os

import numpy as np
import torch
from tqdm.auto import tqdm

from skattrib.engine._functional import chunks, outcome_function
from skattrib.engine._index import Header, SignatureIndex
from skattrib.engine._readout import Residual, Sketcher, residuals
from skattrib.exceptions import IndexMismatchError
from skattrib.retrieval._sources import source, text_digest


class Signer:
    """Turns rows into the channels of their signatures.

    Parameters
    ----------
    estimator : fitted TorchClassifier, TorchRegressor or CausalLanguageModel
        Maybe frozen.
    like : ndarray
        Rows that it takes.
    options : dict
        Settings of `RISEValuator`, resolved.
    seed : int
        Of the first sketch's hash tables; the others follow.
    """

    def __init__(self, estimator, like, options, seed):
        self._source, self._options = source(estimator, like), options
        self.head, self._seed = self._source.head, seed

    def tables(self):
        """Draw the hash tables of every sketch."""
        found = {}
        for k in range(self._options["n_sketches"]):
            drawn = Sketcher.draw(
                self.head,
                self._options["sketch"],
                self._options["n_components"],
                self._seed + 101 * k,
            )
            found.update({f"{k}:{name}": pair for name, pair in drawn.items()})
        return found

    def use(self, tables):
        """Sketch by these tables from now on."""
        options = self._options
        self._sketchers = []
        for k in range(options["n_sketches"]):
            own = {
                name.partition(":")[2]: pair
                for name, pair in tables.items()
                if name.partition(":")[0] == str(k)
            }
            self._sketchers.append(
                Sketcher(
                    self.head,
                    tuple(options["channels"]),
                    options["sketch"],
                    options["n_components"],
                    own,
                    per_token=options["normalize"] == "token",
                )
            )

    @property
    def widths(self):
        """Numbers of every channel of every sketch, in the order of the columns."""
        return {
            f"{channel}/{k}": sketcher.width(channel)
            for k, sketcher in enumerate(self._sketchers)
            for channel in sketcher.channels
        }

    def batch_size(self):
        """Return how many rows are signed at a time."""
        return self._source.rows_at_once(sum(self.widths.values()))

    def fits(self, n_rows):
        """Return whether as many rows can be signed at a time."""
        return self._source.fitting(sum(self.widths.values())) >= n_rows

    def check_size(self, n_rows, dtype):
        """Raise if signatures, with ``n_rows`` of them in memory, are too large."""
        width = sum(self.widths.values())
        self._source.check_size(width, n_rows * width * np.dtype(dtype).itemsize)

    def settings(self):
        """Return what an index depends on beside the options."""
        return self._source.settings()

    def __call__(self, X, y, outcome="log_likelihood"):
        """Return the channels (n, width) of rows, and the norms (N,) of residuals.

        A row of a table has one residual, a text one per token that is predicted.
        """
        like = self.head.weight
        found = {name: like.new_zeros(len(X), w) for name, w in self.widths.items()}
        counts, norms = like.new_zeros(len(X), 1), []
        for tokens in self._source.tokens(X, y):
            residual = self._residual(tokens.outputs, tokens.targets, outcome)
            norms.append(residual.values.norm(dim=1))
            self._check_finite(norms[-1])
            rows, local = tokens.rows.unique(return_inverse=True)
            here = torch.bincount(local)[:, None].to(like)
            counts.index_add_(0, rows, here)
            for k, sketcher in enumerate(self._sketchers):
                channels = sketcher(residual, tokens.hidden, local, len(rows))
                for name, values in channels.items():
                    # a mean over tokens; the others are sums
                    values = values * here if name == "h" else values
                    found[f"{name}/{k}"].index_add_(0, rows, values)
        for name in found:
            if name.startswith("h/"):
                found[name] /= counts
        return found, torch.cat(norms)

    @staticmethod
    def _check_finite(norms):
        if not torch.isfinite(norms).all():
            raise ValueError(
                "The model's outputs are NaN or infinite for some of these rows: there "
                "is no gradient to keep."
            )

    def _residual(self, outputs, targets, outcome):
        """Return minus the gradient of the outcome in the outputs."""
        task = self._source.task
        if outcome in ("auto", "log_likelihood"):
            options = self._options
            return residuals(
                outputs,
                targets,
                task,
                top_k=options["top_k"],
                temperature=options["temperature"],
            )
        function = outcome_function(outcome, task)
        slope = torch.func.grad(lambda z: function(z, targets).sum())(outputs)
        return Residual(-slope, None, outputs.shape[1])

    def fingerprint(self):
        """Return a hash of the module's weights."""
        digest, seen = hashlib.sha256(), set()
        for name, value in sorted(self._source.module.state_dict().items()):
            key = (value.data_ptr(), tuple(value.shape), value.stride())
            if value.numel() and key in seen:  # tied: gigabytes are hashed once
                continue
            seen.add(key)
            array = value.detach().cpu().contiguous()
            digest.update(f"{name}{array.dtype}{tuple(array.shape)}".encode())
            digest.update(array.flatten().view(torch.uint8).numpy())
        return digest.hexdigest()


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


def build_index(signer, X, y, settings, path, *, exact, verbose):
    """Return an index of the rows: a new one, or the one at ``path`` taken further."""
    source = source_digest(X, y)
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
    todo = range(len(index), len(X))
    if index.header.complete:
        if len(index) < len(X):
            raise IndexMismatchError(
                f"index {path} is damaged: it says that all {len(X)} rows are in it, "
                f"and has {len(index)}. Delete it, or name another path."
            )
        # rows that partial_fit has added since are not these
        return index.first(len(X))
    with tqdm(total=len(todo), desc="indexing rows", disable=not verbose) as bar:
        for part in chunks(len(todo), signer.batch_size()):
            rows = slice(todo[part][0], todo[part][-1] + 1)
            channels, _ = signer(X[rows], y[rows])
            # another process may be building it too
            last = rows.stop == len(X)
            index = index.append(channels, complete=last, resume=True)
            bar.update(rows.stop - rows.start)
    return index


def check_index(path, settings):
    """Raise unless an index with these settings can be made or taken up at a path.

    The model, which may be yet to be trained, is not compared.
    """
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
