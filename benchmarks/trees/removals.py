"""Groups removed, best rows removed, and wrong labels: TreeInfluence and its peers.

LightGBM with its defaults on three tables, 50 queries, which are not in training.

Groups: the rows are divided into ten groups, at random (three times) or by target and
then by the first principal component, and the model is trained again without each.
Rank correlation over groups of true and predicted changes, mean over queries, and the
mean absolute error over that of predicting no change. Attributions are added up.

Curves: `removal_curve`, area between random removal and that of the rows that help
most, up to half of the rows.

Labels: a tenth is made wrong, three times. Area under the ROC curve of finding them by
self-attributions, by minus the mean attribution of the 50 queries, whose labels are
right, and by the loss of each row, of the model itself and in cross-validation.
Tables that are named have their rows replaced, the others keep theirs.

    OMP_NUM_THREADS=1 python -m benchmarks.trees.removals [table ...]
"""

import sys
import warnings

import numpy as np
from scipy.stats import spearmanr
from sklearn.base import clone, is_classifier
from sklearn.decomposition import PCA
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.preprocessing import scale

from benchmarks._table import pm, reopen, write
from benchmarks.trees._cases import Case
from benchmarks.trees._peers import OwnTrees, knn_shapley
from skattrib.evaluation import mislabel_score, removal_curve

TABLES = ("mroz", "breast cancer", "beps")
N_GROUPS, N_DRAWS, SHARE_WRONG = 10, 3, 0.1


# ----------------------------------------------------------------------- groups
def groups(case, kind):
    """Return weights without each group, (k, n)."""
    X, y = case.rows
    n, rng = case.n_rows, np.random.RandomState(6)
    if kind == "random":
        orders = [rng.permutation(n) for _ in range(N_DRAWS)]
    else:
        first = PCA(1, random_state=0).fit_transform(scale(X))[:, 0]
        orders = [np.lexsort((first, y))]
    found = []
    for order in orders:
        for members in np.array_split(order, N_GROUPS):
            found.append(np.ones(n))
            found[-1][members] = 0
    return np.array(found)


def predictions(case, weights):
    """Yield name and predicted outcomes of all rows, then for weights, (1 + k, q)."""
    leaf = case.leaf_influence()
    boost_in = OwnTrees(leaf, *case.queries).boost_in()
    yield "BoostIn", weights @ boost_in.T
    yield "LeafInfluence", weights @ leaf.attribute(*case.queries).T
    plain = case.influence(n_halves=0).fit(*case.rows)
    yield "attribute, 0 halves", weights @ plain.attribute(*case.queries).T
    ways = {
        "predict_outcomes, 0 halves": plain,
        "predict_outcomes": case.influence().fit(*case.rows),
        "predict_outcomes, inclusion=1": case.influence(inclusion=1).fit(*case.rows),
    }
    for name, influence in ways.items():
        yield name, influence.predict_outcomes(*case.queries, weights)


def of_groups(case, kind):
    """Return cells by method: rank correlation, relative error."""
    weights = np.vstack([np.ones((1, case.n_rows)), groups(case, kind)])
    true, found = _changes(case.retrain(weights)), {}
    for name, predicted in predictions(case, weights):
        changes = _changes(predicted)
        ranks = [
            spearmanr(a, b).statistic for a, b in zip(true.T, changes.T, strict=True)
        ]
        error = np.abs(changes - true).mean() / np.abs(true).mean()
        found[name] = f"{np.nanmean(ranks):.3f}, {error:.2f}"
    return found


def _changes(outcomes):
    return outcomes[1:] - outcomes[0]


# ----------------------------------------------------------------------- curves
def areas(case):
    """Return areas of removal curves by method."""
    leaf = case.leaf_influence()
    own = OwnTrees(leaf, *case.queries)
    found = {
        "KNN-Shapley": knn_shapley(*case.rows, *case.queries, regression=False),
        "tree kernel": own.tree_kernel(),
        "BoostIn": own.boost_in(),
        "LeafInfluence": leaf.attribute(*case.queries),
    }
    for name, n_halves in (("0 halves", 0), ("64 halves", "auto")):
        influence = case.influence(n_halves=n_halves).fit(*case.rows)
        found[name] = influence.attribute(*case.queries)
    return {
        name: f"{removal_curve(case.retrain, a.mean(axis=0), random_state=0).area:.3f}"
        for name, a in found.items()
    }


# ----------------------------------------------------------------------- labels
def suspicions(case, y):
    """Return suspicion of each row by method."""
    X = case.rows[0]
    classes = np.unique(y)
    whole = clone(case.estimator).fit(X, y).predict_proba(X)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    held_out = cross_val_predict(case.estimator, X, y, cv=folds, method="predict_proba")
    at = np.arange(len(y)), np.searchsorted(classes, y)
    found = {
        "loss of the model": -whole[at],
        "loss in cross-validation": -held_out[at],
    }
    own = {"n_structures": 1, "inclusion": 1, "removal": "derivative"}
    ways = {"LeafInfluence": {**own, "n_halves": 0}, "0 halves": {"n_halves": 0}}
    for name, options in {**ways, "64 halves": {}}.items():
        influence = case.influence(**options).fit(X, y)
        found[f"self, {name}"] = influence.self_attribution()
        mean = influence.attribute(*case.queries, reduce="mean")
        found[f"queries, {name}"] = -np.ravel(mean)
    return found


def of_labels(case):
    """Return areas under the ROC curve by method."""
    y, found = case.rows[1], {}
    classes, codes = np.unique(y, return_inverse=True)
    for draw in range(N_DRAWS):
        rng = np.random.RandomState(draw)
        wrong = np.zeros(len(y), dtype=bool)
        wrong[rng.permutation(len(y))[: round(SHARE_WRONG * len(y))]] = True
        steps = wrong * rng.randint(1, len(classes), len(y))
        flipped = classes[(codes + steps) % len(classes)]
        for name, suspicion in suspicions(case, flipped).items():
            found.setdefault(name, []).append(mislabel_score(suspicion, wrong))
    return {name: pm(values) for name, values in found.items()}


def main(names):
    warnings.simplefilter("ignore")
    tables = {}
    for name in names or TABLES:
        case = Case(name, "LightGBM")
        key = f"{name} ({case.n_rows})"
        for kind in ("random", "like targets"):
            cells = of_groups(case, kind)
            title = "Removed groups: rank correlation, relative error"
            _put(tables, "trees_groups", title, (key, kind), cells)
        title = "Area of removal curves"
        _put(tables, "trees_curves", title, (key,), areas(case))
        if is_classifier(case.estimator):
            title = "Wrong labels found: area under the ROC curve"
            _put(tables, "trees_labels", title, (key,), of_labels(case))


def _put(tables, file, title, keys, cells):
    if file not in tables:
        header = ["table (rows)", "groups"][: len(keys)]
        tables[file] = reopen(file, title, [*header, *cells])
    tables[file].put(*keys, *cells.values(), n_keys=len(keys))
    write(file, tables[file])


if __name__ == "__main__":
    main(sys.argv[1:])
