"""Derivatives of damped and averaged runs: how they are chosen, and mixed."""

import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import softmax
from sklearn.datasets import load_digits, load_iris
from sklearn.preprocessing import scale
from sklearn.utils import Bunch

from skattrib import (
    AdamWInfluence,
    LinearSurrogateAttributor,
    TorchClassifier,
    TorchRegressor,
)
from skattrib._posterior._gaussian import posterior
from skattrib._posterior._means import PriorMeans, QueryMeans
from skattrib.engine._losses import MeanOutcome
from skattrib.engine._training import train
from skattrib.engine._trajectory import exponential_average
from skattrib.evaluation import (
    SetOutcome,
    lds_score,
    make_weightings,
    retrain_outcomes,
)
from skattrib.exceptions import FaithfulnessWarning
from skattrib.influence._aggregation import aggregate, exploding
from skattrib.influence._prior_means import (
    AVERAGED,
    DAMPED,
    EXACT,
    Averages,
    Derivative,
    Weighed,
    agreement_of,
    averaged,
    chosen,
    halves_of_runs,
    row_agreement,
)
from skattrib.influence._run_derivatives import RunDerivatives
from skattrib.influence._run_diagnosis import run_verdict
from skattrib.models._answers import LastAnswer

ALL = EXACT, DAMPED, AVERAGED


def data(n=60, n_queries=6):
    X, y = load_iris(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(y))
    X, y = scale(X)[order], y[order]
    return X[:n], y[:n], X[-n_queries:], y[-n_queries:]


def rough(**options):
    """A network whose steps are far too long."""
    options = {"learning_rate": 0.04, "max_epochs": 15, "batch_size": 20, **options}
    options |= {"hidden_layer_sizes": (16, 16), "activation": "relu"}
    return TorchClassifier(random_state=0, **options)


def calm(**options):
    options = {"max_epochs": 6, "batch_size": 20, **options}
    return TorchClassifier(hidden_layer_sizes=(5,), random_state=0, **options)


def uneven():
    """Neither calm nor rough."""
    return calm(learning_rate=0.04, max_epochs=15, batch_size=10)


def fitted(model, X, y, **options):
    options = {"n_trajectories": 8, "n_halves": 0, "random_state": 0, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FaithfulnessWarning)
        return AdamWInfluence(model, **options).fit(X, y)


def forced(influence, by, agreements):
    """Let it begin with some derivatives, whatever its runs say."""
    influence._weighed, influence._last_sweep = Weighed(by, agreements), LastAnswer()
    for decay in {one.decay for one in by} - {None}:
        for runs in influence._runs:
            runs.averages[decay] = influence._derivatives.averages(runs, decay)
    return influence


# ------------------------------------------------------------------ by the runs
@pytest.mark.parametrize(
    ("agreement", "n_runs", "expected"),
    [
        (0.75, 16, (EXACT,)),
        (0.75, 64, (EXACT,)),
        (0.74, 16, ALL),
        (-0.1, 16, ALL),
        # of fewer, halves of what there are agree to 0.75 where eight do to more
        (0.86, 8, (EXACT,)),
        (0.85, 8, ALL),
        (0.99, 6, ALL),
        (None, 1, (EXACT,)),
    ],
)
def test_agreement_chooses(agreement, n_runs, expected):
    assert chosen(agreement, n_runs) == expected
    # averaged anyway
    assert chosen(agreement, n_runs, averages=True) == expected[:2]
    # with two seeds, each half has runs of both
    assert chosen(agreement, 2 * n_runs, 2) == chosen(agreement, 2 * n_runs)


def test_halves_of_runs_keep_complements_together():
    assert_array_equal(halves_of_runs(8), [range(4), range(4, 8)])
    first, second = halves_of_runs(6)
    assert_array_equal(first, [0, 1])
    assert_array_equal(second, [2, 3, 4, 5])
    # of two seeds, each half has runs of both
    assert_array_equal(halves_of_runs(8, 2)[0], [0, 1, 4, 5])
    assert_array_equal(halves_of_runs(2), [[0], [1]])


