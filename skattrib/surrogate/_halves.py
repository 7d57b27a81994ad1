"""A linear surrogate around a prior, at halves: the posterior of the prior."""

import torch

from skattrib._posterior._gaussian import FEWEST_PAIRS
from skattrib._posterior._halves import FEWEST_HALVES, count_halves, draw_halves
from skattrib.influence._costs import attribution_bytes
from skattrib.models._as_model import as_model
from skattrib.models._costs import Cost, training_seconds
from skattrib.models._network import untrained


class PosteriorOfPrior:
    """Methods of a surrogate attributor whose subsets are halves around a prior.

    An additive surrogate of outcomes at halves of the units is the posterior that an
    attributor has with ``n_halves``: it is computed as that, from the same halves.
    """

    #: `_is_posterior` in the last fit: parameters may be set after it.
    _fitted_posterior = False

    def _is_posterior(self):
        """Say whether subsets will be retrained halves, around a prior."""
        halves = self.at in ("banzhaf", 0.5) and self.inclusion in ("auto", 0.5)
        return self.prior is not None and halves and self.estimation != "gradient"

    def _asks_for_halves(self):
        return self._is_posterior() or super()._asks_for_halves()

    def _check_halves(self, estimator):
        if self._is_posterior():
            if self.n_halves:
                raise ValueError(
                    f"n_halves={self.n_halves} with a prior and at={self.at!r}: there "
                    "the n_subsets are the halves that are retrained. Leave n_halves=0."
                )
            what = f"n_subsets={self.n_subsets} with a prior and at={self.at!r}"
            if self.n_subsets < FEWEST_HALVES:
                raise ValueError(
                    f"{what} is a half and its complement, which have no variance. Use "
                    f"at least n_subsets={2 * FEWEST_PAIRS}."
                )
            self._check_trainable(estimator, what, "estimation='gradient'")
        super()._check_halves(estimator)

    def _count_halves(self, n_bytes):
        if not self._is_posterior():
            return super()._count_halves(n_bytes)
        # as many are left for `score`, which needs more of few units
        n_halves = min(self.n_subsets, count_halves(self.n_units_) // 2)
        return max(n_halves - n_halves % 2, FEWEST_HALVES)

    def _before_training(self, estimator, X, y):
        self._fitted_posterior = self._is_posterior()
        if not self._fitted_posterior:
            super()._before_training(estimator, X, y)
            return
        self._check_prior(estimator)
        if count_halves(self.n_units_) < FEWEST_HALVES:
            raise ValueError(
                f"{self.n_units_} units have one half and its complement: too few "
                f"with a prior and at={self.at!r}. Use prior=None, or at='loo'."
            )
        drawn = draw_halves(self.n_units_, self._count_halves(0), self._halves_seed)
        self.weights_ = drawn.astype(float)

    def _cost(self, estimator, X, y, n_queries):
        if not self._is_posterior():
            return super()._cost(estimator, X, y, n_queries)
        model = as_model(estimator)
        problem = untrained(model.network(self), X, y) if model.stacks else None
        one = 0 if model.frozen else 1
        size = attribution_bytes(n_queries, self.n_units_, torch.float64.itemsize)
        return Cost(
            self._estimand(),
            one,
            training_seconds(model, problem, one, X, y),
            size / 2**20,
            "the posterior of the prior, whose own cost is not counted",
        )

    def _fit_attributor(self):
        if not self._is_posterior():
            super()._fit_attributor()
            return
        self.estimation_, self.estimand_ = "retrain", self._estimand()
        self.prior_ = self._fit_prior()

    def _knowledge(self):
        if not self._fitted_posterior:
            return super()._knowledge()
        return self.prior_._knowledge()

    def _prior(self):
        if not self._fitted_posterior or self.prior_._trained_halves is not None:
            return super()._prior()
        return self.prior_._prior()

    def _attribute(self, X, y, outcome):
        if not self._fitted_posterior:
            return super()._attribute(X, y, outcome)
        return self.prior_._attributed(X, y, outcome)

    def _fitted_surrogate(self, X, y, outcome):
        if not self._fitted_posterior:
            return super()._fitted_surrogate(X, y, outcome)
        outcomes, _ = self._half_outcomes(X, y, outcome)
        return self._surrogate().fit(self.weights_, outcomes), outcomes
