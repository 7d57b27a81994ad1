"""Many rows, and texts of many columns: what do refits take?

Rows: LogisticRegression on 50,000 made rows of 40 columns. Texts: the sayings of
Debian's package ``fortunes`` (``apt-get install fortunes``) on computers, politics and
science; TF-IDF of words and pairs of words, and the topic as the class. 100 queries
each. CPU seconds in trainings of the same run; memory is the peak of a process of its
own, and what it rose by from before `fit`. Attributions are compared with retraining
without 8 rows, and one half with training on it. The score of the rows takes 32 halves.

    OMP_NUM_THREADS=1 python -m benchmarks.linear.sizes
"""

import warnings
from pathlib import Path

import numpy as np
from sklearn.datasets import make_classification
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from benchmarks._processes import in_own_process, resident_bytes, seconds
from benchmarks._table import Table, write
from benchmarks.linear._cases import relative_error
from skattrib import DualInfluence
from skattrib.evaluation import loo_score, make_weightings, retrain_outcomes

FORTUNES = Path("/usr/share/games/fortunes")
TOPICS = ["computers", "politics", "science"]
N_QUERIES, N_LEFT_OUT = 100, 8
MEGABYTE = 2**20


def many_rows():
    X, y = make_classification(
        50_000 + N_QUERIES, 40, n_informative=20, flip_y=0.1, random_state=0
    )
    return X[:50_000], y[:50_000], X[50_000:], y[50_000:]


def sayings():
    """Return texts and topics: rows, and queries."""
    pairs = [
        (text.strip(), topic)
        for topic in TOPICS
        for text in (FORTUNES / topic).read_text("utf-8", "replace").split("\n%\n")
        if text.strip()
    ]
    order = np.random.RandomState(0).permutation(len(pairs))
    documents = np.array([pairs[i][0] for i in order], dtype=object)
    topics = np.array([pairs[i][1] for i in order])
    n = len(pairs) - N_QUERIES
    return documents[:n], topics[:n], documents[n:], topics[n:]


def recipe(kind):
    model = LogisticRegression(tol=1e-8, max_iter=1000)
    if kind == "rows":
        return model
    return make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), model)


def size_of(kind, X):
    if kind == "rows":
        return X.shape
    matrix = TfidfVectorizer(ngram_range=(1, 2)).fit_transform(X)
    return matrix.shape


def measure(kind):
    """Return figures of a fit, of attributions and of retrained models."""
    warnings.simplefilter("ignore")
    X, y, X_query, y_query = many_rows() if kind == "rows" else sayings()
    model = recipe(kind)
    training, _ = seconds(model.fit, X, y)
    before = resident_bytes()
    dual = DualInfluence(model, random_state=0)
    fit, _ = seconds(dual.fit, X, y)
    attribute, attributions = seconds(dual.attribute, X_query, y_query)
    peak = resident_bytes(peak=True)

    weights = make_weightings(len(y), N_LEFT_OUT, kind="loo", random_state=0)
    rows = np.argmin(weights, axis=1)
    whole = np.ones((1, len(y)))
    present, *without = retrain_outcomes(
        model, X, y, np.vstack([whole, weights]), X_query, y_query
    )
    true = (present - np.array(without)).T
    half = make_weightings(len(y), 1, random_state=0)
    trained, real = seconds(retrain_outcomes, model, X, y, half, X_query, y_query)
    refitted, predicted = seconds(dual.predict_outcomes, X_query, y_query, half)
    return {
        "size": size_of(kind, X),
        "solver": dual.solver_,
        "removal": dual.removal_["attribute"],
        "training": training,
        "fit": fit,
        "attribute": attribute,
        "peak": peak,
        "rise": peak - before,
        "rank": loo_score(-true.T, attributions[:, rows]),
        "error": relative_error(attributions[:, rows], true),
        "half": refitted / trained,
        "error of half": relative_error(predicted - present, real - present),
    }


def score():
    """Return the score with 32 retrained halves, and its CPU seconds in trainings."""
    warnings.simplefilter("ignore")
    X, y, X_query, y_query = many_rows()
    dual = DualInfluence(recipe("rows"), n_retrainings=32, random_state=0).fit(X, y)
    took, lds = seconds(dual.score, X_query, y_query)
    return lds, took / seconds(recipe("rows").fit, X, y)[0]


def against_dense(solver):
    """Return the largest difference of sparse and dense rows, relative, on a slice."""
    warnings.simplefilter("ignore")
    X, y, X_query, y_query = sayings()
    vectorizer = TfidfVectorizer(ngram_range=(1, 2)).fit(X[:400])
    rows, queries = vectorizer.transform(X[:400]), vectorizer.transform(X_query)
    classes = y[:400]
    model = LogisticRegression(tol=1e-10, max_iter=10_000)
    found = []
    for dense in (False, True):
        data = (rows.toarray(), queries.toarray()) if dense else (rows, queries)
        dual = DualInfluence(model, solver=solver).fit(data[0], classes)
        found.append(dual.attribute(data[1], y_query))
    difference = np.abs(found[0] - found[1]).max() / np.abs(found[1]).max()
    return rows.shape, dual.solver_, difference


def main():
    table = Table(
        "Sizes",
        "data | rows, columns | solver, removal | fit | attribute | peak, MB | "
        "risen by | LOO, rank | LOO, error | half, refit | half, error",
    )
    for kind in ("rows", "texts"):
        found = in_own_process(measure, kind)
        alone = found["training"]
        table.add(
            kind,
            "{:,}, {:,}".format(*found["size"]),
            f"{found['solver']}, {found['removal']}",
            f"{found['fit'] / alone:.2f}",
            f"{found['attribute'] / alone:.2f}",
            f"{found['peak'] / MEGABYTE:,.0f}",
            f"{found['rise'] / MEGABYTE:,.0f}",
            f"{found['rank']:.4f}",
            f"{found['error']:.1e}",
            f"{found['half']:.1f}",
            f"{found['error of half']:.1e}",
            note=f"training {alone:.2f} s, fit {found['fit']:.2f} s, "
            f"attribute {found['attribute']:.2f} s",
        )
    lds, took = in_own_process(score)
    print(f"score of the rows, 32 halves: {lds:.5f}, in {took:.0f} trainings")
    dense = Table(
        "Sparse rows against dense ones, 400 texts",
        "solver | rows, columns | largest relative difference",
    )
    for solver in ("auto", "cg"):
        shape, used, difference = in_own_process(against_dense, solver)
        dense.add(used, "{:,}, {:,}".format(*shape), f"{difference:.1e}")
    write("linear_sizes", table, "", dense)


if __name__ == "__main__":
    main()
