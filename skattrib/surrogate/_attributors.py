"""Attributors that fit a model of outcomes as a function of the training units."""

from numbers import Real

import numpy as np
from sklearn.base import _fit_context
from sklearn.utils._param_validation import Interval, StrOptions

from skattrib._docstrings import fill_in
from skattrib.base import ATTRIBUTOR_DOCS
from skattrib.surrogate._base import SurrogateAttributor
from skattrib.surrogate._halves import PosteriorOfPrior
from skattrib.surrogate._regressors import KernelSurrogate, LinearSurrogate

__all__ = ["KernelSurrogateAttributor", "LinearSurrogateAttributor"]

# What the docstrings of the two have in common.
_DOCS = {
    **ATTRIBUTOR_DOCS,
    "estimator": """
    estimator : estimator or None, default=None
        Classifier or regressor whose ``fit`` takes `sample_weight`; of a pipeline
        only the last step sees it. None builds a small network that suits y.
    """,
    "subsets": """
    n_subsets : int, default=128
        Number of random subsets of the units to fit the surrogate to. If there are few
        units, some subsets of size `retrain_size` are reserved for `score`: its
        `n_retrainings` or half of all, and at least 8 if there are that many. With
        "retrain", the models of all subsets are stored and pickled with the attributor.
    inclusion : {"auto", "uniform"} or float, default="auto"
        Probability in (0, 1] that a unit is in a subset; 1 uses the full set and the
        leave-one-out subsets only. "uniform" draws subsets of all sizes equally often.
        "auto" follows `at`: "uniform" for Shapley values, else its probability, limited
        to 0.25 to 0.75.
    estimation : {"auto", "gradient", "retrain"}, default="auto"
        How the outcomes of subsets are computed. "retrain": by training on each subset,
        for any estimator. "gradient": by refitting the network, linearised at its
        trained weights, to each subset with damped Newton steps, which is cheaper for
        large networks. "auto" takes the one with fewer multiplications; `estimation_`
        is its choice.
    damping : "auto" or float, default="auto"
        Damping of the mean row loss in the linearised problem; as `ridge` of
        `DualInfluence`. Not the surrogate's `ridge`.
    center : {"trained", "initial"}, default="initial"
        Weights towards which the linearised problem is damped. "initial": the gradient
        that remains at the end of training, which represents the pull of the initial
        weights, is kept constant. "trained": the trained weights, as in fine-tuning.
    projection : int, CountSketchTransformer, random projection or None, default=None
        Subspace of the parameters to solve in. An int is a number of principal
        directions of the training outputs; None is exact.
    include_loo : "auto" or bool, default="auto"
        Whether the surrogate is fitted to the leave-one-out subsets, too. "auto": for
        `at="loo"`, if there are no more units than `n_subsets`. The kernel's
        attributions are then the differences themselves, not smoothed: `inclusion=1`
        gives the same ones from these subsets alone.
    at : {"loo", "shapley", "banzhaf"} or float, default="loo"
        Which other units are present when the effect of a unit is computed: all
        ("loo"), those before it in a random order ("shapley"), or each with probability
        1/2 ("banzhaf") or the one given.
    prior : attributor or None, default=None
        Attributor whose attributions are the starting point: the surrogate is fitted to
        the part of the outcomes that they do not explain. A prior without an estimator
        uses this one's; `outcome`, and parameters that the prior leaves unset, are
        always taken from here. With an `AdamWInfluence`, a few subsets are enough where
        the surrogate alone needs hundreds; its attributions are used as they are, so
        set its `inclusion` to suit `at`. Its own `n_halves` is not used.
    """,
    "retraining": """
    n_retrainings : int, default=32
        Models trained by `score`, on subsets not used in fit; at least 8.
    retrain_size : float, default=0.5
        Fraction of the units that each of them is trained on.
    memory : str, joblib.Memory or None, default=None
        Cache of the subsets' models, or their linearised steps, and of retrained
        outcomes; an interruption loses at most 32 of them. Needs an int `random_state`.
        With it, a search over parameters of the surrogate alone, such as `ridge`,
        estimates once per fold. Stores complete models.
    n_jobs : int or None, default=None
        Workers for estimators that cannot be trained as a stack.
    random_state : int, RandomState instance or None, default=None
        Seeds what the estimator leaves unseeded, the subsets and those of `score`.
    verbose : int, default=0
        1 prints how outcomes are estimated, and shows progress.
    """,
    "attributes": """
    estimator_ : estimator
        Fitted model.
    estimation_ : {"gradient", "retrain"}
        How the outcomes of subsets were computed.
    prior_ : attributor or None
        Fitted prior.
    weights_ : ndarray of shape (n_learnt, n_units)
        Subsets used in fit: all units, those without one unit, random ones.
    X_train_ : ndarray or DataFrame of shape (n_samples, n_features)
        Training rows; a data frame remains one if the estimator is not a network.
    """,
    "fit_parameters": """
    X : array-like of shape (n_samples, n_features)
        Training rows: numbers without NaN. An estimator that is not a network gets
        a data frame unchanged.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Their targets.
    tasks : array-like of shape (n_samples,) or None, default=None
        Unit of each row, for example its source; None makes every row a unit.
    **fit_params : dict
        Passed to the estimator's ``fit``: its `sample_weight`, which also applies
        to the subsets, under the name ``step__sample_weight`` in a pipeline.
    """,
}


