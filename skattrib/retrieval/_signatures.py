"""Signatures of rows: what the tokens of a row leave of the last layer's gradient."""

import copy
import hashlib
import os

import torch
from sklearn.frozen import FrozenEstimator
from tqdm.auto import tqdm

from skattrib._validation import as_tensor, memory_cap
from skattrib.engine._functional import chunks, outcome_function
from skattrib.engine._index import Header, SignatureIndex
from skattrib.engine._readout import (
    Head,
    Residual,
    Sketcher,
    find_head,
    hidden_states,
    residuals,
)
from skattrib.exceptions import IndexMismatchError

# Numbers alive per row and output, and per row and number of its signature.
_COPIES = 6


class Signer:
    """Turns rows into the channels of their signatures.

    Parameters
    ----------
    estimator : fitted TorchClassifier or TorchRegressor
        Maybe frozen.
    like : ndarray
        Rows that its module takes.
    options : dict
        Settings of `RISEValuator`, resolved.
    seed : int
        Of the first sketch's hash tables; the others follow.
    """

    def __init__(self, estimator, like, options, seed):
        if isinstance(estimator, FrozenEstimator):
            estimator = estimator.estimator
        self._estimator, self._options = estimator, options
        # a copy: other threads may be using the module
        self._module = copy.deepcopy(estimator.module_)
        self._like = next(self._module.parameters())
        self._layer = find_head(self._module, as_tensor(like[:2], self._like))
        self.head, self._seed = Head.of(self._layer), seed

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
        numbers = sum(self.head.weight.shape) + sum(self.widths.values())
        item = self._like.element_size()
        return max(1, int(memory_cap() / (_COPIES * numbers * item)))

    def __call__(self, X, y, outcome="log_likelihood"):
        """Return the channels (n, width) of rows, and the norms (n,) of residuals."""
        rows = as_tensor(X, self._like)
        hidden, outputs = hidden_states(self._module, self._layer, rows)
        residual = self._residual(outputs, self._estimator._targets(y, rows), outcome)
        each = torch.arange(len(rows), device=rows.device)
        found = {}
        for k, sketcher in enumerate(self._sketchers):
            channels = sketcher(residual, hidden, each, len(rows))
            found.update({f"{name}/{k}": value for name, value in channels.items()})
        return found, residual.values.norm(dim=1)

    def _residual(self, outputs, targets, outcome):
        """Return minus the gradient of the outcome in the outputs."""
        task = self._estimator._task
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
        digest = hashlib.sha256()
        for name, value in sorted(self._module.state_dict().items()):
            array = value.detach().cpu().contiguous()
            digest.update(f"{name}{array.dtype}{tuple(array.shape)}".encode())
            digest.update(array.flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def source_digest(X, y):
    """Return a hash of the rows that an index is built from."""
    digest = hashlib.sha256()
    for array in (X, y):
        digest.update(f"{array.dtype}{array.shape}".encode())
        if array.dtype.kind in "OUS":
            digest.update(repr(array.tolist()).encode())
        else:
            digest.update(array.tobytes())
    return digest.hexdigest()


def build_index(signer, X, y, settings, path, *, exact, verbose):
    """Return an index of the rows: a new one, or the one at ``path`` taken further."""
    source = source_digest(X, y)
    index = None
    if path is not None and os.path.exists(path):
        index = SignatureIndex.open(path)
        _check_same(index, settings, source)
        signer.use(index.tables)
    else:
        tables = signer.tables()
        signer.use(tables)
        # exact channels are to be exact
        dtype = str(X.dtype) if exact else "float16"
        header = Header(signer.widths, settings, source, dtype)
        index = SignatureIndex.create(path, header, tables)
    todo = range(len(index), len(X))
    if index.header.complete:
        # rows that partial_fit has added since are not these
        return index.first(len(X))
    with tqdm(total=len(todo), desc="indexing rows", disable=not verbose) as bar:
        for part in chunks(len(todo), signer.batch_size()):
            rows = slice(todo[part][0], todo[part][-1] + 1)
            channels, _ = signer(X[rows], y[rows])
            index = index.append(channels, complete=rows.stop == len(X))
            bar.update(rows.stop - rows.start)
    return index


def _check_same(index, settings, source):
    there = index.header.settings
    for name in {**settings, **there}:
        if settings.get(name) != there.get(name):
            what = "the model" if name == "model" else name
            detail = (
                ""
                if name == "model"
                else f" ({there.get(name)!r} there, {settings.get(name)!r} here)"
            )
            raise IndexMismatchError(
                f"index {index.path} differs in {what}{detail}: delete it, or name "
                "another path."
            )
    if index.header.source != source:
        raise IndexMismatchError(
            f"index {index.path} is of other rows or labels: delete it, or name "
            "another path. Rows are added by partial_fit."
        )
