"""What the user passes to an attributor as rows and targets: tables, texts, sparse."""

from contextlib import contextmanager

import numpy as np
import pandas as pd
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import get_tags
from sklearn.utils.validation import check_consistent_length

from skattrib._tables import not_numbers, to_encode
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

    def _reads_texts(self, X):
        if self.estimator is None:
            return False
        return reads_texts(self.estimator, table=getattr(X, "ndim", 1) != 1)

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
        if hands_on(self.estimator):
            return True
        return bool(get_tags(as_model(self.estimator).estimator).input_tags.allow_nan)

    def _takes_words(self, X, reset):
        """Whether words in an array are passed on, as they are in a data frame."""
        if not reset:  # as in fit: numbers alone would else become floats
            return getattr(self.X_train_, "dtype", np.dtype(float)).kind in "OSU"
        if not isinstance(X, np.ndarray) or self.estimator is None:
            return False
        return "text" in not_numbers(X).values() and hands_on(self.estimator)

    def _validated(self, X, *y, several=False, table, reset=True):
        """Validate X, and y if given; a data frame stays one if ``table``."""
        if self._takes_texts or self._takes_completions:
            return self._validated_texts(X, *y, reset=reset)
        if self._reads_texts(X):
            return self._validated_documents(X, *y, several=several, reset=reset)
        if not (table and isinstance(X, pd.DataFrame)):
            options = {"multi_output": several} if y else {}
            if self._takes_sparse:
                options["accept_sparse"] = "csr"
            if self._takes_gaps:
                options["ensure_all_finite"] = "allow-nan"
            options["any_shape"] = self._takes_any_shape
            if self._takes_words(X, reset):
                options["dtype"] = None
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


def hands_on(estimator):
    """Say whether transformers see the rows first, that of a model within too.

    Whether they take gaps and words, the tags of a pipeline do not tell.
    """
    inner = estimator.estimator if isinstance(estimator, FrozenEstimator) else estimator
    parts = [inner]
    if hasattr(inner, "get_params") and takes_tables(estimator):
        parts += inner.get_params(deep=True).values()
    return any(isinstance(part, Pipeline) and len(part) > 1 for part in parts)


@contextmanager
def told_to_encode(attributor, X):
    """Say, of words that reach a model or a transformer of numbers, how to encode."""
    try:
        yield
    except ValueError as error:
        # as NumPy has it, or XGBoost and LightGBM
        of_words = any(part in str(error) for part in ("convert string", "dtypes"))
        odd = not_numbers(X) if of_words else {}
        if "text" not in odd.values():
            raise
        why = str(error).rstrip(".")
        raise ValueError(f"{why}. {to_encode(odd, attributor)}") from error
    except AttributeError as error:
        texts = getattr(getattr(X, "dtype", None), "kind", "") == "O"
        if "numpy.ndarray" not in str(error) or not texts:
            raise
        raise ValueError(
            f"{error}: texts reach the steps of a pipeline as an array of str, not as "
            "the Series that was passed. Make one in the function: "
            "pd.Series(texts).str.lower(), say."
        ) from error


def in_memory(rows):
    """Return a copy of rows or targets, that of a file mapped to memory in memory."""
    return np.array(rows) if isinstance(rows, np.memmap) else rows.copy()
