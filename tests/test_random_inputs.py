"""Whatever it is given, an estimator answers with finite numbers or a clear refusal.

The data are those of `tests.peculiar`, drawn by hypothesis. An error must come from a
``raise`` of this package or of scikit-learn, never from inside NumPy, pandas or torch;
a refused call changes nothing; and what is not finite is named by a warning.
"""

import copy
import linecache
import re
import warnings
import zlib
from functools import cache

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, seed, settings
from scipy import sparse
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state

import skattrib.exceptions
from skattrib import (
    AdamWInfluence,
    CountSketchTransformer,
    DualInfluence,
    GradientTransformer,
    KernelSurrogate,
    KernelSurrogateAttributor,
    LinearSurrogate,
    LinearSurrogateAttributor,
    RISEValuator,
    TaskWeightSelector,
    TorchClassifier,
    TorchRegressor,
    lookahead_training,
)
from skattrib.evaluation import (
    lds_score,
    loo_score,
    make_weightings,
    mislabel_score,
    removal_curve,
    retrain_outcomes,
    retrieval_score,
)
from tests.peculiar import CASES, Case, build, unit_weights

TINY = {"hidden_layer_sizes": (3,), "max_epochs": 2, "random_state": 0}
CLASSIFIER, REGRESSOR = TorchClassifier(**TINY), TorchRegressor(**TINY)


# ------------------------------------------------------------------------ property
def check_refusal(error):
    """Fail unless the error was raised on purpose, and says something."""
    kinds = ValueError, TypeError
    module = type(error).__module__
    known = type(error) in kinds or module.startswith(("skattrib.", "sklearn."))
    frame = error.__traceback__
    while frame.tb_next is not None:
        frame = frame.tb_next
    path = frame.tb_frame.f_code.co_filename
    line = linecache.getline(path, frame.tb_lineno).strip()
    on_purpose = line.startswith("raise") and re.search("/(skattrib|sklearn)/", path)
    if not (known and isinstance(error, kinds) and on_purpose and " " in str(error)):
        raise error


def check_warnings(caught, strangers):
    """Fail on warnings from inside a computation, unless it is another package's."""
    for warning in caught:
        if strangers and "/skattrib/" not in warning.filename:
            continue
        inner = (RuntimeWarning, DeprecationWarning, FutureWarning)
        raw = issubclass(warning.category, inner) or "NumPy array" in str(
            warning.message
        )
        assert not raw, f"{warning.filename}:{warning.lineno}: {warning.message}"


def check_finite(result, caught):
    """Fail on rows of numbers that are not finite, and that no warning names."""
    named = set()
    for warning in caught:
        if issubclass(warning.category, skattrib.exceptions.FaithfulnessWarning):
            for rows in re.findall(r"\[([\d, ]+)\]", str(warning.message)):
                named |= set(map(int, rows.split(",")))
    array = np.asarray(result.toarray() if sparse.issparse(result) else result)
    if array.dtype.kind == "f" and array.size:
        finite = np.isfinite(array.reshape(len(array), -1) if array.ndim else array)
        bad = np.flatnonzero(~np.atleast_2d(finite).all(axis=-1))
        assert named.issuperset(bad.tolist()), f"rows {bad} of {array}"


def state_of(estimator):
    """What an estimator has learnt, so that a change shows."""
    return {
        name: (value, value.copy() if isinstance(value, np.ndarray) else None)
        for name, value in vars(estimator).items()
    }


def check_same(estimator, before):
    assert vars(estimator).keys() == before.keys()
    for name, (value, content) in before.items():
        assert vars(estimator)[name] is value, name
        if content is not None:
            np.testing.assert_array_equal(value, content)


def digest(inputs):
    """What inputs hold, but for generators, which cannot be read twice."""
    kept = []
    for value in inputs:
        if isinstance(value, torch.Tensor):
            value = value.detach()
        elif isinstance(value, np.ma.MaskedArray):
            value = value.data, value.mask
        elif isinstance(value, pd.DataFrame | pd.Series):  # a look fills their caches
            value = value.to_numpy(object, copy=True).tolist(), value.index.tolist()
        if not hasattr(value, "gi_frame"):
            kept.append(joblib.hash(value))
    return kept


