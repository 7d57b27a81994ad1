"""Random 0/1 weightings of training units, for retraining and for surrogates."""

import math
from collections.abc import Iterable
from numbers import Integral
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import (
    Interval,
    RealNotInt,
    StrOptions,
    validate_params,
)

from skattrib._validation import column_or_1d, sorted_labels

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.intp]

# Up to this many units, all weightings are listed once random draws only repeat
# earlier ones, so that every existing weighting can be drawn.
_MAX_UNITS_TO_LIST = 12
# Counts of possible weightings stop here: more are never drawn.
_MANY = 2**62


class _Design(Protocol):
    """A distribution over 0/1 weightings."""

    def draw(self, rng: np.random.RandomState) -> BoolArray: ...

    def n_possible(self) -> int: ...

    def log_likelihood(self, rows: BoolArray) -> FloatArray: ...


class _FixedDesign:
    """Each label keeps its base count, plus one in `n_extra` labels drawn at random.

    Parameters
    ----------
    codes : ndarray of int of shape (n_units,)
        Label of each unit, 0 to n_labels - 1.
    base : ndarray of int of shape (n_labels,)
        Minimal number of units that a label keeps.
    share : ndarray of float of shape (n_labels,)
        Relative probability that the label keeps one more unit, each below 1.
    n_extra : int
        Number of labels that keep one more unit.
    """

    def __init__(
        self, codes: IntArray, base: IntArray, share: FloatArray, n_extra: int
    ) -> None:
        self.codes = codes
        self.counts = np.bincount(codes)
        self.base = base
        self.share = share
        self.n_extra = n_extra
        # Position of each unit inside its label once units are sorted by label.
        starts = np.cumsum(self.counts) - self.counts
        self.position = np.arange(codes.size) - np.repeat(starts, self.counts)

    def draw(self, rng: np.random.RandomState) -> BoolArray:
        n_kept = self.base
        if self.n_extra:
            # Systematic sampling in random order keeps the inclusion probabilities
            # exactly proportional to `share`.
            order = rng.permutation(np.flatnonzero(self.share))
            edges = np.cumsum(self.share[order])
            points = (rng.random_sample() + np.arange(self.n_extra)) / self.n_extra
            chosen = np.searchsorted(edges[:-1] / edges[-1], points, side="right")
            n_kept = n_kept.copy()
            n_kept[order[chosen]] += 1

        by_label = np.lexsort((rng.random_sample(self.codes.size), self.codes))
        row = np.zeros(self.codes.size, dtype=bool)
        row[by_label[self.position < np.repeat(n_kept, self.counts)]] = True
        return row

    def n_possible(self) -> int:
        # ways[e]: number of weightings of the labels so far, e of which keep one more.
        ways = [1] + [0] * self.n_extra
        for count, base, share in zip(
            self.counts.tolist(), self.base.tolist(), self.share.tolist()
        ):
            plain = math.comb(count, base)
            extra = math.comb(count, base + 1) if share > 0 else 0
            ways = [
                min(plain * same + extra * one_less, _MANY)
                for same, one_less in zip(ways, [0, *ways[:-1]])
            ]
        return ways[-1]

    def log_likelihood(self, rows: BoolArray) -> FloatArray:
        extra = _kept_per_label(rows, self.codes) - self.base
        allowed = ((extra == 0) | ((extra == 1) & (self.share > 0))).all(axis=1)
        allowed &= extra.sum(axis=1) == self.n_extra
        return np.where(allowed, 0.0, -np.inf)


class _BernoulliDesign:
    """Independent inclusion, conditioned on no label being emptied.

    Parameters
    ----------
    codes : ndarray of int of shape (n_units,)
        Label of each unit, 0 to n_labels - 1.
    probability : float
        Inclusion probability of each unit before conditioning.
    """

    def __init__(self, codes: IntArray, probability: float) -> None:
        self.codes = codes
        self.counts = np.bincount(codes)
        self.probability = probability

    def draw(self, rng: np.random.RandomState) -> BoolArray:
        row: BoolArray = rng.random_sample(self.codes.size) < self.probability
        emptied = np.bincount(self.codes, weights=row) == 0
        log_out = math.log1p(-self.probability)

        for label in np.flatnonzero(emptied):
            # Labels are independent, so redrawing this one given that it keeps a
            # unit is exact: first the place of its first kept unit, then the rest.
            members = np.flatnonzero(self.codes == label)
            reach = -math.expm1(members.size * log_out)
            first = int(math.log1p(-reach * rng.random_sample()) / log_out)
            first = min(first, members.size - 1)
            row[members[first]] = True
            rest = members[first + 1 :]
            row[rest] = rng.random_sample(rest.size) < self.probability

        return row

    def n_possible(self) -> int:
        return min(math.prod(2**count - 1 for count in self.counts.tolist()), _MANY)

    def log_likelihood(self, rows: BoolArray) -> FloatArray:
        allowed = (_kept_per_label(rows, self.codes) > 0).all(axis=1)
        n_kept = rows.sum(axis=1)
        log_kept = n_kept * math.log(self.probability)
        log_left_out = (self.codes.size - n_kept) * math.log1p(-self.probability)
        return np.where(allowed, log_kept + log_left_out, -np.inf)


