"""Losses other than the two usual ones, from training to attributions."""

import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_iris, load_wine
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import scale
from torch import nn
from torch.func import jacrev

from skattrib import (
    AdamWInfluence,
    DualInfluence,
    GradientTransformer,
    KernelSurrogateAttributor,
    RISEValuator,
    TorchClassifier,
    TorchRegressor,
    record_training,
)
from skattrib.evaluation import retrain_outcomes

N, QUERIES = 24, 4


def focal(outputs, y):
    log_p = outputs.log_softmax(-1).gather(1, y[:, None])[:, 0]
    return -((1 - log_p.exp()) ** 2) * log_p


def quantile(outputs, y):
    error = y - outputs
    return torch.maximum(0.8 * error, -0.2 * error).sum(-1)


def rows(load=load_iris):
    X, y = load(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(y))[: N + QUERIES]
    return scale(X)[order], y[order]


def classes(X, y):
    return y


def two(X, y):
    return np.where(y == 2, "b", "a")


def labels(X, y):
    return np.column_stack([y == 0, X[:, 0] > 0, X[:, 1] > 0]).astype(int)


def numbers(X, y):
    return X[:, 2] + 0.3 * X[:, 1] ** 2 + 0.5 * y


def counts(X, y):
    return np.round(np.exp(X[:, 2]))


SMALL = {"hidden_layer_sizes": (4,), "max_epochs": 5, "batch_size": 9}
SMALL |= {"random_state": 0}


def classifier(**options):
    return TorchClassifier(**{**SMALL, **options})


def regressor(**options):
    return TorchRegressor(**{**SMALL, **options})


def weighted(**options):
    return nn.CrossEntropyLoss(torch.tensor([1.0, 4.0, 0.5]), **options)


CASES = {
    "Huber": (regressor(loss=nn.HuberLoss(delta=0.4)), numbers),
    "smooth L1": (regressor(loss=nn.SmoothL1Loss(beta=0.7)), numbers),
    "MSELoss": (regressor(loss=nn.MSELoss(), optimizer="sgd"), numbers),
    "quantile": (regressor(loss=quantile), numbers),
    "Poisson": (regressor(loss=nn.PoissonNLLLoss()), counts),
    "Gaussian": (regressor(loss=nn.GaussianNLLLoss()), numbers),
    "focal": (classifier(loss=focal), classes),
    "smoothing": (classifier(loss=nn.CrossEntropyLoss(label_smoothing=0.2)), classes),
    "weights of the loss": (classifier(loss=weighted()), classes),
    "class weights": (classifier(class_weight={1: 4.0, 2: 0.5}), classes),
    "all of these": (
        classifier(loss=weighted(label_smoothing=0.1), class_weight={0: 2.0}),
        classes,
    ),
    "balanced": (classifier(class_weight="balanced"), classes),
    "one logit": (classifier(loss=nn.BCEWithLogitsLoss()), two),
    "one logit, weighted": (
        classifier(loss=nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0))),
        two,
    ),
    "labels": (classifier(), labels),
    "labels, weighted": (
        classifier(loss=nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2, 3]))),
        labels,
    ),
}


def case(name):
    """The estimator of a case, its training rows and queries."""
    estimator, target = CASES[name]
    X, y = rows()
    y = target(X, y)
    return clone(estimator), X[:N], y[:N], X[N:], y[N:]


# ---------------------------------------------------- derivatives of the training
@pytest.mark.parametrize("name", CASES)
def test_attributions_are_derivatives_of_the_training(name):
    estimator, X, y, Xq, yq = case(name)
    influence = AdamWInfluence(estimator, inclusion=1.0, random_state=0).fit(X, y)
    found = influence.attribute(Xq, yq)

    step, some = 1e-4, [0, 5, 11]
    # the fourth order, so that what is tested is not the differences
    points = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}
    weights = np.ones((len(some) * 4, N))
    for i, row in enumerate(some):
        for j, point in enumerate(points):
            weights[4 * i + j, row] += step * point
    outcomes = retrain_outcomes(influence.estimator_, X, y, weights, Xq, yq)
    factors = np.array(list(points.values()))[:, None]
    expected = (outcomes.reshape(len(some), 4, -1) * factors).sum(axis=1) / step
    error = np.abs(found[:, some].T - expected).max() / np.abs(expected).max()
    assert error < 1e-6


