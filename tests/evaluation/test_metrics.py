"""Scores: closed forms, invariances, agreement with SciPy and scikit-learn, errors."""

import time
import warnings
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.utils import Bunch

from skattrib.evaluation import (
    lds_score,
    loo_score,
    mislabel_score,
    retrieval_score,
)
from skattrib.exceptions import ConstantOutcomeWarning


def simulate(rng, n_weightings=60, n_queries=20):
    """Outcomes and predictions with noise shared by queries and uneven queries."""
    skill = 1 + 0.5 * rng.standard_normal(n_queries)
    outcomes = rng.standard_normal((n_weightings, n_queries))
    outcomes += rng.standard_normal((n_weightings, 1))
    predicted = skill * outcomes + rng.standard_normal((n_weightings, n_queries))
    return outcomes, predicted + rng.standard_normal((n_weightings, 1))


# lds_score ---------------------------------------------------------------------------


def test_lds_is_the_mean_of_scipys_spearman():
    outcomes, predicted = simulate(np.random.default_rng(0))
    predicted = np.round(predicted)  # ties
    expected = np.mean(
        [spearmanr(*pair).statistic for pair in zip(outcomes.T, predicted.T)]
    )
    assert lds_score(outcomes, predicted) == pytest.approx(expected, rel=1e-12)
    assert isinstance(lds_score(outcomes, predicted), float)


@given(st.integers(0, 10**6))
def test_lds_sees_only_order(seed):
    outcomes, predicted = simulate(np.random.default_rng(seed), 10, 3)
    score = lds_score(outcomes, predicted)
    assert lds_score(np.exp(outcomes), predicted) == score
    assert lds_score(outcomes, 3 * predicted + 7) == score
    assert lds_score(predicted, outcomes) == pytest.approx(score, abs=1e-14)
    assert lds_score(outcomes, -predicted) == pytest.approx(-score, abs=1e-14)
    assert lds_score(outcomes, outcomes) == 1
    assert lds_score(outcomes, -outcomes) == -1


def test_lds_constant_predictions_score_zero():
    outcomes = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    predicted = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    assert lds_score(outcomes, predicted) == 0.5


def test_lds_leaves_out_constant_outcomes():
    outcomes, predicted = simulate(np.random.default_rng(0), 20, 4)
    expected = lds_score(outcomes[:, [0, 2]], predicted[:, [0, 2]])
    outcomes[:, [1, 3]] = 2.0
    with pytest.warns(ConstantOutcomeWarning, match="2 of 4 queries") as caught:
        assert lds_score(outcomes, predicted) == expected
    assert caught[0].filename == __file__


def test_lds_interval():
    outcomes, predicted = simulate(np.random.default_rng(0))
    interval = lds_score(outcomes, predicted, confidence=0.9, random_state=0)
    assert isinstance(interval, Bunch)
    assert interval.score == lds_score(outcomes, predicted)
    assert interval.low < interval.score < interval.high
    wider = lds_score(outcomes, predicted, confidence=0.99, random_state=0)
    assert wider.low < interval.low
    assert wider.high > interval.high
    assert wider.standard_error == interval.standard_error


def test_lds_interval_of_many_queries_and_few_weightings_is_around_the_score():
    """Ranks of the fewer different weightings of a resample agree less."""
    rng = np.random.default_rng(0)
    outcomes = rng.normal(size=(50, 400))
    predicted = outcomes + 0.25 * rng.normal(size=outcomes.shape)
    interval = lds_score(outcomes, predicted, confidence=0.9, random_state=0)
    below, above = interval.score - interval.low, interval.high - interval.score
    assert 0.5 < below / above < 2
    narrow = lds_score(outcomes, predicted, confidence=0.02, random_state=0)
    assert narrow.low <= narrow.score <= narrow.high


