"""The pages for contributors: their code runs, and the attributor is a complete one."""

import ast
import copy
import doctest
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_wine
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import scale
from sklearn.utils.estimator_checks import parametrize_with_checks

from doc.contributing import gradient_dot
from skattrib import TorchClassifier
from skattrib.engine._optimizers import OPTIMIZERS
from tests.test_common import (
    CLASSIFIER,
    REGRESSOR,
    TRANSFORMER_CHECKS,
    draws_globally,
    short_name,
)
from tests.test_user_guide import FLAGS, Checker

DOC = Path(__file__).resolve().parents[1] / "doc"
PAGES = sorted((DOC / "contributing").glob("*.rst"))
# About a screen.
LONGEST_PAGE = 75

INSTANCES = [
    gradient_dot.GradientDot(CLASSIFIER, n_retrainings=8),
    gradient_dot.GradientDot(REGRESSOR, n_retrainings=8),
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


@pytest.fixture(params=PAGES, ids=lambda page: page.stem)
def page(request):
    """A page's text, and its code as a doctest."""
    text = request.param.read_text(encoding="utf-8")
    name = request.param.stem
    parser = doctest.DocTestParser()
    return text, parser.get_doctest(text, {}, name, str(request.param), 0)


def test_code_of_the_page(page, monkeypatch):
    monkeypatch.syspath_prepend(DOC / "contributing")
    _, test = page
    report = []
    runner = doctest.DocTestRunner(checker=Checker(), optionflags=FLAGS)
    runner.run(test, out=report.append)
    assert test.examples
    assert not runner.failures, "".join(report)


def test_the_page_is_short_and_imports_public_names_only(page):
    text, test = page
    assert len(text.splitlines()) <= LONGEST_PAGE
    assert not private_names("".join(example.source for example in test.examples))


def test_the_attributor_imports_public_names_only():
    source = (DOC / "contributing" / "gradient_dot.py").read_text(encoding="utf-8")
    assert not private_names(source)
    assert private_names("from skattrib.engine._losses import Loss")


def private_names(source):
    """Names that are imported and have a part that begins with an underscore."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return [n for n in names if any(part.startswith("_") for part in n.split("."))]


def test_pages_are_listed():
    listed = (DOC / "contributing.rst").read_text(encoding="utf-8").split()
    assert {page.stem for page in PAGES} == {
        "add_attributor",
        "add_loss",
        "add_model",
        "add_optimizer",
    }
    assert all(f"contributing/{page.stem}" in listed for page in PAGES)


def test_what_a_page_registers_is_forgotten():
    assert "lion" not in OPTIMIZERS


def test_example_of_the_docstring():
    assert doctest.testmod(gradient_dot).failed == 0
