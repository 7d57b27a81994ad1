"""The verdict on similarities: how far they can be trusted."""

import numpy as np
from sklearn.utils import Bunch

from skattrib._verdict import judged
from skattrib.engine._functional import spread
from skattrib.engine._similarity import Similarity
from skattrib.evaluation import lds_score
from skattrib.exceptions import TrajectoryError
from skattrib.models._as_model import as_model

# Residuals of smaller norm are mostly rounding errors.
_VANISHING = 1e-6
# Rows and queries whose scores are compared with unsketched ones.
_N_ROWS, _N_QUERIES = 200, 64
# Past these the verdict is bad.
_VANISHING_LIMIT, _KEPT_LIMIT, _RECALL_LIMIT, _LDS_LIMIT = 0.5, 0.5, 0.8, 0.1


def check_retrainable(estimator, n_added):
    """Raise unless the model can be retrained, on all rows of its index."""
    if not as_model(estimator).can_retrain:
        raise TrajectoryError(
            "score retrains the model, but the training of this model was not "
            "recorded. If you know which rows should be found, use "
            "evaluation.retrieval_score."
        )
    if n_added:
        raise ValueError(
            f"{n_added} rows were added by partial_fit, but the model was not trained "
            "on them: leaving them out changes nothing. Fit again to score."
        )


def similarity_figures(search, exact, rows, X, y, outcome):
    """Return figures about the scores of queries, without retraining.

    ``exact`` is a `Signer` of unsketched channels, None if no channel is sketched;
    ``rows`` are X and y of the index.
    """
    queries, norms = search.signed(X, y, outcome)
    correlation = 1.0
    if exact is not None:
        few = slice(_N_QUERIES)
        correlation = _correlation(
            search,
            [vectors[few] for vectors in queries],
            *_exact_scores(search, exact, rows, X[few], y[few], outcome),
        )

    return Bunch(
        residual_norm=float(norms.median()),
        vanishing_share=float((norms < _VANISHING).double().mean()),
        sketch_correlation=correlation,
        search_recall=search.recall(queries),
        lds=None,
    )


def _exact_scores(search, exact, rows, X, y, outcome):
    """Return some rows, and their scores or None if these do not fit the memory."""
    exact.use({})
    sample = spread(len(rows[0]), _N_ROWS)
    if not exact.fits(max(len(sample), len(X))):
        return sample, None
    first = search.similarities[0]
    channels = exact(*(array[sample] for array in rows))[0]
    centers = {name: channels[name].mean(dim=0) for name in first.centers}
    unsketched = Similarity(first.weights, first.cosine, centers)
    queries = unsketched.of_channels(exact(X, y, outcome)[0])
    return sample, (queries @ unsketched.of_channels(channels).T).cpu().numpy()


def _correlation(search, queries, rows, exact_scores):
    """Return the rank correlation of scores; None if there is nothing to compare."""
    if exact_scores is None:
        return None
    varies = np.ptp(exact_scores, axis=1) > 0  # else the residual is 0
    if not varies.any():
        return None
    sketched_scores = search.scores_of(queries).mean(dim=0).cpu().numpy()[:, rows]
    return lds_score(exact_scores[varies].T, sketched_scores[varies].T)


def retrieval_verdict(figures, estimator, *, sketched):
    """Return the figures with a verdict that says what was checked; warn if bad."""
    against = []
    in_favour = [f"residuals are {figures.residual_norm:.2g} in the median"]
    if figures.vanishing_share > _VANISHING_LIMIT:
        against.append(
            f"{figures.vanishing_share:.0%} of the residuals vanish: the model is "
            "certain, and what remains is rounding error (raise temperature)"
        )

    correlation = figures.sketch_correlation
    hint = ""
    if correlation is not None and sketched:
        sentence = (
            f"sketched and exact scores of rows have rank correlation {correlation:.2f}"
        )
        (against if correlation < _KEPT_LIMIT else in_favour).append(sentence)

    if figures.search_recall is not None:
        sentence = f"the search finds {figures.search_recall:.0%} of the ten best rows"
        (against if figures.search_recall < _RECALL_LIMIT else in_favour).append(
            sentence
        )

    if figures.lds is not None:
        sentence = f"rank correlation with retrained outcomes is {figures.lds:.2f}"
        (against if figures.lds < _LDS_LIMIT else in_favour).append(sentence)
    elif not against:
        checked = (
            "the residuals" if correlation is None or not sketched else "the sketch"
        )
        hint = f" This checked {checked}, not the effect of retraining: " + (
            "pass n_retrainings to compare."
            if as_model(estimator).can_retrain
            else "this model cannot be retrained, so look at rows that you know."
        )

    if correlation is None and not against:
        hint = " The sketch was not checked: exact scores need more memory." + hint
    return judged(figures, against, in_favour, hint=hint)
