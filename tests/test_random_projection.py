"""The transformers of the random_projection module."""

import numpy as np
import pytest
import scipy.sparse as sp
import sklearn
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.exceptions import DataDimensionalityWarning, NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, scale
from sklearn.random_projection import (
    GaussianRandomProjection,
    SparseRandomProjection,
)
from torch import nn

import skattrib.models._network
import skattrib.random_projection
from skattrib import (
    CountSketchTransformer,
    DualInfluence,
    GradientTransformer,
    TorchClassifier,
    TorchRegressor,
)
from skattrib.exceptions import FaithfulnessWarning
from tests.cases import build, build_case, dense_jacobian, mlp, trainable


def rows(n=6, n_features=30, dtype=np.float64):
    return np.random.RandomState(0).randn(n, n_features).astype(dtype)


def data():
    X, y = load_iris(return_X_y=True)
    return scale(X)[::5], y[::5]


def classifier(**options):
    options = {
        "hidden_layer_sizes": (5,),
        "max_epochs": 10,
        "random_state": 0,
    } | options
    return TorchClassifier(**options)


def regressor(**options):
    options = {
        "hidden_layer_sizes": (5,),
        "max_epochs": 10,
        "random_state": 0,
    } | options
    return TorchRegressor(**options)


def gradients_of(estimator, **options):
    return GradientTransformer(estimator, **{"random_state": 0, **options})


# -------------------------------------------------------- CountSketchTransformer
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "container", [sp.csr_array, sp.csc_array, sp.csr_matrix, sp.csc_matrix]
)
def test_sparse_rows_give_the_sketch_of_dense_ones(dtype, container):
    X = rows(dtype=dtype)
    X[X < 1] = 0
    transformer = CountSketchTransformer(6, random_state=0)
    dense = transformer.fit(X).transform(X)
    assert isinstance(dense, np.ndarray)
    assert dense.dtype == dtype
    found = transformer.transform(container(X))
    assert sp.issparse(found)
    assert isinstance(found, sp.sparray) == issubclass(container, sp.sparray)
    assert found.dtype == dtype
    assert_allclose(found.toarray(), dense, rtol=0, atol=1e-5)
    fitted_on_sparse = CountSketchTransformer(6, random_state=0)
    assert_array_equal(fitted_on_sparse.fit(container(X)).transform(X), dense)


def test_every_feature_is_added_to_one_component():
    transformer = CountSketchTransformer(6, random_state=0).fit(rows())
    R = transformer.transform(np.eye(30))
    assert_array_equal((R != 0).sum(axis=1), np.ones(30))
    assert_array_equal(abs(R[R != 0]), np.ones(30))
    assert transformer.hash_indices_.dtype == np.int32
    assert transformer.hash_signs_.dtype == np.int8


def test_several_hashes_are_deprecated():
    transformer = CountSketchTransformer(6, n_hashes=2, random_state=0)
    with pytest.warns(FutureWarning, match="n_hashes=2 is deprecated") as caught:
        transformer.fit(rows())
    assert caught[0].filename == __file__
    R = transformer.transform(np.eye(30))
    assert_array_equal((R[:, :3] != 0).sum(axis=1), np.ones(30))
    assert_array_equal((R[:, 3:] != 0).sum(axis=1), np.ones(30))
    assert_allclose(abs(R[R != 0]), 0.5**0.5)


def test_more_rows_than_are_sketched_at_once(monkeypatch):
    X = rows(50)
    transformer = CountSketchTransformer(6, random_state=0).fit(X)
    expected = transformer.transform(X)
    monkeypatch.setattr(skattrib.random_projection, "_AT_ONCE", 100)
    assert_array_equal(transformer.transform(X), expected)


def test_lengths_are_kept_about():
    X = rows(20, 5000)
    S = CountSketchTransformer(random_state=0).fit_transform(X)
    assert S.shape == (20, 256)
    ratios = (S**2).sum(axis=1) / (X**2).sum(axis=1)
    assert abs(ratios.mean() - 1) < 4 * (2 / 256 / 20) ** 0.5
    assert ratios.std() == pytest.approx((2 / 256) ** 0.5, rel=0.6)