class _UniformDesign:
    """A number of units drawn uniformly, then a weighting that keeps as many.

    Parameters
    ----------
    codes : ndarray of int of shape (n_units,)
        Label of each unit, 0 to n_labels - 1.
    """

    def __init__(self, codes: IntArray) -> None:
        self.codes = codes
        self.counts = np.bincount(codes)
        self.sizes = range(self.counts.size, codes.size)

    def _fixed(self, n_kept: int) -> _FixedDesign:
        return _FixedDesign(self.codes, *_proportional(self.counts, n_kept))

    def draw(self, rng: np.random.RandomState) -> BoolArray:
        return self._fixed(rng.randint(self.sizes.start, self.sizes.stop)).draw(rng)

    def n_possible(self) -> int:
        total = 0
        for n_kept in self.sizes:
            total += self._fixed(n_kept).n_possible()
            if total >= _MANY:
                return _MANY
        return total

    def log_likelihood(self, rows: BoolArray) -> FloatArray:
        out = np.full(len(rows), -np.inf)
        for n_kept in self.sizes:
            design = self._fixed(n_kept)
            of_size = rows.sum(axis=1) == n_kept
            log_likelihood = design.log_likelihood(rows[of_size])
            out[of_size] = log_likelihood - math.log(design.n_possible())
        return out


def _kept_per_label(rows: BoolArray, codes: IntArray) -> IntArray:
    one_hot = codes[:, None] == np.arange(codes.max() + 1)
    return rows.astype(np.intp) @ one_hot.astype(np.intp)


def _proportional(counts: IntArray, n_kept: int) -> tuple[IntArray, FloatArray, int]:
    """Divide `n_kept` units among labels in proportion, at least one for each.

    Integer arithmetic is exact for quotas that are whole numbers.
    """
    base = np.zeros_like(counts)
    share = np.zeros(counts.size)
    is_free = np.ones(counts.size, dtype=bool)
    n_left = n_kept
    total = int(counts.sum())

    while (is_scarce := is_free & (n_left * counts < total)).any():
        base[is_scarce] = 1
        is_free &= ~is_scarce
        n_left -= int(is_scarce.sum())
        total -= int(counts[is_scarce].sum())

    # At least as many units as labels are left, so some label is free.
    base[is_free], rest = np.divmod(n_left * counts[is_free], total)
    share[is_free] = rest / total
    return base, share, n_left - int(base[is_free].sum())


def _check_stratify(stratify: Any, n_units: int) -> IntArray:
    if stratify is None:
        return np.zeros(n_units, dtype=np.intp)
    labels = column_or_1d(stratify, input_name="stratify")
    if labels.size != n_units:
        raise ValueError(
            f"stratify has {labels.size} labels but n_units={n_units}: pass one label "
            "per unit."
        )
    codes = sorted_labels(labels, "stratify")[1]
    return codes.astype(np.intp)


def _check_no_lone_unit(codes: IntArray, kind: str) -> None:
    lone = np.flatnonzero(np.bincount(codes) == 1)
    if np.bincount(codes).size > 1 and lone.size:
        unit = int(np.flatnonzero(codes == lone[0])[0])
        raise ValueError(
            f"stratify has {lone.size} label(s) with a single unit (the first is unit "
            f"{unit}), which would be empty when kind={kind!r} leaves out this unit: "
            "merge those labels, drop those units or pass stratify=None."
        )


def _n_kept(size: float, n_units: int) -> int:
    if isinstance(size, Integral):
        if size > n_units - 1:
            raise ValueError(
                f"size={size} keeps every one of the n_units={n_units} units: pass at "
                f"most {n_units - 1}, or a fraction such as 0.5."
            )
        return int(size)
    return min(max(round(size * n_units), 1), n_units - 1)


