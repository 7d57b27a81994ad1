"""A trained network as it answers queries: in evaluation mode, in chunks of rows."""

import warnings

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from skattrib._validation import as_tensor
from skattrib.engine._functional import apart, as_rows, chunks, run_module
from skattrib.engine._row_context import counter_names
from skattrib.exceptions import FaithfulnessWarning
from skattrib.models._datasets import rows_of
from skattrib.models._module_checks import check_ids, check_is_tensor, check_shape
from skattrib.models._rows import check_whole, unknown_numbers, validate_rows


class Answering:
    """Methods of an estimator that keeps a trained module, and asks it."""

    def _keep(self, model, n_steps):
        """Store the trained module, as it answers queries."""
        self.module_ = model.module
        self._in_training = ()
        if not any(model.behaviour):
            return
        self._in_training = tuple(
            name for name, layer in self.module_.named_modules() if layer.training
        )
        self.module_.eval()
        held = dict(self.module_.named_buffers())
        for name in counter_names(self.module_):
            if name.rpartition(".")[0] in self._in_training:
                held[name] += n_steps

    def _module_in_training(self):
        """Return the trained module, its tensors shared, as it was trained."""
        names = getattr(self, "_in_training", ())
        if not names:
            return self.module_
        module = apart(self.module_)
        for name in names:
            module.get_submodule(name).training = True
        return module

    def _outputs(self, X):
        check_is_fitted(self, "module_")
        X = validate_rows(self, rows_of(X), reset=False)
        outputs = self._raw_outputs(X).cpu().numpy()
        bad = np.flatnonzero(~np.isfinite(outputs).all(axis=1))
        if len(bad):
            warnings.warn(
                f"The outputs for rows {bad[:10].tolist()} of X are not finite: these "
                "rows are too large, or the module divides by zero. Look at them.",
                FaithfulnessWarning,
                stacklevel=4,
            )
        return outputs

    def _raw_outputs(self, X):
        """Return outputs (n, C) of validated rows, in the module's dtype."""
        like = next(self.module_.parameters())
        check_ids(self.module_, X, like.dtype)
        check_whole(self.module_, X)
        parts = []
        with torch.no_grad():
            for part in chunks(len(X), 8192):
                rows = as_tensor(X[part], like)
                try:
                    outputs = run_module(self.module_, rows)
                except IndexError as error:
                    raise unknown_numbers(rows, error) from error
                check_is_tensor(outputs)
                parts.append(as_rows(outputs, len(rows)))
                check_shape(parts[-1], len(rows), self.n_outputs_)
        return torch.cat(parts)
