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
import time

import numpy as np

from benchmarks import _data
from benchmarks._table import Table, each, write
from benchmarks.runs._each import average, each_run, exploding_share, joint
from skattrib.evaluation import loo_score

DEFAULTS = ("digits", "breast_cancer", "wine", "diabetes", "mnist")
ALL = (0.25, 0.5, 0.75, 0.9)
# name: (data, hidden layers, inclusions, numbers of runs)
CASES = {
    "digits": ("digits", (16,), ALL, (4, 8, 16, 32)),
    "digits, 64 hidden": ("digits", (64,), (0.5, 0.75), (16, 32, 64)),
    "digits, 64 and 64 hidden": ("digits", (64, 64), (0.5,), (16, 32, 64)),
    "mnist": ("mnist", (16,), (0.5,), (16, 32, 64)),
    "wine": ("wine", (16,), ALL, (4, 8, 16, 32)),
    "diabetes": ("diabetes", (16,), ALL, (4, 8, 16, 32)),
}
SAME, TOGETHER = ("LDS: same seed", "LDS: 3 seeds")


class Work:
    """A data set with its network and truth; runs are scored against it."""

    def __init__(self, name, **options):
        self.data, self.outcome = _data.load(name), _data.OUTCOME[name]
        self.net = _data.network(name, **options)
        n = len(self.data[0])
        self.weights = _data.half_subsets(n)
        self.subsets = self._retrained(self.weights)
        self.one_out = None if name == "mnist" else self._retrained(1 - np.eye(n))

    def _retrained(self, weights):
        X, y, *queries = self.data
        return _data.retrained(self.net, X, y, weights, *queries, self.outcome)

    def runs(self, **options):
        return each_run(self.net, *self.data, self.outcome, **options)

    def score(self, runs):
        """Return LDS and leave-one-out, same seed and together, and what explodes."""
        own = [average(found)[0] for found in runs]
        together = joint(runs)[0]
        predicted = [self.weights @ A.T for A in own]
        cells = [
            each(_data.lds_by_seed(self.subsets, predicted)),
            _data.lds_interval(self.subsets.mean(axis=0), self.weights @ together.T),
            *self._leave_one_out(own, together),
        ]
        return [*cells, f"{exploding_share(runs):.3f}"]

    def _leave_one_out(self, own, together):
        if self.one_out is None:
            return ["", ""]
        loo = [loo_score(*pair) for pair in zip(self.one_out, own, strict=True)]
        return each(loo), f"{loo_score(self.one_out.mean(axis=0), together):.3f}"


def defaults():
    loo = ["leave-one-out: same seed", "leave-one-out: 3 seeds"]
    header = ["data", "inclusion", SAME, TOGETHER, *loo, "exploding"]
    table = Table("AdamWInfluence", header)
    for name in DEFAULTS:
        work = Work(name)
        for inclusion in (1.0, "auto"):
            start = time.perf_counter()
            cells = work.score(work.runs(inclusion=inclusion))
            seconds = time.perf_counter() - start
            table.add(name, inclusion, *cells, note=f"{seconds:.0f} s")
    write("trajectories", table)


def by_number(case):
    header = ["data", "inclusion", "runs a seed", SAME, TOGETHER]
    header += ["leave-one-out: same seed", "exploding"]
    table = Table("Inclusion and number of runs", header)
    name, hidden, inclusions, numbers = CASES[case]
    work = Work(name, hidden_layer_sizes=hidden)
    for inclusion in inclusions:
        found = work.runs(inclusion=inclusion, n_trajectories=max(numbers))
        for k in numbers:
            # halves stay in their pairs
            same, together, loo, _, share = work.score(found[:, :k])
            table.add(case, inclusion, k, same, together, loo.partition(" ")[0], share)
    write(f"ensembles_{case.replace(',', '').replace(' ', '_')}", table)


def main(names):
    for name in names:
        if name == "defaults":
            defaults()
        else:
            by_number(name)


if __name__ == "__main__":
    main(sys.argv[1:] or ["defaults", *CASES])