def global_states():
    """What draws from nobody's generator would move; hypothesis puts it back."""
    numpy_state = check_random_state(None).get_state()[1:3]
    return joblib.hash((numpy_state, torch.random.get_rng_state().numpy()))


def answered(call, *inputs, estimator=None, strangers=False):
    """Call; return the answer, None for a refusal, after all checks of both."""
    before, drawn = digest(inputs), global_states()
    state = None if estimator is None else state_of(estimator)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = call(*inputs)
        except Exception as error:
            check_refusal(error)
            result = None
            if estimator is not None:
                check_same(estimator, state)
    check_warnings(caught, strangers)
    assert digest(inputs) == before
    assert global_states() == drawn
    if result is not None and result is not estimator:
        for part in result if isinstance(result, tuple) else (result,):
            check_finite(part, caught)
    return result


# ------------------------------------------------------------------------ families
@cache
def _fitted(name, which):
    """An estimator that was fitted to usual data before; copied by who changes it."""
    rng = np.random.RandomState(0)
    X, y = rng.standard_normal((12, 3)), np.arange(12) % 2
    estimator, number = ESTIMATORS[name][which]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return clone(estimator).fit(X, y.astype(float) if number else y)


def some(name, case):
    return copy.deepcopy(_fitted(name, case.option % len(ESTIMATORS[name])))


def networks(name, case):
    X, y, _, weights, X_query, _ = build(case)
    network = some(name, case)
    fit = lambda X, y, w: network.fit(X, y, sample_weight=w)
    answered(fit, X, y, weights, estimator=network)
    names = ["predict", "predict_proba", "predict_log_proba", "decision_function"]
    for method in names if name == "classifier" else names[:1]:
        answered(getattr(network, method), X_query, estimator=network)


def attributors(name, case):
    X, y, tasks, weights, X_query, y_query = build(case)
    attributor = some(name, case)

    def fit(X, y, tasks, weights):
        params = {} if weights is None else {"sample_weight": weights}
        return attributor.fit(X, y, tasks=tasks, **params)

    # those of scikit-learn warn as they like
    strangers = type(attributor.estimator).__module__.startswith("sklearn.")
    options = {"estimator": attributor, "strangers": strangers}
    answered(fit, X, y, tasks, weights, **options)
    answered(attributor.attribute, X_query, y_query, **options)
    answered(attributor.transform, X_query, **options)
    if name in ("rise", "faiss"):
        best = lambda X, y: attributor.retrieve(X, y, n=2)[0]
        answered(best, X_query, y_query, **options)
        answered(attributor.score_samples, X_query, y_query, **options)
        answered(attributor.partial_fit, X_query, y_query, **options)
        answered(attributor.attribute, X_query, y_query, **options)
        return
    W = unit_weights(case, attributor.n_units_)
    # outcomes are (n_weightings, n_queries): rows are queries here
    predict = lambda X, y, W: attributor.predict_outcomes(X, y, W).T
    answered(predict, X_query, y_query, W, **options)
    if name == "dual":
        change = lambda X, W: attributor.output_change(X, W).swapaxes(0, 1)
        answered(change, X_query, W, **options)
    if case.seed % 5 == 0:
        answered(attributor.score, X_query, y_query, **options)
    if case.seed % 5 == 0 and hasattr(attributor, "diagnose"):
        diagnosed = lambda X, y: bool(attributor.diagnose(X, y))
        answered(diagnosed, X_query, y_query, **options)


def gradients(name, case):
    X, y, _, weights, X_query, _ = build(case)
    transformer = some(name, case)
    fit = lambda X, y, w: transformer.fit(X, y, sample_weight=w)
    answered(fit, X, y, weights, estimator=transformer)
    answered(transformer.transform, X_query, estimator=transformer)