@pytest.mark.touches_global_rng
@pytest.mark.parametrize("name", ["Huber", "focal", "balanced", "labels, weighted"])
def test_runs_are_swept_by_hand_as_by_autograd(name):
    estimator, X, y, Xq, yq = case(name)
    tanh = AdamWInfluence(estimator, inclusion=1.0, random_state=0).fit(X, y)

    class Hidden(nn.Sequential):
        """A class that the layers cannot be read from."""

    def opaque(n_inputs, n_outputs):
        layers = [nn.Linear(n_inputs, 4), nn.Tanh(), nn.Linear(4, n_outputs)]
        return Hidden(*layers).double()

    module = opaque(X.shape[1], tanh.estimator_.n_outputs_)
    own = tanh.estimator_.trajectory_.recipe.initial
    nn.utils.vector_to_parameters(own.clone(), module.parameters())
    other = clone(estimator).set_params(module=module)
    other = AdamWInfluence(other, inclusion=1.0, random_state=0).fit(X, y)
    assert_allclose(other.attribute(Xq, yq), tanh.attribute(Xq, yq), atol=1e-11)


# -------------------------------------------------------- one Newton step, dense
def dense_newton(estimator, X, y, Xq, yq, row_weights, ridge):
    """Attributions by brute force: plain autograd and a linear solve per row.

    ``row_weights`` turns weights (n,) of rows into those of the loss.
    """
    module, loss = estimator.module_, estimator.loss_function_
    params = list(module.parameters())

    def outputs_and_jacobian(rows):
        outputs, found = [], []
        for row in torch.tensor(rows):
            out = module(row[None])[0]
            outputs.append(out.detach())
            slopes = [torch.autograd.grad(o, params, retain_graph=True) for o in out]
            found.append(
                torch.stack([torch.cat([g.reshape(-1) for g in gs]) for gs in slopes])
            )
        return torch.stack(outputs), torch.stack(found)

    targets = estimator._targets(y, torch.empty(0, dtype=torch.float64))
    f, J = outputs_and_jacobian(X)
    slopes, bends = [], []
    for i in range(len(X)):

        def one(out, target=targets[i : i + 1]):
            return loss.values(out[None], target)[0]

        slopes.append(torch.func.grad(one)(f[i]))
        values, vectors = np.linalg.eigh(jacrev(jacrev(one))(f[i]).numpy())
        bends.append(torch.tensor((vectors * values.clip(0)) @ vectors.T))
    g = torch.einsum("ncp,nc->np", J, torch.stack(slopes)).numpy()
    H = torch.einsum("ncp,ncd,ndq->npq", J, torch.stack(bends), J).numpy()

    fq, Jq = outputs_and_jacobian(Xq)
    outcome = loss.outcome("auto")
    yq = estimator._targets(yq, torch.empty(0, dtype=torch.float64))
    whole = row_weights(np.ones(len(X)))
    found = []
    for i in range(len(X)):
        w = row_weights((np.arange(len(X)) != i).astype(float))
        curvature = np.einsum("n,npq->pq", w, H) + ridge * w.sum() * np.eye(g.shape[1])
        start = w @ g - w.sum() / whole.sum() * (whole @ g)
        move = torch.tensor(-np.linalg.solve(curvature, start))
        found.append(outcome(fq, yq) - outcome(fq + Jq @ move, yq))
    return torch.stack(found, dim=1).numpy()


def of_classes(name, estimator, y):
    """What classes make of the weights of rows: torch's and sklearn's formulas."""
    codes = np.unique(y, return_inverse=True)[1] if y.ndim == 1 else None
    own = {
        "weights of the loss": [1.0, 4.0, 0.5],
        "class weights": [1.0, 4.0, 0.5],
        "all of these": [2.0, 4.0, 0.5],
    }.get(name)
    if own is not None:
        return lambda w: w * np.array(own)[codes]
    if name == "balanced":

        def balanced(w):
            totals = np.bincount(codes, w)
            return w * (w.sum() / (len(totals) * totals))[codes]

        return balanced
    return lambda w: w