@fill_in(_DOCS)
class KernelSurrogateAttributor(SurrogateAttributor):
    """Task attribution by kernel ridge regression on subsets, with interactions.

    Parameters
    ----------
    %(estimator)s
    ridge : "loocv" or float, default="loocv"
        Penalty of the surrogate, relative to k(s, s) = 1; "loocv" selects for each
        query the one with the smallest error of a subset left out. With ``at="loo"``,
        if the leave-one-out subsets are not used (`include_loo`) and the others are
        halves, 0.1 is better for tasks, not single rows, in four of six problems; see
        `KernelSurrogate`.
    bandwidth : {"auto", "loocv"} or float, default="auto"
        Width of the Gaussian kernel on weightings; "auto" is √(n_units / 2).
    %(subsets)s
    %(outcome)s
    %(asked_halves)s
    %(retraining)s

    Attributes
    ----------
    %(attributes)s
    %(halves_found)s
    %(units)s

    See Also
    --------
    KernelSurrogate : The regressor, for outcomes from anywhere.
    LinearSurrogateAttributor : The additive baseline.

    Notes
    -----
    Predicted outcomes are smoothed by the ridge, also at weights of 1.

    References
    ----------
    Kernel surrogate models for task attribution, arXiv:2602.03783.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from skattrib import KernelSurrogateAttributor, TorchClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> tasks = np.arange(150) % 6
    >>> clf = TorchClassifier(max_epochs=20, random_state=0)
    >>> surrogate = KernelSurrogateAttributor(clf, n_subsets=30, random_state=0)
    >>> surrogate.fit(X, y, tasks=tasks).attribute(X[:5], y[:5]).shape
    (5, 6)
    >>> surrogate.interactions(X[:5], y[:5], average=True).shape
    (6, 6)
    """

    _parameter_constraints: dict = {
        **SurrogateAttributor._parameter_constraints,
        "bandwidth": [
            StrOptions({"auto", "loocv"}),
            Interval(Real, 0, None, closed="neither"),
        ],
    }

    def __init__(
        self,
        estimator=None,
        *,
        ridge="loocv",
        bandwidth="auto",
        n_subsets=128,
        inclusion="auto",
        estimation="auto",
        damping="auto",
        center="initial",
        projection=None,
        include_loo="auto",
        at="loo",
        prior=None,
        outcome="auto",
        n_halves=0,
        n_retrainings=32,
        retrain_size=0.5,
        memory=None,
        n_jobs=None,
        random_state=None,
        verbose=0,
    ):
        self.estimator = estimator
        self.ridge = ridge
        self.bandwidth = bandwidth
        self.n_subsets = n_subsets
        self.inclusion = inclusion
        self.estimation = estimation
        self.damping = damping
        self.center = center
        self.projection = projection

        self.include_loo = include_loo
        self.at = at
        self.prior = prior
        self.outcome = outcome
        self.n_halves = n_halves
        self.n_retrainings = n_retrainings
        self.retrain_size = retrain_size
        self.memory = memory
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=False)
    @fill_in(_DOCS)
    def fit(self, X, y=None, tasks=None, **fit_params):
        """Train the model and estimate the outcomes of random subsets.

        Parameters
        ----------
        %(fit_parameters)s

        Returns
        -------
        self : KernelSurrogateAttributor
            Fitted attributor.

        Raises
        ------
        ValueError
            If a parameter or the data cannot be used.
        """
        return self._fit(X, y, tasks, fit_params)

    def _surrogate(self):
        return KernelSurrogate(self.ridge, self.bandwidth)

    def _attribute(self, X, y, outcome):
        without_each = self._without_each() if self.at in ("loo", 1) else None
        if without_each is None:
            return super()._attribute(X, y, outcome)
        # the differences themselves, where a surrogate would only smooth them
        surrogate, outcomes = self._fitted_surrogate(X, y, outcome)
        attributions = (outcomes[0] - outcomes[without_each]).T
        # two outcomes, each with what the surrogate takes for noise
        std = np.sqrt(2) * surrogate._noise()[:, None]
        return attributions, np.broadcast_to(std, attributions.shape)


