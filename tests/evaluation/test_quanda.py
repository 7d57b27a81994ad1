"""Attributors as explainers of quanda, which is not installed here."""

import copy
import inspect

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from torch.utils.data import TensorDataset

from skattrib import AdamWInfluence, DualInfluence, RISEValuator, TorchClassifier
from skattrib.evaluation import QuandaExplainer
from skattrib.exceptions import TrajectoryError, UnsupportedModelError


@pytest.fixture(scope="module")
def case():
    X, y = load_iris(return_X_y=True)
    X = X.astype(np.float32)
    net = TorchClassifier(max_epochs=20, batch_size=10, random_state=0)
    rows = TensorDataset(torch.tensor(X[::3]), torch.tensor(y[::3]))
    queries = torch.tensor(X[1::15]), torch.tensor(y[1::15])
    return net, X[::3], y[::3], rows, queries


@pytest.mark.parametrize(
    "attributor", [DualInfluence(), AdamWInfluence(inclusion=1), RISEValuator()]
)
def test_a_fitted_attributor_answers(case, attributor):
    net, X, y, rows, (Xq, yq) = case
    attributor.set_params(estimator=net, random_state=0).fit(X, y)
    # quanda has its own copy of the model
    model = copy.deepcopy(attributor.estimator_.module_)
    explainer = QuandaExplainer(
        model=model, train_dataset=rows, checkpoints=None, attributor=attributor
    )
    found = explainer.explain(test_data=Xq, targets=yq)
    assert found.dtype == torch.float32
    expected = attributor.attribute(Xq.numpy(), yq.numpy())
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    assert torch.equal(explainer.explain(Xq, yq.tolist()), found)
    own = explainer.self_influence(batch_size=7).numpy()
    np.testing.assert_allclose(own, attributor.self_attribution(), rtol=1e-6)


def test_another_model_is_explained_as_it_is(case, tmp_path):
    net, X, y, rows, (Xq, yq) = case
    dual = DualInfluence(net, random_state=0).fit(X, y)
    other = TorchClassifier(max_epochs=20, random_state=1).fit(X, y).module_
    wrapped = FrozenEstimator(TorchClassifier.from_module(other, [0, 1, 2]))
    expected = DualInfluence(wrapped, random_state=0).fit(X, y)
    expected = expected.attribute(Xq.numpy(), yq.numpy())
    assert not np.allclose(dual.attribute(Xq.numpy(), yq.numpy()), expected, rtol=0.1)
    # fitted to another module, not fitted, and with weights in files
    torch.save(dual.estimator_.module_.state_dict(), tmp_path / "first.pt")
    torch.save(other.state_dict(), tmp_path / "last.pt")
    files = [str(tmp_path / name) for name in ("first.pt", "last.pt")]
    blank = copy.deepcopy(dual.estimator_.module_)
    for model, attributor, checkpoints in (
        (other, dual, None),
        (other, DualInfluence(random_state=0), None),
        (blank, dual, files),
        (blank, dual, files[1]),
    ):
        explainer = QuandaExplainer(
            model, rows, checkpoints=checkpoints, attributor=attributor
        )
        found = explainer.explain(Xq, yq)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-7)
    # the one that was passed is as it was
    assert dual.estimator_.module_ is not other


def test_weights_of_rows_are_kept(case):
    net, X, y, rows, (Xq, yq) = case
    weights = np.r_[np.zeros(10), np.ones(len(y) - 10)]
    dual = DualInfluence(net, random_state=0).fit(X, y, sample_weight=weights)
    other = TorchClassifier(max_epochs=20, random_state=1).fit(X, y).module_
    found = QuandaExplainer(other, rows, attributor=dual)
    found = found.explain(Xq.requires_grad_(), yq)
    Xq.requires_grad_(False)
    assert (found[:, :10] == 0).all()
    assert (found[:, 10:] != 0).any()


def test_checkpoints_may_be_loaded_otherwise(case):
    net, X, y, rows, _ = case
    dual = DualInfluence(net, random_state=0).fit(X, y)
    loaded = []
    explainer = QuandaExplainer(
        copy.deepcopy(dual.estimator_.module_),
        rows,
        checkpoints="somewhere",
        checkpoints_load_func=lambda model, path: loaded.append(path),
        attributor=dual,
    )
    assert loaded == ["somewhere"]
    assert explainer.attributor_ is dual


def test_a_linear_model_has_no_module_to_compare(case):
    net, X, y, rows, (Xq, yq) = case
    module = net.fit(X, y).module_
    wrapped = FrozenEstimator(TorchClassifier.from_module(module, [0, 1, 2]))
    expected = DualInfluence(wrapped, random_state=0).fit(X, y)
    expected = expected.attribute(Xq.numpy(), yq.numpy())
    exact = DualInfluence(LogisticRegression(), random_state=0).fit(X, y)
    found = QuandaExplainer(module, rows, attributor=exact).explain(Xq, yq)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-7)


def test_what_cannot_be_is_refused(case):
    net, X, y, rows, _ = case
    dual = DualInfluence(net, random_state=0).fit(X, y)
    module = dual.estimator_.module_
    with pytest.raises(ValueError, match=r"task='causal_lm'"):
        QuandaExplainer(module, rows, "causal_lm", attributor=dual)
    with pytest.raises(ValueError, match=r"has no attribute\(X, y\)"):
        QuandaExplainer(module, rows, attributor=net)
    fewer = TensorDataset(*rows[:40])
    with pytest.raises(ValueError, match=r"train_dataset has rows of shape \(40, 4\)"):
        QuandaExplainer(module, fewer, attributor=dual)
    order = TensorDataset(*(part.flip(0) for part in rows.tensors))
    with pytest.raises(ValueError, match=r"in the same order"):
        QuandaExplainer(module, order, attributor=dual)
    tasks = DualInfluence(net, random_state=0).fit(X, y, tasks=np.arange(len(y)) % 5)
    with pytest.raises(ValueError, match=r"tasks=None"):
        QuandaExplainer(module, rows, attributor=tasks)
    kinds = (UnsupportedModelError, TrajectoryError)
    with pytest.raises(kinds, match=r"AdamWInfluence needs a training.*DualInfluence"):
        QuandaExplainer(module, rows, attributor=AdamWInfluence(random_state=0))


def test_it_has_the_arguments_that_quanda_passes():
    passed = {"model", "train_dataset", "task", "checkpoints", "checkpoints_load_func"}
    assert passed < set(inspect.signature(QuandaExplainer.__init__).parameters)
