"""What the user passes to an attributor as rows and targets: tables, texts, sparse."""

import numpy as np
import pandas as pd
from sklearn.utils import get_tags
from sklearn.utils.validation import check_consistent_length

from skattrib._validation import (
    check_completions,
    check_texts,
    check_y,
    validate_data,
)
from skattrib.models._as_model import as_model
from skattrib.models._parts import Parts, reads_texts, takes_completions
from skattrib.models._rows import validate_rows


class ValidatedInputs:
    """Methods of an attributor that check rows, by what its estimator takes.

    It has the parameter ``estimator``.
    """

    @property
    def _takes_texts(self):
        return self.estimator is not None and as_model(self.estimator).takes_texts

    @property
    def _reads_texts(self):
        return self.estimator is not None and reads_texts(self.estimator)

    @property
    def _takes_completions(self):
        """Whether targets are texts, of which tokens are made."""
        return self.estimator is not None and takes_completions(self.estimator)

    @property
    def _takes_sparse(self):
        """Whether sparse rows are passed on as they are."""
        if self.estimator is None:
            return False
        whole = Parts(self.estimator).has_transformers
        return whole or as_model(self.estimator).takes_sparse

    @property
    def _takes_any_shape(self):
        """Whether rows may have several axes, and whole numbers are passed on."""
        return self.estimator is not None and as_model(self.estimator).takes_any_shape

    @property
    def _takes_gaps(self):
        """Whether NaN in arrays is passed on, as it is in a data frame."""
        if self.estimator is None or not takes_tables(self.estimator):
            return False
        return bool(get_tags(self.estimator).input_tags.allow_nan)

    def _validated(self, X, *y, several=False, table, reset=True):
        """Validate X, and y if given; a data frame stays one if ``table``."""
        if self._takes_texts or self._takes_completions:
            return self._validated_texts(X, *y, reset=reset)
        if self._reads_texts:
            return self._validated_documents(X, *y, several=several, reset=reset)
        if not (table and isinstance(X, pd.DataFrame)):
            options = {"multi_output": several} if y else {}
            if self._takes_sparse:
                options["accept_sparse"] = "csr"
            if self._takes_gaps:
                options["ensure_all_finite"] = "allow-nan"
            options["any_shape"] = self._takes_any_shape
            return validate_rows(self, X, *y, reset=reset, **options)
        if reset:  # of an earlier fit to an array
            vars(self).pop("_row_shape", None)
        # which says, of y=None, that it is needed
        validate_data(self, X, *y, skip_check_array=True, reset=reset)
        if not y:
            return X
        y = check_y(*y, multi_output=several, estimator=self)
        check_consistent_length(X, y)
        return X, y

    def _validated_documents(self, X, *y, several, reset):
        """Validate texts that a transformer turns into numbers."""
        if reset:
            self._forget_table()
        X = check_texts(X, "X")
        if not y:
            return X
        y = check_y(*y, multi_output=several, estimator=self)
        check_consistent_length(X, y)
        return X, y

    def _forget_table(self):
        """Forget what was learnt of the columns of an earlier fit."""
        for name in ("n_features_in_", "feature_names_in_", "_row_shape"):
            vars(self).pop(name, None)

    def _validated_texts(self, X, *y, reset):
        """Validate prompts, None for no prompts at all, and completions if given."""
        if reset:
            self._forget_table()
        return check_completions(X, *y) if y else check_texts(X, "X", optional=True)


def takes_tables(estimator):
    """Say whether a data frame is passed unchanged to transformers or the model."""
    return Parts(estimator).has_transformers or as_model(estimator).takes_tables


def in_memory(rows):
    """Return a copy of rows or targets, that of a file mapped to memory in memory."""
    return np.array(rows) if isinstance(rows, np.memmap) else rows.copy()
