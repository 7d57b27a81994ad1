"""Random projections: count sketches, and projected gradients of rows."""

import warnings
from numbers import Integral

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    MetaEstimatorMixin,
    TransformerMixin,
    _fit_context,
    clone,
)
from sklearn.exceptions import DataDimensionalityWarning
from sklearn.random_projection import BaseRandomProjection
from sklearn.utils._param_validation import HasMethods, Hidden, Interval, StrOptions
from sklearn.utils.validation import _check_n_features, check_is_fitted

from skattrib._indexes import check_order
from skattrib._parameter_projection import ParameterProjection
from skattrib._validation import (
    DTYPES,
    as_tensor,
    check_fits,
    draw_seed,
    float_dtype,
    has_columns,
    memory_cap,
    seed_unset,
    unchanged_on_error,
    validate_data,
)
from skattrib.engine._functional import FunctionalModule, chunks
from skattrib.engine._losses import SetOutcome
from skattrib.engine._parallel import batches, call_each
from skattrib.engine._sketch import (
    draw_tables,
    numbers_per_row,
    outcome_gradients,
    sketch,
)
from skattrib.exceptions import FaithfulnessWarning
from skattrib.models._as_model import as_model, check_recipe
from skattrib.models._datasets import opened, rows_of
from skattrib.models._fit_params import check_target
from skattrib.models._outcomes import OUTCOMES, check_own_outcome
from skattrib.models._parts import Parts, is_search
from skattrib.models._repeatable import check_repeatable
from skattrib.models._rows import validate_rows
from skattrib.models.neural import make_estimator

__all__ = ["CountSketchTransformer", "GradientTransformer"]

# Numbers processed at a time: more do not fit the cache, which is several times slower.
_AT_ONCE = 2**20


