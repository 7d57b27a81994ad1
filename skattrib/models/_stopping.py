"""When the training of a network stops, and on which rows that is decided."""

from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, Dataset

__all__ = ["EarlyStopping"]


@dataclass(frozen=True, kw_only=True, eq=False)
class EarlyStopping:
    """Stop training where the loss on validation rows no longer falls.

    Parameters
    ----------
    patience : int, default=10
        Epochs without a smaller validation loss after which training stops.
    min_delta : float, default=0.0
        How much smaller the loss must be to count.
    validation_fraction : float, default=0.1
        Share of the rows of ``fit`` that are held out, if `validation_data` is None;
        of each class the same. They are not trained on, and their attributions are 0.
    validation_data : tuple of (X, y), Dataset or None, default=None
        Other rows to decide by; none of ``fit`` is held out then. They are as the
        network takes them: in a pipeline, transformed. A
        ``torch.utils.data.Dataset`` with a length, of pairs (x, y), stands for both.
    restore_best : bool, default=False
        Take the network of the epoch with the smallest loss, not the last one.
    redecide : bool, default=False
        Let each retraining stop by itself. By default all of them end where the fitted
        network did: what a row does to the moment of stopping is left out.
    n_epochs : int or None, default=None
        Epochs to train for, whatever the loss: a decision made before.
    held_out : array-like of int or None, default=None
        Positions of the rows of ``fit`` that are held out, in the place of those that
        `validation_fraction` draws.

    Raises
    ------
    ValueError
        If an option is out of range.

    See Also
    --------
    skattrib.TorchClassifier : Takes it as ``early_stopping``.

    Notes
    -----
    The moment of stopping is a whole number: its derivative in the weight of a row is
    zero or does not exist. Attributions are of the run as long as it was. With
    ``redecide=True`` half runs have the lengths that they choose, and so have the
    retrained ones that `score` compares with.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skattrib import EarlyStopping, TorchClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = TorchClassifier(early_stopping=EarlyStopping(patience=3), random_state=0)
    >>> clf = clf.fit(X, y)
    >>> clf.n_epochs_ <= clf.max_epochs
    True
    """

    patience: int = 10
    min_delta: float = 0.0
    validation_fraction: float = 0.1
    validation_data: Any = field(default=None, repr=False)
    restore_best: bool = False
    redecide: bool = False
    n_epochs: int | None = None
    held_out: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Raise ValueError if an option is out of range."""
        self._check("patience", Integral, 1)
        self._check("min_delta", Real, 0)
        if self.n_epochs is not None:
            self._check("n_epochs", Integral, 1)
        share: Any = self.validation_fraction
        if not isinstance(share, Real) or not 0 < float(share) < 1:
            raise ValueError(
                f"EarlyStopping: validation_fraction={share!r} must be between 0 and 1."
            )
        for name in ("restore_best", "redecide"):
            if not isinstance(value := getattr(self, name), bool | np.bool_):
                raise ValueError(
                    f"EarlyStopping: {name}={value!r} must be True or False."
                )
        data = self.validation_data
        if data is None or isinstance(data, Dataset):
            return
        pair = isinstance(data, tuple | list) and len(data) == 2
        if not pair or any(part is None for part in data):
            what = "a pair with None" if pair else type(data).__name__
            if isinstance(data, DataLoader):
                what += ": pass its dataset, loader.dataset"
            raise ValueError(
                "EarlyStopping: validation_data must be a pair (X, y), or a Dataset of "
                f"torch, got {what}."
            )

    def _check(self, name: str, kind: type, least: float) -> None:
        value: Any = getattr(self, name)
        known = isinstance(value, kind) and not isinstance(value, bool)
        if not known or not least <= float(value) < np.inf:
            whole = "a whole number" if kind is Integral else "a number"
            raise ValueError(
                f"EarlyStopping: {name}={value!r} must be {whole} of at least {least}."
            )

    def _rows_held_out(self, y: Any, classes: Any, seed: int) -> Any:
        """Return the positions of the rows of a fit that are not trained on.

        Parameters
        ----------
        y : ndarray of shape (n, ...)
            Targets.
        classes : bool
            Whether they are classes, of which the same share is held out.
        seed : int
        """
        n = len(y)
        if self.held_out is not None:
            return self._given_rows(n)
        if self.validation_data is not None:
            return np.zeros(0, dtype=np.intp)
        options = {"test_size": self.validation_fraction, "random_state": seed}
        if classes:
            options["stratify"] = y
        try:
            return np.sort(train_test_split(np.arange(n), **options)[1])
        except ValueError as error:
            raise ValueError(
                f"early_stopping cannot hold out {self.validation_fraction:.0%} of "
                f"{n} rows: {error} Pass other rows, early_stopping="
                "EarlyStopping(validation_data=(X, y)), or early_stopping=False."
            ) from error

    def _given_rows(self, n: int) -> Any:
        """Return `held_out`, sorted; raise ValueError if it cannot be."""
        rows = np.asarray(self.held_out)
        if rows.size and (rows.ndim != 1 or rows.dtype.kind not in "iu"):
            raise ValueError(
                "EarlyStopping: held_out must be positions of rows, whole numbers; got "
                f"an array of {rows.dtype}, shape {rows.shape}. Of a mask they are "
                "np.flatnonzero(mask)."
            )
        rows = np.unique(rows.astype(np.intp))
        outside = rows[(rows < 0) | (rows >= n)]
        if len(outside):
            raise ValueError(
                f"EarlyStopping: held_out has row {outside[-1]}, of {n} rows of X."
            )
        undecided = self.validation_data is None and self.n_epochs is None
        if len(rows) == n or (undecided and not len(rows)):
            raise ValueError(
                f"EarlyStopping: held_out has {len(rows)} of {n} rows of X; some must "
                "be held out, and some be left to train on."
            )
        return rows

    def _kept(self, n_epochs: int, held_out: Any) -> "EarlyStopping":
        """Return the rule that other trainings of a fitted network follow."""
        if self.redecide:
            return replace(self, held_out=held_out)
        return replace(self, n_epochs=n_epochs, held_out=held_out)
