"""How far to trust similarities."""

import numpy as np
from sklearn.utils import Bunch

from skattrib._verdict import judged
from skattrib.engine._functional import spread
from skattrib.engine._similarity import Similarity
from skattrib.evaluation import lds_score
from skattrib.exceptions import TrajectoryError
from skattrib.models._as_model import as_model

# Residuals of smaller norm are mostly rounding.
_VANISHING = 1e-6
# Rows and queries whose scores are compared with unsketched ones.
_N_ROWS, _N_QUERIES = 200, 64
# Past these the verdict is bad.
_VANISHING_LIMIT, _KEPT_LIMIT, _RECALL_LIMIT, _LDS_LIMIT = 0.5, 0.5, 0.8, 0.1


def check_retrainable(estimator, n_added):
    """Raise unless the model can be retrained, on all rows of its index."""
    if not as_model(estimator).can_retrain:
        raise TrajectoryError(
            "score retrains the model, and the training of this one was not "
            "recorded. If you know which rows should be found, compare by "
            "evaluation.retrieval_score."
        )
    if n_added:
        raise ValueError(
            f"{n_added} rows were added by partial_fit, and the model was not trained "
            "on them: nothing changes when they are left out. Fit again to score."
        )


def similarity_figures(search, exact, rows, X, y, outcome):
    """Return what can be said of the scores of queries without retraining.

    ``exact`` is a `Signer` of channels that are not sketched, None if none are;
    ``rows`` are those of the index, X and y.
    """
    queries, norms = search.signed(X, y, outcome)
    correlation = 1.0
    if exact is not None:
        some = slice(_N_QUERIES)
        correlation = _correlation(
            search,
            [own[some] for own in queries],
            *_exact_scores(search, exact, rows, X[some], y[some], outcome),
        )
    return Bunch(
        residual_norm=float(norms.median()),
        vanishing_share=float((norms < _VANISHING).double().mean()),
        sketch_correlation=correlation,
        search_recall=search.recall(queries),
        lds=None,
    )


def _exact_scores(search, exact, rows, X, y, outcome):
    """Return some rows and their scores; None if these do not fit the memory."""
    exact.use({})
    some = spread(len(rows[0]), _N_ROWS)
    if not exact.fits(max(len(some), len(X))):
        return some, None
    first = search.similarities[0]
    channels = exact(*(part[some] for part in rows))[0]
    centers = {name: channels[name].mean(dim=0) for name in first.centers}
    bare = Similarity(first.weights, first.cosine, centers)
    queries = bare.of_channels(exact(X, y, outcome)[0])
    return some, (queries @ bare.of_channels(channels).T).cpu().numpy()


def _correlation(search, queries, some, real):
    """Return the rank correlation of scores; None if there are none to compare."""
    if real is None:
        return None
    seen = np.ptp(real, axis=1) > 0  # else the residual is 0
    if not seen.any():
        return None
    kept = search.scores_of(queries).mean(dim=0).cpu().numpy()[:, some]
    return lds_score(real[seen].T, kept[seen].T)


def retrieval_verdict(found, estimator, *, sketched):
    """Judge the figures in a sentence, which says what was checked; warn if bad."""
    bad, good = [], [f"residuals are {found.residual_norm:.2g} in the median"]
    if found.vanishing_share > _VANISHING_LIMIT:
        bad.append(
            f"{found.vanishing_share:.0%} of the residuals vanish: the model is sure, "
            "and what is left is rounding (raise temperature)"
        )
    kept, hint = found.sketch_correlation, ""
    if kept is not None and sketched:
        text = f"sketched scores rank rows with {kept:.2f} as exact ones do"
        (bad if kept < _KEPT_LIMIT else good).append(text)
    if found.search_recall is not None:
        text = f"the search finds {found.search_recall:.0%} of the first ten rows"
        (bad if found.search_recall < _RECALL_LIMIT else good).append(text)
    if found.lds is not None:
        text = f"retrained outcomes rank with {found.lds:.2f}"
        (bad if found.lds < _LDS_LIMIT else good).append(text)
    elif not bad:
        checked = "the residuals" if kept is None or not sketched else "the sketch"
        hint = f" This checked {checked}, not what retraining would do: " + (
            "pass n_retrainings to compare."
            if as_model(estimator).can_retrain
            else "this model cannot be retrained, look at rows that you know."
        )
    if kept is None and not bad:
        hint = " The sketch was not checked: exact scores need more memory." + hint
    return judged(found, bad, good, hint=hint)
