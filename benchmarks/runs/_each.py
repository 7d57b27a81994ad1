"""Every run of `AdamWInfluence`, for averages that no single fit has.

Fewer runs than were taken, and the runs of several seeds together: no public method
returns the runs, so that some of this is imported from private modules.
"""

import numpy as np

from skattrib import AdamWInfluence
from skattrib.influence._aggregation import aggregate, exploding


def each_run(problem, **options):
    """Return the attributions of every run of every seed, (seeds, runs, q, n)."""
    found = []
    for net in problem.networks():
        influence = AdamWInfluence(
            net, outcome=problem.outcome, n_halves=0, random_state=0, **options
        ).fit(*problem.rows)
        queries = influence._derivatives.queries(*problem.queries, problem.outcome)
        found.append(influence._each_run(queries).astype(np.float32))
    return np.array(found)


def averages(runs):
    """Return trimmed means and errors of each seed's runs, and of all together."""
    return [
        aggregate(each, "trimmed_mean", exploding(each))
        for each in (*runs, np.concatenate(runs))
    ]


def exploding_share(runs):
    return np.mean([exploding(own).mean() for own in runs])
