"""Which derivatives of runs to begin with: exact, and damped and averaged ones as well.

Where training is at the edge of stability, derivatives of single runs are far too
rough, and an average over them is mostly noise. Derivatives of a damped adjoint, and of
the run's averaged weights, are smoother. How well the halves of the runs agree tells
whether they are needed, and how much each counts, before anything is compared with
retraining.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from skattrib._posterior._means import FloatArray, PriorMeans
from skattrib.influence._aggregation import aggregate, exploding

#: Training rows whose attributions are compared between halves of the runs.
N_ROWS = 12
#: Agreements below which runs disagree, and below which training is chaotic.
DISAGREE, CHAOTIC = 0.5, 0.15
# From here on the exact derivative is enough: of halves of the runs that there are, as
# the average of a few is noisy though many would agree.
_CALM = 0.75
# The average of fewer is worse than a mixture where they agree, too; measured by
# benchmarks.deep.few_runs.
_FEWEST_RUNS = 8
# Runs in each half that an agreement is brought to.
_RUNS_PER_HALF = 8
# Agreement that a prior mean has at least.
_LEAST = 0.02
# Fewest entries that are correlated between halves of the runs.
_FEWEST_UNITS = 5
# Deviations of runs are counted up to so many standard ones, where they are correlated.
_CLIPPED = 2.0
# States of a run, as of one query: it explodes, or is not finite.
EXPLODES, NOT_FINITE = 1, 2


@dataclass(frozen=True)
class Derivative:
    """A way to differentiate runs.

    Attributes
    ----------
    curvature : float
        Factor of the curvature in each step of the adjoint.
    floor : float
        Of the divisor of the optimizer's steps, see `Optimizer.pullback`.
    decay : float or None
        Of an exponential average over the states of a run, whose outputs are
        differentiated in the place of those at its end. The outcome has the slope in
        the outputs that it has at the end: an average may miss a number on the other
        side, and the derivative of its own error would have the wrong sign.
    """

    curvature: float = 1.0
    floor: float = 0.0
    decay: float | None = None


#: The derivative itself; of a damped adjoint; and that of the run's averaged weights.
EXACT, DAMPED = Derivative(), Derivative(0.8, 1.0)
AVERAGED = Derivative(0.8, 1.0, 0.99)


def chosen(
    agreement: float | None, n_runs: int, n_seeds: int = 1, averages: bool = False
) -> tuple[Derivative, ...]:
    """Return the derivatives to begin with, from the agreement of exact ones.

    ``averages`` says that the model has averaged weights anyway.
    """
    if agreement is None:
        return (EXACT,)
    in_hand = _prolonged(agreement, 1 / _times_longer(n_runs, n_seeds))
    if n_runs >= _FEWEST_RUNS and in_hand >= _CALM:
        return (EXACT,)
    return (EXACT, DAMPED) if averages else (EXACT, DAMPED, AVERAGED)


# -------------------------------------------------------------------- agreement
def halves_of_runs(n_runs: int, n_seeds: int = 1) -> list[NDArray[np.intp]]:
    """Return two halves of the runs of each seed; complementary runs stay together."""
    each = n_runs // n_seeds
    half = each // 2
    half -= half % 2 if half > 1 else 0
    runs = np.arange(n_runs).reshape(n_seeds, each)
    return [runs[:, :half].ravel(), runs[:, half:].ravel()]


def row_agreement(
    each_run: NDArray[np.floating], own: NDArray[np.intp], n_seeds: int = 1
) -> FloatArray:
    """Return correlations (q,) between averages over halves of the runs.

    NaN for a query that nothing has an effect on.

    Parameters
    ----------
    each_run : ndarray of shape (n_runs, q, n_units)
    own : ndarray of int of shape (q,)
        Unit of each query, a training row: its own entry is left out.
    n_seeds : int
        Which have as many runs each.
    """
    means = []
    for runs in halves_of_runs(len(each_run), n_seeds):
        how = "trimmed_mean" if len(runs) >= _RUNS_PER_HALF else "mean"
        some = np.asarray(each_run[runs], dtype=float)
        means.append(aggregate(some, how, exploding(some))[0])
    found = np.zeros(len(own))
    for i, pair in enumerate(zip(*means, strict=True)):
        first, second = (np.delete(mean, own[i]) for mean in pair)
        with np.errstate(all="ignore"):  # what is not finite does not agree
            first, second = first - first.mean(), second - second.mean()
            sizes = np.linalg.norm(first) * np.linalg.norm(second)
            same = np.nan_to_num(first @ second / sizes)
        found[i] = np.nan if sizes == 0 else same
    return found


def agreement_of(
    correlations: FloatArray, n_units: int, n_runs: int, n_seeds: int = 1
) -> float | None:
    """Return the mean of `row_agreement`, brought to eight runs in each half.

    More runs are not brought down: their average is as good as it is. None where there
    is one run, where there are so few units that correlations say nothing, and where no
    query has effects.
    """
    known = correlations[~np.isnan(correlations)]
    if n_runs < 2 * n_seeds or n_units <= _FEWEST_UNITS or not len(known):
        return None
    found, longer = float(np.mean(known)), _times_longer(n_runs, n_seeds)
    return _prolonged(max(found, 0.0), longer) if longer > 1 else found


def _times_longer(n_runs: int, n_seeds: int) -> float:
    """Return how many times as many runs eight in each half are, at least 1."""
    sizes = [len(half) for half in halves_of_runs(n_runs, n_seeds)]
    return max(1.0, _RUNS_PER_HALF / (sizes[0] * sizes[1]) ** 0.5)


def _prolonged(agreement: float, times: float) -> float:
    """Return the agreement of so many times as many runs, by Spearman and Brown."""
    return times * agreement / (1 + (times - 1) * agreement)


# ---------------------------------------------------------------------- weights
@dataclass(frozen=True)
class Weighed:
    """Derivatives to begin with, and how their halves agree.

    Attributes
    ----------
    derivatives : tuple of Derivative
    agreements : tuple of float
        As many; of a single one it does not matter.
    """

    derivatives: tuple[Derivative, ...] = (EXACT,)
    agreements: tuple[float, ...] = (1.0,)

    @property
    def weights(self) -> FloatArray:
        """Shares of the derivatives, by their agreement."""
        found = np.maximum(self.agreements, _LEAST)
        return found / found.sum()

    @property
    def _sized(self) -> int:
        """Position of that whose size the others are brought to."""
        fit = np.flatnonzero(np.array(self.agreements) >= _CALM)
        return int(fit[0]) if len(fit) else len(self.agreements) - 1

    def means(self, found: Averages, n_units: int | None = None) -> PriorMeans:
        """Return averages as prior means, all of the size of one, and centred.

        That is the first whose halves agree, else the last. One that is not finite for
        a query is left out there. Only the first ``n_units`` entries have a size.
        """
        means = found.means - found.means[..., :n_units].mean(axis=2, keepdims=True)
        some = means[..., :n_units]
        with np.errstate(all="ignore"):  # squares of large numbers may be infinite
            largest = np.abs(some).max(axis=2, initial=np.finfo(some.dtype).tiny)
            sizes = largest * np.linalg.norm(some / largest[..., None], axis=2)
        usable = np.isfinite(sizes) & (sizes > 0)
        errors = np.zeros_like(means) if found.errors is None else found.errors
        usable &= np.isfinite(errors).all(axis=2)
        order = np.r_[self._sized, np.arange(len(self.agreements))[::-1]]
        sized = order[usable[:, order].argmax(axis=1)]
        aim = np.take_along_axis(sizes, sized[:, None], axis=1)
        scales = np.where(usable, aim / np.where(usable, sizes, 1.0), 0.0)
        weights = np.where(usable, self.weights, 0.0)
        none = ~usable.any(axis=1)
        weights[none] = self.weights
        scales[none] = 1.0  # all are 0, or not finite
        weights /= weights.sum(axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):
            scaled = [
                np.where(scales[..., None] > 0, scales[..., None] * values, 0.0)
                for values in (means, errors)
            ]
        return PriorMeans(scaled[0], scaled[1], found.correlations, weights)


# --------------------------------------------------------------------- averages
class Averages(NamedTuple):
    """Attributions by K derivatives, averaged over the runs.

    Attributes
    ----------
    means : ndarray of shape (q, K, n_units)
    errors : ndarray of shape (q, K, n_units), or None
        None of a single run.
    correlations : ndarray of shape (q, K, K)
        Of the errors.
    state : ndarray of int of shape (n_runs, q)
        Of each run in the best of the derivatives: 0, `EXPLODES` or `NOT_FINITE`.
    """

    means: NDArray[np.floating]
    errors: NDArray[np.floating] | None
    correlations: FloatArray
    state: NDArray[np.intp]

    @property
    def single(self) -> bool:
        """Whether they are by one derivative."""
        return self.means.shape[1] == 1

    def only(self) -> tuple[NDArray[np.floating], NDArray[np.floating] | None]:
        """Return the means (q, n_units), and errors or None, by the first of them."""
        return self.means[:, 0], None if self.errors is None else self.errors[:, 0]

    def packed(self) -> FloatArray:
        """Return a row of numbers for each query."""
        n_queries = len(self.means)
        errors = (
            np.full_like(self.means, np.nan) if self.errors is None else self.errors
        )
        parts = self.means, errors, self.correlations
        rows = [part.reshape(n_queries, -1) for part in parts]
        return np.hstack([*rows, self.state.T])

    @classmethod
    def unpacked(cls, rows: FloatArray, n_means: int, n_runs: int) -> Averages:
        """Return what `packed` was of."""
        n_queries, k = len(rows), n_means
        n_units = (rows.shape[1] - n_runs - k * k) // (2 * k)
        ends = np.cumsum([k * n_units, k * n_units, k * k])
        means, errors, correlations, state = np.split(rows, ends, axis=1)
        shape = n_queries, k, n_units
        return cls(
            means.reshape(shape),
            errors.reshape(shape) if n_runs > 1 else None,
            correlations.reshape(n_queries, k, k),
            state.T.astype(int),
        )


def averaged(each_run: NDArray[np.floating], how: str) -> Averages:
    """Average attributions (K, n_runs, q, n_units) over runs.

    Parameters
    ----------
    each_run : ndarray
        By K derivatives.
    how : str
        One of `AGGREGATIONS`.
    """
    found, states = [], []
    for one in each_run:
        exploded = exploding(one)
        finite = np.isfinite(one).all(axis=2)
        states.append(np.where(finite, exploded * EXPLODES, NOT_FINITE))
        found.append(aggregate(one, how, exploded))
    means, errors = np.stack([mean for mean, _ in found], axis=1), None
    if len(each_run[0]) > 1:
        errors = np.stack([error for _, error in found], axis=1)
    together = _correlations(each_run, means, errors)
    return Averages(means, errors, together, np.min(states, axis=0))


def _correlations(
    each_run: NDArray[np.floating], means: FloatArray, errors: FloatArray | None
) -> FloatArray:
    """Return correlations (q, K, K) of errors, from deviations of runs."""
    n_means, n_runs, n_queries, _ = each_run.shape
    found = np.tile(np.eye(n_means), (n_queries, 1, 1))
    if n_means == 1 or errors is None:
        return found
    for i in range(n_queries):  # one at a time: all take much memory
        with np.errstate(all="ignore"):  # what is not finite says nothing
            away = each_run[:, :, i] - means[i][:, None]
            away = away / (errors[i][:, None] * n_runs**0.5)
        away = np.nan_to_num(away, nan=0.0, posinf=0.0, neginf=0.0)
        flat = away.clip(-_CLIPPED, _CLIPPED).reshape(n_means, -1)
        squares = flat @ flat.T
        sizes = np.sqrt(np.diag(squares))
        usual = np.outer(sizes, sizes)
        found[i] = np.where(
            usual > 0, squares / np.where(usual > 0, usual, 1.0), found[i]
        )
        np.fill_diagonal(found[i], 1.0)
    return found
