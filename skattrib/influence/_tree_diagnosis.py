"""How far to trust refits of leaves."""

from __future__ import annotations

from sklearn.utils import Bunch

from skattrib._verdict import SIZE_WRONG, halves_findings, judged

# Below these the verdict is bad.
_AGREEMENT_LIMIT, _EXPLAINED_LIMIT, _LDS_LIMIT = 0.3, 0.02, 0.3
# Slopes after which sizes can be trusted.
_SLOPES = (0.5, 2.0)


def tree_verdict(
    figures: Bunch,
    *,
    at_full_data: bool,
    boosted: bool,
    logarithm: bool,
    hint: str = "",
) -> Bunch:
    """Judge the figures in a sentence, with a hint; warn if they are bad."""
    against: list[str] = []
    in_favour: list[str] = []
    agreement, lds = figures.agreement, figures["lds"]
    if agreement is not None:
        found = f"two halves of the structures agree by {agreement:.2f}"
        (in_favour if agreement >= _AGREEMENT_LIMIT else against).append(found)
    if figures.explained is not None:
        found = f"{max(figures.explained, 0):.0%} of what trained models vary by"
        found = f"refits explain {found}"
        enough = figures.explained >= _EXPLAINED_LIMIT
        (in_favour if enough else against).append(found)
    if lds is not None and lds < _LDS_LIMIT:
        against.append(f"retrained outcomes rank with {lds:.2f}")
    in_favour.extend(halves_findings(figures, against))
    trust, slope = "Trust", figures["calibration_slope"]
    if slope is not None:
        in_favour.append(f"outcomes move {slope:.2f} times as far as predicted")
        if not _SLOPES[0] <= slope <= _SLOPES[1]:
            trust = SIZE_WRONG
    if agreement is None:
        in_favour.append("there is one structure, and no other to compare it with")
    if at_full_data and boosted:
        hint += (
            " What one row changes in boosted trees when it is left out is chaos: it "
            "hardly correlates from one context to the next. Ask for groups of rows "
            "(tasks=), or for the mean over halves (inclusion=0.5)."
        )
    if logarithm and not boosted:
        hint += (
            " Leaves of one class make log-likelihoods of forests jump: "
            "outcome='probability' is steadier."
        )
    return judged(figures, against, in_favour, trust, hint)