@pytest.mark.parametrize("solver", ["primal", "dual", "cg"])
@pytest.mark.parametrize("name", CASES)
def test_a_newton_step_is_the_dense_one(name, solver):
    estimator, X, y, Xq, yq = case(name)
    dual = DualInfluence(
        estimator, ridge=0.05, metric="identity", solver=solver, random_state=0
    )
    dual.fit(X, y)
    expected = dense_newton(
        dual.estimator_, X, y, Xq, yq, of_classes(name, estimator, y), 0.05
    )
    error = np.abs(dual.attribute(Xq, yq) - expected).max() / np.abs(expected).max()
    assert error < 1e-8


@pytest.mark.parametrize("name", CASES)
def test_first_order_by_query_and_by_unit(name):
    """More than 64 units are solved for by queries, fewer one by one."""
    estimator, target = CASES[name]
    X, y = load_wine(return_X_y=True)
    X, y = scale(X)[::2], target(scale(X), y)[::2]
    options = {"removal": "influence", "ridge": 0.05, "random_state": 0}
    by_query = DualInfluence(clone(estimator), solver="primal", **options).fit(X, y)
    by_unit = DualInfluence(clone(estimator), solver="dual", **options).fit(X, y)
    found, expected = (d.attribute(X[:3], y[:3]) for d in (by_query, by_unit))
    assert_allclose(found, expected, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["Huber", "focal", "quantile"])
def test_curvature_that_is_left_out_is_said(name):
    estimator, X, y, Xq, yq = case(name)
    dual = DualInfluence(estimator, random_state=0).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = dual.diagnose(Xq, yq)
    flat = {"Huber": found.flat_rows > 0.2, "quantile": found.flat_rows == 1}
    assert flat.get(name, found.negative_curvature > 0)
    said = "no curvature" if name in flat else "not convex"
    assert said in found.verdict


def test_the_usual_losses_leave_nothing_out():
    X, y = rows()
    dual = DualInfluence(classifier(), random_state=0).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = dual.diagnose(X[:3], y[:3])
    assert found.flat_rows == found.negative_curvature == 0


@pytest.mark.touches_global_rng
# ------------------------------------------------------------------- the wrappers
def test_a_minibatch_loop_of_torch_is_repeated():
    """Class weights and smoothing: the same steps as torch's own loop takes."""
    X, y = rows()
    loss = weighted(label_smoothing=0.1)
    own = TorchClassifier(loss=loss, max_epochs=7, random_state=0).fit(X, y)
    initial = own.trajectory_.recipe.initial.clone()
    module = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3)).double()
    nn.utils.vector_to_parameters(initial, module.parameters())
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.01)
    for _ in range(7):
        optimizer.zero_grad()
        loss.double()(module(torch.tensor(X)), torch.tensor(y)).backward()
        optimizer.step()
    for mine, theirs in zip(own.module_.parameters(), module.parameters(), strict=True):
        assert_allclose(mine.detach(), theirs.detach(), rtol=1e-6, atol=1e-8)


def test_balanced_weights_are_those_of_sklearn():
    X, y = rows()
    counts = np.bincount(y)
    explicit = {c: len(y) / (3 * n) for c, n in enumerate(counts)}
    balanced, given = (
        classifier(class_weight=w).fit(X, y) for w in ("balanced", explicit)
    )
    assert_allclose(balanced.predict_proba(X), given.predict_proba(X), rtol=1e-9)
    plain = classifier().fit(X, y).predict_proba(X)
    assert np.abs(plain - given.predict_proba(X)).max() > 1e-3


def test_balanced_weights_move_with_the_rows_that_are_left():
    X, y, Xq, yq = case("balanced")[1:]
    weights = np.ones((1, N))
    weights[0, np.flatnonzero(y == 0)[2:]] = 0
    kept = weights[0] > 0
    net = classifier(class_weight="balanced", batch_size=None)
    found = retrain_outcomes(net, X, y, weights, Xq, yq)
    alone = clone(net).fit(X[kept], y[kept])
    expected = alone.predict_log_proba(Xq)[np.arange(QUERIES), yq]
    assert_allclose(found[0], expected, rtol=1e-9)


