"""Whether a posterior holds: predictions of halves that it was not told of."""

from __future__ import annotations

import warnings
from typing import cast

import numpy as np
from sklearn.utils import Bunch

from skattrib._posterior._gaussian import (
    FloatArray,
    Halves,
    Knowledge,
    half_width,
    mean_share,
    query_posterior,
    query_posteriors,
    share_likelihood,
    share_prior,
)
from skattrib._posterior._means import PriorMeans
from skattrib.evaluation import lds_score
from skattrib.exceptions import ConstantOutcomeWarning

#: Figures that come from retrained halves.
HELD_OUT = "calibration_slope", "lds", "coverage", "prior_slope", "share"
# Parts that the pairs are divided into; each is predicted by the others.
_N_FOLDS = 4
# Deviation of the logit of an additive share, before halves tell.
_SPREAD = 0.6


def held_out_figures(
    attributions: FloatArray | PriorMeans,
    errors: FloatArray | None,
    halves: Halves,
    outcomes: FloatArray,
    knowledge: Knowledge,
    beside: FloatArray | None = None,
) -> Bunch:
    """Compare outcomes of halves with what is predicted from the others.

    Parameters
    ----------
    attributions : ndarray of shape (n_queries, n_units), or PriorMeans
        What the posterior begins with.
    errors : ndarray of shape (n_queries, n_units) or None
    halves : Halves
    outcomes : ndarray of shape (2 P, n_queries)
    knowledge : Knowledge
    beside : ndarray of shape (2 P, n_queries) or None
        Predictions of the outcomes that halves correct, if not the attributions' sums.

    Returns
    -------
    Bunch
        With these entries.

        - calibration_slope: slope of half differences between complements on predicted
          ones.
        - lds: rank correlation of outcomes with predicted ones, mean over queries; NaN
          if none has outcomes that differ.
        - coverage: share of these differences within their 95 % intervals.
        - prior_slope: median slope of differences on the attributions that the
          posterior begins with; of several means, the sum of their slopes.
        - share: additive share of what this slope leaves, the most likely one.

        All are None where there are too few halves to hold some out.
    """
    n_pairs = len(outcomes) // 2
    folds = np.arange(n_pairs) % min(_N_FOLDS, n_pairs)
    predicted = np.full(outcomes.shape, np.nan)
    differences, std = np.full((2, n_pairs, outcomes.shape[1]), np.nan)
    slopes = []
    for fold in range(folds.max() + 1):
        left = folds == fold
        both = np.repeat(left, 2)
        known, asked = halves.some(~left), halves.some(left).differences
        rows = attributions, errors, known, outcomes[~both], knowledge
        told, shown = None, None
        if beside is not None:
            told, shown = beside[~both], (beside[both][::2] - beside[both][1::2]) / 2
        for i, found in enumerate(query_posteriors(*rows, beside=told)):
            if found is None:
                continue
            of_query = None if shown is None else shown[:, i]
            mean, std[left, i] = found.differences(asked, of_query)
            differences[left, i] = mean
            predicted[both, i] = found.middle + np.column_stack([mean, -mean]).ravel()
            slopes.append(found.slope)
    truth = (outcomes[::2] - outcomes[1::2]) / 2
    known = np.isfinite(truth) & np.isfinite(differences)
    x, d = differences[known], truth[known]
    if not len(x):
        return Bunch(**dict.fromkeys(HELD_OUT))
    rows = attributions, errors, halves, outcomes, knowledge
    return Bunch(
        calibration_slope=float(x @ d / max(x @ x, np.finfo(float).tiny)),
        lds=_ranks(outcomes, predicted),
        coverage=float((np.abs(d - x) <= half_width(std[known])).mean()),
        prior_slope=float(np.median(slopes)),
        share=additive_share(*rows, beside),
    )


def _ranks(outcomes: FloatArray, predicted: FloatArray) -> float:
    """Return the rank correlation of what is finite, NaN if nothing differs."""
    both = np.isfinite(outcomes) & np.isfinite(predicted)
    queries = both.any(axis=0)  # without those that are not finite in any model
    known = both[:, queries].all(axis=1)
    outcomes, predicted = outcomes[known][:, queries], predicted[known][:, queries]
    if not len(outcomes) or not np.ptp(outcomes, axis=0).any():
        return float("nan")
    with warnings.catch_warnings():  # of outcomes that do not differ, said elsewhere
        warnings.simplefilter("ignore", ConstantOutcomeWarning)
        return cast(float, lds_score(outcomes, predicted))


def additive_share(
    attributions: FloatArray | PriorMeans,
    errors: FloatArray | None,
    halves: Halves,
    outcomes: FloatArray,
    knowledge: Knowledge,
    beside: FloatArray | None = None,
) -> float:
    """Return the mean additive share by the likelihood of all queries together."""
    known = share_prior(knowledge.share, _SPREAD)
    for i, row in enumerate(attributions):
        spread = None if errors is None else errors[i]
        shown = None if beside is None else beside[:, i]
        # what is left does not depend on the share
        query = row, spread, halves, outcomes[:, i], knowledge, knowledge.share
        found = query_posterior(*query, beside=shown)
        if found is not None:
            known = known + share_likelihood(found.residuals, found.prior.kernel())
    return mean_share(known)
