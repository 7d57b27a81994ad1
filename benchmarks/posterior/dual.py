"""DualInfluence with retrained halves, beside AdamWInfluence as it is by default.

Truth, queries and clock are those of `frontier`: LDS on 1,000 retrained halves, 30
queries, mean of two fits, CPU seconds of fit and attribution.

    OMP_NUM_THREADS=1 python -m benchmarks.posterior.dual
"""

import warnings

import numpy as np

from benchmarks._processes import seconds
from benchmarks._table import Table, write
from benchmarks.posterior._settings import N_FITS, N_QUERIES, Case
from benchmarks.posterior.frontier import HALVES, N_HELD_OUT
from skattrib import AdamWInfluence, DualInfluence
from skattrib.evaluation import lds_score

NAMES = ("wine", "breast_cancer", "digits")
METHODS = {
    "DualInfluence": (DualInfluence, {}),
    "DualInfluence, 256 halves": (DualInfluence, {"n_halves": 256}),
    "DualInfluence, 512 halves": (DualInfluence, {"n_halves": 512}),
    "AdamWInfluence": (AdamWInfluence, {}),
}


def attributed(case, kind, options):
    return case.fit(kind, **options).attribute(*case.queries)


def main():
    warnings.simplefilter("ignore")
    table = Table(
        f"LDS, and CPU seconds of fit and of attributing {N_QUERIES} queries",
        ["attributor", *NAMES],
    )
    cases = [Case(name) for name in NAMES]
    attributed(cases[0], DualInfluence, {})  # what is slower at first
    for label, (kind, chosen) in METHODS.items():
        cells = []
        for case in cases:
            halves = case.halves(max(HALVES) + N_HELD_OUT)[max(HALVES) :]
            outcomes = case.retrain(halves)
            found = []
            for fit in range(N_FITS):
                options = {**chosen, "random_state": fit}
                took, a = seconds(attributed, case, kind, options)
                found.append((lds_score(outcomes, halves @ a.T), took))
            lds, took = np.mean(found, axis=0)
            cells.append(f"{lds:.3f} ({took:.2g})")
        table.add(label, *cells)
    write("posterior_dual", table)


if __name__ == "__main__":
    main()