def test_predictions():
    X, y = rows()
    several = classifier(max_epochs=60).fit(X, labels(X, y))
    assert several.predict(X).shape == several.predict_proba(X).shape == (len(X), 3)
    assert several.score(X, labels(X, y)) > 0.5
    p = several.predict_proba(X)
    assert_array_equal(several.predict(X), p > 0.5)
    assert_allclose(p, 1 / (1 + np.exp(-several.decision_function(X))), rtol=1e-9)
    one = classifier(loss=nn.BCEWithLogitsLoss(), max_epochs=60).fit(X, two(X, y))
    assert one.n_outputs_ == 1
    assert one.score(X, two(X, y)) > 0.8
    assert_allclose(one.predict_proba(X).sum(axis=1), 1, rtol=1e-9)
    odds = np.log(one.predict_proba(X)[:, 1] / one.predict_proba(X)[:, 0])
    assert_allclose(one.decision_function(X), odds, rtol=1e-6)
    poisson = regressor(loss=nn.PoissonNLLLoss(), max_epochs=100).fit(X, counts(X, y))
    assert (poisson.predict(X) > 0).all()
    assert poisson.score(X, counts(X, y)) > 0.3
    gaussian = regressor(loss=nn.GaussianNLLLoss(), max_epochs=100)
    assert gaussian.fit(X, numbers(X, y)).predict(X).shape == (len(X),)
    assert gaussian.n_outputs_ == 2
    assert gaussian.score(X, numbers(X, y)) > 0.5


@pytest.mark.parametrize("name", CASES)
def test_without_targets_and_score(name):
    estimator, X, y, Xq, yq = case(name)
    dual = DualInfluence(estimator, n_retrainings=8, random_state=0).fit(X, y)
    assert np.isfinite(dual.transform(Xq)).all()
    assert -1 <= dual.score(Xq, yq) <= 1


@pytest.mark.parametrize("name", ["Huber", "labels", "one logit", "balanced"])
def test_other_attributors(name):
    estimator, X, y, Xq, yq = case(name)
    for estimation in ("gradient", "retrain"):
        surrogate = KernelSurrogateAttributor(
            clone(estimator), estimation=estimation, n_subsets=20, random_state=0
        )
        found = surrogate.fit(X, y).attribute(Xq, yq)
        assert np.isfinite(found).all()
        assert np.ptp(found) > 0
    rise = RISEValuator(clone(estimator), random_state=0).fit(X, y)
    assert np.isfinite(rise.attribute(Xq, yq)).all()
    gradients = GradientTransformer(clone(estimator), random_state=0).fit(X, y)
    assert np.isfinite(gradients.transform(Xq)).all()


@pytest.mark.touches_global_rng
@pytest.mark.parametrize("name", ["Huber", "labels, weighted", "one logit", "Poisson"])
def test_a_frozen_module_with_its_loss(name):
    estimator, X, y, Xq, yq = case(name)
    fitted = estimator.fit(X, y)
    if isinstance(fitted, TorchClassifier):
        wrapped = TorchClassifier.from_module(
            fitted.module_, fitted.classes_, loss=fitted.loss
        )
    else:
        wrapped = TorchRegressor.from_module(fitted.module_, loss=fitted.loss)
    assert_array_equal(wrapped.predict(Xq), fitted.predict(Xq))
    options = {"ridge": 0.1, "metric": "identity"}
    expected = DualInfluence(FrozenEstimator(fitted), **options).fit(X, y)
    found = DualInfluence(FrozenEstimator(wrapped), **options).fit(X, y)
    assert_allclose(found.attribute(Xq, yq), expected.attribute(Xq, yq), rtol=1e-9)


@pytest.mark.touches_global_rng
def test_one_logit_for_two_classes_needs_no_loss():
    X, y = rows()
    module = nn.Linear(4, 1).double()
    wrapped = TorchClassifier.from_module(module, ["a", "b"])
    z = module(torch.tensor(X)).detach().numpy()[:, 0]
    assert_array_equal(wrapped.predict(X), np.where(z > 0, "b", "a"))
    trained = TorchClassifier(module, max_epochs=50, random_state=0).fit(X, two(X, y))
    assert trained.score(X, two(X, y)) > 0.8


