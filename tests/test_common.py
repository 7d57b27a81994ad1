"""Every public estimator passes scikit-learn's checks, all of them."""

import re
from itertools import product

import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.frozen import FrozenEstimator
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Binarizer
from sklearn.random_projection import GaussianRandomProjection
from sklearn.utils import estimator_checks, get_tags
from sklearn.utils.estimator_checks import (
    check_dataframe_column_names_consistency,
    check_get_feature_names_out_error,
    check_global_output_transform_pandas,
    check_global_set_output_transform_polars,
    check_param_validation,
    check_set_output_transform,
    check_set_output_transform_pandas,
    check_set_output_transform_polars,
    check_transformer_get_feature_names_out,
    check_transformer_get_feature_names_out_pandas,
    parametrize_with_checks,
)
from sklearn.utils.fixes import parse_version

import skattrib
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
    TreeInfluence,
)
from skattrib.language import CausalLanguageModel

SKLEARN = parse_version(sklearn.__version__)

MODELS = [TorchClassifier(max_epochs=60), TorchRegressor(max_epochs=60)]
# Short trainings and few of them: `score` is called dozens of times.
CLASSIFIER = TorchClassifier(hidden_layer_sizes=(8,), max_epochs=4)
BRIEF = TorchClassifier(hidden_layer_sizes=(8,), max_epochs=2)
REGRESSOR = TorchRegressor(hidden_layer_sizes=(8,), max_epochs=4)
INFLUENCE = DualInfluence(CLASSIFIER, n_retrainings=8, removal="influence", n_models=2)
PRIOR = LinearSurrogateAttributor(
    CLASSIFIER,
    n_subsets=16,
    estimation="retrain",
    prior=DualInfluence(),
    n_retrainings=8,
)
# The slowest; others of their classes pass the same checks.
REPEATED = [INFLUENCE, PRIOR]
ATTRIBUTORS = [
    DualInfluence(CLASSIFIER, n_retrainings=8),
    DualInfluence(REGRESSOR, n_retrainings=8, removal="refit", solver="dual"),
    INFLUENCE,
    DualInfluence(LogisticRegression(), n_retrainings=8),
    DualInfluence(Ridge(), n_retrainings=8, removal="influence"),
    DualInfluence(KernelRidge(), n_retrainings=8),
    AdamWInfluence(REGRESSOR, inclusion=1.0, n_retrainings=8),
    AdamWInfluence(BRIEF, n_trajectories=2, n_halves=16, n_retrainings=8),
    TreeInfluence(
        HistGradientBoostingRegressor(max_iter=2, min_samples_leaf=2),
        n_structures=2,
        n_halves=16,
        n_retrainings=8,
    ),
    KernelSurrogateAttributor(CLASSIFIER, n_subsets=24, n_retrainings=8),
    KernelSurrogateAttributor(
        REGRESSOR, n_subsets=16, estimation="gradient", n_retrainings=8
    ),
    KernelSurrogateAttributor(LogisticRegression(), n_subsets=16, n_retrainings=8),
    LinearSurrogateAttributor(CLASSIFIER, n_subsets=24, n_retrainings=8),
    PRIOR,
    RISEValuator(CLASSIFIER, n_components=64, n_retrainings=8),
    RISEValuator(
        REGRESSOR,
        sketch="factor",
        channels=("rh", "h"),
        algorithm="faiss",
        n_retrainings=8,
    ),
]
SURROGATES = [
    KernelSurrogate(),
    KernelSurrogate(bandwidth="loocv"),
    LinearSurrogate(),
    LinearSurrogate(ridge=0),
]
PROJECTIONS = [
    CountSketchTransformer(n_components=2),
    GradientTransformer(CLASSIFIER),
    GradientTransformer(REGRESSOR, projection=GaussianRandomProjection(3)),
]
SELECTORS = [
    TaskWeightSelector(),
    TaskWeightSelector(DualInfluence(CLASSIFIER), n_tasks_to_select=0.5),
]
TRANSFORMERS = [*ATTRIBUTORS, *PROJECTIONS, SELECTORS[0]]
INSTANCES = [*MODELS, *ATTRIBUTORS, *SURROGATES, *PROJECTIONS, *SELECTORS]

# What parametrize_with_checks leaves out.
TRANSFORMER_CHECKS = [
    check_get_feature_names_out_error,
    check_global_output_transform_pandas,
    check_global_set_output_transform_polars,
    check_set_output_transform,
    check_set_output_transform_pandas,
    check_set_output_transform_polars,
    check_transformer_get_feature_names_out,
    check_transformer_get_feature_names_out_pandas,
]
# What `set_output` does is of a class, not of parameters: its first instance shows it.
OUTPUT_CHECKS = [
    check_global_output_transform_pandas,
    check_global_set_output_transform_polars,
    check_set_output_transform,
    check_set_output_transform_pandas,
    check_set_output_transform_polars,
]
GENERAL_CHECKS = [check_dataframe_column_names_consistency, check_param_validation]