def sketches(name, case):
    X, *_, X_query, _ = build(case)
    transformer = some(name, case)
    answered(transformer.fit, X, estimator=transformer)
    answered(transformer.transform, X_query, estimator=transformer)


def selectors(name, case):
    X, y, tasks, weights, X_query, y_query = build(case)
    selector = some(name, case)

    def fit(X, y, tasks, X_val, y_val, weights):
        if selector.attributor is None:
            return selector.fit(X)
        params = {} if weights is None else {"sample_weight": weights}
        return selector.fit(X, y, tasks, X_val, y_val, **params)

    queries = (None, None) if case.seed % 2 else (X_query, y_query)
    fitted = answered(fit, X, y, tasks, *queries, weights, estimator=selector)
    if fitted is not None:
        assert np.isfinite(fitted.task_weights_).all()
    if selector.attributor is None:
        answered(selector.transform, X_query, estimator=selector)


def retraining(name, case):
    X, y, tasks, weights, X_query, y_query = build(case)
    n_units = case.n if tasks is None else 3
    W = unit_weights(case, n_units)
    estimator = [
        LogisticRegression(random_state=0),
        CLASSIFIER,
        REGRESSOR,
        Ridge(random_state=0),
        GaussianNB(),
        make_pipeline(StandardScaler(), CLASSIFIER),
    ][case.option % 6]

    def call(X, y, W, X_query, y_query, tasks, weights):
        options = {"tasks": tasks, "sample_weight": weights}
        return retrain_outcomes(estimator, X, y, W, X_query, y_query, **options).T

    inputs = X, y, W, X_query, y_query, tasks, weights
    answered(call, *inputs, strangers=True)


def lookahead(name, case):
    X, y, _, weights, X_query, y_query = build(case)
    estimator = [CLASSIFIER, REGRESSOR][case.option % 2]

    def call(X, y, X_val, y_val, weights):
        options = {"sample_weight": weights, "drop": 0.2}
        found = lookahead_training(estimator, X, y, X_val, y_val, **options)
        return found.scores

    answered(call, X, y, X_query, y_query, weights)


def regressors(name, case):
    X, y, *_, X_query, _ = build(case)
    regressor = some(name, case)
    answered(regressor.fit, X, y, estimator=regressor)
    answered(regressor.predict, X_query, estimator=regressor)
    answered(lambda: regressor.attribution(), estimator=regressor)
    answered(lambda: regressor.attribution("shapley"), estimator=regressor)


def metrics(name, case):
    X, y, tasks, weights, X_query, _ = build(case)
    options = {"confidence": 0.9, "n_resamples": 5, "random_state": 0}
    interval = lambda *args: lds_score(*args, **options)["score"]
    answered(lds_score, X, X_query)
    answered(lds_score, X, X)
    answered(interval, X, X)
    answered(loo_score, X, X_query)
    answered(lambda X: loo_score(X, np.asarray(X).T), X) if _is_table(X) else None
    answered(retrieval_score, X, y)
    answered(retrieval_score, X, tasks)
    answered(mislabel_score, weights, tasks)
    answered(mislabel_score, y, y)
    curve = lambda a: removal_curve(
        lambda W: W.sum(axis=1), a, fractions=[0.3], random_state=0
    )["outcome"]
    answered(curve, y)
    answered(curve, weights)
    stratified = lambda y: make_weightings(case.n, 2, stratify=y, random_state=0)
    answered(stratified, y)
    answered(stratified, tasks)


def _is_table(X):
    return isinstance(X, np.ndarray | pd.DataFrame) and np.ndim(X) == 2


def surrogates(kind, estimators, **options):
    options = {"n_subsets": 8, "n_retrainings": 8, "random_state": 0} | options
    return [(kind(estimator, **options), number) for estimator, number in estimators]