class CountSketchTransformer(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator
):
    """Reduce dimensionality by summing features in random groups with random signs.

    This is a sparse random projection with one entry per feature: it takes about as
    long as reading the data and stores a few bytes per feature, where a dense
    projection stores `n_components` numbers. Inner products of rows are preserved on
    average.

    Parameters
    ----------
    n_components : int, default=256
        Number of columns to return.
    n_hashes : int, default="deprecated"
        Number of concatenated sketches, of ``n_components / n_hashes`` components each.

        .. deprecated:: 0.1
           Will be removed: the variance does not depend on it, but the time is
           proportional.
    random_state : int, RandomState instance or None, default=None
        Seed of the hash tables.

    Attributes
    ----------
    hash_indices_ : ndarray of shape (1, n_features), dtype int32
        Component to which each feature is added.
    hash_signs_ : ndarray of shape (1, n_features), dtype int8
        Sign with which the feature is added, -1 or 1.
    n_components_ : int
        Number of columns returned.
    n_features_in_ : int
        Number of features seen in fit.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, if X had any.

    See Also
    --------
    GradientTransformer : Accepts it as `projection`.
    sklearn.random_projection.SparseRandomProjection : Has a random number of entries
        per feature.
    sklearn.feature_extraction.FeatureHasher : Hashes names, not columns.

    Notes
    -----
    For the sketches Sx and Sy of rows x and y, over the draws of the tables,
    E⟨Sx, Sy⟩ = ⟨x, y⟩ and

        Var⟨Sx, Sy⟩ = (‖x‖² ‖y‖² + ⟨x, y⟩² − 2 Σ_i x_i² y_i²) / n_components

    References
    ----------
    M. Charikar, K. Chen and M. Farach-Colton, Finding frequent items in data streams,
    ICALP 2002.

    K. Weinberger et al., Feature hashing for large scale multitask learning,
    ICML 2009, arXiv:0902.2206.

    Examples
    --------
    >>> import numpy as np
    >>> from skattrib import CountSketchTransformer
    >>> X = np.random.RandomState(0).randn(5, 3000)
    >>> S = CountSketchTransformer(512, random_state=0).fit_transform(X)
    >>> S.shape
    (5, 512)
    >>> bool(abs((S @ S.T) / (X @ X.T) - 1).diagonal().max() < 0.2)
    True
    """

    _parameter_constraints: dict = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "n_hashes": [
            Interval(Integral, 1, None, closed="left"),
            Hidden(StrOptions({"deprecated"})),
        ],
        "random_state": ["random_state"],
    }

    def __init__(self, n_components=256, *, n_hashes="deprecated", random_state=None):
        self.n_components = n_components
        self.n_hashes = n_hashes
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Draw the hash tables.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Only the number of features is used.
        y : Ignored
            Not used, present by convention.

        Returns
        -------
        self : CountSketchTransformer
            Fitted transformer.

        Raises
        ------
        ValueError
            If `n_components` is not a multiple of `n_hashes`.

        Warns
        -----
        DataDimensionalityWarning
            If there are fewer features than components.
        FutureWarning
            If `n_hashes` is set, which is deprecated.
        """
        n_hashes = self._check_hashes()
        with unchanged_on_error(self):
            X = validate_data(self, X, accept_sparse=["csr", "csc"], dtype=DTYPES)
        if self.n_components > X.shape[1]:
            warnings.warn(
                f"n_components={self.n_components} is more than the {X.shape[1]} "
                "features: the dimension is not reduced.",
                DataDimensionalityWarning,
                stacklevel=3,
            )

        seed = draw_seed(self.random_state)
        tables = draw_tables(X.shape[1], self.n_components, n_hashes, seed)
        self.hash_indices_, self.hash_signs_ = (table.numpy() for table in tables)
        self.n_components_ = self._n_features_out = self.n_components
        return self

    def _check_hashes(self):
        """Return the number of hashes; raise if it does not divide the components."""
        if self.n_hashes == "deprecated":
            return 1
        warnings.warn(
            f"n_hashes={self.n_hashes} is deprecated and will be removed. Leave it "
            "out.",
            FutureWarning,
            stacklevel=4,
        )
        rest = self.n_components % self.n_hashes
        if rest:
            raise ValueError(
                f"n_components={self.n_components} must be a multiple of n_hashes="
                f"{self.n_hashes}, as each hash has an equal share of the components. "
                f"Use n_components={self.n_components - rest + self.n_hashes}."
            )
        return self.n_hashes

    def transform(self, X):
        """Return sketches of rows.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows, float32 or float64.

        Returns
        -------
        {ndarray, sparse matrix} of shape (n_samples, n_components)
            Sketches in the dtype of X; sparse if X is sparse.
        """
        check_is_fitted(self)
        X = validate_data(
            self, X, accept_sparse=["csr", "csc"], dtype=DTYPES, reset=False
        )
        if sp.issparse(X):
            return X @ self._matrix(X.dtype)

        tables = as_tensor(self.hash_indices_), as_tensor(self.hash_signs_)
        row_chunks = chunks(len(X), _AT_ONCE // X.shape[1])
        return np.concatenate(
            [
                sketch(as_tensor(X[chunk]), *tables, self.n_components_).numpy()
                for chunk in row_chunks
            ]
        )

    def _matrix(self, dtype):
        """Return the projection (n_features, n_components), as CSR."""
        n_hashes, n_features = self.hash_indices_.shape
        data = self.hash_signs_.T.ravel() / np.sqrt(n_hashes)
        starts = np.arange(n_features + 1) * n_hashes
        return sp.csr_array(
            (data.astype(dtype), self.hash_indices_.T.ravel(), starts),
            shape=(n_features, self.n_components_),
        )

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.input_tags.sparse = True
        return tags


class GradientTransformer(
    ClassNamePrefixFeaturesOutMixin, MetaEstimatorMixin, TransformerMixin, BaseEstimator
):
    """Represent rows by the gradient of a network's outcome in its parameters.

    Two rows are close if training on one changes the outcome of the other: inner
    products of these features are the empirical neural tangent kernel of the outcome.
    They are useful to cluster, search and select rows by their effect on the model
    rather than by their features.

    Parameters
    ----------
    estimator : TorchClassifier, TorchRegressor or None, default=None
        Model to train; a fitted one inside `sklearn.frozen.FrozenEstimator` is used as
        it is. None builds one that suits y. Integers in y are treated as classes: for
        counts pass a TorchRegressor.
    projection : int, CountSketchTransformer, sklearn random projection or None, \
            default=None
        Projects the gradient of a row in P parameters to fewer features, one block of
        parameters after another: the n x P gradients never exist. The features equal
        those of a pipeline of this transformer without `projection`, and the
        projection. An int k stands for ``CountSketchTransformer(k)``; a
        `sklearn.random_projection.GaussianRandomProjection` stores k x P numbers. None
        returns the gradients.
    outcome : {"auto", "log_likelihood", "margin", "prediction", "probability"} or \
            callable, default="auto"
        Outcome to differentiate, at the network's own prediction; see
        `evaluation.retrain_outcomes`. "auto" is the log-likelihood of the predicted
        class, or the prediction of a regressor with one output. The gradient of a
        log-likelihood vanishes if the network is certain, that of "margin" does not. A
        callable takes (outputs, y), where y are class codes or outputs.
    n_jobs : int or None, default=None
        Workers of `transform`, which process batches of rows.
    random_state : int, RandomState instance or None, default=None
        Seeds the estimator and the projection if they are unseeded.

    Attributes
    ----------
    estimator_ : estimator
        Fitted model.
    projection_ : transformer or None
        Fitted projection.
    n_features_in_ : int
        Number of features seen in fit.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, if X had any.

    See Also
    --------
    CountSketchTransformer : The cheapest projection.
    DualInfluence : Computes effects of leaving rows out from such gradients.

    Notes
    -----
    Gradients are computed in the dtype of the module, for as many rows at a time as fit
    scikit-learn's ``working_memory``. Their columns are the parameters that require a
    gradient, flattened in the order of ``module_.named_parameters()``.

    References
    ----------
    A. Jacot, F. Gabriel and C. Hongler, Neural tangent kernel: convergence and
    generalization in neural networks, NeurIPS 2018, arXiv:1806.07572.

    S. M. Park et al., TRAK: attributing model behavior at scale, ICML 2023,
    arXiv:2303.14186 (projected gradients of margins).

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skattrib import GradientTransformer, TorchClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = TorchClassifier(max_epochs=20, random_state=0)
    >>> GradientTransformer(clf).fit_transform(X, y).shape
    (150, 259)
    >>> projected = GradientTransformer(clf, projection=32, random_state=0)
    >>> projected.fit_transform(X, y).shape
    (150, 32)
    """

    _parameter_constraints: dict = {
        "estimator": [HasMethods(["fit", "predict"]), torch.nn.Module, None],
        "projection": [
            Interval(Integral, 1, None, closed="left"),
            CountSketchTransformer,
            BaseRandomProjection,
            None,
        ],
        "outcome": [
            StrOptions(set(OUTCOMES)),
            callable,
        ],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        estimator=None,
        *,
        projection=None,
        outcome="auto",
        n_jobs=None,
        random_state=None,
    ):
        self.estimator = estimator
        self.projection = projection
        self.outcome = outcome
        self.n_jobs = n_jobs
        self.random_state = random_state

    # -------------------------------------------------------------------- fit
    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y, sample_weight=None):
        """Train the network and draw the projection.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Their targets.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Multiplier of each row's loss in training.

        Returns
        -------
        self : GradientTransformer
            Fitted transformer.

        Raises
        ------
        ValueError
            If a parameter or the data cannot be used.
        NotFittedError
            If the estimator is frozen but not fitted.

        Warns
        -----
        FaithfulnessWarning
            If a wrapped module that is already trained would be trained again.
        """
        check_recipe(self.estimator, stacklevel=3)
        with unchanged_on_error(self):
            return self._fit(X, y, sample_weight)

    def _fit(self, X, y, sample_weight):
        X, y = opened(X, y)
        check_order(X, y, {"sample_weight": sample_weight})
        several = has_columns(y)
        X, y = validate_rows(
            self, X, y, multi_output=several, any_shape=self._takes_any_shape
        )
        seeds = np.random.SeedSequence(draw_seed(self.random_state)).generate_state(2)
        estimator = make_estimator(self.estimator, y, int(seeds[0] >> 1))
        y = check_target(y, estimator)
        model = as_model(estimator)
        model.network(self)

        if not Parts(estimator).is_bare or is_search(estimator):
            raise ValueError(
                "GradientTransformer takes rows and targets as the network does: pass "
                "it the network alone, and transform before it, as in "
                "make_pipeline(StandardScaler(), GradientTransformer(...))."
            )

        if isinstance(self.outcome, SetOutcome):
            raise ValueError(
                f"outcome={self.outcome!r} is of all rows together, and "
                "GradientTransformer returns a gradient for each: use an outcome of "
                "single rows, such as 'log_likelihood'."
            )
        projection = self._make_projection(int(seeds[1] >> 1))
        loss = model.future_loss(X, y)
        n_outputs = y.shape[1] if several else 1
        self._outcome = check_own_outcome(self.outcome, estimator, n_outputs, loss)
        _check_n_features(estimator, X, reset=False)
        self.estimator_ = estimator.fit(X, y, sample_weight=sample_weight)
        # this also detects a wrapped module of another width
        check_repeatable(as_model(estimator), X)
        n_params = FunctionalModule(estimator.module_).n_params
        self.projection_, self._n_features_out = projection, n_params

        if projection is not None:
            # only the shape is used
            projection.fit(sp.csr_array((len(X), n_params), dtype=float_dtype(X)))
            self._n_features_out = projection.n_components_

        return self

    @property
    def _takes_any_shape(self):
        return self.estimator is not None and as_model(self.estimator).takes_any_shape

    def _make_projection(self, seed):
        if self.projection is None:
            return None
        if isinstance(self.projection, Integral):
            return CountSketchTransformer(self.projection, random_state=seed)
        return checked_projection(self.projection, seed, auto=True)

    # -------------------------------------------------------------- transform
    def transform(self, X):
        """Return the gradients of rows, or their projections.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples, n_params) or (n_samples, n_components)
            Gradient of each row's outcome in the parameters, in units of the outcome
            per unit of the parameter; or its projection. In the dtype of X.

        Raises
        ------
        ValueError
            If the result is larger than scikit-learn's ``working_memory``.
        """
        check_is_fitted(self)
        X = validate_rows(
            self, rows_of(X), reset=False, any_shape=self._takes_any_shape
        )
        cure = "Pass projection=, transform fewer rows at a time"
        check_fits(len(X), self._n_features_out, float_dtype(X), cure)
        module = self.estimator_.module_
        like = next(module.parameters())
        model = FunctionalModule(module)
        # an eighth: gradients take several times the memory of their factors
        cap = int(memory_cap() / (8 * like.element_size()))
        size = cap // numbers_per_row(model, as_tensor(X[:1], like))

        arguments = (
            module,
            self.estimator_.loss_function_,
            self._outcome,
            self.projection_,
        )
        arguments = *arguments, self._n_features_out, min(cap, _AT_ONCE)
        row_batches = batches(len(X), size, self.n_jobs)
        calls = [(*arguments, X[batch]) for batch in row_batches]

        out = np.empty((len(X), self._n_features_out), dtype=float_dtype(X))
        blocks = call_each(_features, calls, self.n_jobs)
        for batch, block in zip(row_batches, blocks, strict=True):
            out[batch] = block
        odd = np.flatnonzero(~np.isfinite(out).all(axis=1))
        if len(odd):
            warnings.warn(
                f"The gradients of {len(odd)} rows, such as {odd[:10].tolist()}, are "
                "not finite: the model's outputs, or their outcome, overflow there.",
                FaithfulnessWarning,
                stacklevel=3,
            )
        return out

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _features(module, loss, outcome, projection, n_features, cap, X):
    """Return the gradients of rows, or their projections, `cap` numbers at a time."""
    like = next(module.parameters())
    model = FunctionalModule(module)
    outcome = loss.outcome(outcome)
    project = None
    if projection is not None:
        project = ParameterProjection(projection, like).apply
    out = np.zeros((len(X), n_features), dtype=float_dtype(X))
    rows = as_tensor(X, like)

    for columns, block in outcome_gradients(model, rows, outcome, loss, cap):
        if project is None:
            out[:, columns] = block.cpu().numpy()
        else:
            out += project(columns, block).cpu().numpy()

    return out


def fitted_projection(projection, n_params, dtype, seed):
    """Return a fitted clone; ``seed`` is used if it is unseeded."""
    projection = checked_projection(projection, seed)
    # only the shape is used
    return projection.fit(sp.csr_array((1, n_params), dtype=dtype))


def checked_projection(projection, seed, *, auto=False):
    """Return a clone with valid parameters, before any training.

    Unless ``auto``, its ``n_components`` must be a number.
    """
    projection = clone(projection)
    seed_unset(projection, seed)
    projection._validate_params()
    if projection.n_components == "auto" and not auto:
        raise ValueError(
            f"projection={type(projection).__name__}(n_components='auto') depends on "
            "the number of samples, but parameters are projected here: pass an int "
            "n_components."
        )
    if isinstance(projection, CountSketchTransformer):
        projection._check_hashes()
    return projection
