"""Which rows a DataLoader of torch takes, noted while it takes them."""

from collections import deque

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, Subset

from skattrib.exceptions import TrajectoryError


class RowOrder:
    """The rows of the minibatches that a loader gives, in their order.

    A loader may take rows ahead of the loop. Each pass over it begins anew.
    """

    def __init__(self):
        self._batches = deque()

    def next(self):
        """Return the rows of the next minibatch."""
        if not self._batches:
            raise TrajectoryError(
                "A minibatch came from no DataLoader that is watched: the rows of this "
                "step are not known. Let steps learn from the minibatches that the "
                "loader gives, from each once."
            )
        return self._batches.popleft()

    def watch(self, loader, origin):
        """Let a loader note its rows here; return what it was, for `unwatch`.

        Parameters
        ----------
        loader : DataLoader
            Changes its class, and nothing that it draws.
        origin : str
            Where it came from, for errors.

        Raises
        ------
        TrajectoryError
            If its rows have no numbers.
        """
        if not isinstance(loader, DataLoader):
            raise TrajectoryError(
                f"{origin} gives a {type(loader).__name__}: which rows a step takes is "
                "known of torch's DataLoader only. Use that, or record a loop of your "
                "own by record_training."
            )
        if isinstance(loader.dataset, IterableDataset):
            raise TrajectoryError(
                f"{origin} reads a {type(loader.dataset).__name__}, an IterableDataset "
                "whose rows have no numbers: use a data set with __len__ and "
                "__getitem__, as TensorDataset(X, y)."
            )
        kind, batches, places = type(loader), self._batches, _places(loader.dataset)

        class Noting(kind):
            """Notes the indices that its sampler gives."""

            @property
            def _index_sampler(self):
                return _Noted(super()._index_sampler, batches, places)

        loader.__class__ = Noting
        return loader, kind


def unwatch(watched):
    """Give loaders back the classes that they had before `RowOrder.watch`."""
    for loader, kind in watched:
        loader.__class__ = kind


class _Noted:
    """A sampler whose indices are noted, as rows of X."""

    def __init__(self, sampler, batches, places):
        self._sampler, self._batches, self._places = sampler, batches, places

    def __len__(self):
        return len(self._sampler)

    def __iter__(self):
        self._batches.clear()  # what a pass that was cut short left
        for indices in self._sampler:
            rows = np.atleast_1d(np.asarray(indices, dtype=np.int64))
            self._batches.append(rows if self._places is None else self._places[rows])
            yield indices


def _places(dataset):
    """Return the rows of X that a part of a data set has; None for all."""
    places = None
    while isinstance(dataset, Subset):
        own = np.asarray(dataset.indices)
        places = own if places is None else own[places]
        dataset = dataset.dataset
    return places
