"""pyinfluence 0.5.0 on the models of `exact`, against the same retrained models.

`pyinfluence.InfluenceFunctions` takes the model trained to its optimum and has the
default damping; its scores are influence functions of the loss. It knows no halves:
scores are added up over the rows present, as are the attributions of ours. Its scores
have a unit of their own, so its errors are those after the best common factor, which
no user could know. Times are CPU seconds in trainings at scikit-learn's tolerance of
the same process, medians of five: of everything for 50 queries, all rows; ours builds
on the same trained model.

    make peers
    OMP_NUM_THREADS=1 python -m benchmarks.linear.peers
"""

import json
import os
import subprocess
import tempfile
import warnings
from pathlib import Path

import numpy as np
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator

from benchmarks._orders import PEERS, SCRIPTS
from benchmarks._processes import in_turns
from benchmarks._table import Table, write
from benchmarks.linear._cases import CASES, relative_error
from skattrib import DualInfluence
from skattrib.evaluation import lds_score, loo_score

PYTHON, N_ROUNDS = PEERS / "torch" / "bin" / "python", 5


def theirs(case):
    """Return what the peer's script found, as a dict of arrays."""
    if not PYTHON.exists():
        return {"error": "no environment 'torch': make peers"}
    kind = type(case.estimator)
    options = {
        "module": kind.__module__,
        "name": kind.__name__,
        "params": case.estimator.get_params(deep=False),
        "tight": case.tight,
    }
    X, y, X_query, y_query = case.data
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "order.npz", Path(folder) / "scores.npz"
        try:
            text = json.dumps(options)
        except TypeError:  # a kernel, for a model that is not on its list
            return {"error": "not tried"}
        np.savez(source, X=X, y=y, X_query=X_query, y_query=y_query, options=text)
        script = SCRIPTS / "run_pyinfluence_linear.py"
        environment = os.environ | {"PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
        command = [str(PYTHON), str(script), str(source), str(target)]
        subprocess.run(command, check=True, env=environment)
        with np.load(target) as file:
            return dict(file)


def scaled(predicted, true):
    """Return predictions times the factor that fits best."""
    return predicted * (predicted * true).sum() / np.square(predicted).sum()


def cells(case, attributions, scale=lambda predicted, true: predicted):
    """Return rank and error of single rows, and LDS of halves."""
    alone, true = attributions[:, case.left_out], case.true_effects
    return [
        f"{loo_score(-true.T, alone):.5f}",
        f"{relative_error(scale(alone, true), true):.1e}",
        f"{lds_score(case.true_halves, case.halves @ attributions.T):.4f}",
    ]


def ours(case, removal, table):
    trained = FrozenEstimator(clone(case.exact).fit(*case.rows))

    def attribute():
        dual = DualInfluence(trained, removal=removal).fit(*case.rows)
        return dual.attribute(*case.queries)

    attributions = attribute()
    calls = [attribute, lambda: clone(case.estimator).fit(*case.rows)]
    taken, training = np.median(in_turns(calls, N_ROUNDS), axis=0)
    name = f"DualInfluence, {removal}"
    row = cells(case, attributions)
    table.add(case.name, case.table, name, *row, f"{taken / training:.1f}")


def predicted_halves(case, table):
    dual = DualInfluence(FrozenEstimator(clone(case.exact).fit(*case.rows)))
    halves = dual.fit(*case.rows).predict_outcomes(*case.queries, case.halves)
    lds = f"{lds_score(case.true_halves, halves):.4f}"
    table.add(case.name, case.table, "DualInfluence, predict_outcomes", "", "", lds, "")


def main():
    warnings.simplefilter("ignore")
    table = Table(
        "pyinfluence and DualInfluence",
        "model | table | method | LOO, rank | LOO, error | halves, LDS | trainings",
    )
    for case in CASES:
        found = theirs(case)
        error = str(found["error"])
        if error:
            known = error.startswith(("not tried", "no environment"))
            short = error if known else "refused"
            table.add(case.name, case.table, "pyinfluence", short, note=error)
        else:
            ratio = f"{found['seconds'] / found['training']:.1f}"
            row = cells(case, found["scores"], scaled)
            table.add(case.name, case.table, "pyinfluence", *row, ratio)
        for removal in ("influence", "newton"):
            ours(case, removal, table)
        predicted_halves(case, table)
    write("linear_peers", table)


if __name__ == "__main__":
    main()