def test_agreement_is_the_correlation_without_own_entries():
    each_run = np.random.RandomState(0).randn(8, 3, 20) + np.arange(20)
    own = np.array([4, 0, 7])
    found = row_agreement(each_run, own)
    for i in range(3):
        first, second = (
            np.delete(half[:, i].mean(axis=0), own[i])
            for half in (each_run[:4], each_run[4:])
        )
        assert found[i] == pytest.approx(np.corrcoef(first, second)[0, 1])
    each_run[1, 0, own[0]] = 1e3  # it is left out
    assert_allclose(row_agreement(each_run, own)[0], found[0])
    each_run[:4, 1] = 0  # says nothing
    assert np.isnan(row_agreement(each_run, own)[1])
    # halves of eight are averaged as all runs are, without those that explode
    many = np.random.RandomState(0).randn(16, 3, 20) + np.arange(20)
    expected = row_agreement(many, own)
    many[3] *= 1e4
    assert_allclose(row_agreement(many, own), expected, atol=0.1)


def test_fewer_runs_are_brought_to_eight_in_each_half():
    correlations = np.array([0.3, 0.5])
    assert agreement_of(correlations, 20, 16) == pytest.approx(0.4)
    assert agreement_of(correlations, 20, 64) == pytest.approx(0.4)
    assert agreement_of(correlations, 20, 8) == pytest.approx(2 * 0.4 / 1.4)
    assert agreement_of(-correlations, 20, 8) == 0
    assert agreement_of(-correlations, 20, 16) == pytest.approx(-0.4)
    assert agreement_of(correlations, 20, 1) is None
    assert agreement_of(correlations, 5, 16) is None
    assert agreement_of(np.array([0.4, np.nan]), 20, 16) == pytest.approx(0.4)
    assert agreement_of(np.full(2, np.nan), 20, 16) is None
    # Spearman and Brown are right for runs with noise of their own
    rng = np.random.RandomState(0)
    runs = rng.randn(400) + 3 * rng.randn(16, 40, 400)
    own = np.zeros(40, dtype=int)
    found = [agreement_of(row_agreement(runs[:n], own), 400, n) for n in (4, 8, 16)]
    assert_allclose(found, 8 / 17, atol=0.06)


# --------------------------------------------------------------------- mixtures
def means(n=30, n_queries=4, seed=0):
    rng = np.random.RandomState(seed)
    each_run = rng.randn(n_queries, n) + rng.randn(3, 8, n_queries, n)
    each_run *= np.array([50, 1, 0.2])[:, None, None, None]
    return each_run, averaged(each_run, "mean")


def test_one_derivative_is_averaged_as_it_was():
    each_run, _ = means()
    for how in ("mean", "trimmed_mean", "median"):
        found = averaged(each_run[:1], how)
        expected = aggregate(each_run[0], how, exploding(each_run[0]))
        assert found.single
        for one, other in zip(found.only(), expected, strict=True):
            assert_array_equal(one, other)


def test_mixtures_are_weighed_and_of_one_size():
    each_run, found = means()
    weighed = Weighed(ALL, (0.3, 0.8, -0.2))
    prior = weighed.means(found)
    expected = np.array([0.3, 0.8, 0.02]) / 1.12
    assert_allclose(prior.weights, np.tile(expected, (4, 1)))
    centred = found.means - found.means.mean(axis=2, keepdims=True)
    sizes = np.linalg.norm(centred, axis=2)
    # of the second, which is the first whose halves agree
    assert_allclose(np.linalg.norm(prior.means, axis=2), np.tile(sizes[:, 1:2], 3))
    mean, error = prior.mixture()
    scaled = centred * (sizes[:, 1:2] / sizes)[..., None]
    assert_allclose(mean, np.einsum("k,qkn->qn", expected, scaled), rtol=1e-12)
    # and errors are those of the mixture of runs
    factors = expected * sizes[:, 1:2] / sizes
    runs = np.einsum("qk,kmqn->mqn", factors, each_run)
    _, direct = aggregate(runs, "mean", exploding(runs))
    assert np.median(error / direct) == pytest.approx(1, abs=0.05)
    # the last has the size where none agrees
    low = Weighed(ALL, (0.3, 0.6, 0.5)).means(found)
    assert_allclose(np.linalg.norm(low.means, axis=2), np.tile(sizes[:, 2:], 3))


