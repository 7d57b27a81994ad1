"""Regressors from weightings of units to outcomes, with attributions."""

import warnings
from abc import abstractmethod
from numbers import Real

import numpy as np
from scipy.linalg import eigh
from sklearn.base import (
    BaseEstimator,
    MultiOutputMixin,
    RegressorMixin,
    _fit_context,
)
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skattrib._validation import check_squares, unchanged_on_error, validate_data
from skattrib.exceptions import ConstantOutcomeWarning
from skattrib.surrogate._closed_forms import (
    check_at,
    kernel_differences,
    kernel_interactions,
    prior_variance,
)

__all__ = ["KernelSurrogate", "LinearSurrogate"]

_KERNEL_RIDGES = np.logspace(-6, 1, 8)
# Times 1/n_units: smaller ones are linear, larger ones relate equal subsets only.
_GAMMAS = np.array([0.1, 0.3, 1.0, 3.0])
_LINEAR_RIDGES = np.logspace(-3, 4, 15)


class _Surrogate(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Base class of regressors from weightings to outcomes, with attributions.

    A subclass implements `_learn`, `_predict`, `_attributions` and `_interactions`;
    outcomes are (n_subsets, n_outputs) there.
    """

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y):
        """Fit outcomes as a function of weightings.

        Parameters
        ----------
        X : array-like of shape (n_subsets, n_units)
            Weightings: 1 where a unit was present, 0 where it was absent.
        y : array-like of shape (n_subsets,) or (n_subsets, n_outputs)
            Outcome of each subset, for one or several queries.

        Returns
        -------
        self : estimator
            Fitted surrogate.

        Raises
        ------
        ValueError
            If there are fewer than 2 subsets.

        Warns
        -----
        ConstantOutcomeWarning
            If an outcome is the same for every subset: all its attributions are 0.
        UserWarning
            If subsets are duplicates, which misleads the choice of "loocv", or
            weightings lie outside [0, 1].
        """
        with unchanged_on_error(self):
            X, y = validate_data(
                self,
                X,
                y,
                dtype=np.float64,
                multi_output=True,
                y_numeric=True,
                ensure_min_samples=2,
            )
            check_squares(X, "X")
            check_squares(y, "y")
            self._n_dim = y.ndim
            outcomes = y.reshape(len(y), -1)
            _warn_if_no_weightings(X)
            _warn_if_constant(outcomes)
            if "loocv" in self.get_params().values():
                _warn_if_repeated(X)
            self._learn(X, outcomes)

        return self

    @abstractmethod
    def _learn(self, X, outcomes):
        """Learn from weightings and outcomes (n_subsets, n_outputs)."""

    @abstractmethod
    def _predict(self, X, return_std):
        """Return predictions (n_subsets, n_outputs) and their deviations or None."""

    @abstractmethod
    def _attributions(self, at, return_std):
        """Return attributions (n_outputs, n_units) and their deviations or None."""

    @abstractmethod
    def _interactions(self, at, average=False):
        """Return interactions (n_outputs, n_units, n_units), or their mean."""

    def predict(self, X, return_std=False):
        """Predict outcomes of weightings.

        Parameters
        ----------
        X : array-like of shape (n_subsets, n_units)
            Weightings.
        return_std : bool, default=False
            Also return posterior standard deviations of the noise-free outcome.

        Returns
        -------
        outcomes : ndarray of shape (n_subsets,) or (n_subsets, n_outputs)
            Predicted outcomes.
        standard_deviations : ndarray of the same shape
            Only with `return_std`.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        check_squares(X, "X")
        mean, std = self._predict(X, return_std)
        if self._n_dim == 1:
            mean, std = mean[:, 0], None if std is None else std[:, 0]
        return (mean, std) if return_std else mean

    def attribution(self, at="loo", *, return_std=False):
        """Return the contribution of each unit.

        Parameters
        ----------
        at : {"loo", "shapley", "banzhaf"} or float, default="loo"
            Which other units are present: all ("loo"), each with probability 1/2
            ("banzhaf") or the one given, or those before the unit in a random order
            ("shapley").
        return_std : bool, default=False
            Also return posterior standard deviations.

        Returns
        -------
        attributions : ndarray of shape (n_units,) or (n_outputs, n_units)
            Mean outcome with the unit minus without it.
        standard_deviations : ndarray of the same shape
            Only with `return_std`.
        """
        check_is_fitted(self)
        attributions, std = self._attributions(check_at(at), return_std)
        if self._n_dim == 1:
            attributions = attributions[0]
            std = None if std is None else std[0]
        return (attributions, std) if return_std else attributions

    def interactions(self, at="loo"):
        """Return the interactions of pairs of units.

        Parameters
        ----------
        at : {"loo", "shapley", "banzhaf"} or float, default="loo"
            Which other units are present, as in `attribution`.

        Returns
        -------
        ndarray of shape (n_units, n_units) or (n_outputs, n_units, n_units)
            Mean of outcome with both units, minus with either one, plus with neither.
            Positive: together they have more effect than the sum of both alone. The
            diagonal is 0.
        """
        check_is_fitted(self)
        interactions = self._interactions(check_at(at))
        return interactions[0] if self._n_dim == 1 else interactions


def _warn_if_no_weightings(X):
    if X.min() < 0 or X.max() > 1:
        warnings.warn(
            f"X has values from {X.min():g} to {X.max():g}, but weightings are 0 "
            "(absent) to 1 (present), with a column per unit. To convert lists of the "
            "units present, use sklearn.preprocessing.MultiLabelBinarizer.",
            UserWarning,
            stacklevel=4,
        )


def _warn_if_constant(outcomes):
    constant = np.flatnonzero(np.ptp(outcomes, axis=0) == 0)
    if len(constant):
        warnings.warn(
            f"The outcome of {len(constant)} of {outcomes.shape[1]} queries is the "
            f"same for every subset (columns {constant[:5].tolist()}): their "
            "attributions are 0.",
            ConstantOutcomeWarning,
            stacklevel=4,
        )


def _warn_if_repeated(X):
    repeated = len(X) - len(np.unique(X, axis=0))
    if repeated:
        warnings.warn(
            f"{repeated} of {len(X)} subsets are duplicates of others, which predict "
            "them when they are left out, so that 'loocv' chooses too small a ridge. "
            "Average the outcomes of duplicates, or pass a number.",
            UserWarning,
            stacklevel=4,
        )


class KernelSurrogate(_Surrogate):
    """Kernel ridge regression of outcomes on subsets, for units that interact.

    The outcomes of subsets may come from anywhere: demonstrations in a prompt, tasks of
    a policy, runs on a cluster. Attributions and interactions have a closed form.

    Parameters
    ----------
    ridge : "loocv" or float, default="loocv"
        Penalty, relative to k(s, s) = 1. "loocv" selects, for each output, the one with
        the smallest error of a subset left out, which has a closed form: the best for
        subsets like those fitted. For effects of leaving out tasks, not single rows,
        that are extrapolated from halves, 0.1 is more faithful in four of six problems,
        by 0.029 to 0.064 in correlation (``benchmarks.surrogates.ridge``).
    bandwidth : {"auto", "loocv"} or float, default="auto"
        Width b of the kernel k(s, s') = exp(−‖s − s'‖² / (2 b²)). "auto" is
        √(n_units / 2): mostly additive, with some interactions of pairs. "loocv"
        searches around it.

    Attributes
    ----------
    ridge_ : float or ndarray of shape (n_outputs,)
        Penalty used.
    bandwidth_ : float or ndarray of shape (n_outputs,)
        Bandwidth used.
    dual_coef_ : ndarray of shape (n_subsets, n_outputs)
        Coefficient of each subset.
    intercept_ : ndarray of shape (n_outputs,)
        Mean outcome.
    loocv_error_ : ndarray of shape (n_outputs,)
        Mean squared leave-one-out error.
    X_fit_ : ndarray of shape (n_subsets, n_units)
        Subsets used in fit.
    n_features_in_ : int
        Number of units.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the units, if X had any.

    See Also
    --------
    LinearSurrogate : A linear model of outcomes.
    KernelSurrogateAttributor : Computes the outcomes of subsets itself.

    References
    ----------
    Kernel surrogate models for task attribution, arXiv:2602.03783.

    Examples
    --------
    Two units that only help together:

    >>> import numpy as np
    >>> from skattrib import KernelSurrogate
    >>> W = (np.arange(16)[:, None] >> np.arange(4)) % 2
    >>> surrogate = KernelSurrogate().fit(W, W[:, 0] * W[:, 1])
    >>> surrogate.attribution(at="shapley").round(2) + 0.0
    array([0.5, 0.5, 0. , 0. ])
    >>> surrogate.interactions()[0].round(2) + 0.0
    array([0., 1., 0., 0.])
    """

    _parameter_constraints: dict = {
        "ridge": [StrOptions({"loocv"}), Interval(Real, 0, None, closed="neither")],
        "bandwidth": [
            StrOptions({"auto", "loocv"}),
            Interval(Real, 0, None, closed="neither"),
        ],
    }

    def __init__(self, ridge="loocv", bandwidth="auto"):
        self.ridge = ridge
        self.bandwidth = bandwidth

    def _learn(self, X, outcomes):
        n_outputs = outcomes.shape[1]
        usual = np.sqrt(X.shape[1] / 2)
        bandwidths = {
            "auto": usual[None],
            "loocv": usual / np.sqrt(_GAMMAS),
        }.get(self.bandwidth, np.array([self.bandwidth]))
        ridges = _KERNEL_RIDGES if self.ridge == "loocv" else np.array([self.ridge])
        self.X_fit_ = X
        self.intercept_ = outcomes.mean(axis=0)

        best = np.full(n_outputs, np.inf)
        ridge, bandwidth = np.empty(n_outputs), np.empty(n_outputs)
        self.dual_coef_ = np.zeros_like(outcomes)

        for b in bandwidths:
            kernel = _Kernel(X, 1 / (2 * b**2))
            for r in ridges:
                coef, errors = kernel.solve(outcomes - self.intercept_, r)
                error = np.square(errors).mean(axis=0)
                better = error < best
                best[better], ridge[better], bandwidth[better] = error[better], r, b
                self.dual_coef_[:, better] = coef[:, better]

        self.loocv_error_ = best
        self.ridge_, self.bandwidth_ = (
            (float(v[0]) if self._n_dim == 1 else v) for v in (ridge, bandwidth)
        )
        # variance of the Gaussian process that maximises its likelihood
        centred = outcomes - self.intercept_
        self._variance = (centred * self.dual_coef_).mean(axis=0).clip(min=0)

    def _noise(self):
        """Return the standard deviation (n_outputs,) of what is not explained."""
        return np.sqrt(self._variance * self.ridge_)

    def _bandwidths(self):
        """Yield each γ and a mask of the outputs that use it."""
        bandwidths = np.atleast_1d(self.bandwidth_)
        for bandwidth in np.unique(bandwidths):
            yield 1 / (2 * bandwidth**2), bandwidths == bandwidth

    def _deviations(self, gamma, which, prior, columns):
        """Return deviations (k, n_outputs) of values with kernels (n_subsets, k)."""
        kernel = _Kernel(self.X_fit_, gamma)
        ridges = np.atleast_1d(self.ridge_)[which]
        variance = np.empty((columns.shape[1], len(ridges)))
        for ridge in np.unique(ridges):
            explained = kernel.explained(columns, ridge)
            variance[:, ridges == ridge] = (prior - explained)[:, None]
        return np.sqrt(variance.clip(min=0) * self._variance[which])

    def _predict(self, X, return_std):
        mean = np.empty((len(X), self.dual_coef_.shape[1]))
        std = np.empty_like(mean) if return_std else None
        for gamma, which in self._bandwidths():
            kernel = rbf_kernel(self.X_fit_, X, gamma=gamma)
            change = kernel.T @ self.dual_coef_[:, which]
            mean[:, which] = self.intercept_[which] + change
            if return_std:
                std[:, which] = self._deviations(gamma, which, 1.0, kernel)
        return mean, std

    def _attributions(self, at, return_std):
        n = self.X_fit_.shape[1]
        attributions = np.empty((self.dual_coef_.shape[1], n))
        std = np.empty_like(attributions) if return_std else None
        for gamma, which in self._bandwidths():
            differences = kernel_differences(self.X_fit_, gamma, at)
            attributions[which] = self.dual_coef_[:, which].T @ differences
            if return_std:
                prior = prior_variance(n, gamma, at)
                std[which] = self._deviations(gamma, which, prior, differences).T
        return attributions, std

    def _interactions(self, at, average=False):
        n_units, n_outputs = self.X_fit_.shape[1], self.dual_coef_.shape[1]
        interactions = np.zeros((1 if average else n_outputs, n_units, n_units))
        for gamma, which in self._bandwidths():
            coef = self.dual_coef_[:, which]
            if average:
                coef = coef.sum(axis=1, keepdims=True) / n_outputs
            group_interactions = kernel_interactions(coef, self.X_fit_, gamma, at)
            if average:
                interactions += group_interactions
            else:
                interactions[which] = group_interactions
        return interactions[0] if average else interactions


class _Kernel:
    """Eigendecomposition of the kernel of the subsets, for all values of the ridge."""

    def __init__(self, X, gamma):
        values, self.vectors = eigh(rbf_kernel(X, gamma=gamma))
        self.values = values.clip(min=0)

    def solve(self, centred, ridge):
        """Return coefficients and exact leave-one-out errors of centred outcomes.

        Leaving a subset out also changes the mean outcome.
        """
        shrunk = self.vectors / (self.values + ridge)
        coef = shrunk @ (self.vectors.T @ centred)
        diagonal = (shrunk * self.vectors).sum(axis=1)[:, None]
        constant = (shrunk @ self.vectors.sum(axis=0))[:, None]
        errors = (coef + centred / (len(centred) - 1) * constant) / diagonal
        return coef, errors

    def explained(self, columns, ridge):
        """Return cᵀ(K + ridge I)⁻¹c of every column c, (n_columns,)."""
        rotated = self.vectors.T @ columns
        return (rotated**2 / (self.values + ridge)[:, None]).sum(axis=0)


class LinearSurrogate(_Surrogate):
    """Ridge regression of outcomes on subsets: the additive baseline.

    Parameters
    ----------
    ridge : "loocv" or float, default="loocv"
        Penalty: Σ error² + ridge · ‖coef‖², without the intercept. "loocv" selects, for
        each output, the one with the smallest leave-one-out error. 0 is least squares.

    Attributes
    ----------
    ridge_ : float or ndarray of shape (n_outputs,)
        Penalty used.
    coef_ : ndarray of shape (n_outputs, n_units)
        Contribution of each unit.
    intercept_ : ndarray of shape (n_outputs,)
        Predicted outcome of the empty set.
    n_features_in_ : int
        Number of units.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the units, if X had any.

    See Also
    --------
    KernelSurrogate : For units that interact.

    Notes
    -----
    From subsets that hold each unit with probability p, the coefficient of a unit
    estimates its effect when the others are present with probability p. If the
    outcome has interactions H of pairs, that is the leave-one-out effect plus (p − 1)
    times the sum of the unit's interactions (arXiv:2602.03783, Proposition 3.1).

    Examples
    --------
    >>> import numpy as np
    >>> from skattrib import LinearSurrogate
    >>> W = (np.arange(16)[:, None] >> np.arange(4)) % 2
    >>> surrogate = LinearSurrogate(ridge=0).fit(W, W[:, 0] * W[:, 1])
    >>> surrogate.attribution().round(2) + 0.0
    array([0.5, 0.5, 0. , 0. ])
    """

    _parameter_constraints: dict = {
        "ridge": [StrOptions({"loocv"}), Interval(Real, 0, None, closed="left")],
    }

    def __init__(self, ridge="loocv"):
        self.ridge = ridge

    def _learn(self, X, outcomes):
        if self.ridge == "loocv":
            model = RidgeCV(_LINEAR_RIDGES, alpha_per_target=outcomes.shape[1] > 1)
            ridge = model.fit(X, outcomes).alpha_
        else:
            model = Ridge(self.ridge, solver="svd").fit(X, outcomes)
            ridge = self.ridge
        n_outputs = outcomes.shape[1]
        self.coef_ = model.coef_.reshape(n_outputs, -1)
        self.intercept_ = np.reshape(model.intercept_, n_outputs)
        ridge = np.broadcast_to(ridge, n_outputs).copy()
        self.ridge_ = float(ridge[0]) if self._n_dim == 1 else ridge
        self._learn_noise(X, outcomes)

    def _learn_noise(self, X, outcomes):
        """Store singular vectors and the noise of outputs, for standard deviations."""
        self._mean = X.mean(axis=0)
        _, singular, self._right = np.linalg.svd(X - self._mean, full_matrices=True)
        self._squares = np.zeros(X.shape[1])
        self._squares[: len(singular)] = singular**2
        ridge = np.atleast_1d(self.ridge_)
        total = self._squares + ridge[:, None]
        share = np.divide(
            self._squares, total, out=np.zeros_like(total), where=total > 0
        )

        error = outcomes - self._predict(X, False)[0]
        # with fewer subsets than units, nothing may be left to estimate the noise
        freedom = (len(X) - 1 - share.sum(axis=1)).clip(min=1)
        self._noise = np.square(error).sum(axis=0) / freedom

    def _spread(self, columns):
        """Return deviations (k, n_outputs) of contrasts (n_units, k)."""
        total = self._squares + np.atleast_1d(self.ridge_)[:, None]
        inverse = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
        return np.sqrt(((self._right @ columns) ** 2).T @ inverse.T * self._noise)

    def _predict(self, X, return_std):
        mean = X @ self.coef_.T + self.intercept_
        return mean, self._spread((X - self._mean).T) if return_std else None

    def _attributions(self, at, return_std):
        # a copy, so that the caller cannot change the surrogate
        std = self._spread(np.eye(self.coef_.shape[1])).T if return_std else None
        return self.coef_.copy(), std

    def _interactions(self, at, average=False):
        n_outputs, n_units = self.coef_.shape
        shape = (n_units, n_units)
        return np.zeros(shape if average else (n_outputs, *shape))
