"""How exact are refits of linear and kernel models, and what do they cost?

`DualInfluence` against scikit-learn's own training on real tables, 50 queries: 100 rows
left out one at a time, and 200 halves. Models are trained to their optimum (tolerance
1e-10, 1e-12 for PoissonRegressor), for which LogisticRegression takes newton-cholesky.
Outcomes are the default ones. Relative errors are mean absolute errors over mean
absolute effects: outcome minus outcome without the row, or of half of the rows minus
that of all. Times are CPU seconds in turns, medians of five; a training is one of
scikit-learn's at its defaults, or to its optimum.

The last tables are about fits at other tolerances: how well scikit-learn's own
leave-one-out at that tolerance ranks the true one, and how far from its optimum, in
effects of a row, `DualInfluence` says that the fit has stopped.

    OMP_NUM_THREADS=1 python -m benchmarks.linear.exact
"""

import sys
import warnings
from itertools import pairwise

import numpy as np
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator

from benchmarks._processes import in_turns
from benchmarks._table import Table, write
from benchmarks.linear._cases import CASES, relative_error
from skattrib import DualInfluence
from skattrib.evaluation import lds_score, loo_score
from skattrib.influence._exact_models import NOISY

N_ROUNDS, N_TIMED = 5, 20
TOLERANCES = [1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5, 1e-6]
#: solvers that stop somewhere; the others reach the optimum at once
LOOSE = {
    "LogisticRegression": ["lbfgs", "newton-cg", "newton-cholesky", "sag", "saga"],
    "PoissonRegressor": ["lbfgs", "newton-cholesky"],
    "Lasso": [None],
}


def number(value):
    return f"{value:.1e}"


def rank(value):
    return f"{value:.5f}"


class Prediction:
    """What refits say of a case, left out in one way."""

    def __init__(self, case, removal):
        self.case = case
        fitted = FrozenEstimator(clone(case.exact).fit(*case.rows))
        self.dual = DualInfluence(fitted, removal=removal).fit(*case.rows)

    def error_of_effects(self):
        attributions = self.dual.attribute(*self.case.queries)
        return relative_error(
            attributions[:, self.case.left_out], self.case.true_effects
        )

    def of_halves(self):
        return self.dual.predict_outcomes(*self.case.queries, self.case.halves)

    def present(self):
        return self.dual.predict_outcomes(
            *self.case.queries, np.ones((1, self.case.n_rows))
        )


def single_rows(case, predictions, table):
    errors = [
        number(predictions[way].error_of_effects())
        for way in ("influence", "newton", "refit")
    ]
    table.add(case.name, case.table, case.n_rows, case.rows[0].shape[1], *errors)


def halves(case, predictions, table):
    truth, refit = case.true_halves, predictions["refit"]
    predicted, present = refit.of_halves(), refit.present()
    table.add(
        case.name,
        case.table,
        *(
            rank(lds_score(truth, predictions[way].of_halves()))
            for way in ("influence", "newton")
        ),
        rank(lds_score(truth, predicted)),
        number(relative_error(predicted - present, truth - present)),
    )


def costs(case, table):
    """Add what leaving rows out takes, in trainings."""
    few = case.halves[:N_TIMED]
    dual = Prediction(case, "auto").dual
    whole = clone(case.exact).fit(*case.rows)
    calls = [
        lambda: clone(case.estimator).fit(*case.rows),
        lambda: clone(case.exact).fit(*case.rows),
        lambda: (
            DualInfluence(FrozenEstimator(whole))
            .fit(*case.rows)
            .attribute(*case.queries)
        ),
        lambda: dual.predict_outcomes(*case.queries, few),
        lambda: case.retrain(case.estimator, few),
        lambda: case.retrain(case.exact, few),
    ]
    in_turns(calls, 1)
    default, exact, everything, refits, defaults, exacts = np.median(
        in_turns(calls, N_ROUNDS), axis=0
    )
    per_half = 1000 / N_TIMED
    table.add(
        case.name,
        case.table,
        f"{everything / default:.1f}",
        f"{everything / exact:.1f}",
        f"{refits * per_half:.2f}",
        f"{defaults * per_half:.2f}",
        f"{exacts * per_half:.2f}",
        note=f"a training {1000 * default:.1f}, to the optimum {1000 * exact:.1f} ms",
    )