def test_what_is_not_finite_is_left_out():
    each_run, _ = means()
    each_run[0, :, 1] = np.nan  # one derivative of one query, in all runs
    each_run[:, :, 2] = np.inf
    each_run[:, :, 3] = 0
    with np.errstate(all="ignore"):
        found = averaged(each_run, "trimmed_mean")
    assert_array_equal(found.state.max(axis=0) == 2, [False, False, True, False])
    prior = Weighed(ALL, (0.4, 0.2, 0.2)).means(found)
    assert_allclose(prior.weights[1], [0, 0.5, 0.5])
    with np.errstate(all="ignore"):
        mean, error = prior.mixture()
    assert np.isfinite(mean[[0, 1]]).all()
    assert np.isfinite(error[[0, 1]]).all()
    assert not np.isfinite(mean[2]).any()
    assert not mean[3].any()
    again = Averages.unpacked(found.packed(), 3, 8)
    for one, other in zip(again, found, strict=True):
        assert_array_equal(one, other)


def test_halves_tell_how_much_of_each_is_right():
    """By the regression, with matrices, fitted to its own noise."""
    rng = np.random.RandomState(0)
    truth, noise = rng.randn(40), rng.randn(3, 40)
    A = truth + np.array([[0.5], [1], [2]]) * noise
    A -= A.mean(axis=1, keepdims=True)
    weights, errors = np.array([0.5, 0.3, 0.2]), 1 + rng.rand(3, 40)
    together = np.full((3, 3), 0.5) + 0.5 * np.eye(3)
    Z = rng.choice([-0.5, 0.5], (30, 40))
    d = Z @ truth + rng.randn(30)
    found, spread, total = QueryMeans(A, errors, together, weights).told(Z, d)
    X, before = Z @ A.T, 0.9 * weights
    variance = np.mean((d - X @ before) ** 2)
    for _ in range(8):
        H = X.T @ X / variance
        P = H + np.eye(3) / 0.2**2
        b = np.linalg.inv(P) @ (X.T @ d / variance + before / 0.2**2)
        left = 30 - np.trace(np.linalg.inv(P) @ H)
        variance = ((d - X @ b) ** 2).sum() / left
    assert_allclose(found, b @ A, rtol=1e-9)
    assert total == pytest.approx(b.sum())
    covariance = together[..., None] * errors[:, None] * errors
    assert_allclose(spread**2, np.einsum("k,l,kln->n", b, b, covariance))
    # means that are all the same have one slope, and nothing is divided by 0
    same = QueryMeans(np.tile(A[:1], (3, 1)), errors, together, weights)
    assert np.isfinite(same.told(Z, d)[0]).all()
    for exactly in (Z @ A[0], np.zeros(30)):
        assert np.isfinite(same.told(Z, exactly)[0]).all()
    several = PriorMeans(A[None], errors[None], together[None], weights[None])
    assert len(several) == 1
    assert several.shape == (1, 40)


# ----------------------------------------------------------------- real networks
@pytest.mark.parametrize("of_set", [False, True], ids=["rows", "set"])
def test_averaged_outputs_are_differentiated(of_set):
    """By differences of training, along the outcome's slope at the end of the run."""
    X, y, Xq, yq = data(30)
    influence = fitted(calm(), X, y, n_trajectories=2)
    undamped = Derivative(decay=0.9)
    forced(influence, (undamped,), (1.0,))
    kind = "log_likelihood"
    queries = influence._derivatives.queries(
        Xq, yq, MeanOutcome(kind) if of_set else kind
    )
    found = influence._each_run(queries, (undamped,))[0]
    problem, runs = influence._derivatives.problem, influence._runs[0]
    share = exponential_average(runs.recipe.n_steps, 0.9)

    def outputs(params):
        return problem.model.outputs(params, queries.X).numpy()

    def averaged_outputs(weights):
        rows = problem.X, problem.targets, problem.weighted(weights)
        mean = train(
            problem.model, problem.loss, runs.recipe, *rows, average=share
        ).averaged
        return outputs(mean[0])

    def slope(run):  # of log p, or its mean, in the outputs
        grad = -softmax(outputs(runs.params[run]), axis=1)
        grad[np.arange(6), yq] += 1
        return grad / 6 if of_set else grad

    h = 1e-5
    for run, row in ((0, 3), (1, 20)):
        sides = [runs.weights[run : run + 1].clone() for _ in range(2)]
        sides[0][0, row] += h
        sides[1][0, row] -= h
        moved = (averaged_outputs(sides[0]) - averaged_outputs(sides[1])) / (2 * h)
        expected = (moved * slope(run)).sum(axis=1)
        if of_set:
            expected = expected.sum()
        assert_allclose(found[run, :, row], expected, rtol=1e-4, atol=1e-8)