@fill_in(_DOCS)
class LinearSurrogateAttributor(PosteriorOfPrior, SurrogateAttributor):
    """Task attribution by ridge regression on subsets: the additive baseline.

    Parameters
    ----------
    %(estimator)s
    ridge : "loocv" or float, default="loocv"
        Penalty of the surrogate: Σ error² + ridge · ‖coef‖², without the intercept.
        "loocv" selects for each query the one with the smallest leave-one-out error.
    %(subsets)s
    %(outcome)s
    %(asked_halves)s
    %(retraining)s

    Attributes
    ----------
    %(attributes)s
    %(halves_found)s
    %(units)s

    See Also
    --------
    LinearSurrogate : The regressor, for outcomes from anywhere.
    KernelSurrogateAttributor : For units that interact.

    Notes
    -----
    The attribution of a linear surrogate does not depend on `at`: it is about the mean
    effect of the unit when the others are present with probability `inclusion`.
    Interactions are 0. Predicted outcomes are smoothed by the ridge, also at weights
    of 1.

    With a `prior` and ``at="banzhaf"`` the subsets are halves with their complements,
    really retrained, and the surrogate is the posterior that the prior itself has with
    ``n_halves=n_subsets``, one less if that is odd (:ref:`posterior`); `ridge` is not
    used then. With ``estimation="gradient"``, or another `inclusion`, it is the ridge
    regression.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from skattrib import LinearSurrogateAttributor, TorchClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> tasks = np.arange(150) % 6
    >>> clf = TorchClassifier(max_epochs=20, random_state=0)
    >>> surrogate = LinearSurrogateAttributor(clf, n_subsets=30, random_state=0)
    >>> surrogate.fit(X, y, tasks=tasks).attribute(X[:5], y[:5]).shape
    (5, 6)
    """

    _parameter_constraints: dict = {
        **SurrogateAttributor._parameter_constraints,
        "ridge": [StrOptions({"loocv"}), Interval(Real, 0, None, closed="left")],
    }

    def __init__(
        self,
        estimator=None,
        *,
        ridge="loocv",
        n_subsets=128,
        inclusion="auto",
        estimation="auto",
        damping="auto",
        center="initial",
        projection=None,
        include_loo="auto",
        at="loo",
        prior=None,
        outcome="auto",
        n_halves=0,
        n_retrainings=32,
        retrain_size=0.5,
        memory=None,
        n_jobs=None,
        random_state=None,
        verbose=0,
    ):
        self.estimator = estimator
        self.ridge = ridge
        self.n_subsets = n_subsets
        self.inclusion = inclusion
        self.estimation = estimation
        self.damping = damping
        self.center = center
        self.projection = projection
        self.include_loo = include_loo

        self.at = at
        self.prior = prior
        self.outcome = outcome
        self.n_halves = n_halves
        self.n_retrainings = n_retrainings
        self.retrain_size = retrain_size
        self.memory = memory
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=False)
    @fill_in(_DOCS)
    def fit(self, X, y=None, tasks=None, **fit_params):
        """Train the model and estimate the outcomes of random subsets.

        Parameters
        ----------
        %(fit_parameters)s

        Returns
        -------
        self : LinearSurrogateAttributor
            Fitted attributor.

        Raises
        ------
        ValueError
            If a parameter or the data cannot be used.
        """
        return self._fit(X, y, tasks, fit_params)

    def _surrogate(self):
        return LinearSurrogate(self.ridge)