def loosely(case, estimator):
    """Return distance, and the ranks of effects by retraining and by attribution."""
    dual = DualInfluence(FrozenEstimator(clone(estimator).fit(*case.rows)))
    distance = dual.fit(*case.rows)._linear_models[0].distance_to_optimum()
    retrained = case.effects(estimator)
    ours = dual.attribute(*case.queries)[:, case.left_out]
    without = -case.true_effects.T
    return distance, loo_score(without, retrained), loo_score(without, ours)


def default_tolerance(case, table):
    distance, own, ours = loosely(case, case.estimator)
    warned = "yes" if distance > NOISY else "no"
    lds = lds_score(case.true_halves, case.retrain(case.estimator, case.halves))
    table.add(
        case.name,
        case.table,
        number(distance),
        f"{own:.3f}",
        f"{ours:.3f}",
        warned,
        f"{lds:.4f}",
    )


def by_tolerance(case, table, found):
    """Add, for each solver, where its own leave-one-out becomes noise."""
    kind = type(case.estimator).__name__
    for solver in LOOSE.get(kind, []):
        chosen = {} if solver is None else {"solver": solver}
        if kind == "LogisticRegression":
            chosen["random_state"] = 0
        points = []
        for tol in TOLERANCES:
            options = {"tol": tol, "max_iter": 10_000, **chosen}
            estimator = clone(case.estimator).set_params(**options)
            points.append(loosely(case, estimator)[:2])
        found += points
        good = [distance for distance, own in points if own >= 0.9]
        bad = [distance for distance, own in points if own < 0.9]
        table.add(
            case.name,
            case.table,
            solver or "coordinates",
            number(max(good)) if good else "none",
            number(min(bad)) if bad else "none",
            note=" ".join(f"{distance:.1e}:{own:.3f}" for distance, own in points),
        )


def by_distance(found):
    """Return a table: agreement by distance, all cases and solvers together."""
    table = Table(
        "Ranks of scikit-learn's own leave-one-out, by distance to the optimum",
        "distance | fits | lowest agreement | median | share below 0.9",
    )
    edges = [0, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1, np.inf]
    distances, own = np.array(found).T
    for low, high in pairwise(edges):
        inside = own[(distances >= low) & (distances < high)]
        if len(inside):
            table.add(
                f"{low:g} to {high:g}",
                len(inside),
                f"{inside.min():.3f}",
                f"{np.median(inside):.3f}",
                f"{np.mean(inside < 0.9):.0%}",
            )
    return table


def main(names):
    warnings.simplefilter("ignore")
    single = Table(
        "Leave one row out: relative error",
        "model | table | rows | columns | influence | newton | refit",
    )
    subsets = Table(
        "Halves of the rows",
        "model | table | LDS, influence | LDS, newton | LDS, refit | error, refit",
    )
    times = Table(
        "Cost",
        "model | table | all rows: trainings | trainings to the optimum | ms a half: "
        "refit | trained | trained to the optimum",
    )
    default = Table(
        "Trained at scikit-learn's tolerance",
        "model | table | distance | LOO, retrained | LOO, attribute | warns | "
        "halves, retrained",
    )
    tolerances = Table(
        "Where leave-one-out by retraining becomes noise",
        "model | table | solver | farthest with 0.9 | nearest without",
    )
    cases = [case for case in CASES if not names or case.table in names]
    found = []
    for case in cases:
        ways = ["influence", "newton", "refit"]
        predictions = {way: Prediction(case, way) for way in ways}
        single_rows(case, predictions, single)
        halves(case, predictions, subsets)
        costs(case, times)
        default_tolerance(case, default)
        by_tolerance(case, tolerances, found)
    distances = by_distance(found)
    if not names:
        write("linear_loo", single)
        write("linear_halves", subsets)
        write("linear_costs", times)
        write("linear_default", default)
        write("linear_tolerances", tolerances, "", distances)


if __name__ == "__main__":
    main(sys.argv[1:])