def test_residuals_are_those_of_the_end():
    """An average of weights may miss a number on the other side."""
    X, y, Xq, yq = data(30)
    net = TorchRegressor(max_epochs=6, batch_size=20, random_state=0)
    influence = fitted(net, X, y.astype(float), n_trajectories=2)
    forced(influence, (AVERAGED,), (1.0,))
    runs, problem = influence._runs[0], influence._derivatives.problem

    def found(outcome, targets):
        queries = influence._derivatives.queries(Xq, targets, outcome)
        return influence._each_run(queries, (AVERAGED,))[0]

    rows = influence._derivatives.queries(Xq, yq, "log_likelihood").X
    end, average = (
        problem.model.outputs(params[0], rows).numpy()[:, 0]
        for params in (runs.params, runs.averages[0.99])
    )
    between = (end + average) / 2
    residual = (between - end)[:, None]
    assert (np.sign(between - average) == -np.sign(between - end)).all()
    expected = residual * found("prediction", between)[0]
    assert np.abs(expected).max() > 1e-6
    assert_allclose(found("log_likelihood", between)[0], expected, rtol=1e-6)


def test_derivatives_are_swept_together():
    X, y, Xq, yq = data(30)
    influence = forced(fitted(calm(), X, y, n_trajectories=2), ALL, (0.5,) * 3)
    queries = influence._derivatives.queries(Xq, yq, "margin")
    together = influence._each_run(queries, ALL)
    alone = [influence._each_run(queries, (one,))[0] for one in ALL]
    assert_allclose(together, alone, atol=1e-10)
    sizes = [np.abs(one - alone[0]).max() for one in alone[1:]]
    assert min(sizes) > 1e-4
    assert np.abs(alone[1] - alone[2]).max() > 1e-4


def test_rough_networks_are_ranked_better_by_the_mixture():
    X, y, Xq, yq = data(n_queries=10)
    model = rough()
    influence = fitted(model, X, y, outcome="margin")
    assert influence._weighed.derivatives == ALL
    assert 0.3 <= influence.agreement_ < 0.75
    W = make_weightings(60, 100, random_state=3)
    truth = retrain_outcomes(model, X, y, W, Xq, yq, outcome="margin")
    mixed = lds_score(truth, influence.predict_outcomes(Xq, yq, W))
    exact = forced(influence, (EXACT,), (1.0,))
    assert mixed > lds_score(truth, exact.predict_outcomes(Xq, yq, W)) + 0.05


@pytest.fixture(scope="module")
def mixed():
    """An attributor of few runs with retrained halves, and queries."""
    X, y, Xq, yq = data(30)
    influence = fitted(uneven(), X, y, n_trajectories=4, n_halves=32)
    assert influence._weighed.derivatives == ALL
    return influence, Xq, yq


def test_answers_do_not_depend_on_other_queries(mixed):
    influence, Xq, yq = mixed
    mean, std = influence.attribute(Xq, yq, return_std=True)
    one, its_std = influence.attribute(Xq[3:4], yq[3:4], return_std=True)
    assert_allclose(one[0], mean[3], rtol=1e-6, atol=1e-9)
    assert_allclose(its_std[0], std[3], rtol=1e-6)
    of_mean = influence.attribute(Xq, yq, reduce="mean")
    assert np.corrcoef(of_mean, mean.mean(axis=0))[0, 1] > 0.9


def test_halves_tell_the_slopes_of_held_out_halves_too(mixed):
    influence, Xq, yq = mixed
    prior, none = influence._several_means(Xq, yq, "log_likelihood")
    assert none is None
    outcomes, _ = influence._half_outcomes(Xq, yq, "log_likelihood")
    D = (outcomes[::2] - outcomes[1::2]) / 2
    around = influence.halves_[::2] - 0.5
    slopes = [one.told(around, d)[2] for one, d in zip(prior, D.T, strict=True)]
    found = influence._held_out(Xq, yq, "log_likelihood")
    assert found.prior_slope == pytest.approx(np.median(slopes), rel=0.3)
    assert found.lds > 0.5
    mean, std = influence.attribute(Xq, yq, return_std=True)
    assert (std > 0).all()
    assert_allclose(mean.sum(axis=1), 0, atol=1e-9)


