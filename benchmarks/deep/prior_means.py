"""Which derivatives of the same runs to begin with, and what halves make of them.

Twelve networks, AdamW with weight decay 0.01, and two by SGD with momentum 0.9, which
divides by nothing; minibatches of 32, 15 epochs, ReLU; 512
digits (400 rows of breast cancer, 120 of wine, 350 of diabetes). Margins (diabetes:
log-likelihoods) of 12 queries, 6 of the networks without closed-form derivatives. LDS
of attributions that are added up on 200 halves, really retrained, one training seed:
from the exact derivatives of 16 runs, and from those that `AdamWInfluence` chooses by
`agreement_`; alone, and after 64 and 256 further halves. Intervals after 64 halves: of
the outcomes of the 200 halves, and of linear effects by least squares on 3,000 others,
whose own error is added in quadrature. *Slope*: of true outcomes on those that are
predicted without halves, median query. CPU seconds of fit, without halves, and of
attribute. Networks that are named have their rows replaced.

    OMP_NUM_THREADS=1 python -m benchmarks.deep.prior_means [network ...]
"""

import copy
import sys
from functools import cached_property

import numpy as np
from torch import nn

from benchmarks._data import (
    MEMORY,
    OUTCOME,
    convolutional,
    half_subsets,
    load,
    network,
)
from benchmarks._table import reopen, write
from benchmarks.posterior._settings import Truth
from skattrib import AdamWInfluence
from skattrib._posterior._gaussian import Halves, half_width, query_posteriors
from skattrib.evaluation import lds_score, make_weightings, retrain_outcomes
from skattrib.influence._prior_means import AVERAGED, DAMPED, EXACT, Weighed
from skattrib.models._answers import LastAnswer
from skattrib.models._costs import cpu_seconds  # no public name
from skattrib.optimizers import SGD

N_EFFECTS = 3000
NAMES = {EXACT: "exact", DAMPED: "damped", AVERAGED: "averaged"}
HEADER = [
    "network, learning rate",
    "agreement",
    "chosen",
    "0 halves: exact",
    "chosen",
    "64 halves: exact",
    "chosen",
    "256 halves: exact",
    "chosen",
    "slope",
    "95 % of outcomes",
    "95 % of effects",
    "seconds: fit",
    "attribute: exact",
    "chosen",
]
MOMENTUM = SGD(momentum=0.9)


