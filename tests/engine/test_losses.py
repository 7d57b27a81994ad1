"""Losses: closed forms against autograd and differences, outcomes, refusals."""

import copy
import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch.func import jacrev, vmap

from skattrib.engine._losses import (
    ClassLoss,
    CrossEntropy,
    LabelLoss,
    Loss,
    SquaredError,
    as_loss,
    check_loss,
    cross_log_odds,
)

N, C = 6, 3


def randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


CLASSES = torch.tensor([0, 2, 1, 1, 0, 2])
PAIR = torch.tensor([0, 1, 1, 0, 0, 1])
LABELS = (randn(N, C, seed=1) > 0).double()
NUMBERS = randn(N, C, seed=2)
COUNTS = torch.tensor([[0.0], [3], [1], [7], [2], [2]], dtype=torch.float64)


def focal(outputs, y, gamma=2.0):
    log_p = outputs.log_softmax(-1).gather(1, y[:, None])[:, 0]
    return -((1 - log_p.exp()) ** gamma) * log_p


def quantile(outputs, y):
    error = y - outputs
    return torch.maximum(0.8 * error, -0.2 * error).sum(-1)


def log_cosh(outputs, y):
    return (outputs - y).cosh().log().sum(-1)


WEIGHT = torch.tensor([1.0, 3.0, 0.5])
#: what a user passes, what the targets are, targets, outputs
CASES = {
    "cross-entropy": ("auto", ClassLoss, CLASSES, C),
    "class weights": (nn.CrossEntropyLoss(weight=WEIGHT), ClassLoss, CLASSES, C),
    "smoothing": (nn.CrossEntropyLoss(label_smoothing=0.1), ClassLoss, CLASSES, C),
    "both": (nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.2), ClassLoss, CLASSES, C),
    "many classes": ("auto", ClassLoss, CLASSES * 40, 81),
    "log-probabilities": (nn.NLLLoss(), ClassLoss, CLASSES, C),
    "focal": (focal, ClassLoss, CLASSES, C),
    "one logit": (nn.BCEWithLogitsLoss(), ClassLoss, PAIR, 1),
    "one logit, weighted": (
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0)),
        ClassLoss,
        PAIR,
        1,
    ),
    "labels": ("auto", LabelLoss, LABELS, C),
    "labels, weighted": (
        nn.BCEWithLogitsLoss(weight=torch.tensor(0.5), pos_weight=WEIGHT),
        LabelLoss,
        LABELS,
        C,
    ),
    "squared": ("auto", Loss, NUMBERS, C),
    "MSELoss": (nn.MSELoss(), Loss, NUMBERS, C),
    "Huber": (nn.HuberLoss(delta=0.5), Loss, NUMBERS, C),
    "smooth L1": (nn.SmoothL1Loss(), Loss, NUMBERS, C),
    "log-cosh": (log_cosh, Loss, NUMBERS, C),
    "quantile": (quantile, Loss, NUMBERS, C),
    "Poisson": (nn.PoissonNLLLoss(), Loss, COUNTS, 1),
    "Poisson, rates": (nn.PoissonNLLLoss(log_input=False), Loss, COUNTS, 1),
    "Gaussian": (nn.GaussianNLLLoss(), Loss, NUMBERS, 2 * C),
}


def case(name):
    """The loss, outputs and targets of a case."""
    given, link, targets, n_outputs = CASES[name]
    outputs = 2 * randn(N, n_outputs, seed=3)
    if name == "Poisson, rates":
        outputs = outputs.abs()
    return as_loss(given, link), outputs, targets


def one_row(loss):
    return lambda output, target: loss.values(output[None], target[None])[0]


