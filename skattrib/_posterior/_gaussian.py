"""The Gaussian posterior of attributions, given outcomes of retrained halves.

On a random half w of the units an outcome is mean + Σ z b + interactions, z = w - 1/2.
Half the difference to the complement, D, has no orders that are even. What is left of
it after a slope s times the attributions, r = D - s z·a, has variance O, of which a
share φ is additive: the errors of the attributions. So errors have a size that is
known, and each difference tells something of them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, eigh, solve_triangular
from scipy.special import digamma, logit, polygamma
from scipy.stats import t

from skattrib._posterior._means import FloatArray, PriorMeans, QueryMeans

#: Fewest pairs of halves that a posterior is worth having from.
FEWEST_PAIRS = 8
# Of the variance of an error, the part that goes with the squared attribution.
_BY_SIZE = 0.2
# The part that units of one class have in common.
_IN_CLASS = 0.05
# Errors have the tails of Student's t with so many degrees of freedom.
_TAILS = 4
# Additive shares that are weighed.
_SHARES = np.linspace(0.05, 0.975, 38)


@dataclass(frozen=True)
class Knowledge:
    """What is known of an attributor's errors, before anything is retrained.

    Attributes
    ----------
    slope : tuple of float
        Mean and standard deviation of the slope of true effects on attributions.
    level : tuple of float or None
        Median, and standard deviation of the logarithm, of the variance O over a
        quarter of the sum of squared standard errors; None where these say nothing.
    share : float
        Additive share φ of O.
    spread : float or None
        Standard deviation of the logit of φ, if the halves of each query are to tell.
    """

    slope: tuple[float, float] = (1.0, 2.0)
    level: tuple[float, float] | None = None
    share: float = 0.55
    spread: float | None = None

    def told_share(self, r: FloatArray, kernel: FloatArray) -> float:
        """Return the additive share of what is left of differences, r."""
        if self.spread is None:
            return self.share
        known = share_prior(self.share, self.spread) + share_likelihood(r, kernel)
        return mean_share(known)


def half_width(std: NDArray[np.floating], level: float = 0.95) -> NDArray[np.floating]:
    """Return half the width of intervals around the mean of a posterior.

    Parameters
    ----------
    std : ndarray
        Standard deviations.
    level : float
        Chance that the truth is inside: at 0.95 it is 1.96 standard deviations, at 0.68
        0.80, as tails are those of Student's t with 4 degrees of freedom.
    """
    quantile = t(_TAILS).ppf((1 + level) / 2) / t(_TAILS).std()
    return cast(NDArray[np.floating], quantile * std)


def intervals(
    mean: NDArray[np.floating], std: NDArray[np.floating]
) -> dict[str, NDArray[np.floating]]:
    """Return the ends of 95 % intervals, by the names of their columns."""
    half = half_width(std)
    return {"lower_95": mean - half, "upper_95": mean + half}


class Halves:
    """Random halves of the units, each followed by its complement.

    Parameters
    ----------
    present : ndarray of shape (2 P, n_units)
        Which units are in each.
    classes : ndarray of int of shape (n_units,) or None
        Class of each unit, of which errors have a part in common.
    grouped : bool
        Whether units are groups of rows, whose errors differ less in size.

    Attributes
    ----------
    differences : ndarray of shape (P, n_units)
        Weights of the first of each pair, minus 1/2.
    """

    def __init__(
        self,
        present: NDArray[np.bool_],
        classes: NDArray[np.intp] | None = None,
        grouped: bool = False,
    ) -> None:
        self.grouped = grouped
        self.differences = present[::2].astype(float) - 0.5
        self.n_units = present.shape[1]
        self._members = np.empty((self.n_units, 0))
        if classes is not None:
            codes = np.arange(classes.max() + 1)
            self._members = (classes[:, None] == codes).astype(float)
        self._by_class = self.differences @ self._members
        self._common = self._by_class @ self._members.T

    def some(self, which: NDArray[np.bool_]) -> Halves:
        """Return some of the pairs."""
        new = copy.copy(self)
        for name in ("differences", "_by_class", "_common"):
            setattr(new, name, getattr(self, name)[which])
        return new

    def prior(self, profile: FloatArray) -> ErrorPrior:
        """Return what is known of errors of relative variances (n_units,)."""
        share = _IN_CLASS if self._members.shape[1] else 0.0
        scale = 4 / self.n_units
        return ErrorPrior(self, scale * (1 - share) * profile, scale * share)


@dataclass(frozen=True)
class ErrorPrior:
    """Prior covariances of additive errors; of what they add to halves it is about 1.

    Attributes
    ----------
    halves : Halves
    alone : ndarray of shape (n_units,)
        Variance that a unit has for itself.
    common : float
        That which all of a class have together.
    """

    halves: Halves
    alone: FloatArray
    common: float

    def kernel(self) -> FloatArray:
        """Return covariances (P, P) of what errors add to pairs."""
        halves = self.halves
        scaled = halves.differences * np.sqrt(self.alone)
        by_class = halves._by_class
        # products of equal factors take half the work
        found: FloatArray = scaled @ scaled.T
        found += self.common * (by_class @ by_class.T)
        return found

    def with_errors(self) -> FloatArray:
        """Return covariances (P, n_units) of that with the errors themselves."""
        found: FloatArray = self.halves.differences * self.alone
        if self.common:
            found += self.common * self.halves._common
        return found

    def variances(self) -> FloatArray:
        """Return variances (n_units,) of errors."""
        return self.alone + self.common

    def of(self, around: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return covariances (k, P) of what errors add to others, and variances (k,).

        ``around`` (k, n_units) are weights minus 1/2.
        """
        halves = self.halves
        by_class = around @ halves._members
        covariances = (around * self.alone) @ halves.differences.T
        covariances += self.common * (by_class @ halves._by_class.T)
        variances = np.square(around) @ self.alone
        return covariances, variances + self.common * np.square(by_class).sum(axis=1)