def transformer_checks():
    """Pairs of an estimator and a check; those that repeat others are slow."""
    seen = set()
    for estimator in TRANSFORMERS:
        for check in TRANSFORMER_CHECKS:
            repeats = check in OUTPUT_CHECKS and type(estimator) in seen
            marks = pytest.mark.slow if repeats else ()
            yield pytest.param(estimator, check, marks=marks)
        seen.add(type(estimator))


def short_name(value):
    return value.__name__ if callable(value) else repr(value)[:60].replace("\n", "")


# random_state=None draws from NumPy's global generator, as everywhere in scikit-learn.
draws_globally = pytest.mark.touches_global_rng


@draws_globally
@parametrize_with_checks([e for e in INSTANCES if e not in REPEATED])
def test_common_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    ("estimator", "check"), list(transformer_checks()), ids=short_name
)
def test_transformer_checks(estimator, check):
    check(type(estimator).__name__, estimator)


@draws_globally
@pytest.mark.parametrize("check", GENERAL_CHECKS, ids=short_name)
@pytest.mark.parametrize("estimator", INSTANCES, ids=short_name)
def test_general_checks(estimator, check):
    check(type(estimator).__name__, estimator)


@pytest.mark.parametrize("estimator", MODELS, ids=short_name)
def test_all_zero_weights(estimator):
    X, y = make_classification(20, 4, random_state=0)
    estimator = clone(estimator).set_params(random_state=0)
    with pytest.raises(ValueError, match="Sample weights must contain at least one"):
        estimator.fit(X, y, sample_weight=np.zeros(20))
    if SKLEARN >= parse_version("1.8"):  # which has a check of this
        check = estimator_checks.check_all_zero_sample_weights_error
        check(type(estimator).__name__, estimator)


@draws_globally
@pytest.mark.slow
@parametrize_with_checks(
    [
        TorchClassifier(),
        TorchRegressor(),
        DualInfluence(),
        TreeInfluence(),
        CountSketchTransformer(),
        *REPEATED,
    ]
)
def test_common_checks_of_the_defaults_and_the_slowest(estimator, check):
    check(estimator)


def test_every_public_estimator_is_checked():
    public = {
        value
        for name in skattrib.__all__
        if isinstance(value := getattr(skattrib, name), type)
        and hasattr(value, "get_params")
    }
    assert public == {type(instance) for instance in INSTANCES}


def test_a_frozen_estimator_does_not_switch_the_checks_off():
    X, y = make_classification(30, 4, random_state=0)
    frozen = FrozenEstimator(TorchClassifier(max_epochs=2, random_state=0).fit(X, y))
    assert get_tags(frozen)._skip_test
    assert not get_tags(DualInfluence(frozen))._skip_test


@pytest.mark.parametrize("estimator", ATTRIBUTORS, ids=short_name)
def test_attributors_do_not_claim_to_be_what_they_wrap(estimator):
    assert get_tags(estimator).estimator_type is None


def test_set_output_names_columns_after_the_index():
    import pandas as pd

    X, y = make_classification(20, 4, random_state=0)
    names = [f"row-{i}" for i in range(20)]
    frame = pd.DataFrame(X, index=names)
    dual = DualInfluence(TorchClassifier(max_epochs=5), random_state=0)
    out = dual.set_output(transform="pandas").fit(frame, y).transform(frame[:3])
    assert list(out.columns) == names
    assert list(out.index) == names[:3]
    np.testing.assert_array_equal(dual.unit_names_, names)


@pytest.mark.parametrize("place", ["alone", "in a pipeline"])
@pytest.mark.parametrize(
    ("estimator", "fitted"),
    # there is no model of that name to be fitted
    [*product(INSTANCES, [False, True]), (CausalLanguageModel("a/name"), False)],
    ids=short_name,
)
@pytest.mark.filterwarnings("ignore:(X holds|.* subsets repeat):UserWarning")
def test_html_shows_parameters_and_links_nowhere(estimator, fitted, place):
    estimator = clone(estimator)
    if "random_state" in estimator.get_params():
        estimator.set_params(random_state=0)
    name = type(estimator).__name__
    shown = estimator if place == "alone" else make_pipeline(Binarizer(), estimator)
    if fitted:
        X, y = make_classification(40, 6, n_informative=4, random_state=0)
        shown.fit(X, y)
    page = shown._repr_html_()
    assert re.search(rf"\b{name}\b", page)
    for parameter in estimator.get_params(deep=False):
        assert re.search(rf">{parameter}(&nbsp;)?</td>", page)
    if fitted:
        assert "Not fitted" not in page
        assert "n_features_in_" in page or SKLEARN < parse_version("1.9")
    # only scikit-learn's own classes have pages on its site
    links = re.findall(r'href="([^"#]*)', page)
    own = [value for value in links if "generated/sklearn." not in value]
    assert not own
    assert len(links) >= 2 if place != "alone" else name not in str(links)
    opened = re.findall(r"<(/?)(?:div|details|table)\b", page)
    assert opened.count("") == opened.count("/")
