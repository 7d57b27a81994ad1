"""How far to trust similarities."""

import numpy as np
import torch
from sklearn.frozen import FrozenEstimator

from skattrib._verdict import judged
from skattrib.engine._functional import chunks, spread
from skattrib.engine._similarity import Similarity
from skattrib.evaluation import lds_score
from skattrib.exceptions import TrajectoryError

# Residuals of smaller norm are mostly rounding.
_VANISHING = 1e-6
# Rows and queries whose scores are compared with unsketched ones.
_N_ROWS, _N_QUERIES = 200, 64
# Past these the verdict is bad.
_VANISHING_LIMIT, _KEPT_LIMIT, _RECALL_LIMIT, _LDS_LIMIT = 0.5, 0.5, 0.8, 0.1


def check_retrainable(estimator, n_added):
    """Raise unless the model can be retrained, on all rows of its index."""
    inner = estimator.estimator if isinstance(estimator, FrozenEstimator) else estimator
    if inner.trajectory_ is None:
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


def residual_figures(signer, X, y, outcome):
    """Return the median norm of residuals, and the share of them that vanishes."""
    norms = torch.cat(
        [
            signer(X[part], y[part], outcome)[1]
            for part in chunks(len(X), signer.batch_size())
        ]
    )
    return {
        "residual_norm": float(norms.median()),
        "vanishing_share": float((norms < _VANISHING).double().mean()),
    }


def sketch_correlation(search, exact, X_train, y_train, X, y, outcome):
    """Correlate scores with those of channels that are not sketched.

    ``exact`` is a `Signer` of these, None if the scores are. None is returned if they
    do not fit the memory.
    """
    if exact is None:
        return 1.0
    exact.use({})
    some = spread(len(X_train), _N_ROWS)
    X, y = X[:_N_QUERIES], y[:_N_QUERIES]
    if not exact.fits(max(len(some), len(X))):
        return None
    first = search.similarities[0]
    rows = exact(X_train[some], y_train[some])[0]
    centers = {name: rows[name].mean(dim=0) for name in first.centers}
    bare = Similarity(first.weights, first.cosine, centers)
    queries = exact(X, y, outcome)[0]
    real = bare.of_channels(queries) @ bare.of_channels(rows).T
    real = real.cpu().numpy()
    kept = search.scores(X, y, outcome).mean(axis=0)[:, some]
    seen = np.ptp(real, axis=1) > 0  # else the residual is 0
    return lds_score(real[seen].T, kept[seen].T) if seen.any() else None


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
    if found.search_recall is not None:
        text = f"the search finds {found.search_recall:.0%} of the first ten rows"
        (bad if found.search_recall < _RECALL_LIMIT else good).append(text)
    if found.lds is not None:
        text = f"retrained outcomes rank with {found.lds:.2f}"
        (bad if found.lds < _LDS_LIMIT else good).append(text)
    return judged(found, bad, good)
