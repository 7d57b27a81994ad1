"""What share of a fit goes into looking whether it will be right?

Digits, 512 rows. The checks: a module is built twice, run alone, together and twice; a
loss is compared with autograd; transforms are compared with plain autograd; answers are
asked for twice; rounding is estimated. Times are by Python's profiler, which makes many
small calls look longer than they are: a share is at most what is shown.

    OMP_NUM_THREADS=1 python -m benchmarks.costs.checks
"""

import cProfile
import pstats
import warnings

from sklearn.frozen import FrozenEstimator

from benchmarks._data import load, network
from benchmarks._table import Table, write
from skattrib import (
    AdamWInfluence,
    DualInfluence,
    GradientTransformer,
    KernelSurrogateAttributor,
    RISEValuator,
    TorchClassifier,
)

#: outermost functions of the checks; none calls another one
CHECKS = {
    "_check_rebuilt",
    "agrees",
    "agree",
    "check_differentiable",
    "check_finite",
    "check_loss",
    "check_module",
    "check_repeatable",
    "condition_number",
    "look",
}


def share(fit):
    """Return the seconds of a fit, and of its checks."""
    profiler = cProfile.Profile()
    profiler.runcall(fit)
    stats = pstats.Stats(profiler).stats
    total = sum(entry[2] for entry in stats.values())
    within = 0.0
    for (_, _, name), (*_, cumulative, callers) in stats.items():
        nested = sum(
            spent[3] for (_, _, caller), spent in callers.items() if caller in CHECKS
        )
        within += (cumulative - nested) * (name in CHECKS)
    return total, within


def main():
    warnings.simplefilter("ignore")
    X, y, *_ = load("digits")
    fitted = network("digits").fit(X, y)
    module = TorchClassifier.from_module(fitted.module_, fitted.classes_)
    frozen = FrozenEstimator(module)
    fits = {
        "TorchClassifier": network("digits"),
        "DualInfluence": DualInfluence(network("digits"), random_state=0),
        "DualInfluence, trained module": DualInfluence(frozen, ridge=0.01),
        "AdamWInfluence": AdamWInfluence(network("digits"), n_halves=0, random_state=0),
        "KernelSurrogateAttributor": KernelSurrogateAttributor(
            network("digits"), random_state=0
        ),
        "RISEValuator, trained module": RISEValuator(frozen, random_state=0),
        "GradientTransformer, trained module": GradientTransformer(frozen),
    }
    table = Table("Checks in fit, digits", "fit | share of its time")
    for name, estimator in fits.items():
        total, checks = share(lambda estimator=estimator: estimator.fit(X, y))
        note = f"{checks:.3f} of {total:.2f} s"
        table.add(name, f"{checks / total:.1%}", note=note)
    write("checks", table)


if __name__ == "__main__":
    main()