@pytest.mark.parametrize("X", [np.zeros((3, 4)), np.ones((1, 1)), np.ones((2, 1))])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.DataDimensionalityWarning")
def test_few_and_empty_features(X):
    found = CountSketchTransformer(2, random_state=0).fit_transform(X)
    assert found.shape == (len(X), 2)
    assert_allclose((found**2).sum(axis=1), (X**2).sum(axis=1))


def test_seeds_of_the_sketch():
    X = rows()
    first, again, other = (
        CountSketchTransformer(4, random_state=seed).fit_transform(X)
        for seed in (0, 0, 1)
    )
    assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    generator = np.random.RandomState(0)
    drawn = CountSketchTransformer(4, random_state=generator)
    assert not np.array_equal(drawn.fit_transform(X), drawn.fit_transform(X))


def test_feature_names_of_the_sketch():
    transformer = CountSketchTransformer(2, random_state=0).fit(rows())
    names = ["countsketchtransformer0", "countsketchtransformer1"]
    assert list(transformer.get_feature_names_out()) == names


def test_changed_parameters_wait_for_the_next_fit():
    X = rows()
    transformer = CountSketchTransformer(4, random_state=0).fit(X)
    before = transformer.transform(X)
    assert_array_equal(transformer.set_params(n_components=8).transform(X), before)


def test_more_components_than_features_warn():
    with pytest.warns(DataDimensionalityWarning, match="n_components=40.* 30 features"):
        CountSketchTransformer(40, random_state=0).fit(rows())


@pytest.mark.filterwarnings("ignore:n_hashes=3 is deprecated:FutureWarning")
@pytest.mark.parametrize(("n_components", "better"), [(2, 3), (7, 9)])
def test_components_that_hashes_cannot_share(n_components, better):
    transformer = CountSketchTransformer(n_components, n_hashes=3, random_state=0)
    message = f"n_components={n_components} must.*n_hashes=3.*Use n_components={better}"
    with pytest.raises(ValueError, match=message):
        transformer.fit(rows())
    transformer.set_params(n_components=better).fit(rows())


# ----------------------------------------------------------- GradientTransformer
def reference(estimator, X, outcome):
    """Gradients of outcome(outputs, own class or prediction) by plain autograd."""
    module, found = estimator.module_, []
    for row in torch.tensor(X):
        f = module(row[None]).reshape(-1)
        gradient = torch.autograd.grad(outcome(f), trainable(module))
        found.append(torch.cat([g.reshape(-1) for g in gradient]))
    return torch.stack(found).numpy()


def own_log_likelihood(f):
    return f.log_softmax(dim=0)[f.argmax()]


def own_margin(f):
    p = f.softmax(dim=0)[f.argmax()]
    return p.log() - (1 - p).log()


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ("auto", own_log_likelihood),
        ("log_likelihood", own_log_likelihood),
        ("margin", own_margin),
        (lambda f, y: f[..., 0] * y, lambda f: f[0] * f.argmax()),
    ],
)
def test_gradients_of_a_classifier(outcome, expected):
    X, y = data()
    transformer = gradients_of(classifier(), outcome=outcome)
    found = transformer.fit_transform(X, y)
    trained = classifier().fit(X, y)
    assert found.shape == (30, 5 * 5 + 3 * 6)
    assert_allclose(found, reference(trained, X, expected), rtol=0, atol=1e-10)