@pytest.mark.touches_global_rng
@pytest.mark.parametrize(
    "name", ["Huber", "one logit, weighted", "labels", "smoothing"]
)
def test_a_recorded_loop_with_its_loss(name):
    estimator, X, y, Xq, yq = case(name)
    fitted = clone(estimator).set_params(batch_size=None).fit(X, y)
    initial = fitted.trajectory_.recipe.initial
    n_outputs = fitted.n_outputs_
    module = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, n_outputs)).double()
    nn.utils.vector_to_parameters(initial.clone(), module.parameters())
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.01)
    targets = fitted._targets(y, initial)
    recording = record_training(module, optimizer)
    with recording:
        for _ in range(5):
            recording.rows(np.arange(N))
            optimizer.zero_grad()
            values = fitted.loss_function_.values(module(torch.tensor(X)), targets)
            values.mean().backward()
            optimizer.step()
    turned = recording.to_regressor if name == "Huber" else recording.to_classifier
    recorded = turned(X, y, loss=estimator.loss)
    assert_allclose(recorded.loss_curve_, fitted.loss_curve_, rtol=1e-8)
    found = AdamWInfluence(FrozenEstimator(recorded)).fit(X, y).attribute(Xq, yq)
    expected = AdamWInfluence(FrozenEstimator(fitted)).fit(X, y).attribute(Xq, yq)
    assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


# ------------------------------------------------------------------------ refusals
def contrastive(outputs, y):
    return (outputs - outputs.mean(dim=0)).square().sum(-1)


REFUSED = {
    "pairs": (regressor(loss=contrastive), numbers, "depends on the other rows"),
    "scalar": (regressor(loss=lambda f, y: (f - y).mean()), numbers, "one number for"),
    "shape": (regressor(loss=lambda f, y: f.T), numbers, "one number for each row"),
    "NaN": (regressor(loss=lambda f, y: f[:, 0] * np.nan), numbers, "is nan"),
    "sum": (regressor(loss=nn.MSELoss(reduction="sum")), numbers, "reduction='mean'"),
    "class": (regressor(loss=nn.MSELoss), numbers, r"pass an instance, MSELoss\(\)"),
    "triplets": (regressor(loss=nn.TripletMarginLoss()), numbers, "compares rows"),
    "weight": (
        classifier(loss=nn.CrossEntropyLoss(torch.ones(2))),
        classes,
        "2 entries, but y has 3 classes",
    ),
    "ignored": (
        classifier(loss=nn.CrossEntropyLoss(ignore_index=0)),
        classes,
        "ignore",
    ),
    "three classes": (classifier(loss=nn.BCEWithLogitsLoss()), classes, "two classes"),
    "word": (classifier(loss="hinge"), classes, "'loss' parameter"),
    "class weight": (classifier(class_weight={7: 1}), classes, "not in class_weight"),
    "negative": (classifier(class_weight={0: -1.0}), classes, "at least 0"),
    "of labels": (classifier(class_weight="balanced"), labels, "pos_weight"),
}


@pytest.mark.parametrize(("estimator", "target", "text"), REFUSED.values(), ids=REFUSED)
def test_refused_before_training(estimator, target, text):
    X, y = rows()
    y = target(X, y)
    for refusing in (clone(estimator), DualInfluence(clone(estimator), random_state=0)):
        before = dict(vars(refusing))
        with pytest.raises(ValueError, match=text):
            refusing.fit(X, y)
        assert vars(refusing) == before


def test_single_steps_of_balanced_classes_say_nothing():
    estimator, X, y, Xq, yq = case("balanced")
    influence = AdamWInfluence(estimator, inclusion=1.0, random_state=0).fit(X, y)
    with pytest.raises(ValueError, match="moves the weights of all rows of a class"):
        influence.step_attribution(Xq, yq)
    estimator.set_params(class_weight={1: 3.0})
    influence = AdamWInfluence(estimator, inclusion=1.0, random_state=0).fit(X, y)
    steps = influence.step_attribution(Xq, yq)
    total = np.zeros((QUERIES, N))
    np.add.at(total.T, steps.rows, steps.attributions.T)
    assert_allclose(total, influence.attribute(Xq, yq), atol=1e-12)