NETWORKS = [(CLASSIFIER, False), (REGRESSOR, True)]
OTHERS = [(LogisticRegression(), False), (Ridge(), True), (GaussianNB(), False)]
SOME = {"n_retrainings": 8, "random_state": 0}
#: Those of a family, and whether they are for numbers.
ESTIMATORS = {
    "classifier": [
        (CLASSIFIER, False),
        (clone(CLASSIFIER).set_params(class_weight="balanced", batch_size=4), False),
        (clone(CLASSIFIER).set_params(activation="identity"), False),
    ],
    "regressor": [
        (REGRESSOR, True),
        (clone(REGRESSOR).set_params(activation="relu", optimizer="sgd"), True),
    ],
    "dual": [
        *((DualInfluence(network, **SOME), number) for network, number in NETWORKS),
        (DualInfluence(CLASSIFIER, removal="influence", n_models=2, **SOME), False),
        (DualInfluence(REGRESSOR, removal="refit", solver="dual", **SOME), True),
        (
            DualInfluence(make_pipeline(StandardScaler(), CLASSIFIER), **SOME),
            False,
        ),
    ],
    "adamw": [
        (AdamWInfluence(network, n_trajectories=2, **options, **SOME), number)
        for network, number in NETWORKS
        for options in ({"inclusion": 0.5, "n_halves": 4}, {"inclusion": 1.0})
    ],
    "kernel": surrogates(KernelSurrogateAttributor, OTHERS),
    "linear": surrogates(LinearSurrogateAttributor, OTHERS),
    "kernel of networks": [
        *surrogates(KernelSurrogateAttributor, NETWORKS, estimation="gradient"),
        *surrogates(KernelSurrogateAttributor, NETWORKS, estimation="retrain"),
    ],
    "linear of networks": [
        *surrogates(LinearSurrogateAttributor, NETWORKS, estimation="gradient"),
        *surrogates(LinearSurrogateAttributor, NETWORKS[:1], prior=DualInfluence()),
    ],
    "rise": [
        (RISEValuator(network, n_components=16, **SOME), number)
        for network, number in NETWORKS
    ],
    "faiss": [
        (RISEValuator(network, sketch=None, algorithm="faiss", **SOME), number)
        for network, number in NETWORKS
    ],
    "gradients": [
        *(
            (GradientTransformer(network, random_state=0), number)
            for network, number in NETWORKS
        ),
        (GradientTransformer(CLASSIFIER, projection=4, random_state=0), False),
    ],
    "sketch": [(CountSketchTransformer(2, random_state=0), False)],
    "selector": [
        (TaskWeightSelector(), False),
        *(
            (
                TaskWeightSelector(
                    DualInfluence(network, **SOME),
                    n_tasks_to_select=1,
                    cv=2,
                    random_state=0,
                ),
                number,
            )
            for network, number in NETWORKS
        ),
        (TaskWeightSelector(DualInfluence(CLASSIFIER, **SOME), random_state=0), False),
    ],
    "regressors": [
        (KernelSurrogate(), True),
        (KernelSurrogate(bandwidth="loocv"), True),
        (LinearSurrogate(), True),
        (LinearSurrogate(ridge=0), True),
    ],
}
FAMILIES = {
    "classifier": networks,
    "regressor": networks,
    "dual": attributors,
    "adamw": attributors,
    "kernel": attributors,
    "linear": attributors,
    "kernel of networks": attributors,
    "linear of networks": attributors,
    "rise": attributors,
    "faiss": attributors,
    "gradients": gradients,
    "sketch": sketches,
    "selector": selectors,
    "regressors": regressors,
    "retraining": retraining,
    "lookahead": lookahead,
    "metrics": metrics,
}


