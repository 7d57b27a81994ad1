"""Models of several training seeds, linearised and asked together.

What `DualInfluence` does with each of its models alike belongs here; what one of them
does is in `_member`.
"""

import copy

import numpy as np
from sklearn.base import clone

from skattrib._validation import draw_seeds
from skattrib.influence._member import WithoutEach


def trained_seeds(estimator, X, y, row_weights, n_models):
    """Return a fitted estimator, and others trained from further seeds."""
    if n_models == 1:
        return [estimator]
    others = [
        clone(estimator).set_params(random_state=seed)
        for seed in draw_seeds(estimator.random_state, n_models)[1:]
    ]
    return [estimator, *(e.fit(X, y, sample_weight=row_weights) for e in others)]


class Ensemble:
    """Members that leave out the same units.

    Parameters
    ----------
    members : list of Member
    unit_of_row : int array of shape (n_samples,)
    row_weights : ndarray of shape (n_samples,)
    removal : {"newton", "influence", "refit"}
    verbose : int

    Attributes
    ----------
    members : list of Member
    without_each : WithoutEach
        Weights of the rows without each unit.
    """

    def __init__(self, members, unit_of_row, row_weights, *, removal, verbose=0):
        self.members, self._removal, self._verbose = members, removal, verbose
        self._unit_of_row, self._row_weights = unit_of_row, row_weights
        n_units = int(unit_of_row.max()) + 1
        self.without_each = WithoutEach(unit_of_row, row_weights, n_units)

    def _of(self, members):
        out = copy.copy(self)
        out.members = members
        return out

    def decomposed(self):
        """Return the same with one eigendecomposition for all values of the ridge."""
        return self._of([member.decomposed() for member in self.members])

    def for_units(self):
        """Return the same to leave out units at many ridges, for outputs of queries."""
        largest = np.bincount(self._unit_of_row).max()
        return self._of([m.for_units(self._removal, largest) for m in self.members])

    @property
    def rules(self):
        """Dampings of the members, as functions of the fraction removed."""
        return [member.model.ridge for member in self.members]

    @rules.setter
    def rules(self, rules):
        for member, rule in zip(self.members, rules, strict=True):
            member.model.ridge = rule

    def unit_shares(self, row_weights):
        """Return what weights of the rows leave of each unit, (k, n_units)."""
        left = np.zeros((len(row_weights), len(self.without_each)))
        np.add.at(left.T, self._unit_of_row, row_weights.T)
        whole = np.bincount(self._unit_of_row, self._row_weights)
        return left / whole.clip(min=1e-12)

    def ask(self, X, n_steps):
        """Prepare queries, for each member, for at most so many steps at once."""
        return [member.ask(X, n_steps) for member in self.members]

    def without_units(self):
        """Return the steps of each member; the system where queries are solved for."""
        return [
            member.prepared(self._removal, self.without_each, self._verbose)
            for member in self.members
        ]

    def attributions(self, prepared, asked, y, outcome):
        """Return attributions (n_models, q, n_units)."""
        first_order, found = self._removal == "influence", []
        for member, steps, own in zip(self.members, prepared, asked, strict=True):
            if member.solves_queries:
                question = self.without_each, own, y, outcome, self._verbose
                found.append(member.attributions_by_query(steps, *question))
            else:
                options = {"first_order": first_order}
                found.append(member.attributions(steps, own, y, outcome, **options))
        return np.stack(found)

    def outcomes(self, row_weights, asked, y, outcome):
        """Return outcomes (k, q) for weights of the rows, mean over the members."""
        found = []
        for member, own in zip(self.members, asked, strict=True):
            steps = member.steps(self._removal, row_weights, self._verbose)
            found.append(member.outcomes(steps, own, y, outcome))
        return np.mean(found, axis=0)

    def present_outcomes(self, X, y, outcome):
        """Return the outcomes (q,) of the models as they are, their mean."""
        found = [m.present_outcomes(X, y, outcome) for m in self.members]
        return np.mean(found, axis=0)
