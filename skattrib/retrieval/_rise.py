"""An index of sketched gradients of the last layer, to retrieve and value rows."""

import os
from collections.abc import Mapping
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.base import _fit_context
from sklearn.utils._param_validation import HasMethods, Hidden, Interval, StrOptions

from skattrib._docstrings import fill_in
from skattrib._validation import float_dtype, memory_cap
from skattrib.base import ATTRIBUTOR_DOCS, BaseAttributor
from skattrib.engine._functional import chunks
from skattrib.engine._last_layer import find_head
from skattrib.engine._losses import SetOutcome
from skattrib.influence._costs import attribution_bytes
from skattrib.models._as_model import as_model
from skattrib.models._costs import (
    Cost,
    multiplications_per_second,
    training_seconds,
)
from skattrib.models._datasets import with_targets
from skattrib.models._network import untrained
from skattrib.models.language import CausalLanguageModel
from skattrib.retrieval._indexing import (
    build_index,
    check_index,
    check_path,
    with_further,
)
from skattrib.retrieval._neighbors import Neighbors, check_faiss
from skattrib.retrieval._search import Search, similarities
from skattrib.retrieval._settings import PRESETS, resolve
from skattrib.retrieval._signatures import Signer
from skattrib.retrieval._sources import source
from skattrib.retrieval._verdict import (
    check_retrainable,
    retrieval_verdict,
    similarity_figures,
)

__all__ = ["RISEValuator"]

_ESTIMAND = (
    "similarity of the gradients of this unit and of the outcome in the last layer: no "
    "effect of removal"
)
# A number of a sketch takes as long as so many multiplications: it is summed up,
# scaled, rounded to two bytes, which takes half of the time, and appended.
_SKETCH_WORK = 600
# Its bytes in the index, which is copied as it grows, and in float32, of as many rows
# as are sketched at once.
_KEPT, _MADE = 2 * 2, 3 * 4
# A similarity is no effect, which retrained halves could correct.
_SHARED = {**BaseAttributor._parameter_constraints}
del _SHARED["n_halves"]