@pytest.mark.parametrize("outcome", ["auto", "prediction"])
def test_gradients_of_a_regressor(outcome):
    X, _ = data()
    y = X[:, 0] - X[:, 1]
    found = gradients_of(regressor(), outcome=outcome).fit_transform(X, y)
    expected = reference(regressor().fit(X, y), X, lambda f: f[0])
    assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_a_callable_is_the_way_for_many_outputs():
    X, _ = data()
    y = X[:, :2]
    transformer = gradients_of(regressor(), outcome=lambda f, y: f.sum(dim=-1))
    found = transformer.fit_transform(X, y)
    expected = reference(regressor().fit(X, y), X, torch.sum)
    assert_allclose(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("projection", [None, CountSketchTransformer(8)])
@pytest.mark.parametrize(
    "name", ["layer_norm", "conv", "conv_grouped", "twice", "tied", "frozen_weight"]
)
def test_gradients_of_wrapped_modules(name, projection):
    module, X = build_case(name, n_rows=5)
    X = X.numpy()
    n_classes = module(torch.tensor(X)).shape[1]
    wrapped = TorchClassifier.from_module(module, range(n_classes))
    transformer = gradients_of(
        FrozenEstimator(wrapped), projection=projection, random_state=0
    ).fit(X, [0, 1, 0, 1, 0])
    f = module(torch.tensor(X)).detach()
    slopes = torch.eye(n_classes)[f.argmax(dim=1)] - f.softmax(dim=1)
    jacobian = dense_jacobian(module, torch.tensor(X))
    expected = torch.einsum("nc,ncp->np", slopes, jacobian).numpy()
    if projection is not None:
        expected = transformer.projection_.transform(expected)
    assert_allclose(transformer.transform(X), expected, rtol=0, atol=1e-10)


def test_inner_products_are_the_kernel_of_attributions():
    """Training on a row moves another row's outcome along their gradients."""
    X, y = data()
    frozen = FrozenEstimator(classifier().fit(X, y))
    Z = gradients_of(frozen).fit_transform(X, y)
    dual = DualInfluence(
        frozen, metric="identity", ridge=1e6, removal="influence", random_state=0
    )
    # a damping that drowns the Hessian leaves the inner products with row gradients,
    # which for rows that are predicted right are those of the own predictions
    A = dual.fit(X, y).attribute(X) * 1e6 * len(X)
    right = frozen.predict(X) == y
    assert right.sum() > 15
    kernel = Z @ Z[right].T
    centred = A[:, right] - kernel
    # attributions lack a constant per query: only ratios of weights matter
    spread = centred - centred.mean(axis=1, keepdims=True)
    assert abs(spread).max() < 1e-3 * abs(kernel).max()


# ------------------------------------------------------------------- projections
PROJECTIONS = {
    "sketch": CountSketchTransformer(16, random_state=0),
    "gaussian": GaussianRandomProjection(16, random_state=0),
    "sparse": SparseRandomProjection(16, random_state=0),
    "dense_output": SparseRandomProjection(16, dense_output=True, random_state=0),
    "auto": GaussianRandomProjection(eps=0.9, random_state=0),
}


@pytest.mark.parametrize("working_memory", [1024, 0.02])
@pytest.mark.parametrize("projection", PROJECTIONS.values(), ids=list(PROJECTIONS))
def test_projection_inside_is_that_of_a_pipeline(projection, working_memory):
    X, y = data()
    net = classifier(hidden_layer_sizes=(20,))
    pipeline = make_pipeline(gradients_of(net), clone(projection))
    expected = pipeline.fit_transform(X, y)
    inside = gradients_of(net, projection=projection).fit(X, y)
    assert not hasattr(projection, "n_components_")
    with sklearn.config_context(working_memory=working_memory):
        found = inside.transform(X)
    assert_allclose(found, expected, rtol=0, atol=1e-10)
    names = inside.get_feature_names_out()
    assert len(names) == found.shape[1]
    assert names[-1] == f"gradienttransformer{found.shape[1] - 1}"


def test_an_int_is_a_count_sketch():
    X, y = data()
    inside = gradients_of(classifier(), projection=16, random_state=0).fit(X, y)
    assert isinstance(inside.projection_, CountSketchTransformer)
    Z = gradients_of(classifier()).fit_transform(X, y)
    expected = inside.projection_.transform(Z)
    assert_allclose(inside.transform(X), expected, rtol=0, atol=1e-10)


def test_seeds_that_are_missing_are_drawn():
    X, y = data()
    net = classifier(random_state=None)
    for projection in (8, CountSketchTransformer(8), GaussianRandomProjection(8)):
        first, again, other = (
            gradients_of(net, projection=projection, random_state=seed)
            .fit(X, y)
            .transform(X)
            for seed in (0, 0, 1)
        )
        assert_array_equal(first, again)
        assert not np.allclose(first, other)
        assert net.random_state is None


def test_seeds_of_the_user_stay():
    X, y = data()
    projection = CountSketchTransformer(8, random_state=3)
    one, two = (
        gradients_of(classifier(), projection=projection, random_state=seed)
        .fit(X, y)
        .transform(X)
        for seed in (1, 2)
    )
    assert_array_equal(one, two)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.DataDimensionalityWarning")
def test_the_gradients_never_exist_at_once(monkeypatch):
    X, y = data()
    net = classifier(hidden_layer_sizes=(40, 40), max_epochs=1)
    inside = gradients_of(net, projection=8, random_state=0).fit(X, y)
    n_params = inside.projection_.n_features_in_
    sizes, gradients = [], skattrib.random_projection.outcome_gradients

    def noted(*args):
        for columns, block in gradients(*args):
            sizes.append((len(block), block.nbytes))
            yield columns, block

    monkeypatch.setattr(skattrib.random_projection, "outcome_gradients", noted)
    cap = 0.1 * 2**20
    assert len(X) * n_params * X.itemsize > 3 * cap
    with sklearn.config_context(working_memory=0.1):
        inside.transform(X)
    assert max(size for _, size in sizes) <= cap / 8
    assert 1 < max(n for n, _ in sizes) < len(X)


@pytest.mark.parametrize("projection", [None, 64])
def test_a_result_over_the_memory_cap_is_refused(projection):
    X, y = data()
    big = gradients_of(classifier(), projection=projection, random_state=0)
    big.set_params(estimator__hidden_layer_sizes=(20,)).fit(X, y)
    shape = "30 x 64" if projection else "30 x 163"
    with (
        sklearn.config_context(working_memory=0.01),
        pytest.raises(ValueError, match=rf"{shape} numbers.*Pass projection="),
    ):
        big.transform(X)


# ------------------------------------------------------------- around the network
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_of_the_rows(dtype):
    X, y = data()
    Z = gradients_of(classifier(), projection=8, random_state=0)
    found = Z.fit_transform(X.astype(dtype), y)
    assert found.dtype == dtype


def test_a_frozen_model_is_taken_as_it_is(monkeypatch):
    X, y = data()
    trained = classifier().fit(X, y)
    monkeypatch.setattr(
        skattrib.models._network, "train", lambda *args, **options: pytest.fail("ran")
    )
    found = gradients_of(FrozenEstimator(trained)).fit(X[:3], y[:3])
    assert found.estimator_.estimator is trained
    assert_array_equal(found.transform(X).shape, (30, 43))


def test_a_wrapped_module_that_is_not_frozen_warns_at_the_call():
    X, y = data()
    wrapped = TorchClassifier.from_module(
        build(lambda: mlp(4, 3)), range(3)
    ).set_params(max_epochs=1)
    with pytest.warns(FaithfulnessWarning, match="trained again") as record:
        gradients_of(wrapped).fit(X, y)
    assert record[0].filename == __file__


@pytest.mark.parametrize(
    ("y", "kind"), [("classes", TorchClassifier), ("values", TorchRegressor)]
)
def test_no_estimator_builds_one_that_suits_y(y, kind):
    X, codes = data()
    target = codes if y == "classes" else X[:, 0] * 0.7 + 0.1
    transformer = GradientTransformer(random_state=0).fit(X, target)
    assert isinstance(transformer.estimator_, kind)
    assert transformer.estimator is None


def test_weights_reach_the_training():
    X, y = data()
    weights = np.arange(30.0)
    found = gradients_of(classifier()).fit(X, y, sample_weight=weights)
    trained = classifier().fit(X, y, sample_weight=weights)
    expected = reference(trained, X, own_log_likelihood)
    assert_allclose(found.transform(X), expected, rtol=0, atol=1e-10)


BAD_INPUT = {
    "no torch model": (
        {"estimator": LogisticRegression()},
        "GradientTransformer needs gradients. Use DualInfluence or KernelSurrogate",
    ),
    "a pipeline": (
        {"estimator": make_pipeline(StandardScaler(), TorchClassifier())},
        r"as the network does: .*transform before it, as in make_pipeline\(",
    ),
    "a bare module": ({"estimator": nn.Identity()}, "is a torch module; wrap it"),
    "a projection that is none": (
        {"projection": PCA(2)},
        "'projection' parameter of GradientTransformer must be an int",
    ),
    "no components": ({"projection": 0}, "'projection' parameter"),
    "components of the projection": (
        {"projection": CountSketchTransformer(0)},
        "'n_components' parameter of CountSketchTransformer",
    ),
    "components of another projection": (
        {"projection": GaussianRandomProjection(-1)},
        "'n_components' parameter of GaussianRandomProjection",
    ),
    "prediction of a classifier": (
        {"outcome": "prediction"},
        "outcome='prediction' needs a regressor",
    ),
    "margin of a regressor": (
        {"estimator": regressor(), "outcome": "margin"},
        "outcome='margin'.*needs a classifier",
    ),
    "own likelihood of a regressor": (
        {"estimator": regressor(), "outcome": "log_likelihood"},
        "outcome='log_likelihood' needs y.*Use outcome='prediction'",
    ),
}


@pytest.mark.parametrize(
    ("options", "message"), BAD_INPUT.values(), ids=list(BAD_INPUT)
)
def test_bad_input_is_named_before_training(options, message, monkeypatch):
    X, y = data()
    monkeypatch.setattr(
        skattrib.models._network, "train", lambda *args, **options: pytest.fail("ran")
    )
    transformer = gradients_of(**{"estimator": classifier(), **options})
    with pytest.raises(ValueError, match=f"(?s){message}"):
        transformer.fit(X, y)
    with pytest.raises(NotFittedError):
        transformer.transform(X)


def test_many_outputs_need_a_callable():
    X, _ = data()
    with pytest.raises(ValueError, match=r"one output; use.*or a callable"):
        gradients_of(regressor()).fit(X, X[:, :2])


def test_frozen_models_that_do_not_fit():
    X, y = data()
    with pytest.raises(NotFittedError, match="TorchClassifier instance is not fitted"):
        gradients_of(FrozenEstimator(classifier())).fit(X, y)
    trained = FrozenEstimator(classifier().fit(X[:, :3], y))
    with pytest.raises(ValueError, match=r"X has 4 features, but .* expecting 3"):
        gradients_of(trained).fit(X, y)
    wrapped = FrozenEstimator(
        TorchClassifier.from_module(build(lambda: mlp(4, 2)), range(3))
    )
    with pytest.raises(ValueError, match=r"module returns shape \(3, 2\) for 3"):
        gradients_of(wrapped).fit(X, y)


def test_a_failed_fit_leaves_the_last_one():
    X, y = data()
    transformer = gradients_of(classifier()).fit(X, y)
    before = transformer.transform(X)
    with pytest.raises(ValueError, match="larger than the original space"):
        transformer.set_params(
            projection=GaussianRandomProjection(eps=0.1), outcome="margin"
        ).fit(X, y)
    assert_array_equal(transformer.transform(X), before)


def test_more_components_than_parameters_warn():
    X, y = data()
    with pytest.warns(DataDimensionalityWarning):
        transformer = gradients_of(classifier(), projection=64).fit(X, y)
    assert transformer.transform(X).shape == (30, 64)