@dataclass(frozen=True)
class QueryPosterior:
    """What retrained halves say of the attributions of one query.

    Attributes
    ----------
    mean, std : ndarray of shape (n_units,)
        Attributions, centred, and their standard deviations. Beside a prediction of
        outcomes: what is added to it.
    slope : float
        Of true effects on the attributions that it began with; not above 0 where these
        are worthless, and are not used.
    variance : float
        Of half the difference between complementary halves, after the slope.
    share : float
        Additive part of it.
    middle, even : float
        Mean outcome of the halves; variance of the means of pairs.
    growth : float
        Outcome with all units minus that mean.
    n_pairs : int
    residuals : ndarray of shape (P,)
        What the slope leaves of the differences.
    prior : ErrorPrior
        Of the errors, up to ``variance`` and ``share``.
    """

    mean: FloatArray
    std: FloatArray
    slope: float
    variance: float
    share: float
    middle: float
    even: float
    growth: float
    n_pairs: int
    residuals: FloatArray
    prior: ErrorPrior
    _factor: FloatArray
    #: Mean prediction of the halves; None where they were compared with none.
    _beside: float | None = None

    def predicted(
        self, weights: FloatArray, beside: FloatArray | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """Return predicted outcomes (k,) for weights (k, n_units), and deviations.

        Interactions, which no attribution has, are in the deviations. ``beside`` (k,)
        are the predictions that halves were compared with; not used if they were not.
        """
        around, part = _like_halves(weights)
        outcomes = self.outcomes(weights, beside)
        # that all are there leaves nothing open, but one unit less much of what is open
        # where halves are
        left_out = np.maximum(part, 1 / part) - 1  # or how much more than all there is
        open_ = np.where(left_out < 1, np.sqrt(left_out), left_out**1.5)
        beyond = self.variance * (1 - self.share) + self.even
        variance = self._additive(around) + open_ * beyond + self.even / self.n_pairs
        return outcomes, np.sqrt(np.maximum(variance, 0))

    def outcomes(
        self, weights: FloatArray, beside: FloatArray | None = None
    ) -> FloatArray:
        """Return the first of `predicted`."""
        around, part = _like_halves(weights)
        found: FloatArray = self.middle + around @ self.mean
        if beside is not None and self._beside is not None:
            found += max(self.slope, 0.0) * (beside - self._beside)
        # more is learnt from more units, as the logarithm of their number
        return found + self.growth * np.log2(2 * part)

    def differences(
        self, around: FloatArray, beside: FloatArray | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """Return half differences (k,) of halves to complements, and their deviations.

        ``around`` (k, n_units) are weights minus 1/2, ``beside`` (k,) half differences
        of predictions.
        """
        variance = self._additive(around) + self.variance * (1 - self.share)
        found: FloatArray = around @ self.mean
        if beside is not None and self._beside is not None:
            found = found + max(self.slope, 0.0) * beside
        return found, np.sqrt(np.maximum(variance, 0))

    def _additive(self, around: FloatArray) -> FloatArray:
        """Return the variances (k,) of what additive errors add."""
        with_pairs, additive = self.prior.of(around)
        known = solve_triangular(self._factor, with_pairs.T, lower=True)
        additive -= self.share * np.square(known).sum(axis=0)
        return self.variance * self.share * additive


def _like_halves(weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return weights (k, n_units) around 1/2 as if of halves, and the parts there (k,).

    Training looks at shares: one of a quarter of the units weighs twice as much in it
    as one of a half, and where all are there, each has its mean share in halves.
    """
    part = np.maximum(weights.mean(axis=1), 1 / weights.shape[1])
    return weights / (2 * part)[:, None] - 0.5, part


def query_posterior(
    attributions: FloatArray | QueryMeans,
    errors: FloatArray | None,
    halves: Halves,
    outcomes: FloatArray,
    knowledge: Knowledge,
    share: float | None = None,
    whole: float = float("nan"),
    beside: FloatArray | None = None,
) -> QueryPosterior | None:
    """Return the posterior of one query; None if too few outcomes are finite.

    Parameters
    ----------
    attributions : ndarray of shape (n_units,), or QueryMeans
        What to begin with. Not finite: nothing. Several means bring their errors, and
        their slopes are drawn to their weights, whatever is known of a slope.
    errors : ndarray of shape (n_units,) or None
        Their standard errors, of which only the relation to each other, and for a prior
        of the level their size, counts.
    halves : Halves
    outcomes : ndarray of shape (2 P,)
        Of the models retrained on them; pairs with one that is not finite are left out.
    knowledge : Knowledge
    share : float or None
        In the place of that of ``knowledge``.
    whole : float
        Outcome with all units. Not finite: as that of halves.
    beside : ndarray of shape (2 P,), or (2 P + 1,), or None
        Predictions of the same outcomes, as of refits; the last is of that with all
        units. Halves then correct these, not the sums of ``attributions``, which say
        of errors where they are large.
    """
    first, second = outcomes[::2], outcomes[1::2]
    finite = np.isfinite(first) & np.isfinite(second)
    n_pairs = int(finite.sum())
    if n_pairs < 2:
        return None
    if beside is not None and not np.isfinite(beside[: len(outcomes)]).all():
        beside = None  # sums are finite
    if n_pairs < len(finite):
        halves, first, second = halves.some(finite), first[finite], second[finite]
    D, middles = (first - second) / 2, (first + second) / 2
    a, errors, slope = _begun(attributions, errors, halves, D)
    x, centre = halves.differences @ a, None
    if beside is not None:
        x, centre = _shown(beside[: len(outcomes)], finite)
    if slope is None:
        used = max(slope := drawn_slope(x, D, *knowledge.slope), 0.0)
    else:
        used = float(slope > 0)
    r = D - used * x
    variance = _level(r, errors, knowledge.level)
    if errors is not None and halves.grouped:
        errors = np.sqrt(errors)
    prior = halves.prior(_profile(a if used else np.zeros_like(a), errors))
    kernel = prior.kernel()
    phi = knowledge.told_share(r, kernel) if share is None else share
    middle, factor = float(middles.mean()), _factor(kernel, phi)
    mean, left = _told(prior, factor, r, phi)
    growth = whole - middle if np.isfinite(whole) else 0.0
    if beside is None or centre is None:
        mean += used * a
    elif np.isfinite(whole) and len(beside) > len(outcomes):
        growth -= used * (beside[-1] - centre) if np.isfinite(beside[-1]) else 0.0
    std = np.sqrt(np.maximum(phi * variance * left, 0))
    return QueryPosterior(
        mean - mean.mean(),
        std,
        slope,
        variance,
        phi,
        middle,
        float(middles.var(ddof=1)),
        growth,
        n_pairs,
        r,
        prior,
        factor,
        centre,
    )


def share_prior(share: float, spread: float) -> FloatArray:
    """Return log densities of the shares that are weighed."""
    away = (logit(_SHARES) - logit(share)) / spread
    return cast(FloatArray, -0.5 * np.square(away) - np.log(_SHARES * (1 - _SHARES)))


def share_likelihood(r: FloatArray, kernel: FloatArray) -> FloatArray:
    """Return the log likelihood of these shares by what is left of differences.

    Errors that are additive make differences of halves covary as the halves do.
    """
    if not r.any():
        return np.zeros_like(_SHARES)
    values, vectors = eigh(kernel)
    squares = np.square(vectors.T @ r)
    scales = _SHARES[:, None] * values + 1 - _SHARES[:, None]
    # up to a scale, which is profiled out
    found = np.log(scales).sum(axis=1) + len(r) * np.log(
        (squares / scales).mean(axis=1)
    )
    return cast(FloatArray, -0.5 * found)


def mean_share(known: FloatArray) -> float:
    """Return the mean share by its log densities."""
    weights = np.exp(known - known.max())
    return float(weights @ _SHARES / weights.sum())


def _begun(
    attributions: FloatArray | QueryMeans,
    errors: FloatArray | None,
    halves: Halves,
    differences: FloatArray,
) -> tuple[FloatArray, FloatArray | None, float | None]:
    """Return centred attributions, their errors, and the slope if it is in them."""
    slope = None
    if isinstance(attributions, QueryMeans):
        attributions, errors, slope = attributions.told(halves.differences, differences)
    if not np.isfinite(attributions).all():
        return np.zeros(halves.n_units), None, None
    return attributions - attributions.mean(), errors, slope


def _factor(kernel: FloatArray, phi: float) -> FloatArray:
    """Return the lower factor of covariances, of which a share φ is additive."""
    mixed = phi * kernel
    mixed.flat[:: len(mixed) + 1] += 1 - phi
    return np.tril(cho_factor(mixed, lower=True, check_finite=False)[0])


def _told(
    prior: ErrorPrior, factor: FloatArray, r: FloatArray, phi: float
) -> tuple[FloatArray, FloatArray]:
    """Return mean errors (n_units,), and variances that are left of their prior."""
    with_errors = prior.with_errors()
    mean = phi * (cho_solve((factor, True), r) @ with_errors)
    known = solve_triangular(factor, with_errors, lower=True, check_finite=False)
    return mean, prior.variances() - phi * np.square(known).sum(axis=0)


def _shown(beside: FloatArray, finite: NDArray[np.bool_]) -> tuple[FloatArray, float]:
    """Return half differences (P,) of predictions of pairs, and their mean."""
    pairs = beside.reshape(-1, 2)[finite]
    return (pairs[:, 0] - pairs[:, 1]) / 2, float(pairs.mean())


def drawn_slope(x: FloatArray, d: FloatArray, mean: float, sd: float) -> float:
    """Return the slope of d on x, drawn to its prior."""
    squares = float(x @ x)
    if squares < np.finfo(float).tiny:
        return mean
    own = float(x @ d) / squares
    noise = float(np.square(d - own * x).sum()) / (len(x) - 1) / squares
    weight = sd**2 / (sd**2 + noise)
    return weight * own + (1 - weight) * mean


def _level(
    r: FloatArray, errors: FloatArray | None, level: tuple[float, float] | None
) -> float:
    """Return the variance of residuals, drawn to what standard errors suggest."""
    squares = float(r @ r)
    if squares < np.finfo(float).tiny:
        return 0.0
    half = (len(r) - 1) / 2
    # the logarithm of a chi-squared number: its mean and variance
    log = np.log(squares / (len(r) - 1)) - digamma(half) + np.log(half)
    noise = float(polygamma(1, half))
    spread = 0.0 if errors is None else float(np.square(errors).sum()) / 4
    if level is None or spread < np.finfo(float).tiny or not np.isfinite(spread):
        return float(np.exp(log + noise / 2))
    kept = level[1] ** 2 / (level[1] ** 2 + noise)
    prior = np.log(level[0] * spread)
    return float(np.exp(prior + kept * (log - prior) + kept * noise / 2))


def _profile(a: FloatArray, errors: FloatArray | None) -> FloatArray:
    """Return the relative variances (n_units,) of errors; their mean is 1."""
    spread = np.ones_like(a)
    if errors is not None and np.isfinite(errors).all() and errors.any():
        spread = errors / errors.mean()
    squares = np.square(a)
    if not squares.any():
        return spread
    return (1 - _BY_SIZE) * spread + _BY_SIZE * squares / squares.mean()


@dataclass(frozen=True)
class Posterior:
    """What retrained halves say of the attributions of several queries.

    Attributes
    ----------
    mean, std : ndarray of shape (n_queries, n_units)
        NaN for a query without outcomes that are finite.
    slope, variance, share : ndarray of shape (n_queries,)
        As in `QueryPosterior`.
    """

    mean: FloatArray
    std: FloatArray
    slope: FloatArray
    variance: FloatArray
    share: FloatArray


def query_posteriors(
    attributions: FloatArray | PriorMeans,
    errors: FloatArray | None,
    halves: Halves,
    outcomes: FloatArray,
    knowledge: Knowledge,
    whole: FloatArray | None = None,
    beside: FloatArray | None = None,
) -> Iterator[QueryPosterior | None]:
    """Yield the posterior of each query, by itself; see `query_posterior`.

    Attributions, and errors, are (n_queries, n_units), outcomes (2 P, n_queries), those
    with all units (n_queries,), and predictions beside them (2 P or more, n_queries).
    """
    for i, row in enumerate(attributions):
        yield query_posterior(
            row if isinstance(row, QueryMeans) else np.asarray(row, dtype=float),
            None if errors is None else np.asarray(errors[i], dtype=float),
            halves,
            np.asarray(outcomes[:, i], dtype=float),
            knowledge,
            whole=float("nan") if whole is None else float(whole[i]),
            beside=None if beside is None else np.asarray(beside[:, i], dtype=float),
        )


def posterior(
    attributions: FloatArray | PriorMeans,
    errors: FloatArray | None,
    halves: Halves,
    outcomes: FloatArray,
    knowledge: Knowledge,
) -> Posterior:
    """Return the posteriors of `query_posteriors`, without what predicts."""
    mean, std = np.full((2, *attributions.shape), np.nan)
    figures = np.full((3, len(attributions)), np.nan)
    rows = attributions, errors, halves, outcomes, knowledge
    for i, found in enumerate(query_posteriors(*rows)):
        if found is not None:
            mean[i], std[i] = found.mean, found.std
            figures[:, i] = found.slope, found.variance, found.share
    return Posterior(mean, std, *figures)
