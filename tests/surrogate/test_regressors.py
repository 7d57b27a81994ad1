"""Surrogates of functions on subsets against brute force over the whole cube."""

import itertools
import math

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel
from sklearn.linear_model import BayesianRidge, LinearRegression, Ridge

import skattrib.surrogate._closed_forms
from skattrib import KernelSurrogate, LinearSurrogate
from skattrib.exceptions import ConstantOutcomeWarning
from skattrib.surrogate._closed_forms import kernel_interactions, quadrature


def cube(n):
    return np.array(list(itertools.product([0.0, 1.0], repeat=n)))


def xor_game(W):
    return (W[:, 0] != W[:, 1]) + 0.2 * W[:, 2] - 0.1 * W[:, 3]


def quadratic_game(W, rng):
    n = W.shape[1]
    linear, H = rng.randn(n), rng.randn(n, n)
    H = H + H.T
    np.fill_diagonal(H, 0)
    Z = W - 1
    return Z @ linear + 0.5 * np.einsum("ai,ij,aj->a", Z, H, Z), linear, H


def r2(predicted, truth):
    return (
        1 - np.square(predicted - truth).sum() / np.square(truth - truth.mean()).sum()
    )


class BruteForce:
    """All values of a function on the cube, and what follows from them."""

    def __init__(self, values, n):
        self.n, self.W = n, cube(n)
        self.value = {tuple(w): v for w, v in zip(self.W, values)}

    def without(self, w, *units):
        w = w.copy()
        w[list(units)] = 0
        return self.value[tuple(w)]

    def mean(self, f, skipped, p):
        """Mean of f over subsets of the others, each present with probability p."""
        others = [j for j in range(self.n) if j not in skipped]
        total = 0.0
        for bits in itertools.product([0.0, 1.0], repeat=len(others)):
            w = np.ones(self.n)
            w[others] = bits
            size = sum(bits)
            total += p**size * (1 - p) ** (len(others) - size) * f(w)
        return total

    def attribution(self, i, p):
        def difference(w):
            return self.value[tuple(w)] - self.without(w, i)

        return self.mean(difference, [i], p)

    def interaction(self, i, j, p):
        def difference(w):
            single = self.without(w, i) + self.without(w, j)
            return self.value[tuple(w)] - single + self.without(w, i, j)

        return self.mean(difference, [i, j], p)

    def shapley(self, i):
        total = 0.0
        for w in self.W[self.W[:, i] == 1]:
            # orders in which just the others of w come before i
            orders = math.factorial(int(w.sum()) - 1) * math.factorial(
                self.n - int(w.sum())
            )
            total += orders * (self.value[tuple(w)] - self.without(w, i))
        return total / math.factorial(self.n)


@pytest.fixture
def game():
    """A surrogate of a rough function, and all its values."""
    rng = np.random.RandomState(0)
    W = cube(8)
    some = rng.permutation(256)[:100]
    surrogate = KernelSurrogate(ridge=1e-2).fit(W[some], rng.randn(100))
    return surrogate, BruteForce(surrogate.predict(W), 8)


@pytest.mark.parametrize(
    ("at", "p"), [("loo", 1.0), ("banzhaf", 0.5), (0.3, 0.3), (0, 0)]
)
def test_attributions_are_mean_differences(game, at, p):
    surrogate, brute = game
    expected = [brute.attribution(i, p) for i in range(8)]
    np.testing.assert_allclose(surrogate.attribution(at), expected, atol=1e-10)


@pytest.mark.parametrize(("at", "p"), [("loo", 1.0), ("banzhaf", 0.5), (0.9, 0.9)])
def test_interactions_are_mean_second_differences(game, at, p):
    surrogate, brute = game
    found = surrogate.interactions(at)
    for i, j in itertools.combinations(range(8), 2):
        expected = brute.interaction(i, j, p)
        assert found[i, j] == pytest.approx(expected, abs=1e-10)
    np.testing.assert_allclose(found, found.T, atol=1e-12)
    assert (np.diag(found) == 0).all()


def test_shapley_values(game):
    surrogate, brute = game
    found = surrogate.attribution("shapley")
    np.testing.assert_allclose(found, [brute.shapley(i) for i in range(8)], atol=1e-10)
    ends = surrogate.predict([np.zeros(8), np.ones(8)])
    assert found.sum() == pytest.approx(ends[1] - ends[0], abs=1e-10)


def test_shapley_interactions_are_means_over_the_probability(game):
    surrogate, _ = game
    t, w = np.polynomial.legendre.leggauss(12)
    mean = sum(w / 2 * surrogate.interactions((t + 1) / 2) for t, w in zip(t, w))
    np.testing.assert_allclose(surrogate.interactions("shapley"), mean, atol=1e-10)


