"""How long the posterior of a query takes, once its halves are retrained.

Milliseconds of CPU time a query, by units and halves, with ten classes; beside it how
many products of two matrices of 1,024 x 1,024 in double precision take as long.

    OMP_NUM_THREADS=1 python -m benchmarks.posterior.times
"""

import numpy as np

from benchmarks._processes import seconds
from benchmarks._table import Table, write
from skattrib._posterior._gaussian import Halves, Knowledge, posterior
from skattrib._posterior._halves import draw_halves

SIZES = ((512, 64), (512, 256), (5000, 256), (5000, 512), (50000, 256))
N_QUERIES = 20


def main():
    table = Table("", ["units", "halves", "ms a query", "matrix products"])
    square = np.ones((1024, 1024))
    square @ square
    for n_units, n_halves in SIZES:
        rng = np.random.RandomState(0)
        halves = Halves(draw_halves(n_units, n_halves, 0), np.arange(n_units) % 10)
        a = rng.randn(N_QUERIES, n_units)
        outcomes = rng.randn(n_halves, N_QUERIES)
        rows = np.abs(a) + 0.1, halves, outcomes, Knowledge((0.9, 0.35), (1.7, 0.7))
        posterior(a, *rows)
        took, _ = seconds(posterior, a, *rows)
        product, _ = seconds(lambda: square @ square)
        each = took / N_QUERIES
        table.add(n_units, n_halves, f"{1e3 * each:.2f}", f"{each / product:.2f}")
    write("posterior_times", table)


if __name__ == "__main__":
    main()
