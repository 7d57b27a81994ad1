"""How much does a kernel surrogate depend on its width, ridge, subsets and kernel?

The problems of `benchmarks.surrogates.ridge`. One parameter at a time is changed; the
others are the defaults of `KernelSurrogate` and 100 subsets. The means are over
subsets that hold each unit with probability 0.5 and 0.75. Matérn kernels are those of
scikit-learn's Gaussian processes, with fixed ridges, beside RBF with the same.

    python -m benchmarks.surrogates.sensitivity
"""

import numpy as np
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, Matern

from benchmarks._table import Table, pm, write
from benchmarks.surrogates._pools import METRICS, N_LEARNT, pools, scores_of
from skattrib import KernelSurrogate, LinearSurrogate

USUAL, WIDTHS, RIDGES = max(N_LEARNT), (0.25, 0.5, 1, 2, 4), (1e-3, 1e-2, 0.1, 1.0)
KERNELS = {
    "RBF": RBF,
    "Matérn 5/2": lambda width: Matern(width, nu=2.5),
    "Matérn 3/2": lambda width: Matern(width, nu=1.5),
    "Matérn 1/2": lambda width: Matern(width, nu=0.5),
}


def gaussian_process(kernel, ridge, width):
    """Return one with the same centred outcomes and fixed parameters."""
    options = {"optimizer": None, "normalize_y": True}
    return GaussianProcessRegressor(KERNELS[kernel](width), alpha=ridge, **options)


def changes():
    """Yield parameter, value, the regressor for a number of units, and subsets."""
    for m in (20, 40, 70, USUAL):
        yield "subsets", m, lambda n: KernelSurrogate(), m
    for m in (20, 40, 70, USUAL):
        yield "subsets, linear surrogate", m, lambda n: LinearSurrogate(), m
    for times in WIDTHS:
        yield (
            "bandwidth / √(n_units / 2)",
            f"{times:g}",
            lambda n, b=times: KernelSurrogate(bandwidth=b * (n / 2) ** 0.5),
            USUAL,
        )
    chosen = KernelSurrogate(bandwidth="loocv")
    yield "bandwidth / √(n_units / 2)", "LOO-CV", lambda n: chosen, USUAL
    for ridge in RIDGES:
        yield "ridge", f"{ridge:g}", lambda n, r=ridge: KernelSurrogate(r), USUAL
    yield "ridge", "LOO-CV", lambda n: KernelSurrogate(), USUAL


def kernels():
    """Yield the same of kernels with fixed ridges and their best width of three."""
    for kernel in KERNELS:
        for ridge in (0.01, 0.1):
            for times in (1, 2, 4):
                yield (
                    f"{kernel}, ridge {ridge:g}",
                    f"{times:g}",
                    lambda n, k=kernel, r=ridge, b=times: gaussian_process(
                        k, r, b * (n / 2) ** 0.5
                    ),
                    USUAL,
                )


def tabulate(captions, header, settings, found):
    """Return a table for LDS and one for LOO: a column per problem, a row per change.

    A cell is the mean over draws ± its standard error.
    """
    problems = list(dict.fromkeys(pool.problem for pool in found))
    tables = [Table(caption, [*header, *problems]) for caption in captions]
    for parameter, value, model, n_learnt in settings:
        values = {}
        for pool in found:
            got = scores_of(model(pool.weights.shape[1]), pool, n_learnt)
            values.setdefault(pool.problem, {}).setdefault(pool.draw, []).append(got)
        means = [
            np.array([np.mean(both, axis=0) for both in values[name].values()])
            for name in problems
        ]
        for table, metric in zip(tables, ("LDS", "LOO (Pearson)"), strict=True):
            place = METRICS.index(metric)
            table.add(parameter, value, *(pm(each[:, place]) for each in means))
    return tables


def main():
    found = pools()
    captions = [
        f"{what}, mean over draws ± standard error"
        for what in ("LDS on held-out subsets", "Correlation with leave-one-out")
    ]
    header = ["parameter", "value"]
    write("sensitivity", *tabulate(captions, header, changes(), found))
    header = ["kernel", "width / √(n_units / 2)"]
    write("kernels", *tabulate(captions, header, kernels(), found))


if __name__ == "__main__":
    main()
