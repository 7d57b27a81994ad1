"""Whatever may take longer than two seconds says how far it is, with verbose=1."""

import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris

from skattrib import (
    AdamWInfluence,
    DualInfluence,
    KernelSurrogateAttributor,
    LinearSurrogateAttributor,
    RISEValuator,
    TorchClassifier,
)

OPTIONS = {"n_retrainings": 8, "random_state": 0, "verbose": 1}
#: attributor, what fit shows, what the queries show
CASES = {
    "newton": (DualInfluence(**OPTIONS), ["newton steps"], []),
    "refit": (DualInfluence(removal="refit", **OPTIONS), ["refit steps"], []),
    "influence": (
        DualInfluence(removal="influence", **OPTIONS),
        [],
        ["solving for queries"],
    ),
    "runs": (
        AdamWInfluence(n_trajectories=2, n_halves=16, **OPTIONS),
        ["retraining"],
        ["sweeping steps"],
    ),
    "subsets": (
        KernelSurrogateAttributor(n_subsets=16, estimation="retrain", **OPTIONS),
        ["retraining"],
        [],
    ),
    "gradients": (
        LinearSurrogateAttributor(n_subsets=16, estimation="gradient", **OPTIONS),
        ["refit steps"],
        [],
    ),
    "index": (RISEValuator(n_components=16, **OPTIONS), ["indexing rows"], []),
    "lists": (
        RISEValuator(n_components=16, algorithm="faiss", **OPTIONS),
        ["indexing rows", "faiss lists"],
        [],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_progress_is_shown(case, capsys):
    attributor, of_fit, of_queries = CASES[case]
    X, y = load_iris(return_X_y=True)
    net = TorchClassifier(hidden_layer_sizes=(4,), max_epochs=5, random_state=0)
    attributor = clone(attributor).set_params(estimator=net)
    attributor.fit(X[::2], y[::2])
    shown = capsys.readouterr().err
    assert [bar for bar in of_fit if bar not in shown] == []
    attributor.attribute(X[1:9:2], y[1:9:2])
    shown = capsys.readouterr().err
    assert [bar for bar in of_queries if bar not in shown] == []
    attributor.score(X[1::8], y[1::8])
    assert "retraining" in capsys.readouterr().err


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_shown_unasked(case, capsys):
    X, y = load_iris(return_X_y=True)
    net = TorchClassifier(hidden_layer_sizes=(4,), max_epochs=5, random_state=0)
    quiet = clone(CASES[case][0]).set_params(estimator=net, verbose=0)
    quiet.fit(X[::2], y[::2]).attribute(X[1:9:2], y[1:9:2])
    assert capsys.readouterr() == ("", "")
