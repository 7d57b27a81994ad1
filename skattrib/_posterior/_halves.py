"""Random halves of the units, and the models that are really trained on them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from threading import Lock
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray

from skattrib._posterior._gaussian import FEWEST_PAIRS, FloatArray
from skattrib._validation import memory_cap
from skattrib.engine._functional import chunks
from skattrib.engine._losses import OutcomeFunction
from skattrib.evaluation import make_weightings
from skattrib.evaluation._weightings import count_weightings
from skattrib.models._answers import LastAnswer
from skattrib.models._kept_models import CHUNK, RetrainedModels

#: Fewest halves that have a variance: two pairs.
FEWEST_HALVES = 4
# Fewest and most halves that are chosen, if nothing forbids it.
_FEWEST, _MOST = 64, 1024
#: Bytes that a unit of a half takes while a posterior is computed.
BYTES = 20
# A pickle has models of at most 1 / _SHARE of the memory cap.
_SHARE = 16


def count_halves(n_units: int) -> int:
    """Return how many halves there are, complements counted."""
    return count_weightings(n_units, 0.5, "antithetic")


def automatic_halves(n_units: int, wanted: int, n_bytes: float = 0) -> int:
    """Return how many halves to train for a wish; 0 if there would be too few.

    Parameters
    ----------
    n_units : int
        At most half of their halves are taken: others are left to compare with.
    wanted : int
    n_bytes : float
        Of a model; all of them fit the memory cap, and so does the posterior.
    """
    n_halves = min(max(wanted, _FEWEST), _MOST, count_halves(n_units) // 2)
    each = max(n_bytes, BYTES * n_units)
    n_halves = min(n_halves, int(memory_cap() / each))
    n_halves -= n_halves % 2
    return n_halves if n_halves >= 2 * FEWEST_PAIRS else 0


def draw_halves(n_units: int, n_halves: int, seed: int) -> NDArray[np.bool_]:
    """Return random halves (n_halves, n_units), each followed by its complement."""
    drawn = make_weightings(n_units, n_halves, kind="antithetic", random_state=seed)
    return drawn.astype(bool)


class TrainedHalves:
    """Models trained on halves of the units, and on all, as those of `score` are.

    Parameters
    ----------
    estimator : fitted estimator
        With int random states.
    X, y : array-like
        Training rows.
    present : ndarray of bool of shape (m, n_units)
        Which units each model is trained on.
    unit_of_row : ndarray of int of shape (n_samples,)
    row_weights : ndarray of shape (n_samples,)
        Of the rows, where all are present.
    n_seeds : int
        Seeds that outcomes are averaged over; each has a model for every half.
    n_bytes : float
        Of a model. If all are larger than the memory cap and there is a ``memory``,
        they are left there, and read for every query.
    memory, n_jobs, verbose
        As in `RetrainedModels`.

    Notes
    -----
    A pickle has the models if they take no more than a sixteenth of the memory cap.
    Otherwise they are trained again by the first query that needs them, or read from
    ``memory``: that gives the same numbers.
    """

    def __init__(
        self,
        estimator: Any,
        X: Any,
        y: Any,
        present: NDArray[np.bool_],
        *,
        unit_of_row: NDArray[np.intp],
        row_weights: FloatArray,
        n_seeds: int = 1,
        n_bytes: float = 0,
        memory: str | os.PathLike[str] | joblib.Memory | None = None,
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> None:
        self._estimator, self._rows = estimator, (X, y)
        self._present = np.vstack([present, np.ones_like(present[:1])])
        self._unit_of_row, self._row_weights = unit_of_row, row_weights
        self._n_seeds, self._n_bytes = n_seeds, n_bytes
        self._options: dict[str, Any] = {"memory": memory, "n_jobs": n_jobs}
        self._options["verbose"] = verbose
        self._lock, self._last = Lock(), LastAnswer()
        self._models: list[list[RetrainedModels]] = []
        size = n_bytes * len(self._present) * n_seeds
        self._kept = memory is None or size <= memory_cap()
        found = self._trained(reproduced=False)  # one by one where they are not kept
        if self._kept:
            self._models = list(found)
        else:
            for _ in found:
                pass

    def __getstate__(self) -> dict[str, Any]:
        state = {k: v for k, v in vars(self).items() if k not in ("_lock", "_last")}
        small = self._n_bytes * len(self._present) * self._n_seeds
        if small > memory_cap() / _SHARE:
            state["_models"] = []
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock, self._last = Lock(), LastAnswer()

    def _trained(self, reproduced: bool = True) -> Iterator[list[RetrainedModels]]:
        """Yield the models of all seeds; if not kept, of some halves at a time."""
        m = len(self._present)
        for part in chunks(m, m if self._kept else CHUNK):
            weights = self._present[part][:, self._unit_of_row] * self._row_weights
            found = []
            for number in range(self._n_seeds):
                models = RetrainedModels(
                    self._estimator,
                    *self._rows,
                    weights,
                    whole=self._row_weights,
                    seed_number=number,
                    reproduced=reproduced,
                    **self._options,
                )
                reproduced = True  # compared once, in fit
                found.append(models)
            yield found

    def _each(self) -> Iterator[list[RetrainedModels]]:
        if not self._kept:
            yield from self._trained()
            return
        with self._lock:
            if not self._models:  # a pickle had none
                self._models = list(self._trained())
        yield from self._models

    def outcomes(self, X: Any, y: Any, outcome: str | OutcomeFunction) -> FloatArray:
        """Return the outcomes (m + 1, n_queries), those of a set (m + 1, 1).

        The last are those with all units. They are remembered.
        """

        def measured() -> tuple[FloatArray]:
            found = [
                np.mean([models.outcomes(X, y, outcome) for models in seeds], axis=0)
                for seeds in self._each()
            ]
            return (np.concatenate(found),)

        return self._last((X, y, outcome), measured)[0]
