"""Networks as people build them, their rows and queries, and retrained truth."""

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from sklearn import datasets
from sklearn.base import clone

from benchmarks._data import MEMORY, load
from benchmarks.costs import _rows as tables
from benchmarks.deep.as_trained import margins, stacked, swapped
from benchmarks.peers._networks import Network
from skattrib import TorchClassifier, TorchRegressor
from skattrib.evaluation import make_weightings, retrain_outcomes

#: fractions of the rows that are removed
REMOVED = (0.05, 0.1, 0.25, 0.5)
#: draws of the masks of dropout, over which the truth is averaged
N_MASKS = 4


@dataclass(frozen=True)
class Setting:
    """A network and how it is trained and questioned.

    Attributes
    ----------
    data : str
    network : Network
    learning_rate : float
    n_rows, n_queries, n_truth : int
        Training rows, queries, and halves that are really retrained.
    options : dict
        Other parameters of the training.
    halves : "auto" or int
        Of `AdamWInfluence` with halves.
    runs : int
        Of `AdamWInfluence`.
    models : tuple of int
        Numbers of models of TRAK.
    removed : bool
        Whether fractions other than a half are removed, too.
    """

    data: str
    network: Network
    learning_rate: float = 1e-2
    n_rows: int = 512
    n_queries: int = 12
    n_truth: int = 200
    options: dict = field(default_factory=dict)
    halves: object = "auto"
    models: tuple = (16, 50)
    runs: int = 16
    removed: bool = False


def perceptron(*sizes, **options):
    return Network("perceptron", {"sizes": sizes, **options})


def _digits():
    return load("digits")


def _steps():
    """Digits read as 8 steps of 8 pixels."""
    X, y, X_query, y_query = load("digits")
    return X.reshape(-1, 8, 8), y, X_query.reshape(-1, 8, 8), y_query


def _mnist():
    X, y, X_query, y_query = load("mnist")
    shape = (-1, 1, 28, 28)
    return X.reshape(shape), y, X_query.reshape(shape), y_query


#: of the 30 most frequent characters, the last is any other
N_CHARACTERS, CONTEXT = 30, 24


def _characters():
    """Descriptions of scikit-learn's tables: 24 characters, and the one that follows.

    Queries are from the last description, rows from the others.
    """
    names = ("iris", "wine", "digits", "linnerud", "diabetes", "breast_cancer")
    texts = [getattr(datasets, f"load_{name}")().DESCR.lower() for name in names]
    texts = [" ".join(text.split()) for text in texts]
    known = Counter("".join(texts)).most_common(N_CHARACTERS - 1)
    number = {character: i for i, (character, _) in enumerate(known)}
    found = []
    for part in ("\n".join(texts[:-1]), texts[-1]):
        codes = np.array([number.get(one, N_CHARACTERS - 1) for one in part])
        windows = np.lib.stride_tricks.sliding_window_view(codes, CONTEXT + 1)
        windows = windows[np.random.RandomState(0).permutation(len(windows))]
        found += [windows[:, :-1].astype(np.float32), windows[:, -1].astype(np.int64)]
    return found


def _images(path):
    """Return images of a file with X (n, 32, 32, 3), y, X_test and y_test."""
    with np.load(path) as file:
        X, y, X_query, y_query = (file[k] for k in ("X", "y", "X_test", "y_test"))
    X, X_query = (
        ((rows / 255 - 0.5) / 0.25).astype(np.float32).transpose(0, 3, 1, 2)
        for rows in (X, X_query)
    )
    return X, y.astype(np.int64), X_query, y_query.astype(np.int64)


def _table(read, n_rows=512):
    return lambda: tables.rows(read, n_rows, 12)