def test_lds_interval_is_reproducible():
    outcomes, predicted = simulate(np.random.default_rng(0))
    first, again, other = (
        lds_score(
            outcomes, predicted, confidence=0.9, n_resamples=50, random_state=seed
        )
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_lds_interval_of_a_perfect_prediction_is_a_point():
    outcomes, _ = simulate(np.random.default_rng(0), 20, 3)
    interval = lds_score(outcomes, outcomes, confidence=0.9, random_state=0)
    assert interval == Bunch(score=1.0, low=1.0, high=1.0, standard_error=0.0)


def test_lds_interval_ignores_constant_outcomes():
    outcomes, predicted = simulate(np.random.default_rng(0), 20, 4)
    kwargs = {"confidence": 0.9, "n_resamples": 50, "random_state": 0}
    expected = lds_score(outcomes[:, 1:], predicted[:, 1:], **kwargs)
    outcomes[:, 0] = 0.0
    with pytest.warns(ConstantOutcomeWarning, match="1 of 4"):
        assert lds_score(outcomes, predicted, **kwargs) == expected


def test_lds_standard_error_matches_sampling():
    """Over many simulated experiments the bootstrap knows the spread and covers."""
    rng = np.random.default_rng(0)
    truth = np.mean([lds_score(*simulate(rng, 500, 40)) for _ in range(20)])
    intervals = [
        lds_score(*simulate(rng), confidence=0.9, n_resamples=100, random_state=seed)
        for seed in range(150)
    ]
    spread = np.std([interval.score for interval in intervals], ddof=1)
    errors = [interval.standard_error for interval in intervals]
    assert 0.7 < np.mean(errors) / spread < 1.3
    covered = np.mean([i.low <= truth <= i.high for i in intervals])
    # .9 less the few per cent that a percentile bootstrap of 20 queries lacks.
    assert 0.8 < covered < 0.98


def test_lds_interval_is_fast():
    outcomes, predicted = simulate(np.random.default_rng(0), 200, 50)
    start = time.process_time()
    lds_score(outcomes, predicted, confidence=0.95, n_resamples=1000, random_state=0)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("outcomes", "predicted", "kwargs", "message"),
    [
        (np.ones((3, 2)), np.ones((2, 3)), {}, r"\(3, 2\) and predicted \(2, 3\)"),
        (np.ones((3, 2)), np.eye(3, 2), {}, "outcomes are equal.*frozen"),
        (np.ones((1, 2)), np.ones((1, 2)), {}, "minimum of 2"),
        (np.ones(3), np.ones(3), {}, "Expected 2D"),
        ([[1.0], [np.nan]], [[1.0], [2.0]], {}, "outcomes contains NaN"),
        ([[1.0], [2.0]], [[1.0], [np.inf]], {}, "predicted contains infinity"),
        (np.eye(3), np.eye(3), {"confidence": 1.0}, "'confidence' parameter"),
        (np.eye(3), np.eye(3), {"n_resamples": 1}, "'n_resamples' parameter"),
        (
            [[1.0], [2.0]],
            [[1.0], [2.0]],
            {"confidence": 0.9, "n_resamples": 2, "random_state": 5},
            "n_resamples=2 gave 0 resample.*pass more",
        ),
    ],
)
def test_lds_errors(outcomes, predicted, kwargs, message):
    with pytest.raises(ValueError, match=message):
        lds_score(outcomes, predicted, **kwargs)


# loo_score ---------------------------------------------------------------------------


def test_loo_of_an_additive_outcome_is_one():
    effects = np.random.default_rng(0).standard_normal((3, 8))
    full = effects.sum(axis=1)
    outcomes = full - effects.T
    assert loo_score(outcomes, effects) == 1
    assert loo_score(outcomes, -effects) == -1
    with pytest.warns(FutureWarning, match="full_outcomes is deprecated") as caught:
        assert loo_score(outcomes, effects, full_outcomes=full) == 1
    assert caught[0].filename == __file__


def test_loo_is_the_mean_of_scipys_spearman():
    rng = np.random.default_rng(0)
    outcomes, full = rng.standard_normal((9, 3)), rng.standard_normal(3)
    attributions = rng.standard_normal((3, 9))
    expected = np.mean(
        [
            spearmanr(full[q] - outcomes[:, q], attributions[q]).statistic
            for q in range(3)
        ]
    )
    assert loo_score(outcomes, attributions) == pytest.approx(expected, rel=1e-12)


def test_loo_interval():
    effects = np.random.default_rng(0).standard_normal((3, 8))
    noisy = effects + np.random.default_rng(1).standard_normal((3, 8))
    interval = loo_score(-noisy.T, effects, confidence=0.9, random_state=0)
    assert interval.score == loo_score(-noisy.T, effects)
    assert interval.low < interval.score < interval.high


def test_loo_leaves_out_constant_outcomes():
    outcomes = np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    attributions = [[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]
    with pytest.warns(ConstantOutcomeWarning, match="1 of 2") as caught:
        assert loo_score(outcomes, attributions) == 1
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("outcomes", "attributions", "kwargs", "message"),
    [
        (np.eye(3, 2), np.eye(3, 2), {}, r"outcomes has shape \(3, 2\) and attrib"),
        (np.ones((3, 2)), np.eye(2, 3), {}, "outcomes are equal over all 3"),
        (np.eye(3, 2), np.eye(2, 3), {"confidence": 2}, "'confidence' parameter"),
    ],
)
def test_loo_errors(outcomes, attributions, kwargs, message):
    with pytest.raises(ValueError, match=message):
        loo_score(outcomes, attributions, **kwargs)


# retrieval_score ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "reference"),
    [("roc_auc", roc_auc_score), ("average_precision", average_precision_score)],
)
def test_retrieval_is_the_mean_over_queries(metric, reference):
    rng = np.random.default_rng(0)
    scores, relevance = rng.standard_normal((5, 30)), rng.random((5, 30)) < 0.3
    expected = np.mean([reference(*pair) for pair in zip(relevance, scores)])
    assert retrieval_score(scores, relevance, metric=metric) == expected