def test_fractional_weightings_can_be_fitted():
    rng = np.random.RandomState(0)
    surrogate = KernelSurrogate(ridge=0.1).fit(rng.rand(30, 5), rng.randn(30))
    brute = BruteForce(surrogate.predict(cube(5)), 5)
    expected = [brute.attribution(i, 0.4) for i in range(5)]
    np.testing.assert_allclose(surrogate.attribution(0.4), expected, atol=1e-10)


def test_a_narrow_kernel_gives_finite_numbers():
    W = cube(5)
    surrogate = KernelSurrogate(ridge=0.1, bandwidth=0.01).fit(W, W[:, 0])
    assert np.isfinite(surrogate.interactions("shapley")).all()
    np.testing.assert_allclose(surrogate.attribution()[0], 1 / 1.1, atol=1e-10)


def test_xor_needs_a_kernel():
    W = cube(8)
    F = xor_game(W)
    order = np.random.RandomState(0).permutation(256)
    seen, unseen = order[:128], order[128:]
    kernel = KernelSurrogate(ridge=1e-3).fit(W[seen], F[seen])
    linear = LinearSurrogate().fit(W[seen], F[seen])
    assert r2(linear.predict(W[unseen]), F[unseen]) < 0.2
    assert r2(kernel.predict(W[unseen]), F[unseen]) > 0.99
    pairs = kernel.interactions("banzhaf")
    assert pairs[0, 1] == pytest.approx(-2, abs=0.1)
    assert np.sort(np.abs(pairs[np.triu_indices(8, 1)]))[-2] < 0.05
    assert not linear.interactions().any()


@pytest.mark.parametrize("p", [0.5, 0.7, 0.9])
def test_linear_coefficients_are_biased_by_interactions(p):
    """β = leave-one-out + (p − 1) · row sum of interactions, arXiv:2602.03783."""
    n = 10
    W = cube(n)
    F, linear, H = quadratic_game(W, np.random.RandomState(1))
    # the population of Bernoulli(p) subsets by repeating each in proportion
    weight = p ** W.sum(axis=1) * (1 - p) ** (n - W.sum(axis=1))
    beta = LinearRegression().fit(W, F, sample_weight=weight).coef_
    np.testing.assert_allclose(beta, linear + (p - 1) * H.sum(axis=1), atol=1e-10)
    if p == 0.5:
        ours = LinearSurrogate(ridge=0).fit(W, F).attribution("loo")
        np.testing.assert_allclose(ours, beta, atol=1e-10)
        surrogate = KernelSurrogate(ridge=1e-6, bandwidth=10).fit(W, F)
        np.testing.assert_allclose(surrogate.attribution(), linear, atol=1e-3)
        np.testing.assert_allclose(surrogate.interactions(), H, atol=1e-3)


def leave_one_out_errors(surrogate, W, F):
    errors = []
    for i in range(len(W)):
        rest = np.arange(len(W)) != i
        fitted = surrogate.fit(W[rest], F[rest])
        errors.append(F[i] - fitted.predict(W[i : i + 1])[0])
    return np.array(errors)


def test_leave_one_out_error_is_that_of_refitting():
    rng = np.random.RandomState(0)
    W, F = (rng.rand(25, 6) < 0.6) * 1.0, rng.randn(25)
    surrogate = KernelSurrogate(ridge=0.03).fit(W, F)
    found = surrogate.loocv_error_[0]
    errors = leave_one_out_errors(surrogate, W, F)
    assert found == pytest.approx(np.square(errors).mean(), rel=1e-10)


def test_loocv_takes_the_smallest_leave_one_out_error():
    rng = np.random.RandomState(0)
    W = (rng.rand(60, 7) < 0.6) * 1.0
    F = xor_game(W) + 0.1 * rng.randn(60)
    best = KernelSurrogate(ridge="loocv", bandwidth="loocv").fit(W, F)
    for bandwidth in np.sqrt(7 / 2 / np.array([0.1, 0.3, 1.0, 3.0])):
        for ridge in np.logspace(-6, 1, 8):
            one = KernelSurrogate(ridge, bandwidth).fit(W, F)
            assert one.loocv_error_[0] >= best.loocv_error_[0] - 1e-12
    assert best.ridge_ in np.logspace(-6, 1, 8)
    assert KernelSurrogate().fit(W, F).bandwidth_ == pytest.approx(np.sqrt(3.5))


