"""Scores by pyinfluence 0.5.0 of a linear model of scikit-learn.

    python run_pyinfluence_linear.py ORDER.npz SCORES.npz

ORDER.npz holds ``X, y, X_query, y_query`` in double precision, and ``options`` as JSON:
module and name of the estimator's class, and its parameters. The model is trained here,
by this environment's scikit-learn, with the same parameters.

SCORES.npz holds ``scores`` (q, n), positive where a row helps the query, ``seconds``
and ``training``, medians of five in turns, CPU seconds of all that the package does and
of one training with scikit-learn's tolerance, and ``error``, empty if there is none.
"""

import importlib
import json
import sys
import time
import warnings

import numpy as np
from pyinfluence import InfluenceFunctions
from sklearn.base import clone

N_ROUNDS = 5


def build(options):
    """Return the estimator that was ordered, and the one that reaches its optimum."""
    kind = getattr(importlib.import_module(options["module"]), options["name"])
    loose = kind(**options["params"])
    return loose, clone(loose).set_params(**options["tight"])


def scores(model, X, y, X_query, y_query):
    return InfluenceFunctions().fit(model, X, y).explain(X_query, y_query)


def seconds(use, *args):
    start = time.process_time()
    found = use(*args)
    return time.process_time() - start, found


def main(source, target):
    warnings.simplefilter("ignore")
    with np.load(source) as file:
        arrays = dict(file)
    options = json.loads(str(arrays.pop("options")))
    X, y, X_query, y_query = (arrays[name] for name in ("X", "y", "X_query", "y_query"))
    loose, tight = build(options)
    tight.fit(X, y)
    try:
        scores(tight, X, y, X_query, y_query)
    except Exception as error:
        np.savez(target, error=f"{type(error).__name__}: {error}".splitlines()[0])
        return
    taken, trainings = [], []
    for _ in range(N_ROUNDS):
        took, found = seconds(scores, tight, X, y, X_query, y_query)
        taken.append(took)
        trainings.append(seconds(clone(loose).fit, X, y)[0])
    np.savez(
        target,
        scores=found,
        seconds=np.median(taken),
        training=np.median(trainings),
        error="",
    )


if __name__ == "__main__":
    main(*sys.argv[1:3])
