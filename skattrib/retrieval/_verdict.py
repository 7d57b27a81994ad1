"""How far to trust similarities."""

from skattrib._verdict import judged

#: Residuals of smaller norm are mostly rounding.
VANISHING = 1e-6
# Past these the verdict is bad.
_VANISHING_LIMIT, _KEPT_LIMIT, _LDS_LIMIT = 0.5, 0.5, 0.1


def retrieval_verdict(found):
    """Judge the figures in a sentence; warn if they are bad."""
    bad, good = [], [f"residuals are {found.residual_norm:.2g} in the median"]
    if found.vanishing_share > _VANISHING_LIMIT:
        bad.append(
            f"{found.vanishing_share:.0%} of the residuals vanish: the model is sure, "
            "and what is left is rounding (raise temperature)"
        )
    kept = found.sketch_correlation
    if kept is not None:
        text = f"sketched scores rank rows with {kept:.2f} as exact ones do"
        (bad if kept < _KEPT_LIMIT else good).append(text)
    if found.lds is not None:
        text = f"retrained outcomes rank with {found.lds:.2f}"
        (bad if found.lds < _LDS_LIMIT else good).append(text)
    return judged(found, bad, good)