@pytest.mark.parametrize("name", CASES)
def test_derivatives_are_those_of_autograd(name):
    loss, outputs, targets = case(name)
    gradient = vmap(jacrev(one_row(loss)))(outputs, targets)
    assert_allclose(loss.residuals(outputs, targets), gradient, rtol=0, atol=1e-12)
    second = vmap(jacrev(jacrev(one_row(loss))))(outputs, targets)
    vectors = randn(4, *outputs.shape, seed=4)
    expected = torch.einsum("ncd,qnd->qnc", second, vectors)
    product = loss.hessian_product(outputs, targets, vectors)
    assert_allclose(product, expected, rtol=0, atol=1e-12)
    values, directions = np.linalg.eigh(second.numpy())
    positive = (directions * values.clip(0)[:, None]) @ directions.swapaxes(1, 2)
    root = loss.hessian_root(outputs, targets)
    assert_allclose(root @ root.mT, positive, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_derivatives_are_differences(name):
    loss, outputs, targets = case(name)
    step = 1e-6
    for c in range(outputs.shape[1]):
        move = torch.zeros_like(outputs)
        move[:, c] = step
        there, back = outputs + move, outputs - move
        slope = loss.values(there, targets) - loss.values(back, targets)
        found = loss.residuals(outputs, targets)[:, c]
        assert_allclose(found, slope / (2 * step), rtol=1e-6, atol=1e-8)
        bend = loss.residuals(there, targets) - loss.residuals(back, targets)
        found = loss.hessian_product(outputs, targets, move[None] / step)[0]
        assert_allclose(found, bend / (2 * step), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_more_axes_before_the_rows(name):
    loss, outputs, targets = case(name)
    stack = torch.stack([outputs, 0.5 * outputs])
    found = loss.residuals(stack, targets)
    outcome = loss.outcome("auto")
    outcomes = outcome(stack, torch.stack([targets] * 2))
    assert outcomes.shape == (2, N)
    for i in range(2):
        assert_allclose(found[i], loss.residuals(stack[i], targets), atol=1e-14)
        assert_allclose(outcomes[i], outcome(stack[i], targets), atol=1e-14)


@pytest.mark.parametrize("name", CASES)
def test_check_passes_and_losses_can_be_copied(name):
    loss, outputs, targets = case(name)
    check_loss(loss, outputs[:3], targets[:3])
    single = targets.float() if targets.is_floating_point() else targets
    check_loss(loss, outputs[:3].float(), single[:3])
    if CASES[name][0] not in (focal, quantile, log_cosh):
        again = pickle.loads(pickle.dumps(copy.deepcopy(loss)))
        values = again.values(outputs, targets)
        assert torch.equal(values, loss.values(outputs, targets))


@pytest.mark.parametrize(
    "name", ["class weights", "smoothing", "both", "one logit, weighted", "labels"]
)
def test_a_minibatch_is_what_torch_has(name):
    given, _, targets, _ = CASES[name]
    loss, outputs, _ = case(name)
    given = nn.BCEWithLogitsLoss() if given == "auto" else given
    encoded = targets.double()[:, None] if name.startswith("one") else targets
    expected = given.double()(outputs, encoded)
    if name == "labels":  # torch takes the mean over labels, too
        expected = expected * C
    weights = loss.row_weights(targets)
    weights = outputs.new_ones(N) if weights is None else weights
    values = loss.values(outputs, targets)
    assert_allclose(values @ weights.double() / weights.sum(), expected, rtol=1e-6)


def test_values():
    outputs = randn(5, 3)
    f, y = outputs.numpy(), CLASSES[:5].numpy()
    expected = np.log(np.exp(f).sum(axis=1)) - f[np.arange(5), y]
    assert_allclose(CrossEntropy().values(outputs, CLASSES[:5]), expected, rtol=1e-12)
    expected = 0.5 * ((f - NUMBERS[:5].numpy()) ** 2).sum(axis=1)
    assert_allclose(SquaredError().values(outputs, NUMBERS[:5]), expected, rtol=1e-12)


# ---------------------------------------------------------- what outputs mean
def test_predictions():
    outputs = torch.tensor([[1.0, 2, -1], [0, -3, 4]])
    assert CrossEntropy().predict(outputs).tolist() == [1, 2]
    labels = as_loss("auto", LabelLoss).predict(outputs)
    assert labels.tolist() == [[1, 1, 0], [0, 0, 1]]
    single = as_loss("auto", ClassLoss, single_output=True)
    assert single.predict(outputs[:, :1]).tolist() == [1, 0]
    pair = torch.stack([torch.zeros(2), outputs[:, 0]], dim=1)
    found = single.log_probabilities(outputs[:, :1])
    assert_allclose(found, pair.log_softmax(-1), rtol=1e-6)
    rates = as_loss(nn.PoissonNLLLoss(), Loss).predict(outputs)
    assert_allclose(rates, outputs.exp())
    means = as_loss(nn.GaussianNLLLoss(), Loss).predict(outputs[:, :2])
    assert_allclose(means, outputs[:, :1])


def test_numbers_of_outputs():
    for given, link, targets, n_outputs in CASES.values():
        assert as_loss(given, link).n_outputs(targets) == n_outputs


def test_one_logit_is_two():
    z = randn(N, 1)
    single, double = as_loss("auto", ClassLoss, single_output=True), CrossEntropy()
    pair = torch.cat([torch.zeros_like(z), z], dim=1)
    for name in ("log_likelihood", "margin", "probability"):
        expected = double.outcome(name)(pair, PAIR)
        assert_allclose(single.outcome(name)(z, PAIR), expected, rtol=1e-12)
    assert_allclose(single.values(z, PAIR), double.values(pair, PAIR), rtol=1e-12)


def test_squared_error_has_one_outcome_at_any_scale():
    outputs = randn(N, C)
    expected = -0.5 * (outputs - NUMBERS).square().sum(-1)
    for given in ("auto", nn.MSELoss()):
        outcome = as_loss(given, Loss).outcome("auto")
        assert_allclose(outcome(outputs, NUMBERS), expected)


@pytest.mark.parametrize("name", ["Huber", "Poisson", "Gaussian", "focal", "quantile"])
def test_outcomes_of_other_losses_are_minus_the_loss(name):
    loss, outputs, targets = case(name)
    found = loss.outcome("log_likelihood")(outputs, targets)
    assert_allclose(found, -loss.values(outputs, targets), rtol=1e-14)


def test_margin_is_the_log_odds():
    outputs, y = 2 * randn(4, 5, 3), torch.tensor([0, 2, 1, 1, 0]).expand(4, 5)
    p = outputs.softmax(-1).gather(-1, y[..., None])[..., 0]
    assert_allclose(cross_log_odds(outputs, y), (p / (1 - p)).log(), rtol=1e-10)
    assert_allclose(CrossEntropy().outcome("probability")(outputs, y), p, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_margin_at_saturation(dtype):
    outputs = torch.tensor([[2e3, 0.0, 0.0], [-2e3, 0.0, 0.0]], dtype=dtype)
    y = torch.tensor([0, 0])
    p = outputs.softmax(-1)[:, 0]
    assert p.tolist() == [1.0, 0.0]  # the odds themselves are 1/0 and 0
    expected = np.array([2e3, -2e3]) - np.log(2)
    assert_allclose(cross_log_odds(outputs, y), expected, rtol=1e-6)
    outputs.requires_grad_()
    (gradient,) = torch.autograd.grad(cross_log_odds(outputs, y).sum(), outputs)
    assert_allclose(gradient, [[1, -0.5, -0.5]] * 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("outcome", "loss", "targets", "expected"),
    [
        ("auto", CrossEntropy(), CLASSES, lambda f, y: -CrossEntropy().values(f, y)),
        ("auto", SquaredError(), NUMBERS, lambda f, y: -SquaredError().values(f, y)),
        ("margin", CrossEntropy(), CLASSES, cross_log_odds),
        ("prediction", SquaredError(), NUMBERS, lambda f, y: f[:, 0]),
        (lambda f, y: f.sum(-1), SquaredError(), NUMBERS, lambda f, y: f.sum(-1)),
    ],
)
def test_outcomes(outcome, loss, targets, expected):
    outputs = randn(2, N, C)
    found = loss.outcome(outcome)(outputs, torch.stack([targets] * 2))
    assert found.shape == (2, N)
    for some, one in zip(found, outputs, strict=True):
        assert_allclose(some, expected(one, targets), rtol=1e-12)


def test_outcome_without_a_name_here():
    with pytest.raises(ValueError, match="'margin' is not defined for SquaredError"):
        SquaredError().outcome("margin")


# -------------------------------------------------------------------- refusals
class Wrong(CrossEntropy):
    """Residuals of another loss."""

    def residuals(self, outputs, targets):
        return 2 * super().residuals(outputs, targets)


class Halved(SquaredError):
    """A Huber loss that keeps the curvature of the squared error."""

    def values(self, outputs, targets):
        return nn.functional.huber_loss(outputs, targets, reduction="none").sum(-1)

    def residuals(self, outputs, targets):
        return Loss.residuals(self, outputs, targets)


@pytest.mark.parametrize(
    ("loss", "link", "targets", "text"),
    [
        (nn.HuberLoss, Loss, NUMBERS, r"is a class: pass an instance, HuberLoss\(\)"),
        (nn.MSELoss(reduction="sum"), Loss, NUMBERS, "reduction='sum'.*'mean'"),
        (nn.TripletMarginLoss(), Loss, NUMBERS, "compares rows with one another"),
        (nn.BCELoss(), LabelLoss, LABELS, "probabilities: use nn.BCEWithLogitsLoss"),
        (nn.CrossEntropyLoss(ignore_index=1), ClassLoss, CLASSES, "ignore_index=1"),
        (nn.MultiMarginLoss(), ClassLoss, CLASSES, "no second derivative"),
        (lambda f, y: (f - y).square().mean(), Loss, NUMBERS, r"shape \(\).*each row"),
        (lambda f, y: f - y, Loss, NUMBERS, r"shape \(6, 3\).*\.sum\(-1\)"),
        (lambda f, y: f.sum(-1).tolist(), Loss, NUMBERS, "returned a list"),
        (lambda f, y: f.sum(-1) * np.nan, Loss, NUMBERS, "is nan for outputs"),
        (lambda f, y: f[:, 7], Loss, NUMBERS, r"failed on outputs \(6, 3\)"),
        (lambda f, y: (f - f.mean(0)).sum(-1), Loss, NUMBERS, "depends on the other"),
        (lambda f, y: f.argmax(-1).double(), Loss, NUMBERS, "cannot be differentiated"),
        (CrossEntropy(), Loss, NUMBERS, "a loss of classes, but y holds numbers"),
        (SquaredError(), ClassLoss, CLASSES, "a loss of numbers, but y holds classes"),
        (Wrong(), ClassLoss, CLASSES, "residuals of Wrong are not the derivatives"),
        (Halved(), Loss, 3 * NUMBERS, "hessian_product of Halved are not"),
    ],
)
def test_refused(loss, link, targets, text):
    with pytest.raises(ValueError, match=text):
        check_loss(as_loss(loss, link), randn(N, C, seed=5), targets)


@pytest.mark.parametrize(
    ("loss", "link", "targets", "text"),
    [
        (
            nn.CrossEntropyLoss(torch.ones(2)),
            ClassLoss,
            CLASSES,
            "2 .*3 classes",
        ),
        (nn.BCEWithLogitsLoss(), ClassLoss, CLASSES, "two classes, but y has 3"),
        (
            nn.BCEWithLogitsLoss(pos_weight=torch.ones(2)),
            LabelLoss,
            LABELS,
            "pos_weight of the loss has 2 entries, for 3 outputs",
        ),
    ],
)
def test_weights_of_another_length(loss, link, targets, text):
    with pytest.raises(ValueError, match=text):
        as_loss(loss, link).n_outputs(targets)


def test_loss_with_parameters_of_its_own():
    class Tempered(nn.Module):
        def __init__(self):
            super().__init__()
            self.temperature = nn.Parameter(torch.ones(()))

        def forward(self, outputs, targets):
            return (outputs / self.temperature - targets).square().sum(-1)

    with pytest.raises(ValueError, match="parameters of its own"):
        as_loss(Tempered(), Loss)