#: What once came through as an error, or a warning, from inside NumPy, pandas, torch
#: or faiss, spoilt other queries, or changed what had been learnt.
FOUND = [
    ("classifier", Case(container="negative strides")),
    ("classifier", Case(container="words")),
    ("classifier", Case(container="ragged list")),
    ("classifier", Case(container="frame with one name twice")),
    ("classifier", Case(container="frame with dates", p=0)),
    ("classifier", Case(container="masked")),
    ("classifier", Case(container="dates")),
    ("classifier", Case(target="huge float classes")),
    ("classifier", Case(target="list among words")),
    ("classifier", Case(weights="words")),
    ("classifier", Case(weights="text")),
    ("regressor", Case(target="bytes")),
    ("regressor", Case(target="dates")),
    ("regressor", Case(target_as="sparse")),
    ("regressor", Case(seed=60, values=("large",), query_values=("huge",), option=5)),
    ("dual", Case(tasks="ragged")),
    ("dual", Case(weights="all huge")),
    ("dual", Case(weights="tiny")),
    ("dual", Case(values=("huge number",))),
    ("dual", Case(query_target="dates")),
    ("dual", Case(query_target="huge float classes", option=1)),
    ("dual", Case(unit_weights="ragged")),
    ("dual", Case(unit_weights="huge")),
    ("dual", Case(n=0, tasks="ragged")),
    ("dual", Case(query_values=("largest number",), target="numbers", option=3)),
    ("adamw", Case(seed=65, values=("huge",), target="numbers", option=3)),
    ("adamw", Case(seed=30, target="huge float classes", option=2)),
    ("kernel", Case(container="with dates")),
    (
        "linear of networks",
        Case(seed=55, target="numbers", query_target="huge numbers"),
    ),
    ("rise", Case(container="half tensor", values=("nan",))),
    ("gradients", Case(target="list among words", container="ragged list")),
    ("sketch", Case(container="with texts")),
    ("regressors", Case(container="with texts")),
    ("regressors", Case(values=("huge",))),
    ("regressors", Case(query_values=("largest number",))),
    ("selector", Case(query_as="with dates")),
    ("selector", Case(container="tensor with gradients")),
    ("selector", Case(query_values=("largest", "huge"))),
    ("selector", Case(target="two columns", target_as="sparse", option=2)),
    ("selector", Case(target="words", query_target="probabilities", option=1)),
    ("selector", Case(seed=30, n_queries=1, values=("zero",), option=3)),
    ("retraining", Case(target="none")),
    ("retraining", Case(target_as="column")),
    ("retraining", Case(tasks="three")),
    ("retraining", Case(query_target="labels")),
    ("retraining", Case(query_target="none among words")),
    ("retraining", Case(query_as="with texts")),
    ("retraining", Case(query_as="narrow")),
    ("retraining", Case(unit_weights="no weighting")),
    ("retraining", Case(unit_weights="zeros")),
    ("retraining", Case(n=0)),
    ("lookahead", Case(query_target="none among words")),
    ("metrics", Case(tasks="number among words")),
    ("metrics", Case(p=0, tasks="ragged")),
]


@pytest.mark.parametrize(("name", "case"), FOUND)
def test_found_once(name, case):
    FAMILIES[name](name, case)


def test_a_refused_fit_changes_nothing():
    """Of a fit that is refused, and of one that was never made."""
    case = Case(container="words")
    for name in ("classifier", "dual", "sketch", "regressors", "selector"):
        for estimator in (some(name, case), clone(some(name, case))):
            before, (X, y, *_) = state_of(estimator), build(case)
            with pytest.raises((TypeError, ValueError), match="not numbers"):
                estimator.fit(X, y)
            check_same(estimator, before)


def test_lists_of_few_rows_are_silent(capfd):
    """What faiss writes is no warning of Python's."""
    clone(some("faiss", Case())).fit(np.eye(8), np.arange(8) % 2)
    assert capfd.readouterr() == ("", "")


def often(n_examples, name):
    @seed(zlib.crc32(name.encode()))
    @settings(max_examples=n_examples)
    @given(CASES)
    def run(case):
        FAMILIES[name](name, case)

    run()


@pytest.mark.parametrize("name", FAMILIES)
def test_random_inputs(name):
    often(20, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_random_inputs_often(name):
    often(300, name)