def normalised(n_inputs, n_outputs):
    """Return two hidden layers of 64 with layer normalisation."""
    return nn.Sequential(
        nn.Linear(n_inputs, 64),
        nn.LayerNorm(64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.LayerNorm(64),
        nn.ReLU(),
        nn.Linear(64, n_outputs),
    )


def pooled(n_inputs, n_outputs):
    """Return the two convolutions of the small network of images."""
    return convolutional(1)(n_inputs, n_outputs)


def hidden(*sizes, lr=1e-2, seed=0, **options):
    options |= {"learning_rate": lr, "random_state": seed}
    return {"hidden_layer_sizes": sizes, **options}


#: name: (data, network, queries)
NETWORKS = {
    "16, .01": ("digits", hidden(16), 12),
    "16x16, .01": ("digits", hidden(16, 16), 12),
    "16x16x16, .01": ("digits", hidden(16, 16, 16), 12),
    "64x64, .003": ("digits", hidden(64, 64, lr=3e-3), 12),
    "64x64, .01": ("digits", hidden(64, 64), 12),
    "64x64, .01, seed 1": ("digits", hidden(64, 64, seed=1), 12),
    "64x64x64, .01": ("digits", hidden(64, 64, 64), 12),
    "64x64 LayerNorm, .01": (
        "digits",
        {"module": normalised, "learning_rate": 1e-2},
        6,
    ),
    "CNN, .01": ("digits", {"module": pooled, "learning_rate": 1e-2}, 6),
    "breast cancer 64x64, .01": ("breast_cancer", hidden(64, 64), 12),
    "wine 64x64, .01": ("wine", hidden(64, 64), 12),
    "diabetes 64x64, .01": ("diabetes", hidden(64, 64), 12),
    "16x16, SGD, .05": ("digits", hidden(16, 16, lr=0.05, optimizer=MOMENTUM), 12),
    "64x64, SGD, .05": ("digits", hidden(64, 64, lr=0.05, optimizer=MOMENTUM), 12),
}


class Case:
    """A network with its rows, its queries and retrained halves."""

    def __init__(self, setting):
        data, options, n_queries = setting
        X, y, X_query, y_query = load(data)
        self.rows, self.queries = (X, y), (X_query[:n_queries], y_query[:n_queries])
        self.net, self.outcome = network(data, **options), OUTCOME[data]
        self.asked = half_subsets(len(X))
        self.truth = self.retrain(self.asked)
        self.halves = self.draw(256, 7)
        self.outcomes = self.retrain(self.halves)

    @cached_property
    def effects(self):
        others = self.draw(N_EFFECTS, 11)
        return Truth(others, self.retrain(others))

    def draw(self, n_halves, seed):
        n_rows = len(self.rows[0])
        options = {"kind": "antithetic", "random_state": seed}
        return make_weightings(n_rows, n_halves, **options)

    def retrain(self, weights):
        options = {"outcome": self.outcome, "memory": MEMORY}
        return retrain_outcomes(self.net, *self.rows, weights, *self.queries, **options)

    def lds(self, attributions):
        return lds_score(self.truth, self.asked @ attributions.T)

    def posteriors(self, influence, n_halves, prior=None):
        """Return what halves make of the attributor's means, or of others."""
        if prior is None:
            prior = influence._several_means(*self.queries, self.outcome)
        evidence = Halves(self.halves[:n_halves] > 0, influence._classes_of_units())
        return list(
            query_posteriors(
                *prior,
                evidence,
                self.outcomes[:n_halves],
                influence._knowledge(),
            )
        )

    def measures(self, influence):
        """Return the LDS by number of halves."""
        found = [self.lds(influence.attribute(*self.queries))]
        for n_halves in (64, 256):
            posteriors = self.posteriors(influence, n_halves)
            found.append(self.lds(np.array([one.mean for one in posteriors])))
        return found

    def coverage(self, influence):
        """Return shares inside 95 % intervals: of outcomes, and of linear effects."""
        posteriors = self.posteriors(influence, 64)
        predicted = [one.predicted(self.asked) for one in posteriors]
        outcomes = [
            np.abs(true - mean) < half_width(std)
            for true, (mean, std) in zip(self.truth.T, predicted, strict=True)
        ]
        effects = [
            np.abs(true - one.mean) < half_width(np.hypot(one.std, error))
            for one, true, error in zip(
                posteriors, self.effects.effects, self.effects.errors, strict=True
            )
        ]
        return np.mean(outcomes), np.mean(effects)

    def slope(self, influence):
        """Return the median slope of outcomes on predictions without halves."""
        predicted = influence.predict_outcomes(*self.queries, self.asked)
        pairs = zip(predicted.T, self.truth.T, strict=True)
        return np.median([np.polyfit(*pair, 1)[0] for pair in pairs])


def exact(influence):
    """Return a copy that begins with exact derivatives."""
    other = copy.copy(influence)
    other._weighed, other._last_sweep = Weighed(), LastAnswer()
    return other


def row(name):
    case = Case(NETWORKS[name])
    fitted = []

    def fit():
        options = {"outcome": case.outcome, "n_halves": 0, "random_state": 0}
        fitted.append(AdamWInfluence(case.net, **options).fit(*case.rows))

    fit_seconds = cpu_seconds(fit)
    chosen = fitted[-1]
    plain = exact(chosen)
    seconds = [fit_seconds] + [
        cpu_seconds(lambda one=one: one.attribute(*case.queries))
        for one in (plain, chosen)
    ]
    pairs = zip(case.measures(plain), case.measures(chosen), strict=True)
    return [
        name,
        f"{chosen.agreement_:.2f}",
        ", ".join(NAMES[one] for one in chosen._weighed.derivatives),
        *(f"{value:.3f}" for pair in pairs for value in pair),
        f"{case.slope(chosen):.2f}",
        *(f"{share:.1%}" for share in case.coverage(chosen)),
        *(f"{value:.0f}" for value in seconds),
    ]


def main(names):
    table = reopen("deep_prior_means", "LDS on retrained halves", HEADER)
    for name in names or NETWORKS:
        table.put(*row(name))
        table.rows.sort(key=lambda cells: [*NETWORKS].index(cells[0]))
        write("deep_prior_means", table)


if __name__ == "__main__":
    main(sys.argv[1:])
