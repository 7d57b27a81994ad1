"""What attributors that train models on random subsets of the units have in common."""

from skattrib.evaluation import make_weightings
from skattrib.evaluation._weightings import count_weightings
from skattrib.models._as_model import as_model


class TrainedOnSubsets:
    """Methods of an attributor with the parameters ``inclusion`` and ``n_halves``."""

    def _inclusion(self, estimator):
        """Return the chance of a unit to be present."""
        if self.inclusion != "auto":
            return float(self.inclusion)
        return 1.0 if as_model(estimator).frozen else 0.5

    def _check_inclusion(self, estimator, name):
        """Raise on halves at another inclusion, and on a parameter that is odd at 0.5.

        ``name`` is that of the parameter that says how many are trained.
        """
        inclusion, number = self._inclusion(estimator), getattr(self, name)
        if self.n_halves not in ("auto", 0) and inclusion != 0.5:
            raise ValueError(
                f"n_halves={self.n_halves} retrains halves, and says nothing of "
                f"inclusion={inclusion:g}. Use n_halves=0, or inclusion=0.5; for "
                "intervals of leave-one-out see evaluation.loo_intervals."
            )
        if inclusion == 0.5 and number % 2:
            raise ValueError(
                f"{name}={number} must be even: halves come in pairs. Use "
                f"{number + 1}, or inclusion=1, where all units are present."
            )

    def _drawn_subsets(self, n_wanted, size):
        """Return which units are in each, (n_subsets, n_units), fewer if there are."""
        kind = "antithetic" if size == 0.5 else "bernoulli"
        n_subsets = min(n_wanted, count_weightings(self.n_units_, size, kind))
        return make_weightings(
            self.n_units_,
            n_subsets,
            size=size,
            kind=kind,
            random_state=self._fit_seed,
        )

    def _calibrated_by(self):
        if self.inclusion_ == 0.5:
            return super()._calibrated_by()
        return (
            "Intervals of leaving out one unit are those of evaluation.loo_intervals."
        )