@pytest.mark.parametrize("metric", ["roc_auc", "average_precision", "recall@4"])
def test_retrieval_shared_relevance(metric):
    rng = np.random.default_rng(0)
    scores, relevance = rng.standard_normal((5, 12)), rng.random(12) < 0.5
    expected = retrieval_score(scores, np.tile(relevance, (5, 1)), metric=metric)
    assert retrieval_score(scores, relevance, metric=metric) == expected


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("recall@1", 1 / 2),
        ("recall@3", 1 / 2),
        ("recall@5", 1.0),
        ("precision@1", 1.0),
        ("precision@3", 1 / 3),
        ("precision@5", 2 / 5),
    ],
)
def test_retrieval_at_k(metric, expected):
    scores, relevance = [[5.0, 4.0, 3.0, 2.0, 1.0]], [1, 0, 0, 0, 1]
    assert retrieval_score(scores, relevance, metric=metric) == expected


@given(st.lists(st.integers(0, 2), min_size=4, max_size=5), st.integers(1, 4))
def test_retrieval_at_k_averages_over_the_order_of_ties(scores, k):
    relevance = np.arange(len(scores)) % 3 == 0
    tie_breaks = 0.1 * np.array(list(permutations(range(len(scores)))))
    broken = retrieval_score(scores + tie_breaks, relevance, metric=f"recall@{k}")
    tied = retrieval_score([scores], relevance, metric=f"recall@{k}")
    assert tied == pytest.approx(broken, rel=1e-12)


def test_retrieval_leaves_out_queries_of_one_kind():
    scores = np.array([[1.0, 2.0, 3.0]] * 3)
    relevance = np.array([[1, 1, 1], [0, 0, 1], [0, 0, 0]])
    with pytest.warns(UndefinedMetricWarning, match="2 of 3 queries") as caught:
        assert retrieval_score(scores, relevance) == 1
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("relevance", "metric", "message"),
    [
        ([1, 0, 1], "ndcg", "metric='ndcg' is unknown.*recall@10"),
        ([1, 0, 1], "recall@", "metric='recall@' is unknown"),
        ([1, 0, 1], "recall@-1", "metric='recall@-1' is unknown"),
        ([1, 0, 1], "f1@2", "metric='f1@2' is unknown"),
        ([1, 0, 1], "recall@0", "from 1 to 3"),
        ([1, 0, 1], "precision@4", "looks at 4 of 3 rows.*from 1 to 3"),
        ([1, 0, 1], 3, "'metric' parameter"),
        ([1, 0, 2], "roc_auc", "relevance holds values other than 0 and 1"),
        ([1, 0], "roc_auc", r"relevance has shape \(2,\)"),
        ([[1, 0, 1]], "roc_auc", r"relevance has shape \(1, 3\)"),
        ([1, 1, 1], "roc_auc", "relevance marks all rows or none"),
    ],
)
def test_retrieval_errors(relevance, metric, message):
    with pytest.raises(ValueError, match=message):
        retrieval_score(np.eye(2, 3), relevance, metric=metric)


# mislabel_score ----------------------------------------------------------------------


def test_mislabel_is_the_share_of_ordered_pairs():
    scores = [0.9, 0.8, 0.5, 0.5, 0.1]
    # Of 6 pairs (wrong, right) 4 are in order and 1 is tied.
    assert mislabel_score(scores, [1, 0, 1, 0, 0]) == pytest.approx(
        (3 + 1 + 0.5) / 6, rel=1e-15
    )


def test_mislabel_sign():
    suspicion = np.array([3.0, 2.0, 1.0])
    assert mislabel_score(suspicion, [True, False, False]) == 1
    assert mislabel_score(-suspicion, [True, False, False]) == 0


@pytest.mark.parametrize(
    ("scores", "flags", "message"),
    [
        ([1.0, 2.0], [0, 0], "is_mislabeled marks all rows or none"),
        ([1.0, 2.0], [1, 1], "is_mislabeled marks all rows or none"),
        ([1.0, 2.0], [1, 0, 1], r"is_mislabeled has shape \(3,\)"),
        ([[1.0, 2.0]], [[1, 0]], r"is_mislabeled has shape \(1, 2\)"),
        ([1.0, 2.0], [3, 0], "is_mislabeled holds values"),
        ([1.0, np.nan], [1, 0], "scores contains NaN"),
    ],
)
def test_mislabel_errors(scores, flags, message):
    with pytest.raises(ValueError, match=message):
        mislabel_score(scores, flags)


def test_nothing_warns_without_cause():
    outcomes, predicted = simulate(np.random.default_rng(0), 10, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lds_score(outcomes, predicted, confidence=0.9, random_state=0)
        lds_score(outcomes, np.zeros_like(outcomes))
        loo_score(outcomes, predicted.T)
        retrieval_score(outcomes, [1, 0, 1])