def test_a_surrogate_around_it_is_its_posterior(mixed):
    _, Xq, yq = mixed
    X, y, *_ = data(30)
    prior = AdamWInfluence(n_trajectories=4, n_halves=0, random_state=0)
    other = LinearSurrogateAttributor(
        uneven(), prior=prior, at="banzhaf", n_subsets=32, random_state=0
    ).fit(X, y)
    own, evidence = other.prior_, other._evidence()
    assert own._weighed.derivatives == ALL
    outcomes, _ = other._half_outcomes(Xq, yq, "log_likelihood")
    prior = own._several_means(Xq, yq, "log_likelihood")
    expected = posterior(*prior, evidence, outcomes, own._knowledge())
    mean, std = other.attribute(Xq, yq, return_std=True)
    assert_allclose(mean, expected.mean, rtol=1e-9)
    assert_allclose(std, expected.std, rtol=1e-9)


def test_new_rows_are_valued_by_the_same_mixture():
    """A copy of a row of weight 0, in a run of full batches."""
    X, y, Xq, yq = data(30)
    weights = np.ones(30)
    weights[4] = 0
    influence = AdamWInfluence(
        calm(batch_size=None), n_trajectories=4, n_halves=0, random_state=0
    ).fit(X, y, sample_weight=weights)
    forced(influence, ALL, (0.4, 0.6, 0.5))
    mean = influence._derivatives.queries(Xq, yq, MeanOutcome("log_likelihood"))
    by = {"by": ALL, **influence._sweep_options()}
    rows = influence._derivatives.derivatives(influence._runs[0], mean, **by)
    both = influence._derivatives.of_new_rows(
        influence._runs[0], mean, X[[4, 7]], y[[4, 7]], **by
    )
    assert_allclose(both[..., 30], rows[..., 0, 4], rtol=1e-9)
    assert_allclose(both[..., :30], rows[..., 0, :], rtol=1e-9)

    found = influence.value_new(X[[4, 7]], y[[4, 7]], Xq, yq)
    units = both[..., :30].numpy() * weights
    values = np.concatenate([units, both[..., 30:].numpy()], axis=2)
    values = averaged(values[:, :, None], "trimmed_mean").means[0]
    values -= values[:, :30].mean(axis=1, keepdims=True)
    sizes = np.linalg.norm(values[:, :30], axis=1)
    scaled = values[:, 30:] / sizes[:, None]
    known = influence.attribute(Xq, yq, reduce="mean")
    expected = influence._weighed.weights @ (values[:, :30] / sizes[:, None])
    expected[4] = 0  # it does not count
    times = np.linalg.norm(known) / np.linalg.norm(expected)
    assert_allclose(expected * times, known, rtol=1e-9, atol=1e-12)
    assert_allclose(found, times * influence._weighed.weights @ scaled, rtol=1e-9)


def test_calm_networks_are_as_they_were():
    X, y, Xq, yq = data()
    influence = fitted(calm(), X, y)
    assert influence.agreement_ > 0.9
    assert influence._weighed.derivatives == (EXACT,)
    assert not influence._runs[0].averages
    queries = influence._derivatives.queries(Xq, yq, "log_likelihood")
    each_run = influence._each_run(queries)[0]
    expected = aggregate(each_run, "trimmed_mean", exploding(each_run))[0]
    assert_array_equal(influence.attribute(Xq, yq), expected)


def test_other_dynamics_are_exact():
    X, y, Xq, yq = data(30)
    influence = forced(fitted(calm(), X, y, n_trajectories=2), ALL, (0.5,) * 3)
    mixed = influence.attribute(Xq, yq)
    influence.set_params(dynamics="sgd")
    assert influence._by() == (EXACT,)
    found = influence.attribute(Xq, yq)
    expected = fitted(calm(), X, y, n_trajectories=2, dynamics="sgd")
    assert expected._weighed.derivatives == (EXACT,)
    assert_allclose(found, expected.attribute(Xq, yq))
    assert np.abs(found - mixed).max() > 1e-6


def test_sets_are_compared_by_the_outcomes_of_rows():
    X, y, Xq, yq = data(30)

    def of_six(outputs, targets):
        assert outputs.shape[-2] == 6
        return outputs.mean((-2, -1))

    influence = fitted(calm(), X, y, n_trajectories=2, outcome=SetOutcome(of_six))
    assert influence.attribute(Xq, yq).shape == (1, 30)


