"""How far does it go? Attributing a network with a thousand to a million rows.

The churn table, copied up with noise, float32. Networks: two hidden layers of 64, or
one of 32; two epochs of minibatches of 512. CPU seconds beyond training: of `fit`, and
of one call of `attribute`; megabytes: the peak of resident memory above what imports
and rows take. One process for each attributor and number of rows. A cell that would
take more than a minute, by what `plan` says, is not run.

    OMP_NUM_THREADS=1 python -m benchmarks.costs.large [part of an attributor's name]
"""

import sys
import warnings

import numpy as np
from sklearn.base import clone

from benchmarks._processes import in_own_process, peak_from_here, seconds
from benchmarks._table import Table, write
from benchmarks.costs._rows import churn, network, rows
from skattrib import AdamWInfluence, DualInfluence, RISEValuator, plan

ROWS, QUERIES = [10**3, 10**4, 10**5, 10**6], [1, 10, 1000]
#: a cell may take so many seconds, and one of a million rows so many megabytes
LONGEST, LARGEST = 60, 8000
N_WARM = 100


def of(hidden):
    return network(hidden=hidden, batch_size=512, max_epochs=2)


ATTRIBUTORS = {
    "DualInfluence": DualInfluence(of((64, 64))),
    "DualInfluence, one layer of 32": DualInfluence(of((32,))),
    "AdamWInfluence, inclusion=1": AdamWInfluence(of((64, 64)), inclusion=1),
    "RISEValuator": RISEValuator(of((64, 64))),
}


def cells(name, n):
    """Return a cell for each number of queries: what is said, seconds, megabytes, way.

    Seconds are None where nothing was run.
    """
    warnings.simplefilter("ignore")
    attributor = clone(ATTRIBUTORS[name]).set_params(random_state=0)
    X, y, *queries = rows(churn, n, max(QUERIES))
    few = [part[:2] for part in queries]
    said = {}
    for q in QUERIES:
        try:
            said[q] = plan(attributor, X, y, n_queries=q).iloc[0]
        except ValueError as error:
            print(f"  {error}")
            return [("refused: over the memory cap", None, None, "")] * len(QUERIES)
    numbers = {
        q: f"{row['seconds']:,.0f} s, {row['megabytes']:,.0f} MB"
        for q, row in said.items()
    }
    affordable = [
        q
        for q, row in said.items()
        if row["seconds"] <= LONGEST and row["megabytes"] <= LARGEST
    ]
    way = {q: row["way"] for q, row in said.items()}
    if not affordable:
        return [(numbers[q], None, None, way[q]) for q in QUERIES]

    clone(attributor).fit(X[:N_WARM], y[:N_WARM]).attribute(*few)
    training, _ = seconds(clone(attributor.estimator).fit, X, y)
    peak = peak_from_here()
    fitting, _ = seconds(attributor.fit, X, y)
    if hasattr(attributor, "removal_"):
        way = dict.fromkeys(
            QUERIES, f"{attributor.removal_['attribute']}, {attributor.solver_}"
        )
    found = []
    for q in QUERIES:
        if q not in affordable:
            found.append((numbers[q], None, None, way[q]))
            continue
        taken, _ = seconds(attributor.attribute, *(part[:q] for part in queries))
        beyond = max(fitting - training, 0) + taken
        found.append((numbers[q], beyond, peak() / 2**20, way[q]))
    return found


def slope(sizes, values):
    """Return the log-log slope over the sizes, of which there are two at least."""
    if len(values) < 2:
        return ""
    return f"{np.polyfit(np.log(sizes), np.log(values), 1)[0]:.2f}"


def main(names):
    counts = [f"{n:,} rows" for n in ROWS]
    header = ["attributor", "queries", *counts, "slope"]
    table = Table("CPU seconds beyond training, and megabytes", header)
    for name in ATTRIBUTORS:
        if names and not any(part in name for part in names):
            continue
        columns = [in_own_process(cells, name, n) for n in ROWS]
        for q, row in zip(QUERIES, zip(*columns, strict=True), strict=True):
            texts, ran = [], []
            for n, (said, taken, size, way) in zip(ROWS, row, strict=True):
                print(f"  {name}, {n:,} rows, {q} queries: plan {said}; {way}")
                if taken is None:
                    refused = said.startswith("refused")
                    texts.append(said if refused else f"not run ({said})")
                else:
                    texts.append(f"{taken:.2g} s, {size:.0f} MB")
                    ran.append((n, taken))
            table.add(name, q, *texts, slope(*zip(*ran, strict=True)) if ran else "")

    if not names:
        write("large", table)


if __name__ == "__main__":
    main(sys.argv[1:])
