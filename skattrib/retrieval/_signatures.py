"""Signatures of rows: sketched gradients of the last layer, summed over tokens."""

import hashlib

import numpy as np
import torch

from skattrib.engine._last_layer import Residual, Sketcher, residuals
from skattrib.engine._modules import check_no_nan


class Signer:
    """Computes the channels of the signatures of rows.

    Parameters
    ----------
    source : TableSource or TextSource
        Converts rows to tokens.
    options : dict
        Settings of `RISEValuator`, resolved.
    seed : int
        Seed of the hash tables of the first sketch; the others follow from it.
    """

    def __init__(self, source, options, seed):
        self._source, self._options = source, options
        self.head = source.head
        self._seed = seed

    def tables(self):
        """Draw the hash tables of every sketch."""
        tables = {}
        for k in range(self._options["n_sketches"]):
            drawn = Sketcher.draw(
                self.head,
                self._options["sketch"],
                self._options["n_components"],
                self._seed + 101 * k,
            )
            tables.update({f"{k}:{name}": pair for name, pair in drawn.items()})
        return tables

    def use(self, tables):
        """Use these hash tables from now on."""
        options = self._options
        self._sketchers = []
        for k in range(options["n_sketches"]):
            of_sketch = {
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
                    of_sketch,
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
        """Return how many rows to process at a time."""
        return self._source.rows_at_once(sum(self.widths.values()))

    def fits(self, n_rows):
        """Return whether this many rows can be processed at a time."""
        return self._source.fitting(sum(self.widths.values())) >= n_rows

    def check_size(self, n_rows, dtype):
        """Raise if signatures, with ``n_rows`` of them in memory, are too large."""
        width = sum(self.widths.values())
        self._source.check_size(width, n_rows * width * np.dtype(dtype).itemsize)

    def settings(self):
        """Return settings on which an index depends, apart from the options."""
        return self._source.settings()

    def __call__(self, X, y, outcome="log_likelihood"):
        """Return the channels (n, width) of rows, and the norms (N,) of residuals.

        A row of a table has one residual, a text one for each predicted token.
        """
        like = self.head.weight
        sums = {name: like.new_zeros(len(X), w) for name, w in self.widths.items()}
        counts = like.new_zeros(len(X), 1)
        norms = []

        for tokens in self._source.tokens(X, y):
            residual = self._residual(tokens.outputs, tokens.targets, outcome)
            norms.append(residual.values.norm(dim=1))
            self._check_finite(norms[-1])
            rows, row_of_token = tokens.rows.unique(return_inverse=True)
            n_tokens = torch.bincount(row_of_token)[:, None].to(like)
            counts.index_add_(0, rows, n_tokens)
            for k, sketcher in enumerate(self._sketchers):
                channels = sketcher(residual, tokens.hidden, row_of_token, len(rows))
                for name, values in channels.items():
                    # "h" is a mean over tokens; the others are sums
                    values = values * n_tokens if name == "h" else values
                    sums[f"{name}/{k}"].index_add_(0, rows, values)

        for name in sums:
            if name.startswith("h/"):
                sums[name] /= counts

        return sums, torch.cat(norms)

    @staticmethod
    def _check_finite(norms):
        if not torch.isfinite(norms).all():
            raise ValueError(
                "The model's outputs are NaN or infinite for some of these rows, which "
                "have no gradient. Leave such rows out; if these are all rows, the "
                "model's training diverged, or its dtype has too small a range."
            )

    def _residual(self, outputs, targets, outcome):
        """Return minus the gradient of the outcome in the outputs."""
        loss = self._source.loss
        if outcome in ("auto", "log_likelihood"):
            options = self._options
            return residuals(
                outputs,
                targets,
                loss,
                top_k=options["top_k"],
                temperature=options["temperature"],
            )

        function = loss.outcome(outcome)
        slope = torch.func.grad(lambda z: function(z, targets).sum())(outputs)
        return Residual(-slope, None, outputs.shape[1])

    def fingerprint(self):
        """Return a hash of the module's weights; raise if some are NaN."""
        check_no_nan(self._source.module)
        digest = hashlib.sha256()
        seen = set()
        for name, value in sorted(self._source.module.state_dict().items()):
            key = (value.data_ptr(), tuple(value.shape), value.stride())
            if value.numel() and key in seen:  # tied weights are hashed once
                continue
            seen.add(key)
            array = value.detach().cpu().contiguous()
            digest.update(f"{name}{array.dtype}{tuple(array.shape)}".encode())
            digest.update(array.flatten().view(torch.uint8).numpy())

        return digest.hexdigest()