def test_one_run_and_few_units_have_no_agreement():
    X, y, *_ = data(30)
    assert fitted(calm(), X, y, inclusion=1).agreement_ is None
    assert fitted(calm(), X, y, inclusion=0.7, n_trajectories=1).agreement_ is None
    tasks = np.arange(30) % 5
    options = {"n_trajectories": 4, "n_halves": 0, "random_state": 0}
    few = AdamWInfluence(calm(), **options).fit(X, y, tasks=tasks)
    assert few.agreement_ is None


def test_agreement_is_found_on_disk(tmp_path, monkeypatch):
    X, y, Xq, yq = data(30)
    options = {"n_trajectories": 4, "memory": tmp_path}
    first = fitted(calm(), X, y, **options)
    expected = first.attribute(Xq, yq)

    def refuse(*_, **__):
        raise AssertionError("swept again")

    monkeypatch.setattr(RunDerivatives, "derivatives", refuse)
    again = fitted(calm(), X, y, **options)
    assert again.agreement_ == first.agreement_
    assert again._weighed == first._weighed
    assert_allclose(again.attribute(Xq, yq), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("agreement", "said", "trusted"),
    [(0.1, "chaotic, and the kernel", False), (0.4, "is rough", True), (0.6, "", True)],
)
def test_runs_that_disagree_are_warned_of(agreement, said, trusted, monkeypatch):
    X, y, *_ = data(30)
    monkeypatch.setattr(AdamWInfluence, "_agreement", lambda *_: [agreement] * 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        options = {"n_trajectories": 2, "n_halves": 0, "random_state": 0}
        influence = AdamWInfluence(calm(), **options).fit(X, y)
    assert [w.filename for w in caught] == [__file__] * bool(said)
    assert all(said in str(w.message) for w in caught)
    assert influence.agreement_ == agreement
    figures = {"prior_slope": 1.0, "second_order_error": None, "error_split": None}
    for lds, expected in ((0.5, trusted), (None, agreement > 0.5)):
        known = None if lds is None else 1.0
        figures |= {"coverage": known, "calibration_slope": known}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FaithfulnessWarning)
            figures |= {"exploding_share": 0.0, "lds": lds, "agreement": agreement}
            found = run_verdict(Bunch(**figures), at_full_data=False)
        assert found.trustworthy == expected
        assert f"agree to {agreement:.2f}" in found.verdict


# ------------------------------------------------------------------------ inert
def test_inert_parameters_are_the_users_choice():
    X, y, Xq, yq = data(30)
    influence = fitted(calm(), X, y, inclusion=1)
    exact = influence.attribute(Xq, yq)
    found = influence.set_params(inert=0.5).attribute(Xq, yq)
    assert np.abs(found - exact).max() > 1e-6
    assert_allclose(
        found, fitted(calm(), X, y, inclusion=1, inert=0.5).attribute(Xq, yq)
    )
    steps = influence.step_attribution(Xq, yq)
    total = np.zeros((6, 30))
    np.add.at(total.T, steps.rows, steps.attributions.T)
    assert_allclose(total, found, atol=1e-10)
    runs = fitted(calm(), X, y, n_trajectories=2)
    auto = runs.attribute(Xq, yq)
    assert_array_equal(runs.set_params(inert=0.01).attribute(Xq, yq), auto)
    with pytest.raises(ValueError, match="inert"):
        fitted(calm(), X, y, inert=-1.0)


def test_inert_parameters_that_make_most_of_a_derivative_are_warned_of():
    X, y = load_digits(return_X_y=True)
    options = {"learning_rate": 0.03, "max_epochs": 15, "batch_size": 20}
    options |= {"hidden_layer_sizes": (16,), "activation": "relu"}
    fit = {"inclusion": 1, "random_state": 0}
    model = TorchClassifier(random_state=2, **options)
    with pytest.warns(
        FaithfulnessWarning, match=r"times as large.*inert=0\.01"
    ) as said:
        exact = AdamWInfluence(model, **fit).fit(X[:100], y[:100])
    assert [w.filename for w in said] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        held = AdamWInfluence(model, inert=0.01, **fit).fit(X[:100], y[:100])
    queries = X[100:105], y[100:105]
    sizes = [np.linalg.norm(one.attribute(*queries)) for one in (exact, held)]
    assert sizes[0] > 1.5 * sizes[1]