READERS = {
    "digits": _digits,
    "steps": _steps,
    "mnist": _mnist,
    "characters": _characters,
    "diabetes": lambda: load("diabetes"),
    "churn": _table(tables.churn),
    "diamonds": _table(tables.diamonds),
}
IMAGES = "images"
_CNN = Network("small_images")
_STRIDED = Network(
    "small_images", {"shape": (1, 28, 28), "widths": (8, 16), "strides": (2, 2)}
)
_DEAR = {"n_queries": 6, "halves": 64, "models": (16,)}
_STEPS = {
    "n_rows": 256,
    "n_queries": 4,
    "n_truth": 60,
    "halves": 64,
    "models": (16,),
    "options": {"max_epochs": 10},
}
#: by name; the learning rate is 0.01 unless the name says another
SETTINGS = {
    "16x16": Setting("digits", perceptron(16, 16)),
    "64x64, lr .001": Setting("digits", perceptron(64, 64), 1e-3),
    "64x64, lr .003": Setting("digits", perceptron(64, 64), 3e-3, removed=True),
    "64x64": Setting("digits", perceptron(64, 64), removed=True),
    "64x64, seed 1": Setting("digits", perceptron(64, 64), options={"random_state": 1}),
    "64x64, lr .003, seed 1": Setting(
        "digits", perceptron(64, 64), 3e-3, options={"random_state": 1}
    ),
    "64x64x64": Setting("digits", perceptron(64, 64, 64)),
    "64x64x64, seed 1": Setting(
        "digits", perceptron(64, 64, 64), options={"random_state": 1}
    ),
    "32, dropout .2": Setting("digits", perceptron(32, dropout=0.2)),
    "32, dropout .2, seed 1": Setting(
        "digits", perceptron(32, dropout=0.2), options={"random_state": 1}
    ),
    "32, dropout .5": Setting("digits", perceptron(32, dropout=0.5)),
    "32, batch norm": Setting("digits", perceptron(32, norm="batch"), removed=True),
    "32, batch norm, seed 1": Setting(
        "digits", perceptron(32, norm="batch"), options={"random_state": 1}
    ),
    "32, layer norm": Setting("digits", perceptron(32, norm="layer")),
    "diabetes 64x64": Setting("diabetes", perceptron(64, 64), n_rows=350),
    "churn 64x64": Setting("churn", perceptron(64, 64)),
    "diamonds 64x64": Setting("diamonds", perceptron(64, 64)),
    "diamonds 64x64, seed 1": Setting(
        "diamonds", perceptron(64, 64), options={"random_state": 1}
    ),
    "CNN": Setting("digits", _CNN, n_rows=256, n_queries=6, n_truth=100, removed=True),
    "MNIST, CNN": Setting("mnist", _STRIDED, n_rows=256, n_truth=100, **_DEAR),
    "GRU": Setting("steps", Network("recurrent"), **_STEPS),
    "transformer, lr .003": Setting("steps", Network("attentive"), 3e-3, **_STEPS),
    "character GPT, lr .003": Setting(
        "characters",
        Network("characters", {"n_symbols": N_CHARACTERS}),
        3e-3,
        **{**_STEPS, "halves": 32, "runs": 8},
    ),
    "cats and dogs, ResNet-9, lr .001": Setting(
        IMAGES,
        Network("residual"),
        1e-3,
        n_rows=200,
        n_queries=4,
        n_truth=40,
        options={"max_epochs": 5},
        halves=32,
        models=(16,),
        runs=8,
    ),
}


class Case:
    """A setting with its rows, its queries and outcomes of retrained subsets.

    Parameters
    ----------
    name : str
        One of SETTINGS.
    path : str or None
        File of the images.
    """

    def __init__(self, name, path=None):
        self.name, self.setting = name, SETTINGS[name]
        read = READERS.get(self.setting.data)
        X, y, X_query, y_query = read() if read else _images(path)
        n, q = self.setting.n_rows, self.setting.n_queries
        self.rows, self.queries = (X[:n], y[:n]), (X_query[:q], y_query[:q])
        self.n_rows = n
        classifies = self.rows[1].dtype.kind in "iu"
        self.outcome = "margin" if classifies else "log_likelihood"
        options = {
            "optimizer": "adamw",
            "weight_decay": 1e-2,
            "batch_size": 32,
            "max_epochs": 15,
            "random_state": 0,
            **self.setting.options,
        }
        self.net = (TorchClassifier if classifies else TorchRegressor)(
            self.setting.network, learning_rate=self.setting.learning_rate, **options
        )

    @cached_property
    def fitted(self):
        return clone(self.net).fit(*self.rows)

    @property
    def n_params(self):
        return sum(p.numel() for p in self.fitted.module_.parameters())

    @property
    def draws(self):
        """Whether there is dropout, whose masks the truth is a mean over."""
        return bool(self.setting.network.options.get("dropout"))

    def halves(self, n_halves=None, random_state=1):
        n_halves = n_halves or self.setting.n_truth
        found = make_weightings(self.n_rows, n_halves, random_state=random_state)
        return found.astype(float)

    def without(self, fraction, n_subsets=100):
        """Return subsets without a fraction of the rows."""
        rng = np.random.RandomState(2)
        weights = np.ones((n_subsets, self.n_rows))
        n_removed = round(fraction * self.n_rows)
        for row in weights:
            row[rng.choice(self.n_rows, n_removed, replace=False)] = 0
        return weights

    def truth(self, weights):
        """Return outcomes (m, q) of retraining, a mean over masks if there are any."""
        if not self.draws:
            options = {"outcome": self.outcome, "memory": MEMORY}
            return retrain_outcomes(
                self.net, *self.rows, weights, *self.queries, **options
            )
        seeds = [np.full(len(weights), seed) for seed in range(1, N_MASKS + 1)]
        return np.mean(
            [
                margins(clone(self.net), self.rows, self.queries, weights, masks)
                for masks in seeds
            ],
            axis=0,
        )

    def limit(self, weights, outcomes):
        """Return a bound for LDS of attributions that are added up, sqrt(2 r).

        r is the correlation with outcomes of subsets that share half of their rows.
        """
        near = self.truth(swapped(weights))
        pairs = zip(outcomes.T, near.T, strict=True)
        r = np.mean([np.corrcoef(*pair)[0, 1] for pair in pairs])
        return min(1.0, np.sqrt(max(0, 2 * r)))

    def states(self, n_models):
        """Return states of networks that are trained on halves of the rows."""
        masks = np.arange(n_models) + 1000 if self.draws else None
        halves = self.halves(n_models, random_state=9)
        model, params = stacked(clone(self.net), self.rows, halves, masks)
        state = self.fitted.module_.state_dict()
        return [state | model.unflatten(vector) for vector in params]
