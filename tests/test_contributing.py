"""The attributor of the page for contributors is a complete one."""

import copy
import doctest

import numpy as np
import pytest
import torch
from sklearn.datasets import load_wine
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import scale
from sklearn.utils.estimator_checks import parametrize_with_checks

from doc.contributing import gradient_dot
from skattrib import TorchClassifier, TorchRegressor
from tests.test_common import TRANSFORMER_CHECKS, draws_globally, short_name

INSTANCES = [
    gradient_dot.GradientDot(n_retrainings=8),
    gradient_dot.GradientDot(TorchRegressor(), n_retrainings=8),
]


@draws_globally
@parametrize_with_checks(INSTANCES)
def test_common_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("check", TRANSFORMER_CHECKS, ids=short_name)
@pytest.mark.parametrize("estimator", INSTANCES, ids=short_name)
def test_transformer_checks(estimator, check):
    check(type(estimator).__name__, estimator)


def wine():
    X, y = load_wine(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(X))
    X, y = scale(X)[order], y[order]
    network = TorchClassifier(hidden_layer_sizes=(8,), max_epochs=30, random_state=0)
    return network, (X[:120], y[:120]), (X[120:140], y[120:140])


def test_attributions_are_differences_of_one_step():
    """Really make the step, with all rows and without one."""
    network, (X, y), (X_query, y_query) = wine()
    network.fit(X, y)
    rate = 1e-3
    found = gradient_dot.GradientDot(
        FrozenEstimator(network), learning_rate=rate, random_state=0
    )
    found.fit(X, y)
    X, X_query = torch.tensor(X), torch.tensor(X_query)
    y, y_query = torch.tensor(y), torch.tensor(y_query)

    def outcomes_after_a_step(kept):
        module = copy.deepcopy(network.module_).double()
        torch.nn.functional.cross_entropy(module(X[kept]), y[kept]).backward()
        torch.optim.SGD(module.parameters(), lr=rate).step()
        return -torch.nn.functional.cross_entropy(
            module(X_query), y_query, reduction="none"
        ).detach()

    rows = np.arange(len(X))
    whole = outcomes_after_a_step(rows)
    real = [whole - outcomes_after_a_step(np.delete(rows, i)) for i in range(10)]
    ours = found.attribute(X_query.numpy(), y_query.numpy())[:, :10].T
    # off by n / (n - 1) for a whole row, and by the curvature on the way
    np.testing.assert_allclose(
        ours * len(X) / (len(X) - 1),
        torch.stack(real),
        rtol=0.01,
        atol=1e-3 * abs(ours).max(),
    )


def test_ranks_retrained_networks_better_than_chance():
    network, train, queries = wine()
    found = gradient_dot.GradientDot(network, random_state=0).fit(*train)
    assert found.score(*queries) > 0.2


def test_example_of_the_docstring():
    assert doctest.testmod(gradient_dot).failed == 0
