"""AdamWInfluence on really retrained networks: one run, or several on random subsets.

Data, networks and truth are those of `benchmarks.ranking.fidelity`: 200 half subsets,
margins, three training seeds; every leave-one-out too, but for MNIST. LDS and
leave-one-out of `attribute`, the trimmed mean of runs; averages over seeds go over all
their runs together.

First the defaults: `inclusion=1` is one run per seed, "auto" sixteen runs on halves.
Then, by `inclusion`, numbers of runs, on digits once more with larger networks. Many
runs are differentiated once; smaller numbers of runs are the first ones of them.

    python -m benchmarks.runs.ensembles [defaults] [case ...]
"""

import sys

from benchmarks._data import Problem
from benchmarks._processes import wall_seconds
from benchmarks._table import Table, write
from benchmarks.runs._each import averages, each_run, exploding_share

DEFAULTS = ("digits", "breast_cancer", "wine", "diabetes", "mnist")
ALL = (0.25, 0.5, 0.75, 0.9)
#: name: (data, hidden layers, inclusions, numbers of runs)
CASES = {
    "digits": ("digits", (16,), ALL, (4, 8, 16, 32)),
    "digits, 64 hidden": ("digits", (64,), (0.5, 0.75), (16, 32, 64)),
    "digits, 64 and 64 hidden": ("digits", (64, 64), (0.5,), (16, 32, 64)),
    "mnist": ("mnist", (16,), (0.5,), (16, 32, 64)),
}
LDS = ["LDS: same seed", "LDS: 3 seeds"]
LOO = ["leave-one-out: same seed", "leave-one-out: 3 seeds"]


def score(problem, runs):
    """Return LDS and leave-one-out, same seed and together, and what explodes."""
    *own, together = [found for found, _ in averages(runs)]
    lds = problem.lds([problem.added(A) for A in own], problem.added(together))
    loo = ["", ""]
    if problem.name != "mnist":
        loo = problem.leave_one_out(own, together)
    return [*lds, *loo, f"{exploding_share(runs):.3f}"]


def defaults():
    table = Table("AdamWInfluence", ["data", "inclusion", *LDS, *LOO, "exploding"])
    for name in DEFAULTS:
        problem = Problem(name)
        for inclusion in (1.0, "auto"):
            took, runs = wall_seconds(each_run, problem, inclusion=inclusion)
            table.add(name, inclusion, *score(problem, runs), note=f"{took:.0f} s")
    write("trajectories", table)


def by_number(case):
    header = ["data", "inclusion", "runs a seed", *LDS, LOO[0], "exploding"]
    table = Table("Inclusion and number of runs", header)
    name, hidden, inclusions, numbers = CASES[case]
    problem = Problem(name, hidden_layer_sizes=hidden)
    for inclusion in inclusions:
        runs = each_run(problem, inclusion=inclusion, n_trajectories=max(numbers))
        for k in numbers:
            # halves stay in their pairs
            same, together, loo, _, share = score(problem, runs[:, :k])
            table.add(case, inclusion, k, same, together, loo.partition(" ")[0], share)
    # of the net with two hidden layers, the manual says only what was printed
    if len(hidden) == 1:
        write(f"ensembles_{case.replace(',', '').replace(' ', '_')}", table)


if __name__ == "__main__":
    for case in sys.argv[1:] or ["defaults", *CASES]:
        defaults() if case == "defaults" else by_number(case)