@pytest.mark.parametrize(
    "surrogate",
    [
        KernelSurrogate(),
        KernelSurrogate(bandwidth="loocv"),
        KernelSurrogate(0.1, 2.0),
        LinearSurrogate(),
        LinearSurrogate(2.0),
    ],
    ids=repr,
)
def test_outputs_are_fitted_one_by_one(surrogate):
    rng = np.random.RandomState(0)
    W = (rng.rand(50, 5) < 0.6) * 1.0
    F = np.c_[xor_game(W), rng.randn(50), W @ rng.randn(5)]
    several = surrogate.fit(W, F)
    shapes = several.predict(W).shape, several.attribution().shape
    assert shapes == ((50, 3), (3, 5))
    found = (*several.predict(W, return_std=True), several.interactions(0.5))
    found += several.attribution("shapley", return_std=True)
    for k in range(3):
        one = surrogate.fit(W, F[:, k])
        alone = (*one.predict(W, return_std=True), one.interactions(0.5))
        alone += one.attribution("shapley", return_std=True)
        for i, (a, b) in enumerate(zip(found, alone)):
            a = a[:, k] if i < 2 else a[k]
            np.testing.assert_allclose(a, b, atol=1e-8)
        assert one.attribution().shape == (5,)
        assert one.interactions().shape == (5, 5)
    assert isinstance(one.ridge_, float)


def test_kernel_deviations_are_those_of_a_gaussian_process():
    rng = np.random.RandomState(0)
    W, F = (rng.rand(30, 5) < 0.6) * 1.0, rng.randn(30)
    surrogate = KernelSurrogate(0.2, 1.5).fit(W, F)
    centred = F - F.mean()
    amplitude = centred @ surrogate.dual_coef_[:, 0] / 30
    process = GaussianProcessRegressor(
        ConstantKernel(amplitude) * RBF(1.5), alpha=0.2 * amplitude, optimizer=None
    ).fit(W, centred)
    queries = cube(5)
    mean, std = surrogate.predict(queries, return_std=True)
    expected, covariance = process.predict(queries, return_cov=True)
    np.testing.assert_allclose(mean - F.mean(), expected, atol=1e-8)
    np.testing.assert_allclose(std, np.sqrt(np.diag(covariance)), atol=1e-8)
    for at, p in (("loo", 1.0), (0.3, 0.3)):
        _, found = surrogate.attribution(at, return_std=True)
        for i in range(5):
            size = np.delete(queries, i, axis=1).sum(axis=1)
            weight = p**size * (1 - p) ** (4 - size) * np.where(queries[:, i], 1, -1)
            expected = np.sqrt(weight @ covariance @ weight)
            assert found[i] == pytest.approx(expected, abs=1e-8)


def test_shapley_deviations_are_those_of_a_gaussian_process():
    rng = np.random.RandomState(0)
    W, F = (rng.rand(12, 4) < 0.6) * 1.0, rng.randn(12)
    surrogate = KernelSurrogate(0.2, 1.5).fit(W, F)
    amplitude = (F - F.mean()) @ surrogate.dual_coef_[:, 0] / 12
    process = GaussianProcessRegressor(
        ConstantKernel(amplitude) * RBF(1.5), alpha=0.2 * amplitude, optimizer=None
    ).fit(W, F - F.mean())
    queries = cube(4)
    _, covariance = process.predict(queries, return_cov=True)
    _, found = surrogate.attribution("shapley", return_std=True)
    for i in range(4):
        size = np.delete(queries, i, axis=1).sum(axis=1).astype(int)
        weight = np.array([1 / (4 * math.comb(3, s)) for s in size])
        weight *= np.where(queries[:, i], 1, -1)
        assert found[i] == pytest.approx(
            np.sqrt(weight @ covariance @ weight), abs=1e-8
        )


def test_linear_deviations_are_those_of_bayesian_ridge():
    rng = np.random.RandomState(0)
    W = (rng.rand(80, 5) < 0.6) * 1.0
    F = W @ rng.randn(5) + 0.3 * rng.randn(80)
    reference = BayesianRidge().fit(W, F)
    ridge = reference.lambda_ / reference.alpha_
    surrogate = LinearSurrogate(ridge).fit(W, F)
    np.testing.assert_allclose(surrogate.attribution(), reference.coef_, rtol=1e-6)
    _, std = surrogate.attribution(return_std=True)
    noise = surrogate._noise[0] * reference.alpha_
    expected = np.sqrt(np.diag(reference.sigma_) * noise)
    np.testing.assert_allclose(std, expected, rtol=1e-6)


def test_linear_surrogate_is_ridge_with_a_free_intercept():
    rng = np.random.RandomState(0)
    W, F = (rng.rand(40, 6) < 0.5) * 1.0, 100 + rng.randn(40)
    ours, theirs = LinearSurrogate(3.0).fit(W, F), Ridge(3.0).fit(W, F)
    np.testing.assert_allclose(ours.predict(W), theirs.predict(W), rtol=1e-10)
    errors = {
        ridge: np.square(leave_one_out_errors(LinearSurrogate(ridge), W, F)).mean()
        for ridge in np.logspace(-3, 4, 15)
    }
    chosen = LinearSurrogate().fit(W, F).ridge_
    assert errors[chosen] == pytest.approx(min(errors.values()), rel=1e-6)


