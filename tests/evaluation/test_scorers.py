"""lds_scorer finds the attributor."""

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from skattrib import DualInfluence, TorchClassifier
from skattrib.evaluation import lds_scorer


@pytest.fixture(scope="module")
def fitted():
    X, y = load_iris(return_X_y=True)
    X, y = X[::4], y[::4]
    dual = DualInfluence(TorchClassifier(max_epochs=10), random_state=0)
    return make_pipeline(StandardScaler(), dual).fit(X, y), X, y


class Holder:
    def __init__(self, attributor):
        self.attributor_ = attributor


def test_alone_held_or_in_a_pipeline(fitted):
    pipeline, X, y = fitted
    scaled = pipeline[0].transform(X)
    expected = pipeline[1].score(scaled, y)
    assert np.isfinite(expected)
    assert lds_scorer(pipeline[1], scaled, y) == expected
    assert lds_scorer(Holder(pipeline[1]), scaled, y) == expected
    assert lds_scorer(pipeline, X, y) == expected


def test_later_steps_are_ignored(fitted):
    pipeline, X, y = fitted
    longer = make_pipeline(*[step for _, step in pipeline.steps], Normalizer())
    assert lds_scorer(longer, X, y) == lds_scorer(pipeline, X, y)


@pytest.mark.parametrize(
    "estimator",
    [LogisticRegression(), make_pipeline(StandardScaler(), LogisticRegression())],
)
def test_without_an_attributor(estimator):
    with pytest.raises(ValueError, match="has no attributor"):
        lds_scorer(estimator, np.zeros((2, 1)), [0, 1])
