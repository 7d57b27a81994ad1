"""Whether runs agree, which is learnt in `fit` from a few training rows."""

import numpy as np
from sklearn.utils import _safe_indexing

from skattrib.engine._losses import MeanOutcome, SetOutcome
from skattrib.influence._prior_means import (
    EXACT,
    N_ROWS,
    Weighed,
    agreement_of,
    chosen,
    row_agreement,
)
from skattrib.influence._run_diagnosis import warn_if_disagreeing, warn_if_inert_counts
from skattrib.models._memory import as_memory, cached_array, digest

# What is enough where all units are present, and what is compared with it.
_INERT = 0.01


class AgreementOfRuns:
    """Methods of an attributor that chooses how to differentiate its runs.

    It has what `AdamWInfluence` learns before.
    """

    #: Derivatives to begin with, and their agreement.
    _weighed = Weighed()

    def _can_choose(self):
        """Whether there are several ways to differentiate the runs."""
        exact = self.dynamics == "recorded" and self.hessian == "exact"
        return self.inclusion_ < 1 and exact

    def _learn_agreement(self):
        """Compare the halves of the runs, and choose derivatives by that."""
        self._weighed, self.agreement_ = Weighed(), None
        if self.inclusion_ == 1:
            self._compare_inert()
            return
        n_runs = sum(len(runs.params) for runs in self._runs)
        agreement = self._agreement((EXACT,))[0]
        if agreement is None:
            return
        self.agreement_ = agreement
        warn_if_disagreeing(agreement)
        if not self._can_choose():
            return
        run = self._runs[0]
        averages = run.recipe.average is not None or run.shares is not None
        by = chosen(agreement, n_runs, len(self._runs), averages)
        for decay in {one.decay for one in by} - {None}:
            self._say("averages over the runs, which are trained once more")
            for runs in self._runs:
                found = self._derivatives.averages(runs, decay, self.verbose)
                runs.averages[decay] = found
        if len(by) > 1:
            others = [one or 0.0 for one in self._agreement(by[1:])]
            self._weighed = Weighed(by, (agreement, *others))

    def _few_rows(self):
        """Return rows to compare by, as a query has them, their places and outcome."""
        # of weight 0 they are as good, but nothing is learnt from them
        known = np.flatnonzero(self._row_weights > 0)
        rng = np.random.RandomState(self._fit_seed)
        rows = np.sort(rng.choice(known, min(N_ROWS, len(known)), replace=False))
        queries = _safe_indexing(self._features, rows), self._targets[rows]
        # a set outcome is of the user's queries, with their groups perhaps
        of_set = isinstance(self.outcome, SetOutcome)
        return queries, rows, self._checked_outcome("auto" if of_set else self.outcome)

    def _agreement(self, by):
        """Return how the halves of the runs agree in each of some derivatives."""
        (X, y), rows, outcome = self._few_rows()
        own, n_seeds = self._unit_of_row[rows], len(self._runs)
        n_runs = sum(len(runs.params) for runs in self._runs)
        if agreement_of(np.ones(1), self.n_units_, n_runs, n_seeds) is None:
            return [None] * len(by)

        def compute():
            queries = self._derivatives.queries(X, y, outcome)
            each_run = self._each_run(queries, by)
            return np.array([row_agreement(one, own, n_seeds) for one in each_run])

        memory = as_memory(self.memory)
        if memory is None:
            found = compute()
        else:
            how = self._sweep_options(), by, rows
            key = digest("agreement", how, self._identity(outcome))
            found = cached_array(memory, key, compute)
        return [agreement_of(one, self.n_units_, n_runs, n_seeds) for one in found]

    def _compare_inert(self):
        """Warn if parameters that hardly had a gradient make most of a derivative."""
        if self._inert_at(1) >= _INERT or self.dynamics != "recorded":
            return
        (X, y), _, outcome = self._few_rows()
        queries = self._derivatives.queries(X, y, MeanOutcome(outcome))
        options = {**self._sweep_options(), "verbose": 0}
        sizes = [
            float(self._derivatives.derivatives(self._own_run, queries, **one).norm())
            for one in (options, {**options, "inert": _INERT})
        ]
        warn_if_inert_counts(*sizes)
