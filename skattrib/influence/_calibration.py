"""The damping that best ranks a few retrained models.

What is compared, and how, belongs here; rules that need no retraining are in `_ridge`.
"""

from skattrib.evaluation import lds_score
from skattrib.influence._ridge import CALIBRATION_GRID, calibrated_rule

#: Models to retrain, each on half of the units, and rows to ask them about.
N_RETRAINED, N_QUERIES = 16, 50


def calibrate(ensemble, X, y, row_weights, truth, outcome):
    """Scale the damping of an ensemble by what ranks retrained outcomes best.

    Parameters
    ----------
    ensemble : Ensemble
        Is given the rule found.
    X, y : ndarray
        Training rows that none of the models was retrained on.
    row_weights : ndarray of shape (n_weightings, n_samples)
        Of the rows in retraining.
    truth : ndarray of shape (n_weightings, q)
        Retrained outcomes of X.
    outcome : str or callable

    Returns
    -------
    Ensemble
        The same, with what was factored on the way.
    """
    kept, rules = ensemble.unit_shares(row_weights), ensemble.rules
    # one eigendecomposition serves units, halves, and the fit that follows
    whole = ensemble.decomposed()
    alone = whole.for_units()
    asked = whole.ask(X, len(row_weights))
    asked_alone = alone.ask(X, kept.shape[1])
    rank_units, rank_halves = [], []
    for factor in CALIBRATION_GRID:
        whole.rules = alone.rules = [rule.times(factor) for rule in rules]
        steps = alone.without_units()
        attributions = alone.attributions(steps, asked_alone, y, outcome)
        rank_units.append(lds_score(truth, kept @ attributions.mean(axis=0).T))
        predicted = whole.outcomes(row_weights, asked, y, outcome)
        rank_halves.append(lds_score(truth, predicted))
    found = [calibrated_rule(rule, rank_units, rank_halves) for rule in rules]
    ensemble.rules = whole.rules = found
    return whole