@fill_in(ATTRIBUTOR_DOCS)
class RISEValuator(BaseAttributor):
    """Similarity of rows in the gradient of the last layer: an index to search.

    The gradient of a row's loss in the last linear layer is a sum of outer products,
    residual ⊗ hidden state. The index stores two small sketches of it for each row,
    from a forward pass. It finds rows that trained the model in the direction of a
    query, and values new data by their similarity to the rows in it.

    Scores are similarities, not effects of removing rows, and not in the unit of the
    outcome.

    Parameters
    ----------
    estimator : TorchClassifier, TorchRegressor, CausalLanguageModel or None, \
            default=None
        Model to train and index; a fitted one inside
        `sklearn.frozen.FrozenEstimator` is used as it is. Its module must end in
        nn.Linear. None builds one that suits y. With a
        `skattrib.language.CausalLanguageModel`, which is never trained, X are always
        prompts and y completions.
    n_components : int or dict, default=256
        Numbers stored for each channel of a row. With ``sketch="factor"`` a dict of the
        widths of the factors "r", "g" and "h"; the width of a channel is the product.
    sketch : {"tensor", "factor"} or None, default="tensor"
        "tensor" sketches the outer product, "factor" its factors, which has much more
        noise at the same size. None stores the outer products.
    channels : tuple of {"rh", "gh", "h"}, default=("rh", "gh")
        "rh": residual ⊗ hidden state, a gradient. "gh": the residual backpropagated
        through the layer's weight, ⊗ hidden state. "h": the mean hidden state, minus
        its mean over the training rows.
    channel_weights : dict or None, default=None
        Weights of channels, squared in scores; None is 1 each.
    top_k : int or None, default=128
        Number of classes (words) whose residuals are used, the most likely ones and the
        true one. None: all.
    temperature : float, default=3.0
        Temperature of the softmax. At 1 the residual is that of the loss; rows that the
        model fits perfectly have residuals at higher temperatures only.
    normalize : bool or "token", default=True
        Compare channels as unit vectors, so that scores are cosines in [-1, 1]. False:
        inner products. "token": the factors of every token are normalised as well.
    n_sketches : int, default=1
        Independent sketches. Scores are means over them; with two or more, `attribute`
        has standard errors.
    index : str, path-like or None, default=None
        Folder of an index on disk. It is created, or continued if it has the same
        model, settings and rows. None keeps the index in memory.
    algorithm : {"exact", "faiss"}, default="exact"
        How `retrieve` searches. "faiss" compares only the rows in a few of many lists
        of similar rows, made in memory, and misses some; it needs the extra "index".
    preset : {"paper"} or None, default=None
        Published settings, which replace the parameters above except `n_sketches`,
        `index` and `algorithm`. At their temperature of 0.1, residuals of confident
        predictions vanish: see `diagnose`.
    outcome : {"auto", "log_likelihood", "margin", "prediction", "probability"} or \
            callable, default="auto"
        Outcome whose gradient represents a query. Without y, "auto" is the
        log-likelihood of the predicted class, or the raw prediction.
    %(retraining)s
    memory : str, joblib.Memory or None, default=None
        Cache of retrained outcomes; needs an int `random_state`.
    n_jobs : int or None, default=None
        Workers that index rows, and train models that cannot be trained as a stack.
    random_state : int, RandomState instance or None, default=None
        Seeds the estimator if it is unseeded, the hashes and the weightings of `score`.
        An index on disk needs an int.
    verbose : int, default=0
        Shows progress when above 0.

    Attributes
    ----------
    estimator_ : estimator
        Fitted model.
    index_path_ : str or None
        Absolute path of the index on disk.
    bytes_per_row_ : int
        Size of a row of the index.
    search_recall_ : float
        Share of the ten most similar rows that `retrieve` finds, for 256 rows of the
        index as queries.
    X_train_ : ndarray of shape (n_samples, n_features)
        Training rows.
    %(units)s

    See Also
    --------
    DualInfluence : Predicts outcomes without a row; needs gradients of all layers.

    Notes
    -----
    Rows can be inferred from an index: pickles of this estimator and folders on disk
    are as confidential as the data.

    References
    ----------
    Readout influence sketching, arXiv:2604.16197.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skattrib import RISEValuator, TorchClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = TorchClassifier(max_epochs=20, random_state=0)
    >>> rise = RISEValuator(clf, random_state=0).fit(X, y)
    >>> scores, rows = rise.retrieve(X[:2], y[:2], n=3)
    >>> rows.shape
    (2, 3)
    >>> rise.score_samples(X[:4], y[:4]).shape
    (4,)
    """

    _parameter_constraints: dict = {
        **_SHARED,
        "estimator": [
            *BaseAttributor._parameter_constraints["estimator"],
            CausalLanguageModel,
            HasMethods(["fit", "get_params"]),
        ],
        "n_components": [Interval(Integral, 1, None, closed="left"), Mapping],
        "sketch": [StrOptions({"tensor", "factor"}), None],
        "channels": [tuple, list, Hidden(str)],
        "channel_weights": [Mapping, None],
        "top_k": [Interval(Integral, 1, None, closed="left"), None],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "normalize": ["boolean", StrOptions({"token"})],
        "n_sketches": [Interval(Integral, 1, None, closed="left")],
        "index": [str, os.PathLike, None],
        "algorithm": [StrOptions({"exact", "faiss"})],
        "preset": [StrOptions(set(PRESETS)), None],
    }

    def __init__(
        self,
        estimator=None,
        *,
        n_components=256,
        sketch="tensor",
        channels=("rh", "gh"),
        channel_weights=None,
        top_k=128,
        temperature=3.0,
        normalize=True,
        n_sketches=1,
        index=None,
        algorithm="exact",
        preset=None,
        outcome="auto",
        n_retrainings=32,
        retrain_size=0.5,
        memory=None,
        n_jobs=None,
        random_state=None,
        verbose=0,
    ):
        self.estimator = estimator
        self.n_components = n_components
        self.sketch = sketch
        self.channels = channels
        self.channel_weights = channel_weights
        self.top_k = top_k
        self.temperature = temperature
        self.normalize = normalize
        self.n_sketches = n_sketches

        self.index = index
        self.algorithm = algorithm
        self.preset = preset
        self.outcome = outcome
        self.n_retrainings = n_retrainings
        self.retrain_size = retrain_size
        self.memory = memory
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    # -------------------------------------------------------------------- fit
    @_fit_context(prefer_skip_nested_validation=False)
    @fill_in(ATTRIBUTOR_DOCS)
    def fit(self, X, y=None, tasks=None, **fit_params):
        """Train the model and index the training rows.

        Parameters
        ----------
        %(fit_rows)s
        **fit_params : dict
            Passed to the estimator's ``fit``; `sample_weight` also multiplies
            attributions, but has no effect on `retrieve` and `score_samples`.

        Returns
        -------
        self : RISEValuator
            Fitted attributor.

        Raises
        ------
        ValueError
            If a parameter or the data cannot be used, or the module does not end in
            nn.Linear.
        IndexMismatchError
            If the index on disk has another model, other settings or other rows, or is
            damaged.
        """
        return self._fit(X, y, tasks, fit_params)

    def _refuse_sets(self):
        if isinstance(self.outcome, SetOutcome):
            raise ValueError(
                f"RISEValuator compares a query with rows, and outcome={self.outcome!r}"
                " is of all queries together. Use attribute(reduce='mean'), or "
                "DualInfluence, AdamWInfluence or KernelSurrogateAttributor, which "
                "take it."
            )

    def _check_estimator(self, estimator):
        self._refuse_sets()
        model = as_model(estimator)
        if not model.takes_texts:
            model.differentiable(self)
        resolve(self)
        if self.algorithm == "faiss":
            check_faiss()
        if self.index is not None:
            check_path(os.fspath(self.index), self.random_state)

    def _before_training(self, estimator, X, y):
        settings, _ = resolve(self)
        model = as_model(estimator)
        if model.stacks and not model.frozen:
            problem = untrained(estimator, X, y)
            find_head(problem.model.evaluated, problem.X)
        if self.index is not None:
            check_index(os.path.abspath(self.index), settings, self._fit_seed)

    def _cost(self, estimator, X, y, n_queries):
        model = as_model(estimator)
        if model.takes_texts:
            return Cost(_ESTIMAND, 0, way="one pass through the texts")
        problem = untrained(model.network(self), X, y) if model.stacks else None
        one = 0 if model.frozen else 1
        seconds = training_seconds(model, problem, one, X, y)
        settings, _ = resolve(self)
        width = settings["n_components"] or 0
        if not isinstance(width, int):
            width = width["r"] * width["h"]
        numbers = len(y) * width * len(settings["channels"]) * self.n_sketches
        work = float(numbers) * (n_queries + _SKETCH_WORK)
        seconds += work / multiplications_per_second(torch.float32)
        size = attribution_bytes(n_queries, self.n_units_, 4) + _KEPT * numbers
        size += min(_MADE * numbers, memory_cap() / 2)
        way = "an index, one pass through the rows"
        return Cost(_ESTIMAND, one, seconds, size / 2**20, way)

    def _fit_attributor(self):
        settings, weights = resolve(self)
        model = as_model(self._model)
        if model.takes_texts and model.frozen:
            # the checks of its fit, which is not called
            model.estimator._check_rows(self.X_train_, self._targets)

        self._source = source(self._model, self._features)
        signer = Signer(self._source, settings, self._fit_seed)
        path = None if self.index is None else os.path.abspath(self.index)
        rows = (self._features, self._targets)
        seed = self._fit_seed
        options = {"n_jobs": self.n_jobs, "verbose": self.verbose}
        self._index = build_index(signer, *rows, settings, seed, path, **options)
        self.index_path_, header = path, self._index.header
        self.bytes_per_row_ = header.width * np.dtype(header.dtype).itemsize

        self._similarities = similarities(self._index, weights, settings)
        self._settings, self._neighbors, self.search_recall_ = settings, None, 1.0
        if self.algorithm == "faiss":
            options = settings["n_sketches"], seed, self.verbose
            self._neighbors = Neighbors(self._search(), *options)
            self.search_recall_ = self._neighbors.recall

        self.estimand_ = _ESTIMAND

    @_fit_context(prefer_skip_nested_validation=False)
    def partial_fit(self, X, y=None):
        """Add rows to the index; the model is not changed.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Their targets; None only with a Dataset of torch.

        Returns
        -------
        self : RISEValuator
            Attributor whose `n_units_` includes the new rows. It is updated batch by
            batch: an interruption leaves complete batches. Before `fit`, this is `fit`.
            If the process was killed, `fit` and the same calls again reuse the rows
            that are in an index on disk.

        Raises
        ------
        ValueError
            If the rows do not fit the training data, or units are tasks.
        """
        if not hasattr(self, "n_units_"):
            return self.fit(X, y)
        X, y = with_targets(X, y, "partial_fit")
        X, y, _ = self._check_query(X, y)
        if self.tasks_ is not None:
            raise ValueError(
                "partial_fit adds rows as units, but here the units are tasks: fit "
                "again on all rows."
            )

        signer = self._signer()
        for chunk in chunks(len(X), signer.batch_size()):
            channels, _ = signer(X[chunk], y[chunk])
            index = self._index.append(channels, complete=True, resume=True)
            names = with_further(self.unit_names_, len(index))
            # in one statement: an interruption leaves complete batches of rows
            self._index, self.n_units_, self.unit_names_ = index, len(index), names

        if self._neighbors is not None:  # so far, all rows were compared
            self._neighbors = self._neighbors.extended(self._search())
            self.search_recall_ = self._neighbors.recall

        return self

    # ---------------------------------------------------------------- queries
    def _check_query(self, X, y, *, new=False):
        self._refuse_sets()
        query = super()._check_query(X, y, new=new)
        model = as_model(self._model)
        if model.takes_texts:
            model.estimator._check_rows(*query[:2])
        return query

    def _signer(self):
        signer = Signer(self._source, self._settings, self._fit_seed)
        signer.use(self._index.tables)
        return signer

    def _search(self):
        options = self._index, self._similarities, self._neighbors
        return Search(self._signer(), *options)

    def _attribute(self, X, y, outcome):
        return self._of_units(self._search().scores(X, y, outcome))

    def _mean_of_rows(self, X, y, outcome):
        # scores are products with a query's vector: their mean is that of the mean
        return self._of_units(self._search().mean_scores(X, y, outcome))

    def _of_units(self, scores):
        """Return means and errors (q, n_units) of the scores of rows, by sketch."""
        if len(self._row_weights) < self.n_units_:  # rows were added
            weights = np.ones(self.n_units_, dtype=scores.dtype)
            weights[: len(self._row_weights)] = self._row_weights
            scores = scores * weights
        else:
            scores = self._by_unit(scores)
        mean = scores.mean(axis=0)
        if len(scores) == 1:
            return mean, None
        return mean, scores.std(axis=0, ddof=1) / len(scores) ** 0.5

    def _self_attribution(self, X, y, outcome):
        if self.tasks_ is not None:
            return super()._self_attribution(X, y, outcome)
        return self._search().own_scores(X, y, outcome) * self._row_weights

    def _value_new(self, X_new, y_new, X, y, outcome):
        return self._search().scores_of_new((X_new, y_new), (X, y), outcome)

    def _predict_outcomes(self, X, y, weights, outcome):
        return weights @ self._attribute(X, y, outcome)[0].T

    @property
    def predict_outcomes(self):
        """Not available: scores are similarities, not changes of an outcome."""
        raise AttributeError(
            "RISEValuator has no predict_outcomes: its scores are similarities, not "
            "changes of an outcome. `score` measures how well they rank retrained "
            "outcomes."
        )

    def _check_retrainable(self):
        n_added = len(self._index) - len(self._targets)
        check_retrainable(self._model, n_added)

    def retrieve(self, X, y=None, n=10):
        """Find the rows of the index that are most similar to each query.

        Parameters
        ----------
        X : array-like of shape (n_queries, n_features)
            Queries.
        y : array-like of shape (n_queries,) or (n_queries, n_outputs), default=None
            Their targets; None as in `attribute`.
        n : int, default=10
            Rows to return for each query.

        Returns
        -------
        scores : ndarray of shape (n_queries, n)
            Similarities, largest first.
        rows : ndarray of shape (n_queries, n)
            Positions in the index: first the training rows, then added rows.

        Raises
        ------
        ValueError
            If `n` is not between 1 and the number of rows.
        """
        X, y, outcome = self._check_query(X, y)
        if not (isinstance(n, Integral) and 1 <= n <= len(self._index)):
            raise ValueError(
                f"n={n!r} must be a whole number from 1 to the {len(self._index)} rows "
                "of the index."
            )
        scores, rows = self._search().best(X, y, outcome, n)
        self._warn_not_finite(scores, stacklevel=3)
        return scores, rows

    def score_samples(self, X, y=None):
        """Value new rows by their mean similarity to the rows of the index.

        After a fit on rows of a target task, these values rank candidates to train on.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            New rows.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Their targets; None as in `attribute`.

        Returns
        -------
        ndarray of shape (n_samples,)
            Similarity to the mean of the index; higher is more similar to the target.
        """
        X, y, outcome = self._check_query(X, y)
        means = self._search().means(X, y, outcome)
        means = means.astype(float_dtype(X), copy=False)
        self._warn_not_finite(means[:, None], stacklevel=3)
        return means

    # ---------------------------------------------------------------- verdict
    @fill_in(ATTRIBUTOR_DOCS)
    def diagnose(self, X, y=None, n_retrainings=0):
        """Report how far the scores can be trusted, and why not.

        Parameters
        ----------
        %(diagnosed)s

        Returns
        -------
        Bunch
            With these entries.

            - residual_norm: median norm of the residuals of the queries, or of their
              tokens.
            - vanishing_share: share of residuals that are too small to be more than
              rounding errors.
            - sketch_correlation: mean rank correlation over rows between scores and
              scores without sketches; None if the latter do not fit the memory.
            - search_recall: share of the ten most similar rows to the queries that
              ``algorithm="faiss"`` finds; None if it is not in use.
            - lds: with `n_retrainings`, rank correlation with retrained outcomes.
            - trustworthy, verdict: whether the checks support the scores, and a
              sentence that says what was checked and what was not.

        Warns
        -----
        FaithfulnessWarning
            If the verdict is bad.
        """
        X, y = with_targets(X, y, "diagnose")
        X, y, outcome = self._check_finite_query(X, y)
        if n_retrainings:
            self._check_retrainable()
        exact = None
        rows = (self._features, self._targets)
        if self._settings["sketch"] is not None:
            unsketched = {**self._settings, "sketch": None, "n_sketches": 1}
            exact = Signer(self._source, unsketched, 0)
        figures = similarity_figures(self._search(), exact, rows, X, y, outcome)
        if n_retrainings:
            figures.lds = self._calibrate(X, y, outcome, n_retrainings).lds
        return retrieval_verdict(figures, self._model, sketched=exact is not None)