@pytest.mark.parametrize("surrogate", [KernelSurrogate(), LinearSurrogate()], ids=repr)
def test_constant_outcomes_warn_and_attribute_nothing(surrogate):
    W = cube(4)
    F = np.c_[W[:, 0], np.full(16, 3.0)]
    with pytest.warns(ConstantOutcomeWarning, match=r"1 of 2 queries .*columns \[1\]"):
        surrogate.fit(W, F)
    found, std = surrogate.attribution(return_std=True)
    np.testing.assert_allclose(found[1], 0, atol=1e-12)
    assert np.isfinite(std).all()
    np.testing.assert_allclose(surrogate.predict(W)[:, 1], 3.0)


@pytest.mark.parametrize("surrogate", [KernelSurrogate(), LinearSurrogate()], ids=repr)
def test_repeated_subsets_mislead_the_choice_of_ridge(surrogate, recwarn):
    W = cube(3)
    twice = np.vstack([W, W[:2]])
    with pytest.warns(UserWarning, match="2 of 10 subsets are duplicates of others"):
        surrogate.fit(twice, np.arange(10))
    recwarn.clear()
    surrogate.set_params(ridge=1.0).fit(twice, np.arange(10))
    assert not recwarn.list


@pytest.mark.parametrize("surrogate", [KernelSurrogate(), LinearSurrogate()], ids=repr)
def test_lists_of_units_are_not_weightings(surrogate, recwarn):
    with pytest.warns(UserWarning, match=r"0 to 5.*MultiLabelBinarizer"):
        surrogate.fit([[0, 3], [1, 2], [2, 5]], [1, 2, 3])
    recwarn.clear()
    surrogate.fit([[0, 1], [0.5, 1], [1, 0]], [1, 2, 3])
    assert not recwarn.list


@pytest.mark.slow
@pytest.mark.parametrize("gamma", [1 / 200, 0.1])
def test_few_quadrature_points_serve_many_units(gamma, monkeypatch):
    rng = np.random.RandomState(0)
    W, coef = (rng.rand(20, 200) < 0.6) * 1.0, rng.randn(20, 1)
    assert len(quadrature("shapley", 198)[0]) == 64
    few = kernel_interactions(coef, W, gamma, "shapley")
    monkeypatch.setattr(skattrib.surrogate._closed_forms, "_MOST_POINTS", 1000)
    assert len(quadrature("shapley", 198)[0]) == 100
    full = kernel_interactions(coef, W, gamma, "shapley")
    np.testing.assert_allclose(few, full, rtol=0, atol=1e-10 * np.abs(full).max())


@pytest.mark.parametrize("at", ["nearly all", -0.1, 1.5, None, True, np.nan])
@pytest.mark.parametrize("surrogate", [KernelSurrogate(), LinearSurrogate()], ids=repr)
def test_unknown_read_outs_are_refused(surrogate, at):
    surrogate.fit(cube(3), np.arange(8))
    for read_out in (surrogate.attribution, surrogate.interactions):
        with pytest.raises(ValueError, match="at must be 'loo', 'shapley'"):
            read_out(at)


@pytest.mark.parametrize(
    ("surrogate", "message"),
    [
        (KernelSurrogate(ridge=0), "'ridge'"),
        (KernelSurrogate(ridge="auto"), "'ridge'"),
        (KernelSurrogate(bandwidth=-1), "'bandwidth'"),
        (LinearSurrogate(ridge=-1), "'ridge'"),
    ],
    ids=repr,
)
def test_bad_parameters(surrogate, message):
    with pytest.raises(ValueError, match=message):
        surrogate.fit(cube(3), np.arange(8))


@pytest.mark.parametrize("surrogate", [KernelSurrogate(), LinearSurrogate()], ids=repr)
def test_bad_input(surrogate):
    with pytest.raises(ValueError, match="minimum of 2"):
        surrogate.fit([[1, 0]], [1.0])
    with pytest.raises(ValueError, match="NaN"):
        surrogate.fit(cube(2), [1, 2, 3, np.nan])
    with pytest.raises(NotFittedError):
        KernelSurrogate().attribution()
    with pytest.raises(ValueError, match="features"):
        surrogate.fit(cube(3), np.arange(8)).predict(cube(2))


def test_what_is_returned_is_no_window_into_the_surrogate():
    surrogate = LinearSurrogate().fit(cube(3), np.arange(8))
    surrogate.attribution()[:] = 0
    assert surrogate.attribution().any()
