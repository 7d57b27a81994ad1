"""Linear classifiers whose weights leave a class without rows."""

import numpy as np
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from skattrib import DualInfluence
from skattrib.evaluation import retrain_outcomes


def test_it_is_retrained_without_the_class_and_weights_are_not_written_to():
    X, y = load_iris(return_X_y=True)
    rows, queries = (X[::3], y[::3]), (X[1::30], y[1::30])
    model = LogisticRegression(solver="newton-cholesky", tol=1e-10, random_state=0)
    dual = DualInfluence(model, random_state=0).fit(*rows)
    weights = np.ones((2, len(rows[0])))
    weights[0, rows[1] == 2] = 0
    before = weights.copy()

    predicted = dual.predict_outcomes(*queries, weights)
    np.testing.assert_allclose(
        predicted, retrain_outcomes(model, *rows, weights, *queries), rtol=1e-8
    )
    np.testing.assert_array_equal(weights, before)
