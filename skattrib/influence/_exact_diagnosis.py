"""How far to trust the refits of a linear model."""

import torch
from sklearn.utils import Bunch

from skattrib._verdict import halves_findings, judged
from skattrib.engine._functional import spread
from skattrib.influence._exact_models import FAR, NOISY, output_changes

# Units that are refitted, to compare with what `attribute` does.
_N_REFITTED = 16
# Past these the verdict is bad.
_ERROR_LIMIT, _LDS_LIMIT, _LEVERAGE_LIMIT = 0.5, 0.3, 1 - 1e-9


def diagnose_exact(exact, without_each, X, calibration):
    """Return the figures of a linear model, and the sentence that they come to.

    Parameters
    ----------
    exact : ExactModel
    without_each : Moved or None
        What `ExactModel.without_each_unit` returned.
    X : ndarray of shape (q, n_features)
        Queries.
    calibration : dict
        With "calibration_slope" and "lds", and figures of halves; None where nothing
        was retrained.

    Returns
    -------
    Bunch
        See `DualInfluence.diagnose`.
    """
    figures = _figures(exact, without_each, X)
    against, in_favour = [], []
    error = figures["step_linearity"]
    (against if error > _ERROR_LIMIT else in_favour).append(
        f"predicted changes differ from exact refits by {error:.2%}"
    )
    distance = figures["distance_to_optimum"]
    if distance > NOISY:
        (against if distance > FAR else in_favour).append(
            f"the solver stopped {distance:.2g} effects of a row from its optimum, so "
            "that retraining without single rows at this tol is noise"
        )
    leverage = figures["leverage"]
    if leverage is not None and leverage > _LEVERAGE_LIMIT:
        against.append("without some rows, the fit leaves their own outputs open")
    if figures["sign_changes"]:
        in_favour.append(
            f"an l1 penalty sets {figures['sign_changes']:.0%} of the coefficients to "
            "0, or frees them, when one of 16 units is left out"
        )
    in_favour.extend(halves_findings(calibration, against))
    lds, slope = calibration["lds"], calibration["calibration_slope"]
    if lds is not None:
        (in_favour if lds >= _LDS_LIMIT else against).append(
            f"retrained outcomes rank with {lds:.4f} and move {slope:.3f} times as far"
        )
    return judged(Bunch(**figures, **calibration), against, in_favour)


def _figures(exact, without_each, X):
    units = spread(len(exact.units), _N_REFITTED)
    removed = exact.units[units]
    ours = exact.steps(removed, "attribute", checked=False)
    if without_each is not None:
        ours = without_each[units]
    true = exact.refitted(removed)
    rows = exact.trained.query_rows(exact.refits, X)
    changes = [output_changes(rows, moved.steps) for moved in (ours, true)]
    known = torch.isfinite(changes[1]).flatten(1).all(dim=1)
    error = (changes[0] - changes[1])[known].norm()
    size = changes[1][known].norm().clamp(min=torch.finfo(torch.double).tiny)
    leverages = exact.leverages()
    return {
        "step_linearity": float(error / size),
        "distance_to_optimum": exact.distance_to_optimum(),
        "leverage": None if leverages is None else float(leverages.max()),
        "sign_changes": exact.sign_changes(true),
    }