def _make_design(kind: str, codes: IntArray, size: float) -> _Design:
    n_units = codes.size
    counts = np.bincount(codes)
    if kind == "bernoulli":
        if isinstance(size, Integral):
            raise ValueError(
                f"size={size} is a count, and kind='bernoulli' takes an inclusion "
                f"probability: pass size={size / n_units:.3g}, or kind='fixed' for "
                "that exact count."
            )
        return _BernoulliDesign(codes, float(size))

    if kind == "uniform":
        if codes.max() + 1 == codes.size:
            _check_no_lone_unit(codes, kind)
        return _UniformDesign(codes)
    if kind == "antithetic":
        if size != 0.5 and size not in (n_units // 2, n_units - n_units // 2):
            raise ValueError(
                f"size={size} cannot hold for both halves of an antithetic pair: pass "
                "size=0.5, or kind='fixed' for another size."
            )
        _check_no_lone_unit(codes, kind)
        odd = counts % 2
        base = counts // 2
        return _FixedDesign(codes, base, odd / 2, n_units // 2 - int(base.sum()))

    n_kept = _n_kept(size, n_units)
    if n_kept < counts.size:
        raise ValueError(
            f"size={size} keeps {n_kept} units, but stratify has {counts.size} labels "
            f"to keep one of each: pass size={counts.size} or more, or fewer labels."
        )
    return _FixedDesign(codes, *_proportional(counts, n_kept))


def _draw_unseen(
    design: _Design, n_units: int, seen: Iterable[bytes], rng: np.random.RandomState
) -> BoolArray:
    """Draw a weighting that is not in `seen`, by listing all weightings."""
    rows = np.arange(2**n_units)[:, None] >> np.arange(n_units) & 1 == 1
    log_likelihood = design.log_likelihood(rows)
    bits = 2 ** np.arange(n_units)
    taken = [int(np.frombuffer(row, dtype=bool) @ bits) for row in seen]
    log_likelihood[taken] = -np.inf
    probability = np.exp(log_likelihood - log_likelihood.max())
    chosen: BoolArray = rows[
        rng.choice(rows.shape[0], p=probability / probability.sum())
    ]
    return chosen


def _draw_distinct(
    design: _Design,
    n_units: int,
    n_weightings: int,
    *,
    paired: bool,
    rng: np.random.RandomState,
) -> FloatArray:
    rows: list[BoolArray] = []
    seen: set[bytes] = set()
    while len(rows) < n_weightings:
        # The draws depend on the rows so far only, not on `n_weightings`, so that the
        # first rows are the same when more are drawn.
        listable = n_units <= _MAX_UNITS_TO_LIST
        for _ in range(100 if listable else 1000 + 50 * len(seen)):
            row = design.draw(rng)
            if row.tobytes() not in seen:
                break
        else:
            if not listable:
                raise ValueError(
                    f"n_weightings={n_weightings}: after {len(rows)} weightings, new "
                    "draws only repeat earlier ones. Pass a size nearer 0.5, "
                    "kind='fixed' or fewer weightings."
                )
            row = _draw_unseen(design, n_units, seen, rng)
        for new in (row, ~row) if paired else (row,):
            rows.append(new)
            seen.add(new.tobytes())

    return np.array(rows, dtype=np.float64)


def _leave_one_out(
    n_units: int, n_weightings: int | None, rng: np.random.RandomState
) -> FloatArray:
    if n_weightings is None:
        removed = np.arange(n_units)
    elif n_weightings > n_units:
        raise ValueError(
            f"n_weightings={n_weightings}, but only {n_units} leave-one-out "
            "weightings exist: pass None for all of them."
        )
    else:
        removed = rng.permutation(n_units)[:n_weightings]
    weightings = np.ones((removed.size, n_units))
    weightings[np.arange(removed.size), removed] = 0.0
    return weightings


@validate_params(
    {
        "n_units": [Interval(Integral, 2, None, closed="left")],
        "n_weightings": [Interval(Integral, 1, None, closed="left"), None],
        "size": [
            Interval(RealNotInt, 0, 1, closed="neither"),
            Interval(Integral, 1, None, closed="left"),
        ],
        "kind": [StrOptions({"fixed", "bernoulli", "antithetic", "uniform", "loo"})],
        "stratify": ["array-like", None],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=True,
)
def make_weightings(
    n_units: int,
    n_weightings: int | None,
    *,
    size: float = 0.5,
    kind: str = "fixed",
    stratify: ArrayLike | None = None,
    random_state: int | np.random.RandomState | None = None,
) -> FloatArray:
    """Draw distinct random subsets of training units, as 0/1 weights.

    Parameters
    ----------
    n_units : int
        Number of training units (rows, sources or tasks), at least 2.
    n_weightings : int or None
        Number of weightings. `None` is for `kind="loo"` only: all `n_units`.
    size : float or int, default=0.5
        How much each weighting keeps: a float is a fraction of the units in (0, 1),
        an int a number of units.

        - "fixed": `round(size * n_units)` units, but at least 1 and at most
          `n_units - 1`;
        - "bernoulli": the inclusion probability, a float;
        - "antithetic": 0.5, or the number of units in one half;
        - "uniform" and "loo": ignored.
    kind : {"fixed", "bernoulli", "antithetic", "uniform", "loo"}, default="fixed"
        The distribution of the weightings.

        - "fixed": the same number of units in every weighting;
        - "bernoulli": each unit independently, given that no label is emptied;
        - "uniform": a number of units drawn uniformly from 1 to `n_units - 1`, as
          Shapley values weight subsets;
        - "antithetic": rows 2i and 2i + 1 are complementary halves, the smaller one
          first when `n_units` is odd. Every unit is then kept by exactly half of the
          weightings;
        - "loo": each weighting leaves out one unit. With `n_weightings=None`, row k
          leaves out unit k; otherwise the units left out are drawn at random.
    stratify : array-like of shape (n_units,), default=None
        Labels of the units. If given, every weighting keeps a unit of each label.
        "fixed" and "uniform" divide the units kept in proportion to the label counts,
        at least one for each label; fractions are rounded up or down at random in each
        weighting, so that labels with more than one unit kept are in exact proportion
        on average. "antithetic" halves each label. "bernoulli" draws a label again if
        it is empty. Without labels, "bernoulli" never drops all units.
    random_state : int, RandomState instance or None, default=None
        Source of the draws. Pass an int for reproducible weightings.

    Returns
    -------
    weightings : ndarray of float64 of shape (n_weightings, n_units)
        1 where the unit is kept, 0 where it is left out. All rows differ.

    Raises
    ------
    ValueError
        If fewer distinct weightings exist than requested, if `size` does not suit
        `kind`, or if a label would be empty.

    See Also
    --------
    skattrib.evaluation.retrain_outcomes : Outcomes of models trained with weightings.
    skattrib.evaluation.lds_score : Compare retrained with predicted outcomes.

    Notes
    -----
    For an int `random_state` the first rows do not depend on `n_weightings` (except
    for "loo" with `None`): more weightings only append rows, and outcomes retrained for
    the first ones can be reused.

    Examples
    --------
    >>> from skattrib.evaluation import make_weightings
    >>> weightings = make_weightings(6, 4, random_state=0)
    >>> weightings.shape
    (4, 6)
    >>> weightings.sum(axis=1)
    array([3., 3., 3., 3.])

    Antithetic weightings come in complementary pairs:

    >>> halves = make_weightings(6, 4, kind="antithetic", random_state=0)
    >>> halves[0] + halves[1]
    array([1., 1., 1., 1., 1., 1.])

    Leave-one-out weightings need no number:

    >>> make_weightings(3, None, kind="loo")
    array([[0., 1., 1.],
           [1., 0., 1.],
           [1., 1., 0.]])
    """
    rng = check_random_state(random_state)
    codes = _check_stratify(stratify, n_units)
    if kind == "loo":
        _check_no_lone_unit(codes, kind)
        return _leave_one_out(n_units, n_weightings, rng)
    if n_weightings is None:
        raise ValueError(
            f"n_weightings=None means all leave-one-out weightings, but kind={kind!r}: "
            "pass a number of weightings, or kind='loo'."
        )

    paired = kind == "antithetic"
    if paired and n_weightings % 2:
        raise ValueError(
            f"n_weightings={n_weightings} is odd, and antithetic weightings come in "
            f"pairs: pass {n_weightings + 1}."
        )

    design = _make_design(kind, codes, size)
    n_possible = _n_possible(design, kind, n_units)
    if n_weightings > n_possible:
        raise ValueError(
            f"n_weightings={n_weightings}, but only {n_possible} distinct weightings "
            f"exist for n_units={n_units}, size={size}, kind={kind!r}"
            f"{'' if stratify is None else ' and these stratify labels'}: "
            f"pass n_weightings={n_possible} or fewer."
        )
    return _draw_distinct(design, n_units, n_weightings, paired=paired, rng=rng)


def _n_possible(design: _Design, kind: str, n_units: int) -> int:
    n_possible = design.n_possible()
    if kind == "antithetic" and n_units % 2:
        # Halves of different size: the complements are other weightings.
        n_possible *= 2
    return n_possible


def count_weightings(n_units: int, size: float, kind: str) -> int:
    """Return an upper bound of the number of distinct weightings of a random kind."""
    design = _make_design(kind, _check_stratify(None, n_units), size)
    return _n_possible(design, kind, n_units)
